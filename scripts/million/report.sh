#!/bin/sh
# shellcheck shell=dash
# Judges what scenario.sh saw, and writes the report to standard output: report.sh RAW
#
# Exit code: 0 all went as it should; 1 something was lost, or the scenario did not go to its end.
set -u
RAW=$1
# shellcheck disable=SC1091
. "$RAW/settings"

# A mark of the scenario, a figure of the load generator, a metric of the server at the end of a phase; empty: none.
mark() { sed -n "s/^$1=//p" "$RAW/marks" | tail -1; }
figure() { sed -n "s/^ *\"$1\": *\(-\{0,1\}[0-9.eE+-]*\),\{0,1\}\$/\1/p" "$RAW/load.json" 2>/dev/null | head -1; }
metric() { awk -v name="$2" '{ key = $1; sub(/\{.*/, "", key) } key == name { sum += $NF; found = 1 } END { if (found) printf "%.0f", sum }' "$RAW/metrics-$1.txt" 2>/dev/null; }
# The same, rounded to some decimals, or down to a whole number.
rounded() { figure "$1" | awk -v digits="$2" -v scale="${3:-1}" '{ printf "%.*f", digits, $1 * scale }'; }
whole() {
    value=$(figure "$1")
    printf '%s' "${value%%.*}"
}
column() { head -1 "$RAW/timeline.csv" | tr , '\n' | grep -n "^$1\$" | cut -d: -f1; }
minus() { awk -v a="${1:-0}" -v b="${2:-0}" -v digits="${3:-0}" 'BEGIN { printf "%.*f", digits, a - b }'; }
rate() { awk -v n=$((N * MESSAGES)) -v s="${1:-0}" 'BEGIN { if (s > 0) printf "%.0f", n / s }'; }
grouped() { printf '%s' "${1:-none}" | sed -e ':a' -e 's/^\([0-9]\{1,\}\)\([0-9]\{3\}\)/\1,\2/;ta'; }

# slope COLUMN…: least squares of the columns' sum against connections while they grew, bytes per connection.
slope() {
    columns=''
    for name in "$@"; do columns="$columns $(column "$name")"; done
    awk -F, -v columns="$columns" -v from="$(mark ramp_from)" -v to="$(mark ramp_to)" '
        BEGIN { count = split(columns, index_of, " ") }
        NR > 1 && $1 >= from && $1 <= to + 1 && $2 > 0 {
            y = 0; for (i = 1; i <= count; i++) y += $index_of[i]
            n++; sx += $2; sy += y; sxx += $2 * $2; sxy += $2 * y
        }
        END { d = n * sxx - sx * sx; if (n >= 5 && d > 0) printf "%.0f", (n * sxy - sx * sy) / d * 1024; else printf "-" }' "$RAW/timeline.csv"
}

FAILED=0 CHECKS=''
# check WHAT WANTED FOUND TEST…: a row of the verdict; TEST is given to `test`.
check() {
    row="| $1 | $2 | $(grouped "$3") |"
    shift 3
    if test "$@" 2>/dev/null; then
        CHECKS="$CHECKS$row yes |
"
    else
        FAILED=1
        CHECKS="$CHECKS$row **no** |
"
    fi
}

given_up=$(mark given_up)
joined=$(metric ramped throng_connections)
check "connections joined, in one server process" "$(grouped "$N")" "${joined:-0}" "${joined:-0}" -ge "$N"
check "messages delivered, one to each member of each room" "$(grouped $((N * MESSAGES)))" "$(whole delivered)" "$(whole delivered)" -eq $((N * MESSAGES))
for fault in lost duplicated reordered corrupted misrouted; do
    check "$fault" 0 "$(whole $fault)" "$(whole $fault)" -eq 0
done
held=$(mark hold_connections)
check "connections open after a heartbeat interval" "$(grouped "$N")" "${held:-0}" "${held:-0}" -ge "$N"
pongs=$(minus "$(mark hold_pongs_to)" "$(mark hold_pongs_from)")
check "pings answered in that interval" "at least $(grouped "$N")" "$pongs" "$pongs" -ge "$N"
check "peers given up by the heartbeat" 0 "$(mark hold_dead)" "$(mark hold_dead)" -eq 0
check "closed with 1012 at the drain, as the clients saw it" "$(grouped "$N")" "$(whole closed_with_1012)" "$(whole closed_with_1012)" -eq "$N"
failed=$(whole connections_failed) cut=$(whole connections_lost)
troubled=$((${failed:-1} + ${cut:-1})) # a figure that is not there is no good sign
check "connections that failed, or were lost before the drain" 0 "$troubled" "$troubled" -eq 0
check "exit code of the server: nobody was cut" 0 "$(mark server_status)" "$(mark server_status)" -eq 0
check "exit code of the load generator: no fault" 0 "$(mark load_status)" "$(mark load_status)" -eq 0

if [ -n "$given_up" ] || [ "$FAILED" = 1 ]; then verdict="**failed**"; else verdict="**passed**"; fi
if [ "$PLACE" = here ]; then where="this machine: $HOST"; else where="a virtual machine ($ACCEL) with $CPUS processors and $(grouped "$MEMORY_MIB") MiB, Linux $(mark kernel), no network device; its host: $HOST"; fi

cat <<EOF
# $(grouped "$N") connections in one server process: $verdict

$(date -u +%Y-%m-%d), $where.
$(grouped "$ROOMS") rooms; both ends of every connection are on the one machine.

| | wanted | found | |
|---|---|---|---|
$CHECKS
EOF
[ -z "$given_up" ] || printf 'The scenario was given up: %s.\n\n' "$given_up"
if [ "$SPEED" = emulated ]; then
    cat <<'EOF'
The processor was emulated: its code runs 2 to 20 times slower than on a real one, system calls and page faults most of
all. Counts, bytes and losses are what they are anywhere; **seconds and rates say nothing about the server's speed**.

EOF
fi

cat <<EOF
## The ramp

$(minus "$(mark ramp_to)" "$(mark ramp_from)") s for all; a handshake took $(rounded handshake_p50_ms 1) ms at the median, $(rounded handshake_p99_ms 1) ms at p99.
Bytes are what has been added since before the first connection, divided by the connections.

| connections | after s | connections/s | server, resident | load generator, resident | kernel slab, both ends | the machine, all |
|---|---|---|---|---|---|---|
EOF
# A row for each step, by interpolation between the samples; the step's rate as the load generator measured it.
for goal in $(printf '%s' "$LOAD_FLAGS" | sed 's/.*--steps \([0-9,]*\).*/\1/' | tr , ' '); do
    awk -F, -v goal="$goal" -v from="$(mark ramp_from)" '
        NR == 2 { for (i = 1; i <= NF; i++) base[i] = $i }
        NR > 1 && $2 >= goal && last[2] < goal {
            part = (goal - last[2]) / ($2 - last[2])
            printf "%.1f", last[1] + part * ($1 - last[1]) - from
            for (i = 7; i <= 10; i++) printf " %.0f", (last[i] + part * ($i - last[i]) - base[i]) * 1024 / goal
            exit
        }
        { for (i = 1; i <= NF; i++) last[i] = $i }' "$RAW/timeline.csv" | {
        read -r after server load slab used || true
        [ -z "$used" ] || printf '| %s | %s | %s | %s | %s | %s | %s |\n' "$(grouped "$goal")" "$after" "$(grouped "$(whole "handshakes_per_s_to_$goal")")" \
            "$(grouped "$server")" "$(grouped "$load")" "$(grouped "$slab")" "$(grouped "$used")"
    }
done
cat <<EOF

## What a connection takes

Slopes over the ramp (least squares over all samples), in bytes.

| | bytes for each connection |
|---|---|
| server process, resident | $(grouped "$(slope server_rss_kib)") |
| load generator process, resident | $(grouped "$(slope load_rss_kib)") |
| kernel slab, both ends | $(grouped "$(slope slab_kib)") |
| the machine, everything (used memory without page cache) | $(grouped "$(slope used_kib)") |

Server at all $(grouped "$N"): $(grouped "$(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "$RAW/server-ramped.txt" 2>/dev/null)") KiB resident, after the message $(grouped "$(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' "$RAW/server-cast.txt" 2>/dev/null)") KiB at most;
$(mark server_files_ramped) entries in its table of open files.

| slab cache, all $(grouped "$N") joined | MiB more than before | objects | bytes each |
|---|---|---|---|
$(awk 'FNR <= 2 { next } NR == FNR { was[$1] = $3; next } { grown = ($3 - was[$1]) * $4; if (grown > 1048576) printf "| %s | %.0f | %.0f | %d |\n", $1, grown / 1048576, $3 - was[$1], $4 }' \
    "$RAW/slab-none.txt" "$RAW/slab-ramped.txt" 2>/dev/null | sort -t'|' -k3,3nr | head -10)

## One message to everybody

EOF
cat <<EOF
One publisher in each of the $(grouped "$ROOMS") rooms, all at the same moment; each member answers for itself that it has come, whole, once.

- until the last member had it: $(rounded broadcast_seconds 2) s ($(grouped "$(rate "$(figure broadcast_seconds)")") deliveries/s)
- half of the members had it after $(rounded broadcast_p50_ms 1) ms, 99 of 100 after $(rounded broadcast_p99_ms 1) ms, the last after $(rounded broadcast_max_ms 1) ms

## A heartbeat interval

- pings every $PING_S s to each connection; held for $(minus "$(mark hold_to)" "$(mark hold_from)") s
- $(grouped "$(minus "$(mark hold_pings_to)" "$(mark hold_pings_from)")") pings sent, $(grouped "$pongs") answered, $(grouped "$(mark hold_dead)") peers given up

## The drain

- $(minus "$(mark drain_to)" "$(mark drain_from)") s from SIGTERM to the end of the process; the window was $DRAIN_S s; exit code $(mark server_status)
EOF
cat <<EOF
- from the first close to the last, as the clients saw it: $(rounded close_spread_seconds 1) s
EOF
sed -n 's/^ *"closed_with_\([0-9]*\)": \([0-9]*\)[.0-9]*,*$/- closed with \1: \2/p' "$RAW/load.json" 2>/dev/null
echo "- told when to come back: $(grouped "$(whole advised_to_reconnect)")"
cat <<EOF

## How

    throng serve $SERVE_FLAGS
    throng-load $LOAD_FLAGS

What throng check said of the host:

$(sed 's/^/    /' "$RAW/check.txt" 2>/dev/null)
EOF
[ -z "$given_up" ] && [ "$FAILED" = 0 ]
