//! The client's engine: a crew of threads with a ring each, and the behaviour that a scenario gives them.
//!
//! ```text
//! main: Crew ──orders──▶ worker 0: Engine { ring, links, behaviour }
//!         ▲   ──orders──▶ worker 1: …
//!         └──progress────
//! ```
//!
//! A behaviour is pure: it is handed payloads and time and leaves bytes in a [`Reply`] or in [`Posts`]. Nothing is
//! shared between workers but orders (changed a few times a run) and progress (written once a turn).

mod crew;
mod engine;
mod link;
mod outcome;

pub use crew::{Crew, Timetable};
pub use engine::{Behaviour, Ending, Plan, Posts, Reply};
pub use link::{Message, append_frame};
