//! Envelopes between the shards and the backplane core, and the bounded lanes that carry them.
//!
//! Rule of this room: everything two cores share travels in an envelope, by value or behind an `Arc` that nobody
//! writes to any more. A full lane refuses; it never grows and never drops. Waking a sleeping core is runtime's job.
#![forbid(unsafe_code)]

mod envelope;
mod lane;

pub use envelope::{
    Batch, BatchMessage, ConnectionId, ConnectionInfo, CoreId, Downstream, DrainOrder, MessageKind,
    Question, Reply, RoomInfo, RoomName, Upstream,
};
pub use lane::{Bell, LaneFull, LaneReader, LaneWriter, lane};
