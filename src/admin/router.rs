//! The admin core's state machine: requests and shards' answers in, answers out.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use subtle::ConstantTimeEq;

use super::cluster::{self, Meter};
use super::exchange::{Cluster, Exchange, Purpose, connection_not_found};
use super::fit::{Fit, News};
use super::route::{Route, route};
use super::users::{self, Tally};
use super::{Answer, Request, json as figures_json, message};
use crate::bus::{
    Batch, ClusterQuestion, ClusterReply, ConnectionId, CoreId, Question, Reply, RoomName,
};
use crate::drain::Phase;
use crate::limits::ADMIN_EXCHANGE_COUNT_MAX;
use crate::metrics::exposition::{
    OPEN_METRICS_CONTENT_TYPE, PROMETHEUS_CONTENT_TYPE, open_metrics_text, prometheus_text,
};
use crate::metrics::{
    BackplaneSnapshot, NodeSnapshot, ProcessSnapshot, ShardLanes, ShardReport, ShardSnapshot,
};
use crate::time::Tick;

/// The other nodes are looked at with every so many of this node's own samples.
const FIT_INTERVALS: u64 = 5;

/// What the admin API may be told.
#[derive(Clone)]
pub struct Options {
    /// The node's name.
    pub node_id: String,
    /// Tells this process from others of the same node.
    pub incarnation: u64,
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
    /// Whether there is a Redis by the settings.
    pub has_redis: bool,
    /// Where rooms are looked for, in words: nodes whose words differ do not hear each other.
    pub layout: String,
    /// How often the node's state is put together.
    pub cluster_interval_ms: u32,
}

/// The node around the admin API, on the same core.
pub trait Node {
    /// Asks a shard; its answer comes to [`Admin::handle_reply`]. False: it owes too many answers already.
    fn ask(&mut self, to: CoreId, request: u64, question: Question) -> bool;
    /// Whether the registry knows who is connected where; else this node's shards know all that is known.
    fn keeps_users(&self) -> bool;
    /// Asks the registry; its answer comes to [`Admin::handle_cluster`]. False: there is none.
    fn ask_cluster(&mut self, request: u64, question: ClusterQuestion, now: Tick) -> bool;
    /// Publishes to everybody in `room`.
    ///
    /// # Errors
    /// Why it was not published, or not to everybody.
    fn publish(
        &mut self,
        room: &RoomName,
        batch: &Arc<Batch>,
        now: Tick,
    ) -> Result<(), NotPublished>;
    /// What readiness depends on. Cheap.
    fn health(&mut self, now: Tick) -> Health;
    /// The node's own figures; reads `/proc`.
    fn figures(&mut self, now: Tick) -> Figures;
}

/// Why a message of the API was not published to everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPublished {
    /// The bus is full, and nothing was published.
    BusFull,
    /// Redis cannot be reached: other nodes will not see it.
    BackplaneLost {
        /// Members on this node got it.
        local: bool,
    },
}

/// A link to Redis that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkTrouble {
    /// The server.
    pub server: String,
    /// Which.
    pub link: &'static str,
    /// What it does.
    pub state: &'static str,
    /// For how long, microseconds.
    pub since_us: u64,
    /// Why, in words.
    pub reason: String,
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
    /// Links to Redis that are not proven to carry messages.
    pub link_troubles: Vec<LinkTrouble>,
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
    /// Requests answered, by status.
    answers: BTreeMap<u16, u64>,
    meter: Meter,
    /// What this node has last said of itself.
    state: Map<String, Value>,
    state_news: Option<(String, u64)>,
    /// When [`Self::sample`] is due again; `None`: it has not been called yet.
    state_due: Option<Tick>,
    fit: Fit,
    /// The sample with which the other nodes are looked at next.
    fit_due: Tick,
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
            meter: Meter::default(),
            state: Map::new(),
            state_news: None,
            state_due: None,
            fit: Fit::default(),
            fit_due: Tick(0),
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

    /// Takes the registry's answer in.
    pub fn handle_cluster(&mut self, request: u64, reply: ClusterReply, now: Tick) {
        let exchange = self.exchanges.iter_mut().find(|one| one.id == request);
        if let Some(exchange) = exchange {
            exchange.cluster = Cluster::Answered(reply);
        }
        self.finish_exchanges(now);
    }

    /// Puts the node's state together anew, when it is time: [`Self::poll_state`] has it once the shards have been heard.
    pub fn sample(&mut self, node: &mut impl Node, now: Tick) {
        if self.state_due.is_some_and(|due| now < due) {
            return;
        }
        let interval = u64::from(self.options.cluster_interval_ms);
        self.state_due = Some(now.after(Duration::from_millis(interval)));
        let is_open = |exchange: &Exchange| matches!(exchange.purpose, Purpose::State { .. });
        if self.exchanges.iter().any(is_open) {
            return;
        }
        self.look_around(interval, node, now);
        let purpose = Purpose::State {
            figures: Box::new(node.figures(now)),
            health: Box::new(node.health(now)),
        };
        self.begin(purpose, &Question::Stats, None, node, now);
        self.finish_exchanges(now);
    }

    /// Asks how the other nodes are, when it is time, for [`Fit`]. Not before this one knows what it is itself, and not when
    /// it stops.
    fn look_around(&mut self, interval_ms: u64, node: &mut impl Node, now: Tick) {
        let is_open = |exchange: &Exchange| matches!(exchange.purpose, Purpose::Fit);
        let is_due = self.options.has_redis && !self.state.is_empty() && self.fit_due <= now;
        if !is_due || self.state["state"] == "draining" || self.exchanges.iter().any(is_open) {
            return;
        }
        self.fit_due = now.after(Duration::from_millis(FIT_INTERVALS * interval_ms));
        self.begin_cluster(Purpose::Fit, ClusterQuestion::Nodes, node, now);
    }

    /// What this node tells the others of itself: JSON, and how many connections it has.
    pub fn poll_state(&mut self) -> Option<(String, u64)> {
        self.state_news.take()
    }

    /// Answers without the shards that have not been heard in time.
    pub fn handle_deadline(&mut self, now: Tick) {
        self.finish_exchanges(now);
    }

    /// When [`Self::handle_deadline`] or [`Self::sample`] is due next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        let oldest = self.exchanges.front().map(|exchange| exchange.deadline);
        oldest.into_iter().chain(self.state_due).min()
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
                return Err(publish(node, &room, &batch, now));
            }
            Route::DisconnectUser {
                room,
                code,
                reason,
                reconnect,
            } => {
                let batch = message::close_batch(code, &reason, reconnect, now);
                return Err(publish(node, &room, &batch, now));
            }
            Route::Connection { node: Some(of), .. } | Route::Disconnect { node: Some(of), .. }
                if of != self.options.node_id =>
            {
                return Err(other_node(&self.options.node_id, &of));
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
            Route::Online { with_nodes } => {
                let users = users::asked(&request.body)?;
                let tally = Tally::new(&users);
                let purpose = Purpose::Online { with_nodes, tally };
                if node.keeps_users() {
                    let question = ClusterQuestion::Online { users, with_nodes };
                    return Ok(self.begin_cluster(purpose, question, node, now));
                }
                let question = Question::Users {
                    users,
                    connection_count_max: 0,
                };
                (purpose, question, None)
            }
            Route::User {
                user,
                connection_count_max,
            } => {
                let tally = Tally::new(std::slice::from_ref(&user));
                let purpose = Purpose::User {
                    user: user.clone(),
                    tally,
                };
                if node.keeps_users() {
                    let question = ClusterQuestion::User {
                        user,
                        connection_count_max,
                    };
                    return Ok(self.begin_cluster(purpose, question, node, now));
                }
                let question = Question::Users {
                    users: vec![user],
                    connection_count_max,
                };
                (purpose, question, None)
            }
            // A node that has only just started does not know how it is; then this waits for it.
            Route::Cluster if self.options.has_redis || self.state.is_empty() => {
                let question = ClusterQuestion::Nodes;
                return Ok(self.begin_cluster(Purpose::Cluster, question, node, now));
            }
            Route::Cluster => return Err(cluster::alone(&self.state, &self.options, None)),
            Route::Connection { id, .. } => (
                Purpose::Connection { info: None },
                Question::Connection { id },
                Some(self.owner(id)?),
            ),
            Route::Disconnect { id, .. } => (
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
            (None, _) if guarded => not_from_page(request),
            _ => Ok(()),
        }
    }

    /// Why the node is not ready.
    fn reasons(&self, health: &Health) -> Vec<Value> {
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
        for trouble in &health.link_troubles {
            reasons.push(json!({
                "code": "redis_link",
                "message": format!("the {} link to Redis at {} carries nothing: {}", trouble.link, trouble.server, trouble.reason),
                "server": trouble.server,
                "link": trouble.link,
                "state": trouble.state,
                "since_ms": trouble.since_us / 1_000,
            }));
        }
        reasons
    }

    fn readiness(&self, health: &Health) -> Answer {
        let reasons = self.reasons(health);
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
        let deadline = self.deadline(now);
        self.exchanges.push_back(Exchange {
            id,
            deadline,
            waiting,
            unasked,
            cluster: Cluster::Unasked,
            purpose,
        });
        id
    }

    /// The same for a question to the registry.
    fn begin_cluster(
        &mut self,
        purpose: Purpose,
        question: ClusterQuestion,
        node: &mut impl Node,
        now: Tick,
    ) -> u64 {
        let id = self.exchange_next;
        self.exchange_next += 1;
        let cluster = match node.ask_cluster(id, question, now) {
            true => Cluster::Asked,
            false => {
                let reason = "there is no registry".to_owned();
                Cluster::Answered(ClusterReply::Away(reason))
            }
        };
        let deadline = self.deadline(now);
        self.exchanges.push_back(Exchange {
            id,
            deadline,
            waiting: Vec::new(),
            unasked: Vec::new(),
            cluster,
            purpose,
        });
        id
    }

    fn deadline(&self, now: Tick) -> Tick {
        let timeout = u64::from(self.options.answer_timeout_ms);
        now.after(Duration::from_millis(timeout))
    }

    /// Moves what is complete, or due, to the answers.
    fn finish_exchanges(&mut self, now: Tick) {
        let mut index = 0;
        while let Some(exchange) = self.exchanges.get(index) {
            let is_early = matches!(exchange.purpose, Purpose::Cluster) && self.state.is_empty();
            if (exchange.is_waiting() || is_early) && now < exchange.deadline {
                index += 1;
            } else if let Some(exchange) = self.exchanges.remove(index) {
                let exchange = match exchange.purpose {
                    Purpose::State { .. } => {
                        self.tell_state(exchange, now);
                        index = 0; // who waited for it may stand before it
                        continue;
                    }
                    Purpose::Fit => {
                        // While Redis cannot be asked, what was seen last holds.
                        if let Cluster::Answered(ClusterReply::Nodes { nodes, .. }) =
                            &exchange.cluster
                        {
                            let news = self.fit.look(nodes, &self.state, &self.options);
                            news.iter().for_each(News::tell);
                        }
                        continue;
                    }
                    _ => exchange,
                };
                let id = exchange.id;
                let answer = exchange
                    .answer(&self.options.node_id)
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
            Purpose::Cluster if self.state.is_empty() => {
                Answer::busy("starting", "the node has only just started; try again")
            }
            Purpose::Cluster if !self.options.has_redis => {
                cluster::alone(&self.state, &self.options, None)
            }
            Purpose::Cluster => {
                let away = |reason: &str| ClusterReply::Away(reason.to_owned());
                let reply = match exchange.cluster {
                    Cluster::Answered(reply) => reply,
                    Cluster::Asked | Cluster::Unasked => away("it does not answer in time"),
                };
                cluster::all(&reply, &self.state, &self.options)
            }
            Purpose::Rooms { .. }
            | Purpose::Room { .. }
            | Purpose::Online { .. }
            | Purpose::User { .. }
            | Purpose::State { .. }
            | Purpose::Fit
            | Purpose::Connection { .. }
            | Purpose::Disconnect { .. } => {
                unreachable!("these exchanges have an answer of their own")
            }
        }
    }

    /// The shards have been heard: this is how the node is.
    fn tell_state(&mut self, exchange: Exchange, now: Tick) {
        let stalled = exchange.stalled_shards();
        let Purpose::State { figures, health } = exchange.purpose else {
            return;
        };
        let codes = self.reasons(&health).into_iter();
        let codes = codes.filter_map(|reason| reason["code"].as_str().map(str::to_owned));
        let mut codes: Vec<String> = codes.collect();
        codes.dedup();
        let node = self.node(*figures, &stalled);
        let meter = &mut self.meter;
        let (state, count) = meter.state(&node, &health, &codes, &self.options, now);
        self.state_news = Some((Value::Object(state.clone()).to_string(), count));
        self.state = state;
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
            misfits: self.fit.misfits(),
        }
    }

    fn count(&mut self, answer: &Answer) {
        *self.answers.entry(answer.status).or_default() += 1;
    }
}

/// Without a key only loopback is listened at, which pages of a browser on this host reach too. They come with an `Origin`,
/// or by a name of their own that was made to lead here (DNS rebinding).
///
/// # Errors
/// 403.
fn not_from_page(request: &Request) -> Result<(), Answer> {
    if request.has_origin {
        return Err(Answer::from_browser(
            "no key is set, and the request has an Origin",
        ));
    }
    match &request.host {
        Some(host) if !is_own_name(host) => Err(Answer::from_browser(
            "no key is set, and the request's Host is a name",
        )),
        _ => Ok(()),
    }
}

/// Whether `host`, with a port or without, is an IP address or `localhost`: no page has another's such name.
fn is_own_name(host: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(address, rest)| {
            let is_rest = rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
            is_rest && address.parse::<Ipv6Addr>().is_ok()
        });
    }
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    is_port(port) && (name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok())
}

/// 409: an id counts on its node only, and here it may be somebody else's.
fn other_node(here: &str, of: &str) -> Answer {
    let message = format!(
        "a connection's id counts on its node only: this is {here}; ask the admin listener of {of}"
    );
    Answer::error(409, "other_node", &message)
}

/// Publishes, and says what became of it.
fn publish(node: &mut impl Node, room: &RoomName, batch: &Arc<Batch>, now: Tick) -> Answer {
    match node.publish(room, batch, now) {
        Ok(()) => Answer::json(202, &json!({ "accepted": true })),
        Err(NotPublished::BusFull) => Answer::busy(
            "bus_full",
            "the bus to a shard that it goes to is full: try again",
        ),
        Err(NotPublished::BackplaneLost { local: false }) => Answer::busy(
            "backplane_lost",
            "Redis cannot be reached, and the buffer for it is full: nobody got it, try again",
        ),
        Err(NotPublished::BackplaneLost { local: true }) => Answer::busy(
            "backplane_lost_local",
            "Redis cannot be reached, and the buffer for it is full: members on this node got it, others did not",
        ),
    }
}

#[cfg(test)]
mod tests;
