//! A made-up run for tests: two servers, phases, latency with a tail.

use hdrhistogram::Histogram;

use super::json::Document;
use super::timeline::MEASURE;
use super::{
    Interval, Percentiles, Phase, Point, Report, ServerPoint, Timeline, latency_histogram,
};
use crate::histogram::Packed;

/// A number from 0 to 1 that looks random: splitmix64 of `seed`.
pub fn noise(seed: u64) -> f64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (bits ^ (bits >> 31)) as f64 / u64::MAX as f64
}

/// A run of so many seconds: a tenth of connecting, a tenth of warm-up, the rest measured.
pub fn sample(seconds: u64) -> Document {
    let mut report = Report::new("fanout");
    let mut timeline = Timeline {
        phases: ["connect", "warm-up", MEASURE]
            .iter()
            .enumerate()
            .map(|(index, name)| Phase {
                name: (*name).into(),
                from_ms: index as u64 * seconds * 100,
            })
            .collect(),
        ..Timeline::default()
    };
    let mut whole = latency_histogram();
    for second in 1..=seconds.max(4) {
        let connecting = second <= seconds / 10;
        let mut latency = latency_histogram();
        if !connecting {
            record(second, &mut latency);
            whole.add(&latency).unwrap();
        }
        let server = |number: u64| ServerPoint {
            name: format!("pid {number}"),
            user_share: 0.35 + 0.05 * noise(second + number),
            system_share: 0.45 + 0.05 * noise(second * 3 + number),
            busiest_thread_share: 0.8 + 0.1 * noise(second + number),
            rss_bytes: 20_000_000 + number * 5_000_000 + second.min(20) * 100_000,
            tcp_memory_bytes: 4_000_000 + (1e6 * noise(second)) as u64,
            descriptors: 40,
            connections: None,
        };
        timeline.points.push(Point {
            at_ms: second * 1000,
            open: if connecting {
                5_000 * second * 10 / seconds
            } else {
                5_000
            },
            upgraded: if connecting { 50_000 / seconds } else { 0 },
            published: if connecting { 0 } else { 20 },
            delivered: if connecting {
                0
            } else {
                100_000 - (3_000.0 * noise(second)) as u64
            },
            faults: u64::from(second == seconds / 2) * 3,
            latency: Percentiles::of(&latency),
            client_share: 0.5 + 0.1 * noise(second * 7),
            servers: vec![server(1), server(2)],
            ..Point::default()
        });
        if second <= 100 {
            timeline.intervals.push(Interval {
                from_ms: second * 1000 - 1000,
                length_ms: 1000,
                histogram: Packed::new(&latency),
            });
        }
    }
    report.count("upgraded", 5_000);
    report.figure("deliveries_per_s", 98_500.0);
    report.count("lost", 0);
    report.latency("latency", &whole);
    report.figure("server_cpu_us_per_delivery", 2.31);
    report.figure("client_cpu_share", 0.55);
    report.note("others had the processors for 7% of the time");
    report.fault("expected latency_p99_ms<5ms, found 21.400");
    report.timeline(timeline);
    report.document
}

fn record(second: u64, histogram: &mut Histogram<u64>) {
    let stall = if second % 30 == 17 { 20.0 } else { 1.0 };
    for index in 0..1_000 {
        let tail = -(1.0 - noise(second * 1_000 + index)).max(1e-9).ln();
        histogram
            .record_n((400_000.0 + 3e6 * tail * tail * stall) as u64, 100)
            .unwrap();
    }
}
