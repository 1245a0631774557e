//! What is planted, as it is typed: one flag for each behaviour, each checked before the server listens.

use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::distribution::Distribution;
use crate::failure::Failure;

/// Messages or deliveries a second at most, where a limit is planted.
const RATE_MAX: f64 = 1e9;
/// The longest duration that can be planted, nanoseconds: a day.
const DURATION_MAX_NS: u64 = 86_400 * 1_000_000_000;

/// What is planted. The default is an honest server.
#[derive(Debug, Clone, Args)]
pub struct Plants {
    /// Write each delivery that long after its message came: constant:5ms, uniform:1ms-9ms, or
    /// steps:1ms@0.9,10ms@0.09,100ms@0.01. A later message never overtakes an earlier one at any member: it waits
    #[arg(long, value_name = "DIST")]
    pub delay: Option<Distribution>,
    /// Whether the delay is drawn once for a message, so that all its members wait alike, or anew for each delivery
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Draw::Message)]
    pub delay_each: Draw,
    /// Delay each delivery by that much more with every second since the first message
    #[arg(long, value_name = "FOR", value_parser = parse_duration, default_value = "0s")]
    pub slow_down: u64,
    /// Stop altogether, that long after the first message: 2s:1s stops from 2 s on for 1 s. Repeatable
    #[arg(long, value_name = "AT:FOR")]
    pub stall: Vec<Span>,
    /// Do not write one delivery in N
    #[arg(long, value_name = "1/N")]
    pub lose: Option<OneIn>,
    /// Write one delivery in N twice
    #[arg(long, value_name = "1/N")]
    pub duplicate: Option<OneIn>,
    /// Write one delivery in N after the next one of the same publisher to the same member
    #[arg(long, value_name = "1/N")]
    pub reorder: Option<OneIn>,
    /// Change one bit in the payload of one delivery in N
    #[arg(long, value_name = "1/N")]
    pub corrupt: Option<OneIn>,
    /// Write one delivery in N to a member of another room as well
    #[arg(long, value_name = "1/N")]
    pub misroute: Option<OneIn>,
    /// Plant none of these five before that long after the first delivery
    #[arg(long, value_name = "FOR", value_parser = parse_duration, default_value = "0s")]
    pub faults_after: u64,
    /// Keep so many bytes of each message for ever, up to 1 GiB of all
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub leak: usize,
    /// Answer each upgrade that long after its request came
    #[arg(long, value_name = "FOR", value_parser = parse_duration, default_value = "0s")]
    pub answer_after: u64,
    /// Refuse connections beyond so many with 503
    #[arg(long, value_name = "N")]
    pub connections_max: Option<u32>,
    /// Refuse the first N upgrades with 503
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub refuse_first: u32,
    /// Refuse upgrades with 503, from that long after the first upgrade on, for that long: 2s:500ms. Repeatable
    #[arg(long, value_name = "AT:FOR")]
    pub refuse: Vec<Span>,
    /// Serve so many messages a second: one after the other, each in 1/N s; what comes faster waits
    #[arg(long, value_name = "N")]
    pub messages_per_s_max: Option<f64>,
    /// Serve so many deliveries a second: one after the other, each in 1/N s; what comes faster waits
    #[arg(long, value_name = "N")]
    pub deliveries_per_s_max: Option<f64>,
    /// Close all that are there, that long after the first upgrade, with that code: 2s:1012. They are told to
    /// reconnect before; who comes later stays. 1006 ends the stream without a close frame, and without a word
    #[arg(long, value_name = "AFTER:CODE")]
    pub close_after: Option<Closing>,
    /// Spread those closes evenly over that long
    #[arg(long, value_name = "FOR", value_parser = parse_duration, default_value = "1s")]
    pub close_over: u64,
    /// The after_ms that they are told
    #[arg(long, value_name = "MS", default_value_t = 1_000)]
    pub reconnect_after_ms: u32,
    /// End the stream instead of answering an upgrade
    #[arg(long)]
    pub end_before_answer: bool,
    /// Answer with what no WebSocket server sends
    #[arg(long, value_name = "WHAT", value_enum)]
    pub garbage: Option<Garbage>,
    /// Which deliveries are chosen, and in which order delays come
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

impl Default for Plants {
    fn default() -> Self {
        Self {
            delay: None,
            delay_each: Draw::Message,
            slow_down: 0,
            stall: Vec::new(),
            lose: None,
            duplicate: None,
            reorder: None,
            corrupt: None,
            misroute: None,
            faults_after: 0,
            leak: 0,
            answer_after: 0,
            connections_max: None,
            refuse_first: 0,
            refuse: Vec::new(),
            messages_per_s_max: None,
            deliveries_per_s_max: None,
            close_after: None,
            close_over: 1_000_000_000,
            reconnect_after_ms: 1_000,
            end_before_answer: false,
            garbage: None,
            seed: 1,
        }
    }
}

impl Plants {
    /// Refuses what cannot be planted.
    ///
    /// # Errors
    /// In words: a rate out of bounds, a fault rate of all deliveries together above one in two, stalls that overlap.
    pub fn check(&self) -> Result<(), Failure> {
        for (flag, rate) in [
            ("--messages-per-s-max", self.messages_per_s_max),
            ("--deliveries-per-s-max", self.deliveries_per_s_max),
        ] {
            if rate.is_some_and(|rate| !(0.001..=RATE_MAX).contains(&rate)) {
                return Err(Failure::Usage(format!("{flag} is 0.001 to {RATE_MAX}")));
            }
        }
        let share: f64 = self
            .faults()
            .into_iter()
            .flatten()
            .map(|one_in| 1.0 / one_in.0 as f64)
            .sum();
        if share > 0.5 {
            return Err(Failure::Usage(
                "the faults are more than one delivery in two together: they could not be kept apart".into(),
            ));
        }
        if self
            .stalls()
            .windows(2)
            .any(|pair| pair[0].at_ns + pair[0].for_ns > pair[1].at_ns)
        {
            return Err(Failure::Usage("two stalls overlap".into()));
        }
        Ok(())
    }

    /// The stalls in the order in which they come.
    pub fn stalls(&self) -> Vec<Span> {
        let mut stalls = self.stall.clone();
        stalls.sort_by_key(|stall| stall.at_ns);
        stalls
    }

    /// How often each fault comes, in the order of [`super::faults::Fault`].
    pub fn faults(&self) -> [Option<OneIn>; 5] {
        [
            self.lose,
            self.duplicate,
            self.reorder,
            self.corrupt,
            self.misroute,
        ]
    }
}

/// What a delay is drawn for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Draw {
    /// Once for a message: all members wait alike.
    Message,
    /// For each delivery: members wait differently.
    Delivery,
}

/// What is sent in place of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Garbage {
    /// An answer to the upgrade that is no HTTP.
    Http,
    /// An answer to the upgrade whose accept key belongs to another request.
    Key,
    /// A right answer to the upgrade, and behind it bytes that are no frame.
    Frames,
}

/// One in so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OneIn(pub u64);

impl FromStr for OneIn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_prefix("1/")
            .and_then(|count| count.parse().ok())
            .filter(|count| *count > 1)
            .map(Self)
            .ok_or_else(|| format!("{text}: write 1/N, as 1/10000, with N from 2 on"))
    }
}

/// A time in which something is planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// From when on, nanoseconds after the first message or upgrade.
    pub at_ns: u64,
    /// For how long, nanoseconds.
    pub for_ns: u64,
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (at, length) = text
            .split_once(':')
            .ok_or_else(|| format!("{text}: write AT:FOR, as 2s:1s"))?;
        Ok(Self {
            at_ns: parse_duration(at)?,
            for_ns: parse_duration(length)?,
        })
    }
}

/// The close code that stands for the end of the stream without a close frame (RFC 6455 §7.4.1).
pub const CLOSE_ABNORMAL: u16 = 1006;

/// When all connections are closed, and with which code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closing {
    /// Nanoseconds after the first upgrade.
    pub after_ns: u64,
    /// The close code; [`CLOSE_ABNORMAL`]: none.
    pub code: u16,
}

impl FromStr for Closing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (after, code) = text
            .split_once(':')
            .ok_or_else(|| format!("{text}: write AFTER:CODE, as 2s:1012"))?;
        let code = code
            .parse()
            .ok()
            .filter(|code| matches!(code, 1000..=1003 | 1006..=1014 | 3000..=4999))
            .ok_or_else(|| format!("{code}: no close code that may be sent (RFC 6455 §7.4)"))?;
        Ok(Self {
            after_ns: parse_duration(after)?,
            code,
        })
    }
}

/// Reads a duration such as `250us`, `5ms` or `1.5s`, as nanoseconds.
///
/// # Errors
/// In words: no number, no unit, more than a day.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let unit_at = text
        .find(|character: char| !(character.is_ascii_digit() || character == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_ns = match unit {
        "ns" => 1.0,
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 6e10,
        _ => return Err(format!("{text}: a number and ns, us, ms, s or m, as 5ms")),
    };
    let ns = number
        .parse::<f64>()
        .map_err(|_| format!("{text}: {number} is no number"))?
        * unit_ns;
    if ns > DURATION_MAX_NS as f64 {
        return Err(format!("{text}: a day at most"));
    }
    Ok(ns.round() as u64)
}

/// Writes a duration as [`parse_duration`] reads it, in the largest unit that keeps it whole.
pub fn duration_text(ns: u64) -> String {
    for (unit_ns, unit) in [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")] {
        if ns.is_multiple_of(unit_ns) {
            return format!("{}{unit}", ns / unit_ns);
        }
    }
    format!("{ns}ns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_alike() {
        for (text, ns) in [
            ("0s", 0),
            ("250us", 250_000),
            ("5ms", 5_000_000),
            ("1s", 1_000_000_000),
            ("17ns", 17),
        ] {
            assert_eq!(parse_duration(text), Ok(ns));
            assert_eq!(duration_text(ns), text);
        }
        assert_eq!(parse_duration("1.5s"), Ok(1_500_000_000));
        assert_eq!(parse_duration("2m"), Ok(120_000_000_000));
        for wrong in ["5", "ms", "-5ms", "1..2s", "5 ms x", "2000m"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn flags_are_read_as_they_are_written() {
        assert_eq!("1/10000".parse(), Ok(OneIn(10_000)));
        let stall = Span {
            at_ns: 2_000_000_000,
            for_ns: 500_000_000,
        };
        assert_eq!("2s:500ms".parse(), Ok(stall));
        let closing = Closing {
            after_ns: 1_000_000_000,
            code: 1012,
        };
        assert_eq!("1s:1012".parse(), Ok(closing));
        for wrong in ["1/1", "1/0", "2/3", "10000", "1/x"] {
            assert!(wrong.parse::<OneIn>().is_err(), "{wrong}");
        }
        for wrong in ["2s", "2s:1", "1s:x"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
        for wrong in ["1s:1005", "1s:1004", "1s:1015", "1s:999", "1s:5000", "1s"] {
            assert!(wrong.parse::<Closing>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_planted_is_refused() {
        assert_eq!(Plants::default().check(), Ok(()));
        let stalls = |list: &[&str]| Plants {
            stall: list.iter().map(|text| text.parse().unwrap()).collect(),
            ..Plants::default()
        };
        assert_eq!(stalls(&["3s:1s", "1s:2s"]).check(), Ok(()));
        assert!(stalls(&["2s:1s", "1s:1001ms"]).check().is_err());
        let crowded = Plants {
            lose: Some(OneIn(4)),
            corrupt: Some(OneIn(3)),
            ..Plants::default()
        };
        assert!(crowded.check().is_err());
        let rate = Plants {
            messages_per_s_max: Some(0.0),
            ..Plants::default()
        };
        assert!(rate.check().is_err());
    }
}
