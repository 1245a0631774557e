//! Looks at Redis as `throng check` does: connects, greets, sends a message through it and takes it back. Waits.

use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Socket;

use super::stream::{Stream, connect_failure};
use super::tls::{TlsClient, TlsStream};
use crate::backplane::remote::{
    Address, Endpoint, Grant, Greeting, Mode, Options, Step, explain, explain_junk,
    explain_silence, master_of, unknown_master,
};
use crate::backplane::resp::{Decoder, Reply, Version, encode_command};
use crate::config::Settings;

/// Messages that are sent through Redis, one after another.
const MESSAGE_COUNT: usize = 5;
/// Channels that are tried at a cluster's node: it serves some of the slots.
const CHANNEL_COUNT_MAX: u32 = 1_000;
const READ_BYTES: usize = 16 << 10;
/// The place of what is wrong before any server is asked.
const OWN_TLS: &str = "TLS";

/// What was seen of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisFact {
    /// Where it is.
    pub place: String,
    /// What it is like, or why it cannot be used.
    pub seen: Result<RedisSeen, String>,
    /// Another one of its kind can be used: this one may be missing for a while.
    pub is_spare: bool,
}

impl RedisFact {
    /// Whether it is about this node's own files for TLS: without them `serve` does not start.
    #[must_use]
    pub fn is_of_own_tls(&self) -> bool {
        self.place == OWN_TLS
    }
}

/// A server that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisSeen {
    /// What it calls itself: `redis 7.0.15, RESP3, standalone, master`.
    pub server: String,
    /// The version of TLS that is spoken with it, if any.
    pub tls: Option<String>,
    /// What it does.
    pub service: RedisService,
}

/// What a server does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisService {
    /// It carries messages.
    Messages {
        /// A message's way to it and back to another connection, the middle one of several, microseconds.
        round_trip_us: u64,
    },
    /// It is a Sentinel.
    Names {
        /// The master that it names.
        master: String,
    },
}

/// Looks at all that these settings name; nothing without Redis.
#[must_use]
pub fn survey(settings: &Settings) -> Vec<RedisFact> {
    let Some(options) = &settings.redis else {
        return Vec::new();
    };
    let tls = match TlsClient::wanted(settings) {
        Ok(tls) => tls,
        Err(reason) => {
            return vec![RedisFact {
                place: OWN_TLS.into(),
                seen: Err(reason),
                is_spare: false,
            }];
        }
    };
    let survey = Survey {
        options,
        tls: tls.as_ref(),
    };
    let mut facts = Vec::new();
    for address in options.addresses() {
        match &address.endpoint {
            Endpoint::Master { sentinels, name } => {
                facts.extend(survey.watched(address, sentinels, name));
            }
            _ => facts.push(RedisFact {
                place: address.endpoint.to_string(),
                seen: survey.carrier(address),
                is_spare: false,
            }),
        }
    }
    if options.is_cluster() && facts.iter().any(|fact| fact.seen.is_ok()) {
        facts.iter_mut().for_each(|fact| fact.is_spare = true);
    }
    facts
}

/// What all looks have in common.
struct Survey<'a> {
    options: &'a Options,
    tls: Option<&'a TlsClient>,
}

impl Survey<'_> {
    /// The Sentinels, and the master that the first of them names.
    fn watched(&self, address: &Address, sentinels: &[Address], name: &str) -> Vec<RedisFact> {
        let mut master = None;
        let mut facts: Vec<RedisFact> = Vec::new();
        for sentinel in sentinels {
            let seen = self.sentinel(sentinel, name);
            let seen = seen.map(|(seen, endpoint)| {
                master.get_or_insert(endpoint);
                seen
            });
            facts.push(RedisFact {
                place: sentinel.endpoint.to_string(),
                seen,
                is_spare: true,
            });
        }
        match master {
            Some(endpoint) => facts.push(RedisFact {
                place: endpoint.to_string(),
                seen: self.carrier(&address.moved_to(endpoint)),
                is_spare: false,
            }),
            None => facts.iter_mut().for_each(|fact| fact.is_spare = false),
        }
        facts
    }

    fn sentinel(&self, address: &Address, name: &str) -> Result<(RedisSeen, Endpoint), String> {
        let grant = Grant::at_sentinel(address);
        let mut talk = Talk::begin(address, self, grant.clone())?;
        let reply = talk.ask(&[b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name.as_bytes()])?;
        let endpoint = match reply {
            Reply::Error(error) => return Err(explain(&error, &grant)),
            Reply::Nil => return Err(unknown_master(name)),
            Reply::List(parts) => master_of(&parts),
            _ => None,
        };
        let endpoint = endpoint.ok_or("it does not say where the master is")?;
        let service = RedisService::Names {
            master: endpoint.to_string(),
        };
        Ok((talk.seen(service), endpoint))
    }

    /// Sends messages through a server and takes them back.
    fn carrier(&self, address: &Address) -> Result<RedisSeen, String> {
        let options = Options {
            address: address.clone(),
            ..self.options.clone()
        };
        let grant = Grant::at_redis(&options);
        let mut listener = Talk::begin(address, self, grant.clone())?;
        let mut speaker = Talk::begin(address, self, grant.clone())?;
        let (subscribe, publish): (&[u8], &[u8]) = match options.mode {
            Mode::Sharded => (b"SSUBSCRIBE", b"SPUBLISH"),
            Mode::Pubsub | Mode::Streams => (b"SUBSCRIBE", b"PUBLISH"),
        };
        let mut tries = 0..CHANNEL_COUNT_MAX;
        let channel = loop {
            let number = tries.next().ok_or("none of its slots can be found")?;
            let process = std::process::id();
            let channel = format!("{}:probe:check-{process}-{number}", options.prefix);
            match listener.ask(&[subscribe, channel.as_bytes()])? {
                Reply::Subscribed { .. } => break channel,
                Reply::Error(error) if error.starts_with("MOVED ") => {} // another node's slot
                Reply::Error(error) => return Err(explain(&error, &grant)),
                _ => return Err("Redis answers SUBSCRIBE with something else".into()),
            }
        };
        let mut round_trips = Vec::with_capacity(MESSAGE_COUNT);
        for number in 0..MESSAGE_COUNT {
            let text = number.to_string();
            let began = Instant::now();
            let reply = speaker.ask(&[publish, channel.as_bytes(), text.as_bytes()])?;
            if let Reply::Error(error) = reply {
                return Err(explain(&error, &grant));
            }
            match listener.next()? {
                Reply::Message { payload, .. } if payload == text.as_bytes() => {}
                _ => return Err("Redis delivers something else than was published".into()),
            }
            round_trips.push(began.elapsed());
        }
        round_trips.sort_unstable();
        let round_trip_us = round_trips[MESSAGE_COUNT / 2].as_micros() as u64;
        Ok(listener.seen(RedisService::Messages { round_trip_us }))
    }
}

/// A connection that waits for its answers.
struct Talk {
    stream: Stream,
    address: Address,
    place: String,
    decoder: Decoder,
    server: String,
    timeout: Duration,
}

impl Talk {
    /// Connects and greets.
    fn begin(address: &Address, survey: &Survey<'_>, grant: Grant) -> Result<Self, String> {
        let Survey { options, tls } = survey;
        let timeout = Duration::from_millis(u64::from(options.probe_timeout_ms));
        let place = address.endpoint.to_string();
        let socket = connect(address, timeout)?;
        let mut talk = Self {
            stream: match (address.tls, tls, &address.endpoint) {
                (true, Some(tls), Endpoint::Tcp { host, .. }) => {
                    Stream::Tls(secured(tls, socket, host, address, timeout)?)
                }
                _ => Stream::Plain(socket),
            },
            address: address.clone(),
            place,
            decoder: Decoder::new(Version::Resp3),
            server: String::new(),
            timeout,
        };
        let mut greeting = Greeting::new(address, grant);
        let name = format!("{}-check", options.client_name);
        let mut out = BytesMut::new();
        greeting.begin(&mut out, &name);
        let mut has_spoken = false;
        loop {
            talk.send(&out.split())?;
            let reply = talk.next().map_err(|reason| match has_spoken {
                true => reason,
                false => explain_silence(reason, address),
            })?;
            has_spoken = true;
            match greeting.handle(&reply, &mut out, &name)? {
                Step::Going => {}
                Step::Older => talk.decoder.set_version(Version::Resp2),
                Step::Done => {
                    talk.server = greeting.server().to_string();
                    return Ok(talk);
                }
            }
        }
    }

    /// What was seen of the other side, which does `service`.
    fn seen(&self, service: RedisService) -> RedisSeen {
        RedisSeen {
            server: self.server.clone(),
            tls: match &self.stream {
                Stream::Plain(_) => None,
                Stream::Tls(stream) => Some(stream.version()),
            },
            service,
        }
    }

    fn ask(&mut self, words: &[&[u8]]) -> Result<Reply, String> {
        let mut out = BytesMut::new();
        encode_command(&mut out, words);
        self.send(&out)?;
        self.next()
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let sent = self.stream.flush().and_then(|()| self.stream.write(bytes));
            match sent {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) => self.retry(&error, PollFlags::OUT)?,
            }
        }
        while let Err(error) = self.stream.flush() {
            self.retry(&error, PollFlags::OUT)?;
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Reply, String> {
        let mut buffer = [0; READ_BYTES];
        loop {
            match self.decoder.next_reply() {
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) => {}
                Err(_) => return Err(explain_junk(self.decoder.waiting(), &self.address)),
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err("Redis has closed the connection".into()),
                Ok(count) => self.decoder.feed(&buffer[..count]),
                Err(error) => self.retry(&error, PollFlags::IN)?,
            }
        }
    }

    /// After an attempt that came to nothing: waits until the next one may not.
    fn retry(&self, error: &io::Error, flags: PollFlags) -> Result<(), String> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock if is_ready(self.stream.socket(), flags, self.timeout) => {
                Ok(())
            }
            io::ErrorKind::WouldBlock => Err(format!(
                "{} does not answer within {} ms",
                self.place,
                self.timeout.as_millis()
            )),
            _ => Err(super::broken(error)),
        }
    }
}

/// Waits until the socket is as `flags` say; false: not in time.
fn is_ready(socket: &Socket, flags: PollFlags, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).ok();
    loop {
        match poll(&mut [PollFd::new(socket, flags)], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            count => return count.is_ok_and(|count| count > 0),
        }
    }
}

fn connect(address: &Address, timeout: Duration) -> Result<Socket, String> {
    let place = address.endpoint.to_string();
    let failed = |error: &io::Error| match error.kind() {
        io::ErrorKind::TimedOut => format!(
            "{place} does not take the connection within {} ms",
            timeout.as_millis()
        ),
        _ => connect_failure(&place, error),
    };
    let socket = match &address.endpoint {
        Endpoint::Unix { path } => {
            Socket::from(UnixStream::connect(path).map_err(|error| failed(&error))?)
        }
        Endpoint::Master { .. } => return Err(format!("nobody has said where {place} is")),
        Endpoint::Tcp { host, port } => {
            let addresses = (host.as_str(), *port)
                .to_socket_addrs()
                .map_err(|error| format!("the name {host} cannot be resolved: {error}"))?;
            let mut last = io::Error::other("the name has no address");
            let mut found = None;
            for address in addresses {
                match TcpStream::connect_timeout(&address, timeout) {
                    Ok(stream) => {
                        found = Some(Socket::from(stream));
                        break;
                    }
                    Err(error) => last = error,
                }
            }
            found.ok_or_else(|| failed(&last))?
        }
    };
    let set = socket.set_nonblocking(true);
    set.map_err(|error| failed(&error))?;
    Ok(socket)
}

fn secured(
    tls: &TlsClient,
    socket: Socket,
    host: &str,
    address: &Address,
    timeout: Duration,
) -> Result<Box<TlsStream>, String> {
    let place = address.endpoint.to_string();
    let plain = address.scheme(false);
    let mut stream = TlsStream::new(tls, socket, host, &place, plain)?;
    loop {
        match stream.shake() {
            Ok(true) => return Ok(Box::new(stream)),
            Ok(false) => {
                let flags = match stream.wants_write() {
                    true => PollFlags::IN | PollFlags::OUT,
                    false => PollFlags::IN,
                };
                if !is_ready(stream.socket(), flags, timeout) {
                    return Err(format!(
                        "{place} does not finish the TLS handshake within {} ms; a port without TLS never does (write {plain}://)",
                        timeout.as_millis()
                    ));
                }
            }
            Err(error) => return Err(super::broken(&error)),
        }
    }
}
