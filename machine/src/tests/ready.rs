//! A machine that needs no repair, and a finding for each thing that is wrong.

use api::Level::{self, Critical, Ok, Warning};
use nix::errno::Errno;

use super::fake::{RELEASE, Tree, archive, drivers, packed, ready};

/// One thing done to the ready machine, and the line that must tell it.
type Context = (fn(&mut Tree) -> &mut Tree, &'static str, Level, &'static str);

#[track_caller]
fn check_all(cases: &[Context]) {
    for (change, id, level, words) in cases {
        let mut tree = ready();
        change(&mut tree);
        tree.expect(id, *level, words);
    }
}

#[test]
fn a_ready_machine_has_only_good_lines() {
    let found = ready().examine();
    assert_eq!(found.worst(), Ok, "{found:#?}");
    let ids: Vec<&str> = found.checks.iter().map(|check| check.id.as_str()).collect();
    let expected = [
        "privileges",
        "container",
        "architecture",
        "kernel",
        "io_uring",
        "bpf",
        "disk",
        "volumes",
        "mounts_outside",
        "network_mounts",
        "freeze",
        "boot_mode",
        "boot_sector",
        "boot_loader",
        "boot_root",
        "kernel_image",
        "boot_space",
        "initramfs_virtio",
        "virtio_net",
        "fstab",
        "network_config",
        "clock",
        "hardware_clock",
        "security_module",
    ];
    assert_eq!(ids, expected);
    assert!(found.checks.iter().all(|check| check.advice.is_none()));
}

#[test]
fn what_smcd_needs_of_the_kernel() {
    fn status(tree: &mut Tree) -> &mut Tree {
        tree.file("/proc/self/status", "CapEff:\t0000000000000004\n")
    }
    fn disabled(tree: &mut Tree) -> &mut Tree {
        tree.answer(|a| a.io_uring = Err(Errno::EPERM))
            .file("/proc/sys/kernel/io_uring_disabled", "2\n")
    }
    check_all(&[
        (
            |t| t.answer(|a| a.effective_uid = 1000),
            "privileges",
            Critical,
            "user 1000",
        ),
        (status, "privileges", Critical, "CAP_SYS_ADMIN"),
        (
            |t| t.file("/run/systemd/container", "lxc"),
            "container",
            Warning,
            "/run/systemd/container",
        ),
        (
            |t| t.answer(|a| a.architecture = "i686".into()),
            "architecture",
            Warning,
            "i686",
        ),
        (
            |t| t.answer(|a| a.architecture = "aarch64".into()),
            "architecture",
            Ok,
            "aarch64",
        ),
        (
            |t| t.file("/proc/sys/kernel/osrelease", "5.4.0-1"),
            "kernel",
            Warning,
            "too old to track",
        ),
        (
            |t| t.remove("/proc/sys/kernel/osrelease"),
            "kernel",
            Warning,
            "could not be read",
        ),
        (disabled, "io_uring", Warning, "kernel.io_uring_disabled is 2"),
        (
            |t| t.answer(|a| a.io_uring = Err(Errno::ENOSYS)),
            "io_uring",
            Warning,
            "CONFIG_IO_URING",
        ),
        (
            |t| t.answer(|a| a.io_uring = Err(Errno::ENOMEM)),
            "io_uring",
            Warning,
            "ulimit",
        ),
        (
            |t| t.answer(|a| a.io_uring = Err(Errno::EPERM)),
            "io_uring",
            Warning,
            "sandbox",
        ),
        (
            |t| t.answer(|a| a.bpf = Err(Errno::ENOSYS)),
            "bpf",
            Warning,
            "CONFIG_BPF_SYSCALL",
        ),
        (|t| t.remove("/sys/kernel/btf/vmlinux"), "bpf", Warning, "no BTF"),
        (
            |t| t.file("/proc/1/mountinfo", "21 1 254:2 / / rw - ext4 /dev/vda2 rw\n"),
            "bpf",
            Warning,
            "mount -t bpf bpf /sys/fs/bpf",
        ),
        (
            |t| {
                t.file(
                    "/sys/kernel/security/lockdown",
                    "none integrity [confidentiality]\n",
                )
            },
            "bpf",
            Warning,
            "locked down",
        ),
        (
            |t| t.file("/sys/fs/selinux/enforce", "1"),
            "security_module",
            Ok,
            "SELinux is enforcing",
        ),
        (
            |t| t.file("/sys/fs/selinux/enforce", "0"),
            "security_module",
            Ok,
            "permissive",
        ),
    ]);
}

#[test]
fn clocks() {
    check_all(&[
        (
            |t| t.answer(|a| a.clock_synchronized = Some(false)),
            "clock",
            Warning,
            "not synchronized",
        ),
        (
            |t| t.answer(|a| a.clock_synchronized = None),
            "clock",
            Warning,
            "could not be determined",
        ),
        (
            |t| t.file("/etc/adjtime", "0\n0\nLOCAL\n"),
            "hardware_clock",
            Warning,
            "set-local-rtc 0",
        ),
        (|t| t.remove("/etc/adjtime"), "hardware_clock", Ok, "UTC"),
    ]);
}

#[test]
fn names_in_fstab() {
    fn line<'a>(tree: &'a mut Tree, line: &str) -> &'a mut Tree {
        tree.file("/etc/fstab", format!("{line}\n"))
    }
    check_all(&[
        (
            |t| line(t, "/dev/sda1 / ext4 defaults 0 1"),
            "fstab",
            Critical,
            "names /dev/sda1 for /,",
        ),
        (
            |t| line(t, "/dev/nvme0n1p2 /data xfs defaults 0 0"),
            "fstab",
            Critical,
            "/data",
        ),
        (
            |t| line(t, "/dev/sdb1 /data xfs nofail,noatime 0 0"),
            "fstab",
            Warning,
            "/dev/sdb1",
        ),
        (
            |t| line(t, "/dev/sda2 none swap sw 0 0"),
            "fstab",
            Warning,
            "/dev/sda2 for swap",
        ),
        (
            |t| line(t, "/dev/vda2 / ext4 defaults 0 1"),
            "fstab",
            Warning,
            "write UUID=6e0b-root instead",
        ),
        (|t| line(t, "/dev/sda1 /a\\040b ext4"), "fstab", Critical, "/a b"),
        (
            |t| line(t, "/dev/disk/by-path/pci-0 /x ext4"),
            "fstab",
            Critical,
            "blkid -s UUID -o value /dev/disk/by-path",
        ),
        (
            |t| line(t, "UUID=\"6e0b-root\" / ext4\nLABEL=x /x\n/dev/mapper/a-b /y"),
            "fstab",
            Ok,
            "stored on them",
        ),
        (|t| t.remove("/etc/fstab"), "fstab", Ok, "no /etc/fstab"),
        (
            |t| t.remove("/etc/fstab").directory("/etc/fstab"),
            "fstab",
            Warning,
            "is not a regular file",
        ),
        (
            |t| t.file("/etc/crypttab", "c /dev/sda3 none luks\n"),
            "crypttab",
            Critical,
            "/dev/sda3 for c",
        ),
        (
            |t| t.file("/etc/crypttab", "c /dev/sda3 - nofail\n"),
            "crypttab",
            Warning,
            "/dev/sda3",
        ),
        (
            |t| t.file("/etc/crypttab", "#x\nc UUID=6e0b-root none luks\n"),
            "crypttab",
            Ok,
            "stored on them",
        ),
        (
            |t| {
                t.file(
                    "/etc/systemd/system/data.mount",
                    "[Mount]\nWhat=/dev/sdb1\nWhere=/data\n",
                )
            },
            "mount_units",
            Warning,
            "data.mount names /dev/sdb1",
        ),
    ]);
}

#[test]
fn a_table_of_a_thousand_wrong_mounts_needs_no_thousand_lines() {
    let mut tree = ready();
    let lines: String = (0..1000)
        .map(|n| format!("/dev/sda{n} /m{n} ext4 nofail\n"))
        .collect();
    tree.file("/etc/fstab", lines + "/dev/sdb /last ext4 defaults\n");
    let lines = tree.lines("fstab");
    assert_eq!(lines.len(), 22);
    assert_eq!(
        (lines[20].level, lines[20].found.as_str()),
        (Warning, "980 more lines like these")
    );
    assert_eq!(lines[21].level, Critical, "what is worse is not left off");
}

#[test]
fn how_the_kernel_finds_its_root() {
    const CFG: &str = "/boot/grub/grub.cfg";
    check_all(&[
        (
            |t| t.edit(CFG, "UUID=6e0b-root", "/dev/sda1"),
            "boot_root",
            Critical,
            "grub.cfg has root=/dev/sda1",
        ),
        (
            |t| t.edit(CFG, "UUID=6e0b-root", "/dev/vda2"),
            "boot_root",
            Warning,
            "write UUID=6e0b-root",
        ),
        (
            |t| t.edit(CFG, " quiet", " resume=/dev/sda3"),
            "boot_root",
            Warning,
            "resume=/dev/sda3",
        ),
        (
            |t| t.edit(CFG, "root=UUID=6e0b-root", ""),
            "boot_root",
            Ok,
            "no command line",
        ),
        (
            |t| {
                t.file(
                    "/boot/grub2/grubenv",
                    "# GRUB\nkernelopts=root=/dev/sda1 ro\n####",
                )
            },
            "boot_root",
            Critical,
            "grubenv has root=/dev/sda1",
        ),
        (
            |t| t.file("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"root=/dev/xvda1 x\"\n"),
            "boot_root",
            Critical,
            "/etc/default/grub has root=/dev/xvda1",
        ),
        (
            |t| t.file("/etc/default/grub", "#GRUB_CMDLINE_LINUX=root=/dev/xvda1\n"),
            "boot_root",
            Ok,
            "UUID=6e0b-root",
        ),
        (
            |t| {
                t.file(
                    "/boot/loader/entries/a.conf",
                    "linux /vmlinuz-6.1\noptions root=/dev/sda2\n",
                )
            },
            "boot_root",
            Critical,
            "a.conf has root=/dev/sda2",
        ),
        (
            |t| t.remove(CFG).file("/proc/cmdline", "root=/dev/sda1"),
            "boot_root",
            Critical,
            "the running kernel's command line has root=/dev/sda1",
        ),
        (|t| t.remove(CFG), "boot_loader", Warning, "no configuration"),
        (
            |t| t.file("/boot/loader/entries/a.conf", "linux /vmlinuz-6.1\n"),
            "boot_loader",
            Ok,
            "GRUB 2 (/boot/grub/grub.cfg), boot loader entries (/boot/loader/entries)",
        ),
        (
            |t| t.file("/etc/default/grub", "GRUB_DISABLE_LINUX_UUID=\"true\"\n"),
            "grub_default",
            Warning,
            "update-grub",
        ),
        (
            |t| {
                t.file(
                    "/boot/grub/device.map",
                    "(hd0)\t/dev/sda\n(hd1) /dev/disk/by-id/lvm-pv-x\n",
                )
            },
            "grub_device_map",
            Warning,
            "names /dev/sda, which",
        ),
    ]);
}

#[test]
fn kernels_and_room_for_them() {
    const NEW: &str = "6.1.0-21-amd64";
    check_all(&[
        (
            |t| t.remove("/boot/grub").remove(&format!("/boot/vmlinuz-{RELEASE}")),
            "kernel_image",
            Critical,
            "no kernel in /boot",
        ),
        (
            |t| t.remove("/boot").file("/etc/fstab", "UUID=1 /boot ext4\n"),
            "kernel_image",
            Critical,
            "mount /boot",
        ),
        (
            |t| t.file("/proc/sys/kernel/osrelease", "6.1.0-17-amd64"),
            "kernel_image",
            Warning,
            "will start another one (6.1.0-18-amd64)",
        ),
        (
            |t| t.file(&format!("/boot/vmlinuz-{NEW}"), "MZ"),
            "initramfs_virtio",
            Critical,
            "Linux 6.1.0-21-amd64 does not have virtio_pci, virtio_blk built in, and no initramfs",
        ),
        (
            |t| t.space(1, 1 << 20),
            "boot_space",
            Warning,
            "1 MiB free; a new initramfs needs 64 MiB",
        ),
        (
            |t| t.answer(|a| a.space = Box::new(|_| None)),
            "boot_space",
            Warning,
            "could not be determined",
        ),
    ]);
}

#[test]
fn drivers_at_boot() {
    const IMAGE: &str = "/boot/initrd.img-6.1.0-18-amd64";
    fn lacking<'a>(tree: &'a mut Tree, driver: &str) -> &'a mut Tree {
        let mut names = drivers(RELEASE);
        names.retain(|name| !name.contains(driver));
        tree.file(IMAGE, archive(&names))
    }
    check_all(&[
        (
            |t| t,
            "initramfs_virtio",
            Ok,
            "(/boot/initrd.img-6.1.0-18-amd64) has the drivers virtio_blk, virtio_scsi, nvme",
        ),
        (
            |t| lacking(t, "virtio_blk"),
            "initramfs_virtio",
            Critical,
            "lacks virtio_blk: the copy would find no virtio disk | printf '%s\\n' virtio_blk >> \
             /etc/initramfs-tools/modules && update-initramfs -u -k 6.1.0-18-amd64",
        ),
        (
            |t| {
                lacking(t, "virtio_blk")
                    .remove("/usr/sbin/update-initramfs")
                    .file("/usr/bin/dracut", "")
            },
            "initramfs_virtio",
            Critical,
            "dracut -f /boot/initrd.img-6.1.0-18-amd64 6.1.0-18-amd64",
        ),
        (
            |t| {
                lacking(t, "virtio_blk")
                    .remove("/usr/sbin/update-initramfs")
                    .file("/usr/bin/mkinitcpio", "")
            },
            "initramfs_virtio",
            Critical,
            "mkinitcpio -P",
        ),
        (
            |t| lacking(t, "virtio_blk").file("/lib/modules/6.1.0-18-amd64/modules.dep", "kernel/x.ko:\n"),
            "initramfs_virtio",
            Critical,
            "install a kernel that has virtio_blk",
        ),
        (
            |t| lacking(t, "nvme"),
            "initramfs_virtio",
            Warning,
            "but not nvme",
        ),
        (
            |t| lacking(t, "virtio_scsi"),
            "initramfs_virtio",
            Warning,
            "but not virtio_scsi",
        ),
        (
            |t| t.file("/lib/modules/6.1.0-18-amd64/modules.builtin", ""),
            "initramfs_virtio",
            Ok,
            "virtio_pci, virtio_blk, virtio_scsi, nvme",
        ),
        (
            |t| {
                let config = "CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_PCI_LEGACY=y\nCONFIG_VIRTIO_BLK=y\n";
                t.file("/boot/config-6.1.0-18-amd64", config).remove(IMAGE)
            },
            "initramfs_virtio",
            Ok,
            "built in, and no initramfs",
        ),
        (
            |t| t.remove(IMAGE),
            "initramfs_virtio",
            Critical,
            "no initramfs was found",
        ),
        (
            |t| t.remove(IMAGE).directory("/boot/efi/EFI/Linux"),
            "initramfs_virtio",
            Warning,
            "unified kernel images in /boot/efi/EFI/Linux",
        ),
        (
            |t| t.file(IMAGE, "no archive"),
            "initramfs_virtio",
            Warning,
            "could not be determined: it is damaged",
        ),
        (
            |t| t.file("/lib/modules/6.1.0-18-amd64/modules.dep", "kernel/e1000.ko:\n"),
            "virtio_net",
            Critical,
            "no driver virtio_net",
        ),
        (
            |t| t.remove("/lib/modules/6.1.0-18-amd64/modules.dep"),
            "virtio_net",
            Warning,
            "depmod",
        ),
        (
            |t| t.directory("/sys/module/virtio_net"),
            "virtio_net",
            Ok,
            "built in",
        ),
        (
            |t| t.file("/sys/module/virtio_net/initstate", "live"),
            "virtio_net",
            Ok,
            "has the module",
        ),
    ]);
}

#[test]
fn the_initramfs_is_found_where_the_boot_loader_or_the_distribution_has_it() {
    const IMAGE: &str = "/boot/initrd.img-6.1.0-18-amd64";
    let image = packed("gzip", &["-c"], &archive(&drivers(RELEASE)));
    // What the boot loader is told, and where the file then is.
    let cases = [
        ("(hd0,gpt2)/other.img", "/boot/other.img"),
        ("/@/boot/other.img", "/boot/other.img"),
        ("../other.img", "/boot/other.img"),
        ("/0123/other.img", "/boot/efi/0123/other.img"),
        ("$variable", "/boot/initramfs-6.1.0-18-amd64.img"),
        ("$variable", "/boot/initrd-6.1.0-18-amd64"),
        ("$variable", "/lib/modules/6.1.0-18-amd64/initramfs.img"),
        (
            "$variable",
            "/boot/0123456789abcdef0123456789abcdef/6.1.0-18-amd64/initrd",
        ),
    ];
    for (told, path) in cases {
        let mut tree = ready();
        tree.remove(IMAGE)
            .edit("/boot/grub/grub.cfg", IMAGE, told)
            .file(path, &image);
        tree.file("/etc/machine-id", "0123456789abcdef0123456789abcdef\n");
        tree.expect("initramfs_virtio", Ok, path);
    }
}

#[test]
fn kernels_may_be_named_by_their_package() {
    let mut tree = ready();
    tree.remove("/boot")
        .remove("/lib")
        .file("/proc/sys/kernel/osrelease", "6.8.9-arch1-2");
    tree.file("/lib/modules/6.8.9-arch1-2/pkgbase", "linux\n")
        .file("/lib/modules/6.8.9-arch1-2/modules.dep", "kernel/virtio_net.ko.zst:\n")
        .file("/boot/vmlinuz-linux", "MZ")
        .file("/boot/intel-ucode.img", archive(&["kernel/x86/microcode/GenuineIntel.bin"]))
        .file("/boot/initramfs-linux.img", archive(&drivers("6.8.9-arch1-2")))
        .file(
            "/boot/loader/entries/arch.conf",
            "linux /vmlinuz-linux\ninitrd /intel-ucode.img\ninitrd /initramfs-linux.img\noptions root=LABEL=x\n",
        );
    let found = tree.examine();
    assert_eq!(found.worst(), Ok, "{found:#?}");
    tree.expect(
        "initramfs_virtio",
        Ok,
        "Linux linux (/boot/intel-ucode.img, /boot/initramfs-linux.img)",
    );
}

#[test]
fn a_uuid_that_nothing_has_stops_the_boot() {
    let mut tree = ready();
    tree.edit("/etc/fstab", "UUID=6e0b-root /", "UUID=0bad /").edit(
        "/boot/grub/grub.cfg",
        "UUID=6e0b-root",
        "UUID=0bad",
    );
    tree.expect("fstab", Critical, "no device here has this UUID");
    tree.expect("boot_root", Critical, "would not find its root");
    // It may be in what nobody has opened.
    tree.udev("254:1", "ID_FS_TYPE=crypto_LUKS ID_FS_UUID=6e0b-luks");
    tree.expect("fstab", Ok, "by identifiers");
    tree.expect("boot_root", Ok, "by UUID=0bad");
}

#[test]
fn labels_and_partitions_that_nothing_has_stop_the_boot() {
    let named = |name: &str| {
        let mut tree = ready();
        tree.udev(
            "254:2",
            "ID_FS_TYPE=ext4 ID_FS_UUID=6e0b-root ID_FS_LABEL_ENC=my\\x20root ID_PART_ENTRY_UUID=0a-02 ID_PART_ENTRY_NAME=sys",
        );
        tree.edit("/etc/fstab", "UUID=6e0b-root /", &format!("{name} /"));
        tree.edit(
            "/boot/grub/grub.cfg",
            "root=UUID=6e0b-root",
            &format!("root={name}"),
        );
        tree
    };
    for right in [
        "LABEL=my\\x20root",
        "PARTUUID=0A-02",
        "PARTLABEL=sys",
        "/dev/disk/by-label/my\\x20root",
        "/dev/disk/by-partuuid/0a-02",
    ] {
        let tree = named(right);
        tree.expect("fstab", Ok, "by identifiers");
        tree.expect("boot_root", Ok, "finds its root");
    }
    for (wrong, kind) in [
        ("LABEL=root", "this label"),
        ("PARTUUID=0a-03", "this partition UUID"),
        ("PARTLABEL=other", "this partition label"),
    ] {
        let mut tree = named(wrong);
        tree.expect("fstab", Critical, kind);
        tree.expect("boot_root", Critical, kind);
        // A label may be in what nobody has opened; a partition is not.
        tree.udev("254:1", "ID_FS_TYPE=crypto_LUKS ID_FS_UUID=6e0b-luks");
        let level = if kind == "this label" { Ok } else { Critical };
        tree.expect("boot_root", level, "");
    }
}

#[test]
fn a_root_without_init_room_or_health() {
    check_all(&[
        (
            |t| t.remove("/sbin/init"),
            "init",
            Critical,
            "find nothing to start | install the package",
        ),
        (
            |t| t.edit("/boot/grub/grub.cfg", " quiet", " init=/opt/start"),
            "init",
            Critical,
            "/opt/start, which does not exist",
        ),
        (|t| t.space(1 << 30, 0), "root_space", Critical, "is full"),
        (
            |t| t.space(1 << 30, 1 << 20),
            "root_space",
            Warning,
            "has only 1 MiB free",
        ),
        (
            |t| t.answer(|a| a.space = Box::new(|_| None)),
            "root_space",
            Warning,
            "could not be determined",
        ),
        (
            |t| t.file("/sys/fs/ext4/vda2/errors_count", "3\n"),
            "filesystem_errors",
            Warning,
            "the ext4 filesystem of / (vda2) has errors, 3 of which",
        ),
    ]);
}

#[test]
fn a_kernel_that_is_not_what_was_installed() {
    const LIST: &str = "/var/lib/dpkg/info/linux-image-6.1.0-18-amd64.md5sums";
    let mut tree = ready();
    let kernel = format!("/boot/vmlinuz-{RELEASE}");
    tree.file(LIST, format!("{}  boot/vmlinuz-{RELEASE}\n", "0".repeat(32)));
    tree.expect("kernel_image", Critical, "is not what its package has installed");
    let sum = std::process::Command::new("md5sum")
        .arg(tree.path(&kernel))
        .output()
        .expect("md5sum");
    let sum = String::from_utf8(sum.stdout).expect("text")[..32].to_owned();
    tree.file(
        LIST,
        format!("{sum}  boot/vmlinuz-{RELEASE}\n{sum}  boot/config-{RELEASE}\n"),
    );
    assert_eq!(tree.examine().worst(), Ok);
    let mut cut = vec![0; 1024];
    cut[0x1f4] = 200;
    cut[0x202..0x206].copy_from_slice(b"HdrS");
    tree.file(&kernel, cut);
    tree.expect("kernel_image", Critical, "is shorter than its header says");
}
