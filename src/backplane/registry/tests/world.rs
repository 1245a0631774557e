//! Several nodes around one Redis: links are cut with answers on their way, Redis loses its data, nodes stop and go on,
//! are killed and come back. When that is over, Redis knows what is true within the life of an entry.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::redis::FakeRedis;
use super::{note, options};
use crate::backplane::registry::{Command, Registry};
use crate::time::Tick;

const NODES: usize = 3;
const STEPS: usize = 600;
const USERS: [&str; 4] = ["ann", "bob", "a}b", "eve"];

/// A small generator, so that a seed is a whole story (Steele and others, SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

struct Node {
    name: String,
    incarnation: u64,
    registry: Registry,
    connections: BTreeMap<u64, &'static str>,
    next_id: u64,
    link_is_up: bool,
    on_the_way: VecDeque<Command>,
    is_stopped: bool,
    refresh_due: u64,
}

impl Node {
    fn new(name: String, incarnation: u64, now_ms: u64) -> Self {
        let mut registry = Registry::new(options(&name), incarnation, Tick::from_ms(now_ms));
        registry.set_state("{}".into(), 10);
        Self {
            name,
            incarnation,
            registry,
            connections: BTreeMap::new(),
            next_id: 1,
            link_is_up: true,
            on_the_way: VecDeque::new(),
            is_stopped: false,
            refresh_due: now_ms,
        }
    }

    /// What its shards tell: of all connections.
    fn tell_all(&mut self, now: Tick) {
        let all = self.connections.iter();
        let notes = all.map(|(id, user)| note(*id, Some(user), false)).collect();
        self.registry.note(notes, now);
    }
}

pub struct World {
    seed: u64,
    random: Random,
    now_ms: u64,
    redis: FakeRedis,
    nodes: Vec<Node>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let nodes = (0..NODES).map(|index| Node::new(format!("n{index}"), index as u64, 1_000));
        Self {
            seed,
            random: Random(seed),
            now_ms: 1_000,
            redis: FakeRedis::default(),
            nodes: nodes.collect(),
        }
    }

    pub fn run(mut self) {
        for _ in 0..STEPS {
            self.now_ms += self.random.below(60);
            self.act();
            self.turn(false);
        }
        for node in &mut self.nodes {
            node.link_is_up = true;
            node.is_stopped = false;
        }
        // Entries live for 9 s.
        self.rest(9_000);
        self.check();
        // The set of a node that died before it was on the roll is nobody's to remove: it lives twice as long.
        self.rest(10_000);
        self.check_sets();
    }

    fn rest(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        while self.now_ms < until {
            self.now_ms += 50;
            self.turn(true);
        }
    }

    fn act(&mut self) {
        let index = self.random.below(NODES as u64) as usize;
        let now = Tick::from_ms(self.now_ms);
        let choice = self.random.below(100);
        let user = USERS[self.random.below(4) as usize];
        let pick = self.random.below(1_000) as usize;
        let node = &mut self.nodes[index];
        match choice {
            0..40 if !node.is_stopped => {
                let id = node.next_id;
                node.next_id += 1;
                node.connections.insert(id, user);
                node.registry.note(vec![note(id, Some(user), false)], now);
            }
            40..70 if !node.is_stopped && !node.connections.is_empty() => {
                let ids: Vec<u64> = node.connections.keys().copied().collect();
                let id = ids[pick % ids.len()];
                let user = node.connections.remove(&id).unwrap();
                node.registry.note(vec![note(id, Some(user), true)], now);
            }
            70..74 => self.cut(index),
            74..80 => node.link_is_up = true,
            80 => self.redis.lose_all(),
            81 | 82 => node.is_stopped = true,
            83..87 => node.is_stopped = false,
            87 => {
                let (name, incarnation) = (node.name.clone(), node.incarnation + 100);
                *node = Node::new(name, incarnation, self.now_ms);
            }
            88..90 => self.now_ms += 1_000,
            _ => {}
        }
    }

    /// The link goes; of what was on its way Redis has carried out some, and nobody hears how much.
    fn cut(&mut self, index: usize) {
        let now = Tick::from_ms(self.now_ms);
        let node = &mut self.nodes[index];
        if node.is_stopped {
            return;
        }
        node.link_is_up = false;
        let carried_out = self.random.below(node.on_the_way.len() as u64 + 1) as usize;
        self.redis.now_ms = self.now_ms;
        for (place, command) in std::mem::take(&mut node.on_the_way).into_iter().enumerate() {
            if place < carried_out {
                self.redis.command(&command.words);
            }
            node.registry.answered(command.ticket, None, now);
        }
    }

    fn turn(&mut self, all: bool) {
        let now = Tick::from_ms(self.now_ms);
        self.redis.now_ms = self.now_ms;
        for node in &mut self.nodes {
            if node.is_stopped {
                continue;
            }
            if node.refresh_due <= self.now_ms {
                node.refresh_due = self.now_ms + 3_000;
                node.tell_all(now);
            }
            node.registry.handle_deadline(now);
            if node.registry.poll_announce().is_some() {
                node.tell_all(now);
            }
            loop {
                while let Some(command) = node.registry.poll_command() {
                    if node.link_is_up {
                        node.on_the_way.push_back(command);
                    } else {
                        node.registry.answered(command.ticket, None, now);
                    }
                }
                if !all && self.random.below(3) == 0 {
                    break;
                }
                let Some(command) = node.on_the_way.pop_front() else {
                    break;
                };
                let reply = self.redis.command(&command.words);
                node.registry.answered(command.ticket, Some(reply), now);
            }
            node.registry.check_invariants();
        }
    }

    /// Who is connected where: node, incarnation, connection.
    fn truth(&self) -> BTreeSet<(String, u64, u64)> {
        let of_node = |node: &Node| {
            let (name, incarnation) = (node.name.clone(), node.incarnation);
            let ids: Vec<u64> = node.connections.keys().copied().collect();
            ids.into_iter()
                .map(move |id| (name.clone(), incarnation, id))
        };
        self.nodes.iter().flat_map(of_node).collect()
    }

    fn check(&mut self) {
        let (seed, truth) = (self.seed, self.truth());
        assert_eq!(self.redis.connections(), truth, "seed {seed}");
        for node in &self.nodes {
            let snapshot = node.registry.snapshot(Tick::from_ms(self.now_ms));
            assert!(snapshot.up && snapshot.queued == 0, "seed {seed}");
            assert_eq!(snapshot.nodes, NODES as u64, "seed {seed}");
        }
    }

    fn check_sets(&mut self) {
        let (seed, truth) = (self.seed, self.truth());
        assert_eq!(self.redis.connections(), truth, "seed {seed}");
        // Who died while it removed another has left a claim that holds for 10 s.
        assert_eq!(self.redis.roll(), ["n0", "n1", "n2"], "seed {seed}");
        let enrolled = self.redis.enrolled();
        let count: usize = enrolled.iter().map(|(_, members)| members.len()).sum();
        assert_eq!(count, truth.len(), "seed {seed}: {enrolled:?}");
    }
}
