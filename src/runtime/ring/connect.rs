//! Connecting: for the load generator and for tests, as fast as a server accepts.
//!
//! A direct descriptor cannot be bound or given options on every kernel we run on, so a socket begins as a plain one and
//! moves into the ring's table; the plain descriptor lives until the next `enter`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use io_uring::opcode;
use socket2::{Domain, Protocol, SockAddr, Type};

use super::address::Address;
use super::kernel::Completion;
use super::pool::{Entry, Pool};
use super::socket::{NO_OPERATION, Phase, Socket};
use super::{Event, Kind, Ring};

/// Plain descriptors that wait to be closed at most.
const MOVING_COUNT_MAX: usize = 64;
/// `IORING_FILE_INDEX_ALLOC` as an offset: the kernel chooses the slots (`linux/io_uring.h`).
const INDEX_ALLOC: i32 = -1;

/// A connect in flight; boxed, because the kernel keeps the addresses.
#[derive(Debug)]
struct Target {
    /// The plain descriptor before the move, the slot after it.
    descriptor: i32,
    address: Address,
}

#[derive(Debug)]
enum Connect {
    Free { next: u32 },
    InFlight(Box<Target>),
}

impl Entry for Connect {
    fn free(next: u32) -> Self {
        Self::Free { next }
    }

    fn next_free(&self) -> Option<u32> {
        if let Self::Free { next } = self {
            Some(*next)
        } else {
            None
        }
    }
}

/// All connects in flight.
#[derive(Debug)]
pub(super) struct Connects {
    pool: Pool<Connect>,
    /// Plain descriptors of sockets that move into the table.
    moving: Vec<OwnedFd>,
}

impl Connects {
    pub(super) const fn new() -> Self {
        Self {
            pool: Pool::new(),
            moving: Vec::new(),
        }
    }

    fn target(&mut self, index: u32) -> *mut Target {
        match &mut self.pool[index] {
            Connect::InFlight(target) => &raw mut **target,
            Connect::Free { .. } => unreachable!("a connect in flight has an entry"),
        }
    }
}

/// A blocking socket (the ring waits, nobody blocks) with `TCP_NODELAY`, bound to `source`.
fn open(target: SocketAddr, source: Option<SocketAddr>) -> io::Result<socket2::Socket> {
    let kind = Type::STREAM.cloexec();
    let socket = socket2::Socket::new(Domain::for_address(target), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        let on: libc::c_int = 1;
        // SAFETY: the option's value is one `int`, alive during the call.
        // JUSTIFICATION: without it a source port is taken at bind, and is not shared between targets; neither
        // socket2 nor rustix has the option.
        #[allow(clippy::cast_possible_truncation)] // 4
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_BIND_ADDRESS_NO_PORT,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
        socket.bind(&SockAddr::from(source))?;
    }
    Ok(socket)
}

impl Ring {
    /// Opens a socket and connects it, from `source` (port 0: any; `IP_BIND_ADDRESS_NO_PORT`) if given.
    ///
    /// [`super::Event::Connected`] or [`super::Event::ConnectFailed`] follows.
    ///
    /// # Errors
    /// `ENFILE` when the ring has as many sockets, those that its accepts may bring included, as it may; what `socket` and `bind` refuse.
    pub fn connect(&mut self, target: SocketAddr, source: Option<SocketAddr>) -> io::Result<u32> {
        // Accepts in flight have a place each.
        if self.sockets.used_count() + self.accepts_in_flight_count >= self.socket_count_max {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        if self.connects.moving.len() >= MOVING_COUNT_MAX {
            self.submit()?;
        }
        let plain = OwnedFd::from(open(target, source)?);
        let operation = Target {
            descriptor: plain.as_raw_fd(),
            address: Address::from(target),
        };
        let index = self
            .connects
            .pool
            .insert(Connect::InFlight(Box::new(operation)));
        let direct = self.direct.is_ok();
        let descriptor = plain.as_raw_fd().cast_unsigned();
        let phase = if direct {
            Phase::Installing
        } else {
            Phase::Connecting
        };
        let token = self
            .sockets
            .insert_with(|remains| Socket::new(descriptor, phase, remains));
        self.sockets[token].set_operation(index);
        if !direct {
            // The table closes it.
            let _ = plain.into_raw_fd();
            self.push_connect(token);
            return Ok(token);
        }
        let operation = self.connects.target(index);
        // SAFETY: `operation` points into the boxed entry of the pool.
        // JUSTIFICATION: the kernel keeps this address until the completion.
        let descriptors = unsafe { &raw const (*operation).descriptor };
        let install = opcode::FilesUpdate::new(descriptors, 1)
            .offset(INDEX_ALLOC)
            .build()
            .user_data(Kind::Install.user_data(0, token));
        // SAFETY: the array of one descriptor lies in a box that the pool owns until the connect has completed; the
        // kernel writes the slot's number into it, and we read it after the completion only.
        // JUSTIFICATION: the move into the table is the ring's to do.
        unsafe { self.kernel.push(&install) };
        self.connects.moving.push(plain);
        Ok(token)
    }

    /// Closes the plain descriptors of sockets whose move the kernel has been given.
    pub(super) fn connects_submitted(&mut self) {
        if !self.connects.moving.is_empty() && self.kernel.is_submitted() {
            self.connects.moving.clear();
        }
    }

    fn push_connect(&mut self, token: u32) {
        let socket = self.sockets[token];
        let operation = self.connects.target(socket.operation());
        // SAFETY: `operation` points into the boxed entry of the pool, of which nobody holds a reference now.
        // JUSTIFICATION: the kernel may keep this address until the completion.
        let (address, len) = unsafe { (&raw mut (*operation).address, (*operation).address.len()) };
        let connect = opcode::Connect::new(socket.fd(), Address::pointers(address).0, len)
            .build()
            .flags(self.descriptor_flags)
            .user_data(Kind::Connect.user_data(0, token));
        // SAFETY: the address lies in a box that the pool owns until the connect has completed.
        // JUSTIFICATION: as above.
        unsafe { self.kernel.push(&connect) };
    }

    /// A socket has moved into the table, or found no place there.
    pub(super) fn install_completed(
        &mut self,
        token: u32,
        completion: Completion,
    ) -> Option<Event<'static>> {
        let index = self.sockets[token].operation();
        let operation = self.connects.target(index);
        if completion.result != 1 {
            self.connect_ends(token);
            let closing = self.sockets[token].phase() == Phase::Closing;
            // There is no descriptor to close: a no-op stands for the close, so that `Closed` follows.
            self.sockets[token].set_phase(Phase::Closed);
            let nop = opcode::Nop::new()
                .build()
                .user_data(Kind::Close.user_data(0, token));
            // SAFETY: a no-op names no memory.
            // JUSTIFICATION: a completion yields one event, and there are two to tell.
            unsafe { self.kernel.push(&nop) };
            let error = io::Error::from_raw_os_error(if completion.result < 0 {
                -completion.result
            } else {
                libc::ENFILE
            });
            return (!closing).then_some(Event::ConnectFailed { token, error });
        }
        // SAFETY: `operation` points into the boxed entry of the pool; the kernel has written the slot and is done.
        // JUSTIFICATION: as in `connect`.
        let slot = unsafe { (*operation).descriptor };
        let socket = &mut self.sockets[token];
        socket.descriptor = slot.cast_unsigned();
        if socket.phase() == Phase::Closing {
            self.connect_ends(token);
            self.close_when_quiet(token);
        } else {
            socket.set_phase(Phase::Connecting);
            self.push_connect(token);
        }
        None
    }

    /// A connect has succeeded or failed.
    pub(super) fn connect_completed(
        &mut self,
        token: u32,
        completion: Completion,
    ) -> Option<Event<'static>> {
        if matches!(-completion.result, libc::EINTR | libc::EAGAIN)
            && self.sockets[token].phase() == Phase::Connecting
        {
            self.push_connect(token);
            return None;
        }
        self.connect_ends(token);
        let socket = &mut self.sockets[token];
        if socket.phase() == Phase::Closing {
            self.close_when_quiet(token);
            return None;
        }
        if completion.result == 0 {
            socket.set_phase(Phase::Open);
            if socket.should_arm() {
                self.receive_arm(token);
            }
            return Some(Event::Connected { token });
        }
        socket.set_phase(Phase::Closing);
        self.close_when_quiet(token);
        Some(Event::ConnectFailed {
            token,
            error: io::Error::from_raw_os_error(-completion.result),
        })
    }

    fn connect_ends(&mut self, token: u32) {
        let socket = &mut self.sockets[token];
        self.connects.pool.remove(socket.operation());
        socket.set_operation(NO_OPERATION);
    }
}
