//! The scenarios: what is asked of a server, and what is reported of it.

mod back;
mod capacity;
mod cast;
mod churn;
mod common;
mod drain;
mod drift;
mod echo;
mod fan_out;
mod idle;
mod limit;
mod members;
mod objective;
mod part;
mod probe;
mod search;
mod slow;
mod soak;
mod stage;
mod storm;
mod traffic;

use clap::Subcommand;
use serde::Deserialize;

pub use self::common::Generator;
pub use self::part::Part;

use self::common::Common;
use self::part::AnyPlay;
use self::stage::perform;
use crate::failure::Failure;
use crate::report::{Report, print};

/// What is asked of the server.
#[derive(Debug, Clone, Subcommand, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scenario {
    /// Connect, join, and stay: handshakes, memory per connection between steps, one message to all
    Idle(idle::Arguments),
    /// Each connection alone in its room, so many messages in flight
    Echo(echo::Arguments),
    /// Publishers at a fixed rate to rooms of many members
    Fanout(fan_out::Arguments),
    /// Connect, upgrade, end, and again
    Churn(churn::Arguments),
    /// Drop everybody at once, and have them come back with backoff and jitter
    Storm(storm::Arguments),
    /// Fan-out to readers, alone and then beside members that never read or crawl
    Slow(slow::Arguments),
    /// Watch a server that is told to stop: close codes, spread, where its clients came back
    Drain(drain::Arguments),
    /// A mix for hours, which ends at the first drift of memory, latency or loss beyond a bound
    Soak(soak::Arguments),
}

/// What the tool can be told to do to a server.
#[derive(Debug, Clone, Subcommand)]
pub enum Task {
    #[command(flatten)]
    Scenario(Scenario),
    /// Raise one thing until an objective breaks: the highest value that held, and what gave out
    Capacity(capacity::Arguments),
}

impl Task {
    fn common(&self) -> &Common {
        match self {
            Self::Scenario(scenario) => scenario.any().common(),
            Self::Capacity(search) => search.common(),
        }
    }
}

/// Does it, and reports it.
pub fn run(task: &Task) -> Result<(), Failure> {
    let common = task.common();
    common.check_files()?;
    let mut report = measure(task)?;
    let expected = report.expect(&common.expect);
    // One file that cannot be written does not cost the others.
    let mut told = vec![print(&report.text())];
    if let Some(path) = &common.json {
        told.push(report.write_json(path));
    }
    if let Some(path) = &common.html {
        told.push(report.write_html(path));
    }
    if let Some(path) = &common.hdr {
        told.push(report.write_hdr(path));
    }
    told.into_iter().collect::<Result<(), Failure>>()?;
    report.end(expected)
}

impl Scenario {
    fn any(&self) -> &dyn AnyPlay {
        match self {
            Self::Idle(play) => play,
            Self::Echo(play) => play,
            Self::Fanout(play) => play,
            Self::Churn(play) => play,
            Self::Storm(play) => play,
            Self::Slow(play) => play,
            Self::Drain(play) => play,
            Self::Soak(play) => play,
        }
    }

    fn common_mut(&mut self) -> &mut Common {
        match self {
            Self::Idle(play) => &mut play.common,
            Self::Echo(play) => &mut play.common,
            Self::Fanout(play) => &mut play.common,
            Self::Churn(play) => &mut play.common,
            Self::Storm(play) => &mut play.common,
            Self::Slow(play) => &mut play.common,
            Self::Drain(play) => &mut play.common,
            Self::Soak(play) => &mut play.common,
        }
    }
}

/// Does it.
///
/// # Errors
/// When it cannot be carried out.
pub fn measure(task: &Task) -> Result<Report, Failure> {
    match task {
        Task::Scenario(Scenario::Idle(play)) => perform(play),
        Task::Scenario(Scenario::Echo(play)) => perform(play),
        Task::Scenario(Scenario::Fanout(play)) => perform(play),
        Task::Scenario(Scenario::Churn(play)) => perform(play),
        Task::Scenario(Scenario::Storm(play)) => perform(play),
        Task::Scenario(Scenario::Slow(play)) => perform(play),
        Task::Scenario(Scenario::Drain(play)) => perform(play),
        Task::Scenario(Scenario::Soak(play)) => play.run(),
        Task::Capacity(search) => search.run(),
    }
}

#[cfg(test)]
mod capacity_tests;
#[cfg(test)]
mod example_tests;
#[cfg(test)]
mod return_tests;
#[cfg(test)]
mod soak_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod truth_tests;
