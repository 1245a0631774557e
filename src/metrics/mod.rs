//! Names, per-core counters, histograms, exposition text.
//!
//! Rule of this room: counters are plain integers that one core owns; they are copied into a snapshot when somebody
//! asks, and summed by the reader. Nothing here is atomic, and nothing here is on a message's way but an addition.
#![forbid(unsafe_code)]

mod backplane;
pub mod exposition;
mod histogram;
pub mod names;
mod node;
mod process;
mod redis;
mod registry;
mod shard;

pub use backplane::BackplaneSnapshot;
pub use histogram::Log2Histogram;
pub use node::{Misfits, NodeSnapshot, ShardLanes, ShardReport};
pub use process::{ProcessSnapshot, TcpSnapshot};
pub use redis::{RedisLinkSnapshot, RedisServerSnapshot, RedisSnapshot};
pub use registry::RegistrySnapshot;
pub use shard::{
    ClientAddress, DropPolicy, RefusalKind, RingCounters, ShardCounters, ShardGauges, ShardSnapshot,
};
