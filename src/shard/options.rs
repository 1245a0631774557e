//! What a shard may be told. Checked by `config`; a shard sees valid values only.

use crate::metrics::DropPolicy;
use crate::protocol::handshake::Edge;

/// How dead peers are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeartbeatMode {
    /// Pings and pongs (RFC 6455 §5.5.2).
    Ping,
    /// The kernel's keepalive and `TCP_USER_TIMEOUT` only.
    Tcp,
}

/// Of which connections the registry is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Of none.
    Off,
    /// Of those that are a user's.
    Users,
    /// Of all.
    All,
}

/// What holds for the rooms whose name matches. The first rule that matches counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomRule {
    /// A name, or a beginning of names followed by `*`; `*` alone matches all.
    pub pattern: String,
    /// What happens to a message that a slow member has no budget for.
    pub slow: DropPolicy,
}

/// A shard's options. Times in milliseconds, sizes in bytes; 0 turns a limit off where it says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Connections in the node, all shards together. A sixteenth and 1,024 more sockets may be on their way in or out.
    pub connection_count_max: u32,
    /// Connections from one address (IPv4) or /64 (IPv6), counted from the accept on; 0: no limit.
    pub address_connection_count_max: u32,
    /// Connections of one user in the node, all shards together; 0: no limit.
    pub user_connection_count_max: u32,
    /// Of which connections the registry is told.
    pub presence: Presence,
    /// In which each of them is told of again.
    pub presence_refresh_ms: u32,
    /// Rooms on this shard.
    pub room_count_max: u32,
    /// Handshakes a second on this shard; 0: no limit.
    pub handshakes_per_s_max: u32,
    /// Payload bytes of a message.
    pub message_bytes_max: u32,
    /// Fragments of a message.
    pub message_fragment_count_max: u32,
    /// Output queued for one connection, and the bound on all that is charged to it beside one message.
    pub connection_queue_bytes_max: u32,
    /// All that the shard holds for its connections.
    pub shard_bytes_max: u64,
    /// All that the node holds for its connections.
    pub node_bytes_max: u64,
    /// Messages a second from one connection; 0: no limit. The burst is one second's worth.
    pub messages_per_s_max: u32,
    /// Payload bytes a second from one connection; 0: no limit. The burst is one second's worth, but at least a message.
    pub message_bytes_per_s_max: u32,
    /// How dead peers are found.
    pub heartbeat: HeartbeatMode,
    /// Between pings to one connection.
    pub ping_interval_ms: u32,
    /// From a ping to giving up.
    pub pong_timeout_ms: u32,
    /// Without a message from the client; 0: no limit.
    pub idle_timeout_ms: u32,
    /// From the last payload byte of a begun message to giving it up, and its sender; 0: no limit.
    pub message_timeout_ms: u32,
    /// A send without any progress.
    pub write_stall_timeout_ms: u32,
    /// From accept to the whole request.
    pub handshake_timeout_ms: u32,
    /// What a request may take longer because its room has to be subscribed to at Redis; 0 without one.
    pub join_timeout_ms: u32,
    /// From our close frame to the peer's end of the stream.
    pub close_timeout_ms: u32,
    /// Bytes of a request, line and headers.
    pub handshake_bytes_max: u32,
    /// Headers of a request.
    pub handshake_header_count_max: u32,
    /// Allowed values of `Origin`; empty: any. `*` stands for one or more characters.
    pub origins: Vec<String>,
    /// What is believed of what comes through a balancer.
    pub edge: Edge,
    /// `Retry-After` of a 503, seconds, before jitter (up to the same again is added).
    pub retry_after_s: u32,
    /// `after_ms` of the `reconnect` notice, before jitter (up to the same again is added).
    pub reconnect_after_ms: u32,
    /// Room rules, the first that matches counts; rooms that none matches get `disconnect`.
    pub rooms: Vec<RoomRule>,
}
