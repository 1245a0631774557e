//! What time does: heartbeats and timeouts.

use super::world::{World, close, frame, options, request, text};
use crate::metrics::RefusalKind;
use crate::protocol::{CloseReason, OpCode};
use crate::shard::{HeartbeatMode, Options};

fn without_pings() -> Options {
    Options {
        heartbeat: HeartbeatMode::Tcp,
        ..options()
    }
}

/// Answers the ping that `index` got; whether there was one.
fn answer_ping(world: &mut World, index: u32) -> bool {
    let frames = world.frames(index);
    let ping = frames
        .into_iter()
        .find(|(opcode, _)| *opcode == OpCode::Ping);
    if let Some((_, payload)) = &ping {
        world.send(index, &frame(true, OpCode::Pong, payload));
    }
    ping.is_some()
}

#[test]
fn everybody_is_pinged_once_an_interval_and_evenly_over_it() {
    let mut world = World::new(options());
    let members: Vec<u32> = (0..640).map(|_| world.open()).collect();
    for member in &members {
        world.bytes(*member, &request("/rooms/one"));
    }
    world.turn();
    for member in &members {
        world.http(*member);
    }
    let mut counts = Vec::new();
    for _ in 0..50 {
        world.pass(1_000);
        let pinged = members
            .iter()
            .filter(|member| answer_ping(&mut world, **member))
            .count();
        counts.push(pinged);
    }
    counts.drain(..25);
    assert_eq!(counts.iter().sum::<usize>(), 640);
    assert!(
        counts.iter().all(|count| (20..=32).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn a_pong_tells_the_round_trip_and_keeps_the_connection() {
    let mut world = World::new(options());
    let a = world.join("one");
    for _ in 0..8 {
        while world.peer(a).received.is_empty() {
            world.pass(100);
        }
        world.pass(40);
        assert!(answer_ping(&mut world, a));
    }
    let counters = world.counters();
    assert_eq!((counters.pings_sent, counters.pongs_received), (8, 8));
    assert_eq!(counters.round_trip.count(), 8);
    let average_us = counters.round_trip.sum_us() / 8;
    assert!((40_000..=140_000).contains(&average_us), "{average_us}");
}

#[test]
fn a_silent_peer_is_cut_ten_seconds_after_its_ping() {
    let mut world = World::new(options());
    let a = world.join("one");
    while world.peer(a).received.is_empty() {
        world.pass(100);
    }
    world.pass(9_800);
    assert!(!world.is_gone(a));
    world.pass(1_300);
    assert!(world.is_gone(a));
    assert_eq!(world.closed(CloseReason::HeartbeatLost), 1);
}

#[test]
fn a_peer_that_talks_is_alive_though_it_answers_no_pings() {
    let mut world = World::new(options());
    let a = world.join("one");
    for _ in 0..30 {
        world.pass(5_000);
        world.send(a, &text("x"));
    }
    assert!(!world.is_gone(a));
    assert!(world.counters().pings_sent >= 3, "and is asked again");
}

#[test]
fn a_peer_that_reads_a_long_backlog_is_alive_though_its_pong_is_late() {
    let mut world = World::new(options());
    let (a, b) = (world.join("one"), world.join("one"));
    world.stick(a);
    world.send(b, &text(&"x".repeat(50_000)));
    for _ in 0..80 {
        world.peer(a).takes = 500;
        world.pass(1_000);
        world.turn();
        if !world.is_gone(b) {
            answer_ping(&mut world, b);
        }
    }
    assert!(!world.is_gone(a));
    assert_eq!(world.closed(CloseReason::HeartbeatLost), 0);
}

#[test]
fn a_dead_peer_is_found_though_its_room_is_busy_and_the_kernel_buffers_for_it() {
    let mut world = World::new(options());
    let (dead, b) = (world.join("one"), world.join("one"));
    for _ in 0..50 {
        world.pass(1_000);
        if world.is_gone(dead) {
            break;
        }
        answer_ping(&mut world, b);
        world.send(b, &text("tick"));
    }
    assert!(world.is_gone(dead));
    assert_eq!(world.closed(CloseReason::HeartbeatLost), 1);
}

#[test]
fn a_forged_pong_is_no_answer() {
    let mut world = World::new(options());
    let a = world.join("one");
    world.pass(26_000);
    let future = (world.now.0 + 1_000_000).to_be_bytes();
    for payload in [&b""[..], b"hello", &future] {
        world.send(a, &frame(true, OpCode::Pong, payload));
    }
    assert_eq!(world.counters().pongs_received, 0);
}

#[test]
fn with_the_kernels_heartbeat_nobody_is_pinged() {
    let mut world = World::new(without_pings());
    let a = world.join("one");
    world.pass(200_000);
    assert!(world.texts(a).is_empty() && !world.is_gone(a));
}

#[test]
fn a_send_without_progress_is_given_up() {
    let mut world = World::new(without_pings());
    let (a, b) = (world.join("one"), world.join("one"));
    world.stick(a);
    world.send(b, &text(&"x".repeat(50_000)));
    world.pass(15_000);
    world.peer(a).takes = 10;
    world.turn();
    world.pass(6_500);
    assert!(!world.is_gone(a), "ten bytes were progress");
    world.pass(15_000);
    assert!(world.is_gone(a));
    assert_eq!(world.closed(CloseReason::WriteStalled), 1);
}

#[test]
fn an_idle_member_is_told_so() {
    let options = Options {
        idle_timeout_ms: 60_000,
        ..without_pings()
    };
    let mut world = World::new(options);
    let (a, b) = (world.join("one"), world.join("one"));
    world.pass(50_000);
    world.send(b, &text("x"));
    world.send(a, &frame(true, OpCode::Ping, b"not a message"));
    world.texts(a);
    world.pass(11_200);
    assert_eq!(world.texts(a), ["close 4000"]);
    assert_eq!(world.texts(b), ["x"]);
    assert_eq!(world.closed(CloseReason::Idle), 1);
}

#[test]
fn a_request_that_does_not_come_is_cut_and_one_that_does_not_end_is_answered() {
    let mut world = World::new(options());
    let (silent, slow) = (world.open(), world.open());
    world.send(slow, b"GET /rooms/one HTTP/1.1\r\n");
    for _ in 0..4 {
        world.pass(1_000);
        world.send(slow, b"X: y\r\n");
    }
    world.pass(900);
    assert!(!world.is_gone(silent) && world.peer(slow).received.is_empty());
    world.pass(1_300);
    assert!(world.is_gone(silent) && world.peer(silent).received.is_empty());
    assert_eq!(world.closed(CloseReason::HandshakeTimeout), 1);
    let answer = world.http(slow);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\r\nConnection: close\r\n"));
    assert!(world.peer(slow).write_ended && !world.is_gone(slow));
    assert_eq!(world.counters().refused[RefusalKind::Timeout as usize], 1);
    assert_eq!(world.closed(CloseReason::NotUpgraded), 1);
    world.send(slow, b"\r\n");
    assert!(world.peer(slow).received.is_empty(), "too late");
    world.pass(3_700);
    assert!(!world.is_gone(slow), "it has its close timeout");
    world.pass(2_400);
    assert!(world.is_gone(slow));
    assert_eq!(world.counters().closed.iter().sum::<u64>(), 2, "each once");
    assert_eq!(world.held_bytes(), 0);
}

#[test]
fn a_408_that_is_not_read_holds_nothing_beyond_the_close_timeout() {
    let mut world = World::new(options());
    let a = world.open();
    world.stick(a);
    world.send(a, b"GET /rooms/one HTTP/1.1\r\n");
    world.pass(6_200);
    assert_eq!(world.counters().refused[RefusalKind::Timeout as usize], 1);
    assert!(!world.is_gone(a));
    world.pass(6_200);
    assert!(world.is_gone(a));
    assert_eq!(world.held_bytes(), 0);
}

#[test]
fn a_health_checker_that_idles_is_let_go_without_blame() {
    let mut world = World::new(options());
    let (idle, slow) = (world.open(), world.open());
    for _ in 0..3 {
        for checker in [idle, slow] {
            world.send(checker, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
            assert!(world.http(checker).starts_with("HTTP/1.1 200 "));
        }
        world.pass(4_000);
    }
    world.send(slow, b"GET /health HTTP/1.1\r\n");
    assert!(!world.is_gone(idle), "each answer gives it time");
    world.pass(2_200);
    assert!(world.is_gone(idle) && world.peer(idle).received.is_empty());
    assert!(world.http(slow).starts_with("HTTP/1.1 408 "));
    assert_eq!(world.counters().refused[RefusalKind::Timeout as usize], 1);
    assert_eq!(world.closed(CloseReason::NotUpgraded), 2);
    assert_eq!(world.closed(CloseReason::HandshakeTimeout), 0);
}

#[test]
fn a_stuck_peer_cannot_hold_its_connection_by_asking_to_close_it() {
    let mut world = World::new(without_pings());
    let (a, b) = (world.join("one"), world.join("one"));
    world.stick(a);
    world.send(b, &text("x"));
    world.send(a, &close(1000));
    assert!(!world.is_gone(a), "its answer waits");
    world.pass(6_200);
    assert!(world.is_gone(a));
    world.send(b, &text("we go on"));
    assert_eq!(world.texts(b), ["x", "we go on"]);
}

/// All but the last `missing` bytes of a message's frame.
fn begun(payload_bytes: usize, missing: usize) -> Vec<u8> {
    let mut bytes = frame(true, OpCode::Text, &vec![b'x'; payload_bytes]);
    bytes.truncate(bytes.len() - missing);
    bytes
}

#[test]
fn a_begun_message_that_does_not_go_on_is_given_up_with_what_it_held() {
    let mut world = World::new(without_pings());
    let idle = world.join("one");
    let held = world.held_bytes();
    let a = world.join("one");
    world.send(a, &begun(60_000, 59_990));
    assert!(world.held_bytes() > held + 60_000, "charged as announced");
    world.pass(29_900);
    assert_eq!(world.closed(CloseReason::MessageTimeout), 0);
    world.pass(1_200);
    assert_eq!(world.closed(CloseReason::MessageTimeout), 1);
    assert_eq!(world.texts(a), ["close 1008"]);
    world.ended(a, false);
    assert_eq!(world.held_bytes(), held);
    assert!(!world.is_gone(idle), "who has begun nothing may be silent");
}

#[test]
fn a_begun_header_is_given_up_like_a_begun_message() {
    let mut world = World::new(without_pings());
    let (data, ping) = (world.join("one"), world.join("one"));
    world.send(data, &begun(300, 307));
    world.send(ping, &frame(true, OpCode::Ping, b"hello")[..7]);
    world.pass(29_900);
    assert_eq!(world.closed(CloseReason::MessageTimeout), 0);
    world.pass(1_200);
    assert_eq!(world.closed(CloseReason::MessageTimeout), 2);
}

#[test]
fn neither_pongs_nor_empty_frames_hold_a_begun_message() {
    let mut world = World::new(options());
    let (pongs, empty) = (world.join("one"), world.join("one"));
    for member in [pongs, empty] {
        world.send(member, &frame(false, OpCode::Text, b"begun"));
    }
    for _ in 0..29 {
        world.pass(1_000);
        for (member, opcode) in [(pongs, OpCode::Pong), (empty, OpCode::Continuation)] {
            answer_ping(&mut world, member);
            world.send(member, &frame(opcode == OpCode::Pong, opcode, b""));
        }
    }
    assert_eq!(world.closed(CloseReason::MessageTimeout), 0);
    world.pass(2_200);
    assert_eq!(world.closed(CloseReason::MessageTimeout), 2);
}

#[test]
fn a_message_that_goes_on_slowly_and_a_stream_cut_anywhere_are_waited_for() {
    let mut world = World::new(without_pings());
    let (slow, stream) = (world.join("one"), world.join("two"));
    let message = frame(true, OpCode::Text, b"slow");
    let messages = text("12345").repeat(12);
    world.send(slow, &message[..7]);
    world.send(stream, &messages[..3]); // in the middle of a header, as every time
    for turn in 0..9 {
        world.pass(20_000);
        if let Some(byte) = message[7..].get(turn..=turn) {
            world.send(slow, byte);
        }
        world.send(stream, &messages[3 + turn * 11..][..11]);
    }
    assert_eq!(world.texts(slow), ["slow"]);
    assert_eq!(world.texts(stream), ["12345"; 9]);
    world.pass(29_900);
    assert_eq!(world.closed(CloseReason::MessageTimeout), 0);
    world.pass(1_200);
    assert_eq!(world.texts(stream), ["close 1008"], "its last header");
    assert!(!world.is_gone(slow));
}

#[test]
fn without_a_message_timeout_a_begun_message_is_waited_for() {
    let mut world = World::new(Options {
        message_timeout_ms: 0,
        ..without_pings()
    });
    let a = world.join("one");
    let message = text("late");
    world.send(a, &message[..8]);
    world.pass(600_000);
    world.send(a, &message[8..]);
    assert_eq!(world.texts(a), ["late"]);
}

#[test]
fn nothing_is_due_where_nobody_is() {
    let mut world = World::new(options());
    assert_eq!(world.shard.next_deadline(), None);
    let a = world.join("one");
    assert!(world.shard.next_deadline().is_some());
    world.ended(a, false);
    assert_eq!(world.shard.next_deadline(), None);
}
