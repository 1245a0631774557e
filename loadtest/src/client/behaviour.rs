//! What a scenario does on one worker, and what it is told there.

use std::net::IpAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use throng::runtime::ring::Options;

use super::crew::Orders;
use super::link::Message;
use super::tally::Tally;
use crate::dialect::Dialect;
use crate::random::Random;
use crate::target::Target;

/// The close code that stands for "no close frame" (RFC 6455 §7.4.1).
pub const CLOSE_ABNORMAL: u16 = 1006;
/// How the client ends a connection that it has had enough of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum Ending {
    /// It ends the TCP stream.
    Stream,
    /// It sends a close frame, and waits for the server to end the TCP stream (RFC 6455 §7.1.1).
    CloseFrame,
}

/// What all workers of a generator have in common.
#[derive(Debug)]
pub struct Plan {
    /// Where to connect.
    pub targets: Vec<Target>,
    /// Where from; empty: the kernel's choice.
    pub sources: Vec<IpAddr>,
    /// Connections of one worker that are being made at a time.
    pub connecting_max: u32,
    /// Connections of one worker at a time.
    pub alive_max: u32,
    /// Connects a second of one worker; 0: as fast as they are taken.
    pub connects_per_s: f64,
    /// From the connect to the upgrade's answer at most.
    pub handshake_timeout: Duration,
    /// How connections end.
    pub ending: Ending,
    /// Processors that workers are pinned to in turn; empty: none.
    pub cores: Vec<usize>,
    /// The ring of each worker.
    pub ring: Options,
    /// What the rooms' names have of their own in this run.
    pub run_id: String,
    /// Where keys and masks come from.
    pub seed: u64,
}

/// Where a member belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// What its room's name begins with.
    pub prefix: &'a str,
    /// Its room's number.
    pub room: u32,
    /// Which of [`Plan::targets`]; taken modulo their number.
    pub target: u32,
}

/// What a behaviour answers to one connection.
#[derive(Debug, Default)]
pub struct Reply {
    /// Frames to send.
    pub bytes: Vec<u8>,
    /// Read nothing more of it until then, by [`crate::clock::now_ns`]; `u64::MAX`: until an order to resume.
    pub pause_until_ns: Option<u64>,
    /// End it, by [`Plan::ending`].
    pub end: bool,
    /// Where masks come from.
    pub masks: Masks,
}

/// Frames for several connections.
#[derive(Debug, Default)]
pub struct Posts {
    /// Frames, one after the other.
    pub(super) bytes: Vec<u8>,
    /// Whose they are, and where they end.
    pub(super) ends: Vec<(u32, usize)>,
    /// Who ends its connection.
    pub(super) leaving: Vec<u32>,
    pub(super) masks: Masks,
}

impl Posts {
    /// Publishes for `local`; `write` fills the payload.
    pub fn publish(
        &mut self,
        dialect: Dialect,
        local: u32,
        payload_bytes: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        dialect.publish(&mut self.bytes, self.masks.next(), payload_bytes, write);
        match self.ends.last_mut() {
            Some((last, end)) if *last == local => *end = self.bytes.len(),
            _ => self.ends.push((local, self.bytes.len())),
        }
    }

    /// Ends `local`'s connection, by [`Plan::ending`].
    pub fn leave(&mut self, local: u32) {
        self.leaving.push(local);
    }
}

/// Frame masks. They keep proxies from being confused (RFC 6455 §10.3) and hide nothing from anybody, so that on
/// loopback any cheap sequence serves.
#[derive(Debug, Default)]
pub struct Masks(Random);

impl Masks {
    /// The sequence that `seed` begins.
    pub const fn new(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    /// The next mask.
    pub fn next(&mut self) -> [u8; 4] {
        ((self.0.next() >> 32) as u32).to_le_bytes()
    }
}

/// Why a member is not connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// An order dropped all connections.
    Dropped,
    /// Its behaviour ended it.
    Left,
    /// The server closed it, with this code ([`CLOSE_ABNORMAL`]: without a close frame).
    Closed(u16),
    /// The upgrade was refused, with this HTTP status (0: no HTTP).
    Refused(u16),
    /// The connect failed, or the stream ended or was silent before the upgrade's answer.
    Failed,
}

/// What a behaviour makes of a [`Cause`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// It is part of the scenario, no fault.
    pub expected: bool,
    /// Connect again then, by [`crate::clock::now_ns`].
    pub again_at_ns: Option<u64>,
}

/// What a scenario does on one worker. Members are numbered from 0 within the worker.
pub trait Behaviour: Sized {
    /// Where a member belongs, for its next connect.
    fn place(&self, local: u32) -> Place<'_>;
    /// A member is upgraded.
    fn opened(&mut self, local: u32, now_ns: u64, reply: &mut Reply);
    /// A text or binary message came.
    fn message(&mut self, local: u32, message: Message<'_>, now_ns: u64, reply: &mut Reply);
    /// Orders have changed.
    fn obey(&mut self, _orders: &Orders, _now_ns: u64) {}
    /// Puts what is due into `posts`; returns when to be asked again.
    fn turn(&mut self, _now_ns: u64, _posts: &mut Posts) -> Option<u64> {
        None
    }
    /// A member is not connected any more, or could not be.
    fn closed(&mut self, _local: u32, _cause: Cause, _now_ns: u64) -> Verdict {
        Verdict::default()
    }
    /// Messages published and received, and faulty deliveries so far.
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }
    /// The latencies since this was last asked.
    fn take_interval(&mut self) -> Option<Histogram<u64>> {
        None
    }
    /// How much each of this worker's publishers published: publisher, count.
    fn published(&self) -> Vec<(u32, u32)> {
        Vec::new()
    }
    /// What was counted, now that it is known how much every publisher of the run published.
    fn tally(self, published: &[u32]) -> Tally;
}

/// What flowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages published.
    pub published: u64,
    /// Messages received that were not seen before.
    pub received: u64,
    /// Deliveries that were not as they should be.
    pub faults: u64,
}
