//! Several generators, on one machine or many, that load a server as one.
//!
//! A coordinator directs the run and generates load, too; others join it without a scenario. Each has some of the run's
//! workers, and so some of the members of every room. All begin at the same moment of the coordinator's clock; what each
//! counted adds up to one report, at the coordinator.
//!
//! Nothing of a scenario lives here: a generator elsewhere is one more troupe to the crew.

mod coordinator;
mod hello;
mod joiner;
mod link;
mod muster;
mod skew;
mod wire;

pub use coordinator::Coordination;
pub use joiner::{Join, join};
pub use muster::{Muster, Seat, own_seat};

#[cfg(test)]
mod tests;
