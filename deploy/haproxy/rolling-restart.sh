#!/usr/bin/env bash
# Restarts the nodes behind HAProxy one after another, without a client being refused.
#
#   rolling-restart.sh [-s SOCKET] [-b BACKEND] [-t SECONDS] COMMAND
#
#   -s SOCKET   HAProxy's stats socket, of level admin (default /run/haproxy/throng.sock)
#   -b BACKEND  the backend that checks the nodes (default nodes)
#   -t SECONDS  how long a node may take to be well again after COMMAND (default 60)
#   COMMAND     restarts one node and returns when the old process has ended; a shell runs it with NODE, HOST and PORT set,
#               such as 'ssh "$HOST" systemctl restart throng'
#
# For each node: refuses to begin unless every other node is up; takes it out of the rotation (its clients stay); runs
# COMMAND, in which the node tells its clients to come back and closes them over its drain window; waits until GET /health
# answers 200; puts it back and waits until HAProxy's own check has found it well.
#
# What fails stops it there, and the node stays out of the rotation: the message says what puts it back.
# Exit status: 0 all are restarted; 1 stopped on the way; 2 wrong use. Needs socat and curl.
set -euo pipefail

SOCKET=/run/haproxy/throng.sock BACKEND=nodes PATIENCE_S=60
usage() {
    sed -n '2,18s/^# \{0,1\}//p' "$0"
    exit "$1"
}
while getopts s:b:t:h option; do
    case $option in
        s) SOCKET=$OPTARG ;;
        b) BACKEND=$OPTARG ;;
        t) PATIENCE_S=$OPTARG ;;
        h) usage 0 ;;
        *) usage 2 >&2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# = 1 ] || usage 2 >&2
COMMAND=$1

say() { printf '%(%H:%M:%S)T %s\n' -1 "$*"; }
stop() {
    printf 'rolling-restart: %s\n' "$*" >&2
    exit 1
}
for tool in socat curl; do
    command -v "$tool" >/dev/null || stop "$tool is missing: apt-get install $tool"
done
[ -S "$SOCKET" ] || stop "$SOCKET is no socket: is HAProxy running, and is this its stats socket?"

# One command to HAProxy. It answers errors as text, and a command that was carried out with nothing.
ask() { printf '%s\n' "$1" | socat -t 5 stdio "UNIX-CONNECT:$SOCKET"; }
order() {
    local answer
    answer=$(ask "$1")
    [ -z "${answer//[[:space:]]/}" ] || stop "HAProxy says to \"$1\": $answer"
}

# NAME ADDRESS:PORT STATUS CHECK for each server of the backend. Columns are found by their names.
nodes() {
    ask "show stat" | awk -F, -v backend="$BACKEND" '
        NR == 1 { sub(/^# /, ""); for (i = 1; i <= NF; i++) at[$i] = i; next }
        $at["pxname"] == backend && $at["svname"] != "BACKEND" && $at["svname"] != "FRONTEND" {
            print $at["svname"], $at["addr"], $at["status"] == "" ? "-" : $at["status"], $at["check_status"] == "" ? "-" : $at["check_status"]
        }'
}
status_of() { nodes | awk -v node="$1" '$1 == node { print $3, $4 }'; }

# Runs a test every fifth of a second until it holds or PATIENCE_S are over.
await() {
    local deadline=$((SECONDS + PATIENCE_S))
    until "$@"; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.2
    done
}
is_well() { curl -fsS --max-time 2 -o /dev/null "http://$1/health" 2>/dev/null; }
is_up() { [ "$(status_of "$1")" = "UP L7OK" ]; }

mapfile -t NODES < <(nodes)
[ ${#NODES[@]} -gt 0 ] || stop "there is no backend $BACKEND with servers"
[ ${#NODES[@]} -gt 1 ] || stop "$BACKEND has one server only: its clients would have nowhere to go"

for line in "${NODES[@]}"; do
    read -r NODE ADDRESS _ <<<"$line"
    for other in "${NODES[@]}"; do
        other=${other%% *}
        # "UP 1/2" is a node that awaits one more check, as all do right after HAProxy has started.
        [[ $(status_of "$other") != UP* ]] || await is_up "$other" || true
        is_up "$other" || stop "$other is $(status_of "$other"): every node has to be up before the next is taken out"
    done
    HOST=${ADDRESS%:*} PORT=${ADDRESS##*:}
    export NODE HOST PORT
    undo="put it back with: echo 'set server $BACKEND/$NODE state ready' | socat stdio $SOCKET"

    say "$NODE ($ADDRESS): no new clients"
    order "set server $BACKEND/$NODE state maint"
    say "$NODE: $COMMAND"
    sh -c "$COMMAND" || stop "the command ended with $? on $NODE, which is out of the rotation; $undo"
    await is_well "$ADDRESS" || stop "$NODE is not well after $PATIENCE_S s, and is out of the rotation; $undo"
    order "set server $BACKEND/$NODE state ready"
    await is_up "$NODE" || stop "HAProxy does not find $NODE well after $PATIENCE_S s: $(status_of "$NODE")"
    say "$NODE: back"
done
say "all ${#NODES[@]} nodes are restarted"
