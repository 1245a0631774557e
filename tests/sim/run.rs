//! The phases of a run: faults, rest, the end.

use std::collections::HashSet;
use std::time::Duration;

use throng::bus::DrainOrder;
use throng::protocol::OpCode;
use throng::shard::Presence;

use crate::client::Phase;
use crate::oracle;
use crate::world::World;

/// Rounds in which a node without faults has to come to rest.
const REST_ROUND_COUNT_MAX: usize = 3_000;

pub struct Run {
    pub step: usize,
    pub phase: &'static str,
    world: World,
    idle_bytes: u64,
    identity_bytes: u64,
}

impl Run {
    pub fn new(seed: u64) -> Self {
        Self {
            step: 0,
            phase: "faults",
            world: World::new(seed),
            idle_bytes: idle_bytes(""),
            identity_bytes: idle_bytes("?user=ann") - idle_bytes(""),
        }
    }

    pub const fn trace(&self) -> u64 {
        self.world.trace
    }

    pub fn all(&mut self) {
        for _ in 0..self.world.plan.step_count {
            self.step += 1;
            self.fault_step();
        }
        self.phase = "rest";
        self.calm();
        self.rest();
        oracle::check_deliveries(&self.world);
        self.phase = "idle";
        self.idle();
        self.phase = "end";
        if self.world.random.one_in(2) {
            self.drain();
        } else {
            self.everybody_leaves();
        }
        self.check_empty();
        oracle::check_one_order(&self.world);
        oracle::check_nothing_old(&self.world);
    }

    fn fault_step(&mut self) {
        let world = &mut self.world;
        let shard = world.random.below(world.shards.len());
        match world.random.below(100) {
            0..30 => world.shard_turn(shard, false),
            30..45 => {
                let take_max = world.random.below(6);
                world.backplane_turn(take_max);
            }
            45..60 => world.carry(shard, false),
            60..66 => world.connect(),
            66..92 => self.client_step(),
            92..95 => world.admin_publish(),
            95 if world.random.one_in(6) => world.admin_disconnect(),
            95 if world.random.one_in(3) => world.announce(),
            95 => world.ask(),
            _ => {
                let us = match world.random.below(60) {
                    0 => 5_000_000,
                    1..5 => 700_000,
                    5..20 => 90_000,
                    _ => 1_500,
                };
                world.pass(Duration::from_micros(us));
            }
        }
    }

    /// A client does something, wise or not.
    fn client_step(&mut self) {
        let world = &mut self.world;
        if world.clients.is_empty() {
            return;
        }
        let index = world.random.below(world.clients.len());
        let client = &mut world.clients[index];
        if client.phase == Phase::Gone || client.ending.is_some() || client.closes {
            return;
        }
        let random = &mut world.random;
        match random.below(60) {
            0 => {
                client.is_faulty = true;
                let opcode = *random.pick(&[OpCode::Continuation, OpCode::Text]);
                client.frame(true, opcode, &[0xff, 0xfe], random);
            }
            1 => {
                client.is_faulty = true;
                let mut noise: Vec<u8> = (0..random.between(1, 40))
                    .map(|_| random.next() as u8)
                    .collect();
                // A reserved bit: else it could be a good frame by chance, and would have to be answered or delivered.
                noise[0] |= 0x40;
                client.outgoing.extend(noise);
            }
            2 => {
                client.is_faulty = true;
                let bytes = vec![0; world.plan.filler_bytes_max + 100];
                client.frame(true, OpCode::Binary, &bytes, random);
            }
            3 => client.close(random),
            4 | 5 => {
                // Half-closed, or reset; what it sent last may be lost with a reset.
                let broken = random.one_in(2);
                client.ending = Some(broken);
                client.leave();
                if broken && random.one_in(2) {
                    let keep = random.below(client.outgoing.len() + 1);
                    client.outgoing.truncate(keep);
                }
            }
            6..9 => client.reads = false,
            9..14 => client.reads = true,
            14..17 => client.ping(random),
            _ => {
                for _ in 0..*world.random.pick(&[1, 1, 1, 2, 12]) {
                    world.publish(index);
                }
            }
        }
    }

    /// No faults any more: everybody reads, and every room can be followed.
    fn calm(&mut self) {
        self.world.refuses = false;
        for client in &mut self.world.clients {
            client.reads = true;
            if client.is_faulty && client.phase != Phase::Gone {
                client.ending = Some(true);
                client.leave();
            }
        }
    }

    fn round(&mut self, time: Duration) {
        self.step += 1;
        self.world.pass(time);
        for shard in 0..self.world.shards.len() {
            self.world.shard_turn(shard, true);
            self.world.carry(shard, true);
        }
        self.world.backplane_turn(usize::MAX);
    }

    /// Everything comes to rest.
    fn rest(&mut self) {
        for _ in 0..REST_ROUND_COUNT_MAX {
            if self.world.is_quiet() {
                return;
            }
            self.round(Duration::from_millis(2));
        }
        panic!("something waits for ever: {}", self.world.unrest());
    }

    /// Time passes, and nothing else: whoever answers pings stays, and what is held is exactly what idle members cost.
    fn idle(&mut self) {
        let live = self.world.live().count();
        for _ in 0..140 {
            self.round(Duration::from_millis(50));
        }
        self.rest();
        assert_eq!(self.world.live().count(), live, "nobody who lives is cut");
        for (shard, sockets) in self.world.shards.iter().zip(&self.world.sockets) {
            let gauges = shard.snapshot().gauges;
            assert_eq!(gauges.sockets_open, sockets.len() as u64);
            assert_eq!(gauges.queued_bytes, 0);
            let sockets = sockets.values();
            let of_users =
                sockets.filter(|socket| self.world.clients[socket.client].user.is_some());
            let identity_bytes = self.identity_bytes * of_users.count() as u64;
            assert_eq!(
                gauges.ledger_bytes,
                self.idle_bytes * gauges.sockets_open + identity_bytes,
                "idle connections hold nothing but themselves: {gauges:?}"
            );
        }
        self.check_present();
        assert_eq!(self.world.node.connection_count() as usize, live);
        assert_eq!(self.world.questions_open, 0);
    }

    /// The registry knows whoever it is to know, and nobody else.
    fn check_present(&self) {
        let world = &self.world;
        for (shard, present) in world.present.iter().enumerate() {
            let live = world.live().filter(|(_, client)| client.shard == shard);
            let expected = match world.plan.options.presence {
                Presence::Off => 0,
                Presence::Users => live.filter(|(_, client)| client.user.is_some()).count(),
                Presence::All => live.count(),
            };
            assert_eq!(present.len(), expected, "who is present on shard {shard}");
        }
    }

    fn everybody_leaves(&mut self) {
        let world = &mut self.world;
        for client in &mut world.clients {
            client.ending.get_or_insert(false);
            client.leave();
        }
        self.rest();
        self.tell_the_rest();
    }

    /// Notes for the registry may have waited for the lane, one by one where it is short.
    fn tell_the_rest(&mut self) {
        for _ in 0..REST_ROUND_COUNT_MAX {
            if self.world.present.iter().all(HashSet::is_empty) {
                return;
            }
            self.round(Duration::from_millis(2));
        }
        panic!("the registry is not told of who has gone");
    }

    /// The node stops: whoever is there is told, evenly over the window, and all is over by the deadline.
    fn drain(&mut self) {
        let window_ms = *self.world.random.pick(&[0, 300, 2_000]);
        let notice = self.world.random.one_in(2);
        self.world.order_drain(DrainOrder::NotReady);
        for _ in 0..self.world.random.below(3) {
            self.world.connect();
        }
        let live: Vec<usize> = self.world.live().map(|(index, _)| index).collect();
        for index in &live {
            self.world.clients[*index].frozen = self.world.random.one_in(8);
        }
        self.world
            .order_drain(DrainOrder::Close { window_ms, notice });
        for _ in 0..(window_ms / 50 + 30) {
            if self.world.random.one_in(20) {
                self.world.connect();
            }
            self.round(Duration::from_millis(50));
        }
        for index in live {
            let client = &self.world.clients[index];
            if client.frozen {
                continue;
            }
            assert_eq!(client.close_code, Some(1012), "client {index} was told why");
            assert_eq!(client.told_to_reconnect, notice && client.notices);
        }
        self.world.order_drain(DrainOrder::Cut);
        for _ in 0..10 {
            self.round(Duration::from_millis(50));
        }
        self.tell_the_rest();
        assert!(
            self.world.drained.iter().all(|drained| *drained),
            "a drain ends"
        );
        assert!(
            self.world
                .shards
                .iter()
                .all(throng::shard::Shard::is_drained)
        );
    }

    /// Nobody is there, and nothing is held.
    fn check_empty(&mut self) {
        let world = &self.world;
        for sockets in &world.sockets {
            assert!(sockets.is_empty(), "sockets are left: {sockets:?}");
        }
        for shard in &world.shards {
            let gauges = shard.snapshot().gauges;
            assert_eq!((gauges.ledger_bytes, gauges.sockets_open), (0, 0));
            assert_eq!((gauges.rooms, gauges.connections_open), (0, 0));
            assert_eq!(gauges.users, 0);
        }
        assert_eq!(world.node.connection_count(), 0);
        if let Some(backplane) = &world.backplane {
            let snapshot = backplane.snapshot(world.now);
            assert_eq!((snapshot.rooms, snapshot.rooms_leased), (0, 0));
            assert_eq!(snapshot.users, 0);
        }
        let shard_count = world.shards.len() as u64;
        assert!(world.node.reserved_bytes() <= shard_count << 21);
        self.world.shards.clear();
        assert_eq!(self.world.node.reserved_bytes(), 0);
    }
}

/// What one idle connection with this query costs, measured.
fn idle_bytes(query: &str) -> u64 {
    use std::sync::Arc;
    use throng::bus::CoreId;
    use throng::protocol::client::{encode_key, encode_request};
    use throng::shard::{Action, Delivery, Input, Node, Shard};
    use throng::time::Tick;
    let options = crate::plan::Plan::draw(&mut crate::random::Random::new(0)).options;
    let node = Arc::new(Node::new(1, 1, 1 << 30, 0, 0));
    let mut shard = Shard::new(CoreId(0), options, Delivery::Inline, node, 0, Tick(0));
    let peer = ([10, 0, 0, 1], 1).into();
    shard.handle(Input::Opened { index: 0, peer }, Tick(0));
    let mut request = Vec::new();
    let path = format!("/rooms/room{query}");
    encode_request(&mut request, "throng.test", &path, &encode_key([1, 2]));
    let (index, bytes) = (0, &request[..]);
    shard.handle(Input::Received { index, bytes }, Tick(0));
    shard.end_turn(Tick(0));
    let mut sent_bytes = 0;
    while let Some(action) = shard.poll_action() {
        if let Action::Send { pieces, .. } = action {
            sent_bytes += pieces.iter().map(|piece| piece.byte_count()).sum::<u32>();
        }
    }
    let (bytes, done) = (sent_bytes, true);
    shard.handle(Input::Written { index, bytes, done }, Tick(0));
    shard.end_turn(Tick(0));
    assert!(shard.poll_action().is_none());
    shard.snapshot().gauges.ledger_bytes
}
