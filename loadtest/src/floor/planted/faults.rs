//! Which deliveries go wrong, and how. Reads no clock and touches no socket.
//!
//! Deliveries are numbered as they become due, from the moment on at which faults begin. Of each N of them, each fault
//! takes one, at a place that the seed gives; when two want the same, or a fault is not possible there, the later one
//! takes the next. So the kinds are disjoint and their counts known: one in each N, no more, and none missing but at
//! the very end.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::distribution::choices;
use super::plants::Plants;
use super::schedule::{Due, Frame, MemberId, Schedule};
use super::tally::Tally;
use crate::random::Random;

/// For how long a delivery is held back for a later one to pass it. Without one it is written then, in order.
const HELD_NS_MAX: u64 = 1_000_000_000;

/// What is wrong with a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is not written.
    Lose,
    /// It is written twice.
    Duplicate,
    /// It is written after the next one of the same publisher to the same member.
    Reorder,
    /// One bit of its payload is changed.
    Corrupt,
    /// It is written to a member of another room as well.
    Misroute,
}

impl Fault {
    const ALL: [Self; 5] = [
        Self::Lose,
        Self::Duplicate,
        Self::Reorder,
        Self::Corrupt,
        Self::Misroute,
    ];
}

/// Chooses one number in each block of `every`.
#[derive(Debug)]
struct Picker {
    every: u64,
    block: u64,
    next: u64,
    random: Random,
}

impl Picker {
    fn new(every: u64, mut random: Random) -> Self {
        Self {
            every,
            block: 0,
            next: random.below(every),
            random,
        }
    }

    fn advance(&mut self) {
        self.block += 1;
        self.next = self.block * self.every + self.random.below(self.every);
    }
}

/// A frame that is to be written now.
#[derive(Debug)]
pub struct Write {
    /// To whom.
    pub member: MemberId,
    /// What.
    pub frame: Rc<Frame>,
    /// Which bit of the payload is changed.
    pub flipped_bit: Option<u64>,
    /// When it was due, if this is the delivery whose latency counts: the first whole one, to a member of its room.
    pub due_ns: Option<u64>,
}

#[derive(Debug)]
struct Held {
    frame: Rc<Frame>,
    due_ns: u64,
    number: u64,
}

/// From a publisher to a member.
type Pair = (MemberId, MemberId);

/// Chooses deliveries and spoils them.
#[derive(Debug)]
pub struct Faults {
    pickers: [Option<Picker>; 5],
    /// How long after the first delivery they begin, nanoseconds.
    after_ns: u64,
    first_due_ns: Option<u64>,
    delivery_count: u64,
    random: Random,
    held: HashMap<Pair, Vec<Held>>,
    held_number: u64,
    /// When what is held is given up, in order.
    held_until: VecDeque<(u64, Pair, u64)>,
}

impl Faults {
    /// As planted.
    pub fn new(plants: &Plants) -> Self {
        let mut salt = 1;
        let pickers = plants.faults().map(|one_in| {
            salt += 1;
            one_in.map(|one_in| Picker::new(one_in.0, choices(plants.seed, salt)))
        });
        Self {
            pickers,
            after_ns: plants.faults_after,
            first_due_ns: None,
            delivery_count: 0,
            random: choices(plants.seed, 7),
            held: HashMap::new(),
            held_number: 0,
            held_until: VecDeque::new(),
        }
    }

    fn choose(&mut self, can: impl Fn(Fault) -> bool) -> Option<Fault> {
        let number = self.delivery_count;
        self.delivery_count += 1;
        for (fault, picker) in Fault::ALL.into_iter().zip(&mut self.pickers) {
            if let Some(picker) = picker
                && picker.next <= number
                && can(fault)
            {
                picker.advance();
                return Some(fault);
            }
        }
        None
    }

    /// Puts what is written for the delivery of `due` to `member` into `writes`, and counts what was done to it.
    pub fn deliver(
        &mut self,
        due: &Due,
        member: MemberId,
        schedule: &Schedule,
        now_ns: u64,
        tally: &mut Tally,
        writes: &mut Vec<Write>,
    ) {
        let frame = &due.frame;
        let payload_bits = (frame.bytes.len() - frame.header_bytes) as u64 * 8;
        let first_due_ns = *self.first_due_ns.get_or_insert(due.due_ns);
        let fault = if due.due_ns < first_due_ns + self.after_ns {
            None
        } else {
            self.choose(|fault| match fault {
                Fault::Corrupt => payload_bits > 0,
                Fault::Misroute => schedule.has_others(frame.room),
                Fault::Lose | Fault::Duplicate | Fault::Reorder => true,
            })
        };
        tally.deliveries += 1;
        let pair = (frame.sender, member);
        let write = |member, flipped_bit, due_ns| Write {
            member,
            frame: Rc::clone(frame),
            flipped_bit,
            due_ns,
        };
        match fault {
            None => writes.push(write(member, None, Some(due.due_ns))),
            Some(Fault::Lose) => {
                tally.lost += 1;
                return;
            }
            Some(Fault::Duplicate) => {
                tally.duplicated += 1;
                writes.push(write(member, None, Some(due.due_ns)));
                writes.push(write(member, None, None));
            }
            Some(Fault::Reorder) => {
                self.hold(due, pair, now_ns);
                return;
            }
            Some(Fault::Corrupt) => {
                tally.corrupted += 1;
                let bit = self.random.below(payload_bits);
                writes.push(write(member, Some(bit), None));
                return; // nothing passes what is held by coming spoiled
            }
            Some(Fault::Misroute) => {
                writes.push(write(member, None, Some(due.due_ns)));
                if let Some(stranger) = schedule.draw_elsewhere(frame.room, &mut self.random) {
                    tally.misrouted += 1;
                    writes.push(write(stranger, None, None));
                }
            }
        }
        if !self.held.is_empty()
            && let Some(list) = self.held.remove(&pair)
        {
            tally.reordered += list.len() as u64;
            for held in list {
                writes.push(Write {
                    member,
                    frame: held.frame,
                    flipped_bit: None,
                    due_ns: Some(held.due_ns),
                });
            }
        }
    }

    fn hold(&mut self, due: &Due, pair: Pair, now_ns: u64) {
        let number = self.held_number;
        self.held_number += 1;
        self.held.entry(pair).or_default().push(Held {
            frame: Rc::clone(&due.frame),
            due_ns: due.due_ns,
            number,
        });
        self.held_until
            .push_back((now_ns + HELD_NS_MAX, pair, number));
    }

    /// When the next delivery that nothing has passed is given up.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.held_until.front().map(|(at_ns, ..)| *at_ns)
    }

    /// Puts what nothing has passed in time into `writes`, in order: it was not reordered.
    pub fn give_up(&mut self, now_ns: u64, writes: &mut Vec<Write>) {
        while let Some((at_ns, pair, number)) = self.held_until.front().copied() {
            if at_ns > now_ns {
                break;
            }
            self.held_until.pop_front();
            // Earlier ones to the same member were given up before, later ones wait behind it.
            if let Some(list) = self.held.get_mut(&pair)
                && list.first().is_some_and(|held| held.number == number)
            {
                let held = list.remove(0);
                if list.is_empty() {
                    self.held.remove(&pair);
                }
                writes.push(Write {
                    member: pair.1,
                    frame: held.frame,
                    flipped_bit: None,
                    due_ns: Some(held.due_ns),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use throng::protocol::OpCode;

    use super::*;
    use crate::floor::planted::plants::OneIn;

    const READER: MemberId = MemberId {
        index: 0,
        serial: 0,
    };
    const STRANGER: MemberId = MemberId {
        index: 1,
        serial: 1,
    };

    /// What is written for `count` messages to one member of a room, and one member in another room.
    fn written(plants: &Plants, count: u32) -> (Vec<Write>, Tally, Faults) {
        let mut schedule = Schedule::new(plants);
        let room = schedule.join("/rooms/a", READER);
        schedule.join("/rooms/b", STRANGER);
        let (mut faults, mut tally, mut writes) =
            (Faults::new(plants), Tally::default(), Vec::new());
        for number in 0..count {
            let payload = number.to_be_bytes();
            let came_ns = u64::from(number);
            schedule.publish(Frame::new(OpCode::Binary, &payload, READER, room, came_ns));
            let due = schedule.poll_due(u64::MAX).unwrap();
            for member in due.members() {
                let now_ns = due.due_ns;
                faults.deliver(&due, *member, &schedule, now_ns, &mut tally, &mut writes);
            }
        }
        (writes, tally, faults)
    }

    fn number(write: &Write) -> u32 {
        u32::from_be_bytes(write.frame.bytes[2..6].try_into().unwrap())
    }

    fn one_in(count: u64) -> Option<OneIn> {
        Some(OneIn(count))
    }

    #[test]
    fn all_kinds_together_are_disjoint_and_exactly_as_many_as_planted() {
        let plants = Plants {
            lose: one_in(20),
            duplicate: one_in(20),
            reorder: one_in(20),
            corrupt: one_in(20),
            misroute: one_in(20),
            ..Plants::default()
        };
        for seed in 0..50 {
            let plants = Plants {
                seed,
                ..plants.clone()
            };
            let (writes, tally, faults) = written(&plants, 2_000);
            let own: Vec<_> = writes
                .iter()
                .filter(|write| write.member == READER)
                .collect();
            let mut seen = vec![0; 2_000];
            let (mut latest, mut late) = (0, 0);
            for write in own.iter().filter(|write| write.flipped_bit.is_none()) {
                let number = number(write);
                if seen[number as usize] == 0 && number < latest {
                    late += 1;
                }
                latest = latest.max(number);
                seen[number as usize] += 1;
            }
            let count = |times| seen.iter().filter(|seen| **seen == times).count() as u64;
            let held: usize = faults.held.values().map(Vec::len).sum();
            assert_eq!(count(2), tally.duplicated, "seed {seed}");
            assert_eq!(count(0), tally.lost + tally.corrupted + held as u64);
            assert_eq!(late, tally.reordered);
            let flipped = writes.iter().filter(|write| write.flipped_bit.is_some());
            assert_eq!(flipped.count() as u64, tally.corrupted);
            let strayed = writes.iter().filter(|write| write.member == STRANGER);
            assert_eq!(strayed.count() as u64, tally.misrouted);
            let timed = writes.iter().filter(|write| write.due_ns.is_some()).count();
            assert_eq!(timed as u64, count(1) + count(2), "each is timed once");
            for (kind, planted) in [
                ("lost", tally.lost),
                ("duplicated", tally.duplicated),
                ("reordered", tally.reordered + held as u64),
                ("corrupted", tally.corrupted),
                ("misrouted", tally.misrouted),
            ] {
                // One in each 20 of 2,000; the last may be pushed beyond the end by another kind.
                assert!(
                    (99..=100).contains(&planted),
                    "{planted} {kind}, seed {seed}"
                );
            }
        }
    }

    #[test]
    fn faults_begin_when_they_are_to() {
        let plants = Plants {
            lose: one_in(10),
            faults_after: 400,
            ..Plants::default()
        };
        let (writes, tally, _) = written(&plants, 600); // one each nanosecond
        assert_eq!(tally.lost, 20);
        assert!(writes.iter().map(number).take(400).eq(0..400));
    }

    #[test]
    fn nothing_is_planted_unasked() {
        let (writes, tally, _) = written(&Plants::default(), 500);
        assert!(writes.iter().map(number).eq(0..500));
        assert!(writes.iter().all(|write| write.due_ns.is_some()));
        assert_eq!((tally.deliveries, tally.lost, tally.misrouted), (500, 0, 0));
    }

    #[test]
    fn what_nothing_passes_is_written_late_and_not_counted_as_reordered() {
        let plants = Plants {
            reorder: one_in(2),
            ..Plants::default()
        };
        let (mut writes, tally, mut faults) = (1..100)
            .map(|seed| {
                written(
                    &Plants {
                        seed,
                        ..plants.clone()
                    },
                    1,
                )
            })
            .find(|(writes, ..)| writes.is_empty())
            .expect("with some seed the first of two is taken");
        assert_eq!(tally.reordered, 0);
        assert_eq!(faults.next_deadline_ns(), Some(HELD_NS_MAX));
        faults.give_up(HELD_NS_MAX - 1, &mut writes);
        assert!(writes.is_empty());
        faults.give_up(HELD_NS_MAX, &mut writes);
        assert_eq!(writes.len(), 1);
        assert_eq!(writes[0].due_ns, Some(0));
        assert!(faults.held.is_empty() && faults.next_deadline_ns().is_none());
    }
}
