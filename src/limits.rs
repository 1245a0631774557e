//! Every compile-time bound, and the assertions that tie the bounds together.
#![forbid(unsafe_code)]

/// Bytes in a room name, after percent-decoding.
pub const ROOM_NAME_BYTES_MAX: usize = 255;
/// Bytes in a user's id, after percent-decoding.
pub const USER_ID_BYTES_MAX: usize = 128;
/// Bytes of a PROXY header, its TLVs included.
pub const PROXY_HEADER_BYTES_MAX: usize = 4096;
/// Bytes of the lines that the settings put into a 101.
pub const UPGRADE_LINES_BYTES_MAX: usize = 768;
/// Connections that one envelope tells the registry of at most.
pub const PRESENCE_NOTE_COUNT_MAX: usize = 256;
/// Bytes in a control frame's payload (RFC 6455 §5.5).
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;
/// Bytes of an unmasked server frame header at most (RFC 6455 §5.2).
pub const SERVER_HEADER_BYTES_MAX: usize = 10;
/// Bytes of a masked client frame header at most (RFC 6455 §5.2).
pub const CLIENT_HEADER_BYTES_MAX: usize = 14;
/// Shards in a process. A shard id is a byte, and the backplane core is [`CORE_BACKPLANE`].
pub const SHARD_COUNT_MAX: usize = 250;
/// The backplane core's id, next to the shards' 0..[`SHARD_COUNT_MAX`].
pub const CORE_BACKPLANE: u8 = 255;
/// Connections in a shard: 24 bits of slab index are kept in completion keys.
pub const SHARD_CONNECTION_COUNT_MAX: u32 = 1 << 24;
/// Bytes that one room may gather in one turn before they are delivered at once.
pub const ROOM_BATCH_BYTES_MAX: usize = 64 * 1024;
/// Envelopes in a lane between two cores.
pub const LANE_ENVELOPE_COUNT_MAX: usize = 4096;
/// Envelopes of a lane that only control (joins, probes, drain, questions) may use, so that a lane full of
/// deliveries never costs an answer.
pub const LANE_CONTROL_RESERVE: usize = 256;
/// Payload bytes in flight in one lane at most; a publisher that fills it is not read until there is room.
pub const LANE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Envelopes that the backplane core takes from one lane before it looks at the next.
pub const LANE_TURN_ENVELOPE_COUNT_MAX: usize = 64;
/// Questions of the admin API that one shard has not answered yet; further ones are not asked.
pub const SHARD_QUESTION_COUNT_MAX: usize = 64;
/// Requests of the admin API that wait for shards; further ones are answered 503.
pub const ADMIN_EXCHANGE_COUNT_MAX: usize = 64;
/// Drain orders that one shard may be given: three phases, and a few to hurry.
pub const DRAIN_ORDER_COUNT_MAX: usize = 16;
/// Bytes of output a connection may queue beyond its budget for pongs, pings, notices and its close frame.
pub const CONTROL_RESERVE_BYTES: u32 = 1024;
/// Pieces that one vectored send carries at most (the kernel's `UIO_MAXIOV` is 1024).
pub const SEND_PIECE_COUNT_MAX: usize = 64;
/// Process memory that an idle connection in one room may keep.
pub const CONNECTION_IDLE_BYTES_MAX: usize = 128;

const _: () = assert!(LANE_CONTROL_RESERVE < LANE_ENVELOPE_COUNT_MAX);
// Probe (one at a time), questions and drain orders are all that uses the reserve: sending them never fails.
const _: () = assert!(1 + SHARD_QUESTION_COUNT_MAX + DRAIN_ORDER_COUNT_MAX <= LANE_CONTROL_RESERVE);
// A shard that answers always has room for the questions of every request that waits.
const _: () = assert!(ADMIN_EXCHANGE_COUNT_MAX <= SHARD_QUESTION_COUNT_MAX);
// A 101 fits the queue of a connection with the least budget, 1 KiB, and its reserve.
const _: () = assert!(UPGRADE_LINES_BYTES_MAX < CONTROL_RESERVE_BYTES as usize);
const _: () = assert!(ROOM_BATCH_BYTES_MAX < LANE_BYTES_MAX);
const _: () = assert!(SHARD_COUNT_MAX < CORE_BACKPLANE as usize);
const _: () = assert!(
    CONTROL_RESERVE_BYTES as usize >= 2 * (CONTROL_PAYLOAD_BYTES_MAX + SERVER_HEADER_BYTES_MAX)
);
