//! Throng: a WebSocket room server for bare metal. This comment is the map of the house.
//!
//! ```text
//! main -> cli -> config, runtime      runtime -> shard, backplane, admin, drain
//! shard -> protocol, bus              backplane -> bus         admin -> metrics, drain, bus
//! config -> the rooms' Options        every room -> limits, time, metrics
//! ```
//!
//! - [`cli`]: what a person types: `serve`, `check`, `config`, `top`.
//! - [`config`]: text, environment and flags become each room's `Options`; every mistake is reported at once.
//! - [`limits`]: every compile-time bound, and the assertions that tie the bounds together.
//! - [`time`]: [`time::Tick`] and deadline arithmetic; reads no clock.
//! - [`protocol`]: bytes to frames to messages; the handshake; close verdicts; dialects.
//! - [`bus`]: envelopes and bounded lanes between cores.
//! - [`shard`]: one core's world: connections, room table, memory ledger, outboxes, heartbeat sweep.
//! - [`backplane`]: the interest table and local delivery between shards.
//! - [`admin`]: request to answer: health, metrics, API. The router is pure; `runtime::http` carries it.
//! - [`metrics`]: names, per-core counters, histograms, exposition text.
//! - [`drain`]: the phases of stopping and their deadlines.
//! - [`runtime`]: the only home of glommio, io_uring, sockets, clock, entropy and signals.
//!
//! What is deliberately absent: `shard` and `backplane` never name each other; only `runtime` names glommio,
//! io-uring, a socket, a clock or a random source; no pure room has an `async fn`; no tungstenite type leaves
//! `protocol`; `unsafe` lives in `runtime::ring` and its bridge, nowhere else.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod admin;
pub mod backplane;
pub mod bus;
pub mod cli;
pub mod config;
pub mod drain;
pub mod limits;
pub mod metrics;
pub mod protocol;
pub mod runtime;
pub mod shard;
pub mod time;
