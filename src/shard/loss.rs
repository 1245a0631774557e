//! What is told of messages and rooms that were lost between the nodes.

use super::Shard;
use super::connection::{State, flag};
use super::outbox::Reserve;
use super::room::{Order, Reach, RoomIndex};
use crate::bus::{Batch, RoomName};
use crate::metrics::RefusalKind;
use crate::protocol::dialect::raw::{notice_backplane, notice_gap, notice_gap_unknown};
use crate::protocol::handshake::Refusal;
use crate::protocol::{Encoded, Piece};

impl Shard {
    /// The backplane answered our interest: the room cannot be followed. Whoever waited is answered 503, or let in
    /// without it if it is a hidden one.
    pub(super) fn join_refused(&mut self, name: &RoomName) {
        let Some(room_index) = self.rooms.find(name) else {
            return;
        };
        let room = &mut self.rooms[room_index];
        room.answers_due = room.answers_due.saturating_sub(1);
        if room.answers_due > 0 || room.order != Order::Pending {
            return; // the answer to an interest that was given up since
        }
        if room.members.is_empty() && room_index != self.everybody {
            self.rooms.close(room_index);
            return;
        }
        if room.reach != Reach::Members {
            self.go_without(room_index);
            return;
        }
        // The last one that leaves takes the interest back, and closes the room.
        for index in room.members.clone() {
            self.refuse(index, &Refusal::of(RefusalKind::Backplane));
        }
    }

    /// Messages of the room were lost on their way here: every member is told, between what came before and what comes
    /// after.
    pub(super) fn gap(&mut self, name: &RoomName, missed: Option<u64>) {
        let Some(room_index) = self.rooms.find(name) else {
            return;
        };
        if self.rooms[room_index].order != Order::Bus {
            return;
        }
        self.flush_room(room_index);
        if !self.rooms.is_open(room_index) {
            return; // delivering has closed the last member
        }
        self.tell_gap(room_index, missed);
    }

    /// Tells everybody whom the room reaches that messages of it are missing here.
    pub(super) fn tell_gap(&mut self, room_index: RoomIndex, missed: Option<u64>) {
        let notice = missed.map_or_else(notice_gap_unknown, notice_gap);
        let notice = Encoded::metered(notice, self.ledger.meter());
        for index in self.reached(room_index) {
            let connection = &mut self.connections[index];
            if connection.state != State::Open || connection.has(flag::NO_NOTICES) {
                continue;
            }
            // Several of its rooms were lost at once, and the notice for the first has not left: it says it of all.
            if missed.is_none() && !connection.set_first(flag::GAP_QUEUED) {
                continue;
            }
            self.queue_gap_notice(index);
            let piece = Piece::whole(notice.clone());
            if self.connection_has_room(index, piece.byte_count(), Reserve::Control) {
                self.queue(index, piece, 0);
                self.counters.gaps_told += 1;
            } else {
                // Told behind what comes next, as what it lost by being slow.
                let missed = u32::try_from(missed.unwrap_or(1)).unwrap_or(u32::MAX);
                self.outbox(index).miss_newest(missed);
            }
        }
    }

    /// Messages of this shard's members do not reach other nodes: those who sent them are told, as far as they are here
    /// and their queues take it.
    pub(super) fn publishes_refused(&mut self, batch: &Batch, local: bool) {
        let mut messages = batch.messages.as_slice();
        while let Some(first) = messages.first() {
            let run = messages
                .iter()
                .take_while(|next| next.sender == first.sender);
            let run = run.count();
            messages = &messages[run..];
            let sender = first
                .sender
                .and_then(|sender| self.connections.find(self.core, sender));
            if let Some(index) = sender
                && self.connections[index].state == State::Open
                && !self.connections[index].has(flag::NO_NOTICES)
            {
                let refused = u32::try_from(run).unwrap_or(u32::MAX);
                self.queue_gap_notice(index);
                self.queue_control(index, notice_backplane(refused, local), Reserve::Control);
            }
        }
    }
}
