//! Requests, refusals, closes, broken connections, the admin's questions.

use super::world::{World, close, frame, options, request, text};
use crate::bus::{Downstream, Question, Reply, Upstream};
use crate::metrics::RefusalKind;
use crate::protocol::{CloseReason, OpCode};
use crate::shard::Options;

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn health_is_answered_on_and_on_and_then_an_upgrade_may_follow() {
    let mut world = World::new(options());
    let a = world.open();
    world.send(a, &[HEALTH, HEALTH].concat());
    for _ in 0..2 {
        assert!(world.http(a).starts_with("HTTP/1.1 200 "));
    }
    world.send(a, &[HEALTH, &request("/rooms/one"), &text("hi")].concat());
    assert!(world.http(a).starts_with("HTTP/1.1 200 "));
    assert!(world.http(a).starts_with("HTTP/1.1 101 "));
    assert_eq!(world.texts(a), ["hi"]);
    assert_eq!(world.counters().health_checks, 3);
}

#[test]
fn a_health_check_that_asks_for_it_is_closed_behind_the_answer() {
    let mut world = World::new(options());
    let a = world.open();
    world.send(
        a,
        b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert!(world.http(a).contains("Connection: close"));
    assert!(world.peer(a).write_ended);
    world.ended(a, false);
    assert!(world.is_gone(a));
    assert_eq!(world.held_bytes(), 0);
}

#[test]
fn a_bad_request_is_answered_and_what_follows_it_is_not_read() {
    for (bytes, status, kind) in [
        (
            &b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            404,
            RefusalKind::NotFound,
        ),
        (
            b"GET /rooms/one HTTP/1.1\r\nHost: a\r\n\r\n",
            426,
            RefusalKind::UpgradeRequired,
        ),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03",
            400,
            RefusalKind::BadRequest,
        ),
    ] {
        let mut world = World::new(options());
        let a = world.open();
        world.send(a, &[bytes, HEALTH].concat());
        let answer = world.http(a);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(world.peer(a).received.is_empty(), "one answer");
        assert!(world.peer(a).write_ended);
        assert_eq!(world.counters().refused[kind as usize], 1);
        assert_eq!(world.closed(CloseReason::NotUpgraded), 1);
    }
}

#[test]
fn a_request_without_end_is_refused_at_its_limit() {
    let mut world = World::new(options());
    let a = world.open();
    world.send(a, b"GET /rooms/one HTTP/1.1\r\nHost: a\r\n");
    let mut sent = 0;
    while world.peer(a).received.is_empty() && sent < 20_000 {
        world.send(a, b"X-Filler: 0123456789\r\n");
        sent += 22;
    }
    assert!(world.http(a).starts_with("HTTP/1.1 431 "));
    assert!(sent <= 8_192 + 22, "{sent}");
}

#[test]
fn our_close_waits_for_the_peers_and_then_the_connection_goes() {
    let mut world = World::new(options());
    let a = world.join("one");
    world.send(a, &frame(true, OpCode::Continuation, b""));
    assert_eq!(world.texts(a), ["close 1002"]);
    assert!(world.peer(a).write_ended && !world.is_gone(a));
    world.send(a, &close(1002));
    world.ended(a, false);
    assert!(world.is_gone(a));
    assert_eq!(world.held_bytes(), 0);
    assert_eq!(
        world.closed(CloseReason::ProtocolError),
        1,
        "counted once, for its cause"
    );
    assert_eq!(world.counters().closed.iter().sum::<u64>(), 1);
}

#[test]
fn a_peer_that_never_answers_our_close_is_cut() {
    let mut world = World::new(options());
    let a = world.join("one");
    world.send(a, &frame(true, OpCode::Continuation, b""));
    world.pass(4_900);
    assert!(!world.is_gone(a));
    world.pass(1_300);
    assert!(world.is_gone(a));
}

#[test]
fn the_end_of_a_members_stream_ends_the_member_and_what_it_said_is_delivered() {
    let mut world = World::new(options());
    let (a, b) = (world.join("one"), world.join("one"));
    world.bytes(a, &text("last words"));
    world.ended(a, false);
    assert!(world.is_gone(a));
    assert_eq!(world.texts(b), ["last words"]);
    assert_eq!(world.closed(CloseReason::PeerGone), 1);
}

#[test]
fn a_reset_with_output_queued_frees_everything_and_the_room_goes_on() {
    let mut world = World::new(options());
    let (a, b) = (world.join("one"), world.join("one"));
    world.stick(b);
    for _ in 0..5 {
        world.send(a, &text("x"));
    }
    world.ended(b, true);
    assert!(world.is_gone(b));
    world.send(a, &text("we go on"));
    assert_eq!(world.texts(a).len(), 6);
    assert_eq!(world.closed(CloseReason::PeerReset), 1);
}

#[test]
fn a_token_that_is_used_again_is_another_connection() {
    let mut world = World::new(options());
    let a = world.join("one");
    let id = |world: &mut World| {
        world.downstream(ask(Question::Room {
            room: "one".into(),
            member_count_max: 9,
        }));
        match answer(world) {
            Reply::Room(room) => room.unwrap().members[0],
            other => panic!("{other:?}"),
        }
    };
    let first = id(&mut world);
    world.ended(a, false);
    world.peers.clear();
    assert_eq!(world.join("one"), a);
    let second = id(&mut world);
    assert_ne!(first, second);
    world.downstream(ask(Question::Disconnect { id: first }));
    assert!(matches!(answer(&mut world), Reply::Disconnected(false)));
    world.downstream(ask(Question::Disconnect { id: second }));
    assert!(matches!(answer(&mut world), Reply::Disconnected(true)));
    assert_eq!(world.texts(a), ["close 4001"]);
}

fn ask(question: Question) -> Downstream {
    Downstream::Ask {
        request: 5,
        question,
    }
}

fn answer(world: &mut World) -> Reply {
    match world.forwarded.pop() {
        Some(Upstream::Answer { request: 5, reply }) => reply,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_admins_questions_are_answered() {
    let mut world = World::new(options());
    let (a, _b) = (world.join("alpha"), world.join("beta"));
    world.send(a, &text("x"));
    world.downstream(ask(Question::Rooms {
        prefix: "al".into(),
        count_max: 10,
    }));
    let Reply::Rooms(rooms) = answer(&mut world) else {
        panic!()
    };
    assert_eq!(rooms.len(), 1);
    assert_eq!(
        (
            &*rooms[0].room,
            rooms[0].member_count,
            rooms[0].message_count
        ),
        ("alpha", 1, 1)
    );
    world.downstream(ask(Question::Room {
        room: "nobody".into(),
        member_count_max: 1,
    }));
    assert!(matches!(answer(&mut world), Reply::Room(None)));
    world.downstream(ask(Question::Room {
        room: "alpha".into(),
        member_count_max: 1,
    }));
    let Reply::Room(Some(room)) = answer(&mut world) else {
        panic!()
    };
    world.downstream(ask(Question::Connection {
        id: room.members[0],
    }));
    let Reply::Connection(Some(connection)) = answer(&mut world) else {
        panic!()
    };
    assert_eq!((connection.state, connection.closing), ("open", None));
    assert_eq!(connection.room.as_deref(), Some("alpha"));
    assert_eq!(connection.peer.to_string(), "10.0.0.1:4000");
    world.downstream(ask(Question::Stats));
    let Reply::Stats(stats) = answer(&mut world) else {
        panic!()
    };
    assert_eq!((stats.gauges.connections_open, stats.gauges.rooms), (2, 2));
    assert_eq!(stats.counters.messages_in, 1);
}

#[test]
fn the_admin_reads_why_a_connection_is_closing() {
    let mut world = World::new(options());
    let a = world.join("alpha");
    world.downstream(ask(Question::Room {
        room: "alpha".into(),
        member_count_max: 1,
    }));
    let Reply::Room(Some(room)) = answer(&mut world) else {
        panic!()
    };
    world.send(a, &frame(true, OpCode::Continuation, b""));
    world.downstream(ask(Question::Connection {
        id: room.members[0],
    }));
    let Reply::Connection(Some(connection)) = answer(&mut world) else {
        panic!()
    };
    assert_eq!(connection.state, "closing");
    assert_eq!(connection.closing, Some(CloseReason::ProtocolError));
    assert_eq!(connection.room, None);
}

#[test]
fn a_member_that_sends_too_much_a_second_is_closed_and_one_within_its_rate_is_not() {
    let options = Options {
        messages_per_s_max: 5,
        ..options()
    };
    let mut world = World::new(options);
    let a = world.join("one");
    let idle = world.held_bytes();
    for _ in 0..5 {
        world.send(a, &text("x"));
    }
    assert_eq!(world.texts(a).len(), 5);
    world.pass(200);
    world.send(a, &text("x"));
    assert_eq!(world.texts(a).len(), 1);
    assert!(world.held_bytes() > idle, "its bucket is charged");
    world.send(a, &text("x"));
    assert_eq!(world.texts(a), ["close 1008"]);
    assert!(world.held_bytes() <= idle);
}

#[test]
fn bytes_a_second_are_limited_too_fragments_and_all() {
    let options = Options {
        message_bytes_per_s_max: 1_000,
        message_bytes_max: 900,
        ..options()
    };
    let mut world = World::new(options);
    let a = world.join("one?echo=0");
    world.send(a, &text(&"x".repeat(900)));
    world.send(a, &frame(false, OpCode::Text, &[b'x'; 60]));
    assert!(world.texts(a).is_empty());
    world.send(a, &frame(true, OpCode::Continuation, &[b'x'; 60]));
    assert_eq!(world.texts(a), ["close 1008"]);
}
