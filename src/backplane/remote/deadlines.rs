//! What is due by time: links that are given up, probes, subscriptions, what is too old.

use std::time::Duration;

use super::link::Role;
use super::{Expected, LinkOrder, Remote, wire};
use crate::time::Tick;

impl Remote {
    /// Does what is due by time.
    pub fn handle_deadline(&mut self, now: Tick) {
        let timeout = self.timeout();
        // Judged together: the failure of one takes the probe along that tells of the other.
        let overdue = Role::ALL.map(|role| self.overdue(role, timeout, now));
        for (role, overdue) in Role::ALL.into_iter().zip(overdue) {
            if let Some(reason) = overdue {
                self.link_failed(role, reason, now);
            }
            if self.wants_link(role) && self.closing.is_none() && self.link_mut(role).begin(now) {
                let address = self.options.address.clone();
                let link = self.id(role);
                self.orders.push_back(LinkOrder::Connect { link, address });
            }
        }
        self.probe(now);
        if self.probe_again_deadline().is_some_and(|due| due <= now) {
            self.ask_probe_again(now);
        }
        self.ask_rank(now);
        self.ask(now);
        let left = self.channels.take_left(now);
        self.streams_forget(&left);
        if !left.is_empty() && self.subscription.is_up() {
            self.channel_command(true, &left);
        }
        while let Some((room, shards)) = self.channels.take_overdue(now) {
            self.refuse_join(room, shards);
        }
        if !self.publishing.is_up() || !self.may_send() {
            let age = Duration::from_millis(u64::from(self.options.buffer_age_ms));
            let limit = Tick(now.0.saturating_sub(age.as_micros() as u64));
            while let Some(entry) = self.outgoing.expire(limit) {
                self.refuse(entry.from, &entry.batch, entry.local);
            }
        }
        if self.publishing.refused().is_some() && self.outgoing.is_empty() {
            self.publishing.forgive();
            self.pulse.lost();
        }
        self.outgoing.forget_idle(now);
        self.send(now);
        self.streams_deadline(now);
        self.close_progress();
    }

    /// Whether there is such a link.
    fn wants_link(&self, role: Role) -> bool {
        match role {
            _ if !self.has_place() => false,
            Role::Publishing | Role::Subscription => !self.is_scout,
            Role::Commands => self.is_scout || self.options.commands || self.streams.is_some(),
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(u64::from(self.options.probe_timeout_ms))
    }

    /// Why a link is to be given up now.
    pub(super) fn overdue(&self, role: Role, timeout: Duration, now: Tick) -> Option<String> {
        let link = self.link(role);
        if let Some(reason) = link.overdue(&self.options.address, timeout, now) {
            return Some(reason);
        }
        let since = link.up_since()?;
        let ms = timeout.as_millis();
        let late = |asked: Tick| asked.max(link.heard()).max(since).after(timeout) <= now;
        match role {
            Role::Publishing => {
                let (_, asked) = self.expected.front()?;
                late(*asked)
                    .then(|| format!("Redis does not acknowledge what it is sent within {ms} ms"))
            }
            Role::Subscription => {
                let due = self.channels.has_asked() || self.probe_asked;
                if due && late(self.asked_at) {
                    return Some(format!("Redis does not answer SUBSCRIBE within {ms} ms"));
                }
                let probe = self.pulse.overdue(now)?;
                Some(format!(
                    "a probe was published {} ms ago and has not come back",
                    now.since(probe) / 1_000
                ))
            }
            Role::Commands => {
                let asked = self.asked.front()?;
                late(asked.at).then(|| format!("Redis does not answer a command within {ms} ms"))
            }
        }
    }

    /// Publishes a probe if it is time for one.
    pub(super) fn probe(&mut self, now: Tick) {
        let Some(number) = self.pulse.take_due(self.probe_ready(), self.heard(), now) else {
            return;
        };
        let channel = self.probe_channel();
        self.scratch.clear();
        let stamp = wire::Stamp {
            node: self.node,
            epoch: u32::from(self.server),
            sequence: number,
            sent: now,
        };
        wire::encode_probe(&mut self.scratch, &stamp);
        self.publishing
            .command(&[self.words().publish, channel.as_bytes(), &self.scratch]);
        self.expected.push_back((Expected::Probe(number), now));
        self.counts.commands_publish += 1;
        self.counts.probes += 1;
        self.ask_rank_beside(now);
    }

    /// No probe goes out while the publishing link is lost. The subscription link is asked for the probe channel once more
    /// instead, which Redis answers although it stands.
    pub(super) fn ask_probe_again(&mut self, now: Tick) {
        if self.probe_may_be_asked_again() {
            self.ask_probe(now);
        }
    }

    fn probe_may_be_asked_again(&self) -> bool {
        let asked = !self.probe_stands || self.probe_asked;
        self.subscription.is_up() && !asked && self.closing.is_none()
    }

    /// When the subscription link has been silent for too long while no probe could go out.
    fn probe_again_deadline(&self) -> Option<Tick> {
        let wanted = !self.publishing.is_up() && self.probe_may_be_asked_again();
        let interval = Duration::from_millis(u64::from(self.options.probe_interval_ms));
        wanted.then(|| self.subscription.heard().after(interval))
    }

    pub(super) fn probe_ready(&self) -> bool {
        self.publishing.is_up()
            && self.probe_stands
            && self.channels.is_settled()
            && self.closing.is_none()
    }

    /// When the link that was silent for longer was heard last.
    pub(super) fn heard(&self) -> Tick {
        self.subscription.heard().min(self.publishing.heard())
    }

    /// When [`Self::output`] of the link has something to write.
    #[must_use]
    pub fn flush_deadline(&self, role: Role) -> Option<Tick> {
        self.link(role).flush_deadline()
    }

    /// When [`Self::handle_deadline`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        let timeout = self.timeout();
        let expected = self.expected.front();
        let answer =
            expected.map(|(_, asked)| (*asked).max(self.publishing.heard()).after(timeout));
        let due = self.subscription.is_up() && (self.channels.has_asked() || self.probe_asked);
        let subscribed = due.then(|| self.asked_at.max(self.subscription.heard()).after(timeout));
        let age = Duration::from_millis(u64::from(self.options.buffer_age_ms) + 1);
        let stuck = !self.publishing.is_up() || !self.may_send();
        let expires = self.outgoing.oldest_unsent().filter(|_| stuck);
        let may_ask = self.subscription.is_up() && self.closing.is_none();
        let link = |role| {
            let due = self.link(role).deadline(timeout);
            due.filter(|_| self.wants_link(role))
        };
        [
            link(Role::Publishing),
            link(Role::Subscription),
            link(Role::Commands),
            self.command_deadline(timeout),
            self.streams_next_deadline(),
            answer,
            subscribed,
            self.pulse.deadline(self.probe_ready(), self.heard()),
            self.probe_again_deadline(),
            self.channels.deadline(may_ask),
            self.rank_deadline(),
            expires.map(|taken| taken.after(age)),
            self.outgoing.idle_deadline(),
            self.closing,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
