//! Looks at Redis as `throng check` does: connects, greets, tries what a node will ask, sends a message through it and
//! takes it back. Waits. Nothing is left behind.

use std::process;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::talk::Talk;
use super::tls::TlsClient;
use crate::backplane::registry::Kept;
use crate::backplane::remote::placement::{Slot, slot_of};
use crate::backplane::remote::{
    Address, Endpoint, Grant, Mode, Options, Topology, explain, master_of, unknown_master,
};
use crate::backplane::resp::Reply;
use crate::backplane::trial::{Deed, Side, Trial};
use crate::config::Settings;

/// Messages that are sent through Redis, one after another.
const MESSAGE_COUNT: usize = 5;
/// Names that are tried for one in a slot that is the server's; one in 16,384 is enough for a server with a single slot.
const SCRATCH_TRIES_MAX: u32 = 1_000_000;
/// The place of what is wrong before any server is asked.
const OWN_TLS: &str = "TLS";
/// The place of what is wrong with a cluster as a whole.
const CLUSTER: &str = "cluster";

/// What was seen of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisFact {
    /// Where it is.
    pub place: String,
    /// What it is like, or why it cannot be used.
    pub seen: Result<RedisSeen, String>,
    /// Another one of its kind can be used: this one may be missing for a while.
    pub is_spare: bool,
}

impl RedisFact {
    /// Whether it is about this node's own files for TLS: without them `serve` does not start.
    #[must_use]
    pub fn is_of_own_tls(&self) -> bool {
        self.place == OWN_TLS
    }
}

/// A server that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisSeen {
    /// What it calls itself: `redis 7.0.15, RESP3, standalone, master`.
    pub server: String,
    /// The version of TLS that is spoken with it, if any.
    pub tls: Option<String>,
    /// What it does.
    pub service: RedisService,
    /// What will not work there, and why.
    pub lacks: Option<String>,
}

impl RedisSeen {
    fn of(talk: &Talk, service: RedisService, lacks: Option<String>) -> Self {
        Self {
            server: talk.server().to_owned(),
            tls: talk.tls(),
            service,
            lacks,
        }
    }
}

/// What a server does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisService {
    /// It carries messages.
    Messages {
        /// A message's way to it and back to another connection, the middle one of several, microseconds.
        round_trip_us: u64,
    },
    /// It is a Sentinel.
    Names {
        /// The master that it names.
        master: String,
    },
    /// It is a cluster's node.
    Knows {
        /// Masters that serve slots, as it says.
        master_count: usize,
    },
}

/// Looks at all that these settings name; nothing without Redis.
#[must_use]
pub fn survey(settings: &Settings) -> Vec<RedisFact> {
    let Some(options) = &settings.redis else {
        return Vec::new();
    };
    let tls = match TlsClient::wanted(settings) {
        Ok(tls) => tls,
        Err(reason) => {
            return vec![RedisFact {
                place: OWN_TLS.into(),
                seen: Err(reason),
                is_spare: false,
            }];
        }
    };
    let survey = Survey {
        options,
        kept: settings.registry.kept,
        tls: tls.as_ref(),
    };
    if options.is_cluster() {
        return survey.cluster();
    }
    let mut facts = Vec::new();
    for address in options.addresses() {
        match &address.endpoint {
            Endpoint::Master { sentinels, name } => {
                facts.extend(survey.watched(address, sentinels, name));
            }
            _ => facts.push(RedisFact {
                place: address.endpoint.to_string(),
                seen: survey.carrier(address, |_| true),
                is_spare: false,
            }),
        }
    }
    facts
}

/// What all looks have in common.
struct Survey<'a> {
    options: &'a Options,
    kept: Kept,
    tls: Option<&'a TlsClient>,
}

impl Survey<'_> {
    /// The nodes that were named, as far as they are no masters, and all masters.
    fn cluster(&self) -> Vec<RedisFact> {
        let mut facts = Vec::new();
        let mut topology: Option<Topology> = None;
        for seed in self.options.addresses() {
            let told = self.topology(seed);
            let seen = told.map(|(seen, told)| {
                topology.get_or_insert(told);
                seen
            });
            facts.push(RedisFact {
                place: seed.endpoint.to_string(),
                seen,
                is_spare: false,
            });
        }
        let Some(topology) = topology else {
            return facts;
        };
        facts.iter_mut().for_each(|fact| fact.is_spare = true);
        let masters = topology.masters();
        let places: Vec<String> = masters.iter().map(ToString::to_string).collect();
        facts.retain(|fact| !places.contains(&fact.place));
        for (endpoint, place) in masters.into_iter().zip(places) {
            let address = self.options.address.moved_to(endpoint.clone());
            facts.push(RedisFact {
                place,
                seen: self.carrier(&address, |slot| topology.master_of(slot) == Some(endpoint)),
                is_spare: false,
            });
        }
        let uncovered_count = topology.uncovered_count();
        if uncovered_count > 0 {
            let reason = format!(
                "nobody serves {uncovered_count} of its slots, and so the rooms in them: see CLUSTER NODES, and redis-cli --cluster fix"
            );
            facts.push(RedisFact {
                place: CLUSTER.into(),
                seen: Err(reason),
                is_spare: false,
            });
        }
        facts
    }

    /// Who serves which slot, as one of the nodes says.
    fn topology(&self, address: &Address) -> Result<(RedisSeen, Topology), String> {
        let grant = Grant::at_redis(self.options);
        let mut talk = self.begin(address, grant.clone())?;
        let reply = talk.ask(&[b"CLUSTER", b"SLOTS"])?;
        if let Reply::Error(error) = &reply
            && error.starts_with("NOPERM")
        {
            // Whoever lacks this may lack more, which any node can tell.
            let lacks = self.carrier(address, |_| true).err();
            return Err(lacks.unwrap_or_else(|| explain(error, &grant)));
        }
        let host = match &address.endpoint {
            Endpoint::Tcp { host, .. } => host.as_str(),
            _ => "",
        };
        let topology = Topology::read(&reply, host, &grant)?;
        let master_count = topology.masters().len();
        let seen = RedisSeen::of(&talk, RedisService::Knows { master_count }, None);
        Ok((seen, topology))
    }

    /// The Sentinels, and the master that the first of them names.
    fn watched(&self, address: &Address, sentinels: &[Address], name: &str) -> Vec<RedisFact> {
        let mut master = None;
        let mut facts: Vec<RedisFact> = Vec::new();
        for sentinel in sentinels {
            let seen = self.sentinel(sentinel, name);
            let seen = seen.map(|(seen, endpoint)| {
                master.get_or_insert(endpoint);
                seen
            });
            facts.push(RedisFact {
                place: sentinel.endpoint.to_string(),
                seen,
                is_spare: true,
            });
        }
        match master {
            Some(endpoint) => facts.push(RedisFact {
                place: endpoint.to_string(),
                seen: self.carrier(&address.moved_to(endpoint), |_| true),
                is_spare: false,
            }),
            None => facts.iter_mut().for_each(|fact| fact.is_spare = false),
        }
        facts
    }

    fn sentinel(&self, address: &Address, name: &str) -> Result<(RedisSeen, Endpoint), String> {
        let grant = Grant::at_sentinel(address);
        let mut talk = self.begin(address, grant.clone())?;
        let mut trial = Trial::at_sentinel(grant.clone(), name, talk.is_resp3());
        let mut answer = None;
        while let Some(deed) = trial.next() {
            let reply = talk.ask(&slices(&deed))?;
            trial.answered(&reply);
            answer.get_or_insert(reply);
        }
        let lacks = trial.verdict()?;
        let endpoint = match answer {
            Some(Reply::Nil) => return Err(unknown_master(name)),
            Some(Reply::Error(error)) => return Err(explain(&error, &grant)),
            Some(Reply::List(parts)) => master_of(&parts),
            _ => None,
        };
        let endpoint = endpoint.ok_or("it does not say where the master is")?;
        let service = RedisService::Names {
            master: endpoint.to_string(),
        };
        Ok((RedisSeen::of(&talk, service, lacks), endpoint))
    }

    /// Tries what a node will ask, sends messages through a server and takes them back. `is_here`: whether it serves a slot.
    fn carrier(
        &self,
        address: &Address,
        is_here: impl Fn(Slot) -> bool,
    ) -> Result<RedisSeen, String> {
        let options = Options {
            address: address.clone(),
            ..self.options.clone()
        };
        // The database is tried with all else: a user who may not select it may lack more.
        let greeted = Address {
            database: 0,
            ..address.clone()
        };
        let grant = Grant::at_redis(&options);
        let mut listener = self.begin(&greeted, grant.clone())?;
        let mut speaker = self.begin(&greeted, grant)?;
        let scratch = scratch(is_here).ok_or("it serves no slot")?;
        let mut trial = Trial::new(&options, self.kept, &scratch);
        while let Some(deed) = trial.next() {
            let talk = match deed.side {
                Side::Speaker => &mut speaker,
                Side::Listener => &mut listener,
            };
            let reply = talk.ask(&slices(&deed))?;
            trial.answered(&reply);
        }
        let lacks = trial.verdict()?;
        let publish: &[u8] = match options.mode {
            Mode::Sharded if trial.is_sharded() => b"SPUBLISH",
            Mode::Sharded | Mode::Pubsub | Mode::Streams => b"PUBLISH",
        };
        let channel = trial.channel();
        let mut round_trips = Vec::with_capacity(MESSAGE_COUNT);
        for number in 0..MESSAGE_COUNT {
            let text = number.to_string();
            let began = Instant::now();
            speaker.ask(&[publish, channel.as_bytes(), text.as_bytes()])?;
            if listener.message(channel)? != text.as_bytes() {
                return Err("Redis delivers something else than was published".into());
            }
            round_trips.push(began.elapsed());
        }
        round_trips.sort_unstable();
        let round_trip_us = round_trips[MESSAGE_COUNT / 2].as_micros() as u64;
        let service = RedisService::Messages { round_trip_us };
        Ok(RedisSeen::of(&listener, service, lacks))
    }

    fn begin(&self, address: &Address, grant: Grant) -> Result<Talk, String> {
        Talk::begin(address, self.options, self.tls, grant)
    }
}

/// A name that nobody else uses, of keys and channels in a slot that `is_here`.
fn scratch(is_here: impl Fn(Slot) -> bool) -> Option<String> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    let ns = since_epoch.map_or(0, |time| time.as_nanos());
    let process = process::id();
    let names = (0..SCRATCH_TRIES_MAX).map(|number| format!("check-{process}-{ns:x}-{number}"));
    names
        .into_iter()
        .find(|name| is_here(slot_of(name.as_bytes())))
}

fn slices(deed: &Deed) -> Vec<&[u8]> {
    deed.words.iter().map(Vec::as_slice).collect()
}
