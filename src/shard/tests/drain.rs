//! Stopping: told, closed evenly over the window, cut at the end.

use super::world::{World, options, request, text};
use crate::bus::{Downstream, DrainOrder, Upstream};
use crate::metrics::RefusalKind;
use crate::protocol::CloseReason;
use crate::shard::{HeartbeatMode, Input, Options};

fn order(world: &mut World, order: DrainOrder) {
    world.downstream(Downstream::Drain(order));
}

fn window(window_ms: u32) -> DrainOrder {
    DrainOrder::Close {
        window_ms,
        notice: true,
    }
}

fn listeners_stopped(world: &mut World) {
    world.shard.handle(Input::ListenersStopped, world.now);
    world.turn();
}

fn is_drained(world: &World) -> bool {
    let said = world
        .forwarded
        .iter()
        .filter(|envelope| matches!(envelope, Upstream::Drained))
        .count();
    assert_eq!(said, usize::from(world.shard.is_drained()), "said once");
    world.shard.is_drained()
}

#[test]
fn closes_are_paced_evenly_and_everybody_is_told() {
    let mut world = World::new(Options {
        heartbeat: HeartbeatMode::Tcp,
        ..options()
    });
    let members: Vec<u32> = (0..200).map(|_| world.open()).collect();
    for member in &members {
        world.bytes(*member, &request("/rooms/one"));
    }
    world.turn();
    for member in &members {
        world.http(*member);
    }
    order(&mut world, window(10_000));
    listeners_stopped(&mut world);
    assert_eq!(world.stops_asked, 1);
    let mut closed = Vec::new();
    for _ in 0..11 {
        world.pass(1_000);
        closed.push(world.closed(CloseReason::Draining));
    }
    for (second, pair) in closed.windows(2).take(9).enumerate() {
        let count = pair[1] - pair[0];
        assert!(
            (16..=24).contains(&count),
            "{count} in second {second}: {closed:?}"
        );
    }
    assert_eq!(closed[10], 200);
    let mut after = std::collections::BTreeSet::new();
    for member in &members {
        let texts = world.texts(*member);
        let notice: serde_json::Value = serde_json::from_str(&texts[0]).unwrap();
        assert_eq!(notice["type"], "reconnect");
        let ms = notice["after_ms"].as_u64().unwrap();
        assert!((1_000..=2_000).contains(&ms));
        after.insert(ms);
        assert_eq!(texts[1..], ["close 1012"]);
    }
    assert!(after.len() > 100, "they do not come back all at once");
    assert!(!is_drained(&world));
    for member in members {
        if !world.is_gone(member) {
            world.ended(member, false);
        }
    }
    assert!(is_drained(&world));
}

#[test]
fn without_the_notice_there_is_just_the_close() {
    let mut world = World::new(options());
    let (a, quiet) = (world.join("one"), world.join("one?notices=0"));
    order(
        &mut world,
        DrainOrder::Close {
            window_ms: 0,
            notice: false,
        },
    );
    assert_eq!(world.texts(a), ["close 1012"]);
    assert_eq!(world.texts(quiet), ["close 1012"]);
}

#[test]
fn a_member_that_wants_no_notices_gets_none_of_the_drain_either() {
    let mut world = World::new(options());
    let quiet = world.join("one?notices=0");
    order(&mut world, window(0));
    assert_eq!(world.texts(quiet), ["close 1012"]);
}

#[test]
fn not_ready_changes_health_and_nothing_else() {
    let mut world = World::new(options());
    let a = world.join("one");
    order(&mut world, DrainOrder::NotReady);
    world.pass(5_000);
    let check = world.open();
    world.send(check, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(world.http(check).starts_with("HTTP/1.1 503 "));
    world.texts(a);
    world.send(a, &text("on"));
    assert_eq!(world.texts(a), ["on"]);
    world.join("one");
    assert_eq!(world.stops_asked, 0);
}

#[test]
fn who_waits_in_the_accept_queue_is_served_in_the_window_and_refused_after_it() {
    let mut world = World::new(options());
    world.join("one");
    order(&mut world, window(2_000));
    world.pass(500);
    let late = world.join("one");
    world.send(late, &text("served"));
    assert_eq!(world.texts(late), ["served"]);
    world.pass(1_600);
    assert_eq!(world.texts(late).last().unwrap(), "close 1012");
    let too_late = world.open();
    world.send(too_late, &request("/rooms/one"));
    assert!(world.http(too_late).starts_with("HTTP/1.1 503 "));
    assert_eq!(world.counters().refused[RefusalKind::Draining as usize], 1);
}

#[test]
fn the_cut_ends_everything_whatever_it_waits_for() {
    let mut world = World::new(options());
    let (a, stuck, silent) = (world.join("one"), world.join("one"), world.open());
    world.stick(stuck);
    world.send(a, &text("x"));
    order(&mut world, window(1_000));
    world.pass(900);
    order(&mut world, DrainOrder::Cut);
    for index in [a, stuck, silent] {
        assert!(world.is_gone(index));
    }
    let behind = world.open();
    world.turn();
    assert!(world.is_gone(behind), "nobody comes in behind the cut");
    assert!(!is_drained(&world), "the listeners have not stopped");
    listeners_stopped(&mut world);
    assert!(is_drained(&world));
    assert_eq!((world.held_bytes(), world.stops_asked), (0, 1));
    order(&mut world, DrainOrder::Cut);
    assert_eq!(world.stops_asked, 1);
    assert!(is_drained(&world));
}

#[test]
fn a_cut_without_a_window_stops_accepting_too() {
    let mut world = World::new(options());
    let a = world.join("one");
    order(&mut world, DrainOrder::Cut);
    assert!(world.is_gone(a));
    assert_eq!(world.stops_asked, 1);
    listeners_stopped(&mut world);
    assert!(is_drained(&world));
}

#[test]
fn a_second_order_hurries_the_first() {
    let mut world = World::new(options());
    let a = world.join("one");
    order(&mut world, window(60_000));
    world.pass(1_000);
    order(&mut world, window(0));
    assert_eq!(world.texts(a).last().unwrap(), "close 1012");
    assert_eq!(world.stops_asked, 1);
}

#[test]
fn an_empty_shard_is_drained_as_soon_as_its_listeners_have_stopped() {
    let mut world = World::new(options());
    order(&mut world, window(60_000));
    assert!(!is_drained(&world));
    listeners_stopped(&mut world);
    assert!(is_drained(&world));
}
