//! What is on the chosen disks, on others, and on both.

use api::Level::{Critical, Ok, Warning};

use super::fake::{Tree, ready};

const GIB: u64 = 1 << 30;

/// The ready machine with a second disk.
fn two_disks() -> Tree {
    let mut tree = ready();
    tree.disk("vdb", "254:16", 10 * GIB)
        .partition("vdb", "vdb1", "254:17", 9 * GIB);
    tree.choose(&["vda"]);
    tree
}

#[test]
fn chosen_disks_are_named_with_what_they_hold() {
    let mut tree = two_disks();
    tree.expect(
        "disk",
        Ok,
        "vda, 20 GiB: gpt, 3 partitions: BIOS boot, ext4 /, swap",
    );
    tree.expect(
        "disk_left_out",
        Ok,
        "vdb, 10 GiB: 1 partition: unknown; not chosen",
    );
    tree.choose(&["vda", "sdz"]);
    tree.expect("disk", Critical, "there is no disk sdz | name one of vda, vdb");
    tree.choose(&["/dev/vda"]);
    tree.expect("disk", Ok, "vda");
}

#[test]
fn what_is_no_disk_may_be_named_with_a_warning() {
    let mut tree = two_disks();
    tree.disk("loop0", "7:0", GIB)
        .disk("loop1", "7:1", 0)
        .choose(&["vda", "loop0", "loop1"]);
    tree.expect("disk", Warning, "loop0, 1 GiB: unknown; it is a loop device");
    tree.expect("disk", Critical, "loop1, 0 B: nothing");
}

#[test]
fn more_disks_than_a_job_has_are_refused() {
    let mut tree = ready();
    for number in 0..70 {
        tree.disk(&format!("sd{number}"), &format!("8:{number}"), GIB);
    }
    tree.expect("disk", Critical, "71 disks are chosen; a job has at most 64");
}

#[test]
fn mounts_on_other_disks_are_told() {
    let mut tree = two_disks();
    tree.mount("xfs", "/dev/vdb1", "254:17", "/data")
        .mount("xfs", "/dev/vdb1", "254:17", "/bind");
    tree.expect(
        "mounts_outside",
        Warning,
        "xfs /data is on vdb1, which is not migrated",
    );
    assert_eq!(
        tree.lines("mounts_outside").len(),
        1,
        "a bind mount is no other filesystem"
    );

    tree.file("/etc/fstab", "UUID=1 /data xfs defaults 0 0\n");
    tree.expect(
        "mounts_outside",
        Critical,
        "emergency shell | choose its disk too, or give /data the option nofail",
    );
    tree.file("/etc/fstab", "UUID=1 /data xfs nofail 0 0\n");
    tree.expect("mounts_outside", Warning, "xfs /data");

    tree.choose(&["vda", "vdb"]);
    tree.expect("mounts_outside", Ok, "every mounted filesystem");
}

#[test]
fn a_system_on_other_disks_cannot_start() {
    let mut tree = two_disks();
    tree.choose(&["vdb"]);
    tree.expect(
        "mounts_outside",
        Critical,
        "ext4 / is on vda2, which is not migrated: the copy cannot start",
    );
    tree.expect(
        "mounts_outside",
        Warning,
        "the swap space /dev/vda3 is on a disk that is not migrated",
    );
}

#[test]
fn network_mounts_are_named() {
    let mut tree = ready();
    tree.mount("nfs4", "filer:/export", "0:44", "/srv/a")
        .mount("fuse.sshfs", "me@host:", "0:45", "/srv/b");
    tree.expect(
        "network_mounts",
        Warning,
        "nfs4 /srv/a is on another machine (filer:/export)",
    );
    tree.expect("network_mounts", Warning, "fuse.sshfs /srv/b");
}

#[test]
fn a_loop_device_lies_where_its_file_does() {
    let mut tree = two_disks();
    tree.disk("loop0", "7:0", GIB)
        .file("/sys/block/loop0/loop/backing_file", "/var/snap/x.snap\n");
    tree.mount("squashfs", "/dev/loop0", "7:0", "/snap/x");
    tree.expect("mounts_outside", Ok, "every mounted filesystem");
    tree.mount("ext4", "/dev/vdb1", "254:17", "/var/snap");
    tree.expect("mounts_outside", Warning, "squashfs /snap/x is on loop0");
}

#[test]
fn what_needs_several_disks_needs_them_all() {
    let mut tree = two_disks();
    tree.mapped("dm-0", "253:0", ("my--vg-root", "LVM-1"), &["vda/vda2"]);
    tree.mapped("dm-1", "253:1", ("my--vg-pool_tdata", "LVM-2"), &["vdb/vdb1"]);
    tree.mapped("dm-2", "253:2", ("my--vg-thin", "LVM-3"), &["dm-1"]);
    tree.expect(
        "volumes",
        Critical,
        "the volume group my-vg is on vda2, which are migrated, and on vdb1, which are not",
    );
    tree.choose(&["vda", "vdb"]);
    tree.expect("volumes", Ok, "on both");
}

#[test]
fn pvs_without_volumes_belong_to_their_group() {
    let mut tree = two_disks();
    tree.mapped("dm-0", "253:0", ("vg0-root", "LVM-1"), &["vda/vda2"]);
    tree.expect("volumes", Ok, "on both");
    tree.file("/run/lvm/pvs_online/abc", "254:17\nvg:vg0\ndev:/dev/vdb1\n");
    tree.expect("volumes", Critical, "the volume group vg0 is on vda2");
}

#[test]
fn arrays_and_btrfs_need_all_their_members() {
    let mut tree = two_disks();
    tree.disk("md0", "9:0", GIB)
        .stack("md0", &["vda/vda2", "vdb/vdb1"]);
    tree.expect("volumes", Critical, "the RAID array md0 is on vda2");

    let mut tree = two_disks();
    tree.mount("btrfs", "/dev/vda3", "0:40", "/pool");
    tree.expect("volumes", Ok, "on both");
    tree.directory("/sys/fs/btrfs/6e0b/devices/vda3")
        .directory("/sys/fs/btrfs/6e0b/devices/vdb1");
    tree.expect("volumes", Critical, "the btrfs filesystem /pool is on vda3");
    assert_eq!(tree.lines("mounts_outside").len(), 1, "it is told once");
}

#[test]
fn either_the_bundle_or_a_path_of_a_multipath_disk_will_do() {
    let mut tree = Tree::new();
    tree.disk("sda", "8:0", GIB).disk("sdb", "8:16", GIB);
    tree.mapped("dm-0", "253:0", ("mpatha", "mpath-36001"), &["sda", "sdb"]);
    tree.mapped("dm-1", "253:1", ("mpatha-part1", "part1-mpath-36001"), &["dm-0"]);
    tree.mount("ext4", "/dev/mapper/mpatha-part1", "253:1", "/data");
    for chosen in ["dm-0", "sda", "sdb"] {
        tree.choose(&[chosen]);
        tree.expect("mounts_outside", Ok, "every mounted filesystem");
        tree.expect("volumes", Ok, "on both");
    }
}

#[test]
fn zfs_does_not_tell_its_disks() {
    let mut tree = two_disks();
    assert_eq!(tree.lines("zfs"), []);
    tree.mount("zfs", "tank/data", "0:60", "/tank");
    tree.expect("zfs", Warning, "ZFS is mounted at /tank");
    tree.udev("254:17", "ID_FS_TYPE=zfs_member");
    tree.expect("zfs", Warning, "zpool status -P");
    tree.choose(&["vda", "vdb"]);
    tree.expect("zfs", Ok, "every ZFS member");
}

#[test]
fn sources_of_mounts_are_followed_through_links() {
    let mut tree = two_disks();
    tree.file("/dev/vdb1", "")
        .link("/dev/disk/by-uuid/77", "../../vdb1");
    tree.mount("btrfs", "/dev/disk/by-uuid/77", "0:41", "/data");
    tree.expect("mounts_outside", Warning, "btrfs /data is on vdb1");
}

#[test]
fn a_machine_without_sysfs_gets_an_answer() {
    let mut tree = Tree::new();
    tree.expect("disk", Critical, "cannot list the block devices");
    tree.choose(&["vda"]);
    tree.expect("disk", Critical, "there is no disk vda");
}

#[test]
fn nobody_looks_where_looking_would_mount() {
    let mut tree = ready();
    tree.mount("autofs", "systemd-1", "0:50", "/boot");
    tree.expect("kernel_image", Warning, "ls /boot");
    tree.expect("initramfs_virtio", Warning, "could not be determined | ls /boot");
    tree.expect("boot_loader", Warning, "no configuration");
    assert_eq!(tree.lines("boot_space"), []);
    // Once it is mounted, anyone may.
    tree.mount("ext4", "/dev/vda2", "254:2", "/boot");
    tree.expect("kernel_image", Ok, "is installed");
    tree.expect("initramfs_virtio", Ok, "has the drivers");
}
