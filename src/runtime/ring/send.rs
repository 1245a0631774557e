//! Sends: what is in flight holds its bytes by reference count until the kernel is through with them.
//!
//! A fan-out is one entry with a count of recipients, however many they are; a recipient whose socket takes only a
//! part goes on alone, with an entry of its own.

use std::collections::VecDeque;
use std::io;
use std::ptr;

use io_uring::{opcode, squeue, types};

use super::kernel::Completion;
use super::pool::{Entry, Pool};
use super::socket::{NO_OPERATION, Phase};
use super::{Event, Kind, Ring};
use crate::limits::SEND_PIECE_COUNT_MAX;
use crate::protocol::{Encoded, Piece};

/// Message headers kept for the next vectored send.
const SPARE_COUNT_MAX: usize = 256;
/// `IORING_RECVSEND_POLL_FIRST`: do not try before the socket is writable (`linux/io_uring.h`).
const POLL_FIRST: u16 = 1;

/// A send in flight.
#[derive(Debug)]
enum Send {
    Free {
        next: u32,
    },
    /// All of the bytes to each of so many sockets.
    FanOut {
        encoded: Encoded,
        remaining_count: u32,
    },
    /// What is left of a piece, to one socket.
    One(Piece),
    /// What is left of several pieces, to one socket.
    Vectored(Box<Vectored>),
}

impl Entry for Send {
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

/// The memory of a `sendmsg`. Boxed, because the kernel keeps the addresses.
struct Vectored {
    header: libc::msghdr,
    vectors: Vec<libc::iovec>,
    pieces: VecDeque<Piece>,
}

impl std::fmt::Debug for Vectored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vectored")
            .field("pieces", &self.pieces)
            .finish_non_exhaustive()
    }
}

impl Vectored {
    fn new() -> Box<Self> {
        Box::new(Self {
            header: libc::msghdr {
                msg_name: ptr::null_mut(),
                msg_namelen: 0,
                msg_iov: ptr::null_mut(),
                msg_iovlen: 0,
                msg_control: ptr::null_mut(),
                msg_controllen: 0,
                msg_flags: 0,
            },
            vectors: Vec::new(),
            pieces: VecDeque::new(),
        })
    }

    /// Describes the first pieces that are left to the kernel.
    fn header(&mut self) -> *const libc::msghdr {
        self.vectors.clear();
        self.vectors
            .extend(self.pieces.iter().take(SEND_PIECE_COUNT_MAX).map(|piece| {
                let bytes = piece.bytes();
                libc::iovec {
                    iov_base: bytes.as_ptr().cast_mut().cast(),
                    iov_len: bytes.len(),
                }
            }));
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = self.vectors.len();
        &raw const self.header
    }

    /// Drops the first `bytes` of what is left; true when that was all.
    fn advance(&mut self, mut bytes: u32) -> bool {
        while let Some(piece) = self.pieces.front_mut() {
            let taken = bytes.min(piece.end - piece.start);
            piece.start += taken;
            bytes -= taken;
            if piece.start < piece.end {
                return false;
            }
            self.pieces.pop_front();
        }
        true
    }
}

/// All sends in flight.
#[derive(Debug)]
pub(super) struct Sends {
    pool: Pool<Send>,
    #[allow(clippy::vec_box)] // the boxes are what is kept
    spare: Vec<Box<Vectored>>,
}

impl Sends {
    pub(super) const fn new() -> Self {
        Self {
            pool: Pool::new(),
            spare: Vec::new(),
        }
    }

    /// Sends in flight; a fan-out counts once.
    #[cfg(test)]
    pub(super) const fn in_flight_count(&self) -> u32 {
        self.pool.used_count()
    }

    fn insert(&mut self, pieces: &[Piece]) -> u32 {
        if let [piece] = pieces {
            return self.pool.insert(Send::One(piece.clone()));
        }
        let mut vectored = self.spare.pop().unwrap_or_else(Vectored::new);
        vectored.pieces.extend(pieces.iter().cloned());
        self.pool.insert(Send::Vectored(vectored))
    }

    /// Lets go of one socket's part in a send.
    fn release(&mut self, index: u32) {
        if let Send::FanOut {
            remaining_count, ..
        } = &mut self.pool[index]
            && *remaining_count > 1
        {
            *remaining_count -= 1;
            return;
        }
        if let Send::Vectored(mut vectored) = self.pool.remove(index)
            && self.spare.len() < SPARE_COUNT_MAX
        {
            vectored.pieces.clear();
            self.spare.push(vectored);
        }
    }

    /// Notes that the kernel took `bytes` for one socket. What is left, if anything: its new index.
    fn advance(&mut self, index: u32, bytes: u32) -> Option<u32> {
        let rest = match &mut self.pool[index] {
            Send::FanOut { encoded, .. } if bytes as usize >= encoded.bytes().len() => None,
            Send::FanOut { encoded, .. } => {
                let mut piece = Piece::whole(encoded.clone());
                piece.start = bytes;
                Some(piece)
            }
            Send::One(piece) => {
                piece.start += bytes.min(piece.end - piece.start);
                if piece.start < piece.end {
                    return Some(index);
                }
                None
            }
            Send::Vectored(vectored) => {
                if !vectored.advance(bytes) {
                    return Some(index);
                }
                None
            }
            Send::Free { .. } => unreachable!("a send in flight has an entry"),
        };
        self.release(index);
        rest.map(|piece| self.pool.insert(Send::One(piece)))
    }

    /// The submission that sends what is left of the entry. It names memory that the entry owns.
    fn submission(&mut self, index: u32, fd: types::Fd, poll: u16) -> squeue::Entry {
        match &mut self.pool[index] {
            Send::FanOut { encoded, .. } => send_submission(fd, encoded.bytes(), poll),
            Send::One(piece) => send_submission(fd, piece.bytes(), poll),
            Send::Vectored(vectored) => opcode::SendMsg::new(fd, vectored.header())
                .ioprio(poll)
                .flags(libc::MSG_NOSIGNAL.cast_unsigned())
                .build(),
            Send::Free { .. } => unreachable!("a send in flight has an entry"),
        }
    }
}

/// One `send`, at most 2 GiB of it: the rest would follow.
fn send_submission(fd: types::Fd, bytes: &[u8], poll: u16) -> squeue::Entry {
    #[allow(clippy::cast_possible_truncation)] // clamped first
    let len = bytes.len().min(i32::MAX as usize) as u32;
    opcode::Send::new(fd, bytes.as_ptr(), len)
        .ioprio(poll)
        .flags(libc::MSG_NOSIGNAL)
        .build()
}

impl Ring {
    /// Sends all of `encoded` to each of `tokens`: one entry of memory, one submission each, one reference count.
    ///
    /// [`super::Event::Sent`] or [`super::Event::SendFailed`] follows for each. Tokens that are being closed are passed
    /// over in silence, as nothing is reported of them any more.
    ///
    /// # Panics
    /// When a token is nobody's, not connected yet, shut down, has a send in flight or is named twice: the bytes of the
    /// send in flight would be lost track of.
    pub fn send_fan_out(&mut self, encoded: &Encoded, tokens: &[u32]) {
        let Ok(token_count) = u32::try_from(tokens.len()) else {
            panic!("a ring has fewer than 2^24 sockets");
        };
        // One more than recipients, so that the entry lives until the loop is through.
        let fan_out = Send::FanOut {
            encoded: encoded.clone(),
            remaining_count: token_count + 1,
        };
        let index = self.sends.pool.insert(fan_out);
        for &token in tokens {
            if let Some(fd) = self.send_begins(token, index) {
                let submission = send_submission(fd, encoded.bytes(), 0);
                self.push_send(submission, token);
            } else {
                self.sends.release(index);
            }
        }
        self.sends.release(index);
    }

    /// Sends all of `pieces` in order, in one vectored send where there are several.
    ///
    /// [`super::Event::Sent`] follows, more than once if the socket takes it in parts, or [`super::Event::SendFailed`].
    /// Nothing is sent to a token that is being closed.
    ///
    /// # Panics
    /// As [`Ring::send_fan_out`].
    pub fn send(&mut self, token: u32, pieces: &[Piece]) {
        let index = self.sends.insert(pieces);
        if let Some(fd) = self.send_begins(token, index) {
            let submission = self.sends.submission(index, fd, 0);
            self.push_send(submission, token);
        } else {
            self.sends.release(index);
        }
    }

    /// Ends our side of the stream after what was sent (`shutdown(SHUT_WR)`). Nothing may be sent after it.
    pub fn shutdown_write(&mut self, token: u32) {
        let socket = &mut self.sockets[token];
        if socket.phase() != Phase::Open || socket.shut() {
            return;
        }
        socket.set_shut(true);
        if socket.operation() == NO_OPERATION {
            self.push_shutdown(token, libc::SHUT_WR);
        }
    }

    /// Checks that a send may begin and notes that it does. `None`: the socket is being closed.
    fn send_begins(&mut self, token: u32, index: u32) -> Option<types::Fd> {
        let socket = &mut self.sockets[token];
        match socket.phase() {
            Phase::Open => {
                assert!(
                    socket.operation() == NO_OPERATION,
                    "a socket has at most one send in flight"
                );
                assert!(
                    !socket.shut(),
                    "nothing is sent after the end of the stream"
                );
                socket.set_operation(index);
                Some(socket.fd())
            }
            Phase::Closing | Phase::Closed => None,
            phase => panic!("a send needs a connected socket, this one is {phase:?}"),
        }
    }

    fn push_send(&mut self, submission: squeue::Entry, token: u32) {
        let submission = submission
            .flags(self.descriptor_flags)
            .user_data(Kind::Send.user_data(0, token));
        // SAFETY: the entry holds a clone of the bytes (and owns header and vectors) until the completion, which is the
        // only place that releases it; the bytes of an `Encoded` never move or change while a clone lives.
        // JUSTIFICATION: the point of the engine: bytes shared by thousands of sends, copied by none.
        unsafe { self.kernel.push(&submission) };
    }

    pub(super) fn push_shutdown(&mut self, token: u32, how: i32) {
        let shutdown = opcode::Shutdown::new(self.sockets[token].fd(), how)
            .build()
            .flags(self.descriptor_flags)
            .user_data(Kind::Shutdown.user_data(0, token));
        // SAFETY: a shutdown names no memory.
        // JUSTIFICATION: a direct descriptor can be shut down by the ring only.
        unsafe { self.kernel.push(&shutdown) };
    }

    /// A send has completed.
    pub(super) fn send_completed(
        &mut self,
        token: u32,
        completion: Completion,
    ) -> Option<Event<'static>> {
        let socket = &mut self.sockets[token];
        let index = socket.operation();
        if socket.phase() != Phase::Open {
            socket.set_operation(NO_OPERATION);
            self.sends.release(index);
            self.close_when_quiet(token);
            return None;
        }
        let bytes = match u32::try_from(completion.result) {
            Ok(bytes) => bytes,
            Err(_) if matches!(-completion.result, libc::EAGAIN | libc::EINTR) => 0,
            Err(_) => {
                self.sends.release(index);
                self.send_ended(token);
                let error = io::Error::from_raw_os_error(-completion.result);
                return Some(Event::SendFailed { token, error });
            }
        };
        if let Some(rest) = self.sends.advance(index, bytes) {
            self.kernel.counters.partial_sends += 1;
            let socket = &mut self.sockets[token];
            socket.set_operation(rest);
            let submission = self.sends.submission(rest, socket.fd(), POLL_FIRST);
            self.push_send(submission, token);
            return (bytes > 0).then_some(Event::Sent {
                token,
                bytes,
                done: false,
            });
        }
        self.send_ended(token);
        Some(Event::Sent {
            token,
            bytes,
            done: true,
        })
    }

    /// A shutdown that waited for the send may go now.
    fn send_ended(&mut self, token: u32) {
        let socket = &mut self.sockets[token];
        socket.set_operation(NO_OPERATION);
        if socket.shut() {
            self.push_shutdown(token, libc::SHUT_WR);
        }
    }

    /// A shutdown has completed. That the peer was gone already is news of the receive.
    pub(super) fn shutdown_completed(&mut self, token: u32) {
        self.sockets[token].set_shut(false);
        self.close_when_quiet(token);
    }
}
