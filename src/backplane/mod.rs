//! The backplane core's part between the shards: who has members of which room, and every publish handed to exactly
//! those, in one order.
//!
//! Rule of this room: it never names `shard`, and it knows no socket and no message's content: an envelope goes in,
//! actions come out. It holds at most one envelope a lane, drops none, and answers every interest exactly once.
//!
//! # One order
//! The order of a room's messages is the order in which this core handles its publishes, unless the room is leased:
//! then it is the order in which the one shard with members takes them. A lease ends before anybody else is told that
//! they are in, so no message is ever ordered by two.
//!
//! ```text
//!  A: Interest ──▶ Joined{leased}                    A orders the room itself
//!  B: Interest ──▶ LeaseRevoke to A                  B waits; publishes from outside are delivered to A from here on
//!                  A: LeaseReturned (or Disinterest) ──▶ Joined{leased: false} to B: the bus orders
//! ```
//!
//! With Redis there are no leases: every publish goes through it and comes back, and the order is Redis' ([`remote`]).
//!
//! # Why nothing waits for ever
//! An envelope is handled when every lane that it would write to has room, else its own lane *stalls* with it and the
//! other lanes go on. Stalled lanes wait only for room in lanes to shards, and a shard reads its lane whatever the
//! state of its own way up, so that room comes. It comes to everybody in turn: a stalled envelope keeps its claim on
//! every lane it ever found full, younger envelopes leave claimed lanes alone, and the oldest heeds no claim; so the
//! oldest goes as soon as its lanes have drained, and each becomes the oldest. A lane that was never full for anybody
//! is never claimed, so it does not slow down.
#![forbid(unsafe_code)]

mod cluster;
mod delivery;
mod interest;
mod probe;
pub mod registry;
pub mod remote;
pub(crate) mod resp;
mod shard_set;
mod stall;
pub(crate) mod trial;
mod turn;

#[cfg(test)]
mod crossings;

pub use delivery::{Action, Backplane, LaneRoom, NotPublished, Offered, Options};
pub use shard_set::ShardSet;
pub use turn::{Ports, TurnReport, perform_actions, turn};
