//! Kernel, io_uring, the process's limits, processors and memory.

use super::{Finding, grouped, shards, sized};
use crate::config::Settings;
use crate::config::capacity::{self, CONNECTION_BYTES, DIRECT_TABLE_COUNT_MAX};
use crate::runtime::host::{HostFacts, RingFacts};
use crate::runtime::ring::Descriptors;

/// The oldest kernel that has all that the engine needs: DEFER_TASKRUN came with it.
const KERNEL_MIN: (u32, u32) = (6, 1);
/// Locked memory that glommio insists on, as a limit, whatever a process's rights.
const MEMORY_LOCK_BYTES_MIN: u64 = 512 * 1024;
/// Open files below which a server is hardly meant.
const OPEN_FILES_WANTED: u64 = DIRECT_TABLE_COUNT_MAX;

pub(super) fn findings(settings: &Settings, facts: &HostFacts) -> Vec<Finding> {
    let mut findings = vec![kernel(facts), rings(facts)];
    findings.extend(descriptors(settings, facts));
    findings.extend([
        open_files(settings, facts),
        memory_lock(facts),
        processors(settings, facts),
        memory(settings, facts),
    ]);
    findings.extend(processor_quota(facts));
    findings.extend(system_files(settings, facts));
    findings.extend(huge_pages(facts));
    findings
}

/// The first two numbers of a release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(facts: &HostFacts) -> Finding {
    let release = &facts.kernel_release;
    let (major, minor) = KERNEL_MIN;
    match version(release) {
        Some(found) if found >= KERNEL_MIN => Finding::ok(
            "kernel",
            format!("{release} ({major}.{minor} or later is needed)"),
        ),
        Some(_) => Finding::fail("kernel", format!("{release} is older than {major}.{minor}"))
            .mended_by("boot Linux 6.1 or later (Debian 12, Ubuntu 24.04, RHEL 10 have it)"),
        None => Finding::warn(
            "kernel",
            format!("{release:?} does not tell its version; {major}.{minor} or later is needed"),
        ),
    }
}

fn rings(facts: &HostFacts) -> Finding {
    let name = "io_uring";
    match &facts.rings {
        RingFacts::Works { opcodes_missing, .. } if !opcodes_missing.is_empty() => {
            Finding::fail(name, format!("operations are missing: {}", opcodes_missing.join(", ")))
                .mended_by("boot Linux 6.1 or later; in a sandbox (gVisor) run outside of it")
        }
        RingFacts::Works { engine: Err(words), .. } => {
            Finding::fail(name, format!("a shard's ring could not be set up: {words}"))
        }
        RingFacts::Works { .. } => Finding::ok(name, "a shard's ring could be set up, and has all operations"),
        RingFacts::Absent => {
            Finding::fail(name, "the kernel says there is none (ENOSYS): built without CONFIG_IO_URING, or hidden by a seccomp filter")
                .mended_by("boot a kernel with CONFIG_IO_URING=y")
                .mended_by("in a container, allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile")
        }
        RingFacts::Forbidden { disabled: Some(disabled @ 1..), .. } => Finding::fail(
            name,
            format!("kernel.io_uring_disabled = {disabled} forbids it (EPERM)"),
        )
        .mended_by("sysctl -w kernel.io_uring_disabled=0"),
        RingFacts::Forbidden { seccomp: true, .. } => {
            Finding::fail(name, "a seccomp filter forbids it (EPERM), as Docker's and containerd's do unless told otherwise")
                .mended_by("docker run --security-opt seccomp=PROFILE, with io_uring_setup, io_uring_enter and io_uring_register allowed")
                .mended_by("systemd: SystemCallFilter=@system-service @aio")
        }
        RingFacts::Forbidden { .. } => {
            Finding::fail(name, "it is forbidden (EPERM), neither by kernel.io_uring_disabled nor by seccomp: a security module does it")
                .mended_by("allow io_uring in the SELinux or AppArmor policy of this process")
        }
        RingFacts::TooOld => Finding::fail(name, "the kernel does not know SINGLE_ISSUER and DEFER_TASKRUN (EINVAL)")
            .mended_by("boot Linux 6.1 or later"),
        RingFacts::MemoryLocked => {
            Finding::fail(name, "no memory may be locked for a ring (ENOMEM)")
                .mended_by("ulimit -l unlimited")
                .mended_by("systemd: LimitMEMLOCK=infinity")
        }
        RingFacts::Failed(words) => Finding::fail(name, format!("a ring could not be set up: {words}")),
    }
}

fn descriptors(settings: &Settings, facts: &HostFacts) -> Option<Finding> {
    let name = "direct descriptors";
    let RingFacts::Works {
        engine: Ok(()),
        direct,
        ..
    } = &facts.rings
    else {
        return None;
    };
    Some(match (settings.ring.descriptors, direct) {
        (Descriptors::Plain, _) if !facts.direct_descriptors_freed => Finding::ok(
            name,
            "not used: this kernel keeps closed ones (Linux 6.13 frees them); sockets live in the process's file table",
        ),
        (Descriptors::Direct, Ok(())) if !facts.direct_descriptors_freed => Finding::warn(
            name,
            "this kernel keeps what is closed, some 4 KB a socket, until every older connection has ended; Linux 6.13 frees it",
        )
        .mended_by("write descriptors = \"auto\" or \"plain\", or boot Linux 6.13 or later"),
        (Descriptors::Plain, _) => {
            Finding::ok(name, "not wanted: sockets live in the process's file table")
        }
        (_, Ok(())) => Finding::ok(
            name,
            format!(
                "a table of {} sockets for each shard",
                grouped(u64::from(settings.ring.socket_count_max))
            ),
        ),
        (Descriptors::Auto | Descriptors::Direct, Err(words)) => Finding::warn(
            name,
            format!(
                "no table ({words}): sockets will live in the process's file table, which the open-file limit counts"
            ),
        ),
    })
}

fn open_files(settings: &Settings, facts: &HostFacts) -> Finding {
    let name = "open files";
    let hard = facts.open_files.hard.unwrap_or(u64::MAX);
    let most = facts.nr_open.unwrap_or(DIRECT_TABLE_COUNT_MAX);
    let direct = settings.ring.descriptors != Descriptors::Plain;
    let what = match direct {
        true => "for each shard's table of sockets",
        false => "for all sockets of the process",
    };
    let seen = match facts.open_files.soft {
        Some(soft) if soft < hard => format!(
            "limit {}, which serve raises to the hard limit {}, {what}",
            grouped(soft),
            counted(facts.open_files.hard),
        ),
        _ => format!("limit {}, {what}", counted(facts.open_files.hard)),
    };
    let own = capacity::files_reserved(settings.shards);
    if hard < own {
        let seen = format!("{seen}; the process itself needs about {own}");
        return raise_open_files(Finding::fail(name, seen), OPEN_FILES_WANTED, most);
    }
    let held = capacity::by_files(settings.ring.descriptors, hard, settings.shards);
    let memory = facts.memory_group_bytes_max.unwrap_or(facts.memory_bytes);
    if held < OPEN_FILES_WANTED && held < capacity::by_memory(memory, settings.shard.node_bytes_max)
    {
        return raise_open_files(
            Finding::warn(name, format!("{seen}; memory would hold more")),
            OPEN_FILES_WANTED,
            most,
        );
    }
    Finding::ok(name, seen)
}

fn counted(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".into(), grouped)
}

fn raise_open_files(finding: Finding, wanted: u64, most: u64) -> Finding {
    let finding = match wanted > most {
        true => finding.mended_by(format!("sysctl -w fs.nr_open={wanted}")),
        false => finding,
    };
    finding
        .mended_by(format!("ulimit -Hn {wanted} (as root)"))
        .mended_by(format!("systemd: LimitNOFILE={wanted}"))
}

fn memory_lock(facts: &HostFacts) -> Finding {
    let name = "locked memory";
    let hard = facts.memory_lock.hard.unwrap_or(u64::MAX);
    if hard < MEMORY_LOCK_BYTES_MIN {
        return Finding::fail(
            name,
            format!(
                "limit {}, and {} are needed",
                sized(hard),
                sized(MEMORY_LOCK_BYTES_MIN)
            ),
        )
        .mended_by("ulimit -l 1024 (as root)")
        .mended_by("systemd: LimitMEMLOCK=infinity");
    }
    let limit = facts
        .memory_lock
        .hard
        .map_or_else(|| "unlimited".into(), sized);
    Finding::ok(
        name,
        format!(
            "limit {limit} ({} are needed)",
            sized(MEMORY_LOCK_BYTES_MIN)
        ),
    )
}

fn processors(settings: &Settings, facts: &HostFacts) -> Finding {
    let name = "processors";
    let count = match settings.cores.len() {
        0 => facts.processors.len(),
        count => count,
    };
    let cores = settings.shards + 1;
    let seen = format!(
        "{count} for {} and the backplane core",
        shards(settings.shards)
    );
    match cores <= count {
        true => Finding::ok(name, seen),
        false => Finding::warn(
            name,
            format!("{seen}: they share, and disturb each other's latency"),
        )
        .mended_by(format!(
            "write shards = {} or \"auto\", or more cores",
            count.saturating_sub(1).max(1)
        )),
    }
}

fn processor_quota(facts: &HostFacts) -> Option<Finding> {
    let milli = facts.processor_quota_milli?;
    let name = "processor quota";
    let seen = format!(
        "the control group allows {}.{:03} processors",
        milli / 1_000,
        milli % 1_000
    );
    Some(match milli < facts.processors.len() as u64 * 1_000 {
        true => Finding::warn(
            name,
            format!("{seen}: all cores stop together when it is used up"),
        )
        .mended_by("systemd: CPUQuota= (none); Kubernetes: no CPU limit, or the static CPU manager")
        .mended_by(format!(
            "write shards = {}",
            (milli / 1_000).saturating_sub(1).max(1)
        )),
        false => Finding::ok(name, seen),
    })
}

fn memory(settings: &Settings, facts: &HostFacts) -> Finding {
    let name = "memory";
    let memory = facts
        .memory_group_bytes_max
        .map_or(facts.memory_bytes, |most| most.min(facts.memory_bytes));
    let connections = u64::from(settings.shard.connection_count_max);
    let idle = connections.saturating_mul(CONNECTION_BYTES);
    let whose = match facts.memory_group_bytes_max {
        Some(most) if most < facts.memory_bytes => "in this control group",
        _ => "in this machine",
    };
    let seen = format!(
        "{} {whose}; {} connections need {} idle, the kernel's part included, and may hold {} more",
        sized(memory),
        grouped(connections),
        sized(idle),
        sized(settings.shard.node_bytes_max),
    );
    let needed = idle.saturating_add(settings.shard.node_bytes_max);
    if needed <= memory {
        return Finding::ok(name, seen);
    }
    let left = (memory / 8 * 7).saturating_sub(idle) >> 20;
    let finding = Finding::warn(name, format!("{seen}: together more than there is"));
    match left {
        0 => finding.mended_by(format!(
            "write connection_count_max = {}",
            capacity::by_memory(memory, settings.shard.node_bytes_max).max(1)
        )),
        _ => finding.mended_by(format!("write node_bytes_max = \"{left}MiB\"")),
    }
}

/// `fs.file-max` counts every open file of the system, direct descriptors included, but not for CAP_SYS_ADMIN.
fn system_files(settings: &Settings, facts: &HostFacts) -> Option<Finding> {
    let (max, used) = (facts.file_max?, facts.file_used.unwrap_or_default());
    let name = "fs.file-max";
    let connections = u64::from(settings.shard.connection_count_max);
    let seen = format!(
        "{} open files in the whole system, {} in use",
        grouped(max),
        grouped(used)
    );
    Some(
        match max.saturating_sub(used) > connections || facts.admin_capability {
            true => Finding::ok(name, seen),
            false => Finding::warn(
                name,
                format!("{seen}: too few for {} connections", grouped(connections)),
            )
            .mended_by(format!("sysctl -w fs.file-max={}", used + connections * 2)),
        },
    )
}

fn huge_pages(facts: &HostFacts) -> Option<Finding> {
    let word = facts.huge_pages.as_deref()?;
    let name = "transparent huge pages";
    Some(match word {
        "always" => Finding::warn(
            name,
            "always: memory per connection grows in steps of 2 MiB, and compaction costs latency",
        )
        .mended_by("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
        _ => Finding::ok(name, word),
    })
}
