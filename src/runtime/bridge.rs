//! The bridge: waits for a ring's eventfd inside a glommio executor.
//!
//! glommio has no public "wait for this descriptor". But a `TcpStream` made of a descriptor asks for readiness as it is
//! made, whatever the descriptor is, and its first read stays pending until then. That read then fails, as an
//! eventfd is no socket (`ENOTSOCK`): the failure is the wake-up. (The ring's own descriptor would not do: with deferred task
//! work it becomes readable only once somebody enters the ring.)
#![allow(unsafe_code)]

use std::future::poll_fn;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::time::Duration;

use futures_lite::AsyncRead;
use glommio::net::TcpStream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How often a core that has no descriptor left to wait with looks for itself.
pub const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// How long a nap lasts at most.
pub const NAP: Duration = Duration::from_millis(1);

/// Waits for an eventfd on behalf of one task.
#[derive(Debug)]
pub struct Bridge {
    fd: OwnedFd,
}

impl Bridge {
    /// A bridge to `wake_fd`, which it duplicates.
    ///
    /// # Errors
    /// `EMFILE` and its like.
    pub fn new(wake_fd: &OwnedFd) -> io::Result<Self> {
        Ok(Self {
            fd: wake_fd.try_clone()?,
        })
    }

    /// Blocks the thread until the eventfd is readable, `limit` and [`NAP`] at most. Whether it is.
    ///
    /// For short rests: a nap is one `poll`, where a sleep and its wake-up through the executor took 10.5 µs of processor
    /// time (`cargo bench --bench ring`; what a nap takes was not measured by itself).
    /// Nothing else on the executor runs meanwhile, so the nap is short.
    #[must_use]
    pub fn nap(&self, limit: Duration) -> bool {
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: limit.min(NAP).subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
    }

    /// Waits until the eventfd is readable; at once if it is. Does not empty it: that is [`super::ring::Ring::awake`]'s.
    ///
    /// It may come back without cause. Without a descriptor to spare it comes back after [`POLL_INTERVAL`].
    pub async fn woken(&mut self) {
        let Ok(fd) = self.fd.try_clone() else {
            return glommio::timer::sleep(POLL_INTERVAL).await;
        };
        // SAFETY: the descriptor was just duplicated and released, so the stream is its only owner.
        // JUSTIFICATION: `FromRawFd` is the only way to glommio's reactor for a descriptor that is not its own.
        let mut stream = unsafe { TcpStream::from_raw_fd(fd.into_raw_fd()) };
        let mut nothing = [0; 1];
        // The first answer is readiness, whatever it says.
        poll_fn(|context| {
            Pin::new(&mut stream)
                .poll_read(context, &mut nothing)
                .map(|_| ())
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream as Client};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, mpsc};
    use std::thread;

    use glommio::LocalExecutor;

    use super::super::ring::{Descriptors, Event, Options, Ring};
    use super::*;

    fn ring() -> Ring {
        Ring::new(&Options {
            descriptors: Descriptors::Auto,
            socket_count_max: 64,
            submission_entries: 64,
            completion_entries: 256,
            receive_buffer_bytes: 1024,
            receive_buffer_count: 16,
        })
        .unwrap()
    }

    async fn sleep(ring: &mut Ring, bridge: &mut Bridge) {
        if ring.prepare_sleep() {
            bridge.woken().await;
        }
        ring.awake();
    }

    #[test]
    fn a_nap_ends_with_a_wake_up_or_by_itself() {
        let wake = super::super::ring::WakeHandle::new().unwrap();
        let bridge = Bridge::new(wake.fd()).unwrap();
        assert!(!bridge.nap(NAP), "nobody woke it");
        wake.wake();
        assert!(bridge.nap(NAP));
        wake.clear();
        assert!(!bridge.nap(NAP));
    }

    #[test]
    fn another_thread_wakes_a_sleeping_task_and_no_wake_is_lost() {
        const ROUNDS: u32 = 10_000;
        LocalExecutor::default().run(async {
            let mut ring = ring();
            let mut bridge = Bridge::new(ring.wake_fd()).unwrap();
            let asked = Arc::new(AtomicU32::new(0));
            let (answers, answered) = mpsc::channel();
            let waker = thread::spawn({
                let (asked, wake) = (Arc::clone(&asked), ring.wake_handle());
                move || {
                    for round in 1..=ROUNDS {
                        asked.store(round, Ordering::Release);
                        wake.wake();
                        assert_eq!(
                            answered.recv_timeout(Duration::from_secs(10)),
                            Ok(round),
                            "a wake-up was lost"
                        );
                    }
                }
            });
            let mut seen = 0;
            while seen < ROUNDS {
                let now = asked.load(Ordering::Acquire);
                if now > seen {
                    seen = now;
                    answers.send(seen).unwrap();
                } else {
                    sleep(&mut ring, &mut bridge).await;
                }
            }
            waker.join().unwrap();
        });
    }

    #[test]
    fn a_completion_wakes_a_sleeping_task_every_time() {
        const ROUNDS: u32 = 10_000;
        LocalExecutor::default().run(async {
            let mut ring = ring();
            let mut bridge = Bridge::new(ring.wake_fd()).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            ring.listen(listener.into());
            let client = thread::spawn(move || {
                use std::io::{Read, Write};
                let mut client = Client::connect(address).unwrap();
                client.set_nodelay(true).unwrap();
                client
                    .set_read_timeout(Some(Duration::from_secs(10)))
                    .unwrap();
                for round in 0..ROUNDS {
                    client.write_all(&round.to_ne_bytes()).unwrap();
                    let mut echo = [0; 4];
                    client.read_exact(&mut echo).expect("a wake-up was lost");
                    assert_eq!(u32::from_ne_bytes(echo), round);
                }
            });
            let mut echoes = Vec::new();
            'open: loop {
                while let Some(event) = ring.next_event() {
                    match event {
                        Event::Accepted { token, .. } => ring.receive(token),
                        Event::Received { token, bytes } => echoes.push((token, bytes.to_vec())),
                        Event::ReceiveEnded { .. } => break 'open,
                        _ => {}
                    }
                }
                for (token, bytes) in echoes.drain(..) {
                    ring.send(
                        token,
                        &[crate::protocol::Piece::whole(
                            crate::protocol::Encoded::new(bytes),
                        )],
                    );
                }
                sleep(&mut ring, &mut bridge).await;
            }
            client.join().unwrap();
        });
    }
}
