//! Several generators against servers whose behaviour is known: do they count as one would?

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::{CommandFactory, FromArgMatches, Parser};

use super::hello::{Secret, introduce};
use super::joiner::{Join, join};
use super::wire::{self, FromJoiner, Reply, ToJoiner};
use crate::client::{Orders, Seen};
use crate::clock::{machine_ns, now_ns};
use crate::failure::Failure;
use crate::floor::planted::running::Running;
use crate::report::Report;
use crate::scenario::{Scenario, Task, measure, run};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    join: Join,
    #[command(subcommand)]
    scenario: Option<Scenario>,
}

fn line(text: &str) -> Line {
    let words = std::iter::once("throng-load").chain(text.split_whitespace());
    let matches = Line::command()
        .try_get_matches_from(words)
        .unwrap_or_else(|error| panic!("{error}"));
    Line::from_arg_matches(&matches).unwrap()
}

/// An address that nobody listens on yet.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// A generator on a thread, which joins `address` with these flags.
fn joiner(address: SocketAddr, flags: &str) -> JoinHandle<Result<(), Failure>> {
    let line = line(&format!("--join {address} --once {flags}"));
    thread::spawn(move || join(line.join.join.as_deref().unwrap(), &line.join))
}

/// Runs a scenario on `server` as the coordinator at `address`.
fn coordinate(server: SocketAddr, address: SocketAddr, text: &str) -> Result<Report, Failure> {
    let (name, flags) = text.split_once(' ').unwrap_or((text, ""));
    let scenario = line(&format!(
        "{name} --target ws://{server} --quiet --coordinator {address} {flags}"
    ));
    measure(&Task::Scenario(scenario.scenario.unwrap()))
}

fn figure(report: &Report, name: &str) -> f64 {
    report
        .get(name)
        .unwrap_or_else(|| panic!("{name} in\n{}", report.text()))
}

fn usage<T>(result: Result<T, Failure>) -> String {
    match result {
        Err(Failure::Usage(text)) => text,
        Err(Failure::Broken(text)) => panic!("not a mistake, but broken: {text}"),
        Ok(_) => panic!("it is a mistake"),
    }
}

/// A stream to the coordinator, once it listens.
fn connect(address: SocketAddr) -> TcpStream {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        thread::yield_now();
    }
}

/// A joiner that a test plays by hand.
struct Played {
    stream: TcpStream,
    /// What is added to this machine's clock.
    ahead_ns: u64,
    /// What the coordinator set the clock to.
    offset_ns: Option<i64>,
}

impl Played {
    fn join(address: SocketAddr, name: &str) -> Self {
        let mut stream = connect(address);
        introduce(&mut stream, &Secret::default(), name).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self {
            stream,
            ahead_ns: 0,
            offset_ns: None,
        }
    }

    fn say(&mut self, message: &FromJoiner) {
        wire::send(&mut self.stream, message).unwrap();
    }

    fn hear(&mut self) -> ToJoiner {
        loop {
            match wire::receive(&mut self.stream, 1 << 20).unwrap() {
                ToJoiner::Alive => {}
                ToJoiner::Ping { sent_ns } => {
                    let at_ns = machine_ns() + self.ahead_ns;
                    self.say(&FromJoiner::Pong { sent_ns, at_ns });
                }
                ToJoiner::SetClock { offset_ns } => self.offset_ns = Some(offset_ns),
                message => return message,
            }
        }
    }

    /// Answers until its workers, of which there are none, have started; gives the run.
    fn start(&mut self) -> u32 {
        loop {
            match self.hear() {
                ToJoiner::Prepare { run, .. } => self.say(&FromJoiner::Reply {
                    run,
                    reply: Reply::Ready {
                        thread_count: 1,
                        core_count: 1.0,
                    },
                }),
                ToJoiner::Start { run, .. } => {
                    self.say(&FromJoiner::Reply {
                        run,
                        reply: Reply::Started,
                    });
                    return run;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn orders(&mut self) -> Orders {
        match self.hear() {
            ToJoiner::Orders { orders, .. } => orders,
            other => panic!("{other:?}"),
        }
    }

    fn progress(&mut self, run: u32, seen: Seen) {
        self.say(&FromJoiner::Progress {
            run,
            at_ns: now_ns(),
            seen,
            finished: false,
            threads: None,
            interval: None,
        });
    }
}

#[test]
fn rooms_that_span_generators_of_unequal_threads_lose_nothing() {
    let server = Running::start("--delay constant:5ms");
    let address = free_address();
    let joiners = [
        joiner(address, "--threads 2 --name left"),
        joiner(address, "--threads 4 --name left"),
    ];
    let report = coordinate(
        server.address,
        address,
        "fanout --rooms 3 --members 21 --publishers 3 --rate 100 --warm-up 0.1 --duration 0.9 --generators 2 --threads 3",
    )
    .unwrap();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    // 9 publishers, 100 messages each, 21 members each.
    assert_eq!(figure(&report, "published"), 900.0);
    assert_eq!(figure(&report, "delivered"), 18_900.0);
    assert_eq!(server.tally().deliveries, 18_900);
    assert_eq!(figure(&report, "generators"), 3.0);
    // 63 members on 9 threads.
    let mut names = [
        figure(&report, "upgraded_left"),
        figure(&report, "upgraded_left_2"),
    ];
    names.sort_by(f64::total_cmp);
    assert_eq!(names, [14.0, 28.0]);
    assert_eq!(figure(&report, "upgraded_coordinator"), 21.0);
    assert!(figure(&report, "client_left_2_cpu_share") > 0.0);
    let handshakes = report.histogram("handshake").unwrap();
    assert_eq!(handshakes.len(), 63, "of all generators");
    // The warm-up is a tenth of it. None is below what was planted, wherever it was measured.
    let latency = report.histogram("latency").unwrap();
    assert_eq!(latency.len(), 17_010);
    assert!(
        latency.min() >= 5_000_000 * 999 / 1_000,
        "{}",
        latency.min()
    );
    assert!(figure(&report, "latency_p50_ms") < 60.0);
    for joiner in joiners {
        assert_eq!(joiner.join().unwrap(), Ok(()));
    }
}

#[test]
fn runs_beside_each_other_do_not_hear_each_other() {
    let server = Running::start("");
    let run = |joined_by: usize| {
        let address = free_address();
        let server = server.address;
        let joiners: Vec<_> = (0..joined_by).map(|_| joiner(address, "")).collect();
        let coordinator = if joined_by > 0 {
            format!("--coordinator {address}")
        } else {
            String::new()
        };
        thread::spawn(move || {
            let scenario = line(&format!(
                "fanout --target ws://{server} --quiet --members 6 --rate 50 --warm-up 0 --duration 1.5 {coordinator}"
            ));
            let report = measure(&Task::Scenario(scenario.scenario.unwrap())).unwrap();
            for joiner in joiners {
                joiner.join().unwrap().unwrap();
            }
            report
        })
    };
    for run in [run(0), run(0), run(1)] {
        let report = run.join().unwrap();
        assert_eq!(report.verdict(), Ok(()), "{}", report.text());
        assert_eq!(figure(&report, "delivered"), 450.0, "{}", report.text());
    }
    assert_eq!(server.tally().deliveries, 3 * 450);
}

#[test]
fn what_goes_wrong_in_a_room_that_spans_generators_is_counted_once() {
    let server = Running::start(
        "--lose 1/1000 --duplicate 1/1000 --reorder 1/1000 --corrupt 1/1000 --misroute 1/1000 --seed 5",
    );
    let address = free_address();
    let joined = joiner(address, "--threads 2");
    let report = coordinate(
        server.address,
        address,
        "fanout --rooms 2 --members 25 --publishers 2 --rate 200 --warm-up 0 --duration 1 --generators 1",
    )
    .unwrap();
    let tally = server.tally();
    assert_eq!((tally.messages, tally.deliveries), (800, 20_000));
    assert!(tally.lost > 15 && tally.reordered > 15, "{}", tally.text());
    for (name, planted) in [
        ("published", tally.messages),
        ("delivered", tally.delivered),
        ("lost", tally.lost + tally.corrupted),
        ("duplicated", tally.duplicated),
        ("reordered", tally.reordered),
        ("corrupted", tally.corrupted),
        ("misrouted", tally.misrouted),
    ] {
        let found = figure(&report, name);
        assert_eq!(found, planted as f64, "{name}\n{}", tally.text());
    }
    assert!(matches!(report.verdict(), Err(Failure::Broken(_))));
    assert_eq!(joined.join().unwrap(), Ok(()));
}

#[test]
fn what_is_lost_at_the_end_is_known_by_what_publishers_elsewhere_published() {
    let server = Running::start("--lose 1/2 --faults-after 300ms");
    let address = free_address();
    let joined = joiner(address, "--threads 2");
    let report = coordinate(
        server.address,
        address,
        "fanout --members 9 --publishers 9 --rate 50 --warm-up 0 --duration 1",
    )
    .unwrap();
    let tally = server.tally();
    assert_eq!((tally.messages, tally.deliveries), (450, 4_050));
    assert!(tally.lost > 500, "{}", tally.text());
    assert_eq!(figure(&report, "lost"), tally.lost as f64);
    assert_eq!(figure(&report, "delivered"), tally.delivered as f64);
    assert_eq!(joined.join().unwrap(), Ok(()));
}

#[test]
fn one_session_serves_several_runs_of_several_scenarios() {
    let server = Running::start("");
    let address = free_address();
    let joined = joiner(address, "");
    let flags = format!(
        "--target ws://{} --quiet --coordinator {address}",
        server.address
    );
    let first = line(&format!("churn {flags} --connections 60 --warm-up 10"));
    let (Some(Scenario::Churn(churn)), Some(Scenario::Idle(mut idle))) = (
        first.scenario,
        line(&format!("idle {flags} --settle 0 --hold 0.05 --messages 2")).scenario,
    ) else {
        panic!("they were asked for")
    };
    // As a search does it: the arguments change, the session stays.
    idle.common.coordination = churn.common.coordination.clone();
    let churned = measure(&Task::Scenario(Scenario::Churn(churn))).unwrap();
    assert_eq!(churned.verdict(), Ok(()), "{}", churned.text());
    assert_eq!(figure(&churned, "handshakes"), 60.0);
    for count in [7, 30] {
        idle.connections = count;
        let report = measure(&Task::Scenario(Scenario::Idle(idle.clone()))).unwrap();
        assert_eq!(report.verdict(), Ok(()), "{}", report.text());
        assert_eq!(figure(&report, "upgraded"), f64::from(count));
        assert_eq!(figure(&report, "delivered"), f64::from(2 * count));
    }
    assert!(!joined.is_finished(), "the session goes on");
    drop(idle);
    assert_eq!(joined.join().unwrap(), Ok(()));
}

#[test]
fn a_generator_that_is_killed_in_the_middle_is_a_fault_and_hinders_nobody() {
    let server = Running::start("");
    let address = free_address();
    let honest = joiner(address, "--name honest");
    let played = thread::spawn(move || {
        let mut played = Played::join(address, "victim");
        let run = played.start();
        assert!(played.orders().open_until > 0);
        // Its five of fifteen connections are said to be open.
        let seen = Seen {
            upgraded: 5,
            open: 5,
            ..Seen::default()
        };
        played.progress(run, seen);
        assert!(played.orders().timetable.is_some());
    });
    let began = Instant::now();
    let report = coordinate(
        server.address,
        address,
        "fanout --members 15 --rate 50 --warm-up 0.1 --duration 60 --generators 2",
    )
    .unwrap();
    assert!(began.elapsed() < Duration::from_secs(30));
    played.join().unwrap();
    let Err(Failure::Broken(text)) = report.verdict() else {
        panic!("it is a fault")
    };
    assert!(
        text.contains("generator victim left during the run"),
        "{text}"
    );
    assert_eq!(figure(&report, "upgraded_victim"), 5.0);
    assert_eq!(figure(&report, "upgraded_honest"), 5.0);
    assert_eq!(figure(&report, "lost"), 0.0);
    assert_eq!(honest.join().unwrap(), Ok(()));
}

/// What a coordinator says of one that lies in answer to orders to stop, in a run of four members.
fn verdict_of_a_run_with_a_liar(lie: impl FnOnce(&mut Played, u32) + Send + 'static) -> String {
    let server = Running::start("");
    let address = free_address();
    let played = thread::spawn(move || {
        let mut played = Played::join(address, "liar");
        let run = played.start();
        let seen = Seen {
            upgraded: 2,
            open: 2,
            ..Seen::default()
        };
        played.progress(run, seen);
        while !played.orders().stop {}
        lie(&mut played, run);
        // It is shown the door.
        while wire::receive::<ToJoiner>(&mut played.stream, 1 << 20).is_ok() {}
    });
    let report = coordinate(
        server.address,
        address,
        "fanout --members 4 --rate 50 --warm-up 0 --duration 0.1 --patience 0.5",
    )
    .unwrap();
    played.join().unwrap();
    assert_eq!(figure(&report, "delivered"), 10.0, "{}", report.text());
    match report.verdict() {
        Err(Failure::Broken(text)) => text,
        other => panic!("it is a fault, not {other:?}"),
    }
}

#[test]
fn a_generator_that_tells_of_publishers_that_the_run_does_not_have_is_not_trusted() {
    for publisher in [4, u32::MAX - 1] {
        let text = verdict_of_a_run_with_a_liar(move |played, run| {
            played.say(&FromJoiner::Reply {
                run,
                reply: Reply::Published {
                    counts: vec![(publisher, 1)],
                    last: true,
                },
            });
        });
        let words =
            format!("it is not to be trusted: it tells of publisher {publisher} in a run of 4");
        assert!(
            text.contains("generator liar left") && text.contains(&words),
            "{text}"
        );
    }
    let text = verdict_of_a_run_with_a_liar(|played, run| {
        let counts = vec![(3, 0); 5];
        let reply = Reply::Published {
            counts,
            last: false,
        };
        played.say(&FromJoiner::Reply { run, reply });
    });
    assert!(text.contains("tells of 5 publishers"), "{text}");
}

#[test]
fn a_generator_that_tells_numbers_that_no_run_can_count_is_not_trusted() {
    let text = verdict_of_a_run_with_a_liar(|played, run| {
        let seen = Seen {
            received: u64::MAX,
            ..Seen::default()
        };
        played.progress(run, seen);
    });
    assert!(text.contains("a number that no run can count"), "{text}");
    let text = verdict_of_a_run_with_a_liar(|played, run| {
        let counts = Vec::new();
        let reply = Reply::Published { counts, last: true };
        played.say(&FromJoiner::Reply { run, reply });
        assert!(matches!(played.hear(), ToJoiner::Published { .. }));
        let mut tally = crate::client::Tally::default();
        tally.counts.insert("churned".into(), u64::MAX);
        let reply = Reply::Tally(Box::new((crate::client::Outcome::new(), tally)));
        played.say(&FromJoiner::Reply { run, reply });
    });
    assert!(text.contains("a number that no run can count"), "{text}");
}

#[test]
fn a_generator_that_fails_in_a_run_does_not_cost_the_others_their_counts() {
    let text = verdict_of_a_run_with_a_liar(|played, run| {
        let why = Failure::Broken("a worker panicked".into());
        let reply = Reply::Failed(why);
        played.say(&FromJoiner::Reply { run, reply });
    });
    assert!(
        text.contains("generator liar") && text.contains("a worker panicked"),
        "{text}"
    );
}

#[test]
fn the_report_of_a_run_that_a_generator_left_is_written_everywhere() {
    let server = Running::start("");
    let address = free_address();
    let played = thread::spawn(move || {
        let mut played = Played::join(address, "victim");
        let run = played.start();
        let seen = Seen {
            upgraded: 2,
            open: 2,
            ..Seen::default()
        };
        played.progress(run, seen);
        while played.orders().timetable.is_none() {}
    });
    let place = std::env::temp_dir().join(format!("throng-load-left-{}", std::process::id()));
    let file = |ending: &str| place.with_extension(ending);
    let scenario = line(&format!(
        "fanout --target ws://{} --quiet --coordinator {address} --members 4 --rate 50 --warm-up 0 --duration 60 --json {} \
         --html {} --hdr {}",
        server.address,
        file("json").display(),
        file("html").display(),
        file("hdr").display(),
    ));
    let Err(Failure::Broken(text)) = run(&Task::Scenario(scenario.scenario.unwrap())) else {
        panic!("it is a fault: exit code 1")
    };
    assert!(
        text.contains("generator victim left during the run"),
        "{text}"
    );
    played.join().unwrap();
    for ending in ["json", "html", "hdr"] {
        let content = std::fs::read_to_string(file(ending)).unwrap();
        assert!(!content.is_empty(), "{ending}");
        if ending == "json" {
            assert!(content.contains("victim left during the run"), "{content}");
        }
        std::fs::remove_file(file(ending)).unwrap();
    }
}

#[test]
fn a_generator_of_impossible_threads_or_clock_is_not_trusted() {
    let server = Running::start("");
    for (thread_count, core_count) in [(0, 1.0), (u32::MAX, 1.0), (1, 0.0), (1, -1.0), (1, 2.0)] {
        let address = free_address();
        let played = thread::spawn(move || {
            let mut played = Played::join(address, "liar");
            let ToJoiner::Prepare { run, .. } = played.hear() else {
                panic!("it is to take part")
            };
            let reply = Reply::Ready {
                thread_count,
                core_count,
            };
            played.say(&FromJoiner::Reply { run, reply });
            played // it does not leave before it is judged: its end could be heard of first
        });
        let refused = coordinate(server.address, address, "idle --connections 4");
        let Err(Failure::Broken(text)) = refused else {
            panic!("{thread_count} threads on {core_count} processors")
        };
        assert!(text.contains("it is not to be trusted"), "{text}");
        drop(played.join().unwrap());
    }
    let address = free_address();
    let played = thread::spawn(move || {
        let mut stream = connect(address);
        introduce(&mut stream, &Secret::default(), "liar").unwrap();
        while !matches!(
            wire::receive(&mut stream, 1 << 20).unwrap(),
            ToJoiner::Ping { .. }
        ) {}
        let pong = FromJoiner::Pong {
            sent_ns: 0,
            at_ns: 0,
        };
        wire::send(&mut stream, &pong).unwrap();
        stream
    });
    let refused = coordinate(server.address, address, "idle --connections 4");
    let Err(Failure::Broken(text)) = refused else {
        panic!("it would have been waited for as long as this machine runs")
    };
    assert!(text.contains("a ping that was not sent"), "{text}");
    drop(played.join().unwrap());
}

#[test]
fn a_coordinator_that_vanishes_ends_the_connections_of_those_who_joined() {
    let server = Running::start("--connections-max 7");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let joined = joiner(listener.local_addr().unwrap(), "");
    let (stream, _) = listener.accept().unwrap();
    let applicant = super::hello::challenge(stream, &Secret::default())
        .ok()
        .unwrap();
    let (mut stream, _) = applicant.welcome().unwrap();
    let scenario = line(&format!(
        "idle --target ws://{} --connections 6",
        server.address
    ));
    let Some(Scenario::Idle(idle)) = &scenario.scenario else {
        panic!("it was asked for")
    };
    let mut say = |message: ToJoiner| wire::send(&mut stream, &message).unwrap();
    say(ToJoiner::Prepare {
        run: 1,
        scenario: serde_json::json!({ "idle": idle }),
        generator_count: 1,
    });
    say(ToJoiner::Start {
        run: 1,
        worker_first: 0,
        worker_count: 1,
    });
    let orders = Orders {
        open_until: 6,
        ..Orders::default()
    };
    say(ToJoiner::Orders { run: 1, orders });
    loop {
        let message: FromJoiner = wire::receive(&mut stream, 1 << 20).unwrap();
        if let FromJoiner::Progress { seen, .. } = message
            && seen.open == 6
        {
            break;
        }
    }
    drop((stream, listener));
    let text = usage(joined.join().unwrap());
    assert!(
        text.contains("the coordinator at") && text.contains("gone"),
        "{text}"
    );
    // All six are closed, so that others find room at a server that has seven places.
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let others = line(&format!(
            "idle --target ws://{} --quiet --connections 6 --settle 0 --hold 0",
            server.address
        ));
        match measure(&Task::Scenario(others.scenario.unwrap())) {
            Ok(report) if report.verdict() == Ok(()) => break,
            found => assert!(
                Instant::now() < until,
                "{:?}",
                found.map(|found| found.text())
            ),
        }
    }
}

#[test]
fn what_one_generator_refuses_is_told_with_its_name() {
    let server = Running::start("");
    for (flags, word) in [
        ("--threads 2000", "--threads"),
        ("--source 127.0.0.9-127.0.0.1", "--source"),
        ("--source ::1", "families"),
    ] {
        let address = free_address();
        let joined = joiner(address, &format!("--name small {flags}"));
        let text = usage(coordinate(
            server.address,
            address,
            "echo --connections 10 --duration 0.1 --warm-up 0",
        ));
        assert!(
            text.contains("generator small: ") && text.contains(word),
            "{text}"
        );
        assert_eq!(
            joined.join().unwrap(),
            Ok(()),
            "it is there for the next run"
        );
    }
}

#[test]
fn more_threads_than_connections_are_refused_before_anybody_starts() {
    let server = Running::start("");
    let address = free_address();
    let joined = joiner(address, "--threads 8");
    let text = usage(coordinate(server.address, address, "echo --connections 5"));
    assert!(text.contains("9 threads for 5 connections"), "{text}");
    assert_eq!(joined.join().unwrap(), Ok(()));
}

#[test]
fn garbage_and_silence_on_the_port_hinder_nobody() {
    let server = Running::start("");
    let address = free_address();
    let crowd = thread::spawn(move || {
        let mut garbage = connect(address);
        garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut wrong = connect(address);
        assert!(introduce(&mut wrong, &wrong_secret(), "a").is_err());
        let silent: Vec<TcpStream> = (0..20).map(|_| connect(address)).collect();
        let joined = joiner(address, "");
        let mut rest = Vec::new();
        // Its answer to garbage is the challenge that everybody gets, and the end.
        let _ = garbage.read_to_end(&mut rest); // reset, when it ends before all was read
        (joined.join().unwrap(), silent)
    });
    let report = coordinate(
        server.address,
        address,
        "echo --connections 10 --duration 0.2 --warm-up 0",
    )
    .unwrap();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    assert_eq!(crowd.join().unwrap().0, Ok(()));
}

fn wrong_secret() -> Secret {
    let path = std::env::temp_dir().join(format!("throng-load-wrong-{}", std::process::id()));
    std::fs::write(&path, "a secret of somebody else's").unwrap();
    let secret = Secret::read(Some(&path)).unwrap();
    std::fs::remove_file(path).unwrap();
    secret
}

#[test]
fn who_does_not_come_is_not_waited_for_without_end() {
    let server = Running::start("");
    let address = free_address();
    let refused = thread::spawn(move || {
        let mut stream = connect(address);
        introduce(&mut stream, &wrong_secret(), "a")
    });
    let text = usage(coordinate(
        server.address,
        address,
        "echo --connections 10 --generators 2 --generators-wait 0.5",
    ));
    assert!(text.contains("0 of 2 generators joined"), "{text}");
    assert!(text.contains("secrets differ"), "{text}");
    assert!(refused.join().unwrap().is_err());

    let text = usage(joiner(free_address(), "--wait 0.3").join().unwrap());
    assert!(text.contains("no coordinator within 0.3 s"), "{text}");
}

#[test]
fn other_machines_need_leave_and_a_secret() {
    let server = Running::start("");
    let everywhere = "0.0.0.0:0".parse().unwrap();
    for flags in ["", "--allow-remote", "--secret-file /dev/null"] {
        let text = usage(coordinate(
            server.address,
            everywhere,
            &format!("echo {flags}"),
        ));
        assert!(
            text.contains("--allow-remote") && text.contains("--secret-file"),
            "{text}"
        );
    }
    let text = usage(
        joiner("192.0.2.1:7".parse().unwrap(), "--wait 1")
            .join()
            .unwrap(),
    );
    assert!(text.contains("--secret-file"), "{text}");
}

#[test]
fn headers_are_told_to_nobody_who_does_not_know_the_secret() {
    let server = Running::start("");
    let headers = "--header Authorization:Bearer_key";
    let text = usage(coordinate(
        server.address,
        free_address(),
        &format!("echo {headers} --generators-wait 0.2"),
    ));
    assert!(
        text.contains("--header") && text.contains("--secret-file"),
        "{text}"
    );
    let path = std::env::temp_dir().join(format!("throng-load-secret-{}", std::process::id()));
    std::fs::write(&path, "sixteen bytes or more").unwrap();
    let secret = format!("--secret-file {}", path.display());
    let address = free_address();
    let joined = joiner(address, &secret);
    let report = coordinate(
        server.address,
        address,
        &format!("idle --connections 2 --settle 0 --hold 0 {headers} {secret}"),
    );
    assert_eq!(report.unwrap().verdict(), Ok(()));
    assert_eq!(joined.join().unwrap(), Ok(()));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn the_clock_of_another_machine_is_set_and_what_that_is_worth_is_said() {
    let server = Running::start("");
    let address = free_address();
    let ahead_ns = 3_000_000_000;
    let played = thread::spawn(move || {
        // On one machine a difference this large tells that the clocks are two, whatever the boot.
        let mut played = Played::join(address, "elsewhere");
        played.ahead_ns = ahead_ns;
        let run = played.start();
        let offset_ns = played.offset_ns.expect("it is set before the run");
        while !played.orders().stop {}
        played.say(&FromJoiner::Reply {
            run,
            reply: Reply::Published {
                counts: Vec::new(),
                last: true,
            },
        });
        assert!(matches!(
            played.hear(),
            ToJoiner::Published { last: true, .. }
        ));
        let counted = (
            crate::client::Outcome::new(),
            crate::client::Tally::default(),
        );
        played.say(&FromJoiner::Reply {
            run,
            reply: Reply::Tally(Box::new(counted)),
        });
        assert!(matches!(played.hear(), ToJoiner::Farewell));
        offset_ns
    });
    let report = coordinate(
        server.address,
        address,
        "idle --connections 2 --settle 0 --hold 0 --patience 0.2",
    )
    .unwrap();
    let offset_ns = played.join().unwrap();
    let error_ns = (offset_ns + ahead_ns as i64).unsigned_abs();
    assert!(error_ns < 50_000_000, "{offset_ns}");
    let text = report.text();
    assert!(
        text.contains("the clock of elsewhere was set to the coordinator's within"),
        "{text}"
    );
    assert_eq!(figure(&report, "upgraded_elsewhere"), 0.0);
    assert!(
        now_ns().abs_diff(machine_ns()) < 1_000_000_000,
        "this clock is as it was"
    );
}

/// A search or a scenario as the coordinator, at `address`.
fn coordinate_task(server: SocketAddr, address: SocketAddr, text: &str) -> Report {
    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        task: Task,
    }
    let (name, flags) = text.split_once(' ').unwrap();
    let line = format!(
        "throng-load {name} --target ws://{server} --quiet --coordinator {address} {flags}"
    );
    let line =
        Line::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{error}"));
    measure(&line.task).unwrap()
}

#[test]
fn a_search_and_a_soak_are_run_by_two_generators_as_by_one() {
    let server = Running::start("--connections-max 60");
    let address = free_address();
    let other = joiner(address, "");
    let search =
        "capacity --raise connections --from 20 --to 500 --hold 0 --rest 0.2 --precision 0.04";
    let report = coordinate_task(server.address, address, search);
    other.join().unwrap().unwrap();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    let found = figure(&report, "capacity");
    assert!((57.0..=60.0).contains(&found), "{}", report.text());
    assert_eq!(figure(&report, "generators"), 2.0);

    let server = Running::start("");
    let address = free_address();
    let other = joiner(address, "");
    let soak = "soak --members 6 --rate 20 --size 64 --churning 4 --churn-every 0.5 --warm-up 0.2 --duration 4 --window 1 \
                --settle 2 --latency-slack 2s";
    let report = coordinate_task(server.address, address, soak);
    other.join().unwrap().unwrap();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    let published = figure(&report, "published");
    assert_eq!(figure(&report, "delivered"), published * 6.0);
    assert!(figure(&report, "churned") > 4.0);
    assert_eq!(figure(&report, "generators"), 2.0);
}
