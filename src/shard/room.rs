//! The room table: names, members, and what a room has gathered in this turn.

use std::hash::BuildHasher;

use hashbrown::HashTable;

use crate::bus::{BatchMessage, Hidden, MessageKind, RoomName, hidden};
use crate::metrics::DropPolicy;
use crate::time::Tick;

/// A room's place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RoomIndex(pub u32);

impl RoomIndex {
    /// No room.
    pub(super) const NONE: Self = Self(u32::MAX);
}

/// Who puts the room's messages in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// This shard: it is the only one, or holds the room's lease.
    Here,
    /// The backplane core: publishes go up the bus and come back as deliveries.
    Bus,
    /// Not known yet: the backplane has not answered our interest.
    Pending,
}

/// Whom a room's messages reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Its members, each of whom has it as its own room.
    Members,
    /// A user's connections, which are its members beside their own rooms.
    User,
    /// All open connections; it has no members, and is open as long as the shard.
    Everybody,
}

/// Messages of one room, gathered in one turn.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub bytes: Vec<u8>,
    pub messages: Vec<BatchMessage>,
    pub published: Tick,
    /// Some of it came without [`super::Shard::has_publish_room`] being asked: nobody waits until the ledger has room
    /// for it.
    pub unasked: bool,
}

impl Gathered {
    /// What it weighs: its frames, and the entry of each message.
    pub(super) const fn weight_bytes(&self) -> usize {
        self.bytes.len() + self.messages.len() * BatchMessage::BYTES
    }
}

/// A close of a user's connections, taken from where it stood among the user's messages.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closing {
    /// The close frame.
    pub frame: Vec<u8>,
    /// They are told to come back.
    pub reconnect: bool,
}

impl Gathered {
    /// Takes the first close out, and everything behind it: there is nobody left for that.
    pub(super) fn take_closing(&mut self) -> Option<Closing> {
        let mut start = 0;
        for (at, message) in self.messages.iter().enumerate() {
            if let MessageKind::Close { reconnect } = message.kind {
                let frame = self.bytes[start..message.end as usize].to_vec();
                self.bytes.truncate(start);
                self.messages.truncate(at);
                return Some(Closing { frame, reconnect });
            }
            start = message.end as usize;
        }
        None
    }
}

/// Gathered that were used and are kept for the next turn: a turn that touches a room costs no allocation for it.
#[derive(Debug, Default)]
#[allow(clippy::vec_box)] // the boxes are what is kept: rooms hold them
pub(super) struct SpareGathered(Vec<Box<Gathered>>);

/// How many are kept at most, and of how many messages each.
const SPARE_COUNT_MAX: usize = 1024;
const SPARE_MESSAGE_COUNT_MAX: usize = 16;

impl SpareGathered {
    /// One without messages.
    pub(super) fn take(&mut self, published: Tick) -> Box<Gathered> {
        let mut gathered = self.0.pop().unwrap_or_default();
        gathered.published = published;
        gathered.unasked = false;
        gathered
    }

    /// Takes one back. Its bytes have gone to where they are sent from.
    pub(super) fn give(&mut self, mut gathered: Box<Gathered>) {
        if self.0.len() < SPARE_COUNT_MAX && gathered.messages.capacity() <= SPARE_MESSAGE_COUNT_MAX
        {
            gathered.bytes = Vec::new();
            gathered.messages.clear();
            self.0.push(gathered);
        }
    }
}

/// One room with members on this shard, or with an answer of the backplane still to come.
#[derive(Debug)]
pub(super) struct Room {
    pub name: RoomName,
    /// Slab indexes of the members, in no order.
    pub members: Vec<u32>,
    /// To be delivered to the members at the end of the turn.
    pub incoming: Option<Box<Gathered>>,
    /// To be published on the bus at the end of the turn.
    pub outgoing: Option<Box<Gathered>>,
    pub order: Order,
    pub reach: Reach,
    pub policy: DropPolicy,
    /// Interests sent that the backplane has not answered; only the last answer counts.
    pub answers_due: u32,
    /// When the last of them was sent.
    pub asked: Tick,
    pub message_count: u64,
}

/// All rooms of a shard.
#[derive(Debug)]
pub(super) struct RoomTable {
    rooms: Vec<Option<Room>>,
    free: Vec<RoomIndex>,
    by_name: HashTable<RoomIndex>,
    hasher: foldhash::fast::FixedState,
    rules: Vec<super::RoomRule>,
    /// Rooms that are hidden: bounded by the connections, and not held against `count_max`.
    hidden_count: usize,
    count_max: u32,
}

/// As many rooms as allowed are in use.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TableFull;

impl RoomTable {
    /// An empty table. `seed` keeps names from being chosen to collide.
    pub(super) fn new(rules: Vec<super::RoomRule>, count_max: u32, seed: u64) -> Self {
        Self {
            rooms: Vec::new(),
            free: Vec::new(),
            by_name: HashTable::new(),
            hasher: foldhash::fast::FixedState::with_seed(seed),
            rules,
            hidden_count: 0,
            count_max,
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<RoomIndex> {
        self.by_name
            .find(self.hasher.hash_one(name), |&index| {
                &*self[index].name == name
            })
            .copied()
    }

    /// The room `name`, made if it is not there; hidden ones there may be as many as there are connections. `order` is what a new room begins with.
    pub(super) fn find_or_open(
        &mut self,
        name: &str,
        order: Order,
    ) -> Result<RoomIndex, TableFull> {
        if let Some(index) = self.find(name) {
            return Ok(index);
        }
        let reach = match hidden(name) {
            None if self.count() >= self.count_max as usize => return Err(TableFull),
            None => Reach::Members,
            Some(Hidden::User(_)) => Reach::User,
            Some(Hidden::Everybody) => Reach::Everybody,
        };
        self.hidden_count += usize::from(reach != Reach::Members);
        let room = Room {
            name: name.into(),
            members: Vec::new(),
            incoming: None,
            outgoing: None,
            order,
            reach,
            policy: self.policy(name),
            answers_due: 0,
            asked: Tick(0),
            message_count: 0,
        };
        let index = if let Some(index) = self.free.pop() {
            self.rooms[index.0 as usize] = Some(room);
            index
        } else {
            self.rooms.push(Some(room));
            RoomIndex(u32::try_from(self.rooms.len() - 1).expect("bounded by count_max"))
        };
        let (rooms, hasher) = (&self.rooms, &self.hasher);
        let name_of = |index: &RoomIndex| {
            &*rooms[index.0 as usize]
                .as_ref()
                .expect("indexed rooms exist")
                .name
        };
        self.by_name
            .insert_unique(hasher.hash_one(name), index, |other| {
                hasher.hash_one(name_of(other))
            });
        Ok(index)
    }

    /// Takes an empty room out.
    pub(super) fn close(&mut self, index: RoomIndex) {
        let room = self.rooms[index.0 as usize]
            .take()
            .expect("a room is closed once");
        self.hidden_count -= usize::from(room.reach != Reach::Members);
        debug_assert!(
            room.members.is_empty() && room.incoming.is_none() && room.outgoing.is_none()
        );
        let hash = self.hasher.hash_one(&*room.name);
        let entry = self
            .by_name
            .find_entry(hash, |&other| other == index)
            .expect("an open room is in the index");
        entry.remove();
        self.free.push(index);
    }

    /// What the first matching rule says of rooms with this name.
    fn policy(&self, name: &str) -> DropPolicy {
        let matches = |rule: &&super::RoomRule| match rule.pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => rule.pattern == name,
        };
        self.rules
            .iter()
            .find(matches)
            .map_or(DropPolicy::Disconnect, |rule| rule.slow)
    }

    /// Whether `index` names a room now: it may have been closed since it was noted down.
    pub(super) fn is_open(&self, index: RoomIndex) -> bool {
        self.rooms[index.0 as usize].is_some()
    }

    /// Rooms that are not hidden.
    pub(super) fn count(&self) -> usize {
        self.by_name.len() - self.hidden_count
    }

    /// Hidden rooms.
    pub(super) const fn hidden_count(&self) -> usize {
        self.hidden_count
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (RoomIndex, &Room)> {
        (0..)
            .map(RoomIndex)
            .zip(&self.rooms)
            .filter_map(|(index, room)| Some((index, room.as_ref()?)))
    }
}

impl std::ops::Index<RoomIndex> for RoomTable {
    type Output = Room;
    fn index(&self, index: RoomIndex) -> &Room {
        self.rooms[index.0 as usize]
            .as_ref()
            .expect("a RoomIndex is held only while its room is open")
    }
}

impl std::ops::IndexMut<RoomIndex> for RoomTable {
    fn index_mut(&mut self, index: RoomIndex) -> &mut Room {
        self.rooms[index.0 as usize]
            .as_mut()
            .expect("a RoomIndex is held only while its room is open")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::shard::RoomRule;

    fn table(rules: &[(&str, DropPolicy)], count_max: u32) -> RoomTable {
        let rules = rules
            .iter()
            .map(|&(pattern, slow)| RoomRule {
                pattern: pattern.into(),
                slow,
            })
            .collect();
        RoomTable::new(rules, count_max, 7)
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let mut table = table(
            &[
                ("ticker:btc", DropPolicy::DropNewest),
                ("ticker:*", DropPolicy::Latest),
                ("*", DropPolicy::DropOldest),
            ],
            10,
        );
        for (name, policy) in [
            ("ticker:btc", DropPolicy::DropNewest),
            ("ticker:eth", DropPolicy::Latest),
            ("ticker", DropPolicy::DropOldest),
        ] {
            let index = table.find_or_open(name, Order::Here).unwrap();
            assert_eq!(table[index].policy, policy, "{name}");
        }
        assert_eq!(self::table(&[], 1).policy("x"), DropPolicy::Disconnect);
    }

    proptest! {
        #[test]
        fn behaves_like_a_map_of_names(
            seed: u64,
            operations in prop::collection::vec((any::<bool>(), 0u8..20), 0..300)
        ) {
            let mut table = RoomTable::new(Vec::new(), 12, seed);
            let mut model = BTreeMap::new();
            for (opens, name) in operations {
                let name = format!("room {name}");
                if opens {
                    let expected = match model.get(&name) {
                        None if model.len() == 12 => Err(TableFull),
                        None => {
                            let index = table.find_or_open(&name, Order::Here).expect("there is room");
                            prop_assert!(model.values().all(|other| *other != index));
                            model.insert(name.clone(), index);
                            Ok(index)
                        }
                        Some(index) => Ok(*index),
                    };
                    prop_assert_eq!(table.find_or_open(&name, Order::Here), expected);
                } else if let Some(index) = model.remove(&name) {
                    table.close(index);
                    prop_assert!(!table.is_open(index));
                }
                prop_assert_eq!(table.find(&name), model.get(&name).copied());
                prop_assert_eq!(table.count(), model.len());
                let mut listed: Vec<_> = table.iter().map(|(index, room)| (room.name.to_string(), index)).collect();
                listed.sort_by(|one, other| one.0.cmp(&other.0));
                prop_assert_eq!(listed, model.clone().into_iter().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_full_table_still_finds_and_a_closed_room_makes_place() {
        let mut table = table(&[], 2);
        let first = table.find_or_open("a", Order::Here).unwrap();
        let second = table.find_or_open("b", Order::Here).unwrap();
        assert_eq!(table.find_or_open("c", Order::Here), Err(TableFull));
        assert_eq!(table.find_or_open("b", Order::Here), Ok(second));
        table.close(first);
        assert_eq!(table.find("a"), None);
        assert_eq!(table.find_or_open("c", Order::Here), Ok(first));
        assert_eq!(table.count(), 2);
    }
}
