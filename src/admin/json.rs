//! Figures as JSON. Names are those of the metrics without prefix; units are in the names.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::exchange::MergedRoom;
use crate::bus::{ConnectionInfo, CoreId, RoomInfo, RoomName};
use crate::metrics::{
    BackplaneSnapshot, ClientAddress, DropPolicy, Log2Histogram, NodeSnapshot, ProcessSnapshot,
    RedisSnapshot, RefusalKind, RegistrySnapshot, ShardReport, ShardSnapshot,
};
use crate::protocol::CloseReason;
use crate::time::Tick;

/// `/v1/rooms`: in byte order of their names, the first `count_max`.
pub fn rooms(
    rooms: &BTreeMap<RoomName, MergedRoom>,
    count_max: usize,
    truncated: bool,
    stalled: &[u8],
) -> Value {
    let list: Vec<Value> = rooms
        .iter()
        .take(count_max)
        .map(|(name, room)| json!({ "room": **name, "members": room.member_count, "shards": room.shard_count }))
        .collect();
    json!({ "rooms": list, "truncated": truncated || rooms.len() > count_max, "stalled_shards": stalled })
}

/// `/v1/rooms/{room}`: members by shard, and the ids of the first `member_count_max`, which count on `node`.
pub fn room(
    node: &str,
    name: &RoomName,
    shards: &BTreeMap<CoreId, RoomInfo>,
    member_count_max: usize,
    stalled: &[u8],
) -> Value {
    let member_count: u64 = shards
        .values()
        .map(|info| u64::from(info.member_count))
        .sum();
    let ids: Vec<String> = shards
        .values()
        .flat_map(|info| &info.members)
        .take(member_count_max)
        .map(ToString::to_string)
        .collect();
    let by_shard: Vec<Value> = shards
        .iter()
        .map(|(shard, info)| {
            json!({ "shard": shard.0, "members": info.member_count, "messages_delivered": info.message_count })
        })
        .collect();
    json!({
        "node": node,
        "room": **name,
        "members": member_count,
        "shards": by_shard,
        "connections": ids,
        "truncated": (ids.len() as u64) < member_count,
        "stalled_shards": stalled,
    })
}

/// `/v1/connections/{id}` of `node`.
pub fn connection(node: &str, info: &ConnectionInfo) -> Value {
    json!({
        "node": node,
        "id": info.id.to_string(),
        "shard": info.id.core().0,
        "peer": info.peer.to_string(),
        "room": info.room.as_deref(),
        "user": info.user.as_deref(),
        "state": info.state,
        "opened_ms_ago": info.opened_ms_ago,
        "heard_ms_ago": info.heard_ms_ago,
        "charged_bytes": info.charged_bytes,
        "queued_bytes": info.queued_bytes,
        "missed_untold": info.missed_untold,
        "closing": info.closing.map(CloseReason::label),
    })
}

/// `/v1/stats`.
pub fn stats(node: &NodeSnapshot, phase: &str, stalled: &[u8], now: Tick) -> Value {
    let mut all = ShardSnapshot::default();
    for shard in &node.shards {
        add(&mut all, &shard.snapshot);
    }
    json!({
        "node": node.node_id,
        "version": node.version,
        "uptime_ms": now.0 / 1_000,
        "phase": phase,
        "limits": { "connections": node.connection_count_max, "budget_bytes": node.node_bytes_max },
        "totals": totals(&all, node),
        "shards": node.shards.iter().map(shard).collect::<Vec<_>>(),
        "backplane": backplane(&node.backplane),
        "process": process(&node.process, node.memory_per_connection_bytes()),
        "stalled_shards": stalled,
    })
}

/// Adds what is shown in the totals.
fn add(all: &mut ShardSnapshot, one: &ShardSnapshot) {
    let (sum, of) = (&mut all.counters, &one.counters);
    for (sum, of) in [
        (&mut sum.accepted, of.accepted),
        (&mut sum.upgraded, of.upgraded),
        (&mut sum.health_checks, of.health_checks),
        (&mut sum.messages_in, of.messages_in),
        (&mut sum.message_bytes_in, of.message_bytes_in),
        (&mut sum.messages_delivered, of.messages_delivered),
        (&mut sum.deliveries, of.deliveries),
        (&mut sum.bytes_in, of.bytes_in),
        (&mut sum.bytes_out, of.bytes_out),
        (&mut sum.gaps_told, of.gaps_told),
        (&mut sum.presence_dropped, of.presence_dropped),
        (&mut sum.pings_sent, of.pings_sent),
        (&mut sum.pongs_received, of.pongs_received),
        (&mut sum.pings_answered, of.pings_answered),
        (&mut sum.publishers_paused, of.publishers_paused),
    ] {
        *sum += of;
    }
    let arrays = sum
        .refused
        .iter_mut()
        .zip(of.refused)
        .chain(sum.client_addresses.iter_mut().zip(of.client_addresses))
        .chain(sum.closed.iter_mut().zip(of.closed));
    for (sum, of) in arrays.chain(sum.dropped.iter_mut().zip(of.dropped)) {
        *sum += of;
    }
    sum.publish_to_deliver.merge(&of.publish_to_deliver);
    sum.round_trip.merge(&of.round_trip);
    let (sum, of) = (&mut all.gauges, &one.gauges);
    for (sum, of) in [
        (&mut sum.sockets_open, of.sockets_open),
        (&mut sum.connections_open, of.connections_open),
        (&mut sum.queued_bytes, of.queued_bytes),
        (&mut sum.connections_queued, of.connections_queued),
        (&mut sum.ledger_bytes, of.ledger_bytes),
        (&mut sum.publishers_paused, of.publishers_paused),
    ] {
        *sum += of;
    }
    all.ring.turn.merge(&one.ring.turn);
}

fn totals(all: &ShardSnapshot, node: &NodeSnapshot) -> Value {
    let mut value = figures(all);
    value.insert("connection_skew".into(), json!(node.connection_skew()));
    value.insert("budget_used".into(), json!(node.budget_used()));
    value.insert("rooms".into(), json!(node.rooms()));
    value.insert("users".into(), json!(node.users()));
    Value::Object(value)
}

fn shard(report: &ShardReport) -> Value {
    let snapshot = &report.snapshot;
    let mut value = figures(snapshot);
    for (key, figure) in [
        ("shard", json!(snapshot.shard)),
        ("processor", json!(snapshot.processor)),
        ("answering", json!(report.answering)),
        ("rooms", json!(snapshot.gauges.rooms)),
        ("users", json!(snapshot.gauges.users)),
        ("bus_depth", json!(snapshot.gauges.bus_depth)),
        ("ledger_bytes_max", json!(snapshot.gauges.ledger_bytes_max)),
        ("drain_phase", json!(snapshot.gauges.drain_phase)),
        (
            "lanes",
            json!({
                "up_depth": report.lanes.up_depth,
                "down_depth": report.lanes.down_depth,
                "down_bytes": report.lanes.down_bytes,
            }),
        ),
        (
            "ring",
            json!({
                "enters": snapshot.ring.enters,
                "completions": snapshot.ring.completions,
                "sleeps": snapshot.ring.sleeps,
                "buffers_exhausted": snapshot.ring.buffers_exhausted,
                "completion_overflows": snapshot.ring.completion_overflows,
                "submission_full": snapshot.ring.submission_full,
                "partial_sends": snapshot.ring.partial_sends,
                "accept_exhausted": snapshot.ring.accept_exhausted,
                "direct_descriptors": snapshot.ring.direct_descriptors,
            }),
        ),
    ] {
        value.insert(key.into(), figure);
    }
    Value::Object(value)
}

/// What a shard and all shards together have alike.
fn figures(snapshot: &ShardSnapshot) -> Map<String, Value> {
    let (counters, gauges) = (&snapshot.counters, &snapshot.gauges);
    let refused = RefusalKind::ALL.map(|kind| (kind.label(), counters.refused[kind as usize]));
    let learned =
        ClientAddress::ALL.map(|how| (how.label(), counters.client_addresses[how as usize]));
    let closed = CloseReason::ALL.map(|reason| (reason.label(), counters.closed[reason as usize]));
    let dropped = DropPolicy::ALL.map(|policy| (policy.label(), counters.dropped[policy as usize]));
    let value = json!({
        "sockets": gauges.sockets_open,
        "connections": gauges.connections_open,
        "queued_bytes": gauges.queued_bytes,
        "connections_queued": gauges.connections_queued,
        "ledger_bytes": gauges.ledger_bytes,
        "publishers_paused": gauges.publishers_paused,
        "sockets_accepted": counters.accepted,
        "handshakes_upgraded": counters.upgraded,
        "health_checks": counters.health_checks,
        "handshakes_refused": counted(&refused),
        "client_addresses": counted(&learned),
        "connections_closed": counted(&closed),
        "messages_received": counters.messages_in,
        "messages_received_bytes": counters.message_bytes_in,
        "messages_delivered": counters.messages_delivered,
        "deliveries": counters.deliveries,
        "socket_received_bytes": counters.bytes_in,
        "socket_sent_bytes": counters.bytes_out,
        "messages_dropped": counted(&dropped),
        "gaps_told": counters.gaps_told,
        "presence_dropped": counters.presence_dropped,
        "heartbeats_sent": counters.pings_sent,
        "heartbeats_answered": counters.pongs_received,
        "peer_pings_answered": counters.pings_answered,
        "publisher_pauses": counters.publishers_paused,
        "publish_to_deliver": histogram(&counters.publish_to_deliver),
        "round_trip": histogram(&counters.round_trip),
        "loop_turn": histogram(&snapshot.ring.turn),
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// By label, those that have happened.
fn counted(counts: &[(&'static str, u64)]) -> Value {
    counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(label, count)| ((*label).to_owned(), json!(count)))
        .collect()
}

/// Quantiles are upper bounds: a bucket is a power of two wide.
fn histogram(histogram: &Log2Histogram) -> Value {
    json!({
        "count": histogram.count(),
        "mean_us": histogram.sum_us().checked_div(histogram.count()).unwrap_or(0),
        "p50_us_below": histogram.quantile_us(0.5),
        "p90_us_below": histogram.quantile_us(0.9),
        "p99_us_below": histogram.quantile_us(0.99),
        "p999_us_below": histogram.quantile_us(0.999),
    })
}

fn backplane(backplane: &BackplaneSnapshot) -> Value {
    json!({
        "rooms": backplane.rooms,
        "rooms_leased": backplane.rooms_leased,
        "users": backplane.users,
        "batches": backplane.batches,
        "messages": backplane.messages,
        "deliveries": backplane.deliveries,
        "leases_granted": backplane.leases_granted,
        "leases_revoked": backplane.leases_revoked,
        "stalls": backplane.stalls,
        "lanes_stalled": backplane.lanes_stalled,
        "stalled_us": backplane.stalled_us,
        "probe": histogram(&backplane.probe_round_trip),
        "turn": histogram(&backplane.turn),
        "redis": backplane.redis.configured.then(|| redis(&backplane.redis)),
        "registry": backplane.redis.configured.then(|| registry(&backplane.registry)),
    })
}

fn registry(registry: &RegistrySnapshot) -> Value {
    json!({
        "up": registry.up,
        "nodes": registry.nodes,
        "heartbeats": registry.beats,
        "heartbeat_age_us": registry.beat_age_us,
        "written": registry.written,
        "dropped": registry.dropped,
        "queued": registry.queued,
        "oldest_us": registry.oldest_us,
        "errors": registry.errors,
        "announcements": registry.announcements,
        "nodes_reaped": registry.nodes_reaped,
        "connections_reaped": registry.connections_reaped,
    })
}

fn redis(redis: &RedisSnapshot) -> Value {
    let [publishing, subscription, commands] = redis.links.each_ref().map(|link| {
        json!({
            "up": link.up,
            "connects": link.connects,
            "losses": link.lost,
            "connect_failures": link.failures,
        })
    });
    let servers = redis.servers.iter().map(|server| {
        json!({
            "server": server.server,
            "ready": server.ready,
            "subscriptions": server.subscriptions,
            "buffer_bytes": server.buffer_bytes,
        })
    });
    json!({
        "ready": redis.ready,
        "mode": redis.mode,
        "servers": servers.collect::<Vec<_>>(),
        "publishing": publishing,
        "subscription": subscription,
        "commands": commands,
        "lag": histogram(&redis.lag),
        "messages_published": redis.messages_published,
        "messages_received": redis.messages_received,
        "messages_duplicate": redis.duplicates,
        "messages_missed": redis.messages_missed,
        "messages_refused": redis.messages_refused,
        "gaps": redis.gaps,
        "malformed": redis.malformed,
        "buffer_bytes": redis.buffer_bytes,
        "subscriptions": redis.subscriptions,
        "joins_waiting": redis.joins_waiting,
        "backlog_bytes": redis.backlog_bytes,
        "backlog_dropped": redis.backlog_dropped,
    })
}

fn process(process: &ProcessSnapshot, memory_per_connection_bytes: u64) -> Value {
    json!({
        "resident_bytes": process.resident_bytes,
        "anonymous_bytes": process.anonymous_bytes,
        "memory_per_connection_bytes": memory_per_connection_bytes,
        "virtual_bytes": process.virtual_bytes,
        "open_files": process.open_files,
        "open_files_max": process.open_files_max,
        "cpu_user_us": process.cpu_user_us,
        "cpu_system_us": process.cpu_system_us,
        "started_unix_ms": process.started_unix_ms,
        "kernel_tcp": {
            "memory_bytes": process.tcp.memory_bytes,
            "in_use": process.tcp.in_use,
            "orphan": process.tcp.orphan,
            "time_wait": process.tcp.time_wait,
            "allocated": process.tcp.allocated,
        },
    })
}
