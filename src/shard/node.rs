//! The counts that all shards of a node share: sockets, connections, reserved bytes, sockets of an address, connections
//! of a user.
//!
//! Touched when a socket is accepted, upgraded or closed and once a grant of memory, never for a message. Atomic
//! counters, not a lock: no shard ever waits for another here.

use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Sockets that a node takes beyond its connections and a sixteenth of them: they are on their way in or out, or only
/// read why they are refused.
const SOCKETS_PASSING: u32 = 1_024;
/// Bytes that a shard reserves at a time, at most and at least.
const GRANT_BYTES_MAX: u64 = 1 << 20;
const GRANT_BYTES_MIN: u64 = 4 << 10;
/// Into how many grants a shard's part of the node is cut at least. A shard keeps up to two that it does not use, so
/// no more than a quarter of the node's memory ever lies idle.
const SHARD_GRANT_COUNT_MIN: u64 = 8;

/// The node's shared counts and their limits.
#[derive(Debug)]
pub struct Node {
    socket_count: AtomicU32,
    socket_count_max: u32,
    connection_count: AtomicU32,
    connection_count_max: u32,
    reserved_bytes: AtomicU64,
    bytes_max: u64,
    grant_bytes: u64,
    addresses: Option<Tallies>,
    users: Option<Tallies>,
}

impl Node {
    /// Limits of the node of `shard_count` shards; `address_connection_count_max` 0 counts no addresses. `seed` keeps
    /// places in the address table from being guessed.
    #[must_use]
    pub fn new(
        shard_count: usize,
        connection_count_max: u32,
        bytes_max: u64,
        address_connection_count_max: u32,
        seed: u64,
    ) -> Self {
        let socket_count_max = connection_count_max
            .saturating_add(connection_count_max / 16)
            .saturating_add(SOCKETS_PASSING);
        let share = bytes_max / (shard_count.max(1) as u64 * SHARD_GRANT_COUNT_MIN);
        let grant_bytes =
            (share / GRANT_BYTES_MIN * GRANT_BYTES_MIN).clamp(GRANT_BYTES_MIN, GRANT_BYTES_MAX);
        Self {
            socket_count: AtomicU32::new(0),
            socket_count_max,
            connection_count: AtomicU32::new(0),
            connection_count_max,
            reserved_bytes: AtomicU64::new(0),
            bytes_max,
            grant_bytes,
            addresses: (address_connection_count_max > 0)
                .then(|| Tallies::new(socket_count_max, address_connection_count_max, seed)),
            users: None,
        }
    }

    /// The same node, in which a user has no more than `count_max` connections; 0: as many as it likes.
    #[must_use]
    pub fn limit_users(self, count_max: u32, seed: u64) -> Self {
        Self {
            users: (count_max > 0)
                .then(|| Tallies::new(self.connection_count_max, count_max, seed)),
            ..self
        }
    }

    /// Upgraded connections.
    #[must_use]
    pub fn connection_count(&self) -> u32 {
        self.connection_count.load(Ordering::Relaxed)
    }

    /// Bytes that the shards have reserved.
    #[must_use]
    pub fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes.load(Ordering::Relaxed)
    }

    /// Counts an accepted socket, whatever the limit says: it is there. Whether it may stay.
    pub(super) fn count_socket(&self) -> bool {
        self.socket_count.fetch_add(1, Ordering::Relaxed) < self.socket_count_max
    }

    pub(super) fn release_socket(&self) {
        self.socket_count.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn admit_connection(&self) -> bool {
        let count = self.connection_count.fetch_add(1, Ordering::Relaxed);
        if count >= self.connection_count_max {
            self.connection_count.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    pub(super) fn release_connection(&self) {
        self.connection_count.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a socket of `address`; `None`: it has as many as it may; `Some(false)`: addresses are not counted.
    pub(super) fn admit_address(&self, address: IpAddr) -> Option<bool> {
        match &self.addresses {
            None => Some(false),
            Some(table) => table.admit(address_key(address)).then_some(true),
        }
    }

    pub(super) fn release_address(&self, address: IpAddr) {
        if let Some(table) = &self.addresses {
            table.release(address_key(address));
        }
    }

    /// Counts a connection of `user`, unless it has as many as it may.
    pub(super) fn admit_user(&self, user: &str) -> bool {
        self.users.as_ref().is_none_or(|table| table.admit(user))
    }

    pub(super) fn release_user(&self, user: &str) {
        if let Some(table) = &self.users {
            table.release(user);
        }
    }

    /// Bytes that a shard reserves at a time, so that the shared count is touched rarely.
    pub(super) const fn grant_bytes(&self) -> u64 {
        self.grant_bytes
    }

    pub(super) fn reserve_bytes(&self, bytes: u64) -> bool {
        let reserved = self.reserved_bytes.fetch_add(bytes, Ordering::Relaxed);
        if reserved + bytes > self.bytes_max {
            self.reserved_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        true
    }

    pub(super) fn release_bytes(&self, bytes: u64) {
        self.reserved_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether the last sixteenth of the node's memory has been begun.
    pub(super) fn bytes_are_tight(&self) -> bool {
        self.reserved_bytes() > self.bytes_max - self.bytes_max / 16
    }
}

/// What counts as one address: IPv4 addresses one by one, IPv6 by their /64, which is what one customer gets.
fn address_key(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => u64::from(address.to_bits()) | 1 << 63,
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}

/// How many there are of each key, up to a limit: sockets of an address, connections of a user.
///
/// ```text
/// entry (64 bits): | fingerprint of the key, 40 bits | count, 24 bits |   0: free
/// ```
/// Open addressing over a table at least twice as long as the keys there may be, so it is never full. Two
/// shards that meet a new key in the same instant may each take an entry for it; both count, and both are given
/// back, so that such a key may have up to twice its limit, never less.
#[derive(Debug)]
struct Tallies {
    entries: Box<[AtomicU64]>,
    count_max: u64,
    hasher: foldhash::fast::FixedState,
}

const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const PROBE_LENGTH: usize = 64;

impl Tallies {
    fn new(key_count_max: u32, count_max: u32, seed: u64) -> Self {
        let length = (key_count_max as usize * 2)
            .next_power_of_two()
            .max(PROBE_LENGTH);
        Self {
            entries: (0..length).map(|_| AtomicU64::new(0)).collect(),
            count_max: u64::from(count_max).min(COUNT_MASK),
            hasher: foldhash::fast::FixedState::with_seed(seed),
        }
    }

    /// The fingerprint (never 0, in the high bits) and where to begin to look.
    fn place(&self, key: impl Hash) -> (u64, usize) {
        let hash = self.hasher.hash_one(key);
        #[allow(clippy::cast_possible_truncation)] // masked to the table's length
        let start = hash as usize & (self.entries.len() - 1);
        ((hash & !COUNT_MASK) | 1 << 63, start)
    }

    fn window(&self, start: usize) -> impl Iterator<Item = &AtomicU64> {
        let mask = self.entries.len() - 1;
        (start..start + PROBE_LENGTH).map(move |index| &self.entries[index & mask])
    }

    fn admit(&self, key: impl Hash) -> bool {
        let (fingerprint, start) = self.place(key);
        loop {
            let found = self.window(start).find_map(|entry| {
                let value = entry.load(Ordering::Relaxed);
                (value & !COUNT_MASK == fingerprint && value & COUNT_MASK > 0)
                    .then_some((entry, value))
            });
            let free = || {
                self.window(start).find_map(|entry| {
                    let value = entry.load(Ordering::Relaxed);
                    (value & COUNT_MASK == 0).then_some((entry, value))
                })
            };
            let Some((entry, value)) = found.or_else(free) else {
                return false; // 64 other keys at this very place: treat it as one of them
            };
            let count = value & COUNT_MASK;
            if count >= self.count_max {
                return false;
            }
            let next = fingerprint | (count + 1);
            if entry
                .compare_exchange_weak(value, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
            {
                return true;
            }
        }
    }

    fn release(&self, key: impl Hash) {
        let (fingerprint, start) = self.place(key);
        for entry in self.window(start) {
            let released = entry.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |value| {
                (value & !COUNT_MASK == fingerprint && value & COUNT_MASK > 0).then(|| value - 1)
            });
            if released.is_ok() {
                return;
            }
        }
        unreachable!("a key is released as often as it was admitted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_limit_is_met_exactly() {
        let node = Node::new(1, 2, 1 << 30, 0, 1);
        assert!(node.admit_connection() && node.admit_connection());
        assert!(!node.admit_connection());
        node.release_connection();
        assert!(node.admit_connection());
    }

    #[test]
    fn sockets_are_limited_with_some_beyond_the_connections() {
        let node = Node::new(1, 32, 1 << 30, 0, 1);
        assert!((0..32 + 2 + 1_024).all(|_| node.count_socket()));
        assert!(!node.count_socket());
        node.release_socket();
        assert!(
            !node.count_socket(),
            "the one beyond the limit is there still"
        );
        node.release_socket();
        node.release_socket();
        assert!(node.count_socket());
    }

    #[test]
    fn a_grant_is_a_small_part_of_a_shards_part_of_the_node() {
        let grant =
            |shard_count, bytes_max| Node::new(shard_count, 1, bytes_max, 0, 1).grant_bytes();
        assert_eq!(grant(1, 1 << 30), 1 << 20);
        assert_eq!(grant(128, 1 << 30), 1 << 20);
        assert_eq!(grant(129, 1 << 30), 254 * 4_096);
        assert_eq!(grant(16, 16 * (256 << 10)), 32 << 10);
        assert_eq!(grant(250, 1 << 20), 4 << 10);
    }

    #[test]
    fn an_address_is_limited_by_itself_and_an_ipv6_network_as_one() {
        let node = Node::new(1, 1_000, 1 << 30, 2, 1);
        let v4: IpAddr = "10.0.0.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(node.admit_address(v4), Some(true));
        assert_eq!(node.admit_address(mapped), Some(true));
        assert_eq!(node.admit_address(v4), None);
        assert_eq!(node.admit_address("10.0.0.2".parse().unwrap()), Some(true));
        let (one, two, other): (IpAddr, IpAddr, IpAddr) = (
            "2001:db8::1".parse().unwrap(),
            "2001:db8::2".parse().unwrap(),
            "2001:db8:0:1::1".parse().unwrap(),
        );
        assert_eq!(node.admit_address(one), Some(true));
        assert_eq!(node.admit_address(two), Some(true));
        assert_eq!(node.admit_address(one), None);
        assert_eq!(node.admit_address(other), Some(true));
        node.release_address(two);
        assert_eq!(node.admit_address(one), Some(true));
    }

    #[test]
    fn threads_that_come_and_go_leave_an_empty_table() {
        let node = Node::new(1, 1_000, 1 << 30, 1_000, 1);
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let node = &node;
                scope.spawn(move || {
                    for round in 0..2_000u32 {
                        let address = IpAddr::from([10, 0, 0, (round % 7) as u8 + thread % 2]);
                        if node.admit_address(address).is_some() {
                            node.release_address(address);
                        }
                    }
                });
            }
        });
        let table = node.addresses.as_ref().unwrap();
        assert!(
            table
                .entries
                .iter()
                .all(|entry| entry.load(Ordering::Relaxed) & COUNT_MASK == 0)
        );
    }

    #[test]
    fn a_user_is_limited_whatever_the_shard_and_others_are_not() {
        let node = Node::new(2, 1_000, 1 << 30, 0, 1).limit_users(2, 1);
        assert!(node.admit_user("ann") && node.admit_user("ann"));
        assert!(!node.admit_user("ann"));
        assert!(node.admit_user("anne"));
        node.release_user("ann");
        assert!(node.admit_user("ann"));
        let unlimited = Node::new(2, 1_000, 1 << 30, 0, 1).limit_users(0, 1);
        assert!((0..10_000).all(|_| unlimited.admit_user("ann")));
    }

    #[test]
    fn a_node_without_an_address_limit_counts_none() {
        assert_eq!(
            Node::new(1, 1, 1 << 30, 0, 1).admit_address("10.0.0.1".parse().unwrap()),
            Some(false)
        );
    }
}
