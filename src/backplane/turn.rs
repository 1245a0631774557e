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
    perform_all(backplane, ports);
    while backplane.has_stalled() && backplane.retry(ports, now) {
        report.handled_count += 1;
        perform_all(backplane, ports);
    }
    let shard_count = backplane.shard_count();
    for offset in 0..shard_count {
        let from = (first + offset) % shard_count;
        let from = CoreId(u8::try_from(from).expect("a shard id is a byte"));
        report.more |= turn_lane(backplane, ports, from, now, &mut report.handled_count);
    }
    report.stalled = backplane.has_stalled();
    report
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
        perform_all(backplane, ports);
    }
    true
}

fn perform_all(backplane: &mut Backplane, ports: &mut impl Ports) {
    while let Some(action) = backplane.poll_action() {
        ports.perform(action);
    }
}
