//! The backplane with Redis: envelopes of shards into [`Remote`], its effects out to the shards.

use std::sync::Arc;

use super::{Effect, LinkOrder, LinkTrouble, Options, Outlets, Published, Remote, Role};
use crate::backplane::delivery::{Action, Backplane, LaneRoom, NotPublished, Offered};
use crate::backplane::interest::{Change, Route};
use crate::backplane::{self, ShardSet};
use crate::bus::{Batch, CoreId, Downstream, RoomName, Upstream};
use crate::metrics::RedisSnapshot;
use crate::time::Tick;

/// Redis, and what waits for the shards.
#[derive(Debug)]
pub struct RemoteSide {
    remote: Remote,
    outlets: Outlets,
}

impl RemoteSide {
    /// Whether a publisher has to wait: Redis, or a shard here, does not keep up.
    fn must_pause(&self, batch: &Batch, now: Tick) -> bool {
        self.outlets.is_crowded() || self.remote.must_pause(batch, now)
    }

    fn has_to_wait(&self, envelope: &Upstream, now: Tick) -> bool {
        match envelope {
            Upstream::Publish { batch, .. } => self.must_pause(batch, now),
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
            remote: Remote::new(redis, seed, now),
            outlets,
        }));
        backplane
    }

    /// The way to Redis; what it gives back is the shell's. After an input, [`Self::settle`].
    pub fn remote(&mut self) -> Option<&mut Remote> {
        self.remote.as_mut().map(|side| &mut side.remote)
    }

    /// The next order for the shell's sockets.
    pub fn poll_link_order(&mut self) -> Option<LinkOrder> {
        self.remote()?.poll_order()
    }

    /// When a link that may be written to has something to write: of the roles that `may_write`.
    #[must_use]
    pub fn flush_deadline(&self, may_write: impl Fn(Role) -> bool) -> Option<Tick> {
        let side = self.remote.as_ref()?;
        let roles = Role::ALL.into_iter().filter(|role| may_write(*role));
        roles
            .filter_map(|role| side.remote.flush_deadline(role))
            .min()
    }

    /// The links that are not proven to work. Empty without Redis.
    #[must_use]
    pub fn link_troubles(&self, now: Tick) -> Vec<LinkTrouble> {
        self.remote
            .as_ref()
            .map_or_else(Vec::new, |side| side.remote.troubles(now))
    }

    /// Hands what has come of the last inputs to the shards' outlets.
    pub fn settle(&mut self) {
        let Some(mut side) = self.remote.take() else {
            return;
        };
        while let Some(effect) = side.remote.poll_effect() {
            self.apply(&mut side.outlets, effect);
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
            Upstream::ProbeReply { .. } | Upstream::Answer { .. } | Upstream::Drained => {
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
        if side.must_pause(batch, now) {
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
        }
    }

    fn members(&self, room: &str) -> ShardSet {
        match self.table.route(room) {
            Route::Deliver(shards) => shards,
            Route::Order(holder) => ShardSet::of(holder),
        }
    }
}
