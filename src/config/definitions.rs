//! Every setting, once. Flags, variables, file keys, `throng config` and the reference all derive from this table.

mod edge;
mod redis;

use crate::config::draft::Draft;
use crate::config::group::Group;
use crate::config::rooms::origin_is_allowed;
use crate::config::settings::LogFormat;
use crate::config::value::{Kind, Range, Unit, Value};
use crate::limits::SHARD_COUNT_MAX;
use crate::runtime::ring::Descriptors;
use crate::shard::HeartbeatMode;

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Definition {
    /// Its key in the file; flag and variable are derived from it.
    pub key: &'static str,
    /// Where it belongs.
    pub group: Group,
    /// What its value is.
    pub kind: Kind,
    /// A word that may stand in a value's place.
    pub word: Option<&'static str>,
    /// What holds when nobody says anything, as one would type it.
    pub default: &'static str,
    /// What it does.
    pub effect: &'static str,
    /// A secret has no flag (a command line is readable by others) and is never printed.
    pub secret: bool,
    /// Puts a value in place.
    pub(super) apply: fn(&mut Draft, &Value),
}

impl Definition {
    /// `--ping-interval-ms`.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--{}", self.key.replace('_', "-"))
    }

    /// `THRONG_PING_INTERVAL_MS`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.key.to_ascii_uppercase())
    }

    /// What is accepted, the word included.
    #[must_use]
    pub fn range(&self) -> String {
        match self.word {
            Some(word) => format!("{}; or \"{word}\"", self.kind.range()),
            None => self.kind.range(),
        }
    }
}

/// What the names of all variables begin with.
pub const VARIABLE_PREFIX: &str = "THRONG_";

const fn setting(
    key: &'static str,
    group: Group,
    kind: Kind,
    default: &'static str,
    effect: &'static str,
    apply: fn(&mut Draft, &Value),
) -> Definition {
    Definition {
        key,
        group,
        kind,
        word: None,
        default,
        effect,
        secret: false,
        apply,
    }
}

impl Definition {
    const fn or(self, word: &'static str) -> Self {
        Self {
            word: Some(word),
            ..self
        }
    }

    const fn kept_secret(self) -> Self {
        Self {
            secret: true,
            ..self
        }
    }
}

const fn count(things: &'static str, range: Range) -> Kind {
    Kind::Number(Unit::Count(things), range)
}

const fn bytes(range: Range) -> Kind {
    Kind::Number(Unit::Bytes, range)
}

const fn ms(range: Range) -> Kind {
    Kind::Number(Unit::Milliseconds, range)
}

const fn any(min: u64, max: u64) -> Range {
    Range::of(min, max)
}

const U32_MAX: u64 = u32::MAX as u64;
const HOUR_MS: u64 = 3_600_000;
const WEEK_MS: u64 = 7 * 24 * HOUR_MS;
/// The kernel's keepalive counts to 32,767 seconds.
const KEEPALIVE_MS_MAX: u64 = 9 * HOUR_MS;

/// All settings. Those of one group stand in the order of the reference.
pub static DEFINITIONS: &[Definition] = &joined::<
    { SETTINGS.len() + edge::SETTINGS.len() + redis::SETTINGS.len() },
>(&[SETTINGS, edge::SETTINGS, redis::SETTINGS]);

/// The `COUNT` settings of all `parts`.
const fn joined<const COUNT: usize>(parts: &[&[Definition]]) -> [Definition; COUNT] {
    let mut all = [parts[0][0]; COUNT];
    let (mut part, mut index, mut at) = (0, 0, 0);
    while at < COUNT {
        if index == parts[part].len() {
            part += 1;
            index = 0;
        } else {
            all[at] = parts[part][index];
            index += 1;
            at += 1;
        }
    }
    all
}

const SETTINGS: &[Definition] = &[
    setting(
        "listen",
        Group::Listeners,
        Kind::Addresses,
        "0.0.0.0:8080",
        "Where clients connect; every shard binds each address.",
        |draft, value| draft.settings.listen = value.addresses(),
    ),
    setting(
        "admin",
        Group::Listeners,
        Kind::Address,
        "127.0.0.1:8081",
        "Where health, metrics and the admin API are. An address that is not loopback needs a key.",
        |draft, value| draft.settings.admin = value.address(),
    )
    .or("off"),
    setting(
        "admin_key",
        Group::Listeners,
        Kind::Text {
            range: "8 to 256 visible ASCII characters",
            accepts: |text| (8..=256).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()),
        },
        "none",
        "The bearer key that guards the admin API under /v1. It has no flag, since others can read a command line.",
        |draft, value| draft.settings.admin_key = value.text(),
    )
    .or("none")
    .kept_secret(),
    setting(
        "admin_key_file",
        Group::Listeners,
        Kind::Text {
            range: "the path of a file that holds nothing but the key",
            accepts: |text| !text.is_empty(),
        },
        "none",
        "Reads the admin key from a file, as systemd credentials and Kubernetes secrets give it.",
        |draft, value| draft.admin_key_file = value.text(),
    )
    .or("none"),
    setting(
        "origins",
        Group::Listeners,
        Kind::Texts {
            range: "SCHEME://HOST or SCHEME://HOST:PORT, `*` for one or more characters; empty: any origin",
            accepts: origin_is_allowed,
        },
        "",
        "The values of Origin that browsers may come with; others are answered 403.",
        |draft, value| draft.settings.shard.origins = value.texts(),
    ),
    setting(
        "shards",
        Group::Cores,
        count("shards", any(1, SHARD_COUNT_MAX as u64)),
        "auto",
        "Cores that hold connections. auto: one less than the processors (and no more than a control group's quota allows), at least 1.",
        |draft, value| draft.shards = value.number().map(|number| number as usize),
    )
    .or("auto"),
    setting(
        "cores",
        Group::Cores,
        Kind::Processors,
        "",
        "The processors to run on: the first for the backplane core, the others for the shards in turn; shared where there are too few.",
        |draft, value| draft.settings.cores = value.processors(),
    ),
    setting(
        "node_id",
        Group::Cores,
        Kind::Text {
            range: "1 to 64 of A-Z, a-z, 0-9, `.`, `_` and `-`",
            accepts: |text| {
                (1..=64).contains(&text.len())
                    && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            },
        },
        "auto",
        "This node's name in logs and metrics. auto: host name and process number.",
        |draft, value| draft.node_id = value.text(),
    )
    .or("auto"),
    setting(
        "connection_count_max",
        Group::NodeLimits,
        count("connections", any(1, U32_MAX)),
        "auto",
        "Connections of the node; beyond it an upgrade is answered 503. auto: what descriptors and memory hold.",
        |draft, value| draft.connection_count_max = value.u32(),
    )
    .or("auto"),
    setting(
        "address_connection_count_max",
        Group::NodeLimits,
        count("connections", any(1, U32_MAX).or_zero("no limit")),
        "0",
        "Connections from one IPv4 address or one IPv6 /64, from the accept on; beyond it the first request is answered 429.",
        |draft, value| set(&mut draft.settings.shard.address_connection_count_max, value),
    ),
    setting(
        "user_connection_count_max",
        Group::NodeLimits,
        count("connections", any(1, U32_MAX).or_zero("no limit")),
        "0",
        "Connections of one user to this node; beyond it an upgrade is answered 429.",
        |draft, value| set(&mut draft.settings.shard.user_connection_count_max, value),
    ),
    setting(
        "room_count_max",
        Group::NodeLimits,
        count("rooms", any(1, 16_777_216)),
        "1000000",
        "Rooms of one shard; beyond it an upgrade into a new room is answered 503.",
        |draft, value| set(&mut draft.settings.shard.room_count_max, value),
    ),
    setting(
        "handshakes_per_s_max",
        Group::NodeLimits,
        count("handshakes/s", any(1, 1_000_000).or_zero("no limit")),
        "0",
        "Upgrades a second of one shard; beyond it they are answered 503.",
        |draft, value| set(&mut draft.settings.shard.handshakes_per_s_max, value),
    ),
    setting(
        "node_bytes_max",
        Group::NodeLimits,
        bytes(any(1 << 20, 1 << 50)),
        "auto",
        "All that the node holds for its connections. auto: three eighths of the memory.",
        |draft, value| draft.node_bytes_max = value.number(),
    )
    .or("auto"),
    setting(
        "shard_bytes_max",
        Group::NodeLimits,
        bytes(any(1 << 20, 1 << 50)),
        "auto",
        "All that one shard holds for its connections. auto: the same as for the node.",
        |draft, value| draft.shard_bytes_max = value.number(),
    )
    .or("auto"),
    setting(
        "message_bytes_max",
        Group::ConnectionLimits,
        bytes(any(1, 1 << 30)),
        "64KiB",
        "Payload of one message; the connection is closed with 1009 when a header announces more.",
        |draft, value| set(&mut draft.settings.shard.message_bytes_max, value),
    ),
    setting(
        "message_fragment_count_max",
        Group::ConnectionLimits,
        count("fragments", any(1, 1 << 24)),
        "65536",
        "Fragments of one message; the connection is closed with 1009 beyond it.",
        |draft, value| set(&mut draft.settings.shard.message_fragment_count_max, value),
    ),
    setting(
        "connection_queue_bytes_max",
        Group::ConnectionLimits,
        bytes(any(1_024, 1 << 30)),
        "64KiB",
        "Output that waits for one connection; beyond it the room's slow-consumer policy decides.",
        |draft, value| set(&mut draft.settings.shard.connection_queue_bytes_max, value),
    ),
    setting(
        "messages_per_s_max",
        Group::ConnectionLimits,
        count("messages/s", any(1, 1_000_000).or_zero("no limit")),
        "0",
        "Messages a second from one connection; it is closed with 1008 beyond it. The burst is one second's worth.",
        |draft, value| set(&mut draft.settings.shard.messages_per_s_max, value),
    ),
    setting(
        "message_bytes_per_s_max",
        Group::ConnectionLimits,
        bytes(any(1, 1 << 31).or_zero("no limit")),
        "0",
        "Payload a second from one connection; it is closed with 1008 beyond it. The burst is one second's worth, and at least one message.",
        |draft, value| set(&mut draft.settings.shard.message_bytes_per_s_max, value),
    ),
    setting(
        "handshake_bytes_max",
        Group::ConnectionLimits,
        bytes(any(512, 64 << 10)),
        "8KiB",
        "Request line and headers of an upgrade; answered 431 or 414 beyond it.",
        |draft, value| set(&mut draft.settings.shard.handshake_bytes_max, value),
    ),
    setting(
        "handshake_header_count_max",
        Group::ConnectionLimits,
        count("headers", any(8, 256)),
        "64",
        "Headers of an upgrade; answered 431 beyond it.",
        |draft, value| set(&mut draft.settings.shard.handshake_header_count_max, value),
    ),
    setting(
        "heartbeat",
        Group::Life,
        Kind::Choice(&["ping", "tcp"]),
        "ping",
        "How dead peers are found: by WebSocket pings, or by the kernel's keepalive and TCP_USER_TIMEOUT alone.",
        |draft, value| {
            draft.settings.shard.heartbeat = match value.text().as_deref() {
                Some("tcp") => HeartbeatMode::Tcp,
                _ => HeartbeatMode::Ping,
            }
        },
    ),
    setting(
        "ping_interval_ms",
        Group::Life,
        ms(any(100, KEEPALIVE_MS_MAX)),
        "25s",
        "Between two pings to a connection (with heartbeat = \"tcp\": idle time before the kernel probes).",
        |draft, value| set(&mut draft.settings.shard.ping_interval_ms, value),
    ),
    setting(
        "pong_timeout_ms",
        Group::Life,
        ms(any(50, KEEPALIVE_MS_MAX)),
        "10s",
        "From a ping to giving the peer up (with heartbeat = \"tcp\": the time in which the kernel probes).",
        |draft, value| set(&mut draft.settings.shard.pong_timeout_ms, value),
    ),
    setting(
        "idle_timeout_ms",
        Group::Life,
        ms(any(100, WEEK_MS).or_zero("no limit")),
        "0",
        "Without a message from the client; the connection is closed with 4000.",
        |draft, value| set(&mut draft.settings.shard.idle_timeout_ms, value),
    ),
    setting(
        "message_timeout_ms",
        Group::Life,
        ms(any(100, HOUR_MS).or_zero("no limit")),
        "30s",
        "Without a further byte of a message that has begun; the connection is closed with 1008.",
        |draft, value| set(&mut draft.settings.shard.message_timeout_ms, value),
    ),
    setting(
        "write_stall_timeout_ms",
        Group::Life,
        ms(any(100, HOUR_MS)),
        "30s",
        "A send that makes no progress for so long ends the connection.",
        |draft, value| set(&mut draft.settings.shard.write_stall_timeout_ms, value),
    ),
    setting(
        "handshake_timeout_ms",
        Group::Life,
        ms(any(100, HOUR_MS)),
        "5s",
        "From accept to the whole request; then a begun one is answered 408, and the connection ends.",
        |draft, value| set(&mut draft.settings.shard.handshake_timeout_ms, value),
    ),
    setting(
        "close_timeout_ms",
        Group::Life,
        ms(any(50, HOUR_MS)),
        "5s",
        "From our close frame to the peer's end of the stream; then the connection is cut.",
        |draft, value| set(&mut draft.settings.shard.close_timeout_ms, value),
    ),
    setting(
        "retry_after_s",
        Group::Life,
        Kind::Number(Unit::Seconds, any(1, 3_600)),
        "2",
        "Retry-After of a 503; up to the same again is added at random.",
        |draft, value| set(&mut draft.settings.shard.retry_after_s, value),
    ),
    setting(
        "reconnect_after_ms",
        Group::Life,
        ms(any(0, HOUR_MS)),
        "500ms",
        "after_ms of the reconnect notice; up to the same again is added at random.",
        |draft, value| set(&mut draft.settings.shard.reconnect_after_ms, value),
    ),
    setting(
        "socket_backlog",
        Group::Sockets,
        count("connections", any(1, 1 << 20)),
        "4096",
        "Connections that wait to be accepted, for each shard and address; net.core.somaxconn caps it.",
        |draft, value| set(&mut draft.settings.socket.backlog, value),
    ),
    setting(
        "socket_send_buffer_bytes",
        Group::Sockets,
        bytes(any(2_304, 1 << 30).or_zero("the kernel decides")),
        "0",
        "SO_SNDBUF of every connection; the kernel doubles it, and no longer sizes it by itself.",
        |draft, value| set(&mut draft.settings.socket.send_buffer_bytes, value),
    ),
    setting(
        "socket_receive_buffer_bytes",
        Group::Sockets,
        bytes(any(2_304, 1 << 30).or_zero("the kernel decides")),
        "0",
        "SO_RCVBUF of every connection; the kernel doubles it, and no longer sizes it by itself.",
        |draft, value| set(&mut draft.settings.socket.receive_buffer_bytes, value),
    ),
    setting(
        "socket_notsent_lowat_bytes",
        Group::Sockets,
        bytes(any(1_024, 1 << 30).or_zero("the kernel decides")),
        "16KiB",
        "TCP_NOTSENT_LOWAT: what a socket takes beyond what is on its way, so that queues stay where budgets see them.",
        |draft, value| set(&mut draft.settings.socket.notsent_lowat_bytes, value),
    ),
    setting(
        "socket_user_timeout_ms",
        Group::Sockets,
        ms(any(100, HOUR_MS).or_zero("the kernel decides")),
        "auto",
        "TCP_USER_TIMEOUT. auto: ping interval + pong timeout with heartbeat = \"tcp\", else the kernel decides.",
        |draft, value| draft.user_timeout_ms = value.u32(),
    )
    .or("auto"),
    setting(
        "descriptors",
        Group::Engine,
        Kind::Choice(&["auto", "direct", "plain"]),
        "auto",
        "Where sockets live: in each ring's own table (direct), which the open-file limit does not count, or in the process's (plain). auto: direct where the kernel has it, and frees it when it is closed (Linux 6.13 and later).",
        |draft, value| {
            draft.settings.ring.descriptors = match value.text().as_deref() {
                Some("direct") => Descriptors::Direct,
                Some("plain") => Descriptors::Plain,
                _ => Descriptors::Auto,
            }
        },
    ),
    setting(
        "ring_submission_entries",
        Group::Engine,
        count("entries", any(8, 32_768).powers_of_two()),
        "1024",
        "Submission queue of each shard's ring.",
        |draft, value| set(&mut draft.settings.ring.submission_entries, value),
    ),
    setting(
        "ring_completion_entries",
        Group::Engine,
        count("entries", any(16, 65_536).powers_of_two()),
        "8192",
        "Completion queue of each shard's ring.",
        |draft, value| set(&mut draft.settings.ring.completion_entries, value),
    ),
    setting(
        "ring_receive_buffer_bytes",
        Group::Engine,
        bytes(any(256, 1 << 20)),
        "4KiB",
        "One receive buffer; they are lent to connections only while bytes come in.",
        |draft, value| set(&mut draft.settings.ring.receive_buffer_bytes, value),
    ),
    setting(
        "ring_receive_buffer_count",
        Group::Engine,
        count("buffers", any(2, 32_768).powers_of_two()),
        "512",
        "Receive buffers of each shard.",
        |draft, value| {
            let number = value.u32().and_then(|number| u16::try_from(number).ok());
            draft.settings.ring.receive_buffer_count = number.unwrap_or_default();
        },
    ),
    setting(
        "drain_delay_ms",
        Group::Stopping,
        ms(any(0, HOUR_MS)),
        "0",
        "From the stop request, which turns readiness off, until the listeners stop: time for load balancers to see it.",
        |draft, value| set(&mut draft.settings.drain.delay_ms, value),
    ),
    setting(
        "drain_window_ms",
        Group::Stopping,
        ms(any(0, HOUR_MS)),
        "10s",
        "The closes of all connections are spread evenly over so long.",
        |draft, value| set(&mut draft.settings.drain.window_ms, value),
    ),
    setting(
        "drain_deadline_ms",
        Group::Stopping,
        ms(any(0, HOUR_MS)),
        "30s",
        "From the stop request until whoever is left is cut.",
        |draft, value| set(&mut draft.settings.drain.deadline_ms, value),
    ),
    setting(
        "drain_notice",
        Group::Stopping,
        Kind::Boolean,
        "true",
        "Whether clients are told to reconnect before they are closed.",
        |draft, value| draft.settings.drain.notice = *value == Value::Boolean(true),
    ),
    setting(
        "log_level",
        Group::Logs,
        Kind::Choice(&["off", "error", "warn", "info", "debug", "trace"]),
        "info",
        "The least important that is logged. Nothing is logged for each connection above debug.",
        |draft, value| draft.settings.log.level = value.text().and_then(|text| text.parse().ok()),
    ),
    setting(
        "log_format",
        Group::Logs,
        Kind::Choice(&["auto", "human", "json"]),
        "auto",
        "How a line looks. auto: for people on a terminal, JSON otherwise.",
        |draft, value| {
            draft.settings.log.format = match value.text().as_deref() {
                Some("human") => LogFormat::Human,
                Some("json") => LogFormat::Json,
                _ => LogFormat::Auto,
            }
        },
    ),
];

/// The definition of `key`.
#[must_use]
pub fn find(key: &str) -> Option<&'static Definition> {
    DEFINITIONS.iter().find(|definition| definition.key == key)
}

/// Puts a number in place; its range has been checked to fit.
fn set(place: &mut u32, value: &Value) {
    *place = value.u32().unwrap_or_default();
}

impl Value {
    fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }

    fn u32(&self) -> Option<u32> {
        self.number().and_then(|number| u32::try_from(number).ok())
    }

    fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    fn texts(&self) -> Vec<String> {
        match self {
            Self::Texts(texts) => texts.clone(),
            Self::Text(text) => vec![text.clone()],
            _ => Vec::new(),
        }
    }

    fn address(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Address(address) => Some(*address),
            _ => None,
        }
    }

    fn addresses(&self) -> Vec<std::net::SocketAddr> {
        match self {
            Self::Addresses(addresses) => addresses.clone(),
            _ => Vec::new(),
        }
    }

    fn processors(&self) -> Vec<u32> {
        match self {
            Self::Processors(processors) => processors.clone(),
            _ => Vec::new(),
        }
    }
}
