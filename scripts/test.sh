#!/usr/bin/env bash
# The gate: the same here and in CI. Runs every step, says what failed and what was skipped, and why.
#
#   scripts/test.sh              everything (about half an hour on two cores)
#   scripts/test.sh fast         what to run before a commit: fmt lint licences unit doctest e2e-fast
#   scripts/test.sh STEP...      just these: fmt lint docs licences msrv unit doctest sweep e2e e2e-fast valkey deploy million conformance fuzz
#
# Exit status: 0 when everything that could run passed; 1 when a step failed. A step that lacks a tool which cannot be
# installed here is skipped, loudly, and listed again at the end; THRONG_STRICT=1 makes a skip a failure.
#
# THRONG_SIM_FIRST  first seed of the simulation's sweep (default: from the commit's hash)
# THRONG_SIM_RUNS   seeds that it looks at (default 1000)
# THRONG_SIM_REDIS_RUNS  seeds of worlds around a Redis, which take longer (default 300)
# THRONG_WSTEST     the Autobahn suite's `wstest`, if it is somewhere already
# THRONG_FUZZ_S     seconds for each fuzz target (default 10)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh

export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}
FUZZ_S=${THRONG_FUZZ_S:-10}
ALL=(fmt lint docs licences msrv unit doctest sweep e2e valkey deploy million conformance fuzz)
FAST=(fmt lint licences unit doctest e2e-fast)

PASSED=() FAILED=() SKIPPED=()
SKIP=77
skip() {
    printf '%s   SKIPPED: %s%s\n' "$RED" "$*" "$PLAIN"
    SKIP_REASON=$*
    return $SKIP
}

# --- steps ------------------------------------------------------------------------------------------------------

fmt() {
    cargo fmt --version >/dev/null 2>&1 || skip "rustfmt is missing: rustup component add rustfmt" || return
    cargo fmt --all --check
}

lint() {
    cargo clippy --version >/dev/null 2>&1 || skip "clippy is missing: rustup component add clippy" || return
    cargo clippy --workspace --all-targets --locked -- -D warnings
}

docs() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked; }

licences() {
    need_python
    cargo metadata --format-version 1 --locked | "$PYTHON" scripts/licences.py
}

# The oldest compiler that Cargo.toml promises, where rustup has it.
msrv() {
    local wanted
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    have rustup && rustup run "$wanted" cargo --version >/dev/null 2>&1 \
        || skip "Rust $wanted is not installed: rustup toolchain install $wanted --profile minimal" || return
    CARGO_TARGET_DIR=target/msrv rustup run "$wanted" cargo check --workspace --locked
}

nextest() {
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --locked --no-fail-fast "$@"
    else
        note "cargo-nextest is not installed; cargo test does"
        cargo test --locked --no-fail-fast "$@"
    fi
}

unit() { nextest --workspace; }

doctest() { cargo test --doc --workspace --locked; }

# The simulation, over seeds of its own for every commit. A failure prints the seed and the step.
sweep() {
    local first
    first=${THRONG_SIM_FIRST:-$((16#$(git rev-parse --short=12 HEAD 2>/dev/null || echo 1)))}
    note "THRONG_SIM_FIRST=$first THRONG_SIM_RUNS=${THRONG_SIM_RUNS:-1000} THRONG_SIM_REDIS_RUNS=${THRONG_SIM_REDIS_RUNS:-300}"
    THRONG_SIM_FIRST=$first THRONG_SIM_RUNS=${THRONG_SIM_RUNS:-1000} THRONG_SIM_REDIS_RUNS=${THRONG_SIM_REDIS_RUNS:-300} \
        nextest -p throng --test sim
}

build() { cargo build --locked -p throng -p throng-load --bin throng --bin throng-load; }

e2e_tools() {
    need_python
    want_node || note "no node or npm: the tests with the npm client will be skipped"
    have chromium || have google-chrome || packages chromium || note "no Chromium: its tests will be skipped"
    have promtool || packages prometheus || note "no promtool: its test will be skipped"
    redis_tools
}

# Debian starts a server that it installs where systemd runs; the tests start their own, and only its program is wanted.
redis_tools() {
    have redis-server && have redis-cli && return
    if [ -d /run/systemd/system ]; then
        note "no redis-server: its tests will be skipped (please install it; its service need not run)"
    else
        RUNLEVEL=1 packages redis-server || note "no redis-server: its tests will be skipped"
    fi
}

e2e() {
    e2e_tools
    build && "$PYTHON" -m pytest tests/e2e
}

# The tests of several nodes once more, on the other server that speaks Redis' protocol.
valkey() {
    e2e_tools
    want_valkey || skip "there is no valkey-server, and none could be fetched" || return
    note "$("$VALKEY" --version)"
    build && THRONG_REDIS_SERVER="$VALKEY" "$PYTHON" -m pytest tests/e2e/test_redis.py tests/e2e/test_redis_faults.py
}

e2e_fast() {
    need_python
    build && "$PYTHON" -m pytest tests/e2e/test_rooms.py tests/e2e/test_frames.py tests/e2e/test_handshake.py
}

# What stands around the server: balancers, the unit, the image, manifests, alerts (docs/DEPLOYING.md). Debian starts what
# it installs where systemd runs, so there a person decides; a container has nothing that would start it.
deploy_tools() {
    local name missing=()
    for name in nginx haproxy socat promtool systemd-analyze strace; do
        PATH=$PATH:/usr/sbin have "$name" || missing+=("$name")
    done
    missing=("${missing[@]/promtool/prometheus}")
    missing=("${missing[@]/systemd-analyze/systemd}")
    [ ${#missing[@]} = 0 ] && return
    if [ -d /run/systemd/system ]; then
        note "please install (their services need not run): ${missing[*]}"
    else
        RUNLEVEL=1 packages "${missing[@]}" || true
    fi
    for name in nginx haproxy socat promtool systemd-analyze; do
        PATH=$PATH:/usr/sbin have "$name" || note "no $name: its tests will be skipped"
    done
}

deploy() {
    need_python
    "$PYTHON" -m pip install -q --disable-pip-version-check -r tests/deploy/requirements.txt || return
    deploy_tools
    redis_tools
    build && cargo build --locked -p throng-load && "$PYTHON" -m pytest -c tests/deploy/pytest.ini tests/deploy
}

# The script that shows a million connections: its plan and its verdict, without the virtual machine.
million() { tests/million/check.sh; }

# The Autobahn suite is Python 2 code. It gets an environment of its own; sets THRONG_WSTEST.
autobahn() {
    local venv="$REPOSITORY/.venv-autobahn" python2=
    [ -n "${THRONG_WSTEST:-}" ] && [ -x "$THRONG_WSTEST" ] && return
    export THRONG_WSTEST="$venv/bin/wstest"
    [ -x "$THRONG_WSTEST" ] && return
    python2=$(command -v python2.7 || true)
    if ! "${python2:-false}" --version >/dev/null 2>&1 && have pyenv; then
        python2=$(PYENV_VERSION=2.7.18 pyenv which python 2>/dev/null || true)
    fi
    [ -n "$python2" ] || skip "the Autobahn suite needs Python 2.7 (pyenv install 2.7.18), which is not here" || return
    note "installing the Autobahn suite into $venv"
    "$PYTHON" -m pip install -q --disable-pip-version-check 'virtualenv<20.22' \
        && "$PYTHON" -m virtualenv -q -p "$python2" "$venv" \
        && "$venv/bin/pip" install -q setuptools==44.0.0 \
        && "$venv/bin/pip" install -q incremental==16.10.1 \
        && "$venv/bin/pip" install -q autobahntestsuite==25.10.1 \
        && [ -x "$THRONG_WSTEST" ]
}

conformance() {
    need_python
    autobahn || return
    build && "$PYTHON" -m pytest tests/conformance
}

fuzz() {
    [ -d fuzz ] || skip "there are no fuzz targets" || return
    if ! cargo fuzz --version >/dev/null 2>&1; then
        note "installing cargo-fuzz (some minutes)"
        cargo install -q --locked cargo-fuzz || skip "cargo-fuzz could not be installed" || return
    fi
    local target outcome=0
    for target in $(cargo fuzz list); do
        note "$target for $FUZZ_S s"
        RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" -- -max_total_time="$FUZZ_S" -print_final_stats=1 >"target/fuzz-$target.log" 2>&1 || {
            outcome=1
            tail -40 "target/fuzz-$target.log"
        }
        grep -E 'number_of_executed_units' "target/fuzz-$target.log" || true
    done
    return $outcome
}

# --- running them -----------------------------------------------------------------------------------------------

run_step() {
    local name=$1 began outcome=0
    case $name in
        fmt | lint | docs | licences | msrv | unit | doctest | sweep | e2e | valkey | e2e-fast | deploy | million | conformance | fuzz) ;;
        *) fail "there is no step $name: ${ALL[*]} e2e-fast" ;;
    esac
    began=$SECONDS
    step "$name"
    SKIP_REASON=
    "${name//-/_}" || outcome=$?
    if [ "$outcome" = 0 ]; then
        PASSED+=("$name ($((SECONDS - began)) s)")
    elif [ "$outcome" = "$SKIP" ] && [ -n "$SKIP_REASON" ]; then
        SKIPPED+=("$name: $SKIP_REASON")
    else
        FAILED+=("$name (status $outcome, $((SECONDS - began)) s)")
    fi
}

case ${1:-all} in
    -h | --help)
        usage
        exit 0
        ;;
    all) STEPS=("${ALL[@]}") ;;
    fast) STEPS=("${FAST[@]}") ;;
    *) STEPS=("$@") ;;
esac
need_build
for name in "${STEPS[@]}"; do run_step "$name"; done

step "Summary after $((SECONDS / 60)) min $((SECONDS % 60)) s"
for line in "${PASSED[@]}"; do printf '   %sok%s       %s\n' "$GREEN" "$PLAIN" "$line"; done
for line in "${SKIPPED[@]}"; do printf '   %sskipped%s  %s\n' "$RED" "$PLAIN" "$line"; done
for line in "${FAILED[@]}"; do printf '   %sFAILED%s   %s\n' "$RED" "$PLAIN" "$line"; done
printf '%d steps passed, %d failed, %d skipped\n' "${#PASSED[@]}" "${#FAILED[@]}" "${#SKIPPED[@]}"
[ ${#FAILED[@]} = 0 ] || exit 1
[ ${#SKIPPED[@]} = 0 ] || [ "${THRONG_STRICT:-0}" != 1 ] || exit 1
