//! The backplane with Redis: envelopes of shards into the [`Fleet`], its effects out to the shards.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::{Effect, Fleet, Options, Outlets, Published};
use crate::backplane::delivery::{Action, Backplane, LaneRoom, NotPublished, Offered};
use crate::backplane::interest::{Change, Route};
use crate::backplane::resp::Reply;
use crate::backplane::{self, ShardSet};
use crate::bus::{Batch, CoreId, Downstream, RoomName, Upstream};
use crate::metrics::RedisSnapshot;
use crate::time::Tick;

/// Redis, and what waits for the shards.
#[derive(Debug)]
pub struct RemoteSide {
    pub(super) remote: Fleet,
    outlets: Outlets,
    /// Answers to commands, for whoever gave them.
    pub(super) answers: VecDeque<(u64, Option<Reply>)>,
    /// Since when so much waits for some shard that publishers wait, too.
    crowded_since: Option<Tick>,
}

/// Publishers wait so long for a shard that does not keep up. After that it loses what it cannot take, and nobody else
/// waits for it.
const CROWDED_MAX: Duration = Duration::from_secs(1);

impl RemoteSide {
    /// Whether a publisher has to wait: Redis, or a shard here, does not keep up.
    fn must_pause(&self, room: &str, batch: &Batch, now: Tick) -> bool {
        let crowded = self.outlets.is_crowded()
            && self
                .crowded_since
                .is_none_or(|since| since.after(CROWDED_MAX) > now);
        crowded || self.remote.must_pause(room, batch, now)
    }

    /// For how long some shard has had too much waiting for it, microseconds.
    pub(in crate::backplane) fn crowded_us(&self, now: Tick) -> u64 {
        self.crowded_since.map_or(0, |since| now.since(since))
    }

    fn note_crowd(&mut self, now: Tick) {
        let since = self.crowded_since.unwrap_or(now);
        self.crowded_since = self.outlets.is_crowded().then_some(since);
    }

    fn has_to_wait(&self, envelope: &Upstream, now: Tick) -> bool {
        match envelope {
            Upstream::Publish { room, batch } => self.must_pause(room, batch, now),
            _ => false,
        }
    }
}

impl Backplane {
    /// A backplane that meets other nodes at a Redis. Every shard tells it of its rooms, and nobody has leases.
    #[must_use]
    pub fn with_redis(options: backplane::Options, redis: Options, seed: u64, now: Tick) -> Self {
        let outlets = Outlets::new(usize::from(options.shard_count), redis.backlog_bytes_max);
        let options = backplane::Options {
            leases: false,
            inline: false,
            ..options
        };
        let mut backplane = Self::new(options, seed, now);
        backplane.remote = Some(Box::new(RemoteSide {
            remote: Fleet::new(redis, seed, now),
            outlets,
            answers: VecDeque::new(),
            crowded_since: None,
        }));
        backplane
    }

    /// Hands what has come of the last inputs to the shards' outlets.
    pub fn settle(&mut self) {
        let Some(mut side) = self.remote.take() else {
            return;
        };
        while let Some(effect) = side.remote.poll_effect() {
            match effect {
                Effect::Answered { ticket, reply } => side.answers.push_back((ticket, reply)),
                effect => self.apply(&mut side.outlets, effect),
            }
        }
        self.remote = Some(side);
    }

    /// Moves one envelope from the outlets to a lane that has room: the action is to be performed before the next. False:
    /// there is none.
    pub fn deliver_next(&mut self, lanes: &impl LaneRoom) -> bool {
        let Some(side) = &mut self.remote else {
            return false;
        };
        let taken = side.outlets.take(|shard, bytes| lanes.fits(shard, bytes));
        let Some((to, envelope, bytes)) = taken else {
            return false;
        };
        if matches!(envelope, Downstream::Delivery { .. }) {
            self.counts.deliveries += 1;
        }
        self.actions.push_back(Action::Send {
            to,
            envelope,
            bytes,
        });
        true
    }

    /// Whether something waits for shards beyond their lanes.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        self.remote
            .as_ref()
            .is_some_and(|side| !side.outlets.is_empty())
    }

    /// Tells a shard something that may not be dropped.
    pub(in crate::backplane) fn tell(&mut self, to: CoreId, envelope: Downstream) {
        if let Some(side) = &mut self.remote {
            side.outlets.tell(to, envelope, 0);
        }
    }

    pub(in crate::backplane) fn offer_remote(
        &mut self,
        from: CoreId,
        envelope: Upstream,
        now: Tick,
    ) -> Offered {
        if self.has_to_wait(&envelope, now) {
            self.counts.stalls += 1;
            self.stalled.push(from, envelope, ShardSet::of(from), now);
            return Offered::Stalled;
        }
        self.handle_remote(from, envelope, now);
        Offered::Handled
    }

    pub(in crate::backplane) fn retry_remote(&mut self, now: Tick) -> bool {
        let Some(side) = &self.remote else {
            return false;
        };
        // What an envelope waits for is no lane: it stands for itself.
        let ready = self.stalled.take_ready(|from, envelope, _| {
            let own = ShardSet::of(from);
            let waits = side.has_to_wait(envelope, now);
            (if waits { own } else { ShardSet::EMPTY }, own)
        });
        match ready {
            Some((from, envelope)) => {
                self.handle_remote(from, envelope, now);
                true
            }
            None => false,
        }
    }

    fn has_to_wait(&self, envelope: &Upstream, now: Tick) -> bool {
        let side = self.remote.as_ref();
        side.is_some_and(|side| side.has_to_wait(envelope, now))
    }

    fn handle_remote(&mut self, from: CoreId, envelope: Upstream, now: Tick) {
        let Some(side) = &mut self.remote else {
            unreachable!("asked for with a Redis only")
        };
        match envelope {
            Upstream::Publish { room, batch } => {
                side.remote.publish(&room, &batch, Some(from), now);
                self.count(&batch);
            }
            Upstream::Interest { room } => {
                self.table.apply(from, &room, Change::Interest);
                side.remote.interest(from, &room, now);
            }
            Upstream::Disinterest { room } => {
                self.table.apply(from, &room, Change::Disinterest);
                let is_last = self.table.route(&room) == Route::Deliver(ShardSet::EMPTY);
                side.remote.disinterest(from, &room, is_last, now);
            }
            Upstream::LeaseReturned { .. } => {
                debug_assert!(false, "nobody was given a lease");
            }
            Upstream::ProbeReply { .. }
            | Upstream::Answer { .. }
            | Upstream::Presence { .. }
            | Upstream::Drained => {
                self.handle_answer(from, envelope, now);
            }
        }
        self.settle();
    }

    pub(in crate::backplane) fn publish_remote(
        &mut self,
        room: &RoomName,
        batch: &Arc<Batch>,
        now: Tick,
    ) -> Result<(), NotPublished> {
        let Some(side) = &mut self.remote else {
            unreachable!("asked for with a Redis only")
        };
        if side.must_pause(room, batch, now) {
            return Err(NotPublished::BusFull);
        }
        let published = side.remote.publish(room, batch, None, now);
        self.settle();
        match published {
            Published::Taken => {
                self.count(batch);
                Ok(())
            }
            Published::Refused { local } => Err(NotPublished::BackplaneLost { local }),
        }
    }

    fn count(&mut self, batch: &Batch) {
        self.counts.batches += 1;
        self.counts.messages += batch.messages.len() as u64;
    }

    pub(in crate::backplane) fn handle_deadline_remote(&mut self, now: Tick) {
        if let Some(side) = &mut self.remote {
            side.note_crowd(now);
            side.remote.set_crowded(side.crowded_since.is_some(), now);
            side.remote.handle_deadline(now);
            self.settle();
        }
    }

    pub(in crate::backplane) fn next_deadline_remote(&self) -> Option<Tick> {
        self.remote.as_ref()?.remote.next_deadline()
    }

    pub(in crate::backplane) fn snapshot_remote(&self, now: Tick) -> RedisSnapshot {
        let Some(side) = &self.remote else {
            return RedisSnapshot::default();
        };
        RedisSnapshot {
            backlog_bytes: side.outlets.bytes(),
            backlog_dropped: side.outlets.dropped(),
            ..side.remote.snapshot(now)
        }
    }

    fn apply(&self, outlets: &mut Outlets, effect: Effect) {
        match effect {
            Effect::Joined { room, shards } => {
                for to in shards.iter() {
                    let (room, leased) = (room.clone(), false);
                    outlets.tell(to, Downstream::Joined { room, leased }, 0);
                }
            }
            Effect::JoinRefused { room, shards } => {
                for to in shards.iter() {
                    outlets.tell(to, Downstream::JoinRefused { room: room.clone() }, 0);
                }
            }
            Effect::Deliver { room, batch } => {
                let bytes = u32::try_from(batch.weight_bytes()).unwrap_or(u32::MAX);
                let count = batch.messages.len() as u64;
                for to in self.members(&room).iter() {
                    let envelope = Downstream::Delivery {
                        room: room.clone(),
                        batch: Arc::clone(&batch),
                    };
                    outlets.deliver(to, &room, envelope, bytes, count);
                }
            }
            Effect::Gap { room, missed } => {
                for to in self.members(&room).iter() {
                    let room = room.clone();
                    outlets.tell(to, Downstream::Gap { room, missed }, 0);
                }
            }
            Effect::Refused { to, batch, local } => {
                outlets.tell(to, Downstream::Refused { batch, local }, 0);
            }
            Effect::Answered { .. } => unreachable!("no shard gives commands"),
        }
    }

    fn members(&self, room: &str) -> ShardSet {
        match self.table.route(room) {
            Route::Deliver(shards) => shards,
            Route::Order(holder) => ShardSet::of(holder),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Address;
    use super::*;
    use crate::backplane::{Options as Shards, Ports, turn};
    use crate::bus::{BatchMessage, MessageKind};

    /// Lanes of two shards, of which the first takes nothing.
    struct Lanes {
        up: Vec<Upstream>,
        down: Vec<(CoreId, Downstream)>,
    }

    impl LaneRoom for Lanes {
        fn fits(&self, shard: CoreId, _: u32) -> bool {
            shard != CoreId(0)
        }
    }

    impl Ports for Lanes {
        fn take(&mut self, from: CoreId) -> Option<Upstream> {
            if from == CoreId(1) {
                self.up.pop()
            } else {
                None
            }
        }

        fn perform(&mut self, action: Action) {
            if let Action::Send { to, envelope, .. } = action {
                self.down.push((to, envelope));
            }
        }
    }

    fn publish(bytes: usize) -> Upstream {
        let message = BatchMessage {
            end: bytes as u32,
            header_bytes: 4,
            kind: MessageKind::Binary,
            sender: None,
        };
        Upstream::Publish {
            room: "r".into(),
            batch: Arc::new(Batch {
                bytes: vec![0; bytes],
                messages: vec![message],
                published: Tick(0),
            }),
        }
    }

    #[test]
    fn a_shard_that_takes_nothing_holds_publishers_up_for_a_second_and_no_longer() {
        let redis = Options {
            backlog_bytes_max: 10_000,
            ..Options::new(Address::parse("redis://x").unwrap())
        };
        let mut backplane = Backplane::with_redis(Shards::new(2, 10), redis, 7, Tick(0));
        let mut lanes = Lanes {
            up: vec![publish(100)],
            down: Vec::new(),
        };
        let side = backplane.remote.as_mut().unwrap();
        for _ in 0..6_000 / 64 {
            let room = RoomName::from("r");
            side.outlets
                .tell(CoreId(0), Downstream::JoinRefused { room }, 0);
        }
        turn(&mut backplane, &mut lanes, 0, Tick::from_ms(10));
        assert!(backplane.has_stalled(), "it waits");
        let settled = |backplane: &mut Backplane, lanes: &mut Lanes, ms| {
            turn(backplane, lanes, 0, Tick::from_ms(ms));
            !backplane.has_stalled()
        };
        assert!(!settled(&mut backplane, &mut lanes, 1_009));
        assert!(settled(&mut backplane, &mut lanes, 1_010));
        lanes.up.push(publish(100));
        assert!(
            settled(&mut backplane, &mut lanes, 5_000),
            "nor does the next"
        );
        let snapshot = backplane.snapshot(Tick::from_ms(5_000));
        assert_eq!((snapshot.messages, snapshot.stalled_us), (2, 4_990_000));
    }
}
