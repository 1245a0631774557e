//! One connection to Redis and its life: connect, greet, be up, fail, rest, and again.
//!
//! ```text
//! Resting ─due─▶ Connecting ─connected─▶ Greeting ─HELLO, AUTH, SELECT answered─▶ Up
//!    ▲               │                       │                                    │
//!    └───────────────┴──── failed: full jitter, 100 ms doubling to 5 s ───────────┘
//! ```

use std::time::Duration;

use bytes::BytesMut;

use super::greeting::{Greeting, Step};
use super::refusal::{Grant, explain_junk, explain_silence};
use super::{Address, Endpoint, Options};
use crate::backplane::resp::{Decoder, Reply, Version, encode_command};
use crate::metrics::RedisLinkSnapshot;
use crate::time::Tick;

/// The first rest after a failure lasts so long at most; each further one twice as long.
const REST_MS_MIN: u64 = 100;
/// No rest lasts longer.
const REST_MS_MAX: u64 = 5_000;
/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// PUBLISH.
    Publishing,
    /// SUBSCRIBE, UNSUBSCRIBE, and what is published.
    Subscription,
    /// Questions and their answers: nothing that a message waits behind.
    Commands,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Publishing, Self::Subscription, Self::Commands];

    /// The name in metrics, answers and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Publishing => "publishing",
            Self::Subscription => "subscription",
            Self::Commands => "commands",
        }
    }
}

/// One of the connections to one of the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkId {
    /// The server: its place among all of them.
    pub server: u16,
    /// What the link is for.
    pub role: Role,
}

#[derive(Debug)]
enum State {
    Resting {
        until: Tick,
    },
    Connecting {
        since: Tick,
    },
    Greeting {
        greeting: Box<Greeting>,
        since: Tick,
    },
    Up {
        since: Tick,
    },
    /// For good.
    Closed,
}

/// What a link wants after an input.
#[derive(Debug, PartialEq, Eq)]
pub enum Wants {
    /// Nothing.
    Nothing,
    /// Commands may be sent from now on.
    Ready,
}

/// One connection.
#[derive(Debug)]
pub struct Link {
    role: Role,
    /// Where it leads, for the log.
    place: String,
    state: State,
    /// Failures in a row.
    failures: u32,
    /// Since when it is not usable; `None`: it is.
    trouble_since: Option<Tick>,
    /// Why it failed last.
    reason: String,
    /// What Redis has refused, and nothing has shown yet that it would not again.
    refused: Option<String>,
    /// That it is up was told since the reason is another one.
    is_told: bool,
    decoder: Decoder,
    out: BytesMut,
    /// Nothing was written before this is due.
    flush_at: Tick,
    heard: Tick,
    /// What is spoken since it was greeted.
    is_resp3: bool,
    /// Bytes have come since it was connected.
    has_spoken: bool,
    counts: RedisLinkSnapshot,
}

impl Link {
    /// A link that is to be connected at once.
    pub fn new(role: Role, endpoint: &Endpoint, now: Tick) -> Self {
        Self {
            role,
            place: endpoint.to_string(),
            state: State::Resting { until: now },
            failures: 0,
            trouble_since: Some(now),
            reason: "it was not connected yet".into(),
            refused: None,
            is_told: false,
            decoder: Decoder::new(Version::Resp3),
            out: BytesMut::new(),
            flush_at: now,
            heard: now,
            is_resp3: true,
            has_spoken: false,
            counts: RedisLinkSnapshot::default(),
        }
    }

    /// What it is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether commands may be sent.
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Whether it waits for its next attempt.
    pub fn is_resting(&self) -> bool {
        matches!(self.state, State::Resting { .. })
    }

    /// When bytes last came.
    pub fn heard(&self) -> Tick {
        self.heard
    }

    /// Why it is not usable, if it is not: since when, and the reason.
    pub fn trouble(&self) -> Option<(Tick, &str)> {
        self.trouble_since
            .map(|since| (since, self.reason.as_str()))
    }

    /// What it does, in a word.
    pub fn state_label(&self) -> &'static str {
        match self.state {
            State::Resting { .. } => "resting",
            State::Connecting { .. } => "connecting",
            State::Greeting { .. } => "greeting",
            State::Up { .. } => "up",
            State::Closed => "closed",
        }
    }

    /// It has shown that it works: failures count anew.
    pub fn proven(&mut self) {
        self.trouble_since = None;
        self.failures = 0;
        self.reason.clear();
        self.refused = None;
    }

    /// Redis takes commands and refuses what they are for: it is not proven before one was carried out.
    pub fn refuse(&mut self, reason: &str) {
        self.refused = Some(reason.to_owned());
    }

    /// What was refused last.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// What was refused waits no more: a probe may prove it.
    pub fn forgive(&mut self) {
        self.refused = None;
    }

    /// Its figures.
    pub fn snapshot(&self) -> RedisLinkSnapshot {
        RedisLinkSnapshot {
            up: self.is_up(),
            ..self.counts.clone()
        }
    }

    /// Whether it is time to connect; it counts as connecting then.
    pub fn begin(&mut self, now: Tick) -> bool {
        match self.state {
            State::Resting { until } if until <= now => {
                self.state = State::Connecting { since: now };
                true
            }
            _ => false,
        }
    }

    /// The socket is connected.
    pub fn connected(&mut self, options: &Options, now: Tick) {
        if !matches!(self.state, State::Connecting { .. }) {
            return;
        }
        self.decoder = Decoder::new(Version::Resp3);
        self.heard = now;
        self.has_spoken = false;
        let mut greeting = Greeting::new(&options.address, Grant::at_redis(options));
        let name = self.client_name(options);
        greeting.begin(&mut self.out, &name);
        self.state = State::Greeting {
            greeting: Box::new(greeting),
            since: now,
        };
        self.flush_at = now;
    }

    fn client_name(&self, options: &Options) -> String {
        format!("{}-{}", options.client_name, self.role.label())
    }

    /// It has failed, or is given up: the socket is closed by whoever asks. Nothing of what was to be sent is left.
    pub fn fail(&mut self, reason: String, now: Tick, random: &mut Random) {
        if matches!(self.state, State::Closed) {
            return;
        }
        if self.is_up() {
            self.counts.lost += 1;
        } else {
            self.counts.failures += 1;
        }
        let longest_ms = (REST_MS_MIN << self.failures.min(16)).min(REST_MS_MAX);
        self.failures = self.failures.saturating_add(1);
        let rest = Duration::from_millis(random.up_to(longest_ms));
        self.state = State::Resting {
            until: now.after(rest),
        };
        if self.reason != reason {
            tracing::warn!(
                link = self.role.label(),
                place = self.place,
                reason,
                "Redis cannot be used; trying again"
            );
            self.reason = reason;
            self.is_told = false;
        }
        self.trouble_since.get_or_insert(now);
        self.out.clear();
        self.decoder = Decoder::new(Version::Resp3);
    }

    /// Begins anew at another address: `soon` without a rest, else with the one that it has.
    pub fn restart(&mut self, soon: bool, endpoint: &Endpoint, now: Tick) {
        match &mut self.state {
            State::Closed => {}
            State::Resting { until } if soon => *until = now,
            State::Resting { .. } => {}
            state => *state = State::Resting { until: now },
        }
        self.place = endpoint.to_string();
        self.out.clear();
        self.decoder = Decoder::new(Version::Resp3);
    }

    /// It ends for good.
    pub fn close(&mut self) {
        self.state = State::Closed;
        self.out.clear();
    }

    /// Bytes came.
    pub fn feed(&mut self, bytes: &[u8], now: Tick) {
        self.heard = now;
        self.has_spoken = true;
        self.counts.received_bytes += bytes.len() as u64;
        self.decoder.feed(bytes);
    }

    /// The next reply, or why the link is no good.
    pub fn next_reply(
        &mut self,
        reply_bytes_max: usize,
        address: &Address,
    ) -> Result<Option<Reply>, String> {
        let reply = self
            .decoder
            .next_reply()
            .map_err(|_| explain_junk(self.decoder.waiting(), address))?;
        if reply.is_none() && self.decoder.waiting().len() > reply_bytes_max {
            return Err(format!(
                "Redis sends a reply of more than {reply_bytes_max} bytes, and there is none so large"
            ));
        }
        Ok(reply)
    }

    /// A reply while the link is greeting. `Err`: why it cannot be used.
    pub fn greet(&mut self, reply: &Reply, options: &Options, now: Tick) -> Result<Wants, String> {
        let name = self.client_name(options);
        let State::Greeting { greeting, .. } = &mut self.state else {
            return Ok(Wants::Nothing);
        };
        match greeting.handle(reply, &mut self.out, &name)? {
            Step::Going => {}
            Step::Older => self.decoder.set_version(Version::Resp2),
            Step::Done => {
                let server = greeting.server().to_string();
                self.is_resp3 = greeting.server().is_resp3;
                if !std::mem::replace(&mut self.is_told, true) {
                    tracing::info!(
                        link = self.role.label(),
                        place = self.place,
                        server,
                        "connected to Redis"
                    );
                }
                self.state = State::Up { since: now };
                self.counts.connects += 1;
                return Ok(Wants::Ready);
            }
        }
        Ok(Wants::Nothing)
    }

    /// Whether RESP3 is spoken, once it is up.
    pub fn is_resp3(&self) -> bool {
        self.is_resp3
    }

    /// Why the socket has ended, with what may be behind it.
    pub fn explain_end(&self, reason: String, address: &Address) -> String {
        match self.state {
            State::Greeting { .. } if !self.has_spoken => explain_silence(reason, address),
            _ => reason,
        }
    }

    /// Gives it up if it takes too long to come up.
    pub fn overdue(&self, address: &Address, timeout: Duration, now: Tick) -> Option<String> {
        let endpoint = &address.endpoint;
        let ms = timeout.as_millis();
        match &self.state {
            State::Connecting { since } if address.tls && since.after(timeout) <= now => {
                Some(format!(
                    "{endpoint} does not take the connection and finish the TLS handshake within {ms} ms; a port without TLS never does (write {}://)",
                    address.scheme(false)
                ))
            }
            State::Connecting { since } if since.after(timeout) <= now => Some(format!(
                "{endpoint} does not take the connection within {ms} ms"
            )),
            State::Greeting { since, .. } if since.after(timeout) <= now => Some(format!(
                "{endpoint} takes the connection and does not answer HELLO within {ms} ms"
            )),
            _ => None,
        }
    }

    /// When [`Self::begin`] or [`Self::overdue`] is due.
    pub fn deadline(&self, timeout: Duration) -> Option<Tick> {
        match &self.state {
            State::Resting { until } => Some(*until),
            State::Connecting { since } | State::Greeting { since, .. } => {
                Some(since.after(timeout))
            }
            State::Up { .. } | State::Closed => None,
        }
    }

    /// Since when it is up.
    pub fn up_since(&self) -> Option<Tick> {
        match self.state {
            State::Up { since } => Some(since),
            _ => None,
        }
    }

    /// Queues a command.
    pub fn command(&mut self, words: &[&[u8]]) {
        encode_command(&mut self.out, words);
    }

    /// Bytes that wait to be written.
    pub fn out_bytes(&self) -> usize {
        self.out.len()
    }

    /// What is to be written now: all that waits, once it has waited long enough for more to come.
    pub fn output(&self, now: Tick) -> &[u8] {
        if self.flush_at <= now { &self.out } else { &[] }
    }

    /// When [`Self::output`] has something; `None`: nothing waits.
    pub fn flush_deadline(&self) -> Option<Tick> {
        (!self.out.is_empty()).then_some(self.flush_at)
    }

    /// So many bytes of the output were written. What comes within `gather` from now is written together.
    pub fn written(&mut self, bytes: usize, gather: Duration, now: Tick) {
        let _ = self.out.split_to(bytes);
        self.counts.sent_bytes += bytes as u64;
        self.counts.writes += 1;
        if self.out.is_empty() {
            self.flush_at = now.after(gather);
        }
    }
}

/// Spreads retries; not a secret (xorshift64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Draws from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number from 0 to `most`, both included.
    pub fn up_to(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % (most + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options::new(Address::parse("redis://localhost").unwrap())
    }

    const TIMEOUT: Duration = Duration::from_secs(3);

    /// A link that is up.
    fn up(now: Tick) -> Link {
        let mut link = Link::new(Role::Publishing, &options().address.endpoint, now);
        assert!(link.begin(now));
        link.connected(&options(), now);
        let hello = Reply::Fields(vec![("version".into(), "7.0.15".into())]);
        assert_eq!(link.greet(&hello, &options(), now), Ok(Wants::Ready));
        let bytes = link.output(now).len();
        link.written(bytes, Duration::ZERO, now);
        link
    }

    #[test]
    fn rests_grow_to_five_seconds_and_are_spread_from_none_to_all_of_it() {
        let mut random = Random::new(42);
        let mut link = Link::new(Role::Publishing, &options().address.endpoint, Tick(0));
        let mut longest = Vec::new();
        for round in 0..10u32 {
            let mut rests = Vec::new();
            for _ in 0..200 {
                link.failures = round;
                link.state = State::Connecting { since: Tick(0) };
                link.fail("x".into(), Tick(0), &mut random);
                rests.push(link.deadline(TIMEOUT).unwrap().0 / 1_000);
            }
            longest.push(*rests.iter().max().unwrap());
            let most = (100u64 << round).min(5_000);
            assert!(rests.iter().all(|rest| *rest <= most));
            assert!(rests.iter().any(|rest| *rest < most / 4));
            assert!(rests.iter().any(|rest| *rest > most / 4 * 3));
        }
        assert!(
            longest.is_sorted_by(|a, b| a <= b || *b > 4_000),
            "{longest:?}"
        );
    }

    #[test]
    fn a_link_that_does_not_come_up_is_given_up_with_what_it_waits_for() {
        let mut link = Link::new(Role::Subscription, &options().address.endpoint, Tick(0));
        let address = options().address;
        assert!(link.begin(Tick(0)) && !link.begin(Tick(0)));
        assert_eq!(link.overdue(&address, TIMEOUT, Tick::from_ms(2_999)), None);
        let why = link
            .overdue(&address, TIMEOUT, Tick::from_ms(3_000))
            .unwrap();
        assert!(why.contains("localhost:6379"), "{why}");
        link.connected(&options(), Tick::from_ms(10));
        let why = link
            .overdue(&address, TIMEOUT, Tick::from_ms(3_010))
            .unwrap();
        assert!(why.contains("HELLO"), "{why}");
    }

    #[test]
    fn the_first_write_goes_at_once_and_the_next_ones_are_gathered() {
        let gather = Duration::from_micros(100);
        let mut link = up(Tick(0));
        assert_eq!(link.flush_deadline(), None, "nothing when idle");
        link.command(&[b"PING"]);
        let bytes = link.output(Tick(1_000)).len();
        assert!(bytes > 0);
        link.written(bytes, gather, Tick(1_000));
        link.command(&[b"PING"]);
        assert_eq!(link.output(Tick(1_099)), b"");
        assert_eq!(link.flush_deadline(), Some(Tick(1_100)));
        link.command(&[b"PING"]);
        assert_eq!(link.output(Tick(1_100)).len(), 2 * bytes);
        link.written(bytes, gather, Tick(1_100));
        assert_eq!(
            link.output(Tick(1_100)).len(),
            bytes,
            "the rest does not wait"
        );
    }

    #[test]
    fn who_is_not_redis_is_quoted() {
        let address = Address::parse("redis://h").unwrap();
        let mut link = up(Tick(0));
        link.feed(b"HTTP/1.1 400 Bad Request\r\n\r\n", Tick(1));
        let why = link.next_reply(1_000, &address).unwrap_err();
        assert!(
            why.contains("not Redis") && why.contains("HTTP/1.1 400"),
            "{why}"
        );
        let mut link = up(Tick(0));
        link.feed(b"$5000\r\n", Tick(1));
        link.feed(&[b'x'; 1_100], Tick(1));
        assert!(
            link.next_reply(1_000, &address)
                .unwrap_err()
                .contains("1000 bytes")
        );
    }
}
