//! From a room's turn to its members' sockets: one encoding, shared; the slow ones by their room's policy.

use super::connection::{State, flag};
use super::outbox::{Outbox, QUEUED_BYTES, Reserve};
use super::room::{Gathered, Reach, RoomIndex};
use super::{FanOut, Shard};
use crate::bus::BatchMessage;
use crate::limits::SEND_PIECE_COUNT_MAX;
use crate::metrics::DropPolicy;
use crate::protocol::dialect::raw::notice_gap;
use crate::protocol::{CloseReason, Encoded, Piece};
use crate::time::elapsed_ms;

/// A send that took so long had to wait for its peer to make place.
const SLOW_SEND_MS: u32 = 1_000;

/// On what terms messages may wait for a slow member.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// What happens to a message that may not wait: the member's own room says it, also of a hidden room's messages.
    policy: DropPolicy,
    /// Nobody asked the ledger before these messages came, so each member that would hold them has to. What a member
    /// that keeps up has in flight for the turn is not asked for: it is gone by the next.
    ask_ledger: bool,
}

impl Shard {
    /// Delivers `gathered` to every member of the room. One plain loop; whoever is slow takes the other way.
    pub(super) fn publish_fan_out(&mut self, room_index: RoomIndex, mut gathered: Box<Gathered>) {
        let bytes = std::mem::take(&mut gathered.bytes);
        let messages = &gathered.messages;
        let byte_count =
            u32::try_from(bytes.len()).expect("bounded by the batch and the message limit");
        let message_count = u32::try_from(messages.len()).expect("fewer than bytes");
        let encoded = Encoded::metered(bytes, self.ledger.meter());
        let now_ms = self.now.ms32();
        let slot_count = self.connections.length();
        let room = &mut self.rooms[room_index];
        room.message_count += u64::from(message_count);
        let reach = room.reach;
        let terms = Terms {
            policy: room.policy,
            ask_ledger: gathered.unasked,
        };
        let first_target = self.work.targets.len();
        let mut slow = Vec::new();
        let aim = |index: u32| {
            let connection = &mut self.connections[index];
            if connection.flags & flag::SLOW == 0
                && connection.state == State::Open
                && connection.outbox.is_none()
            {
                connection.flags |= flag::SENDING;
                connection.queued_bytes = byte_count;
                connection.progress_ms = now_ms;
                self.work.targets.push(index);
            } else if connection.state == State::Open {
                slow.push(index);
            }
        };
        match reach {
            Reach::Members | Reach::User => room.members.iter().copied().for_each(aim),
            Reach::Everybody => (0..slot_count).for_each(aim),
        }
        let fast = (self.work.targets.len() - first_target) as u64;
        if fast > 0 {
            self.work.fan_outs.push(FanOut {
                encoded: encoded.clone(),
                end: self.work.targets.len(),
            });
        }
        self.counters.messages_delivered += u64::from(message_count);
        let mut deliveries = fast * u64::from(message_count);
        for index in slow {
            let mut terms = terms;
            if reach != Reach::Members {
                terms.policy = self.rooms[self.connections[index].room].policy;
            }
            deliveries += u64::from(self.deliver_slow(index, &encoded, messages, terms));
        }
        self.counters.deliveries += deliveries;
        self.counters
            .publish_to_deliver
            .record(self.now.since(gathered.published), deliveries);
        self.spare_gathered.give(gathered);
    }

    /// Delivers to a member that has a send in flight, output queued, or does not want its own messages back.
    /// Returns how many messages were queued to it.
    fn deliver_slow(
        &mut self,
        index: u32,
        encoded: &Encoded,
        messages: &[BatchMessage],
        terms: Terms,
    ) -> u32 {
        // With nothing in flight and no message queued, all of this leaves in this very turn: no different from the
        // fast way.
        let connection = &self.connections[index];
        let leaves_now = !connection.has(flag::SENDING)
            && connection.outbox.as_ref().is_none_or(|outbox| {
                !outbox.has_messages() && outbox.piece_count() as usize + 2 <= SEND_PIECE_COUNT_MAX
            });
        if connection.has(flag::NO_ECHO) {
            let own = Some(self.connections.id(self.core, index));
            if messages.iter().any(|message| message.sender == own) {
                let wanted = |message: &BatchMessage| message.sender != own;
                return self
                    .deliver_one_by_one(index, encoded, messages, terms, leaves_now, wanted);
            }
        }
        let count = u32::try_from(messages.len()).expect("fewer than bytes");
        let whole = Piece::whole(encoded.clone());
        if leaves_now {
            self.queue_leaving(index, whole, count);
            return count;
        }
        if self.may_wait(index, whole.byte_count(), terms) {
            self.queue_messages(index, whole, count);
            return count;
        }
        self.deliver_one_by_one(index, encoded, messages, terms, false, |_| true)
    }

    /// Queues the messages that are `wanted`, each for itself, so that as many fit as can. `leaves_now`: there is room
    /// for as many as the turn's send carries.
    fn deliver_one_by_one(
        &mut self,
        index: u32,
        encoded: &Encoded,
        messages: &[BatchMessage],
        terms: Terms,
        leaves_now: bool,
        wanted: impl Fn(&BatchMessage) -> bool,
    ) -> u32 {
        let mut start = 0;
        let mut queued = 0;
        for message in messages {
            let piece = Piece {
                encoded: encoded.clone(),
                start,
                end: message.end,
            };
            start = message.end;
            if !wanted(message) {
                continue;
            }
            if leaves_now && self.outbox(index).piece_count() + 2 <= SEND_PIECE_COUNT_MAX as u32 {
                self.queue_leaving(index, piece, 1);
                queued += 1;
            } else if self.may_wait(index, piece.byte_count(), terms)
                || self.make_room(index, &piece, terms)
            {
                self.queue_messages(index, piece, 1);
                queued += 1;
            }
            if self.connections[index].state != State::Open {
                break;
            }
        }
        queued
    }

    /// Whether `bytes` more of messages may wait for the member. The encoded bytes are in the ledger already: if they
    /// do not fit, they are let go of here.
    fn may_wait(&mut self, index: u32, bytes: u32, terms: Terms) -> bool {
        let entry_bytes = u64::from(QUEUED_BYTES + Outbox::BYTES);
        self.connection_has_room(index, bytes, Reserve::Data)
            && (!terms.ask_ledger || self.ledger.admit(self.gathered_bytes + entry_bytes).is_ok())
    }

    /// Whether `bytes` more may wait behind the send in flight. That send is not held against the budget: it may be
    /// a whole turn of a busy room, and whoever got it is not slow yet.
    pub(super) fn connection_has_room(&self, index: u32, bytes: u32, reserve: Reserve) -> bool {
        let limit = reserve.limit(self.options.connection_queue_bytes_max);
        self.connections[index]
            .outbox
            .as_ref()
            .map_or(0, |outbox| outbox.waiting_bytes())
            .saturating_add(bytes)
            .saturating_add(QUEUED_BYTES)
            <= limit
    }

    /// Applies the room's policy to a member without room for `piece`, one message. Whether there is room now.
    #[cold]
    fn make_room(&mut self, index: u32, piece: &Piece, terms: Terms) -> bool {
        let policy = terms.policy;
        match policy {
            DropPolicy::Disconnect => {
                self.counters.dropped[policy as usize] += 1;
                self.fail(index, CloseReason::SlowConsumer);
                false
            }
            DropPolicy::DropNewest => {
                self.miss_newest(index, policy);
                false
            }
            DropPolicy::DropOldest => {
                while !self.may_wait(index, piece.byte_count(), terms) {
                    if !self.drop_oldest(index, policy) {
                        self.miss_newest(index, policy);
                        return false;
                    }
                }
                true
            }
            DropPolicy::Latest => {
                while self.drop_oldest(index, policy) {}
                let fits = self.may_wait(index, piece.byte_count(), terms);
                if !fits {
                    self.miss_newest(index, policy);
                }
                fits
            }
        }
    }

    fn miss_newest(&mut self, index: u32, policy: DropPolicy) {
        self.counters.dropped[policy as usize] += 1;
        self.outbox(index).miss_newest(1);
    }

    fn drop_oldest(&mut self, index: u32, policy: DropPolicy) -> bool {
        let connection = &mut self.connections[index];
        let Some((bytes, messages)) = connection
            .outbox
            .as_mut()
            .and_then(|outbox| outbox.drop_oldest())
        else {
            return false;
        };
        connection.queued_bytes -= bytes;
        self.ledger.refund(QUEUED_BYTES);
        self.counters.dropped[policy as usize] += u64::from(messages);
        true
    }

    /// Queues messages for which there is room, behind the notice of the gap before them, if there is one.
    fn queue_messages(&mut self, index: u32, piece: Piece, message_count: u32) {
        self.connections[index].clear(flag::GAP_QUEUED);
        self.queue_gap_notice(index);
        self.queue(index, piece, message_count);
    }

    /// Queues messages that leave with the turn's send, whatever the budget: see [`Outbox::leaves_next`].
    fn queue_leaving(&mut self, index: u32, piece: Piece, message_count: u32) {
        let cost = piece.byte_count() + QUEUED_BYTES;
        self.queue_messages(index, piece, message_count);
        self.outbox(index).leaves_next(cost);
    }

    /// Queues the notice of what was lost behind all that is queued, if anything was.
    pub(super) fn queue_gap_notice(&mut self, index: u32) {
        let connection = &mut self.connections[index];
        let Some(outbox) = &mut connection.outbox else {
            return;
        };
        let missed = outbox.gap_at_end();
        if missed == 0 {
            return;
        }
        if !connection.has(flag::NO_NOTICES) {
            let notice = notice_gap(u64::from(missed));
            if !self.queue_control(index, notice, Reserve::Control) {
                return; // it stays counted, and is told behind what comes next
            }
            self.counters.gaps_told += 1;
        }
        self.outbox(index).told_gap_at_end();
    }

    /// Queues a control frame, notice or answer. False: its reserve is used up.
    pub(super) fn queue_control(&mut self, index: u32, bytes: Vec<u8>, reserve: Reserve) -> bool {
        let byte_count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if !self.connection_has_room(index, byte_count, reserve) {
            return false;
        }
        let encoded = Encoded::metered(bytes, self.ledger.meter());
        self.queue(index, Piece::whole(encoded), 0);
        true
    }

    /// Queues a piece for which there is room. 0 messages: control.
    pub(super) fn queue(&mut self, index: u32, piece: Piece, message_count: u32) {
        self.ledger.charge_owed(QUEUED_BYTES);
        let cost = self.outbox(index).push(piece, message_count);
        let connection = &mut self.connections[index];
        connection.queued_bytes += cost;
        self.mark_dirty(index);
    }

    /// The connection's outbox, made if there is none.
    pub(super) fn outbox(&mut self, index: u32) -> &mut Outbox {
        let connection = &mut self.connections[index];
        if connection.outbox.is_none() {
            self.ledger.charge_owed(Outbox::BYTES);
        }
        connection.outbox.get_or_insert_default()
    }

    /// Puts the connection on the turn's list, unless a send is in flight: then its end does.
    pub(super) fn mark_dirty(&mut self, index: u32) {
        let connection = &mut self.connections[index];
        if !connection.has(flag::SENDING) && connection.set_first(flag::DIRTY) {
            self.work.dirty.push(index);
        }
    }

    /// Moves the connection's next send into `work.pieces`. False: there is nothing to send.
    pub(super) fn take_send(&mut self, index: u32) -> bool {
        let connection = &mut self.connections[index];
        connection.clear(flag::DIRTY | flag::GAP_QUEUED);
        if connection.has(flag::SENDING) || matches!(connection.state, State::Vacant | State::Dead)
        {
            return false;
        }
        let wants_notices = !connection.has(flag::NO_NOTICES);
        let Some(outbox) = &mut connection.outbox else {
            return false;
        };
        let (ledger, counters) = (&self.ledger, &mut self.counters);
        let mut notice_bytes = 0;
        let entry_bytes = outbox.take(&mut self.work.pieces, |missed| {
            if !wants_notices {
                return None;
            }
            let notice = notice_gap(u64::from(missed));
            let notice = Piece::whole(Encoded::metered(notice, ledger.meter()));
            notice_bytes += notice.byte_count();
            counters.gaps_told += 1;
            Some(notice)
        });
        connection.queued_bytes += notice_bytes;
        connection.queued_bytes -= entry_bytes;
        self.ledger.refund(entry_bytes);
        let has_pieces = !self.work.pieces.is_empty();
        if has_pieces {
            connection.set(flag::SENDING);
            connection.progress_ms = self.now.ms32();
        }
        self.drop_empty_outbox(index);
        has_pieces
    }

    fn drop_empty_outbox(&mut self, index: u32) {
        let connection = &mut self.connections[index];
        if connection
            .outbox
            .as_ref()
            .is_some_and(|outbox| outbox.is_empty())
        {
            connection.outbox = None;
            self.ledger.refund(Outbox::BYTES);
        }
    }

    /// Throws away the messages that are queued and not in flight. What is said of the connection itself stays: the
    /// answer to its upgrade may still be there.
    pub(super) fn drop_messages(&mut self, index: u32) {
        let connection = &mut self.connections[index];
        if let Some(outbox) = &mut connection.outbox {
            while let Some((bytes, messages)) = outbox.drop_oldest() {
                connection.queued_bytes -= bytes;
                self.ledger.refund(QUEUED_BYTES);
                self.counters.dropped[DropPolicy::Disconnect as usize] += u64::from(messages);
            }
            outbox.told_gap_at_end(); // the close tells more
            self.drop_empty_outbox(index);
        }
    }

    /// Throws away what is queued and not in flight.
    pub(super) fn drop_queue(&mut self, index: u32) {
        let connection = &mut self.connections[index];
        if let Some(outbox) = connection.outbox.take() {
            connection.queued_bytes -= outbox.queued_bytes();
            self.ledger.refund(outbox.charged_bytes());
        }
    }

    /// The kernel took `bytes` of the send in flight.
    pub(super) fn written(&mut self, index: u32, bytes: u32, done: bool) {
        let connection = &mut self.connections[index];
        self.counters.bytes_out += u64::from(bytes);
        connection.queued_bytes -= bytes;
        let now_ms = self.now.ms32();
        if !done || elapsed_ms(now_ms, connection.progress_ms) >= SLOW_SEND_MS {
            // Its socket had been full, and is not: the peer's TCP has taken something, so the peer is there. A send
            // that the kernel just buffers tells nothing of the peer.
            connection.heard_ms = now_ms;
        }
        if !done {
            connection.progress_ms = now_ms;
            return;
        }
        connection.flags &= !flag::SENDING;
        if connection.outbox.is_none() {
            if connection.state == State::Closing {
                self.all_sent(index);
            }
            return;
        }
        self.mark_dirty(index); // there is more, or a gap to be told
    }
}
