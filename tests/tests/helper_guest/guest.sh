# PID 1 of a guest without systemd: sh /mnt/run. Makes a server's disks of LVM, RAID and LUKS, and is cut off while all of it
# is mounted: what was written last is in journals. Facts for the host are lines that start with SMC-.
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
do_or_fail modprobe -a dm-mod dm-crypt raid1
A=$(disk pva) B=$(disk pvb) C=$(disk mda) D=$(disk mdb) E=$(disk luks)

# A root that lies on both disks, and a volume beside it.
do_or_fail vgcreate -q vg0 "$A" "$B"
do_or_fail lvcreate -q -Wn -Zn -L 60M -n root vg0 "$A"
do_or_fail lvextend -q -L 100M vg0/root "$B"
do_or_fail lvcreate -q -Wn -Zn -L 16M -n data vg0 "$B"

do_or_fail mdadm --create /dev/md0 --run --homehost=any --name=0 --metadata=1.2 --level=1 --raid-devices=2 "$C" "$D"

printf secret >/tmp/key
do_or_fail cryptsetup luksFormat --batch-mode --type luks2 --pbkdf argon2id --pbkdf-memory 32768 \
    --pbkdf-force-iterations 4 --pbkdf-parallel 1 --key-file /tmp/key "$E"
do_or_fail cryptsetup open --key-file /tmp/key "$E" crypt
do_or_fail vgcreate -q vg1 /dev/mapper/crypt
do_or_fail lvcreate -q -Wn -Zn -L 24M -n hidden vg1

R=/tmp/root
mkdir -p $R
for place in /dev/vg0/root:/ /dev/vg0/data:/srv /dev/md0:/mirror /dev/vg1/hidden:/hidden; do
    # This system has no mkfs.
    do_or_fail dd if=/mnt/"${place##*/}".ext4 of="${place%%:*}" bs=1M conv=sparse
    mkdir -p "$R${place#*:}"
    do_or_fail mount "${place%%:*}" "$R${place#*:}"
    echo "${place%%:*}" >"$R${place#*:}/name"
done
mkdir -p $R/etc
cat >$R/etc/fstab <<FSTAB
/dev/mapper/vg0-root / ext4 defaults 0 1
/dev/vg0/data /srv ext4 defaults 0 2
/dev/md0 /mirror ext4 defaults 0 2
UUID=11111111-2222-4333-8444-555555555555 /hidden ext4 defaults 0 2
FSTAB
head -c 80000000 /dev/urandom >$R/large
for place in '' /srv /mirror /hidden; do
    echo "written last" >$R$place/last
    sync -f $R$place/last || fail "sync $place"
done
say "SUM $(sha256sum <$R/large | cut -d' ' -f1)"
say DONE
sleep 600
