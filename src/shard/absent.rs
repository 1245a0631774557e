//! Hidden rooms that the backplane cannot follow now: joins go on without them.
//!
//! A connection's own room has to stand before it is let in. A user's and everybody's need not, once the backplane has
//! refused them: their Redis server may be a lost one, and the room's a good one. Such a room is *absent*. It is asked
//! for again, a second after it was asked for at the earliest: at once, if the refusal took longer, since nobody follows
//! it for a room that waits for nothing. When it stands, who was let in without it is told that messages may be missing.
//! Invariant: an absent room is hidden and pending; it has one place in the queue, or an answer that is due.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use foldhash::fast::FixedState;

use super::connection::State;
use super::room::{Order, Reach, RoomIndex};
use super::{Delivery, Shard};
use crate::bus::{RoomName, Upstream};
use crate::time::Tick;

/// A room is not asked for more often than this.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// So many are asked for again at once, and the next ones after a pause: many users may be at one lost server.
const RETRY_COUNT_MAX: usize = 512;
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Places in the queue of rooms that were left since are forgotten once they are more than these and half of all.
const ABANDONED_COUNT_MAX: usize = 1_024;

/// The absent rooms of a shard.
#[derive(Debug)]
pub(super) struct Absent {
    /// When each is to be asked for again, or was.
    rooms: HashMap<RoomIndex, Tick, FixedState>,
    /// Oldest first; what stands otherwise in `rooms` was left since.
    retries: VecDeque<(Tick, RoomIndex)>,
    /// Not before then.
    next_retry: Tick,
}

impl Absent {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rooms: HashMap::with_hasher(FixedState::with_seed(seed)),
            retries: VecDeque::new(),
            next_retry: Tick(0),
        }
    }

    pub(super) fn has(&self, room: RoomIndex) -> bool {
        self.rooms.contains_key(&room)
    }

    /// A room that was asked for at `asked` is absent.
    fn insert(&mut self, room: RoomIndex, asked: Tick, now: Tick) {
        let due = asked.after(RETRY_AFTER).max(now);
        self.rooms.insert(room, due);
        let place = self.retries.partition_point(|(other, _)| *other <= due);
        self.retries.insert(place, (due, room));
        if self.retries.len() > ABANDONED_COUNT_MAX + 2 * self.rooms.len() {
            let rooms = &self.rooms;
            self.retries
                .retain(|(due, room)| rooms.get(room) == Some(due));
        }
    }

    /// The room stands, or nobody is left who wants it. Whether it was absent.
    pub(super) fn remove(&mut self, room: RoomIndex) -> bool {
        self.rooms.remove(&room).is_some()
    }

    /// When something is to be asked for again.
    pub(super) fn next_deadline(&self) -> Option<Tick> {
        let &(due, _) = self.retries.front()?;
        Some(due.max(self.next_retry))
    }

    /// The rooms that are to be asked for again now.
    fn take_due(&mut self, now: Tick) -> Vec<RoomIndex> {
        let mut rooms = Vec::new();
        if self.next_retry > now {
            return rooms;
        }
        while let Some(&(due, room)) = self.retries.front()
            && due <= now
        {
            if rooms.len() == RETRY_COUNT_MAX {
                self.next_retry = now.after(RETRY_PAUSE);
                break;
            }
            self.retries.pop_front();
            if self.rooms.get(&room) == Some(&due) {
                rooms.push(room);
            }
        }
        rooms
    }
}

impl Shard {
    /// The backplane cannot follow a hidden room now: who waits for nothing else is let in.
    pub(super) fn go_without(&mut self, room_index: RoomIndex) {
        let asked = self.rooms[room_index].asked;
        self.absent.insert(room_index, asked, self.now);
        self.let_in(room_index);
    }

    /// A room stands that was absent: nobody knows what those who were let in without it have missed.
    pub(super) fn tell_absence(&mut self, room_index: RoomIndex) {
        if self.absent.remove(room_index) {
            self.tell_gap(room_index, None);
        }
    }

    /// Asks for absent rooms again.
    pub(super) fn retry_absent(&mut self) {
        for room_index in self.absent.take_due(self.now) {
            if self.rooms[room_index].answers_due > 0 {
                continue; // it was left, and is another's by now
            }
            let room = RoomName::clone(&self.rooms[room_index].name);
            self.forward(Upstream::Disinterest { room }, 0);
            self.send_interest(room_index);
        }
    }

    /// Checks what must hold of absent rooms between turns.
    pub(super) fn check_absent(&self) {
        for (&index, due) in &self.absent.rooms {
            let room = &self.rooms[index];
            assert_ne!(room.reach, Reach::Members);
            assert_eq!(room.order, Order::Pending);
            assert_eq!(self.delivery, Delivery::Bus);
            assert!(index == self.everybody || !room.members.is_empty());
            assert!(room.answers_due > 0 || self.absent.retries.contains(&(*due, index)));
        }
        for (index, connection) in self.connections.iter() {
            let waits = connection.state == State::Joining;
            if waits || connection.state == State::Open {
                assert_eq!(self.must_wait(index), waits, "{index}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rooms_are_asked_for_again_in_parts_and_each_once() {
        let mut absent = Absent::new(1);
        for room in 0..1_100 {
            absent.insert(RoomIndex(room), Tick(0), Tick(0));
        }
        assert!(absent.take_due(Tick::from_ms(999)).is_empty());
        let mut taken = Vec::new();
        for (ms, count) in [(1_000, 512), (1_049, 0), (1_050, 512), (1_100, 76)] {
            let rooms = absent.take_due(Tick::from_ms(ms));
            assert_eq!(rooms.len(), count, "{ms}");
            taken.extend(rooms);
        }
        assert_eq!(taken, (0..1_100).map(RoomIndex).collect::<Vec<_>>());
        assert_eq!(absent.next_deadline(), None);
    }

    #[test]
    fn a_room_whose_refusal_took_long_is_asked_for_again_before_those_that_rest() {
        let mut absent = Absent::new(1);
        absent.insert(RoomIndex(1), Tick::from_ms(1_900), Tick::from_ms(2_000));
        absent.insert(RoomIndex(2), Tick::from_ms(1_000), Tick::from_ms(2_000));
        absent.insert(RoomIndex(3), Tick::from_ms(1_200), Tick::from_ms(2_000));
        for (ms, room) in [(2_000, 2), (2_200, 3), (2_900, 1)] {
            assert!(absent.take_due(Tick::from_ms(ms - 1)).is_empty());
            assert_eq!(absent.next_deadline(), Some(Tick::from_ms(ms)));
            assert_eq!(absent.take_due(Tick::from_ms(ms)), [RoomIndex(room)]);
        }
    }

    #[test]
    fn rooms_that_come_and_go_leave_a_bounded_queue() {
        let mut absent = Absent::new(1);
        for round in 0..10_000 {
            absent.insert(RoomIndex(7), Tick(round), Tick(round));
            assert!(absent.remove(RoomIndex(7)));
            assert!(absent.retries.len() <= ABANDONED_COUNT_MAX + 2);
        }
        assert!(!absent.has(RoomIndex(7)));
        assert!(absent.take_due(Tick::from_ms(9_000)).is_empty());
    }
}
