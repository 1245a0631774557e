#!/usr/bin/env bash
# shellcheck disable=SC2329
# Checks scripts/million.sh without a virtual machine, root or network: its plan, its mistakes, its verdict over samples
# made up here. With --run, also the scenario itself, with 2,000 connections on this machine (a minute, once built).
set -euo pipefail
cd "$(dirname "$0")/../.."
MILLION=scripts/million.sh
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

FAILED=0
# it SENTENCE COMMAND…
it() {
    local sentence=$1
    shift
    if "$@" >"$WORK/output" 2>&1; then
        printf '   ok      %s\n' "$sentence"
    else
        printf '   FAILED  %s\n' "$sentence"
        sed 's/^/           /' "$WORK/output" | head -20
        FAILED=1
    fi
}

# --- the scripts -------------------------------------------------------------------------------------------------

parses() {
    bash -n "$MILLION" && bash -n scripts/million/image.sh || return
    local script
    for script in scenario report host-settings; do sh -n "scripts/million/$script.sh" || return; done
    sh -n scripts/million/init
}
lints() { shellcheck -x "$MILLION" scripts/million/*.sh tests/million/*.sh; }
names_no_path_of_a_machine() { ! grep -nE '/(home|work|root/|Users)/' "$MILLION" scripts/million/*; }

# --- the plan ----------------------------------------------------------------------------------------------------

# plans ARGUMENTS -- PATTERN…: the plan has them all.
plans() {
    local arguments=() pattern
    while [ "$1" != -- ]; do
        arguments+=("$1")
        shift
    done
    shift
    $MILLION --dry-run "${arguments[@]}" >"$WORK/plan" || return
    for pattern in "$@"; do
        grep -qE -- "$pattern" "$WORK/plan" || {
            echo "not in the plan: $pattern"
            cat "$WORK/plan"
            return 1
        }
    done
}
refuses() {
    local outcome=0
    $MILLION --dry-run "$@" >"$WORK/refusal" 2>&1 || outcome=$?
    [ "$outcome" = 2 ] && grep -q 'cannot:' "$WORK/refusal"
}
leaves_nothing() {
    local before after
    before=$(git status --porcelain 2>/dev/null | sort)
    $MILLION --dry-run --out "$WORK/never" >/dev/null || return
    after=$(git status --porcelain 2>/dev/null | sort)
    [ "$before" = "$after" ] && [ ! -e "$WORK/never" ]
}
# Every step of the ramp is larger than the last, and the last is N.
steps_rise_to() {
    $MILLION --dry-run "$1" | sed -n 's/.*--steps \([0-9,]*\).*/\1/p' | tr , '\n' \
        | awk -v n="$1" '$1 <= last { exit 1 } { last = $1 } END { exit last != n }'
}
limits_hold_the_connections() {
    local n shards files
    for n in 1 999 20000 40000 1000000 4000000; do
        $MILLION --dry-run "$n" --accel tcg >"$WORK/plan" || return
        shards=$(sed -n 's/.*--shards \([0-9]*\).*/\1/p' "$WORK/plan")
        files=$((shards * (1048576 - 1024)))
        [ "$files" -ge "$n" ] || { echo "$n connections, $shards shards"; return 1; }
    done
}

# --- the verdict -------------------------------------------------------------------------------------------------

# What a run of 1,000 connections without a fault leaves, in directory $1.
samples() {
    local raw=$1 connections
    rm -rf "$raw"
    mkdir -p "$raw"
    {
        $MILLION --dry-run 1000 --accel tcg --cpus 2 | sed -n 's/^   \([A-Z_]*=.*\)/\1/p'
        printf 'HOST="a processor"\nPLACE=\nACCEL=tcg\nSPEED=emulated\nCPUS=2\nMEMORY_MIB=910\nPING_S=65\n'
    } >"$raw/settings"
    cat >"$raw/marks" <<'EOF'
kernel=6.12.0
processors=2
ramp_from=10.00
ramp_to=20.00
cast_from=21.00
cast_to=22.00
hold_from=23.00
hold_to=93.00
hold_connections=1000
hold_pings_from=100
hold_pongs_from=100
hold_pings_to=1200
hold_pongs_to=1200
hold_dead=0
drain_from=94.00
drain_to=99.00
server_status=0
load_status=0
server_files_ramped=33
EOF
    {
        echo at_s,connections,deliveries,pings,pongs,dead,server_rss_kib,load_rss_kib,slab_kib,used_kib,tcp_sockets,tcp_memory_pages
        echo 10.00,0,0,0,0,0,30000,5000,10000,90000,3,0
        for connections in 100 200 300 400 500 600 700 800 900 1000; do
            echo "$((10 + connections / 100)).00,$connections,0,0,0,0,$((30000 + connections / 10)),$((5000 + connections / 5)),$((10000 + connections * 10)),$((90000 + connections * 11)),$((connections * 2)),0"
        done
    } >"$raw/timeline.csv"
    cat >"$raw/load.json" <<'EOF'
{
  "scenario": "idle",
  "figures": {
    "handshakes_per_s_to_100": 150.5,
    "delivered": 1000.0,
    "lost": 0.0,
    "duplicated": 0.0,
    "reordered": 0.0,
    "corrupted": 0.0,
    "misrouted": 0.0,
    "connections_failed": 0.0,
    "connections_lost": 0.0,
    "broadcast_seconds": 0.5,
    "closed_with_1012": 1000.0
  }
}
EOF
    printf 'throng_connections{shard="0"} 490\nthrong_connections{shard="1"} 510\nthrong_connections_max 1016\n' >"$raw/metrics-ramped.txt"
}
RAW=$WORK/raw
passes() { scripts/million/report.sh "$RAW" >"$WORK/report.md" && grep -q '^# 1,000 connections in one server process: \*\*passed\*\*$' "$WORK/report.md"; }
# fails ROW: the report says so, with this row of the verdict, and so does the exit code.
fails() {
    local outcome=0
    scripts/million/report.sh "$RAW" >"$WORK/report.md" || outcome=$?
    cat "$WORK/report.md"
    [ "$outcome" = 1 ] && grep -q '^# .*\*\*failed\*\*$' "$WORK/report.md" && grep -qF -- "$1" "$WORK/report.md"
}
reports_the_slope() { grep -qF '| server process, resident | 102 |' "$WORK/report.md" && grep -qF '| kernel slab, both ends | 10,240 |' "$WORK/report.md"; }
reports_each_step() { [ "$(grep -cE '^\| [0-9,]*00 \| [0-9.]+ \|' "$WORK/report.md")" = 10 ]; }
# breaks FILE SED ROW SENTENCE: one thing changed in good samples makes it fail.
breaks() {
    samples "$RAW"
    sed -i "$2" "$RAW/$1"
    it "$4" fails "$3"
}

it "the scripts parse" parses
if command -v shellcheck >/dev/null 2>&1; then it "shellcheck finds nothing" lints; fi
it "the scripts name no path of a machine" names_no_path_of_a_machine
it "a million in an emulated machine is planned" plans --accel tcg --cpus 2 -- '1000000 connections in 1000 rooms' '--shards 2 ' \
    '--threads 2 ' '--source 127.1.0.1-127.1.1.244 ' '--connection-count-max 1000016 ' 'accelerator: tcg' 'emulated'
it "memory for a million stays below 13 GiB" plans --accel tcg -- 'machine: .* 1[0-2][0-9]{3} MiB'
it "options change the plan" plans 5000 --rooms 7 --memory 2048 --cpus 4 --accel kvm --out elsewhere -- '^ROOMS=7|   ROOMS=7' '4 processors, 2048 MiB' 'elsewhere/report.md'
it "one connection can be planned" plans 1 --accel tcg -- '--steps 1 ' '--threads 1 ' '^   1 connections in 1 rooms'
it "this machine is planned for without a virtual one" plans 3000 --here -- 'on this machine' 'no virtual machine'
it "a plan changes nothing" leaves_nothing
it "the steps rise to all connections" steps_rise_to 1000000
it "the steps rise to a few connections" steps_rise_to 7
it "descriptor tables hold the connections" limits_hold_the_connections
for wrong in --bogus 0 -5 1e6 --memory "--memory x" "--accel xen" "5 --rooms 6" "--here --cpus 2" 4000001; do
    # shellcheck disable=SC2086
    it "refused: $wrong" refuses $wrong
done

samples "$RAW"
it "a run without a fault passes" passes
it "bytes of a connection are the slope of the samples" reports_the_slope
it "each step has its row" reports_each_step
breaks load.json 's/"lost": 0.0/"lost": 1.0/' '| lost | 0 | 1 | **no** |' "one lost delivery fails"
breaks load.json 's/"delivered": 1000.0/"delivered": 999.0/' '| 1,000 | 999 | **no** |' "one delivery too few fails"
breaks load.json 's/"closed_with_1012": 1000.0/"closed_with_1012": 999.0,\n "closed_with_1006": 1.0/' '| 1,000 | 999 | **no** |' "one member cut at the drain fails"
breaks load.json 's/"connections_lost": 0.0/"connections_lost": 2.0/' '| 0 | 2 | **no** |' "connections lost before the drain fail"
breaks metrics-ramped.txt 's/ 510$/ 509/' '| 1,000 | 999 | **no** |' "one connection too few fails"
breaks marks 's/^hold_pongs_to=.*/hold_pongs_to=1099/' '| at least 1,000 | 999 | **no** |' "an unanswered ping fails"
breaks marks 's/^hold_dead=.*/hold_dead=1/' '| 0 | 1 | **no** |' "a peer that was given up fails"
breaks marks 's/^server_status=.*/server_status=1/' 'exit code of the server' "a server that cut somebody fails"
breaks marks 's/^load_status=.*/load_status=1/' '| 0 | 1 | **no** |' "a fault of the load generator fails"
samples "$RAW"
echo 'given_up=the server ended during: ramp' >>"$RAW/marks"
it "a scenario that was given up fails, with the reason" fails 'the server ended during: ramp'
samples "$RAW"
rm "$RAW/load.json"
it "a run without the load generator's report fails" fails '**no**'

if [ "${1:-}" = --run ]; then
    it "2,000 connections on this machine pass" $MILLION 2000 --here --out "$WORK/report"
fi
exit $FAILED
