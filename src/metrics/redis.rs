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

/// One server's part.
#[derive(Debug, Clone, Default)]
pub struct RedisServerSnapshot {
    /// Where it is.
    pub server: String,
    /// A probe has come through both its links since they came up last.
    pub ready: bool,
    /// Rooms whose subscription stands there.
    pub subscriptions: u64,
    /// Bytes that it has not acknowledged.
    pub buffer_bytes: u64,
}

/// All that is counted of Redis. Zero without one.
#[derive(Debug, Clone, Default)]
pub struct RedisSnapshot {
    /// Whether there is a Redis by the settings.
    pub configured: bool,
    /// How messages travel; empty without Redis.
    pub mode: &'static str,
    /// A probe has come through both links of every server since they came up last.
    pub ready: bool,
    /// Each server's part.
    pub servers: Vec<RedisServerSnapshot>,
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
    /// Times a room began to read what it had missed.
    pub stream_catch_ups: u64,
    /// Messages that were missed and read from their stream.
    pub stream_messages_recovered: u64,
    /// Messages that were missed and are no longer in their stream.
    pub stream_messages_gone: u64,
    /// Rooms whose stream is to be read.
    pub stream_rooms_behind: u64,
    /// Bytes that Redis has acknowledged and that are kept for a server that takes its place.
    pub stream_retained_bytes: u64,
    /// Bytes that wait for shards beyond their lanes.
    pub backlog_bytes: u64,
    /// Messages dropped because a shard could not take them, once a shard.
    pub backlog_dropped: u64,
}

impl RedisLinkSnapshot {
    fn add(&mut self, other: &Self) {
        self.connects += other.connects;
        self.lost += other.lost;
        self.failures += other.failures;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.writes += other.writes;
    }
}

impl RedisSnapshot {
    /// Adds what another server's part has counted and holds. What is no sum (`up`, `ready`, `mode`, the list of servers)
    /// stays as it is.
    pub fn add(&mut self, other: &Self) {
        // Named one by one: a figure that is new is to be thought of here.
        let Self {
            configured: _,
            mode: _,
            ready: _,
            servers: _,
            links,
            lag,
            probes,
            probe_age_us,
            batches_published,
            messages_published,
            batches_received,
            messages_received,
            duplicates,
            malformed,
            gaps,
            messages_missed,
            local_batches,
            messages_refused,
            buffer_bytes,
            buffer_bytes_max,
            buffer_age_us,
            subscriptions,
            joins_waiting,
            joins_refused,
            commands_subscribe,
            commands_unsubscribe,
            commands_publish,
            stream_catch_ups,
            stream_messages_recovered,
            stream_messages_gone,
            stream_rooms_behind,
            stream_retained_bytes,
            backlog_bytes,
            backlog_dropped,
        } = other;
        for (link, other) in self.links.iter_mut().zip(links) {
            link.add(other);
        }
        self.lag.merge(lag);
        self.probes += probes;
        self.probe_age_us = self.probe_age_us.max(*probe_age_us);
        self.batches_published += batches_published;
        self.messages_published += messages_published;
        self.batches_received += batches_received;
        self.messages_received += messages_received;
        self.duplicates += duplicates;
        self.malformed += malformed;
        self.gaps += gaps;
        self.messages_missed += messages_missed;
        self.local_batches += local_batches;
        self.messages_refused += messages_refused;
        self.buffer_bytes += buffer_bytes;
        self.buffer_bytes_max += buffer_bytes_max;
        self.buffer_age_us = self.buffer_age_us.max(*buffer_age_us);
        self.subscriptions += subscriptions;
        self.joins_waiting += joins_waiting;
        self.joins_refused += joins_refused;
        self.commands_subscribe += commands_subscribe;
        self.commands_unsubscribe += commands_unsubscribe;
        self.commands_publish += commands_publish;
        self.stream_catch_ups += stream_catch_ups;
        self.stream_messages_recovered += stream_messages_recovered;
        self.stream_messages_gone += stream_messages_gone;
        self.stream_rooms_behind += stream_rooms_behind;
        self.stream_retained_bytes += stream_retained_bytes;
        self.backlog_bytes += backlog_bytes;
        self.backlog_dropped += backlog_dropped;
    }

    /// The same without what is held now: what stays of a server that is gone.
    #[must_use]
    pub fn counters(&self) -> Self {
        Self {
            probe_age_us: 0,
            buffer_bytes: 0,
            buffer_bytes_max: 0,
            buffer_age_us: 0,
            subscriptions: 0,
            joins_waiting: 0,
            stream_rooms_behind: 0,
            stream_retained_bytes: 0,
            servers: Vec::new(),
            ..self.clone()
        }
    }
}
