//! What is kept of a scrape: the server's own figures of time, memory and connections, and the families worth a report.

use std::collections::{BTreeMap, HashMap};

use throng::metrics::names;

use super::Part;
use super::exposition::{Exposition, Kind, Series};
use crate::report::Report;

/// No more figures of metrics are shown.
pub const METRIC_FIGURES_MAX: usize = 64;

/// Gauges of open WebSocket connections, as servers name them, the likeliest first.
const CONNECTION_GAUGES: &[&str] = &[
    "throng_connections",
    "websocket_connections",
    "centrifugo_node_num_clients",
    "centrifuge_node_num_clients",
    "socket_io_connected",
];

/// How a family is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Show {
    /// A counter: what it rose by, all series together.
    Rise,
    /// A counter: the same, and the rise of each value of this label that rose.
    RiseBy(&'static str),
    /// A gauge at the end: all series together.
    Sum,
    /// A gauge at the end: the largest.
    Largest,
    /// A gauge at the end: the smallest.
    Smallest,
    /// A histogram: median and 99th percentile of what came between, each the bound of its bucket; of seconds, in
    /// milliseconds.
    Quantiles,
}

/// The families that matter for a run, in the order in which they are shown: without `_total`.
static FAMILIES: &[(&str, Show)] = &[
    (names::CONNECTIONS.name, Show::Sum),
    (names::CONNECTION_SKEW.name, Show::Largest),
    (names::NODE_ROOMS.name, Show::Sum),
    (names::HANDSHAKES.name, Show::RiseBy("outcome")),
    (names::CONNECTIONS_CLOSED.name, Show::RiseBy("reason")),
    (names::MESSAGES_RECEIVED.name, Show::Rise),
    (names::DELIVERIES.name, Show::Rise),
    (names::SOCKET_RECEIVED_BYTES.name, Show::Rise),
    (names::SOCKET_SENT_BYTES.name, Show::Rise),
    (names::MESSAGES_DROPPED.name, Show::RiseBy("policy")),
    (names::GAPS_TOLD.name, Show::Rise),
    (names::HEARTBEATS.name, Show::RiseBy("event")),
    (names::PUBLISH_TO_DELIVER.name, Show::Quantiles),
    (names::LOOP_TURN.name, Show::Quantiles),
    (names::BACKPLANE_TURN.name, Show::Quantiles),
    (names::BUS_PROBE.name, Show::Quantiles),
    (names::QUEUED_BYTES.name, Show::Sum),
    (names::LEDGER_BYTES.name, Show::Sum),
    (names::BUDGET_USED.name, Show::Largest),
    (names::PUBLISHER_PAUSES.name, Show::Rise),
    (names::BUS_STALLS.name, Show::Rise),
    (names::BUS_STALLED_SECONDS.name, Show::Largest),
    (names::SHARD_ANSWERING.name, Show::Smallest),
    (names::RING_ENTERS.name, Show::Rise),
    (names::RING_COMPLETIONS.name, Show::Rise),
    (names::RING_BUFFERS_EXHAUSTED.name, Show::Rise),
    (names::RING_COMPLETION_OVERFLOWS.name, Show::Rise),
    (names::RING_ACCEPT_EXHAUSTED.name, Show::Rise),
    (names::DRAIN_PHASE.name, Show::Largest),
    (names::PROCESS_MEMORY_PER_CONNECTION.name, Show::Largest),
    ("websocket_connections", Show::Sum),
    ("centrifugo_node_num_clients", Show::Sum),
    ("centrifuge_node_num_clients", Show::Sum),
    ("socket_io_connected", Show::Sum),
    ("go_goroutines", Show::Sum),
    ("go_memstats_heap_inuse_bytes", Show::Sum),
    ("nodejs_eventloop_lag_p99_seconds", Show::Largest),
    ("nodejs_heap_size_used_bytes", Show::Sum),
];

/// A family of a scrape that is kept until the report.
#[derive(Debug, Clone)]
pub struct Reading {
    name: String,
    show: Show,
    series: Vec<Series>,
}

/// What a server says of itself: its processor time, memory and connections, without the families.
///
/// The name and the moment are the caller's to set.
pub fn part(scrape: &Exposition) -> Part {
    let gauge = |name: &str| total(scrape, name, |_| true);
    let mode = |mode: &str| {
        let name = format!("{}_total", names::PROCESS_CPU_MODE.name);
        total(scrape, &name, |series| series.label("mode") == Some(mode)).and_then(nanoseconds)
    };
    Part {
        cpu_ns: gauge("process_cpu_seconds_total").and_then(nanoseconds),
        user_ns: mode("user"),
        system_ns: mode("system"),
        rss_bytes: gauge("process_resident_memory_bytes").and_then(whole),
        anonymous_bytes: gauge(names::PROCESS_MEMORY_ANONYMOUS.name).and_then(whole),
        descriptor_count: gauge("process_open_fds").and_then(whole),
        connection_count: CONNECTION_GAUGES
            .iter()
            .find_map(|name| gauge(name))
            .and_then(whole),
        tcp_memory_bytes: gauge(names::KERNEL_TCP_MEMORY.name).and_then(whole),
        start_unix_s: gauge("process_start_time_seconds"),
        ..Part::default()
    }
}

/// The families that are kept: those of the table, or with `all` every counter and gauge as well.
pub fn readings(scrape: &Exposition, all: bool) -> Vec<Reading> {
    let mut found: HashMap<&str, Reading> = HashMap::new();
    for series in &scrape.series {
        let (kind, family) = scrape.family(&series.name);
        let listed = FAMILIES.iter().find(|(name, _)| *name == family);
        let show = match (kind, listed) {
            (Kind::Histogram, Some((_, show @ Show::Quantiles))) => *show,
            (Kind::Counter, Some((_, show @ (Show::Rise | Show::RiseBy(_))))) => *show,
            (Kind::Gauge, Some((_, show @ (Show::Sum | Show::Largest | Show::Smallest)))) => *show,
            (Kind::Counter, None) if all => Show::Rise,
            (Kind::Gauge, None) if all => Show::Sum,
            _ => continue,
        };
        if show == Show::Quantiles && series.label("le").is_none() {
            continue; // the histogram's sum and count
        }
        let reading = found.entry(family).or_insert_with(|| Reading {
            name: family.to_owned(),
            show,
            series: Vec::new(),
        });
        reading.series.push(series.clone());
    }
    let place = |name: &str| FAMILIES.iter().position(|(listed, _)| *listed == name);
    let mut readings: Vec<Reading> = found.into_values().collect();
    readings.sort_by_cached_key(|reading| {
        let place = place(&reading.name).unwrap_or(FAMILIES.len());
        (place, reading.name.clone())
    });
    readings
}

/// Adds what the servers told between `before` and `after`: each figure of all of them together, then of each alone.
pub fn report(pairs: &[(&Part, &Part)], report: &mut Report) {
    let alone: Vec<Vec<(String, Show, f64)>> = pairs
        .iter()
        .map(|(before, after)| figures(&before.readings, &after.readings))
        .collect();
    let mut shown: Vec<(String, Show, f64)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (name, show, value) in alone.iter().flatten() {
        match places.get(name.as_str()) {
            Some(place) => shown[*place].2 = show.together(shown[*place].2, *value),
            None => {
                places.insert(name, shown.len());
                shown.push((name.clone(), *show, *value));
            }
        }
    }
    for (name, _, value) in shown.iter().take(METRIC_FIGURES_MAX) {
        report.figure(&format!("metrics_{name}"), *value);
    }
    let mut figure_count = shown.len();
    if pairs.len() > 1 {
        figure_count += alone.iter().map(Vec::len).sum::<usize>();
        // By figure, not by server: where there are too many, all servers miss the same.
        let own = shown.iter().flat_map(|(name, ..)| {
            pairs
                .iter()
                .zip(&alone)
                .filter_map(move |((_, part), own)| {
                    let (_, _, value) = own.iter().find(|(found, ..)| found == name)?;
                    Some((format!("metrics_{name}_{}", part.name), *value))
                })
        });
        for (name, value) in own.take(METRIC_FIGURES_MAX.saturating_sub(shown.len())) {
            report.figure(&name, value);
        }
    }
    if figure_count > METRIC_FIGURES_MAX {
        report.note(format!(
            "of the servers' metrics {METRIC_FIGURES_MAX} figures are shown, and {} more are not",
            figure_count - METRIC_FIGURES_MAX
        ));
    }
}

impl Show {
    /// One figure of two servers.
    fn together(self, one: f64, other: f64) -> f64 {
        match self {
            Self::Rise | Self::RiseBy(_) | Self::Sum => one + other,
            Self::Largest | Self::Quantiles => one.max(other),
            Self::Smallest => one.min(other),
        }
    }
}

/// The figures of one server, without those that are no number.
fn figures(before: &[Reading], after: &[Reading]) -> Vec<(String, Show, f64)> {
    let mut figures = Vec::new();
    for reading in after {
        let Reading { name, show, series } = reading;
        let earlier: &[Series] = before
            .iter()
            .find(|earlier| earlier.name == *name)
            .map_or(&[], |earlier| &earlier.series);
        let stem = figure_name(name);
        let mut add = |name: String, value: f64| figures.push((name, *show, value));
        let values = || series.iter().map(|series| series.value);
        match *show {
            Show::Rise => add(stem, rises(earlier, series).map(|(_, rise)| rise).sum()),
            Show::RiseBy(label) => {
                let mut by: BTreeMap<&str, f64> = BTreeMap::new();
                for (series, rise) in rises(earlier, series) {
                    *by.entry(series.label(label).unwrap_or("other"))
                        .or_default() += rise;
                }
                add(stem.clone(), by.values().sum());
                for (of, rise) in by.into_iter().filter(|(_, rise)| *rise != 0.0) {
                    add(format!("{stem}_{}", figure_name(of)), rise);
                }
            }
            Show::Sum => add(stem, values().sum()),
            Show::Largest => add(stem, values().fold(f64::NEG_INFINITY, f64::max)),
            Show::Smallest => add(stem, values().fold(f64::INFINITY, f64::min)),
            Show::Quantiles => {
                let (stem, unit, scale) = match stem.strip_suffix("_seconds") {
                    Some(stem) => (stem, "_ms", 1e3),
                    None => (stem.as_str(), "", 1.0),
                };
                let buckets = buckets(earlier, series);
                for (label, quantile) in [("p50", 0.5), ("p99", 0.99)] {
                    if let Some(bound) = bound_of(&buckets, quantile) {
                        add(format!("{stem}_{label}{unit}"), bound * scale);
                    }
                }
            }
        }
    }
    figures.retain(|(_, _, value)| value.is_finite());
    figures
}

/// Each series with what it rose by. One that counts less than before, or was not there, has counted from nothing.
fn rises<'a>(
    earlier: &'a [Series],
    later: &'a [Series],
) -> impl Iterator<Item = (&'a Series, f64)> {
    let before: HashMap<_, f64> = earlier
        .iter()
        .map(|series| ((&series.name, &series.labels), series.value))
        .collect();
    later.iter().map(move |series| {
        let before = before.get(&(&series.name, &series.labels)).copied();
        let before = before.filter(|before| *before <= series.value);
        (series, series.value - before.unwrap_or(0.0))
    })
}

/// A histogram's buckets, all its series together: upper bound, and how many came up to it. The bounds rise.
fn buckets(earlier: &[Series], later: &[Series]) -> Vec<(f64, f64)> {
    let mut buckets: Vec<(f64, f64)> = rises(earlier, later)
        .filter_map(|(series, rise)| Some((series.label("le")?.parse().ok()?, rise)))
        .collect();
    buckets.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    buckets.dedup_by(|(later, more), (bound, count)| {
        let is_same = later == bound;
        *count += if is_same { *more } else { 0.0 };
        is_same
    });
    buckets
}

/// The smallest bound up to which the share `quantile` of all came. Beyond the last finite bound it is that bound.
fn bound_of(buckets: &[(f64, f64)], quantile: f64) -> Option<f64> {
    let (_, count) = buckets.last().filter(|(_, count)| *count > 0.0)?;
    let reached = buckets
        .iter()
        .find(|(_, up_to)| *up_to >= count * quantile)
        .map(|(bound, _)| *bound)
        .filter(|bound| bound.is_finite());
    let last_finite = || {
        let finite = buckets.iter().rev().find(|(bound, _)| bound.is_finite());
        finite.map(|(bound, _)| *bound)
    };
    reached.or_else(last_finite)
}

/// The sum of the samples of exactly this name that `keep` keeps. None: there is none.
fn total(scrape: &Exposition, name: &str, keep: impl Fn(&Series) -> bool) -> Option<f64> {
    let mut samples = scrape
        .series
        .iter()
        .filter(|series| series.name == name && keep(series))
        .map(|series| series.value)
        .peekable();
    samples.peek()?;
    Some(samples.sum())
}

/// A value as a whole number that is not negative.
fn whole(value: f64) -> Option<u64> {
    (0.0..=9e18).contains(&value).then_some(value as u64)
}

fn nanoseconds(seconds: f64) -> Option<u64> {
    whole(seconds * 1e9)
}

/// A text as a part of a figure's name: an expectation must be able to name it.
pub fn figure_name(text: &str) -> String {
    let fit = |character: char| match character {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' | '.' | ':' => character,
        _ => '_',
    };
    text.chars().map(fit).collect()
}

#[cfg(test)]
mod tests {
    use throng::metrics::NodeSnapshot;
    use throng::metrics::exposition::{open_metrics_text, prometheus_text};

    use super::*;

    fn scraped(text: &str) -> Exposition {
        Exposition::parse(text).unwrap()
    }

    fn between(before: &str, after: &str, all: bool) -> Report {
        let side = |text: &str| Part {
            name: "x".into(),
            readings: readings(&scraped(text), all),
            ..Part::default()
        };
        let mut told = Report::new("test");
        report(&[(&side(before), &side(after))], &mut told);
        told
    }

    #[test]
    fn counters_tell_their_rise_and_restart_from_nothing() {
        let told = between(
            "throng_deliveries_total{shard=\"0\"} 100\nthrong_deliveries_total{shard=\"1\"} 70\n",
            "throng_deliveries_total{shard=\"0\"} 150\nthrong_deliveries_total{shard=\"1\"} 7\n\
             throng_deliveries_total{shard=\"2\"} 1\n",
            false,
        );
        assert_eq!(told.get("metrics_throng_deliveries"), Some(58.0));
    }

    #[test]
    fn a_counter_by_label_tells_the_labels_that_rose() {
        let told = between(
            "throng_handshakes_total{outcome=\"upgraded\"} 5\nthrong_handshakes_total{outcome=\"full\"} 2\n",
            "throng_handshakes_total{outcome=\"upgraded\"} 9\nthrong_handshakes_total{outcome=\"full\"} 2\n",
            false,
        );
        assert_eq!(told.get("metrics_throng_handshakes"), Some(4.0));
        assert_eq!(told.get("metrics_throng_handshakes_upgraded"), Some(4.0));
        assert_eq!(told.get("metrics_throng_handshakes_full"), None);
    }

    #[test]
    fn gauges_tell_their_last_value_and_the_alarming_one_of_many() {
        let told = between(
            "throng_connections 9\n",
            "throng_connections{shard=\"0\"} 3\nthrong_connections{shard=\"1\"} 4\n\
             throng_shard_answering{shard=\"0\"} 1\nthrong_shard_answering{shard=\"1\"} 0\n\
             throng_bus_stalled_seconds NaN\n",
            false,
        );
        assert_eq!(told.get("metrics_throng_connections"), Some(7.0));
        assert_eq!(told.get("metrics_throng_shard_answering"), Some(0.0));
        assert_eq!(told.get("metrics_throng_bus_stalled_seconds"), None);
    }

    #[test]
    fn quantiles_are_of_the_window_and_over_all_shards() {
        let text = |counts: [[u32; 3]; 2]| {
            let mut text = "# TYPE throng_loop_turn_seconds histogram\n".to_owned();
            for (shard, counts) in counts.iter().enumerate() {
                for (bound, count) in ["0.001", "0.002", "+Inf"].iter().zip(counts) {
                    text += &format!(
                        "throng_loop_turn_seconds_bucket{{shard=\"{shard}\",le=\"{bound}\"}} {count}\n"
                    );
                }
                text += &format!("throng_loop_turn_seconds_count{{shard=\"{shard}\"}} 9\n");
            }
            text
        };
        // Between them: 60 up to 1 ms, 39 more up to 2 ms, one beyond.
        let told = between(
            &text([[1000, 1000, 5000], [0, 0, 0]]),
            &text([[1060, 1060, 5060], [0, 39, 40]]),
            false,
        );
        assert_eq!(told.get("metrics_throng_loop_turn_p50_ms"), Some(1.0));
        assert_eq!(told.get("metrics_throng_loop_turn_p99_ms"), Some(2.0));
        assert_eq!(
            bound_of(&[(1.0, 1.0), (f64::INFINITY, 100.0)], 0.5),
            Some(1.0)
        );
        assert_eq!(bound_of(&[(f64::INFINITY, 0.0)], 0.5), None);
        assert_eq!(bound_of(&[], 0.5), None);
    }

    #[test]
    fn all_metrics_are_many_and_bounded() {
        let mut text: String = (0..100)
            .map(|index| format!("other_{index:03} {index}\n"))
            .collect();
        text += "throng_connections 1\n";
        let told = between("", &text, true);
        assert_eq!(told.get("metrics_throng_connections"), Some(1.0));
        assert_eq!(told.get("metrics_other_062"), Some(62.0));
        assert_eq!(told.get("metrics_other_063"), None);
        assert!(
            told.text().contains("and 37 more are not"),
            "{}",
            told.text()
        );
        assert_eq!(between("", &text, false).get("metrics_other_000"), None);
    }

    #[test]
    fn several_servers_are_shown_together_and_alone() {
        let side = |name: &str, text: &str| Part {
            name: name.into(),
            readings: readings(&scraped(text), false),
            ..Part::default()
        };
        let [one, two] = [
            side(
                "10.0.0.1:8081",
                "throng_connections 3\nthrong_connection_skew 1\n",
            ),
            side("17", "throng_connections 4\nthrong_connection_skew 2\n"),
        ];
        let mut told = Report::new("test");
        report(&[(&one, &one), (&two, &two)], &mut told);
        assert_eq!(told.get("metrics_throng_connections"), Some(7.0));
        assert_eq!(told.get("metrics_throng_connection_skew"), Some(2.0));
        assert_eq!(
            told.get("metrics_throng_connections_10.0.0.1:8081"),
            Some(3.0)
        );
        assert_eq!(told.get("metrics_throng_connections_17"), Some(4.0));

        // Beyond the bound, each has the figures of the first families.
        let text: String = (0..30)
            .map(|index| format!("other_{index:02} 1\n"))
            .collect();
        let many = |name: &str| Part {
            name: name.into(),
            readings: readings(&scraped(&text), true),
            ..Part::default()
        };
        let [one, two] = [many("1"), many("2")];
        let mut told = Report::new("test");
        report(&[(&one, &one), (&two, &two)], &mut told);
        assert_eq!(told.get("metrics_other_29"), Some(2.0));
        assert_eq!(told.get("metrics_other_16_2"), Some(1.0));
        assert_eq!(told.get("metrics_other_17_1"), None);
        assert!(
            told.text().contains("and 26 more are not"),
            "{}",
            told.text()
        );
    }

    #[test]
    fn throngs_own_text_is_read_in_both_formats() {
        let mut node = NodeSnapshot::default();
        node.process.resident_bytes = 4096;
        node.process.cpu_user_us = 1_500_000;
        node.process.cpu_system_us = 500_000;
        node.process.open_files = 12;
        node.shards.resize_with(3, Default::default);
        for (shard, report) in node.shards.iter_mut().enumerate() {
            report.snapshot.shard = shard as _;
            report.snapshot.gauges.connections_open = 5;
        }
        for text in [
            open_metrics_text(node.clone()),
            prometheus_text(node.clone()),
        ] {
            let scrape = scraped(&text);
            let part = part(&scrape);
            assert_eq!(part.cpu_ns, Some(2_000_000_000));
            assert_eq!(part.user_ns, Some(1_500_000_000));
            assert_eq!(part.system_ns, Some(500_000_000));
            assert_eq!(part.rss_bytes, Some(4096));
            assert_eq!(part.descriptor_count, Some(12));
            assert_eq!(part.connection_count, Some(15));
            // Every family of the table that is Throng's is there, and of the kind that the table takes it for.
            let kept = readings(&scrape, false);
            for (name, _) in FAMILIES
                .iter()
                .filter(|(name, _)| name.starts_with("throng_"))
            {
                assert!(kept.iter().any(|reading| reading.name == *name), "{name}");
            }
        }
    }
}
