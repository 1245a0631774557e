//! Sequences as they arrive on one channel: what is missing, what came twice.

/// Nodes that one channel remembers; beyond them the one that was not heard for longest is forgotten, and starts
/// afresh.
const NODE_COUNT_MAX: usize = 64;

/// One node's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sequence {
    node: u64,
    epoch: u32,
    /// The number that comes next.
    next: u64,
}

/// All nodes' sequences on one channel, from the moment its subscription stood.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// Who was heard last stands last.
    sequences: Vec<Sequence>,
}

/// What an arrival is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It is new, and nothing is missing before it, as far as can be known.
    Next,
    /// It is new, and so many messages are missing before it.
    Hole(u64),
    /// It was here before.
    Duplicate,
}

impl Arrivals {
    /// `count` messages have come, the first with the number `first`.
    pub fn arrive(&mut self, node: u64, epoch: u32, first: u64, count: u32) -> Arrival {
        let next = first + u64::from(count);
        // Mostly the last one again.
        let mut places = self.sequences.iter();
        let Some(place) = places.rposition(|known| known.node == node) else {
            if self.sequences.len() == NODE_COUNT_MAX {
                self.sequences.remove(0);
            }
            self.sequences.push(Sequence { node, epoch, next });
            return Arrival::Next;
        };
        let known = self.sequences[place];
        if is_before(epoch, known.epoch) {
            return Arrival::Duplicate;
        }
        // Another epoch is another sequence, and every sequence begins with 1.
        let expected = if known.epoch == epoch { known.next } else { 1 };
        if first < expected {
            return Arrival::Duplicate;
        }
        self.sequences[place] = Sequence { node, epoch, next };
        self.sequences[place..].rotate_left(1);
        match first - expected {
            0 => Arrival::Next,
            missed => Arrival::Hole(missed),
        }
    }

    /// Whether the message `first` of that sequence has been here.
    #[must_use]
    pub fn has(&self, node: u64, epoch: u32, first: u64) -> bool {
        let known = self.sequences.iter().find(|known| known.node == node);
        known.is_some_and(|known| {
            is_before(epoch, known.epoch) || known.epoch == epoch && first < known.next
        })
    }
}

/// Whether a node's sequence is an older one: a node counts its epochs up, around the end of their numbers.
fn is_before(epoch: u32, known: u32) -> bool {
    known.wrapping_sub(epoch).wrapping_sub(1) < u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_counted_and_what_comes_twice_is_known() {
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.arrive(1, 1, 40, 2), Arrival::Next, "heard mid-way");
        assert_eq!(arrivals.arrive(1, 1, 42, 3), Arrival::Next);
        assert_eq!(arrivals.arrive(1, 1, 42, 3), Arrival::Duplicate);
        assert_eq!(arrivals.arrive(1, 1, 40, 2), Arrival::Duplicate);
        assert_eq!(arrivals.arrive(1, 1, 50, 1), Arrival::Hole(5));
        assert_eq!(arrivals.arrive(2, 1, 1, 1), Arrival::Next, "another node");
        assert!(arrivals.has(1, 1, 50) && !arrivals.has(1, 1, 51));
        assert!(!arrivals.has(1, 2, 50) && !arrivals.has(3, 1, 1));
    }

    #[test]
    fn a_new_epoch_begins_with_one() {
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.arrive(1, 1, 7, 1), Arrival::Next);
        assert_eq!(arrivals.arrive(1, 2, 1, 1), Arrival::Next);
        assert_eq!(arrivals.arrive(1, 3, 4, 1), Arrival::Hole(3));
        assert_eq!(
            arrivals.arrive(1, 2, 9, 1),
            Arrival::Duplicate,
            "an older one"
        );
        assert!(arrivals.has(1, u32::MAX, 9) && !arrivals.has(1, 4, 1));
    }

    #[test]
    fn the_nodes_that_a_channel_remembers_are_bounded() {
        let mut arrivals = Arrivals::default();
        for node in 0..1_000 {
            assert_eq!(arrivals.arrive(node, 1, 3, 1), Arrival::Next);
        }
        assert_eq!(arrivals.sequences.len(), NODE_COUNT_MAX);
        assert_eq!(arrivals.arrive(999, 1, 3, 1), Arrival::Duplicate);
        assert_eq!(arrivals.arrive(0, 1, 3, 1), Arrival::Next, "starts afresh");
    }

    #[test]
    fn a_node_that_is_heard_again_and_again_is_not_forgotten() {
        let mut arrivals = Arrivals::default();
        for round in 1..1_000 {
            assert_eq!(arrivals.arrive(7, 1, round, 1), Arrival::Next);
            assert_eq!(arrivals.arrive(1_000 + round, 1, 3, 1), Arrival::Next);
        }
        assert_eq!(arrivals.arrive(7, 1, 1_002, 1), Arrival::Hole(2));
    }
}
