//! What the kernel says of this process and of TCP: parsers for the texts under `/proc`. Reading them is runtime's job.

/// The process and the kernel's TCP, as `/proc` tells. Zero where it does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessSnapshot {
    /// Resident memory.
    pub resident_bytes: u64,
    /// Resident memory that no file backs.
    pub anonymous_bytes: u64,
    /// Virtual memory.
    pub virtual_bytes: u64,
    /// Open file descriptors.
    pub open_files: u64,
    /// Open file descriptors at most.
    pub open_files_max: u64,
    /// Processor time in user mode, microseconds.
    pub cpu_user_us: u64,
    /// Processor time in the kernel, microseconds.
    pub cpu_system_us: u64,
    /// Unix time of the start, milliseconds.
    pub started_unix_ms: u64,
    /// The kernel's TCP.
    pub tcp: TcpSnapshot,
}

/// The kernel's TCP in this network namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpSnapshot {
    /// Sockets in use.
    pub in_use: u64,
    /// Sockets without a process.
    pub orphan: u64,
    /// Sockets that wait out `TIME_WAIT`.
    pub time_wait: u64,
    /// Sockets allocated.
    pub allocated: u64,
    /// Pages of queued data.
    pub memory_pages: u64,
    /// The same, bytes.
    pub memory_bytes: u64,
}

impl ProcessSnapshot {
    /// Takes memory from the text of `/proc/self/status` (`VmSize`, `VmRSS`, `RssAnon`, `RssShmem`; in KiB).
    pub fn read_status(&mut self, text: &str) {
        let bytes = |key: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            line.split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
                .map(|kib| kib * 1_024)
        };
        self.virtual_bytes = bytes("VmSize").unwrap_or(0);
        self.resident_bytes = bytes("VmRSS").unwrap_or(0);
        self.anonymous_bytes = bytes("RssAnon").unwrap_or(0) + bytes("RssShmem").unwrap_or(0);
    }

    /// Takes processor time from the text of `/proc/self/stat`, given the kernel's ticks a second.
    pub fn read_stat(&mut self, text: &str, ticks_per_s: u64) {
        // The second field is a name in parentheses that may hold anything; utime and stime are fields 14 and 15.
        let Some((_, fields)) = text.rsplit_once(')') else {
            return;
        };
        let mut fields = fields
            .split_whitespace()
            .skip(11)
            .map(|field| field.parse::<u64>().ok());
        let mut us = || Some(fields.next()?? * 1_000_000 / ticks_per_s.max(1));
        self.cpu_user_us = us().unwrap_or(0);
        self.cpu_system_us = us().unwrap_or(0);
    }
}

impl TcpSnapshot {
    /// Takes the `TCP` line from the text of `/proc/net/sockstat`.
    #[must_use]
    pub fn parse(text: &str, page_bytes: u64) -> Self {
        let mut tcp = Self::default();
        let Some(line) = text.lines().find_map(|line| line.strip_prefix("TCP:")) else {
            return tcp;
        };
        let mut words = line.split_whitespace();
        while let (Some(key), Some(value)) = (words.next(), words.next()) {
            let Ok(value) = value.parse::<u64>() else {
                continue;
            };
            match key {
                "inuse" => tcp.in_use = value,
                "orphan" => tcp.orphan = value,
                "tw" => tcp.time_wait = value,
                "alloc" => tcp.allocated = value,
                "mem" => tcp.memory_pages = value,
                _ => {}
            }
        }
        tcp.memory_bytes = tcp.memory_pages * page_bytes;
        tcp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_status() {
        let mut process = ProcessSnapshot::default();
        process.read_status("Name:\tthrong\nVmSize:\t    3060 kB\nVmRSS:\t    1740 kB\nRssAnon:\t     116 kB\nRssShmem:\t 4 kB\n");
        assert_eq!(process.virtual_bytes, 3060 * 1024);
        assert_eq!(process.resident_bytes, 1740 * 1024);
        assert_eq!(process.anonymous_bytes, 120 * 1024);
        process.read_status("nothing of the kind");
        assert_eq!(process, ProcessSnapshot::default());
    }

    #[test]
    fn processor_time_is_read_behind_a_name_with_spaces_and_parentheses() {
        let mut process = ProcessSnapshot::default();
        let text = "7 (a (b) c) S 1 7 7 0 -1 4194560 100 0 0 0 250 31 0 0 20 0 1 0 99 1 2";
        process.read_stat(text, 100);
        assert_eq!(
            (process.cpu_user_us, process.cpu_system_us),
            (2_500_000, 310_000)
        );
        process.read_stat("7 (a) S 1", 100);
        assert_eq!((process.cpu_user_us, process.cpu_system_us), (0, 0));
    }

    #[test]
    fn the_tcp_line_is_found_among_the_others() {
        let text =
            "sockets: used 14\nTCP: inuse 1 orphan 2 tw 2354 alloc 3 mem 183\nUDP: inuse 9 mem 9\n";
        let tcp = TcpSnapshot::parse(text, 4096);
        let expected = TcpSnapshot {
            in_use: 1,
            orphan: 2,
            time_wait: 2354,
            allocated: 3,
            memory_pages: 183,
            memory_bytes: 183 * 4096,
        };
        assert_eq!(tcp, expected);
        assert_eq!(
            TcpSnapshot::parse("UDP: inuse 9 mem 9", 4096),
            TcpSnapshot::default()
        );
    }
}
