//! Several Redis servers by the script: by themselves, or a cluster whose slots move and whose masters die. Each knows
//! who serves what as of some time ago.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use throng::backplane::remote::placement::{SLOT_COUNT, slot_of};
use throng::backplane::remote::wire::{self, Parcel};
use throng::time::Tick;

use super::redis_server::{is_probe, take_command};
use super::redis_streams::{DIGEST, Kept, bulk};

/// One connection, both directions.
#[derive(Default)]
pub struct Pipe {
    pub server: usize,
    /// From the node.
    pub up: VecDeque<u8>,
    /// To the node.
    pub down: VecDeque<u8>,
    channels: BTreeSet<Vec<u8>>,
    /// The server has closed it: the node reads what is left, then its end.
    pub ended: bool,
}

/// A message as the servers ordered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    pub room: String,
    pub id: u64,
    /// Which of its node's sequences it is in.
    pub epoch: u32,
    /// Only a server has it that had lost the slot without knowing: nobody follows the room there for long.
    pub astray: bool,
}

#[derive(Default, Clone)]
struct Server {
    is_down: bool,
    is_stopped: bool,
    /// Who serves each slot, as far as it knows. Empty: the servers are by themselves.
    view: Vec<u8>,
    /// What is kept in streams mode.
    kept: Kept,
}

pub struct Cluster {
    servers: Vec<Server>,
    pub pipes: BTreeMap<u64, Pipe>,
    next: u64,
    /// Who serves each slot.
    truth: Vec<u8>,
    /// Every message, in the order in which it was first published.
    pub log: Vec<Logged>,
    seen: HashSet<(String, u64, u32, u64)>,
    /// Messages that were published again, because their acknowledgement was lost.
    pub again: HashSet<u64>,
    /// Answers that said that a slot is elsewhere.
    pub moved_count: u64,
}

impl Cluster {
    /// `count` servers; the first three of a cluster are masters, the others wait to take a dead one's place.
    pub fn new(count: usize, is_cluster: bool) -> Self {
        let slots =
            (0..usize::from(SLOT_COUNT)).map(|slot| (slot * 3 / usize::from(SLOT_COUNT)) as u8);
        let truth: Vec<u8> = if is_cluster {
            slots.collect()
        } else {
            Vec::new()
        };
        let server = |index| Server {
            view: truth.clone(),
            kept: Kept::of(index),
            ..Server::default()
        };
        Self {
            servers: (0..count).map(server).collect(),
            pipes: BTreeMap::new(),
            next: 0,
            truth,
            log: Vec::new(),
            seen: HashSet::new(),
            again: HashSet::new(),
            moved_count: 0,
        }
    }

    pub fn is_cluster(&self) -> bool {
        !self.truth.is_empty()
    }

    pub fn connect(&mut self, server: usize) -> Option<u64> {
        if self.servers[server].is_down {
            return None;
        }
        self.next += 1;
        let pipe = Pipe {
            server,
            ..Pipe::default()
        };
        self.pipes.insert(self.next, pipe);
        Some(self.next)
    }

    // --- faults -----------------------------------------------------------------------------------------------------

    pub fn end_pipe(&mut self, id: u64) {
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.ended = true;
            pipe.up.clear();
            pipe.channels.clear();
        }
    }

    pub fn go_down(&mut self, server: usize) {
        self.servers[server].is_down = true;
        self.servers[server].kept.restart();
        self.servers[server].is_stopped = false;
        for id in self.pipes.keys().copied().collect::<Vec<_>>() {
            if self.pipes[&id].server == server {
                self.end_pipe(id);
            }
        }
    }

    pub fn come_up(&mut self, server: usize) {
        self.servers[server].is_down = false;
    }

    pub fn stop(&mut self, server: usize, is_stopped: bool) {
        self.servers[server].is_stopped = is_stopped;
    }

    /// The slots of servers that are down go to one that is up and has none, or to any. Of what was kept in them it may lack
    /// the last `lag` appends of each.
    pub fn fail_over(&mut self, lag: usize) {
        let up = |server: &usize| !self.servers[*server].is_down;
        let all = 0..self.servers.len();
        let idle = |server: &usize| !self.truth.contains(&(*server as u8));
        let heir = all.clone().filter(up).find(idle).or(all.clone().find(up));
        let Some(heir) = heir.filter(|_| self.is_cluster()) else {
            return;
        };
        let mut streams = Vec::new();
        for (index, server) in self.servers.iter().enumerate() {
            if server.is_down {
                let mut replica = server.kept.clone();
                replica.fall_behind(lag);
                let truth = &self.truth;
                streams.extend(replica.take(|key| usize::from(truth[slot_index(key)]) == index));
            }
        }
        for slot in 0..self.truth.len() {
            if self.servers[usize::from(self.truth[slot])].is_down {
                self.truth[slot] = heir as u8;
            }
        }
        self.hear_of_all(heir);
        let kept = &mut self.servers[heir].kept;
        kept.take(|key| streams.iter().any(|(other, _)| other == key));
        kept.put(streams);
    }

    /// The slot of a channel goes to another server, which is up.
    pub fn move_slot(&mut self, slot: u16, target: usize) {
        let source = usize::from(self.truth[usize::from(slot)]);
        if source == target || self.servers[target].is_down || self.servers[source].is_down {
            return;
        }
        self.truth[usize::from(slot)] = target as u8;
        self.servers[target].view[usize::from(slot)] = target as u8;
        self.servers[source].view[usize::from(slot)] = target as u8;
        let is_moved = |key: &[u8]| slot_of(key) == slot;
        let streams = self.servers[source].kept.take(is_moved);
        self.servers[target].kept.take(is_moved);
        self.servers[target].kept.put(streams);
        self.drop_foreign(source);
    }

    /// A server hears who serves what.
    pub fn hear_of_all(&mut self, server: usize) {
        self.servers[server].view = self.truth.clone();
        let truth = &self.truth;
        let is_foreign = |key: &[u8]| usize::from(truth[slot_index(key)]) != server;
        if !truth.is_empty() {
            self.servers[server].kept.take(is_foreign);
        }
        self.drop_foreign(server);
    }

    /// A server ends the subscriptions in slots that it knows not to be its own any more.
    fn drop_foreign(&mut self, server: usize) {
        let view = &self.servers[server].view;
        let mut gone = Vec::new();
        for (id, pipe) in &self.pipes {
            if pipe.server == server && !pipe.ended {
                let sharded = pipe.channels.iter().filter(|channel| channel[0] == b's');
                let foreign = sharded.filter(|channel| {
                    view.get(usize::from(slot_of(&channel[1..])))
                        .is_some_and(|owner| usize::from(*owner) != server)
                });
                gone.extend(foreign.map(|channel| (*id, channel.clone())));
            }
        }
        for (id, channel) in gone {
            self.pipes.get_mut(&id).unwrap().channels.remove(&channel);
            self.push(id, &[b"sunsubscribe", &channel[1..]]);
        }
    }

    /// Everything is as it should be from now on.
    pub fn heal(&mut self) {
        self.fail_over(0);
        for server in 0..self.servers.len() {
            self.come_up(server);
            self.stop(server, false);
            self.hear_of_all(server);
        }
    }

    /// What time it is.
    pub fn set_now(&mut self, now: Tick) {
        for server in &mut self.servers {
            server.kept.now = now;
        }
    }

    /// The messages that are kept.
    pub fn kept(&self) -> HashSet<u64> {
        let parcels = self.servers.iter().flat_map(|server| server.kept.parcels());
        parcels.flat_map(|parcel| messages_of("", parcel)).collect()
    }

    pub fn server_count(&self) -> usize {
        self.servers.len()
    }

    /// Where a channel is to be followed; by themselves, nobody knows here.
    pub fn home(&self, channel: &[u8]) -> Option<usize> {
        let slot = usize::from(slot_of(channel));
        self.truth.get(slot).map(|server| usize::from(*server))
    }

    /// The servers at which a channel is followed, once for each connection.
    pub fn followers(&self, channel: &[u8]) -> Vec<usize> {
        let pipes = self.pipes.values().filter(|pipe| !pipe.ended);
        let follow = pipes.filter(|pipe| pipe.channels.iter().any(|known| &known[1..] == channel));
        follow.map(|pipe| pipe.server).collect()
    }

    /// The channels of a room that anybody follows.
    pub fn channels_of(&self, room: &str) -> BTreeSet<Vec<u8>> {
        let end = format!(":room:{room}").into_bytes();
        let all = self.pipes.values().flat_map(|pipe| &pipe.channels);
        all.filter(|channel| channel.ends_with(&end))
            .map(|channel| channel[1..].to_vec())
            .collect()
    }

    // --- commands ---------------------------------------------------------------------------------------------------

    /// Carries out up to `count` commands of one connection.
    pub fn work(&mut self, id: u64, count: usize) {
        for _ in 0..count {
            let Some(pipe) = self.pipes.get_mut(&id) else {
                return;
            };
            let server = &self.servers[pipe.server];
            if pipe.ended || server.is_stopped || server.is_down {
                return;
            }
            let Some(words) = take_command(&mut pipe.up) else {
                return;
            };
            self.command(id, &words);
        }
    }

    fn command(&mut self, id: u64, words: &[Vec<u8>]) {
        let arguments = &words[1..];
        match words[0].as_slice() {
            b"HELLO" => {
                let mode = if self.is_cluster() {
                    "cluster"
                } else {
                    "standalone"
                };
                let fields = [
                    "server", "redis", "version", "7.2.0", "mode", mode, "role", "master",
                ];
                let mut hello = String::from("%4\r\n");
                for field in fields {
                    hello.push_str(&format!("${}\r\n{field}\r\n", field.len()));
                }
                self.say(id, hello.as_bytes());
            }
            b"SUBSCRIBE" => self.subscribe(id, b'c', arguments),
            b"SSUBSCRIBE" => self.subscribe(id, b's', arguments),
            b"UNSUBSCRIBE" => self.unsubscribe(id, b'c', arguments),
            b"SUNSUBSCRIBE" => self.unsubscribe(id, b's', arguments),
            b"PUBLISH" => {
                let count = self.publish(id, b'c', &arguments[0], &arguments[1], &arguments[1]);
                self.say(id, format!(":{count}\r\n").as_bytes());
            }
            b"SPUBLISH" => {
                if !self.is_elsewhere(id, &arguments[..1]) {
                    let count = self.publish(id, b's', &arguments[0], &arguments[1], &arguments[1]);
                    self.say(id, format!(":{count}\r\n").as_bytes());
                }
            }
            b"CLUSTER" => self.slots(id),
            b"EVALSHA" => self.append(id, arguments),
            b"SCRIPT" => {
                self.kept_of(id).load(&arguments[1]);
                self.say_text(id, DIGEST);
            }
            b"INFO" => {
                let info = self.kept_of(id).info();
                self.say_text(id, info.as_bytes());
            }
            b"HMGET" | b"XRANGE" | b"GET" | b"SET" => {
                if !self.is_elsewhere(id, &arguments[..1]) {
                    let answer = self.kept_of(id).answer(words);
                    self.say(id, &answer);
                }
            }
            other => panic!("{:?}", String::from_utf8_lossy(other)),
        }
    }

    fn kept_of(&mut self, id: u64) -> &mut Kept {
        &mut self.servers[self.pipes[&id].server].kept
    }

    fn append(&mut self, id: u64, arguments: &[Vec<u8>]) {
        if self.is_elsewhere(id, &arguments[2..4]) {
            return;
        }
        let Some(appended) = self.kept_of(id).append(arguments) else {
            self.say(id, b"-NOSCRIPT No matching script.\r\n");
            return;
        };
        let (push, answer) = appended.answer();
        if let Some((channel, payload)) = push {
            self.publish(id, b'k', &channel, &arguments[4], &payload);
        }
        self.say(id, answer.as_bytes());
    }

    /// Answers MOVED if another server has the slot, as far as this one knows.
    fn is_elsewhere(&mut self, id: u64, channels: &[Vec<u8>]) -> bool {
        let server = self.pipes[&id].server;
        let Some(first) = channels.first().filter(|_| self.is_cluster()) else {
            return false;
        };
        let slot = slot_of(first);
        assert!(
            channels.iter().all(|channel| slot_of(channel) == slot),
            "CROSSSLOT"
        );
        let owner = usize::from(self.servers[server].view[usize::from(slot)]);
        if owner != server {
            self.moved_count += 1;
            self.say(id, format!("-MOVED {slot} s{owner}:6379\r\n").as_bytes());
        }
        owner != server
    }

    fn subscribe(&mut self, id: u64, kind: u8, channels: &[Vec<u8>]) {
        assert!(channels.len() <= 512, "{} channels", channels.len());
        if kind == b's' && self.is_elsewhere(id, channels) {
            return;
        }
        for channel in channels {
            let known = [&[kind], channel.as_slice()].concat();
            let pipe = self.pipes.get_mut(&id).unwrap();
            let is_new = pipe.channels.insert(known);
            assert!(is_new || is_probe(channel), "subscribed twice");
            let word: &[u8] = if kind == b's' {
                b"ssubscribe"
            } else {
                b"subscribe"
            };
            self.push(id, &[word, channel]);
        }
    }

    fn unsubscribe(&mut self, id: u64, kind: u8, channels: &[Vec<u8>]) {
        if kind == b's' && self.is_elsewhere(id, channels) {
            return;
        }
        for channel in channels {
            let known = [&[kind], channel.as_slice()].concat();
            self.pipes.get_mut(&id).unwrap().channels.remove(&known);
            let word: &[u8] = if kind == b's' {
                b"sunsubscribe"
            } else {
                b"unsubscribe"
            };
            self.push(id, &[word, channel]);
        }
    }

    /// Publishes `payload`, which has `parcel` in it: to all followers (`c`), to those of a sharded channel (`s`), or to
    /// all what was appended to a stream (`k`). How many there are.
    fn publish(
        &mut self,
        id: u64,
        kind: u8,
        channel: &[u8],
        parcel: &[u8],
        payload: &[u8],
    ) -> usize {
        if let Parcel::Messages { stamp, .. } = wire::decode(parcel).unwrap() {
            let channel = std::str::from_utf8(channel).unwrap();
            let (_, room) = channel.split_once(":room:").unwrap();
            let ids = messages_of(room, parcel);
            let room = room.to_owned();
            let key = (room.clone(), stamp.node, stamp.epoch, stamp.sequence);
            let home = self.home(channel.as_bytes());
            let astray = kind != b'c' && home.is_some_and(|home| home != self.pipes[&id].server);
            if self.seen.insert(key) {
                self.log.extend(ids.into_iter().map(|id| Logged {
                    room: room.clone(),
                    id,
                    epoch: stamp.epoch,
                    astray,
                }));
            } else {
                let log = self.log.iter_mut();
                for logged in log.filter(|logged| ids.contains(&logged.id)) {
                    logged.astray &= astray;
                }
                self.again.extend(ids);
            }
        }
        // In a cluster what is published by PUBLISH reaches the subscribers of every server.
        let server = self.pipes[&id].server;
        let everywhere = kind != b's' && self.is_cluster();
        let known = [if kind == b's' { b"s" } else { b"c" }, channel].concat();
        let pipes = self
            .pipes
            .iter()
            .filter(|(_, pipe)| !pipe.ended && pipe.channels.contains(&known));
        let pipes = pipes.filter(|(_, pipe)| everywhere || pipe.server == server);
        let followers: Vec<u64> = pipes.map(|(id, _)| *id).collect();
        let word: &[u8] = if kind == b's' {
            b"smessage"
        } else {
            b"message"
        };
        for follower in &followers {
            self.push(*follower, &[word, channel, payload]);
        }
        followers.len()
    }

    fn slots(&mut self, id: u64) {
        let view = &self.servers[self.pipes[&id].server].view;
        let mut ranges: Vec<(usize, usize, u8)> = Vec::new();
        for (slot, owner) in view.iter().enumerate() {
            match ranges.last_mut() {
                Some((_, last, of)) if of == owner => *last = slot,
                _ => ranges.push((slot, slot, *owner)),
            }
        }
        let mut out = format!("*{}\r\n", ranges.len());
        for (first, last, owner) in ranges {
            out.push_str(&format!(
                "*3\r\n:{first}\r\n:{last}\r\n*2\r\n$2\r\ns{owner}\r\n:6379\r\n"
            ));
        }
        self.say(id, out.as_bytes());
    }

    fn push(&mut self, id: u64, words: &[&[u8]]) {
        let mut out = format!(">{}\r\n", words.len().max(3)).into_bytes();
        for word in words {
            out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            out.extend_from_slice(word);
            out.extend_from_slice(b"\r\n");
        }
        if words.len() == 2 {
            out.extend_from_slice(b":1\r\n");
        }
        self.say(id, &out);
    }

    fn say_text(&mut self, id: u64, text: &[u8]) {
        let mut out = Vec::new();
        bulk(&mut out, text);
        self.say(id, &out);
    }

    fn say(&mut self, id: u64, bytes: &[u8]) {
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.down.extend(bytes);
        }
    }
}

fn slot_index(key: &[u8]) -> usize {
    usize::from(slot_of(key))
}

/// The messages of a parcel.
fn messages_of(room: &str, parcel: &[u8]) -> Vec<u64> {
    match wire::decode(parcel).unwrap() {
        Parcel::Messages { stamp, count, body } => {
            let batch = wire::decode_batch(room, body, count, true, stamp.sent).unwrap();
            super::redis::ids(&batch).collect()
        }
        Parcel::Probe(_) => Vec::new(),
    }
}
