//! The sockets to Redis: connects, reads, writes, and decides nothing.
//!
//! They are read and written by the backplane core's loop itself, without waiting, and one epoll instance tells of them
//! and of the core's eventfd: a nap of the loop ends with whatever comes first. (A glommio stream would be served only
//! when the loop rests, up to a millisecond later: a nap holds the executor.)

mod stream;
mod survey;
mod talk;
mod tls;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::OwnedFd;

use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::event::{Timespec, epoll};
use socket2::Socket;

use self::stream::{Stream, connect_failure, connect_tcp, connect_unix};
pub use self::survey::{RedisFact, RedisSeen, RedisService, survey};
pub(crate) use self::tls::TlsClient;
use self::tls::TlsStream;
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

/// What was asked for.
#[derive(Default)]
struct Target {
    /// A name or an address.
    host: String,
    /// In words.
    place: String,
    tls: bool,
    /// The scheme of its URL without TLS.
    plain: &'static str,
}

/// A link's socket.
#[derive(Default)]
enum Line {
    #[default]
    Closed,
    /// A thread looks the host's name up. The number tells its answer from an older one's.
    Resolving(u64, Target),
    Connecting {
        socket: Socket,
        /// To be tried if this one fails, the next one last.
        others: Vec<SocketAddr>,
        target: Target,
    },
    /// Connected, and the TLS handshake goes on.
    Shaking(Box<TlsStream>),
    Open {
        stream: Stream,
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
    /// By [`place_of`], the address that was tried last and has not said anything: the next attempt begins behind it.
    tried: Vec<Option<SocketAddr>>,
    resolved: Receiver<Resolved>,
    resolver: Sender<Resolved>,
    lookups: u64,
    buffer: Vec<u8>,
    /// Links whose TLS sessions hold what the next turn reads: their sockets tell of it no more.
    unread: Vec<LinkId>,
    tls: Option<TlsClient>,
    fatal: Option<String>,
}

impl RedisSockets {
    /// No socket yet. `wake` is the core's own: its eventfd is watched, too. `tls`: for addresses that want it.
    pub(super) fn new(wake: &WakeHandle, tls: Option<TlsClient>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&epoll, wake.fd(), data, epoll::EventFlags::IN)?;
        let (resolver, resolved) = unbounded();
        Ok(Self {
            epoll,
            wake: wake.clone(),
            lines: Vec::new(),
            tried: Vec::new(),
            resolved,
            resolver,
            lookups: 0,
            buffer: vec![0; READ_BYTES],
            unread: Vec::new(),
            tls,
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
            self.tried.resize(place + 1, None);
        }
        &mut self.lines[place]
    }

    /// Reads what has come. Whether anything has.
    pub(super) fn receive(&mut self, backplane: &mut Backplane, now: Tick) -> bool {
        let mut busy = false;
        while let Ok((link, number, addresses)) = self.resolved.try_recv() {
            busy = true;
            if let Line::Resolving(current, target) = self.line(link)
                && *current == number
            {
                let target = std::mem::take(target);
                match addresses {
                    Ok(addresses) => self.connect_any(link, addresses, target, backplane, now),
                    Err(reason) => self.fail(link, reason, backplane, now),
                }
            }
        }
        for link in std::mem::take(&mut self.unread) {
            busy = true;
            self.read(link, backplane, now);
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
                target,
            } => match socket.take_error() {
                Ok(None) if socket.peer_addr().is_ok() => {
                    self.connected(link, socket, &target, backplane, now);
                }
                // Readiness of a socket that is still on its way: it comes again.
                Ok(None) => {
                    *self.line(link) = Line::Connecting {
                        socket,
                        others,
                        target,
                    };
                }
                Ok(Some(error)) | Err(error) => {
                    drop(socket);
                    self.connect_next(link, others, target, &error, backplane, now);
                }
            },
            Line::Shaking(stream) => self.shake(link, stream, backplane, now),
            Line::Open { stream, .. } => {
                *self.line(link) = Line::Open {
                    stream,
                    is_full: false,
                };
                self.read(link, backplane, now);
            }
            other => *self.line(link) = other,
        }
    }

    fn read(&mut self, link: LinkId, backplane: &mut Backplane, now: Tick) {
        for _ in 0..TURN_READ_COUNT_MAX {
            let Some(Line::Open { stream, .. }) = self.lines.get_mut(place_of(link)) else {
                return;
            };
            match stream.read(&mut self.buffer) {
                Ok(0) => {
                    let reason = "Redis has closed the connection".to_owned();
                    return self.fail(link, reason, backplane, now);
                }
                Ok(count) => {
                    self.tried[place_of(link)] = None;
                    backplane.link_received(link, &self.buffer[..count], now);
                    backplane.settle();
                    self.carry_out(backplane, now); // the link may have been given up
                    if count < self.buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.fail(link, broken(&error), backplane, now),
            }
        }
        if let Some(Line::Open { stream, .. }) = self.lines.get_mut(place_of(link))
            && stream.holds_unread()
        {
            self.unread.push(link);
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
            let Some(Line::Open { stream, is_full }) = line else {
                return wrote;
            };
            if *is_full {
                return wrote;
            }
            let output = backplane.link_output(link, now);
            let written = match stream.flush() {
                Ok(()) if output.is_empty() => return wrote,
                Ok(()) => stream.write(output),
                Err(error) => Err(error),
            };
            match written {
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
                    // It may have said why before it hung up.
                    self.read(link, backplane, now);
                    if matches!(self.line(link), Line::Open { .. }) {
                        self.fail(link, broken(&error), backplane, now);
                    }
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
                    self.open(link, Stream::Plain(socket), backplane, now);
                }
                Err(error) => {
                    let reason = connect_failure(path, &error);
                    self.fail(link, reason, backplane, now);
                }
            },
            Endpoint::Master { .. } => {
                let reason = format!("nobody has said where {} is", address.endpoint);
                self.fail(link, reason, backplane, now);
            }
            Endpoint::Tcp { host, port } => {
                self.lookups += 1;
                let target = Target {
                    host: host.clone(),
                    place: address.endpoint.to_string(),
                    tls: address.tls,
                    plain: address.scheme(false),
                };
                *self.line(link) = Line::Resolving(self.lookups, target);
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
        target: Target,
        backplane: &mut Backplane,
        now: Tick,
    ) {
        let tried = self.tried.get(place_of(link)).copied().flatten();
        if let Some(place) = addresses.iter().position(|other| Some(*other) == tried) {
            addresses.rotate_left(place + 1);
        }
        addresses.reverse();
        let none = io::Error::other("the name has no address");
        self.connect_next(link, addresses, target, &none, backplane, now);
    }

    /// Tries the next address; `error`: what the last one has said.
    fn connect_next(
        &mut self,
        link: LinkId,
        mut others: Vec<SocketAddr>,
        target: Target,
        error: &io::Error,
        backplane: &mut Backplane,
        now: Tick,
    ) {
        let mut last = None;
        while let Some(address) = others.pop() {
            self.line(link); // there is a place for it
            self.tried[place_of(link)] = Some(address);
            match connect_tcp(address) {
                Ok(socket) => {
                    self.register(link, &socket);
                    *self.line(link) = Line::Connecting {
                        socket,
                        others,
                        target,
                    };
                    return;
                }
                Err(error) => last = Some(error),
            }
        }
        let reason = connect_failure(&target.place, last.as_ref().unwrap_or(error));
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
        let (socket, is_full) = match self.lines.get(place_of(link)) {
            Some(Line::Open { stream, is_full }) => (stream.socket(), *is_full),
            Some(Line::Shaking(stream)) => (stream.socket(), stream.wants_write()),
            _ => return,
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

    /// The socket is connected: by TLS it is not open before the handshake is done.
    fn connected(
        &mut self,
        link: LinkId,
        socket: Socket,
        target: &Target,
        backplane: &mut Backplane,
        now: Tick,
    ) {
        if !target.tls {
            return self.open(link, Stream::Plain(socket), backplane, now);
        }
        let Some(tls) = &self.tls else {
            let reason = format!("{} wants TLS, and none is set up", target.place);
            return self.fail(link, reason, backplane, now);
        };
        match TlsStream::new(tls, socket, &target.host, &target.place, target.plain) {
            Ok(stream) => self.shake(link, Box::new(stream), backplane, now),
            Err(reason) => self.fail(link, reason, backplane, now),
        }
    }

    fn shake(
        &mut self,
        link: LinkId,
        mut stream: Box<TlsStream>,
        backplane: &mut Backplane,
        now: Tick,
    ) {
        match stream.shake() {
            Ok(true) => {
                let version = stream.version();
                tracing::debug!(link = link.role.label(), version, "TLS to Redis");
                self.open(link, Stream::Tls(stream), backplane, now);
                self.read(link, backplane, now); // the session may hold what came with the handshake
            }
            Ok(false) => {
                *self.line(link) = Line::Shaking(stream);
                self.watch(link);
            }
            Err(error) => self.fail(link, error.to_string(), backplane, now),
        }
    }

    fn open(&mut self, link: LinkId, stream: Stream, backplane: &mut Backplane, now: Tick) {
        *self.line(link) = Line::Open {
            stream,
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

/// Why a connection that was open is not any more.
fn broken(error: &io::Error) -> String {
    match error.get_ref() {
        Some(words) => words.to_string(), // a TLS session's own
        None => format!("the connection to Redis is broken: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;

    use super::*;
    use crate::backplane::{Options, remote};

    fn world(url: &str) -> (Backplane, RedisSockets) {
        let address = remote::Address::parse(url).unwrap();
        let redis = remote::Options::new(address);
        let backplane = Backplane::with_redis(Options::new(1, 10), redis, 7, Tick(0));
        let wake = WakeHandle::new().unwrap();
        (backplane, RedisSockets::new(&wake, None).unwrap())
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
    fn an_address_that_says_nothing_is_tried_last_the_next_time() {
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = listeners.each_ref().map(|listener| {
            listener.set_nonblocking(true).unwrap();
            listener.local_addr().unwrap()
        });
        let (mut backplane, mut sockets) = world("redis://127.0.0.1:1");
        let link = LinkId {
            server: 0,
            role: Role::Publishing,
        };
        let mut attempt = |sockets: &mut RedisSockets| {
            let target = Target::default();
            sockets.connect_any(link, addresses.to_vec(), target, &mut backplane, Tick(0));
            *sockets.line(link) = Line::Closed; // the link's time is over
            let met = |listener: &TcpListener| listener.accept().is_ok();
            loop {
                if let Some(place) = listeners.iter().position(met) {
                    return place;
                }
                std::thread::yield_now();
            }
        };
        let met: Vec<usize> = (0..5).map(|_| attempt(&mut sockets)).collect();
        assert_eq!(met, [0, 1, 2, 0, 1]);
        sockets.tried[place_of(link)] = None; // it has spoken
        assert_eq!(attempt(&mut sockets), 0);
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
