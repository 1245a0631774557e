//! The bare loops that the server's promises are ratios to: what the kernel takes for the same work, and no more.
//!
//! They speak just enough WebSocket to be driven by the same client in the same run.

mod door;
pub mod epoll;
mod fan_out;
pub mod planted;
mod redis;
mod resp;
pub mod wire;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::clock::now_ns;
use crate::failure::Failure;
use crate::processor;
use crate::stamp::STAMP_BYTES_MIN;
use epoll::EpollServer;
use fan_out::Way;

/// Which loop.
#[derive(Debug, Subcommand)]
pub enum Floor {
    /// epoll, one recv and one send a message: each frame goes back to its sender.
    EpollEcho(FloorArguments),
    /// epoll, accept4, TCP_NODELAY, read, the upgrade's answer with its SHA-1, write; then waits for the end.
    Accept(FloorArguments),
    /// The same frame to all members, by write(), so many times a second.
    WriteFanout(FanOutArguments),
    /// The same frame to all members, by io_uring SENDs on registered files, 256 with each enter.
    UringFanout(FanOutArguments),
    /// Rooms by path, and whatever goes wrong as it is told to: delays, stalls, lost, doubled, late, spoiled and
    /// strayed deliveries, limits, closes, garbage. Says on exit what was planted, to compare a load's report with
    Planted(Box<planted::Arguments>),
    /// Not a server, but a bare pair of Redis clients, a publisher and subscribers: what a message takes from one to the other,
    /// or how many a second a pipelined publisher gets through
    Redis(redis::Arguments),
}

/// What every loop is told.
#[derive(Debug, Args)]
pub struct FloorArguments {
    /// Address and port to listen on
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Processor to run on
    #[arg(long, value_name = "N")]
    core: Option<usize>,
    /// Seconds after which it ends by itself
    #[arg(long, value_name = "S", default_value_t = 600)]
    duration: u32,
}

/// What a fan-out loop is told.
#[derive(Debug, Args)]
pub struct FanOutArguments {
    #[command(flatten)]
    floor: FloorArguments,
    /// Members to wait for
    #[arg(long, value_name = "M")]
    members: usize,
    /// Frames a second to each
    #[arg(long, value_name = "N", default_value_t = 20.0)]
    rate: f64,
    /// Bytes of payload
    #[arg(long = "size", value_name = "B", default_value_t = 128)]
    bytes: u16,
}

/// Runs the loop until its time is over.
pub fn run(floor: &Floor) -> Result<(), Failure> {
    match floor {
        Floor::EpollEcho(arguments) | Floor::Accept(arguments) => {
            let (mut server, deadline_ns) = start(arguments)?;
            while now_ns() < deadline_ns {
                server
                    .turn(Some(Duration::from_millis(100)))
                    .map_err(broken)?;
            }
            Ok(())
        }
        Floor::WriteFanout(arguments) => run_fan_out(Way::Write, arguments),
        Floor::UringFanout(arguments) => run_fan_out(Way::Uring, arguments),
        Floor::Planted(arguments) => planted::run(arguments),
        Floor::Redis(arguments) => redis::run(arguments),
    }
}

fn run_fan_out(way: Way, arguments: &FanOutArguments) -> Result<(), Failure> {
    if usize::from(arguments.bytes) < STAMP_BYTES_MIN {
        return Err(Failure::Usage(format!(
            "--size must be at least {STAMP_BYTES_MIN}: the stamp needs them"
        )));
    }
    if !(0.001..=1e6).contains(&arguments.rate) {
        return Err(Failure::Usage(
            "--rate must be between 0.001 and 1000000".into(),
        ));
    }
    if arguments.members == 0 {
        return Err(Failure::Usage("--members must be at least 1".into()));
    }
    let (mut server, deadline_ns) = start(&arguments.floor)?;
    fan_out::serve(way, arguments, &mut server, deadline_ns).map_err(broken)
}

fn start(arguments: &FloorArguments) -> Result<(EpollServer, u64), Failure> {
    if let Some(core) = arguments.core {
        processor::pin(core)?;
    }
    let server = EpollServer::new(arguments.listen).map_err(|error| {
        Failure::Usage(format!("cannot listen on {}: {error}", arguments.listen))
    })?;
    println!("listening on {}", server.address().map_err(broken)?);
    Ok((
        server,
        now_ns() + u64::from(arguments.duration) * 1_000_000_000,
    ))
}

#[allow(clippy::needless_pass_by_value)] // `map_err` hands it over
fn broken(error: io::Error) -> Failure {
    Failure::Broken(format!("the loop ended: {error}"))
}

#[cfg(test)]
mod tests;
