//! Who is let in: connections, addresses, rooms, handshakes a second.

use std::sync::Arc;

use super::world::{World, node, options, request};
use crate::metrics::RefusalKind;
use crate::protocol::CloseReason;
use crate::protocol::handshake::Refusal;
use crate::shard::{Delivery, Options};

fn status(world: &mut World, index: u32, path: &str) -> String {
    world.send(index, &request(path));
    world.http(index)[9..12].to_owned()
}

fn join_status(world: &mut World, address: &str, path: &str) -> (u32, String) {
    let index = world.open_from(address);
    let status = status(world, index, path);
    (index, status)
}

#[test]
fn the_connection_limit_is_the_nodes_over_its_shards() {
    let options = Options {
        connection_count_max: 3,
        ..options()
    };
    let node = node(&options);
    let shard = |core| World::on(options.clone(), Delivery::Inline, core, Arc::clone(&node));
    let (mut one, mut two) = (shard(0), shard(1));
    let first = one.join("a");
    two.join("a");
    two.join("b");
    let refused = one.open();
    assert_eq!(status(&mut one, refused, "/rooms/a"), "503");
    assert_eq!(one.counters().refused[RefusalKind::NodeFull as usize], 1);
    assert_eq!(node.connection_count(), 3);
    one.ended(first, false);
    two.join("c");
    assert_eq!(node.connection_count(), 3);
    drop((one, two));
}

#[test]
fn an_address_is_limited_and_a_refused_one_holds_no_place() {
    let options = Options {
        address_connection_count_max: 2,
        connection_count_max: 100,
        room_count_max: 2,
        ..options()
    };
    let mut world = World::new(options);
    let (first, _) = join_status(&mut world, "10.0.0.1", "/rooms/a");
    join_status(&mut world, "10.0.0.1", "/rooms/a");
    let (third, status) = join_status(&mut world, "10.0.0.1", "/rooms/a");
    assert_eq!(status, "429");
    world.ended(third, false);
    assert_eq!(join_status(&mut world, "10.0.0.2", "/rooms/b").1, "101");
    world.ended(first, false);
    let (refused, status) = join_status(&mut world, "10.0.0.1", "/rooms/c");
    assert_eq!(status, "503", "no room is left");
    world.ended(refused, false);
    assert_eq!(
        join_status(&mut world, "10.0.0.1", "/rooms/a").1,
        "101",
        "its place was kept"
    );
}

#[test]
fn an_address_is_limited_over_all_shards_before_it_upgrades() {
    let options = Options {
        address_connection_count_max: 2,
        ..options()
    };
    let node = node(&options);
    let shard = |core| World::on(options.clone(), Delivery::Inline, core, Arc::clone(&node));
    let (mut one, mut two) = (shard(0), shard(1));
    let (first, second) = (one.open(), two.open()); // neither has sent anything
    for path in ["/rooms/a", "/health"] {
        let third = two.open();
        assert_eq!(status(&mut two, third, path), "429");
        assert!(two.peer(third).write_ended, "it is not kept");
        two.ended(third, false);
    }
    assert_eq!(two.counters().refused[RefusalKind::AddressFull as usize], 2);
    let other = two.open_from("10.0.0.2");
    assert_eq!(status(&mut two, other, "/rooms/a"), "101");
    assert_eq!(status(&mut one, first, "/rooms/a"), "101");
    let third = two.open();
    one.ended(first, false);
    assert_eq!(status(&mut two, third, "/rooms/a"), "101", "one has gone");
    assert_eq!(
        status(&mut two, second, "/rooms/a"),
        "101",
        "counted at its accept, and not again"
    );
    let fourth = one.open();
    assert_eq!(status(&mut one, fourth, "/rooms/a"), "429");
}

#[test]
fn who_is_beyond_its_addresss_limit_has_the_handshake_timeout_to_ask() {
    let mut world = World::new(Options {
        address_connection_count_max: 1,
        ..options()
    });
    world.join("a");
    let silent = world.open();
    world.pass(4_900);
    assert!(!world.is_gone(silent));
    world.pass(1_200);
    assert!(world.is_gone(silent));
    assert_eq!(world.closed(CloseReason::HandshakeTimeout), 1);
}

#[test]
fn sockets_are_limited_over_all_shards_whether_they_upgrade_or_not() {
    let options = Options {
        connection_count_max: 16,
        ..options()
    };
    let node = node(&options);
    let shard = |core| World::on(options.clone(), Delivery::Inline, core, Arc::clone(&node));
    let (mut one, mut two) = (shard(0), shard(1));
    let first = one.open();
    for _ in 1..16 + 1 + 1_024 {
        two.open();
    }
    two.turn();
    assert_eq!(two.closed(CloseReason::OverBudget), 0);
    let beyond = one.open();
    one.turn();
    assert!(one.is_gone(beyond) && !one.is_gone(first));
    assert_eq!(one.closed(CloseReason::OverBudget), 1);
    one.ended(first, false);
    let next = two.open();
    assert_eq!(status(&mut two, next, "/rooms/a"), "101");
}

#[test]
fn the_room_limit_refuses_new_rooms_and_not_new_members() {
    let options = Options {
        room_count_max: 2,
        ..options()
    };
    let mut world = World::new(options);
    let a = world.join("a");
    world.join("b");
    let c = world.open();
    assert_eq!(status(&mut world, c, "/rooms/c"), "503");
    assert_eq!(
        world.counters().refused[RefusalKind::OverBudget as usize],
        1
    );
    world.join("b");
    world.ended(a, false);
    world.join("c");
    assert_eq!(world.shard.node.connection_count(), 3);
}

#[test]
fn handshakes_a_second_are_limited() {
    let options = Options {
        handshakes_per_s_max: 3,
        ..options()
    };
    let mut world = World::new(options);
    for _ in 0..3 {
        world.join("a");
    }
    let refused = world.open();
    assert_eq!(status(&mut world, refused, "/rooms/a"), "503");
    assert_eq!(
        world.counters().refused[RefusalKind::HandshakeRate as usize],
        1
    );
    world.pass(400);
    world.join("a");
}

#[test]
fn a_full_node_says_so_and_spreads_retry_after() {
    let options = Options {
        connection_count_max: 0,
        ..options()
    };
    let mut world = World::new(options);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let a = world.open();
        world.send(a, &request("/rooms/a"));
        let answer = world.http(a);
        assert!(answer.contains(Refusal::of(RefusalKind::NodeFull).detail));
        let after: u32 = answer
            .lines()
            .find_map(|line| line.strip_prefix("Retry-After: ")?.parse().ok())
            .unwrap();
        seen.insert(after);
        world.ended(a, false);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [5, 6, 7, 8, 9, 10]);
}
