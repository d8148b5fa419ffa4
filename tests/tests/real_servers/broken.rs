//! A server on a plain disk, broken in ways that happen to servers: what a boot check says is the cause, and `inspect` has seen it
//! before.

use super::{Source, TIMEOUT, console};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::guard::MountedFile;
use testkit::process::run;
use vm_tests::server::{Layout, ROOT_ID, hide_loader, make_initramfs, remove_loaders, root_partition};
use vm_tests::system::Release;

const WRONG_ID: &str = "0bad0bad-0000-4000-8000-000000000000";

/// What is done to the server.
enum Break {
    /// To the files of its root.
    Files(fn(&Path) -> Result<()>),
    /// To its disk.
    Disk(fn(&Path) -> Result<()>),
}

/// What is broken, and what is said of it.
struct Case {
    name: &'static str,
    change: Break,
    /// What a check waits for.
    check: &'static str,
    /// The problem's name, and a word of what the verdict says.
    problem: (&'static str, &'static str),
    /// How one of the findings of `inspect` begins.
    finding: &'static str,
}

const CASES: [Case; 11] = [
    Case {
        name: "no virtio in the initramfs",
        change: Break::Files(without_virtio),
        check: "--check",
        problem: ("initramfs-shell", ROOT_ID),
        finding: "critical initramfs_virtio: the initramfs of Linux",
    },
    Case {
        name: "a filesystem by the name of a SCSI disk",
        change: Break::Files(|root| {
            append(
                root,
                "etc/fstab",
                "/dev/sda1 /srv ext4 defaults,x-systemd.device-timeout=5s 0 2\n",
            )
        }),
        check: "--check",
        problem: ("emergency-mode", "/dev/sda1"),
        finding: "critical fstab: /etc/fstab names /dev/sda1 for /srv",
    },
    Case {
        name: "no GRUB in /boot",
        change: Break::Files(|root| Ok(fs::remove_dir_all(root.join("boot/grub"))?)),
        check: "--check",
        problem: ("grub-rescue", "GRUB does not find its own files"),
        finding: "critical boot_loader: the boot sector of vda starts GRUB",
    },
    Case {
        name: "no boot code",
        // The table of partitions stays.
        change: Break::Disk(|disk| write_zeros(disk, 0, 440)),
        check: "--check",
        problem: ("no-bootable-device", "no disk to boot from"),
        finding: "critical boot_sector: none of the chosen disks has boot code",
    },
    Case {
        name: "a wrong UUID of the root",
        change: Break::Files(|root| {
            let file = root.join("boot/grub/grub.cfg");
            let text = fs::read_to_string(&file)?;
            Ok(fs::write(
                &file,
                text.replace(&format!("root=UUID={ROOT_ID}"), &format!("root=UUID={WRONG_ID}")),
            )?)
        }),
        check: "--check",
        problem: ("initramfs-shell", WRONG_ID),
        finding: "critical boot_root: /boot/grub/grub.cfg has root=UUID=0bad0bad",
    },
    Case {
        name: "a damaged kernel",
        change: Break::Files(|root| {
            let file = File::options().write(true).open(kernel_of(root)?)?;
            Ok(file.write_all_at(&vec![0xa5; 2 << 20], 3 << 20)?)
        }),
        check: "--check",
        problem: ("kernel-silent", "the kernel has written nothing"),
        finding: "critical kernel_image: /boot/vmlinuz-",
    },
    Case {
        name: "a full root",
        change: Break::Files(fill),
        check: "--check-systemd",
        problem: ("filesystem-full", "no space left"),
        finding: "critical root_space: the root filesystem is full",
    },
    Case {
        name: "a missing initramfs",
        change: Break::Files(|root| Ok(fs::remove_file(initramfs_of(root)?)?)),
        check: "--check",
        problem: ("kernel-not-loaded", "initrd.img"),
        finding: "critical initramfs_virtio: Linux ",
    },
    Case {
        name: "an encrypted volume with a wrong UUID",
        change: Break::Files(|root| {
            append(root, "etc/crypttab", &format!("data UUID={WRONG_ID} none luks\n"))?;
            append(
                root,
                "etc/fstab",
                "/dev/mapper/data /srv ext4 defaults,x-systemd.device-timeout=5s 0 2\n",
            )
        }),
        check: "--check",
        problem: ("emergency-mode", "/dev/mapper/data"),
        finding: "critical crypttab: /etc/crypttab names UUID=0bad0bad",
    },
    Case {
        name: "a damaged root filesystem",
        change: Break::Disk(damage_root),
        check: "--check",
        problem: ("root-damaged", "must be repaired by hand"),
        finding: "warning filesystem_errors: the ext4 filesystem of / (vda2) has errors",
    },
    Case {
        name: "no init",
        change: Break::Files(|root| Ok(fs::remove_file(root.join("sbin/init"))?)),
        check: "--check",
        problem: ("no-init", "no init on the root filesystem"),
        finding: "critical init: there is no /sbin/init",
    },
];

fn append(root: &Path, name: &str, line: &str) -> Result<()> {
    let mut file = File::options().append(true).create(true).open(root.join(name))?;
    Ok(file.write_all(line.as_bytes())?)
}

fn write_zeros(disk: &Path, offset: u64, length: usize) -> Result<()> {
    let file = File::options().write(true).open(disk)?;
    Ok(file.write_all_at(&vec![0; length], offset)?)
}

/// The file in /boot whose name begins so.
fn in_boot(root: &Path, start: &str) -> Result<PathBuf> {
    let mut names = fs::read_dir(root.join("boot"))?
        .flatten()
        .map(|entry| entry.path());
    let is_meant = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(start))
    };
    names
        .find(is_meant)
        .with_context(|| format!("no {start} in /boot"))
}

fn kernel_of(root: &Path) -> Result<PathBuf> {
    in_boot(root, "vmlinuz-")
}

fn initramfs_of(root: &Path) -> Result<PathBuf> {
    in_boot(root, "initrd.img-")
}

/// As initramfs-tools makes it if it is to have only what is listed, and virtio is not.
fn without_virtio(root: &Path) -> Result<()> {
    fs::write(root.join("etc/initramfs-tools/conf.d/modules"), "MODULES=list\n")?;
    fs::write(root.join("etc/initramfs-tools/modules"), "ext4\nahci\nsd_mod\n")?;
    Ok(make_initramfs(root)?)
}

/// To the last block, also of those that are kept for root.
fn fill(root: &Path) -> Result<()> {
    let mut file = File::create(root.join("var/log/full"))?;
    for size in [1 << 20, 4096] {
        while file.write_all(&vec![0xa5; size]).is_ok() {
            file.seek(SeekFrom::End(0))?;
        }
    }
    // What is left are parts of blocks, and room in directories.
    let _ = file.sync_all();
    Ok(())
}

/// Directories that the root directory leads to are gone, and the kernel has noticed something.
fn damage_root(disk: &Path) -> Result<()> {
    let partition = root_partition(disk)?;
    let commands = [
        "clri /usr/bin",
        "clri /var",
        "set_super_value state 2",
        "set_super_value error_count 3",
    ];
    for command in commands {
        run(Command::new("debugfs")
            .args(["-w", "-R", command])
            .arg(partition.path()))?;
    }
    Ok(partition.detach()?)
}

impl Source {
    fn mount(&self) -> Result<MountedFile> {
        let partition = root_partition(&self.server.disks()[0])?;
        let flags = nix::mount::MsFlags::empty();
        Ok(MountedFile::new(
            partition,
            &self.bench.dir.join("root"),
            "ext4",
            flags,
        )?)
    }

    /// Breaks it, images it, and puts the disk back as it was.
    fn image_broken(&self, good: &Path, change: &Break) -> Result<()> {
        let disk = &self.server.disks()[0];
        run(Command::new("cp").arg("--sparse=always").arg(good).arg(disk))?;
        match change {
            Break::Disk(change) => change(disk)?,
            Break::Files(change) => {
                let root = self.mount()?;
                change(root.path())?;
                root.unmount()?;
            }
        }
        self.sync()
    }

    fn names_the_cause(&self, case: &Case) -> Result<()> {
        let found = self.findings("web01/latest")?;
        ensure!(
            found.iter().any(|line| line.starts_with(case.finding)),
            "{}: inspect: {found:#?}",
            case.name
        );
        // Where nothing more is written, the check waits until its end.
        let is_silent = ["no-bootable-device", "kernel-silent"].contains(&case.problem.0);
        let timeout = if is_silent { "5min" } else { TIMEOUT };
        let verdict = self.check_within("web01/latest", case.check, timeout)?;
        let (problem, word) = case.problem;
        let what = format!("{} {}", verdict["problem"]["what"], verdict["problem"]["line"]);
        let is_right = verdict["problem"]["name"] == problem && what.contains(word);
        ensure!(is_right, "{}: {verdict:#}\n{}", case.name, console(&verdict));
        Ok(())
    }
}

#[test]
#[ignore = "takes minutes: make vm-test"]
fn what_keeps_a_server_from_booting_is_named_with_a_boot_and_without() -> Result<()> {
    let source = Source::new("broken-server", Release::Own, Layout::Ext4)?;
    let good = source.bench.dir.join("good");
    let disk = &source.server.disks()[0];
    run(Command::new("cp").arg("--sparse=always").arg(disk).arg(&good))?;
    let only = std::env::var("SMC_CASES").unwrap_or_default();
    let mut wrong = Vec::new();
    for case in CASES.iter().filter(|case| case.name.contains(&only)) {
        source
            .image_broken(&good, &case.change)
            .with_context(|| case.name)?;
        println!("{}:", case.name);
        if let Err(error) = source.names_the_cause(case) {
            println!("{error:#}");
            wrong.push(case.name);
        }
    }
    ensure!(wrong.is_empty(), "not named: {wrong:?}");
    Ok(())
}

/// The loader is where only the source's firmware finds it, and then nowhere.
#[test]
#[ignore = "takes minutes: make vm-test"]
fn a_loader_that_only_the_firmware_knew_is_missed() -> Result<()> {
    let source = Source::new("broken-uefi", Release::Own, Layout::Uefi)?;
    let disk = &source.server.disks()[0];
    type Damage = fn(&Path) -> testkit::Result<()>;
    let cases: [(Damage, &str); 2] = [
        (
            hide_loader,
            "warning efi_fallback: /boot/efi/EFI/BOOT/BOOTX64.EFI is missing",
        ),
        (
            remove_loaders,
            "critical efi_fallback: there is no boot loader on the EFI system partition",
        ),
    ];
    for (damage, finding) in cases {
        damage(disk)?;
        source.sync()?;
        let found = source.findings("web01/latest")?;
        ensure!(
            found.iter().any(|line| line.starts_with(finding)),
            "inspect: {found:#?}"
        );
        let verdict = source.check("web01/latest", "--check")?;
        ensure!(verdict["problem"]["name"] == "no-uefi-loader", "{verdict:#}");
    }
    Ok(())
}
