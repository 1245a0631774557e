//! The fleet's servers that Sentinels watch: each is one server whose place changes.

use super::sentinel::Watch;
use super::{AtStart, Endpoint, Fleet, LinkId, LinkOrder, LinkTrouble, Options, Remote, Role};
use crate::time::Tick;

/// A server's watch.
#[derive(Debug)]
pub(super) struct Watched {
    server: u16,
    watch: Watch,
    /// That no Sentinel is of use was told.
    fatal_told: bool,
}

/// The watches over those of `options` that Sentinels watch. Their links are numbered behind those of all servers.
pub(super) fn watches(options: &Options, seed: u64, now: Tick) -> Vec<Watched> {
    let server_count = options.addresses().count();
    let mut all: Vec<Watched> = Vec::new();
    for (server, address) in options.addresses().enumerate() {
        let Endpoint::Master { sentinels, name } = &address.endpoint else {
            continue;
        };
        let place = u16::try_from(server_count + all.len()).expect("bounded by config");
        let link = LinkId {
            server: place,
            role: Role::Commands,
        };
        let seed = seed.wrapping_add(u64::from(place));
        all.push(Watched {
            server: u16::try_from(server).expect("bounded by config"),
            watch: Watch::new(link, sentinels.clone(), name, options, seed, now),
            fatal_told: false,
        });
    }
    all
}

impl Fleet {
    /// The watch whose link it is.
    pub(super) fn watch(&self, link: LinkId) -> Option<&Watch> {
        let mut all = self.watched.iter();
        let found = all.find(|watched| watched.watch.link() == link)?;
        Some(&found.watch)
    }

    pub(super) fn watch_mut(&mut self, link: LinkId) -> Option<&mut Watch> {
        let mut all = self.watched.iter_mut();
        let found = all.find(|watched| watched.watch.link() == link)?;
        Some(&mut found.watch)
    }

    /// Takes over what has come of the watches' last input, and tells them of their servers.
    pub(super) fn tend_watches(&mut self, now: Tick) {
        for index in 0..self.watched.len() {
            let server = self.watched[index].server;
            let usable = self.remote(server).is_some_and(Remote::is_working);
            let watched = &mut self.watched[index];
            watched.watch.set_usable(usable, now);
            let news = watched.watch.take_news();
            let mut orders = Vec::new();
            orders.extend(std::iter::from_fn(|| watched.watch.poll_order()));
            if watched.watch.has_failed() && !std::mem::replace(&mut watched.fatal_told, true) {
                let reason = watched.watch.trouble().map_or("", |(_, reason)| reason);
                orders.push(LinkOrder::Fatal(format!(
                    "no Sentinel says where the master is; the last: {reason}"
                )));
            }
            let ends = self.options().at_start == AtStart::Fail;
            for order in orders {
                if ends || !matches!(order, LinkOrder::Fatal(_)) {
                    self.push_order(order);
                }
            }
            if let (Some(endpoint), Some(remote)) = (news, self.remote_mut(server)) {
                remote.follow(endpoint, now);
                self.gather(server, now);
            }
        }
    }

    pub(super) fn watches_handle_deadline(&mut self, now: Tick) {
        for watched in &mut self.watched {
            watched.watch.handle_deadline(now);
        }
        self.tend_watches(now);
    }

    pub(super) fn watches_deadline(&self) -> Option<Tick> {
        let all = self.watched.iter();
        all.filter_map(|watched| watched.watch.next_deadline())
            .min()
    }

    /// Why the places of servers that do not work are not known, or may have changed unnoticed.
    pub(super) fn watch_troubles(&self, now: Tick) -> Vec<LinkTrouble> {
        let of = |watched: &Watched| {
            let remote = self.remote(watched.server)?;
            let (since, reason) = watched.watch.trouble()?;
            (!remote.is_working()).then(|| LinkTrouble {
                server: remote.endpoint().to_string(),
                link: "sentinel",
                state: watched.watch.state_label(),
                since_us: now.since(since),
                reason: reason.to_owned(),
            })
        };
        self.watched.iter().filter_map(of).collect()
    }

    pub(super) fn close_watches(&mut self, now: Tick) {
        for watched in &mut self.watched {
            watched.watch.close();
        }
        self.tend_watches(now);
    }
}

impl Remote {
    /// Whether it is known where the server is.
    pub(super) fn has_place(&self) -> bool {
        !matches!(self.endpoint(), Endpoint::Master { .. })
    }

    /// The server is elsewhere from now on: its links are given up, and made again there at once.
    fn follow(&mut self, endpoint: Endpoint, now: Tick) {
        if self.closing.is_some() || *self.endpoint() == endpoint {
            return;
        }
        let reason = format!("Sentinel has named another master: {endpoint}");
        let had_place = self.has_place();
        self.options.address = self.options.address.moved_to(endpoint.clone());
        for role in Role::ALL {
            if had_place && !self.link(role).is_resting() {
                self.end_link(role, reason.clone(), now);
            }
            self.link_mut(role).restart(true, &endpoint, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::*;

    const AT_SENTINEL: LinkId = LinkId {
        server: 1,
        role: Role::Commands,
    };

    fn fleet(at_start: AtStart) -> Fleet {
        let source = Source::parse("redis-sentinel://u:p@a,b/m/2").unwrap();
        let address = source.into_addresses().remove(0);
        let options = Options {
            at_start,
            ..Options::new(address)
        };
        Fleet::new(options, 7, Tick(0))
    }

    fn orders(fleet: &mut Fleet, now: Tick) -> Vec<String> {
        fleet.handle_deadline(now);
        let orders = std::iter::from_fn(|| fleet.poll_order());
        let words = orders.map(|order| match order {
            LinkOrder::Connect { link, address } => {
                let place = format!("{}/{}", address.endpoint, address.database);
                format!("{} {} to {place}", link.server, link.role.label())
            }
            LinkOrder::Close(link) => format!("{} {} ends", link.server, link.role.label()),
            LinkOrder::Fatal(reason) => reason,
        });
        words.collect()
    }

    /// The Sentinel whose turn it is names this one.
    fn name(fleet: &mut Fleet, host: &str, now: Tick) {
        let hello = b"%2\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$4\r\nmode\r\n$8\r\nsentinel\r\n";
        fleet.connected(AT_SENTINEL, now);
        fleet.received(AT_SENTINEL, hello, now);
        fleet.received(
            AT_SENTINEL,
            b">3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n",
            now,
        );
        let answer = format!("*2\r\n${}\r\n{host}\r\n$4\r\n6379\r\n", host.len());
        fleet.received(AT_SENTINEL, answer.as_bytes(), now);
    }

    #[test]
    fn links_are_made_once_the_place_is_known_and_follow_it() {
        let mut fleet = fleet(AtStart::Fail);
        let first = orders(&mut fleet, Tick(0));
        assert_eq!(first.len(), 1, "{first:?}");
        assert!(first[0].starts_with("1 commands to "), "{first:?}");
        assert_eq!(fleet.server_count(), 2);
        name(&mut fleet, "one", Tick(1));
        assert_eq!(
            orders(&mut fleet, Tick(1)),
            ["0 publishing to one:6379/2", "0 subscription to one:6379/2"]
        );
        let publishing = LinkId {
            server: 0,
            role: Role::Publishing,
        };
        fleet.connected(publishing, Tick(2));
        let said = fleet.output(publishing, Tick(2));
        assert!(String::from_utf8_lossy(said).contains("AUTH\r\n$1\r\nu"));
        let switch = "m one 6379 two 6379";
        let push = format!(
            ">3\r\n$7\r\nmessage\r\n$14\r\n+switch-master\r\n${}\r\n{switch}\r\n",
            switch.len()
        );
        fleet.received(AT_SENTINEL, push.as_bytes(), Tick(3));
        assert_eq!(
            orders(&mut fleet, Tick(3)),
            [
                "0 publishing ends",
                "0 subscription ends",
                "0 publishing to two:6379/2",
                "0 subscription to two:6379/2"
            ],
            "at once, and it is no failure"
        );
        fleet.received(AT_SENTINEL, push.as_bytes(), Tick(4));
        assert_eq!(
            orders(&mut fleet, Tick(4)),
            Vec::<String>::new(),
            "it is there"
        );
        fleet.close(Tick(5));
        assert!(orders(&mut fleet, Tick(5)).contains(&"1 commands ends".to_owned()));
    }

    #[test]
    fn without_any_sentinel_a_node_that_does_not_wait_ends_once() {
        for (at_start, ends) in [(AtStart::Fail, 1), (AtStart::Wait, 0)] {
            let mut fleet = fleet(at_start);
            let mut said = Vec::new();
            for turn in 0..8 {
                let now = Tick::from_ms(200 * turn);
                said.extend(orders(&mut fleet, now));
                fleet.failed(AT_SENTINEL, "nobody is there".into(), now);
            }
            said.extend(orders(&mut fleet, Tick::from_ms(5_000)));
            let fatal = said.iter().filter(|order| order.starts_with("no Sentinel"));
            assert_eq!(fatal.count(), ends, "{said:?}");
            let troubles = fleet.troubles(Tick::from_ms(5_000));
            let sentinel = troubles.iter().find(|trouble| trouble.link == "sentinel");
            assert!(sentinel.unwrap().reason.contains("nobody is there"));
            assert!(troubles[0].server.contains("m (Sentinels a:26379,b:26379)"));
        }
    }
}
