# PID 1 of a guest without systemd: sh /mnt/run LAYOUT, behind a line that sets LUKS_ID, PASSPHRASE and ROOT_MIB. Finishes
# a server's disks: puts its root where only a device mapper can, and lets the server's own GRUB install itself.
A=$(disk servera)
TARGET=/tmp/target

# The root filesystem as it was made outside. Where that has zeros, nothing reads: they are blocks that it does not use.
fill() { do_or_fail dd if="$(disk content)" of="$1" bs=256k conv=sparse,fsync; }

root_of_ext4() { ROOT=${A}2; }
root_of_xfs() { ROOT=${A}2; }
root_of_uefi() { ROOT=${A}2; }

root_of_btrfs() {
    ROOT=${A}2
    OPTIONS=subvol=@rootfs
}

# On both disks.
root_of_lvm() {
    B=$(disk serverb)
    do_or_fail vgcreate -q vg0 "${A}3" "$B"
    do_or_fail lvcreate -q -Wn -Zn -L $((ROOT_MIB / 2))M -n root vg0 "${A}3"
    do_or_fail lvextend -q -L "${ROOT_MIB}M" vg0/root "$B"
    ROOT=/dev/mapper/vg0-root
    fill $ROOT
}

root_of_luks() {
    printf %s "$PASSPHRASE" >/tmp/key
    do_or_fail cryptsetup luksFormat --batch-mode --type luks2 --uuid "$LUKS_ID" --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \
        --key-file /tmp/key "${A}3"
    do_or_fail cryptsetup open --key-file /tmp/key "${A}3" crypt
    ROOT=/dev/mapper/crypt
    fill $ROOT
}

mount -t tmpfs tmpfs /tmp
do_or_fail modprobe -a dm-mod dm-crypt xfs btrfs vfat nls_ascii nls_cp437
OPTIONS=defaults
"root_of_$1"
mkdir -p $TARGET
do_or_fail mount -o $OPTIONS $ROOT $TARGET
case $1 in
lvm | luks) do_or_fail mount "${A}2" $TARGET/boot ;;
uefi)
    mkdir -p $TARGET/boot/efi
    do_or_fail mount -t vfat "${A}1" $TARGET/boot/efi
    ;;
esac
# GRUB names the root by its UUID where udev shows it.
mkdir -p /dev/disk/by-uuid
ln -s $ROOT "/dev/disk/by-uuid/$(blkid -s UUID -o value $ROOT)"
for directory in dev proc sys; do do_or_fail mount --rbind /$directory $TARGET/$directory; done
case $1 in
uefi) do_or_fail chroot $TARGET grub-install --target=x86_64-efi --removable --no-nvram --efi-directory=/boot/efi ;;
*) do_or_fail chroot $TARGET grub-install --target=i386-pc "$A" ;;
esac
do_or_fail chroot $TARGET update-grub
grep -m 1 vmlinuz $TARGET/boot/grub/grub.cfg >&3
for directory in dev proc sys; do umount -l $TARGET/$directory; done
do_or_fail umount -R $TARGET
case $1 in
lvm) do_or_fail vgchange -q -an vg0 ;;
luks) do_or_fail cryptsetup close crypt ;;
esac
sync
say "DONE $1"
end
