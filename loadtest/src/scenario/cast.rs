//! Who plays in a scenario of rooms: how many members, of which kind, in which room, on which target.

use crate::dialect::Dialect;
use crate::random::Random;
use crate::size::Size;

/// Who plays in a scenario, the same for all workers.
///
/// Members are numbered through: first the readers, room after room, then those that stall, crawl and churn, dealt out
/// to the rooms in turn.
#[derive(Debug, Clone)]
pub struct Cast {
    /// How the servers are spoken to.
    pub dialect: Dialect,
    /// What the rooms' names begin with.
    pub prefix: &'static str,
    /// Rooms.
    pub rooms: u32,
    /// Readers of each room.
    pub room_members: u32,
    /// Those of them that publish; 0: the server publishes by itself.
    pub publishers: u32,
    /// Publishers are connected to the first target only.
    pub publish_on_first: bool,
    /// Targets that the members of each room are spread over.
    pub targets: u32,
    /// Payloads.
    pub size: Size,
    /// Nanoseconds from one message of a publisher to its next.
    pub interval_ns: u64,
    /// Closed loop: so many messages of a publisher are on their way, and the next leaves when one has come back.
    pub in_flight: Option<u32>,
    /// Members that never read.
    pub stalled: u32,
    /// Members that read slowly.
    pub crawling: u32,
    /// How slowly.
    pub crawl_bytes_per_s: u64,
    /// Members that never read or read slowly come back when they were cut off.
    pub slow_come_back: bool,
    /// Members that come and go.
    pub churning: u32,
    /// How long they stay, and how long they are away, about.
    pub churn_ns: u64,
    /// How readers come back after they were dropped or closed.
    pub back: Option<Back>,
    /// Where random numbers come from.
    pub seed: u64,
}

/// How a client comes back: exponential backoff with jitter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Back {
    /// The first delay.
    pub first_ns: u64,
    /// Delays double up to this.
    pub max_ns: u64,
    /// The share of each delay that is random: 1 is full jitter, 0 none.
    pub jitter: f64,
    /// The server's advice takes the place of the first delay.
    pub advice: bool,
    /// Each attempt goes to the next target.
    pub next_target: bool,
}

impl Back {
    /// The delay before attempt `attempt`, counted from 0.
    pub fn delay_ns(&self, attempt: u32, random: &mut Random) -> u64 {
        let whole = self
            .first_ns
            .saturating_mul(1 << attempt.min(40))
            .min(self.max_ns);
        let jitter = (whole as f64 * self.jitter) as u64;
        whole - jitter + random.below(jitter + 1)
    }
}

/// What a member does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reads, and perhaps publishes.
    Reader,
    /// Never reads.
    Stalled,
    /// Reads slowly.
    Crawling,
    /// Comes and goes.
    Churning,
}

impl Cast {
    /// Readers of all rooms.
    pub const fn readers(&self) -> u32 {
        self.rooms * self.room_members
    }

    /// Members of all kinds.
    pub const fn member_count(&self) -> u32 {
        self.readers() + self.stalled + self.crawling + self.churning
    }

    /// What a member does, by its number.
    pub fn kind(&self, number: u32) -> Kind {
        let others = number.wrapping_sub(self.readers());
        if number < self.readers() {
            Kind::Reader
        } else if others < self.stalled {
            Kind::Stalled
        } else if others < self.stalled + self.crawling {
            Kind::Crawling
        } else {
            Kind::Churning
        }
    }

    /// A member's room.
    pub fn room(&self, number: u32) -> u32 {
        if number < self.readers() {
            number / self.room_members
        } else {
            (number - self.readers()) % self.rooms
        }
    }

    /// The target that a member connects to first.
    pub fn target(&self, number: u32) -> u32 {
        if number < self.readers() {
            number % self.room_members % self.targets
        } else {
            (number - self.readers()) / self.rooms % self.targets
        }
    }

    /// Which of its room's publishers a reader is.
    pub fn publisher_index(&self, number: u32) -> Option<u32> {
        let position = number % self.room_members;
        let step = if self.publish_on_first {
            self.targets
        } else {
            1
        };
        (position.is_multiple_of(step) && position / step < self.publishers)
            .then_some(position / step)
    }

    /// Publishers that a reader of a room may hear.
    pub const fn heard(&self) -> u32 {
        if self.publishers == 0 {
            1
        } else {
            self.publishers
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cast(publish_on_first: bool) -> Cast {
        Cast {
            dialect: Dialect::Raw,
            prefix: "test",
            rooms: 3,
            room_members: 10,
            publishers: 2,
            publish_on_first,
            targets: 4,
            size: "64".parse().unwrap(),
            interval_ns: 1,
            in_flight: None,
            stalled: 5,
            crawling: 6,
            crawl_bytes_per_s: 1,
            slow_come_back: false,
            churning: 7,
            churn_ns: 1,
            back: None,
            seed: 1,
        }
    }

    #[test]
    fn each_room_has_its_readers_on_all_targets_and_its_publishers_where_they_belong() {
        for on_first in [false, true] {
            let cast = cast(on_first);
            for room in 0..3 {
                let members: Vec<u32> = (0..30)
                    .filter(|number| cast.room(*number) == room)
                    .collect();
                assert_eq!(members.len(), 10);
                let publishers: Vec<(u32, u32)> = members
                    .iter()
                    .filter_map(|number| {
                        Some((cast.publisher_index(*number)?, cast.target(*number)))
                    })
                    .collect();
                let expected = if on_first {
                    [(0, 0), (1, 0)]
                } else {
                    [(0, 0), (1, 1)]
                };
                assert_eq!(publishers, expected);
                for target in 0..4 {
                    let on_target = members
                        .iter()
                        .filter(|number| cast.target(**number) == target);
                    assert!((2..=3).contains(&on_target.count()), "target {target}");
                }
            }
        }
    }

    #[test]
    fn the_kinds_follow_one_another() {
        let cast = cast(false);
        assert_eq!(cast.member_count(), 48);
        let count = |kind| (0..48).filter(|number| cast.kind(*number) == kind).count();
        assert_eq!(
            [Kind::Reader, Kind::Stalled, Kind::Crawling, Kind::Churning].map(count),
            [30, 5, 6, 7]
        );
        assert!((30..48).all(|number| cast.room(number) < 3 && cast.target(number) < 4));
    }

    #[test]
    fn delays_double_up_to_their_bound_and_jitter_stays_within_its_share() {
        let mut random = Random::new(1);
        let mut back = Back {
            first_ns: 100,
            max_ns: 1_000,
            jitter: 0.0,
            advice: false,
            next_target: false,
        };
        let delays: Vec<u64> = (0..6)
            .map(|attempt| back.delay_ns(attempt, &mut random))
            .collect();
        assert_eq!(delays, [100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(back.delay_ns(u32::MAX, &mut random), 1_000);
        back.jitter = 0.5;
        let delays: Vec<u64> = (0..1_000).map(|_| back.delay_ns(3, &mut random)).collect();
        assert!(delays.iter().all(|delay| (400..=800).contains(delay)));
        assert!(delays.iter().any(|delay| *delay < 450) && delays.iter().any(|delay| *delay > 750));
    }
}
