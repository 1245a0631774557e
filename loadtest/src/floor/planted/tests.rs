//! The planted server, driven by plain sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::running::Running;
use crate::clock::now_ns;
use crate::stamp::Stamp;

const MS: u64 = 1_000_000;
const MASK: [u8; 4] = [1, 2, 3, 4];
/// How late a loaded machine may make anything here.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for an upgrade and returns the stream and the answer's head.
fn ask(server: &Running, path: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
        head.push(byte[0]);
    }
    (stream, String::from_utf8(head).unwrap())
}

fn join(server: &Running, path: &str) -> TcpStream {
    let (stream, head) = ask(server, path);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ ..126 => frame.push(0x80 | short as u8),
        medium @ ..65_536 => {
            frame.push(0x80 | 126);
            frame.extend((medium as u16).to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    let masked = payload.iter().zip(MASK.iter().cycle());
    frame.extend(masked.map(|(byte, mask)| byte ^ mask));
    frame
}

fn send(stream: &mut TcpStream, payload: &[u8]) {
    stream.write_all(&frame(0x82, payload)).unwrap();
}

/// The next frame: its first byte and its payload.
fn receive(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 2];
    stream.read_exact(&mut head).unwrap();
    let mut length = u64::from(head[1]);
    if length == 126 {
        let mut bytes = [0; 2];
        stream.read_exact(&mut bytes).unwrap();
        length = u64::from(u16::from_be_bytes(bytes));
    } else if length == 127 {
        let mut bytes = [0; 8];
        stream.read_exact(&mut bytes).unwrap();
        length = u64::from_be_bytes(bytes);
    }
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).unwrap();
    (head[0], payload)
}

fn assert_ended(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => assert!(rest.is_empty(), "{rest:?}"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[test]
fn frames_of_all_sizes_go_to_all_of_the_room_and_to_nobody_else() {
    let server = Running::start("");
    let mut room = [join(&server, "/rooms/a"), join(&server, "/rooms/a?x=1")];
    let mut other = join(&server, "/rooms/b");
    for size in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
        let payload: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
        let mut sender = room[0].try_clone().unwrap();
        let sent = payload.clone();
        let writer = std::thread::spawn(move || send(&mut sender, &sent));
        for stream in &mut room {
            assert!(receive(stream) == (0x82, payload.clone()), "{size} bytes");
        }
        writer.join().unwrap();
    }
    let text = frame(0x81, b"words");
    let (start, rest) = text.split_at(3);
    other.write_all(start).unwrap();
    std::thread::sleep(Duration::from_millis(20)); // so that the kernel does not join the parts
    other.write_all(rest).unwrap();
    assert_eq!(receive(&mut other), (0x81, b"words".to_vec()));
    let tally = server.tally();
    assert_eq!(
        (tally.messages, tally.deliveries, tally.delivered),
        (8, 15, 15)
    );
    assert_eq!((tally.lost, tally.unreachable, tally.cut), (0, 0, 0));
}

#[test]
fn pings_and_closes_are_answered_and_what_no_client_may_send_ends_it() {
    let server = Running::start("");
    let mut stream = join(&server, "/rooms/a");
    stream.write_all(&frame(0x89, b"hello")).unwrap();
    assert_eq!(receive(&mut stream), (0x8a, b"hello".to_vec()));
    stream.write_all(&frame(0x88, &[0x03, 0xe8])).unwrap();
    assert_eq!(receive(&mut stream), (0x88, vec![0x03, 0xe8]));
    assert_ended(&mut stream);
    for wrong in [frame(0x02, b"part"), frame(0x83, b"?"), vec![0x82, 1, 7, 7]] {
        let mut stream = join(&server, "/rooms/a");
        stream.write_all(&wrong).unwrap();
        assert_ended(&mut stream);
    }
    assert_eq!(server.tally().cut, 3);
}

#[test]
fn no_delivery_is_early_and_what_the_server_says_of_it_is_what_a_client_sees() {
    let server = Running::start("--delay constant:20ms");
    let mut streams = [join(&server, "/rooms/a"), join(&server, "/rooms/a")];
    let mut latencies_ns = Vec::new();
    for sequence in 0..20 {
        let mut payload = [0; 64];
        let due_ns = now_ns();
        let publisher = 0;
        let stamp = Stamp {
            publisher,
            sequence,
            due_ns,
        };
        stamp.write(&mut payload);
        send(&mut streams[0], &payload);
        for stream in &mut streams {
            assert_eq!(receive(stream), (0x82, payload.to_vec()));
            latencies_ns.push(now_ns() - due_ns);
        }
    }
    assert!(latencies_ns.iter().all(|ns| *ns >= 20 * MS));
    latencies_ns.sort_unstable();
    let tally = server.tally();
    assert_eq!(tally.delivered, 40);
    // The histograms have three digits: a value stands for those that share its digits.
    for histogram in [&tally.planted, &tally.written, &tally.answered] {
        assert_eq!(histogram.len(), 40);
        assert!(histogram.min() + histogram.min() / 1_000 >= 20 * MS);
    }
    assert_eq!(tally.planted.value_at_quantile(1.0) / MS, 20);
    for (index, seen_ns) in latencies_ns.iter().enumerate() {
        let answered_ns = tally.answered.value_at_quantile((index + 1) as f64 / 40.0);
        assert!(
            tally.answered.lowest_equivalent(answered_ns) <= *seen_ns,
            "number {index}: read after {seen_ns} ns, written after {answered_ns} ns"
        );
    }
}

#[test]
fn nothing_at_all_is_done_while_the_server_stalls() {
    let server = Running::start("--stall 50ms:300ms");
    let mut stream = join(&server, "/rooms/a");
    send(&mut stream, b"first");
    let first_ns = now_ns();
    receive(&mut stream);
    let mut longest_ns = 0;
    while now_ns() < first_ns + 600 * MS {
        let sent_ns = now_ns();
        send(&mut stream, b"next");
        receive(&mut stream);
        longest_ns = longest_ns.max(now_ns() - sent_ns);
    }
    let stalls = server.tally().stalls;
    assert_eq!(stalls.len(), 1);
    let (from_ns, to_ns) = stalls[0];
    assert!(to_ns - from_ns >= 300 * MS && from_ns >= first_ns + 49 * MS);
    assert!(longest_ns >= 200 * MS, "{longest_ns}"); // from when it was sent, somewhere in the stall
}

#[test]
fn upgrades_beyond_the_limit_are_refused_until_somebody_leaves() {
    let server = Running::start("--connections-max 2 --refuse-first 1");
    let (_, head) = ask(&server, "/rooms/a");
    assert!(head.starts_with("HTTP/1.1 503 "), "the first: {head}");
    let first = join(&server, "/rooms/a");
    let _second = join(&server, "/rooms/b");
    let (mut third, head) = ask(&server, "/rooms/a");
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains("\r\nRetry-After: 1\r\n"), "{head}");
    let mut body = String::new();
    third.read_to_string(&mut body).unwrap();
    assert_eq!(body, "2 connections are all there may be\n");
    drop(first);
    join(&server, "/rooms/a");
    let tally = server.tally();
    assert_eq!((tally.upgraded, tally.refused), (3, 2));
}

#[test]
fn an_upgrade_is_answered_when_it_is_to_be_and_what_came_behind_it_after() {
    let server = Running::start("--answer-after 100ms");
    let start_ns = now_ns();
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes =
        b"GET / HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".to_vec();
    bytes.extend(frame(0x82, b"early"));
    stream.write_all(&bytes).unwrap();
    let mut answer = [0; 129];
    stream.read_exact(&mut answer).unwrap();
    assert!(now_ns() - start_ns >= 100 * MS);
    assert!(answer.starts_with(b"HTTP/1.1 101 ") && answer.ends_with(b"\r\n\r\n"));
    assert_eq!(receive(&mut stream), (0x82, b"early".to_vec()));
}

#[test]
fn what_leaks_is_counted() {
    let server = Running::start("--leak 100000");
    let mut stream = join(&server, "/rooms/a");
    for _ in 0..10 {
        send(&mut stream, b"x");
        receive(&mut stream);
    }
    assert_eq!(server.tally().leaked_bytes, 1_000_000);
}

#[test]
fn nobody_is_let_in_while_the_server_is_shut() {
    let server = Running::start("--refuse 0ms:300ms");
    join(&server, "/rooms/a");
    let joined_ns = now_ns();
    let (mut stream, head) = ask(&server, "/rooms/a");
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    let mut body = String::new();
    stream.read_to_string(&mut body).unwrap();
    assert_eq!(body, "nobody is let in for now\n");
    while !ask(&server, "/rooms/a").1.starts_with("HTTP/1.1 101 ") {}
    assert!(now_ns() - joined_ns >= 290 * MS);
    assert_eq!(server.tally().upgraded, 2);
}

#[test]
fn all_are_closed_as_planted_with_a_word_before_and_who_comes_later_stays() {
    let server =
        Running::start("--close-after 300ms:1012 --close-over 200ms --reconnect-after-ms 750");
    let start_ns = now_ns();
    let mut streams: Vec<_> = (0..4).map(|_| join(&server, "/rooms/a")).collect();
    let mut closed_ns = Vec::new();
    for stream in &mut streams {
        let (first, notice) = receive(stream);
        let expected = r#"{"type":"reconnect","after_ms":750}"#;
        assert_eq!((first, notice.as_slice()), (0x81, expected.as_bytes()));
        assert_eq!(receive(stream), (0x88, 1012_u16.to_be_bytes().to_vec()));
        stream
            .write_all(&frame(0x88, &1012_u16.to_be_bytes()))
            .unwrap();
        assert_ended(stream);
        closed_ns.push(now_ns());
    }
    let last_ns = closed_ns.iter().max().unwrap();
    assert!(
        *last_ns - start_ns >= 450 * MS,
        "three quarters of the window"
    );
    let mut late = join(&server, "/rooms/a");
    send(&mut late, b"still here");
    assert_eq!(receive(&mut late).1, b"still here");
    assert_eq!((server.tally().closed, server.tally().cut), (4, 0));
}

#[test]
fn all_are_cut_off_without_a_close_frame_when_that_is_planted() {
    let server = Running::start("--close-after 200ms:1006 --close-over 0ms");
    let mut streams: Vec<_> = (0..3).map(|_| join(&server, "/rooms/a")).collect();
    streams.iter_mut().for_each(assert_ended);
    assert_eq!((server.tally().closed, server.tally().cut), (3, 0));
}

#[test]
fn garbage_comes_in_three_kinds_and_an_end_without_an_answer() {
    let (_, head) = ask(&Running::start("--garbage http"), "/rooms/a");
    assert!(head.starts_with("220 "), "{head}");
    let (_, head) = ask(&Running::start("--garbage key"), "/rooms/a");
    assert!(head.contains(" 101 ") && !head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    let server = Running::start("--garbage frames");
    let mut garbage = [0; 16];
    join(&server, "/rooms/a").read_exact(&mut garbage).unwrap();
    assert_eq!(garbage, [0xff; 16]);
    let server = Running::start("--end-before-answer");
    let (_, head) = ask(&server, "/rooms/a");
    assert_eq!((head.as_str(), server.tally().spoiled), ("", 1));
}
