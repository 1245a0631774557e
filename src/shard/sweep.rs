//! What time does: the heartbeat sweep, the timeouts, the paced closes of a drain. No timer belongs to a connection.
//!
//! ```text
//! slab  |····························|          ping cursor: once round in a ping interval
//!          ^ping          ^check                check cursor: once round in a second
//! ```
//! Each tick moves both cursors by their share of the slab, so pings are spread evenly over the interval by
//! construction, and no timeout is noticed more than a second late.

use super::connection::{State, flag};
use super::outbox::Reserve;
use super::{FanOut, HeartbeatMode, Quiet, Shard};
use crate::bus::{DrainOrder, Upstream};
use crate::metrics::RefusalKind;
use crate::protocol::dialect::raw::notice_reconnect;
use crate::protocol::handshake::Refusal;
use crate::protocol::{CloseReason, Encoded, OpCode, Piece, encode_header};
use crate::time::{Tick, elapsed_ms};

/// Between two ticks.
const TICK_US: u64 = 100_000;
/// In which the check cursor goes round.
const CHECK_ROUND_US: u64 = 1_000_000;

/// The cursors.
#[derive(Debug)]
pub(super) struct Sweep {
    last: Tick,
    ping: Cursor,
    check: Cursor,
}

impl Sweep {
    pub(super) fn new(now: Tick) -> Self {
        Self {
            last: now,
            ping: Cursor::default(),
            check: Cursor::default(),
        }
    }

    pub(super) const fn next_at(&self) -> Tick {
        Tick(self.last.0 + TICK_US)
    }
}

/// A place in the slab that moves round in a given time.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    at: u32,
    /// Slots × microseconds that were owed and did not make a whole slot.
    debt: u64,
}

impl Cursor {
    /// The slots to visit for `elapsed_us` of a round of `round_us` over `length` slots: (first, how many).
    pub(super) fn advance(&mut self, elapsed_us: u64, round_us: u64, length: u32) -> (u32, u32) {
        if length == 0 {
            return (0, 0);
        }
        self.debt += elapsed_us.min(round_us) * u64::from(length);
        let count = u32::try_from(self.debt / round_us)
            .unwrap_or(u32::MAX)
            .min(length);
        self.debt %= round_us;
        let first = self.at % length;
        self.at = (first + count) % length;
        (first, count)
    }
}

/// How far this shard's part of stopping has come.
#[derive(Debug, Default)]
pub(super) struct Drain {
    order: Option<DrainOrder>,
    began: Tick,
    /// Connections there were when the closing began.
    total: u32,
    /// Connections that were closed for it.
    closed: u32,
    cursor: u32,
    pub listeners_stopped: bool,
    done: bool,
}

impl Drain {
    /// Readiness is off.
    pub(super) const fn is_begun(&self) -> bool {
        self.order.is_some()
    }

    pub(super) const fn is_closing(&self) -> bool {
        matches!(self.order, Some(DrainOrder::Close { .. } | DrainOrder::Cut)) && !self.done
    }

    pub(super) const fn is_done(&self) -> bool {
        self.done
    }

    /// Whether nobody is served any more at all.
    pub(super) const fn is_cut(&self) -> bool {
        matches!(self.order, Some(DrainOrder::Cut))
    }

    /// Whether nobody new is served any more.
    pub(super) const fn window_is_over(&self, now: Tick) -> bool {
        match self.order {
            None | Some(DrainOrder::NotReady) => false,
            Some(DrainOrder::Close { window_ms, .. }) => {
                now.since(self.began) >= window_ms as u64 * 1_000
            }
            Some(DrainOrder::Cut) => true,
        }
    }

    /// 0 running, 1 not ready, 2 closing, 3 cut: the gauge.
    pub(super) const fn phase(&self) -> u64 {
        match self.order {
            None => 0,
            Some(order) => phase_of(order),
        }
    }
}

const fn phase_of(order: DrainOrder) -> u64 {
    match order {
        DrainOrder::NotReady => 1,
        DrainOrder::Close { .. } => 2,
        DrainOrder::Cut => 3,
    }
}

impl Shard {
    pub(super) fn run_sweep(&mut self) {
        if self.now < self.sweep.next_at() {
            return;
        }
        let elapsed_us = self.now.since(self.sweep.last);
        self.sweep.last = self.now;
        let length = self.connections.length();
        if self.options.heartbeat == HeartbeatMode::Ping {
            let round_us = u64::from(self.options.ping_interval_ms) * 1_000;
            let (first, count) = self.sweep.ping.advance(elapsed_us, round_us, length);
            self.send_pings((first..first + count).map(|index| index % length));
        }
        let (first, count) = self.sweep.check.advance(elapsed_us, CHECK_ROUND_US, length);
        for index in first..first + count {
            self.check(index % length);
        }
        self.refresh_presence(elapsed_us);
        self.drain_step();
        self.ledger.settle();
    }

    /// Pings the open connections among `indexes`: one frame, shared, one action.
    fn send_pings(&mut self, indexes: impl Iterator<Item = u32>) {
        let mut frame = Vec::with_capacity(10);
        encode_header(&mut frame, true, OpCode::Ping, 8);
        frame.extend_from_slice(&self.now.0.to_be_bytes());
        let encoded = Encoded::metered(frame, self.ledger.meter());
        let piece = Piece::whole(encoded.clone());
        let now_ms = self.now.ms32();
        let first_target = self.work.targets.len();
        for index in indexes {
            let has_room = self.connection_has_room(index, piece.byte_count(), Reserve::Control);
            let connection = &mut self.connections[index];
            if connection.state != State::Open || connection.has(flag::AWAITING_PONG) {
                continue;
            }
            if connection.flags & (flag::SENDING | flag::DIRTY) == 0 && connection.outbox.is_none()
            {
                connection.set(flag::SENDING);
                connection.queued_bytes = piece.byte_count();
                connection.progress_ms = now_ms;
                self.work.targets.push(index);
            } else if has_room {
                self.queue(index, piece.clone(), 0);
            } else {
                continue; // the write stall timeout watches over a queue that full
            }
            let connection = &mut self.connections[index];
            connection.set(flag::AWAITING_PONG);
            connection.mark_ms = now_ms;
            self.counters.pings_sent += 1;
        }
        if self.work.targets.len() > first_target {
            self.work.fan_outs.push(FanOut {
                encoded,
                end: self.work.targets.len(),
            });
        }
    }

    /// Holds one connection against its timeouts.
    fn check(&mut self, index: u32) {
        let connection = &mut self.connections[index];
        let now_ms = self.now.ms32();
        let options = &self.options;
        let marked_ms_ago = elapsed_ms(now_ms, connection.mark_ms);
        match connection.state {
            State::Vacant | State::Dead => {}
            State::Handshake => {
                if marked_ms_ago >= options.handshake_timeout_ms {
                    self.give_up_request(index);
                }
            }
            State::Joining => {
                let longest_ms = options
                    .handshake_timeout_ms
                    .saturating_add(options.join_timeout_ms);
                if marked_ms_ago >= longest_ms {
                    self.cut(index, CloseReason::HandshakeTimeout);
                }
            }
            State::Closing => {
                if marked_ms_ago >= options.close_timeout_ms {
                    self.cut(index, CloseReason::PeerGone);
                }
            }
            State::Open => {
                let progress_ms_ago = elapsed_ms(now_ms, connection.progress_ms);
                if connection.has(flag::SENDING)
                    && progress_ms_ago >= options.write_stall_timeout_ms
                {
                    self.cut(index, CloseReason::WriteStalled);
                } else if connection.has(flag::READ_PAUSED) {
                    // It cannot be heard: that it is silent tells nothing.
                } else if connection.has(flag::AWAITING_PONG)
                    && marked_ms_ago >= options.pong_timeout_ms
                {
                    let alive_ms_ago = elapsed_ms(now_ms, connection.heard_ms);
                    if alive_ms_ago >= options.pong_timeout_ms {
                        self.cut(index, CloseReason::HeartbeatLost);
                    } else if alive_ms_ago < marked_ms_ago {
                        connection.clear(flag::AWAITING_PONG); // it lives, though it answers no pings
                    }
                } else if options.message_timeout_ms > 0
                    && connection.inbox.as_ref().is_some_and(|inbox| {
                        elapsed_ms(now_ms, inbox.progress_ms) >= options.message_timeout_ms
                    })
                {
                    self.fail(index, CloseReason::MessageTimeout);
                } else if options.idle_timeout_ms > 0
                    && elapsed_ms(now_ms, connection.message_ms) >= options.idle_timeout_ms
                {
                    self.fail(index, CloseReason::Idle);
                }
            }
        }
    }

    /// Ends a connection whose request did not come whole in time: who has begun one reads why (RFC 9110 §15.5.9).
    #[cold]
    fn give_up_request(&mut self, index: u32) {
        let connection = &self.connections[index];
        if connection.inbox.is_some() {
            self.refuse(index, &Refusal::of(RefusalKind::Timeout));
        } else if connection.has(flag::HEALTH_ANSWERED) {
            self.cut(index, CloseReason::NotUpgraded); // it got what it came for
        } else {
            self.cut(index, CloseReason::HandshakeTimeout);
        }
    }

    pub(super) fn drain_ordered(&mut self, order: DrainOrder) {
        if phase_of(order) < self.drain.phase() {
            return; // stopping never goes back
        }
        let begins = !self.drain.is_closing() && !self.drain.is_done();
        if begins && matches!(order, DrainOrder::Close { .. } | DrainOrder::Cut) {
            self.drain.began = self.now;
            self.drain.total = self.connections.count();
            self.work.quiet.push_back(Quiet::StopAccepting);
        }
        self.drain.order = Some(order);
        if order == DrainOrder::Cut {
            for index in 0..self.connections.length() {
                self.cut(index, CloseReason::Draining);
            }
        }
        self.drain_step();
    }

    /// Closes as many connections as the window's elapsed share asks for; all of them once it is over.
    fn drain_step(&mut self) {
        let Some(DrainOrder::Close { window_ms, notice }) = self.drain.order else {
            return;
        };
        let length = self.connections.length();
        if self.drain.window_is_over(self.now) {
            for index in 0..length {
                self.drain_close(index, notice);
            }
            return;
        }
        let elapsed_us = self.now.since(self.drain.began);
        let due = u64::from(self.drain.total) * elapsed_us / (u64::from(window_ms) * 1_000);
        while u64::from(self.drain.closed) < due && self.drain.cursor < length {
            let index = self.drain.cursor;
            self.drain.cursor += 1;
            if self.connections[index].state == State::Open {
                self.drain_close(index, notice);
                self.drain.closed += 1;
            } else {
                // It has no turn of its own: it left by itself, or is served until the window is over.
                self.drain.closed += u32::from(self.connections[index].state != State::Vacant);
            }
        }
    }

    /// Tells one connection to come back elsewhere, and closes it with 1012.
    fn drain_close(&mut self, index: u32, notice: bool) {
        let connection = &self.connections[index];
        match connection.state {
            State::Open => {
                if notice && !connection.has(flag::NO_NOTICES) {
                    let after_ms = self.options.reconnect_after_ms
                        + self.jittered(self.options.reconnect_after_ms);
                    self.queue_control(index, notice_reconnect(after_ms), Reserve::Control);
                }
                self.fail(index, CloseReason::Draining);
            }
            State::Handshake | State::Joining => self.cut(index, CloseReason::Draining),
            State::Vacant | State::Closing | State::Dead => {}
        }
    }

    /// Says once that nothing is left.
    pub(super) fn drain_progress(&mut self) {
        let all_told = self.presence.is_empty() || self.drain.is_cut();
        if self.drain.is_closing()
            && self.drain.listeners_stopped
            && self.connections.count() == 0
            && all_told
        {
            self.drain.done = true;
            self.forward(Upstream::Drained, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_visits_every_slot_once_a_round_whatever_the_ticks() {
        for ticks in [[7_u64, 93, 900], [333, 333, 334], [1_000, 0, 0]] {
            for length in [1, 3, 64, 1_000] {
                let mut cursor = Cursor::default();
                let mut visits = vec![0; length as usize];
                for _ in 0..5 {
                    for elapsed in ticks {
                        let (first, count) = cursor.advance(elapsed, 1_000, length);
                        for index in first..first + count {
                            visits[(index % length) as usize] += 1;
                        }
                    }
                }
                assert!(
                    visits.iter().all(|&count| count == 5),
                    "{ticks:?} over {length}: {visits:?}"
                );
            }
        }
    }
}
