//! Whole nodes under faults: one seed draws the world, the faults and the schedule; one thread, virtual time.
//!
//! First safety (faults on: nothing is delivered wrongly, no budget is crossed, the ledger balances at every step),
//! then liveness (faults off: everything comes to rest, and every member has everything or was told of the gap).
//!
//! A failure prints its seed and step; `THRONG_SIM_SEED=… cargo test --test sim` replays it, `THRONG_SIM_RUNS=…` looks
//! at that many seeds instead of the usual few, from `THRONG_SIM_FIRST` on, and `THRONG_SIM_REDIS_RUNS=…` at another number of
//! those around a Redis, which take longer.

mod client;
mod fleet;
mod lane;
mod log;
mod nodes;
mod oracle;
mod pipes;
mod plan;
mod random;
mod redis;
mod redis_cluster;
mod redis_server;
mod redis_streams;
mod run;
mod socket;
mod topic;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use run::Run;

/// Seeds that every test run looks at.
const RUNS: u64 = 150;

/// Seeds of nodes around a Redis.
const REDIS_RUNS: u64 = 30;

/// Seeds of nodes around several of them.
const FLEET_RUNS: u64 = 30;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")),
    )
}

/// Seeds that worlds around a Redis look at.
fn redis_runs(usual: u64) -> u64 {
    let runs = number("THRONG_SIM_REDIS_RUNS").or_else(|| number("THRONG_SIM_RUNS"));
    runs.unwrap_or(usual)
}

/// Has `all` of a seed's world happen. A failure says where it was (`place`), and which `tests` show it again.
fn to_its_end<W>(
    seed: u64,
    tests: &str,
    mut world: W,
    all: fn(&mut W),
    place: fn(&W) -> String,
) -> W {
    match catch_unwind(AssertUnwindSafe(|| all(&mut world))) {
        Ok(()) => world,
        Err(panic) => {
            eprintln!(
                "seed {seed} failed in {}: THRONG_SIM_SEED={seed} cargo test --test sim {tests}",
                place(&world)
            );
            resume_unwind(panic)
        }
    }
}

/// Runs one seed to its end and gives its trace.
fn run(seed: u64) -> u64 {
    let place = |run: &Run| format!("step {} ({})", run.step, run.phase);
    to_its_end(seed, "nodes_keep", Run::new(seed), Run::all, place).trace()
}

#[test]
fn nodes_keep_their_promises_under_faults() {
    if let Some(seed) = number("THRONG_SIM_SEED") {
        run(seed);
        return;
    }
    let first = number("THRONG_SIM_FIRST").unwrap_or(0);
    for seed in first..first + number("THRONG_SIM_RUNS").unwrap_or(RUNS) {
        run(seed);
    }
}

/// The same for several nodes around a Redis.
fn run_redis(seed: u64) -> u64 {
    let place = |world: &redis::World| format!("step {}", world.step);
    let world = redis::World::new(seed);
    to_its_end(seed, "redis", world, redis::World::all, place).trace()
}

#[test]
fn nodes_on_a_failing_redis_lose_nothing_in_silence() {
    if let Some(seed) = number("THRONG_SIM_SEED") {
        run_redis(seed);
        return;
    }
    let first = number("THRONG_SIM_FIRST").unwrap_or(0);
    for seed in first..first + redis_runs(REDIS_RUNS) {
        run_redis(seed);
    }
    assert_eq!(run_redis(first), run_redis(first), "the same seed");
}

/// The same for several nodes around several servers. How often rooms had to move.
fn run_fleet(seed: u64) -> (u64, u64) {
    let place = |world: &fleet::World| format!("step {}", world.step);
    let world = fleet::World::new(seed);
    let world = to_its_end(seed, "fleet", world, fleet::World::all, place);
    (world.trace(), world.moves)
}

#[test]
fn a_fleet_of_servers_that_fail_and_move_loses_nothing_in_silence() {
    if let Some(seed) = number("THRONG_SIM_SEED") {
        run_fleet(seed);
        return;
    }
    let first = number("THRONG_SIM_FIRST").unwrap_or(0);
    let mut moves = 0;
    for seed in first..first + redis_runs(FLEET_RUNS) {
        moves += run_fleet(seed).1;
    }
    assert!(moves > 0, "something has moved");
    assert_eq!(run_fleet(first), run_fleet(first), "the same seed");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3, 5, 8] {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1), run(2), "a trace tells runs apart");
}
