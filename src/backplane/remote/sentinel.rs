//! Who the master is: asks Sentinels, one after another, and listens for a switch at the one that answers.
//!
//! ```text
//! Resting ─▶ Connecting ─▶ Greeting ─▶ Up: SUBSCRIBE +switch-master, SENTINEL get-master-addr-by-name now and then
//!    ▲            └─────────────┴───────┴─ failed: the next Sentinel at once; after all of them, a rest
//! ```
//! (<https://redis.io/docs/latest/develop/reference/sentinel-clients/>.) A Sentinel that names a master which cannot be
//! used is left for the next one after a while: it may be cut off from the others.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::life::Life;
use super::link::Random;
use super::refusal::{Grant, explain};
use super::{Address, Endpoint, LinkId, LinkOrder, Options};
use crate::backplane::resp::Reply;
use crate::time::Tick;

/// After all Sentinels have failed, the first rest lasts so long at most; each further one twice as long.
const REST_MS_MIN: u64 = 100;
/// No rest lasts longer.
const REST_MS_MAX: u64 = 2_000;
/// While the master cannot be used, the Sentinel is asked so often.
const URGENT_INTERVAL: Duration = Duration::from_millis(500);
/// A Sentinel that has named a master for so long which cannot be used is left for the next one.
const DISTRUST_TIME: Duration = Duration::from_secs(5);
/// Bytes of a Sentinel's reply at most.
const REPLY_BYTES_MAX: usize = 64 << 10;
/// Where Sentinels tell of a new master: its name, the old host and port, the new host and port.
pub const SWITCH_CHANNEL: &[u8] = b"+switch-master";

/// A question that is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// To be told of a switch.
    Switches,
    /// Where the master is.
    Master,
}

/// The watch over one group's master. After each input, drain [`Self::poll_order`] and [`Self::take_news`].
#[derive(Debug)]
pub struct Watch {
    link: LinkId,
    sentinels: Vec<Address>,
    name: String,
    interval: Duration,
    timeout: Duration,
    random: Random,
    /// Whose turn it is.
    current: usize,
    /// Sentinels in a row that were of no use.
    failed_count: usize,
    life: Life,
    asked: VecDeque<(Asked, Tick)>,
    /// When the next question is due.
    ask_at: Tick,
    /// Since when the master that is known cannot be used.
    urgent_since: Option<Tick>,
    master: Option<Endpoint>,
    /// Why the last Sentinel was of no use.
    reason: Option<(Tick, String)>,
    has_news: bool,
    orders: VecDeque<LinkOrder>,
}

impl Watch {
    /// A watch that has asked nobody. It begins with any of the Sentinels, so that nodes do not all ask the first one.
    ///
    /// # Panics
    /// Without a Sentinel: a URL names at least one.
    pub fn new(
        link: LinkId,
        sentinels: Vec<Address>,
        name: &str,
        options: &Options,
        seed: u64,
        now: Tick,
    ) -> Self {
        assert!(!sentinels.is_empty(), "a URL names at least one Sentinel");
        let mut random = Random::new(seed);
        let last = sentinels.len() - 1;
        Self {
            link,
            current: usize::try_from(random.up_to(last as u64)).unwrap_or_default(),
            sentinels,
            name: name.to_owned(),
            interval: Duration::from_millis(u64::from(options.probe_interval_ms)),
            timeout: Duration::from_millis(u64::from(options.probe_timeout_ms)),
            random,
            failed_count: 0,
            life: Life::new(format!("{}-sentinel", options.client_name), now),
            asked: VecDeque::new(),
            ask_at: now,
            urgent_since: Some(now),
            master: None,
            reason: None,
            has_news: false,
            orders: VecDeque::new(),
        }
    }

    /// The link that it has, whichever Sentinel is at its other end.
    pub fn link(&self) -> LinkId {
        self.link
    }

    /// Where the master is, if that is new.
    pub fn take_news(&mut self) -> Option<Endpoint> {
        std::mem::take(&mut self.has_news)
            .then(|| self.master.clone())
            .flatten()
    }

    /// The next thing that the socket is to do.
    pub fn poll_order(&mut self) -> Option<LinkOrder> {
        self.orders.pop_front()
    }

    /// Why no Sentinel answers, and since when; `None`: one does.
    pub fn trouble(&self) -> Option<(Tick, &str)> {
        let reason = self.reason.as_ref();
        reason.map(|(since, reason)| (*since, reason.as_str()))
    }

    /// What it does, in a word.
    pub fn state_label(&self) -> &'static str {
        self.life.label()
    }

    /// Whether every Sentinel was of no use, and none has named a master ever.
    pub fn has_failed(&self) -> bool {
        self.master.is_none() && self.failed_count >= self.sentinels.len()
    }

    /// Whether the master that is known can be used. When it cannot any more, the Sentinel is asked at once.
    pub fn set_usable(&mut self, usable: bool, now: Tick) {
        if usable {
            self.urgent_since = None;
        } else if self.urgent_since.is_none() {
            self.urgent_since = Some(now);
            self.ask_at = now;
        }
    }

    fn sentinel(&self) -> &Address {
        &self.sentinels[self.current]
    }

    // --- the socket's side ------------------------------------------------------------------------------------------

    /// The socket is connected.
    pub fn connected(&mut self, now: Tick) {
        let address = &self.sentinels[self.current];
        let grant = Grant::at_sentinel(address);
        self.life.connected(address, grant, now);
    }

    /// The socket could not be connected, or has ended.
    pub fn failed(&mut self, reason: String, now: Tick) {
        let reason = self.life.explain_end(reason, self.sentinel());
        self.turn(reason, now);
    }

    /// What is to be written now.
    pub fn output(&self) -> &[u8] {
        self.life.output()
    }

    /// So much of it was written.
    pub fn written(&mut self, bytes: usize) {
        self.life.written(bytes);
    }

    /// Bytes came.
    pub fn received(&mut self, bytes: &[u8], now: Tick) {
        self.life.feed(bytes);
        if let Err(reason) = self.replies(now) {
            self.turn(reason, now);
        }
    }

    fn replies(&mut self, now: Tick) -> Result<(), String> {
        while let Some(reply) = self.life.next_reply(&self.sentinels[self.current])? {
            if self.life.is_up() {
                self.answered(reply, now)?;
            } else if let Some(server) = self.life.greet(&reply, now)? {
                self.greeted(server.is_resp3, now);
            }
        }
        if self.life.waiting_bytes() > REPLY_BYTES_MAX {
            return Err("it says more than a Sentinel has to say".into());
        }
        Ok(())
    }

    /// With RESP2 a connection that is subscribed may ask nothing: questions alone have to do.
    fn greeted(&mut self, hears_switches: bool, now: Tick) {
        if hears_switches {
            self.life.command(&[b"SUBSCRIBE", SWITCH_CHANNEL]);
            self.asked.push_back((Asked::Switches, now));
        }
        self.ask(now);
    }

    fn ask(&mut self, now: Tick) {
        let words: [&[u8]; 3] = [
            b"SENTINEL",
            b"GET-MASTER-ADDR-BY-NAME",
            self.name.as_bytes(),
        ];
        self.life.command(&words);
        self.asked.push_back((Asked::Master, now));
        self.ask_at = match self.urgent_since {
            Some(_) => now.after(URGENT_INTERVAL),
            None => now.after(self.interval),
        };
    }

    fn answered(&mut self, reply: Reply, now: Tick) -> Result<(), String> {
        if let Reply::Message { channel, payload } = &reply {
            if *channel == SWITCH_CHANNEL
                && let Some(master) = switched(payload, &self.name)
            {
                self.named(master, now);
            }
            return Ok(());
        }
        let front = self.asked.pop_front().map(|(asked, _)| asked);
        match (front, reply) {
            (Some(Asked::Switches), Reply::Subscribed { .. }) => Ok(()),
            (Some(Asked::Switches), Reply::Error(error)) => {
                let why = explain(&error, &Grant::at_sentinel(self.sentinel()));
                tracing::warn!(
                    sentinel = %self.sentinel().endpoint,
                    why,
                    "a Sentinel does not tell of failovers; it is asked now and then"
                );
                Ok(())
            }
            (Some(Asked::Master), Reply::List(parts)) => match master_of(&parts) {
                Some(master) => {
                    self.named(master, now);
                    Ok(())
                }
                None => Err("it does not say where the master is".into()),
            },
            (Some(Asked::Master), Reply::Nil) => Err(unknown_master(&self.name)),
            (Some(Asked::Master), Reply::Error(error)) => {
                Err(explain(&error, &Grant::at_sentinel(self.sentinel())))
            }
            _ => Err("it says what nobody asked for".into()),
        }
    }

    fn named(&mut self, master: Endpoint, now: Tick) {
        self.failed_count = 0;
        self.reason = None;
        if self.master.as_ref() == Some(&master) {
            return;
        }
        tracing::info!(
            sentinel = %self.sentinel().endpoint,
            name = self.name,
            %master,
            "a Sentinel has named the master"
        );
        self.master = Some(master);
        self.has_news = true;
        // It has all the time of a new one.
        self.urgent_since = Some(now);
    }

    /// The Sentinel is of no use: the next one's turn.
    fn turn(&mut self, reason: String, now: Tick) {
        if self.life.is_closed() {
            return;
        }
        let reason = format!("the Sentinel at {}: {reason}", self.sentinel().endpoint);
        if self.reason.as_ref().is_none_or(|(_, last)| *last != reason) {
            tracing::warn!(
                name = self.name,
                reason,
                "a Sentinel is of no use; asking the next one"
            );
        }
        let since = self.reason.as_ref().map_or(now, |(since, _)| *since);
        self.reason = Some((since, reason));
        self.leave(now);
        self.failed_count += 1;
        let rounds = self.failed_count / self.sentinels.len();
        if self.failed_count.is_multiple_of(self.sentinels.len()) {
            let longest_ms = (REST_MS_MIN << (rounds - 1).min(16)).min(REST_MS_MAX);
            let rest = Duration::from_millis(self.random.up_to(longest_ms));
            self.life.rest(now.after(rest));
        }
    }

    /// Goes on to the next one, at once.
    fn leave(&mut self, now: Tick) {
        self.current = (self.current + 1) % self.sentinels.len();
        self.life.rest(now);
        self.asked.clear();
        self.orders.push_back(LinkOrder::Close(self.link));
    }

    /// It ends for good.
    pub fn close(&mut self) {
        if !self.life.is_closed() {
            self.life.close();
            self.asked.clear();
            self.orders.push_back(LinkOrder::Close(self.link));
        }
    }

    // --- time -------------------------------------------------------------------------------------------------------

    /// Does what is due by time.
    pub fn handle_deadline(&mut self, now: Tick) {
        if self.life.begin(now) {
            let (link, address) = (self.link, self.sentinel().clone());
            self.orders.push_back(LinkOrder::Connect { link, address });
        } else if let Some(what) = self.life.overdue(self.sentinel(), self.timeout, now) {
            self.turn(format!("it {what}"), now);
        } else if let Some(since) = self.life.up_since() {
            if self.answer_deadline().is_some_and(|due| due <= now) {
                let ms = self.timeout.as_millis();
                self.turn(format!("it does not answer within {ms} ms"), now);
            } else if self.distrust_deadline(since).is_some_and(|due| due <= now) {
                tracing::warn!(
                    sentinel = %self.sentinel().endpoint,
                    name = self.name,
                    "a Sentinel names a master that cannot be used; asking another one"
                );
                self.leave(now);
            } else if self.ask_at <= now && self.asked.is_empty() {
                self.ask(now);
            }
        }
    }

    fn answer_deadline(&self) -> Option<Tick> {
        let (_, asked) = self.asked.front()?;
        Some(asked.after(self.timeout))
    }

    fn distrust_deadline(&self, since: Tick) -> Option<Tick> {
        let urgent = self.urgent_since.filter(|_| self.sentinels.len() > 1)?;
        Some(urgent.max(since).after(DISTRUST_TIME))
    }

    /// When [`Self::handle_deadline`] has something to do.
    pub fn next_deadline(&self) -> Option<Tick> {
        let Some(since) = self.life.up_since() else {
            return self.life.deadline(self.timeout);
        };
        let next = self.answer_deadline().unwrap_or(self.ask_at);
        let distrust = self.distrust_deadline(since);
        Some(distrust.map_or(next, |distrust| distrust.min(next)))
    }
}

/// The new master of `name`, from `NAME OLD-HOST OLD-PORT NEW-HOST NEW-PORT`.
fn switched(payload: &[u8], name: &str) -> Option<Endpoint> {
    let payload = std::str::from_utf8(payload).ok()?;
    let rest = payload.strip_prefix(name)?.strip_prefix(' ')?;
    let mut words = rest.split(' ').skip(2);
    let (host, port) = (words.next()?, words.next()?);
    endpoint(host, port)
}

/// A Sentinel that does not know the name.
pub fn unknown_master(name: &str) -> String {
    format!("it watches no master called {name}: write the NAME of its `sentinel monitor NAME …`")
}

/// The master in an answer to `SENTINEL GET-MASTER-ADDR-BY-NAME`.
pub fn master_of(parts: &[Reply]) -> Option<Endpoint> {
    let [Reply::Text(host), Reply::Text(port)] = parts else {
        return None;
    };
    let text = |text: &Bytes| String::from_utf8(text.to_vec()).ok();
    endpoint(&text(host)?, &text(port)?)
}

fn endpoint(host: &str, port: &str) -> Option<Endpoint> {
    let port: u16 = port.parse().ok()?;
    (!host.is_empty() && port > 0).then(|| Endpoint::Tcp {
        host: host.to_owned(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Role, Source};
    use super::*;

    const HELLO: &[u8] = b"%3\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$4\r\nmode\r\n$8\r\nsentinel\r\n$5\r\nproto\r\n:3\r\n";
    const SUBSCRIBED: &[u8] = b">3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n";

    fn watch(sentinels: &str) -> Watch {
        watch_of(&format!("redis-sentinel://{sentinels}/m"))
    }

    fn watch_of(url: &str) -> Watch {
        let Source::Sentinel { sentinels, .. } = Source::parse(url).unwrap() else {
            panic!("{url} is a Sentinel's");
        };
        let options = Options::new(Address::parse("redis://x").unwrap());
        let link = LinkId {
            server: 1,
            role: Role::Commands,
        };
        Watch::new(link, sentinels, "m", &options, 7, Tick(0))
    }

    fn tcp(host: &str, port: u16) -> Endpoint {
        let host = host.to_owned();
        Endpoint::Tcp { host, port }
    }

    fn master(host: &str) -> Vec<u8> {
        format!("*2\r\n${}\r\n{host}\r\n$4\r\n6379\r\n", host.len()).into_bytes()
    }

    /// Where it connects now, if it does.
    fn connects(watch: &mut Watch, now: Tick) -> Option<String> {
        watch.handle_deadline(now);
        std::iter::from_fn(|| watch.poll_order())
            .filter_map(|order| match order {
                LinkOrder::Connect { address, .. } => Some(address.endpoint.to_string()),
                _ => None,
            })
            .last()
    }

    /// What it has said since it was looked at last.
    fn said(watch: &mut Watch) -> String {
        let text = String::from_utf8(watch.output().to_vec()).unwrap();
        watch.written(text.len());
        let words = text
            .split("\r\n")
            .filter(|part| !part.starts_with(['*', '$']));
        words.collect::<Vec<_>>().join(" ").trim().to_owned()
    }

    /// Connected and greeted; its first question is not answered.
    fn greeted(watch: &mut Watch, now: Tick) {
        assert!(connects(watch, now).is_some());
        watch.connected(now);
        assert!(said(watch).starts_with("HELLO 3"));
        watch.received(HELLO, now);
        assert_eq!(
            said(watch),
            "SUBSCRIBE +switch-master SENTINEL GET-MASTER-ADDR-BY-NAME m"
        );
        watch.received(SUBSCRIBED, now);
    }

    #[test]
    fn the_master_is_asked_for_and_a_switch_is_heard_of() {
        let mut watch = watch("a,b");
        greeted(&mut watch, Tick(0));
        assert_eq!(watch.take_news(), None);
        watch.received(&master("one"), Tick(1));
        assert_eq!(watch.take_news(), Some(tcp("one", 6379)));
        assert_eq!(watch.take_news(), None, "once");
        watch.set_usable(true, Tick(2));
        let push = |text: &str| {
            format!(
                ">3\r\n$7\r\nmessage\r\n$14\r\n+switch-master\r\n${}\r\n{text}\r\n",
                text.len()
            )
            .into_bytes()
        };
        watch.received(&push("m2 one 6379 two 6380"), Tick(3));
        watch.received(&push("m"), Tick(3));
        assert_eq!(watch.take_news(), None, "that of another group");
        watch.received(&push("m one 6379 two 6380"), Tick(4));
        assert_eq!(watch.take_news(), Some(tcp("two", 6380)));
        assert_eq!(watch.trouble(), None);
    }

    #[test]
    fn it_is_asked_again_now_and_then_and_often_while_the_master_cannot_be_used() {
        let at = Tick::from_ms;
        let mut watch = watch("a,b");
        greeted(&mut watch, at(0));
        watch.received(&master("one"), at(0));
        watch.set_usable(true, at(0));
        watch.ask_at = at(5_000);
        watch.handle_deadline(at(4_999));
        assert_eq!(said(&mut watch), "");
        watch.handle_deadline(at(5_000));
        assert_eq!(said(&mut watch), "SENTINEL GET-MASTER-ADDR-BY-NAME m");
        watch.received(&master("one"), at(5_001));
        assert_eq!(watch.next_deadline(), Some(at(10_000)));
        watch.set_usable(false, at(6_000));
        assert_eq!(watch.next_deadline(), Some(at(6_000)), "at once");
        watch.handle_deadline(at(6_000));
        watch.received(&master("one"), at(6_001));
        watch.set_usable(false, at(6_001));
        assert_eq!(watch.next_deadline(), Some(at(6_500)));
        watch.handle_deadline(at(6_500));
        watch.received(&master("two"), at(6_501));
        assert_eq!(watch.take_news(), Some(tcp("two", 6379)));
        // The new one cannot be used either: another Sentinel may know better.
        let mut now = at(6_501);
        let mut turned = None;
        for _ in 0..100 {
            now = watch.next_deadline().unwrap().max(now);
            watch.handle_deadline(now);
            watch.set_usable(false, now);
            if let Some(LinkOrder::Close(_)) = watch.poll_order() {
                turned = Some(now);
                break;
            }
            if !watch.asked.is_empty() {
                watch.received(&master("two"), now);
            }
        }
        assert_eq!(turned, Some(at(11_501)), "after five seconds");
        assert_eq!(watch.trouble(), None, "it has answered");
    }

    #[test]
    fn who_is_of_no_use_is_passed_over_at_once_and_all_of_them_after_a_rest() {
        let mut watch = watch("a,b,c");
        let mut asked = Vec::new();
        for _ in 0..3 {
            assert!(!watch.has_failed());
            asked.push(connects(&mut watch, Tick(5)).unwrap());
            watch.failed("refused".into(), Tick(5));
        }
        assert!(watch.has_failed());
        asked.sort();
        assert_eq!(asked, ["a:26379", "b:26379", "c:26379"]);
        let (_, reason) = watch.trouble().unwrap();
        assert!(reason.contains("refused") && reason.contains("the Sentinel at "));
        let due = watch.next_deadline().unwrap();
        assert!(due <= Tick(5).after(Duration::from_millis(REST_MS_MIN)));
        assert!(connects(&mut watch, due).is_some());
        // One that takes the connection and says nothing.
        watch.connected(due);
        let late = due.after(Duration::from_secs(3));
        watch.handle_deadline(late);
        assert!(watch.trouble().unwrap().1.contains("HELLO within 3000 ms"));
        // One that stops answering.
        greeted(&mut watch, late);
        let later = late.after(Duration::from_secs(3));
        watch.handle_deadline(later);
        assert!(
            watch
                .trouble()
                .unwrap()
                .1
                .contains("does not answer within")
        );
    }

    #[test]
    fn a_sentinel_without_tls_that_is_asked_for_it_is_told_of() {
        let mut watch = watch_of("rediss-sentinel://a/m");
        assert!(connects(&mut watch, Tick(0)).is_some());
        watch.handle_deadline(Tick::from_ms(3_000));
        let (_, reason) = watch.trouble().unwrap();
        assert!(reason.contains("the Sentinel at a:26379: it does not take the connection"));
        assert!(reason.contains("(write redis-sentinel://)"), "{reason}");
    }

    #[test]
    fn what_a_sentinel_cannot_answer_is_told() {
        for (answer, told) in [
            (b"_\r\n".as_slice(), "watches no master called m"),
            (b"-NOPERM no\r\n", "+sentinel|get-master-addr-by-name"),
            (b"*1\r\n$1\r\nx\r\n", "does not say where"),
            (b":1\r\n", "nobody asked for"),
        ] {
            let mut watch = watch("a");
            greeted(&mut watch, Tick(0));
            watch.received(answer, Tick(1));
            let (_, reason) = watch.trouble().unwrap();
            assert!(reason.contains(told), "{reason} does not say {told}");
        }
        let mut watch = watch("a");
        assert!(connects(&mut watch, Tick(0)).is_some());
        watch.connected(Tick(0));
        watch.received(b"%1\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n", Tick(0));
        let (_, reason) = watch.trouble().unwrap();
        assert!(reason.contains("no Sentinel but a Redis"), "{reason}");
    }

    #[test]
    fn an_older_sentinel_is_only_asked() {
        let mut watch = watch("a");
        assert!(connects(&mut watch, Tick(0)).is_some());
        watch.connected(Tick(0));
        said(&mut watch);
        watch.received(b"-ERR unknown command 'HELLO'\r\n", Tick(0));
        watch.received(b"-ERR unknown command 'CLIENT'\r\n", Tick(0));
        watch.received(
            b"$44\r\nredis_version:5.0.14\r\nredis_mode:sentinel\r\nx\r\n",
            Tick(0),
        );
        watch.received(b"-ERR unknown\r\n", Tick(0));
        assert!(said(&mut watch).ends_with("SENTINEL GET-MASTER-ADDR-BY-NAME m"));
        assert!(watch.asked.iter().all(|(asked, _)| *asked == Asked::Master));
        watch.received(&master("one"), Tick(1));
        assert_eq!(watch.take_news(), Some(tcp("one", 6379)));
    }

    proptest! {
        #[test]
        fn whatever_happens_it_goes_on_in_time(steps in prop::collection::vec((0u8..7, 0u64..3_000), 1..80)) {
            let mut watch = watch("a,b,c");
            let mut now = Tick(0);
            for (step, ms) in steps {
                now = now.after(Duration::from_millis(ms));
                match step {
                    0 => watch.connected(now),
                    1 => watch.failed("x".into(), now),
                    2 => watch.received(HELLO, now),
                    3 => watch.received(SUBSCRIBED, now),
                    4 => watch.received(&master("one"), now),
                    5 => watch.set_usable(false, now),
                    _ => watch.set_usable(true, now),
                }
                // What is due is done, and does not stay due.
                let mut turns = 0;
                while watch.next_deadline().is_some_and(|due| due <= now) {
                    watch.handle_deadline(now);
                    turns += 1;
                    prop_assert!(turns < 10, "it turns on the spot: {watch:?}");
                }
                while watch.poll_order().is_some() {}
                prop_assert!(watch.current < 3);
            }
            watch.close();
            prop_assert_eq!(watch.next_deadline(), None);
        }
    }
}
