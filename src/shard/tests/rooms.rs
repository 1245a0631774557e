//! Join, publish, deliver.

use super::world::{World, close, frame, options, request, text};
use crate::protocol::OpCode;

#[test]
fn a_message_reaches_every_member_of_its_room_its_sender_included_and_nobody_else() {
    let mut world = World::new(options());
    let (a, b) = (world.join("one"), world.join("one"));
    let other = world.join("two");
    world.send(a, &text("hello"));
    assert_eq!(world.texts(a), ["hello"]);
    assert_eq!(world.texts(b), ["hello"]);
    assert!(world.texts(other).is_empty());
    assert_eq!(world.counters().messages_in, 1);
    assert_eq!(world.counters().deliveries, 2);
}

#[test]
fn a_message_keeps_its_kind() {
    let mut world = World::new(options());
    let a = world.join("one");
    world.send(a, &frame(true, OpCode::Binary, &[0xff, 0]));
    assert_eq!(world.frames(a), [(OpCode::Binary, vec![0xff, 0])]);
    world.send(a, &text(""));
    assert_eq!(world.frames(a), [(OpCode::Text, vec![])]);
}

#[test]
fn without_echo_a_member_gets_all_but_its_own_messages() {
    let mut world = World::new(options());
    let (quiet, other) = (world.join("one?echo=0"), world.join("one"));
    world.bytes(quiet, &text("mine"));
    world.bytes(other, &text("theirs"));
    world.bytes(quiet, &text("mine too"));
    world.turn();
    assert_eq!(world.texts(quiet), ["theirs"]);
    assert_eq!(world.texts(other), ["mine", "theirs", "mine too"]);
}

#[test]
fn a_room_has_one_order_and_a_turn_of_it_leaves_in_one_send() {
    let mut world = World::new(options());
    let members: Vec<u32> = (0..5).map(|_| world.join("one")).collect();
    for peer in world.peers.values_mut() {
        peer.sends = 0;
    }
    for (index, member) in members.iter().cycle().take(20).enumerate() {
        world.bytes(*member, &text(&index.to_string()));
    }
    let fan_outs = world.fan_outs;
    world.turn();
    assert_eq!(world.fan_outs - fan_outs, 1, "one action for the room");
    let expected: Vec<String> = (0..20).map(|index| index.to_string()).collect();
    for member in members {
        assert_eq!(world.peer(member).sends, 1);
        assert_eq!(world.texts(member), expected);
    }
}

#[test]
fn what_comes_while_a_send_is_in_flight_leaves_in_the_next_one() {
    let mut world = World::new(options());
    let (a, slow) = (world.join("one"), world.join("one"));
    world.peer(slow).sends = 0;
    world.stick(slow);
    for index in 0..10 {
        world.send(a, &text(&index.to_string()));
    }
    world.unstick(slow);
    assert_eq!(world.texts(slow).len(), 10);
    assert_eq!(
        world.peer(slow).sends,
        2,
        "the first one, and all the others"
    );
}

#[test]
fn a_room_of_five_thousand_costs_one_action() {
    let mut world = World::new(options());
    let members: Vec<u32> = (0..5_000).map(|_| world.open()).collect();
    for member in &members {
        world.bytes(*member, &request("/rooms/one"));
    }
    world.turn();
    world.http(members[4_999]);
    let fan_outs = world.fan_outs;
    world.send(members[0], &text("hello"));
    assert_eq!(world.fan_outs - fan_outs, 1);
    assert_eq!(world.counters().deliveries, 5_000);
    assert_eq!(world.texts(members[4_999]), ["hello"]);
}

#[test]
fn frames_right_behind_the_request_are_served() {
    let mut world = World::new(options());
    let other = world.join("one");
    let a = world.open();
    let bytes = [request("/rooms/one"), text("at once"), text("and more")].concat();
    world.send(a, &bytes);
    assert!(world.http(a).starts_with("HTTP/1.1 101 "));
    assert_eq!(world.texts(a), ["at once", "and more"]);
    assert_eq!(world.texts(other), ["at once", "and more"]);
}

#[test]
fn a_request_and_its_frames_are_read_alike_in_any_pieces() {
    let bytes = [
        request("/rooms/one"),
        frame(false, OpCode::Text, "gr".as_bytes()),
        frame(true, OpCode::Ping, b"x"),
        frame(true, OpCode::Continuation, "ün".as_bytes()),
        close(1000),
    ]
    .concat();
    for piece_bytes in [1, 2, 3, 7, 64, 1_000] {
        let mut world = World::new(options());
        let other = world.join("one");
        let a = world.open();
        for piece in bytes.chunks(piece_bytes) {
            world.send(a, piece);
        }
        assert!(world.http(a).starts_with("HTTP/1.1 101 "));
        assert_eq!(world.texts(a), ["pong x", "grün", "close 1000"]);
        assert_eq!(world.texts(other), ["grün"]);
        assert!(world.is_gone(a));
    }
}

#[test]
fn who_joins_in_the_middle_of_a_turn_gets_nothing_older() {
    let mut world = World::new(options());
    let a = world.join("one");
    world.bytes(a, &text("old"));
    let b = world.open();
    world.bytes(b, &request("/rooms/one"));
    world.bytes(a, &text("new"));
    world.turn();
    assert!(world.http(b).starts_with("HTTP/1.1 101 "));
    assert_eq!(world.texts(b), ["new"]);
    assert_eq!(world.texts(a), ["old", "new"]);
}

#[test]
fn a_room_lives_as_long_as_it_has_members() {
    let mut world = World::new(options());
    let (a, b) = (world.join("one"), world.join("one"));
    let rooms = |world: &World| world.shard.snapshot().gauges.rooms;
    world.ended(a, false);
    assert_eq!(rooms(&world), 1);
    world.send(b, &text("alone"));
    assert_eq!(world.texts(b), ["alone"]);
    world.ended(b, true);
    assert_eq!((rooms(&world), world.held_bytes()), (0, 0));
    let c = world.join("one");
    world.send(c, &text("again"));
    assert_eq!(world.texts(c), ["again"]);
}

#[test]
fn messages_beyond_a_batch_arrive_whole_and_in_order() {
    let mut world = World::new(options());
    let (a, b) = (world.join("one"), world.join("one"));
    let long = "x".repeat(30_000);
    for index in 0..4 {
        world.bytes(a, &text(&format!("{index}{long}")));
    }
    world.turn();
    for member in [a, b] {
        let texts = world.texts(member);
        let firsts: Vec<&str> = texts.iter().map(|text| &text[..1]).collect();
        assert_eq!(firsts, ["0", "1", "2", "3"]);
    }
}
