//! The only home of glommio, io_uring, sockets, the clock, entropy and signals.
//!
//! Rule of this room: it moves bytes, time and wake-ups, and decides nothing about rooms.

mod backplane_core;
pub mod bridge;
mod clock;
pub mod cores;
mod executor;
pub mod fetch;
pub mod host;
pub mod http;
mod listener;
pub mod process;
pub mod redis;
pub mod ring;
mod shard_core;
pub mod terminal;
