//! Exposition: a node's snapshot as text, OpenMetrics 1.0 or the older Prometheus 0.0.4.
//!
//! What a shard tells carries the label `shard`; families with a label of many values are summed over the shards, so
//! that a node of 64 shards does not have 64 times all of them.

use std::fmt::{self, Write};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::registry::Registry;

use super::names::{self, Name};
use super::{
    ClientAddress, DropPolicy, Log2Histogram, NodeSnapshot, RedisLinkSnapshot, RedisServerSnapshot,
    RedisSnapshot, RefusalKind, ShardReport, ShardSnapshot,
};
use crate::protocol::CloseReason;

/// `Content-Type` of [`open_metrics_text`].
pub const OPEN_METRICS_CONTENT_TYPE: &str =
    "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// `Content-Type` of [`prometheus_text`].
pub const PROMETHEUS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The snapshot in the OpenMetrics text format.
#[must_use]
pub fn open_metrics_text(node: NodeSnapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(node)));
    let mut text = String::with_capacity(32 * 1024);
    encode(&mut text, &registry).expect("writing to a string does not fail");
    text
}

/// The snapshot in the Prometheus text format, for readers that do not ask for OpenMetrics.
///
/// The same samples: only the lines of comment differ, which name a counter `…_total` there.
#[must_use]
pub fn prometheus_text(node: NodeSnapshot) -> String {
    let open_metrics = open_metrics_text(node);
    let mut text = String::with_capacity(open_metrics.len() + 4_096);
    let mut help = "";
    for line in open_metrics.lines() {
        if let Some(line) = line.strip_prefix("# HELP ") {
            help = line.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|line| line.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                _ => ("", kind),
            };
            let _ = write!(
                text,
                "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"
            );
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// A snapshot on its way into text.
#[derive(Debug)]
struct Scrape(NodeSnapshot);

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let node = &self.0;
        let mut families = Families {
            encoder,
            shards: &node.shards,
        };
        families.info(
            &names::BUILD,
            [("version", node.version), ("node", &escaped(&node.node_id))],
        )?;
        encode_connections(&mut families, node)?;
        encode_messages(&mut families, node)?;
        encode_memory(&mut families, node)?;
        encode_heartbeats(&mut families, node)?;
        encode_loops(&mut families, node)?;
        encode_bus(&mut families, node)?;
        encode_redis(&mut families, &node.backplane.redis)?;
        encode_registry(&mut families, node)?;
        encode_ring(&mut families)?;
        families.shards_gauge(&names::DRAIN_PHASE, |shard| shard.gauges.drain_phase)?;
        let answers = node
            .admin_answers
            .iter()
            .map(|(status, count)| (u64::from(*status), *count));
        families.labelled_counter(&names::ADMIN_ANSWERS, "status", answers)?;
        families.gauge(&names::ADMIN_EXCHANGES, node.admin_exchanges)?;
        encode_kernel(&mut families, node)?;
        encode_process(&mut families, node)
    }
}

fn encode_connections(families: &mut Families<'_, '_>, node: &NodeSnapshot) -> fmt::Result {
    families.shards_gauge(&names::CONNECTIONS, |shard| shard.gauges.connections_open)?;
    families.gauge(&names::CONNECTIONS_MAX, node.connection_count_max)?;
    families.gauge_ratio(&names::CONNECTION_SKEW, node.connection_skew())?;
    families.shards_gauge(&names::SOCKETS, |shard| shard.gauges.sockets_open)?;
    families.shards_counter(&names::SOCKETS_ACCEPTED, |shard| shard.counters.accepted)?;
    let refused = RefusalKind::ALL.into_iter().map(|kind| {
        (
            kind.label(),
            node.sum(|shard| shard.counters.refused[kind as usize]),
        )
    });
    let answered = [
        ("upgraded", node.sum(|shard| shard.counters.upgraded)),
        ("health", node.sum(|shard| shard.counters.health_checks)),
    ];
    families.labelled_counter(
        &names::HANDSHAKES,
        "outcome",
        answered.into_iter().chain(refused),
    )?;
    let learned = ClientAddress::ALL.into_iter().map(|how| {
        (
            how.label(),
            node.sum(|shard| shard.counters.client_addresses[how as usize]),
        )
    });
    families.labelled_counter(&names::CLIENT_ADDRESSES, "how", learned)?;
    let closed = CloseReason::ALL.into_iter().map(|reason| {
        (
            reason.label(),
            node.sum(|shard| shard.counters.closed[reason as usize]),
        )
    });
    families.labelled_counter(&names::CONNECTIONS_CLOSED, "reason", closed)?;
    families.shards_gauge(&names::ROOMS, |shard| shard.gauges.rooms)?;
    families.gauge(&names::NODE_ROOMS, node.rooms())?;
    families.gauge(&names::NODE_ROOMS_LEASED, node.backplane.rooms_leased)?;
    families.shards_gauge(&names::USERS, |shard| shard.gauges.users)?;
    families.gauge(&names::NODE_USERS, node.users())?;
    families.shards_counter(&names::PRESENCE_DROPPED, |shard| {
        shard.counters.presence_dropped
    })
}

fn encode_messages(families: &mut Families<'_, '_>, node: &NodeSnapshot) -> fmt::Result {
    families.shards_counter(&names::MESSAGES_RECEIVED, |shard| {
        shard.counters.messages_in
    })?;
    families.shards_counter(&names::MESSAGES_RECEIVED_BYTES, |shard| {
        shard.counters.message_bytes_in
    })?;
    families.shards_counter(&names::MESSAGES_DELIVERED, |shard| {
        shard.counters.messages_delivered
    })?;
    families.shards_counter(&names::DELIVERIES, |shard| shard.counters.deliveries)?;
    families.shards_counter(&names::SOCKET_RECEIVED_BYTES, |shard| {
        shard.counters.bytes_in
    })?;
    families.shards_counter(&names::SOCKET_SENT_BYTES, |shard| shard.counters.bytes_out)?;
    let latency = merged(node, |shard| &shard.counters.publish_to_deliver);
    families.histogram(&names::PUBLISH_TO_DELIVER, &latency)
}

fn encode_memory(families: &mut Families<'_, '_>, node: &NodeSnapshot) -> fmt::Result {
    families.shards_gauge(&names::QUEUED_BYTES, |shard| shard.gauges.queued_bytes)?;
    families.shards_gauge(&names::CONNECTIONS_QUEUED, |shard| {
        shard.gauges.connections_queued
    })?;
    families.shards_gauge(&names::LEDGER_BYTES, |shard| shard.gauges.ledger_bytes)?;
    families.shards_gauge(&names::LEDGER_MAX_BYTES, |shard| {
        shard.gauges.ledger_bytes_max
    })?;
    families.gauge_ratio(&names::BUDGET_USED, node.budget_used())?;
    let dropped = DropPolicy::ALL.into_iter().map(|policy| {
        (
            policy.label(),
            node.sum(|shard| shard.counters.dropped[policy as usize]),
        )
    });
    families.labelled_counter(&names::MESSAGES_DROPPED, "policy", dropped)?;
    families.shards_counter(&names::GAPS_TOLD, |shard| shard.counters.gaps_told)
}

fn encode_heartbeats(families: &mut Families<'_, '_>, node: &NodeSnapshot) -> fmt::Result {
    let events = [
        ("sent", node.sum(|shard| shard.counters.pings_sent)),
        ("answered", node.sum(|shard| shard.counters.pongs_received)),
        (
            "dead",
            node.sum(|shard| shard.counters.closed[CloseReason::HeartbeatLost as usize]),
        ),
    ];
    families.labelled_counter(&names::HEARTBEATS, "event", events)?;
    families.shards_counter(&names::PEER_PINGS_ANSWERED, |shard| {
        shard.counters.pings_answered
    })?;
    families.histogram(
        &names::ROUND_TRIP,
        &merged(node, |shard| &shard.counters.round_trip),
    )
}

fn encode_loops(families: &mut Families<'_, '_>, node: &NodeSnapshot) -> fmt::Result {
    families.shards_histogram(&names::LOOP_TURN, |shard| &shard.ring.turn)?;
    families.histogram(&names::BACKPLANE_TURN, &node.backplane.turn)?;
    families.reports_gauge(&names::SHARD_ANSWERING, |report| {
        u64::from(report.answering)
    })?;
    families.shards_gauge(&names::SHARD_PROCESSOR, |shard| u64::from(shard.processor))
}

fn encode_bus(families: &mut Families<'_, '_>, node: &NodeSnapshot) -> fmt::Result {
    let backplane = &node.backplane;
    families.lanes_gauge(&names::BUS_DEPTH, |report| {
        [report.lanes.up_depth, report.lanes.down_depth]
    })?;
    families.reports_gauge(&names::BUS_LANE_BYTES, |report| report.lanes.down_bytes)?;
    families.counter(&names::BUS_BATCHES, backplane.batches)?;
    families.counter(&names::BUS_MESSAGES, backplane.messages)?;
    families.counter(&names::BUS_DELIVERIES, backplane.deliveries)?;
    families.counter(&names::BUS_STALLS, backplane.stalls)?;
    families.gauge(&names::BUS_LANES_STALLED, backplane.lanes_stalled)?;
    families.gauge_ratio(&names::BUS_STALLED_SECONDS, seconds(backplane.stalled_us))?;
    families.histogram(&names::BUS_PROBE, &backplane.probe_round_trip)?;
    families.counter(&names::LEASES_GRANTED, backplane.leases_granted)?;
    families.counter(&names::LEASES_REVOKED, backplane.leases_revoked)?;
    families.shards_gauge(&names::PUBLISHERS_PAUSED, |shard| {
        shard.gauges.publishers_paused
    })?;
    families.shards_counter(&names::PUBLISHER_PAUSES, |shard| {
        shard.counters.publishers_paused
    })
}

fn encode_redis(families: &mut Families<'_, '_>, redis: &RedisSnapshot) -> fmt::Result {
    families.gauge(&names::REDIS_READY, u64::from(redis.ready))?;
    let modes = ["pubsub", "sharded", "sharded-by-pubsub", "streams"];
    let modes = modes.map(|mode| (mode, u64::from(mode == redis.mode)));
    families.labelled_gauge(&names::REDIS_MODE, "mode", modes)?;
    families.labelled_gauge(
        &names::REDIS_SERVER_READY,
        "server",
        by_server(redis, |server| u64::from(server.ready)),
    )?;
    families.labelled_gauge(
        &names::REDIS_SERVER_SUBSCRIPTIONS,
        "server",
        by_server(redis, |server| server.subscriptions),
    )?;
    families.labelled_gauge(
        &names::REDIS_SERVER_BUFFER_BYTES,
        "server",
        by_server(redis, |server| server.buffer_bytes),
    )?;
    families.labelled_gauge(
        &names::REDIS_LINK_UP,
        "link",
        by_link(redis, |link| u64::from(link.up)),
    )?;
    families.labelled_counter(
        &names::REDIS_CONNECTS,
        "link",
        by_link(redis, |link| link.connects),
    )?;
    families.labelled_counter(
        &names::REDIS_LOSSES,
        "link",
        by_link(redis, |link| link.lost),
    )?;
    families.labelled_counter(
        &names::REDIS_CONNECT_FAILURES,
        "link",
        by_link(redis, |link| link.failures),
    )?;
    families.labelled_counter(
        &names::REDIS_SENT_BYTES,
        "link",
        by_link(redis, |link| link.sent_bytes),
    )?;
    families.labelled_counter(
        &names::REDIS_RECEIVED_BYTES,
        "link",
        by_link(redis, |link| link.received_bytes),
    )?;
    families.labelled_counter(
        &names::REDIS_WRITES,
        "link",
        by_link(redis, |link| link.writes),
    )?;
    let commands = [
        ("publish", redis.commands_publish),
        ("subscribe", redis.commands_subscribe),
        ("unsubscribe", redis.commands_unsubscribe),
    ];
    families.labelled_counter(&names::REDIS_COMMANDS, "command", commands)?;
    families.histogram(&names::REDIS_LAG, &redis.lag)?;
    families.counter(&names::REDIS_PROBES, redis.probes)?;
    families.gauge_ratio(&names::REDIS_PROBE_AGE, seconds(redis.probe_age_us))?;
    families.counter(&names::REDIS_BATCHES_PUBLISHED, redis.batches_published)?;
    families.counter(&names::REDIS_MESSAGES_PUBLISHED, redis.messages_published)?;
    families.counter(&names::REDIS_BATCHES_RECEIVED, redis.batches_received)?;
    families.counter(&names::REDIS_MESSAGES_RECEIVED, redis.messages_received)?;
    families.counter(&names::REDIS_DUPLICATES, redis.duplicates)?;
    families.counter(&names::REDIS_MALFORMED, redis.malformed)?;
    families.counter(&names::REDIS_GAPS, redis.gaps)?;
    families.counter(&names::REDIS_MESSAGES_MISSED, redis.messages_missed)?;
    families.counter(&names::REDIS_BATCHES_LOCAL, redis.local_batches)?;
    families.counter(&names::REDIS_MESSAGES_REFUSED, redis.messages_refused)?;
    families.gauge(&names::REDIS_BUFFER_BYTES, redis.buffer_bytes)?;
    families.gauge(&names::REDIS_BUFFER_MAX_BYTES, redis.buffer_bytes_max)?;
    families.gauge_ratio(&names::REDIS_BUFFER_AGE, seconds(redis.buffer_age_us))?;
    families.gauge(&names::REDIS_SUBSCRIPTIONS, redis.subscriptions)?;
    families.gauge(&names::REDIS_JOINS_WAITING, redis.joins_waiting)?;
    families.counter(&names::REDIS_JOINS_REFUSED, redis.joins_refused)?;
    families.gauge(&names::REDIS_BACKLOG_BYTES, redis.backlog_bytes)?;
    families.counter(&names::REDIS_BACKLOG_DROPPED, redis.backlog_dropped)?;
    families.counter(&names::STREAM_CATCH_UPS, redis.stream_catch_ups)?;
    families.counter(
        &names::STREAM_MESSAGES_RECOVERED,
        redis.stream_messages_recovered,
    )?;
    families.counter(&names::STREAM_MESSAGES_GONE, redis.stream_messages_gone)?;
    families.gauge(&names::STREAM_ROOMS_BEHIND, redis.stream_rooms_behind)?;
    families.gauge(&names::STREAM_RETAINED_BYTES, redis.stream_retained_bytes)
}

/// A figure of each server, by its place.
fn by_server(
    redis: &RedisSnapshot,
    figure: impl Fn(&RedisServerSnapshot) -> u64,
) -> impl Iterator<Item = (&str, u64)> {
    let servers = redis.servers.iter();
    servers.map(move |server| (server.server.as_str(), figure(server)))
}

fn encode_registry(families: &mut Families<'_, '_>, node: &NodeSnapshot) -> fmt::Result {
    let registry = &node.backplane.registry;
    families.gauge(&names::CLUSTER_NODES, registry.nodes)?;
    let misfits = [("layout", node.misfits.layout), ("mode", node.misfits.mode)];
    families.labelled_gauge(&names::CLUSTER_MISFITS, "differs", misfits)?;
    families.gauge(&names::REGISTRY_UP, u64::from(registry.up))?;
    families.counter(&names::REGISTRY_HEARTBEATS, registry.beats)?;
    families.gauge_ratio(
        &names::REGISTRY_HEARTBEAT_AGE,
        seconds(registry.beat_age_us),
    )?;
    let notes = [("written", registry.written), ("dropped", registry.dropped)];
    families.labelled_counter(&names::REGISTRY_NOTES, "outcome", notes)?;
    families.gauge(&names::REGISTRY_QUEUED, registry.queued)?;
    families.gauge(&names::REGISTRY_QUEUED_MAX, registry.queued_max)?;
    families.gauge_ratio(&names::REGISTRY_OLDEST, seconds(registry.oldest_us))?;
    families.counter(&names::REGISTRY_ERRORS, registry.errors)?;
    families.counter(&names::REGISTRY_ANNOUNCEMENTS, registry.announcements)?;
    families.counter(&names::REGISTRY_NODES_REAPED, registry.nodes_reaped)?;
    families.counter(
        &names::REGISTRY_CONNECTIONS_REAPED,
        registry.connections_reaped,
    )
}

/// A figure of each link, by its name.
fn by_link(
    redis: &RedisSnapshot,
    figure: impl Fn(&RedisLinkSnapshot) -> u64,
) -> [(&'static str, u64); 3] {
    let [publishing, subscription, commands] = &redis.links;
    [
        ("publishing", figure(publishing)),
        ("subscription", figure(subscription)),
        ("commands", figure(commands)),
    ]
}

fn encode_ring(families: &mut Families<'_, '_>) -> fmt::Result {
    families.shards_counter(&names::RING_ENTERS, |shard| shard.ring.enters)?;
    families.shards_counter(&names::RING_COMPLETIONS, |shard| shard.ring.completions)?;
    families.shards_counter(&names::RING_SLEEPS, |shard| shard.ring.sleeps)?;
    families.shards_counter(&names::RING_BUFFERS_EXHAUSTED, |shard| {
        shard.ring.buffers_exhausted
    })?;
    families.shards_counter(&names::RING_COMPLETION_OVERFLOWS, |shard| {
        shard.ring.completion_overflows
    })?;
    families.shards_counter(&names::RING_SUBMISSION_FULL, |shard| {
        shard.ring.submission_full
    })?;
    families.shards_counter(&names::RING_PARTIAL_SENDS, |shard| shard.ring.partial_sends)?;
    families.shards_counter(&names::RING_ACCEPT_EXHAUSTED, |shard| {
        shard.ring.accept_exhausted
    })?;
    families.shards_gauge(&names::RING_DIRECT_DESCRIPTORS, |shard| {
        u64::from(shard.ring.direct_descriptors)
    })
}

fn encode_kernel(families: &mut Families<'_, '_>, node: &NodeSnapshot) -> fmt::Result {
    let tcp = node.process.tcp;
    families.gauge(&names::KERNEL_TCP_MEMORY, tcp.memory_bytes)?;
    let states = [
        ("in_use", tcp.in_use),
        ("orphan", tcp.orphan),
        ("time_wait", tcp.time_wait),
        ("allocated", tcp.allocated),
    ];
    families.labelled_gauge(&names::KERNEL_TCP_SOCKETS, "state", states)
}

fn encode_process(families: &mut Families<'_, '_>, node: &NodeSnapshot) -> fmt::Result {
    let process = &node.process;
    families.gauge(&names::PROCESS_MEMORY_ANONYMOUS, process.anonymous_bytes)?;
    families.gauge(
        &names::PROCESS_MEMORY_PER_CONNECTION,
        node.memory_per_connection_bytes(),
    )?;
    let modes = [
        ("user", seconds(process.cpu_user_us)),
        ("system", seconds(process.cpu_system_us)),
    ];
    families.labelled_seconds(&names::PROCESS_CPU_MODE, "mode", modes)?;
    families.counter_seconds(
        &names::PROCESS_CPU,
        seconds(process.cpu_user_us + process.cpu_system_us),
    )?;
    families.gauge(&names::PROCESS_RESIDENT, process.resident_bytes)?;
    families.gauge(&names::PROCESS_VIRTUAL, process.virtual_bytes)?;
    families.gauge(&names::PROCESS_OPEN_FILES, process.open_files)?;
    families.gauge(&names::PROCESS_OPEN_FILES_MAX, process.open_files_max)?;
    families.gauge_ratio(
        &names::PROCESS_START,
        seconds(process.started_unix_ms * 1_000),
    )
}

/// A label value that may hold anything, escaped as both formats want it; the encoder writes values as they are.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[allow(clippy::cast_precision_loss)] // microseconds are exact up to 285 years
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn merged(
    node: &NodeSnapshot,
    histogram: impl Fn(&ShardSnapshot) -> &Log2Histogram,
) -> Log2Histogram {
    let mut all = Log2Histogram::default();
    for shard in &node.shards {
        all.merge(histogram(&shard.snapshot));
    }
    all
}

/// Writes families one after the other.
struct Families<'e, 's> {
    encoder: DescriptorEncoder<'e>,
    shards: &'s [ShardReport],
}

impl Families<'_, '_> {
    fn begin(&mut self, name: &'static Name) -> Result<MetricEncoder<'_>, fmt::Error> {
        let (stem, unit) = name.parts();
        self.encoder
            .encode_descriptor(stem, name.help, unit, name.kind)
    }

    fn info(&mut self, name: &'static Name, labels: impl EncodeLabelSet) -> fmt::Result {
        self.begin(name)?.encode_info(&labels)
    }

    fn gauge(&mut self, name: &'static Name, value: u64) -> fmt::Result {
        gauge(&mut self.begin(name)?, value)
    }

    fn gauge_ratio(&mut self, name: &'static Name, value: f64) -> fmt::Result {
        self.begin(name)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &'static Name, value: u64) -> fmt::Result {
        counter(&mut self.begin(name)?, value)
    }

    fn counter_seconds(&mut self, name: &'static Name, value: f64) -> fmt::Result {
        self.begin(name)?
            .encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    fn histogram(&mut self, name: &'static Name, histogram: &Log2Histogram) -> fmt::Result {
        buckets(&mut self.begin(name)?, histogram)
    }

    fn labelled_counter<V: prometheus_client::encoding::EncodeLabelValue>(
        &mut self,
        name: &'static Name,
        label: &'static str,
        values: impl IntoIterator<Item = (V, u64)>,
    ) -> fmt::Result {
        let mut family = self.begin(name)?;
        values
            .into_iter()
            .try_for_each(|(of, value)| counter(&mut family.encode_family(&[(label, of)])?, value))
    }

    fn labelled_gauge<'v>(
        &mut self,
        name: &'static Name,
        label: &'static str,
        values: impl IntoIterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        let mut family = self.begin(name)?;
        values
            .into_iter()
            .try_for_each(|(of, value)| gauge(&mut family.encode_family(&[(label, of)])?, value))
    }

    fn labelled_seconds(
        &mut self,
        name: &'static Name,
        label: &'static str,
        values: impl IntoIterator<Item = (&'static str, f64)>,
    ) -> fmt::Result {
        let mut family = self.begin(name)?;
        values.into_iter().try_for_each(|(of, value)| {
            family
                .encode_family(&[(label, of)])?
                .encode_counter::<NoLabelSet, _, f64>(&value, None)
        })
    }

    fn shards_gauge(
        &mut self,
        name: &'static Name,
        figure: impl Fn(&ShardSnapshot) -> u64,
    ) -> fmt::Result {
        self.reports_gauge(name, |report| figure(&report.snapshot))
    }

    fn reports_gauge(
        &mut self,
        name: &'static Name,
        figure: impl Fn(&ShardReport) -> u64,
    ) -> fmt::Result {
        let shards = self.shards;
        let mut family = self.begin(name)?;
        shards
            .iter()
            .try_for_each(|report| gauge(&mut family.encode_family(&of(report))?, figure(report)))
    }

    fn shards_counter(
        &mut self,
        name: &'static Name,
        figure: impl Fn(&ShardSnapshot) -> u64,
    ) -> fmt::Result {
        let shards = self.shards;
        let mut family = self.begin(name)?;
        shards.iter().try_for_each(|report| {
            counter(
                &mut family.encode_family(&of(report))?,
                figure(&report.snapshot),
            )
        })
    }

    fn shards_histogram(
        &mut self,
        name: &'static Name,
        histogram: impl Fn(&ShardSnapshot) -> &Log2Histogram,
    ) -> fmt::Result {
        let shards = self.shards;
        let mut family = self.begin(name)?;
        shards.iter().try_for_each(|report| {
            buckets(
                &mut family.encode_family(&of(report))?,
                histogram(&report.snapshot),
            )
        })
    }

    fn lanes_gauge(
        &mut self,
        name: &'static Name,
        figure: impl Fn(&ShardReport) -> [u64; 2],
    ) -> fmt::Result {
        let shards = self.shards;
        let mut family = self.begin(name)?;
        for report in shards {
            for (direction, value) in ["up", "down"].into_iter().zip(figure(report)) {
                let labels = (of(report), [("direction", direction)]);
                gauge(&mut family.encode_family(&labels)?, value)?;
            }
        }
        Ok(())
    }
}

fn of(report: &ShardReport) -> [(&'static str, u64); 1] {
    [("shard", u64::from(report.snapshot.shard))]
}

fn gauge(encoder: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    // The encoder takes a signed integer only; a count that needs the 64th bit is a limit switched off.
    encoder.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))
}

fn counter(encoder: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

/// A value in bucket `i` is below `2^i` whole microseconds, so the time that was measured is, too.
fn buckets(encoder: &mut MetricEncoder<'_>, histogram: &Log2Histogram) -> fmt::Result {
    let buckets: Vec<(f64, u64)> = histogram
        .buckets()
        .map(|(bound_us, count)| (bound_us.map_or(f64::MAX, seconds), count))
        .collect();
    encoder.encode_histogram::<NoLabelSet>(
        seconds(histogram.sum_us()),
        histogram.count(),
        &buckets,
        None,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn node() -> NodeSnapshot {
        let mut node = NodeSnapshot {
            node_id: "a \"quoted\" name".into(),
            version: "1.2.3",
            ..NodeSnapshot::default()
        };
        for shard in 0..2 {
            let mut report = ShardReport::default();
            report.snapshot.shard = shard;
            report.snapshot.gauges.connections_open = 10 + u64::from(shard);
            report.snapshot.counters.closed[CloseReason::Idle as usize] = 2;
            report.snapshot.counters.publish_to_deliver.record(3, 5);
            report
                .snapshot
                .counters
                .publish_to_deliver
                .record(1 << 40, 1);
            report.snapshot.ring.turn.record(100, 1);
            report.lanes.down_depth = 4;
            node.shards.push(report);
        }
        node.backplane.redis.servers.push(RedisServerSnapshot {
            server: "redis.example:6379".into(),
            ..RedisServerSnapshot::default()
        });
        node.admin_answers.insert(200, 7);
        node.process.cpu_user_us = 1_500_000;
        node.process.cpu_system_us = 250_000;
        node
    }

    #[test]
    fn every_name_is_written_and_nothing_else_is() {
        let text = open_metrics_text(node());
        let written: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .map(|line| line.split(' ').next().unwrap())
            .collect();
        let known: Vec<&str> = names::ALL.iter().map(|name| name.name).collect();
        assert_eq!(
            written, known,
            "written on the left, names.rs on the right, in the same order"
        );
        let families: BTreeSet<&str> = known.iter().copied().collect();
        assert_eq!(families.len(), known.len(), "a name stands twice");
        for name in known {
            let samples = text.lines().filter(|line| line.starts_with(name)).count();
            assert!(samples > 0, "{name} has no sample");
        }
    }

    #[test]
    fn names_and_helps_are_in_order() {
        for name in names::ALL {
            assert!(
                name.name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{}",
                name.name
            );
            assert!(
                !name.name.ends_with("_total") && !name.name.ends_with("_info"),
                "{}",
                name.name
            );
            assert!(
                name.help.ends_with('.'),
                "{}: a sentence ends in a full stop",
                name.name
            );
        }
    }

    #[test]
    fn shards_are_told_apart_and_reasons_are_summed() {
        let text = open_metrics_text(node());
        for line in [
            "throng_build_info{version=\"1.2.3\",node=\"a \\\"quoted\\\" name\"} 1",
            "throng_connections{shard=\"0\"} 10",
            "throng_connections{shard=\"1\"} 11",
            "throng_connections_closed_total{reason=\"idle\"} 4",
            "throng_bus_depth{shard=\"1\",direction=\"down\"} 4",
            "throng_admin_answers_total{status=\"200\"} 7",
            "throng_process_cpu_seconds_total{mode=\"user\"} 1.5",
            "process_cpu_seconds_total 1.75",
            "# UNIT throng_queued_bytes bytes",
            "# TYPE throng_connections_closed counter",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is missing in\n{text}"
            );
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn histograms_are_cumulative_and_in_seconds() {
        let text = open_metrics_text(node());
        let bucket =
            |bound: &str| format!("throng_publish_to_deliver_seconds_bucket{{le=\"{bound}\"}}");
        let value = |start: &str| {
            let line = text
                .lines()
                .find(|line| line.starts_with(start))
                .unwrap_or_else(|| panic!("{start}\n{text}"));
            line.rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(value(&bucket("0.000002")), "0");
        assert_eq!(value(&bucket("0.000004")), "10");
        assert_eq!(value(&bucket("1073.741824")), "10");
        assert_eq!(value(&bucket("+Inf")), "12");
        assert_eq!(value("throng_publish_to_deliver_seconds_count"), "12");
    }

    #[test]
    fn the_older_format_names_counters_with_their_suffix() {
        let text = prometheus_text(node());
        assert!(
            text.contains("# HELP throng_connections_closed_total Connections ended, by reason.\n")
        );
        assert!(text.contains("# TYPE throng_connections_closed_total counter\n"));
        assert!(text.contains("# TYPE throng_build_info gauge\n"));
        assert!(text.contains("throng_connections{shard=\"1\"} 11\n"));
        assert!(!text.contains("# UNIT") && !text.contains("# EOF"));
    }
}
