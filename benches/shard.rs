//! What the shard costs without its sockets: fan-outs, an echo, a join, the ledger, the heartbeat sweep. Run:
//! `cargo bench --bench shard`.
//!
//! The engine here does everything at once and for nothing, so what is measured is the shard's own bookkeeping. The floors
//! are plain walks over a `Vec<u64>` with one number for each member or connection.

use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use throng::bus::{
    Batch, BatchMessage, CoreId, Downstream, EVERYBODY, MessageKind, RoomName, user_room,
};
use throng::protocol::client::encode_request;
use throng::protocol::handshake::Edge;
use throng::protocol::{
    Encoded, Meter, OpCode, encode_client_header, encode_header, unmask_extend,
};
use throng::shard::{Action, Delivery, HeartbeatMode, Input, Node, Options, Presence, Shard};
use throng::time::Tick;

/// The server's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Between two sweeps of the shard.
const TICK_US: u64 = 100_000;
const PING_INTERVAL_MS: u32 = 25_000;
/// Sweeps in which every connection is held against its timeouts once.
const CHECK_ROUND_TICKS: u32 = 10;

fn options() -> Options {
    Options {
        connection_count_max: 1_000_000,
        address_connection_count_max: 0,
        user_connection_count_max: 0,
        presence: Presence::Off,
        presence_refresh_ms: 20_000,
        room_count_max: 1_000_000,
        handshakes_per_s_max: 0,
        message_bytes_max: 64 * 1024,
        message_fragment_count_max: 1_000,
        connection_queue_bytes_max: 64 * 1024,
        shard_bytes_max: 1 << 30,
        node_bytes_max: 1 << 31,
        messages_per_s_max: 0,
        message_bytes_per_s_max: 0,
        heartbeat: HeartbeatMode::Ping,
        ping_interval_ms: PING_INTERVAL_MS,
        pong_timeout_ms: 1_000_000_000,
        idle_timeout_ms: 0,
        message_timeout_ms: 30_000,
        write_stall_timeout_ms: 30_000,
        handshake_timeout_ms: 5_000,
        join_timeout_ms: 0,
        close_timeout_ms: 5_000,
        handshake_bytes_max: 8_192,
        handshake_header_count_max: 64,
        origins: Vec::new(),
        edge: Edge::default(),
        retry_after_s: 5,
        reconnect_after_ms: 1_000,
        rooms: Vec::new(),
    }
}

/// A shard whose engine does everything at once.
struct World {
    shard: Shard,
    now: Tick,
    /// Sends of the last turn: token and bytes.
    sent: Vec<(u32, u32)>,
}

impl World {
    fn new(options: Options) -> Self {
        let node = Arc::new(Node::new(1, 1_000_000, 1 << 31, 0, 1));
        Self {
            shard: Shard::new(CoreId(0), options, Delivery::Inline, node, 1, Tick(0)),
            now: Tick(0),
            sent: Vec::new(),
        }
    }

    fn with_members(count: u32, room: impl Fn(u32) -> String) -> Self {
        Self::with_options(options(), count, room)
    }

    fn with_options(options: Options, count: u32, room: impl Fn(u32) -> String) -> Self {
        let mut world = Self::new(options);
        for index in 0..count {
            world.join(index, &room(index));
            if index % 1_000 == 999 {
                world.turn();
            }
        }
        world.turn();
        assert_eq!(world.shard.counters().upgraded, u64::from(count));
        world
    }

    fn join(&mut self, index: u32, path: &str) {
        let peer = ([10, 0, 0, 1], 4_000).into();
        self.shard.handle(Input::Opened { index, peer }, self.now);
        let mut request = Vec::new();
        encode_request(&mut request, "a", path, b"dGhlIHNhbXBsZSBub25jZQ==");
        self.receive(index, &request);
    }

    fn receive(&mut self, index: u32, bytes: &[u8]) {
        self.shard
            .handle(Input::Received { index, bytes }, self.now);
    }

    /// A message of the admin API.
    fn publish(&mut self, room: &str, batch: &Arc<Batch>) {
        let (room, batch) = (RoomName::from(room), Arc::clone(batch));
        let envelope = Downstream::Publish { room, batch };
        self.shard.handle(Input::Downstream(envelope), self.now);
    }

    /// Ends the turn, and reports every send as written. Leaves in `sent` whom they went to.
    fn turn(&mut self) {
        self.sent.clear();
        self.shard.end_turn(self.now);
        self.perform();
        self.written(0);
    }

    /// Puts what the shard wants sent behind `sent`.
    fn perform(&mut self) {
        while let Some(action) = self.shard.poll_action() {
            match action {
                Action::FanOut { encoded, targets } => {
                    let bytes = u32::try_from(encoded.bytes().len()).unwrap();
                    self.sent
                        .extend(targets.iter().map(|&index| (index, bytes)));
                }
                Action::Send { index, pieces } => {
                    let bytes = pieces.iter().map(throng::protocol::Piece::byte_count).sum();
                    self.sent.push((index, bytes));
                }
                other => _ = black_box(other),
            }
        }
    }

    /// Reports the sends from number `first` on as written.
    fn written(&mut self, first: usize) {
        for &(index, bytes) in &self.sent[first..] {
            let done = true;
            self.shard
                .handle(Input::Written { index, bytes, done }, self.now);
        }
    }
}

fn frame(opcode: OpCode, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let mask = [1, 2, 3, 4];
    encode_client_header(&mut frame, true, opcode, payload.len(), mask);
    unmask_extend(&mut frame, payload, mask, 0);
    frame
}

fn message(payload_bytes: usize) -> Vec<u8> {
    frame(OpCode::Text, &vec![b'x'; payload_bytes])
}

/// A message of the admin API.
fn batch(payload_bytes: usize) -> Arc<Batch> {
    let mut bytes = Vec::new();
    let header_bytes = encode_header(&mut bytes, true, OpCode::Binary, payload_bytes);
    bytes.resize(bytes.len() + payload_bytes, 7);
    let message = BatchMessage {
        end: u32::try_from(bytes.len()).unwrap(),
        header_bytes,
        kind: MessageKind::Binary,
        sender: None,
    };
    Arc::new(Batch {
        bytes,
        messages: vec![message],
        published: Tick(0),
    })
}

/// One message to everybody in rooms of several shapes.
fn fan_out(c: &mut Criterion) {
    const MEMBERS: u32 = 5_000;
    let mut group = c.benchmark_group("shard/fan_out");
    let frame = message(128);
    let mut world = World::with_members(MEMBERS, |_| "/rooms/all".to_owned());
    group.throughput(Throughput::Elements(MEMBERS.into()));
    group.bench_function("5000_members_128_bytes", |b| {
        b.iter(|| {
            world.receive(0, black_box(&frame));
            world.turn();
        });
        assert_eq!(world.sent.len(), MEMBERS as usize);
    });

    group.throughput(Throughput::Elements(2 * u64::from(MEMBERS)));
    group.bench_function("5000_members_every_second_message_queued", |b| {
        b.iter(|| {
            world.sent.clear();
            // The first is still on its way to everybody when the second comes, which waits in all the queues.
            for _ in 0..2 {
                world.receive(0, black_box(&frame));
                world.shard.end_turn(world.now);
                world.perform();
            }
            world.written(0);
            world.shard.end_turn(world.now);
            world.perform();
            world.written(MEMBERS as usize);
        });
        assert_eq!(world.sent.len(), 2 * MEMBERS as usize);
    });

    let mut world = World::with_members(MEMBERS, |index| format!("/rooms/{}", index / 10));
    group.throughput(Throughput::Elements(MEMBERS.into()));
    group.bench_function("500_rooms_of_10_members", |b| {
        b.iter(|| {
            for index in (0..MEMBERS).step_by(10) {
                world.receive(index, black_box(&frame));
            }
            world.turn();
        });
        assert_eq!(world.sent.len(), MEMBERS as usize);
    });

    // Everybody alone in a room of its own: a broadcast walks the slab.
    let mut world = World::with_members(MEMBERS, |index| format!("/rooms/{index}?user={index}"));
    let batch = batch(128);
    group.bench_function("broadcast_to_5000_rooms_of_1_user", |b| {
        b.iter(|| {
            world.publish(EVERYBODY, black_box(&batch));
            world.turn();
        });
        assert_eq!(world.sent.len(), MEMBERS as usize);
    });
    let users: Vec<RoomName> = (0..MEMBERS)
        .map(|user| user_room(&user.to_string()))
        .collect();
    group.bench_function("a_message_to_each_of_5000_users", |b| {
        b.iter(|| {
            for user in &users {
                world.publish(user, black_box(&batch));
            }
            world.turn();
        });
        assert_eq!(world.sent.len(), MEMBERS as usize);
    });

    let mut slots = vec![0u64; MEMBERS as usize];
    let (mut encoded, mut sent) = (Vec::new(), Vec::new());
    group.bench_function("walk_only_5000", |b| {
        b.iter(|| {
            encoded.clear();
            encoded.extend_from_slice(black_box(&frame));
            sent.clear();
            for (index, slot) in slots.iter_mut().enumerate() {
                if *slot == 0 {
                    *slot = encoded.len() as u64;
                    sent.push(index);
                }
            }
            for &index in black_box(&sent) {
                slots[index] = 0;
            }
        });
    });
    group.finish();
}

fn echo(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard/echo");
    let mut world = World::with_members(500, |index| format!("/rooms/{index}"));
    let frame = message(64);
    for depth in [1, 16] {
        let frames = frame.repeat(depth);
        group.throughput(Throughput::Elements(500 * depth as u64));
        group.bench_function(format!("500_rooms_{depth}_in_flight"), |b| {
            b.iter(|| {
                for index in 0..500 {
                    world.receive(index, black_box(&frames));
                }
                world.turn();
            });
        });
    }
    let halves = message(1_000);
    let (front, behind) = halves.split_at(500);
    group.throughput(Throughput::Elements(500));
    group.bench_function("500_rooms_message_in_two_reads", |b| {
        b.iter(|| {
            for index in 0..500 {
                world.receive(index, black_box(front));
                world.receive(index, black_box(behind));
            }
            world.turn();
        });
    });
    group.finish();
}

fn join_and_leave(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard/handshake");
    let mut world = World::with_members(1_000, |_| "/rooms/all".to_owned());
    group.throughput(Throughput::Elements(1));
    group.bench_function("join_and_leave", |b| {
        let index = 1_000;
        b.iter(|| {
            world.join(index, "/rooms/all");
            world.turn();
            let broken = false;
            world
                .shard
                .handle(Input::ReceiveEnded { index, broken }, world.now);
            world.turn();
            world.shard.handle(Input::Closed { index }, world.now);
        });
    });
    group.finish();
}

/// Charging and refunding, through what makes the shard do it. The ledger itself is its own business.
fn ledger(c: &mut Criterion) {
    const MESSAGES: u32 = 500;
    const PAYLOAD_BYTES: usize = 1_000;
    let mut group = c.benchmark_group("shard/ledger");
    // Output that recipients share is metered once, when it is made and when the last of them lets go.
    let meter = Meter::default();
    group.throughput(Throughput::Elements(1));
    group.bench_function("output_metered", |b| {
        b.iter(|| Encoded::metered(Vec::with_capacity(black_box(138)), black_box(&meter)));
    });
    group.bench_function("output_unmetered", |b| {
        b.iter(|| Encoded::new(Vec::with_capacity(black_box(138))));
    });
    group.bench_function("output_allocated_only", |b| {
        b.iter(|| Rc::new(Vec::<u8>::with_capacity(black_box(138))));
    });
    // A header on its own is a promise: its payload is charged now, and refunded when the message is whole.
    let mut world = World::with_members(MESSAGES, |index| format!("/rooms/{index}"));
    let whole = message(PAYLOAD_BYTES);
    let (header, payload) = whole.split_at(whole.len() - PAYLOAD_BYTES);
    group.throughput(Throughput::Elements(MESSAGES.into()));
    for (name, reads) in [
        ("500_messages_whole", &[whole.as_slice()][..]),
        ("500_messages_promised_first", &[header, payload]),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                for index in 0..MESSAGES {
                    for read in reads {
                        world.receive(index, black_box(read));
                    }
                }
                world.turn();
            });
            assert_eq!(world.sent.len(), MESSAGES as usize);
        });
    }
    group.bench_function("500_messages_kept_only", |b| {
        b.iter(|| {
            for _ in 0..MESSAGES {
                black_box(black_box(payload).to_vec());
            }
        });
    });
    group.finish();
}

/// One tick of the sweep, a tenth of a second: it looks at a tenth of the connections and pings one in 250.
fn heartbeat(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard/heartbeat_tick");
    for count in [20_000, 1_000_000] {
        let room = |index: u32| format!("/rooms/{}", index / 100);
        let checked = count / CHECK_ROUND_TICKS;
        group.throughput(Throughput::Elements(checked.into()));

        // A million connections are made for the benches that are run, and let go before the next.
        let mut world = None;
        group.bench_function(format!("checks/{count}"), |b| {
            let heartbeat = HeartbeatMode::Tcp;
            let options = || Options {
                heartbeat,
                ..options()
            };
            let world = world.get_or_insert_with(|| World::with_options(options(), count, room));
            b.iter(|| {
                world.now = Tick(world.now.0 + TICK_US);
                world.shard.handle_deadline(world.now);
                assert!(world.shard.poll_action().is_none());
            });
        });
        drop(world);

        let mut world = None;
        group.bench_function(format!("checks_pings_and_pongs/{count}"), |b| {
            let world = world.get_or_insert_with(|| World::with_members(count, room));
            b.iter(|| {
                world.now = Tick(world.now.0 + TICK_US);
                world.shard.handle_deadline(world.now);
                world.turn();
                let pong = frame(OpCode::Pong, &world.now.0.to_be_bytes());
                for number in 0..world.sent.len() {
                    world.receive(world.sent[number].0, &pong);
                }
            });
            let counters = world.shard.counters();
            assert!(counters.pings_sent > 0 && counters.pings_sent == counters.pongs_received);
        });
        drop(world);

        let stamps = vec![0u64; count as usize];
        let (mut now, mut at) = (0, 0);
        group.bench_function(format!("walk_only/{count}"), |b| {
            b.iter(|| {
                now += TICK_US;
                at = (at + checked as usize) % stamps.len();
                let late = |stamp: &&u64| now - **stamp > u64::MAX / 2;
                black_box(&stamps)[at..at + checked as usize]
                    .iter()
                    .filter(late)
                    .count()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, fan_out, echo, join_and_leave, ledger, heartbeat);
criterion_main!(benches);
