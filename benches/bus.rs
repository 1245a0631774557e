//! What crossing cores costs: a lane beside a raw channel, the bell, a turn of the backplane core. Run:
//! `cargo bench --bench bus`.
//!
//! The floor is the bounded crossbeam channel that a lane is made of, with the same envelopes and nothing counted. The
//! parts with two threads have processors 0 and 1; where those are shared with others, only their ratios tell anything.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::thread::{CpuSet, sched_setaffinity};
use throng::backplane::{Action, Backplane, LaneRoom, Options, Ports, turn};
use throng::bus::{
    Batch, BatchMessage, Bell, CoreId, Downstream, LaneReader, LaneWriter, MessageKind, RoomName,
    Upstream, lane,
};
use throng::limits::{LANE_ENVELOPE_COUNT_MAX, LANE_TURN_ENVELOPE_COUNT_MAX};
use throng::time::Tick;

/// The server's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Envelopes that are sent before the reader looks: what the backplane core takes from a lane in a turn.
const BURST: usize = LANE_TURN_ENVELOPE_COUNT_MAX;
const FRAME_BYTES: usize = 130;

fn batch() -> Arc<Batch> {
    Arc::new(Batch {
        bytes: vec![b'x'; FRAME_BYTES],
        messages: vec![BatchMessage {
            end: FRAME_BYTES as u32,
            header_bytes: 2,
            kind: MessageKind::Text,
            sender: None,
        }],
        published: Tick(0),
    })
}

/// Makes envelopes that all carry the same messages.
#[derive(Clone)]
struct Source {
    room: RoomName,
    batch: Arc<Batch>,
    bytes: u32,
}

impl Source {
    fn new() -> Self {
        let batch = batch();
        Self {
            room: "lobby".into(),
            bytes: u32::try_from(batch.weight_bytes()).unwrap(),
            batch,
        }
    }

    fn publish(&self) -> Upstream {
        Upstream::Publish {
            room: Arc::clone(&self.room),
            batch: Arc::clone(&self.batch),
        }
    }
}

/// What both a lane and a raw channel can do. `false`, `None`: not now.
trait Carrier: Send + 'static {
    type Writer: Send;
    type Reader: Send + 'static;
    fn pair() -> (Self::Writer, Self::Reader);
    fn send(writer: &mut Self::Writer, envelope: Upstream, bytes: u32) -> bool;
    fn take(reader: &mut Self::Reader) -> Option<Upstream>;
    /// Once a drain.
    fn drained(reader: &Self::Reader);
}

struct Lane;

impl Carrier for Lane {
    type Writer = LaneWriter<Upstream>;
    type Reader = LaneReader<Upstream>;

    fn pair() -> (Self::Writer, Self::Reader) {
        lane()
    }

    fn send(writer: &mut Self::Writer, envelope: Upstream, bytes: u32) -> bool {
        writer.try_send_data(envelope, bytes).is_ok()
    }

    fn take(reader: &mut Self::Reader) -> Option<Upstream> {
        reader.next_envelope()
    }

    fn drained(reader: &Self::Reader) {
        reader.settle();
    }
}

struct Raw;

impl Carrier for Raw {
    type Writer = Sender<Upstream>;
    type Reader = Receiver<Upstream>;

    fn pair() -> (Self::Writer, Self::Reader) {
        bounded(LANE_ENVELOPE_COUNT_MAX)
    }

    fn send(writer: &mut Self::Writer, envelope: Upstream, _bytes: u32) -> bool {
        writer.try_send(envelope).is_ok()
    }

    fn take(reader: &mut Self::Reader) -> Option<Upstream> {
        reader.try_recv().ok()
    }

    fn drained(_reader: &Self::Reader) {}
}

/// A burst in and out again, both ends in one thread: instructions, no cache line that travels.
fn bursts<C: Carrier>(c: &mut Criterion, name: &str) {
    let mut group = c.benchmark_group("bus/burst_of_64");
    group.throughput(Throughput::Elements(BURST as u64));
    let source = Source::new();
    let (mut writer, mut reader) = C::pair();
    group.bench_function(name, |b| {
        b.iter(|| {
            for _ in 0..BURST {
                assert!(C::send(&mut writer, source.publish(), source.bytes));
            }
            while let Some(envelope) = C::take(&mut reader) {
                black_box(envelope);
            }
            C::drained(&reader);
        });
    });
    group.finish();
}

fn pin(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor);
    // Without a second processor both threads share the first, and spinning costs a time slice.
    let _ = sched_setaffinity(None, &set);
}

/// Runs `measured` here, on processor 0, beside a thread on processor 1 that does `beside` until this returns.
fn beside<T>(mut beside: impl FnMut() + Send, measured: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    let both_run = Barrier::new(2);
    let everywhere = rustix::thread::sched_getaffinity(None).expect("a thread may run somewhere");
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            both_run.wait();
            while !stop.load(Ordering::Relaxed) {
                beside();
                spin_loop();
            }
        });
        pin(0);
        both_run.wait();
        let result = measured();
        stop.store(true, Ordering::Relaxed);
        result
    });
    let _ = sched_setaffinity(None, &everywhere);
    result
}

/// A stream from one core to another: the writer waits when there is no room, the reader never sleeps.
fn streams<C: Carrier>(c: &mut Criterion, name: &str) {
    let mut group = c.benchmark_group("bus/stream_between_cores");
    group.throughput(Throughput::Elements(1));
    let source = Source::new();
    group.bench_function(name, |b| {
        b.iter_custom(|count| {
            let (mut writer, mut reader) = C::pair();
            let taken = AtomicU64::new(0);
            let read = || {
                let mut drained = 0;
                while let Some(envelope) = C::take(&mut reader) {
                    black_box(envelope);
                    drained += 1;
                }
                C::drained(&reader);
                taken.fetch_add(drained, Ordering::Release);
            };
            beside(read, || {
                let start = Instant::now();
                for _ in 0..count {
                    while !C::send(&mut writer, source.publish(), source.bytes) {
                        spin_loop();
                    }
                }
                while taken.load(Ordering::Acquire) < count {
                    spin_loop();
                }
                start.elapsed()
            })
        });
    });
    group.finish();
}

/// One envelope there and back, neither core asleep: what a message waits for when another core orders it.
fn round_trips<C: Carrier>(c: &mut Criterion, name: &str) {
    let mut group = c.benchmark_group("bus/round_trip_between_cores");
    let source = Source::new();
    group.bench_function(name, |b| {
        b.iter_custom(|count| {
            let (mut there, mut there_end) = C::pair();
            let (mut back, mut back_end) = C::pair();
            let bytes = source.bytes;
            let answer = || {
                if let Some(envelope) = C::take(&mut there_end) {
                    C::drained(&there_end);
                    assert!(C::send(&mut back, envelope, bytes));
                }
            };
            beside(answer, || -> Duration {
                let start = Instant::now();
                for _ in 0..count {
                    assert!(C::send(&mut there, source.publish(), bytes));
                    while C::take(&mut back_end).is_none() {
                        spin_loop();
                    }
                    C::drained(&back_end);
                }
                start.elapsed()
            })
        });
    });
    group.finish();
}

fn lanes(c: &mut Criterion) {
    bursts::<Lane>(c, "lane");
    bursts::<Raw>(c, "raw_channel");
    streams::<Lane>(c, "lane");
    streams::<Raw>(c, "raw_channel");
    round_trips::<Lane>(c, "lane");
    round_trips::<Raw>(c, "raw_channel");
}

/// What a writer pays after a burst to learn whether the reader sleeps; a plain load is the floor.
fn bells(c: &mut Criterion) {
    let mut group = c.benchmark_group("bus/bell");
    let bell = Bell::new();
    group.bench_function("ring_awake", |b| b.iter(|| black_box(&bell).ring()));
    group.bench_function("doze_and_ring", |b| {
        b.iter(|| {
            bell.doze();
            black_box(&bell).ring()
        });
    });
    let flag = AtomicBool::new(false);
    group.bench_function("load_only", |b| {
        b.iter(|| black_box(&flag).load(Ordering::Relaxed));
    });
    group.finish();
}

/// The lanes of all shards, both ends in one thread.
struct Lanes {
    up: Vec<(LaneWriter<Upstream>, LaneReader<Upstream>)>,
    down: Vec<(LaneWriter<Downstream>, LaneReader<Downstream>)>,
}

impl LaneRoom for Lanes {
    fn fits(&self, shard: CoreId, bytes: u32) -> bool {
        self.down[usize::from(shard.0)].0.fits(bytes)
    }
}

impl Ports for Lanes {
    fn take(&mut self, from: CoreId) -> Option<Upstream> {
        self.up[usize::from(from.0)].1.next_envelope()
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Send {
                to,
                envelope,
                bytes,
            } => {
                let writer = &mut self.down[usize::from(to.0)].0;
                assert!(writer.try_send_data(envelope, bytes).is_ok());
            }
            Action::SendControl { to, envelope } => {
                let writer = &mut self.down[usize::from(to.0)].0;
                assert!(writer.try_send_control(envelope).is_ok());
            }
            Action::Answer { .. } | Action::Drained { .. } => {}
        }
    }
}

impl Lanes {
    /// Reads what has come to every shard; how many deliveries were among it.
    fn drain(&mut self) -> usize {
        let mut deliveries = 0;
        for (_, reader) in &mut self.down {
            while let Some(envelope) = reader.next_envelope() {
                deliveries +=
                    usize::from(matches!(black_box(envelope), Downstream::Delivery { .. }));
            }
            reader.settle();
        }
        deliveries
    }
}

/// 64 publishes of one shard, ordered and handed to every shard; the floor hands them over without asking anything.
fn backplane_turns(c: &mut Criterion) {
    let mut group = c.benchmark_group("bus/backplane_turn_64_publishes");
    let source = Source::new();
    for shard_count in [2u8, 8, 64] {
        let deliveries = BURST * usize::from(shard_count);
        group.throughput(Throughput::Elements(deliveries as u64));
        let mut lanes = Lanes {
            up: (0..shard_count).map(|_| lane()).collect(),
            down: (0..shard_count).map(|_| lane()).collect(),
        };
        let mut backplane = Backplane::new(Options::new(shard_count, 1_000), 1, Tick(0));
        for (writer, _) in &mut lanes.up {
            let room = Arc::clone(&source.room);
            writer
                .try_send_control(Upstream::Interest { room })
                .unwrap();
        }
        turn(&mut backplane, &mut lanes, 0, Tick(0));
        // The first shard had the room for itself until the second came.
        let room = Arc::clone(&source.room);
        let returned = Upstream::LeaseReturned { room };
        lanes.up[0].0.try_send_control(returned).unwrap();
        turn(&mut backplane, &mut lanes, 0, Tick(0));
        lanes.drain();
        group.bench_function(format!("turn/{shard_count}_shards"), |b| {
            b.iter(|| {
                for _ in 0..BURST {
                    let sent = lanes.up[0].0.try_send_data(source.publish(), source.bytes);
                    assert!(sent.is_ok());
                }
                turn(&mut backplane, &mut lanes, 0, Tick(0));
                lanes.up[0].1.settle();
                assert_eq!(lanes.drain(), deliveries);
            });
        });
        let channels: Vec<(Sender<Upstream>, Receiver<Upstream>)> = (0..shard_count)
            .map(|_| bounded(LANE_ENVELOPE_COUNT_MAX))
            .collect();
        group.bench_function(format!("raw_channels/{shard_count}_shards"), |b| {
            b.iter(|| {
                for _ in 0..BURST {
                    for (sender, _) in &channels {
                        assert!(sender.try_send(source.publish()).is_ok());
                    }
                }
                for (_, receiver) in &channels {
                    while let Ok(envelope) = receiver.try_recv() {
                        black_box(envelope);
                    }
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, lanes, bells, backplane_turns);
criterion_main!(benches);
