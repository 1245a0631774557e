//! The whole way from text to settings.

use std::collections::BTreeSet;
use std::io;

use super::*;
use crate::metrics::DropPolicy;
use crate::protocol::handshake::Auth;
use crate::runtime::ring::Descriptors;
use crate::shard::HeartbeatMode;

fn machine() -> Machine {
    Machine {
        processors: vec![0, 1, 2, 3],
        processor_quota_milli: None,
        open_files_max: 20_000,
        direct_descriptors_freed: true,
        memory_bytes: 8 << 30,
        hostname: "web 1".into(),
        process_id: 77,
    }
}

fn args(flags: &[(&str, &str)]) -> ServeArgs {
    let mut args = ServeArgs::default();
    for (key, text) in flags {
        let values = args.flags.entry((*key).to_owned()).or_default();
        values.push((*text).to_owned());
    }
    args
}

fn load_all(
    args: &ServeArgs,
    environment: &[(&str, &str)],
    file: &str,
) -> Result<(Settings, Effective), Vec<Mistake>> {
    let environment = environment
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    let args = ServeArgs {
        config: Some("t.toml".into()),
        ..args.clone()
    };
    let read_file = |path: &str| match path {
        "t.toml" => Ok(file.to_owned()),
        "/run/key" => Ok("a-key-from-a-file\n".to_owned()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    load(&args, environment, read_file, &machine())
}

fn from_file(file: &str) -> Settings {
    match load_all(&args(&[]), &[], file) {
        Ok((settings, _)) => settings,
        Err(mistakes) => panic!("{mistakes:#?}"),
    }
}

/// The mistakes of a file, as lines.
fn mistakes_of(file: &str) -> Vec<String> {
    let mistakes = load_all(&args(&[]), &[], file).expect_err("there are mistakes");
    mistakes.iter().map(ToString::to_string).collect()
}

/// The one mistake of a file.
fn mistake_of(file: &str) -> String {
    let mistakes = mistakes_of(file);
    assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
    mistakes.into_iter().next().unwrap()
}

#[test]
fn defaults_are_what_the_reference_says() {
    let settings = from_file("");
    assert_eq!(settings.listen, ["0.0.0.0:8080".parse().unwrap()]);
    assert_eq!(settings.admin, Some("127.0.0.1:8081".parse().unwrap()));
    assert_eq!(settings.admin_key, None);
    assert_eq!(settings.shards, 3);
    assert_eq!(settings.node_id, "web-1-77");
    assert_eq!(settings.shard.message_bytes_max, 65_536);
    assert_eq!(settings.shard.connection_queue_bytes_max, 65_536);
    assert_eq!(
        settings.shard.connection_count_max, 56_928,
        "three tables of 20,000, less those passing"
    );
    assert_eq!(settings.shard.node_bytes_max, 3 << 30);
    assert_eq!(settings.shard.shard_bytes_max, 3 << 30);
    assert_eq!(settings.shard.heartbeat, HeartbeatMode::Ping);
    assert_eq!(settings.shard.ping_interval_ms, 25_000);
    assert_eq!(settings.shard.pong_timeout_ms, 10_000);
    assert_eq!(settings.ring.socket_count_max, 20_000);
    assert_eq!(settings.ring.submission_entries, 1_024);
    assert_eq!(settings.ring.completion_entries, 8_192);
    assert_eq!(settings.ring.receive_buffer_bytes, 4_096);
    assert_eq!(settings.ring.receive_buffer_count, 512);
    assert_eq!(settings.socket.keepalive, None);
    assert_eq!(settings.socket.user_timeout_ms, 0);
    let drain = settings.drain;
    assert_eq!(
        (
            drain.delay_ms,
            drain.window_ms,
            drain.deadline_ms,
            drain.notice
        ),
        (0, 10_000, 30_000, true)
    );
    assert_eq!(settings.log.level, Some(tracing::Level::INFO));
}

#[test]
fn flags_count_over_environment_over_file_over_defaults() {
    let file = "ping_interval_ms = \"40s\"\nlog_level = \"warn\"\nshards = 2\n";
    let environment = [
        ("THRONG_SHARDS", "3"),
        ("THRONG_LOG_LEVEL", "debug"),
        ("HOME", "/"),
    ];
    let (settings, effective) = load_all(&args(&[("shards", "4")]), &environment, file).unwrap();
    assert_eq!(settings.shards, 4);
    assert_eq!(settings.log.level, Some(tracing::Level::DEBUG));
    assert_eq!(settings.shard.ping_interval_ms, 40_000);
    let source = |key| effective.entry(key).unwrap().source.clone();
    assert_eq!(source("shards"), Source::Flag);
    assert_eq!(source("log_level"), Source::Environment);
    assert_eq!(source("ping_interval_ms"), Source::File { line: 1 });
    assert_eq!(source("pong_timeout_ms"), Source::Default);
}

#[test]
fn the_environment_may_name_the_file() {
    let environment = [("THRONG_CONFIG".to_owned(), "t.toml".to_owned())].into_iter();
    let read_file = |path: &str| {
        Ok(if path == "t.toml" {
            "shards = 2".into()
        } else {
            String::new()
        })
    };
    let (settings, _) = load(&ServeArgs::default(), environment, read_file, &machine()).unwrap();
    assert_eq!(settings.shards, 2);
}

#[test]
fn all_mistakes_are_told_at_once_each_with_what_to_write() {
    let file =
        "shrads = 4\nping_interval_ms = \"soon\"\nmessage_bytes_max = 0\n[limits]\nx = 1\nbroken\n";
    let flags = args(&[("drain_notice", "yes"), ("admin", "8081")]);
    let environment = [("THRONG_SHARD", "2"), ("THRONG_HEARTBEAT", "udp")];
    let mistakes = load_all(&flags, &environment, file).unwrap_err();
    let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    let told = |place: &str, instead: &str| {
        let found = mistakes
            .iter()
            .any(|mistake| mistake.place == place && mistake.instead.contains(instead));
        assert!(found, "{place} … {instead} in {lines:#?}");
    };
    told("t.toml:1", "\"shards\"");
    told("t.toml:2", "write milliseconds");
    told("t.toml:3", "write 1");
    told("t.toml:4", "without sections");
    told("t.toml:6", "KEY = VALUE");
    told("--drain-notice", "true or false");
    told("--admin", "\"off\"");
    told("THRONG_SHARD", "THRONG_SHARDS");
    told("THRONG_HEARTBEAT", "ping, tcp");
    assert_eq!(mistakes.len(), 9, "{lines:#?}");
}

#[test]
fn a_value_that_is_covered_is_checked_all_the_same() {
    let mistakes = load_all(&args(&[("shards", "2")]), &[], "shards = 0").unwrap_err();
    assert_eq!(mistakes[0].place, "t.toml:1");
}

#[test]
fn variables_of_kubernetes_services_are_nobodys_mistake() {
    let links = [
        ("THRONG_SERVICE_HOST", "10.0.0.1"),
        ("THRONG_SERVICE_PORT_HTTP", "80"),
        ("THRONG_ADMIN_PORT", "tcp://10.0.0.1:80"),
        ("THRONG_PORT_80_TCP_ADDR", "10.0.0.1"),
    ];
    assert!(load_all(&args(&[]), &links, "").is_ok());
    assert!(load_all(&args(&[]), &[("THRONG_PORTS", "80")], "").is_err());
}

#[test]
fn wrong_types_are_told() {
    for (file, instead) in [
        ("shards = 1.5", "whole number"),
        ("shards = [1]", "whole number"),
        ("listen = 2020-01-01", "IPV4:PORT"),
        ("drain_notice = 1", "true or false"),
        ("origins = [1.5]", "SCHEME://HOST"),
        ("admin = true", "IPV4:PORT"),
        ("log_level = \"loud\"", "trace"),
        ("rooms = 1", "[[rooms]]"),
        ("[rooms]\nmatch = \"*\"", "[[rooms]]"),
    ] {
        let mistake = mistake_of(file);
        assert!(mistake.contains(instead), "{file}: {mistake}");
    }
}

#[test]
fn a_file_that_is_not_there_is_told() {
    let args = ServeArgs {
        config: Some("absent.toml".into()),
        ..ServeArgs::default()
    };
    let read_file = |_: &str| Err(io::Error::from(io::ErrorKind::NotFound));
    let mistakes = load(&args, std::iter::empty(), read_file, &machine()).unwrap_err();
    assert_eq!(mistakes[0].place, "absent.toml");
}

#[test]
fn room_rules_come_from_the_file_in_their_order() {
    let file = "[[rooms]]\nmatch = \"ticker:*\"\nslow = \"latest\"\n\n[[rooms]]\nmatch = \"*\"\nslow = \"drop-oldest\"\n";
    let rooms = from_file(file).shard.rooms;
    let seen: Vec<_> = rooms
        .iter()
        .map(|rule| (rule.pattern.as_str(), rule.slow))
        .collect();
    assert_eq!(
        seen,
        [
            ("ticker:*", DropPolicy::Latest),
            ("*", DropPolicy::DropOldest)
        ]
    );
}

#[test]
fn mistakes_in_room_rules_name_their_lines() {
    let file = "[[rooms]]\nmatch = \"a*b\"\nslow = \"never\"\n[[rooms]]\nmatch = \"x\"\n[[rooms]]\nslow = \"latest\"\nmtach = \"y\"\n";
    let mistakes = mistakes_of(file);
    let starts: Vec<&str> = mistakes
        .iter()
        .map(|line| line.split_once(": ").unwrap().0)
        .collect();
    assert_eq!(
        starts,
        ["t.toml:2", "t.toml:3", "t.toml:4", "t.toml:6", "t.toml:8"],
        "{mistakes:#?}"
    );
}

#[test]
fn contradictions_are_found() {
    for (file, keys) in [
        (
            "message_bytes_max = \"128KiB\"",
            "message_bytes_max (line 1) and connection_queue_bytes_max (default)",
        ),
        (
            "pong_timeout_ms = \"25s\"",
            "pong_timeout_ms (line 1) and ping_interval_ms (default)",
        ),
        (
            "drain_window_ms = \"31s\"",
            "drain_deadline_ms (default) and drain_window_ms (line 1)",
        ),
        (
            "drain_delay_ms = \"21s\"",
            "drain_deadline_ms (default) and drain_window_ms (default)",
        ),
        ("listen = [\"[::1]:1\", \"[::1]:1\"]", "listen (line 1)"),
        (
            "listen = [\"0.0.0.0:1\", \"127.0.0.1:1\"]",
            "listen (line 1)",
        ),
        (
            "admin = \"127.0.0.1:8080\"",
            "admin (line 1) and listen (default)",
        ),
        (
            "admin = \"10.0.0.1:8081\"",
            "admin (line 1) and admin_key (default)",
        ),
        ("cores = [0, 4]", "cores (line 1)"),
        (
            "connection_count_max = 56929",
            "connection_count_max (line 1) and shards (default)",
        ),
        (
            "connection_count_max = 18801\ndescriptors = \"plain\"",
            "connection_count_max (line 1) and shards (default)",
        ),
        (
            "shard_bytes_max = \"5GiB\"",
            "shard_bytes_max (line 1) and node_bytes_max (default)",
        ),
        (
            "shard_bytes_max = \"1MiB\"\nconnection_queue_bytes_max = \"1MiB\"",
            "connection_queue_bytes_max (line 2) and shard_bytes_max (line 1)",
        ),
        (
            "node_bytes_max = \"1MiB\"\nshards = 5",
            "node_bytes_max (line 1) and shards (line 2)",
        ),
        (
            "address_connection_count_max = 56929",
            "address_connection_count_max (line 1) and connection_count_max (default)",
        ),
        (
            "ring_completion_entries = 1024",
            "ring_completion_entries (line 1) and ring_submission_entries (default)",
        ),
    ] {
        let mistake = mistake_of(file);
        assert!(
            mistake.starts_with(&format!("{keys}: ")),
            "{file}: {mistake}"
        );
    }
}

#[test]
fn what_just_fits_is_no_contradiction() {
    from_file(
        "message_bytes_max = 65536\npong_timeout_ms = 24999\ndrain_window_ms = \"30s\"\nconnection_count_max = 56928",
    );
    from_file("connection_count_max = 18800\ndescriptors = \"plain\"");
    from_file(
        "listen = [\"0.0.0.0:1\", \"[::]:1\", \"0.0.0.0:2\", \"0.0.0.0:0\", \"127.0.0.1:0\"]\nadmin = \"off\"",
    );
    from_file("admin = \"0.0.0.0:8081\"\nadmin_key = \"12345678\"");
    from_file("shard_bytes_max = \"1GiB\"\nnode_bytes_max = \"1GiB\"");
    from_file("node_bytes_max = \"1MiB\"\nshards = 4");
}

#[test]
fn more_shards_than_processors_are_allowed_but_not_more_than_ids() {
    assert_eq!(from_file("shards = 250").shards, 250);
    assert!(mistake_of("shards = 251").contains("write 250"));
    assert_eq!(from_file("cores = \"1\"").shards, 1);
    assert_eq!(from_file("cores = \"0-2\"").shards, 2);
}

#[test]
fn automatic_shards_stay_within_the_processor_quota() {
    for (quota_milli, shards) in [
        (None, 3),
        (Some(9_000), 3),
        (Some(2_500), 2),
        (Some(500), 1),
    ] {
        let machine = Machine {
            processor_quota_milli: quota_milli,
            ..machine()
        };
        let no_file = |_: &str| Err(io::Error::from(io::ErrorKind::NotFound));
        let loaded = load(&ServeArgs::default(), std::iter::empty(), no_file, &machine);
        assert_eq!(loaded.unwrap().0.shards, shards, "{quota_milli:?}");
    }
}

#[test]
fn mistakes_in_a_file_are_told_by_their_lines() {
    let mistakes = mistakes_of("shards = 0\nx = 1\nheartbeat = 3\nshards = 2\nadmin = 1\n");
    let lines: Vec<&str> = mistakes.iter().map(|line| &line[..8]).collect();
    assert_eq!(
        lines,
        ["t.toml:1", "t.toml:2", "t.toml:3", "t.toml:4", "t.toml:5"]
    );
    assert!(mistakes[3].contains("write it once"), "{}", mistakes[3]);
}

#[test]
fn the_admin_key_may_come_from_a_file_and_is_never_printed() {
    let (settings, effective) =
        load_all(&args(&[("admin_key_file", "/run/key")]), &[], "").unwrap();
    assert_eq!(settings.admin_key.as_deref(), Some("a-key-from-a-file"));
    assert!(!effective.to_toml().contains("a-key-from-a-file"));
    let environment = [("THRONG_ADMIN_KEY", "a-key-of-its-own")];
    let (settings, effective) = load_all(&args(&[]), &environment, "").unwrap();
    assert_eq!(settings.admin_key.as_deref(), Some("a-key-of-its-own"));
    assert!(!effective.to_toml().contains("a-key-of-its-own"));
    assert!(effective.to_toml().contains("# admin_key is set"));
    assert!(load_all(&args(&[("admin_key_file", "/run/key")]), &environment, "").is_err());
    assert!(mistake_of("admin_key_file = \"/run/none\"").contains("cannot be read"));
    assert!(!mistake_of("admin_key = \"short\"").contains("short"));
}

#[test]
fn a_redis_password_comes_from_the_url_the_environment_or_a_file_and_is_never_printed() {
    let password = |settings: &Settings| settings.redis.clone().unwrap().address.password;
    let url = [("redis", "redis://u:in-the-url@h:1/2")];
    let (settings, effective) = load_all(&args(&url), &[], "").unwrap();
    assert_eq!(password(&settings).as_deref(), Some("in-the-url"));
    let printed = effective.to_toml();
    assert!(printed.contains("redis = \"redis://u@h:1/2\" # its password is not printed"));
    let environment = [("THRONG_REDIS_PASSWORD", "in-the-environment")];
    let (settings, _) = load_all(&args(&url), &environment, "").unwrap();
    assert_eq!(password(&settings).as_deref(), Some("in-the-environment"));
    let file = [url[0], ("redis_password_file", "/run/key")];
    let (settings, _) = load_all(&args(&file), &[], "").unwrap();
    assert_eq!(password(&settings).as_deref(), Some("a-key-from-a-file"));
    assert!(!format!("{settings:?}").contains("a-key-from-a-file"));
    let wrong = mistake_of("redis = \"redis://u:hunter2@h:x\"");
    assert!(
        wrong.contains("port") && !wrong.contains("hunter2"),
        "{wrong}"
    );
}

#[test]
fn redis_is_off_by_default_and_what_it_takes_longer_is_granted() {
    let settings = from_file("");
    assert_eq!((settings.redis, settings.shard.join_timeout_ms), (None, 0));
    let settings =
        from_file("redis = \"redis://h\"\nnode_id = \"n\"\nredis_join_timeout_ms = \"2s\"");
    assert_eq!(settings.shard.join_timeout_ms, 2_000);
    assert_eq!(settings.redis.unwrap().client_name, "throng-n");
}

#[test]
fn the_tcp_heartbeat_sets_the_kernels_keepalive() {
    let socket = from_file("heartbeat = \"tcp\"").socket;
    assert_eq!(
        socket.keepalive,
        Some(Keepalive {
            idle_s: 25,
            interval_s: 4,
            probe_count: 3
        })
    );
    assert_eq!(socket.user_timeout_ms, 35_000);
    assert_eq!(
        from_file("socket_user_timeout_ms = \"7s\"")
            .socket
            .user_timeout_ms,
        7_000
    );
}

#[test]
fn what_is_printed_reads_back_to_the_same_settings() {
    let file = "shards = 2\nlisten = [\"127.0.0.1:1\", \"[::1]:2\"]\nadmin = \"off\"\nidle_timeout_ms = \"1h\"\n\
        origins = [\"https://a.example\", \"https://*.b.example\"]\ncores = [0, 1]\nnode_id = \"n.1\"\n\
        descriptors = \"plain\"\nlog_level = \"off\"\n[[rooms]]\nmatch = \"quote\\\"d*\"\nslow = \"drop-newest\"\n";
    for file in ["", file] {
        let (settings, effective) = load_all(&args(&[]), &[], file).unwrap();
        let printed = effective.to_toml();
        let again = load_all(&args(&[]), &[], &printed);
        let (settings_again, _) =
            again.unwrap_or_else(|mistakes| panic!("{mistakes:#?}\n{printed}"));
        assert_eq!(format!("{settings:?}"), format!("{settings_again:?}"));
    }
}

#[test]
fn every_setting_reaches_its_option() {
    let plain = format!("{:?}", draft::Draft::new());
    for definition in DEFINITIONS {
        let samples = [
            "7168",
            "2MiB",
            "100",
            "1024",
            "65536",
            "16384",
            "4",
            "tcp",
            "direct",
            "human",
            "info",
            "true",
            "1.2.3.4:5",
            "https://a.b",
            "some-text",
            "fail",
            "refuse",
            "redis://host",
            "streams",
            "all",
            "10.0.0.0/8",
            "header",
            "accept",
            "on",
            "/path",
            "strict",
            "all",
        ];
        let read = |text: &&str| definition.kind.read(&value::Raw::Text((*text).into())).ok();
        let changes = samples.iter().filter_map(read).any(|value| {
            let mut draft = draft::Draft::new();
            (definition.apply)(&mut draft, &value);
            format!("{draft:?}") != plain
        });
        assert!(changes, "{} changes nothing", definition.key);
    }
}

#[test]
fn definitions_are_unique_and_their_defaults_are_allowed() {
    let keys: BTreeSet<_> = DEFINITIONS
        .iter()
        .map(|definition| definition.key)
        .collect();
    assert_eq!(keys.len(), DEFINITIONS.len());
    for definition in DEFINITIONS {
        load::default(definition);
        assert!(definition.effect.ends_with('.'), "{}", definition.key);
        assert_eq!(
            find(definition.key).map(|found| found.key),
            Some(definition.key)
        );
    }
}

#[test]
fn auto_counts_what_plain_descriptors_hold() {
    let settings = from_file("descriptors = \"plain\"");
    assert_eq!(settings.ring.descriptors, Descriptors::Plain);
    assert_eq!(settings.shard.connection_count_max, 18_800);
}

#[test]
fn direct_descriptors_are_not_taken_unasked_where_closed_ones_are_kept() {
    let machine = Machine {
        direct_descriptors_freed: false,
        ..machine()
    };
    let descriptors = |flags: &[(&str, &str)]| {
        let no_file = |_: &str| Err(io::Error::from(io::ErrorKind::NotFound));
        let loaded = load(&args(flags), std::iter::empty(), no_file, &machine).unwrap();
        (
            loaded.0.ring.descriptors,
            loaded.0.shard.connection_count_max,
        )
    };
    assert_eq!(descriptors(&[]), (Descriptors::Plain, 18_800));
    assert_eq!(
        descriptors(&[("descriptors", "direct")]).0,
        Descriptors::Direct
    );
}

#[test]
fn nobody_is_believed_where_nobody_is_trusted() {
    let settings = from_file("trusted_proxies = [\"10.0.0.0/8\", \"::1\"]\nauth = \"header\"");
    let edge = &settings.shard.edge;
    assert_eq!(edge.trusted_proxies.len(), 2);
    assert_eq!(edge.auth, Auth::Header("X-User-Id".into()));
    for line in [
        "auth = \"header\"",
        "proxy_protocol = \"require\"",
        "proxy_protocol = \"accept\"",
        "forwarded_for = \"on\"",
    ] {
        let mistake = mistake_of(line);
        let (key, _) = line.split_once(' ').unwrap();
        let expected = format!("{key} (line 1) and trusted_proxies (default)");
        assert!(mistake.contains(&expected), "{mistake}");
    }
    for everybody in ["0.0.0.0/0", "::/0"] {
        let file = format!("auth = \"header\"\ntrusted_proxies = [\"10.0.0.1\", {everybody:?}]");
        let mistake = mistake_of(&file);
        let expected = "auth (line 1) and trusted_proxies (line 2): everybody is trusted";
        assert!(mistake.starts_with(expected), "{mistake}");
        from_file(&format!(
            "forwarded_for = \"on\"\ntrusted_proxies = [{everybody:?}]"
        ));
    }
    let both = "trusted_proxies = [\"::1\"]\nauth = \"header\"\nproxy_protocol = ";
    let mistake = mistake_of(&format!("{both}\"require\""));
    assert!(
        mistake.contains("auth (line 2) and proxy_protocol (line 3)"),
        "{mistake}"
    );
    from_file(&format!("{both}\"accept\""));
    for wrong in ["10.0.0.1/8", "balancer", "10.0.0.0/33"] {
        let mistake = mistake_of(&format!("trusted_proxies = {wrong:?}"));
        assert!(
            mistake.contains(wrong) && mistake.contains("10.0.0.0/8"),
            "{mistake}"
        );
    }
    assert!(mistake_of("identity_header = \"X User\"").contains("X User"));
}

#[test]
fn a_users_header_that_is_not_read_is_a_contradiction() {
    let mistake = mistake_of("identity_header = \"X-Who\"");
    let expected = "identity_header (line 1) and auth (default): the header is not read";
    assert!(mistake.starts_with(expected), "{mistake}");
    from_file("auth = \"header\"\nidentity_header = \"X-Who\"\ntrusted_proxies = [\"10.0.0.1\"]");
    from_file("identity_header = \"X-User-Id\"");
}

#[test]
fn settings_of_a_cookie_that_is_not_set_are_a_contradiction() {
    for line in [
        "affinity_value = \"a\"",
        "affinity_path = \"/rooms\"",
        "affinity_domain = \"a.example\"",
        "affinity_max_age_s = 60",
        "affinity_same_site = \"none\"",
        "affinity_secure = true",
    ] {
        let mistake = mistake_of(line);
        let (key, _) = line.split_once(' ').unwrap();
        let expected = format!("{key} (line 1) and affinity_cookie (default): no cookie is set");
        assert!(mistake.starts_with(&expected), "{mistake}");
        if key != "affinity_same_site" {
            from_file(&format!("{line}\naffinity_cookie = \"node\""));
        }
    }
}

#[test]
fn the_cookie_has_the_nodes_name_unless_it_is_given_another() {
    let lines = |file: &str| {
        let badge = from_file(file).shard.edge.badge;
        String::from_utf8(badge.lines(false).to_vec()).unwrap()
    };
    assert_eq!(lines(""), "X-Throng-Node: web-1-77\r\n");
    assert_eq!(lines("node_header = \"off\""), "");
    assert_eq!(
        lines("node_header = \"off\"\nnode_id = \"n1\"\naffinity_cookie = \"node\""),
        "Set-Cookie: node=n1; Path=/; SameSite=Lax; HttpOnly\r\n"
    );
    let all = "affinity_cookie = \"__Host-node\"\naffinity_value = \"a/1\"\naffinity_max_age_s = \"1h\"\n\
        affinity_same_site = \"none\"\naffinity_secure = true";
    assert_eq!(
        lines(all),
        "X-Throng-Node: web-1-77\r\nSet-Cookie: __Host-node=a/1; Path=/; Max-Age=3600; SameSite=None; Secure; HttpOnly\r\n"
    );
}

#[test]
fn the_longest_lines_of_a_101_fit_what_is_kept_for_them() {
    let text = |count| "x".repeat(count);
    let file = format!(
        "node_id = {:?}\nnode_header = {:?}\naffinity_cookie = {:?}\naffinity_path = {:?}\naffinity_domain = {:?}\n\
            affinity_max_age_s = 34560000\naffinity_same_site = \"strict\"\naffinity_secure = true",
        text(64),
        text(64),
        text(64),
        format!("/{}", text(127)),
        text(128)
    );
    let badge = from_file(&file).shard.edge.badge;
    assert!(badge.lines(false).len() <= crate::limits::UPGRADE_LINES_BYTES_MAX);
}

#[test]
fn a_cookie_that_no_browser_takes_is_a_contradiction() {
    for (file, other) in [
        ("affinity_same_site = \"none\"", "affinity_secure"),
        ("affinity_cookie = \"__Secure-node\"", "affinity_secure"),
        (
            "affinity_secure = true\naffinity_cookie = \"__Host-node\"\naffinity_path = \"/rooms\"",
            "affinity_path",
        ),
        (
            "affinity_secure = true\naffinity_cookie = \"__Host-node\"\naffinity_domain = \"a.example\"",
            "affinity_domain",
        ),
    ] {
        let name = if file.contains("affinity_cookie") {
            ""
        } else {
            "affinity_cookie = \"node\"\n"
        };
        let mistake = mistake_of(&format!("{name}{file}"));
        assert!(
            mistake.contains("browsers take") && mistake.contains(other),
            "{mistake}"
        );
    }
    for wrong in [
        "affinity_cookie = \"a b\"",
        "affinity_value = \"a;b\"",
        "affinity_value = \"\"",
        "affinity_path = \"rooms\"",
        "affinity_domain = \"a_b\"",
        "node_header = \"Upgrade\"",
        "node_header = \"sec-websocket-protocol\"",
    ] {
        mistake_of(wrong);
    }
}

#[test]
fn the_admin_key_is_not_in_the_debug_text() {
    let settings = from_file("admin_key = \"a-key-of-its-own\"");
    assert!(!format!("{settings:?}").contains("a-key-of-its-own"));
}

/// `throng config --markdown` prints what belongs there.
#[test]
fn the_settings_in_the_operating_guide_are_these() {
    let guide = include_str!("../../docs/OPERATING.md");
    let after = guide.split_once("<!-- settings: begin -->\n\n");
    let table = after.and_then(|(_, rest)| rest.split_once("<!-- settings: end -->"));
    let (table, _) = table.expect("the guide has both marks");
    assert_eq!(table, reference_markdown());
}

proptest::proptest! {
    /// Anything may stand in a file, a variable and a flag: it becomes settings or mistakes, never a panic.
    #[test]
    fn nothing_written_makes_it_panic(
        file in "(([a-z_]{1,12}|listen|shards|rooms|origins|\\[\\[rooms\\]\\]|match|slow)( = )?[^\\x00]{0,12}\n){0,6}",
        index in 0..DEFINITIONS.len(),
        variable in ".{0,12}",
        flag in "[0-9a-zA-Z:.,_*-]{0,12}",
    ) {
        let definition = &DEFINITIONS[index];
        let name = definition.variable();
        let loaded = load_all(&args(&[(definition.key, &flag)]), &[(&name, &variable)], &file);
        if let Ok((_, effective)) = loaded {
            proptest::prop_assert!(load_all(&args(&[]), &[], &effective.to_toml()).is_ok());
        }
    }

    /// Whatever number is allowed is printed so that it is read back.
    #[test]
    fn numbers_in_force_read_back(index in 0..DEFINITIONS.len(), number in proptest::prelude::any::<u64>()) {
        let definition = &DEFINITIONS[index];
        if let Kind::Number(_, range) = definition.kind {
            let number = range.min + number % (range.max - range.min + 1);
            let text = definition.kind.human(&Value::Number(number)).unwrap_or(number.to_string());
            let text = if range.zero.is_some() && number == 0 { "0".to_owned() } else { text };
            let read = definition.kind.read(&value::Raw::Text(text));
            proptest::prop_assert!(read == Ok(Value::Number(number)) || range.power_of_two);
        }
    }
}
