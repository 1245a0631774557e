//! The report as a table for a terminal, which scripts can read, too: a line begins with the figure's name and plain value.

use std::fmt::Write as _;

use super::figures::Unit;
use super::figures::{Section, plain};
use super::json::Document;

/// The report for a person.
///
/// Sections with a heading; in each line the figure's name, its value (two blanks before it), and the same in a unit that
/// suits. Then a line for each note (`note: …`) and each fault (`FAULT: …`).
pub fn text(document: &Document) -> String {
    let figures = &document.figures;
    let name_width = figures
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or(0);
    let value_width = figures
        .iter()
        .map(|(_, value)| plain(value).len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for section in Section::ALL {
        let mut lines = figures
            .iter()
            .filter(|(name, _)| Section::of(name) == section)
            .peekable();
        if lines.peek().is_none() {
            continue;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        let heading = format!("-- {} ", section.title());
        let _ = writeln!(text, "{heading:-<0$}", name_width + value_width + 14);
        for (name, value) in lines {
            let human = Unit::of(name).human(value);
            let line = format!(
                "{name:name_width$}  {:>value_width$}  {human:>10}",
                plain(value)
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    if !document.notes.is_empty() || !document.faults.is_empty() {
        text.push('\n');
    }
    for note in &document.notes {
        let _ = writeln!(text, "note: {note}");
    }
    for fault in &document.faults {
        let _ = writeln!(text, "FAULT: {fault}");
    }
    text
}

#[cfg(test)]
mod tests {
    use crate::report::Report;

    #[test]
    fn every_line_is_a_name_a_plain_value_and_words_for_it() {
        let mut report = Report::new("test");
        report.figure("server_cpu_us_per_delivery", 2.309_9);
        report.count("lost", 0);
        report.figure("latency_p99_ms", 12.345);
        report.count("upgraded", 20_000);
        report.note("the machine was shared");
        report.fault("expected lost=1, found 0");
        let text = report.text();
        let words = |name: &str| -> Vec<&str> {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().collect()
        };
        assert_eq!(
            words("latency_p99_ms"),
            ["latency_p99_ms", "12.345", "12.3", "ms"]
        );
        assert_eq!(words("lost"), ["lost", "0"]);
        assert_eq!(words("upgraded"), ["upgraded", "20000", "20", "k"]);
        let at = |part: &str| {
            text.find(part)
                .unwrap_or_else(|| panic!("{part} in\n{text}"))
        };
        assert!(at("-- connections -") < at("upgraded"));
        assert!(at("upgraded") < at("-- deliveries"));
        assert!(at("\nlost") < at("-- latency"));
        assert!(at("-- server") < at("server_cpu_us_per_delivery"));
        assert!(at("\nnote: the machine") < at("\nFAULT: expected"));
        assert!(
            !text.contains("-- client"),
            "an empty section has no heading"
        );
        let column = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            let value = line.split_whitespace().nth(1).unwrap();
            line.find(&format!(" {value}")).unwrap() + 1 + value.len()
        };
        assert_eq!(
            column("latency_p99_ms"),
            column("upgraded"),
            "values are aligned\n{text}"
        );
    }
}
