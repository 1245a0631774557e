//! Envelopes between the shards and the backplane core, and the bounded lanes that carry them.
//!
//! Rule of this room: everything two cores share travels in an envelope, by value or behind an `Arc` that nobody
//! writes to any more. A full lane refuses; it never grows and never drops. Waking a sleeping core is runtime's job.
#![forbid(unsafe_code)]

mod cluster;
mod envelope;
mod hidden;
mod lane;

pub use cluster::{ClusterQuestion, ClusterReply, NodeSeen, OnlineUser, UserConnection};
pub use envelope::{
    Batch, BatchMessage, ConnectionId, ConnectionInfo, CoreId, Downstream, DrainOrder, MessageKind,
    PresenceNote, Question, Reply, RoomInfo, RoomName, Upstream, UserInfo, UserName,
};
pub use hidden::{EVERYBODY, Hidden, hidden, is_user_name, user_room};
pub use lane::{Bell, LaneFull, LaneReader, LaneWriter, lane};
