//! One core's io_uring: sockets in, events out. Knows nothing of rooms or WebSocket.
//!
//! Every socket has a `token`, the index of its entry in this ring's table: the shard's slab index, too. The ring
//! hands tokens out (accept, connect) and takes them back ([`Event::Closed`]); between the two it owns the socket.

//!
//! ```text
//! listen ──▶ Accepted ─┐            ┌─ receive ──▶ Received… ──▶ ReceiveEnded ─┐
//!                      ├──▶ open ───┤                                          ├──▶ close ──▶ Closed
//! connect ─▶ Connected ┘            └─ send, send_fan_out ──▶ Sent… ───────────┘
//! ```
//!
//! One turn of its owner: take events until [`Ring::next_event`] says `None`, act on them, [`Ring::submit`]; with nothing
//! left to do, [`Ring::prepare_sleep`], wait for [`Ring::wake_fd`], [`Ring::awake`].
//!
//! A socket costs eight bytes here and nothing else while it is idle: no buffer, no timer, no task. What the
//! kernel is given to read or write belongs to the ring until the completion; where a ring is dropped while
//! something is in flight, it is cancelled and waited for first. Everything `unsafe` of this crate is in this module,
//! and its surface is safe whatever its caller does.

#![allow(unsafe_code)]

mod accept;
mod address;
mod alarm;
pub mod bare;
mod buffers;
mod connect;
mod direct;
mod error;
mod kernel;
mod pool;
mod receive;
mod send;
mod socket;
#[cfg(test)]
mod tests;
mod wake;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd};

use io_uring::{opcode, squeue, types};

use self::accept::Listener;
use self::alarm::Alarm;
use self::buffers::Buffers;
use self::connect::Connects;
pub use self::direct::direct_descriptors_freed;
pub use self::error::RingError;
use self::kernel::{Completion, Kernel};
use self::pool::Pool;
use self::send::Sends;
use self::socket::{NO_OPERATION, Phase, Socket};
pub use self::wake::WakeHandle;
use crate::limits::SHARD_CONNECTION_COUNT_MAX;
use crate::metrics::RingCounters;

/// Where sockets live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descriptors {
    /// Direct descriptors where the kernel has them and frees them ([`direct_descriptors_freed`]), else plain ones.
    Auto,
    /// The ring's own file table; not counted in the process's open files.
    Direct,
    /// The process's file table.
    Plain,
}

/// What a ring may be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where sockets live.
    pub descriptors: Descriptors,
    /// Sockets at most. A direct table may not exceed the process's open-file limit.
    pub socket_count_max: u32,
    /// Submission queue entries (a power of two).
    pub submission_entries: u32,
    /// Completion queue entries (a power of two).
    pub completion_entries: u32,
    /// Bytes of one receive buffer.
    pub receive_buffer_bytes: u32,
    /// Receive buffers (a power of two, at most 32,768).
    pub receive_buffer_count: u16,
}

/// What happened. Bytes are lent until the next call of [`Ring::next_event`].
#[derive(Debug)]
pub enum Event<'a> {
    /// A socket was accepted; it does not receive before [`Ring::receive`].
    Accepted {
        /// The socket.
        token: u32,
        /// The number that [`Ring::listen`] returned.
        listener: u32,
        /// The other end; `0.0.0.0:0` in the odd case that the kernel does not say.
        peer: SocketAddr,
    },
    /// Accepting failed (descriptors, memory); that accept is not in flight any more until [`Ring::accept_again`].
    AcceptFailed {
        /// The listener.
        listener: u32,
        /// Why.
        error: io::Error,
    },
    /// No accept of this listener is in flight any more, after [`Ring::stop_accepting`].
    ListenerStopped {
        /// The listener.
        listener: u32,
    },
    /// A connect has succeeded.
    Connected {
        /// The socket.
        token: u32,
    },
    /// A connect has failed. The token is closed by the ring; `Closed` follows.
    ConnectFailed {
        /// The socket.
        token: u32,
        /// Why.
        error: io::Error,
    },
    /// Bytes came.
    Received {
        /// The socket.
        token: u32,
        /// What came: at least one byte, at most a receive buffer.
        bytes: &'a [u8],
    },
    /// The peer ended its stream (`error` is `None`), or the connection broke. Nothing more will be received.
    ReceiveEnded {
        /// The socket.
        token: u32,
        /// Why it broke, if it did.
        error: Option<io::Error>,
    },
    /// `bytes` more of what was given to be sent have been taken by the kernel; `done` when it was all of it, so that
    /// the next send may be given.
    Sent {
        /// The socket.
        token: u32,
        /// Bytes since the last `Sent` of this send.
        bytes: u32,
        /// Whether no send is in flight any more.
        done: bool,
    },
    /// The send failed; what was left of it is dropped. No send is in flight any more.
    SendFailed {
        /// The socket.
        token: u32,
        /// Why.
        error: io::Error,
    },
    /// The kernel has nothing left of this socket, and its token may be handed out again. Exactly once a token.
    Closed {
        /// The socket.
        token: u32,
    },
    /// The deadline of [`Ring::set_alarm`] has passed.
    Alarm,
}

/// While this many receives are armed at most, a close ends one by cancelling it; beyond, by shutting the socket down.
///
/// The kernel finds what to cancel in a table of 256 chains, so that cancelling costs more the more is armed; a
/// shutdown costs the same always, but runs in a worker thread of the ring.
const CANCEL_ARMED_COUNT_MAX: u32 = 65_536;

/// What a completion is of; the top byte of its user data. Zero is [`kernel`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Receive = 1,
    Send,
    Accept,
    Close,
    Shutdown,
    Install,
    Connect,
    Alarm,
    AlarmUpdate,
    Stopped,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Receive,
        Self::Send,
        Self::Accept,
        Self::Close,
        Self::Shutdown,
        Self::Install,
        Self::Connect,
        Self::Alarm,
        Self::AlarmUpdate,
        Self::Stopped,
    ];

    /// Kind (8 bits), listener (24 bits), token or accept (32 bits).
    const fn user_data(self, listener: u32, index: u32) -> u64 {
        (self as u64) << 56 | (listener as u64) << 32 | index as u64
    }

    fn of(user_data: u64) -> Self {
        Self::ALL[(user_data >> 56) as usize - 1]
    }
}

/// What a completion tells.
#[derive(Debug)]
enum Outcome {
    /// Bytes: an event once the buffer is lent.
    Received { token: u32, buffer: u16, len: u32 },
    /// What borrows nothing.
    Told(Event<'static>),
}

/// One core's io_uring.
#[derive(Debug)]
pub struct Ring {
    kernel: Kernel,
    wake: WakeHandle,
    /// Why sockets are not direct descriptors, if they are not.
    direct: Result<(), String>,
    /// What submissions on a socket carry: that their descriptor is a direct one.
    descriptor_flags: squeue::Flags,
    sockets: Pool<Socket>,
    socket_count_max: u32,
    sends: Sends,
    buffers: Buffers,
    /// The buffer of the event that is being looked at.
    lent: Option<u16>,
    /// Receives that found no buffer.
    starved: VecDeque<u32>,
    listeners: Vec<Listener>,
    listening_count: u32,
    accepts_in_flight_count: u32,
    connects: Connects,
    alarm: Alarm,
    /// Multishot receives in flight.
    armed_count: u32,
    /// See [`CANCEL_ARMED_COUNT_MAX`].
    cancel_armed_count_max: u32,
}

impl Ring {
    /// Sets the ring up on this thread; it must be used on this thread only.
    ///
    /// # Errors
    /// In words: what the kernel refused, and what mends it.
    pub fn new(options: &Options) -> Result<Self, RingError> {
        options.check()?;
        let wake =
            WakeHandle::new().map_err(|error| RingError::new("opening an eventfd", &error))?;
        let kernel = Kernel::new(
            options.submission_entries,
            options.completion_entries,
            &wake,
        )?;
        let direct = match options.descriptors {
            Descriptors::Plain => Err("plain descriptors were asked for".to_owned()),
            Descriptors::Auto if !direct_descriptors_freed() => {
                Err("this kernel keeps closed ones; Linux 6.13 frees them".to_owned())
            }
            wanted => match kernel
                .submitter()
                .register_files_sparse(options.socket_count_max)
            {
                Ok(()) => Ok(()),
                Err(error) => {
                    let doing = format!(
                        "registering a file table of {} sockets",
                        options.socket_count_max
                    );
                    let error = RingError::new(&doing, &error);
                    if wanted == Descriptors::Direct {
                        return Err(error);
                    }
                    Err(error.0)
                }
            },
        };
        let buffers = Buffers::new(options.receive_buffer_count, options.receive_buffer_bytes)
            .map_err(|error| RingError::new("mapping the receive buffers", &error))?;
        let mut ring = Self {
            descriptor_flags: if direct.is_ok() {
                squeue::Flags::FIXED_FILE
            } else {
                squeue::Flags::empty()
            },
            kernel,
            wake,
            direct,
            sockets: Pool::new(),
            socket_count_max: options.socket_count_max,
            sends: Sends::new(),
            buffers,
            lent: None,
            starved: VecDeque::new(),
            listeners: Vec::new(),
            listening_count: 0,
            accepts_in_flight_count: 0,
            connects: Connects::new(),
            alarm: Alarm::new(),
            armed_count: 0,
            cancel_armed_count_max: CANCEL_ARMED_COUNT_MAX,
        };
        ring.kernel.counters.direct_descriptors = ring.direct.is_ok();
        let (address, count) = ring.buffers.ring();
        // SAFETY: the mapping lives until the ring is dropped, which drops it only when nothing is in flight.
        // JUSTIFICATION: registering is how the kernel learns of the buffers.
        unsafe {
            ring.kernel
                .submitter()
                .register_buf_ring_with_flags(address, count, buffers::GROUP, 0)
        }
        .map_err(|error| RingError::new("registering the receive buffers", &error))?;
        Ok(ring)
    }

    /// The eventfd that becomes readable when completions wait while [`Ring::prepare_sleep`] is in force, or when
    /// another core writes to it.
    #[must_use]
    pub fn wake_fd(&self) -> &OwnedFd {
        self.wake.fd()
    }

    /// What other threads wake this core with.
    #[must_use]
    pub fn wake_handle(&self) -> WakeHandle {
        self.wake.clone()
    }

    /// Whether sockets are direct descriptors, and if not, why.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn direct(&self) -> Result<(), &str> {
        self.direct.as_ref().copied().map_err(String::as_str)
    }

    /// Sockets whose `Closed` has not been reported.
    #[must_use]
    pub fn socket_count(&self) -> u32 {
        self.sockets.used_count()
    }

    /// Whether [`Ring::next_event`] has something to look at.
    #[must_use]
    pub fn has_events(&mut self) -> bool {
        self.kernel.has_completions()
    }

    /// Counts a turn of the loop that uses this ring.
    pub fn record_turn(&mut self, us: u64) {
        self.kernel.record_turn(us);
    }

    /// What it counts.
    #[must_use]
    pub fn counters(&self) -> &RingCounters {
        &self.kernel.counters
    }

    /// Ends everything of this socket, in whatever state it is; [`Event::Closed`] follows, and nothing else.
    ///
    /// Bytes that the kernel has taken are still delivered; bytes of a send in flight that it has not are dropped.
    pub fn close(&mut self, token: u32) {
        let socket = &mut self.sockets[token];
        match socket.phase() {
            Phase::Free => panic!("a token is used between its first event and `Closed`"),
            Phase::Closing | Phase::Closed => return,
            Phase::Installing => {}
            Phase::Connecting => self.kernel.push_cancel(Kind::Connect.user_data(0, token)),
            Phase::Open => {
                if socket.operation() != NO_OPERATION {
                    socket.set_shut(false); // one that waits for the send
                    self.kernel.push_cancel(Kind::Send.user_data(0, token));
                }
                if socket.armed() {
                    // With a shutdown of our side in flight, a second one would have no flag of its own.
                    if self.armed_count <= self.cancel_armed_count_max || socket.shut() {
                        self.kernel.push_cancel(Kind::Receive.user_data(0, token));
                    } else {
                        socket.set_shut(true);
                        self.push_shutdown(token, libc::SHUT_RDWR);
                    }
                }
            }
        }
        self.sockets[token].set_phase(Phase::Closing);
        self.close_when_quiet(token);
    }

    /// Gives a closing socket's descriptor back once nothing else of it is in flight.
    fn close_when_quiet(&mut self, token: u32) {
        let socket = &mut self.sockets[token];
        if socket.phase() != Phase::Closing || !socket.is_quiet() {
            return;
        }
        socket.set_phase(Phase::Closed);
        let close = if self.direct.is_ok() {
            opcode::Close::new(types::Fixed(socket.descriptor))
        } else {
            opcode::Close::new(socket.fd())
        };
        // SAFETY: a close names no memory.
        // JUSTIFICATION: direct descriptors can be closed by the ring only, and closes are batched.
        unsafe {
            self.kernel
                .push(&close.build().user_data(Kind::Close.user_data(0, token)))
        };
    }

    fn close_completed(&mut self, token: u32) -> Event<'static> {
        self.sockets.remove(token);
        self.accept_refill();
        Event::Closed { token }
    }

    /// Submits what is queued and runs completions (`GETEVENTS`), without waiting.
    ///
    /// # Errors
    /// What no waiting mends: the kernel has lost a completion for want of memory (`EBADR`), or will not know the ring. A full or overflowing queue is not an error.
    pub fn submit(&mut self) -> io::Result<()> {
        self.flush();
        self.kernel.enter(false)?;
        self.connects_submitted();
        Ok(())
    }

    /// Submits and waits for at least one completion, or a signal. For threads that have nothing else to do.
    ///
    /// # Errors
    /// As [`Ring::submit`].
    pub fn submit_and_wait(&mut self) -> io::Result<()> {
        self.flush();
        let wait = self.starved.is_empty();
        self.kernel.enter(wait)?;
        self.connects_submitted();
        Ok(())
    }

    /// Lets completions signal [`Ring::wake_fd`] from now on. False: some are already here, do not sleep.
    ///
    /// Submits what is queued. After it, look once more at whatever else may wake this core (its lanes), before
    /// sleeping; [`Ring::awake`] ends it either way.
    pub fn prepare_sleep(&mut self) -> bool {
        self.flush();
        let sleep = self.starved.is_empty() && self.kernel.prepare_sleep();
        self.connects_submitted();
        sleep
    }

    /// Ends [`Ring::prepare_sleep`], and empties the eventfd.
    pub fn awake(&mut self) {
        self.kernel.awake();
        self.wake.clear();
    }

    /// Queues what waits for a submission.
    fn flush(&mut self) {
        self.recycle_lent();
        if !self.starved.is_empty() {
            self.receive_starved();
        }
        self.alarm_flush();
    }

    fn recycle_lent(&mut self) {
        if let Some(buffer) = self.lent.take() {
            self.buffers.recycle(buffer);
        }
    }

    /// The next event. Bytes that it lends are taken back at the next call.
    pub fn next_event(&mut self) -> Option<Event<'_>> {
        self.recycle_lent();
        loop {
            let completion = self.kernel.next_completion()?;
            if let Some(outcome) = self.complete(completion) {
                return Some(self.event(outcome));
            }
        }
    }

    #[allow(clippy::cast_possible_truncation)] // the fields of the user data
    fn complete(&mut self, completion: Completion) -> Option<Outcome> {
        let index = completion.user_data as u32;
        let listener = (completion.user_data >> 32) as u32 & 0x00ff_ffff;
        let told = match Kind::of(completion.user_data) {
            Kind::Receive => return self.receive_completed(index, completion),
            Kind::Send => self.send_completed(index, completion),
            Kind::Accept => self.accept_completed(listener, index, completion),
            Kind::Close => Some(self.close_completed(index)),
            Kind::Shutdown => {
                self.shutdown_completed(index);
                None
            }
            Kind::Install => self.install_completed(index, completion),
            Kind::Connect => self.connect_completed(index, completion),
            Kind::Alarm => self.alarm_completed(),
            Kind::AlarmUpdate => {
                self.alarm_updated(completion);
                None
            }
            Kind::Stopped => Some(self.listener_stopped(listener)),
        };
        told.map(Outcome::Told)
    }

    fn event(&mut self, outcome: Outcome) -> Event<'_> {
        match outcome {
            Outcome::Received { token, buffer, len } => {
                self.lent = Some(buffer);
                Event::Received {
                    token,
                    bytes: self.buffers.bytes(buffer, len),
                }
            }
            Outcome::Told(event) => event,
        }
    }
}

impl Options {
    /// What the kernel would refuse without saying why, or what the table cannot number.
    fn check(&self) -> Result<(), RingError> {
        let problem =
            if self.socket_count_max == 0 || self.socket_count_max >= SHARD_CONNECTION_COUNT_MAX {
                format!(
                    "a ring holds 1 to {} sockets",
                    SHARD_CONNECTION_COUNT_MAX - 1
                )
            } else if !self.receive_buffer_count.is_power_of_two()
                || self.receive_buffer_count > 1 << 15
            {
                "the number of receive buffers is a power of two up to 32,768".to_owned()
            } else if self.receive_buffer_bytes == 0 || self.receive_buffer_bytes > 1 << 30 {
                "a receive buffer has 1 byte to 1 GiB".to_owned()
            } else {
                return Ok(());
            };
        Err(RingError(problem))
    }
}

impl Drop for Ring {
    /// Cancels what is in flight and waits for it; what the kernel would not let go of in a second is leaked, because it
    /// might still be written to.
    fn drop(&mut self) {
        let plain = self.direct.is_err();
        let mut accepted = Vec::new();
        let quiet = self.kernel.quiesce(|completion| {
            let is_accept = Kind::of(completion.user_data) == Kind::Accept;
            if let Ok(descriptor) = u32::try_from(completion.result)
                && is_accept
            {
                accepted.push(descriptor);
            }
        });
        if plain {
            // Sockets that a close in flight stands for are closed: the close was submitted before the wait.
            let open = (0..self.sockets.len())
                .map(|token| self.sockets[token])
                .filter(|socket| !matches!(socket.phase(), Phase::Free | Phase::Closed))
                .map(|socket| socket.descriptor);
            for descriptor in open.chain(accepted) {
                // SAFETY: the descriptor is the table's own, or came with an accept that nobody was told of; nothing else
                // closes it, as the ring is being dropped.
                // JUSTIFICATION: the kernel hands descriptors out as numbers.
                drop(unsafe { OwnedFd::from_raw_fd(descriptor.cast_signed()) });
            }
        } else {
            // Otherwise the kernel closes them some time after the ring.
            let _ = self.kernel.submitter().unregister_files();
        }
        if !quiet {
            std::mem::forget(std::mem::replace(&mut self.sends, Sends::new()));
            std::mem::forget(std::mem::take(&mut self.listeners));
            std::mem::forget(std::mem::replace(&mut self.connects, Connects::new()));
            std::mem::forget(std::mem::replace(&mut self.alarm, Alarm::new()));
            self.buffers.leak();
        }
    }
}
