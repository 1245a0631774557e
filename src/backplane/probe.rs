//! Probes: does every shard still read its lane and answer?

use std::time::Duration;

use crate::bus::CoreId;
use crate::metrics::Log2Histogram;
use crate::time::Tick;

/// The probe that a shard was sent last.
#[derive(Debug, Clone, Copy, Default)]
struct Probe {
    sequence: u64,
    sent: Tick,
    answered: bool,
}

/// One probe in flight a shard at most; an unanswered one is not repeated, it grows old.
#[derive(Debug)]
pub struct Probes {
    shards: Vec<Probe>,
    interval: Duration,
    timeout_us: u64,
    next: Tick,
    sequence: u64,
    round_trip: Log2Histogram,
}

impl Probes {
    /// Nobody has been probed; the first round is due at `now`.
    pub fn new(shard_count: u8, interval_ms: u32, timeout_ms: u32, now: Tick) -> Self {
        Self {
            shards: vec![
                Probe {
                    answered: true,
                    ..Probe::default()
                };
                usize::from(shard_count)
            ],
            interval: Duration::from_millis(u64::from(interval_ms)),
            timeout_us: u64::from(timeout_ms) * 1_000,
            next: now,
            sequence: 0,
            round_trip: Log2Histogram::default(),
        }
    }

    /// When the next round is due.
    pub fn next_deadline(&self) -> Tick {
        self.next
    }

    /// Begins a round if it is due: calls `send` with shard and number.
    pub fn handle_deadline(&mut self, now: Tick, mut send: impl FnMut(CoreId, u64)) {
        if now < self.next {
            return;
        }
        self.next = now.after(self.interval);
        self.sequence += 1;
        for (shard, probe) in (0u8..).map(CoreId).zip(&mut self.shards) {
            if probe.answered {
                *probe = Probe {
                    sequence: self.sequence,
                    sent: now,
                    answered: false,
                };
                send(shard, self.sequence);
            }
        }
    }

    /// Takes an answer in. One that belongs to no probe in flight is ignored.
    pub fn handle_reply(&mut self, from: CoreId, sequence: u64, now: Tick) {
        let probe = &mut self.shards[usize::from(from.0)];
        if probe.sequence == sequence && !probe.answered {
            probe.answered = true;
            self.round_trip.record(now.since(probe.sent), 1);
        }
    }

    /// Shards whose probe has not been answered for the timeout.
    pub fn stalled_shards(&self, now: Tick) -> impl Iterator<Item = CoreId> + '_ {
        (0u8..)
            .map(CoreId)
            .zip(&self.shards)
            .filter_map(move |(shard, probe)| {
                (!probe.answered && now.since(probe.sent) >= self.timeout_us).then_some(shard)
            })
    }

    /// From a probe to its answer, all shards together.
    pub fn round_trip(&self) -> &Log2Histogram {
        &self.round_trip
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(probes: &mut Probes, now: Tick) -> Vec<(CoreId, u64)> {
        let mut sent = Vec::new();
        probes.handle_deadline(now, |shard, sequence| sent.push((shard, sequence)));
        sent
    }

    #[test]
    fn a_shard_is_stalled_from_the_timeout_until_it_answers_and_is_not_probed_meanwhile() {
        let mut probes = Probes::new(2, 1_000, 3_000, Tick(0));
        assert_eq!(
            round(&mut probes, Tick(0)),
            [(CoreId(0), 1), (CoreId(1), 1)]
        );
        assert_eq!(round(&mut probes, Tick::from_ms(999)), []);
        probes.handle_reply(CoreId(0), 1, Tick(200));
        assert_eq!(round(&mut probes, Tick::from_ms(1_000)), [(CoreId(0), 2)]);
        probes.handle_reply(CoreId(0), 1, Tick::from_ms(1_001)); // an old answer tells nothing
        let stalled =
            |probes: &Probes, ms| probes.stalled_shards(Tick::from_ms(ms)).collect::<Vec<_>>();
        assert_eq!(stalled(&probes, 2_999), []);
        assert_eq!(stalled(&probes, 3_000), [CoreId(1)]);
        assert_eq!(stalled(&probes, 4_000), [CoreId(0), CoreId(1)]);
        probes.handle_reply(CoreId(1), 1, Tick::from_ms(4_000));
        assert_eq!(stalled(&probes, 4_000), [CoreId(0)]);
        assert_eq!(round(&mut probes, Tick::from_ms(4_000)), [(CoreId(1), 3)]);
        assert_eq!(probes.round_trip().count(), 2);
        assert_eq!(probes.round_trip().sum_us(), 4_000_200);
    }
}
