//! The bare fan-out loops: the same hot frame to every socket, so many times a second, by `write()` or io_uring.

use std::io;
use std::time::Duration;

use throng::runtime::ring::bare::{BareFanOut, BareRound};

use super::epoll::EpollServer;
use super::{FanOutArguments, wire};
use crate::clock::{now_ns, thread_cpu_ns};
use crate::stamp::Stamp;

/// How the frame reaches the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `write()`, one socket after the other.
    Write,
    /// SENDs on registered files, 256 with each `enter`.
    Uring,
}

/// Serves until `deadline_ns`: waits for all members, then sends until one of them leaves, and waits again.
///
/// The frame is stamped as publisher 0 would, anew each round, so that a client can check and time it.
pub fn serve(
    way: Way,
    arguments: &FanOutArguments,
    server: &mut EpollServer,
    deadline_ns: u64,
) -> io::Result<()> {
    let mut frame = Vec::new();
    let header_bytes = wire::start_frame(&mut frame, arguments.bytes);
    let interval_ns = (1e9 / arguments.rate) as u64;
    let mut sequence = 0;
    while now_ns() < deadline_ns {
        if server.upgraded_count() < arguments.members {
            server.turn(Some(Duration::from_millis(100)))?;
            continue;
        }
        let mut uring = match way {
            Way::Write => None,
            Way::Uring => Some(BareFanOut::new(
                &server.upgraded_sockets().collect::<Vec<_>>(),
            )?),
        };
        let mut sum = Sum::default();
        let mut due_ns = now_ns();
        while server.upgraded_count() >= arguments.members && due_ns < deadline_ns {
            let now = now_ns();
            if now < due_ns {
                server.turn(Some(Duration::from_nanos(due_ns - now)))?;
                continue;
            }
            Stamp {
                publisher: 0,
                sequence,
                due_ns,
            }
            .write(&mut frame[header_bytes..]);
            sequence += 1;
            let cpu_before_ns = thread_cpu_ns();
            let round = match &mut uring {
                Some(uring) => uring.send_round(&frame)?,
                None => write_round(server, &frame),
            };
            sum.add(round, thread_cpu_ns() - cpu_before_ns);
            server.turn(Some(Duration::ZERO))?; // who has left is noticed even when the rounds never end in time
            due_ns += interval_ns;
        }
        sum.print();
    }
    Ok(())
}

fn write_round(server: &EpollServer, frame: &[u8]) -> BareRound {
    let mut round = BareRound::default();
    for socket in server.upgraded_sockets() {
        match rustix::io::write(socket, frame) {
            Ok(written) if written == frame.len() => round.sent += 1,
            Ok(_) | Err(rustix::io::Errno::AGAIN) => round.full += 1,
            Err(_) => round.failed += 1,
        }
    }
    round
}

#[derive(Default)]
struct Sum {
    rounds: u64,
    sent: u64,
    full: u64,
    failed: u64,
    cpu_ns: u64,
}

impl Sum {
    fn add(&mut self, round: BareRound, cpu_ns: u64) {
        self.rounds += 1;
        self.sent += u64::from(round.sent);
        self.full += u64::from(round.full);
        self.failed += u64::from(round.failed);
        self.cpu_ns += cpu_ns;
    }

    fn print(&self) {
        println!(
            "{} rounds, {} sent, {} found a full socket, {} failed, {:.2} us of its own processor time a send",
            self.rounds,
            self.sent,
            self.full,
            self.failed,
            self.cpu_ns as f64 / 1_000.0 / (self.sent.max(1) as f64),
        );
    }
}
