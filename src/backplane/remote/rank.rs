//! Whether the server is a master still. One that was demoted takes publishes and gives them to its own subscribers only:
//! every probe comes back, and no other node hears a thing.

use std::time::Duration;

use super::greeting::is_master;
use super::{Address, Expected, Kind, Remote, Role};
use crate::backplane::resp::Reply;
use crate::time::Tick;

/// When it was asked, and whether it can be.
#[derive(Debug)]
pub struct Rank {
    asked_at: Tick,
    is_told: bool,
}

impl Rank {
    /// Nothing was asked.
    pub fn new(now: Tick) -> Self {
        Self {
            asked_at: now,
            is_told: true,
        }
    }

    /// The greeting has told of it just now.
    pub fn greeted(&mut self, now: Tick) {
        *self = Self::new(now);
    }
}

impl Remote {
    /// When the publishing link is to be asked. A cluster's nodes are known from its topology.
    pub(super) fn rank_deadline(&self) -> Option<Tick> {
        let asks = self.options.address.kind == Kind::Single
            && self.publishing.is_up()
            && self.rank.is_told
            && self.closing.is_none();
        // An idle link is asked together with each probe, and so gives up together with it; this is for busy ones.
        let interval = Duration::from_millis(u64::from(self.options.probe_interval_ms) * 3 / 2);
        asks.then(|| self.rank.asked_at.after(interval))
    }

    /// Asks if it is time.
    pub(super) fn ask_rank(&mut self, now: Tick) {
        if self.rank_deadline().is_some_and(|due| due <= now) {
            self.ask_rank_beside(now);
        }
    }

    /// Asks beside something else that is asked now. `HELLO 3` tells as much as `ROLE` and needs no permission.
    pub(super) fn ask_rank_beside(&mut self, now: Tick) {
        if self.rank_deadline().is_none() {
            return;
        }
        self.rank.asked_at = now;
        if self.publishing.is_resp3() {
            self.publishing.command(&[b"HELLO", b"3"]);
        } else {
            self.publishing.command(&[b"ROLE"]);
        }
        self.expected.push_back((Expected::Rank, now));
    }

    /// Whether the next answer on the publishing link is about it.
    pub(super) fn expects_rank(&self) -> bool {
        matches!(self.expected.front(), Some((Expected::Rank, _)))
    }

    /// It has answered. `Err`: it is a master no more; the other links have been given up.
    pub(super) fn rank_told(&mut self, reply: &Reply, now: Tick) -> Result<(), String> {
        self.expected.pop_front();
        match is_master(reply) {
            Some(false) => {
                let reason = demoted(&self.options.address);
                for role in [Role::Subscription, Role::Commands] {
                    if self.link(role).is_up() {
                        self.link_failed(role, reason.clone(), now);
                    }
                }
                Err(reason)
            }
            Some(true) => Ok(()),
            None => {
                self.rank.is_told = false;
                tracing::warn!(
                    server = %self.options.address.endpoint,
                    "Redis does not say whether it is a master still: a demotion is not noticed before the connection is lost; grant +role"
                );
                Ok(())
            }
        }
    }
}

fn demoted(address: &Address) -> String {
    format!(
        "{} is a replica now and was a master before: messages published there reach nobody else",
        address.endpoint
    )
}

#[cfg(test)]
mod tests {
    use super::super::{LinkOrder, Options};
    use super::*;

    fn hello(role: &str) -> String {
        let length = role.len();
        format!("%2\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$4\r\nrole\r\n${length}\r\n{role}\r\n")
    }

    /// A backplane whose message links are up, at time 0.
    fn remote(url: &str) -> Remote {
        let options = Options::new(Address::parse(url).unwrap());
        let mut remote = Remote::new(options, 0, 7, Tick(0));
        remote.handle_deadline(Tick(0));
        for role in [Role::Publishing, Role::Subscription] {
            remote.connected(role, Tick(0));
            remote.received(role, hello("master").as_bytes(), Tick(0));
            assert!(remote.link(role).is_up());
            let bytes = remote.output(role, Tick(0)).len();
            remote.written(role, bytes, Tick(0));
        }
        while remote.poll_order().is_some() {}
        remote
    }

    fn closed(remote: &mut Remote) -> Vec<Role> {
        std::iter::from_fn(|| remote.poll_order())
            .filter_map(|order| match order {
                LinkOrder::Close(link) => Some(link.role),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn a_master_that_was_demoted_is_left_by_all_links() {
        let mut remote = remote("redis://x");
        remote.ask_rank(Tick::from_ms(7_499));
        assert!(!remote.expects_rank());
        assert_eq!(remote.rank_deadline(), Some(Tick::from_ms(7_500)));
        let soon = Tick::from_ms(7_500);
        remote.ask_rank(soon);
        let asked = remote.output(Role::Publishing, soon);
        assert_eq!(asked, b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n");
        remote.received(Role::Publishing, hello("master").as_bytes(), soon);
        assert_eq!(closed(&mut remote), []);
        assert_eq!(remote.rank_deadline(), Some(Tick::from_ms(15_000)));
        let later = Tick::from_ms(15_000);
        remote.ask_rank(later);
        assert!(remote.expects_rank());
        remote.received(Role::Publishing, hello("replica").as_bytes(), later);
        assert_eq!(closed(&mut remote), [Role::Subscription, Role::Publishing]);
        let troubles = remote.troubles(later);
        let told = |trouble: &super::super::LinkTrouble| trouble.reason.contains("replica now");
        assert!(troubles.iter().all(told), "{troubles:?}");
    }

    #[test]
    fn a_server_that_does_not_tell_is_asked_no_more() {
        let mut remote = remote("redis://x");
        let now = Tick::from_ms(7_500);
        remote.ask_rank(now);
        remote.received(Role::Publishing, b"-NOPERM no\r\n", now);
        assert_eq!(closed(&mut remote), []);
        assert_eq!(remote.rank_deadline(), None);
    }
}
