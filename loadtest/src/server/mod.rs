//! The servers beside the client: what they use of processors, memory and descriptors, and what they tell of themselves.
//!
//! A server is a process of this machine, a metrics endpoint, or both: an endpoint on which a given process listens is that
//! process's, and counts once. Nothing here is exact about a moment that has passed: a process is read file by file.

mod endpoint;
mod exposition;
mod glance;
mod kernel;
mod metrics;
mod process;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use clap::Args;

pub use glance::Glance;
pub use process::{Thread, busiest, threads, used};
pub use usage::{Usage, cores_used, report_memory, report_usage};

use crate::clock::now_ns;
use crate::failure::Failure;
use endpoint::Endpoint;
use exposition::Exposition;
use kernel::Kernel;
use metrics::Reading;
use process::Process;

/// Servers that a run can look at.
const SERVER_COUNT_MAX: usize = 256;
/// A scrape at the end of a phase takes no longer.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often such a scrape is tried.
const SCRAPE_ATTEMPT_COUNT: u32 = 3;
/// A key is no longer.
const KEY_BYTES_MAX: usize = 8192;
/// Moments at which a process began, by two clocks, are the same if no farther apart.
const SAME_START_S: f64 = 1.0;

/// Which servers are looked at during a run.
#[derive(Debug, Clone, Default, Args)]
pub struct Beside {
    /// Process of a server, whose processor time and memory are reported. Repeatable
    #[arg(
        long,
        value_name = "PID",
        value_delimiter = ',',
        help_heading = "Servers"
    )]
    pub server_pid: Vec<u32>,
    /// Metrics of a server, as http://HOST:PORT/metrics; for a server elsewhere, its processor time and memory, too. Repeatable
    #[arg(long, value_name = "URL", help_heading = "Servers")]
    pub metrics: Vec<String>,
    /// Report every counter and gauge of --metrics, not only those known to matter
    #[arg(long, help_heading = "Servers")]
    pub metrics_all: bool,
    /// File with the key that --metrics wants as `Authorization: Bearer KEY`
    #[arg(long, value_name = "FILE", help_heading = "Servers")]
    pub metrics_key_file: Option<PathBuf>,
}

/// The servers of a run.
#[derive(Debug)]
pub struct Servers {
    servers: Vec<Server>,
    metrics_all: bool,
}

/// A server, known by its process, its metrics or both.
#[derive(Debug)]
struct Server {
    name: String,
    process: Option<Process>,
    endpoint: Option<Endpoint>,
    /// The scrape that a glance last made, and from when on it may make another.
    glanced: Mutex<glance::Scraped>,
}

/// What a server used up to one moment. None: it does not tell.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// The process's id, or host and port of its metrics.
    pub name: String,
    /// When it was read, [`now_ns`].
    pub at_ns: u64,
    /// Processor time, nanoseconds.
    pub cpu_ns: Option<u64>,
    /// The user part of it.
    pub user_ns: Option<u64>,
    /// The system part of it.
    pub system_ns: Option<u64>,
    /// Each thread; none where only metrics are known.
    pub threads: Vec<Thread>,
    /// Resident bytes.
    pub rss_bytes: Option<u64>,
    /// The most resident bytes since the process began.
    pub rss_peak_bytes: Option<u64>,
    /// Proportional resident bytes: shared pages divided by their users.
    pub pss_bytes: Option<u64>,
    /// Anonymous bytes: heap and stacks, no file.
    pub anonymous_bytes: Option<u64>,
    /// Open descriptors in the process's table.
    pub descriptor_count: Option<u64>,
    /// WebSocket connections open, as the server tells.
    pub connection_count: Option<u64>,
    /// Bytes queued in TCP sockets of the server's machine, as the server tells.
    pub tcp_memory_bytes: Option<u64>,
    /// When the process began, Unix seconds, as the server tells.
    pub start_unix_s: Option<f64>,
    /// Host and port of its metrics, if it has any.
    pub endpoint: Option<String>,
    /// Families of its metrics.
    readings: Vec<Reading>,
}

/// What all servers, and the kernel for everybody's sockets, used up to one moment.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Each server, in the order of the flags.
    pub parts: Vec<Part>,
    /// The kernel of this machine.
    pub kernel: Kernel,
}

impl Sample {
    /// What all servers tell together; None unless each tells it.
    pub fn total(&self, of: impl Fn(&Part) -> Option<u64>) -> Option<u64> {
        let total = self.parts.iter().map(of).sum::<Option<u64>>()?;
        (!self.parts.is_empty()).then_some(total)
    }
}

impl Servers {
    /// Looks at each server once: its process can be read, its endpoint answers with metrics.
    ///
    /// # Errors
    /// The first that cannot be looked at, with the remedy where there is one.
    pub fn open(beside: &Beside) -> Result<Self, Failure> {
        if beside.server_pid.len() + beside.metrics.len() > SERVER_COUNT_MAX {
            return Err(Failure::Usage(format!(
                "at most {SERVER_COUNT_MAX} of --server-pid and --metrics together"
            )));
        }
        let mut servers: Vec<Server> = Vec::new();
        for &pid in &beside.server_pid {
            let name = pid.to_string();
            if servers.iter().any(|server| server.name == name) {
                return Err(Failure::Usage(format!("--server-pid {pid} is given twice")));
            }
            servers.push(Server::new(name, Some(Process::open(pid)?), None));
        }
        let key = beside.metrics_key_file.as_deref().map(read_key);
        let key = key.transpose()?;
        for url in &beside.metrics {
            let endpoint = Endpoint::new(url, key.as_deref())?;
            let scrape = endpoint
                .scrape(SCRAPE_TIMEOUT)
                .map_err(|trouble| Failure::Usage(format!("--metrics {url}: {}", trouble.text)))?;
            let is_known = |server: &Server| {
                let known = server.endpoint.as_ref();
                known.is_some_and(|known| known.url() == endpoint.url())
            };
            if servers.iter().any(is_known) {
                return Err(Failure::Usage(format!("--metrics {url} is given twice")));
            }
            let owner = owner(&mut servers, &endpoint, &scrape);
            match owner {
                Some(server) if server.endpoint.is_some() => {
                    return Err(Failure::Usage(format!(
                        "--metrics {url}: process {} has other metrics already",
                        server.name
                    )));
                }
                Some(server) => server.endpoint = Some(endpoint),
                None => {
                    let taken = |name: &str| servers.iter().any(|server| server.name == name);
                    let name = if taken(endpoint.name()) {
                        endpoint.url().trim_start_matches("http://").to_owned()
                    } else {
                        endpoint.name().to_owned()
                    };
                    servers.push(Server::new(name, None, Some(endpoint)));
                }
            }
        }
        Ok(Self {
            servers,
            metrics_all: beside.metrics_all,
        })
    }

    /// No server.
    pub const fn none() -> Self {
        Self {
            servers: Vec::new(),
            metrics_all: false,
        }
    }

    /// Whether no server is looked at.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// The servers' names, as they stand in figures: the process's id, or host and port of its metrics.
    #[cfg(test)]
    pub fn names(&self) -> Vec<String> {
        let names = self.servers.iter().map(|server| server.name.clone());
        names.collect()
    }

    /// Everything about all of them. It walks the servers' page tables and may take seconds: for the ends of a phase. Times
    /// and the kernel's counters come first, so that they are of one moment.
    ///
    /// # Errors
    /// When a server has ended, or does not tell any more.
    pub fn sample(&self) -> Result<Sample, Failure> {
        if self.is_empty() {
            return Ok(Sample::default());
        }
        let mut times = Vec::with_capacity(self.servers.len());
        for server in &self.servers {
            let process = server.process.as_ref();
            times.push(process.map(Process::times).transpose()?);
        }
        let kernel = Kernel::read();
        let parts = each(&self.servers, |index, server| {
            server.sample(times[index].clone(), self.metrics_all)
        });
        Ok(Sample {
            parts: parts.into_iter().collect::<Result<_, _>>()?,
            kernel,
        })
    }

    /// What is cheap to know about all of them, for once a second.
    pub fn glance(&self) -> Glance {
        Glance::take(&self.servers)
    }
}

impl Server {
    fn new(name: String, process: Option<Process>, endpoint: Option<Endpoint>) -> Self {
        Self {
            name,
            process,
            endpoint,
            glanced: Mutex::default(),
        }
    }

    /// Everything about it, with what `times` tells of its process already.
    fn sample(&self, times: Option<Part>, metrics_all: bool) -> Result<Part, Failure> {
        let mut process = times;
        if let (Some(process), Some(part)) = (&self.process, &mut process) {
            process.add_memory(part)?;
        }
        let Some(endpoint) = &self.endpoint else {
            return Ok(process.unwrap_or_default());
        };
        let mut attempt = 1;
        let scrape = loop {
            match endpoint.scrape(SCRAPE_TIMEOUT) {
                Ok(scrape) => break scrape,
                Err(trouble) if trouble.is_gone => {
                    return Err(Failure::Broken(format!(
                        "server {} ended during the run: {}",
                        self.name, trouble.text
                    )));
                }
                Err(trouble) if attempt == SCRAPE_ATTEMPT_COUNT => {
                    return Err(Failure::Broken(format!(
                        "server {} does not tell its metrics any more: {}",
                        self.name, trouble.text
                    )));
                }
                Err(_) => attempt += 1,
            }
        };
        let mut part = self.joined(process, metrics::part(&scrape));
        part.endpoint = Some(endpoint.name().to_owned());
        part.readings = metrics::readings(&scrape, metrics_all);
        Ok(part)
    }

    /// One part of what `/proc` and the metrics tell: where both do, `/proc` is the finer.
    fn joined(&self, process: Option<Part>, told: Part) -> Part {
        match process {
            Some(part) => Part {
                connection_count: told.connection_count,
                ..part
            },
            None => Part {
                name: self.name.clone(),
                at_ns: now_ns(),
                ..told
            },
        }
    }
}

/// What `of` finds of each server, by its place, in their order. Endpoints are asked all at once: one that is slow holds up no other.
fn each<T: Send>(servers: &[Server], of: impl Fn(usize, &Server) -> T + Sync) -> Vec<T> {
    let endpoint_count = servers.iter().filter(|server| server.endpoint.is_some());
    if endpoint_count.count() < 2 {
        let each = servers.iter().enumerate();
        return each.map(|(index, server)| of(index, server)).collect();
    }
    let of = &of;
    thread::scope(|scope| {
        let threads: Vec<_> = servers
            .iter()
            .enumerate()
            .map(|(index, server)| {
                let thread = thread::Builder::new().spawn_scoped(scope, move || of(index, server));
                (index, server, thread.ok())
            })
            .collect();
        let parts = threads
            .into_iter()
            .map(|(index, server, thread)| match thread {
                Some(thread) => thread.join().expect("looking at a server does not panic"),
                None => of(index, server), // no thread could be had
            });
        parts.collect()
    })
}

/// The server whose process tells these metrics: it listens there, or it began at the same moment as no other does and is
/// reached by a way on which ports do not tell, such as a container's.
fn owner<'a>(
    servers: &'a mut [Server],
    endpoint: &Endpoint,
    scrape: &Exposition,
) -> Option<&'a mut Server> {
    let (is_here, is_loopback) = endpoint.is_here();
    let processes = || servers.iter().map(|server| server.process.as_ref());
    let listens = |process: &Process| {
        is_here && process.shares_our_network() && process.listens_on(endpoint.port())
    };
    let place = processes().position(|process| process.is_some_and(listens));
    let place = place.or_else(|| {
        let start_s = metrics::part(scrape).start_unix_s?;
        let began = |process: &Process| {
            let began = process.start_unix_s();
            let is_same = began.is_some_and(|began| (began - start_s).abs() <= SAME_START_S);
            is_same && (is_loopback || !process.shares_our_network())
        };
        let mut same = processes()
            .enumerate()
            .filter(|(_, process)| process.is_some_and(began));
        let (place, _) = same.next()?;
        same.next().is_none().then_some(place)
    });
    servers.get_mut(place?)
}

/// The key in a file: one line of visible ASCII.
fn read_key(path: &Path) -> Result<String, Failure> {
    let wrong =
        |what: String| Failure::Usage(format!("--metrics-key-file {}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let key = text.trim();
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(wrong(format!("a key is 1 to {KEY_BYTES_MAX} bytes long")));
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong(
            "a key is one line of visible ASCII characters without spaces".into(),
        ));
    }
    Ok(key.to_owned())
}

#[cfg(test)]
mod tests;
