//! Connect, join, stay: the handshakes' cost and the memory of connections that do nothing.

use std::time::Duration;

use clap::Args;

use super::{Common, Meter, wait_for_upgrades};
use crate::client::{Behaviour, Ending, Message, Posts, Reply, Timetable};
use crate::clock::now_ns;
use crate::failure::Failure;
use crate::report::Report;
use crate::server::report_memory;

/// What `idle` is told.
#[derive(Debug, Args)]
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
    connections: u32,
    /// Connection counts between which memory is measured, as 4000,16000
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    steps: Vec<u32>,
    /// Rooms that the connections are spread over
    #[arg(long, value_name = "R", default_value_t = 1)]
    rooms: u32,
    /// Seconds to hold all of them
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    hold: f64,
    /// Seconds of rest before memory is read
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    settle: f64,
}

struct Idle {
    member_first: u32,
    rooms: u32,
    received: u64,
}

impl Behaviour for Idle {
    fn room(&self, local: u32) -> String {
        format!("idle-{}", (self.member_first + local) % self.rooms)
    }
    fn opened(&mut self, _local: u32, _reply: &mut Reply) {}
    fn message(&mut self, _local: u32, _message: Message<'_>, _now_ns: u64, _reply: &mut Reply) {
        self.received += 1;
    }
    fn schedule(&mut self, _timetable: Timetable) {}
    fn turn(&mut self, _now_ns: u64, _posts: &mut Posts) -> Option<u64> {
        None
    }
    fn closed_by_server(&mut self, _local: u32) -> bool {
        false
    }
    fn progress(&self) -> (u64, u64) {
        (0, self.received)
    }
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let common = &arguments.common;
    let steps = if arguments.steps.is_empty() {
        vec![arguments.connections]
    } else {
        arguments.steps.clone()
    };
    if !steps.is_sorted_by(|earlier, later| earlier < later) || steps[0] == 0 {
        return Err(Failure::Usage(
            "--steps must rise from at least 1, as 4000,16000".into(),
        ));
    }
    if arguments.rooms == 0
        || !(0.0..=1e6).contains(&arguments.hold)
        || !(0.0..=1e6).contains(&arguments.settle)
    {
        return Err(Failure::Usage(
            "--rooms must be at least 1; --hold and --settle are seconds".into(),
        ));
    }
    let connection_count = steps[steps.len() - 1];
    let (plan, shares) = common.prepare(connection_count, u32::MAX, Ending::Stream)?;
    let mut report = Report::new("idle");
    let mut member_first = 0;
    let behaviours = shares.iter().map(|share| {
        let behaviour = Idle {
            member_first,
            rooms: arguments.rooms,
            received: 0,
        };
        member_first += share;
        (*share, behaviour)
    });
    let crew = common.start(&plan, behaviours.collect())?;
    let begin = common.meter()?;
    let begin_ns = now_ns();
    let mut connecting_ns = 0;
    let mut meters: Vec<(u32, Meter)> = Vec::new();
    for step in steps {
        let step_ns = now_ns();
        crew.order(|orders, share| {
            orders.open_until =
                (u64::from(share) * u64::from(step)).div_ceil(u64::from(connection_count)) as u32;
        });
        wait_for_upgrades(&crew, u64::from(step), &mut report);
        connecting_ns += now_ns() - step_ns;
        crew.sleep_until(now_ns() + Duration::from_secs_f64(arguments.settle).as_nanos() as u64);
        meters.push((step, common.meter()?));
    }
    crew.sleep_until(now_ns() + Duration::from_secs_f64(arguments.hold).as_nanos() as u64);
    if crew.out_of_time() {
        report.fault("the time limit was met");
    }
    let end = common.meter()?;
    let received = crew.sum(|progress| &progress.received);
    let (outcome, _) = crew.finish()?;

    outcome.report(&mut report);
    report.figure(
        "handshakes_per_s",
        outcome.upgraded as f64 / (connecting_ns as f64 / 1e9),
    );
    report.figure("seconds", (end.at_ns - begin_ns) as f64 / 1e9);
    report.count("messages_received", received);
    let (_, last) = &meters[meters.len() - 1];
    begin.report(
        last,
        "handshake",
        outcome.upgraded,
        common.client_core_count(shares.len()),
        &mut report,
    );
    if let Some(begin) = &begin.server {
        let steps: Vec<_> = meters
            .iter()
            .filter_map(|(count, meter)| Some((*count, meter.server.as_ref()?)))
            .collect();
        report_memory(begin, &steps, &mut report);
    }
    Ok(report)
}
