//! Whatever stands where a file should be: an answer all the same, and nothing in it that a terminal obeys.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use api::Level;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::fake::{Tree, archive, drivers, ready};
use crate::inventory::disks;

/// The ready machine with something of every kind that is read.
fn rich() -> Tree {
    let mut tree = ready();
    tree.mapped("dm-0", "253:0", ("vg0-data", "LVM-1"), &["vda/vda2"])
        .disk("loop0", "7:0", 1 << 20)
        .file("/sys/block/loop0/loop/backing_file", "/x")
        .disk("sda", "8:0", 1 << 20)
        .file("/sys/block/sda/device/vpd_pg80", "\0\x01\0\x02AB")
        .file("/sys/block/sda/device/model", "m")
        .file("/sys/block/sda/removable", "1")
        .file("/sys/block/sda/hidden", "0")
        .file("/run/lvm/pvs_online/a", "254:2\nvg:vg0\n")
        .file("/etc/crypttab", "c UUID=1 none\n")
        .file("/etc/machine-id", "0123456789abcdef0123456789abcdef")
        .file("/etc/default/grub", "GRUB_CMDLINE_LINUX=x\n")
        .file("/etc/lvm/lvm.conf", "filter = [ \"a|.*|\" ]\n")
        .file("/etc/lvm/devices/system.devices", "IDTYPE=sys_wwid\n")
        .file("/etc/network/interfaces", "iface eth0 inet dhcp\n")
        .file(
            "/etc/netplan/a.yaml",
            "network:\n ethernets:\n  a:\n   dhcp4: true\n",
        )
        .file("/etc/sysconfig/network-scripts/ifcfg-eth0", "DEVICE=eth0\n")
        .file(
            "/etc/NetworkManager/system-connections/a",
            "[connection]\ntype=ethernet\n",
        )
        .file("/etc/systemd/network/10.link", "[Match]\nMACAddress=1\n")
        .file("/etc/systemd/system/a.mount", "What=/dev/sdb\n")
        .file(
            "/etc/udev/rules.d/70.rules",
            "ATTR{address}==\"1\", NAME=\"eth0\"\n",
        )
        .file("/boot/grub/device.map", "(hd0) /dev/sda\n")
        .file("/boot/grub/grubenv", "kernelopts=root=UUID=1\n")
        .file(
            "/boot/loader/entries/a.conf",
            "linux /vmlinuz-1\ninitrd /initrd-1\n",
        )
        .file("/boot/config-6.1.0-18-amd64", "CONFIG_VIRTIO_NET=m\n")
        .file("/sys/kernel/security/lockdown", "[none]")
        .file("/sys/fs/selinux/enforce", "1")
        .file("/sys/firmware/efi/fw_platform_size", "64")
        .file(
            "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
            "12345",
        )
        // In the clear, so that no program is started a thousand times.
        .file(
            "/boot/initrd.img-6.1.0-18-amd64",
            archive(&drivers("6.1.0-18-amd64")),
        )
        .store_on("/srv/\x1b[2J", &["sda"]);
    tree
}

/// Looks at the machine, and at what it says.
#[track_caller]
fn survives(tree: &Tree, what: &str) {
    let found = tree.examine();
    assert!(found.checks.len() > 15, "{what}: {found:#?}");
    for check in &found.checks {
        let text = format!("{}{}", check.found, check.advice.as_deref().unwrap_or_default());
        assert!(!text.contains(char::is_control), "{what}: {check:?}");
        assert!(text.chars().count() < 8000, "{what}: {check:?}");
        assert_eq!(
            check.advice.is_none(),
            check.level == Level::Ok,
            "{what}: {check:?}"
        );
    }
    if let Ok(list) = disks(&tree.root(), &BTreeSet::new()) {
        for disk in list.disks {
            assert!(
                !format!("{}{:?}", disk.holds, disk.left_out).contains(char::is_control),
                "{what}: {disk:?}"
            );
            assert!(disk.holds.chars().count() < 4000, "{what}: {disk:?}");
        }
    }
}

/// All files below a directory, links not followed.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let kind = fs::symlink_metadata(&path).expect("it is there").file_type();
        if kind.is_dir() {
            found.extend(files(&path));
        } else if kind.is_file() {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What to call something, and what puts it at a path.
type Kind = (&'static str, fn(&Path));

/// Puts each of `kinds` into the place of each file in turn.
fn replace_each(kinds: &[Kind]) {
    let tree = rich();
    survives(&tree, "nothing replaced");
    let files = files(tree.root().join("/").as_path());
    assert!(files.len() > 60);
    for file in files {
        let original = fs::read(&file).expect("it was written");
        for (kind, replace) in kinds {
            fs::remove_file(&file).expect("it is there");
            replace(&file);
            survives(&tree, &format!("{} is {kind}", file.display()));
            let removed = if file.is_dir() {
                fs::remove_dir(&file)
            } else {
                fs::remove_file(&file)
            };
            removed.expect("it is there");
            fs::write(&file, &original).expect("written");
        }
    }
}

#[test]
fn any_file_may_be_missing_empty_or_of_another_kind() {
    replace_each(&[
        ("empty", |path| fs::write(path, "").expect("written")),
        ("a directory", |path| fs::create_dir(path).expect("made")),
        ("a loop of links", |path| symlink(path, path).expect("linked")),
        ("a link to nowhere", |path| {
            symlink("/no/such/file/of/smc", path).expect("linked")
        }),
        ("a FIFO that nobody writes to", |path| {
            mkfifo(path, Mode::S_IRUSR).expect("made")
        }),
    ]);
}

#[test]
fn any_file_may_hold_anything() {
    replace_each(&[
        ("garbage", |path| fs::write(path, garbage()).expect("written")),
        ("every byte", |path| {
            fs::write(path, (0..=255u8).collect::<Vec<u8>>()).expect("written")
        }),
        ("numbers too large", |path| {
            fs::write(path, "99999999999999999999:99999999999\n".repeat(9)).expect("written")
        }),
        ("words of a terminal", |path| {
            let line = "\x1b]0;x\x07 /dev/sda\u{202e} root=/dev/sd\x1b UUID=\x1b / - = [ \" ' { } : \t\x08\n";
            fs::write(path, line.repeat(50)).expect("written");
        }),
    ]);
}

/// Bytes without a pattern, always the same.
fn garbage() -> Vec<u8> {
    let next = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*state >> 24).to_le_bytes()[0])
    };
    std::iter::successors(Some(7u32), |state| Some(*state))
        .scan(7, |state, _| next(state))
        .take(20_000)
        .collect()
}

#[test]
fn lines_of_a_hundred_megabytes_are_not_read_or_shown() {
    // Text of one line just below what is read, and 100 MiB of zeros, which take no room on the disk.
    let long = format!("/dev/sda{}", "x".repeat(3 << 20));
    for path in [
        "/etc/fstab",
        "/etc/network/interfaces",
        "/boot/grub/grub.cfg",
        "/proc/1/mountinfo",
        "/etc/crypttab",
    ] {
        let mut tree = rich();
        tree.file(path, &long);
        survives(&tree, path);
        let file = File::create(tree.path(path)).expect("made");
        file.set_len(100 << 20).expect("sized");
        survives(&tree, path);
    }
    let mut tree = ready();
    File::create(tree.path("/etc/fstab"))
        .and_then(|file| file.set_len(100 << 20))
        .expect("made");
    tree.expect("fstab", Level::Warning, "too large to be read");
    let image = "/boot/initrd.img-6.1.0-18-amd64";
    File::create(tree.path(image))
        .and_then(|file| file.set_len(1 << 40))
        .expect("made");
    tree.expect("initramfs_virtio", Level::Warning, "could not be determined");
    tree.file(image, archive(&drivers("6.1.0-18-amd64")));
    tree.expect("initramfs_virtio", Level::Ok, "has the drivers");
}

#[test]
fn devices_that_lie_on_each_other_in_a_circle_are_survived() {
    let mut tree = rich();
    tree.mapped("dm-1", "253:1", ("a", "LVM-2"), &["dm-0"]);
    tree.stack("dm-0", &["dm-1"]);
    tree.disk("loop1", "7:1", 1 << 20)
        .file("/sys/block/loop1/loop/backing_file", "/circle/file");
    tree.mount("ext4", "/dev/loop1", "7:1", "/circle");
    survives(&tree, "a circle");
}

#[test]
fn a_device_with_thousands_of_partitions_and_holders_is_told_shortly() {
    let mut tree = Tree::new();
    tree.disk("sda", "8:0", 1 << 30);
    for number in 1..2000 {
        tree.partition("sda", &format!("sda{number}"), &format!("259:{number}"), 1 << 20);
    }
    let (holds, _) = tree.listed("sda");
    assert!(
        holds.starts_with("1999 partitions: unknown") && holds.ends_with("and 1983 more"),
        "{holds}"
    );
}
