//! `throng top`: all nodes, live in a terminal, or once as a table.
//!
//! Rule of this part: what is shown is a pure function of what was answered, typed and timed ([`state`], [`frame`]);
//! `runtime::terminal` has the screen and the keyboard, `runtime::fetch` the socket. Words of other nodes are escaped where
//! they are read ([`cluster`]).

mod args;
mod ask;
mod cluster;
mod columns;
mod frame;
mod http;
mod keys;
mod numbers;
mod state;
mod text;

#[cfg(test)]
mod tests;

use std::env;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::{EXIT_FAILED, load, print, tell};
use crate::config::{Effective, Mistake, ServeArgs, Settings, Source};
use crate::runtime::host;
use crate::runtime::terminal::{self, Event, Terminal};
use crate::time::Tick;
pub(super) use args::{TopArgs, command};
use ask::{Asker, Key};
use http::Target;
use keys::Keys;
use state::{State, Wish};
use text::{Glyphs, Line, Marks, ansi};

/// An escape that nothing follows for so long is the key.
const ESCAPE_WAIT: Duration = Duration::from_millis(50);
/// Ages are shown anew at least so often.
const SHOW_INTERVAL: Duration = Duration::from_secs(1);
/// The `TERM` of a terminal that cannot move its cursor.
const DUMB: &str = "dumb";

/// Does what `throng top` is asked for.
pub(super) fn run(args: &TopArgs, unknown: Vec<Mistake>) -> ExitCode {
    let (mut asker, interval_ms) = match prepare(args, unknown) {
        Ok(prepared) => prepared,
        Err(mistakes) => return tell(&mistakes),
    };
    let (answer, value) = match asker.ask() {
        Ok(answered) => answered,
        Err(reasons) => return nobody(&reasons),
    };
    if args.json {
        return print(&json_text(&value));
    }
    let state = State::new(answer, terminal::unix_s(), Tick(0), interval_ms);
    let glyphs = glyphs();
    let has_screen = io::stdout().is_terminal() && variable("TERM") != DUMB;
    if args.once || !has_screen || !io::stdin().is_terminal() {
        let (width, marks) = match has_screen {
            true => (Some(terminal::size().0), marks()),
            false => (None, Marks::None),
        };
        return print(&table_text(&frame::table(&state, width, &glyphs), marks));
    }
    live(state, asker, glyphs)
}

/// Who is asked, with which key and how often; or all mistakes.
fn prepare(args: &TopArgs, unknown: Vec<Mistake>) -> Result<(Asker, u64), Vec<Mistake>> {
    let mut mistakes = unknown;
    let mut targets = args.targets(&mut mistakes);
    let interval_ms = args.interval_ms(&mut mistakes);
    let mut serve_args = ServeArgs {
        config: args.config.clone(),
        ..ServeArgs::default()
    };
    if let Some(path) = &args.key_file {
        let flag = ("admin_key_file".to_owned(), vec![path.clone()]);
        serve_args.flags.extend([flag]);
    }
    let (settings, effective) = load(&serve_args, mistakes, &host::machine())?;
    if targets.is_empty() {
        targets.push(own_target(&settings).map_err(|mistake| vec![mistake])?);
    }
    let key = settings.admin_key.map(|text| Key {
        text,
        place: key_place(&effective),
    });
    Ok((Asker { targets, key }, interval_ms))
}

/// The admin listener of the settings, as this host reaches it.
fn own_target(settings: &Settings) -> Result<Target, Mistake> {
    let wrong = |problem: &str| {
        Err(Mistake {
            place: "admin".into(),
            problem: problem.into(),
            instead: "give --admin http://HOST:PORT of a node".into(),
        })
    };
    let Some(address) = settings.admin else {
        return wrong("it is off, so there is nobody to ask");
    };
    if address.port() == 0 {
        return wrong("its port is the kernel's choice, which nobody here knows");
    }
    let address = reachable(address);
    Ok(Target {
        host: address.ip().to_string(),
        port: address.port(),
    })
}

/// An address that is bound on all interfaces is reached on the loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Where the key came from.
fn key_place(effective: &Effective) -> String {
    let place = |key: &str| {
        let entry = effective
            .entries
            .iter()
            .find(|entry| entry.definition.key == key)?;
        match entry.source {
            Source::Default => None,
            Source::Flag => Some("--key-file".to_owned()),
            Source::Environment => Some(entry.definition.variable()),
            Source::File { line } => {
                let path = effective.file.as_deref().unwrap_or_default();
                Some(format!("{key} ({path}:{line})"))
            }
        }
    };
    place("admin_key_file")
        .or_else(|| place("admin_key"))
        .unwrap_or_default()
}

#[cold]
fn nobody(reasons: &[String]) -> ExitCode {
    for reason in reasons {
        eprintln!("throng: {reason}");
    }
    eprintln!("throng: no node answers");
    ExitCode::from(EXIT_FAILED)
}

/// Shows the screen until the person or a signal ends it.
fn live(mut state: State, mut asker: Asker, glyphs: Glyphs) -> ExitCode {
    let marks = marks();
    let interval = Duration::from_millis(state.interval_ms);
    let ask = move || {
        let heard = asker.ask().map(|(answer, _)| answer);
        (heard, terminal::unix_s())
    };
    let terminal = match Terminal::open(interval, ask) {
        Ok(terminal) => terminal,
        Err(error) => {
            eprintln!("throng: the terminal cannot be used: {error}; --once needs none");
            return ExitCode::from(EXIT_FAILED);
        }
    };
    let mut keys = Keys::default();
    let mut wish = Wish::Redraw;
    loop {
        state.now = terminal.now();
        if matches!(wish, Wish::Show | Wish::Redraw) {
            let (width, height) = terminal::size();
            state.fit(frame::row_count(&state, width, height, &glyphs));
            let lines = frame::frame(&state, width, height, &glyphs);
            if terminal
                .show(&screen_text(&lines, marks, wish == Wish::Redraw))
                .is_err()
            {
                return ExitCode::from(EXIT_FAILED);
            }
        }
        let timeout = match keys.is_pending() {
            true => ESCAPE_WAIT,
            false => SHOW_INTERVAL,
        };
        wish = match terminal.next(timeout) {
            Event::Typed(bytes) => type_all(&mut state, keys.read(&bytes)),
            Event::Nothing if keys.is_pending() => type_all(&mut state, keys.settle()),
            Event::Nothing => Wish::Show,
            Event::Answered((heard, unix_s)) => {
                state.hear(heard, unix_s, terminal.now());
                Wish::Show
            }
            Event::Changed => Wish::Redraw,
            Event::Stop(signal) => {
                drop(terminal);
                terminal::end_by(signal);
                return ExitCode::from(EXIT_FAILED);
            }
            Event::Over => return ExitCode::from(EXIT_FAILED),
        };
        match wish {
            Wish::Quit => return ExitCode::SUCCESS,
            Wish::Suspend if terminal.suspend().is_err() => return ExitCode::from(EXIT_FAILED),
            _ => {}
        }
    }
}

/// Types keys one after another; what the weightiest of them asks for.
fn type_all(state: &mut State, keys: impl IntoIterator<Item = keys::Key>) -> Wish {
    let mut weightiest = Wish::Nothing;
    for key in keys {
        weightiest = weightiest.max(state.type_key(key));
    }
    weightiest
}

/// All that makes the terminal show `lines`, in one piece (synchronized output where the terminal has it).
fn screen_text(lines: &[Line], marks: Marks, is_new: bool) -> String {
    let mut out = String::from("\x1b[?2026h");
    if is_new {
        out.push_str("\x1b[2J");
    }
    for (index, line) in lines.iter().enumerate() {
        // A line is erased before it is written: erasing behind the last column would take that column with it.
        let _ = write!(out, "\x1b[{};1H\x1b[2K{}", index + 1, ansi(line, marks));
    }
    out.push_str("\x1b[?2026l");
    out
}

fn table_text(lines: &[Line], marks: Marks) -> String {
    let mut out = String::new();
    for line in lines {
        let _ = writeln!(out, "{}", ansi(line, marks).trim_end());
    }
    out
}

/// JSON that a terminal may be shown: what is not ASCII is escaped, as RFC 8259 §7 allows within strings; there is none
/// elsewhere.
fn json_text(value: &Value) -> String {
    let mut out = String::new();
    for char in format!("{value:#}\n").chars() {
        match char {
            '\n' | ' '..='~' => out.push(char),
            _ => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out
}

fn variable(name: &str) -> String {
    env::var_os(name)
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Colours, unless they are not wanted (<https://no-color.org>).
fn marks() -> Marks {
    match variable("NO_COLOR").is_empty() {
        true => Marks::Colour,
        false => Marks::Weight,
    }
}

/// By the locale (POSIX.1-2024, XBD 8.2: the first of the three that is set and not empty counts).
fn glyphs() -> Glyphs {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .map(variable)
        .into_iter()
        .find(|text| !text.is_empty())
        .unwrap_or_default()
        .to_ascii_lowercase();
    match locale.contains("utf-8") || locale.contains("utf8") {
        true => Glyphs::UNICODE,
        false => Glyphs::ASCII,
    }
}
