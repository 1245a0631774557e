//! The Redis that joins nodes: whether it can be used, and how far away it is.

use super::{Finding, Level};
use crate::backplane::remote::AtStart;
use crate::config::Settings;
use crate::runtime::host::HostFacts;
use crate::runtime::redis::{RedisFact, RedisSeen, RedisService};

/// A message's way to Redis and back beyond which it is said to be far, microseconds.
const ROUND_TRIP_US_FAR: u64 = 5_000;

pub(super) fn findings(facts: &HostFacts) -> Vec<Finding> {
    let findings = facts.redis.iter().map(|fact| {
        let name = format!("redis {}", fact.place);
        match &fact.seen {
            Ok(seen) => usable(&name, seen),
            Err(reason) if fact.is_spare => {
                Finding::warn(&name, format!("{reason}; another one will do meanwhile"))
            }
            Err(reason) => Finding::fail(&name, reason.clone()),
        }
    });
    findings.collect()
}

fn usable(name: &str, seen: &RedisSeen) -> Finding {
    let server = match &seen.tls {
        Some(version) => format!("{}, {version}", seen.server),
        None => seen.server.clone(),
    };
    let (told, is_far) = match &seen.service {
        RedisService::Names { master } => {
            (format!("{server}; it names the master {master}"), false)
        }
        RedisService::Knows { master_count } => (
            format!("{server}; it knows of {master_count} masters"),
            false,
        ),
        RedisService::Messages { round_trip_us: us } => {
            let (ms, us_left) = (us / 1_000, us % 1_000);
            let told = format!("{server}; a message is back after {ms}.{us_left:03} ms");
            (told, *us > ROUND_TRIP_US_FAR)
        }
    };
    let told = match is_far {
        true => format!("{told}: every message takes that much longer than without Redis"),
        false => told,
    };
    let finding = match &seen.lacks {
        Some(lacks) => Finding::warn(name, format!("{told}; {lacks}")),
        None if is_far => Finding::warn(name, told),
        None => Finding::ok(name, told),
    };
    match is_far {
        true => finding.mended_by("a Redis in the same data centre, with a processor of its own"),
        false => finding,
    }
}

/// Whether all that fails is Redis, and the node is to wait for it: it would start, and not be ready.
pub(super) fn only_waits(settings: &Settings, facts: &HostFacts, findings: &[Finding]) -> bool {
    let waits = |redis: &crate::backplane::remote::Options| redis.at_start == AtStart::Wait;
    let failed = findings
        .iter()
        .filter(|finding| finding.level == Level::Fail)
        .count();
    let of_redis = facts.redis.iter();
    let failed_redis = of_redis.filter(|fact| fact.seen.is_err() && !fact.is_spare);
    let failed_redis = failed_redis.count();
    let has_tls = !facts.redis.iter().any(RedisFact::is_of_own_tls);
    settings.redis.as_ref().is_some_and(waits) && has_tls && failed == failed_redis
}
