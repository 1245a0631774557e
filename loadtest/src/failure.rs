//! Why a run ends badly, and the exit code that tells a script which kind it was.

use std::fmt;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::interrupt;

/// Why a run ended badly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The command cannot be carried out: wrong values, a target that cannot be reached or refuses. Exit code 2.
    Usage(String),
    /// Something was lost or corrupted, a connection broke, an expectation was not met. Exit code 1.
    Broken(String),
}

impl Failure {
    /// The process's exit code; 130 when somebody interrupted the run.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            _ if interrupt::is_wanted() => ExitCode::from(interrupt::EXIT_CODE),
            Self::Usage(_) => ExitCode::from(2),
            Self::Broken(_) => ExitCode::from(1),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(text) | Self::Broken(text)) = self;
        formatter.write_str(text)
    }
}
