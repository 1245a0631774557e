//! What a shard says of messages and rooms that were lost between the nodes.

use std::sync::Arc;

use super::world::{World, options, request, text};
use crate::bus::{Batch, BatchMessage, ConnectionId, Downstream, MessageKind, RoomName, Upstream};
use crate::metrics::RefusalKind;
use crate::protocol::{OpCode, encode_header};
use crate::time::Tick;

fn room() -> RoomName {
    "one".into()
}

fn batch(messages: &[(&str, Option<ConnectionId>)]) -> Arc<Batch> {
    let mut batch = Batch {
        bytes: Vec::new(),
        messages: Vec::new(),
        published: Tick::from_ms(999),
    };
    for (payload, sender) in messages {
        let header_bytes = encode_header(&mut batch.bytes, true, OpCode::Text, payload.len());
        batch.bytes.extend_from_slice(payload.as_bytes());
        batch.messages.push(BatchMessage {
            end: u32::try_from(batch.bytes.len()).unwrap(),
            header_bytes,
            kind: MessageKind::Text,
            sender: *sender,
        });
    }
    Arc::new(batch)
}

fn ask(world: &mut World, query: &str) -> u32 {
    let index = world.open();
    world.send(index, &request(&format!("/rooms/one{query}")));
    index
}

fn join(world: &mut World) {
    world.downstream(Downstream::Joined {
        room: room(),
        leased: false,
    });
}

fn interests(world: &mut World) -> Vec<&'static str> {
    let said = std::mem::take(&mut world.forwarded);
    said.into_iter()
        .filter_map(|envelope| match envelope {
            Upstream::Interest { .. } => Some("interest"),
            Upstream::Disinterest { .. } => Some("disinterest"),
            _ => None,
        })
        .collect()
}

#[test]
fn a_refused_join_answers_503_to_all_who_wait_and_takes_the_interest_back() {
    let mut world = World::on_bus(options());
    let waiting = [ask(&mut world, ""), ask(&mut world, "")];
    world.downstream(Downstream::JoinRefused { room: room() });
    for index in waiting {
        let answer = world.http(index);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("Retry-After"), "{answer}");
    }
    assert_eq!(interests(&mut world), ["interest", "disinterest"]);
    assert_eq!(world.counters().refused[RefusalKind::Backplane as usize], 2);
    // The next one asks anew.
    let next = ask(&mut world, "");
    assert_eq!(interests(&mut world), ["interest"]);
    join(&mut world);
    assert!(world.http(next).starts_with("HTTP/1.1 101 "));
}

#[test]
fn the_refusal_of_an_interest_that_was_given_up_refuses_nobody() {
    let mut world = World::on_bus(options());
    let gone = ask(&mut world, "");
    world.ended(gone, true);
    let waits = ask(&mut world, "");
    assert_eq!(
        interests(&mut world),
        ["interest", "disinterest", "interest"]
    );
    world.downstream(Downstream::JoinRefused { room: room() });
    assert!(
        world.peer(waits).received.is_empty(),
        "its answer is to come"
    );
    join(&mut world);
    assert!(world.http(waits).starts_with("HTTP/1.1 101 "));
    // Nobody waits any more when the answer comes.
    let mut world = World::on_bus(options());
    let gone = ask(&mut world, "");
    world.ended(gone, true);
    world.downstream(Downstream::JoinRefused { room: room() });
    assert_eq!(world.shard.rooms.count(), 0);
}

#[test]
fn a_gap_is_told_between_what_came_before_and_what_comes_after() {
    let mut world = World::on_bus(options());
    let (a, silent) = (ask(&mut world, ""), ask(&mut world, "?notices=0"));
    join(&mut world);
    world.http(a);
    world.http(silent);
    let deliver = |world: &mut World, payload| {
        world.downstream(Downstream::Delivery {
            room: room(),
            batch: batch(&[(payload, None)]),
        });
    };
    deliver(&mut world, "before");
    for missed in [Some(3), None] {
        let room = room();
        world.downstream(Downstream::Gap { room, missed });
    }
    deliver(&mut world, "after");
    let known = r#"{"type":"gap","missed":3}"#;
    let unknown = r#"{"type":"gap","missed":null}"#;
    assert_eq!(world.texts(a), ["before", known, unknown, "after"]);
    assert_eq!(world.texts(silent), ["before", "after"]);
    assert_eq!(world.counters().gaps_told, 2);
}

#[test]
fn a_gap_that_finds_no_room_is_told_behind_what_comes_next() {
    let mut world = World::on_bus(options());
    let slow = ask(&mut world, "");
    join(&mut world);
    world.http(slow);
    world.stick(slow);
    world.downstream(Downstream::Delivery {
        room: room(),
        batch: batch(&[("first", None)]),
    });
    for _ in 0..2_000 {
        let (room, missed) = (room(), Some(1));
        world.downstream(Downstream::Gap { room, missed });
    }
    world.unstick(slow);
    world.turn();
    let told = world.texts(slow);
    let missed = |text: &String| -> u64 {
        let notice: serde_json::Value = serde_json::from_str(text).unwrap();
        notice["missed"].as_u64().unwrap()
    };
    assert_eq!(told[0], "first");
    assert_eq!(told[1..].iter().map(missed).sum::<u64>(), 2_000);
    assert!(told.len() < 2_000, "bounded: {} notices", told.len());
}

#[test]
fn who_published_what_is_refused_is_told_and_nobody_else() {
    let mut world = World::on_bus(options());
    world.bus_room(1_000, 1 << 20);
    let (a, b) = (ask(&mut world, ""), ask(&mut world, ""));
    join(&mut world);
    world.http(a);
    world.http(b);
    for payload in ["1", "2"] {
        world.bytes(a, &text(payload));
    }
    world.turn();
    let published = std::mem::take(&mut world.forwarded);
    let batch = published.into_iter().find_map(|envelope| match envelope {
        Upstream::Publish { batch, .. } => Some(batch),
        _ => None,
    });
    let batch = batch.unwrap();
    let local = false;
    world.downstream(Downstream::Refused { batch, local });
    let told = r#"{"type":"backplane","refused":2,"local":false}"#;
    assert_eq!(world.texts(a), [told]);
    assert!(world.texts(b).is_empty());
    // Of a connection that is gone, or was never here, nothing is said.
    let strangers = [("x", Some(ConnectionId(u64::MAX))), ("y", None)];
    let batch = self::batch(&strangers);
    world.downstream(Downstream::Refused { batch, local: true });
    assert!(world.texts(a).is_empty() && world.texts(b).is_empty());
}
