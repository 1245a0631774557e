//! One turn of the backplane core over all lanes, fair to each: what the runtime calls in its loop.

use super::{Action, Backplane, LaneRoom, Offered};
use crate::bus::{CoreId, Upstream};
use crate::limits::LANE_TURN_ENVELOPE_COUNT_MAX;
use crate::time::Tick;

/// The lanes, as the runtime has them.
pub trait Ports: LaneRoom {
    /// The next envelope that `from` has sent.
    fn take(&mut self, from: CoreId) -> Option<Upstream>;
    /// Does what the action says, before it returns.
    fn perform(&mut self, action: Action);
}

/// What a turn has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TurnReport {
    /// Envelopes handled.
    pub handled_count: usize,
    /// Some lane may have more: another turn is due at once.
    pub more: bool,
    /// Some lane waits for room in another. A turn is due when a shard has read, or soon.
    pub stalled: bool,
}

/// Handles the deadlines that are due, what was stalled, oldest first, then up to
/// [`LANE_TURN_ENVELOPE_COUNT_MAX`] envelopes of each lane, beginning with shard `first % shards`.
///
/// A caller that counts `first` up gives every lane its turn to be the first.
pub fn turn(
    backplane: &mut Backplane,
    ports: &mut impl Ports,
    first: usize,
    now: Tick,
) -> TurnReport {
    let mut report = TurnReport::default();
    backplane.handle_deadline(now);
    backplane.turn_registry(now);
    perform_actions(backplane, ports);
    report.handled_count += deliver_all(backplane, ports);
    while backplane.has_stalled() && backplane.retry(ports, now) {
        report.handled_count += 1;
        perform_actions(backplane, ports);
    }
    let shard_count = backplane.shard_count();
    for offset in 0..shard_count {
        let from = (first + offset) % shard_count;
        let from = CoreId(u8::try_from(from).expect("a shard id is a byte"));
        report.more |= turn_lane(backplane, ports, from, now, &mut report.handled_count);
    }
    backplane.turn_registry(now);
    report.handled_count += deliver_all(backplane, ports);
    report.stalled = backplane.has_stalled() || backplane.has_backlog();
    report
}

/// Moves what waits for the shards into their lanes, as far as these take it. How many envelopes.
fn deliver_all(backplane: &mut Backplane, ports: &mut impl Ports) -> usize {
    let mut count = 0;
    while backplane.deliver_next(ports) {
        perform_actions(backplane, ports);
        count += 1;
    }
    count
}

/// Whether the lane may have more that can be handled.
fn turn_lane(
    backplane: &mut Backplane,
    ports: &mut impl Ports,
    from: CoreId,
    now: Tick,
    handled_count: &mut usize,
) -> bool {
    for _ in 0..LANE_TURN_ENVELOPE_COUNT_MAX {
        if !backplane.accepts(from) {
            return false;
        }
        let Some(envelope) = ports.take(from) else {
            return false;
        };
        if backplane.offer(from, envelope, ports, now) == Offered::Handled {
            *handled_count += 1;
        }
        perform_actions(backplane, ports);
    }
    true
}

/// Performs what the last input has brought: to be called after each one that is not given by [`turn`]
/// ([`Backplane::ask`], [`Backplane::publish`], [`Backplane::order_drain`]).
pub fn perform_actions(backplane: &mut Backplane, ports: &mut impl Ports) {
    while let Some(action) = backplane.poll_action() {
        ports.perform(action);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::Options;
    use crate::bus::{Batch, Downstream, LaneReader, LaneWriter, RoomName, lane};
    use crate::limits::{LANE_CONTROL_RESERVE, LANE_ENVELOPE_COUNT_MAX};
    use std::sync::Arc;

    /// The real lanes of two shards, both ends in one thread.
    struct Lanes {
        up: Vec<(LaneWriter<Upstream>, LaneReader<Upstream>)>,
        down: Vec<(LaneWriter<Downstream>, LaneReader<Downstream>)>,
    }

    impl Lanes {
        fn new() -> Self {
            Self {
                up: (0..2).map(|_| lane()).collect(),
                down: (0..2).map(|_| lane()).collect(),
            }
        }

        fn say(&mut self, shard: usize, envelope: Upstream) {
            self.up[shard].0.try_send_data(envelope, 0).unwrap();
        }

        fn read(&mut self, shard: usize) -> usize {
            let reader = &mut self.down[shard].1;
            let count = std::iter::from_fn(|| reader.next_envelope()).count();
            reader.settle();
            count
        }
    }

    impl LaneRoom for Lanes {
        fn fits(&self, shard: CoreId, bytes: u32) -> bool {
            self.down[usize::from(shard.0)].0.fits(bytes)
        }
    }

    impl Ports for Lanes {
        fn take(&mut self, from: CoreId) -> Option<Upstream> {
            self.up[usize::from(from.0)].1.next_envelope()
        }

        fn perform(&mut self, action: Action) {
            match action {
                Action::Send {
                    to,
                    envelope,
                    bytes,
                } => {
                    self.down[usize::from(to.0)]
                        .0
                        .try_send_data(envelope, bytes)
                        .expect("the lane was looked at");
                }
                Action::SendControl { to, envelope } => {
                    self.down[usize::from(to.0)]
                        .0
                        .try_send_control(envelope)
                        .expect("the reserve is large enough");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn publish(room: &RoomName) -> Upstream {
        let batch = Arc::new(Batch {
            bytes: vec![0; 8],
            messages: Vec::new(),
            published: Tick(0),
        });
        Upstream::Publish {
            room: room.clone(),
            batch,
        }
    }

    /// Shard 0 and shard 1 in `both`, shard 1 alone in `own`.
    fn joined() -> (Backplane, Lanes, RoomName, RoomName) {
        let (both, own) = (RoomName::from("both"), RoomName::from("own"));
        let options = Options {
            leases: false,
            ..Options::new(2, 9)
        };
        let (mut backplane, mut lanes) = (Backplane::new(options, 3, Tick(0)), Lanes::new());
        for (shard, room) in [(0, &both), (1, &both), (1, &own)] {
            lanes.say(shard, Upstream::Interest { room: room.clone() });
        }
        turn(&mut backplane, &mut lanes, 0, Tick(0));
        assert_eq!(
            (lanes.read(0), lanes.read(1)),
            (2, 3),
            "answers and a probe each"
        );
        (backplane, lanes, both, own)
    }

    #[test]
    fn a_turn_takes_a_share_of_each_lane_and_says_when_there_is_more() {
        let (mut backplane, mut lanes, _, own) = joined();
        for _ in 0..LANE_TURN_ENVELOPE_COUNT_MAX + 1 {
            lanes.say(0, publish(&own));
        }
        lanes.say(1, publish(&own));
        let report = turn(&mut backplane, &mut lanes, 0, Tick(0));
        let expected = TurnReport {
            handled_count: LANE_TURN_ENVELOPE_COUNT_MAX + 1,
            more: true,
            stalled: false,
        };
        assert_eq!(report, expected);
        let report = turn(&mut backplane, &mut lanes, 1, Tick(0));
        assert_eq!(
            report,
            TurnReport {
                handled_count: 1,
                more: false,
                stalled: false
            }
        );
        assert_eq!(lanes.read(1), LANE_TURN_ENVELOPE_COUNT_MAX + 2);
    }

    #[test]
    fn a_shard_that_does_not_read_stalls_who_publishes_to_it_and_nobody_else() {
        let (mut backplane, mut lanes, both, own) = joined();
        let room_for = LANE_ENVELOPE_COUNT_MAX - LANE_CONTROL_RESERVE;
        for _ in 0..room_for + 10 {
            lanes.say(1, publish(&both));
            turn(&mut backplane, &mut lanes, 0, Tick(0));
            lanes.read(1);
        }
        assert!(
            turn(&mut backplane, &mut lanes, 0, Tick(0)).stalled,
            "shard 0 does not read"
        );
        assert_eq!(
            lanes.up[1].1.depth(),
            9,
            "one envelope waits in the backplane, the others in their lane"
        );
        lanes.say(0, publish(&own));
        assert_eq!(
            turn(&mut backplane, &mut lanes, 0, Tick(0)).handled_count,
            1
        );
        assert_eq!(lanes.read(1), 1, "shard 0's publish passes by");
        // A probe, a question and an order to stop still reach it.
        assert!(backplane.ask(CoreId(0), 1, crate::bus::Question::Stats));
        backplane.order_drain(crate::bus::DrainOrder::NotReady);
        perform_actions(&mut backplane, &mut lanes);
        assert_eq!(lanes.read(0), room_for + 2);
        assert_eq!(
            turn(&mut backplane, &mut lanes, 0, Tick(0)),
            TurnReport {
                handled_count: 10,
                ..Default::default()
            }
        );
        assert_eq!(
            (lanes.read(0), lanes.read(1)),
            (10, 11),
            "and an order for shard 1"
        );
    }
}
