//! The backplane as the shell sees it that has its sockets: news of links in, bytes and orders out.
//!
//! After an input, [`Backplane::settle`] hands what came of it to the shards' outlets.

use super::{LinkId, LinkOrder, LinkTrouble, Role};
use crate::backplane::Backplane;
use crate::backplane::resp::Reply;
use crate::time::Tick;

impl Backplane {
    /// All links to Redis, those that are not connected included; none without Redis.
    pub fn links(&self) -> impl Iterator<Item = LinkId> + use<> {
        let side = self.remote.as_ref();
        let servers = 0..side.map_or(0, |side| side.remote.server_count());
        servers.flat_map(|server| Role::ALL.map(|role| LinkId { server, role }))
    }

    /// The socket that [`LinkOrder::Connect`] asked for is connected.
    pub fn link_connected(&mut self, link: LinkId, now: Tick) {
        if let Some(side) = &mut self.remote {
            side.remote.connected(link, now);
        }
    }

    /// The socket could not be connected, or has ended: why, in words.
    pub fn link_failed(&mut self, link: LinkId, reason: String, now: Tick) {
        if let Some(side) = &mut self.remote {
            side.remote.failed(link, reason, now);
        }
    }

    /// Bytes came on a link.
    pub fn link_received(&mut self, link: LinkId, bytes: &[u8], now: Tick) {
        if let Some(side) = &mut self.remote {
            side.remote.received(link, bytes, now);
        }
    }

    /// What is to be written to the link's socket now.
    #[must_use]
    pub fn link_output(&self, link: LinkId, now: Tick) -> &[u8] {
        let side = self.remote.as_ref();
        side.map_or(&[], |side| side.remote.output(link, now))
    }

    /// So much of it was written.
    pub fn link_written(&mut self, link: LinkId, bytes: usize, now: Tick) {
        if let Some(side) = &mut self.remote {
            side.remote.written(link, bytes, now);
        }
    }

    /// The next order for the shell's sockets.
    pub fn poll_link_order(&mut self) -> Option<LinkOrder> {
        self.remote.as_mut()?.remote.poll_order()
    }

    /// When a link that may be written to has something to write: of those that `may_write`.
    #[must_use]
    pub fn flush_deadline(&self, may_write: impl Fn(LinkId) -> bool) -> Option<Tick> {
        let side = self.remote.as_ref()?;
        let links = self.links().filter(|link| may_write(*link));
        links
            .filter_map(|link| side.remote.flush_deadline(link))
            .min()
    }

    /// The links that are not proven to work. Empty without Redis.
    #[must_use]
    pub fn link_troubles(&self, now: Tick) -> Vec<LinkTrouble> {
        let side = self.remote.as_ref();
        side.map_or_else(Vec::new, |side| side.remote.troubles(now))
    }

    /// Gives a command that names `key`, or none, to a server that has it. [`Self::poll_answered`] says what became of it,
    /// under `ticket`.
    pub fn command(&mut self, key: &[u8], words: &[&[u8]], ticket: u64, now: Tick) {
        match &mut self.remote {
            Some(side) => side.remote.command(key, words, ticket, now),
            None => debug_assert!(false, "there is no Redis to give a command to"),
        }
        self.settle();
    }

    /// The server that has a key, as far as that is known.
    #[must_use]
    pub fn server_of(&self, key: &[u8]) -> Option<u16> {
        self.remote.as_ref()?.remote.server_of(key)
    }

    /// The next command that has come to its end, and its answer; `None`: its link was lost, and nobody knows whether it
    /// was carried out.
    pub fn poll_answered(&mut self) -> Option<(u64, Option<Reply>)> {
        self.remote.as_mut()?.answers.pop_front()
    }

    /// The node ends: what waits is sent, subscriptions are dropped, links closed; within a second.
    pub fn close_redis(&mut self, now: Tick) {
        if let Some(side) = &mut self.remote {
            side.remote.close(now);
        }
    }

    /// Whether Redis is left, or there was none.
    #[must_use]
    pub fn has_left_redis(&self, now: Tick) -> bool {
        let side = self.remote.as_ref();
        side.is_none_or(|side| side.remote.is_closed(now))
    }

    /// Messages that were taken and that no Redis has acknowledged: they end with the node.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        let side = self.remote.as_ref();
        side.map_or(0, |side| side.remote.unacknowledged())
    }

    /// Checks what must hold between inputs. For tests: O(rooms).
    ///
    /// # Panics
    /// When something does not hold.
    pub fn check_redis_invariants(&self) {
        if let Some(side) = &self.remote {
            side.remote.check_invariants();
        }
    }
}
