//! Addresses to bind, and the kernel's TCP settings.

use super::{Finding, grouped, sized};
use crate::config::Settings;
use crate::runtime::host::{HostFacts, PortState};

/// Queued data for each connection below which the kernel's TCP memory is said to be short: one full queue of a page.
const TCP_BYTES_PER_CONNECTION: u64 = 4_096;

pub(super) fn findings(settings: &Settings, facts: &HostFacts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = ports(facts).collect();
    findings.extend(backlog(settings, facts));
    findings.extend(syn_backlog(settings, facts));
    findings.extend(tcp_memory(settings, facts));
    findings.extend(orphans(settings, facts));
    findings.extend(conntrack(settings, facts));
    findings.extend(port_range(facts));
    findings
}

fn ports(facts: &HostFacts) -> impl Iterator<Item = Finding> + '_ {
    facts.ports.iter().map(|(address, state)| {
        let name = format!("address {address}");
        match state {
            PortState::Free => Finding::ok(&name, "free"),
            PortState::Taken => Finding::fail(&name, "somebody has it already").mended_by(format!(
                "ss -ltnp 'sport = :{}' tells who; stop it, or write another port",
                address.port()
            )),
            PortState::Forbidden => Finding::fail(&name, "this process may not bind it")
                .mended_by("setcap cap_net_bind_service=+ep /path/to/throng")
                .mended_by("systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE"),
            PortState::Refused(words) => {
                Finding::fail(&name, format!("it cannot be bound: {words}"))
                    .mended_by("write an address that this host has; `ip address` lists them")
            }
        }
    })
}

fn backlog(settings: &Settings, facts: &HostFacts) -> Option<Finding> {
    let somaxconn = facts.somaxconn?;
    let wanted = u64::from(settings.socket.backlog);
    let name = "net.core.somaxconn";
    Some(match somaxconn >= wanted {
        true => Finding::ok(name, format!("{somaxconn}, for a backlog of {wanted}")),
        false => Finding::warn(name, format!("{somaxconn} cuts the backlog of {wanted}: bursts of connects are dropped and come back after a second"))
            .mended_by(format!("sysctl -w net.core.somaxconn={wanted}")),
    })
}

fn syn_backlog(settings: &Settings, facts: &HostFacts) -> Option<Finding> {
    let most = facts.syn_backlog?;
    let wanted = u64::from(settings.socket.backlog);
    let name = "net.ipv4.tcp_max_syn_backlog";
    Some(match most >= wanted {
        true => Finding::ok(name, format!("{most}, for a backlog of {wanted}")),
        false => Finding::warn(name, format!("{most} half-open connections, fewer than the backlog of {wanted}: in a burst of connects from afar the kernel falls back on SYN cookies"))
            .mended_by(format!("sysctl -w net.ipv4.tcp_max_syn_backlog={wanted}")),
    })
}

fn tcp_memory(settings: &Settings, facts: &HostFacts) -> Option<Finding> {
    let [_, pressure, high] = facts.tcp_memory_bytes?;
    let connections = u64::from(settings.shard.connection_count_max);
    let each = pressure / connections.max(1);
    let name = "net.ipv4.tcp_mem";
    let seen = format!(
        "the kernel queues {} for all sockets before it slows them and {} before it drops; {} for each of {}",
        sized(pressure),
        sized(high),
        sized(each),
        grouped(connections),
    );
    Some(match each >= TCP_BYTES_PER_CONNECTION {
        true => Finding::ok(name, seen),
        false => {
            let pages = connections
                .saturating_mul(TCP_BYTES_PER_CONNECTION)
                .div_ceil(4_096);
            let (low, high) = (pages / 4 * 3, pages / 2 * 3);
            Finding::warn(
                name,
                format!("{seen}: one wide fan-out to slow readers meets it"),
            )
            .mended_by(format!(
                "sysctl -w net.ipv4.tcp_mem=\"{low} {pages} {high}\""
            ))
        }
    })
}

fn orphans(settings: &Settings, facts: &HostFacts) -> Option<Finding> {
    let most = facts.tcp_orphans_max?;
    let connections = u64::from(settings.shard.connection_count_max);
    let name = "net.ipv4.tcp_max_orphans";
    Some(match most >= connections {
        true => Finding::ok(name, grouped(most)),
        false => Finding::warn(
            name,
            format!("{}: when more are closed at once with data unsent, the rest is reset and may miss its close frame", grouped(most)),
        )
        .mended_by(format!("sysctl -w net.ipv4.tcp_max_orphans={connections}")),
    })
}

fn conntrack(settings: &Settings, facts: &HostFacts) -> Option<Finding> {
    let (used, most) = facts.conntrack?;
    let connections = u64::from(settings.shard.connection_count_max);
    let name = "net.netfilter.nf_conntrack_max";
    let seen = format!("{} connections tracked of {}", grouped(used), grouped(most));
    // The module being loaded does not mean that a rule tracks our port; an idle table is no obstacle.
    Some(
        match most.saturating_sub(used) >= connections || used == 0 {
            true => Finding::ok(name, seen),
            false => Finding::warn(
                name,
                format!("{seen}: beyond it the firewall drops packets"),
            )
            .mended_by(format!(
                "sysctl -w net.netfilter.nf_conntrack_max={}",
                used + connections * 2
            ))
            .mended_by("exempt the port: nft add rule raw prerouting tcp dport PORT notrack"),
        },
    )
}

fn port_range(facts: &HostFacts) -> Option<Finding> {
    let (low, high) = facts.port_range?;
    let count = high.saturating_sub(low) + 1;
    Some(Finding::ok(
        "net.ipv4.ip_local_port_range",
        format!(
            "{low} to {high}: {} outgoing connections to one address and port; clients of the server need none of them",
            grouped(count)
        ),
    ))
}
