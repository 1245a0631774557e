//! The sockets to Redis: connects, reads, writes, and decides nothing.
//!
//! They are read and written by the backplane core's loop itself, without waiting, and one epoll instance tells of them
//! and of the core's eventfd: a nap of the loop ends with whatever comes first. (A glommio stream would be served only
//! when the loop rests, up to a millisecond later: a nap holds the executor.)

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::OwnedFd;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::event::{Timespec, epoll};
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use super::ring::WakeHandle;
use crate::backplane::Backplane;
use crate::backplane::remote::{Address, Endpoint, LinkId, LinkOrder, Role};
use crate::time::Tick;

/// Bytes of one read.
const READ_BYTES: usize = 256 << 10;
/// Links that are looked at in a turn.
const EVENT_COUNT_MAX: usize = 64;
/// Reads of one link in a turn.
const TURN_READ_COUNT_MAX: usize = 4;
/// An idle connection is probed by the kernel, too: a silent peer is found even while nothing is due from it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// The eventfd's number among the epoll instance's; the links' are their places.
const WAKE: u64 = u64::MAX;

/// A link's place among all lines.
fn place_of(link: LinkId) -> usize {
    usize::from(link.server) * Role::ALL.len() + link.role as usize
}

/// The link at a place; `None`: it is the eventfd.
fn link_of(place: u64) -> Option<LinkId> {
    let roles = Role::ALL.len() as u64;
    let server = u16::try_from(place / roles).ok()?;
    let role = Role::ALL[usize::try_from(place % roles).ok()?];
    Some(LinkId { server, role })
}

/// Addresses of a name, or why there are none.
type Resolved = (LinkId, u64, Result<Vec<SocketAddr>, String>);

/// A link's socket.
#[derive(Default)]
enum Line {
    #[default]
    Closed,
    /// A thread looks the host's name up. The number tells its answer from an older one's.
    Resolving(u64, String),
    Connecting {
        socket: Socket,
        /// To be tried if this one fails, the next one last.
        others: Vec<SocketAddr>,
        /// What was asked for, in words.
        place: String,
    },
    Open {
        socket: Socket,
        /// The last write found no room.
        is_full: bool,
    },
}

/// The links' sockets.
pub(super) struct RedisSockets {
    epoll: OwnedFd,
    wake: WakeHandle,
    /// By [`place_of`].
    lines: Vec<Line>,
    resolved: Receiver<Resolved>,
    resolver: Sender<Resolved>,
    lookups: u64,
    buffer: Vec<u8>,
    fatal: Option<String>,
}

impl RedisSockets {
    /// No socket yet. `wake` is the core's own: its eventfd is watched, too.
    pub(super) fn new(wake: &WakeHandle) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&epoll, wake.fd(), data, epoll::EventFlags::IN)?;
        let (resolver, resolved) = unbounded();
        Ok(Self {
            epoll,
            wake: wake.clone(),
            lines: Vec::new(),
            resolved,
            resolver,
            lookups: 0,
            buffer: vec![0; READ_BYTES],
            fatal: None,
        })
    }

    /// Readable while the eventfd is, or a socket has something.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Why the node cannot go on, if it cannot.
    pub(super) fn take_fatal(&mut self) -> Option<String> {
        self.fatal.take()
    }

    /// Whether a write would not find the socket full.
    pub(super) fn may_write(&self, link: LinkId) -> bool {
        let line = self.lines.get(place_of(link));
        matches!(line, Some(Line::Open { is_full: false, .. }))
    }

    fn line(&mut self, link: LinkId) -> &mut Line {
        let place = place_of(link);
        if self.lines.len() <= place {
            self.lines.resize_with(place + 1, Line::default);
        }
        &mut self.lines[place]
    }

    /// Reads what has come. Whether anything has.
    pub(super) fn receive(&mut self, backplane: &mut Backplane, now: Tick) -> bool {
        let mut busy = false;
        while let Ok((link, number, addresses)) = self.resolved.try_recv() {
            busy = true;
            if let Line::Resolving(current, place) = self.line(link)
                && *current == number
            {
                let place = std::mem::take(place);
                match addresses {
                    Ok(addresses) => self.connect_any(link, addresses, place, backplane, now),
                    Err(reason) => self.fail(link, reason, backplane, now),
                }
            }
        }
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(WAKE),
        }; EVENT_COUNT_MAX];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let Ok(count) = epoll::wait(&self.epoll, &mut events, Some(&at_once)) else {
            return busy; // interrupted: the next turn looks again
        };
        // Subscriptions first: what they bring must never wait behind what is to be sent.
        let links = events[..count]
            .iter()
            .filter_map(|event| link_of(event.data.u64()));
        let (first, then): (Vec<LinkId>, Vec<LinkId>) =
            links.partition(|link| link.role == Role::Subscription);
        for link in first.into_iter().chain(then) {
            busy = true;
            self.ready(link, backplane, now);
        }
        busy
    }

    fn ready(&mut self, link: LinkId, backplane: &mut Backplane, now: Tick) {
        let line = std::mem::take(self.line(link));
        match line {
            Line::Connecting {
                socket,
                others,
                place,
            } => match socket.take_error() {
                Ok(None) if socket.peer_addr().is_ok() => {
                    self.open(link, socket, backplane, now);
                }
                // Readiness of a socket that is still on its way: it comes again.
                Ok(None) => {
                    *self.line(link) = Line::Connecting {
                        socket,
                        others,
                        place,
                    };
                }
                Ok(Some(error)) | Err(error) => {
                    drop(socket);
                    self.connect_next(link, others, place, &error, backplane, now);
                }
            },
            Line::Open { socket, .. } => {
                *self.line(link) = Line::Open {
                    socket,
                    is_full: false,
                };
                self.read(link, backplane, now);
            }
            other => *self.line(link) = other,
        }
    }

    fn read(&mut self, link: LinkId, backplane: &mut Backplane, now: Tick) {
        for _ in 0..TURN_READ_COUNT_MAX {
            let Some(Line::Open { socket, .. }) = self.lines.get_mut(place_of(link)) else {
                return;
            };
            match socket.read(&mut self.buffer) {
                Ok(0) => {
                    let reason = "Redis has closed the connection".to_owned();
                    return self.fail(link, reason, backplane, now);
                }
                Ok(count) => {
                    backplane.link_received(link, &self.buffer[..count], now);
                    backplane.settle();
                    self.carry_out(backplane, now); // the link may have been given up
                    if count < self.buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let reason = format!("the connection to Redis is broken: {error}");
                    return self.fail(link, reason, backplane, now);
                }
            }
        }
        self.watch(link);
    }

    /// Carries orders out and writes what is due. Whether more than nothing was done.
    pub(super) fn work(&mut self, backplane: &mut Backplane, now: Tick) -> bool {
        let mut busy = self.carry_out(backplane, now);
        for link in backplane.links() {
            busy |= self.write(link, backplane, now);
        }
        busy
    }

    fn write(&mut self, link: LinkId, backplane: &mut Backplane, now: Tick) -> bool {
        let mut wrote = false;
        loop {
            let line = self.lines.get_mut(place_of(link));
            let Some(Line::Open { socket, is_full }) = line else {
                return wrote;
            };
            let output = backplane.link_output(link, now);
            if output.is_empty() || *is_full {
                return wrote;
            }
            match socket.write(output) {
                Ok(count) => {
                    wrote = true;
                    backplane.link_written(link, count, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *is_full = true;
                    self.watch(link);
                    return wrote;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let reason = format!("the connection to Redis is broken: {error}");
                    self.fail(link, reason, backplane, now);
                    return true;
                }
            }
        }
    }

    fn carry_out(&mut self, backplane: &mut Backplane, now: Tick) -> bool {
        let mut any = false;
        while let Some(order) = backplane.poll_link_order() {
            any = true;
            match order {
                LinkOrder::Connect { link, address } => {
                    self.connect(link, &address, backplane, now);
                }
                LinkOrder::Close(link) => *self.line(link) = Line::Closed,
                LinkOrder::Fatal(reason) => self.fatal = self.fatal.take().or(Some(reason)),
            }
        }
        any
    }

    fn connect(&mut self, link: LinkId, address: &Address, backplane: &mut Backplane, now: Tick) {
        match &address.endpoint {
            Endpoint::Unix { path } => match connect_unix(path) {
                Ok(socket) => {
                    self.register(link, &socket);
                    self.open(link, socket, backplane, now);
                }
                Err(error) => {
                    let reason = connect_failure(path, &error);
                    self.fail(link, reason, backplane, now);
                }
            },
            Endpoint::Tcp { host, port } => {
                self.lookups += 1;
                *self.line(link) = Line::Resolving(self.lookups, address.endpoint.to_string());
                self.resolve(link, host.clone(), *port);
            }
        }
    }

    /// Looks the host up on a thread: it may take seconds. An address needs no thread.
    fn resolve(&self, link: LinkId, host: String, port: u16) {
        let (number, resolver, wake) = (self.lookups, self.resolver.clone(), self.wake.clone());
        if let Ok(address) = host.parse() {
            let addresses = Ok(vec![SocketAddr::new(address, port)]);
            let _ = resolver.send((link, number, addresses));
            wake.wake();
            return;
        }
        let failed = self.resolver.clone();
        let thread = std::thread::Builder::new().name("resolve".into());
        let spawned = thread.spawn(move || {
            let addresses = match (host.as_str(), port).to_socket_addrs() {
                Ok(addresses) => Ok(addresses.collect()),
                Err(error) => Err(format!("the name {host} cannot be resolved: {error}")),
            };
            // Nobody listens any more: the process is about to end.
            let _ = resolver.send((link, number, addresses));
            wake.wake();
        });
        if let Err(error) = spawned {
            let reason = format!("no thread for looking up a name: {error}");
            let _ = failed.send((link, number, Err(reason)));
            self.wake.wake();
        }
    }

    fn connect_any(
        &mut self,
        link: LinkId,
        mut addresses: Vec<SocketAddr>,
        place: String,
        backplane: &mut Backplane,
        now: Tick,
    ) {
        addresses.reverse();
        let none = io::Error::other("the name has no address");
        self.connect_next(link, addresses, place, &none, backplane, now);
    }

    /// Tries the next address; `error`: what the last one has said.
    fn connect_next(
        &mut self,
        link: LinkId,
        mut others: Vec<SocketAddr>,
        place: String,
        error: &io::Error,
        backplane: &mut Backplane,
        now: Tick,
    ) {
        let mut last = None;
        while let Some(address) = others.pop() {
            match connect_tcp(address) {
                Ok(socket) => {
                    self.register(link, &socket);
                    *self.line(link) = Line::Connecting {
                        socket,
                        others,
                        place,
                    };
                    return;
                }
                Err(error) => last = Some(error),
            }
        }
        let reason = connect_failure(&place, last.as_ref().unwrap_or(error));
        self.fail(link, reason, backplane, now);
    }

    fn register(&self, link: LinkId, socket: &Socket) {
        let data = epoll::EventData::new_u64(place_of(link) as u64);
        let added = epoll::add(&self.epoll, socket, data, epoll::EventFlags::OUT);
        if let Err(error) = added {
            tracing::error!(%error, "a socket to Redis cannot be watched; it will time out");
        }
    }

    /// Watches for what the socket waits for now.
    fn watch(&self, link: LinkId) {
        let Some(Line::Open { socket, is_full }) = self.lines.get(place_of(link)) else {
            return;
        };
        let flags = match is_full {
            true => epoll::EventFlags::IN | epoll::EventFlags::OUT,
            false => epoll::EventFlags::IN,
        };
        let data = epoll::EventData::new_u64(place_of(link) as u64);
        if let Err(error) = epoll::modify(&self.epoll, socket, data, flags) {
            tracing::error!(%error, "a socket to Redis cannot be watched; it will time out");
        }
    }

    fn open(&mut self, link: LinkId, socket: Socket, backplane: &mut Backplane, now: Tick) {
        *self.line(link) = Line::Open {
            socket,
            is_full: false,
        };
        self.watch(link);
        backplane.link_connected(link, now);
        self.write(link, backplane, now);
    }

    fn fail(&mut self, link: LinkId, reason: String, backplane: &mut Backplane, now: Tick) {
        *self.line(link) = Line::Closed;
        backplane.link_failed(link, reason, now);
        backplane.settle();
        self.carry_out(backplane, now);
    }
}

fn connect_failure(endpoint: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!("{endpoint} refuses the connection: Redis does not run there")
        }
        io::ErrorKind::NotFound => format!("{endpoint}: there is no such socket"),
        io::ErrorKind::PermissionDenied => {
            format!("{endpoint}: this user may not connect to the socket")
        }
        _ => format!("{endpoint} cannot be connected to: {error}"),
    }
}

fn connect_unix(path: &str) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// Begins to connect; the socket is writable once it is connected, or has failed.
fn connect_tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)?;
    match socket.connect(&address.into()) {
        Ok(()) => Ok(socket),
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
        {
            Ok(socket)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::backplane::{Options, remote};

    fn world(url: &str) -> (Backplane, RedisSockets) {
        let address = remote::Address::parse(url).unwrap();
        let redis = remote::Options::new(address);
        let backplane = Backplane::with_redis(Options::new(1, 10), redis, 7, Tick(0));
        let wake = WakeHandle::new().unwrap();
        (backplane, RedisSockets::new(&wake).unwrap())
    }

    /// Turns until `done`.
    fn turn_until(
        backplane: &mut Backplane,
        sockets: &mut RedisSockets,
        done: impl Fn(&mut Backplane) -> bool,
    ) {
        for turn in 0..20_000 {
            let now = Tick(turn * 100);
            backplane.handle_deadline(now);
            while backplane.poll_action().is_some() {}
            sockets.receive(backplane, now);
            sockets.work(backplane, now);
            if done(backplane) {
                return;
            }
            std::thread::yield_now();
        }
        panic!(
            "it never came to that: {:?}",
            backplane.link_troubles(Tick(0))
        );
    }

    #[test]
    fn both_links_are_connected_and_greet_by_name_lookup_too() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mut backplane, mut sockets) = world(&format!("redis://localhost:{port}"));
        turn_until(&mut backplane, &mut sockets, |backplane| {
            let troubles = backplane.link_troubles(Tick(0));
            troubles.iter().all(|trouble| trouble.state == "greeting")
        });
        for _ in 0..2 {
            let (mut peer, _) = listener.accept().unwrap();
            let mut hello = [0; 12];
            peer.read_exact(&mut hello).unwrap();
            assert!(hello.starts_with(b"*4\r\n$5\r\nHELL"), "{hello:?}");
        }
    }

    #[test]
    fn a_port_where_nobody_listens_is_told_in_words() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        for url in [
            format!("redis://127.0.0.1:{port}"),
            "unix:///nowhere/redis.sock".into(),
        ] {
            let (mut backplane, mut sockets) = world(&url);
            turn_until(&mut backplane, &mut sockets, |backplane| {
                let troubles = backplane.link_troubles(Tick(0));
                troubles.iter().all(|trouble| {
                    trouble.reason.contains("Redis does not run there")
                        || trouble.reason.contains("no such socket")
                })
            });
        }
    }
}
