#!/bin/bash
# Builds smc-VERSION-x86_64.tar.gz: the programs for any Linux server with glibc 2.28 (of 2018) or newer, with what they
# need to run as a service. Prints its path. `make dist` runs it.
#
# usage: dist.sh [--bin-dir DIR] [--out DIR] [--version VERSION] [--fast] [--any-glibc]
#        dist.sh --check PROGRAM...
#   --bin-dir    take these programs, and build none
#   --out        where the archive goes (target/dist)
#   --version    the version that it is named by (that of the workspace)
#   --fast       compress little: for tests
#   --any-glibc  take programs that need a newer glibc: for tests
#   --check      only check that these programs need no newer glibc, and no library besides it
#
# zig compiles the C parts and links: it knows every version of glibc. cargo-zigbuild makes cargo use it.
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC

SOURCE=$(cd "$(dirname "$0")/.." && pwd)
TARGET_DIR=${CARGO_TARGET_DIR:-$SOURCE/target}
OUT=$TARGET_DIR/dist
TOOLS=${SMC_TEST_CACHE:-/var/cache/smc-test}/dist-tools
GLIBC=2.28
TARGET=x86_64-unknown-linux-gnu
BIN_DIR=
VERSION=
COMPRESS=(gzip -9n)
ANY_GLIBC=no
PREFIX=
ZSH_FUNCTIONS=/share/zsh/site-functions
. "$SOURCE/scripts/package.sh"

die() { printf 'dist: error: %s\n' "$*" >&2; exit 1; }

# The newest version of glibc whose symbols PROGRAM wants; nothing if it wants none.
glibc_of() { objdump -T "$1" | grep -o 'GLIBC_[0-9][0-9.]*' | sed 's/GLIBC_//' | sort -Vu | tail -n 1; }

libraries_of() { objdump -p "$1" | awk '$1 == "NEEDED" { print $2 }'; }

# The libraries that belong to glibc. libgcc_s is part of every system that has a C compiler's programs.
check_libraries() {
    local library
    for library in $(libraries_of "$1"); do
        case $library in
            libc.so.6 | libm.so.6 | libdl.so.2 | librt.so.1 | libpthread.so.0 | ld-linux-x86-64.so.2 | libgcc_s.so.1) ;;
            *) die "$1 needs the library $library, which a server may not have" ;;
        esac
    done
}

check_glibc() {
    local wanted
    # A program that cannot be read would look like one that wants nothing.
    objdump -f "$1" | grep -q 'elf64-x86-64' || die "$1 is not a program for x86_64"
    wanted=$(glibc_of "$1" || true)
    [ -n "$wanted" ] || return 0
    [ "$(printf '%s\n' "$wanted" "$GLIBC" | sort -V | tail -n 1)" = "$GLIBC" ] ||
        die "$1 needs glibc $wanted, and servers may have $GLIBC: $(objdump -T "$1" | awk -v symbol="GLIBC_$wanted" \
            'index($0, symbol) { printf "%s ", $NF }')"
}

check() {
    local program
    command -v objdump >/dev/null || die "objdump not found: apt-get install binutils"
    for program in "$@"; do
        [ -f "$program" ] || die "there is no program $program"
        check_glibc "$program"
        check_libraries "$program"
    done
}

build_programs() {
    [ -x "$TOOLS/bin/cargo-zigbuild" ] || die "no cargo-zigbuild in $TOOLS: run 'scripts/setup.sh dist'"
    # A directory of its own: what is compiled for another glibc is of no use to other builds.
    PATH=$TOOLS/bin:$PATH CARGO_ZIGBUILD_ZIG_PATH=$TOOLS/zig/zig CARGO_TARGET_DIR=$TARGET_DIR/dist/build \
        cargo zigbuild --release --locked -p daemon -p smcctl -p smc-image --bins --target "$TARGET.$GLIBC" >&2
    BIN_DIR=$TARGET_DIR/dist/build/$TARGET/release
}

put_installation() {
    put 755 "$SOURCE/packaging/dist/install.sh" /install.sh
    put 644 "$SOURCE/packaging/dist/README" /README
    put 644 "$SOURCE/LICENSE" /LICENSE
    put 644 "$SOURCE/packaging/smcd.service" /systemd/smcd.service
    put 644 "$SOURCE/packaging/smcd.socket" /systemd/smcd.socket
    put 644 "$SOURCE/packaging/smcd.toml" /etc/smcd.toml
    put 644 "$SOURCE/packaging/hooks.d/README" /etc/hooks.d/README
}

# Written under a temporary name first, so that an existing archive is always complete.
build_archive() {
    mkdir -p "$OUT"
    tar -C "$WORK" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -c "$NAME" |
        "${COMPRESS[@]}" >"$OUT/.$NAME.tar.gz.new"
    mv "$OUT/.$NAME.tar.gz.new" "$OUT/$NAME.tar.gz"
    printf '%s\n' "$(cd "$OUT" && pwd)/$NAME.tar.gz"
}

if [ "${1:-}" = --check ]; then
    shift
    [ $# -gt 0 ] || die "--check needs programs"
    check "$@"
    exit
fi
while [ $# -gt 0 ]; do
    case $1 in
        --bin-dir | --out | --version) [ $# -ge 2 ] || die "$1 needs a value" ;;&
        --bin-dir) BIN_DIR=$(cd "$2" && pwd); shift ;;
        --out) OUT=$2; shift ;;
        --version) VERSION=$2; shift ;;
        --fast) COMPRESS=(gzip -1n) ;;
        --any-glibc) ANY_GLIBC=yes ;;
        *) die "unknown argument $1" ;;
    esac
    shift
done
[ -n "$BIN_DIR" ] || build_programs
check_programs
[ "$ANY_GLIBC" = yes ] || check "${PROGRAMS[@]/#/$BIN_DIR/}"
VERSION=${VERSION:-$(workspace_version)}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(source_time)}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
NAME=smc-$VERSION-x86_64
ROOT=$WORK/$NAME
mkdir -p "$ROOT"
put_programs
put_manuals
put_completions
put_guides
put_installation
build_archive
