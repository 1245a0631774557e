//! A server's process: what `/proc/PID` says of its processor time, its threads, its memory and its descriptors.
//!
//! A process may end at any moment, its threads come and go, and it chooses their names: a reading that fails is a reading
//! that fails, names may hold anything, and no file is read beyond a bound.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::param::clock_ticks_per_second;
use serde::{Deserialize, Serialize};

use super::Part;
use crate::clock::now_ns;
use crate::failure::Failure;

/// No file under `/proc` is read further.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// No more threads of a process are looked at. The processor time of the rest is still in the process's own sum.
const THREAD_COUNT_MAX: usize = 16_384;
/// No more descriptors are looked at in search of a listening socket.
const LISTENER_SCAN_MAX: usize = 65_536;

/// What a thread used up to one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
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

impl Thread {
    /// What it used since `earlier`: processor time and waiting, nanoseconds. A thread that ran for longer then than now is
    /// another one with the same id, and counts from its beginning.
    fn since(&self, earlier: Option<&Self>) -> (u64, u64) {
        match earlier {
            Some(earlier) if earlier.cpu_ns <= self.cpu_ns => (
                self.cpu_ns - earlier.cpu_ns,
                self.wait_ns.saturating_sub(earlier.wait_ns),
            ),
            _ => (self.cpu_ns, self.wait_ns),
        }
    }
}

/// The threads of process `pid` now, by their `schedstat`; none when it has ended.
pub fn threads(pid: u32) -> Vec<Thread> {
    read_threads(pid, true)
}

/// What each thread of `after` used since `before`: itself, processor time and waiting, nanoseconds.
pub fn used<'a>(
    before: &'a [Thread],
    after: &'a [Thread],
) -> impl Iterator<Item = (&'a Thread, u64, u64)> {
    let earlier: HashMap<u32, &Thread> = before.iter().map(|thread| (thread.id, thread)).collect();
    after.iter().map(move |thread| {
        let (cpu_ns, wait_ns) = thread.since(earlier.get(&thread.id).copied());
        (thread, cpu_ns, wait_ns)
    })
}

/// The most that one thread ran, and the most that one thread waited for its processor, each as a share of `seconds`.
pub fn busiest(before: &[Thread], after: &[Thread], seconds: f64) -> (f64, f64) {
    let (cpu_ns, wait_ns) = used(before, after).fold((0, 0), |most, (_, cpu_ns, wait_ns)| {
        (cpu_ns.max(most.0), wait_ns.max(most.1))
    });
    let share = |ns: u64| ns as f64 / 1e9 / seconds.max(1e-9);
    (share(cpu_ns), share(wait_ns))
}

/// Nanoseconds of a clock tick, in which `/proc/PID/stat` counts.
pub fn tick_ns() -> u64 {
    1_000_000_000 / clock_ticks_per_second().max(1)
}

/// A process that is looked at. It is the same one as long as it began at the same moment: ids are used again.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    start_ticks: u64,
    /// Its descriptors as last counted, for glances where the kernel does not tell the count.
    descriptors_counted: AtomicU64,
}

impl Process {
    /// Looks at process `pid` for the first time.
    ///
    /// # Errors
    /// When there is no such process, when it has ended or is the kernel's, or when it may not be looked at.
    pub fn open(pid: u32) -> Result<Self, Failure> {
        let wrong = |what: String| Failure::Usage(format!("--server-pid {pid}: {what}"));
        let stat = read_text(&format!("/proc/{pid}/stat")).map_err(|error| {
            wrong(if is_gone(&error) {
                "there is no such process".into()
            } else {
                format!("it cannot be looked at: {error}")
            })
        })?;
        let stat = Stat::parse(&stat).ok_or_else(|| wrong("its stat cannot be read".into()))?;
        if stat.is_over() {
            return Err(wrong("the process has ended".into()));
        }
        let process = Self {
            pid,
            start_ticks: stat.start_ticks,
            descriptors_counted: AtomicU64::new(0),
        };
        let reading = || -> io::Result<()> {
            let mut part = Part::default();
            process.read_memory(&mut part)?;
            process.read_descriptors(&mut part)
        };
        reading().map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => wrong(format!(
                "its memory may not be looked at: {error}; run as its user or as root"
            )),
            _ if is_gone(&error) => {
                wrong("it has no memory of its own: a part of the kernel, or ending".into())
            }
            _ => wrong(format!("it cannot be looked at: {error}")),
        })?;
        Ok(process)
    }

    /// When it began, Unix seconds, as exactly as the kernel's clock ticks tell.
    pub fn start_unix_s(&self) -> Option<f64> {
        let boot = read_text("/proc/stat").ok()?;
        let boot_s: f64 = boot
            .lines()
            .find_map(|line| line.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()?;
        Some(boot_s + self.start_ticks as f64 * tick_ns() as f64 / 1e9)
    }

    /// Its processor time and that of its threads; [`Process::add_memory`] adds the rest.
    ///
    /// # Errors
    /// When it has ended, or may not be looked at any more.
    pub fn times(&self) -> Result<Part, Failure> {
        let times = self.read_times(true).map_err(|error| self.lost(&error))?;
        times.ok_or_else(|| self.ended())
    }

    /// Adds its memory and descriptors to its times. It walks the process's page tables, and may take seconds.
    ///
    /// # Errors
    /// When it has ended, or may not be looked at any more.
    pub fn add_memory(&self, part: &mut Part) -> Result<(), Failure> {
        self.read_memory(part)
            .and_then(|()| self.read_descriptors(part))
            .map_err(|error| self.lost(&error))
    }

    /// What is cheap to know about it: no walk over its memory, no list of its descriptors, no names of threads. None: it
    /// has ended.
    pub fn glance(&self) -> Option<Part> {
        let mut part = self.read_times(false).ok()??;
        let statm = read_text(&format!("/proc/{}/statm", self.pid)).ok()?;
        let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
        part.rss_bytes = Some(pages * rustix::param::page_size() as u64);
        part.descriptor_count = Some(
            self.count_descriptors()
                .unwrap_or_else(|| self.descriptors_counted.load(Ordering::Relaxed)),
        );
        Some(part)
    }

    /// Its processor time. None: it has ended, and another process may have its id.
    fn read_times(&self, names: bool) -> io::Result<Option<Part>> {
        let at_ns = now_ns();
        let text = read_text(&format!("/proc/{}/stat", self.pid))?;
        let stat = Stat::parse(&text)
            .filter(|stat| stat.start_ticks == self.start_ticks && !stat.is_over());
        Ok(stat.map(|stat| Part {
            name: self.pid.to_string(),
            at_ns,
            user_ns: Some(stat.user_ticks * tick_ns()),
            system_ns: Some(stat.system_ticks * tick_ns()),
            cpu_ns: Some((stat.user_ticks + stat.system_ticks) * tick_ns()),
            threads: read_threads(self.pid, names),
            ..Part::default()
        }))
    }

    fn read_memory(&self, part: &mut Part) -> io::Result<()> {
        let status = read_text(&format!("/proc/{}/status", self.pid))?;
        part.rss_peak_bytes = kib_field(&status, "VmHWM:");
        match read_text(&format!("/proc/{}/smaps_rollup", self.pid)) {
            Ok(rollup) => {
                part.rss_bytes = kib_field(&rollup, "Rss:");
                part.pss_bytes = kib_field(&rollup, "Pss:");
                part.anonymous_bytes = kib_field(&rollup, "Anonymous:");
            }
            // A kernel without the file: `status` tells all but the proportional share.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                part.rss_bytes = kib_field(&status, "VmRSS:");
                part.anonymous_bytes = kib_field(&status, "RssAnon:");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The count of its descriptors as the directory's size, where the kernel tells it (since 6.2).
    fn count_descriptors(&self) -> Option<u64> {
        let directory = fs::metadata(format!("/proc/{}/fd", self.pid)).ok()?;
        Some(directory.size()).filter(|&count| count > 0)
    }

    fn read_descriptors(&self, part: &mut Part) -> io::Result<()> {
        let count = match self.count_descriptors() {
            Some(count) => count,
            None => fs::read_dir(format!("/proc/{}/fd", self.pid))?.count() as u64,
        };
        self.descriptors_counted.store(count, Ordering::Relaxed);
        part.descriptor_count = Some(count);
        Ok(())
    }

    /// Whether its addresses and ports are those of this process: containers have their own.
    pub fn shares_our_network(&self) -> bool {
        let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        network("self") == network(&self.pid.to_string())
    }

    /// Whether one of its descriptors is a TCP socket that listens on `port`, in its own network.
    pub fn listens_on(&self, port: u16) -> bool {
        let sockets: HashSet<String> = ["tcp", "tcp6"]
            .into_iter()
            .filter_map(|table| File::open(format!("/proc/{}/net/{table}", self.pid)).ok())
            .flat_map(|table| listeners(BufReader::new(table), port))
            .map(|inode| format!("socket:[{inode}]"))
            .collect();
        if sockets.is_empty() {
            return false;
        }
        let Ok(descriptors) = fs::read_dir(format!("/proc/{}/fd", self.pid)) else {
            return false;
        };
        descriptors
            .flatten()
            .take(LISTENER_SCAN_MAX)
            .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
            .any(|link| link.to_str().is_some_and(|link| sockets.contains(link)))
    }

    /// Why a reading of it that failed did.
    fn lost(&self, error: &io::Error) -> Failure {
        if is_gone(error) {
            return self.ended();
        }
        Failure::Broken(format!(
            "server {} cannot be looked at any more: {error}",
            self.pid
        ))
    }

    fn ended(&self) -> Failure {
        Failure::Broken(format!("server {} ended during the run", self.pid))
    }
}

/// Whether an error says that the process or thread is no more.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

fn read_threads(pid: u32, names: bool) -> Vec<Thread> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let read = |id: u32| {
        let path = |file: &str| format!("/proc/{pid}/task/{id}/{file}");
        // A thread that has ended meanwhile has neither file; a kernel without scheduler statistics has the second.
        let (cpu_ns, wait_ns) = read_text(&path("schedstat"))
            .ok()
            .and_then(|text| {
                let mut fields = text
                    .split_whitespace()
                    .map_while(|field| field.parse().ok());
                Some((fields.next()?, fields.next()?))
            })
            .or_else(|| {
                let stat = Stat::parse(&read_text(&path("stat")).ok()?)?;
                Some(((stat.user_ticks + stat.system_ticks) * tick_ns(), 0))
            })?;
        let name = if names {
            let name = read_text(&path("comm")).unwrap_or_default();
            name.trim().to_owned()
        } else {
            String::new()
        };
        Some(Thread {
            id,
            name,
            cpu_ns,
            wait_ns,
        })
    };
    tasks
        .flatten()
        .filter_map(|task| task.file_name().to_str()?.parse().ok())
        .take(THREAD_COUNT_MAX)
        .filter_map(read)
        .collect()
}

/// What is taken from `/proc/PID/stat`.
struct Stat {
    state: char,
    user_ticks: u64,
    system_ticks: u64,
    start_ticks: u64,
}

impl Stat {
    /// Fields 3, 14, 15 and 22. The command's name may hold spaces and brackets: count from its end.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
        let state = fields.next()?.chars().next()?;
        let mut number = |skip: usize| fields.nth(skip)?.parse().ok();
        Some(Self {
            state,
            user_ticks: number(10)?,
            system_ticks: number(0)?,
            start_ticks: number(6)?,
        })
    }

    /// Whether it has ended and only waits to be reaped.
    fn is_over(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// The inodes of the sockets that listen on `port` in a table such as `/proc/net/tcp`. The kernel lists listeners first:
/// the connections after them, which may be millions, are not read.
fn listeners(table: impl BufRead, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    let ending = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .map_while(Result::ok)
        .take_while(|line| line.split_whitespace().nth(3) == Some(LISTEN))
        .filter(|line| {
            line.split_whitespace()
                .nth(1)
                .is_some_and(|local| local.ends_with(&ending))
        })
        .filter_map(|line| line.split_whitespace().nth(9)?.parse().ok())
        .collect()
}

/// The text of a file under `/proc`, up to a bound; what is not UTF-8 in it, as a name may be, is replaced.
pub(super) fn read_text(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The field `name` of a text of lines `name: N kB`, in bytes.
pub(super) fn kib_field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = rest.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_a_hostile_command_name() {
        let text = "17 (a) b) (c) S 1 17 17 0 -1 4194560 1 2 3 4 55 66 7 8 20 0 3 0 100 4096 5";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.is_over()), ('S', false));
        let times = (stat.user_ticks, stat.system_ticks, stat.start_ticks);
        assert_eq!(times, (55, 66, 100));
        assert!(Stat::parse(&text.replace(" S ", " Z ")).unwrap().is_over());
        for wrong in ["", "17 (a", "17 (a)", "17 (a) S 1 2 3", &text[..60]] {
            assert!(Stat::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn another_process_with_the_same_id_is_not_taken_for_it() {
        let mut process = Process::open(std::process::id()).unwrap();
        assert!(process.times().is_ok() && process.glance().is_some());
        process.start_ticks += 1;
        let Err(Failure::Broken(text)) = process.times() else {
            panic!("it began at another moment");
        };
        assert!(text.ends_with("ended during the run"), "{text}");
        assert!(process.glance().is_none());
    }

    #[test]
    fn only_listeners_on_the_port_are_taken_from_a_table_of_sockets() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0
   2: 00000000000000000000000000000000:1F91 0000:0000 0A 0:0 00:0 0     0        0 4713 1 0 100 0 0 10 0
   3: 0100007F:1F91 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4714 1 0 100 0 0 10 0
   4: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4715 1 0 100 0 0 10 0
";
        assert_eq!(listeners(table.as_bytes(), 0x1F91), [4711, 4713]);
        assert!(listeners("nothing\nhere".as_bytes(), 80).is_empty());
    }

    #[test]
    fn a_thread_that_counts_less_than_before_is_a_new_one() {
        let thread = |id, cpu_ns, wait_ns| Thread {
            id,
            name: String::new(),
            cpu_ns,
            wait_ns,
        };
        let before = [
            thread(1, 1_000, 10),
            thread(2, 900, 900),
            thread(4, 5_000, 0),
        ];
        let after = [thread(1, 1_600, 15), thread(2, 200, 7), thread(3, 50, 60)];
        let all: Vec<_> = used(&before, &after)
            .map(|(thread, cpu, wait)| (thread.id, cpu, wait))
            .collect();
        assert_eq!(all, [(1, 600, 5), (2, 200, 7), (3, 50, 60)]);
        let (cpu, wait) = busiest(&before, &after, 1e-6);
        assert!((cpu - 0.6).abs() < 1e-9 && (wait - 0.06).abs() < 1e-9);
    }

    #[test]
    fn fields_in_kib_are_found_by_their_whole_name() {
        let text = "Rss:     12 kB\nPss_Dirty:  1 kB\nPss:   7 kB\nAnonymous: x kB\n";
        assert_eq!(kib_field(text, "Rss:"), Some(12 * 1024));
        assert_eq!(kib_field(text, "Pss:"), Some(7 * 1024));
        assert_eq!(kib_field(text, "Anonymous:"), None);
        assert_eq!(kib_field(text, "Huge:"), None);
    }
}
