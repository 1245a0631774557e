//! The shard's half of what it and the backplane say to each other.

use std::sync::Arc;

use super::world::{World, close, frame, options, request, text};
use crate::bus::{Batch, BatchMessage, Downstream, MessageKind, RoomName, Upstream};
use crate::metrics::DropPolicy;
use crate::protocol::{CloseReason, OpCode, encode_header};
use crate::shard::{HeartbeatMode, Options};
use crate::time::Tick;

fn room() -> RoomName {
    "one".into()
}

fn batch(payload: &str) -> Arc<Batch> {
    let mut bytes = Vec::new();
    let header_bytes = encode_header(&mut bytes, true, OpCode::Text, payload.len());
    bytes.extend_from_slice(payload.as_bytes());
    Arc::new(Batch {
        messages: vec![BatchMessage {
            end: u32::try_from(bytes.len()).unwrap(),
            header_bytes,
            kind: MessageKind::Text,
            sender: None,
        }],
        bytes,
        published: Tick::from_ms(999),
    })
}

/// What was forwarded since the last look, in words.
fn forwarded(world: &mut World) -> Vec<String> {
    let payloads = |batch: &Batch| {
        let mut start = 0;
        let mut texts = Vec::new();
        for message in &batch.messages {
            let payload = start + usize::from(message.header_bytes)..message.end as usize;
            texts.push(String::from_utf8_lossy(&batch.bytes[payload]).into_owned());
            start = message.end as usize;
        }
        texts.join(" ")
    };
    let in_words = |envelope: Upstream| match envelope {
        Upstream::Interest { room } => format!("interest {room}"),
        Upstream::Disinterest { room } => format!("disinterest {room}"),
        Upstream::LeaseReturned { room } => format!("returned {room}"),
        Upstream::Publish { room, batch } => format!("publish {room}: {}", payloads(&batch)),
        Upstream::ProbeReply { sequence } => format!("probe {sequence}"),
        other => format!("{other:?}"),
    };
    std::mem::take(&mut world.forwarded)
        .into_iter()
        .map(in_words)
        .collect()
}

fn ask(world: &mut World) -> u32 {
    let index = world.open();
    world.send(index, &request("/rooms/one"));
    index
}

/// A shard with members of a room that it orders itself, or that the bus orders.
fn joined(leased: bool, count: usize) -> (World, Vec<u32>) {
    let mut world = World::on_bus(options());
    world.bus_room(1_000, 1 << 20);
    let members: Vec<u32> = (0..count).map(|_| ask(&mut world)).collect();
    world.downstream(Downstream::Joined {
        room: room(),
        leased,
    });
    for member in &members {
        assert!(world.http(*member).starts_with("HTTP/1.1 101 "));
    }
    assert_eq!(forwarded(&mut world), ["interest one"]);
    (world, members)
}

#[test]
fn nobody_is_answered_before_the_interest_holds_and_one_interest_is_for_all() {
    let mut world = World::on_bus(options());
    let (a, b) = (ask(&mut world), ask(&mut world));
    assert!(world.peer(a).received.is_empty() && world.peer(b).received.is_empty());
    assert_eq!(forwarded(&mut world), ["interest one"]);
    world.downstream(Downstream::Joined {
        room: room(),
        leased: false,
    });
    for member in [a, b] {
        assert!(world.http(member).starts_with("HTTP/1.1 101 "));
    }
    let c = ask(&mut world);
    assert!(world.http(c).starts_with("HTTP/1.1 101 "), "at once");
    assert!(forwarded(&mut world).is_empty());
}

#[test]
fn what_comes_before_the_answer_is_kept_and_published_behind_it() {
    let mut world = World::on_bus(options());
    world.bus_room(1_000, 1 << 20);
    let a = world.open();
    world.send(a, &[request("/rooms/one"), text("early")].concat());
    world.send(a, &text("bird"));
    assert_eq!(forwarded(&mut world), ["interest one"]);
    world.downstream(Downstream::Joined {
        room: room(),
        leased: false,
    });
    assert_eq!(forwarded(&mut world), ["publish one: early bird"]);
}

#[test]
fn without_the_lease_a_message_goes_up_and_is_heard_when_it_comes_back() {
    let (mut world, members) = joined(false, 2);
    world.bytes(members[0], &text("a"));
    world.bytes(members[1], &text("b"));
    world.turn();
    assert_eq!(
        forwarded(&mut world),
        ["publish one: a b"],
        "one envelope a turn"
    );
    assert!(world.texts(members[0]).is_empty());
    world.downstream(Downstream::Delivery {
        room: room(),
        batch: batch("a"),
    });
    assert_eq!(world.texts(members[0]), ["a"]);
    assert_eq!(world.texts(members[1]), ["a"]);
    assert_eq!(world.counters().publish_to_deliver.count(), 2);
}

#[test]
fn with_the_lease_the_shard_orders_and_hands_it_back_behind_what_it_ordered() {
    let (mut world, members) = joined(true, 1);
    world.send(members[0], &text("mine"));
    assert_eq!(world.texts(members[0]), ["mine"]);
    assert!(forwarded(&mut world).is_empty());
    world.bytes(members[0], &text("last"));
    world.shard.handle(
        crate::shard::Input::Downstream(Downstream::LeaseRevoke { room: room() }),
        world.now,
    );
    world.bytes(members[0], &text("next"));
    world.downstream(Downstream::Delivery {
        room: room(),
        batch: batch("theirs"),
    });
    assert_eq!(forwarded(&mut world), ["returned one", "publish one: next"]);
    assert_eq!(world.texts(members[0]), ["last", "theirs"]);
}

#[test]
fn a_revoke_that_crosses_the_last_members_leaving_is_ignored() {
    let (mut world, members) = joined(true, 1);
    world.ended(members[0], false);
    world.downstream(Downstream::LeaseRevoke { room: room() });
    assert_eq!(forwarded(&mut world), ["disinterest one"]);
    let again = ask(&mut world);
    world.downstream(Downstream::LeaseRevoke { room: room() });
    assert_eq!(forwarded(&mut world), ["interest one"]);
    assert!(world.peer(again).received.is_empty());
}

#[test]
fn only_the_answer_to_the_last_interest_counts() {
    let mut world = World::on_bus(options());
    let a = ask(&mut world);
    world.ended(a, true);
    let b = ask(&mut world);
    assert_eq!(
        forwarded(&mut world),
        ["interest one", "disinterest one", "interest one"]
    );
    world.downstream(Downstream::Joined {
        room: room(),
        leased: true,
    });
    world.downstream(Downstream::Delivery {
        room: room(),
        batch: batch("not for b"),
    });
    assert!(world.peer(b).received.is_empty());
    world.downstream(Downstream::Joined {
        room: room(),
        leased: false,
    });
    assert!(world.http(b).starts_with("HTTP/1.1 101 "));
    assert!(world.texts(b).is_empty());
}

#[test]
fn an_interest_that_nobody_waits_for_any_more_leaves_no_room_behind() {
    let mut world = World::on_bus(options());
    let a = ask(&mut world);
    world.ended(a, true);
    assert_eq!(
        world.shard.snapshot().gauges.rooms,
        1,
        "until it is answered"
    );
    world.downstream(Downstream::Joined {
        room: room(),
        leased: true,
    });
    assert_eq!(world.shard.snapshot().gauges.rooms, 0);
}

#[test]
fn what_the_last_member_published_goes_up_before_its_disinterest() {
    for end in [None, Some(close(1000))] {
        let (mut world, members) = joined(false, 1);
        world.bytes(members[0], &text("last"));
        match end {
            None => world.ended(members[0], true),
            Some(close) => world.send(members[0], &close),
        }
        assert_eq!(
            forwarded(&mut world),
            ["publish one: last", "disinterest one"]
        );
    }
}

#[test]
fn a_publish_of_the_admin_is_ordered_with_the_lease_and_dropped_without() {
    let (mut world, members) = joined(true, 1);
    let publish = || Downstream::Publish {
        room: room(),
        batch: batch("from above"),
    };
    world.downstream(publish());
    assert_eq!(world.texts(members[0]), ["from above"]);
    world.ended(members[0], false);
    world.downstream(publish());
    let again = ask(&mut world);
    world.downstream(publish());
    assert_eq!(forwarded(&mut world), ["disinterest one", "interest one"]);
    assert!(world.peer(again).received.is_empty());
}

#[test]
fn a_probe_is_answered() {
    let mut world = World::on_bus(options());
    world.downstream(Downstream::Probe { sequence: 77 });
    assert_eq!(forwarded(&mut world), ["probe 77"]);
}

#[test]
fn while_the_bus_is_full_publishers_wait_keep_their_order_and_lose_nothing() {
    let (mut world, members) = joined(false, 2);
    let (a, b) = (members[0], members[1]);
    world.bus_room(0, 0);
    world.send(a, &text("a1"));
    world.send(
        a,
        &[text("a2"), frame(true, OpCode::Ping, b"behind")].concat(),
    );
    world.send(b, &frame(false, OpCode::Text, b"b1 "));
    world.send(b, &frame(true, OpCode::Continuation, b"b1"));
    assert!(world.peer(a).paused && world.peer(b).paused);
    assert!(forwarded(&mut world).is_empty());
    assert!(
        world.texts(a).is_empty(),
        "the ping is behind a message that waits"
    );
    world.send(a, &text("a3"));
    world.turn();
    assert_eq!(world.counters().publishers_paused, 2);
    world.bus_room(1, 12 + BatchMessage::BYTES);
    world.turn();
    assert_eq!(forwarded(&mut world), ["publish one: a1"], "room for one");
    assert!(world.peer(a).paused && world.peer(b).paused);
    world.bus_room(9, 900);
    world.turn();
    assert_eq!(forwarded(&mut world), ["publish one: a2 a3 b1 b1"]);
    assert!(!world.peer(a).paused && !world.peer(b).paused);
    assert_eq!(world.texts(a), ["pong behind"]);
}

#[test]
fn the_entry_of_a_message_weighs_on_the_bus_as_its_bytes_do() {
    let (mut world, members) = joined(false, 1);
    world.bus_room(9, 3 * BatchMessage::BYTES);
    world.send(members[0], &text("").repeat(10));
    let count = |world: &mut World| -> usize {
        std::mem::take(&mut world.forwarded)
            .iter()
            .map(|envelope| match envelope {
                Upstream::Publish { batch, .. } => {
                    assert!(batch.weight_bytes() <= 3 * BatchMessage::BYTES);
                    assert_eq!(batch.weight_bytes() % (2 + BatchMessage::BYTES), 0);
                    batch.messages.len()
                }
                other => panic!("{other:?}"),
            })
            .sum()
    };
    assert_eq!(
        count(&mut world),
        2,
        "ten frames of two bytes, but room for two entries"
    );
    assert!(world.peer(members[0]).paused);
    world.bus_room(9, 10_000);
    world.turn();
    assert_eq!(std::mem::take(&mut world.forwarded).len(), 1);
    assert!(!world.peer(members[0]).paused);
}

#[test]
fn who_waits_for_room_goes_before_who_comes_now() {
    let (mut world, members) = joined(false, 2);
    world.bus_room(0, 0);
    world.send(members[0], &text("waits"));
    world.bus_room(1, 15 + BatchMessage::BYTES);
    world.bytes(members[1], &text("comes"));
    world.turn();
    assert_eq!(forwarded(&mut world), ["publish one: waits"]);
    assert!(!world.peer(members[0]).paused && world.peer(members[1]).paused);
}

#[test]
fn a_waiting_publisher_whose_stream_ends_is_served_and_then_closed() {
    let (mut world, members) = joined(false, 2);
    world.bus_room(0, 0);
    world.send(members[0], &text("waits"));
    world.ended(members[0], false);
    assert!(!world.is_gone(members[0]));
    world.bus_room(9, 900);
    world.turn();
    assert_eq!(forwarded(&mut world), ["publish one: waits"]);
    assert!(world.is_gone(members[0]));
    assert_eq!(world.closed(CloseReason::PeerGone), 1);
}

#[test]
fn a_waiting_publisher_whose_connection_breaks_does_not_wait_any_more() {
    let (mut world, members) = joined(false, 2);
    world.bus_room(0, 0);
    world.send(members[0], &text("waits"));
    world.ended(members[0], true);
    assert!(world.is_gone(members[0]));
    world.bus_room(9, 900);
    world.turn();
    assert!(forwarded(&mut world).is_empty());
}

#[test]
fn a_waiting_publisher_that_is_closed_leaves_nothing() {
    let (mut world, members) = joined(false, 2);
    world.bus_room(0, 0);
    world.send(members[0], &text("waits"));
    world.shard.fail(members[0], CloseReason::Disconnected);
    world.turn();
    assert_eq!(world.texts(members[0]), ["close 4001"]);
    assert!(!world.peer(members[0]).paused);
    world.bus_room(9, 900);
    world.turn();
    assert!(forwarded(&mut world).is_empty());
    world.ended(members[0], false);
    assert!(world.is_gone(members[0]));
}

#[test]
fn a_publisher_that_waits_is_not_taken_for_dead_or_idle() {
    let options = Options {
        idle_timeout_ms: 30_000,
        ..options()
    };
    let mut world = World::on_bus(options);
    world.bus_room(1_000, 1 << 20);
    let a = ask(&mut world);
    world.downstream(Downstream::Joined {
        room: room(),
        leased: false,
    });
    world.bus_room(0, 0);
    world.send(a, &text("waits"));
    world.pass(120_000);
    assert!(!world.is_gone(a));
    world.bus_room(9, 900);
    world.turn();
    world.pass(5_000);
    assert!(!world.is_gone(a));
    assert_eq!(world.counters().closed.iter().sum::<u64>(), 0);
}

#[test]
fn what_a_waiting_publisher_has_begun_is_timed_from_when_it_is_read_again() {
    let mut world = World::on_bus(Options {
        heartbeat: HeartbeatMode::Tcp,
        ..options()
    });
    world.bus_room(1_000, 1 << 20);
    let a = ask(&mut world);
    world.downstream(Downstream::Joined {
        room: room(),
        leased: false,
    });
    world.http(a);
    world.bus_room(0, 0);
    world.send(a, &text("waits")[..8]);
    world.send(a, &[&text("waits")[8..], &text("begun")[..3]].concat());
    world.pass(120_000);
    world.bus_room(9, 900);
    world.turn();
    world.pass(28_900);
    assert_eq!(world.closed(CloseReason::MessageTimeout), 0);
    world.pass(2_200);
    assert_eq!(world.closed(CloseReason::MessageTimeout), 1);
}

/// Members of a room with `policy` that the bus orders, on a shard with a small budget: who sticks, and who reads.
fn in_a_small_shard(policy: &str, stuck_count: usize) -> (World, Vec<u32>, u32) {
    let mut world = World::on_bus(Options {
        shard_bytes_max: SMALL_SHARD_BYTES,
        ..options()
    });
    let mut members = Vec::new();
    for _ in 0..=stuck_count {
        let member = world.open();
        world.send(member, &request(&format!("/rooms/{policy}")));
        members.push(member);
    }
    world.downstream(Downstream::Joined {
        room: policy.into(),
        leased: false,
    });
    for member in &members {
        assert!(world.http(*member).starts_with("HTTP/1.1 101 "));
    }
    let reader = members.pop().expect("the last reads");
    for member in &members {
        world.stick(*member);
    }
    (world, members, reader)
}

const SMALL_SHARD_BYTES: u64 = 50_000;

#[test]
fn what_the_bus_delivers_beyond_the_shards_budget_waits_for_nobody() {
    for policy in [
        DropPolicy::DropNewest,
        DropPolicy::DropOldest,
        DropPolicy::Latest,
    ] {
        let (mut world, stuck, reader) = in_a_small_shard(policy.label(), 3);
        for number in 0..100 {
            let payload = format!("{number:>4000}");
            world.downstream(Downstream::Delivery {
                room: policy.label().into(),
                batch: batch(&payload),
            });
            assert_eq!(world.texts(reader), [payload], "who reads gets all of it");
            assert!(
                world.held_bytes() <= SMALL_SHARD_BYTES,
                "{policy:?} {number}: {} bytes",
                world.held_bytes()
            );
        }
        assert!(world.dropped(policy) > 3 * 80, "{policy:?}");
        let mut told = 0;
        for member in stuck {
            world.unstick(member);
            let texts = world.texts(member);
            let (notices, numbers): (Vec<String>, Vec<String>) =
                texts.into_iter().partition(|text| text.starts_with('{'));
            let missed: u64 = notices
                .iter()
                .map(|notice| {
                    let digits: String = notice.chars().filter(char::is_ascii_digit).collect();
                    digits.parse::<u64>().expect("a count")
                })
                .sum();
            told += missed;
            assert_eq!(missed + numbers.len() as u64, 100, "{policy:?} {notices:?}");
        }
        assert_eq!(told, world.dropped(policy), "{policy:?}");
    }
}

#[test]
fn beyond_the_shards_budget_a_delivery_closes_who_may_not_miss_any_and_is_behind() {
    let (mut world, stuck, reader) = in_a_small_shard("disconnect", 2);
    for number in 0..100 {
        let payload = format!("{number:>4000}");
        world.downstream(Downstream::Delivery {
            room: "disconnect".into(),
            batch: batch(&payload),
        });
        assert_eq!(world.texts(reader), [payload], "who reads gets all of it");
        assert!(world.held_bytes() <= SMALL_SHARD_BYTES);
    }
    assert_eq!(world.closed(CloseReason::SlowConsumer), 2);
    // The one that might not wait, and the twelve that did (they fill the budget) and went with the queue.
    assert_eq!(world.dropped(DropPolicy::Disconnect), 2 * (1 + 12));
    for member in stuck {
        world.unstick(member);
        assert_eq!(world.texts(member).last().unwrap(), "close 1013");
    }
}
