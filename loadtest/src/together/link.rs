//! The coordinator's side of one joined generator: a thread that reads what it says, one that writes to it, and the
//! troupe that its workers are to a crew.

use std::io::{self, BufReader};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::hello::Hello;
use super::skew::{Ping, Skew};
use super::wire::{self, FromJoiner, MESSAGE_BYTES_MAX, Reply, ToJoiner};
use crate::client::{Orders, Outcome, Shared, Tally, Troupe, lock};
use crate::clock::now_ns;
use crate::failure::Failure;
use crate::histogram;
use crate::server::Thread;

/// Each side says something at least this often, and takes a longer [`SILENCE`] for the end of the other.
pub const ALIVE: Duration = Duration::from_secs(1);
/// See [`ALIVE`].
pub const SILENCE: Duration = Duration::from_secs(10);
/// For an answer of a generator that is alive.
const ANSWER: Duration = Duration::from_secs(120);
/// Pings that a clock is compared by.
const PING_COUNT: usize = 16;
/// News that wait for somebody to ask for them; a generator says little unasked.
const NEWS_COUNT_MAX: usize = 1024;
/// Threads that a generator may say that it has.
const THREAD_COUNT_MAX: u32 = 1024;
/// No count of a run comes near this: a generator that tells more is not to be trusted.
const COUNT_MAX: u64 = 1 << 48;
/// Threads of a generator that are looked at, its kernel's beside its own.
const THREADS_SEEN_MAX: usize = 16_384;
/// Bits of a thread's id (`PID_MAX_LIMIT` is 2^22); the generator's index stands above them.
const THREAD_ID_BITS: u32 = 22;

/// What a generator said beside its progress.
enum News {
    Pong(Ping),
    Reply { run: u32, reply: Reply },
}

/// What the reading thread and others share.
#[derive(Debug, Default)]
struct State {
    /// The run that it takes part in.
    run: Mutex<Option<(u32, Arc<Shared>)>>,
    /// Why it left.
    left: Mutex<Option<String>>,
    /// It was sent [`ToJoiner::Farewell`].
    dismissed: AtomicBool,
}

impl State {
    fn leave(&self, why: String) {
        lock(&self.left).get_or_insert(why);
        if let Some((_, shared)) = &*lock(&self.run) {
            shared.progress.finished.store(true, Ordering::Release);
        }
    }
}

/// A joined generator.
#[derive(Debug)]
pub struct Link {
    /// What it is called in the report; no other generator is.
    pub name: String,
    one_machine: bool,
    outgoing: Sender<ToJoiner>,
    news: Mutex<Receiver<News>>,
    state: Arc<State>,
    stream: TcpStream,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Link {
    /// Starts the threads of a generator that was just taken. `index` is 1 for the first that joined: the coordinator is 0.
    ///
    /// # Errors
    /// The stream's.
    pub fn start(
        stream: TcpStream,
        hello: &Hello,
        name: String,
        index: u32,
        boot_id: &str,
    ) -> io::Result<Self> {
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let (outgoing, to_write) = mpsc::channel();
        let (tell_news, news) = mpsc::sync_channel(NEWS_COUNT_MAX);
        let state = Arc::new(State::default());
        let (reading, reader_state) = (stream.try_clone()?, Arc::clone(&state));
        std::thread::spawn(move || {
            let why = read(reading, index, &reader_state, &tell_news);
            reader_state.leave(why);
        });
        let (writing, writer_state) = (stream.try_clone()?, Arc::clone(&state));
        let writer = std::thread::spawn(move || write(writing, &writer_state, &to_write));
        Ok(Self {
            name,
            one_machine: !boot_id.is_empty() && boot_id == hello.boot_id,
            outgoing,
            news: Mutex::new(news),
            state,
            stream,
            writer: Mutex::new(Some(writer)),
        })
    }

    /// Why it left, if it did.
    pub fn left(&self) -> Option<String> {
        lock(&self.state.left).clone()
    }

    fn left_or(&self, otherwise: &str) -> Failure {
        let why = self.left().unwrap_or_else(|| {
            self.state.leave(otherwise.to_owned());
            let _ = self.stream.shutdown(Shutdown::Both); // there is no going on with it
            otherwise.to_owned()
        });
        Failure::Broken(format!("generator {} left: {why}", self.name))
    }

    /// The end of a generator that says what cannot be: nothing else that it says is to be trusted.
    fn distrusted(&self, what: &str) -> Failure {
        // It may have left since: this is what matters.
        *lock(&self.state.left) = None;
        self.left_or(&format!("it is not to be trusted: {what}"))
    }

    /// Says something to it. What it does not hear is noticed when its answer is waited for.
    fn tell(&self, message: ToJoiner) {
        let _ = self.outgoing.send(message);
    }

    /// Waits for news that `take` takes; others are of the past.
    fn wait<T>(&self, take: impl Fn(News) -> Option<T>) -> Result<T, Failure> {
        let until = Instant::now() + ANSWER;
        let news = lock(&self.news);
        loop {
            match news.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(news) => {
                    if let Some(taken) = take(news) {
                        return Ok(taken);
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Err(self.left_or("it gave no answer")),
                Err(RecvTimeoutError::Disconnected) => return Err(self.left_or("it ended")),
            }
        }
    }

    /// Waits for its answer. What it could not do is told with its name.
    fn reply(&self, expected_run: u32) -> Result<Reply, Failure> {
        let reply = self.wait(|news| match news {
            News::Reply { run, reply } if run == expected_run => Some(reply),
            _ => None,
        })?;
        let named = |text: String| format!("generator {}: {text}", self.name);
        match reply {
            Reply::Failed(Failure::Usage(text)) => Err(Failure::Usage(named(text))),
            Reply::Failed(Failure::Broken(text)) => Err(Failure::Broken(named(text))),
            reply => Ok(reply),
        }
    }

    /// Compares its clock with this one.
    ///
    /// # Errors
    /// When it left.
    pub fn compare_clocks(&self) -> Result<Skew, Failure> {
        let mut pings = Vec::new();
        for _ in 0..PING_COUNT {
            let asked_ns = now_ns();
            self.tell(ToJoiner::Ping { sent_ns: 0 });
            let ping = self.wait(|news| match news {
                News::Pong(ping) => Some(ping),
                News::Reply { .. } => None,
            })?;
            if !(asked_ns..=ping.received_ns).contains(&ping.sent_ns) {
                return Err(self.distrusted("it answered a ping that was not sent"));
            }
            pings.push(ping);
        }
        let skew = Skew::of(&pings).expect("there are pings");
        Ok(if self.one_machine {
            skew.of_one_machine()
        } else {
            skew
        })
    }

    /// From now on its clock is this one.
    pub fn set_clock(&self, skew: Skew) {
        self.tell(ToJoiner::SetClock {
            offset_ns: skew.offset_ns,
        });
    }

    /// Tells it what is to be run.
    pub fn prepare(&self, run: u32, scenario: serde_json::Value, generator_count: u32) {
        self.tell(ToJoiner::Prepare {
            run,
            scenario,
            generator_count,
        });
    }

    /// Waits for how many threads it will use, and how many processors they may use at once.
    ///
    /// # Errors
    /// When it cannot take part.
    pub fn ready(&self, run: u32) -> Result<(u32, f64), Failure> {
        match self.reply(run)? {
            Reply::Ready {
                thread_count,
                core_count,
            } => {
                let fits = (1..=THREAD_COUNT_MAX).contains(&thread_count)
                    && core_count > 0.0
                    && core_count <= f64::from(thread_count);
                if !fits {
                    return Err(self.distrusted(&format!(
                        "it has {thread_count} threads on {core_count} processors"
                    )));
                }
                Ok((thread_count, core_count))
            }
            _ => Err(self.left_or("it gave another answer than was asked for")),
        }
    }

    /// Has it start its workers; gives what is shared with them, and them. [`Link::started`] must follow. The run has
    /// `member_count` members, and no more publishers.
    pub fn start_workers(
        self: &Arc<Self>,
        run: u32,
        worker_first: u32,
        worker_count: u32,
        member_count: u32,
    ) -> (Arc<Shared>, Elsewhere) {
        let outgoing = self.outgoing.clone();
        let shared = Arc::new(Shared::heard_by(move |orders: &Orders| {
            let _ = outgoing.send(ToJoiner::Orders {
                run,
                orders: orders.clone(),
            });
        }));
        *lock(&self.state.run) = Some((run, Arc::clone(&shared)));
        self.tell(ToJoiner::Start {
            run,
            worker_first,
            worker_count,
        });
        let elsewhere = Elsewhere {
            link: Arc::clone(self),
            run,
            member_count,
            over: false,
        };
        (shared, elsewhere)
    }

    /// Waits until its workers have started.
    ///
    /// # Errors
    /// When they could not.
    pub fn started(&self, run: u32) -> Result<(), Failure> {
        match self.reply(run)? {
            Reply::Started => Ok(()),
            _ => Err(self.left_or("it gave another answer than was asked for")),
        }
    }

    /// Tells it that there will be no further run, and waits until that is written.
    pub fn dismiss(&self) {
        self.tell(ToJoiner::Farewell);
        if let Some(writer) = lock(&self.writer).take() {
            let _ = writer.join();
        }
    }
}

/// The writing thread: what others have to say to the generator, and a sign of life between.
fn write(mut stream: TcpStream, state: &State, messages: &Receiver<ToJoiner>) {
    loop {
        let mut message = match messages.recv_timeout(ALIVE) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => ToJoiner::Alive,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        match &mut message {
            ToJoiner::Ping { sent_ns } => *sent_ns = now_ns(),
            ToJoiner::Farewell => state.dismissed.store(true, Ordering::Release),
            _ => {}
        }
        if let Err(error) = wire::send(&mut stream, &message) {
            state.leave(format!("it does not read: {error}"));
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
        if state.dismissed.load(Ordering::Acquire) {
            return;
        }
    }
}

/// The reading thread: hands on what the generator says until it leaves; gives why.
fn read(stream: TcpStream, index: u32, state: &State, tell_news: &SyncSender<News>) -> String {
    let mut stream = BufReader::with_capacity(1 << 16, stream);
    loop {
        let message = match wire::receive(&mut stream, MESSAGE_BYTES_MAX) {
            Ok(message) => message,
            Err(error) => return wire::reason(&error),
        };
        let news = match message {
            FromJoiner::Alive => continue,
            FromJoiner::Pong { sent_ns, at_ns } => News::Pong(Ping {
                sent_ns,
                at_ns,
                received_ns: now_ns(),
            }),
            FromJoiner::Reply { run, reply } => News::Reply { run, reply },
            FromJoiner::Progress {
                run,
                at_ns,
                seen,
                finished,
                threads,
                interval,
            } => {
                let current = lock(&state.run).clone();
                let Some((_, shared)) = current.filter(|(current, _)| *current == run) else {
                    continue;
                };
                if !are_counts(&seen) {
                    return format!("it is not to be trusted: {BEYOND_COUNTING}");
                }
                let at_ns = at_ns.min(now_ns()); // nobody looks in the future
                shared.progress.set(seen);
                shared.progress_at_ns.store(at_ns, Ordering::Release);
                if let Some(mut threads) = threads {
                    threads.truncate(THREADS_SEEN_MAX);
                    let mut current = lock(&shared.threads);
                    *current = numbered(index, threads);
                    shared.threads_at_ns.store(at_ns, Ordering::Relaxed);
                }
                match interval.as_deref().map(histogram::decode).transpose() {
                    Ok(Some(interval)) => shared.push_interval(interval),
                    Ok(None) => {}
                    Err(error) => return format!("what it said is not understood: {error}"),
                }
                if finished {
                    shared.progress.finished.store(true, Ordering::Release);
                }
                continue;
            }
        };
        match tell_news.try_send(news) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return "it says what nobody asked for".to_owned(),
            Err(TrySendError::Disconnected(_)) => return "the coordinator has ended".to_owned(),
        }
    }
}

/// Why a generator is not to be trusted that tells more than [`COUNT_MAX`].
const BEYOND_COUNTING: &str = "it tells a number that no run can count";

/// Whether all numbers in `told` can be counts of a run, and sums of them over all generators be held.
fn are_counts(told: &impl Serialize) -> bool {
    fn all(value: &Value) -> bool {
        match value {
            Value::Number(number) => number.as_u64().is_some_and(|count| count <= COUNT_MAX),
            Value::Array(values) => values.iter().all(all),
            Value::Object(values) => values.values().all(all),
            _ => true,
        }
    }
    serde_json::to_value(told).is_ok_and(|value| all(&value))
}

/// Threads with ids that no other generator's threads have.
fn numbered(index: u32, mut threads: Vec<Thread>) -> Vec<Thread> {
    for thread in &mut threads {
        thread.id = index << THREAD_ID_BITS | thread.id & ((1 << THREAD_ID_BITS) - 1);
    }
    threads
}

/// The workers of a joined generator.
pub struct Elsewhere {
    link: Arc<Link>,
    run: u32,
    member_count: u32,
    over: bool,
}

impl Elsewhere {
    /// How much its publishers have published.
    fn published(&self) -> Result<Vec<(u32, u32)>, Failure> {
        let mut published = Vec::new();
        loop {
            match self.link.reply(self.run)? {
                Reply::Published { counts, last } => {
                    published.extend(counts);
                    self.check_published(&published)?;
                    if last {
                        return Ok(published);
                    }
                }
                _ => {
                    return Err(self
                        .link
                        .left_or("it gave another answer than was asked for"));
                }
            }
        }
    }

    /// Refuses publishers that the run does not have: there is one a member at most, and each is told of once.
    fn check_published(&self, published: &[(u32, u32)]) -> Result<(), Failure> {
        let strange = published
            .iter()
            .find(|(publisher, _)| *publisher >= self.member_count);
        if let Some((publisher, _)) = strange {
            return Err(self.link.distrusted(&format!(
                "it tells of publisher {publisher} in a run of {} members",
                self.member_count
            )));
        }
        if published.len() > self.member_count as usize {
            return Err(self.link.distrusted(&format!(
                "it tells of {} publishers in a run of {} members",
                published.len(),
                self.member_count
            )));
        }
        Ok(())
    }

    /// What its workers have counted.
    fn counted(&self, published: &[u32]) -> Result<(Outcome, Tally), Failure> {
        for (counts, last) in wire::parts(published) {
            self.link.tell(ToJoiner::Published {
                run: self.run,
                counts: counts.to_vec(),
                last,
            });
        }
        match self.link.reply(self.run)? {
            Reply::Tally(counted) if are_counts(&counted) => Ok(*counted),
            Reply::Tally(_) => Err(self.link.distrusted(BEYOND_COUNTING)),
            _ => Err(self
                .link
                .left_or("it gave another answer than was asked for")),
        }
    }

    /// A generator that left, or failed, is a fault of the report, where the rest still counts: its part is `nothing`.
    fn or_without<T>(&self, found: Result<T, Failure>, nothing: T) -> T {
        found.unwrap_or_else(|failure| {
            let (Failure::Usage(why) | Failure::Broken(why)) = failure;
            let _ = self.link.left_or(&why); // the report asks for it
            nothing
        })
    }
}

impl Troupe for Elsewhere {
    fn stop(&mut self) -> Result<Vec<(u32, u32)>, Failure> {
        Ok(self.or_without(self.published(), Vec::new()))
    }

    fn tally(&mut self, published: &[u32]) -> Result<(Outcome, Tally), Failure> {
        let counted = self.counted(published);
        self.over = counted.is_ok();
        let counted = counted.map(|(mut outcome, tally)| {
            if let Some(first) = &mut outcome.first_error {
                *first = format!("at {}, {}", self.link.name, wire::printable(first));
            }
            let refusals = std::mem::take(&mut outcome.refusals).into_iter();
            outcome.refusals = refusals
                .map(|(words, count)| (wire::printable(&words), count))
                .collect();
            (outcome, tally)
        });
        Ok(self.or_without(counted, (Outcome::new(), Tally::default())))
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        if !self.over {
            self.link.tell(ToJoiner::Abandon { run: self.run });
        }
        *lock(&self.link.state.run) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_two_generators_do_not_share_an_id() {
        let thread = |id| Thread {
            id,
            name: "load-0".into(),
            cpu_ns: 1,
            wait_ns: 2,
        };
        let first = numbered(1, vec![thread(77), thread(4_194_303)]);
        let second = numbered(2, vec![thread(77)]);
        assert_eq!(first[0].id & 0x3f_ffff, 77);
        assert_eq!(first[1].id & 0x3f_ffff, 4_194_303);
        assert!(first[0].id != second[0].id && first[0].id != 77);
    }
}
