#!/bin/bash
# Installs what building, `make demo` and `make test` need, on Debian or Ubuntu, and unpacks the
# distribution's cloud kernel for the guests that the VM tests boot.
#
# It can be run repeatedly: it checks first and asks apt only for what is missing. The kernel is never
# installed on this machine; its package is unpacked into a cache directory (SMC_TEST_CACHE). So are
# NBD clients of a release new enough to know extended headers, with the libraries that they need. The roots of freshly
# installed systems, in which the programs are tested, are made once by debootstrap and kept there too.
#
# usage: setup.sh [dist] [older] [servers] [bench]
#   dist     also the tools that build programs for servers with an older glibc (make dist)
#   older    also the system of an older release, in which those programs are tested (make test-dist)
#   servers  also servers of three releases, which start by themselves from disks of several layouts (make vm-test)
#   bench    also what `make bench` compares with: rsync, and the ssh server, which is not started on this machine
set -euo pipefail

CACHE=${SMC_TEST_CACHE:-/var/cache/smc-test}
SOURCE=$(cd "$(dirname "$0")/.." && pwd)

# dpkg-dev finds out what the Debian package depends on.
BUILD_PACKAGES=(gcc libc6-dev pkg-config make dpkg-dev)
# The tracker's eBPF programs are C, compiled for the bpf target by the build script of tracker/.
BPF_PACKAGES=(clang libbpf-dev)
FILESYSTEM_PACKAGES=(util-linux mount e2fsprogs xfsprogs btrfs-progs fuse3 gdisk)
NBD_PACKAGES=(libnbd-bin nbdkit python3-libnbd fio)
GUEST_PACKAGES=(busybox-static debootstrap extlinux syslinux-common kmod xz-utils zstd bzip2 lz4)
# Unpacked and not installed: the clients of the newer release, a dissector, and the kernel's client for a guest.
NEWER_PACKAGES=(libnbd-bin python3-libnbd qemu-utils tshark nbd-client)
# What a fresh system has beside the minimum, so that it boots with systemd.
SYSTEM_PACKAGES=(systemd-sysv udev kmod dbus)
SYSTEM_MIB=1536
# What the newer system has too: whatever makes disks out of disks, and a program that writes to them.
STORAGE_PACKAGES=(lvm2 thin-provisioning-tools mdadm cryptsetup-bin nvme-cli sg3-utils xfsprogs fio)
# What a server has that starts by itself: a kernel, what makes its initramfs, boot loaders for both kinds of firmware, what
# opens and checks whatever its root lies on, and the agent that boot checks ask.
SERVER_PACKAGES=("${SYSTEM_PACKAGES[@]}" linux-image-cloud-amd64 initramfs-tools lz4 grub-pc-bin grub-efi-amd64-bin grub2-common
    e2fsprogs xfsprogs btrfs-progs lvm2 cryptsetup-initramfs qemu-guest-agent)
# The compiler and linker for an older glibc, and what makes cargo use it (scripts/dist.sh).
ZIG_VERSION=0.17.1
ZIGBUILD_VERSION=0.24.1
# The database that tests let write while its disks are imaged.
DATABASE_PACKAGES=(postgresql)
# What a disk that UEFI boots is made of, and the firmware that boots it.
UEFI_PACKAGES=(ovmf systemd-boot-efi mtools)
# What copies disks over a network beside smc.
BENCH_PACKAGES=(rsync openssh-server openssh-client iproute2)
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

# The package lists are updated only if something must be fetched, and at most once.
LISTS_FRESH=no
refresh_lists() {
    [ "$LISTS_FRESH" = no ] || return 0
    LISTS_FRESH=yes
    quietly apt_get update || { sleep 3; quietly apt_get update; } ||
        say "warning: apt-get update failed twice; continuing with the existing package lists"
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
        "${FILESYSTEM_PACKAGES[@]}" "${NBD_PACKAGES[@]}" "${GUEST_PACKAGES[@]}" "${UEFI_PACKAGES[@]}" \
        "${DATABASE_PACKAGES[@]}")
    if ! qemu_is_ready; then
        refresh_lists
        version=$(common_qemu_version) ||
            die "no common version of ${QEMU_PACKAGES[*]} in the configured apt sources: enable main (and universe on Ubuntu)"
        for package in "${QEMU_PACKAGES[@]}"; do wanted+=("$package=$version"); done
    fi
    [ "${#wanted[@]}" -gt 0 ] || return 0

    refresh_lists
    say "installing ${wanted[*]}"
    make_no_database
    quietly apt_get install --no-install-recommends --allow-downgrades "${wanted[@]}" ||
        die "apt-get could not install: ${wanted[*]} (its last lines are above)"
    rm -f "$NO_DATABASE"
}

# The package of the ssh server starts it, now and at each boot, unless policy-rc.d and systemd say that it is not to.
NO_SERVICES=/usr/sbin/policy-rc.d
install_bench_packages() {
    local wanted=() has_policy=yes had_server
    mapfile -t wanted < <(missing_packages "${BENCH_PACKAGES[@]}")
    [ "${#wanted[@]}" -gt 0 ] || return 0
    had_server=$(version_of openssh-server)
    refresh_lists
    say "installing ${wanted[*]}"
    [ -e "$NO_SERVICES" ] || has_policy=no
    if [ $has_policy = no ]; then
        printf '#!/bin/sh\nexit 101\n' >"$NO_SERVICES"
        chmod 755 "$NO_SERVICES"
    fi
    local installed=yes
    quietly apt_get install --no-install-recommends "${wanted[@]}" || installed=no
    [ $has_policy = yes ] || rm -f "$NO_SERVICES"
    [ $installed = yes ] || die "apt-get could not install: ${wanted[*]} (its last lines are above)"
    if [ -z "$had_server" ] && command -v systemctl >/dev/null; then
        quietly systemctl disable ssh.service || say "warning: the ssh server may start at the next boot"
    fi
}

# The package of PostgreSQL makes a database and starts a server, unless this says that it is not to.
NO_DATABASE=/etc/postgresql-common/createcluster.d/smc-setup.conf
make_no_database() {
    mkdir -p "${NO_DATABASE%/*}"
    printf 'create_main_cluster = false\n' >"$NO_DATABASE"
}

# Options that make apt look at another release than this machine's; empty otherwise.
APART=()

# Nothing asks the kernel for zram by itself, and the distributions' kernels have it as a module.
load_modules() {
    [ -e /sys/class/zram-control ] || modprobe -q zram num_devices=0 ||
        say "warning: this kernel has no zram: the tests that need a second kind of disk fail"
}

# The packages that the newest version of PACKAGE depends on, first alternatives only.
dependencies_of() {
    apt-cache "${APART[@]}" show --no-all-versions "$1" 2>/dev/null | sed -n 's/^\(Pre-\)\?Depends: //p' |
        tr ',' '\n' | sed 's/|.*//; s/(.*//; s/ //g'
}

# Only one at a time: several checkouts on one machine share the cache.
lock_cache() {
    mkdir -p "$CACHE"
    exec 9>"$CACHE/lock"
    flock 9
    # The process that created these held the lock and was killed.
    rm -rf "$CACHE"/unpack.*
}

# Names a directory of its own on the cache's filesystem in WORK; it is gone when the script ends. The lock is held.
WORK_DIRECTORIES=()
trap 'rm -rf "${WORK_DIRECTORIES[@]}" "$NO_DATABASE"' EXIT
new_work_directory() {
    WORK=$(mktemp -d "$CACHE/unpack.XXXXXX")
    WORK_DIRECTORIES+=("$WORK")
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

kernel_is_ready() { [ -s "$1/VERSION" ] && [ -s "$1/vmlinuz" ]; }

# Makes DIRECTORY look like a root with one kernel: lib/modules/VERSION (indexed), vmlinuz, VERSION.
finish_kernel_tree() {
    local root=$1 image version
    image=$(find "$root/boot" -maxdepth 1 -name 'vmlinuz-*' -print -quit)
    [ -n "$image" ] || die "the kernel package contains no /boot/vmlinuz-*"
    version=${image##*/vmlinuz-}
    if [ ! -d "$root/lib/modules/$version" ] && [ -d "$root/usr/lib/modules/$version" ]; then
        mkdir -p "$root/lib/modules"
        mv "$root/usr/lib/modules/$version" "$root/lib/modules/"
    fi
    # depmod's index is created when a kernel is installed, but this one is never installed.
    quietly /sbin/depmod -b "$root" "$version" || die "depmod failed on $root"
    ln -sf "boot/vmlinuz-$version" "$root/vmlinuz"
    printf '%s\n' "$version" >"$root/VERSION"
}

# unpack_kernel DIRECTORY: the kernel of this machine's release, or of the one that apt looks at.
unpack_kernel() {
    local directory=$1 image packages=() work deb
    kernel_is_ready "$directory" && return 0
    [ "${#APART[@]}" -gt 0 ] || refresh_lists
    image=$(kernel_package) || die "no kernel package (linux-image-cloud-amd64, linux-image-virtual) in the configured apt sources"
    mapfile -t packages < <(printf '%s\n' "$image"; dependencies_of "$image" | grep '^linux-modules-[0-9]' || true)
    say "unpacking ${packages[*]} into $CACHE (not installed)"
    new_work_directory
    work=$WORK
    (cd "$work" && quietly apt_get "${APART[@]}" download "${packages[@]}") || die "apt-get could not download ${packages[*]}"
    mkdir "$work/root"
    for deb in "$work"/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
    finish_kernel_tree "$work/root"
    rm -rf "$directory"
    chmod 755 "$work/root"
    mkdir -p "${directory%/*}"
    mv "$work/root" "$directory"
}

running_release() { . /etc/os-release && printf '%s' "${VERSION_CODENAME:-}"; }

# The release of the newer system and clients: libnbd 1.18 and QEMU 8.2 brought extended headers.
newer_release() {
    case $1 in
        bookworm) printf 'trixie\n' ;;
        jammy) printf 'noble\n' ;;
        *) printf '%s\n' "$1" ;;
    esac
}

# The release that servers still run and whose glibc is older than that of programs built here.
older_release() {
    case $1 in
        bookworm | trixie) printf 'bullseye\n' ;;
        jammy | noble) printf 'focal\n' ;;
        *) return 1 ;;
    esac
}

# Prints sources.list lines for RELEASE: where this machine gets RUNNING, its own release, from.
newer_sources() {
    local running=$1 release=$2 keyring trust=
    for keyring in /usr/share/keyrings/{debian,ubuntu}-archive-keyring.gpg; do
        # Without one, apt goes by the keys that it trusts for every source.
        case $keyring in */"$(. /etc/os-release && printf '%s' "$ID")"-*) [ ! -s "$keyring" ] || trust="signed-by=$keyring" ;; esac
    done
    apt-get indextargets --format '$(CODENAME)|$(SUITE)|$(ORIGIN)|$(REPO_URI)|$(COMPONENT)' 'Created-By: Packages' |
        awk -F'|' -v running="$running" -v release="$release" -v trust="$trust" '
            $1 == running && $2 !~ /-/ && $3 ~ /^(Debian|Ubuntu)$/ && $5 ~ /^(main|universe)$/ {
                printf "deb [target=Packages %s] %s %s %s\n", trust, $4, release, $5
            }' | sort -u
}

# Makes apt look at RELEASE, with sources, lists and a cache of its own below DIRECTORY, for which nothing is installed.
look_at() {
    local directory=$1 running=$2 release=$3
    mkdir -p "$directory"/state/lists/partial "$directory"/cache/archives/partial
    : >"$directory/status"
    newer_sources "$running" "$release" >"$directory/sources.list"
    if [ ! -s "$directory/sources.list" ]; then
        refresh_lists
        newer_sources "$running" "$release" >"$directory/sources.list"
    fi
    [ -s "$directory/sources.list" ] || die "no apt source for $running: cannot find out where to get packages of $release"
    APART=(-o "Dir::Etc::sourcelist=$directory/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null -o APT::Default-Release=
        -o "Dir::State=$directory/state" -o "Dir::State::status=$directory/status"
        -o "Dir::Cache=$directory/cache" -o Acquire::Languages=none)
    quietly apt_get "${APART[@]}" update || { sleep 3; quietly apt_get "${APART[@]}" update; } ||
        die "could not read the package lists of $release (apt's last lines are above)"
}

look_here() { APART=(); }

# Downloads PACKAGES of RELEASE with all they depend on to DIRECTORY/cache/archives; apt checks the signatures.
download_newer() {
    local directory=$1 running=$2 release=$3
    look_at "$directory" "$running" "$release"
    quietly apt_get "${APART[@]}" install --download-only --no-install-recommends "${NEWER_PACKAGES[@]}" ||
        die "could not download ${NEWER_PACKAGES[*]} of $release (apt's last lines are above)"
    look_here
}

# Writes ROOT/run, which runs a program of the tree with the tree's loader and libraries.
write_runner() {
    cat >"$1/run" <<'RUNNER'
#!/bin/sh
# Runs a program of this tree, with its libraries and its Python: run nbdinfo --version
root=$(dirname "$(readlink -f "$0")")
libraries=$root/usr/lib/x86_64-linux-gnu
program=$1
shift
if [ "$program" = nbdsh ]; then
    program=python3
    set -- -m nbd "$@"
fi
if [ "$program" = python3 ]; then
    export PYTHONHOME="$root/usr" PYTHONDONTWRITEBYTECODE=1
    unset PYTHONPATH
fi
for directory in usr/bin usr/sbin bin sbin; do
    [ -x "$root/$directory/$program" ] || continue
    exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$root/$directory/$program" "$@"
done
echo "run: no program $program in $root" >&2
exit 127
RUNNER
    chmod 755 "$1/run"
}

unpack_newer() {
    local running release wanted work deb
    running=$(running_release)
    release=$(newer_release "$running")
    # Whatever is named here is what the tree is made of; a tree of something else is made again.
    wanted="$release: ${NEWER_PACKAGES[*]}"
    [ "$(cat "$CACHE/newer/CONTENT" 2>/dev/null)" != "$wanted" ] || return 0
    say "unpacking NBD clients of $release into $CACHE (not installed)"
    new_work_directory
    work=$WORK
    download_newer "$work/apt" "$running" "$release"
    mkdir "$work/root"
    for deb in "$work"/apt/cache/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" |
            tar -x -C "$work/root" --no-same-owner --keep-directory-symlink \
                --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale'
    done
    # Where /lib is not a link to usr/lib yet, some packages still put libraries there.
    if [ -d "$work/root/lib" ] && [ ! -L "$work/root/lib" ]; then cp -a "$work/root/lib/." "$work/root/usr/lib/"; fi
    write_runner "$work/root"
    local program
    for program in nbdinfo nbdcopy qemu-img tshark; do
        quietly "$work/root/run" "$program" --version || die "$program of $release does not run here"
    done
    quietly "$work/root/run" nbdsh -c 'assert h.supports_uri()' || die "nbdsh of $release does not run here"
    printf '%s\n' "$wanted" >"$work/root/CONTENT"
    chmod 755 "$work/root"
    rm -rf "$CACHE/newer"
    mv "$work/root" "$CACHE/newer"
}

# Prints where this machine gets RELEASE from, if it is something that debootstrap can read.
mirror_of() {
    apt-get indextargets --format '$(CODENAME)|$(SUITE)|$(ORIGIN)|$(REPO_URI)|$(COMPONENT)' 'Created-By: Packages' |
        awk -F'|' -v release="$1" '
            $1 == release && $2 !~ /-/ && $3 ~ /^(Debian|Ubuntu)$/ && $5 == "main" && $4 ~ /^(https?|file):/ {
                print $4
                exit
            }'
}

# bootstrap RELEASE ROOT MIRROR PACKAGE...: runs debootstrap where its mounts and whatever it starts end with it, however it
# ends, and after 15 minutes in any case.
bootstrap() {
    local release=$1 root=$2 mirror=$3 http_proxy= https_proxy= include
    shift 3
    eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy)"
    [ "$http_proxy" = "" ] || export http_proxy
    [ "$https_proxy" = "" ] || export https_proxy
    include=$(IFS=,; printf '%s' "$*")
    timeout --foreground --kill-after=10 900 \
        unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
        debootstrap --variant=minbase --include="$include" "$release" "$root" "$mirror"
}

# finish_system ROOT KERNEL...: makes what debootstrap left into a system that boots from a disk with the label smc-debian
# and one of these kernels.
finish_system() {
    local root=$1 kernel
    shift
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
    mkdir -p "$root/lib/modules"
    for kernel in "$@"; do cp -a "$kernel"/lib/modules/. "$root/lib/modules/"; done
    printf 'LABEL=smc-debian / ext4 defaults 0 1\n' >"$root/etc/fstab"
    printf 'web01\n' >"$root/etc/hostname"
}

# make_system DIRECTORY RELEASE "PACKAGE..." KERNEL...: the disk of a fresh RELEASE, with the modules of these kernels.
make_system() {
    local directory=$1 release=$2 packages=$3 running mirror wanted work kernel
    shift 3
    # A disk of something else is made again.
    wanted="$release: $packages,"
    for kernel in "$@"; do wanted+=" kernel $(cat "$kernel/VERSION"),"; done
    wanted+=" $SYSTEM_MIB MiB"
    [ "$(cat "$directory/CONTENT" 2>/dev/null)" != "$wanted" ] || return 0
    running=$(running_release)
    [ -n "$(mirror_of "$running")" ] || refresh_lists
    mirror=$(mirror_of "$running")
    [ -n "$mirror" ] || die "no apt source for $running that debootstrap can read (http, https or file)"
    say "installing a fresh $release into $CACHE with debootstrap (a minute or two, once)"
    new_work_directory
    work=$WORK
    # shellcheck disable=SC2086  # a list of packages
    quietly bootstrap "$release" "$work/root" "$mirror" $packages || die "debootstrap failed (its last lines are above)"
    finish_system "$work/root" "$@"
    mkdir "$work/disk"
    quietly mke2fs -q -t ext4 -L smc-debian -d "$work/root" "$work/disk/root.img" "${SYSTEM_MIB}M" ||
        die "mke2fs could not make a disk of $release"
    printf '%s\n' "$wanted" >"$work/disk/CONTENT"
    rm -rf "$directory"
    mkdir -p "${directory%/*}"
    mv "$work/disk" "$directory"
}

# kernel_of RELEASE DIRECTORY: the kernel of another release than this machine's.
kernel_of() {
    local release=$1 directory=$2
    kernel_is_ready "$directory" && return 0
    new_work_directory
    look_at "$WORK/apt" "$(running_release)" "$release"
    unpack_kernel "$directory"
    look_here
}

# The system of the newer release boots with its own kernel and with that of this machine's release.
make_newer_system() {
    local release
    release=$(newer_release "$(running_release)")
    kernel_of "$release" "$CACHE/newer-system/kernel"
    make_system "$CACHE/newer-system/disk" "$release" "${SYSTEM_PACKAGES[*]} ${STORAGE_PACKAGES[*]}" \
        "$CACHE/newer-system/kernel" "$CACHE/kernel"
}

make_older_system() {
    local running release
    running=$(running_release)
    release=$(older_release "$running") || die "no older release is known for $running: make test-dist needs Debian or Ubuntu LTS"
    kernel_of "$release" "$CACHE/older-system/kernel"
    make_system "$CACHE/older-system/disk" "$release" "${SYSTEM_PACKAGES[*]}" "$CACHE/older-system/kernel"
}

# The files of servers, which vm_tests::server puts on disks.
make_servers() {
    local running
    running=$(running_release)
    make_system "$CACHE/server-files/own" "$running" "${SERVER_PACKAGES[*]}"
    make_system "$CACHE/server-files/newer" "$(newer_release "$running")" "${SERVER_PACKAGES[*]}"
    make_system "$CACHE/server-files/older" "$(older_release "$running")" "${SERVER_PACKAGES[*]}"
}

# Unpacks the compiler, whose package holds it ready to run, and builds the cargo command that uses it.
install_dist_tools() {
    local tools=$CACHE/dist-tools wanted work
    wanted="zig $ZIG_VERSION, cargo-zigbuild $ZIGBUILD_VERSION"
    [ "$(cat "$tools/CONTENT" 2>/dev/null)" != "$wanted" ] || return 0
    command -v cargo >/dev/null || die "cargo not found in PATH: install Rust first"
    if ! python3 -m pip --version >/dev/null 2>&1; then
        refresh_lists
        quietly apt_get install --no-install-recommends python3-pip || die "apt-get could not install python3-pip"
    fi
    say "installing $wanted into $CACHE (some minutes, once)"
    new_work_directory
    work=$WORK
    quietly python3 -m pip download --no-deps --require-hashes --dest "$work/wheel" -r "$SOURCE/scripts/zig.txt" ||
        die "pip could not download zig $ZIG_VERSION (its last lines are above)"
    mkdir -p "$work/tools"
    python3 -m zipfile -e "$work"/wheel/ziglang-*.whl "$work/wheel/unpacked"
    mv "$work/wheel/unpacked/ziglang" "$work/tools/zig"
    # A zip file's permissions are not unpacked.
    chmod 755 "$work/tools/zig/zig"
    quietly env CARGO_TARGET_DIR="$work/target" cargo install --locked --root "$work/tools" --version "=$ZIGBUILD_VERSION" cargo-zigbuild ||
        die "cargo could not install cargo-zigbuild $ZIGBUILD_VERSION (its last lines are above)"
    printf '%s\n' "$wanted" >"$work/tools/CONTENT"
    chmod 755 "$work/tools"
    rm -rf "$tools"
    mv "$work/tools" "$tools"
}

for part in "$@"; do
    case $part in dist | older | servers | bench) ;; *) die "unknown part $part: dist, older, servers or bench" ;; esac
done
check_machine
install_packages
load_modules
lock_cache
unpack_kernel "$CACHE/kernel"
unpack_newer
make_system "$CACHE/debian" "$(running_release)" "${SYSTEM_PACKAGES[*]}" "$CACHE/kernel"
make_newer_system
for part in "$@"; do
    case $part in
        dist) install_dist_tools ;;
        older) make_older_system ;;
        servers) make_servers ;;
        bench) install_bench_packages ;;
    esac
done
say "ready (guest kernel $(cat "$CACHE/kernel/VERSION"), clients $("$CACHE/newer/run" nbdinfo --version | head -n 1) in $CACHE)"
