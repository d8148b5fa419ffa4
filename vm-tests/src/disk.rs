//! A PC disk that boots: MBR and boot loader, an ext4 root with the distribution's kernel, and a payload.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::MsFlags;

use crate::initramfs::{self, BUSYBOX};
use crate::kernel::{self, Kernel};
use crate::payload::{self, Payload};
use testkit::error::IoContext;
use testkit::guard::{LoopDevice, MountedFile};
use testkit::process;
use testkit::{Error, ErrorKind, Result};

/// Where on the disk the name of its point in time is.
pub const POINT_IN_TIME: &str = "etc/point-in-time";

const SECTOR_BYTES: u64 = 512;
const PARTITION_START: u64 = 1 << 20;
const SMALLEST_DISK: u64 = 128 << 20;
const BOOT_CODE: &str = "/usr/lib/syslinux/mbr/mbr.bin";
const LABEL: &str = "smc-root";
const ROOT_INIT: &str = include_str!("../guest/root-init.sh");

/// What the boot loader can read and every guest kernel knows, whatever this machine's mke2fs has as its default.
const EXT4_FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,flex_bg,\
    sparse_super,large_file,huge_file,dir_nlink,extra_isize";

/// What the kernel is told unless a test says otherwise.
const PARAMETERS: &str = "smc.root=LABEL=smc-root console=ttyS0 loglevel=4 panic=-1";

/// A bootable disk on a block device.
#[derive(Debug)]
pub struct BootDisk {
    device: PathBuf,
    partition_bytes: u64,
}

impl BootDisk {
    /// Writes a bootable disk to `device`, overwriting what is there: `payload` below `/srv/payload`, and `point`
    /// as the name of its point in time. `mount_point` is used while it is built.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when it is too small, [`ErrorKind::Setup`] without boot loader or kernel, and what the
    /// system calls and programs fail with.
    pub fn create(device: &Path, mount_point: &Path, point: &str, payload: &Payload) -> Result<Self> {
        // Whoever boots it, by smc-image too, knows then what runs guests here.
        crate::guest::accelerator()?;
        let disk = Self::open(device)?;
        disk.write_partition_table()?;
        disk.make_filesystem()?;
        let root = disk.mount(mount_point)?;
        root.install_system()?;
        root.install_boot_loader()?;
        payload.copy_to(root.path())?;
        root.set_point_in_time(point)?;
        root.write_manifest()?;
        root.unmount()?;
        Ok(disk)
    }

    /// A disk that [`BootDisk::create`] wrote to `device` before.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when it is too small, [`ErrorKind::Io`] when it cannot be opened.
    pub fn open(device: &Path) -> Result<Self> {
        let size_bytes = File::open(device)
            .and_then(|mut file| file.seek(SeekFrom::End(0)))
            .context(|| format!("find the size of {}", device.display()))?;
        if size_bytes < SMALLEST_DISK {
            let said = format!("{} is too small to boot: {size_bytes} bytes", device.display());
            return Err(Error::new(ErrorKind::Invalid, said));
        }
        let partition_bytes = (size_bytes - PARTITION_START) / SECTOR_BYTES * SECTOR_BYTES;
        Ok(Self {
            device: device.to_path_buf(),
            partition_bytes,
        })
    }

    /// The whole disk.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Mounts the root filesystem, read-write, on `mount_point`.
    ///
    /// # Errors
    /// [`ErrorKind::Command`] or [`ErrorKind::Io`].
    pub fn mount(&self, mount_point: &Path) -> Result<MountedRoot> {
        let flags = MsFlags::MS_NOATIME;
        MountedFile::new(self.partition()?, mount_point, "ext4", flags).map(MountedRoot)
    }

    fn partition(&self) -> Result<LoopDevice> {
        LoopDevice::attach_range(&self.device, PARTITION_START, self.partition_bytes)
    }

    fn write_partition_table(&self) -> Result<()> {
        let boot_code = fs::read(BOOT_CODE).map_err(|source| {
            Error::io(format!("read {BOOT_CODE}: run 'make setup'"), source).with_kind(ErrorKind::Setup)
        })?;
        let sector = mbr(&boot_code, self.partition_bytes)?;
        OpenOptions::new()
            .write(true)
            .open(&self.device)
            .and_then(|mut file| file.write_all(&sector).and_then(|()| file.sync_all()))
            .context(|| format!("write the partition table of {}", self.device.display()))
    }

    fn make_filesystem(&self) -> Result<()> {
        let partition = self.partition()?;
        // Nothing lazy: a kernel thread that zeroes later would change the disk while nobody uses it.
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-b", "4096", "-L", LABEL, "-O", EXT4_FEATURES]);
        process::run(
            mkfs.args(["-E", "lazy_itable_init=0,lazy_journal_init=0"])
                .arg(partition.path()),
        )?;
        partition.detach()
    }
}

/// The master boot record: boot code, one active Linux partition from 1 MiB on, signature.
fn mbr(boot_code: &[u8], partition_bytes: u64) -> Result<[u8; 512]> {
    let too_large = |_| {
        Error::new(
            ErrorKind::Invalid,
            "the disk is too large for an MBR partition table (2 TiB)",
        )
    };
    let first_sector = u32::try_from(PARTITION_START / SECTOR_BYTES).map_err(too_large)?;
    let sectors = u32::try_from(partition_bytes / SECTOR_BYTES).map_err(too_large)?;
    if boot_code.len() > 440 {
        return Err(Error::new(
            ErrorKind::Setup,
            format!("{BOOT_CODE} is longer than the 440 bytes of an MBR"),
        ));
    }
    let mut sector = [0; 512];
    sector[..boot_code.len()].copy_from_slice(boot_code);
    sector[440..444].copy_from_slice(b"smc1");
    // Cylinder, head and sector are marked as out of range, so that only the LBA fields count.
    let entry = &mut sector[446..462];
    entry[0] = 0x80;
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[4] = 0x83;
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&first_sector.to_le_bytes());
    entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(sector)
}

/// The root filesystem of a [`BootDisk`], mounted; unmounted when dropped.
#[derive(Debug)]
pub struct MountedRoot(MountedFile);

impl MountedRoot {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Names the point in time that a guest booted from this disk will report.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the name is empty or has control characters, [`ErrorKind::Io`].
    pub fn set_point_in_time(&self, point: &str) -> Result<()> {
        if point.is_empty() || point.chars().any(char::is_control) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("not a name for a point in time: {point:?}"),
            ));
        }
        self.write(POINT_IN_TIME, &format!("{point}\n"), 0o644)
    }

    /// Gives the kernel these parameters. With `smc.login` the disk shows a login prompt instead of reporting and powering
    /// off.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn set_kernel_parameters(&self, parameters: &str) -> Result<()> {
        let config = format!(
            "SERIAL 0 115200\nDEFAULT smc\nPROMPT 0\nLABEL smc\n  LINUX /boot/vmlinuz\n  \
             INITRD /boot/initramfs\n  APPEND {parameters}\n"
        );
        self.write("boot/syslinux/syslinux.cfg", &config, 0o644)
    }

    /// Puts another kernel on the disk, with an initramfs that has these drivers.
    ///
    /// # Errors
    /// [`ErrorKind::Setup`] where the kernel has no such driver, [`ErrorKind::Io`].
    pub fn set_kernel(&self, kernel: &Kernel, drivers: &[&str]) -> Result<()> {
        self.copy(&kernel.image(), "boot/vmlinuz")?;
        let initramfs = self.path().join("boot/initramfs");
        fs::write(&initramfs, initramfs::build_for(kernel, drivers)?)
            .context(|| format!("write {}", initramfs.display()))
    }

    /// Records the checksums of all files, which the guest checks after booting; returns how many.
    ///
    /// # Errors
    /// As for [`payload::write_manifest`].
    pub fn write_manifest(&self) -> Result<u64> {
        payload::write_manifest(self.path())
    }

    /// Brings everything written so far to the disk.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn sync(&self) -> Result<()> {
        let context = || format!("sync {}", self.path().display());
        let directory = File::open(self.path()).context(context)?;
        nix::unistd::syncfs(&directory).context(context)
    }

    /// Unmounts and detaches the partition.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when it stays busy, [`ErrorKind::Timeout`] when the partition stays attached.
    pub fn unmount(self) -> Result<()> {
        self.0.unmount()
    }

    fn write(&self, name: &str, content: &str, mode: u32) -> Result<()> {
        let path = self.path().join(name);
        fs::write(&path, content)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
            .context(|| format!("write {}", path.display()))
    }

    fn copy(&self, source: &Path, name: &str) -> Result<()> {
        let target = self.path().join(name);
        fs::copy(source, &target).context(|| format!("copy {} to {}", source.display(), target.display()))?;
        Ok(())
    }

    fn install_system(&self) -> Result<()> {
        for name in [
            "bin",
            "boot/syslinux",
            "dev",
            "etc",
            "proc",
            "run",
            "sbin",
            "srv",
            "sys",
            "tmp",
            "var/log",
        ] {
            let path = self.path().join(name);
            fs::create_dir_all(&path).context(|| format!("create {}", path.display()))?;
        }
        self.set_kernel(&Kernel::cached()?, &kernel::REQUIRED)?;
        self.copy(Path::new(BUSYBOX), "bin/busybox")?;
        symlink("busybox", self.path().join("bin/sh")).context(|| "link bin/sh to busybox")?;
        self.write("etc/hostname", "web01\n", 0o644)?;
        self.write("sbin/init", ROOT_INIT, 0o755)
    }

    fn install_boot_loader(&self) -> Result<()> {
        let directory = self.path().join("boot/syslinux");
        self.set_kernel_parameters(PARAMETERS)?;
        process::run(Command::new("extlinux").arg("--install").arg(&directory)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_is_active_and_ends_with_the_disk() {
        let sector = mbr(&[0xeb; 440], (1 << 30) - PARTITION_START).unwrap();
        assert_eq!(sector[439], 0xeb);
        assert_eq!((sector[446], sector[450]), (0x80, 0x83));
        assert_eq!(sector[454..458], 2048_u32.to_le_bytes());
        assert_eq!(sector[458..462], ((1_u32 << 21) - 2048).to_le_bytes());
        assert_eq!(sector[510..], [0x55, 0xaa]);
    }

    #[test]
    fn a_disk_beyond_the_reach_of_an_mbr_is_refused() {
        assert_eq!(mbr(&[], 3 << 40).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(mbr(&[0; 441], 1 << 30).unwrap_err().kind(), ErrorKind::Setup);
    }
}
