//! The settings file: TOML text to what was written in it, line by line, with every mistake on the way.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use crate::config::definitions::{DEFINITIONS, find};
use crate::config::mistake::{Mistake, nearest};
use crate::config::rooms::{self, ROOM_RULE_COUNT_MAX, RuleAt};
use crate::config::value::Raw;
use crate::metrics::DropPolicy;
use crate::shard::RoomRule;

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct FileContent {
    /// Key to line and what stands there; known keys only.
    pub(super) entries: BTreeMap<&'static str, (usize, Raw)>,
    /// `[[rooms]]`, in order.
    pub(super) rules: Vec<RuleAt>,
    /// Everything that is wrong so far.
    pub(super) mistakes: Vec<Mistake>,
}

/// Reads `text`, the content of the file called `name`.
pub(super) fn read(name: &str, text: &str) -> FileContent {
    let lines = Lines { name, text };
    let mut content = FileContent::default();
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        content.mistakes.push(Mistake {
            place: lines.place(error.span().map_or(0, |span| span.start)),
            problem: format!("not TOML: {}", error.message()),
            instead: match error.message() {
                "duplicate key" => "write it once".into(),
                _ => "write KEY = VALUE, with texts in quotes".into(),
            },
        });
    }
    for (key, value) in table.get_ref() {
        let (start, key) = (key.span().start, key.get_ref().as_ref());
        match find(key) {
            _ if key == "rooms" => read_rules(&lines, start, value.get_ref(), &mut content),
            Some(definition) => {
                let entry = (lines.number(start), raw(value.get_ref()));
                content.entries.insert(definition.key, entry);
            }
            None => content.mistakes.push(Mistake {
                place: lines.place(start),
                problem: format!("there is no setting {key:?}"),
                instead: unknown_key_advice(key, value.get_ref()),
            }),
        }
    }
    content
        .mistakes
        .extend(rooms::shadowed(&content.rules, name));
    content
}

fn unknown_key_advice(key: &str, value: &DeValue<'_>) -> String {
    if matches!(value, DeValue::Table(_)) {
        return "write all settings at the top of the file, without sections; only [[rooms]] has them".into();
    }
    let keys = DEFINITIONS.iter().map(|definition| definition.key);
    match nearest(key, keys.chain(["rooms"])) {
        Some(meant) => format!("write {meant:?}, or leave it out"),
        None => "leave it out; `throng config` prints all settings".into(),
    }
}

fn read_rules(lines: &Lines<'_>, start: usize, value: &DeValue<'_>, content: &mut FileContent) {
    let DeValue::Array(tables) = value else {
        content.mistakes.push(Mistake {
            place: lines.place(start),
            problem: "rooms is not a list of tables".into(),
            instead: "write [[rooms]] on a line of its own, then match and slow".into(),
        });
        return;
    };
    if tables.len() > ROOM_RULE_COUNT_MAX {
        content.mistakes.push(Mistake {
            place: lines.place(start),
            problem: format!("there are {} room rules", tables.len()),
            instead: format!("write at most {ROOM_RULE_COUNT_MAX}"),
        });
    }
    for table in tables {
        let place = lines.place(table.span().start);
        match table.get_ref() {
            DeValue::Table(table_ref) => {
                let line = lines.number(table.span().start);
                let rule = read_rule(lines, place, table_ref, &mut content.mistakes);
                content.rules.extend(rule.map(|rule| RuleAt { line, rule }));
            }
            _ => content.mistakes.push(Mistake {
                place,
                problem: "a room rule is not a table".into(),
                instead: "write [[rooms]] on a line of its own, then match and slow".into(),
            }),
        }
    }
}

fn read_rule(
    lines: &Lines<'_>,
    place: String,
    table: &DeTable<'_>,
    mistakes: &mut Vec<Mistake>,
) -> Option<RoomRule> {
    let (mut pattern, mut slow) = (None, None);
    let found_before = mistakes.len();
    let policies = DropPolicy::ALL
        .map(|policy| format!("{:?}", policy.label()))
        .join(", ");
    for (key, value) in table {
        let place = lines.place(key.span().start);
        let mut wrong = |problem: String, instead: String| {
            mistakes.push(Mistake {
                place: place.clone(),
                problem,
                instead,
            });
        };
        let text = match value.get_ref() {
            DeValue::String(text) => Some(text.as_ref()),
            _ => None,
        };
        match (key.get_ref().as_ref(), text) {
            ("match", Some(text)) => match rooms::pattern_mistake(text) {
                Some((problem, instead)) => wrong(problem, instead),
                None => pattern = Some(text.to_owned()),
            },
            ("slow", Some(text)) => {
                slow = rooms::policy(text);
                if slow.is_none() {
                    wrong(
                        format!("slow = {text:?} is no policy"),
                        format!("write one of {policies}"),
                    );
                }
            }
            (key @ ("match" | "slow"), None) => {
                wrong(format!("{key} is not a text"), "write it in quotes".into());
            }
            (key, _) => {
                let meant = nearest(key, ["match", "slow"].into_iter()).unwrap_or("match or slow");
                wrong(
                    format!("a room rule has no {key:?}"),
                    format!("write {meant}, or leave it out"),
                );
            }
        }
    }
    for (key, instead) in [
        (
            "match",
            "write match = \"NAME\" or match = \"BEGINNING*\"".to_owned(),
        ),
        ("slow", format!("write slow = one of {policies}")),
    ] {
        if !table.keys().any(|present| present.get_ref() == key) {
            let problem = format!("a room rule without {key}");
            mistakes.push(Mistake {
                place: place.clone(),
                problem,
                instead,
            });
        }
    }
    (mistakes.len() == found_before)
        .then(|| {
            Some(RoomRule {
                pattern: pattern?,
                slow: slow?,
            })
        })
        .flatten()
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::Array(items) => {
            let item = |item: &toml::Spanned<DeValue<'_>>| match item.get_ref() {
                DeValue::String(text) => Some(text.clone().into_owned()),
                DeValue::Integer(integer) => Some(integer.to_string()),
                _ => None,
            };
            match items.iter().map(item).collect() {
                Some(items) => Raw::List(items),
                None => Raw::Other("a list of anything but texts and numbers"),
            }
        }
        DeValue::String(text) => Raw::Text(text.clone().into_owned()),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => Raw::Text(number.to_string()),
            Err(_) => Raw::Text(integer.to_string()),
        },
        DeValue::Boolean(boolean) => Raw::Text(boolean.to_string()),
        DeValue::Float(_) => Raw::Other("a number with a fraction"),
        DeValue::Datetime(_) => Raw::Other("a date or time"),
        DeValue::Table(_) => Raw::Other("a table"),
    }
}

/// Offsets in a text to the numbers of its lines.
struct Lines<'a> {
    name: &'a str,
    text: &'a str,
}

impl Lines<'_> {
    fn number(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().iter().take(offset);
        1 + before.filter(|&&byte| byte == b'\n').count()
    }

    fn place(&self, offset: usize) -> String {
        format!("{}:{}", self.name, self.number(offset))
    }
}
