//! Screens as a person sees them, and the nodes that the other tests here are about.

use serde_json::json;

use super::cluster::{Cluster, Health, Node};
use super::state::Answer;
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
    shows(
        &screen(&three(), 80, 14),
        &[
            "throng  3 nodes, 1 ready  100,000 of 200,000 connections  80,000 users",
            "22:13:20 UTC  from a (127.0.0.1:8081)",
            "messages/s 502 in, 19,600 out  8.0 KiB buffered  ██████████░░░░░░░░░░",
            "messages/s       20,102                                       █ most 20,102",
            "connections     100,000                                       █ most 100,000",
            "NODE STATE           CONNS      IN/S      OUT/S  BUFFERED    MEMORY  LAG P99",
            "a    ready          50,000       251      9,800   4.0 KiB  70.0 MiB   1.0 ms",
            "b    not ready      50,000       251      9,800   4.0 KiB  70.0 MiB        -",
            "c    silent              -         -          -         -         -        -",
            "b: redis_link",
            "b: mode_mismatch",
            "",
            "",
            "q quit  p pause  sort: n name c connections m memory l lag  every 2 s",
        ],
    );
}

#[test]
fn a_wide_terminal_shows_everything() {
    shows(
        &screen(&three(), 170, 13),
        &[
            "throng  3 nodes, 1 ready  100,000 of 200,000 connections  80,000 users                                                               22:13:20 UTC  from a (127.0.0.1:8081)",
            "messages/s 502 in, 19,600 out  8.0 KiB buffered  ██████████░░░░░░░░░░",
            "messages/s       20,102                                                                                                                        █ most 20,102",
            "connections     100,000                                                                                                                        █ most 100,000",
            "NODE STATE           CONNS OF MAX          USERS     ROOMS      IN/S      OUT/S  BUFFERED    MEMORY  LAG P50  LAG P99     CPU  UPTIME VERSION   MODE       AGE",
            "a    ready          50,000 █████░░░░░     40,000       800       251      9,800   4.0 KiB  70.0 MiB   256 µs   1.0 ms  12.5 %   1h 2m 0.1.0     pubsub   0.3 s",
            "b    not ready      50,000 █████░░░░░     40,000       800       251      9,800   4.0 KiB  70.0 MiB        -        -  12.5 %   1h 2m 0.1.0     pubsub   0.3 s",
            "c    silent              - -                   -         -         -          -         -         -        -        -       -       - -         -        8.0 s",
            "b: redis_link",
            "b: mode_mismatch",
            "",
            "",
            "q quit  p pause  sort: n name c connections m memory l lag  every 2 s",
        ],
    );
}

#[test]
fn what_is_sent_to_a_terminal_has_colours_only_where_they_are_wanted() {
    let lines = frame::frame(&three(), 100, 14, &Glyphs::UNICODE);
    let coloured = screen_text(&lines, Marks::Colour, true);
    for wanted in ["\x1b[32mready", "\x1b[31mnot ready", "\x1b[2msilent"] {
        assert!(coloured.contains(wanted), "{wanted:?} in {coloured:?}");
    }
    let weighted = screen_text(&lines, Marks::Weight, false);
    for code in 30..38 {
        assert!(!weighted.contains(&format!("\x1b[{code}m")), "{weighted:?}");
    }
    assert!(weighted.contains("\x1b[1mnot ready"), "{weighted:?}");
}

#[test]
fn a_small_terminal_keeps_its_size_whatever_there_is_to_show() {
    let mut state = three();
    state.hear(Err(vec!["a:1: refused".into(); 5]), 0, Tick(0));
    for height in 0..30 {
        for width in [0, 1, 5, 20, 79, 300] {
            state.fit(frame::row_count(&state, width, height, &Glyphs::ASCII));
            screen(&state, width, height);
        }
    }
}

#[test]
fn more_nodes_than_lines_are_scrolled_to() {
    let mut state = state((10..50).map(|index| node(&format!("n{index}"))).collect());
    let fit = |state: &mut State| {
        state.fit(frame::row_count(state, 80, 24, &Glyphs::UNICODE));
        let lines = screen(state, 80, 24);
        let rows: Vec<String> = lines
            .iter()
            .filter(|line| line.starts_with("n") && !line.contains("name"))
            .map(|line| line[..3].to_owned())
            .collect();
        (rows, lines[23].clone())
    };
    let (rows, foot) = fit(&mut state);
    assert_eq!((rows.len(), &*rows[0], &*rows[16]), (17, "n10", "n26"));
    assert!(foot.starts_with("1-17 of 40  q quit"), "{foot}");
    state.type_key(keys::Key::End);
    let (rows, foot) = fit(&mut state);
    assert_eq!((rows.len(), &*rows[0], &*rows[16]), (17, "n33", "n49"));
    assert!(foot.starts_with("24-40 of 40  q quit"), "{foot}");
}

#[test]
fn reasons_leave_most_of_the_screen_to_the_nodes() {
    let mut nodes: Vec<Node> = (10..50).map(|index| node(&format!("n{index}"))).collect();
    for node in &mut nodes {
        node.health = Health::NotReady;
        node.reasons = vec!["redis_link".into()];
    }
    let lines = screen(&state(nodes), 80, 24);
    let reasons: Vec<_> = lines
        .iter()
        .filter(|line| line.contains(": redis_link"))
        .collect();
    assert_eq!(reasons.len(), 4);
    assert!(lines.contains(&"36 more reasons".to_owned()), "{lines:#?}");
}

#[test]
fn silence_is_told_with_its_reasons_and_the_last_answer_stays() {
    let mut state = three();
    let reason = "127.0.0.1:8081: connection refused: nothing listens there";
    state.hear(Err(vec![reason.into()]), 0, Tick::from_ms(2_000));
    state.now = Tick::from_ms(7_000);
    let lines = screen(&state, 100, 20);
    assert!(lines.contains(&"no answer for 7 s; below is the last one".to_owned()));
    assert!(lines.contains(&format!("  {reason}")));
    let silent = lines.iter().find(|line| line.starts_with("c ")).unwrap();
    assert!(silent.contains("silent"), "{silent}");
    let wide = screen(&state, 200, 20).join("\n");
    assert!(
        wide.contains("7.3 s") && wide.contains("15 s"),
        "ages go on\n{wide}"
    );
}

#[test]
fn a_node_that_cannot_know_of_others_says_so() {
    let mut alone = three();
    alone.answer.cluster.has_redis = false;
    let lines = screen(&alone, 80, 20);
    assert!(lines.contains(&"a has no Redis: there are no other nodes".to_owned()));
    alone.answer.cluster.has_redis = true;
    alone.answer.cluster.problem = Some("the link is down".into());
    let lines = screen(&alone, 80, 20);
    assert!(lines.contains(&"a knows of itself alone: the link is down".to_owned()));
}

#[test]
fn a_table_is_whole_and_has_no_keys() {
    let state = state((10..99).map(|index| node(&format!("n{index}"))).collect());
    let text = table_text(&frame::table(&state, None, &Glyphs::ASCII), Marks::None);
    assert_eq!(text.lines().count(), 2 + 1 + 89);
    assert!(text.contains(" AGE") && !text.contains("quit"), "{text}");
    assert!(text.is_ascii() && !text.contains('\x1b'));
    let narrow = table_text(&frame::table(&state, Some(80), &Glyphs::ASCII), Marks::None);
    assert!(narrow.lines().all(|line| line.len() <= 80), "{narrow}");
}

#[test]
fn json_for_a_terminal_is_plain_and_still_the_same() {
    let value = json!({"node": "\u{1b}[2J\u{9b}\u{202e}\u{1f600}\u{7f}\"\\", "nodes": [1.5, null]});
    let text = json_text(&value);
    assert!(
        text.chars().all(|char| matches!(char, '\n' | ' '..='~')),
        "{text:?}"
    );
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
}

#[test]
fn the_settings_say_who_is_asked() {
    let target = |lines: &str| {
        let read = |_: &str| Ok(lines.to_owned());
        let args = ServeArgs {
            config: Some("x".into()),
            ..ServeArgs::default()
        };
        let loaded = crate::config::load(&args, std::iter::empty(), read, &host::machine());
        own_target(&loaded.unwrap().0).map(|target| target.to_string())
    };
    assert_eq!(target("").unwrap(), "127.0.0.1:8081");
    let open = "admin_key = \"12345678\"\nadmin = ";
    assert_eq!(
        target(&format!("{open}\"0.0.0.0:99\"")).unwrap(),
        "127.0.0.1:99"
    );
    assert_eq!(target(&format!("{open}\"[::]:99\"")).unwrap(), "[::1]:99");
    for nobody in ["admin = \"off\"", "admin = \"127.0.0.1:0\""] {
        assert!(target(nobody).unwrap_err().instead.contains("--admin"));
    }
}
