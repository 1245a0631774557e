#!/usr/bin/env bash
# Builds Throng, starts it, lets clients talk in several rooms on several cores, and stops it gracefully.
#
#   scripts/run.sh          a demonstration of about half a minute, once it is built
#   scripts/run.sh --stay   starts the server and leaves it running in the foreground, with the commands to try
#
# THRONG_BIN=PATH runs that program instead of building one. LISTEN_PORT and ADMIN_PORT choose the ports.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh

STAY=no
for argument in "$@"; do
    case $argument in
        --stay) STAY=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) fail "unknown argument $argument (try --help)" ;;
    esac
done

demonstration_needs
NODE=no
if want_node; then
    NODE=yes
    note "node $(node --version), ws"
else
    note "no node: only Python clients will talk"
fi

demonstration_program
# The program takes no variable beginning with THRONG_ that is not a setting of its own.
BINARY=$THRONG_BIN
unset THRONG_BIN

port() { "$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
LISTEN=127.0.0.1:${LISTEN_PORT:-$(port)}
ADMIN=127.0.0.1:${ADMIN_PORT:-$(port)}
SHARDS=$(nproc)
[ "$SHARDS" -ge 2 ] || SHARDS=2
[ "$SHARDS" -le 8 ] || SHARDS=8
WINDOW=3s

SERVE=("$BINARY" serve --listen "$LISTEN" --admin "$ADMIN" --shards "$SHARDS" --drain-window-ms "$WINDOW")

if [ "$STAY" = yes ]; then
    step "Running until Ctrl-C: $SHARDS shards, no Redis"
    cat <<EOF

   clients      ws://$LISTEN/rooms/ROOM
   admin        http://$ADMIN   (livez, readyz, metrics, v1/…)

   In another terminal:
     join and talk     $PYTHON -m websockets ws://$LISTEN/rooms/lobby
     say something     curl -d 'hello, everybody' http://$ADMIN/v1/rooms/lobby/publish
     who is where      curl http://$ADMIN/v1/rooms
     each shard        curl http://$ADMIN/v1/stats
     metrics           curl http://$ADMIN/metrics
     health            curl -i http://$LISTEN/health

   Ctrl-C tells every client to reconnect, closes them within $WINDOW, and ends with exit code 0.

EOF
    exec "${SERVE[@]}"
fi

LOG=$(mktemp)
SERVER=
cleanup() {
    if [ -n "$SERVER" ] && kill -0 "$SERVER" 2>/dev/null; then
        kill -KILL "$SERVER" 2>/dev/null || true
    fi
    rm -f "$LOG"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

step "3. Starting: $SHARDS shards, no Redis (the embedded default)"
note "${SERVE[*]}"
"${SERVE[@]}" >"$LOG" 2>&1 &
SERVER=$!

OUTCOME=0
"$PYTHON" scripts/demo.py --url "ws://$LISTEN" --admin "http://$ADMIN" --pid "$SERVER" --node "$NODE" || OUTCOME=$?

EXIT=0
wait "$SERVER" || EXIT=$?
SERVER=
note "exit code of the server: $EXIT"
if [ "$OUTCOME" != 0 ] || [ "$EXIT" != 0 ]; then
    printf '\n'
    tail -20 "$LOG"
    fail "the demonstration did not go as it should (clients: $OUTCOME, server: $EXIT)"
fi
printf '\n%sAll went as it should.%s   scripts/run.sh --stay leaves a server running to play with.\n' "$GREEN" "$PLAIN"
