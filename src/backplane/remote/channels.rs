//! The rooms that this node follows: subscribed to at the first interest, left some time after the last.
//!
//! ```text
//!   interest            batch sent             acknowledged              last member gone
//! ───────────▶ Queued ─────────────▶ Asked ─────────────────▶ Standing ────────────────────▶ Holding
//!                ▲                                              ▲  │                            │ │
//!                └───────────────── link lost ──────────────────┼──┘          interest again ───┘ │
//!                                                               └─────────────────────────────────┘ UNSUBSCRIBE
//! ```
//! Invariants: a join is answered only while its room's channel stands; a channel that nobody waits for, holds or is
//! interested in is not in the table.

use std::collections::VecDeque;
use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::arrivals::Arrivals;
use crate::backplane::ShardSet;
use crate::bus::{CoreId, RoomName, hidden};
use crate::time::Tick;

/// Channels in one SUBSCRIBE or UNSUBSCRIBE at most.
pub const COMMAND_CHANNEL_COUNT_MAX: usize = 512;
/// Channels that Redis was asked for and has not acknowledged, at most.
pub const ASKED_CHANNEL_COUNT_MAX: usize = 4 * COMMAND_CHANNEL_COUNT_MAX;
/// Queued channels that nobody wants any more are forgotten once they are more than these and half of all.
const ABANDONED_COUNT_MAX: usize = 1_024;
/// While the server is away, who waits for a hidden room waits no longer: it can be let in without it.
const HIDDEN_TIMEOUT_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Queued,
    Asked,
    Standing,
    Holding,
}

/// One room's channel.
#[derive(Debug)]
pub struct Channel {
    state: State,
    /// Some shard has members, or wants some.
    wanted: bool,
    /// Shards whose interest is not answered.
    waiting: ShardSet,
    waiting_until: Tick,
    held_since: Tick,
    /// It stood before the link was lost: members are in.
    has_stood: bool,
    arrivals: Arrivals,
}

/// What becomes of an interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// The channel stands.
    Stands,
    /// The answer comes when it does.
    Waits,
    /// As many rooms wait as may.
    Refused,
}

/// A channel stands from now on.
#[derive(Debug, PartialEq, Eq)]
pub struct Stood {
    /// Its room.
    pub room: RoomName,
    /// Shards whose interest is to be answered.
    pub waiting: ShardSet,
    /// It stood before the link was lost: members are in, and nobody knows what they missed.
    pub was_lost: bool,
}

/// Rooms that go to another server.
#[derive(Debug, Default)]
pub struct Parting {
    /// Those that somebody wants, and what there is to know of them.
    pub wanted: Vec<(RoomName, Channel)>,
    /// Those that are to be left at this server.
    pub left: Vec<RoomName>,
}

/// All channels of this node.
#[derive(Debug)]
pub struct Channels {
    rooms: HashMap<RoomName, Channel, FixedState>,
    /// Every queued channel once.
    queued: VecDeque<RoomName>,
    /// Queued channels that nobody wants any more.
    abandoned_count: usize,
    asked_count: usize,
    /// Acknowledgements that are on their way for rooms that have gone elsewhere since they were asked for.
    voided: HashMap<RoomName, u32, FixedState>,
    standing_count: usize,
    /// Rooms with interests that are not answered.
    waiting_count: usize,
    /// Until when each waits, soonest first; who waits no more is passed over.
    waits: VecDeque<(Tick, RoomName)>,
    /// The same of those that wait for [`HIDDEN_TIMEOUT_MAX`].
    brief_waits: VecDeque<(Tick, RoomName)>,
    holds: VecDeque<(Tick, RoomName)>,
    /// When the next command may be sent, by the bounded rate.
    next_ask: Tick,
    hold: Duration,
    join_timeout: Duration,
    link_up: bool,
    waiting_max: usize,
    ask_interval_ns: u64,
}

impl Channels {
    /// No room is followed.
    pub fn new(options: &super::Options, seed: u64) -> Self {
        Self {
            rooms: HashMap::with_hasher(FixedState::with_seed(seed)),
            queued: VecDeque::new(),
            abandoned_count: 0,
            asked_count: 0,
            voided: HashMap::with_hasher(FixedState::with_seed(seed)),
            standing_count: 0,
            waiting_count: 0,
            waits: VecDeque::new(),
            brief_waits: VecDeque::new(),
            holds: VecDeque::new(),
            next_ask: Tick(0),
            hold: Duration::from_millis(u64::from(options.hold_ms)),
            join_timeout: Duration::from_millis(u64::from(options.join_timeout_ms)),
            link_up: false,
            waiting_max: options.joins_waiting_max as usize,
            ask_interval_ns: 1_000_000_000 / u64::from(options.subscribes_per_s_max.max(1)),
        }
    }

    /// `shard` wants the room.
    pub fn interest(&mut self, shard: CoreId, room: &RoomName, now: Tick) -> Interest {
        if let Some(channel) = self.rooms.get_mut(room) {
            let was_wanted = std::mem::replace(&mut channel.wanted, true);
            self.abandoned_count -= usize::from(channel.state == State::Queued && !was_wanted);
            if matches!(channel.state, State::Standing | State::Holding) {
                channel.state = State::Standing;
                return Interest::Stands;
            }
        }
        let is_new = self
            .rooms
            .get(room)
            .is_none_or(|channel| channel.waiting.is_empty());
        if is_new && self.waiting_count >= self.waiting_max {
            return Interest::Refused;
        }
        let is_brief = !self.link_up && hidden(room).is_some();
        let (timeout, waits) = match is_brief {
            true => {
                let timeout = self.join_timeout.min(HIDDEN_TIMEOUT_MAX);
                (timeout, &mut self.brief_waits)
            }
            false => (self.join_timeout, &mut self.waits),
        };
        let until = now.after(timeout);
        let channel = self.rooms.entry(room.clone()).or_insert_with(|| {
            self.queued.push_back(room.clone());
            Channel {
                state: State::Queued,
                wanted: true,
                waiting: ShardSet::EMPTY,
                waiting_until: now,
                held_since: now,
                has_stood: false,
                arrivals: Arrivals::default(),
            }
        });
        if channel.waiting.is_empty() {
            channel.waiting_until = until;
            self.waiting_count += 1;
            waits.push_back((until, room.clone()));
        }
        channel.waiting.insert(shard);
        Interest::Waits
    }

    /// `shard` does not want the room any more; `is_last`: nobody here does. Whether its interest was still owed an
    /// answer.
    pub fn disinterest(
        &mut self,
        shard: CoreId,
        room: &RoomName,
        is_last: bool,
        now: Tick,
    ) -> bool {
        let Some(channel) = self.rooms.get_mut(room) else {
            return false;
        };
        let waited = channel.waiting.remove(shard);
        if waited && channel.waiting.is_empty() {
            self.waiting_count -= 1;
        }
        if is_last {
            channel.wanted = false;
            match channel.state {
                State::Queued => {
                    self.abandoned_count += 1;
                    self.drop_abandoned();
                }
                State::Asked | State::Holding => {}
                State::Standing => {
                    channel.state = State::Holding;
                    channel.held_since = now;
                    self.holds.push_back((now.after(self.hold), room.clone()));
                }
            }
        }
        waited
    }

    /// Forgets queued channels that nobody wants, once they are many: while the link is lost nothing else does.
    fn drop_abandoned(&mut self) {
        if self.abandoned_count <= ABANDONED_COUNT_MAX + self.queued.len() / 2 {
            return;
        }
        self.abandoned_count = 0;
        let rooms = &mut self.rooms;
        self.queued.retain(|room| {
            let wanted = rooms.get(room).is_some_and(|channel| channel.wanted);
            if !wanted {
                rooms.remove(room);
            }
            wanted
        });
    }

    /// Takes the rooms out that are to be subscribed to with the next command, as many as may be by now.
    pub fn take_asks(&mut self, now: Tick) -> Vec<RoomName> {
        let mut rooms = Vec::new();
        if self.next_ask > now {
            return rooms;
        }
        while rooms.len() < COMMAND_CHANNEL_COUNT_MAX && self.asked_count < ASKED_CHANNEL_COUNT_MAX
        {
            let Some(room) = self.queued.pop_front() else {
                break;
            };
            if let Some(channel) = self.rooms.get_mut(&room).filter(|channel| channel.wanted) {
                channel.state = State::Asked;
                self.asked_count += 1;
                rooms.push(room);
            } else {
                self.abandoned_count -= 1;
                self.rooms.remove(&room);
            }
        }
        let spent_ns = rooms.len() as u64 * self.ask_interval_ns;
        self.next_ask = now.after(Duration::from_nanos(spent_ns));
        rooms
    }

    /// Redis has acknowledged the subscription to the room's channel.
    pub fn stand(&mut self, room: &str, now: Tick) -> Option<Stood> {
        if self.takes_voided(room) {
            return None;
        }
        let (room, channel) = self.rooms.get_key_value_mut(room)?;
        if channel.state != State::Asked {
            return None;
        }
        self.asked_count -= 1;
        self.standing_count += 1;
        let waiting = std::mem::take(&mut channel.waiting);
        self.waiting_count -= usize::from(!waiting.is_empty());
        let was_lost = std::mem::replace(&mut channel.has_stood, true);
        if channel.wanted {
            channel.state = State::Standing;
        } else {
            channel.state = State::Holding;
            channel.held_since = now;
            self.holds.push_back((now.after(self.hold), room.clone()));
        }
        Some(Stood {
            room: room.clone(),
            waiting,
            was_lost: was_lost && channel.wanted,
        })
    }

    /// Redis has refused what was asked for: it is queued anew.
    pub fn unask(&mut self, rooms: Vec<RoomName>) {
        for room in rooms {
            if self.takes_voided(&room) {
                continue;
            }
            if let Some(channel) = self.rooms.get_mut(&room)
                && channel.state == State::Asked
            {
                channel.state = State::Queued;
                self.asked_count -= 1;
                self.abandoned_count += usize::from(!channel.wanted);
                self.queued.push_back(room);
            }
        }
    }

    fn takes_voided(&mut self, room: &str) -> bool {
        let Some(count) = self.voided.get_mut(room) else {
            return false;
        };
        *count -= 1;
        if *count == 0 {
            self.voided.remove(room);
        }
        true
    }

    /// The sequences of a room whose channel stands, and its name as everybody here shares it.
    pub fn arrivals(&mut self, room: &str) -> Option<(RoomName, &mut Arrivals)> {
        let (room, channel) = self.rooms.get_key_value_mut(room)?;
        matches!(channel.state, State::Standing | State::Holding)
            .then(|| (room.clone(), &mut channel.arrivals))
    }

    /// The same for a room that has members, whether its channel stands or was lost; and whether it stands.
    pub fn arrivals_of_members(&mut self, room: &str) -> Option<(bool, &mut Arrivals)> {
        let channel = self.rooms.get_mut(room)?;
        (channel.wanted && channel.has_stood)
            .then_some((channel.state == State::Standing, &mut channel.arrivals))
    }

    /// Whether the room's channel stands, or is to stand.
    pub fn follows(&self, room: &str) -> bool {
        self.rooms.contains_key(room)
    }

    /// The rooms whose joins have waited too long, one a call: the room, and who waited.
    pub fn take_overdue(&mut self, now: Tick) -> Option<(RoomName, ShardSet)> {
        for waits in [&mut self.brief_waits, &mut self.waits] {
            while waits.front().is_some_and(|(due, _)| *due <= now) {
                let (due, room) = waits.pop_front()?;
                if let Some(channel) = self.rooms.get_mut(&room)
                    && !channel.waiting.is_empty()
                    && channel.waiting_until == due
                {
                    self.waiting_count -= 1;
                    return Some((room, std::mem::take(&mut channel.waiting)));
                }
            }
        }
        None
    }

    /// The rooms whose channels are to be left with one command.
    pub fn take_left(&mut self, now: Tick) -> Vec<RoomName> {
        let mut rooms = Vec::new();
        while rooms.len() < COMMAND_CHANNEL_COUNT_MAX
            && self.holds.front().is_some_and(|(due, _)| *due <= now)
        {
            let Some((due, room)) = self.holds.pop_front() else {
                break;
            };
            let is_left = self.rooms.get(&room).is_some_and(|channel| {
                channel.state == State::Holding && channel.held_since.after(self.hold) == due
            });
            if is_left {
                self.rooms.remove(&room);
                self.standing_count -= 1;
                rooms.push(room);
            }
        }
        rooms
    }

    /// The link can be used.
    pub fn found(&mut self) {
        self.link_up = true;
    }

    /// The link was lost: everything that is wanted is queued anew.
    pub fn lose(&mut self) {
        self.link_up = false;
        self.queued.clear();
        self.abandoned_count = 0;
        self.holds.clear();
        self.voided.clear();
        self.asked_count = 0;
        self.standing_count = 0;
        self.next_ask = Tick(0);
        let queued = &mut self.queued;
        self.rooms.retain(|room, channel| {
            if !channel.wanted {
                return false;
            }
            channel.state = State::Queued;
            queued.push_back(room.clone());
            true
        });
    }

    /// How many rooms may wait.
    pub fn set_waiting_max(&mut self, count: usize) {
        self.waiting_max = count;
    }

    /// All rooms that are followed, or are to be.
    pub fn rooms(&self) -> impl Iterator<Item = &RoomName> {
        self.rooms.keys()
    }

    /// Lets rooms go.
    pub fn release(&mut self, goes: impl Fn(&str) -> bool) -> Parting {
        let mut parting = Parting::default();
        for (room, channel) in self.rooms.extract_if(|room, _| goes(room)) {
            match channel.state {
                State::Queued => self.abandoned_count -= usize::from(!channel.wanted),
                State::Asked => {
                    self.asked_count -= 1;
                    *self.voided.entry(room.clone()).or_default() += 1;
                }
                State::Standing | State::Holding => self.standing_count -= 1,
            }
            self.waiting_count -= usize::from(!channel.waiting.is_empty());
            if channel.state != State::Queued {
                parting.left.push(room.clone());
            }
            if channel.wanted {
                parting.wanted.push((room, channel));
            }
        }
        let rooms = &self.rooms;
        self.queued.retain(|room| rooms.contains_key(room));
        parting
    }

    /// Takes a room in that another server has let go; it is queued, whatever it was there.
    pub fn adopt(&mut self, room: RoomName, channel: Channel) {
        if !channel.waiting.is_empty() {
            self.waiting_count += 1;
            let due = channel.waiting_until;
            let place = self.waits.partition_point(|(other, _)| *other <= due);
            self.waits.insert(place, (due, room.clone()));
        }
        self.queued.push_back(room.clone());
        let state = State::Queued;
        self.rooms.insert(room, Channel { state, ..channel });
    }

    /// Whether no channel is queued or asked for.
    pub fn is_settled(&self) -> bool {
        self.queued.is_empty() && self.asked_count == 0
    }

    /// Whether an acknowledgement is due.
    pub fn has_asked(&self) -> bool {
        self.asked_count > 0
    }

    /// Channels whose subscription stands.
    pub fn standing_count(&self) -> usize {
        self.standing_count
    }

    /// Channels that are to be subscribed to.
    pub fn missing_count(&self) -> usize {
        self.queued.len() + self.asked_count
    }

    /// Rooms with joins that wait.
    pub fn waiting_count(&self) -> usize {
        self.waiting_count
    }

    /// When something is due by time; `link_up`: whether more may be asked for.
    pub fn deadline(&self, link_up: bool) -> Option<Tick> {
        let may_ask =
            link_up && !self.queued.is_empty() && self.asked_count < ASKED_CHANNEL_COUNT_MAX;
        let front = |list: &VecDeque<(Tick, RoomName)>| list.front().map(|(due, _)| *due);
        [
            may_ask.then_some(self.next_ask),
            front(&self.waits),
            front(&self.brief_waits),
            front(&self.holds).filter(|_| link_up),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Walks all channels and checks what must hold of each. For tests: O(rooms).
    ///
    /// # Panics
    /// When something does not hold.
    pub fn check_invariants(&self) {
        let count = |state| {
            let channels = self.rooms.values();
            channels.filter(|channel| channel.state == state).count()
        };
        assert_eq!(self.asked_count, count(State::Asked));
        assert_eq!(
            self.standing_count,
            count(State::Standing) + count(State::Holding)
        );
        let waiting = self
            .rooms
            .values()
            .filter(|channel| !channel.waiting.is_empty());
        assert_eq!(self.waiting_count, waiting.count());
        assert_eq!(self.queued.len(), count(State::Queued));
        let abandoned = self
            .rooms
            .values()
            .filter(|channel| channel.state == State::Queued && !channel.wanted);
        assert_eq!(self.abandoned_count, abandoned.count());
        for (room, channel) in &self.rooms {
            let stands = matches!(channel.state, State::Standing | State::Holding);
            assert!(!stands || channel.waiting.is_empty(), "{room}: joins wait");
            let held = channel.state == State::Holding;
            assert_eq!(held, stands && !channel.wanted, "{room}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Address, Options};
    use super::*;
    use crate::bus::EVERYBODY;

    const A: CoreId = CoreId(0);
    const B: CoreId = CoreId(1);

    fn options() -> Options {
        Options {
            subscribes_per_s_max: 1_000,
            joins_waiting_max: 3,
            ..Options::new(Address::parse("redis://x").unwrap())
        }
    }

    fn room(name: &str) -> RoomName {
        RoomName::from(name)
    }

    /// Asks for all that is queued and has it acknowledged.
    fn stand_all(channels: &mut Channels, now: Tick) -> Vec<Stood> {
        let asked = channels.take_asks(now);
        let stood = asked.iter().filter_map(|room| channels.stand(room, now));
        let stood = stood.collect();
        channels.check_invariants();
        stood
    }

    #[test]
    fn a_hidden_room_waits_for_a_server_that_is_away_for_a_second_and_a_room_for_the_whole_time() {
        let mut channels = Channels::new(&options(), 1);
        channels.interest(A, &room("r"), Tick(0));
        channels.interest(A, &room(EVERYBODY), Tick(0));
        assert_eq!(channels.take_overdue(Tick::from_ms(999)), None);
        let overdue = |channels: &mut Channels, ms| {
            let overdue = channels.take_overdue(Tick::from_ms(ms));
            overdue.map(|(room, _)| room.to_string())
        };
        assert_eq!(overdue(&mut channels, 1_000).as_deref(), Some(EVERYBODY));
        assert_eq!(channels.deadline(false), Some(Tick::from_ms(10_000)));
        channels.disinterest(A, &room(EVERYBODY), true, Tick::from_ms(1_000));
        channels.found();
        channels.interest(A, &room(EVERYBODY), Tick::from_ms(1_000));
        assert_eq!(overdue(&mut channels, 10_000).as_deref(), Some("r"));
        assert_eq!(overdue(&mut channels, 10_999), None);
        assert_eq!(overdue(&mut channels, 11_000).as_deref(), Some(EVERYBODY));
        channels.check_invariants();
    }

    #[test]
    fn a_join_waits_for_its_subscription_and_the_next_one_does_not() {
        let mut channels = Channels::new(&options(), 1);
        assert_eq!(channels.interest(A, &room("r"), Tick(0)), Interest::Waits);
        assert_eq!(channels.interest(B, &room("r"), Tick(0)), Interest::Waits);
        let stood = stand_all(&mut channels, Tick(0));
        let waiting = [A, B].into_iter().collect();
        assert_eq!(
            stood,
            [Stood {
                room: room("r"),
                waiting,
                was_lost: false
            }]
        );
        assert_eq!(channels.interest(A, &room("r"), Tick(0)), Interest::Stands);
        assert_eq!(channels.stand("r", Tick(0)), None, "acknowledged once");
    }

    #[test]
    fn a_channel_is_left_after_the_hold_unless_somebody_comes_back() {
        let mut channels = Channels::new(&options(), 1);
        channels.interest(A, &room("r"), Tick(0));
        stand_all(&mut channels, Tick(0));
        let second = Tick::from_ms(1_000);
        assert!(!channels.disinterest(A, &room("r"), true, second));
        assert_eq!(channels.take_left(Tick::from_ms(5_999)), []);
        assert_eq!(
            channels.interest(A, &room("r"), Tick::from_ms(5_999)),
            Interest::Stands
        );
        assert_eq!(channels.take_left(Tick::from_ms(6_000)), []);
        channels.disinterest(A, &room("r"), true, Tick::from_ms(7_000));
        assert_eq!(
            channels.deadline(true),
            Some(Tick::from_ms(10_000)).min(channels.deadline(true))
        );
        assert_eq!(channels.take_left(Tick::from_ms(12_000)), [room("r")]);
        assert_eq!(channels.standing_count(), 0);
        channels.check_invariants();
    }

    #[test]
    fn who_gives_up_waiting_is_owed_an_answer_and_nothing_is_asked_for() {
        let mut channels = Channels::new(&options(), 1);
        channels.interest(A, &room("r"), Tick(0));
        assert!(channels.disinterest(A, &room("r"), true, Tick(0)));
        assert_eq!(stand_all(&mut channels, Tick(0)), []);
        assert!(channels.is_settled());
        // The same many times over, while nothing can be asked for.
        for index in 0..10_000 {
            let room = room(&format!("r{index}"));
            channels.interest(A, &room, Tick(0));
            assert!(channels.disinterest(A, &room, true, Tick(0)));
        }
        channels.check_invariants();
        assert!(
            channels.missing_count() <= 3_000,
            "{}",
            channels.missing_count()
        );
        while !channels.take_asks(Tick(0)).is_empty() || !channels.is_settled() {}
        // Already asked for: it stands, and is held for whoever comes next.
        channels.interest(A, &room("s"), Tick::from_ms(1));
        let asked = channels.take_asks(Tick::from_ms(1));
        assert_eq!(asked, [room("s")]);
        assert!(channels.disinterest(A, &room("s"), true, Tick::from_ms(2)));
        assert!(
            channels
                .stand("s", Tick::from_ms(3))
                .unwrap()
                .waiting
                .is_empty()
        );
        channels.check_invariants();
        assert_eq!(channels.take_left(Tick::from_ms(5_003)), [room("s")]);
    }

    #[test]
    fn joins_that_wait_are_bounded_in_number_and_time() {
        let mut channels = Channels::new(&options(), 1);
        for name in ["a", "b", "c"] {
            assert_eq!(channels.interest(A, &room(name), Tick(0)), Interest::Waits);
        }
        assert_eq!(channels.interest(A, &room("d"), Tick(0)), Interest::Refused);
        assert_eq!(
            channels.interest(B, &room("a"), Tick(0)),
            Interest::Waits,
            "it waits already"
        );
        channels.check_invariants();
        assert_eq!(channels.take_overdue(Tick::from_ms(9_999)), None);
        let both = [A, B].into_iter().collect();
        assert_eq!(
            channels.take_overdue(Tick::from_ms(10_000)),
            Some((room("a"), both))
        );
        assert!(!channels.disinterest(A, &room("a"), false, Tick::from_ms(10_000)));
        assert!(!channels.disinterest(B, &room("a"), true, Tick::from_ms(10_000)));
        assert_eq!(
            channels.interest(A, &room("d"), Tick(10_000)),
            Interest::Waits
        );
        channels.check_invariants();
    }

    #[test]
    fn a_storm_is_asked_for_in_batches_at_a_bounded_rate() {
        let options = Options {
            joins_waiting_max: 10_000,
            ..options()
        };
        let mut channels = Channels::new(&options, 1);
        for index in 0..5_000 {
            channels.interest(A, &room(&format!("r{index}")), Tick(0));
        }
        let first = channels.take_asks(Tick(0));
        assert_eq!(first.len(), COMMAND_CHANNEL_COUNT_MAX);
        assert_eq!(channels.take_asks(Tick::from_ms(511)), []);
        for ms in [512, 1_024, 1_536] {
            assert_eq!(
                channels.take_asks(Tick::from_ms(ms)).len(),
                COMMAND_CHANNEL_COUNT_MAX
            );
        }
        assert_eq!(
            channels.take_asks(Tick::from_ms(9_000)),
            [],
            "none is acknowledged"
        );
        for room in &first {
            channels.stand(room, Tick::from_ms(9_000));
        }
        assert_eq!(
            channels.take_asks(Tick::from_ms(9_000)).len(),
            COMMAND_CHANNEL_COUNT_MAX
        );
        channels.check_invariants();
    }

    #[test]
    fn a_lost_link_queues_what_is_wanted_and_says_so_when_it_stands_again() {
        let mut channels = Channels::new(&options(), 1);
        for name in ["kept", "left"] {
            channels.interest(A, &room(name), Tick(0));
        }
        assert!(
            stand_all(&mut channels, Tick(0))
                .iter()
                .all(|stood| !stood.was_lost)
        );
        channels.arrivals("kept").unwrap().1.arrive(9, 1, 1, 1);
        channels.disinterest(A, &room("left"), true, Tick(1));
        channels.lose();
        channels.check_invariants();
        assert!(
            channels.arrivals("kept").is_none(),
            "what comes now is not ours"
        );
        let (stands, arrivals) = channels.arrivals_of_members("kept").unwrap();
        assert!(
            !stands && arrivals.has(9, 1, 1),
            "what was heard is remembered"
        );
        let stood = stand_all(&mut channels, Tick::from_ms(5));
        let expected = Stood {
            room: room("kept"),
            waiting: ShardSet::EMPTY,
            was_lost: true,
        };
        assert_eq!(stood, [expected]);
    }
}
