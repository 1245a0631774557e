//! Both sides at one moment: what the client and the server have used so far.

use crate::clock::now_ns;
use crate::failure::Failure;
use crate::report::Report;
use crate::server::{self, Sample, Thread, Usage};

/// From this share of its processors on, a side counts as busy all the time.
const BUSY_SHARE: f64 = 0.93;
/// From this share of the time spent waiting for a processor on, the report says so.
const WAIT_SHARE: f64 = 0.05;

/// Both sides at one moment.
pub struct Meter {
    /// The moment, by [`now_ns`].
    pub at_ns: u64,
    threads: Vec<Thread>,
    /// The server.
    pub server: Option<Sample>,
}

impl Meter {
    /// Looks at both.
    ///
    /// # Errors
    /// When the server cannot be looked at.
    pub fn now(server_pid: Option<u32>) -> Result<Self, Failure> {
        Ok(Self {
            threads: server::threads(std::process::id()),
            server: server_pid.map(server::sample).transpose()?,
            at_ns: now_ns(),
        })
    }

    fn client_cpu_ns(&self) -> u64 {
        self.threads.iter().map(|thread| thread.cpu_ns).sum()
    }

    /// Reports what both sides used from `self` to `after`, for `count` things named `per`.
    pub fn report(
        &self,
        after: &Self,
        per: &str,
        count: u64,
        client_core_count: f64,
        report: &mut Report,
    ) {
        let seconds = (after.at_ns - self.at_ns) as f64 / 1e9;
        let client_cpu_us = after.client_cpu_ns().saturating_sub(self.client_cpu_ns()) as f64 / 1e3;
        if let (Some(before), Some(after)) = (&self.server, &after.server) {
            report.server(before, after, per, count);
        }
        if count > 0 {
            report.figure(
                &format!("client_cpu_us_per_{per}"),
                client_cpu_us / count as f64,
            );
        }
        let client_share = client_cpu_us / 1e6 / seconds.max(1e-9) / client_core_count;
        report.figure("client_cpu_share", client_share);
        let (busiest, client_wait) = server::busiest(&self.threads, &after.threads, seconds);
        report.figure("client_busiest_thread_share", busiest);
        report.figure("client_waited_share", client_wait);
        let (server_share, server_wait) = match (&self.server, &after.server) {
            (Some(before), Some(after)) => {
                let usage = Usage::between(before, after);
                (usage.busiest_share, usage.wait_share)
            }
            _ => (0.0, 0.0),
        };
        let client_share = client_share.max(busiest);
        if server_share >= BUSY_SHARE && server_share >= client_share {
            report.note("a server thread was busy all the time: the rate is the server's limit");
        } else if client_share >= BUSY_SHARE {
            report.note("the client was the limit: rates are what it can ask, latencies include its own delay");
        }
        let wait = client_wait.max(server_wait);
        if wait >= WAIT_SHARE {
            report.note(format!(
                "others had the processors for {:.0}% of the time in which client or server could have run: \
                 rates and latencies are lower and higher than on a machine of their own",
                wait * 100.0
            ));
        }
    }
}
