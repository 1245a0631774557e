//! Reads the host: processors, memory, limits, kernel settings, what its io_uring can do. Changes nothing but this
//! process's own limits.
//!
//! What cannot be read is `None`; nothing here fails because a file is missing.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;

use io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Machine;
use crate::runtime::redis::RedisFact;
use crate::runtime::ring;

/// A limit of the process; `None`: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What holds.
    pub soft: Option<u64>,
    /// What the process may raise it to.
    pub hard: Option<u64>,
}

/// What the kernel's io_uring can do for this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RingFacts {
    /// A ring could be set up as a shard does it.
    Works {
        /// Operations that are missing, by their names.
        opcodes_missing: Vec<&'static str>,
        /// Whether a shard's ring could be set up as the settings say; if not, why and what mends it.
        engine: Result<(), String>,
        /// Why sockets would not be direct descriptors, if they would not.
        direct: Result<(), String>,
    },
    /// The kernel was built without it, or hides it (ENOSYS).
    Absent,
    /// EPERM or EACCES.
    Forbidden {
        /// The value of `kernel.io_uring_disabled`, where there is one.
        disabled: Option<u64>,
        /// Whether a seccomp filter is in force.
        seccomp: bool,
    },
    /// The kernel is too old for the flags (EINVAL): SINGLE_ISSUER needs 6.0, DEFER_TASKRUN 6.1.
    TooOld,
    /// No memory may be locked for it (ENOMEM).
    MemoryLocked,
    /// Anything else, in the kernel's words.
    Failed(String),
}

/// What became of trying to bind an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// Nobody has it.
    Free,
    /// Somebody has it.
    Taken,
    /// This process has no right to it.
    Forbidden,
    /// It cannot be bound, in the kernel's words.
    Refused(String),
}

/// All that `throng check` looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// `uname -r`.
    pub kernel_release: String,
    /// What io_uring can do.
    pub rings: RingFacts,
    /// Whether direct descriptors that are closed are freed.
    pub direct_descriptors_freed: bool,
    /// `RLIMIT_NOFILE`.
    pub open_files: Limit,
    /// `fs.nr_open`: the most that `RLIMIT_NOFILE` can be raised to.
    pub nr_open: Option<u64>,
    /// `fs.file-max`: open files of the whole system.
    pub file_max: Option<u64>,
    /// How many of them are in use.
    pub file_used: Option<u64>,
    /// `RLIMIT_MEMLOCK`, bytes.
    pub memory_lock: Limit,
    /// Whether the process has CAP_SYS_ADMIN, for which `fs.file-max` does not count.
    pub admin_capability: bool,
    /// `net.ipv4.ip_local_port_range`.
    pub port_range: Option<(u64, u64)>,
    /// `net.core.somaxconn`.
    pub somaxconn: Option<u64>,
    /// `net.ipv4.tcp_max_syn_backlog`.
    pub syn_backlog: Option<u64>,
    /// `net.ipv4.tcp_mem` (low, pressure, high), bytes.
    pub tcp_memory_bytes: Option<[u64; 3]>,
    /// `net.ipv4.tcp_max_orphans`.
    pub tcp_orphans_max: Option<u64>,
    /// The word in brackets of `transparent_hugepage/enabled`.
    pub huge_pages: Option<String>,
    /// Processors that the process may run on.
    pub processors: Vec<u32>,
    /// Processor time that the control groups allow, in thousandths of a processor.
    pub processor_quota_milli: Option<u64>,
    /// `MemTotal`, bytes.
    pub memory_bytes: u64,
    /// The least memory limit of the control groups, bytes.
    pub memory_group_bytes_max: Option<u64>,
    /// Connections tracked now, and at most, where the module is loaded.
    pub conntrack: Option<(u64, u64)>,
    /// The addresses that `serve` would bind.
    pub ports: Vec<(SocketAddr, PortState)>,
    /// What was seen of Redis; empty where nobody looked.
    pub redis: Vec<RedisFact>,
}

/// What `config` must know of this machine.
#[must_use]
pub fn machine() -> Machine {
    let open_files = limit(Resource::Nofile).hard.unwrap_or(u64::MAX);
    let groups = control_group_directories("memory");
    let total = meminfo_bytes("MemTotal").unwrap_or(u64::MAX);
    let memory_bytes = memory_group_bytes_max(&groups).map_or(total, |most| most.min(total));
    Machine {
        processors: processors(),
        processor_quota_milli: processor_quota_milli(&control_group_directories("cpu")),
        open_files_max: open_files,
        direct_descriptors_freed: ring::direct_descriptors_freed(),
        memory_bytes,
        hostname: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        process_id: std::process::id(),
    }
}

/// Raises this process's soft open-file limit to the hard one. Returns what holds now.
///
/// # Errors
/// The kernel's, when it refuses.
pub fn raise_open_file_limit() -> io::Result<Limit> {
    raise(Resource::Nofile)
}

/// Raises this process's soft locked-memory limit to the hard one; glommio asks for 512 KiB. Returns what holds now.
///
/// # Errors
/// The kernel's, when it refuses.
pub fn raise_memory_lock_limit() -> io::Result<Limit> {
    raise(Resource::Memlock)
}

fn raise(resource: Resource) -> io::Result<Limit> {
    let Limit { soft, hard } = limit(resource);
    if soft != hard {
        setrlimit(
            resource,
            Rlimit {
                current: hard,
                maximum: hard,
            },
        )?;
    }
    Ok(limit(resource))
}

fn limit(resource: Resource) -> Limit {
    let Rlimit { current, maximum } = getrlimit(resource);
    Limit {
        soft: current,
        hard: maximum,
    }
}

/// Looks at everything, with the limits raised as `serve` raises them; what is told of them is what held before. A ring
/// is set up with `options`, and `addresses` are bound.
#[must_use]
pub fn collect(options: &ring::Options, addresses: &[SocketAddr]) -> HostFacts {
    let open_files = limit(Resource::Nofile);
    let memory_lock = limit(Resource::Memlock);
    // A refusal leaves the limits as they are, and the trial below tells what follows from it.
    let _ = (raise_open_file_limit(), raise_memory_lock_limit());
    let files = numbers(&read("/proc/sys/fs/file-nr"));
    let status = read("/proc/self/status");
    let capabilities = status_field(&status, "CapEff")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .unwrap_or_default();
    let page_bytes = rustix::param::page_size() as u64;
    let tcp_memory = numbers(&read("/proc/sys/net/ipv4/tcp_mem"));
    let ports = numbers(&read("/proc/sys/net/ipv4/ip_local_port_range"));
    HostFacts {
        kernel_release: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        rings: rings(options, &status),
        open_files,
        direct_descriptors_freed: ring::direct_descriptors_freed(),
        nr_open: sysctl("fs/nr_open"),
        file_max: sysctl("fs/file-max"),
        file_used: files.first().copied(),
        memory_lock,
        admin_capability: capabilities >> CAP_SYS_ADMIN & 1 == 1,
        port_range: ports.first().copied().zip(ports.get(1).copied()),
        somaxconn: sysctl("net/core/somaxconn"),
        syn_backlog: sysctl("net/ipv4/tcp_max_syn_backlog"),
        tcp_memory_bytes: <[u64; 3]>::try_from(tcp_memory)
            .ok()
            .map(|pages| pages.map(|count| count.saturating_mul(page_bytes))),
        tcp_orphans_max: sysctl("net/ipv4/tcp_max_orphans"),
        huge_pages: bracketed(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
        processors: processors(),
        processor_quota_milli: processor_quota_milli(&control_group_directories("cpu")),
        memory_bytes: meminfo_bytes("MemTotal").unwrap_or_default(),
        memory_group_bytes_max: memory_group_bytes_max(&control_group_directories("memory")),
        conntrack: sysctl("net/netfilter/nf_conntrack_count")
            .zip(sysctl("net/netfilter/nf_conntrack_max")),
        redis: Vec::new(),
        ports: addresses
            .iter()
            .map(|&address| (address, port_state(address)))
            .collect(),
    }
}

/// The bit of CAP_SYS_ADMIN in a capability set (`capabilities(7)`).
const CAP_SYS_ADMIN: u32 = 21;

/// The operations that the socket engine gives to the kernel.
const OPCODES: [(&str, u8); 12] = [
    ("ACCEPT", opcode::Accept::CODE),
    ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ("CLOSE", opcode::Close::CODE),
    ("CONNECT", opcode::Connect::CODE),
    ("FILES_UPDATE", opcode::FilesUpdate::CODE),
    ("NOP", opcode::Nop::CODE),
    ("RECV", opcode::RecvMulti::CODE),
    ("SEND", opcode::Send::CODE),
    ("SENDMSG", opcode::SendMsg::CODE),
    ("SHUTDOWN", opcode::Shutdown::CODE),
    ("TIMEOUT", opcode::Timeout::CODE),
    ("TIMEOUT_REMOVE", opcode::TimeoutRemove::CODE),
];

fn rings(options: &ring::Options, status: &str) -> RingFacts {
    // The bare ring tells apart why there is none; the engine's own tells whether all that it needs is there.
    let ring = IoUring::<squeue::Entry, cqueue::Entry>::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_clamp()
        .setup_cqsize(64)
        .build(32);
    let ring = match ring {
        Ok(ring) => ring,
        Err(error) => return rings_refused(&error, status),
    };
    let mut probe = Probe::new();
    let opcodes_missing = match ring.submitter().register_probe(&mut probe) {
        Ok(()) => {
            let missing = OPCODES
                .iter()
                .filter(|(_, code)| !probe.is_supported(*code));
            missing.map(|(name, _)| *name).collect()
        }
        Err(_) => vec!["all of them (the kernel does not answer the question)"],
    };
    drop(ring);
    let (engine, direct) = match ring::Ring::new(options) {
        Ok(ring) => (Ok(()), ring.direct().map_err(ToOwned::to_owned)),
        Err(error) => (Err(error.to_string()), Ok(())),
    };
    RingFacts::Works {
        opcodes_missing,
        engine,
        direct,
    }
}

fn rings_refused(error: &io::Error, status: &str) -> RingFacts {
    match rustix::io::Errno::from_io_error(error) {
        Some(rustix::io::Errno::NOSYS) => RingFacts::Absent,
        Some(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => RingFacts::Forbidden {
            disabled: sysctl("kernel/io_uring_disabled"),
            seccomp: status_field(status, "Seccomp").is_some_and(|mode| mode != "0"),
        },
        Some(rustix::io::Errno::INVAL) => RingFacts::TooOld,
        Some(rustix::io::Errno::NOMEM) => RingFacts::MemoryLocked,
        _ => RingFacts::Failed(error.to_string()),
    }
}

/// Whether `address` is free: with SO_REUSEPORT, a second server would share it in silence.
///
/// Binds without listening, so that no client ever gets in, and without SO_REUSEPORT.
#[must_use]
pub fn port_state(address: SocketAddr) -> PortState {
    let bind = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?; // what has closed and only waits in TIME_WAIT is nobody
        socket.bind(&address.into())
    };
    match bind() {
        Ok(()) => PortState::Free,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => PortState::Taken,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => PortState::Forbidden,
        Err(error) => PortState::Refused(error.to_string()),
    }
}

fn processors() -> Vec<u32> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        return (0..count as u32).collect();
    };
    let all = 0..rustix::thread::CpuSet::MAX_CPU;
    all.filter(|&processor| set.is_set(processor))
        .map(|processor| processor as u32)
        .collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn sysctl(path: &str) -> Option<u64> {
    read(&format!("/proc/sys/{path}")).trim().parse().ok()
}

fn meminfo_bytes(field: &str) -> Option<u64> {
    parse_meminfo_bytes(&read("/proc/meminfo"), field)
}

fn parse_meminfo_bytes(text: &str, field: &str) -> Option<u64> {
    let kib: u64 = status_field(text, field)?
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()?;
    Some(kib * 1_024)
}

/// The value behind `FIELD:` in the manner of `/proc/self/status`.
fn status_field<'a>(text: &'a str, field: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(field)?.strip_prefix(':').map(str::trim);
    text.lines().find_map(value)
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect()
}

fn bracketed(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

/// The directories of this process's control groups that hold `controller`, from its own up to the root.
fn control_group_directories(controller: &str) -> Vec<String> {
    parse_control_group_directories(&read("/proc/self/cgroup"), controller)
}

/// Lines are `ID:CONTROLLERS:PATH`; version 2 has no controllers (`cgroups(7)`). A container sees its own group as
/// the mounted root, whatever path is told, so the root is always looked at.
fn parse_control_group_directories(text: &str, controller: &str) -> Vec<String> {
    let mut directories = BTreeSet::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let mounts: &[String] = match controllers {
            "" => &["/sys/fs/cgroup".into(), "/sys/fs/cgroup/unified".into()],
            _ if controllers.split(',').any(|name| name == controller) => &[
                format!("/sys/fs/cgroup/{controllers}"),
                format!("/sys/fs/cgroup/{controller}"),
            ],
            _ => continue,
        };
        for mount in mounts {
            let mut path = path.trim_end_matches('/');
            loop {
                directories.insert(format!("{mount}{path}"));
                match path.rfind('/') {
                    Some(slash) => path = &path[..slash],
                    None => break,
                }
            }
        }
    }
    directories.into_iter().collect()
}

/// The least of `memory.max` (version 2) and `memory.limit_in_bytes` (version 1).
fn memory_group_bytes_max(directories: &[String]) -> Option<u64> {
    /// Version 1 writes "no limit" as the largest multiple of a page; no machine has so much.
    const UNLIMITED: u64 = 1 << 60;
    let files = ["memory.max", "memory.limit_in_bytes"];
    let limit = |directory: &String| {
        let limits = files.map(|file| {
            read(&format!("{directory}/{file}"))
                .trim()
                .parse::<u64>()
                .ok()
        });
        limits.into_iter().flatten().min()
    };
    directories
        .iter()
        .filter_map(limit)
        .filter(|&bytes| bytes < UNLIMITED)
        .min()
}

/// The least of `cpu.max` (version 2: `QUOTA PERIOD`) and `cpu.cfs_quota_us` / `cpu.cfs_period_us` (version 1).
fn processor_quota_milli(directories: &[String]) -> Option<u64> {
    let quota = |directory: &String| {
        let current = numbers(&read(&format!("{directory}/cpu.max")));
        let older = [
            numbers(&read(&format!("{directory}/cpu.cfs_quota_us"))),
            numbers(&read(&format!("{directory}/cpu.cfs_period_us"))),
        ]
        .concat();
        [current, older]
            .into_iter()
            .find_map(|pair| match pair[..] {
                [quota, period] if period > 0 => Some(quota.saturating_mul(1_000) / period),
                _ => None,
            })
    };
    directories.iter().filter_map(quota).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_whole() {
        let text = "MemTotal:       24684084 kB\nMemTotalX: 1 kB\nSeccomp:\t2\n";
        assert_eq!(
            parse_meminfo_bytes(text, "MemTotal"),
            Some(24_684_084 * 1_024)
        );
        assert_eq!(parse_meminfo_bytes(text, "Mem"), None);
        assert_eq!(status_field(text, "Seccomp"), Some("2"));
        assert_eq!(bracketed("always [madvise] never"), Some("madvise".into()));
        assert_eq!(bracketed(""), None);
        assert!(numbers("max 100000").is_empty());
    }

    #[test]
    fn control_groups_are_followed_up_to_the_root() {
        let old = parse_control_group_directories("4:memory:/a/b\n1:cpu,cpuacct:/c\n", "memory");
        assert_eq!(
            old,
            [
                "/sys/fs/cgroup/memory",
                "/sys/fs/cgroup/memory/a",
                "/sys/fs/cgroup/memory/a/b"
            ]
        );
        let shared = parse_control_group_directories("1:cpu,cpuacct:/\n", "cpu");
        assert_eq!(shared, ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"]);
        let new = parse_control_group_directories("0::/x.slice\n", "memory");
        assert!(
            new.contains(&"/sys/fs/cgroup".into())
                && new.contains(&"/sys/fs/cgroup/x.slice".into())
        );
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_taken() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(port_state(address), PortState::Taken);
        drop(listener);
        assert_eq!(port_state(address), PortState::Free);
        assert!(matches!(
            port_state("192.0.2.1:80".parse().unwrap()),
            PortState::Refused(_)
        ));
    }

    #[test]
    fn this_host_can_be_read() {
        let options = ring::Options {
            descriptors: ring::Descriptors::Auto,
            socket_count_max: 64,
            submission_entries: 64,
            completion_entries: 128,
            receive_buffer_bytes: 1_024,
            receive_buffer_count: 4,
        };
        let facts = collect(&options, &[]);
        assert!(!facts.kernel_release.is_empty());
        if let RingFacts::Works {
            opcodes_missing,
            engine,
            ..
        } = &facts.rings
        {
            assert_eq!((opcodes_missing.len(), engine), (0, &Ok(())));
        }
        assert!(!facts.processors.is_empty());
        assert!(facts.memory_bytes > 0);
        assert!(facts.open_files.soft <= facts.open_files.hard || facts.open_files.hard.is_none());
        let machine = machine();
        assert_eq!(machine.processors, facts.processors);
        assert!(machine.memory_bytes <= facts.memory_bytes);
    }
}
