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
                return Err(match node.publish(&room, &batch, now) {
                    Ok(()) => Answer::json(202, &json!({ "accepted": true })),
                    Err(NotPublished::BusFull) => Answer::busy(
                        "bus_full",
                        "the bus to a shard of this room is full: try again",
                    ),
                    Err(NotPublished::BackplaneLost { local: false }) => Answer::busy(
                        "backplane_lost",
                        "Redis cannot be reached, and the buffer for it is full: nobody got it, try again",
                    ),
                    Err(NotPublished::BackplaneLost { local: true }) => Answer::busy(
                        "backplane_lost_local",
                        "Redis cannot be reached, and the buffer for it is full: members on this node got it, others did not",
                    ),
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
mod tests;
