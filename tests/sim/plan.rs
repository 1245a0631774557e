//! What a seed draws before anything happens: how many shards, how short the lanes, how tight the budgets.

use throng::bus::BatchMessage;
use throng::metrics::DropPolicy;
use throng::protocol::handshake::Edge;
use throng::shard::{HeartbeatMode, Options, Presence, RoomRule};

use crate::random::Random;
use crate::topic::ROOMS;

#[derive(Debug, Clone)]
pub struct Plan {
    pub shard_count: usize,
    pub has_bus: bool,
    pub leases: bool,
    /// Envelopes and bytes.
    pub lane: (usize, usize),
    pub filler_bytes_max: usize,
    pub step_count: usize,
    pub options: Options,
}

impl Plan {
    pub fn draw(random: &mut Random) -> Self {
        let shard_count = random.between(1, 5);
        let has_bus = shard_count > 1 || random.one_in(4);
        let filler_bytes_max = *random.pick(&[100, 400, 1_500]);
        let message_bytes_max = filler_bytes_max + 16;
        let lane = (
            random.between(1, 6),
            message_bytes_max + 10 + BatchMessage::BYTES + *random.pick(&[0, 500, 100_000]),
        );
        let rooms = ROOMS
            .iter()
            .zip(DropPolicy::ALL)
            .map(|(pattern, slow)| RoomRule {
                pattern: (*pattern).into(),
                slow,
            })
            .collect();
        let options = Options {
            connection_count_max: if random.one_in(6) { 10 } else { 10_000 },
            address_connection_count_max: 0,
            user_connection_count_max: if random.one_in(6) { 3 } else { 0 },
            presence: *random.pick(&[Presence::Off, Presence::Users, Presence::All]),
            presence_refresh_ms: *random.pick(&[500, 5_000, 60_000]),
            room_count_max: 8,
            handshakes_per_s_max: 0,
            message_bytes_max: u32::try_from(message_bytes_max).unwrap(),
            message_fragment_count_max: 100,
            connection_queue_bytes_max: u32::try_from(message_bytes_max + random.below(3_000))
                .unwrap(),
            shard_bytes_max: if random.one_in(4) { 40_000 } else { 1 << 24 },
            node_bytes_max: 1 << 30,
            messages_per_s_max: 0,
            message_bytes_per_s_max: 0,
            heartbeat: if random.one_in(5) {
                HeartbeatMode::Tcp
            } else {
                HeartbeatMode::Ping
            },
            ping_interval_ms: 2_500,
            pong_timeout_ms: 1_000,
            idle_timeout_ms: if random.one_in(5) { 60_000 } else { 0 },
            message_timeout_ms: 30_000,
            write_stall_timeout_ms: 3_000,
            handshake_timeout_ms: 2_000,
            join_timeout_ms: 0,
            close_timeout_ms: 1_000,
            handshake_bytes_max: 4_096,
            handshake_header_count_max: 20,
            origins: Vec::new(),
            edge: Edge::default(),
            retry_after_s: 3,
            reconnect_after_ms: 500,
            rooms,
        };
        Self {
            shard_count,
            has_bus,
            leases: !random.one_in(3),
            lane,
            filler_bytes_max,
            step_count: *random.pick(&[200, 600, 1_500]),
            options,
        }
    }
}
