# shellcheck shell=busybox
# A host for a million connections: what docs/OPERATING.md ("The host") recommends, and for the clients, which are on
# the same host here, a wide range of ports. Sourced, so that the limits reach what is started next.
setting() { echo "$2" >"$1" || echo "million: $1 could not be set to $2"; }
setting /proc/sys/fs/nr_open 4200000
setting /proc/sys/fs/file-max 16000000
setting /proc/sys/net/core/somaxconn 65535
setting /proc/sys/net/ipv4/tcp_max_syn_backlog 65535
setting /proc/sys/net/ipv4/tcp_max_orphans 4200000
setting /proc/sys/net/ipv4/tcp_mem "1000000 1500000 2000000"
setting /proc/sys/net/ipv4/ip_local_port_range "1024 65535"
setting /proc/sys/net/core/netdev_max_backlog 65536
setting /proc/sys/net/ipv4/tcp_max_tw_buckets 4200000
setting /sys/kernel/mm/transparent_hugepage/enabled madvise
ulimit -n 4200000
ulimit -l unlimited
