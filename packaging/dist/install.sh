#!/bin/sh
# Installs smc from its unpacked archive, upgrades it, or removes it: the README beside this script explains how.
#
# usage: install.sh [--prefix DIR] [--destdir DIR] [--no-start]
#        install.sh [--prefix DIR] --remove
#   --prefix    where bin, sbin and share are (/usr/local)
#   --destdir   copy below this directory instead of /, and start nothing: to prepare a system that does not run
#   --no-start  do not enable and start smcd
#   --remove    stop smcd and remove the programs; settings, jobs and images are kept
set -eu
umask 022

FROM=$(cd "$(dirname "$0")" && pwd)
PREFIX=/usr/local
DESTDIR=
START=yes
UNITS=/etc/systemd/system

die() { printf 'install: error: %s\n' "$*" >&2; exit 1; }

systemd_runs() { [ -d /run/systemd/system ] && [ "$DESTDIR" = "" ]; }

# put FILE MODE TARGET: through a temporary name, so that a program that runs can be replaced.
put() {
    mkdir -p "$(dirname "$DESTDIR$3")"
    cp "$1" "$DESTDIR$3.new"
    chmod "$2" "$DESTDIR$3.new"
    mv "$DESTDIR$3.new" "$DESTDIR$3"
}

# What the units and settings name is where this installation puts it.
put_adjusted() {
    adjusted=$(mktemp)
    sed -e "s|/usr/sbin/smcd|$PREFIX/sbin/smcd|; s|/usr/share/doc/smc|$PREFIX/share/doc/smc|" "$1" >"$adjusted"
    put "$adjusted" 644 "$2"
    rm -f "$adjusted"
}

# An administrator's settings are kept.
put_settings() {
    for file in smcd.toml hooks.d/README; do
        [ -e "$DESTDIR/etc/smc/$file" ] || put_adjusted "$FROM/etc/$file" "/etc/smc/$file"
    done
}

files_below() { (cd "$FROM" && find "$1" -type f); }

install_files() {
    for file in $(files_below bin) $(files_below sbin); do put "$FROM/$file" 755 "$PREFIX/$file"; done
    for file in $(files_below share); do put "$FROM/$file" 644 "$PREFIX/$file"; done
    for unit in smcd.service smcd.socket; do put_adjusted "$FROM/systemd/$unit" "$UNITS/$unit"; done
    put_settings
}

start() {
    systemctl daemon-reload
    systemctl --quiet enable smcd.socket smcd.service
    systemctl start smcd.socket
    # Upgraded: running syncs write a checkpoint and resume, and waiting jobs keep their times.
    systemctl restart smcd.service
}

remove() {
    if systemd_runs; then
        systemctl --quiet disable --now smcd.socket smcd.service || true
    fi
    for file in $(files_below bin) $(files_below sbin) $(files_below share); do rm -f "$DESTDIR$PREFIX/$file"; done
    for dir in smc/examples/hooks.d smc/examples smc; do
        rmdir "$DESTDIR$PREFIX/share/doc/$dir" 2>/dev/null || true
    done
    rm -f "$DESTDIR$UNITS/smcd.service" "$DESTDIR$UNITS/smcd.socket"
    if systemd_runs; then systemctl daemon-reload; fi
    # What the tracker pinned: without smcd it would only cost time.
    if [ "$DESTDIR" = "" ]; then rm -rf /sys/fs/bpf/smc; fi
    echo "smc is removed. /etc/smc, /var/lib/smc and all images are kept."
}

ACTION=install
while [ $# -gt 0 ]; do
    case $1 in
        --prefix | --destdir) [ $# -ge 2 ] || die "$1 needs a directory" ;;
    esac
    case $1 in
        --prefix) PREFIX=$2; shift ;;
        --destdir) DESTDIR=$2; shift ;;
        --no-start) START=no ;;
        --remove) ACTION=remove ;;
        *) die "unknown argument $1: README explains how to use this script" ;;
    esac
    shift
done
case $PREFIX in /*) ;; *) die "not an absolute path: $PREFIX" ;; esac
[ "$(id -u)" -eq 0 ] || [ "$DESTDIR" != "" ] || die "must run as root"
if [ "$ACTION" = remove ]; then
    remove
    exit
fi
# Two installations would fight over the service.
if [ "$DESTDIR" = "" ] && command -v dpkg-query >/dev/null && dpkg-query -W -f '${Status}' smc 2>/dev/null | grep -q ' installed'; then
    die "the Debian package smc is installed: remove it first (apt-get remove smc), which keeps settings, jobs and images"
fi
# A system that is too old would refuse every program with a message of its loader.
[ "$DESTDIR" != "" ] || "$FROM/bin/smc-image" --version >/dev/null ||
    die "these programs do not run here (they need x86_64 and glibc 2.28 or newer)"
install_files
if [ "$START" = yes ] && systemd_runs; then
    start
    echo "smc is installed, and smcd runs. Next: smcctl precheck"
else
    echo "smc is installed. smcd was not started: $PREFIX/sbin/smcd, or systemctl enable --now smcd.socket smcd.service"
fi
