//! A report as aligned text, with colour on a terminal, or as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::capacity::Bound;
use super::{Finding, Level, grouped};

/// All that was found.
#[derive(Debug)]
pub(in crate::cli) struct Report {
    pub(super) findings: Vec<Finding>,
    /// The tightest first.
    pub(super) bounds: Vec<Bound>,
    /// What fails is Redis alone, and `serve` would wait for it.
    pub(super) only_waits: bool,
}

impl Level {
    const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }

    /// Green, yellow, red (ECMA-48 SGR).
    const fn colour(self) -> &'static str {
        match self {
            Self::Ok => "\x1b[32m",
            Self::Warn => "\x1b[33m",
            Self::Fail => "\x1b[31m",
        }
    }
}

impl Report {
    /// Whether `serve` would fail.
    pub(in crate::cli) fn fails(&self) -> bool {
        self.count(Level::Fail) > 0
    }

    /// What would keep `serve` from starting, each with what mends it.
    pub(in crate::cli) fn failures(&self) -> Vec<String> {
        let failed = |finding: &&Finding| finding.level == Level::Fail;
        let words = |Finding {
                         name, seen, mend, ..
                     }: &Finding| match &mend[..] {
            [] => format!("{name}: {seen}"),
            mend => format!("{name}: {seen} (mend: {})", mend.join(", or: ")),
        };
        self.findings.iter().filter(failed).map(words).collect()
    }

    /// For people.
    pub(in crate::cli) fn to_text(&self, colour: bool) -> String {
        let mut out = String::new();
        let width = self
            .findings
            .iter()
            .map(|finding| finding.name.len())
            .max()
            .unwrap_or_default();
        for finding in &self.findings {
            let (begin, end) = match colour {
                true => (finding.level.colour(), "\x1b[0m"),
                false => ("", ""),
            };
            let label = finding.level.label();
            let _ = writeln!(
                out,
                "{begin}{label:<4}{end}  {:<width$}  {}",
                finding.name, finding.seen
            );
            for mend in &finding.mend {
                let _ = writeln!(out, "      {:<width$}  mend: {mend}", "");
            }
        }
        if let Some(first) = self.bounds.first() {
            let _ = writeln!(
                out,
                "\nThis host holds about {} connections with these settings; {} is met first.",
                grouped(first.connections),
                first.name,
            );
            for bound in &self.bounds {
                let _ = writeln!(
                    out,
                    "{:>16}  {:<20}  {}",
                    grouped(bound.connections),
                    bound.name,
                    bound.why
                );
            }
        }
        let (failed, warned) = (self.count(Level::Fail), self.count(Level::Warn));
        let verdict = match failed {
            0 => "serve would start",
            _ if self.only_waits => "serve would start and not be ready",
            _ => "serve would not start",
        };
        let _ = writeln!(out, "\n{verdict}: {failed} failed, {warned} warned");
        out
    }

    /// For programs.
    pub(in crate::cli) fn to_json(&self) -> Value {
        let findings = self.findings.iter().map(|finding| {
            json!({
                "level": finding.level.label(),
                "name": finding.name,
                "seen": finding.seen,
                "mend": finding.mend,
            })
        });
        let bounds = self.bounds.iter().map(|bound| {
            json!({ "name": bound.name, "connections": bound.connections, "why": bound.why })
        });
        json!({
            "serves": !self.fails(),
            "findings": findings.collect::<Vec<_>>(),
            "capacity": {
                "connections": self.bounds.first().map(|bound| bound.connections),
                "first_limit": self.bounds.first().map(|bound| bound.name),
                "limits": bounds.collect::<Vec<_>>(),
            },
        })
    }

    fn count(&self, level: Level) -> usize {
        self.findings
            .iter()
            .filter(|finding| finding.level == level)
            .count()
    }
}
