//! What every scenario is told, and what can be checked of it before a connection is made.

use std::fs::{File, remove_file};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustix::process::{Resource, getrlimit};
use throng::runtime::ring::{Descriptors, Options};

use super::stage::Extent;
use crate::client::Plan;
use crate::clock::now_ns;
use crate::dialect::Dialect;
use crate::failure::Failure;
use crate::report::check_expectations;
use crate::server::Beside;
use crate::target::{Target, sources};

/// Descriptors that a worker's ring leaves to the rest of the process.
const DESCRIPTOR_RESERVE: u64 = 64;
/// Files that the kernel takes in a ring's table at most (`IORING_MAX_FIXED_FILES`).
const RING_FILE_COUNT_MAX: u64 = 1 << 20;
/// Threads at most.
const THREAD_COUNT_MAX: u32 = 1024;

/// What every scenario is told.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// A server, as ws://HOST:PORT. Repeatable: the members of each room are spread over all of them
    #[arg(long, value_name = "URL", required = true)]
    pub target: Vec<String>,
    /// Path of a room; {room} and {member} are replaced [default: /rooms/{room}, or the target's own path]
    #[arg(long, value_name = "TEMPLATE", help_heading = "Servers")]
    pub path: Option<String>,
    /// One more header of each upgrade request, as 'Name: value'. Repeatable
    #[arg(long, value_name = "LINE", help_heading = "Servers")]
    pub header: Vec<String>,
    /// How the servers are spoken to
    #[arg(long, value_enum, default_value_t, help_heading = "Servers")]
    pub dialect: Dialect,
    /// Let the load leave this machine
    #[arg(long, help_heading = "Servers")]
    pub allow_remote: bool,
    #[command(flatten)]
    pub beside: Beside,
    #[command(flatten)]
    pub generator: Generator,
    /// Connects a second; 0: as fast as they are taken
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0.0,
        help_heading = "Connections"
    )]
    pub connect_rate: f64,
    /// Connections being made at a time
    #[arg(
        long,
        value_name = "N",
        default_value_t = 256,
        help_heading = "Connections"
    )]
    pub connecting: u32,
    /// Seconds for a connect and the answer to its upgrade
    #[arg(
        long,
        value_name = "S",
        default_value_t = 30.0,
        help_heading = "Connections"
    )]
    pub handshake_timeout: f64,
    /// Seconds without any progress after which a wait is given up
    #[arg(long, value_name = "S", default_value_t = 5.0, help_heading = "Run")]
    pub patience: f64,
    /// Seconds after which the run is given up
    #[arg(long, value_name = "S", default_value_t = 600, help_heading = "Run")]
    pub time_limit: u32,
    /// Where random choices come from [default: the clock]
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub seed: Option<u64>,
    /// An expectation on a figure, as lost=0 or latency_p99_ms<5; exit code 1 when it is not met. Repeatable
    #[arg(long, value_name = "NAME<VALUE", help_heading = "Report")]
    pub expect: Vec<String>,
    /// Write the report here, too
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub json: Option<PathBuf>,
    /// Write the report as one page with plots
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub html: Option<PathBuf>,
    /// Write the latency of each second as an HDR histogram log
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub hdr: Option<PathBuf>,
    /// Show no progress
    #[arg(long, short, help_heading = "Report")]
    pub quiet: bool,
}

/// How this generator process does its work.
#[derive(Debug, Clone, Args)]
pub struct Generator {
    /// Client threads [default: as many as the connections' descriptors need]
    #[arg(long, value_name = "N", help_heading = "Generator")]
    pub threads: Option<u32>,
    /// Processors that the client threads are pinned to in turn, as 0 or 2,3
    #[arg(
        long,
        value_name = "N,N,…",
        value_delimiter = ',',
        help_heading = "Generator"
    )]
    pub core: Vec<usize>,
    /// Source addresses, as 127.0.0.1-127.0.0.64 [default on loopback: as many as the ports need]
    #[arg(long, value_name = "FIRST-LAST", help_heading = "Generator")]
    pub source: Option<String>,
}

impl Common {
    /// The targets.
    ///
    /// # Errors
    /// What is wrong with one.
    pub fn targets(&self) -> Result<Vec<Target>, Failure> {
        let target = |url: &String| {
            Target::new(url, self.path.as_deref(), self.allow_remote)?.with_headers(&self.header)
        };
        self.target.iter().map(target).collect()
    }

    /// Checks that the report's files can be written, before a run is spent on them.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn check_files(&self) -> Result<(), Failure> {
        let files = [
            ("--json", &self.json),
            ("--html", &self.html),
            ("--hdr", &self.hdr),
        ];
        let given = files
            .into_iter()
            .filter_map(|(flag, path)| Some((flag, path.as_ref()?)));
        for (flag, path) in given {
            // What is there stays until the report takes its place.
            let is_new = !path.exists();
            let mut options = File::options();
            let opened = options.append(true).create(true).open(path);
            opened
                .and_then(|_| if is_new { remove_file(path) } else { Ok(()) })
                .map_err(|error| Failure::Usage(format!("{flag} {}: {error}", path.display())))?;
        }
        Ok(())
    }

    /// How long a wait goes on without any progress.
    pub fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.patience)
    }

    /// How long one handshake is waited for when there is nothing else to see.
    pub fn handshake_patience(&self) -> Duration {
        Duration::from_secs_f64(self.patience.min(self.handshake_timeout))
    }

    /// Where random choices come from.
    pub fn seed(&self) -> u64 {
        self.seed
            .unwrap_or_else(|| now_ns() ^ u64::from(std::process::id()) << 40)
    }

    /// Checks what can be checked before a connection is made. Returns the plan and the number of threads.
    ///
    /// # Errors
    /// What is wrong, and what mends it.
    pub fn prepare(&self, extent: Extent) -> Result<(Arc<Plan>, u32), Failure> {
        check_expectations(&self.expect)?;
        if self.time_limit == 0 || self.generator.threads == Some(0) {
            return Err(Failure::Usage(
                "--time-limit is at least 1 second, --threads at least 1".into(),
            ));
        }
        if extent.members == 0 || extent.alive_max == 0 {
            return Err(Failure::Usage(
                "there must be at least one connection".into(),
            ));
        }
        if !(0.0..=1e7).contains(&self.connect_rate) || self.connecting == 0 {
            return Err(Failure::Usage(
                "--connect-rate is 0 to 10000000, --connecting at least 1".into(),
            ));
        }
        if !(0.1..=3_600.0).contains(&self.patience)
            || !(0.1..=3_600.0).contains(&self.handshake_timeout)
        {
            return Err(Failure::Usage(
                "--patience and --handshake-timeout are 0.1 to 3600 seconds".into(),
            ));
        }
        let targets = self.targets()?;
        let alive_max = extent.alive_max.min(extent.members);
        let thread_count = self.generator.thread_count(alive_max, extent.members)?;
        let target_count = targets.len() as u32;
        let sources = sources(
            self.generator.source.as_deref(),
            &targets,
            alive_max.div_ceil(target_count),
            extent.members.div_ceil(target_count),
        )?;
        let descriptors = descriptors(alive_max, file_limit());
        let alive_max = alive_max.div_ceil(thread_count);
        let plan = Plan {
            targets,
            sources,
            connecting_max: self.connecting.div_ceil(thread_count),
            alive_max,
            connects_per_s: self.connect_rate / f64::from(thread_count),
            handshake_timeout: Duration::from_secs_f64(self.handshake_timeout),
            ending: extent.ending,
            cores: self.generator.core.clone(),
            ring: Options {
                descriptors,
                socket_count_max: alive_max + 16,
                submission_entries: 1024,
                completion_entries: (alive_max * 4).next_power_of_two().clamp(4096, 65_536),
                receive_buffer_bytes: 2048,
                receive_buffer_count: 2048,
            },
            seed: self.seed(),
        };
        Ok((Arc::new(plan), thread_count))
    }

    /// Processors that the client may use at once.
    pub fn client_core_count(&self, thread_count: u32) -> f64 {
        let mut cores = self.generator.core.clone();
        cores.sort_unstable();
        cores.dedup();
        match cores.len() as u32 {
            0 => f64::from(thread_count),
            count => f64::from(count.min(thread_count)),
        }
    }
}

/// The process's open-file limit in force.
fn file_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Where `alive_max` connections at a time live: beyond the process's open-file limit in the rings' own tables, whether the
/// kernel frees what is closed there at once or not.
fn descriptors(alive_max: u32, file_limit: u64) -> Descriptors {
    if u64::from(alive_max) + DESCRIPTOR_RESERVE > file_limit {
        Descriptors::Direct
    } else {
        Descriptors::Auto
    }
}

impl Generator {
    /// Threads for `alive_max` connections at a time.
    fn thread_count(&self, alive_max: u32, member_count: u32) -> Result<u32, Failure> {
        let file_limit = file_limit();
        let ring_max = u32::try_from(
            file_limit
                .saturating_sub(DESCRIPTOR_RESERVE)
                .clamp(1, RING_FILE_COUNT_MAX - DESCRIPTOR_RESERVE),
        )
        .unwrap_or(u32::MAX);
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
        if thread_count > THREAD_COUNT_MAX || thread_count > member_count {
            return Err(Failure::Usage(format!(
                "--threads {thread_count}: at most {THREAD_COUNT_MAX}, and at most one a connection"
            )));
        }
        Ok(thread_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_beyond_the_open_file_limit_live_in_the_rings_tables() {
        assert_eq!(descriptors(19_936, 20_000), Descriptors::Auto);
        assert_eq!(descriptors(19_937, 20_000), Descriptors::Direct);
    }
}
