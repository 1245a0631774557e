//! `throng check`: what a host is like, what that means for serving, and the command that mends it.
//!
//! Pure: the facts are handed in ([`HostFacts`], collected by `runtime::host`), a report comes out.

mod capacity;
mod kernel;
mod network;
mod redis;
mod report;

use crate::config::{Mistake, Settings};
use crate::runtime::host::HostFacts;

pub(super) use report::Report;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// The server runs, but not as well as it could.
    Warn,
    /// `serve` would not start, or would not become ready.
    Fail,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// How bad it is.
    pub(super) level: Level,
    /// What was looked at.
    pub(super) name: String,
    /// What was seen, and what it means.
    pub(super) seen: String,
    /// Commands and settings that mend it, each by itself.
    pub(super) mend: Vec<String>,
}

impl Finding {
    fn new(level: Level, name: &str, seen: impl Into<String>) -> Self {
        Self {
            level,
            name: name.into(),
            seen: seen.into(),
            mend: Vec::new(),
        }
    }

    fn ok(name: &str, seen: impl Into<String>) -> Self {
        Self::new(Level::Ok, name, seen)
    }

    fn warn(name: &str, seen: impl Into<String>) -> Self {
        Self::new(Level::Warn, name, seen)
    }

    fn fail(name: &str, seen: impl Into<String>) -> Self {
        Self::new(Level::Fail, name, seen)
    }

    fn mended_by(mut self, mend: impl Into<String>) -> Self {
        self.mend.push(mend.into());
        self
    }
}

/// Judges a host for these settings. `mistakes` are those in the settings that were asked for; with any, `settings` are
/// the defaults.
pub(super) fn evaluate(settings: &Settings, facts: &HostFacts, mistakes: &[Mistake]) -> Report {
    let mut findings: Vec<Finding> = match mistakes {
        [] => vec![Finding::ok("settings", "complete, without contradictions")],
        _ => mistakes
            .iter()
            .map(|mistake| Finding::fail("settings", mistake.to_string()))
            .collect(),
    };
    findings.extend(kernel::findings(settings, facts));
    findings.extend(network::findings(settings, facts));
    findings.extend(redis::findings(facts));
    let bounds = capacity::bounds(settings, facts);
    Report {
        only_waits: redis::only_waits(settings, facts, &findings),
        findings,
        bounds,
    }
}

/// `1 shard`, `2 shards`.
fn shards(count: usize) -> String {
    format!("{count} shard{}", if count == 1 { "" } else { "s" })
}

/// A whole number with its thousands apart: `1,048,576`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes for people: the greatest unit of which there is at least one, with one decimal.
pub(super) fn sized(bytes: u64) -> String {
    let units = [
        ("TiB", 1u64 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    match units.into_iter().find(|(_, factor)| bytes >= *factor) {
        Some((unit, factor)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(factor);
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests;
