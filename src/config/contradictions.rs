//! Values that are right each by itself and wrong together.

use std::net::SocketAddr;

use crate::backplane::remote::SERVER_COUNT_MAX;
use crate::config::capacity;
use crate::config::effective::Effective;
use crate::config::load::default;
use crate::config::mistake::{Mistake, Source};
use crate::config::settings::{Machine, Settings};
use crate::config::value::Value;
use crate::protocol::handshake::{Auth, ProxyProtocol};
use crate::runtime::ring::Descriptors;

/// A shard's part of `node_bytes_max` at least, bytes: room for its first connections beside what it keeps reserved.
const SHARD_PART_BYTES_MIN: u64 = 256 << 10;

/// All contradictions, but for those with settings in `wrong`: what is wrong with these is told already.
pub(super) fn find_all(
    settings: &Settings,
    machine: &Machine,
    effective: &Effective,
    wrong: &[&str],
) -> Vec<Mistake> {
    let mut found = Found {
        effective,
        wrong,
        mistakes: Vec::new(),
    };
    listeners(settings, &mut found);
    edge(settings, &mut found);
    cores(settings, machine, &mut found);
    limits(settings, machine, &mut found);
    times(settings, &mut found);
    redis_tls(settings, &mut found);
    servers(settings, &mut found);
    found.mistakes
}

/// Collects contradictions.
struct Found<'a> {
    effective: &'a Effective,
    wrong: &'a [&'a str],
    mistakes: Vec<Mistake>,
}

impl Found<'_> {
    /// Notes a contradiction between the settings `keys`.
    fn add(&mut self, keys: &[&str], problem: String, instead: String) {
        if keys.iter().any(|key| self.wrong.contains(key)) {
            return;
        }
        let places: Vec<String> = keys.iter().map(|key| self.place(key)).collect();
        self.mistakes.push(Mistake {
            place: places.join(" and "),
            problem,
            instead,
        });
    }

    /// A setting and where its value came from, unless that is the default.
    fn place(&self, key: &str) -> String {
        match self.effective.entry(key) {
            Some(entry) => match entry.source {
                Source::Default => format!("{key} (default)"),
                Source::File { line } => format!("{key} (line {line})"),
                Source::Environment => entry.definition.variable(),
                Source::Flag => entry.definition.flag(),
            },
            None => key.to_owned(),
        }
    }

    fn value(&self, key: &str) -> Option<Value> {
        self.effective.entry(key).map(|entry| entry.value.clone())
    }

    /// Whether `key` has a value of its own: one that is not the default, wherever it came from.
    fn is_given(&self, key: &str) -> bool {
        self.effective
            .entry(key)
            .is_some_and(|entry| entry.value != default(entry.definition))
    }

    fn is_auto(&self, key: &str) -> bool {
        self.effective
            .entry(key)
            .is_some_and(|entry| entry.value == Value::Word)
    }
}

/// Whether two listeners cannot be apart: the same port, and the same address or one that stands for all. Port 0 is a
/// new one each time.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && one.port() != 0
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

fn listeners(settings: &Settings, found: &mut Found<'_>) {
    for (index, &late) in settings.listen.iter().enumerate() {
        if let Some(early) = settings.listen[..index]
            .iter()
            .find(|&&early| overlap(early, late))
        {
            let problem = match *early == late {
                true => format!("{late} stands there twice"),
                false => format!("{early} and {late} cover each other"),
            };
            found.add(&["listen"], problem, "leave one of the two out".into());
        }
    }
    let Some(admin) = settings.admin else { return };
    if let Some(listen) = settings
        .listen
        .iter()
        .find(|&&listen| overlap(listen, admin))
    {
        let problem = match *listen == admin {
            true => format!("both are {admin}"),
            false => format!("{listen} covers {admin}"),
        };
        found.add(
            &["admin", "listen"],
            problem,
            "give the admin listener another port".into(),
        );
    }
    if !admin.ip().is_loopback() && settings.admin_key.is_none() {
        found.add(
            &["admin", "admin_key"],
            format!("others than this host reach {admin}, and no key guards it"),
            format!(
                "set THRONG_ADMIN_KEY or admin_key_file, or write admin = \"127.0.0.1:{}\"",
                admin.port()
            ),
        );
    }
}

fn edge(settings: &Settings, found: &mut Found<'_>) {
    let edge = &settings.shard.edge;
    if edge.trusted_proxies.is_empty() {
        for (key, believes, off) in [
            ("auth", edge.auth != Auth::None, "none"),
            (
                "proxy_protocol",
                edge.proxy_protocol != ProxyProtocol::Off,
                "off",
            ),
            ("forwarded_for", edge.forwarded_for, "off"),
        ] {
            if believes {
                let instead = format!("write the balancers' addresses there, or {key} = \"{off}\"");
                found.add(
                    &[key, "trusted_proxies"],
                    "nobody is trusted to say it".into(),
                    instead,
                );
            }
        }
    }
    if edge.auth == Auth::None && found.is_given("identity_header") {
        found.add(
            &["identity_header", "auth"],
            "the header is not read, and everybody says by ?user= who they are".into(),
            "write auth = \"header\", or leave identity_header out".into(),
        );
    }
    let trusts_everybody = edge
        .trusted_proxies
        .iter()
        .any(|network| network.is_everybody());
    if edge.auth != Auth::None && trusts_everybody {
        found.add(
            &["auth", "trusted_proxies"],
            "everybody is trusted to say who they are".into(),
            "write the balancers' own addresses there".into(),
        );
    }
    if edge.auth != Auth::None && edge.proxy_protocol == ProxyProtocol::Require {
        found.add(
            &["auth", "proxy_protocol"],
            "headers behind a PROXY header are the client's own and not believed: nobody could have a user"
                .into(),
            "write proxy_protocol = \"off\" where the proxy adds the identity header, or auth = \"none\""
                .into(),
        );
    }
    affinity(found);
}

/// Settings that mean nothing without the cookie.
const OF_THE_COOKIE: [&str; 6] = [
    "affinity_value",
    "affinity_path",
    "affinity_domain",
    "affinity_max_age_s",
    "affinity_same_site",
    "affinity_secure",
];

/// A cookie's settings without it, and what browsers would not take (draft-ietf-httpbis-rfc6265bis §4.1.3, §5.7).
fn affinity(found: &mut Found<'_>) {
    let Some(Value::Text(name)) = found.value("affinity_cookie") else {
        let of_none = OF_THE_COOKIE.map(|key| found.is_given(key).then_some(key));
        for key in of_none.into_iter().flatten() {
            found.add(
                &[key, "affinity_cookie"],
                "no cookie is set that this could be of".into(),
                format!("write affinity_cookie = \"throng_node\", or leave {key} out"),
            );
        }
        return;
    };
    let is_secure = found.value("affinity_secure") == Some(Value::Boolean(true));
    let same_site_none = found.value("affinity_same_site") == Some(Value::Text("none".into()));
    if same_site_none && !is_secure {
        found.add(
            &["affinity_same_site", "affinity_secure"],
            "browsers take no cookie with SameSite=None that is not Secure".into(),
            "write affinity_secure = true, or another affinity_same_site".into(),
        );
    }
    let name = name.to_ascii_lowercase();
    if (name.starts_with("__host-") || name.starts_with("__secure-")) && !is_secure {
        found.add(
            &["affinity_cookie", "affinity_secure"],
            "browsers take no cookie of such a name that is not Secure".into(),
            "write affinity_secure = true, or another name".into(),
        );
    }
    if !name.starts_with("__host-") {
        return;
    }
    let host_only = "browsers take a cookie whose name begins with __Host- for one host and Path=/";
    if found.value("affinity_path") != Some(Value::Text("/".into())) {
        found.add(
            &["affinity_cookie", "affinity_path"],
            format!("{host_only} only"),
            "write affinity_path = \"/\", or another name".into(),
        );
    }
    if found.value("affinity_domain") != Some(Value::Word) {
        found.add(
            &["affinity_cookie", "affinity_domain"],
            format!("{host_only} only"),
            "write affinity_domain = \"none\", or another name".into(),
        );
    }
}

fn cores(settings: &Settings, machine: &Machine, found: &mut Found<'_>) {
    let missing: Vec<String> = settings
        .cores
        .iter()
        .filter(|core| !machine.processors.contains(core))
        .map(ToString::to_string)
        .collect();
    if !missing.is_empty() {
        let there: Vec<String> = machine.processors.iter().map(ToString::to_string).collect();
        found.add(
            &["cores"],
            format!(
                "this process may not run on processor {}",
                missing.join(", ")
            ),
            format!("write some of {}", there.join(", ")),
        );
    }
}

fn limits(settings: &Settings, machine: &Machine, found: &mut Found<'_>) {
    let shard = &settings.shard;
    if shard.message_bytes_max > shard.connection_queue_bytes_max {
        found.add(
            &["message_bytes_max", "connection_queue_bytes_max"],
            format!(
                "a message of {} bytes never fits a queue of {}",
                shard.message_bytes_max, shard.connection_queue_bytes_max
            ),
            format!(
                "write connection_queue_bytes_max = {} or more",
                shard.message_bytes_max
            ),
        );
    }
    if shard.shard_bytes_max > shard.node_bytes_max {
        found.add(
            &["shard_bytes_max", "node_bytes_max"],
            format!(
                "a shard of {} bytes is more than the node's {}",
                shard.shard_bytes_max, shard.node_bytes_max
            ),
            format!(
                "write shard_bytes_max = {} or less, or \"auto\"",
                shard.node_bytes_max
            ),
        );
    }
    let shards_bytes = settings.shards as u64 * SHARD_PART_BYTES_MIN;
    if shard.node_bytes_max < shards_bytes {
        found.add(
            &["node_bytes_max", "shards"],
            format!(
                "{} bytes are too few for {} shards, which take {SHARD_PART_BYTES_MIN} each",
                shard.node_bytes_max, settings.shards
            ),
            format!("write node_bytes_max = {shards_bytes} or more, or fewer shards"),
        );
    }
    let connection_bytes =
        u64::from(shard.connection_queue_bytes_max) + u64::from(shard.message_bytes_max);
    if connection_bytes > shard.shard_bytes_max {
        found.add(
            &["connection_queue_bytes_max", "shard_bytes_max"],
            format!(
                "one connection may hold {connection_bytes} bytes with its message, and a whole shard {}",
                shard.shard_bytes_max
            ),
            format!("write shard_bytes_max = {connection_bytes} or more"),
        );
    }
    if shard.address_connection_count_max > shard.connection_count_max {
        found.add(
            &["address_connection_count_max", "connection_count_max"],
            format!(
                "{} connections from one address are more than the node's {}",
                shard.address_connection_count_max, shard.connection_count_max
            ),
            "write fewer, or 0 for no limit".into(),
        );
    }
    if shard.user_connection_count_max > shard.connection_count_max {
        found.add(
            &["user_connection_count_max", "connection_count_max"],
            format!(
                "{} connections of one user are more than the node's {}",
                shard.user_connection_count_max, shard.connection_count_max
            ),
            "write fewer, or 0 for no limit".into(),
        );
    }
    let descriptors = settings.ring.descriptors;
    let held = capacity::by_files(descriptors, machine.open_files_max, settings.shards);
    if u64::from(shard.connection_count_max) > held && !found.is_auto("connection_count_max") {
        let cure = match descriptors {
            Descriptors::Plain if !machine.direct_descriptors_freed => "raise the open-file limit",
            Descriptors::Plain => "raise the open-file limit, or write descriptors = \"auto\"",
            Descriptors::Auto | Descriptors::Direct => {
                "raise the open-file limit, or write more shards"
            }
        };
        found.add(
            &["connection_count_max", "shards"],
            format!(
                "{} connections are more than the {held} descriptors of {} shards (open-file limit {})",
                shard.connection_count_max, settings.shards, machine.open_files_max
            ),
            format!("write connection_count_max = {held} or less, {cure}"),
        );
    }
    if settings.ring.completion_entries < 2 * settings.ring.submission_entries {
        found.add(
            &["ring_completion_entries", "ring_submission_entries"],
            format!(
                "{} completions are too few for {} submissions",
                settings.ring.completion_entries, settings.ring.submission_entries
            ),
            format!(
                "write ring_completion_entries = {} or more",
                2 * settings.ring.submission_entries
            ),
        );
    }
}

fn times(settings: &Settings, found: &mut Found<'_>) {
    let shard = &settings.shard;
    if shard.pong_timeout_ms >= shard.ping_interval_ms {
        found.add(
            &["pong_timeout_ms", "ping_interval_ms"],
            format!(
                "the next ping ({} ms) would come before the last is given up ({} ms)",
                shard.ping_interval_ms, shard.pong_timeout_ms
            ),
            format!(
                "write pong_timeout_ms = {} or less",
                shard.ping_interval_ms / 2
            ),
        );
    }
    let registry = &settings.registry;
    let silent_ms = 3 * registry.interval_ms;
    if silent_ms >= registry.ttl_ms {
        found.add(
            &["registry_ttl_ms", "cluster_interval_ms"],
            format!(
                "entries expire after {} ms, before their node is known to be silent ({silent_ms} ms)",
                registry.ttl_ms
            ),
            format!("write registry_ttl_ms = {} or more", 2 * silent_ms),
        );
    }
    let drain = &settings.drain;
    let needed_ms = u64::from(drain.delay_ms) + u64::from(drain.window_ms);
    if needed_ms > u64::from(drain.deadline_ms) {
        found.add(
            &["drain_deadline_ms", "drain_window_ms"],
            format!(
                "the delay ({} ms) and the window ({} ms) end after the deadline ({} ms)",
                drain.delay_ms, drain.window_ms, drain.deadline_ms
            ),
            format!(
                "write drain_deadline_ms = {} or more",
                needed_ms + u64::from(shard.close_timeout_ms)
            ),
        );
    }
}

fn redis_tls(settings: &Settings, found: &mut Found<'_>) {
    let tls = &settings.redis_tls;
    let pair = ["redis_tls_cert_file", "redis_tls_key_file"];
    if tls.certificate.is_some() != tls.key.is_some() {
        let problem = match tls.key {
            None => "a certificate is given without its key",
            Some(_) => "a key is given without its certificate",
        };
        found.add(&pair, problem.into(), "give both, or neither".into());
    }
    let speaks_tls = settings
        .redis
        .as_ref()
        .is_some_and(|redis| redis.addresses().any(|address| address.tls));
    if tls.is_given() && !speaks_tls {
        found.add(
            &["redis"],
            "files or a name for TLS are given, and no URL with TLS".into(),
            "write rediss://, rediss-sentinel:// or rediss-cluster://, or leave redis_tls_… out"
                .into(),
        );
    }
}

/// Redis servers that cannot be there together.
fn servers(settings: &Settings, found: &mut Found<'_>) {
    let Some(redis) = &settings.redis else { return };
    let all: Vec<_> = redis.addresses().collect();
    if all.iter().any(|address| address.kind != all[0].kind) {
        let problem = "a cluster and servers by themselves are given";
        found.add(
            &["redis"],
            problem.into(),
            "give the cluster alone, or the others".into(),
        );
        return;
    }
    if redis.is_cluster() {
        return;
    }
    for (index, late) in all.iter().enumerate() {
        let name = late.endpoint.placement_name();
        let mut earlier = all[..index].iter();
        let same = earlier.find(|early| early.endpoint.placement_name() == name);
        let Some(same) = same else { continue };
        if same.endpoint == late.endpoint {
            let problem = format!("{} stands there twice", late.endpoint);
            found.add(&["redis"], problem, "leave one of the two out".into());
        } else {
            let problem = format!(
                "{} and {} have the same name, and names say which rooms are where",
                same.endpoint, late.endpoint
            );
            let instead =
                "leave one of the two out, or give each master a name of its own at its Sentinels";
            found.add(&["redis"], problem, instead.into());
        }
    }
    if all.len() > SERVER_COUNT_MAX {
        let problem = format!("{} servers are given", all.len());
        let instead = format!("give {SERVER_COUNT_MAX} at most");
        found.add(&["redis"], problem, instead);
    }
}
