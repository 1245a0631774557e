//! The backplane core's loop: reads the shards' lanes into the [`Backplane`], carries out what it says, drives the
//! phases of stopping, and answers the admin listener's requests.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_lite::future;

use super::bridge::{Bridge, NAP};
use super::clock::Clock;
use super::http::{self, PendingAnswers};
use super::process::ProcessReader;
use super::redis::RedisSockets;
use super::ring::WakeHandle;
use super::shard_core::Waker;
use crate::admin::{self, Admin, Figures, Health, Outcome};
use crate::backplane::{self, Action, Backplane, LaneRoom, NotPublished, Ports};
use crate::bus::{
    Batch, Bell, ClusterQuestion, CoreId, Downstream, LaneReader, LaneWriter, Question, RoomName,
    Upstream,
};
use crate::drain::{Drain, Phase};
use crate::metrics::{BackplaneSnapshot, Log2Histogram, ShardLanes};
use crate::time::Tick;

/// How often a lane that waits for a full one is tried again.
const STALL_RETRY_US: u64 = 500;
/// A busy loop lets others run that often.
const REST_INTERVAL_US: u64 = 1_000;

/// One shard, seen from the backplane core.
pub(super) struct ShardLink {
    pub upstream: LaneReader<Upstream>,
    pub downstream: LaneWriter<Downstream>,
    pub waker: Waker,
    /// Something was sent since the shard was woken last.
    pub has_sent: bool,
}

/// The lanes to the shards, as the backplane looks at them.
pub(super) struct Links(pub Vec<ShardLink>);

impl LaneRoom for Links {
    fn fits(&self, shard: CoreId, bytes: u32) -> bool {
        self.0[usize::from(shard.0)].downstream.fits(bytes)
    }
}

/// The backplane core's belongings, shared by its loop and the admin listener's handlers. No borrow lives across an
/// `await`.
pub(super) struct BackplaneCore {
    pub backplane: Backplane,
    pub links: Links,
    pub drain: Drain,
    pub admin: Admin,
    pub process: ProcessReader,
    /// The sockets to Redis, if there is one.
    pub redis: Option<RedisSockets>,
    pub turn: Log2Histogram,
    /// The shard whose lane is looked at first; another one each turn.
    pub first: usize,
}

/// What the loop needs beside it.
pub(super) struct Surroundings {
    pub clock: Clock,
    pub bell: Arc<Bell>,
    pub wake: WakeHandle,
    /// How many SIGTERM and SIGINT have come.
    pub stop_requests: Arc<AtomicU32>,
    /// Set for the shards when the process ends.
    pub stop: Arc<AtomicBool>,
    /// A shard has ended that should not have.
    pub failed: Arc<AtomicBool>,
    pub admin_listener: Option<AdminListener>,
}

/// The admin listener's socket, and what its HTTP is told.
pub(super) type AdminListener = (std::net::TcpListener, http::Options);

/// Runs until the node has stopped. Returns the process's exit code.
pub(super) async fn run(core: BackplaneCore, mut around: Surroundings) -> Result<u8, String> {
    // With Redis one descriptor tells of its sockets and of the eventfd.
    let woken_by = core
        .redis
        .as_ref()
        .map_or(around.wake.fd(), RedisSockets::fd);
    let mut bridge =
        Bridge::new(woken_by).map_err(|error| format!("cannot duplicate a descriptor: {error}"))?;
    let core = Rc::new(RefCell::new(core));
    let answers = PendingAnswers::new();
    if let Some((listener, options)) = around.admin_listener.take() {
        let handler = admin_handler(&core, &answers, around.clock, around.wake.clone());
        glommio::spawn_local(async move {
            let Err(error) = http::serve(listener, options, handler).await;
            tracing::error!(%error, "the admin listener has failed");
        })
        .detach();
    }
    let mut stopping = Stopping::default();
    let mut turn_began = around.clock.now();
    let mut rested = turn_began;
    loop {
        let now = around.clock.now();
        let (is_idle, deadline) = {
            let mut this = core.borrow_mut();
            if around.failed.load(Ordering::Relaxed) {
                this.end_shards(&around);
                return Err("a shard has died; the log says why".to_owned());
            }
            if let Some(code) = this.stop_progress(&mut stopping, &around, now)
                && this.has_left_redis(now)
            {
                this.end_shards(&around);
                return Ok(code);
            }
            let is_idle = this.turn(now);
            if let Some(reason) = this.redis.as_mut().and_then(RedisSockets::take_fatal) {
                this.end_shards(&around);
                return Err(reason);
            }
            while let Some((request, answer)) = this.admin.poll_answer() {
                answers.complete(request, answer);
            }
            let ended = around.clock.now();
            this.turn.record(ended.since(turn_began), 1);
            turn_began = ended;
            (is_idle, this.sleep_until(now))
        };
        let duration = Duration::from_micros(deadline.since(turn_began));
        let pause = pause(is_idle, turn_began.since(rested));
        if is_idle {
            around.bell.doze();
        }
        let rests = match pause {
            Pause::None => false,
            // A nap lets nobody else run: it does not count as a rest, however it ends.
            // After a nap up to a deadline the deadline is due.
            Pause::Nap => {
                core.borrow().lanes_are_empty() && !bridge.nap(duration) && duration >= NAP
            }
            Pause::Rest => {
                if !is_idle || !core.borrow().lanes_are_empty() {
                    around.wake.wake(); // to be back as soon as the others have had their turn
                }
                true
            }
        };
        if rests {
            future::or(bridge.woken(), glommio::timer::sleep(duration)).await;
            rested = around.clock.now();
        }
        if pause != Pause::None {
            around.wake.clear();
            around.bell.awake();
            turn_began = around.clock.now();
        }
    }
}

/// What the loop does between two turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// The next turn at once.
    None,
    /// A nap; if nothing has come by its end, a rest.
    Nap,
    /// The admin listener's tasks get their turn: they do only when this one waits.
    Rest,
}

const fn pause(is_idle: bool, since_rest_us: u64) -> Pause {
    if since_rest_us >= REST_INTERVAL_US {
        Pause::Rest
    } else if is_idle {
        Pause::Nap
    } else {
        Pause::None
    }
}

/// What the loop has seen of the node's stopping.
#[derive(Default)]
struct Stopping {
    requests_seen: u32,
    phase_told: Option<Phase>,
}

/// Answers one request of the admin listener, at once or when the shards have been heard.
fn admin_handler(
    core: &Rc<RefCell<BackplaneCore>>,
    answers: &Rc<PendingAnswers>,
    clock: Clock,
    wake: WakeHandle,
) -> http::Handler {
    let (core, answers) = (Rc::clone(core), Rc::clone(answers));
    Rc::new(move |request| {
        let mut this = core.borrow_mut();
        let BackplaneCore {
            backplane,
            links,
            drain,
            admin,
            process,
            redis: _,
            turn,
            first: _,
        } = &mut *this;
        let mut node = AdminNode {
            backplane,
            links,
            drain,
            process,
            turn,
        };
        let now = clock.now();
        let outcome = admin.handle_request(&request, &mut node, now);
        this.perform(now); // the next request's look at the lanes counts what this one sends
        wake.wake(); // the loop's next turn wakes the shards
        match outcome {
            Outcome::Answer(answer) => Box::pin(std::future::ready(answer)),
            Outcome::Pending(number) => Box::pin(answers.wait(number)),
        }
    })
}

/// The node, as the admin API sees it.
struct AdminNode<'a> {
    backplane: &'a mut Backplane,
    links: &'a Links,
    drain: &'a Drain,
    process: &'a ProcessReader,
    turn: &'a Log2Histogram,
}

impl admin::Node for AdminNode<'_> {
    fn ask(&mut self, to: CoreId, request: u64, question: Question) -> bool {
        self.backplane.ask(to, request, question)
    }

    fn keeps_users(&self) -> bool {
        self.backplane.keeps_users()
    }

    fn ask_cluster(&mut self, request: u64, question: ClusterQuestion, now: Tick) -> bool {
        self.backplane.ask_cluster(request, question, now)
    }

    fn publish(
        &mut self,
        room: &RoomName,
        batch: &Arc<Batch>,
        now: Tick,
    ) -> Result<(), admin::NotPublished> {
        let published = self.backplane.publish(room, batch, self.links, now);
        published.map_err(|reason| match reason {
            NotPublished::BusFull => admin::NotPublished::BusFull,
            NotPublished::BackplaneLost { local } => admin::NotPublished::BackplaneLost { local },
        })
    }

    fn health(&mut self, now: Tick) -> Health {
        Health {
            phase: self.drain.phase(),
            stalled_shards: self.backplane.stalled_shards(now),
            bus_stalled_us: self.backplane.snapshot(now).stalled_us,
            link_troubles: self
                .backplane
                .link_troubles(now)
                .into_iter()
                .map(|trouble| admin::LinkTrouble {
                    server: trouble.server,
                    link: trouble.link,
                    state: trouble.state,
                    since_us: trouble.since_us,
                    reason: trouble.reason,
                })
                .collect(),
        }
    }

    fn figures(&mut self, now: Tick) -> Figures {
        let lanes = self.links.0.iter().map(|link| ShardLanes {
            up_depth: link.upstream.depth() as u64,
            down_depth: link.downstream.depth() as u64,
            down_bytes: link.downstream.bytes_flying(),
        });
        Figures {
            phase: self.drain.phase(),
            backplane: BackplaneSnapshot {
                turn: self.turn.clone(),
                ..self.backplane.snapshot(now)
            },
            lanes: lanes.collect(),
            process: self.process.read(),
        }
    }
}

/// Where the backplane's envelopes come from, and where its actions go.
struct Wires<'a> {
    links: &'a mut Links,
    drain: &'a mut Drain,
    admin: &'a mut Admin,
    now: Tick,
}

impl LaneRoom for Wires<'_> {
    fn fits(&self, shard: CoreId, bytes: u32) -> bool {
        self.links.fits(shard, bytes)
    }
}

impl Ports for Wires<'_> {
    fn take(&mut self, from: CoreId) -> Option<Upstream> {
        self.links.0[usize::from(from.0)].upstream.next_envelope()
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Send {
                to,
                envelope,
                bytes,
            } => {
                let link = &mut self.links.0[usize::from(to.0)];
                let sent = link.downstream.try_send_data(envelope, bytes);
                sent.expect("the backplane looked before it sent");
                link.has_sent = true;
            }
            Action::SendControl { to, envelope } => {
                let link = &mut self.links.0[usize::from(to.0)];
                let sent = link.downstream.try_send_control(envelope);
                sent.expect("the control reserve holds all there can be");
                link.has_sent = true;
            }
            Action::Answer {
                from,
                request,
                reply,
            } => {
                self.admin.handle_reply(from, request, reply, self.now);
            }
            Action::Drained { from } => self.drain.shard_drained(from),
        }
    }
}

impl BackplaneCore {
    /// Takes requests to stop in, and says which phase has come. When the last has: the exit code.
    fn stop_progress(
        &mut self,
        stopping: &mut Stopping,
        around: &Surroundings,
        now: Tick,
    ) -> Option<u8> {
        let requests = around.stop_requests.load(Ordering::Relaxed);
        while stopping.requests_seen < requests {
            stopping.requests_seen += 1;
            self.drain.stop_requested(now);
        }
        let phase = self.drain.phase();
        if phase != Phase::Running && stopping.phase_told != Some(phase) {
            stopping.phase_told = Some(phase);
            if matches!(phase, Phase::Cutting | Phase::Done { cut: true }) {
                let shards_left: Vec<u8> = self.drain.shards_left().map(|shard| shard.0).collect();
                tracing::warn!(phase = phase.label(), ?shards_left, "stopping");
            } else {
                tracing::info!(phase = phase.label(), "stopping");
            }
        }
        self.drain.exit_code()
    }

    /// Leaves Redis, once all clients are gone: the registry's entries are removed, what they published is sent,
    /// subscriptions are dropped. Whether it is done.
    fn has_left_redis(&mut self, now: Tick) -> bool {
        self.backplane.close_registry(now);
        if !self.backplane.has_left_registry(now) {
            return false;
        }
        self.backplane.close_redis(now);
        if !self.backplane.has_left_redis(now) {
            return false;
        }
        let unacknowledged = self.backplane.unacknowledged();
        if unacknowledged > 0 {
            tracing::warn!(
                unacknowledged,
                "messages that Redis has not acknowledged are lost with this node"
            );
        }
        true
    }

    fn end_shards(&self, around: &Surroundings) {
        around.stop.store(true, Ordering::Relaxed);
        for link in &self.links.0 {
            link.waker.handle.wake();
        }
    }

    /// One turn over all lanes. Whether there is nothing more to do.
    fn turn(&mut self, now: Tick) -> bool {
        if self
            .drain
            .next_deadline()
            .is_some_and(|deadline| deadline <= now)
        {
            self.drain.handle_deadline(now);
        }
        while let Some(order) = self.drain.poll_order() {
            self.backplane.order_drain(order);
        }
        self.admin.handle_deadline(now);
        self.sample(now);
        self.perform(now);
        let mut redis_busy = false;
        if let Some(redis) = &mut self.redis {
            redis_busy |= redis.receive(&mut self.backplane, now);
        }
        let first = self.first;
        self.first = first.wrapping_add(1);
        let (backplane, mut wires) = self.split(now);
        let report = backplane::turn(backplane, &mut wires, first, now);
        while let Some((request, reply)) = self.backplane.poll_cluster_answer() {
            self.admin.handle_cluster(request, reply, now);
        }
        for link in &mut self.links.0 {
            link.upstream.settle();
            if std::mem::take(&mut link.has_sent) {
                link.waker.wake();
            }
        }
        if let Some(redis) = &mut self.redis {
            redis_busy |= redis.work(&mut self.backplane, now);
        }
        report.handled_count == 0 && !report.more && !redis_busy
    }

    /// Looks how the node is, when it is time, and tells the registry.
    fn sample(&mut self, now: Tick) {
        let mut node = AdminNode {
            backplane: &mut self.backplane,
            links: &self.links,
            drain: &self.drain,
            process: &self.process,
            turn: &self.turn,
        };
        self.admin.sample(&mut node, now);
        if let Some((state, connection_count)) = self.admin.poll_state() {
            self.backplane.set_state(state, connection_count);
        }
    }

    fn perform(&mut self, now: Tick) {
        let (backplane, mut wires) = self.split(now);
        backplane::perform_actions(backplane, &mut wires);
    }

    fn split(&mut self, now: Tick) -> (&mut Backplane, Wires<'_>) {
        let wires = Wires {
            links: &mut self.links,
            drain: &mut self.drain,
            admin: &mut self.admin,
            now,
        };
        (&mut self.backplane, wires)
    }

    /// When the loop has to turn at the latest.
    fn sleep_until(&self, now: Tick) -> Tick {
        // No bell rings when a shard has read its lane.
        let retry = self
            .backplane
            .has_stalled()
            .then_some(Tick(now.0 + STALL_RETRY_US));
        let backlog = self
            .backplane
            .has_backlog()
            .then_some(Tick(now.0 + STALL_RETRY_US));
        let flush = self
            .redis
            .as_ref()
            .and_then(|redis| self.backplane.flush_deadline(|role| redis.may_write(role)));
        [
            backlog,
            flush,
            self.drain.next_deadline(),
            self.admin.next_deadline(),
            retry,
        ]
        .into_iter()
        .flatten()
        .fold(self.backplane.next_deadline(), Tick::min)
    }

    fn lanes_are_empty(&self) -> bool {
        self.links.0.iter().enumerate().all(|(index, link)| {
            let from = CoreId(u8::try_from(index).expect("bounded by SHARD_COUNT_MAX"));
            link.upstream.is_empty() || !self.backplane.accepts(from)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_traffic_with_idle_moments_does_not_starve_the_admin_listener() {
        // A wake-up every 200 µs: every turn is followed by an idle moment, and none of them lasts as long as a nap.
        let mut since_rest_us = 0;
        let mut rests = 0;
        for turn in 0..1_000 {
            since_rest_us += 200;
            if pause(turn % 2 == 0, since_rest_us) == Pause::Rest {
                rests += 1;
                since_rest_us = 0;
            }
        }
        assert!(rests >= 150, "{rests} rests in 200 ms");
    }
}
