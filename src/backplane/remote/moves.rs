//! Rooms that go from one server to another, with all that there is to know of them.
//!
//! What is on its way at the old server is waited for before anything newer is sent at the new one: the order of a room's
//! messages is kept. What was not sent goes along under its old numbers.

use std::collections::VecDeque;
use std::sync::Arc;

use super::channels::Channel;
use super::link::Role;
use super::outgoing::{Entry, Sequence};
use super::placement::{Slot, Tag};
use super::streams::Carried;
use super::{
    Address, Degraded, Effect, Endpoint, LinkOrder, Mode, Published, Remote, Reply, channels,
    outgoing,
};
use crate::bus::{Batch, CoreId, RoomName};
use crate::time::Tick;

/// What a server's part tells the whole.
#[derive(Debug)]
pub enum News {
    /// Redis has not taken the entry: it does not serve its room.
    Displaced(Entry),
    /// The entry of a room that has gone was on its way when the link was lost, or was acknowledged since then.
    Returned(Entry),
    /// Nothing of a room that has gone is on its way any more.
    Left(RoomName),
    /// The server does not serve this slot.
    Elsewhere(Slot),
    /// The server does not let us use the mode.
    Forbidden(String),
    /// A link was lost, or could not be brought up.
    Lost(Role),
}

/// Rooms on their way to another server.
#[derive(Debug)]
pub struct Departure {
    /// Who waits for them and what they have heard.
    pub channels: Vec<(RoomName, Channel)>,
    /// How their numbers go on.
    pub sequences: Vec<(RoomName, Sequence)>,
    /// Where they stand in their streams.
    pub places: Vec<(RoomName, Carried)>,
    /// What was not sent, in order.
    pub unsent: Vec<Entry>,
    /// Those of which something is on its way, or on its way back.
    pub in_flight: Vec<RoomName>,
}

impl Remote {
    /// Lets rooms go.
    pub fn release(&mut self, goes: impl Fn(&str) -> bool, now: Tick) -> Departure {
        self.deliver_leaving(None, &goes);
        let channels = self.channels.release(&goes);
        if self.subscription.is_up() && self.closing.is_none() {
            for rooms in channels.left.chunks(channels::COMMAND_CHANNEL_COUNT_MAX) {
                self.channel_command(true, rooms);
            }
        }
        let outgoing::Parting {
            sequences,
            unsent,
            in_flight,
        } = self.outgoing.release(&goes);
        let (places, mut again) = self.streams_release(&goes, now);
        again.extend(unsent);
        // What was refused, and is not heard of yet, comes before what was not sent.
        let refused = self.news.iter().filter_map(|news| match news {
            News::Displaced(entry) if goes(&entry.room) => Some(&entry.room),
            _ => None,
        });
        let rooms = in_flight.keys().chain(refused).cloned().collect();
        self.leaving.extend(in_flight);
        Departure {
            channels: channels.wanted,
            sequences,
            places,
            unsent: again,
            in_flight: rooms,
        }
    }

    /// The members here may not see come back what waits: they leave one channel, and follow the other some time later.
    /// `refused`: only this one, which Redis has not taken, and what stands before it.
    pub(super) fn deliver_leaving(&mut self, refused: Option<&Entry>, goes: impl Fn(&str) -> bool) {
        if self.options.degraded != Degraded::Local {
            return;
        }
        if let Some(entry) = refused {
            let Some((_, arrivals)) = self.channels.arrivals_of_members(&entry.room) else {
                return; // nobody here is in
            };
            let stamp = entry.stamp;
            if arrivals.has(stamp.node, stamp.epoch, stamp.sequence - 1) {
                // Nothing stands before it that they lack. Many may be refused at once, and much is retained.
                return self.deliver_here(entry);
            }
        }
        let retained = self.streams.as_ref().map(|streams| streams.retained.iter());
        let behind = refused.is_none().then(|| self.outgoing.iter());
        let waiting = retained.into_iter().flatten().chain(refused);
        let waiting = waiting.chain(behind.into_iter().flatten());
        let waiting = waiting.filter(|entry| goes(&entry.room));
        let waiting: Vec<Entry> = waiting.cloned().collect();
        for entry in &waiting {
            self.deliver_here(entry);
        }
        if refused.is_none() {
            self.outgoing.mark_local(goes);
        }
    }

    /// Takes a room in that another server has let go.
    pub fn adopt(&mut self, room: RoomName, channel: Channel, now: Tick) {
        self.channels.adopt(room, channel);
        self.ask(now);
    }

    /// Goes on from where a room stood in its stream.
    pub fn adopt_place(&mut self, room: &RoomName, place: &Carried, now: Tick) {
        self.streams_adopt(room, place, now);
    }

    /// Goes on with a room's numbers.
    pub fn adopt_sequence(&mut self, room: RoomName, sequence: Sequence, now: Tick) {
        self.outgoing.adopt(room, sequence, now);
    }

    /// Takes in what has its number and was not sent, or not taken.
    pub fn resume(&mut self, entry: Entry, now: Tick) {
        self.outgoing.resume(entry);
        self.send(now);
    }

    /// Bytes that wait here of what Redis had.
    pub fn again_bytes(&self) -> u64 {
        self.outgoing.again_bytes()
    }

    /// Numbers messages of a room that has not wholly come yet, and delivers them here if Redis would not; the rest is
    /// for whoever keeps them. `None`: they are refused, since there is no room for them.
    pub fn publish_aside(
        &mut self,
        room: &RoomName,
        batch: &Arc<Batch>,
        from: Option<CoreId>,
        has_room: bool,
        now: Tick,
    ) -> Result<Entry, Published> {
        let degraded = self.options.degraded == Degraded::Local && !self.delivers(room);
        if !has_room {
            let local = degraded && self.deliver_unnumbered(room, batch);
            self.refuse(from, batch, local);
            return Err(Published::Refused { local });
        }
        let mut entry = self.outgoing.number(room, batch, from, now);
        if degraded {
            entry.local = true;
            self.deliver_here(&entry);
        }
        Ok(entry)
    }

    /// Says of what nobody sends any more that other nodes will not see it.
    pub fn give_up(&mut self, entry: &Entry) {
        self.refuse(entry.from, &entry.batch, entry.local);
    }

    /// Whether something of a room that has gone is on its way still, or has come back and was not taken over.
    pub fn is_leaving(&self, room: &str) -> bool {
        let mut news = self.news.iter();
        self.leaving.contains_key(room)
            || news.any(|news| match news {
                News::Displaced(entry) | News::Returned(entry) => &*entry.room == room,
                News::Left(left) => &**left == room,
                _ => false,
            })
    }

    /// One entry of the room is not on its way any more.
    pub(super) fn note_left(&mut self, room: &RoomName) {
        if let Some(count) = self.leaving.get_mut(room) {
            *count -= 1;
            if *count == 0 {
                self.leaving.remove(room);
                self.news.push_back(News::Left(room.clone()));
            }
        }
    }

    /// The publishing link was lost: nothing is on its way.
    pub(super) fn return_leaving(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        let leaving = std::mem::take(&mut self.leaving);
        let entries = self.outgoing.take_unsent(|room| leaving.contains_key(room));
        self.news.extend(entries.into_iter().map(News::Returned));
        self.news.extend(leaving.into_keys().map(News::Left));
    }

    /// Whether nothing is left here that somebody waits for.
    pub fn is_idle(&self) -> bool {
        self.leaving.is_empty() && self.outgoing.is_empty() && self.asked.is_empty()
    }

    /// The epoch that this server's next new sequence gets.
    pub fn epoch_next(&self) -> u32 {
        self.outgoing.epoch_next()
    }

    /// Goes on from there.
    pub fn set_epoch_next(&mut self, epoch: u32) {
        self.outgoing.set_epoch_next(epoch);
    }

    // --- as one of several ------------------------------------------------------------------------------------------

    /// The next news for the whole.
    pub(super) fn poll_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// Hands over what shards and sockets are to be told.
    pub(super) fn drain_into(
        &mut self,
        effects: &mut VecDeque<Effect>,
        orders: &mut VecDeque<LinkOrder>,
    ) {
        orders.append(&mut self.orders);
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Answered { reply, .. } if self.is_scout => self.scouted.push_back(reply),
                effect => effects.push_back(effect),
            }
        }
    }

    /// The next answer that a scout has got; `None` inside: none will come.
    pub(super) fn poll_scouted(&mut self) -> Option<Option<Reply>> {
        self.scouted.pop_front()
    }

    /// Makes it one that is only asked who serves what.
    pub(super) fn into_scout(mut self) -> Self {
        self.is_scout = true;
        self.options.at_start = super::AtStart::Wait; // who else may be asked is known to the whole only
        self
    }

    /// This node's number.
    pub(super) fn node(&self) -> u64 {
        self.node
    }

    /// Its place among all servers.
    pub(super) fn server(&self) -> u16 {
        self.server
    }

    /// Where it is.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.options.address.endpoint
    }

    /// What leads its probe channel to it.
    pub(super) fn probe_tag(&self) -> Option<&Tag> {
        self.probe_tag.as_ref()
    }

    /// Its share of the bounds.
    pub(super) fn set_bounds(&mut self, buffer_bytes_max: u64, joins_waiting_max: usize) {
        self.options.buffer_bytes_max = buffer_bytes_max;
        self.counts.buffer_bytes_max = buffer_bytes_max;
        self.channels.set_waiting_max(joins_waiting_max);
        if let Some(streams) = &mut self.streams {
            streams.retained.set_bytes_max(buffer_bytes_max);
        }
    }

    /// Messages travel another way from now on: both links begin anew.
    pub(super) fn change_mode(&mut self, mode: Mode, now: Tick) {
        self.options.mode = mode;
        for role in [Role::Publishing, Role::Subscription] {
            if self.link(role).is_up() {
                self.end_link(role, format!("going on with {}", mode.label()), now);
            }
        }
    }

    /// Whether messages may pass: both links are up, and the probe channel is where it should be.
    pub(super) fn is_working(&self) -> bool {
        self.publishing.is_up()
            && self.subscription.is_up()
            && (self.probe_stands || self.probe_asked)
    }

    /// Why the commands link cannot be used, or what is waited for.
    pub(super) fn commands_reason(&self) -> String {
        let trouble = self.commands.trouble();
        trouble.map_or_else(
            || "it was asked".to_owned(),
            |(_, reason)| reason.to_owned(),
        )
    }

    /// The commands link goes elsewhere; `soon`: at once.
    pub(super) fn redirect(&mut self, address: Address, soon: bool, now: Tick) {
        if self.closing.is_some() {
            return;
        }
        self.options.address = address;
        self.commands
            .restart(soon, &self.options.address.endpoint, now);
        self.commands_unanswered(now);
        self.orders
            .push_back(LinkOrder::Close(self.id(Role::Commands)));
    }

    /// Checks that all rooms here belong here. For tests: O(rooms).
    pub(super) fn check_rooms(&self, belongs: impl Fn(&str) -> bool) {
        for room in self.channels.rooms() {
            assert!(belongs(room), "{room} is followed at the wrong server");
        }
    }
}
