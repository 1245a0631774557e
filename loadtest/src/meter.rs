//! Both sides at one moment: what the client and the server have used so far.

use crate::clock::now_ns;
use crate::failure::Failure;
use crate::report::Report;
use crate::server::{Sample, Servers, Thread, Usage, busiest, report_usage, threads};

/// What the names of the threads that load a server begin with.
pub const WORKER_NAME: &str = "load-";
/// From this share of its processors on, a side counts as busy all the time.
const BUSY_SHARE: f64 = 0.93;
/// From this share of the time spent waiting for a processor on, the report says so.
const WAIT_SHARE: f64 = 0.05;

/// The threads of this process that load the server.
pub fn client_threads() -> Vec<Thread> {
    let mut threads = threads(std::process::id());
    threads.retain(|thread| {
        thread.name.starts_with(WORKER_NAME) || thread.name.starts_with("iou-wrk")
    });
    threads
}

/// Resident bytes of this process (`/proc/self/statm`, the second field); 0 when it does not tell.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1);
    let pages = pages.and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// Both sides at one moment.
pub struct Meter {
    /// The moment, by [`now_ns`].
    pub at_ns: u64,
    threads: Vec<Thread>,
    /// Resident bytes of this generator.
    pub client_rss_bytes: u64,
    /// The servers; empty when none is looked at.
    pub server: Sample,
}

impl Meter {
    /// Looks at both.
    ///
    /// # Errors
    /// When a server cannot be looked at.
    pub fn now(servers: &Servers) -> Result<Self, Failure> {
        Ok(Self {
            threads: client_threads(),
            client_rss_bytes: resident_bytes(),
            server: servers.sample()?,
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
        report_usage(&self.server, &after.server, per, count, report);
        if count > 0 {
            report.figure(
                &format!("client_cpu_us_per_{per}"),
                client_cpu_us / count as f64,
            );
        }
        let client_share = client_cpu_us / 1e6 / seconds.max(1e-9) / client_core_count;
        report.figure("client_cpu_share", client_share);
        let (client_busiest, client_wait) = busiest(&self.threads, &after.threads, seconds);
        report.figure("client_busiest_thread_share", client_busiest);
        report.figure("client_waited_share", client_wait);
        report.count("client_rss_bytes", after.client_rss_bytes);
        let usage = Usage::between(&self.server, &after.server);
        let (server_share, server_wait) = (usage.busiest_share, usage.wait_share);
        let client_share = client_share.max(client_busiest);
        report.note(if server_share >= BUSY_SHARE && server_share >= client_share {
            "a server thread was busy all the time: the rate is the server's limit"
        } else if client_share >= BUSY_SHARE {
            "the client was the limit: rates are what it can ask, latencies include its own delay"
        } else if self.server.parts.is_empty() {
            "the client was not busy all the time; whether the server was is not known (see --server-pid and --metrics)"
        } else {
            "neither side was busy all the time: the rate is what was asked for, or what the processors' other users left"
        });
        let wait = client_wait.max(server_wait);
        if wait >= WAIT_SHARE {
            report.note(format!(
                "others had the processors for {:.0}% of the time in which client or server could have run: \
                 rates and latencies are lower and higher than on a machine of their own",
                wait.min(1.0) * 100.0
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_generator_has_memory() {
        let without = resident_bytes();
        let held = vec![1_u8; 64 << 20];
        let with = resident_bytes();
        assert!(with >= without + (60 << 20), "{without} and then {with}");
        drop(held);
    }
}
