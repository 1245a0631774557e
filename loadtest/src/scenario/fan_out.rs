//! Publishers at a fixed rate to rooms of many members, in an open loop: a message's latency counts from the moment
//! it was due, so that a stalled server cannot hide behind a client that waits for it. Or in a closed loop: a publisher
//! sends its next message when the last has come back.

use std::sync::Arc;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::cast::Cast;
use super::common::Common;
use super::members::Members;
use super::stage::{Extent, Play, Stage};
use super::traffic::Traffic;
use crate::client::Share;
use crate::failure::Failure;

/// What `fanout` is told.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub traffic: Traffic,
    /// Rooms
    #[arg(long, value_name = "R", default_value_t = 1, help_heading = "Traffic")]
    pub rooms: u32,
    /// Members of each room
    #[arg(
        long,
        value_name = "M",
        default_value_t = 100,
        help_heading = "Traffic"
    )]
    pub members: u32,
    /// Closed loop: a publisher sends its next message when one has come back to it; --rate does not count
    #[arg(long, help_heading = "Traffic")]
    pub closed: bool,
    /// With --closed: messages of each publisher on their way
    #[arg(
        long,
        value_name = "D",
        default_value_t = 1,
        requires = "closed",
        help_heading = "Traffic"
    )]
    pub in_flight: u32,
}

impl Arguments {
    fn cast(&self) -> Cast {
        Cast {
            in_flight: self.closed.then_some(self.in_flight),
            ..self
                .traffic
                .cast(&self.common, "fan-out", self.rooms, self.members)
        }
    }
}

impl Play for Arguments {
    type Behaviour = Members;
    const NAME: &'static str = "fanout";

    fn common(&self) -> &Common {
        &self.common
    }

    fn extent(&self) -> Result<Extent, Failure> {
        self.traffic.check(&self.common, self.rooms, self.members)?;
        if self.closed && self.traffic.publishers == 0 {
            return Err(Failure::Usage(
                "--closed needs --publishers of its own: it answers what comes back to them".into(),
            ));
        }
        if !(1..=1024).contains(&self.in_flight) {
            return Err(Failure::Usage("--in-flight is 1 to 1024".into()));
        }
        Ok(Extent::new(self.cast().member_count()))
    }

    fn behaviour(&self, share: Share) -> Members {
        Members::new(&Arc::new(self.cast()), share)
    }

    fn direct(&self, stage: &mut Stage) -> Result<(), Failure> {
        let (warm_up, duration) = self.traffic.window.times()?;
        stage.open(self.cast().member_count());
        let (before, after) = stage.traffic(warm_up, duration)?;
        if self.traffic.publishers > 0 {
            stage.settle(self.members);
        }
        let published = stage.crew.seen().published;
        let (_, tally) = stage.finish()?;
        let seconds = stage.window_seconds();
        let report = &mut stage.report;
        report.count("published", published);
        let unpublished = tally.count("unpublished");
        if unpublished > 0 {
            report.count("unpublished", unpublished);
            report.fault(format!(
                "{unpublished} messages were due at publishers that were not connected"
            ));
        }
        tally.deliveries.report(report);
        tally.orders.report(report);
        let window = tally.window(0);
        if window.delivered == 0 {
            report.fault("nothing was delivered within the window");
        }
        report.figure("deliveries_per_s", window.delivered as f64 / seconds);
        report.count("came_within_window", window.delivered);
        report.count("due_within_window", window.latency.len());
        report.latency("latency", &window.latency);
        stage.usage(&before, &after, "delivery", window.delivered);
        Ok(())
    }
}
