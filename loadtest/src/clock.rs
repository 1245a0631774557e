//! The clock of all measurements: `CLOCK_MONOTONIC`, so that two processes of one machine agree about a moment.
//!
//! A generator that joined a coordinator on another machine adds the difference between the two clocks.

use std::sync::atomic::{AtomicI64, Ordering};

use rustix::time::{ClockId, clock_gettime};

/// What this process adds to its own clock, nanoseconds.
static OFFSET_NS: AtomicI64 = AtomicI64::new(0);

/// Nanoseconds of the run's `CLOCK_MONOTONIC`.
pub fn now_ns() -> u64 {
    machine_ns().saturating_add_signed(OFFSET_NS.load(Ordering::Relaxed))
}

/// Nanoseconds of this machine's own `CLOCK_MONOTONIC`.
pub fn machine_ns() -> u64 {
    read(ClockId::Monotonic)
}

/// From now on [`now_ns`] is the coordinator's clock, which is `ns` ahead of this machine's.
pub fn set_offset_ns(ns: i64) {
    OFFSET_NS.store(ns, Ordering::Relaxed);
}

/// Processor time of this thread so far, user and system, nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    read(ClockId::ThreadCPUTime)
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
