//! Memory: what is charged, what is given back, and what happens at the limits.

use std::sync::Arc;

use super::world::{World, frame, node, options, request, text};
use crate::protocol::{CloseReason, OpCode};
use crate::shard::connection::CONNECTION_IDLE_BYTES;
use crate::shard::{Delivery, Options};

#[test]
fn an_idle_member_costs_its_slot_and_nothing_else() {
    let mut world = World::new(options());
    let members: Vec<u32> = (0..10).map(|_| world.join("one")).collect();
    let idle = 10 * CONNECTION_IDLE_BYTES as u64;
    assert_eq!(world.held_bytes(), idle);
    for (index, member) in members.iter().enumerate() {
        world.send(*member, &text(&"x".repeat(index * 1_000)));
        world.send(*member, &frame(true, OpCode::Ping, b"p"));
        assert_eq!(world.held_bytes(), idle);
    }
    for member in &members {
        let connection = &world.shard.connections[*member];
        assert!(connection.inbox.is_none() && connection.outbox.is_none());
        assert!(connection.rate.is_none());
        assert_eq!(connection.queued_bytes, 0);
    }
}

#[test]
fn a_message_is_charged_when_it_is_announced_and_given_back_when_it_went() {
    let mut world = World::new(options());
    let a = world.join("one");
    let idle = world.held_bytes();
    let whole = frame(true, OpCode::Binary, &[7; 50_000]);
    world.send(a, &whole[..20]);
    assert!(
        world.held_bytes() >= idle + 50_000,
        "{}",
        world.held_bytes()
    );
    world.send(a, &whole[20..]);
    assert_eq!(world.frames(a).len(), 1);
    assert_eq!(world.held_bytes(), idle);
}

#[test]
fn a_broken_connection_gives_everything_back() {
    for stuck in [false, true] {
        let mut world = World::new(options());
        let (a, b) = (world.join("one"), world.join("one"));
        let idle = world.held_bytes();
        if stuck {
            world.stick(b);
        }
        for _ in 0..10 {
            world.send(a, &text(&"x".repeat(1_000)));
        }
        world.send(b, &frame(false, OpCode::Text, b"the beginning of"));
        world.send(b, &[0x80]);
        world.ended(b, true);
        assert!(world.is_gone(b));
        assert_eq!(world.held_bytes(), idle - CONNECTION_IDLE_BYTES as u64);
        assert_eq!(world.closed(CloseReason::PeerReset), 1);
    }
}

#[test]
fn near_the_shards_budget_nobody_new_comes_in_and_nobody_who_is_in_is_hurt() {
    let options = Options {
        shard_bytes_max: 100_000,
        ..options()
    };
    let mut world = World::new(options);
    let (a, b) = (world.join("one"), world.join("one"));
    let whole = frame(true, OpCode::Binary, &[7; 60_000]);
    world.send(a, &whole[..20]);
    let c = world.open();
    let half = frame(true, OpCode::Binary, &[7; 35_000]);
    world.send(b, &half[..20]);
    world.send(c, &request("/rooms/one"));
    let answer = world.http(c);
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let retry_after: u32 = answer
        .lines()
        .find_map(|line| line.strip_prefix("Retry-After: ")?.parse().ok())
        .expect("told when to come back");
    assert!((5..=10).contains(&retry_after));
    world.send(b, &half[20..]);
    assert_eq!(world.frames(a).len(), 1, "{:?}", world.peers[&a]);
    world.send(a, &whole[20..]);
    assert_eq!(world.frames(b).len(), 2);
}

#[test]
fn a_message_that_the_shard_has_no_budget_for_closes_its_sender_only() {
    let options = Options {
        shard_bytes_max: 50_000,
        ..options()
    };
    let mut world = World::new(options);
    let (a, b) = (world.join("one"), world.join("one"));
    let whole = frame(true, OpCode::Binary, &[7; 60_000]);
    world.send(a, &whole[..20]);
    assert_eq!(world.texts(a), ["close 1013"]);
    assert_eq!(world.closed(CloseReason::OverBudget), 1);
    world.send(b, &text("small"));
    assert_eq!(world.texts(b), ["small"]);
}

#[test]
fn while_output_fills_the_budget_publishers_wait_and_nothing_is_lost() {
    let options = Options {
        shard_bytes_max: 40_000,
        message_bytes_max: 20_000,
        ..options()
    };
    let mut world = World::new(options);
    let (a, b) = (world.join("one?echo=0"), world.join("one"));
    world.stick(b);
    let long = "x".repeat(15_000);
    for index in 0..4 {
        world.bytes(a, &text(&format!("{index}{long}")));
        world.turn();
    }
    assert!(world.peer(a).paused);
    assert_eq!(world.counters().publishers_paused, 1);
    world.unstick(b);
    let texts = world.texts(b);
    let firsts: Vec<&str> = texts.iter().map(|text| &text[..1]).collect();
    assert_eq!(firsts, ["0", "1", "2", "3"]);
    assert!(!world.peer(a).paused);
}

#[test]
fn a_reader_that_never_reads_is_cut_though_it_fills_the_budget_and_its_publisher_goes_on() {
    let options = Options {
        shard_bytes_max: 60_000,
        write_stall_timeout_ms: 1_000,
        ..options()
    };
    let mut world = World::new(options);
    let (a, b) = (world.join("one?echo=0"), world.join("one"));
    world.stick(b);
    for _ in 0..9 {
        world.send(a, &text(&"x".repeat(10_000)));
    }
    assert!(!world.shard.paused.is_empty(), "the publisher waits");
    world.pass_in_turns(2_500);
    assert_eq!(world.closed(CloseReason::WriteStalled), 1);
    assert!(world.shard.paused.is_empty(), "the publisher goes on");
    assert_eq!(world.counters().messages_in, 9);
}

#[test]
fn a_health_check_that_ends_its_stream_at_once_still_gets_its_answer() {
    let mut world = World::new(options());
    let index = world.open();
    world.bytes(index, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    world.ended(index, false);
    world.turn();
    assert!(world.http(index).starts_with("HTTP/1.1 200"));
}

#[test]
fn publishers_whose_own_input_fills_the_budget_still_get_through() {
    let options = Options {
        shard_bytes_max: 40_000,
        message_bytes_max: 20_000,
        ..options()
    };
    let mut world = World::new(options);
    let member = world.join("one");
    let publishers: Vec<u32> = (0..5).map(|_| world.join("one?echo=0")).collect();
    world.stick(member);
    world.send(publishers[0], &text(&"x".repeat(18_000)));
    for publisher in &publishers {
        world.send(*publisher, &text(&"y".repeat(18_000)));
    }
    assert!(
        world.held_bytes() > 40_000,
        "it was received before anybody could know"
    );
    world.unstick(member);
    assert_eq!(world.texts(member).len(), 6);
    assert!(
        publishers
            .iter()
            .all(|publisher| !world.peers[publisher].paused)
    );
}

#[test]
fn a_shard_that_empties_gives_the_node_its_reservation_back() {
    let options = Options {
        message_bytes_max: 1 << 24,
        ..options()
    };
    let node = node(&options);
    let mut world = World::on(options, Delivery::Inline, 0, Arc::clone(&node));
    let a = world.join("one");
    let whole = frame(true, OpCode::Binary, &[7; 1 << 24]);
    world.send(a, &whole[..20]);
    assert!(node.reserved_bytes() >= 1 << 24);
    world.ended(a, true);
    assert!(
        node.reserved_bytes() <= 2 << 20,
        "{}",
        node.reserved_bytes()
    );
    drop(world);
    assert_eq!(node.reserved_bytes(), 0);
}
