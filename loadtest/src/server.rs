//! The server beside the client: what `/proc` says of its processor time and memory, before and after.

use std::fs;

use serde::Serialize;

use crate::clock::now_ns;
use crate::failure::Failure;

/// What a process, and the kernel for everybody's sockets, used up to one moment.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sample {
    /// [`now_ns`] of it.
    pub at_ns: u64,
    /// Processor time, nanoseconds: the threads' `schedstat`, which is exact where `stat` counts in 10 ms.
    pub cpu_ns: u64,
    /// User time of all threads, `/proc/PID/stat`, clock ticks.
    pub user_ticks: u64,
    /// System time of all threads, `/proc/PID/stat`, clock ticks.
    pub system_ticks: u64,
    /// Each thread's id, name, and processor time in nanoseconds.
    pub threads: Vec<(u32, String, u64)>,
    /// Resident bytes.
    pub rss_bytes: u64,
    /// Proportional resident bytes: shared pages divided by their users.
    pub pss_bytes: u64,
    /// Anonymous bytes: heap and stacks, no file.
    pub anonymous_bytes: u64,
    /// Open descriptors in the process's table.
    pub descriptor_count: u64,
    /// TCP sockets in the kernel's books, all processes.
    pub tcp_socket_count: u64,
    /// Bytes queued in TCP sockets, all processes.
    pub tcp_memory_bytes: u64,
    /// The kernel's slab memory, all of it.
    pub slab_bytes: u64,
}

/// Reads a sample of process `pid`.
///
/// # Errors
/// When there is no such process, or it may not be looked at.
pub fn sample(pid: u32) -> Result<Sample, Failure> {
    let read = |path: &str| {
        fs::read_to_string(path)
            .map_err(|error| Failure::Usage(format!("--server-pid {pid}: {path}: {error}")))
    };
    let stat = read(&format!("/proc/{pid}/stat"))?;
    let (user_ticks, system_ticks) = stat_times(&stat).unwrap_or_default();
    let mut sample = Sample {
        at_ns: now_ns(),
        user_ticks,
        system_ticks,
        ..Sample::default()
    };
    if let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) {
        for task in tasks.flatten() {
            let path = task.path();
            let Some(id) = path
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok())
            else {
                continue;
            };
            let Ok(schedstat) = fs::read_to_string(path.join("schedstat")) else {
                continue;
            }; // it has ended
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            let cpu_ns = schedstat
                .split_whitespace()
                .next()
                .and_then(|field| field.parse().ok())
                .unwrap_or(0);
            sample.cpu_ns += cpu_ns;
            sample.threads.push((id, name.trim().to_owned(), cpu_ns));
        }
    }
    let rollup = read(&format!("/proc/{pid}/smaps_rollup"))?;
    sample.rss_bytes = kib_field(&rollup, "Rss:");
    sample.pss_bytes = kib_field(&rollup, "Pss:");
    sample.anonymous_bytes = kib_field(&rollup, "Anonymous:");
    sample.descriptor_count =
        fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |list| list.count() as u64);
    let sockstat = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    if let Some(line) = sockstat.lines().find(|line| line.starts_with("TCP:")) {
        let field = |name: &str| {
            let mut words = line.split_whitespace();
            words.find(|word| *word == name)?;
            words.next()?.parse::<u64>().ok()
        };
        sample.tcp_socket_count = field("alloc").unwrap_or(0);
        sample.tcp_memory_bytes = field("mem").unwrap_or(0) * rustix::param::page_size() as u64;
    }
    sample.slab_bytes = kib_field(
        &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
        "Slab:",
    );
    Ok(sample)
}

/// Fields 14 and 15 of `/proc/PID/stat`. The command's name may hold spaces and brackets: count from its end.
fn stat_times(stat: &str) -> Option<(u64, u64)> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn kib_field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// What was used between two samples.
#[derive(Debug, Clone, Serialize)]
pub struct Usage {
    /// Wall time between them, seconds.
    pub seconds: f64,
    /// Processor time, microseconds.
    pub cpu_us: f64,
    /// The user part of it, 0 to 1.
    pub user_share: f64,
    /// Processor time of the busiest thread by wall time: 1 is a full core.
    pub busiest_share: f64,
}

impl Usage {
    /// From `before` to `after`.
    pub fn between(before: &Sample, after: &Sample) -> Self {
        let seconds = after.at_ns.saturating_sub(before.at_ns) as f64 / 1e9;
        let user = after.user_ticks.saturating_sub(before.user_ticks) as f64;
        let system = after.system_ticks.saturating_sub(before.system_ticks) as f64;
        let busiest_ns = after.threads.iter().map(|(id, _, cpu_ns)| {
            let earlier = before
                .threads
                .iter()
                .find(|(earlier_id, ..)| earlier_id == id)
                .map_or(0, |found| found.2);
            cpu_ns.saturating_sub(earlier)
        });
        Self {
            seconds,
            cpu_us: after.cpu_ns.saturating_sub(before.cpu_ns) as f64 / 1e3,
            user_share: user / (user + system).max(1.0),
            busiest_share: busiest_ns.max().unwrap_or(0) as f64 / 1e9 / seconds.max(1e-9),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_a_hostile_command_name() {
        let stat = "17 (a) b) (c) S 1 17 17 0 -1 4194560 1 2 3 4 55 66 7 8 20 0 3 0 100";
        assert_eq!(stat_times(stat), Some((55, 66)));
        assert_eq!(stat_times("17 (a"), None);
    }

    #[test]
    fn this_process_uses_time_and_memory() {
        let pid = std::process::id();
        let before = sample(pid).unwrap();
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 60 {
            std::hint::black_box(now_ns());
        }
        let after = sample(pid).unwrap();
        let usage = Usage::between(&before, &after);
        assert!(usage.cpu_us > 1_000.0, "{usage:?}");
        assert!(
            usage.busiest_share > 0.01 && usage.busiest_share < 1.5,
            "{usage:?}"
        );
        assert!(before.rss_bytes > 100_000 && before.descriptor_count > 2);
        assert!(sample(u32::MAX).is_err());
    }
}
