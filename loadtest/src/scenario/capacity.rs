//! How much can the server carry? One thing is raised until an objective breaks; the answer is the highest value that held.
//!
//! Each trial is a whole run of `fanout`, or of `idle` for connections, with its own connections and warm-up. A trial in
//! which the generator could not offer the load says nothing of the server, and the answer says so.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::common::Common;
use super::limit::{BUSY_SHARE, limiting, of_part, waited_share};
use super::objective::{self, Measured, Objective};
use super::search::{Found, Range, Search};
use super::stage::{Extent, Play, perform};
use super::{fan_out, idle};
use crate::failure::Failure;
use crate::interrupt;
use crate::report::Report;

/// A load counts as offered from this share of its messages on.
const OFFERED_SHARE_MIN: f64 = 0.98;
/// A server keeps up when this share of the deliveries that were due within the window came within it.
const CAME_SHARE_MIN: f64 = 0.98;
/// Messages that may be on their way at the window's end, all the same: in a short window they are more than that share.
const ON_THEIR_WAY_MAX: f64 = 3.0;
/// How often a target that cannot be used any more is tried again, a rest apart.
const RETRY_COUNT_MAX: u32 = 3;
const GIB: f64 = 1_073_741_824.0;

/// What is raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Raise {
    /// Connections that join --rooms and stay
    Connections,
    /// Messages a second of each publisher
    Rate,
    /// Rooms of --members each
    Rooms,
    /// Members of each room
    Members,
    /// Publishers of each room
    Publishers,
    /// Bytes of each message
    Size,
}

/// What `capacity` is told.
#[derive(Debug, Clone, Args)]
#[group(id = "capacity")]
pub struct Arguments {
    /// What is raised; the rest stays as the other flags say
    #[arg(long, value_enum, help_heading = "Search")]
    pub raise: Raise,
    /// The first value tried
    #[arg(long, value_name = "A", help_heading = "Search")]
    pub from: f64,
    /// The last that may be tried
    #[arg(long, value_name = "B", help_heading = "Search")]
    pub to: f64,
    /// What must hold: p50, p90, p99, p99.9, max, loss, failed, cpu, client-cpu (busiest thread, %) or any figure; loss=0 and
    /// failed=0 go without saying
    #[arg(
        long,
        value_name = "A<X,B=Y,…",
        default_value = "loss=0,failed=0",
        help_heading = "Search"
    )]
    pub objective: String,
    /// How exact the answer is, as a share of it
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.02,
        help_heading = "Search"
    )]
    pub precision: f64,
    /// Trials that must fail before a value counts as broken
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Search")]
    pub tries: u32,
    /// Seconds between trials
    #[arg(long, value_name = "S", default_value_t = 1.0, help_heading = "Search")]
    pub rest: f64,
    /// With --raise connections: seconds to hold all of them
    #[arg(long, value_name = "S", default_value_t = 1.0, help_heading = "Search")]
    pub hold: f64,
    /// With --raise connections: messages to every room, whose latency the objective is about
    #[arg(long, value_name = "K", default_value_t = 1, help_heading = "Search")]
    pub messages: u32,
    #[command(flatten)]
    pub load: fan_out::Arguments,
}

/// One trial.
struct Trial {
    value: f64,
    report: Report,
    measured: Vec<Measured>,
    /// Messages that were published, as a share of those that should have been.
    offered_share: f64,
    /// Deliveries that came within the window, as a share of those that were due in it, if too few did.
    queued_at: Option<f64>,
    found: Found,
}

/// Why a search ended before its answer was complete.
enum Cut {
    /// The time limit of the whole.
    Time,
    /// Somebody interrupted it.
    Interrupted,
    /// The target cannot be used any more, or a generator has left.
    Gone(String),
}

impl Arguments {
    /// What every scenario is told.
    pub fn common(&self) -> &Common {
        &self.load.common
    }

    /// Searches; the report is the one of the highest value that held, with the answer in front.
    ///
    /// # Errors
    /// When the arguments are wrong, or the first trial cannot be carried out.
    pub fn run(&self) -> Result<Report, Failure> {
        let mut report = Report::new("capacity");
        let objectives = self.check()?;
        let begin = Instant::now();
        let limit = Duration::from_secs(u64::from(self.common().time_limit));
        let mut search = Search::new(self.range());
        let (mut best, mut failed, mut worst) = (None, None, None);
        let mut cut = None;
        let mut longest = Duration::ZERO;
        let mut trial_count = 0;
        while let Some(value) = search.next() {
            if trial_count > 0 {
                interrupt::sleep(Duration::from_secs_f64(self.rest));
            }
            let left = limit.saturating_sub(begin.elapsed());
            if left < longest {
                cut = Some(Cut::Time);
                break;
            }
            let trial_begin = Instant::now();
            let trial = match self.trial(value, left, &objectives, trial_count > 0) {
                Ok(trial) => trial,
                Err(failure) if trial_count == 0 => return Err(failure),
                Err(failure) => {
                    cut = Some(Cut::Gone(failure.to_string()));
                    break;
                }
            };
            if interrupt::is_wanted() {
                cut = Some(Cut::Interrupted); // what the trial found is of a part of it
                break;
            }
            longest = longest.max(trial_begin.elapsed());
            if begin.elapsed() >= limit {
                cut = Some(Cut::Time);
                break;
            }
            // Where nothing came through, figures are missing that others have.
            if trial_count == 0 && trial.report.get("delivered") > Some(0.0) {
                check_figures(&objectives, &trial.report)?;
            }
            trial_count += 1;
            search.learn(trial.found);
            let line = self.line(&trial, &objectives, search.is_repeat());
            if !self.common().quiet {
                eprintln!("{line}");
            }
            report.note(line);
            if trial.found == Found::Held {
                (best, failed) = (Some(trial), None);
                continue;
            }
            // Of the trials at a value that fails, the one tells most that the generator could not offer.
            if failed.is_none() || trial.found == Found::Unoffered {
                failed = Some(trial);
            }
            if search.answer().over.is_some_and(|over| over.value == value) {
                worst = failed.take();
            }
        }
        report.count("trials", trial_count);
        self.answer(&search, best, worst, cut, &objectives, &mut report);
        Ok(report)
    }

    fn range(&self) -> Range {
        Range {
            from: self.from,
            to: self.to,
            precision: self.precision,
            tries: self.tries,
            whole: self.raise != Raise::Rate,
        }
    }

    /// Checks all that can be checked before the first trial, the load at both ends of the range included.
    fn check(&self) -> Result<Vec<Objective>, Failure> {
        let wrong = |what: &str| Err(Failure::Usage(what.into()));
        let latency = match self.raise {
            Raise::Connections => "broadcast",
            _ => "latency",
        };
        let objectives = objective::parse(&self.objective, latency)?;
        if let Some(objective) = objectives.iter().find(|objective| objective.needs_server())
            && self.common().beside.server_pid.is_empty()
            && self.common().beside.metrics.is_empty()
        {
            return Err(Failure::Usage(format!(
                "--objective {}: it is about the server's side, which only --server-pid or --metrics tells",
                objective.text
            )));
        }
        if !(self.from > 0.0 && self.from <= self.to && self.to <= 1e9) {
            return wrong("--from must be above 0, --to at least as much and at most 1000000000");
        }
        if self.raise != Raise::Rate && (self.from.fract() != 0.0 || self.to.fract() != 0.0) {
            return wrong("--from and --to are whole numbers unless a rate is raised");
        }
        if !(0.001..=0.5).contains(&self.precision) || !(1..=10).contains(&self.tries) {
            return wrong("--precision is 0.001 to 0.5, --tries 1 to 10");
        }
        if !(0.0..=3_600.0).contains(&self.rest) {
            return wrong("--rest is 0 to 3600 seconds");
        }
        if self.raise == Raise::Connections && self.messages == 0 {
            return wrong("--messages must be at least 1: without a message, no loss is seen");
        }
        if self.load.closed && self.raise == Raise::Rate {
            return wrong(
                "--raise rate needs the open loop: with --closed, the server sets the rate",
            );
        }
        for value in [self.from, self.to] {
            let extent = self
                .extent(value)
                .map_err(|failure| Failure::Usage(format!("at {}: {failure}", self.show(value))))?;
            self.common()
                .check_part(extent)
                .map_err(|failure| Failure::Usage(format!("at {}: {failure}", self.show(value))))?;
        }
        Ok(objectives)
    }

    fn extent(&self, value: f64) -> Result<Extent, Failure> {
        match self.raise {
            Raise::Connections => self.idle(value).extent(),
            _ => self.fan_out(value)?.extent(),
        }
    }

    fn idle(&self, value: f64) -> idle::Arguments {
        idle::Arguments {
            common: self.common().clone(),
            connections: value as u32,
            steps: Vec::new(),
            rooms: self.load.rooms,
            hold: self.hold,
            settle: 0.0,
            messages: self.messages,
            size: self.load.traffic.size.clone(),
            until_closed: 0.0,
        }
    }

    fn fan_out(&self, value: f64) -> Result<fan_out::Arguments, Failure> {
        let mut load = self.load.clone();
        match self.raise {
            Raise::Connections => {}
            Raise::Rate => load.traffic.rate = value,
            Raise::Rooms => load.rooms = value as u32,
            Raise::Members => load.members = value as u32,
            Raise::Publishers => load.traffic.publishers = value as u32,
            Raise::Size => {
                load.traffic.size = format!("{value}").parse().map_err(Failure::Usage)?;
            }
        }
        Ok(load)
    }

    /// One run at `value`. With `again`, a target that refuses is given some rests to recover from the last trial.
    fn trial(
        &self,
        value: f64,
        left: Duration,
        objectives: &[Objective],
        again: bool,
    ) -> Result<Trial, Failure> {
        let time_limit = (left.as_secs() as u32).max(1);
        let members = self.extent(value)?.members;
        let mut attempt = 0;
        let report = loop {
            let result = match self.raise {
                Raise::Connections => {
                    let mut idle = self.idle(value);
                    idle.common.time_limit = time_limit;
                    perform(&idle)
                }
                _ => {
                    let mut load = self.fan_out(value)?;
                    load.common.time_limit = time_limit;
                    perform(&load)
                }
            };
            match result {
                Ok(report) => break report,
                Err(_) if again && attempt < RETRY_COUNT_MAX && !interrupt::is_wanted() => {
                    attempt += 1;
                    interrupt::sleep(Duration::from_secs_f64(self.rest.max(0.1)));
                }
                Err(failure) => return Err(failure),
            }
        };
        let measured: Vec<Measured> = objectives
            .iter()
            .map(|objective| objective.measure(&report, members))
            .collect();
        let offered_share = self.offered_share(value, &report)?;
        let queued_at = self.queued_at(value, &report)?;
        Ok(Trial {
            value,
            found: judge(
                queued_at.is_none() && measured.iter().all(|measured| measured.met),
                offered_share,
                occupied_share(&report, self.part(&broken(objectives, &measured))),
                refused(&report),
            ),
            measured,
            offered_share,
            queued_at,
            report,
        })
    }

    /// Which share of the deliveries due within the window came within it, if fewer than a server that keeps up has. What
    /// it gets faster than it can serve comes all the same, only later and later: nothing is lost, and yet it did not hold.
    fn queued_at(&self, value: f64, report: &Report) -> Result<Option<f64>, Failure> {
        let load = self.fan_out(value)?;
        let (Some(came), Some(due)) = (
            report.get("came_within_window"),
            report.get("due_within_window"),
        ) else {
            return Ok(None);
        };
        // In a closed loop, and of what a server publishes by itself, nothing is due before it can be.
        if load.closed || load.traffic.publishers == 0 {
            return Ok(None);
        }
        let late_max =
            (due * (1.0 - CAME_SHARE_MIN)).max(ON_THEIR_WAY_MAX * f64::from(load.members));
        Ok((due - came > late_max).then(|| came / due))
    }

    /// Messages published, as a share of those that should have been. Who was not let in could not publish: that is the
    /// server's doing, and counts as offered.
    fn offered_share(&self, value: f64, report: &Report) -> Result<f64, Failure> {
        let load = self.fan_out(value)?;
        let figure = |name| report.get(name).unwrap_or(0.0);
        let absent = figure("connections_failed") + figure("connections_lost");
        let nobody = absent >= f64::from(load.rooms) * f64::from(load.members);
        if self.raise == Raise::Connections || load.closed || load.traffic.publishers == 0 || nobody
        {
            return Ok(1.0);
        }
        let window = load.traffic.window;
        let each = (load.traffic.rate * (window.warm_up + window.duration)).floor();
        let intended = each * f64::from(load.traffic.publishers) * f64::from(load.rooms);
        let published = figure("published") + figure("unpublished"); // the latter by who was not connected
        Ok(if intended > 0.0 {
            published / intended
        } else {
            1.0
        })
    }

    /// Which part of a trial these broke in, as what its figures' names begin with: connecting, or the broadcast after it. A
    /// trial of `fanout` is measured as one.
    fn part(&self, broken: &[&Objective]) -> &'static str {
        let connecting = |objective: &&Objective| objective.is_of_connecting();
        if self.raise == Raise::Connections && !broken.iter().any(connecting) {
            "broadcast_"
        } else {
            ""
        }
    }

    /// Why a load was not offered.
    fn unoffered(&self, trial: &Trial, objectives: &[Objective]) -> String {
        if trial.offered_share < OFFERED_SHARE_MIN {
            return format!(
                "only {:.1}% of the messages could be published",
                trial.offered_share * 100.0
            );
        }
        let part = self.part(&broken(objectives, &trial.measured));
        format!(
            "a thread of the generator ran, or waited while others had its processor, for {:.0}% of the time",
            occupied_share(&trial.report, part) * 100.0
        )
    }

    /// A value for a person.
    fn show(&self, value: f64) -> String {
        let value = number(value);
        match self.raise {
            Raise::Connections => format!("{value} connections"),
            Raise::Rate => format!("{value} messages a second of each publisher"),
            Raise::Rooms => format!("{value} rooms"),
            Raise::Members => format!("{value} members of each room"),
            Raise::Publishers => format!("{value} publishers of each room"),
            Raise::Size => format!("{value} bytes a message"),
        }
    }

    /// What a trial found, on a line.
    fn line(&self, trial: &Trial, objectives: &[Objective], repeat: bool) -> String {
        let values: Vec<String> = objectives
            .iter()
            .zip(&trial.measured)
            .map(|(objective, measured)| {
                let value = measured
                    .value
                    .map_or("unknown".into(), |value| objective.show(value));
                let mark = if measured.met { "" } else { " (!)" };
                format!("{} {value}{mark}", objective.name)
            })
            .chain(trial.queued_at.map(queues))
            .collect();
        let verdict = match trial.found {
            Found::Held => "held".to_owned(),
            Found::Broke => match waited_share(
                &trial.report,
                self.part(&broken(objectives, &trial.measured)),
            ) {
                Some(waited) => {
                    let percent = waited * 100.0;
                    format!("broke, while others had the processors for {percent:.0}% of the time")
                }
                None => "broke".to_owned(),
            },
            Found::Unoffered => {
                format!("not offered: {}", self.unoffered(trial, objectives))
            }
        };
        let again = if repeat { "; once more" } else { "" };
        format!(
            "{}: {verdict}: {}{again}",
            self.show(trial.value),
            values.join(", ")
        )
    }

    /// Puts the answer into `report`, and behind it what the winning trial found.
    fn answer(
        &self,
        search: &Search,
        best: Option<Trial>,
        worst: Option<Trial>,
        cut: Option<Cut>,
        objectives: &[Objective],
        report: &mut Report,
    ) {
        let answer = search.answer();
        if let Some(held) = answer.held {
            report.figure("capacity", held);
        }
        if let (Some(over), Some(worst)) = (answer.over, &worst) {
            let at = self.show(over.value);
            if over.offered {
                report.figure("capacity_broke_at", over.value);
                let broken = broken(objectives, &worst.measured);
                let words: Vec<String> = broken
                    .iter()
                    .map(|broken| broken.text.clone())
                    .chain(worst.queued_at.map(queues))
                    .collect();
                report.note(format!("at {at} this broke: {}", words.join(", ")));
                let queued = worst.queued_at.is_some();
                let limiting =
                    limiting(&worst.report, &broken, queued, self.part(&broken)).join("; ");
                report.note(format!("limiting resource: {limiting}"));
            } else {
                report.figure("capacity_generator_limit_at", over.value);
                let remedy = match self.raise {
                    Raise::Connections => "a lower --connect-rate",
                    _ => "processors of their own",
                };
                report.note(format!(
                    "the generator was the limit at {at} ({}): the server holds at least what is reported; more --threads, \
                     {remedy}, or more generators go further",
                    self.unoffered(worst, objectives)
                ));
            }
        }
        match &cut {
            Some(Cut::Interrupted) => {
                report.cut_short("interrupted: the search was not at its end".into());
            }
            Some(Cut::Time) => report.note(
                "the time limit was met before the answer was as exact as it should be; see --time-limit",
            ),
            Some(Cut::Gone(why)) => report.fault(format!(
                "the search could not go on after {}: {why}",
                worst.as_ref().map_or("the last trial".into(), |worst| self.show(worst.value))
            )),
            None => {}
        }
        let Some(best) = best else {
            let what = match answer.over {
                Some(over) if !over.offered => "the generator could not even offer",
                Some(_) => "nothing held: the search begins with",
                None => "there is no answer: no trial came to its end at",
            };
            report.fault(format!("{what} {}", self.show(self.from)));
            if let Some(worst) = worst {
                report.absorb(worst.report);
            }
            return;
        };
        if answer.over.is_none() && cut.is_none() {
            report.note(format!(
                "nothing broke up to --to: the server holds at least {}",
                self.show(best.value)
            ));
        }
        self.ratios(&best, report);
        report.absorb(best.report);
    }

    /// The answer per core that the server used, and per GiB that it had resident.
    fn ratios(&self, best: &Trial, report: &mut Report) {
        if self.raise != Raise::Connections
            && !self.load.closed
            && let Ok(load) = self.fan_out(best.value)
        {
            let publishers = f64::from(load.traffic.publishers) * f64::from(load.rooms);
            report.figure("capacity_messages_per_s", load.traffic.rate * publishers);
        }
        let figure = |name| best.report.get(name).filter(|value: &f64| *value > 0.0);
        // Connections that do nothing use no core: what their handshakes used is another question.
        if let Some(cores) = figure("server_cores_used")
            && self.raise != Raise::Connections
        {
            report.figure("capacity_per_server_core", best.value / cores);
        }
        if let Some(bytes) = figure("server_rss_after_bytes") {
            report.figure("capacity_per_gib", best.value / (bytes / GIB));
            report.note(
                "capacity_per_gib is by the server's whole resident memory: what it holds empty, and what earlier trials left, count",
            );
        }
    }
}

/// What a trial found of the server.
///
/// A load that was offered and held is an answer however busy the generator was; one that broke while the generator had
/// no time left is none, unless the server refused connections: that is its own word.
fn judge(met: bool, offered_share: f64, occupied_share: f64, refused: bool) -> Found {
    if offered_share < OFFERED_SHARE_MIN {
        Found::Unoffered
    } else if met {
        Found::Held
    } else if occupied_share >= BUSY_SHARE && !refused {
        Found::Unoffered
    } else {
        Found::Broke
    }
}

/// How much of the time in a part of a trial one of the generator's threads ran, or could have run while others had its
/// processor.
fn occupied_share(report: &Report, part: &str) -> f64 {
    of_part(report, part, "client_occupied_share").unwrap_or(0.0)
}

/// Whether the server refused connections, closed them or told of deliveries that it dropped: that is its own word, however
/// busy the generator was.
fn refused(report: &Report) -> bool {
    let own_word = |name: &str| {
        name.starts_with("refused_with_")
            || name.starts_with("closed_by_server_")
            || name == "lost_as_told"
    };
    let mut figures = report.figures();
    figures.any(|(name, value)| own_word(name) && value > 0.0)
}

/// Those that were not met.
fn broken<'a>(objectives: &'a [Objective], measured: &[Measured]) -> Vec<&'a Objective> {
    objectives
        .iter()
        .zip(measured)
        .filter_map(|(objective, measured)| (!measured.met).then_some(objective))
        .collect()
}

/// Says that too little came within the window.
fn queues(came_share: f64) -> String {
    format!(
        "only {:.0}% of what was due came within the window: it queues",
        came_share * 100.0
    )
}

/// Refuses objectives about figures that the first trial does not have.
fn check_figures(objectives: &[Objective], report: &Report) -> Result<(), Failure> {
    for objective in objectives {
        if let Some(name) = objective.figure()
            && !objective.is_latency()
            && !objective.is_absent_when_zero()
            && report.get(name).is_none()
        {
            let names: Vec<&str> = report.figures().map(|(name, _)| name).collect();
            return Err(Failure::Usage(format!(
                "--objective {}: a trial has no figure {name}; it has {}",
                objective.text,
                names.join(", ")
            )));
        }
    }
    Ok(())
}

/// Whole numbers whole, others with two places.
fn number(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(line: &str) -> Arguments {
        let words = ["capacity", "--target", "ws://127.0.0.1:9"];
        Line::try_parse_from(words.into_iter().chain(line.split_whitespace()))
            .unwrap_or_else(|error| panic!("{error}"))
            .arguments
    }

    /// What is answered after these trials: the value's figures, and whether it held.
    fn answer(line: &str, trials: &[(&[(&str, f64)], Found)]) -> Report {
        let arguments = arguments(line);
        let objectives = objective::parse(&arguments.objective, "latency").unwrap();
        let mut search = Search::new(arguments.range());
        let (mut best, mut worst) = (None, None);
        for (figures, found) in trials {
            let value = search.next().expect("the search goes on");
            let mut report = Report::new("test");
            for (name, value) in *figures {
                report.figure(name, *value);
            }
            let trial = Trial {
                value,
                measured: objectives
                    .iter()
                    .map(|objective| objective.measure(&report, 0))
                    .collect(),
                offered_share: 1.0,
                queued_at: arguments.queued_at(value, &report).unwrap(),
                report,
                found: *found,
            };
            search.learn(*found);
            match found {
                Found::Held => best = Some(trial),
                _ => worst = Some(trial),
            }
        }
        let mut report = Report::new("capacity");
        arguments.answer(&search, best, worst, None, &objectives, &mut report);
        report
    }

    const LINE: &str = "--raise members --from 10 --to 20 --tries 1 --objective p99<5ms";

    #[test]
    fn an_answer_tells_what_broke_what_gave_out_and_what_a_core_and_a_gib_carry() {
        let held = [
            ("latency_p99_ms", 2.0),
            ("server_cores_used", 0.5),
            ("server_rss_after_bytes", GIB / 4.0),
        ];
        let broke = [
            ("latency_p99_ms", 60.0),
            ("server_busiest_thread_share", 0.99),
        ];
        let trials: [(&[(&str, f64)], Found); 2] = [(&held, Found::Held), (&broke, Found::Broke)];
        let report = answer(LINE, &trials);
        let figures = [
            "capacity",
            "capacity_broke_at",
            "capacity_messages_per_s",
            "capacity_per_server_core",
            "capacity_per_gib",
            "latency_p99_ms",
        ]
        .map(|name| report.get(name).unwrap());
        assert_eq!(figures, [10.0, 20.0, 20.0, 20.0, 40.0, 2.0]);
        let text = report.text();
        assert!(
            text.contains("this broke: p99<5ms") && text.contains("a server thread ran 99%"),
            "{text}"
        );
        assert_eq!(report.verdict(), Ok(()));
    }

    #[test]
    fn the_server_is_not_blamed_for_a_load_that_the_generator_could_not_offer() {
        let busy: [(&str, f64); 2] = [
            ("latency_p99_ms", 60.0),
            ("client_busiest_thread_share", 0.97),
        ];
        let report = answer(
            LINE,
            &[
                (&[("latency_p99_ms", 2.0)], Found::Held),
                (&busy, Found::Unoffered),
            ],
        );
        assert_eq!(report.get("capacity_broke_at"), None);
        assert_eq!(report.get("capacity_generator_limit_at"), Some(20.0));
        assert!(
            report
                .text()
                .contains("the generator was the limit at 20 members"),
            "{}",
            report.text()
        );
        assert!(!report.text().contains("limiting resource"));

        let report = answer(LINE, &[(&busy, Found::Unoffered)]);
        let Err(Failure::Broken(text)) = report.verdict() else {
            panic!("there is no answer")
        };
        assert!(text.contains("could not even offer 10 members"), "{text}");
    }

    #[test]
    fn a_server_keeps_up_when_all_but_a_fiftieth_of_what_was_due_came_within_the_window() {
        let queued_at = |line: &str, came: f64, due: f64| {
            let mut report = Report::new("test");
            report.figure("came_within_window", came);
            report.figure("due_within_window", due);
            arguments(line).queued_at(10.0, &report).unwrap()
        };
        let rate = "--raise rate --from 10 --to 20 --members 5";
        assert_eq!(queued_at(rate, 9_800.0, 10_000.0), None);
        assert_eq!(queued_at(rate, 9_799.0, 10_000.0), Some(0.9799));
        assert_eq!(queued_at(rate, 10_050.0, 10_000.0), None);
        assert_eq!(queued_at(rate, 5.0, 20.0), None, "three messages");
        assert_eq!(queued_at(rate, 4.0, 20.0), Some(0.2));
        let closed = format!("{} --closed", rate.replace("rate", "members"));
        assert_eq!(queued_at(&closed, 0.0, 10_000.0), None);
        let text = answer(
            LINE,
            &[(
                &[
                    ("latency_p99_ms", 2.0),
                    ("came_within_window", 250.0),
                    ("due_within_window", 1_000.0),
                ],
                Found::Broke,
            )],
        )
        .text();
        assert!(
            text.contains("only 25% of what was due came within the window: it queues"),
            "{text}"
        );
    }

    #[test]
    fn a_break_is_the_servers_only_when_the_generator_had_time_left() {
        assert_eq!(judge(true, 1.0, 0.5, false), Found::Held);
        let busy = judge(true, 1.0, 0.99, false);
        assert_eq!(busy, Found::Held, "all of it was offered");
        assert_eq!(judge(true, 0.97, 0.5, false), Found::Unoffered);
        assert_eq!(judge(false, 1.0, 0.5, false), Found::Broke);
        assert_eq!(judge(false, 1.0, 0.94, false), Found::Unoffered);
        assert_eq!(judge(false, 1.0, 0.94, true), Found::Broke);
        assert_eq!(judge(false, 0.97, 0.5, false), Found::Unoffered);
        let mut report = Report::new("test");
        report.figure("client_occupied_share", 0.95);
        assert_eq!(occupied_share(&report, "broadcast_"), 0.95);
        report.figure("broadcast_client_occupied_share", 0.2);
        assert_eq!(occupied_share(&report, "broadcast_"), 0.2);
        assert_eq!(occupied_share(&report, ""), 0.95);
        for name in ["refused_with_503", "closed_by_server_1013", "lost_as_told"] {
            let mut report = Report::new("test");
            report.count("lost_as_told", 0);
            assert!(!refused(&report));
            report.count(name, 3);
            assert!(refused(&report), "{name}");
        }
    }

    #[test]
    fn a_lost_connection_takes_away_only_what_it_should_have_published() {
        let offered = |figures: &[(&str, f64)]| {
            let mut report = Report::new("test");
            for (name, value) in figures {
                report.figure(name, *value);
            }
            let line = "--raise rate --from 100 --to 200 --members 5 --duration 9 --warm-up 1";
            arguments(line).offered_share(100.0, &report).unwrap()
        };
        assert_eq!(offered(&[("published", 500.0)]), 0.5);
        let lost = ("connections_lost", 1.0);
        assert_eq!(offered(&[("published", 500.0), lost]), 0.5);
        let unpublished = ("unpublished", 400.0);
        assert_eq!(offered(&[("published", 500.0), lost, unpublished]), 0.9);
        assert_eq!(
            offered(&[("connections_lost", 5.0)]),
            1.0,
            "nobody was left"
        );
    }

    #[test]
    fn a_broadcast_is_not_judged_by_how_busy_connecting_was() {
        let objectives =
            objective::parse("p99<5ms,failed=0,handshake_p99_ms<9", "broadcast").unwrap();
        let [p99, failed, handshake, ..] = objectives.as_slice() else {
            panic!("{objectives:?}")
        };
        let connections = arguments("--raise connections --from 10 --to 20");
        assert_eq!(connections.part(&[p99]), "broadcast_");
        assert_eq!(connections.part(&[failed]), "");
        assert_eq!(connections.part(&[p99, handshake]), "");
        assert_eq!(arguments(LINE).part(&[p99]), "");
    }
}
