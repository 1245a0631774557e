//! Redis by hand: what the registry's scripts and commands do, with a clock of its own.

use std::collections::{BTreeMap, BTreeSet};

use crate::backplane::registry::keys::{Instance, parse_reference};
use crate::backplane::registry::scripts::{
    BEAT, COUNT, ENROL, FORGET, REAP, ROLL, SEE, SEEN, TOUCH, WHICH,
};
use crate::backplane::resp::Reply;

#[derive(Debug, Clone)]
enum Value {
    Hash(BTreeMap<String, String>),
    Scores(BTreeMap<String, u64>),
    Set(BTreeSet<String>),
    Text(String),
}

/// Every key has an end: what has none is never removed.
#[derive(Debug, Default)]
pub struct FakeRedis {
    pub now_ms: u64,
    /// Up to when what has come to its end is removed.
    expired_ms: u64,
    keys: BTreeMap<String, (Value, u64)>,
}

fn text(text: &str) -> Reply {
    Reply::Text(text.to_owned().into())
}

fn list<'a>(texts: impl IntoIterator<Item = &'a str>) -> Reply {
    Reply::List(texts.into_iter().map(text).collect())
}

fn flag(is: bool) -> Reply {
    Reply::Number(i64::from(is))
}

impl FakeRedis {
    /// Carries a command out.
    pub fn command(&mut self, words: &[Vec<u8>]) -> Reply {
        self.expire();
        let words: Vec<&str> = words
            .iter()
            .map(|word| std::str::from_utf8(word).unwrap())
            .collect();
        match words[..] {
            ["EVAL", script, count, ..] => {
                let count: usize = count.parse().unwrap();
                let (keys, arguments) = words[3..].split_at(count);
                self.script(script, keys, arguments)
            }
            ["SREM", key, ..] => {
                self.change_set(key, None, |set| {
                    words[2..].iter().for_each(|one| {
                        set.remove(*one);
                    })
                });
                flag(true)
            }
            ["ZREM", key, member] => {
                self.change_scores(key, None, |scores| {
                    scores.remove(member);
                });
                flag(true)
            }
            ["DEL", key] => flag(self.keys.remove(key).is_some()),
            ["PUBLISH", ..] => flag(false),
            ["HMGET", key, ..] => Reply::List(
                words[2..]
                    .iter()
                    .map(|field| self.field(key, field))
                    .collect(),
            ),
            ["HGET", key, field] => self.field(key, field),
            _ => panic!("{words:?}"),
        }
    }

    fn script(&mut self, script: &str, keys: &[&str], arguments: &[&str]) -> Reply {
        let number = |index: usize| arguments[index].parse::<u64>().unwrap();
        let now_ms = self.now_ms;
        match script {
            TOUCH => {
                let ends = now_ms + number(1);
                let at = |index| (now_ms - number(index)).to_string();
                let fields = [
                    ("node", arguments[2].to_owned()),
                    ("room", arguments[3].to_owned()),
                    ("since", at(4)),
                    ("active", at(5)),
                    ("user", arguments[6].to_owned()),
                ];
                let hash = fields.map(|(name, value)| (name.to_owned(), value));
                self.keys
                    .insert(keys[0].into(), (Value::Hash(hash.into()), ends));
                if let Some(set) = keys.get(1) {
                    self.change_scores(set, Some(ends), |scores| {
                        scores.retain(|_, score| *score > now_ms);
                        scores.insert(arguments[0].into(), ends);
                    });
                }
                flag(true)
            }
            FORGET => {
                self.keys.remove(keys[0]);
                if let Some(set) = keys.get(1) {
                    self.change_scores(set, None, |scores| {
                        scores.remove(arguments[0]);
                    });
                }
                flag(true)
            }
            ENROL => {
                self.change_set(keys[0], Some(now_ms + number(0)), |set| {
                    set.extend(arguments[1..].iter().map(|member| (*member).to_owned()));
                });
                flag(true)
            }
            SEE => {
                let ends = now_ms + 2 * number(0);
                let seen = "throng:users:{seen}".to_owned();
                self.keys.insert(seen, (Value::Text(String::new()), ends));
                flag(true)
            }
            SEEN => Reply::Number(0),
            COUNT => Reply::Number(self.alive(keys[0]).len() as i64),
            WHICH => {
                let alive = self.alive(keys[0]);
                let alive = alive.iter().take(number(0) as usize).map(String::as_str);
                list(std::iter::once(&*now_ms.to_string()).chain(alive))
            }
            BEAT => {
                let known = self.keys.contains_key(keys[0]);
                let hash = [("state".to_owned(), arguments[4].to_owned())];
                let ends = now_ms + number(0);
                self.keys
                    .insert(keys[0].into(), (Value::Hash(hash.into()), ends));
                if let Some((_, ends)) = self.keys.get_mut(keys[1]) {
                    *ends = now_ms + number(1);
                }
                flag(known)
            }
            ROLL => {
                if let Some(instance) = arguments.get(1) {
                    self.change_scores(keys[0], Some(now_ms + number(0)), |scores| {
                        scores.insert((*instance).into(), now_ms);
                    });
                }
                let mut all = vec![text(&now_ms.to_string())];
                if let Some((Value::Scores(scores), _)) = self.keys.get(keys[0]) {
                    for (instance, score) in scores {
                        all.extend([text(instance), text(&score.to_string())]);
                    }
                }
                Reply::List(all)
            }
            REAP => self.reap(keys, arguments),
            other => panic!("{other}"),
        }
    }

    fn reap(&mut self, keys: &[&str], arguments: &[&str]) -> Reply {
        if self.keys.contains_key(keys[1]) {
            return list(["alive"]);
        }
        if let Some((Value::Text(owner), _)) = self.keys.get(keys[0])
            && owner != arguments[0]
        {
            return list(["taken"]);
        }
        let ends = self.now_ms + arguments[1].parse::<u64>().unwrap();
        let owner = Value::Text(arguments[0].into());
        self.keys.insert(keys[0].into(), (owner, ends));
        self.change_set(keys[2], None, |set| {
            arguments[3..].iter().for_each(|one| {
                set.remove(*one);
            });
        });
        let count: usize = arguments[2].parse().unwrap();
        match self.keys.get(keys[2]) {
            Some((Value::Set(set), _)) => {
                let members = set.iter().take(count).map(String::as_str);
                list(std::iter::once("more").chain(members))
            }
            _ => {
                if keys[0].ends_with(&format!("{{{}}}", arguments[0])) {
                    self.keys.remove(keys[0]);
                }
                list(["done"])
            }
        }
    }

    fn change_set(
        &mut self,
        key: &str,
        ends: Option<u64>,
        change: impl FnOnce(&mut BTreeSet<String>),
    ) {
        let new = || (Value::Set(BTreeSet::new()), ends.unwrap_or(u64::MAX));
        let (value, at) = self.keys.entry(key.into()).or_insert_with(new);
        let Value::Set(set) = value else {
            panic!("{key} is no set")
        };
        change(set);
        *at = ends.unwrap_or(*at);
        if set.is_empty() {
            self.keys.remove(key);
        }
    }

    fn change_scores(
        &mut self,
        key: &str,
        ends: Option<u64>,
        change: impl FnOnce(&mut BTreeMap<String, u64>),
    ) {
        let new = || (Value::Scores(BTreeMap::new()), ends.unwrap_or(u64::MAX));
        let (value, at) = self.keys.entry(key.into()).or_insert_with(new);
        let Value::Scores(scores) = value else {
            panic!("{key} is no sorted set")
        };
        change(scores);
        *at = ends.unwrap_or(*at);
        if scores.is_empty() {
            self.keys.remove(key);
        }
    }

    fn alive(&self, key: &str) -> Vec<String> {
        let Some((Value::Scores(scores), _)) = self.keys.get(key) else {
            return Vec::new();
        };
        let alive = scores.iter().filter(|(_, score)| **score > self.now_ms);
        alive.map(|(member, _)| member.clone()).collect()
    }

    fn field(&self, key: &str, field: &str) -> Reply {
        match self.keys.get(key) {
            Some((Value::Hash(hash), _)) => hash.get(field).map_or(Reply::Nil, |value| text(value)),
            _ => Reply::Nil,
        }
    }

    /// Removes what has come to its end.
    pub fn expire(&mut self) {
        let now_ms = self.now_ms;
        if std::mem::replace(&mut self.expired_ms, now_ms) == now_ms {
            return;
        }
        assert!(
            self.keys.values().all(|(_, ends)| *ends < u64::MAX),
            "something would stay for ever"
        );
        self.keys.retain(|_, (_, ends)| *ends > now_ms);
    }

    /// A restart without a disk.
    pub fn lose_all(&mut self) {
        self.keys.clear();
    }

    pub fn keys(&self) -> Vec<&str> {
        self.keys.keys().map(String::as_str).collect()
    }

    /// The connections that have a hash, and stand in their users' sets: node, incarnation and id.
    pub fn connections(&mut self) -> BTreeSet<(String, u64, u64)> {
        self.expire();
        let now_ms = self.now_ms;
        let mut found = BTreeSet::new();
        let mut hashes = 0;
        for (key, (value, _)) in &self.keys {
            hashes += usize::from(key.starts_with("throng:conn:"));
            let Value::Scores(scores) = value else {
                continue;
            };
            if key == "throng:nodes" {
                continue;
            }
            for (reference, _) in scores.iter().filter(|(_, score)| **score > now_ms) {
                let (instance, id) = parse_reference(reference).unwrap();
                found.insert((instance.node().to_owned(), instance.incarnation(), id.0));
            }
        }
        // Those of no user have a hash only.
        if found.len() != hashes {
            let lone = self
                .keys
                .keys()
                .filter(|key| key.starts_with("throng:conn:{"));
            let lone = lone.filter_map(|key| key.strip_prefix("throng:conn:{")?.strip_suffix('}'));
            let lone = lone.filter_map(parse_reference);
            found.extend(
                lone.map(|(instance, id)| {
                    (instance.node().to_owned(), instance.incarnation(), id.0)
                }),
            );
        }
        assert_eq!(found.len(), hashes, "{:?}", self.keys());
        found
    }

    /// Nodes' sets: their keys and members.
    pub fn enrolled(&self) -> Vec<(&str, Vec<&str>)> {
        let sets = self
            .keys
            .iter()
            .filter_map(|(key, (value, _))| match value {
                Value::Set(set) => Some((key.as_str(), set.iter().map(String::as_str).collect())),
                _ => None,
            });
        sets.collect()
    }

    /// The names on the roll.
    pub fn roll(&self) -> Vec<String> {
        match self.keys.get("throng:nodes") {
            Some((Value::Scores(scores), _)) => {
                let names = scores.keys().map(|name| Instance::parse(name).unwrap());
                names.map(|instance| instance.node().to_owned()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Makes the roll say that a node was heard so long ago.
    pub fn age_on_roll(&mut self, node: &str, age_ms: u64) {
        let heard = self.now_ms - age_ms;
        if let Some((Value::Scores(scores), _)) = self.keys.get_mut("throng:nodes") {
            for (name, score) in scores.iter_mut() {
                if name.starts_with(node) {
                    *score = heard;
                }
            }
        }
    }
}
