//! The bare floor of a fan-out: one SEND per socket on registered files, batched, and nothing else.
//!
//! Not used by the server. The load generator runs it beside the server, because "how many processor microseconds
//! a delivery" means little without what the kernel alone takes for the same sends in the same minute.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, types};

/// Sends submitted with one `enter`.
const BATCH_COUNT_MAX: u32 = 256;

/// A ring that sends the same bytes to all of its sockets.
pub struct BareFanOut {
    ring: IoUring,
    /// What is being sent. Owned, so that the kernel never reads memory that a caller could free.
    frame: Vec<u8>,
    socket_count: u32,
    in_flight: u32,
}

/// What became of one round of sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BareRound {
    /// The kernel took the whole frame.
    pub sent: u32,
    /// The socket's send buffer was full (`EAGAIN`), or took a part only.
    pub full: u32,
    /// Any other error: the peer is gone.
    pub failed: u32,
}

impl BareFanOut {
    /// Sets a ring up on this thread and registers `sockets` with it; the ring keeps them open.
    ///
    /// # Errors
    /// What the kernel answered: no io_uring here, or more sockets than the open-file limit.
    pub fn new(sockets: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(BATCH_COUNT_MAX * 2)
            .build(BATCH_COUNT_MAX)?;
        let descriptors: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        ring.submitter().register_files(&descriptors)?;
        let socket_count = u32::try_from(sockets.len()).map_err(io::Error::other)?;
        Ok(Self {
            ring,
            frame: Vec::new(),
            socket_count,
            in_flight: 0,
        })
    }

    /// Sends `frame` once to every socket, and returns when the kernel has answered all of it.
    ///
    /// # Errors
    /// When `enter` fails; no send is in flight then.
    pub fn send_round(&mut self, frame: &[u8]) -> io::Result<BareRound> {
        assert_eq!(
            self.in_flight, 0,
            "a round ends when its last completion is reaped"
        );
        self.frame.clear();
        self.frame.extend_from_slice(frame);
        let mut round = BareRound::default();
        let mut slot_next = 0;
        while slot_next < self.socket_count {
            let slot_end = self.socket_count.min(slot_next + BATCH_COUNT_MAX);
            self.push(slot_next..slot_end);
            slot_next = slot_end;
            while self.in_flight > 0 {
                match self.ring.submit_and_wait(self.in_flight as usize) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        // The kernel may still read the frame: it is never freed.
                        std::mem::forget(std::mem::take(&mut self.frame));
                        self.in_flight = 0;
                        return Err(error);
                    }
                }
                self.reap(&mut round);
            }
        }
        Ok(round)
    }

    fn push(&mut self, slots: std::ops::Range<u32>) {
        let bytes = u32::try_from(self.frame.len()).expect("a frame is far below 4 GiB");
        let mut queue = self.ring.submission();
        for slot in slots {
            let entry = opcode::Send::new(types::Fixed(slot), self.frame.as_ptr(), bytes)
                .flags(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
                .build();
            // SAFETY: `frame` is not touched until `in_flight` is 0 again; should it never be (an `enter` that
            // fails), it is leaked. The slot is below `socket_count`, all of which are registered.
            // JUSTIFICATION: submission entries have no safe form in the io-uring crate.
            unsafe {
                queue.push(&entry).expect("a batch fits the empty queue");
            }
            self.in_flight += 1;
        }
    }

    fn reap(&mut self, round: &mut BareRound) {
        for completion in self.ring.completion() {
            self.in_flight -= 1;
            match completion.result() {
                sent if sent >= 0 && sent.unsigned_abs() as usize == self.frame.len() => {
                    round.sent += 1
                }
                sent if sent >= 0 || sent == -libc::EAGAIN => round.full += 1,
                _ => round.failed += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn a_round_reaches_every_socket_and_counts_the_full_and_the_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut clients = Vec::new();
        let mut servers = Vec::new();
        for _ in 0..BATCH_COUNT_MAX + 3 {
            clients.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            servers.push(listener.accept().unwrap().0);
        }
        let borrowed: Vec<_> = servers.iter().map(AsFd::as_fd).collect();
        let mut fan_out = BareFanOut::new(&borrowed).unwrap();
        let all = BATCH_COUNT_MAX + 3;
        assert_eq!(
            fan_out.send_round(b"hello").unwrap(),
            BareRound {
                sent: all,
                full: 0,
                failed: 0
            }
        );
        for client in &mut clients {
            let mut bytes = [0; 5];
            client.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"hello");
        }

        servers[0].shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(
            fan_out.send_round(b"again").unwrap(),
            BareRound {
                sent: all - 1,
                full: 0,
                failed: 1
            }
        );

        let big = vec![b'x'; 256 * 1024];
        let full = (0..64).any(|_| fan_out.send_round(&big).unwrap().full > 0);
        assert!(full, "nobody reads, so send buffers fill");
    }
}
