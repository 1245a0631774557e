//! Whether `capacity` finds a limit that was planted.

use clap::Parser;

use super::*;
use crate::floor::planted::running::Running;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    task: Task,
}

fn run(server: &Running, line: &str) -> Result<Report, Failure> {
    let target = format!("ws://{}", server.address);
    let words = ["throng-load", "capacity", "--target", &target]
        .into_iter()
        .chain(line.split_whitespace());
    let line = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
    measure(&line.task)
}

fn figure(report: &Report, name: &str) -> f64 {
    report
        .get(name)
        .unwrap_or_else(|| panic!("{name} in\n{}", report.text()))
}

#[test]
fn a_planted_limit_of_connections_is_found_within_five_percent_and_named() {
    let server = Running::start("--connections-max 70");
    let report = run(
        &server,
        "--raise connections --from 10 --to 1000 --hold 0 --rest 0.1 --threads 2",
    )
    .unwrap();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    let found = figure(&report, "capacity");
    assert!((67.0..=70.0).contains(&found), "{}", report.text());
    assert!(figure(&report, "capacity_broke_at") - found <= f64::max(1.0, found * 0.02));
    assert_eq!(
        figure(&report, "upgraded"),
        found,
        "the figures are the winner's"
    );
    let text = report.text();
    assert!(
        text.contains("limiting resource: the server refused") && text.contains("with 503"),
        "{text}"
    );
}

#[test]
fn a_planted_limit_of_messages_a_second_is_found_within_five_percent() {
    // A queue that grows by 3% of the time is 20 ms long in the middle of the window. The median, because others may have
    // the processors for longer than that.
    let server = Running::start("--messages-per-s-max 400");
    let report = run(
        &server,
        "--raise rate --from 320 --to 480 --members 2 --size 64 --objective p50<20ms --duration 0.8 --warm-up 0.2 \
         --rest 0.05 --precision 0.05",
    )
    .unwrap();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    let found = figure(&report, "capacity");
    assert!((380.0..=420.0).contains(&found), "{}", report.text());
    assert!(figure(&report, "latency_p50_ms") < 20.0);
    assert!(
        report.text().contains("this broke: p50<20ms"),
        "{}",
        report.text()
    );
}

#[test]
fn a_server_that_queues_is_found_at_its_limit_though_nothing_is_lost() {
    let server = Running::start("--messages-per-s-max 200");
    let report = run(
        &server,
        "--raise rate --from 100 --to 800 --members 2 --size 64 --duration 1 --warm-up 0.2 --rest 0.05",
    )
    .unwrap();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    let found = figure(&report, "capacity");
    assert!((190.0..=210.0).contains(&found), "{}", report.text());
    assert_eq!(figure(&report, "lost"), 0.0);
    let text = report.text();
    assert!(
        text.contains("of what was due came within the window: it queues"),
        "{text}"
    );
}

#[test]
fn a_first_value_that_does_not_hold_is_said_and_ends_badly() {
    let server = Running::start("--lose 1/10");
    let line =
        "--raise members --from 3 --to 50 --rate 100 --size 64 --duration 0.2 --warm-up 0 --rest 0";
    let report = run(&server, line).unwrap();
    let Err(Failure::Broken(text)) = report.verdict() else {
        panic!("{}", report.text())
    };
    assert!(
        text.contains("nothing held: the search begins with 3 members of each room"),
        "{text}"
    );
    assert_eq!(
        (report.get("capacity"), report.get("trials")),
        (None, Some(2.0))
    );
    assert_eq!(figure(&report, "capacity_broke_at"), 3.0);
    assert!(figure(&report, "lost") > 0.0);
}

#[test]
fn a_server_that_is_gone_ends_the_search_and_what_held_before_is_told() {
    let server = Running::start("");
    let target = format!("ws://{}", server.address);
    let words = "throng-load capacity --raise members --from 2 --to 1000 --rate 20 --size 64 --duration 0.2 --warm-up 0 \
                 --rest 0 --quiet --target";
    let words = words.split_whitespace().chain([target.as_str()]);
    let line = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
    let search = std::thread::spawn(move || measure(&line.task));
    while server.tally().upgraded < 8 {
        std::thread::sleep(std::time::Duration::from_millis(1)); // until the first trial is over
    }
    drop(server);
    let report = search.join().unwrap().unwrap();
    let Err(Failure::Broken(text)) = report.verdict() else {
        panic!("{}", report.text())
    };
    assert!(text.contains("could not go on"), "{text}");
    assert!(figure(&report, "capacity") >= 2.0, "{}", report.text());
}

#[test]
fn a_search_ends_at_its_time_limit_and_says_how_far_it_came() {
    let server = Running::start("");
    let load = "--raise members --from 2 --to 1000 --rate 20 --size 64 --warm-up 0 --rest 0";
    let report = run(&server, &format!("{load} --duration 0.5 --time-limit 3")).unwrap();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    assert!((2.0..1000.0).contains(&figure(&report, "capacity")));
    assert!(
        report.text().contains("the time limit was met"),
        "{}",
        report.text()
    );

    let report = run(&server, &format!("{load} --duration 5 --time-limit 1")).unwrap();
    let Err(Failure::Broken(text)) = report.verdict() else {
        panic!("{}", report.text())
    };
    assert!(
        text.contains("no trial came to its end at 2 members"),
        "{text}"
    );
}

#[test]
fn what_does_not_break_is_tried_up_to_the_end_of_the_range() {
    let server = Running::start("");
    let load = "--rate 20 --size 64 --duration 0.2 --warm-up 0 --rest 0";
    for raise in ["rooms", "members", "publishers"] {
        let line = format!("--raise {raise} --from 2 --to 5 --members 5 {load}");
        let report = run(&server, &line).unwrap();
        assert_eq!(report.verdict(), Ok(()), "{}", report.text());
        let found = ["capacity", "trials"].map(|name| figure(&report, name));
        assert_eq!(found, [5.0, 3.0], "{raise}");
        assert!(report.text().contains("at least 5"), "{}", report.text());
    }
    let line = format!(
        "--raise size --from 64 --to 256 {}",
        load.replace("--size 64", "")
    );
    let report = run(&server, &line).unwrap();
    assert_eq!(figure(&report, "capacity"), 256.0);
}

#[test]
fn what_cannot_be_searched_is_said_before_the_first_trial() {
    let server = Running::start("");
    for (wrong, words) in [
        ("--raise members --from 5 --to 4", "--from"),
        ("--raise members --from 5 --to 9.5", "whole"),
        (
            "--raise members --from 5 --to 9 --objective cpu<90%",
            "--server-pid",
        ),
        (
            "--raise members --from 5 --to 9 --objective p99",
            "p99<50ms",
        ),
        ("--raise publishers --from 5 --to 900", "at 900 publishers"),
        ("--raise size --from 1 --to 900", "at 1 bytes"),
        ("--raise rate --from 1 --to 9 --closed", "open loop"),
        (
            "--raise connections --from 1 --to 9 --precision 0",
            "--precision",
        ),
    ] {
        let Err(Failure::Usage(text)) = run(&server, wrong) else {
            panic!("{wrong} ran")
        };
        assert!(text.contains(words), "{wrong}: {text}");
    }
    let unknown =
        "--raise members --from 2 --to 9 --objective latency_p98_ms<5 --duration 0.1 --warm-up 0";
    let Err(Failure::Usage(text)) = run(&server, unknown) else {
        panic!("there is no such figure")
    };
    assert!(text.contains("latency_p99_ms"), "{text}");
    assert_eq!(server.tally().refused, 0);
}
