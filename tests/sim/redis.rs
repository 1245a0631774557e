//! Several backplanes around a scripted Redis: links are cut, stalled, half open, pushes are lost, Redis restarts.
//!
//! Safety: nobody sees a message twice; what a node publishes is seen in its order, and with `refuse` all see Redis'
//! order, what was published again after a lost link apart. Liveness, once the faults have stopped: every link works, every interest is answered, Redis' subscriptions are
//! the rooms that have members; every message that was not refused to its publisher has reached Redis, and every member
//! has seen all that Redis had since it joined, or was told of at least as many as are missing. With streams that does not
//! hold for what a replica lacked, or a lost Redis, if its publisher had not heard of it before and gave it up: then the
//! publisher was told, or it was counted (PROTOCOL, §5: a publish that was answered with 202 may still expire).

use std::collections::{BTreeSet, HashMap, HashSet};

use throng::backplane::remote::{self, Address, Degraded, Mode};
use throng::backplane::{Backplane, Options};
use throng::bus::{EVERYBODY, Upstream};
use throng::time::Tick;

use super::log::ids;
use super::nodes::{HEAL_US, Node, Nodes, Stay, Wires, check_told};
use super::random::Random;
use super::redis_server::{Server, channel_of};

/// Two rooms, and the hidden ones of a user and of everybody: to the backplane there is no difference.
const ROOMS: [&str; 4] = ["one", "two", "\u{1}ann", EVERYBODY];
const STEPS: usize = 1_500;

pub struct World {
    nodes: Nodes<Server>,
    pub step: usize,
    mode: Mode,
    /// Redis has lost all it had, once at least.
    data_lost: bool,
    /// The admin API's: what it was told is taken may expire later, which is only counted.
    accepted: HashSet<u64>,
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
                let backplane = Backplane::with_redis(options, redis, random.next(), Tick(0));
                Node::new(backplane, shard_count)
            })
            .collect();
        Self {
            nodes: Nodes::new(Server::default(), random, nodes, degraded),
            step: 0,
            mode,
            data_lost: false,
            accepted: HashSet::new(),
        }
    }

    /// A digest of all that was seen.
    pub fn trace(&self) -> u64 {
        self.nodes.trace
    }

    pub fn all(&mut self) {
        for step in 0..STEPS {
            self.step = step;
            self.nodes.pass();
            self.act();
            self.nodes.pump(6);
        }
        self.heal();
        self.check();
    }

    // --- what happens -----------------------------------------------------------------------------------------------

    fn act(&mut self) {
        let nodes = &mut self.nodes;
        let node = nodes.random.below(nodes.all.len());
        let shard = nodes.random.below(nodes.all[node].shards.len());
        let room = *nodes.random.pick(&ROOMS);
        match nodes.random.below(100) {
            0..20 => nodes.join(node, shard, room),
            20..28 => nodes.leave(node, shard, room),
            28..80 => self.publish_member(node, shard, room),
            80..88 => self.publish_api(node, room),
            88..90 => nodes.now = nodes.now.after(std::time::Duration::from_secs(1)),
            _ => self.fault(),
        }
    }

    fn fault(&mut self) {
        let Nodes {
            servers: server,
            random,
            ..
        } = &mut self.nodes;
        let pipes = server.pipes.ids();
        match random.below(12) {
            0 | 1 if !pipes.is_empty() => server.pipes.end(*random.pick(&pipes)),
            2 if !pipes.is_empty() => server.pipes.at(*random.pick(&pipes)).half_open = true,
            3 => server.pushes_to_lose = random.between(1, 4),
            4 => self.restart(),
            5..7 => server.is_down = false,
            7 => server.is_stopped = true,
            _ => server.is_stopped = false,
        }
    }

    /// Redis dies. What comes back has what it had, or a little less, or nothing.
    fn restart(&mut self) {
        let Nodes {
            servers: server,
            random,
            ..
        } = &mut self.nodes;
        server.restart_begins();
        match random.below(8) {
            0 => {
                server.kept.lose();
                self.data_lost = true;
            }
            1..4 => server.kept.restart(),
            _ => server.kept.fail_over(random.below(6)),
        }
    }

    fn publish_member(&mut self, node: usize, shard: usize, name: &'static str) {
        let room = self.nodes.all[node].shards[shard].get(name);
        if room.is_some_and(|room| room.stay.is_some()) {
            let (room, batch) = self.nodes.batch(node, name);
            self.nodes.all[node].up[shard].push_back(Upstream::Publish { room, batch });
        }
    }

    fn publish_api(&mut self, node: usize, name: &'static str) {
        let (room, batch) = self.nodes.batch(node, name);
        let now = self.nodes.now;
        let Node {
            backplane,
            up,
            down,
            ..
        } = &mut self.nodes.all[node];
        match backplane.publish(&room, &batch, &Wires { up, down }, now) {
            Ok(()) => self.accepted.extend(ids(&batch)),
            Err(_) => self.nodes.refused.extend(ids(&batch)),
        }
    }

    /// No more faults: everything comes to rest, then everybody publishes once more, so that holes are seen.
    fn heal(&mut self) {
        let server = &mut self.nodes.servers;
        server.is_down = false;
        server.is_stopped = false;
        server.pushes_to_lose = 0;
        for pipe in server.pipes.by_id.values_mut() {
            pipe.ended |= std::mem::take(&mut pipe.half_open);
        }
        self.nodes.rest(HEAL_US);
        for node in 0..self.nodes.all.len() {
            for name in ROOMS {
                self.publish_api(node, name);
            }
        }
        self.nodes.rest(HEAL_US / 10);
    }

    // --- what must hold ---------------------------------------------------------------------------------------------

    fn check(&mut self) {
        self.nodes.check_rest();
        let server = &self.nodes.servers;
        for name in ROOMS {
            let followers = self.nodes.follower_count(name);
            assert_eq!(server.subscribers(channel_of(name)), followers, "{name}");
        }
        let logged: BTreeSet<u64> = server.log.messages.iter().map(|logged| logged.id).collect();
        for id in self.nodes.published.keys() {
            let known = [&self.nodes.refused, &self.accepted];
            assert!(
                logged.contains(id) || known.iter().any(|known| known.contains(id)),
                "{id} was neither published nor refused"
            );
        }
        let expired = self.accepted.iter().filter(|id| !logged.contains(id));
        assert!(
            expired.count() as u64 <= self.refused_count(),
            "what expires is counted"
        );
        let places = server.log.places();
        for stay in self.nodes.stays() {
            self.check_order(stay, &places);
        }
        for (node, name, stay) in self.nodes.members() {
            self.check_complete(node, name, stay);
        }
    }

    /// Messages that nodes have counted as refused.
    fn refused_count(&self) -> u64 {
        let nodes = self.nodes.all.iter();
        let snapshots = nodes.map(|node| node.backplane.snapshot(self.nodes.now));
        snapshots
            .map(|snapshot| snapshot.redis.messages_refused)
            .sum()
    }

    fn check_order(&self, stay: &Stay, places: &HashMap<u64, usize>) {
        self.nodes.check_order(stay, places, true);
        for node in 0..self.nodes.all.len() {
            // Ids count up, so that a node's order is theirs, one shard at a time; shards take turns within a node.
            let of_node = stay.seen.iter();
            let of_node = of_node.filter(|id| self.nodes.published[id].0 == node);
            let of_node: Vec<usize> = of_node.filter_map(|id| places.get(id).copied()).collect();
            assert!(of_node.is_sorted(), "node {node}'s order: {:?}", stay.seen);
        }
    }

    fn check_complete(&self, node: usize, name: &str, stay: &Stay) {
        let seen: HashSet<u64> = stay.seen.iter().copied().collect();
        let (nodes, server) = (&self.nodes, &self.nodes.servers);
        let log = &server.log.messages[stay.log_start..];
        let missing = log
            .iter()
            .filter(|logged| logged.room == name && !seen.contains(&logged.id));
        // A push that Redis loses before anything of its node was heard is a thing that no sequence shows.
        let unheard = |id: u64| {
            let node = nodes.published[&id].0;
            let earlier = log.iter().take_while(|logged| logged.id != id);
            let mut of_node = earlier.filter(|logged| nodes.published[&logged.id].0 == node);
            !of_node.any(|logged| seen.contains(&logged.id))
        };
        let missing = missing.map(|logged| logged.id);
        let missing = missing.filter(|id| !nodes.was_heard_before(*id, node, stay));
        let is_kept = self.mode == Mode::Streams && !self.data_lost;
        let excused = |id: u64| server.lost.contains(&id) && unheard(id);
        let missing = missing.filter(|id| is_kept || !excused(*id));
        // What Redis had and has lost before its publisher heard of it: that has given it up, and said so or counted it.
        let keeps = self.mode == Mode::Streams;
        let (missing, given_up): (Vec<u64>, Vec<u64>) = missing
            .partition(|id| !keeps || !nodes.refused.contains(id) && !self.accepted.contains(id));
        let silent = given_up.iter().filter(|id| !nodes.refused.contains(id));
        assert!(
            silent.count() as u64 <= self.refused_count(),
            "{name}: {given_up:?}, what expires is counted"
        );
        if is_kept {
            assert!(missing.is_empty(), "{name}: {missing:?} were kept");
            assert!(!stay.unknown_told, "{name}: nothing is unknown");
        }
        check_told(name, stay, &missing);
    }
}
