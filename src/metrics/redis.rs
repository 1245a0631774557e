//! What the backplane core knows of Redis, and of its way there.

use super::Log2Histogram;

/// One link's figures.
#[derive(Debug, Clone, Default)]
pub struct RedisLinkSnapshot {
    /// Commands may be sent.
    pub up: bool,
    /// Times it came up.
    pub connects: u64,
    /// Times it was lost when it was up.
    pub lost: u64,
    /// Times it could not be brought up.
    pub failures: u64,
    /// Bytes written.
    pub sent_bytes: u64,
    /// Bytes read.
    pub received_bytes: u64,
    /// Writes.
    pub writes: u64,
}

/// All that is counted of Redis. Zero without one.
#[derive(Debug, Clone, Default)]
pub struct RedisSnapshot {
    /// Whether there is a Redis by the settings.
    pub configured: bool,
    /// A probe has come through both links since they came up last.
    pub ready: bool,
    /// The publishing link's, the subscription link's, the commands link's.
    pub links: [RedisLinkSnapshot; 3],
    /// From publishing to the return through Redis, of probes and of this node's own batches.
    pub lag: Log2Histogram,
    /// Probes sent.
    pub probes: u64,
    /// How long the probe that is on its way has been, microseconds; 0: none is.
    pub probe_age_us: u64,
    /// Batches sent to Redis, those that were sent again included.
    pub batches_published: u64,
    /// Messages in them.
    pub messages_published: u64,
    /// Batches that came from Redis, this node's own and duplicates included.
    pub batches_received: u64,
    /// Messages in them.
    pub messages_received: u64,
    /// Messages that came twice, or were delivered here before they came.
    pub duplicates: u64,
    /// What came and could not be read.
    pub malformed: u64,
    /// Gaps that members were told of.
    pub gaps: u64,
    /// Messages missing in those whose size is known.
    pub messages_missed: u64,
    /// Batches that were delivered on this node while Redis was away.
    pub local_batches: u64,
    /// Messages that other nodes do not see, because Redis was away for too long.
    pub messages_refused: u64,
    /// Bytes that Redis has not acknowledged.
    pub buffer_bytes: u64,
    /// Those at most.
    pub buffer_bytes_max: u64,
    /// How long the oldest of it has waited, microseconds.
    pub buffer_age_us: u64,
    /// Rooms whose subscription stands.
    pub subscriptions: u64,
    /// Rooms whose joins wait for it.
    pub joins_waiting: u64,
    /// Rooms whose joins were refused, once a shard.
    pub joins_refused: u64,
    /// SUBSCRIBE commands sent.
    pub commands_subscribe: u64,
    /// UNSUBSCRIBE commands sent.
    pub commands_unsubscribe: u64,
    /// PUBLISH commands sent.
    pub commands_publish: u64,
    /// Bytes that wait for shards beyond their lanes.
    pub backlog_bytes: u64,
    /// Messages dropped because a shard could not take them, once a shard.
    pub backlog_dropped: u64,
}
