//! Values on their way to [`Settings`]: what was given is put in place, then `auto` is worked out for this machine.

use crate::backplane::registry::{self, Kept};
use crate::backplane::remote;
use crate::config::capacity;
use crate::config::redis_tls::RedisTls;
use crate::config::settings::{Keepalive, Log, LogFormat, Machine, Settings, SocketOptions};
use crate::protocol::handshake::{Auth, Badge, Cookie, Edge, SameSite};
use crate::runtime::ring::Descriptors;
use crate::shard::{HeartbeatMode, Presence};
use crate::{drain, limits, runtime::ring, shard};

/// Probes that the kernel's keepalive sends before it gives a peer up.
const KEEPALIVE_PROBE_COUNT: u32 = 3;

/// Bytes of one reply of Redis at most. No batch comes near it: other nodes may have larger messages than this one.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// Settings of which some are still to be worked out. `None`: `auto`.
#[derive(Debug)]
pub struct Draft {
    pub(super) settings: Settings,
    pub(super) shards: Option<usize>,
    pub(super) node_id: Option<String>,
    pub(super) connection_count_max: Option<u32>,
    pub(super) shard_bytes_max: Option<u64>,
    pub(super) node_bytes_max: Option<u64>,
    pub(super) user_timeout_ms: Option<u32>,
    pub(super) admin_key_file: Option<String>,
    pub(super) auth_by_header: bool,
    pub(super) identity_header: String,
    pub(super) node_header: Option<String>,
    /// `None`: no cookie is set, and what is below does not count.
    pub(super) affinity_cookie: Option<String>,
    pub(super) affinity_value: Option<String>,
    pub(super) affinity_path: String,
    pub(super) affinity_domain: Option<String>,
    pub(super) affinity_max_age_s: u32,
    pub(super) affinity_same_site: SameSite,
    pub(super) affinity_secure: bool,
    /// What holds if there is a Redis; its address is put in place last.
    pub(super) redis: remote::Options,
    pub(super) registry: registry::Options,
    pub(super) redis_urls: Vec<String>,
    pub(super) redis_password: Option<String>,
    pub(super) redis_password_file: Option<String>,
    pub(super) redis_sentinel_password: Option<String>,
    pub(super) redis_tls_ca_file: Option<String>,
    pub(super) redis_tls_cert_file: Option<String>,
    pub(super) redis_tls_key_file: Option<String>,
}

impl Draft {
    /// With nothing in place. Every definition has a default, so all of it is overwritten.
    pub(super) fn new() -> Self {
        Self {
            settings: Settings {
                listen: Vec::new(),
                admin: None,
                admin_key: None,
                shards: 0,
                cores: Vec::new(),
                node_id: String::new(),
                shard: shard_options_empty(),
                ring: ring::Options {
                    descriptors: Descriptors::Auto,
                    socket_count_max: 0,
                    submission_entries: 0,
                    completion_entries: 0,
                    receive_buffer_bytes: 0,
                    receive_buffer_count: 0,
                },
                socket: SocketOptions {
                    backlog: 0,
                    send_buffer_bytes: 0,
                    receive_buffer_bytes: 0,
                    notsent_lowat_bytes: 0,
                    keepalive: None,
                    user_timeout_ms: 0,
                },
                redis: None,
                redis_tls: RedisTls::default(),
                registry: registry::Options::new(String::new()),
                drain: drain::Options {
                    delay_ms: 0,
                    window_ms: 0,
                    deadline_ms: 0,
                    notice: false,
                },
                log: Log {
                    level: None,
                    format: LogFormat::Auto,
                },
            },
            shards: None,
            node_id: None,
            connection_count_max: None,
            shard_bytes_max: None,
            node_bytes_max: None,
            user_timeout_ms: None,
            admin_key_file: None,
            auth_by_header: false,
            identity_header: String::new(),
            node_header: None,
            affinity_cookie: None,
            affinity_value: None,
            affinity_path: String::new(),
            affinity_domain: None,
            affinity_max_age_s: 0,
            affinity_same_site: SameSite::Lax,
            affinity_secure: false,
            redis: remote::Options::new(remote::Address {
                endpoint: remote::Endpoint::Unix {
                    path: String::new(),
                },
                user: None,
                password: None,
                database: 0,
                tls: false,
                kind: remote::Kind::Single,
            }),
            redis_urls: Vec::new(),
            registry: registry::Options::new(String::new()),
            redis_password: None,
            redis_password_file: None,
            redis_sentinel_password: None,
            redis_tls_ca_file: None,
            redis_tls_cert_file: None,
            redis_tls_key_file: None,
        }
    }

    /// Works out what is `auto`, for `machine`.
    pub(super) fn finish(mut self, machine: &Machine) -> Settings {
        let redis = self.redis();
        let prefix = self.redis.prefix.clone();
        let mut settings = self.settings;
        let processor_count = match settings.cores.len() {
            0 => machine.processors.len(),
            count => count,
        };
        // Cores that a quota stops together are no cores: only as many as it can keep busy.
        let quota = machine
            .processor_quota_milli
            .map(|milli| milli.div_ceil(1_000));
        let quota = quota.and_then(|count| usize::try_from(count).ok());
        let processor_count = quota.map_or(processor_count, |quota| processor_count.min(quota));
        settings.shards = self.shards.unwrap_or_else(|| {
            processor_count
                .saturating_sub(1)
                .clamp(1, limits::SHARD_COUNT_MAX)
        });
        settings.node_id = self
            .node_id
            .unwrap_or_else(|| node_id_default(&machine.hostname, machine.process_id));

        if self.auth_by_header {
            settings.shard.edge.auth = Auth::Header(self.identity_header);
        }
        let node_id = &settings.node_id;
        let cookie = self.affinity_cookie.map(|name| Cookie {
            name,
            value: self.affinity_value.unwrap_or_else(|| node_id.clone()),
            path: self.affinity_path,
            domain: self.affinity_domain,
            max_age_s: self.affinity_max_age_s,
            same_site: self.affinity_same_site,
            secure: self.affinity_secure,
        });
        let header = self.node_header.as_deref().map(|name| (name, &**node_id));
        settings.shard.edge.badge = Badge::new(header, cookie.as_ref());

        let node_bytes_max = self
            .node_bytes_max
            .unwrap_or(capacity::node_bytes_default(machine.memory_bytes));
        settings.shard.node_bytes_max = node_bytes_max;
        settings.shard.shard_bytes_max = self.shard_bytes_max.unwrap_or(node_bytes_max);

        if settings.ring.descriptors == Descriptors::Auto && !machine.direct_descriptors_freed {
            settings.ring.descriptors = Descriptors::Plain;
        }
        let descriptors = settings.ring.descriptors;
        let files = capacity::by_files(descriptors, machine.open_files_max, settings.shards);
        settings.shard.connection_count_max = self.connection_count_max.unwrap_or_else(|| {
            let connections = files.min(capacity::by_memory(machine.memory_bytes, node_bytes_max));
            u32::try_from(connections).unwrap_or(u32::MAX).max(1)
        });
        settings.ring.socket_count_max = capacity::ring_socket_count(
            descriptors,
            machine.open_files_max,
            settings.shard.connection_count_max,
        );

        let silence_ms = settings
            .shard
            .ping_interval_ms
            .saturating_add(settings.shard.pong_timeout_ms);
        let tcp = settings.shard.heartbeat == HeartbeatMode::Tcp;
        settings.socket.keepalive = tcp.then(|| keepalive(&settings.shard));
        settings.socket.user_timeout_ms =
            self.user_timeout_ms
                .unwrap_or(if tcp { silence_ms } else { 0 });

        settings.redis = redis.map(|redis| remote::Options {
            client_name: format!("throng-{}", settings.node_id),
            ..redis
        });
        settings.shard.presence = match (&settings.redis, self.registry.kept) {
            (None, _) | (_, Kept::Off) => Presence::Off,
            (Some(_), Kept::Users) => Presence::Users,
            (Some(_), Kept::All) => Presence::All,
        };
        settings.shard.presence_refresh_ms = self.registry.refresh_ms();
        settings.registry = registry::Options {
            node_id: settings.node_id.clone(),
            prefix,
            ..self.registry
        };
        settings.shard.join_timeout_ms = settings
            .redis
            .as_ref()
            .map_or(0, |redis| redis.join_timeout_ms);
        settings
    }

    /// The backplane's options, if there is a Redis.
    fn redis(&mut self) -> Option<remote::Options> {
        let mut addresses = Vec::new();
        for url in &self.redis_urls {
            let mut source = remote::Source::parse(url).ok()?;
            if let Some(password) = &self.redis_password {
                source.set_password(password);
            }
            if let Some(password) = &self.redis_sentinel_password {
                source.set_sentinel_password(password);
            }
            addresses.extend(source.into_addresses());
        }
        if addresses.is_empty() {
            return None;
        }
        let address = addresses.remove(0);
        let message_bytes = self.settings.shard.message_bytes_max as usize;
        Some(remote::Options {
            address,
            others: addresses,
            commands: true,
            reply_bytes_max: REPLY_BYTES_MAX.max(2 * message_bytes),
            ..self.redis.clone()
        })
    }
}

/// Idle for the ping interval, then probes spread over the pong timeout.
fn keepalive(options: &shard::Options) -> Keepalive {
    let interval_ms = options.pong_timeout_ms / KEEPALIVE_PROBE_COUNT;
    Keepalive {
        idle_s: options.ping_interval_ms.div_ceil(1_000).max(1),
        interval_s: interval_ms.div_ceil(1_000).max(1),
        probe_count: KEEPALIVE_PROBE_COUNT,
    }
}

/// `HOST-PID`, with what a node's name may not hold replaced by `-`.
fn node_id_default(hostname: &str, process_id: u32) -> String {
    let host = if hostname.is_empty() {
        "node"
    } else {
        hostname
    };
    let allowed = |character: char| match character {
        'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '_' | '-' => character,
        _ => '-',
    };
    let host: String = host.chars().map(allowed).take(50).collect();
    format!("{host}-{process_id}")
}

fn shard_options_empty() -> shard::Options {
    shard::Options {
        connection_count_max: 0,
        address_connection_count_max: 0,
        user_connection_count_max: 0,
        presence: Presence::Off,
        presence_refresh_ms: 20_000,
        room_count_max: 0,
        handshakes_per_s_max: 0,
        message_bytes_max: 0,
        message_fragment_count_max: 0,
        connection_queue_bytes_max: 0,
        shard_bytes_max: 0,
        node_bytes_max: 0,
        messages_per_s_max: 0,
        message_bytes_per_s_max: 0,
        heartbeat: HeartbeatMode::Ping,
        ping_interval_ms: 0,
        pong_timeout_ms: 0,
        idle_timeout_ms: 0,
        message_timeout_ms: 0,
        write_stall_timeout_ms: 0,
        handshake_timeout_ms: 0,
        join_timeout_ms: 0,
        close_timeout_ms: 0,
        handshake_bytes_max: 0,
        handshake_header_count_max: 0,
        origins: Vec::new(),
        edge: Edge::default(),
        retry_after_s: 0,
        reconnect_after_ms: 0,
        rooms: Vec::new(),
    }
}
