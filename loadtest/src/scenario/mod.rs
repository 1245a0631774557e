//! The scenarios: what is asked of a server, and what is reported of it.

mod churn;
mod echo;
mod fan_out;
mod idle;
mod slow;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::{Args, Subcommand};
use rustix::process::{Resource, getrlimit};
use throng::protocol::client::{encode_key, encode_request, parse_response};
use throng::runtime::ring::{Descriptors, Options};

use crate::client::{Behaviour, Crew, Ending, Plan};
use crate::clock::{now_ns, process_cpu_ns};
use crate::failure::Failure;
use crate::report::{Report, check_expectations};
use crate::server::{self, Beside, Sample, Servers, Thread, Usage};
use crate::target::{Target, sources};

/// For how long nothing may happen before a wait is given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// For how long the last deliveries may be on their way after the last publish, when none comes any more.
const GRACE: Duration = Duration::from_secs(2);
/// From this share of its processors on, a side counts as busy all the time.
const BUSY_SHARE: f64 = 0.93;
/// From this share of the time spent waiting for a processor on, the report says so.
const WAIT_SHARE: f64 = 0.05;
/// Descriptors that a worker's ring leaves to the rest of the process.
const DESCRIPTOR_RESERVE: u64 = 64;

/// What is asked of the server.
#[derive(Debug, Subcommand)]
pub enum Scenario {
    /// Connect, join, and stay: handshakes, and memory per connection between steps
    Idle(idle::Arguments),
    /// Each connection alone in its room, so many messages in flight
    Echo(echo::Arguments),
    /// Publishers at a fixed rate to rooms of many members
    Fanout(fan_out::Arguments),
    /// Connect, upgrade, end, and again
    Churn(churn::Arguments),
    /// Fan-out to readers, alone and then beside members that never read
    Slow(slow::Arguments),
}

/// What every scenario is told.
#[derive(Debug, Args)]
pub struct Common {
    /// The server, as ws://HOST:PORT
    #[arg(long, value_name = "URL")]
    target: String,
    /// Path of a room [default: /rooms/{room}, or the target's own path]
    #[arg(long, value_name = "TEMPLATE")]
    path: Option<String>,
    /// Let the load leave this machine
    #[arg(long)]
    allow_remote: bool,
    /// Client threads [default: as many as the connections' descriptors need]
    #[arg(long, value_name = "N")]
    threads: Option<u32>,
    /// Processor that all client threads run on
    #[arg(long, value_name = "N")]
    core: Option<usize>,
    /// Source addresses, as 127.0.0.1-127.0.0.64 [default on loopback: as many as the ports need]
    #[arg(long, value_name = "FIRST-LAST")]
    source: Option<String>,
    #[command(flatten)]
    beside: Box<Beside>,
    /// The servers that `beside` names, once they were looked at.
    #[arg(skip)]
    servers: OnceLock<Servers>,
    /// Connects a second; 0: as fast as they are taken
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    connect_rate: f64,
    /// Connections being made at a time
    #[arg(long, value_name = "N", default_value_t = 256)]
    connecting: u32,
    /// Seconds after which the run is given up
    #[arg(long, value_name = "S", default_value_t = 600)]
    time_limit: u32,
    /// An expectation on a figure, as lost=0 or latency_p99_ms<5; exit code 1 when it is not met. Repeatable
    #[arg(long, value_name = "NAME<VALUE")]
    expect: Vec<String>,
    /// Write the report here, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs a scenario and reports it.
pub fn run(scenario: &Scenario) -> Result<(), Failure> {
    let (common, mut report) = measure(scenario)?;
    let expected = report.expect(&common.expect);
    print!("{}", report.text());
    if let Some(path) = &common.json {
        report.write_json(path)?;
    }
    expected?;
    report.verdict()
}

fn measure(scenario: &Scenario) -> Result<(&Common, Report), Failure> {
    Ok(match scenario {
        Scenario::Idle(arguments) => (&arguments.common, idle::run(arguments)?),
        Scenario::Echo(arguments) => (&arguments.common, echo::run(arguments)?),
        Scenario::Fanout(arguments) => (&arguments.common, fan_out::run(arguments)?),
        Scenario::Churn(arguments) => (&arguments.common, churn::run(arguments)?),
        Scenario::Slow(arguments) => (&arguments.common, slow::run(arguments)?),
    })
}

impl Common {
    /// Checks what can be checked before a connection is made, tries one connection, and divides `connection_count`
    /// between the threads, `alive_max` of them open at a time.
    ///
    /// Returns the plan and each worker's share of `connection_count`.
    fn prepare(
        &self,
        connection_count: u32,
        alive_max: u32,
        ending: Ending,
    ) -> Result<(Arc<Plan>, Vec<u32>), Failure> {
        check_expectations(&self.expect)?;
        if connection_count == 0 || alive_max == 0 {
            return Err(Failure::Usage(
                "there must be at least one connection".into(),
            ));
        }
        if !(0.0..=1e7).contains(&self.connect_rate) || self.connecting == 0 {
            return Err(Failure::Usage(
                "--connect-rate is 0 to 10000000, --connecting at least 1".into(),
            ));
        }
        let target = Target::new(&self.target, self.path.as_deref(), self.allow_remote)?;
        let servers = Servers::open(&self.beside)?;
        servers.sample()?;
        let _ = self.servers.set(servers); // a scenario prepares once
        let alive_max = alive_max.min(connection_count);
        let file_limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let ring_max = u32::try_from(file_limit.saturating_sub(DESCRIPTOR_RESERVE))
            .unwrap_or(u32::MAX)
            .clamp(1, 1 << 23);
        let thread_count = self
            .threads
            .unwrap_or_else(|| alive_max.div_ceil(ring_max))
            .max(1);
        if alive_max.div_ceil(thread_count) > ring_max {
            return Err(Failure::Usage(format!(
                "{alive_max} connections on {thread_count} threads are more than the open-file limit of {file_limit} allows \
                 a thread; use --threads {} or more, or raise `ulimit -n`",
                alive_max.div_ceil(ring_max)
            )));
        }
        if thread_count > 1024 || thread_count > connection_count {
            return Err(Failure::Usage(format!(
                "--threads {thread_count}: at most 1024, and at most one a connection"
            )));
        }
        let sources = sources(self.source.as_deref(), &target, alive_max, connection_count)?;
        let alive_max = alive_max.div_ceil(thread_count);
        let plan = Plan {
            sources,
            connecting_max: self.connecting.div_ceil(thread_count),
            alive_max,
            connects_per_s: self.connect_rate / f64::from(thread_count),
            ending,
            core: self.core,
            ring: Options {
                descriptors: Descriptors::Auto,
                socket_count_max: alive_max + 16,
                submission_entries: 1024,
                completion_entries: (alive_max * 4).next_power_of_two().clamp(4096, 65_536),
                receive_buffer_bytes: 2048,
                receive_buffer_count: 2048,
            },
            seed: now_ns() ^ u64::from(std::process::id()) << 40,
            target,
        };
        probe(&plan.target)?;
        let shares = (0..thread_count)
            .map(|worker| {
                let edge = |worker: u32| {
                    (u64::from(connection_count) * u64::from(worker) / u64::from(thread_count))
                        as u32
                };
                edge(worker + 1) - edge(worker)
            })
            .collect();
        Ok((Arc::new(plan), shares))
    }

    fn start<B: Behaviour + Send + 'static>(
        &self,
        plan: &Arc<Plan>,
        behaviours: Vec<(u32, B)>,
    ) -> Result<Crew<B>, Failure> {
        Crew::start(
            plan,
            behaviours,
            Duration::from_secs(u64::from(self.time_limit)),
        )
    }

    fn meter(&self) -> Result<Meter, Failure> {
        let servers = self.servers.get().filter(|servers| !servers.is_empty());
        let server = servers.map(Servers::sample).transpose()?;
        let threads = server::threads(std::process::id());
        Ok(Meter {
            client_cpu_ns: process_cpu_ns(),
            at_ns: now_ns(),
            threads,
            server,
        })
    }

    /// Processors that the client may use at once.
    fn client_core_count(&self, thread_count: usize) -> f64 {
        if self.core.is_some() {
            1.0
        } else {
            thread_count as f64
        }
    }
}

/// Both sides at one moment.
struct Meter {
    client_cpu_ns: u64,
    at_ns: u64,
    threads: Vec<Thread>,
    server: Option<Sample>,
}

impl Meter {
    /// Reports what both sides used from `self` to `after`, for `count` things named `per`.
    fn report(
        &self,
        after: &Self,
        per: &str,
        count: u64,
        client_core_count: f64,
        report: &mut Report,
    ) {
        let seconds = (after.at_ns - self.at_ns) as f64 / 1e9;
        let client_cpu_us = (after.client_cpu_ns - self.client_cpu_ns) as f64 / 1e3;
        if let (Some(before), Some(after)) = (&self.server, &after.server) {
            server::report_usage(before, after, per, count, report);
        }
        if count > 0 {
            report.figure(
                &format!("client_cpu_us_per_{per}"),
                client_cpu_us / count as f64,
            );
        }
        let client_share = client_cpu_us / 1e6 / seconds.max(1e-9) / client_core_count;
        report.figure("client_cpu_share", client_share);
        let (_, client_wait) = server::busiest(&self.threads, &after.threads, seconds);
        report.figure("client_waited_share", client_wait);
        let (server_share, server_wait) = match (&self.server, &after.server) {
            (Some(before), Some(after)) => {
                let usage = Usage::between(before, after);
                (usage.busiest_share, usage.wait_share)
            }
            _ => (0.0, 0.0),
        };
        if server_share >= BUSY_SHARE && server_share >= client_share {
            report.note("a server thread was busy all the time: the rate is the server's limit");
        } else if client_share >= BUSY_SHARE {
            report.note("the client was the limit: rates are what it can ask, latencies include its own delay");
        }
        let wait = client_wait.max(server_wait);
        if wait >= WAIT_SHARE {
            report.note(format!(
                "others had the processors for {:.0}% of the time in which client or server could have run: \
                 rates and latencies are lower and higher than on a machine of their own",
                wait * 100.0
            ));
        }
    }
}

/// Waits until `count` connections are upgraded or have failed, or nothing goes on any more.
fn wait_for_upgrades<B: Behaviour + Send + 'static>(
    crew: &Crew<B>,
    count: u64,
    report: &mut Report,
) {
    let seen = |crew: &Crew<B>| {
        crew.sum(|progress| &progress.upgraded) + crew.sum(|progress| &progress.failed)
    };
    if !crew.wait(PATIENCE, |crew| seen(crew) >= count, seen) {
        report.fault(format!(
            "only {} of {count} connections were answered",
            seen(crew)
        ));
    }
}

/// Makes one connection the plain way, so that what is wrong with the target is said at once.
fn probe(target: &Target) -> Result<(), Failure> {
    let fail = |what: String| Failure::Usage(format!("{}: {what}", target.address));
    let timeout = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&target.address, timeout).map_err(|error| {
        fail(format!(
            "cannot connect: {error}; is the server running there?"
        ))
    })?;
    let key = encode_key([now_ns(), u64::from(std::process::id())]);
    let mut request = Vec::new();
    encode_request(&mut request, &target.host, &target.path("probe"), &key);
    let mut answer = Vec::new();
    let exchange = (|| {
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(&request)?;
        let mut chunk = [0; 4096];
        loop {
            let read = stream.read(&mut chunk)?;
            answer.extend_from_slice(&chunk[..read]);
            match parse_response(&answer, &key) {
                Ok(None) if read > 0 => {}
                Ok(None) => {
                    return Ok(Err(format!(
                        "the stream ended after {} bytes of an answer",
                        answer.len()
                    )));
                }
                Ok(Some(_)) => return Ok(Ok(())),
                Err(error) => {
                    return Ok(Err(format!(
                        "the upgrade of {} was refused: {error}",
                        target.path("probe")
                    )));
                }
            }
        }
    })();
    match exchange {
        Ok(verdict) => verdict.map_err(fail),
        Err(error) => {
            let error: std::io::Error = error;
            Err(fail(format!("no answer to the upgrade: {error}")))
        }
    }
}

#[cfg(test)]
mod tests;
