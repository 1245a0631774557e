//! All names of metrics, with what they mean. A name ends in its unit; counters get `_total` when they are written.

use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// A metric family.
#[derive(Debug)]
pub struct Name {
    /// The full name, unit included, without `_total`, `_info`, `_bucket`.
    pub name: &'static str,
    /// What it means, one sentence.
    pub help: &'static str,
    /// What kind it is.
    pub kind: MetricType,
}

static BYTES: Unit = Unit::Bytes;
static SECONDS: Unit = Unit::Seconds;

impl Name {
    /// The name without its unit, and the unit.
    #[must_use]
    pub fn parts(&self) -> (&'static str, Option<&'static Unit>) {
        [("_bytes", &BYTES), ("_seconds", &SECONDS)]
            .into_iter()
            .find_map(|(suffix, unit)| Some((self.name.strip_suffix(suffix)?, Some(unit))))
            .unwrap_or((self.name, None))
    }
}

macro_rules! names {
    ($($constant:ident: $kind:ident $name:literal, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $constant: Name = Name { name: $name, help: $help, kind: MetricType::$kind };
        )*
        /// All of them, in the order they are written.
        pub static ALL: &[&Name] = &[$(&$constant),*];
    };
}

names! {
    BUILD: Info "throng_build", "Version of the running program, and the node's name.";

    CONNECTIONS: Gauge "throng_connections", "WebSocket connections open, by shard.";
    CONNECTIONS_MAX: Gauge "throng_connections_max", "Connections that the node takes.";
    CONNECTION_SKEW: Gauge "throng_connection_skew", "Connections on the fullest shard over the mean of all shards; 1 is even, 0 without connections.";
    SOCKETS: Gauge "throng_sockets", "Client sockets open, whatever their state, by shard.";
    SOCKETS_ACCEPTED: Counter "throng_sockets_accepted", "Client sockets accepted, by shard.";
    HANDSHAKES: Counter "throng_handshakes", "Requests on the client port, by outcome: upgraded, health, or why they were refused.";
    CLIENT_ADDRESSES: Counter "throng_client_addresses", "Addresses of clients behind proxies, by how they were learned, or why not.";
    CONNECTIONS_CLOSED: Counter "throng_connections_closed", "Connections ended, by reason.";
    ROOMS: Gauge "throng_rooms", "Rooms with members, by shard.";
    NODE_ROOMS: Gauge "throng_node_rooms", "Rooms with members on any shard.";
    NODE_ROOMS_LEASED: Gauge "throng_node_rooms_leased", "Rooms with members on one shard only, which orders them itself.";
    USERS: Gauge "throng_users", "Users with connections, by shard.";
    NODE_USERS: Gauge "throng_node_users", "Users with connections on any shard.";
    PRESENCE_DROPPED: Counter "throng_presence_dropped", "News of connections that the registry was not told of, because too many waited, by shard.";

    MESSAGES_RECEIVED: Counter "throng_messages_received", "Messages received whole from clients, by shard.";
    MESSAGES_RECEIVED_BYTES: Counter "throng_messages_received_bytes", "Payload of the messages received from clients, by shard.";
    MESSAGES_DELIVERED: Counter "throng_messages_delivered", "Messages delivered into rooms, once a message and shard.";
    DELIVERIES: Counter "throng_deliveries", "Messages queued to members, once a member, by shard.";
    SOCKET_RECEIVED_BYTES: Counter "throng_socket_received_bytes", "Bytes read from client sockets, by shard.";
    SOCKET_SENT_BYTES: Counter "throng_socket_sent_bytes", "Bytes written to client sockets, by shard.";
    PUBLISH_TO_DELIVER: Histogram "throng_publish_to_deliver_seconds", "From taking a message from its publisher to handing it to a member's socket, once a delivery.";

    QUEUED_BYTES: Gauge "throng_queued_bytes", "Output queued for members, by shard.";
    CONNECTIONS_QUEUED: Gauge "throng_connections_queued", "Connections with output queued behind a send in flight, by shard.";
    LEDGER_BYTES: Gauge "throng_ledger_bytes", "Bytes charged to connections, by shard.";
    LEDGER_MAX_BYTES: Gauge "throng_ledger_max_bytes", "Bytes that a shard may charge to connections.";
    BUDGET_USED: Gauge "throng_budget_used_ratio", "Bytes charged on all shards over the node's budget.";
    MESSAGES_DROPPED: Counter "throng_messages_dropped", "Messages that slow members lost, by the room's policy.";
    GAPS_TOLD: Counter "throng_gaps_told", "Gap notices sent to members that lost messages, by shard.";

    HEARTBEATS: Counter "throng_heartbeats", "Heartbeats, by event: sent (a ping), answered (its pong), dead (given up).";
    PEER_PINGS_ANSWERED: Counter "throng_peer_pings_answered", "Pings of clients answered, by shard.";
    ROUND_TRIP: Histogram "throng_round_trip_seconds", "From a heartbeat ping to its pong.";

    LOOP_TURN: Histogram "throng_loop_turn_seconds", "Time of a turn of a shard's loop, by shard.";
    BACKPLANE_TURN: Histogram "throng_backplane_turn_seconds", "Time of a turn of the backplane core's loop.";
    SHARD_ANSWERING: Gauge "throng_shard_answering", "1 when the shard answered this scrape, 0 when its last known figures are shown.";
    SHARD_PROCESSOR: Gauge "throng_shard_processor", "Processor that the shard is pinned to.";

    BUS_DEPTH: Gauge "throng_bus_depth", "Envelopes waiting in a lane, by shard and direction (up: from the shard, down: to it).";
    BUS_LANE_BYTES: Gauge "throng_bus_lane_bytes", "Payload in flight in the lane to a shard, by shard.";
    BUS_BATCHES: Counter "throng_bus_batches", "Batches of messages that crossed the bus.";
    BUS_MESSAGES: Counter "throng_bus_messages", "Messages that crossed the bus.";
    BUS_DELIVERIES: Counter "throng_bus_deliveries", "Batches handed to shards, once a shard with members.";
    BUS_STALLS: Counter "throng_bus_stalls", "Times a lane had to wait because another was full.";
    BUS_LANES_STALLED: Gauge "throng_bus_lanes_stalled", "Lanes that wait because another is full.";
    BUS_STALLED_SECONDS: Gauge "throng_bus_stalled_seconds", "How long the oldest waiting lane has waited.";
    BUS_PROBE: Histogram "throng_bus_probe_seconds", "From a probe to a shard to its answer.";
    LEASES_GRANTED: Counter "throng_leases_granted", "Leases of rooms granted to shards.";
    LEASES_REVOKED: Counter "throng_leases_revoked", "Leases revoked because a second shard came.";
    PUBLISHERS_PAUSED: Gauge "throng_publishers_paused", "Publishers whose messages wait because the bus, the memory budget or their room's batch of the turn is full, by shard.";
    PUBLISHER_PAUSES: Counter "throng_publisher_pauses", "Times a publisher had to wait because the bus, the memory budget or its room's batch of the turn was full, by shard.";

    REDIS_READY: Gauge "throng_redis_ready", "1 when a probe has come through both links to every Redis since they came up last; 0 without Redis, too.";
    REDIS_MODE: Gauge "throng_redis_mode", "1 for the mode in use, by mode: pubsub, sharded, sharded-by-pubsub (a fallback), streams.";
    REDIS_SERVER_READY: Gauge "throng_redis_server_ready", "The same as throng_redis_ready for each server, by server.";
    REDIS_SERVER_SUBSCRIPTIONS: Gauge "throng_redis_server_subscriptions", "Rooms whose subscription stands there, by server.";
    REDIS_SERVER_BUFFER_BYTES: Gauge "throng_redis_server_buffer_bytes", "Messages that it has not acknowledged, by server.";
    REDIS_LINK_UP: Gauge "throng_redis_link_up", "1 when commands may be sent to every server, by link: publishing, subscription, commands.";
    REDIS_CONNECTS: Counter "throng_redis_connects", "Times a link came up, by link.";
    REDIS_LOSSES: Counter "throng_redis_losses", "Times a link was lost that was up, by link.";
    REDIS_CONNECT_FAILURES: Counter "throng_redis_connect_failures", "Times a link could not be brought up, by link.";
    REDIS_SENT_BYTES: Counter "throng_redis_sent_bytes", "Bytes written to Redis, by link.";
    REDIS_RECEIVED_BYTES: Counter "throng_redis_received_bytes", "Bytes read from Redis, by link.";
    REDIS_WRITES: Counter "throng_redis_writes", "Writes to Redis, each of all commands that were gathered, by link.";
    REDIS_COMMANDS: Counter "throng_redis_commands", "Commands sent, by command.";
    REDIS_LAG: Histogram "throng_redis_lag_seconds", "From publishing to the return through Redis, of probes and of this node's own batches.";
    REDIS_PROBES: Counter "throng_redis_probes", "Probes sent.";
    REDIS_PROBE_AGE: Gauge "throng_redis_probe_age_seconds", "How long the probe has been on its way that has not come back; 0 when none is.";
    REDIS_BATCHES_PUBLISHED: Counter "throng_redis_batches_published", "Batches sent to Redis, those that were sent again included.";
    REDIS_MESSAGES_PUBLISHED: Counter "throng_redis_messages_published", "Messages sent to Redis, those that were sent again included.";
    REDIS_BATCHES_RECEIVED: Counter "throng_redis_batches_received", "Batches that came from Redis, this node's own and duplicates included.";
    REDIS_MESSAGES_RECEIVED: Counter "throng_redis_messages_received", "Messages that came from Redis, this node's own and duplicates included.";
    REDIS_DUPLICATES: Counter "throng_redis_messages_duplicate", "Messages from Redis that were here before: sent again after a lost link, or delivered here while Redis was away.";
    REDIS_MALFORMED: Counter "throng_redis_malformed", "What came on this node's channels and could not be read.";
    REDIS_GAPS: Counter "throng_redis_gaps", "Gaps in rooms that members were told of, those of unknown size included.";
    REDIS_MESSAGES_MISSED: Counter "throng_redis_messages_missed", "Messages missing in the gaps whose size is known.";
    REDIS_BATCHES_LOCAL: Counter "throng_redis_batches_local", "Batches delivered on this node while Redis was away.";
    REDIS_MESSAGES_REFUSED: Counter "throng_redis_messages_refused", "Messages that other nodes do not see, because Redis was away for too long.";
    REDIS_BUFFER_BYTES: Gauge "throng_redis_buffer_bytes", "Messages that Redis has not acknowledged.";
    REDIS_BUFFER_MAX_BYTES: Gauge "throng_redis_buffer_max_bytes", "Those at most; 0 without Redis.";
    REDIS_BUFFER_AGE: Gauge "throng_redis_buffer_age_seconds", "How long the oldest of them has waited.";
    REDIS_SUBSCRIPTIONS: Gauge "throng_redis_subscriptions", "Channels whose subscription stands: those of rooms, of users, and everybody's.";
    REDIS_JOINS_WAITING: Gauge "throng_redis_joins_waiting", "Rooms and users whose joins wait for their subscription.";
    REDIS_JOINS_REFUSED: Counter "throng_redis_joins_refused", "Rooms whose joins were refused because they could not be subscribed to in time, or too many waited.";
    REDIS_BACKLOG_BYTES: Gauge "throng_redis_backlog_bytes", "What waits for shards beyond their lanes.";
    REDIS_BACKLOG_DROPPED: Counter "throng_redis_backlog_dropped", "Messages dropped because a shard could not take them, once a shard.";
    STREAM_CATCH_UPS: Counter "throng_stream_catch_ups", "Times a room began to read what it had missed from its stream.";
    STREAM_MESSAGES_RECOVERED: Counter "throng_stream_recovered_messages", "Messages that were missed and read from their stream.";
    STREAM_MESSAGES_GONE: Counter "throng_stream_gone_messages", "Messages that were missed and are no longer in their stream.";
    STREAM_ROOMS_BEHIND: Gauge "throng_stream_rooms_behind", "Rooms whose stream is to be read.";
    STREAM_RETAINED_BYTES: Gauge "throng_stream_retained_bytes", "What Redis has acknowledged lately, kept for a server that takes its place, or waiting for it.";

    CLUSTER_NODES: Gauge "throng_cluster_nodes", "Nodes that were heard at Redis within three intervals, this one included; 0 without Redis.";
    CLUSTER_MISFITS: Gauge "throng_cluster_misfits", "Other nodes that do not fit this one, as it saw them last, by what differs: layout (servers, partitions), mode.";
    REGISTRY_UP: Gauge "throng_registry_up", "1 when Redis has answered this node's last heartbeat, and no server refuses what the registry asks; 0 without Redis, too.";
    REGISTRY_HEARTBEATS: Counter "throng_registry_heartbeats", "Heartbeats of this node that Redis has answered.";
    REGISTRY_HEARTBEAT_AGE: Gauge "throng_registry_heartbeat_age_seconds", "Since the last heartbeat that was answered, or since the start.";
    REGISTRY_NOTES: Counter "throng_registry_notes", "News of connections, by outcome: written to Redis, or dropped because too many waited, Redis was away, or it refused them.";
    REGISTRY_QUEUED: Gauge "throng_registry_queued", "News of connections that wait for Redis, or for its answer.";
    REGISTRY_QUEUED_MAX: Gauge "throng_registry_queued_max", "Those that may wait at most; 0 without Redis.";
    REGISTRY_OLDEST: Gauge "throng_registry_oldest_age_seconds", "How long the oldest of them has waited.";
    REGISTRY_ERRORS: Counter "throng_registry_errors", "Commands of the registry that Redis has refused.";
    REGISTRY_ANNOUNCEMENTS: Counter "throng_registry_announcements", "Times that all connections were told of anew: Redis had lost this node's entries, or was away.";
    REGISTRY_NODES_REAPED: Counter "throng_registry_nodes_reaped", "Dead nodes whose entries this one has removed.";
    REGISTRY_CONNECTIONS_REAPED: Counter "throng_registry_connections_reaped", "Connections of dead nodes that this one has removed.";

    RING_ENTERS: Counter "throng_ring_enters", "Calls of io_uring_enter, by shard.";
    RING_COMPLETIONS: Counter "throng_ring_completions", "Completions handled, by shard.";
    RING_SLEEPS: Counter "throng_ring_sleeps", "Times the shard slept, by shard.";
    RING_BUFFERS_EXHAUSTED: Counter "throng_ring_buffers_exhausted", "Times no receive buffer was free, by shard.";
    RING_COMPLETION_OVERFLOWS: Counter "throng_ring_completion_overflows", "Times the completion queue overflowed into the kernel's list, by shard.";
    RING_SUBMISSION_FULL: Counter "throng_ring_submission_full", "Times the submission queue was full, by shard.";
    RING_PARTIAL_SENDS: Counter "throng_ring_partial_sends", "Sends that took more than one submission, by shard.";
    RING_ACCEPT_EXHAUSTED: Counter "throng_ring_accept_exhausted", "Accepts that failed for want of descriptors or memory, by shard.";
    RING_DIRECT_DESCRIPTORS: Gauge "throng_ring_direct_descriptors", "1 when client sockets are direct descriptors, by shard.";

    DRAIN_PHASE: Gauge "throng_drain_phase", "0 running, 1 not ready, 2 closing, 3 cut, by shard.";
    ADMIN_ANSWERS: Counter "throng_admin_answers", "Answers of the admin listener to whole requests, by status; what is no request, or has too large a body, is refused before and not counted.";
    ADMIN_EXCHANGES: Gauge "throng_admin_exchanges", "Admin requests that wait for shards.";

    KERNEL_TCP_MEMORY: Gauge "throng_kernel_tcp_memory_bytes", "Memory that queued TCP data takes in the kernel, all processes of the network namespace together.";
    KERNEL_TCP_SOCKETS: Gauge "throng_kernel_tcp_sockets", "TCP sockets in the kernel by state, all processes of the network namespace together.";
    PROCESS_MEMORY_ANONYMOUS: Gauge "throng_process_anonymous_memory_bytes", "Resident memory that no file backs: heap, stacks, rings.";
    PROCESS_MEMORY_PER_CONNECTION: Gauge "throng_process_memory_per_connection_bytes", "Resident memory that no file backs, over open connections; 0 without connections.";
    PROCESS_CPU_MODE: Counter "throng_process_cpu_seconds", "Processor time, by mode.";
    PROCESS_CPU: Counter "process_cpu_seconds", "Processor time, user and system.";
    PROCESS_RESIDENT: Gauge "process_resident_memory_bytes", "Resident memory.";
    PROCESS_VIRTUAL: Gauge "process_virtual_memory_bytes", "Virtual memory.";
    PROCESS_OPEN_FILES: Gauge "process_open_fds", "Open file descriptors; direct descriptors are not among them.";
    PROCESS_OPEN_FILES_MAX: Gauge "process_max_fds", "Open file descriptors at most.";
    PROCESS_START: Gauge "process_start_time_seconds", "Unix time of the process's start.";
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page's table, row by row.
    fn documented() -> Vec<&'static str> {
        let page = include_str!("../../docs/METRICS.md");
        let (_, table) = page
            .split_once("| name | kind | meaning |\n|---|---|---|\n")
            .expect("the page has the table");
        table
            .lines()
            .take_while(|line| line.starts_with('|'))
            .collect()
    }

    #[test]
    fn the_page_of_metrics_has_these_names_kinds_and_meanings_and_no_others() {
        let row = |name: &&Name| {
            format!(
                "| `{}` | {} | {} |",
                name.name,
                name.kind.as_str(),
                name.help
            )
        };
        let rows: Vec<String> = ALL.iter().map(row).collect();
        assert_eq!(documented(), rows);
    }

    #[test]
    fn a_name_is_not_used_twice_and_its_meaning_is_one_row_of_text() {
        let mut names: Vec<&str> = ALL.iter().map(|name| name.name).collect();
        names.sort_unstable();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
        for name in ALL {
            let help = name.help;
            assert!(help.ends_with('.') && !help.contains(['|', '\n']), "{help}");
        }
    }
}
