//! Redis between the nodes: every publish goes through it, and comes back to every node that follows the room.
//!
//! Rule of this room: bytes, time and news of sockets come in, bytes and orders go out; it knows no socket and no clock,
//! and what shards are told leaves as [`Effect`]s, in the order in which members are to see it.
//!
//! ```text
//! publish ─▶ Outgoing (numbered, kept) ─▶ publishing link ─PUBLISH─▶ Redis ─▶ other nodes
//!                   ▲ acknowledged ◀──────────────┘                    │
//! interest ─▶ Channels ─SUBSCRIBE─▶ subscription link ◀──message───────┘
//!                                        └─▶ Arrivals: holes, duplicates ─▶ Effect::Deliver, Effect::Gap
//! ```
//!
//! # One order
//! The order of a room's messages is Redis' order, on every node, this one included. While Redis cannot be reached and
//! [`Degraded::Local`] holds, members of this node hear each other in this core's order, and nobody else.
//!
//! # Loss is never silent
//! A batch stays in the buffer until Redis has it, and is sent again under its old number when the link was lost. A
//! receiver drops what it has, counts what is missing, and tells the members. After a lost subscription they are told
//! that something may be missing: a node that was never heard may have published meanwhile, and no sequence shows that.
#![forbid(unsafe_code)]

mod address;
mod arrivals;
mod channels;
mod cluster;
mod commands;
mod deadlines;
mod directory;
mod fleet;
mod greeting;
mod life;
mod link;
mod moves;
mod names;
mod naming;
pub(super) mod offer;
mod options;
mod outgoing;
mod outlets;
pub mod placement;
mod pulse;
mod rank;
mod refusal;
mod replies;
mod sentinel;
mod sharded;
mod shell;
mod streams;
#[cfg(test)]
mod tests;
mod transit;
mod watching;
pub mod wire;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

pub use super::resp::Reply;
pub use address::{Access, Address, Endpoint, Kind, Source, without_password};
pub(crate) use directory::Topology;
pub use fleet::Fleet;
pub(crate) use greeting::{Greeting, Step};
pub use link::{LinkId, Role};
pub use options::{AtStart, Degraded, FALLEN_BACK, Mode, Options, SERVER_COUNT_MAX};
pub(super) use outlets::Outlets;
pub(super) use refusal::shown;
pub(crate) use refusal::{Grant, explain, explain_junk, explain_silence};
pub(crate) use sentinel::{SWITCH_CHANNEL, master_of, unknown_master};
pub(super) use streams::deeds as streams_deeds;

use self::arrivals::Arrival;
use self::channels::{Channels, Interest};
use self::commands::Asked;
use self::link::{Link, Random};
use self::moves::News;
use self::naming::Naming;
use self::outgoing::{Entry, Outgoing};
use self::placement::{Partitions, Tag};
use self::pulse::Pulse;
use self::rank::Rank;
use self::sharded::Asks;
use self::streams::Streams;
use super::ShardSet;
use crate::bus::{Batch, CoreId, RoomName, hidden};
use crate::metrics::RedisSnapshot;
use crate::time::Tick;

/// Encoded commands that wait for their socket, at most: what is beyond stays in the buffer.
const OUT_BYTES_MAX: usize = 256 << 10;
/// While Redis answers, a full buffer makes publishers wait; so long without an answer, it refuses them.
const STALL_MAX: Duration = Duration::from_secs(1);
/// At a stop, what waits is given so long to leave.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// What the shards are to be told, or some of them.
#[derive(Debug)]
pub enum Effect {
    /// The interest of these shards holds.
    Joined {
        /// The room.
        room: RoomName,
        /// Who waited.
        shards: ShardSet,
    },
    /// The interest of these shards does not hold.
    JoinRefused {
        /// The room.
        room: RoomName,
        /// Who waited.
        shards: ShardSet,
    },
    /// Messages for whoever has members of the room.
    Deliver {
        /// The room.
        room: RoomName,
        /// The messages.
        batch: Arc<Batch>,
    },
    /// Messages are missing here.
    Gap {
        /// The room.
        room: RoomName,
        /// How many; `None`: nobody knows.
        missed: Option<u64>,
    },
    /// Other nodes will not see these messages.
    Refused {
        /// Whose they are.
        to: CoreId,
        /// The messages.
        batch: Arc<Batch>,
        /// Members on this node got them.
        local: bool,
    },
    /// What became of a command that was given with [`Remote::command`].
    Answered {
        /// Its number.
        ticket: u64,
        /// The answer; `None`: the link was lost first, and nobody knows whether it was carried out.
        reply: Option<Reply>,
    },
}

/// Work for the shell's sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkOrder {
    /// Connect, and say `connected` or `failed`.
    Connect {
        /// The link.
        link: LinkId,
        /// Where to.
        address: Address,
    },
    /// Close the socket, if there is one; its news are not wanted any more.
    Close(LinkId),
    /// Redis cannot be used at the start, and the node is not to wait for it.
    Fatal(String),
}

/// What becomes of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It was taken.
    Taken,
    /// Redis cannot be reached and the buffer is full: other nodes will not see it.
    Refused {
        /// Members on this node got it.
        local: bool,
    },
}

/// A link that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkTrouble {
    /// The server.
    pub server: String,
    /// Which.
    pub link: &'static str,
    /// What it does.
    pub state: &'static str,
    /// Since when, microseconds ago.
    pub since_us: u64,
    /// Why, in words.
    pub reason: String,
}

/// What is expected on the publishing link, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Batch,
    /// Its number.
    Probe(u64),
    /// Whether the server is a master still.
    Rank,
    Script,
    Server,
}

/// The state machine. After each input, drain [`Self::poll_effect`] and [`Self::poll_order`].
#[derive(Debug)]
pub struct Remote {
    options: Options,
    /// Which of the servers it is.
    server: u16,
    /// Names this process to the others.
    node: u64,
    random: Random,
    publishing: Link,
    subscription: Link,
    commands: Link,
    /// What the commands link owes an answer to, oldest first.
    asked: VecDeque<Asked>,
    outgoing: Outgoing,
    /// Answers that the publishing link owes, and when each was asked for.
    expected: VecDeque<(Expected, Tick)>,
    channels: Channels,
    naming: Naming,
    /// With partitions: what leads the probe channel to this server.
    probe_tag: Option<Tag>,
    /// The subscription to the probe channel is asked for.
    probe_asked: bool,
    /// It stands.
    probe_stands: bool,
    /// With [`Mode::Sharded`]: what the subscription link was asked, and has not answered.
    asks: Asks,
    /// Rooms that have gone to another server while something of theirs was on its way: how much.
    leaving: HashMap<RoomName, u32, FixedState>,
    news: VecDeque<News>,
    /// Only asked for the cluster's servers: it carries nothing.
    is_scout: bool,
    /// What it was told then.
    scouted: VecDeque<Option<Reply>>,
    /// When a command was sent last on the subscription link whose answers are still due.
    asked_at: Tick,
    pulse: Pulse,
    rank: Rank,
    streams: Option<Box<Streams>>,
    effects: VecDeque<Effect>,
    orders: VecDeque<LinkOrder>,
    counts: RedisSnapshot,
    /// Redis could be used once.
    started: bool,
    closing: Option<Tick>,
    scratch: Vec<u8>,
}

impl Remote {
    /// A backplane whose links are to be connected. `seed` is its only source of randomness.
    #[must_use]
    pub fn new(options: Options, server: u16, seed: u64, now: Tick) -> Self {
        let mut random = Random::new(seed);
        let node = random.up_to(u64::MAX - 1);
        Self {
            server,
            node,
            publishing: Link::new(Role::Publishing, &options, now),
            subscription: Link::new(Role::Subscription, &options, now),
            commands: Link::new(Role::Commands, &options, now),
            asked: VecDeque::new(),
            outgoing: Outgoing::new(node, seed),
            expected: VecDeque::new(),
            channels: Channels::new(&options, seed),
            naming: Naming::new(
                &options.prefix,
                options
                    .has_tags()
                    .then(|| Partitions::new(options.partitions)),
            ),
            probe_tag: None,
            probe_asked: false,
            probe_stands: false,
            asks: Asks::default(),
            leaving: HashMap::with_hasher(FixedState::with_seed(seed)),
            news: VecDeque::new(),
            is_scout: false,
            scouted: VecDeque::new(),
            asked_at: now,
            pulse: Pulse::new(&options),
            rank: Rank::new(now),
            streams: (options.mode == Mode::Streams)
                .then(|| Box::new(Streams::new(&options, seed, now))),
            effects: VecDeque::new(),
            orders: VecDeque::new(),
            counts: RedisSnapshot {
                configured: true,
                buffer_bytes_max: options.buffer_bytes_max,
                ..RedisSnapshot::default()
            },
            started: false,
            closing: None,
            scratch: Vec::new(),
            random,
            options,
        }
    }

    /// The same for one of a node's servers: the node is `node` to all of them.
    #[must_use]
    pub fn of_node(self, node: u64, seed: u64) -> Self {
        Self {
            node,
            outgoing: Outgoing::new(node, seed),
            ..self
        }
    }

    // --- the shards' side -------------------------------------------------------------------------------------------

    /// A shard has its first member in a room.
    pub fn interest(&mut self, shard: CoreId, room: &RoomName, now: Tick) {
        let (room, shards) = (room.clone(), ShardSet::of(shard));
        match self.channels.interest(shard, &room, now) {
            Interest::Stands => {
                if self.streams_join(shard, &room, now) {
                    self.effects.push_back(Effect::Joined { room, shards });
                }
            }
            Interest::Waits => self.ask(now),
            Interest::Refused => self.refuse_join(room, shards),
        }
    }

    fn refuse_join(&mut self, room: RoomName, shards: ShardSet) {
        // Who waited for a hidden one is let in without it.
        self.counts.joins_refused += u64::from(hidden(&room).is_none());
        self.effects.push_back(Effect::JoinRefused { room, shards });
    }

    /// A shard's last member has left a room; `is_last`: nobody here is in it any more.
    pub fn disinterest(&mut self, shard: CoreId, room: &RoomName, is_last: bool, now: Tick) {
        let waited = self.channels.disinterest(shard, room, is_last, now);
        if self.streams_leave(shard, room, is_last) || waited {
            let (room, shards) = (room.clone(), ShardSet::of(shard));
            self.effects.push_back(Effect::Joined { room, shards });
        }
    }

    /// Whether a publisher has to wait: the buffer is full, and Redis empties it.
    #[must_use]
    pub fn must_pause(&self, batch: &Batch, now: Tick) -> bool {
        self.is_full(batch) && self.is_flowing(now)
    }

    fn is_full(&self, batch: &Batch) -> bool {
        let bytes = self.outgoing.bytes() + Outgoing::cost(batch);
        bytes > self.options.buffer_bytes_max && self.outgoing.bytes() > 0
    }

    /// Messages for a room, from a shard or (`None`) from the admin API. A full buffer refuses them: see
    /// [`Self::must_pause`].
    pub fn publish(
        &mut self,
        room: &RoomName,
        batch: &Arc<Batch>,
        from: Option<CoreId>,
        now: Tick,
    ) -> Published {
        let degraded = self.options.degraded == Degraded::Local && !self.delivers(room);
        if self.is_full(batch) {
            let local = degraded && self.deliver_unnumbered(room, batch);
            self.refuse(from, batch, local);
            return Published::Refused { local };
        }
        let entry = self.outgoing.push(room, batch, from, now);
        if degraded {
            entry.local = true;
            let entry = entry.clone();
            self.deliver_here(&entry);
        }
        self.send(now);
        Published::Taken
    }

    /// Whether what is published comes back by itself: both links are up, and the room's channel stands if it has
    /// members here.
    fn delivers(&mut self, room: &str) -> bool {
        self.publishing.is_up()
            && self.subscription.is_up()
            && self
                .channels
                .arrivals_of_members(room)
                .is_none_or(|(stands, _)| stands)
    }

    /// Whether Redis acknowledges what it is sent.
    fn is_flowing(&self, now: Tick) -> bool {
        let oldest = self.outgoing.oldest().unwrap_or(now);
        self.publishing.is_up() && oldest.max(self.publishing.heard()).after(STALL_MAX) > now
    }

    /// Delivers to the members on this node, whatever has become of Redis. What comes back later is a duplicate then.
    fn deliver_here(&mut self, entry: &Entry) {
        let Stamped { first, count } = Stamped::of(entry);
        let stamp = entry.stamp;
        let Some((_, arrivals)) = self.channels.arrivals_of_members(&entry.room) else {
            return; // nobody here is in
        };
        if arrivals.has(stamp.node, stamp.epoch, first) {
            return;
        }
        let arrival = arrivals.arrive(stamp.node, stamp.epoch, first, count);
        self.counts.local_batches += 1;
        self.arrived(arrival, entry.room.clone(), Arc::clone(&entry.batch));
    }

    /// The same for what nobody else will ever see.
    fn deliver_unnumbered(&mut self, room: &RoomName, batch: &Arc<Batch>) -> bool {
        if self.channels.arrivals_of_members(room).is_none() {
            return false;
        }
        self.counts.local_batches += 1;
        let (room, batch) = (room.clone(), Arc::clone(batch));
        self.effects.push_back(Effect::Deliver { room, batch });
        true
    }

    /// Says of an arrival what is to be said, and delivers it.
    fn arrived(&mut self, arrival: Arrival, room: RoomName, batch: Arc<Batch>) {
        match arrival {
            Arrival::Next => {}
            Arrival::Hole(missing) => match self.streams_untold(&room, missing) {
                0 => {}
                missed => self.tell_gap(room.clone(), Some(missed)),
            },
            Arrival::Duplicate => return,
        }
        self.effects.push_back(Effect::Deliver { room, batch });
    }

    fn tell_gap(&mut self, room: RoomName, missed: Option<u64>) {
        self.counts.gaps += 1;
        self.counts.messages_missed += missed.unwrap_or_default();
        self.effects.push_back(Effect::Gap { room, missed });
    }

    fn refuse(&mut self, from: Option<CoreId>, batch: &Arc<Batch>, local: bool) {
        self.counts.messages_refused += batch.messages.len() as u64;
        if let Some(to) = from {
            let batch = Arc::clone(batch);
            self.effects.push_back(Effect::Refused { to, batch, local });
        }
    }

    // --- the links' side --------------------------------------------------------------------------------------------

    /// The socket that [`LinkOrder::Connect`] asked for is connected.
    pub fn connected(&mut self, role: Role, now: Tick) {
        let options = &self.options;
        match role {
            Role::Publishing => self.publishing.connected(options, now),
            Role::Subscription => self.subscription.connected(options, now),
            Role::Commands => self.commands.connected(options, now),
        }
    }

    /// The socket could not be connected, or has ended.
    pub fn failed(&mut self, role: Role, reason: String, now: Tick) {
        let reason = self.link(role).explain_end(reason, &self.options.address);
        self.link_failed(role, reason, now);
    }

    /// What is to be written to the link's socket now.
    #[must_use]
    pub fn output(&self, role: Role, now: Tick) -> &[u8] {
        self.link(role).output(now)
    }

    /// So much of it was written.
    pub fn written(&mut self, role: Role, bytes: usize, now: Tick) {
        let gather = Duration::from_micros(u64::from(self.options.flush_us));
        self.link_mut(role).written(bytes, gather, now);
        if role == Role::Publishing {
            self.send(now);
        }
    }

    fn id(&self, role: Role) -> LinkId {
        let server = self.server;
        LinkId { server, role }
    }

    fn link(&self, role: Role) -> &Link {
        match role {
            Role::Publishing => &self.publishing,
            Role::Subscription => &self.subscription,
            Role::Commands => &self.commands,
        }
    }

    fn link_mut(&mut self, role: Role) -> &mut Link {
        match role {
            Role::Publishing => &mut self.publishing,
            Role::Subscription => &mut self.subscription,
            Role::Commands => &mut self.commands,
        }
    }

    fn link_failed(&mut self, role: Role, reason: String, now: Tick) {
        // Another mode may be let in.
        let falls_back = |news: &News| matches!(news, News::Forbidden(_));
        if self.options.at_start == AtStart::Fail
            && !self.started
            && self.closing.is_none()
            && !self.news.iter().any(falls_back)
        {
            self.orders.push_back(LinkOrder::Fatal(format!(
                "Redis at {} cannot be used ({} link): {reason}",
                self.options.address.endpoint,
                role.label()
            )));
        }
        self.end_link(role, reason, now);
    }

    /// Ends a link; it is made again after a rest.
    fn end_link(&mut self, role: Role, reason: String, now: Tick) {
        let was_up = self.link(role).is_up();
        match role {
            Role::Publishing => {
                self.publishing.fail(reason, now, &mut self.random);
                self.expected.clear();
                self.outgoing.rewind();
                if self.pulse.pending().is_some() {
                    self.ask_probe_again(now); // nobody knows whether the other link is as silent
                }
                self.return_leaving();
                if let Some(streams) = &mut self.streams {
                    streams.publishing_lost();
                }
            }
            Role::Subscription => {
                self.subscription.fail(reason, now, &mut self.random);
                self.probe_asked = false;
                self.probe_stands = false;
                self.asks.clear();
                self.channels.lose();
                self.streams_lost();
            }
            Role::Commands => self.commands_lost(reason, now),
        }
        self.orders.push_back(LinkOrder::Close(self.id(role)));
        self.news.push_back(News::Lost(role));
        if role == Role::Commands {
            return;
        }
        self.pulse.lost();
        if was_up && self.options.degraded == Degraded::Local {
            // What would have come back through Redis, and now may not, or much later. (What was published since a link
            // was lost was delivered as it came.)
            let retained = self.streams.as_ref().map(|streams| streams.retained.iter());
            let retained = retained.into_iter().flatten();
            let waiting: Vec<Entry> = retained.chain(self.outgoing.iter()).cloned().collect();
            for entry in &waiting {
                self.deliver_here(entry);
            }
            self.outgoing.mark_local(|_| true);
        }
    }

    /// A link may be used from now on.
    fn link_ready(&mut self, role: Role, now: Tick) {
        match role {
            Role::Publishing => {
                self.rank.greeted(now);
                self.streams_prepare(now);
                self.send(now);
            }
            Role::Subscription => {
                self.channels.found();
                self.ask_probe(now);
                self.ask(now);
            }
            Role::Commands => {
                if self.streams.is_none() || self.is_scout {
                    self.commands.proven(); // else its clock proves it
                }
                self.streams_commands_ready(now);
            }
        }
    }

    /// Moves what may go from the buffer to the publishing link.
    fn send(&mut self, now: Tick) {
        if !self.publishing.is_up() || !self.may_send() {
            return;
        }
        let publish = self.words().publish;
        while self.publishing.out_bytes() < OUT_BYTES_MAX {
            let Some(entry) = self.outgoing.send_next() else {
                break;
            };
            let channel = self.naming.channel(&entry.room);
            self.scratch.clear();
            wire::encode_batch(&mut self.scratch, &entry.stamp, &entry.batch);
            match &mut self.streams {
                Some(streams) => {
                    let (link, prefix) = (&mut self.publishing, &self.options.prefix);
                    streams.append(link, prefix, &channel, entry, &self.scratch);
                }
                None => self.publishing.command(&[publish, &channel, &self.scratch]),
            }
            self.expected.push_back((Expected::Batch, now));
            self.counts.commands_publish += 1;
            self.counts.batches_published += 1;
            self.counts.messages_published += entry.batch.messages.len() as u64;
        }
    }

    /// Where nothing was delivered here meanwhile, what waits is sent only once it comes back to the members here.
    fn may_send(&self) -> bool {
        if self
            .streams
            .as_ref()
            .is_some_and(|streams| !streams.is_ready())
        {
            return false;
        }
        self.options.degraded == Degraded::Local
            || self.closing.is_some()
            || self.subscription.is_up() && self.channels.is_settled()
    }

    /// Subscribes to what is queued, as much as may be by now.
    fn ask(&mut self, now: Tick) {
        if !self.subscription.is_up() || self.closing.is_some() {
            return;
        }
        let rooms = self.channels.take_asks(now);
        if rooms.is_empty() {
            return;
        }
        self.asked_at = now;
        self.channel_command(false, &rooms);
    }

    // --- what comes out ---------------------------------------------------------------------------------------------

    /// The next thing that shards are to be told.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The next thing that the sockets are to do.
    pub fn poll_order(&mut self) -> Option<LinkOrder> {
        self.orders.pop_front()
    }

    /// The links that are not proven to work, and why.
    #[must_use]
    pub fn troubles(&self, now: Tick) -> Vec<LinkTrouble> {
        let of = |link: &Link| {
            let (since, reason) = link.trouble()?;
            let reason = match link.is_up() {
                true if link.role() == Role::Subscription && !self.channels.is_settled() => {
                    format!(
                        "{} rooms are to be subscribed to",
                        self.channels.missing_count()
                    )
                }
                true => match link.refused() {
                    Some(reason) => reason.to_owned(),
                    None if link.role() == Role::Commands => {
                        "its clock has not been written".to_owned()
                    }
                    None => "its first probe has not come back".to_owned(),
                },
                false => reason.to_owned(),
            };
            Some(LinkTrouble {
                server: self.options.address.endpoint.to_string(),
                link: link.role().label(),
                state: link.state_label(),
                since_us: now.since(since),
                reason,
            })
        };
        // Rooms cannot be looked up without it, and joins wait.
        let commands = self.streams.is_some().then_some(&self.commands);
        [&self.publishing, &self.subscription]
            .into_iter()
            .chain(commands)
            .filter(|_| !self.is_scout)
            .filter_map(of)
            .collect()
    }

    /// Everything counted, and what is held now.
    #[must_use]
    pub fn snapshot(&self, now: Tick) -> RedisSnapshot {
        let mut snapshot = RedisSnapshot {
            links: Role::ALL.map(|role| self.link(role).snapshot()),
            ready: self.publishing.trouble().is_none()
                && self.subscription.trouble().is_none()
                && (self.streams.is_none() || self.commands.trouble().is_none()),
            buffer_bytes: self.outgoing.bytes(),
            buffer_age_us: self
                .outgoing
                .oldest_new()
                .map_or(0, |taken| now.since(taken)),
            subscriptions: self.channels.standing_count() as u64,
            joins_waiting: self.channels.waiting_count() as u64,
            probe_age_us: self.pulse.pending().map_or(0, |sent| now.since(sent)),
            ..self.counts.clone()
        };
        if let Some(streams) = &self.streams {
            snapshot.stream_retained_bytes = self.outgoing.again_bytes();
            streams.count(&mut snapshot);
        }
        snapshot
    }

    /// The node ends: what waits is sent, subscriptions are dropped, links closed; within a second.
    pub fn close(&mut self, now: Tick) {
        if self.closing.is_some() {
            return;
        }
        self.closing = Some(now.after(CLOSE_TIME));
        if self.subscription.is_up() {
            self.counts.commands_unsubscribe += 1;
            let unsubscribe = self.words().unsubscribe;
            self.subscription.command(&[unsubscribe]);
        }
        self.send(now);
        self.close_progress();
    }

    /// Whether the node may end.
    #[must_use]
    pub fn is_closed(&self, now: Tick) -> bool {
        let left = self.publishing.is_up() && !self.expected.is_empty()
            || self.subscription.is_up() && self.channels.standing_count() > 0
            || self.commands.is_up() && !self.asked.is_empty();
        self.closing.is_some_and(|until| !left || until <= now)
    }

    /// Messages that Redis has not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        let entries = self.outgoing.iter();
        entries.map(|entry| entry.batch.messages.len()).sum()
    }

    fn close_progress(&mut self) {
        let nothing_left = self.expected.is_empty() && !self.outgoing.has_unsent();
        if self.closing.is_some() && nothing_left && self.publishing.is_up() {
            self.publishing.close();
            let link = self.id(Role::Publishing);
            self.orders.push_back(LinkOrder::Close(link));
        }
    }

    /// Checks what must hold between inputs. For tests: O(rooms).
    ///
    /// # Panics
    /// When something does not hold.
    pub fn check_invariants(&self) {
        self.channels.check_invariants();
        self.outgoing.check_invariants();
        if let Some(streams) = &self.streams {
            streams.places.check_invariants();
        }
        let batches = self.expected.iter();
        let batches = batches.filter(|(expected, _)| *expected == Expected::Batch);
        assert!(batches.count() <= self.outgoing.iter().count());
        assert!(self.publishing.is_up() || self.expected.is_empty());
    }
}

/// An entry's place in its sequence.
struct Stamped {
    first: u64,
    count: u32,
}

impl Stamped {
    fn of(entry: &Entry) -> Self {
        Self {
            first: entry.stamp.sequence,
            count: u32::try_from(entry.batch.messages.len()).expect("fewer than bytes"),
        }
    }
}
