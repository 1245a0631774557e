//! What a trial that broke shows of the resource that gave out. Only what its figures say; where they say nothing, that.

use super::objective::Objective;
use crate::report::Report;

/// From this share of its time on, a thread has none left.
pub const BUSY_SHARE: f64 = 0.93;
/// From this share of the time spent waiting for a processor on, the processors were too few for both sides.
const WAIT_SHARE: f64 = 0.05;

/// A figure of a part of the trial, or of the trial where the part has none. A part is what figures' names begin with.
pub fn of_part(report: &Report, part: &str, name: &str) -> Option<f64> {
    report
        .get(&format!("{part}{name}"))
        .or_else(|| report.get(name))
}

/// The share of a trial's `part` in which server or generator could have run while others had the processors, if that is much.
pub fn waited_share(report: &Report, part: &str) -> Option<f64> {
    let share = |name| of_part(report, part, name).unwrap_or(0.0);
    let waited = share("client_waited_share").max(share("server_waited_share"));
    (waited >= WAIT_SHARE).then_some(waited)
}

/// What gave out in a trial in which `broken` were not met, in words, the most telling first. With `queued`, less came within the
/// window than was due. `part` is the part of the trial in which it broke.
pub fn limiting(report: &Report, broken: &[&Objective], queued: bool, part: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (name, value) in report.figures() {
        if let Some(status) = name.strip_prefix("refused_with_") {
            found.push(match status {
                "0" => format!("the server refused {value} connections without HTTP"),
                _ => format!("the server refused {value} connections with {status}"),
            });
        }
        if let Some(code) = name.strip_prefix("closed_by_server_") {
            found.push(match code {
                "1006" => format!("the server cut {value} connections off without a close frame"),
                _ => format!("the server closed {value} connections with {code}"),
            });
        }
    }
    let server = of_part(report, part, "server_busiest_thread_share");
    if let Some(busy) = server.filter(|busy| *busy >= BUSY_SHARE) {
        found.push(format!(
            "processor: a server thread ran {:.0}% of the time",
            busy * 100.0
        ));
    } else if let Some(waited) = waited_share(report, part) {
        found.push(format!(
            "the machine's processors: server or generator could have run for {:.0}% of the time while others had them; on a \
             machine of its own the server may hold more, and more --tries see more of it here",
            waited * 100.0
        ));
    }
    if broken.iter().any(|objective| objective.is_memory()) {
        found.push(
            "memory, as the objective bounds it; a server that keeps what larger trials took shows it in smaller ones, too: \
             restart it, and search again up to what broke first"
                .into(),
        );
    }
    let told = report.get("lost_as_told").unwrap_or(0.0);
    if told > 0.0 {
        found.push(format!(
            "room in its queues: the server told of {told} deliveries that it dropped"
        ));
    }
    if found.is_empty() && (queued || broken.iter().any(|objective| objective.is_latency())) {
        found.push(match server {
            Some(busy) => format!(
                "queueing: no thread of the server ran more than {:.0}% of the time, nothing was refused, and yet messages waited",
                busy * 100.0
            ),
            None => "unknown: messages waited, and without --server-pid or --metrics nothing is known of the server's processors".into(),
        });
    }
    if found.is_empty() {
        found.push(match server {
            Some(busy) => format!(
                "none that the figures show: the server's busiest thread ran {:.0}% of the time",
                busy * 100.0
            ),
            None => {
                "unknown: without --server-pid or --metrics nothing is known of the server's side"
                    .into()
            }
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::objective::parse;
    use super::*;

    fn first(figures: &[(&str, f64)], objective: &str) -> String {
        let mut report = Report::new("test");
        for (name, value) in figures {
            report.figure(name, *value);
        }
        let objectives = parse(objective, "latency").unwrap();
        limiting(&report, &[&objectives[0]], false, "").remove(0)
    }

    #[test]
    fn what_the_server_says_itself_comes_before_what_is_measured_of_it() {
        let busy = ("server_busiest_thread_share", 0.97);
        let refused = ("refused_with_503", 12.0);
        assert!(first(&[busy, refused], "failed=0").contains("refused 12 connections with 503"));
        assert!(first(&[busy], "p99<5ms").contains("a server thread ran 97%"));
        assert!(first(&[("closed_by_server_1006", 3.0)], "failed=0").contains("cut 3"));
    }

    #[test]
    fn latency_without_a_busy_thread_is_queueing_and_without_figures_unknown() {
        let idle = ("server_busiest_thread_share", 0.4);
        assert!(
            first(&[idle], "p99<5ms")
                .contains("queueing: no thread of the server ran more than 40%")
        );
        assert!(
            first(&[idle, ("client_waited_share", 0.2)], "p99<5ms")
                .contains("machine's processors")
        );
        assert!(limiting(&Report::new("test"), &[], true, "")[0].contains("messages waited"));
        assert!(first(&[], "p99<5ms").contains("unknown"));
        assert!(first(&[], "loss=0").contains("unknown"));
        assert!(first(&[idle, ("lost_as_told", 7.0)], "loss=0").contains("told of 7"));
        assert!(first(&[idle], "server_rss_after_bytes<1GiB").contains("memory"));
    }
}
