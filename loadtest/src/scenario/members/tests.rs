//! Who receives what, when, and what counts as lost.

use super::*;
use crate::client::Timetable;
use crate::dialect::Dialect;
use crate::scenario::cast::Back;

const MS: u64 = 1_000_000;
const AT_ONCE: Back = Back {
    first_ns: 1,
    max_ns: 1,
    jitter: 0.0,
    advice: true,
    next_target: false,
};

fn members(change: impl FnOnce(&mut Cast)) -> Members {
    let mut cast = Cast {
        dialect: Dialect::Raw,
        prefix: "test",
        rooms: 2,
        room_members: 2,
        publishers: 1,
        publish_on_first: false,
        targets: 1,
        size: "64".parse().unwrap(),
        interval_ns: 10 * MS,
        in_flight: None,
        stalled: 0,
        crawling: 0,
        crawl_bytes_per_s: 1,
        slow_come_back: false,
        churning: 0,
        churn_ns: 100 * MS,
        back: None,
        seed: 1,
    };
    change(&mut cast);
    let share = Share {
        worker: 0,
        worker_count: 1,
        member_count: cast.member_count(),
    };
    let mut members = Members::new(&Arc::new(cast), share);
    for local in 0..share.count() {
        members.opened(local, 0, &mut Reply::default());
    }
    members
}

fn deliver(members: &mut Members, local: u32, publisher: u32, sequence: u32, now_ns: u64) -> Reply {
    let mut payload = vec![0; 64];
    Stamp {
        publisher,
        sequence,
        due_ns: now_ns,
    }
    .write(&mut payload);
    let mut reply = Reply::default();
    let message = Message {
        opcode: throng::protocol::OpCode::Binary,
        payload: &payload,
    };
    members.message(local, message, now_ns, &mut reply);
    reply
}

fn traffic(from_ns: u64, to_ns: u64) -> Orders {
    Orders {
        timetable: Some(Timetable {
            traffic_from_ns: from_ns,
            measure_from_ns: from_ns,
            measure_to_ns: to_ns,
        }),
        ..Orders::default()
    }
}

#[test]
fn a_message_that_is_asked_for_leaves_at_its_moment_and_once() {
    let mut members = members(|_| {});
    let mut posts = Posts::default();
    let orders = Orders {
        bursts: (1, 50 * MS),
        ..Orders::default()
    };
    members.obey(&orders, 30 * MS);
    assert_eq!(members.turn(49 * MS, &mut posts), Some(50 * MS));
    assert_eq!(members.traffic().published, 0);
    assert_eq!(members.turn(50 * MS, &mut posts), None);
    assert_eq!(members.turn(90 * MS, &mut posts), None);
    assert_eq!(members.traffic().published, 2, "one in each room");
}

#[test]
fn who_is_refused_on_the_way_back_tries_again_with_longer_delays() {
    let mut members = members(|cast| {
        cast.back = Some(Back {
            first_ns: 100 * MS,
            max_ns: 300 * MS,
            jitter: 0.0,
            advice: true,
            next_target: false,
        });
    });
    let again = |verdict: Verdict| verdict.again_at_ns.unwrap();
    let dropped = members.closed(1, Cause::Dropped, 1_000 * MS);
    assert!(dropped.expected);
    assert_eq!(again(dropped), 1_100 * MS);
    assert_eq!(
        again(members.closed(1, Cause::Refused(503), 1_200 * MS)),
        1_400 * MS
    );
    assert_eq!(
        again(members.closed(1, Cause::Failed, 2_000 * MS)),
        2_300 * MS
    );
    members.opened(1, 2_500 * MS, &mut Reply::default());
    let tally = members.tally(&[0, 0]);
    assert!(times(&tally, "back").max().abs_diff(1_500 * MS) < 2 * MS);
    assert_eq!(tally.count("back_on_target_0"), 1);
}

#[test]
fn who_was_never_in_is_not_tried_again_and_who_leaves_for_good_is_not_awaited() {
    let mut members = members(|_| {});
    members.flags[0] = 0;
    assert_eq!(
        members.closed(0, Cause::Refused(503), 0),
        Verdict::default()
    );
    assert_eq!(
        members.closed(1, Cause::Closed(1006), 0),
        Verdict::default()
    );
    for local in [2, 3] {
        deliver(&mut members, local, 1, 0, MS);
    }
    let counts = members.tally(&[5, 2]).deliveries;
    assert_eq!(
        (counts.delivered, counts.lost),
        (2, 2),
        "one each of room 1, nothing of room 0"
    );
}

#[test]
fn who_comes_back_after_the_traffic_has_lost_nothing_and_who_then_hears_nothing_is_told() {
    let back = |at_ms: u64| {
        let mut members = members(|cast| cast.back = Some(AT_ONCE));
        members.obey(&traffic(0, 5_000 * MS), 0);
        deliver(&mut members, 1, 0, 0, MS);
        members.closed(1, Cause::Closed(1012), 500 * MS);
        members.opened(1, at_ms * MS, &mut Reply::default());
        members.flags[0] = 0; // the publisher itself is not asked
        members.tally(&[100, 0]).deliveries
    };
    let late = back(5_001);
    assert_eq!((late.lost, late.silent_after_return), (0, 0), "{late:?}");
    let early = back(600);
    assert_eq!((early.lost, early.silent_after_return), (0, 1), "{early:?}");
}

#[test]
fn a_servers_advice_is_taken_for_an_hour_at_most() {
    let mut members = members(|_| {});
    let message = Message {
        opcode: throng::protocol::OpCode::Text,
        payload: br#"{"type":"reconnect","after_ms":18446744073709551615}"#,
    };
    members.message(1, message, 0, &mut Reply::default());
    assert_eq!(members.advice_ns[&1], 3_600_000 * MS);
}

#[test]
fn what_was_missed_while_away_counts_only_when_nothing_was_published_meanwhile() {
    let gap_on_return = |orders: Orders| {
        let mut members = members(|cast| cast.back = Some(AT_ONCE));
        members.obey(&orders, 0);
        deliver(&mut members, 1, 0, 0, MS);
        members.closed(1, Cause::Dropped, 2 * MS);
        members.opened(1, 9 * MS, &mut Reply::default());
        deliver(&mut members, 1, 0, 3, 9 * MS);
        members.tally(&[4, 0]).deliveries.lost
    };
    assert_eq!(
        gap_on_return(traffic(0, 100 * MS)),
        4,
        "of its publisher itself"
    );
    assert_eq!(gap_on_return(Orders::default()), 4 + 2);
}

#[test]
fn publishers_keep_their_schedule_and_skip_what_was_due_while_they_were_away() {
    let mut members = members(|_| {});
    members.obey(&traffic(0, 100 * MS), 0);
    let mut posts = Posts::default();
    let mut now = 0;
    while let Some(due_ns) = members.turn(now, &mut posts) {
        if now > 50 * MS {
            members.closed(0, Cause::Left, now);
        }
        now = due_ns;
    }
    assert_eq!(
        members.published()[1],
        (1, 10),
        "the other room's, every 10 ms"
    );
    let published = members.published()[0].1;
    assert!((5..=6).contains(&published), "{published}");
    assert_eq!(members.counts["unpublished"], 10 - u64::from(published));
}

#[test]
fn traffic_that_is_told_to_end_sooner_goes_on_as_it_was_and_ends_there() {
    let mut members = members(|_| {});
    let mut posts = Posts::default();
    members.obey(&traffic(0, 1_000 * MS), 0);
    let next = members.turn(40 * MS, &mut posts);
    let before = members.published()[1].1;
    assert!((4..=5).contains(&before), "{before}");
    members.obey(&traffic(0, 60 * MS), 40 * MS);
    assert_eq!(
        members.turn(40 * MS, &mut posts),
        next,
        "nothing is due again"
    );
    assert_eq!(members.turn(500 * MS, &mut posts), None);
    assert_eq!(members.published()[1].1, 6, "those due before 60 ms");
    assert_eq!(members.windows.len(), 1);
}

#[test]
fn the_last_room_may_have_fewer_members_than_the_others() {
    let cast = members(|_| {}).cast;
    let share = Share {
        worker: 0,
        worker_count: 1,
        member_count: 3,
    };
    let mut members = Members::new(&cast, share);
    for local in 0..3 {
        members.opened(local, 0, &mut Reply::default());
    }
    deliver(&mut members, 2, 1, 0, MS);
    let counts = members.tally(&[0, 1]).deliveries;
    assert_eq!((counts.delivered, counts.lost), (1, 0));
}

#[test]
fn slow_members_that_were_cut_off_come_back_only_where_the_scenario_goes_on() {
    for slow_come_back in [false, true] {
        let mut members = members(|cast| {
            cast.stalled = 1;
            cast.slow_come_back = slow_come_back;
        });
        let cut = members.closed(4, Cause::Closed(4_000), 5 * MS);
        assert!(cut.expected);
        let again = slow_come_back.then_some(5 * MS + SLOW_AWAY_NS);
        assert_eq!(cut.again_at_ns, again);
        let refused = members.closed(4, Cause::Refused(503), 1_005 * MS);
        assert_eq!(refused.again_at_ns.is_some(), slow_come_back);
    }
}

#[test]
fn crawling_members_pause_for_as_long_as_their_bytes_take() {
    let mut members = members(|cast| {
        cast.crawling = 1;
        cast.stalled = 1;
        cast.crawl_bytes_per_s = 6_400;
    });
    let mut reply = Reply::default();
    members.opened(4, 0, &mut reply);
    assert_eq!(reply.pause_until_ns, Some(u64::MAX), "stalled");
    let reply = deliver(&mut members, 5, 1, 0, 7 * MS);
    assert_eq!(reply.pause_until_ns, Some(17 * MS));
    assert_eq!(members.tally(&[0, 0]).count("received_by_others"), 1);
}

#[test]
fn churning_members_leave_and_return() {
    let mut members = members(|cast| cast.churning = 3);
    let mut posts = Posts::default();
    let first = members.turn(0, &mut posts).unwrap();
    assert!((50 * MS..150 * MS).contains(&first));
    assert_eq!(
        members.turn(150 * MS, &mut posts),
        None,
        "all three have left"
    );
    for local in 4..7 {
        let verdict = members.closed(local, Cause::Left, 150 * MS);
        let back = verdict.again_at_ns.unwrap();
        assert!(verdict.expected && (200 * MS..300 * MS).contains(&back));
    }
    let refused = members.closed(5, Cause::Refused(503), 300 * MS);
    assert!(!refused.expected && refused.again_at_ns == Some(1_300 * MS));
    assert_eq!(members.tally(&[0, 0]).count("churned"), 3);
}
