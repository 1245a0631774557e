//! The admin core's state machine: requests and shards' answers in, answers out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use super::exchange::{Exchange, Purpose, connection_not_found};
use super::route::{Route, route};
use super::{Answer, Request, json as figures_json, message};
use crate::bus::{Batch, ConnectionId, CoreId, Question, Reply, RoomName};
use crate::drain::Phase;
use crate::limits::ADMIN_EXCHANGE_COUNT_MAX;
use crate::metrics::exposition::{
    OPEN_METRICS_CONTENT_TYPE, PROMETHEUS_CONTENT_TYPE, open_metrics_text, prometheus_text,
};
use crate::metrics::{
    BackplaneSnapshot, NodeSnapshot, ProcessSnapshot, ShardLanes, ShardReport, ShardSnapshot,
};
use crate::time::Tick;

/// What the admin API may be told.
#[derive(Clone)]
pub struct Options {
    /// The node's name.
    pub node_id: String,
    /// The program's version.
    pub version: &'static str,
    /// Shards: their ids are 0 to `shard_count` − 1.
    pub shard_count: u8,
    /// Guards `/v1`.
    pub key: Option<String>,
    /// Payload bytes of a message.
    pub message_bytes_max: u32,
    /// Connections that the node takes; shown only.
    pub connection_count_max: u64,
    /// Bytes that all shards together may charge; shown only.
    pub node_bytes_max: u64,
    /// How long shards may take to answer.
    pub answer_timeout_ms: u32,
    /// A lane that waits longer than this for room makes the node not ready.
    pub bus_stall_ms_max: u32,
}

/// The node around the admin API, on the same core.
pub trait Node {
    /// Asks a shard; its answer comes to [`Admin::handle_reply`]. False: it owes too many answers already.
    fn ask(&mut self, to: CoreId, request: u64, question: Question) -> bool;
    /// Publishes to everybody in `room`. False: the bus is full, and nothing was published.
    fn publish(&mut self, room: &RoomName, batch: &Arc<Batch>) -> bool;
    /// What readiness depends on. Cheap.
    fn health(&mut self, now: Tick) -> Health;
    /// The node's own figures; reads `/proc`.
    fn figures(&mut self, now: Tick) -> Figures;
}

/// What readiness depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The phase of stopping; any but `Running` means not ready.
    pub phase: Phase,
    /// Shards that do not answer probes.
    pub stalled_shards: Vec<CoreId>,
    /// How long the oldest waiting lane has waited, microseconds; 0 when none waits.
    pub bus_stalled_us: u64,
}

/// The node's own figures.
#[derive(Debug, Clone)]
pub struct Figures {
    /// The phase of stopping.
    pub phase: Phase,
    /// The backplane core's.
    pub backplane: BackplaneSnapshot,
    /// By shard.
    pub lanes: Vec<ShardLanes>,
    /// The process's and the kernel's.
    pub process: ProcessSnapshot,
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer.
    Answer(Answer),
    /// The answer comes from [`Admin::poll_answer`] with this number, within the answer timeout.
    Pending(u64),
}

/// The admin API. After each input, drain [`Self::poll_answer`].
pub struct Admin {
    options: Options,
    /// Oldest first, and so by deadline.
    exchanges: VecDeque<Exchange>,
    exchange_next: u64,
    ready: VecDeque<(u64, Answer)>,
    /// By shard, what it told last: counters of a shard that is silent for once must not fall back to zero.
    last: Vec<ShardReport>,
    answers: BTreeMap<u16, u64>,
}

impl Admin {
    /// An admin API that has been asked nothing yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let last = (0..options.shard_count)
            .map(|shard| ShardReport {
                snapshot: ShardSnapshot {
                    shard,
                    ..ShardSnapshot::default()
                },
                ..ShardReport::default()
            })
            .collect();
        Self {
            options,
            exchanges: VecDeque::new(),
            exchange_next: 1,
            ready: VecDeque::new(),
            last,
            answers: BTreeMap::new(),
        }
    }

    /// Answers a request, or asks the shards first.
    pub fn handle_request(
        &mut self,
        request: &Request,
        node: &mut impl Node,
        now: Tick,
    ) -> Outcome {
        match self.request(request, node, now) {
            Ok(exchange) => {
                self.finish_exchanges(now);
                Outcome::Pending(exchange)
            }
            Err(answer) => {
                self.count(&answer);
                Outcome::Answer(answer)
            }
        }
    }

    /// Takes a shard's answer in.
    pub fn handle_reply(&mut self, from: CoreId, request: u64, mut reply: Reply, now: Tick) {
        if let Reply::Stats(snapshot) = &mut reply
            && let Some(last) = self.last.get_mut(usize::from(from.0))
        {
            last.snapshot = std::mem::take(snapshot);
            last.snapshot.shard = from.0;
        }
        if let Some(exchange) = self
            .exchanges
            .iter_mut()
            .find(|exchange| exchange.id == request)
        {
            exchange.handle_reply(from, reply);
        }
        self.finish_exchanges(now);
    }

    /// Answers without the shards that have not been heard in time.
    pub fn handle_deadline(&mut self, now: Tick) {
        self.finish_exchanges(now);
    }

    /// When [`Self::handle_deadline`] is due next; `None` while nothing waits.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        self.exchanges.front().map(|exchange| exchange.deadline)
    }

    /// The next answer to a request that was pending.
    pub fn poll_answer(&mut self) -> Option<(u64, Answer)> {
        self.ready.pop_front()
    }

    /// The number of the exchange that was begun, or the answer.
    fn request(
        &mut self,
        request: &Request,
        node: &mut impl Node,
        now: Tick,
    ) -> Result<u64, Answer> {
        self.authorize(request)?;
        let purpose = match route(&request.method, &request.path, &request.query)? {
            Route::Live => return Err(Answer::json(200, &json!({ "live": true }))),
            Route::Ready => return Err(self.readiness(&node.health(now))),
            Route::Publish { room, kind } => {
                let content_type = request.content_type.as_deref();
                let batch = message::batch(
                    kind,
                    content_type,
                    &request.body,
                    self.options.message_bytes_max,
                    now,
                )?;
                return Err(if node.publish(&room, &batch) {
                    Answer::json(202, &json!({ "accepted": true }))
                } else {
                    Answer::busy(
                        "bus_full",
                        "the bus to a shard of this room is full: try again",
                    )
                });
            }
            // Before the figures are taken: a refusal costs nothing.
            _ if self.exchanges.len() >= ADMIN_EXCHANGE_COUNT_MAX => {
                return Err(Answer::busy(
                    "too_many_requests",
                    "too many requests wait for shards: try again",
                ));
            }
            Route::Metrics => {
                let accept = request.accept.as_deref().unwrap_or("");
                let open_metrics = accept.contains("application/openmetrics-text");
                let purpose = Purpose::Metrics {
                    figures: Box::new(node.figures(now)),
                    open_metrics,
                };
                (purpose, Question::Stats, None)
            }
            Route::Stats => (
                Purpose::Stats {
                    figures: Box::new(node.figures(now)),
                },
                Question::Stats,
                None,
            ),
            Route::Rooms { prefix, count_max } => {
                let purpose = Purpose::Rooms {
                    count_max,
                    rooms: BTreeMap::new(),
                    truncated: false,
                };
                (purpose, Question::Rooms { prefix, count_max }, None)
            }
            Route::Room {
                room,
                member_count_max,
            } => {
                let purpose = Purpose::Room {
                    room: room.clone(),
                    member_count_max,
                    shards: BTreeMap::new(),
                };
                (
                    purpose,
                    Question::Room {
                        room,
                        member_count_max,
                    },
                    None,
                )
            }
            Route::Connection { id } => (
                Purpose::Connection { info: None },
                Question::Connection { id },
                Some(self.owner(id)?),
            ),
            Route::Disconnect { id } => (
                Purpose::Disconnect { found: false },
                Question::Disconnect { id },
                Some(self.owner(id)?),
            ),
        };
        let (purpose, question, only) = purpose;
        Ok(self.begin(purpose, &question, only, node, now))
    }

    fn authorize(&self, request: &Request) -> Result<(), Answer> {
        let guarded = request.path == "/v1" || request.path.starts_with("/v1/");
        match (&self.options.key, &request.bearer) {
            (Some(key), Some(given))
                if guarded && !bool::from(key.as_bytes().ct_eq(given.as_bytes())) =>
            {
                Err(Answer::unauthorized(true))
            }
            (Some(_), None) if guarded => Err(Answer::unauthorized(false)),
            _ => Ok(()),
        }
    }

    fn readiness(&self, health: &Health) -> Answer {
        let mut reasons: Vec<Value> = Vec::new();
        if health.phase != Phase::Running {
            reasons.push(json!({ "code": "draining", "message": "the node is stopping", "phase": health.phase.label() }));
        }
        if !health.stalled_shards.is_empty() {
            let shards: Vec<u8> = health.stalled_shards.iter().map(|shard| shard.0).collect();
            reasons.push(json!({ "code": "shard_stalled", "message": "shards do not answer", "shards": shards }));
        }
        if health.bus_stalled_us > u64::from(self.options.bus_stall_ms_max) * 1_000 {
            reasons.push(json!({
                "code": "bus_overfull",
                "message": "deliveries wait for room in the bus",
                "waited_ms": health.bus_stalled_us / 1_000,
            }));
        }
        let ready = reasons.is_empty();
        Answer::json(
            if ready { 200 } else { 503 },
            &json!({ "ready": ready, "reasons": reasons }),
        )
    }

    fn owner(&self, id: ConnectionId) -> Result<CoreId, Answer> {
        if id.core().0 < self.options.shard_count {
            Ok(id.core())
        } else {
            Err(connection_not_found())
        }
    }

    fn begin(
        &mut self,
        purpose: Purpose,
        question: &Question,
        only: Option<CoreId>,
        node: &mut impl Node,
        now: Tick,
    ) -> u64 {
        let id = self.exchange_next;
        self.exchange_next += 1;
        let all = (0..self.options.shard_count).map(CoreId);
        let (waiting, unasked) = all
            .filter(|shard| only.is_none_or(|only| only == *shard))
            .partition(|shard| node.ask(*shard, id, question.clone()));
        let deadline = now.after(Duration::from_millis(u64::from(
            self.options.answer_timeout_ms,
        )));
        self.exchanges.push_back(Exchange {
            id,
            deadline,
            waiting,
            unasked,
            purpose,
        });
        id
    }

    /// Moves what is complete, or due, to the answers.
    fn finish_exchanges(&mut self, now: Tick) {
        let mut index = 0;
        while let Some(exchange) = self.exchanges.get(index) {
            if !exchange.waiting.is_empty() && now < exchange.deadline {
                index += 1;
            } else if let Some(exchange) = self.exchanges.remove(index) {
                let id = exchange.id;
                let answer = exchange
                    .answer()
                    .unwrap_or_else(|| self.figures_answer(exchange, now));
                self.count(&answer);
                self.ready.push_back((id, answer));
            }
        }
    }

    /// What `/metrics` and `/v1/stats` show: of a silent shard, what it told last.
    fn figures_answer(&self, exchange: Exchange, now: Tick) -> Answer {
        let stalled = exchange.stalled_shards();
        match exchange.purpose {
            Purpose::Metrics {
                figures,
                open_metrics: true,
            } => Answer::text(
                OPEN_METRICS_CONTENT_TYPE,
                open_metrics_text(self.node(*figures, &stalled)),
            ),
            Purpose::Metrics {
                figures,
                open_metrics: false,
            } => Answer::text(
                PROMETHEUS_CONTENT_TYPE,
                prometheus_text(self.node(*figures, &stalled)),
            ),
            Purpose::Stats { figures } => {
                let phase = figures.phase.label();
                Answer::json(
                    200,
                    &figures_json::stats(&self.node(*figures, &stalled), phase, &stalled, now),
                )
            }
            Purpose::Rooms { .. }
            | Purpose::Room { .. }
            | Purpose::Connection { .. }
            | Purpose::Disconnect { .. } => {
                unreachable!("these exchanges have an answer of their own")
            }
        }
    }

    fn node(&self, figures: Figures, stalled: &[u8]) -> NodeSnapshot {
        let mut shards = self.last.clone();
        for (index, shard) in shards.iter_mut().enumerate() {
            shard.answering = !stalled.contains(&shard.snapshot.shard);
            shard.lanes = figures.lanes.get(index).copied().unwrap_or_default();
        }
        NodeSnapshot {
            node_id: self.options.node_id.clone(),
            version: self.options.version,
            connection_count_max: self.options.connection_count_max,
            node_bytes_max: self.options.node_bytes_max,
            shards,
            backplane: figures.backplane,
            process: figures.process,
            admin_answers: self.answers.clone(),
            admin_exchanges: self.exchanges.len() as u64,
        }
    }

    fn count(&mut self, answer: &Answer) {
        *self.answers.entry(answer.status).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{ConnectionInfo, MessageKind, RoomInfo};

    /// A node that writes down what it is asked.
    struct FakeNode {
        asked: Vec<(u8, u64, Question)>,
        refuses: Vec<u8>,
        published: Vec<(RoomName, Arc<Batch>)>,
        bus_full: bool,
        health: Health,
    }

    impl FakeNode {
        fn new() -> Self {
            let health = Health {
                phase: Phase::Running,
                stalled_shards: Vec::new(),
                bus_stalled_us: 0,
            };
            Self {
                asked: Vec::new(),
                refuses: Vec::new(),
                published: Vec::new(),
                bus_full: false,
                health,
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
        fn publish(&mut self, room: &RoomName, batch: &Arc<Batch>) -> bool {
            if !self.bus_full {
                self.published.push((room.clone(), Arc::clone(batch)));
            }
            !self.bus_full
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
            version: "0",
            shard_count,
            key: key.map(str::to_owned),
            message_bytes_max: 10,
            connection_count_max: 100,
            node_bytes_max: 1_000,
            answer_timeout_ms: 1_000,
            bus_stall_ms_max: 1_000,
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
        assert_eq!(codes, ["draining", "shard_stalled", "bus_overfull"]);
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
        node.bus_full = true;
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
            state: "open",
            opened_ms_ago: 1,
            heard_ms_ago: 2,
            charged_bytes: 3,
            queued_bytes: 4,
            missed_untold: 5,
            closing: None,
        };
        admin.handle_reply(CoreId(1), exchange, Reply::Connection(Some(info)), Tick(0));
        let (_, answer) = admin.poll_answer().unwrap();
        assert_eq!(parsed(&answer)["id"], "0100000200000003");
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
}
