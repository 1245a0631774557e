#!/usr/bin/env bash
# Shows a million connections in one server process: in a virtual machine that it makes itself, or on this machine.
#
#   scripts/million.sh [N] [options]     N connections (default 1000000)
#
#   --here         on this machine, without the virtual machine: first says which limits are in the way
#   --memory MIB   the virtual machine's memory (default: what N connections, both their ends, need)
#   --cpus N       its processors (default: those of this machine, at most 8)
#   --accel WAY    kvm, tcg (emulation), or auto: kvm where it works, found out by starting a small guest (default)
#   --rooms R      rooms (default: 1,000 members in each)
#   --out DIR      where the report goes (default target/million/report)
#   --keep         keep the raw files (samples, logs, slab tables) in DIR/raw
#   --dry-run      print the plan and end; needs neither root nor network, changes nothing
#
# Builds static binaries, boots a kernel that has them for its only programs, with no network device: load cannot leave it.
# There: throng check, throng serve, throng-load ramping to N joined members, one message to all of them, a heartbeat
# interval, SIGTERM. Then the report: rate, memory of a connection, time to reach everybody, what was lost.
# Exit code: 0 all went as it should; 1 something was lost, or N was not reached; 2 it cannot be done here.
# Interrupted, it ends what it started. scripts/million/image.sh tells which packages it takes, and how to do without.
# MILLION_PORT (18100) and the next are the ports that --here takes.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
PARTS=scripts/million
WORK=${CARGO_TARGET_DIR:-target}/million
HOST=x86_64-unknown-linux-gnu

# What an idle connection takes of a machine that holds both its ends, in bytes: measured, see docs/MILLION.md.
PAIR_BYTES=10300
# One message to everybody waits in the receiving sockets for a moment: a kernel buffer for each, at worst.
CAST_BYTES=1300
# Kernel, programs, tables of the guest.
GUEST_BASE_MIB=900
# What the emulator takes beside the guest's memory.
EMULATOR_MIB=900
# Messages to everybody.
MESSAGES=1
# Members of a room, unless --rooms is given.
ROOM_MEMBERS=1000

cannot() {
    printf '%scannot:%s %s\n' "$RED" "$PLAIN" "$*" >&2
    exit 2
}

# --- what is asked -----------------------------------------------------------------------------------------------

N=1000000 HERE='' MEMORY_MIB='' CPUS='' ACCEL=auto ROOMS='' OUT=$WORK/report KEEP='' DRY_RUN=''
number() {
    [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || cannot "$1 $2: write a whole number of at least 1"
    printf '%s' "$2"
}
while [ $# -gt 0 ]; do
    option=$1
    case $option in
        --memory | --cpus | --accel | --rooms | --out)
            [ $# -ge 2 ] || cannot "$option needs a value (try --help)"
            shift
            ;;
    esac
    case $option in
        --here) HERE=yes ;;
        --memory) MEMORY_MIB=$(number --memory "$1") ;;
        --cpus) CPUS=$(number --cpus "$1") ;;
        --accel) ACCEL=$1 ;;
        --rooms) ROOMS=$(number --rooms "$1") ;;
        --out) OUT=$1 ;;
        --keep) KEEP=yes ;;
        --dry-run) DRY_RUN=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        [0-9]*) N=$(number N "$option") ;;
        *) cannot "unknown argument $option (try --help)" ;;
    esac
    shift
done
case $ACCEL in kvm | tcg | auto) ;; *) cannot "--accel $ACCEL: write kvm, tcg or auto" ;; esac
[ "$N" -le 4000000 ] || cannot "$N connections: at most 4000000"
if [ -n "$HERE" ] && [ -n "$MEMORY_MIB$CPUS" ]; then cannot "--memory and --cpus are the virtual machine's; --here has none"; fi

# --- what follows from it ----------------------------------------------------------------------------------------

processors=$(nproc)
[ -n "$CPUS" ] || CPUS=$((processors < 8 ? processors : 8))
[ -n "$ROOMS" ] || ROOMS=$(((N + ROOM_MEMBERS - 1) / ROOM_MEMBERS))
[ "$ROOMS" -le "$N" ] || cannot "--rooms $ROOMS: more rooms than connections"
[ -n "$MEMORY_MIB" ] || MEMORY_MIB=$((GUEST_BASE_MIB + N * (PAIR_BYTES + CAST_BYTES) / 1048576))

# The guest has open files for all; here the rings' own tables go beyond the limit.
DESCRIPTORS=auto
[ -z "$HERE" ] || DESCRIPTORS=direct
# What a ring's table of direct descriptors holds: the open-file limit, and the kernel's IORING_MAX_FIXED_FILES.
table=4200000
if [ -n "$HERE" ]; then
    table=$(ulimit -Hn)
    [ "$table" != unlimited ] || table=1048576
fi
table=$((table < 1048576 ? table : 1048576))
# The server keeps 1,024 entries of a table for refusals, and the kernel does not spread connections evenly.
ceiling() { echo $((($1 + $2 - 1) / $2)); }
at_least() { echo $(($1 > $2 ? $1 : $2)); }
SHARDS=$(at_least "$(ceiling "$N" $(((table - 1200) * 95 / 100)))" $((CPUS / 2)))
SHARDS=$(at_least "$SHARDS" 2)
THREADS=$(at_least "$(ceiling "$N" $((table - 200)))" $((CPUS / 2)))
THREADS=$(at_least "$THREADS" 2)
[ "$THREADS" -le "$N" ] || THREADS=$N
[ "$SHARDS" -le 250 ] || cannot "$N connections here need $SHARDS shards, and 250 are the most: raise the open-file limit (now $table)"

# plan SPEED: what a machine of that kind does in a second, all of it on the safe side, and the times that follow.
plan() {
    case $1 in
        emulated) CONNECTS_PER_S=1500 PINGS_PER_S=2000 CASTS_PER_S=5000 CLOSES_PER_S=1200 SAMPLE_S=$((2 + N / 200000)) STALL_S=180 PATIENCE_S=60 PONG_S=$((60 + N / 3000)) ;;
        real) CONNECTS_PER_S=10000 PINGS_PER_S=20000 CASTS_PER_S=50000 CLOSES_PER_S=5000 SAMPLE_S=1 STALL_S=60 PATIENCE_S=20 PONG_S=10 ;;
    esac
    RAMP_S=$((N / CONNECTS_PER_S + 5))
    CAST_S=$((N / CASTS_PER_S + 2))
    PING_S=$(at_least $((N / PINGS_PER_S)) $((PONG_S + 5)))
    HOLD_S=$((PING_S + 5))
    DRAIN_S=$(at_least $((N / CLOSES_PER_S)) 5)
    DEADLINE_S=$((DRAIN_S * 2 + 30))
    TIME_LIMIT_S=$(((RAMP_S + CAST_S + HOLD_S + DEADLINE_S) * 3 + 300))
}
SPEED=real
if [ -z "$HERE" ] && { [ "$ACCEL" = tcg ] || { [ "$ACCEL" = auto ] && [ ! -w /dev/kvm ]; }; }; then SPEED=emulated; fi
plan $SPEED

PORT=${MILLION_PORT:-18100}
ADMIN_PORT=$((PORT + 1))
# A source address for every 2,000 connections: the kernel finds a free port at once where few are taken.
source_count=$(ceiling "$N" 2000)
source_last=127.$((1 + source_count / 65536)).$((source_count / 256 % 256)).$((source_count % 256))

# Writes what the scenario is told.
settings() {
    local steps='' step count
    step=$(ceiling "$N" 10)
    for ((count = step; count < N; count += step)); do steps+=$count,; done
    cat <<EOF
N=$N
ROOMS=$ROOMS
MESSAGES=$MESSAGES
THRONG=$1/throng
THRONG_LOAD=$1/throng-load
ADMIN_PORT=$ADMIN_PORT
SAMPLE_S=$SAMPLE_S
STALL_S=$STALL_S
CAST_S=$CAST_S
HOLD_S=$HOLD_S
DRAIN_S=$DRAIN_S
SERVE_FLAGS="--listen 127.0.0.1:$PORT --admin 127.0.0.1:$ADMIN_PORT --shards $SHARDS --descriptors ${DESCRIPTORS} --connection-count-max $((N + 16)) --node-bytes-max $(at_least $((N * 1024)) 67108864) --socket-backlog 4096 --handshake-timeout-ms ${PATIENCE_S}s --ping-interval-ms ${PING_S}s --pong-timeout-ms ${PONG_S}s --write-stall-timeout-ms ${STALL_S}s --close-timeout-ms ${PATIENCE_S}s --drain-window-ms ${DRAIN_S}s --drain-deadline-ms ${DEADLINE_S}s"
LOAD_FLAGS="idle --target ws://127.0.0.1:$PORT --steps $steps$N --rooms $ROOMS --threads $THREADS --source 127.1.0.1-$source_last --settle 0.2 --hold 1 --messages $MESSAGES --until-closed $((HOLD_S + STALL_S + DEADLINE_S)) --handshake-timeout $PATIENCE_S --patience $STALL_S --time-limit $TIME_LIMIT_S"
EOF
}

minutes() { echo $(((RAMP_S + CAST_S + HOLD_S + DRAIN_S) / 60 + 1)); }
describe() {
    local slow=''
    step "The plan"
    note "$N connections in $ROOMS rooms to one server process of $SHARDS shards, from one load generator of $THREADS threads"
    if [ -n "$HERE" ]; then
        note "on this machine: $processors processors, an open-file limit of $(ulimit -Hn), no virtual machine"
        note "memory: about $((N * (PAIR_BYTES + CAST_BYTES) / 1048576)) MiB, most of it the kernel's"
    else
        note "in a virtual machine: $CPUS processors, $MEMORY_MIB MiB, no network device; accelerator: $ACCEL"
        note "host: $((MEMORY_MIB + EMULATOR_MIB)) MiB of memory as it is used, 3 GiB of disk for builds and packages in $WORK"
    fi
    if [ -z "$HERE" ] && [ "$ACCEL" = auto ] && [ $SPEED = real ]; then slow=$(plan emulated && minutes); fi
    note "reckoned for a processor that is ${SPEED}: ramp ${RAMP_S} s, one message to all ${CAST_S} s, heartbeat interval ${HOLD_S} s, drain ${DRAIN_S} s"
    note "together about $(minutes) min, after the build${slow:+; about $slow min if kvm does not work here}"
    note "report: $OUT/report.md"
    printf '\n'
    settings "${1:-/million}" | sed 's/^/   /'
}
if [ -n "$DRY_RUN" ]; then
    describe
    exit 0
fi

# --- can it be done ----------------------------------------------------------------------------------------------

memory_available_mib() { awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo; }
check_host() {
    local need free disk
    need=$((MEMORY_MIB + EMULATOR_MIB))
    [ -z "$HERE" ] || need=$((N * (PAIR_BYTES + CAST_BYTES) / 1048576 + 200))
    free=$(memory_available_mib)
    [ "$free" -gt "$need" ] || cannot "$need MiB of memory are needed, $free are free: take a smaller N"
    mkdir -p "$WORK"
    disk=$(df -Pm "$WORK" | awk 'NR == 2 { print $4 }')
    [ "$disk" -gt 3000 ] || cannot "3000 MiB of disk are needed in $WORK, $disk are free"
    need_build
    have curl || [ -z "$HERE" ] || packages curl || cannot "curl is needed"
}

# What --here needs of a machine that it does not change.
check_here() {
    local low high ports
    read -r low high </proc/sys/net/ipv4/ip_local_port_range
    ports=$((high - low))
    [ "$ports" -gt 4000 ] || cannot "the range of local ports has only $ports: sysctl -w net.ipv4.ip_local_port_range='1024 65535'"
    [ "$(cat /proc/sys/fs/file-max)" -gt $((N * 2 + 10000)) ] || [ "$(id -u)" = 0 ] \
        || cannot "fs.file-max is too small for both ends of $N connections: sysctl -w fs.file-max=$((N * 2 + 100000))"
    if [ "$(cat /proc/sys/net/ipv4/tcp_max_orphans)" -lt "$N" ]; then
        note "net.ipv4.tcp_max_orphans is below $N: at the drain the kernel may reset some connections (sysctl -w net.ipv4.tcp_max_orphans=$N)"
    fi
    ulimit -n "$(ulimit -Hn)"
}

build() {
    step "Building static binaries (thin link-time optimisation)"
    RUSTFLAGS="-C target-feature=+crt-static" CARGO_PROFILE_RELEASE_LTO=thin CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_PROFILE_RELEASE_DEBUG=0 nice -n 5 cargo build --release --locked --target $HOST --workspace --bins
    BIN=$(cd "${CARGO_TARGET_DIR:-target}/$HOST/release" && pwd)
}

# --- the virtual machine -----------------------------------------------------------------------------------------

MACHINE=$WORK/machine TEMPORARY='' CHILD=''
# shellcheck disable=SC2329
finish() {
    if [ -n "$CHILD" ]; then
        kill "$CHILD" 2>/dev/null || true
        wait "$CHILD" 2>/dev/null || true
    fi
    [ -z "$TEMPORARY" ] || rm -rf "$TEMPORARY"
}
trap finish EXIT
trap 'printf "\ninterrupted: ending what was started\n" >&2; exit 130' INT TERM

# archive OUT DIRECTORY: an initramfs.
archive() { (cd "$2" && find . | "$BUSYBOX" cpio -o -H newc 2>/dev/null | gzip -1) >"$1"; }

# The guest's files: base.gz (a shell, and init), and with the scenario and the programs, guest.gz.
make_image() {
    local root=$TEMPORARY/root
    BUSYBOX=$(cd "$MACHINE" && pwd)/busybox
    mkdir -p "$root/bin"
    cp "$BUSYBOX" "$root/bin/busybox"
    cp $PARTS/init "$root/init"
    archive "$TEMPORARY/base.gz" "$root"
    mkdir -p "$root/million"
    cp $PARTS/scenario.sh $PARTS/host-settings.sh "$BIN/throng" "$BIN/throng-load" "$root/million/"
    settings /million >"$root/million/settings"
    archive "$TEMPORARY/guest.gz" "$root"
    rm -rf "$root"
}

# emulator ACCEL INITRD MIB: fills COMMAND. Mitigations, security modules and zeroing of fresh memory cost several times
# more in an emulated processor than in a real one; the guest runs nothing but what was built here.
emulator() {
    local way=() arguments="console=hvc0 panic=-1 quiet nokaslr mitigations=off nopti init_on_alloc=0 lsm= audit=0 cgroup_disable=memory"
    arguments+=" nowatchdog nmi_watchdog=0 rcupdate.rcu_cpu_stall_suppress=1 thash_entries=2097152 random.trust_cpu=on"
    case $1 in
        kvm) way=(-accel kvm -cpu host) ;;
        # Without a real clock source the kernel distrusts an emulated time-stamp counter, and falls back on a slow one.
        tcg) way=(-accel "tcg,thread=multi,tb-size=512" -cpu "Haswell,+pdpe1gb") && arguments+=" tsc=reliable" ;;
    esac
    COMMAND=(nice -n 10 "$MACHINE/qemu" -M q35 "${way[@]}" -m "$3" -smp "$CPUS"
        -kernel "$MACHINE/vmlinux" -initrd "$2" -append "$arguments"
        -nodefaults -no-reboot -display none -monitor none
        -device virtio-serial-pci -chardev "stdio,id=console,signal=off" -device "virtconsole,chardev=console"
        -chardev "file,id=out,path=$TEMPORARY/out.tar" -device "virtserialport,chardev=out,name=out")
    local firmware unpacked=$MACHINE/qemu-unpacked/usr/share/qemu
    for firmware in "$unpacked" /usr/share/seabios /usr/share/qemu; do
        [ ! -d "$firmware" ] || COMMAND+=(-L "$firmware")
    done
}

# Whether a guest comes up under kvm: the device alone says little (nested machines interpret what they cannot run).
kvm_works() {
    [ -r /dev/kvm ] && [ -w /dev/kvm ] || { note "no /dev/kvm that may be used"; return 1; }
    note "trying kvm: a guest has 20 s to come up"
    emulator kvm "$TEMPORARY/base.gz" 512
    { timeout -k 2 20 "${COMMAND[@]}" </dev/null >"$TEMPORARY/probe.log" 2>&1 || true; } 2>/dev/null # it may abort
    grep -q '^million: booted' "$TEMPORARY/probe.log" && return
    note "kvm does not run this kernel here: $(grep -v -m 1 warning "$TEMPORARY/probe.log" || echo 'nothing in 20 s')"
    return 1
}

in_a_machine() {
    step "The virtual machine's parts (Debian packages, unpacked into $MACHINE)"
    $PARTS/image.sh "$MACHINE" || exit 2
    make_image
    if [ "$ACCEL" = auto ]; then
        if kvm_works; then ACCEL=kvm; else ACCEL=tcg; fi
    fi
    if [ "$ACCEL" = kvm ]; then SPEED=real; else SPEED=emulated; fi
    plan $SPEED
    note "accelerator: $ACCEL"
    make_image # the times depend on it
    step "The guest ($CPUS processors, $MEMORY_MIB MiB; about $(minutes) min)"
    emulator "$ACCEL" "$TEMPORARY/guest.gz" "$MEMORY_MIB"
    local began=$SECONDS outcome=0
    "${COMMAND[@]}" </dev/null > >(tee "$TEMPORARY/console.log") 2>&1 &
    CHILD=$!
    wait "$CHILD" || outcome=$?
    CHILD=''
    note "the guest was up for $((SECONDS - began)) s"
    cp "$TEMPORARY/console.log" "$RAW/console.log"
    tar -xf "$TEMPORARY/out.tar" -C "$RAW" 2>/dev/null || cannot "the guest ended without a result (status $outcome); its last words are above"
}

here() {
    step "The scenario on this machine (about $(minutes) min)"
    settings "$BIN" >"$TEMPORARY/settings"
    $PARTS/scenario.sh "$TEMPORARY/settings" "$RAW" &
    CHILD=$!
    wait "$CHILD" && CHILD='' || CHILD=''
}

# --- doing it ----------------------------------------------------------------------------------------------------

main() {
    local verdict=0 file
    describe
    step "What is needed"
    check_host
    [ -z "$HERE" ] || check_here
    build
    TEMPORARY=$(mktemp -d "$WORK/run.XXXXXX")
    TEMPORARY=$(cd "$TEMPORARY" && pwd)
    RAW=$OUT/raw
    rm -rf "$RAW"
    mkdir -p "$RAW"
    if [ -n "$HERE" ]; then here; else in_a_machine; fi
    {
        settings /million
        printf 'HOST="%s, %s processors, Linux %s"\n' \
            "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)" "$processors" "$(uname -r)"
        printf 'PLACE=%s\nACCEL=%s\nSPEED=%s\nCPUS=%s\nMEMORY_MIB=%s\nPING_S=%s\n' \
            "${HERE:+here}" "$ACCEL" "$SPEED" "$CPUS" "$MEMORY_MIB" "$PING_S"
    } >"$RAW/settings"
    step "The report"
    $PARTS/report.sh "$RAW" >"$OUT/report.md" || verdict=1
    for file in load.json load.html load.txt check.txt metrics-held.txt timeline.csv; do
        [ ! -e "$RAW/$file" ] || cp "$RAW/$file" "$OUT/"
    done
    [ -n "$KEEP" ] || rm -rf "$RAW"
    cat "$OUT/report.md"
    exit $verdict
}

main
