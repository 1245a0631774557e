//! Time as the rooms see it: a [`Tick`] handed in by the runtime. Nothing here reads a clock.
#![forbid(unsafe_code)]

use std::time::Duration;

/// Microseconds since the process started. Microseconds, not milliseconds, because publish-to-deliver latency is
/// measured with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tick(pub u64);

impl Tick {
    /// The moment `ms` milliseconds after the start.
    #[must_use]
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms * 1_000)
    }

    /// Whole milliseconds since the start, wrapped to 32 bits (49 days), for per-connection stamps.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // wrapping is the point: see `elapsed_ms`
    pub const fn ms32(self) -> u32 {
        (self.0 / 1_000) as u32
    }

    /// Microseconds from `earlier` to `self`; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The moment `duration` later.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // 2^64 µs are 584,000 years
    pub const fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_micros() as u64))
    }
}

/// Milliseconds from the 32-bit stamp `earlier_ms` to the 32-bit stamp `now_ms`, right across one wrap.
///
/// Stamps are compared only over spans far below 24 days, so a stamp from the future reads as zero.
#[must_use]
pub const fn elapsed_ms(now_ms: u32, earlier_ms: u32) -> u32 {
    let elapsed = now_ms.wrapping_sub(earlier_ms);
    if elapsed > u32::MAX / 2 { 0 } else { elapsed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elapsed_survives_the_wrap_and_never_runs_backwards() {
        assert_eq!(elapsed_ms(5, u32::MAX - 4), 10);
        assert_eq!(elapsed_ms(1_000, 400), 600);
        assert_eq!(elapsed_ms(400, 1_000), 0);
    }
}
