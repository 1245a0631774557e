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
        self.options.address = self.options.address.moved_to(endpoint);
        for role in Role::ALL {
            if had_place && !self.link(role).is_resting() {
                self.end_link(role, reason.clone(), now);
            }
            self.link_mut(role).restart(true, now);
        }
    }
}
