//! A connection's life, whatever it is for: connect, greet, be up, rest, and again.
//!
//! ```text
//! Resting ─due─▶ Connecting ─connected─▶ Greeting ─HELLO, AUTH, SELECT answered─▶ Up
//!    ▲               │                       │                                    │
//!    └───────────────┴───────────────────────┴── failed: how long is its owner's ─┘
//! ```

use std::time::Duration;

use bytes::BytesMut;

use super::Address;
use super::greeting::{Greeting, Server, Step};
use super::refusal::{Grant, explain_junk, explain_silence};
use crate::backplane::resp::{Decoder, Reply, Version, encode_command};
use crate::time::Tick;

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

/// Where a connection stands, and its bytes in both directions.
#[derive(Debug)]
pub struct Life {
    /// What the other end is to call it.
    name: String,
    state: State,
    decoder: Decoder,
    out: BytesMut,
    /// Bytes have come since it was connected.
    has_spoken: bool,
}

impl Life {
    /// One that is to be connected at once.
    pub fn new(name: String, now: Tick) -> Self {
        Self {
            name,
            state: State::Resting { until: now },
            decoder: Decoder::new(Version::Resp3),
            out: BytesMut::new(),
            has_spoken: false,
        }
    }

    /// Whether commands may be sent.
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Since when it is up.
    pub fn up_since(&self) -> Option<Tick> {
        match self.state {
            State::Up { since } => Some(since),
            _ => None,
        }
    }

    /// When its next attempt is due, if it waits for that.
    pub fn resting_until(&self) -> Option<Tick> {
        match self.state {
            State::Resting { until } => Some(until),
            _ => None,
        }
    }

    /// Whether it has ended for good.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// What it does, in a word.
    pub fn label(&self) -> &'static str {
        match self.state {
            State::Resting { .. } => "resting",
            State::Connecting { .. } => "connecting",
            State::Greeting { .. } => "greeting",
            State::Up { .. } => "up",
            State::Closed => "closed",
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

    /// The socket is connected: it greets, unless nobody waits for that any more. `grant`: what the user is to be allowed.
    pub fn connected(&mut self, address: &Address, grant: Grant, now: Tick) -> bool {
        if !matches!(self.state, State::Connecting { .. }) {
            return false;
        }
        let mut greeting = Greeting::new(address, grant);
        greeting.begin(&mut self.out, &self.name);
        self.has_spoken = false;
        self.state = State::Greeting {
            greeting: Box::new(greeting),
            since: now,
        };
        true
    }

    /// It has failed, or begins anew: it connects when that is due. Nothing of what was said and heard is left.
    pub fn rest(&mut self, until: Tick) {
        self.state = State::Resting { until };
        self.forget();
    }

    /// It ends for good.
    pub fn close(&mut self) {
        self.state = State::Closed;
        self.forget();
    }

    fn forget(&mut self) {
        self.out.clear();
        self.decoder = Decoder::new(Version::Resp3);
    }

    /// Bytes came.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.has_spoken = true;
        self.decoder.feed(bytes);
    }

    /// The next reply, or why the other end is no good.
    pub fn next_reply(&mut self, address: &Address) -> Result<Option<Reply>, String> {
        let reply = self.decoder.next_reply();
        reply.map_err(|_| explain_junk(self.decoder.waiting(), address))
    }

    /// Bytes of a reply that is not whole.
    pub fn waiting_bytes(&self) -> usize {
        self.decoder.waiting().len()
    }

    /// A reply while it is greeting; `Some`: it is up now, and who is there. `Err`: why that one cannot be used.
    pub fn greet(&mut self, reply: &Reply, now: Tick) -> Result<Option<Server>, String> {
        let State::Greeting { greeting, .. } = &mut self.state else {
            return Ok(None);
        };
        match greeting.handle(reply, &mut self.out, &self.name)? {
            Step::Going => {}
            Step::Older => self.decoder.set_version(Version::Resp2),
            Step::Done => {
                let server = greeting.server().clone();
                self.state = State::Up { since: now };
                return Ok(Some(server));
            }
        }
        Ok(None)
    }

    /// Why the socket has ended, with what may be behind it.
    pub fn explain_end(&self, reason: String, address: &Address) -> String {
        match self.state {
            State::Greeting { .. } if !self.has_spoken => explain_silence(reason, address),
            _ => reason,
        }
    }

    /// What whoever is at `address` does not do in time, if it takes too long to come up: `does not …`.
    pub fn overdue(&self, address: &Address, timeout: Duration, now: Tick) -> Option<String> {
        let ms = timeout.as_millis();
        match &self.state {
            State::Connecting { since } if address.tls && since.after(timeout) <= now => {
                Some(format!(
                    "does not take the connection and finish the TLS handshake within {ms} ms; a port without TLS never does (write {}://)",
                    address.scheme(false)
                ))
            }
            State::Connecting { since } if since.after(timeout) <= now => {
                Some(format!("does not take the connection within {ms} ms"))
            }
            State::Greeting { since, .. } if since.after(timeout) <= now => Some(format!(
                "takes the connection and does not answer HELLO within {ms} ms"
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

    /// Queues a command.
    pub fn command(&mut self, words: &[&[u8]]) {
        encode_command(&mut self.out, words);
    }

    /// What is to be written.
    pub fn output(&self) -> &[u8] {
        &self.out
    }

    /// So much of it was written.
    pub fn written(&mut self, bytes: usize) {
        let _ = self.out.split_to(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(3);

    fn options(url: &str) -> Options {
        Options::new(Address::parse(url).unwrap())
    }

    fn connecting(now: Tick) -> Life {
        let mut life = Life::new("n".into(), now);
        assert!(life.begin(now) && !life.begin(now));
        life
    }

    #[test]
    fn nothing_of_one_attempt_is_left_for_the_next() {
        let options = options("redis://h");
        let mut life = connecting(Tick(0));
        assert!(life.connected(&options.address, Grant::at_redis(&options), Tick(0)));
        life.feed(b"%2\r\n");
        assert!(!life.output().is_empty() && life.waiting_bytes() > 0);
        let silence = life.explain_end("it ends".into(), &options.address);
        assert_eq!(silence, "it ends", "it has spoken");
        life.rest(Tick(7));
        assert_eq!((life.output(), life.waiting_bytes()), (&b""[..], 0));
        assert_eq!(life.deadline(TIMEOUT), Some(Tick(7)));
        assert!(!life.begin(Tick(6)) && life.begin(Tick(7)));
        assert!(life.connected(&options.address, Grant::at_redis(&options), Tick(8)));
        let silence = life.explain_end("it ends".into(), &options.address);
        assert_ne!(silence, "it ends", "not this time");
    }

    #[test]
    fn a_socket_that_nobody_waits_for_any_more_is_not_greeted() {
        let options = options("redis://h");
        let grant = || Grant::at_redis(&options);
        let mut life = Life::new("n".into(), Tick(0));
        assert!(!life.connected(&options.address, grant(), Tick(0)));
        assert!(life.begin(Tick(0)));
        life.rest(Tick(9));
        assert!(!life.connected(&options.address, grant(), Tick(1)));
        life.close();
        assert!(!life.begin(Tick(9)) && !life.connected(&options.address, grant(), Tick(9)));
        assert_eq!((life.output(), life.deadline(TIMEOUT)), (&b""[..], None));
    }

    #[test]
    fn a_handshake_that_does_not_end_says_what_to_write() {
        for (url, told) in [("redis://h", ""), ("rediss://h", "(write redis://)")] {
            let address = options(url).address;
            let life = connecting(Tick(0));
            assert_eq!(life.overdue(&address, TIMEOUT, Tick::from_ms(2_999)), None);
            let what = life.overdue(&address, TIMEOUT, Tick::from_ms(3_000));
            let what = what.unwrap();
            assert!(what.starts_with("does not take the connection"), "{what}");
            assert_eq!(what.contains("TLS"), !told.is_empty(), "{what}");
            assert!(what.ends_with(told), "{what}");
        }
    }
}
