//! What every scenario is told, and what can be checked of it before a connection is made.

use std::fs::{File, remove_file};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::Args;
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};
use throng::runtime::ring::{Descriptors, Options};

use super::stage::Extent;
use crate::client::Plan;
use crate::clock::now_ns;
use crate::dialect::Dialect;
use crate::failure::Failure;
use crate::random::mix;
use crate::report::{Report, check_expectations};
use crate::server::Beside;
use crate::target::{Target, sources};
use crate::together::Coordination;

/// Descriptors that a worker's ring leaves to the rest of the process.
const DESCRIPTOR_RESERVE: u64 = 64;
/// Files that the kernel takes in a ring's table at most (`IORING_MAX_FIXED_FILES`).
const RING_FILE_COUNT_MAX: u64 = 1 << 20;
/// Below this share of --connect-rate the report says so.
const CONNECT_RATE_SHARE_MIN: f64 = 0.9;
/// With connections for fewer seconds than this at --connect-rate, the first and the last would tell more than the rate.
const CONNECT_RATE_SECONDS_MIN: f64 = 1.0;
/// Threads at most.
const THREAD_COUNT_MAX: u32 = 1024;

/// What every scenario is told. What is not serialized is the business of one generator, or of the director.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
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
    #[serde(skip)]
    pub allow_remote: bool,
    #[command(flatten)]
    #[serde(skip)]
    pub beside: Beside,
    #[command(flatten)]
    #[serde(skip)]
    pub generator: Generator,
    #[command(flatten)]
    #[serde(skip)]
    pub coordination: Coordination,
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
    /// Where they come from without --seed: drawn once a run.
    #[arg(skip)]
    #[serde(skip)]
    drawn_seed: OnceLock<u64>,
    /// An expectation on a figure, as lost=0 or latency_p99_ms<5; exit code 1 when it is not met. Repeatable
    #[arg(long, value_name = "NAME<VALUE", help_heading = "Report")]
    #[serde(skip)]
    pub expect: Vec<String>,
    /// Write the report here, too
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    #[serde(skip)]
    pub json: Option<PathBuf>,
    /// Write the report as one page with plots
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    #[serde(skip)]
    pub html: Option<PathBuf>,
    /// Write the latency of each second as an HDR histogram log
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    #[serde(skip)]
    pub hdr: Option<PathBuf>,
    /// Show no progress
    #[arg(long, short, help_heading = "Report")]
    #[serde(skip)]
    pub quiet: bool,
}

/// How this generator process does its work.
#[derive(Debug, Clone, Default, Args)]
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

    /// Where random choices come from: the same whenever it is asked for.
    pub fn seed(&self) -> u64 {
        let draw = || mix(now_ns() ^ u64::from(std::process::id()) << 40);
        self.seed
            .unwrap_or_else(|| *self.drawn_seed.get_or_init(draw))
    }

    /// Sets the seed to what was drawn, as another generator is told.
    #[cfg(test)]
    pub fn fix_seed(&mut self) {
        self.seed = Some(self.seed());
        self.drawn_seed = OnceLock::new();
    }

    /// Tells the rooms of runs apart that load the same servers at the same time: 24 bits of the seed, the same on all
    /// generators of a run.
    pub fn run_id(&self) -> String {
        format!("{:06x}", mix(self.seed()) >> 40)
    }

    /// Notes that connections were made more slowly than was asked for, where the report tells how fast and they were enough
    /// to tell.
    pub fn note_connect_rate(&self, report: &mut Report) {
        let asked_per_s = self.connect_rate;
        let count = report.get("handshakes").or_else(|| report.get("upgraded"));
        let (Some(count), Some(reached_per_s)) = (count, report.get("handshakes_per_s")) else {
            return;
        };
        let is_told = asked_per_s > 0.0 && count >= asked_per_s * CONNECT_RATE_SECONDS_MIN;
        if is_told && reached_per_s < asked_per_s * CONNECT_RATE_SHARE_MIN {
            report.note(format!(
                "--connect-rate {asked_per_s} was asked for, and {reached_per_s:.1} handshakes a second were reached"
            ));
        }
    }

    /// Checks what concerns the whole run.
    ///
    /// # Errors
    /// What is wrong, and what mends it.
    pub fn check(&self, extent: Extent) -> Result<(), Failure> {
        check_expectations(&self.expect)?;
        if !self.header.is_empty() && self.coordination.takes_anybody() {
            return Err(Failure::Usage(
                "--header with --coordinator needs a --secret-file: headers are told to every generator that joins, and without \
                 a secret any process of this machine can"
                    .into(),
            ));
        }
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
        Ok(())
    }

    /// Threads of this generator, if it is one of `generator_count` that share the connections.
    ///
    /// # Errors
    /// When there are too many.
    pub fn thread_count(&self, extent: Extent, generator_count: u32) -> Result<u32, Failure> {
        let alive_max = extent.alive_max.min(extent.members);
        self.generator
            .thread_count(alive_max.div_ceil(generator_count))
    }

    /// Checks what concerns the whole run, and whether this generator could have its part of it if all are alike.
    ///
    /// # Errors
    /// What is wrong, and what mends it.
    pub fn check_part(&self, extent: Extent) -> Result<(), Failure> {
        self.check(extent)?;
        let generator_count = self.coordination.generator_count();
        let thread_count = self.thread_count(extent, generator_count)?;
        let worker_count = thread_count.saturating_mul(generator_count);
        self.plan(extent, thread_count, worker_count).map(|_| ())
    }

    /// What this generator does with `thread_count` of the run's `worker_count` threads; checks whether it can.
    ///
    /// # Errors
    /// What is wrong, and what mends it.
    pub fn plan(
        &self,
        extent: Extent,
        thread_count: u32,
        worker_count: u32,
    ) -> Result<Arc<Plan>, Failure> {
        if worker_count > extent.members {
            return Err(Failure::Usage(format!(
                "{worker_count} threads for {} connections: at most one a connection (see --threads)",
                extent.members
            )));
        }
        let targets = self.targets()?;
        let alive_max = extent.alive_max.min(extent.members).div_ceil(worker_count);
        self.generator.check(alive_max, thread_count)?;
        let target_count = targets.len() as u32;
        let sources = sources(
            self.generator.source.as_deref(),
            &targets,
            (alive_max * thread_count).div_ceil(target_count),
            extent.members.div_ceil(target_count),
        )?;
        let descriptors = descriptors(alive_max * thread_count, file_limit());
        let plan = Plan {
            targets,
            sources,
            connecting_max: self.connecting.div_ceil(worker_count),
            alive_max,
            connects_per_s: self.connect_rate / f64::from(worker_count),
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
            run_id: self.run_id(),
            seed: self.seed(),
        };
        Ok(Arc::new(plan))
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
    fn thread_count(&self, alive_max: u32) -> Result<u32, Failure> {
        let thread_count = self
            .threads
            .unwrap_or_else(|| alive_max.div_ceil(ring_connections_max()))
            .max(1);
        if thread_count > THREAD_COUNT_MAX {
            return Err(Failure::Usage(format!(
                "--threads {thread_count}: at most {THREAD_COUNT_MAX}"
            )));
        }
        Ok(thread_count)
    }

    /// Refuses more connections of each thread than its ring may hold.
    fn check(&self, alive_max: u32, thread_count: u32) -> Result<(), Failure> {
        let ring_max = ring_connections_max();
        if alive_max > ring_max {
            return Err(Failure::Usage(format!(
                "{alive_max} connections on each of {thread_count} threads are more than the open-file limit of {} allows a \
                 thread; use --threads {} or more, or raise `ulimit -n`",
                file_limit(),
                (u64::from(alive_max) * u64::from(thread_count)).div_ceil(u64::from(ring_max))
            )));
        }
        Ok(())
    }
}

/// Connections that one ring may hold.
fn ring_connections_max() -> u32 {
    let file_count = file_limit()
        .saturating_sub(DESCRIPTOR_RESERVE)
        .clamp(1, RING_FILE_COUNT_MAX - DESCRIPTOR_RESERVE);
    u32::try_from(file_count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        common: Common,
    }

    #[test]
    fn each_thread_of_each_generator_does_its_part_of_what_is_asked_of_the_run() {
        let line = "load --target ws://127.0.0.1:9 --connect-rate 100 --connecting 10";
        let common = Line::parse_from(line.split_whitespace()).common;
        let extent = Extent::new(9_000);
        let plan = common.plan(extent, 3, 4).unwrap();
        assert!((plan.connects_per_s - 25.0).abs() < 1e-9);
        assert_eq!((plan.connecting_max, plan.alive_max), (3, 2_250));
        let alone = common.plan(extent, 4, 4).unwrap();
        assert_eq!(
            plan.sources, alone.sources,
            "ports of one machine are shared"
        );
        assert_eq!(common.thread_count(extent, 4).unwrap(), 1);

        let Err(Failure::Usage(text)) = common.plan(Extent::new(4), 1, 5) else {
            panic!("a thread has nothing to do")
        };
        assert!(text.contains("5 threads for 4 connections"), "{text}");
        let far_beyond = Extent::new(1 << 25);
        let Err(Failure::Usage(text)) = common.plan(far_beyond, 1, 2) else {
            panic!("no ring holds so many")
        };
        assert!(text.contains("--threads"), "{text}");
    }

    #[test]
    fn runs_have_rooms_of_their_own_and_all_generators_of_a_run_the_same() {
        let common = |line: &str| Line::parse_from(line.split_whitespace()).common;
        let line = "load --target ws://127.0.0.1:9";
        let (one, other) = (common(line), common(line));
        assert_ne!(one.run_id(), other.run_id());
        assert_eq!(one.seed(), one.seed());
        let plan = one.plan(Extent::new(4), 1, 2).unwrap();
        assert_eq!((plan.seed, &plan.run_id), (one.seed(), &one.run_id()));
        let told = common(&format!("{line} --seed {}", one.seed()));
        assert_eq!(told.run_id(), one.run_id());
        let id = common(&format!("{line} --seed 1")).run_id();
        assert!(id.len() == 6 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }

    #[test]
    fn a_connect_rate_that_is_not_reached_is_noted_with_both_figures() {
        let notes = |flags: &str, handshakes: u64, per_s: f64| {
            let line = format!("load --target ws://127.0.0.1:9 {flags}");
            let common = Line::parse_from(line.split_whitespace()).common;
            let mut report = Report::new("churn");
            report.count("handshakes", handshakes);
            report.figure("handshakes_per_s", per_s);
            common.note_connect_rate(&mut report);
            report.text()
        };
        let missed = "--connect-rate 500 was asked for, and 449.0 handshakes a second were reached";
        let text = notes("--connect-rate 500", 500, 449.0);
        assert!(text.contains(missed), "{text}");
        for (flags, handshakes, per_s) in [
            ("--connect-rate 500", 500, 451.0),
            ("--connect-rate 500", 499, 1.0),
            ("", 500, 1.0),
        ] {
            let text = notes(flags, handshakes, per_s);
            assert!(!text.contains("--connect-rate"), "{text}");
        }
    }

    #[test]
    fn connections_beyond_the_open_file_limit_live_in_the_rings_tables() {
        assert_eq!(descriptors(19_936, 20_000), Descriptors::Auto);
        assert_eq!(descriptors(19_937, 20_000), Descriptors::Direct);
    }
}
