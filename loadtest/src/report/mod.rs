//! What a run found: named figures, histograms and a timeline; told to a person, written to files, compared.
//!
//! A report only keeps and tells: it measures nothing and decides nothing but whether expectations were met. All of it is one
//! `Document`, so that the table, the file and the page cannot disagree.

pub mod compare;
mod expect;
mod figures;
mod hdr;
mod host;
mod html;
mod json;
mod noise;
#[cfg(test)]
mod sample;
mod table;
mod timeline;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write, stdout};
use std::path::Path;
use std::time::{Instant, SystemTime};

use hdrhistogram::Histogram;

pub use expect::check_expectations;
pub use figures::Unit;
pub use timeline::{Interval, Percentiles, Phase, Point, ServerPoint, Timeline};

use crate::failure::Failure;
use expect::Expectation;
use figures::{Figures, plain};
use json::{Document, Latency};

/// The longest latency that a histogram tells apart, nanoseconds: ten minutes.
const LATENCY_MAX_NS: u64 = 600_000_000_000;

/// Intervals that a report keeps at most: a megabyte or two, in memory as in a file.
pub const INTERVAL_COUNT_MAX: usize = 600;

/// Points that a report keeps at most: two hours by the second, fewer seconds of longer runs.
pub const POINT_COUNT_MAX: usize = 7_200;

/// Whether a report leaves a figure out when it is zero: what became of connections, by status and code, and what could not be
/// published.
pub fn is_absent_when_zero(name: &str) -> bool {
    const COUNTS: [&str; 4] = [
        "refused_with_",
        "retried_after_",
        "closed_by_server_",
        "closed_with_",
    ];
    let is_code = |code: &str| {
        !code.is_empty() && code.len() <= 5 && code.bytes().all(|byte| byte.is_ascii_digit())
    };
    name == "unpublished"
        || name == "retried_after_failure"
        || COUNTS
            .iter()
            .any(|start| name.strip_prefix(start).is_some_and(is_code))
}

/// A latency histogram: nanoseconds, 1 µs to 10 minutes, three significant digits.
pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, LATENCY_MAX_NS, 3).expect("the bounds are valid")
}

/// Writes a report to standard output. A reader that goes away, as `head` does, has what it wanted.
///
/// # Errors
/// When it cannot be written.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::Usage(format!(
            "cannot write the report to standard output: {error}"
        ))),
        _ => Ok(()),
    }
}

/// What a run found. A figure's name ends in its unit.
#[derive(Debug)]
pub struct Report {
    document: Document,
    began_at: SystemTime,
    began: Instant,
}

impl Report {
    /// An empty report of a run that begins now.
    pub fn new(scenario: &str) -> Self {
        let began_at = SystemTime::now();
        Self {
            document: Document {
                schema: json::SCHEMA.into(),
                scenario: scenario.into(),
                command: host::command(),
                began_at: host::rfc3339(began_at),
                seconds: 0.0,
                version: env!("CARGO_PKG_VERSION").into(),
                host: host::Host::this(),
                figures: Figures::default(),
                histograms: BTreeMap::new(),
                timeline: Timeline::default(),
                notes: Vec::new(),
                faults: Vec::new(),
            },
            began_at,
            began: Instant::now(),
        }
    }

    /// Adds a figure, or replaces the one of that name. One that is not a number (nothing to divide by) becomes a note.
    pub fn figure(&mut self, name: &str, value: f64) {
        self.document.seconds = (self.began.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        if !self.document.figures.set(name, value) {
            self.note(format!(
                "{name} cannot be told: there is nothing to divide by"
            ));
        }
    }

    /// Adds a count.
    pub fn count(&mut self, name: &str, value: u64) {
        self.figure(name, value as f64);
    }

    /// Adds the percentiles of a histogram of nanoseconds, in milliseconds, as `NAME_p50_ms` and so on, and keeps the histogram
    /// for the files.
    pub fn latency(&mut self, name: &str, histogram: &Histogram<u64>) {
        if histogram.is_empty() {
            return;
        }
        for (label, quantile) in [
            ("p50", 0.5),
            ("p90", 0.9),
            ("p99", 0.99),
            ("p99_9", 0.999),
            ("p99_99", 0.9999),
            ("max", 1.0),
        ] {
            self.figure(
                &format!("{name}_{label}_ms"),
                histogram.value_at_quantile(quantile) as f64 / 1e6,
            );
        }
        self.figure(&format!("{name}_mean_ms"), histogram.mean() / 1e6);
        if histogram.max() >= LATENCY_MAX_NS {
            self.note(format!(
                "{name}: what took ten minutes or more counts as ten minutes"
            ));
        }
        self.document
            .histograms
            .insert(name.to_owned(), Latency(histogram.clone()));
    }

    /// Adds a remark.
    pub fn note(&mut self, text: impl Into<String>) {
        self.document.notes.push(text.into());
    }

    /// Adds something that must not be: the run ends with exit code 1.
    pub fn fault(&mut self, text: impl Into<String>) {
        self.document.faults.push(text.into());
    }

    /// Keeps what happened when; of intervals at most [`INTERVAL_COUNT_MAX`], joined within their phases.
    ///
    /// Adds that the run ended early, and why: the fault that explains others, so it comes first.
    pub fn cut_short(&mut self, why: String) {
        self.document.faults.insert(0, why);
    }

    /// A share of no time at all (not a number) counts as 0: JSON has no other word for it.
    pub fn timeline(&mut self, mut timeline: Timeline) {
        let finite = |share: &mut f64| {
            if !share.is_finite() {
                *share = 0.0;
            }
        };
        for point in &mut timeline.points {
            finite(&mut point.client_share);
            for server in &mut point.servers {
                finite(&mut server.user_share);
                finite(&mut server.system_share);
                finite(&mut server.busiest_thread_share);
            }
        }
        timeline.coarsen(INTERVAL_COUNT_MAX);
        timeline.coarsen_points(POINT_COUNT_MAX);
        self.document.timeline = timeline;
    }

    /// Takes over what a part of this run found: figures and histograms by their names, notes, and its timeline. What went
    /// wrong in it becomes a remark.
    pub fn absorb(&mut self, part: Self) {
        let later = part.began.saturating_duration_since(self.began);
        let later_ms = later.as_millis() as u64;
        let document = part.document;
        for (name, value) in document.figures.iter() {
            self.figure(name, value);
        }
        self.document.histograms.extend(document.histograms);
        let mut timeline = document.timeline;
        if !timeline.points.is_empty() {
            timeline.delay(later_ms);
            self.timeline(timeline);
        }
        let notes = document.notes.into_iter();
        self.document.notes.extend(notes.chain(document.faults));
    }

    /// The histogram behind the figures of a latency.
    #[cfg(test)]
    pub fn histogram(&self, name: &str) -> Option<&Histogram<u64>> {
        self.document.histograms.get(name).map(|found| &found.0)
    }

    /// All figures.
    pub fn figures(&self) -> impl Iterator<Item = (&str, f64)> {
        self.document.figures.iter()
    }

    /// A figure by name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.document.figures.get(name)
    }

    /// Compares with expectations such as `lost=0` or `latency_p99_ms<50ms`; each that is not met becomes a fault. A figure
    /// that is left out when it is zero counts as 0.
    ///
    /// # Errors
    /// When one is not readable, or names a figure that this run does not have; the others are compared all the same.
    pub fn expect(&mut self, expectations: &[String]) -> Result<(), Failure> {
        let mut unknown = Ok(());
        for text in expectations {
            let expectation = Expectation::parse(text)?;
            let zero = is_absent_when_zero(expectation.name).then_some(0.0);
            let Some(value) = self.get(expectation.name).or(zero) else {
                let names: Vec<_> = self.document.figures.iter().map(|(name, _)| name).collect();
                unknown = unknown.and(Err(Failure::Usage(format!(
                    "--expect {text}: this run has no figure of that name; it has {}",
                    names.join(", ")
                ))));
                continue;
            };
            if !expectation.is_met(value) {
                self.fault(format!("expected {text}, found {}", plain(value)));
            }
        }
        unknown
    }

    /// The end of a run whose expectations came to `expected`: what went wrong in the run comes before what was wrongly
    /// expected of it, for it may be why a figure is not there.
    ///
    /// # Errors
    /// When there was a fault, or `expected` is one.
    pub fn end(&self, expected: Result<(), Failure>) -> Result<(), Failure> {
        match (self.verdict(), expected) {
            (Err(Failure::Broken(faults)), Err(wrong)) => {
                Err(Failure::Broken(format!("{faults}; {wrong}")))
            }
            (verdict, expected) => verdict.and(expected),
        }
    }

    /// The report for a person: a table of the figures, then notes and faults.
    pub fn text(&self) -> String {
        table::text(&self.document)
    }

    /// Writes the report as JSON, schema `throng-load/1` (docs/LOAD-REPORT.md).
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_json(&self, path: &Path) -> Result<(), Failure> {
        self.document.write(path)
    }

    /// Writes the report as one page that opens from disk: verdict, plots, figures.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_html(&self, path: &Path) -> Result<(), Failure> {
        std::fs::write(path, html::page(&self.document))
            .map_err(|error| Failure::Usage(format!("--html {}: {error}", path.display())))
    }

    /// Writes the latency of each interval as an HDR histogram log, in nanoseconds.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_hdr(&self, path: &Path) -> Result<(), Failure> {
        File::create(path)
            .and_then(|file| hdr::write(&self.document.timeline.intervals, self.began_at, file))
            .map_err(|error| Failure::Usage(format!("--hdr {}: {error}", path.display())))
    }

    /// The verdict.
    ///
    /// # Errors
    /// When there was a fault.
    pub fn verdict(&self) -> Result<(), Failure> {
        match self.document.faults.as_slice() {
            [] => Ok(()),
            faults => Err(Failure::Broken(faults.join("; "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_are_met_or_become_faults() {
        let mut report = Report::new("test");
        report.count("lost", 0);
        report.figure("latency_p99_ms", 4.5);
        report
            .expect(&[
                "lost=0".into(),
                "latency_p99_ms<=4.5".into(),
                "latency_p99_ms > 4000us".into(),
            ])
            .unwrap();
        assert_eq!(report.verdict(), Ok(()));
        report.expect(&["latency_p99_ms<4.5ms".into()]).unwrap();
        let Err(Failure::Broken(text)) = report.verdict() else {
            panic!("4.5 is not below 4.5")
        };
        assert!(text.contains("found 4.500"), "{text}");
        assert!(report.expect(&["nothing=1".into()]).is_err());
    }

    #[test]
    fn a_figure_that_is_left_out_when_zero_is_expected_as_zero() {
        let mut report = Report::new("test");
        for name in [
            "unpublished",
            "refused_with_503",
            "closed_by_server_1006",
            "closed_with_1012",
            "retried_after_failure",
            "retried_after_429",
        ] {
            assert_eq!(report.expect(&[format!("{name}=0")]), Ok(()), "{name}");
        }
        assert_eq!(report.verdict(), Ok(()));
        assert_eq!(report.expect(&["unpublished>1".into()]), Ok(()));
        assert!(report.verdict().is_err(), "0 is not above 1");
        for wrong in ["refused_with_=0", "refused_with_anger=0", "unpublishe=0"] {
            let expected = report.expect(&[wrong.into()]);
            assert!(matches!(expected, Err(Failure::Usage(_))), "{wrong}");
        }
    }

    #[test]
    fn a_fault_of_the_run_comes_before_a_figure_that_it_does_not_have() {
        let mut report = Report::new("test");
        report.count("lost", 1);
        let expected = report.expect(&["latency_p99_ms<5".into(), "lost=0".into()]);
        assert!(matches!(expected, Err(Failure::Usage(_))));
        let Err(Failure::Broken(text)) = report.end(expected.clone()) else {
            panic!("one was lost")
        };
        assert!(
            text.contains("expected lost=0") && text.contains("no figure"),
            "{text}"
        );
        assert_eq!(Report::new("test").end(expected.clone()), expected);
    }

    #[test]
    fn percentiles_come_in_milliseconds_and_the_histogram_is_kept() {
        let mut histogram = latency_histogram();
        for us in 1..=1000 {
            histogram.record(us * 1000).unwrap();
        }
        let mut report = Report::new("test");
        report.latency("echo", &histogram);
        report.latency("nothing", &latency_histogram());
        let p99 = report.get("echo_p99_ms").unwrap();
        assert!((0.989..0.992).contains(&p99), "{p99}");
        let mean = report.get("echo_mean_ms").unwrap();
        assert!((0.500..0.502).contains(&mean), "{mean}");
        assert!(report.text().contains("echo_p99_99_ms"));
        assert_eq!(report.document.histograms["echo"].0, histogram);
        assert!(!report.document.histograms.contains_key("nothing"));
        assert_eq!(report.document.notes, [""; 0]);

        histogram.saturating_record(u64::MAX);
        report.latency("echo", &histogram);
        assert!(report.document.notes[0].contains("ten minutes"));
    }

    #[test]
    fn what_has_no_value_is_said_and_not_written() {
        let mut report = Report::new("test");
        report.figure("p99_ratio", f64::NAN);
        assert_eq!(report.get("p99_ratio"), None);
        assert!(report.document.notes[0].contains("p99_ratio"));
    }

    #[test]
    fn a_timeline_holds_only_what_json_can_say() {
        let mut report = Report::new("test");
        let server = ServerPoint {
            user_share: f64::NAN,
            system_share: 0.5,
            busiest_thread_share: f64::INFINITY,
            ..ServerPoint::default()
        };
        report.timeline(Timeline {
            points: vec![Point {
                client_share: f64::NAN,
                servers: vec![server],
                ..Point::default()
            }],
            ..Timeline::default()
        });
        let text = serde_json::to_string(&report.document).unwrap();
        let read: Document = serde_json::from_str(&text).unwrap();
        assert_eq!(read, report.document);
        let server = &read.timeline.points[0].servers[0];
        assert_eq!((server.user_share, server.system_share), (0.0, 0.5));
    }

    #[test]
    fn a_log_that_cannot_be_written_is_said() {
        let report = Report::new("test");
        let error = report.write_hdr(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(error.to_string().contains("--hdr /nowhere"), "{error}");
    }
}
