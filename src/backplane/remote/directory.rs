//! Who serves which slot of a cluster, and when to ask again.
//!
//! Asked every ten seconds while all is well; soon and then more and more seldom while something is not: a link is
//! down, a server says that a slot has moved, or a slot is served by nobody.

use std::time::Duration;

use super::Endpoint;
use super::placement::{SLOT_COUNT, Slot};
use super::refusal::{Grant, explain};
use crate::backplane::resp::Reply;
use crate::time::Tick;

/// Between questions while all is well.
const CALM_INTERVAL: Duration = Duration::from_secs(10);
/// Between questions otherwise, at first; each is twice as long as the one before.
const RESTLESS_MS_MIN: u64 = 100;
/// And at most.
const RESTLESS_MS_MAX: u64 = 1_000;

/// Slots and their masters, as one server told of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// First slot, last slot, master; in the order of the slots.
    ranges: Vec<(Slot, Slot, Endpoint)>,
    /// Servers that follow a master.
    replicas: Vec<Endpoint>,
}

impl Topology {
    /// Reads the answer to `CLUSTER SLOTS` (<https://redis.io/docs/latest/commands/cluster-slots/>). `host`: where it was
    /// asked; a server that does not know its own address leaves it out. `grant`: what the user there is to be allowed.
    ///
    /// # Errors
    /// Why nothing is to be learnt from it, in words.
    pub fn read(reply: &Reply, host: &str, grant: &Grant) -> Result<Self, String> {
        let ranges = match reply {
            Reply::List(ranges) => ranges,
            Reply::Error(error) => return Err(explain(error, grant)),
            _ => return Err("its answer to CLUSTER SLOTS is of another kind".into()),
        };
        let mut topology = Self::default();
        for range in ranges {
            let read = read_range(range, host);
            let (first, last, mut servers) =
                read.ok_or("its answer to CLUSTER SLOTS cannot be read")?;
            let master = servers.remove(0);
            topology.ranges.push((first, last, master));
            topology.replicas.extend(servers);
        }
        topology.ranges.sort_by_key(|(first, _, _)| *first);
        topology.replicas.sort_by_key(Endpoint::to_string);
        topology.replicas.dedup();
        Ok(topology)
    }

    /// Who serves a slot, if anybody does.
    #[must_use]
    pub fn master_of(&self, slot: Slot) -> Option<&Endpoint> {
        let index = self.ranges.partition_point(|(first, _, _)| *first <= slot);
        let (_, last, master) = self.ranges[..index].last()?;
        (slot <= *last).then_some(master)
    }

    /// All masters that serve slots, each once, in the order of their first slots.
    #[must_use]
    pub fn masters(&self) -> Vec<&Endpoint> {
        let mut masters = Vec::new();
        for (_, _, master) in &self.ranges {
            if !masters.contains(&master) {
                masters.push(master);
            }
        }
        masters
    }

    /// Everybody that may be asked.
    pub fn servers(&self) -> impl Iterator<Item = &Endpoint> {
        self.masters().into_iter().chain(&self.replicas)
    }

    /// Slots that nobody serves.
    #[must_use]
    pub fn uncovered_count(&self) -> usize {
        let ranges = self.ranges.iter();
        let covered = ranges.map(|(first, last, _)| usize::from(last - first) + 1);
        usize::from(SLOT_COUNT).saturating_sub(covered.sum())
    }
}

/// First slot, last slot, and the servers, the master first.
fn read_range(range: &Reply, host: &str) -> Option<(Slot, Slot, Vec<Endpoint>)> {
    let Reply::List(parts) = range else {
        return None;
    };
    let [Reply::Number(first), Reply::Number(last), servers @ ..] = parts.as_slice() else {
        return None;
    };
    let slot = |number: i64| {
        Slot::try_from(number)
            .ok()
            .filter(|slot| *slot < SLOT_COUNT)
    };
    let (first, last) = (slot(*first)?, slot(*last)?);
    let servers: Option<Vec<Endpoint>> = servers
        .iter()
        .map(|server| read_server(server, host))
        .collect();
    let servers = servers.filter(|servers| !servers.is_empty() && first <= last)?;
    Some((first, last, servers))
}

/// Address and port; what follows is of no use here.
fn read_server(server: &Reply, host: &str) -> Option<Endpoint> {
    let Reply::List(parts) = server else {
        return None;
    };
    let [name, Reply::Number(port), ..] = parts.as_slice() else {
        return None;
    };
    let host = match name {
        Reply::Text(name) if !name.is_empty() && &name[..] != b"?" => {
            std::str::from_utf8(name).ok()?.to_owned()
        }
        Reply::Text(_) | Reply::Nil => host.to_owned(),
        _ => return None,
    };
    let port = u16::try_from(*port).ok().filter(|port| *port > 0)?;
    Some(Endpoint::Tcp { host, port })
}

/// What a server says that does not serve a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elsewhere {
    /// Another one serves it.
    Moved(Slot),
    /// Nobody does at the moment.
    Nowhere,
}

impl Elsewhere {
    /// Reads an error; `None`: it is about something else.
    #[must_use]
    pub fn read(error: &str) -> Option<Self> {
        let mut words = error.split(' ');
        match words.next()? {
            "MOVED" | "ASK" => {
                let slot = words.next()?.parse().ok()?;
                Some(Self::Moved(slot))
            }
            "CLUSTERDOWN" | "TRYAGAIN" => Some(Self::Nowhere),
            _ => None,
        }
    }
}

/// When to ask, and whom.
#[derive(Debug)]
pub struct Directory {
    topology: Option<Topology>,
    /// A question is on its way.
    is_asked: bool,
    /// When the next one may be sent.
    next: Tick,
    /// Something is not as the topology has it.
    is_restless: bool,
    /// Questions in a row that were sent while it was not.
    restless_count: u32,
}

impl Directory {
    /// Nothing is known.
    #[must_use]
    pub fn new(now: Tick) -> Self {
        Self {
            topology: None,
            is_asked: false,
            next: now,
            is_restless: true,
            restless_count: 0,
        }
    }

    /// What is known.
    #[must_use]
    pub fn topology(&self) -> Option<&Topology> {
        self.topology.as_ref()
    }

    /// Something is wrong: the next question is due soon.
    pub fn doubt(&mut self, now: Tick) {
        if std::mem::replace(&mut self.is_restless, true) {
            return;
        }
        self.restless_count = 0;
        self.next = self.next.min(now.after(self.rest()));
    }

    /// Whether to ask now; it counts as asked then.
    pub fn take_due(&mut self, can_ask: bool, now: Tick) -> bool {
        if !can_ask || self.is_asked || self.next > now {
            return false;
        }
        self.is_asked = true;
        true
    }

    /// An answer has come. Whether it differs from what was known.
    pub fn answered(&mut self, topology: Topology, now: Tick) -> bool {
        let differs = self.topology.as_ref() != Some(&topology);
        self.topology = Some(topology);
        self.asked_again(now);
        differs
    }

    /// No answer comes, or none that can be read.
    pub fn failed(&mut self, now: Tick) {
        self.is_restless = true;
        self.asked_again(now);
    }

    fn asked_again(&mut self, now: Tick) {
        self.is_asked = false;
        let rest = if self.is_restless {
            self.restless_count = self.restless_count.saturating_add(1);
            self.rest()
        } else {
            CALM_INTERVAL
        };
        self.next = now.after(rest);
    }

    /// All is as the topology has it, or not.
    pub fn note(&mut self, all_is_well: bool, now: Tick) {
        if !all_is_well {
            self.doubt(now);
        } else if std::mem::take(&mut self.is_restless) {
            self.restless_count = 0;
            self.next = now.after(CALM_INTERVAL);
        }
    }

    fn rest(&self) -> Duration {
        let ms = RESTLESS_MS_MIN << self.restless_count.min(16);
        Duration::from_millis(ms.min(RESTLESS_MS_MAX))
    }

    /// When [`Self::take_due`] may say yes.
    #[must_use]
    pub fn deadline(&self, can_ask: bool) -> Option<Tick> {
        (can_ask && !self.is_asked).then_some(self.next)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn read(reply: &Reply, host: &str) -> Result<Topology, String> {
        let options =
            super::super::Options::new(super::super::Address::parse("redis://h").unwrap());
        Topology::read(reply, host, &Grant::at_redis(&options))
    }

    fn text(text: &str) -> Reply {
        Reply::Text(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn server(name: Reply, port: i64) -> Reply {
        Reply::List(vec![
            name,
            Reply::Number(port),
            text("id"),
            Reply::List(Vec::new()),
        ])
    }

    fn range(first: i64, last: i64, servers: Vec<Reply>) -> Reply {
        let mut parts = vec![Reply::Number(first), Reply::Number(last)];
        parts.extend(servers);
        Reply::List(parts)
    }

    fn tcp(host: &str, port: u16) -> Endpoint {
        let host = host.to_owned();
        Endpoint::Tcp { host, port }
    }

    #[test]
    fn the_answer_is_read_with_its_holes_and_nameless_servers() {
        let reply = Reply::List(vec![
            range(
                8_000,
                16_000,
                vec![server(text("10.0.0.2"), 7), server(text("10.0.0.3"), 7)],
            ),
            range(0, 4_999, vec![server(text(""), 6), server(Reply::Nil, 8)]),
            range(5_000, 5_000, vec![server(text("10.0.0.2"), 7)]),
        ]);
        let topology = read(&reply, "here").unwrap();
        let of = |slot| topology.master_of(slot).cloned();
        assert_eq!(of(0), Some(tcp("here", 6)));
        assert_eq!(of(4_999), Some(tcp("here", 6)));
        assert_eq!(of(5_000), Some(tcp("10.0.0.2", 7)));
        assert_eq!((of(5_001), of(7_999), of(16_001)), (None, None, None));
        assert_eq!(of(16_000), Some(tcp("10.0.0.2", 7)));
        assert_eq!(topology.masters(), [&tcp("here", 6), &tcp("10.0.0.2", 7)]);
        assert_eq!(topology.servers().count(), 4);
        assert_eq!(topology.uncovered_count(), 16_384 - 5_001 - 8_001);
    }

    #[test]
    fn what_is_no_answer_is_told_in_words() {
        let disabled = Reply::Error("ERR This instance has cluster support disabled".into());
        let said = read(&disabled, "h").unwrap_err();
        assert!(said.contains("redis://HOST:PORT"), "{said}");
        let good = || vec![server(text("h"), 1)];
        for wrong in [
            Reply::Number(1),
            Reply::List(vec![Reply::Number(1)]),
            Reply::List(vec![range(5, 4, good())]),
            Reply::List(vec![range(0, 16_384, good())]),
            Reply::List(vec![range(-1, 4, good())]),
            Reply::List(vec![range(0, 4, Vec::new())]),
            Reply::List(vec![range(0, 4, vec![server(text("h"), 0)])]),
            Reply::List(vec![range(0, 4, vec![server(Reply::Number(1), 1)])]),
            Reply::List(vec![range(0, 4, vec![text("h")])]),
        ] {
            assert!(read(&wrong, "h").is_err(), "{wrong:?}");
        }
        assert_eq!(
            read(&Reply::List(Vec::new()), "h").unwrap().masters().len(),
            0
        );
    }

    #[test]
    fn errors_about_slots_are_told_from_others() {
        let moved = Elsewhere::read("MOVED 3999 127.0.0.1:6381");
        assert_eq!(moved, Some(Elsewhere::Moved(3_999)));
        let down = Elsewhere::read("CLUSTERDOWN Hash slot not served");
        assert_eq!(down, Some(Elsewhere::Nowhere));
        for other in ["NOPERM no", "MOVED", "MOVED x y", ""] {
            assert_eq!(Elsewhere::read(other), None, "{other}");
        }
    }

    #[test]
    fn it_is_asked_seldom_while_all_is_well_and_at_a_bounded_rate_otherwise() {
        let at = Tick::from_ms;
        let mut directory = Directory::new(at(0));
        assert!(!directory.take_due(false, at(0)));
        assert!(directory.take_due(true, at(0)) && !directory.take_due(true, at(0)));
        assert!(directory.answered(Topology::default(), at(1)));
        directory.note(true, at(1));
        assert_eq!(directory.deadline(true), Some(at(10_001)));
        directory.doubt(at(50));
        assert_eq!(directory.deadline(true), Some(at(150)));
        directory.doubt(at(60));
        assert_eq!(
            directory.deadline(true),
            Some(at(150)),
            "no sooner by doubting twice"
        );
        let (mut now, mut asked) = (150, 0);
        while now < 60_000 {
            if directory.take_due(true, at(now)) {
                asked += 1;
                directory.answered(Topology::default(), at(now));
                directory.note(false, at(now));
            }
            now += 10;
        }
        assert!((60..=66).contains(&asked), "{asked} in a minute");
        directory.note(true, at(now));
        assert!(directory.take_due(true, at(now + 10_000)));
        directory.failed(at(now + 10_000));
        assert!(directory.deadline(true) <= Some(at(now + 10_200)));
    }
}
