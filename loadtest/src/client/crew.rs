//! The workers of a run, what the director tells them, and what it sees of them.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::outcome::Outcome;
use super::tally::Tally;
use crate::clock::now_ns;
use crate::failure::Failure;
use crate::histogram;
use crate::interrupt;
use crate::server::Thread;

/// When a scenario's traffic flows, and which part of it is measured. By [`now_ns`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Timetable {
    /// Publishers begin.
    pub traffic_from_ns: u64,
    /// The warm-up is over.
    pub measure_from_ns: u64,
    /// Publishers end, and so does the window.
    pub measure_to_ns: u64,
}

impl Timetable {
    /// Whether `moment` is within the window.
    pub fn measures(&self, moment_ns: u64) -> bool {
        self.measure_from_ns <= moment_ns && moment_ns < self.measure_to_ns
    }
}

/// What the director tells all workers alike.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Members with a lower number are to be connected.
    pub open_until: u32,
    /// Traffic.
    pub timetable: Option<Timetable>,
    /// Messages that the first publisher of each room has been asked for one by one, and when the last was due.
    pub bursts: (u32, u64),
    /// Times that all connections have been dropped.
    pub drops: u32,
    /// Members that did not read go on reading.
    pub resume: bool,
    /// Ends of connections by the server are part of the scenario from now on.
    pub expect_close: bool,
    /// Close everything and return.
    pub stop: bool,
}

/// What is seen of a worker, or of a whole generator elsewhere.
#[derive(Debug, Default)]
pub struct Progress {
    /// Upgrades answered.
    pub upgraded: AtomicU64,
    /// Connections that were never upgraded, and are not tried again.
    pub failed: AtomicU64,
    /// Attempts that failed and are made again.
    pub retried: AtomicU64,
    /// Members connected now.
    pub open: AtomicU64,
    /// Connections that are over, for whatever reason.
    pub ended: AtomicU64,
    /// Open connections that the server ended.
    pub closed_by_server: AtomicU64,
    /// Those of them that were no part of the scenario.
    pub lost: AtomicU64,
    /// Messages published, or sent.
    pub published: AtomicU64,
    /// Messages received.
    pub received: AtomicU64,
    /// Deliveries that were lost, corrupted and so on.
    pub faults: AtomicU64,
    /// It has returned, perhaps early.
    pub finished: AtomicBool,
}

/// The plain numbers of a [`Progress`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// See [`Progress`].
    pub upgraded: u64,
    /// See [`Progress`].
    pub failed: u64,
    /// See [`Progress`].
    pub retried: u64,
    /// See [`Progress`].
    pub open: u64,
    /// See [`Progress`].
    pub ended: u64,
    /// See [`Progress`].
    pub closed_by_server: u64,
    /// See [`Progress`].
    pub lost: u64,
    /// See [`Progress`].
    pub published: u64,
    /// See [`Progress`].
    pub received: u64,
    /// See [`Progress`].
    pub faults: u64,
}

impl Progress {
    fn pairs<'a>(&'a self, seen: &'a mut Seen) -> [(&'a AtomicU64, &'a mut u64); 10] {
        [
            (&self.upgraded, &mut seen.upgraded),
            (&self.failed, &mut seen.failed),
            (&self.retried, &mut seen.retried),
            (&self.open, &mut seen.open),
            (&self.ended, &mut seen.ended),
            (&self.closed_by_server, &mut seen.closed_by_server),
            (&self.lost, &mut seen.lost),
            (&self.published, &mut seen.published),
            (&self.received, &mut seen.received),
            (&self.faults, &mut seen.faults),
        ]
    }

    /// Adds them to `seen`.
    pub fn add_to(&self, seen: &mut Seen) {
        for (counter, value) in self.pairs(seen) {
            *value += counter.load(Ordering::Relaxed);
        }
    }

    /// Takes them over.
    pub fn set(&self, mut seen: Seen) {
        for (counter, value) in self.pairs(&mut seen) {
            counter.store(*value, Ordering::Relaxed);
        }
    }
}

/// Who is told of new orders at once, because it does not look by itself.
struct Listener(Box<dyn Fn(&Orders) + Send + Sync>);

impl fmt::Debug for Listener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Listener")
    }
}

/// What the director and one worker share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Counts the orders.
    pub generation: AtomicU32,
    orders: Mutex<Orders>,
    /// The worker's side.
    pub progress: Progress,
    intervals: Mutex<Vec<Histogram<u64>>>,
    /// Of a generator elsewhere: its threads, with ids that no other generator's have.
    pub threads: Mutex<Vec<Thread>>,
    /// When it looked at them, by [`now_ns`]; changed while `threads` is locked.
    pub threads_at_ns: AtomicU64,
    /// Of a generator elsewhere: when it looked at what stands in `progress`, by [`now_ns`].
    pub progress_at_ns: AtomicU64,
    listener: Option<Listener>,
}

/// A lock whose holder panicked holds plain data, and that is as good as before.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Shared with a generator elsewhere: `listener` is handed each change of the orders.
    pub fn heard_by(listener: impl Fn(&Orders) + Send + Sync + 'static) -> Self {
        Self {
            listener: Some(Listener(Box::new(listener))),
            ..Self::default()
        }
    }

    /// The orders in force.
    pub fn orders(&self) -> Orders {
        lock(&self.orders).clone()
    }

    /// Gives new orders.
    pub fn set_orders(&self, orders: &Orders) {
        lock(&self.orders).clone_from(orders);
        self.generation.fetch_add(1, Ordering::Release);
        if let Some(Listener(tell)) = &self.listener {
            tell(orders);
        }
    }

    /// Leaves the latencies of a second, nanoseconds.
    pub fn push_interval(&self, interval: Histogram<u64>) {
        let mut intervals = lock(&self.intervals);
        if intervals.len() < INTERVAL_COUNT_MAX {
            intervals.push(interval);
        } else if let Some(last) = intervals.last_mut() {
            histogram::add(last, &interval);
        }
    }

    /// Takes the latencies of the seconds so far.
    pub fn take_intervals(&self) -> Vec<Histogram<u64>> {
        std::mem::take(&mut *lock(&self.intervals))
    }
}

/// One or several workers that a crew can end: the threads of this process, or a generator elsewhere.
pub trait Troupe: Send {
    /// Waits for the workers, which have been ordered to stop; gives how much each publisher has published.
    ///
    /// # Errors
    /// When a worker could not go on.
    fn stop(&mut self) -> Result<Vec<(u32, u32)>, Failure>;
    /// What they counted, now that it is known how much each publisher published.
    ///
    /// # Errors
    /// When it cannot be had.
    fn tally(&mut self, published: &[u32]) -> Result<(Outcome, Tally), Failure>;
}

/// Seconds whose latencies wait for somebody to take them; those of later ones add to the last.
const INTERVAL_COUNT_MAX: usize = 64;

/// For how long a run that is cut short waits for what is on its way.
const REST: Duration = Duration::from_secs(10);

/// For how long nobody may be connected before a run is over.
const ALONE: Duration = Duration::from_millis(500);

/// All workers of a run, wherever they are.
pub struct Crew {
    shared: Vec<Arc<Shared>>,
    troupes: Vec<Box<dyn Troupe>>,
    orders: Orders,
    patience: Duration,
    time_limit_ns: u64,
    was_cut_short: AtomicBool,
    /// How far ahead a moment must lie to reach every worker in time.
    pub lead: Duration,
}

impl Crew {
    /// A crew of these workers.
    pub fn new(
        shared: Vec<Arc<Shared>>,
        troupes: Vec<Box<dyn Troupe>>,
        lead: Duration,
        patience: Duration,
        time_limit: Duration,
    ) -> Self {
        Self {
            shared,
            troupes,
            orders: Orders::default(),
            patience,
            time_limit_ns: now_ns() + time_limit.as_nanos() as u64,
            was_cut_short: AtomicBool::new(false),
            lead,
        }
    }

    /// The orders in force.
    pub const fn orders(&self) -> &Orders {
        &self.orders
    }

    /// Changes the orders of all workers.
    pub fn order(&mut self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders);
        for shared in &self.shared {
            shared.set_orders(&self.orders);
        }
    }

    /// The next moment that every worker can be told of before it is there.
    pub fn soon_ns(&self) -> u64 {
        now_ns() + self.lead.as_nanos() as u64
    }

    /// Orders traffic: `warm_up`, then `duration`, from as soon as every worker has heard of it.
    pub fn start_traffic(&mut self, warm_up: Duration, duration: Duration) -> Timetable {
        let traffic_from_ns = self.soon_ns();
        let measure_from_ns = traffic_from_ns + warm_up.as_nanos() as u64;
        let timetable = Timetable {
            traffic_from_ns,
            measure_from_ns,
            measure_to_ns: measure_from_ns + duration.as_nanos() as u64,
        };
        self.order(|orders| orders.timetable = Some(timetable));
        timetable
    }

    /// Has traffic that has begun end now, so that what is on its way can still come.
    pub fn end_traffic(&mut self) {
        let Some(timetable) = self.orders.timetable else {
            return;
        };
        let end_ns = now_ns() + self.lead.as_nanos() as u64;
        if end_ns < timetable.measure_to_ns {
            self.order(|orders| {
                orders.timetable = Some(Timetable {
                    measure_from_ns: timetable.measure_from_ns.min(end_ns),
                    measure_to_ns: end_ns,
                    ..timetable
                });
            });
            std::thread::sleep(self.lead);
        }
    }

    /// The sum of all workers.
    pub fn seen(&self) -> Seen {
        let mut seen = Seen::default();
        for shared in &self.shared {
            shared.progress.add_to(&mut seen);
        }
        seen
    }

    /// Waits until generators elsewhere have told what they have seen up to now, unless one has ended or is not heard of
    /// for the crew's patience.
    pub fn catch_up(&self) {
        let now = now_ns();
        let until = now + self.patience.as_nanos() as u64;
        let told = |shared: &Arc<Shared>| {
            shared.listener.is_none() || shared.progress_at_ns.load(Ordering::Acquire) >= now
        };
        while !self.shared.iter().all(told) && !self.has_ended() && now_ns() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn has_ended(&self) -> bool {
        let mut workers = self.shared.iter();
        workers.any(|shared| shared.progress.finished.load(Ordering::Acquire))
    }

    /// Waits until `done`, looking every few milliseconds. False: a worker returned early, the run is cut short, or nothing
    /// at all has happened for the crew's patience.
    pub fn wait(&self, done: impl Fn(&Seen) -> bool) -> bool {
        self.wait_for(self.patience, done)
    }

    /// The same with another patience.
    pub fn wait_for(&self, patience: Duration, done: impl Fn(&Seen) -> bool) -> bool {
        self.wait_until(patience, Duration::ZERO, done)
    }

    /// The same for what is on its way already: a run that is cut short waits for it for a while, so that it does not count
    /// as lost.
    pub fn wait_for_rest(&self, patience: Duration, done: impl Fn(&Seen) -> bool) -> bool {
        self.wait_until(patience, REST, done)
    }

    /// Waits until `done`, at most for `patience` without any progress and for `rest` after the run was cut short.
    fn wait_until(&self, patience: Duration, rest: Duration, done: impl Fn(&Seen) -> bool) -> bool {
        let mut last = (self.seen(), now_ns());
        let mut cut_short_ns = None;
        loop {
            let now = now_ns();
            let seen = self.seen();
            if done(&seen) {
                return true;
            }
            if seen != last.0 {
                last = (seen, now);
            }
            if self.is_cut_short() {
                let from_ns = *cut_short_ns.get_or_insert(now);
                if now >= from_ns + rest.as_nanos() as u64 {
                    return false;
                }
            }
            if self.has_ended() || now.saturating_sub(last.1) > patience.as_nanos() as u64 {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether the time limit of the run is over.
    pub fn out_of_time(&self) -> bool {
        now_ns() > self.time_limit_ns
    }

    /// Whether the run is to end early: its time limit is over, or somebody interrupted it.
    pub fn is_cut_short(&self) -> bool {
        let cut_short = self.out_of_time() || interrupt::is_wanted();
        self.was_cut_short.fetch_or(cut_short, Ordering::Relaxed);
        cut_short
    }

    /// Whether anything was given up because of that.
    pub fn was_cut_short(&self) -> bool {
        self.was_cut_short.load(Ordering::Relaxed)
    }

    /// Sleeps until `moment_ns`, or returns false when the run is cut short or a worker has returned.
    pub fn sleep_until(&self, moment_ns: u64) -> bool {
        loop {
            let now = now_ns();
            if now >= moment_ns {
                return true;
            }
            if self.has_ended() || self.is_cut_short() {
                return false;
            }
            std::thread::sleep(Duration::from_nanos((moment_ns - now).min(50_000_000)));
        }
    }

    /// Sleeps until `moment_ns` as [`Crew::sleep_until`], or returns false when nobody has been connected for a while: then
    /// nothing more can happen.
    pub fn sleep_until_alone(&self, moment_ns: u64) -> bool {
        let mut alone_from_ns = None;
        loop {
            let now = now_ns();
            if self.seen().open > 0 {
                alone_from_ns = None;
            } else if now - *alone_from_ns.get_or_insert(now) > ALONE.as_nanos() as u64 {
                return now >= moment_ns;
            }
            let step_ns = moment_ns.min(now + 50_000_000);
            if now >= moment_ns || !self.sleep_until(step_ns) {
                return now >= moment_ns;
            }
        }
    }

    /// Sleeps for `seconds`, as [`Crew::sleep_until`].
    pub fn sleep(&self, seconds: f64) -> bool {
        self.sleep_until(now_ns() + Duration::from_secs_f64(seconds).as_nanos() as u64)
    }

    /// Has all connections closed, and returns what was counted.
    ///
    /// # Errors
    /// When a worker could not go on.
    pub fn finish(&mut self) -> Result<(Outcome, Tally), Failure> {
        self.order(|orders| orders.stop = true);
        let mut published = Vec::new();
        for troupe in &mut self.troupes {
            for (publisher, count) in troupe.stop()? {
                let publisher = publisher as usize;
                if published.len() <= publisher {
                    published.resize(publisher + 1, 0);
                }
                published[publisher] = count;
            }
        }
        let mut outcome = Outcome::new();
        let mut tally = Tally::default();
        for troupe in &mut self.troupes {
            let (more, counted) = troupe.tally(&published)?;
            outcome.merge(more);
            tally.merge(counted);
        }
        Ok((outcome, tally))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crew(time_limit: Duration) -> (Arc<Shared>, Crew) {
        let shared = Arc::new(Shared::default());
        let crew = Crew::new(
            vec![Arc::clone(&shared)],
            Vec::new(),
            Duration::from_millis(1),
            Duration::from_secs(60),
            time_limit,
        );
        (shared, crew)
    }

    #[test]
    fn a_run_out_of_time_waits_for_what_is_on_its_way_and_for_nothing_else() {
        let (shared, crew) = crew(Duration::ZERO);
        assert!(!crew.was_cut_short());
        assert!(!crew.wait(|seen| seen.received > 0), "not for this");
        assert!(!crew.sleep(60.0) && crew.was_cut_short());
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            shared.progress.received.store(1, Ordering::Relaxed);
        });
        let patience = Duration::from_secs(60);
        assert!(crew.wait_for_rest(patience, |seen| seen.received > 0));
        late.join().unwrap();
        assert!(
            !crew.wait_for_rest(Duration::from_millis(5), |seen| seen.received > 1),
            "patience counts all the same"
        );
    }

    #[test]
    fn traffic_that_ends_early_keeps_what_was_measured_of_it() {
        let (shared, mut crew) = crew(Duration::from_secs(60));
        crew.end_traffic(); // there is none
        assert_eq!(shared.orders().timetable, None);
        let hour = Duration::from_secs(3_600);
        let planned = crew.start_traffic(Duration::ZERO, hour);
        let before_ns = now_ns();
        crew.end_traffic();
        let ended = shared.orders().timetable.unwrap();
        assert_eq!(ended.traffic_from_ns, planned.traffic_from_ns);
        assert_eq!(ended.measure_from_ns, planned.measure_from_ns);
        assert!((before_ns..=now_ns()).contains(&ended.measure_to_ns));
        crew.end_traffic();
        assert_eq!(shared.orders().timetable, Some(ended), "only once");

        crew.start_traffic(hour, hour);
        crew.end_traffic();
        let ended = shared.orders().timetable.unwrap();
        assert_eq!(ended.measure_from_ns, ended.measure_to_ns, "a warm-up");
    }

    #[test]
    fn a_run_that_nobody_is_connected_to_is_over() {
        let (shared, crew) = crew(Duration::from_secs(60));
        assert!(!crew.sleep_until_alone(now_ns() + 3_600_000_000_000));
        assert!(!crew.was_cut_short(), "its time was not over");
        shared.progress.open.store(1, Ordering::Relaxed);
        assert!(crew.sleep_until_alone(now_ns() + 2 * ALONE.as_nanos() as u64));
    }

    #[test]
    fn catching_up_waits_for_those_elsewhere_and_for_nobody_here() {
        let elsewhere = Arc::new(Shared::heard_by(|_| {}));
        let crew = |shared: Vec<Arc<Shared>>, patience| {
            Crew::new(shared, Vec::new(), Duration::ZERO, patience, patience)
        };
        let long = Duration::from_secs(60);
        crew(vec![Arc::new(Shared::default())], long).catch_up();

        let both = crew(
            vec![Arc::new(Shared::default()), Arc::clone(&elsewhere)],
            long,
        );
        let began_ns = now_ns();
        let teller = Arc::clone(&elsewhere);
        let telling = std::thread::spawn(move || {
            // What was seen before the question does not answer it.
            teller.progress_at_ns.store(began_ns, Ordering::Release);
            while now_ns() < began_ns + 20_000_000 {
                std::thread::yield_now();
            }
            let told_ns = now_ns();
            teller.progress_at_ns.store(told_ns, Ordering::Release);
            told_ns
        });
        both.catch_up();
        let caught_up_ns = now_ns();
        assert!(caught_up_ns >= telling.join().unwrap());

        crew(vec![Arc::clone(&elsewhere)], Duration::from_millis(20)).catch_up();
        elsewhere.progress.finished.store(true, Ordering::Release);
        crew(vec![elsewhere], long).catch_up();
    }
}
