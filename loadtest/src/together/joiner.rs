//! A generator that joined: it is told what to run, runs its share of the workers, and tells what they saw.

use std::io::{self, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Args;

use super::coordinator::{is_loopback, resolve};
use super::hello::{Secret, Turned, host_name, introduce};
use super::link::{ALIVE, SILENCE};
use super::wire::{self, FromJoiner, MESSAGE_BYTES_MAX, Reply, ToJoiner};
use crate::client::{Orders, Seen, Shared, Troupe, lock};
use crate::clock::{machine_ns, now_ns, set_offset_ns, thread_cpu_ns};
use crate::failure::Failure;
use crate::histogram;
use crate::meter::client_threads;
use crate::report::latency_histogram;
use crate::scenario::{Generator, Part};

/// How often the coordinator is told what is seen of the workers.
const PROGRESS: Duration = Duration::from_millis(50);
/// After a look at the threads, none is taken for so many times the processor time that it took, but for no longer than
/// [`LOOK_PAUSE_MAX`].
const LOOK_PAUSE_FACTOR: u64 = 100;
/// See [`LOOK_PAUSE_FACTOR`].
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(500);
/// Until the coordinator is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// For a connect to the coordinator.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How this process takes part in the runs of another.
#[derive(Debug, Clone, Args)]
pub struct Join {
    /// Generate load for the coordinator there, which says what to run
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Joining")]
    pub join: Option<String>,
    #[command(flatten)]
    pub generator: Generator,
    /// Let the load leave this machine, whatever the coordinator may
    #[arg(long, requires = "join", help_heading = "Joining")]
    pub allow_remote: bool,
    /// End with the coordinator's session [default: wait for the next one]
    #[arg(long, requires = "join", help_heading = "Joining")]
    pub once: bool,
    /// With --once: seconds to wait for the coordinator
    #[arg(
        long,
        value_name = "S",
        default_value_t = 60.0,
        requires = "once",
        help_heading = "Joining"
    )]
    pub wait: f64,
    /// What this generator is called in the report [default: the name of this machine]
    #[arg(long, value_name = "NAME", requires = "join", help_heading = "Joining")]
    pub name: Option<String>,
    /// File with the secret that the coordinator knows, too; needed where it is on another machine
    #[arg(long, value_name = "FILE", requires = "join", help_heading = "Joining")]
    pub secret_file: Option<PathBuf>,
}

/// Serves the coordinator at `text`.
///
/// # Errors
/// When it refuses; with `--once`, also when it does not come, or vanishes.
pub fn join(text: &str, arguments: &Join) -> Result<(), Failure> {
    if !(0.1..=86_400.0).contains(&arguments.wait) {
        return Err(Failure::Usage("--wait is 0.1 to 86400 seconds".into()));
    }
    let secret = Secret::read(arguments.secret_file.as_deref())?;
    let name = arguments.name.clone().unwrap_or_else(host_name);
    let until = Instant::now() + Duration::from_secs_f64(arguments.wait);
    loop {
        let address = resolve("--join", text)?;
        if !is_loopback(address.ip()) && arguments.secret_file.is_none() {
            return Err(Failure::Usage(format!(
                "--join {text} is on another machine: that needs a --secret-file that the coordinator knows, too"
            )));
        }
        match meet(address, &secret, &name) {
            Ok(stream) => {
                eprintln!("joined {address}");
                let served = Joiner::new(stream, arguments)
                    .map_err(|error| error.to_string())
                    .and_then(|mut joiner| joiner.serve());
                set_offset_ns(0);
                match served {
                    Ok(()) if arguments.once => return Ok(()),
                    Ok(()) => eprintln!("the coordinator has ended its session"),
                    Err(why) => {
                        let text = format!("the coordinator at {address} is gone: {why}");
                        if arguments.once {
                            return Err(Failure::Usage(text));
                        }
                        eprintln!("{text}");
                    }
                }
            }
            Err(Turned::Away(Failure::Usage(why) | Failure::Broken(why))) => {
                return Err(Failure::Usage(format!("--join {text}: {why}")));
            }
            Err(Turned::Later(why)) => {
                if arguments.once && Instant::now() >= until {
                    return Err(Failure::Usage(format!(
                        "--join {text}: there was no coordinator within {} s: {why}",
                        arguments.wait
                    )));
                }
            }
        }
        std::thread::sleep(ASK_AGAIN);
    }
}

fn meet(address: SocketAddr, secret: &Secret, name: &str) -> Result<TcpStream, Turned> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)
        .map_err(|error| Turned::Later(error.to_string()))?;
    introduce(&mut stream, secret, name)?;
    Ok(stream)
}

/// Why the coordinator cannot be heard or told anything any more.
type Gone = String;

/// A generator in a session.
struct Joiner<'a> {
    arguments: &'a Join,
    reader: BufReader<TcpStream>,
    teller: Teller,
}

impl<'a> Joiner<'a> {
    fn new(stream: TcpStream, arguments: &'a Join) -> io::Result<Self> {
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        Ok(Self {
            arguments,
            teller: Teller {
                stream: Mutex::new(stream.try_clone()?),
                run: Mutex::new(None),
                over: AtomicBool::new(false),
            },
            reader: BufReader::new(stream),
        })
    }

    /// Takes part in the coordinator's runs until it says farewell.
    fn serve(&mut self) -> Result<(), Gone> {
        let Self {
            arguments,
            reader,
            teller,
        } = self;
        let mut hearing = Hearing {
            arguments,
            reader,
            teller,
        };
        std::thread::scope(|scope| {
            let telling = scope.spawn(|| hearing.teller.run());
            let served = hearing.serve();
            hearing.teller.over.store(true, Ordering::Release);
            telling.thread().unpark();
            served
        })
    }
}

/// The thread that hears the coordinator, and does what it says.
struct Hearing<'a> {
    arguments: &'a Join,
    reader: &'a mut BufReader<TcpStream>,
    teller: &'a Teller,
}

impl Hearing<'_> {
    /// The next message that is for a run or the session; what is for the link is answered here.
    fn hear(&mut self) -> Result<ToJoiner, Gone> {
        loop {
            let message = wire::receive(self.reader, MESSAGE_BYTES_MAX)
                .map_err(|error| wire::reason(&error))?;
            match message {
                ToJoiner::Alive => {}
                ToJoiner::Ping { sent_ns } => {
                    let at_ns = machine_ns();
                    self.teller.tell(&FromJoiner::Pong { sent_ns, at_ns })?;
                }
                ToJoiner::SetClock { offset_ns } => set_offset_ns(offset_ns),
                message => return Ok(message),
            }
        }
    }

    fn reply(&self, run: u32, reply: Reply) -> Result<(), Gone> {
        self.teller.tell(&FromJoiner::Reply { run, reply })
    }

    fn serve(&mut self) -> Result<(), Gone> {
        let mut prepared: Option<(u32, Part)> = None;
        loop {
            match self.hear()? {
                ToJoiner::Prepare {
                    run,
                    scenario,
                    generator_count,
                } => {
                    let Join {
                        generator,
                        allow_remote,
                        ..
                    } = self.arguments;
                    let part = Part::read(scenario, generator, *allow_remote, generator_count);
                    let reply = match part {
                        Ok(part) => {
                            let reply = Reply::Ready {
                                thread_count: part.thread_count(),
                                core_count: part.core_count(),
                            };
                            prepared = Some((run, part));
                            reply
                        }
                        Err(failure) => Reply::Failed(failure),
                    };
                    self.reply(run, reply)?;
                }
                ToJoiner::Start {
                    run,
                    worker_first,
                    worker_count,
                } => {
                    let part = prepared.take().filter(|(prepared, _)| *prepared == run);
                    let started = part
                        .ok_or_else(|| Failure::Usage("it was not told what to run".into()))
                        .and_then(|(_, part)| part.start(worker_first, worker_count));
                    match started {
                        Ok((shared, troupe)) => self.run(run, shared, troupe)?,
                        Err(failure) => self.reply(run, Reply::Failed(failure))?,
                    }
                }
                ToJoiner::Farewell => return Ok(()),
                // Of a run that is over.
                ToJoiner::Orders { .. }
                | ToJoiner::Published { .. }
                | ToJoiner::Abandon { .. }
                | ToJoiner::Alive
                | ToJoiner::Ping { .. }
                | ToJoiner::SetClock { .. } => {}
            }
        }
    }

    /// Has the workers do what the coordinator orders, until the run is over.
    fn run(
        &mut self,
        run: u32,
        shared: Vec<Arc<Shared>>,
        mut troupe: Box<dyn Troupe>,
    ) -> Result<(), Gone> {
        eprintln!("run {run} begins");
        *lock(&self.teller.run) = Some(Run {
            number: run,
            shared: shared.clone(),
            threads_again_at: Instant::now(),
        });
        let mut orders = Orders::default();
        // What its threads have used so far must be known before anything is measured.
        let outcome = (self.teller.look())
            .and_then(|()| self.reply(run, Reply::Started))
            .and_then(|()| self.follow(run, &shared, &mut orders, troupe.as_mut()));
        *lock(&self.teller.run) = None;
        if !orders.stop {
            orders.stop = true;
            order(&shared, &orders);
            let _ = troupe.stop(); // nobody wants to know any more
        }
        eprintln!("run {run} is over");
        outcome
    }

    fn follow(
        &mut self,
        run: u32,
        shared: &[Arc<Shared>],
        orders: &mut Orders,
        troupe: &mut dyn Troupe,
    ) -> Result<(), Gone> {
        let mut published = Vec::new();
        loop {
            match self.hear()? {
                ToJoiner::Orders {
                    run: of,
                    orders: given,
                } if of == run => {
                    let stops = given.stop && !orders.stop;
                    *orders = given;
                    order(shared, orders);
                    if stops {
                        let stopped = troupe.stop();
                        self.teller.look()?; // the last numbers, before they count as final
                        match stopped {
                            Ok(counts) => self.reply_published(run, &counts)?,
                            Err(failure) => return self.reply(run, Reply::Failed(failure)),
                        }
                    }
                }
                ToJoiner::Published {
                    run: of,
                    counts,
                    last,
                } if of == run => {
                    published.extend(counts);
                    if last {
                        let reply = match troupe.tally(&published) {
                            Ok(counted) => Reply::Tally(Box::new(counted)),
                            Err(failure) => Reply::Failed(failure),
                        };
                        return self.reply(run, reply);
                    }
                }
                ToJoiner::Abandon { run: of } if of == run => return Ok(()),
                ToJoiner::Farewell => return Err("it ended in the middle of a run".into()),
                _ => {} // of a run that is over
            }
        }
    }

    fn reply_published(&self, run: u32, counts: &[(u32, u32)]) -> Result<(), Gone> {
        wire::parts(counts).try_for_each(|(counts, last)| {
            let counts = counts.to_vec();
            self.reply(run, Reply::Published { counts, last })
        })
    }
}

fn order(shared: &[Arc<Shared>], orders: &Orders) {
    for shared in shared {
        shared.set_orders(orders);
    }
}

/// The run that goes on.
struct Run {
    number: u32,
    shared: Vec<Arc<Shared>>,
    threads_again_at: Instant,
}

/// The thread that tells the coordinator what is seen of the workers, and that this process lives.
struct Teller {
    stream: Mutex<TcpStream>,
    run: Mutex<Option<Run>>,
    over: AtomicBool,
}

impl Teller {
    fn tell(&self, message: &FromJoiner) -> Result<(), Gone> {
        wire::send(&mut *lock(&self.stream), message).map_err(|error| error.to_string())
    }

    fn run(&self) {
        let mut told_at = Instant::now();
        while !self.over.load(Ordering::Acquire) {
            let told = if lock(&self.run).is_some() {
                told_at = Instant::now();
                self.look()
            } else if told_at.elapsed() >= ALIVE {
                told_at = Instant::now();
                self.tell(&FromJoiner::Alive)
            } else {
                Ok(())
            };
            if told.is_err() {
                return; // the hearing thread finds out, too
            }
            std::thread::park_timeout(PROGRESS);
        }
    }

    /// Tells what is seen now.
    fn look(&self) -> Result<(), Gone> {
        // Held until it is told: numbers must not overtake older ones.
        let mut current = lock(&self.run);
        let Some(run) = &mut *current else {
            return Ok(());
        };
        let (begun, at_ns) = (Instant::now(), now_ns());
        let mut seen = Seen::default();
        let mut finished = false;
        let mut latency = latency_histogram();
        for shared in &run.shared {
            // Before the numbers: who has finished changes them no more.
            finished |= shared.progress.finished.load(Ordering::Acquire);
            shared.progress.add_to(&mut seen);
            for interval in shared.take_intervals() {
                histogram::add(&mut latency, &interval);
            }
        }
        let cpu_ns = thread_cpu_ns();
        let threads = (begun >= run.threads_again_at).then(client_threads);
        if threads.is_some() {
            let pause_ns = (thread_cpu_ns() - cpu_ns) * LOOK_PAUSE_FACTOR;
            run.threads_again_at = begun + Duration::from_nanos(pause_ns).min(LOOK_PAUSE_MAX);
        }
        self.tell(&FromJoiner::Progress {
            run: run.number,
            at_ns,
            seen,
            finished,
            threads,
            interval: (!latency.is_empty()).then(|| histogram::encode(&latency)),
        })
    }
}
