//! What travels between cores. A shard sends [`Upstream`], the backplane core answers with [`Downstream`].
//!
//! ```text
//! shard --Upstream--> backplane core --Downstream--> every shard with members of that room
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::metrics::ShardSnapshot;
use crate::protocol::CloseReason;
use crate::time::Tick;

/// A core of this process: a shard, or the backplane ([`crate::limits::CORE_BACKPLANE`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CoreId(pub u8);

/// A connection of this node: shard (8 bits), generation (24 bits), slab index (32 bits).
///
/// Written and read as 16 hexadecimal digits. Never used twice while anybody could still hold it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

impl ConnectionId {
    /// Puts an id together; `generation` keeps its low 24 bits.
    #[must_use]
    pub const fn new(core: CoreId, generation: u32, index: u32) -> Self {
        Self((core.0 as u64) << 56 | ((generation & 0x00ff_ffff) as u64) << 32 | index as u64)
    }

    /// The shard that owns the connection.
    #[must_use]
    pub const fn core(self) -> CoreId {
        CoreId((self.0 >> 56) as u8)
    }

    /// How often the slab slot had been used before, modulo 2^24.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // masked to 24 bits
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32 & 0x00ff_ffff
    }

    /// The slab slot.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // the low half is the index
    pub const fn index(self) -> u32 {
        self.0 as u32
    }

    /// Reads 16 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        u64::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A room's name: UTF-8, 1 to [`crate::limits::ROOM_NAME_BYTES_MAX`] bytes, no control characters.
pub type RoomName = Arc<str>;

/// A user's id: UTF-8, 1 to [`crate::limits::USER_ID_BYTES_MAX`] bytes, no control characters.
pub type UserName = Arc<str>;

/// What a message is on the wire (RFC 6455 §5.6); it is delivered as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// UTF-8 text.
    Text,
    /// Any bytes.
    Binary,
    /// A close frame (RFC 6455 §5.5.1), in a user's room only: ends every connection of the user behind what was
    /// sent before it.
    Close {
        /// The notice that the client is to come back goes first.
        reconnect: bool,
    },
}
const _: () = assert!(size_of::<MessageKind>() == 1);

/// Messages of one room in their order, already encoded as unmasked server frames, one behind the other.
///
/// Shared by every shard that delivers it; a receiving shard copies `bytes` once and shares that copy among its
/// members. Invariant: the messages' spans are adjacent, in order, and cover `bytes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The frames.
    pub bytes: Vec<u8>,
    /// Where each message's frame ends, and who sent it.
    pub messages: Vec<BatchMessage>,
    /// When the first of them was taken from its publisher.
    pub published: Tick,
}

impl Batch {
    /// What it weighs in a lane and on a shard: its frames, and the entry of each message.
    #[must_use]
    pub const fn weight_bytes(&self) -> usize {
        self.bytes.len() + self.messages.len() * BatchMessage::BYTES
    }
}

/// One message of a [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchMessage {
    /// Offset behind the last byte of this message's frame in [`Batch::bytes`].
    pub end: u32,
    /// Bytes of frame header before the payload.
    pub header_bytes: u8,
    /// Text, binary, or a close.
    pub kind: MessageKind,
    /// The publisher; `None` when it came from the admin API.
    pub sender: Option<ConnectionId>,
}

impl BatchMessage {
    /// What the entry of a message weighs beside its frame.
    pub const BYTES: usize = size_of::<Self>();
}

/// From a shard to the backplane core.
#[derive(Debug)]
pub enum Upstream {
    /// The shard has its first member of `room`. Until the answer nobody is told that they are in, and deliveries of
    /// the room are ignored.
    ///
    /// Every interest is answered by exactly one [`Downstream::Joined`], in order, also when its `Disinterest` is
    /// sent before the answer has come: a shard that gives up early skips that answer, or it waits for the answer
    /// before it sends `Disinterest`. Only the answer to its latest interest counts.
    Interest {
        /// The room.
        room: RoomName,
    },
    /// The shard's last member of `room` has left. Ends a lease too; everything that the shard took from the room's
    /// members has been sent up before this.
    Disinterest {
        /// The room.
        room: RoomName,
    },
    /// Answer to a [`Downstream::LeaseRevoke`] that found the shard holding the lease: everything the shard ordered
    /// itself has been delivered; from here on it publishes through the bus. Without the lease there is no answer.
    LeaseReturned {
        /// The room.
        room: RoomName,
    },
    /// Messages for everybody in `room`, the sending shard included.
    Publish {
        /// The room.
        room: RoomName,
        /// The messages.
        batch: Arc<Batch>,
    },
    /// Answer to [`Downstream::Probe`].
    ProbeReply {
        /// The probe's number.
        sequence: u64,
    },
    /// News of connections, for the registry: at most [`crate::limits::PRESENCE_NOTE_COUNT_MAX`]. Some may be lost when
    /// the lane is full for long; each connection is told of again once a refresh interval.
    Presence {
        /// The news, in the order in which they happened.
        notes: Vec<PresenceNote>,
    },
    /// Answer to [`Downstream::Ask`].
    Answer {
        /// The question's number.
        request: u64,
        /// The answer.
        reply: Reply,
    },
    /// The shard has no connection left and accepts none.
    Drained,
}

/// What the registry is told of one connection: it is here, or it has gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceNote {
    /// The connection.
    pub id: ConnectionId,
    /// Whose it is, if it is a user's.
    pub user: Option<UserName>,
    /// The room it is in, or was in.
    pub room: RoomName,
    /// How long ago it was opened.
    pub since_ms_ago: u64,
    /// How long ago bytes last came from it.
    pub heard_ms_ago: u64,
    /// It has gone: the last note of this id.
    pub is_gone: bool,
}

/// From the backplane core to a shard.
#[derive(Debug)]
pub enum Downstream {
    /// The shard's interest in `room` holds from this point of the lane on.
    Joined {
        /// The room.
        room: RoomName,
        /// The shard is the only one with members: it may order the room's messages itself.
        leased: bool,
    },
    /// Another shard wants the room: deliver what is ordered, answer [`Upstream::LeaseReturned`], publish through the
    /// bus.
    ///
    /// What is ordered is delivered before anything behind this in the lane is: a `Delivery` of the room may follow at
    /// once. A shard that does not hold the lease (its `Disinterest` and this have crossed) ignores it: an answer
    /// would be taken for the end of its next lease.
    LeaseRevoke {
        /// The room.
        room: RoomName,
    },
    /// Messages of `room` in the one order.
    Delivery {
        /// The room.
        room: RoomName,
        /// The messages.
        batch: Arc<Batch>,
    },
    /// A publish that this shard is to order (it holds the lease): treat it as if a member of its own had sent it.
    /// Never sent behind a `LeaseRevoke`. A shard without the lease has left the room since, and drops it: nobody was
    /// in the room when it was published.
    Publish {
        /// The room.
        room: RoomName,
        /// The messages.
        batch: Arc<Batch>,
    },
    /// The answer to an interest that does not hold: the room cannot be followed now. Whoever waits for it is refused,
    /// and with the last of them the shard's [`Upstream::Disinterest`] goes up. Who waits for a hidden room is let in
    /// without it, and after a while it goes up with the next [`Upstream::Interest`] behind it.
    JoinRefused {
        /// The room.
        room: RoomName,
    },
    /// Messages of `room` were lost before this point of the lane: its members are to be told.
    Gap {
        /// The room.
        room: RoomName,
        /// How many; `None`: nobody knows, and it may be none.
        missed: Option<u64>,
    },
    /// Messages of this shard that other nodes will not see: their senders are to be told.
    Refused {
        /// The messages.
        batch: Arc<Batch>,
        /// Members on this node got them all the same.
        local: bool,
    },
    /// Tell of every connection again with [`Upstream::Presence`], spread over the time given. A shard that tells of
    /// none ignores it.
    Announce {
        /// Milliseconds until the last of them is told of.
        within_ms: u32,
    },
    /// Answer with [`Upstream::ProbeReply`] as soon as it is read.
    Probe {
        /// The probe's number.
        sequence: u64,
    },
    /// A question of the admin API; answered by [`Upstream::Answer`].
    Ask {
        /// The question's number.
        request: u64,
        /// The question.
        question: Question,
    },
    /// A phase of stopping.
    Drain(DrainOrder),
}

/// What a shard is told while the node stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainOrder {
    /// Readiness is off: `GET /health` answers 503 from now on.
    NotReady,
    /// Stop accepting; serve what is in the accept queue; then tell and close every connection, spread evenly over
    /// `window_ms`. A later order of this kind replaces the window of an earlier one.
    Close {
        /// Milliseconds over which the closes are spread.
        window_ms: u32,
        /// Whether clients are told to reconnect before the close frame.
        notice: bool,
    },
    /// The deadline: cut whatever is left.
    Cut,
}

/// What the admin core may ask a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// All counters, gauges and histograms.
    Stats,
    /// The rooms with members on this shard whose name begins with `prefix`: the first `count_max` in byte order of
    /// their names, so that the first of all shards together can be told from the answers.
    Rooms {
        /// The beginning of the name.
        prefix: String,
        /// Rooms in the answer at most.
        count_max: u32,
    },
    /// One room.
    Room {
        /// The room.
        room: RoomName,
        /// Member ids in the answer at most.
        member_count_max: u32,
    },
    /// The connections of users.
    Users {
        /// Whose.
        users: Vec<UserName>,
        /// Connections of each in the answer at most.
        connection_count_max: u32,
    },
    /// One connection.
    Connection {
        /// Its id.
        id: ConnectionId,
    },
    /// Close one connection.
    Disconnect {
        /// Its id.
        id: ConnectionId,
    },
}

/// A shard's answer.
#[derive(Debug)]
pub enum Reply {
    /// To [`Question::Stats`].
    Stats(Box<ShardSnapshot>),
    /// To [`Question::Rooms`].
    Rooms(Vec<RoomInfo>),
    /// To [`Question::Room`]; `None` when this shard has no member of it.
    Room(Option<RoomInfo>),
    /// To [`Question::Users`]: in the order of the question, also of who has no connection on this shard.
    Users(Vec<UserInfo>),
    /// To [`Question::Connection`].
    Connection(Option<Box<ConnectionInfo>>),
    /// To [`Question::Disconnect`]: whether there was such a connection.
    Disconnected(bool),
}

/// A room as one shard sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomInfo {
    /// The name.
    pub room: RoomName,
    /// Members on this shard.
    pub member_count: u32,
    /// Messages delivered into the room on this shard since its first member came.
    pub message_count: u64,
    /// Ids of members, as many as were asked for.
    pub members: Vec<ConnectionId>,
}

/// A user as one shard sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserInfo {
    /// Whose connections they are.
    pub user: UserName,
    /// Connections on this shard.
    pub connection_count: u32,
    /// Some of them, as many as were asked for.
    pub connections: Vec<PresenceNote>,
}

/// A connection as its shard sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Its id.
    pub id: ConnectionId,
    /// The other end.
    pub peer: SocketAddr,
    /// The room it is in, once upgraded.
    pub room: Option<RoomName>,
    /// Whose it is, once upgraded, if it is a user's.
    pub user: Option<UserName>,
    /// `handshake`, `joining`, `open` or `closing`.
    pub state: &'static str,
    /// When it was accepted.
    pub opened_ms_ago: u64,
    /// When bytes last came from it.
    pub heard_ms_ago: u64,
    /// Bytes that the ledger charges to it.
    pub charged_bytes: u32,
    /// Bytes of output that wait for its socket.
    pub queued_bytes: u32,
    /// Messages it lost to a slow-consumer policy and has not been told of yet.
    pub missed_untold: u32,
    /// Why it is being closed, when it is.
    pub closing: Option<CloseReason>,
}
