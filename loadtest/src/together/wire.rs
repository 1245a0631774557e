//! What a coordinator and those who joined it say to each other: JSON, each message behind its length.
//!
//! ```text
//! coordinator                                   joiner
//!   Challenge ────────────────────────────────▶           who is there?            (see hello.rs)
//!             ◀──────────────────────────────── Hello
//!   Welcome   ────────────────────────────────▶
//!   Ping (16 times), SetClock ────────────────▶ Pong       one clock
//!   Prepare { scenario } ─────────────────────▶ Ready      how many threads?
//!   Start { workers } ────────────────────────▶ Started    its share of the members
//!   Orders, as often as they change ──────────▶
//!             ◀──────────────────────────────── Progress   every 50 ms
//!   Orders { stop } ──────────────────────────▶ Published  by its publishers
//!   Published by all ─────────────────────────▶ Tally
//!   Farewell  ────────────────────────────────▶
//! ```

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::{Orders, Outcome, Seen, Tally};
use crate::failure::Failure;
use crate::server::Thread;

/// Counts the changes of what is said here that another version would not understand.
pub const WIRE_VERSION: u32 = 1;
/// Bytes of a message at most.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Publishers whose counts stand in one message.
const PUBLISHED_COUNT_MAX: usize = 1 << 18;
/// Characters of a stranger's words that are shown.
const WORDS_LENGTH_MAX: usize = 300;

/// What the coordinator says.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToJoiner {
    /// Nothing, but it is there.
    Alive,
    /// To be answered at once.
    Ping {
        /// The coordinator's clock.
        sent_ns: u64,
    },
    /// The coordinator's clock is so far ahead of the joiner's machine's.
    SetClock {
        /// Nanoseconds.
        offset_ns: i64,
    },
    /// What is to be run.
    Prepare {
        /// Counts the runs of the session.
        run: u32,
        /// The scenario's name, and its arguments.
        scenario: Value,
        /// How many generators share it.
        generator_count: u32,
    },
    /// Its workers are these, of so many.
    Start {
        /// See [`ToJoiner::Prepare`].
        run: u32,
        /// The first of its workers.
        worker_first: u32,
        /// Workers of all generators.
        worker_count: u32,
    },
    /// Orders have changed.
    Orders {
        /// See [`ToJoiner::Prepare`].
        run: u32,
        /// All of them.
        orders: Orders,
    },
    /// How much each publisher of the run published, in their order; several of these follow one another.
    Published {
        /// See [`ToJoiner::Prepare`].
        run: u32,
        /// The counts of the next publishers.
        counts: Vec<u32>,
        /// There are no more.
        last: bool,
    },
    /// The run is given up.
    Abandon {
        /// See [`ToJoiner::Prepare`].
        run: u32,
    },
    /// There will be no further run.
    Farewell,
}

/// What a joiner says.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromJoiner {
    /// Nothing, but it is there.
    Alive,
    /// A [`ToJoiner::Ping`] came.
    Pong {
        /// As in the ping.
        sent_ns: u64,
        /// The clock of the joiner's machine, when it came.
        at_ns: u64,
    },
    /// What is seen of its workers.
    Progress {
        /// See [`ToJoiner::Prepare`].
        run: u32,
        /// When it looked, by the coordinator's clock.
        at_ns: u64,
        /// The sum of its workers.
        seen: Seen,
        /// A worker has returned.
        finished: bool,
        /// Its threads at the same moment, if it looked at them.
        threads: Option<Vec<Thread>>,
        /// Latencies of a second, if one is over, as [`crate::histogram::encode`] writes them.
        interval: Option<String>,
    },
    /// An answer.
    Reply {
        /// See [`ToJoiner::Prepare`].
        run: u32,
        /// What to.
        reply: Reply,
    },
}

/// What a joiner answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// To [`ToJoiner::Prepare`].
    Ready {
        /// Threads that it will use.
        thread_count: u32,
        /// Processors that they may use at once.
        core_count: f64,
    },
    /// To [`ToJoiner::Start`].
    Started,
    /// To orders to stop: how much its publishers published, as publisher and count; several of these follow one another.
    Published {
        /// Some of its publishers.
        counts: Vec<(u32, u32)>,
        /// There are no more.
        last: bool,
    },
    /// To [`ToJoiner::Published`]: what was counted.
    Tally(Box<(Outcome, Tally)>),
    /// It cannot go on with this run.
    Failed(Failure),
}

/// Counts of publishers in parts that fit a message each, and whether a part is the last. There is at least one.
pub fn parts<T>(counts: &[T]) -> impl Iterator<Item = (&[T], bool)> {
    let part_count = counts.len().div_ceil(PUBLISHED_COUNT_MAX).max(1);
    (1..=part_count).map(move |number| {
        let from = (number - 1) * PUBLISHED_COUNT_MAX;
        let to = counts.len().min(number * PUBLISHED_COUNT_MAX);
        (&counts[from..to], number == part_count)
    })
}

/// Words of somebody who may be a stranger, as they may stand on a terminal.
pub fn printable(words: &str) -> String {
    let words = words.chars().filter(|char| !char.is_control());
    words.take(WORDS_LENGTH_MAX).collect()
}

/// Sends a message.
///
/// # Errors
/// The stream's; or the message is longer than [`MESSAGE_BYTES_MAX`].
pub fn send(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > MESSAGE_BYTES_MAX {
        return Err(too_long(length, MESSAGE_BYTES_MAX));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_be_bytes());
    stream.write_all(&bytes)
}

/// Receives a message of at most `bytes_max` bytes. Takes memory for what has come, not for what is announced.
///
/// # Errors
/// The stream's; `InvalidData` when it is no such message, or longer.
pub fn receive<T: DeserializeOwned>(stream: &mut impl Read, bytes_max: usize) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > bytes_max {
        return Err(too_long(length, bytes_max));
    }
    let mut bytes = Vec::new();
    stream.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, printable(&error.to_string())))
}

fn too_long(length: usize, bytes_max: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a message of {length} bytes, where at most {bytes_max} are taken"),
    )
}

/// Why a stream can no longer be read, for a person.
pub fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ended the stream".to_owned(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it was silent".to_owned(),
        io::ErrorKind::InvalidData => format!("what it said is not understood: {error}"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was_and_the_next_follows() {
        let mut stream = Vec::new();
        let published = ToJoiner::Published {
            run: 3,
            counts: vec![0, 7, u32::MAX],
            last: true,
        };
        send(&mut stream, &published).unwrap();
        send(&mut stream, &ToJoiner::Farewell).unwrap();
        let mut stream = stream.as_slice();
        let first: ToJoiner = receive(&mut stream, 1_000).unwrap();
        assert_eq!(format!("{first:?}"), format!("{published:?}"));
        let second: ToJoiner = receive(&mut stream, 1_000).unwrap();
        assert!(matches!(second, ToJoiner::Farewell) && stream.is_empty());
    }

    #[test]
    fn counts_are_parted_and_put_together_again() {
        for count in [
            0,
            1,
            PUBLISHED_COUNT_MAX,
            PUBLISHED_COUNT_MAX + 1,
            3 * PUBLISHED_COUNT_MAX,
        ] {
            let counts: Vec<u32> = (0..count as u32).collect();
            let parts: Vec<(&[u32], bool)> = parts(&counts).collect();
            let together: Vec<u32> = parts.iter().flat_map(|(part, _)| *part).copied().collect();
            assert_eq!(together, counts);
            let lasts: Vec<bool> = parts.iter().map(|(_, last)| *last).collect();
            assert!(
                lasts.iter().position(|last| *last) == Some(lasts.len() - 1),
                "{lasts:?}"
            );
            assert!(
                parts
                    .iter()
                    .all(|(part, _)| part.len() <= PUBLISHED_COUNT_MAX)
            );
        }
    }

    #[test]
    fn a_stranger_does_not_write_on_the_terminal_as_he_likes() {
        let text = r#""\u001b[2Jboo""#;
        let framed = [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        let error = receive::<ToJoiner>(&mut framed.as_slice(), 1_000).unwrap_err();
        assert!(reason(&error).contains("boo") && !reason(&error).contains('\u{1b}'));
        assert_eq!(printable(&"x".repeat(9_000)).len(), WORDS_LENGTH_MAX);
    }

    #[test]
    fn what_is_too_long_cut_short_or_no_message_is_refused() {
        let kind = |bytes: &[u8]| {
            receive::<ToJoiner>(&mut &*bytes, 16)
                .expect_err("no message")
                .kind()
        };
        let framed = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        assert_eq!(kind(b"GET / HTTP/1.1\r\n\r\n"), io::ErrorKind::InvalidData);
        assert_eq!(
            kind(&framed("\"Alive\"")[..8]),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(kind(&framed("\"Nothing\"")), io::ErrorKind::InvalidData);
        assert_eq!(
            kind(&framed("[\"Alive\", \"Alive\"]")),
            io::ErrorKind::InvalidData
        );
        assert_eq!(kind(&[0, 0]), io::ErrorKind::UnexpectedEof);
        assert!(receive::<ToJoiner>(&mut &*framed("\"Alive\""), 7).is_ok());
    }
}
