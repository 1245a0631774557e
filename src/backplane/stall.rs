//! Envelopes that wait for room in the lanes they would write to: at most one a lane, oldest first.

use super::ShardSet;
use crate::bus::{CoreId, Upstream};
use crate::time::Tick;

/// An envelope that waits.
#[derive(Debug)]
struct Stalled {
    from: CoreId,
    envelope: Upstream,
    /// The lanes that it found full, or claimed by an older one, at any time since it waits.
    claims: ShardSet,
    since: Tick,
}

/// All that wait, oldest first.
#[derive(Debug, Default)]
pub struct StalledLanes {
    lanes: Vec<Stalled>,
    from: ShardSet,
    /// The union of all their claims: looked at once an envelope, while anything waits.
    claims: ShardSet,
}

impl StalledLanes {
    /// Whether an envelope of this lane waits.
    pub fn contains(&self, from: CoreId) -> bool {
        self.from.contains(from)
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.lanes.len()
    }

    /// Since when the oldest waits.
    pub fn oldest(&self) -> Option<Tick> {
        self.lanes.first().map(|stalled| stalled.since)
    }

    /// The lanes that those who wait have claimed.
    pub fn claims(&self) -> ShardSet {
        self.claims
    }

    /// Keeps `envelope`, which may not be handled because of `blocked`.
    pub fn push(&mut self, from: CoreId, envelope: Upstream, blocked: ShardSet, now: Tick) {
        assert!(self.from.insert(from), "a stalled lane is not read");
        self.claims = self.claims.union(blocked);
        self.lanes.push(Stalled {
            from,
            envelope,
            claims: blocked,
            since: now,
        });
    }

    /// Takes the oldest out that may go. `blocked` tells which lanes one still waits for, given those that older ones
    /// have claimed, and all that it would write to.
    pub fn take_ready(
        &mut self,
        mut blocked: impl FnMut(CoreId, &Upstream, ShardSet) -> (ShardSet, ShardSet),
    ) -> Option<(CoreId, Upstream)> {
        let mut claimed = ShardSet::EMPTY;
        for index in 0..self.lanes.len() {
            let stalled = &mut self.lanes[index];
            let (waits_for, targets) = blocked(stalled.from, &stalled.envelope, claimed);
            if waits_for.is_empty() {
                let ready = self.lanes.remove(index);
                self.from.remove(ready.from);
                self.claims = self
                    .lanes
                    .iter()
                    .fold(ShardSet::EMPTY, |all, stalled| all.union(stalled.claims));
                return Some((ready.from, ready.envelope));
            }
            stalled.claims = stalled.claims.intersection(targets).union(waits_for);
            claimed = claimed.union(stalled.claims);
        }
        self.claims = claimed;
        None
    }
}
