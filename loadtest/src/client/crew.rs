//! The threads, what main tells them, and what it sees of them.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::engine::{Behaviour, Engine, Plan};
use super::outcome::Outcome;
use crate::clock::now_ns;
use crate::failure::Failure;
use crate::processor;

/// When a scenario's traffic flows, and which part of it is measured. By [`now_ns`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timetable {
    /// Publishers begin.
    pub traffic_from_ns: u64,
    /// The warm-up is over.
    pub measure_from_ns: u64,
    /// Publishers end, and so does the window.
    pub measure_to_ns: u64,
}

impl Timetable {
    /// From now on: `warm_up`, then `duration`.
    pub fn starting_now(warm_up: Duration, duration: Duration) -> Self {
        let traffic_from_ns = now_ns() + 20_000_000; // every worker has heard of it by then
        let measure_from_ns = traffic_from_ns + warm_up.as_nanos() as u64;
        Self {
            traffic_from_ns,
            measure_from_ns,
            measure_to_ns: measure_from_ns + duration.as_nanos() as u64,
        }
    }

    /// Whether `moment` is within the window.
    pub fn measures(&self, moment_ns: u64) -> bool {
        self.measure_from_ns <= moment_ns && moment_ns < self.measure_to_ns
    }
}

/// What main tells a worker.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    /// Members to have connected so far: those with a lower number are opened.
    pub open_until: u32,
    /// Traffic.
    pub timetable: Option<Timetable>,
    /// Members that did not read go on reading.
    pub resume: bool,
    /// Close everything and return.
    pub stop: bool,
}

/// What main sees of a worker.
#[derive(Debug, Default)]
pub struct Progress {
    /// Upgrades answered.
    pub upgraded: AtomicU64,
    /// Connections that were never upgraded.
    pub failed: AtomicU64,
    /// Connections that are over, for whatever reason.
    pub ended: AtomicU64,
    /// Messages published, or sent.
    pub published: AtomicU64,
    /// Messages received.
    pub received: AtomicU64,
    /// It has returned, perhaps early.
    pub finished: AtomicBool,
}

/// What main and one worker share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Counts the orders.
    pub generation: AtomicU32,
    /// The orders in force.
    pub orders: Mutex<Orders>,
    /// The worker's side.
    pub progress: Progress,
}

impl Shared {
    /// The orders in force.
    pub fn orders(&self) -> Orders {
        self.orders
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }
}

struct Worker<B> {
    shared: Arc<Shared>,
    member_count: u32,
    thread: JoinHandle<io::Result<(Outcome, B)>>,
}

/// The workers of a run.
pub struct Crew<B> {
    workers: Vec<Worker<B>>,
    time_limit_ns: u64,
}

impl<B: Behaviour + Send + 'static> Crew<B> {
    /// Starts a worker for each of `behaviours`, each with its number of members.
    ///
    /// # Errors
    /// When a thread cannot be started, pinned, or given a ring.
    pub fn start(
        plan: &Arc<Plan>,
        behaviours: Vec<(u32, B)>,
        time_limit: Duration,
    ) -> Result<Self, Failure> {
        let mut workers = Vec::new();
        for (index, (member_count, behaviour)) in behaviours.into_iter().enumerate() {
            let shared = Arc::new(Shared::default());
            let (worker_shared, plan) = (Arc::clone(&shared), Arc::clone(plan));
            let thread = std::thread::Builder::new()
                .name(format!("load-{index}"))
                .spawn(move || {
                    if let Some(core) = plan.core {
                        processor::pin(core)
                            .map_err(|failure| io::Error::other(failure.to_string()))?;
                    }
                    let result = Engine::new(
                        plan,
                        Arc::clone(&worker_shared),
                        member_count,
                        index as u32,
                        behaviour,
                    )
                    .and_then(Engine::run);
                    worker_shared
                        .progress
                        .finished
                        .store(true, Ordering::Release);
                    result
                });
            let thread = thread
                .map_err(|error| Failure::Usage(format!("cannot start a thread: {error}")))?;
            workers.push(Worker {
                shared,
                member_count,
                thread,
            });
        }
        Ok(Self {
            workers,
            time_limit_ns: now_ns() + time_limit.as_nanos() as u64,
        })
    }

    /// Changes the orders of all workers. `change` is given each worker's member count.
    pub fn order(&self, mut change: impl FnMut(&mut Orders, u32)) {
        for worker in &self.workers {
            let mut orders = worker
                .shared
                .orders
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            change(&mut orders, worker.member_count);
            drop(orders);
            worker.shared.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// Sums one of the counters.
    pub fn sum(&self, counter: impl Fn(&Progress) -> &AtomicU64) -> u64 {
        self.workers
            .iter()
            .map(|worker| counter(&worker.shared.progress).load(Ordering::Relaxed))
            .sum()
    }

    /// Waits until `done`, looking every few milliseconds. False: a worker returned early, the time limit of the run
    /// is over, or `progress` has not changed for `patience`.
    pub fn wait(
        &self,
        patience: Duration,
        done: impl Fn(&Self) -> bool,
        progress: impl Fn(&Self) -> u64,
    ) -> bool {
        let mut last = (progress(self), now_ns());
        loop {
            if done(self) {
                return true;
            }
            let now = now_ns();
            let current = progress(self);
            if current != last.0 {
                last = (current, now);
            }
            let finished = self
                .workers
                .iter()
                .any(|worker| worker.shared.progress.finished.load(Ordering::Acquire));
            if finished || now > self.time_limit_ns || now - last.1 > patience.as_nanos() as u64 {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether the time limit of the run is over.
    pub fn out_of_time(&self) -> bool {
        now_ns() > self.time_limit_ns
    }

    /// Sleeps until `moment_ns`, or returns false at the time limit or when a worker has returned.
    pub fn sleep_until(&self, moment_ns: u64) -> bool {
        loop {
            let now = now_ns();
            if now >= moment_ns {
                return true;
            }
            let finished = self
                .workers
                .iter()
                .any(|worker| worker.shared.progress.finished.load(Ordering::Acquire));
            if finished || now > self.time_limit_ns {
                return false;
            }
            std::thread::sleep(Duration::from_nanos((moment_ns - now).min(50_000_000)));
        }
    }

    /// Has all connections closed, and returns what was counted, with each worker's behaviour.
    ///
    /// # Errors
    /// When a worker could not go on.
    pub fn finish(self) -> Result<(Outcome, Vec<B>), Failure> {
        self.order(|orders, _| orders.stop = true);
        let mut outcome = Outcome::new();
        let mut behaviours = Vec::new();
        for worker in self.workers {
            let result = worker
                .thread
                .join()
                .map_err(|_| Failure::Broken("a worker panicked".into()))?;
            let (worker_outcome, behaviour) =
                result.map_err(|error| Failure::Usage(format!("the client's engine: {error}")))?;
            outcome.merge(worker_outcome);
            behaviours.push(behaviour);
        }
        Ok((outcome, behaviours))
    }
}
