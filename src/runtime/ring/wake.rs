//! The eventfd that wakes a sleeping core: the ring writes to it, and so may every other thread.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// Wakes the core that sleeps on a ring. Cheap to clone, usable from every thread, harmless when nobody sleeps.
#[derive(Debug, Clone)]
pub struct WakeHandle {
    fd: Arc<OwnedFd>,
}

impl WakeHandle {
    /// A handle whose eventfd nobody has written to.
    ///
    /// # Errors
    /// `EMFILE` and its like.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// Wakes the core: one `write` of 8 bytes, so send it only when a flag says that the core sleeps.
    ///
    /// A counter that is full (`EAGAIN`) is readable already; nothing else can go wrong with an eventfd of our own.
    pub fn wake(&self) {
        let _ = rustix::io::write(&*self.fd, &1u64.to_ne_bytes());
    }

    /// Makes the eventfd unreadable until the next wake-up.
    pub fn clear(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.fd, &mut count);
    }

    /// The eventfd.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

impl AsRawFd for WakeHandle {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
