//! What a worker counted of its connections.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use throng::protocol::client::ResponseError;

use super::behaviour::Cause;
use crate::histogram;
use crate::report::{Report, latency_histogram};
use crate::words::in_a_line;

/// Kinds of refusals that are kept in words.
const REFUSAL_KINDS_MAX: usize = 16;
/// Characters of the first error.
const ERROR_CHARS_MAX: usize = 400;
/// Characters of each.
const REFUSAL_CHARS_MAX: usize = 160;

/// Connections by their fate, and how long their handshakes took.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Upgrades answered with 101.
    pub upgraded: u64,
    /// Connects that failed, streams that ended or were silent before the upgrade's answer.
    pub failed: u64,
    /// Upgrades refused, by HTTP status (0: no HTTP).
    pub refused: BTreeMap<u16, u64>,
    /// Attempts that failed or were refused (by HTTP status; 0: neither) and were made again.
    pub retried: BTreeMap<u16, u64>,
    /// Refusals in words (status, and the body's beginning), whether or not tried again; the first kinds only.
    pub refusals: BTreeMap<String, u64>,
    /// Open connections that the server closed, by close code (1006: without a close frame).
    pub closed_by_server: BTreeMap<u16, u64>,
    /// The same for connections that were expected to be closed (members that never read).
    pub closed_by_server_expected: BTreeMap<u16, u64>,
    /// Streams that were no WebSocket.
    pub stream_errors: u64,
    /// Bytes that could not be sent because too much waited before them.
    pub unsent_bytes: u64,
    /// The first thing that went wrong, in words.
    pub first_error: Option<String>,
    /// From connect to the upgrade's answer, nanoseconds.
    #[serde(with = "histogram")]
    pub handshake: Histogram<u64>,
}

impl Outcome {
    /// Nothing counted.
    pub fn new() -> Self {
        Self {
            upgraded: 0,
            failed: 0,
            refused: BTreeMap::new(),
            retried: BTreeMap::new(),
            refusals: BTreeMap::new(),
            closed_by_server: BTreeMap::new(),
            closed_by_server_expected: BTreeMap::new(),
            stream_errors: 0,
            unsent_bytes: 0,
            first_error: None,
            handshake: latency_histogram(),
        }
    }

    /// Keeps the first error in words.
    pub fn error(&mut self, text: impl FnOnce() -> String) {
        if self.first_error.is_none() {
            self.first_error = Some(in_a_line(&text(), ERROR_CHARS_MAX));
        }
    }

    /// Counts a member that was not connected, and will not be.
    pub fn not_connected(&mut self, cause: Cause) {
        match cause {
            Cause::Refused(status) => *self.refused.entry(status).or_default() += 1,
            _ => self.failed += 1,
        }
    }

    /// Counts an attempt that is made again.
    pub fn retried(&mut self, cause: Cause) {
        let status = match cause {
            Cause::Refused(status) => status,
            _ => 0,
        };
        *self.retried.entry(status).or_default() += 1;
    }

    /// Counts a refusal by its words.
    pub fn refusal(&mut self, error: &ResponseError) {
        let line = in_a_line(&error.to_string(), REFUSAL_CHARS_MAX);
        if let Some(count) = self.refusals.get_mut(&line) {
            *count += 1;
        } else if self.refusals.len() < REFUSAL_KINDS_MAX {
            self.refusals.insert(line, 1);
        }
    }

    /// Counts an open connection that the server closed.
    pub fn closed(&mut self, code: u16, expected: bool) {
        let counts = if expected {
            &mut self.closed_by_server_expected
        } else {
            &mut self.closed_by_server
        };
        *counts.entry(code).or_default() += 1;
    }

    /// Adds another worker's.
    pub fn merge(&mut self, other: Self) {
        self.upgraded += other.upgraded;
        self.failed += other.failed;
        for (mine, theirs) in [
            (&mut self.refused, other.refused),
            (&mut self.retried, other.retried),
            (&mut self.closed_by_server, other.closed_by_server),
            (
                &mut self.closed_by_server_expected,
                other.closed_by_server_expected,
            ),
        ] {
            for (key, count) in theirs {
                *mine.entry(key).or_default() += count;
            }
        }
        for (words, count) in other.refusals {
            if self.refusals.len() < REFUSAL_KINDS_MAX || self.refusals.contains_key(&words) {
                *self.refusals.entry(words).or_default() += count;
            }
        }
        self.stream_errors += other.stream_errors;
        self.unsent_bytes += other.unsent_bytes;
        if self.first_error.is_none() {
            self.first_error = other.first_error;
        }
        histogram::add(&mut self.handshake, &other.handshake);
    }

    /// Adds it to a report: figures, and a fault for each kind of connection that was not served.
    pub fn report(&self, report: &mut Report) {
        report.count("upgraded", self.upgraded);
        report.latency("handshake", &self.handshake);
        let refused: u64 = self.refused.values().sum();
        let closed: u64 = self.closed_by_server.values().sum();
        report.count("connections_failed", self.failed + refused);
        report.count("connections_lost", closed + self.stream_errors);
        for (status, count) in &self.refused {
            report.count(&format!("refused_with_{status}"), *count);
        }
        for (status, count) in &self.retried {
            let name = match status {
                0 => "retried_after_failure".to_owned(),
                status => format!("retried_after_{status}"),
            };
            report.count(&name, *count);
        }
        for (words, count) in &self.refusals {
            report.note(format!("{count} refused: {words}"));
        }
        for (code, count) in &self.closed_by_server {
            report.count(&format!("closed_by_server_{code}"), *count);
        }
        for (count, what) in [
            (
                self.failed,
                "connects failed, or got no answer to the upgrade",
            ),
            (refused, "upgrades were refused"),
            (closed, "connections were closed by the server"),
            (self.stream_errors, "streams broke the protocol"),
        ] {
            if count > 0 {
                let first = self.first_error.as_deref().unwrap_or("no words");
                report.fault(format!("{count} {what} (the first error: {first})"));
            }
        }
        if self.unsent_bytes > 0 {
            report.fault(format!(
                "{} bytes could not be sent: the server did not read",
                self.unsent_bytes
            ));
        }
    }
}
