//! Whether a run of hours drifts: windows in, the first drift beyond a bound out. Pure.
//!
//! The first windows settle the baseline, as their medians. From then on memory, latency and descriptors are held against
//! it, each window. What may not happen at all (loss, connections lost, silence) is looked for from the first window on.

use std::fmt::Write as _;

use crate::report::Percentiles;

/// A line through fewer points says nothing.
const POINT_COUNT_MIN: u64 = 10;
/// A slope is told from none when it is so many standard errors above it.
const SLOPE_ERRORS: f64 = 3.0;
const MIB: f64 = 1_048_576.0;

/// How far a run may drift.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Windows that the baseline is the median of.
    pub settle: u32,
    /// Resident memory over the baseline, as a share of it.
    pub memory_share: f64,
    /// Bytes an hour that resident memory may rise by, when that is bounded.
    pub memory_bytes_per_h: Option<f64>,
    /// The 99th percentile of a window over the baseline, as a share of it.
    pub latency_share: f64,
    /// The same in nanoseconds: both must be met.
    pub latency_slack_ns: u64,
    /// Faulty deliveries in the whole run.
    pub loss: u64,
    /// Descriptors over the baseline.
    pub descriptors: u64,
}

/// What one window saw.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Window {
    /// When it ended, in seconds since the first began.
    pub end_s: f64,
    /// Deliveries.
    pub delivered: u64,
    /// Of those whose latency was known by its end; none when there were none.
    pub latency: Option<Percentiles>,
    /// Deliveries lost, duplicated, reordered, corrupted, misrouted.
    pub faults: u64,
    /// Connections that the server ended, and should not have, and those that could not be made.
    pub connections_lost: u64,
    /// Attempts to come back that were refused or failed, and are made again.
    pub retried: u64,
    /// Members that were away when it began, and should have come back in it, but did not.
    pub absent: u64,
    /// Deliveries that are overdue since before it began, without being known as lost.
    pub missing: u64,
    /// Resident memory of the servers, when they are looked at.
    pub rss_bytes: Option<u64>,
    /// Descriptors of the servers.
    pub descriptors: Option<u64>,
}

/// Holds one window after the other against the bounds.
#[derive(Debug, Clone)]
pub struct Watch {
    bounds: Bounds,
    settling: Vec<Window>,
    baseline: Option<Baseline>,
    count: u64,
    faults: u64,
    /// Windows in a row whose latency was beyond the bound.
    slow_count: u32,
    slope: Line,
    notes: Vec<String>,
}

/// What the settled server was like: medians.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Baseline {
    /// Of the windows' 99th percentiles.
    pub p99_ns: Option<u64>,
    /// Of resident memory.
    pub rss_bytes: Option<u64>,
    /// Of descriptors.
    pub descriptors: Option<u64>,
}

impl Watch {
    /// No window yet.
    pub const fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            settling: Vec::new(),
            baseline: None,
            count: 0,
            faults: 0,
            slow_count: 0,
            slope: Line::new(),
            notes: Vec::new(),
        }
    }

    /// Takes the next window in. The answer is the first drift, in words: nothing need be told after it.
    pub fn learn(&mut self, window: &Window) -> Option<String> {
        self.count += 1;
        self.faults += window.faults;
        let drift = self.never(window).or_else(|| {
            self.baseline
                .and_then(|baseline| self.compare(window, baseline))
        });
        if self.baseline.is_none() {
            self.settling.push(*window);
            if self.settling.len() >= self.bounds.settle as usize {
                self.baseline = Some(Baseline::of(&std::mem::take(&mut self.settling)));
            }
        } else if let Some(rss_bytes) = window.rss_bytes {
            self.slope.add(window.end_s / 3_600.0, rss_bytes as f64);
        }
        drift
            .or_else(|| self.rise())
            .map(|what| format!("window {} (at {}): {what}", self.count, clock(window.end_s)))
    }

    /// What may not be in any window.
    fn never(&self, window: &Window) -> Option<String> {
        if self.faults > self.bounds.loss {
            let faults = self.faults;
            return Some(format!(
                "{faults} deliveries were lost, duplicated, reordered, corrupted or misrouted; {} are allowed",
                self.bounds.loss
            ));
        }
        if window.connections_lost > 0 {
            return Some(format!("{} connections were lost", window.connections_lost));
        }
        if window.retried > 0 {
            return Some(format!(
                "members could not come back: {} attempts were refused or failed",
                window.retried
            ));
        }
        if window.absent > 0 {
            return Some(format!(
                "members did not come back: {} that were away before it still were at its end",
                window.absent
            ));
        }
        if self.faults.saturating_add(window.missing) > self.bounds.loss {
            return Some(format!(
                "{} deliveries that are overdue since before it have not come; {} may be lost",
                window.missing, self.bounds.loss
            ));
        }
        (window.delivered == 0).then(|| "nothing was delivered".to_owned())
    }

    fn compare(&mut self, window: &Window, baseline: Baseline) -> Option<String> {
        if let (Some(now), Some(then)) = (window.rss_bytes, baseline.rss_bytes)
            && now as f64 > then as f64 * (1.0 + self.bounds.memory_share)
        {
            return Some(format!(
                "memory drifted: {:.1} MiB resident are {:.1}% over the baseline of {:.1} MiB; {:.1}% are allowed",
                now as f64 / MIB,
                (now as f64 / then as f64 - 1.0) * 100.0,
                then as f64 / MIB,
                self.bounds.memory_share * 100.0
            ));
        }
        if let (Some(now), Some(then)) = (window.descriptors, baseline.descriptors)
            && now > then + self.bounds.descriptors
        {
            return Some(format!(
                "descriptors drifted: {now} are {} over the baseline of {then}; {} are allowed",
                now - then,
                self.bounds.descriptors
            ));
        }
        self.compare_latency(window, baseline)
    }

    /// One slow window is a hiccup, two in a row are a drift.
    fn compare_latency(&mut self, window: &Window, baseline: Baseline) -> Option<String> {
        let (now_ns, then_ns) = (window.latency?.p99_ns, baseline.p99_ns?);
        let share_ns = (then_ns as f64 * (1.0 + self.bounds.latency_share)) as u64;
        let bound_ns = share_ns.max(then_ns.saturating_add(self.bounds.latency_slack_ns));
        if now_ns <= bound_ns {
            self.slow_count = 0;
            return None;
        }
        self.slow_count += 1;
        let mut what = format!(
            "a p99 of {:.2} ms, where the baseline is {:.2} ms and {:.2} ms are allowed",
            now_ns as f64 / 1e6,
            then_ns as f64 / 1e6,
            bound_ns as f64 / 1e6
        );
        if self.slow_count >= 2 {
            let _ = write!(what, ", for the {}. window in a row", self.slow_count);
            return Some(format!("latency drifted: {what}"));
        }
        let number = self.count;
        self.notes.push(format!(
            "window {number} (at {}): {what}",
            clock(window.end_s)
        ));
        None
    }

    /// Whether the line through the windows rises faster than it may, beyond chance.
    fn rise(&self) -> Option<String> {
        let bound = self.bounds.memory_bytes_per_h?;
        let (slope, error) = self.slope()?;
        (slope - SLOPE_ERRORS * error > bound).then(|| {
            format!(
                "memory rises: {:.2} MiB an hour, give or take {:.2}; {:.2} are allowed",
                slope / MIB,
                error / MIB,
                bound / MIB
            )
        })
    }

    /// Bytes an hour by which resident memory rises, and the standard error of that, once there are windows enough.
    pub fn slope(&self) -> Option<(f64, f64)> {
        self.slope.slope()
    }

    /// Whether the slope is one beyond chance.
    pub fn rises(&self) -> bool {
        self.slope()
            .is_some_and(|(slope, error)| slope > SLOPE_ERRORS * error)
    }

    /// What was settled on.
    pub const fn baseline(&self) -> Option<Baseline> {
        self.baseline
    }

    /// Windows taken in.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Hiccups since this was last asked.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}

impl Baseline {
    fn of(windows: &[Window]) -> Self {
        let median =
            |of: fn(&Window) -> Option<u64>| median(windows.iter().filter_map(of).collect());
        Self {
            p99_ns: median(|window| Some(window.latency?.p99_ns)),
            rss_bytes: median(|window| window.rss_bytes),
            descriptors: median(|window| window.descriptors),
        }
    }
}

/// The upper median; none of nothing.
fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

/// Least squares, point after point: means and sums of products about them, after Welford.
#[derive(Debug, Clone, Copy, Default)]
pub struct Line {
    count: u64,
    x_mean: f64,
    y_mean: f64,
    xx: f64,
    xy: f64,
    yy: f64,
}

impl Line {
    /// No point yet.
    pub const fn new() -> Self {
        Self {
            count: 0,
            x_mean: 0.0,
            y_mean: 0.0,
            xx: 0.0,
            xy: 0.0,
            yy: 0.0,
        }
    }

    /// Takes a point in.
    pub fn add(&mut self, x: f64, y: f64) {
        self.count += 1;
        let (dx, dy) = (x - self.x_mean, y - self.y_mean);
        self.x_mean += dx / self.count as f64;
        self.y_mean += dy / self.count as f64;
        self.xx += dx * (x - self.x_mean);
        self.xy += dx * (y - self.y_mean);
        self.yy += dy * (y - self.y_mean);
    }

    /// The slope and its standard error; none of fewer than ten points, or of points at one place.
    pub fn slope(&self) -> Option<(f64, f64)> {
        if self.count < POINT_COUNT_MIN || self.xx <= 0.0 {
            return None;
        }
        let slope = self.xy / self.xx;
        let rest = (self.yy - slope * self.xy).max(0.0);
        Some((slope, (rest / (self.count - 2) as f64 / self.xx).sqrt()))
    }
}

/// Seconds as `1:02:03`.
fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    format!(
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        settle: 3,
        memory_share: 0.05,
        memory_bytes_per_h: None,
        latency_share: 0.5,
        latency_slack_ns: 5_000_000,
        loss: 0,
        descriptors: 16,
    };
    const RSS: u64 = 200 << 20;

    fn p99(ns: u64) -> Option<Percentiles> {
        Some(Percentiles {
            p99_ns: ns,
            ..Percentiles::default()
        })
    }

    fn window(index: u64) -> Window {
        Window {
            end_s: (index + 1) as f64 * 60.0,
            delivered: 10_000,
            latency: p99(20_000_000),
            faults: 0,
            connections_lost: 0,
            retried: 0,
            absent: 0,
            missing: 0,
            rss_bytes: Some(RSS),
            descriptors: Some(40),
        }
    }

    /// The first window, counted from 0, at which a drift is found.
    fn first_drift(
        bounds: Bounds,
        count: u64,
        of: impl Fn(u64) -> Window,
    ) -> Option<(u64, String)> {
        let mut watch = Watch::new(bounds);
        (0..count).find_map(|index| Some((index, watch.learn(&of(index))?)))
    }

    #[test]
    fn what_may_never_be_is_found_at_once_even_before_the_baseline() {
        type Spoil = fn(&mut Window);
        let spoil: [(Spoil, &str); 6] = [
            (|window| window.retried = 4, "4 attempts were refused"),
            (|window| window.absent = 5, "5 that were away"),
            (|window| window.missing = 6, "6 deliveries that are overdue"),
            (|window| window.faults = 1, "1 deliveries were lost"),
            (
                |window| window.connections_lost = 2,
                "2 connections were lost",
            ),
            (|window| window.delivered = 0, "nothing was delivered"),
        ];
        for (spoil, words) in spoil {
            for at in [0, 2, 3, 50] {
                let (found, what) = first_drift(BOUNDS, 60, |index| {
                    let mut window = window(index);
                    if index == at {
                        spoil(&mut window);
                    }
                    window
                })
                .unwrap();
                assert_eq!(found, at, "{what}");
                assert!(
                    what.contains(words) && what.starts_with(&format!("window {} (at 0:", at + 1)),
                    "{what}"
                );
            }
        }
    }

    #[test]
    fn what_is_missing_may_be_lost_as_far_as_losses_are_allowed() {
        let bounds = Bounds { loss: 2, ..BOUNDS };
        let missing = |missing: u64| {
            first_drift(bounds, 60, |index| Window {
                missing: if index == 7 { missing } else { 0 },
                faults: u64::from(index == 5),
                ..window(index)
            })
        };
        assert_eq!(missing(1), None);
        assert_eq!(missing(2).unwrap().0, 7, "one was lost before");
    }

    #[test]
    fn losses_add_up_over_windows() {
        let bounds = Bounds { loss: 2, ..BOUNDS };
        let found = first_drift(bounds, 60, |index| Window {
            faults: u64::from(index % 10 == 9),
            ..window(index)
        });
        assert_eq!(found.unwrap().0, 29, "the third loss is one too many");
    }

    #[test]
    fn one_slow_window_is_a_note_and_two_in_a_row_are_a_drift() {
        let slow = |index: u64, at: &[u64]| Window {
            latency: p99(if at.contains(&index) {
                30_000_001
            } else {
                20_000_000
            }),
            ..window(index)
        };
        assert_eq!(
            first_drift(BOUNDS, 60, |index| slow(index, &[10, 12, 20])),
            None
        );
        let mut watch = Watch::new(BOUNDS);
        for index in 0..12 {
            assert_eq!(watch.learn(&slow(index, &[10])), None);
        }
        let notes = watch.take_notes();
        assert!(
            notes.len() == 1 && notes[0].starts_with("window 11 (at 0:11:00): a p99 of 30.00 ms"),
            "{notes:?}"
        );
        let (found, what) = first_drift(BOUNDS, 60, |index| slow(index, &[10, 20, 21])).unwrap();
        assert_eq!(found, 21);
        assert!(what.contains("latency drifted"), "{what}");
        // A share of little is little: the slack must be met, too.
        let quick = |index: u64| Window {
            latency: p99(if index > 10 { 5_900_000 } else { 1_000_000 }),
            ..window(index)
        };
        assert_eq!(first_drift(BOUNDS, 60, quick), None);
    }

    #[test]
    fn servers_that_are_not_looked_at_do_not_drift() {
        let found = first_drift(BOUNDS, 60, |index| Window {
            rss_bytes: None,
            descriptors: None,
            ..window(index)
        });
        assert_eq!(found, None);
    }

    #[test]
    fn descriptors_that_are_not_given_back_are_found() {
        let (found, what) = first_drift(BOUNDS, 60, |index| Window {
            descriptors: Some(40 + index),
            ..window(index)
        })
        .unwrap();
        assert_eq!(
            found, 18,
            "the baseline is 41, and 58 is the first above 57: {what}"
        );
    }

    #[test]
    fn a_slope_is_known_with_its_error() {
        let mut line = Line::new();
        for x in 0..100 {
            line.add(
                f64::from(x),
                5.0 + 3.0 * f64::from(x) + if x % 2 == 0 { 1.0 } else { -1.0 },
            );
        }
        let (slope, error) = line.slope().unwrap();
        // Residuals of 1 each, and 83,325 the sum of squares about the middle.
        assert!((slope - 3.0).abs() < 0.001, "{slope}");
        assert!(
            (error - (100.0_f64 / 98.0 / 83_325.0).sqrt()).abs() < 1e-5,
            "{error}"
        );
        assert_eq!(Line::new().slope(), None);
    }

    #[test]
    fn a_bounded_slope_is_found_long_before_the_share_is_met() {
        let bounds = Bounds {
            memory_bytes_per_h: Some(1e6),
            ..BOUNDS
        };
        let leak = |index: u64| Window {
            rss_bytes: Some(RSS + index * 50_000 + index % 3 * 10_000), // 3 MB an hour
            ..window(index)
        };
        let (found, what) = first_drift(bounds, 600, leak).unwrap();
        assert!(
            found < 20 && what.contains("memory rises: 2.8"),
            "{found}: {what}"
        );
        let (found, _) = first_drift(BOUNDS, 600, leak).unwrap();
        assert!(
            found > 200,
            "5% of 200 MiB are 210 windows of 50 kB: {found}"
        );
    }

    proptest! {
        #[test]
        fn stationary_noise_is_no_drift(
            noise in proptest::collection::vec((-0.02..0.02_f64, -0.2..0.2_f64, 0..8_u64), 3..300),
        ) {
            let found = first_drift(BOUNDS, noise.len() as u64, |index| {
                let (memory, latency, descriptors) = noise[index as usize];
                Window {
                    rss_bytes: Some((RSS as f64 * (1.0 + memory)) as u64),
                    // Between 0.8 and 1.2 times: 1.2 / 0.8 is 1.5, the bound.
                    latency: p99((20e6 * (1.0 + latency)) as u64),
                    descriptors: Some(40 + descriptors),
                    ..window(index)
                }
            });
            prop_assert_eq!(found, None);
        }

        #[test]
        fn a_leak_is_found_in_the_window_that_crosses_the_bound(
            rate in 10_000..5_000_000_u64,
            from in 0..50_u64,
        ) {
            let rss = |index: u64| RSS + index.saturating_sub(from) * rate;
            let baseline = rss(1); // the median of a rise is its middle
            let crosses = (3..).find(|index| rss(*index) as f64 > baseline as f64 * 1.05).unwrap();
            let found = first_drift(BOUNDS, 2_000, |index| Window {
                rss_bytes: Some(rss(index)),
                ..window(index)
            });
            prop_assert_eq!(found.unwrap().0, crosses);
        }

        #[test]
        fn a_server_that_gets_slower_is_found_one_window_after_it_crosses_the_bound(
            step_ns in 10_000..5_000_000_u64,
        ) {
            let rising = |index: u64| 20_000_000 + index * step_ns;
            let baseline = rising(1) as f64;
            let bound = (baseline * 1.5).max(baseline + 5e6) as u64;
            let crosses = (3..).find(|index| rising(*index) > bound).unwrap();
            let found = first_drift(BOUNDS, 3_000, |index| Window { latency: p99(rising(index)), ..window(index) });
            prop_assert_eq!(found.unwrap().0, crosses + 1);
        }
    }
}
