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

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use throng::backplane::remote::{self, Degraded, Mode, Role, Source};
use throng::backplane::{Backplane, Options};
use throng::bus::Upstream;
use throng::time::Tick;

use super::log::Logged;
use super::nodes::{HEAL_US, Node, Nodes, Stay, check_told};
use super::random::Random;
use super::redis_cluster::Cluster;

const ROOMS: [&str; 6] = ["one", "two", "three", "four", "five", "six"];
const STEPS: usize = 1_200;
/// Each node has one.
const SHARD: usize = 0;

pub struct World {
    nodes: Nodes<Cluster>,
    pub step: usize,
    mode: Mode,
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
                let backplane = Backplane::with_redis(options, redis, random.next(), Tick(0));
                Node::new(backplane, SHARD + 1)
            })
            .collect();
        Self {
            nodes: Nodes::new(cluster, random, nodes, degraded),
            step: 0,
            mode,
            moves: 0,
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
            self.nodes.pump(8);
        }
        self.heal();
        self.check();
    }

    // --- what happens -----------------------------------------------------------------------------------------------

    fn act(&mut self) {
        let nodes = &mut self.nodes;
        let node = nodes.random.below(nodes.all.len());
        let room = *nodes.random.pick(&ROOMS);
        match nodes.random.below(100) {
            0..20 => nodes.join(node, SHARD, room),
            20..26 => nodes.leave(node, SHARD, room),
            26..88 => self.publish(node, room),
            88..90 => nodes.now = nodes.now.after(Duration::from_secs(1)),
            _ => self.fault(),
        }
    }

    fn fault(&mut self) {
        let Nodes {
            servers: cluster,
            random,
            ..
        } = &mut self.nodes;
        let pipes = cluster.pipes.ids();
        let server = random.below(cluster.server_count());
        match random.below(14) {
            0 if !pipes.is_empty() => cluster.pipes.end(*random.pick(&pipes)),
            1 => {
                cluster.go_down(server);
                self.moves += 1;
            }
            2 => cluster.stop(server, true),
            3..5 => cluster.stop(server, false),
            5..7 => cluster.come_up(server),
            7 | 8 if cluster.is_cluster() => cluster.fail_over(random.below(6)),
            9..11 if cluster.is_cluster() => {
                let room = *random.pick(&ROOMS);
                if let Some(channel) = cluster.channels_of(room).first() {
                    cluster.move_slot(remote::placement::slot_of(channel), server);
                    self.moves += 1;
                }
            }
            _ if cluster.is_cluster() => cluster.hear_of_all(server),
            _ => {}
        }
    }

    /// Anybody's messages, a member or not.
    fn publish(&mut self, node: usize, name: &'static str) {
        let (room, batch) = self.nodes.batch(node, name);
        self.nodes.all[node].up[SHARD].push_back(Upstream::Publish { room, batch });
    }

    /// No more faults: everything comes to rest, then everybody publishes once more, so that holes are seen.
    fn heal(&mut self) {
        self.nodes.servers.heal();
        self.nodes.rest(HEAL_US);
        for node in 0..self.nodes.all.len() {
            for name in ROOMS {
                self.publish(node, name);
            }
        }
        self.nodes.rest(HEAL_US / 10);
    }

    // --- what must hold ---------------------------------------------------------------------------------------------

    fn check(&mut self) {
        self.nodes.check_rest();
        self.check_followers();
        let log = &self.nodes.servers.log;
        let logged: HashSet<u64> = log.messages.iter().map(|logged| logged.id).collect();
        for id in self.nodes.published.keys() {
            let known = logged.contains(id) || self.nodes.refused.contains(id);
            assert!(known, "{id} was neither published nor refused");
        }
        if self.mode == Mode::Streams {
            self.check_kept();
        }
        let places = log.places();
        for stay in self.nodes.stays() {
            self.check_order(stay, &places);
        }
        for (node, name, stay) in self.nodes.members() {
            self.check_complete(node, name, stay);
        }
    }

    /// What was published, and nobody was told otherwise, is kept where its room is.
    fn check_kept(&self) {
        let kept = self.nodes.servers.kept();
        let log = self.nodes.servers.log.messages.iter();
        let gone = log.filter(|logged| !logged.astray && !kept.contains(&logged.id));
        let gone = gone.map(|logged| logged.id);
        let refused = &self.nodes.refused;
        let gone: Vec<u64> = gone.filter(|id| !refused.contains(id)).collect();
        assert!(gone.is_empty(), "{gone:?} were acknowledged, and are gone");
    }

    fn check_followers(&self) {
        let cluster = &self.nodes.servers;
        for name in ROOMS {
            let nodes = self.nodes.follower_count(name);
            let channels = cluster.channels_of(name);
            assert!(channels.len() <= 1, "{name} has one name");
            let followers = channels
                .iter()
                .flat_map(|channel| cluster.followers(channel));
            let followers: Vec<usize> = followers.collect();
            assert_eq!(followers.len(), nodes, "{name}");
            let home = channels.first().and_then(|channel| cluster.home(channel));
            let home = home.or(followers.first().copied());
            let all_there = followers.iter().all(|server| Some(*server) == home);
            assert!(all_there, "{name} is followed at {followers:?}");
        }
    }

    fn check_order(&self, stay: &Stay, places: &HashMap<u64, usize>) {
        let has_one_order = self.mode == Mode::Sharded || !self.nodes.servers.is_cluster();
        self.nodes.check_order(stay, places, has_one_order);
        for node in 0..self.nodes.all.len() {
            // Ids count up, so that a node's order is theirs. What was refused has no place in it.
            let of_node = stay.seen.iter();
            let of_node = of_node.filter(|id| self.nodes.published[id].0 == node);
            let in_log = of_node.filter(|id| places.contains_key(id));
            assert!(in_log.is_sorted(), "node {node}: {:?}", stay.seen);
        }
    }

    /// Whether the numbers of its sequence show that a message is missing: some of it was heard before, and some since.
    fn is_shown(&self, missing: &Logged, stay: &Stay) -> bool {
        let publisher = |id| self.nodes.published[&id].0;
        let sequence = |logged: &&Logged| {
            publisher(logged.id) == publisher(missing.id)
                && logged.room == missing.room
                && logged.epoch == missing.epoch
        };
        let of_sequence = self.nodes.servers.log.messages.iter().filter(sequence);
        let heard = of_sequence.filter(|logged| stay.seen.contains(&logged.id));
        let ids: Vec<u64> = heard.map(|logged| logged.id).collect();
        ids.iter().any(|id| *id < missing.id) && ids.iter().any(|id| *id > missing.id)
    }

    fn check_complete(&self, node: usize, name: &str, stay: &Stay) {
        let seen: HashSet<u64> = stay.seen.iter().copied().collect();
        let log = self.nodes.servers.log.messages[stay.log_start..].iter();
        let missing = log.filter(|logged| logged.room == name && !seen.contains(&logged.id));
        let missing = missing
            .filter(|logged| !logged.astray || self.is_shown(logged, stay))
            .map(|logged| logged.id)
            .filter(|id| !self.nodes.was_heard_before(*id, node, stay));
        let missing: Vec<u64> = missing.collect();
        check_told(name, stay, &missing);
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
