//! On machines that are built out of directories, hostile ones too.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use hostdev::{
    BlockDevice, DeviceNumber, ErrorKind, Inventory, Machine, Namespaces, Node, ProcessStat, Root, User,
    below, disks_below, first_user, schedulers,
};

const GIB: u64 = 1 << 30;

struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Tree {
        let tree = Tree(tempfile::tempdir().unwrap());
        tree.file("/proc/self/mountinfo", "")
            .file("/proc/1/mountinfo", "")
    }

    fn root(&self) -> Root {
        Root::at(self.0.path())
    }

    fn file(self, path: &str, content: impl AsRef<[u8]>) -> Tree {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// A link, whose target is seen from the link.
    fn link(self, path: &str, target: &str) -> Tree {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    /// A device with its directory below /sys/block.
    fn device(self, directory: &str, number: &str) -> Tree {
        self.file(&format!("/sys/block/{directory}/dev"), format!("{number}\n"))
            .file(
                &format!("/sys/block/{directory}/size"),
                format!("{}\n", GIB / 512),
            )
            .link(
                &format!("/sys/dev/block/{number}"),
                &format!("../../block/{directory}"),
            )
    }

    fn partition(self, directory: &str, number: &str) -> Tree {
        let tree = self.device(directory, number);
        tree.file(&format!("/sys/block/{directory}/partition"), "1\n")
    }

    /// Puts a disk onto a device given by its directory.
    fn stack(self, above: &str, below: &str) -> Tree {
        let name = below.rsplit('/').next().unwrap();
        self.link(
            &format!("/sys/block/{above}/slaves/{name}"),
            &format!("../../{below}"),
        )
        .link(
            &format!("/sys/block/{below}/holders/{above}"),
            &format!("{}{above}", up(below)),
        )
    }

    fn mounts(self, lines: &[&str]) -> Tree {
        let table = lines.join("\n");
        self.file("/proc/self/mountinfo", &table)
            .file("/proc/1/mountinfo", &table)
    }
}

/// From the holders of a device up to /sys/block.
fn up(directory: &str) -> String {
    "../".repeat(directory.split('/').count() + 1)
}

fn number(text: &str) -> DeviceNumber {
    text.parse().unwrap()
}

fn numbers(texts: &[&str]) -> Vec<DeviceNumber> {
    texts.iter().map(|text| number(text)).collect()
}

/// LVM on LUKS on a partition, a file on that behind a loop device, and swap.
fn layered() -> Tree {
    Tree::new()
        .device("sda", "8:0")
        .partition("sda/sda1", "8:1")
        .partition("sda/sda2", "8:2")
        .device("sdb", "8:16")
        .device("dm-0", "253:0")
        .file("/sys/block/dm-0/dm/name", "crypt\n")
        .device("dm-1", "253:1")
        .file("/sys/block/dm-1/dm/name", "vg-root\n")
        .file("/sys/block/dm-1/dm/uuid", "LVM-x\n")
        .stack("dm-0", "sda/sda2")
        .stack("dm-1", "dm-0")
        .device("loop0", "7:0")
        .file("/sys/block/loop0/loop/backing_file", "/srv/image\n")
        .file("/srv/image", "")
        .file("/srv/in image/file", "")
        .file("/boot/vmlinuz", "")
        .mounts(&[
            "20 1 253:1 / / rw,relatime shared:1 - ext4 /dev/mapper/vg-root rw",
            "30 21 7:0 / /srv/in\\040image ro - xfs /dev/loop0 ro",
            "21 20 253:1 /data /srv rw - ext4 /dev/mapper/vg-root rw",
            "22 20 8:1 / /boot rw - ext4 /dev/sda1 rw",
            "23 20 0:5 / /proc rw - proc proc rw",
        ])
        .file(
            "/proc/swaps",
            "Filename\n/srv/swap file 1 0 -2\n/dev/sdb partition 1 0 -3\n",
        )
}

#[test]
fn layers_are_followed_down_to_the_disk() {
    let tree = layered();
    let found = disks_below(&tree.root(), Path::new("/srv/in image/not/yet")).unwrap();
    assert_eq!(found, numbers(&["7:0", "8:0", "8:2", "253:0", "253:1"]));
    let root = disks_below(&tree.root(), Path::new("/etc")).unwrap();
    assert_eq!(root, numbers(&["8:0", "8:2", "253:0", "253:1"]));
    let boot = disks_below(&tree.root(), Path::new("/boot")).unwrap();
    assert_eq!(boot, numbers(&["8:0", "8:1"]));
}

#[test]
fn schedulers_are_those_of_all_layers() {
    let tree = layered()
        .file(
            "/sys/block/sda/queue/scheduler",
            "none [mq-deadline] kyber bfq \n",
        )
        .file("/sys/block/dm-1/queue/scheduler", "none\n");
    let of = |text: &str| -> Vec<String> {
        let found = schedulers(&tree.root(), &Node::Device(number(text))).unwrap();
        found.into_iter().collect()
    };
    assert_eq!(of("8:2"), ["mq-deadline"], "a partition has that of its disk");
    assert_eq!(of("253:1"), ["mq-deadline", "none"]);
    assert!(of("8:16").is_empty());
}

#[test]
fn the_inventory_tells_what_lies_on_a_disk_in_the_order_of_mounts() {
    let tree = layered();
    let mut inventory = Inventory::read(&tree.root(), Namespaces::Machine).unwrap();
    assert!(inventory.take_unread().is_empty());
    let found = inventory.on_disk("sda");
    let points: Vec<Vec<&str>> = found
        .filesystems
        .iter()
        .map(|filesystem| {
            filesystem
                .mounts
                .iter()
                .map(|mount| mount.point.to_str().unwrap())
                .collect()
        })
        .collect();
    assert_eq!(points, [vec!["/", "/srv"], vec!["/boot"], vec!["/srv/in image"]]);
    let image = &found.filesystems[2];
    assert_eq!(
        (image.mounts[0].fs_type.as_str(), image.mounts[0].is_read_only()),
        ("xfs", true)
    );
    assert!(image.devices.contains("loop0"));
    let swaps: Vec<&Path> = found.swaps.iter().map(|swap| swap.path.as_path()).collect();
    assert_eq!(swaps, [Path::new("/srv/swap")]);
    let holders: Vec<&str> = found.holders.iter().map(|holder| holder.name.as_str()).collect();
    assert_eq!(holders, ["dm-0", "dm-1", "loop0"]);
    assert_eq!(
        inventory.disks_below("loop0").into_iter().collect::<Vec<_>>(),
        ["sda"]
    );

    let other = inventory.on_disk("sdb");
    assert!(other.filesystems.is_empty() && other.holders.is_empty());
    assert_eq!(other.swaps.len(), 1);
}

#[test]
fn a_user_is_found_on_any_layer() {
    let tree = layered();
    let user = |text: &str| first_user(&tree.root(), &Node::Device(number(text))).unwrap();
    assert_eq!(user("8:0"), Some(User::Mount("/boot".into())), "of a partition");
    assert_eq!(user("8:2"), Some(User::Holder("dm-0".to_owned())));
    assert_eq!(user("8:99"), None);
}

#[test]
fn devices_that_lie_on_each_other_end_where_they_began() {
    let tree = Tree::new()
        .device("dm-0", "253:0")
        .device("dm-1", "253:1")
        .stack("dm-0", "dm-1")
        .stack("dm-1", "dm-0")
        .device("loop0", "7:0")
        .file("/sys/block/loop0/loop/backing_file", "/in/image\n")
        .file("/in/image", "")
        .mounts(&[
            "9 9 7:0 / /in rw - ext4 /dev/loop0 rw",
            "10 11 253:0 / /a rw - ext4 /dev/dm-0 rw",
            "11 10 253:1 / /a/b rw - ext4 /dev/dm-1 rw",
        ]);
    let found = below(&tree.root(), &Node::Device(number("253:0"))).unwrap();
    assert_eq!(
        found.devices.into_iter().collect::<Vec<_>>(),
        numbers(&["253:0", "253:1"])
    );
    let found = disks_below(&tree.root(), Path::new("/in/image")).unwrap();
    assert_eq!(found, numbers(&["7:0"]));
    let inventory = Inventory::read(&tree.root(), Namespaces::Machine).unwrap();
    assert!(
        inventory.disks_below("dm-0").is_empty(),
        "there is no disk at the end"
    );
    assert_eq!(inventory.on_disk("dm-0").filesystems.len(), 0);
}

#[test]
fn a_member_of_a_btrfs_leads_to_all_of_them() {
    let tree = Tree::new()
        .device("sda", "8:0")
        .device("sdb", "8:16")
        .link("/sys/fs/btrfs/uuid/devices/sda", "../../../../block/sda")
        .link("/sys/fs/btrfs/uuid/devices/sdb", "../../../../block/sdb")
        .mounts(&["9 1 0:41 / /pool rw - btrfs /dev/sdb rw"]);
    let inventory = Inventory::read(&tree.root(), Namespaces::Machine).unwrap();
    let on = |disk: &str| inventory.on_disk(disk).filesystems.len();
    assert_eq!((on("sda"), on("sdb")), (1, 1));
}

#[test]
fn what_is_missing_is_none_and_what_cannot_be_read_is_told() {
    let tree = Tree::new().device("sda", "8:0");
    let root = tree.root();
    let device = BlockDevice::find(&root, number("8:0")).unwrap().unwrap();
    let identity = device.identity();
    assert_eq!(identity.serial, None);
    assert!(identity.unread.is_empty(), "{identity:?}");
    assert_eq!(BlockDevice::find(&root, number("9:9")).unwrap(), None);
    assert_eq!(device.counters().unwrap_err().kind(), ErrorKind::NotFound);

    let tree = tree
        .file("/sys/block/sda/stat", "1 2 three\n")
        .file("/sys/block/sda/inflight", "0 0\n")
        .file("/sys/block/sda/serial/x", "a directory where text should be");
    assert_eq!(device.counters().unwrap_err().kind(), ErrorKind::Malformed);
    assert_eq!(device.identity().unread.len(), 1);
    fs::remove_file(root.join("/sys/block/sda/stat")).unwrap();
    let endless = File::create(root.join("/sys/block/sda/stat")).unwrap();
    endless.set_len(100 << 20).unwrap();
    assert_eq!(device.counters().unwrap_err().kind(), ErrorKind::TooLarge);

    let inventory = Inventory::read(&tree.root(), Namespaces::Machine).unwrap();
    let unread: Vec<&PathBuf> = inventory.device("sda").unwrap().unread.iter().collect();
    assert_eq!(unread, [&root.join("/sys/block/sda/serial")]);
}

#[test]
fn a_table_that_cannot_be_read_is_noted_and_one_bad_line_costs_only_itself() {
    let tree = Tree::new()
        .device("sda", "8:0")
        .mounts(&["garbage", "9 1 8:0 / /a rw - ext4 /dev/sda rw"])
        .file("/proc/swaps/x", "a directory where a table should be");
    let mut inventory = Inventory::read(&tree.root(), Namespaces::Machine).unwrap();
    assert_eq!(inventory.mounts().len(), 1);
    let kinds: Vec<ErrorKind> = inventory.take_unread().iter().map(hostdev::Error::kind).collect();
    assert_eq!(kinds, [ErrorKind::Malformed, ErrorKind::WrongType]);
    let error = first_user(&tree.root(), &Node::Device(number("8:16"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongType, "who swaps to it is not known");
    fs::remove_dir_all(tree.root().join("/sys/block")).unwrap();
    let error = Inventory::read(&tree.root(), Namespaces::Machine).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn counters_are_read_as_the_kernel_documents_them() {
    let tree = Tree::new()
        .device("sda", "8:0")
        .file(
            "/sys/block/sda/stat",
            " 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27\n",
        )
        .file("/sys/block/sda/inflight", "       3        4\n")
        .file("/sys/block/sda/queue/iostats", "0\n");
    let device = BlockDevice::find(&tree.root(), number("8:0")).unwrap().unwrap();
    let found = device.counters().unwrap();
    assert_eq!(
        (found.read_sectors, found.writes, found.written_sectors),
        (13, 15, 17)
    );
    assert_eq!(
        found.discards.map(|discards| (discards.count, discards.sectors)),
        Some((22, 24))
    );
    assert_eq!(found.writes_in_flight, 4);
    assert_eq!(device.is_counting().unwrap(), Some(false));
    let tree = tree.file("/sys/block/sda/stat", "11 12 13 14 15 16 17 18 19 20 21\n");
    assert_eq!(device.counters().unwrap().discards, None, "before Linux 4.18");
    drop(tree);
}

#[test]
fn a_process_has_its_state_and_start_behind_any_name() {
    let numbers = (4..=52)
        .map(|number: u32| number.to_string())
        .collect::<Vec<_>>()
        .join(" ");
    let tree = Tree::new()
        .file("/proc/4711/stat", format!("4711 (a) Z 1 (b) S {numbers}\n"))
        .file(
            "/proc/4712/stat",
            [b"4712 (\xff\xfe) R ".as_slice(), numbers.as_bytes()].concat(),
        )
        .file("/proc/4713/stat", "4713 (cut) R 1 2");
    let read = |process| ProcessStat::read(&tree.root(), process);
    let stat = |state| Some(ProcessStat { state, started: 22 });
    assert_eq!(read(4711).unwrap(), stat('S'));
    assert_eq!(read(4712).unwrap(), stat('R'));
    assert_eq!(read(4713).unwrap_err().kind(), ErrorKind::Malformed);
    assert_eq!(read(4714).unwrap(), None);
}

fn machine(id: &str, firmware: &str) -> Machine {
    let tree = Tree::new()
        .file("/etc/machine-id", id)
        .file("/sys/class/dmi/id/product_uuid", firmware)
        .file("/proc/sys/kernel/hostname", "web01.example\n");
    Machine::read(&tree.root()).unwrap()
}

#[test]
fn a_machine_is_told_from_others_and_from_its_clones() {
    const ID: &str = "3d1219c7c4c5404aaa1f6d2a48adfda4\n";
    const FIRMWARE: &str = "4c4c4544-0042-3510-8058-b4c04f4e3732\n";
    let known = machine(ID, FIRMWARE);
    assert_eq!(known.host_name, "web01.example");
    let id = known.id.unwrap();
    assert_eq!(
        machine(ID, &FIRMWARE.to_uppercase()).id,
        Some(id),
        "case is no difference"
    );
    let others = [
        machine("4d1219c7c4c5404aaa1f6d2a48adfda4", FIRMWARE),
        machine(ID, "5c4c4544-0042-3510-8058-b4c04f4e3732"),
        machine(ID, ""),
        machine("", FIRMWARE),
    ];
    for (index, other) in others.iter().enumerate() {
        assert!(other.id.is_some_and(|other| other != id), "{index}");
    }
    // Neither of its ids can be seen in it.
    let shown: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!ID.contains(&shown) && !FIRMWARE.replace('-', "").contains(&shown));
}

#[test]
fn a_machine_without_ids_is_any_machine() {
    for (id, firmware) in [
        ("", ""),
        ("uninitialized\n", "00000000-0000-0000-0000-000000000000"),
        ("too short", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF"),
    ] {
        assert_eq!(machine(id, firmware).id, None, "{id:?} {firmware:?}");
    }
    assert_eq!(Machine::read(&Tree::new().root()).unwrap(), Machine::default());
}

#[test]
fn a_partition_begins_where_sysfs_says() {
    let tree = Tree::new()
        .device("vda", "254:0")
        .partition("vda/vda1", "254:1")
        .file("/sys/block/vda/vda1/start", "2048\n");
    let start = |at| {
        let device = BlockDevice::find(&tree.root(), number(at)).unwrap().unwrap();
        device.start_bytes().unwrap()
    };
    assert_eq!((start("254:0"), start("254:1")), (0, 1 << 20));
}
