//! The shard through its contract: what happens goes in, what the engine is to do comes out.

mod arrival;
mod budgets;
mod bus;
mod drain;
mod frames;
mod life;
mod limits;
mod loss;
mod policies;
mod presence;
mod rooms;
mod time;
mod users;
mod world;
