//! A connection's slab slot, and the slab: memory is touched only as it is used, and never moved.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::inbox::Inbox;
use super::outbox::Outbox;
use super::rate::RateState;
use super::room::RoomIndex;
use crate::bus::{ConnectionId, CoreId};
use crate::limits::CONNECTION_IDLE_BYTES_MAX;
use crate::protocol::CloseReason;
use crate::time::Tick;

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Nobody's slot.
    Vacant,
    /// Accepted; its request is not complete.
    Handshake,
    /// Its request was good; the answer waits until the room's interest holds.
    Joining,
    /// A member of its room.
    Open,
    /// Its last bytes (close frame, HTTP answer) are queued or sent; what it sends is thrown away.
    Closing,
    /// Given to the engine to be closed; nothing is done for it any more.
    Dead,
}

impl State {
    /// The name in the admin API.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Vacant => "vacant",
            Self::Handshake => "handshake",
            Self::Joining => "joining",
            Self::Open => "open",
            Self::Closing | Self::Dead => "closing",
        }
    }
}

/// Bits of [`Connection::flags`].
pub(super) mod flag {
    /// A send is in flight.
    pub const SENDING: u32 = 1 << 0;
    /// It is in the turn's list of connections with something to send.
    pub const DIRTY: u32 = 1 << 1;
    /// What it publishes finds no room, so that nothing of it is decoded.
    pub const PAUSED: u32 = 1 << 2;
    /// A heartbeat ping is unanswered.
    pub const AWAITING_PONG: u32 = 1 << 3;
    /// `echo=0`: it does not get what it publishes.
    pub const NO_ECHO: u32 = 1 << 4;
    /// `notices=0`: it is told nothing.
    pub const NO_NOTICES: u32 = 1 << 5;
    /// The peer's stream has ended.
    pub const PEER_ENDED: u32 = 1 << 6;
    /// Our side of the stream has been ended.
    pub const WRITE_ENDED: u32 = 1 << 7;
    /// It counts in the node's connections.
    pub const ADMITTED: u32 = 1 << 8;
    /// It counts in the node's sockets of its address.
    pub const ADDRESS_COUNTED: u32 = 1 << 9;
    /// The engine was told not to read it.
    pub const READ_PAUSED: u32 = 1 << 10;
    /// A health check was answered, and another request may follow.
    pub const HEALTH_ANSWERED: u32 = 1 << 11;
    /// Its address had as many as it may when it was accepted: it reads so, unless one has gone by then.
    pub const ADDRESS_FULL: u32 = 1 << 12;

    /// Its other end is a trusted proxy.
    pub const FROM_PROXY: u32 = 1 << 13;
    /// Its first bytes may be a PROXY header.
    pub const PROXY_AWAITED: u32 = 1 << 14;
    /// It is a user's: [`Users`](crate::shard::users::Users) has its identity.
    pub const USER: u32 = 1 << 15;
    /// The last that is queued for it, control apart, is the notice that messages may be missing: it has not left yet.
    pub const GAP_QUEUED: u32 = 1 << 16;

    /// Any of these, or an outbox, makes a delivery take the slow way.
    pub const SLOW: u32 = SENDING | DIRTY | NO_ECHO;
}

/// One connection: 88 bytes, 104 with its membership and the engine's table entry. What it holds only now and then is
/// behind the three boxes.
#[derive(Debug)]
pub(super) struct Connection {
    pub state: State,
    /// Why it is being closed; holds from `Closing` on.
    pub reason: CloseReason,
    pub flags: u32,
    /// Output in flight and queued, with what the queue itself takes.
    pub queued_bytes: u32,
    /// Stamp of the last progress of a send ([`Tick::ms32`], as all stamps).
    pub progress_ms: u32,
    /// Stamp of the last bytes from the peer.
    pub heard_ms: u32,
    /// Stamp of the unanswered ping; of the beginning of `Closing` from then on.
    pub mark_ms: u32,
    /// Stamp of the last message.
    pub message_ms: u32,
    /// Stamp of the accept.
    pub opened_ms: u32,
    pub room: RoomIndex,
    /// Its place in the room's members.
    pub member_index: u32,
    pub generation: u32,
    pub outbox: Option<Box<Outbox>>,
    pub inbox: Option<Box<Inbox>>,
    pub rate: Option<Box<RateState>>,
    peer_address: [u8; 16],
    peer_port: u16,
}

/// Bytes that an idle connection in one room keeps. Each line names the holder.
pub(super) const CONNECTION_IDLE_BYTES: usize = size_of::<Connection>() // slab slot, its one membership inline
    + 2 * size_of::<u32>() // Room.members, with the slack of a growing vector
    + 8; // the engine's socket table
const _: () = assert!(CONNECTION_IDLE_BYTES <= CONNECTION_IDLE_BYTES_MAX);
const _: () = assert!(size_of::<Connection>() <= 88 && CONNECTION_IDLE_BYTES <= 104);

impl Connection {
    const fn vacant() -> Self {
        Self {
            state: State::Vacant,
            reason: CloseReason::PeerGone,
            flags: 0,
            queued_bytes: 0,
            progress_ms: 0,
            heard_ms: 0,
            mark_ms: 0,
            message_ms: 0,
            opened_ms: 0,
            room: RoomIndex::NONE,
            member_index: 0,
            generation: 0,
            outbox: None,
            inbox: None,
            rate: None,
            peer_address: [0; 16],
            peer_port: 0,
        }
    }

    pub(super) const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    pub(super) const fn set(&mut self, flag: u32) {
        self.flags |= flag;
    }

    pub(super) const fn clear(&mut self, flag: u32) {
        self.flags &= !flag;
    }

    /// Sets `flag`; whether it was not set before.
    pub(super) const fn set_first(&mut self, flag: u32) -> bool {
        let first = self.flags & flag == 0;
        self.flags |= flag;
        first
    }

    pub(super) fn set_peer(&mut self, peer: SocketAddr) {
        self.peer_address = match peer.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        self.peer_port = peer.port();
    }

    /// The client, as far as it is known: the other end of the socket, or whom a trusted proxy there speaks for.
    pub(super) fn peer(&self) -> SocketAddr {
        let address = Ipv6Addr::from(self.peer_address);
        SocketAddr::new(
            address
                .to_ipv4_mapped()
                .map_or(IpAddr::V6(address), IpAddr::V4),
            self.peer_port,
        )
    }

    /// Bytes of memory that only this connection holds: what the ledger has charged for it.
    pub(super) fn charged_bytes(&self) -> u32 {
        let idle = u32::try_from(CONNECTION_IDLE_BYTES).expect("asserted to be small");
        idle + self.inbox.as_ref().map_or(0, |inbox| inbox.charged_bytes())
            + self
                .outbox
                .as_ref()
                .map_or(0, |outbox| outbox.charged_bytes())
            + self.rate.as_ref().map_or(0, |_| RateState::BYTES)
    }
}

const CHUNK_LENGTH: usize = 64;

/// The slab. A connection's index is the token that the engine gave its socket.
#[derive(Debug, Default)]
pub(super) struct Connections {
    chunks: Vec<Box<[Connection]>>,
    /// Slots that are not vacant.
    count: u32,
}

impl Connections {
    /// Takes the slot `index` for a new connection.
    ///
    /// # Panics
    /// When the slot is taken: the engine never hands a token out twice.
    pub(super) fn open(&mut self, index: u32, peer: SocketAddr, now: Tick) -> &mut Connection {
        while self.length() <= index {
            self.chunks
                .push((0..CHUNK_LENGTH).map(|_| Connection::vacant()).collect());
        }
        self.count += 1;
        let now_ms = now.ms32();
        let connection = &mut self[index];
        assert!(
            connection.state == State::Vacant,
            "the engine handed out a token that is in use"
        );
        *connection = Connection {
            state: State::Handshake,
            opened_ms: now_ms,
            heard_ms: now_ms,
            message_ms: now_ms,
            generation: connection.generation,
            ..Connection::vacant()
        };
        connection.set_peer(peer);
        connection
    }

    /// Gives the slot back. Its next connection has another id.
    pub(super) fn vacate(&mut self, index: u32) {
        self.count -= 1;
        let connection = &mut self[index];
        *connection = Connection {
            generation: connection.generation.wrapping_add(1),
            ..Connection::vacant()
        };
    }

    /// Slots that are not vacant.
    pub(super) const fn count(&self) -> u32 {
        self.count
    }

    /// Slots there are; every index in use is below it.
    pub(super) fn length(&self) -> u32 {
        u32::try_from(self.chunks.len() * CHUNK_LENGTH)
            .expect("bounded by SHARD_CONNECTION_COUNT_MAX")
    }

    /// The id of the connection in the slot `index`.
    pub(super) fn id(&self, core: CoreId, index: u32) -> ConnectionId {
        ConnectionId::new(core, self[index].generation, index)
    }

    /// The index of the connection `id`, if it is still there.
    pub(super) fn find(&self, core: CoreId, id: ConnectionId) -> Option<u32> {
        let index = id.index();
        (index < self.length() && self[index].state != State::Vacant && self.id(core, index) == id)
            .then_some(index)
    }

    /// Every connection with its index.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Connection)> {
        (0..)
            .zip(self.chunks.iter().flat_map(|chunk| chunk.iter()))
            .filter(|(_, c)| c.state != State::Vacant)
    }
}

impl std::ops::Index<u32> for Connections {
    type Output = Connection;
    fn index(&self, index: u32) -> &Connection {
        &self.chunks[index as usize / CHUNK_LENGTH][index as usize % CHUNK_LENGTH]
    }
}

impl std::ops::IndexMut<u32> for Connections {
    fn index_mut(&mut self, index: u32) -> &mut Connection {
        &mut self.chunks[index as usize / CHUNK_LENGTH][index as usize % CHUNK_LENGTH]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_not_used_twice_and_a_stale_one_finds_nothing() {
        let mut connections = Connections::default();
        let peer = "[2001:db8::1]:443".parse().unwrap();
        connections.open(70, peer, Tick(0));
        assert_eq!(connections[70].peer(), peer);
        let id = connections.id(CoreId(3), 70);
        assert_eq!(connections.find(CoreId(3), id), Some(70));
        connections.vacate(70);
        assert_eq!(connections.find(CoreId(3), id), None);
        connections.open(70, "10.1.2.3:5".parse().unwrap(), Tick(0));
        assert_eq!(connections[70].peer().to_string(), "10.1.2.3:5");
        assert_ne!(connections.id(CoreId(3), 70), id);
        assert_eq!(connections.find(CoreId(3), id), None);
        assert_eq!(connections.find(CoreId(3), ConnectionId(u64::MAX)), None);
        assert_eq!(connections.count(), 1);
    }
}
