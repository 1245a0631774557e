//! One worker: a ring, its connections, and the behaviour that answers what comes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use throng::protocol::{Encoded, OpCode, Piece};
use throng::runtime::ring::{Event, Ring};

use super::behaviour::{Behaviour, CLOSE_ABNORMAL, Cause, Ending, Masks, Plan, Posts, Reply};
use super::crew::{Orders, Shared};
use super::link::{Link, State, append_frame};
use super::local::Share;
use super::outcome::Outcome;
use super::reader::{Reader, Then, handshake_key};
use crate::clock::now_ns;
use crate::random::mix;

/// At the latest after this, a worker looks at its orders.
const TICK: Duration = Duration::from_millis(20);
/// For how long the latencies of one interval are gathered: well below the second of a timeline, which they must not miss by much.
const INTERVAL_NS: u64 = 250_000_000;
/// Bytes that may wait for one connection whose send is in flight.
const PENDING_BYTES_MAX: usize = 1 << 20;
/// After a close frame, the server has so long to end the stream.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// After an order to stop, connections that are not closed by then are left to the end of the process.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// One worker.
pub struct Engine<B> {
    ring: Ring,
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    share: Share,
    behaviour: B,
    outcome: Outcome,
    orders: Orders,
    generation: u32,
    /// By token.
    links: Vec<Link>,
    /// By member: its token while it is open.
    tokens: Vec<u32>,
    /// Paused until an order to resume.
    stalled: Vec<u32>,
    /// Paused until then: moment, token, when its connect began.
    paused: BinaryHeap<Reverse<(u64, u32, u64)>>,
    /// To connect again: moment, member.
    again: BinaryHeap<Reverse<(u64, u32)>>,
    /// Handshakes in the order of their beginning: moment, token.
    handshakes: VecDeque<(u64, u32)>,
    /// Connections that are over but for the end of their stream: when we end it, token, when its connect began.
    endings: VecDeque<(u64, u32, u64)>,
    reply: Reply,
    posts: Posts,
    member_next: u32,
    connecting_count: u32,
    alive_count: u32,
    open_count: u32,
    connects_from_ns: Option<u64>,
    alarm_at_ns: Option<u64>,
    interval_from_ns: u64,
    stop_at_ns: Option<u64>,
}

const TOKEN_NONE: u32 = u32::MAX;

impl<B: Behaviour> Engine<B> {
    /// Sets the ring up on this thread.
    pub fn new(
        plan: Arc<Plan>,
        shared: Arc<Shared>,
        share: Share,
        behaviour: B,
    ) -> io::Result<Self> {
        let ring = Ring::new(&plan.ring).map_err(|error| io::Error::other(error.0))?;
        let masks = |salt: u64| Masks::new(mix(plan.seed ^ u64::from(share.worker) << 32 ^ salt));
        Ok(Self {
            ring,
            shared,
            share,
            behaviour,
            outcome: Outcome::new(),
            orders: Orders::default(),
            generation: 0,
            links: Vec::new(),
            tokens: vec![TOKEN_NONE; share.count() as usize],
            stalled: Vec::new(),
            paused: BinaryHeap::new(),
            again: BinaryHeap::new(),
            handshakes: VecDeque::new(),
            endings: VecDeque::new(),
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
            open_count: 0,
            connects_from_ns: None,
            alarm_at_ns: None,
            interval_from_ns: now_ns(),
            stop_at_ns: None,
            plan,
        })
    }

    /// Works until ordered to stop and all connections are closed.
    pub fn run(mut self) -> io::Result<(Outcome, B)> {
        loop {
            let now = now_ns();
            self.obey(now);
            self.expire(now);
            self.connect(now);
            let due_ns = self.post(now);
            self.tell(now);
            if self
                .stop_at_ns
                .is_some_and(|stop_at_ns| self.alive_count == 0 || now > stop_at_ns)
            {
                self.interval_from_ns = 0;
                self.tell(now);
                return Ok((self.outcome, self.behaviour));
            }
            self.arm(now, due_ns);
            self.ring.submit_and_wait()?;
            while self.step() {}
        }
    }

    fn obey(&mut self, now: u64) {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if generation == self.generation {
            return;
        }
        self.generation = generation;
        let before = std::mem::replace(&mut self.orders, self.shared.orders());
        self.behaviour.obey(&self.orders, now);
        if self.orders.open_until != before.open_until {
            self.connects_from_ns = None;
        }
        if self.orders.resume && !before.resume {
            for token in std::mem::take(&mut self.stalled) {
                if self.links[token as usize].state == State::Open {
                    self.ring.receive_resume(token);
                }
            }
        }
        if self.orders.drops != before.drops {
            for token in 0..self.links.len() as u32 {
                if self.links[token as usize].state == State::Open {
                    self.end(token, Cause::Dropped, now);
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

    /// Ends handshakes that take too long, and pauses that are over.
    fn expire(&mut self, now: u64) {
        let timeout_ns = self.plan.handshake_timeout.as_nanos() as u64;
        while let Some((started_ns, token)) = self.handshakes.front().copied() {
            let link = &self.links[token as usize];
            let waiting = link.started_ns == started_ns
                && matches!(link.state, State::Connecting | State::Upgrading);
            if waiting && now < started_ns + timeout_ns {
                break;
            }
            self.handshakes.pop_front();
            if waiting {
                self.outcome.error(|| {
                    format!(
                        "no answer to the upgrade within {} s",
                        timeout_ns as f64 / 1e9
                    )
                });
                self.handshake_failed(token, Cause::Failed);
                self.close(token);
            }
        }
        while let Some((until_ns, token, started_ns)) = self.endings.front().copied() {
            if now < until_ns {
                break;
            }
            self.endings.pop_front();
            let link = &self.links[token as usize];
            if link.state == State::Ending && link.started_ns == started_ns {
                self.close(token);
            }
        }
        while let Some(Reverse((until_ns, token, started_ns))) = self.paused.peek().copied() {
            if now < until_ns {
                break;
            }
            self.paused.pop();
            let link = &self.links[token as usize];
            if link.state == State::Open && link.started_ns == started_ns {
                self.ring.receive_resume(token);
            }
        }
    }

    /// The next member to connect, if there is one now.
    fn next_member(&mut self, now: u64) -> Option<u32> {
        if let Some(Reverse((due_ns, local))) = self.again.peek().copied()
            && due_ns <= now
        {
            self.again.pop();
            return Some(local);
        }
        let until = self.share.count_below(self.orders.open_until);
        if self.member_next < until.min(self.tokens.len() as u32) {
            self.member_next += 1;
            return Some(self.member_next - 1);
        }
        None
    }

    fn connect(&mut self, now: u64) {
        if self.stop_at_ns.is_some() {
            return;
        }
        while self.connecting_count < self.plan.connecting_max
            && self.alive_count < self.plan.alive_max
        {
            if self.plan.connects_per_s > 0.0 && self.connects_from_ns.is_some_and(|due| now < due)
            {
                break;
            }
            let Some(local) = self.next_member(now) else {
                break;
            };
            if self.plan.connects_per_s > 0.0 {
                let due_ns = self.connects_from_ns.unwrap_or(now);
                self.connects_from_ns = Some(due_ns + (1e9 / self.plan.connects_per_s) as u64);
            }
            self.start_connect(local, now);
        }
    }

    fn start_connect(&mut self, local: u32, now: u64) {
        let sources = &self.plan.sources;
        let source = (!sources.is_empty()).then(|| {
            let index = source_index(self.share.worker, local, self.plan.targets.len());
            SocketAddr::new(sources[index % sources.len()], 0)
        });
        let target = self.behaviour.place(local).target as usize % self.plan.targets.len();
        match self.ring.connect(self.plan.targets[target].address, source) {
            Ok(token) => {
                if self.links.len() <= token as usize {
                    self.links.resize_with(token as usize + 1, || Link::FREE);
                }
                let started_ns = now_ns();
                self.links[token as usize] = Link {
                    state: State::Connecting,
                    local,
                    started_ns,
                    ..Link::FREE
                };
                self.handshakes.push_back((started_ns, token));
                self.connecting_count += 1;
                self.alive_count += 1;
            }
            Err(error) => {
                self.outcome.error(|| {
                    let from =
                        source.map_or_else(String::new, |source| format!(" from {}", source.ip()));
                    format!("connect{from}: {error}{}", remedy(&error))
                });
                self.not_connected(local, Cause::Failed, now);
            }
        }
    }

    /// Counts a member that could not be connected, unless it is to be tried again.
    fn not_connected(&mut self, local: u32, cause: Cause, now: u64) {
        let verdict = self.behaviour.closed(local, cause, now);
        if let Some(again_at_ns) = verdict.again_at_ns {
            self.outcome.retried(cause);
            add(&self.shared.progress.retried, 1);
            self.again.push(Reverse((again_at_ns, local)));
            return;
        }
        self.outcome.not_connected(cause);
        add(&self.shared.progress.failed, 1);
    }

    /// A handshake has come to a bad end.
    fn handshake_failed(&mut self, token: u32, cause: Cause) {
        self.connecting_count -= 1;
        let local = self.links[token as usize].local;
        self.not_connected(local, cause, now_ns());
    }

    /// An open connection is no longer a member. True: that was to be expected.
    fn lost(&mut self, token: u32, cause: Cause, now: u64) -> bool {
        let until_ns = now + CLOSE_PATIENCE.as_nanos() as u64;
        let started_ns = self.links[token as usize].started_ns;
        self.endings.push_back((until_ns, token, started_ns));
        let link = &mut self.links[token as usize];
        let local = link.local;
        link.state = State::Ending; // so that closing it does not count it again
        self.tokens[local as usize] = TOKEN_NONE;
        self.open_count -= 1;
        let verdict = self.behaviour.closed(local, cause, now);
        if let Cause::Closed(code) = cause {
            add(&self.shared.progress.closed_by_server, 1);
            add(&self.shared.progress.lost, u64::from(!verdict.expected));
            self.outcome.closed(code, verdict.expected);
        }
        if let Some(again_at_ns) = verdict.again_at_ns {
            self.again.push(Reverse((again_at_ns, local)));
        }
        verdict.expected
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
        for local in std::mem::take(&mut self.posts.leaving) {
            if self.tokens[local as usize] != TOKEN_NONE {
                self.end(self.tokens[local as usize], Cause::Left, now);
            }
        }
        due_ns
    }

    fn arm(&mut self, now: u64, due_ns: Option<u64>) {
        let mut alarm_at_ns = now + TICK.as_nanos() as u64;
        let has_more = self.member_next < self.share.count_below(self.orders.open_until)
            || !self.again.is_empty();
        let connects = self.connects_from_ns.filter(|at| *at > now && has_more);
        // What is due and was not begun waits for another connect's end, or for `connects`.
        let again = self.again.peek().map(|Reverse((at, _))| *at);
        let again = again.filter(|at| *at > now);
        let resume = self.paused.peek().map(|Reverse((at, _, _))| *at);
        for due_ns in [due_ns, connects, again, resume].into_iter().flatten() {
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

    fn tell(&mut self, now: u64) {
        let progress = &self.shared.progress;
        let traffic = self.behaviour.traffic();
        let set = |counter: &AtomicU64, value| counter.store(value, Ordering::Relaxed);
        set(&progress.published, traffic.published);
        set(&progress.received, traffic.received);
        set(&progress.faults, traffic.faults);
        set(&progress.upgraded, self.outcome.upgraded);
        set(&progress.open, u64::from(self.open_count));
        if now >= self.interval_from_ns + INTERVAL_NS {
            if let Some(histogram) = self.behaviour.take_interval() {
                self.shared.push_interval(histogram);
            }
            self.interval_from_ns = now;
        }
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
                    share: self.share,
                    behaviour: &mut self.behaviour,
                    outcome: &mut self.outcome,
                    reply: &mut self.reply,
                    opened: false,
                    lost: None,
                };
                let then = reader.received(link, bytes);
                let (opened, lost) = (reader.opened, reader.lost);
                if opened {
                    self.tokens[link.local as usize] = token;
                    self.connecting_count -= 1;
                    self.open_count += 1;
                }
                match lost {
                    None => {}
                    Some(cause @ (Cause::Refused(_) | Cause::Failed)) => {
                        self.handshake_failed(token, cause);
                    }
                    Some(cause) => {
                        if !self.lost(token, cause, now_ns())
                            && let Cause::Closed(code) = cause
                        {
                            self.outcome
                                .error(|| format!("the server closed with {code}"));
                        }
                    }
                }
                (token, then)
            }
            Event::Sent { token, done, .. } => {
                (token, if done { Then::Flush } else { Then::Nothing })
            }
            Event::Connected { token } => (token, Then::Request),
            Event::ConnectFailed { token, error } => {
                self.outcome
                    .error(|| format!("connect: {error}{}", remedy(&error)));
                if self.links[token as usize].state == State::Connecting {
                    self.handshake_failed(token, Cause::Failed);
                }
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
                add(&self.shared.progress.ended, 1);
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
        let words = || {
            error.map_or_else(
                || "the server ended the stream".to_owned(),
                ToString::to_string,
            )
        };
        match self.links[token as usize].state {
            State::Connecting | State::Upgrading => {
                self.outcome
                    .error(|| format!("before the upgrade's answer: {}", words()));
                self.handshake_failed(token, Cause::Failed);
            }
            State::Open => {
                if !self.lost(token, Cause::Closed(CLOSE_ABNORMAL), now_ns()) {
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
                if link.state != State::Connecting {
                    return; // given up meanwhile
                }
                link.state = State::Upgrading;
                let number = self.share.number(link.local);
                let key = handshake_key(self.plan.seed, number);
                let place = self.behaviour.place(link.local);
                let target = &self.plan.targets[place.target as usize % self.plan.targets.len()];
                let mut request = Vec::with_capacity(256);
                target.request(
                    &mut request,
                    &format!("{}-{}-{}", place.prefix, self.plan.run_id, place.room),
                    number,
                    &key,
                );
                self.ring.receive(token);
                self.send(token, request);
            }
            Then::Reply => {
                if !self.reply.bytes.is_empty() {
                    // The next reply is about as long: it is to be written without growing.
                    let next = Vec::with_capacity(self.reply.bytes.len());
                    let bytes = std::mem::replace(&mut self.reply.bytes, next);
                    self.send(token, bytes);
                }
                let is_open = self.links[token as usize].state == State::Open;
                match self.reply.pause_until_ns.take().filter(|_| is_open) {
                    None => {}
                    Some(u64::MAX) => {
                        self.ring.receive_pause(token);
                        self.stalled.push(token);
                    }
                    Some(until_ns) => {
                        self.ring.receive_pause(token);
                        let started_ns = self.links[token as usize].started_ns;
                        self.paused.push(Reverse((until_ns, token, started_ns)));
                    }
                }
                if std::mem::take(&mut self.reply.end) {
                    self.end(token, Cause::Left, now_ns());
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
    fn end(&mut self, token: u32, cause: Cause, now: u64) {
        if self.links[token as usize].state != State::Open {
            return;
        }
        self.lost(token, cause, now);
        match self.plan.ending {
            Ending::Stream => {
                self.links[token as usize].state = State::Ending;
                self.close(token);
            }
            Ending::CloseFrame => {
                self.links[token as usize].state = State::Ending;
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
                self.open_count -= 1;
            }
            link.state = State::Closing;
            link.pending = Vec::new();
            link.partial = None;
            self.ring.close(token);
        }
    }
}

/// Which source a worker's member is connected from, modulo their number: each worker uses all of them alike for each
/// target, whatever the numbers of workers and targets have in common.
const fn source_index(worker: u32, local: u32, target_count: usize) -> usize {
    local as usize / target_count + worker as usize
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// What mends an error of connecting, where that can be said.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => {
            " (no free port at that source address: give more with --source, or widen net.ipv4.ip_local_port_range)"
        }
        io::ErrorKind::ConnectionRefused => {
            " (nobody listens there any more, or its accept queue is full: see net.core.somaxconn)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_is_used_alike_for_each_target_by_each_generator() {
        let (source_count, member_count) = (5, 1_200);
        for worker_count in [1, 2, 3, 4, 6] {
            for target_count in [1, 2, 3, 4] {
                for worker in 0..worker_count {
                    let share = Share {
                        worker,
                        worker_count,
                        member_count,
                    };
                    let mut uses = vec![vec![0; target_count]; source_count];
                    for local in 0..share.count() {
                        let source = source_index(worker, local, target_count) % source_count;
                        uses[source][share.number(local) as usize % target_count] += 1;
                    }
                    for target in 0..target_count {
                        let counts = uses.iter().map(|targets| targets[target]);
                        let (least, most) = (counts.clone().min(), counts.max());
                        let spread = most.unwrap() - least.unwrap();
                        assert!(
                            spread <= target_count,
                            "{worker_count} {target_count}: {uses:?}"
                        );
                    }
                }
            }
        }
    }
}
