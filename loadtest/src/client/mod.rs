//! The client's engine: a crew of threads with a ring each, and the behaviour that a scenario gives them.
//!
//! ```text
//! director: Crew ──orders──▶ worker 0: Engine { ring, links, behaviour }
//!             ▲   ──orders──▶ worker 1: …
//!             └── progress ────
//! ```
//!
//! A behaviour is pure: it is handed payloads and time and leaves bytes in a [`Reply`] or in [`Posts`]. Nothing is
//! shared between workers but orders (changed a few times a run) and progress (written once a turn). A generator on
//! another host is seen as one more worker.

mod behaviour;
mod crew;
mod engine;
mod link;
mod local;
mod outcome;
mod reader;
mod tally;

pub use behaviour::{Behaviour, Cause, Ending, Place, Plan, Posts, Reply, Traffic, Verdict};
pub use crew::{Crew, Orders, Seen, Shared, Timetable, Troupe, lock};
pub use link::{Message, append_frame};
pub use local::{Local, Share};
pub use outcome::Outcome;
pub use tally::{Tally, Window};
