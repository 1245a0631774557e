//! How far the clock of another machine is from this one's.

/// A ping and its answer.
#[derive(Debug, Clone, Copy)]
pub struct Ping {
    /// When it left, by the coordinator's clock.
    pub sent_ns: u64,
    /// When it was there, by the joiner's.
    pub at_ns: u64,
    /// When the answer was back, by the coordinator's.
    pub received_ns: u64,
}

/// The difference of two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skew {
    /// The coordinator's clock minus the joiner's.
    pub offset_ns: i64,
    /// By how much that may be wrong, either way: half of the round trip that told it.
    pub error_ns: u64,
    /// The longest round trip.
    pub round_trip_max_ns: u64,
}

impl Skew {
    /// What the fastest of these pings tells. None: there are none.
    pub fn of(pings: &[Ping]) -> Option<Self> {
        let round_trip = |ping: &Ping| ping.received_ns.saturating_sub(ping.sent_ns);
        let best = pings.iter().min_by_key(|ping| round_trip(ping))?;
        let middle_ns = best.sent_ns + round_trip(best) / 2;
        Some(Self {
            offset_ns: middle_ns.wrapping_sub(best.at_ns).cast_signed(),
            error_ns: round_trip(best).div_ceil(2),
            round_trip_max_ns: pings.iter().map(round_trip).max()?,
        })
    }

    /// The same if both may have one clock: then they have, unless the pings prove that they do not (a container may have
    /// a clock of its own).
    pub fn of_one_machine(self) -> Self {
        if self.offset_ns.unsigned_abs() > self.error_ns {
            return self;
        }
        Self {
            offset_ns: 0,
            error_ns: 0,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ping(sent_ns: u64, there_ns: u64, back_ns: u64, joiner_ahead_ns: i64) -> Ping {
        Ping {
            sent_ns,
            at_ns: (sent_ns + there_ns)
                .checked_add_signed(joiner_ahead_ns)
                .unwrap(),
            received_ns: sent_ns + there_ns + back_ns,
        }
    }

    #[test]
    fn the_fastest_ping_tells_the_offset_within_half_its_round_trip() {
        for ahead_ns in [-7_000_000_000, -1, 0, 123_456_789, 40_000_000_000_000] {
            let pings: Vec<Ping> = (0..16)
                .map(|index| {
                    let slow = if index == 11 {
                        0
                    } else {
                        300_000 + index * 1_000
                    };
                    ping(
                        60_000_000_000_000 + index * 1_000_000,
                        20_000 + slow,
                        50_000,
                        ahead_ns,
                    )
                })
                .collect();
            let skew = Skew::of(&pings).unwrap();
            assert_eq!((skew.error_ns, skew.round_trip_max_ns), (35_000, 385_000));
            assert!(
                (skew.offset_ns + ahead_ns).unsigned_abs() <= skew.error_ns,
                "{skew:?}"
            );
        }
        assert_eq!(Skew::of(&[]), None);
    }

    #[test]
    fn one_machine_has_one_clock_unless_the_pings_disprove_it() {
        let near = Skew::of(&[ping(1_000_000, 10_000, 70_000, 0)]).unwrap();
        assert_eq!(near.offset_ns, 30_000);
        assert_eq!(
            (
                near.of_one_machine().offset_ns,
                near.of_one_machine().error_ns
            ),
            (0, 0)
        );
        let far = Skew::of(&[ping(1_000_000, 10_000, 70_000, 5_000_000)]).unwrap();
        assert_eq!(far.of_one_machine(), far);
    }
}
