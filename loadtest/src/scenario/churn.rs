//! Connect, upgrade, end, and again: what a handshake costs, and what it leaves behind.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::common::Common;
use super::stage::{Extent, Play, Stage};
use crate::client::{Behaviour, Ending, Message, Place, Reply, Share, Tally};
use crate::failure::Failure;
use crate::server::Part;

/// What `churn` is told.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    /// Connections in all that are measured
    #[arg(long, value_name = "TOTAL", default_value_t = 20_000)]
    connections: u32,
    /// Connections at a time
    #[arg(long, value_name = "C", default_value_t = 64)]
    concurrency: u32,
    /// Connections of warm-up before
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    warm_up: u32,
    /// Rooms that the connections are spread over
    #[arg(long, value_name = "R", default_value_t = 64)]
    rooms: u32,
    /// How the client ends a connection
    #[arg(long, value_enum, default_value = "stream")]
    end: Ending,
}

/// One worker's connections.
pub struct Churn {
    rooms: u32,
    share: Share,
}

impl Behaviour for Churn {
    fn place(&self, local: u32) -> Place<'_> {
        let number = self.share.number(local);
        Place {
            prefix: "churn",
            room: number % self.rooms,
            target: number,
        }
    }

    fn opened(&mut self, _local: u32, _now_ns: u64, reply: &mut Reply) {
        reply.end = true;
    }

    fn message(&mut self, _local: u32, _message: Message<'_>, _now_ns: u64, _reply: &mut Reply) {}

    fn tally(self, _published: &[u32]) -> Tally {
        Tally::default()
    }
}

impl Arguments {
    /// Has members up to `count` come and go.
    fn run_until(&self, count: u32, stage: &mut Stage) {
        stage.crew.order(|orders| orders.open_until = count);
        let count = u64::from(count);
        // A connect that could not even be begun has no end.
        if !stage.crew.wait(|seen| seen.ended.max(seen.failed) >= count) {
            let ended = stage.crew.seen().ended;
            stage.report.fault(format!(
                "only {ended} of {count} connections came to their end"
            ));
        }
    }
}

impl Play for Arguments {
    type Behaviour = Churn;
    const NAME: &'static str = "churn";

    fn common(&self) -> &Common {
        &self.common
    }

    fn extent(&self) -> Result<Extent, Failure> {
        if self.rooms == 0 || self.connections == 0 || self.concurrency == 0 {
            return Err(Failure::Usage(
                "--connections, --concurrency and --rooms must be at least 1".into(),
            ));
        }
        let total = self
            .connections
            .checked_add(self.warm_up)
            .filter(|total| *total <= 100_000_000)
            .ok_or_else(|| {
                Failure::Usage("--connections and --warm-up are at most 100000000 together".into())
            })?;
        Ok(Extent {
            members: total,
            alive_max: self.concurrency,
            ending: self.end,
        })
    }

    fn behaviour(&self, share: Share) -> Churn {
        Churn {
            rooms: self.rooms,
            share,
        }
    }

    fn direct(&self, stage: &mut Stage) -> Result<(), Failure> {
        stage.phase("warm-up");
        self.run_until(self.warm_up, stage);
        let upgraded_before = stage.crew.seen().upgraded;
        stage.phase("measure");
        let before = stage.meter()?;
        self.run_until(self.warm_up + self.connections, stage);
        let after = stage.meter()?;
        let upgraded = stage.crew.seen().upgraded - upgraded_before;
        stage.phase("settle");
        stage.crew.sleep(0.5); // the server may see the last ends a moment later
        let rest = stage.meter()?;
        stage.finish()?;

        let report = &mut stage.report;
        report.count("handshakes", upgraded);
        report.figure(
            "handshakes_per_s",
            upgraded as f64 / ((after.at_ns - before.at_ns) as f64 / 1e9),
        );
        let growth = |of: fn(&Part) -> Option<u64>| {
            let (before, rest) = (before.server.total(of)?, rest.server.total(of)?);
            Some(rest as f64 - before as f64)
        };
        if let Some(growth) = growth(|part| part.rss_bytes) {
            report.figure("server_rss_growth_bytes", growth);
            report.figure(
                "server_rss_growth_bytes_per_handshake",
                growth / upgraded.max(1) as f64,
            );
        }
        if let Some(growth) = growth(|part| part.descriptor_count) {
            report.figure("server_descriptor_growth", growth);
        }
        stage.usage(&before, &after, "handshake", upgraded);
        Ok(())
    }
}
