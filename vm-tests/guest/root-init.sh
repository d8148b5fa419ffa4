#!/bin/busybox sh
# /sbin/init of the disk: says which point in time this disk is, proves its files, and powers off; with smc.login on
# the kernel's command line it shows a login prompt instead, and starts /etc/smc/services if a test has put it there.
bb=/bin/busybox
manifest=/etc/smc/manifest

cd /
case " $($bb cat /proc/cmdline) " in
    *" smc.login "*)
        $bb hostname -F /etc/hostname
        if [ -x /etc/smc/services ]; then /etc/smc/services & fi
        while :; do $bb setsid $bb getty -L 115200 ttyS0 vt100; done
        ;;
esac
echo "SMC-BOOT-OK point=$($bb cat /etc/point-in-time) kernel=$($bb uname -r)"

count=$($bb wc -l <"$manifest")
if [ "$count" -gt 0 ] && $bb sha256sum -c -s "$manifest"; then
    echo "SMC-FILES-OK n=$count"
else
    $bb sha256sum -c "$manifest" 2>&1 | $bb grep -v ': OK$' | $bb head -n 20
    echo "SMC-FILES-BAD n=$count"
fi

$bb sync
$bb mount -o remount,ro /
$bb poweroff -f
