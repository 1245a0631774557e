//! The settings in force as commented TOML, and the reference of all settings.

use std::fmt::Write as _;

use crate::config::definitions::{DEFINITIONS, Definition};
use crate::config::group::Group;
use crate::config::load::default;
use crate::config::mistake::{Mistake, Source};
use crate::config::settings::Settings;
use crate::config::value::Value;
use crate::shard::RoomRule;

/// Every setting with its value and where that came from.
#[derive(Debug)]
pub struct Effective {
    /// In the order of the reference.
    pub entries: Vec<Entry>,
    /// The room rules, in order.
    pub rules: Vec<RoomRule>,
    /// The file, if there was one.
    pub file: Option<String>,
}

/// One setting in force.
#[derive(Debug)]
pub struct Entry {
    /// The setting.
    pub definition: &'static Definition,
    /// Its value.
    pub value: Value,
    /// Where it came from.
    pub source: Source,
    /// What `auto` is on this machine.
    pub worked_out: Option<String>,
}

impl Effective {
    /// Commented TOML that `--config` reads to the same settings. Secrets are left out.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::from(
            "# Settings in force. Flags count over the environment, it over the file, the file over defaults.\n",
        );
        for group in Group::ALL {
            let _ = write!(out, "\n# == {} ==\n", group.title());
            for entry in self
                .entries
                .iter()
                .filter(|entry| entry.definition.group == group)
            {
                entry.write_toml(self.file.as_deref().unwrap_or_default(), &mut out);
            }
        }
        if self.rules.is_empty() {
            out.push_str(ROOMS_EXAMPLE);
        }
        for rule in &self.rules {
            let pattern = Value::Text(rule.pattern.clone()).toml("");
            let _ = write!(
                out,
                "\n[[rooms]]\nmatch = {pattern}\nslow = {:?}\n",
                rule.slow.label()
            );
        }
        out
    }

    /// The entry of `key`.
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.definition.key == key)
    }

    /// Notes what each `auto` has become.
    pub(super) fn work_out(&mut self, settings: &Settings) {
        for entry in self
            .entries
            .iter_mut()
            .filter(|entry| entry.value == Value::Word)
        {
            let number = match entry.definition.key {
                "shards" => settings.shards as u64,
                "connection_count_max" => u64::from(settings.shard.connection_count_max),
                "node_bytes_max" => settings.shard.node_bytes_max,
                "shard_bytes_max" => settings.shard.shard_bytes_max,
                "socket_user_timeout_ms" => u64::from(settings.socket.user_timeout_ms),
                "node_id" | "affinity_value" => {
                    entry.worked_out = Some(settings.node_id.clone());
                    continue;
                }
                _ => continue,
            };
            let human = entry.definition.kind.human(&Value::Number(number));
            let human = human.map_or_else(String::new, |human| format!(", {human}"));
            entry.worked_out = Some(format!("{number}{human}"));
        }
    }

    /// The settings that `mistakes` name already.
    pub(super) fn wrong_keys(&self, mistakes: &[Mistake]) -> Vec<&'static str> {
        let named = |key: &str| {
            let named_in = |text: &str| {
                text.strip_prefix(key)
                    .is_some_and(|rest| rest.starts_with(':'))
            };
            mistakes.iter().any(|mistake| named_in(&mistake.problem))
        };
        let keys = self.entries.iter().map(|entry| entry.definition.key);
        keys.filter(|key| named(key)).collect()
    }
}

impl Entry {
    fn write_toml(&self, file: &str, out: &mut String) {
        let definition = self.definition;
        let word = definition.word.unwrap_or_default();
        let _ = write!(out, "\n# {}\n", definition.effect);
        let _ = writeln!(
            out,
            "# {}: {}. Default {}. {}.",
            definition.kind.unit(),
            definition.range(),
            default(definition).toml(word),
            self.origin(file),
        );
        match (&self.value, definition.secret) {
            (Value::Word, _) | (_, false) => {
                let (value, hides) = definition.kind.shown(&self.value);
                let _ = write!(out, "{} = {}", definition.key, value.toml(word));
                if hides {
                    out.push_str(" # its password is not printed");
                }
                if let Some(human) = definition.kind.human(&self.value) {
                    let _ = write!(out, " # {human}");
                }
                out.push('\n');
            }
            (_, true) => {
                let _ = writeln!(out, "# {} is set; it is not printed", definition.key);
            }
        }
    }

    fn origin(&self, file: &str) -> String {
        let origin = match self.source {
            Source::Default => "Here: the default".to_owned(),
            Source::File { line } => format!("Here: {file}:{line}"),
            Source::Environment => format!("Here: the environment, {}", self.definition.variable()),
            Source::Flag => format!("Here: the flag {}", self.definition.flag()),
        };
        match &self.worked_out {
            Some(worked_out) => format!("{origin}, which is {worked_out}"),
            None => origin,
        }
    }
}

const ROOMS_EXAMPLE: &str = "
# == Rooms ==

# What happens to a message that a slow member has no budget for; the first rule that matches counts, and rooms that
# none matches get \"disconnect\". match: a name, or a beginning and `*`. slow: disconnect, drop-oldest, drop-newest, latest.
# [[rooms]]
# match = \"ticker:*\"
# slow = \"latest\"
";

/// The reference of all settings in Markdown: a table for each group.
#[must_use]
pub fn reference_markdown() -> String {
    let mut out = String::new();
    for group in Group::ALL {
        let _ = write!(out, "### {}\n\n", group.title());
        out.push_str("| key | unit | range | default | effect |\n|---|---|---|---|---|\n");
        for definition in DEFINITIONS
            .iter()
            .filter(|definition| definition.group == group)
        {
            let value = default(definition);
            let mut shown = value.toml(definition.word.unwrap_or_default());
            if let Some(human) = definition.kind.human(&value) {
                let _ = write!(shown, " ({human})");
            }
            let cell = |text: &str| text.replace('|', "\\|");
            let _ = writeln!(
                out,
                "| `{}` | {} | {} | {} | {} |",
                definition.key,
                definition.kind.unit(),
                cell(&definition.range()),
                cell(&shown),
                cell(definition.effect),
            );
        }
        out.push('\n');
    }
    out
}
