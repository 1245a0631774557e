//! Both sides at one moment: what the client and the server have used so far.

use std::sync::atomic::Ordering;

use crate::client::lock;
use crate::clock::now_ns;
use crate::failure::Failure;
use crate::report::Report;
use crate::server::{Sample, Servers, Thread, Usage, busiest, report_usage, threads, used};
use crate::together::Seat;

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

/// A generator's threads, and when they were looked at.
struct Client {
    at_ns: u64,
    threads: Vec<Thread>,
}

impl Client {
    /// What it used from `self` to `after`.
    fn usage(&self, after: &Self, core_count: f64) -> ClientUsage {
        let seconds = (after.at_ns.saturating_sub(self.at_ns) as f64 / 1e9).max(1e-9);
        let cpu_ns = |threads: &[Thread]| {
            let each = threads.iter().map(|thread| thread.cpu_ns);
            each.fold(0, u64::saturating_add) // others tell theirs
        };
        let used_ns = cpu_ns(&after.threads).saturating_sub(cpu_ns(&self.threads));
        let cores_used = used_ns as f64 / 1e9 / seconds;
        let (busiest, waited) = busiest(&self.threads, &after.threads, seconds);
        let occupied_ns = used(&self.threads, &after.threads).map(|(_, cpu, wait)| cpu + wait);
        ClientUsage {
            cores_used,
            share: cores_used / core_count,
            busiest,
            waited,
            occupied: occupied_ns.max().unwrap_or(0) as f64 / 1e9 / seconds,
        }
    }

    /// See [`Meter::skip`].
    fn skip(&mut self, from: &Self, to: &Self) {
        self.at_ns += to.at_ns.saturating_sub(from.at_ns);
        skip_threads(&mut self.threads, &from.threads, &to.threads);
    }
}

/// Adds to `threads` what each used from `from` to `to`.
fn skip_threads(threads: &mut Vec<Thread>, from: &[Thread], to: &[Thread]) {
    for (thread, cpu_ns, wait_ns) in used(from, to) {
        match threads.iter_mut().find(|found| found.id == thread.id) {
            Some(found) => {
                found.cpu_ns += cpu_ns;
                found.wait_ns += wait_ns;
            }
            None => threads.push(Thread {
                cpu_ns,
                wait_ns,
                ..thread.clone()
            }),
        }
    }
}

/// Adds to a counter what it rose by from `from` to `to`, where all three are told.
fn skip_count(counter: &mut Option<u64>, from: Option<u64>, to: Option<u64>) {
    if let (Some(counter), Some(from), Some(to)) = (counter, from, to) {
        *counter += to.saturating_sub(from);
    }
}

/// What a generator used of its processors.
struct ClientUsage {
    cores_used: f64,
    /// Of those that it may use.
    share: f64,
    /// The busiest thread by wall time.
    busiest: f64,
    /// The most that a thread waited for its processor while others had it, by wall time.
    waited: f64,
    /// The most that a thread ran or waited for its processor, by wall time: from 1 on it had no time left.
    occupied: f64,
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
    /// Each generator, this process first.
    clients: Vec<Client>,
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
    pub fn now(servers: &Servers, seats: &[Seat]) -> Result<Self, Failure> {
        let mut clients = vec![Client {
            at_ns: now_ns(),
            threads: client_threads(),
        }];
        for shared in seats.iter().skip(1).flat_map(|seat| &seat.shared) {
            let threads = lock(&shared.threads);
            clients.push(Client {
                at_ns: shared.threads_at_ns.load(Ordering::Relaxed),
                threads: threads.clone(),
            });
        }
        Ok(Self {
            clients,
            client_rss_bytes: resident_bytes(),
            server: servers.sample()?,
            at_ns: now_ns(),
        })
    }

    /// Has what both sides used from `from` to `to`, and the time between them, count as used before `self`: what is between
    /// `self` and a later moment is then without it.
    pub fn skip(&mut self, from: &Self, to: &Self) {
        self.at_ns += to.at_ns.saturating_sub(from.at_ns);
        for (client, (from, to)) in self
            .clients
            .iter_mut()
            .zip(from.clients.iter().zip(&to.clients))
        {
            client.skip(from, to);
        }
        for part in &mut self.server.parts {
            let of = |sample: &Sample| sample.parts.iter().position(|of| of.name == part.name);
            let (Some(from_index), Some(to_index)) = (of(&from.server), of(&to.server)) else {
                continue;
            };
            let (from, to) = (&from.server.parts[from_index], &to.server.parts[to_index]);
            part.at_ns += to.at_ns.saturating_sub(from.at_ns);
            skip_count(&mut part.cpu_ns, from.cpu_ns, to.cpu_ns);
            skip_count(&mut part.user_ns, from.user_ns, to.user_ns);
            skip_count(&mut part.system_ns, from.system_ns, to.system_ns);
            skip_threads(&mut part.threads, &from.threads, &to.threads);
        }
    }

    /// Reports what both sides used from `self` to `after`, for `count` things named `per`. `seats` are those that it was
    /// made with.
    pub fn report(&self, after: &Self, per: &str, count: u64, seats: &[Seat], report: &mut Report) {
        let seconds = (after.at_ns - self.at_ns) as f64 / 1e9;
        let usages: Vec<(&Seat, ClientUsage)> = (seats.iter())
            .zip(self.clients.iter().zip(&after.clients))
            .map(|(seat, (before, after))| (seat, before.usage(after, seat.core_count)))
            .collect();
        let most = |of: fn(&ClientUsage) -> f64| {
            let each = usages.iter().map(|(_, usage)| of(usage));
            each.fold(0.0, f64::max)
        };
        let cores_used: f64 = usages.iter().map(|(_, usage)| usage.cores_used).sum();
        let client_core_count: f64 = seats.iter().map(|seat| seat.core_count).sum();
        let client_cpu_us = cores_used * seconds * 1e6;
        report_usage(&self.server, &after.server, per, count, report);
        if count > 0 {
            report.figure(
                &format!("client_cpu_us_per_{per}"),
                client_cpu_us / count as f64,
            );
        }
        report.figure("client_cpu_share", cores_used / client_core_count);
        if usages.len() > 1 {
            for (seat, usage) in &usages {
                report.figure(&format!("client_{}_cpu_share", seat.name), usage.share);
            }
        }
        let client_busiest = most(|usage| usage.busiest);
        let client_wait = most(|usage| usage.waited);
        report.figure("client_busiest_thread_share", client_busiest);
        report.figure("client_waited_share", client_wait);
        report.figure("client_occupied_share", most(|usage| usage.occupied));
        report.count("client_rss_bytes", after.client_rss_bytes);
        let usage = Usage::between(&self.server, &after.server);
        let (server_share, server_wait) = (usage.busiest_share, usage.wait_share);
        let client_share = most(|usage| usage.share.max(usage.busiest));
        report.note(if server_share >= BUSY_SHARE && server_share >= client_share {
            "a server thread was busy all the time: the rate is the server's limit"
        } else if client_share >= BUSY_SHARE {
            "the client was the limit: rates are what it can ask, latencies include its own delay"
        } else if self.server.parts.is_empty() {
            "the client was not busy all the time; whether the server was is not known (see --server-pid and --metrics)"
        } else {
            "neither side was busy all the time: the rate is what was asked for, or what the processors' other users left"
        });
        if usages.len() > 1 && client_share >= BUSY_SHARE {
            let busy = usages
                .iter()
                .filter(|(_, usage)| usage.share.max(usage.busiest) >= BUSY_SHARE);
            let names: Vec<&str> = busy.map(|(seat, _)| seat.name.as_str()).collect();
            report.note(format!(
                "the generators that were busy all the time: {}",
                names.join(", ")
            ));
        }
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
    use crate::server::Part;

    const S: u64 = 1_000_000_000;

    /// A generator with two threads, and a server with one.
    fn meter(at_s: u64, cpu_s: [u64; 2], wait_s: [u64; 2]) -> Meter {
        let thread = |index: usize| Thread {
            id: index as u32,
            name: format!("load-{index}"),
            cpu_ns: cpu_s[index] * S,
            wait_ns: wait_s[index] * S,
        };
        let mut part = Part::default();
        part.name = "7".into();
        part.at_ns = at_s * S;
        part.cpu_ns = Some(cpu_s[0] * S);
        part.threads = vec![thread(0)];
        Meter {
            at_ns: at_s * S,
            clients: vec![Client {
                at_ns: at_s * S,
                threads: vec![thread(0), thread(1)],
            }],
            client_rss_bytes: 0,
            server: Sample {
                parts: vec![part],
                ..Sample::default()
            },
        }
    }

    fn shares(before: &Meter, after: &Meter) -> Report {
        let seats = [Seat {
            name: "this".into(),
            core_count: 2.0,
            shared: Vec::new(),
        }];
        let mut report = Report::new("test");
        before.report(after, "message", 1, &seats, &mut report);
        report
    }

    #[test]
    fn rests_do_not_dilute_what_was_used_between_them() {
        let mut begin = meter(0, [0, 0], [0, 0]);
        let (rest_from, rest_to) = (meter(4, [4, 1], [0, 0]), meter(95, [5, 1], [0, 0]));
        let end = meter(99, [9, 2], [0, 0]);
        let busiest = |report: &Report| report.get("client_busiest_thread_share").unwrap();
        assert!(busiest(&shares(&begin, &end)) < 0.1, "all of it");
        begin.skip(&rest_from, &rest_to);
        let report = shares(&begin, &end);
        assert_eq!(busiest(&report), 1.0, "four seconds, and four more");
        assert_eq!(report.get("server_busiest_thread_share"), Some(1.0));
        assert_eq!(report.get("client_cpu_us_per_message"), Some(10e6));
        assert_eq!(report.get("server_cpu_us_per_message"), Some(8e6));
    }

    #[test]
    fn a_thread_is_occupied_by_its_own_waiting_and_not_by_anothers() {
        let report = shares(&meter(0, [0, 0], [0, 0]), &meter(10, [6, 1], [1, 5]));
        let share = |name| report.get(name).unwrap();
        assert_eq!(share("client_busiest_thread_share"), 0.6);
        assert_eq!(share("client_waited_share"), 0.5);
        assert_eq!(share("client_occupied_share"), 0.7);
    }

    #[test]
    fn this_generator_has_memory() {
        let without = resident_bytes();
        let held = vec![1_u8; 64 << 20];
        let with = resident_bytes();
        assert!(with >= without + (60 << 20), "{without} and then {with}");
        drop(held);
    }
}
