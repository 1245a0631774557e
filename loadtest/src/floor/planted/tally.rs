//! What was planted: counts that are exact, and how long each delivery was held back, as the server itself saw it.

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hdrhistogram::Histogram;

use crate::report::latency_histogram;

/// What was planted so far. The server writes it, anybody reads it.
#[derive(Debug, Default)]
pub struct Planted(Mutex<Tally>);

impl Planted {
    /// A copy of what was planted so far.
    pub fn read(&self) -> Tally {
        self.lock().clone()
    }

    /// For the server, once a turn.
    pub fn lock(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts and histograms. A delivery is one message to one member.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Upgrades that were answered with 101.
    pub upgraded: u64,
    /// Upgrades that were refused with 503.
    pub refused: u64,
    /// Upgrades that got garbage, or the end of the stream, for an answer.
    pub spoiled: u64,
    /// Messages that came.
    pub messages: u64,
    /// Deliveries that became due at a member that was there.
    pub deliveries: u64,
    /// Those of them that were written whole, in whatever order; second copies do not count.
    pub delivered: u64,
    /// Not written.
    pub lost: u64,
    /// Written twice.
    pub duplicated: u64,
    /// Written after a later one.
    pub reordered: u64,
    /// Written with one bit changed.
    pub corrupted: u64,
    /// Written to a member of another room as well.
    pub misrouted: u64,
    /// Due later than was drawn, because an earlier one was to come first.
    pub deferred: u64,
    /// Dropped because too many waited to become due.
    pub overflowed: u64,
    /// Due at a member that had left.
    pub unreachable: u64,
    /// Bytes that are kept for ever.
    pub leaked_bytes: u64,
    /// Members that were closed as planted.
    pub closed: u64,
    /// When the first of them was, nanoseconds.
    pub first_close_ns: Option<u64>,
    /// When the last of them was, nanoseconds.
    pub last_close_ns: Option<u64>,
    /// Members that were cut off because they did not read, or sent what no client may.
    pub cut: u64,
    /// The stalls: from when to when, nanoseconds.
    pub stalls: Vec<(u64, u64)>,
    /// From the moment one stamped message of a connection was to be sent to that of its next: a publisher that keeps
    /// to its timetable, however late it is, has only one value here.
    pub spacing: Histogram<u64>,
    /// From the moment a message came to the moment its delivery was due: what was planted.
    pub planted: Histogram<u64>,
    /// From the moment a message came to the moment its delivery was written: what came of it.
    pub written: Histogram<u64>,
    /// From the moment a stamped message was to be sent to the moment its delivery was written. What a client measures
    /// from the same moment is longer, each time, by the way from the server's write to the client's read.
    pub answered: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            upgraded: 0,
            refused: 0,
            spoiled: 0,
            messages: 0,
            deliveries: 0,
            delivered: 0,
            lost: 0,
            duplicated: 0,
            reordered: 0,
            corrupted: 0,
            misrouted: 0,
            deferred: 0,
            overflowed: 0,
            unreachable: 0,
            leaked_bytes: 0,
            closed: 0,
            first_close_ns: None,
            last_close_ns: None,
            cut: 0,
            stalls: Vec::new(),
            spacing: latency_histogram(),
            planted: latency_histogram(),
            written: latency_histogram(),
            answered: latency_histogram(),
        }
    }
}

impl Tally {
    /// For a person: a line for each count, and the percentiles of each histogram.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, count) in [
            ("upgraded", self.upgraded),
            ("refused", self.refused),
            ("spoiled", self.spoiled),
            ("messages", self.messages),
            ("deliveries", self.deliveries),
            ("delivered", self.delivered),
            ("lost", self.lost),
            ("duplicated", self.duplicated),
            ("reordered", self.reordered),
            ("corrupted", self.corrupted),
            ("misrouted", self.misrouted),
            ("deferred", self.deferred),
            ("overflowed", self.overflowed),
            ("unreachable", self.unreachable),
            ("leaked_bytes", self.leaked_bytes),
            ("closed", self.closed),
            ("cut", self.cut),
        ] {
            let _ = writeln!(text, "{name:<12} {count}");
        }
        for (from_ns, to_ns) in &self.stalls {
            let ms = (to_ns - from_ns) as f64 / 1e6;
            let _ = writeln!(text, "{:<12} {ms:.3} ms", "stalled");
        }
        if let Some((first_ns, last_ns)) = self.first_close_ns.zip(self.last_close_ns) {
            let ms = (last_ns - first_ns) as f64 / 1e6;
            let _ = writeln!(text, "{:<12} {ms:.3} ms", "closed over");
        }
        for (name, histogram) in [
            ("spacing", &self.spacing),
            ("planted", &self.planted),
            ("written", &self.written),
            ("answered", &self.answered),
        ] {
            if histogram.is_empty() {
                continue;
            }
            let _ = write!(text, "{name:<12}");
            for (label, q) in [
                ("p50", 0.5),
                ("p90", 0.9),
                ("p99", 0.99),
                ("p99.9", 0.999),
                ("max", 1.0),
            ] {
                let ms = histogram.value_at_quantile(q) as f64 / 1e6;
                let _ = write!(text, " {label} {ms:.3} ms");
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_planted_is_said_in_words() {
        let planted = Planted::default();
        {
            let mut tally = planted.lock();
            tally.lost = 20;
            tally.stalls.push((1_000_000, 3_500_000));
            tally.planted.record_n(5_000_000, 10).unwrap();
        }
        let text = planted.read().text();
        assert!(text.contains("lost         20\n"), "{text}");
        assert!(text.contains("stalled      2.500 ms\n"), "{text}");
        assert!(text.contains("planted      p50 5.00"), "{text}");
        assert!(!text.contains("answered"), "nothing was stamped:\n{text}");
    }
}
