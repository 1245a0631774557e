//! The scenarios: what is asked of a server, and what is reported of it.

mod back;
mod cast;
mod churn;
mod common;
mod drain;
mod echo;
mod fan_out;
mod idle;
mod members;
mod part;
mod probe;
mod slow;
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
}

/// Runs a scenario and reports it.
pub fn run(scenario: &Scenario) -> Result<(), Failure> {
    let common = scenario.any().common();
    common.check_files()?;
    let mut report = measure(scenario)?;
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
    expected.and(report.verdict())
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
        }
    }
}

/// Runs a scenario.
///
/// # Errors
/// When it cannot be carried out.
pub fn measure(scenario: &Scenario) -> Result<Report, Failure> {
    match scenario {
        Scenario::Idle(play) => perform(play),
        Scenario::Echo(play) => perform(play),
        Scenario::Fanout(play) => perform(play),
        Scenario::Churn(play) => perform(play),
        Scenario::Storm(play) => perform(play),
        Scenario::Slow(play) => perform(play),
        Scenario::Drain(play) => perform(play),
    }
}

#[cfg(test)]
mod return_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod truth_tests;
