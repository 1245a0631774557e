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
use crate::backplane::remote::{Endpoint, LinkOrder, Role};
use crate::time::Tick;

/// Bytes of one read.
const READ_BYTES: usize = 256 << 10;
/// Reads of one link in a turn.
const TURN_READ_COUNT_MAX: usize = 4;
/// An idle connection is probed by the kernel, too: a silent peer is found even while nothing is due from it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// The eventfd's number among the epoll instance's; the links' are their roles'.
const WAKE: u64 = u64::MAX;

/// Addresses of a name, or why there are none.
type Resolved = (Role, u64, Result<Vec<SocketAddr>, String>);

/// A link's socket.
enum Line {
    Closed,
    /// A thread looks the host's name up. The number tells its answer from an older one's.
    Resolving(u64),
    Connecting {
        socket: Socket,
        /// To be tried if this one fails, the next one last.
        others: Vec<SocketAddr>,
    },
    Open {
        socket: Socket,
        /// The last write found no room.
        is_full: bool,
    },
}

/// Both links' sockets.
pub(super) struct RedisSockets {
    epoll: OwnedFd,
    wake: WakeHandle,
    lines: [Line; 2],
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
            lines: [Line::Closed, Line::Closed],
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
    pub(super) fn may_write(&self, role: Role) -> bool {
        matches!(self.lines[role as usize], Line::Open { is_full: false, .. })
    }

    /// Reads what has come. Whether anything has.
    pub(super) fn receive(&mut self, backplane: &mut Backplane, now: Tick) -> bool {
        let mut busy = false;
        while let Ok((role, number, addresses)) = self.resolved.try_recv() {
            busy = true;
            if matches!(self.lines[role as usize], Line::Resolving(current) if current == number) {
                match addresses {
                    Ok(addresses) => self.connect_any(role, addresses, backplane, now),
                    Err(reason) => self.fail(role, reason, backplane, now),
                }
            }
        }
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(WAKE),
        }; 3];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let Ok(count) = epoll::wait(&self.epoll, &mut events, Some(&at_once)) else {
            return busy; // interrupted: the next turn looks again
        };
        // Subscriptions first: what they bring must never wait behind what is to be sent.
        for role in [Role::Subscription, Role::Publishing] {
            let happened = events[..count]
                .iter()
                .any(|event| event.data.u64() == role as u64);
            if happened {
                busy = true;
                self.ready(role, backplane, now);
            }
        }
        busy
    }

    fn ready(&mut self, role: Role, backplane: &mut Backplane, now: Tick) {
        let line = std::mem::replace(&mut self.lines[role as usize], Line::Closed);
        match line {
            Line::Connecting { socket, others } => match socket.take_error() {
                Ok(None) if socket.peer_addr().is_ok() => {
                    self.open(role, socket, backplane, now);
                }
                // Readiness of a socket that is still on its way: it comes again.
                Ok(None) => self.lines[role as usize] = Line::Connecting { socket, others },
                Ok(Some(error)) | Err(error) => {
                    drop(socket);
                    self.connect_next(role, others, &error, backplane, now);
                }
            },
            Line::Open { socket, .. } => {
                self.lines[role as usize] = Line::Open {
                    socket,
                    is_full: false,
                };
                self.read(role, backplane, now);
            }
            other => self.lines[role as usize] = other,
        }
    }

    fn read(&mut self, role: Role, backplane: &mut Backplane, now: Tick) {
        for _ in 0..TURN_READ_COUNT_MAX {
            let Line::Open { socket, .. } = &mut self.lines[role as usize] else {
                return;
            };
            match socket.read(&mut self.buffer) {
                Ok(0) => {
                    let reason = "Redis has closed the connection".to_owned();
                    return self.fail(role, reason, backplane, now);
                }
                Ok(count) => {
                    if let Some(remote) = backplane.remote() {
                        remote.received(role, &self.buffer[..count], now);
                    }
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
                    return self.fail(role, reason, backplane, now);
                }
            }
        }
        self.watch(role);
    }

    /// Carries orders out and writes what is due. Whether more than nothing was done.
    pub(super) fn work(&mut self, backplane: &mut Backplane, now: Tick) -> bool {
        let mut busy = self.carry_out(backplane, now);
        for role in Role::ALL {
            busy |= self.write(role, backplane, now);
        }
        busy
    }

    fn write(&mut self, role: Role, backplane: &mut Backplane, now: Tick) -> bool {
        let mut wrote = false;
        loop {
            let Line::Open { socket, is_full } = &mut self.lines[role as usize] else {
                return wrote;
            };
            let Some(remote) = backplane.remote() else {
                return wrote;
            };
            let output = remote.output(role, now);
            if output.is_empty() || *is_full {
                return wrote;
            }
            match socket.write(output) {
                Ok(count) => {
                    wrote = true;
                    remote.written(role, count, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *is_full = true;
                    self.watch(role);
                    return wrote;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let reason = format!("the connection to Redis is broken: {error}");
                    self.fail(role, reason, backplane, now);
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
                LinkOrder::Connect(role) => self.connect(role, backplane, now),
                LinkOrder::Close(role) => self.lines[role as usize] = Line::Closed,
                LinkOrder::Fatal(reason) => self.fatal = self.fatal.take().or(Some(reason)),
            }
        }
        any
    }

    fn connect(&mut self, role: Role, backplane: &mut Backplane, now: Tick) {
        let Some(remote) = backplane.remote() else {
            return;
        };
        match remote.address().endpoint.clone() {
            Endpoint::Unix { path } => match connect_unix(&path) {
                Ok(socket) => {
                    self.register(role, &socket);
                    self.open(role, socket, backplane, now);
                }
                Err(error) => {
                    let reason = connect_failure(&path, &error);
                    self.fail(role, reason, backplane, now);
                }
            },
            Endpoint::Tcp { host, port } => {
                self.lookups += 1;
                self.lines[role as usize] = Line::Resolving(self.lookups);
                self.resolve(role, host, port);
            }
        }
    }

    /// Looks the host up on a thread: it may take seconds. An address needs no thread.
    fn resolve(&self, role: Role, host: String, port: u16) {
        let (number, resolver, wake) = (self.lookups, self.resolver.clone(), self.wake.clone());
        if let Ok(address) = host.parse() {
            let addresses = Ok(vec![SocketAddr::new(address, port)]);
            let _ = resolver.send((role, number, addresses));
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
            let _ = resolver.send((role, number, addresses));
            wake.wake();
        });
        if let Err(error) = spawned {
            let reason = format!("no thread for looking up a name: {error}");
            let _ = failed.send((role, number, Err(reason)));
            self.wake.wake();
        }
    }

    fn connect_any(
        &mut self,
        role: Role,
        mut addresses: Vec<SocketAddr>,
        backplane: &mut Backplane,
        now: Tick,
    ) {
        addresses.reverse();
        let none = io::Error::other("the name has no address");
        self.connect_next(role, addresses, &none, backplane, now);
    }

    /// Tries the next address; `error`: what the last one has said.
    fn connect_next(
        &mut self,
        role: Role,
        mut others: Vec<SocketAddr>,
        error: &io::Error,
        backplane: &mut Backplane,
        now: Tick,
    ) {
        let mut last = None;
        while let Some(address) = others.pop() {
            match connect_tcp(address) {
                Ok(socket) => {
                    self.register(role, &socket);
                    self.lines[role as usize] = Line::Connecting { socket, others };
                    return;
                }
                Err(error) => last = Some(error),
            }
        }
        let endpoint = backplane
            .remote()
            .map_or_else(String::new, |remote| remote.address().endpoint.to_string());
        let reason = connect_failure(&endpoint, last.as_ref().unwrap_or(error));
        self.fail(role, reason, backplane, now);
    }

    fn register(&self, role: Role, socket: &Socket) {
        let data = epoll::EventData::new_u64(role as u64);
        let added = epoll::add(&self.epoll, socket, data, epoll::EventFlags::OUT);
        if let Err(error) = added {
            tracing::error!(%error, "a socket to Redis cannot be watched; it will time out");
        }
    }

    /// Watches for what the socket waits for now.
    fn watch(&self, role: Role) {
        let Line::Open { socket, is_full } = &self.lines[role as usize] else {
            return;
        };
        let flags = match is_full {
            true => epoll::EventFlags::IN | epoll::EventFlags::OUT,
            false => epoll::EventFlags::IN,
        };
        let data = epoll::EventData::new_u64(role as u64);
        if let Err(error) = epoll::modify(&self.epoll, socket, data, flags) {
            tracing::error!(%error, "a socket to Redis cannot be watched; it will time out");
        }
    }

    fn open(&mut self, role: Role, socket: Socket, backplane: &mut Backplane, now: Tick) {
        self.lines[role as usize] = Line::Open {
            socket,
            is_full: false,
        };
        self.watch(role);
        if let Some(remote) = backplane.remote() {
            remote.connected(role, now);
        }
        self.write(role, backplane, now);
    }

    fn fail(&mut self, role: Role, reason: String, backplane: &mut Backplane, now: Tick) {
        self.lines[role as usize] = Line::Closed;
        if let Some(remote) = backplane.remote() {
            remote.failed(role, reason, now);
        }
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
