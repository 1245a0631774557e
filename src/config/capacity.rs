//! How many connections a machine can hold: the arithmetic behind `auto` and behind `throng check`.

use crate::limits::{CONNECTION_IDLE_BYTES_MAX, SHARD_CONNECTION_COUNT_MAX};
use crate::runtime::ring::Descriptors;

/// Kernel memory of an idle accepted socket with a receive armed: the TCP socket with its inode, dentry and file, and the
/// request that waits on it with its poll. Half of what slabs grow by for both ends of a connection (4.78 KB on Linux
/// 6.12, 4.81 and 4.87 KB on 6.18; docs/MILLION.md, docs/SPECIFICATION.md), rounded up.
pub const SOCKET_KERNEL_BYTES: u64 = 4_900;
/// A slot of a direct descriptor table with its bit and node, and our entry beside it.
pub const FILE_SLOT_BYTES: u64 = 24;
/// All of an idle connection, the kernel's part included.
pub const CONNECTION_BYTES: u64 =
    SOCKET_KERNEL_BYTES + FILE_SLOT_BYTES + CONNECTION_IDLE_BYTES_MAX as u64;
/// Entries of a direct descriptor table at most (the kernel's `IORING_MAX_FIXED_FILES`).
pub const DIRECT_TABLE_COUNT_MAX: u64 = 1 << 20;
/// Descriptors that the process needs for other things than clients: admin connections, logs, signals.
pub const FILES_RESERVED: u64 = 128;
/// Descriptors that each shard needs for other things than clients: its rings, eventfds and listeners.
pub const FILES_RESERVED_PER_SHARD: u64 = 16;
/// Table entries kept for sockets that are only answered with an HTTP status and closed: a full node still says so.
pub const SOCKETS_PASSING: u64 = 1_024;

/// Descriptors that the process needs beside its clients.
#[must_use]
pub fn files_reserved(shard_count: usize) -> u64 {
    FILES_RESERVED + shard_count as u64 * FILES_RESERVED_PER_SHARD
}

const MIB: u64 = 1 << 20;

/// Sockets that one table may hold: a shard's own with direct descriptors, the process's with plain ones.
#[must_use]
pub fn table_count_max(descriptors: Descriptors, open_files_max: u64) -> u64 {
    match descriptors {
        Descriptors::Plain => open_files_max.saturating_sub(FILES_RESERVED),
        Descriptors::Auto | Descriptors::Direct => open_files_max.min(DIRECT_TABLE_COUNT_MAX),
    }
    .min(u64::from(SHARD_CONNECTION_COUNT_MAX) - 1) // one index is nobody's
}

/// Connections that the node's descriptor tables hold, beside the sockets passing through. A direct table is each
/// shard's own; the process's is shared.
#[must_use]
pub fn by_files(descriptors: Descriptors, open_files_max: u64, shard_count: usize) -> u64 {
    let table = table_count_max(descriptors, open_files_max);
    let shards = shard_count as u64;
    match descriptors {
        Descriptors::Plain => {
            without_passing(table.saturating_sub(shards * FILES_RESERVED_PER_SHARD))
        }
        Descriptors::Auto | Descriptors::Direct => without_passing(table).saturating_mul(shards),
    }
}

/// A table less what is kept for sockets passing through; a small table keeps a sixteenth.
fn without_passing(table: u64) -> u64 {
    table - SOCKETS_PASSING.min(table.div_ceil(16))
}

/// Idle connections that fit into the memory beside what the node may hold for them (`node_bytes_max`) and an eighth
/// for everything else; a quarter of the memory is theirs in any case.
#[must_use]
pub fn by_memory(memory_bytes: u64, node_bytes_max: u64) -> u64 {
    let left = (memory_bytes / 8 * 7).saturating_sub(node_bytes_max);
    left.max(memory_bytes / 4) / CONNECTION_BYTES
}

/// What a node may hold for its connections unless told otherwise: three eighths of the memory, in whole MiB, at least
/// 64 of them. Half of the memory is left for idle connections.
#[must_use]
pub fn node_bytes_default(memory_bytes: u64) -> u64 {
    (memory_bytes / 8 * 3 / MIB).max(64) * MIB
}

/// Sockets that each ring is set up for: all of the node's connections, since nothing makes the kernel spread them
/// evenly, and the ones passing through. All rings together are bounded by the shards' count of the node's sockets.
#[must_use]
pub fn ring_socket_count(
    descriptors: Descriptors,
    open_files_max: u64,
    connection_count_max: u32,
) -> u32 {
    let wanted = u64::from(connection_count_max) + SOCKETS_PASSING;
    let count = wanted.min(table_count_max(descriptors, open_files_max));
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_tables_add_up_and_the_plain_one_is_shared() {
        assert_eq!(by_files(Descriptors::Auto, 20_000, 3), 3 * 18_976);
        assert_eq!(by_files(Descriptors::Direct, 20_000, 1), 18_976);
        assert_eq!(by_files(Descriptors::Direct, 1_600, 1), 1_500);
        assert_eq!(
            by_files(Descriptors::Plain, 20_000, 3),
            20_000 - 128 - 48 - 1_024
        );
        assert_eq!(by_files(Descriptors::Plain, 100, 3), 0);
    }

    #[test]
    fn a_direct_table_ends_where_the_kernel_says() {
        assert_eq!(
            by_files(Descriptors::Auto, u64::MAX, 2),
            2 * ((1 << 20) - 1_024)
        );
        assert_eq!(
            table_count_max(Descriptors::Plain, u64::MAX),
            u64::from(SHARD_CONNECTION_COUNT_MAX) - 1
        );
    }

    #[test]
    fn memory_is_shared_between_idle_connections_and_what_they_hold() {
        const MEMORY: u64 = 8 << 30;
        assert_eq!(node_bytes_default(MEMORY), 3 << 30);
        assert_eq!(by_memory(MEMORY, 3 << 30), (4 << 30) / CONNECTION_BYTES);
        assert_eq!(by_memory(MEMORY, 8 << 30), (2 << 30) / CONNECTION_BYTES);
        assert_eq!(node_bytes_default(0), 64 << 20);
    }

    #[test]
    fn a_ring_has_room_for_all_connections_and_some_passing() {
        assert_eq!(ring_socket_count(Descriptors::Auto, 20_000, 500), 1_524);
        assert_eq!(ring_socket_count(Descriptors::Auto, 20_000, 60_000), 20_000);
        assert_eq!(
            ring_socket_count(Descriptors::Plain, 20_000, 60_000),
            19_872
        );
    }
}
