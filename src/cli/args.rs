//! The command line, built from the settings' definitions.

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::{DEFINITIONS, Definition, ServeArgs};

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
}

/// The whole command line.
pub(super) fn command() -> Command {
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
}

/// Reads a command line that [`command`] has accepted.
pub(super) fn asked(matches: &ArgMatches) -> Option<Asked> {
    let (name, matches) = matches.subcommand()?;
    match name {
        "serve" => Some(Asked::Serve(serve_args(matches))),
        "check" => Some(Asked::Check {
            args: serve_args(matches),
            json: matches.get_flag("json"),
        }),
        "config" if matches.get_flag("markdown") => Some(Asked::Reference),
        "config" => Some(Asked::Config(serve_args(matches))),
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

    fn parse(line: &str) -> Option<Asked> {
        let matches = command().try_get_matches_from(line.split(' ')).ok()?;
        asked(&matches)
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
    fn what_is_not_a_flag_is_refused() {
        assert_eq!(parse("throng serve --listne x"), None);
        assert_eq!(parse("throng serve x"), None);
        assert_eq!(parse("throng"), None);
        assert_eq!(parse("throng config --markdown"), Some(Asked::Reference));
    }
}
