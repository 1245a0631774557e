//! Screens as a person sees them, and the nodes that the other tests here are about.

use serde_json::json;

use super::cluster::{Cluster, Health, Node};
use super::state::Answer;
use super::text::Style;
use super::*;

/// A ready node in whose figures each is another one.
pub(super) fn node(id: &str) -> Node {
    let nodes = json!([{
        "id": id, "incarnation": "6f0a1b2c3d4e5f60", "age_ms": 300, "state": "ready", "reasons": [],
        "version": "0.1.0", "uptime_s": 3_725, "connections": 50_000, "connections_max": 100_000, "users": 40_000,
        "rooms": 800, "messages_in_per_s": 250.5, "messages_out_per_s": 9_800.0, "buffered_bytes": 4_096,
        "memory_bytes": 73_400_320, "memory_bytes_max": 1_073_741_824, "lag_us": {"p50": 256, "p99": 1_024},
        "cpu_percent": 12.5, "mode": "pubsub",
    }]);
    let read = Cluster::read(&json!({"node": id, "redis": true, "nodes": nodes}));
    read.unwrap().nodes.remove(0)
}

/// What the first of these would answer.
pub(super) fn cluster(nodes: Vec<Node>) -> Cluster {
    let name = nodes.first().map_or("nobody", |node| &*node.id).to_owned();
    let ready = nodes.iter().filter(|node| node.health == Health::Ready);
    let sum = |figure: fn(&Node) -> Option<u64>| nodes.iter().filter_map(figure).sum::<u64>();
    let totals = json!({
        "nodes": nodes.len(), "ready": ready.count(),
        "connections": sum(|node| node.connections), "connections_max": sum(|node| node.connections_max),
        "users": sum(|node| node.users), "messages_in_per_s": sum(|node| node.messages_in_per_s),
        "messages_out_per_s": sum(|node| node.messages_out_per_s), "buffered_bytes": sum(|node| node.buffered_bytes),
    });
    let read = Cluster::read(&json!({"node": name, "redis": true, "nodes": [], "totals": totals}));
    Cluster {
        nodes,
        ..read.unwrap()
    }
}

/// Three nodes: one as it should be, one that is not, one that is gone.
fn three() -> State {
    let mut broken = node("b");
    broken.health = Health::NotReady;
    broken.reasons = vec!["redis_link".into(), "mode_mismatch".into()];
    broken.lag_p50_us = None;
    broken.lag_p99_us = None;
    let read = Cluster::read(&json!({"node": "x", "redis": true, "nodes": [
        {"id": "c", "incarnation": "00", "age_ms": 8_000, "state": "silent", "reasons": [], "connections": null},
    ]}));
    let gone = read.unwrap().nodes.remove(0);
    state(vec![node("a"), broken, gone])
}

fn state(nodes: Vec<Node>) -> State {
    let answer = Answer {
        source: "127.0.0.1:8081".into(),
        cluster: cluster(nodes),
    };
    State::new(answer, 1_700_000_000, Tick(0), 2_000)
}

fn screen(state: &State, width: usize, height: usize) -> Vec<String> {
    let lines = frame::frame(state, width, height, &Glyphs::UNICODE);
    assert_eq!(lines.len(), height);
    assert!(lines.iter().all(|line| line.width() <= width), "{lines:#?}");
    lines.iter().map(Line::text).collect()
}

fn shows(lines: &[String], wanted: &[&str]) {
    for (line, wanted) in lines.iter().zip(wanted) {
        assert_eq!(line, wanted, "\n{}", lines.join("\n"));
    }
    assert_eq!(lines.len(), wanted.len(), "\n{}", lines.join("\n"));
}

#[test]
fn a_terminal_of_eighty_columns_shows_the_weightiest() {
    shows(&screen(&three(), 80, 14), &[]);
}

#[test]
fn a_wide_terminal_shows_everything() {
    shows(&screen(&three(), 190, 13), &[]);
}
