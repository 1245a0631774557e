//! One worker: a ring, its connections, and the behaviour that answers what comes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use throng::protocol::client::{Key, encode_key, encode_request, parse_response};
use throng::protocol::{Encoded, OpCode, Piece, parse_close};
use throng::runtime::ring::{Event, Options, Ring};

use super::crew::{Orders, Shared, Timetable};
use super::link::{Link, Message, State, append_frame, read_messages};
use super::outcome::Outcome;
use crate::clock::now_ns;
use crate::target::Target;

/// At the latest after this, a worker looks at its orders.
const TICK: Duration = Duration::from_millis(20);
/// Bytes that may wait for one connection whose send is in flight.
const PENDING_BYTES_MAX: usize = 1 << 20;
/// After an order to stop, connections that are not closed by then are left to the end of the process.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// The close code that stands for "no close frame" (RFC 6455 §7.4.1).
const CLOSE_ABNORMAL: u16 = 1006;

/// How the client ends a connection that it has had enough of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Ending {
    /// It ends the TCP stream.
    Stream,
    /// It sends a close frame, and waits for the server to end the TCP stream (RFC 6455 §7.1.1).
    CloseFrame,
}

/// What all workers of a run have in common.
#[derive(Debug)]
pub struct Plan {
    /// Where to connect.
    pub target: Target,
    /// Where from; empty: the kernel's choice.
    pub sources: Vec<IpAddr>,
    /// Connections of one worker that are being made at a time.
    pub connecting_max: u32,
    /// Connections of one worker at a time.
    pub alive_max: u32,
    /// Connects a second of one worker; 0: as fast as they are taken.
    pub connects_per_s: f64,
    /// How connections end.
    pub ending: Ending,
    /// Processor for all workers.
    pub core: Option<usize>,
    /// The ring of each worker.
    pub ring: Options,
    /// Where keys and masks come from.
    pub seed: u64,
}

/// What a behaviour answers to one connection.
#[derive(Debug, Default)]
pub struct Reply {
    /// Frames to send.
    pub bytes: Vec<u8>,
    /// Read nothing more of it, until an order to resume.
    pub stall: bool,
    /// End it, by [`Plan::ending`].
    pub end: bool,
    /// Where masks come from.
    pub masks: Masks,
}

/// Frames for several connections.
#[derive(Debug, Default)]
pub struct Posts {
    bytes: Vec<u8>,
    ends: Vec<(u32, usize)>,
    masks: Masks,
}

impl Posts {
    /// Adds a binary frame for `local`; `write` fills its payload.
    pub fn add(&mut self, local: u32, payload_bytes: usize, write: impl FnOnce(&mut [u8])) {
        append_frame(
            &mut self.bytes,
            OpCode::Binary,
            self.masks.next(),
            payload_bytes,
            write,
        );
        match self.ends.last_mut() {
            Some((last, end)) if *last == local => *end = self.bytes.len(),
            _ => self.ends.push((local, self.bytes.len())),
        }
    }
}

/// Frame masks. They keep proxies from being confused (RFC 6455 §10.3) and hide nothing from anybody, so that on
/// loopback any cheap sequence serves.
#[derive(Debug, Default)]
pub struct Masks(u64);

impl Masks {
    /// The next mask.
    pub fn next(&mut self) -> [u8; 4] {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((mix(self.0) >> 32) as u32).to_le_bytes()
    }
}

/// What a scenario does on one worker. Members are numbered from 0 within the worker.
pub trait Behaviour {
    /// The room of a member, as it stands in the path.
    fn room(&self, local: u32) -> String;
    /// A member is upgraded.
    fn opened(&mut self, local: u32, reply: &mut Reply);
    /// A message came.
    fn message(&mut self, local: u32, message: Message<'_>, now_ns: u64, reply: &mut Reply);
    /// Traffic is to flow.
    fn schedule(&mut self, timetable: Timetable);
    /// Puts what is due into `posts`; returns when to be asked again.
    fn turn(&mut self, now_ns: u64, posts: &mut Posts) -> Option<u64>;
    /// The server ended a member's open connection. True: that was to be expected.
    fn closed_by_server(&mut self, local: u32) -> bool;
    /// Messages published and received so far.
    fn progress(&self) -> (u64, u64);
}

/// What is to be done when an event's borrow of the ring has ended.
enum Then {
    Nothing,
    Request,
    Reply,
    Flush,
    Close,
}

/// One worker.
pub struct Engine<B> {
    ring: Ring,
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    behaviour: B,
    outcome: Outcome,
    orders: Orders,
    generation: u32,
    worker: u32,
    /// By token.
    links: Vec<Link>,
    /// By member: its token while it is open.
    tokens: Vec<u32>,
    stalled: Vec<u32>,
    reply: Reply,
    posts: Posts,
    member_next: u32,
    connecting_count: u32,
    alive_count: u32,
    connects_from_ns: Option<u64>,
    alarm_at_ns: Option<u64>,
    stop_at_ns: Option<u64>,
}

const TOKEN_NONE: u32 = u32::MAX;

impl<B: Behaviour> Engine<B> {
    /// Sets the ring up on this thread.
    pub fn new(
        plan: Arc<Plan>,
        shared: Arc<Shared>,
        member_count: u32,
        worker: u32,
        behaviour: B,
    ) -> io::Result<Self> {
        let ring = Ring::new(&plan.ring).map_err(|error| io::Error::other(error.0))?;
        let masks = |salt: u64| Masks(mix(plan.seed ^ u64::from(worker) << 32 ^ salt));
        Ok(Self {
            ring,
            shared,
            behaviour,
            outcome: Outcome::new(),
            orders: Orders::default(),
            generation: 0,
            worker,
            links: Vec::new(),
            tokens: vec![TOKEN_NONE; member_count as usize],
            stalled: Vec::new(),
            reply: Reply {
                masks: masks(1),
                ..Reply::default()
            },
            posts: Posts {
                masks: masks(2),
                ..Posts::default()
            },
            member_next: 0,
            connecting_count: 0,
            alive_count: 0,
            connects_from_ns: None,
            alarm_at_ns: None,
            stop_at_ns: None,
            plan,
        })
    }

    /// Works until ordered to stop and all connections are closed.
    pub fn run(mut self) -> io::Result<(Outcome, B)> {
        loop {
            let now = now_ns();
            self.obey(now);
            self.connect(now);
            let due_ns = self.post(now);
            if self
                .stop_at_ns
                .is_some_and(|stop_at_ns| self.alive_count == 0 || now > stop_at_ns)
            {
                return Ok((self.outcome, self.behaviour));
            }
            self.arm(now, due_ns);
            self.ring.submit_and_wait()?;
            while self.step() {}
            self.tell();
        }
    }

    fn obey(&mut self, now: u64) {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if generation == self.generation {
            return;
        }
        self.generation = generation;
        let before = std::mem::replace(&mut self.orders, self.shared.orders());
        if self.orders.timetable != before.timetable
            && let Some(timetable) = self.orders.timetable
        {
            self.behaviour.schedule(timetable);
        }
        if self.orders.open_until != before.open_until {
            self.connects_from_ns = None;
        }
        if self.orders.resume && !before.resume {
            for token in self.stalled.drain(..) {
                if self.links[token as usize].state == State::Open {
                    self.ring.receive_resume(token);
                }
            }
        }
        if self.orders.stop && self.stop_at_ns.is_none() {
            self.stop_at_ns = Some(now + STOP_PATIENCE.as_nanos() as u64);
            for token in 0..self.links.len() as u32 {
                if !matches!(
                    self.links[token as usize].state,
                    State::Free | State::Closing
                ) {
                    self.close(token);
                }
            }
        }
    }

    fn connect(&mut self, now: u64) {
        if self.stop_at_ns.is_some() {
            return;
        }
        self.connects_from_ns.get_or_insert(now);
        let until = self.orders.open_until.min(self.tokens.len() as u32);
        while self.member_next < until
            && self.connecting_count < self.plan.connecting_max
            && self.alive_count < self.plan.alive_max
        {
            if self.plan.connects_per_s > 0.0 {
                let due_ns = self.connects_from_ns.unwrap_or(now);
                if now < due_ns {
                    break;
                }
                self.connects_from_ns = Some(due_ns + (1e9 / self.plan.connects_per_s) as u64);
            }
            let local = self.member_next;
            self.member_next += 1;
            let sources = &self.plan.sources;
            let source = (!sources.is_empty()).then(|| {
                SocketAddr::new(
                    sources[(local as usize + self.worker as usize) % sources.len()],
                    0,
                )
            });
            match self.ring.connect(self.plan.target.address, source) {
                Ok(token) => {
                    if self.links.len() <= token as usize {
                        self.links.resize_with(token as usize + 1, || Link::FREE);
                    }
                    self.links[token as usize] = Link {
                        state: State::Connecting,
                        local,
                        started_ns: now_ns(),
                        ..Link::FREE
                    };
                    self.connecting_count += 1;
                    self.alive_count += 1;
                }
                Err(error) => {
                    self.outcome.connect_failed += 1;
                    self.outcome
                        .error(|| format!("connect from {source:?}: {error}"));
                    self.shared.progress.failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn post(&mut self, now: u64) -> Option<u64> {
        if self.stop_at_ns.is_some() {
            return None;
        }
        let due_ns = self.behaviour.turn(now, &mut self.posts);
        let mut start = 0;
        for index in 0..self.posts.ends.len() {
            let (local, end) = self.posts.ends[index];
            let bytes = self.posts.bytes[start..end].to_vec();
            start = end;
            match self.tokens[local as usize] {
                TOKEN_NONE => self.outcome.unsent_bytes += bytes.len() as u64,
                token => self.send(token, bytes),
            }
        }
        self.posts.bytes.clear();
        self.posts.ends.clear();
        due_ns
    }

    fn arm(&mut self, now: u64, due_ns: Option<u64>) {
        let mut alarm_at_ns = now + TICK.as_nanos() as u64;
        let connects = self
            .connects_from_ns
            .filter(|at| *at > now && self.member_next < self.orders.open_until);
        for due_ns in [due_ns, connects].into_iter().flatten() {
            alarm_at_ns = alarm_at_ns.min(due_ns.max(now + 1_000));
        }
        if self
            .alarm_at_ns
            .is_none_or(|armed_at_ns| alarm_at_ns < armed_at_ns)
        {
            self.ring.set_alarm(Duration::from_nanos(alarm_at_ns - now));
            self.alarm_at_ns = Some(alarm_at_ns);
        }
    }

    fn tell(&self) {
        let (published, received) = self.behaviour.progress();
        self.shared
            .progress
            .published
            .store(published, Ordering::Relaxed);
        self.shared
            .progress
            .received
            .store(received, Ordering::Relaxed);
        self.shared
            .progress
            .upgraded
            .store(self.outcome.upgraded, Ordering::Relaxed);
    }

    /// Handles one event. False: there is none.
    fn step(&mut self) -> bool {
        let Some(event) = self.ring.next_event() else {
            return false;
        };
        let (token, then) = match event {
            Event::Received { token, bytes } => {
                let link = &mut self.links[token as usize];
                let mut reader = Reader {
                    plan: &self.plan,
                    worker: self.worker,
                    tokens: &mut self.tokens,
                    behaviour: &mut self.behaviour,
                    outcome: &mut self.outcome,
                    connecting_count: &mut self.connecting_count,
                    shared: &self.shared,
                    reply: &mut self.reply,
                };
                (token, reader.received(token, link, bytes))
            }
            Event::Sent { token, done, .. } => {
                (token, if done { Then::Flush } else { Then::Nothing })
            }
            Event::Connected { token } => (token, Then::Request),
            Event::ConnectFailed { token, error } => {
                self.outcome.connect_failed += 1;
                self.outcome.error(|| format!("connect: {error}"));
                self.connecting_count -= 1;
                self.shared.progress.failed.fetch_add(1, Ordering::Relaxed);
                self.links[token as usize].state = State::Closing; // the ring closes it by itself
                (token, Then::Nothing)
            }
            Event::ReceiveEnded { token, error } => {
                self.ended(token, error.as_ref());
                (token, Then::Close)
            }
            Event::SendFailed { token, error } => {
                self.ended(token, Some(&error));
                (token, Then::Close)
            }
            Event::Closed { token } => {
                self.links[token as usize] = Link::FREE;
                self.alive_count -= 1;
                self.shared.progress.ended.fetch_add(1, Ordering::Relaxed);
                (token, Then::Nothing)
            }
            Event::Alarm => {
                self.alarm_at_ns = None;
                (0, Then::Nothing)
            }
            Event::Accepted { .. } | Event::AcceptFailed { .. } | Event::ListenerStopped { .. } => {
                (0, Then::Nothing)
            }
        };
        self.perform(token, then);
        true
    }

    /// Counts a stream that ended without our doing.
    fn ended(&mut self, token: u32, error: Option<&io::Error>) {
        let link = &self.links[token as usize];
        let words = || {
            error.map_or_else(
                || "the server ended the stream".to_owned(),
                ToString::to_string,
            )
        };
        match link.state {
            State::Connecting | State::Upgrading => {
                self.outcome.handshake_broken += 1;
                self.outcome
                    .error(|| format!("before the upgrade's answer: {}", words()));
                self.connecting_count -= 1;
                self.shared.progress.failed.fetch_add(1, Ordering::Relaxed);
            }
            State::Open => {
                let local = link.local;
                self.tokens[local as usize] = TOKEN_NONE;
                if self.behaviour.closed_by_server(local) {
                    *self
                        .outcome
                        .closed_by_server_expected
                        .entry(CLOSE_ABNORMAL)
                        .or_default() += 1;
                } else {
                    *self
                        .outcome
                        .closed_by_server
                        .entry(CLOSE_ABNORMAL)
                        .or_default() += 1;
                    self.outcome
                        .error(|| format!("without a close frame: {}", words()));
                }
            }
            State::Free | State::Ending | State::Closing => {}
        }
    }

    fn perform(&mut self, token: u32, then: Then) {
        match then {
            Then::Nothing => {}
            Then::Close => self.close(token),
            Then::Request => {
                let link = &mut self.links[token as usize];
                link.state = State::Upgrading;
                let key = handshake_key(self.plan.seed, self.worker, link.local);
                let path = self.plan.target.path(&self.behaviour.room(link.local));
                let mut request = Vec::with_capacity(256);
                encode_request(&mut request, &self.plan.target.host, &path, &key);
                self.ring.receive(token);
                self.send(token, request);
            }
            Then::Reply => {
                if !self.reply.bytes.is_empty() {
                    let bytes = std::mem::take(&mut self.reply.bytes);
                    self.send(token, bytes);
                }
                if std::mem::take(&mut self.reply.stall) {
                    self.ring.receive_pause(token);
                    self.stalled.push(token);
                }
                if std::mem::take(&mut self.reply.end) {
                    self.end(token);
                }
            }
            Then::Flush => {
                let link = &mut self.links[token as usize];
                link.sending = false;
                if !link.pending.is_empty() && link.state != State::Closing {
                    let bytes = std::mem::take(&mut link.pending);
                    self.send(token, bytes);
                }
            }
        }
    }

    fn send(&mut self, token: u32, bytes: Vec<u8>) {
        let link = &mut self.links[token as usize];
        if !link.sending {
            link.sending = true;
            self.ring.send(token, &[Piece::whole(Encoded::new(bytes))]);
        } else if link.pending.is_empty() {
            link.pending = bytes;
        } else if link.pending.len() + bytes.len() <= PENDING_BYTES_MAX {
            link.pending.extend_from_slice(&bytes);
        } else {
            self.outcome.unsent_bytes += bytes.len() as u64;
        }
    }

    /// Ends an open connection from our side.
    fn end(&mut self, token: u32) {
        let link = &mut self.links[token as usize];
        if link.state != State::Open {
            return;
        }
        self.tokens[link.local as usize] = TOKEN_NONE;
        match self.plan.ending {
            Ending::Stream => self.close(token),
            Ending::CloseFrame => {
                link.state = State::Ending;
                let mut frame = Vec::new();
                let mask = self.reply.masks.next();
                append_frame(&mut frame, OpCode::Close, mask, 2, |payload| {
                    payload.copy_from_slice(&1000_u16.to_be_bytes());
                });
                self.send(token, frame);
            }
        }
    }

    fn close(&mut self, token: u32) {
        let link = &mut self.links[token as usize];
        if !matches!(link.state, State::Free | State::Closing) {
            if link.state == State::Open {
                self.tokens[link.local as usize] = TOKEN_NONE;
            }
            link.state = State::Closing;
            link.pending = Vec::new();
            link.partial = None;
            self.ring.close(token);
        }
    }
}

/// The parts of an engine that reading needs while the ring lends the bytes.
struct Reader<'a, B> {
    plan: &'a Plan,
    worker: u32,
    tokens: &'a mut [u32],
    behaviour: &'a mut B,
    outcome: &'a mut Outcome,
    connecting_count: &'a mut u32,
    shared: &'a Shared,
    reply: &'a mut Reply,
}

impl<B: Behaviour> Reader<'_, B> {
    fn received(&mut self, token: u32, link: &mut Link, bytes: &[u8]) -> Then {
        match link.state {
            State::Open => self.messages(link, bytes),
            State::Upgrading => self.answer(token, link, bytes),
            State::Free | State::Connecting | State::Ending | State::Closing => Then::Nothing,
        }
    }

    /// The upgrade's answer, or more of it.
    fn answer(&mut self, token: u32, link: &mut Link, bytes: &[u8]) -> Then {
        let joined;
        let bytes = match link.partial.take() {
            None => bytes,
            Some(mut partial) => {
                partial.bytes.extend_from_slice(bytes);
                joined = partial.bytes;
                &joined
            }
        };
        match parse_response(
            bytes,
            &handshake_key(self.plan.seed, self.worker, link.local),
        ) {
            Ok(None) => {
                link.partial.get_or_insert_default().bytes = bytes.to_vec();
                Then::Nothing
            }
            Ok(Some(head_bytes)) => {
                link.state = State::Open;
                self.tokens[link.local as usize] = token;
                *self.connecting_count -= 1;
                self.outcome.upgraded += 1;
                self.outcome
                    .handshake
                    .saturating_record(now_ns().saturating_sub(link.started_ns));
                self.behaviour.opened(link.local, self.reply);
                self.messages(link, &bytes[head_bytes..])
            }
            Err(error) => {
                *self
                    .outcome
                    .refused
                    .entry(error.status.unwrap_or(0))
                    .or_default() += 1;
                self.outcome
                    .error(|| format!("the upgrade was refused: {error}"));
                *self.connecting_count -= 1;
                self.shared.progress.failed.fetch_add(1, Ordering::Relaxed);
                Then::Close
            }
        }
    }

    fn messages(&mut self, link: &mut Link, bytes: &[u8]) -> Then {
        let now = now_ns();
        let local = link.local;
        let mut closed_with = None;
        let read = read_messages(&mut link.partial, bytes, |message| match message.opcode {
            OpCode::Text | OpCode::Binary => {
                self.behaviour.message(local, message, now, self.reply)
            }
            OpCode::Ping => answer_control(self.reply, OpCode::Pong, message.payload),
            OpCode::Close => {
                closed_with = Some(
                    parse_close(message.payload)
                        .ok()
                        .flatten()
                        .map_or(1005, |(code, _)| code),
                );
                answer_control(self.reply, OpCode::Close, message.payload);
            }
            OpCode::Pong | OpCode::Continuation => {}
        });
        if let Err(error) = read {
            self.outcome.stream_errors += 1;
            self.outcome
                .error(|| format!("no stream of server frames: {error:?}"));
            self.tokens[local as usize] = TOKEN_NONE;
            self.behaviour.closed_by_server(local);
            return Then::Close;
        }
        if let Some(code) = closed_with {
            link.state = State::Ending;
            self.tokens[local as usize] = TOKEN_NONE;
            let counts = if self.behaviour.closed_by_server(local) {
                &mut self.outcome.closed_by_server_expected
            } else {
                self.outcome
                    .error(|| format!("the server closed with {code}"));
                &mut self.outcome.closed_by_server
            };
            *counts.entry(code).or_default() += 1;
        }
        Then::Reply
    }
}

#[cold]
fn answer_control(reply: &mut Reply, opcode: OpCode, payload: &[u8]) {
    let mask = reply.masks.next();
    append_frame(&mut reply.bytes, opcode, mask, payload.len(), |out| {
        out.copy_from_slice(payload)
    });
}

/// The key of a member's request; made again when the answer is checked, so that it need not be kept.
fn handshake_key(seed: u64, worker: u32, local: u32) -> Key {
    let number = u64::from(worker) << 32 | u64::from(local);
    encode_key([mix(seed ^ number), mix(seed.rotate_left(32) ^ number)])
}

/// Spreads the bits of `value` (the finalizer of `SplitMix64`).
fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}
