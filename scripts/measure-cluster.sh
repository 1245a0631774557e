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

help_if_asked "$@"
if [ -z "${SKIP_BUILD:-}" ]; then
    need_build
    cargo build --release --locked --workspace --bins
fi
need_python
need_servers redis-server
THRONG_BIN=$(built release/throng)
export THRONG_BIN THRONG_LOAD_BIN="$THRONG_BIN-load"
exec "$PYTHON" scripts/cluster/measure.py "$@"
