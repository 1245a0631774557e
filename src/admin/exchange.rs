//! An exchange: a question to one or all shards, and the answers that have come.

use std::collections::BTreeMap;

use super::users::{self, Tally};
use super::{Answer, Figures};
use super::{Health, json};
use crate::bus::{ClusterReply, ConnectionInfo, CoreId, Reply, RoomInfo, RoomName, UserName};
use crate::time::Tick;

/// What the answers are for.
#[derive(Debug)]
pub enum Purpose {
    /// `/metrics`; the node's own figures were taken when it was asked.
    Metrics {
        figures: Box<Figures>,
        open_metrics: bool,
    },
    /// `/v1/stats`.
    Stats { figures: Box<Figures> },
    /// `/v1/rooms`: by room, members and shards so far.
    Rooms {
        count_max: u32,
        rooms: BTreeMap<RoomName, MergedRoom>,
        truncated: bool,
    },
    /// `/v1/rooms/{room}`.
    Room {
        room: RoomName,
        member_count_max: u32,
        shards: BTreeMap<CoreId, RoomInfo>,
    },
    /// `POST /v1/users/online`: this node's connections, unless the registry is asked.
    Online { with_nodes: bool, tally: Tally },
    /// `GET /v1/users/{id}`: likewise.
    User { user: UserName, tally: Tally },
    /// `GET /v1/cluster`, of the registry.
    Cluster,
    /// What this node tells the others of itself; nobody waits for it.
    State {
        figures: Box<Figures>,
        health: Box<Health>,
    },
    /// Whether the other nodes fit this one, of the registry; nobody waits for it.
    Fit,
    /// `GET /v1/connections/{id}`.
    Connection { info: Option<Box<ConnectionInfo>> },
    /// `DELETE /v1/connections/{id}`.
    Disconnect { found: bool },
}

/// A room, all shards together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct MergedRoom {
    /// Members.
    pub member_count: u64,
    /// Shards with members.
    pub shard_count: u32,
}

/// A question on its way.
#[derive(Debug)]
pub struct Exchange {
    /// Its number.
    pub id: u64,
    /// Whoever has not answered by then is left out.
    pub deadline: Tick,
    /// Shards that have been asked and have not answered.
    pub waiting: Vec<CoreId>,
    /// Shards that could not even be asked.
    pub unasked: Vec<CoreId>,
    /// The registry's part.
    pub cluster: Cluster,
    /// What for.
    pub purpose: Purpose,
}

/// What the registry has to do with an exchange.
#[derive(Debug)]
pub enum Cluster {
    /// Nothing: this node knows.
    Unasked,
    /// It has not answered.
    Asked,
    /// It has.
    Answered(ClusterReply),
}

impl Exchange {
    /// Takes an answer in; one that was not waited for, or answers something else, changes nothing.
    ///
    /// The answer to `Question::Stats` is kept by the router, so here it only counts.
    pub fn handle_reply(&mut self, from: CoreId, reply: Reply) {
        let Some(index) = self.waiting.iter().position(|waiting| *waiting == from) else {
            return;
        };
        match (&mut self.purpose, reply) {
            (
                Purpose::Metrics { .. } | Purpose::Stats { .. } | Purpose::State { .. },
                Reply::Stats(_),
            ) => {}
            (Purpose::Online { tally, .. } | Purpose::User { tally, .. }, Reply::Users(infos)) => {
                tally.add(infos);
            }
            (
                Purpose::Rooms {
                    count_max,
                    rooms,
                    truncated,
                },
                Reply::Rooms(infos),
            ) => {
                // A full answer may have left rooms out.
                *truncated |= infos.len() >= *count_max as usize;
                for info in infos {
                    let room = rooms.entry(info.room).or_default();
                    room.member_count += u64::from(info.member_count);
                    room.shard_count += 1;
                }
            }
            (Purpose::Room { shards, .. }, Reply::Room(info)) => {
                if let Some(info) = info {
                    shards.insert(from, info);
                }
            }
            (Purpose::Connection { info }, Reply::Connection(found)) => *info = found,
            (Purpose::Disconnect { found }, Reply::Disconnected(was_there)) => *found = was_there,
            (_, other) => {
                debug_assert!(false, "an answer to another question: {other:?}");
                return;
            }
        }
        self.waiting.swap_remove(index);
    }

    /// Whether somebody has not answered.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || matches!(self.cluster, Cluster::Asked)
    }

    /// Shards that are missing in the answer, in order.
    pub fn stalled_shards(&self) -> Vec<u8> {
        let mut stalled: Vec<u8> = self
            .waiting
            .iter()
            .chain(&self.unasked)
            .map(|shard| shard.0)
            .collect();
        stalled.sort_unstable();
        stalled
    }

    /// The answer of the node called `node`, of what has come. `None` for figures, which the router puts together.
    pub fn answer(&self, node: &str) -> Option<Answer> {
        let stalled = self.stalled_shards();
        Some(match &self.purpose {
            Purpose::Metrics { .. }
            | Purpose::Stats { .. }
            | Purpose::State { .. }
            | Purpose::Fit
            | Purpose::Cluster => return None,
            Purpose::Online { with_nodes, tally } => match &self.cluster {
                Cluster::Unasked => {
                    let online = tally.online(node, *with_nodes);
                    users::online("node", &online, *with_nodes, &stalled)
                }
                Cluster::Answered(ClusterReply::Online(online)) => {
                    users::online("cluster", online, *with_nodes, &stalled)
                }
                Cluster::Answered(reply) => users::away(Some(reply)),
                Cluster::Asked => users::away(None),
            },
            Purpose::User { user, tally } => match &self.cluster {
                Cluster::Unasked => {
                    let (count, connections) = tally.connections(node);
                    users::user("node", user, count, &connections, &stalled)
                }
                Cluster::Answered(ClusterReply::User {
                    connection_count,
                    connections,
                }) => users::user("cluster", user, *connection_count, connections, &stalled),
                Cluster::Answered(reply) => users::away(Some(reply)),
                Cluster::Asked => users::away(None),
            },
            Purpose::Rooms {
                count_max,
                rooms,
                truncated,
            } => Answer::json(
                200,
                &json::rooms(rooms, *count_max as usize, *truncated, &stalled),
            ),
            Purpose::Room { shards, .. } if shards.is_empty() && !stalled.is_empty() => {
                Answer::shards_stalled(&stalled)
            }
            Purpose::Room { shards, .. } if shards.is_empty() => Answer::error(
                404,
                "room_not_found",
                "nobody is in this room; /v1/rooms lists those with members",
            ),
            Purpose::Room {
                room,
                member_count_max,
                shards,
            } => Answer::json(
                200,
                &json::room(node, room, shards, *member_count_max as usize, &stalled),
            ),
            Purpose::Connection { .. } | Purpose::Disconnect { .. } if !stalled.is_empty() => {
                Answer::shards_stalled(&stalled)
            }
            Purpose::Connection { info: Some(info) } => {
                Answer::json(200, &json::connection(node, info))
            }
            Purpose::Disconnect { found: true } => {
                Answer::json(200, &serde_json::json!({ "disconnected": true }))
            }
            Purpose::Connection { info: None } | Purpose::Disconnect { found: false } => {
                connection_not_found()
            }
        })
    }
}

/// 404 for a connection that is gone, or never was.
pub fn connection_not_found() -> Answer {
    Answer::error(
        404,
        "connection_not_found",
        "this connection is gone; /v1/rooms/{room} shows the ids of members",
    )
}
