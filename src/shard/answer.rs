//! Answers to the admin API's questions.

use std::collections::BTreeMap;

use super::Shard;
use super::connection::State;
use super::room::{Reach, Room, RoomIndex};
use crate::bus::{ConnectionInfo, Question, Reply, RoomInfo, RoomName, Upstream, UserName};
use crate::metrics::{ShardGauges, ShardSnapshot};
use crate::protocol::CloseReason;
use crate::time::{Tick, elapsed_ms};

/// How old the count of what is queued may be when it is told.
const QUEUED_AGE_US: u64 = 1_000_000;

/// What all connections have queued, and when it was counted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Queued {
    at: Option<Tick>,
    bytes: u64,
    connections: u64,
}

impl Shard {
    pub(super) fn asked(&mut self, request: u64, question: &Question) {
        let reply = match question {
            Question::Stats => {
                self.refresh_queued();
                Reply::Stats(Box::new(self.figures(self.queued)))
            }
            Question::Rooms { prefix, count_max } => {
                Reply::Rooms(self.rooms_by_name(prefix, *count_max as usize))
            }
            Question::Room {
                room,
                member_count_max,
            } => Reply::Room(
                self.rooms
                    .find(room)
                    .map(|index| &self.rooms[index])
                    .filter(|room| !room.members.is_empty())
                    .map(|room| self.room_info(room, *member_count_max as usize)),
            ),
            Question::Users {
                users,
                connection_count_max,
            } => Reply::Users(
                users
                    .iter()
                    .map(|user| self.user_info(user, *connection_count_max as usize))
                    .collect(),
            ),
            Question::Connection { id } => Reply::Connection(
                self.connections
                    .find(self.core, *id)
                    .map(|index| Box::new(self.connection_info(index))),
            ),
            Question::Disconnect { id } => {
                let found = self.connections.find(self.core, *id);
                if let Some(index) = found {
                    self.fail(index, CloseReason::Disconnected);
                }
                Reply::Disconnected(found.is_some())
            }
        };
        self.forward(Upstream::Answer { request, reply }, 0);
    }

    /// All that the shard knows of itself; what the engine counts is the engine's to fill in.
    #[must_use]
    pub fn snapshot(&self) -> ShardSnapshot {
        self.figures(self.count_queued())
    }

    /// Counts what is queued anew, if the last count is old: it looks at every connection, and anybody may ask.
    fn refresh_queued(&mut self) {
        if self
            .queued
            .at
            .is_none_or(|at| self.now.since(at) >= QUEUED_AGE_US)
        {
            self.queued = self.count_queued();
        }
    }

    fn count_queued(&self) -> Queued {
        let mut queued = Queued {
            at: Some(self.now),
            ..Queued::default()
        };
        for (_, connection) in self.connections.iter() {
            queued.bytes += u64::from(connection.queued_bytes);
            queued.connections += u64::from(connection.outbox.is_some());
        }
        queued
    }

    fn figures(&self, queued: Queued) -> ShardSnapshot {
        let gauges = ShardGauges {
            queued_bytes: queued.bytes,
            connections_queued: queued.connections,
            sockets_open: u64::from(self.connections.count()),
            connections_open: self.connections_open,
            rooms: self.rooms.count() as u64,
            users: self.user_count(),
            ledger_bytes: self.ledger.used_bytes(),
            ledger_bytes_max: self.options.shard_bytes_max,
            publishers_paused: self.paused.len() as u64,
            drain_phase: self.drain.phase(),
            ..ShardGauges::default()
        };
        ShardSnapshot {
            shard: self.core.0,
            counters: self.counters.clone(),
            gauges,
            ..ShardSnapshot::default()
        }
    }

    /// The first `count_max` rooms by name that begin with `prefix`. Holds no more than that many at a time.
    fn rooms_by_name(&self, prefix: &str, count_max: usize) -> Vec<RoomInfo> {
        let mut first = BTreeMap::new();
        for (_, room) in self.rooms.iter() {
            if room.reach != Reach::Members
                || room.members.is_empty()
                || !room.name.starts_with(prefix)
            {
                continue;
            }
            first.insert(&*room.name, room);
            if first.len() > count_max {
                first.pop_last();
            }
        }
        first
            .into_values()
            .map(|room| self.room_info(room, 0))
            .collect()
    }

    fn room_info(&self, room: &Room, member_count_max: usize) -> RoomInfo {
        RoomInfo {
            room: RoomName::clone(&room.name),
            member_count: u32::try_from(room.members.len()).expect("bounded by the connections"),
            message_count: room.message_count,
            members: room
                .members
                .iter()
                .take(member_count_max)
                .map(|&index| self.connections.id(self.core, index))
                .collect(),
        }
    }

    fn connection_info(&self, index: u32) -> ConnectionInfo {
        let connection = &self.connections[index];
        let now_ms = self.now.ms32();
        let is_ending = matches!(connection.state, State::Closing | State::Dead);
        ConnectionInfo {
            id: self.connections.id(self.core, index),
            peer: connection.peer(),
            room: (connection.room != RoomIndex::NONE)
                .then(|| RoomName::clone(&self.rooms[connection.room].name)),
            user: self
                .users
                .identity(index)
                .map(|identity| UserName::clone(&identity.user)),
            state: connection.state.label(),
            opened_ms_ago: u64::from(elapsed_ms(now_ms, connection.opened_ms)),
            heard_ms_ago: u64::from(elapsed_ms(now_ms, connection.heard_ms)),
            charged_bytes: connection.charged_bytes() + self.users.charged_bytes(index),
            queued_bytes: connection.queued_bytes,
            missed_untold: connection
                .outbox
                .as_ref()
                .map_or(0, |outbox| outbox.missed_untold()),
            closing: is_ending.then_some(connection.reason),
        }
    }
}
