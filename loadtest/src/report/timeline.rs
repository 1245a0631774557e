//! What happened when: a point a second, the phases of the run, and the latency of each interval.
//!
//! A timeline is plain data: whoever samples the run fills it, the files and the page only read it.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::histogram::Packed;

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
    /// How long it is: more than a second in a run of hours.
    #[serde(default = "second_ms")]
    pub length_ms: u64,
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

/// What a point lasts that does not say.
const fn second_ms() -> u64 {
    1_000
}

impl Point {
    /// A count of this point by the second.
    pub fn per_s(&self, count: u64) -> f64 {
        match self.length_ms {
            0 => count as f64,
            length_ms => count as f64 * 1e3 / length_ms as f64,
        }
    }

    /// Joins the point that follows: counts are summed, levels are the later ones, shares are means by time, latencies and
    /// the busiest threads the worse.
    fn join(&mut self, later: Self) {
        let length_ms = self.length_ms + later.length_ms;
        let (mine, theirs) = (self.length_ms as f64, later.length_ms as f64);
        let mean = |one: f64, other: f64| (one * mine + other * theirs) / (mine + theirs).max(1.0);
        let mut servers = later.servers;
        for server in &mut servers {
            if let Some(before) = (self.servers.iter()).find(|found| found.name == server.name) {
                server.user_share = mean(before.user_share, server.user_share);
                server.system_share = mean(before.system_share, server.system_share);
                server.busiest_thread_share =
                    server.busiest_thread_share.max(before.busiest_thread_share);
            }
        }
        *self = Self {
            at_ms: later.at_ms,
            length_ms,
            open: later.open,
            upgraded: self.upgraded + later.upgraded,
            failed: self.failed + later.failed,
            closed: self.closed + later.closed,
            published: self.published + later.published,
            delivered: self.delivered + later.delivered,
            faults: self.faults + later.faults,
            latency: match (self.latency, later.latency) {
                (Some(one), Some(other)) => Some(one.worse(other)),
                (one, other) => one.or(other),
            },
            client_share: self.client_share.max(later.client_share),
            servers,
        };
    }
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
    /// The worse of each, of all together.
    fn worse(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            p50_ns: self.p50_ns.max(other.p50_ns),
            p90_ns: self.p90_ns.max(other.p90_ns),
            p99_ns: self.p99_ns.max(other.p99_ns),
            p99_9_ns: self.p99_9_ns.max(other.p99_9_ns),
            max_ns: self.max_ns.max(other.max_ns),
        }
    }

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

/// The latency of one interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// When it begins.
    pub from_ms: u64,
    /// How long it is.
    pub length_ms: u64,
    /// Nanoseconds, three significant digits.
    pub histogram: Packed,
}

impl Timeline {
    /// The whole seconds of the phases called `name`.
    pub fn points_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Point> {
        self.points.iter().filter(move |point| {
            let length_ms = point.length_ms.max(second_ms());
            self.phase_of(point.at_ms.saturating_sub(length_ms), point.at_ms) == Some(name)
        })
    }

    /// The intervals that lie in the phases called `name`.
    pub fn intervals_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Interval> {
        self.intervals.iter().filter(move |interval| {
            let to_ms = interval.from_ms.saturating_add(interval.length_ms);
            self.phase_of(interval.from_ms, to_ms) == Some(name)
        })
    }

    /// Has all of it happen `ms` later: it is a part of a run that began so much earlier.
    pub fn delay(&mut self, ms: u64) {
        let points = self.points.iter_mut().map(|point| &mut point.at_ms);
        let phases = self.phases.iter_mut().map(|phase| &mut phase.from_ms);
        let intervals = self.intervals.iter_mut();
        let intervals = intervals.map(|interval| &mut interval.from_ms);
        for moment_ms in points.chain(phases).chain(intervals) {
            *moment_ms += ms;
        }
    }

    /// Joins neighbouring points, two by two, until there are at most `point_count_max` of them.
    pub fn coarsen_points(&mut self, point_count_max: usize) {
        while self.points.len() > point_count_max.max(1) {
            let mut joined: Vec<Point> = Vec::with_capacity(self.points.len().div_ceil(2));
            for (index, point) in std::mem::take(&mut self.points).into_iter().enumerate() {
                match joined.last_mut() {
                    Some(last) if index % 2 == 1 => last.join(point),
                    _ => joined.push(point),
                }
            }
            self.points = joined;
        }
    }

    /// Joins neighbouring intervals of a phase, two by two, until there are at most `interval_count_max` of them or no two can be
    /// joined. What takes a sample every second for hours calls this with each, and its memory is bounded.
    pub fn coarsen(&mut self, interval_count_max: usize) {
        while self.intervals.len() > interval_count_max {
            let before = std::mem::take(&mut self.intervals);
            let count_before = before.len();
            let mut joined: Vec<Interval> = Vec::with_capacity(count_before);
            let mut is_pair = false; // the last of `joined` is one of two already
            for interval in before {
                match joined.last_mut() {
                    Some(last) if !is_pair && self.is_one_stretch(last, &interval) => {
                        last.length_ms = interval.from_ms + interval.length_ms - last.from_ms;
                        last.histogram.add(&interval.histogram);
                        is_pair = true;
                    }
                    _ => {
                        joined.push(interval);
                        is_pair = false;
                    }
                }
            }
            self.intervals = joined;
            if self.intervals.len() == count_before {
                break;
            }
        }
    }

    /// Whether `later` follows `earlier` without a hole, in the same phase.
    fn is_one_stretch(&self, earlier: &Interval, later: &Interval) -> bool {
        let (from_ms, to_ms) = (
            earlier.from_ms,
            later.from_ms.saturating_add(later.length_ms),
        );
        let hole_ms = later
            .from_ms
            .abs_diff(earlier.from_ms.saturating_add(earlier.length_ms));
        hole_ms <= SLACK_MS && self.phase_of(from_ms, to_ms).is_some()
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
            histogram: Packed::new(&latency_histogram()),
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
    fn points_are_joined_two_by_two_and_nothing_is_lost() {
        let point = |second: u64| Point {
            at_ms: second * 1000,
            length_ms: 1000,
            open: second,
            published: 10,
            delivered: second,
            latency: (second == 3).then(|| Percentiles {
                count: 7,
                p99_ns: 9,
                ..Percentiles::default()
            }),
            client_share: second as f64,
            servers: vec![ServerPoint {
                name: "1".into(),
                user_share: second as f64,
                rss_bytes: second,
                ..ServerPoint::default()
            }],
            ..Point::default()
        };
        let mut timeline = Timeline {
            points: (1..=5).map(point).collect(),
            ..Timeline::default()
        };
        timeline.coarsen_points(5);
        assert_eq!(timeline.points.len(), 5, "so many may stay");
        timeline.coarsen_points(4);
        let of = |of: fn(&Point) -> u64| timeline.points.iter().map(of).collect::<Vec<u64>>();
        assert_eq!(of(|point| point.at_ms), [2000, 4000, 5000]);
        assert_eq!(of(|point| point.length_ms), [2000, 2000, 1000]);
        assert_eq!(of(|point| point.open), [2, 4, 5]);
        assert_eq!(of(|point| point.delivered), [3, 7, 5]);
        assert_eq!(
            of(|point| point.latency.map_or(0, |found| found.p99_ns)),
            [0, 9, 0]
        );
        assert_eq!(of(|point| point.servers[0].rss_bytes), [2, 4, 5]);
        assert_eq!(timeline.points[0].servers[0].user_share, 1.5);
        assert_eq!(timeline.points[0].per_s(timeline.points[0].published), 10.0);
    }

    #[test]
    fn intervals_are_joined_within_their_phase_and_nothing_is_lost() {
        let interval = |second: u64| {
            let mut histogram = latency_histogram();
            histogram.record_n(second * 1_000_000, 10).unwrap();
            Interval {
                from_ms: second * 1000,
                length_ms: 1000,
                histogram: Packed::new(&histogram),
            }
        };
        let phase = |name: &str, from_ms| Phase {
            name: name.into(),
            from_ms,
        };
        let mut timeline = Timeline {
            points: Vec::new(),
            phases: vec![phase("warm-up", 1000), phase(MEASURE, 4000)],
            // Three seconds of warm-up, eight that are measured, a hole, and two more.
            intervals: (1..12).chain(20..22).map(interval).collect(),
        };
        timeline.coarsen(13);
        assert_eq!(timeline.intervals.len(), 13, "so many may stay");
        let stretches = |timeline: &Timeline| -> Vec<(u64, u64)> {
            let intervals = timeline.intervals.iter();
            intervals
                .map(|interval| (interval.from_ms, interval.length_ms))
                .collect()
        };
        timeline.coarsen(12);
        let pairs = [
            (1000, 2000),
            (3000, 1000),
            (4000, 2000),
            (6000, 2000),
            (8000, 2000),
            (10_000, 2000),
            (20_000, 2000),
        ];
        assert_eq!(stretches(&timeline), pairs);
        timeline.coarsen(1);
        assert_eq!(
            stretches(&timeline),
            [(1000, 3000), (4000, 8000), (20_000, 2000)]
        );
        let counts: Vec<u64> = timeline
            .intervals
            .iter()
            .map(|interval| interval.histogram.unpack().len())
            .collect();
        assert_eq!(counts, [30, 80, 20]);
        assert_eq!(timeline.intervals_of(MEASURE).count(), 2);
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
