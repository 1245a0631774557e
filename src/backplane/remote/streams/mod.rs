//! Delivery that survives a gap: what is published in a room is kept at Redis, and a node that missed some reads it.
//!
//! Rule of this room: live traffic comes by subscription alone, and a stream is read only for what was missed. What is
//! delivered is in the order of the stream, each message once; what is no longer there is told, and counted where it can be.
//!
//! ```text
//! publish ─▶ append.lua: offset, epoch ─▶ stream (bounded in length and time)
//!                         └─ PUBLISH epoch, offset, batch ─▶ push ─ next one ─▶ Effect::Deliver
//!                                                              └ hole, lost link ─▶ HMGET, XRANGE ─▶ the same
//! ```
//!
//! # What a lost server costs
//! A replica that takes over, or a server that restarts, may lack what it had acknowledged. So each node keeps what was
//! acknowledged for a while, and sends it again under its old numbers to a server that is not the one it knew: the script
//! passes over what is there. The server's name in the stream's history makes receivers read what the new one has.
//!
//! # Whether Redis has what it had
//! Every node writes the time to a key of its own each second. After a lost link it reads it: a time that is older than what
//! nodes keep, or none, means that data is gone which nobody can give back, and members are told so.
#![forbid(unsafe_code)]

mod deeds;
pub mod kept;
mod places;
mod retained;

use std::time::Duration;

use bytes::Bytes;

pub use self::deeds::deeds;
use self::kept::{Known, SCRIPT};
pub use self::places::Carried;
use self::places::{News, Places, Pushed, Turn};
use self::retained::Retained;
use super::directory::Elsewhere;
use super::link::{Link, Random};
use super::outgoing::Entry;
use super::refusal::{Grant, explain};
use super::sharded::concerns_one_key;
use super::wire::{self, Parcel};
use super::{Effect, Expected, Options, Remote, moves};
use crate::backplane::ShardSet;
use crate::backplane::resp::Reply;
use crate::bus::{CoreId, RoomName};
use crate::metrics::RedisSnapshot;
use crate::time::Tick;

/// Tickets with this bit are this module's own.
const OWN: u64 = 1 << 63;
/// The ticket of the clock's reading.
const CLOCK_READ: u64 = OWN | 1 << 62;
/// The ticket of its writing.
const CLOCK_WRITTEN: u64 = CLOCK_READ | 1;
/// The clock is written so often.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);
/// Commands that wait for their socket, at most.
const COMMAND_BYTES_MAX: usize = 64 << 10;
/// How a batch is published to whoever follows the room.
const VERB: &[u8] = b"PUBLISH";

/// All that streams need beside what every mode has.
#[derive(Debug)]
pub struct Streams {
    pub(super) places: Places,
    pub(super) retained: Retained,
    /// The script's digest, and the server that has it: known since the publishing link is up.
    digest: Option<Bytes>,
    server: Option<String>,
    /// The server that was published to last.
    server_before: Option<String>,
    /// Names epochs.
    fresh: Random,
    /// The shards do not keep up: nothing is read for them.
    is_crowded: bool,
    /// The clock was read since the commands link is up, and may be written.
    clock_read: bool,
    /// It was written since then: what is read of rooms from here on, it vouches for.
    clock_stands: bool,
    clock_sent: Option<Tick>,
    clock_acknowledged: Option<Tick>,
    clock_next: Tick,
    /// Where it was read last.
    clock_key: String,
    length_max: String,
    ttl_ms: String,
    retain: Duration,
    is_cluster: bool,
}

impl Streams {
    /// Nothing is kept, and no room is followed.
    pub fn new(options: &Options, seed: u64, now: Tick) -> Self {
        let retain = Duration::from_millis(u64::from(options.streams_retain_ms));
        Self {
            places: Places::new(options, seed),
            retained: Retained::new(retain, options.buffer_bytes_max),
            digest: None,
            server: None,
            server_before: None,
            fresh: Random::new(!seed),
            is_crowded: false,
            clock_read: false,
            clock_stands: false,
            clock_sent: None,
            clock_acknowledged: None,
            clock_next: now,
            clock_key: String::new(),
            length_max: options.streams_length_max.to_string(),
            ttl_ms: options.streams_ttl_ms.to_string(),
            retain,
            is_cluster: options.is_cluster(),
        }
    }

    /// Whether the publishing link has what a publish needs.
    pub fn is_ready(&self) -> bool {
        self.digest.is_some() && self.server.is_some()
    }

    /// The publishing link was lost.
    pub fn publishing_lost(&mut self) {
        self.digest = None;
        self.server = None;
    }

    /// Gives the command that appends an entry and publishes it.
    pub fn append(
        &mut self,
        link: &mut Link,
        prefix: &str,
        channel: &[u8],
        entry: &Entry,
        parcel: &[u8],
    ) {
        let (Some(digest), Some(server)) = (&self.digest, &self.server) else {
            debug_assert!(false, "asked for once it is ready");
            return;
        };
        let [stream, known] = kept::keys(prefix, channel);
        let count = entry.batch.messages.len() as u64;
        let fresh = format!("{:016x}", self.fresh.up_to(u64::MAX - 1));
        let node = format!("n{:016x}", entry.stamp.node);
        // Elsewhere nothing is refused but with all that follows it.
        let after = if self.is_cluster { entry.after } else { 0 };
        let numbers = [
            count,
            u64::from(entry.stamp.epoch),
            entry.stamp.sequence,
            entry.last(),
            after,
        ];
        let [count, epoch, first, last, after] = numbers.map(|number| number.to_string());
        link.command(&[
            b"EVALSHA",
            digest,
            b"2",
            &stream,
            &known,
            parcel,
            count.as_bytes(),
            self.length_max.as_bytes(),
            self.ttl_ms.as_bytes(),
            server.as_bytes(),
            fresh.as_bytes(),
            VERB,
            channel,
            node.as_bytes(),
            epoch.as_bytes(),
            first.as_bytes(),
            last.as_bytes(),
            after.as_bytes(),
        ]);
    }

    /// Adds what is counted and held here.
    pub fn count(&self, snapshot: &mut RedisSnapshot) {
        snapshot.joins_waiting += self.places.waiting_count() as u64;
        snapshot.stream_catch_ups = self.places.catch_ups;
        snapshot.stream_rooms_behind = self.places.behind_count() as u64;
        snapshot.stream_retained_bytes += self.retained.bytes();
    }
}

/// What becomes of what was published on a room's channel.
pub(super) enum Came<'a> {
    /// It is to be delivered.
    Parcel(&'a [u8]),
    /// It is not: it was, or will be.
    Nothing,
}

impl Remote {
    /// The publishing link is up: the script, and the server's name, before anything is published.
    pub(super) fn streams_prepare(&mut self, now: Tick) {
        if self.streams.is_none() {
            return;
        }
        self.publishing
            .command(&[b"SCRIPT", b"LOAD", SCRIPT.as_bytes()]);
        self.expected.push_back((Expected::Script, now));
        self.publishing.command(&[b"INFO", b"server"]);
        self.expected.push_back((Expected::Server, now));
    }

    /// The server has the script, or says which it is. To a server that is not the one before, what was acknowledged
    /// lately is sent again.
    pub(super) fn streams_prepared(&mut self, text: &Bytes, now: Tick) -> Result<(), String> {
        let expected = self.expected.pop_front();
        let Some(streams) = &mut self.streams else {
            return Err("Redis says what nobody asked for".into());
        };
        match expected {
            Some((Expected::Script, _)) => streams.digest = Some(text.clone()),
            Some((Expected::Server, _)) => {
                let text = String::from_utf8_lossy(text);
                let name = text.lines().find_map(|line| line.strip_prefix("run_id:"));
                let name = name.unwrap_or("unknown").trim().to_owned();
                let before = streams.server_before.replace(name.clone());
                if before.is_some_and(|before| before != name) {
                    let again = streams.retained.take_all();
                    let batches = again.len();
                    tracing::info!(
                        batches,
                        "Redis is another server; what it may lack is sent again"
                    );
                    self.outgoing.replay(again, now);
                }
                streams.server = Some(name);
            }
            _ => return Err("Redis says what nobody asked for".into()),
        }
        Ok(())
    }

    /// A join of a room whose channel stands. Whether it may be told so at once.
    pub(super) fn streams_join(&mut self, shard: CoreId, room: &RoomName, now: Tick) -> bool {
        let streams = self.streams.as_mut();
        streams.is_none_or(|streams| streams.places.join(room, shard, now))
    }

    /// A shard does not want the room any more. Whether its interest was still owed an answer.
    pub(super) fn streams_leave(&mut self, shard: CoreId, room: &RoomName, is_last: bool) -> bool {
        let Some(streams) = &mut self.streams else {
            return false;
        };
        let waited = streams.places.leave(room, shard);
        if is_last && self.channels.arrivals(room).is_none() {
            streams.places.forget(room);
        }
        waited
    }

    /// These rooms' channels are left.
    pub(super) fn streams_forget(&mut self, rooms: &[RoomName]) {
        if let Some(streams) = &mut self.streams {
            for room in rooms {
                streams.places.forget(room);
            }
        }
    }

    /// The subscription link was lost, and so was the channels' standing.
    pub(super) fn streams_lost(&mut self) {
        if let Some(streams) = &mut self.streams {
            let (heard, channels) = (self.subscription.heard(), &self.channels);
            streams.places.lose(heard, |room| channels.follows(room));
        }
    }

    /// A room's channel stands: where its stream is comes next. False: there are no streams.
    pub(super) fn streams_stand(&mut self, room: &RoomName, waiting: ShardSet, now: Tick) -> bool {
        let Some(streams) = &mut self.streams else {
            return false;
        };
        streams.places.stand(room, waiting, now);
        true
    }

    /// What a push is: a parcel, with its offset in front or (from a node that keeps nothing) without.
    pub(super) fn streams_came<'a>(&mut self, room: &str, payload: &'a [u8]) -> Came<'a> {
        let Some((offset, parcel)) = kept::split(payload) else {
            return Came::Parcel(payload);
        };
        let Some(streams) = &mut self.streams else {
            return Came::Parcel(parcel);
        };
        // What cannot be read is not passed over: the next push shows the hole, and the stream what is in it.
        let Ok(Parcel::Messages { count, .. }) = wire::decode(parcel) else {
            return Came::Parcel(parcel);
        };
        let last = offset.first.saturating_add(u64::from(count) - 1);
        match streams.places.push(room, offset, last) {
            Pushed::Next => Came::Parcel(parcel),
            Pushed::Ignored => Came::Nothing,
        }
    }

    /// How much of a hole in a publisher's sequence is not told yet.
    pub(super) fn streams_untold(&mut self, room: &str, missing: u64) -> u64 {
        match &mut self.streams {
            Some(streams) => streams.places.untold(room, missing),
            None => missing,
        }
    }

    /// The commands link is up: has Redis what it had?
    pub(super) fn streams_commands_ready(&mut self, now: Tick) {
        if self.is_scout {
            return;
        }
        let Some(streams) = &mut self.streams else {
            return;
        };
        streams.clock_read = false;
        streams.clock_stands = false;
        streams.clock_sent = None;
        let key = self.streams_clock();
        let Some(streams) = &mut self.streams else {
            return;
        };
        if streams.clock_key != key {
            streams.clock_key.clone_from(&key);
            streams.clock_acknowledged = None; // that was another server's, or another slot's
        }
        self.command(&[b"GET", key.as_bytes()], CLOCK_READ, now);
    }

    fn streams_clock(&self) -> String {
        let (prefix, node) = (&self.options.prefix, self.node);
        match &self.probe_tag {
            Some(tag) => format!("{prefix}:{{{}}}:clock:{node:016x}", tag.text),
            None => format!("{prefix}:clock:{node:016x}"),
        }
    }

    /// Gives the commands whose turn it is.
    pub(super) fn streams_read(&mut self, now: Tick) {
        if !self.commands.is_up() || self.closing.is_some() {
            return;
        }
        while let Some(streams) = &mut self.streams
            && streams.clock_stands
            && !streams.is_crowded
            && self.commands.out_bytes() < COMMAND_BYTES_MAX
            && let Some(turn) = streams.places.take_turn()
        {
            let prefix = &self.options.prefix;
            match turn {
                Turn::Known { room, ticket } => {
                    let channel = self.naming.channel(&room);
                    let [_, known] = kept::keys(prefix, &channel);
                    let [history, last] = Known::FIELDS.map(str::as_bytes);
                    self.command(&[b"HMGET", &known, history, last], OWN | ticket, now);
                }
                Turn::Entries {
                    room,
                    ticket,
                    first,
                    count,
                } => {
                    let channel = self.naming.channel(&room);
                    let [stream, _] = kept::keys(prefix, &channel);
                    let (first, count) = (first.to_string(), count.to_string());
                    let words = [
                        b"XRANGE".as_slice(),
                        &stream,
                        first.as_bytes(),
                        b"+",
                        b"COUNT",
                        count.as_bytes(),
                    ];
                    self.command(&words, OWN | ticket, now);
                }
            }
        }
    }

    /// Whether an answer is this module's.
    pub(super) const fn is_streams_own(ticket: u64) -> bool {
        ticket & OWN != 0
    }

    /// The answer to a command of this module's; `None`: its link was lost.
    ///
    /// # Errors
    /// It is no answer to that: the link is no good.
    pub(super) fn streams_answered(
        &mut self,
        ticket: u64,
        reply: Option<Reply>,
        now: Tick,
    ) -> Result<(), String> {
        let Some(streams) = &mut self.streams else {
            return Ok(());
        };
        if let Some(Reply::Error(error)) = &reply {
            return self.streams_refused(ticket, error, now);
        }
        match ticket {
            CLOCK_READ => return self.streams_clock_read(reply, now),
            CLOCK_WRITTEN => {
                let sent = streams.clock_sent.take();
                match reply {
                    None => {}
                    Some(Reply::Text(_)) => {
                        streams.clock_acknowledged = sent;
                        streams.clock_stands = true;
                        self.commands.proven();
                    }
                    Some(_) => return Err("Redis answers SET with something else".into()),
                }
                return Ok(());
            }
            _ => {}
        }
        let Some((room, news)) = streams.places.answered(ticket & !OWN, reply, now)? else {
            return Ok(());
        };
        for news in news {
            match news {
                News::Gone(missed) => {
                    self.counts.stream_messages_gone += missed.unwrap_or_default();
                    self.tell_gap(room.clone(), missed);
                }
                News::Parcel(parcel) => self.streams_recovered(&room, &parcel, now),
                News::Live(shards) if shards == ShardSet::EMPTY => {}
                News::Live(shards) => {
                    let room = room.clone();
                    self.effects.push_back(Effect::Joined { room, shards });
                }
            }
        }
        Ok(())
    }

    /// A command was refused. The room's turn comes again, here or at the server that has its slot.
    fn streams_refused(&mut self, ticket: u64, error: &str, now: Tick) -> Result<(), String> {
        let is_elsewhere = self.options.is_cluster() && Elsewhere::read(error).is_some();
        let Some(streams) = &mut self.streams else {
            return Ok(());
        };
        match ticket {
            CLOCK_READ | CLOCK_WRITTEN if is_elsewhere => {
                // There is no clock here, as long as no slot is known that the server has.
                streams.clock_read = false;
                streams.clock_stands = true;
                streams.clock_acknowledged = None;
                self.commands.proven();
            }
            CLOCK_READ | CLOCK_WRITTEN => {}
            // Something else is kept there: nothing is, for this room.
            _ if concerns_one_key(error) => {
                let reply = streams.places.nothing_kept(ticket & !OWN);
                return match reply {
                    Some(reply) => self.streams_answered(ticket, Some(reply), now),
                    None => Ok(()),
                };
            }
            _ => {
                let ticket = ticket & !OWN;
                if is_elsewhere && let Some(room) = streams.places.asked_for(ticket) {
                    let slot = self.naming.slot_of(room);
                    self.news.push_back(moves::News::Elsewhere(slot));
                }
                streams.places.answered(ticket, None, now)?;
            }
        }
        match is_elsewhere {
            true => Ok(()),
            false => {
                let reason = explain(error, &Grant::at_redis(&self.options));
                self.commands.refuse(&reason);
                Err(reason)
            }
        }
    }

    /// Redis has what it was sent. Where its room has gone meanwhile, the new server may lack it, and is sent it, too.
    pub(super) fn streams_acknowledged(&mut self, entry: Entry, now: Tick) {
        let Some(streams) = &mut self.streams else {
            return;
        };
        if self.leaving.contains_key(&entry.room) {
            let again = entry.into_again(now);
            self.news.push_back(moves::News::Returned(again));
        } else {
            streams.retained.keep(entry, now);
        }
    }

    /// Lets rooms go to another server: where they stand, and what was acknowledged of them, which it may lack.
    pub(super) fn streams_release(
        &mut self,
        goes: impl Fn(&str) -> bool,
        now: Tick,
    ) -> (Vec<(RoomName, Carried)>, Vec<Entry>) {
        let Some(streams) = &mut self.streams else {
            return (Vec::new(), Vec::new());
        };
        let again = streams.retained.release(&goes).into_iter();
        let again = again.map(|entry| entry.into_again(now)).collect();
        let heard = self.subscription.heard();
        (streams.places.release(heard, goes), again)
    }

    /// Takes a room in that another server has let go.
    pub(super) fn streams_adopt(&mut self, room: &RoomName, place: &Carried, now: Tick) {
        if let Some(streams) = &mut self.streams
            && self.channels.follows(room)
        {
            streams.places.adopt(room, place, now);
        }
    }

    fn streams_recovered(&mut self, room: &str, parcel: &[u8], now: Tick) {
        match wire::decode(parcel) {
            Ok(Parcel::Messages { stamp, count, body }) => {
                if self.messages(room, &stamp, count, body, now) {
                    self.counts.stream_messages_recovered += u64::from(count);
                }
            }
            _ => self.counts.malformed += 1,
        }
    }

    fn streams_clock_read(&mut self, reply: Option<Reply>, now: Tick) -> Result<(), String> {
        let Some(streams) = &mut self.streams else {
            return Ok(());
        };
        let kept_until = match &reply {
            None => return Ok(()),
            Some(Reply::Nil) => None,
            Some(Reply::Text(text)) => {
                let text = std::str::from_utf8(text).ok();
                text.and_then(|text| text.parse().ok()).map(Tick)
            }
            Some(_) => return Err("Redis answers GET with something else".into()),
        };
        streams.clock_read = true;
        streams.clock_next = now;
        let has_all = streams.clock_acknowledged.is_none_or(|acknowledged| {
            kept_until.is_some_and(|until| until.after(streams.retain) >= acknowledged)
        });
        if !has_all {
            tracing::warn!(
                "Redis has lost what it had: members are told that messages may be missing"
            );
            streams.places.data_lost(now);
            streams.clock_acknowledged = None;
        }
        Ok(())
    }

    /// Does what is due by time.
    pub(super) fn streams_deadline(&mut self, now: Tick) {
        if let Some(streams) = &self.streams
            && self.commands.is_up()
            && streams.clock_key != self.streams_clock()
        {
            self.streams_commands_ready(now); // the server has other slots
        }
        let take_overdue = |streams: &mut Box<Streams>| streams.places.take_overdue(now);
        while let Some((room, shards)) = self.streams.as_mut().and_then(take_overdue) {
            self.refuse_join(room, shards);
        }
        let Some(streams) = &mut self.streams else {
            return;
        };
        // As of when the server was heard: what it had acknowledged before it went away is kept until it is back, and has
        // said which it is. What has not come back on a silent link is not old, either: once that is given up, members here
        // get all of it at once, and what came before that could not be delivered behind it.
        if streams.is_ready() {
            let heard = match self.subscription.is_up() {
                true => self.publishing.heard().min(self.subscription.heard()),
                false => self.publishing.heard(),
            };
            streams.retained.expire(heard);
        }
        if streams.clock_is_due(now)
            && !self.is_scout
            && self.commands.is_up()
            && self.closing.is_none()
        {
            streams.clock_sent = Some(now);
            streams.clock_next = now.after(CLOCK_INTERVAL);
            let ttl_ms = streams.ttl_ms.clone();
            let (key, value) = (self.streams_clock(), now.0.to_string());
            let words = [
                b"SET".as_slice(),
                key.as_bytes(),
                value.as_bytes(),
                b"PX",
                ttl_ms.as_bytes(),
            ];
            self.command(&words, CLOCK_WRITTEN, now);
        }
        self.streams_read(now);
    }

    /// When [`Self::streams_deadline`] is due.
    pub(super) fn streams_next_deadline(&self) -> Option<Tick> {
        let streams = self.streams.as_ref()?;
        let may_ask = self.commands.is_up() && self.closing.is_none();
        let clock = (may_ask && streams.clock_read && streams.clock_sent.is_none())
            .then_some(streams.clock_next);
        [streams.places.deadline(), clock]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether the shards have so much waiting for them that nothing is to be read for them.
    pub fn set_crowded(&mut self, is_crowded: bool, now: Tick) {
        let Some(streams) = &mut self.streams else {
            return;
        };
        if std::mem::replace(&mut streams.is_crowded, is_crowded) && !is_crowded {
            self.streams_read(now);
        }
    }
}

impl Streams {
    fn clock_is_due(&self, now: Tick) -> bool {
        self.clock_read && self.clock_sent.is_none() && self.clock_next <= now
    }
}

#[cfg(test)]
mod tests;
