//! All Redis servers as one: each has its [`Remote`], each room its server, and rooms move when a cluster's slots do.
//!
//! ```text
//!              ┌─ one server ─────────────▶ Remote 0
//! room ─place──┼─ several, by their names ▶ Remote 0 … n           (rendezvous hashing: nothing moves)
//!              └─ partition ─ slot ───────▶ Remote 1 … n           (a cluster: the directory says whose the slot is)
//!                                           Remote 0, the scout:   asks who serves what, keeps the rooms that nobody serves
//! ```
//! Invariant: what is published in a room while something of it is on its way at its old server waits in [`Transit`],
//! so that a room's messages reach Redis in one order, wherever it goes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::cluster::{Cluster, SCOUT};
use super::moves::News;
use super::outgoing::Entry;
use super::placement::{Rendezvous, tag_of};
use super::transit::Transit;
use super::watching::{self, Watched};
use super::{
    Effect, FALLEN_BACK, LinkId, LinkOrder, LinkTrouble, Mode, Options, Published, Remote, Role,
};
use crate::bus::{Batch, CoreId, RoomName};
use crate::metrics::{RedisServerSnapshot, RedisSnapshot};
use crate::time::Tick;

/// How rooms are placed.
#[derive(Debug)]
enum Placement {
    Single,
    Several(Rendezvous),
    Cluster(Box<Cluster>),
}

/// All servers. After each input, drain [`Self::poll_effect`] and [`Self::poll_order`].
#[derive(Debug)]
pub struct Fleet {
    /// As they were given: the bounds are those of all servers together.
    options: Options,
    node: u64,
    seed: u64,
    /// By [`LinkId::server`]; a place whose server has left the cluster is empty.
    servers: Vec<Option<Box<Remote>>>,
    placement: Placement,
    transit: Transit,
    effects: VecDeque<Effect>,
    orders: VecDeque<LinkOrder>,
    /// What servers counted that have left.
    gone: RedisSnapshot,
    /// Why [`Mode::Sharded`] is not in use although it is wished for.
    fallen_back: Option<String>,
    closing: bool,
    /// Who says where the servers are that Sentinels watch.
    pub(super) watched: Vec<Watched>,
}

impl Fleet {
    /// Servers whose links are to be connected. `seed` is its only source of randomness.
    #[must_use]
    pub fn new(options: Options, seed: u64, now: Tick) -> Self {
        let placement = if options.is_cluster() {
            Placement::Cluster(Box::new(Cluster::new(&options, now)))
        } else if options.others.is_empty() {
            Placement::Single
        } else {
            let names: Vec<String> = options
                .addresses()
                .map(|address| address.endpoint.placement_name())
                .collect();
            Placement::Several(Rendezvous::new(names.iter().map(String::as_str)))
        };
        let first = Remote::new(options.clone(), 0, seed, now);
        let mut fleet = Self {
            node: first.node(),
            seed,
            servers: Vec::new(),
            placement,
            transit: Transit::default(),
            effects: VecDeque::new(),
            orders: VecDeque::new(),
            gone: RedisSnapshot::default(),
            fallen_back: None,
            closing: false,
            watched: watching::watches(&options, seed, now),
            options,
        };
        if matches!(fleet.placement, Placement::Cluster(_)) {
            fleet.servers.push(Some(Box::new(first.into_scout())));
        } else {
            let all: Vec<_> = fleet.options.addresses().cloned().collect();
            for address in all {
                fleet.enlist(address, now);
            }
        }
        fleet.divide_bounds();
        fleet
    }

    /// A server more. Its place among all.
    pub(super) fn enlist(&mut self, address: super::Address, now: Tick) -> u16 {
        let free = self.servers.iter().position(Option::is_none);
        let index = free.unwrap_or(self.servers.len());
        let server = u16::try_from(index).expect("fewer servers than slots");
        let seed = self.seed.wrapping_add(u64::from(server));
        let options = Options {
            address,
            ..self.options.clone()
        };
        let mut remote = Remote::new(options, server, seed, now).of_node(self.node, seed);
        remote.set_epoch_next(self.epoch_next());
        let remote = Some(Box::new(remote));
        match free {
            Some(index) => self.servers[index] = remote,
            None => self.servers.push(remote),
        }
        server
    }

    /// Deals the bounds out to all servers.
    pub(super) fn divide_bounds(&mut self) {
        let count = self.servers.iter().flatten().count().max(1) as u64;
        let bytes = self.options.buffer_bytes_max / count;
        let joins = u64::from(self.options.joins_waiting_max).div_ceil(count);
        for remote in self.servers.iter_mut().flatten() {
            remote.set_bounds(bytes, joins as usize);
        }
        self.transit.set_bytes_max(bytes);
    }

    fn epoch_next(&self) -> u32 {
        let epochs = self.servers.iter().flatten();
        epochs.map(|remote| remote.epoch_next()).max().unwrap_or(1)
    }

    pub(super) fn remote(&self, server: u16) -> Option<&Remote> {
        self.servers.get(usize::from(server))?.as_deref()
    }

    pub(super) fn remote_mut(&mut self, server: u16) -> Option<&mut Remote> {
        self.servers.get_mut(usize::from(server))?.as_deref_mut()
    }

    /// Where a room is.
    fn place(&self, room: &str) -> u16 {
        match &self.placement {
            Placement::Single => 0,
            Placement::Several(servers) => servers.of(room.as_bytes()),
            Placement::Cluster(cluster) => cluster.place(room),
        }
    }

    pub(super) fn cluster(&self) -> Option<&Cluster> {
        match &self.placement {
            Placement::Cluster(cluster) => Some(cluster),
            _ => None,
        }
    }

    pub(super) fn cluster_mut(&mut self) -> Option<&mut Cluster> {
        match &mut self.placement {
            Placement::Cluster(cluster) => Some(cluster),
            _ => None,
        }
    }

    /// The server of a room, which has one always.
    fn of(&mut self, room: &str) -> (u16, &mut Remote) {
        let place = self.place(room);
        let place = if self.remote(place).is_some() {
            place
        } else {
            SCOUT
        };
        let remote = self.servers[usize::from(place)].as_deref_mut();
        (place, remote.expect("the first server never leaves"))
    }

    // --- the shards' side -------------------------------------------------------------------------------------------

    /// A shard has its first member in a room.
    pub fn interest(&mut self, shard: CoreId, room: &RoomName, now: Tick) {
        let (server, remote) = self.of(room);
        remote.interest(shard, room, now);
        self.gather(server, now);
    }

    /// A shard's last member has left a room; `is_last`: nobody here is in it any more.
    pub fn disinterest(&mut self, shard: CoreId, room: &RoomName, is_last: bool, now: Tick) {
        let (server, remote) = self.of(room);
        remote.disinterest(shard, room, is_last, now);
        self.gather(server, now);
    }

    /// Whether a publisher has to wait: the buffer of the room's server is full, and Redis empties it.
    #[must_use]
    pub fn must_pause(&self, room: &str, batch: &Batch, now: Tick) -> bool {
        let remote = self.remote(self.place(room));
        !self.transit.has(room) && remote.is_some_and(|remote| remote.must_pause(batch, now))
    }

    /// Messages for a room, from a shard or (`None`) from the admin API. A full buffer refuses them: see
    /// [`Self::must_pause`].
    pub fn publish(
        &mut self,
        room: &RoomName,
        batch: &Arc<Batch>,
        from: Option<CoreId>,
        now: Tick,
    ) -> Published {
        let moves = self.transit.has(room);
        let has_room = self.transit.has_room_for(batch);
        let (server, remote) = self.of(room);
        let published = if moves {
            match remote.publish_aside(room, batch, from, has_room, now) {
                Ok(entry) => {
                    self.transit.keep(entry);
                    Published::Taken
                }
                Err(published) => published,
            }
        } else {
            remote.publish(room, batch, from, now)
        };
        self.gather(server, now);
        published
    }

    /// Gives a command that names `key`, or none, to the server that has it; [`Effect::Answered`] says what became of it.
    pub fn command(&mut self, key: &[u8], words: &[&[u8]], ticket: u64, now: Tick) {
        let server = self.server_of(key);
        let found = server.and_then(|server| Some((server, self.remote_mut(server)?)));
        if let Some((server, remote)) = found {
            remote.command(words, ticket, now);
            self.gather(server, now);
        } else {
            let reply = None;
            self.effects.push_back(Effect::Answered { ticket, reply });
        }
    }

    /// The server that has a key, as far as that is known.
    #[must_use]
    pub fn server_of(&self, key: &[u8]) -> Option<u16> {
        match &self.placement {
            Placement::Single => Some(0),
            Placement::Several(servers) => Some(servers.of(tag_of(key))),
            Placement::Cluster(cluster) => cluster.server_of(key),
        }
    }

    // --- the links' side --------------------------------------------------------------------------------------------

    /// Servers that there are or were, and those that are asked where they are: [`LinkId::server`] is less.
    #[must_use]
    pub fn server_count(&self) -> u16 {
        (self.servers.len() + self.watched.len()) as u16
    }

    /// The socket that [`LinkOrder::Connect`] asked for is connected.
    pub fn connected(&mut self, link: LinkId, now: Tick) {
        if let Some(watch) = self.watch_mut(link) {
            watch.connected(now);
        } else if let Some(remote) = self.remote_mut(link.server) {
            remote.connected(link.role, now);
            self.gather(link.server, now);
        }
    }

    /// The socket could not be connected, or has ended.
    pub fn failed(&mut self, link: LinkId, reason: String, now: Tick) {
        if let Some(watch) = self.watch_mut(link) {
            watch.failed(reason, now);
        } else if let Some(remote) = self.remote_mut(link.server) {
            remote.failed(link.role, reason, now);
            self.gather(link.server, now);
        }
        self.tend_watches(now);
    }

    /// Bytes came on a link.
    pub fn received(&mut self, link: LinkId, bytes: &[u8], now: Tick) {
        if let Some(watch) = self.watch_mut(link) {
            watch.received(bytes, now);
            self.tend_watches(now);
        } else if let Some(remote) = self.remote_mut(link.server) {
            remote.received(link.role, bytes, now);
            self.gather(link.server, now);
        }
    }

    /// What is to be written to the link's socket now.
    #[must_use]
    pub fn output(&self, link: LinkId, now: Tick) -> &[u8] {
        if let Some(watch) = self.watch(link) {
            return watch.output();
        }
        let remote = self.remote(link.server);
        remote.map_or(&[], |remote| remote.output(link.role, now))
    }

    /// So much of it was written.
    pub fn written(&mut self, link: LinkId, bytes: usize, now: Tick) {
        if let Some(watch) = self.watch_mut(link) {
            watch.written(bytes);
        } else if let Some(remote) = self.remote_mut(link.server) {
            remote.written(link.role, bytes, now);
            self.gather(link.server, now);
        }
    }

    /// When [`Self::output`] of the link has something to write.
    #[must_use]
    pub fn flush_deadline(&self, link: LinkId) -> Option<Tick> {
        self.remote(link.server)?.flush_deadline(link.role)
    }

    // --- time -------------------------------------------------------------------------------------------------------

    /// Does what is due by time.
    pub fn handle_deadline(&mut self, now: Tick) {
        for server in 0..self.server_count() {
            if let Some(remote) = self.remote_mut(server) {
                remote.handle_deadline(now);
                self.gather(server, now);
            }
        }
        let age = Duration::from_millis(u64::from(self.options.buffer_age_ms));
        let limit = Tick(now.0.saturating_sub(age.as_micros() as u64));
        while let Some(entry) = self.transit.expire(limit) {
            let (server, remote) = self.of(&entry.room);
            remote.give_up(&entry);
            self.gather(server, now);
        }
        self.tend_cluster(now);
        self.watches_handle_deadline(now);
    }

    /// When [`Self::handle_deadline`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        let servers = self.servers.iter().flatten();
        let age = Duration::from_millis(u64::from(self.options.buffer_age_ms) + 1);
        let expires = self.transit.oldest().map(|taken| taken.after(age));
        servers
            .filter_map(|remote| remote.next_deadline())
            .chain(expires)
            .chain(self.cluster_deadline())
            .chain(self.watches_deadline())
            .min()
    }

    /// The shards do not keep up, or do again.
    pub fn set_crowded(&mut self, is_crowded: bool, now: Tick) {
        for server in 0..self.server_count() {
            if let Some(remote) = self.remote_mut(server) {
                remote.set_crowded(is_crowded, now);
                self.gather(server, now);
            }
        }
    }

    // --- moves ------------------------------------------------------------------------------------------------------

    /// Takes over what has come of a server's last input.
    pub(super) fn gather(&mut self, server: u16, now: Tick) {
        loop {
            self.collect(server);
            let is_scout = server == SCOUT && self.cluster().is_some();
            let Some(remote) = self.remote_mut(server) else {
                return;
            };
            if let Some(news) = remote.poll_news() {
                self.hear(server, news, now);
            } else if is_scout && let Some(reply) = remote.poll_scouted() {
                self.informed(reply, now);
            } else {
                return;
            }
        }
    }

    /// Takes over what shards and sockets are to be told.
    fn collect(&mut self, server: u16) {
        let place = self.servers.get_mut(usize::from(server));
        if let Some(remote) = place.and_then(Option::as_deref_mut) {
            remote.drain_into(&mut self.effects, &mut self.orders);
        }
    }

    pub(super) fn push_order(&mut self, order: LinkOrder) {
        self.orders.push_back(order);
    }

    fn hear(&mut self, server: u16, news: News, now: Tick) {
        match news {
            News::Displaced(entry) => {
                let room = entry.room.clone();
                self.transit.admit(entry, server);
                if self.place(&room) == server {
                    self.slot_is_elsewhere(server, &room, now);
                }
                let remote = self.remote(server);
                if remote.is_none_or(|remote| !remote.is_leaving(&room)) {
                    self.arrive(&room, now);
                }
            }
            News::Returned(entry) => self.transit.admit(entry, server),
            News::Left(room) => self.arrive(&room, now),
            News::Elsewhere(slot) => self.elsewhere(server, slot, now),
            News::Forbidden(error) => self.fall_back(&error, now),
            News::Lost(role) => self.link_lost(server, role, now),
        }
    }

    /// Moves all rooms of a server that have another place by now.
    pub(super) fn relocate(&mut self, source: u16, now: Tick) {
        let placement = std::mem::replace(&mut self.placement, Placement::Single);
        let departure = match (&placement, self.remote_mut(source)) {
            (Placement::Cluster(cluster), Some(remote)) => {
                Some(remote.release(|room| cluster.place(room) != source, now))
            }
            _ => None,
        };
        self.placement = placement;
        let Some(departure) = departure else {
            return;
        };
        // What the members here are told of the old place comes before what they are told of the new one.
        self.collect(source);
        let epoch = self.epoch_next();
        for remote in self.servers.iter_mut().flatten() {
            remote.set_epoch_next(epoch);
        }
        for (room, sequence) in departure.sequences {
            let (_, remote) = self.of(&room);
            remote.adopt_sequence(room, sequence, now);
        }
        for room in departure.in_flight {
            self.transit.begin(room, source);
        }
        for entry in departure.unsent {
            if self.transit.has(&entry.room) {
                self.transit.admit(entry, source);
            } else {
                self.resume(entry, now);
            }
        }
        for (room, channel) in departure.channels {
            let (_, remote) = self.of(&room);
            remote.adopt(room, channel, now);
        }
        for (room, place) in departure.places {
            let (_, remote) = self.of(&room);
            remote.adopt_place(&room, &place, now);
        }
        let remote = self.remote(source);
        let arrived = self
            .transit
            .from(source)
            .filter(|room| remote.is_none_or(|remote| !remote.is_leaving(room)));
        let arrived: Vec<RoomName> = arrived.cloned().collect();
        for room in arrived {
            self.arrive(&room, now);
        }
        for server in 0..self.server_count() {
            self.gather(server, now);
        }
    }

    /// Nothing of the room is on its way at its old server: what has waited goes to the new one.
    fn arrive(&mut self, room: &RoomName, now: Tick) {
        for entry in self.transit.end(room) {
            self.resume(entry, now);
        }
        self.gather(self.place(room), now);
    }

    /// Hands an entry to the server that has its room by now. What Redis had does not expire there, and is bounded by what
    /// may wait at all servers together.
    fn resume(&mut self, entry: Entry, now: Tick) {
        let bytes_max = self.options.buffer_bytes_max;
        let (_, remote) = self.of(&entry.room);
        let held = remote.again_bytes();
        if entry.again && held > 0 && held + entry.bytes() > bytes_max {
            remote.give_up(&entry);
        } else {
            remote.resume(entry, now);
        }
    }

    /// Goes on with PUBLISH and SUBSCRIBE where the sharded commands are forbidden.
    fn fall_back(&mut self, error: &str, now: Tick) {
        if self.fallen_back.is_some() {
            return;
        }
        tracing::warn!(
            error,
            "Redis does not let us use sharded channels; going on with PUBLISH and SUBSCRIBE on the same channels until this \
             node is restarted. Leave backplane_mode = sharded on all nodes: with pubsub they would not hear this one. \
             Sharded channels need Redis 7.0, and the user +spublish +ssubscribe +sunsubscribe; then restart the nodes \
             together"
        );
        self.fallen_back = Some(error.to_owned());
        self.options.mode = Mode::Pubsub;
        for server in 0..self.server_count() {
            if let Some(remote) = self.remote_mut(server) {
                remote.change_mode(Mode::Pubsub, now);
                self.gather(server, now);
            }
        }
    }

    // --- what comes out ---------------------------------------------------------------------------------------------

    /// The next thing that shards are to be told.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The next thing that the sockets are to do.
    pub fn poll_order(&mut self) -> Option<LinkOrder> {
        self.orders.pop_front()
    }

    /// The mode in use, which need not be the one that was wished for: nodes that say the same hear each other.
    #[must_use]
    pub fn mode_label(&self) -> &'static str {
        match self.fallen_back {
            Some(_) => FALLEN_BACK,
            None => self.options.mode.label(),
        }
    }

    /// The links that are not proven to work, and why.
    #[must_use]
    pub fn troubles(&self, now: Tick) -> Vec<LinkTrouble> {
        let servers = self.servers.iter().flatten();
        let mut troubles: Vec<LinkTrouble> = servers
            .filter(|remote| !self.is_retiring(remote.server()))
            .flat_map(|remote| remote.troubles(now))
            .collect();
        troubles.extend(self.cluster_trouble(now));
        troubles.extend(self.watch_troubles(now));
        troubles
    }

    /// Everything counted, and what is held now.
    #[must_use]
    pub fn snapshot(&self, now: Tick) -> RedisSnapshot {
        let is_cluster = self.cluster().is_some();
        let mut all = self.gone.clone();
        let mut ready = true;
        let mut links = [true; Role::ALL.len()];
        for remote in self.servers.iter().flatten() {
            let part = remote.snapshot(now);
            let is_scout = is_cluster && remote.server() == SCOUT;
            if !is_scout && !self.is_retiring(remote.server()) {
                ready &= part.ready;
                for (up, link) in links.iter_mut().zip(&part.links) {
                    *up &= link.up;
                }
                all.servers.push(RedisServerSnapshot {
                    server: remote.endpoint().to_string(),
                    ready: part.ready,
                    subscriptions: part.subscriptions,
                    buffer_bytes: part.buffer_bytes,
                });
            }
            all.add(&part);
        }
        for (link, up) in all.links.iter_mut().zip(links) {
            link.up = up && !all.servers.is_empty();
        }
        all.configured = true;
        all.mode = self.mode_label();
        all.ready = ready && self.cluster_trouble(now).is_none();
        all.buffer_bytes += self.transit.bytes();
        all.stream_retained_bytes += self.transit.again_bytes();
        all.buffer_bytes_max = self.options.buffer_bytes_max;
        all
    }

    /// A server has left: what it counted stays.
    pub(super) fn dismiss(&mut self, server: u16, now: Tick) {
        if let Some(remote) = self.servers[usize::from(server)].take() {
            self.gone.add(&remote.snapshot(now).counters());
            for role in Role::ALL {
                self.orders
                    .push_back(LinkOrder::Close(LinkId { server, role }));
            }
        }
    }

    /// The node ends: what waits is sent, subscriptions are dropped, links closed; within a second.
    pub fn close(&mut self, now: Tick) {
        self.closing = true;
        self.close_watches(now);
        for server in 0..self.server_count() {
            if let Some(remote) = self.remote_mut(server) {
                remote.close(now);
                self.gather(server, now);
            }
        }
    }

    /// Whether the node ends.
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Whether the node may end.
    #[must_use]
    pub fn is_closed(&self, now: Tick) -> bool {
        let mut servers = self.servers.iter().flatten();
        servers.all(|remote| remote.is_closed(now))
    }

    /// Messages that were taken and that no Redis has acknowledged: they end with the node.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        let servers = self.servers.iter().flatten();
        let waiting = servers.map(|remote| remote.unacknowledged());
        waiting.sum::<usize>() + self.transit.message_count()
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// Checks what must hold between inputs. For tests: O(rooms).
    ///
    /// # Panics
    /// When something does not hold.
    pub fn check_invariants(&self) {
        for remote in self.servers.iter().flatten() {
            remote.check_invariants();
            remote.check_rooms(|room| self.place(room) == remote.server());
        }
        for (room, source) in self.transit.passages() {
            let source = self.remote(source);
            assert!(
                source.is_some_and(|remote| remote.is_leaving(room)),
                "{room} has arrived"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::remote::Address;
    use crate::backplane::remote::outgoing::Outgoing;
    use crate::backplane::remote::outgoing::tests::batch;

    #[test]
    fn what_servers_had_that_fail_in_turn_is_bounded_and_what_is_beyond_is_counted() {
        let batch = batch(1);
        let cost = Outgoing::cost(&batch);
        let options = Options {
            mode: Mode::Streams,
            buffer_bytes_max: 3 * cost,
            ..Options::new(Address::parse("redis://x").unwrap())
        };
        let mut fleet = Fleet::new(options, 7, Tick(0));
        let mut source = Outgoing::new(7, 1);
        for _ in 0..4 {
            let entry = source.number(&"r".into(), &batch, None, Tick(0));
            fleet.resume(entry.into_again(Tick(0)), Tick(0));
        }
        let snapshot = fleet.snapshot(Tick(0));
        assert_eq!(snapshot.stream_retained_bytes, 3 * cost);
        assert_eq!(snapshot.messages_refused, 1);
        // An empty buffer takes any one batch, whatever else waits.
        let large = Arc::new(Batch {
            bytes: vec![0; 4 * cost as usize],
            messages: batch.messages.clone(),
            published: Tick(0),
        });
        let mut publish = |batch| fleet.publish(&"r".into(), batch, None, Tick(0));
        assert_eq!(publish(&large), Published::Taken);
        assert!(matches!(publish(&batch), Published::Refused { .. }));
        assert_eq!(fleet.snapshot(Tick(0)).buffer_bytes, Outgoing::cost(&large));
        assert_eq!(fleet.unacknowledged(), 4);
    }
}
