//! Whether all members of a room saw what its publishers said in one and the same order.
//!
//! Each member adds what it hears to a sum that depends on the order. Members that have everything are compared by their
//! sums, room by room: in a worker, between workers, between generators. A room with one publisher has no order but that
//! of its sequence, which is checked as such; its members are not compared.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::random::mix;
use crate::report::Report;

/// Rooms that are compared at most, the first ones.
const ROOM_COUNT_MAX: u32 = 65_536;
/// Bits of a sum: as many as a count that one generator may tell another.
const SUM_BITS: u32 = 48;
/// The sum of a member that has not heard all there was, and is compared with nobody.
const PARTIAL: u64 = u64::MAX;

/// What the members of one worker heard, as sums.
#[derive(Debug)]
pub struct Heard {
    /// By member; empty when there is nothing to compare.
    sums: Vec<u64>,
}

impl Heard {
    /// Members that have heard nothing yet.
    pub fn new(member_count: u32, publishers_per_room: u32) -> Self {
        let count = if publishers_per_room < 2 {
            0
        } else {
            member_count
        };
        Self {
            sums: vec![0; count as usize],
        }
    }

    /// A member heard a message for the first time, and in its publisher's order.
    pub fn add(&mut self, member: u32, publisher: u32, sequence: u32) {
        if let Some(sum) = self.sums.get_mut(member as usize)
            && *sum != PARTIAL
        {
            let message = u64::from(publisher) << 32 | u64::from(sequence);
            *sum = mix(*sum ^ message).wrapping_add(1) & ((1 << SUM_BITS) - 1);
        }
    }

    /// A member has lost something, or was away: it is not compared.
    pub fn give_up(&mut self, member: u32) {
        if let Some(sum) = self.sums.get_mut(member as usize) {
            *sum = PARTIAL;
        }
    }

    /// The sum of a member that heard all there was.
    pub fn sum(&self, member: u32) -> Option<u64> {
        let sum = self.sums.get(member as usize);
        sum.copied().filter(|sum| *sum != PARTIAL)
    }
}

/// Different orders of a room that are told apart; who saw yet another one counts as apart from everybody.
const SUMS_PER_ROOM_MAX: usize = 8;

/// One room.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Room {
    /// By sum: members that have it.
    sums: BTreeMap<u64, u64>,
    /// Members of yet another sum.
    others: u64,
}

impl Room {
    fn add(&mut self, sum: u64, members: u64) {
        if self.sums.len() < SUMS_PER_ROOM_MAX || self.sums.contains_key(&sum) {
            *self.sums.entry(sum).or_default() += members;
        } else {
            self.others += members;
        }
    }

    fn members(&self) -> u64 {
        self.sums.values().sum::<u64>() + self.others
    }

    /// Members that saw another order than most.
    fn apart(&self) -> u64 {
        self.members() - self.sums.values().max().unwrap_or(&0)
    }
}

/// The orders of rooms, over all workers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomOrders(BTreeMap<u32, Room>);

impl RoomOrders {
    /// Adds a member that heard all there was in its room.
    pub fn add(&mut self, room: u32, sum: u64) {
        if room < ROOM_COUNT_MAX {
            self.0.entry(room).or_default().add(sum, 1);
        }
    }

    /// Adds another worker's.
    pub fn merge(&mut self, other: Self) {
        for (number, theirs) in other.0 {
            let room = self.0.entry(number).or_default();
            for (sum, members) in theirs.sums {
                room.add(sum, members);
            }
            room.others += theirs.others;
        }
    }

    /// Adds them to a report: of how many rooms members were compared, and how many members saw another order than most.
    pub fn report(&self, report: &mut Report) {
        if self.0.is_empty() {
            return;
        }
        let compared = |room: &&Room| room.members() > 1;
        let apart: u64 = self.0.values().map(Room::apart).sum();
        report.count(
            "order_rooms_compared",
            self.0.values().filter(compared).count() as u64,
        );
        report.count("order_members_apart", apart);
        if apart > 0 {
            report.note(format!(
                "{apart} members saw their room in another order than most of its members did; --expect order_members_apart=0 \
                 makes that a fault"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(order: &[(u32, u32)]) -> u64 {
        let mut heard = Heard::new(1, 2);
        for (publisher, sequence) in order {
            heard.add(0, *publisher, *sequence);
        }
        heard.sum(0).unwrap()
    }

    #[test]
    fn members_of_another_order_are_found_whatever_worker_they_belong_to() {
        let one = heard(&[(0, 0), (1, 0), (0, 1)]);
        assert_eq!(one, heard(&[(0, 0), (1, 0), (0, 1)]));
        let other = heard(&[(0, 0), (0, 1), (1, 0)]);
        assert_ne!(one, other);
        let (mut first, mut second) = (RoomOrders::default(), RoomOrders::default());
        first.add(0, one);
        first.add(7, one);
        second.add(0, other);
        second.add(0, one);
        second.add(7, one);
        second.add(9, other);
        first.merge(second);
        let mut report = Report::new("test");
        first.report(&mut report);
        assert_eq!(report.get("order_rooms_compared"), Some(2.0), "not 9");
        assert_eq!(report.get("order_members_apart"), Some(1.0));
        assert!(report.verdict().is_ok(), "it is for --expect to say");
        assert!(one < 1 << SUM_BITS && other < 1 << SUM_BITS);
        for sum in 0..20 {
            first.add(3, sum);
        }
        assert_eq!(first.0[&3].apart(), 19);
    }

    #[test]
    fn who_lost_something_or_hears_one_publisher_is_not_compared() {
        let mut partial = Heard::new(2, 2);
        partial.add(0, 0, 0);
        partial.give_up(0);
        partial.add(0, 1, 0);
        assert_eq!(partial.sum(0), None);
        assert_eq!(partial.sum(1), Some(0), "nothing was said, and it heard it");
        let mut single = Heard::new(2, 1);
        single.add(1, 0, 0);
        single.give_up(1);
        assert_eq!(single.sum(1), None);
        let mut report = Report::new("test");
        RoomOrders::default().report(&mut report);
        assert_eq!(report.figures().count(), 0);
    }
}
