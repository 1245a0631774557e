//! House rules that no compiler keeps: who may name what, and how a source file looks.
//!
//! Comments and texts are blanked before a rule looks at a file, so that a rule judges code and nothing else. Every rule
//! is a function from a file to its findings, and has a test that shows it finding something.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const LINE_COUNT_MAX: usize = 800;

/// A source file: its path below the repository, its text, and its code with comments and texts blanked.
struct Source {
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
            code: blank(text),
        }
    }

    /// The room it belongs to: `shard` for `src/shard/room.rs` and `time` for `src/time.rs`.
    fn room(&self) -> &str {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        below.split(['/', '.']).next().unwrap_or_default()
    }

    /// The source without its tests, which stand at its end.
    fn shipped(&self) -> Self {
        Self::new(
            &self.path,
            self.text.split("#[cfg(test)]").next().unwrap_or_default(),
        )
    }

    /// Lines of code in which one of `words` stands as a word of its own.
    fn naming(&self, words: &[&str], why: &str) -> Vec<String> {
        let mut findings = Vec::new();
        for (index, line) in self.code.lines().enumerate() {
            for word in words.iter().filter(|word| has_word(line, word)) {
                findings.push(format!("{}:{}: {word}: {why}", self.path, index + 1));
            }
        }
        findings
    }
}

/// Whether `word` stands in `line` with no name character on either side; spaces around `::` do not matter.
fn has_word(line: &str, word: &str) -> bool {
    let is_name = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        let starts_open = !word.starts_with(is_name) || !before.is_some_and(is_name);
        let ends_open = !word.ends_with(is_name) || !after.is_some_and(is_name);
        starts_open && ends_open
    })
}

/// The text with comments, string literals and character literals blanked; lines stay where they are.
fn blank(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < characters.len() {
        let end = token_end(&characters, at);
        match end {
            Some(end) => {
                code.extend(
                    characters[at..end]
                        .iter()
                        .map(|&character| if character == '\n' { '\n' } else { ' ' }),
                );
                at = end;
            }
            None => {
                code.push(characters[at]);
                at += 1;
            }
        }
    }
    code
}

/// Where the comment, text or character that begins at `at` ends; `None` when none begins there.
fn token_end(characters: &[char], at: usize) -> Option<usize> {
    let rest = &characters[at..];
    let begins = |prefix: &str| {
        prefix
            .chars()
            .enumerate()
            .all(|(index, wanted)| rest.get(index) == Some(&wanted))
    };
    let in_name = at > 0 && (characters[at - 1].is_alphanumeric() || characters[at - 1] == '_');
    if begins("//") {
        return Some(
            at + rest
                .iter()
                .position(|&character| character == '\n')
                .unwrap_or(rest.len()),
        );
    }
    if begins("/*") {
        return Some(block_comment_end(characters, at));
    }
    if rest[0] == '"' {
        return Some(text_end(characters, at + 1));
    }
    if !in_name && (begins("r\"") || begins("r#") || begins("br\"") || begins("br#")) {
        let hashes_at = at + if rest[0] == 'b' { 2 } else { 1 };
        let hash_count = characters[hashes_at..]
            .iter()
            .take_while(|&&character| character == '#')
            .count();
        if characters.get(hashes_at + hash_count) == Some(&'"') {
            return Some(raw_text_end(
                characters,
                hashes_at + hash_count + 1,
                hash_count,
            ));
        }
        return None;
    }
    if rest[0] == '\'' {
        // A character literal, and not a lifetime: it is closed after one character or after an escape.
        if rest.get(1) == Some(&'\\') {
            let close = rest.iter().skip(3).position(|&character| character == '\'');
            return close.map(|offset| at + 3 + offset + 1);
        }
        return (rest.get(2) == Some(&'\'')).then_some(at + 3);
    }
    None
}

fn block_comment_end(characters: &[char], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at + 1 < characters.len() {
        match (characters[at], characters[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    characters.len()
}

fn text_end(characters: &[char], start: usize) -> usize {
    let mut at = start;
    while at < characters.len() {
        match characters[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    characters.len()
}

fn raw_text_end(characters: &[char], start: usize, hash_count: usize) -> usize {
    let closes = |at: usize| {
        characters[at] == '"'
            && characters[at + 1..]
                .iter()
                .take(hash_count)
                .filter(|&&character| character == '#')
                .count()
                == hash_count
    };
    (start..characters.len())
        .find(|&at| closes(at))
        .map_or(characters.len(), |at| at + 1 + hash_count)
}

// --- the rules ------------------------------------------------------------------------------------------------------

/// Only `runtime` touches the world; the rooms get bytes, time and seeds handed in.
fn only_runtime_touches_the_world(source: &Source) -> Vec<String> {
    if source.room() == "runtime" {
        return Vec::new();
    }
    let mut findings = source.naming(
        &[
            "glommio",
            "io_uring",
            "libc",
            "rustix",
            "socket2",
            "signal_hook",
            "hyper",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "UnixStream",
            "OwnedFd",
            "RawFd",
        ],
        "only runtime may name it",
    );
    findings.extend(source.naming(
        &["Instant", "SystemTime", "UNIX_EPOCH"],
        "only runtime reads a clock; take a Tick",
    ));
    findings.extend(source.naming(
        &["RandomState", "getrandom", "thread_rng", "rand"],
        "only runtime has a random source; take a seed",
    ));
    findings.extend(source.shipped().naming(
        &["thread::sleep", "thread::spawn", "std::thread"],
        "only runtime has threads",
    ));
    findings
}

/// No pure room waits.
fn no_async_outside_runtime(source: &Source) -> Vec<String> {
    match source.room() {
        "runtime" => Vec::new(),
        _ => source.naming(&["async", ".await"], "a pure room never waits"),
    }
}

/// What two cores share travels as an envelope.
fn no_lock_outside_runtime(source: &Source) -> Vec<String> {
    match source.room() {
        "runtime" => Vec::new(),
        _ => source.naming(&["Mutex", "RwLock", "Condvar"], "no lock in a core's world"),
    }
}

/// The room table and Redis meet in `bus` envelopes only.
fn shard_and_backplane_do_not_know_each_other(source: &Source) -> Vec<String> {
    let other = match source.room() {
        "shard" => "backplane",
        "backplane" => "shard",
        _ => return Vec::new(),
    };
    let paths = [
        format!("crate::{other}"),
        format!("super::{other}"),
        format!("throng::{other}"),
    ];
    source.naming(
        &paths.each_ref().map(String::as_str),
        "they meet in bus envelopes",
    )
}

/// Framing facts come from tungstenite's types, and stay in `protocol`.
fn tungstenite_stays_in_protocol(source: &Source) -> Vec<String> {
    match source.room() {
        "protocol" => Vec::new(),
        _ => source.naming(&["tungstenite"], "only protocol may name it"),
    }
}

/// `unsafe` has two homes.
fn unsafe_stays_in_the_ring_and_its_bridge(source: &Source) -> Vec<String> {
    if source.path.starts_with("src/runtime/ring") || source.path == "src/runtime/bridge.rs" {
        return Vec::new();
    }
    source.naming(&["unsafe"], "it lives in runtime::ring and its bridge")
}

/// A file says first what it is for.
fn a_file_opens_with_its_purpose(source: &Source) -> Vec<String> {
    match source.text.starts_with("//! ") {
        true => Vec::new(),
        false => vec![format!("{}:1: does not open with //!", source.path)],
    }
}

/// Past this a file has a seam.
fn a_file_stays_readable(source: &Source) -> Vec<String> {
    let line_count = source.text.lines().count();
    match line_count > LINE_COUNT_MAX {
        true => vec![format!(
            "{}: {line_count} lines; look for a seam",
            source.path
        )],
        false => Vec::new(),
    }
}

/// Nothing is left for later, and nothing is hidden.
fn nothing_is_left_for_later(source: &Source) -> Vec<String> {
    let mut findings = source.naming(
        &[
            "dbg!",
            "todo!",
            "unimplemented!",
            "allow(dead_code)",
            "println!",
            "eprintln!",
        ],
        "not in finished code",
    );
    if matches!(source.room(), "cli" | "main") {
        findings.retain(|finding| !finding.contains("println!"));
    }
    for (index, line) in source.text.lines().enumerate() {
        for word in ["TODO", "FIXME", "XXX", "HACK"]
            .into_iter()
            .filter(|word| has_word(line, word))
        {
            findings.push(format!("{}:{}: {word}", source.path, index + 1));
        }
    }
    findings
}

const RULES: [fn(&Source) -> Vec<String>; 9] = [
    only_runtime_touches_the_world,
    no_async_outside_runtime,
    no_lock_outside_runtime,
    shard_and_backplane_do_not_know_each_other,
    tungstenite_stays_in_protocol,
    unsafe_stays_in_the_ring_and_its_bridge,
    a_file_opens_with_its_purpose,
    a_file_stays_readable,
    nothing_is_left_for_later,
];

// --- the sources ----------------------------------------------------------------------------------------------------

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)
            .expect("a directory of the repository")
            .flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|have| have == extension) {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn sources() -> Vec<Source> {
    let files = files_below(&repository().join("src"), "rs");
    assert!(files.len() > 20, "the sources were not found");
    let read = |path: &PathBuf| {
        let below = path
            .strip_prefix(repository())
            .expect("it is below")
            .to_string_lossy();
        Source::new(&below, &fs::read_to_string(path).expect("a source is text"))
    };
    files.iter().map(read).collect()
}

#[test]
fn the_house_is_tidy() {
    let mut report = String::new();
    for source in sources() {
        for finding in RULES.iter().flat_map(|rule| rule(&source)) {
            let _ = writeln!(report, "{finding}");
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

// --- each rule finds something --------------------------------------------------------------------------------------

#[track_caller]
fn assert_finds(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) {
    assert_eq!(rule(&Source::new(path, text)).len(), 1, "{path}: {text:?}");
}

#[track_caller]
fn assert_passes(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) {
    assert_eq!(
        rule(&Source::new(path, text)),
        Vec::<String>::new(),
        "{path}"
    );
}

#[test]
fn comments_and_texts_are_no_code() {
    let text = "let a = \"x // y\"; // unsafe\n/* a /* b */ unsafe */ let b = r#\"unsafe \"#; let c = '\\''; let d: &'a str;";
    let code = blank(text);
    assert!(!code.contains("unsafe"), "{code}");
    for kept in ["let a =", "let b =", "let c =", "let d: &'a str;"] {
        assert!(code.contains(kept), "{code}");
    }
    assert_eq!(code.lines().count(), text.lines().count());
    assert_eq!(
        blank("'\"' + unsafe + \"\\\"\" + x"),
        "    + unsafe +      + x"
    );
}

#[test]
fn a_socket_a_clock_or_chance_outside_runtime_is_found() {
    let rule = only_runtime_touches_the_world;
    assert_finds(rule, "src/shard/mod.rs", "use std::time::Instant;");
    assert_finds(rule, "src/admin/mod.rs", "use std::net::TcpStream;");
    assert_finds(rule, "src/shard/mod.rs", "use std::hash::RandomState;");
    assert_finds(rule, "src/config/load.rs", "glommio::spawn_local(f)");
    assert_passes(
        rule,
        "src/runtime/cores.rs",
        "use std::time::Instant; use glommio::Task;",
    );
    assert_passes(
        rule,
        "src/shard/mod.rs",
        "// an Instant\nlet instantly = operand;",
    );
}

#[test]
fn waiting_and_locking_outside_runtime_are_found() {
    assert_finds(
        no_async_outside_runtime,
        "src/shard/mod.rs",
        "pub async fn read() {}",
    );
    assert_passes(
        no_async_outside_runtime,
        "src/runtime/http.rs",
        "pub async fn read() {}",
    );
    assert_finds(
        no_lock_outside_runtime,
        "src/shard/node.rs",
        "use std::sync::Mutex;",
    );
    assert_passes(
        no_lock_outside_runtime,
        "src/shard/node.rs",
        "use std::sync::Arc;",
    );
}

#[test]
fn a_way_between_shard_and_backplane_is_found() {
    let rule = shard_and_backplane_do_not_know_each_other;
    assert_finds(rule, "src/shard/room.rs", "use crate::backplane::Interest;");
    assert_finds(rule, "src/backplane/mod.rs", "use crate::shard::Shard;");
    assert_passes(
        rule,
        "src/backplane/shard_set.rs",
        "use crate::bus::CoreId; let shard = shard_set;",
    );
    assert_passes(
        rule,
        "src/runtime/cores.rs",
        "use crate::shard::Shard; use crate::backplane::Backplane;",
    );
}

#[test]
fn tungstenite_and_unsafe_away_from_home_are_found() {
    assert_finds(
        tungstenite_stays_in_protocol,
        "src/shard/mod.rs",
        "use tungstenite::Message;",
    );
    assert_passes(
        tungstenite_stays_in_protocol,
        "src/protocol/frame.rs",
        "use tungstenite::protocol;",
    );
    let rule = unsafe_stays_in_the_ring_and_its_bridge;
    assert_finds(rule, "src/runtime/http.rs", "unsafe { f() }");
    assert_passes(rule, "src/runtime/ring/mod.rs", "unsafe { f() }");
    assert_passes(rule, "src/shard/mod.rs", "#![forbid(unsafe_code)]");
}

#[test]
fn an_untidy_file_is_found() {
    assert_finds(
        a_file_opens_with_its_purpose,
        "src/time.rs",
        "use std::fmt;\n//! Late.",
    );
    assert_passes(a_file_opens_with_its_purpose, "src/time.rs", "//! Time.\n");
    assert_finds(
        a_file_stays_readable,
        "src/time.rs",
        &"\n".repeat(LINE_COUNT_MAX + 1),
    );
    assert_passes(
        a_file_stays_readable,
        "src/time.rs",
        &"\n".repeat(LINE_COUNT_MAX),
    );
    assert_finds(nothing_is_left_for_later, "src/time.rs", "// TODO: later");
    assert_finds(nothing_is_left_for_later, "src/time.rs", "todo!()");
    assert_finds(nothing_is_left_for_later, "src/shard/mod.rs", "println!();");
    assert_passes(nothing_is_left_for_later, "src/cli/mod.rs", "println!();");
}
