//! What a node will ask of a Redis, tried beforehand: each command in a form that changes nothing, so that all that is
//! not granted can be named at once.
//!
//! Redis looks at permissions before it looks at anything else but a command's name and the count of its words, and before
//! a cluster's node sends somebody elsewhere (<https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/>).
//! So a command that cannot succeed tells as well as one that does: a member that is not there, a script that is none.
//! Where nothing of the kind exists, a scratch key is written that goes by itself, and of which the command makes nothing.

use super::registry::{self, Kept};
use super::remote::{Grant, Mode, Options, SWITCH_CHANNEL, explain, shown, streams_deeds};
use super::resp::Reply;

/// How long a scratch key lives if it cannot be removed, milliseconds: longer than a trial.
pub const SCRATCH_MS: &str = "60000";
/// Not a script: what loads or runs it has been let, and is told that it cannot be compiled.
pub const NO_SCRIPT: &str = "(";

/// What cannot be done without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Carrying messages.
    Messages,
    /// Carrying them in partitions: otherwise they are carried as below.
    Sharded,
    /// Carrying messages where that is not let.
    Fallback,
    /// Knowing who is online, and how the nodes are.
    Registry,
    /// Hearing of a failover at once.
    Switches,
}

/// Which connection it is tried on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that asks.
    Speaker,
    /// The one that subscribes.
    Listener,
}

/// What its answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Whether it is let.
    Plain,
    /// Whether the command is, whatever it is about.
    Command,
    /// Whether its keys and channels are, by whatever command.
    Names,
    /// The same, and whether the database is there.
    Select,
    /// The same, and a scratch key stands now.
    Scratch,
    /// Whether it is let; only on a scratch key that stands does it change nothing.
    OnScratch,
    /// What the node does, as the node does it: tried when all is let, and it has to succeed.
    Proof,
    /// It takes away what was tried.
    Cleanup,
}

/// A command to be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// The rule that lets a user do it.
    pub right: &'static str,
    /// The command and its arguments.
    pub words: Vec<Vec<u8>>,
    /// What for.
    pub part: Part,
    /// Where.
    pub side: Side,
    /// How.
    pub kind: Kind,
}

impl Deed {
    /// A deed of the speaker whose answer tells whether it is let.
    pub fn new(part: Part, right: &'static str, words: &[&[u8]]) -> Self {
        Self {
            right,
            words: words.iter().map(|word| word.to_vec()).collect(),
            part,
            side: Side::Speaker,
            kind: Kind::Plain,
        }
    }

    /// The same of another kind.
    #[must_use]
    pub const fn of(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The same on the other connection.
    #[must_use]
    pub const fn heard(mut self) -> Self {
        self.side = Side::Listener;
        self
    }
}

/// A trial: [`Self::next`], then [`Self::answered`], until there is no next; then [`Self::verdict`].
#[derive(Debug)]
pub struct Trial {
    deeds: std::vec::IntoIter<Deed>,
    tried: Option<Deed>,
    grant: Grant,
    channel: String,
    /// The last scratch key stands.
    stands: bool,
    lacks: Vec<(Part, String)>,
    /// Rules that could not be tried.
    untried: Vec<&'static str>,
    /// Commands that the server does not have.
    unknown: Vec<(Part, String)>,
    /// What else is in the way.
    trouble: Option<(Part, String)>,
}

impl Trial {
    /// All that a node with these options does at a server. `scratch`: a name that nobody else uses; what has it as its tag
    /// is at this server.
    pub fn new(options: &Options, kept: Kept, scratch: &str) -> Self {
        let prefix = &options.prefix;
        let channel = |kind: &str| match options.has_tags() {
            true => format!("{prefix}:{{{scratch}}}:{kind}:{scratch}"),
            false => format!("{prefix}:{kind}:{scratch}"),
        };
        let (probe, room) = (channel("probe"), channel("room"));
        let mut deeds = Vec::new();
        if options.address.database != 0 {
            let database = options.address.database.to_string();
            let words: [&[u8]; 2] = [b"SELECT", database.as_bytes()];
            deeds.push(Deed::new(Part::Messages, "+select", &words).of(Kind::Select));
        }
        if options.is_cluster() {
            let words: [&[u8]; 2] = [b"CLUSTER", b"SLOTS"];
            deeds.push(Deed::new(Part::Messages, "+cluster|slots", &words));
        }
        let part = match options.mode {
            Mode::Sharded => Part::Fallback,
            Mode::Pubsub | Mode::Streams => Part::Messages,
        };
        deeds.extend(carrying(
            part,
            ["+publish", "+subscribe", "+unsubscribe"],
            [&room, &probe],
        ));
        if options.mode == Mode::Sharded {
            let rights = ["+spublish", "+ssubscribe", "+sunsubscribe"];
            deeds.extend(carrying(Part::Sharded, rights, [&room, &probe]));
        }
        if options.mode == Mode::Streams {
            deeds.extend(streams_deeds(options, &room, scratch));
        }
        deeds.extend(registry::deeds(prefix, kept, scratch));
        // What proves is tried once everything is known to be let, and what cleans up comes last.
        deeds.sort_by_key(|deed| match deed.kind {
            Kind::Proof => 1,
            Kind::Cleanup => 2,
            _ => 0,
        });
        Self::of(deeds, Grant::at_redis(options), probe)
    }

    /// What a node asks of a Sentinel; the first is who the master called `name` is. `hears`: whether it listens, too.
    pub fn at_sentinel(grant: Grant, name: &str, hears: bool) -> Self {
        let question: [&[u8]; 3] = [b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name.as_bytes()];
        let right = "+sentinel|get-master-addr-by-name";
        let mut deeds = vec![Deed::new(Part::Messages, right, &question)];
        if hears {
            let words: [&[u8]; 2] = [b"SUBSCRIBE", SWITCH_CHANNEL];
            deeds.push(Deed::new(Part::Switches, "+subscribe", &words));
        }
        Self::of(deeds, grant, String::new())
    }

    fn of(deeds: Vec<Deed>, grant: Grant, channel: String) -> Self {
        Self {
            deeds: deeds.into_iter(),
            tried: None,
            grant,
            channel,
            stands: false,
            lacks: Vec::new(),
            untried: Vec::new(),
            unknown: Vec::new(),
            trouble: None,
        }
    }

    /// The channel of the scratch name.
    pub fn channel(&self) -> &str {
        &self.channel
    }

    /// What is to be tried next.
    pub fn next(&mut self) -> Option<Deed> {
        loop {
            let deed = self.deeds.next()?;
            let is_due = match deed.kind {
                Kind::OnScratch if !self.stands => {
                    self.untried.push(deed.right);
                    false
                }
                Kind::Proof => {
                    let is_let = self.lacks.iter().all(|(part, _)| *part != deed.part);
                    is_let && self.unknown.is_empty() && self.trouble.is_none()
                }
                _ => true,
            };
            if is_due {
                self.tried = Some(deed.clone());
                return Some(deed);
            }
        }
    }

    /// Takes in what Redis has said to it.
    pub fn answered(&mut self, reply: &Reply) {
        let Some(deed) = self.tried.take() else {
            return;
        };
        let error = match reply {
            Reply::Error(error) => error.as_str(),
            _ => "",
        };
        let code = error.split(' ').next().unwrap_or_default();
        let is_elsewhere = matches!(code, "MOVED" | "ASK" | "TRYAGAIN");
        if deed.kind == Kind::Scratch {
            self.stands = error.is_empty() || is_elsewhere;
        }
        match (deed.kind, code) {
            (Kind::Cleanup, _) | (_, "") => {}
            (_, "NOPERM") => self.lacks(&deed, error),
            (Kind::Select, _) => {
                let words = String::from_utf8_lossy(&deed.words[1]).into_owned();
                self.is_troubled(
                    deed.part,
                    format!("database {words} cannot be selected: {}", shown(error)),
                );
            }
            _ if error.contains("unknown command") => {
                let command = String::from_utf8_lossy(&deed.words[0]).into_owned();
                if !self.unknown.contains(&(deed.part, command.clone())) {
                    self.unknown.push((deed.part, command));
                }
            }
            (Kind::Proof, _) if is_elsewhere => {
                let words = "its slots are being moved: look again";
                self.is_troubled(deed.part, words.to_owned());
            }
            (Kind::Proof, _)
            | (
                _,
                "OOM" | "MISCONF" | "NOREPLICAS" | "READONLY" | "LOADING" | "BUSY" | "MASTERDOWN"
                | "CLUSTERDOWN",
            ) => self.is_troubled(deed.part, explain(error, &self.grant)),
            _ => {}
        }
    }

    fn lacks(&mut self, deed: &Deed, error: &str) {
        let name = self.grant.name_of(error);
        let rule = match (deed.kind, name) {
            (Kind::Command, Some(_)) | (Kind::Names, None) => return,
            (_, Some(name)) => name,
            (_, None) => deed.right.to_owned(),
        };
        let is_known = |(part, known): &(Part, String)| *part == deed.part && *known == rule;
        if !self.lacks.iter().any(is_known) {
            self.lacks.push((deed.part, rule));
        }
    }

    fn is_troubled(&mut self, part: Part, reason: String) {
        self.trouble.get_or_insert((part, reason));
    }

    /// Whether messages are carried in partitions, where that is wished for.
    pub fn is_sharded(&self) -> bool {
        !self.is_hindered(Part::Sharded)
    }

    fn is_hindered(&self, part: Part) -> bool {
        let of = |(of, _): &(Part, String)| *of == part;
        self.lacks
            .iter()
            .chain(&self.unknown)
            .chain(&self.trouble)
            .any(of)
    }

    /// What follows from all of it: nothing, or that some of it will not work and why.
    ///
    /// # Errors
    /// Messages cannot be carried, and why.
    pub fn verdict(&self) -> Result<Option<String>, String> {
        let falls_back = !self.is_sharded();
        let counts = |part: Part| part != Part::Fallback || falls_back;
        let mut reasons = Vec::new();
        let mut rules: Vec<&str> = Vec::new();
        for (_, rule) in self.lacks.iter().filter(|(part, _)| counts(*part)) {
            if !rules.contains(&rule.as_str()) {
                rules.push(rule);
            }
        }
        if !rules.is_empty() {
            reasons.push(self.grant.lacking(&rules, &self.untried));
        }
        let unknown = self.unknown.iter().filter(|(part, _)| counts(*part));
        let unknown: Vec<&str> = unknown.map(|(_, command)| command.as_str()).collect();
        if !unknown.is_empty() {
            reasons.push(format!(
                "it does not know {}: it is too old, or they were renamed there",
                unknown.join(", ")
            ));
        }
        if let Some((part, reason)) = &self.trouble
            && counts(*part)
        {
            reasons.push(reason.clone());
        }
        let reasons = reasons.join("; ");
        if self.is_hindered(Part::Messages) || falls_back && self.is_hindered(Part::Fallback) {
            return Err(reasons);
        }
        let mut costs = Vec::new();
        if falls_back {
            costs.push("messages travel by PUBLISH and SUBSCRIBE, unheard by nodes that are let use sharded");
        }
        if self.is_hindered(Part::Registry) {
            costs.push("messages travel, but who is online and how the nodes are is not known");
        }
        if self.is_hindered(Part::Switches) {
            costs.push("a failover is heard of only when the Sentinel is asked next");
        }
        match costs.is_empty() {
            true => Ok(None),
            false => Ok(Some(format!("{}: {reasons}", costs.join("; ")))),
        }
    }
}

/// What carries messages: to a channel, and from both.
fn carrying(part: Part, rights: [&'static str; 3], channels: [&str; 2]) -> Vec<Deed> {
    let [publish, subscribe, unsubscribe] = rights;
    let command = |right: &'static str| right[1..].to_uppercase().into_bytes();
    let [room, probe] = channels.map(str::as_bytes);
    let mut deeds = vec![Deed::new(part, publish, &[&command(publish), room, b""])];
    for channel in [room, probe] {
        deeds.push(Deed::new(part, subscribe, &[&command(subscribe), channel]).heard());
    }
    let words: [&[u8]; 2] = [&command(unsubscribe), room];
    deeds.push(Deed::new(part, unsubscribe, &words).heard());
    deeds
}

#[cfg(test)]
mod tests;
