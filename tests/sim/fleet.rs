//! Several backplanes around several Redis servers, by themselves or a cluster: slots move, masters die and are replaced,
//! servers know late of it, connections are cut.
//!
//! Safety: nobody sees a message twice; what a node publishes is seen in its order; with sharded channels and `refuse`
//! all see the order of the servers. Liveness, once the faults have stopped: every link works, every interest is
//! answered, each room is followed once by each node that has members and where its slot is; every message that was not
//! refused has been published, and every member has it or was told; with streams all of it is kept where its room is,
//! whatever replicas lacked.
//!
//! With one exception, which docs/PROTOCOL.md §5 names: what a server has taken for a slot that it had lost without knowing
//! (it was replaced while it was down, and back before it heard of that) is shown by the publisher's numbers alone. Who has
//! not heard that sequence in its stay both before and since need not be told.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use throng::backplane::remote::{self, Degraded, Endpoint, LinkId, LinkOrder, Mode, Role, Source};
use throng::backplane::{Action, Backplane, LaneRoom, Options, Ports, turn};
use throng::bus::{Batch, BatchMessage, CoreId, Downstream, MessageKind, RoomName, Upstream};
use throng::protocol::{OpCode, encode_header};
use throng::time::Tick;

use super::lane::Lane;
use super::random::Random;
use super::redis::ids;
use super::redis_cluster::{Cluster, Logged};

const ROOMS: [&str; 6] = ["one", "two", "three", "four", "five", "six"];
const STEPS: usize = 1_200;
/// Virtual time in which everything comes to rest, microseconds.
const HEAL_US: u64 = 60_000_000;

/// One stay in a room.
#[derive(Default)]
struct Stay {
    seen: Vec<u64>,
    log_start: usize,
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
    rooms: BTreeMap<&'static str, Room>,
    up: VecDeque<Upstream>,
    down: Lane<Downstream>,
    pipes: BTreeMap<(u16, usize), u64>,
}

struct Wires<'a> {
    up: &'a mut VecDeque<Upstream>,
    down: &'a mut Lane<Downstream>,
}

impl LaneRoom for Wires<'_> {
    fn fits(&self, _: CoreId, bytes: u32) -> bool {
        self.down.fits(bytes)
    }
}

impl Ports for Wires<'_> {
    fn take(&mut self, _: CoreId) -> Option<Upstream> {
        self.up.pop_front()
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Send {
                envelope, bytes, ..
            } => self.down.push(envelope, bytes),
            Action::SendControl { envelope, .. } => self.down.push(envelope, 0),
            other => panic!("{other:?}"),
        }
    }
}

pub struct World {
    random: Random,
    now: Tick,
    pub step: usize,
    degraded: Degraded,
    mode: Mode,
    cluster: Cluster,
    nodes: Vec<Node>,
    next_id: u64,
    /// By message: its node.
    published: HashMap<u64, usize>,
    refused: HashSet<u64>,
    stays: Vec<Stay>,
    pub trace: u64,
    /// How often slots moved, and masters died.
    pub moves: u64,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let degraded = *random.pick(&[Degraded::Local, Degraded::Refuse]);
        let mode = *random.pick(&[Mode::Pubsub, Mode::Sharded, Mode::Streams]);
        let is_cluster = !random.one_in(4);
        let cluster = Cluster::new(if is_cluster { 4 } else { 3 }, is_cluster);
        let nodes = (0..random.between(2, 3))
            .map(|index| {
                let (address, others) = addresses(is_cluster, index);
                let redis = remote::Options {
                    others,
                    mode,
                    degraded,
                    partitions: 8,
                    hold_ms: 300,
                    join_timeout_ms: random.between(500, 3_000) as u32,
                    joins_waiting_max: random.between(4, 20) as u32,
                    buffer_bytes_max: match mode {
                        Mode::Streams => 1 << 20, // what was acknowledged lately is kept, all of it
                        _ => random.between(8_000, 80_000) as u64,
                    },
                    buffer_age_ms: random.between(500, 8_000) as u32,
                    backlog_bytes_max: 1 << 20,
                    probe_interval_ms: 500,
                    probe_timeout_ms: 1_000,
                    ..remote::Options::new(address)
                };
                let options = Options::new(1, 100);
                Node {
                    backplane: Backplane::with_redis(options, redis, random.next(), Tick(0)),
                    rooms: BTreeMap::new(),
                    up: VecDeque::new(),
                    down: Lane::new(6, 400),
                    pipes: BTreeMap::new(),
                }
            })
            .collect();
        Self {
            random,
            now: Tick(0),
            step: 0,
            degraded,
            mode,
            cluster,
            nodes,
            next_id: 1,
            published: HashMap::new(),
            refused: HashSet::new(),
            stays: Vec::new(),
            trace: 0,
            moves: 0,
        }
    }

    pub fn all(&mut self) {
        for step in 0..STEPS {
            self.step = step;
            self.now = Tick(self.now.0 + self.random.below(20_000) as u64);
            self.cluster.set_now(self.now);
            self.act();
            self.pump();
        }
        self.heal();
        self.check();
    }

    // --- what happens -----------------------------------------------------------------------------------------------

    fn act(&mut self) {
        let node = self.random.below(self.nodes.len());
        let room = *self.random.pick(&ROOMS);
        match self.random.below(100) {
            0..20 => self.join(node, room),
            20..26 => self.leave(node, room),
            26..88 => self.publish(node, room),
            88..90 => self.now = self.now.after(Duration::from_secs(1)),
            _ => self.fault(),
        }
    }

    fn fault(&mut self) {
        let pipes: Vec<u64> = self.cluster.pipes.keys().copied().collect();
        let server = self.random.below(self.cluster.server_count());
        match self.random.below(14) {
            0 if !pipes.is_empty() => {
                let id = *self.random.pick(&pipes);
                self.cluster.end_pipe(id);
            }
            1 => {
                self.cluster.go_down(server);
                self.moves += 1;
            }
            2 => self.cluster.stop(server, true),
            3..5 => self.cluster.stop(server, false),
            5..7 => self.cluster.come_up(server),
            7 | 8 if self.cluster.is_cluster() => {
                let lag = self.random.below(6);
                self.cluster.fail_over(lag);
            }
            9..11 if self.cluster.is_cluster() => {
                let room = *self.random.pick(&ROOMS);
                if let Some(channel) = self.cluster.channels_of(room).first() {
                    let slot = remote::placement::slot_of(channel);
                    self.cluster.move_slot(slot, server);
                    self.moves += 1;
                }
            }
            _ if self.cluster.is_cluster() => self.cluster.hear_of_all(server),
            _ => {}
        }
    }

    fn join(&mut self, node: usize, name: &'static str) {
        let Node { rooms, up, .. } = &mut self.nodes[node];
        let room = rooms.entry(name).or_default();
        if !room.wanted {
            room.wanted = true;
            room.unanswered += 1;
            up.push_back(Upstream::Interest { room: name.into() });
        }
    }

    fn leave(&mut self, node: usize, name: &'static str) {
        let Node { rooms, up, .. } = &mut self.nodes[node];
        let room = rooms.entry(name).or_default();
        if room.wanted {
            room.wanted = false;
            up.push_back(Upstream::Disinterest { room: name.into() });
            self.stays.extend(room.stay.take());
        }
    }

    /// Anybody's messages, a member or not.
    fn publish(&mut self, node: usize, name: &'static str) {
        let mut batch = Batch {
            bytes: Vec::new(),
            messages: Vec::new(),
            published: self.now,
        };
        for _ in 0..self.random.between(1, 3) {
            let text = self.next_id.to_string();
            self.published.insert(self.next_id, node);
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
        let publish = Upstream::Publish { room, batch };
        self.nodes[node].up.push_back(publish);
    }

    // --- the world turns --------------------------------------------------------------------------------------------

    fn pump(&mut self) {
        for _ in 0..self.random.between(1, 8) {
            let node = self.random.below(self.nodes.len());
            match self.random.below(4) {
                0 => self.turn(node),
                1 => self.links(node),
                2 => {
                    let count = self.random.below(8);
                    self.read(node, count);
                }
                _ => {
                    for id in self.cluster.pipes.keys().copied().collect::<Vec<_>>() {
                        let count = self.random.below(4);
                        self.cluster.work(id, count);
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
            ..
        } = &mut self.nodes[node];
        turn(backplane, &mut Wires { up, down }, 0, self.now);
        backplane.check_invariants();
        backplane.check_redis_invariants();
    }

    fn links(&mut self, node: usize) {
        let now = self.now;
        self.orders(node);
        let links: Vec<LinkId> = self.nodes[node].backplane.links().collect();
        for link in links {
            let key = (link.server, link.role as usize);
            let Some(&id) = self.nodes[node].pipes.get(&key) else {
                continue;
            };
            let most = self.random.between(1, 2_000);
            let backplane = &mut self.nodes[node].backplane;
            let pipe = self.cluster.pipes.get_mut(&id).unwrap();
            if !pipe.down.is_empty() {
                let count = pipe.down.len().min(most);
                let bytes: Vec<u8> = pipe.down.drain(..count).collect();
                backplane.link_received(link, &bytes, now);
            } else if pipe.ended {
                backplane.link_failed(link, "Redis has closed the connection".into(), now);
            }
            self.orders(node);
            let Some(&id) = self.nodes[node].pipes.get(&key) else {
                continue;
            };
            let backplane = &mut self.nodes[node].backplane;
            let output = backplane.link_output(link, now);
            let count = output.len().min(most);
            let pipe = self.cluster.pipes.get_mut(&id).unwrap();
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
        } = &mut self.nodes[node];
        backplane.settle();
        while let Some(order) = backplane.poll_link_order() {
            match order {
                LinkOrder::Connect { link, address } => {
                    let Endpoint::Tcp { host, .. } = &address.endpoint else {
                        panic!("{address:?}")
                    };
                    let server = host[1..].parse().unwrap();
                    let key = (link.server, link.role as usize);
                    assert!(!pipes.contains_key(&key), "{link:?} is connected");
                    match self.cluster.connect(server) {
                        Some(id) => {
                            pipes.insert(key, id);
                            backplane.link_connected(link, now);
                        }
                        None => backplane.link_failed(link, "it refuses".into(), now),
                    }
                }
                LinkOrder::Close(link) => {
                    if let Some(id) = pipes.remove(&(link.server, link.role as usize)) {
                        self.cluster.pipes.remove(&id);
                    }
                }
                LinkOrder::Fatal(reason) => panic!("{reason}"),
            }
            backplane.settle();
        }
    }

    /// The shard reads its lane.
    fn read(&mut self, node: usize, count: usize) {
        let (log_start, id_start) = (self.cluster.log.len(), self.next_id);
        let Node {
            rooms, up, down, ..
        } = &mut self.nodes[node];
        for _ in 0..count {
            let Some(envelope) = down.pop() else { break };
            let name_of = |name: &RoomName| *ROOMS.iter().find(|room| **room == &**name).unwrap();
            match envelope {
                Downstream::Joined { room, .. } => {
                    let room = rooms.get_mut(name_of(&room)).unwrap();
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
                Downstream::JoinRefused { room } => {
                    let name = name_of(&room);
                    let room = rooms.get_mut(name).unwrap();
                    assert!(room.unanswered > 0, "answered twice");
                    room.unanswered -= 1;
                    if room.unanswered == 0 && room.wanted {
                        room.wanted = false;
                        let room = name.into();
                        up.push_back(Upstream::Disinterest { room });
                    }
                }
                Downstream::Delivery { room, batch } => {
                    let room = rooms.get_mut(name_of(&room)).unwrap();
                    for id in ids(&batch) {
                        self.trace = self.trace.wrapping_mul(31).wrapping_add(id ^ node as u64);
                        if let Some(stay) = &mut room.stay {
                            stay.seen.push(id);
                        }
                    }
                }
                Downstream::Gap { room, missed } => {
                    let room = rooms.get_mut(name_of(&room)).unwrap();
                    if let Some(stay) = &mut room.stay {
                        stay.missed_told += missed.unwrap_or_default();
                        stay.unknown_told |= missed.is_none();
                    }
                }
                Downstream::Refused { batch, .. } => self.refused.extend(ids(&batch)),
                Downstream::Probe { sequence } => up.push_back(Upstream::ProbeReply { sequence }),
                other => panic!("{other:?}"),
            }
        }
    }

    /// No more faults: everything comes to rest, then everybody publishes once more, so that holes are seen.
    fn heal(&mut self) {
        self.cluster.heal();
        self.rest(HEAL_US);
        for node in 0..self.nodes.len() {
            for name in ROOMS {
                self.publish(node, name);
            }
        }
        self.rest(HEAL_US / 10);
    }

    fn rest(&mut self, time_us: u64) {
        let until = self.now.0 + time_us;
        while self.now.0 < until {
            self.now = Tick(self.now.0 + 10_000);
            self.cluster.set_now(self.now);
            for node in 0..self.nodes.len() {
                self.turn(node);
                self.links(node);
                self.read(node, 100);
            }
            for id in self.cluster.pipes.keys().copied().collect::<Vec<_>>() {
                self.cluster.work(id, 100);
            }
        }
    }

    // --- what must hold ---------------------------------------------------------------------------------------------

    fn check(&mut self) {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            assert_eq!(node.backplane.link_troubles(self.now), [], "node {index}");
            let redis = node.backplane.snapshot(self.now).redis;
            assert!(redis.ready && redis.buffer_bytes == 0, "node {index}");
            assert!(!node.backplane.has_stalled());
            for (name, room) in &node.rooms {
                assert_eq!(room.unanswered, 0, "node {index}: {name} was not answered");
                assert_eq!(room.wanted, room.stay.is_some(), "node {index}: {name}");
            }
        }
        self.check_followers();
        let logged: HashSet<u64> = self.cluster.log.iter().map(|logged| logged.id).collect();
        for id in self.published.keys() {
            let known = logged.contains(id) || self.refused.contains(id);
            assert!(known, "{id} was neither published nor refused");
        }
        if self.mode == Mode::Streams {
            self.check_kept();
        }
        let places = self.cluster.log.iter().enumerate();
        let places: HashMap<u64, usize> =
            places.map(|(place, logged)| (logged.id, place)).collect();
        for stay in &self.stays {
            self.check_order(stay, &places);
        }
        for (index, node) in self.nodes.iter().enumerate() {
            for (name, room) in &node.rooms {
                if let Some(stay) = &room.stay {
                    self.check_order(stay, &places);
                    self.check_complete(index, name, stay);
                }
            }
        }
    }

    /// What was published, and nobody was told otherwise, is kept where its room is.
    fn check_kept(&self) {
        let kept = self.cluster.kept();
        let log = self.cluster.log.iter();
        let gone = log.filter(|logged| !logged.astray && !kept.contains(&logged.id));
        let gone = gone.map(|logged| logged.id);
        let gone: Vec<u64> = gone.filter(|id| !self.refused.contains(id)).collect();
        assert!(gone.is_empty(), "{gone:?} were acknowledged, and are gone");
    }

    fn check_followers(&self) {
        for name in ROOMS {
            let following = |node: &&Node| node.rooms.get(name).is_some_and(|room| room.wanted);
            let nodes = self.nodes.iter().filter(following).count();
            let channels = self.cluster.channels_of(name);
            assert!(channels.len() <= 1, "{name} has one name");
            let followers = channels
                .iter()
                .flat_map(|channel| self.cluster.followers(channel));
            let followers: Vec<usize> = followers.collect();
            assert_eq!(followers.len(), nodes, "{name}");
            let home = channels
                .first()
                .and_then(|channel| self.cluster.home(channel));
            let home = home.or(followers.first().copied());
            let all_there = followers.iter().all(|server| Some(*server) == home);
            assert!(all_there, "{name} is followed at {followers:?}");
        }
    }

    fn check_order(&self, stay: &Stay, places: &HashMap<u64, usize>) {
        let unique: HashSet<u64> = stay.seen.iter().copied().collect();
        assert_eq!(unique.len(), stay.seen.len(), "seen twice: {:?}", stay.seen);
        for node in 0..self.nodes.len() {
            // Ids count up, so that a node's order is theirs. What was refused has no place in it.
            let of_node = stay.seen.iter().filter(|id| self.published[id] == node);
            let in_log = of_node.filter(|id| places.contains_key(id));
            assert!(in_log.is_sorted(), "node {node}: {:?}", stay.seen);
        }
        let one_place = self.mode == Mode::Sharded || !self.cluster.is_cluster();
        if self.degraded == Degraded::Refuse && one_place {
            // Who missed a message the first time, link and all, gets it where it is published again.
            let once = stay
                .seen
                .iter()
                .filter(|id| !self.cluster.again.contains(id));
            let places: Vec<usize> = once.map(|id| places[id]).collect();
            assert!(places.is_sorted(), "the servers' order: {:?}", stay.seen);
        }
    }

    /// Whether the numbers of its sequence show that a message is missing: some of it was heard before, and some since.
    fn is_shown(&self, missing: &Logged, stay: &Stay) -> bool {
        let sequence = |logged: &&Logged| {
            self.published[&logged.id] == self.published[&missing.id]
                && logged.room == missing.room
                && logged.epoch == missing.epoch
        };
        let of_sequence = self.cluster.log.iter().filter(sequence);
        let heard = of_sequence.filter(|logged| stay.seen.contains(&logged.id));
        let ids: Vec<u64> = heard.map(|logged| logged.id).collect();
        ids.iter().any(|id| *id < missing.id) && ids.iter().any(|id| *id > missing.id)
    }

    fn check_complete(&self, node: usize, name: &str, stay: &Stay) {
        let seen: HashSet<u64> = stay.seen.iter().copied().collect();
        let log = self.cluster.log[stay.log_start..].iter();
        // What members here heard while Redis was away, it orders later: for who came in between it is from before.
        let heard_here = |id: u64| {
            let own = self.published[&id] == node;
            self.degraded == Degraded::Local && own && id < stay.id_start
        };
        let missing = log.filter(|logged| logged.room == name && !seen.contains(&logged.id));
        let missing = missing
            .filter(|logged| !logged.astray || self.is_shown(logged, stay))
            .map(|logged| logged.id)
            .filter(|id| !heard_here(*id));
        let missing: Vec<u64> = missing.collect();
        assert!(
            stay.unknown_told || missing.len() as u64 <= stay.missed_told,
            "{name}: missing {missing:?}, told {}",
            stay.missed_told
        );
    }
}

/// Three servers, each node naming them in its own order; of a cluster, one of them.
fn addresses(is_cluster: bool, index: usize) -> (remote::Address, Vec<remote::Address>) {
    let mut all = Vec::new();
    for offset in 0..3 {
        let server = (index + offset) % 3;
        if is_cluster {
            match Source::parse(&format!("redis-cluster://s{server}")) {
                Ok(Source::Cluster { seeds }) => all.extend(seeds),
                other => panic!("{other:?}"),
            }
        } else {
            all.push(remote::Address::parse(&format!("redis://s{server}")).unwrap());
        }
    }
    let others = all.split_off(1);
    (all.remove(0), others)
}

/// Whether a role is known, so that a new one is thought of here.
const _: () = assert!(Role::ALL.len() == 3);
