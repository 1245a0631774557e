//! Hours of a mix: readers at a rate, members that come and go, members that never read or crawl. Looked at in windows;
//! the run ends at the first drift of memory, latency, descriptors or loss beyond its bound.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::cast::Cast;
use super::common::Common;
use super::drift::{Bounds, Line, Watch, Window};
use super::members::Members;
use super::stage::{Extent, Play, Stage, perform};
use super::traffic::{Traffic, seconds};
use crate::client::{Seen, Share};
use crate::clock::now_ns;
use crate::failure::Failure;
use crate::meter::Meter;
use crate::monitor::Goal;
use crate::report::{Percentiles, Report, Unit};
use crate::server::Usage;

/// Windows at most: each is a line of the watch's books.
const WINDOW_COUNT_MAX: f64 = 100_000.0;
/// Descriptors that may come and go without any member.
const DESCRIPTOR_SLACK: u64 = 16;
/// What a run takes beside its duration, seconds, at most.
const MARGIN_S: f64 = 900.0;

/// What `soak` is told.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[group(id = "soak")]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub traffic: Traffic,
    /// Rooms
    #[arg(long, value_name = "R", default_value_t = 1, help_heading = "Traffic")]
    pub rooms: u32,
    /// Members of each room that read and stay
    #[arg(
        long,
        value_name = "M",
        default_value_t = 100,
        help_heading = "Traffic"
    )]
    pub members: u32,
    /// Members that come and go
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Traffic")]
    pub churning: u32,
    /// How long those stay, and then are away, about
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds, help_heading = "Traffic")]
    pub churn_every: f64,
    /// Members that never read; who is cut off comes back
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Traffic")]
    pub stalled: u32,
    /// Members that read slowly; who is cut off comes back
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Traffic")]
    pub crawling: u32,
    /// Bytes a second that each of those reads
    #[arg(
        long,
        value_name = "B",
        default_value_t = 10_000,
        help_heading = "Traffic"
    )]
    pub crawl_rate: u64,
    /// What is looked at as one
    #[arg(long = "window", value_name = "S", default_value = "60", value_parser = seconds, help_heading = "Drift")]
    pub window_s: f64,
    /// Windows whose medians are the baseline
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Drift")]
    pub settle: u32,
    /// The server's resident memory over the baseline
    #[arg(long, value_name = "X%", default_value = "5%", value_parser = share, help_heading = "Drift")]
    pub memory_drift: f64,
    /// What the server's resident memory may rise by in an hour, beyond three standard errors, as 1MiB [default: not bounded]
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = "Drift")]
    pub memory_slope: Option<f64>,
    /// The p99 of two windows in a row over the baseline
    #[arg(long, value_name = "X%", default_value = "50%", value_parser = share, help_heading = "Drift")]
    pub latency_drift: f64,
    /// By so much, at least
    #[arg(long, value_name = "T", default_value = "5ms", value_parser = milliseconds, help_heading = "Drift")]
    pub latency_slack: f64,
    /// Deliveries that may be lost, duplicated, reordered, corrupted or misrouted in the whole run
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Drift")]
    pub loss: u64,
    /// The server's descriptors over the baseline [default: 16, and the members that come and go]
    #[arg(long, value_name = "N", help_heading = "Drift")]
    pub descriptor_drift: Option<u64>,
}

/// A share of one, as `5%` or `0.05`.
fn share(text: &str) -> Result<f64, String> {
    Unit::Share
        .parse(text)
        .filter(|share| (0.0..=100.0).contains(share))
        .ok_or_else(|| "a share is expected, as 5% or 0.05".into())
}

/// Bytes.
fn bytes(text: &str) -> Result<f64, String> {
    Unit::Bytes
        .parse(text)
        .filter(|bytes| *bytes >= 0.0)
        .ok_or_else(|| "bytes are expected, as 1MiB".into())
}

/// Milliseconds.
fn milliseconds(text: &str) -> Result<f64, String> {
    Unit::Time(1_000_000)
        .parse(text)
        .filter(|ms| (0.0..=3.6e6).contains(ms))
        .ok_or_else(|| "a time up to an hour is expected, as 5ms or 1s".into())
}

/// What a handshake may take, seconds, before who makes it counts as absent.
const RETURN_SLACK_S: f64 = 2.0;

/// For how long a look waits for a moment at which nothing is on its way.
const CALM: Duration = Duration::from_millis(250);

/// What is looked at between two windows.
struct Look {
    seen: Seen,
    meter: Meter,
    /// Deliveries published and neither come nor known as faults, at the calmest moment of the look.
    outstanding: u64,
}

impl Look {
    fn now(stage: &mut Stage, members: u32) -> Result<Self, Failure> {
        stage.crew.catch_up();
        let seen = stage.crew.seen();
        let mut outstanding = outstanding(&seen, members);
        let until_ns = now_ns() + CALM.as_nanos() as u64;
        while outstanding > 0 && now_ns() < until_ns {
            std::thread::sleep(Duration::from_millis(2));
            outstanding = outstanding.min(self::outstanding(&stage.crew.seen(), members));
        }
        Ok(Self {
            seen,
            meter: stage.look()?,
            outstanding,
        })
    }

    /// Deliveries that are overdue at the end of a window in which a tenth took longer than `p90_ns`: those outstanding at
    /// both its ends, beyond what is always on its way, which is the rate times the time each takes (Little's law).
    fn overdue(before: &Self, after: &Self, members: u32, p90_ns: u64, window_ns: u64) -> u64 {
        let published = after.seen.published.saturating_sub(before.seen.published);
        let always = published as f64 * p90_ns as f64 / window_ns as f64 * f64::from(members);
        let least = before.outstanding.min(after.outstanding);
        least.saturating_sub(always.ceil() as u64)
    }
}

/// Deliveries published, but neither come nor known as faults.
fn outstanding(seen: &Seen, members: u32) -> u64 {
    let due = seen.published * u64::from(members);
    due.saturating_sub(seen.received + seen.faults)
}

/// What a soak keeps of its windows: extremes and lines, nothing that grows.
struct Books {
    watch: Watch,
    /// The generator's own resident memory: the first, the last, and the line through all.
    client_rss: Option<(u64, u64)>,
    client_line: Line,
    p99_max_ns: u64,
    rss_max: u64,
    tcp_memory_max: u64,
    /// Processor time of the servers per delivery, microseconds: the first window's and the last's.
    cpu_us: Option<(f64, f64)>,
    last: Window,
}

impl Arguments {
    /// Runs it; the time limit is at least its duration.
    ///
    /// # Errors
    /// When it cannot be carried out.
    pub fn run(&self) -> Result<Report, Failure> {
        let mut play = self.clone();
        let window = self.traffic.window;
        let seconds = (window.warm_up + window.duration + MARGIN_S).clamp(0.0, 1e9) as u32;
        play.common.time_limit = play.common.time_limit.max(seconds);
        perform(&play)
    }

    fn cast(&self) -> Cast {
        Cast {
            stalled: self.stalled,
            crawling: self.crawling,
            crawl_bytes_per_s: self.crawl_rate,
            slow_come_back: true,
            churning: self.churning,
            churn_ns: (self.churn_every * 1e9) as u64,
            ..self
                .traffic
                .cast(&self.common, "soak", self.rooms, self.members)
        }
    }

    fn bounds(&self) -> Bounds {
        let come_and_go = self.churning + self.stalled + self.crawling;
        Bounds {
            settle: self.settle,
            memory_share: self.memory_drift,
            memory_bytes_per_h: self.memory_slope,
            latency_share: self.latency_drift,
            latency_slack_ns: (self.latency_slack * 1e6) as u64,
            loss: self.loss,
            descriptors: self
                .descriptor_drift
                .unwrap_or(DESCRIPTOR_SLACK + u64::from(come_and_go)),
        }
    }

    fn window_count(&self) -> u64 {
        (self.traffic.window.duration / self.window_s + 1e-9) as u64
    }

    /// Of the members that were away at a window's beginning, those that had not come back at its end, where it is longer
    /// than anybody stays away.
    pub fn absent(&self, before: &Seen, after: &Seen) -> u64 {
        if self.window_s < 1.5 * self.churn_every + RETURN_SLACK_S {
            return 0;
        }
        let away = u64::from(self.cast().member_count()).saturating_sub(before.open);
        away.saturating_sub(after.upgraded - before.upgraded)
    }

    /// Watches the windows until the last, or the first drift; the report says why when it ends early.
    fn watch(&self, stage: &mut Stage, from_ns: u64) -> Result<Books, Failure> {
        let mut books = Books::new(self.bounds());
        let window_ns = (self.window_s * 1e9) as u64;
        let mut before = Look::now(stage, self.members)?;
        stage.take_latency(); // the warm-up's
        for number in 1..=self.window_count() {
            if !stage.crew.sleep_until(from_ns + number * window_ns) {
                stage
                    .report
                    .fault(format!("the run was cut short in window {number}"));
                break;
            }
            let after = match Look::now(stage, self.members) {
                Ok(after) => after,
                Err(failure) => {
                    let what =
                        format!("window {number}: the server cannot be looked at: {failure}");
                    stage.report.fault(what);
                    break;
                }
            };
            let since = |of: fn(&Seen) -> u64| of(&after.seen).saturating_sub(of(&before.seen));
            let server = &after.meter.server;
            let latency = Percentiles::of(&stage.take_latency());
            let p90_ns = latency.map_or(0, |found| found.p90_ns);
            let window = Window {
                end_s: number as f64 * self.window_s,
                delivered: since(|seen| seen.received),
                latency,
                faults: since(|seen| seen.faults),
                connections_lost: since(|seen| seen.lost) + since(|seen| seen.failed),
                retried: since(|seen| seen.retried),
                absent: self.absent(&before.seen, &after.seen),
                missing: Look::overdue(&before, &after, self.members, p90_ns, window_ns),
                rss_bytes: server.total(|part| part.rss_bytes),
                descriptors: server.total(|part| part.descriptor_count),
            };
            let received = window.delivered;
            let cpu_us = (!server.parts.is_empty() && received > 0)
                .then(|| Usage::between(&before.meter.server, server).cpu_us / received as f64);
            let tcp_memory = server.kernel.tcp_memory_bytes.unwrap_or(0);
            let drift = books.learn(&window, cpu_us, tcp_memory);
            if !self.common.quiet && !std::io::stderr().is_terminal() {
                eprintln!("{}", line(number, &window, cpu_us));
            }
            for note in books.watch.take_notes() {
                stage.report.note(note);
            }
            before = after;
            if let Some(drift) = drift {
                stage.report.fault(drift);
                break;
            }
        }
        Ok(books)
    }
}

impl Books {
    fn new(bounds: Bounds) -> Self {
        Self {
            watch: Watch::new(bounds),
            client_rss: None,
            client_line: Line::new(),
            p99_max_ns: 0,
            rss_max: 0,
            tcp_memory_max: 0,
            cpu_us: None,
            last: Window::default(),
        }
    }

    fn learn(&mut self, window: &Window, cpu_us: Option<f64>, tcp_memory: u64) -> Option<String> {
        if let Some(now) = own_rss_bytes() {
            let (first, _) = self.client_rss.unwrap_or((now, now));
            self.client_rss = Some((first, now));
            if self.watch.baseline().is_some() {
                self.client_line.add(window.end_s / 3_600.0, now as f64);
            }
        }
        if let Some(now) = cpu_us {
            let (first, _) = self.cpu_us.unwrap_or((now, now));
            self.cpu_us = Some((first, now));
        }
        self.p99_max_ns = self
            .p99_max_ns
            .max(window.latency.map_or(0, |found| found.p99_ns));
        self.rss_max = self.rss_max.max(window.rss_bytes.unwrap_or(0));
        self.tcp_memory_max = self.tcp_memory_max.max(tcp_memory);
        self.last = *window;
        self.watch.learn(window)
    }

    fn report(&self, report: &mut Report) {
        report.count("windows", self.watch.count());
        let Some(baseline) = self.watch.baseline() else {
            report.note("the run ended before there was a baseline");
            return;
        };
        if let (Some(then_ns), Some(now)) = (baseline.p99_ns, self.last.latency) {
            report.figure("window_p99_baseline_ms", then_ns as f64 / 1e6);
            report.figure("window_p99_max_ms", self.p99_max_ns as f64 / 1e6);
            report.figure("window_p99_last_ms", now.p99_ns as f64 / 1e6);
        }
        if let (Some(then), Some(now)) = (baseline.rss_bytes, self.last.rss_bytes) {
            report.count("server_rss_baseline_bytes", then);
            report.count("server_rss_max_bytes", self.rss_max);
            report.count("server_rss_last_bytes", now);
            let drift = self.rss_max as f64 / then.max(1) as f64 - 1.0;
            report.figure("server_rss_drift_share", drift);
        }
        if let Some((slope, error)) = self.watch.slope() {
            report.figure("server_rss_slope_bytes_per_h", slope);
            report.figure("server_rss_slope_error_bytes_per_h", error);
            report.note(if self.watch.rises() {
                "the server's resident memory rises, beyond chance: its slope is more than three standard errors"
            } else {
                "the server's resident memory does not rise beyond chance: its slope is within three standard errors"
            });
        }
        if let (Some(then), Some(now)) = (baseline.descriptors, self.last.descriptors) {
            report.count("server_descriptors_baseline", then);
            report.count("server_descriptors_last", now);
        }
        report.count("tcp_memory_max_bytes", self.tcp_memory_max);
        if let Some((first, last)) = self.cpu_us {
            report.figure("server_cpu_first_us_per_delivery", first);
            report.figure("server_cpu_last_us_per_delivery", last);
        }
        if let Some((first, last)) = self.client_rss {
            report.count("client_rss_first_bytes", first);
            report.count("client_rss_last_bytes", last);
        }
        if let Some((slope, _)) = self.client_line.slope() {
            report.figure("client_rss_slope_bytes_per_h", slope);
        }
    }
}

/// A window on a line, for logs.
fn line(number: u64, window: &Window, cpu_us: Option<f64>) -> String {
    let mut text = format!(
        "window {number}: {} deliveries, faults {}",
        window.delivered, window.faults
    );
    if let Some(latency) = window.latency {
        let ms = |ns: u64| Unit::Time(1).human(ns as f64);
        text += &format!(
            ", p50 {}, p99 {}, max {}",
            ms(latency.p50_ns),
            ms(latency.p99_ns),
            ms(latency.max_ns)
        );
    }
    if let Some(bytes) = window.rss_bytes {
        text += &format!(", RSS {}", Unit::Bytes.human(bytes as f64));
    }
    if let Some(count) = window.descriptors {
        text += &format!(", {count} descriptors");
    }
    if let Some(us) = cpu_us {
        text += &format!(", {} a delivery", Unit::Time(1_000).human(us));
    }
    text
}

/// This process's resident memory.
fn own_rss_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

impl Play for Arguments {
    type Behaviour = Members;
    const NAME: &'static str = "soak";

    fn common(&self) -> &Common {
        &self.common
    }

    fn extent(&self) -> Result<Extent, Failure> {
        self.traffic.check(&self.common, self.rooms, self.members)?;
        let wrong = |what: &str| Err(Failure::Usage(what.into()));
        if self.traffic.publishers == 0 || self.crawl_rate == 0 {
            return wrong("--publishers and --crawl-rate must be at least 1");
        }
        if !(0.1..=86_400.0).contains(&self.churn_every)
            || !(1.0..=86_400.0).contains(&self.window_s)
        {
            return wrong("--churn-every is 0.1 s to a day, --window 1 s to a day");
        }
        if !(1..=1_000).contains(&self.settle) {
            return wrong("--settle is 1 to 1000 windows");
        }
        let windows = self.traffic.window.duration / self.window_s;
        if self.window_count() <= u64::from(self.settle) || windows > WINDOW_COUNT_MAX {
            return Err(Failure::Usage(format!(
                "--duration is {windows:.1} windows: it must be more than {} (--settle) and at most {WINDOW_COUNT_MAX}, as \
                 --duration 4h --window 60s",
                self.settle
            )));
        }
        [self.churning, self.stalled, self.crawling]
            .into_iter()
            .try_fold(self.rooms * self.members, u32::checked_add)
            .filter(|sum| *sum <= 10_000_000)
            .map(Extent::new)
            .ok_or_else(|| Failure::Usage("all members together are 10000000 at most".into()))
    }

    fn behaviour(&self, share: Share) -> Members {
        Members::new(&Arc::new(self.cast()), share)
    }

    fn direct(&self, stage: &mut Stage) -> Result<(), Failure> {
        let (warm_up, duration) = self.traffic.window.times()?;
        stage.open(self.cast().member_count());
        let timetable = stage.crew.start_traffic(warm_up, duration);
        stage.phase_until("warm-up", Goal::Moment(timetable.measure_from_ns));
        stage.crew.sleep_until(timetable.measure_from_ns);
        stage.phase_until("measure", Goal::Moment(timetable.measure_to_ns));
        let before = stage.meter()?;
        let received_before = stage.crew.seen().received;
        let books = self.watch(stage, timetable.measure_from_ns)?;
        let received = stage.crew.seen().received - received_before;
        let after = stage.meter().ok();
        if books.watch.count() < self.window_count() {
            // It ends here: no more is published, so that what is on its way is not taken for lost.
            let end_ns = stage.crew.soon_ns();
            stage.crew.order(|orders| {
                if let Some(timetable) = &mut orders.timetable {
                    timetable.measure_to_ns = timetable.measure_to_ns.min(end_ns);
                }
            });
        } else {
            stage.crew.sleep_until(timetable.measure_to_ns);
        }
        stage.phase("settle");
        std::thread::sleep(stage.crew.lead + Duration::from_millis(30)); // until the last is published
        stage.crew.catch_up();
        stage.settle(self.members);
        let published = stage.crew.seen().published;
        let (outcome, tally) = stage.finish()?;

        let report = &mut stage.report;
        report.count("published", published);
        if tally.deliveries.faults() > self.loss {
            tally.deliveries.report(report);
        } else {
            // What --loss allows is told, but is no fault.
            let mut allowed = Report::new(Self::NAME);
            tally.deliveries.report(&mut allowed);
            report.absorb(allowed);
        }
        report.latency("latency", &tally.window(0).latency);
        report.count("churned", tally.count("churned"));
        let cut: u64 = outcome.closed_by_server_expected.values().sum();
        report.count("slow_closed_by_server", cut);
        books.report(report);
        if self.common.beside.server_pid.is_empty() && self.common.beside.metrics.is_empty() {
            report.note("without --server-pid or --metrics, nobody watched the server's memory and descriptors");
        }
        if let Some(after) = after {
            stage.usage(&before, &after, "delivery", received);
        }
        Ok(())
    }
}
