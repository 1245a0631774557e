//! Log lines: for people on a terminal, JSON otherwise; always on standard error.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt;

use crate::config::{Log, LogFormat};

/// Sets logging up for the whole process. Only the first call of a process has an effect.
pub(super) fn start(log: Log) {
    let terminal = io::stderr().is_terminal();
    let level = log.level.map_or(LevelFilter::OFF, LevelFilter::from_level);
    let lines = fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(terminal);
    // A second subscriber is refused; the first goes on, which is what is wanted.
    let _ = if is_human(log.format, terminal) {
        tracing::subscriber::set_global_default(lines.with_target(false).finish())
    } else {
        tracing::subscriber::set_global_default(lines.json().flatten_event(true).finish())
    };
}

fn is_human(format: LogFormat, terminal: bool) -> bool {
    match format {
        LogFormat::Human => true,
        LogFormat::Json => false,
        LogFormat::Auto => terminal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_human_on_a_terminal_only() {
        assert!(is_human(LogFormat::Auto, true));
        assert!(!is_human(LogFormat::Auto, false));
        assert!(is_human(LogFormat::Human, false));
        assert!(!is_human(LogFormat::Json, true));
    }
}
