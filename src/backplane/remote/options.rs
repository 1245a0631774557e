//! What the Redis backplane may be told.

use super::Address;

/// Whether members of this node hear each other while Redis cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Degraded {
    /// They do: what is published is delivered here at once, and to other nodes when Redis is back.
    Local,
    /// They do not: it is delivered to everybody when Redis is back.
    Refuse,
}

/// What happens when Redis cannot be reached at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtStart {
    /// The node runs, is not ready, and goes on trying.
    Wait,
    /// The process ends, and says why.
    Fail,
}

/// The Redis backplane's options. Checked by `config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where Redis is.
    pub address: Address,
    /// What all channels begin with.
    pub prefix: String,
    /// The name that links are given at Redis, this node's in it.
    pub client_name: String,
    /// What happens when Redis cannot be reached at the start.
    pub at_start: AtStart,
    /// Whether members of this node hear each other meanwhile.
    pub degraded: Degraded,
    /// Writes are gathered for so long under load.
    pub flush_us: u32,
    /// From a room's last member on this node until its channel is left.
    pub hold_ms: u32,
    /// Channels subscribed to a second.
    pub subscribes_per_s_max: u32,
    /// Rooms whose members wait for their subscription.
    pub joins_waiting_max: u32,
    /// From a join to its refusal when the subscription does not stand.
    pub join_timeout_ms: u32,
    /// Messages that Redis has not acknowledged, bytes.
    pub buffer_bytes_max: u64,
    /// How long such a message is kept while Redis cannot be reached.
    pub buffer_age_ms: u32,
    /// Deliveries that wait for one shard beyond its lane, bytes.
    pub backlog_bytes_max: u64,
    /// A link that was silent for so long is probed.
    pub probe_interval_ms: u32,
    /// From a probe, or any other command, to giving its link up.
    pub probe_timeout_ms: u32,
    /// Bytes of one reply at most.
    pub reply_bytes_max: usize,
    /// There is a link for commands, too.
    pub commands: bool,
}

impl Options {
    /// Everything as usual, for `address`.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self {
            address,
            prefix: "throng".into(),
            client_name: "throng".into(),
            at_start: AtStart::Wait,
            degraded: Degraded::Local,
            flush_us: 100,
            hold_ms: 5_000,
            subscribes_per_s_max: 50_000,
            joins_waiting_max: 100_000,
            join_timeout_ms: 10_000,
            buffer_bytes_max: 64 << 20,
            buffer_age_ms: 10_000,
            backlog_bytes_max: 64 << 20,
            probe_interval_ms: 5_000,
            probe_timeout_ms: 3_000,
            reply_bytes_max: 8 << 20,
            commands: false,
        }
    }
}
