# PID 1 of a guest without systemd: sh /mnt/run ROUNDS. Builds one layout of disks after the other, writes to it while syncs
# run, and compares the last image of each round with the devices. Facts for the host are lines that start with SMC-.
export SMC_STORE=/srv/images
ROUNDS=$1

prepare() {
    mount -t tmpfs tmpfs /tmp
    mount -t bpf bpf /sys/fs/bpf || say "NOTE no bpffs"
    mount -t tracefs tracefs /sys/kernel/tracing || say "NOTE no tracefs"
    do_or_fail modprobe -a virtio_scsi sd_mod sg loop dm-mod raid1 xfs
    mkdir -p /srv/images
    do_or_fail mount LABEL=store /srv/images
    BLK=$(disk blk)
    wait_for disk_is_there scsia
    wait_for disk_is_there scsib
    SCSI_A=$(disk scsia)
    SCSI_B=$(disk scsib)
    NVME=$(disk nvme)
    MULTIPATH=$(disk multipath)
    TRACK=
    if smcd sync --help | grep -q -e '--track'; then TRACK=--track; fi
    say "KERNEL $(uname -r)"
    say "TRACK $TRACK"
    say "DISKS $BLK $SCSI_A $SCSI_B $NVME $MULTIPATH: $(ls /sys/block | tr '\n' ' ')"
}

disk_is_there() {
    for page in /sys/block/sd*/device/vpd_pg80; do
        [ "$(tr -dc '[:alnum:]' <"$page")" = "$1" ] && return 0
    done
    return 1
}

# sync_now JOB ROUND NAME=DEVICE...
sync_now() {
    job=$1
    number=$2
    shift 2
    disks=
    for disk; do disks="$disks --disk $disk"; done
    # shellcheck disable=SC2086  # lists of words
    report=$(smcd sync --json $TRACK --job "$job" --store $SMC_STORE --cluster-size 16KiB --max-images 3 $disks 2>/tmp/warnings) ||
        { cat /tmp/warnings >&3; fail "sync of $job, round $number"; }
    say "SYNC $job $number $report"
    grep -v 'consistency' /tmp/warnings | sed "s/^/SMC-WARNING $job $number /"
}

# Whether every disk of the newest image is what the device is now.
compare() {
    job=$1
    number=$2
    shift 2
    for disk; do
        name=${disk%%=*}
        if smc-image verify "$job/latest" --disk "$name" --against "${disk#*=}" >/tmp/output 2>&1; then
            say "RIGHT $job $number $name yes"
        else
            cat /tmp/output
            say "RIGHT $job $number $name no"
        fi
    done
}

can_discard() { [ "$(cat "/sys/class/block/$(basename "$(readlink -f "$1")")/queue/discard_max_bytes" 2>/dev/null || echo 0)" -gt 0 ]; }

# storm DEVICE SEED: writes of all sizes, direct and through the page cache, discards and zeroes, at random places.
storm() {
    cat >/tmp/storm.fio <<FIO
[global]
filename=$1
randseed=$2
norandommap
thread
[direct]
ioengine=libaio
iodepth=8
direct=1
rw=randwrite
bsrange=4k-64k
io_size=3m
[ring]
ioengine=io_uring
iodepth=4
direct=1
rw=randwrite
bs=4k
io_size=256k
[buffered]
ioengine=psync
rw=randwrite
bsrange=4k-128k
io_size=2m
end_fsync=1
FIO
    if can_discard "$1"; then
        cat >>/tmp/storm.fio <<FIO
[discards]
ioengine=psync
direct=1
rw=randtrim
bsrange=64k-1m
io_size=2m
FIO
    fi
    fio /tmp/storm.fio >/tmp/fio.log 2>&1 || { cat /tmp/fio.log >&3; fail "fio on $1"; }
    blkdiscard -z -o $((($2 * 7 % 16) * 1048576)) -l 196608 "$1" || fail "zeroes on $1"
}

# truth LAYOUT WRITE "NAME=DEVICE..." ["NAME=DEVICE..." QUIET WAKE]: rounds of WRITE SEED, with syncs in the middle and behind.
# The second list are disks that the first is made of. What is between them may write by itself: they are compared
# between QUIET and WAKE. A job of its own images them.
truth() {
    layout=$1
    write=$2
    upper=$3
    lower=${4:-}
    quiet=${5:-true}
    wake=${6:-true}
    sync_lists 0
    round=1
    while [ "$round" -le "$ROUNDS" ]; do
        $write $((round * 31 + 5)) &
        sync_lists "$round-during"
        wait $!
        sync
        # shellcheck disable=SC2086  # a list
        sync_now "$layout" "$round" $upper
        # shellcheck disable=SC2086  # a list
        compare "$layout" "$round" $upper
        if [ "$lower" != "" ]; then below; fi
        round=$((round + 1))
    done
}

sync_lists() {
    # shellcheck disable=SC2086  # a list
    sync_now "$layout" "$1" $upper
    # shellcheck disable=SC2086  # a list
    [ "$lower" = "" ] || sync_now "$layout-below" "$1" $lower
}

below() {
    do_or_fail $quiet
    # shellcheck disable=SC2086  # a list
    sync_now "$layout-below" "$round" $lower
    # shellcheck disable=SC2086  # a list
    compare "$layout-below" "$round" $lower
    do_or_fail $wake
}

# What a layout leaves on the disks must not be found by the next one.
clear_disks() { for device; do do_or_fail wipefs -qa "$device"; done; }

storm_blk() { storm "$BLK" "$1"; }
virtio_blk() { truth virtio-blk storm_blk disk="$BLK"; }
storm_scsi() { storm "$SCSI_A" "$1"; }
virtio_scsi() { truth virtio-scsi storm_scsi disk="$SCSI_A"; }
storm_nvme() { storm "$NVME" "$1"; }
nvme_plain() { truth nvme storm_nvme disk="$NVME"; }
storm_multipath() { storm "$MULTIPATH" "$1"; }
nvme_multipath() { truth nvme-multipath storm_multipath disk="$MULTIPATH"; }

# The job's disk is a partition; what is written beside it is not its concern.
storm_partition() { storm "${BLK}1" "$1" && storm "$BLK" "$1"; }
partition() {
    # One entry of an MBR: type 83, 65536 sectors from sector 16384 on.
    {
        dd if=/dev/zero bs=446 count=1 status=none
        printf '\0\376\377\377\203\376\377\377\0\100\0\0\0\0\1\0'
        dd if=/dev/zero bs=48 count=1 status=none
        printf '\125\252'
    } >/tmp/mbr
    do_or_fail dd if=/tmp/mbr of="$BLK" conv=fsync,notrunc
    do_or_fail blockdev --rereadpt "$BLK"
    wait_for test -b "${BLK}1"
    truth partition storm_partition part="${BLK}1" whole="$BLK"
    do_or_fail dd if=/dev/zero of="$BLK" bs=512 count=1 conv=fsync,notrunc
    do_or_fail blockdev --rereadpt "$BLK"
}

lvm_begin() {
    do_or_fail pvcreate -qf "$SCSI_A" "$SCSI_B"
    do_or_fail vgcreate -q -s 1m vg "$SCSI_A" "$SCSI_B"
    PVS="a=$SCSI_A b=$SCSI_B"
    OFF="vgchange -q -an vg"
    ON="vgchange -q -ay vg"
}

lvm_end() {
    do_or_fail vgremove -qff vg
    do_or_fail pvremove -qff "$SCSI_A" "$SCSI_B"
    clear_disks "$SCSI_A" "$SCSI_B"
}

storm_linear() { storm /dev/mapper/vg-linear "$1"; }
lvm_linear() {
    lvm_begin
    do_or_fail lvcreate -qy -Wn -n linear -l 100%FREE vg
    truth lvm-linear storm_linear lv=/dev/mapper/vg-linear "$PVS"
    lvm_end
}

storm_stripe() { storm /dev/mapper/vg-stripe "$1"; }
lvm_stripe() {
    lvm_begin
    do_or_fail lvcreate -qy -Wn -n stripe -i 2 -I 64k -l 100%FREE vg
    truth lvm-stripe storm_stripe lv=/dev/mapper/vg-stripe "$PVS"
    lvm_end
}

storm_thin() { storm /dev/mapper/vg-thin "$1"; }
lvm_thin() {
    lvm_begin
    do_or_fail lvcreate -qy -Wn -T -L 64m --poolmetadatasize 4m -V 48m -n thin vg/pool
    truth lvm-thin storm_thin lv=/dev/mapper/vg-thin "$PVS" "$OFF" "$ON"
    lvm_end
}

# Writes to the origin copy what was there; the snapshot is written to as well.
storm_snapshot() { storm /dev/mapper/vg-origin "$1" && storm /dev/mapper/vg-copy "$1"; }
lvm_snapshot() {
    lvm_begin
    do_or_fail lvcreate -qy -Wn -n origin -L 32m vg
    do_or_fail lvcreate -qy -s -n copy -L 34m vg/origin
    truth lvm-snapshot storm_snapshot "origin=/dev/mapper/vg-origin copy=/dev/mapper/vg-copy" "$PVS" "$OFF" "$ON"
    lvm_end
}

storm_md() { storm /dev/md0 "$1"; }
md_raid1() {
    yes | mdadm --create /dev/md0 --quiet --level=1 --raid-devices=2 --metadata=1.2 "$BLK" "$SCSI_A" >/tmp/output 2>&1 ||
        { cat /tmp/output >&3; fail "mdadm"; }
    wait_for test -b /dev/md0
    # Until both disks hold the same: before, two reads of one place may differ.
    wait_for grep -q idle /sys/block/md0/md/sync_action
    truth md-raid1 storm_md md=/dev/md0 "a=$BLK b=$SCSI_A" "mdadm --quiet --readonly /dev/md0" "mdadm --quiet --readwrite /dev/md0"
    do_or_fail mdadm --quiet --stop /dev/md0
    do_or_fail mdadm --quiet --zero-superblock "$BLK" "$SCSI_A"
}

storm_crypt() { storm /dev/mapper/crypt "$1"; }
dm_crypt() {
    head -c 32 /dev/urandom >/tmp/key
    do_or_fail cryptsetup open --type plain -c aes-xts-plain64 -s 256 -d /tmp/key --allow-discards "$SCSI_B" crypt
    truth dm-crypt storm_crypt plain=/dev/mapper/crypt disk="$SCSI_B"
    do_or_fail cryptsetup close crypt
}

# Files come and go on a filesystem that discards what it frees; a loop device over a file of it, every block written once.
write_files() {
    for file in 1 2 3 4 5 6; do dd if=/dev/urandom of=/srv/files/$file bs=128k count=$((file + 3)) status=none; done
    sync
    rm /srv/files/[24]
    dd if=/dev/urandom of=/dev/loop0 bs=64k oflag=direct status=none 2>/dev/null
    rm /srv/files/[135]
    do_or_fail fstrim /srv/files
}

# Unmounted, a filesystem writes nothing more.
detach_xfs() { losetup -d /dev/loop0 && umount /srv/files; }
attach_xfs() { mount -o discard "$NVME" /srv/files && losetup /dev/loop0 /srv/files/loop; }

xfs_discard() {
    do_or_fail mkfs.xfs -q -f --unsupported "$NVME"
    mkdir -p /srv/files
    do_or_fail mount -o discard "$NVME" /srv/files
    do_or_fail truncate -s 16m /srv/files/loop
    do_or_fail losetup /dev/loop0 /srv/files/loop
    truth xfs-discard write_files loop=/dev/loop0 disk="$NVME" detach_xfs attach_xfs
    do_or_fail detach_xfs
    clear_disks "$NVME"
}

# Commands that go past the block layer's own writes: what they changed must be in the next image all the same.
passthrough() {
    dd if=/dev/urandom of=/tmp/block bs=64k count=1 status=none
    sync_now passthrough 0 nvme="$NVME" scsi="$SCSI_A"
    sync_now passthrough before nvme="$NVME" scsi="$SCSI_A"
    do_or_fail nvme write "$NVME" --start-block=4096 --block-count=127 --data-size=65536 --data=/tmp/block
    do_or_fail nvme write-zeroes "$NVME" --namespace-id=1 --start-block=8192 --block-count=127
    do_or_fail sg_dd if=/tmp/block of="/dev/$(ls "/sys/block/${SCSI_A#/dev/}/device/scsi_generic")" bs=512 count=128 seek=4096
    sync_now passthrough after nvme="$NVME" scsi="$SCSI_A"
    compare passthrough after nvme="$NVME" scsi="$SCSI_A"
    sync_now passthrough again nvme="$NVME" scsi="$SCSI_A"
    compare passthrough again nvme="$NVME" scsi="$SCSI_A"
}

prepare
for layout in ${LAYOUTS:-virtio_blk virtio_scsi nvme_plain nvme_multipath partition lvm_linear lvm_stripe lvm_thin lvm_snapshot md_raid1 dm_crypt xfs_discard passthrough}; do
    echo "$(cut -d ' ' -f 1 /proc/uptime) s: $layout"
    $layout
done
say "DONE all"
end
