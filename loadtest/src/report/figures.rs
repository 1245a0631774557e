//! Figures by name: the name ends in the unit, and its first words say which part of the run it is about.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Named figures in the order of their making; all of them finite.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures(Vec<(String, f64)>);

impl Figures {
    /// Adds a figure, or replaces the one of that name. False, and nothing is added, when it is not a number.
    pub fn set(&mut self, name: &str, value: f64) -> bool {
        if !value.is_finite() {
            return false;
        }
        match self.0.iter_mut().find(|(found, _)| found == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
        true
    }

    /// A figure by name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.iter()
            .find(|(found, _)| *found == name)
            .map(|(_, value)| value)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(name, value)| {
            // Counts are written as such: 5, not 5.0.
            let whole = value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0;
            (
                name,
                if whole {
                    Number::Whole(value as i64)
                } else {
                    Number::Real(value)
                },
            )
        }))
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Number {
    Whole(i64),
    Real(f64),
}

impl<'de> Deserialize<'de> for Figures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Figures;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("figures, as names and numbers")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Figures, A::Error> {
                let mut figures = Figures::default();
                while let Some((name, value)) = map.next_entry::<String, f64>()? {
                    figures.set(&name, value);
                }
                Ok(figures)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// What a figure's number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Time; the value is so many nanoseconds for each 1 of the figure.
    Time(u64),
    /// Bytes.
    Bytes,
    /// Bytes a second.
    BytesPerSecond,
    /// A part of one, such as of a core's time.
    Share,
    /// How many times something.
    Ratio,
    /// Things a second.
    PerSecond,
    /// Things.
    Count,
}

/// What an amount may be written in, by kind, largest first; `µs` and `us` are the same.
const TIMES: [(&str, f64); 7] = [
    ("h", 3.6e12),
    ("min", 6e10),
    ("s", 1e9),
    ("ms", 1e6),
    ("µs", 1e3),
    ("us", 1e3),
    ("ns", 1.0),
];
const BYTES: [(&str, f64); 8] = [
    ("TiB", 1_099_511_627_776.0),
    ("GiB", 1_073_741_824.0),
    ("MiB", 1_048_576.0),
    ("KiB", 1024.0),
    ("GB", 1e9),
    ("MB", 1e6),
    ("kB", 1e3),
    ("B", 1.0),
];
const THOUSANDS: [(&str, f64); 3] = [("G", 1e9), ("M", 1e6), ("k", 1e3)];

impl Unit {
    /// The unit that a figure's name tells: what stands before `_per_…`, or at the end, a server's name left aside.
    pub fn of(name: &str) -> Self {
        let name = without_server(name);
        let Some(at) = name.find("_per_") else {
            return Self::of_word(last_word(name));
        };
        let (head, tail) = name.split_at(at);
        let per_second = tail == "_per_s" || tail.starts_with("_per_s_");
        match Self::of_word(last_word(head)) {
            Self::Bytes if per_second => Self::BytesPerSecond,
            _ if per_second => Self::PerSecond,
            Self::Count => Self::of_word(last_word(tail)),
            unit => unit,
        }
    }

    fn of_word(word: &str) -> Self {
        match word {
            "ns" => Self::Time(1),
            "us" => Self::Time(1_000),
            "ms" => Self::Time(1_000_000),
            "s" | "seconds" => Self::Time(1_000_000_000),
            "bytes" => Self::Bytes,
            "share" | "loss" => Self::Share,
            "ratio" => Self::Ratio,
            _ => Self::Count,
        }
    }

    /// The value with three significant digits and the unit that suits it. Empty when the plain number says as much.
    pub fn human(self, value: f64) -> String {
        match self {
            Self::Time(ns) => {
                let ns = value * ns as f64;
                let (unit, size) = match ns.abs() {
                    size if size >= 7.2e12 => TIMES[0],
                    size if size >= 1.2e11 => TIMES[1],
                    size if size >= 0.9995e9 => TIMES[2],
                    size if size >= 0.9995e6 => TIMES[3],
                    size if size >= 0.9995e3 => TIMES[4],
                    _ => TIMES[6],
                };
                format!("{} {unit}", digits(ns / size))
            }
            Self::Bytes => scaled(value, &BYTES[..4], " ", "B"),
            Self::BytesPerSecond => scaled(value, &BYTES[..4], " ", "B") + "/s",
            Self::Share => format!("{} %", digits(value * 100.0)),
            Self::Ratio => format!("{}x", digits(value)),
            Self::PerSecond => scaled(value, &THOUSANDS, " ", "") + "/s",
            Self::Count if value.abs() < 10_000.0 => String::new(),
            Self::Count => scaled(value, &THOUSANDS, " ", ""),
        }
    }

    /// A number with or without a unit, in this unit: `50ms`, `1.5 GiB`, `90%`, `20k/s`. None when it is not readable, or
    /// its unit is of another kind.
    pub fn parse(self, text: &str) -> Option<f64> {
        let text = text.trim();
        let split = text
            .find(|letter: char| {
                letter.is_alphabetic() && !matches!(letter, 'e' | 'E')
                    || letter == '%'
                    || letter == '/'
            })
            .unwrap_or(text.len());
        let (number, unit) = (text[..split].trim_end(), text[split..].trim());
        let number: f64 = number
            .parse()
            .ok()
            .filter(|number: &f64| number.is_finite())?;
        if unit.is_empty() {
            return Some(number);
        }
        let size = |units: &[(&str, f64)], unit: &str| {
            units
                .iter()
                .find(|(name, _)| *name == unit)
                .map(|(_, size)| *size)
        };
        Some(match self {
            Self::Time(ns) => number * size(&TIMES, unit)? / ns as f64,
            Self::Bytes => number * size(&BYTES, unit)?,
            Self::BytesPerSecond => number * size(&BYTES, unit.strip_suffix("/s")?)?,
            Self::Share | Self::Ratio if unit == "%" => number / 100.0,
            Self::Share | Self::Ratio => return None,
            Self::PerSecond if unit == "/s" => number,
            Self::PerSecond => number * size(&THOUSANDS, unit.strip_suffix("/s").unwrap_or(unit))?,
            Self::Count => number * size(&THOUSANDS, unit)?,
        })
    }

    /// The unit in words, for messages.
    pub fn label(self) -> &'static str {
        match self {
            Self::Time(1) => "nanoseconds",
            Self::Time(1_000) => "microseconds",
            Self::Time(1_000_000) => "milliseconds",
            Self::Time(_) => "seconds",
            Self::Bytes => "bytes",
            Self::BytesPerSecond => "bytes a second",
            Self::Share => "a share of one",
            Self::Ratio => "a ratio",
            Self::PerSecond => "so many a second",
            Self::Count => "a count",
        }
    }
}

fn scaled(value: f64, units: &[(&str, f64)], gap: &str, plain: &str) -> String {
    match units.iter().find(|(_, size)| value.abs() >= size * 0.9995) {
        Some((unit, size)) => format!("{}{gap}{unit}", digits(value / size)),
        None if plain.is_empty() => digits(value),
        None => format!("{}{gap}{plain}", digits(value)),
    }
}

/// Three significant digits, or all digits before the point.
fn digits(value: f64) -> String {
    let places = match value.abs() {
        0.0 => 0,
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.9995 => 2,
        size if size >= 0.000_999_5 => 3,
        size => return format!("{:.1$}", value, (2.0 - size.log10().floor()) as usize),
    };
    let text = format!("{value:.places$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// The number as scripts read it: whole numbers whole, others with three places, small ones with four digits.
pub fn plain(value: f64) -> String {
    match value.abs() {
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.3}"),
        size => format!(
            "{value:.0$}",
            (3.0 - size.log10().floor()).clamp(3.0, 300.0) as usize
        ),
    }
}

/// The parts of a report, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// The run as a whole.
    Run,
    /// Connections and handshakes.
    Connections,
    /// Messages and their fate.
    Deliveries,
    /// How long messages took.
    Latency,
    /// What the servers used.
    Server,
    /// What the generator used.
    Client,
    /// What the servers tell of themselves.
    Metrics,
}

impl Section {
    /// All, in order.
    pub const ALL: [Self; 7] = [
        Self::Run,
        Self::Connections,
        Self::Deliveries,
        Self::Latency,
        Self::Server,
        Self::Client,
        Self::Metrics,
    ];

    /// Where a figure belongs, by its name.
    pub fn of(name: &str) -> Self {
        let begins = |words: &[&str]| words.iter().any(|word| name.starts_with(word));
        if begins(&["metrics_"]) {
            Self::Metrics
        } else if begins(&["server_", "kernel_", "tcp_", "files_"]) {
            Self::Server
        } else if begins(&["client_", "generator_"]) {
            Self::Client
        } else if begins(&[
            "upgraded",
            "handshake",
            "connect",
            "refused",
            "closed",
            "close_",
            "never_closed",
            "slow_",
            "reconnect",
            "retried",
            "attempts",
            "advised",
            "dropped",
            "held",
            "open_",
            "seconds_until",
            "back_",
            "drain",
        ]) {
            Self::Connections
        } else if ["latency", "p50_", "p90_", "p99_", "_max_ms", "_mean_ms"]
            .iter()
            .any(|part| name.contains(part))
        {
            Self::Latency
        } else if begins(&[
            "deliver",
            "received",
            "sent",
            "publish",
            "message",
            "lost",
            "duplicated",
            "reordered",
            "corrupted",
            "misrouted",
            "loss",
            "order_",
        ]) {
            Self::Deliveries
        } else {
            Self::Run
        }
    }

    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Connections => "connections",
            Self::Deliveries => "deliveries",
            Self::Latency => "latency",
            Self::Server => "server",
            Self::Client => "client",
            Self::Metrics => "what the servers tell of themselves",
        }
    }
}

/// A figure's name without the server's that may follow it: a process, as in `server_rss_after_bytes_4711`, or a host
/// and port.
fn without_server(name: &str) -> &str {
    match name.rsplit_once('_') {
        Some((figure, server))
            if server.contains(':') || server.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            figure
        }
        _ => name,
    }
}

fn last_word(name: &str) -> &str {
    name.rsplit('_').next().unwrap_or(name)
}

/// Whether less of a figure is good news: of time, bytes, processor and faults it is; of things a second it is not; of
/// other counts it is neither.
pub fn less_is_better(name: &str) -> Option<bool> {
    let fault = [
        "lost",
        "loss",
        "duplicated",
        "reordered",
        "corrupted",
        "misrouted",
        "refused",
        "connections_failed",
        "connections_lost",
        "closed_by_server",
    ];
    match Unit::of(name) {
        _ if fault.iter().any(|word| name.starts_with(word)) => Some(true),
        _ if name == "seconds" => None,
        Unit::PerSecond | Unit::BytesPerSecond => Some(false),
        Unit::Time(_) | Unit::Bytes | Unit::Share => Some(true),
        _ if without_server(name).ends_with("cores_used") => Some(true),
        Unit::Ratio | Unit::Count => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_unit() {
        for (name, unit) in [
            ("latency_p99_ms", Unit::Time(1_000_000)),
            ("server_cpu_us_per_delivery", Unit::Time(1_000)),
            ("seconds", Unit::Time(1_000_000_000)),
            ("deliveries_per_s", Unit::PerSecond),
            ("received_bytes_per_s", Unit::BytesPerSecond),
            ("server_rss_bytes_per_connection_from_none", Unit::Bytes),
            ("server_rss_at_4000_bytes", Unit::Bytes),
            ("server_rss_after_bytes_4711", Unit::Bytes),
            ("server_rss_after_bytes_127.0.0.1:8081", Unit::Bytes),
            ("server_cpu_us_per_delivery_4711", Unit::Time(1_000)),
            ("handshakes_per_s_to_4000", Unit::PerSecond),
            ("process_memory_per_connection_bytes", Unit::Bytes),
            ("closed_with_1012", Unit::Count),
            ("capacity_per_gib", Unit::Count),
            ("client_cpu_share", Unit::Share),
            ("loss", Unit::Share),
            ("p99_ratio", Unit::Ratio),
            ("lost", Unit::Count),
            ("server_cores_used", Unit::Count),
        ] {
            assert_eq!(Unit::of(name), unit, "{name}");
        }
    }

    #[test]
    fn values_are_told_in_the_unit_that_suits() {
        let ms = Unit::of("x_ms");
        for (value, text) in [
            (0.0, "0 ns"),
            (0.000_5, "500 ns"),
            (0.04, "40 µs"),
            (0.9999, "1 ms"),
            (12.345, "12.3 ms"),
            (999.4, "999 ms"),
            (1_500.0, "1.5 s"),
            (90_000.0, "90 s"),
            (600_000.0, "10 min"),
            (-3.0, "-3 ms"),
        ] {
            assert_eq!(ms.human(value), text);
        }
        assert_eq!(Unit::Bytes.human(128.0), "128 B");
        assert_eq!(Unit::Bytes.human(-1536.0), "-1.5 KiB");
        assert_eq!(Unit::Bytes.human(1048576.0 * 20.26), "20.3 MiB");
        assert_eq!(Unit::Share.human(0.9312), "93.1 %");
        assert_eq!(Unit::PerSecond.human(123_456.0), "123 k/s");
        assert_eq!(Unit::PerSecond.human(12.0), "12 /s".replace(' ', ""));
        assert_eq!(Unit::Count.human(9_999.0), "");
        assert_eq!(Unit::Count.human(1_234_567.0), "1.23 M");
        assert_eq!(Unit::Ratio.human(1.0), "1x");
    }

    #[test]
    fn amounts_are_read_in_any_unit_of_their_kind() {
        let ms = Unit::of("latency_p99_ms");
        for (text, value) in [
            ("50", Some(50.0)),
            (" 50 ms", Some(50.0)),
            ("0.05s", Some(50.0)),
            ("700us", Some(0.7)),
            ("700µs", Some(0.7)),
            ("1e2ms", Some(100.0)),
            ("5%", None),
            ("5KiB", None),
            ("ms", None),
            ("", None),
            ("inf", None),
            ("NaN", None),
        ] {
            match (ms.parse(text), value) {
                (Some(found), Some(value)) => assert!((found - value).abs() < 1e-9, "{text}"),
                (found, value) => assert_eq!(found, value, "{text}"),
            }
        }
        assert_eq!(Unit::Bytes.parse("1.5KiB"), Some(1536.0));
        assert_eq!(Unit::Share.parse("90%"), Some(0.9));
        assert_eq!(Unit::PerSecond.parse("20k/s"), Some(20_000.0));
        assert_eq!(Unit::PerSecond.parse("20k"), Some(20_000.0));
        assert_eq!(Unit::Count.parse("1M"), Some(1e6));
        assert_eq!(Unit::Count.parse("1ms"), None);
    }

    #[test]
    fn plain_numbers_lose_nothing_that_matters() {
        assert_eq!(plain(500_000.0), "500000");
        assert_eq!(plain(12.345_67), "12.346");
        assert_eq!(plain(0.25), "0.2500");
        assert_eq!(plain(0.000_012_34), "0.00001234");
        assert_eq!(plain(0.0), "0");
        assert_eq!(plain(-2.5), "-2.500");
    }

    #[test]
    fn a_figure_is_set_once_and_is_a_number() {
        let mut figures = Figures::default();
        assert!(figures.set("b", 1.0) && figures.set("a", 2.5) && figures.set("b", 3.0));
        assert!(!figures.set("c", f64::NAN) && !figures.set("c", f64::INFINITY));
        assert_eq!(
            serde_json::to_string(&figures).unwrap(),
            r#"{"b":3,"a":2.5}"#,
            "in the order of their making"
        );
        assert_eq!(
            serde_json::from_str::<Figures>(r#"{"b":3,"a":2.5}"#).unwrap(),
            figures
        );
    }

    #[test]
    fn figures_stand_where_a_reader_looks_for_them() {
        for (name, section) in [
            ("seconds", Section::Run),
            ("upgraded", Section::Connections),
            ("handshake_p99_ms", Section::Connections),
            ("lost_as_told", Section::Deliveries),
            ("beside_stalled_latency_p99_ms", Section::Latency),
            ("echo_p99_9_ms", Section::Latency),
            ("p99_ratio", Section::Latency),
            ("received_bytes_per_s", Section::Deliveries),
            ("tcp_memory_after_bytes", Section::Server),
            ("client_waited_share", Section::Client),
        ] {
            assert_eq!(Section::of(name), section, "{name}");
        }
        assert_eq!(less_is_better("latency_p99_ms"), Some(true));
        assert_eq!(less_is_better("deliveries_per_s"), Some(false));
        assert_eq!(less_is_better("lost"), Some(true));
        assert_eq!(less_is_better("published"), None);
        assert_eq!(less_is_better("server_cores_used_4711"), Some(true));
        assert_eq!(
            less_is_better("server_pss_after_bytes_127.0.0.1:8081"),
            Some(true)
        );
    }
}
