//! One connection: requests and frames in, frames out, and the moment at which each delivery was written.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use throng::limits::{CLIENT_HEADER_BYTES_MAX, SERVER_HEADER_BYTES_MAX};
use throng::protocol::{OpCode, Role, decode_header, encode_header, unmask_in_place};

use super::schedule::{MemberId, RoomId};
use super::tally::Tally;
use crate::clock::now_ns;

/// Bytes of a request's head at most.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a message at most: more than the load generator sends.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes that may wait for a member that does not read; with more it is cut off.
const OUTBOX_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of outbox that an idle member keeps.
const OUTBOX_KEPT_BYTES_MAX: usize = 64 * 1024;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its request has not come, or not whole.
    Upgrading,
    /// Its request has come, and its answer is not due.
    Asked,
    /// It is a member.
    Open(RoomId),
    /// It has been sent a close frame, and is to answer it.
    Closing,
    /// Its last bytes are on their way; then the stream ends.
    Ending,
}

/// Something that came, taken off the front of the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A text or binary message.
    Message(OpCode, &'a [u8]),
    /// A ping, with its payload.
    Ping(&'a [u8]),
    /// A close frame, with its payload.
    Close(&'a [u8]),
}

/// Why a connection goes on no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// The stream ended, by the client or by a broken network.
    Gone,
    /// The client sent what it may not, or did not read.
    Cut,
}

/// When a delivery's last byte leaves, and what to count it against.
#[derive(Debug)]
struct Mark {
    /// Bytes of the stream up to and with it.
    end: u64,
    came_ns: u64,
    due_ns: u64,
    intended_ns: Option<u64>,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    /// Its socket.
    pub socket: OwnedFd,
    /// Who it is.
    pub id: MemberId,
    /// Where it stands.
    pub state: State,
    /// When its last stamped message was to be sent.
    pub intended_ns: Option<u64>,
    /// Whether it is in the server's list of outboxes to write.
    pub dirty: bool,
    /// Whether it waits for its socket to take more.
    pub blocked: bool,
    partial: Vec<u8>,
    outbox: Vec<u8>,
    /// Bytes at the front of `outbox` that are written.
    outbox_start: usize,
    queued_bytes: u64,
    sent_bytes: u64,
    marks: VecDeque<Mark>,
}

impl Connection {
    /// A connection that has just been accepted.
    pub fn new(socket: OwnedFd, id: MemberId) -> Self {
        Self {
            socket,
            id,
            state: State::Upgrading,
            intended_ns: None,
            dirty: false,
            blocked: false,
            partial: Vec::new(),
            outbox: Vec::new(),
            outbox_start: 0,
            queued_bytes: 0,
            sent_bytes: 0,
            marks: VecDeque::new(),
        }
    }

    /// Reads once, behind what had come in part, into `buffer`; returns how many bytes there are now.
    ///
    /// # Errors
    /// [`Over::Gone`] at the stream's end.
    pub fn receive(&mut self, buffer: &mut Vec<u8>) -> Result<usize, Over> {
        let kept_bytes = self.partial.len();
        if buffer.len() < kept_bytes * 2 {
            buffer.resize(kept_bytes * 2, 0);
        }
        buffer[..kept_bytes].copy_from_slice(&self.partial);
        self.partial.clear();
        match recv(&self.socket, &mut buffer[kept_bytes..], RecvFlags::empty()) {
            Ok((0, _)) => Err(Over::Gone),
            Ok((received_bytes, _)) => Ok(kept_bytes + received_bytes),
            Err(Errno::AGAIN | Errno::INTR) => Ok(kept_bytes),
            Err(_) => Err(Over::Gone),
        }
    }

    /// Keeps what has come in part.
    ///
    /// # Errors
    /// [`Over::Cut`] when it is more than a head or a message may be.
    pub fn keep(&mut self, rest: &[u8]) -> Result<(), Over> {
        let bytes_max = match self.state {
            State::Upgrading | State::Asked => HEAD_BYTES_MAX,
            _ => MESSAGE_BYTES_MAX + CLIENT_HEADER_BYTES_MAX,
        };
        if rest.len() > bytes_max {
            return Err(Over::Cut);
        }
        self.partial.extend_from_slice(rest);
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        Ok(())
    }

    /// Takes back what was kept.
    pub fn take_kept(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.partial)
    }

    /// Appends `bytes` to what is to be written.
    ///
    /// # Errors
    /// [`Over::Cut`] when too much waits already.
    pub fn queue(&mut self, bytes: &[u8]) -> Result<(), Over> {
        if self.outbox.len() - self.outbox_start + bytes.len() > OUTBOX_BYTES_MAX {
            return Err(Over::Cut);
        }
        self.outbox.extend_from_slice(bytes);
        self.queued_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Appends a frame to what is to be written.
    ///
    /// # Errors
    /// As [`Connection::queue`].
    pub fn queue_frame(&mut self, opcode: OpCode, payload: &[u8]) -> Result<(), Over> {
        let mut frame = Vec::with_capacity(payload.len() + SERVER_HEADER_BYTES_MAX);
        encode_header(&mut frame, true, opcode, payload.len());
        frame.extend_from_slice(payload);
        self.queue(&frame)
    }

    /// What was queued last is a delivery: its times are counted when its last byte is written.
    pub fn mark(&mut self, came_ns: u64, due_ns: u64, intended_ns: Option<u64>) {
        self.marks.push_back(Mark {
            end: self.queued_bytes,
            came_ns,
            due_ns,
            intended_ns,
        });
    }

    /// Writes as much as the socket takes, and counts what has left. A delivery's time is taken before the write, so
    /// that it is never later than its arrival.
    ///
    /// # Errors
    /// [`Over::Gone`] when nobody is there any more.
    pub fn flush(&mut self, tally: &mut Tally) -> Result<(), Over> {
        self.blocked = false;
        while self.outbox_start < self.outbox.len() {
            let before_ns = now_ns();
            match send(
                &self.socket,
                &self.outbox[self.outbox_start..],
                SendFlags::NOSIGNAL,
            ) {
                Ok(sent_bytes) => {
                    self.outbox_start += sent_bytes;
                    self.sent_bytes += sent_bytes as u64;
                }
                Err(Errno::AGAIN) => {
                    self.blocked = true;
                    break;
                }
                Err(Errno::INTR) => continue,
                Err(_) => return Err(Over::Gone),
            }
            while let Some(mark) = self.marks.front()
                && mark.end <= self.sent_bytes
            {
                tally.delivered += 1;
                let since = |start_ns| before_ns.saturating_sub(start_ns);
                tally
                    .planted
                    .saturating_record(mark.due_ns.saturating_sub(mark.came_ns));
                tally.written.saturating_record(since(mark.came_ns));
                if let Some(intended_ns) = mark.intended_ns {
                    tally.answered.saturating_record(since(intended_ns));
                }
                self.marks.pop_front();
            }
        }
        if self.outbox_start == self.outbox.len() {
            self.outbox.clear();
            self.outbox.shrink_to(OUTBOX_KEPT_BYTES_MAX);
            self.outbox_start = 0;
        } else if self.outbox_start > self.outbox.len() / 2 {
            self.outbox.drain(..self.outbox_start);
            self.outbox_start = 0;
        }
        Ok(())
    }
}

/// Hands each whole frame at the front of `bytes` to `on_incoming`, and returns how many bytes they were.
///
/// # Errors
/// [`Over::Cut`] at a frame that no client may send, at a fragment (messages are taken whole), and over
/// [`MESSAGE_BYTES_MAX`]; what came before has been handed over. Also what `on_incoming` gives.
pub fn read_frames(
    bytes: &mut [u8],
    mut on_incoming: impl FnMut(Incoming<'_>) -> Result<(), Over>,
) -> Result<usize, Over> {
    let mut start = 0;
    while let Some(header) = decode_header(&bytes[start..], Role::Server).map_err(|_| Over::Cut)? {
        let payload_bytes = usize::try_from(header.payload_bytes).unwrap_or(usize::MAX);
        if payload_bytes > MESSAGE_BYTES_MAX || !header.fin {
            return Err(Over::Cut);
        }
        let payload_start = start + usize::from(header.header_bytes);
        let end = payload_start + payload_bytes;
        let Some(payload) = bytes.get_mut(payload_start..end) else {
            break;
        };
        if let Some(mask) = header.mask {
            unmask_in_place(payload, mask, 0);
        }
        match header.opcode {
            OpCode::Text | OpCode::Binary => {
                on_incoming(Incoming::Message(header.opcode, payload))?
            }
            OpCode::Ping => on_incoming(Incoming::Ping(payload))?,
            OpCode::Close => on_incoming(Incoming::Close(payload))?,
            OpCode::Pong => {}
            OpCode::Continuation => return Err(Over::Cut),
        }
        start = end;
    }
    Ok(start)
}
