//! Whose connections are whose: each connection of a user is a member of the user's hidden room beside its own.
//!
//! A connection without a user keeps nothing here. One with a user has an [`Identity`] in a side table, marked by
//! [`flag::USER`], so that rooms that are not hidden never look.
//! Invariant: a connection has an identity exactly while it is `Joining` or `Open` for a user.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use super::connection::{State, flag};
use super::outbox::Reserve;
use super::room::{Closing, Order, Reach, Room, RoomIndex};
use super::{Delivery, Shard};
use crate::bus::{EVERYBODY, RoomName, Upstream, UserInfo, UserName, user_room};
use crate::protocol::CloseReason;
use crate::protocol::dialect::raw::notice_reconnect;

/// Whose a connection is.
#[derive(Debug)]
pub(super) struct Identity {
    pub user: UserName,
    /// The user's hidden room.
    pub room: RoomIndex,
    /// Its place in that room's members.
    pub member_index: u32,
}

/// What a user's connection holds more than another: its identity with the table's slack, and (as if it were the user's
/// only one) the room, its places in the room table, and the first member's place.
const IDENTITY_BYTES: usize = 2 * size_of::<(u32, Identity)>() + size_of::<Room>() + 64;

impl Identity {
    /// What the ledger is charged for a connection of the user with the id `user`.
    pub(super) fn bytes(user: &str) -> u32 {
        u32::try_from(IDENTITY_BYTES + 2 * user.len()).expect("an id is short")
    }
}

/// The identities of a shard, by connection.
#[derive(Debug)]
pub(super) struct Users {
    identities: HashMap<u32, Identity, FixedState>,
}

impl Users {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            identities: HashMap::with_hasher(FixedState::with_seed(seed)),
        }
    }

    /// Whose the connection is.
    pub(super) fn identity(&self, index: u32) -> Option<&Identity> {
        self.identities.get(&index)
    }

    /// Bytes charged for the connection's identity.
    pub(super) fn charged_bytes(&self, index: u32) -> u32 {
        self.identity(index)
            .map_or(0, |identity| Identity::bytes(&identity.user))
    }

    pub(super) fn identity_count(&self) -> usize {
        self.identities.len()
    }

    /// A member of a user's room has another place in it.
    pub(super) fn moved(&mut self, index: u32, member_index: u32) {
        self.identities
            .get_mut(&index)
            .expect("members of a user's room have an identity")
            .member_index = member_index;
    }
}

impl Shard {
    /// Users with a connection on this shard.
    pub(super) fn user_count(&self) -> u64 {
        self.rooms.hidden_count() as u64 - 1 // everybody's room
    }

    /// Begins to follow everybody's room: once, when the shard begins.
    pub(super) fn follow_everybody(&mut self) {
        let order = match self.delivery {
            Delivery::Inline => Order::Here,
            Delivery::Bus => Order::Pending,
        };
        let Ok(index) = self.rooms.find_or_open(EVERYBODY, order) else {
            unreachable!("hidden rooms are not held against the limit")
        };
        self.everybody = index;
        if order == Order::Pending {
            self.send_interest(index);
        }
    }

    pub(super) fn send_interest(&mut self, index: RoomIndex) {
        let room = &mut self.rooms[index];
        room.answers_due += 1;
        room.asked = self.now;
        let room = RoomName::clone(&room.name);
        self.forward(Upstream::Interest { room }, 0);
    }

    /// Makes the connection a member of the user's hidden room. The caller has charged for it.
    pub(super) fn join_user(&mut self, index: u32, user: &str) {
        let name = user_room(user);
        if let Some(room_index) = self.rooms.find(&name) {
            self.flush_room(room_index); // what came before it is not for it
        }
        let order = match self.delivery {
            Delivery::Inline => Order::Here,
            Delivery::Bus => Order::Pending,
        };
        let Ok(room_index) = self.rooms.find_or_open(&name, order) else {
            unreachable!("hidden rooms are not held against the limit")
        };
        let user = self.rooms[room_index]
            .members
            .first()
            .and_then(|&other| self.users.identity(other))
            .map_or_else(|| user.into(), |other| UserName::clone(&other.user));
        let members = &mut self.rooms[room_index].members;
        let identity = Identity {
            user,
            room: room_index,
            member_index: u32::try_from(members.len()).expect("bounded by the connections"),
        };
        members.push(index);
        let is_first = members.len() == 1;
        self.users.identities.insert(index, identity);
        self.connections[index].set(flag::USER);
        if is_first && self.rooms[room_index].order == Order::Pending {
            self.send_interest(room_index);
        }
    }

    /// Takes the connection out of its user's room.
    pub(super) fn leave_user(&mut self, index: u32) {
        if !self.connections[index].has(flag::USER) {
            return;
        }
        self.connections[index].clear(flag::USER);
        let Some(identity) = self.users.identities.remove(&index) else {
            unreachable!("the flag says that it has one")
        };
        self.ledger.refund(Identity::bytes(&identity.user));
        self.node.release_user(&identity.user);
        self.leave_room(identity.room, identity.member_index);
    }

    /// Whether some room that the connection is to be in is not followed yet, and it is not let in without it.
    pub(super) fn must_wait(&self, index: u32) -> bool {
        let connection = &self.connections[index];
        let is_pending =
            |room: RoomIndex| self.rooms[room].order == Order::Pending && !self.absent.has(room);
        is_pending(connection.room)
            || is_pending(self.everybody)
            || connection.has(flag::USER)
                && self
                    .users
                    .identity(index)
                    .is_some_and(|identity| is_pending(identity.room))
    }

    /// Connections whose upgrade may wait for the room, everybody's in the order of their places.
    pub(super) fn waiting(&self, room_index: RoomIndex) -> Vec<u32> {
        if room_index != self.everybody {
            return self.rooms[room_index].members.clone();
        }
        let mut waiting: Vec<u32> = self.joining.keys().copied().collect();
        waiting.sort_unstable();
        waiting
    }

    /// Whom the room's messages reach.
    pub(super) fn reached(&self, room_index: RoomIndex) -> Vec<u32> {
        let room = &self.rooms[room_index];
        if room.reach != Reach::Everybody {
            return room.members.clone();
        }
        let open = self.connections.iter();
        open.filter(|(_, connection)| connection.state == State::Open)
            .map(|(index, _)| index)
            .collect()
    }

    /// Ends all connections of a user behind what was sent before.
    pub(super) fn close_user(&mut self, room_index: RoomIndex, closing: &Closing) {
        for index in self.reached(room_index) {
            let connection = &self.connections[index];
            if connection.state != State::Open {
                self.cut(index, CloseReason::Disconnected); // it is being let in, and told nothing yet
                continue;
            }
            if closing.reconnect && !connection.has(flag::NO_NOTICES) {
                let least_ms = self.options.reconnect_after_ms;
                let after_ms = least_ms + self.jittered(least_ms);
                self.queue_gap_notice(index);
                self.queue_control(index, notice_reconnect(after_ms), Reserve::Control);
            }
            self.close_with(index, CloseReason::Disconnected, &closing.frame);
        }
    }

    pub(super) fn user_info(&self, user: &UserName, connection_count_max: usize) -> UserInfo {
        let members = self
            .rooms
            .find(&user_room(user))
            .map_or(&[][..], |index| &self.rooms[index].members);
        let open = members
            .iter()
            .filter(|&&index| self.connections[index].state == State::Open);
        UserInfo {
            user: UserName::clone(user),
            connection_count: u32::try_from(open.clone().count())
                .expect("bounded by the connections"),
            connections: open
                .take(connection_count_max)
                .map(|&index| self.presence_note(index, false))
                .collect(),
        }
    }

    /// Checks what must hold of identities between turns.
    pub(super) fn check_users(&self) {
        for (&index, identity) in &self.users.identities {
            let connection = &self.connections[index];
            assert!(matches!(connection.state, State::Open | State::Joining));
            assert!(connection.has(flag::USER));
            let room = &self.rooms[identity.room];
            assert_eq!(room.reach, Reach::User);
            assert_eq!(room.members[identity.member_index as usize], index);
            assert_eq!(*room.name, *user_room(&identity.user));
        }
        let everybody = &self.rooms[self.everybody];
        assert_eq!(everybody.reach, Reach::Everybody);
        assert!(everybody.members.is_empty());
    }
}
