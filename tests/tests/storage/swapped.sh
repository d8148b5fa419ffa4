# PID 1 of a guest without systemd: sh /mnt/run PHASE. Syncs two disks that nothing tells apart but what is on them. Facts for the
# host are lines that start with SMC-.
STORE=/srv/images

# sync_disks FIRST SECOND: one image of both; what it says is in /tmp/output.
sync_disks() { smcd sync --store "$STORE/store" --job web01 --disk "vda=$1" --disk "vdb=$2" >/tmp/output 2>&1; }

mount -t tmpfs tmpfs /tmp
mkdir -p "$STORE"
mount LABEL=store "$STORE" || fail "mount the store"

# Those without a serial number, in the kernel's order.
set -- "$1" $(for block in /sys/block/vd*; do [ -n "$(cat "$block/serial")" ] || echo "/dev/${block##*/}"; done)
[ $# -eq 3 ] || fail "disks without a serial number: $*"
say "DISKS $2 $3"

case $1 in
first)
    sync_disks "$2" "$3" || fail "the first sync"
    ;;
swapped)
    if sync_disks "$2" "$3"; then
        fail "disks that have changed places were synced"
    else
        say "REFUSED $? $(tr '\n' ' ' </tmp/output)"
    fi
    sync_disks "$3" "$2" || fail "the sync of each disk under its own name"
    ;;
esac
say "IMAGES $(smc-image --store "$STORE/store" ls --json | wc -l)"
umount "$STORE"
say DONE
end
