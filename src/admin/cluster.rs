//! The node's state as it is told to other nodes, and all nodes' states as one answer (docs/PROTOCOL.md §6).

use serde_json::{Map, Value, json};

use super::fit::Difference;
use super::router::Options;
use super::{Answer, Health};
use crate::bus::{ClusterReply, NodeSeen};
use crate::drain::Phase;
use crate::metrics::{Log2Histogram, NodeSnapshot};
use crate::time::Tick;

/// Whoever has not been heard for so many intervals is silent.
const SILENT_INTERVALS: u64 = 3;

/// What is counted since the start, at one moment.
#[derive(Debug, Clone, Default)]
struct Sample {
    at: Tick,
    messages_in: u64,
    messages_out: u64,
    cpu_us: u64,
    lag: Log2Histogram,
}

impl Sample {
    fn of(node: &NodeSnapshot, at: Tick) -> Self {
        Self {
            at,
            messages_in: node.sum(|shard| shard.counters.messages_in),
            messages_out: node.sum(|shard| shard.counters.deliveries),
            cpu_us: node.process.cpu_user_us + node.process.cpu_system_us,
            lag: node.backplane.redis.lag.clone(),
        }
    }
}

/// Turns what is counted into rates, from one look to the next.
#[derive(Debug, Default)]
pub struct Meter {
    last: Sample,
}

impl Meter {
    /// The node's state, and how many connections it has. `reasons`: why it is not ready, codes.
    pub fn state(
        &mut self,
        node: &NodeSnapshot,
        health: &Health,
        reasons: &[String],
        options: &Options,
        now: Tick,
    ) -> (Map<String, Value>, u64) {
        let sample = Sample::of(node, now);
        let last = std::mem::replace(&mut self.last, sample.clone());
        let us = now.since(last.at);
        let rate = |now: u64, before: u64| tenths(now.saturating_sub(before), us);
        let redis = &node.backplane.redis;
        let lag = sample.lag.since(&last.lag);
        let lag = (lag.count() > 0)
            .then(|| json!({ "p50": lag.quantile_us(0.5), "p99": lag.quantile_us(0.99) }));
        let connections = node.connections_open();
        let state = match health.phase {
            Phase::Running if reasons.is_empty() => "ready",
            Phase::Running => "not_ready",
            _ => "draining",
        };
        let value = json!({
            "id": node.node_id,
            "incarnation": format!("{:016x}", options.incarnation),
            "state": state,
            "reasons": reasons,
            "version": node.version,
            "uptime_s": now.0 / 1_000_000,
            "connections": connections,
            "connections_max": node.connection_count_max,
            "users": node.users(),
            "rooms": node.rooms(),
            "messages_in_per_s": rate(sample.messages_in, last.messages_in),
            "messages_out_per_s": rate(sample.messages_out, last.messages_out),
            "buffered_bytes": node.sum(|shard| shard.gauges.queued_bytes) + redis.buffer_bytes,
            "memory_bytes": node.process.resident_bytes,
            "memory_bytes_max": node.node_bytes_max,
            "lag_us": lag,
            "cpu_percent": tenths(sample.cpu_us.saturating_sub(last.cpu_us), us.saturating_mul(10_000)),
            "mode": if redis.configured { redis.mode } else { "none" },
            "layout": options.layout,
        });
        match value {
            Value::Object(map) => (map, connections),
            _ => (Map::new(), connections),
        }
    }
}

/// `count` in `us` microseconds as a rate a second, one digit behind the point.
#[allow(clippy::cast_precision_loss)] // a figure for people
fn tenths(count: u64, us: u64) -> f64 {
    if us == 0 {
        return 0.0;
    }
    (count as f64 * 1e7 / us as f64).round() / 10.0
}

/// The answer without Redis, or while it is away: this node alone.
pub fn alone(own: &Map<String, Value>, options: &Options, away: Option<&str>) -> Answer {
    let mut node = own.clone();
    node.insert("age_ms".into(), json!(0));
    let users = own.get("users").and_then(Value::as_u64).unwrap_or_default();
    let mut answer = whole(vec![Value::Object(node)], options, users);
    let Some(reason) = away else {
        return Answer::json(200, &answer);
    };
    let message = format!("the state of other nodes is at Redis, which cannot be asked: {reason}");
    answer["error"] = json!({ "code": "backplane_lost", "message": message });
    Answer::json(503, &answer).with_header("Retry-After", "1")
}

/// The answer with all nodes; `own`: what this one would say of itself now.
pub fn all(reply: &ClusterReply, own: &Map<String, Value>, options: &Options) -> Answer {
    match reply {
        ClusterReply::Nodes { nodes, user_count } => {
            let nodes = nodes.iter().map(|seen| node(seen, own, options)).collect();
            Answer::json(200, &whole(nodes, options, *user_count))
        }
        ClusterReply::Away(reason) => alone(own, options, Some(reason)),
        other => {
            debug_assert!(false, "an answer to another question: {other:?}");
            alone(own, options, Some("it answered something else"))
        }
    }
}

/// `user_count`: 0 where no registry counts them; then it is the sum of the nodes' own.
fn whole(nodes: Vec<Value>, options: &Options, user_count: u64) -> Value {
    let alive: Vec<&Value> = nodes
        .iter()
        .filter(|node| node["state"] != "silent")
        .collect();
    // What others have written is believed for what it is: no sum of it overflows.
    let sum = |field: &str| -> u64 {
        let told = alive.iter().filter_map(|node| node[field].as_u64());
        told.fold(0, u64::saturating_add)
    };
    let sum_rate = |field: &str| -> f64 {
        let sum: f64 = alive.iter().filter_map(|node| node[field].as_f64()).sum();
        ((sum * 10.0).round() / 10.0).min(f64::MAX)
    };
    let totals = json!({
        "nodes": alive.len(),
        "ready": alive.iter().filter(|node| node["state"] == "ready").count(),
        "connections": sum("connections"),
        "connections_max": sum("connections_max"),
        "users": if user_count > 0 { user_count } else { sum("users") },
        "messages_in_per_s": sum_rate("messages_in_per_s"),
        "messages_out_per_s": sum_rate("messages_out_per_s"),
        "buffered_bytes": sum("buffered_bytes"),
    });
    json!({
        "node": options.node_id,
        "redis": options.has_redis,
        "nodes": nodes,
        "totals": totals,
    })
}

/// What a node has told of itself; `None`: it is silent, or has told something else.
pub fn told(seen: &NodeSeen, options: &Options) -> Option<Map<String, Value>> {
    let silent_ms = SILENT_INTERVALS * u64::from(options.cluster_interval_ms);
    let state = seen.state.as_deref().filter(|_| seen.age_ms <= silent_ms)?;
    let told = serde_json::from_str::<Map<String, Value>>(state).ok();
    told.filter(|told| FIELDS.iter().all(|field| told.contains_key(*field)))
}

/// The same for the answer, or what is known of one that is silent.
fn node(seen: &NodeSeen, own: &Map<String, Value>, options: &Options) -> Value {
    let mut node = told(seen, options).unwrap_or_else(|| {
        let unknown = FIELDS
            .iter()
            .map(|field| ((*field).to_owned(), Value::Null));
        let mut node: Map<String, Value> = unknown.collect();
        node.insert("state".into(), json!("silent"));
        node.insert("reasons".into(), json!([]));
        node
    });
    node.insert("id".into(), json!(seen.node));
    node.insert(
        "incarnation".into(),
        json!(format!("{:016x}", seen.incarnation)),
    );
    node.insert("age_ms".into(), json!(seen.age_ms));
    let difference = Difference::between(&node, own);
    if let Some(Value::Array(reasons)) = node.get_mut("reasons") {
        reasons.extend(difference.codes().map(|code| json!(code)));
    }
    Value::Object(node)
}

/// What a node tells of itself beside its name.
const FIELDS: [&str; 16] = [
    "state",
    "reasons",
    "version",
    "uptime_s",
    "connections",
    "connections_max",
    "users",
    "rooms",
    "messages_in_per_s",
    "messages_out_per_s",
    "buffered_bytes",
    "memory_bytes",
    "memory_bytes_max",
    "lag_us",
    "cpu_percent",
    "mode",
];

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::metrics::ShardReport;

    pub fn options() -> Options {
        Options {
            node_id: "a".into(),
            incarnation: 0xab,
            version: "1",
            shard_count: 1,
            key: None,
            message_bytes_max: 1,
            connection_count_max: 100,
            node_bytes_max: 1_000,
            answer_timeout_ms: 1_000,
            bus_stall_ms_max: 1_000,
            has_redis: true,
            layout: "one server".into(),
            cluster_interval_ms: 500,
        }
    }

    fn health(phase: Phase) -> Health {
        Health {
            phase,
            stalled_shards: Vec::new(),
            bus_stalled_us: 0,
            link_troubles: Vec::new(),
        }
    }

    fn snapshot(messages_in: u64, cpu_us: u64) -> NodeSnapshot {
        let mut node = NodeSnapshot {
            node_id: "a".into(),
            connection_count_max: 100,
            ..NodeSnapshot::default()
        };
        let mut shard = ShardReport::default();
        shard.snapshot.counters.messages_in = messages_in;
        shard.snapshot.gauges.connections_open = 3;
        shard.snapshot.gauges.users = 2;
        node.shards.push(shard);
        node.process.cpu_user_us = cpu_us;
        node.backplane.redis.configured = true;
        node.backplane.redis.mode = "pubsub";
        node
    }

    /// What a node that is well, and counts nothing yet, says of itself.
    pub fn own(options: &Options) -> Map<String, Value> {
        let (node, health) = (snapshot(0, 0), health(Phase::Running));
        let (state, _) = Meter::default().state(&node, &health, &[], options, Tick(0));
        state
    }

    pub fn seen(node: &str, age_ms: u64, state: Option<String>) -> NodeSeen {
        NodeSeen {
            node: node.into(),
            incarnation: 7,
            age_ms,
            state,
        }
    }

    fn parsed(answer: &Answer) -> Value {
        serde_json::from_slice(&answer.body).unwrap()
    }

    #[test]
    fn rates_are_of_the_last_interval() {
        let mut meter = Meter::default();
        let (health, options) = (health(Phase::Running), options());
        let at = |meter: &mut Meter, node: &NodeSnapshot, ms| {
            let (state, _) = meter.state(node, &health, &[], &options, Tick::from_ms(ms));
            let figure = |name: &str| state[name].as_f64().unwrap();
            (figure("messages_in_per_s"), figure("cpu_percent"))
        };
        assert_eq!(at(&mut meter, &snapshot(0, 0), 0), (0.0, 0.0));
        assert_eq!(
            at(&mut meter, &snapshot(1_000, 250_000), 2_000),
            (500.0, 12.5)
        );
        assert_eq!(at(&mut meter, &snapshot(1_000, 250_000), 4_000), (0.0, 0.0));
        assert_eq!(
            at(&mut meter, &snapshot(1_001, 4_250_000), 6_000),
            (0.5, 200.0)
        );
    }

    #[test]
    fn lag_is_that_of_the_last_interval_or_none() {
        let mut meter = Meter::default();
        let (health, options) = (health(Phase::Running), options());
        let mut node = snapshot(0, 0);
        node.backplane.redis.lag.record(900, 5);
        let lag = |meter: &mut Meter, node: &NodeSnapshot, ms| {
            let (state, _) = meter.state(node, &health, &[], &options, Tick::from_ms(ms));
            state["lag_us"].clone()
        };
        assert_eq!(
            lag(&mut meter, &node, 2_000),
            json!({ "p50": 1_024, "p99": 1_024 })
        );
        assert_eq!(lag(&mut meter, &node, 4_000), Value::Null);
        node.backplane.redis.lag.record(100, 1);
        assert_eq!(
            lag(&mut meter, &node, 6_000),
            json!({ "p50": 128, "p99": 128 })
        );
    }

    #[test]
    fn the_state_says_why_a_node_takes_nobody() {
        let (mut meter, options) = (Meter::default(), options());
        let mut of = |phase, reasons: &[String]| {
            let node = snapshot(0, 0);
            let (state, count) = meter.state(&node, &health(phase), reasons, &options, Tick(0));
            assert_eq!(count, 3);
            let expected: Vec<&str> = FIELDS.to_vec();
            assert!(expected.iter().all(|field| state.contains_key(*field)));
            state["state"].as_str().unwrap().to_owned()
        };
        assert_eq!(of(Phase::Running, &[]), "ready");
        assert_eq!(of(Phase::Running, &["redis_link".into()]), "not_ready");
        assert_eq!(of(Phase::Closing, &["draining".into()]), "draining");
    }

    #[test]
    fn nodes_are_silent_after_three_intervals_or_without_a_state_and_do_not_count() {
        let options = options();
        let own = own(&options);
        let text = Value::Object(own.clone()).to_string();
        let other_mode = text.replace("pubsub", "streams");
        let nodes = vec![
            seen("a", 1_500, Some(text.clone())),
            seen("b", 1_501, Some(text.clone())),
            seen("c", 0, None),
            seen("d", 0, Some("{}".into())),
            seen("e", 0, Some("nonsense".into())),
            seen("f", 10, Some(other_mode)),
            seen(
                "g",
                10,
                Some(text.replace("one server", "a cluster, 64 partitions")),
            ),
        ];
        let reply = ClusterReply::Nodes {
            nodes,
            user_count: 3,
        };
        let answer = all(&reply, &own, &options);
        assert_eq!(answer.status, 200);
        let value = parsed(&answer);
        let of = |field: &str| -> Vec<Value> {
            let nodes = value["nodes"].as_array().unwrap().iter();
            nodes.map(|node| node[field].clone()).collect()
        };
        let states = [
            "ready", "silent", "silent", "silent", "silent", "ready", "ready",
        ];
        assert_eq!(of("state"), states);
        assert_eq!(of("id"), ["a", "b", "c", "d", "e", "f", "g"]);
        assert_eq!(of("reasons")[5], json!(["mode_mismatch"]));
        assert_eq!(of("reasons")[6], json!(["layout_mismatch"]));
        assert_eq!(of("connections")[..2], [json!(3), Value::Null]);
        let totals = &value["totals"];
        assert_eq!(totals["nodes"], 3);
        assert_eq!(totals["connections"], 9);
        assert_eq!(totals["connections_max"], 300);
        assert_eq!(totals["users"], 3, "not the sum, which is 4");
    }

    #[test]
    fn figures_that_no_node_can_have_break_no_sum() {
        let options = options();
        let mut own = own(&options);
        own.insert("connections".into(), json!(u64::MAX));
        own.insert("buffered_bytes".into(), json!(-1));
        own.insert("messages_in_per_s".into(), json!(f64::MAX));
        own.insert("users".into(), json!(["many"]));
        let text = Value::Object(own.clone()).to_string();
        let nodes = vec![
            seen("a", 0, Some(text.clone())),
            seen("b", u64::MAX, Some(text.clone())),
            seen("c", 0, Some(text)),
        ];
        let user_count = 0;
        let value = parsed(&all(
            &ClusterReply::Nodes { nodes, user_count },
            &own,
            &options,
        ));
        let totals = &value["totals"];
        assert_eq!(totals["connections"], u64::MAX);
        assert_eq!(totals["messages_in_per_s"], f64::MAX);
        assert_eq!(
            (&totals["users"], &totals["buffered_bytes"]),
            (&json!(0), &json!(0))
        );
    }

    #[test]
    fn without_redis_a_node_is_alone_and_while_it_is_away_it_says_so() {
        let options = options();
        let own = own(&options);
        let answer = alone(&own, &options, None);
        assert_eq!(answer.status, 200);
        assert_eq!(parsed(&answer)["totals"]["users"], 2);
        let answer = all(&ClusterReply::Away("it is gone".into()), &own, &options);
        assert_eq!(answer.status, 503);
        let value = parsed(&answer);
        assert_eq!(value["error"]["code"], "backplane_lost");
        assert!(
            value["error"]["message"]
                .as_str()
                .unwrap()
                .contains("it is gone")
        );
        assert_eq!(value["nodes"][0]["id"], "a");
    }
}
