//! A Redis Cluster: which server has which room by now, and who is asked.
//!
//! The scout is a connection of its own, to any server that answers. It asks for the slots, and holds what nobody serves:
//! rooms of slots without a master, and of slots that a server has just given up, until the next answer says who has them.

use super::directory::{Directory, Topology};
use super::placement::{self, Partitions, Slot, Tag};
use super::refusal::Grant;
use super::{
    Address, AtStart, Endpoint, Fleet, LinkOrder, LinkTrouble, Options, Remote, Reply, Role,
};
use crate::time::Tick;

/// The scout's place among the servers.
pub const SCOUT: u16 = 0;
/// Whoever denies an answer, as all others do, is left for the next one after so many denials: about as many seconds.
const DENIED_COUNT_MAX: usize = 30;
/// The scout gives no other command.
const TICKET: u64 = 0;

/// What is known of the cluster.
#[derive(Debug)]
pub struct Cluster {
    partitions: Partitions,
    /// The server of each partition, or [`SCOUT`].
    places: Vec<u16>,
    /// The masters, and where their parts are.
    masters: Vec<(Endpoint, u16)>,
    directory: Directory,
    /// Who may be asked while nothing is known.
    seeds: Vec<Address>,
    /// How many were asked in vain since one has answered.
    failed_count: usize,
    /// Why nobody tells who serves the slots, by the last answer.
    refusal: Option<String>,
    /// Answers in a row that left something wrong.
    vain_count: u32,
    /// Since when not all is as it should be.
    trouble_since: Option<Tick>,
}

impl Cluster {
    /// Nothing is known.
    pub fn new(options: &Options, now: Tick) -> Self {
        let partitions = Partitions::new(options.partitions);
        Self {
            places: vec![SCOUT; partitions.tags().len()],
            partitions,
            masters: Vec::new(),
            directory: Directory::new(now),
            seeds: options.addresses().cloned().collect(),
            failed_count: 0,
            refusal: None,
            vain_count: 0,
            trouble_since: Some(now),
        }
    }

    /// The server of a room.
    pub fn place(&self, room: &str) -> u16 {
        self.places[usize::from(self.partitions.of(room))]
    }

    /// The server of a key; `None`: there is none at the moment.
    pub fn server_of(&self, key: &[u8]) -> Option<u16> {
        let slot = placement::slot_of(key);
        let master = self.directory.topology()?.master_of(slot)?;
        self.member(master)
    }

    fn member(&self, endpoint: &Endpoint) -> Option<u16> {
        let mut masters = self.masters.iter();
        let (_, server) = masters.find(|(master, _)| master == endpoint)?;
        Some(*server)
    }

    fn is_member(&self, server: u16) -> bool {
        self.masters.iter().any(|(_, member)| *member == server)
    }

    /// Everybody that may be asked, each once.
    fn candidates(&self) -> Vec<Address> {
        let like = &self.seeds[0];
        let servers = self.directory.topology().into_iter();
        let servers = servers
            .flat_map(Topology::servers)
            .map(|endpoint| like.moved_to(endpoint.clone()));
        let mut candidates: Vec<Address> = Vec::new();
        for address in servers.chain(self.seeds.iter().cloned()) {
            let mut known = candidates.iter();
            if !known.any(|known| known.endpoint == address.endpoint) {
                candidates.push(address);
            }
        }
        candidates
    }

    /// Partitions that nobody serves.
    fn homeless_count(&self) -> usize {
        self.places.iter().filter(|place| **place == SCOUT).count()
    }
}

impl Fleet {
    /// The answer to CLUSTER SLOTS, or none.
    pub(super) fn informed(&mut self, reply: Option<Reply>, now: Tick) {
        let host = match self.remote(SCOUT).map(Remote::endpoint) {
            Some(Endpoint::Tcp { host, .. }) => host.clone(),
            _ => String::new(),
        };
        let grant = Grant::at_redis(self.options());
        let is_denied = matches!(&reply, Some(Reply::Error(error)) if error.starts_with("NOPERM"));
        let topology = reply.map(|reply| Topology::read(&reply, &host, &grant));
        let Some(cluster) = self.cluster_mut() else {
            return;
        };
        match topology {
            Some(Ok(topology)) => {
                cluster.failed_count = 0;
                cluster.refusal = None;
                let differs = cluster.directory.answered(topology, now);
                let gave_up = cluster.homeless_count() > 0;
                if differs || gave_up {
                    self.apply(differs, now);
                }
                self.judge(true, now);
            }
            Some(Err(reason)) => {
                cluster.directory.failed(now);
                if cluster.refusal.as_ref() != Some(&reason) {
                    tracing::warn!(reason, "Redis Cluster: nobody tells who serves the slots");
                    cluster.refusal = Some(reason.clone());
                }
                self.scout_failed(&reason, is_denied, now);
            }
            None => cluster.directory.failed(now), // its link was lost, and says so itself
        }
    }

    /// Puts every room where the topology has it.
    fn apply(&mut self, differs: bool, now: Tick) {
        let Some(topology) = self
            .cluster()
            .and_then(|cluster| cluster.directory.topology())
        else {
            return;
        };
        let topology = topology.clone();
        let masters: Vec<Endpoint> = topology.masters().into_iter().cloned().collect();
        let like = self.options().address.clone();
        let mut members = Vec::new();
        for endpoint in masters {
            let known = self.server_at(&endpoint);
            let server = known.unwrap_or_else(|| {
                let endpoint = endpoint.clone();
                self.enlist(
                    Address {
                        endpoint,
                        ..like.clone()
                    },
                    now,
                )
            });
            members.push((endpoint, server));
        }
        let Some(cluster) = self.cluster_mut() else {
            return;
        };
        cluster.masters = members;
        let places: Vec<u16> = cluster
            .partitions
            .tags()
            .iter()
            .map(|tag| {
                let master = topology.master_of(tag.slot);
                master
                    .and_then(|master| cluster.member(master))
                    .unwrap_or(SCOUT)
            })
            .collect();
        cluster.places = places;
        if differs {
            let masters = cluster.masters.iter();
            let masters: Vec<String> = masters.map(|(master, _)| master.to_string()).collect();
            let uncovered = topology.uncovered_count();
            tracing::info!(?masters, uncovered, "Redis Cluster: who serves the slots");
        }
        let members: Vec<(Endpoint, u16)> = cluster.masters.clone();
        for (endpoint, server) in &members {
            let tag = probe_tag(&topology, endpoint, self.remote(*server));
            if let Some(remote) = self.remote_mut(*server) {
                remote.set_probe_tag(tag, now);
            }
            self.gather(*server, now);
        }
        for server in 0..self.server_count() {
            self.relocate(server, now);
        }
        // Smaller shares come last: what was acknowledged lately goes along with its rooms first.
        self.divide_bounds();
        self.dismiss_idle(now);
    }

    /// The part of the server at `endpoint`.
    fn server_at(&self, endpoint: &Endpoint) -> Option<u16> {
        let mut servers = 1..self.server_count();
        servers.find(|server| {
            let remote = self.remote(*server);
            remote.is_some_and(|remote| remote.endpoint() == endpoint)
        })
    }

    /// Lets servers go that are no masters any more, once nothing of theirs is waited for.
    fn dismiss_idle(&mut self, now: Tick) {
        if self.cluster().is_none() {
            return;
        }
        let count = self.server_count();
        for server in 1..count {
            let is_idle = self.remote(server).is_some_and(Remote::is_idle);
            if is_idle && self.is_retiring(server) {
                self.dismiss(server, now);
                self.divide_bounds();
            }
        }
    }

    /// Whether the server is no master any more.
    pub(super) fn is_retiring(&self, server: u16) -> bool {
        self.cluster()
            .is_some_and(|cluster| !cluster.is_member(server))
    }

    /// A server does not serve a room that it should.
    pub(super) fn slot_is_elsewhere(&mut self, server: u16, room: &str, now: Tick) {
        let slot = self
            .cluster()
            .map(|cluster| cluster.partitions.tag_of(room).slot);
        if let Some(slot) = slot {
            self.elsewhere(server, slot, now);
        }
    }

    /// A server does not serve a slot that it should: its rooms wait for the next answer.
    pub(super) fn elsewhere(&mut self, server: u16, slot: Slot, now: Tick) {
        let Some(cluster) = self.cluster_mut() else {
            return;
        };
        let mut moved = false;
        for (tag, place) in cluster.partitions.tags().iter().zip(&mut cluster.places) {
            if tag.slot == slot && *place == server {
                *place = SCOUT;
                moved = true;
            }
        }
        cluster.directory.doubt(now);
        if moved {
            self.relocate(server, now);
        }
    }

    /// A link was lost: somebody else may have the server's slots by now.
    pub(super) fn link_lost(&mut self, server: u16, role: Role, now: Tick) {
        if self.is_closing() {
            return;
        }
        let Some(cluster) = self.cluster_mut() else {
            return;
        };
        cluster.directory.doubt(now);
        if server == SCOUT && role == Role::Commands {
            cluster.refusal = None;
            cluster.directory.failed(now);
            let remote = self.remote(SCOUT);
            let reason = remote.map_or_else(String::new, Remote::commands_reason);
            self.scout_failed(&reason, false, now);
        }
    }

    /// Whoever was asked does not answer as it should. `is_denied`: it may not; another connection would not help.
    fn scout_failed(&mut self, reason: &str, is_denied: bool, now: Tick) {
        let at_start = self.options().at_start;
        let Some(cluster) = self.cluster_mut() else {
            return;
        };
        cluster.failed_count += 1;
        let candidates = cluster.candidates();
        let round_is_over = cluster.failed_count.is_multiple_of(candidates.len());
        let is_lost = cluster.failed_count >= candidates.len();
        let is_first = cluster.directory.topology().is_none();
        let failed_count = cluster.failed_count;
        if at_start == AtStart::Fail && is_first && is_lost {
            let all = candidates.iter();
            let all: Vec<String> = all.map(|address| address.endpoint.to_string()).collect();
            self.push_order(LinkOrder::Fatal(format!(
                "Redis Cluster at {} cannot be used: {reason}",
                all.join(", ")
            )));
            return;
        }
        let stays = is_denied && is_lost && !failed_count.is_multiple_of(DENIED_COUNT_MAX);
        if !stays {
            self.turn_scout(!round_is_over, now);
        }
    }

    /// Asks somebody else from now on: the one behind the last, in the list of all. `soon`: at once.
    fn turn_scout(&mut self, soon: bool, now: Tick) {
        let current = self.remote(SCOUT).map(|scout| scout.endpoint().clone());
        let Some(cluster) = self.cluster() else {
            return;
        };
        let candidates = cluster.candidates();
        let mut places = candidates.iter();
        let place = places.position(|address| Some(&address.endpoint) == current.as_ref());
        let next = place.map_or(0, |place| (place + 1) % candidates.len());
        if let Some(scout) = self.remote_mut(SCOUT) {
            scout.redirect(candidates[next].clone(), soon, now);
        }
        self.gather(SCOUT, now);
    }

    /// Whether all is as the topology has it; `informed`: an answer has just come.
    fn judge(&mut self, informed: bool, now: Tick) {
        let Some(cluster) = self.cluster() else {
            return;
        };
        let works = |(_, server): &(Endpoint, u16)| {
            let remote = self.remote(*server);
            remote.is_some_and(Remote::is_working)
        };
        let all_is_well = cluster.directory.topology().is_some()
            && cluster.homeless_count() == 0
            && cluster.masters.iter().all(works);
        let Some(cluster) = self.cluster_mut() else {
            return;
        };
        cluster.directory.note(all_is_well, now);
        if all_is_well {
            cluster.vain_count = 0;
            cluster.trouble_since = None;
            return;
        }
        cluster.trouble_since.get_or_insert(now);
        if informed {
            cluster.vain_count += 1;
            // Whoever was asked may be cut off from the others, and know less than they do.
            if cluster.vain_count.is_multiple_of(3) {
                self.turn_scout(true, now);
            }
        }
    }

    /// Asks when it is time to, and lets go who may.
    pub(super) fn tend_cluster(&mut self, now: Tick) {
        if self.is_closing() || self.cluster().is_none() {
            return;
        }
        self.judge(false, now);
        let can_ask = self.remote(SCOUT).is_some_and(Remote::takes_commands);
        if self
            .cluster_mut()
            .is_some_and(|cluster| cluster.directory.take_due(can_ask, now))
        {
            if let Some(scout) = self.remote_mut(SCOUT) {
                scout.command(&[b"CLUSTER", b"SLOTS"], TICKET, now);
            }
            self.gather(SCOUT, now);
        }
        self.dismiss_idle(now);
    }

    /// When [`Self::tend_cluster`] has something to do.
    pub(super) fn cluster_deadline(&self) -> Option<Tick> {
        let can_ask = self.remote(SCOUT)?.takes_commands() && !self.is_closing();
        self.cluster()?.directory.deadline(can_ask)
    }

    /// What is wrong with the cluster itself.
    pub(super) fn cluster_trouble(&self, now: Tick) -> Option<LinkTrouble> {
        let cluster = self.cluster()?;
        let scout = self.remote(SCOUT)?;
        let homeless = cluster.homeless_count();
        if homeless == 0 {
            return None;
        }
        let reason = match cluster.directory.topology() {
            None => format!(
                "nobody has told who serves the slots yet: {}",
                match &cluster.refusal {
                    Some(refusal) => refusal.clone(),
                    None => scout.commands_reason(),
                }
            ),
            Some(_) => format!(
                "nobody serves the slots of {homeless} of {} partitions",
                cluster.places.len()
            ),
        };
        let since = cluster.trouble_since.unwrap_or(now);
        Some(LinkTrouble {
            server: scout.endpoint().to_string(),
            link: "cluster",
            state: "waiting",
            since_us: now.since(since),
            reason,
        })
    }
}

/// A tag that leads to the server at `endpoint`; the one that it has, if it still does.
fn probe_tag(topology: &Topology, endpoint: &Endpoint, remote: Option<&Remote>) -> Option<Tag> {
    let is_its = |slot| topology.master_of(slot) == Some(endpoint);
    let current = remote.and_then(Remote::probe_tag);
    match current {
        Some(tag) if is_its(tag.slot) => Some(tag.clone()),
        _ => placement::tag_in(is_its),
    }
}
