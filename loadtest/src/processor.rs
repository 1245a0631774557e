//! Which processor a thread runs on.

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::failure::Failure;

/// Keeps the calling thread, and those it starts from now on, on one processor.
pub fn pin(core: usize) -> Result<(), Failure> {
    if core >= CpuSet::MAX_CPU {
        return Err(Failure::Usage(format!("there is no processor {core}")));
    }
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(|error| {
        Failure::Usage(format!(
            "cannot run on processor {core}: {error} (see `nproc`)"
        ))
    })
}
