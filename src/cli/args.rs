//! The command line, built from the settings' definitions.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::top::{self, TopArgs};
use crate::config::{DEFINITIONS, Definition, Mistake, ServeArgs};

/// What a person asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Run the server.
    Serve(ServeArgs),
    /// Look at the host and the settings.
    Check {
        /// The settings.
        args: ServeArgs,
        /// Answer in JSON.
        json: bool,
    },
    /// Print the settings in force.
    Config(ServeArgs),
    /// Print the reference of all settings.
    Reference,
    /// Show all nodes.
    Top(TopArgs),
}

/// The whole command line.
fn command() -> Command {
    let subcommand = |name: &'static str, about: &'static str| {
        Command::new(name).about(about).args(setting_args()).arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .help("Settings in TOML; `-` is standard input. [variable: THRONG_CONFIG]"),
        )
    };
    Command::new("throng")
        .about("A WebSocket room server: a million connections in a process, a thread per core, io_uring.")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(subcommand("serve", "Runs the server until SIGTERM or SIGINT; exits with 0 drained, 1 cut or not started, 2 mistakes in the settings"))
        .subcommand(
            subcommand("check", "Says whether this host and these settings can serve, and how many connections; exits with 1 if not")
                .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Prints JSON.")),
        )
        .subcommand(
            subcommand("config", "Prints the settings in force as commented TOML; exits with 2 on mistakes").arg(
                Arg::new("markdown")
                    .long("markdown")
                    .action(ArgAction::SetTrue)
                    .help("Prints the reference of all settings in Markdown instead."),
            ),
        )
        .subcommand(top::command())
}

/// Reads a command line, the program's name first. Flags that nobody knows are mistakes like any other, so that they
/// are told together with the rest.
///
/// # Errors
/// clap's, for help, the version, and what is no flag at all.
pub(super) fn read(mut line: Vec<OsString>) -> Result<(Asked, Vec<Mistake>), Error> {
    let mut mistakes = Vec::new();
    loop {
        let error = match command().try_get_matches_from(&line) {
            Ok(matches) => {
                let asked = asked(&matches).ok_or_else(|| {
                    command().error(ErrorKind::MissingSubcommand, "say what to do")
                })?;
                return Ok((asked, mistakes));
            }
            Err(error) => error,
        };
        let verb = line.get(1).map(|verb| verb.to_string_lossy().into_owned());
        let Some(mistake) = unknown_flag(&error, &verb.unwrap_or_default()) else {
            return Err(error);
        };
        if !remove_flag(&mut line, &mistake.place) {
            return Err(error);
        }
        mistakes.push(mistake);
    }
}

/// The flag that clap does not know of the command `verb`, if that is its complaint.
fn unknown_flag(error: &Error, verb: &str) -> Option<Mistake> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    let place = text(ContextKind::InvalidArg).filter(|flag| flag.starts_with("--"))?;
    (error.kind() == ErrorKind::UnknownArgument).then(|| Mistake {
        place,
        problem: "there is no such flag".into(),
        instead: match text(ContextKind::SuggestedArg) {
            Some(meant) => format!("write {meant}, or leave it out"),
            None => format!("leave it out; `throng {verb} --help` prints all flags"),
        },
    })
}

/// Takes `flag` and its value out of the line. False: it is not there.
fn remove_flag(line: &mut Vec<OsString>, flag: &str) -> bool {
    let is_flag = |argument: &OsString| {
        let argument = argument.to_string_lossy();
        argument
            .split_once('=')
            .map_or(&*argument, |(name, _)| name)
            == flag
    };
    let Some(index) = line.iter().position(is_flag) else {
        return false;
    };
    let removed = line.remove(index);
    let value_follows = !removed.to_string_lossy().contains('=')
        && line
            .get(index)
            .is_some_and(|next| !next.to_string_lossy().starts_with("--"));
    if value_follows {
        line.remove(index);
    }
    true
}

/// Reads a command line that [`command`] has accepted.
fn asked(matches: &ArgMatches) -> Option<Asked> {
    let (name, matches) = matches.subcommand()?;
    match name {
        "serve" => Some(Asked::Serve(serve_args(matches))),
        "check" => Some(Asked::Check {
            args: serve_args(matches),
            json: matches.get_flag("json"),
        }),
        "config" if matches.get_flag("markdown") => Some(Asked::Reference),
        "config" => Some(Asked::Config(serve_args(matches))),
        "top" => Some(Asked::Top(TopArgs::read(matches))),
        _ => None,
    }
}

/// A flag for each setting, all of them texts: `config` reads them, so that all mistakes are told at once.
fn setting_args() -> impl Iterator<Item = Arg> {
    DEFINITIONS
        .iter()
        .filter(|definition| !definition.secret)
        .map(|definition| {
            Arg::new(definition.key)
                .long(definition.key.replace('_', "-"))
                .value_name(
                    definition
                        .kind
                        .unit()
                        .replace(' ', "-")
                        .to_ascii_uppercase(),
                )
                .action(ArgAction::Append)
                .allow_negative_numbers(true)
                .help(help(definition))
                .help_heading(definition.group.title())
        })
}

fn help(definition: &Definition) -> String {
    let default = match definition.default {
        "" => "empty",
        default => default,
    };
    format!(
        "{} [{}] [default: {default}]",
        definition.effect,
        definition.range()
    )
}

fn serve_args(matches: &ArgMatches) -> ServeArgs {
    let given = |definition: &Definition| {
        let key = definition.key;
        // A secret has no flag, and clap does not like to be asked for one that is not there.
        let values = matches.try_get_many::<String>(key).ok()??;
        Some((key.to_owned(), values.cloned().collect()))
    };
    ServeArgs {
        config: matches.get_one::<String>("config").cloned(),
        flags: DEFINITIONS.iter().filter_map(given).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_line(line: &str) -> Result<(Asked, Vec<Mistake>), Error> {
        read(line.split(' ').map(OsString::from).collect())
    }

    fn parse(line: &str) -> Option<Asked> {
        let (asked, mistakes) = read_line(line).ok()?;
        mistakes.is_empty().then_some(asked)
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_setting_but_secrets_has_its_flag() {
        for definition in DEFINITIONS {
            let line = format!("throng serve {}=x", definition.flag());
            match parse(&line) {
                Some(Asked::Serve(args)) => assert_eq!(args.flags[definition.key], ["x"]),
                _ => assert!(definition.secret, "{line}"),
            }
        }
    }

    #[test]
    fn flags_may_be_repeated_and_the_file_named() {
        let Some(Asked::Check { args, json }) =
            parse("throng check --json --config - --listen 1.2.3.4:5 --listen [::1]:6")
        else {
            panic!("not understood");
        };
        assert!(json);
        assert_eq!(args.config.as_deref(), Some("-"));
        assert_eq!(args.flags["listen"], ["1.2.3.4:5", "[::1]:6"]);
        assert_eq!(args.flags.len(), 1);
    }

    #[test]
    fn unknown_flags_are_mistakes_beside_the_rest() {
        let line = "throng serve --listne 1.2.3.4:5 --shards 2 --colour --wrap=3 --admin off";
        let (asked, mistakes) = read_line(line).unwrap();
        let Asked::Serve(args) = asked else {
            panic!("not understood")
        };
        assert_eq!(args.flags.keys().collect::<Vec<_>>(), ["admin", "shards"]);
        let places: Vec<&str> = mistakes
            .iter()
            .map(|mistake| mistake.place.as_str())
            .collect();
        assert_eq!(places, ["--listne", "--colour", "--wrap"]);
        assert!(mistakes[0].instead.contains("--listen"), "{}", mistakes[0]);
        assert!(
            mistakes[1].instead.contains("`throng serve --help`"),
            "{}",
            mistakes[1]
        );
        let (_, mistakes) = read_line("throng top --colour").unwrap();
        assert!(mistakes[0].instead.contains("`throng top --help`"));
    }

    #[test]
    fn what_is_not_a_flag_is_refused() {
        assert_eq!(parse("throng serve --listne x"), None);
        assert_eq!(parse("throng serve x"), None);
        assert_eq!(parse("throng"), None);
        assert_eq!(parse("throng config --markdown"), Some(Asked::Reference));
    }
}
