//! The cores of the process: not there yet.

use crate::config::Settings;

/// Runs the server until it is stopped. Returns the process's exit code.
///
/// # Errors
/// In words: why it could not start.
pub fn serve(settings: Settings) -> Result<u8, String> {
    Err(format!("node {} has no cores yet", settings.node_id))
}
