//! One core's world: connections, room table, memory ledger, outboxes, heartbeat sweep.
#![forbid(unsafe_code)]

mod options;

pub use options::{HeartbeatMode, Options, RoomRule};
