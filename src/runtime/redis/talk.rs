//! A connection to Redis that waits for its answers, for `throng check`.

use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Socket;

use super::stream::{Stream, connect_failure};
use super::tls::{TlsClient, TlsStream};
use crate::backplane::remote::{
    Address, Endpoint, Grant, Greeting, Options, Step, explain_junk, explain_silence,
};
use crate::backplane::resp::{Decoder, Reply, Version, encode_command};

const READ_BYTES: usize = 16 << 10;

/// A connection that waits for its answers.
pub struct Talk {
    stream: Stream,
    address: Address,
    place: String,
    decoder: Decoder,
    server: String,
    is_resp3: bool,
    timeout: Duration,
}

impl Talk {
    /// Connects and greets.
    ///
    /// # Errors
    /// Why it cannot be used, and what mends it.
    pub fn begin(
        address: &Address,
        options: &Options,
        tls: Option<&TlsClient>,
        grant: Grant,
    ) -> Result<Self, String> {
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
            is_resp3: false,
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
                    talk.is_resp3 = greeting.server().is_resp3;
                    return Ok(talk);
                }
            }
        }
    }

    /// What answers, in its own words.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Whether RESP3 is spoken: a connection that is subscribed may ask other things, too.
    pub const fn is_resp3(&self) -> bool {
        self.is_resp3
    }

    /// The version of TLS that is spoken, if any.
    pub fn tls(&self) -> Option<String> {
        match &self.stream {
            Stream::Plain(_) => None,
            Stream::Tls(stream) => Some(stream.version()),
        }
    }

    /// A command's answer; messages that come meanwhile are passed over.
    ///
    /// # Errors
    /// There is none, and why.
    pub fn ask(&mut self, words: &[&[u8]]) -> Result<Reply, String> {
        let mut out = BytesMut::new();
        encode_command(&mut out, words);
        self.send(&out)?;
        loop {
            match self.next()? {
                Reply::Message { .. } => {}
                reply => return Ok(reply),
            }
        }
    }

    /// The next message on `of`; other channels' are passed over.
    ///
    /// # Errors
    /// Something else came, or nothing.
    pub fn message(&mut self, of: &str) -> Result<Bytes, String> {
        loop {
            match self.next()? {
                Reply::Message { channel, payload } if channel == of.as_bytes() => {
                    return Ok(payload);
                }
                Reply::Message { .. } => {}
                _ => return Err("Redis delivers something else than was published".into()),
            }
        }
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
