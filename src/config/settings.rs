//! What `serve` runs with: every room's options, complete and checked.

use std::fmt;
use std::net::SocketAddr;

use crate::config::redis_tls::RedisTls;
use crate::{drain, runtime::ring, shard};

/// Everything that the server may be told.
#[derive(Clone)]
pub struct Settings {
    /// Where clients connect. Every shard binds each of them.
    pub listen: Vec<SocketAddr>,
    /// Where the admin listener is, if there is one.
    pub admin: Option<SocketAddr>,
    /// The bearer key that guards the admin API.
    pub admin_key: Option<String>,
    /// Shards, at least one.
    pub shards: usize,
    /// The processors that the cores are spread over, in order; empty: all that the process may run on.
    pub cores: Vec<u32>,
    /// This node's name: 1 to 64 of `A-Za-z0-9._-`.
    pub node_id: String,
    /// Each shard's options.
    pub shard: shard::Options,
    /// Each shard's ring.
    pub ring: ring::Options,
    /// What is set on every listening socket, and inherited by what it accepts.
    pub socket: SocketOptions,
    /// The Redis that makes this node one of several, if there is one.
    pub redis: Option<crate::backplane::remote::Options>,
    /// How it is spoken to by TLS, where its URL wants that.
    pub redis_tls: RedisTls,
    /// Who is connected where, kept at that Redis.
    pub registry: crate::backplane::registry::Options,
    /// How the node stops.
    pub drain: drain::Options,
    /// What is logged.
    pub log: Log,
}

/// All but the secrets.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("listen", &self.listen)
            .field("admin", &self.admin)
            .field("admin_key", &self.admin_key.as_ref().map(|_| "set"))
            .field("shards", &self.shards)
            .field("cores", &self.cores)
            .field("node_id", &self.node_id)
            .field("shard", &self.shard)
            .field("ring", &self.ring)
            .field("socket", &self.socket)
            .field("redis", &self.redis)
            .field("redis_tls", &self.redis_tls)
            .field("registry", &self.registry)
            .field("drain", &self.drain)
            .field("log", &self.log)
            .finish()
    }
}

/// Socket options. 0 leaves the kernel's own value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOptions {
    /// Connections that wait to be accepted, for each shard and address (`listen`).
    pub backlog: u32,
    /// `SO_SNDBUF`, bytes; the kernel doubles it.
    pub send_buffer_bytes: u32,
    /// `SO_RCVBUF`, bytes; the kernel doubles it.
    pub receive_buffer_bytes: u32,
    /// `TCP_NOTSENT_LOWAT`, bytes.
    pub notsent_lowat_bytes: u32,
    /// The kernel's keepalive; with `heartbeat = "tcp"` only.
    pub keepalive: Option<Keepalive>,
    /// `TCP_USER_TIMEOUT`, milliseconds.
    pub user_timeout_ms: u32,
}

/// The kernel's keepalive, so set that a dead peer is found within the ping interval and the pong timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// `TCP_KEEPIDLE`, seconds, at least 1.
    pub idle_s: u32,
    /// `TCP_KEEPINTVL`, seconds, at least 1.
    pub interval_s: u32,
    /// `TCP_KEEPCNT`, at least 1.
    pub probe_count: u32,
}

/// What is logged, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// The least important that is logged; `None`: nothing.
    pub level: Option<tracing::Level>,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// What the settings must know of the machine to fill in `auto`; collected by `runtime::host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The processors that the process may run on.
    pub processors: Vec<u32>,
    /// Processor time that its control groups allow, in thousandths of a processor; `None`: all of it.
    pub processor_quota_milli: Option<u64>,
    /// Descriptors that one table may hold: the hard limit, which `serve` raises the soft one to.
    pub open_files_max: u64,
    /// Whether this kernel frees direct descriptors that are closed: Linux 6.13 and later do.
    pub direct_descriptors_freed: bool,
    /// Memory that the process may use: the machine's, or the least of its control groups'.
    pub memory_bytes: u64,
    /// The host's name.
    pub hostname: String,
    /// This process's number.
    pub process_id: u32,
}
