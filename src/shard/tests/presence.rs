//! What the registry is told.

use std::collections::BTreeMap;

use super::world::{World, options};
use crate::bus::{Downstream, PresenceNote, Question, Reply, Upstream};
use crate::shard::{Input, Options, Presence};

fn world(presence: Presence) -> World {
    let options = Options {
        presence,
        presence_refresh_ms: 10_000,
        ..options()
    };
    let mut world = World::new(options);
    world.bus_room(1 << 20, 1 << 40);
    world
}

/// The notes that were sent up since the last look.
fn notes(world: &mut World) -> Vec<PresenceNote> {
    let forwarded = std::mem::take(&mut world.forwarded);
    forwarded
        .into_iter()
        .flat_map(|envelope| match envelope {
            Upstream::Presence { notes } => notes,
            other => panic!("{other:?}"),
        })
        .collect()
}

fn in_words(note: &PresenceNote) -> String {
    let sign = if note.is_gone { '-' } else { '+' };
    let user = note.user.as_deref().unwrap_or("nobody");
    format!("{sign}{user} in {}", note.room)
}

#[test]
fn who_comes_and_goes_is_told_of_as_far_as_it_is_to_be() {
    for (presence, expected) in [
        (Presence::Off, &[][..]),
        (Presence::Users, &["+ann in a", "-ann in a"]),
        (
            Presence::All,
            &["+ann in a", "+nobody in b", "-ann in a", "-nobody in b"],
        ),
    ] {
        let mut world = world(presence);
        let tabs = [world.join("a?user=ann"), world.join("b")];
        for tab in tabs {
            world.ended(tab, true);
        }
        let words: Vec<String> = notes(&mut world).iter().map(in_words).collect();
        assert_eq!(words, expected, "{presence:?}");
    }
}

#[test]
fn who_is_refused_is_not_told_of_and_who_is_closed_goes_once() {
    let mut world = world(Presence::All);
    let tab = world.join("a?user=ann");
    world.send(tab, &super::world::close(1000));
    world.ended(tab, false);
    let words: Vec<String> = notes(&mut world).iter().map(in_words).collect();
    assert_eq!(words, ["+ann in a", "-ann in a"]);
    let refused = world.open();
    world.send(refused, &super::world::request("/rooms/"));
    assert!(notes(&mut world).is_empty());
}

#[test]
fn each_connection_is_told_of_once_a_refresh_interval_with_its_ages() {
    let mut world = world(Presence::Users);
    let tabs: Vec<u32> = (0..100).map(|_| world.join("a?user=ann")).collect();
    world.join("a");
    assert_eq!(notes(&mut world).len(), tabs.len());
    world.pass(10_000);
    let mut counts = BTreeMap::new();
    for note in notes(&mut world) {
        assert!(!note.is_gone && note.since_ms_ago <= 10_000);
        assert_eq!(note.since_ms_ago, note.heard_ms_ago);
        *counts.entry(note.id).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), tabs.len());
    assert!(counts.values().all(|count| *count == 1));
}

#[test]
fn an_announcement_brings_everybody_within_its_time_and_once() {
    let mut world = world(Presence::All);
    for _ in 0..300 {
        world.join("a");
    }
    assert_eq!(notes(&mut world).len(), 300);
    world.downstream(Downstream::Announce { within_ms: 1_000 });
    world.pass(500);
    let half = notes(&mut world).len();
    assert!((100..=200).contains(&half), "{half} in half the time");
    world.pass(600);
    let rest = notes(&mut world).len();
    // Beside it, the usual refresh has begun again.
    assert!((300..=310).contains(&(half + rest)), "{half} and {rest}");
}

#[test]
fn envelopes_are_bounded_and_wait_for_room_in_order() {
    let mut world = world(Presence::All);
    world.bus_room(0, 0);
    let tabs: Vec<u32> = (0..520).map(|_| world.join("a")).collect();
    world.ended(tabs[0], true);
    assert!(notes(&mut world).is_empty());
    world.bus_room(2, 1 << 20);
    world.turn();
    let counts: Vec<usize> = world
        .forwarded
        .iter()
        .map(|envelope| match envelope {
            Upstream::Presence { notes } => notes.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(counts, [256, 256], "as many as there is room for");
    let next = world.shard.next_deadline().unwrap();
    assert!(next.since(world.now) <= 500, "it tries again soon");
    world.bus_room(2, 1 << 20);
    world.turn();
    let all = notes(&mut world);
    assert_eq!(all.len(), 521);
    assert_eq!(all[0].id, all[520].id);
    assert!(all[520].is_gone);
}

#[test]
fn what_waits_is_bounded_and_a_refresh_brings_back_what_was_dropped() {
    let mut world = world(Presence::All);
    world.bus_room(0, 0);
    let tab = world.join("a?user=ann");
    while world.counters().presence_dropped < 100 {
        let other = world.join("b");
        world.ended(other, true);
    }
    world.bus_room(1_000, 1 << 24);
    world.turn();
    notes(&mut world);
    let late = world.join("c?user=bob");
    world.pass(10_000);
    let refreshed = notes(&mut world);
    for index in [tab, late] {
        assert!(refreshed.iter().any(|note| note.id.index() == index));
    }
}

#[test]
fn the_connections_of_users_are_told_to_who_asks() {
    let mut world = world(Presence::Off);
    world.join("a?user=ann");
    world.join("b?user=ann");
    world.join("a?user=bob");
    let question = Question::Users {
        users: ["ann", "nobody", "bob"].map(Into::into).into(),
        connection_count_max: 1,
    };
    let request = 7;
    let envelope = Downstream::Ask { request, question };
    world.shard.handle(Input::Downstream(envelope), world.now);
    world.turn();
    let Some(Upstream::Answer {
        reply: Reply::Users(users),
        ..
    }) = world.forwarded.pop()
    else {
        panic!("{:?}", world.forwarded);
    };
    let counts: Vec<_> = users
        .iter()
        .map(|user| (&*user.user, user.connection_count, user.connections.len()))
        .collect();
    assert_eq!(counts, [("ann", 2, 1), ("nobody", 0, 0), ("bob", 1, 1)]);
    assert_eq!(in_words(&users[2].connections[0]), "+bob in a");
}
