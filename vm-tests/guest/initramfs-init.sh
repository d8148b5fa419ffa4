#!/bin/busybox sh
# PID 1 of the initramfs: loads the drivers, mounts the disk's root and hands over to the disk's own init.
# Every line that the host looks for starts with SMC-.
bb=/bin/busybox

fail() {
    echo "SMC-BOOT-FAILED $*"
    $bb poweroff -f
}

$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev

root=
for word in $($bb cat /proc/cmdline); do
    case $word in
        smc.probe) echo "SMC-PROBE-OK"; $bb poweroff -f ;;
        smc.root=*) root=${word#smc.root=} ;;
    esac
done

for module in $($bb cat /modules/order); do
    $bb insmod "/modules/$module" || fail "insmod $module"
done

# The disk appears some time after its driver does.
tries=0
until device=$($bb findfs "$root" 2>/dev/null) && [ -b "$device" ]; do
    tries=$((tries + 1))
    [ "$tries" -le 100 ] || fail "no filesystem $root"
    $bb sleep 0.1
done

# Read-write: the journal of a disk imaged while mounted is replayed, into the guest's throw-away overlay.
$bb mount -t ext4 -o rw "$device" /root || fail "mount $device"
$bb mount -o move /dev /root/dev
$bb mount -o move /proc /root/proc
$bb mount -o move /sys /root/sys
exec $bb switch_root /root /sbin/init
echo "SMC-BOOT-FAILED switch_root"
