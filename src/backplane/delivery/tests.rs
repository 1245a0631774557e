//! The backplane by itself, lanes by hand.

use super::*;
use std::collections::HashMap;

/// Lanes by hand: room for so many envelopes and bytes; a missing entry takes anything.
#[derive(Default)]
struct Lanes(HashMap<u8, (usize, u32)>);

impl LaneRoom for Lanes {
    fn fits(&self, shard: CoreId, bytes: u32) -> bool {
        self.0
            .get(&shard.0)
            .is_none_or(|(count, room)| *count > 0 && bytes <= *room)
    }
}

const NOW: Tick = Tick(0);
const A: CoreId = CoreId(0);
const B: CoreId = CoreId(1);
const C: CoreId = CoreId(2);

fn room() -> RoomName {
    RoomName::from("room")
}

fn batch(bytes: usize) -> Arc<Batch> {
    Arc::new(Batch {
        bytes: vec![0; bytes],
        messages: Vec::new(),
        published: NOW,
    })
}

fn publish(bytes: usize) -> Upstream {
    Upstream::Publish {
        room: room(),
        batch: batch(bytes),
    }
}

/// Three shards in one room, the bus ordering it.
fn shared() -> Backplane {
    let mut backplane = Backplane::new(
        Options {
            leases: false,
            ..Options::new(3, 10)
        },
        1,
        NOW,
    );
    for shard in [A, B, C] {
        let _ = backplane.offer(
            shard,
            Upstream::Interest { room: room() },
            &Lanes::default(),
            NOW,
        );
        while backplane.poll_action().is_some() {}
    }
    backplane
}

fn sent(backplane: &mut Backplane) -> Vec<(u8, u32)> {
    std::iter::from_fn(|| backplane.poll_action())
        .map(|action| match action {
            Action::Send { to, bytes, .. } => (to.0, bytes),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_publish_goes_to_all_its_lanes_or_to_none_and_others_go_on() {
    let mut backplane = shared();
    let full = Lanes([(2, (0, 1_000))].into());
    assert_eq!(
        backplane.offer(A, publish(10), &full, NOW),
        Offered::Stalled
    );
    assert_eq!(sent(&mut backplane), []);
    assert!(!backplane.accepts(A));
    // Another lane whose envelope does not need the full one goes on.
    let other = Upstream::Interest {
        room: "other".into(),
    };
    assert_eq!(backplane.offer(B, other, &full, NOW), Offered::Handled);
    assert_eq!(sent(&mut backplane), [(1, 0)]);
    assert!(!backplane.retry(&full, NOW));
    assert!(backplane.retry(&Lanes::default(), NOW));
    assert_eq!(sent(&mut backplane), [(0, 10), (1, 10), (2, 10)]);
    assert!(backplane.accepts(A));
    assert!(!backplane.has_stalled());
    backplane.check_invariants();
}

#[test]
fn a_large_publish_is_not_overtaken_for_ever_by_small_ones() {
    let mut backplane = shared();
    let little = Lanes([(2, (9, 50))].into());
    assert_eq!(
        backplane.offer(A, publish(100), &little, NOW),
        Offered::Stalled
    );
    // It would fit, but A's envelope is older and wants the lane.
    assert_eq!(
        backplane.offer(B, publish(10), &little, Tick(5)),
        Offered::Stalled
    );
    assert_eq!(backplane.snapshot(Tick(7)).lanes_stalled, 2);
    assert_eq!(backplane.snapshot(Tick(7)).stalled_us, 7);
    assert!(!backplane.retry(&little, Tick(8)));
    let enough = Lanes([(2, (9, 100))].into());
    assert!(backplane.retry(&enough, Tick(9)));
    assert_eq!(sent(&mut backplane), [(0, 100), (1, 100), (2, 100)]);
    assert!(backplane.retry(&little, Tick(10)));
    assert_eq!(sent(&mut backplane), [(0, 10), (1, 10), (2, 10)]);
}

#[test]
fn a_stalled_envelope_keeps_claiming_every_lane_it_found_full() {
    let mut backplane = shared();
    let b_full = Lanes([(1, (0, 0))].into());
    let c_full = Lanes([(2, (0, 0))].into());
    assert_eq!(
        backplane.offer(A, publish(10), &b_full, NOW),
        Offered::Stalled
    );
    assert!(!backplane.retry(&c_full, NOW));
    // Both have room again for somebody else, but A is first.
    assert_eq!(
        backplane.offer(B, publish(1), &Lanes::default(), NOW),
        Offered::Stalled
    );
    assert!(backplane.retry(&Lanes::default(), NOW));
    assert_eq!(sent(&mut backplane), [(0, 10), (1, 10), (2, 10)]);
    assert!(backplane.retry(&Lanes::default(), NOW));
    assert_eq!(sent(&mut backplane), [(0, 1), (1, 1), (2, 1)]);
    assert!(!backplane.retry(&Lanes::default(), NOW));
}

#[test]
fn joins_and_revokes_wait_for_room_too() {
    let mut backplane = Backplane::new(Options::new(2, 10), 1, NOW);
    assert_eq!(
        backplane.offer(
            A,
            Upstream::Interest { room: room() },
            &Lanes::default(),
            NOW
        ),
        Offered::Handled
    );
    assert!(matches!(
        backplane.poll_action(),
        Some(Action::Send {
            to: A,
            envelope: Downstream::Joined { leased: true, .. },
            bytes: 0
        })
    ));
    let a_full = Lanes([(0, (0, 0))].into());
    assert_eq!(
        backplane.offer(B, Upstream::Interest { room: room() }, &a_full, NOW),
        Offered::Stalled
    );
    assert!(backplane.poll_action().is_none());
    // The holder leaves meanwhile: B's interest, still waiting, is the room's first now.
    assert_eq!(
        backplane.offer(A, Upstream::Disinterest { room: room() }, &a_full, NOW),
        Offered::Handled
    );
    assert!(backplane.retry(&a_full, NOW));
    assert!(matches!(
        backplane.poll_action(),
        Some(Action::Send {
            to: B,
            envelope: Downstream::Joined { leased: true, .. },
            ..
        })
    ));
    backplane.check_invariants();
}

#[test]
fn an_admin_publish_goes_to_the_lease_holder_until_the_revoke_and_is_delivered_behind_it() {
    let mut backplane = Backplane::new(Options::new(2, 10), 1, NOW);
    let lanes = Lanes::default();
    assert_eq!(
        backplane.publish(&room(), &batch(1), &lanes, NOW),
        Ok(()),
        "nobody is there, nobody is missed"
    );
    assert!(backplane.poll_action().is_none());
    let _ = backplane.offer(A, Upstream::Interest { room: room() }, &lanes, NOW);
    backplane.poll_action();
    backplane.publish(&room(), &batch(1), &lanes, NOW).unwrap();
    assert!(matches!(
        backplane.poll_action(),
        Some(Action::Send {
            to: A,
            envelope: Downstream::Publish { .. },
            bytes: 1
        })
    ));
    let _ = backplane.offer(B, Upstream::Interest { room: room() }, &lanes, NOW);
    assert!(matches!(
        backplane.poll_action(),
        Some(Action::Send {
            to: A,
            envelope: Downstream::LeaseRevoke { .. },
            ..
        })
    ));
    backplane.publish(&room(), &batch(1), &lanes, NOW).unwrap();
    assert!(matches!(
        backplane.poll_action(),
        Some(Action::Send {
            to: A,
            envelope: Downstream::Delivery { .. },
            ..
        })
    ));
    assert!(backplane.poll_action().is_none(), "B is not in yet");
    let _ = backplane.offer(A, Upstream::LeaseReturned { room: room() }, &lanes, NOW);
    assert!(matches!(
        backplane.poll_action(),
        Some(Action::Send {
            to: B,
            envelope: Downstream::Joined { leased: false, .. },
            ..
        })
    ));
    backplane.publish(&room(), &batch(1), &lanes, NOW).unwrap();
    assert_eq!(sent(&mut backplane), [(0, 1), (1, 1)]);
    let full = Lanes([(1, (0, 0))].into());
    assert_eq!(
        backplane.publish(&room(), &batch(1), &full, NOW),
        Err(NotPublished::BusFull)
    );
    assert!(backplane.poll_action().is_none());
}

#[test]
fn a_shard_that_is_alone_gets_every_admin_publish_though_it_tells_of_no_room() {
    let options = Options {
        inline: true,
        ..Options::new(1, 10)
    };
    let mut backplane = Backplane::new(options, 1, NOW);
    backplane
        .publish(&room(), &batch(3), &Lanes::default(), NOW)
        .unwrap();
    assert!(matches!(
        backplane.poll_action(),
        Some(Action::Send {
            to: A,
            envelope: Downstream::Publish { .. },
            bytes: 3
        })
    ));
}

#[test]
fn questions_are_bounded_until_they_are_answered() {
    let mut backplane = Backplane::new(Options::new(1, 10), 1, NOW);
    for request in 0..SHARD_QUESTION_COUNT_MAX as u64 {
        assert!(backplane.ask(A, request, Question::Stats));
    }
    assert!(!backplane.ask(A, 99, Question::Stats));
    while backplane.poll_action().is_some() {}
    let answer = Upstream::Answer {
        request: 3,
        reply: Reply::Disconnected(true),
    };
    assert_eq!(
        backplane.offer(A, answer, &Lanes::default(), NOW),
        Offered::Handled
    );
    assert!(matches!(
        backplane.poll_action(),
        Some(Action::Answer {
            from: A,
            request: 3,
            ..
        })
    ));
    assert!(backplane.ask(A, 99, Question::Stats));
}

#[test]
fn the_last_drain_order_that_fits_is_kept_for_the_cut() {
    let mut backplane = Backplane::new(Options::new(1, 10), 1, NOW);
    for _ in 0..2 * DRAIN_ORDER_COUNT_MAX {
        backplane.order_drain(DrainOrder::NotReady);
    }
    backplane.order_drain(DrainOrder::Cut);
    backplane.order_drain(DrainOrder::Cut);
    let orders: Vec<_> = std::iter::from_fn(|| backplane.poll_action()).collect();
    assert_eq!(orders.len(), DRAIN_ORDER_COUNT_MAX);
    assert!(matches!(
        orders.last(),
        Some(Action::SendControl {
            envelope: Downstream::Drain(DrainOrder::Cut),
            ..
        })
    ));
}
