//! The only home of glommio, io_uring, sockets, the clock, entropy and signals.
//!
//! Rule of this room: it moves bytes, time and wake-ups, and decides nothing about rooms.

pub mod http;
pub mod process;
pub mod ring;
