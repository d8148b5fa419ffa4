#!/bin/bash
# Installs what building, `make demo` and `make test` need, on Debian or Ubuntu, and unpacks the
# distribution's cloud kernel for the guests that the VM tests boot.
#
# Safe to run again: it looks first and asks apt only for what is missing. The kernel is never
# installed on this machine; its package is unpacked into a cache directory (SMC_TEST_CACHE).
set -euo pipefail

CACHE=${SMC_TEST_CACHE:-/var/cache/smc-test}

BUILD_PACKAGES=(gcc libc6-dev pkg-config make)
# The tracker's eBPF programs are C, compiled for the bpf target by changetrack's build script.
BPF_PACKAGES=(clang libbpf-dev)
FILESYSTEM_PACKAGES=(util-linux mount e2fsprogs xfsprogs btrfs-progs fuse3)
NBD_PACKAGES=(libnbd-bin nbdkit python3-libnbd fio)
GUEST_PACKAGES=(busybox-static extlinux syslinux-common kmod xz-utils zstd)
# These two share a version, so that one does not conflict with the other's helper packages.
QEMU_PACKAGES=(qemu-system-x86 qemu-utils)

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

apt_get() {
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a apt-get -q -y \
        -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -o APT::Sandbox::User=root \
        -o Dpkg::Use-Pty=0 "$@" </dev/null
}

# Runs a command, showing what it printed only when it fails.
quietly() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 || status=$?
    if [ "$status" -ne 0 ]; then tail -n 25 "$log" >&2; fi
    rm -f "$log"
    return "$status"
}

check_machine() {
    [ "$(id -u)" -eq 0 ] || die "must run as root (it installs packages; the tests use loop devices): try 'sudo make setup'"
    command -v apt-get >/dev/null || die "apt-get not found: only Debian and Ubuntu are supported"
    local arch
    arch=$(dpkg --print-architecture)
    [ "$arch" = amd64 ] || die "this machine is $arch: the demo's disk boots on a PC BIOS and needs amd64"
}

version_of() { dpkg-query -W -f='${db:Status-Abbrev} ${Version}\n' "$1" 2>/dev/null | sed -n 's/^.i[^ ]* *//p'; }

missing_packages() {
    local package
    for package in "$@"; do
        [ -n "$(version_of "$package")" ] || printf '%s\n' "$package"
    done
}

qemu_is_ready() {
    local system utils
    system=$(version_of qemu-system-x86)
    utils=$(version_of qemu-utils)
    [ -n "$system" ] && [ "$system" = "$utils" ]
}

# The lists are read again only when something must be fetched, and then at most once.
LISTS_FRESH=no
refresh_lists() {
    [ "$LISTS_FRESH" = no ] || return 0
    LISTS_FRESH=yes
    quietly apt_get update || { sleep 3; quietly apt_get update; } ||
        say "warning: apt-get update failed twice; going on with the lists at hand"
}

configured_versions() { apt-cache madison "$1" | awk -F'|' '{ gsub(/ /, "", $2); print $2 }'; }

# The newest version that the configured suites hold of both: a backport installed by hand may be newer.
common_qemu_version() {
    local version utils
    utils=$(configured_versions qemu-utils)
    for version in $(configured_versions qemu-system-x86); do
        if grep -qxF -- "$version" <<<"$utils"; then
            printf '%s\n' "$version"
            return
        fi
    done
    return 1
}

install_packages() {
    local wanted=() version package
    mapfile -t wanted < <(missing_packages "${BUILD_PACKAGES[@]}" "${BPF_PACKAGES[@]}" \
        "${FILESYSTEM_PACKAGES[@]}" "${NBD_PACKAGES[@]}" "${GUEST_PACKAGES[@]}")
    if ! qemu_is_ready; then
        refresh_lists
        version=$(common_qemu_version) ||
            die "no common version of ${QEMU_PACKAGES[*]} in the configured apt sources: enable main (and universe on Ubuntu)"
        for package in "${QEMU_PACKAGES[@]}"; do wanted+=("$package=$version"); done
    fi
    [ "${#wanted[@]}" -gt 0 ] || return 0

    refresh_lists
    say "installing ${wanted[*]}"
    quietly apt_get install --no-install-recommends --allow-downgrades "${wanted[@]}" ||
        die "apt-get could not install: ${wanted[*]} (its last lines are above)"
}

# The packages that the newest version of PACKAGE depends on, first alternatives only.
dependencies_of() {
    apt-cache show --no-all-versions "$1" 2>/dev/null | sed -n 's/^\(Pre-\)\?Depends: //p' |
        tr ',' '\n' | sed 's/|.*//; s/(.*//; s/ //g'
}

# Names the real package behind Debian's or Ubuntu's kernel metapackage.
kernel_package() {
    local meta image
    for meta in linux-image-cloud-amd64 linux-image-virtual linux-image-generic linux-image-amd64; do
        image=$(dependencies_of "$meta" | grep -m1 '^linux-image-[0-9]') || continue
        printf '%s\n' "$image"
        return
    done
    return 1
}

kernel_is_ready() { [ -s "$CACHE/kernel/VERSION" ] && [ -s "$CACHE/kernel/vmlinuz" ]; }

# Makes DIRECTORY look like a root with one kernel: lib/modules/VERSION (indexed), vmlinuz, VERSION.
finish_kernel_tree() {
    local root=$1 image version
    image=$(find "$root/boot" -maxdepth 1 -name 'vmlinuz-*' -print -quit)
    [ -n "$image" ] || die "the kernel package holds no /boot/vmlinuz-*"
    version=${image##*/vmlinuz-}
    if [ ! -d "$root/lib/modules/$version" ] && [ -d "$root/usr/lib/modules/$version" ]; then
        mkdir -p "$root/lib/modules"
        mv "$root/usr/lib/modules/$version" "$root/lib/modules/"
    fi
    # depmod's index is made when a kernel is installed, and this one never is.
    quietly /sbin/depmod -b "$root" "$version" || die "depmod failed on $root"
    ln -sf "boot/vmlinuz-$version" "$root/vmlinuz"
    printf '%s\n' "$version" >"$root/VERSION"
}

unpack_kernel() {
    mkdir -p "$CACHE"
    # One at a time: two checkouts on one machine share the cache.
    exec 9>"$CACHE/lock"
    flock 9
    kernel_is_ready && return 0
    refresh_lists
    local image packages=() work deb
    image=$(kernel_package) || die "no kernel package (linux-image-cloud-amd64, linux-image-virtual) in the configured apt sources"
    mapfile -t packages < <(printf '%s\n' "$image"; dependencies_of "$image" | grep '^linux-modules-[0-9]' || true)
    say "unpacking ${packages[*]} into $CACHE (not installed)"
    work=$(mktemp -d "$CACHE/unpack.XXXXXX")
    # shellcheck disable=SC2064  # the path is meant to be fixed now
    trap "rm -rf '$work'" EXIT
    (cd "$work" && quietly apt_get download "${packages[@]}") || die "apt-get could not download ${packages[*]}"
    mkdir "$work/root"
    for deb in "$work"/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
    finish_kernel_tree "$work/root"
    rm -rf "$CACHE/kernel"
    chmod 755 "$work/root"
    mv "$work/root" "$CACHE/kernel"
}

check_machine
install_packages
unpack_kernel
say "ready (guest kernel $(cat "$CACHE/kernel/VERSION") in $CACHE)"
