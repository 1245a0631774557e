//! The workers of this process: a thread and a ring each.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use super::behaviour::{Behaviour, Plan};
use super::crew::{Shared, Troupe};
use super::engine::Engine;
use super::outcome::Outcome;
use super::tally::Tally;
use crate::failure::Failure;
use crate::meter::WORKER_NAME;
use crate::processor;

/// Which of a run's members belong to one worker: those whose number is `worker` modulo `worker_count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// This worker.
    pub worker: u32,
    /// Workers of the run, those of other generators included.
    pub worker_count: u32,
    /// Members of the run.
    pub member_count: u32,
}

impl Share {
    /// The number of a worker's member within the run.
    pub const fn number(self, local: u32) -> u32 {
        local * self.worker_count + self.worker
    }

    /// How many of the members below `number` are this worker's.
    pub const fn count_below(self, number: u32) -> u32 {
        if number <= self.worker {
            0
        } else {
            (number - self.worker).div_ceil(self.worker_count)
        }
    }

    /// How many members are this worker's.
    pub const fn count(self) -> u32 {
        self.count_below(self.member_count)
    }
}

/// The threads.
pub struct Local<B> {
    threads: Vec<JoinHandle<io::Result<(Outcome, B)>>>,
    behaviours: Vec<(Outcome, B)>,
}

impl<B: Behaviour + Send + 'static> Local<B> {
    /// Starts a worker for each of `shares`; gives what is shared with each.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        plan: &Arc<Plan>,
        shares: impl Iterator<Item = Share>,
        behaviour: impl Fn(Share) -> B,
    ) -> Result<(Vec<Arc<Shared>>, Self), Failure> {
        let mut all_shared = Vec::new();
        let mut threads = Vec::new();
        for (index, share) in shares.enumerate() {
            let shared = Arc::new(Shared::default());
            all_shared.push(Arc::clone(&shared));
            let (plan, behaviour) = (Arc::clone(plan), behaviour(share));
            let thread = std::thread::Builder::new()
                .name(format!("{WORKER_NAME}{index}"))
                .spawn(move || {
                    let result = (|| {
                        if !plan.cores.is_empty() {
                            processor::pin(plan.cores[index % plan.cores.len()])
                                .map_err(|failure| io::Error::other(failure.to_string()))?;
                        }
                        Engine::new(plan, Arc::clone(&shared), share, behaviour)?.run()
                    })();
                    shared.progress.finished.store(true, Ordering::Release);
                    result
                })
                .map_err(|error| Failure::Usage(format!("cannot start a thread: {error}")))?;
            threads.push(thread);
        }
        Ok((
            all_shared,
            Self {
                threads,
                behaviours: Vec::new(),
            },
        ))
    }
}

impl<B: Behaviour + Send + 'static> Troupe for Local<B> {
    fn stop(&mut self) -> Result<Vec<(u32, u32)>, Failure> {
        let mut published = Vec::new();
        for thread in self.threads.drain(..) {
            let result = thread
                .join()
                .map_err(|_| Failure::Broken("a worker panicked".into()))?;
            let (outcome, behaviour) =
                result.map_err(|error| Failure::Usage(format!("the client's engine: {error}")))?;
            published.extend(behaviour.published());
            self.behaviours.push((outcome, behaviour));
        }
        Ok(published)
    }

    fn tally(&mut self, published: &[u32]) -> Result<(Outcome, Tally), Failure> {
        let mut sum = (Outcome::new(), Tally::default());
        for (outcome, behaviour) in self.behaviours.drain(..) {
            sum.0.merge(outcome);
            sum.1.merge(behaviour.tally(published));
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_belongs_to_one_worker() {
        for (worker_count, member_count) in [(1, 5), (3, 7), (4, 4), (5, 3)] {
            let mut seen = vec![0; member_count as usize];
            for worker in 0..worker_count {
                let share = Share {
                    worker,
                    worker_count,
                    member_count,
                };
                for local in 0..share.count() {
                    seen[share.number(local) as usize] += 1;
                }
                for below in 0..=member_count {
                    let expected = (0..share.count()).filter(|local| share.number(*local) < below);
                    assert_eq!(share.count_below(below) as usize, expected.count());
                }
            }
            assert!(seen.iter().all(|count| *count == 1), "{seen:?}");
        }
    }
}
