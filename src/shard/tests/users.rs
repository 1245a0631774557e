//! Users, everybody, and who is let in when.

use std::sync::Arc;

use super::world::{World, node, options, request, text};
use crate::bus::{
    Batch, BatchMessage, Downstream, EVERYBODY, MessageKind, RoomName, Upstream, user_room,
};
use crate::metrics::{DropPolicy, RefusalKind};
use crate::protocol::{CloseReason, OpCode, close_frame, encode_header};
use crate::shard::{Delivery, HeartbeatMode, Options};
use crate::time::Tick;

const UNKNOWN: &str = r#"{"type":"gap","missed":null}"#;

fn batch(messages: &[&str]) -> Arc<Batch> {
    let mut bytes = Vec::new();
    let messages = messages.iter().map(|payload| {
        let start = bytes.len();
        let kind = match payload.strip_prefix("close ") {
            None => {
                encode_header(&mut bytes, true, OpCode::Text, payload.len());
                bytes.extend_from_slice(payload.as_bytes());
                MessageKind::Text
            }
            Some(how) => {
                close_frame(&mut bytes, 4001, how);
                let reconnect = how == "reconnect";
                MessageKind::Close { reconnect }
            }
        };
        let payload_bytes = payload
            .strip_prefix("close ")
            .map_or(payload.len(), |how| how.len() + 2);
        BatchMessage {
            end: u32::try_from(bytes.len()).unwrap(),
            header_bytes: u8::try_from(bytes.len() - start - payload_bytes).unwrap(),
            kind,
            sender: None,
        }
    });
    let messages = messages.collect();
    Arc::new(Batch {
        bytes,
        messages,
        published: Tick::from_ms(999),
    })
}

/// The API sends `messages` to `room` on a shard that is alone.
fn publish(world: &mut World, room: &str, messages: &[&str]) {
    let (room, batch) = (RoomName::from(room), batch(messages));
    world.downstream(Downstream::Publish { room, batch });
}

fn deliver(world: &mut World, room: &str, messages: &[&str]) {
    let (room, batch) = (RoomName::from(room), batch(messages));
    world.downstream(Downstream::Delivery { room, batch });
}

fn join(world: &mut World, path: &str) -> u32 {
    let index = world.open();
    world.send(index, &request(&format!("/rooms/{path}")));
    index
}

fn stands(world: &mut World, room: &str) {
    let (room, leased) = (RoomName::from(room), false);
    world.downstream(Downstream::Joined { room, leased });
}

fn refuses(world: &mut World, room: &str) {
    let room = RoomName::from(room);
    world.downstream(Downstream::JoinRefused { room });
}

fn is_in(world: &mut World, index: u32) -> bool {
    !world.peer(index).received.is_empty() && world.http(index).starts_with("HTTP/1.1 101 ")
}

/// Interests that were sent up since the last look.
fn interests(world: &mut World) -> Vec<String> {
    let in_words = |envelope| match envelope {
        Upstream::Interest { room } => format!("+{room}"),
        Upstream::Disinterest { room } => format!("-{room}"),
        other => panic!("{other:?}"),
    };
    let forwarded = std::mem::take(&mut world.forwarded);
    let words: Vec<String> = forwarded.into_iter().map(in_words).collect();
    words
        .iter()
        .map(|word| word.replace('\u{1}', "user ").replace('\u{2}', "all"))
        .collect()
}

#[test]
fn a_message_to_a_user_reaches_its_connections_in_all_rooms_and_nobody_else() {
    let mut world = World::new(options());
    let ann = [world.join("a?user=ann"), world.join("b?user=ann")];
    let others = [world.join("a?user=bob"), world.join("a")];
    publish(&mut world, &user_room("ann"), &["one", "two"]);
    world.send(others[1], &text("in the room"));
    assert_eq!(world.texts(ann[0]), ["one", "two", "in the room"]);
    assert_eq!(world.texts(ann[1]), ["one", "two"]);
    for other in others {
        assert_eq!(world.texts(other), ["in the room"]);
    }
    publish(&mut world, &user_room("nobody"), &["to nobody"]);
    assert_eq!(world.shard.snapshot().gauges.users, 2);
    assert_eq!(world.shard.snapshot().gauges.rooms, 2);
}

#[test]
fn everybody_hears_a_broadcast_in_one_fan_out() {
    let mut world = World::new(options());
    let members = [
        world.join("a?user=ann"),
        world.join("b"),
        world.join("c?echo=0"),
    ];
    let asking = world.open();
    let before = world.fan_outs;
    publish(&mut world, EVERYBODY, &["to all"]);
    assert_eq!(world.fan_outs, before + 1);
    for member in members {
        assert_eq!(world.texts(member), ["to all"]);
    }
    assert!(world.peer(asking).received.is_empty(), "it is not in");
    world.send(members[0], &super::world::close(1000));
    assert_eq!(world.texts(members[0]), ["close 1000"]);
    publish(&mut world, EVERYBODY, &["again"]);
    assert!(world.texts(members[0]).is_empty(), "it has left");
}

#[test]
fn whatever_the_order_of_leaving_who_is_left_hears() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0], [0, 2, 1]] {
        let mut world = World::new(options());
        // Three of one user in one room, and three of none between them.
        let members: Vec<u32> = (0..6)
            .map(|place| world.join(if place % 2 == 0 { "a?user=ann" } else { "a" }))
            .collect();
        let mut left: Vec<u32> = (0..3).map(|place| members[2 * place]).collect();
        for place in order {
            let gone = members[2 * place];
            left.retain(|index| *index != gone);
            world.ended(gone, true);
            assert!(world.is_gone(gone));
            publish(&mut world, &user_room("ann"), &["still"]);
            for index in &left {
                assert_eq!(world.texts(*index), ["still"]);
            }
        }
        let gauges = world.shard.snapshot().gauges;
        assert_eq!((gauges.users, gauges.connections_open), (0, 3));
        assert!(world.texts(members[1]).is_empty());
    }
}

#[test]
fn an_identity_is_charged_and_given_back() {
    let mut world = World::new(options());
    let plain = world.join("a");
    let one = world.held_bytes();
    let short = world.join("a?user=a");
    let of_user = world.held_bytes() - one;
    assert!(of_user > one, "it holds more than one without a user");
    let long = world.join(&format!("a?user={}", "u".repeat(101)));
    assert_eq!(world.held_bytes(), one + 2 * of_user + 200);
    for index in [plain, short, long] {
        world.ended(index, true);
    }
    assert_eq!(world.held_bytes(), 0);
}

#[test]
fn a_user_that_has_as_many_connections_as_it_may_reads_so() {
    let options = Options {
        user_connection_count_max: 2,
        ..options()
    };
    let node = Arc::try_unwrap(node(&options)).unwrap();
    let node = Arc::new(node.limit_users(options.user_connection_count_max, 1));
    let mut world = World::on(options, Delivery::Inline, 0, node);
    let first = world.join("a?user=ann");
    world.join("b?user=ann");
    let refused = join(&mut world, "a?user=ann");
    let answer = world.http(refused);
    assert!(answer.starts_with("HTTP/1.1 429 Too Many Requests"));
    assert!(answer.contains("Retry-After: "));
    assert_eq!(world.counters().refused[RefusalKind::UserFull as usize], 1);
    world.join("a?user=bob");
    world.join("a");
    world.ended(first, true);
    world.join("a?user=ann");
}

#[test]
fn a_full_room_table_does_not_keep_a_users_place() {
    let options = Options {
        user_connection_count_max: 1,
        room_count_max: 1,
        ..options()
    };
    let node = Arc::try_unwrap(node(&options)).unwrap();
    let node = Arc::new(node.limit_users(1, 1));
    let mut world = World::on(options, Delivery::Inline, 0, node);
    world.join("a?user=bob");
    let refused = join(&mut world, "b?user=ann");
    assert!(world.http(refused).starts_with("HTTP/1.1 503 "));
    let index = world.join("a?user=ann");
    publish(&mut world, &user_room("ann"), &["in"]);
    assert_eq!(world.texts(index), ["in"]);
}

// --- who is let in when ----------------------------------------------------------------------------------------------

#[test]
fn the_answer_waits_for_both_rooms_whichever_stands_first() {
    for order in [["one", "\u{1}ann"], ["\u{1}ann", "one"]] {
        let mut world = World::on_bus(options());
        let index = join(&mut world, "one?user=ann");
        assert_eq!(interests(&mut world), ["+one", "+user ann"]);
        stands(&mut world, order[0]);
        assert!(world.peer(index).received.is_empty(), "one is missing");
        deliver(&mut world, order[0], &["too early"]);
        stands(&mut world, order[1]);
        assert!(is_in(&mut world, index));
        deliver(&mut world, "\u{1}ann", &["to ann"]);
        deliver(&mut world, "one", &["in one"]);
        assert_eq!(world.texts(index), ["to ann", "in one"]);
        // A second one is in at once: both stand.
        let second = join(&mut world, "one?user=ann");
        assert!(is_in(&mut world, second));
        world.ended(index, true);
        assert!(interests(&mut world).is_empty());
        world.ended(second, true);
        assert_eq!(interests(&mut world), ["-one", "-user ann"]);
    }
}

#[test]
fn what_was_gathered_before_it_is_let_in_is_not_for_it() {
    let mut world = World::on_bus(options());
    let member = join(&mut world, "one?user=ann");
    stands(&mut world, "one");
    stands(&mut world, "\u{1}ann");
    assert!(is_in(&mut world, member));
    let index = join(&mut world, "two?user=ann");
    // All in one turn: two messages, the answer that lets it in, another message.
    for (room, message) in [("\u{1}ann", "old"), (EVERYBODY, "old, too")] {
        let (room, batch) = (RoomName::from(room), batch(&[message]));
        let envelope = Downstream::Delivery { room, batch };
        let input = crate::shard::Input::Downstream(envelope);
        world.shard.handle(input, world.now);
    }
    let (room, leased) = (RoomName::from("two"), false);
    let input = crate::shard::Input::Downstream(Downstream::Joined { room, leased });
    world.shard.handle(input, world.now);
    deliver(&mut world, "\u{1}ann", &["new"]);
    assert!(is_in(&mut world, index));
    assert_eq!(world.texts(index), ["new"]);
    assert_eq!(world.texts(member), ["old", "old, too", "new"]);
}

#[test]
fn who_is_refused_for_its_room_leaves_its_users_as_if_it_had_never_been() {
    let mut world = World::on_bus(options());
    let tab = join(&mut world, "one?user=bob");
    stands(&mut world, "one");
    stands(&mut world, "\u{1}bob");
    assert!(is_in(&mut world, tab));
    interests(&mut world);
    let refused = join(&mut world, "two?user=bob");
    refuses(&mut world, "two");
    assert!(world.http(refused).starts_with("HTTP/1.1 503 "));
    assert_eq!(interests(&mut world), ["+two", "-two"]);
    deliver(&mut world, "\u{1}bob", &["to bob"]);
    assert_eq!(world.texts(tab), ["to bob"]);
    // Also where its user's was refused before.
    let refused = join(&mut world, "two?user=ann");
    refuses(&mut world, "\u{1}ann");
    assert!(world.peer(refused).received.is_empty(), "its room is owed");
    refuses(&mut world, "two");
    assert!(world.http(refused).starts_with("HTTP/1.1 503 "));
    assert_eq!(
        interests(&mut world),
        ["+two", "+user ann", "-two", "-user ann"]
    );
    world.pass(2_000);
    assert!(interests(&mut world).is_empty(), "nobody wants it any more");
}

#[test]
fn a_users_room_that_is_refused_keeps_nobody_out_and_its_members_are_told_when_it_stands() {
    let mut world = World::on_bus(Options {
        heartbeat: HeartbeatMode::Tcp,
        ..options()
    });
    let member = join(&mut world, "one");
    stands(&mut world, "one");
    assert!(is_in(&mut world, member));
    let (early, silent) = (
        join(&mut world, "one?user=ann"),
        join(&mut world, "one?user=ann&notices=0"),
    );
    assert_eq!(interests(&mut world), ["+one", "+user ann"]);
    refuses(&mut world, "\u{1}ann");
    assert!(is_in(&mut world, early) && is_in(&mut world, silent));
    let late = join(&mut world, "one?user=ann");
    assert!(is_in(&mut world, late), "nobody waits for it now");
    deliver(&mut world, "one", &["in one"]);
    deliver(&mut world, "\u{1}ann", &["unheard"]);
    for index in [member, early, silent, late] {
        assert_eq!(world.texts(index), ["in one"]);
    }
    world.pass(500);
    assert!(interests(&mut world).is_empty(), "it rests");
    world.pass(500);
    assert_eq!(interests(&mut world), ["-user ann", "+user ann"]);
    for _ in 0..3 {
        world.pass(1_500);
        assert!(interests(&mut world).is_empty(), "the answer is due");
        refuses(&mut world, "\u{1}ann");
        world.pass(1);
        assert_eq!(
            interests(&mut world),
            ["-user ann", "+user ann"],
            "it was asked for long ago"
        );
    }
    world.pass(1_000);
    stands(&mut world, "\u{1}ann");
    deliver(&mut world, "\u{1}ann", &["to ann"]);
    for index in [early, late] {
        assert_eq!(world.texts(index), [UNKNOWN, "to ann"]);
    }
    assert_eq!(world.texts(silent), ["to ann"]);
    assert!(world.texts(member).is_empty());
    // Once; and who comes now has missed nothing.
    let after = join(&mut world, "one?user=ann");
    assert!(is_in(&mut world, after));
    world.pass(1_500);
    for index in [early, silent, late, after] {
        assert!(world.texts(index).is_empty());
    }
    assert!(interests(&mut world).is_empty());
}

#[test]
fn who_comes_after_all_have_left_an_absent_room_waits_for_it_as_the_first_did() {
    let mut world = World::on_bus(options());
    let gone = join(&mut world, "one?user=ann");
    stands(&mut world, "one");
    refuses(&mut world, "\u{1}ann");
    assert!(is_in(&mut world, gone));
    world.pass(1_000);
    world.ended(gone, true);
    interests(&mut world);
    // Its answer is still due when the next one comes.
    let next = join(&mut world, "one?user=ann");
    stands(&mut world, "one");
    refuses(&mut world, "\u{1}ann");
    assert!(
        world.peer(next).received.is_empty(),
        "the answer was the given up one's"
    );
    stands(&mut world, "\u{1}ann");
    assert!(is_in(&mut world, next));
    assert!(world.texts(next).is_empty(), "it has missed nothing");
}

#[test]
fn who_goes_while_it_waits_takes_both_interests_back_and_late_answers_let_nobody_in() {
    let mut world = World::on_bus(options());
    let index = join(&mut world, "one?user=ann");
    stands(&mut world, "one");
    world.ended(index, true);
    assert!(world.is_gone(index));
    assert_eq!(
        interests(&mut world),
        ["+one", "+user ann", "-one", "-user ann"]
    );
    // It asks again before the answer to the interest that was given up has come.
    let again = join(&mut world, "one?user=ann");
    stands(&mut world, "\u{1}ann");
    assert!(world.peer(again).received.is_empty());
    stands(&mut world, "one");
    assert!(
        world.peer(again).received.is_empty(),
        "the first was the given up one"
    );
    stands(&mut world, "\u{1}ann");
    assert!(is_in(&mut world, again));
}

#[test]
fn nobody_is_let_in_before_everybodys_room_stands() {
    let node = node(&options());
    let mut world = World::begun(options(), Delivery::Bus, 0, node);
    world.turn();
    assert_eq!(interests(&mut world), ["+all"]);
    let (a, b) = (join(&mut world, "one"), join(&mut world, "two?user=ann"));
    for room in ["one", "two", "\u{1}ann"] {
        stands(&mut world, room);
    }
    assert!(world.peer(a).received.is_empty() && world.peer(b).received.is_empty());
    stands(&mut world, EVERYBODY);
    assert!(is_in(&mut world, a) && is_in(&mut world, b));
    deliver(&mut world, EVERYBODY, &["to all"]);
    for index in [a, b] {
        assert_eq!(world.texts(index), ["to all"]);
    }
}

#[test]
fn everybodys_room_that_is_refused_keeps_nobody_out_and_all_are_told_when_it_stands() {
    for leased in [false, true] {
        let options = Options {
            heartbeat: HeartbeatMode::Tcp,
            ..options()
        };
        let node = node(&options);
        let mut world = World::begun(options, Delivery::Bus, 0, node);
        let waited = join(&mut world, "one");
        let of_user = join(&mut world, "two?user=ann");
        stands(&mut world, "one");
        stands(&mut world, "\u{1}ann");
        assert_eq!(interests(&mut world), ["+all", "+one", "+two", "+user ann"]);
        refuses(&mut world, EVERYBODY);
        assert!(is_in(&mut world, waited));
        assert!(
            world.peer(of_user).received.is_empty(),
            "its own room is owed"
        );
        world.pass(900);
        assert!(interests(&mut world).is_empty());
        stands(&mut world, "two");
        assert!(is_in(&mut world, of_user));
        world.pass(200);
        assert_eq!(interests(&mut world), ["-all", "+all"]);
        let late = join(&mut world, "one");
        assert!(is_in(&mut world, late), "nor does anybody wait meanwhile");
        let waits = join(&mut world, "three");
        let room = RoomName::from(EVERYBODY);
        world.downstream(Downstream::Joined { room, leased });
        stands(&mut world, "three");
        assert!(is_in(&mut world, waits));
        if leased {
            publish(&mut world, EVERYBODY, &["to all"]);
        } else {
            deliver(&mut world, EVERYBODY, &["to all"]);
        }
        for index in [waited, of_user, late] {
            assert_eq!(world.texts(index), [UNKNOWN, "to all"]);
        }
        assert_eq!(world.texts(waits), ["to all"], "it came behind that");
        world.pass(3_000);
        assert_eq!(interests(&mut world), ["+three"]);
    }
}

#[test]
fn everybodys_lease_is_given_back_when_another_shard_comes() {
    let node = node(&options());
    let mut world = World::begun(options(), Delivery::Bus, 0, node);
    world.turn();
    let room = RoomName::from(EVERYBODY);
    let leased = true;
    world.downstream(Downstream::Joined { room, leased });
    let index = join(&mut world, "one");
    stands(&mut world, "one");
    assert!(is_in(&mut world, index));
    publish(&mut world, EVERYBODY, &["mine"]);
    world.forwarded.clear();
    let room = RoomName::from(EVERYBODY);
    world.downstream(Downstream::LeaseRevoke { room });
    assert!(
        matches!(&world.forwarded[..], [Upstream::LeaseReturned { room }] if **room == *EVERYBODY)
    );
    deliver(&mut world, EVERYBODY, &["ours"]);
    assert_eq!(world.texts(index), ["mine", "ours"]);
}

// --- closing ---------------------------------------------------------------------------------------------------------

#[test]
fn a_disconnect_comes_behind_what_was_sent_before_and_before_everything_else() {
    let mut world = World::new(options());
    let tabs = [world.join("a?user=ann"), world.join("b?user=ann&notices=0")];
    let other = world.join("a?user=bob");
    publish(
        &mut world,
        &user_room("ann"),
        &["one", "close reconnect", "lost", "close again"],
    );
    let notice = r#"{"type":"reconnect","after_ms":"#;
    let heard = world.texts(tabs[0]);
    assert_eq!(heard.len(), 3);
    assert_eq!((&*heard[0], &*heard[2]), ("one", "close 4001"));
    assert!(heard[1].starts_with(notice), "{heard:?}");
    assert_eq!(world.texts(tabs[1]), ["one", "close 4001"]);
    assert_eq!(world.closed(CloseReason::Disconnected), 2);
    assert_eq!(world.shard.snapshot().gauges.users, 1);
    publish(&mut world, &user_room("ann"), &["to nobody"]);
    publish(&mut world, EVERYBODY, &["to bob"]);
    assert_eq!(world.texts(other), ["to bob"]);
    // Who comes back is a user like any other.
    let again = world.join("a?user=ann");
    publish(&mut world, &user_room("ann"), &["again"]);
    assert_eq!(world.texts(again), ["again"]);
}

#[test]
fn a_disconnect_cuts_who_is_being_let_in_and_leaves_others_in_their_rooms() {
    let mut world = World::on_bus(options());
    let tab = join(&mut world, "one?user=ann");
    let neighbour = join(&mut world, "one");
    stands(&mut world, "one");
    stands(&mut world, "\u{1}ann");
    assert!(is_in(&mut world, tab) && is_in(&mut world, neighbour));
    let waits = join(&mut world, "two?user=ann");
    deliver(&mut world, "\u{1}ann", &["close now"]);
    assert_eq!(world.texts(tab), ["close 4001"]);
    assert!(world.is_gone(waits), "its room does not stand yet");
    deliver(&mut world, "one", &["still here"]);
    assert_eq!(world.texts(neighbour), ["still here"]);
}

#[test]
fn a_disconnect_and_the_answer_that_lets_it_in_may_come_in_one_turn() {
    let mut world = World::on_bus(options());
    let tab = join(&mut world, "one?user=ann");
    stands(&mut world, "one");
    stands(&mut world, "\u{1}ann");
    assert!(is_in(&mut world, tab));
    let waits = join(&mut world, "two?user=ann");
    let (room, batch) = (user_room("ann"), batch(&["close now"]));
    let envelope = Downstream::Delivery { room, batch };
    let input = crate::shard::Input::Downstream(envelope);
    world.shard.handle(input, world.now);
    stands(&mut world, "two");
    assert_eq!(world.texts(tab), ["close 4001"]);
    assert!(world.is_gone(waits));
}

#[test]
fn a_close_frame_finds_room_in_a_full_queue_behind_what_waits_there() {
    let options = Options {
        connection_queue_bytes_max: 1_024,
        message_bytes_max: 1_000,
        ..options()
    };
    let mut world = World::new(options);
    let slow = world.join("drop-newest?user=ann");
    world.stick(slow);
    let long = "x".repeat(900);
    for _ in 0..5 {
        publish(&mut world, &user_room("ann"), &[&long]);
    }
    publish(&mut world, &user_room("ann"), &["close now"]);
    world.unstick(slow);
    let heard = world.texts(slow);
    assert_eq!(heard.last().unwrap(), "close 4001");
    let dropped = world.dropped(DropPolicy::DropNewest);
    let notice = format!(r#"{{"type":"gap","missed":{dropped}}}"#);
    assert!(dropped > 0 && heard.contains(&notice), "{heard:?}");
}

// --- slow ones and gaps ----------------------------------------------------------------------------------------------

#[test]
fn a_slow_connection_meets_the_policy_of_its_own_room() {
    let options = Options {
        connection_queue_bytes_max: 1_024,
        message_bytes_max: 1_000,
        ..options()
    };
    for room in ["", "\u{1}ann"] {
        let mut world = World::new(options.clone());
        let room = if room.is_empty() { EVERYBODY } else { room };
        let slow = ["disconnect", "drop-oldest", "latest"]
            .map(|policy| world.join(&format!("{policy}?user=ann")));
        for index in slow {
            world.stick(index);
        }
        let reader = world.join("other?user=ann");
        let messages: Vec<String> = (0..6)
            .map(|number| format!("{number}{}", "x".repeat(400)))
            .collect();
        for message in &messages {
            publish(&mut world, room, &[message]);
            assert_eq!(world.texts(reader), [&**message], "it is not slow");
        }
        assert_eq!(world.closed(CloseReason::SlowConsumer), 1);
        assert!(world.dropped(DropPolicy::DropOldest) > 0);
        assert!(world.dropped(DropPolicy::Latest) > 0);
        world.unstick(slow[2]);
        let heard = world.texts(slow[2]);
        assert_eq!(heard.last(), messages.last());
        assert!(
            heard
                .iter()
                .any(|text| text.starts_with(r#"{"type":"gap""#))
        );
    }
}

#[test]
fn a_gap_reaches_a_user_or_everybody_and_unknown_ones_of_several_rooms_are_told_once() {
    let mut world = World::on_bus(options());
    let ann = join(&mut world, "one?user=ann");
    let other = join(&mut world, "one");
    stands(&mut world, "one");
    stands(&mut world, "\u{1}ann");
    assert!(is_in(&mut world, ann) && is_in(&mut world, other));
    let gap = |world: &mut World, room: &str, missed| {
        let room = RoomName::from(room);
        world.downstream(Downstream::Gap { room, missed });
    };
    gap(&mut world, "\u{1}ann", Some(3));
    assert_eq!(world.texts(ann), [r#"{"type":"gap","missed":3}"#]);
    assert!(world.texts(other).is_empty());
    let unknown = UNKNOWN;
    // All in one turn.
    for room in ["one", "\u{1}ann", EVERYBODY] {
        let (room, missed) = (RoomName::from(room), None);
        let input = crate::shard::Input::Downstream(Downstream::Gap { room, missed });
        world.shard.handle(input, world.now);
    }
    world.turn();
    assert_eq!(world.texts(ann), [unknown]);
    assert_eq!(world.texts(other), [unknown]);
    // Whoever has fetched the state since does not know what was lost later.
    gap(&mut world, EVERYBODY, None);
    assert_eq!(world.texts(other), [unknown]);
    assert_eq!(world.texts(ann), [unknown]);
    gap(&mut world, EVERYBODY, Some(2));
    assert_eq!(world.texts(other), [r#"{"type":"gap","missed":2}"#]);
    // What came in between is between them, also where nothing has left.
    for index in [ann, other] {
        world.texts(index);
        world.stick(index);
    }
    gap(&mut world, "one", None);
    gap(&mut world, "one", None);
    deliver(&mut world, "one", &["hello"]);
    gap(&mut world, EVERYBODY, None);
    for index in [ann, other] {
        world.unstick(index);
        assert_eq!(world.texts(index), [unknown, unknown, "hello", unknown]);
    }
}

#[test]
fn a_drain_closes_users_as_anybody_and_leaves_nothing() {
    let options = Options {
        heartbeat: HeartbeatMode::Tcp,
        ..options()
    };
    let mut world = World::new(options);
    let tabs = [world.join("a?user=ann"), world.join("b?user=ann")];
    let order = crate::bus::DrainOrder::Close {
        window_ms: 0,
        notice: false,
    };
    world.downstream(Downstream::Drain(order));
    for tab in tabs {
        assert_eq!(world.texts(tab), ["close 1012"]);
        world.ended(tab, false);
    }
    let gauges = world.shard.snapshot().gauges;
    assert_eq!((gauges.users, gauges.ledger_bytes), (0, 0));
}
