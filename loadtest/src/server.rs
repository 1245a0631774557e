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
    /// Each thread.
    pub threads: Vec<Thread>,
    /// Resident bytes.
    pub rss_bytes: u64,
    /// The most resident bytes since the process began.
    pub rss_peak_bytes: u64,
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

/// What a thread used up to one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Thread {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Processor time, nanoseconds.
    pub cpu_ns: u64,
    /// Time for which it could have run, but others had its processor, nanoseconds.
    pub wait_ns: u64,
}

/// The threads of process `pid` now, by their `schedstat`.
pub fn threads(pid: u32) -> Vec<Thread> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let read = |path: std::path::PathBuf| {
        let id = path.file_name()?.to_str()?.parse().ok()?;
        let schedstat = fs::read_to_string(path.join("schedstat")).ok()?; // gone when the thread has ended
        let mut fields = schedstat
            .split_whitespace()
            .map_while(|field| field.parse().ok());
        let name = fs::read_to_string(path.join("comm"))
            .unwrap_or_default()
            .trim()
            .to_owned();
        Some(Thread {
            id,
            name,
            cpu_ns: fields.next()?,
            wait_ns: fields.next()?,
        })
    };
    tasks
        .flatten()
        .filter_map(|task| read(task.path()))
        .collect()
}

/// The most that one thread ran, and the most that one thread waited for its processor, each as a share of `seconds`.
pub fn busiest(before: &[Thread], after: &[Thread], seconds: f64) -> (f64, f64) {
    let mut most = (0, 0);
    for thread in after {
        let earlier = before
            .iter()
            .find(|earlier| earlier.id == thread.id)
            .map_or((0, 0), |found| (found.cpu_ns, found.wait_ns));
        most.0 = most.0.max(thread.cpu_ns.saturating_sub(earlier.0));
        most.1 = most.1.max(thread.wait_ns.saturating_sub(earlier.1));
    }
    let share = |ns: u64| ns as f64 / 1e9 / seconds.max(1e-9);
    (share(most.0), share(most.1))
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
    sample.threads = threads(pid);
    sample.cpu_ns = sample.threads.iter().map(|thread| thread.cpu_ns).sum();
    let rollup = read(&format!("/proc/{pid}/smaps_rollup"))?;
    sample.rss_peak_bytes = kib_field(&read(&format!("/proc/{pid}/status"))?, "VmHWM:");
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
    /// The most that a thread waited for its processor while others had it, by wall time.
    pub wait_share: f64,
}

impl Usage {
    /// From `before` to `after`.
    pub fn between(before: &Sample, after: &Sample) -> Self {
        let seconds = after.at_ns.saturating_sub(before.at_ns) as f64 / 1e9;
        let user = after.user_ticks.saturating_sub(before.user_ticks) as f64;
        let system = after.system_ticks.saturating_sub(before.system_ticks) as f64;
        let (busiest_share, wait_share) = busiest(&before.threads, &after.threads, seconds);
        Self {
            seconds,
            cpu_us: after.cpu_ns.saturating_sub(before.cpu_ns) as f64 / 1e3,
            user_share: user / (user + system).max(1.0),
            busiest_share,
            wait_share,
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
