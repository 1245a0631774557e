#!/usr/bin/env bash
# Measures what Redis between nodes costs, against bare Redis clients in the same run, and checks that several nodes are one.
#
#   scripts/measure-cluster.sh                 everything: about four minutes
#   scripts/measure-cluster.sh latency         or one or more of latency, throughput, nodes, rooms
#   scripts/measure-cluster.sh --write         puts the table into docs/SPECIFICATION.md
#
# Exit status: 0 when every promise is kept, 1 when one is not or a run had faults.
#
# SKIP_BUILD=1  takes the binaries that are there     ROUNDS=N     rounds of each side (5)
# DURATION=S    seconds of each round (4)             PRIORITY=N   runs Redis, nodes and clients at this nice value (0): below
#                                                                  0, as root, where others use the processors
# REALTIME=1    as root: the latency rounds go before all others (SCHED_RR), as on a machine that does nothing else
# OUT=DIR       reports and logs (target/measure-cluster)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh

for argument in "$@"; do
    case $argument in
        -h | --help)
            sed -n '2,14s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
    esac
done
if [ -z "${SKIP_BUILD:-}" ]; then
    need_rust
    need_linker
    cargo build --release --locked --workspace --bins
fi
need_python
need_servers redis-server
THRONG_BIN=$PWD/${CARGO_TARGET_DIR:-target}/release/throng
export THRONG_BIN THRONG_LOAD_BIN="$THRONG_BIN-load"
exec "$PYTHON" scripts/cluster/measure.py "$@"
