//! `throng-load`: the load generator for WebSocket room servers, and the bare loops to compare them with.
#![forbid(unsafe_code)]

mod client;
mod clock;
mod delivery;
mod dialect;
mod failure;
mod file;
mod floor;
mod histogram;
mod interrupt;
mod meter;
mod monitor;
mod order;
#[cfg(test)]
mod page_tests;
mod processor;
mod progress;
mod random;
mod report;
mod scenario;
mod server;
mod size;
mod stamp;
mod target;
mod together;
mod words;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

/// What a generator allocates is small, short-lived, and its own thread's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXAMPLES: &str = "\
Examples, with a server on port 8080 whose process is $PID:
  throng-load idle --target ws://127.0.0.1:8080 --steps 4000,16000 --server-pid $PID
  throng-load echo --target ws://127.0.0.1:8080 --connections 500 --in-flight 16 --size 64
  throng-load fanout --target ws://127.0.0.1:8080 --members 5000 --rate 20 --expect lost=0 --expect 'latency_p99_ms<50'
  throng-load churn --target ws://127.0.0.1:8080 --connections 200000 --end close-frame --json churn.json
  throng-load slow --target ws://127.0.0.1:8080 --readers 1000 --stalled 1000 --size 8192

How much it can carry, and whether it stays as it is for hours:
  throng-load capacity --target ws://127.0.0.1:8080 --raise rate --from 10 --to 10000 --objective 'p99<50ms,cpu<90%' --server-pid $PID
  throng-load soak --target ws://127.0.0.1:8080 --duration 4h --churning 500 --stalled 20 --server-pid $PID
  throng-load run loadtest/examples/soak.toml --duration 8h

Several machines that load a server as one: the first directs and reports, each other one joins it:
  throng-load fanout --target ws://10.0.0.9:8080 --members 50000 --allow-remote --coordinator 10.0.0.1:7000 --generators 2 --secret-file key
  throng-load --join 10.0.0.1:7000 --allow-remote --secret-file key

A bare loop to compare with, and the same load on it:
  throng-load floor epoll-echo --listen 127.0.0.1:9001 --core 1 &
  throng-load echo --target ws://127.0.0.1:9001 --core 0 --server-pid $!

Ctrl-C (SIGINT, SIGTERM) ends a run early and reports what was found so far; a second one ends it at once.
Exit codes: 0 all is well; 1 something was lost, broke, or fell short of --expect; 2 the command cannot be carried out; \
130 the run was interrupted.";

/// Loads a WebSocket room server, checks every delivery, and says what it cost.
#[derive(Debug, Parser)]
#[command(name = "throng-load", version, after_help = EXAMPLES)]
#[command(arg_required_else_help = true, args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(flatten)]
    join: together::Join,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a bare loop to compare a server with
    #[command(subcommand)]
    Floor(floor::Floor),
    /// Run a scenario that is written down in a file
    Run(file::Arguments),
    /// Compare the reports of two runs, or of several a side
    Compare(report::compare::CompareArguments),
    #[command(flatten)]
    Task(Box<scenario::Task>),
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    let result = match (line.command, &line.join.join) {
        (Some(Command::Floor(floor)), _) => floor::run(&floor),
        (Some(Command::Compare(arguments)), _) => report::compare::run(&arguments),
        (Some(Command::Run(file)), _) => file.task().and_then(|task| scenario::run(&task)),
        (Some(Command::Task(task)), _) => scenario::run(&task),
        (None, Some(coordinator)) => together::join(coordinator, &line.join),
        (None, None) => CommandLine::command()
            .error(
                ErrorKind::MissingSubcommand,
                "a scenario is needed, or --join ADDR:PORT",
            )
            .exit(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("throng-load: {failure}");
            failure.exit_code()
        }
    }
}
