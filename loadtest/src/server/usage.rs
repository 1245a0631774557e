//! What the servers used between two samples, as figures of a report.
//!
//! A figure without a server's name is of all servers together: the sum, and the maximum of what is "busiest" or "waited". It
//! is there only if every server tells its part, so that a sum never is of some. With several servers, each one's own
//! follows, with its name.

use std::collections::BTreeMap;

use super::process::{busiest, tick_ns, used};
use super::{Part, Sample, metrics};
use crate::report::Report;

/// So many threads are shown, the busiest.
const THREADS_SHOWN_MAX: usize = 8;
/// From this share of a processor on, a thread is worth a figure.
const THREAD_SHARE_MIN: f64 = 0.01;
/// The user and system times of a process are each short of the truth by less than a tick: their rise is too much by less
/// than this many.
const TICKS_TOO_MANY: u64 = 2;

/// What was used between two samples by all servers together. What none tells is 0.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Wall time between them, seconds.
    pub seconds: f64,
    /// Processor time, microseconds.
    pub cpu_us: f64,
    /// Processor time by wall time: 1 is a full core.
    pub cores: f64,
    /// The user part of the processor time, 0 to 1.
    pub user_share: f64,
    /// Processor time of the busiest thread by wall time: 1 is a full core.
    pub busiest_share: f64,
    /// The most that a thread waited for its processor while others had it, by wall time.
    pub wait_share: f64,
}

impl Usage {
    /// From `before` to `after`.
    pub fn between(before: &Sample, after: &Sample) -> Self {
        Self::of(&pairs(before, after))
    }

    fn of(pairs: &[Pair<'_>]) -> Self {
        let mut usage = Self::default();
        let (mut user_ns, mut split_ns) = (0, 0);
        for (before, after) in pairs {
            let seconds = after.at_ns.saturating_sub(before.at_ns) as f64 / 1e9;
            let cpu_us = cpu_ns(before, after).unwrap_or(0) as f64 / 1e3;
            usage.seconds = usage.seconds.max(seconds);
            usage.cpu_us += cpu_us;
            usage.cores += cpu_us / 1e6 / seconds.max(1e-9);
            let user = rise(before.user_ns, after.user_ns).unwrap_or(0);
            user_ns += user;
            split_ns += user + rise(before.system_ns, after.system_ns).unwrap_or(0);
            let (cpu, wait) = busiest(&before.threads, &after.threads, seconds);
            usage.busiest_share = usage.busiest_share.max(cpu);
            usage.wait_share = usage.wait_share.max(wait);
        }
        usage.user_share = user_ns as f64 / split_ns.max(1) as f64;
        usage
    }
}

/// A server before and after.
type Pair<'a> = (&'a Part, &'a Part);

fn pairs<'a>(before: &'a Sample, after: &'a Sample) -> Vec<Pair<'a>> {
    let before_of = |part: &Part| before.parts.iter().find(|before| before.name == part.name);
    let parts = after.parts.iter();
    parts
        .filter_map(|part| Some((before_of(part)?, part)))
        .collect()
}

/// What a counter rose by. One that counts less than before has started anew.
fn rise(before: Option<u64>, after: Option<u64>) -> Option<u64> {
    let (before, after) = (before?, after?);
    Some(after.checked_sub(before).unwrap_or(after))
}

/// A server's processor time. That of its threads is exact, but does not know of threads that ended meanwhile; that of the
/// process does, but counts in ticks: the larger of what either is sure of is the nearer to the truth.
fn cpu_ns(before: &Part, after: &Part) -> Option<u64> {
    let whole_ns = rise(before.cpu_ns, after.cpu_ns)?;
    if after.threads.is_empty() {
        return Some(whole_ns);
    }
    let threads_ns = used(&before.threads, &after.threads)
        .map(|(_, cpu_ns, _)| cpu_ns)
        .sum::<u64>();
    Some(threads_ns.max(whole_ns.saturating_sub(TICKS_TOO_MANY * tick_ns())))
}

/// The processor time of all servers by wall time, 1 a full core. `None` unless each of them tells it.
pub fn cores_used(before: &Sample, after: &Sample) -> Option<f64> {
    let pairs = pairs(before, after);
    let tell = |(before, after): &Pair<'_>| cpu_ns(before, after).is_some();
    (!pairs.is_empty() && pairs.iter().all(tell)).then(|| Usage::of(&pairs).cores)
}

/// Adds what the servers used, their processor time for each of `count` things named `per`, and what they tell of
/// themselves. Nothing without servers.
pub fn report_usage(before: &Sample, after: &Sample, per: &str, count: u64, report: &mut Report) {
    let pairs = pairs(before, after);
    if pairs.is_empty() {
        return;
    }
    report_servers(&pairs, "", per, count, report);
    let mut add = |name: &str, value: Option<u64>| {
        if let Some(value) = value {
            report.count(name, value);
        }
    };
    let (kernel_before, kernel) = (&before.kernel, &after.kernel);
    add("tcp_sockets_all_processes", kernel.tcp_socket_count);
    add("tcp_memory_before_bytes", kernel_before.tcp_memory_bytes);
    add("tcp_memory_after_bytes", kernel.tcp_memory_bytes);
    add("files_all_processes", kernel.file_count);
    report_threads(&pairs, report);
    if pairs.len() > 1 {
        for pair in &pairs {
            let suffix = format!("_{}", pair.1.name);
            report_servers(&[*pair], &suffix, per, count, report);
        }
    }
    for (before, after) in &pairs {
        let name = &after.name;
        if let Some(endpoint) = &after.endpoint
            && !after.threads.is_empty()
        {
            report.note(format!("the metrics of {endpoint} are server {name}'s"));
        }
        if cpu_ns(before, after).is_none() {
            report.note(format!(
                "server {name} does not tell its processor time (process_cpu_seconds_total): sums of it are left out"
            ));
        }
        if let (Some(before), Some(after)) = (before.start_unix_s, after.start_unix_s)
            && (before - after).abs() > super::SAME_START_S
        {
            report.note(format!(
                "server {name} was started anew meanwhile: its counters count from there"
            ));
        }
    }
    metrics::report(&pairs, report);
}

/// The figures of these servers together.
fn report_servers(pairs: &[Pair<'_>], suffix: &str, per: &str, count: u64, report: &mut Report) {
    let usage = Usage::of(pairs);
    let tell_cpu = pairs
        .iter()
        .all(|(before, after)| cpu_ns(before, after).is_some());
    let tell_split = pairs
        .iter()
        .all(|(before, after)| before.user_ns.is_some() && after.user_ns.is_some());
    let tell_threads = pairs.iter().all(|(_, after)| !after.threads.is_empty());
    let mut figure = |name: &str, value: f64| report.figure(&format!("{name}{suffix}"), value);
    if count > 0 && tell_cpu {
        let each = usage.cpu_us / count as f64;
        figure(&format!("server_cpu_us_per_{per}"), each);
        if tell_split {
            let user = usage.user_share;
            figure(&format!("server_user_us_per_{per}"), each * user);
            figure(&format!("server_system_us_per_{per}"), each * (1.0 - user));
        }
    }
    if tell_cpu {
        figure("server_cores_used", usage.cores);
    }
    if tell_threads {
        figure("server_busiest_thread_share", usage.busiest_share);
        figure("server_waited_share", usage.wait_share);
    }
    let total = |of: &dyn Fn(&Pair<'_>) -> Option<u64>| pairs.iter().map(of).sum::<Option<u64>>();
    for (name, value) in [
        ("server_rss_before_bytes", total(&|pair| pair.0.rss_bytes)),
        ("server_rss_after_bytes", total(&|pair| pair.1.rss_bytes)),
        (
            "server_rss_peak_bytes",
            total(&|pair| pair.1.rss_peak_bytes),
        ),
        ("server_pss_after_bytes", total(&|pair| pair.1.pss_bytes)),
        ("server_descriptors", total(&|pair| pair.1.descriptor_count)),
    ] {
        if let Some(value) = value {
            figure(name, value as f64);
        }
    }
}

/// The busiest threads of all servers, those of the same name together.
fn report_threads(pairs: &[Pair<'_>], report: &mut Report) {
    let mut shares: BTreeMap<String, f64> = BTreeMap::new();
    for (before, after) in pairs {
        let seconds = after.at_ns.saturating_sub(before.at_ns) as f64 / 1e9;
        for (thread, cpu_ns, _) in used(&before.threads, &after.threads) {
            let name = metrics::figure_name(&thread.name);
            *shares.entry(name).or_default() += cpu_ns as f64 / 1e9 / seconds.max(1e-9);
        }
    }
    let mut shares: Vec<(String, f64)> = shares
        .into_iter()
        .filter(|(_, share)| *share >= THREAD_SHARE_MIN)
        .collect();
    shares.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    for (name, share) in shares.iter().take(THREADS_SHOWN_MAX) {
        report.figure(&format!("server_thread_{name}_share"), *share);
    }
}

/// Adds bytes per connection: between the first and the last of `steps`, which are counts of open connections and what was
/// sampled with them, and from none, `begin`, to the last. Allocators grow by chunks, so that the two differ; the truth is
/// what both tell. Nothing without servers, or with fewer than two steps.
pub fn report_memory(begin: &Sample, steps: &[(u32, &Sample)], report: &mut Report) {
    if begin.parts.is_empty() {
        return;
    }
    let several = begin.parts.len() > 1;
    for (count, sample) in [(0, begin)].iter().chain(steps) {
        if let Some(bytes) = sample.total(|part| part.rss_bytes) {
            report.count(&format!("server_rss_at_{count}_bytes"), bytes);
        }
        for part in sample.parts.iter().filter(|_| several) {
            if let Some(bytes) = part.rss_bytes {
                report.count(&format!("server_rss_at_{count}_bytes_{}", part.name), bytes);
            }
        }
    }
    let [(first_count, first), .., (last_count, last)] = steps else {
        return;
    };
    let mut slope = |name: &str, from: Option<u64>, to: Option<u64>, count: u32| {
        if let (Some(from), Some(to)) = (from, to)
            && count > 0
        {
            let bytes = to as f64 - from as f64;
            report.figure(name, bytes / f64::from(count));
        }
    };
    let rss = |sample: &Sample| sample.total(|part| part.rss_bytes);
    let (none, all) = (rss(begin), rss(last));
    slope(
        "server_rss_bytes_per_connection_from_none",
        none,
        all,
        *last_count,
    );
    let count = last_count.saturating_sub(*first_count);
    slope("server_rss_bytes_per_connection", rss(first), all, count);
    let pss = |sample: &Sample| sample.total(|part| part.pss_bytes);
    slope(
        "server_pss_bytes_per_connection",
        pss(first),
        pss(last),
        count,
    );
    let anonymous = |sample: &Sample| sample.total(|part| part.anonymous_bytes);
    slope(
        "server_anonymous_bytes_per_connection",
        anonymous(first),
        anonymous(last),
        count,
    );
    let (from, to) = (&first.kernel, &last.kernel);
    for (name, from, to) in [
        ("kernel_slab", from.slab_bytes, to.slab_bytes),
        (
            "kernel_socket_slab",
            from.socket_slab_bytes(),
            to.socket_slab_bytes(),
        ),
        ("tcp_memory", from.tcp_memory_bytes, to.tcp_memory_bytes),
    ] {
        let name = format!("{name}_bytes_per_connection_both_ends");
        slope(&name, from, to, count);
    }
    for (first, last) in pairs(first, last).iter().filter(|_| several) {
        // How the connections are spread is known only where a server tells its own.
        let own = last.connection_count.zip(first.connection_count);
        let own = own.and_then(|(last, first)| u32::try_from(last.checked_sub(first)?).ok());
        let name = format!("server_rss_bytes_per_connection_{}", last.name);
        slope(&name, first.rss_bytes, last.rss_bytes, own.unwrap_or(0));
    }
    report.note(format!(
        "bytes per connection are slopes between {first_count} and {last_count} connections"
    ));
    if !to.socket_caches.is_empty() && count > 0 {
        let caches = to.socket_caches.iter().filter_map(|(name, bytes)| {
            let (_, before) = from.socket_caches.iter().find(|(found, _)| found == name)?;
            let each = (*bytes as f64 - *before as f64) / f64::from(count);
            (each.round() != 0.0).then(|| format!("{name} {each:.0}"))
        });
        report.note(format!(
            "slab bytes per connection of the caches that sockets use, all processes: {}",
            caches.collect::<Vec<_>>().join(", ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::Kernel;
    use super::super::process::Thread;
    use super::*;

    const S: u64 = 1_000_000_000;

    fn thread(id: u32, name: &str, cpu_ns: u64, wait_ns: u64) -> Thread {
        Thread {
            id,
            name: name.into(),
            cpu_ns,
            wait_ns,
        }
    }

    fn part(name: &str, at_s: u64, cpu_ns: u64, threads: Vec<Thread>) -> Part {
        Part {
            name: name.into(),
            at_ns: at_s * S,
            cpu_ns: Some(cpu_ns),
            user_ns: Some(cpu_ns / 4),
            system_ns: Some(cpu_ns - cpu_ns / 4),
            threads,
            rss_bytes: Some(1_000_000 + at_s * 100_000),
            rss_peak_bytes: Some(3_000_000),
            pss_bytes: Some(900_000 + at_s * 50_000),
            anonymous_bytes: Some(800_000 + at_s * 40_000),
            descriptor_count: Some(7),
            ..Part::default()
        }
    }

    fn sample(parts: Vec<Part>, tcp_pages: u64) -> Sample {
        let kernel = Kernel {
            tcp_socket_count: Some(2),
            tcp_memory_bytes: Some(tcp_pages * 4096),
            slab_bytes: Some(tcp_pages * 8192),
            socket_caches: vec![("TCP", tcp_pages * 1000), ("filp", 5)],
            file_count: Some(30),
        };
        Sample { parts, kernel }
    }

    fn near(report: &Report, name: &str, value: f64) {
        let found = report.get(name);
        assert!(
            found.is_some_and(|found| (found - value).abs() < 1e-6),
            "{name} is {found:?}, not {value}:\n{}",
            report.text()
        );
    }

    #[test]
    fn cores_used_are_told_only_when_every_server_tells_its_part() {
        let at = |at_s, cpu_ns| part("17", at_s, cpu_ns, Vec::new());
        let other = |at_s, cpu_ns| Part {
            name: "18".into(),
            ..at(at_s, cpu_ns)
        };
        let both = |at_s, cpu_ns| sample(vec![at(at_s, cpu_ns), other(at_s, 2 * cpu_ns)], 0);
        let alone = |at_s, cpu_ns| sample(vec![at(at_s, cpu_ns)], 0);
        assert_eq!(cores_used(&alone(10, S), &alone(12, 2 * S)), Some(0.5));
        assert_eq!(cores_used(&both(10, S), &both(12, 2 * S)), Some(1.5));
        let silent = Part {
            cpu_ns: None,
            ..other(12, 0)
        };
        let half = sample(vec![at(12, 2 * S), silent], 0);
        assert_eq!(cores_used(&both(10, S), &half), None);
        let nobody = sample(Vec::new(), 0);
        assert_eq!(cores_used(&nobody, &nobody), None);
    }

    #[test]
    fn one_server_has_the_plain_names() {
        let before = part("17", 10, S, vec![thread(1, "shard-0", S, 0)]);
        let after = part(
            "17",
            12,
            3 * S,
            vec![thread(1, "shard-0", 2 * S + S / 2, S / 2)],
        );
        let mut report = Report::new("test");
        let [before, after] = [(before, 3), (after, 8)].map(|(part, tcp)| sample(vec![part], tcp));
        report_usage(&before, &after, "message", 1000, &mut report);
        // The threads say 1.5 s, the process 2 s: a thread of 0.5 s has come and gone, but for what ticks may be wrong by.
        let cpu_us = 2e6 - 2.0 * tick_ns() as f64 / 1e3;
        near(&report, "server_cpu_us_per_message", cpu_us / 1000.0);
        near(&report, "server_user_us_per_message", cpu_us / 4000.0);
        near(
            &report,
            "server_system_us_per_message",
            cpu_us * 3.0 / 4000.0,
        );
        near(&report, "server_cores_used", cpu_us / 2e6);
        near(&report, "server_busiest_thread_share", 0.75);
        near(&report, "server_waited_share", 0.25);
        near(&report, "server_thread_shard-0_share", 0.75);
        near(&report, "server_rss_before_bytes", 2_000_000.0);
        near(&report, "server_rss_after_bytes", 2_200_000.0);
        near(&report, "server_rss_peak_bytes", 3_000_000.0);
        near(&report, "server_pss_after_bytes", 1_500_000.0);
        near(&report, "server_descriptors", 7.0);
        near(&report, "tcp_sockets_all_processes", 2.0);
        near(&report, "tcp_memory_before_bytes", 3.0 * 4096.0);
        near(&report, "tcp_memory_after_bytes", 8.0 * 4096.0);
        near(&report, "files_all_processes", 30.0);
        assert!(!report.text().contains("_17"), "{}", report.text());
    }

    #[test]
    fn exact_times_of_threads_count_where_they_are_the_larger() {
        let before = part("17", 0, S, vec![thread(1, "a", S, 0), thread(2, "b", 5, 0)]);
        let after = part(
            "17",
            1,
            S + S / 2,
            vec![thread(1, "a", S + S / 2, 0), thread(2, "b", 1005, 0)],
        );
        assert_eq!(cpu_ns(&before, &after), Some(S / 2 + 1000));
        let begun_anew = part("17", 2, S / 10, Vec::new());
        assert_eq!(cpu_ns(&after, &begun_anew), Some(S / 10));
    }

    #[test]
    fn several_servers_are_summed_and_shown_alone() {
        let side = |at_s, cpu| {
            let local = part(
                "17",
                at_s,
                cpu,
                vec![thread(1, "io", cpu, 0), thread(2, "io", cpu / 2, 0)],
            );
            let remote = part("10.0.0.1:81", at_s, cpu / 2, Vec::new());
            sample(vec![local, remote], at_s)
        };
        let (before, after) = (side(1, 0), side(2, S));
        let mut report = Report::new("test");
        report_usage(&before, &after, "message", 1_000_000, &mut report);
        near(&report, "server_cpu_us_per_message", 2.0);
        near(&report, "server_cpu_us_per_message_17", 1.5);
        near(&report, "server_cpu_us_per_message_10.0.0.1:81", 0.5);
        near(&report, "server_cores_used", 2.0);
        near(&report, "server_rss_after_bytes", 2_400_000.0);
        near(&report, "server_rss_after_bytes_17", 1_200_000.0);
        near(&report, "server_thread_io_share", 1.5);
        // The other tells no threads: the busiest of all is not known, its own is.
        assert_eq!(report.get("server_busiest_thread_share"), None);
        near(&report, "server_busiest_thread_share_17", 1.0);
    }

    #[test]
    fn a_sum_is_left_out_when_one_server_does_not_tell() {
        let side = |at_s| {
            let silent = Part {
                cpu_ns: None,
                rss_bytes: None,
                ..part("far:81", at_s, 0, Vec::new())
            };
            sample(vec![part("17", at_s, at_s * S, Vec::new()), silent], 0)
        };
        let mut report = Report::new("test");
        report_usage(&side(1), &side(2), "message", 10, &mut report);
        assert_eq!(report.get("server_cpu_us_per_message"), None);
        assert_eq!(report.get("server_rss_after_bytes"), None);
        near(&report, "server_cpu_us_per_message_17", 1e5);
        assert!(
            report.text().contains("far:81 does not tell"),
            "{}",
            report.text()
        );
    }

    #[test]
    fn hostile_names_of_threads_are_tamed_and_only_the_busiest_shown() {
        let names = [
            "a b", "a\nb", "x=<1>", "ü", "", "c", "d", "e", "f", "g", "h", "lazy",
        ];
        let threads = |scale: u64| -> Vec<Thread> {
            names
                .iter()
                .enumerate()
                .map(|(index, name)| {
                    let share = if *name == "lazy" {
                        5
                    } else {
                        500 - 10 * index as u64
                    };
                    thread(index as u32, name, share * scale * S / 1000, 0)
                })
                .collect()
        };
        let (before, after) = (part("1", 0, 0, threads(0)), part("1", 1, 9 * S, threads(1)));
        let mut report = Report::new("test");
        report_threads(&[(&before, &after)], &mut report);
        near(&report, "server_thread_a_b_share", 0.99);
        near(&report, "server_thread_x__1__share", 0.48);
        assert_eq!(report.get("server_thread_lazy_share"), None);
        let shown = report.text();
        let shown = shown
            .lines()
            .filter(|line| line.starts_with("server_thread_"));
        assert_eq!(shown.count(), THREADS_SHOWN_MAX);
    }

    #[test]
    fn memory_is_a_slope_between_counts() {
        let at = |at_s| sample(vec![part("17", at_s, 0, Vec::new())], at_s);
        let (begin, first, last) = (at(0), at(10), at(30));
        let mut report = Report::new("test");
        report_memory(
            &begin,
            &[(100, &first), (200, &at(20)), (600, &last)],
            &mut report,
        );
        near(&report, "server_rss_at_0_bytes", 1_000_000.0);
        near(&report, "server_rss_at_600_bytes", 4_000_000.0);
        near(
            &report,
            "server_rss_bytes_per_connection_from_none",
            5_000.0,
        );
        near(&report, "server_rss_bytes_per_connection", 4_000.0);
        near(&report, "server_pss_bytes_per_connection", 2_000.0);
        near(&report, "server_anonymous_bytes_per_connection", 1_600.0);
        near(
            &report,
            "kernel_slab_bytes_per_connection_both_ends",
            20.0 * 8192.0 / 500.0,
        );
        near(
            &report,
            "kernel_socket_slab_bytes_per_connection_both_ends",
            40.0,
        );
        near(
            &report,
            "tcp_memory_bytes_per_connection_both_ends",
            20.0 * 4096.0 / 500.0,
        );
        assert!(
            report.text().contains("all processes: TCP 40\n"),
            "{}",
            report.text()
        );

        let mut nothing = Report::new("test");
        report_memory(&Sample::default(), &[(1, &first)], &mut nothing);
        report_memory(&begin, &[], &mut nothing);
        assert_eq!(nothing.get("server_rss_bytes_per_connection"), None);
    }

    #[test]
    fn each_servers_own_slope_is_by_its_own_connections() {
        let at = |at_s, counts: [Option<u64>; 2]| {
            let parts = ["17", "18"].iter().zip(counts);
            let parts = parts.map(|(name, connection_count)| Part {
                connection_count,
                ..part(name, at_s, 0, Vec::new())
            });
            sample(parts.collect(), 0)
        };
        let (begin, first, last) = (
            at(0, [Some(0), None]),
            at(1, [Some(100), None]),
            at(2, [Some(300), None]),
        );
        let mut report = Report::new("test");
        report_memory(&begin, &[(200, &first), (600, &last)], &mut report);
        near(&report, "server_rss_bytes_per_connection", 500.0);
        near(&report, "server_rss_bytes_per_connection_17", 500.0);
        assert_eq!(report.get("server_rss_bytes_per_connection_18"), None);
        near(&report, "server_rss_at_200_bytes_18", 1_100_000.0);
    }
}
