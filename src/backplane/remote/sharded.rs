//! Channels by the partition: SSUBSCRIBE, SUNSUBSCRIBE and SPUBLISH, and what a server says that does not serve a slot.
//!
//! All channels of one command have to be in one slot. An error answers a command as a whole, so that what was asked is
//! remembered until all of it is answered; answers about one slot come in the order of the questions.
//! (<https://redis.io/docs/latest/commands/ssubscribe/>)

use std::collections::{BTreeMap, VecDeque};

use super::directory::Elsewhere;
use super::moves::News;
use super::naming::Naming;
use super::placement::{Slot, Tag};
use super::refusal::{Grant, explain};
use super::{Degraded, Expected, Mode, Remote, Role};
use crate::bus::RoomName;
use crate::time::Tick;

/// The three commands of a mode.
#[derive(Debug, Clone, Copy)]
pub struct Words {
    pub publish: &'static [u8],
    pub subscribe: &'static [u8],
    pub unsubscribe: &'static [u8],
}

impl Words {
    /// Those that `mode` uses.
    pub const fn of(mode: Mode) -> Self {
        match mode {
            Mode::Sharded => Self {
                publish: b"SPUBLISH",
                subscribe: b"SSUBSCRIBE",
                unsubscribe: b"SUNSUBSCRIBE",
            },
            Mode::Pubsub | Mode::Streams => Self {
                publish: b"PUBLISH",
                subscribe: b"SUBSCRIBE",
                unsubscribe: b"UNSUBSCRIBE",
            },
        }
    }
}

#[derive(Debug)]
enum Kind {
    /// The probe channel.
    Probe,
    /// These rooms' channels.
    Rooms(Vec<RoomName>),
    /// To be left.
    Leave,
}

/// A command on the subscription link that is not wholly answered.
#[derive(Debug)]
struct Ask {
    slot: Slot,
    kind: Kind,
    /// Answers that are due: one a channel.
    due: usize,
}

/// All of them, oldest first.
#[derive(Debug, Default)]
pub struct Asks {
    queue: VecDeque<Ask>,
}

impl Asks {
    fn push(&mut self, slot: Slot, kind: Kind, due: usize) {
        self.queue.push_back(Ask { slot, kind, due });
    }

    /// One channel was answered. Whether it was asked for.
    fn answered(&mut self, slot: Slot, leaves: bool) -> bool {
        let found = self
            .queue
            .iter()
            .position(|ask| ask.slot == slot && matches!(ask.kind, Kind::Leave) == leaves);
        let Some(index) = found else {
            return false;
        };
        self.queue[index].due -= 1;
        if self.queue[index].due == 0 {
            self.queue.remove(index);
        }
        true
    }

    /// An error has answered the oldest, or the oldest about `slot`.
    fn refused(&mut self, slot: Option<Slot>) -> Option<Ask> {
        let mut queue = self.queue.iter();
        let index = queue.position(|ask| slot.is_none_or(|slot| ask.slot == slot))?;
        self.queue.remove(index)
    }

    /// Whether the probe channel in `slot` is asked for.
    fn has_probe(&self, slot: Slot) -> bool {
        let mut asks = self.queue.iter();
        asks.any(|ask| ask.slot == slot && matches!(ask.kind, Kind::Probe))
    }

    /// The link was lost.
    pub fn clear(&mut self) {
        self.queue.clear();
    }
}

impl Remote {
    /// The commands of the mode in use.
    pub(super) fn words(&self) -> Words {
        Words::of(self.options.mode)
    }

    fn is_sharded(&self) -> bool {
        self.options.mode == Mode::Sharded
    }

    /// Follows or leaves the channels of rooms.
    pub(super) fn channel_command(&mut self, leaves: bool, rooms: &[RoomName]) {
        let words = self.words();
        let command = if leaves {
            words.unsubscribe
        } else {
            words.subscribe
        };
        let mut parts: BTreeMap<Slot, Vec<&RoomName>> = BTreeMap::new();
        for room in rooms {
            let slot = if self.is_sharded() {
                self.naming.slot_of(room)
            } else {
                0
            };
            parts.entry(slot).or_default().push(room);
        }
        for (slot, rooms) in parts {
            let channels = rooms.iter().map(|room| self.naming.channel(room));
            let channels: Vec<Vec<u8>> = channels.collect();
            let mut words = vec![command];
            words.extend(channels.iter().map(Vec::as_slice));
            self.subscription.command(&words);
            if leaves {
                self.counts.commands_unsubscribe += 1;
            } else {
                self.counts.commands_subscribe += 1;
            }
            if self.is_sharded() {
                let due = rooms.len();
                let kind = match leaves {
                    true => Kind::Leave,
                    false => Kind::Rooms(rooms.into_iter().cloned().collect()),
                };
                self.asks.push(slot, kind, due);
            }
        }
    }

    /// The channel of this node's probes through this server.
    pub(super) fn probe_channel(&self) -> String {
        self.naming
            .probe_channel(self.probe_tag.as_ref(), self.node)
    }

    /// Follows the probe channel.
    pub(super) fn ask_probe(&mut self, now: Tick) {
        let channel = self.probe_channel();
        let words = self.words();
        self.subscription
            .command(&[words.subscribe, channel.as_bytes()]);
        self.counts.commands_subscribe += 1;
        self.asked_at = now;
        self.probe_asked = true;
        if self.is_sharded() {
            let slot = Naming::slot_of_channel(channel.as_bytes());
            self.asks.push(slot, Kind::Probe, 1);
        }
    }

    /// Which tag this server's slots have, for the probe channel. It is followed there from now on.
    pub fn set_probe_tag(&mut self, tag: Option<Tag>, now: Tick) {
        let is_same = self.probe_tag == tag;
        if is_same && (self.probe_stands || self.probe_asked) {
            return;
        }
        let is_up = self.subscription.is_up() && self.closing.is_none();
        if !is_same && is_up && (self.probe_stands || self.probe_asked) {
            let old = self.probe_channel();
            self.subscription
                .command(&[self.words().unsubscribe, old.as_bytes()]);
            self.counts.commands_unsubscribe += 1;
            if self.is_sharded() {
                let slot = Naming::slot_of_channel(old.as_bytes());
                self.asks.push(slot, Kind::Leave, 1);
            }
        }
        self.probe_tag = tag;
        self.probe_stands = false;
        self.pulse.lost();
        if is_up {
            self.ask_probe(now);
        }
    }

    /// A channel's subscription stands: it was asked for.
    pub(super) fn ask_answered(&mut self, channel: &[u8]) {
        if self.is_sharded() {
            self.asks.answered(Naming::slot_of_channel(channel), false);
        }
    }

    /// A channel's subscription has ended: by our wish, or because its slot has gone elsewhere.
    pub(super) fn unsubscribed(&mut self, channel: Option<&[u8]>) {
        let Some(channel) = channel.filter(|_| self.is_sharded()) else {
            return;
        };
        let slot = Naming::slot_of_channel(channel);
        if self.asks.answered(slot, true) {
            return;
        }
        if channel == self.probe_channel().as_bytes() {
            self.probe_stands = false;
            self.pulse.lost();
        }
        self.news.push_back(News::Elsewhere(slot));
    }

    /// An error on a link that is up.
    ///
    /// # Errors
    /// Why the link is no good: it is no news of slots, and the mode does not come into it.
    pub(super) fn refused(&mut self, role: Role, error: &str) -> Result<(), String> {
        if self.is_sharded() && is_forbidden(error) {
            self.news.push_back(News::Forbidden(error.to_owned()));
        }
        let elsewhere = Elsewhere::read(error).filter(|_| self.options.is_cluster());
        match (role, elsewhere) {
            (Role::Publishing, Some(_)) => self.displaced(),
            (Role::Subscription, Some(elsewhere)) => {
                let slot = match elsewhere {
                    Elsewhere::Moved(slot) => Some(slot),
                    Elsewhere::Nowhere => None,
                };
                let ask = self.asks.refused(slot);
                if let Some(slot) = ask.as_ref().map(|ask| ask.slot).or(slot) {
                    self.news.push_back(News::Elsewhere(slot));
                }
                match ask.map(|ask| ask.kind) {
                    Some(Kind::Rooms(rooms)) => self.channels.unask(rooms),
                    Some(Kind::Probe) => {
                        // It may have been for a channel that another has replaced.
                        let slot = Naming::slot_of_channel(self.probe_channel().as_bytes());
                        self.probe_asked = self.asks.has_probe(slot);
                    }
                    Some(Kind::Leave) | None => {}
                }
                Ok(())
            }
            (Role::Publishing, None) => self.unpublished(error),
            _ => Err(explain(error, &Grant::at_redis(&self.options))),
        }
    }

    /// Redis has refused the oldest that it was sent.
    ///
    /// # Errors
    /// It would refuse others, too.
    fn unpublished(&mut self, error: &str) -> Result<(), String> {
        let reason = explain(error, &Grant::at_redis(&self.options));
        if !matches!(self.expected.front(), Some((Expected::Batch, _))) {
            return Err(reason);
        }
        if !concerns_one_key(error) {
            self.publishing.refuse(&reason);
            return Err(reason);
        }
        self.expected.pop_front();
        if let Some(entry) = self.outgoing.acknowledge() {
            tracing::warn!(room = &*entry.room, reason, "a room cannot be published to");
            self.refuse(entry.from, &entry.batch, entry.local);
            self.note_left(&entry.room);
        }
        Ok(())
    }

    /// Redis has not taken the oldest that it was sent: it does not serve its slot.
    fn displaced(&mut self) -> Result<(), String> {
        match self.expected.pop_front() {
            Some((Expected::Batch, _)) => {
                if let Some(mut entry) = self.outgoing.take_refused() {
                    let room = entry.room.clone();
                    self.deliver_leaving(Some(&entry), |other| other == &*room);
                    entry.local |= self.options.degraded == Degraded::Local;
                    self.news.push_back(News::Displaced(entry));
                    self.note_left(&room);
                }
                Ok(())
            }
            // One that nobody waits for was for a channel that has been left since, or asked for anew.
            Some((Expected::Probe(number), _)) if !self.pulse.awaits(number) => Ok(()),
            Some((Expected::Probe(_), _)) => {
                self.pulse.lost();
                self.probe_stands = false;
                let slot = Naming::slot_of_channel(self.probe_channel().as_bytes());
                self.news.push_back(News::Elsewhere(slot));
                Ok(())
            }
            _ => Err("Redis refuses what no slot has to do with".into()),
        }
    }
}

/// Whether an error is about what a key holds, and says nothing of others. Up to Redis 6.2 a script's errors come inside
/// another one.
pub(super) fn concerns_one_key(error: &str) -> bool {
    let refused = ["OOM ", "MISCONF ", "NOPERM ", "READONLY "];
    !refused.iter().any(|code| error.contains(code))
        && (error.contains("WRONGTYPE ") || error.contains("The ID specified in XADD"))
}

/// Whether a server does not let us use the sharded commands, or has none.
fn is_forbidden(error: &str) -> bool {
    let names = ["spublish", "ssubscribe", "sunsubscribe"];
    let error = error.to_ascii_lowercase();
    (error.starts_with("noperm") || error.contains("unknown command"))
        && names.iter().any(|name| error.contains(name))
}

#[cfg(test)]
mod tests {
    use super::super::{Source, placement};
    use super::*;

    #[test]
    fn an_error_answers_the_command_about_its_slot() {
        let mut asks = Asks::default();
        asks.push(1, Kind::Rooms(vec!["a".into(), "b".into()]), 2);
        asks.push(2, Kind::Leave, 1);
        asks.push(2, Kind::Rooms(vec!["c".into()]), 1);
        assert!(asks.answered(1, false));
        assert!(!asks.answered(1, true), "nobody has asked to leave it");
        assert!(matches!(asks.refused(Some(2)).unwrap().kind, Kind::Leave));
        assert!(matches!(
            asks.refused(Some(2)).unwrap().kind,
            Kind::Rooms(_)
        ));
        assert!(asks.refused(Some(2)).is_none());
        assert!(asks.answered(1, false) && !asks.answered(1, false));
    }

    /// A server whose links are up, in a cluster with sharded channels, following its probe channel by `tag`.
    fn followed(tag: &Tag) -> Remote {
        let Ok(Source::Cluster { mut seeds }) = Source::parse("redis-cluster://h") else {
            panic!("it names a cluster");
        };
        let mut options = super::super::Options::new(seeds.remove(0));
        options.mode = Mode::Sharded;
        let mut remote = Remote::new(options, 1, 1, Tick(0));
        remote.set_probe_tag(Some(tag.clone()), Tick(0));
        let fields = [
            "server", "redis", "version", "7.2.0", "mode", "cluster", "role", "master",
        ];
        let fields = fields.map(|field| format!("${}\r\n{field}\r\n", field.len()));
        remote.handle_deadline(Tick(0));
        let hello = format!("%4\r\n{}", fields.concat());
        for role in [Role::Publishing, Role::Subscription] {
            remote.connected(role, Tick(0));
            remote.received(role, hello.as_bytes(), Tick(0));
            assert!(remote.link(role).is_up(), "{role:?}");
        }
        assert!(remote.probe_asked);
        remote
    }

    fn subscribed(remote: &mut Remote) {
        let channel = remote.probe_channel();
        let length = channel.len();
        let reply = format!(">3\r\n$10\r\nssubscribe\r\n${length}\r\n{channel}\r\n:1\r\n");
        remote.received(Role::Subscription, reply.as_bytes(), Tick(0));
        assert!(remote.probe_stands);
    }

    fn moved(remote: &mut Remote, role: Role, slot: Slot) {
        let error = format!("-MOVED {slot} other:6379\r\n");
        remote.received(role, error.as_bytes(), Tick(0));
    }

    #[test]
    fn a_probe_by_the_old_channel_that_is_refused_says_nothing_of_the_new_one() {
        let tags = [1, 2].map(|part| placement::tag_in(|slot| slot % 3 == part).unwrap());
        let mut remote = followed(&tags[0]);
        subscribed(&mut remote);
        let is_probe = |(expected, _): &(Expected, Tick)| matches!(expected, Expected::Probe(_));
        assert!(remote.expected.iter().any(is_probe), "a new link is probed");
        remote.set_probe_tag(Some(tags[1].clone()), Tick(0));
        subscribed(&mut remote);
        moved(&mut remote, Role::Publishing, tags[0].slot);
        assert!(remote.probe_stands, "it was not asked about");
        assert!(remote.poll_news().is_none());
        moved(&mut remote, Role::Publishing, tags[1].slot);
        assert!(!remote.probe_stands, "that one is waited for");
        let news = remote.poll_news();
        assert!(matches!(news, Some(News::Elsewhere(slot)) if slot == tags[1].slot));
    }

    #[test]
    fn an_old_probe_channel_that_is_refused_leaves_the_new_one_asked_for() {
        let tags = [1, 2].map(|part| placement::tag_in(|slot| slot % 3 == part).unwrap());
        let mut remote = followed(&tags[0]);
        remote.set_probe_tag(Some(tags[1].clone()), Tick(0));
        moved(&mut remote, Role::Subscription, tags[0].slot);
        assert!(remote.probe_asked, "the new one is not answered");
        moved(&mut remote, Role::Subscription, tags[0].slot); // that it is to be left
        subscribed(&mut remote);
        assert!(!remote.probe_asked);
    }

    #[test]
    fn what_is_forbidden_is_told_from_other_errors() {
        for error in [
            "ERR unknown command 'SSUBSCRIBE', with args beginning with: 'x' ",
            "NOPERM User u has no permissions to run the 'spublish' command",
        ] {
            assert!(is_forbidden(error), "{error}");
        }
        for error in [
            "NOPERM No permissions to access a channel",
            "MOVED 1 h:1",
            "ERR unknown command 'PUBLISH'",
        ] {
            assert!(!is_forbidden(error), "{error}");
        }
    }
}
