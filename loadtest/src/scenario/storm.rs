//! Everybody is dropped at once and comes back: how long until all are back, and what the server refuses meanwhile.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::back::BackArguments;
use super::cast::Cast;
use super::common::Common;
use super::members::{Members, times};
use super::stage::{Extent, Play, Stage};
use super::traffic::{check_rooms, readers};
use crate::client::{Ending, Share};
use crate::clock::now_ns;
use crate::failure::Failure;
use crate::meter::Meter;

/// What `storm` is told.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    back: BackArguments,
    /// Connections
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1000,
        help_heading = "Traffic"
    )]
    connections: u32,
    /// Rooms that they are spread over
    #[arg(long, value_name = "R", default_value_t = 1, help_heading = "Traffic")]
    rooms: u32,
    /// Times that everybody is dropped
    #[arg(long, value_name = "K", default_value_t = 1, help_heading = "Traffic")]
    drops: u32,
    /// How the client drops a connection
    #[arg(long, value_enum, default_value = "stream", help_heading = "Traffic")]
    end: Ending,
    /// Seconds to hold all of them before each drop
    #[arg(
        long,
        value_name = "S",
        default_value_t = 1.0,
        help_heading = "Traffic"
    )]
    hold: f64,
    /// Seconds until everybody must be back
    #[arg(
        long,
        value_name = "S",
        default_value_t = 120.0,
        help_heading = "Coming back"
    )]
    within: f64,
}

impl Arguments {
    fn cast(&self) -> Result<Cast, Failure> {
        Ok(Cast {
            back: Some(self.back.back(false, false)?),
            ..readers(
                &self.common,
                "storm",
                self.rooms,
                self.connections.div_ceil(self.rooms.max(1)),
            )
        })
    }

    /// Drops everybody and waits until as many are open again; gives the seconds until then, and how many were dropped.
    fn drop_all(&self, number: u32, stage: &mut Stage) -> (f64, u64) {
        let before = stage.crew.seen();
        let from_ns = now_ns();
        stage.crew.order(|orders| orders.drops = number);
        let dropped = before.open;
        let within_ns = (self.within * 1e9) as u64;
        let back = stage
            .crew
            .wait_for(Duration::from_secs_f64(self.within), |seen| {
                // Each was closed, came back or never will, and is still there: who is closed again is not back.
                let failed = seen.failed - before.failed;
                let obeyed = seen.ended - before.ended >= dropped;
                let returned = seen.upgraded - before.upgraded + failed >= dropped;
                obeyed && returned && seen.open + failed >= dropped
                    || now_ns() > from_ns + within_ns
            });
        let seconds = (now_ns() - from_ns) as f64 / 1e9;
        let seen = stage.crew.seen();
        if !back || seen.open < dropped {
            stage.report.fault(format!(
                "{} of {dropped} were not back after {seconds:.1} s",
                dropped.saturating_sub(seen.open),
            ));
        }
        (seconds, dropped)
    }

    /// Publishes one message to each room, which must reach everybody.
    fn check(&self, stage: &mut Stage) {
        let due_ns = stage.crew.soon_ns();
        stage.crew.order(|orders| orders.bursts = (1, due_ns));
        let open = stage.crew.seen().open;
        let patience = self.common.patience();
        if !stage
            .crew
            .wait_for_rest(patience, |seen| seen.received >= open)
        {
            let received = stage.crew.seen().received;
            stage.report.fault(format!(
                "one message to everybody reached {received} of {open}"
            ));
        }
    }
}

impl Play for Arguments {
    type Behaviour = Members;
    const NAME: &'static str = "storm";

    fn common(&self) -> &Common {
        &self.common
    }

    fn extent(&self) -> Result<Extent, Failure> {
        if self.rooms == 0 || self.rooms > self.connections {
            return Err(Failure::Usage(
                "--rooms is at least 1, and at most one a connection".into(),
            ));
        }
        if self.drops == 0
            || !(0.0..=86_400.0).contains(&self.hold)
            || !(0.1..=86_400.0).contains(&self.within)
        {
            return Err(Failure::Usage(
                "--drops is at least 1; --hold and --within are seconds, up to a day".into(),
            ));
        }
        check_rooms(
            &self.common,
            self.rooms,
            self.connections.div_ceil(self.rooms),
        )?;
        self.cast()?;
        Ok(Extent {
            // The server may still hold a dropped connection when its successor comes.
            alive_max: self.connections.saturating_mul(2),
            ending: self.end,
            ..Extent::new(self.connections)
        })
    }

    fn behaviour(&self, share: Share) -> Members {
        let cast = self.cast().expect("the extent was asked for first");
        Members::new(&Arc::new(cast), share)
    }

    fn direct(&self, stage: &mut Stage) -> Result<(), Failure> {
        stage.open(self.connections);
        let mut seconds = Vec::new();
        let mut usage: Option<(Meter, Meter)> = None;
        let (mut dropped, mut upgraded) = (0, 0);
        for number in 1..=self.drops {
            stage.phase("hold");
            if !stage.crew.sleep(self.hold) {
                break;
            }
            let (before, upgraded_before) = (stage.meter()?, stage.crew.seen().upgraded);
            stage.phase("storm");
            let (took_s, count) = self.drop_all(number, stage);
            seconds.push(took_s);
            dropped += count;
            upgraded += stage.crew.seen().upgraded - upgraded_before;
            let after = stage.meter()?;
            // Of several storms, all: from each drop until all are back, without the holds between them.
            let first = match usage.take() {
                Some((mut first, last)) => {
                    first.skip(&last, &before);
                    first
                }
                None => before,
            };
            usage = Some((first, after));
        }
        // Whoever is back must be a member again: one message reaches all.
        if !stage.crew.is_cut_short() {
            stage.phase("check");
            self.check(stage);
        }
        let (outcome, tally) = stage.finish()?;

        let report = &mut stage.report;
        report.count("dropped", dropped);
        if let Some(longest) = seconds.iter().copied().reduce(f64::max) {
            report.figure("seconds_until_all_back", longest);
        }
        report.latency("back", &times(&tally, "back"));
        let refused: u64 = outcome.retried.values().sum();
        report.count("attempts_made_again", refused);
        tally.deliveries.report(report);
        if let Some((before, after)) = usage {
            let seconds = (after.at_ns - before.at_ns) as f64 / 1e9;
            report.figure("handshakes_per_s", upgraded as f64 / seconds);
            stage.usage(&before, &after, "handshake", upgraded);
        }
        Ok(())
    }
}
