//! Objectives: what must hold of a trial, such as `p99<50ms`, `loss=0` or `cpu<90%`.

use crate::failure::Failure;
use crate::report::{Report, Unit, is_absent_when_zero};

/// What may be written, for whoever wrote something else.
const GRAMMAR: &str = "write NAME<VALUE with <, <=, =, >= or >, separated by commas, as in p99<50ms,loss=0,cpu<90%; names are p50, p90, \
     p99, p99.9, max (latency: ns, us, ms, s), loss, failed, cpu, client-cpu (busiest thread, %), or any figure of the report \
     (server_rss_after_bytes<2GiB)";
/// Deliveries that were not as they should be.
const LOSS: [&str; 5] = ["lost", "duplicated", "reordered", "corrupted", "misrouted"];

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// Deliveries lost, duplicated, reordered, corrupted or misrouted.
    Loss,
    /// Connections that failed, were refused or were lost.
    Failed,
    /// A figure of the report.
    Figure(String),
}

/// One condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// As it was written; of those that go without saying, as it would be.
    pub text: String,
    /// What stands before the operator.
    pub name: String,
    source: Source,
    operator: &'static str,
    bound: f64,
}

/// What an objective found in a trial.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The value; none when the trial has no such figure.
    pub value: Option<f64>,
    /// Whether the objective was met; without a value it was not.
    pub met: bool,
}

/// Reads objectives separated by commas. `loss=0` and `failed=0` are added unless they are spoken of.
///
/// `latency` is what the scenario's latency figures begin with.
///
/// # Errors
/// What is not readable, and what may be written.
pub fn parse(text: &str, latency: &str) -> Result<Vec<Objective>, Failure> {
    let mut objectives = Vec::new();
    for part in text.split(',').map(str::trim) {
        objectives.push(Objective::parse(part, latency)?);
    }
    for (name, source) in [("loss", Source::Loss), ("failed", Source::Failed)] {
        if !objectives
            .iter()
            .any(|objective| objective.source == source)
        {
            objectives.push(Objective::parse(&format!("{name}=0"), latency)?);
        }
    }
    Ok(objectives)
}

impl Objective {
    fn parse(text: &str, latency: &str) -> Result<Self, Failure> {
        let wrong =
            |what: String| Failure::Usage(format!("--objective {text:?}: {what}; {GRAMMAR}"));
        let (at, operator) = ["<=", ">=", "<", ">", "="]
            .into_iter()
            .filter_map(|operator| Some((text.find(operator)?, operator)))
            .min_by_key(|(at, operator)| (*at, 2 - operator.len()))
            .ok_or_else(|| wrong("there is no <, <=, =, >= or > in it".into()))?;
        let (name, value) = (text[..at].trim(), text[at + operator.len()..].trim());
        let figure = |name: &str| Source::Figure(name.to_owned());
        let source = match name {
            "loss" => Source::Loss,
            "failed" => Source::Failed,
            "cpu" => figure("server_busiest_thread_share"),
            "client-cpu" => figure("client_busiest_thread_share"),
            "p50" | "p90" | "p99" | "p99.9" | "max" => {
                Source::Figure(format!("{latency}_{}_ms", name.replace('.', "_")))
            }
            _ if name.is_empty()
                || !name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') =>
            {
                return Err(wrong(format!("{name:?} is no name")));
            }
            _ => figure(name),
        };
        let unit = match &source {
            Source::Figure(figure) => Unit::of(figure),
            _ => Unit::Count,
        };
        let bound = match name {
            "cpu" | "client-cpu" => value
                .trim_end_matches('%')
                .trim_end()
                .parse()
                .ok()
                .filter(|percent: &f64| percent.is_finite())
                .map(|percent| percent / 100.0),
            _ => unit.parse(value),
        };
        let bound = bound.ok_or_else(|| {
            wrong(format!(
                "{value:?} is not a value of {name}, which is {}",
                unit.label()
            ))
        })?;
        Ok(Self {
            text: text.to_owned(),
            name: name.to_owned(),
            source,
            operator,
            bound,
        })
    }

    /// Whether only a look at the server's side tells it.
    pub fn needs_server(&self) -> bool {
        self.figure()
            .is_some_and(|name| name.starts_with("server_"))
    }

    /// The figure that it is about, if it is about one.
    pub fn figure(&self) -> Option<&str> {
        match &self.source {
            Source::Figure(name) => Some(name),
            _ => None,
        }
    }

    /// Whether it is about how long deliveries took.
    pub fn is_latency(&self) -> bool {
        matches!(self.name.as_str(), "p50" | "p90" | "p99" | "p99.9" | "max")
    }

    /// Whether it is about connections being made, and not about what comes to them.
    pub fn is_of_connecting(&self) -> bool {
        self.source == Source::Failed
            || self.figure().is_some_and(|name| {
                name.starts_with("handshake")
                    || name.starts_with("refused_with_")
                    || name.starts_with("server_busiest_thread")
            })
    }

    /// Whether it is about memory.
    pub fn is_memory(&self) -> bool {
        self.figure().is_some_and(|name| {
            name.contains("rss") || name.contains("pss") || name.contains("memory")
        })
    }

    /// Whether a report leaves it out when it is zero: what a server does with connections, by status and code.
    pub fn is_absent_when_zero(&self) -> bool {
        self.figure().is_some_and(is_absent_when_zero)
    }

    /// Holds it against a trial that should have had `members` connections.
    pub fn measure(&self, report: &Report, members: u32) -> Measured {
        let value = match &self.source {
            Source::Figure(_) if self.is_absent_when_zero() => {
                self.figure().map(|name| report.get(name).unwrap_or(0.0))
            }
            Source::Figure(name) => report.get(name),
            Source::Loss => LOSS.iter().map(|name| report.get(name)).sum(),
            Source::Failed => Some(failed(report, members)),
        };
        Measured {
            value,
            met: value.is_some_and(|value| self.is_met(value)),
        }
    }

    fn is_met(&self, value: f64) -> bool {
        match self.operator {
            "<=" => value <= self.bound,
            ">=" => value >= self.bound,
            "<" => value < self.bound,
            ">" => value > self.bound,
            _ => (value - self.bound).abs() <= 1e-9 * self.bound.abs().max(1e-3),
        }
    }

    /// A value of it for a person.
    pub fn show(&self, value: f64) -> String {
        let unit = self.figure().map_or(Unit::Count, Unit::of);
        let text = unit.human(value);
        if text.is_empty() {
            format!("{value}")
        } else {
            text
        }
    }
}

/// Connections that were not there, or not to the end: failed, refused, never answered, lost.
fn failed(report: &Report, members: u32) -> f64 {
    let figure = |name| report.get(name).unwrap_or(0.0);
    let absent = (f64::from(members) - figure("upgraded")).max(figure("connections_failed"));
    absent + figure("connections_lost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(figures: &[(&str, f64)]) -> Report {
        let mut report = Report::new("test");
        for (name, value) in figures {
            report.figure(name, *value);
        }
        report
    }

    #[test]
    fn objectives_are_read_in_the_units_they_are_written_in() {
        let text =
            "p99<50ms, p99.9 <= 0.2 s,cpu<90%,client-cpu<80,loss<5,server_rss_after_bytes<2GiB";
        let objectives = parse(text, "latency").unwrap();
        let found: Vec<(Option<&str>, f64)> = objectives
            .iter()
            .map(|objective| (objective.figure(), objective.bound))
            .collect();
        assert_eq!(
            found,
            [
                (Some("latency_p99_ms"), 50.0),
                (Some("latency_p99_9_ms"), 200.0),
                (Some("server_busiest_thread_share"), 0.9),
                (Some("client_busiest_thread_share"), 0.8),
                (None, 5.0),
                (Some("server_rss_after_bytes"), 2_147_483_648.0),
                (None, 0.0),
            ]
        );
        assert_eq!(objectives[6].text, "failed=0", "it goes without saying");
        let of_the_server = objectives
            .iter()
            .filter(|objective| objective.needs_server());
        assert_eq!(of_the_server.count(), 2);
    }

    #[test]
    fn what_cannot_be_read_is_answered_with_what_can() {
        for wrong in [
            "",
            "p99",
            "p99<",
            "p99<fast",
            "p99<5GiB",
            "p 99<5",
            "<5",
            "cpu<lots",
            "loss=0,,cpu<5",
            "p98.5<3ms",
        ] {
            let Err(Failure::Usage(text)) = parse(wrong, "latency") else {
                panic!("{wrong:?} was read")
            };
            assert!(
                text.contains("p99<50ms,loss=0") && text.contains("--objective"),
                "{text}"
            );
        }
    }

    #[test]
    fn loss_is_every_delivery_that_was_not_as_it_should_be() {
        let objectives = parse("loss<=3", "latency").unwrap();
        let mut figures = vec![
            ("lost", 1.0),
            ("duplicated", 1.0),
            ("reordered", 1.0),
            ("corrupted", 0.0),
        ];
        let measured = objectives[0].measure(&report(&figures), 0);
        assert_eq!(
            (measured.value, measured.met),
            (None, false),
            "misrouted is not known"
        );
        figures.push(("misrouted", 0.0));
        let measured = objectives[0].measure(&report(&figures), 0);
        assert_eq!((measured.value, measured.met), (Some(3.0), true));
        figures[4].1 = 1.0;
        assert!(!objectives[0].measure(&report(&figures), 0).met);
    }

    #[test]
    fn whoever_was_not_there_to_the_end_has_failed() {
        let objectives = parse("failed=0", "latency").unwrap();
        let failed = |figures: &[(&str, f64)]| objectives[0].measure(&report(figures), 100).value;
        assert_eq!(failed(&[("upgraded", 100.0)]), Some(0.0));
        assert_eq!(
            failed(&[("upgraded", 90.0), ("connections_failed", 4.0)]),
            Some(10.0)
        );
        assert_eq!(
            failed(&[("upgraded", 100.0), ("connections_lost", 2.0)]),
            Some(2.0)
        );
        assert_eq!(
            failed(&[("upgraded", 300.0), ("connections_failed", 1.0)]),
            Some(1.0)
        );
    }

    #[test]
    fn a_figure_that_a_trial_does_not_have_is_not_met() {
        let objectives = parse("p99<50ms", "latency").unwrap();
        assert!(!objectives[0].measure(&report(&[]), 0).met);
        let measured = objectives[0].measure(&report(&[("latency_p99_ms", 49.9)]), 0);
        assert!(measured.met);
        assert_eq!(objectives[0].show(49.9), "49.9 ms");
        assert_eq!(objectives[1].show(3.0), "3");
    }
}
