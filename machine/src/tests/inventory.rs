//! Which devices are listed, what they hold, and which a job of all disks leaves out.

use std::collections::BTreeSet;

use hostdev::{DeviceNumber, ErrorKind};

use super::fake::{Tree, ready};
use crate::inventory::{disk_names, disks};

const GIB: u64 = 1 << 30;

#[test]
fn a_disk_is_told_with_its_partitions() {
    let mut tree = ready();
    tree.file("/sys/block/vda/serial", "S-1\n")
        .file("/sys/block/vda/device/model", "Virtual disk   \n");
    let listed = disks(&tree.root(), &BTreeSet::new()).expect("a list").disks;
    assert_eq!(listed.len(), 1);
    let disk = &listed[0];
    assert_eq!(
        (disk.name.as_str(), disk.path.as_str(), disk.size_bytes),
        ("vda", "/dev/vda", 20 * GIB)
    );
    assert_eq!(
        (disk.model.as_deref(), disk.serial.as_deref()),
        (Some("Virtual disk"), Some("S-1"))
    );
    assert_eq!(disk.holds, "gpt, 3 partitions: BIOS boot, ext4 /, swap");
    assert_eq!(disk.left_out, None);
}

#[test]
fn where_udev_knows_nothing_the_kernel_tables_are_asked() {
    let mut tree = ready();
    tree.remove("/run/udev");
    assert_eq!(tree.listed("vda").0, "3 partitions: unknown, ext4 /, swap");
}

#[test]
fn layers_are_told_one_in_another() {
    let mut tree = Tree::new();
    tree.disk("sda", "8:0", 20 * GIB)
        .partition("sda", "sda1", "8:1", GIB)
        .udev("8:0", "ID_PART_TABLE_TYPE=dos")
        .udev("8:1", "ID_FS_TYPE=crypto_LUKS")
        .mapped("dm-0", "253:0", ("crypt", "CRYPT-LUKS2-1"), &["sda/sda1"])
        .udev("253:0", "ID_FS_TYPE=LVM2_member")
        .mapped("dm-1", "253:1", ("vg0-root", "LVM-1"), &["dm-0"])
        .mapped("dm-2", "253:2", ("vg0-swap", "LVM-2"), &["dm-0"])
        .mount("xfs", "/dev/mapper/vg0-root", "253:1", "/")
        .file("/proc/swaps", "Filename\n/dev/mapper/vg0-swap partition 1 0 -2\n");
    let (holds, left_out) = tree.listed("sda");
    assert_eq!(
        holds,
        "dos, 1 partition: LUKS (crypt LVM PV (vg0-root xfs /, vg0-swap swap))"
    );
    assert_eq!(left_out, None);
    assert_eq!(
        tree.listed("dm-1").1.as_deref(),
        Some("the device-mapper device vg0-root: its content is on dm-0")
    );
    assert_eq!(tree.taken(), ["sda"]);
}

#[test]
fn what_is_on_a_device_shows_where_nothing_recognized_it() {
    let mut tree = Tree::new();
    tree.disk("sda", "8:0", GIB)
        .disk("sdb", "8:16", GIB)
        .disk("sdc", "8:32", GIB)
        .disk("sdd", "8:48", GIB);
    tree.disk("md0", "9:0", GIB).stack("md0", &["sda"]);
    tree.mapped("dm-0", "253:0", ("a-b", "LVM-1"), &["sdb"]).mapped(
        "dm-1",
        "253:1",
        ("c", "CRYPT-LUKS1-1"),
        &["sdc"],
    );
    tree.udev("8:48", "ID_PART_TABLE_TYPE=gpt");
    assert_eq!(tree.listed("sda").0, "md member (md0 unknown)");
    assert_eq!(tree.listed("sdb").0, "LVM PV (a-b unknown)");
    assert_eq!(tree.listed("sdc").0, "LUKS (c unknown)");
    assert_eq!(tree.listed("sdd").0, "gpt, no partitions");
}

#[test]
fn what_is_no_disk_is_left_out_with_the_reason() {
    let mut tree = Tree::new();
    // Name, size, words of the reason.
    let cases = [
        ("loop0", GIB, "loop device"),
        ("zram0", GIB, "memory"),
        ("ram15", GIB, "memory"),
        ("fd0", 1 << 20, "floppy"),
        ("sr0", GIB, "CD or DVD"),
        ("nbd3", GIB, "network block device"),
        ("zd16", GIB, "ZFS volume"),
        ("drbd1", GIB, "DRBD"),
        ("mtdblock0", GIB, "flash memory"),
        ("mmcblk0boot0", 4 << 20, "firmware"),
        ("md127", GIB, "RAID array"),
        ("md_home", GIB, "RAID array"),
        ("dm-7", GIB, "device-mapper"),
        ("sdx", 0, "no bytes"),
    ];
    for (index, (name, bytes, _)) in cases.iter().enumerate() {
        tree.disk(name, &format!("250:{index}"), *bytes);
    }
    tree.disk("sdy", "8:200", 0)
        .file("/sys/block/sdy/removable", "1\n");
    for (name, _, words) in cases.into_iter().chain([("sdy", 0, "no medium")]) {
        let reason = tree.listed(name).1.unwrap_or_else(|| panic!("{name} is taken"));
        assert!(reason.contains(words), "{name}: {reason}");
    }
    assert_eq!(tree.taken(), [""; 0]);
}

#[test]
fn disks_are_taken_in_the_order_of_their_numbers() {
    let mut tree = Tree::new();
    let names = [
        "nvme10n1",
        "nvme2n1",
        "sda",
        "vda",
        "mmcblk0",
        "cciss!c0d0",
        "xvda",
        "pmem0",
        "rbd0",
        "dasda",
    ];
    for (index, name) in names.iter().enumerate() {
        tree.disk(name, &format!("250:{index}"), GIB);
    }
    // A medium that is in its drive, and a disk that cannot be written to, can be read.
    tree.file("/sys/block/sda/removable", "1\n")
        .file("/sys/block/vda/ro", "1\n");
    let expected = [
        "cciss!c0d0",
        "dasda",
        "mmcblk0",
        "nvme2n1",
        "nvme10n1",
        "pmem0",
        "rbd0",
        "sda",
        "vda",
        "xvda",
    ];
    assert_eq!(tree.taken(), expected);
    let listed = disks(&tree.root(), &BTreeSet::new()).expect("a list").disks;
    assert_eq!(listed[0].path, "/dev/cciss/c0d0");
}

#[test]
fn of_a_multipath_disk_only_the_bundle_is_taken() {
    let mut tree = Tree::new();
    tree.disk("sda", "8:0", GIB).disk("sdb", "8:16", GIB);
    tree.mapped("dm-0", "253:0", ("mpatha", "mpath-36001"), &["sda", "sdb"]);
    tree.disk("nvme0n1", "259:0", GIB)
        .disk("nvme0c0n1", "259:1", GIB)
        .file("/sys/block/nvme0c0n1/hidden", "1\n");
    assert_eq!(tree.taken(), ["dm-0", "nvme0n1"]);
    assert!(
        tree.listed("sdb")
            .1
            .expect("a reason")
            .contains("multipath disk dm-0")
    );
    assert!(
        tree.listed("nvme0c0n1")
            .1
            .expect("a reason")
            .contains("NVMe multipath")
    );
}

#[test]
fn the_disk_of_a_store_is_left_out() {
    let mut tree = ready();
    tree.disk("vdb", "254:16", GIB).store_on("/srv", &["vdb"]);
    assert_eq!(
        tree.listed("vdb").1.as_deref(),
        Some("a store is on it: it would be imaged into itself")
    );
    assert_eq!(tree.taken(), ["vda"]);
}

#[test]
fn serial_numbers_are_read_from_the_page_of_a_scsi_disk_or_from_udev() {
    let mut tree = Tree::new();
    tree.disk("sda", "8:0", GIB).file(
        "/sys/block/sda/device/vpd_pg80",
        b"\x00\x80\x00\x14  WD-1234  \0\0",
    );
    tree.disk("sdb", "8:16", GIB)
        .udev("8:16", "ID_SERIAL_SHORT=Z9 ID_MODEL=QEMU_DISK");
    let listed = disks(&tree.root(), &BTreeSet::new()).expect("a list").disks;
    assert_eq!(listed[0].serial.as_deref(), Some("WD-1234"));
    assert_eq!(
        (listed[1].serial.as_deref(), listed[1].model.as_deref()),
        (Some("Z9"), Some("QEMU_DISK"))
    );
}

#[test]
fn numbers_lead_to_disks_through_partitions() {
    let mut tree = ready();
    tree.link("/sys/dev/block/254:0", "../../block/vda")
        .link("/sys/dev/block/254:2", "../../block/vda/vda2");
    let names = |numbers: &[(u32, u32)]| {
        let numbers: Vec<DeviceNumber> = numbers
            .iter()
            .map(|(major, minor)| DeviceNumber::new(*major, *minor))
            .collect();
        disk_names(&tree.root(), &numbers).expect("sysfs is read")
    };
    let vda = BTreeSet::from(["vda".to_owned()]);
    assert_eq!(names(&[(254, 0), (254, 2), (9, 9)]), vda);
    assert_eq!(names(&[(254, 2)]), vda);
}

#[test]
fn without_sysfs_there_is_an_error_that_names_it() {
    let error = disks(&Tree::new().root(), &BTreeSet::new()).expect_err("there is no sysfs");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().ends_with("sys/block"), "{error}");
}

#[test]
fn a_disk_that_not_all_is_known_of_is_not_taken() {
    let mut tree = Tree::new();
    tree.disk("sda", "8:0", GIB).disk("sdb", "8:16", GIB);
    assert_eq!(tree.taken(), ["sda", "sdb"]);
    tree.directory("/sys/block/sda/hidden");
    assert_eq!(tree.taken(), ["sdb"]);
    let reason = tree.listed("sda").1.expect("a reason");
    assert!(reason.contains("sys/block/sda/hidden cannot be read"), "{reason}");
}
