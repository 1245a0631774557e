//! How clients come back.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::cast::Back;
use crate::failure::Failure;

/// How clients come back: exponential backoff with jitter.
#[derive(Debug, Clone, Copy, Args, Serialize, Deserialize)]
pub struct BackArguments {
    /// Milliseconds before the first attempt to come back; they double with each further one
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 1_000,
        help_heading = "Coming back"
    )]
    backoff: u64,
    /// Milliseconds that the delay grows to
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 30_000,
        help_heading = "Coming back"
    )]
    backoff_max: u64,
    /// The share of each delay that is random, 0 to 1: 1 is full jitter
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 1.0,
        help_heading = "Coming back"
    )]
    jitter: f64,
}

impl BackArguments {
    /// The policy.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn back(self, advice: bool, next_target: bool) -> Result<Back, Failure> {
        if !(0.0..=1.0).contains(&self.jitter)
            || self.backoff > self.backoff_max
            || self.backoff_max > 3_600_000
        {
            return Err(Failure::Usage(
                "--jitter is 0 to 1; --backoff is at most --backoff-max, and that an hour".into(),
            ));
        }
        Ok(Back {
            first_ns: self.backoff * 1_000_000,
            max_ns: self.backoff_max * 1_000_000,
            jitter: self.jitter,
            advice,
            next_target,
        })
    }
}
