#!/bin/busybox sh
# PID 1 of the initramfs of a whole system: mounts its root and the payload, adds a unit that runs the payload's script
# with smc.phase=PHASE as its argument, and hands over to systemd; with smc.init=script, to the script itself. The script's
# output is the first serial line.
bb=/bin/busybox

fail() {
    echo "SMC-BOOT-FAILED $*" >/dev/ttyS0
    $bb poweroff -f
}

# find_disk LABEL: prints its device, which appears some time after the driver does.
find_disk() {
    tries=0
    until device=$($bb findfs "LABEL=$1" 2>/dev/null) && [ -b "$device" ]; do
        tries=$((tries + 1))
        [ "$tries" -le 100 ] || return 1
        $bb sleep 0.1
    done
    echo "$device"
}

$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev

phase=
init=systemd
for word in $($bb cat /proc/cmdline); do
    case $word in
        smc.phase=*) phase=${word#smc.phase=} ;;
        smc.init=*) init=${word#smc.init=} ;;
    esac
done

for module in $($bb cat /modules/order); do
    $bb insmod "/modules/$module" || fail "insmod $module"
done

root=$(find_disk smc-debian) || fail "no filesystem smc-debian"
$bb mount -t ext4 -o rw "$root" /root || fail "mount $root"
payload=$(find_disk smc-payload) || fail "no filesystem smc-payload"
$bb mount -t ext4 -o ro "$payload" /root/mnt || fail "mount $payload"

$bb mount -t tmpfs -o mode=755 tmpfs /run
units=/run/systemd/system
$bb mkdir -p $units/multi-user.target.wants
$bb cat >$units/smc-test.service <<UNIT
[Unit]
Description=Script of the test

[Service]
Type=exec
ExecStart=/bin/sh /mnt/run $phase
Environment=HOME=/root
StandardOutput=file:/dev/ttyS0
StandardError=inherit
UNIT
$bb ln -s ../smc-test.service $units/multi-user.target.wants/smc-test.service

$bb mount -o move /dev /root/dev
$bb mount -o move /proc /root/proc
$bb mount -o move /sys /root/sys
$bb mount -o move /run /root/run
if [ $init = script ]; then exec $bb switch_root -c /dev/ttyS0 /root /bin/sh /mnt/run "$phase"; fi
exec $bb switch_root /root /sbin/init
fail "switch_root"
