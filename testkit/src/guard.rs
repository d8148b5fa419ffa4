//! Loop devices, mounts and scratch directories that clean up after themselves.
//!
//! Each guard undoes what it did when it is dropped: at the end of a test, on an early return and while a
//! panic unwinds. A loop device even goes when the process is killed, because the kernel detaches it as soon as its
//! last user, this guard, closes it.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hostdev::LoopOptions;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::process::{self, PATIENCE};

/// Names the directory under which scratch directories are made; `/var/tmp` where it is not set.
pub const SCRATCH_VARIABLE: &str = "SMC_SCRATCH";

/// How long a guard that is dropped waits for others to let go: the test is over, and has said what it had to say.
const DROP_TIMEOUT: Duration = Duration::from_secs(5);

/// A directory of its own that is removed with all its content.
///
/// It lies under `/var/tmp` and not under `/tmp`, which may be a tmpfs and too small for disks.
#[derive(Debug)]
pub struct ScratchDir(tempfile::TempDir);

impl ScratchDir {
    /// Makes a directory whose name starts with `name`, under `$SMC_SCRATCH` or `/var/tmp`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn new(name: &str) -> Result<Self> {
        let parent =
            std::env::var_os(SCRATCH_VARIABLE).map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        fs::create_dir_all(&parent).context(|| format!("create {}", parent.display()))?;
        tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir_in(&parent)
            .map(Self)
            .context(|| format!("create a scratch directory in {}", parent.display()))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of `name` in the directory.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file, back to the disk too: so that direct reads find it there.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], as when the filesystem is full.
    pub fn file(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.join(name);
        File::create(&path)
            .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
            .context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Makes a sparse file of `size_bytes` for a loop device.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], as when there is a file of this name.
    pub fn sparse_file(&self, name: &str, size_bytes: u64) -> Result<PathBuf> {
        let path = self.join(name);
        let file = File::create_new(&path).context(|| format!("create {}", path.display()))?;
        file.set_len(size_bytes)
            .context(|| format!("size {} to {size_bytes} bytes", path.display()))?;
        Ok(path)
    }
}

/// A loop device with direct I/O; detached when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    device: Option<hostdev::LoopDevice>,
    /// Attached by losetup: the kernel does not detach it by itself.
    is_replaced: bool,
}

/// Opens a file for a loop device, and says whether it can only be read, like a file that a server of our own serves.
fn open_for_loop(backing: &Path) -> std::io::Result<(File, bool)> {
    match File::options().read(true).write(true).open(backing) {
        Ok(file) => Ok((file, false)),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Ok((File::open(backing)?, true))
        }
        Err(error) => Err(error),
    }
}

impl LoopDevice {
    /// Attaches all of `backing`, a file or a block device, to a free loop device.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when `backing` cannot be opened or attached.
    pub fn attach(backing: &Path) -> Result<Self> {
        Self::with_options(backing, LoopOptions::default())
    }

    /// As [`attach`](Self::attach), with logical blocks of `block_bytes`: 512 or 4096.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    pub fn attach_with_blocks(backing: &Path, block_bytes: u32) -> Result<Self> {
        let options = LoopOptions {
            block_bytes,
            ..LoopOptions::default()
        };
        Self::with_options(backing, options)
    }

    /// Attaches `length_bytes` of `backing` from `offset_bytes` on: a partition, on kernels that find none.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    pub fn attach_range(backing: &Path, offset_bytes: u64, length_bytes: u64) -> Result<Self> {
        let options = LoopOptions {
            offset_bytes,
            length_bytes,
            ..LoopOptions::default()
        };
        Self::with_options(backing, options)
    }

    fn with_options(backing: &Path, options: LoopOptions) -> Result<Self> {
        let (file, read_only) = open_for_loop(backing).context(|| format!("open {}", backing.display()))?;
        let direct = LoopOptions {
            direct_io: true,
            read_only,
            ..options
        };
        let device = hostdev::LoopDevice::attach(file.as_fd(), &direct);
        let device = device
            .map_err(std::io::Error::other)
            .context(|| format!("attach {} to a loop device", backing.display()))?;
        Ok(Self {
            path: device.path().to_owned(),
            device: Some(device),
            is_replaced: false,
        })
    }

    /// The device node, `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its number, major and minor, as sysfs shows it.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when sysfs does not have it.
    pub fn number(&self) -> Result<(u32, u32)> {
        let file = self.sysfs().join("dev");
        let text = fs::read_to_string(&file).context(|| format!("read {}", file.display()))?;
        let number = text
            .trim()
            .split_once(':')
            .map(|(major, minor)| (major.parse(), minor.parse()));
        match number {
            Some((Ok(major), Ok(minor))) => Ok((major, minor)),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                format!("{} holds {text:?}", file.display()),
            )),
        }
    }

    /// Makes the device take over a changed size of its backing file.
    ///
    /// # Errors
    /// [`ErrorKind::Command`] when `losetup` fails.
    pub fn update_size(&self) -> Result<()> {
        process::run(Command::new("losetup").arg("--set-capacity").arg(&self.path)).map(drop)
    }

    /// Detaches the device and attaches another file in its place: another disk of the same number. Returns whether that was
    /// done: another process may be faster to take the device.
    ///
    /// # Errors
    /// As for [`detach`](Self::detach).
    pub fn replace(&mut self, backing: &Path) -> Result<bool> {
        self.release()?;
        let mut attach = Command::new("losetup");
        attach.arg("--direct-io=on").arg(&self.path).arg(backing);
        self.is_replaced = process::run(&mut attach).is_ok();
        Ok(self.is_replaced)
    }

    /// Detaches the device and waits until it is free.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] if something else still holds it: a mount, or another process.
    pub fn detach(mut self) -> Result<()> {
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        let before = self.backing_file();
        drop(self.device.take());
        if std::mem::take(&mut self.is_replaced) {
            process::run(Command::new("losetup").arg("--detach").arg(&self.path))?;
        }
        process::wait_until(PATIENCE, || {
            self.backing_file().is_none() || self.backing_file() != before
        })
        .map_err(|_| {
            let path = self.path.display();
            Error::new(
                ErrorKind::Timeout,
                format!("{path} stays attached: something else still has it open"),
            )
        })
    }

    fn backing_file(&self) -> Option<String> {
        fs::read_to_string(self.sysfs().join("loop/backing_file")).ok()
    }

    fn sysfs(&self) -> PathBuf {
        Path::new("/sys/block").join(self.path.file_name().unwrap_or_default())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if self.is_replaced {
            let _ = process::run(Command::new("losetup").arg("--detach").arg(&self.path));
        }
    }
}

/// A filesystem in front of a directory that never answers, as one on a server that is down: a process that asks for anything
/// in there waits, until the guard is dropped; then everything fails that waits, and the directory is there again.
#[derive(Debug)]
pub struct SilentMount {
    target: PathBuf,
    /// The other end, at which nobody listens. The kernel ends all that waits when it is closed.
    kernel: Option<File>,
}

impl SilentMount {
    /// Mounts it over the directory `target`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn over(target: &Path) -> Result<Self> {
        let kernel = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .context(|| "open /dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", kernel.as_raw_fd());
        let (source, flags) = (Some("silent"), MsFlags::empty());
        mount(source, target, Some("fuse"), flags, Some(options.as_str()))
            .context(|| format!("mount a silent filesystem on {}", target.display()))?;
        Ok(Self {
            target: target.to_path_buf(),
            kernel: Some(kernel),
        })
    }
}

impl Drop for SilentMount {
    fn drop(&mut self) {
        drop(self.kernel.take());
        let _ = umount2(&self.target, MntFlags::MNT_DETACH);
    }
}

/// A mounted filesystem; unmounted when dropped.
#[derive(Debug)]
pub struct Mount {
    target: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Mounts `source` on `target`, which is made if it does not exist.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn new(source: &Path, target: &Path, fstype: &str, flags: MsFlags) -> Result<Self> {
        fs::create_dir_all(target).context(|| format!("create {}", target.display()))?;
        mount(Some(source), target, Some(fstype), flags, None::<&str>)
            .context(|| format!("mount {} ({fstype}) on {}", source.display(), target.display()))?;
        Ok(Self::adopt(target))
    }

    /// Mounts a BPF filesystem of its own on `target`, so that tests have trackers beside each other.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn bpf(target: &Path) -> Result<Self> {
        Self::new(Path::new("bpf"), target, "bpf", MsFlags::empty())
    }

    /// Makes a filesystem of this kind on `device` and mounts it on `target`.
    ///
    /// # Errors
    /// [`ErrorKind::Command`] when the filesystem cannot be made, [`ErrorKind::Io`] when it cannot be mounted.
    pub fn format(fstype: &str, device: &Path, target: &Path) -> Result<Self> {
        let force = if fstype == "ext4" { "-F" } else { "-f" };
        let mut mkfs = Command::new(format!("mkfs.{fstype}"));
        process::run(mkfs.args(["-q", force]).arg(device))?;
        Self::new(device, target, fstype, MsFlags::empty())
    }

    /// Takes over what another process mounted on `target`, as mount(8) did: it is unmounted with the guard.
    pub fn adopt(target: &Path) -> Self {
        Self {
            target: target.to_path_buf(),
            mounted: true,
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Unmounts, and waits for processes that still have a file open.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when it stays busy.
    pub fn unmount(mut self) -> Result<()> {
        self.release(PATIENCE).context(|| {
            format!(
                "unmount {}: a file on it may still be open",
                self.target.display()
            )
        })
    }

    fn release(&mut self, patience: Duration) -> std::result::Result<(), Errno> {
        let mut result = Ok(());
        let _ = process::wait_until(patience, || {
            result = umount2(&self.target, MntFlags::empty());
            result != Err(Errno::EBUSY)
        });
        self.mounted = result.is_err();
        result
    }
}

/// A filesystem in a file or in a part of it, mounted through a loop device; both go when it is dropped.
#[derive(Debug)]
pub struct MountedFile {
    // Dropped in this order: the mount holds the device.
    mount: Mount,
    device: LoopDevice,
}

impl MountedFile {
    /// Mounts what is on `device` on `target`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn new(device: LoopDevice, target: &Path, fstype: &str, flags: MsFlags) -> Result<Self> {
        let mount = Mount::new(device.path(), target, fstype, flags)?;
        Ok(Self { mount, device })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.mount.path()
    }

    /// Unmounts, and detaches the device.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when it stays busy, [`ErrorKind::Timeout`] when the device stays attached.
    pub fn unmount(self) -> Result<()> {
        self.mount.unmount()?;
        self.device.detach()
    }
}

/// Waits until nobody holds a device: a process with a mount namespace of its own, which another test may have made, has copies of all
/// mounts, and a filesystem that was unmounted lives on in them.
///
/// # Errors
/// [`ErrorKind::Timeout`] when somebody holds it for [`PATIENCE`].
pub fn wait_until_free(device: &Path) -> Result<()> {
    let exclusively = libc::O_EXCL | libc::O_CLOEXEC;
    process::wait_until(PATIENCE, || {
        let mut options = File::options();
        options.read(true).custom_flags(exclusively).open(device).is_ok()
    })
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted && self.release(DROP_TIMEOUT).is_err() {
            // Out of sight at once, and out of the kernel when its last user goes.
            let _ = umount2(&self.target, MntFlags::MNT_DETACH);
        }
    }
}
