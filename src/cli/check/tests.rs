//! Every verdict, from facts that a good host does not have.

use super::*;
use crate::config::{self, Machine, ServeArgs};
use crate::runtime::host::{Limit, PortState, RingFacts};

const GIB: u64 = 1 << 30;

fn facts() -> HostFacts {
    HostFacts {
        kernel_release: "6.1.0-18-amd64".into(),
        rings: RingFacts::Works {
            opcodes_missing: Vec::new(),
            engine: Ok(()),
            direct: Ok(()),
        },
        direct_descriptors_freed: true,
        open_files: Limit {
            soft: Some(1_024),
            hard: Some(1 << 20),
        },
        nr_open: Some(1 << 20),
        file_max: Some(u64::MAX / 2),
        file_used: Some(2_000),
        memory_lock: Limit {
            soft: Some(8 << 20),
            hard: None,
        },
        admin_capability: false,
        port_range: Some((32_768, 60_999)),
        somaxconn: Some(4_096),
        syn_backlog: Some(4_096),
        tcp_memory_bytes: Some([8 * GIB, 12 * GIB, 16 * GIB]),
        tcp_orphans_max: Some(4 << 20),
        huge_pages: Some("madvise".into()),
        processors: vec![0, 1, 2, 3],
        processor_quota_milli: None,
        memory_bytes: 32 * GIB,
        memory_group_bytes_max: None,
        conntrack: None,
        ports: vec![("0.0.0.0:8080".parse().unwrap(), PortState::Free)],
        redis: Vec::new(),
    }
}

fn settings(flags: &[(&str, &str)]) -> Settings {
    let mut args = ServeArgs::default();
    for (key, text) in flags {
        args.flags
            .insert((*key).to_owned(), vec![(*text).to_owned()]);
    }
    let machine = Machine {
        processors: vec![0, 1, 2, 3],
        processor_quota_milli: None,
        open_files_max: 1 << 20,
        direct_descriptors_freed: true,
        memory_bytes: 32 * GIB,
        hostname: "host".into(),
        process_id: 1,
    };
    let read_file = |_: &str| Err(std::io::Error::from(std::io::ErrorKind::NotFound));
    config::load(&args, std::iter::empty(), read_file, &machine)
        .unwrap()
        .0
}

fn usual() -> Settings {
    settings(&[("connection_count_max", "1000000")])
}

#[test]
fn a_good_host_has_nothing_to_mend() {
    let report = evaluate(&usual(), &facts(), &[]);
    for finding in &report.findings {
        assert_eq!(finding.level, Level::Ok, "{finding:?}");
        assert_eq!(finding.mend, Vec::<String>::new(), "{finding:?}");
    }
    assert!(!report.fails());
}

#[test]
fn each_fault_is_found_and_mended() {
    type Fault = fn(&mut HostFacts);
    let faults: &[(Fault, &str, Level, &str)] = &[
        (
            |facts| facts.kernel_release = "5.15.0".into(),
            "kernel",
            Level::Fail,
            "6.1",
        ),
        (
            |facts| facts.rings = RingFacts::Absent,
            "io_uring",
            Level::Fail,
            "CONFIG_IO_URING",
        ),
        (
            |facts| {
                facts.rings = RingFacts::Forbidden {
                    disabled: Some(2),
                    seccomp: true,
                }
            },
            "io_uring",
            Level::Fail,
            "sysctl -w kernel.io_uring_disabled=0",
        ),
        (
            |facts| {
                facts.rings = RingFacts::Forbidden {
                    disabled: Some(0),
                    seccomp: true,
                }
            },
            "io_uring",
            Level::Fail,
            "seccomp=PROFILE",
        ),
        (
            |facts| {
                facts.rings = RingFacts::Forbidden {
                    disabled: None,
                    seccomp: false,
                }
            },
            "io_uring",
            Level::Fail,
            "AppArmor",
        ),
        (
            |facts| facts.rings = RingFacts::TooOld,
            "io_uring",
            Level::Fail,
            "6.1",
        ),
        (
            |facts| facts.rings = RingFacts::MemoryLocked,
            "io_uring",
            Level::Fail,
            "ulimit -l",
        ),
        (
            |facts| {
                facts.rings = RingFacts::Works {
                    opcodes_missing: vec![],
                    engine: Err("no".into()),
                    direct: Ok(()),
                }
            },
            "io_uring",
            Level::Fail,
            "",
        ),
        (
            |facts| {
                facts.rings = RingFacts::Works {
                    opcodes_missing: vec!["SOCKET"],
                    engine: Ok(()),
                    direct: Ok(()),
                }
            },
            "io_uring",
            Level::Fail,
            "6.1",
        ),
        (
            |facts| facts.open_files.hard = Some(4_096),
            "open files",
            Level::Warn,
            "systemd: LimitNOFILE=1048576",
        ),
        (
            |facts| facts.open_files.hard = Some(175),
            "open files",
            Level::Fail,
            "ulimit -Hn 1048576",
        ),
        (
            |facts| facts.memory_lock.hard = Some(64 << 10),
            "locked memory",
            Level::Fail,
            "LimitMEMLOCK=infinity",
        ),
        (
            |facts| facts.processors = vec![0, 1],
            "processors",
            Level::Warn,
            "write shards = 1",
        ),
        (
            |facts| facts.processor_quota_milli = Some(1_500),
            "processor quota",
            Level::Warn,
            "CPUQuota",
        ),
        (
            |facts| facts.memory_bytes = 4 * GIB,
            "memory",
            Level::Warn,
            "connection_count_max = ",
        ),
        (
            |facts| facts.memory_group_bytes_max = Some(8 * GIB),
            "memory",
            Level::Warn,
            "node_bytes_max = \"",
        ),
        (
            |facts| facts.file_max = Some(100_000),
            "fs.file-max",
            Level::Warn,
            "sysctl -w fs.file-max=2002000",
        ),
        (
            |facts| facts.huge_pages = Some("always".into()),
            "transparent huge pages",
            Level::Warn,
            "echo madvise",
        ),
        (
            |facts| facts.somaxconn = Some(128),
            "net.core.somaxconn",
            Level::Warn,
            "somaxconn=4096",
        ),
        (
            |facts| facts.syn_backlog = Some(512),
            "net.ipv4.tcp_max_syn_backlog",
            Level::Warn,
            "tcp_max_syn_backlog=4096",
        ),
        (
            |facts| facts.tcp_memory_bytes = Some([1 << 20, 2 << 20, 3 << 20]),
            "net.ipv4.tcp_mem",
            Level::Warn,
            "tcp_mem=\"750000 1000000 1500000\"",
        ),
        (
            |facts| facts.tcp_orphans_max = Some(65_536),
            "net.ipv4.tcp_max_orphans",
            Level::Warn,
            "tcp_max_orphans=1000000",
        ),
        (
            |facts| facts.conntrack = Some((10, 262_144)),
            "net.netfilter.nf_conntrack_max",
            Level::Warn,
            "nf_conntrack_max=2000010",
        ),
        (
            |facts| facts.ports[0].1 = PortState::Taken,
            "address 0.0.0.0:8080",
            Level::Fail,
            "ss -ltnp",
        ),
        (
            |facts| facts.ports = vec![("0.0.0.0:80".parse().unwrap(), PortState::Forbidden)],
            "address 0.0.0.0:80",
            Level::Fail,
            "cap_net_bind_service",
        ),
        (
            |facts| {
                facts.ports = vec![(
                    "192.0.2.1:8080".parse().unwrap(),
                    PortState::Refused("no".into()),
                )]
            },
            "address 192.0.2.1:8080",
            Level::Fail,
            "ip address",
        ),
    ];
    for (fault, name, level, mend) in faults {
        let mut facts = facts();
        fault(&mut facts);
        let report = evaluate(&usual(), &facts, &[]);
        let worse: Vec<_> = report
            .findings
            .iter()
            .filter(|finding| finding.level != Level::Ok)
            .collect();
        assert_eq!(worse.len(), 1, "{name}: {worse:#?}");
        assert_eq!(
            (worse[0].name.as_str(), worse[0].level),
            (*name, *level),
            "{worse:#?}"
        );
        assert!(
            mend.is_empty() || worse[0].mend.iter().any(|line| line.contains(mend)),
            "{worse:#?}"
        );
        assert_eq!(report.fails(), *level == Level::Fail);
        let failures = report.failures();
        assert_eq!(failures.len(), usize::from(*level == Level::Fail));
        assert!(
            failures
                .iter()
                .all(|failure| failure.starts_with(name) && failure.contains(mend))
        );
    }
}

#[test]
fn no_direct_table_is_told_where_one_was_wanted() {
    let mut facts = facts();
    facts.rings = RingFacts::Works {
        opcodes_missing: Vec::new(),
        engine: Ok(()),
        direct: Err("EINVAL".into()),
    };
    let level = |word: &str| {
        let report = evaluate(&settings(&[("descriptors", word)]), &facts, &[]);
        report
            .findings
            .iter()
            .find(|finding| finding.name == "direct descriptors")
            .unwrap()
            .level
    };
    assert_eq!(level("auto"), Level::Warn);
    assert_eq!(level("plain"), Level::Ok);
}

#[test]
fn a_kernel_that_keeps_closed_direct_descriptors_is_told() {
    let facts = HostFacts {
        direct_descriptors_freed: false,
        ..facts()
    };
    for (word, level) in [("direct", Level::Warn), ("plain", Level::Ok)] {
        let report = evaluate(&settings(&[("descriptors", word)]), &facts, &[]);
        let mut findings = report.findings.iter();
        let finding = findings
            .find(|finding| finding.name == "direct descriptors")
            .unwrap();
        assert_eq!(finding.level, level, "{finding:?}");
        assert!(finding.seen.contains("6.13"), "{finding:?}");
    }
}

#[test]
fn mistakes_in_the_settings_fail() {
    let mistake = Mistake {
        place: "t.toml:1".into(),
        problem: "p".into(),
        instead: "i".into(),
    };
    let report = evaluate(&usual(), &facts(), &[mistake]);
    assert!(report.fails());
    assert!(report.to_text(false).starts_with("fail  settings"));
}

#[test]
fn the_tightest_limit_is_named() {
    let first = |settings: &Settings, facts: &HostFacts| {
        let bounds = evaluate(settings, facts, &[]).bounds;
        (bounds[0].name, bounds[0].connections)
    };
    let automatic = settings(&[]);
    assert_eq!(
        first(&usual(), &facts()),
        ("connection_count_max", 1_000_000)
    );
    let mut facts = facts();
    facts.open_files.hard = Some(20_000);
    assert_eq!(
        first(&automatic, &facts),
        ("descriptors", 3 * (20_000 - 1_024))
    );
    facts.rings = RingFacts::Works {
        opcodes_missing: Vec::new(),
        engine: Ok(()),
        direct: Err("no".into()),
    };
    assert_eq!(
        first(&automatic, &facts),
        ("descriptors", 20_000 - 128 - 48 - 1_024)
    );
    facts.memory_group_bytes_max = Some(64 << 20);
    assert_eq!(first(&automatic, &facts).0, "memory");
    facts.file_max = Some(2_100);
    assert_eq!(first(&automatic, &facts), ("fs.file-max", 100));
    facts.admin_capability = true;
    assert_eq!(first(&automatic, &facts).0, "memory");
    facts.conntrack = Some((1, 51));
    assert_eq!(first(&automatic, &facts), ("nf_conntrack_max", 50));
}

#[test]
fn a_report_is_aligned_text_or_json() {
    let mut facts = facts();
    facts.somaxconn = Some(128);
    let report = evaluate(&usual(), &facts, &[]);
    let text = report.to_text(false);
    assert!(!text.contains('\x1b'));
    assert!(text.contains("serve would start: 0 failed, 1 warned"));
    let columns: Vec<_> = ["complete, without", "6.1.0-18"]
        .iter()
        .map(|word| column(&text, word))
        .collect();
    assert_eq!(columns[0], columns[1]);
    assert!(report.to_text(true).contains("\x1b[33mwarn\x1b[0m"));
    let json = report.to_json();
    assert_eq!(json["serves"], true);
    assert_eq!(json["capacity"]["first_limit"], "connection_count_max");
    assert!(
        json["findings"]
            .as_array()
            .unwrap()
            .iter()
            .any(|finding| finding["level"] == "warn")
    );
}

#[test]
fn a_redis_is_told_with_its_distance_or_with_what_is_wrong() {
    use crate::runtime::redis::{RedisFact, RedisSeen, RedisService};
    let fact = |seen| RedisFact {
        place: "h:6379".into(),
        seen,
        is_spare: false,
    };
    let seen = |round_trip_us| RedisSeen {
        server: "redis 7.0.15, RESP3, standalone, master".into(),
        tls: Some("TLSv1_3".into()),
        service: RedisService::Messages { round_trip_us },
        lacks: None,
    };
    let mut facts = facts();
    facts.redis = vec![fact(Ok(seen(212))), fact(Ok(seen(5_001)))];
    let with_redis = settings(&[("redis", "redis://h")]);
    let report = evaluate(&with_redis, &facts, &[]);
    let text = report.to_text(false);
    let told = "redis 7.0.15, RESP3, standalone, master, TLSv1_3; a message is back after 0.212 ms";
    assert!(text.contains(told), "{text}");
    assert!(text.contains("5.001 ms: every message takes"), "{text}");
    assert!(!report.fails());
    facts.redis[0].seen = Ok(RedisSeen {
        service: RedisService::Names {
            master: "m:1".into(),
        },
        ..seen(0)
    });
    let text = evaluate(&with_redis, &facts, &[]).to_text(false);
    assert!(text.contains("it names the master m:1"), "{text}");
    facts.redis[0].seen = Err("h:6379 refuses the connection".into());
    facts.redis[0].is_spare = true;
    assert!(!evaluate(&with_redis, &facts, &[]).fails());
    facts.redis[0].is_spare = false;
    let report = evaluate(&with_redis, &facts, &[]);
    assert!(report.fails() && report.failures()[0].contains("refuses"));
    let text = report.to_text(false);
    assert!(
        text.contains("serve would start and not be ready: 1 failed"),
        "{text}"
    );
    let mut wrong_tls = facts.clone();
    wrong_tls.redis[0].place = "TLS".into();
    let text = evaluate(&with_redis, &wrong_tls, &[]).to_text(false);
    assert!(text.contains("serve would not start: 1 failed"), "{text}");
    let fails = settings(&[("redis", "redis://h"), ("redis_at_start", "fail")]);
    let text = evaluate(&fails, &facts, &[]).to_text(false);
    assert!(text.contains("serve would not start: 1 failed"), "{text}");
}

fn column(text: &str, word: &str) -> usize {
    text.lines().find_map(|line| line.find(word)).unwrap()
}

#[test]
fn numbers_are_written_for_people() {
    assert_eq!(grouped(0), "0");
    assert_eq!(grouped(999), "999");
    assert_eq!(grouped(1_048_576), "1,048,576");
    assert_eq!(sized(1_023), "1023 B");
    assert_eq!(sized(1_536), "1.5 KiB");
    assert_eq!(sized(24 << 30), "24.0 GiB");
}
