#!/bin/sh
# shellcheck shell=dash
# One server process and N connections to it: ramp, one message to everybody, a heartbeat interval, drain.
#
#   scenario.sh SETTINGS OUT     SETTINGS: NAME=VALUE lines that million.sh wrote; OUT: a directory for what was seen
#
# The same in the virtual machine (busybox) and on this machine (--here). It judges nothing: report.sh does, from
#   timeline.csv    a line every SAMPLE_S: connections, memory, counters (the names are in its first line)
#   marks           NAME=VALUE: when each phase began, by /proc/uptime; how the processes ended
#   load.json, load.html, load.txt, metrics-*.txt, check.txt, server.log, slab-*.txt
# Exit code: 0 when the scenario went to its end, whatever was found; 1 when it did not.
set -u
OUT=$2
# shellcheck disable=SC1090
. "$1"
SERVER='' LOAD=''
DATA=$(mktemp -d)

say() { printf '[%5.0f s] %s\n' "$(since)" "$*"; }
mark() { printf '%s=%s\n' "$1" "$2" >>"$OUT/marks"; }
uptime_s() { cut -d' ' -f1 /proc/uptime; }
since() { awk -v from="$BEGUN" '{ print $1 - from; exit }' /proc/uptime; }
alive() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }

end() {
    for pid in $LOAD $SERVER; do kill -KILL "$pid" 2>/dev/null; done
    rm -rf "$DATA"
}
trap end EXIT
trap 'exit 130' INT TERM

give_up() {
    say "given up: $*"
    mark given_up "$*"
    tail -5 "$OUT/server.log" "$OUT/load.txt" 2>/dev/null
    exit 1
}

# get PATH FILE: from the server's admin listener, headers and all when it is nc. The guest has no curl, and busybox's wget no
# resolver: there nc does, whose standard input stays open, since a half-closed connection gets no answer.
if command -v curl >/dev/null 2>&1; then
    get() { curl -sf -m 20 -o "$2" "http://127.0.0.1:$ADMIN_PORT$1"; }
else
    mkfifo "$DATA/request"
    get() {
        exec 9<>"$DATA/request"
        printf 'GET %s HTTP/1.0\r\n\r\n' "$1" >&9
        nc -w 20 127.0.0.1 "$ADMIN_PORT" <&9 >"$2" 2>/dev/null
        exec 9<&-
        [ -s "$2" ]
    }
fi

# Reads everything once: sets a variable for each column, and adds a line to timeline.csv. Emulated, starting a program takes
# tens of milliseconds, so that few are.
COLUMNS=at_s,connections,deliveries,pings,pongs,dead,server_rss_kib,load_rss_kib,slab_kib,used_kib,tcp_sockets,tcp_memory_pages
: >"$DATA/metrics"
# shellcheck disable=SC2034
sample() {
    get /metrics "$DATA/metrics.new" && mv "$DATA/metrics.new" "$DATA/metrics"
    line=$(awk -v columns="$COLUMNS" -v server="/proc/${SERVER:-0}/status" -v load="/proc/${LOAD:-0}/status" '
        function field(file, key,    text, word, found) {
            while ((getline text < file) > 0) { split(text, word); if (word[1] == key) found = word[2] }
            close(file)
            return found
        }
        FILENAME == "/proc/uptime" { v["at_s"] = $1 }
        FILENAME == "/proc/meminfo" { sub(":", "", $1); m[$1] = $2 }
        FILENAME == "/proc/net/sockstat" && $1 == "TCP:" { for (i = 2; i < NF; i += 2) t[$i] = $(i + 1) }
        /^throng_connections\{/ { v["connections"] += $NF }
        /^throng_deliveries_total/ { v["deliveries"] += $NF }
        /^throng_heartbeats_total.*"sent"/ { v["pings"] += $NF }
        /^throng_heartbeats_total.*"answered"/ { v["pongs"] += $NF }
        /^throng_heartbeats_total.*"dead"/ { v["dead"] += $NF }
        END {
            v["server_rss_kib"] = field(server, "VmRSS:")
            v["load_rss_kib"] = field(load, "VmRSS:")
            v["slab_kib"] = m["Slab"]
            v["used_kib"] = m["MemTotal"] - m["MemFree"] - m["Buffers"] - m["Cached"]
            v["tcp_sockets"] = t["alloc"]; v["tcp_memory_pages"] = t["mem"]
            count = split(columns, column, ",")
            printf "%.2f", v["at_s"]
            for (i = 2; i <= count; i++) printf ",%.0f", v[column[i]]
        }' /proc/uptime /proc/meminfo /proc/net/sockstat "$DATA/metrics")
    printf '%s\n' "$line" >>"$OUT/timeline.csv"
    IFS=, read -r at_s connections deliveries pings pongs dead server_rss_kib load_rss_kib slab_kib used_kib tcp_sockets tcp_memory_pages <<LINE
$line
LINE
    at_s=${at_s%.*}
}

# Processor time of the machine so far: user, system, interrupts, in hundredths of a second.
cpu_ticks() { awk '/^cpu / { print $2 + $3 "," $4 "," $7 + $8; exit }' /proc/stat; }

# What the kernel keeps, and what the server says, at the end of a phase.
snapshot() {
    get /metrics "$DATA/metrics.new" && sed '1,/^\r*$/{/^HTTP/,/^\r*$/d}' "$DATA/metrics.new" >"$OUT/metrics-$1.txt"
    cat /proc/slabinfo >"$OUT/slab-$1.txt" 2>/dev/null
    grep -E '^Vm(RSS|HWM|PTE)' "/proc/$SERVER/status" >"$OUT/server-$1.txt" 2>/dev/null
    mark "server_files_$1" "$(stat -c %s "/proc/$SERVER/fd")" # the count of its entries, since Linux 6.2
    mark "cpu_ticks_$1" "$(cpu_ticks)"
}

# Both processes have to be there.
both_alive() {
    alive "$SERVER" || give_up "the server ended during: $1"
    alive "$LOAD" || give_up "the load generator ended during: $1"
}

# left SECONDS: an estimate, in words.
left() { if [ "$1" -lt 90 ]; then echo "about $1 s left"; else echo "about $((($1 + 30) / 60)) min left"; fi; }

# watch PHASE COLUMN GOAL LATER_S: samples until COLUMN reaches GOAL; shows progress, and an estimate that counts
# LATER_S for the phases to come. Gives up when nothing moves for STALL_S.
watch() {
    value=0
    eval "value=\$$2"
    first=$value first_s=$at_s last=$value last_s=$at_s shown_s=$at_s
    while [ "$value" -lt "$3" ]; do
        both_alive "$1"
        [ $((at_s - last_s)) -le "$STALL_S" ] || give_up "$1: nothing moved for $STALL_S s, at $value of $3"
        if [ $((at_s - shown_s)) -ge 10 ] && [ "$value" -gt "$first" ]; then
            shown_s=$at_s rate=$(((value - first) / (at_s - first_s) + 1))
            say "$1: $value of $3 ($((value * 100 / $3))%), $rate/s; server $((server_rss_kib / 1024)) MiB, machine $((used_kib / 1024)) MiB; $(left $((($3 - value) / rate + $4)))"
        fi
        sleep "$SAMPLE_S"
        sample
        eval "value=\$$2"
        [ "$value" = "$last" ] || last=$value last_s=$at_s
    done
    say "$1: $value of $3 in $((at_s - first_s)) s"
}

mkdir -p "$OUT"
rm -f "$OUT/marks"
BEGUN=$(uptime_s)
mark begun "$BEGUN"
mark kernel "$(uname -r)"
mark processors "$(nproc)"
mark processor_model "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)"
mark memory_kib "$(awk '/^MemTotal/ { print $2 }' /proc/meminfo)"
printf '%s\n' "$COLUMNS" >"$OUT/timeline.csv"

say "the host, by throng check"
# shellcheck disable=SC2086
"$THRONG" check $SERVE_FLAGS >"$OUT/check.txt" 2>&1 || { cat "$OUT/check.txt"; give_up "throng check says that the server would not start"; }
cat "$OUT/check.txt"

say "throng serve $SERVE_FLAGS"
# shellcheck disable=SC2086
"$THRONG" serve $SERVE_FLAGS >"$OUT/server.log" 2>&1 &
SERVER=$!
tries=0
until get /livez "$DATA/livez"; do
    alive "$SERVER" || give_up "the server did not start"
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || give_up "the server did not answer"
    sleep 0.2
done
sample
snapshot none

say "throng-load $LOAD_FLAGS"
# shellcheck disable=SC2086
"$THRONG_LOAD" $LOAD_FLAGS --quiet --server-pid "$SERVER" --json "$OUT/load.json" --html "$OUT/load.html" >"$OUT/load.txt" 2>&1 &
LOAD=$!
sample
mark ramp_from "$(uptime_s)"
watch "connections joined" connections "$N" $((CAST_S + HOLD_S + DRAIN_S))
mark ramp_to "$(uptime_s)"
snapshot ramped

mark cast_from "$(uptime_s)"
watch "message handed to members" deliveries $((N * MESSAGES)) $((HOLD_S + DRAIN_S))
mark cast_to "$(uptime_s)"
snapshot cast

say "holding for a heartbeat interval, $HOLD_S s"
mark hold_from "$(uptime_s)"
mark hold_pings_from "$pings"
mark hold_pongs_from "$pongs"
hold_to=$((at_s + HOLD_S)) shown_s=$at_s
while [ "$at_s" -lt "$hold_to" ]; do
    sleep "$SAMPLE_S"
    sample
    both_alive "the heartbeat interval"
    if [ $((at_s - shown_s)) -ge 10 ]; then
        shown_s=$at_s
        say "holding: $connections open, $pings pings sent, $pongs answered, $dead given up; $(left $((hold_to - at_s + DRAIN_S)))"
    fi
done
mark hold_to "$(uptime_s)"
mark hold_connections "$connections"
mark hold_pings_to "$pings"
mark hold_pongs_to "$pongs"
mark hold_dead "$dead"
snapshot held

say "SIGTERM to the server: it closes everybody within $DRAIN_S s"
mark drain_from "$(uptime_s)"
kill -TERM "$SERVER"
shown_s=$at_s
while alive "$SERVER"; do
    sleep "$SAMPLE_S"
    sample
    if [ $((at_s - shown_s)) -ge 10 ]; then
        shown_s=$at_s
        say "draining: $connections left, $tcp_sockets sockets in the kernel"
    fi
done
wait "$SERVER"
mark server_status $?
SERVER=''
mark drain_to "$(uptime_s)"
mark cpu_ticks_drained "$(cpu_ticks)"
say "the server has ended"
wait "$LOAD"
mark load_status $?
LOAD=''
mark ended "$(uptime_s)"
