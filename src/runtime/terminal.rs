//! A terminal that a program takes over for a while: raw input, the alternate screen, signals, and somebody who is asked
//! again and again, all as events.
//!
//! Invariant: however the program ends (it returns, it panics on whatever thread, it is told to stop), the terminal is left
//! as it was found. SIGKILL alone is beyond that.
#![forbid(unsafe_code)]

use std::io::{self, Read as _, Write as _};
use std::panic;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::clock::Clock;
use crate::time::Tick;

/// Alternate screen, no cursor, no wrapping of long lines (xterm control sequences, DECSET 1049, 25, 7).
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
/// All of it taken back.
const LEAVE: &str = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";
/// Columns and lines where the terminal does not tell.
const SIZE_DEFAULT: (usize, usize) = (80, 24);
/// Events that wait at most; who has one more waits, too.
const EVENT_COUNT_MAX: usize = 64;
/// Bytes of one read of the keyboard.
const TYPED_BYTES_MAX: usize = 256;

/// Whether the terminal is taken over, and what it was like before.
static HELD: Mutex<Held> = Mutex::new(Held::Free);
static PANIC_HOOK: Once = Once::new();

enum Held {
    /// It is as it was found.
    Free,
    /// It is ours, and was like this.
    Ours(Termios),
    /// It has been given back and is not taken over again: the program is at its end.
    Done,
}

/// Something happened.
#[derive(Debug)]
pub enum Event<T> {
    /// Keys, as the bytes that the terminal sends for them.
    Typed(Vec<u8>),
    /// Whoever is asked has answered.
    Answered(T),
    /// The size may be another, or the screen somebody else's meanwhile: everything is to be drawn anew.
    Changed,
    /// A signal wants the process to end. [`end_by`] does as it says, once the terminal is given back.
    Stop(i32),
    /// The terminal is gone, or whoever is asked has died.
    Over,
    /// Nothing, for as long as was waited.
    Nothing,
}

/// The terminal, while it is taken over. Dropped, it is given back.
#[derive(Debug)]
pub struct Terminal<T> {
    events: Receiver<Event<T>>,
    clock: Clock,
}

impl<T: Send + 'static> Terminal<T> {
    /// Takes the terminal over that standard input and output are. `ask` is called every `interval` on a thread of its own,
    /// the first time after one interval.
    ///
    /// # Errors
    /// It is no terminal, or it cannot be taken over.
    pub fn open(interval: Duration, ask: impl FnMut() -> T + Send + 'static) -> io::Result<Self> {
        let signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGTSTP, SIGWINCH, SIGCONT])?;
        PANIC_HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |what| {
                // First the terminal, so that the message is seen.
                give_back(Held::Done);
                before(what);
            }));
        });
        let (sender, events) = bounded(EVENT_COUNT_MAX);
        // Whatever fails below, the terminal is given back.
        let terminal = Self {
            events,
            clock: Clock::start(),
        };
        take_over()?;
        spawn("keys", sender.clone(), read_keys)?;
        spawn("signals", sender.clone(), |sender| {
            watch(signals, &sender);
        })?;
        spawn("questions", sender, move |sender| {
            ask_again(interval, ask, &sender);
        })?;
        Ok(terminal)
    }

    /// Awaits what happens next, `timeout` at most.
    pub fn next(&self, timeout: Duration) -> Event<T> {
        match self.events.recv_timeout(timeout) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => Event::Nothing,
            Err(RecvTimeoutError::Disconnected) => Event::Over,
        }
    }

    /// Time since the terminal was taken over.
    #[must_use]
    pub fn now(&self) -> Tick {
        self.clock.now()
    }

    /// Gives the terminal back and stops the process until it is continued; then [`Event::Changed`] comes.
    ///
    /// # Errors
    /// The process cannot be stopped.
    pub fn suspend(&self) -> io::Result<()> {
        stop()
    }
}

impl<T> Terminal<T> {
    /// Writes to the terminal.
    ///
    /// # Errors
    /// It is gone.
    pub fn show(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

impl<T> Drop for Terminal<T> {
    fn drop(&mut self) {
        give_back(Held::Done);
    }
}

/// Columns and lines of the terminal that standard output is.
#[must_use]
pub fn size() -> (usize, usize) {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => SIZE_DEFAULT,
    }
}

/// Seconds since 1970 on the wall clock.
#[must_use]
pub fn unix_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Ends the process as `signal` ends one that does not watch for it, so that whoever started it sees why.
pub fn end_by(signal: i32) {
    // It fails for a signal that there is none of; then the caller goes on to its end.
    let _ = emulate_default_handler(signal);
}

/// Makes the terminal ours, anew if it is already: others may have changed it.
fn take_over() -> io::Result<()> {
    let mut held = held();
    let before = match &*held {
        Held::Free => tcgetattr(io::stdin())?,
        Held::Ours(before) => before.clone(),
        Held::Done => return Ok(()),
    };
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
    *held = Held::Ours(before);
    let mut out = io::stdout().lock();
    out.write_all(ENTER.as_bytes())?;
    out.flush()
}

/// Leaves the terminal as it was found, where it is ours.
fn give_back(then: Held) {
    let mut held = held();
    if let Held::Ours(before) = &*held {
        // A terminal that is gone has nothing to be given back.
        let mut out = io::stdout().lock();
        let _ = out.write_all(LEAVE.as_bytes());
        let _ = out.flush();
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
    }
    if !matches!(*held, Held::Done) {
        *held = then;
    }
}

fn held() -> MutexGuard<'static, Held> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stops the process. It comes back when it is continued, and so does the terminal ([`watch`]).
fn stop() -> io::Result<()> {
    give_back(Held::Free);
    emulate_default_handler(SIGTSTP)
}

/// Runs `work` on a thread. The thread's end is an event, so that nobody waits for the dead.
fn spawn<T: Send + 'static>(
    name: &str,
    sender: Sender<Event<T>>,
    work: impl FnOnce(Sender<Event<T>>) + Send + 'static,
) -> io::Result<()> {
    let last = Last(sender.clone());
    let body = move || {
        let _last = last;
        work(sender);
    };
    thread::Builder::new().name(name.into()).spawn(body)?;
    Ok(())
}

/// Says that a thread has ended, however it did.
struct Last<T>(Sender<Event<T>>);

impl<T> Drop for Last<T> {
    fn drop(&mut self) {
        // Nobody listens any more: the program is at its end.
        let _ = self.0.send(Event::Over);
    }
}

fn read_keys<T>(sender: Sender<Event<T>>) {
    let mut bytes = [0; TYPED_BYTES_MAX];
    loop {
        match io::stdin().lock().read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => {
                if sender.send(Event::Typed(bytes[..count].to_vec())).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn watch<T>(mut signals: Signals, sender: &Sender<Event<T>>) {
    let mut is_stopping = false;
    for signal in signals.forever() {
        let event = match signal {
            SIGWINCH => Event::Changed,
            SIGTSTP => match stop() {
                Ok(()) => continue,
                Err(_) => return,
            },
            SIGCONT => match take_over() {
                Ok(()) => Event::Changed,
                Err(_) => return,
            },
            // The second one does not wait for a program that may hang on its terminal.
            _ if is_stopping => {
                give_back(Held::Done);
                end_by(signal);
                return;
            }
            _ => {
                is_stopping = true;
                Event::Stop(signal)
            }
        };
        if sender.send(event).is_err() {
            return;
        }
    }
}

fn ask_again<T>(interval: Duration, mut ask: impl FnMut() -> T, sender: &Sender<Event<T>>) {
    let mut next = Instant::now() + interval;
    loop {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        if sender.send(Event::Answered(ask())).is_err() {
            return;
        }
        // Who answers late is not asked twice in a row.
        next = (next + interval).max(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::{Command, Stdio};

    use super::*;

    /// Set where a test is to panic, on a terminal of its own.
    const ON_A_TERMINAL: &str = "PANIC_ON_A_TERMINAL";
    const FOREVER: Duration = Duration::from_secs(3_600);

    /// Runs a test of this module under script(1), which gives it a terminal, and returns all that the terminal is sent,
    /// what stty(1) says of it afterwards included.
    fn on_a_terminal(test: &str) -> String {
        let program = env::current_exe().unwrap();
        let line = format!(
            "{} --exact runtime::terminal::tests::{test} --nocapture; stty -a",
            program.display()
        );
        let out = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env(ON_A_TERMINAL, "1")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn is_given_back(sent: &str) {
        let at = |part: &str| {
            sent.find(part)
                .unwrap_or_else(|| panic!("{part:?} in {sent:?}"))
        };
        assert!(at(ENTER) < at(LEAVE), "{sent:?}");
        assert!(at(LEAVE) < at("as it was told to"), "{sent:?}");
        assert_eq!(sent.matches(LEAVE).count(), 1, "{sent:?}");
        let modes: Vec<&str> = sent[at("as it was told to")..].split_whitespace().collect();
        for mode in ["icanon", "echo", "isig", "opost"] {
            assert!(modes.contains(&mode), "{mode:?} in {modes:?}");
        }
    }

    #[test]
    fn a_panic_gives_the_terminal_back_before_it_is_told() {
        is_given_back(&on_a_terminal("panics"));
    }

    #[test]
    fn a_panic_of_whoever_is_asked_ends_the_program_and_gives_the_terminal_back() {
        is_given_back(&on_a_terminal("panics_when_asked"));
    }

    #[test]
    fn panics() {
        if env::var_os(ON_A_TERMINAL).is_some() {
            let _terminal = Terminal::open(FOREVER, || ()).unwrap();
            panic!("as it was told to");
        }
    }

    #[test]
    fn panics_when_asked() {
        if env::var_os(ON_A_TERMINAL).is_some() {
            let ask = || -> () { panic!("as it was told to") };
            let terminal = Terminal::open(Duration::from_millis(1), ask).unwrap();
            while !matches!(terminal.next(FOREVER), Event::Over) {}
        }
    }
}
