//! What the Redis backplane may be told.

use super::{Address, Kind};

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

/// How messages travel through Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// PUBLISH and SUBSCRIBE.
    Pubsub,
    /// SPUBLISH and SSUBSCRIBE (Redis 7.0): in a cluster a message stays with the server of its slot.
    Sharded,
    /// A stream for each room: what a node missed is read again.
    Streams,
}

/// What [`Mode::Sharded`] is called where a server does not let us use it: its channels, by the commands of
/// [`Mode::Pubsub`]. Nodes with that mode by their settings have other channels.
pub const FALLEN_BACK: &str = "sharded-by-pubsub";

impl Mode {
    /// The name in settings, answers and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pubsub => "pubsub",
            Self::Sharded => "sharded",
            Self::Streams => "streams",
        }
    }
}

/// Servers by themselves at most: the place of a room is looked for among all of them, for each message.
pub const SERVER_COUNT_MAX: usize = 64;

/// The Redis backplane's options. Checked by `config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where Redis is: the first server, or the first that is asked for all others.
    pub address: Address,
    /// Further servers, each on its own; or further ones of the cluster that may be asked.
    pub others: Vec<Address>,
    /// How messages travel.
    pub mode: Mode,
    /// Parts that rooms are dealt out to, in a cluster or with [`Mode::Sharded`]; 1 to 4096, the same on all nodes.
    pub partitions: u16,
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
    /// There is a link for commands, too. [`Mode::Streams`] has one in any case.
    pub commands: bool,
    /// Batches that a room's stream keeps, about.
    pub streams_length_max: u32,
    /// From a room's last publish until its stream is forgotten.
    pub streams_ttl_ms: u32,
    /// How long what Redis has acknowledged is kept for a server that takes its place.
    pub streams_retain_ms: u32,
}

impl Options {
    /// All servers that were named.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        std::iter::once(&self.address).chain(&self.others)
    }

    /// Whether the servers are those of a Redis Cluster.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        self.address.kind == Kind::ClusterNode
    }

    /// What decides where a room is, in words without secrets: nodes that say something else look elsewhere.
    #[must_use]
    pub fn layout(&self) -> String {
        let partitions = match self.has_tags() {
            true => format!(", {} partitions", self.partitions),
            false => String::new(),
        };
        if self.is_cluster() {
            return format!("a cluster{partitions}");
        }
        let mut names: Vec<String> = self
            .addresses()
            .map(|address| address.endpoint.to_string())
            .collect();
        if names.len() == 1 {
            return format!("one server{partitions}");
        }
        names.sort();
        format!("{}{partitions}", names.join(" "))
    }

    /// Whether channels' names have the tag of their partition in them.
    #[must_use]
    pub fn has_tags(&self) -> bool {
        self.is_cluster() || self.mode == Mode::Sharded
    }

    /// Everything as usual, for `address`.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self {
            address,
            others: Vec::new(),
            mode: Mode::Pubsub,
            partitions: 128,
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
            streams_length_max: 1_000,
            streams_ttl_ms: 600_000,
            streams_retain_ms: 5_000,
        }
    }
}
