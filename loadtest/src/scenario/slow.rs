//! Fan-out to members that read, first alone, then beside as many that never read. What do the readers notice?

use clap::Args;

use super::fan_out::{FanOut, Traffic, close, wait_for_deliveries, window_sum};
use super::{Common, wait_for_upgrades};
use crate::client::{Ending, Timetable};
use crate::failure::Failure;
use crate::report::Report;

/// What `slow` is told.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub traffic: Traffic,
    /// Members that read
    #[arg(long, value_name = "R", default_value_t = 1000)]
    readers: u32,
    /// Members that join later and never read
    #[arg(long, value_name = "K", default_value_t = 1000)]
    stalled: u32,
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let (common, traffic) = (&arguments.common, &arguments.traffic);
    let (readers, stalled) = (arguments.readers, arguments.stalled);
    let (warm_up, duration) = traffic.check(1, readers)?;
    if traffic.publishers == 0 || stalled == 0 {
        return Err(Failure::Usage(
            "--publishers and --stalled must be at least 1".into(),
        ));
    }
    let total = readers
        .checked_add(stalled)
        .ok_or_else(|| Failure::Usage("too many --readers and --stalled".into()))?;
    let (plan, shares) = common.prepare(total, u32::MAX, Ending::Stream)?;
    let mut report = Report::new("slow");
    // Each worker's members: its readers first, its stalled ones behind them.
    let worker_count = shares.len() as u32;
    let part = |count: u32, worker: u32| {
        let edge =
            |worker: u32| (u64::from(count) * u64::from(worker) / u64::from(worker_count)) as u32;
        edge(worker)..edge(worker + 1)
    };
    let mut reader_shares = Vec::new();
    let behaviours: Vec<_> = (0..worker_count)
        .map(|worker| {
            let mut numbers: Vec<u32> = part(readers, worker).collect();
            reader_shares.push(numbers.len() as u32);
            numbers.extend(part(stalled, worker).map(|number| readers + number));
            (
                numbers.len() as u32,
                FanOut::new(traffic, numbers, readers, readers),
            )
        })
        .collect();
    let crew = common.start(&plan, behaviours)?;
    let client_core_count = common.client_core_count(shares.len());
    let mut meters = Vec::new();
    for with_stalled in [false, true] {
        let mut reader_share = reader_shares.iter();
        crew.order(|orders, member_count| {
            let alone = reader_share.next().copied().unwrap_or(0);
            orders.open_until = if with_stalled { member_count } else { alone };
        });
        wait_for_upgrades(
            &crew,
            u64::from(if with_stalled { total } else { readers }),
            &mut report,
        );
        let timetable = Timetable::starting_now(warm_up, duration);
        crew.order(|orders, _| orders.timetable = Some(timetable));
        crew.sleep_until(timetable.measure_from_ns);
        let before = common.meter()?;
        if !crew.sleep_until(timetable.measure_to_ns) {
            report.fault("the run was cut short");
        }
        meters.push((before, common.meter()?));
        wait_for_deliveries(&crew, readers, 1);
    }
    // What has become of those that never read?
    crew.order(|orders, _| orders.resume = true);
    std::thread::sleep(std::time::Duration::from_secs(1));
    let (outcome, mut workers) = crew.finish()?;

    outcome.report(&mut report);
    close(&mut workers, traffic.publishers).report(&mut report);
    let mut p99_ms = Vec::new();
    for (index, name) in ["alone", "beside_stalled"].into_iter().enumerate() {
        let (latency, delivered) = window_sum(&workers, index);
        report.count(&format!("{name}_delivered"), delivered);
        report.latency(&format!("{name}_latency"), &latency);
        p99_ms.push(latency.value_at_quantile(0.99) as f64);
        if delivered == 0 {
            report.fault(format!("nothing was delivered ({name})"));
        }
    }
    report.figure("p99_ratio", p99_ms[1] / p99_ms[0].max(1.0));
    let cut: u64 = outcome.closed_by_server_expected.values().sum();
    report.count("stalled_closed_by_server", cut);
    for (code, count) in &outcome.closed_by_server_expected {
        report.count(&format!("stalled_closed_with_{code}"), *count);
    }
    report.count("stalled_still_open", u64::from(stalled).saturating_sub(cut));
    let (before, after) = &meters[1];
    let (_, delivered) = window_sum(&workers, 1);
    before.report(
        after,
        "delivery_to_readers",
        delivered,
        client_core_count,
        &mut report,
    );
    if let (Some(alone), Some(beside)) = (&meters[0].1.server, &after.server) {
        // They may be cut before the window ends: the peak counts, even if the readers had a part in it.
        let peak = beside.total(|part| part.rss_peak_bytes);
        if let Some((peak, alone)) = peak.zip(alone.total(|part| part.rss_bytes)) {
            report.figure(
                "server_rss_peak_growth_bytes_per_stalled",
                peak.saturating_sub(alone) as f64 / f64::from(stalled),
            );
        }
    }
    Ok(report)
}
