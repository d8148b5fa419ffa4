#!/bin/bash
# Builds the Debian package smc_VERSION_ARCHITECTURE.deb, or smc-store_…, from compiled programs, and prints its path.
#
# usage: deb.sh [--package smc|smc-store] [--bin-dir DIR] [--out DIR] [--version VERSION] [--fast]
#   --package  smc: smcd, smcctl and smc-image, for sources; smc-store: for targets (smc)
#   --bin-dir  where the programs are (target/release)
#   --out      where the package goes (target/debian)
#   --version  the package's version (that of the workspace)
#   --fast     do not compress: for tests
#
# The same sources and programs give the same package, byte for byte: times are those of the last commit, or
# SOURCE_DATE_EPOCH. DEBFULLNAME and DEBEMAIL name the maintainer.
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC

SOURCE=$(cd "$(dirname "$0")/.." && pwd)
BIN_DIR=${CARGO_TARGET_DIR:-$SOURCE/target}/release
OUT=${CARGO_TARGET_DIR:-$SOURCE/target}/debian
VERSION=
PACKAGE=smc
COMPRESS=(-Zxz)
PREFIX=/usr
ZSH_FUNCTIONS=/usr/share/zsh/vendor-completions
. "$SOURCE/scripts/package.sh"

die() { printf 'deb: error: %s\n' "$*" >&2; exit 1; }

while [ $# -gt 0 ]; do
    case $1 in
        --package | --bin-dir | --out | --version) [ $# -ge 2 ] || die "$1 needs a value" ;;&
        --package) PACKAGE=$2; shift ;;
        --bin-dir) BIN_DIR=$(cd "$2" && pwd); shift ;;
        --out) OUT=$2; shift ;;
        --version) VERSION=$2; shift ;;
        --fast) COMPRESS=(-Znone) ;;
        *) die "unknown argument $1" ;;
    esac
    shift
done

check_input() {
    local tool
    for tool in dpkg-deb dpkg-shlibdeps strip gzip; do
        command -v "$tool" >/dev/null || die "$tool not found: apt-get install dpkg-dev (or make setup)"
    done
    check_programs
    [[ $VERSION =~ ^[0-9][A-Za-z0-9.+~-]*$ ]] || die "not a version of a Debian package: '$VERSION'"
}

# What is in which package.
case $PACKAGE in
    smc) CONTROL=$SOURCE/packaging/debian ;;
    smc-store) CONTROL=$SOURCE/packaging/debian-store PROGRAMS=(smc-store) ;;
    *) die "there is no package $PACKAGE" ;;
esac

put_configuration_of_target() {
    put 644 "$SOURCE/packaging/smc-store.service" /usr/lib/systemd/system/smc-store.service
    put 644 "$SOURCE/packaging/smc-store.toml" /etc/smc/smc-store.toml
}

put_configuration() {
    if [ "$PACKAGE" = smc-store ]; then put_configuration_of_target; return; fi
    put 644 "$SOURCE/packaging/smcd.service" /usr/lib/systemd/system/smcd.service
    put 644 "$SOURCE/packaging/smcd.socket" /usr/lib/systemd/system/smcd.socket
    put 644 "$SOURCE/packaging/smcd.toml" /etc/smc/smcd.toml
    put 644 "$SOURCE/packaging/hooks.d/README" /etc/smc/hooks.d/README
}

put_documents() {
    if [ "$PACKAGE" = smc ]; then
        put_guides
    else
        put 644 "$SOURCE/docs/targets.md" /usr/share/doc/smc-store/targets.md
        put 644 "$SOURCE/docs/wire.md" /usr/share/doc/smc-store/wire.md
    fi
    put 644 "$SOURCE/packaging/debian/copyright" "/usr/share/doc/$PACKAGE/copyright"
    printf '%s (%s) unstable; urgency=medium\n\n  * Built from the sources of %s.\n\n -- %s  %s\n' \
        "$PACKAGE" "$VERSION" "$VERSION" "$MAINTAINER" "$(date -R -d "@$SOURCE_DATE_EPOCH")" >"$WORK/changelog"
    gzip -9n "$WORK/changelog"
    put 644 "$WORK/changelog.gz" "/usr/share/doc/$PACKAGE/changelog.gz"
}

# The distribution's libraries that the programs need, in the versions of the build machine.
depends() {
    # dpkg-shlibdeps reads the control file of a source package.
    printf 'Source: smc\n\nPackage: smc\nArchitecture: any\n' >"$WORK/debian/control"
    (cd "$WORK" && dpkg-shlibdeps -O "$ROOT"/usr/*bin/* | sed -n 's/^shlibs:Depends=//p')
}

put_control() {
    local depends size script
    mkdir "$ROOT/DEBIAN"
    depends=$(depends)
    [ -n "$depends" ] || die "dpkg-shlibdeps found no dependencies of the programs"
    size=$(find "$ROOT" -type f -printf '%s\n' | awk '{ kib += int(($1 + 1023) / 1024) } END { print kib }')
    (cd "$ROOT" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) >"$ROOT/DEBIAN/md5sums"
    sed -e "s|@VERSION@|$VERSION|; s|@ARCHITECTURE@|$ARCHITECTURE|; s|@MAINTAINER@|$MAINTAINER|" \
        -e "s|@INSTALLED_SIZE@|$size|; s|@DEPENDS@|$depends|" "$CONTROL/control" >"$ROOT/DEBIAN/control"
    put 644 "$CONTROL/conffiles" /DEBIAN/conffiles
    for script in postinst prerm postrm; do
        put 755 "$CONTROL/$script" "/DEBIAN/$script"
    done
}

# Written under a temporary name first, so that an existing package is always complete.
build_package() {
    local name=${PACKAGE}_${VERSION}_$ARCHITECTURE.deb
    find "$ROOT" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    mkdir -p "$OUT"
    dpkg-deb --root-owner-group "${COMPRESS[@]}" --build "$ROOT" "$WORK/$name" >/dev/null
    cp "$WORK/$name" "$OUT/.$name.new"
    mv "$OUT/.$name.new" "$OUT/$name"
    printf '%s\n' "$(cd "$OUT" && pwd)/$name"
}

VERSION=${VERSION:-$(workspace_version)}
check_input
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(source_time)}
ARCHITECTURE=$(dpkg --print-architecture)
MAINTAINER="${DEBFULLNAME:-smc developers} <${DEBEMAIL:-smc@localhost}>"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
ROOT=$WORK/debian/smc
mkdir -p "$ROOT"
put_programs
put_manuals
put_completions
put_configuration
put_documents
put_control
build_package
