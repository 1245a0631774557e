//! The cluster as `GET /v1/cluster` tells it. What other nodes say is not trusted: a figure that is missing or is no figure
//! is `None`, and words are escaped here, once, so that nothing behind this file holds foreign text as it came.

use serde_json::Value;

use super::text::shown;

/// Characters of a node's name, version or mode, and of one reason, at most.
const NAME_CHARS_MAX: usize = 64;
const REASON_CHARS_MAX: usize = 400;
/// Reasons of one node at most.
const REASON_COUNT_MAX: usize = 16;

/// All nodes as one of them knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cluster {
    /// The node that answered.
    pub(super) node: String,
    /// Whether it has a Redis, and so may know of others.
    pub(super) has_redis: bool,
    /// All that it knows of.
    pub(super) nodes: Vec<Node>,
    /// Their sums, as it counts them.
    pub(super) totals: Totals,
    /// Why it knows of itself alone although it has a Redis.
    pub(super) problem: Option<String>,
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    Ready,
    NotReady,
    Draining,
    /// It has not been heard of for too long.
    Silent,
    /// A word that this version does not know.
    Other(String),
}

/// One node's last words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) id: String,
    pub(super) health: Health,
    pub(super) reasons: Vec<String>,
    /// How old they were when they were told.
    pub(super) age_ms: Option<u64>,
    pub(super) version: Option<String>,
    pub(super) mode: Option<String>,
    pub(super) uptime_s: Option<u64>,
    pub(super) connections: Option<u64>,
    pub(super) connections_max: Option<u64>,
    pub(super) users: Option<u64>,
    pub(super) rooms: Option<u64>,
    pub(super) messages_in_per_s: Option<u64>,
    pub(super) messages_out_per_s: Option<u64>,
    pub(super) buffered_bytes: Option<u64>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) memory_bytes_max: Option<u64>,
    pub(super) lag_p50_us: Option<u64>,
    pub(super) lag_p99_us: Option<u64>,
    /// Tenths of a percent of one processor.
    pub(super) cpu_permille: Option<u64>,
}

/// Sums over the nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) nodes: Option<u64>,
    pub(super) ready: Option<u64>,
    pub(super) connections: Option<u64>,
    pub(super) connections_max: Option<u64>,
    pub(super) users: Option<u64>,
    pub(super) messages_in_per_s: Option<u64>,
    pub(super) messages_out_per_s: Option<u64>,
    pub(super) buffered_bytes: Option<u64>,
}

impl Cluster {
    /// Reads an answer. `None`: it is none to this question.
    pub(super) fn read(value: &Value) -> Option<Self> {
        let nodes = value.get("nodes")?.as_array()?;
        let nodes: Vec<Node> = nodes.iter().map(Node::read).collect::<Option<_>>()?;
        let mut totals = Totals::read(value.get("totals").unwrap_or(&Value::Null));
        // The sum of what no node knows.
        if !nodes.is_empty() && nodes.iter().all(Node::has_just_started) {
            totals.messages_in_per_s = None;
            totals.messages_out_per_s = None;
        }
        Some(Self {
            node: word(value, "node")?,
            has_redis: value.get("redis")?.as_bool()?,
            nodes,
            totals,
            problem: error_message(value),
        })
    }
}

impl Health {
    /// As it is shown.
    pub(super) fn label(&self) -> &str {
        match self {
            Self::Ready => "ready",
            Self::NotReady => "not ready",
            Self::Draining => "draining",
            Self::Silent => "silent",
            Self::Other(word) => word,
        }
    }
}

impl Node {
    fn read(value: &Value) -> Option<Self> {
        let health = match value.get("state").and_then(Value::as_str) {
            Some("ready") => Health::Ready,
            Some("not_ready") => Health::NotReady,
            Some("draining") => Health::Draining,
            Some("silent") => Health::Silent,
            other => Health::Other(shown(other.unwrap_or("?"), NAME_CHARS_MAX)),
        };
        let reasons = value.get("reasons").and_then(Value::as_array);
        let lag = value.get("lag_us").unwrap_or(&Value::Null);
        let mut node = Self {
            id: word(value, "id")?,
            health,
            reasons: reasons
                .into_iter()
                .flatten()
                .take(REASON_COUNT_MAX)
                .map(reason)
                .collect(),
            age_ms: number(value, "age_ms"),
            version: word(value, "version"),
            mode: word(value, "mode"),
            uptime_s: number(value, "uptime_s"),
            connections: number(value, "connections"),
            connections_max: number(value, "connections_max"),
            users: number(value, "users"),
            rooms: number(value, "rooms"),
            messages_in_per_s: number(value, "messages_in_per_s"),
            messages_out_per_s: number(value, "messages_out_per_s"),
            buffered_bytes: number(value, "buffered_bytes"),
            memory_bytes: number(value, "memory_bytes"),
            memory_bytes_max: number(value, "memory_bytes_max"),
            lag_p50_us: number(lag, "p50"),
            lag_p99_us: number(lag, "p99"),
            cpu_permille: scaled(value, "cpu_percent", 10.0),
        };
        if node.has_just_started() {
            node.messages_in_per_s = None;
            node.messages_out_per_s = None;
            node.cpu_permille = None;
        }
        Some(node)
    }

    /// What it tells may be of its start: no interval was over, and its rates are of none.
    fn has_just_started(&self) -> bool {
        self.uptime_s == Some(0)
    }
}

impl Totals {
    fn read(value: &Value) -> Self {
        Self {
            nodes: number(value, "nodes"),
            ready: number(value, "ready"),
            connections: number(value, "connections"),
            connections_max: number(value, "connections_max"),
            users: number(value, "users"),
            messages_in_per_s: number(value, "messages_in_per_s"),
            messages_out_per_s: number(value, "messages_out_per_s"),
            buffered_bytes: number(value, "buffered_bytes"),
        }
    }
}

/// What an answer gives as its error, in words.
pub(super) fn error_message(value: &Value) -> Option<String> {
    let message = value.get("error")?.get("message")?.as_str()?;
    Some(shown(message, REASON_CHARS_MAX))
}

fn word(value: &Value, key: &str) -> Option<String> {
    let text = value.get(key)?.as_str()?;
    Some(shown(text, NAME_CHARS_MAX))
}

/// A reason is a text; one that a later version gives more structure is shown as its JSON.
fn reason(value: &Value) -> String {
    match value {
        Value::String(text) => shown(text, REASON_CHARS_MAX),
        other => shown(&other.to_string(), REASON_CHARS_MAX),
    }
}

/// A whole number that is not negative; a fraction is rounded.
fn number(value: &Value, key: &str) -> Option<u64> {
    let found = value.get(key)?;
    found.as_u64().or_else(|| scaled(value, key, 1.0))
}

/// The same, times `factor`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked; beyond u64 it saturates
fn scaled(value: &Value, key: &str, factor: f64) -> Option<u64> {
    let found = value.get(key)?.as_f64()?;
    (found.is_finite() && found >= 0.0).then(|| (found * factor).round() as u64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_missing_or_no_figure_is_none_and_the_rest_is_read() {
        let cluster = Cluster::read(&json!({
            "node": "a", "redis": true,
            "nodes": [{
                "id": "b", "state": "not_ready", "reasons": ["redis_link: gone", {"code": 1}],
                "connections": -1, "rooms": "many", "users": 2.6, "cpu_percent": 12.34,
                "lag_us": {"p50": 300, "p99": null}, "memory_bytes": 1e300,
            }],
        }))
        .unwrap();
        let node = &cluster.nodes[0];
        assert_eq!(node.health, Health::NotReady);
        assert_eq!(node.reasons, ["redis_link: gone", r#"{"code":1}"#]);
        assert_eq!((node.connections, node.rooms), (None, None));
        assert_eq!((node.users, node.cpu_permille), (Some(3), Some(123)));
        assert_eq!((node.lag_p50_us, node.lag_p99_us), (Some(300), None));
        assert_eq!(node.memory_bytes, Some(u64::MAX));
        assert_eq!(cluster.totals.nodes, None);
    }

    #[test]
    fn a_node_that_has_just_started_knows_no_rates() {
        let told = |uptimes: &[u64]| {
            let nodes = uptimes.iter().map(|uptime| {
                json!({"id": "a", "uptime_s": uptime, "connections": 3, "cpu_percent": 0.0,
                       "messages_in_per_s": 0.0, "messages_out_per_s": 0.0})
            });
            let totals = json!({"messages_in_per_s": 0.0, "messages_out_per_s": 0.0});
            let nodes: Vec<_> = nodes.collect();
            let answer = json!({"node": "a", "redis": true, "nodes": nodes, "totals": totals});
            let cluster = Cluster::read(&answer).unwrap();
            let node = &cluster.nodes[0];
            assert_eq!(node.connections, Some(3));
            let rates = [
                node.messages_in_per_s,
                node.messages_out_per_s,
                node.cpu_permille,
            ];
            let totals = [
                cluster.totals.messages_in_per_s,
                cluster.totals.messages_out_per_s,
            ];
            (rates, totals)
        };
        assert_eq!(told(&[0]), ([None; 3], [None; 2]));
        assert_eq!(told(&[0, 1]), ([None; 3], [Some(0); 2]), "another one does");
        assert_eq!(told(&[1]), ([Some(0); 3], [Some(0); 2]));
    }

    #[test]
    fn foreign_words_are_escaped_wherever_they_stand() {
        let evil = "\u{1b}]0;x\u{7}\n";
        let cluster = Cluster::read(&json!({
            "node": evil, "redis": false,
            "nodes": [{"id": evil, "state": evil, "reasons": [evil, [evil]], "version": evil, "mode": evil}],
        }))
        .unwrap();
        // Debug would escape a control character itself; one that was escaped before has two backslashes.
        let all = format!("{cluster:?}");
        assert_eq!(all.matches(r"\\u{1b}").count(), 6, "{all}");
        assert_eq!(all.matches(r"\u{1b}").count(), 6, "{all}");
    }

    #[test]
    fn a_node_without_its_redis_says_why_it_is_alone() {
        let cluster = Cluster::read(&json!({
            "node": "a", "redis": true, "nodes": [],
            "error": {"code": "backplane_lost", "message": "Redis is away"},
        }));
        assert_eq!(cluster.unwrap().problem.as_deref(), Some("Redis is away"));
    }

    #[test]
    fn other_answers_are_not_taken_for_a_cluster() {
        for other in [
            json!({"status": "ok"}),
            json!([]),
            json!({"node": "a", "redis": true, "nodes": [{"state": "ready"}]}),
            json!({"node": 1, "redis": true, "nodes": []}),
        ] {
            assert_eq!(Cluster::read(&other), None, "{other}");
        }
    }
}
