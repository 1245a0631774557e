//! One connection to Redis: what it is for, how long it rests after failures (full jitter, 100 ms doubling to 5 s), what is
//! gathered before it is written, and whether it has shown that it works.

use std::time::Duration;

use super::life::Life;
use super::refusal::Grant;
use super::{Address, Endpoint, Options};
use crate::backplane::resp::Reply;
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
    life: Life,
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
    /// Nothing was written before this is due.
    flush_at: Tick,
    heard: Tick,
    /// What is spoken since it was greeted.
    is_resp3: bool,
    counts: RedisLinkSnapshot,
}

impl Link {
    /// A link that is to be connected at once.
    pub fn new(role: Role, options: &Options, now: Tick) -> Self {
        Self {
            role,
            place: options.address.endpoint.to_string(),
            life: Life::new(format!("{}-{}", options.client_name, role.label()), now),
            failures: 0,
            trouble_since: Some(now),
            reason: "it was not connected yet".into(),
            refused: None,
            is_told: false,
            flush_at: now,
            heard: now,
            is_resp3: true,
            counts: RedisLinkSnapshot::default(),
        }
    }

    /// What it is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether commands may be sent.
    pub fn is_up(&self) -> bool {
        self.life.is_up()
    }

    /// Whether it waits for its next attempt.
    pub fn is_resting(&self) -> bool {
        self.life.resting_until().is_some()
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
        self.life.label()
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
        self.life.begin(now)
    }

    /// The socket is connected.
    pub fn connected(&mut self, options: &Options, now: Tick) {
        let grant = Grant::at_redis(options);
        if self.life.connected(&options.address, grant, now) {
            self.heard = now;
            self.flush_at = now;
        }
    }

    /// It has failed, or is given up: the socket is closed by whoever asks. Nothing of what was to be sent is left.
    pub fn fail(&mut self, reason: String, now: Tick, random: &mut Random) {
        if self.life.is_closed() {
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
        self.life.rest(now.after(rest));
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
    }

    /// Begins anew at another address: `soon` without a rest, else with the one that it has.
    pub fn restart(&mut self, soon: bool, endpoint: &Endpoint, now: Tick) {
        if !self.life.is_closed() {
            let until = self.life.resting_until().filter(|_| !soon);
            self.life.rest(until.unwrap_or(now));
        }
        self.place = endpoint.to_string();
    }

    /// It ends for good.
    pub fn close(&mut self) {
        self.life.close();
    }

    /// Bytes came.
    pub fn feed(&mut self, bytes: &[u8], now: Tick) {
        self.heard = now;
        self.counts.received_bytes += bytes.len() as u64;
        self.life.feed(bytes);
    }

    /// The next reply, or why the link is no good.
    pub fn next_reply(
        &mut self,
        reply_bytes_max: usize,
        address: &Address,
    ) -> Result<Option<Reply>, String> {
        let reply = self.life.next_reply(address)?;
        if reply.is_none() && self.life.waiting_bytes() > reply_bytes_max {
            return Err(format!(
                "Redis sends a reply of more than {reply_bytes_max} bytes, and there is none so large"
            ));
        }
        Ok(reply)
    }

    /// A reply while the link is greeting. `Err`: why it cannot be used.
    pub fn greet(&mut self, reply: &Reply, now: Tick) -> Result<Wants, String> {
        let Some(server) = self.life.greet(reply, now)? else {
            return Ok(Wants::Nothing);
        };
        self.is_resp3 = server.is_resp3;
        self.counts.connects += 1;
        if !std::mem::replace(&mut self.is_told, true) {
            tracing::info!(
                link = self.role.label(),
                place = self.place,
                server = server.to_string(),
                "connected to Redis"
            );
        }
        Ok(Wants::Ready)
    }

    /// Whether RESP3 is spoken, once it is up.
    pub fn is_resp3(&self) -> bool {
        self.is_resp3
    }

    /// Why the socket has ended, with what may be behind it.
    pub fn explain_end(&self, reason: String, address: &Address) -> String {
        self.life.explain_end(reason, address)
    }

    /// Gives it up if it takes too long to come up.
    pub fn overdue(&self, address: &Address, timeout: Duration, now: Tick) -> Option<String> {
        let what = self.life.overdue(address, timeout, now)?;
        Some(format!("{} {what}", address.endpoint))
    }

    /// When [`Self::begin`] or [`Self::overdue`] is due.
    pub fn deadline(&self, timeout: Duration) -> Option<Tick> {
        self.life.deadline(timeout)
    }

    /// Since when it is up.
    pub fn up_since(&self) -> Option<Tick> {
        self.life.up_since()
    }

    /// Queues a command.
    pub fn command(&mut self, words: &[&[u8]]) {
        self.life.command(words);
    }

    /// Bytes that wait to be written.
    pub fn out_bytes(&self) -> usize {
        self.life.output().len()
    }

    /// What is to be written now: all that waits, once it has waited long enough for more to come.
    pub fn output(&self, now: Tick) -> &[u8] {
        match self.flush_at <= now {
            true => self.life.output(),
            false => &[],
        }
    }

    /// When [`Self::output`] has something; `None`: nothing waits.
    pub fn flush_deadline(&self) -> Option<Tick> {
        (!self.life.output().is_empty()).then_some(self.flush_at)
    }

    /// So many bytes of the output were written. What comes within `gather` from now is written together.
    pub fn written(&mut self, bytes: usize, gather: Duration, now: Tick) {
        self.life.written(bytes);
        self.counts.sent_bytes += bytes as u64;
        self.counts.writes += 1;
        if self.life.output().is_empty() {
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
        let mut link = Link::new(Role::Publishing, &options(), now);
        assert!(link.begin(now));
        link.connected(&options(), now);
        let hello = Reply::Fields(vec![("version".into(), "7.0.15".into())]);
        assert_eq!(link.greet(&hello, now), Ok(Wants::Ready));
        let bytes = link.output(now).len();
        link.written(bytes, Duration::ZERO, now);
        link
    }

    #[test]
    fn rests_grow_to_five_seconds_and_are_spread_from_none_to_all_of_it() {
        let mut random = Random::new(42);
        let mut link = Link::new(Role::Publishing, &options(), Tick(0));
        let mut longest = Vec::new();
        for round in 0..10u32 {
            let mut rests = Vec::new();
            for _ in 0..200 {
                link.failures = round;
                link.life.rest(Tick(0));
                assert!(link.begin(Tick(0)));
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
        let mut link = Link::new(Role::Subscription, &options(), Tick(0));
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
