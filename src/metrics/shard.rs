//! What one shard counts, and the snapshot of it that travels to the admin core.

use super::Log2Histogram;
use crate::protocol::CloseReason;

/// Why an upgrade was refused; the label of the handshake metric and the HTTP status it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RefusalKind {
    /// 400: not HTTP/1.1, bad header, bad or missing `Sec-WebSocket-Key`, `Host` or `Connection`, bad escape.
    BadRequest,
    /// 403: the `Origin` is not on the allowlist.
    OriginForbidden,
    /// 403: named a user, and may not.
    IdentityForbidden,
    /// 404: no such path.
    NotFound,
    /// 405: not `GET`.
    MethodNotAllowed,
    /// 408: the request was not complete in time.
    Timeout,
    /// 414: the request line, or the room's name, is too long.
    UriTooLong,
    /// 426: no WebSocket upgrade, or not version 13.
    UpgradeRequired,
    /// 429: too many connections from this address.
    AddressFull,
    /// 429: the user has as many connections as it may.
    UserFull,
    /// 431: too many headers or header bytes.
    HeadersTooLarge,
    /// 503: the node holds as many connections as it may.
    NodeFull,
    /// 503: more handshakes a second than allowed.
    HandshakeRate,
    /// 503: no memory budget, or no room, left.
    OverBudget,
    /// 503: the node is stopping.
    Draining,
    /// 503: the room cannot be followed at Redis now.
    Backplane,
}

impl RefusalKind {
    /// All kinds, in the order of their discriminants.
    pub const ALL: [Self; 16] = [
        Self::BadRequest,
        Self::OriginForbidden,
        Self::IdentityForbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Timeout,
        Self::UriTooLong,
        Self::UpgradeRequired,
        Self::AddressFull,
        Self::UserFull,
        Self::HeadersTooLarge,
        Self::NodeFull,
        Self::HandshakeRate,
        Self::OverBudget,
        Self::Draining,
        Self::Backplane,
    ];

    /// The HTTP status.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::OriginForbidden | Self::IdentityForbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Timeout => 408,
            Self::UriTooLong => 414,
            Self::UpgradeRequired => 426,
            Self::AddressFull | Self::UserFull => 429,
            Self::HeadersTooLarge => 431,
            Self::NodeFull
            | Self::HandshakeRate
            | Self::OverBudget
            | Self::Draining
            | Self::Backplane => 503,
        }
    }

    /// The name in metrics and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::OriginForbidden => "origin_forbidden",
            Self::IdentityForbidden => "identity_forbidden",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Timeout => "timeout",
            Self::UriTooLong => "uri_too_long",
            Self::UpgradeRequired => "upgrade_required",
            Self::AddressFull => "address_full",
            Self::UserFull => "user_full",
            Self::HeadersTooLarge => "headers_too_large",
            Self::NodeFull => "node_full",
            Self::HandshakeRate => "handshake_rate",
            Self::OverBudget => "over_budget",
            Self::Draining => "draining",
            Self::Backplane => "backplane",
        }
    }
}

/// How the address of a client behind a proxy was learned, or why not. Label of its metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ClientAddress {
    /// By a PROXY header.
    ProxyHeader,
    /// A PROXY header without a client: the proxy's own check, or a client that did not come by TCP over IP.
    ProxyOwn,
    /// A PROXY header that is none: refused with 400.
    ProxyMalformed,
    /// No PROXY header from a trusted proxy, though it is required: refused with 400.
    ProxyMissing,
    /// A PROXY header is required, and this other end may not send one: closed.
    ProxyUntrusted,
    /// By `X-Forwarded-For`.
    Forwarded,
    /// An `X-Forwarded-For` with something else than an address: the client is whoever brought it.
    ForwardedMalformed,
}

impl ClientAddress {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 7] = [
        Self::ProxyHeader,
        Self::ProxyOwn,
        Self::ProxyMalformed,
        Self::ProxyMissing,
        Self::ProxyUntrusted,
        Self::Forwarded,
        Self::ForwardedMalformed,
    ];

    /// The name in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::ProxyHeader => "proxy_header",
            Self::ProxyOwn => "proxy_own",
            Self::ProxyMalformed => "proxy_malformed",
            Self::ProxyMissing => "proxy_missing",
            Self::ProxyUntrusted => "proxy_untrusted",
            Self::Forwarded => "forwarded",
            Self::ForwardedMalformed => "forwarded_malformed",
        }
    }
}

/// What a room does with a message that a slow member has no budget for. Label of the drop metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum DropPolicy {
    /// Close the slow member with 1013.
    #[default]
    Disconnect,
    /// Drop the oldest queued messages until the new one fits.
    DropOldest,
    /// Drop the new message.
    DropNewest,
    /// Keep only the newest message.
    Latest,
}

impl DropPolicy {
    /// All policies, in the order of their discriminants.
    pub const ALL: [Self; 4] = [
        Self::Disconnect,
        Self::DropOldest,
        Self::DropNewest,
        Self::Latest,
    ];

    /// The name in the config and in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Disconnect => "disconnect",
            Self::DropOldest => "drop-oldest",
            Self::DropNewest => "drop-newest",
            Self::Latest => "latest",
        }
    }
}

/// Everything a shard counts since its start. Only ever grows.
#[derive(Debug, Clone, Default)]
pub struct ShardCounters {
    /// Sockets accepted.
    pub accepted: u64,
    /// Upgrades answered with 101.
    pub upgraded: u64,
    /// `GET /health` answered.
    pub health_checks: u64,
    /// Upgrades refused, by [`RefusalKind`].
    pub refused: [u64; RefusalKind::ALL.len()],
    /// Addresses learned of clients behind proxies, by [`ClientAddress`].
    pub client_addresses: [u64; ClientAddress::ALL.len()],
    /// Connections ended, by [`CloseReason`].
    pub closed: [u64; CloseReason::ALL.len()],
    /// Data messages received whole.
    pub messages_in: u64,
    /// Their payload bytes.
    pub message_bytes_in: u64,
    /// Messages delivered into rooms on this shard (once a message, not once a member).
    pub messages_delivered: u64,
    /// Messages queued to members (once a member).
    pub deliveries: u64,
    /// News of connections that the registry was not told of.
    pub presence_dropped: u64,
    /// Bytes received from sockets.
    pub bytes_in: u64,
    /// Bytes written to sockets.
    pub bytes_out: u64,
    /// Messages that members lost, by [`DropPolicy`].
    pub dropped: [u64; DropPolicy::ALL.len()],
    /// Gap notices sent.
    pub gaps_told: u64,
    /// Heartbeat pings sent.
    pub pings_sent: u64,
    /// Pongs that answered one.
    pub pongs_received: u64,
    /// Pings of peers answered.
    pub pings_answered: u64,
    /// Times a publisher had to wait: for the bus, the memory budget, or the next turn's batch of its room.
    pub publishers_paused: u64,
    /// Publish to hand-over to the socket, once a delivery.
    pub publish_to_deliver: Log2Histogram,
    /// Ping to pong.
    pub round_trip: Log2Histogram,
}

/// What a shard holds now.
#[derive(Debug, Clone, Default)]
pub struct ShardGauges {
    /// Sockets, whatever their state.
    pub sockets_open: u64,
    /// Connections that are upgraded and not closing.
    pub connections_open: u64,
    /// Rooms with a member on this shard.
    pub rooms: u64,
    /// Users with a connection on this shard.
    pub users: u64,
    /// Bytes of output queued.
    pub queued_bytes: u64,
    /// Connections with output queued behind a send in flight.
    pub connections_queued: u64,
    /// Bytes the ledger has charged.
    pub ledger_bytes: u64,
    /// Bytes the shard may charge.
    pub ledger_bytes_max: u64,
    /// Publishers whose messages wait: for the bus, the memory budget, or the next turn's batch of their room.
    pub publishers_paused: u64,
    /// Envelopes waiting in the lane to this shard when it looked last.
    pub bus_depth: u64,
    /// 0 running, 1 not ready, 2 closing, 3 cut.
    pub drain_phase: u64,
}

/// What a shard's socket engine counts.
#[derive(Debug, Clone, Default)]
pub struct RingCounters {
    /// `io_uring_enter` calls.
    pub enters: u64,
    /// Completions handled.
    pub completions: u64,
    /// Times no receive buffer was free and a receive was armed again.
    pub buffers_exhausted: u64,
    /// Times the completion queue overflowed into the kernel's list.
    pub completion_overflows: u64,
    /// Times the submission queue was full and was submitted early.
    pub submission_full: u64,
    /// Sends that took more than one submission.
    pub partial_sends: u64,
    /// Accepts that failed for want of descriptors or memory.
    pub accept_exhausted: u64,
    /// Times the shard slept.
    pub sleeps: u64,
    /// Time of a loop turn, from waking or the last turn's end to its end.
    pub turn: Log2Histogram,
    /// Whether sockets are direct descriptors.
    pub direct_descriptors: bool,
}

/// A copy of all a shard knows of itself.
#[derive(Debug, Clone, Default)]
pub struct ShardSnapshot {
    /// The shard.
    pub shard: u8,
    /// The processor it is pinned to.
    pub processor: u32,
    /// Since its start.
    pub counters: ShardCounters,
    /// Now.
    pub gauges: ShardGauges,
    /// The socket engine's.
    pub ring: RingCounters,
}
