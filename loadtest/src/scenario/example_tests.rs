//! Whether the example files run: each as it is, but for smaller numbers and another address.

use std::path::Path;

use clap::Subcommand;

use super::*;
use crate::file;
use crate::floor::planted::running::Running;

/// Example, what is planted in the server, and what is smaller than in the file.
const EXAMPLES: [(&str, &str, &str); 9] = [
    ("idle", "", "--steps 20,40 --hold 0.1 --settle 0.1"),
    ("echo", "", "--connections 10 --duration 0.3"),
    (
        "fanout",
        "",
        "--rooms 2 --members 5 --duration 0.5 --warm-up 0.1 --expect lost=0",
    ),
    ("churn", "", "--connections 200 --warm-up 20"),
    (
        "storm",
        "",
        "--connections 40 --rooms 4 --drops 1 --hold 0.1",
    ),
    (
        "slow",
        "",
        "--readers 5 --stalled 2 --crawling 2 --size 512 --duration 0.5 --warm-up 0.1",
    ),
    (
        "drain",
        "--close-after 300ms:1001 --close-over 100ms",
        "--rooms 2 --members 10 --duration 1.5 --warm-up 0.1",
    ),
    (
        "capacity",
        "",
        "--to 10 --members 5 --duration 0.3 --warm-up 0 --objective loss=0",
    ),
    (
        "soak",
        "",
        "--duration 4 --window 1 --settle 2 --rooms 2 --members 5 --churning 5 --churn-every 0.5 --stalled 1 --crawling 1 \
         --latency-slack 1s",
    ),
];

fn directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples"))
}

#[test]
fn every_scenario_has_an_example_and_every_example_is_tried() {
    let mut tried = EXAMPLES.map(|(name, ..)| name.to_owned());
    tried.sort();
    let mut files: Vec<String> = std::fs::read_dir(directory())
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            path.file_stem().unwrap().to_str().unwrap().to_owned()
        })
        .collect();
    files.sort();
    assert_eq!(files, tried);
    let command = Task::augment_subcommands(clap::Command::new("throng-load"));
    let mut scenarios: Vec<&str> = command
        .get_subcommands()
        .map(|found| found.get_name())
        .collect();
    scenarios.sort_unstable();
    assert_eq!(scenarios, tried);
}

#[test]
fn every_example_runs() {
    for (name, plants, smaller) in EXAMPLES {
        let server = Running::start(plants);
        let target = format!("--target=ws://{}", server.address);
        let arguments = file::Arguments {
            file: directory().join(format!("{name}.toml")),
            flags: smaller
                .split_whitespace()
                .chain([target.as_str()])
                .map(Into::into)
                .collect(),
        };
        let task = arguments
            .task()
            .unwrap_or_else(|failure| panic!("{failure}"));
        let mut report = measure(&task).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        report.expect(&task.common().expect).unwrap();
        assert_eq!(report.verdict(), Ok(()), "{name}\n{}", report.text());
    }
}
