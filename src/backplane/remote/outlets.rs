//! What waits for a shard beyond its lane: bounded, in order, and never in the way of another shard.
//!
//! Everything that Redis mode tells a shard goes through its outlet, so that a join's answer and the deliveries behind it
//! keep their order. What does not fit is dropped, counted, and told to the members where it is missing.

use std::collections::{BTreeMap, VecDeque};

use crate::bus::{CoreId, Downstream, RoomName};

/// What an envelope costs beside its payload.
const ENVELOPE_BYTES: u64 = 64;

#[derive(Debug, Default)]
struct Outlet {
    waiting: VecDeque<(Downstream, u32)>,
    bytes: u64,
    /// Messages dropped, by room, that have not been told yet.
    missed: BTreeMap<RoomName, u64>,
}

/// An outlet for each shard.
#[derive(Debug)]
pub struct Outlets {
    outlets: Vec<Outlet>,
    bytes_max: u64,
    first: usize,
    dropped: u64,
}

impl Outlets {
    /// Outlets of `shard_count` shards, each of `bytes_max` at most.
    pub fn new(shard_count: usize, bytes_max: u64) -> Self {
        Self {
            outlets: (0..shard_count).map(|_| Outlet::default()).collect(),
            bytes_max,
            first: 0,
            dropped: 0,
        }
    }

    /// Tells a shard something that may not be dropped.
    pub fn tell(&mut self, to: CoreId, envelope: Downstream, bytes: u32) {
        self.outlets[usize::from(to.0)].push(envelope, bytes);
    }

    /// Hands a delivery of `message_count` messages to a shard, or drops it where too much waits already.
    pub fn deliver(
        &mut self,
        to: CoreId,
        room: &RoomName,
        envelope: Downstream,
        bytes: u32,
        message_count: u64,
    ) {
        let outlet = &mut self.outlets[usize::from(to.0)];
        let full = outlet.bytes + u64::from(bytes) + ENVELOPE_BYTES > self.bytes_max;
        if full && !outlet.waiting.is_empty() {
            *outlet.missed.entry(room.clone()).or_default() += message_count;
            self.dropped += message_count;
            return;
        }
        if let Some(missed) = outlet.missed.remove(room) {
            outlet.tell_missed(room.clone(), missed);
        }
        outlet.push(envelope, bytes);
    }

    /// The next envelope for whose shard `fits` says that there is room; each shard in turn.
    pub fn take(
        &mut self,
        fits: impl Fn(CoreId, u32) -> bool,
    ) -> Option<(CoreId, Downstream, u32)> {
        let count = self.outlets.len();
        for offset in 0..count {
            let index = (self.first + offset) % count;
            let to = CoreId(u8::try_from(index).expect("a shard id is a byte"));
            let outlet = &mut self.outlets[index];
            if outlet.waiting.is_empty()
                && let Some((room, missed)) = outlet.missed.pop_first()
            {
                outlet.tell_missed(room, missed);
            }
            let Some((_, bytes)) = outlet.waiting.front() else {
                continue;
            };
            if !fits(to, *bytes) {
                continue;
            }
            self.first = index;
            let (envelope, bytes) = outlet.waiting.pop_front()?;
            outlet.bytes -= u64::from(bytes) + ENVELOPE_BYTES;
            return Some((to, envelope, bytes));
        }
        self.first = (self.first + 1) % count;
        None
    }

    /// Whether something waits.
    pub fn is_empty(&self) -> bool {
        self.outlets
            .iter()
            .all(|outlet| outlet.waiting.is_empty() && outlet.missed.is_empty())
    }

    /// Whether so much waits for some shard that publishers should wait, too.
    pub fn is_crowded(&self) -> bool {
        self.outlets
            .iter()
            .any(|outlet| outlet.bytes > self.bytes_max / 2)
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> u64 {
        self.outlets.iter().map(|outlet| outlet.bytes).sum()
    }

    /// Messages dropped, once a shard.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl Outlet {
    fn push(&mut self, envelope: Downstream, bytes: u32) {
        self.bytes += u64::from(bytes) + ENVELOPE_BYTES;
        self.waiting.push_back((envelope, bytes));
    }

    fn tell_missed(&mut self, room: RoomName, missed: u64) {
        let missed = Some(missed);
        self.push(Downstream::Gap { room, missed }, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bus::Batch;
    use crate::time::Tick;

    fn delivery(room: &RoomName) -> Downstream {
        let batch = Arc::new(Batch {
            bytes: Vec::new(),
            messages: Vec::new(),
            published: Tick(0),
        });
        Downstream::Delivery {
            room: room.clone(),
            batch,
        }
    }

    fn taken(outlets: &mut Outlets) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some((to, envelope, _)) = outlets.take(|_, _| true) {
            seen.push(match envelope {
                Downstream::Delivery { room, .. } => format!("{} {room}", to.0),
                Downstream::Gap { room, missed } => format!("{} {room} -{}", to.0, missed.unwrap()),
                other => panic!("{other:?}"),
            });
        }
        seen
    }

    #[test]
    fn a_shard_that_cannot_keep_up_loses_and_is_told_where_and_nobody_else_waits() {
        let mut outlets = Outlets::new(2, 300);
        let (a, b) = (RoomName::from("a"), RoomName::from("b"));
        for _ in 0..5 {
            outlets.deliver(CoreId(0), &a, delivery(&a), 100, 2);
        }
        outlets.deliver(CoreId(0), &b, delivery(&b), 100, 3);
        outlets.deliver(CoreId(1), &a, delivery(&a), 100, 2);
        assert!(outlets.is_crowded());
        assert_eq!(outlets.dropped(), 4 * 2 + 3);
        // Shard 1 is not behind shard 0.
        let (to, _, _) = outlets.take(|shard, _| shard == CoreId(1)).unwrap();
        assert_eq!(to, CoreId(1));
        let (to, _, _) = outlets.take(|_, _| true).unwrap();
        assert_eq!(to, CoreId(0));
        outlets.deliver(CoreId(0), &a, delivery(&a), 100, 2);
        assert_eq!(taken(&mut outlets), ["0 a -8", "0 a", "0 b -3"]);
        assert!(outlets.is_empty() && outlets.bytes() == 0);
    }

    #[test]
    fn one_message_beyond_the_bound_goes_when_nothing_else_waits() {
        let mut outlets = Outlets::new(1, 10);
        let a = RoomName::from("a");
        outlets.deliver(CoreId(0), &a, delivery(&a), 1_000, 1);
        assert_eq!(taken(&mut outlets), ["0 a"]);
    }
}
