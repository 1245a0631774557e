//! How much a figure varies by itself: between runs, or from second to second of one run.
//!
//! Between runs is the honest one: it holds all that differs from run to run (placement, the allocator's mood, neighbours).
//! From the seconds of one run only what varies within it is known; a difference beyond that may still be chance.

use hdrhistogram::Histogram;

use super::json::Document;
use super::timeline::{MEASURE, Point};

/// Fewer seconds than this say nothing about noise.
const SECOND_COUNT_MIN: usize = 5;
/// Blocks of several seconds need to be at least so many.
const BLOCK_COUNT_MIN: usize = 8;
/// More blocks than this make an error no surer, only slower to find.
const BLOCK_COUNT_MAX: usize = 64;

/// A mean and how sure it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The standard error of the mean.
    pub error: f64,
    /// Degrees of freedom that the error was estimated with.
    pub freedom: f64,
}

impl Estimate {
    /// From values of runs, at least two; none otherwise.
    pub fn of_runs(values: &[f64]) -> Option<Self> {
        (values.len() >= 2).then(|| {
            let (mean, deviation) = mean_and_deviation(values);
            Self {
                mean,
                error: deviation / (values.len() as f64).sqrt(),
                freedom: values.len() as f64 - 1.0,
            }
        })
    }

    /// From one run: the intervals or seconds of its measure phase. None when the figure has no series, or one that is too
    /// short.
    pub fn of_seconds(document: &Document, name: &str) -> Option<Self> {
        let mean = document.figures.get(name)?;
        let by_seconds = || {
            let (values, kind) = series(document, name)?;
            match kind {
                Kind::Mean => mean_error_share(&values),
                Kind::Level => level_error_share(&values),
            }
        };
        let (error_share, freedom) = latency_error_share(document, name).or_else(by_seconds)?;
        Some(Self {
            mean,
            error: error_share * mean.abs(),
            freedom,
        })
    }

    /// The largest difference from `other` that chance makes in 19 of 20 comparisons: Student's factor of Welch's degrees of
    /// freedom, at least 2, times the errors of both.
    pub fn noise(&self, other: &Self) -> f64 {
        let (mine, theirs) = (self.error.powi(2), other.error.powi(2));
        let spread = mine.powi(2) / self.freedom + theirs.powi(2) / other.freedom;
        if spread == 0.0 {
            return 0.0;
        }
        student((mine + theirs).powi(2) / spread) * (mine + theirs).sqrt()
    }
}

/// The largest difference that chance makes between one run and `values` of others, when both vary as `values` do.
pub fn noise_beside_one(values: &[f64]) -> Option<f64> {
    let runs = Estimate::of_runs(values)?;
    let (_, deviation) = mean_and_deviation(values);
    Some(student(runs.freedom) * deviation.hypot(runs.error))
}

/// Two-sided 95% quantile of Student's distribution, at least 2.
fn student(freedom: f64) -> f64 {
    let table = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    ];
    match freedom.floor() {
        low if low < 1.0 => table[0],
        low if low <= 10.0 => table[low as usize - 1],
        more => (1.96 + 2.65 / more).max(2.0),
    }
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0)).sqrt())
}

/// The standard error of a mean, as a share of it, and its degrees of freedom.
///
/// Neighbouring seconds are alike, and counting them as independent would promise too much. So the seconds are put into blocks
/// of 1, 2, 4 …, and the largest error that the blocks' means show is taken (Flyvbjerg and Petersen, 1989).
fn mean_error_share(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < SECOND_COUNT_MIN {
        return None;
    }
    let mut blocks = values.to_vec();
    let (mean, _) = mean_and_deviation(values);
    let mut worst = (0.0, 1.0);
    loop {
        let (_, deviation) = mean_and_deviation(&blocks);
        let error = deviation / (blocks.len() as f64).sqrt();
        if error >= worst.0 {
            worst = (error, blocks.len() as f64 - 1.0);
        }
        if blocks.len() / 2 < BLOCK_COUNT_MIN {
            break;
        }
        blocks = blocks
            .chunks_exact(2)
            .map(|pair| (pair[0] + pair[1]) / 2.0)
            .collect();
    }
    (mean > 0.0).then(|| (worst.0 / mean, worst.1))
}

/// The error of a latency figure from the histograms of the measured intervals; none when there are too few.
fn latency_error_share(document: &Document, name: &str) -> Option<(f64, f64)> {
    let of: fn(&Histogram<u64>) -> f64 = match name {
        "latency_p50_ms" => |all| all.value_at_quantile(0.5) as f64,
        "latency_p90_ms" => |all| all.value_at_quantile(0.9) as f64,
        "latency_p99_ms" => |all| all.value_at_quantile(0.99) as f64,
        "latency_p99_9_ms" => |all| all.value_at_quantile(0.999) as f64,
        "latency_mean_ms" => Histogram::mean,
        _ => return None,
    };
    let intervals = document.timeline.intervals_of(MEASURE);
    let histograms: Vec<_> = intervals
        .map(|interval| interval.histogram.unpack())
        .collect();
    jackknife_error_share(&histograms.iter().collect::<Vec<_>>(), of)
}

/// The standard error of what `of` tells of all `histograms` together, as a share of it, and its degrees of freedom.
///
/// A percentile of the whole is no mean of the seconds' percentiles: one stalled second moves the mean of the medians far, and
/// the median of all hardly. So each block of seconds is left out in turn, and the error is taken from how far that moves the
/// figure (the block jackknife); of blocks of several lengths the largest, as for means.
fn jackknife_error_share(
    histograms: &[&Histogram<u64>],
    of: impl Fn(&Histogram<u64>) -> f64,
) -> Option<(f64, f64)> {
    if histograms.len() < SECOND_COUNT_MIN {
        return None;
    }
    let sum = |part: &[&Histogram<u64>]| {
        let mut all = (*part.first()?).clone();
        part[1..].iter().try_for_each(|more| all.add(*more)).ok()?;
        Some(all)
    };
    let whole = sum(histograms)?;
    let value = of(&whole);
    let mut worst = (0.0, 1.0);
    let mut length = histograms.len().div_ceil(BLOCK_COUNT_MAX);
    loop {
        let mut moved = Vec::new();
        for block in histograms.chunks(length) {
            let mut others = whole.clone();
            others.subtract(&sum(block)?).ok()?;
            if !others.is_empty() {
                moved.push(of(&others));
            }
        }
        let count = moved.len() as f64;
        if count >= 2.0 {
            let (_, deviation) = mean_and_deviation(&moved);
            let error = (count - 1.0) / count.sqrt() * deviation;
            if error >= worst.0 {
                worst = (error, count - 1.0);
            }
        }
        length *= 2;
        if histograms.len() / length < BLOCK_COUNT_MIN {
            break;
        }
    }
    (value > 0.0).then(|| (worst.0 / value, worst.1))
}

/// How far a level, such as memory at the end, lies from the mean by itself, as a share of it.
fn level_error_share(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < SECOND_COUNT_MIN {
        return None;
    }
    let (mean, deviation) = mean_and_deviation(values);
    (mean > 0.0).then(|| (deviation / mean, values.len() as f64 - 1.0))
}

enum Kind {
    /// The figure is a mean over the seconds: it gets surer with their number.
    Mean,
    /// The figure is read at one moment.
    Level,
}

/// What a figure was in each whole second of the measure phase.
fn series(document: &Document, name: &str) -> Option<(Vec<f64>, Kind)> {
    let sum = |point: &Point, of: fn(&super::ServerPoint) -> f64| -> Option<f64> {
        (!point.servers.is_empty()).then(|| point.servers.iter().map(of).sum())
    };
    let cores = |point: &Point| sum(point, |server| server.user_share + server.system_share);
    let per = |share: Option<f64>, count: f64| {
        (count > 0.0).then_some(())?;
        Some(share? * 1e6 / count)
    };
    let ms = |point: &Point, of: fn(&super::Percentiles) -> u64| {
        point.latency.as_ref().map(|latency| of(latency) as f64)
    };
    let collect = |of: &dyn Fn(&Point) -> Option<f64>| -> Vec<f64> {
        document
            .timeline
            .points_of(MEASURE)
            .filter_map(of)
            .collect()
    };
    let counted = |head: &str| -> Option<fn(&Point) -> u64> {
        match name.strip_prefix(head)? {
            "delivery" | "message" => Some(|point| point.delivered),
            "handshake" => Some(|point| point.upgraded),
            _ => None,
        }
    };
    let values = match name {
        "deliveries_per_s" | "messages_per_s" => {
            collect(&|point| Some(point.per_s(point.delivered)))
        }
        "published_per_s" => collect(&|point| Some(point.per_s(point.published))),
        "handshakes_per_s" => collect(&|point| Some(point.per_s(point.upgraded))),
        "latency_p50_ms" => collect(&|point| ms(point, |latency| latency.p50_ns)),
        "latency_p90_ms" => collect(&|point| ms(point, |latency| latency.p90_ns)),
        "latency_p99_ms" => collect(&|point| ms(point, |latency| latency.p99_ns)),
        "latency_p99_9_ms" => collect(&|point| ms(point, |latency| latency.p99_9_ns)),
        "server_cores_used" => collect(&cores),
        "server_busiest_thread_share" => collect(&|point| {
            let each = point
                .servers
                .iter()
                .map(|server| server.busiest_thread_share);
            each.reduce(f64::max)
        }),
        "client_cpu_share" => collect(&|point| Some(point.client_share)),
        "server_rss_after_bytes" => {
            let values = collect(&|point| sum(point, |server| server.rss_bytes as f64));
            return Some((values, Kind::Level));
        }
        "tcp_memory_after_bytes" => {
            let values = collect(&|point| {
                let each = point
                    .servers
                    .iter()
                    .map(|server| server.tcp_memory_bytes as f64);
                each.reduce(f64::max)
            });
            return Some((values, Kind::Level));
        }
        _ => {
            if let Some(count) = counted("server_cpu_us_per_") {
                collect(&|point| per(cores(point), point.per_s(count(point))))
            } else if let Some(count) = counted("server_user_us_per_") {
                collect(&|point| {
                    per(
                        sum(point, |server| server.user_share),
                        point.per_s(count(point)),
                    )
                })
            } else if let Some(count) = counted("server_system_us_per_") {
                collect(&|point| {
                    per(
                        sum(point, |server| server.system_share),
                        point.per_s(count(point)),
                    )
                })
            } else {
                return None;
            }
        }
    };
    Some((values, Kind::Mean))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::{noise, sample};

    /// A series about 1 with a deviation of some 6%, `memory` of which is the last value's.
    fn drift(seed: u64, count: usize, memory: f64) -> Vec<f64> {
        let mut level = 0.0;
        (0..count as u64)
            .map(|index| {
                let fresh = noise(seed * 100_003 + index) - 0.5;
                level = memory * level + (1.0 - memory * memory).sqrt() * fresh;
                1.0 + 0.2 * level
            })
            .collect()
    }

    fn estimate(values: &[f64]) -> Estimate {
        let (mean, _) = mean_and_deviation(values);
        let (share, freedom) = mean_error_share(values).unwrap();
        Estimate {
            mean,
            error: share * mean,
            freedom,
        }
    }

    /// The share of comparisons of like series that would be called different.
    fn false_alarms(count: usize, memory: f64) -> f64 {
        let alarms = (0..1000_u64).filter(|trial| {
            let a = estimate(&drift(trial * 2, count, memory));
            let b = estimate(&drift(trial * 2 + 1, count, memory));
            (a.mean - b.mean).abs() > a.noise(&b)
        });
        alarms.count() as f64 / 1000.0
    }

    #[test]
    fn like_series_are_seldom_called_different_even_when_seconds_are_alike() {
        for (count, memory, most) in [
            (60, 0.0, 0.07),
            (600, 0.0, 0.07),
            (300, 0.7, 0.1),
            (10, 0.0, 0.07),
        ] {
            let share = false_alarms(count, memory);
            assert!(
                share <= most,
                "{share} of {count} seconds with memory {memory}"
            );
        }
    }

    #[test]
    fn a_real_difference_is_seen() {
        let seen = (0..100_u64).filter(|trial| {
            let a = estimate(&drift(trial * 2, 60, 0.0));
            let slower: Vec<f64> = drift(trial * 2 + 1, 60, 0.0)
                .iter()
                .map(|value| value * 1.1)
                .collect();
            let b = estimate(&slower);
            (a.mean - b.mean).abs() > a.noise(&b)
        });
        assert!(seen.count() >= 99);
    }

    /// Latencies of so many seconds: a median of 1 ms and a tail, and one second in 15 that stalls.
    fn latencies(seed: u64, seconds: u64, slower: f64) -> Vec<Histogram<u64>> {
        let second = |second: u64| {
            let seed = seed * 1_000_003 + second * 1_009;
            let stall = if noise(seed) < 1.0 / 15.0 { 5.0 } else { 1.0 };
            let mut histogram = Histogram::new_with_bounds(1_000, 1_000_000_000, 2).unwrap();
            for index in 0..100 {
                let tail = -noise(seed + index + 1).max(1e-9).ln();
                let ns = 1e6 * (0.5 + tail) * stall * slower;
                histogram.saturating_record(ns as u64);
            }
            histogram
        };
        (0..seconds).map(second).collect()
    }

    /// In how many of 40 comparisons a quantile is called different.
    fn quantile_alarms(quantile: f64, slower: f64) -> usize {
        let of = |histogram: &Histogram<u64>| histogram.value_at_quantile(quantile) as f64;
        let estimate = |seed: u64, slower: f64| {
            let seconds = latencies(seed, 32, slower);
            let all: Vec<_> = seconds.iter().collect();
            let (share, freedom) = jackknife_error_share(&all, of).unwrap();
            let mut whole = seconds[0].clone();
            seconds[1..]
                .iter()
                .for_each(|more| whole.add(more).unwrap());
            Estimate {
                mean: of(&whole),
                error: share * of(&whole),
                freedom,
            }
        };
        let alarms = (0..40_u64).filter(|trial| {
            let (a, b) = (estimate(trial * 2, 1.0), estimate(trial * 2 + 1, slower));
            (a.mean - b.mean).abs() > a.noise(&b)
        });
        alarms.count()
    }

    #[test]
    fn percentiles_of_all_seconds_are_judged_by_what_a_second_moves_them() {
        for (quantile, most) in [(0.5, 5), (0.99, 6)] {
            let alarms = quantile_alarms(quantile, 1.0);
            assert!(alarms <= most, "{alarms} of 40 at {quantile}");
        }
        let seen = quantile_alarms(0.5, 1.4);
        assert!(
            seen >= 38,
            "40% of the median, in spite of stalls: {seen} of 40"
        );
        assert_eq!(jackknife_error_share(&[], Histogram::mean), None);
    }

    #[test]
    fn runs_are_told_by_their_spread() {
        assert_eq!(Estimate::of_runs(&[1.0]), None);
        let a = Estimate::of_runs(&[10.0, 12.0]).unwrap();
        assert_eq!((a.mean, a.freedom), (11.0, 1.0));
        assert!((a.error - 1.0).abs() < 1e-12);
        let b = Estimate::of_runs(&[20.0, 22.0]).unwrap();
        // Welch: two degrees of freedom, errors of 1 each.
        assert!((a.noise(&b) - 4.303 * 2_f64.sqrt()).abs() < 1e-9);
        let same = Estimate::of_runs(&[5.0, 5.0]).unwrap();
        assert_eq!(same.noise(&same), 0.0);
        let one = noise_beside_one(&[10.0, 12.0]).unwrap();
        assert!(
            (one - 12.706 * 3_f64.sqrt()).abs() < 1e-9,
            "deviation √2 and error 1"
        );
        assert_eq!(noise_beside_one(&[1.0]), None);
    }

    #[test]
    fn students_factor_falls_to_two() {
        assert_eq!(student(0.5), 12.706);
        assert_eq!(student(4.9), 2.776);
        assert!((student(11.0) - 2.201).abs() < 0.001);
        assert!((student(20.0) - 2.086).abs() < 0.01);
        assert_eq!(student(1e6), 2.0);
    }

    #[test]
    fn figures_with_a_series_have_an_error_from_the_measured_seconds() {
        let document = sample(60);
        let of = |name| Estimate::of_seconds(&document, name);
        for name in [
            "latency_p99_ms",
            "deliveries_per_s",
            "server_cpu_us_per_delivery",
            "client_cpu_share",
        ] {
            let estimate = of(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(Some(estimate.mean), document.figures.get(name));
            assert!(
                estimate.error > 0.0 && estimate.error < estimate.mean,
                "{name}: {estimate:?}"
            );
        }
        for name in [
            "latency_max_ms",
            "latency_p99_99_ms",
            "lost",
            "upgraded",
            "no_such_figure",
        ] {
            assert_eq!(of(name), None, "{name}");
        }
        assert_eq!(
            Estimate::of_seconds(&sample(4), "latency_p99_ms"),
            None,
            "too short"
        );
    }
}
