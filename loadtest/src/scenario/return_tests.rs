//! Clients that are dropped, closed or refused and come back; several targets; the closed loop.

use clap::Parser;

use super::*;
use crate::floor::planted::running::Running;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    task: Task,
}

fn run(servers: &[&Running], line: &str) -> Report {
    let (scenario, rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut words = vec!["throng-load".to_owned(), scenario.to_owned()];
    for server in servers {
        words.extend(["--target".to_owned(), format!("ws://{}", server.address)]);
    }
    words.extend(rest.split_whitespace().map(str::to_owned));
    let line = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
    measure(&line.task).unwrap()
}

fn figure(report: &Report, name: &str) -> f64 {
    report
        .get(name)
        .unwrap_or_else(|| panic!("{name} in\n{}", report.text()))
}

#[test]
fn after_a_storm_everybody_is_back_and_a_member_again() {
    let server = Running::start("");
    let line = "storm --connections 60 --rooms 3 --drops 2 --backoff 20 --backoff-max 80 --hold 0.05 --threads 2";
    let report = run(&[&server], line);
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    assert_eq!(
        ["dropped", "upgraded", "delivered", "lost"].map(|name| figure(&report, name)),
        [120.0, 180.0, 60.0, 0.0]
    );
    let seconds = figure(&report, "seconds_until_all_back");
    assert!(seconds > 0.0 && figure(&report, "back_max_ms") <= seconds * 1_000.0 + 100.0);
}

#[test]
fn only_who_was_open_is_dropped_and_expected_back() {
    let server = Running::start("--connections-max 50");
    let line = "storm --connections 60 --backoff 20 --backoff-max 80 --hold 0.05";
    let report = run(&[&server], line);
    let Err(Failure::Broken(text)) = report.verdict() else {
        panic!("ten were refused in\n{}", report.text())
    };
    assert!(!text.contains("were not back"), "{text}");
    let upgraded = figure(&report, "upgraded");
    assert_eq!(
        [figure(&report, "dropped"), figure(&report, "delivered")],
        [50.0, 50.0],
        "{}",
        report.text()
    );
    assert_eq!(upgraded, 100.0);
}

#[test]
fn closes_before_the_signal_are_losses_and_are_not_counted_from_it() {
    let server = Running::start("--close-after 200ms:1012 --close-over 1ms");
    let report = run(&[&server], "drain --members 5 --warm-up 1.5 --duration 0.2");
    let Err(Failure::Broken(text)) = report.verdict() else {
        panic!("{}", report.text())
    };
    assert!(
        text.contains("5 connections were closed by the server"),
        "{text}"
    );
    assert_eq!(figure(&report, "closed_by_server"), 0.0);
    assert_eq!(figure(&report, "closed_in_time"), 0.0);

    let server = Running::start("--close-after 1500ms:1012 --close-over 1ms");
    let report = run(&[&server], "drain --members 5 --warm-up 1 --duration 3");
    assert_eq!(
        figure(&report, "closed_with_1012"),
        5.0,
        "{}",
        report.text()
    );
    let after_ms = figure(&report, "close_after_max_ms");
    assert!(
        after_ms < 1_000.0,
        "{after_ms} ms, a second after the warm-up began"
    );
}

#[test]
fn a_drain_tells_what_closing_cost_and_a_server_that_has_ended_does_not_fail_it() {
    let server = Running::start("--close-after 800ms:1012 --close-over 200ms");
    let mut child = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    let pid = child.id();
    let reaper = std::thread::spawn(move || child.wait());
    let line = format!(
        "drain --members 10 --warm-up 0.2 --duration 2 --server-pid {pid} --stop-pid {pid}"
    );
    let report = run(&[&server], &line);
    reaper.join().unwrap().unwrap();
    assert!(
        report.text().contains("a server has ended"),
        "{}",
        report.text()
    );
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());

    let server = Running::start("--close-after 800ms:1012 --close-over 200ms");
    let pid = std::process::id();
    let line = format!("drain --members 10 --warm-up 0.2 --duration 2 --server-pid {pid}");
    let report = run(&[&server], &line);
    for name in [
        "server_cpu_us_per_closed_connection",
        "client_cpu_us_per_closed_connection",
        "client_busiest_thread_share",
    ] {
        assert!(figure(&report, name) > 0.0, "{name} in\n{}", report.text());
    }
}

#[test]
fn a_drain_is_told_by_its_codes_its_spread_and_who_came_back_where() {
    let servers = [
        Running::start("--close-after 900ms:1012 --close-over 400ms --reconnect-after-ms 30"),
        Running::start(""),
    ];
    let line = "drain --rooms 2 --members 20 --publishers 2 --publish-on first --rate 20 --come-back --warm-up 0 --duration 2.5";
    let report = run(&[&servers[0], &servers[1]], line);
    let figure = |name| figure(&report, name);
    assert_eq!(
        [
            "closed_by_server",
            "closed_with_1012",
            "advised_to_reconnect",
            "back_on_target_0",
            "back_on_target_1",
            "open_at_the_end"
        ]
        .map(figure),
        [20.0, 20.0, 20.0, 0.0, 20.0, 40.0],
        "{}",
        report.text()
    );
    assert!((0.3..3.0).contains(&figure("close_spread_seconds")));
    assert!(figure("back_p50_ms") >= 30.0, "the advice is heeded");
    assert_eq!(servers[0].tally().closed, 20);
}

#[test]
fn members_of_a_room_are_spread_over_targets_and_hear_each_other_only_through_a_backplane() {
    let line = "fanout --rooms 2 --members 10 --publishers 1 --publish-on first --rate 50 --duration 0.4 --warm-up 0 --threads 3";
    let one = Running::start("");
    let joined = run(&[&one, &one], line);
    assert_eq!(joined.verdict(), Ok(()), "{}", joined.text());
    let published = figure(&joined, "published");
    assert_eq!(figure(&joined, "delivered"), published * 10.0);

    let two = Running::start("");
    let apart = run(&[&one, &two], line);
    let published = figure(&apart, "published");
    assert_eq!(
        ["delivered", "lost"].map(|name| figure(&apart, name)),
        [published * 5.0, published * 5.0],
        "nothing joins the two servers"
    );
    assert_eq!(two.tally().upgraded, 10 + 1);
}

#[test]
fn in_a_closed_loop_the_next_message_waits_for_the_last() {
    let server = Running::start("--delay constant:20ms");
    let line = "fanout --members 4 --publishers 2 --closed --in-flight 3 --size 64-256 --duration 0.8 --warm-up 0.2";
    let report = run(&[&server], line);
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    let published = figure(&report, "published");
    // Two publishers, three on their way each, one second, 20 ms or more for each way around; the last are still out.
    assert!(
        (12.0..=2.0 * 3.0 * 51.0).contains(&published),
        "{published}"
    );
    assert_eq!(figure(&report, "delivered"), published * 4.0);
    assert!(figure(&report, "latency_p50_ms") >= 20.0 * 0.999);
}

#[test]
fn a_second_copy_of_an_echo_is_not_answered() {
    let server = Running::start("--delay constant:20ms --duplicate 1/2");
    let report = run(&[&server], "echo --connections 1 --duration 1 --warm-up 0");
    let delivered = figure(&report, "delivered");
    // One on its way, 20 ms or more for each way around.
    assert!((2.0..=52.0).contains(&delivered), "{}", report.text());
    let tally = server.tally();
    assert_eq!(figure(&report, "duplicated"), tally.duplicated as f64);
    assert!(tally.duplicated > 0 && figure(&report, "lost") == 0.0);
}
