//! The way into an epoll loop: a listener in an epoll set, what is ready, and whoever comes.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt::set_tcp_nodelay};

/// What the listener's events carry; a connection's carry its index.
pub const LISTENER: u64 = u64::MAX;
/// Events of one wait at most, and connections that are accepted in one turn.
pub const EVENT_COUNT_MAX: usize = 512;

/// A listener and the epoll set that it is in.
pub struct Door {
    pub epoll: OwnedFd,
    pub listener: TcpListener,
    /// What was ready after the last wait.
    pub events: Vec<epoll::Event>,
}

impl Door {
    /// Binds `address`.
    ///
    /// # Errors
    /// What the kernel says.
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
        })
    }

    /// Waits up to `timeout` (`None`: for ever) for something to be ready.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The next who comes, in the epoll set, and the index among `connections` that is free for it: its descriptor's number.
    /// `None`: nobody waits.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn accept<C>(
        &self,
        connections: &mut Vec<Option<C>>,
    ) -> io::Result<Option<(usize, OwnedFd)>> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = loop {
            match accept_with(&self.listener, flags) {
                Ok(socket) => break socket,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => {}
                Err(error) => return Err(error.into()),
            }
        };
        set_tcp_nodelay(&socket, true)?;
        let index = socket.as_raw_fd() as usize;
        epoll::add(
            &self.epoll,
            &socket,
            epoll::EventData::new_u64(index as u64),
            epoll::EventFlags::IN,
        )?;
        if connections.len() <= index {
            connections.resize_with(index + 1, || None);
        }
        Ok(Some((index, socket)))
    }
}
