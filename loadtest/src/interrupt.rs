//! The wish to end a run early: the first SIGINT or SIGTERM has it end in good order and report what it has found so far;
//! the second ends the process at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::failure::Failure;

/// The exit code of a run that was interrupted: a shell's for SIGINT.
pub const EXIT_CODE: u8 = 130;

/// How often a sleeper looks.
const LOOK: Duration = Duration::from_millis(20);

static WANTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
static WATCHES: AtomicBool = AtomicBool::new(false);

/// From now on, signals are such a wish. Before, they end the process: there is nothing to report.
///
/// # Errors
/// When the kernel does not let the process handle them.
pub fn watch() -> Result<(), Failure> {
    if WATCHES.swap(true, Ordering::Relaxed) {
        return Ok(()); // a second watch would take the first signal for the second
    }
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag down and only raises it.
        flag::register_conditional_shutdown(signal, i32::from(EXIT_CODE), Arc::clone(&WANTED))
            .and_then(|_| flag::register(signal, Arc::clone(&WANTED)))
            .map_err(|error| Failure::Usage(format!("cannot watch for signals: {error}")))?;
    }
    Ok(())
}

/// Whether somebody wants the run to end.
pub fn is_wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

/// Sleeps, unless somebody wants the run to end.
pub fn sleep(duration: Duration) {
    let until = Instant::now() + duration;
    while !is_wanted() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(LOOK));
    }
}
