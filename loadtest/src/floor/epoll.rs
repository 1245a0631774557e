//! A bare epoll server: accept, upgrade, and turn frames around. Two system calls a message, and nothing to spare.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::door::{Door, EVENT_COUNT_MAX, LISTENER};
use super::wire;

const BUFFER_BYTES: usize = 256 * 1024;

/// Accepts, upgrades and echoes on one thread.
pub struct EpollServer {
    door: Door,
    buffer: Vec<u8>,
    answer: Vec<u8>,
    /// By descriptor.
    connections: Vec<Option<Connection>>,
    upgraded_count: usize,
}

struct Connection {
    socket: OwnedFd,
    upgraded: bool,
    /// The beginning of a frame or a request whose rest has not come; empty (and unallocated) nearly always.
    partial: Vec<u8>,
}

impl EpollServer {
    /// Binds `address`.
    pub fn new(address: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            door: Door::new(address)?,
            buffer: vec![0; BUFFER_BYTES],
            answer: Vec::new(),
            connections: Vec::new(),
            upgraded_count: 0,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.door.listener.local_addr()
    }

    /// Connections whose upgrade has been answered.
    pub fn upgraded_count(&self) -> usize {
        self.upgraded_count
    }

    /// Their sockets.
    pub fn upgraded_sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.connections
            .iter()
            .flatten()
            .filter(|connection| connection.upgraded)
            .map(|found| found.socket.as_fd())
    }

    /// Waits up to `timeout` (`None`: for ever) and serves what is ready.
    pub fn turn(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.door.wait(timeout)?;
        let events = std::mem::take(&mut self.door.events);
        for event in &events {
            match event.data.u64() {
                LISTENER => self.accept()?,
                index => self.serve(index as usize),
            }
        }
        self.door.events = events;
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..EVENT_COUNT_MAX {
            let Some((index, socket)) = self.door.accept(&mut self.connections)? else {
                break;
            };
            self.connections[index] = Some(Connection {
                socket,
                upgraded: false,
                partial: Vec::new(),
            });
        }
        Ok(())
    }

    fn serve(&mut self, index: usize) {
        let Some(connection) = self.connections[index].as_mut() else {
            return;
        };
        let was_upgraded = connection.upgraded;
        let goes_on = connection.serve(&mut self.buffer, &mut self.answer);
        self.upgraded_count += usize::from(connection.upgraded && !was_upgraded);
        if !goes_on {
            self.upgraded_count -= usize::from(connection.upgraded);
            self.connections[index] = None; // closes the socket, which leaves the epoll set by that
        }
    }
}

impl Connection {
    /// Reads once, answers what is whole. False: the connection is over.
    fn serve(&mut self, buffer: &mut [u8], answer: &mut Vec<u8>) -> bool {
        let kept_bytes = self.partial.len();
        if kept_bytes > 0 {
            buffer[..kept_bytes].copy_from_slice(&self.partial);
            self.partial = Vec::new();
        }
        let received_bytes = match recv(&self.socket, &mut buffer[kept_bytes..], RecvFlags::empty())
        {
            Ok((0, _)) => return false,
            Ok((received_bytes, _)) => received_bytes,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => return false,
        };
        let bytes = &mut buffer[..kept_bytes + received_bytes];
        let taken_bytes = if self.upgraded {
            let turned = wire::turn_around(bytes);
            if turned.answer_bytes > 0 && !self.send_all(&bytes[..turned.answer_bytes])
                || turned.ended
            {
                return false;
            }
            turned.taken_bytes
        } else {
            answer.clear();
            let Some(head_bytes) = wire::answer_upgrade(bytes, answer) else {
                self.partial = bytes.to_vec();
                return bytes.len() < 8 * 1024;
            };
            self.upgraded = true;
            if !self.send_all(answer) {
                return false;
            }
            head_bytes
        };
        if taken_bytes < bytes.len() {
            self.partial = bytes[taken_bytes..].to_vec();
        }
        self.partial.len() < BUFFER_BYTES / 2
    }

    /// A floor has no queue: a peer that does not take its answer at once is cut, and its client reports that.
    fn send_all(&self, bytes: &[u8]) -> bool {
        send(&self.socket, bytes, SendFlags::NOSIGNAL) == Ok(bytes.len())
    }
}
