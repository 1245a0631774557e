//! Two sides by their reports: `throng-load compare A.json B.json`. Says what differs, by how much, and whether that is more
//! than chance.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;

use super::expect::Expectation;
use super::figures::{Section, Unit, less_is_better, plain};
use super::json::Document;
use super::noise::{Estimate, noise_beside_one};
use crate::failure::Failure;

/// What `compare` is told.
#[derive(Debug, Args)]
pub struct CompareArguments {
    /// Reports of the first side, as A.json or A1.json,A2.json
    #[arg(value_name = "A.json[,…]")]
    a: String,
    /// Reports of the second side
    #[arg(value_name = "B.json[,…]")]
    b: String,
    /// An expectation on the ratio B/A of a figure, as 'latency_p99_ms<=1.1'; exit code 1 when it is not met. Repeatable
    #[arg(long, value_name = "NAME<RATIO")]
    expect: Vec<String>,
    /// Compare different scenarios, too
    #[arg(long)]
    force: bool,
}

/// Compares the reports and prints what was found.
///
/// # Errors
/// - `Usage`: a file that cannot be read or is no report, sides of different scenarios without `--force`, an expectation that is
///   not readable or on a figure that not both sides have.
/// - `Broken`: an expectation was not met.
pub fn run(arguments: &CompareArguments) -> Result<(), Failure> {
    for text in &arguments.expect {
        Expectation::parse_ratio(text)?;
    }
    let is_one_each = ![&arguments.a, &arguments.b]
        .iter()
        .any(|paths| paths.contains(','));
    let read = |paths: &str| -> Result<Vec<Document>, Failure> {
        let read = |path| {
            let mut document = Document::read(&PathBuf::from(path))?;
            if !is_one_each {
                document.timeline.intervals.clear(); // large, and only asked of runs that stand alone
            }
            Ok(document)
        };
        paths.split(',').map(read).collect()
    };
    let comparison = Comparison::of(read(&arguments.a)?, read(&arguments.b)?, arguments.force)?;
    super::print(&comparison.text())?;
    comparison.expect(&arguments.expect)
}

/// What was found.
struct Comparison {
    a: Vec<Document>,
    b: Vec<Document>,
    rows: Vec<Row>,
    warnings: Vec<String>,
}

/// A figure of both sides.
#[derive(Debug, PartialEq)]
struct Row {
    name: String,
    /// The means over the runs of a side.
    a: f64,
    b: f64,
    verdict: Verdict,
}

/// What a difference means.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    /// There is none.
    Equal,
    /// It is no larger than chance makes it; what chance makes.
    Within(f64),
    /// It is larger than chance makes it; what chance makes.
    Beyond(f64),
    /// Nobody knows what chance makes of this figure.
    Unknown,
}

impl Row {
    /// B/A: 1 when both are 0, infinite when only A is.
    fn ratio(&self) -> f64 {
        if self.a == self.b {
            1.0
        } else {
            self.b / self.a
        }
    }

    fn words(&self) -> String {
        let share = |noise: f64| match self.a.abs() {
            0.0 => String::new(),
            size => format!(", ±{}", Unit::Share.human(noise / size)),
        };
        match self.verdict {
            Verdict::Equal => "equal".into(),
            Verdict::Within(noise) => format!("within the noise{}", share(noise)),
            Verdict::Beyond(noise) => {
                let judged = less_is_better(&self.name).map(|less| less == (self.b < self.a));
                let word = match judged {
                    Some(true) => "BETTER",
                    Some(false) => "WORSE",
                    None => "DIFFERENT",
                };
                format!("{word}{}", share(noise))
            }
            Verdict::Unknown => "one run each: noise unknown".into(),
        }
    }
}

impl Comparison {
    fn of(a: Vec<Document>, b: Vec<Document>, force: bool) -> Result<Self, Failure> {
        let scenarios: BTreeSet<&str> = a
            .iter()
            .chain(&b)
            .map(|run| run.scenario.as_str())
            .collect();
        if scenarios.len() > 1 && !force {
            return Err(Failure::Usage(format!(
                "these are reports of different scenarios ({}): their figures mean different things; --force compares them all the same",
                scenarios.into_iter().collect::<Vec<_>>().join(", ")
            )));
        }
        let rows = a[0]
            .figures
            .iter()
            .filter_map(|(name, _)| row(&a, &b, name))
            .collect();
        let warnings = warnings(&a, &b);
        Ok(Self {
            a,
            b,
            rows,
            warnings,
        })
    }

    /// # Errors
    /// The expectations that are not met, or not readable.
    fn expect(&self, expectations: &[String]) -> Result<(), Failure> {
        let mut broken = Vec::new();
        for text in expectations {
            let expectation = Expectation::parse_ratio(text)?;
            let row = self
                .rows
                .iter()
                .find(|row| row.name == expectation.name)
                .ok_or_else(|| {
                    Failure::Usage(format!(
                        "--expect {text}: not every report has a figure of that name"
                    ))
                })?;
            if !expectation.is_met(row.ratio()) {
                let ratio = plain(row.ratio());
                broken.push(format!(
                    "expected of B/A {text}, found {ratio} ({})",
                    row.words()
                ));
            }
        }
        match broken.as_slice() {
            [] => Ok(()),
            _ => Err(Failure::Broken(broken.join("; "))),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (side, runs) in [("A", &self.a), ("B", &self.b)] {
            for run in runs {
                let _ = writeln!(text, "{side}  {}  {}", run.began_at, run.command);
            }
        }
        let told = |name: &str, value: f64| {
            let human = Unit::of(name).human(value);
            if human.is_empty() {
                plain(value)
            } else {
                human
            }
        };
        let name_width = self
            .rows
            .iter()
            .map(|row| row.name.len())
            .max()
            .unwrap_or(0);
        for section in Section::ALL {
            let mut rows = self
                .rows
                .iter()
                .filter(|row| Section::of(&row.name) == section)
                .peekable();
            if rows.peek().is_none() {
                continue;
            }
            let heading = format!("-- {} ", section.title());
            let _ = writeln!(
                text,
                "\n{heading:-<name_width$}  {:>10}  {:>10}  {:>7}",
                "A", "B", "B/A"
            );
            for row in rows {
                let _ = writeln!(
                    text,
                    "{:name_width$}  {:>10}  {:>10}  {:>7}  {}",
                    row.name,
                    told(&row.name, row.a),
                    told(&row.name, row.b),
                    ratio_text(row.ratio()),
                    row.words()
                );
            }
        }
        text.push('\n');
        let _ = writeln!(text, "note: {}", self.provenance());
        for warning in &self.warnings {
            let _ = writeln!(text, "warning: {warning}");
        }
        text
    }

    /// Where the noise was taken from.
    fn provenance(&self) -> String {
        let mut text = match (self.a.len(), self.b.len()) {
            (1, 1) => "one run a side: noise is that of the seconds within each run; what differs from run to run is not in it. \
                       Give several runs a side (A1.json,A2.json,A3.json) for that"
                .to_owned(),
            (1, _) | (_, 1) => "noise is the spread between the runs of the side that has several; the other is taken to vary alike".into(),
            (a, b) => format!("noise is the spread between the runs of each side ({a} and {b})"),
        };
        let judged = self
            .rows
            .iter()
            .filter(|row| matches!(row.verdict, Verdict::Within(_) | Verdict::Beyond(_)))
            .count();
        if judged >= 20 {
            let _ = write!(
                text,
                ". Of {judged} figures judged, chance alone calls about {} different",
                judged.div_ceil(20)
            );
        }
        text
    }
}

/// A ratio: about 1 with three places, as most are told by them.
fn ratio_text(ratio: f64) -> String {
    match ratio.abs() {
        size if size.is_infinite() => "-".into(),
        size if (0.1..10.0).contains(&size) => format!("{ratio:.3}x"),
        _ => Unit::Ratio.human(ratio),
    }
}

/// A figure that all runs have.
fn row(a: &[Document], b: &[Document], name: &str) -> Option<Row> {
    let values = |runs: &[Document]| -> Option<Vec<f64>> {
        runs.iter().map(|run| run.figures.get(name)).collect()
    };
    let (of_a, of_b) = (values(a)?, values(b)?);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let noise = match (of_a.as_slice(), of_b.as_slice()) {
        ([_], [_]) => Estimate::of_seconds(&a[0], name)
            .zip(Estimate::of_seconds(&b[0], name))
            .map(|(a, b)| a.noise(&b)),
        ([_], several) | (several, [_]) => noise_beside_one(several),
        (a, b) => Estimate::of_runs(a)
            .zip(Estimate::of_runs(b))
            .map(|(a, b)| a.noise(&b)),
    };
    let (a, b) = (mean(&of_a), mean(&of_b));
    let verdict = match noise {
        _ if a == b => Verdict::Equal,
        None => Verdict::Unknown,
        Some(noise) if (a - b).abs() <= noise => Verdict::Within(noise),
        Some(noise) => Verdict::Beyond(noise),
    };
    Some(Row {
        name: name.to_owned(),
        a,
        b,
        verdict,
    })
}

/// What makes the sides hard to compare.
fn warnings(a: &[Document], b: &[Document]) -> Vec<String> {
    let mut warnings = Vec::new();
    let (words_a, words_b) = (words(&a[0].command), words(&b[0].command));
    let only = |mine: &[String], theirs: &[String]| {
        let alone: Vec<&str> = mine
            .iter()
            .filter(|word| !theirs.contains(word))
            .map(String::as_str)
            .collect();
        if alone.is_empty() {
            "nothing".to_owned()
        } else {
            alone.join(" ")
        }
    };
    if words_a != words_b {
        warnings.push(format!(
            "the command lines differ: A alone has {}; B alone has {}",
            only(&words_a, &words_b),
            only(&words_b, &words_a)
        ));
    }
    for (side, runs) in [("A", a), ("B", b)] {
        if runs
            .iter()
            .any(|run| words(&run.command) != words(&runs[0].command))
        {
            warnings.push(format!("the runs of {side} have different command lines"));
        }
        for run in runs {
            if let Some(first) = run.faults.first() {
                warnings.push(format!(
                    "a run of {side} had faults, the first of {}: {first}",
                    run.faults.len()
                ));
            }
        }
    }
    let hosts: Vec<_> = a.iter().chain(b).map(|run| &run.host).collect();
    if let Some(other) = hosts.iter().find(|host| **host != hosts[0]) {
        let describe = |host: &super::host::Host| {
            format!("{}, {} x {}", host.kernel, host.processors, host.processor)
        };
        warnings.push(format!(
            "the machines differ: {} and {}",
            describe(hosts[0]),
            describe(other)
        ));
    }
    let versions: BTreeSet<&str> = a.iter().chain(b).map(|run| run.version.as_str()).collect();
    if versions.len() > 1 {
        warnings.push(format!(
            "the generators differ: versions {}",
            versions.into_iter().collect::<Vec<_>>().join(" and ")
        ));
    }
    let names = |runs: &[Document]| -> BTreeSet<String> {
        runs.iter()
            .flat_map(|run| run.figures.iter().map(|(name, _)| name.to_owned()))
            .collect()
    };
    let everywhere = |name: &String| a.iter().chain(b).all(|run| run.figures.get(name).is_some());
    let lacking: Vec<String> = names(a)
        .union(&names(b))
        .filter(|name| !everywhere(name))
        .cloned()
        .collect();
    if !lacking.is_empty() {
        warnings.push(format!("not every report has {}", lacking.join(", ")));
    }
    warnings
}

/// The options of a command line, each with its value, without those that do not matter to a figure: where reports go, and
/// which process the server was.
fn words(command: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for word in command.split_whitespace().skip(1) {
        match found.last_mut() {
            Some(last)
                if last.starts_with("--")
                    && !last.contains([' ', '='])
                    && !word.starts_with("--") =>
            {
                last.push(' ');
                last.push_str(word);
            }
            _ => found.push(word.to_owned()),
        }
    }
    let aside = ["--json", "--html", "--hdr", "--server-pid", "--quiet"];
    found.retain(|word| !aside.contains(&word.split([' ', '=']).next().unwrap_or(word)));
    found
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::report::sample::sample;

    fn document(command: &str, figures: &[(&str, f64)]) -> Document {
        static SAMPLE: LazyLock<Document> = LazyLock::new(|| sample(30));
        let mut document = SAMPLE.clone();
        document.faults.clear();
        document.command = command.into();
        document.figures = Default::default();
        for (name, value) in figures {
            document.figures.set(name, *value);
        }
        document
    }

    fn runs(values: &[f64]) -> Vec<Document> {
        let run = |value: &f64| {
            document(
                "throng-load fanout",
                &[("latency_p99_ms", *value), ("lost", 0.0)],
            )
        };
        values.iter().map(run).collect()
    }

    fn verdict(a: &[f64], b: &[f64]) -> Verdict {
        Comparison::of(runs(a), runs(b), false).unwrap().rows[0].verdict
    }

    #[test]
    fn several_runs_are_judged_by_their_spread() {
        assert!(matches!(
            verdict(&[10.0, 10.5, 9.5], &[10.4, 10.9, 9.9]),
            Verdict::Within(_)
        ));
        assert!(matches!(
            verdict(&[10.0, 10.1, 9.9], &[12.0, 12.1, 11.9]),
            Verdict::Beyond(_)
        ));
        assert!(matches!(
            verdict(&[10.0, 10.1, 9.9], &[10.2]),
            Verdict::Within(_)
        ));
        assert!(matches!(
            verdict(&[11.0], &[10.0, 10.1, 9.9]),
            Verdict::Beyond(_)
        ));
        assert_eq!(verdict(&[10.0, 10.0], &[10.0, 10.0]), Verdict::Equal);
    }

    #[test]
    fn one_run_each_is_judged_by_its_seconds_where_there_are_any() {
        let figures = [
            ("deliveries_per_s", 98_500.0),
            ("latency_max_ms", 40.0),
            ("lost", 0.0),
        ];
        let a = document("throng-load fanout", &figures);
        let mut near = a.clone();
        near.figures.set("deliveries_per_s", 98_400.0);
        near.figures.set("latency_max_ms", 41.0);
        let comparison = Comparison::of(vec![a.clone()], vec![near], false).unwrap();
        let verdicts: Vec<_> = comparison.rows.iter().map(|row| row.verdict).collect();
        assert!(
            matches!(verdicts[0], Verdict::Within(noise) if noise > 100.0),
            "{verdicts:?}"
        );
        assert_eq!(verdicts[1..], [Verdict::Unknown, Verdict::Equal]);
        let text = comparison.text();
        assert!(
            text.contains("one run each: noise unknown")
                && text.contains("seconds within each run"),
            "{text}"
        );

        let mut far = a.clone();
        far.figures.set("deliveries_per_s", 50_000.0);
        let comparison = Comparison::of(vec![a], vec![far], false).unwrap();
        assert!(
            comparison
                .text()
                .lines()
                .any(|line| line.starts_with("deliveries_per_s") && line.contains("WORSE"))
        );
    }

    #[test]
    fn better_and_worse_depend_on_the_figure() {
        let words = |name: &str, b: f64| {
            let row = Row {
                name: name.into(),
                a: 10.0,
                b,
                verdict: Verdict::Beyond(0.1),
            };
            row.words()
        };
        assert_eq!(words("latency_p99_ms", 9.0), "BETTER, ±1 %");
        assert_eq!(words("latency_p99_ms", 11.0), "WORSE, ±1 %");
        assert_eq!(words("deliveries_per_s", 11.0), "BETTER, ±1 %");
        assert_eq!(words("published", 11.0), "DIFFERENT, ±1 %");
    }

    #[test]
    fn ratios_are_expected() {
        let comparison = Comparison::of(runs(&[10.0, 10.2]), runs(&[12.0, 12.2]), false).unwrap();
        let expect = |text: &str| comparison.expect(&[text.to_owned()]);
        assert_eq!(expect("latency_p99_ms<=1.2"), Ok(()));
        assert_eq!(expect("lost=1"), Ok(()), "none and none are equal");
        let Err(Failure::Broken(text)) = expect("latency_p99_ms<=110%") else {
            panic!("it is 1.2 times as much")
        };
        assert!(text.contains("found 1.198"), "{text}");
        assert!(matches!(expect("nothing<1"), Err(Failure::Usage(_))));
        let lost = Row {
            name: "lost".into(),
            a: 0.0,
            b: 3.0,
            verdict: Verdict::Unknown,
        };
        assert_eq!(lost.ratio(), f64::INFINITY);
    }

    #[test]
    fn scenarios_are_not_mixed_and_differences_in_the_making_are_told() {
        let a = document(
            "/bin/throng-load fanout --rate 20 --json a.json --server-pid 5",
            &[("lost", 0.0), ("alone", 1.0)],
        );
        let mut b = document(
            "throng-load fanout --rate 40 --server-pid 7 --json b.json",
            &[("lost", 0.0)],
        );
        assert_eq!(
            warnings(std::slice::from_ref(&a), std::slice::from_ref(&a)),
            [""; 0]
        );
        b.host.kernel = "Linux 9".into();
        b.version = "9".into();
        b.faults.push("3 lost".into());
        let told = warnings(std::slice::from_ref(&a), std::slice::from_ref(&b));
        assert_eq!(
            told[0],
            "the command lines differ: A alone has --rate 20; B alone has --rate 40"
        );
        assert!(
            told[1].contains("B had faults, the first of 1: 3 lost"),
            "{told:?}"
        );
        assert!(
            told[2].contains("machines differ") && told[2].contains("Linux 9"),
            "{told:?}"
        );
        assert!(told[3].contains("versions"), "{told:?}");
        assert_eq!(told[4], "not every report has alone");

        b.scenario = "echo".into();
        let refused = Comparison::of(vec![a.clone()], vec![b.clone()], false);
        assert!(
            matches!(refused.map(|_| ()), Err(Failure::Usage(text)) if text.contains("echo, fanout"))
        );
        assert!(Comparison::of(vec![a], vec![b], true).is_ok());
    }

    #[test]
    fn files_are_read_by_side_and_what_is_wrong_names_the_file() {
        let directory =
            std::env::temp_dir().join(format!("throng-load-compare-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = |name: &str, value: f64| {
            let path = directory.join(name);
            runs(&[value])[0].write(&path).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let arguments = |a: String, b: String, expect: &[&str]| CompareArguments {
            a,
            b,
            expect: expect.iter().map(|text| (*text).to_owned()).collect(),
            force: false,
        };
        let a = [file("a1.json", 10.0), file("a2.json", 10.2)].join(",");
        let b = file("b.json", 20.0);
        assert_eq!(
            run(&arguments(a.clone(), b.clone(), &["latency_p99_ms<2"])),
            Ok(())
        );
        let met = run(&arguments(a.clone(), b.clone(), &["latency_p99_ms<1.9"]));
        assert!(matches!(met, Err(Failure::Broken(_))), "{met:?}");
        let read = run(&arguments(a.clone(), b.clone(), &["latency_p99_ms"]));
        assert!(matches!(read, Err(Failure::Usage(_))), "{read:?}");
        let missing = run(&arguments(a, format!("{b},nothing.json"), &[]));
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(matches!(missing, Err(Failure::Usage(text)) if text.contains("nothing.json")));
    }
}
