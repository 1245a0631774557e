//! A server whose behaviour is known: it delays, stalls, loses, duplicates, reorders, corrupts, misroutes and refuses
//! as it was told to, counts exactly what it did, and says so. A load generator's report can be compared with that.
//!
//! Rule of this room: what is due when, and what goes wrong, is decided without sockets and clocks (`schedule`,
//! `faults`); `server` carries it out on one thread.

mod connection;
mod distribution;
mod faults;
mod plants;
mod schedule;
mod server;
mod tally;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};

pub use plants::Plants;
pub use server::Server;

use super::FloorArguments;
use crate::clock::now_ns;
use crate::failure::Failure;
use crate::processor;

/// What the planted server is told.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    floor: FloorArguments,
    #[command(flatten)]
    plants: Plants,
}

/// Serves until its time is over or a signal comes, and prints what was planted.
///
/// # Errors
/// When the plants are none, the address is taken, or the kernel gives out.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (floor, plants) = (&arguments.floor, &arguments.plants);
    plants.check()?;
    if let Some(core) = floor.core {
        processor::pin(core)?;
    }
    let mut server = Server::new(floor.listen, plants.clone())
        .map_err(|error| Failure::Usage(format!("cannot listen on {}: {error}", floor.listen)))?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(super::broken)?;
    }
    println!("listening on {}", server.address().map_err(super::broken)?);
    let until_ns = now_ns() + u64::from(floor.duration) * 1_000_000_000;
    let served = server.run(&stop, until_ns);
    if let Some(delay) = &plants.delay {
        print!("drawn from   {delay}:");
        for (label, q) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)] {
            print!(" {label} {:.3} ms", delay.quantile(q) as f64 / 1e6);
        }
        println!(" max {:.3} ms", delay.quantile(1.0) as f64 / 1e6);
    }
    print!("{}", server.planted().read().text());
    served.map_err(super::broken)
}

#[cfg(test)]
pub use {distribution::Distribution, tally::Tally};

#[cfg(test)]
pub mod running;
#[cfg(test)]
mod tests;
