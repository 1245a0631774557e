//! Several backplanes around a scripted Redis: links are cut, stalled, half open, pushes are lost, Redis restarts.
//!
//! Safety: nobody sees a message twice; what a node publishes is seen in its order, and with `refuse` all see Redis'
//! order, what was published again after a lost link apart. Liveness, once the faults have stopped: every link works, every interest is answered, Redis' subscriptions are
//! the rooms that have members; every message that was not refused to its publisher has reached Redis, and every member
//! has seen all that Redis had since it joined, or was told of at least as many as are missing. With streams that does not
//! hold for what a replica lacked, or a lost Redis, if its publisher had not heard of it before and gave it up: then the
//! publisher was told, or it was counted (PROTOCOL, §5: a publish that was answered with 202 may still expire).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use throng::backplane::remote::{self, Address, Degraded, LinkId, LinkOrder, Mode, Role};
use throng::backplane::{Action, Backplane, LaneRoom, Options, Ports, turn};
use throng::bus::{
    Batch, BatchMessage, CoreId, Downstream, EVERYBODY, MessageKind, RoomName, Upstream,
};
use throng::protocol::{OpCode, encode_header};
use throng::time::Tick;

use super::lane::Lane;
use super::random::Random;
use super::redis_server::{Server, channel_of};

/// Two rooms, and the hidden ones of a user and of everybody: to the backplane there is no difference.
const ROOMS: [&str; 4] = ["one", "two", "\u{1}ann", EVERYBODY];
const STEPS: usize = 1_500;
/// Virtual time in which everything comes to rest, microseconds.
const HEAL_US: u64 = 60_000_000;

/// The payloads of a batch.
pub fn ids(batch: &Batch) -> impl Iterator<Item = u64> + '_ {
    let mut start = 0;
    batch.messages.iter().map(move |message| {
        let payload = start + usize::from(message.header_bytes)..message.end as usize;
        start = message.end as usize;
        let text = std::str::from_utf8(&batch.bytes[payload]).unwrap();
        text.parse().unwrap()
    })
}

/// The link of that role to the one server.
fn link(role: Role) -> LinkId {
    LinkId { server: 0, role }
}

/// One stay in a room.
#[derive(Default)]
struct Stay {
    seen: Vec<u64>,
    /// Where Redis' log stood when it began.
    log_start: usize,
    /// The next message's number then.
    id_start: u64,
    missed_told: u64,
    unknown_told: bool,
}

#[derive(Default)]
struct Room {
    unanswered: u32,
    wanted: bool,
    stay: Option<Stay>,
}

struct Node {
    backplane: Backplane,
    shards: Vec<BTreeMap<&'static str, Room>>,
    up: Vec<VecDeque<Upstream>>,
    down: Vec<Lane<Downstream>>,
    pipes: [Option<u64>; 3],
    first: usize,
}

struct Wires<'a> {
    up: &'a mut [VecDeque<Upstream>],
    down: &'a mut [Lane<Downstream>],
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

pub struct World {
    random: Random,
    now: Tick,
    pub step: usize,
    degraded: Degraded,
    mode: Mode,
    /// Redis has lost all it had, once at least.
    data_lost: bool,
    server: Server,
    nodes: Vec<Node>,
    next_id: u64,
    /// By message: its node and its room.
    published: HashMap<u64, (usize, &'static str)>,
    /// The admin API's: what it was told is taken may expire later, which is only counted.
    accepted: HashSet<u64>,
    refused: HashSet<u64>,
    stays: Vec<(usize, &'static str, Stay)>,
    /// A digest of all that was seen.
    pub trace: u64,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let degraded = *random.pick(&[Degraded::Local, Degraded::Refuse]);
        let mode = *random.pick(&[Mode::Pubsub, Mode::Streams]);
        let node_count = random.between(2, 3);
        let nodes = (0..node_count)
            .map(|_| {
                let shard_count = random.between(1, 2);
                let options = Options::new(shard_count as u8, 100);
                let backlog_bytes_max = match mode {
                    Mode::Streams => 1 << 20, // whatever is missing is missing at Redis
                    _ => random.between(3_000, 30_000) as u64,
                };
                let redis = remote::Options {
                    mode,
                    degraded,
                    hold_ms: 300,
                    join_timeout_ms: random.between(500, 3_000) as u32,
                    joins_waiting_max: random.between(2, 10) as u32,
                    buffer_bytes_max: random.between(2_000, 20_000) as u64,
                    buffer_age_ms: random.between(500, 5_000) as u32,
                    backlog_bytes_max,
                    probe_interval_ms: 500,
                    probe_timeout_ms: 1_000,
                    subscribes_per_s_max: *random.pick(&[10, 1_000]),
                    ..remote::Options::new(Address::parse("redis://x").unwrap())
                };
                Node {
                    backplane: Backplane::with_redis(options, redis, random.next(), Tick(0)),
                    shards: (0..shard_count).map(|_| BTreeMap::new()).collect(),
                    up: (0..shard_count).map(|_| VecDeque::new()).collect(),
                    down: (0..shard_count).map(|_| Lane::new(6, 400)).collect(),
                    pipes: [None; 3],
                    first: 0,
                }
            })
            .collect();
        Self {
            random,
            now: Tick(0),
            step: 0,
            degraded,
            mode,
            data_lost: false,
            server: Server::default(),
            nodes,
            next_id: 1,
            published: HashMap::new(),
            accepted: HashSet::new(),
            refused: HashSet::new(),
            stays: Vec::new(),
            trace: 0,
        }
    }

    pub fn all(&mut self) {
        for step in 0..STEPS {
            self.step = step;
            self.now = Tick(self.now.0 + self.random.below(20_000) as u64);
            self.act();
            self.pump();
        }
        self.heal();
        self.check();
    }

    // --- what happens -----------------------------------------------------------------------------------------------

    fn act(&mut self) {
        let node = self.random.below(self.nodes.len());
        let shard = self.random.below(self.nodes[node].shards.len());
        let room = *self.random.pick(&ROOMS);
        match self.random.below(100) {
            0..20 => self.join(node, shard, room),
            20..28 => self.leave(node, shard, room),
            28..80 => self.publish(node, Some(shard), room),
            80..88 => self.publish(node, None, room),
            88..90 => self.now = self.now.after(std::time::Duration::from_secs(1)),
            _ => self.fault(),
        }
    }

    fn fault(&mut self) {
        let pipes: Vec<u64> = self.server.pipes.keys().copied().collect();
        match self.random.below(12) {
            0 | 1 if !pipes.is_empty() => {
                let id = *self.random.pick(&pipes);
                self.server.kill(id);
            }
            2 if !pipes.is_empty() => {
                let id = *self.random.pick(&pipes);
                self.server.pipes.get_mut(&id).unwrap().half_open = true;
            }
            3 => self.server.pushes_to_lose = self.random.between(1, 4),
            4 => self.restart(),
            5..7 => self.server.is_down = false,
            7 => self.server.is_stopped = true,
            _ => self.server.is_stopped = false,
        }
    }

    /// Redis dies. What comes back has what it had, or a little less, or nothing.
    fn restart(&mut self) {
        self.server.restart_begins();
        match self.random.below(8) {
            0 => {
                self.server.kept.lose();
                self.data_lost = true;
            }
            1..4 => self.server.kept.restart(),
            _ => {
                let lag = self.random.below(6);
                self.server.kept.fail_over(lag);
            }
        }
    }

    fn join(&mut self, node: usize, shard: usize, name: &'static str) {
        let Node { shards, up, .. } = &mut self.nodes[node];
        let room = shards[shard].entry(name).or_default();
        if !room.wanted {
            room.wanted = true;
            room.unanswered += 1;
            up[shard].push_back(Upstream::Interest { room: name.into() });
        }
    }

    fn leave(&mut self, node: usize, shard: usize, name: &'static str) {
        let Node { shards, up, .. } = &mut self.nodes[node];
        let room = shards[shard].entry(name).or_default();
        if room.wanted {
            room.wanted = false;
            up[shard].push_back(Upstream::Disinterest { room: name.into() });
            if let Some(stay) = room.stay.take() {
                self.stays.push((node, name, stay));
            }
        }
    }

    /// A member's messages, or (`None`) the admin API's.
    fn publish(&mut self, node: usize, shard: Option<usize>, name: &'static str) {
        if let Some(shard) = shard {
            let room = self.nodes[node].shards[shard].get(name);
            if room.is_none_or(|room| room.stay.is_none()) {
                return;
            }
        }
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
        let (room, batch) = (RoomName::from(name), Arc::new(batch));
        let now = self.now;
        let Node {
            backplane,
            up,
            down,
            ..
        } = &mut self.nodes[node];
        match shard {
            Some(shard) => up[shard].push_back(Upstream::Publish { room, batch }),
            None => {
                let wires = Wires { up, down };
                match backplane.publish(&room, &batch, &wires, now) {
                    Ok(()) => self.accepted.extend(ids(&batch)),
                    Err(_) => self.refused.extend(ids(&batch)),
                }
            }
        }
    }

    // --- the world turns --------------------------------------------------------------------------------------------

    fn pump(&mut self) {
        self.server.kept.now = self.now;
        for _ in 0..self.random.between(1, 6) {
            let node = self.random.below(self.nodes.len());
            match self.random.below(4) {
                0 => self.turn(node),
                1 => self.links(node),
                2 => self.read(node),
                _ => {
                    let ids: Vec<u64> = self.server.pipes.keys().copied().collect();
                    for id in ids {
                        let count = self.random.below(4);
                        self.server.work(id, count);
                    }
                }
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
        } = &mut self.nodes[node];
        *first += 1;
        turn(backplane, &mut Wires { up, down }, *first, self.now);
        backplane.check_invariants();
        backplane.check_redis_invariants();
    }

    /// The node's sockets: orders, then bytes in both directions, as many as chance has it.
    fn links(&mut self, node: usize) {
        let now = self.now;
        self.orders(node);
        for role in Role::ALL {
            let Node {
                backplane, pipes, ..
            } = &mut self.nodes[node];
            let Some(id) = pipes[role as usize] else {
                continue;
            };
            let pipe = self.server.pipes.get_mut(&id).unwrap();
            let most = self.random.between(1, 2_000);
            if !pipe.half_open && !pipe.down.is_empty() {
                let count = pipe.down.len().min(most);
                let bytes: Vec<u8> = pipe.down.drain(..count).collect();
                backplane.link_received(link(role), &bytes, now);
            } else if pipe.ended && !pipe.half_open {
                let reason = "Redis has closed the connection".to_owned();
                backplane.link_failed(link(role), reason, now);
            }
            self.orders(node);
            let Node {
                backplane, pipes, ..
            } = &mut self.nodes[node];
            let Some(id) = pipes[role as usize] else {
                continue;
            };
            let output = backplane.link_output(link(role), now);
            let count = output.len().min(most);
            let pipe = self.server.pipes.get_mut(&id).unwrap();
            if !pipe.ended {
                pipe.up.extend(&output[..count]);
            }
            if count > 0 {
                backplane.link_written(link(role), count, now);
            }
            self.orders(node);
        }
    }

    fn orders(&mut self, node: usize) {
        let now = self.now;
        let Node {
            backplane, pipes, ..
        } = &mut self.nodes[node];
        backplane.settle();
        while let Some(order) = backplane.poll_link_order() {
            match order {
                LinkOrder::Connect { link, .. } => {
                    pipes[link.role as usize] = self.server.connect();
                    match pipes[link.role as usize] {
                        Some(_) => backplane.link_connected(link, now),
                        None => {
                            backplane.link_failed(link, "it refuses the connection".into(), now)
                        }
                    }
                }
                LinkOrder::Close(link) => {
                    if let Some(id) = pipes[link.role as usize].take() {
                        self.server.pipes.remove(&id);
                    }
                }
                LinkOrder::Fatal(reason) => panic!("{reason}"),
            }
            backplane.settle();
        }
    }

    /// The shards read their lanes.
    fn read(&mut self, node: usize) {
        let count = self.random.below(8);
        let (log_start, id_start) = (self.server.log.len(), self.next_id);
        let Node {
            shards, up, down, ..
        } = &mut self.nodes[node];
        for (shard, lane) in down.iter_mut().enumerate() {
            for _ in 0..count {
                let Some(envelope) = lane.pop() else { break };
                let room_of =
                    |name: &RoomName| *ROOMS.iter().find(|room| **room == &**name).unwrap();
                match envelope {
                    Downstream::Joined { room, leased } => {
                        assert!(!leased);
                        let room = shards[shard].get_mut(room_of(&room)).unwrap();
                        assert!(room.unanswered > 0, "answered twice");
                        room.unanswered -= 1;
                        if room.unanswered == 0 && room.wanted {
                            room.stay = Some(Stay {
                                log_start,
                                id_start,
                                ..Stay::default()
                            });
                        }
                    }
                    Downstream::JoinRefused { room: name } => {
                        let room = shards[shard].get_mut(room_of(&name)).unwrap();
                        assert!(room.unanswered > 0, "answered twice");
                        room.unanswered -= 1;
                        if room.unanswered == 0 && room.wanted {
                            room.wanted = false;
                            up[shard].push_back(Upstream::Disinterest { room: name });
                        }
                    }
                    Downstream::Delivery { room: name, batch } => {
                        let room = shards[shard].get_mut(room_of(&name));
                        if let Some(stay) = room.and_then(|room| room.stay.as_mut()) {
                            for id in ids(&batch) {
                                assert_eq!(self.published[&id].1, &*name, "its room");
                                stay.seen.push(id);
                                self.trace = self.trace.rotate_left(7) ^ id ^ self.now.0;
                            }
                        }
                    }
                    Downstream::Gap { room: name, missed } => {
                        let room = shards[shard].get_mut(room_of(&name));
                        if let Some(stay) = room.and_then(|room| room.stay.as_mut()) {
                            stay.missed_told += missed.unwrap_or_default();
                            stay.unknown_told |= missed.is_none();
                        }
                    }
                    Downstream::Refused { batch, .. } => self.refused.extend(ids(&batch)),
                    Downstream::Probe { sequence } => {
                        up[shard].push_back(Upstream::ProbeReply { sequence });
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    /// No more faults: everything comes to rest, then everybody publishes once more, so that holes are seen.
    fn heal(&mut self) {
        self.server.is_down = false;
        self.server.is_stopped = false;
        self.server.pushes_to_lose = 0;
        for pipe in self.server.pipes.values_mut() {
            pipe.ended |= std::mem::take(&mut pipe.half_open);
        }
        self.rest(HEAL_US);
        for node in 0..self.nodes.len() {
            for name in ROOMS {
                self.publish(node, None, name);
            }
        }
        self.rest(HEAL_US / 10);
    }

    fn rest(&mut self, time_us: u64) {
        let until = self.now.0 + time_us;
        while self.now.0 < until {
            self.now = Tick(self.now.0 + 5_000);
            self.server.kept.now = self.now;
            for node in 0..self.nodes.len() {
                self.turn(node);
                self.links(node);
                self.read(node);
            }
            for id in self.server.pipes.keys().copied().collect::<Vec<_>>() {
                self.server.work(id, 100);
            }
        }
    }

    // --- what must hold ---------------------------------------------------------------------------------------------

    fn check(&mut self) {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            assert_eq!(node.backplane.link_troubles(self.now), [], "node {index}");
            assert!(!node.backplane.has_backlog() && !node.backplane.has_stalled());
            assert_eq!(node.backplane.snapshot(self.now).redis.buffer_bytes, 0);
            for (name, room) in node.shards.iter().flatten() {
                assert_eq!(room.unanswered, 0, "node {index}: {name} was not answered");
                assert_eq!(room.wanted, room.stay.is_some(), "node {index}: {name}");
            }
        }
        for name in ROOMS {
            let following = |node: &&Node| {
                let mut rooms = node.shards.iter().filter_map(|rooms| rooms.get(name));
                rooms.any(|room| room.wanted)
            };
            let nodes = self.nodes.iter().filter(following).count();
            let channel = channel_of(name);
            assert_eq!(self.server.subscribers(channel), nodes, "{name}");
        }
        let logged: BTreeSet<u64> = self.server.log.iter().map(|logged| logged.id).collect();
        for id in self.published.keys() {
            let known = [&self.refused, &self.accepted];
            assert!(
                logged.contains(id) || known.iter().any(|known| known.contains(id)),
                "{id} was neither published nor refused"
            );
        }
        let expired = self.accepted.iter().filter(|id| !logged.contains(id));
        let counted = self.nodes.iter();
        let counted = counted.map(|node| node.backplane.snapshot(self.now).redis.messages_refused);
        assert!(
            expired.count() as u64 <= counted.sum(),
            "what expires is counted"
        );
        let position: HashMap<u64, usize> = self
            .server
            .log
            .iter()
            .enumerate()
            .map(|(position, logged)| (logged.id, position))
            .collect();
        for (_, _, stay) in &self.stays {
            self.check_order(stay, &position);
        }
        for (index, node) in self.nodes.iter().enumerate() {
            for (name, room) in node.shards.iter().flatten() {
                if let Some(stay) = &room.stay {
                    self.check_order(stay, &position);
                    self.check_complete(index, name, stay);
                }
            }
        }
    }

    fn check_order(&self, stay: &Stay, position: &HashMap<u64, usize>) {
        let unique: HashSet<u64> = stay.seen.iter().copied().collect();
        assert_eq!(unique.len(), stay.seen.len(), "seen twice: {:?}", stay.seen);
        for node in 0..self.nodes.len() {
            // Ids count up, so that a node's order is theirs, one shard at a time; shards take turns within a node.
            let of_node = stay.seen.iter().filter(|id| self.published[id].0 == node);
            let of_node: Vec<usize> = of_node.filter_map(|id| position.get(id).copied()).collect();
            assert!(of_node.is_sorted(), "node {node}'s order: {:?}", stay.seen);
        }
        if self.degraded == Degraded::Refuse {
            // Who missed a message the first time, link and all, gets it where it is published again.
            let once = stay
                .seen
                .iter()
                .filter(|id| !self.server.again.contains(id));
            let places: Vec<usize> = once.map(|id| position[id]).collect();
            assert!(places.is_sorted(), "Redis' order: {:?}", stay.seen);
        }
    }

    fn check_complete(&self, node: usize, name: &str, stay: &Stay) {
        let seen: HashSet<u64> = stay.seen.iter().copied().collect();
        let log = &self.server.log[stay.log_start..];
        let missing = log
            .iter()
            .filter(|logged| logged.room == name && !seen.contains(&logged.id));
        // A push that Redis loses before anything of its node was heard is a thing that no sequence shows.
        let unheard = |id: u64| {
            let node = self.published[&id].0;
            let earlier = log.iter().take_while(|logged| logged.id != id);
            let mut of_node = earlier.filter(|logged| self.published[&logged.id].0 == node);
            !of_node.any(|logged| seen.contains(&logged.id))
        };
        // What members here heard while Redis was away, it orders later: for who came in between it is from before.
        let heard_here = |id: u64| {
            let own = self.published[&id].0 == node;
            self.degraded == Degraded::Local && own && id < stay.id_start
        };
        let missing = missing.map(|logged| logged.id);
        let missing = missing.filter(|id| !heard_here(*id));
        let is_kept = self.mode == Mode::Streams && !self.data_lost;
        let excused = |id: u64| self.server.lost.contains(&id) && unheard(id);
        let missing = missing.filter(|id| is_kept || !excused(*id));
        // What Redis had and has lost before its publisher heard of it: that has given it up, and said so or counted it.
        let keeps = self.mode == Mode::Streams;
        let (missing, given_up): (Vec<u64>, Vec<u64>) = missing
            .partition(|id| !keeps || !self.refused.contains(id) && !self.accepted.contains(id));
        let nodes = self.nodes.iter();
        let counted = nodes.map(|node| node.backplane.snapshot(self.now).redis.messages_refused);
        let silent = given_up.iter().filter(|id| !self.refused.contains(id));
        assert!(
            silent.count() as u64 <= counted.sum(),
            "{name}: {given_up:?}, what expires is counted"
        );
        if is_kept {
            assert!(missing.is_empty(), "{name}: {missing:?} were kept");
            assert!(!stay.unknown_told, "{name}: nothing is unknown");
        }
        assert!(
            stay.unknown_told || missing.len() as u64 <= stay.missed_told,
            "{name}: missing {missing:?}, told {}",
            stay.missed_told
        );
    }
}
