//! Reads what the kernel says of this process; [`crate::metrics::ProcessSnapshot`] understands it.
#![forbid(unsafe_code)]

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::metrics::{ProcessSnapshot, TcpSnapshot};

/// Reads the process's figures. Each read opens four files under `/proc` and takes some tens of microseconds.
#[derive(Debug, Clone, Copy)]
pub struct ProcessReader {
    page_bytes: u64,
    ticks_per_s: u64,
    started_unix_ms: u64,
}

impl ProcessReader {
    /// To be made when the process starts: that is the start time it tells.
    #[must_use]
    pub fn new() -> Self {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            page_bytes: rustix::param::page_size() as u64,
            ticks_per_s: rustix::param::clock_ticks_per_second(),
            started_unix_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(0),
        }
    }

    /// The figures now. What cannot be read is zero.
    #[must_use]
    pub fn read(&self) -> ProcessSnapshot {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mut process = ProcessSnapshot {
            open_files: open_files(),
            open_files_max: rustix::process::getrlimit(rustix::process::Resource::Nofile)
                .current
                .unwrap_or(0),
            started_unix_ms: self.started_unix_ms,
            tcp: TcpSnapshot::parse(&text("/proc/net/sockstat"), self.page_bytes),
            ..ProcessSnapshot::default()
        };
        process.read_status(&text("/proc/self/status"));
        process.read_stat(&text("/proc/self/stat"), self.ticks_per_s);
        process
    }
}

impl Default for ProcessReader {
    fn default() -> Self {
        Self::new()
    }
}

/// The size of `/proc/self/fd` is the count since Linux 6.2; before, it is zero, and the entries are counted.
fn open_files() -> u64 {
    let size = fs::metadata("/proc/self/fd").map_or(0, |metadata| metadata.len());
    if size > 0 {
        size
    } else {
        fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_files_and_a_start() {
        let reader = ProcessReader::new();
        let before = reader.read();
        assert!(before.resident_bytes >= before.anonymous_bytes && before.anonymous_bytes > 0);
        assert!(before.virtual_bytes >= before.resident_bytes);
        assert!(before.open_files >= 3 && before.open_files <= before.open_files_max);
        assert!(before.started_unix_ms > 1_600_000_000_000);
        let files: Vec<_> = (0..10)
            .map(|_| fs::File::open("/proc/self/stat").unwrap())
            .collect();
        assert_eq!(
            reader.read().open_files,
            before.open_files + files.len() as u64
        );
    }
}
