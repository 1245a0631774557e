//! Watches a server that is told to stop: with which codes it closes, spread over which time, what it advises, and
//! where and when its clients are back.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde::{Deserialize, Serialize};

use super::back::BackArguments;
use super::cast::Cast;
use super::common::Common;
use super::members::{Members, times};
use super::stage::{Extent, Play, Stage};
use super::traffic::Traffic;
use crate::client::{Outcome, Share, Tally};
use crate::clock::now_ns;
use crate::failure::Failure;
use crate::report::Report;

/// What `drain` is told.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    traffic: Traffic,
    #[command(flatten)]
    back: BackArguments,
    /// Rooms
    #[arg(long, value_name = "R", default_value_t = 1, help_heading = "Traffic")]
    rooms: u32,
    /// Members of each room
    #[arg(
        long,
        value_name = "M",
        default_value_t = 100,
        help_heading = "Traffic"
    )]
    members: u32,
    /// Process that is sent SIGTERM when all are connected [default: nobody; somebody else tells the server to stop]
    #[arg(long, value_name = "PID", help_heading = "Servers")]
    #[serde(skip)]
    pub stop_pid: Option<u32>,
    /// Closed clients come back: to the next target with several, else to the same
    #[arg(long, help_heading = "Coming back")]
    come_back: bool,
    /// Clients that come back do not heed the server's advice when to
    #[arg(long, requires = "come_back", help_heading = "Coming back")]
    ignore_advice: bool,
}

impl Arguments {
    fn cast(&self) -> Result<Cast, Failure> {
        let back = self
            .back
            .back(!self.ignore_advice, self.common.target.len() > 1)?;
        Ok(Cast {
            back: self.come_back.then_some(back),
            ..self
                .traffic
                .cast(&self.common, "drain", self.rooms, self.members)
        })
    }
}

impl Play for Arguments {
    type Behaviour = Members;
    const NAME: &'static str = "drain";

    fn common(&self) -> &Common {
        &self.common
    }

    fn extent(&self) -> Result<Extent, Failure> {
        self.traffic.check(&self.common, self.rooms, self.members)?;
        if let Some(pid) = self.stop_pid {
            test_kill_process(process(pid)?).map_err(|error| stop_failed(pid, error))?;
        }
        let cast = self.cast()?;
        Ok(Extent {
            alive_max: cast.member_count().saturating_mul(2),
            ..Extent::new(cast.member_count())
        })
    }

    fn behaviour(&self, share: Share) -> Members {
        let cast = self.cast().expect("the extent was asked for first");
        Members::new(&Arc::new(cast), share)
    }

    fn direct(&self, stage: &mut Stage) -> Result<(), Failure> {
        let (warm_up, duration) = self.traffic.window.times()?;
        stage.open(self.cast()?.member_count());
        let before = stage.crew.seen();
        stage.crew.order(|orders| orders.expect_close = true);
        let timetable = stage.crew.start_traffic(warm_up, duration);
        stage.phase("warm-up");
        stage.crew.sleep_until(timetable.measure_from_ns);
        stage.phase("drain");
        if let Some(pid) = self.stop_pid
            && !stage.crew.is_cut_short()
        {
            kill_process(process(pid)?, Signal::TERM).map_err(|error| stop_failed(pid, error))?;
        }
        stage.crew.sleep_until(timetable.measure_to_ns);
        stage.crew.end_traffic();
        stage.phase("settle");
        let seen = stage.crew.seen();
        let to_return = if self.come_back { before.open } else { 0 };
        if self.come_back {
            stage.crew.wait(|seen| seen.open >= to_return);
        }
        stage.settle(self.members);
        let open = stage.crew.seen().open;
        let cut_short = stage.crew.was_cut_short();
        let (outcome, tally) = stage.finish()?;

        let report = &mut stage.report;
        report.count("closed_in_time", seen.closed_by_server);
        report_close(&outcome, &tally, before.open, report);
        if seen.closed_by_server == 0 && !cut_short {
            report.fault("the server closed nobody within --duration: was it told to stop?");
        }
        if self.come_back {
            report.count("open_at_the_end", open);
            report.latency("back", &times(&tally, "back"));
            for target in 0..self.common.target.len() {
                let name = format!("back_on_target_{target}");
                report.count(&name, tally.count(&name));
            }
            if open < to_return {
                report.fault(format!(
                    "{} of {to_return} did not come back",
                    to_return - open
                ));
            }
        }
        tally.deliveries.report(report);
        report.count("unpublished", tally.count("unpublished"));
        report.latency("latency", &tally.window(0).latency);
        Ok(())
    }
}

/// Reports with which codes the server closed connections, and when after it was expected to.
pub fn report_close(outcome: &Outcome, tally: &Tally, open: u64, report: &mut Report) {
    let closed: u64 = outcome.closed_by_server_expected.values().sum();
    report.count("closed_by_server", closed);
    for (code, count) in &outcome.closed_by_server_expected {
        report.count(&format!("closed_with_{code}"), *count);
    }
    report.count("never_closed", open.saturating_sub(closed));
    report.count("advised_to_reconnect", tally.count("advised_to_reconnect"));
    let after = times(tally, "close_after");
    report.latency("close_after", &after);
    let spread_ns = after.max().saturating_sub(after.min());
    report.figure("close_spread_seconds", spread_ns as f64 / 1e9);
}

impl Stage {
    /// Waits up to `seconds` for the server to close everybody.
    pub fn await_close(&mut self, seconds: f64) {
        self.crew.order(|orders| orders.expect_close = true);
        let patience = Duration::from_secs_f64(seconds);
        let from_ns = now_ns();
        if !self.crew.wait_for(patience, |seen| seen.open == 0) {
            let open = self.crew.seen().open;
            self.report.fault(format!(
                "{open} connections were not closed after {:.1} s",
                (now_ns() - from_ns) as f64 / 1e9
            ));
        }
    }
}

/// The process that is told to stop.
fn process(pid: u32) -> Result<Pid, Failure> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| Failure::Usage(format!("--stop-pid {pid}: no process has this id")))
}

fn stop_failed(pid: u32, error: Errno) -> Failure {
    Failure::Usage(match error {
        Errno::SRCH => format!("--stop-pid {pid}: there is no such process"),
        Errno::PERM => format!("--stop-pid {pid}: it is not yours to stop; run as its user"),
        error => format!("--stop-pid {pid}: {error}"),
    })
}
