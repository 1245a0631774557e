#!/usr/bin/env bash
# Starts Redis, three nodes and a balancer on loopback, lets clients talk across nodes, kills a node and then Redis while
# they talk, shows what happens, and cleans up.
#
#   scripts/cluster.sh          a demonstration of under a minute, once it is built; exit code 0: all of it came true
#   scripts/cluster.sh --stay   starts everything and leaves it running until Ctrl-C, with the addresses to try
#
# THRONG_BIN=PATH runs that program instead of building one. Ports are free ones; files are in a temporary directory.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh

ARGUMENTS=()
for argument in "$@"; do
    case $argument in
        --stay) ARGUMENTS+=("$argument") ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) fail "unknown argument $argument (try --help)" ;;
    esac
done

demonstration_needs
need_servers redis-server haproxy
note "$(redis-server --version | cut -d' ' -f1-3), $(PATH=$PATH:/usr/sbin haproxy -v | head -n 1 | cut -d' ' -f1-3)"

demonstration_program
export THRONG_BIN

# It takes this script's place, so that it is what a signal reaches.
exec "$PYTHON" scripts/cluster/demonstration.py ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}
