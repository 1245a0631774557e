#!/usr/bin/env bash
# What happens to clients, with traffic on, when Redis, a link or a node fails: each fault is done for real, and what every
# member heard is compared with what every publisher sent.
#
#   scripts/faults.sh                        every fault in every mode: about twenty minutes
#   scripts/faults.sh --only redis-killed    one or more, separated by commas (--list has their names)
#   scripts/faults.sh --mode pubsub          one or more of pubsub, sharded, streams
#   scripts/faults.sh --runs 3               each of them so often; the table has the least and the most of it
#   scripts/faults.sh --write                puts what was found, as it is found, into the table of docs/SPECIFICATION.md
#   scripts/faults.sh --json FILE            writes what was found there, too
#
# Exit status: 1 when a promise breaks: a message is lost and nobody was told, comes twice or in another order than its
# publisher's, a fault is not found, or not healed in time in every room, or anything at all is lost in mode streams by who was connected.
#
# THRONG_BIN=PATH runs that program instead of building one (debug build: nothing here is a matter of speed).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh

help_if_asked "$@"
need_python
need_program debug
export THRONG_BIN
need_servers redis-server
have redis-cli || fail "redis-cli is needed (Debian: redis-tools)"
exec "$PYTHON" scripts/faults/run.py "$@"
