//! The one clock.

use std::time::Instant;

use crate::time::Tick;

/// Ticks since the process started; the same for all cores.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    pub(super) fn now(&self) -> Tick {
        // 2^64 µs are 584,000 years.
        Tick(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}
