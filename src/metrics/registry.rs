//! What the backplane core knows of the registry at Redis.

/// All that is counted of the registry. Zero without Redis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegistrySnapshot {
    /// The last heartbeat was answered.
    pub up: bool,
    /// Heartbeats that were answered.
    pub beats: u64,
    /// Since the last of them, or since the start, microseconds.
    pub beat_age_us: u64,
    /// Nodes that were heard within three intervals, this one included.
    pub nodes: u64,
    /// Notes of connections that were written.
    pub written: u64,
    /// Notes that were not: the queue was full, Redis away, or it refused them.
    pub dropped: u64,
    /// Notes that wait, or are on their way.
    pub queued: u64,
    /// Those at most.
    pub queued_max: u64,
    /// How long the oldest of them has waited, microseconds.
    pub oldest_us: u64,
    /// Commands that Redis has refused.
    pub errors: u64,
    /// Times all connections were told of anew.
    pub announcements: u64,
    /// Dead nodes whose entries this one has removed.
    pub nodes_reaped: u64,
    /// Connections of dead nodes that this one has removed.
    pub connections_reaped: u64,
}
