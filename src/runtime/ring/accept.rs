//! Accepting: a batch of single-shot accepts a listener, because only those bring the peer's address.
//!
//! An accept in flight takes a connection out of the kernel's queue even when there is no place for it in the table, and
//! then drops it. So no more accepts are in flight than the table has places: the rest are held back until a socket
//! is closed, and their clients wait in the kernel's queue.

use std::cell::UnsafeCell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{opcode, types};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::address::Address;
use super::kernel::Completion;
use super::socket::{Phase, Socket};
use super::{Event, Kind, Ring};

/// Accepts in flight for one listener.
const ACCEPT_COUNT: u32 = 64;

/// Where an accept's peer address arrives. Touched by the kernel between submission and completion, by us outside.
#[derive(Debug)]
struct Peer(UnsafeCell<Address>);

/// A listening socket and its accepts.
#[derive(Debug)]
pub(super) struct Listener {
    /// Open until the last accept has ended.
    fd: Option<OwnedFd>,
    peers: Box<[Peer]>,
    /// Accepts not in flight that may be submitted when the table has a place.
    held: Vec<u32>,
    /// Accepts that failed and wait for `accept_again`.
    failed: Vec<u32>,
    in_flight_count: u32,
    stopping: bool,
}

/// Whether an accept's error says that there is no room for a connection, rather than that a connection went away.
fn is_exhaustion(error: i32) -> bool {
    matches!(
        error,
        libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS
    )
}

/// Whether the listening socket itself is at fault, so that to accept again at once would fail at once.
fn is_lasting(error: i32) -> bool {
    matches!(
        error,
        libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP | libc::EFAULT
    )
}

impl Ring {
    /// Keeps a batch of accepts in flight on a listening socket. Returns the listener's number.
    ///
    /// Accepted sockets inherit its options. While the table is full its clients wait in the kernel's queue; the ring goes
    /// on by itself when a socket is closed (counted in `accept_exhausted`, not an event).
    pub fn listen(&mut self, listener: OwnedFd) -> u32 {
        // With O_NONBLOCK the kernel answers EAGAIN instead of waiting for a connection.
        if let Ok(flags) = fcntl_getfl(&listener) {
            let _ = fcntl_setfl(&listener, flags - OFlags::NONBLOCK);
        }
        let Ok(number) = u32::try_from(self.listeners.len()) else {
            panic!("listeners are few")
        };
        self.listeners.push(Listener {
            fd: Some(listener),
            peers: (0..ACCEPT_COUNT)
                .map(|_| Peer(UnsafeCell::new(Address::empty())))
                .collect(),
            held: (0..ACCEPT_COUNT).rev().collect(),
            failed: Vec::new(),
            in_flight_count: 0,
            stopping: false,
        });
        self.listening_count += 1;
        self.accept_refill();
        number
    }

    /// Arms the accepts again that [`super::Event::AcceptFailed`] reported.
    pub fn accept_again(&mut self, listener: u32) {
        let listener = &mut self.listeners[listener as usize];
        if !listener.stopping {
            listener.held.append(&mut listener.failed);
            self.accept_refill();
        }
    }

    /// Cancels the accepts in flight; [`super::Event::ListenerStopped`] follows, and the listening socket is closed then.
    ///
    /// Connections that accepts in flight have taken already are still reported.
    pub fn stop_accepting(&mut self, listener: u32) {
        let number = listener;
        let listener = &mut self.listeners[number as usize];
        if listener.stopping {
            return;
        }
        listener.stopping = true;
        self.listening_count -= 1;
        let idle = listener.held.len() + listener.failed.len();
        listener.held.clear();
        listener.failed.clear();
        if idle == listener.peers.len() {
            let nop = opcode::Nop::new()
                .build()
                .user_data(Kind::Stopped.user_data(number, 0));
            // SAFETY: a no-op names no memory.
            // JUSTIFICATION: news of the ring travel by its completion queue, so that their order holds.
            unsafe { self.kernel.push(&nop) };
        } else {
            for accept in 0..ACCEPT_COUNT {
                self.kernel
                    .push_cancel(Kind::Accept.user_data(number, accept));
            }
        }
        self.accept_refill();
    }

    /// Submits accepts that are held back, as far as the table has places for what they may bring.
    ///
    /// A listener's share is what is left divided by the listeners, so that one cannot hold all of it.
    pub(super) fn accept_refill(&mut self) {
        for number in 0..self.listeners.len() {
            while let Some(accept) = self.accept_allowed(number) {
                self.accept_arm(number, accept);
            }
        }
    }

    fn accept_allowed(&mut self, number: usize) -> Option<u32> {
        let listener = &mut self.listeners[number];
        if listener.stopping || listener.held.is_empty() {
            return None;
        }
        let free_count = self
            .socket_count_max
            .saturating_sub(self.sockets.used_count());
        let share = (free_count / self.listening_count.max(1)).max(1);
        if self.accepts_in_flight_count >= free_count || listener.in_flight_count >= share {
            return None;
        }
        listener.held.pop()
    }

    fn accept_arm(&mut self, number: usize, accept: u32) {
        let listener = &mut self.listeners[number];
        let Some(fd) = &listener.fd else { return };
        listener.in_flight_count += 1;
        self.accepts_in_flight_count += 1;
        let peer = listener.peers[accept as usize].0.get();
        // SAFETY: this accept is not in flight, so the kernel does not touch its address now.
        // JUSTIFICATION: the kernel writes addresses into memory of ours; each accept has its own.
        unsafe { *peer = Address::empty() };
        let (address, len) = Address::pointers(peer);
        let direct = self.direct.is_ok();
        #[allow(clippy::cast_possible_truncation)] // pushed one by one: see `listen`
        let submission = opcode::Accept::new(types::Fd(fd.as_raw_fd()), address, len)
            .file_index(direct.then(types::DestinationSlot::auto_target))
            .flags(if direct { 0 } else { libc::SOCK_CLOEXEC })
            .build()
            .user_data(Kind::Accept.user_data(number as u32, accept));
        // SAFETY: the address is in a boxed slice that lives as long as the ring, which drops it only when nothing is in
        // flight, and it is read or written by us only while this accept is not in flight.
        // JUSTIFICATION: as above.
        unsafe { self.kernel.push(&submission) };
    }

    /// An accept has completed.
    pub(super) fn accept_completed(
        &mut self,
        number: u32,
        accept: u32,
        completion: Completion,
    ) -> Option<Event<'static>> {
        let listener = &mut self.listeners[number as usize];
        listener.in_flight_count -= 1;
        self.accepts_in_flight_count -= 1;
        if listener.stopping {
            if listener.in_flight_count == 0 {
                let nop = opcode::Nop::new()
                    .build()
                    .user_data(Kind::Stopped.user_data(number, 0));
                // SAFETY: a no-op names no memory.
                // JUSTIFICATION: `Accepted` and `ListenerStopped` are two events, and a completion yields one.
                unsafe { self.kernel.push(&nop) };
            }
        } else if completion.result < 0
            && (is_exhaustion(-completion.result) || is_lasting(-completion.result))
        {
            listener.failed.push(accept);
            self.kernel.counters.accept_exhausted += 1;
            let error = io::Error::from_raw_os_error(-completion.result);
            return Some(Event::AcceptFailed {
                listener: number,
                error,
            });
        } else {
            listener.held.push(accept);
        }
        let Ok(descriptor) = u32::try_from(completion.result) else {
            self.accept_refill();
            return None;
        };
        // SAFETY: this accept has completed and is submitted again only below.
        // JUSTIFICATION: as in `accept_arm`.
        let peer = unsafe {
            &*self.listeners[number as usize].peers[accept as usize]
                .0
                .get()
        }
        .decode();
        let token = self
            .sockets
            .insert_with(|remains| Socket::new(descriptor, Phase::Open, remains));
        if self.sockets.used_count() >= self.socket_count_max {
            self.kernel.counters.accept_exhausted += 1;
        }
        self.accept_refill();
        // A peer that is gone already can have no address on some kernels; its receive will tell.
        let peer = peer.unwrap_or(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)));
        Some(Event::Accepted {
            token,
            listener: number,
            peer,
        })
    }

    /// The last accept of a listener has ended.
    pub(super) fn listener_stopped(&mut self, number: u32) -> Event<'static> {
        self.listeners[number as usize].fd = None;
        Event::ListenerStopped { listener: number }
    }
}
