//! Whether this kernel lets go of a direct descriptor when it is closed.
//!
//! Before Linux 6.13 a ring frees what leaves its file table strictly in order: a request that was begun earlier, on whatever
//! other descriptor, holds up everything that is closed after it. A server's receives last as long as its connections,
//! so that every socket closed since the oldest of them began stays in the kernel, some 4 KB each, without bound.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};

/// How long a closed descriptor may take to be gone. It is gone at once, or not before the other request ends.
const PATIENCE: Duration = Duration::from_millis(50);

/// Whether a direct descriptor is gone once it is closed, while an earlier request waits on another one. Tried out the
/// first time it is asked for; true where it cannot be tried, since then there are no direct descriptors either.
#[must_use]
pub fn direct_descriptors_freed() -> bool {
    static FREED: OnceLock<bool> = OnceLock::new();
    *FREED.get_or_init(|| freed_at_once().unwrap_or(true))
}

/// Waits on one end of a pair of sockets, closes one of another pair, and looks whether its peer sees the end.
fn freed_at_once() -> io::Result<bool> {
    let mut ring = IoUring::new(4)?;
    let (waiting, _waiting_peer) = UnixStream::pair()?;
    let (closed, mut closed_peer) = UnixStream::pair()?;
    ring.submitter()
        .register_files(&[waiting.as_raw_fd(), closed.as_raw_fd()])?;
    drop((waiting, closed)); // the ring's table alone holds them now
    let wait = opcode::PollAdd::new(types::Fixed(0), libc::POLLIN as u32).build();
    let close = opcode::Close::new(types::Fixed(1)).build();
    push(&mut ring, &wait)?;
    ring.submit()?;
    push(&mut ring, &close)?;
    ring.submit_and_wait(1)?;
    closed_peer.set_read_timeout(Some(PATIENCE))?;
    Ok(matches!(closed_peer.read(&mut [0]), Ok(0)))
}

fn push(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    // SAFETY: neither a poll nor a close names memory.
    // JUSTIFICATION: only the ring can close what is in its table.
    unsafe { ring.submission().push(entry) }
        .map_err(|_| io::Error::other("the submission queue is full"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_is_as_its_version_says() {
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let mut numbers = release.split(|character: char| !character.is_ascii_digit());
        let mut next = || numbers.next()?.parse::<u32>().ok();
        let Some(version) = next().zip(next()) else {
            return;
        };
        if version >= (6, 13) {
            assert!(freed_at_once().unwrap(), "{release}");
        }
        assert_eq!(direct_descriptors_freed(), freed_at_once().unwrap());
    }
}
