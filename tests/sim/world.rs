//! Shards, the embedded backplane, lanes, sockets and clients on one thread, in virtual time.
//!
//! ```text
//! clients ⇄ sockets ⇄ shards ⇄ lanes ⇄ backplane          every arrow is as slow as the seed wants
//! ```

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use throng::backplane::{self, Backplane, LaneRoom, Ports};
use throng::bus::{
    Batch, BatchMessage, ConnectionId, CoreId, Downstream, DrainOrder, MessageKind, PresenceNote,
    Question, Upstream, UserName,
};
use throng::limits::SEND_PIECE_COUNT_MAX;
use throng::protocol::{OpCode, encode_header};
use throng::shard::{Action, Delivery, Input, Node, Presence, Shard};
use throng::time::Tick;

use crate::client::{Client, MessageId, Phase};
use crate::lane::Lane;
use crate::plan::Plan;
use crate::random::Random;
use crate::socket::Socket;
use crate::topic::{ROOMS, TOPIC_COUNT, USERS, topic_index, topic_name, user_topic};

/// Bytes that the engine reports at once.
const READ_BYTES_MAX: usize = 4_096;
/// Bytes of bookkeeping that a connection may hold whatever the budget says: inbox, outbox, entries, control frames.
const OWED_BYTES_MAX: u64 = 256;

/// What a message was when it was sent.
#[derive(Debug)]
pub struct Message {
    pub topic: usize,
    /// `None`: the admin API.
    pub sender: Option<usize>,
    pub event: u64,
}

/// Messages of a topic that somebody on a shard has received, in the order in which they came there first.
#[derive(Debug, Default)]
pub struct Seen {
    pub order: Vec<MessageId>,
    known: HashSet<MessageId>,
}

pub struct World {
    pub plan: Plan,
    pub random: Random,
    pub now: Tick,
    /// Counts what clients do and hear: an order of events that all agree on.
    pub event: u64,
    pub shards: Vec<Shard>,
    pub node: Arc<Node>,
    pub backplane: Option<Backplane>,
    pub up: Vec<Lane<Upstream>>,
    /// Forwarded by the shard, but the lane up had no room for it: control only.
    pub held: Vec<VecDeque<(Upstream, u32)>>,
    pub down: Vec<Lane<Downstream>>,
    pub sockets: Vec<BTreeMap<u32, Socket>>,
    pub clients: Vec<Client>,
    pub messages: Vec<Message>,
    pub seen: BTreeMap<(usize, usize), Seen>,
    /// By topic: the shard that orders it by itself.
    pub holders: [Option<usize>; TOPIC_COUNT],
    /// By shard: whom the registry was told of, and not that it has gone.
    pub present: Vec<HashSet<ConnectionId>>,
    /// By shard and topic: interests without an answer, and whether the last one still holds.
    interests: BTreeMap<(usize, usize), (u32, bool)>,
    /// Some shards are told that a hidden room cannot be followed, whatever the backplane says.
    pub refuses: bool,
    /// By shard and topic: hidden rooms that were refused, and are to be asked for again.
    refused: HashSet<(usize, usize)>,
    pub stop_asked: Vec<bool>,
    pub stopped: Vec<bool>,
    pub drained: Vec<bool>,
    pub questions_open: usize,
    pub trace: u64,
}

/// The lanes as the backplane has them.
struct Wires<'a> {
    up: &'a mut [Lane<Upstream>],
    down: &'a mut [Lane<Downstream>],
    take_max: usize,
    drained: &'a mut [bool],
    questions_open: &'a mut usize,
}

impl LaneRoom for Wires<'_> {
    fn fits(&self, shard: CoreId, bytes: u32) -> bool {
        self.down[usize::from(shard.0)].fits(bytes)
    }
}

impl Ports for Wires<'_> {
    fn take(&mut self, from: CoreId) -> Option<Upstream> {
        self.take_max = self.take_max.checked_sub(1)?;
        self.up[usize::from(from.0)].pop()
    }

    fn perform(&mut self, action: backplane::Action) {
        use backplane::Action as A;
        match action {
            A::Send {
                to,
                envelope,
                bytes,
            } => {
                assert!(self.fits(to, bytes), "sent into a full lane: {envelope:?}");
                self.down[usize::from(to.0)].push(envelope, bytes);
            }
            A::SendControl { to, envelope } => self.down[usize::from(to.0)].push(envelope, 0),
            A::Answer { .. } => *self.questions_open -= 1,
            A::Drained { from } => {
                let drained = &mut self.drained[usize::from(from.0)];
                assert!(!*drained, "a shard is drained once");
                *drained = true;
            }
        }
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        let now = Tick::from_ms(random.below(1_000) as u64);
        let node = Node::new(
            plan.shard_count,
            plan.options.connection_count_max,
            plan.options.node_bytes_max,
            plan.options.address_connection_count_max,
            seed,
        );
        let node = Arc::new(node.limit_users(plan.options.user_connection_count_max, seed));
        let count = plan.shard_count;
        let delivery = if plan.has_bus {
            Delivery::Bus
        } else {
            Delivery::Inline
        };
        let shards = (0..count)
            .map(|core| {
                let core = CoreId(u8::try_from(core).unwrap());
                Shard::new(
                    core,
                    plan.options.clone(),
                    delivery,
                    Arc::clone(&node),
                    random.next(),
                    now,
                )
            })
            .collect();
        let backplane = plan.has_bus.then(|| {
            let options = backplane::Options {
                leases: plan.leases,
                ..backplane::Options::new(u8::try_from(count).unwrap(), plan.options.room_count_max)
            };
            Backplane::new(options, seed, now)
        });
        let (envelopes, bytes) = plan.lane;
        Self {
            shards,
            node,
            backplane,
            up: (0..count).map(|_| Lane::new(envelopes, bytes)).collect(),
            held: (0..count).map(|_| VecDeque::new()).collect(),
            down: (0..count).map(|_| Lane::new(envelopes, bytes)).collect(),
            sockets: (0..count).map(|_| BTreeMap::new()).collect(),
            clients: Vec::new(),
            messages: Vec::new(),
            seen: BTreeMap::new(),
            holders: [None; TOPIC_COUNT],
            present: vec![HashSet::new(); count],
            interests: BTreeMap::new(),
            refuses: plan.has_bus && random.one_in(2),
            refused: HashSet::new(),
            stop_asked: vec![false; count],
            stopped: vec![false; count],
            drained: vec![false; count],
            questions_open: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            event: 0,
            random,
            now,
            plan,
        }
    }

    /// Mixes what happened into the run's trace.
    fn note(&mut self, word: u64) {
        note(&mut self.trace, word);
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    // What clients do.

    pub fn connect(&mut self) {
        let shard = self.random.below(self.shards.len());
        if self.stopped[shard] {
            return;
        }
        let room = self.random.below(ROOMS.len());
        let user = (!self.random.one_in(3)).then(|| self.random.below(USERS.len()));
        let mut client = Client::new(shard, room, user, &mut self.random);
        client.old_counts = std::array::from_fn(|topic| {
            let seen = self.seen.get(&(shard, topic));
            seen.map_or(0, |seen| seen.order.len())
        });
        let token = (0..)
            .find(|token| !self.sockets[shard].contains_key(token))
            .unwrap();
        let kernel_bytes_max = *self.random.pick(&[40, 300, 5_000]);
        self.sockets[shard].insert(token, Socket::new(self.clients.len(), kernel_bytes_max));
        self.clients.push(client);
    }

    /// A client publishes, whether it has heard that it is in or not.
    pub fn publish(&mut self, index: usize) {
        self.event += 1;
        let client = &mut self.clients[index];
        let id = MessageId::try_from(self.messages.len()).unwrap();
        self.messages.push(Message {
            topic: client.room,
            sender: Some(index),
            event: self.event,
        });
        let filler = *self.random.pick(&[0, 20, 130, self.plan.filler_bytes_max]);
        client.publish(id, filler, &mut self.random);
    }

    pub fn admin_publish(&mut self) {
        self.event += 1;
        let topic = self.random.below(TOPIC_COUNT);
        let payload = format!("#{}:", self.messages.len());
        let batch = self.batch(MessageKind::Text, OpCode::Text, payload.as_bytes());
        if self.admin_send(topic, batch) {
            self.messages.push(Message {
                topic,
                sender: None,
                event: self.event,
            });
        }
    }

    /// Closes all connections of a user.
    pub fn admin_disconnect(&mut self) {
        self.event += 1;
        let topic = user_topic(self.random.below(USERS.len()));
        let reconnect = self.random.one_in(2);
        let batch = self.batch(
            MessageKind::Close { reconnect },
            OpCode::Close,
            b"\x0f\xa1disconnected",
        );
        self.admin_send(topic, batch);
    }

    /// Asks a shard to tell of everybody again.
    pub fn announce(&mut self) {
        let shard = self.random.below(self.shards.len());
        let within_ms = *self.random.pick(&[0, 300, 3_000]);
        self.down[shard].push(Downstream::Announce { within_ms }, 0);
    }

    fn batch(&self, kind: MessageKind, opcode: OpCode, payload: &[u8]) -> Arc<Batch> {
        let mut bytes = Vec::new();
        let header_bytes = encode_header(&mut bytes, true, opcode, payload.len());
        bytes.extend_from_slice(payload);
        Arc::new(Batch {
            messages: vec![BatchMessage {
                end: u32::try_from(bytes.len()).unwrap(),
                header_bytes,
                kind,
                sender: None,
            }],
            bytes,
            published: self.now,
        })
    }

    /// Whether it was published.
    fn admin_send(&mut self, topic: usize, batch: Arc<Batch>) -> bool {
        let name = topic_name(topic);
        match &mut self.backplane {
            Some(backplane) => {
                let mut wires = Wires {
                    up: &mut self.up,
                    down: &mut self.down,
                    take_max: 0,
                    drained: &mut self.drained,
                    questions_open: &mut self.questions_open,
                };
                let published = backplane.publish(&name, &batch, &wires, self.now).is_ok();
                while let Some(action) = backplane.poll_action() {
                    wires.perform(action);
                }
                published
            }
            None => {
                let envelope = Downstream::Publish { room: name, batch };
                self.down[0].push(envelope, 0);
                true
            }
        }
    }

    pub fn ask(&mut self) {
        let question = match self.random.below(4) {
            3 => Question::Users {
                users: USERS.map(UserName::from).into(),
                connection_count_max: 2,
            },
            0 => Question::Stats,
            1 => Question::Rooms {
                prefix: "drop".into(),
                count_max: 2,
            },
            _ => Question::Room {
                room: ROOMS[self.random.below(ROOMS.len())].into(),
                member_count_max: 3,
            },
        };
        let shard = self.random.below(self.shards.len());
        match &mut self.backplane {
            Some(backplane) => {
                let core = CoreId(u8::try_from(shard).unwrap());
                self.questions_open += usize::from(backplane.ask(core, 7, question));
            }
            None => {
                self.questions_open += 1;
                let envelope = Downstream::Ask {
                    request: 7,
                    question,
                };
                self.down[0].push(envelope, 0);
            }
        }
        self.perform_backplane();
    }

    pub fn order_drain(&mut self, order: DrainOrder) {
        match &mut self.backplane {
            Some(backplane) => backplane.order_drain(order),
            None => self.down[0].push(Downstream::Drain(order), 0),
        }
        self.perform_backplane();
    }

    // What cores do.

    fn perform_backplane(&mut self) {
        self.backplane_turn(0);
    }

    pub fn backplane_turn(&mut self, take_max: usize) {
        let Some(backplane) = &mut self.backplane else {
            return;
        };
        let mut wires = Wires {
            up: &mut self.up,
            down: &mut self.down,
            take_max,
            drained: &mut self.drained,
            questions_open: &mut self.questions_open,
        };
        while let Some(action) = backplane.poll_action() {
            wires.perform(action);
        }
        let first = self.random.below(self.shards.len());
        let report = backplane::turn(backplane, &mut wires, first, self.now);
        backplane.check_invariants();
        let handled = report.handled_count as u64;
        self.note(handled);
    }

    /// One turn of a shard: some of what waits for it, or all of it when it is `thorough`.
    pub fn shard_turn(&mut self, shard: usize, thorough: bool) {
        self.send_held(shard);
        let (mut envelopes, mut bytes) = (usize::MAX, usize::MAX);
        if self.plan.has_bus {
            (envelopes, bytes) = if self.held[shard].is_empty() {
                (self.up[shard].data_room(), self.up[shard].bytes_room())
            } else {
                (0, 0)
            };
        }
        self.shards[shard].handle(Input::BusRoom { envelopes, bytes }, self.now);
        let read_max = if thorough {
            usize::MAX
        } else {
            self.random.below(4)
        };
        for _ in 0..read_max {
            let Some(envelope) = self.down[shard].pop() else {
                break;
            };
            let envelope = self.note_answer(shard, envelope);
            self.shards[shard].handle(Input::Downstream(envelope), self.now);
        }
        let mut tokens: Vec<u32> = self.sockets[shard].keys().copied().collect();
        let middle = self.random.below(tokens.len());
        tokens.rotate_left(middle);
        for token in tokens {
            if thorough || self.random.one_in(2) {
                self.socket_events(shard, token, thorough);
            }
        }
        let all_opened = self.sockets[shard].values().all(|socket| socket.opened);
        if self.stop_asked[shard] && !self.stopped[shard] && all_opened {
            self.stopped[shard] = true;
            self.shards[shard].handle(Input::ListenersStopped, self.now);
        }
        let core = &mut self.shards[shard];
        if core.next_deadline().is_some_and(|due| due <= self.now) {
            core.handle_deadline(self.now);
        }
        core.end_turn(self.now);
        self.perform_shard(shard, envelopes, bytes);
        self.shards[shard].check_invariants();
        self.check_budgets(shard);
    }

    fn send_held(&mut self, shard: usize) {
        while self.up[shard].fits_control()
            && let Some((envelope, bytes)) = self.held[shard].pop_front()
        {
            self.up[shard].push(envelope, bytes);
        }
    }

    /// An answer to an interest; the shard may get another one, as if the room's server were lost.
    fn note_answer(&mut self, shard: usize, envelope: Downstream) -> Downstream {
        let Downstream::Joined { room, leased } = &envelope else {
            return envelope;
        };
        let topic = topic_index(room);
        let (unanswered, holds) = self.interests.get_mut(&(shard, topic)).expect("asked");
        *unanswered -= 1;
        if *unanswered > 0 || !*holds {
            return envelope; // the answer to an interest that was given up
        }
        if self.refuses && topic >= ROOMS.len() && self.random.one_in(3) {
            self.refused.insert((shard, topic));
            return Downstream::JoinRefused { room: room.clone() };
        }
        self.refused.remove(&(shard, topic));
        assert_eq!(
            self.holders[topic], None,
            "shard {shard} is told that it is in {room:?}"
        );
        if *leased {
            self.holders[topic] = Some(shard);
        }
        envelope
    }

    /// What a shard says of its interests.
    fn note_interest(&mut self, shard: usize, envelope: &Upstream) {
        match envelope {
            Upstream::Interest { room } => {
                let (unanswered, holds) = self
                    .interests
                    .entry((shard, topic_index(room)))
                    .or_default();
                *unanswered += 1;
                assert!(!std::mem::replace(holds, true), "interested twice");
            }
            Upstream::Disinterest { room } => {
                let topic = topic_index(room);
                let (_, holds) = self.interests.get_mut(&(shard, topic)).expect("interested");
                assert!(std::mem::replace(holds, false), "left twice");
                self.refused.remove(&(shard, topic));
                if self.holders[topic] == Some(shard) {
                    self.holders[topic] = None;
                }
            }
            Upstream::LeaseReturned { room } => {
                let holder = self.holders[topic_index(room)].take();
                assert_eq!(holder, Some(shard), "a lease is returned by its holder");
            }
            Upstream::Presence { notes } => self.note_presence(shard, notes),
            _ => {}
        }
    }

    /// What the registry is told.
    fn note_presence(&mut self, shard: usize, notes: &[PresenceNote]) {
        for note in notes {
            assert_eq!(usize::from(note.id.core().0), shard);
            assert!(ROOMS.contains(&&*note.room), "the room it is in");
            let is_user = note.user.as_deref().map(|user| USERS.contains(&user));
            assert_ne!(is_user, Some(false));
            assert!(is_user.is_some() || self.plan.options.presence == Presence::All);
            let present = &mut self.present[shard];
            if note.is_gone {
                assert!(present.remove(&note.id), "it was told of, and goes once");
            } else {
                present.insert(note.id);
            }
        }
    }

    /// What the engine has to report of one socket.
    fn socket_events(&mut self, shard: usize, token: u32, thorough: bool) {
        let (core, now) = (&mut self.shards[shard], self.now);
        let random = &mut self.random;
        let sockets = &mut self.sockets[shard];
        let socket = sockets.get_mut(&token).expect("listed");
        let client = &mut self.clients[socket.client];
        if !socket.opened {
            socket.opened = true;
            let peer = ([10, 0, 0, (socket.client % 7) as u8], 4_000).into();
            core.handle(Input::Opened { index: token, peer }, now);
        }
        if socket.closing {
            // The engine's last words, in any mixture.
            if random.one_in(3)
                && let Some((bytes, done)) = socket.write(usize::MAX)
            {
                let index = token;
                core.handle(Input::Written { index, bytes, done }, now);
            }
            if socket.in_flight.take().is_some() && random.one_in(2) {
                core.handle(Input::WriteFailed { index: token }, now);
            }
            if thorough || random.one_in(2) {
                core.handle(Input::Closed { index: token }, now);
                client.leave();
                sockets.remove(&token);
            }
            return;
        }
        // What had arrived before the engine could pause is still reported.
        let is_read = !socket.paused || std::mem::take(&mut socket.late_read) && random.one_in(2);
        if client.frozen {
            // Nothing comes from there.
        } else if is_read && !client.outgoing.is_empty() {
            let count = if thorough || random.one_in(2) {
                client.outgoing.len()
            } else {
                random.between(1, client.outgoing.len())
            };
            let bytes = client.carry(count.min(READ_BYTES_MAX));
            let (index, bytes) = (token, &bytes[..]);
            core.handle(Input::Received { index, bytes }, now);
        } else if is_read
            && let Some(broken) = client.ending
            && !socket.end_reported
        {
            socket.end_reported = true;
            core.handle(
                Input::ReceiveEnded {
                    index: token,
                    broken,
                },
                now,
            );
        }
        let is_broken = client.ending == Some(true);
        if is_broken && socket.in_flight.is_some() && random.one_in(2) {
            socket.in_flight = None;
            core.handle(Input::WriteFailed { index: token }, now);
        } else {
            let max = if thorough {
                usize::MAX
            } else {
                random.between(1, 600)
            };
            if let Some((bytes, done)) = socket.write(max) {
                let index = token;
                core.handle(Input::Written { index, bytes, done }, now);
            }
        }
    }

    fn perform_shard(&mut self, shard: usize, mut envelopes: usize, mut bytes_room: usize) {
        let sockets = &mut self.sockets[shard];
        let trace = &mut self.trace;
        let mut forwarded = Vec::new();
        while let Some(action) = self.shards[shard].poll_action() {
            match action {
                Action::FanOut { encoded, targets } => {
                    note(trace, 1);
                    assert!(!targets.is_empty(), "a fan-out to nobody");
                    for token in targets {
                        note(trace, u64::from(*token));
                        let socket = sockets.get_mut(token).expect("targets are open");
                        socket.send(std::iter::once(encoded.bytes()));
                    }
                    note_bytes(trace, encoded.bytes());
                }
                Action::Send { index, pieces } => {
                    note(trace, 2 + u64::from(index));
                    assert!(pieces.len() <= SEND_PIECE_COUNT_MAX);
                    let socket = sockets.get_mut(&index).expect("a target is open");
                    socket.send(pieces.iter().map(throng::protocol::Piece::bytes));
                    for piece in pieces {
                        note_bytes(trace, piece.bytes());
                    }
                }
                Action::Forward { envelope, bytes } => {
                    note(trace, 3 + u64::from(bytes));
                    if bytes > 0 {
                        assert!(envelopes > 0, "more envelopes than the bus takes");
                        assert!(
                            bytes_room >= bytes as usize,
                            "more bytes than the bus takes"
                        );
                        envelopes -= 1;
                        bytes_room -= bytes as usize;
                    }
                    forwarded.push((envelope, bytes));
                }
                Action::ReadPause { index } => {
                    note(trace, 4);
                    let socket = sockets.get_mut(&index).expect("it is open");
                    assert!(!socket.paused && !socket.closing, "paused twice");
                    socket.paused = true;
                    socket.late_read = true;
                }
                Action::ReadResume { index } => {
                    note(trace, 5);
                    let socket = sockets.get_mut(&index).expect("it is open");
                    assert!(socket.paused && !socket.closing, "resumed twice");
                    socket.paused = false;
                }
                Action::ShutdownWrite { index } => {
                    note(trace, 6);
                    let socket = sockets.get_mut(&index).expect("it is open");
                    assert!(socket.in_flight.is_none() && !socket.write_ended && !socket.closing);
                    socket.write_ended = true;
                }
                Action::Close { index } => {
                    note(trace, 7);
                    let socket = sockets.get_mut(&index).expect("it is open");
                    assert!(!socket.closing, "closed twice");
                    socket.closing = true;
                }
                Action::StopAccepting => {
                    assert!(!self.stop_asked[shard], "asked twice to stop accepting");
                    self.stop_asked[shard] = true;
                }
            }
        }
        for (envelope, bytes) in forwarded {
            self.note_interest(shard, &envelope);
            if self.plan.has_bus {
                if self.held[shard].is_empty() && (bytes > 0 || self.up[shard].fits_control()) {
                    self.up[shard].push(envelope, bytes);
                } else {
                    self.held[shard].push_back((envelope, bytes));
                }
                continue;
            }
            match envelope {
                Upstream::Presence { .. } => {}
                Upstream::Answer { .. } => self.questions_open -= 1,
                Upstream::Drained => self.drained[shard] = true,
                other => panic!("an inline shard forwards {other:?}"),
            }
        }
    }

    fn check_budgets(&self, shard: usize) {
        let options = &self.plan.options;
        let gauges = self.shards[shard].snapshot().gauges;
        // Beyond its budget a shard holds only what it was handed before it could say no, a read for each connection
        // that is not read now and one that was still under way; the bookkeeping of that; and one delivery of the bus
        // on its way to those who keep up. What members that are slow would hold beyond it, they miss.
        let sockets = self.sockets[shard].values();
        let reads = 1 + sockets.clone().filter(|socket| socket.paused).count();
        let in_flight = sockets.filter_map(|socket| socket.in_flight.as_ref());
        let delivery_bytes = in_flight.map(VecDeque::len).max().unwrap_or(0);
        let owed_bytes =
            gauges.sockets_open * OWED_BYTES_MAX + (reads * READ_BYTES_MAX + delivery_bytes) as u64;
        assert!(
            gauges.ledger_bytes <= options.shard_bytes_max + owed_bytes,
            "the shard holds {} bytes",
            gauges.ledger_bytes
        );
        assert!(self.node.reserved_bytes() <= options.node_bytes_max);
        assert!(self.node.connection_count() <= options.connection_count_max);
        assert!(gauges.rooms <= u64::from(options.room_count_max));
    }

    /// The network carries bytes of a shard's sockets to their clients.
    pub fn carry(&mut self, shard: usize, thorough: bool) {
        let tokens: Vec<u32> = self.sockets[shard].keys().copied().collect();
        for token in tokens {
            let socket = self.sockets[shard].get_mut(&token).expect("listed");
            let client = &mut self.clients[socket.client];
            if client.frozen || !thorough && (!client.reads || self.random.one_in(2)) {
                continue;
            }
            let count = if thorough {
                socket.kernel.len()
            } else {
                self.random.below(socket.kernel.len() + 1)
            };
            let bytes: Vec<u8> = socket.kernel.drain(..count).collect();
            let heard = client.heard.len();
            if client.phase != Phase::Gone && !bytes.is_empty() {
                self.event += 1;
                client.read(&bytes, self.event, &mut self.random);
            }
            for heard in &client.heard[heard..] {
                let crate::client::Heard::Message(id) = *heard else {
                    continue;
                };
                let topic = self.messages[id as usize].topic;
                let seen = self.seen.entry((shard, topic)).or_default();
                if seen.known.insert(id) {
                    seen.order.push(id);
                }
            }
            let ended = socket.write_ended && socket.in_flight.is_none();
            if (ended || socket.closing) && socket.kernel.is_empty() {
                client.leave();
                client.ending.get_or_insert(false);
            }
        }
    }

    /// The clients that are in a room and have not been told anything else.
    pub fn live(&self) -> impl Iterator<Item = (usize, &Client)> {
        self.clients.iter().enumerate().filter(|(_, client)| {
            client.phase == Phase::Open && client.ending.is_none() && !client.closes
        })
    }

    /// What is still on its way, in words.
    pub fn unrest(&self) -> String {
        let sockets = self.sockets.iter().flat_map(BTreeMap::values);
        let waiting: Vec<String> = sockets
            .filter(|socket| !self.is_at_rest(socket))
            .map(|socket| {
                let client = &self.clients[socket.client];
                format!(
                    "{:?} {} bytes to carry, {socket:?}",
                    client.phase,
                    client.outgoing.len()
                )
            })
            .collect();
        let held: Vec<_> = self.held.iter().map(VecDeque::len).collect();
        format!("{:?}, held {held:?}: {waiting:#?}", self.plan)
    }

    /// Nothing is on its way anywhere.
    pub fn is_quiet(&self) -> bool {
        let lanes = self.up.iter().all(Lane::is_empty)
            && self.down.iter().all(Lane::is_empty)
            && self.held.iter().all(VecDeque::is_empty)
            && self.refused.is_empty()
            && self.backplane.as_ref().is_none_or(|b| !b.has_stalled());
        let mut sockets = self.sockets.iter().flat_map(BTreeMap::values);
        lanes && sockets.all(|socket| self.is_at_rest(socket))
    }

    fn is_at_rest(&self, socket: &Socket) -> bool {
        let client = &self.clients[socket.client];
        client.ending.is_none()
            && socket.opened
            && !socket.paused
            && !socket.closing
            && socket.in_flight.is_none()
            && socket.kernel.is_empty()
            && client.outgoing.is_empty()
            && client.phase != Phase::Asking
    }
}

fn note(trace: &mut u64, word: u64) {
    *trace = (*trace ^ word).wrapping_mul(0x0100_0000_01b3);
}

fn note_bytes(trace: &mut u64, bytes: &[u8]) {
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        note(trace, u64::from_le_bytes(word));
    }
}
