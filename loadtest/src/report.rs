//! What a run found: named figures, printed for a person, written as JSON, compared with expectations.

use std::fmt::Write as _;
use std::path::Path;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::failure::Failure;

/// A latency histogram: nanoseconds, 1 µs to 10 minutes, three significant digits.
pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 600_000_000_000, 3).expect("the bounds are valid")
}

/// Named figures in the order of their making. A name ends in its unit.
#[derive(Debug, Default)]
pub struct Report {
    scenario: &'static str,
    figures: Vec<(String, f64)>,
    notes: Vec<String>,
    faults: Vec<String>,
}

impl Report {
    /// An empty report.
    pub fn new(scenario: &'static str) -> Self {
        Self {
            scenario,
            ..Self::default()
        }
    }

    /// Adds a figure.
    pub fn figure(&mut self, name: &str, value: f64) {
        self.figures.push((name.to_owned(), value));
    }

    /// Adds a count.
    pub fn count(&mut self, name: &str, value: u64) {
        self.figure(name, value as f64);
    }

    /// Adds the percentiles of a histogram of nanoseconds, in milliseconds, as `NAME_p50_ms` and so on.
    pub fn latency(&mut self, name: &str, histogram: &Histogram<u64>) {
        if histogram.is_empty() {
            return;
        }
        for (label, quantile) in [
            ("p50", 0.5),
            ("p90", 0.9),
            ("p99", 0.99),
            ("p99_9", 0.999),
            ("max", 1.0),
        ] {
            self.figure(
                &format!("{name}_{label}_ms"),
                histogram.value_at_quantile(quantile) as f64 / 1e6,
            );
        }
    }

    /// Adds a remark.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Adds something that must not be: the run ends with exit code 1.
    pub fn fault(&mut self, text: impl Into<String>) {
        self.faults.push(text.into());
    }

    /// A figure by name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.figures
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| *value)
    }

    /// Compares with expectations such as `loss=0`; each that is not met becomes a fault.
    ///
    /// # Errors
    /// When one is not readable, or names a figure that this run does not have.
    pub fn expect(&mut self, expectations: &[String]) -> Result<(), Failure> {
        for text in expectations {
            let expectation = Expectation::parse(text)?;
            let Some(value) = self.get(expectation.name) else {
                let names: Vec<_> = self.figures.iter().map(|(name, _)| name.as_str()).collect();
                return Err(Failure::Usage(format!(
                    "--expect {text}: this run has no figure of that name; it has {}",
                    names.join(", ")
                )));
            };
            if !expectation.is_met(value) {
                self.fault(format!("expected {text}, found {}", number(value)));
            }
        }
        Ok(())
    }

    /// The report for a person.
    pub fn text(&self) -> String {
        let width = self
            .figures
            .iter()
            .map(|(name, _)| name.len())
            .max()
            .unwrap_or(0);
        let mut text = String::new();
        for (name, value) in &self.figures {
            let _ = writeln!(text, "{name:width$}  {}", number(*value));
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        for fault in &self.faults {
            let _ = writeln!(text, "FAULT: {fault}");
        }
        text
    }

    /// Writes the report as JSON: `scenario`, `command`, `figures` (name to number), `notes`, `faults`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_json(&self, path: &Path) -> Result<(), Failure> {
        let figures: Map<String, Value> = self
            .figures
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        let document = json!({
            "scenario": self.scenario, "command": command, "figures": figures, "notes": self.notes, "faults": self.faults,
        });
        std::fs::write(path, format!("{document:#}\n"))
            .map_err(|error| Failure::Usage(format!("--json {}: {error}", path.display())))
    }

    /// The verdict.
    ///
    /// # Errors
    /// When there was a fault.
    pub fn verdict(&self) -> Result<(), Failure> {
        match self.faults.as_slice() {
            [] => Ok(()),
            faults => Err(Failure::Broken(faults.join("; "))),
        }
    }
}

/// Whole numbers whole, others with three places.
fn number(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}

struct Expectation<'a> {
    name: &'a str,
    operator: &'a str,
    bound: f64,
}

impl<'a> Expectation<'a> {
    fn parse(text: &'a str) -> Result<Self, Failure> {
        let wrong = || {
            Failure::Usage(format!(
                "--expect {text}: write NAME<VALUE, NAME<=VALUE, NAME=VALUE, NAME>=VALUE or NAME>VALUE"
            ))
        };
        let (start, operator) = ["<=", ">=", "<", ">", "="]
            .into_iter()
            .filter_map(|operator| Some((text.find(operator)?, operator)))
            .min_by_key(|(start, operator)| (*start, 2 - operator.len()))
            .ok_or_else(wrong)?;
        let bound = text[start + operator.len()..]
            .trim()
            .parse()
            .map_err(|_| wrong())?;
        Ok(Self {
            name: text[..start].trim(),
            operator,
            bound,
        })
    }

    fn is_met(&self, value: f64) -> bool {
        match self.operator {
            "<=" => value <= self.bound,
            ">=" => value >= self.bound,
            "<" => value < self.bound,
            ">" => value > self.bound,
            _ => (value - self.bound).abs() < f64::EPSILON,
        }
    }
}

/// Checks the form of expectations before a run is spent on them.
///
/// # Errors
/// The first that is not readable.
pub fn check_expectations(expectations: &[String]) -> Result<(), Failure> {
    expectations
        .iter()
        .try_for_each(|text| Expectation::parse(text).map(|_| ()))
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
                "latency_p99_ms > 4".into(),
            ])
            .unwrap();
        assert_eq!(report.verdict(), Ok(()));
        report.expect(&["latency_p99_ms<4.5".into()]).unwrap();
        assert!(matches!(report.verdict(), Err(Failure::Broken(_))));
        assert!(report.expect(&["nothing=1".into()]).is_err());
        for wrong in ["lost", "lost=", "lost=x", "=1x"] {
            assert!(check_expectations(&[wrong.into()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn percentiles_come_in_milliseconds() {
        let mut histogram = latency_histogram();
        for us in 1..=1000 {
            histogram.record(us * 1000).unwrap();
        }
        let mut report = Report::new("test");
        report.latency("echo", &histogram);
        let p99 = report.get("echo_p99_ms").unwrap();
        assert!((0.989..0.992).contains(&p99), "{p99}");
        assert!(report.text().contains("echo_max_ms"));
    }
}
