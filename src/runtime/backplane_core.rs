//! The backplane core's loop: reads the shards' lanes into the [`Backplane`], carries out what it says, drives the
//! phases of stopping.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_lite::future;

use super::bridge::Bridge;
use super::clock::Clock;
use super::ring::WakeHandle;
use super::shard_core::Waker;
use crate::backplane::{Action, Backplane, LaneRoom};
use crate::bus::{Bell, CoreId, Downstream, LaneReader, LaneWriter, Upstream};
use crate::drain::{Drain, Phase};
use crate::limits::LANE_TURN_ENVELOPE_COUNT_MAX;
use crate::time::Tick;

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

/// The backplane core's belongings.
pub(super) struct BackplaneCore {
    pub backplane: Backplane,
    pub links: Links,
    pub drain: Drain,
    pub clock: Clock,
    pub bell: Arc<Bell>,
    pub wake: WakeHandle,
    /// How many SIGTERM and SIGINT have come.
    pub stop_requests: Arc<AtomicU32>,
    /// Set for the shards when the process ends.
    pub stop: Arc<AtomicBool>,
}

impl BackplaneCore {
    /// Runs until the node has stopped. Returns the process's exit code.
    pub(super) async fn run(mut self) -> Result<u8, String> {
        let mut bridge = Bridge::new(self.wake.fd())
            .map_err(|error| format!("cannot duplicate a descriptor: {error}"))?;
        let mut stop_requests_seen = 0;
        let mut phase = Phase::Running;
        loop {
            let now = self.clock.now();
            let requests = self.stop_requests.load(Ordering::Relaxed);
            while stop_requests_seen < requests {
                stop_requests_seen += 1;
                self.drain.stop_requested(now);
            }
            let is_idle = self.turn(now);
            if self.drain.phase() != phase {
                phase = self.drain.phase();
                tracing::info!(phase = phase.label(), "stopping");
            }
            if let Some(code) = self.drain.exit_code() {
                self.stop.store(true, Ordering::Relaxed);
                for link in &self.links.0 {
                    link.waker.handle.wake();
                }
                return Ok(code);
            }
            if is_idle {
                self.sleep(&mut bridge, now).await;
            } else {
                glommio::executor().yield_if_needed().await;
            }
        }
    }

    /// One turn over all lanes. Whether there is nothing more to do.
    fn turn(&mut self, now: Tick) -> bool {
        let mut is_idle = true;
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
        if self.backplane.next_deadline() <= now {
            self.backplane.handle_deadline(now);
        }
        self.perform();
        while self.backplane.has_stalled() && self.backplane.retry(&self.links, now) {
            self.perform();
        }
        for index in 0..self.links.0.len() {
            let from = CoreId(u8::try_from(index).expect("bounded by SHARD_COUNT_MAX"));
            for _ in 0..LANE_TURN_ENVELOPE_COUNT_MAX {
                if !self.backplane.accepts(from) {
                    break;
                }
                let Some(envelope) = self.links.0[index].upstream.next_envelope() else {
                    break;
                };
                is_idle = false;
                let _stalled_is_retried = self.backplane.offer(from, envelope, &self.links, now);
                self.perform();
            }
            self.links.0[index].upstream.settle();
        }
        for link in &mut self.links.0 {
            if std::mem::take(&mut link.has_sent) {
                link.waker.wake();
            }
        }
        is_idle
    }

    fn perform(&mut self) {
        while let Some(action) = self.backplane.poll_action() {
            match action {
                Action::Send {
                    to,
                    envelope,
                    bytes,
                } => {
                    let link = &mut self.links.0[usize::from(to.0)];
                    link.downstream
                        .try_send_data(envelope, bytes)
                        .expect("the backplane looked before it sent");
                    link.has_sent = true;
                }
                Action::SendControl { to, envelope } => {
                    let link = &mut self.links.0[usize::from(to.0)];
                    link.downstream
                        .try_send_control(envelope)
                        .expect("the control reserve holds all there can be");
                    link.has_sent = true;
                }
                Action::Answer { .. } => {}
                Action::Drained { from } => self.drain.shard_drained(from),
            }
        }
    }

    async fn sleep(&mut self, bridge: &mut Bridge, now: Tick) {
        self.bell.doze();
        let lanes_are_empty = self.links.0.iter().enumerate().all(|(index, link)| {
            let from = CoreId(u8::try_from(index).expect("bounded by SHARD_COUNT_MAX"));
            link.upstream.is_empty() || !self.backplane.accepts(from)
        });
        if lanes_are_empty {
            let mut deadline = self.backplane.next_deadline();
            if let Some(drain) = self.drain.next_deadline() {
                deadline = deadline.min(drain);
            }
            if self.backplane.has_stalled() {
                deadline = deadline.min(Tick(now.0 + 1_000)); // no bell rings when a shard has read
            }
            let sleep = glommio::timer::sleep(Duration::from_micros(deadline.since(now)));
            future::or(bridge.woken(), sleep).await;
        }
        self.wake.clear();
        self.bell.awake();
    }
}
