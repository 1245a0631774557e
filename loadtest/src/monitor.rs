//! Looks at a run from outside while it goes on: a point a second for the timeline, a line on the terminal.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::client::{Seen, Shared, lock};
use crate::clock::now_ns;
use crate::histogram::{self, Packed};
use crate::meter::client_threads;
use crate::progress::{Progress, Snapshot};
use crate::report::{
    INTERVAL_COUNT_MAX, Interval, POINT_COUNT_MAX, Percentiles, Phase, Point, Timeline,
    latency_histogram,
};
use crate::server::{Glance, Servers, Thread, busiest};

/// How often the line on the terminal is drawn.
const DRAW: Duration = Duration::from_millis(100);
/// How often a point is taken.
const SECOND_NS: u64 = 1_000_000_000;

/// What ends a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Nobody knows.
    None,
    /// So many connections that were upgraded or failed, in the whole run.
    Connections(u64),
    /// A moment, by [`now_ns`].
    Moment(u64),
}

/// What the director and the monitor share.
struct State {
    phases: Vec<Phase>,
    goal: Goal,
    /// When the phase began.
    from_ns: u64,
    /// Latencies since somebody took them.
    latency: Histogram<u64>,
}

/// The thread that looks.
pub struct Monitor {
    began_ns: u64,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Timeline, Vec<String>)>,
}

impl Monitor {
    /// Begins to look at these workers and servers.
    pub fn start(shared: Vec<Arc<Shared>>, servers: Arc<Servers>, quiet: bool) -> Self {
        let began_ns = now_ns();
        let state = Arc::new(Mutex::new(State {
            phases: Vec::new(),
            goal: Goal::None,
            from_ns: began_ns,
            latency: latency_histogram(),
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let watch = Watch {
            began_ns,
            shared,
            glance: servers.glance(),
            servers,
            state: Arc::clone(&state),
            stop: Arc::clone(&stop),
            threads: client_threads(),
            point_at_ns: began_ns,
            seen: Seen::default(),
            snapshot: Snapshot::default(),
            timeline: Timeline::default(),
            gone: Vec::new(),
        };
        let thread = std::thread::spawn(move || watch.run(&Progress::new(quiet)));
        Self {
            began_ns,
            state,
            stop,
            thread,
        }
    }

    /// Names what happens from now on, and says what ends it.
    pub fn phase(&self, name: &str, goal: Goal) {
        let now = now_ns();
        let mut state = lock(&self.state);
        state.phases.push(Phase {
            name: name.to_owned(),
            from_ms: now.saturating_sub(self.began_ns) / 1_000_000,
        });
        state.goal = goal;
        state.from_ns = now;
    }

    /// Takes the latencies of all that was received since the last time.
    pub fn take_latency(&self) -> Histogram<u64> {
        std::mem::replace(&mut lock(&self.state).latency, latency_histogram())
    }

    /// Ends it; gives what it saw, and the servers that ended meanwhile.
    pub fn finish(self) -> (Timeline, Vec<String>) {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap_or_default()
    }
}

struct Watch {
    began_ns: u64,
    shared: Vec<Arc<Shared>>,
    servers: Arc<Servers>,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    glance: Glance,
    threads: Vec<Thread>,
    point_at_ns: u64,
    seen: Seen,
    snapshot: Snapshot,
    timeline: Timeline,
    gone: Vec<String>,
}

impl Watch {
    fn run(mut self, progress: &Progress) -> (Timeline, Vec<String>) {
        loop {
            let stop = self.stop.load(Ordering::Acquire);
            let now = now_ns();
            if now >= self.point_at_ns + SECOND_NS || stop {
                self.point(now);
            }
            if stop {
                progress.clear();
                self.timeline.phases = std::mem::take(&mut lock(&self.state).phases);
                return (self.timeline, self.gone);
            }
            progress.show(&self.draw(now));
            std::thread::sleep(DRAW);
        }
    }

    fn sum(&self) -> Seen {
        let mut seen = Seen::default();
        for shared in &self.shared {
            shared.progress.add_to(&mut seen);
        }
        seen
    }

    fn point(&mut self, now: u64) {
        let length_ns = now.saturating_sub(self.point_at_ns).max(1);
        let seconds = length_ns as f64 / 1e9;
        let seen = self.sum();
        let mut latency = latency_histogram();
        let mut threads = client_threads();
        for shared in &self.shared {
            for interval in shared.take_intervals() {
                histogram::add(&mut latency, &interval);
            }
            threads.extend(lock(&shared.threads).iter().cloned());
        }
        let glance = self.servers.glance();
        let since = |now: u64, before: u64| now.saturating_sub(before);
        let percentiles = Percentiles::of(&latency);
        let from_ms = |ns: u64| ns.saturating_sub(self.began_ns) / 1_000_000;
        let upgraded = since(seen.upgraded, self.seen.upgraded);
        let point = Point {
            at_ms: from_ms(now),
            length_ms: length_ns / 1_000_000,
            open: seen.open,
            upgraded,
            failed: since(
                seen.failed + seen.retried,
                self.seen.failed + self.seen.retried,
            ),
            closed: (self.seen.open + upgraded).saturating_sub(seen.open),
            published: since(seen.published, self.seen.published),
            delivered: since(seen.received, self.seen.received),
            faults: since(seen.faults, self.seen.faults),
            latency: percentiles,
            client_share: busiest(&self.threads, &threads, seconds).0,
            servers: Glance::points(&self.glance, &glance),
        };
        self.snapshot.published_per_s = point.published as f64 / seconds;
        self.snapshot.delivered_per_s = point.delivered as f64 / seconds;
        self.snapshot.rate_per_s = point.upgraded as f64 / seconds;
        self.snapshot.p50_ns = percentiles.map(|found| found.p50_ns);
        self.snapshot.p99_ns = percentiles.map(|found| found.p99_ns);
        for server in glance.gone() {
            if !self.gone.contains(server) {
                self.gone.push(server.clone());
            }
        }
        if length_ns > SECOND_NS / 2 || self.timeline.points.is_empty() {
            self.timeline.points.push(point); // the rest of a run's last second is no second
            if self.timeline.points.len() >= 2 * POINT_COUNT_MAX {
                self.timeline.coarsen_points(POINT_COUNT_MAX);
            }
        }
        if !latency.is_empty() {
            histogram::add(&mut lock(&self.state).latency, &latency);
            self.timeline.intervals.push(Interval {
                from_ms: from_ms(self.point_at_ns),
                length_ms: length_ns / 1_000_000,
                histogram: Packed::new(&latency),
            });
            if self.timeline.intervals.len() >= 2 * INTERVAL_COUNT_MAX {
                self.timeline.coarsen(INTERVAL_COUNT_MAX);
            }
        }
        self.glance = glance;
        self.threads = threads;
        self.seen = seen;
        self.point_at_ns = now;
    }

    /// What stands on the terminal now.
    fn draw(&self, now: u64) -> Snapshot {
        let state = lock(&self.state);
        let seen = self.sum();
        let (done, goal, rate_per_s) = match state.goal {
            Goal::None => (0, None, 0.0),
            Goal::Connections(count) => (
                seen.upgraded + seen.failed,
                Some(count),
                self.snapshot.rate_per_s,
            ),
            Goal::Moment(until_ns) => (
                now.saturating_sub(state.from_ns) / 1_000_000,
                Some(until_ns.saturating_sub(state.from_ns) / 1_000_000),
                1_000.0,
            ),
        };
        Snapshot {
            phase: state
                .phases
                .last()
                .map_or_else(String::new, |phase| phase.name.clone()),
            goal,
            done,
            rate_per_s,
            is_time: matches!(state.goal, Goal::Moment(_)),
            open: seen.open,
            errors: seen.failed + seen.faults,
            elapsed_ms: now.saturating_sub(self.began_ns) / 1_000_000,
            ..self.snapshot.clone()
        }
    }
}
