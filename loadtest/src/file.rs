//! A scenario written down: `throng-load run FILE`. The file is TOML, its keys are the flags without their dashes.
//!
//! A file is turned into the words of a command line and read by the same parser, so that the two cannot drift: a flag
//! that is new or has another range is so in files, too.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser};
use toml::Value;
use toml::de::DeTable;

use crate::failure::Failure;
use crate::scenario::Task;

/// The key that names the scenario.
const SCENARIO: &str = "scenario";
/// Bytes of a file at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What `run` is told.
#[derive(Debug, Args)]
#[group(id = "run")]
pub struct Arguments {
    /// TOML: scenario = "fanout", and its flags as keys: connect-rate = 100, core = [0, 1], closed = true
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Flags of the scenario that take the place of the file's
    #[arg(
        value_name = "FLAGS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub flags: Vec<OsString>,
}

/// The same line as on the terminal, with nothing but scenarios.
#[derive(Debug, Parser)]
#[command(name = "throng-load", version)]
struct Line {
    #[command(subcommand)]
    task: Task,
}

/// A key of a file.
struct Entry {
    /// The flag that it stands for, without dashes.
    flag: String,
    /// As it was written.
    key: String,
    line: usize,
    value: Value,
}

impl Arguments {
    /// Reads the scenario.
    ///
    /// # Errors
    /// When there is no such file, or with the file, the line and the key that are wrong.
    pub fn task(&self) -> Result<Task, Failure> {
        let path = &self.file;
        let fail = |error: std::io::Error| Failure::Usage(format!("{}: {error}", path.display()));
        let bytes = std::fs::metadata(path).map_err(fail)?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(Failure::Usage(format!(
                "{}: {bytes} bytes are too many for a scenario",
                path.display()
            )));
        }
        let text = std::fs::read_to_string(path).map_err(fail)?;
        read(path, &text, &self.flags)
    }
}

/// Reads the scenario in `text`; `flags` take the place of its keys.
fn read(path: &Path, text: &str, flags: &[OsString]) -> Result<Task, Failure> {
    let name = path.display();
    let mut entries = entries(text).map_err(|what| Failure::Usage(format!("{name}:{what}")))?;
    let scenario = match entries.iter().position(|entry| entry.flag == SCENARIO) {
        Some(at) => entries.remove(at),
        None => {
            return Err(Failure::Usage(format!(
                "{name}: there is no `scenario`; write, say, scenario = \"fanout\""
            )));
        }
    };
    let Value::String(word) = &scenario.value else {
        return Err(Failure::Usage(format!(
            "{name}:{}: scenario: a string is expected, not {}",
            scenario.line,
            scenario.value.type_str()
        )));
    };
    let replaced: BTreeSet<&str> = flags
        .iter()
        .filter_map(|flag| flag.to_str()?.strip_prefix("--"))
        .map(|flag| flag.split_once('=').map_or(flag, |(flag, _)| flag))
        .collect();
    let mut words: Vec<OsString> = vec!["throng-load".into(), word.into()];
    for entry in &entries {
        if !replaced.contains(entry.flag.as_str()) {
            entry.words(&mut words).map_err(|what| {
                Failure::Usage(format!("{name}:{}: {}: {what}", entry.line, entry.key))
            })?;
        }
    }
    words.extend(flags.iter().cloned());
    match Line::try_parse_from(&words) {
        Ok(line) => Ok(line.task),
        Err(error) if !error.use_stderr() => error.exit(), // help was asked for
        Err(error) => {
            let culprit = match error.kind() {
                ErrorKind::InvalidSubcommand => Some(&scenario),
                _ => flag_of(&error)
                    .filter(|flag| !replaced.contains(flag.as_str()))
                    .and_then(|flag| entries.iter().find(|entry| entry.flag == flag)),
            };
            let place = culprit.map_or(format!("{name}: "), |entry| {
                format!("{name}:{}: {}: ", entry.line, entry.key)
            });
            let text = error.render().to_string();
            let text = text.trim_start_matches("error: ").trim_end();
            Err(Failure::Usage(format!("{place}{text}")))
        }
    }
}

/// The flag that an error of the command line is about, without dashes and value.
fn flag_of(error: &clap::Error) -> Option<String> {
    let text = match error.get(ContextKind::InvalidArg)? {
        ContextValue::String(text) => text,
        ContextValue::Strings(texts) => texts.first()?,
        _ => return None,
    };
    let word = text.split([' ', '=']).next()?;
    Some(word.strip_prefix("--")?.to_owned())
}

/// The keys of a file in their order, or the line and what is wrong there.
fn entries(text: &str) -> Result<Vec<Entry>, String> {
    let line_of = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(span.start));
        format!("{line}: {}", error.message())
    })?;
    let values: toml::Table = toml::from_str(text).map_err(|error| format!("1: {error}"))?;
    let mut entries: Vec<Entry> = Vec::new();
    for key in table.get_ref().keys() {
        let (line, key) = (line_of(key.span().start), key.get_ref().to_string());
        let flag = key.replace('_', "-");
        if entries.iter().any(|entry| entry.flag == flag) {
            return Err(format!("{line}: {key}: --{flag} is given twice"));
        }
        entries.push(Entry {
            value: values[key.as_str()].clone(),
            flag,
            key,
            line,
        });
    }
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

impl Entry {
    /// Adds its words: one for each value, none for `false`.
    fn words(&self, words: &mut Vec<OsString>) -> Result<(), String> {
        match &self.value {
            Value::Boolean(false) => {}
            Value::Boolean(true) => words.push(format!("--{}", self.flag).into()),
            Value::Array(values) => {
                for value in values {
                    words.push(self.word(value)?.into());
                }
            }
            value => words.push(self.word(value)?.into()),
        }
        Ok(())
    }

    /// The word of one value. Joined by `=`, so that a value that begins with a dash is none the less a value.
    fn word(&self, value: &Value) -> Result<String, String> {
        let value = match value {
            Value::String(value) => value.clone(),
            Value::Integer(value) => value.to_string(),
            Value::Float(value) => format!("{value:?}"), // 3.0 is no count
            other => {
                return Err(format!(
                    "a string, a number, true, false or a list of strings or numbers is expected, not {}",
                    match other {
                        Value::Boolean(_) => "a boolean in a list",
                        other => other.type_str(),
                    }
                ));
            }
        };
        Ok(format!("--{}={value}", self.flag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, flags: &[&str]) -> Result<String, String> {
        let flags: Vec<OsString> = flags.iter().map(OsString::from).collect();
        match read(Path::new("load.toml"), text, &flags) {
            Ok(scenario) => Ok(format!("{scenario:?}")),
            Err(Failure::Usage(text) | Failure::Broken(text)) => Err(text),
        }
    }

    fn line(line: &str) -> String {
        let words = std::iter::once("throng-load").chain(line.split(' '));
        format!("{:?}", Line::try_parse_from(words).unwrap().task)
    }

    const FILE: &str = "# a comment\nscenario = \"fanout\"\ntarget = [\"ws://127.0.0.1:1\", \"ws://127.0.0.1:2\"]\n\
                        connect_rate = 100\nrate = 2.5\ncore = [0, 1]\nclosed = true\nallow-remote = false\nsize = \"64-4096\"\n";

    #[test]
    fn a_file_is_the_line_that_it_stands_for() {
        let same = "fanout --target ws://127.0.0.1:1 --target ws://127.0.0.1:2 --connect-rate 100 --rate 2.5 --core 0,1 \
                    --closed --size 64-4096";
        assert_eq!(parse(FILE, &[]).unwrap(), line(same));
    }

    #[test]
    fn flags_take_the_place_of_keys() {
        let same = "fanout --target ws://127.0.0.1:3 --connect-rate 100 --core 0,1 --closed --size 64-4096 --rate 50 --members 7";
        let flags = ["--rate", "50", "--members=7", "--target=ws://127.0.0.1:3"];
        assert_eq!(parse(FILE, &flags).unwrap(), line(same));
    }

    #[test]
    fn what_is_wrong_is_said_with_file_line_and_key() {
        let start = "scenario = \"fanout\"\ntarget = \"ws://127.0.0.1:1\"\n";
        for (text, place, words) in [
            ("ratee = 5", "load.toml:3: ratee: ", "'--rate'"),
            (
                "rate = \"fast\"",
                "load.toml:3: rate: ",
                "invalid value 'fast'",
            ),
            (
                "\n\nmembers = 2.5",
                "load.toml:5: members: ",
                "invalid value '2.5'",
            ),
            (
                "connect_rate = true",
                "load.toml:3: connect_rate: ",
                "value is required",
            ),
            ("closed = 5", "load.toml:3: closed: ", "unexpected value"),
            ("rate = { a = 1 }", "load.toml:3: rate: ", "not table"),
            ("core = [[1]]", "load.toml:3: core: ", "not array"),
            (
                "core = [true]",
                "load.toml:3: core: ",
                "a boolean in a list",
            ),
            ("rate = [1, 2]", "load.toml:3: rate: ", "multiple times"),
            (
                "connect-rate = 1\nconnect_rate = 1",
                "load.toml:4: connect_rate: ",
                "twice",
            ),
            ("rate = = 3", "load.toml:3: ", "extra `=`"),
            ("rate = 1\nrate = 2", "load.toml:4: ", "duplicate"),
        ] {
            let error = parse(&format!("{start}{text}"), &[]).unwrap_err();
            assert!(
                error.starts_with(place) && error.contains(words),
                "{text}: {error}"
            );
        }
        let error = parse("target = \"ws://127.0.0.1:1\"", &[]).unwrap_err();
        assert!(error.contains("scenario = \"fanout\""), "{error}");
        let error = parse("scenario = 5", &[]).unwrap_err();
        assert!(error.starts_with("load.toml:1: scenario: "), "{error}");
        let error = parse("scenario = \"fan-out\"", &[]).unwrap_err();
        assert!(
            error.starts_with("load.toml:1: scenario: ") && error.contains("'fanout'"),
            "{error}"
        );
        for no_scenario in ["floor", "run"] {
            assert!(parse(&format!("scenario = \"{no_scenario}\""), &[]).is_err());
        }
        let error = parse("scenario = \"fanout\"", &[]).unwrap_err();
        assert!(
            error.starts_with("load.toml: ") && error.contains("--target"),
            "{error}"
        );
        let error = parse(FILE, &["--rate", "fast"]).unwrap_err();
        assert!(
            error.starts_with("load.toml: invalid value 'fast'"),
            "the file is not to blame: {error}"
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_said() {
        let arguments = Arguments {
            file: "/nonexistent/load.toml".into(),
            flags: Vec::new(),
        };
        let Err(Failure::Usage(text)) = arguments.task() else {
            panic!("there is no such file")
        };
        assert!(text.contains("/nonexistent/load.toml"), "{text}");
    }
}
