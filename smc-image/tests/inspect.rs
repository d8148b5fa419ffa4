//! `smc-image inspect`: what keeps the server in an image from booting elsewhere is found without booting it.

#![allow(
    clippy::unwrap_used,
    reason = "this is test code, outside of test functions too"
)]

mod common;

use common::mounts::{leftovers, partitioned, turn};
use common::{Fixture, MIB};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use testkit::program::tool;

const ID: &str = "aaaaaaaa-2222-4333-8444-555555555555";
const WRONG_ID: &str = "bbbbbbbb-2222-4333-8444-555555555555";
const RELEASE: &str = "6.1.0-18-amd64";

/// One file of a cpio archive in the kernel's format.
fn entry(archive: &mut Vec<u8>, name: &str) {
    // ino, mode, uid, gid, nlink, mtime, filesize, four device numbers, namesize, checksum
    let numbers = [1, 0o100_644, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() + 1, 0];
    let numbers = numbers.iter().map(|number| format!("{number:08x}"));
    archive.extend_from_slice(format!("070701{}{name}\0", numbers.collect::<String>()).as_bytes());
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// An initramfs with these drivers.
fn initramfs(drivers: &[&str]) -> Vec<u8> {
    let mut archive = Vec::new();
    entry(&mut archive, "init");
    for driver in drivers {
        let name = format!("usr/lib/modules/{RELEASE}/kernel/drivers/{driver}.ko");
        entry(&mut archive, &name);
    }
    entry(&mut archive, "TRAILER!!!");
    archive
}

fn write(root: &Path, path: &str, content: impl AsRef<[u8]>) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// The files of a server that boots by BIOS and needs no repair.
fn fill(root: &Path) {
    let modules = format!("lib/modules/{RELEASE}");
    write(root, "etc/os-release", "PRETTY_NAME=\"Example Linux 12\"\n");
    write(
        root,
        "usr/share/fstab",
        format!("UUID={ID} / ext4 defaults 0 1\n"),
    );
    // As seen from the server, and not a file of this machine.
    symlink("/usr/share/fstab", root.join("etc/fstab")).unwrap();
    write(root, "sbin/init", "#!");
    write(root, "etc/adjtime", "0.0 0 0.0\n0\nUTC\n");
    write(
        root,
        "etc/systemd/network/a.network",
        "[Match]\nName=en*\n[Network]\nDHCP=yes\n",
    );
    write(root, &format!("boot/vmlinuz-{RELEASE}"), "MZ");
    let drivers = ["virtio_pci", "virtio_blk", "virtio_scsi", "nvme"];
    write(root, &format!("boot/initrd.img-{RELEASE}"), initramfs(&drivers));
    write(
        root,
        "boot/grub/grub.cfg",
        format!("linux /boot/vmlinuz-{RELEASE} root=UUID={ID} ro\ninitrd /boot/initrd.img-{RELEASE}\n"),
    );
    write(root, &format!("{modules}/modules.builtin"), "");
    write(
        root,
        &format!("{modules}/modules.dep"),
        "kernel/drivers/net/virtio_net.ko:\nkernel/drivers/block/virtio_blk.ko:\nkernel/virtio_pci.ko:\n",
    );
}

/// A disk with the server, after `change`.
fn disk(fixture: &Fixture, change: impl FnOnce(&Path)) -> Vec<u8> {
    let content = fixture.join("content");
    fs::create_dir_all(&content).unwrap();
    fill(&content);
    change(&content);
    let file = fixture.sparse_file("root", 160 * MIB);
    let (dir, path) = (content.to_str().unwrap(), file.to_str().unwrap());
    tool("mkfs.ext4", &["-q", "-F", "-U", ID, "-d", dir, path]);
    let mut disk = partitioned(&[(0x83, &fs::read(&file).unwrap())]);
    disk[0] = 0xeb;
    disk
}

/// Findings that are no mere statement, as `LEVEL id: found`, with the exit code.
fn findings(fixture: &Fixture, job: &str) -> (Vec<String>, Option<i32>) {
    let said = fixture.run(&["--json", "inspect", &format!("{job}/1")]);
    let found: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"));
    let checks = found["checks"].as_array().unwrap();
    let wrong = checks.iter().filter(|check| check["level"] != "ok");
    let lines = wrong.map(|check| {
        assert!(check["advice"].is_string(), "{check}");
        let word = |name: &str| check[name].as_str().unwrap().to_owned();
        format!("{} {}: {}", word("level"), word("id"), word("found"))
    });
    assert_eq!(leftovers(fixture, job), [""; 0]);
    (lines.collect(), said.code)
}

#[test]
fn a_server_that_boots_needs_no_repair() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "inspect-good";
    fixture.sync(job, &[("vda", &disk(&fixture, |_| {}))]);
    assert_eq!(findings(&fixture, job), (Vec::new(), Some(0)));
    let said = fixture.run(&["inspect", &format!("{job}/1")]).ok();
    for words in [
        "Example Linux 12",
        RELEASE,
        "ready",
        "has the drivers",
        "by UUID=",
    ] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
}

/// What is broken, and how the finding begins.
type Broken = (fn(&Path), &'static str);

#[test]
fn each_cause_is_named_without_booting() {
    let _turn = turn();
    let broken: [Broken; 12] = [
        (
            |root| write(root, &format!("boot/initrd.img-{RELEASE}"), initramfs(&["ahci"])),
            "critical initramfs_virtio: the initramfs of Linux 6.1.0-18-amd64 (/boot/initrd.img-6.1.0-18-amd64) lacks",
        ),
        (
            |root| write(root, &format!("boot/initrd.img-{RELEASE}"), "torn"),
            "warning initramfs_virtio: whether the initramfs",
        ),
        (
            |root| write(root, "usr/share/fstab", "/dev/sda1 / ext4 defaults 0 1\n"),
            "critical fstab: /etc/fstab names /dev/sda1 for /",
        ),
        (
            |root| {
                write(
                    root,
                    "usr/share/fstab",
                    format!("UUID={ID} / ext4 defaults\nUUID={WRONG_ID} /srv ext4 defaults\n"),
                )
            },
            "critical fstab: /etc/fstab names UUID=bbbbbbbb-2222-4333-8444-555555555555 for /srv, and no device",
        ),
        (
            |root| {
                write(
                    root,
                    "boot/grub/grub.cfg",
                    format!("linux /boot/vmlinuz-{RELEASE} root=UUID={WRONG_ID}\n"),
                )
            },
            "critical boot_root: /boot/grub/grub.cfg has root=UUID=bbbbbbbb-2222-4333-8444-555555555555, and no",
        ),
        (
            |root| {
                write(
                    root,
                    "boot/grub/grub.cfg",
                    format!("linux /boot/vmlinuz-{RELEASE} root=/dev/sda1\n"),
                )
            },
            "critical boot_root: /boot/grub/grub.cfg has root=/dev/sda1",
        ),
        (
            |root| fs::remove_dir_all(root.join("boot/grub")).unwrap(),
            "warning boot_loader: no configuration",
        ),
        (
            |root| fs::remove_dir_all(root.join("boot")).unwrap(),
            "critical kernel_image: there is no kernel",
        ),
        (
            |root| {
                write(
                    root,
                    "etc/systemd/network/a.network",
                    "[Match]\nMACAddress=52:54:00:12:34:56\n[Network]\nDHCP=yes\n",
                );
            },
            "warning network_config: /etc/systemd/network/a.network is for the hardware address",
        ),
        (
            |root| fs::remove_file(root.join("sbin/init")).unwrap(),
            "critical init: there is no /sbin/init",
        ),
        (
            |root| write(root, "usr/share/fstab", "LABEL=data / ext4 defaults\n"),
            "critical fstab: /etc/fstab names LABEL=data for /, and no device here has this label",
        ),
        (
            |root| write(root, "usr/bin/cloud-init", "#!"),
            "warning cloud_init: cloud-init is installed",
        ),
    ];
    for (index, (change, start)) in broken.iter().enumerate() {
        let fixture = Fixture::new();
        let job = format!("inspect-{index}");
        fixture.sync(&job, &[("vda", &disk(&fixture, change))]);
        let (found, code) = findings(&fixture, &job);
        assert!(
            found.iter().any(|line| line.starts_with(start)),
            "{start}: {found:#?}"
        );
        let is_critical = found.iter().any(|line| line.starts_with("critical"));
        assert_eq!(code, Some(i32::from(is_critical)));
    }
}

/// An EFI system partition with these files.
fn esp(fixture: &Fixture, files: &[&str]) -> Vec<u8> {
    let file = fixture.sparse_file("esp", 16 * MIB);
    let image = file.to_str().unwrap();
    tool("mformat", &["-i", image, "-T", "32768", "::"]);
    for directory in ["::EFI", "::EFI/BOOT", "::EFI/debian"] {
        tool("mmd", &["-i", image, directory]);
    }
    let program = fixture.join("program");
    fs::write(&program, "MZ").unwrap();
    for file in files {
        tool(
            "mcopy",
            &["-i", image, program.to_str().unwrap(), &format!("::EFI/{file}")],
        );
    }
    fs::read(&file).unwrap()
}

/// Whether the kernel here has vfat or not.
#[test]
fn a_system_partition_is_looked_into() {
    let _turn = turn();
    let cases: [(&[&str], &str); 3] = [
        (&["BOOT/BOOTX64.EFI", "debian/shimx64.efi"], ""),
        (
            &["debian/shimx64.efi"],
            "warning efi_fallback: /boot/efi/EFI/BOOT/BOOTX64.EFI is missing, and the firmware's own entries are not migrated: \
             nothing would start /boot/efi/EFI/debian/shimx64.efi",
        ),
        (
            &[],
            "critical efi_fallback: there is no boot loader on the EFI system partition at /boot/efi",
        ),
    ];
    for (index, (files, start)) in cases.into_iter().enumerate() {
        let fixture = Fixture::new();
        let job = format!("inspect-esp-{index}");
        let content = fixture.join("content");
        fs::create_dir_all(content.join("boot/efi")).unwrap();
        fill(&content);
        let root = fixture.sparse_file("root", 160 * MIB);
        let (dir, path) = (content.to_str().unwrap(), root.to_str().unwrap());
        tool("mkfs.ext4", &["-q", "-F", "-U", ID, "-d", dir, path]);
        let esp = esp(&fixture, files);
        let disk = partitioned(&[(0xef, &esp), (0x83, &fs::read(&root).unwrap())]);
        fixture.sync(&job, &[("vda", &disk)]);
        let (found, _) = findings(&fixture, &job);
        let is_told = found
            .iter()
            .any(|line| line.contains("efi_fallback") && line.starts_with(start));
        assert_eq!(is_told, !start.is_empty(), "{files:?}: {found:#?}");
        assert!(
            !found.iter().any(|line| line.contains("efi_partition")),
            "{found:#?}"
        );
    }
}

#[test]
fn a_disk_without_boot_code_starts_nowhere() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "inspect-sector";
    let mut disk = disk(&fixture, |_| {});
    disk[0] = 0;
    fixture.sync(job, &[("vda", &disk)]);
    let (found, code) = findings(&fixture, job);
    assert!(
        found[0].starts_with("critical boot_sector: none of the chosen disks has boot code"),
        "{found:?}"
    );
    assert_eq!(code, Some(1));
}
