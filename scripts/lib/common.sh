# shellcheck shell=bash disable=SC2034
# What scripts share: words for people, packages that are missing, a Python environment, the program.
# Sourced, not run. Expects `set -euo pipefail`.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

if [ -t 1 ]; then
    BOLD=$'\e[1m' GREEN=$'\e[32m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
    BOLD='' GREEN='' RED='' PLAIN=''
fi

step() { printf '\n%s== %s%s\n' "$BOLD" "$*" "$PLAIN"; }
note() { printf '   %s\n' "$*"; }
fail() {
    printf '%sfailed:%s %s\n' "$RED" "$PLAIN" "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# The comment that the script which runs begins with: what `--help` prints.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$REPOSITORY/scripts/${0##*/}"; }

# For scripts that hand their arguments on: `help_if_asked "$@"` prints the help and ends, if they ask for it.
help_if_asked() {
    local argument
    for argument in "$@"; do
        case $argument in
            -h | --help)
                usage
                exit 0
                ;;
        esac
    done
}

# Installs Debian packages: `packages gcc make`. Says what to type where it may not or cannot.
packages() {
    local as_root=()
    [ "$(id -u)" = 0 ] || { have sudo && as_root=(sudo); }
    if ! have apt-get || { [ "$(id -u)" != 0 ] && [ ${#as_root[@]} = 0 ]; }; then
        note "please install: $*"
        return 1
    fi
    note "installing $*"
    local log
    log=$(mktemp)
    if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive sh -c \
        'apt-get update -q && apt-get install -q -y --no-install-recommends "$@"' sh "$@" >"$log" 2>&1; then
        tail -5 "$log"
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

# Programs that are Debian packages of the same name and bring a service that need not run: `need_servers redis-server`.
# Debian starts what it installs where systemd runs, so there a person decides; a container has nothing that would.
need_servers() {
    local name missing=()
    for name in "$@"; do
        PATH=$PATH:/usr/sbin have "$name" || missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] && return
    [ ! -d /run/systemd/system ] || fail "please install (the services need not run): ${missing[*]}"
    RUNLEVEL=1 packages "${missing[@]}" || fail "${missing[*]}: needed, and could not be installed"
}

need_rust() {
    if ! have cargo && [ -f "$HOME/.cargo/env" ]; then
        # shellcheck disable=SC1091
        . "$HOME/.cargo/env"
    fi
    have cargo || fail "there is no Rust toolchain (1.90 or later is needed).
        Get one from https://rustup.rs, then run this again:
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
}

need_linker() {
    have cc && have make && return
    packages gcc libc6-dev make || fail "a C compiler and make are needed to build"
}

need_build() {
    need_rust
    need_linker
}

# Where cargo puts what is built: `built release/throng`.
built() { (cd "$REPOSITORY" && realpath -m "${CARGO_TARGET_DIR:-target}/$1"); }

# The program, `debug` or `release`: sets THRONG_BIN, unless it names one.
need_program() {
    if [ -z "${THRONG_BIN:-}" ]; then
        need_build
        local profile=dev
        [ "$1" = debug ] || profile=$1
        cargo build --locked -p throng --bin throng --profile "$profile"
        THRONG_BIN=$(built "$1/throng")
    fi
    "$THRONG_BIN" --version >/dev/null || fail "$THRONG_BIN does not run"
}

# A Python environment with the clients: sets PYTHON. Debian's python3 comes without venv's installer.
need_python() {
    local venv="$REPOSITORY/.venv"
    have python3 || packages python3 python3-venv || fail "python3 is needed for the demonstration's clients and the tests"
    if [ ! -x "$venv/bin/pip" ]; then
        rm -rf "$venv"
        python3 -m venv "$venv" >/dev/null 2>&1 || {
            packages python3-venv || fail "python3-venv is needed"
            python3 -m venv "$venv" || fail "no virtual environment could be made in $venv"
        }
    fi
    PYTHON="$venv/bin/python"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
        || fail "Python 3.11 or later is needed; $("$PYTHON" --version) was found"
    "$PYTHON" -m pip install -q --disable-pip-version-check -r "$REPOSITORY/tests/e2e/requirements.txt" \
        || fail "pip could not install tests/e2e/requirements.txt"
}

# How a demonstration begins: what it is built with, if it has to be, and its clients.
demonstration_needs() {
    step "1. What is needed"
    if [ -z "${THRONG_BIN:-}" ]; then
        need_build
        note "$(cargo --version)"
    fi
    need_python
    note "$("$PYTHON" --version), websockets $("$PYTHON" -c 'import websockets; print(websockets.__version__)')"
}

# Its program: sets THRONG_BIN.
demonstration_program() {
    [ -n "${THRONG_BIN:-}" ] || step "2. Building (release, with link-time optimisation: some minutes the first time)"
    need_program release
}

# Valkey's server: sets VALKEY. Debian 12 has it among the backports; it is unpacked here and not installed.
want_valkey() {
    VALKEY=$(command -v valkey-server || true)
    [ -n "$VALKEY" ] && return
    local home="$REPOSITORY/target/valkey" codename
    VALKEY=$home/usr/bin/valkey-server
    [ -x "$VALKEY" ] && "$VALKEY" --version >/dev/null 2>&1 && return
    have apt-get && have dpkg-deb || return 1
    mkdir -p "$home/lists/partial" "$home/cache/archives/partial"
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    {
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $codename main"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $codename-backports main"
    } >"$home/sources.list"
    local apt=(apt-get -q -o Dir::Etc::sourcelist="$home/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$home/lists"
        -o Dir::Cache="$home/cache" -o APT::Sandbox::User=root)
    (
        cd "$home" || exit 1
        "${apt[@]}" update && { "${apt[@]}" download valkey-server/"$codename"-backports valkey-tools/"$codename"-backports \
            || "${apt[@]}" download valkey-server valkey-tools; }
    ) >"$home/log" 2>&1 || return 1
    for package in "$home"/valkey-*.deb; do dpkg-deb -x "$package" "$home"; done
    "$VALKEY" --version >/dev/null 2>&1
}

# The npm package `ws` for the tests' and the demonstration's other clients. Not having it is no failure.
want_node() {
    have node && have npm || return 1
    [ -d "$REPOSITORY/tests/e2e/clients/node_modules/ws" ] && return
    (cd "$REPOSITORY/tests/e2e/clients" && npm ci --silent --no-audit --no-fund >/dev/null 2>&1)
}
