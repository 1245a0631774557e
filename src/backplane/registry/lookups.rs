//! Questions of the admin API on their way: each is a pipeline of commands, answered when the last of them is. The server
//! that has a user's connections also has the time by which they expire.

use std::collections::BTreeMap;

use super::desk::{Asked, Desk, words};
use super::keys::{Instance, parse_reference};
use super::notes::Desired;
use super::scripts::{COUNT, ROLL, SEEN, WHICH, eval};
use crate::backplane::resp::Reply;
use crate::bus::{
    ClusterQuestion, ClusterReply, ConnectionId, NodeSeen, OnlineUser, UserConnection, UserName,
};

/// Questions that wait at most.
const LOOKUP_MAX: usize = 256;
/// Connections of one user that are looked at when its nodes are asked for.
const NODES_OF_CONNECTIONS_MAX: &str = "1000";

#[derive(Debug)]
enum Stage {
    Online {
        users: Vec<UserName>,
        with_nodes: bool,
    },
    /// Part 0: how many; part 1: which.
    User { user: UserName },
    /// Each part is one of these.
    Connections {
        connection_count: u64,
        /// The server's clock.
        unix_ms: u64,
        of: Vec<(Instance, ConnectionId)>,
    },
    /// Part 0: the roll; part 1: users.
    Roll,
    /// Each part is one of these.
    Nodes {
        user_count: u64,
        of: Vec<(Instance, u64)>,
    },
}

#[derive(Debug)]
struct Lookup {
    stage: Stage,
    /// By part.
    replies: Vec<Reply>,
    waiting: usize,
}

/// All questions that wait.
#[derive(Debug, Default)]
pub struct Lookups {
    open: BTreeMap<u64, Lookup>,
}

impl Lookups {
    /// Begins with a question, or answers it at once.
    pub fn ask(
        &mut self,
        request: u64,
        question: ClusterQuestion,
        to: &Desired,
        desk: &mut Desk,
    ) -> Option<ClusterReply> {
        if self.open.len() >= LOOKUP_MAX {
            let reason = "too many questions wait for Redis".to_owned();
            return Some(ClusterReply::Away(reason));
        }
        let mut commands = Vec::new();
        let stage = match question {
            ClusterQuestion::Online { users, .. } if users.is_empty() => {
                return Some(ClusterReply::Online(Vec::new()));
            }
            ClusterQuestion::Online { users, with_nodes } => {
                for user in &users {
                    let key = to.keys.user(user);
                    let command = if with_nodes {
                        which(&key, NODES_OF_CONNECTIONS_MAX)
                    } else {
                        count(&key)
                    };
                    commands.push((key, command));
                }
                Stage::Online { users, with_nodes }
            }
            ClusterQuestion::User {
                user,
                connection_count_max,
            } => {
                let key = to.keys.user(&user);
                let count_max = connection_count_max.to_string();
                commands.push((key.clone(), count(&key)));
                commands.push((key.clone(), which(&key, &count_max)));
                Stage::User { user }
            }
            ClusterQuestion::Nodes => {
                let nodes = to.keys.nodes();
                let roll = eval(ROLL, std::slice::from_ref(&nodes), &[]);
                let windows = to.windows();
                let window_ms = to.window_ms().to_string();
                let seen = eval(SEEN, &windows, &[window_ms.as_bytes()]);
                commands.push((nodes, roll));
                commands.push((windows[0].clone(), seen));
                Stage::Roll
            }
        };
        self.begin(request, stage, commands, desk);
        None
    }

    fn begin(
        &mut self,
        request: u64,
        stage: Stage,
        commands: Vec<(String, Vec<Vec<u8>>)>,
        desk: &mut Desk,
    ) {
        let lookup = Lookup {
            stage,
            replies: vec![Reply::Nil; commands.len()],
            waiting: commands.len(),
        };
        for (part, (key, command)) in commands.into_iter().enumerate() {
            desk.ask(Asked::Lookup { request, part }, &key, command);
        }
        self.open.insert(request, lookup);
    }

    /// One part has been answered, or cannot be, and why. The whole answer, when it was the last.
    pub fn answered(
        &mut self,
        request: u64,
        part: usize,
        reply: Result<Reply, String>,
        to: &Desired,
        desk: &mut Desk,
    ) -> Option<ClusterReply> {
        let lookup = self.open.get_mut(&request)?;
        match reply {
            Ok(Reply::Error(error)) => {
                self.open.remove(&request);
                let reason = format!("Redis refuses the question: {error}");
                return Some(ClusterReply::Away(reason));
            }
            Ok(reply) => lookup.replies[part] = reply,
            Err(reason) => {
                self.open.remove(&request);
                return Some(ClusterReply::Away(reason));
            }
        }
        lookup.waiting -= 1;
        if lookup.waiting > 0 {
            return None;
        }
        let Lookup { stage, replies, .. } = self.open.remove(&request)?;
        match stage {
            Stage::Online { users, with_nodes } => {
                let users = users.into_iter().zip(&replies);
                let online = users.map(|(user, reply)| online(user, with_nodes, reply));
                Some(ClusterReply::Online(online.collect()))
            }
            Stage::User { user } => {
                let connection_count = number(&replies[0]);
                let (unix_ms, of) = found(&replies[1]);
                if of.is_empty() {
                    return Some(ClusterReply::User {
                        connection_count: 0,
                        connections: Vec::new(),
                    });
                }
                let command = |(instance, id): &(Instance, ConnectionId)| {
                    let key = to.keys.connection(instance, *id, Some(&user));
                    let command = words(&["HMGET", &key, "room", "since", "active"]);
                    (key, command)
                };
                let commands = of.iter().map(command).collect();
                let stage = Stage::Connections {
                    connection_count,
                    unix_ms,
                    of,
                };
                self.begin(request, stage, commands, desk);
                None
            }
            Stage::Connections {
                connection_count,
                unix_ms,
                of,
            } => {
                let connections = of.into_iter().zip(&replies);
                let connections = connections
                    .filter_map(|((instance, id), reply)| connection(&instance, id, reply, unix_ms))
                    .collect();
                Some(ClusterReply::User {
                    connection_count,
                    connections,
                })
            }
            Stage::Roll => {
                let user_count = number(&replies[1]);
                let of: Vec<_> = match Roll::read(&replies[0]) {
                    Some(roll) => roll.ages().collect(),
                    None => Vec::new(),
                };
                if of.is_empty() {
                    let nodes = Vec::new();
                    return Some(ClusterReply::Nodes { nodes, user_count });
                }
                let command = |(instance, _): &(Instance, u64)| {
                    let key = to.keys.node(instance);
                    let command = words(&["HGET", &key, "state"]);
                    (key, command)
                };
                let commands = of.iter().map(command).collect();
                self.begin(request, Stage::Nodes { user_count, of }, commands, desk);
                None
            }
            Stage::Nodes { user_count, of } => {
                let nodes = of.into_iter().zip(&replies);
                let nodes = nodes.map(|((instance, age_ms), reply)| NodeSeen {
                    node: instance.node().to_owned(),
                    incarnation: instance.incarnation(),
                    age_ms,
                    state: text(reply).map(str::to_owned),
                });
                let mut nodes: Vec<_> = nodes.collect();
                nodes.sort_by(|a, b| (&a.node, a.incarnation).cmp(&(&b.node, b.incarnation)));
                Some(ClusterReply::Nodes { nodes, user_count })
            }
        }
    }
}

fn count(key: &str) -> Vec<Vec<u8>> {
    eval(COUNT, &[key.to_owned()], &[])
}

fn which(key: &str, count_max: &str) -> Vec<Vec<u8>> {
    eval(WHICH, &[key.to_owned()], &[count_max.as_bytes()])
}

/// What [`WHICH`] answers: its server's clock, and connections.
fn found(reply: &Reply) -> (u64, Vec<(Instance, ConnectionId)>) {
    let mut all = texts(reply);
    let unix_ms = all.next().and_then(|text| text.parse().ok());
    (
        unix_ms.unwrap_or_default(),
        all.filter_map(parse_reference).collect(),
    )
}

fn online(user: UserName, with_nodes: bool, reply: &Reply) -> OnlineUser {
    if !with_nodes {
        let connection_count = number(reply);
        let nodes = Vec::new();
        return OnlineUser {
            user,
            connection_count,
            nodes,
        };
    }
    let (_, of) = found(reply);
    let mut nodes: Vec<String> = of
        .iter()
        .map(|(instance, _)| instance.node().to_owned())
        .collect();
    nodes.sort_unstable();
    nodes.dedup();
    OnlineUser {
        user,
        connection_count: of.len() as u64,
        nodes,
    }
}

/// `None` when the hash has gone meanwhile.
fn connection(
    instance: &Instance,
    id: ConnectionId,
    reply: &Reply,
    unix_ms: u64,
) -> Option<UserConnection> {
    let Reply::List(fields) = reply else {
        return None;
    };
    let [room, since, active] = fields.as_slice() else {
        return None;
    };
    let ago = |field| {
        let at = text(field)?.parse::<u64>().ok()?;
        Some(unix_ms.saturating_sub(at))
    };
    Some(UserConnection {
        id,
        node: instance.node().to_owned(),
        room: text(room)?.to_owned(),
        since_ms_ago: ago(since)?,
        heard_ms_ago: ago(active)?,
    })
}

/// The roll, as [`ROLL`] answers it.
#[derive(Debug)]
pub struct Roll {
    /// Redis' clock.
    unix_ms: u64,
    /// When each was heard, on the same clock.
    heard: Vec<(Instance, u64)>,
}

impl Roll {
    /// `None` when it is none. What others have written into the set is left out.
    pub fn read(reply: &Reply) -> Option<Self> {
        let mut all = texts(reply);
        let unix_ms = all.next()?.parse().ok()?;
        let mut heard = Vec::new();
        while let (Some(name), Some(score)) = (all.next(), all.next()) {
            let instance = Instance::parse(name);
            heard.extend(instance.zip(score.parse::<u64>().ok()));
        }
        Some(Self { unix_ms, heard })
    }

    /// How long ago each was heard, milliseconds.
    pub fn ages(self) -> impl Iterator<Item = (Instance, u64)> {
        let unix_ms = self.unix_ms;
        let heard = self.heard.into_iter();
        heard.map(move |(instance, heard)| (instance, unix_ms.saturating_sub(heard)))
    }
}

fn texts(reply: &Reply) -> impl Iterator<Item = &str> {
    let list = match reply {
        Reply::List(list) => list.as_slice(),
        _ => &[],
    };
    list.iter().filter_map(text)
}

fn text(reply: &Reply) -> Option<&str> {
    match reply {
        Reply::Text(text) => std::str::from_utf8(text).ok(),
        _ => None,
    }
}

fn number(reply: &Reply) -> u64 {
    match reply {
        Reply::Number(number) => u64::try_from(*number).unwrap_or_default(),
        _ => 0,
    }
}
