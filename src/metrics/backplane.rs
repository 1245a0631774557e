//! What the backplane core counts, and the snapshot of it.

use super::{Log2Histogram, RedisSnapshot, RegistrySnapshot};

/// A copy of all the backplane core knows of itself.
#[derive(Debug, Clone, Default)]
pub struct BackplaneSnapshot {
    /// Batches that came to be ordered, or to be handed to a lease's holder.
    pub batches: u64,
    /// Messages in them.
    pub messages: u64,
    /// Batches handed to shards (once a shard with members).
    pub deliveries: u64,
    /// Leases granted.
    pub leases_granted: u64,
    /// Leases revoked.
    pub leases_revoked: u64,
    /// Times a lane had to wait because another was full.
    pub stalls: u64,
    /// Rooms with members.
    pub rooms: u64,
    /// Those of them that their only shard orders itself.
    pub rooms_leased: u64,
    /// Users with connections.
    pub users: u64,
    /// Lanes that wait now.
    pub lanes_stalled: u64,
    /// How long the oldest of them has waited, microseconds.
    pub stalled_us: u64,
    /// From a probe to its answer.
    pub probe_round_trip: Log2Histogram,
    /// Redis, and the way there.
    pub redis: RedisSnapshot,
    /// Who is connected where, kept at Redis.
    pub registry: RegistrySnapshot,
    /// Time of a turn of the core's loop; the runtime's to fill in.
    pub turn: Log2Histogram,
}
