//! One core's world: connections, room table, memory ledger, outboxes, heartbeat sweep.
//!
//! Rule of this room: a shard is a state machine that takes bytes and time and gives back actions. It owns all that it
//! touches but the counts in [`Node`], knows no socket and no clock, and meets the backplane only in bus envelopes.
//!
//! ```text
//!            receive.rs            publish.rs                 deliver.rs
//! bytes ──▶ frames, messages ──▶ room's turn ──┬─ order here ─▶ members ──▶ actions: fan-out, send
//!                                              └─ order bus ──▶ forward ──▶ backplane ──▶ delivery ──┘
//! time ──▶ sweep.rs: heartbeats, timeouts, drain        life.rs: open, upgrade, join, leave, close
//! ```
#![forbid(unsafe_code)]

mod absent;
mod answer;
mod arrival;
mod connection;
mod deliver;
mod inbox;
mod ledger;
mod life;
mod loss;
mod node;
mod options;
mod outbox;
mod presence;
mod publish;
mod rate;
mod receive;
mod room;
mod sweep;
#[cfg(test)]
mod tests;
mod users;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use absent::Absent;
use connection::{Connections, State, flag};
use ledger::Ledger;
use presence::PresenceNotes;
use rate::TokenBucket;
use room::{RoomIndex, RoomTable, SpareGathered};
use sweep::{Drain, Sweep};
use users::Users;

use crate::bus::{CoreId, Downstream, Upstream};
use crate::metrics::ShardCounters;
use crate::protocol::{Encoded, Piece, handshake};
use crate::time::Tick;

pub use node::Node;
pub use options::{HeartbeatMode, Options, Presence, RoomRule};

/// Who puts this shard's messages in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The shard itself: it is the only one, and there is no Redis.
    Inline,
    /// The backplane core.
    Bus,
}

/// What happens to a shard. `index` is the token that the engine gave the socket.
#[derive(Debug)]
pub enum Input<'a> {
    /// A socket was accepted.
    Opened {
        /// Its token.
        index: u32,
        /// The other end.
        peer: SocketAddr,
    },
    /// Bytes came from it. They are copied where they are kept.
    Received {
        /// Its token.
        index: u32,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The peer's stream has ended.
    ReceiveEnded {
        /// Its token.
        index: u32,
        /// Not by the peer's own end of stream, but by an error.
        broken: bool,
    },
    /// The kernel took bytes of the send in flight: refunds the ledger.
    Written {
        /// Its token.
        index: u32,
        /// How many.
        bytes: u32,
        /// All of it: the next send may be given.
        done: bool,
    },
    /// The send in flight has failed.
    WriteFailed {
        /// Its token.
        index: u32,
    },
    /// The engine has nothing left of the socket.
    Closed {
        /// Its token.
        index: u32,
    },
    /// An envelope from the backplane core.
    Downstream(Downstream),
    /// All listeners have stopped, after [`Action::StopAccepting`].
    ListenersStopped,
    /// What the lane to the backplane core takes now. Given before the other inputs of a turn.
    BusRoom {
        /// Envelopes.
        envelopes: usize,
        /// Payload bytes.
        bytes: usize,
    },
}

/// What the engine is to do. Performed in the order given.
#[derive(Debug)]
pub enum Action<'a> {
    /// Send all of `encoded` to each of `targets`; none of them has a send in flight.
    FanOut {
        /// The bytes.
        encoded: &'a Encoded,
        /// Tokens.
        targets: &'a [u32],
    },
    /// Send `pieces` in one go; no send is in flight.
    Send {
        /// The token.
        index: u32,
        /// The pieces, in order.
        pieces: &'a [Piece],
    },
    /// Hand an envelope to the backplane core. Never more than [`Input::BusRoom`] allowed, control apart.
    Forward {
        /// The envelope.
        envelope: Upstream,
        /// Payload bytes it carries; 0: control.
        bytes: u32,
    },
    /// Stop receiving from it soon.
    ReadPause {
        /// The token.
        index: u32,
    },
    /// Receive from it again.
    ReadResume {
        /// The token.
        index: u32,
    },
    /// End our side of the stream; nothing is in flight.
    ShutdownWrite {
        /// The token.
        index: u32,
    },
    /// End everything; [`Input::Closed`] follows.
    Close {
        /// The token.
        index: u32,
    },
    /// Accept what waits in the listeners' queues and stop; [`Input::ListenersStopped`] follows.
    StopAccepting,
}

/// How soon publishers that wait are tried again, when nothing else brings a turn.
const PAUSE_RETRY_US: u64 = 500;

/// Actions that are rare enough to wait in a queue.
#[derive(Debug)]
enum Quiet {
    ReadPause(u32),
    ReadResume(u32),
    ShutdownWrite(u32),
    Close(u32),
    StopAccepting,
}

impl Quiet {
    fn is_about(&self, token: u32) -> bool {
        match *self {
            Self::ReadPause(index)
            | Self::ReadResume(index)
            | Self::ShutdownWrite(index)
            | Self::Close(index) => index == token,
            Self::StopAccepting => false,
        }
    }
}

#[derive(Debug)]
struct FanOut {
    encoded: Encoded,
    /// Offset behind its last target; its first is where the one before ends.
    end: usize,
}

/// Work of the turn that the engine has not taken yet.
#[derive(Debug, Default)]
struct Work {
    forwards: VecDeque<(Upstream, u32)>,
    fan_outs: Vec<FanOut>,
    fan_outs_taken: usize,
    targets: Vec<u32>,
    /// Connections with something in their outbox and no send in flight.
    dirty: Vec<u32>,
    pieces: Vec<Piece>,
    quiet: VecDeque<Quiet>,
}

/// One core's world.
///
/// Contract: any number of [`Shard::handle`], then one [`Shard::end_turn`], then [`Shard::poll_action`] until it gives
/// `None`; only then wait, until [`Shard::next_deadline`] at most.
#[derive(Debug)]
pub struct Shard {
    core: CoreId,
    options: Options,
    handshake: handshake::Options,
    delivery: Delivery,
    node: Arc<Node>,
    connections: Connections,
    rooms: RoomTable,
    /// The hidden room that reaches everybody.
    everybody: RoomIndex,
    users: Users,
    absent: Absent,
    presence: PresenceNotes,
    /// Rooms that gathered something in this turn. May name rooms that were closed since.
    rooms_dirty: Vec<RoomIndex>,
    spare_gathered: SpareGathered,
    ledger: Ledger,
    /// Bytes gathered in this turn and not encoded yet, with the entries of their messages.
    gathered_bytes: u64,
    /// Connections that are not read, because what they publish finds no room.
    /// Index and generation; who was closed since is passed over.
    paused: Vec<(u32, u32)>,
    bus_envelopes: usize,
    bus_bytes: usize,
    handshake_bucket: TokenBucket,
    /// Answers to upgrades that wait for their room's interest to hold.
    joining: HashMap<u32, Vec<u8>, foldhash::fast::FixedState>,
    sweep: Sweep,
    drain: Drain,
    counters: ShardCounters,
    connections_open: u64,
    queued: answer::Queued,
    jitter: u64,
    now: Tick,
    work: Work,
}

impl Shard {
    /// An empty shard. `seed` is its only source of randomness.
    #[must_use]
    pub fn new(
        core: CoreId,
        options: Options,
        delivery: Delivery,
        node: Arc<Node>,
        seed: u64,
        now: Tick,
    ) -> Self {
        let handshake = handshake::Options {
            bytes_max: options.handshake_bytes_max as usize,
            header_count_max: options.handshake_header_count_max as usize,
            origins: options.origins.clone(),
            edge: options.edge.clone(),
        };
        let mut shard = Self {
            core,
            handshake,
            delivery,
            connections: Connections::default(),
            rooms: RoomTable::new(options.rooms.clone(), options.room_count_max, seed),
            everybody: RoomIndex::NONE,
            users: Users::new(seed),
            absent: Absent::new(seed),
            presence: PresenceNotes::default(),
            rooms_dirty: Vec::new(),
            spare_gathered: SpareGathered::default(),
            ledger: Ledger::new(options.shard_bytes_max, Arc::clone(&node)),
            gathered_bytes: 0,
            paused: Vec::new(),
            bus_envelopes: 0,
            bus_bytes: 0,
            handshake_bucket: TokenBucket::new(
                options.handshakes_per_s_max,
                options.handshakes_per_s_max,
                now,
            ),
            joining: HashMap::with_hasher(foldhash::fast::FixedState::with_seed(seed)),
            sweep: Sweep::new(now),
            drain: Drain::default(),
            counters: ShardCounters::default(),
            connections_open: 0,
            queued: answer::Queued::default(),
            jitter: seed | 1,
            now,
            work: Work::default(),
            node,
            options,
        };
        shard.follow_everybody();
        shard
    }

    /// Takes news in.
    pub fn handle(&mut self, input: Input<'_>, now: Tick) {
        self.now = now;
        match input {
            Input::Received { index, bytes } => self.receive(index, bytes),
            Input::Written { index, bytes, done } => self.written(index, bytes, done),
            Input::Opened { index, peer } => self.open(index, peer),
            Input::ReceiveEnded { index, broken } => self.receive_ended(index, broken),
            Input::WriteFailed { index } => self.write_failed(index),
            Input::Closed { index } => self.closed(index),
            Input::Downstream(envelope) => self.downstream(envelope),
            Input::ListenersStopped => self.drain.listeners_stopped = true,
            Input::BusRoom { envelopes, bytes } => {
                self.bus_envelopes = envelopes;
                self.bus_bytes = bytes;
                if !self.paused.is_empty() {
                    self.resume_publishers(); // before anybody who comes in this turn
                }
            }
        }
    }

    /// Ends the turn: what the rooms gathered is delivered or forwarded, and publishers that waited may go on.
    pub fn end_turn(&mut self, now: Tick) {
        self.now = now;
        if !self.paused.is_empty() {
            self.resume_publishers();
        }
        self.flush_rooms();
        self.flush_presence();
        self.drain_progress();
    }

    /// Does what is due by time.
    pub fn handle_deadline(&mut self, now: Tick) {
        self.now = now;
        self.retry_absent();
        self.run_sweep();
    }

    /// When [`Shard::handle_deadline`] wants to be called at the latest; `None`: nothing depends on time.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        let sweep =
            (self.connections.count() > 0 || self.drain.is_closing()).then(|| self.sweep.next_at());
        // Nobody tells when there is room again for publishers, or notes, that wait.
        let waits = !self.paused.is_empty() || !self.presence.is_empty();
        let retry = waits.then(|| Tick(self.now.0 + PAUSE_RETRY_US));
        [sweep, retry, self.absent.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next thing to do; `None`: wait.
    pub fn poll_action(&mut self) -> Option<Action<'_>> {
        if let Some((envelope, bytes)) = self.work.forwards.pop_front() {
            return Some(Action::Forward { envelope, bytes });
        }
        if self.work.fan_outs_taken < self.work.fan_outs.len() {
            let taken = self.work.fan_outs_taken;
            self.work.fan_outs_taken += 1;
            let start = if taken == 0 {
                0
            } else {
                self.work.fan_outs[taken - 1].end
            };
            let FanOut { encoded, end } = &self.work.fan_outs[taken];
            return Some(Action::FanOut {
                encoded,
                targets: &self.work.targets[start..*end],
            });
        }
        if !self.work.fan_outs.is_empty() {
            self.work.fan_outs.clear();
            self.work.fan_outs_taken = 0;
            self.work.targets.clear();
        }
        self.work.pieces.clear();
        while let Some(index) = self.work.dirty.pop() {
            if self.take_send(index) {
                return Some(Action::Send {
                    index,
                    pieces: &self.work.pieces,
                });
            }
        }
        self.work.quiet.pop_front().map(|quiet| match quiet {
            Quiet::ReadPause(index) => Action::ReadPause { index },
            Quiet::ReadResume(index) => Action::ReadResume { index },
            Quiet::ShutdownWrite(index) => Action::ShutdownWrite { index },
            Quiet::Close(index) => Action::Close { index },
            Quiet::StopAccepting => Action::StopAccepting,
        })
    }

    /// Whether the shard was told to close its connections, and has none left, and accepts none.
    #[must_use]
    pub const fn is_drained(&self) -> bool {
        self.drain.is_done()
    }

    /// What it has counted.
    #[must_use]
    pub const fn counters(&self) -> &ShardCounters {
        &self.counters
    }

    fn forward(&mut self, envelope: Upstream, bytes: u32) {
        self.work.forwards.push_back((envelope, bytes));
    }

    /// A number from 0 to `span`, both included. Spreads retries; not a secret (xorshift64).
    fn jittered(&mut self, span: u32) -> u32 {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        u32::try_from(self.jitter % (u64::from(span) + 1)).expect("at most span")
    }

    fn downstream(&mut self, envelope: Downstream) {
        match envelope {
            Downstream::Delivery { room, batch } => self.delivered(&room, &batch),
            Downstream::Publish { room, batch } => self.publish_from_bus(&room, &batch),
            Downstream::Joined { room, leased } => self.joined(&room, leased),
            Downstream::JoinRefused { room } => self.join_refused(&room),
            Downstream::LeaseRevoke { room } => self.lease_revoked(room),
            Downstream::Gap { room, missed } => self.gap(&room, missed),
            Downstream::Refused { batch, local } => self.publishes_refused(&batch, local),
            Downstream::Announce { within_ms } => self.announce(within_ms),
            Downstream::Probe { sequence } => self.forward(Upstream::ProbeReply { sequence }, 0),
            Downstream::Ask { request, question } => self.asked(request, &question),
            Downstream::Drain(order) => self.drain_ordered(order),
        }
    }

    /// Checks everything that must hold between turns. For tests: it looks at every connection and room.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn check_invariants(&self) {
        let mut account_bytes = 0u64;
        let (mut open, mut users) = (0, 0);
        for (index, connection) in self.connections.iter() {
            account_bytes += u64::from(connection.charged_bytes());
            if connection.has(flag::USER) {
                account_bytes += u64::from(self.users.charged_bytes(index));
                users += 1;
            }
            open += u64::from(connection.state == State::Open);
            let queued = connection
                .outbox
                .as_ref()
                .map_or(0, |outbox| outbox.queued_bytes());
            assert!(
                connection.queued_bytes >= queued,
                "{index}: queued bytes are counted"
            );
            assert!(
                connection.has(flag::SENDING) || connection.queued_bytes == queued,
                "{index}: nothing is in flight"
            );
            assert!(
                queued <= outbox::Reserve::Close.limit(self.options.connection_queue_bytes_max),
                "{index}: the queue is within its budget"
            );
            if matches!(connection.state, State::Open | State::Joining) {
                assert_eq!(
                    self.rooms[connection.room].members[connection.member_index as usize],
                    index
                );
            } else {
                assert_eq!(
                    connection.room,
                    RoomIndex::NONE,
                    "{index}: {:?} is in no room",
                    connection.state
                );
            }
            assert!(
                !connection.has(flag::PAUSED)
                    || self.paused.contains(&(index, connection.generation)),
                "{index}: paused are listed"
            );
        }
        assert_eq!(
            account_bytes,
            self.ledger.account_bytes(),
            "the ledger balances"
        );
        assert_eq!(open, self.connections_open);
        let mut members = 0;
        for (index, room) in self.rooms.iter() {
            members += room.members.len();
            assert!(
                index == self.everybody || !room.members.is_empty() || room.answers_due > 0,
                "an empty room waits for an answer"
            );
            assert!(
                room.incoming.is_none() && room.outgoing.is_none(),
                "a turn leaves nothing gathered"
            );
            assert!(self.delivery == Delivery::Bus || room.order == room::Order::Here);
        }
        let in_rooms = self
            .connections
            .iter()
            .filter(|(_, c)| c.room != RoomIndex::NONE)
            .count();
        assert_eq!(members, in_rooms + users);
        assert_eq!(users, self.users.identity_count());
        self.check_users();
        self.check_absent();
        assert_eq!(self.gathered_bytes, 0);
    }
}
