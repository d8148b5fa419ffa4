# What scripts in guests have in common: vm_tests::system::script puts it in front of them. Facts for the host are lines that start
# with SMC-. They go to descriptor 3, so that what is said from within $( ) goes to the host too.
export LC_ALL=C PATH=/mnt:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
# Without systemd nothing reads udev's database, and no program has to wait for it.
if [ ! -d /run/udev ]; then export DM_DISABLE_UDEV=1 MDADM_NO_UDEV=1; fi
export LVM_SUPPRESS_FD_WARNINGS=1
exec 3>&1

say() { printf 'SMC-%s\n' "$*" >&3; }

# Ends the boot.
end() {
    sync
    echo o >/proc/sysrq-trigger
    sleep 600
}

# Ends the boot, with what the last command wrote: whatever was to come would only hide what went wrong.
fail() {
    {
        say "FAILED $*"
        cat /tmp/output
        dmesg | tail -n 30
    } >&3 2>/dev/null
    end
}

do_or_fail() { "$@" >/tmp/output 2>&1 || fail "$*"; }

# wait_for COMMAND...
wait_for() {
    tries=0
    until "$@" >/tmp/output 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -le 1200 ] || fail "waited for $*"
        sleep 0.1
    done
}

# disk SERIAL: its device. One that NVMe's multipath hides is a path and no disk.
disk() {
    for block in /sys/block/*; do
        [ "$(cat "$block/hidden" 2>/dev/null)" != 1 ] || continue
        serial=$(cat "$block/serial" "$block/device/serial" "$block/device/vpd_pg80" 2>/dev/null | tr -dc '[:alnum:]')
        if [ "$serial" = "$1" ]; then
            echo "/dev/${block##*/}"
            return
        fi
    done
    fail "no disk $1"
}
