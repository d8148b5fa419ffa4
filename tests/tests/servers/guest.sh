# What the guest does in its boot: sh /mnt/run PHASE. Facts for the host are lines that start with SMC-.
#   short   installs the archive, and syncs with io_uring and without
#   table   the same in every condition in which a kernel feature is missing
SOURCE=/dev/disk/by-id/virtio-source
TARGET=/dev/disk/by-id/virtio-target
IMAGES=/srv/images
# Where the archive puts the programs: a shell of Debian as root looks there by itself, a service does not.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export SMC_STORE=$IMAGES

# Ends the boot: whatever was to come would only hide what went wrong.
fail() {
    {
        say "FAILED $*"
        cat /tmp/output
        journalctl --no-pager -o cat -u 'smcd*' -n 40
        systemctl poweroff
        sleep 600
    } >&3
}

system_state() {
    say "SYSTEM $(systemctl is-system-running --wait)"
    say "KERNEL $(uname -r)"
    say "GLIBC $(ldd --version 2>&1 | sed 1q)"
}

install_archive() {
    mkdir -p $IMAGES /root/archive
    do_or_fail mount LABEL=store $IMAGES
    do_or_fail tar -xzf /mnt/smc.tar.gz -C /root/archive --strip-components 1
    do_or_fail sh /root/archive/install.sh
    say "VERSIONS $(smc-image --version) $(smcctl --version) $(smcd --version)"
    say "ACTIVE $(systemctl is-active smcd.service) $(systemctl is-active smcd.socket)"
    say "PAGES $(ls /usr/local/share/man/man1 | wc -l)"
    # An installation over one that runs is an upgrade.
    echo '# mine' >>/etc/smc/smcd.toml
    do_or_fail sh /root/archive/install.sh
    say "KEPT $(tail -n 1 /etc/smc/smcd.toml)"
}

# Random data over a part of the source, elsewhere each time.
writes=0
write_source() {
    writes=$((writes + 1))
    do_or_fail dd if=/dev/urandom of=$SOURCE bs=64k count=5 seek=$((writes * 37 % 700)) conv=fsync,notrunc
}

# verify NAME: whether the newest image is what the disk is.
verify() {
    if smc-image verify conditions/latest --against $SOURCE >/tmp/output 2>&1; then
        say "RIGHT-$1 yes"
    else
        cat /tmp/output
        say "RIGHT-$1 no"
    fi
}

# confined PROPERTY... -- COMMAND...: runs it as a service with these properties of systemd.
confined() {
    properties=
    while [ "$1" != -- ]; do
        properties="$properties -p '$1'"
        shift
    done
    shift
    command=
    for word; do command="$command '$word'"; done
    eval "systemd-run --quiet --collect --pipe --wait -p TimeoutStopSec=30 --setenv=PATH='$PATH' $properties -- $command"
}

sync_once() {
    # shellcheck disable=SC2086  # nothing where smcd has no such option
    confined "$@" -- smcd sync --json $TRACK --store $IMAGES --job conditions --disk vdc=$SOURCE 2>/tmp/warnings
}

# condition NAME PROPERTY...: two syncs, with writes before each, and what smcd says of itself.
condition() {
    name=$1
    shift
    write_source
    sync_once "$@" >/tmp/first || { cat /tmp/warnings; fail "first sync $name"; }
    say "WARNINGS-$name $(tr '\n' ';' </tmp/warnings)"
    write_source
    sync_once "$@" >/tmp/second || { cat /tmp/warnings; fail "second sync $name"; }
    say "SYNC-$name $(cat /tmp/second)"
    verify "$name"
    ask_service "$name" "$@"
}

# What an smcd that runs so finds, and what it logs.
ask_service() {
    name=$1
    shift
    rm -rf /root/free
    printf 'state_dir = "/root/free"\nsocket = "/root/free.sock"\n' >/root/free.toml
    properties=
    for property; do properties="$properties -p '$property'"; done
    eval "systemd-run --quiet --unit smcd-condition $properties -- /usr/local/sbin/smcd --config /root/free.toml" || fail "start smcd $name"
    until smcctl --socket /root/free.sock status >/dev/null 2>&1; do
        [ "$(systemctl is-active smcd-condition)" = active ] || fail "smcd $name: $(systemctl status smcd-condition)"
        sleep 0.2
    done
    say "PRECHECK-$name $(smcctl --socket /root/free.sock --json precheck --disk vdc)"
    do_or_fail systemctl stop smcd-condition
    say "LOG-$name $(journalctl --no-pager -o cat -u smcd-condition | grep 'smcd is ready' | tail -n 1)"
}

has_sysctl() { [ -e /proc/sys/kernel/io_uring_disabled ]; }

without_io_uring() {
    if has_sysctl; then
        echo 2 >/proc/sys/kernel/io_uring_disabled || fail "kernel.io_uring_disabled"
        condition sysctl
        echo 0 >/proc/sys/kernel/io_uring_disabled
    fi
}

FILTER='SystemCallFilter=~io_uring_setup io_uring_enter io_uring_register'
CONTAINER='CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID CAP_AUDIT_WRITE'

# Each takes away one thing that smc would like to have.
conditions() {
    condition filter "$FILTER" SystemCallErrorNumber=EPERM
    condition container "$FILTER bpf" SystemCallErrorNumber=EPERM "$CONTAINER"
    condition no-bpf SystemCallFilter=~bpf SystemCallErrorNumber=ENOSYS
    # A tracker that is attached needs it no more.
    do_or_fail systemctl stop smcd.socket smcd.service
    do_or_fail smcd tracker remove
    do_or_fail mount -t tmpfs none /sys/kernel/btf
    condition no-btf
    do_or_fail umount /sys/kernel/btf
    do_or_fail systemctl start smcd.service
    do_or_fail umount /sys/fs/bpf
    condition no-bpffs
    do_or_fail mount -t bpf bpf /sys/fs/bpf
    # There is no way back from this one.
    if [ -e /sys/kernel/security/lockdown ]; then
        echo confidentiality >/sys/kernel/security/lockdown || fail "lockdown"
        condition lockdown
    fi
}

# What the archive's units run is a service as the package's is.
use_service() {
    do_or_fail smcctl job create web01 --disk vdc=$SOURCE --store $IMAGES --interval 1h --max-images 2 --start
    do_or_fail smcctl job watch web01 --until-idle
    write_source
    do_or_fail smcctl job sync web01 --wait
    say "WEB01 $(smcctl --json job show web01)"
    say "SERVICE-LOG $(journalctl --no-pager -o cat -u smcd.service | grep 'smcd is ready' | tail -n 1)"
    say "SERVICE-WARNINGS $(journalctl --no-pager -q -o cat -p warning -u smcd.service | tr '\n' ';')"
    do_or_fail smc-image restore --yes web01/latest:vdc $TARGET
    cmp -n "$(blockdev --getsize64 $SOURCE)" $SOURCE $TARGET && say "RESTORED same"
}

remove_archive() {
    do_or_fail sh /root/archive/install.sh --remove
    say "LEFT $(find /usr/local /etc/systemd/system /sys/fs/bpf -name '*smc*' | tr '\n' ' ')"
    say "GONE $(systemctl is-active smcd.service) $(systemctl is-active smcd.socket)"
}

TRACK=
system_state
install_archive
if smcd sync --help | grep -q -e '--track'; then TRACK=--track; fi
say "TRACK $TRACK"
use_service
condition plain
without_io_uring
if [ "$1" = table ]; then conditions; fi
remove_archive
say "DONE all"
systemctl poweroff
