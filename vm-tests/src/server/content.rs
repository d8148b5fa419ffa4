//! A server's filesystems, before they are on its disks: the installed files, the settings of its layout, and an initramfs that the
//! server's own programs make.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::MsFlags;
use testkit::error::IoContext;
use testkit::guard::{LoopDevice, MountedFile};
use testkit::{Result, process};

use super::{
    BOOT_ID, BOOT_MIB, COUNTED, ESP_MIB, FIRST_END, LUKS_ID, Layout, MIB, ROOT_ID, SAVED, copy_disk,
};

/// Size of the root filesystem.
pub(super) const ROOT_MIB: u64 = 1536;
/// The id of the EFI system partition's filesystem.
const ESP_ID: &str = "5DC0-0B00";
const UNIT: &str = "/etc/systemd/system/smc-counter.service";
const COUNTER: &str = "/usr/local/sbin/smc-counter";

/// Files that hold a filesystem each.
pub(super) struct Content {
    /// The root.
    pub root: PathBuf,
    /// /boot, where it is a filesystem of its own.
    boot: Option<PathBuf>,
}

/// A file of a server: where it is, its content, whether it is a program.
pub(super) type Setting = (&'static str, String, bool);

/// What makes the installed files a server of this layout.
pub(super) fn settings(layout: Layout) -> Vec<Setting> {
    let mut fstab = match layout {
        Layout::Lvm => "/dev/mapper/vg0-root / ext4 errors=remount-ro 0 1\n".to_owned(),
        Layout::Luks => "/dev/mapper/crypt / ext4 errors=remount-ro 0 1\n".to_owned(),
        Layout::Xfs => format!("UUID={ROOT_ID} / xfs defaults 0 0\n"),
        Layout::Btrfs => format!("UUID={ROOT_ID} / btrfs defaults,subvol=@rootfs 0 0\n"),
        Layout::Ext4 | Layout::Uefi => format!("UUID={ROOT_ID} / ext4 errors=remount-ro 0 1\n"),
    };
    if layout.has_boot() {
        fstab += &format!("UUID={BOOT_ID} /boot ext4 defaults 0 2\n");
    }
    if layout == Layout::Uefi {
        fstab += &format!("UUID={ESP_ID} /boot/efi vfat umask=0077 0 1\n");
    }
    let grub = "GRUB_DEFAULT=0\nGRUB_TIMEOUT=0\nGRUB_CMDLINE_LINUX=\"console=tty0 console=ttyS0,115200\"\n\
        GRUB_TERMINAL=serial\nGRUB_SERIAL_COMMAND=\"serial --speed=115200\"\n";
    // The number of boots so far is on the disk before anybody can log in, and above the login prompt.
    let counter = format!(
        "#!/bin/sh\ncd /var/lib || exit 1\nfound=$(cat smc-count 2>/dev/null || echo 0)\n\
         echo \"{COUNTED}$found\" | tee /etc/issue.d/smc.issue >/dev/ttyS0\n\
         echo $((found + 1)) >smc-count.new && sync smc-count.new && mv smc-count.new smc-count && sync . &&\n\
         echo {SAVED} >/dev/ttyS0\n"
    );
    // A device appears late where the processor is translated and has other work.
    let patience = "[Manager]\nDefaultTimeoutStartSec=15min\nDefaultDeviceTimeoutSec=15min\n";
    let unit = format!(
        "[Unit]\nDescription=Number of boots\nBefore=serial-getty@ttyS0.service\n\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={COUNTER}\n\n[Install]\nWantedBy=multi-user.target\n"
    );
    // lz4 is fast to unpack for a translated processor. The type cannot be found out here, where the root is not yet on its disk;
    // without it there would be no fsck.
    let kind = match layout {
        Layout::Xfs => "xfs",
        Layout::Btrfs => "btrfs",
        _ => "ext4",
    };
    let pack = format!("COMPRESS=lz4\nFSTYPE={kind}\n");
    let mut settings = vec![
        ("/etc/fstab", fstab, false),
        ("/etc/hostname", "web01\n".to_owned(), false),
        ("/etc/default/grub", grub.to_owned(), false),
        ("/etc/initramfs-tools/conf.d/pack", pack, false),
        (
            "/etc/systemd/system.conf.d/patience.conf",
            patience.to_owned(),
            false,
        ),
        ("/etc/issue.d/smc.issue", String::new(), false),
        (COUNTER, counter, true),
        (UNIT, unit, false),
    ];
    if layout == Layout::Luks {
        let line = format!("crypt UUID={LUKS_ID} none luks,initramfs\n");
        settings.push(("/etc/crypttab", line, false));
    }
    settings
}

impl Content {
    /// Makes them in `directory` from the installed files.
    pub fn make(installed: &Path, layout: Layout, directory: &Path) -> Result<Self> {
        let root = directory.join("root.img");
        copy_disk(installed, &root)?;
        let mount = mounted(&root, &directory.join("root"), "ext4")?;
        configure(mount.path(), layout)?;
        let boot = layout
            .has_boot()
            .then(|| split_boot(mount.path(), directory))
            .transpose()?;
        let root = match layout {
            Layout::Xfs | Layout::Btrfs => {
                let other = directory.join("other.img");
                convert(mount.path(), layout, &other, directory)?;
                mount.unmount()?;
                other
            }
            _ => {
                mount.unmount()?;
                // Only then its UUID can be changed.
                process::run(Command::new("e2fsck").args(["-f", "-p"]).arg(&root))?;
                let mut tune = Command::new("tune2fs");
                process::run(tune.args(["-L", "", "-U", ROOT_ID]).arg(&root))?;
                root
            }
        };
        Ok(Self { root, boot })
    }

    /// Puts those on the first disk that lie on partitions.
    pub fn put_on(&self, layout: Layout, disk: &Path) -> Result<()> {
        if layout == Layout::Uefi {
            let esp = super::esp(disk);
            let sectors = (ESP_MIB * MIB / 512).to_string();
            let id = ESP_ID.replace('-', "");
            super::mtool("mformat", &esp, &["-F", "-T", &sectors, "-N", &id, "::"])?;
        }
        match &self.boot {
            Some(boot) => put(boot, disk),
            None => put(&self.root, disk),
        }
    }
}

/// Copies a filesystem to the second partition.
fn put(filesystem: &Path, disk: &Path) -> Result<()> {
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", filesystem.display()))
        .arg(format!("of={}", disk.display()));
    let seek = FIRST_END / MIB;
    process::run(
        dd.args(["bs=1M", "conv=sparse,notrunc"])
            .arg(format!("seek={seek}")),
    )
    .map(drop)
}

fn mounted(file: &Path, place: &Path, fstype: &str) -> Result<MountedFile> {
    MountedFile::new(LoopDevice::attach(file)?, place, fstype, MsFlags::empty())
}

fn configure(root: &Path, layout: Layout) -> Result<()> {
    for (path, content, is_program) in settings(layout) {
        let path = root.join(&path[1..]);
        let context = || format!("write {}", path.display());
        fs::create_dir_all(path.parent().unwrap_or(root)).context(context)?;
        fs::write(&path, content).context(context)?;
        let mode = if is_program { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).context(context)?;
    }
    let wants = root.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants)
        .and_then(|()| symlink(UNIT, wants.join("smc-counter.service")))
        .context(|| "enable the counter")?;
    make_initramfs(root)
}

/// Lets the server's own programs make its initramfs anew.
///
/// # Errors
/// With what they wrote.
pub fn make_initramfs(root: &Path) -> Result<()> {
    let mut update = Command::new("unshare");
    // What it mounts and starts ends with it.
    update.args([
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--kill-child",
    ]);
    update.arg(format!("--mount-proc={}", root.join("proc").display()));
    update
        .arg("chroot")
        .arg(root)
        .args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"]);
    process::run(update.args(["update-initramfs", "-u", "-k", "all"])).map(drop)
}

/// Makes a filesystem of what is in /boot, and leaves that empty.
fn split_boot(root: &Path, directory: &Path) -> Result<PathBuf> {
    let file = directory.join("boot.img");
    let place = root.join("boot");
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-U", BOOT_ID, "-d"]).arg(&place);
    process::run(mke2fs.arg(&file).arg(format!("{BOOT_MIB}M")))?;
    fs::remove_dir_all(&place)
        .and_then(|()| fs::create_dir(&place))
        .context(|| "empty /boot")?;
    Ok(file)
}

/// Copies the files to a filesystem of another kind.
fn convert(root: &Path, layout: Layout, file: &Path, directory: &Path) -> Result<()> {
    fs::File::create_new(file)
        .and_then(|file| file.set_len(ROOT_MIB * MIB))
        .context(|| format!("create {}", file.display()))?;
    let (kind, mut mkfs) = match layout {
        Layout::Btrfs => {
            let mut mkfs = Command::new("mkfs.btrfs");
            mkfs.args(["-q", "-U", ROOT_ID]);
            ("btrfs", mkfs)
        }
        _ => {
            let mut mkfs = Command::new("mkfs.xfs");
            mkfs.arg("-q").arg("-m").arg(format!("uuid={ROOT_ID}"));
            ("xfs", mkfs)
        }
    };
    process::run(mkfs.arg(file))?;
    let mount = mounted(file, &directory.join("other"), kind)?;
    let place = match layout {
        Layout::Btrfs => {
            let place = mount.path().join("@rootfs");
            process::run(
                Command::new("btrfs")
                    .args(["-q", "subvolume", "create"])
                    .arg(&place),
            )?;
            place
        }
        _ => mount.path().to_owned(),
    };
    process::run(Command::new("cp").arg("-a").arg(root.join(".")).arg(&place))?;
    mount.unmount()
}
