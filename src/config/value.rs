//! The kinds of values: how each is read from text, checked against its range, and written.

use std::net::SocketAddr;

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things, by their name in the plural.
    Count(&'static str),
    /// Bytes; `KiB`, `MiB`, `GiB`, `TiB` and `kB`, `MB`, `GB`, `TB` are understood.
    Bytes,
    /// Milliseconds; `ms`, `s`, `min` and `h` are understood.
    Milliseconds,
    /// Seconds; `s`, `min` and `h` are understood.
    Seconds,
}

/// The numbers that a setting may have.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// The least.
    pub min: u64,
    /// The greatest.
    pub max: u64,
    /// What 0 means where it lies outside of the range and is allowed all the same.
    pub zero: Option<&'static str>,
    /// Whether only powers of two are allowed.
    pub power_of_two: bool,
}

/// What a setting's value is.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A whole number.
    Number(Unit, Range),
    /// `true` or `false`.
    Boolean,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Text that the rule accepts; the rule says what to write otherwise.
    Text {
        /// What is accepted, in words.
        range: &'static str,
        /// Whether it is.
        accepts: fn(&str) -> bool,
    },
    /// Text that the rule accepts, or says what is wrong with, and that may hold a secret.
    Checked {
        /// What is accepted, in words.
        range: &'static str,
        /// What is wrong with it, in words that do not repeat it.
        check: fn(&str) -> Result<(), String>,
        /// What of it may be shown.
        shown: fn(&str) -> String,
    },
    /// One or more of such texts, with commas between them or each by itself. One alone is a text.
    CheckedTexts {
        /// What is accepted, in words.
        range: &'static str,
        /// What is wrong with one, in words that do not repeat it.
        check: fn(&str) -> Result<(), String>,
        /// What of one may be shown.
        shown: fn(&str) -> String,
    },
    /// The same as [`Kind::Text`] for a list of texts.
    Texts {
        /// What is accepted, in words.
        range: &'static str,
        /// Whether it is.
        accepts: fn(&str) -> bool,
    },
    /// An address and a port.
    Address,
    /// One or more of them.
    Addresses,
    /// Processor numbers and ranges of them: `0-3,6`.
    Processors,
}

/// A checked value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// The setting's word (`auto`, `off`, `none`).
    Word,
    /// A number, in the setting's unit.
    Number(u64),
    /// `true` or `false`.
    Boolean(bool),
    /// A text or a choice.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// An address.
    Address(SocketAddr),
    /// Addresses.
    Addresses(Vec<SocketAddr>),
    /// Processors, in order, each once.
    Processors(Vec<u32>),
}

/// What somebody wrote, before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Raw {
    /// One text: a flag, a variable, a TOML string, integer or boolean. Lists are separated by commas.
    Text(String),
    /// A TOML array, or a flag given several times.
    List(Vec<String>),
    /// Something that no setting takes, by its name.
    Other(&'static str),
}

/// The greatest processor number that the kernel's affinity masks hold.
const PROCESSOR_MAX: u32 = 1_023;

impl Kind {
    /// Reads what was written.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub(super) fn read(&self, raw: &Raw) -> Result<Value, (String, String)> {
        match (self, raw) {
            (_, Raw::Other(found)) => {
                Err((format!("{found} is not understood here"), self.advice()))
            }
            (Self::Addresses | Self::Texts { .. } | Self::Processors, _) => {
                self.read_list(&list_items(raw))
            }
            (Self::CheckedTexts { check, .. }, _) => self.read_checked(url_items(raw), *check),
            (_, Raw::List(_)) => Err(("a list is not understood here".into(), self.advice())),
            (_, Raw::Text(text)) => self.read_one(text.trim()),
        }
    }

    /// Reads what was written for something that is no setting, and takes one value: an argument of a command.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub(crate) fn read_argument(&self, text: &str) -> Result<Value, (String, String)> {
        self.read(&Raw::Text(text.into()))
    }

    fn read_one(&self, text: &str) -> Result<Value, (String, String)> {
        let wrong = || (format!("{text:?} is not {}", self.noun()), self.advice());
        match self {
            Self::Number(unit, range) => {
                let number = read_number(text, *unit).ok_or_else(wrong)?;
                range.check(number, *unit)?;
                Ok(Value::Number(number))
            }
            Self::Boolean => text.parse().map(Value::Boolean).map_err(|_| wrong()),
            Self::Choice(words) if words.contains(&text) => Ok(Value::Text(text.into())),
            Self::Text { accepts, .. } if accepts(text) => Ok(Value::Text(text.into())),
            Self::Checked { check, .. } => match check(text) {
                Ok(()) => Ok(Value::Text(text.into())),
                Err(problem) => Err((problem, self.advice())),
            },
            Self::Address => {
                let address = read_address(text).ok_or_else(wrong)?;
                Ok(Value::Address(address))
            }
            _ => Err(wrong()),
        }
    }

    fn read_checked(
        &self,
        mut items: Vec<String>,
        check: fn(&str) -> Result<(), String>,
    ) -> Result<Value, (String, String)> {
        for (index, item) in items.iter().enumerate() {
            check(item).map_err(|problem| match items.len() {
                1 => (problem, self.advice()),
                _ => (format!("number {}: {problem}", index + 1), self.advice()),
            })?;
        }
        match items.len() {
            0 => Err(("the list is empty".into(), self.advice())),
            1 => Ok(Value::Text(items.remove(0))),
            _ => Ok(Value::Texts(items)),
        }
    }

    fn read_list(&self, items: &[String]) -> Result<Value, (String, String)> {
        let wrong = |item: &str| (format!("{item:?} is not {}", self.noun()), self.advice());
        match self {
            Self::Addresses => {
                let read = |item: &String| read_address(item).ok_or_else(|| wrong(item));
                let addresses = items.iter().map(read).collect::<Result<Vec<_>, _>>()?;
                if addresses.is_empty() {
                    return Err(("the list is empty".into(), self.advice()));
                }
                Ok(Value::Addresses(addresses))
            }
            Self::Texts { accepts, .. } => match items.iter().find(|item| !accepts(item)) {
                Some(item) => Err(wrong(item)),
                None => Ok(Value::Texts(items.to_vec())),
            },
            _ => {
                let mut processors = Vec::new();
                for item in items {
                    processors.extend(read_processors(item).ok_or_else(|| wrong(item))?);
                }
                processors.sort_unstable();
                processors.dedup();
                Ok(Value::Processors(processors))
            }
        }
    }

    /// What a value of this kind is called in a sentence.
    fn noun(&self) -> &'static str {
        match self {
            Self::Number(Unit::Bytes, _) => "a size",
            Self::Number(Unit::Milliseconds | Unit::Seconds, _) => "a time",
            Self::Number(..) => "a whole number",
            Self::Boolean => "true or false",
            Self::Choice(_) => "one of its words",
            Self::Text { .. } | Self::Checked { .. } | Self::CheckedTexts { .. } => {
                "a text that is allowed here"
            }
            Self::Texts { .. } => "an entry that is allowed here",
            Self::Address | Self::Addresses => "an address with a port",
            Self::Processors => "a processor number or a range of them",
        }
    }

    /// What to write.
    pub(super) fn advice(&self) -> String {
        match self {
            Self::Number(Unit::Bytes, _) => {
                format!(
                    "write bytes, or a number with KiB, MiB or GiB ({})",
                    self.range()
                )
            }
            Self::Number(Unit::Milliseconds, _) => {
                format!(
                    "write milliseconds, or a number with ms, s, min or h ({})",
                    self.range()
                )
            }
            Self::Number(Unit::Seconds, _) => {
                format!(
                    "write seconds, or a number with s, min or h ({})",
                    self.range()
                )
            }
            Self::Number(Unit::Count(_), _) => format!("write a whole number ({})", self.range()),
            Self::Choice(words) => format!("write one of {}", words.join(", ")),
            _ => format!("write {}", self.range()),
        }
    }

    /// The unit's name, for the reference.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Number(Unit::Count(things), _) => things,
            Self::Number(Unit::Bytes, _) => "bytes",
            Self::Number(Unit::Milliseconds, _) => "ms",
            Self::Number(Unit::Seconds, _) => "s",
            Self::Boolean => "boolean",
            Self::Choice(_) => "word",
            Self::Text { .. } | Self::Checked { .. } => "text",
            Self::Texts { .. } | Self::CheckedTexts { .. } => "list of texts",
            Self::Address => "address",
            Self::Addresses => "list of addresses",
            Self::Processors => "list of processors",
        }
    }

    /// What is accepted, in words.
    #[must_use]
    pub fn range(&self) -> String {
        match self {
            Self::Number(unit, range) => range.words(*unit),
            Self::Boolean => "true or false".into(),
            Self::Choice(words) => words.join(", "),
            Self::Text { range, .. }
            | Self::Checked { range, .. }
            | Self::CheckedTexts { range, .. }
            | Self::Texts { range, .. } => (*range).into(),
            Self::Address => "IPV4:PORT or [IPV6]:PORT, port 0: the kernel chooses".into(),
            Self::Addresses => {
                "one or more of IPV4:PORT or [IPV6]:PORT, port 0: the kernel chooses".into()
            }
            Self::Processors => {
                format!("numbers 0 to {PROCESSOR_MAX} and ranges, such as 0-3,6; empty: all")
            }
        }
    }

    /// The value without what is not to be shown, and whether there is more to it.
    #[must_use]
    pub fn shown(&self, value: &Value) -> (Value, bool) {
        match (self, value) {
            (Self::Checked { shown, .. } | Self::CheckedTexts { shown, .. }, Value::Text(text)) => {
                let shown = shown(text);
                let hides = shown != *text;
                (Value::Text(shown), hides)
            }
            (Self::CheckedTexts { shown, .. }, Value::Texts(texts)) => {
                let shown: Vec<String> = texts.iter().map(|text| shown(text)).collect();
                let hides = shown != *texts;
                (Value::Texts(shown), hides)
            }
            _ => (value.clone(), false),
        }
    }

    /// A value as a person reads it; only where it says more than [`Value::toml`] does.
    #[must_use]
    pub fn human(&self, value: &Value) -> Option<String> {
        match (self, value) {
            (Self::Number(unit, range), Value::Number(number)) => match range.zero {
                Some(meaning) if *number == 0 => Some(meaning.into()),
                _ => {
                    let text = human_number(*number, *unit);
                    let plain = format!("{number} {}", self.unit());
                    (text != plain && text != number.to_string()).then_some(text)
                }
            },
            _ => None,
        }
    }
}

impl Value {
    /// As TOML; [`Value::Word`] as `word`.
    #[must_use]
    pub fn toml(&self, word: &str) -> String {
        let quoted = |text: &str| toml::Value::String(text.into()).to_string();
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        match self {
            Self::Word => quoted(word),
            Self::Number(number) => number.to_string(),
            Self::Boolean(boolean) => boolean.to_string(),
            Self::Text(text) => quoted(text),
            Self::Texts(texts) => list(texts.iter().map(|text| quoted(text)).collect()),
            Self::Address(address) => quoted(&address.to_string()),
            Self::Addresses(addresses) => list(
                addresses
                    .iter()
                    .map(|address| quoted(&address.to_string()))
                    .collect(),
            ),
            Self::Processors(processors) => {
                list(processors.iter().map(ToString::to_string).collect())
            }
        }
    }
}

impl Range {
    /// `min` to `max`.
    pub(super) const fn of(min: u64, max: u64) -> Self {
        Self {
            min,
            max,
            zero: None,
            power_of_two: false,
        }
    }

    /// The same, and 0 with a meaning of its own.
    pub(super) const fn or_zero(self, meaning: &'static str) -> Self {
        Self {
            zero: Some(meaning),
            ..self
        }
    }

    /// The powers of two among them.
    pub(super) const fn powers_of_two(self) -> Self {
        Self {
            power_of_two: true,
            ..self
        }
    }

    fn check(&self, number: u64, unit: Unit) -> Result<(), (String, String)> {
        if number == 0 && self.zero.is_some() {
            return Ok(());
        }
        let instead = |number: u64| {
            let human = human_number(number, unit).replace(' ', "");
            let plain = human.starts_with(&number.to_string());
            let or_human = if plain {
                String::new()
            } else {
                format!(" or {human:?}")
            };
            format!("write {number}{or_human} ({})", self.words(unit))
        };
        if number < self.min {
            return Err((format!("{number} is too small"), instead(self.min)));
        }
        if number > self.max {
            return Err((format!("{number} is too large"), instead(self.max)));
        }
        if self.power_of_two && !number.is_power_of_two() {
            let below = 1 << number.ilog2();
            return Err((format!("{number} is not a power of two"), instead(below)));
        }
        Ok(())
    }

    fn words(&self, unit: Unit) -> String {
        let mut words = format!(
            "{} to {}",
            human_number(self.min, unit),
            human_number(self.max, unit)
        );
        if self.power_of_two {
            words.push_str(", a power of two");
        }
        if let Some(meaning) = self.zero {
            words.push_str(&format!("; 0: {meaning}"));
        }
        words
    }
}

fn list_items(raw: &Raw) -> Vec<String> {
    let trimmed = |item: &str| item.trim().to_owned();
    match raw {
        Raw::Text(text) if text.trim().is_empty() => Vec::new(),
        Raw::Text(text) => text.split(',').map(trimmed).collect(),
        Raw::List(items) => items
            .iter()
            .flat_map(|item| item.split(','))
            .map(trimmed)
            .collect(),
        Raw::Other(_) => Vec::new(),
    }
}

/// Items that may have commas of their own: a comma ends one where a scheme follows.
fn url_items(raw: &Raw) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    let written = match raw {
        Raw::Text(text) => std::slice::from_ref(text),
        Raw::List(written) => written,
        Raw::Other(_) => &[],
    };
    for text in written {
        for (index, part) in text.split(',').enumerate() {
            match items.last_mut() {
                Some(last) if index > 0 && !part.contains("://") => {
                    last.push(',');
                    last.push_str(part.trim());
                }
                _ => items.push(part.trim().to_owned()),
            }
        }
    }
    items
}

/// The suffixes of a unit and what each is worth in it, the greatest first; the plain unit is last.
const fn suffixes(unit: Unit) -> &'static [(&'static str, u64)] {
    match unit {
        Unit::Count(_) => &[],
        Unit::Bytes => &[
            ("TiB", 1 << 40),
            ("GiB", 1 << 30),
            ("MiB", 1 << 20),
            ("KiB", 1 << 10),
            ("TB", 1_000_000_000_000),
            ("GB", 1_000_000_000),
            ("MB", 1_000_000),
            ("kB", 1_000),
            ("B", 1),
        ],
        Unit::Milliseconds => &[("h", 3_600_000), ("min", 60_000), ("ms", 1), ("s", 1_000)],
        Unit::Seconds => &[("h", 3_600), ("min", 60), ("s", 1)],
    }
}

fn read_number(text: &str, unit: Unit) -> Option<u64> {
    let (digits, factor) = suffixes(unit)
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))
        .unwrap_or((text, 1));
    let digits = digits.trim_end().replace('_', "");
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    (all_digits && !digits.is_empty())
        .then(|| digits.parse::<u64>().ok()?.checked_mul(factor))
        .flatten()
}

/// The number with the greatest binary or time suffix that divides it: `64 KiB`, `25 s`.
pub(crate) fn human_number(number: u64, unit: Unit) -> String {
    let shown: &[&str] = match unit {
        Unit::Count(_) => &[],
        Unit::Bytes => &["TiB", "GiB", "MiB", "KiB", "B"],
        Unit::Milliseconds => &["h", "min", "s", "ms"],
        Unit::Seconds => &["h", "min", "s"],
    };
    let worth = |suffix: &str| suffixes(unit).iter().find(|(name, _)| *name == suffix);
    shown
        .iter()
        .filter_map(|suffix| worth(suffix))
        .find(|(_, factor)| number.is_multiple_of(*factor) && (number > 0 || *factor == 1))
        .map_or_else(
            || number.to_string(),
            |(suffix, factor)| format!("{} {suffix}", number / factor),
        )
}

fn read_address(text: &str) -> Option<SocketAddr> {
    text.parse().ok()
}

fn read_processors(text: &str) -> Option<Vec<u32>> {
    let number = |text: &str| {
        text.trim()
            .parse()
            .ok()
            .filter(|&number: &u32| number <= PROCESSOR_MAX)
    };
    match text.split_once('-') {
        None => Some(vec![number(text)?]),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then(|| (first..=last).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: Kind = Kind::Number(Unit::Bytes, Range::of(1_024, 1 << 30));
    const TIME: Kind = Kind::Number(
        Unit::Milliseconds,
        Range::of(100, 3_600_000).or_zero("no limit"),
    );

    fn read(kind: Kind, text: &str) -> Result<Value, (String, String)> {
        kind.read(&Raw::Text(text.into()))
    }

    #[test]
    fn numbers_are_read_with_and_without_their_unit() {
        for (text, number) in [
            ("65536", 65_536),
            ("65_536", 65_536),
            ("64KiB", 65_536),
            (" 64 KiB ", 65_536),
            ("1MB", 1_000_000),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(read(SIZE, text), Ok(Value::Number(number)), "{text}");
        }
        for (text, number) in [
            ("250ms", 250),
            ("25s", 25_000),
            ("2min", 120_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(read(TIME, text), Ok(Value::Number(number)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_number_is_refused_with_the_units_that_are() {
        for text in [
            "",
            "KiB",
            "-1",
            "1.5KiB",
            "64 kib",
            "1e3",
            "99999999999999999999",
            "20000000000000TiB",
        ] {
            let (_, instead) = read(SIZE, text).unwrap_err();
            assert!(instead.contains("KiB"), "{text}: {instead}");
        }
    }

    #[test]
    fn both_ends_of_a_range_are_inside() {
        assert!(read(SIZE, "1024").is_ok());
        assert!(read(SIZE, "1073741824").is_ok());
        assert_eq!(
            read(SIZE, "1023").unwrap_err(),
            (
                "1023 is too small".into(),
                "write 1024 or \"1KiB\" (1 KiB to 1 GiB)".into()
            )
        );
        assert!(
            read(SIZE, "1073741825")
                .unwrap_err()
                .0
                .contains("too large")
        );
        assert!(read(TIME, "0").is_ok(), "0 has a meaning of its own");
        assert!(read(TIME, "99").is_err());
    }

    #[test]
    fn a_power_of_two_is_suggested() {
        let kind = Kind::Number(Unit::Count("entries"), Range::of(2, 4_096).powers_of_two());
        assert!(read(kind, "1024").is_ok());
        let (problem, instead) = read(kind, "1000").unwrap_err();
        assert!(
            problem.contains("power of two") && instead.contains("512"),
            "{instead}"
        );
    }

    #[test]
    fn lists_come_with_commas_and_as_arrays() {
        let both = Value::Addresses(vec![
            "127.0.0.1:1".parse().unwrap(),
            "[::1]:2".parse().unwrap(),
        ]);
        assert_eq!(
            read(Kind::Addresses, "127.0.0.1:1, [::1]:2"),
            Ok(both.clone())
        );
        let list = Raw::List(vec!["127.0.0.1:1".into(), "[::1]:2".into()]);
        assert_eq!(Kind::Addresses.read(&list), Ok(both));
        assert!(read(Kind::Addresses, "").is_err());
        assert!(read(Kind::Addresses, "127.0.0.1:0").is_ok());
        assert!(read(Kind::Addresses, "127.0.0.1").is_err());
        assert!(read(Kind::Addresses, "localhost:80").is_err());
    }

    #[test]
    fn processors_are_sorted_and_named_once() {
        assert_eq!(
            read(Kind::Processors, "6, 0-2,1"),
            Ok(Value::Processors(vec![0, 1, 2, 6]))
        );
        assert_eq!(read(Kind::Processors, ""), Ok(Value::Processors(vec![])));
        for text in ["3-1", "x", "1-", "1024", "0-4294967295"] {
            assert!(read(Kind::Processors, text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_people_read_is_what_was_meant(number in any::<u64>()) {
            for unit in [Unit::Bytes, Unit::Milliseconds, Unit::Seconds, Unit::Count("things")] {
                prop_assert_eq!(read_number(&human_number(number, unit), unit), Some(number));
            }
        }
    }
}
