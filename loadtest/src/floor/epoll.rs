//! A bare epoll server: accept, upgrade, and turn frames around. Two system calls a message, and nothing to spare.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendFlags, SocketFlags, accept_with, recv, send, sockopt::set_tcp_nodelay,
};

use super::wire;

const LISTENER: u64 = u64::MAX;
const EVENT_COUNT_MAX: usize = 512;
const BUFFER_BYTES: usize = 256 * 1024;

/// Accepts, upgrades and echoes on one thread.
pub struct EpollServer {
    epoll: OwnedFd,
    listener: TcpListener,
    events: Vec<epoll::Event>,
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
        let listener = TcpListener::bind(address)?;
        rustix::net::listen(&listener, 65_535)?;
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &listener,
            epoll::EventData::new_u64(LISTENER),
            epoll::EventFlags::IN,
        )?;
        Ok(Self {
            epoll,
            listener,
            events: Vec::with_capacity(EVENT_COUNT_MAX),
            buffer: vec![0; BUFFER_BYTES],
            answer: Vec::new(),
            connections: Vec::new(),
            upgraded_count: 0,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
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
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            match event.data.u64() {
                LISTENER => self.accept()?,
                index => self.serve(index as usize),
            }
        }
        self.events = events;
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..EVENT_COUNT_MAX {
            let socket =
                match accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                    Ok(socket) => socket,
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => continue,
                    Err(error) => return Err(error.into()),
                };
            set_tcp_nodelay(&socket, true)?;
            let index = socket.as_raw_fd() as usize;
            epoll::add(
                &self.epoll,
                &socket,
                epoll::EventData::new_u64(index as u64),
                epoll::EventFlags::IN,
            )?;
            if self.connections.len() <= index {
                self.connections.resize_with(index + 1, || None);
            }
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
