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
    Address, Endpoint, Grant, Greeting, Options, Step, explain, explain_junk, explain_silence,
};
use crate::backplane::resp::{Decoder, Reply, Version, encode_command};
use crate::config::Settings;

/// Messages that are sent through Redis, one after another.
const MESSAGE_COUNT: usize = 5;
const READ_BYTES: usize = 16 << 10;

/// What was seen of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisFact {
    /// Where it is.
    pub place: String,
    /// What it is like, or why it cannot be used.
    pub seen: Result<RedisSeen, String>,
}

/// A server that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisSeen {
    /// What it calls itself: `redis 7.0.15, RESP3, standalone, master`.
    pub server: String,
    /// The version of TLS that is spoken with it, if any.
    pub tls: Option<String>,
    /// A message's way to it and back to another connection, the middle one of several, microseconds.
    pub round_trip_us: u64,
}

/// Looks at all that these settings name; nothing without Redis.
#[must_use]
pub fn survey(settings: &Settings) -> Vec<RedisFact> {
    let Some(redis) = &settings.redis else {
        return Vec::new();
    };
    let tls = TlsClient::wanted(settings);
    let fact = |address: &Address| RedisFact {
        place: address.endpoint.to_string(),
        seen: match &tls {
            Ok(tls) => look(address, redis, tls.as_ref()),
            Err(reason) => Err(reason.clone()),
        },
    };
    vec![fact(&redis.address)]
}

fn look(
    address: &Address,
    options: &Options,
    tls: Option<&TlsClient>,
) -> Result<RedisSeen, String> {
    let mut listener = Talk::begin(address, options, tls)?;
    let mut speaker = Talk::begin(address, options, tls)?;
    let channel = format!("{}:probe:check-{}", options.prefix, std::process::id());
    let refused = |error: &str| explain(error, &Grant::at_redis(options));
    match listener.ask(&[b"SUBSCRIBE", channel.as_bytes()])? {
        Reply::Subscribed { .. } => {}
        Reply::Error(error) => return Err(refused(&error)),
        _ => return Err("Redis answers SUBSCRIBE with something else".into()),
    }
    let mut round_trips = Vec::with_capacity(MESSAGE_COUNT);
    for number in 0..MESSAGE_COUNT {
        let text = number.to_string();
        let began = Instant::now();
        if let Reply::Error(error) =
            speaker.ask(&[b"PUBLISH", channel.as_bytes(), text.as_bytes()])?
        {
            return Err(refused(&error));
        }
        match listener.next()? {
            Reply::Message { payload, .. } if payload == text.as_bytes() => {}
            _ => return Err("Redis delivers something else than was published".into()),
        }
        round_trips.push(began.elapsed());
    }
    round_trips.sort_unstable();
    Ok(RedisSeen {
        server: listener.server.clone(),
        tls: listener.tls_version(),
        round_trip_us: round_trips[MESSAGE_COUNT / 2].as_micros() as u64,
    })
}

/// A connection that waits for its answers.
struct Talk {
    stream: Stream,
    place: String,
    decoder: Decoder,
    server: String,
    timeout: Duration,
}

impl Talk {
    /// Connects and greets.
    fn begin(
        address: &Address,
        options: &Options,
        tls: Option<&TlsClient>,
    ) -> Result<Self, String> {
        let timeout = Duration::from_millis(u64::from(options.probe_timeout_ms));
        let place = address.endpoint.to_string();
        let socket = connect(address, timeout)?;
        let mut talk = Self {
            stream: match (address.tls, tls, &address.endpoint) {
                (true, Some(tls), Endpoint::Tcp { host, .. }) => {
                    Stream::Tls(secured(tls, socket, host, &place, timeout)?)
                }
                _ => Stream::Plain(socket),
            },
            place,
            decoder: Decoder::new(Version::Resp3),
            server: String::new(),
            timeout,
        };
        let mut greeting = Greeting::new(address, Grant::at_redis(options));
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

    fn tls_version(&self) -> Option<String> {
        match &self.stream {
            Stream::Plain(_) => None,
            Stream::Tls(stream) => Some(stream.version()),
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
                Err(_) => return Err(explain_junk(self.decoder.waiting())),
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
    place: &str,
    timeout: Duration,
) -> Result<Box<TlsStream>, String> {
    let mut stream = TlsStream::new(tls, socket, host, place)?;
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
                        "{place} does not finish the TLS handshake within {} ms; a port without TLS never does (write redis://)",
                        timeout.as_millis()
                    ));
                }
            }
            Err(error) => return Err(super::broken(&error)),
        }
    }
}
