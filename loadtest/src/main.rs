//! `throng-load`: the load generator for WebSocket room servers, and the bare loops to compare them with.
#![forbid(unsafe_code)]

mod client;
mod clock;
mod delivery;
mod failure;
mod floor;
mod processor;
mod report;
mod scenario;
mod server;
mod stamp;
mod target;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Loads a WebSocket room server, checks every delivery, and says what it cost.
#[derive(Debug, Parser)]
#[command(name = "throng-load", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a bare loop to compare a server with
    #[command(subcommand)]
    Floor(floor::Floor),
    #[command(flatten)]
    Scenario(scenario::Scenario),
}

fn main() -> ExitCode {
    let result = match CommandLine::parse().command {
        Command::Floor(floor) => floor::run(&floor),
        Command::Scenario(scenario) => scenario::run(&scenario),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("throng-load: {failure}");
            failure.exit_code()
        }
    }
}
