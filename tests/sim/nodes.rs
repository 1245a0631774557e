//! Backplanes around servers by the script: what their shards want and hear, and the sockets in between. How the servers
//! fail, and what must hold beyond what is checked here, is a world's own ([`super::redis`], [`super::fleet`]).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use throng::backplane::remote::{Address, Degraded, LinkId, LinkOrder};
use throng::backplane::{Action, Backplane, LaneRoom, Ports, turn};
use throng::bus::{Batch, BatchMessage, CoreId, Downstream, MessageKind, RoomName, Upstream};
use throng::protocol::{OpCode, encode_header};
use throng::time::Tick;

use super::lane::Lane;
use super::log::{Log, ids};
use super::pipes::{Pipes, take_command};
use super::random::Random;

/// Virtual time in which everything comes to rest, microseconds.
pub const HEAL_US: u64 = 60_000_000;

/// The servers of a world.
pub trait Servers {
    fn pipes(&mut self) -> &mut Pipes;

    fn log(&self) -> &Log;

    /// A connection there; `None`: it is refused.
    fn connect(&mut self, address: &Address) -> Option<u64>;

    /// Whether a server reads what it is sent.
    fn hears(&self, server: usize) -> bool;

    /// Carries out one command.
    fn command(&mut self, id: u64, words: &[Vec<u8>]);

    /// It is `now`.
    fn set_time(&mut self, now: Tick);

    /// Carries out up to `count` commands of one connection.
    fn work(&mut self, id: u64, count: usize) {
        for _ in 0..count {
            let pipe = self.pipes().by_id.get(&id);
            let open = pipe.filter(|pipe| !pipe.ended && !pipe.half_open);
            let Some(server) = open.map(|pipe| pipe.server) else {
                return;
            };
            if !self.hears(server) {
                return;
            }
            let Some(words) = take_command(&mut self.pipes().at(id).up) else {
                return;
            };
            self.command(id, &words);
        }
    }
}

/// One stay in a room.
#[derive(Default)]
pub struct Stay {
    pub seen: Vec<u64>,
    /// Where the servers' log stood when it began.
    pub log_start: usize,
    /// The next message's number then.
    pub id_start: u64,
    pub missed_told: u64,
    pub unknown_told: bool,
}

#[derive(Default)]
pub struct Room {
    unanswered: u32,
    wanted: bool,
    pub stay: Option<Stay>,
}

impl Room {
    /// An interest in it is answered. Whether it was the last that waits, and is wanted still.
    fn answered(&mut self) -> bool {
        assert!(self.unanswered > 0, "answered twice");
        self.unanswered -= 1;
        self.unanswered == 0 && self.wanted
    }
}

pub struct Node {
    pub backplane: Backplane,
    pub shards: Vec<BTreeMap<&'static str, Room>>,
    pub up: Vec<VecDeque<Upstream>>,
    pub down: Vec<Lane<Downstream>>,
    pipes: HashMap<LinkId, u64>,
    first: usize,
}

impl Node {
    pub fn new(backplane: Backplane, shard_count: usize) -> Self {
        Self {
            backplane,
            shards: (0..shard_count).map(|_| BTreeMap::new()).collect(),
            up: (0..shard_count).map(|_| VecDeque::new()).collect(),
            down: (0..shard_count).map(|_| Lane::new(6, 400)).collect(),
            pipes: HashMap::new(),
            first: 0,
        }
    }

    /// Whether it has members there.
    pub fn follows(&self, room: &str) -> bool {
        let mut rooms = self.shards.iter().filter_map(|rooms| rooms.get(room));
        rooms.any(|room| room.wanted)
    }
}

/// A node's lanes, both ends.
pub struct Wires<'a> {
    pub up: &'a mut [VecDeque<Upstream>],
    pub down: &'a mut [Lane<Downstream>],
}

impl LaneRoom for Wires<'_> {
    fn fits(&self, shard: CoreId, bytes: u32) -> bool {
        self.down[usize::from(shard.0)].fits(bytes)
    }
}

impl Ports for Wires<'_> {
    fn take(&mut self, from: CoreId) -> Option<Upstream> {
        self.up[usize::from(from.0)].pop_front()
    }

    fn perform(&mut self, action: Action) {
        let (to, envelope, bytes) = match action {
            Action::Send {
                to,
                envelope,
                bytes,
            } => {
                assert!(self.fits(to, bytes), "the lane was looked at");
                (to, envelope, bytes)
            }
            Action::SendControl { to, envelope } => (to, envelope, 0),
            other => panic!("{other:?}"),
        };
        self.down[usize::from(to.0)].push(envelope, bytes);
    }
}

/// The nodes of a world, and what came of what they published.
pub struct Nodes<S> {
    pub servers: S,
    pub random: Random,
    pub now: Tick,
    pub all: Vec<Node>,
    degraded: Degraded,
    next_id: u64,
    /// By message: its node and its room.
    pub published: HashMap<u64, (usize, &'static str)>,
    pub refused: HashSet<u64>,
    /// Stays that are over.
    stays: Vec<Stay>,
    /// A digest of all that was seen.
    pub trace: u64,
}

impl<S: Servers> Nodes<S> {
    pub fn new(servers: S, random: Random, all: Vec<Node>, degraded: Degraded) -> Self {
        Self {
            servers,
            random,
            now: Tick(0),
            all,
            degraded,
            next_id: 1,
            published: HashMap::new(),
            refused: HashSet::new(),
            stays: Vec::new(),
            trace: 0,
        }
    }

    // --- what shards do ---------------------------------------------------------------------------------------------

    pub fn join(&mut self, node: usize, shard: usize, name: &'static str) {
        let Node { shards, up, .. } = &mut self.all[node];
        let room = shards[shard].entry(name).or_default();
        if !room.wanted {
            room.wanted = true;
            room.unanswered += 1;
            up[shard].push_back(Upstream::Interest { room: name.into() });
        }
    }

    pub fn leave(&mut self, node: usize, shard: usize, name: &'static str) {
        let Node { shards, up, .. } = &mut self.all[node];
        let room = shards[shard].entry(name).or_default();
        if room.wanted {
            room.wanted = false;
            up[shard].push_back(Upstream::Disinterest { room: name.into() });
            self.stays.extend(room.stay.take());
        }
    }

    /// A few messages that a node is to publish.
    pub fn batch(&mut self, node: usize, name: &'static str) -> (RoomName, Arc<Batch>) {
        let mut batch = Batch {
            bytes: Vec::new(),
            messages: Vec::new(),
            published: self.now,
        };
        for _ in 0..self.random.between(1, 3) {
            let text = self.next_id.to_string();
            self.published.insert(self.next_id, (node, name));
            self.next_id += 1;
            let header_bytes = encode_header(&mut batch.bytes, true, OpCode::Text, text.len());
            batch.bytes.extend_from_slice(text.as_bytes());
            batch.messages.push(BatchMessage {
                end: batch.bytes.len() as u32,
                header_bytes,
                kind: MessageKind::Text,
                sender: None,
            });
        }
        (name.into(), Arc::new(batch))
    }

    /// The shards read up to `count` envelopes of their lanes each.
    fn read(&mut self, node: usize, count: usize) {
        let (log_start, id_start) = (self.servers.log().messages.len(), self.next_id);
        let Node {
            shards, up, down, ..
        } = &mut self.all[node];
        for ((rooms, up), lane) in shards.iter_mut().zip(up).zip(down) {
            for _ in 0..count {
                let Some(envelope) = lane.pop() else { break };
                match envelope {
                    Downstream::Joined { room, leased } => {
                        assert!(!leased);
                        let room = rooms.get_mut(&*room).unwrap();
                        if room.answered() {
                            room.stay = Some(Stay {
                                log_start,
                                id_start,
                                ..Stay::default()
                            });
                        }
                    }
                    Downstream::JoinRefused { room: name } => {
                        let room = rooms.get_mut(&*name).unwrap();
                        if room.answered() {
                            room.wanted = false;
                            up.push_back(Upstream::Disinterest { room: name });
                        }
                    }
                    Downstream::Delivery { room: name, batch } => {
                        let stay = &mut rooms.get_mut(&*name).unwrap().stay;
                        for id in ids(&batch) {
                            assert_eq!(self.published[&id].1, &*name, "its room");
                            if let Some(stay) = stay {
                                stay.seen.push(id);
                                self.trace = self.trace.rotate_left(7) ^ id ^ self.now.0;
                            }
                        }
                    }
                    Downstream::Gap { room, missed } => {
                        if let Some(stay) = &mut rooms.get_mut(&*room).unwrap().stay {
                            stay.missed_told += missed.unwrap_or_default();
                            stay.unknown_told |= missed.is_none();
                        }
                    }
                    Downstream::Refused { batch, .. } => self.refused.extend(ids(&batch)),
                    Downstream::Probe { sequence } => {
                        up.push_back(Upstream::ProbeReply { sequence });
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    // --- the world turns --------------------------------------------------------------------------------------------

    /// Time passes, a little.
    pub fn pass(&mut self) {
        self.now = Tick(self.now.0 + self.random.below(20_000) as u64);
        self.servers.set_time(self.now);
    }

    /// A few things happen, up to `most`, as chance has it.
    pub fn pump(&mut self, most: usize) {
        self.servers.set_time(self.now);
        for _ in 0..self.random.between(1, most) {
            let node = self.random.below(self.all.len());
            match self.random.below(4) {
                0 => self.turn(node),
                1 => self.links(node),
                2 => {
                    let count = self.random.below(8);
                    self.read(node, count);
                }
                _ => {
                    for id in self.servers.pipes().ids() {
                        let count = self.random.below(4);
                        self.servers.work(id, count);
                    }
                }
            }
        }
    }

    /// Everything goes on in turn for so long.
    pub fn rest(&mut self, time_us: u64) {
        let until = self.now.0 + time_us;
        while self.now.0 < until {
            self.now = Tick(self.now.0 + 10_000);
            self.servers.set_time(self.now);
            for node in 0..self.all.len() {
                self.turn(node);
                self.links(node);
                let count = self.random.below(8);
                self.read(node, count);
            }
            for id in self.servers.pipes().ids() {
                self.servers.work(id, 100);
            }
        }
    }

    fn turn(&mut self, node: usize) {
        let Node {
            backplane,
            up,
            down,
            first,
            ..
        } = &mut self.all[node];
        *first += 1;
        turn(backplane, &mut Wires { up, down }, *first, self.now);
        backplane.check_invariants();
        backplane.check_redis_invariants();
    }

    /// The node's sockets: orders, then bytes in both directions, as many as chance has it.
    fn links(&mut self, node: usize) {
        let now = self.now;
        self.orders(node);
        for link in self.all[node].backplane.links() {
            let Some(&id) = self.all[node].pipes.get(&link) else {
                continue;
            };
            let most = self.random.between(1, 2_000);
            let backplane = &mut self.all[node].backplane;
            let pipe = self.servers.pipes().at(id);
            if !pipe.half_open && !pipe.down.is_empty() {
                let count = pipe.down.len().min(most);
                let bytes: Vec<u8> = pipe.down.drain(..count).collect();
                backplane.link_received(link, &bytes, now);
            } else if pipe.ended && !pipe.half_open {
                backplane.link_failed(link, "Redis has closed the connection".into(), now);
            }
            self.orders(node);
            let Some(&id) = self.all[node].pipes.get(&link) else {
                continue;
            };
            let backplane = &mut self.all[node].backplane;
            let output = backplane.link_output(link, now);
            let count = output.len().min(most);
            let pipe = self.servers.pipes().at(id);
            if !pipe.ended {
                pipe.up.extend(&output[..count]);
            }
            if count > 0 {
                backplane.link_written(link, count, now);
            }
            self.orders(node);
        }
    }

    fn orders(&mut self, node: usize) {
        let now = self.now;
        let Node {
            backplane, pipes, ..
        } = &mut self.all[node];
        backplane.settle();
        while let Some(order) = backplane.poll_link_order() {
            match order {
                LinkOrder::Connect { link, address } => {
                    assert!(!pipes.contains_key(&link), "{link:?} is connected");
                    match self.servers.connect(&address) {
                        Some(id) => {
                            pipes.insert(link, id);
                            backplane.link_connected(link, now);
                        }
                        None => {
                            backplane.link_failed(link, "it refuses the connection".into(), now);
                        }
                    }
                }
                LinkOrder::Close(link) => {
                    if let Some(id) = pipes.remove(&link) {
                        self.servers.pipes().by_id.remove(&id);
                    }
                }
                LinkOrder::Fatal(reason) => panic!("{reason}"),
            }
            backplane.settle();
        }
    }

    // --- what must hold ---------------------------------------------------------------------------------------------

    /// Every link works, nothing waits any more, and every interest is answered.
    pub fn check_rest(&mut self) {
        for (index, node) in self.all.iter_mut().enumerate() {
            assert_eq!(node.backplane.link_troubles(self.now), [], "node {index}");
            let redis = node.backplane.snapshot(self.now).redis;
            assert!(redis.ready && redis.buffer_bytes == 0, "node {index}");
            // What is sent again is not in that figure.
            assert_eq!(node.backplane.unacknowledged(), 0, "node {index}");
            assert!(!node.backplane.has_backlog() && !node.backplane.has_stalled());
            for (name, room) in node.shards.iter().flatten() {
                assert_eq!(room.unanswered, 0, "node {index}: {name} was not answered");
                assert_eq!(room.wanted, room.stay.is_some(), "node {index}: {name}");
            }
        }
    }

    /// Every stay, the members' and those that are over.
    pub fn stays(&self) -> impl Iterator<Item = &Stay> {
        self.stays
            .iter()
            .chain(self.members().map(|(_, _, stay)| stay))
    }

    /// The members: their node, their room, their stay.
    pub fn members(&self) -> impl Iterator<Item = (usize, &'static str, &Stay)> {
        let nodes = self.all.iter().enumerate();
        let rooms = nodes.flat_map(|(index, node)| {
            let rooms = node.shards.iter().flatten();
            rooms.map(move |(name, room)| (index, *name, room.stay.as_ref()))
        });
        rooms.filter_map(|(index, name, stay)| Some((index, name, stay?)))
    }

    /// How many nodes follow a room.
    pub fn follower_count(&self, room: &str) -> usize {
        self.all.iter().filter(|node| node.follows(room)).count()
    }

    /// Nothing is seen twice; with `refuse`, where a room has one order, all see that of the log.
    pub fn check_order(&self, stay: &Stay, places: &HashMap<u64, usize>, has_one_order: bool) {
        let unique: HashSet<u64> = stay.seen.iter().copied().collect();
        assert_eq!(unique.len(), stay.seen.len(), "seen twice: {:?}", stay.seen);
        if self.degraded == Degraded::Refuse && has_one_order {
            // Who missed a message the first time, link and all, gets it where it is published again.
            let again = &self.servers.log().again;
            let once = stay.seen.iter().filter(|id| !again.contains(id));
            let places: Vec<usize> = once.map(|id| places[id]).collect();
            assert!(places.is_sorted(), "the servers' order: {:?}", stay.seen);
        }
    }

    /// Whether members of the node heard a message of its own at once, while Redis was away, before the stay began: it is
    /// ordered later, but for who came in between it is from before.
    pub fn was_heard_before(&self, id: u64, node: usize, stay: &Stay) -> bool {
        let own = self.published[&id].0 == node;
        self.degraded == Degraded::Local && own && id < stay.id_start
    }
}

/// Whoever misses messages was told of as many, or of an unknown number.
pub fn check_told(name: &str, stay: &Stay, missing: &[u64]) {
    assert!(
        stay.unknown_told || missing.len() as u64 <= stay.missed_told,
        "{name}: missing {missing:?}, told {}",
        stay.missed_told
    );
}
