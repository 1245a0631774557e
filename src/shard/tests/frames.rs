//! Frames to messages: fragments, control frames, faults.

use super::world::{World, close, frame, options, text};
use crate::limits::CONTROL_RESERVE_BYTES;
use crate::protocol::{CloseReason, Encoded, OpCode, encode_client_header};
use crate::shard::Options;

fn small() -> Options {
    Options {
        message_bytes_max: 100,
        message_fragment_count_max: 4,
        ..options()
    }
}

/// Two members of a room: who sends, and who looks on.
fn two(options: Options) -> (World, u32, u32) {
    let mut world = World::new(options);
    let (a, b) = (world.join("one"), world.join("one"));
    (world, a, b)
}

#[test]
fn fragments_become_one_message_with_control_frames_in_between() {
    let (mut world, a, b) = two(small());
    world.send(a, &frame(false, OpCode::Text, b"one "));
    world.send(a, &frame(true, OpCode::Ping, b"still there?"));
    assert_eq!(world.texts(a), ["pong still there?"]);
    world.send(a, &frame(false, OpCode::Continuation, b""));
    world.send(a, &frame(true, OpCode::Continuation, b"two"));
    assert_eq!(world.texts(a), ["one two"]);
    assert_eq!(world.texts(b), ["one two"]);
    assert_eq!(world.counters().pings_answered, 1);
}

#[test]
fn fragments_of_two_members_do_not_mix() {
    let (mut world, a, b) = two(small());
    world.bytes(a, &frame(false, OpCode::Text, b"a1 "));
    world.bytes(b, &frame(false, OpCode::Text, b"b1 "));
    world.bytes(a, &frame(true, OpCode::Continuation, b"a2"));
    world.bytes(b, &frame(true, OpCode::Continuation, b"b2"));
    world.turn();
    assert_eq!(world.texts(a), ["a1 a2", "b1 b2"]);
}

#[test]
fn a_message_at_the_limit_passes_and_one_byte_more_is_refused_when_it_is_announced() {
    let (mut world, a, b) = two(small());
    world.send(a, &text(&"x".repeat(100)));
    assert_eq!(world.texts(b).len(), 1);
    world.texts(a);
    let mut header = Vec::new();
    encode_client_header(&mut header, true, OpCode::Text, 101, [0; 4]);
    world.send(a, &header);
    assert_eq!(world.texts(a), ["close 1009"]);
    assert_eq!(world.closed(CloseReason::MessageTooBig), 1);
}

#[test]
fn the_limit_holds_for_the_sum_of_the_fragments() {
    let (mut world, a, b) = two(small());
    world.send(a, &frame(false, OpCode::Text, &[b'x'; 60]));
    let mut header = Vec::new();
    encode_client_header(&mut header, true, OpCode::Continuation, 41, [0; 4]);
    world.send(a, &header);
    assert_eq!(world.texts(a), ["close 1009"]);
    assert!(world.texts(b).is_empty());
}

#[test]
fn more_fragments_than_allowed_are_refused() {
    let (mut world, a, _) = two(small());
    world.send(a, &frame(false, OpCode::Text, b""));
    for _ in 0..3 {
        world.send(a, &frame(false, OpCode::Continuation, b""));
    }
    assert!(world.texts(a).is_empty());
    world.send(a, &frame(true, OpCode::Continuation, b""));
    assert_eq!(world.texts(a), ["close 1009"]);
}

#[test]
fn an_announcement_of_eight_exabytes_is_refused_like_any_other() {
    let (mut world, a, _) = two(small());
    world.send(a, &frame(false, OpCode::Text, b"x"));
    let mut header = Vec::new();
    let payload_bytes = usize::try_from(i64::MAX).unwrap();
    encode_client_header(
        &mut header,
        true,
        OpCode::Continuation,
        payload_bytes,
        [0; 4],
    );
    world.send(a, &header);
    assert_eq!(world.texts(a), ["close 1009"]);
}

#[test]
fn text_that_is_not_utf8_is_known_in_the_middle_of_its_fragment() {
    let (mut world, a, b) = two(small());
    let whole = frame(
        false,
        OpCode::Text,
        b"fine so far \xed\xa0 and 20 bytes more",
    );
    world.send(a, &whole[..6 + 13]);
    assert!(world.texts(a).is_empty(), "a lone lead byte may go on well");
    world.send(a, &whole[6 + 13..6 + 14]);
    assert_eq!(world.texts(a), ["close 1007"]);
    assert!(world.texts(b).is_empty());
}

#[test]
fn text_that_ends_within_a_character_is_not_utf8() {
    for payload in [&b"\xc3"[..], b"x\xf0\x9f\x98"] {
        let (mut world, a, _) = two(small());
        world.send(a, &frame(true, OpCode::Text, payload));
        assert_eq!(world.texts(a), ["close 1007"]);
        let (mut world, a, _) = two(small());
        let whole = frame(true, OpCode::Text, payload);
        world.send(a, &whole[..whole.len() - 1]);
        world.send(a, &whole[whole.len() - 1..]);
        assert_eq!(world.texts(a), ["close 1007"], "in two pieces");
    }
}

#[test]
fn binary_may_be_anything() {
    let (mut world, a, b) = two(small());
    world.send(a, &frame(true, OpCode::Binary, b"\xff\xfe"));
    assert_eq!(world.frames(b), [(OpCode::Binary, b"\xff\xfe".to_vec())]);
}

#[test]
fn frames_out_of_order_or_unmasked_are_a_protocol_error() {
    let unmasked = b"\x81\x01x".to_vec();
    let started = [frame(false, OpCode::Text, b"x"), text("another")].concat();
    let reserved = {
        let mut bytes = text("x");
        bytes[0] |= 0x40;
        bytes
    };
    for bytes in [
        frame(true, OpCode::Continuation, b"x"),
        started,
        unmasked,
        reserved,
        frame(true, OpCode::Close, b"\x03"),
        close(1005),
    ] {
        let (mut world, a, b) = two(small());
        world.send(a, &bytes);
        assert_eq!(world.texts(a), ["close 1002"], "{bytes:?}");
        assert_eq!(world.closed(CloseReason::ProtocolError), 1);
        world.send(b, &text("we go on"));
        assert_eq!(world.texts(b), ["we go on"]);
    }
}

#[test]
fn what_was_said_before_a_fault_is_delivered_before_the_close() {
    let (mut world, a, b) = two(small());
    let bytes = [text("good"), frame(true, OpCode::Continuation, b"bad")].concat();
    world.send(a, &bytes);
    assert_eq!(world.texts(a), ["good", "close 1002"]);
    assert_eq!(world.texts(b), ["good"]);
}

#[test]
fn nothing_behind_a_fault_counts() {
    let (mut world, a, b) = two(small());
    world.send(
        a,
        &[frame(true, OpCode::Continuation, b"bad"), text("late")].concat(),
    );
    world.send(a, &text("later"));
    assert!(world.texts(b).is_empty());
    assert_eq!(world.texts(a), ["close 1002"]);
}

#[test]
fn a_peer_that_pings_and_does_not_read_costs_the_reserve_at_most() {
    let (mut world, a, b) = two(options());
    world.stick(a);
    world.send(b, &text("in flight"));
    let before = world.held_bytes();
    for _ in 0..1_000 {
        world.send(a, &frame(true, OpCode::Ping, &[b'p'; 125]));
    }
    let limit = u64::from(world.shard.options.connection_queue_bytes_max + CONTROL_RESERVE_BYTES);
    let bookkeeping = world.counters().pings_answered * Encoded::BOOKKEEPING_BYTES;
    assert!(
        world.held_bytes() - before < limit + bookkeeping + 4_096,
        "{}",
        world.held_bytes()
    );
    assert!(world.counters().pings_answered < 1_000);
    world.send(a, &close(1000));
    world.unstick(a);
    let texts = world.texts(a);
    assert_eq!(texts.last().unwrap(), "close 1000", "the close always fits");
}

#[test]
fn a_message_before_the_close_is_delivered_before_the_close_frame() {
    let (mut world, a, b) = two(small());
    world.send(a, &[text("last words"), close(1001)].concat());
    assert_eq!(world.texts(a), ["last words", "close 1001"]);
    assert_eq!(world.texts(b), ["last words"]);
    assert!(world.is_gone(a));
    assert_eq!(world.closed(CloseReason::PeerClosed), 1);
}

#[test]
fn a_close_without_a_code_is_answered_without_one() {
    let (mut world, a, _) = two(small());
    world.send(a, &frame(true, OpCode::Close, b""));
    assert_eq!(world.frames(a), [(OpCode::Close, vec![])]);
}

#[test]
fn a_connection_at_rest_owns_no_inbox_however_its_message_came() {
    let whole = [
        frame(false, OpCode::Text, b"a"),
        frame(true, OpCode::Ping, b"p"),
        frame(true, OpCode::Continuation, b"b"),
    ]
    .concat();
    for piece_bytes in 1..=whole.len() {
        let (mut world, a, _) = two(small());
        let idle = world.held_bytes();
        for piece in whole.chunks(piece_bytes) {
            world.send(a, piece);
        }
        assert_eq!(world.texts(a), ["pong p", "ab"]);
        assert_eq!(world.held_bytes(), idle, "in pieces of {piece_bytes}");
        let connection = &world.shard.connections[a];
        assert!(connection.inbox.is_none() && connection.outbox.is_none());
        assert!(connection.rate.is_none());
    }
}
