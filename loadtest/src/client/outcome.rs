//! What a worker counted of its connections.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::report::{Report, latency_histogram};

/// Connections by their fate, and how long their handshakes took.
#[derive(Debug)]
pub struct Outcome {
    /// Upgrades answered with 101.
    pub upgraded: u64,
    /// TCP connects that failed.
    pub connect_failed: u64,
    /// Upgrades refused, by HTTP status (0: no HTTP).
    pub refused: BTreeMap<u16, u64>,
    /// Streams that ended before the upgrade's answer.
    pub handshake_broken: u64,
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
    pub handshake: Histogram<u64>,
}

impl Outcome {
    /// Nothing counted.
    pub fn new() -> Self {
        Self {
            upgraded: 0,
            connect_failed: 0,
            refused: BTreeMap::new(),
            handshake_broken: 0,
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
            self.first_error = Some(text());
        }
    }

    /// Adds another worker's.
    pub fn merge(&mut self, other: Self) {
        self.upgraded += other.upgraded;
        self.connect_failed += other.connect_failed;
        for (mine, theirs) in [
            (&mut self.refused, other.refused),
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
        self.handshake_broken += other.handshake_broken;
        self.stream_errors += other.stream_errors;
        self.unsent_bytes += other.unsent_bytes;
        if self.first_error.is_none() {
            self.first_error = other.first_error;
        }
        self.handshake
            .add(&other.handshake)
            .expect("all have the same bounds");
    }

    /// Adds it to a report: figures, and a fault for each kind of connection that was not served.
    pub fn report(&self, report: &mut Report) {
        report.count("upgraded", self.upgraded);
        report.latency("handshake", &self.handshake);
        let refused: u64 = self.refused.values().sum();
        let closed: u64 = self.closed_by_server.values().sum();
        report.count(
            "connections_failed",
            self.connect_failed + self.handshake_broken + refused,
        );
        report.count("connections_lost", closed + self.stream_errors);
        for (status, count) in &self.refused {
            report.count(&format!("refused_with_{status}"), *count);
        }
        for (code, count) in &self.closed_by_server {
            report.count(&format!("closed_by_server_{code}"), *count);
        }
        for (count, what) in [
            (self.connect_failed, "connects failed"),
            (
                self.handshake_broken,
                "connections ended before the upgrade was answered",
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
