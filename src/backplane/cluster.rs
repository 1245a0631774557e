//! The registry beside the backplane: notes of shards into it, its commands to Redis, answers back, announcements out.

use super::Backplane;
use super::registry::{Options, Registry};
use crate::bus::{ClusterQuestion, ClusterReply, CoreId, Downstream, PresenceNote};
use crate::metrics::RegistrySnapshot;
use crate::time::Tick;

impl Backplane {
    /// Keeps a registry at Redis from now on. `incarnation` tells this process from others of the same node.
    ///
    /// # Panics
    /// Without Redis.
    pub fn keep_registry(&mut self, options: Options, incarnation: u64, now: Tick) {
        assert!(self.remote.is_some(), "a registry is kept at Redis");
        self.registry = Some(Box::new(Registry::new(options, incarnation, now)));
    }

    /// Whether questions about users are for the registry; else the shards know all that is known.
    #[must_use]
    pub fn keeps_users(&self) -> bool {
        let registry = self.registry.as_ref();
        registry.is_some_and(|registry| registry.keeps_users())
    }

    /// Asks the registry; the answer comes from [`Self::poll_cluster_answer`]. False: there is none.
    pub fn ask_cluster(&mut self, request: u64, question: ClusterQuestion, now: Tick) -> bool {
        let Some(registry) = &mut self.registry else {
            return false;
        };
        registry.ask(request, question, now);
        self.turn_registry(now);
        true
    }

    /// The next answer of the registry.
    pub fn poll_cluster_answer(&mut self) -> Option<(u64, ClusterReply)> {
        self.registry.as_mut()?.poll_answer()
    }

    /// What this node tells the others of itself: JSON, and how many connections it has.
    pub fn set_state(&mut self, state: String, connection_count: u64) {
        if let Some(registry) = &mut self.registry {
            registry.set_state(state, connection_count);
        }
    }

    /// What this node has at Redis is removed, for a second at most. Its clients have gone.
    pub fn close_registry(&mut self, now: Tick) {
        if let Some(registry) = &mut self.registry {
            registry.close(now);
            self.turn_registry(now);
        }
    }

    /// Whether it is, or there was no registry.
    #[must_use]
    pub fn has_left_registry(&self, now: Tick) -> bool {
        let registry = self.registry.as_ref();
        registry.is_none_or(|registry| registry.is_closed(now))
    }

    pub(super) fn note_presence(&mut self, notes: Vec<PresenceNote>, now: Tick) {
        if let Some(registry) = &mut self.registry {
            registry.note(notes, now);
        }
    }

    /// Takes the registry's answers in, and gives its commands to Redis.
    pub(super) fn turn_registry(&mut self, now: Tick) {
        let Some(mut registry) = self.registry.take() else {
            return;
        };
        if registry.next_deadline().is_some_and(|due| due <= now) {
            registry.handle_deadline(now);
        }
        loop {
            while let Some((ticket, reply)) = self.poll_answered() {
                registry.answered(ticket, reply, now);
            }
            let Some(command) = registry.poll_command() else {
                break;
            };
            let words: Vec<&[u8]> = command.words.iter().map(Vec::as_slice).collect();
            if let Some(server) = self.server_of(&command.place) {
                registry.given(command.ticket, server);
            }
            self.command(&command.place, &words, command.ticket, now);
        }
        if let Some(within_ms) = registry.poll_announce() {
            for to in 0..self.shard_count() {
                let to = CoreId(u8::try_from(to).expect("a shard id is a byte"));
                self.tell(to, Downstream::Announce { within_ms });
            }
        }
        self.registry = Some(registry);
    }

    pub(super) fn next_deadline_registry(&self) -> Option<Tick> {
        self.registry.as_ref()?.next_deadline()
    }

    pub(super) fn snapshot_registry(&self, now: Tick) -> RegistrySnapshot {
        let registry = self.registry.as_ref();
        registry.map_or_else(RegistrySnapshot::default, |registry| registry.snapshot(now))
    }
}
