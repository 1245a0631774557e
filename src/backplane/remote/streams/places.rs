//! Where each room stands in its stream, and how a room that has missed something catches up.
//!
//! ```text
//!            channel stands          its turn             place read            end of the stream
//!   Away ───────────────▶ Queued ─────────────▶ Asked ───────────────▶ … ────────────────────────▶ Live
//!    ▲                       ▲                    │ more to read                                     │
//!    │                       └────────────────────┘                            hole, another epoch   │
//!    │                       ▲─────────────────────────────────────────────────────────────────────┤
//!    └───────────────────────────────── subscription link lost ────────────────────────────────────┘
//! ```
//! Invariants: what is pushed counts only while its room is live, and only the offset that comes next; what came
//! meanwhile is read from the stream, since it is there. Joins are answered while a room is live.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::kept::{self, Earlier, Known, Offset};
use crate::backplane::ShardSet;
use crate::backplane::resp::Reply;
use crate::bus::{CoreId, RoomName};
use crate::time::Tick;

/// Rooms that are read at a time.
pub const READING_COUNT_MAX: usize = 64;
/// Bytes that one reading is to bring.
const READING_BYTES: usize = 256 << 10;
/// Entries of one reading at most.
const ENTRY_COUNT_MAX: usize = 256;
/// Entries of a room's first reading: nobody knows yet how large they are.
const ENTRY_COUNT_FIRST: usize = 16;

/// Where a room stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nobody has looked.
    Unknown,
    /// There was no stream.
    Nothing,
    /// All of it up to `last` was here.
    At { epoch: u64, last: u64 },
}

/// What is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// What is known of the stream.
    Known,
    /// Entries behind the place, to `goal` at least. `unsure`: it was told that nobody knows what is missing before the
    /// first of them.
    Entries { goal: u64, unsure: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Away,
    Queued { step: Step, turn: u64 },
    Asked { step: Step, ticket: u64 },
    Live,
}

#[derive(Debug)]
struct Room {
    place: Place,
    /// The epochs before the place's, and what of each is in them: a server that takes over may never have heard of the
    /// newest.
    before: Earlier,
    phase: Phase,
    /// The newest that was pushed while it was not live.
    pushed: Option<(u64, u64)>,
    /// Until when the link is known to have missed nothing, if it was lost since the room was live.
    torn: Option<Tick>,
    /// Messages that were told as gone: their publishers' sequences show them once more.
    credit: u64,
    /// Entries of the next reading.
    entry_count: usize,
    /// Shards whose interest is not answered.
    waiting: ShardSet,
    waiting_since: Tick,
}

/// What goes with a room to another server.
#[derive(Debug)]
pub struct Carried {
    place: Place,
    before: Earlier,
    torn: Option<Tick>,
    credit: u64,
    waiting: ShardSet,
}

/// What becomes of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It comes next.
    Next,
    /// It is behind the room's place, or is read from the stream.
    Ignored,
}

/// What a room's members are to be told, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// So many messages are gone; `None`: nobody knows how many.
    Gone(Option<u64>),
    /// A batch that was missed.
    Parcel(Bytes),
    /// The room is live: these shards' joins hold.
    Live(ShardSet),
}

/// A command that is to be given now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// What is known of the room's stream.
    Known {
        /// The room.
        room: RoomName,
        /// The answer's.
        ticket: u64,
    },
    /// Its entries.
    Entries {
        /// The room.
        room: RoomName,
        /// The answer's.
        ticket: u64,
        /// From this offset on.
        first: u64,
        /// So many at most.
        count: usize,
    },
}

/// All rooms whose channels stand, or stood and are wanted.
#[derive(Debug)]
pub struct Places {
    rooms: HashMap<RoomName, Room, FixedState>,
    /// Rooms that wait for their turn, each once.
    queued: BTreeMap<u64, RoomName>,
    turn_next: u64,
    asked: HashMap<u64, RoomName, FixedState>,
    ticket_next: u64,
    /// When each room's joins began to wait, oldest first; those that wait no more are passed over.
    waits: VecDeque<(Tick, RoomName)>,
    waiting_count: usize,
    live_count: usize,
    join_timeout: Duration,
    /// A stream of which nothing was heard for so long is gone.
    ttl: Duration,
    /// When it was found that Redis had lost what it had.
    lost_at: Option<Tick>,
    /// Times a room began to catch up.
    pub catch_ups: u64,
}

impl Places {
    /// No room is followed.
    pub fn new(options: &super::Options, seed: u64) -> Self {
        Self {
            rooms: HashMap::with_hasher(FixedState::with_seed(seed)),
            queued: BTreeMap::new(),
            turn_next: 0,
            asked: HashMap::with_hasher(FixedState::with_seed(seed)),
            ticket_next: 0,
            waits: VecDeque::new(),
            waiting_count: 0,
            live_count: 0,
            join_timeout: Duration::from_millis(u64::from(options.join_timeout_ms)),
            ttl: Duration::from_millis(u64::from(options.streams_ttl_ms)),
            lost_at: None,
            catch_ups: 0,
        }
    }

    /// The room's channel stands; `waiting` are answered once the room is live.
    pub fn stand(&mut self, name: &RoomName, waiting: ShardSet, now: Tick) {
        let rooms = self.rooms.entry(name.clone());
        let room = rooms.or_insert_with(|| Room::new(Place::Unknown, now));
        room.pushed = None;
        if room.torn.is_some() {
            self.catch_ups += 1;
        }
        for shard in waiting.iter() {
            self.wait(name, shard, now);
        }
        self.queue(name, Step::Known);
    }

    /// `shard` joins a room whose channel stands. Whether it may be told so at once.
    pub fn join(&mut self, name: &RoomName, shard: CoreId, now: Tick) -> bool {
        let live = self
            .rooms
            .get(name)
            .is_some_and(|room| room.phase == Phase::Live);
        if !live {
            self.wait(name, shard, now);
        }
        live
    }

    fn wait(&mut self, name: &RoomName, shard: CoreId, now: Tick) {
        let Some(room) = self.rooms.get_mut(name) else {
            return;
        };
        if room.waiting.is_empty() {
            room.waiting_since = now;
            self.waiting_count += 1;
            self.waits
                .push_back((now.after(self.join_timeout), name.clone()));
        }
        room.waiting.insert(shard);
    }

    /// `shard` does not want the room any more. Whether its interest was still owed an answer.
    pub fn leave(&mut self, name: &str, shard: CoreId) -> bool {
        let Some(room) = self.rooms.get_mut(name) else {
            return false;
        };
        let waited = room.waiting.remove(shard);
        self.waiting_count -= usize::from(waited && room.waiting.is_empty());
        waited
    }

    /// Nobody here wants the room, and its channel does not stand any more.
    pub fn forget(&mut self, name: &str) {
        self.rest(name, Phase::Away);
        if let Some(room) = self.rooms.remove(name) {
            self.waiting_count -= usize::from(!room.waiting.is_empty());
        }
    }

    /// The subscription link was lost, and had missed nothing until `heard`. Rooms that are not wanted are forgotten.
    pub fn lose(&mut self, heard: Tick, is_wanted: impl Fn(&str) -> bool) {
        self.queued.clear();
        self.asked.clear();
        self.live_count = 0;
        let mut waiting_count = 0;
        self.rooms.retain(|name, room| {
            room.phase = Phase::Away;
            room.pushed = None;
            if room.place != Place::Unknown {
                room.torn.get_or_insert(heard);
            }
            let keep = is_wanted(name);
            waiting_count += usize::from(keep && !room.waiting.is_empty());
            keep
        });
        self.waiting_count = waiting_count;
    }

    /// Lets rooms go to another server; until `heard` nothing of them was missed at this one.
    pub fn release(
        &mut self,
        heard: Tick,
        goes: impl Fn(&str) -> bool,
    ) -> Vec<(RoomName, Carried)> {
        let names = self.rooms.keys().filter(|name| goes(name));
        let names: Vec<RoomName> = names.cloned().collect();
        let carried = names.into_iter().filter_map(|name| {
            self.rest(&name, Phase::Away);
            let room = self.rooms.remove(&name)?;
            self.waiting_count -= usize::from(!room.waiting.is_empty());
            let is_known = room.place != Place::Unknown;
            let carried = Carried {
                place: room.place,
                before: room.before,
                torn: room.torn.or(is_known.then_some(heard)),
                credit: room.credit,
                waiting: room.waiting,
            };
            Some((name, carried))
        });
        carried.collect()
    }

    /// Takes a room in that another server has let go; its channel does not stand here.
    pub fn adopt(&mut self, name: &RoomName, carried: &Carried, now: Tick) {
        let mut room = Room::new(carried.place, now);
        room.before = carried.before;
        room.torn = carried.torn;
        room.credit = carried.credit;
        self.forget(name);
        self.rooms.insert(name.clone(), room);
        for shard in carried.waiting.iter() {
            self.wait(name, shard, now);
        }
    }

    /// The room that a command was given for.
    pub fn asked_for(&self, ticket: u64) -> Option<&RoomName> {
        self.asked.get(&ticket)
    }

    /// What a server would answer that keeps nothing of the room; `None`: nobody waits for the answer.
    pub fn nothing_kept(&self, ticket: u64) -> Option<Reply> {
        let room = self.rooms.get(self.asked.get(&ticket)?)?;
        match room.phase {
            Phase::Asked {
                step: Step::Known, ..
            } => Some(Reply::List(vec![Reply::Nil, Reply::Nil])),
            Phase::Asked { .. } => Some(Reply::List(Vec::new())),
            _ => None,
        }
    }

    /// Redis has lost what it had: whoever has missed something may have missed more than is told.
    pub fn data_lost(&mut self, now: Tick) {
        self.lost_at = Some(now);
    }

    /// A batch of a standing channel was pushed; `last` is the offset of its last message.
    pub fn push(&mut self, name: &str, offset: Offset, last: u64) -> Pushed {
        let Some((name, room)) = self.rooms.get_key_value_mut(name) else {
            return Pushed::Ignored;
        };
        let Offset { epoch, first } = offset;
        if room.phase != Phase::Live {
            room.pushed = match room.pushed {
                Some((known, newest)) if known == epoch => Some((epoch, newest.max(last))),
                _ => Some((epoch, last)),
            };
            return Pushed::Ignored;
        }
        let step = match room.place {
            Place::At {
                epoch: own,
                last: have,
            } if own == epoch => {
                if last <= have {
                    return Pushed::Ignored;
                }
                let unsure = false;
                (first != have + 1).then_some(Step::Entries { goal: last, unsure })
            }
            // A stream that begins.
            _ if first == 1 => None,
            _ => Some(Step::Known),
        };
        match step {
            None => {
                if first == 1 {
                    room.before = Earlier::default();
                }
                room.place = Place::At { epoch, last };
                Pushed::Next
            }
            Some(step) => {
                room.pushed = Some((epoch, last));
                let name = name.clone();
                self.catch_ups += 1;
                self.queue(&name, step);
                Pushed::Ignored
            }
        }
    }

    /// How many of the messages that a publisher's sequence lacks are to be told: those that were not told already.
    pub fn untold(&mut self, name: &str, missing: u64) -> u64 {
        let Some(room) = self.rooms.get_mut(name) else {
            return missing;
        };
        let told = missing.min(room.credit);
        room.credit -= told;
        missing - told
    }

    fn queue(&mut self, name: &RoomName, step: Step) {
        let turn = self.turn_next;
        self.turn_next += 1;
        self.rest(name, Phase::Queued { step, turn });
        self.queued.insert(turn, name.clone());
    }

    /// Ends the room's phase, and begins another.
    fn rest(&mut self, name: &str, phase: Phase) {
        let Some(room) = self.rooms.get_mut(name) else {
            return;
        };
        match std::mem::replace(&mut room.phase, phase) {
            Phase::Away => {}
            Phase::Queued { turn, .. } => {
                self.queued.remove(&turn);
            }
            Phase::Asked { ticket, .. } => {
                self.asked.remove(&ticket);
            }
            Phase::Live => self.live_count -= 1,
        }
        self.live_count += usize::from(phase == Phase::Live);
    }

    /// The next room's command, as long as few are on their way.
    pub fn take_turn(&mut self) -> Option<Turn> {
        if self.asked.len() >= READING_COUNT_MAX {
            return None;
        }
        let (_, name) = self.queued.pop_first()?;
        let room = self.rooms.get_mut(&name)?;
        let Phase::Queued { step, .. } = room.phase else {
            return None;
        };
        let ticket = self.ticket_next;
        self.ticket_next += 1;
        room.phase = Phase::Asked { step, ticket };
        self.asked.insert(ticket, name.clone());
        Some(match (step, room.place) {
            (Step::Entries { .. }, Place::At { last, .. }) => Turn::Entries {
                room: name,
                ticket,
                first: last + 1,
                count: room.entry_count,
            },
            _ => Turn::Known { room: name, ticket },
        })
    }

    /// The answer to a turn's command, and what comes of it; `None`: its link was lost, and the room's turn comes again.
    ///
    /// # Errors
    /// It is no answer to that: the link is no good.
    pub fn answered(
        &mut self,
        ticket: u64,
        reply: Option<Reply>,
        now: Tick,
    ) -> Result<Option<(RoomName, Vec<News>)>, String> {
        let Some(name) = self.asked.get(&ticket).cloned() else {
            return Ok(None); // the room was left, or lost, since
        };
        let Some(room) = self.rooms.get_mut(&name) else {
            return Ok(None);
        };
        let Phase::Asked { step, .. } = room.phase else {
            return Ok(None);
        };
        let Some(reply) = reply else {
            // Smaller ones: the answer may have been what the link could not carry.
            room.entry_count = (room.entry_count / 4).max(1);
            self.queue(&name, step);
            return Ok(None);
        };
        let mut news = Vec::new();
        let next = match step {
            Step::Known => Known::of(&reply).map(|known| {
                let doubt = room.doubt(self.lost_at, self.ttl, now);
                room.look(known, doubt, &mut news)
            }),
            Step::Entries { goal, unsure } => {
                kept::entries(reply).map(|entries| room.read(entries, goal, unsure, &mut news))
            }
        };
        let next = match next {
            Ok(next) => next,
            Err(reason) => {
                self.queue(&name, step);
                return Err(reason);
            }
        };
        match next {
            Some(step) => self.queue(&name, step),
            None => {
                room.torn = None;
                let waiting = std::mem::take(&mut room.waiting);
                self.waiting_count -= usize::from(!waiting.is_empty());
                news.push(News::Live(waiting));
                self.rest(&name, Phase::Live);
            }
        }
        Ok(Some((name, news)))
    }

    /// The rooms whose joins have waited too long, one a call: the room, and who waited.
    pub fn take_overdue(&mut self, now: Tick) -> Option<(RoomName, ShardSet)> {
        while self.waits.front().is_some_and(|(due, _)| *due <= now) {
            let (due, name) = self.waits.pop_front()?;
            if let Some(room) = self.rooms.get_mut(&name)
                && !room.waiting.is_empty()
                && room.waiting_since.after(self.join_timeout) == due
            {
                self.waiting_count -= 1;
                return Some((name, std::mem::take(&mut room.waiting)));
            }
        }
        None
    }

    /// When [`Self::take_overdue`] is due.
    pub fn deadline(&self) -> Option<Tick> {
        self.waits.front().map(|(due, _)| *due)
    }

    /// Rooms that are not live.
    pub fn behind_count(&self) -> usize {
        self.rooms.len() - self.live_count
    }

    /// Rooms with joins that wait.
    pub fn waiting_count(&self) -> usize {
        self.waiting_count
    }

    /// Walks all rooms and checks what must hold of each. For tests: O(rooms).
    ///
    /// # Panics
    /// When something does not hold.
    pub fn check_invariants(&self) {
        let mut counts = [0; 4];
        for (name, room) in &self.rooms {
            let index = match room.phase {
                Phase::Away => 0,
                Phase::Queued { turn, .. } => {
                    assert_eq!(self.queued.get(&turn), Some(name));
                    1
                }
                Phase::Asked { ticket, .. } => {
                    assert_eq!(self.asked.get(&ticket), Some(name));
                    2
                }
                Phase::Live => {
                    assert!(room.waiting.is_empty(), "{name}: joins wait");
                    assert!(room.place != Place::Unknown, "{name}: nobody has looked");
                    3
                }
            };
            counts[index] += 1;
        }
        assert_eq!(
            counts[1..],
            [self.queued.len(), self.asked.len(), self.live_count]
        );
        let waiting = self.rooms.values().filter(|room| !room.waiting.is_empty());
        assert_eq!(self.waiting_count, waiting.count());
    }
}

impl Room {
    fn new(place: Place, now: Tick) -> Self {
        Self {
            place,
            before: Earlier::default(),
            phase: Phase::Away,
            pushed: None,
            torn: None,
            credit: 0,
            entry_count: ENTRY_COUNT_FIRST,
            waiting: ShardSet::EMPTY,
            waiting_since: now,
        }
    }

    /// Whether more may be missing than a stream that is gone, or begins anew, can show.
    fn doubt(&self, lost_at: Option<Tick>, ttl: Duration, now: Tick) -> Doubt {
        match self.torn {
            None => Doubt::None,
            Some(heard) if lost_at.is_some_and(|lost| lost >= heard) => Doubt::Lost,
            Some(heard) if heard.after(ttl) <= now => Doubt::Expired,
            Some(_) => Doubt::None,
        }
    }

    /// Compares the place with the stream. What is to be read next; `None`: nothing, the room is live.
    fn look(&mut self, known: Option<Known>, doubt: Doubt, news: &mut Vec<News>) -> Option<Step> {
        let pushed = self.pushed.take();
        let Some(known) = known else {
            if doubt != Doubt::None {
                news.push(News::Gone(None));
            }
            self.place = match (self.place, pushed) {
                // It began since.
                (Place::Unknown, Some((epoch, last))) => Place::At { epoch, last },
                (_, Some(_)) => {
                    self.place = Place::Nothing;
                    return Some(Step::Known);
                }
                _ => Place::Nothing,
            };
            return None;
        };
        let epoch = known.epoch();
        let (next, unsure) = match self.place {
            Place::Unknown => {
                // Nobody is in yet, for whom anything of this would be.
                let newer = pushed
                    .filter(|(of, _)| *of == epoch)
                    .map_or(0, |(_, last)| last);
                let last = known.last.max(newer);
                self.place = Place::At { epoch, last };
                self.before = known.before();
                return pushed.filter(|(of, _)| *of != epoch).map(|_| Step::Known);
            }
            Place::Nothing => (1, doubt != Doubt::None),
            Place::At { epoch: own, last } => match known.next_of(own, last, &self.before) {
                Some(next) => (next, doubt == Doubt::Lost),
                None => (1, doubt != Doubt::None || known.is_cut()),
            },
        };
        if unsure {
            news.push(News::Gone(None));
        }
        let went_back = matches!(self.place,
            Place::At { epoch: own, last } if own == epoch && last > known.last);
        if !went_back {
            self.place = Place::At {
                epoch,
                last: next - 1,
            };
            self.before = known.before();
        }
        match pushed {
            Some((of, last)) if of == epoch && last >= next => {
                let goal = known.last.max(last);
                Some(Step::Entries { goal, unsure })
            }
            // Of an epoch that is newer than the answer, or older: the next answer tells.
            Some((of, _)) if of != epoch => Some(Step::Known),
            _ => {
                let goal = known.last;
                (goal >= next).then_some(Step::Entries { goal, unsure })
            }
        }
    }

    /// Takes entries in. What is to be read next; `None`: nothing, the room is live.
    fn read(
        &mut self,
        entries: Vec<kept::Entry>,
        mut goal: u64,
        mut unsure: bool,
        news: &mut Vec<News>,
    ) -> Option<Step> {
        let Place::At { epoch, mut last } = self.place else {
            return Some(Step::Known);
        };
        let is_full = entries.len() >= self.entry_count;
        let bytes: usize = entries.iter().map(|entry| entry.parcel.len()).sum();
        if let Some(mean) = bytes.checked_div(entries.len()) {
            let fitting = (READING_BYTES / mean.max(1)).clamp(1, ENTRY_COUNT_MAX);
            self.entry_count = fitting.min(4 * self.entry_count);
        }
        for entry in entries {
            if entry.first <= last {
                continue;
            }
            if entry.first > last + 1 && !unsure {
                self.gone(entry.first - last - 1, news);
            }
            unsure = false;
            last = entry.last;
            news.push(News::Parcel(entry.parcel));
        }
        self.place = Place::At { epoch, last };
        if is_full {
            return Some(Step::Entries { goal, unsure });
        }
        if last < goal {
            if !unsure {
                self.gone(goal - last, news);
            }
            last = goal;
            self.place = Place::At { epoch, last };
        }
        match self.pushed.take() {
            Some((of, newest)) if of == epoch => {
                goal = newest;
                let unsure = false;
                (newest > last).then_some(Step::Entries { goal, unsure })
            }
            Some(_) => Some(Step::Known),
            None => None,
        }
    }

    fn gone(&mut self, count: u64, news: &mut Vec<News>) {
        self.credit += count;
        news.push(News::Gone(Some(count)));
    }
}

/// What a torn room's stream cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    None,
    /// It was torn for longer than a stream without news lasts.
    Expired,
    /// Redis has lost data since.
    Lost,
}

#[cfg(test)]
mod tests;
