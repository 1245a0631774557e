//! What happens to members that read too slowly, by the room's policy.

use super::world::{World, close, options, request, text};
use crate::metrics::DropPolicy;
use crate::protocol::{CloseReason, OpCode};
use crate::shard::Options;
use crate::shard::outbox::{QUEUED_BYTES, Reserve};

/// A payload of 100 bytes that begins with its number.
fn numbered(index: usize) -> String {
    format!("{index:0100}")
}

const FRAME_BYTES: u32 = 102 + QUEUED_BYTES;

/// The queue takes exactly `count` of [`numbered`].
fn room_for(count: u32) -> Options {
    let spare = Reserve::Data.limit(0);
    Options {
        connection_queue_bytes_max: count * FRAME_BYTES - spare,
        ..options()
    }
}

/// A room with a reader, and one that has stopped to read: message 0 is in its socket.
fn slow(policy: &str, query: &str) -> (World, u32, u32) {
    let mut world = World::new(room_for(4));
    let reader = world.join(policy);
    let slow = world.join(&format!("{policy}{query}"));
    world.stick(slow);
    publish(&mut world, reader, 0..1);
    (world, reader, slow)
}

/// One turn a message.
fn publish(world: &mut World, sender: u32, indexes: std::ops::Range<usize>) {
    for index in indexes {
        world.send(sender, &text(&numbered(index)));
    }
}

/// Numbers of the messages, notices as they are.
fn heard(world: &mut World, index: u32) -> Vec<String> {
    let shorten = |text: String| match text.trim_start_matches('0') {
        "" => "0".to_owned(),
        short => short.to_owned(),
    };
    world.texts(index).into_iter().map(shorten).collect()
}

fn gap(missed: usize) -> String {
    format!(r#"{{"type":"gap","missed":{missed}}}"#)
}

#[test]
fn disconnect_closes_the_slow_member_at_its_limit_and_leaves_the_others_alone() {
    let (mut world, reader, slow) = slow("disconnect", "");
    publish(&mut world, reader, 1..5);
    assert_eq!(
        world.closed(CloseReason::SlowConsumer),
        0,
        "the queue is just full"
    );
    publish(&mut world, reader, 5..8);
    assert_eq!(world.closed(CloseReason::SlowConsumer), 1);
    // The one that found no room, and the four that waited and are thrown away with the queue.
    assert_eq!(world.dropped(DropPolicy::Disconnect), 1 + 4);
    assert_eq!(heard(&mut world, reader).len(), 8);
    world.unstick(slow);
    assert_eq!(heard(&mut world, slow), ["0", "close 1013"]);
    assert!(world.peer(slow).write_ended);
}

/// A member that joins in the same turn in which its room is delivered to six times: every join ends a delivery.
fn late(policy: &str) -> (World, u32) {
    let mut world = World::new(room_for(4));
    let path = format!("/rooms/{policy}");
    let reader = world.join(policy);
    let late = world.open();
    world.bytes(late, &request(&path));
    for index in 0..6 {
        world.bytes(reader, &text(&numbered(index)));
        let another = world.open();
        world.bytes(another, &request(&path));
    }
    world.turn();
    (world, late)
}

#[test]
fn a_slow_consumer_that_never_read_its_answer_still_gets_it_before_the_close() {
    let (mut world, slow) = late("disconnect");
    assert!(world.http(slow).starts_with("HTTP/1.1 101 "));
    assert_eq!(heard(&mut world, slow), ["close 1013"]);
}

#[test]
fn drop_oldest_keeps_the_newest_and_tells_the_gap_before_them() {
    let (mut world, reader, slow) = slow("drop-oldest", "");
    publish(&mut world, reader, 1..10);
    assert_eq!(world.dropped(DropPolicy::DropOldest), 5);
    world.unstick(slow);
    assert_eq!(heard(&mut world, slow), ["0", &gap(5), "6", "7", "8", "9"]);
    assert_eq!(world.counters().gaps_told, 1);
    assert_eq!(heard(&mut world, reader).len(), 10);
}

#[test]
fn drop_newest_keeps_the_oldest_and_tells_the_gap_behind_them() {
    let (mut world, reader, slow) = slow("drop-newest", "");
    publish(&mut world, reader, 1..10);
    assert_eq!(world.dropped(DropPolicy::DropNewest), 5);
    world.unstick(slow);
    publish(&mut world, reader, 10..11);
    assert_eq!(
        heard(&mut world, slow),
        ["0", "1", "2", "3", "4", &gap(5), "10"]
    );
    assert_eq!(world.counters().gaps_told, 1);
}

#[test]
fn latest_keeps_only_the_newest_once_the_budget_is_met() {
    let (mut world, reader, slow) = slow("latest", "");
    publish(&mut world, reader, 1..7);
    assert_eq!(world.dropped(DropPolicy::Latest), 4);
    world.unstick(slow);
    assert_eq!(heard(&mut world, slow), ["0", &gap(4), "5", "6"]);
}

#[test]
fn a_turn_that_does_not_fit_whole_is_taken_as_far_as_it_fits() {
    for (policy, expected) in [
        ("drop-newest", vec!["0", "1", "2", "3", "4", "gap 3"]),
        ("drop-oldest", vec!["0", "gap 3", "4", "5", "6", "7"]),
        ("latest", vec!["0", "gap 4", "5", "6", "7"]),
    ] {
        let (mut world, reader, slow) = slow(policy, "");
        for index in 1..8 {
            world.bytes(reader, &text(&numbered(index)));
        }
        world.turn();
        world.unstick(slow);
        let heard: Vec<String> = heard(&mut world, slow)
            .into_iter()
            .map(
                |text| match text.strip_prefix(r#"{"type":"gap","missed":"#) {
                    Some(missed) => format!("gap {}", missed.trim_end_matches('}')),
                    None => text,
                },
            )
            .collect();
        assert_eq!(heard, expected, "{policy}");
    }
}

#[test]
fn gaps_are_counted_over_several_stops() {
    let (mut world, reader, slow) = slow("drop-oldest", "");
    publish(&mut world, reader, 1..7);
    world.unstick(slow);
    world.stick(slow);
    publish(&mut world, reader, 7..14);
    world.unstick(slow);
    let heard = heard(&mut world, slow);
    assert_eq!(
        heard,
        [
            "0",
            &gap(2),
            "3",
            "4",
            "5",
            "6",
            "7",
            &gap(2),
            "10",
            "11",
            "12",
            "13"
        ]
    );
    assert_eq!(world.dropped(DropPolicy::DropOldest), 4);
}

#[test]
fn who_wants_no_notices_gets_none_and_its_loss_is_counted() {
    for policy in ["drop-oldest", "drop-newest", "latest"] {
        let (mut world, reader, slow) = slow(policy, "?notices=0");
        publish(&mut world, reader, 1..9);
        world.unstick(slow);
        publish(&mut world, reader, 9..10);
        let heard = heard(&mut world, slow);
        let dropped: u64 = world.counters().dropped.iter().sum();
        assert_eq!(heard.len() as u64 + dropped, 10, "{policy}: {heard:?}");
        assert!(heard.iter().all(|text| !text.starts_with('{')), "{heard:?}");
        assert_eq!(world.counters().gaps_told, 0);
        assert!(world.shard.connections[slow].outbox.is_none());
    }
}

#[test]
fn a_gap_is_told_before_the_close_frame_and_never_behind_it() {
    let (mut world, reader, slow) = slow("drop-newest", "");
    publish(&mut world, reader, 1..8);
    world.send(slow, &close(1000));
    world.unstick(slow);
    assert_eq!(
        heard(&mut world, slow),
        ["0", "1", "2", "3", "4", &gap(3), "close 1000"]
    );
}

#[test]
fn a_gap_never_overtakes_the_answer_to_the_upgrade() {
    let (mut world, late) = late("drop-oldest");
    assert!(world.http(late).starts_with("HTTP/1.1 101 "));
    let heard = heard(&mut world, late);
    let missed = 6 - (heard.len() - 1);
    assert!(missed > 0);
    assert_eq!(heard[0], gap(missed), "{heard:?}");
}

#[test]
fn one_message_of_the_greatest_size_fits_an_empty_queue() {
    let size = 5_000;
    let options = Options {
        message_bytes_max: size,
        connection_queue_bytes_max: size,
        ..options()
    };
    let mut world = World::new(options);
    let (reader, slow) = (world.join("disconnect"), world.join("disconnect"));
    world.stick(slow);
    world.send(reader, &text("in flight"));
    world.send(reader, &text(&"x".repeat(size as usize)));
    assert_eq!(world.closed(CloseReason::SlowConsumer), 0);
    world.send(reader, &text(""));
    assert_eq!(world.closed(CloseReason::SlowConsumer), 1);
}

#[test]
fn a_turn_larger_than_the_queue_does_not_hurt_a_member_that_reads() {
    let mut world = World::new(room_for(4));
    let (a, b) = (world.join("disconnect"), world.join("disconnect"));
    for index in 0..100 {
        world.bytes(a, &text(&numbered(index)));
    }
    world.bytes(b, &super::world::frame(true, OpCode::Ping, b"p"));
    world.turn();
    assert_eq!(world.closed(CloseReason::SlowConsumer), 0);
    assert_eq!(heard(&mut world, a).len(), 100);
    assert_eq!(heard(&mut world, b).len(), 101);
}

#[test]
fn while_a_large_turn_is_in_flight_pongs_and_the_close_still_find_room() {
    let mut world = World::new(room_for(4));
    let (a, b) = (world.join("disconnect"), world.join("disconnect"));
    world.stick(b);
    for index in 0..100 {
        world.bytes(a, &text(&numbered(index)));
    }
    world.turn();
    world.send(b, &super::world::frame(true, OpCode::Ping, b"p"));
    world.send(b, &close(1000));
    world.unstick(b);
    let heard = heard(&mut world, b);
    assert_eq!(heard[100..], ["pong p", "close 1000"]);
}
