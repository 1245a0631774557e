//! A node by hand, and every kind of request.

use super::*;
use crate::bus::{ConnectionInfo, MessageKind, RoomInfo};

/// A node that writes down what it is asked.
struct FakeNode {
    asked: Vec<(u8, u64, Question)>,
    refuses: Vec<u8>,
    published: Vec<(RoomName, Arc<Batch>)>,
    /// Why nothing is published, where nothing is.
    publishing: Result<(), NotPublished>,
    health: Health,
    /// What the registry was asked, if there is one.
    cluster: Option<Vec<(u64, ClusterQuestion)>>,
}

impl FakeNode {
    fn new() -> Self {
        let health = Health {
            phase: Phase::Running,
            stalled_shards: Vec::new(),
            bus_stalled_us: 0,
            link_troubles: Vec::new(),
        };
        Self {
            asked: Vec::new(),
            refuses: Vec::new(),
            published: Vec::new(),
            publishing: Ok(()),
            health,
            cluster: None,
        }
    }
}

impl Node for FakeNode {
    fn ask(&mut self, to: CoreId, request: u64, question: Question) -> bool {
        let asked = !self.refuses.contains(&to.0);
        if asked {
            self.asked.push((to.0, request, question));
        }
        asked
    }
    fn keeps_users(&self) -> bool {
        self.cluster.is_some()
    }
    fn ask_cluster(&mut self, request: u64, question: ClusterQuestion, _: Tick) -> bool {
        let asked = self.cluster.as_mut();
        asked.map(|asked| asked.push((request, question))).is_some()
    }
    fn publish(
        &mut self,
        room: &RoomName,
        batch: &Arc<Batch>,
        _: Tick,
    ) -> Result<(), NotPublished> {
        if self.publishing.is_ok() {
            self.published.push((room.clone(), Arc::clone(batch)));
        }
        self.publishing
    }
    fn health(&mut self, _: Tick) -> Health {
        self.health.clone()
    }
    fn figures(&mut self, _: Tick) -> Figures {
        Figures {
            phase: self.health.phase,
            backplane: BackplaneSnapshot::default(),
            lanes: Vec::new(),
            process: ProcessSnapshot::default(),
        }
    }
}

fn admin(shard_count: u8, key: Option<&str>) -> Admin {
    Admin::new(Options {
        node_id: "n1".into(),
        incarnation: 7,
        version: "0",
        shard_count,
        key: key.map(str::to_owned),
        message_bytes_max: 10,
        connection_count_max: 100,
        node_bytes_max: 1_000,
        answer_timeout_ms: 1_000,
        bus_stall_ms_max: 1_000,
        has_redis: false,
        layout: "none".into(),
        cluster_interval_ms: 2_000,
    })
}

fn request(method: &str, target: &str) -> Request {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Request {
        method: method.into(),
        path: path.into(),
        query: query.into(),
        ..Request::default()
    }
}

fn answered(outcome: Outcome) -> Answer {
    match outcome {
        Outcome::Answer(answer) => answer,
        Outcome::Pending(_) => panic!("pending"),
    }
}

fn pending(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Pending(id) => id,
        Outcome::Answer(answer) => panic!("{answer:?}"),
    }
}

fn parsed(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}

fn get(admin: &mut Admin, node: &mut FakeNode, target: &str) -> Outcome {
    admin.handle_request(&request("GET", target), node, Tick(0))
}

fn stats(connections_open: u64) -> Reply {
    let mut snapshot = ShardSnapshot::default();
    snapshot.gauges.connections_open = connections_open;
    Reply::Stats(Box::new(snapshot))
}

#[test]
fn the_key_guards_v1_and_nothing_else() {
    let (mut admin, mut node) = (admin(1, Some("secret")), FakeNode::new());
    for path in ["/v1/stats", "/v1/nothing", "/v1", "/v1/rooms/a"] {
        let answer = answered(get(&mut admin, &mut node, path));
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(
            answer.headers,
            [("WWW-Authenticate", "Bearer realm=\"throng\"".to_owned())]
        );
    }
    for wrong in ["", "secre", "secret2", "SECRET"] {
        let request = Request {
            bearer: Some(wrong.into()),
            ..request("GET", "/v1/stats")
        };
        let answer = answered(admin.handle_request(&request, &mut node, Tick(0)));
        assert_eq!(answer.status, 401, "{wrong}");
    }
    let right = Request {
        bearer: Some("secret".into()),
        ..request("GET", "/v1/stats")
    };
    pending(admin.handle_request(&right, &mut node, Tick(0)));
    assert_eq!(answered(get(&mut admin, &mut node, "/livez")).status, 200);
    pending(get(&mut admin, &mut node, "/metrics"));
}

#[test]
fn readiness_names_every_reason_against_it() {
    let (mut admin, mut node) = (admin(2, None), FakeNode::new());
    assert_eq!(answered(get(&mut admin, &mut node, "/readyz")).status, 200);
    node.health.bus_stalled_us = 1_000_000;
    assert_eq!(
        answered(get(&mut admin, &mut node, "/readyz")).status,
        200,
        "not longer than it may"
    );
    node.health = Health {
        phase: Phase::Closing,
        stalled_shards: vec![CoreId(1)],
        bus_stalled_us: 1_000_001,
        link_troubles: vec![LinkTrouble {
            server: "redis.example:6379".into(),
            link: "subscription",
            state: "resting",
            since_us: 7_000_000,
            reason: "Redis has closed the connection".into(),
        }],
    };
    let answer = answered(get(&mut admin, &mut node, "/readyz"));
    assert_eq!(answer.status, 503);
    let value = parsed(&answer);
    let codes: Vec<_> = value["reasons"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reason| &reason["code"])
        .collect();
    assert_eq!(
        codes,
        ["draining", "shard_stalled", "bus_overfull", "redis_link"]
    );
    assert_eq!(value["reasons"][3]["server"], "redis.example:6379");
    assert_eq!(value["reasons"][3]["link"], "subscription");
    assert_eq!(value["reasons"][3]["since_ms"], 7_000);
    assert_eq!(value["reasons"][1]["shards"], json!([1]));
    assert_eq!(answered(get(&mut admin, &mut node, "/livez")).status, 200);
}

#[test]
fn a_publish_is_encoded_and_handed_over() {
    let (mut admin, mut node) = (admin(1, None), FakeNode::new());
    let post = Request {
        body: b"hi".to_vec(),
        ..request("POST", "/v1/rooms/a%20b/publish?kind=binary")
    };
    let answer = answered(admin.handle_request(&post, &mut node, Tick(5)));
    assert_eq!(
        (answer.status, parsed(&answer)),
        (202, json!({ "accepted": true }))
    );
    let (room, batch) = &node.published[0];
    assert_eq!(
        (&**room, batch.bytes.as_slice()),
        ("a b", b"\x82\x02hi".as_slice())
    );
    assert_eq!(batch.messages[0].kind, MessageKind::Binary);
    let long = Request {
        body: vec![b'x'; 11],
        ..post.clone()
    };
    assert_eq!(
        answered(admin.handle_request(&long, &mut node, Tick(5))).status,
        413
    );
    node.publishing = Err(NotPublished::BusFull);
    let answer = answered(admin.handle_request(&post, &mut node, Tick(5)));
    assert_eq!(
        (answer.status, &parsed(&answer)["error"]["code"]),
        (503, &json!("bus_full"))
    );
    assert_eq!(node.published.len(), 1);
}

#[test]
fn a_silent_shard_is_named_after_the_deadline_and_its_last_figures_are_shown() {
    let (mut admin, mut node) = (admin(2, None), FakeNode::new());
    let first = pending(get(&mut admin, &mut node, "/v1/stats"));
    assert_eq!(node.asked.len(), 2);
    admin.handle_reply(CoreId(0), first, stats(3), Tick(10));
    assert_eq!(admin.poll_answer(), None);
    admin.handle_reply(CoreId(1), first, stats(4), Tick(20));
    let (id, answer) = admin.poll_answer().unwrap();
    assert_eq!((id, answer.status), (first, 200));
    assert_eq!(parsed(&answer)["totals"]["connections"], 7);
    assert_eq!(parsed(&answer)["stalled_shards"], json!([]));

    let second = pending(get(&mut admin, &mut node, "/v1/stats"));
    admin.handle_reply(CoreId(0), second, stats(5), Tick(30));
    assert_eq!(admin.next_deadline(), Some(Tick::from_ms(1_000)));
    admin.handle_deadline(Tick(999_999));
    assert_eq!(admin.poll_answer(), None);
    admin.handle_deadline(Tick::from_ms(1_000));
    let (_, answer) = admin.poll_answer().unwrap();
    assert_eq!(parsed(&answer)["totals"]["connections"], 5 + 4);
    assert_eq!(parsed(&answer)["stalled_shards"], json!([1]));
    assert_eq!(parsed(&answer)["shards"][1]["answering"], false);
    assert_eq!(admin.next_deadline(), None);

    // Late is better than never: the next answer knows.
    admin.handle_reply(CoreId(1), second, stats(9), Tick::from_ms(1_001));
    assert_eq!(admin.poll_answer(), None);
    let third = pending(get(&mut admin, &mut node, "/metrics"));
    admin.handle_reply(CoreId(0), third, stats(5), Tick(0));
    admin.handle_deadline(Tick::from_ms(1_000));
    let (_, answer) = admin.poll_answer().unwrap();
    let text = String::from_utf8(answer.body).unwrap();
    assert!(
        text.contains("throng_connections{shard=\"1\"} 9\n"),
        "{text}"
    );
    assert!(text.contains("throng_shard_answering{shard=\"1\"} 0\n"));
    assert!(text.contains("throng_shard_answering{shard=\"0\"} 1\n"));
}

#[test]
fn metrics_speak_open_metrics_to_those_who_ask_for_it() {
    let (mut admin, mut node) = (admin(1, None), FakeNode::new());
    for (accept, content_type, last) in [
        (None, PROMETHEUS_CONTENT_TYPE, None),
        (
            Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"),
            OPEN_METRICS_CONTENT_TYPE,
            Some("# EOF"),
        ),
    ] {
        let request = Request {
            accept: accept.map(str::to_owned),
            ..request("GET", "/metrics")
        };
        let id = pending(admin.handle_request(&request, &mut node, Tick(0)));
        admin.handle_reply(CoreId(0), id, stats(0), Tick(0));
        let (_, answer) = admin.poll_answer().unwrap();
        assert_eq!(answer.content_type, content_type);
        let text = String::from_utf8(answer.body).unwrap();
        assert_eq!(
            text.lines().last().filter(|line| line.starts_with('#')),
            last
        );
    }
}

#[test]
fn rooms_of_several_shards_are_merged_in_order() {
    let (mut admin, mut node) = (admin(2, None), FakeNode::new());
    let id = pending(get(&mut admin, &mut node, "/v1/rooms?prefix=r&limit=2"));
    assert_eq!(
        node.asked[1],
        (
            1,
            id,
            Question::Rooms {
                prefix: "r".into(),
                count_max: 2
            }
        )
    );
    let info = |room: &str, member_count| RoomInfo {
        room: room.into(),
        member_count,
        message_count: 0,
        members: Vec::new(),
    };
    admin.handle_reply(
        CoreId(1),
        id,
        Reply::Rooms(vec![info("r2", 1), info("r3", 1)]),
        Tick(0),
    );
    admin.handle_reply(
        CoreId(0),
        id,
        Reply::Rooms(vec![info("r1", 2), info("r2", 3)]),
        Tick(0),
    );
    let (_, answer) = admin.poll_answer().unwrap();
    let expected = json!({
        "rooms": [{ "room": "r1", "members": 2, "shards": 1 }, { "room": "r2", "members": 4, "shards": 2 }],
        "truncated": true,
        "stalled_shards": [],
    });
    assert_eq!(parsed(&answer), expected);
}

#[test]
fn a_room_shows_members_by_shard_and_is_not_found_only_when_all_shards_say_so() {
    let (mut admin, mut node) = (admin(2, None), FakeNode::new());
    let id = pending(get(&mut admin, &mut node, "/v1/rooms/r?limit=1"));
    let members = vec![ConnectionId::new(CoreId(1), 0, 7)];
    let info = RoomInfo {
        room: "r".into(),
        member_count: 2,
        message_count: 5,
        members,
    };
    admin.handle_reply(CoreId(1), id, Reply::Room(Some(info)), Tick(0));
    admin.handle_reply(CoreId(0), id, Reply::Room(None), Tick(0));
    let (_, answer) = admin.poll_answer().unwrap();
    let expected = json!({
        "node": "n1",
        "room": "r",
        "members": 2,
        "shards": [{ "shard": 1, "members": 2, "messages_delivered": 5 }],
        "connections": ["0100000000000007"],
        "truncated": true,
        "stalled_shards": [],
    });
    assert_eq!(parsed(&answer), expected);

    let id = pending(get(&mut admin, &mut node, "/v1/rooms/r"));
    admin.handle_reply(CoreId(0), id, Reply::Room(None), Tick(0));
    admin.handle_reply(CoreId(1), id, Reply::Room(None), Tick(0));
    assert_eq!(admin.poll_answer().unwrap().1.status, 404);

    let id = pending(get(&mut admin, &mut node, "/v1/rooms/r"));
    admin.handle_reply(CoreId(0), id, Reply::Room(None), Tick(0));
    admin.handle_deadline(Tick::from_ms(1_000));
    let (_, answer) = admin.poll_answer().unwrap();
    assert_eq!(
        (answer.status, &parsed(&answer)["stalled_shards"]),
        (504, &json!([1]))
    );
}

#[test]
fn a_connection_is_asked_of_its_own_shard_only() {
    let (mut admin, mut node) = (admin(2, None), FakeNode::new());
    let id = ConnectionId::new(CoreId(1), 2, 3);
    let exchange = pending(get(&mut admin, &mut node, &format!("/v1/connections/{id}")));
    assert_eq!(node.asked, [(1, exchange, Question::Connection { id })]);
    let info = ConnectionInfo {
        id,
        peer: "127.0.0.1:9".parse().unwrap(),
        room: Some("r".into()),
        user: None,
        state: "open",
        opened_ms_ago: 1,
        heard_ms_ago: 2,
        charged_bytes: 3,
        queued_bytes: 4,
        missed_untold: 5,
        closing: None,
    };
    admin.handle_reply(
        CoreId(1),
        exchange,
        Reply::Connection(Some(Box::new(info))),
        Tick(0),
    );
    let (_, answer) = admin.poll_answer().unwrap();
    assert_eq!(parsed(&answer)["id"], "0100000200000003");
    assert_eq!(parsed(&answer)["node"], "n1");
    assert_eq!(parsed(&answer)["room"], "r");

    let delete = request("DELETE", &format!("/v1/connections/{id}"));
    for (found, status) in [(true, 200), (false, 404)] {
        let exchange = pending(admin.handle_request(&delete, &mut node, Tick(0)));
        admin.handle_reply(CoreId(1), exchange, Reply::Disconnected(found), Tick(0));
        assert_eq!(admin.poll_answer().unwrap().1.status, status);
    }
    let nowhere = ConnectionId::new(CoreId(2), 0, 0);
    assert_eq!(
        answered(get(
            &mut admin,
            &mut node,
            &format!("/v1/connections/{nowhere}")
        ))
        .status,
        404
    );
}

#[test]
fn an_id_of_another_node_is_not_taken_for_one_of_this() {
    let (mut admin, mut node) = (admin(2, None), FakeNode::new());
    let id = ConnectionId::new(CoreId(1), 2, 3);
    for method in ["GET", "DELETE"] {
        let elsewhere = request(method, &format!("/v1/connections/{id}?node=n2"));
        let answer = answered(admin.handle_request(&elsewhere, &mut node, Tick(0)));
        assert_eq!(answer.status, 409);
        let error = &parsed(&answer)["error"];
        assert_eq!(error["code"], "other_node");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("this is n1") && message.contains("of n2"));
        assert!(node.asked.is_empty(), "no shard hears of it");
        let here = request(method, &format!("/v1/connections/{id}?node=n1"));
        pending(admin.handle_request(&here, &mut node, Tick(0)));
        assert_eq!(node.asked.drain(..).count(), 1);
    }
}

fn addressed(host: Option<&str>, has_origin: bool) -> Request {
    Request {
        host: host.map(str::to_owned),
        has_origin,
        ..request("POST", "/v1/broadcast")
    }
}

#[test]
fn without_a_key_pages_of_a_browser_are_refused() {
    let (mut admin, mut node) = (admin(1, None), FakeNode::new());
    let mut ask = |request: Request| answered(admin.handle_request(&request, &mut node, Tick(0)));
    for host in [
        None,
        Some("127.0.0.1:8081"),
        Some("127.0.0.1"),
        Some("[::1]:8081"),
        Some("[::1]"),
        Some("LocalHost:8081"),
        Some("localhost"),
    ] {
        assert_eq!(ask(addressed(host, false)).status, 202, "{host:?}");
        let answer = ask(addressed(host, true));
        assert_eq!(answer.status, 403, "{host:?}");
        let error = &parsed(&answer)["error"];
        assert_eq!(error["code"], "browser_refused");
        assert!(error["message"].as_str().unwrap().contains("Origin"));
    }
    for host in [
        "evil.example:8081",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example:8081",
        "127.0.0.1, evil.example",
        "localhost, evil.example",
        "localhost:8081@evil.example",
        "user@localhost",
        "[::1].evil.example",
        "[evil.example]:8081",
        "::1",
        "2130706433",
        "",
    ] {
        let answer = ask(addressed(Some(host), false));
        assert_eq!(answer.status, 403, "{host}");
        let message = parsed(&answer)["error"]["message"].to_string();
        assert!(message.contains("Host is a name") && message.contains("THRONG_ADMIN_KEY"));
    }
    for path in ["/livez", "/readyz"] {
        let probe = Request {
            host: Some("throng.example".into()),
            has_origin: true,
            ..request("GET", path)
        };
        assert_eq!(ask(probe).status, 200);
    }
    assert_eq!(node.published.len(), 7);
}

#[test]
fn with_a_key_it_is_the_key_that_counts() {
    let (mut admin, mut node) = (admin(1, Some("secret")), FakeNode::new());
    let mut asked = Request {
        bearer: Some("secret".into()),
        ..addressed(Some("throng.example"), true)
    };
    let answer = answered(admin.handle_request(&asked, &mut node, Tick(0)));
    assert_eq!(answer.status, 202);
    asked.bearer = None;
    let answer = answered(admin.handle_request(&asked, &mut node, Tick(0)));
    assert_eq!(answer.status, 401);
}

#[test]
fn a_shard_that_owes_too_much_is_not_waited_for() {
    let (mut admin, mut node) = (admin(1, None), FakeNode::new());
    node.refuses = vec![0];
    let id = pending(get(
        &mut admin,
        &mut node,
        "/v1/connections/0000000000000000",
    ));
    let (answered, answer) = admin.poll_answer().unwrap();
    assert_eq!((answered, answer.status), (id, 504));
}

#[test]
fn what_waits_for_shards_is_bounded_and_the_rest_goes_on() {
    let (mut admin, mut node) = (admin(1, None), FakeNode::new());
    for _ in 0..ADMIN_EXCHANGE_COUNT_MAX {
        pending(get(&mut admin, &mut node, "/metrics"));
    }
    let answer = answered(get(&mut admin, &mut node, "/metrics"));
    assert_eq!(answer.status, 503);
    assert_eq!(answer.headers, [("Retry-After", "1".to_owned())]);
    assert_eq!(answered(get(&mut admin, &mut node, "/readyz")).status, 200);
    admin.handle_deadline(Tick::from_ms(1_000));
    let answers = std::iter::from_fn(|| admin.poll_answer()).count();
    assert_eq!(answers, ADMIN_EXCHANGE_COUNT_MAX);
    pending(get(&mut admin, &mut node, "/metrics"));
}

#[test]
fn errors_say_what_to_do() {
    let (mut admin, mut node) = (admin(1, None), FakeNode::new());
    let answer = answered(get(&mut admin, &mut node, "/nothing"));
    assert_eq!(
        (answer.status, answer.content_type),
        (404, "application/json")
    );
    let error = &parsed(&answer)["error"];
    assert_eq!(error["code"], "not_found");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("/v1/rooms/{room}/publish")
    );
}

fn online(users: &str) -> Request {
    Request {
        body: users.as_bytes().to_vec(),
        ..request("POST", "/v1/users/online?nodes=1")
    }
}

#[test]
fn the_registry_is_asked_for_users_where_there_is_one() {
    let (mut admin, mut node) = (admin(2, None), FakeNode::new());
    node.cluster = Some(Vec::new());
    let number = pending(admin.handle_request(&online(r#"{"users":["ann"]}"#), &mut node, Tick(0)));
    assert!(node.asked.is_empty(), "no shard");
    let asked = ClusterQuestion::Online {
        users: vec!["ann".into()],
        with_nodes: true,
    };
    assert_eq!(node.cluster, Some(vec![(number, asked)]));
    let ann = crate::bus::OnlineUser {
        user: "ann".into(),
        connection_count: 2,
        nodes: vec!["b".into()],
    };
    admin.handle_cluster(number, ClusterReply::Online(vec![ann]), Tick(1));
    let (_, answer) = admin.poll_answer().unwrap();
    let expected = json!([{ "user": "ann", "online": true, "connections": 2, "nodes": ["b"] }]);
    assert_eq!(parsed(&answer)["users"], expected);
    assert_eq!(parsed(&answer)["scope"], "cluster");
}

#[test]
fn a_registry_that_is_away_or_silent_is_no_offline() {
    let (mut admin, mut node) = (admin(2, None), FakeNode::new());
    node.cluster = Some(Vec::new());
    for target in ["/v1/users/ann", "/v1/users/eve"] {
        pending(get(&mut admin, &mut node, target));
    }
    let away = ClusterReply::Away("the link was lost".into());
    admin.handle_cluster(1, away, Tick(1));
    assert_eq!(admin.next_deadline(), Some(Tick::from_ms(1_000)));
    admin.handle_deadline(Tick::from_ms(1_000));
    for words in ["the link was lost", "does not answer in time"] {
        let (_, answer) = admin.poll_answer().unwrap();
        assert_eq!(answer.status, 503);
        let error = &parsed(&answer)["error"];
        assert_eq!(error["code"], "backplane_lost");
        assert!(error["message"].as_str().unwrap().contains(words));
    }
}

#[test]
fn without_a_registry_the_shards_are_asked_and_their_answers_added() {
    let (mut admin, mut node) = (admin(2, None), FakeNode::new());
    let number = pending(admin.handle_request(&online(r#"{"users":["ann"]}"#), &mut node, Tick(0)));
    assert_eq!(node.asked.len(), 2);
    for (shard, connection_count) in [(0, 1), (1, 2)] {
        let info = crate::bus::UserInfo {
            user: "ann".into(),
            connection_count,
            connections: Vec::new(),
        };
        admin.handle_reply(CoreId(shard), number, Reply::Users(vec![info]), Tick(1));
    }
    let (_, answer) = admin.poll_answer().unwrap();
    let expected = json!([{ "user": "ann", "online": true, "connections": 3, "nodes": ["n1"] }]);
    assert_eq!(parsed(&answer)["users"], expected);
    assert_eq!(parsed(&answer)["scope"], "node");
}

#[test]
fn the_nodes_state_is_put_together_every_interval_and_shown() {
    let (mut admin, mut node) = (admin(1, None), FakeNode::new());
    admin.sample(&mut node, Tick(0));
    assert_eq!(admin.poll_state(), None, "the shard has not been heard");
    let (_, number, _) = node.asked[0];
    admin.handle_reply(CoreId(0), number, stats(5), Tick(1));
    let (state, connection_count) = admin.poll_state().unwrap();
    assert_eq!(connection_count, 5);
    let state: Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state["incarnation"], "0000000000000007");
    assert_eq!(admin.poll_answer(), None, "nobody has asked for it");
    assert_eq!(admin.next_deadline(), Some(Tick::from_ms(2_000)));
    admin.sample(&mut node, Tick::from_ms(1_999));
    assert_eq!(node.asked.len(), 1, "it is not time");
    let answer = answered(get(&mut admin, &mut node, "/v1/cluster"));
    assert_eq!(parsed(&answer)["nodes"][0]["connections"], 5);
    assert_eq!(parsed(&answer)["redis"], false);
    node.health.phase = Phase::Closing;
    admin.sample(&mut node, Tick::from_ms(2_000));
    admin.handle_deadline(Tick::from_ms(3_000));
    let (state, _) = admin
        .poll_state()
        .expect("without the shard that is silent");
    assert!(state.contains("draining"));
}

#[test]
fn who_asks_before_the_node_knows_its_state_waits_for_it() {
    for has_redis in [false, true] {
        let (mut admin, mut node) = (admin(1, None), FakeNode::new());
        admin.options.has_redis = has_redis;
        let Outcome::Pending(early) = get(&mut admin, &mut node, "/v1/cluster") else {
            panic!("nobody knows yet")
        };
        admin.sample(&mut node, Tick(0));
        let Outcome::Pending(late) = get(&mut admin, &mut node, "/v1/cluster") else {
            panic!("nobody knows yet")
        };
        assert_eq!(admin.poll_answer(), None);
        let (_, number, _) = node.asked[0];
        admin.handle_reply(CoreId(0), number, stats(5), Tick(1));
        for request in [early, late] {
            let (answered, answer) = admin.poll_answer().expect("now it is known");
            assert_eq!(answered, request);
            assert_eq!(answer.status, if has_redis { 503 } else { 200 });
            assert_eq!(parsed(&answer)["nodes"][0]["id"], "n1");
            assert_eq!(parsed(&answer)["nodes"][0]["connections"], 5);
        }
    }
    // A shard that says nothing keeps nobody waiting for ever.
    let (mut admin, mut node) = (admin(1, None), FakeNode::new());
    get(&mut admin, &mut node, "/v1/cluster");
    admin.handle_deadline(Tick::from_ms(60_000));
    let (_, answer) = admin.poll_answer().unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(parsed(&answer)["error"]["code"], "starting");
}

#[test]
fn the_other_nodes_are_looked_at_every_fifth_interval_until_the_node_stops() {
    let (mut admin, mut node) = (admin(1, None), FakeNode::new());
    admin.options.has_redis = true;
    node.cluster = Some(Vec::new());
    let looked = |node: &FakeNode| node.cluster.as_ref().map_or(0, Vec::len);
    let sample = |admin: &mut Admin, node: &mut FakeNode, interval: u64| {
        admin.sample(node, Tick::from_ms(2_000 * interval));
        let (_, number, _) = *node.asked.last().unwrap();
        admin.handle_reply(CoreId(0), number, stats(5), Tick::from_ms(2_000 * interval));
        admin.poll_state().unwrap()
    };
    let (state, _) = sample(&mut admin, &mut node, 0);
    assert_eq!(looked(&node), 0, "it does not know itself yet");
    sample(&mut admin, &mut node, 1);
    assert_eq!(looked(&node), 1);
    let (number, question) = node.cluster.as_mut().unwrap().remove(0);
    assert_eq!(question, ClusterQuestion::Nodes);
    let other = crate::bus::NodeSeen {
        node: "n2".into(),
        incarnation: 8,
        age_ms: 0,
        state: Some(state.replace(r#""layout":"none""#, r#""layout":"one server""#)),
    };
    let nodes = ClusterReply::Nodes {
        nodes: vec![other],
        user_count: 0,
    };
    admin.handle_cluster(number, nodes, Tick::from_ms(2_000));
    let misfits = admin.fit.misfits();
    assert_eq!((misfits.layout, misfits.mode), (1, 0));
    assert_eq!(admin.poll_answer(), None, "nobody has asked for it");
    for interval in 2..6 {
        sample(&mut admin, &mut node, interval);
    }
    assert_eq!(looked(&node), 0);
    sample(&mut admin, &mut node, 6);
    let (number, _) = node.cluster.as_mut().unwrap().remove(0);
    let away = ClusterReply::Away("the link was lost".into());
    admin.handle_cluster(number, away, Tick::from_ms(12_000));
    assert_eq!(admin.fit.misfits(), misfits, "nothing else was seen");
    node.health.phase = Phase::Closing;
    for interval in 7..20 {
        sample(&mut admin, &mut node, interval);
    }
    assert_eq!(looked(&node), 0, "it is about to go");
}
