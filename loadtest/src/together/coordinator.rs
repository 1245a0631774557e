//! The coordinator: waits for those who join, and keeps them for all runs of this process.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Args;

use super::hello::{Applicant, Secret, boot_id, challenge};
use super::link::Link;
use crate::client::lock;
use crate::failure::Failure;

/// Generators that join, at most.
const GENERATOR_COUNT_MAX: u32 = 1_000;
/// Those who are asked at a time who they are; more are turned away, and may come again.
const APPLICANT_COUNT_MAX: usize = 64;
/// How often the coordinator looks who has come.
const LOOK: Duration = Duration::from_millis(10);
/// Lines about those who were turned away.
const REFUSAL_COUNT_MAX: u32 = 10;
/// What the coordinator is called in the report.
pub const OWN_NAME: &str = "coordinator";

/// Which generators a scenario runs on, besides this process.
#[derive(Debug, Clone, Default, Args)]
pub struct Coordination {
    /// Lead other generators, too: wait here for those that are started with --join
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Generators")]
    pub coordinator: Option<String>,
    /// With --coordinator: how many join; this process generates load, too
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        requires = "coordinator",
        help_heading = "Generators"
    )]
    pub generators: u32,
    /// With --coordinator: seconds to wait for them
    #[arg(
        long,
        value_name = "S",
        default_value_t = 60.0,
        requires = "coordinator",
        help_heading = "Generators"
    )]
    pub generators_wait: f64,
    /// With --coordinator: file with the secret that the others know; needed where they come from other machines
    #[arg(
        long,
        value_name = "FILE",
        requires = "coordinator",
        help_heading = "Generators"
    )]
    pub secret_file: Option<PathBuf>,
    /// Those that joined: once for all runs of this process.
    #[arg(skip)]
    session: Arc<Mutex<Option<Arc<Session>>>>,
}

impl Coordination {
    /// Generators of a run, this process included.
    pub const fn generator_count(&self) -> u32 {
        if self.coordinator.is_some() {
            self.generators.saturating_add(1)
        } else {
            1
        }
    }

    /// Whether any process of this machine may join, and be told what is to be run.
    pub const fn takes_anybody(&self) -> bool {
        self.coordinator.is_some() && self.secret_file.is_none()
    }

    /// Waits for the other generators, if there are to be any and they are not there yet.
    ///
    /// # Errors
    /// When they do not come, one has left, or the address cannot be listened on.
    pub fn gather(&self, allow_remote: bool) -> Result<Option<Arc<Session>>, Failure> {
        let Some(address) = &self.coordinator else {
            return Ok(None);
        };
        let mut session = lock(&self.session);
        if let Some(session) = &*session {
            if let Some(left) = session.left() {
                return Err(Failure::Broken(left));
            }
            return Ok(Some(Arc::clone(session)));
        }
        let gathered = Arc::new(self.gather_at(address, allow_remote)?);
        *session = Some(Arc::clone(&gathered));
        Ok(Some(gathered))
    }

    fn gather_at(&self, text: &str, allow_remote: bool) -> Result<Session, Failure> {
        if !(1..=GENERATOR_COUNT_MAX).contains(&self.generators)
            || !(0.1..=86_400.0).contains(&self.generators_wait)
        {
            return Err(Failure::Usage(format!(
                "--generators is 1 to {GENERATOR_COUNT_MAX}, --generators-wait 0.1 to 86400 seconds"
            )));
        }
        let address = resolve("--coordinator", text)?;
        let has_leave = allow_remote && self.secret_file.is_some();
        if !is_loopback(address.ip()) && !has_leave {
            return Err(Failure::Usage(format!(
                "--coordinator {text} can be reached from other machines: that needs --allow-remote, and a --secret-file that \
                 the others know, too"
            )));
        }
        let secret = Secret::read(self.secret_file.as_deref())?;
        let listener = TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|error| Failure::Usage(format!("--coordinator {text}: {error}")))?;
        let address = listener.local_addr().unwrap_or(address);
        eprintln!(
            "waiting for {} more: throng-load --join {address}",
            self.generators
        );
        let wait = Duration::from_secs_f64(self.generators_wait);
        let links = Door {
            listener,
            secret,
            wanted_count: self.generators as usize,
        }
        .gather(Instant::now() + wait)?;
        Ok(Session {
            links,
            run_count: AtomicU32::new(0),
        })
    }
}

/// The address that `flag` names.
///
/// # Errors
/// When it names none.
pub fn resolve(flag: &str, text: &str) -> Result<SocketAddr, Failure> {
    let wrong = |what: String| Failure::Usage(format!("{flag} {text}: {what}; write ADDR:PORT"));
    text.to_socket_addrs()
        .map_err(|error| wrong(error.to_string()))?
        .next()
        .ok_or_else(|| wrong("the name has no address".into()))
}

/// Whether only this machine is there.
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Where generators come in.
struct Door {
    listener: TcpListener,
    secret: Secret,
    wanted_count: usize,
}

type Answers = Sender<(SocketAddr, Result<Applicant, String>)>;

impl Door {
    fn gather(self, until: Instant) -> Result<Vec<Arc<Link>>, Failure> {
        let boot_id = boot_id();
        let (tell_answers, answers) = mpsc::channel();
        let asked_count = Arc::new(AtomicUsize::new(0));
        let mut links: Vec<Arc<Link>> = Vec::new();
        let (mut index, mut refusal_count, mut refusal) = (0, 0, String::new());
        loop {
            self.let_in(&asked_count, &tell_answers);
            for (address, answer) in answers.try_iter() {
                let taken = answer.and_then(|applicant| {
                    if links.len() >= self.wanted_count {
                        return Err("one more than is waited for".to_owned());
                    }
                    index += 1;
                    let (stream, hello) = applicant.welcome().map_err(|error| error.to_string())?;
                    let name = unique(&hello.name, &links);
                    Link::start(stream, &hello, name, index, &boot_id)
                        .map_err(|error| error.to_string())
                });
                match taken {
                    Ok(link) => {
                        eprintln!("{} joined from {address}", link.name);
                        links.push(Arc::new(link));
                    }
                    Err(why) => {
                        refusal = format!("; {address} was turned away: {why}");
                        refusal_count += 1;
                        if refusal_count <= REFUSAL_COUNT_MAX {
                            eprintln!("turned {address} away: {why}");
                        }
                    }
                }
            }
            links.retain(|link| match link.left() {
                Some(why) => {
                    eprintln!("{} left: {why}", link.name);
                    false
                }
                None => true,
            });
            if links.len() == self.wanted_count {
                return Ok(links);
            }
            if Instant::now() >= until {
                return Err(Failure::Usage(format!(
                    "--coordinator: {} of {} generators joined in time (see --generators-wait){refusal}",
                    links.len(),
                    self.wanted_count
                )));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Asks those at the door who they are, each on a thread of its own, so that nobody holds up the others.
    fn let_in(&self, asked_count: &Arc<AtomicUsize>, tell_answers: &Answers) {
        while let Ok((stream, address)) = self.listener.accept() {
            if asked_count.load(Ordering::Acquire) >= APPLICANT_COUNT_MAX {
                continue;
            }
            asked_count.fetch_add(1, Ordering::AcqRel);
            let (asked_count, tell_answers) = (Arc::clone(asked_count), tell_answers.clone());
            let secret = self.secret.clone();
            std::thread::spawn(move || {
                let answer = ask(stream, &secret);
                let _ = tell_answers.send((address, answer)); // nobody waits any more
                asked_count.fetch_sub(1, Ordering::AcqRel);
            });
        }
    }
}

fn ask(stream: TcpStream, secret: &Secret) -> Result<Applicant, String> {
    stream
        .set_nonblocking(false)
        .map_err(|error| error.to_string())?;
    challenge(stream, secret)
}

/// `name`, with a number behind it if another generator has it.
fn unique(name: &str, links: &[Arc<Link>]) -> String {
    let taken = |name: &str| name == OWN_NAME || links.iter().any(|link| link.name == name);
    let mut unique = name.to_owned();
    let mut number = 2;
    while taken(&unique) {
        unique = format!("{name}_{number}");
        number += 1;
    }
    unique
}

/// The generators that joined.
#[derive(Debug)]
pub struct Session {
    /// Those that joined, in their order.
    pub links: Vec<Arc<Link>>,
    run_count: AtomicU32,
}

impl Session {
    /// All generators, this process included.
    pub fn generator_count(&self) -> u32 {
        self.links.len() as u32 + 1
    }

    /// The number of the next run.
    pub fn run_next(&self) -> u32 {
        self.run_count.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The first that left, and why.
    fn left(&self) -> Option<String> {
        self.links.iter().find_map(|link| {
            let why = link.left()?;
            Some(format!("generator {} left: {why}", link.name))
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for link in &self.links {
            link.dismiss();
        }
    }
}
