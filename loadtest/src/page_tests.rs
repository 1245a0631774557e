//! Whether the command lines that the pages, the help and the example files show are ones that this program takes.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;

use super::{Command, CommandLine, EXAMPLES};

/// Where command lines of this program stand.
const PAGES: [&str; 5] = [
    "README.md",
    "loadtest/README.md",
    "docs/CAPACITY.md",
    "docs/LOAD-REPORT.md",
    "docs/LOAD-CLUSTER.md",
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The words of a shell's command, up to a comment, a pipe or the command's end.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    for character in line.chars() {
        match character {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            '#' if !quoted && word.is_none() => break,
            '&' | ';' | '|' | '<' | '>' if !quoted => break,
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

/// The arguments of each command line in `text`. A heading is none, nor is one that leaves something out (`…`).
fn command_lines(text: &str) -> Vec<Vec<String>> {
    let text = text.replace("\\\n", " ");
    let mut found = Vec::new();
    for line in text.lines().filter(|line| !line.contains('…')) {
        let line = line.trim_start_matches(['#', ' ']);
        let line = line.split_once("$ ").map_or(line, |(_prompt, rest)| rest);
        let words = words(line);
        if let [program, arguments @ ..] = &words[..]
            && program.rsplit('/').next() == Some("throng-load")
            && !arguments.is_empty()
        {
            found.push(arguments.iter().map(|word| filled_in(word)).collect());
        }
    }
    found
}

/// A word with something in the place of what a reader has to fill in, and a file of the repository by its whole path.
fn filled_in(word: &str) -> String {
    let file = repository().join(word);
    if file.is_file() {
        return file.display().to_string();
    }
    word.replace("$PID", "1")
        .replace("$!", "1")
        .replace(":PORT", ":8080")
}

/// What is wrong with a command line; `None`: nothing.
fn mistake(arguments: &[String]) -> Option<String> {
    let line = std::iter::once("throng-load").chain(arguments.iter().map(String::as_str));
    match CommandLine::try_parse_from(line) {
        Err(error) if error.exit_code() != 0 => Some(error.to_string()),
        Ok(CommandLine {
            command: Some(Command::Run(file)),
            ..
        }) => file.task().err().map(|failure| failure.to_string()),
        _ => None,
    }
}

#[test]
fn every_command_line_that_is_shown_is_one_that_it_takes() {
    let mut shown = vec![("--help".to_owned(), EXAMPLES.to_owned())];
    let examples = fs::read_dir(repository().join("loadtest/examples")).unwrap();
    let examples = examples.map(|entry| entry.unwrap().path());
    let pages = PAGES.map(|page| repository().join(page));
    for path in pages.into_iter().chain(examples) {
        let text = fs::read_to_string(&path).unwrap();
        shown.push((path.display().to_string(), text));
    }
    let mut mistakes = Vec::new();
    for (place, text) in &shown {
        let lines = command_lines(text);
        assert!(!lines.is_empty(), "{place} shows no command line");
        for arguments in lines {
            if let Some(mistake) = mistake(&arguments) {
                mistakes.push(format!("{place}: {}: {mistake}", arguments.join(" ")));
            }
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[test]
fn a_command_line_is_found_in_a_page_and_its_mistake_too() {
    let page = "text\n    throng-load fanout --target ws://127.0.0.1:1 --expect 'lost<1' \\\n        --rooms 3 &   # why\n\
                host B$ target/release/throng-load --join 127.0.0.1:1; kill %1\n    throng-load idle … --json a\n\
                cargo build -p throng-load\n    throng-load fanout --join 127.0.0.1:1\n";
    let lines = command_lines(page);
    assert_eq!(
        lines,
        [
            "fanout --target ws://127.0.0.1:1 --expect lost<1 --rooms 3",
            "--join 127.0.0.1:1",
            "fanout --join 127.0.0.1:1",
        ]
        .map(|line| line.split(' ').map(String::from).collect::<Vec<_>>())
    );
    assert_eq!(mistake(&lines[0]), None);
    assert_eq!(mistake(&lines[1]), None);
    assert!(mistake(&lines[2]).is_some_and(|said| said.contains("--join")));
}
