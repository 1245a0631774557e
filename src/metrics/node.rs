//! All that a scrape shows: the shards' snapshots, the backplane's, the process's.

use std::collections::BTreeMap;

use super::{BackplaneSnapshot, ProcessSnapshot, ShardSnapshot};

/// The two lanes of a shard, as the backplane core sees them now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardLanes {
    /// Envelopes waiting in the lane from the shard.
    pub up_depth: u64,
    /// Envelopes waiting in the lane to the shard.
    pub down_depth: u64,
    /// Payload bytes in flight to the shard.
    pub down_bytes: u64,
}

/// A shard in a scrape.
#[derive(Debug, Clone, Default)]
pub struct ShardReport {
    /// Its figures: of now, or the last that it told.
    pub snapshot: ShardSnapshot,
    /// Whether they are of now.
    pub answering: bool,
    /// Its lanes.
    pub lanes: ShardLanes,
}

/// A node in a scrape.
#[derive(Debug, Clone, Default)]
pub struct NodeSnapshot {
    /// The node's name.
    pub node_id: String,
    /// The program's version.
    pub version: &'static str,
    /// Connections that the node takes.
    pub connection_count_max: u64,
    /// Bytes that all shards together may charge to connections.
    pub node_bytes_max: u64,
    /// By shard.
    pub shards: Vec<ShardReport>,
    /// The backplane core's.
    pub backplane: BackplaneSnapshot,
    /// The process and the kernel.
    pub process: ProcessSnapshot,
    /// Answers of the admin listener to whole requests, by status.
    pub admin_answers: BTreeMap<u16, u64>,
    /// Admin requests that wait for shards.
    pub admin_exchanges: u64,
    /// Other nodes that do not fit this one.
    pub misfits: Misfits,
}

/// Nodes that are joined by Redis and whose settings do not fit together, by what differs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Misfits {
    /// Where rooms are looked for: servers, partitions.
    pub layout: u64,
    /// How messages travel.
    pub mode: u64,
}

impl NodeSnapshot {
    /// The sum of `figure` over all shards.
    pub fn sum(&self, figure: impl Fn(&ShardSnapshot) -> u64) -> u64 {
        self.shards
            .iter()
            .map(|shard| figure(&shard.snapshot))
            .sum()
    }

    /// Open connections of all shards.
    #[must_use]
    pub fn connections_open(&self) -> u64 {
        self.sum(|shard| shard.gauges.connections_open)
    }

    /// Connections of the fullest shard over the mean of all; 1 is even, 0 without connections.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // connections are far below 2^52
    pub fn connection_skew(&self) -> f64 {
        let most = self
            .shards
            .iter()
            .map(|shard| shard.snapshot.gauges.connections_open)
            .max()
            .unwrap_or(0);
        let all = self.connections_open();
        if all == 0 {
            0.0
        } else {
            most as f64 * self.shards.len() as f64 / all as f64
        }
    }

    /// Rooms with members on any shard. A shard that is alone tells the backplane of none, and knows them all.
    #[must_use]
    pub fn rooms(&self) -> u64 {
        match self.shards.as_slice() {
            [alone] => alone.snapshot.gauges.rooms,
            _ => self.backplane.rooms,
        }
    }

    /// Users with connections on any shard.
    #[must_use]
    pub fn users(&self) -> u64 {
        match self.shards.as_slice() {
            [alone] => alone.snapshot.gauges.users,
            _ => self.backplane.users,
        }
    }

    /// Bytes charged on all shards over the node's budget; 0 without a budget.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // a ratio for people
    pub fn budget_used(&self) -> f64 {
        let used = self.sum(|shard| shard.gauges.ledger_bytes);
        if self.node_bytes_max == 0 {
            0.0
        } else {
            used as f64 / self.node_bytes_max as f64
        }
    }

    /// Memory that no file backs, over open connections; 0 without connections.
    #[must_use]
    pub fn memory_per_connection_bytes(&self) -> u64 {
        self.process
            .anonymous_bytes
            .checked_div(self.connections_open())
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(connections: &[u64]) -> NodeSnapshot {
        let mut node = NodeSnapshot::default();
        for &count in connections {
            let mut shard = ShardReport::default();
            shard.snapshot.gauges.connections_open = count;
            node.shards.push(shard);
        }
        node
    }

    #[test]
    fn skew_is_one_when_even_and_the_shard_count_when_one_has_all() {
        let skew = |connections: &[u64]| format!("{:.2}", node(connections).connection_skew());
        assert_eq!(skew(&[5, 5, 5]), "1.00");
        assert_eq!(skew(&[0, 9, 0]), "3.00");
        assert_eq!(skew(&[0, 0]), "0.00");
        assert_eq!(skew(&[]), "0.00");
    }

    #[test]
    fn memory_is_shared_out_among_open_connections_only() {
        let mut node = node(&[3, 1]);
        node.process.anonymous_bytes = 400;
        assert_eq!(node.memory_per_connection_bytes(), 100);
        node.shards.clear();
        assert_eq!(node.memory_per_connection_bytes(), 0);
    }
}
