//! Dialects: what frames mean to a client, and what the server says of its own accord.
//!
//! Rule of this room: a dialect turns values into encoded frames and back; it knows no connection and no room.

pub mod raw;
