//! The backplane core's state machine: envelopes from shards in, envelopes to shards out.

use std::collections::VecDeque;
use std::sync::Arc;

use super::ShardSet;
use super::interest::{Change, Effect, InterestTable, Route};
use super::probe::Probes;
use super::stall::StalledLanes;
use crate::bus::{Batch, CoreId, Downstream, DrainOrder, Question, Reply, RoomName, Upstream};
use crate::limits::{DRAIN_ORDER_COUNT_MAX, SHARD_COUNT_MAX, SHARD_QUESTION_COUNT_MAX};
use crate::metrics::BackplaneSnapshot;
use crate::time::Tick;

/// What the backplane may be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Shards: their ids are 0 to `shard_count` − 1.
    pub shard_count: u8,
    /// Rooms a shard may have members of; the table holds that many for every shard at most.
    pub room_count_max: u32,
    /// Whether a room's only shard may order it itself.
    pub leases: bool,
    /// The node's only shard orders every room itself and tells of none of them: what the admin API publishes goes to
    /// it, whatever the room. With one shard only.
    pub inline: bool,
    /// Between probes to a shard.
    pub probe_interval_ms: u32,
    /// From a probe to the verdict that the shard is stalled.
    pub probe_timeout_ms: u32,
}

impl Options {
    /// `shard_count` shards of `room_count_max` rooms each, everything else as usual.
    #[must_use]
    pub fn new(shard_count: u8, room_count_max: u32) -> Self {
        Self {
            shard_count,
            room_count_max,
            leases: true,
            inline: false,
            probe_interval_ms: 1_000,
            probe_timeout_ms: 3_000,
        }
    }
}

/// How much the lanes to the shards would take now.
pub trait LaneRoom {
    /// Whether the lane to `shard` takes one more data envelope with `bytes` of payload.
    fn fits(&self, shard: CoreId, bytes: u32) -> bool;
}

/// Work for the shell.
#[derive(Debug)]
pub enum Action {
    /// Send a data envelope with `bytes` of payload. The lane has room: it was looked at.
    Send {
        /// The shard.
        to: CoreId,
        /// The envelope.
        envelope: Downstream,
        /// Its payload.
        bytes: u32,
    },
    /// Send an envelope that may use the lane's control reserve. There is room by construction (see `limits`).
    SendControl {
        /// The shard.
        to: CoreId,
        /// The envelope.
        envelope: Downstream,
    },
    /// An answer to [`Backplane::ask`], for the admin API.
    Answer {
        /// The shard.
        from: CoreId,
        /// The question's number.
        request: u64,
        /// The answer.
        reply: Reply,
    },
    /// The shard has no connection left and accepts none.
    Drained {
        /// The shard.
        from: CoreId,
    },
}

/// What became of an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Offered {
    /// It was handled.
    Handled,
    /// A lane that it goes to is full. The backplane keeps it; its lane is not read until it was handled.
    Stalled,
}

/// The state machine of the backplane core.
///
/// One contract: **one input, then drain [`Self::poll_action`] to `None`, then the next input.** The view of the lanes
/// that is handed in must count everything that earlier actions have sent.
#[derive(Debug)]
pub struct Backplane {
    options: Options,
    table: InterestTable,
    stalled: StalledLanes,
    probes: Probes,
    /// By shard.
    questions_open: Vec<usize>,
    drain_orders_given: usize,
    actions: VecDeque<Action>,
    counts: BackplaneSnapshot,
}

impl Backplane {
    /// A backplane without rooms. `seed` spreads room names in the table.
    ///
    /// # Panics
    /// Without a shard, or with more than [`SHARD_COUNT_MAX`].
    #[must_use]
    pub fn new(options: Options, seed: u64, now: Tick) -> Self {
        let shard_count = usize::from(options.shard_count);
        assert!(
            (1..=SHARD_COUNT_MAX).contains(&shard_count),
            "{shard_count} shards"
        );
        assert!(
            !options.inline || shard_count == 1,
            "only a shard that is alone is inline"
        );
        Self {
            table: InterestTable::new(options.leases, seed),
            stalled: StalledLanes::default(),
            probes: Probes::new(
                options.shard_count,
                options.probe_interval_ms,
                options.probe_timeout_ms,
                now,
            ),
            questions_open: vec![0; shard_count],
            drain_orders_given: 0,
            actions: VecDeque::new(),
            counts: BackplaneSnapshot::default(),
            options,
        }
    }

    /// Shards.
    #[must_use]
    pub fn shard_count(&self) -> usize {
        usize::from(self.options.shard_count)
    }

    /// Whether the next envelope of this shard's lane may be offered: none of it waits here.
    #[must_use]
    pub fn accepts(&self, from: CoreId) -> bool {
        !self.stalled.contains(from)
    }

    /// Handles an envelope, or keeps it when a lane that it goes to has no room.
    ///
    /// # Panics
    /// When the lane is stalled already ([`Self::accepts`]).
    pub fn offer(
        &mut self,
        from: CoreId,
        envelope: Upstream,
        lanes: &impl LaneRoom,
        now: Tick,
    ) -> Offered {
        assert!(self.accepts(from), "a stalled lane is not read");
        self.assert_drained();
        let plan = Plan::new(&self.table, from, &envelope);
        let blocked = plan.blocked(self.stalled.claims(), lanes);
        if blocked.is_empty() {
            self.handle(from, envelope, plan, now);
            return Offered::Handled;
        }
        self.counts.stalls += 1;
        self.stalled.push(from, envelope, blocked, now);
        Offered::Stalled
    }

    /// Handles the oldest stalled envelope that may go by now. False: none may; else there may be more, after the
    /// actions have been performed.
    pub fn retry(&mut self, lanes: &impl LaneRoom, now: Tick) -> bool {
        self.assert_drained();
        let table = &self.table;
        let ready = self.stalled.take_ready(|from, envelope, claimed| {
            let plan = Plan::new(table, from, envelope);
            (plan.blocked(claimed, lanes), plan.targets)
        });
        match ready {
            Some((from, envelope)) => {
                let plan = Plan::new(&self.table, from, &envelope);
                self.handle(from, envelope, plan, now);
                true
            }
            None => false,
        }
    }

    /// Publishes on behalf of the admin API. The order is the one of all other publishes.
    ///
    /// # Errors
    /// A lane that it goes to is full, and nothing was published: try again later.
    pub fn publish(
        &mut self,
        room: &RoomName,
        batch: &Arc<Batch>,
        lanes: &impl LaneRoom,
    ) -> Result<(), BusFull> {
        self.assert_drained();
        let route = if self.options.inline {
            Route::Order(CoreId(0))
        } else {
            self.table.route(room)
        };
        let plan = Plan::publish(route, batch);
        if !plan.blocked(self.stalled.claims(), lanes).is_empty() {
            return Err(BusFull);
        }
        self.publish_planned(room, batch, plan);
        Ok(())
    }

    /// Asks a shard; the answer comes as [`Action::Answer`]. False: it owes too many answers already and was not asked.
    pub fn ask(&mut self, to: CoreId, request: u64, question: Question) -> bool {
        let open = &mut self.questions_open[usize::from(to.0)];
        if *open >= SHARD_QUESTION_COUNT_MAX {
            return false;
        }
        *open += 1;
        self.actions.push_back(Action::SendControl {
            to,
            envelope: Downstream::Ask { request, question },
        });
        true
    }

    /// Tells every shard of a phase of stopping. Orders beyond [`DRAIN_ORDER_COUNT_MAX`] are dropped, `Cut` excepted
    /// while it is the last one that fits.
    pub fn order_drain(&mut self, order: DrainOrder) {
        let last = self.drain_orders_given + 1 >= DRAIN_ORDER_COUNT_MAX;
        if self.drain_orders_given >= DRAIN_ORDER_COUNT_MAX || last && order != DrainOrder::Cut {
            return;
        }
        self.drain_orders_given += 1;
        for to in (0..self.options.shard_count).map(CoreId) {
            self.actions.push_back(Action::SendControl {
                to,
                envelope: Downstream::Drain(order),
            });
        }
    }

    /// Sends the probes that are due.
    pub fn handle_deadline(&mut self, now: Tick) {
        let actions = &mut self.actions;
        self.probes.handle_deadline(now, |to, sequence| {
            actions.push_back(Action::SendControl {
                to,
                envelope: Downstream::Probe { sequence },
            });
        });
    }

    /// When [`Self::handle_deadline`] is due next.
    #[must_use]
    pub fn next_deadline(&self) -> Tick {
        self.probes.next_deadline()
    }

    /// The next piece of work, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Shards that owe the answer to a probe for the timeout or longer.
    #[must_use]
    pub fn stalled_shards(&self, now: Tick) -> Vec<CoreId> {
        self.probes.stalled_shards(now).collect()
    }

    /// Whether some lane waits, so that [`Self::retry`] is worth a try when a shard has read.
    #[must_use]
    pub fn has_stalled(&self) -> bool {
        self.stalled.count() > 0
    }

    /// Everything counted, and what is held now.
    #[must_use]
    pub fn snapshot(&self, now: Tick) -> BackplaneSnapshot {
        BackplaneSnapshot {
            rooms: self.table.room_count() as u64,
            rooms_leased: self.table.leased_count() as u64,
            lanes_stalled: self.stalled.count() as u64,
            stalled_us: self.stalled.oldest().map_or(0, |since| now.since(since)),
            probe_round_trip: self.probes.round_trip().clone(),
            ..self.counts.clone()
        }
    }

    /// Checks what must hold between inputs. For tests: O(rooms).
    ///
    /// # Panics
    /// When something does not hold.
    pub fn check_invariants(&self) {
        let shard_count = usize::from(self.options.shard_count);
        self.table
            .check_invariants(shard_count, self.options.room_count_max as usize);
        self.assert_drained();
        assert!(self.stalled.count() <= shard_count);
        assert!(
            self.questions_open
                .iter()
                .all(|open| *open <= SHARD_QUESTION_COUNT_MAX)
        );
    }

    /// What an earlier input sends would be missing in the view of the lanes.
    fn assert_drained(&self) {
        assert!(
            self.actions.is_empty(),
            "actions are drained before the next input"
        );
    }

    fn handle(&mut self, from: CoreId, envelope: Upstream, plan: Plan, now: Tick) {
        match envelope {
            Upstream::Publish { room, batch } => self.publish_planned(&room, &batch, plan),
            Upstream::Interest { room } => self.change(from, &room, Change::Interest, plan),
            Upstream::Disinterest { room } => self.change(from, &room, Change::Disinterest, plan),
            Upstream::LeaseReturned { room } => {
                self.change(from, &room, Change::LeaseReturned, plan)
            }
            Upstream::ProbeReply { sequence } => self.probes.handle_reply(from, sequence, now),
            Upstream::Answer { request, reply } => {
                let open = &mut self.questions_open[usize::from(from.0)];
                debug_assert!(*open > 0, "an answer without a question");
                *open = open.saturating_sub(1);
                self.actions.push_back(Action::Answer {
                    from,
                    request,
                    reply,
                });
            }
            Upstream::Drained => self.actions.push_back(Action::Drained { from }),
        }
    }

    fn publish_planned(&mut self, room: &RoomName, batch: &Arc<Batch>, plan: Plan) {
        self.counts.batches += 1;
        self.counts.messages += batch.messages.len() as u64;
        let ordered_by_holder = matches!(plan.says, Says::Order);
        for to in plan.targets.iter() {
            let (room, batch) = (room.clone(), Arc::clone(batch));
            let envelope = if ordered_by_holder {
                Downstream::Publish { room, batch }
            } else {
                self.counts.deliveries += 1;
                Downstream::Delivery { room, batch }
            };
            self.actions.push_back(Action::Send {
                to,
                envelope,
                bytes: plan.bytes,
            });
        }
    }

    fn change(&mut self, from: CoreId, room: &RoomName, change: Change, plan: Plan) {
        self.table.apply(from, room, change);
        for to in plan.targets.iter() {
            let room = room.clone();
            let envelope = match plan.says {
                Says::Joined { leased } => {
                    self.counts.leases_granted += u64::from(leased);
                    Downstream::Joined { room, leased }
                }
                Says::Revoke => {
                    self.counts.leases_revoked += 1;
                    Downstream::LeaseRevoke { room }
                }
                Says::Order | Says::Deliver => {
                    unreachable!("a change of interest publishes nothing")
                }
            };
            self.actions.push_back(Action::Send {
                to,
                envelope,
                bytes: 0,
            });
        }
    }
}

/// What handling an envelope would write, and to which lanes: one envelope each.
#[derive(Debug, Clone, Copy)]
struct Plan {
    targets: ShardSet,
    /// Payload in each.
    bytes: u32,
    says: Says,
}

#[derive(Debug, Clone, Copy)]
enum Says {
    Order,
    Deliver,
    Joined { leased: bool },
    Revoke,
}

impl Plan {
    fn new(table: &InterestTable, from: CoreId, envelope: &Upstream) -> Self {
        match envelope {
            Upstream::Publish { room, batch } => Self::publish(table.route(room), batch),
            Upstream::Interest { room } => {
                Self::change(table.preview(from, room, Change::Interest))
            }
            Upstream::Disinterest { room } => {
                Self::change(table.preview(from, room, Change::Disinterest))
            }
            Upstream::LeaseReturned { room } => {
                Self::change(table.preview(from, room, Change::LeaseReturned))
            }
            Upstream::ProbeReply { .. } | Upstream::Answer { .. } | Upstream::Drained => {
                Self::change(Effect::None)
            }
        }
    }

    fn publish(route: Route, batch: &Batch) -> Self {
        let bytes = u32::try_from(batch.weight_bytes()).unwrap_or(u32::MAX);
        match route {
            Route::Order(holder) => Self {
                targets: ShardSet::of(holder),
                bytes,
                says: Says::Order,
            },
            Route::Deliver(targets) => Self {
                targets,
                bytes,
                says: Says::Deliver,
            },
        }
    }

    fn change(effect: Effect) -> Self {
        let (targets, says) = match effect {
            Effect::None => (ShardSet::EMPTY, Says::Deliver),
            Effect::Joined { shards, leased } => (shards, Says::Joined { leased }),
            Effect::Revoke(holder) => (ShardSet::of(holder), Says::Revoke),
        };
        Self {
            targets,
            bytes: 0,
            says,
        }
    }

    /// The lanes that have no room, or that an older envelope waits for.
    fn blocked(&self, claimed: ShardSet, lanes: &impl LaneRoom) -> ShardSet {
        self.targets
            .iter()
            .filter(|shard| claimed.contains(*shard) || !lanes.fits(*shard, self.bytes))
            .collect()
    }
}

/// A lane that the publish would go to is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusFull;

#[cfg(test)]
mod tests {
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
            backplane.publish(&room(), &batch(1), &lanes),
            Ok(()),
            "nobody is there, nobody is missed"
        );
        assert!(backplane.poll_action().is_none());
        let _ = backplane.offer(A, Upstream::Interest { room: room() }, &lanes, NOW);
        backplane.poll_action();
        backplane.publish(&room(), &batch(1), &lanes).unwrap();
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
        backplane.publish(&room(), &batch(1), &lanes).unwrap();
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
        backplane.publish(&room(), &batch(1), &lanes).unwrap();
        assert_eq!(sent(&mut backplane), [(0, 1), (1, 1)]);
        let full = Lanes([(1, (0, 0))].into());
        assert_eq!(backplane.publish(&room(), &batch(1), &full), Err(BusFull));
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
            .publish(&room(), &batch(3), &Lanes::default())
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
}
