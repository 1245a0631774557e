//! What the registry is told: who has come, who has gone, and once an interval who is here.
//!
//! Notes wait here until the lane up takes them. While some wait, refreshes pause, and news beyond a bound are dropped:
//! a connection that was not told of is told of by its next refresh, and one that has gone is forgotten by the registry
//! when nobody refreshes it.

use std::collections::VecDeque;

use super::Shard;
use super::connection::{State, flag};
use super::options::Presence;
use super::sweep::Cursor;
use crate::bus::{PresenceNote, RoomName, Upstream, UserName};
use crate::limits::PRESENCE_NOTE_COUNT_MAX;
use crate::time::elapsed_ms;

/// Notes that wait for the lane at most.
const NOTES_WAITING_MAX: usize = 32 * PRESENCE_NOTE_COUNT_MAX;
/// What a note weighs in a lane, with the part of its names that is not shared.
const NOTE_BYTES: usize = size_of::<PresenceNote>() + 64;

/// Notes that wait, and the cursor that refreshes.
#[derive(Debug, Default)]
pub(super) struct PresenceNotes {
    waiting: VecDeque<PresenceNote>,
    cursor: Cursor,
    /// Everybody is to be told of again: slots left, and the time for all of them.
    announce: Option<(u32, u64)>,
}

impl PresenceNotes {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Shard {
    /// Notes that the connection is open, or (`is_gone`) that it is about to leave its room.
    pub(super) fn note_presence(&mut self, index: u32, is_gone: bool) {
        if !self.is_told_of(index) {
            return;
        }
        if self.presence.waiting.len() >= NOTES_WAITING_MAX {
            self.counters.presence_dropped += 1;
            return;
        }
        let note = self.presence_note(index, is_gone);
        self.presence.waiting.push_back(note);
    }

    fn is_told_of(&self, index: u32) -> bool {
        let connection = &self.connections[index];
        connection.state == State::Open
            && match self.options.presence {
                Presence::Off => false,
                Presence::Users => connection.has(flag::USER),
                Presence::All => true,
            }
    }

    /// What there is to be told of a connection that is in its room.
    pub(super) fn presence_note(&self, index: u32, is_gone: bool) -> PresenceNote {
        let connection = &self.connections[index];
        let now_ms = self.now.ms32();
        PresenceNote {
            id: self.connections.id(self.core, index),
            user: self
                .users
                .identity(index)
                .map(|identity| UserName::clone(&identity.user)),
            room: RoomName::clone(&self.rooms[connection.room].name),
            since_ms_ago: u64::from(elapsed_ms(now_ms, connection.opened_ms)),
            heard_ms_ago: u64::from(elapsed_ms(now_ms, connection.heard_ms)),
            is_gone,
        }
    }

    /// Tells of every connection again within `within_ms`.
    pub(super) fn announce(&mut self, within_ms: u32) {
        let length = self.connections.length();
        if self.options.presence != Presence::Off && length > 0 {
            self.presence.announce = Some((length, u64::from(within_ms.max(1)) * 1_000));
        }
    }

    /// Refreshes the share of the connections that `elapsed_us` stands for.
    pub(super) fn refresh_presence(&mut self, elapsed_us: u64) {
        // What waits is news, and goes first: a lane that takes little would never come to the end of refreshes.
        if self.options.presence == Presence::Off || !self.presence.waiting.is_empty() {
            return;
        }
        let length = self.connections.length();
        let interval_us = u64::from(self.options.presence_refresh_ms) * 1_000;
        let (left, round_us) = self.presence.announce.unwrap_or((length, interval_us));
        let round_us = round_us.min(interval_us);
        let (first, count) = self.presence.cursor.advance(elapsed_us, round_us, length);
        let count = count.min(left);
        for index in first..first + count {
            self.note_presence(index % length, false);
        }
        if self.presence.announce.is_some() {
            self.presence.announce = (left > count).then_some((left - count, round_us));
        }
    }

    /// Sends up what waits, as far as the lane takes it.
    pub(super) fn flush_presence(&mut self) {
        while !self.presence.waiting.is_empty() && self.bus_envelopes > 0 {
            let count = self.presence.waiting.len().min(PRESENCE_NOTE_COUNT_MAX);
            let count = count.min(self.bus_bytes / NOTE_BYTES);
            if count == 0 {
                return;
            }
            let bytes = count * NOTE_BYTES;
            self.bus_envelopes -= 1;
            self.bus_bytes -= bytes;
            let notes = self.presence.waiting.drain(..count).collect();
            let bytes = u32::try_from(bytes).expect("a bounded count of notes");
            self.forward(Upstream::Presence { notes }, bytes);
        }
    }
}
