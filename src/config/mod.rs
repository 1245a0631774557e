//! Text, environment and flags become each room's `Options`; every mistake is reported at once.
//!
//! Rule of this room: it reads no file, no environment and no machine; all of them are handed in. What it gives back
//! is complete and checked, so that no other room doubts its options.
#![forbid(unsafe_code)]

pub mod capacity;
mod contradictions;
mod definitions;
mod draft;
mod effective;
mod file;
mod group;
mod load;
mod mistake;
mod redis_tls;
mod rooms;
mod settings;
mod value;

#[cfg(test)]
mod tests;

pub use definitions::{DEFINITIONS, Definition, VARIABLE_PREFIX, find};
pub use effective::{Effective, Entry, reference_markdown};
pub use group::Group;
pub use load::{ServeArgs, load};
pub use mistake::{Mistake, Source};
pub use redis_tls::{PemFile, RedisTls};
pub use rooms::ROOM_RULE_COUNT_MAX;
pub use settings::{Keepalive, Log, LogFormat, Machine, Settings, SocketOptions};
pub(crate) use value::human_number;
pub use value::{Kind, Range, Unit, Value};
