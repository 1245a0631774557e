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
use crate::client::{Outcome, Seen, Share, Tally};
use crate::clock::now_ns;
use crate::failure::Failure;
use crate::meter::Meter;
use crate::report::Report;

/// How often a server that is to end is looked at: what it used is known up to the last time.
const LOOK: Duration = Duration::from_millis(50);

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

/// What both sides had used when the server was last seen, and how many it had closed by then.
struct Last {
    meter: Meter,
    closed: u64,
    /// It could not be looked at any more after that.
    ended: bool,
}

impl Arguments {
    /// Looks at both sides again and again, until everybody who was open `before` is closed, the server has ended, the run
    /// is cut short, or `until_ns`.
    fn look_on(stage: &mut Stage, before: &Seen, until_ns: u64) -> Result<Last, Failure> {
        let mut last: Option<Last> = None;
        loop {
            let closed = stage.crew.seen().closed_by_server - before.closed_by_server;
            let (meter, ended) = match (stage.look(), last) {
                (Ok(meter), _) => (meter, false),
                // It was told to end: what it used is known as of the last look.
                (Err(Failure::Broken(_)), Some(last)) => {
                    return Ok(Last {
                        ended: true,
                        ..last
                    });
                }
                (Err(Failure::Broken(_)), None) => (stage.meter()?, true),
                (Err(failure), _) => return Err(failure),
            };
            let now = Last {
                meter,
                closed,
                ended,
            };
            let next_ns = until_ns.min(now_ns() + LOOK.as_nanos() as u64);
            let over = ended || closed >= before.open || now_ns() >= until_ns;
            if over || !stage.crew.sleep_until(next_ns) {
                return Ok(now);
            }
            last = Some(now);
        }
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
        let to_return = stage.crew.seen().open;
        let timetable = stage.crew.start_traffic(warm_up, duration);
        stage.phase("warm-up");
        stage.crew.sleep_until(timetable.measure_from_ns);
        stage.phase("drain");
        let before = (stage.meter()?, stage.crew.seen());
        stage.crew.order(|orders| orders.expect_close = true);
        if let Some(pid) = self.stop_pid
            && !stage.crew.is_cut_short()
        {
            std::thread::sleep(stage.crew.lead); // until every worker has heard that closes are expected
            kill_process(process(pid)?, Signal::TERM).map_err(|error| stop_failed(pid, error))?;
        }
        let (before, seen_before) = before;
        let last = Self::look_on(stage, &seen_before, timetable.measure_to_ns)?;
        stage.crew.sleep_until(timetable.measure_to_ns);
        stage.crew.end_traffic();
        stage.phase("settle");
        let seen = stage.crew.seen();
        if self.come_back {
            stage.crew.wait(|seen| seen.open >= to_return);
        }
        stage.settle(self.members);
        let open = stage.crew.seen().open;
        let cut_short = stage.crew.was_cut_short();
        let (outcome, tally) = stage.finish()?;

        let report = &mut stage.report;
        let closed = seen.closed_by_server - seen_before.closed_by_server;
        report.count("closed_in_time", closed);
        report_close(&outcome, &tally, seen_before.open, report);
        if closed == 0 && !cut_short {
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
        if last.ended {
            report.note(format!(
                "a server has ended: what it used is told as of its last {} closed connections",
                last.closed
            ));
        }
        stage.usage(&before, &last.meter, "closed_connection", last.closed);
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
