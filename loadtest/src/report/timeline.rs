//! What happened when: a point a second, the phases of the run, and the latency of each interval.
//!
//! A timeline is plain data: whoever samples the run fills it, the files and the page only read it.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::json::packed;

/// The phase whose seconds a report's figures are about.
pub const MEASURE: &str = "measure";

/// A run by the second. All moments are milliseconds since the run began.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// One a second, in order.
    pub points: Vec<Point>,
    /// In order; each lasts until the next begins, the last until the run's end.
    pub phases: Vec<Phase>,
    /// For the HDR log; may be empty.
    pub intervals: Vec<Interval>,
}

/// A part of the run, such as `connect`, `warm-up`, `measure` or `drain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Its name. Figures are made from [`MEASURE`].
    pub name: String,
    /// When it begins.
    pub from_ms: u64,
}

/// One second, named by its end. Counts but `open` are of this second alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The second's end.
    pub at_ms: u64,
    /// Connections that are open and upgraded now.
    pub open: u64,
    /// Connections upgraded.
    pub upgraded: u64,
    /// Connections that failed before they were upgraded.
    pub failed: u64,
    /// Open connections that ended, whoever ended them.
    pub closed: u64,
    /// Messages sent to be delivered.
    pub published: u64,
    /// Messages received.
    pub delivered: u64,
    /// Messages lost, doubled, out of order or corrupted, as far as it is known by now.
    pub faults: u64,
    /// Of the messages received; none when there were none.
    pub latency: Option<Percentiles>,
    /// Processor time of the busiest generator thread, as a share of a core.
    pub client_share: f64,
    /// Each server that is looked at.
    pub servers: Vec<ServerPoint>,
}

/// A second's latency, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// How many were recorded.
    pub count: u64,
    /// Half took at most this.
    pub p50_ns: u64,
    /// 90% took at most this.
    pub p90_ns: u64,
    /// 99% took at most this.
    pub p99_ns: u64,
    /// 99.9% took at most this.
    pub p99_9_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl Percentiles {
    /// Those of `histogram`, in nanoseconds; none when it is empty.
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        (!histogram.is_empty()).then(|| Self {
            count: histogram.len(),
            p50_ns: histogram.value_at_quantile(0.5),
            p90_ns: histogram.value_at_quantile(0.9),
            p99_ns: histogram.value_at_quantile(0.99),
            p99_9_ns: histogram.value_at_quantile(0.999),
            max_ns: histogram.max(),
        })
    }
}

/// A server in one second. Shares are of one core: a server on two cores may use 2.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerPoint {
    /// What it is called, such as its process id.
    pub name: String,
    /// User time of all its threads.
    pub user_share: f64,
    /// System time of all its threads.
    pub system_share: f64,
    /// User and system time of its busiest thread.
    pub busiest_thread_share: f64,
    /// Resident memory now.
    pub rss_bytes: u64,
    /// The kernel's memory for TCP now, of all processes of the server's machine.
    pub tcp_memory_bytes: u64,
    /// Entries in its file table now.
    pub descriptors: u64,
    /// Connections that it counts itself, when it says.
    pub connections: Option<u64>,
}

/// The latency of one interval. A histogram of [`latency_histogram`](super::latency_histogram)'s bounds takes 170 KiB in
/// memory and some hundred bytes in a file: runs of hours want intervals of minutes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// When it begins.
    pub from_ms: u64,
    /// How long it is.
    pub length_ms: u64,
    /// Nanoseconds, three significant digits.
    #[serde(with = "packed")]
    pub histogram: Histogram<u64>,
}

impl Timeline {
    /// The whole seconds of the phases called `name`.
    pub fn points_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Point> {
        self.points.iter().filter(move |point| {
            self.phase_of(point.at_ms.saturating_sub(1000), point.at_ms) == Some(name)
        })
    }

    /// The intervals that lie in the phases called `name`.
    pub fn intervals_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Interval> {
        self.intervals.iter().filter(move |interval| {
            let to_ms = interval.from_ms.saturating_add(interval.length_ms);
            self.phase_of(interval.from_ms, to_ms) == Some(name)
        })
    }

    /// The phase that a stretch lies in; none when it spans two.
    fn phase_of(&self, from_ms: u64, to_ms: u64) -> Option<&str> {
        let at = |ms: u64| self.phases.iter().rposition(|phase| phase.from_ms <= ms);
        // The clock that ends a second is some milliseconds late, and a phase begins when it can.
        let first = at(from_ms.saturating_add(SLACK_MS))?;
        let last = at(to_ms.saturating_sub(SLACK_MS))?;
        (first == last).then(|| self.phases[last].name.as_str())
    }
}

/// A second that reaches this far into another phase counts as whole, milliseconds.
const SLACK_MS: u64 = 50;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::latency_histogram;

    #[test]
    fn a_second_belongs_to_a_phase_when_all_of_it_does() {
        let point = |at_ms| Point {
            at_ms,
            ..Point::default()
        };
        let phase = |name: &str, from_ms| Phase {
            name: name.into(),
            from_ms,
        };
        let timeline = Timeline {
            points: [1000, 2000, 3004, 4000, 5000].map(point).into(),
            phases: vec![
                phase("connect", 0),
                phase(MEASURE, 1990),
                phase("drain", 4500),
            ],
            intervals: Vec::new(),
        };
        let of = |name| -> Vec<u64> { timeline.points_of(name).map(|point| point.at_ms).collect() };
        assert_eq!(of(MEASURE), [3004, 4000]);
        assert_eq!(of("connect"), [1000, 2000]);
        assert_eq!(of("drain"), [0; 0], "its only second began in another");
        let interval = |from_ms, length_ms| Interval {
            from_ms,
            length_ms,
            histogram: latency_histogram(),
        };
        let timed = Timeline {
            intervals: vec![
                interval(1000, 1000),
                interval(2004, 1000),
                interval(3000, 2000),
            ],
            ..timeline.clone()
        };
        let found: Vec<u64> = timed
            .intervals_of(MEASURE)
            .map(|interval| interval.from_ms)
            .collect();
        assert_eq!(found, [2004]);
        let none = Timeline {
            phases: Vec::new(),
            ..timeline.clone()
        };
        assert_eq!(none.points_of(MEASURE).count(), 0);
    }

    #[test]
    fn percentiles_are_the_histograms() {
        let mut histogram = latency_histogram();
        assert_eq!(Percentiles::of(&histogram), None);
        for us in 1..=10_000 {
            histogram.record(us * 1000).unwrap();
        }
        let found = Percentiles::of(&histogram).unwrap();
        assert_eq!(found.count, 10_000);
        for (value, us) in [
            (found.p50_ns, 5_000),
            (found.p90_ns, 9_000),
            (found.p99_ns, 9_900),
            (found.p99_9_ns, 9_990),
            (found.max_ns, 10_000),
        ] {
            assert!(value.abs_diff(us * 1000) <= us, "{value} for {us} us");
        }
    }
}
