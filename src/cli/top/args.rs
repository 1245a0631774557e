//! What `throng top` may be told on its command line.

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::http::Target;
use crate::config::{Kind, Mistake, Range, Unit, Value};

/// How often the node is asked.
const INTERVAL: Kind = Kind::Number(
    Unit::Milliseconds,
    Range {
        min: 200,
        max: 3_600_000,
        zero: None,
        power_of_two: false,
    },
);
const INTERVAL_MS_DEFAULT: u64 = 2_000;

/// Arguments of `throng top`, as they were written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::cli) struct TopArgs {
    /// Admin listeners; none: the one in the settings.
    pub(super) admin: Vec<String>,
    /// The settings file.
    pub(super) config: Option<String>,
    /// The file that the key is in.
    pub(super) key_file: Option<String>,
    interval: Option<String>,
    /// One table and no screen.
    pub(super) once: bool,
    /// The answer itself.
    pub(super) json: bool,
}

/// The command itself.
pub(in crate::cli) fn command() -> Command {
    let one = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("top")
        .about("Shows all nodes live in the terminal, as one of them knows them; exits with 1 when none answers, 2 on mistakes in the settings")
        .arg(
            one("admin", "URL", "http://HOST:PORT of a node's admin listener; repeated: whichever answers, the last that did first. [default: `admin` of the settings]")
                .action(ArgAction::Append),
        )
        .arg(one("config", "FILE", "The settings of a node in TOML, for its admin address and key; `-` is standard input. [variable: THRONG_CONFIG]"))
        .arg(
            one("key-file", "FILE", "The file that holds the admin key. [variables: THRONG_ADMIN_KEY_FILE, or THRONG_ADMIN_KEY with the key itself]")
                .alias("admin-key-file"),
        )
        .arg(one("interval", "MS", "Between two answers, 200ms to 1h. [default: 2s]"))
        .arg(Arg::new("once").long("once").action(ArgAction::SetTrue).help("Prints one table and ends; so it does where there is no terminal."))
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Prints the node's answer as JSON and ends."))
        .after_help(
            "Keys: q, Esc or Ctrl-C quits; p pauses; n, c, m, l sort by name, connections, memory, lag, the same again turns \
             the order round; arrows, PgUp, PgDn, Home, End scroll.\n\
             Variables: NO_COLOR turns colours off; a locale without UTF-8 gets plain signs.",
        )
}

impl TopArgs {
    /// Reads what [`command`] has matched.
    pub(in crate::cli) fn read(matches: &ArgMatches) -> Self {
        let one = |name: &str| matches.get_one::<String>(name).cloned();
        let admin = matches.get_many::<String>("admin");
        Self {
            admin: admin.into_iter().flatten().cloned().collect(),
            config: one("config"),
            key_file: one("key-file"),
            interval: one("interval"),
            once: matches.get_flag("once"),
            json: matches.get_flag("json"),
        }
    }

    /// The listeners that are named.
    pub(super) fn targets(&self, mistakes: &mut Vec<Mistake>) -> Vec<Target> {
        let mut targets = Vec::new();
        for text in &self.admin {
            match Target::read(text) {
                Ok(target) => targets.push(target),
                Err((problem, instead)) => mistakes.push(Mistake {
                    place: "--admin".into(),
                    problem,
                    instead,
                }),
            }
        }
        targets
    }

    /// Milliseconds between two answers.
    pub(super) fn interval_ms(&self, mistakes: &mut Vec<Mistake>) -> u64 {
        let read = self
            .interval
            .as_deref()
            .map(|text| INTERVAL.read_argument(text));
        match read {
            Some(Ok(Value::Number(ms))) => ms,
            Some(Err((problem, instead))) => {
                mistakes.push(Mistake {
                    place: "--interval".into(),
                    problem,
                    instead,
                });
                INTERVAL_MS_DEFAULT
            }
            _ => INTERVAL_MS_DEFAULT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &[&str]) -> TopArgs {
        let line = [&["top"], line].concat();
        TopArgs::read(&command().try_get_matches_from(line).unwrap())
    }

    #[test]
    fn all_that_is_wrong_is_told() {
        let mut mistakes = Vec::new();
        let args = args(&[
            "--admin",
            "https://a:1",
            "--admin",
            "b:2",
            "--interval",
            "2",
        ]);
        assert_eq!(args.targets(&mut mistakes).len(), 1);
        assert_eq!(args.interval_ms(&mut mistakes), INTERVAL_MS_DEFAULT);
        let places: Vec<_> = mistakes.iter().map(|mistake| &*mistake.place).collect();
        assert_eq!(places, ["--admin", "--interval"]);
    }

    #[test]
    fn an_interval_has_a_unit_or_is_in_milliseconds() {
        let ms = |text| args(&["--interval", text]).interval_ms(&mut Vec::new());
        assert_eq!((ms("5s"), ms("250"), ms("1min")), (5_000, 250, 60_000));
    }
}
