//! How many connections fit, by each limit.

use super::{grouped, shards, sized};
use crate::config::Settings;
use crate::config::capacity::{self, CONNECTION_BYTES};
use crate::runtime::host::{HostFacts, RingFacts};
use crate::runtime::ring::Descriptors;

/// What one limit allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bound {
    /// Connections.
    pub(super) connections: u64,
    /// The limit.
    pub(super) name: &'static str,
    /// How it comes to that number.
    pub(super) why: String,
}

/// All bounds, the tightest first. Where two are equal, the one that the host sets stands before the setting.
pub(super) fn bounds(settings: &Settings, facts: &HostFacts) -> Vec<Bound> {
    let open_files = facts.open_files.hard.unwrap_or(u64::MAX);
    let refused = matches!(&facts.rings, RingFacts::Works { direct: Err(_), .. });
    let descriptors = match refused {
        true => Descriptors::Plain,
        false => settings.ring.descriptors,
    };
    let table = capacity::table_count_max(descriptors, open_files);
    let files_why = match descriptors {
        Descriptors::Plain => format!(
            "the process's file table, {} less what it needs itself and the sockets passing",
            grouped(open_files)
        ),
        Descriptors::Auto | Descriptors::Direct => {
            format!(
                "{} with a table of {} each, less the sockets passing",
                shards(settings.shards),
                grouped(table)
            )
        }
    };
    let memory = facts
        .memory_group_bytes_max
        .map_or(facts.memory_bytes, |most| most.min(facts.memory_bytes));
    let mut bounds = vec![
        Bound {
            connections: capacity::by_files(descriptors, open_files, settings.shards),
            name: "descriptors",
            why: files_why,
        },
        Bound {
            connections: capacity::by_memory(memory, settings.shard.node_bytes_max),
            name: "memory",
            why: format!(
                "{} less node_bytes_max and an eighth, {} bytes for each idle connection with the kernel's part",
                sized(memory),
                grouped(CONNECTION_BYTES)
            ),
        },
    ];
    if let (Some(max), false) = (facts.file_max, facts.admin_capability) {
        bounds.push(Bound {
            connections: max.saturating_sub(facts.file_used.unwrap_or_default()),
            name: "fs.file-max",
            why: "open files of the whole system, less those in use".into(),
        });
    }
    if let Some((used, most)) = facts.conntrack.filter(|(used, _)| *used > 0) {
        bounds.push(Bound {
            connections: most.saturating_sub(used),
            name: "nf_conntrack_max",
            why: "connections that the firewall tracks, less those that it does".into(),
        });
    }
    bounds.push(Bound {
        connections: u64::from(settings.shard.connection_count_max),
        name: "connection_count_max",
        why: "the setting".into(),
    });
    bounds.sort_by_key(|bound| bound.connections);
    bounds
}
