#!/usr/bin/env bash
# The virtual machine's parts: an emulator, a kernel, a shell. Everything comes from Debian's archive.
#
#   scripts/million/image.sh DIR     gets what DIR lacks: DIR/qemu (a program), DIR/firmware, DIR/vmlinux, DIR/busybox
#
# MILLION_QEMU, MILLION_KERNEL, MILLION_BUSYBOX name parts that are there already: qemu-system-x86_64 (8 or later), a
# vmlinux or bzImage of 6.1 or later with virtio-pci and virtio-console built in, and a static busybox. With all three,
# nothing is downloaded, and any distribution will do.
#
# Why not what the host has: its kernel may be unreadable, or have virtio as modules; and QEMU before 8 emulates two
# processors so that a 6.12 kernel crashes now and then (5 of 15 boots under 7.2, none of 40 under 10.0).
set -euo pipefail
DIR=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh

QEMU_MAJOR_MIN=8
# Where the kernel and busybox come from on a machine that is no Debian.
DEBIAN=trixie
DEBIAN_KEYS=/usr/share/keyrings/debian-archive-keyring.gpg
APT=()

# An apt of its own, so that the backports suite is read without a change to this machine.
private_apt() {
    [ ${#APT[@]} = 0 ] || return 0
    { have apt-get && have dpkg; } || fail "this is no Debian: give MILLION_QEMU, MILLION_KERNEL and MILLION_BUSYBOX (see scripts/million/image.sh)"
    local id codename suites uri='' key=''
    id=$(. /etc/os-release && printf '%s' "${ID:-}")
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    if [ "$id" = debian ]; then
        suites=$codename
        [ "$codename" != bookworm ] || suites="$codename $codename-backports"
        # The mirror that this machine uses already.
        uri=$(sed -n 's/^URIs:[[:space:]]*\([^[:space:]]*\).*/\1/p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -1)
        key=$(sed -n 's/^Signed-By:[[:space:]]*//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -1)
    else # Ubuntu and others with apt: a kernel and a static busybox care for no distribution
        suites=$DEBIAN
        [ -e "$DEBIAN_KEYS" ] || packages debian-archive-keyring || fail "Debian's keys are missing: apt-get install debian-archive-keyring"
    fi
    mkdir -p "$DIR/apt/parts" "$DIR/apt/lists/partial" "$DIR/apt/cache/archives/partial"
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
        "${uri:-http://deb.debian.org/debian}" "$suites" "${key:-$DEBIAN_KEYS}" \
        >"$DIR/apt/parts/million.sources"
    APT=(-q -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$DIR/apt/parts" -o "Dir::State::Lists=$DIR/apt/lists"
        -o "Dir::Cache=$DIR/apt/cache" -o APT::Sandbox::User=)
    case $suites in *-backports) APT+=(-t "$codename-backports") ;; esac
    note "reading the package lists of $suites"
    apt-get "${APT[@]}" update >"$DIR/apt/log" 2>&1 || { tail -5 "$DIR/apt/log"; fail "the package lists could not be read"; }
}

# unpack DESTINATION PACKAGE...: downloads packages and unpacks them there; nothing is installed.
unpack() {
    local destination=$1 package
    shift
    private_apt
    note "downloading $*"
    rm -rf "$DIR/packages" "$destination"
    mkdir -p "$DIR/packages" "$destination"
    (cd "$DIR/packages" && apt-get "${APT[@]}" download "$@") >"$DIR/apt/log" 2>&1 \
        || { tail -5 "$DIR/apt/log"; fail "could not download $*"; }
    for package in "$DIR"/packages/*.deb; do dpkg -x "$package" "$destination"; done
    rm -rf "$DIR/packages"
}

# qemu_serves PROGRAM: it runs here (its libraries are there), and is new enough.
qemu_serves() {
    local major
    major=$("$1" --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9]*\)\..*/\1/p')
    [ -n "$major" ] && [ "$major" -ge "$QEMU_MAJOR_MIN" ]
}

# Links DIR/qemu to a program, and DIR/firmware to the directories of its firmware.
get_qemu() {
    local installed root=$DIR/qemu-unpacked
    if [ -n "${MILLION_QEMU:-}" ]; then
        qemu_serves "$MILLION_QEMU" || fail "MILLION_QEMU=$MILLION_QEMU does not run, or is older than $QEMU_MAJOR_MIN"
        ln -sfn "$(realpath "$MILLION_QEMU")" "$DIR/qemu"
        return
    fi
    [ -x "$DIR/qemu" ] && qemu_serves "$DIR/qemu" && return
    installed=$(command -v qemu-system-x86_64 || true)
    if [ -z "$installed" ] && ! grep -q '^VERSION_CODENAME=bookworm' /etc/os-release; then
        packages qemu-system-x86 seabios || true
        installed=$(command -v qemu-system-x86_64 || true)
    fi
    if [ -n "$installed" ] && qemu_serves "$installed"; then
        ln -sfn "$installed" "$DIR/qemu"
        return
    fi
    grep -q '^VERSION_CODENAME=bookworm' /etc/os-release \
        || fail "QEMU $QEMU_MAJOR_MIN or later is needed: install qemu-system-x86, or give MILLION_QEMU"
    [ -x "$root/usr/bin/qemu-system-x86_64" ] \
        || unpack "$root" qemu-system-x86 qemu-system-common qemu-system-data
    # The libraries and the BIOS are those of the distribution's own package, whatever its version.
    qemu_serves "$root/usr/bin/qemu-system-x86_64" && [ -d /usr/share/seabios ] || packages qemu-system-x86 seabios \
        || fail "QEMU's libraries are missing: apt-get install --no-install-recommends qemu-system-x86 seabios"
    qemu_serves "$root/usr/bin/qemu-system-x86_64" || fail "QEMU does not run: $("$root/usr/bin/qemu-system-x86_64" --version 2>&1 | head -1)"
    ln -sfn "$root/usr/bin/qemu-system-x86_64" "$DIR/qemu"
}

# vmlinux BZIMAGE OUT: takes the ELF kernel out of a bzImage, by the offsets in its setup header (Documentation/arch/x86/boot.rst).
# Starting it directly (PVH) saves the decompression, seconds in an emulated processor.
vmlinux() {
    local image=$1 out=$2 setup_sectors offset length magic decompress
    number() { od -An -v -t "u$2" -j "$1" -N "$2" "$image" | tr -d ' '; } # by offset and size, little endian
    if [ "$(head -c 4 "$image" | od -An -t x1 | tr -d ' ')" = 7f454c46 ]; then
        cp "$image" "$out"
        return
    fi
    [ "$(tail -c +515 "$image" | head -c 4)" = HdrS ] || fail "$image is neither a vmlinux nor a bzImage"
    setup_sectors=$(number 497 1)
    [ "$setup_sectors" != 0 ] || setup_sectors=4
    offset=$(((setup_sectors + 1) * 512 + $(number 584 4)))
    length=$(number 588 4)
    magic=$(od -An -t x1 -j "$offset" -N 4 "$image" | tr -d ' ')
    case $magic in
        28b52ffd) decompress=zstd ;;
        02214c18) decompress=lz4 ;;
        fd377a58) decompress=xz ;;
        1f8b*) decompress=gzip ;;
        *) fail "$image is compressed in a way that is not known here ($magic)" ;;
    esac
    have "$decompress" || packages "$decompress" || fail "$decompress is needed to unpack the kernel"
    # The payload ends with its unpacked size, which is no part of the stream: the decompressor warns of it.
    tail -c "+$((offset + 1))" "$image" | head -c "$length" | "$decompress" -dc 2>/dev/null >"$out.part" || true
    [ "$(head -c 4 "$out.part" | od -An -t x1 | tr -d ' ')" = 7f454c46 ] || fail "unpacking $image failed"
    mv "$out.part" "$out"
}

get_kernel() {
    local package image
    if [ -n "${MILLION_KERNEL:-}" ]; then
        vmlinux "$MILLION_KERNEL" "$DIR/vmlinux"
        return
    fi
    [ -s "$DIR/vmlinux" ] && return
    private_apt
    package=$(apt-cache "${APT[@]}" depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p' | head -1)
    [ -n "$package" ] || fail "no package of the cloud kernel was found"
    unpack "$DIR/kernel" "$package"
    image=$(find "$DIR/kernel/boot" -name 'vmlinuz-*' | head -1)
    vmlinux "$image" "$DIR/vmlinux"
    rm -rf "$DIR/kernel"
}

get_busybox() {
    if [ -n "${MILLION_BUSYBOX:-}" ]; then
        cp "$MILLION_BUSYBOX" "$DIR/busybox"
        return
    fi
    [ -x "$DIR/busybox" ] && return
    unpack "$DIR/busybox-unpacked" busybox-static
    cp "$(find "$DIR/busybox-unpacked" -name busybox -type f -size +100k | head -1)" "$DIR/busybox"
    rm -rf "$DIR/busybox-unpacked"
}

[ "$(uname -m)" = x86_64 ] || fail "the virtual machine is for x86_64; this is $(uname -m). Try --here"
get_qemu
get_kernel
get_busybox
rm -rf "$DIR/apt"
