//! One run on all generators: how the members are dealt to them, and what the report says of each.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::coordinator::{OWN_NAME, Session};
use super::skew::Skew;
use crate::client::{Seen, Shared, Troupe};
use crate::failure::Failure;
use crate::report::Report;

/// Until a worker of this process has seen new orders.
const LEAD_HERE: Duration = Duration::from_millis(20);
/// The same for workers elsewhere, beside the time on the way.
const LEAD_ELSEWHERE: Duration = Duration::from_millis(100);

/// A generator of a run.
#[derive(Debug)]
pub struct Seat {
    /// What it is called in the report.
    pub name: String,
    /// Processors that its threads may use at once.
    pub core_count: f64,
    /// What is shared with its workers.
    pub shared: Vec<Arc<Shared>>,
}

impl Seat {
    /// Its connections that were upgraded.
    fn upgraded(&self) -> u64 {
        let mut seen = Seen::default();
        for shared in &self.shared {
            shared.progress.add_to(&mut seen);
        }
        seen.upgraded
    }
}

/// The other generators of a run: who they are, and their workers.
pub type Others = (Vec<Seat>, Vec<Box<dyn Troupe>>);

/// The generators of one run: how many workers each has, and when each is reached.
pub struct Muster {
    /// Workers of all generators; those of this process come first.
    pub worker_count: u32,
    /// How far ahead a moment must lie to reach every worker in time.
    pub lead: Duration,
    run: u32,
    session: Option<Arc<Session>>,
    thread_counts: Vec<u32>,
    core_counts: Vec<f64>,
    skews: Vec<Skew>,
}

impl Muster {
    /// Tells the generators of `session` what is to be run, besides `thread_count` threads here. `scenario` is what
    /// [`crate::scenario::Part`] reads.
    ///
    /// # Errors
    /// When one cannot take part.
    pub fn call(
        session: Option<Arc<Session>>,
        scenario: &Value,
        thread_count: u32,
    ) -> Result<Self, Failure> {
        let mut muster = Self {
            worker_count: thread_count,
            lead: LEAD_HERE,
            run: 0,
            session: None,
            thread_counts: Vec::new(),
            core_counts: Vec::new(),
            skews: Vec::new(),
        };
        let Some(session) = session else {
            return Ok(muster);
        };
        muster.run = session.run_next();
        let mut round_trip_max_ns = 0;
        for link in &session.links {
            let skew = link.compare_clocks()?;
            link.set_clock(skew);
            round_trip_max_ns = round_trip_max_ns.max(skew.round_trip_max_ns);
            muster.skews.push(skew);
        }
        muster.lead = LEAD_ELSEWHERE + 4 * Duration::from_nanos(round_trip_max_ns);
        for link in &session.links {
            link.prepare(muster.run, scenario.clone(), session.generator_count());
        }
        for link in &session.links {
            let (thread_count, core_count) = link.ready(muster.run)?;
            muster.worker_count = muster.worker_count.saturating_add(thread_count);
            muster.thread_counts.push(thread_count);
            muster.core_counts.push(core_count);
        }
        muster.session = Some(session);
        Ok(muster)
    }

    /// Has the other generators start their workers, after the `thread_count` of this process, for a run of `member_count`
    /// members.
    ///
    /// # Errors
    /// When one could not.
    pub fn start(&self, thread_count: u32, member_count: u32) -> Result<Others, Failure> {
        let (mut seats, mut troupes) = (Vec::new(), Vec::new());
        let Some(session) = &self.session else {
            return Ok((seats, troupes));
        };
        let mut worker_first = thread_count;
        for (index, link) in session.links.iter().enumerate() {
            let (shared, troupe) =
                link.start_workers(self.run, worker_first, self.worker_count, member_count);
            worker_first += self.thread_counts[index];
            troupes.push(Box::new(troupe) as Box<dyn Troupe>);
            seats.push(Seat {
                name: link.name.clone(),
                core_count: self.core_counts[index],
                shared: vec![shared],
            });
        }
        for link in &session.links {
            link.started(self.run)?;
        }
        Ok((seats, troupes))
    }

    /// Says in the report who took part in which rooms, and how well their clocks agreed. Nothing, if nobody joined.
    pub fn report(&self, seats: &[Seat], run_id: &str, report: &mut Report) {
        let Some(session) = &self.session else {
            return;
        };
        report.count("generators", seats.len() as u64);
        report.note(format!("rooms of this run have {run_id} in their names"));
        for seat in seats {
            report.count(&format!("upgraded_{}", seat.name), seat.upgraded());
        }
        for (link, skew) in session.links.iter().zip(&self.skews) {
            if let Some(why) = link.left() {
                report.fault(format!(
                    "generator {} left during the run ({why}): its part is unknown",
                    link.name
                ));
            } else if skew.error_ns > 0
                && let Ok(now) = link.compare_clocks()
            {
                let drift_ns = now.offset_ns.abs_diff(skew.offset_ns);
                report.note(format!(
                    "the clock of {} was set to the coordinator's within {:.3} ms, and {:.3} ms off at the end: latencies between \
                     the two may be wrong by as much",
                    link.name,
                    skew.error_ns as f64 / 1e6,
                    drift_ns as f64 / 1e6
                ));
            }
        }
    }
}

/// The seat of this process.
pub fn own_seat(core_count: f64, shared: Vec<Arc<Shared>>) -> Seat {
    Seat {
        name: OWN_NAME.to_owned(),
        core_count,
        shared,
    }
}
