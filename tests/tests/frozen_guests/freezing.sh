# PID 1 of a guest without systemd: sh /mnt/run SCENE,SCENE... Freezes what no container can show: partitions of a kernel that
# finds them, another mount namespace, files behind loop devices, swap, a root on xfs on LVM. Facts for the host are lines that start with SMC-.
PATH=/tmp/programs:/usr/sbin:/usr/bin:/sbin:/bin

prepare() {
    mount -t tmpfs tmpfs /tmp
    mkdir /tmp/programs /tmp/lists /tmp/a /tmp/b /tmp/esp /tmp/hidden /tmp/inner /tmp/big
    cp /mnt/smcd /mnt/freezer /tmp/programs
    mount -t bpf bpf /sys/fs/bpf
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    do_or_fail modprobe -a loop dm-mod xfs vfat nls_ascii nls_cp437
    mkdir -p /srv/images
    do_or_fail mount LABEL=store /srv/images
    MAIN=$(disk main)
    do_or_fail mkfs.xfs -q -f "${MAIN}3"
    do_or_fail mount -t vfat "${MAIN}1" /tmp/esp
    do_or_fail mount -t ext4 "${MAIN}2" /tmp/a
    do_or_fail mount -t xfs "${MAIN}3" /tmp/b
    say "KERNEL $(uname -r)"
}

# number POINT N: replaces a file at once.
number() {
    echo "$2" >"$1/n.new" && mv "$1/n.new" "$1/n"
}

# count FIRST SECOND: numbers, always on the first filesystem before the second.
count() {
    n=0
    while [ ! -e /tmp/quiet ]; do
        n=$((n + 1))
        number "$1" $n
        number "$2" $n
        [ $((n % 20)) != 0 ] || sync -f "$1/n"
    done
}

start_counting() {
    rm -f /tmp/quiet
    count "$1" "$2" &
    COUNTING=$!
    COUNTED="$1/n $2/n"
    wait_for test -e "$2/n"
}

stop_counting() {
    touch /tmp/quiet
    wait $COUNTING
    # Numbers of another scene say nothing of the next one.
    # shellcheck disable=SC2086  # two files
    rm -f $COUNTED
}

# sync_command JOB DISK: its words.
sync_command() { echo "smcd sync --json --track --freeze=10s --store /srv/images --job $1 --max-images 10 --disk $1=$2"; }

# sync_now SCENE JOB DISK
sync_now() {
    # shellcheck disable=SC2046  # a list of words
    report=$($(sync_command "$2" "$3") 2>/tmp/output) || fail "sync of $2 in $1"
    say "SYNC $1 $report"
}

# Each can be written to. A process that writes to what is frozen cannot be killed, so it is not this one.
still_thawed() {
    for point; do
        rm -f /tmp/thawed
        (touch "$point/thawed" && sync -f "$point/thawed" && touch /tmp/thawed) &
        wait_for test -e /tmp/thawed
    done
}

is_freezing() { grep -q ' 0xc0045877 ' "/proc/$1/syscall" 2>/dev/null; }

# A partition that cannot be frozen: it does not matter until it is written to at that moment.
scene_esp() {
    start_counting /tmp/a /tmp/b
    sync_now esp main "$MAIN"
    sync_now esp main "$MAIN"
    (while [ ! -e /tmp/quiet ]; do dd if=/dev/zero of=/tmp/esp/busy bs=4k count=64 oflag=direct conv=notrunc status=none; done) &
    wait_for test -s /tmp/esp/busy
    sync_now espwritten main "$MAIN"
    stop_counting
    wait
}

# A filesystem that only another mount namespace has.
scene_namespace() {
    second=$(disk second)
    rm -f /tmp/quiet /tmp/ready
    # shellcheck disable=SC2016  # for the other shell
    unshare --mount --propagation private sh -c 'mount -t ext4 "$1" /tmp/hidden || exit 1
        while [ ! -e /tmp/quiet ]; do echo x >/tmp/hidden/x; touch /tmp/ready; done' sh "$second" &
    wait_for test -e /tmp/ready
    sync_now namespace second "$second"
    sync_now namespace second "$second"
    touch /tmp/quiet
    wait
}

# A filesystem in a file of one that is frozen with it.
scene_loop() {
    cp /mnt/inner.img /tmp/a
    loop=$(losetup --find --show /tmp/a/inner.img)
    do_or_fail mount -t ext4 "$loop" /tmp/inner
    start_counting /tmp/inner /tmp/b
    sync_now loop main "$MAIN"
    sync_now loop main "$MAIN"
    still_thawed /tmp/inner /tmp/a /tmp/b
    stop_counting
    do_or_fail umount /tmp/inner
    do_or_fail losetup -d "$loop"
    rm /tmp/a/inner.img
}

# swap_on POINT: what is swapped goes to a file there, while a program has less memory than it uses.
swap_on() {
    dd if=/dev/zero of="$1/swap" bs=1M count=96 status=none
    chmod 600 "$1/swap"
    do_or_fail mkswap "$1/swap"
    do_or_fail swapon "$1/swap"
    mkdir -p /sys/fs/cgroup/swapping
    echo +memory >/sys/fs/cgroup/cgroup.subtree_control
    echo 12M >/sys/fs/cgroup/swapping/memory.max
    # shellcheck disable=SC2016  # for the other shell
    sh -c 'echo 0 >/sys/fs/cgroup/swapping/cgroup.procs
        exec awk "BEGIN { for (i = 0; i < 150000; i++) a[i] = i \"................................................\"
            for (;;) { for (i = 0; i < 150000; i += 101) a[i] = a[i] \"\"; system(\"sleep 0.02\") } }"' &
    wait_for has_swapped "$(swapped)"
}

swapped() { sed -n 's/^pswpout //p' /proc/vmstat; }

has_swapped() { [ "$(swapped)" -gt "$1" ]; }

scene_swap() {
    for point in /tmp/a /tmp/b; do
        swap_on $point
        start_counting /tmp/a /tmp/b
        before=$(swapped)
        sync_now swap main "$MAIN"
        sync_now swap main "$MAIN"
        say "SWAPPED $(($(swapped) - before))"
        stop_counting
        echo 1 >/sys/fs/cgroup/swapping/cgroup.kill
        wait
        do_or_fail swapoff $point/swap
        rm $point/swap
    done
}

# kill_in_freeze JOB DISK POINT...: kills a sync with its whole cgroup in FIFREEZE, until it was met there twice.
kill_in_freeze() {
    job=$1 device=$2 met=0
    shift 2
    mkdir -p /sys/fs/cgroup/job
    for _ in 1 2 3 4 5 6 7 8; do
        # shellcheck disable=SC2046  # a list of words
        sh -c 'echo 0 >/sys/fs/cgroup/job/cgroup.procs; exec "$@"' sh $(sync_command "$job" "$device") >/dev/null 2>&1 &
        sync=$!
        until is_freezing $sync || ! kill -0 $sync 2>/dev/null; do :; done
        if is_freezing $sync; then met=$((met + 1)); fi
        echo 1 >/sys/fs/cgroup/job/cgroup.kill
        wait $sync
        still_thawed "$@"
        [ $met -lt 2 ] || break
    done
    say "KILLED $job $met"
}

scene_cgroup() {
    start_counting /tmp/a /tmp/b
    sync_now cgroup main "$MAIN"
    kill_in_freeze main "$MAIN" /tmp/a /tmp/b
    sync_now cgroup main "$MAIN"
    sync_now cgroup main "$MAIN"
    stop_counting
}

# Whether the one write of so many bytes has begun and has not ended. It is mostly not asleep, so that /proc does not show the call.
is_writing() {
    size=$(stat -c %s /tmp/big/long 2>/dev/null || echo 0)
    [ "$size" -gt 0 ] && [ "$size" -lt 2097152000 ]
}

# FIFREEZE waits behind one write(2) of 2,000 MiB, and is killed there.
scene_longwrite() {
    big=$(disk big)
    do_or_fail mount -t ext4 "$big" /tmp/big
    behind=no
    for _ in 1 2 3 4 5; do
        freezer again --smcd /tmp/programs/smcd --lists /tmp/lists --budget-ms 200 --hold-ms 1 "$big" >/dev/null 2>&1 &
        freezer=$!
        wait_for is_freezing $freezer
        rm -f /tmp/big/long
        dd if=/dev/zero of=/tmp/big/long bs=2000M count=1 status=none &
        long=$!
        until is_writing && is_freezing $freezer || ! kill -0 $long 2>/dev/null; do :; done
        kill -9 $freezer
        if is_writing; then behind=yes; fi
        wait $freezer $long
        still_thawed /tmp/big
        [ $behind = no ] || break
    done
    say "BEHIND $behind"
    sync_now longwrite big "$big"
    sync_now longwrite big "$big"
    do_or_fail umount /tmp/big
}

# The root is an xfs on LVM: smcd itself, its shell and all libraries are on what it freezes.
scene_lvmroot() {
    lvm=$(disk lvm)
    do_or_fail pvcreate -q "$lvm"
    do_or_fail vgcreate -q vg "$lvm"
    do_or_fail lvcreate -q -Zn -Wn -n root -l 100%FREE vg
    do_or_fail vgmknodes
    do_or_fail mkfs.xfs -q -f /dev/vg/root
    mkdir /tmp/root
    do_or_fail mount -t xfs /dev/vg/root /tmp/root
    say "START $(pvs --noheadings --nosuffix --units b -o pe_start | tr -d ' ')"
    tar -C / --one-file-system --exclude=./usr/lib/modules --exclude=./usr/share --exclude=./var/cache -cf - . | tar -C /tmp/root -xf - ||
        fail "copy the root"
    for directory in old dev proc sys run tmp srv/images usr/local/bin; do mkdir -p /tmp/root/$directory; done
    cp /tmp/programs/smcd /tmp/root/usr/local/bin
    for point in dev proc sys run srv/images; do do_or_fail mount --move /$point /tmp/root/$point; done
    mount --bind /tmp /tmp/root/tmp
    cd /tmp/root || fail "no new root"
    do_or_fail pivot_root . old
    cd /
    exec 3>/dev/ttyS0
    PATH=/usr/local/bin:/usr/sbin:/usr/bin
    start_counting / /
    sync_now lvmroot lvm "$lvm"
    sync_now lvmroot lvm "$lvm"
    kill_in_freeze lvm "$lvm" /
    sync_now lvmroot lvm "$lvm"
    sync_now lvmroot lvm "$lvm"
    stop_counting
}

prepare
for scene in $(echo "$1" | tr ',' ' '); do
    "scene_$scene"
    say "SCENE $scene"
done
sync
say DONE
end
