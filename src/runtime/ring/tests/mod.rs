//! The ring against real sockets on loopback, in both homes of descriptors.

mod life;
mod limits;
mod sending;
mod sleeping;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::*;
use crate::protocol::{Encoded, Piece};

/// Longest wait for anything; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs each test with direct and with plain descriptors.
macro_rules! in_both_homes {
    ($($name:ident)*) => {
        mod direct {
            $(#[test] fn $name() { super::$name(super::Descriptors::Direct); })*
        }
        mod plain {
            $(#[test] fn $name() { super::$name(super::Descriptors::Plain); })*
        }
    };
}
pub(super) use in_both_homes;

/// An [`Event`] that owns its bytes and compares.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Accepted(u32, SocketAddr),
    AcceptFailed(Option<i32>),
    ListenerStopped(u32),
    Connected(u32),
    ConnectFailed(u32, Option<i32>),
    Received(u32, Vec<u8>),
    ReceiveEnded(u32, Option<i32>),
    Sent(u32, u32, bool),
    SendFailed(u32, Option<i32>),
    Closed(u32),
    Alarm,
}

impl Seen {
    /// The socket that it is about.
    fn token(&self) -> Option<u32> {
        match *self {
            Self::Accepted(token, _)
            | Self::Connected(token)
            | Self::ConnectFailed(token, _)
            | Self::Received(token, _)
            | Self::ReceiveEnded(token, _)
            | Self::Sent(token, _, _)
            | Self::SendFailed(token, _)
            | Self::Closed(token) => Some(token),
            Self::AcceptFailed(_) | Self::ListenerStopped(_) | Self::Alarm => None,
        }
    }
}

impl From<Event<'_>> for Seen {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Accepted { token, peer, .. } => Self::Accepted(token, peer),
            Event::AcceptFailed { error, .. } => Self::AcceptFailed(error.raw_os_error()),
            Event::ListenerStopped { listener } => Self::ListenerStopped(listener),
            Event::Connected { token } => Self::Connected(token),
            Event::ConnectFailed { token, error } => {
                Self::ConnectFailed(token, error.raw_os_error())
            }
            Event::Received { token, bytes } => Self::Received(token, bytes.to_vec()),
            Event::ReceiveEnded { token, error } => {
                Self::ReceiveEnded(token, error.map(|error| error.raw_os_error().unwrap()))
            }
            Event::Sent { token, bytes, done } => Self::Sent(token, bytes, done),
            Event::SendFailed { token, error } => Self::SendFailed(token, error.raw_os_error()),
            Event::Closed { token } => Self::Closed(token),
            Event::Alarm => Self::Alarm,
        }
    }
}

fn options(descriptors: Descriptors) -> Options {
    Options {
        descriptors,
        socket_count_max: 4096,
        submission_entries: 256,
        completion_entries: 4096,
        receive_buffer_bytes: 4096,
        receive_buffer_count: 64,
    }
}

/// A ring with a listener, and the events that nobody has asked for yet.
struct World {
    ring: Ring,
    address: SocketAddr,
    seen: Vec<Seen>,
}

impl World {
    fn new(options: &Options) -> Self {
        Self::on(options, "127.0.0.1:0")
    }

    fn on(options: &Options, address: &str) -> Self {
        let mut ring = Ring::new(options).unwrap();
        assert_eq!(
            ring.direct().is_ok(),
            options.descriptors == Descriptors::Direct
        );
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(ring.listen(listener.into()), 0);
        ring.submit().unwrap();
        Self {
            ring,
            address,
            seen: Vec::new(),
        }
    }

    /// Takes the events that are here.
    fn drain(&mut self) {
        while let Some(event) = self.ring.next_event() {
            self.seen.push(event.into());
        }
    }

    /// One turn without waiting.
    fn turn(&mut self) {
        self.ring.submit().unwrap();
        self.drain();
    }

    /// Turns until `wanted` finds what it wants among the events so far, and takes it out.
    fn wait<T>(&mut self, what: &str, mut wanted: impl FnMut(&Seen) -> Option<T>) -> T {
        self.ring.set_alarm(PATIENCE);
        loop {
            let found = self
                .seen
                .iter()
                .enumerate()
                .find_map(|(at, seen)| Some((at, wanted(seen)?)));
            if let Some((at, found)) = found {
                self.seen.remove(at);
                return found;
            }
            assert!(
                !self.seen.contains(&Seen::Alarm),
                "waited in vain for {what}; seen: {:?}",
                self.seen
            );
            self.ring.submit_and_wait().unwrap();
            self.drain();
        }
    }

    fn wait_for(&mut self, event: &Seen) {
        self.wait(&format!("{event:?}"), |seen| (seen == event).then_some(()));
    }

    /// A client, and the token of its other end, which receives.
    fn client(&mut self) -> (TcpStream, u32) {
        let (client, token) = self.client_not_received();
        self.ring.receive(token);
        (client, token)
    }

    fn client_not_received(&mut self) -> (TcpStream, u32) {
        let client = connect(self.address);
        let address = client.local_addr().unwrap();
        let token = self.accepted(address);
        (client, token)
    }

    fn accepted(&mut self, address: SocketAddr) -> u32 {
        self.wait("an accept", |seen| match seen {
            Seen::Accepted(token, peer) if *peer == address => Some(*token),
            _ => None,
        })
    }

    /// Waits until `count` bytes have come from `token`.
    fn received(&mut self, token: u32, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            let more = self.wait("bytes", |seen| match seen {
                Seen::Received(from, bytes) if *from == token => Some(bytes.clone()),
                _ => None,
            });
            bytes.extend(more);
        }
        bytes
    }

    /// Waits for the end of a send and returns the bytes of all its parts.
    fn sent(&mut self, token: u32) -> u32 {
        let mut sum = 0;
        loop {
            let (bytes, done) = self.wait("a send", |seen| match seen {
                Seen::Sent(of, bytes, done) if *of == token => Some((*bytes, *done)),
                _ => None,
            });
            sum += bytes;
            if done {
                return sum;
            }
        }
    }

    /// Closes, and checks that nothing comes of the token from now on; what came before is forgotten.
    fn close(&mut self, token: u32) {
        self.seen.retain(|seen| seen.token() != Some(token));
        self.ring.close(token);
        self.wait_for(&Seen::Closed(token));
        assert!(
            !self.names(token),
            "nothing but `Closed` follows a close: {:?}",
            self.seen
        );
    }

    /// Whether an event that nobody asked for is about `token`.
    fn names(&self, token: u32) -> bool {
        self.seen.iter().any(|seen| seen.token() == Some(token))
    }

    /// Nothing is left of any socket or send.
    fn assert_empty(&self) {
        assert_eq!(self.ring.socket_count(), 0);
        assert_eq!(self.ring.sends.in_flight_count(), 0);
        assert_eq!(self.ring.buffers.free_count(), self.ring.buffers.ring().1);
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client
}

fn encoded(bytes: &[u8]) -> Encoded {
    Encoded::new(bytes.to_vec())
}

fn piece(bytes: &[u8]) -> Piece {
    Piece::whole(encoded(bytes))
}

fn read_exactly(client: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

/// Reads to the end of the stream: what came, and whether it ended well.
fn read_to_end(client: &mut TcpStream) -> (Vec<u8>, io::Result<()>) {
    let mut bytes = Vec::new();
    let result = client.read_to_end(&mut bytes).map(drop);
    (bytes, result)
}

fn write(client: &mut TcpStream, bytes: &[u8]) {
    client.write_all(bytes).unwrap();
}
