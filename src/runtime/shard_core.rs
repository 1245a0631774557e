//! A shard's loop: moves events from the ring and envelopes from the bus into the [`Shard`], and its actions back.
//!
//! ```text
//! ┌▶ ring events, envelopes, deadline ─▶ shard ─▶ end of turn ─▶ actions ─▶ ring, lane ─▶ submit ─┐
//! └──────────────────────── work left, or woken (ring, lane, alarm) ◀──────────────────────────────┘
//! ```

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::bridge::{Bridge, NAP};
use super::clock::Clock;
use super::listener;
use super::ring::{Event, Ring, WakeHandle};
use crate::bus::{Bell, Downstream, LaneFull, LaneReader, LaneWriter, Reply, Upstream};
use crate::limits::LANE_TURN_ENVELOPE_COUNT_MAX;
use crate::shard::{Action, Input, Shard};
use crate::time::Tick;

/// How long an exhausted accept rests.
const ACCEPT_REST_US: u64 = 100_000;
/// How often that is logged, while it lasts.
const TELL_INTERVAL_US: u64 = 10_000_000;
/// The listeners' queues are taken to be empty when nobody came out of them for so long after the last moment in which
/// somebody could get in.
const QUEUE_QUIET_US: u64 = 100_000;
/// At most so long the queues are emptied.
const QUEUE_DRAIN_US: u64 = 1_000_000;

/// Wakes a core that sleeps.
#[derive(Debug, Clone)]
pub(super) struct Waker {
    pub bell: Arc<Bell>,
    pub handle: WakeHandle,
}

impl Waker {
    /// To be called after an envelope was sent.
    pub(super) fn wake(&self) {
        if self.bell.ring() {
            self.handle.wake();
        }
    }
}

/// One shard core's belongings.
pub(super) struct ShardCore {
    pub shard: Shard,
    pub ring: Ring,
    pub bridge: Bridge,
    pub clock: Clock,
    pub bell: Arc<Bell>,
    pub upstream: LaneWriter<Upstream>,
    pub downstream: LaneReader<Downstream>,
    pub backplane: Waker,
    pub processor: u32,
    /// Set when the process ends.
    pub stop: Arc<AtomicBool>,
    /// The listening sockets, by the ring's numbers, as long as they listen.
    pub listeners: Vec<OwnedFd>,
}

/// What the loop remembers from turn to turn.
#[derive(Default)]
struct Loop {
    /// Envelopes for which the lane had no room, in order. While there are any, publishers are not read; what is left
    /// to grow it are joins and leaves, and those are as many as connections come and go.
    held: VecDeque<(Upstream, u32)>,
    alarm_at: Option<Tick>,
    /// Listeners whose accepts failed, and when to try again.
    resting: Vec<(u32, Tick)>,
    /// When that was logged last.
    accept_told: Option<Tick>,
    /// Since when nobody new is let in, and when the last one came out of a queue.
    emptying: Option<(Tick, Tick)>,
    listeners_stopping: bool,
    listeners_left: usize,
    has_sent: bool,
}

impl ShardCore {
    /// Runs until the process ends.
    pub(super) async fn run(mut self) -> Result<(), String> {
        let mut state = Loop {
            listeners_left: self.listeners.len(),
            ..Loop::default()
        };
        for listener in &self.listeners {
            let listener = listener
                .try_clone()
                .map_err(|error| format!("cannot duplicate a descriptor: {error}"))?;
            self.ring.listen(listener);
        }
        let mut turn_began = self.clock.now();
        while !self.stop.load(Ordering::Relaxed) {
            let now = self.clock.now();
            self.take_news(&mut state, now);
            if self
                .shard
                .next_deadline()
                .is_some_and(|deadline| deadline <= now)
            {
                self.shard.handle_deadline(now);
            }
            self.accept_progress(&mut state, now);
            self.shard.end_turn(self.clock.now());
            self.perform(&mut state);
            self.ring
                .submit()
                .map_err(|error| format!("io_uring_enter failed: {error}"))?;
            let ended = self.clock.now();
            self.ring.record_turn(ended.since(turn_began));
            turn_began = ended;
            if state.held.is_empty() && self.downstream.is_empty() && !self.ring.has_events() {
                self.sleep(&mut state, ended).await;
                turn_began = self.clock.now();
            }
            // Else on to the next turn at once: nobody else wants this executor (`executor::PREEMPT_INTERVAL`).
        }
        Ok(())
    }

    /// Hands everything that has happened to the shard.
    fn take_news(&mut self, state: &mut Loop, now: Tick) {
        while let Some((envelope, bytes)) = state.held.pop_front() {
            if let Err(LaneFull(envelope)) = send(&mut self.upstream, envelope, bytes) {
                state.held.push_front((envelope, bytes));
                break;
            }
            state.has_sent = true;
        }
        let (envelopes, bytes) = if state.held.is_empty() {
            (self.upstream.data_room(), self.upstream.bytes_room())
        } else {
            (0, 0)
        };
        self.shard.handle(Input::BusRoom { envelopes, bytes }, now);
        while let Some(event) = self.ring.next_event() {
            match event {
                Event::Received { token, bytes } => {
                    self.shard.handle(
                        Input::Received {
                            index: token,
                            bytes,
                        },
                        now,
                    );
                }
                Event::Sent { token, bytes, done } => {
                    self.shard.handle(
                        Input::Written {
                            index: token,
                            bytes,
                            done,
                        },
                        now,
                    );
                }
                Event::Accepted { token, peer, .. } => {
                    self.shard.handle(Input::Opened { index: token, peer }, now);
                    self.ring.receive(token);
                    if let Some((_, last)) = &mut state.emptying {
                        *last = now;
                    }
                }
                Event::ReceiveEnded { token, error } => {
                    self.shard.handle(
                        Input::ReceiveEnded {
                            index: token,
                            broken: error.is_some(),
                        },
                        now,
                    );
                }
                Event::SendFailed { token, .. } => {
                    self.shard.handle(Input::WriteFailed { index: token }, now)
                }
                Event::Closed { token } => self.shard.handle(Input::Closed { index: token }, now),
                Event::AcceptFailed { listener, error } => {
                    if !state
                        .resting
                        .iter()
                        .any(|&(resting, _)| resting == listener)
                    {
                        if state
                            .accept_told
                            .is_none_or(|told| now.since(told) >= TELL_INTERVAL_US)
                        {
                            state.accept_told = Some(now);
                            tracing::warn!(%error, "cannot accept; trying again: see `throng check` for the limit");
                        }
                        state.resting.push((listener, Tick(now.0 + ACCEPT_REST_US)));
                    }
                }
                Event::ListenerStopped { .. } => {
                    state.listeners_left -= 1;
                    if state.listeners_left == 0 {
                        self.listeners.clear();
                        self.shard.handle(Input::ListenersStopped, now);
                    }
                }
                Event::Alarm => state.alarm_at = None,
                Event::Connected { .. } | Event::ConnectFailed { .. } => {}
            }
        }
        for _ in 0..LANE_TURN_ENVELOPE_COUNT_MAX {
            let Some(envelope) = self.downstream.next_envelope() else {
                break;
            };
            self.shard.handle(Input::Downstream(envelope), now);
        }
        self.downstream.settle();
    }

    /// Accepts that rest, and queues that are being emptied.
    fn accept_progress(&mut self, state: &mut Loop, now: Tick) {
        if !state.resting.is_empty() {
            let (due, resting) = state
                .resting
                .drain(..)
                .partition(|&(_, until)| until <= now);
            state.resting = resting;
            for (listener, _) in due {
                self.ring.accept_again(listener);
            }
        }
        if let Some((since, last)) = state.emptying
            && !state.listeners_stopping
            && (now.since(last) >= QUEUE_QUIET_US || now.since(since) >= QUEUE_DRAIN_US)
        {
            state.listeners_stopping = true;
            for listener in 0..state.listeners_left {
                self.ring
                    .stop_accepting(u32::try_from(listener).unwrap_or(u32::MAX));
            }
        }
    }

    /// Does what the shard says.
    fn perform(&mut self, state: &mut Loop) {
        while let Some(action) = self.shard.poll_action() {
            match action {
                Action::FanOut { encoded, targets } => self.ring.send_fan_out(encoded, targets),
                Action::Send { index, pieces } => self.ring.send(index, pieces),
                Action::Forward {
                    mut envelope,
                    bytes,
                } => {
                    if let Upstream::Answer {
                        reply: Reply::Stats(snapshot),
                        ..
                    } = &mut envelope
                    {
                        snapshot.processor = self.processor;
                        snapshot.ring = self.ring.counters().clone();
                        snapshot.gauges.bus_depth = self.downstream.depth() as u64;
                    }
                    if !state.held.is_empty() {
                        state.held.push_back((envelope, bytes));
                    } else if let Err(LaneFull(envelope)) =
                        send(&mut self.upstream, envelope, bytes)
                    {
                        state.held.push_back((envelope, bytes));
                    } else {
                        state.has_sent = true;
                    }
                }
                Action::ReadPause { index } => self.ring.receive_pause(index),
                Action::ReadResume { index } => self.ring.receive_resume(index),
                Action::ShutdownWrite { index } => self.ring.shutdown_write(index),
                Action::Close { index } => self.ring.close(index),
                Action::StopAccepting => {
                    for listener in &self.listeners {
                        if let Err(error) = listener::refuse_new(listener) {
                            tracing::warn!(%error, "new connections cannot be held off while the queue is emptied");
                        }
                    }
                    let now = self.clock.now();
                    state.emptying = Some((now, now));
                }
            }
        }
        if std::mem::take(&mut state.has_sent) {
            self.backplane.wake();
        }
    }

    /// Sleeps until a completion, an envelope or a deadline comes.
    async fn sleep(&mut self, state: &mut Loop, now: Tick) {
        self.bell.doze();
        if self.downstream.is_empty() {
            let resting = state.resting.iter().map(|&(_, until)| until).min();
            let emptying = state
                .emptying
                .filter(|_| !state.listeners_stopping)
                .map(|(_, last)| Tick(last.0 + QUEUE_QUIET_US));
            if let Some(deadline) = [self.shard.next_deadline(), resting, emptying]
                .into_iter()
                .flatten()
                .min()
                && state
                    .alarm_at
                    .is_none_or(|alarm_at| deadline < alarm_at || alarm_at <= now)
            {
                self.ring
                    .set_alarm(Duration::from_micros(deadline.since(now)));
                state.alarm_at = Some(deadline);
            }
            if self.ring.prepare_sleep() && !self.bridge.nap(NAP) {
                self.bridge.woken().await;
            }
            self.ring.awake();
        }
        self.bell.awake();
    }
}

fn send(
    lane: &mut LaneWriter<Upstream>,
    envelope: Upstream,
    bytes: u32,
) -> Result<(), LaneFull<Upstream>> {
    if bytes > 0 {
        lane.try_send_data(envelope, bytes)
    } else {
        lane.try_send_control(envelope)
    }
}
