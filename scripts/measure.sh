#!/usr/bin/env bash
# Measures what this project promises, on this machine, and prints the lines of docs/SPECIFICATION.md.
#
#   ./scripts/measure.sh [--write] [memory|descriptors|echo|fanout|handshakes|slow|shards|all]...
#
# --write puts the table into docs/SPECIFICATION.md (all measurements only).
# The server and each bare loop ("floor") run on processor SERVER_CORE in turn, the client on CLIENT_CORE; rounds
# alternate between them, and medians are compared. Nothing leaves the loopback interface. Everything it starts it
# stops, also when interrupted. Exit code 1 when a promise was not kept or a run had a fault.
#
# Environment: ROUNDS (3), DURATION of a round in seconds (4), SERVER_CORE (1), CLIENT_CORE (0), PORT of the server (18080;
# the following nine are used, too), OUT for the reports of all rounds (target/measure), SKIP_BUILD (unset).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh

ROUNDS=${ROUNDS:-3}
DURATION=${DURATION:-4}
SERVER_CORE=${SERVER_CORE:-1}
CLIENT_CORE=${CLIENT_CORE:-0}
PORT=${PORT:-18080}
OUT=${OUT:-target/measure}
BIN=${CARGO_TARGET_DIR:-target}/release
ADMIN=$((PORT + 1))

say() { printf '%s\n' "$*" >&2; }
die() { say "measure: $*"; exit 2; }

topics=()
write=
for topic in "$@"; do
    case $topic in
        memory | descriptors | echo | fanout | handshakes | slow | shards | all) topics+=("$topic") ;;
        --write) write=1 ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; die "no such measurement: $topic" ;;
    esac
done
[ ${#topics[@]} -gt 0 ] || topics=(all)
[ -z "$write" ] || [ "${topics[*]}" = all ] || die "--write needs all measurements"
wants() { local topic; for topic in "${topics[@]}"; do [ "$topic" = "$1" ] || [ "$topic" = all ] && return 0; done; return 1; }

processors=$(nproc)
[ "$processors" -ge 2 ] || die "at least two processors are needed: one for the server, one for the client"

# --- what is started, and its end -------------------------------------------------------------------------------

pids=()
# Ends one process by its id, and waits for it; one that does not end within ten seconds is a fault.
stop() {
    local pid=$1 kept=() other try
    kill "$pid" 2>/dev/null || true
    for try in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    if kill -KILL "$pid" 2>/dev/null; then
        faults=$((faults + 1))
        say "FAULT: process $pid did not end within ten seconds of SIGTERM"
    fi
    wait "$pid" 2>/dev/null || true
    for other in ${pids[@]+"${pids[@]}"}; do [ "$other" = "$pid" ] || kept+=("$other"); done
    pids=(${kept[@]+"${kept[@]}"})
}
finish() {
    local pid
    for pid in ${pids[@]+"${pids[@]}"}; do kill -KILL "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done
}
trap finish EXIT
trap 'exit 130' INT TERM

# start PORT COMMAND...: runs it in the background, waits until the port answers, leaves its id in $started.
start() {
    local port=$1 log="$OUT/server-$1.log"
    shift
    "$@" >"$log" 2>&1 &
    started=$!
    pids+=("$started")
    local try
    for try in $(seq 200); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return 0
        kill -0 "$started" 2>/dev/null || break
        sleep 0.05
    done
    say "--- $log"; tail -n 20 "$log" >&2
    die "did not start: $*"
}
start_throng() { # SHARDS [CORES]
    start "$PORT" env ${SERVER_ENVIRONMENT:-} "$BIN/throng" serve --listen "127.0.0.1:$PORT" --admin "127.0.0.1:$ADMIN" \
        --shards "$1" --cores "${2:-$SERVER_CORE}" --drain-window-ms 0 --drain-deadline-ms 2000
}
start_floor() { # PORT KIND [ARGUMENT...]
    local port=$1 kind=$2
    shift 2
    start "$port" "$BIN/throng-load" floor "$kind" --listen "127.0.0.1:$port" --core "$SERVER_CORE" --duration 3600 "$@"
}

# --- one round, and figures over rounds ---------------------------------------------------------------------------

faults=0
# round NAME NUMBER PORT PID SCENARIO [ARGUMENT...]: one run of the client; its report goes to $OUT/NAME.NUMBER.
round() {
    local name=$1 number=$2 port=$3 pid=$4 scenario=$5 report="$OUT/$1.$2"
    shift 5
    local pin=(--core "$CLIENT_CORE")
    [ -z "${CLIENT_FREE:-}" ] || pin=()
    if ! "$BIN/throng-load" "$scenario" --target "ws://127.0.0.1:$port" --server-pid "$pid" ${pin[@]+"${pin[@]}"} \
        --json "$report.json" "$@" >"$report" 2>"$report.err"; then
        faults=$((faults + 1))
        say "FAULT in $name, round $number: $(grep -h -e '^FAULT' "$report" || cat "$report.err")"
    fi
}
# values NAME FIGURE: one a line, over all rounds that have it.
values() {
    local file
    for file in "$OUT/$1".[0-9] "$OUT/$1".[0-9][0-9]; do
        if [ -f "$file" ]; then awk -v name="$2" '$1 == name { print $2 }' "$file"; fi
    done
}
# median NAME FIGURE: or nan.
median() {
    values "$1" "$2" | sort -g | awk '{ value[NR] = $1 } END {
        if (NR == 0) print "nan"
        else if (NR % 2) print value[(NR + 1) / 2]
        else print (value[NR / 2] + value[NR / 2 + 1]) / 2 }'
}
# most NAME FIGURE: the largest, or nan.
most() { values "$1" "$2" | sort -g | awk '{ most = $1 } END { print (NR ? most : "nan") }'; }
compute() { awk -v a="$1" -v b="$3" -v operator="$2" 'BEGIN {
    if (operator == "/") print (b > 0 ? a / b : "nan"); else if (operator == "+") print a + b; else print a * b }'; }
format() { awk -v value="$1" -v places="${2:-2}" 'BEGIN { if (value == "nan") print value; else printf "%.*f\n", places, value }'; }

# row PROMISE BOUND MEASURED VERDICT DETAIL: prints a line of the table, and keeps it.
row() { printf '| %s | %s | %s | %s | %s |\n' "$@" | tee -a "$OUT/table.md"; }

missed=0
# promise TEXT VALUE OPERATOR BOUND DETAIL: prints a line of the table.
promise() {
    local verdict=kept
    if ! awk -v value="$2" -v bound="$4" -v operator="$3" 'BEGIN {
        if (value == "nan") exit 1
        exit !(operator == "<=" ? value <= bound : operator == ">=" ? value >= bound : value == bound) }'; then
        verdict="**missed**"
        missed=$((missed + 1))
    fi
    row "$1" "$3 $4" "$(format "$2" "${6:-2}")" "$verdict" "$5"
}

# --- the promises ---------------------------------------------------------------------------------------------------

measure_memory() {
    # Transparent huge pages make resident memory rise 2 MiB at a time, which is 175 bytes for each of 12,000
    # connections: the allocator does without them here, so that the slope is the connections'.
    SERVER_ENVIRONMENT=MIMALLOC_ALLOW_THP=0 start_throng 1
    local pid=$started
    # A first crowd that comes and goes: what the server allocates once is not a connection's.
    round memory-warm 1 "$PORT" "$pid" idle --connections 1000 --settle 0.5 --hold 0
    round memory 1 "$PORT" "$pid" idle --steps 4000,16000 --settle 2 --hold 0
    promise "process memory per idle connection in one room, bytes" "$(median memory server_rss_bytes_per_connection)" "<=" 128 \
        "slope of resident memory between 4,000 and 16,000 connections, in 4 KiB pages; kernel, both ends: $(format "$(median memory kernel_slab_bytes_per_connection_both_ends)" 0) bytes" 1
    round churn-leak 1 "$PORT" "$pid" churn --connections 200000 --warm-up 20000 --concurrency 256
    promise "growth over 200,000 connects and closes, bytes each" "$(median churn-leak server_rss_growth_bytes_per_handshake)" "<=" 1 \
        "resident memory, $(median churn-leak server_rss_growth_bytes) bytes in all; descriptors $(median churn-leak server_descriptor_growth)" 2
    stop "$pid"
}

measure_descriptors() {
    local limit
    limit=$(ulimit -n)
    if [ "$limit" -gt 20000 ]; then ulimit -n 20000; limit=20000; fi
    # A table of the ring holds as many files as the limit: 100,000 connections need six at least, on each side.
    SERVER_ENVIRONMENT=MIMALLOC_ALLOW_THP=0 start_throng 7
    local pid=$started
    CLIENT_FREE=1 round descriptors 1 "$PORT" "$pid" idle --steps 25000,100000 --rooms 100 --messages 3 --settle 1 --hold 30 --connecting 1024
    promise "connections of one process with an open-file limit of $limit, from one generator with the same limit" "$(median descriptors held)" ">=" 100000 \
        "7 shards; $(median descriptors server_descriptors) entries in the process's file table; $(format "$(median descriptors handshakes_per_s)" 0) handshakes a second" 0
    promise "the same: of three messages to all of them, lost" "$(median descriptors lost)" "=" 0 \
        "$(median descriptors delivered) delivered, the slowest to all in $(format "$(median descriptors broadcast_seconds)") s; $(format "$(median descriptors server_rss_bytes_per_connection)" 1) bytes of the process each" 0
    stop "$pid"
}

measure_echo() {
    start_floor $((PORT + 2)) epoll-echo
    local floor=$started
    start_throng 1
    local pid=$started number depth
    for number in $(seq "$ROUNDS"); do
        for depth in 1 16; do
            round "echo-floor-$depth" "$number" $((PORT + 2)) "$floor" echo --connections 500 --in-flight $depth --size 64 --duration "$DURATION"
            round "echo-$depth" "$number" "$PORT" "$pid" echo --connections 500 --in-flight $depth --size 64 --duration "$DURATION"
        done
    done
    local cpu floor_cpu slow fast
    cpu=$(median echo-1 server_cpu_us_per_message)
    floor_cpu=$(median echo-floor-1 server_cpu_us_per_message)
    promise "echo, 64 B, 500 connections: CPU against a bare epoll loop" "$(compute "$cpu" / "$floor_cpu")" "<=" 0.85 \
        "$(format "$cpu") us against $(format "$floor_cpu") us a message, 1 in flight; p99 $(format "$(median echo-1 latency_p99_ms)") ms against $(format "$(median echo-floor-1 latency_p99_ms)") ms"
    slow=$(median echo-1 messages_per_s)
    fast=$(median echo-16 messages_per_s)
    promise "echo, 16 in flight: messages a second against 1 in flight" "$(compute "$fast" / "$slow")" ">=" 8 \
        "$(format "$fast" 0)/s against $(format "$slow" 0)/s (the bare loop: $(format "$(median echo-floor-16 messages_per_s)" 0)/s against $(format "$(median echo-floor-1 messages_per_s)" 0)/s)"
    # The generator against the bare loop that it drives: who is dearer?
    for depth in 1 16; do
        cpu=$(median echo-floor-$depth client_cpu_us_per_message)
        floor_cpu=$(median echo-floor-$depth server_cpu_us_per_message)
        promise "the generator's own CPU a message against the bare epoll loop's, $depth in flight" "$(compute "$cpu" / "$floor_cpu")" "<=" 1 \
            "$(format "$cpu") us against $(format "$floor_cpu") us; the loop's thread was busy $(format "$(median echo-floor-$depth server_busiest_thread_share)"), the generator's $(format "$(median echo-floor-$depth client_busiest_thread_share)") of the time"
    done
    stop "$pid"
    stop "$floor"
}

measure_fanout() {
    local rate=20 members=5000 bytes=128
    start_floor $((PORT + 3)) write-fanout --members $members --rate $rate --size $bytes
    local by_write=$started
    start_floor $((PORT + 4)) uring-fanout --members $members --rate $rate --size $bytes
    local by_uring=$started
    start_throng 1
    local pid=$started number
    local traffic=(--members $members --rate $rate --size $bytes --duration "$DURATION")
    for number in $(seq "$ROUNDS"); do
        round fanout-write "$number" $((PORT + 3)) "$by_write" fanout "${traffic[@]}" --publishers 0
        round fanout-uring "$number" $((PORT + 4)) "$by_uring" fanout "${traffic[@]}" --publishers 0
        round fanout "$number" "$PORT" "$pid" fanout "${traffic[@]}" --publishers 1
    done
    local cpu write_cpu uring_cpu bound
    cpu=$(median fanout server_cpu_us_per_delivery)
    write_cpu=$(median fanout-write server_cpu_us_per_delivery)
    uring_cpu=$(median fanout-uring server_cpu_us_per_delivery)
    promise "fan-out, 5,000 members, 128 B, 20/s: CPU against a bare write() loop" "$(compute "$cpu" / "$write_cpu")" "<=" 0.75 \
        "$(format "$cpu") us against $(format "$write_cpu") us a delivery"
    promise "the same against a bare batched io_uring SEND loop" "$(compute "$cpu" / "$uring_cpu")" "<=" 1.25 \
        "$(format "$cpu") us against $(format "$uring_cpu") us a delivery"
    promise "the same: deliveries lost" "$(most fanout lost)" "=" 0 "of $(median fanout delivered) in a round"  0
    # The last member's turn comes when all the others' sends are done: members times the CPU of a delivery.
    bound=$(format "$(compute "$(compute "$cpu" '*' 5)" + 5)" 1)
    promise "the same: p99 within the sends' own time and 5 ms, ms" "$(median fanout latency_p99_ms)" "<=" "$bound" \
        "5,000 x $(format "$cpu") us + 5 ms; p50 $(format "$(median fanout latency_p50_ms)") ms; the bare loops' p99: $(format "$(median fanout-write latency_p99_ms)") ms, $(format "$(median fanout-uring latency_p99_ms)") ms" 1
    stop "$pid"
    stop "$by_uring"
    stop "$by_write"
}

measure_handshakes() {
    start_floor $((PORT + 5)) accept
    local floor=$started
    start_throng 1
    local pid=$started number
    local load=(--connections 20000 --warm-up 2000 --concurrency 64)
    for number in $(seq "$ROUNDS"); do
        round handshakes-floor "$number" $((PORT + 5)) "$floor" churn "${load[@]}"
        round handshakes "$number" "$PORT" "$pid" churn "${load[@]}"
    done
    local cpu floor_cpu
    cpu=$(median handshakes server_cpu_us_per_handshake)
    floor_cpu=$(median handshakes-floor server_cpu_us_per_handshake)
    promise "handshake, its end included: CPU against a bare accept, read, answer, write server" "$(compute "$cpu" / "$floor_cpu")" "<=" 1.1 \
        "$(format "$cpu") us against $(format "$floor_cpu") us; $(format "$(median handshakes handshakes_per_s)" 0)/s against $(format "$(median handshakes-floor handshakes_per_s)" 0)/s"
    stop "$pid"
    stop "$floor"
}

measure_slow() {
    local number
    for number in $(seq "$ROUNDS"); do
        SERVER_ENVIRONMENT=MIMALLOC_ALLOW_THP=0 start_throng 1
        local pid=$started
        round slow "$number" "$PORT" "$pid" slow --readers 1000 --stalled 1000 --rate 20 --size 8192 --warm-up 2 --duration $((DURATION * 2))
        admin_metrics >"$OUT/slow.$number.metrics"
        stop "$pid"
    done
    promise "1,000 members that never read: the readers' p99 against the run without them" "$(median slow p99_ratio)" "<=" 1.5 \
        "p99 $(format "$(median slow beside_slow_latency_p99_ms)") ms against $(format "$(median slow alone_latency_p99_ms)") ms; of 1,000, $(median slow slow_closed_by_server) were closed"
    promise "the same: the server's memory for each of them, bytes" "$(median slow server_rss_peak_growth_bytes_per_slow)" "<=" 66560 \
        "growth of the peak; the budget is 64 KiB of queue and 1 KiB of control reserve a connection" 0
    promise "the same: deliveries lost by readers" "$(most slow lost)" "=" 0 "of $(median slow delivered) in a round" 0
    say "what happened is in $OUT/slow.*.metrics:"
    grep -h -i -E '^[a-z_]*(drop|gap|close)[a-z_]*\{[^}]*(slow|policy|stall)' "$OUT/slow.1.metrics" >&2 || true
}
admin_metrics() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$ADMIN"
        printf 'GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
        timeout 5 cat <&3
    ) 2>/dev/null || say "no metrics at 127.0.0.1:$ADMIN"
}

measure_shards() {
    if [ "$processors" -lt 4 ]; then
        row "two shards against one: deliveries a second" ">= 1.7" - "not measured" \
            "needs 4 processors, two for the server and two for the client; this machine has $processors"
        return
    fi
    local number shards one two
    for number in $(seq "$ROUNDS"); do
        for shards in 1 2; do
            start_throng $shards "$([ $shards = 1 ] && echo 2 || echo 2,3)"
            # Echo traffic in rooms of their own asks as much as the server can give; the client has processors 0 and 1.
            CLIENT_FREE=1 round "shards-$shards" "$number" "$PORT" "$started" echo --connections 500 --in-flight 4 --size 64 --duration "$DURATION" --threads 2
            stop "$started"
        done
    done
    one=$(median shards-1 messages_per_s)
    two=$(median shards-2 messages_per_s)
    promise "two shards against one: deliveries a second" "$(compute "$two" / "$one")" ">=" 1.7 "$(format "$two" 0)/s against $(format "$one" 0)/s"
}

# --- the run ----------------------------------------------------------------------------------------------------------

if [ -z "${SKIP_BUILD:-}" ]; then
    say "building (release)"
    cargo build --release --workspace --quiet
fi
[ -x "$BIN/throng" ] && [ -x "$BIN/throng-load" ] || die "no binaries in $BIN"
rm -rf "$OUT"
mkdir -p "$OUT"

model=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
{
    printf 'Measured %s: Linux %s, %s x %s, open-file limit %s, %s rounds of %s s, load %s at the start.\n\n' \
        "$(date -u +%F)" "$(uname -r)" "$processors" "${model:-processor}" "$(ulimit -n)" "$ROUNDS" "$DURATION" "$(cut -d' ' -f1 /proc/loadavg)"
    printf '| promise | bound | measured | verdict | detail |\n|---|---|---|---|---|\n'
} | tee "$OUT/table.md"
for topic in memory descriptors echo fanout handshakes slow shards; do
    if wants $topic; then
        say "measuring $topic"
        "measure_$topic"
    fi
done
waited=$(cat "$OUT"/*.[0-9] | awk '$1 ~ /_waited_share$/ && $2 > most { most = $2 } END { printf "%.0f", most * 100 }')
printf '\nOthers had the processors for at most %s%% of the time in which server or client could have run (the worst round).\n' \
    "$waited" | tee -a "$OUT/table.md"
if [ -n "$write" ]; then
    awk -v table="$OUT/table.md" '
        /^<!-- end of what measure.sh writes -->$/ { inside = 0 }
        !inside { print }
        /^<!-- measure.sh writes from here -->$/ { inside = 1; while ((getline line < table) > 0) print line }
    ' docs/SPECIFICATION.md >"$OUT/SPECIFICATION.md"
    cat "$OUT/SPECIFICATION.md" >docs/SPECIFICATION.md
fi
[ "$faults" = 0 ] || say "$faults rounds had faults: see above, and $OUT/*.err"
[ "$faults" = 0 ] && [ "$missed" = 0 ]
