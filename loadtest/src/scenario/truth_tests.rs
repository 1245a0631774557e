//! Whether what the tool reports is true: the scenarios against servers whose behaviour is known.
//!
//! Nothing here trusts a clock of this machine to be quiet. The planted server notes when it wrote each delivery, by
//! the clock that the client reads it with: no figure of the client may be below that, ever. How far it may be above is
//! taken from a run of the same load without the plant, in the same test; a run that others disturbed is made again.

use clap::Parser;
use hdrhistogram::Histogram;

use super::*;
use crate::floor::planted::Distribution;
use crate::floor::planted::Tally;
use crate::floor::planted::running::Running;

/// Of three significant digits, a histogram's value is off by this share at most.
const PRECISION: f64 = 1e-3;
/// How often a comparison from above is tried: others have the processors, too.
const ATTEMPT_COUNT: usize = 5;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    task: Task,
}

fn run(server: &Running, line: &str) -> Result<Report, Failure> {
    let (scenario, rest) = line.split_once(' ').unwrap_or((line, ""));
    let target = format!("ws://{}", server.address);
    let words = ["throng-load", scenario, "--target", &target]
        .into_iter()
        .chain(rest.split_whitespace());
    let line = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
    measure(&line.task)
}

fn figure(report: &Report, name: &str) -> f64 {
    report
        .get(name)
        .unwrap_or_else(|| panic!("{name} in\n{}", report.text()))
}

/// The latencies that every report has: name and quantile.
const QUANTILES: [(&str, f64); 5] = [
    ("latency_p50_ms", 0.5),
    ("latency_p90_ms", 0.9),
    ("latency_p99_ms", 0.99),
    ("latency_p99_9_ms", 0.999),
    ("latency_max_ms", 1.0),
];

/// All latencies of a report.
fn latency<'a>(report: &'a Report, name: &str) -> &'a Histogram<u64> {
    report
        .histogram(name)
        .unwrap_or_else(|| panic!("{name} in\n{}", report.text()))
}

/// Every delivery is read after it was written, so every quantile is at least that of what the server wrote, however
/// busy the machine is; and the two count the same deliveries.
fn assert_not_below_what_was_written(report: &Report, tally: &Tally) {
    let found = latency(report, "latency");
    assert_eq!(figure(report, "delivered"), tally.delivered as f64);
    assert_eq!(
        (found.len(), tally.answered.len()),
        (tally.delivered, tally.delivered)
    );
    for thousandth in 1..=1_000 {
        let q = f64::from(thousandth) / 1e3;
        let written_ns = tally.answered.value_at_quantile(q);
        assert!(
            found.value_at_quantile(q) >= tally.answered.lowest_equivalent(written_ns),
            "of {q} {} ns were read and {written_ns} ns written\n{}\n{}",
            found.value_at_quantile(q),
            report.text(),
            tally.text()
        );
    }
    for (name, q) in QUANTILES {
        let ms = found.value_at_quantile(q) as f64 / 1e6;
        assert_eq!(figure(report, name), ms, "{name} is of this histogram");
    }
}

/// Each publisher keeps to its timetable: it may be late, but what it is to send next is due when it always was. Were
/// it due so long after the last one *left*, lateness would go unseen.
fn assert_publishers_kept_to_their_timetable(tally: &Tally, interval_ns: u64) {
    let spacing = &tally.spacing;
    assert!(!spacing.is_empty());
    for found_ns in [spacing.min(), spacing.max()] {
        assert!(
            spacing.equivalent(found_ns, interval_ns),
            "{found_ns} ns between two messages, not {interval_ns}"
        );
    }
}

/// Tries `attempt` until it finds nothing to object to.
fn eventually(mut attempt: impl FnMut() -> Result<(), String>) {
    let mut objections = String::new();
    for _ in 0..ATTEMPT_COUNT {
        match attempt() {
            Ok(()) => return,
            Err(objection) => objections = objections + &objection + "\n",
        }
    }
    panic!("{ATTEMPT_COUNT} attempts:\n{objections}");
}

/// Rooms whose messages are 40 ms apart, so that no planted delay makes a message wait for the one before it.
const SPARSE: &str = "fanout --rooms 50 --members 4 --publishers 1 --rate 25 --warm-up 0";

#[test]
fn percentiles_agree_with_a_known_distribution_of_delays() {
    for delay in [
        "steps:2ms@0.79,8ms@0.18,25ms@0.027,35ms@0.003",
        "uniform:1ms-31ms",
        "constant:400ms",
    ] {
        eventually(|| {
            let honest = Running::start("");
            let control = run(&honest, &format!("{SPARSE} --duration 0.4")).unwrap();
            let server = Running::start(&format!("--delay {delay}"));
            // 2,000 messages: each thousandth of the distribution twice.
            let report = run(&server, &format!("{SPARSE} --duration 1.6")).unwrap();
            let tally = server.tally();
            assert_eq!(report.verdict(), Ok(()), "{}", report.text());
            assert_eq!((tally.messages, tally.deliveries), (2_000, 8_000));
            assert_publishers_kept_to_their_timetable(&tally, 40_000_000);
            assert_not_below_what_was_written(&report, &tally);
            agrees(&delay.parse().unwrap(), &report, &tally, &control)
                .map_err(|objection| format!("{delay}: {objection}"))
        });
    }
}

/// Compares the percentiles of `report` with those of `distribution` and with what the server wrote.
///
/// # Errors
/// When they are further above what was written than those of the run without a delay are above nothing.
///
/// # Panics
/// When they are below what was planted.
fn agrees(
    distribution: &Distribution,
    report: &Report,
    tally: &Tally,
    control: &Report,
) -> Result<(), String> {
    let drawn_ms = |q: f64| distribution.quantile(q) as f64 / 1e6;
    let quantile_ms = |histogram: &Histogram<u64>, q| histogram.value_at_quantile(q) as f64 / 1e6;
    // A quantile of a sum is at most the next higher one of one part and the far end of the other: where a share
    // `beyond` is taken from both, the rest of both is below the sum.
    for (name, q, beyond, far_end) in [
        ("latency_p50_ms", 0.5, 0.01, "latency_p99_ms"),
        ("latency_p90_ms", 0.9, 0.01, "latency_p99_ms"),
        ("latency_p99_ms", 0.99, 0.001, "latency_p99_9_ms"),
        ("latency_p99_9_ms", 0.999, 0.0, "latency_max_ms"),
        ("latency_max_ms", 1.0, 0.0, "latency_max_ms"),
    ] {
        // Of two draws in each thousandth, the one that is asked for may be the first.
        let from_ms = drawn_ms(q - 0.001) * (1.0 - PRECISION);
        let planted_ms = quantile_ms(&tally.planted, q);
        assert!(planted_ms >= from_ms, "{name}: {planted_ms} of {from_ms}");
        assert!(
            tally.deferred > 0 || planted_ms <= drawn_ms(q) * (1.0 + PRECISION),
            "{name}: {planted_ms} was planted, {} drawn",
            drawn_ms(q)
        );
        let found_ms = figure(report, name);
        assert!(found_ms >= from_ms, "{name}: {found_ms} of {from_ms}");
        let written_ms = quantile_ms(&tally.answered, q + beyond);
        let control_ms = figure(control, far_end);
        if found_ms > (written_ms + control_ms) * (1.0 + PRECISION) {
            return Err(format!(
                "{name} is {found_ms}, written {written_ms}, without a delay {control_ms}"
            ));
        }
    }
    // Means add up: what is left of the client's is the way from the server's write to the client's read. Without a
    // delay all of the latency is that way, and the server's and the publisher's own.
    let mean_ms = |histogram: &Histogram<u64>| histogram.mean() / 1e6;
    let way_ms = mean_ms(latency(report, "latency")) - mean_ms(&tally.answered);
    let control_ms = mean_ms(latency(control, "latency"));
    if way_ms > 2.0 * control_ms {
        return Err(format!(
            "the mean is {way_ms} above what was written, without a delay {control_ms} in all"
        ));
    }
    Ok(())
}

/// The one stall of `tally`, in milliseconds.
fn stalled_ms(tally: &Tally) -> f64 {
    assert_eq!(tally.stalls.len(), 1, "{}", tally.text());
    (tally.stalls[0].1 - tally.stalls[0].0) as f64 / 1e6
}

#[test]
fn a_stall_of_a_second_shows_in_every_percentile_that_an_open_loop_owes_it() {
    let (rooms, rate, seconds) = (20.0, 50.0, 3.0);
    let server = Running::start("--stall 1s:1s");
    let line = format!(
        "fanout --rooms {rooms} --members 2 --publishers 1 --rate {rate} --warm-up 0 --duration {seconds}"
    );
    let report = run(&server, &line).unwrap();
    let tally = server.tally();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    assert_eq!(tally.messages, (rooms * rate * seconds) as u64);
    assert_publishers_kept_to_their_timetable(&tally, 20_000_000);
    assert_not_below_what_was_written(&report, &tally);
    // Messages are due evenly over the run, and each that is due within the stall waits for its end. So a share
    // (1 - q) of all waits at least the stall but for that share of the run, and the spacing of messages.
    let stalled_ms = stalled_ms(&tally);
    assert!(stalled_ms >= 1_000.0);
    for (name, q) in QUANTILES {
        let least_ms = stalled_ms - (1.0 - q) * seconds * 1e3 - 1e3 / rate;
        let found_ms = figure(&report, name);
        assert!(
            found_ms >= least_ms,
            "{name} is {found_ms}, but {least_ms} is owed\n{}",
            report.text()
        );
    }
}

#[test]
fn a_closed_loop_sees_the_same_stall_in_its_maximum_only() {
    let server = Running::start("--delay constant:1ms --stall 500ms:1s");
    let line = "echo --connections 10 --in-flight 1 --warm-up 0 --duration 2.5";
    let report = run(&server, line).unwrap();
    let tally = server.tally();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    assert_not_below_what_was_written(&report, &tally);
    assert!(figure(&report, "latency_max_ms") >= stalled_ms(&tally) * (1.0 - PRECISION));
    // One message of each connection waited, of thousands: why latency is measured with an open loop.
    assert!(tally.messages > 2_000, "{}", tally.text());
    assert!(figure(&report, "latency_p99_ms") < 500.0);
}

#[test]
fn a_server_that_is_asked_for_twice_what_it_can_serve_shows_its_queue_grow() {
    // Served at half the rate at which they come, a message that is due at t is served at 2t.
    let (rate, seconds) = (100.0, 1.0);
    let server = Running::start("--messages-per-s-max 500");
    let line = format!(
        "fanout --rooms 10 --members 2 --publishers 1 --rate {rate} --warm-up 0 --duration {seconds}"
    );
    let report = run(&server, &line).unwrap();
    let tally = server.tally();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    assert_eq!((tally.messages, tally.delivered), (1_000, 2_000));
    assert_publishers_kept_to_their_timetable(&tally, 10_000_000);
    assert_not_below_what_was_written(&report, &tally);
    for (name, q) in QUANTILES {
        // The first message of each publisher is due somewhere within its interval.
        let least_ms = q * seconds * 1e3 - 1e3 / rate;
        let found_ms = figure(&report, name);
        assert!(found_ms >= least_ms, "{name} is {found_ms}, not {least_ms}");
    }
}

#[test]
fn one_in_ten_thousand_that_goes_wrong_is_counted_exactly() {
    let server = Running::start(
        "--lose 1/10000 --duplicate 1/10000 --reorder 1/10000 --corrupt 1/10000 --misroute 1/10000 --seed 3",
    );
    let line =
        "fanout --rooms 2 --members 100 --publishers 2 --rate 200 --warm-up 0 --duration 2.5";
    let report = run(&server, line).unwrap();
    let tally = server.tally();
    assert!(matches!(report.verdict(), Err(Failure::Broken(_))));
    assert_eq!((tally.messages, tally.deliveries), (2_000, 200_000));
    // What is corrupted did not come, so it is lost, too.
    for (name, planted) in [
        ("published", tally.messages),
        ("delivered", tally.delivered),
        ("lost", tally.lost + tally.corrupted),
        ("duplicated", tally.duplicated),
        ("reordered", tally.reordered),
        ("corrupted", tally.corrupted),
        ("misrouted", tally.misrouted),
        ("connections_lost", 0),
    ] {
        let found = figure(&report, name);
        assert_eq!(found, planted as f64, "{name}\n{}", tally.text());
    }
    for planted in [
        tally.lost,
        tally.duplicated,
        tally.reordered,
        tally.corrupted,
        tally.misrouted,
    ] {
        // The last of 20 may be pushed beyond the end by another kind, or find nothing to be passed by.
        assert!((19..=20).contains(&planted), "{}", tally.text());
    }
}

#[test]
fn handshakes_are_counted_and_take_as_long_as_planted() {
    eventually(|| {
        let control = run(&Running::start(""), "churn --connections 60 --warm-up 0").unwrap();
        let server = Running::start("--answer-after 50ms");
        let line = "churn --connections 60 --warm-up 10 --concurrency 10";
        let report = run(&server, line).unwrap();
        assert_eq!(report.verdict(), Ok(()), "{}", report.text());
        assert_eq!(server.tally().upgraded, 1 + 10 + 60);
        assert_eq!(figure(&report, "handshakes"), 60.0);
        let found = latency(&report, "handshake");
        let least_ns = found.lowest_equivalent(50_000_000);
        assert!(found.min() >= least_ns, "{} ns", found.min());
        // Ten at a time: the first ten may have begun before the window, the other fifty had not.
        let rate = figure(&report, "handshakes_per_s");
        assert!(rate <= 60.0 / 0.25, "{rate}");
        let (mean_ms, control_ms) = (
            found.mean() / 1e6,
            latency(&control, "handshake").mean() / 1e6,
        );
        if mean_ms > 50.0 + 2.0 * control_ms + 1.0 {
            return Err(format!(
                "{mean_ms} ms on average, {control_ms} without the plant"
            ));
        }
        Ok(())
    });
}

#[test]
fn an_honest_server_is_not_accused_of_anything() {
    let server = Running::start("--delay uniform:0ms-20ms --delay-each delivery");
    let line = "fanout --rooms 3 --members 30 --publishers 3 --rate 100 --size 20-4096 --warm-up 0.1 --duration 0.9";
    let report = run(&server, line).unwrap();
    let tally = server.tally();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    assert_eq!(tally.deliveries, 27_000);
    assert_eq!(figure(&report, "delivered"), 27_000.0);
    assert!(
        tally.deferred > 0,
        "messages did catch up with earlier ones"
    );
}

#[test]
fn a_server_that_refuses_or_talks_nonsense_is_quoted() {
    for (plants, words) in [
        (
            "--connections-max 0",
            ["503", "0 connections are all there may be"],
        ),
        ("--refuse-first 1", ["503", "the first ones are refused"]),
        ("--end-before-answer", ["ended the stream", "answer"]),
        ("--garbage http", ["refused", "not HTTP"]),
        ("--garbage key", ["refused", "accept key"]),
    ] {
        let server = Running::start(plants);
        let Err(Failure::Usage(text)) = run(&server, "echo") else {
            panic!("{plants} must be refused before the run")
        };
        for word in words {
            assert!(text.contains(word), "{plants}: {text}");
        }
        let address = server.address.to_string();
        assert!(text.contains(&address), "{plants}: who said it? {text}");
    }
}

#[test]
fn connections_that_are_refused_spoiled_or_closed_are_counted_as_such() {
    let server = Running::start("--connections-max 5");
    let report = run(&server, "idle --connections 8 --settle 0 --hold 0.05").unwrap();
    assert_eq!(figure(&report, "upgraded"), 5.0);
    assert_eq!(figure(&report, "refused_with_503"), 3.0);
    let Err(Failure::Broken(text)) = report.verdict() else {
        panic!("three were refused")
    };
    assert!(
        text.contains("5 connections are all there may be"),
        "{text}"
    );

    let server = Running::start("--garbage frames");
    let report = run(&server, "idle --connections 4 --settle 0 --hold 0.05").unwrap();
    assert_eq!(figure(&report, "connections_lost"), 4.0);
    assert!(matches!(report.verdict(), Err(Failure::Broken(_))));

    for (code, figure_name) in [
        (4001, "closed_by_server_4001"),
        (1006, "closed_by_server_1006"),
    ] {
        let server = Running::start(&format!("--close-after 500ms:{code} --close-over 100ms"));
        let report = run(&server, "idle --connections 6 --settle 0 --hold 0.8").unwrap();
        assert_eq!(figure(&report, figure_name), 6.0);
        assert!(matches!(report.verdict(), Err(Failure::Broken(_))));
        let tally = server.tally();
        assert_eq!((tally.closed, tally.cut), (6, 0));
    }
}

#[test]
fn a_server_that_stops_is_seen_to_advise_and_close_as_it_did() {
    eventually(|| {
        let server =
            Running::start("--close-after 500ms:1012 --close-over 400ms --reconnect-after-ms 50");
        let line = "drain --members 20 --rate 5 --warm-up 0.1 --duration 1.4 --come-back";
        let report = run(&server, line).unwrap();
        let tally = server.tally();
        assert_eq!(
            (tally.closed, tally.cut, tally.upgraded),
            (20, 0, 1 + 20 + 20)
        );
        for (name, planted) in [
            ("closed_by_server", 20.0),
            ("closed_with_1012", 20.0),
            ("never_closed", 0.0),
            ("advised_to_reconnect", 20.0),
            ("open_at_the_end", 20.0),
        ] {
            assert_eq!(figure(&report, name), planted, "{name}\n{}", report.text());
        }
        assert!(
            figure(&report, "back_p50_ms") >= 50.0 * (1.0 - PRECISION),
            "they were advised"
        );
        let found = figure(&report, "close_spread_seconds");
        let planted_ns = tally.last_close_ns.unwrap() - tally.first_close_ns.unwrap();
        let planted = planted_ns as f64 / 1e9;
        if (found - planted).abs() > 0.05 {
            return Err(format!("closed over {planted} s, reported {found}"));
        }
        Ok(())
    });
}

#[test]
fn who_is_not_let_in_comes_again_and_every_refusal_is_counted() {
    eventually(|| {
        let server = Running::start("--refuse 400ms:800ms");
        let line = "storm --connections 30 --hold 0.5 --backoff 50 --backoff-max 100";
        let report = run(&server, line).unwrap();
        let tally = server.tally();
        if tally.refused < 30 || figure(&report, "upgraded") != 60.0 {
            return Err(format!("not dropped while shut\n{}", tally.text()));
        }
        assert_eq!(report.verdict(), Ok(()), "{}", report.text());
        assert_eq!(tally.upgraded, 1 + 30 + 30, "{}", tally.text());
        assert_eq!(figure(&report, "attempts_made_again"), tally.refused as f64);
        assert_eq!(figure(&report, "dropped"), 30.0);
        Ok(())
    });
}
