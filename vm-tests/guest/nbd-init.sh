#!/bin/busybox sh
# PID 1 of a guest that uses the kernel's NBD client. smc.port=PORT is where the host serves web01/2:vda with overlays.
# Every line that the host looks for starts with SMC-.
bb=/bin/busybox

fail() {
    echo "SMC-FAILED $*"
    $bb dmesg | $bb tail -n 20
    $bb poweroff -f
}

# wait_for WHAT COMMAND...
wait_for() {
    what=$1
    shift
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ "$tries" -le 100 ] || fail "waited for $what"
        $bb sleep 0.1
    done
}

client() { /lib/ld-linux-x86-64.so.2 --library-path /lib /bin/nbd-client "$@" >/run/log 2>&1; }
is_attached() { [ -e /sys/block/nbd0/pid ] && [ "$($bb cat /sys/block/nbd0/size)" -gt 0 ]; }
is_detached() { [ ! -e /sys/block/nbd0/pid ]; }

# attach EXPORT CONNECTIONS
attach() {
    client -N "$1" 10.0.2.2 "$port" /dev/nbd0 -connections "$2" || { $bb cat /run/log; fail "attach $1"; }
    wait_for "the export $1" is_attached
    echo "SMC-ATTACHED $1 with $2 connections"
}

detach() {
    client -d /dev/nbd0 || { $bb cat /run/log; fail "detach"; }
    wait_for "the device to be free" is_detached
}

sum_of() { $bb sha256sum "$1" | $bb cut -d ' ' -f 1; }

$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
for word in $($bb cat /proc/cmdline); do
    case $word in
        smc.port=*) port=${word#smc.port=} ;;
    esac
done
for module in $($bb cat /modules/order); do
    $bb insmod "/modules/$module" || fail "insmod $module"
done
wait_for "the network card" [ -e /sys/class/net/eth0 ]
$bb ip addr add 10.0.2.15/24 dev eth0 || fail "give eth0 an address"
$bb ip link set eth0 up || fail "start eth0"

# Two connections at once; what is read comes from the image.
attach web01/2:vda 2
echo "SMC-BYTES $(($($bb cat /sys/block/nbd0/size) * 512))"
echo "SMC-SHA256 $(sum_of /dev/nbd0)"
$bb mount -t ext4 -o ro,noload /dev/nbd0 /root || fail "mount the image"
echo "SMC-HELLO $($bb cat /root/hello)"
$bb umount /root || fail "unmount the image"
detach

# Writes, flushes and trims.
attach web01/2:vda@guest 2
$bb mount -t ext4 /dev/nbd0 /root || fail "mount the overlay"
$bb dd if=/dev/urandom of=/root/new bs=64k count=32 2>/run/log || fail "write a file"
$bb rm /root/noise || fail "remove a file"
$bb sync
$bb fstrim /root || fail "fstrim"
wrote=$(sum_of /root/new)
$bb umount /root || fail "unmount the overlay"
detach

# Nobody is connected in between. The kernel has forgotten what it wrote: all is read from the server.
attach web01/2:vda@guest 1
$bb mount -t ext4 -o ro /dev/nbd0 /root || fail "mount the overlay again"
[ "$(sum_of /root/new)" = "$wrote" ] || fail "the file differs"
[ ! -e /root/noise ] || fail "the removed file is there"
echo "SMC-FOUND $wrote"
$bb umount /root || fail "unmount the overlay again"
detach

if $bb dmesg | $bb grep -iE 'nbd0.*(error|fail|timed out)|I/O error|EXT4-fs (error|warning)'; then fail "the kernel complained"; fi
echo "SMC-DONE"
$bb poweroff -f
