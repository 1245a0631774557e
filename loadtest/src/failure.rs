//! Why a run ends badly, and the exit code that tells a script which kind it was.

use std::fmt;
use std::process::ExitCode;

use crate::interrupt;

/// Why a run ended badly.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The command cannot be carried out: wrong values, a target that cannot be reached or refuses. Exit code 2.
    Usage(String),
    /// Something was lost or corrupted, a connection broke, an expectation was not met. Exit code 1.
    Broken(String),
    /// The run was interrupted: what is reported is what was found so far. Exit code 130.
    Interrupted(String),
}

impl Failure {
    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Broken(_) => ExitCode::from(1),
            Self::Interrupted(_) => ExitCode::from(interrupt::EXIT_CODE),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(text) | Self::Broken(text) | Self::Interrupted(text)) = self;
        formatter.write_str(text)
    }
}
