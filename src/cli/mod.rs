//! What a person types: `serve`, `check`, `config`, `top`.
//!
//! Rule of this room: it joins what others decide (`config` the settings, `check` the verdicts, `runtime` the work) and
//! prints; it decides nothing but words and exit codes.
#![forbid(unsafe_code)]

mod args;
mod check;
mod logs;
mod top;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;

use crate::config::{self, Effective, Machine, Mistake, ServeArgs, Settings};
use crate::runtime::{cores, host, redis};
use args::Asked;

/// The settings are wrong; nothing was started.
const EXIT_MISTAKES: u8 = 2;
/// The server could not start, or cut connections when it stopped; or `check` found that it would not start.
const EXIT_FAILED: u8 = 1;
/// Bytes of a settings file at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Does what the command line asks for.
#[must_use]
pub fn run() -> ExitCode {
    let (asked, unknown) = match args::read(std::env::args_os().collect()) {
        Ok(read) => read,
        Err(error) => error.exit(),
    };
    match asked {
        Asked::Serve(args) => serve(&args, unknown),
        Asked::Check { args, json } => check(&args, unknown, json),
        Asked::Config(args) => config(&args, unknown),
        Asked::Reference if unknown.is_empty() => print(&config::reference_markdown()),
        Asked::Reference => tell(&unknown),
        Asked::Top(args) => top::run(&args, unknown),
    }
}

fn serve(args: &ServeArgs, unknown: Vec<Mistake>) -> ExitCode {
    let (settings, _) = match load(args, unknown, &host::machine()) {
        Ok(loaded) => loaded,
        Err(mistakes) => return tell(&mistakes),
    };
    logs::start(settings.log);
    raise_limits();
    let level = settings.log.level;
    match preflight(&settings).and_then(|()| cores::serve(settings)) {
        Ok(code) => ExitCode::from(code),
        Err(reason) => {
            if level.is_some() {
                tracing::error!(reason, "could not start, or could not go on");
            } else {
                // A failure is never silent, even where logs are off.
                eprintln!("throng: {reason}");
            }
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Whether the host is fit to serve: what `throng check` would fail, addresses aside, which are told when they are bound.
/// An executor on a host that is not fit does not say so; it dies.
fn preflight(settings: &Settings) -> Result<(), String> {
    let facts = host::collect(&settings.ring, &[]);
    let failures = check::evaluate(settings, &facts, &[]).failures();
    match failures.is_empty() {
        true => Ok(()),
        false => Err(failures.join("; ")),
    }
}

fn raise_limits() {
    match host::raise_open_file_limit() {
        Ok(limit) => tracing::debug!(soft = ?limit.soft, "open-file limit"),
        Err(error) => {
            tracing::warn!(%error, "the open-file limit could not be raised to the hard limit")
        }
    }
    if let Err(error) = host::raise_memory_lock_limit() {
        tracing::warn!(%error, "the locked-memory limit could not be raised to the hard limit");
    }
}

fn config(args: &ServeArgs, unknown: Vec<Mistake>) -> ExitCode {
    match load(args, unknown, &host::machine()) {
        Ok((_, effective)) => print(&effective.to_toml()),
        Err(mistakes) => tell(&mistakes),
    }
}

fn check(args: &ServeArgs, unknown: Vec<Mistake>, json: bool) -> ExitCode {
    let machine = host::machine();
    // Settings that cannot be are told, and the host is judged by the defaults: one run tells all there is to mend.
    let (settings, mistakes) = match load(args, unknown, &machine) {
        Ok((settings, _)) => (settings, Vec::new()),
        Err(mistakes) => {
            let no_file = |_: &str| Err(io::Error::from(io::ErrorKind::NotFound));
            let defaults =
                config::load(&ServeArgs::default(), std::iter::empty(), no_file, &machine);
            match defaults {
                Ok((settings, _)) => (settings, mistakes),
                Err(_) => return tell(&mistakes),
            }
        }
    };
    let addresses: Vec<_> = settings
        .listen
        .iter()
        .chain(&settings.admin)
        .copied()
        .collect();
    let mut facts = host::collect(&settings.ring, &addresses);
    facts.redis = redis::survey(&settings);
    let report = check::evaluate(&settings, &facts, &mistakes);
    let printed = match json {
        true => print(&format!("{:#}\n", report.to_json())),
        false => print(&report.to_text(io::stdout().is_terminal())),
    };
    match report.fails() {
        true => ExitCode::from(EXIT_FAILED),
        false => printed,
    }
}

/// The settings, or all mistakes: flags that nobody knows, and what `config` finds.
fn load(
    args: &ServeArgs,
    mut unknown: Vec<Mistake>,
    machine: &Machine,
) -> Result<(Settings, Effective), Vec<Mistake>> {
    let lossy = |text: OsString| text.to_string_lossy().into_owned();
    let environment = std::env::vars_os().map(|(name, text)| (lossy(name), lossy(text)));
    match config::load(args, environment, read_file, machine) {
        Ok(loaded) if unknown.is_empty() => Ok(loaded),
        Ok(_) => Err(unknown),
        Err(mistakes) => {
            unknown.extend(mistakes);
            Err(unknown)
        }
    }
}

fn read_file(path: &str) -> io::Result<String> {
    let mut text = String::new();
    match path {
        "-" => io::stdin()
            .take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)?,
        _ => std::fs::File::open(path)?
            .take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)?,
    };
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    Ok(text)
}

#[cold]
fn tell(mistakes: &[Mistake]) -> ExitCode {
    for mistake in mistakes {
        eprintln!("throng: {mistake}");
    }
    let count = mistakes.len();
    eprintln!(
        "throng: {count} mistake{} in the settings; nothing was started",
        if count == 1 { "" } else { "s" }
    );
    ExitCode::from(EXIT_MISTAKES)
}

/// Prints, and is content when nobody reads to the end.
fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(EXIT_FAILED),
    }
}
