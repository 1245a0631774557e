//! The interest table: which shards have members of which room, and who orders it.
//!
//! Invariant: a room is in the table if and only if some shard is interested in it, and a leased room has no member on
//! any other shard than its holder's.

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::ShardSet;
use crate::bus::{CoreId, EVERYBODY, RoomName, hidden};

/// Who has members of a room. Two words: most rooms have members on one shard only.
#[derive(Debug)]
enum Room {
    /// One shard has members, and orders the room itself.
    Leased(CoreId),
    /// The holder has been told to give the lease back; the others wait for that.
    Revoking(Box<Revoking>),
    /// One shard has members, and the bus orders the room.
    Single(CoreId),
    /// Several shards have members, and the bus orders the room.
    Shared(Box<ShardSet>),
}

#[derive(Debug)]
struct Revoking {
    holder: CoreId,
    /// Interested, but not answered yet. Never the holder; empty when all who waited have given up.
    waiting: ShardSet,
}

const _: () = assert!(size_of::<Room>() <= 16);

/// Where a publish has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To the lease's holder, who orders it.
    Order(CoreId),
    /// To these, in the order of this core. Empty: nobody is in the room.
    Deliver(ShardSet),
}

/// What a change of interest makes this core say. At most one envelope a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// `Joined` to each of these.
    Joined { shards: ShardSet, leased: bool },
    /// `LeaseRevoke` to the holder.
    Revoke(CoreId),
}

/// What a shard says about a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// `Upstream::Interest`.
    Interest,
    /// `Upstream::Disinterest`.
    Disinterest,
    /// `Upstream::LeaseReturned`.
    LeaseReturned,
}

/// Room to interested shards.
#[derive(Debug)]
pub struct InterestTable {
    rooms: HashMap<RoomName, Room, FixedState>,
    leases: bool,
    leased_count: usize,
    /// Rooms of users and of everybody, and those of them that are leased.
    hidden_count: usize,
    hidden_leased_count: usize,
}

impl InterestTable {
    /// An empty table. With `leases` off the bus orders every room.
    pub fn new(leases: bool, seed: u64) -> Self {
        Self {
            rooms: HashMap::with_hasher(FixedState::with_seed(seed)),
            leases,
            leased_count: 0,
            hidden_count: 0,
            hidden_leased_count: 0,
        }
    }

    /// Rooms that some shard is interested in, hidden ones not among them.
    pub fn room_count(&self) -> usize {
        self.rooms.len() - self.hidden_count
    }

    /// Those of them that a shard orders itself; one whose lease is being revoked does not count.
    pub fn leased_count(&self) -> usize {
        self.leased_count - self.hidden_leased_count
    }

    /// Users with connections.
    pub fn user_count(&self) -> usize {
        self.hidden_count - usize::from(self.rooms.contains_key(EVERYBODY))
    }

    /// Where a publish into `room` goes.
    ///
    /// Behind a revoke it goes to the holder as a delivery: the holder reads it after the revoke, so everything that it
    /// ordered itself comes before; who waits to be let in is not in yet, and is owed nothing.
    pub fn route(&self, room: &str) -> Route {
        match self.rooms.get(room) {
            None => Route::Deliver(ShardSet::EMPTY),
            Some(Room::Leased(holder)) => Route::Order(*holder),
            Some(Room::Revoking(revoking)) => Route::Deliver(ShardSet::of(revoking.holder)),
            Some(Room::Single(shard)) => Route::Deliver(ShardSet::of(*shard)),
            Some(Room::Shared(shards)) => Route::Deliver(**shards),
        }
    }

    /// What `apply` is to be answered with; changes nothing.
    pub fn preview(&self, shard: CoreId, room: &str, change: Change) -> Effect {
        let alone = Effect::Joined {
            shards: ShardSet::of(shard),
            leased: false,
        };
        match (change, self.rooms.get(room)) {
            (Change::Interest, None) => Effect::Joined {
                shards: ShardSet::of(shard),
                leased: self.leases,
            },
            (Change::Interest, Some(Room::Leased(holder))) if *holder != shard => {
                Effect::Revoke(*holder)
            }
            (Change::Interest, Some(Room::Leased(_))) => Effect::Joined {
                shards: ShardSet::of(shard),
                leased: true,
            },
            (Change::Interest, Some(Room::Revoking(_))) => Effect::None,
            (Change::Interest, Some(Room::Single(_) | Room::Shared(_))) => alone,
            (Change::Disinterest, Some(Room::Revoking(revoking))) => {
                if revoking.holder == shard {
                    // Whoever is left alone in the room may just as well have the lease.
                    let leased = revoking.waiting.count() == 1;
                    Self::joined(revoking.waiting, leased)
                } else if revoking.waiting.contains(shard) {
                    alone // gave up waiting: its interest is still owed an answer
                } else {
                    Effect::None
                }
            }
            (Change::LeaseReturned, Some(Room::Revoking(revoking))) if revoking.holder == shard => {
                Self::joined(revoking.waiting, false)
            }
            (Change::Disinterest | Change::LeaseReturned, _) => Effect::None,
        }
    }

    /// Changes the table. What a shard may not say here (interest twice, a lease that it does not hold) changes
    /// nothing. To be answered with what [`Self::preview`] says before.
    pub fn apply(&mut self, shard: CoreId, room: &RoomName, change: Change) {
        let (count, leased_count) = (self.rooms.len(), self.leased_count);
        match change {
            Change::Interest => self.apply_interest(shard, room),
            Change::Disinterest => self.apply_disinterest(shard, room),
            Change::LeaseReturned => self.apply_lease_returned(shard, room),
        }
        if hidden(room).is_some() {
            self.hidden_count = self.hidden_count + self.rooms.len() - count;
            self.hidden_leased_count = self.hidden_leased_count + self.leased_count - leased_count;
        }
    }

    fn joined(shards: ShardSet, leased: bool) -> Effect {
        if shards.is_empty() {
            Effect::None
        } else {
            Effect::Joined { shards, leased }
        }
    }

    fn apply_interest(&mut self, shard: CoreId, room: &RoomName) {
        let Some(state) = self.rooms.get_mut(room) else {
            let state = if self.leases {
                Room::Leased(shard)
            } else {
                Room::Single(shard)
            };
            self.leased_count += usize::from(self.leases);
            self.rooms.insert(room.clone(), state);
            return;
        };
        let fresh = match state {
            Room::Leased(holder) if *holder != shard => {
                let revoking = Revoking {
                    holder: *holder,
                    waiting: ShardSet::of(shard),
                };
                *state = Room::Revoking(Box::new(revoking));
                self.leased_count -= 1;
                true
            }
            Room::Revoking(revoking) => revoking.holder != shard && revoking.waiting.insert(shard),
            Room::Single(first) if *first != shard => {
                *state = Room::Shared(Box::new([*first, shard].into_iter().collect()));
                true
            }
            Room::Shared(shards) => shards.insert(shard),
            Room::Leased(_) | Room::Single(_) => false,
        };
        debug_assert!(fresh, "a shard is interested in a room once at a time");
    }

    fn apply_disinterest(&mut self, shard: CoreId, room: &RoomName) {
        let Entry::Occupied(mut entry) = self.rooms.entry(room.clone()) else {
            debug_assert!(false, "no shard leaves a room that it is not in");
            return;
        };
        let present = match entry.get_mut() {
            Room::Leased(holder) if *holder == shard => {
                self.leased_count -= 1;
                entry.remove();
                true
            }
            Room::Single(only) if *only == shard => {
                entry.remove();
                true
            }
            Room::Revoking(revoking) if revoking.holder == shard => {
                match (revoking.waiting.only(), revoking.waiting.is_empty()) {
                    (_, true) => {
                        entry.remove();
                    }
                    (Some(next), _) => {
                        *entry.get_mut() = Room::Leased(next);
                        self.leased_count += 1;
                    }
                    (None, _) => {
                        let waiting = revoking.waiting;
                        *entry.get_mut() = Room::Shared(Box::new(waiting));
                    }
                }
                true
            }
            Room::Revoking(revoking) => revoking.waiting.remove(shard),
            Room::Shared(shards) => {
                let present = shards.remove(shard);
                if let Some(last) = shards.only() {
                    *entry.get_mut() = Room::Single(last);
                }
                present
            }
            Room::Leased(_) | Room::Single(_) => false,
        };
        debug_assert!(present, "no shard leaves a room that it is not in");
    }

    fn apply_lease_returned(&mut self, shard: CoreId, room: &RoomName) {
        match self.rooms.get_mut(room) {
            Some(state @ Room::Revoking(_)) => {
                let Room::Revoking(revoking) = &*state else {
                    return;
                };
                debug_assert_eq!(revoking.holder, shard, "only the holder returns a lease");
                if revoking.holder != shard {
                    return;
                }
                *state = if revoking.waiting.is_empty() {
                    Room::Single(shard)
                } else {
                    Room::Shared(Box::new(revoking.waiting.union(ShardSet::of(shard))))
                };
            }
            _ => debug_assert!(
                false,
                "a lease is returned only when it was revoked, and by its holder"
            ),
        }
    }

    /// Walks all rooms and checks what must hold of each. For tests: O(rooms).
    pub fn check_invariants(&self, shard_count: usize, room_count_max: usize) {
        assert!(
            self.room_count() <= room_count_max.saturating_mul(shard_count),
            "more rooms than shards may have"
        );
        let known = |shard: CoreId| usize::from(shard.0) < shard_count;
        let (mut leased_count, mut hidden_leased_count) = (0, 0);
        let hidden_names = self.rooms.keys().filter(|name| hidden(name).is_some());
        assert_eq!(hidden_names.count(), self.hidden_count);
        for (name, room) in &self.rooms {
            match room {
                Room::Leased(holder) => {
                    assert!(self.leases && known(*holder), "{name}: holder {holder:?}");
                    leased_count += 1;
                    hidden_leased_count += usize::from(hidden(name).is_some());
                }
                Room::Revoking(revoking) => {
                    assert!(
                        self.leases && known(revoking.holder),
                        "{name}: holder {:?}",
                        revoking.holder
                    );
                    assert!(
                        revoking.waiting.iter().all(known),
                        "{name}: waiting {:?}",
                        revoking.waiting
                    );
                    assert!(
                        !revoking.waiting.contains(revoking.holder),
                        "{name}: the holder waits for itself"
                    );
                }
                Room::Single(shard) => assert!(known(*shard), "{name}: {shard:?}"),
                Room::Shared(shards) => {
                    assert!(
                        shards.count() >= 2 && shards.iter().all(known),
                        "{name}: {shards:?}"
                    );
                }
            }
        }
        assert_eq!(leased_count, self.leased_count);
        assert_eq!(hidden_leased_count, self.hidden_leased_count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: CoreId = CoreId(0);
    const B: CoreId = CoreId(1);
    const C: CoreId = CoreId(249);

    fn table() -> (InterestTable, RoomName) {
        (InterestTable::new(true, 1), RoomName::from("room"))
    }

    /// Says it, and what comes back.
    fn tell(table: &mut InterestTable, shard: CoreId, room: &RoomName, change: Change) -> Effect {
        let effect = table.preview(shard, room, change);
        table.apply(shard, room, change);
        effect
    }

    fn joined(shards: &[CoreId], leased: bool) -> Effect {
        Effect::Joined {
            shards: shards.iter().copied().collect(),
            leased,
        }
    }

    fn deliver(shards: &[CoreId]) -> Route {
        Route::Deliver(shards.iter().copied().collect())
    }

    #[test]
    fn the_first_shard_gets_the_lease_and_the_second_waits_until_it_is_returned() {
        let (mut table, room) = table();
        assert_eq!(
            tell(&mut table, A, &room, Change::Interest),
            joined(&[A], true)
        );
        assert_eq!(table.route(&room), Route::Order(A));
        assert_eq!(
            tell(&mut table, B, &room, Change::Interest),
            Effect::Revoke(A)
        );
        assert_eq!(
            tell(&mut table, C, &room, Change::Interest),
            Effect::None,
            "one revoke is enough"
        );
        assert_eq!(
            table.route(&room),
            deliver(&[A]),
            "behind the revoke the bus orders"
        );
        assert_eq!(
            tell(&mut table, A, &room, Change::LeaseReturned),
            joined(&[B, C], false)
        );
        assert_eq!(table.route(&room), deliver(&[A, B, C]));
        table.check_invariants(250, 1);
    }

    #[test]
    fn a_holder_that_leaves_ends_its_lease_and_a_single_waiter_inherits_it() {
        let (mut table, room) = table();
        tell(&mut table, A, &room, Change::Interest);
        tell(&mut table, B, &room, Change::Interest);
        assert_eq!(
            tell(&mut table, A, &room, Change::Disinterest),
            joined(&[B], true)
        );
        assert_eq!(table.route(&room), Route::Order(B));
        assert_eq!(table.leased_count(), 1);
        // A comes back before it has read the revoke: it is a newcomer now.
        assert_eq!(
            tell(&mut table, A, &room, Change::Interest),
            Effect::Revoke(B)
        );
        assert_eq!(
            tell(&mut table, B, &room, Change::LeaseReturned),
            joined(&[A], false)
        );
        table.check_invariants(250, 1);
    }

    #[test]
    fn a_holder_that_leaves_several_waiters_leaves_no_lease() {
        let (mut table, room) = table();
        tell(&mut table, A, &room, Change::Interest);
        tell(&mut table, B, &room, Change::Interest);
        tell(&mut table, C, &room, Change::Interest);
        assert_eq!(
            tell(&mut table, A, &room, Change::Disinterest),
            joined(&[B, C], false)
        );
        assert_eq!(table.route(&room), deliver(&[B, C]));
        assert_eq!(table.leased_count(), 0);
    }

    #[test]
    fn a_waiter_that_gives_up_is_answered_once_and_may_come_back() {
        let (mut table, room) = table();
        tell(&mut table, A, &room, Change::Interest);
        tell(&mut table, B, &room, Change::Interest);
        assert_eq!(
            tell(&mut table, B, &room, Change::Disinterest),
            joined(&[B], false)
        );
        assert_eq!(
            tell(&mut table, B, &room, Change::Interest),
            Effect::None,
            "it waits again"
        );
        assert_eq!(
            tell(&mut table, B, &room, Change::Disinterest),
            joined(&[B], false)
        );
        assert_eq!(
            tell(&mut table, A, &room, Change::LeaseReturned),
            Effect::None,
            "nobody waits any more"
        );
        assert_eq!(table.route(&room), deliver(&[A]));
        assert_eq!(
            tell(&mut table, A, &room, Change::Disinterest),
            Effect::None
        );
        assert_eq!(table.room_count(), 0);
    }

    #[test]
    fn when_holder_and_waiter_both_leave_the_room_is_forgotten() {
        let (mut table, room) = table();
        tell(&mut table, A, &room, Change::Interest);
        tell(&mut table, B, &room, Change::Interest);
        tell(&mut table, B, &room, Change::Disinterest);
        assert_eq!(
            tell(&mut table, A, &room, Change::Disinterest),
            Effect::None
        );
        assert_eq!(table.room_count(), 0);
        assert_eq!(
            tell(&mut table, C, &room, Change::Interest),
            joined(&[C], true),
            "the next is the first again"
        );
    }

    #[test]
    fn shards_come_and_go_without_leases_too() {
        let mut table = InterestTable::new(false, 1);
        let room = RoomName::from("room");
        assert_eq!(
            tell(&mut table, A, &room, Change::Interest),
            joined(&[A], false)
        );
        assert_eq!(
            tell(&mut table, B, &room, Change::Interest),
            joined(&[B], false)
        );
        assert_eq!(
            tell(&mut table, A, &room, Change::Disinterest),
            Effect::None
        );
        assert_eq!(table.route(&room), deliver(&[B]));
        table.check_invariants(250, 1);
        assert_eq!(
            tell(&mut table, B, &room, Change::Disinterest),
            Effect::None
        );
        assert_eq!(table.route(&room), deliver(&[]));
        assert_eq!(table.room_count(), 0);
    }

    #[test]
    #[should_panic(expected = "a lease is returned only when it was revoked")]
    fn a_lease_that_nobody_revoked_is_not_returned() {
        let (mut table, room) = table();
        tell(&mut table, A, &room, Change::Interest);
        tell(&mut table, A, &room, Change::LeaseReturned);
    }
}
