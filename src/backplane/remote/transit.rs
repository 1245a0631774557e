//! What is published in rooms that have gone to another server, while something of theirs is on its way at the old one.

use std::collections::VecDeque;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::outgoing::{Entry, Outgoing};
use crate::bus::{Batch, RoomName};
use crate::time::Tick;

/// One room's.
#[derive(Debug)]
struct Passage {
    /// The server where something is on its way.
    source: u16,
    /// What waits, in the order of its numbers.
    entries: VecDeque<Entry>,
    /// What Redis had of that, likewise: it does not expire.
    again: VecDeque<Entry>,
}

/// All of them, bounded by their bytes. What Redis had is bounded by what the old server's part held of it.
#[derive(Debug)]
pub struct Transit {
    rooms: HashMap<RoomName, Passage, FixedState>,
    /// Of what Redis has not had yet.
    bytes: u64,
    /// Of what it had.
    again_bytes: u64,
    bytes_max: u64,
}

impl Default for Transit {
    fn default() -> Self {
        Self {
            rooms: HashMap::with_hasher(FixedState::with_seed(0)),
            bytes: 0,
            again_bytes: 0,
            bytes_max: 0,
        }
    }
}

impl Transit {
    /// Sets how much may wait.
    pub fn set_bytes_max(&mut self, bytes: u64) {
        self.bytes_max = bytes;
    }

    /// Whether the room is on its way.
    pub fn has(&self, room: &str) -> bool {
        !self.rooms.is_empty() && self.rooms.contains_key(room)
    }

    /// Whether so much more may wait.
    pub fn has_room_for(&self, batch: &Batch) -> bool {
        self.bytes == 0 || self.bytes + Outgoing::cost(batch) <= self.bytes_max
    }

    /// The room is on its way from `source`.
    pub fn begin(&mut self, room: RoomName, source: u16) {
        self.rooms.entry(room).or_insert_with(|| Passage {
            source,
            entries: VecDeque::new(),
            again: VecDeque::new(),
        });
    }

    /// Keeps what is newer than all that waits.
    pub fn keep(&mut self, entry: Entry) {
        if let Some(passage) = self.rooms.get_mut(&entry.room) {
            self.bytes += entry.bytes();
            passage.entries.push_back(entry);
        }
    }

    /// Keeps what comes back from `source`, in its place.
    pub fn admit(&mut self, entry: Entry, source: u16) {
        self.begin(entry.room.clone(), source);
        let Some(passage) = self.rooms.get_mut(&entry.room) else {
            return;
        };
        let (entries, bytes) = match entry.again {
            true => (&mut passage.again, &mut self.again_bytes),
            false => (&mut passage.entries, &mut self.bytes),
        };
        let place = entries.partition_point(|other| other.place() < entry.place());
        *bytes += entry.bytes();
        entries.insert(place, entry);
    }

    /// The room has arrived: what has waited for it, in the order of its numbers.
    pub fn end(&mut self, room: &str) -> Vec<Entry> {
        let Some(passage) = self.rooms.remove(room) else {
            return Vec::new();
        };
        let bytes = |entries: &VecDeque<Entry>| entries.iter().map(Entry::bytes).sum::<u64>();
        self.bytes -= bytes(&passage.entries);
        self.again_bytes -= bytes(&passage.again);
        let mut all: Vec<Entry> = passage.again.into();
        all.extend(passage.entries);
        all.sort_by_key(Entry::place); // two runs: one merge
        all
    }

    /// The rooms on their way from `source`.
    pub fn from(&self, source: u16) -> impl Iterator<Item = &RoomName> {
        let rooms = self.rooms.iter();
        rooms
            .filter(move |(_, passage)| passage.source == source)
            .map(|(room, _)| room)
    }

    /// All rooms on their way, and where from.
    pub fn passages(&self) -> impl Iterator<Item = (&RoomName, u16)> {
        let rooms = self.rooms.iter();
        rooms.map(|(room, passage)| (room, passage.source))
    }

    /// Takes an entry out that may expire and was taken before `limit`.
    pub fn expire(&mut self, limit: Tick) -> Option<Entry> {
        let mut passages = self.rooms.values_mut();
        let entries = passages.find_map(|passage| {
            let front = passage.entries.front()?;
            (front.taken < limit).then_some(&mut passage.entries)
        })?;
        let entry = entries.pop_front()?;
        self.bytes -= entry.bytes();
        Some(entry)
    }

    /// When the oldest that may expire was taken.
    pub fn oldest(&self) -> Option<Tick> {
        let fronts = self
            .rooms
            .values()
            .filter_map(|passage| passage.entries.front());
        fronts.map(|entry| entry.taken).min()
    }

    /// Messages that wait. O(what waits).
    pub fn message_count(&self) -> usize {
        let passages = self.rooms.values();
        let entries = passages.flat_map(|passage| passage.again.iter().chain(&passage.entries));
        entries.map(|entry| entry.batch.messages.len()).sum()
    }

    /// Bytes that wait of what Redis has not had yet.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that wait of what it had.
    pub fn again_bytes(&self) -> u64 {
        self.again_bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::outgoing::tests::batch;
    use super::*;

    fn entries(count: u64) -> Vec<Entry> {
        let mut outgoing = Outgoing::new(7, 1);
        let (room, batch) = (RoomName::from("r"), batch(1));
        (0..count)
            .map(|number| outgoing.number(&room, &batch, None, Tick(number)))
            .collect()
    }

    #[test]
    fn what_comes_back_stands_before_what_came_later() {
        let mut transit = Transit::default();
        let [a, b, c, d] = entries(4).try_into().unwrap();
        transit.begin("r".into(), 3);
        assert!(transit.has("r") && !transit.has("s"));
        transit.keep(c);
        transit.keep(d);
        transit.admit(a, 3);
        transit.admit(b, 3);
        assert_eq!(transit.from(3).count(), 1);
        assert_eq!(transit.oldest(), Some(Tick(0)));
        assert_eq!(transit.message_count(), 4);
        assert_eq!(transit.expire(Tick(1)).unwrap().stamp.sequence, 1);
        assert!(transit.expire(Tick(1)).is_none());
        let numbers = transit
            .end("r")
            .into_iter()
            .map(|entry| entry.stamp.sequence);
        assert_eq!(numbers.collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!((transit.bytes(), transit.has("r")), (0, false));
    }

    #[test]
    fn what_redis_had_does_not_expire_and_takes_no_room() {
        let mut transit = Transit::default();
        let [a, b, c, d, e] = entries(5).try_into().unwrap();
        let (cost, batch) = (Outgoing::cost(&a.batch), Arc::clone(&a.batch));
        transit.set_bytes_max(2 * cost);
        transit.begin("r".into(), 3);
        for entry in [d, e] {
            transit.keep(entry);
        }
        transit.admit(b, 3);
        for entry in [a, c] {
            transit.admit(entry.into_again(Tick(0)), 3);
        }
        assert!(!transit.has_room_for(&batch));
        assert_eq!(
            (transit.bytes(), transit.again_bytes()),
            (3 * cost, 2 * cost)
        );
        assert_eq!(transit.oldest(), Some(Tick(1)));
        assert_eq!(transit.expire(Tick(9)).unwrap().stamp.sequence, 2);
        assert_eq!(transit.expire(Tick(9)).unwrap().stamp.sequence, 4);
        assert!(transit.has_room_for(&batch), "the rest is not counted");
        assert_eq!(transit.expire(Tick(9)).unwrap().stamp.sequence, 5);
        assert!(transit.expire(Tick(9)).is_none());
        assert_eq!((transit.oldest(), transit.message_count()), (None, 2));
        let f = entries(6).pop().unwrap();
        transit.keep(f);
        let all = transit.end("r").into_iter();
        let all: Vec<_> = all
            .map(|entry| (entry.stamp.sequence, entry.again))
            .collect();
        assert_eq!(all, [(1, true), (3, true), (6, false)]);
        assert_eq!((transit.bytes(), transit.again_bytes()), (0, 0));
    }
}
