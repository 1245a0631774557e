//! Several Redis servers by the script: by themselves, or a cluster whose slots move and whose masters die. Each knows
//! who serves what as of some time ago.

use std::collections::{BTreeSet, HashSet};

use throng::backplane::remote::placement::{SLOT_COUNT, slot_of};
use throng::backplane::remote::{Address, Endpoint};
use throng::time::Tick;

use super::log::{Log, messages_of};
use super::nodes::Servers;
use super::pipes::{Pipes, bulk};
use super::redis_streams::{DIGEST, Kept};

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
    pub pipes: Pipes,
    /// Who serves each slot.
    truth: Vec<u8>,
    pub log: Log,
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
            pipes: Pipes::default(),
            truth,
            log: Log::default(),
            moved_count: 0,
        }
    }

    pub fn is_cluster(&self) -> bool {
        !self.truth.is_empty()
    }

    // --- faults -----------------------------------------------------------------------------------------------------

    pub fn go_down(&mut self, server: usize) {
        self.servers[server].is_down = true;
        self.servers[server].kept.restart();
        self.servers[server].is_stopped = false;
        self.pipes.end_all(server);
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
        for (id, pipe) in self.pipes.live() {
            if pipe.server == server {
                let sharded = pipe.channels.iter().filter(|channel| channel[0] == b's');
                let foreign = sharded.filter(|channel| {
                    view.get(usize::from(slot_of(&channel[1..])))
                        .is_some_and(|owner| usize::from(*owner) != server)
                });
                gone.extend(foreign.map(|channel| (id, channel.clone())));
            }
        }
        for (id, channel) in gone {
            self.pipes.at(id).channels.remove(&channel);
            self.pipes.push(id, &[b"sunsubscribe", &channel[1..]]);
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
        let pipes = self.pipes.live().map(|(_, pipe)| pipe);
        let follow = pipes.filter(|pipe| pipe.channels.iter().any(|known| &known[1..] == channel));
        follow.map(|pipe| pipe.server).collect()
    }

    /// The channels of a room that anybody follows.
    pub fn channels_of(&self, room: &str) -> BTreeSet<Vec<u8>> {
        let end = format!(":room:{room}").into_bytes();
        let all = self.pipes.by_id.values().flat_map(|pipe| &pipe.channels);
        all.filter(|channel| channel.ends_with(&end))
            .map(|channel| channel[1..].to_vec())
            .collect()
    }

    // --- commands ---------------------------------------------------------------------------------------------------

    fn kept_of(&mut self, id: u64) -> &mut Kept {
        &mut self.servers[self.pipes.by_id[&id].server].kept
    }

    fn append(&mut self, id: u64, arguments: &[Vec<u8>]) {
        if self.is_elsewhere(id, &arguments[2..4]) {
            return;
        }
        let Some(appended) = self.kept_of(id).append(arguments) else {
            self.pipes.say(id, b"-NOSCRIPT No matching script.\r\n");
            return;
        };
        let (push, answer) = appended.answer();
        if let Some((channel, payload)) = push {
            self.publish(id, b'k', &channel, &arguments[4], &payload);
        }
        self.pipes.say(id, answer.as_bytes());
    }

    /// Answers MOVED if another server has the slot, as far as this one knows.
    fn is_elsewhere(&mut self, id: u64, channels: &[Vec<u8>]) -> bool {
        let server = self.pipes.by_id[&id].server;
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
            self.pipes
                .say(id, format!("-MOVED {slot} s{owner}:6379\r\n").as_bytes());
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
            self.pipes.at(id).subscribe(known);
            let word: &[u8] = if kind == b's' {
                b"ssubscribe"
            } else {
                b"subscribe"
            };
            self.pipes.push(id, &[word, channel]);
        }
    }

    fn unsubscribe(&mut self, id: u64, kind: u8, channels: &[Vec<u8>]) {
        if kind == b's' && self.is_elsewhere(id, channels) {
            return;
        }
        for channel in channels {
            let known = [&[kind], channel.as_slice()].concat();
            self.pipes.at(id).channels.remove(&known);
            let word: &[u8] = if kind == b's' {
                b"sunsubscribe"
            } else {
                b"unsubscribe"
            };
            self.pipes.push(id, &[word, channel]);
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
        let server = self.pipes.by_id[&id].server;
        let home = self.home(channel);
        let astray = kind != b'c' && home.is_some_and(|home| home != server);
        let room = std::str::from_utf8(channel).unwrap().split_once(":room:");
        self.log.record(room.map(|(_, room)| room), parcel, astray);
        // In a cluster what is published by PUBLISH reaches the subscribers of every server.
        let everywhere = kind != b's' && self.is_cluster();
        let known = [if kind == b's' { b"s" } else { b"c" }, channel].concat();
        let pipes = self.pipes.live();
        let followers = pipes
            .filter(|(_, pipe)| pipe.channels.contains(&known))
            .filter(|(_, pipe)| everywhere || pipe.server == server);
        let followers: Vec<u64> = followers.map(|(id, _)| id).collect();
        let word: &[u8] = if kind == b's' {
            b"smessage"
        } else {
            b"message"
        };
        for follower in &followers {
            self.pipes.push(*follower, &[word, channel, payload]);
        }
        followers.len()
    }

    fn slots(&mut self, id: u64) {
        let view = &self.servers[self.pipes.by_id[&id].server].view;
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
        self.pipes.say(id, out.as_bytes());
    }
}

impl Servers for Cluster {
    fn pipes(&mut self) -> &mut Pipes {
        &mut self.pipes
    }

    fn log(&self) -> &Log {
        &self.log
    }

    fn connect(&mut self, address: &Address) -> Option<u64> {
        let Endpoint::Tcp { host, .. } = &address.endpoint else {
            panic!("{address:?}")
        };
        let server: usize = host[1..].parse().unwrap();
        (!self.servers[server].is_down).then(|| self.pipes.open(server))
    }

    fn set_time(&mut self, now: Tick) {
        for server in &mut self.servers {
            server.kept.now = now;
        }
    }

    fn hears(&self, server: usize) -> bool {
        !self.servers[server].is_stopped && !self.servers[server].is_down
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
                let mut hello = b"%4\r\n".to_vec();
                for field in fields {
                    bulk(&mut hello, field.as_bytes());
                }
                self.pipes.say(id, &hello);
            }
            b"SUBSCRIBE" => self.subscribe(id, b'c', arguments),
            b"SSUBSCRIBE" => self.subscribe(id, b's', arguments),
            b"UNSUBSCRIBE" => self.unsubscribe(id, b'c', arguments),
            b"SUNSUBSCRIBE" => self.unsubscribe(id, b's', arguments),
            b"PUBLISH" => {
                let count = self.publish(id, b'c', &arguments[0], &arguments[1], &arguments[1]);
                self.pipes.say(id, format!(":{count}\r\n").as_bytes());
            }
            b"SPUBLISH" => {
                if !self.is_elsewhere(id, &arguments[..1]) {
                    let count = self.publish(id, b's', &arguments[0], &arguments[1], &arguments[1]);
                    self.pipes.say(id, format!(":{count}\r\n").as_bytes());
                }
            }
            b"CLUSTER" => self.slots(id),
            b"EVALSHA" => self.append(id, arguments),
            b"SCRIPT" => {
                self.kept_of(id).load(&arguments[1]);
                self.pipes.say_bulk(id, DIGEST);
            }
            b"INFO" => {
                let info = self.kept_of(id).info();
                self.pipes.say_bulk(id, info.as_bytes());
            }
            b"HMGET" | b"XRANGE" | b"GET" | b"SET" => {
                if !self.is_elsewhere(id, &arguments[..1]) {
                    let answer = self.kept_of(id).answer(words);
                    self.pipes.say(id, &answer);
                }
            }
            other => panic!("{:?}", String::from_utf8_lossy(other)),
        }
    }
}

fn slot_index(key: &[u8]) -> usize {
    usize::from(slot_of(key))
}
