//! Fan-out to members that read, first alone, then beside others that never read or crawl. What do the readers notice?

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

/// What `slow` is told.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub traffic: Traffic,
    /// Members that read
    #[arg(
        long,
        value_name = "R",
        default_value_t = 1000,
        help_heading = "Traffic"
    )]
    readers: u32,
    /// Members that join later and never read
    #[arg(
        long,
        value_name = "K",
        default_value_t = 1000,
        help_heading = "Traffic"
    )]
    stalled: u32,
    /// Members that join later and read slowly
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Traffic")]
    crawling: u32,
    /// Bytes a second that each of those reads
    #[arg(
        long,
        value_name = "B",
        default_value_t = 10_000,
        help_heading = "Traffic"
    )]
    crawl_rate: u64,
}

impl Arguments {
    fn cast(&self) -> Cast {
        Cast {
            stalled: self.stalled,
            crawling: self.crawling,
            crawl_bytes_per_s: self.crawl_rate,
            ..self.traffic.cast(&self.common, "slow", 1, self.readers)
        }
    }
}

impl Play for Arguments {
    type Behaviour = Members;
    const NAME: &'static str = "slow";

    fn common(&self) -> &Common {
        &self.common
    }

    fn extent(&self) -> Result<Extent, Failure> {
        self.traffic.check(&self.common, 1, self.readers)?;
        if self.traffic.publishers == 0 || self.crawl_rate == 0 {
            return Err(Failure::Usage(
                "--publishers and --crawl-rate must be at least 1".into(),
            ));
        }
        if self.stalled == 0 && self.crawling == 0 {
            return Err(Failure::Usage(
                "--stalled or --crawling must be at least 1".into(),
            ));
        }
        self.readers
            .checked_add(self.stalled)
            .and_then(|sum| sum.checked_add(self.crawling))
            .filter(|sum| *sum <= 10_000_000)
            .map(Extent::new)
            .ok_or_else(|| {
                Failure::Usage(
                    "--readers, --stalled and --crawling are 10000000 at most, together".into(),
                )
            })
    }

    fn behaviour(&self, share: Share) -> Members {
        Members::new(&Arc::new(self.cast()), share)
    }

    fn direct(&self, stage: &mut Stage) -> Result<(), Failure> {
        let (warm_up, duration) = self.traffic.window.times()?;
        let cast = self.cast();
        let mut meters = Vec::new();
        for count in [self.readers, cast.member_count()] {
            stage.open(count);
            meters.push(stage.traffic(warm_up, duration)?);
            stage.settle(self.readers);
        }
        // What has become of those that never read?
        stage.crew.order(|orders| orders.resume = true);
        stage.crew.sleep(1.0);
        let (outcome, tally) = stage.finish()?;

        let report = &mut stage.report;
        tally.deliveries.report(report);
        let mut p99_ms = Vec::new();
        for (index, name) in ["alone", "beside_slow"].into_iter().enumerate() {
            let window = tally.window(index);
            report.count(&format!("{name}_delivered"), window.delivered);
            report.latency(&format!("{name}_latency"), &window.latency);
            p99_ms.push(window.latency.value_at_quantile(0.99) as f64);
            if window.delivered == 0 {
                report.fault(format!("nothing was delivered ({name})"));
            }
        }
        report.figure("p99_ratio", p99_ms[1] / p99_ms[0].max(1.0));
        let cut: u64 = outcome.closed_by_server_expected.values().sum();
        report.count("slow_closed_by_server", cut);
        for (code, count) in &outcome.closed_by_server_expected {
            report.count(&format!("slow_closed_with_{code}"), *count);
        }
        let slow = self.stalled + self.crawling;
        report.count("slow_still_open", u64::from(slow).saturating_sub(cut));
        report.count("received_by_slow", tally.count("received_by_others"));
        report.count("gaps_told_to_slow", tally.count("gaps_told_to_others"));
        // They may be cut before the window ends: the peak counts, even if the readers had a part in it.
        let peak = meters[1].1.server.total(|part| part.rss_peak_bytes);
        let alone = meters[0].1.server.total(|part| part.rss_bytes);
        if let Some((peak, alone)) = peak.zip(alone) {
            report.figure(
                "server_rss_peak_growth_bytes_per_slow",
                peak.saturating_sub(alone) as f64 / f64::from(slow),
            );
        }
        let (before, after) = &meters[1];
        let delivered = tally.window(1).delivered;
        stage.usage(before, after, "delivery_to_readers", delivered);
        Ok(())
    }
}
