//! Builds trees that look like a machine, archives that look like an initramfs, and the kernel's answers.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use api::{Check, Level, Precheck};
use hostdev::Root;

use crate::inventory::disks;
use crate::precheck::{KernelFacts, PrecheckInput, Space, examine};

pub const RELEASE: &str = "6.1.0-18-amd64";
pub const ESP_TYPE: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
const GIB: u64 = 1 << 30;

/// A tree that goes away with this, and what the kernel answers beside it.
pub struct Tree {
    directory: tempfile::TempDir,
    pub answers: KernelFacts,
    pub input: PrecheckInput,
    mounts: Vec<String>,
}

impl Tree {
    /// No machine at all: only a kernel that answers.
    pub fn new() -> Tree {
        let mut tree = Tree {
            directory: tempfile::tempdir().expect("a temporary directory"),
            answers: answers(),
            input: PrecheckInput::default(),
            mounts: Vec::new(),
        };
        tree.file("/proc/1/mountinfo", "");
        tree
    }

    pub fn root(&self) -> Root {
        Root::at(self.directory.path())
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    /// Writes a file, over any that is there.
    pub fn file(&mut self, path: &str, content: impl AsRef<[u8]>) -> &mut Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(&path, content).expect("written");
        self
    }

    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        symlink(target, path).expect("linked");
        self
    }

    pub fn directory(&mut self, path: &str) -> &mut Self {
        fs::create_dir_all(self.path(path)).expect("made");
        self
    }

    pub fn remove(&mut self, path: &str) -> &mut Self {
        let path = self.path(path);
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.expect("it was there");
        self
    }

    /// Replaces text in a file.
    pub fn edit(&mut self, path: &str, from: &str, to: &str) -> &mut Self {
        let text = fs::read_to_string(self.path(path)).expect("it is there");
        assert!(text.contains(from), "{path} has no {from}");
        self.file(path, text.replace(from, to))
    }

    /// A disk, or anything else that is no partition.
    pub fn disk(&mut self, name: &str, number: &str, bytes: u64) -> &mut Self {
        self.block(&format!("/sys/block/{name}"), number, bytes)
    }

    pub fn partition(&mut self, disk: &str, name: &str, number: &str, bytes: u64) -> &mut Self {
        let directory = format!("/sys/block/{disk}/{name}");
        self.block(&directory, number, bytes);
        self.file(&format!("{directory}/partition"), "1\n")
    }

    fn block(&mut self, directory: &str, number: &str, bytes: u64) -> &mut Self {
        self.file(&format!("{directory}/dev"), format!("{number}\n"));
        self.file(&format!("{directory}/size"), format!("{}\n", bytes / 512));
        self.directory(&format!("{directory}/slaves"));
        self.directory(&format!("{directory}/holders"))
    }

    /// Puts `above`, which is a disk's name, onto devices given by their path below /sys/block.
    pub fn stack(&mut self, above: &str, below: &[&str]) -> &mut Self {
        for path in below {
            let name = path.rsplit('/').next().expect("a name");
            self.link(
                &format!("/sys/block/{above}/slaves/{name}"),
                &format!("../../{path}"),
            );
            self.link(&format!("/sys/block/{path}/holders/{above}"), "../../x");
        }
        self
    }

    /// A device-mapper device on others.
    pub fn mapped(&mut self, name: &str, number: &str, mapped: (&str, &str), below: &[&str]) -> &mut Self {
        self.disk(name, number, 10 * GIB);
        self.file(&format!("/sys/block/{name}/dm/name"), mapped.0);
        self.file(&format!("/sys/block/{name}/dm/uuid"), mapped.1);
        self.stack(name, below)
    }

    /// What udev knows of a device: `NAME=VALUE`, separated by spaces.
    pub fn udev(&mut self, number: &str, values: &str) -> &mut Self {
        let lines: String = values
            .split_whitespace()
            .map(|value| format!("E:{value}\n"))
            .collect();
        self.file(
            &format!("/run/udev/data/b{number}"),
            format!("S:x\nI:123\n{lines}"),
        )
    }

    /// Mounts a filesystem: its type, its source, the source's number and the directory.
    pub fn mount(&mut self, fs_type: &str, source: &str, number: &str, point: &str) -> &mut Self {
        let id = self.mounts.len() + 20;
        self.mounts.push(format!(
            "{id} 1 {number} / {point} rw,relatime shared:1 - {fs_type} {source} rw"
        ));
        let table = self.mounts.join("\n");
        self.file("/proc/1/mountinfo", table)
    }

    /// Changes what the kernel answers.
    pub fn answer(&mut self, change: fn(&mut KernelFacts)) -> &mut Self {
        change(&mut self.answers);
        self
    }

    /// KernelFacts every question for space alike.
    pub fn space(&mut self, used_bytes: u64, available_bytes: u64) -> &mut Self {
        let space = Space {
            used_bytes,
            available_bytes,
            free_inodes: Some(1000),
            read_only: false,
        };
        self.answers.space = Box::new(move |_: &Path| Some(space));
        self
    }

    pub fn examine(&self) -> Precheck {
        examine(&self.root(), &self.input, &self.answers)
    }

    /// The lines about one matter.
    pub fn lines(&self, id: &str) -> Vec<Check> {
        let found = self.examine();
        found.checks.into_iter().filter(|check| check.id == id).collect()
    }

    /// Checks that there is a line about this, with this level and these words in it or its advice.
    #[track_caller]
    pub fn expect(&self, id: &str, level: Level, words: &str) {
        let lines = self.lines(id);
        let has = |check: &Check| {
            let advice = check.advice.as_deref().unwrap_or_default();
            check.level == level && format!("{} | {advice}", check.found).contains(words)
        };
        assert!(lines.iter().any(has), "no {level} with {words:?} in {lines:#?}");
    }

    /// What a listed device holds, and why it is left out.
    pub fn listed(&self, name: &str) -> (String, Option<String>) {
        let listed = disks(&self.root(), &self.input.store_disks)
            .expect("a list")
            .disks;
        let found = listed
            .into_iter()
            .find(|disk| disk.name == name)
            .expect("it is listed");
        (found.holds, found.left_out)
    }

    /// Names that a job of all disks has.
    pub fn taken(&self) -> Vec<String> {
        let listed = disks(&self.root(), &self.input.store_disks)
            .expect("a list")
            .disks;
        listed
            .into_iter()
            .filter(|disk| disk.left_out.is_none())
            .map(|disk| disk.name)
            .collect()
    }

    pub fn choose(&mut self, disks: &[&str]) -> &mut Self {
        self.input.disks = disks.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    pub fn store_on(&mut self, path: &str, disks: &[&str]) -> &mut Self {
        self.input.store = Some(path.into());
        self.input.store_disks = disks
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<BTreeSet<_>>();
        self
    }
}

/// A kernel that can do everything.
fn answers() -> KernelFacts {
    let space = Space {
        used_bytes: 2 * GIB,
        available_bytes: 100 * GIB,
        free_inodes: Some(1000),
        read_only: false,
    };
    KernelFacts {
        effective_uid: 0,
        architecture: "x86_64".to_owned(),
        io_uring: Ok(()),
        bpf: Ok(()),
        clock_synchronized: Some(true),
        space: Box::new(move |_: &Path| Some(space)),
    }
}

/// A machine of Debian that starts by BIOS from vda and needs no repair.
pub fn ready() -> Tree {
    let mut tree = Tree::new();
    tree.disk("vda", "254:0", 20 * GIB)
        .partition("vda", "vda1", "254:1", 1 << 20)
        .partition("vda", "vda2", "254:2", 18 * GIB)
        .partition("vda", "vda3", "254:3", GIB)
        .udev("254:0", "ID_PART_TABLE_TYPE=gpt")
        .udev("254:1", "ID_PART_ENTRY_TYPE=21686148-6449-6e6f-744e-656564454649")
        .udev("254:2", "ID_FS_TYPE=ext4 ID_FS_UUID=6e0b-root ID_FS_LABEL_ENC=x")
        .udev("254:3", "ID_FS_TYPE=swap ID_FS_UUID=6e0b-swap")
        .mount("ext4", "/dev/vda2", "254:2", "/")
        .mount("proc", "proc", "0:20", "/proc")
        .mount("bpf", "bpf", "0:21", "/sys/fs/bpf")
        .file(
            "/proc/swaps",
            "Filename Type Size Used Priority\n/dev/vda3 partition 1 0 -2\n",
        )
        .file("/dev/vda", boot_sector())
        .file("/proc/sys/kernel/osrelease", RELEASE)
        .file("/proc/self/status", "Name:\tsmcd\nCapEff:\t000001ffffffffff\n")
        .file(
            "/proc/cmdline",
            format!("BOOT_IMAGE=/boot/vmlinuz-{RELEASE} root=UUID=6e0b-root ro"),
        )
        .file("/sys/kernel/btf/vmlinux", "btf")
        .file("/sys/module/apparmor/parameters/enabled", "Y\n");
    boot_files(&mut tree);
    tree.file(
        "/etc/fstab",
        "# <file system>\nUUID=6e0b-root / ext4 defaults 0 1\nUUID=6e0b-swap none swap sw 0 0\n",
    )
    .file("/etc/adjtime", "0.0 0 0.0\n0\nUTC\n")
    .file(
        "/etc/systemd/network/10-all.network",
        "[Match]\nName=en*\n[Network]\nDHCP=yes\n",
    )
    .file("/usr/sbin/update-initramfs", "")
    .file("/sbin/init", "");
    tree
}

fn boot_files(tree: &mut Tree) {
    let linux = format!("linux /boot/vmlinuz-{RELEASE} root=UUID=6e0b-root ro quiet");
    let modules = format!("/lib/modules/{RELEASE}");
    tree.file(&format!("/boot/vmlinuz-{RELEASE}"), "MZ")
        .file(&format!("/boot/initrd.img-{RELEASE}"), packed("gzip", &["-c"], &archive(&drivers(RELEASE))))
        .file("/boot/grub/grub.cfg", format!("menuentry x {{\n\t{linux}\n\tinitrd /boot/initrd.img-{RELEASE}\n}}\n"))
        .file(&format!("{modules}/modules.builtin"), "kernel/drivers/virtio/virtio_pci.ko\n")
        .file(
            &format!("{modules}/modules.dep"),
            "kernel/drivers/net/virtio_net.ko: kernel/net/core/failover.ko\nkernel/drivers/block/virtio_blk.ko:\n",
        );
}

/// The first sector of a disk that a BIOS starts from.
pub fn boot_sector() -> [u8; 512] {
    let mut sector = [0; 512];
    sector[0] = 0xeb;
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Names in an initramfs that has all drivers for disks of this release.
pub fn drivers(release: &str) -> Vec<String> {
    let files = [
        "block/virtio_blk.ko",
        "scsi/virtio_scsi.ko.xz",
        "nvme/host/nvme.ko",
        "virtio/virtio-pci.ko",
    ];
    let files = files
        .iter()
        .map(|file| format!("usr/lib/modules/{release}/kernel/drivers/{file}"));
    ["init".to_owned(), "bin/busybox".to_owned()]
        .into_iter()
        .chain(files)
        .collect()
}

/// A cpio archive of the kernel's format with files of these names, some with content.
pub fn archive<T: AsRef<str>>(names: &[T]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, name) in names.iter().enumerate() {
        entry(&mut bytes, name.as_ref().as_bytes(), &vec![0xa5; index * 37]);
    }
    entry(&mut bytes, b"TRAILER!!!", &[]);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

pub fn entry(bytes: &mut Vec<u8>, name: &[u8], content: &[u8]) {
    // ino, mode, uid, gid, nlink, mtime, filesize, four device numbers, namesize, checksum
    let numbers = [
        1,
        0o100_644,
        0,
        0,
        1,
        0,
        content.len(),
        0,
        0,
        0,
        0,
        name.len() + 1,
        0,
    ];
    let header: String = numbers.iter().map(|number| format!("{number:08x}")).collect();
    bytes.extend_from_slice(b"070701");
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(name);
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// What a program makes of `bytes`.
pub fn packed(program: &str, args: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} does not run ({error}): make setup installs it"));
    let mut stdin = child.stdin.take().expect("a pipe");
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic").expect("all is written");
    assert!(output.status.success(), "{program} failed");
    output.stdout
}
