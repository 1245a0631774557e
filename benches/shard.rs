//! What the shard costs without its sockets: a fan-out, an echo, a join, the heartbeat sweep. Run:
//! `cargo bench --bench shard`.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use throng::bus::CoreId;
use throng::protocol::client::encode_request;
use throng::protocol::{OpCode, encode_client_header, unmask_extend};
use throng::shard::{Action, Delivery, HeartbeatMode, Input, Node, Options, Shard};
use throng::time::Tick;

fn options() -> Options {
    Options {
        connection_count_max: 1_000_000,
        address_connection_count_max: 0,
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
        ping_interval_ms: 25_000,
        pong_timeout_ms: 1_000_000_000,
        idle_timeout_ms: 0,
        message_timeout_ms: 30_000,
        write_stall_timeout_ms: 30_000,
        handshake_timeout_ms: 5_000,
        close_timeout_ms: 5_000,
        handshake_bytes_max: 8_192,
        handshake_header_count_max: 64,
        origins: Vec::new(),
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
    fn new() -> Self {
        let node = Arc::new(Node::new(1, 1_000_000, 1 << 31, 0, 1));
        Self {
            shard: Shard::new(CoreId(0), options(), Delivery::Inline, node, 1, Tick(0)),
            now: Tick(0),
            sent: Vec::new(),
        }
    }

    fn with_members(count: u32, room: impl Fn(u32) -> String) -> Self {
        let mut world = Self::new();
        for index in 0..count {
            world.join(index, &room(index));
        }
        world.turn();
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

    /// Ends the turn, and reports every send as written. Leaves in `sent` whom they went to.
    fn turn(&mut self) {
        self.sent.clear();
        self.shard.end_turn(self.now);
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
        for &(index, bytes) in &self.sent {
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

fn fan_out(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard/fan_out");
    let mut world = World::with_members(5_000, |_| "/rooms/all".to_owned());
    let frame = message(128);
    group.throughput(Throughput::Elements(5_000));
    group.bench_function("5000_members_128_bytes", |b| {
        b.iter(|| {
            world.receive(0, black_box(&frame));
            world.turn();
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

fn heartbeat(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard/heartbeat");
    let mut world = World::with_members(20_000, |index| format!("/rooms/{}", index % 100));
    group.throughput(Throughput::Elements(1));
    group.bench_function("tick_of_20000_connections_and_its_pongs", |b| {
        b.iter(|| {
            world.now = Tick(world.now.0 + 100_000);
            world.shard.handle_deadline(world.now);
            world.turn();
            let pong = frame(OpCode::Pong, &world.now.0.to_be_bytes());
            for (index, _) in std::mem::take(&mut world.sent) {
                world.receive(index, &pong);
            }
        });
    });
    group.finish();
}

criterion_group!(benches, fan_out, echo, join_and_leave, heartbeat);
criterion_main!(benches);
