//! What comes from Redis: acknowledgements, and what other nodes and this one have published.

use std::sync::Arc;

use super::arrivals::Arrival;
use super::link::Wants;
use super::streams::Came;
use super::wire::{self, Parcel, Stamp};
use super::{Degraded, Expected, Remote, Role};
use crate::backplane::resp::Reply;
use crate::time::Tick;

impl Remote {
    /// Bytes came on a link.
    pub fn received(&mut self, role: Role, bytes: &[u8], now: Tick) {
        self.link_mut(role).feed(bytes, now);
        if let Err(reason) = self.replies(role, now) {
            self.link_failed(role, reason, now);
            return;
        }
        match role {
            Role::Publishing => self.send(now),
            Role::Commands => {
                self.streams_read(now);
                return;
            }
            Role::Subscription => {
                self.ask(now);
                self.streams_read(now);
                if self.options.degraded == Degraded::Refuse {
                    self.send(now); // it may have waited for its channel
                }
            }
        }
        self.probe(now);
        self.close_progress();
    }

    fn replies(&mut self, role: Role, now: Tick) -> Result<(), String> {
        let bytes_max = self.options.reply_bytes_max;
        loop {
            let link = match role {
                Role::Publishing => &mut self.publishing,
                Role::Subscription => &mut self.subscription,
                Role::Commands => &mut self.commands,
            };
            let Some(reply) = link.next_reply(bytes_max, &self.options.address)? else {
                break;
            };
            if !link.is_up() {
                if link.greet(&reply, &self.options, now)? == Wants::Ready {
                    self.link_ready(role, now);
                }
                continue;
            }
            match (role, reply) {
                (Role::Commands, reply) => self.answered(reply, now)?,
                (Role::Publishing, reply) if self.expects_rank() => self.rank_told(&reply, now)?,
                (_, Reply::Error(error)) => self.refused(role, &error)?,
                (Role::Publishing, Reply::Number(_)) => self.acknowledged(now)?,
                (Role::Publishing, Reply::Text(text)) => self.streams_prepared(&text, now)?,
                (Role::Subscription, Reply::Message { channel, payload }) => {
                    self.message(&channel, &payload, now);
                }
                (Role::Subscription, Reply::Subscribed { channel }) => {
                    self.subscribed(&channel, now);
                }
                (Role::Subscription, Reply::Unsubscribed { .. }) if self.closing.is_some() => {
                    self.subscription.close();
                }
                (Role::Subscription, Reply::Unsubscribed { channel }) => {
                    self.unsubscribed(channel.as_deref());
                }
                _ => return Err("Redis says what nobody asked for".into()),
            }
        }
        Ok(())
    }

    /// Redis has the oldest that it was sent.
    fn acknowledged(&mut self, now: Tick) -> Result<(), String> {
        match self.expected.pop_front() {
            Some((Expected::Batch, _)) => {
                if self.publishing.refused().is_some() {
                    self.publishing.proven();
                }
                if let Some(entry) = self.outgoing.acknowledge() {
                    let room = entry.room.clone();
                    self.streams_acknowledged(entry, now);
                    self.note_left(&room);
                }
                Ok(())
            }
            Some((Expected::Probe(_), _)) => Ok(()),
            Some(_) => Err("Redis says what nobody asked for".into()),
            None => Err("Redis acknowledges what it was not sent".into()),
        }
    }

    fn subscribed(&mut self, channel: &[u8], now: Tick) {
        self.ask_answered(channel);
        let Some(room) = self.naming.room_of(channel) else {
            if channel == self.probe_channel().as_bytes() {
                self.probe_asked = false;
                self.probe_stands = true;
            }
            return;
        };
        let Some(stood) = self.channels.stand(&room, now) else {
            return;
        };
        if self.streams_stand(&stood.room, stood.waiting, now) {
            return; // it is answered, and told what is missing, once its stream was looked at
        }
        if stood.was_lost {
            self.tell_gap(stood.room.clone(), None);
        }
        if !stood.waiting.is_empty() {
            let (room, shards) = (stood.room, stood.waiting);
            self.effects
                .push_back(super::Effect::Joined { room, shards });
        }
    }

    fn message(&mut self, channel: &[u8], payload: &[u8], now: Tick) {
        let room = self.naming.room_of(channel);
        let payload = match room.as_deref().map(|room| self.streams_came(room, payload)) {
            Some(Came::Parcel(parcel)) => parcel,
            Some(Came::Nothing) => return,
            None => payload,
        };
        match (wire::decode(payload), room) {
            (Ok(Parcel::Messages { stamp, count, body }), Some(room)) => {
                self.counts.batches_received += 1;
                self.counts.messages_received += u64::from(count);
                self.messages(&room, &stamp, count, body, now);
            }
            (Ok(Parcel::Probe(stamp)), None) if self.is_own(&stamp) => {
                if self.pulse.returned(stamp.sequence) {
                    self.counts.lag.record(now.since(stamp.sent), 1);
                    self.proven(now);
                }
            }
            _ => self.counts.malformed += 1,
        }
    }

    /// Whether it is a probe of this node through this server.
    fn is_own(&self, stamp: &Stamp) -> bool {
        stamp.node == self.node && stamp.epoch == u32::from(self.server)
    }

    /// Both links work: a probe has come through them.
    fn proven(&mut self, now: Tick) {
        if let Some((since, _)) = self.subscription.trouble() {
            let rooms = self.channels.standing_count();
            let ms = now.since(since) / 1_000;
            tracing::info!(
                server = %self.options.address.endpoint,
                rooms,
                ms,
                "Redis carries messages"
            );
        }
        self.started = true;
        self.subscription.proven();
        // A probe is no publish in a room, which may be refused all the same.
        if self.publishing.refused().is_none() || self.outgoing.is_empty() {
            self.publishing.proven();
        }
    }

    /// Messages of a room, each of which is delivered once. Whether these are.
    pub(super) fn messages(
        &mut self,
        room: &str,
        stamp: &Stamp,
        count: u32,
        body: &[u8],
        now: Tick,
    ) -> bool {
        let own = stamp.node == self.node;
        let published = if own { stamp.sent } else { now };
        let Some((room, arrivals)) = self.channels.arrivals(room) else {
            return false; // left, or lost and not ours yet: the members are told of what they missed
        };
        if arrivals.has(stamp.node, stamp.epoch, stamp.sequence) {
            // What was delivered here while Redis was away comes back by design; anything else came twice.
            self.counts.duplicates += u64::from(count);
            return false;
        }
        // Read before it counts as seen: what cannot be read is a hole, and told as one with the next.
        let Ok(batch) = wire::decode_batch(&room, body, count, own, published) else {
            self.counts.malformed += 1;
            return false;
        };
        match arrivals.arrive(stamp.node, stamp.epoch, stamp.sequence, count) {
            Arrival::Duplicate => {
                self.counts.duplicates += u64::from(count);
                false
            }
            arrival => {
                if own {
                    self.counts.lag.record(now.since(stamp.sent), 1);
                }
                self.arrived(arrival, room, Arc::clone(&batch));
                true
            }
        }
    }
}
