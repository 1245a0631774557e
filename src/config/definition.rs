//! What a setting is: its name, what it takes, what it does; and the few words in which definitions are written.

use crate::config::draft::Draft;
use crate::config::group::Group;
use crate::config::value::{Kind, Range, Unit, Value};

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Definition {
    /// Its key in the file; flag and variable are derived from it.
    pub key: &'static str,
    /// Where it belongs.
    pub group: Group,
    /// What its value is.
    pub kind: Kind,
    /// A word that may stand in a value's place.
    pub word: Option<&'static str>,
    /// What holds when nobody says anything, as one would type it.
    pub default: &'static str,
    /// What it does.
    pub effect: &'static str,
    /// A secret has no flag (a command line is readable by others) and is never printed.
    pub secret: bool,
    /// Puts a value in place.
    pub(super) apply: fn(&mut Draft, &Value),
}

impl Definition {
    /// `--ping-interval-ms`.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--{}", self.key.replace('_', "-"))
    }

    /// `THRONG_PING_INTERVAL_MS`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.key.to_ascii_uppercase())
    }

    /// What is accepted, the word included.
    #[must_use]
    pub fn range(&self) -> String {
        match self.word {
            Some(word) => format!("{}; or \"{word}\"", self.kind.range()),
            None => self.kind.range(),
        }
    }
}

/// What the names of all variables begin with.
pub const VARIABLE_PREFIX: &str = "THRONG_";

pub(super) const fn setting(
    key: &'static str,
    group: Group,
    kind: Kind,
    default: &'static str,
    effect: &'static str,
    apply: fn(&mut Draft, &Value),
) -> Definition {
    Definition {
        key,
        group,
        kind,
        word: None,
        default,
        effect,
        secret: false,
        apply,
    }
}

impl Definition {
    pub(super) const fn or(self, word: &'static str) -> Self {
        Self {
            word: Some(word),
            ..self
        }
    }

    pub(super) const fn kept_secret(self) -> Self {
        Self {
            secret: true,
            ..self
        }
    }
}

pub(super) const fn count(things: &'static str, range: Range) -> Kind {
    Kind::Number(Unit::Count(things), range)
}

pub(super) const fn bytes(range: Range) -> Kind {
    Kind::Number(Unit::Bytes, range)
}

pub(super) const fn ms(range: Range) -> Kind {
    Kind::Number(Unit::Milliseconds, range)
}

pub(super) const fn any(min: u64, max: u64) -> Range {
    Range::of(min, max)
}
