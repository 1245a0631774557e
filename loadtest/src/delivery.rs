//! Checks every delivery: who lost what, what came twice, late, changed, or to the wrong room.

use std::collections::BTreeSet;
use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::order::Heard;
use crate::report::Report;

/// Sequences that are known to be missing at a time, all members of a worker together.
const MISSING_COUNT_MAX: usize = 1 << 20;
/// No sequence is expected yet: the first that comes is taken as the beginning.
const SEQUENCE_ANY: u32 = u32::MAX;

/// The deliveries of a worker's members. Each member hears the same number of publishers.
#[derive(Debug)]
pub struct Deliveries {
    publishers_per_room: u32,
    /// By member, then publisher of its room: the sequence that comes next.
    next: Vec<u32>,
    /// What was skipped, by index into `next`; empty unless something goes wrong.
    missing: HashMap<usize, BTreeSet<u32>>,
    missing_count: usize,
    counts: Counts,
    heard: Heard,
}

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Deliveries that came the first time, in whatever order.
    pub delivered: u64,
    /// Skipped and never seen.
    pub lost: u64,
    /// Seen before.
    pub duplicated: u64,
    /// Came after a later one.
    pub reordered: u64,
    /// The payload is not what a publisher wrote.
    pub corrupted: u64,
    /// From a publisher of another room.
    pub misrouted: u64,
    /// Skipped, as the server told (`gap` notices).
    pub lost_as_told: u64,
    /// Pairs of a member that came back and a publisher of which it has heard nothing since, though messages were due.
    pub silent_after_return: u64,
}

impl Deliveries {
    /// `learn`: the first sequence that comes from a publisher is taken as the beginning, because it publishes
    /// without being asked.
    pub fn new(member_count: u32, publishers_per_room: u32, learn: bool) -> Self {
        let first = if learn { SEQUENCE_ANY } else { 0 };
        Self {
            publishers_per_room,
            next: vec![first; member_count as usize * publishers_per_room as usize],
            missing: HashMap::new(),
            missing_count: 0,
            counts: Counts::default(),
            heard: Heard::new(member_count, publishers_per_room),
        }
    }

    /// A delivery to `member` from the `publisher`th publisher of its room. True: it is the first of its kind.
    pub fn delivered(&mut self, member: u32, publisher: u32, sequence: u32) -> bool {
        let index = member as usize * self.publishers_per_room as usize + publisher as usize;
        let next = &mut self.next[index];
        if sequence == *next || *next == SEQUENCE_ANY {
            *next = sequence.saturating_add(1);
            self.counts.delivered += 1;
            self.heard.add(member, publisher, sequence);
            return true;
        }
        self.heard.give_up(member);
        self.out_of_order(index, sequence)
    }

    #[cold]
    fn out_of_order(&mut self, index: usize, sequence: u32) -> bool {
        let next = self.next[index];
        if sequence > next {
            self.counts.lost += u64::from(sequence - next);
            let room = MISSING_COUNT_MAX - self.missing_count;
            let skipped: Vec<u32> = (next..sequence).take(room).collect();
            self.missing_count += skipped.len();
            self.missing.entry(index).or_default().extend(skipped);
            self.next[index] = sequence.saturating_add(1);
            self.counts.delivered += 1;
            return true;
        }
        if self
            .missing
            .get_mut(&index)
            .is_some_and(|missing| missing.remove(&sequence))
        {
            self.missing_count -= 1;
            self.counts.lost -= 1;
            self.counts.reordered += 1;
            self.counts.delivered += 1;
            return true;
        }
        self.counts.duplicated += 1;
        false
    }

    /// A payload that no publisher wrote.
    pub fn corrupted(&mut self) {
        self.counts.corrupted += 1;
    }

    /// A payload of another room.
    pub fn misrouted(&mut self) {
        self.counts.misrouted += 1;
    }

    /// The server told a member that it missed `count`.
    pub fn told(&mut self, count: u64) {
        self.counts.lost_as_told = self.counts.lost_as_told.saturating_add(count);
    }

    /// `member` was away for a while: what comes next from each publisher is taken as a beginning.
    pub fn forget(&mut self, member: u32) {
        self.heard.give_up(member);
        let first = member as usize * self.publishers_per_room as usize;
        for index in first..first + self.publishers_per_room as usize {
            self.next[index] = SEQUENCE_ANY;
            if let Some(missing) = self.missing.remove(&index) {
                self.missing_count -= missing.len();
            }
        }
    }

    /// Whether `member` has heard nothing of the `publisher`th publisher of its room since it was forgotten.
    pub fn is_silent(&self, member: u32, publisher: u32) -> bool {
        let index = member as usize * self.publishers_per_room as usize + publisher as usize;
        self.next[index] == SEQUENCE_ANY
    }

    /// Counts a silence after a return.
    pub fn silent(&mut self) {
        self.counts.silent_after_return += 1;
    }

    /// Counts what never came to `member`, now that the `publisher`th publisher of its room has sent `published`.
    pub fn close(&mut self, member: u32, publisher: u32, published: u32) {
        let index = member as usize * self.publishers_per_room as usize + publisher as usize;
        let next = &mut self.next[index];
        if *next != SEQUENCE_ANY && *next < published {
            self.counts.lost += u64::from(published - *next);
            *next = published;
            self.heard.give_up(member);
        }
    }

    /// The order in which `member` heard all there was, as a sum; to be asked when everything is closed.
    pub fn order(&self, member: u32) -> Option<u64> {
        self.heard.sum(member)
    }

    /// What was found so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

impl Counts {
    /// Deliveries that were not as they should be.
    pub fn faults(&self) -> u64 {
        self.lost + self.duplicated + self.reordered + self.corrupted + self.misrouted
    }

    /// Adds another worker's.
    pub fn merge(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.corrupted += other.corrupted;
        self.misrouted += other.misrouted;
        self.lost_as_told = self.lost_as_told.saturating_add(other.lost_as_told);
        self.silent_after_return += other.silent_after_return;
    }

    /// Adds them to a report: figures, and a fault for each kind that is not zero.
    pub fn report(&self, report: &mut Report) {
        report.count("delivered", self.delivered);
        for (name, count) in [
            ("lost", self.lost),
            ("duplicated", self.duplicated),
            ("reordered", self.reordered),
            ("corrupted", self.corrupted),
            ("misrouted", self.misrouted),
        ] {
            report.count(name, count);
            if count > 0 {
                report.fault(format!("{count} deliveries were {name}"));
            }
        }
        report.count("lost_as_told", self.lost_as_told);
        if self.silent_after_return > 0 {
            report.count("silent_after_return", self.silent_after_return);
            report.note(format!(
                "{} times a member that came back heard nothing more of a publisher: how much it lost is not known (the publisher \
                 may have been away, too)",
                self.silent_after_return
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(sequences: &[u32], published: u32) -> Counts {
        let mut deliveries = Deliveries::new(2, 3, false);
        for sequence in sequences {
            deliveries.delivered(1, 2, *sequence);
        }
        deliveries.close(1, 2, published);
        deliveries.counts()
    }

    #[test]
    fn each_fault_is_counted_as_what_it_is() {
        let fine = Counts {
            delivered: 4,
            ..Counts::default()
        };
        assert_eq!(counts(&[0, 1, 2, 3], 4), fine);
        assert_eq!(
            counts(&[0, 2, 3], 4),
            Counts {
                delivered: 3,
                lost: 1,
                ..Counts::default()
            }
        );
        assert_eq!(
            counts(&[0, 1, 1, 2, 3], 4),
            Counts {
                duplicated: 1,
                ..fine
            }
        );
        assert_eq!(
            counts(&[0, 2, 1, 3], 4),
            Counts {
                reordered: 1,
                ..fine
            }
        );
        assert_eq!(
            counts(&[0, 2, 1, 3, 1], 4),
            Counts {
                reordered: 1,
                duplicated: 1,
                ..fine
            }
        );
        assert_eq!(
            counts(&[0, 1], 4),
            Counts {
                delivered: 2,
                lost: 2,
                ..Counts::default()
            },
            "the tail"
        );
        assert_eq!(
            counts(&[], 4),
            Counts {
                lost: 4,
                ..Counts::default()
            },
            "all of it"
        );
    }

    #[test]
    fn who_was_away_begins_anew() {
        let mut deliveries = Deliveries::new(1, 2, false);
        assert!(deliveries.delivered(0, 1, 0) && deliveries.delivered(0, 1, 3));
        deliveries.forget(0);
        assert!(deliveries.delivered(0, 1, 9) && deliveries.delivered(0, 1, 10));
        deliveries.close(0, 0, 40); // nothing came of it since: nobody knows what was to come
        deliveries.close(0, 1, 12);
        assert_eq!(
            deliveries.counts(),
            Counts {
                delivered: 4,
                lost: 2 + 1,
                ..Counts::default()
            }
        );
    }

    #[test]
    fn a_publisher_that_began_before_is_learnt() {
        let mut deliveries = Deliveries::new(1, 1, true);
        assert!(deliveries.delivered(0, 0, 500));
        assert!(deliveries.delivered(0, 0, 502));
        deliveries.close(0, 0, 503);
        assert_eq!(
            deliveries.counts(),
            Counts {
                delivered: 2,
                lost: 1,
                ..Counts::default()
            }
        );
    }
}
