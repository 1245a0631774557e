//! What every run does alike: check, connect a first time, start the workers, measure both sides, report.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::common::Common;
use super::part::{AnyPlay, Workers};
use super::probe::probe;
use crate::client::{Behaviour, Crew, Ending, Local, Outcome, Plan, Share, Tally};
use crate::failure::Failure;
use crate::interrupt;
use crate::meter::Meter;
use crate::monitor::{Goal, Monitor};
use crate::report::{Report, latency_histogram};
use crate::server::Servers;
use crate::together::{Muster, Seat, own_seat};

/// For how long the last deliveries may be on their way after the last publish, when none comes any more.
const GRACE: Duration = Duration::from_secs(2);

/// How many connections a scenario has.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Members in the whole run.
    pub members: u32,
    /// Connections at a time.
    pub alive_max: u32,
    /// How they end.
    pub ending: Ending,
}

impl Extent {
    /// All members at a time; the client ends the TCP stream.
    pub const fn new(members: u32) -> Self {
        Self {
            members,
            alive_max: members,
            ending: Ending::Stream,
        }
    }
}

/// A scenario: who plays, and what happens. Its serialized form is what other generators are told.
pub trait Play: Serialize {
    /// What each worker does.
    type Behaviour: Behaviour + Send + 'static;
    /// Its name in reports.
    const NAME: &'static str;

    /// What every scenario is told.
    fn common(&self) -> &Common;
    /// How many connections it has.
    ///
    /// # Errors
    /// What is wrong with its arguments.
    fn extent(&self) -> Result<Extent, Failure>;
    /// One worker's behaviour.
    fn behaviour(&self, share: Share) -> Self::Behaviour;
    /// Has it happen, and reports it.
    ///
    /// # Errors
    /// When it cannot go on. What was lost or broke is a fault of the report instead.
    fn direct(&self, stage: &mut Stage) -> Result<(), Failure>;
}

/// Runs a scenario.
///
/// # Errors
/// When it cannot be carried out.
pub fn perform<P: Play>(play: &P) -> Result<Report, Failure> {
    let common = play.common();
    let extent = play.extent()?;
    common.check(extent)?;
    for target in common.targets()? {
        probe(&target, common.handshake_patience())?;
    }
    let servers = Arc::new(Servers::open(&common.beside)?);
    let session = common.coordination.gather(common.allow_remote)?;
    let generator_count = session.as_ref().map_or(1, |all| all.generator_count());
    let thread_count = common.thread_count(extent, generator_count)?;
    let muster = Muster::call(session, &AnyPlay::written(play), thread_count)?;
    let plan = common.plan(extent, thread_count, muster.worker_count)?;
    let (mut seats, mut troupes) = muster.start(thread_count, extent.members)?;
    interrupt::watch()?;
    let workers = 0..thread_count;
    let (mut shared, local) = start(play, &plan, workers, muster.worker_count, extent.members)?;
    troupes.insert(0, local);
    let core_count = common.client_core_count(thread_count);
    seats.insert(0, own_seat(core_count, shared.clone()));
    shared.extend(seats[1..].iter().flat_map(|seat| seat.shared.clone()));
    let monitor = Monitor::start(shared.clone(), Arc::clone(&servers), common.quiet);
    let crew = Crew::new(
        shared,
        troupes,
        muster.lead,
        common.patience(),
        Duration::from_secs(u64::from(common.time_limit)),
    );
    let mut stage = Stage {
        crew,
        report: Report::new(P::NAME),
        servers,
        monitor: Some(monitor),
        gone: None,
        seats,
    };
    let directed = play.direct(&mut stage);
    if interrupt::is_wanted() {
        stage
            .report
            .cut_short("interrupted: the figures are of the run so far".into());
    } else if stage.crew.was_cut_short() {
        stage.report.cut_short(format!(
            "the run was cut short: it took longer than --time-limit ({} s)",
            common.time_limit
        ));
    }
    stage.end_monitor();
    directed?;
    common.note_connect_rate(&mut stage.report);
    muster.report(&stage.seats, &common.run_id(), &mut stage.report);
    Ok(stage.report)
}

/// Starts `workers` of the run's `worker_count` in this process.
///
/// # Errors
/// When a thread cannot be started.
pub fn start<P: Play>(
    play: &P,
    plan: &Arc<Plan>,
    workers: Range<u32>,
    worker_count: u32,
    member_count: u32,
) -> Result<Workers, Failure> {
    let shares = workers.map(|worker| Share {
        worker,
        worker_count,
        member_count,
    });
    let (shared, local) = Local::start(plan, shares, |share| play.behaviour(share))?;
    Ok((shared, Box::new(local)))
}

/// A run that goes on.
pub struct Stage {
    /// The workers.
    pub crew: Crew,
    /// What is found.
    pub report: Report,
    servers: Arc<Servers>,
    monitor: Option<Monitor>,
    /// Why a server could not be looked at.
    gone: Option<String>,
    seats: Vec<Seat>,
}

impl Stage {
    /// Names what happens from now on.
    pub fn phase(&mut self, name: &str) {
        self.phase_until(name, Goal::None);
    }

    /// The same, with what ends it.
    pub fn phase_until(&mut self, name: &str, goal: Goal) {
        if let Some(monitor) = &self.monitor {
            monitor.phase(name, goal);
        }
    }

    /// Latencies of all that was received since this was last asked, to the second.
    pub fn take_latency(&mut self) -> Histogram<u64> {
        self.monitor
            .as_ref()
            .map_or_else(latency_histogram, Monitor::take_latency)
    }

    /// Ends the monitor and keeps what it saw.
    fn end_monitor(&mut self) {
        let Some(monitor) = self.monitor.take() else {
            return;
        };
        let (timeline, gone) = monitor.finish();
        self.report.timeline(timeline);
        if self.crew.orders().expect_close {
            return; // a server that is to close everybody may end, too
        }
        if gone.is_empty()
            && let Some(why) = self.gone.take()
        {
            self.report.fault(why);
        }
        for server in gone {
            self.report
                .fault(format!("the server {server} ended during the run"));
        }
    }

    /// Connects all members below `count`, and waits until each is upgraded or has failed.
    pub fn open(&mut self, count: u32) {
        let count = u64::from(count);
        self.phase_until("connect", Goal::Connections(count));
        self.crew.order(|orders| orders.open_until = count as u32);
        if !self.crew.wait(|seen| seen.upgraded + seen.failed >= count) {
            let seen = self.crew.seen();
            self.report.fault(format!(
                "only {} of {count} connections were answered",
                seen.upgraded + seen.failed
            ));
        }
    }

    /// Has traffic flow, `warm_up` and then `duration`; returns both sides at the ends of `duration`.
    ///
    /// # Errors
    /// When a server cannot be looked at.
    pub fn traffic(
        &mut self,
        warm_up: Duration,
        duration: Duration,
    ) -> Result<(Meter, Meter), Failure> {
        let timetable = self.crew.start_traffic(warm_up, duration);
        self.phase_until("warm-up", Goal::Moment(timetable.measure_from_ns));
        let warm = self.crew.sleep_until_alone(timetable.measure_from_ns);
        self.phase_until("measure", Goal::Moment(timetable.measure_to_ns));
        let before = self.meter()?;
        let whole = warm && self.crew.sleep_until_alone(timetable.measure_to_ns);
        if !whole && !self.crew.was_cut_short() && self.crew.seen().open == 0 {
            self.report
                .cut_short("the run was cut short: nobody was connected any more".into());
        }
        self.crew.end_traffic();
        let after = self.meter()?;
        self.phase("settle");
        std::thread::sleep(self.crew.lead + Duration::from_millis(30)); // until every worker has seen the end and published its last
        self.crew.catch_up();
        Ok((before, after))
    }

    /// Seconds of the window that were measured: fewer than asked for when the run was cut short.
    pub fn window_seconds(&self) -> f64 {
        let timetable = self.crew.orders().timetable.unwrap_or_default();
        (timetable.measure_to_ns - timetable.measure_from_ns) as f64 / 1e9
    }

    /// Waits until each message published has come to `members`, or nothing comes any more.
    pub fn settle(&self, members: u32) {
        let members = u64::from(members);
        self.crew.wait_for_rest(GRACE, |seen| {
            seen.received >= seen.published.saturating_mul(members)
        });
    }

    /// Both sides now.
    ///
    /// # Errors
    /// When a server has ended, or may not be looked at any more.
    pub fn look(&self) -> Result<Meter, Failure> {
        Meter::now(&self.servers, &self.seats)
    }

    /// Both sides now. Of a server that has ended nothing is known: that is a fault, and costs the run no other figure.
    ///
    /// # Errors
    /// When a server may not be looked at any more.
    pub fn meter(&mut self) -> Result<Meter, Failure> {
        match self.look() {
            Err(Failure::Broken(why)) => {
                self.gone.get_or_insert(why);
                Meter::now(&Servers::none(), &self.seats)
            }
            meter => meter,
        }
    }

    /// Reports what both sides used from `before` to `after`, for `count` things named `per`.
    pub fn usage(&mut self, before: &Meter, after: &Meter, per: &str, count: u64) {
        before.report(after, per, count, &self.seats, &mut self.report);
    }

    /// Reports how busy both sides were from `before` to `after`, a part of the run called `part`: figures that begin with
    /// that.
    pub fn usage_apart(&mut self, part: &str, before: &Meter, after: &Meter) {
        let mut whole = Report::new(part);
        before.report(after, part, 0, &self.seats, &mut whole);
        for name in [
            "client_busiest_thread_share",
            "client_waited_share",
            "client_occupied_share",
            "server_busiest_thread_share",
            "server_waited_share",
        ] {
            if let Some(share) = whole.get(name) {
                self.report.figure(&format!("{part}_{name}"), share);
            }
        }
    }

    /// Ends all connections, and reports them; returns what was counted.
    ///
    /// # Errors
    /// When a worker could not go on.
    pub fn finish(&mut self) -> Result<(Outcome, Tally), Failure> {
        self.phase("finish");
        let (outcome, tally) = self.crew.finish()?;
        self.end_monitor();
        outcome.report(&mut self.report);
        Ok((outcome, tally))
    }
}
