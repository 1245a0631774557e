//! Memory ledger: how many bytes this core holds for its connections, and how many it still may.
//!
//! Bytes are charged before they are kept and refunded when they go. What recipients share (encoded output) is
//! metered once, at its real size; what only one connection holds is charged for it.
//! Invariant: `account_bytes` is the sum of `Connection::charged_bytes` over all connections.

use std::sync::Arc;

use super::node::Node;
use crate::protocol::Meter;

/// Whose limit was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    ShardFull,
    NodeFull,
}

#[derive(Debug)]
pub(super) struct Ledger {
    account_bytes: u64,
    encoded: Meter,
    shard_bytes_max: u64,
    granted_bytes: u64,
    node: Arc<Node>,
}

impl Ledger {
    pub(super) fn new(shard_bytes_max: u64, node: Arc<Node>) -> Self {
        Self {
            account_bytes: 0,
            encoded: Meter::default(),
            shard_bytes_max,
            granted_bytes: 0,
            node,
        }
    }

    /// What the core's encoded output is metered with.
    pub(super) const fn meter(&self) -> &Meter {
        &self.encoded
    }

    /// Bytes held.
    pub(super) fn used_bytes(&self) -> u64 {
        self.account_bytes + self.encoded.bytes()
    }

    /// Bytes held for single connections.
    pub(super) const fn account_bytes(&self) -> u64 {
        self.account_bytes
    }

    /// Whether `bytes` more would fit, reserving them from the node if needed. Charges nothing.
    pub(super) fn admit(&mut self, bytes: u64) -> Result<(), Refused> {
        let wanted = self.used_bytes() + bytes;
        if wanted > self.shard_bytes_max {
            return Err(Refused::ShardFull);
        }
        if wanted > self.granted_bytes {
            let grant = (wanted - self.granted_bytes).next_multiple_of(self.node.grant_bytes());
            if !self.node.reserve_bytes(grant) {
                return Err(Refused::NodeFull);
            }
            self.granted_bytes += grant;
        }
        Ok(())
    }

    /// Charges `bytes`, or changes nothing and says whose limit was met.
    ///
    /// Charge at the promise, not the arrival: a header announcing 64 KiB owes 64 KiB now.
    pub(super) fn charge(&mut self, bytes: u32) -> Result<(), Refused> {
        self.admit(u64::from(bytes))?;
        self.account_bytes += u64::from(bytes);
        Ok(())
    }

    /// Charges what is already held and bounded elsewhere, whatever the limits say: input that the kernel handed
    /// over before it learnt of a pause, a control frame from its reserve.
    pub(super) fn charge_owed(&mut self, bytes: u32) {
        let _over_is_noted_by_the_next_admit = self.admit(u64::from(bytes));
        self.account_bytes += u64::from(bytes);
    }

    /// Refunds part or all of earlier charges.
    pub(super) fn refund(&mut self, bytes: u32) {
        assert!(
            u64::from(bytes) <= self.account_bytes,
            "refund exceeds what was charged"
        );
        self.account_bytes -= u64::from(bytes);
    }

    /// Whether so little is left that nobody new should come in: the last sixteenth is for those who are in.
    pub(super) fn is_tight(&mut self, bytes: u64) -> bool {
        self.used_bytes() + bytes > self.shard_bytes_max - self.shard_bytes_max / 16
            || self.node.bytes_are_tight()
            || self.admit(bytes).is_err()
    }

    /// Gives unused reservations back to the node. Called now and then.
    pub(super) fn settle(&mut self) {
        let grant = self.node.grant_bytes();
        let keep = self.used_bytes().next_multiple_of(grant) + grant;
        if self.granted_bytes > keep {
            self.node.release_bytes(self.granted_bytes - keep);
            self.granted_bytes = keep;
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.node.release_bytes(self.granted_bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::Encoded;

    const MIB: u32 = 1 << 20;

    fn ledger(shard_bytes_max: u64, node_bytes_max: u64) -> Ledger {
        Ledger::new(
            shard_bytes_max,
            Arc::new(Node::new(1, 1_000, node_bytes_max, 0, 1)),
        )
    }

    #[test]
    fn a_charge_up_to_the_limit_fits_and_one_byte_more_changes_nothing() {
        let mut ledger = ledger(1_000, 1 << 30);
        assert_eq!(ledger.charge(1_000), Ok(()));
        assert_eq!(ledger.charge(1), Err(Refused::ShardFull));
        assert_eq!(ledger.used_bytes(), 1_000);
        ledger.refund(1);
        assert_eq!(ledger.charge(1), Ok(()));
    }

    #[test]
    fn encoded_output_counts_against_the_same_limit() {
        let mut ledger = ledger(1_000, 1 << 30);
        let encoded = Encoded::metered(vec![0; 600], ledger.meter());
        let left = 400 - u32::try_from(Encoded::BOOKKEEPING_BYTES).unwrap();
        assert_eq!(ledger.charge(left + 1), Err(Refused::ShardFull));
        assert_eq!(ledger.charge(left), Ok(()));
        ledger.refund(left);
        drop(encoded);
        assert_eq!(ledger.charge(401), Ok(()));
    }

    #[test]
    fn the_node_limit_holds_over_shards_and_comes_back() {
        let node = Arc::new(Node::new(2, 1_000, u64::from(24 * MIB), 0, 1));
        assert_eq!(node.grant_bytes(), u64::from(MIB));
        let mut first = Ledger::new(u64::MAX / 2, Arc::clone(&node));
        let mut second = Ledger::new(u64::MAX / 2, Arc::clone(&node));
        first.charge(23 * MIB).unwrap();
        assert_eq!(second.charge(MIB + 1), Err(Refused::NodeFull));
        first.refund(23 * MIB);
        first.settle();
        assert_eq!(second.charge(MIB + 1), Ok(()));
        drop((first, second));
        assert_eq!(node.reserved_bytes(), 0);
    }

    #[test]
    fn what_idle_shards_keep_reserved_leaves_a_small_node_open() {
        const SHARD_COUNT: usize = 16;
        let bytes_max = SHARD_COUNT as u64 * (256 << 10);
        let node = Arc::new(Node::new(SHARD_COUNT, 1_000, bytes_max, 0, 1));
        let mut ledgers = [(); SHARD_COUNT].map(|()| Ledger::new(bytes_max, Arc::clone(&node)));
        for ledger in &mut ledgers {
            ledger.charge(MIB).unwrap();
            ledger.refund(MIB);
            ledger.charge(1).unwrap();
            ledger.settle();
        }
        assert_eq!(node.reserved_bytes(), bytes_max / 4);
        for ledger in &mut ledgers {
            assert!(!ledger.is_tight(100_000), "somebody new may come in");
        }
    }

    proptest! {
        #[test]
        fn accounts_add_up_and_no_limit_is_crossed_over_two_shards(
            operations in prop::collection::vec((any::<bool>(), 0u8..6, 0u32..160_000), 0..200)
        ) {
            let (limit, node_limit) = (10 << 16, 16 << 16);
            let node = Arc::new(Node::new(2, 10, node_limit, 0, 1));
            let mut ledgers = [0, 1].map(|_| Ledger::new(limit, Arc::clone(&node)));
            let mut accounts: [Vec<u32>; 2] = Default::default();
            let mut outputs: [Vec<Encoded>; 2] = Default::default();
            for (second, operation, bytes) in operations {
                let at = usize::from(second);
                let ledger = &mut ledgers[at];
                match operation {
                    0 | 1 => {
                        let before = ledger.used_bytes();
                        match ledger.charge(bytes) {
                            Ok(()) => accounts[at].push(bytes),
                            Err(_) => prop_assert_eq!(ledger.used_bytes(), before),
                        }
                        prop_assert!(before > limit || ledger.used_bytes() <= limit);
                    }
                    2 => {
                        if ledger.admit(u64::from(bytes) + Encoded::BOOKKEEPING_BYTES).is_ok() {
                            outputs[at].push(Encoded::metered(vec![0; bytes as usize], ledger.meter()));
                        }
                        prop_assert!(ledger.used_bytes() <= limit);
                    }
                    3 => _ = outputs[at].pop(),
                    4 => ledger.settle(),
                    _ => {
                        if let Some(bytes) = accounts[at].pop() {
                            ledger.refund(bytes);
                        }
                    }
                }
                let held: u64 = accounts[at].iter().map(|bytes| u64::from(*bytes)).sum();
                let output: u64 = outputs[at].iter().map(|output| output.bytes().len() as u64 + Encoded::BOOKKEEPING_BYTES).sum();
                prop_assert_eq!(ledgers[at].account_bytes(), held);
                prop_assert_eq!(ledgers[at].used_bytes(), held + output);
                prop_assert!(node.reserved_bytes() <= node_limit);
                let used: u64 = ledgers.iter().map(Ledger::used_bytes).sum();
                prop_assert!(used <= node.reserved_bytes());
            }
            drop((ledgers, outputs));
            prop_assert_eq!(node.reserved_bytes(), 0);
        }
    }

    #[test]
    #[should_panic(expected = "refund exceeds")]
    fn a_refund_of_more_than_was_charged_is_our_fault() {
        let mut ledger = ledger(1_000, 1 << 30);
        ledger.charge(10).unwrap();
        ledger.refund(11);
    }
}
