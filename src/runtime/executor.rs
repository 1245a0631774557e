//! Pinned glommio executors, one a core, and what keeps them turning.
//!
//! glommio 0.9 has a hole: when something has come into its latency ring (its preempt timer, above all) between its
//! look at the rings and its first task, it takes itself to be idle and parks, with that task still to be run. A thread
//! that loses its processor at the wrong moment would sleep for good. So the preempt timer is set out of reach: nobody
//! here needs it. And every executor has a heart, a timer that is always set, so that no park outlasts [`HEARTBEAT`].

use std::time::Duration;

use crossbeam_channel::Sender;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};

/// glommio's own buffers, which no core uses: our sockets are our ring's. The least that it takes.
const EXECUTOR_MEMORY_BYTES: usize = 64 << 10;
/// Entries of glommio's own rings: they carry the bridge and, on the backplane core, the admin listener.
const EXECUTOR_RING_DEPTH: usize = 128;
/// No executor parks for longer.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// The preempt timer's interval. The loops rest by themselves where others want a turn.
const PREEMPT_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// Tells, when it is dropped, that a core has ended, however it did.
pub(super) struct Ended<T: Clone> {
    core: T,
    sender: Sender<T>,
}

impl<T: Clone> Ended<T> {
    pub(super) fn new(core: T, sender: &Sender<T>) -> Self {
        Self {
            core,
            sender: sender.clone(),
        }
    }
}

impl<T: Clone> Drop for Ended<T> {
    fn drop(&mut self) {
        // Nobody listens any more: the process is about to end anyway.
        let _ = self.sender.try_send(self.core.clone());
    }
}

/// Starts an executor on `processor` that runs `future` to its end.
///
/// # Errors
/// In words: the processor is not there, or the kernel has no io_uring, locked memory or descriptors to spare.
pub(super) fn spawn<T, F>(
    name: &str,
    processor: u32,
    future: impl FnOnce() -> F + Send + 'static,
) -> Result<ExecutorJoinHandle<Result<T, String>>, String>
where
    T: Send + 'static,
    F: Future<Output = Result<T, String>> + 'static,
{
    LocalExecutorBuilder::new(Placement::Fixed(processor as usize))
        .name(name)
        .io_memory(EXECUTOR_MEMORY_BYTES)
        .ring_depth(EXECUTOR_RING_DEPTH)
        .preempt_timer(PREEMPT_INTERVAL)
        .spawn(move || async move {
            let heart = glommio::spawn_local(async {
                loop {
                    glommio::timer::sleep(HEARTBEAT).await;
                }
            });
            let result = future().await;
            heart.cancel().await;
            result
        })
        .map_err(|error| {
            format!(
                "cannot start the executor {name} on processor {processor}: {error}; \
                 `throng check` says what this host lacks"
            )
        })
}

/// Waits for an executor's end.
///
/// # Errors
/// What its future said, or that it panicked.
pub(super) fn join<T: Send + 'static>(
    executor: ExecutorJoinHandle<Result<T, String>>,
) -> Result<T, String> {
    executor
        .join()
        .map_err(|error| format!("a core has died: {error}"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preempt_timer_is_out_of_reach() {
        // glommio's own interval is 100 ms.
        let executor = spawn("test", 0, || async {
            std::thread::sleep(Duration::from_millis(150));
            Ok(glommio::executor().need_preempt())
        });
        assert_eq!(join(executor.unwrap()), Ok(false));
    }

    #[test]
    fn no_park_outlasts_the_heartbeat() {
        let executor = spawn("test", 0, || async {
            let before = glommio::executor().executor_stats().scheduler_runs();
            glommio::timer::sleep(10 * HEARTBEAT).await;
            Ok(glommio::executor().executor_stats().scheduler_runs() - before)
        });
        let runs = join(executor.unwrap()).unwrap();
        assert!(runs >= 10, "a heart that beats runs its task: {runs} runs");
    }

    #[test]
    fn a_core_that_panics_is_told_too() {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let executor = spawn::<(), _>("test", 0, move || async move {
            let _ended = Ended::new(7, &sender);
            panic!("on purpose");
        })
        .unwrap();
        assert_eq!(receiver.recv_timeout(Duration::from_secs(20)), Ok(7));
        let error = join(executor).unwrap_err();
        assert!(error.contains("a core has died"), "{error}");
    }
}
