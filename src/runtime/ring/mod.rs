//! One core's io_uring: sockets in, events out. Knows nothing of rooms or WebSocket.
//!
//! Every socket has a `token`, the index of its entry in this ring's table: the shard's slab index, too. The ring
//! hands tokens out (accept, connect) and takes them back ([`Event::Closed`]); between the two it owns the socket.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::metrics::RingCounters;
use crate::protocol::{Encoded, Piece};

/// Where sockets live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descriptors {
    /// Direct descriptors where the kernel has them, else plain ones.
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
        token: u32,
        listener: u32,
        peer: SocketAddr,
    },
    /// Accepting failed (descriptors, memory); that accept is not in flight any more until [`Ring::accept_again`].
    AcceptFailed { listener: u32, error: io::Error },
    /// No accept of this listener is in flight any more, after [`Ring::stop_accepting`].
    ListenerStopped { listener: u32 },
    /// A connect has succeeded.
    Connected { token: u32 },
    /// A connect has failed. The token is closed by the ring; `Closed` follows.
    ConnectFailed { token: u32, error: io::Error },
    /// Bytes came.
    Received { token: u32, bytes: &'a [u8] },
    /// The peer ended its stream (`error` is `None`), or the connection broke. Nothing more will be received.
    ReceiveEnded {
        token: u32,
        error: Option<io::Error>,
    },
    /// `bytes` more of what was given to be sent have been taken by the kernel; `done` when it was all of it, so that
    /// the next send may be given.
    Sent { token: u32, bytes: u32, done: bool },
    /// The send failed; what was left of it is dropped. No send is in flight any more.
    SendFailed { token: u32, error: io::Error },
    /// The kernel has nothing left of this socket, and its token may be handed out again. Exactly once a token.
    Closed { token: u32 },
    /// The deadline of [`Ring::set_alarm`] has passed.
    Alarm,
}

/// One core's io_uring.
#[derive(Debug)]
pub struct Ring {}

#[allow(unused_variables, missing_docs)]
impl Ring {
    /// Sets the ring up on this thread; it must be used on this thread only.
    ///
    /// # Errors
    /// In words: what the kernel refused, and what mends it.
    pub fn new(options: &Options) -> Result<Self, RingError> {
        todo!()
    }
    /// The eventfd that becomes readable when completions wait while [`Ring::prepare_sleep`] is in force, or when
    /// another core writes to it.
    pub fn wake_fd(&self) -> &OwnedFd {
        todo!()
    }
    /// Whether sockets are direct descriptors, and if not though they were asked for, why.
    pub fn direct(&self) -> Result<(), &str> {
        todo!()
    }
    /// Keeps a batch of accepts in flight on a listening socket. Returns the listener's number.
    pub fn listen(&mut self, listener: OwnedFd) -> u32 {
        todo!()
    }
    /// Arms the accepts again that [`Event::AcceptFailed`] reported.
    pub fn accept_again(&mut self, listener: u32) {
        todo!()
    }
    /// Cancels the accepts in flight; [`Event::ListenerStopped`] follows, and the listening socket is closed then.
    pub fn stop_accepting(&mut self, listener: u32) {
        todo!()
    }
    /// Opens a socket and connects it, from `source` (port 0: any; `IP_BIND_ADDRESS_NO_PORT`) if given.
    pub fn connect(&mut self, target: SocketAddr, source: Option<SocketAddr>) -> io::Result<u32> {
        todo!()
    }
    /// Arms the multishot receive; it stays armed (the ring arms it again as needed) until the stream ends.
    pub fn receive(&mut self, token: u32) {
        todo!()
    }
    /// Stops receiving soon; what has already arrived is still reported.
    pub fn receive_pause(&mut self, token: u32) {
        todo!()
    }
    /// Ends a pause.
    pub fn receive_resume(&mut self, token: u32) {
        todo!()
    }
    /// Sends all of `encoded` to each of `tokens`. None of them may have a send in flight.
    pub fn send_fan_out(&mut self, encoded: &Encoded, tokens: &[u32]) {
        todo!()
    }
    /// Sends all of `pieces` in order, in one vectored send where there are several. No send may be in flight.
    pub fn send(&mut self, token: u32, pieces: &[Piece]) {
        todo!()
    }
    /// Ends our side of the stream after what was sent (`shutdown(SHUT_WR)`).
    pub fn shutdown_write(&mut self, token: u32) {
        todo!()
    }
    /// Ends everything of this socket; [`Event::Closed`] follows.
    pub fn close(&mut self, token: u32) {
        todo!()
    }
    /// One alarm, `after` from now; replaces an earlier one.
    pub fn set_alarm(&mut self, after: Duration) {
        todo!()
    }
    /// Submits what is queued and runs completions (`GETEVENTS`), without waiting.
    pub fn submit(&mut self) -> io::Result<()> {
        todo!()
    }
    /// Submits and waits for at least one completion. For threads that have nothing else to do.
    pub fn submit_and_wait(&mut self) -> io::Result<()> {
        todo!()
    }
    /// Lets completions signal [`Ring::wake_fd`] from now on. False: some are already here, do not sleep.
    pub fn prepare_sleep(&mut self) -> bool {
        todo!()
    }
    /// Ends [`Ring::prepare_sleep`], and empties the eventfd.
    pub fn awake(&mut self) {
        todo!()
    }
    /// The next event.
    pub fn next_event(&mut self) -> Option<Event<'_>> {
        todo!()
    }
    /// What it counts.
    pub fn counters(&self) -> &RingCounters {
        todo!()
    }
}

/// Why a ring could not be set up, in words, with what mends it.
#[derive(Debug)]
pub struct RingError(pub String);
