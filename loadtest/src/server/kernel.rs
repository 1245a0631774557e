//! The kernel of this machine: memory and files of everybody's sockets, both ends of a connection when both are here.

use super::process::{kib_field, read_text};

/// The slab caches that a TCP connection takes objects of: socket, file, name, security blobs, and what polls them.
const SOCKET_CACHES: &[&str] = &[
    "TCP",
    "TCPv6",
    "sock_inode_cache",
    "filp",
    "dentry",
    "lsm_file_cache",
    "lsm_inode_cache",
    "request_sock_TCP",
    "request_sock_TCPv6",
    "tw_sock_TCP",
    "tw_sock_TCPv6",
    "eventpoll_epi",
    "eventpoll_pwq",
    "ep_head",
    "io_kiocb",
];

/// What all processes of this machine have in the kernel at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernel {
    /// TCP sockets in the kernel's books.
    pub tcp_socket_count: Option<u64>,
    /// Bytes queued in TCP sockets.
    pub tcp_memory_bytes: Option<u64>,
    /// Slab memory, all of it.
    pub slab_bytes: Option<u64>,
    /// Slab memory of each cache that connections use, bytes; empty where `/proc/slabinfo` may not be read.
    pub socket_caches: Vec<(&'static str, u64)>,
    /// Open files.
    pub file_count: Option<u64>,
}

impl Kernel {
    /// Reads all of it. What the kernel does not tell, or not to everybody, is None or empty.
    pub fn read() -> Self {
        let (tcp_socket_count, tcp_memory_bytes) = read_tcp();
        let meminfo = read_text("/proc/meminfo").unwrap_or_default();
        let slabinfo = read_text("/proc/slabinfo").unwrap_or_default();
        let file_nr = read_text("/proc/sys/fs/file-nr").unwrap_or_default();
        Self {
            tcp_socket_count,
            tcp_memory_bytes,
            slab_bytes: kib_field(&meminfo, "Slab:"),
            socket_caches: socket_caches(&slabinfo, page_bytes()),
            file_count: file_count(&file_nr),
        }
    }

    /// Slab memory of all caches that connections use.
    pub fn socket_slab_bytes(&self) -> Option<u64> {
        let total = self.socket_caches.iter().map(|(_, bytes)| bytes).sum();
        (!self.socket_caches.is_empty()).then_some(total)
    }
}

/// TCP sockets, and bytes queued in them.
pub fn read_tcp() -> (Option<u64>, Option<u64>) {
    let sockstat = read_text("/proc/net/sockstat").unwrap_or_default();
    tcp(&sockstat, page_bytes())
}

fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

fn tcp(sockstat: &str, page_bytes: u64) -> (Option<u64>, Option<u64>) {
    let line = sockstat.lines().find(|line| line.starts_with("TCP:"));
    let field = |name: &str| {
        let mut words = line?.split_whitespace();
        words.find(|word| *word == name)?;
        words.next()?.parse::<u64>().ok()
    };
    let memory = field("mem").and_then(|pages| pages.checked_mul(page_bytes));
    (field("alloc"), memory)
}

/// Bytes of the objects in use in each cache, each with its part of the slab's waste. Free objects do not count: a cache
/// that had room for the connections before they came has grown all the same.
fn socket_caches(slabinfo: &str, page_bytes: u64) -> Vec<(&'static str, u64)> {
    let read = |line: &str| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        let cache = SOCKET_CACHES.iter().find(|cache| **cache == name)?;
        let mut number = |skip: usize| fields.nth(skip)?.parse::<u64>().ok();
        let objects_in_use = number(0)?;
        let objects_per_slab = number(2)?;
        let slab_bytes = number(0)?.checked_mul(page_bytes)?;
        let bytes = objects_in_use.checked_mul(slab_bytes)?;
        Some((*cache, bytes.checked_div(objects_per_slab)?))
    };
    slabinfo.lines().filter_map(read).collect()
}

/// Files in use: those allocated without those free.
fn file_count(file_nr: &str) -> Option<u64> {
    let mut fields = file_nr.split_whitespace();
    let allocated: u64 = fields.next()?.parse().ok()?;
    let free: u64 = fields.next()?.parse().ok()?;
    allocated.checked_sub(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_is_found_in_sockstat() {
        let text =
            "sockets: used 14\nTCP: inuse 1 orphan 0 tw 0 alloc 3 mem 74\nUDP: inuse 9 mem 9\n";
        assert_eq!(tcp(text, 4096), (Some(3), Some(74 * 4096)));
        assert_eq!(tcp("TCP: inuse 1 mem\n", 4096), (None, None));
        assert_eq!(tcp("", 4096), (None, None));
    }

    #[test]
    fn slabs_of_sockets_are_counted_with_their_waste_and_others_are_not() {
        let text = "\
slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit>
TCP                  100    143   2368   13    8 : tunables    0    0    0 : slabdata     11     11      0
task_struct          100    143   2368   13    8 : tunables    0    0    0 : slabdata     11     11      0
filp                 517    588    192   21    1 : tunables    0    0    0 : slabdata     28     28      0
dentry               garbage
eventpoll_epi          1      1      1    0    1 : tunables    0    0    0 : slabdata      0      0      0
";
        let caches = socket_caches(text, 4096);
        let tcp_bytes = 100 * 8 * 4096 / 13;
        assert_eq!(caches, [("TCP", tcp_bytes), ("filp", 517 * 4096 / 21)]);
        let kernel = Kernel {
            socket_caches: caches,
            ..Kernel::default()
        };
        assert_eq!(
            kernel.socket_slab_bytes(),
            Some(tcp_bytes + 517 * 4096 / 21)
        );
        assert_eq!(Kernel::default().socket_slab_bytes(), None);
    }

    #[test]
    fn files_in_use_are_those_allocated_without_the_free() {
        assert_eq!(file_count("485\t5\t2466170\n"), Some(480));
        assert_eq!(file_count("485"), None);
        assert_eq!(file_count("4 5 6"), None);
    }

    #[test]
    fn this_machine_tells_its_sockets_and_files() {
        let kernel = Kernel::read();
        assert!(kernel.tcp_socket_count.is_some() && kernel.tcp_memory_bytes.is_some());
        assert!(kernel.slab_bytes.unwrap() > 0 && kernel.file_count.unwrap() > 0);
    }
}
