//! The backplane core's state machine: envelopes from shards in, envelopes to shards out.

use std::collections::VecDeque;
use std::sync::Arc;

use super::ShardSet;
use super::interest::{Change, Effect, InterestTable, Route};
use super::probe::Probes;
use super::registry::Registry;
use super::remote::offer::RemoteSide;
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
    pub(super) table: InterestTable,
    pub(super) stalled: StalledLanes,
    probes: Probes,
    /// By shard.
    questions_open: Vec<usize>,
    drain_orders_given: usize,
    pub(super) actions: VecDeque<Action>,
    pub(super) counts: BackplaneSnapshot,
    /// Redis, if the node is one of several.
    pub(super) remote: Option<Box<RemoteSide>>,
    /// Who is connected where, if it is kept at Redis.
    pub(super) registry: Option<Box<Registry>>,
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
            remote: None,
            registry: None,
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
        if self.remote.is_some() {
            return self.offer_remote(from, envelope, now);
        }
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
        if self.remote.is_some() {
            return self.retry_remote(now);
        }
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
    /// Nothing was published, for the reason given.
    pub fn publish(
        &mut self,
        room: &RoomName,
        batch: &Arc<Batch>,
        lanes: &impl LaneRoom,
        now: Tick,
    ) -> Result<(), NotPublished> {
        self.assert_drained();
        if self.remote.is_some() {
            return self.publish_remote(room, batch, now);
        }
        let route = if self.options.inline {
            Route::Order(CoreId(0))
        } else {
            self.table.route(room)
        };
        let plan = Plan::publish(route, batch);
        if !plan.blocked(self.stalled.claims(), lanes).is_empty() {
            return Err(NotPublished::BusFull);
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
        self.handle_deadline_remote(now);
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
        let probes = self.probes.next_deadline();
        let others = [self.next_deadline_remote(), self.next_deadline_registry()];
        others.into_iter().flatten().fold(probes, Tick::min)
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
            users: self.table.user_count() as u64,
            lanes_stalled: self.stalled.count() as u64,
            stalled_us: self
                .stalled
                .oldest()
                .map_or(0, |since| now.since(since))
                .max(self.remote.as_ref().map_or(0, |side| side.crowded_us(now))),
            probe_round_trip: self.probes.round_trip().clone(),
            redis: self.snapshot_remote(now),
            registry: self.snapshot_registry(now),
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
    pub(super) fn assert_drained(&self) {
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
            Upstream::ProbeReply { .. }
            | Upstream::Answer { .. }
            | Upstream::Presence { .. }
            | Upstream::Drained => {
                self.handle_answer(from, envelope, now);
            }
        }
    }

    /// What a shard says of itself, whatever the mode.
    pub(super) fn handle_answer(&mut self, from: CoreId, envelope: Upstream, now: Tick) {
        match envelope {
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
            Upstream::Presence { notes } => self.note_presence(notes, now),
            Upstream::Drained => self.actions.push_back(Action::Drained { from }),
            Upstream::Publish { .. }
            | Upstream::Interest { .. }
            | Upstream::Disinterest { .. }
            | Upstream::LeaseReturned { .. } => {
                unreachable!("rooms are the modes' own")
            }
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
            Upstream::ProbeReply { .. }
            | Upstream::Answer { .. }
            | Upstream::Presence { .. }
            | Upstream::Drained => Self::change(Effect::None),
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

/// Why a publish of the admin API was not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPublished {
    /// A lane that it goes to, or the buffer before Redis, is full for the moment.
    BusFull,
    /// Redis cannot be reached.
    BackplaneLost {
        /// Members on this node got it all the same.
        local: bool,
    },
}

#[cfg(test)]
mod tests;
