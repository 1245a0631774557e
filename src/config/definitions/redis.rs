//! Redis between the nodes, and what is kept there.

use super::{Definition, HOUR_MS, any, bytes, count, ms, set, setting};
use crate::backplane::registry::Kept;
use crate::backplane::remote::placement::PARTITION_COUNT_MAX;
use crate::backplane::remote::{AtStart, Degraded, Mode, Source, without_password};
use crate::config::group::Group;
use crate::config::value::{Kind, Range, Unit};

/// The settings of this part.
pub(super) const SETTINGS: &[Definition] = &[
    setting(
        "redis",
        Group::Redis,
        Kind::CheckedTexts {
            range: "one or more of redis://[USER:PASSWORD@]HOST:PORT[/DB], unix:///PATH[?db=N] and redis-sentinel://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…]/NAME[/DB], or redis-cluster://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…]; rediss…:// with TLS",
            check: |url| Source::parse(url).map(|_| ()),
            shown: without_password,
        },
        "none",
        "The Redis that joins this node with others: everything published goes through it. Several are independent, and rooms are spread over them; every node is to be given the same. Others read a command line: give a password by redis_password.",
        |draft, value| draft.redis_urls = value.texts(),
    )
    .or("none"),
    setting(
        "redis_password",
        Group::Redis,
        Kind::Text {
            range: "1 to 1024 characters",
            accepts: |text| (1..=1_024).contains(&text.len()),
        },
        "none",
        "The password at Redis; it counts over one in the URL. It has no flag, since others can read a command line.",
        |draft, value| draft.redis_password = value.text(),
    )
    .or("none")
    .kept_secret(),
    setting(
        "redis_password_file",
        Group::Redis,
        Kind::Text {
            range: "the path of a file that holds nothing but the password",
            accepts: |text| !text.is_empty(),
        },
        "none",
        "Reads the password from a file, as systemd credentials and Kubernetes secrets give it.",
        |draft, value| draft.redis_password_file = value.text(),
    )
    .or("none"),
    setting(
        "redis_sentinel_password",
        Group::Redis,
        Kind::Text {
            range: "1 to 1024 characters",
            accepts: |text| (1..=1_024).contains(&text.len()),
        },
        "none",
        "The password at the Sentinels, if they want one; it counts over sentinel_password in the URL. It has no flag.",
        |draft, value| draft.redis_sentinel_password = value.text(),
    )
    .or("none")
    .kept_secret(),
    setting(
        "redis_tls_ca_file",
        Group::Redis,
        Kind::Text {
            range: "the path of a file in PEM",
            accepts: |text| !text.is_empty(),
        },
        "none",
        "The certificates of the authorities that Redis' own may be signed by, for URLs with TLS; none: those that the host trusts.",
        |draft, value| draft.redis_tls_ca_file = value.text(),
    )
    .or("none"),
    setting(
        "redis_tls_cert_file",
        Group::Redis,
        Kind::Text {
            range: "the path of a file in PEM",
            accepts: |text| !text.is_empty(),
        },
        "none",
        "This node's certificate, where Redis wants one (tls-auth-clients), with those between it and its authority behind it.",
        |draft, value| draft.redis_tls_cert_file = value.text(),
    )
    .or("none"),
    setting(
        "redis_tls_key_file",
        Group::Redis,
        Kind::Text {
            range: "the path of a file in PEM",
            accepts: |text| !text.is_empty(),
        },
        "none",
        "The private key of redis_tls_cert_file, without a passphrase.",
        |draft, value| draft.redis_tls_key_file = value.text(),
    )
    .or("none"),
    setting(
        "redis_tls_server_name",
        Group::Redis,
        Kind::Text {
            range: "a host name or an address",
            accepts: |text| !text.is_empty() && text.len() <= 253 && text.bytes().all(|byte| byte.is_ascii_graphic()),
        },
        "none",
        "The name that Redis' certificate is to be for; none: the host's name in the URL.",
        |draft, value| draft.settings.redis_tls.server_name = value.text(),
    )
    .or("none"),
    setting(
        "backplane_mode",
        Group::Redis,
        Kind::Choice(&["pubsub", "sharded", "streams"]),
        "pubsub",
        "How messages travel through Redis: by channels (pubsub), by channels that spread the work over a cluster's nodes and want Redis 7.0 (sharded), or kept in a stream for each room, so that a node reads what it has missed (streams). The same on all nodes.",
        |draft, value| {
            draft.redis.mode = match value.text().as_deref() {
                Some("sharded") => Mode::Sharded,
                Some("streams") => Mode::Streams,
                _ => Mode::Pubsub,
            }
        },
    ),
    setting(
        "streams_length_max",
        Group::Redis,
        count("batches", any(10, 10_000_000)),
        "1000",
        "With backplane_mode = \"streams\": what a room's stream keeps, about; what a node has missed beyond it is told as gone. A batch is what a room was sent by one node at a time, mostly one message.",
        |draft, value| set(&mut draft.redis.streams_length_max, value),
    ),
    setting(
        "streams_ttl_ms",
        Group::Redis,
        ms(any(60_000, 24 * HOUR_MS)),
        "600s",
        "With backplane_mode = \"streams\": from a room's last message until its stream is forgotten. Nodes that are cut off for longer tell their members that messages may be missing.",
        |draft, value| set(&mut draft.redis.streams_ttl_ms, value),
    ),
    setting(
        "streams_retain_ms",
        Group::Redis,
        ms(any(0, 30_000)),
        "5s",
        "With backplane_mode = \"streams\": how long a message that Redis has acknowledged is kept, to be sent again to a server that takes its place and lacks it; redis_buffer_bytes_max of them at most.",
        |draft, value| set(&mut draft.redis.streams_retain_ms, value),
    ),
    setting(
        "redis_prefix",
        Group::Redis,
        Kind::Text {
            range: "1 to 64 of A-Z, a-z, 0-9, `.`, `_`, `:` and `-`",
            accepts: |text| {
                (1..=64).contains(&text.len())
                    && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte))
            },
        },
        "throng",
        "What all channels begin with: nodes with the same prefix are one server.",
        |draft, value| draft.redis.prefix = value.text().unwrap_or_default(),
    ),
    setting(
        "redis_partitions",
        Group::Redis,
        Kind::Number(Unit::Count("partitions"), Range::of(1, PARTITION_COUNT_MAX as u64)),
        "128",
        "Parts that rooms are dealt out to in a Redis Cluster, or with backplane_mode = sharded: each is in one slot. It is in the channels' names, and the same on all nodes.",
        |draft, value| {
            let count = value.u32().and_then(|count| u16::try_from(count).ok());
            draft.redis.partitions = count.unwrap_or_default();
        },
    ),
    setting(
        "redis_at_start",
        Group::Redis,
        Kind::Choice(&["wait", "fail"]),
        "wait",
        "When Redis cannot be used at the start: run, be not ready and go on trying (wait), or end and say why (fail).",
        |draft, value| {
            draft.redis.at_start = match value.text().as_deref() {
                Some("fail") => AtStart::Fail,
                _ => AtStart::Wait,
            }
        },
    ),
    setting(
        "redis_degraded",
        Group::Redis,
        Kind::Choice(&["local", "refuse"]),
        "local",
        "While Redis cannot be reached: members of this node hear each other at once (local), or nobody before Redis is back (refuse).",
        |draft, value| {
            draft.redis.degraded = match value.text().as_deref() {
                Some("refuse") => Degraded::Refuse,
                _ => Degraded::Local,
            }
        },
    ),
    setting(
        "redis_flush_us",
        Group::Redis,
        count("microseconds", any(0, 100_000)),
        "100",
        "Under load, what is written to Redis is gathered for so long; the first write after a rest goes at once.",
        |draft, value| set(&mut draft.redis.flush_us, value),
    ),
    setting(
        "redis_hold_ms",
        Group::Redis,
        ms(any(0, HOUR_MS)),
        "5s",
        "From a room's last member on this node until its channel is left.",
        |draft, value| set(&mut draft.redis.hold_ms, value),
    ),
    setting(
        "redis_subscribes_per_s_max",
        Group::Redis,
        count("channels/s", any(1, 10_000_000)),
        "50000",
        "Channels subscribed to a second; joins wait meanwhile.",
        |draft, value| set(&mut draft.redis.subscribes_per_s_max, value),
    ),
    setting(
        "redis_joins_waiting_max",
        Group::Redis,
        count("rooms", any(1, 16_777_216)),
        "100000",
        "Rooms whose joins wait for their subscription; beyond it an upgrade into a new room is answered 503.",
        |draft, value| set(&mut draft.redis.joins_waiting_max, value),
    ),
    setting(
        "redis_join_timeout_ms",
        Group::Redis,
        ms(any(100, HOUR_MS)),
        "10s",
        "How long a join waits for its room's subscription; then the upgrade is answered 503.",
        |draft, value| set(&mut draft.redis.join_timeout_ms, value),
    ),
    setting(
        "redis_buffer_bytes_max",
        Group::Redis,
        bytes(any(64 << 10, 1 << 40)),
        "64MiB",
        "Messages that Redis has not acknowledged. Full, publishers wait while Redis answers, and are refused while it does not.",
        |draft, value| draft.redis.buffer_bytes_max = value.number().unwrap_or_default(),
    ),
    setting(
        "redis_buffer_age_ms",
        Group::Redis,
        ms(any(100, 30_000)),
        "10s",
        "While Redis cannot be reached: how long a message waits for it, before its publisher is told that other nodes do not see it.",
        |draft, value| set(&mut draft.redis.buffer_age_ms, value),
    ),
    setting(
        "redis_backlog_bytes_max",
        Group::Redis,
        bytes(any(64 << 10, 1 << 40)),
        "64MiB",
        "What waits for one shard beyond its lane; beyond it messages are dropped, and their members told of the gap.",
        |draft, value| draft.redis.backlog_bytes_max = value.number().unwrap_or_default(),
    ),
    setting(
        "redis_probe_interval_ms",
        Group::Redis,
        ms(any(100, HOUR_MS)),
        "5s",
        "A link that was silent for so long is probed by a message of our own, through Redis and back.",
        |draft, value| set(&mut draft.redis.probe_interval_ms, value),
    ),
    setting(
        "redis_probe_timeout_ms",
        Group::Redis,
        ms(any(100, 60_000)),
        "3s",
        "From a probe, a command or a connection attempt to giving the link up.",
        |draft, value| set(&mut draft.redis.probe_timeout_ms, value),
    ),
    setting(
        "registry",
        Group::Redis,
        Kind::Choice(&["off", "users", "all"]),
        "users",
        "Which connections are written to Redis, so that every node knows of them: none (off), those of users, or all.",
        |draft, value| {
            draft.registry.kept = match value.text().as_deref() {
                Some("off") => Kept::Off,
                Some("all") => Kept::All,
                _ => Kept::Users,
            }
        },
    ),
    setting(
        "registry_ttl_ms",
        Group::Redis,
        ms(any(1_000, HOUR_MS)),
        "90s",
        "How long a connection's entry in Redis lives; each is written again three times in that time. A dead node's are gone by then at the latest.",
        |draft, value| set(&mut draft.registry.ttl_ms, value),
    ),
    setting(
        "cluster_interval_ms",
        Group::Redis,
        ms(any(100, 60_000)),
        "2s",
        "How often this node tells the others of its state. Three times that without a word is silence.",
        |draft, value| set(&mut draft.registry.interval_ms, value),
    ),
];
