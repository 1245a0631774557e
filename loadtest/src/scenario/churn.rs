//! Connect, upgrade, end, and again: what a handshake costs, and what it leaves behind.

use clap::Args;

use super::{Common, PATIENCE};
use crate::client::{Behaviour, Crew, Ending, Message, Posts, Reply, Timetable};
use crate::failure::Failure;
use crate::report::Report;
use crate::server::Part;

/// What `churn` is told.
#[derive(Debug, Args)]
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

struct Churn {
    rooms: u32,
}

impl Behaviour for Churn {
    fn room(&self, local: u32) -> String {
        format!("churn-{}", local % self.rooms)
    }
    fn opened(&mut self, _local: u32, reply: &mut Reply) {
        reply.end = true;
    }
    fn message(&mut self, _local: u32, _message: Message<'_>, _now_ns: u64, _reply: &mut Reply) {}
    fn schedule(&mut self, _timetable: Timetable) {}
    fn turn(&mut self, _now_ns: u64, _posts: &mut Posts) -> Option<u64> {
        None
    }
    fn closed_by_server(&mut self, _local: u32) -> bool {
        false
    }
    fn progress(&self) -> (u64, u64) {
        (0, 0)
    }
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let common = &arguments.common;
    if arguments.rooms == 0 {
        return Err(Failure::Usage("--rooms must be at least 1".into()));
    }
    let total = arguments
        .connections
        .checked_add(arguments.warm_up)
        .filter(|total| *total <= 100_000_000)
        .ok_or_else(|| {
            Failure::Usage("--connections and --warm-up are at most 100000000 together".into())
        })?;
    let (plan, shares) = common.prepare(total, arguments.concurrency, arguments.end)?;
    let mut report = Report::new("churn");
    let behaviours = shares.iter().map(|share| {
        (
            *share,
            Churn {
                rooms: arguments.rooms,
            },
        )
    });
    let crew = common.start(&plan, behaviours.collect())?;
    let ended = |crew: &Crew<Churn>| crew.sum(|progress| &progress.ended);
    let run_until = |count: u32, report: &mut Report| {
        let mut order_count = 0;
        crew.order(|orders, share| {
            orders.open_until = (u64::from(share) * u64::from(count) / u64::from(total)) as u32;
            order_count += u64::from(orders.open_until);
        });
        // A connect that could not even be begun has no end.
        let over = |crew: &Crew<Churn>| ended(crew).max(crew.sum(|progress| &progress.failed));
        if !crew.wait(PATIENCE, |crew| over(crew) >= order_count, ended) {
            report.fault(format!(
                "only {} of {order_count} connections came to their end",
                ended(&crew)
            ));
        }
    };
    run_until(arguments.warm_up, &mut report);
    let upgraded_before = crew.sum(|progress| &progress.upgraded);
    let before = common.meter()?;
    run_until(total, &mut report);
    let after = common.meter()?;
    let upgraded = crew.sum(|progress| &progress.upgraded) - upgraded_before;
    // The server may see the last ends a moment later.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let rest = common.meter()?;
    let (outcome, _) = crew.finish()?;

    outcome.report(&mut report);
    report.count("handshakes", upgraded);
    report.figure(
        "handshakes_per_s",
        upgraded as f64 / ((after.at_ns - before.at_ns) as f64 / 1e9),
    );
    before.report(
        &after,
        "handshake",
        upgraded,
        common.client_core_count(shares.len()),
        &mut report,
    );
    if let (Some(before), Some(rest)) = (&before.server, &rest.server) {
        let growth = |of: fn(&Part) -> Option<u64>| {
            let (before, rest) = (before.total(of)?, rest.total(of)?);
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
    }
    Ok(report)
}
