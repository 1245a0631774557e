//! The scenarios against servers whose behaviour is known: bare loops, and one that plants faults.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use clap::Parser;

use super::*;
use crate::floor::planted::running::Running;
use crate::floor::{epoll::EpollServer, wire};

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    task: Task,
}

fn run(address: SocketAddr, line: &str) -> Result<Report, Failure> {
    let (scenario, rest) = line.split_once(' ').unwrap_or((line, ""));
    let target = format!("ws://{address}");
    let words = ["throng-load", scenario, "--target", &target]
        .into_iter()
        .chain(rest.split_whitespace());
    let line = Line::try_parse_from(words).map_err(|error| Failure::Usage(error.to_string()))?;
    measure(&line.task)
}

/// A bare echo loop on a thread of its own, until it is dropped.
struct EchoServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stop_seen = Arc::clone(&stop);
        let (tell_address, address) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut server = EpollServer::new("127.0.0.1:0".parse().unwrap()).unwrap();
            tell_address.send(server.address().unwrap()).unwrap();
            while !stop_seen.load(Ordering::Relaxed) {
                server.turn(Some(Duration::from_millis(10))).unwrap();
            }
        });
        Self {
            address: address.recv().unwrap(),
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

#[test]
fn echoes_come_back_whole_and_in_order_on_two_threads() {
    let server = EchoServer::start();
    let pid = std::process::id();
    let line = format!(
        "echo --connections 40 --in-flight 5 --size 300 --duration 0.4 --warm-up 0.1 --threads 2 --server-pid {pid}"
    );
    let report = run(server.address, &line).unwrap();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    let figure = |name| {
        report
            .get(name)
            .unwrap_or_else(|| panic!("{name} in\n{}", report.text()))
    };
    assert_eq!(figure("upgraded"), 40.0);
    assert!(figure("messages_per_s") > 1_000.0);
    assert!(figure("delivered") >= figure("messages_per_s") * 0.4);
    assert!(figure("latency_p50_ms") > 0.0 && figure("latency_p50_ms") <= figure("latency_max_ms"));
    assert!(figure("server_cpu_us_per_message") > 0.0);
}

#[test]
fn idle_connections_are_opened_in_steps() {
    let server = EchoServer::start();
    let pid = std::process::id();
    let line = format!("idle --steps 20,60 --rooms 3 --settle 0.05 --hold 0.05 --server-pid {pid}");
    let report = run(server.address, &line).unwrap();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    assert_eq!(report.get("upgraded"), Some(60.0));
    assert!(report.get("server_rss_bytes_per_connection").is_some());
    assert!(report.get("server_hold_cores_used").is_some());
    assert!(report.get("handshake_p99_ms").unwrap() > 0.0);
}

#[test]
fn rests_are_no_part_of_what_idle_measures_and_its_broadcast_is_measured_apart() {
    let server = Running::start("");
    let pid = std::process::id();
    let line = format!(
        "idle --steps 20,60 --settle 1.5 --hold 0 --messages 2 --size 64 --server-pid {pid}"
    );
    let report = run(server.address, &line).unwrap();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    let figure = |name| report.get(name).unwrap();
    let cpu_s = figure("server_cpu_us_per_handshake") * 60.0 / 1e6;
    let seconds = cpu_s / figure("server_cores_used");
    assert!(seconds < 1.5, "{seconds} s of handshakes, and 3 s of rest");
    assert!(figure("server_rss_after_bytes") > 0.0);
    assert!(figure("broadcast_client_occupied_share") > 0.0);
    assert!(figure("broadcast_server_busiest_thread_share") > 0.0);
}

#[test]
fn connections_come_and_go_either_way_and_a_rate_is_kept() {
    let server = EchoServer::start();
    for end in ["stream", "close-frame"] {
        let line = format!("churn --connections 300 --warm-up 50 --concurrency 16 --end {end}");
        let report = run(server.address, &line).unwrap();
        assert_eq!(report.verdict(), Ok(()), "{}", report.text());
        assert_eq!(
            (report.get("handshakes"), report.get("upgraded")),
            (Some(300.0), Some(350.0)),
            "{end}"
        );
    }
    let slowly = run(
        server.address,
        "churn --connections 100 --warm-up 0 --connect-rate 400",
    )
    .unwrap();
    let rate = slowly.get("handshakes_per_s").unwrap();
    assert!((250.0..450.0).contains(&rate), "{rate} a second were made");
}

#[test]
fn a_server_that_never_ends_the_stream_after_a_close_frame_is_not_waited_for() {
    let line =
        "churn --connections 12 --warm-up 0 --concurrency 12 --end close-frame --patience 20";
    let report = run(broadcast(|_, _, frame| frame.to_vec()), line).unwrap();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    assert_eq!(report.get("handshakes"), Some(12.0));
}

#[test]
fn what_is_wrong_with_the_target_is_said_at_once() {
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let Err(Failure::Usage(text)) = run(nobody, "echo") else {
        panic!("nobody listens")
    };
    assert!(
        text.contains("refused") && text.contains("running"),
        "{text}"
    );

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let refusing = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 2048];
        assert!(stream.read(&mut request).unwrap() > 0);
        stream
            .write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\n\r\ntoo many\n")
            .unwrap();
    });
    let Err(Failure::Usage(text)) = run(address, "echo") else {
        panic!("the upgrade is refused")
    };
    assert!(text.contains("503") && text.contains("too many"), "{text}");
    refusing.join().unwrap();

    for wrong in [
        "echo --size 15",
        "echo --in-flight 0",
        "fanout --publishers 2 --members 1",
        "idle --steps 5,4",
    ] {
        assert!(
            matches!(run(nobody, wrong), Err(Failure::Usage(_))),
            "{wrong}"
        );
    }
}

/// Broadcasts what each member sends to all of them, but for what `plant` does to each delivery: it is given the
/// member's index, the delivery's number, and the frame, and returns what is written instead.
pub fn broadcast(plant: impl Fn(usize, u32, &[u8]) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (send_frames, frames) = mpsc::channel::<Vec<u8>>();
    let streams = Arc::new(Mutex::new(Vec::new()));
    let members = Arc::clone(&streams);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = vec![0; 2048];
            let read = stream.read(&mut request).unwrap();
            let mut answer = Vec::new();
            wire::answer_upgrade(&request[..read], &mut answer).expect("a request in one piece");
            if request.starts_with(b"GET /rooms/probe ") {
                stream.write_all(&answer).unwrap();
                continue;
            }
            let (mut reader, send_frames) = (stream.try_clone().unwrap(), send_frames.clone());
            let mut members = members.lock().unwrap();
            stream.write_all(&answer).unwrap();
            members.push(stream);
            drop(members);
            thread::spawn(move || {
                let mut bytes = Vec::new();
                let mut chunk = [0; 4096];
                while let Ok(read @ 1..) = reader.read(&mut chunk) {
                    bytes.extend_from_slice(&chunk[..read]);
                    let turned = wire::turn_around(&mut bytes);
                    if send_frames
                        .send(bytes[..turned.answer_bytes].to_vec())
                        .is_err()
                    {
                        return;
                    }
                    bytes.drain(..turned.taken_bytes);
                }
            });
        }
    });
    thread::spawn(move || {
        let mut number = 0;
        for batch in frames {
            for frame in batch.chunks(2 + 64) {
                for (index, stream) in streams.lock().unwrap().iter_mut().enumerate() {
                    let _ = stream.write_all(&plant(index, number, frame)); // who has left has left
                }
                number += 1;
            }
        }
    });
    address
}

const FAN_OUT: &str =
    "fanout --members 3 --publishers 1 --rate 200 --size 64 --duration 0.5 --warm-up 0.1";

#[test]
fn an_honest_broadcast_has_no_fault() {
    let report = run(broadcast(|_, _, frame| frame.to_vec()), FAN_OUT).unwrap();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    let published = report.get("published").unwrap();
    assert!((100.0..=121.0).contains(&published), "{published}");
    assert_eq!(report.get("delivered"), Some(published * 3.0));
    assert!(report.get("latency_p50_ms").unwrap() > 0.0);
}

#[test]
fn planted_faults_are_reported_exactly() {
    let held = Mutex::new(Vec::new());
    let address = broadcast(move |member, number, frame| match (member, number) {
        (0, 10 | 20) => Vec::new(),         // lost
        (1, 15) => [frame, frame].concat(), // twice
        (2, 30..=32) => {
            // 30 is held back and follows 32
            let mut held = held.lock().unwrap();
            match number {
                30 => {
                    held.extend_from_slice(frame);
                    Vec::new()
                }
                31 => frame.to_vec(),
                _ => [frame, &held].concat(),
            }
        }
        (2, 40) => {
            let mut changed = frame.to_vec();
            changed[2 + 50] ^= 4;
            changed
        }
        _ => frame.to_vec(),
    });
    let report = run(address, FAN_OUT).unwrap();
    assert!(matches!(report.verdict(), Err(Failure::Broken(_))));
    let counts = ["lost", "duplicated", "reordered", "corrupted", "misrouted"]
        .map(|name| report.get(name).unwrap());
    // What is corrupted did not come, so it is lost, too.
    assert_eq!(counts, [3.0, 1.0, 1.0, 1.0, 0.0], "{}", report.text());
}

#[test]
fn a_stall_of_the_server_shows_in_the_latency_of_what_was_due_meanwhile() {
    let address = broadcast(|member, number, frame| {
        if (member, number) == (0, 60) {
            thread::sleep(Duration::from_millis(200));
        }
        frame.to_vec()
    });
    let report = run(address, FAN_OUT).unwrap();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    // 40 of 100 messages were due within the stall, and waited 0 to 200 ms for its end.
    let p90_ms = report.get("latency_p90_ms").unwrap();
    assert!((100.0..220.0).contains(&p90_ms), "{p90_ms}");
    assert!(report.get("latency_max_ms").unwrap() >= 195.0);
}

#[test]
fn readers_are_measured_alone_and_beside_members_that_never_read() {
    let line = "slow --readers 3 --stalled 2 --rate 100 --size 64 --duration 0.3 --warm-up 0.05 --threads 2";
    let report = run(broadcast(|_, _, frame| frame.to_vec()), line).unwrap();
    assert_eq!(report.verdict(), Ok(()), "{}", report.text());
    let figure = |name| {
        report
            .get(name)
            .unwrap_or_else(|| panic!("{name} in\n{}", report.text()))
    };
    assert_eq!((figure("upgraded"), figure("lost")), (5.0, 0.0));
    assert!(figure("alone_delivered") >= 60.0 && figure("beside_slow_delivered") >= 60.0);
    assert_eq!(
        (figure("slow_still_open"), figure("slow_closed_by_server")),
        (2.0, 0.0)
    );
    assert!(figure("p99_ratio") > 0.0);
}
