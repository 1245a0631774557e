//! Connect, join, stay: the handshakes' cost, the memory of connections that do nothing, and whether one message still
//! reaches all of them.

use std::sync::Arc;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::cast::Cast;
use super::common::Common;
use super::members::{Members, times};
use super::stage::{Extent, Play, Stage};
use super::traffic::{check_rooms, readers};
use crate::client::Share;
use crate::clock::now_ns;
use crate::failure::Failure;
use crate::meter::Meter;
use crate::server;
use crate::size::Size;

/// What `idle` is told.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    /// Connections
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1000,
        conflicts_with = "steps"
    )]
    pub connections: u32,
    /// Connection counts between which memory is measured, as 4000,16000
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    pub steps: Vec<u32>,
    /// Rooms that the connections are spread over
    #[arg(long, value_name = "R", default_value_t = 1)]
    pub rooms: u32,
    /// Seconds to hold all of them
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub hold: f64,
    /// Seconds of rest before memory is read
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub settle: f64,
    /// After that, messages to every room, one after the other, each when all have the last
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub messages: u32,
    /// Bytes of those messages
    #[arg(long, value_name = "B", default_value = "128")]
    pub size: Size,
    /// At the end, wait so many seconds for the server to close everybody (it is told to stop by somebody else)
    #[arg(long, value_name = "S", default_value_t = 0.0)]
    pub until_closed: f64,
}

impl Arguments {
    fn steps(&self) -> Vec<u32> {
        if self.steps.is_empty() {
            vec![self.connections]
        } else {
            self.steps.clone()
        }
    }

    fn connection_count(&self) -> u32 {
        self.steps().last().copied().unwrap_or(0)
    }

    /// Rooms of the same size, the last ones a little smaller.
    fn cast(&self) -> Cast {
        Cast {
            size: self.size.clone(),
            ..readers(
                &self.common,
                "idle",
                self.rooms,
                self.connection_count().div_ceil(self.rooms),
            )
        }
    }

    /// Publishes one message to every room and waits until all members have it.
    fn broadcast(&self, number: u32, stage: &mut Stage) {
        let received_before = stage.crew.seen().received;
        let due_ns = stage.crew.soon_ns();
        stage.crew.order(|orders| orders.bursts = (number, due_ns));
        let open = stage.crew.seen().open;
        let patience = self.common.patience();
        let reached = stage.crew.wait_for_rest(patience, |seen| {
            seen.received >= received_before + open.min(seen.open)
        });
        if !reached {
            stage.report.fault(format!(
                "message {number} reached {} of {open}",
                stage.crew.seen().received - received_before
            ));
        }
    }
}

impl Play for Arguments {
    type Behaviour = Members;
    const NAME: &'static str = "idle";

    fn common(&self) -> &Common {
        &self.common
    }

    fn extent(&self) -> Result<Extent, Failure> {
        let steps = self.steps();
        if self.connections == 0 {
            return Err(Failure::Usage("--connections must be at least 1".into()));
        }
        if !steps.is_sorted_by(|earlier, later| earlier < later) || steps[0] == 0 {
            return Err(Failure::Usage(
                "--steps must rise from at least 1, as 4000,16000".into(),
            ));
        }
        let seconds = [self.hold, self.settle, self.until_closed];
        if seconds.iter().any(|seconds| !(0.0..=1e6).contains(seconds)) {
            return Err(Failure::Usage(
                "--hold, --settle and --until-closed are seconds".into(),
            ));
        }
        let count = self.connection_count();
        if self.rooms == 0 || self.rooms > count {
            return Err(Failure::Usage(
                "--rooms is at least 1, and at most one a connection".into(),
            ));
        }
        check_rooms(&self.common, self.rooms, count.div_ceil(self.rooms))?;
        Ok(Extent::new(count))
    }

    fn behaviour(&self, share: Share) -> Members {
        Members::new(&Arc::new(self.cast()), share)
    }

    fn direct(&self, stage: &mut Stage) -> Result<(), Failure> {
        let mut begin = stage.meter()?;
        let begin_ns = begin.at_ns;
        let mut connecting_ns = 0;
        let mut meters: Vec<(u32, Meter)> = Vec::new();
        for step in self.steps() {
            let step_ns = now_ns();
            stage.open(step);
            let took_ns = now_ns() - step_ns;
            connecting_ns += took_ns;
            let before = meters.last().map_or(0, |(count, _)| *count);
            stage.report.figure(
                &format!("handshakes_per_s_to_{step}"),
                f64::from(step - before) / (took_ns as f64 / 1e9),
            );
            let opened = stage.meter()?;
            stage.crew.sleep(self.settle);
            let rested = stage.meter()?;
            begin.skip(&opened, &rested); // who was the limit of the handshakes shows without the rests
            meters.push((step, rested));
        }
        stage.phase("hold");
        let joined = stage.meter()?;
        stage.crew.sleep(self.hold);
        let rested = stage.meter()?;
        let held = stage.crew.seen();
        stage.phase("broadcast");
        for number in 1..=self.messages {
            if stage.crew.is_cut_short() {
                break;
            }
            self.broadcast(number, stage);
        }
        let end = stage.meter()?;
        if self.until_closed > 0.0 {
            stage.phase("wait for the end");
            stage.await_close(self.until_closed);
        }
        let (outcome, tally) = stage.finish()?;

        let report = &mut stage.report;
        report.figure(
            "handshakes_per_s",
            outcome.upgraded as f64 / (connecting_ns as f64 / 1e9),
        );
        report.figure("seconds", (end.at_ns - begin_ns) as f64 / 1e9);
        report.count("held", held.open);
        if self.messages > 0 {
            tally.deliveries.report(report);
            let broadcast = times(&tally, "broadcast");
            report.figure("broadcast_seconds", broadcast.max() as f64 / 1e9);
            report.latency("broadcast", &broadcast);
        }
        if self.until_closed > 0.0 {
            super::drain::report_close(&outcome, &tally, held.open, report);
        }
        let (_, last) = &meters[meters.len() - 1];
        let samples: Vec<_> = meters
            .iter()
            .map(|(count, meter)| (*count, &meter.server))
            .collect();
        server::report_memory(&begin.server, &samples, report);
        if let [(first, before), .., (last, after)] = meters.as_slice() {
            let growth = after.client_rss_bytes as f64 - before.client_rss_bytes as f64;
            report.figure(
                "client_rss_bytes_per_connection",
                growth / f64::from(last - first),
            );
        }
        stage.usage(&begin, last, "handshake", outcome.upgraded);
        if self.hold > 0.0
            && let Some(cores) = server::cores_used(&joined.server, &rested.server)
        {
            stage.report.figure("server_hold_cores_used", cores);
        }
        if self.messages > 0 {
            stage.usage_apart("broadcast", &rested, &end);
        }
        Ok(())
    }
}
