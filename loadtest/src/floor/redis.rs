//! The bare pair of Redis clients: one publishes, others are subscribed, and nothing else is done. What a message takes from
//! PUBLISH to its subscriber, and how many a second one pipelined client gets through, are Redis' own; a backplane is
//! compared with them.
//!
//! One thread, `ppoll` (whose timeouts are finer than a millisecond), RESP2 (<https://redis.io/docs/latest/develop/reference/protocol-spec/>).

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::resp::{self, Incoming};
use crate::clock::{now_ns, thread_cpu_ns};
use crate::delivery::Deliveries;
use crate::failure::Failure;
use crate::interrupt;
use crate::processor;
use crate::report::{self, Report, latency_histogram};
use crate::stamp::{STAMP_BYTES_MIN, Stamp};

/// For how long the last messages may be on their way.
const GRACE_NS: u64 = 2_000_000_000;
/// Bytes that one read may bring.
const READ_BYTES_MAX: usize = 256 * 1024;
/// Unsent bytes from which on a late publisher waits until Redis has taken some.
const UNSENT_BYTES_MAX: usize = 1024 * 1024;
/// Channels of one SUBSCRIBE.
const SUBSCRIBE_COUNT_MAX: u32 = 512;
/// Publishers and subscribers wait for Redis at their start no longer than this.
const START: Duration = Duration::from_secs(5);

/// What the pair is told.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The Redis, on this machine: redis://ADDR:PORT or unix:///PATH
    #[arg(long, value_name = "URL")]
    redis: String,
    /// Channels that messages go to in turn
    #[arg(long, value_name = "N", default_value_t = 100)]
    channels: u32,
    /// Clients that are subscribed to all of them
    #[arg(long, value_name = "N", default_value_t = 1)]
    subscribers: u32,
    /// Messages a second, all channels together, at a fixed timetable
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1000.0,
        conflicts_with = "in_flight"
    )]
    rate: f64,
    /// Instead: so many PUBLISH are on their way all the time
    #[arg(long, value_name = "N")]
    in_flight: Option<u32>,
    /// Bytes of payload
    #[arg(long = "size", value_name = "B", default_value_t = 128)]
    bytes: u16,
    /// Seconds that are measured
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    duration: f64,
    /// Seconds of warm-up before
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    warm_up: f64,
    /// Processor to run on
    #[arg(long, value_name = "N")]
    core: Option<usize>,
    /// Write the report here, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures, and reports.
///
/// # Errors
/// When Redis is not there, or something was lost.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    check(arguments)?;
    if let Some(core) = arguments.core {
        processor::pin(core)?;
    }
    interrupt::watch()?;
    let mut report = Report::new("floor-redis");
    let pair = Pair::connect(arguments)?;
    let found = pair.run().map_err(broken)?;
    found.report(arguments, &mut report);
    report::print(&report.text())?;
    if let Some(path) = &arguments.json {
        report.write_json(path)?;
    }
    report.end(Ok(()))
}

fn check(arguments: &Arguments) -> Result<(), Failure> {
    let wrong = |what: &str| Err(Failure::Usage(what.into()));
    if !(1..=1_000_000).contains(&arguments.channels) {
        return wrong("--channels is 1 to 1000000");
    }
    if !(1..=64).contains(&arguments.subscribers) {
        return wrong("--subscribers is 1 to 64");
    }
    if !(0.001..=1e7).contains(&arguments.rate) {
        return wrong("--rate is 0.001 to 10000000 messages a second");
    }
    if arguments
        .in_flight
        .is_some_and(|count| !(1..=65_536).contains(&count))
    {
        return wrong("--in-flight is 1 to 65536");
    }
    if usize::from(arguments.bytes) < STAMP_BYTES_MIN {
        return wrong("--size must be at least 20: the stamp needs them");
    }
    if !(0.01..=86_400.0).contains(&arguments.duration)
        || !(0.0..=86_400.0).contains(&arguments.warm_up)
    {
        return wrong("--duration is 0.01 to 86400 seconds, --warm-up 0 to 86400");
    }
    Ok(())
}

fn broken(error: io::Error) -> Failure {
    Failure::Broken(format!("the connection to Redis: {error}"))
}

/// A connection, its bytes on their way out, and what has come in.
struct Client {
    stream: Stream,
    unsent: Vec<u8>,
    read: Vec<u8>,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Client {
    fn connect(url: &str) -> Result<Self, Failure> {
        let refused = |error: io::Error| Failure::Usage(format!("--redis {url}: {error}"));
        let stream = if let Some(path) = url.strip_prefix("unix://") {
            Stream::Unix(UnixStream::connect(path).map_err(refused)?)
        } else {
            let address: Option<SocketAddr> = url
                .strip_prefix("redis://")
                .and_then(|rest| rest.trim_end_matches('/').parse().ok());
            let Some(address) = address.filter(|address| address.ip().is_loopback()) else {
                return Err(Failure::Usage(format!(
                    "--redis {url}: redis://ADDR:PORT of this machine's loopback is expected, or unix:///PATH"
                )));
            };
            let stream = TcpStream::connect_timeout(&address, START).map_err(refused)?;
            stream.set_nodelay(true).map_err(refused)?;
            Stream::Tcp(stream)
        };
        Ok(Self {
            stream,
            unsent: Vec::new(),
            read: Vec::new(),
        })
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match &self.stream {
            Stream::Tcp(stream) => stream.set_nonblocking(true),
            Stream::Unix(stream) => stream.set_nonblocking(true),
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }

    /// Sends what the kernel takes.
    fn send(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let sent = match &mut self.stream {
                Stream::Tcp(stream) => stream.write(&self.unsent),
                Stream::Unix(stream) => stream.write(&self.unsent),
            };
            match sent {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what is there, once, and hands out each whole reply.
    fn receive(
        &mut self,
        scratch: &mut [u8],
        mut each: impl FnMut(Incoming<'_>),
    ) -> io::Result<()> {
        let count = match &mut self.stream {
            Stream::Tcp(stream) => stream.read(scratch),
            Stream::Unix(stream) => stream.read(scratch),
        };
        let count = match count {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        };
        self.read.extend_from_slice(&scratch[..count]);
        let mut taken = 0;
        while let Some((incoming, bytes)) = resp::next(&self.read[taken..])? {
            if let Incoming::Error(text) = incoming {
                return Err(io::Error::other(String::from_utf8_lossy(text).into_owned()));
            }
            each(incoming);
            taken += bytes;
        }
        self.read.drain(..taken);
        Ok(())
    }
}

/// The publisher, the subscribers, and what has been seen of them.
struct Pair<'a> {
    arguments: &'a Arguments,
    publisher: Client,
    subscribers: Vec<Client>,
    channels: Vec<Vec<u8>>,
    payload: Vec<u8>,
    found: Found,
}

/// What was found.
struct Found {
    published: u64,
    acknowledged: u64,
    /// Acknowledged within the window.
    counted: u64,
    /// Seconds of the window.
    seconds: f64,
    deliveries: Deliveries,
    latency: Histogram<u64>,
    cpu_ns: u64,
}

impl<'a> Pair<'a> {
    fn connect(arguments: &'a Arguments) -> Result<Self, Failure> {
        let run = now_ns();
        let channels: Vec<Vec<u8>> = (0..arguments.channels)
            .map(|channel| format!("floor:{run}:{channel}").into_bytes())
            .collect();
        let mut scratch = vec![0; READ_BYTES_MAX];
        let mut subscribers = Vec::new();
        for _ in 0..arguments.subscribers {
            let mut client = Client::connect(&arguments.redis)?;
            for some in channels.chunks(SUBSCRIBE_COUNT_MAX as usize) {
                let words = [&b"SUBSCRIBE"[..]].into_iter();
                let words: Vec<&[u8]> = words.chain(some.iter().map(Vec::as_slice)).collect();
                resp::command(&mut client.unsent, &words);
                client.send().map_err(broken)?;
                let mut standing = 0;
                while standing < some.len() {
                    client
                        .receive(&mut scratch, |_| standing += 1)
                        .map_err(broken)?;
                }
            }
            subscribers.push(client);
        }
        let pair = Self {
            publisher: Client::connect(&arguments.redis)?,
            subscribers,
            channels,
            payload: vec![0; usize::from(arguments.bytes)],
            found: Found {
                published: 0,
                acknowledged: 0,
                counted: 0,
                seconds: 0.0,
                deliveries: Deliveries::new(arguments.subscribers, arguments.channels, false),
                latency: latency_histogram(),
                cpu_ns: 0,
            },
            arguments,
        };
        for client in pair.subscribers.iter().chain([&pair.publisher]) {
            client.set_nonblocking().map_err(broken)?;
        }
        Ok(pair)
    }

    /// The whole run.
    fn run(mut self) -> io::Result<Found> {
        let began_ns = now_ns();
        let from_ns = began_ns + (self.arguments.warm_up * 1e9) as u64;
        let to_ns = from_ns + (self.arguments.duration * 1e9) as u64;
        let interval_ns = 1e9 / self.arguments.rate;
        let mut due_count = 0_u64;
        let mut counted_from = None;
        let mut scratch = vec![0; READ_BYTES_MAX];
        loop {
            let now = now_ns();
            if now >= from_ns && counted_from.is_none() {
                counted_from = Some((self.found.acknowledged, thread_cpu_ns(), now));
            }
            if now >= to_ns || interrupt::is_wanted() {
                break;
            }
            let mut until_ns = to_ns;
            match self.arguments.in_flight {
                Some(count) => {
                    while self.found.published - self.found.acknowledged < u64::from(count) {
                        self.publish(now);
                    }
                }
                None => loop {
                    let due_ns = began_ns + (due_count as f64 * interval_ns) as u64;
                    if due_ns > now || self.publisher.unsent.len() > UNSENT_BYTES_MAX {
                        until_ns = until_ns.min(due_ns);
                        break;
                    }
                    self.publish(due_ns);
                    due_count += 1;
                },
            }
            self.publisher.send()?;
            self.turn(until_ns, from_ns, &mut scratch)?;
        }
        if let Some((acknowledged, cpu_ns, at_ns)) = counted_from {
            self.found.counted = self.found.acknowledged - acknowledged;
            self.found.cpu_ns = thread_cpu_ns() - cpu_ns;
            self.found.seconds = (now_ns() - at_ns) as f64 / 1e9;
        }
        let deadline_ns = now_ns() + GRACE_NS;
        let whole = self.found.published * u64::from(self.arguments.subscribers);
        while now_ns() < deadline_ns
            && (self.found.acknowledged < self.found.published
                || self.found.deliveries.counts().delivered < whole)
        {
            self.publisher.send()?;
            self.turn(deadline_ns, from_ns, &mut scratch)?;
        }
        for subscriber in 0..self.arguments.subscribers {
            for channel in 0..self.arguments.channels {
                let published = self.sequence(channel, self.found.published);
                self.found.deliveries.close(subscriber, channel, published);
            }
        }
        Ok(self.found)
    }

    /// How many of the first `published` messages went to `channel`: they go to all in turn.
    fn sequence(&self, channel: u32, published: u64) -> u32 {
        let channels = u64::from(self.arguments.channels);
        (published / channels) as u32 + u32::from(u64::from(channel) < published % channels)
    }

    fn publish(&mut self, due_ns: u64) {
        let channels = u64::from(self.arguments.channels);
        let channel = (self.found.published % channels) as u32;
        Stamp {
            publisher: channel,
            sequence: (self.found.published / channels) as u32,
            due_ns,
        }
        .write(&mut self.payload);
        let name = &self.channels[channel as usize];
        resp::command(
            &mut self.publisher.unsent,
            &[b"PUBLISH", name, &self.payload],
        );
        self.found.published += 1;
    }

    /// Waits until `until_ns` at most, and reads what has come.
    fn turn(&mut self, until_ns: u64, from_ns: u64, scratch: &mut [u8]) -> io::Result<()> {
        let wait = Duration::from_nanos(until_ns.saturating_sub(now_ns()));
        let timeout = Timespec::try_from(wait).ok();
        let mut waited: Vec<PollFd<'_>> = Vec::with_capacity(self.subscribers.len() + 1);
        for client in self.subscribers.iter().chain([&self.publisher]) {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, !client.unsent.is_empty());
            waited.push(PollFd::from_borrowed_fd(client.as_fd(), flags));
        }
        match poll(&mut waited, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_readable = |found: &PollFd<'_>| !(found.revents() - PollFlags::OUT).is_empty();
        let readable: Vec<bool> = waited.iter().map(is_readable).collect();
        let found = &mut self.found;
        for (index, subscriber) in self.subscribers.iter_mut().enumerate() {
            if !readable[index] {
                continue;
            }
            subscriber.receive(scratch, |incoming| {
                if let Incoming::Message(payload) = incoming {
                    found.delivered(index as u32, payload, from_ns);
                }
            })?;
        }
        if readable[self.subscribers.len()] {
            self.publisher
                .receive(scratch, |_| found.acknowledged += 1)?;
        }
        Ok(())
    }
}

impl Found {
    fn delivered(&mut self, subscriber: u32, payload: &[u8], from_ns: u64) {
        let Some(stamp) = Stamp::read(payload) else {
            self.deliveries.corrupted();
            return;
        };
        if self
            .deliveries
            .delivered(subscriber, stamp.publisher, stamp.sequence)
            && stamp.due_ns >= from_ns
        {
            self.latency
                .saturating_record(now_ns().saturating_sub(stamp.due_ns));
        }
    }

    fn report(&self, arguments: &Arguments, report: &mut Report) {
        report.count("published", self.published);
        self.deliveries.counts().report(report);
        report.figure("publishes_per_s", self.counted as f64 / self.seconds);
        report.latency("latency", &self.latency);
        report.figure(
            "client_cpu_us_per_message",
            self.cpu_ns as f64 / 1e3 / self.counted as f64,
        );
        report.figure(
            "client_busiest_thread_share",
            self.cpu_ns as f64 / 1e9 / self.seconds,
        );
        if interrupt::is_wanted() {
            report.cut_short("interrupted: the figures are of the run so far".into());
        } else if arguments.in_flight.is_none()
            && (self.counted as f64) < 0.98 * arguments.rate * self.seconds
        {
            report.fault(format!(
                "{:.0} messages a second were asked for, {:.0} came about",
                arguments.rate,
                self.counted as f64 / self.seconds
            ));
        }
    }
}
