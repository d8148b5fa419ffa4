//! What is known about each mount, under `/run/smc/mounts`: a private directory and, beside it, a record.

use crate::exit::Advise;
use crate::waiting;
use anyhow::Context;
use blockio::LockedFile;
use cli::interrupt::Interrupt;
use hostdev::{BlockDevice, MountTable, ProcessStat, Root};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const ROOT: &str = "/run/smc/mounts";

/// What undoing a mount needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Where the filesystem is mounted.
    pub dir: PathBuf,
    /// The image, with the disk if the filesystem lies on one: `web01/7:vda`.
    pub image: String,
    /// The partition of that disk; `None` for the whole disk, and for several.
    pub partition: Option<u32>,
    /// The process that serves the disks.
    pub server: Process,
    /// The loop devices that are attached, one for each device of the filesystem.
    pub loop_devices: Vec<PathBuf>,
}

/// A process, told apart from a later one that got the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// When it was started, in clock ticks since boot.
    started: u64,
}

impl Process {
    /// The running process with this id.
    pub fn running(pid: i32) -> Option<Self> {
        let stat = ProcessStat::read(&Root::system(), u32::try_from(pid).ok()?).ok()??;
        (stat.state != 'Z').then_some(Self {
            pid,
            started: stat.started,
        })
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        Self::running(self.pid) == Some(*self)
    }
}

/// Holds everybody else off who mounts or unmounts. One of them that does so already is waited for.
///
/// # Errors
/// A directory of mounts that cannot be made or locked, and an interrupt.
pub fn lock(interrupt: Option<&Interrupt>) -> anyhow::Result<LockedFile> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(ROOT)
        .with_context(|| format!("create {ROOT}"))?;
    let root = File::open(ROOT).with_context(|| format!("open {ROOT}"))?;
    waiting::lock(root, interrupt).with_context(|| format!("lock {ROOT}"))
}

/// Makes the private directory of a new mount.
///
/// # Errors
/// A directory that cannot be made.
pub fn create(name: &str) -> anyhow::Result<PathBuf> {
    // Made with mode 0700.
    let dir = tempfile::Builder::new().prefix(name).tempdir_in(ROOT);
    let dir = dir.with_context(|| format!("make a directory in {ROOT}"))?.keep();
    for part in [fuse_dir(&dir), tree_dir(&dir)] {
        fs::create_dir(&part).with_context(|| format!("make {}", part.display()))?;
    }
    Ok(dir)
}

/// Where the files of the disks are mounted.
pub fn fuse_dir(dir: &Path) -> PathBuf {
    dir.join("fuse")
}

/// Where the files of the imaged machine are seen, by a process that mounts them for itself alone.
pub fn tree_dir(dir: &Path) -> PathBuf {
    dir.join("tree")
}

/// The file of a disk.
pub fn disk_path(dir: &Path, disk: &str) -> PathBuf {
    fuse_dir(dir).join(disk)
}

/// What the server complains about.
pub fn log_path(dir: &Path) -> PathBuf {
    dir.join("log")
}

fn record_path(dir: &Path) -> PathBuf {
    let mut path = OsString::from(dir);
    path.push(".json");
    PathBuf::from(path)
}

impl Record {
    /// Writes the record of the mount with private directory `dir`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let path = record_path(dir);
        let write = || {
            let temporary = dir.join("record");
            fs::write(&temporary, serde_json::to_string(self)?)?;
            fs::rename(&temporary, &path)
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// Whether anything of the mount still does its work.
    ///
    /// # Errors
    /// As [`attached_loops`](Self::attached_loops).
    pub fn is_in_use(&self, dir: &Path) -> anyhow::Result<bool> {
        Ok(self.server.is_alive() || !self.attached_loops(dir)?.is_empty())
    }

    /// The loop devices that are still attached to this mount's disks.
    ///
    /// # Errors
    /// When the kernel does not say what is attached.
    pub fn attached_loops(&self, dir: &Path) -> anyhow::Result<Vec<&Path>> {
        let mut attached = Vec::new();
        for path in &self.loop_devices {
            let is_ours = backing_file(path)?.is_some_and(|file| file.starts_with(fuse_dir(dir)));
            attached.extend(is_ours.then_some(path.as_path()));
        }
        Ok(attached)
    }

    /// Whether one of its loop devices is mounted where it was. The kernel names one of them as the source of a mount.
    ///
    /// # Errors
    /// When the kernel does not say what is attached, or mounted.
    pub fn is_mounted(&self, dir: &Path) -> anyhow::Result<bool> {
        let devices = self.attached_loops(dir)?;
        // It may be below something else.
        let table = MountTable::own(&Root::system())?;
        let is_on =
            |mount: &hostdev::Mount| mount.point == self.dir && devices.contains(&Path::new(&mount.source));
        Ok(table.mounts.iter().any(is_on))
    }

    /// Makes the kernel forget the devices of a filesystem on several, which it otherwise remembers by their names.
    fn forget_devices(&self) {
        for path in self.loop_devices.iter().filter(|_| self.loop_devices.len() > 1) {
            // One that has been attached again belongs to another user.
            let is_free = matches!(backing_file(path), Ok(None));
            let forgotten = if is_free {
                hostdev::forget_btrfs(path)
            } else {
                Ok(())
            };
            if let Err(error) = forgotten {
                tracing::debug!("{} is still known to btrfs: {error}", path.display());
            }
        }
    }
}

/// The file behind a loop device; `None` if none is attached.
fn backing_file(device: &Path) -> anyhow::Result<Option<PathBuf>> {
    let device = BlockDevice::at(&Root::system(), device)?;
    Ok(device.map_or(Ok(None), |device| device.backing_path())?)
}

/// Every mount: its private directory and, where one was written, its record. One that cannot be read is an error: what is
/// still mounted must not be taken for what a crash left.
///
/// # Errors
/// A directory of mounts, or a record in it, that cannot be read.
pub fn all() -> anyhow::Result<Vec<(PathBuf, Option<Record>)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(ROOT).with_context(|| format!("read {ROOT}"))? {
        let path = entry.with_context(|| format!("read {ROOT}"))?.path();
        let dir = match path.to_str().and_then(|path| path.strip_suffix(".json")) {
            Some(dir) => PathBuf::from(dir),
            None if record_path(&path).exists() => continue,
            None => path,
        };
        let record = read_record(&record_path(&dir))?;
        all.push((dir, record));
    }
    Ok(all)
}

fn read_record(path: &Path) -> anyhow::Result<Option<Record>> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.with_context(|| format!("read {}", path.display()))?,
    };
    let parsed =
        serde_json::from_slice(&text).with_context(|| format!("{} is not a mount's record", path.display()));
    parsed
        .map(Some)
        .advise("remove the file if nothing of its mount is in use any more")
}

/// Takes the files of the disks out of sight and removes what is left of a mount. Nothing of it need be there any more.
///
/// # Errors
/// What cannot be unmounted or removed.
pub fn remove(dir: &Path) -> anyhow::Result<()> {
    if let Some(record) = read_record(&record_path(dir)).unwrap_or_default() {
        record.forget_devices();
    }
    match umount2(&fuse_dir(dir), MntFlags::MNT_DETACH) {
        // Not mounted, or not even there.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(error).with_context(|| format!("unmount {}", fuse_dir(dir).display())),
    }
    let gone = |path: PathBuf, remove: fn(&Path) -> io::Result<()>| match remove(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    };
    gone(fuse_dir(dir), |path| fs::remove_dir(path))?;
    gone(tree_dir(dir), |path| fs::remove_dir(path))?;
    gone(log_path(dir), |path| fs::remove_file(path))?;
    gone(dir.join("record"), |path| fs::remove_file(path))?;
    gone(dir.to_owned(), |path| fs::remove_dir(path))?;
    gone(record_path(dir), |path| fs::remove_file(path))
}

/// Removes what mounts left behind whose server is dead and whose loop device is gone. The lock is held.
///
/// # Errors
/// What cannot be read, unmounted or removed.
pub fn sweep() -> anyhow::Result<()> {
    for (dir, record) in all()? {
        let in_use = match &record {
            Some(record) => record.is_in_use(&dir)?,
            None => false,
        };
        if !in_use {
            remove(&dir)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::guard::ScratchDir;

    #[test]
    fn a_record_that_cannot_be_read_is_not_one_that_is_missing() {
        let scratch = ScratchDir::new("smc-mount-record").unwrap();
        assert!(read_record(&scratch.join("missing")).unwrap().is_none());
        let torn = scratch.join("torn");
        fs::write(&torn, "{\"dir\":").unwrap();
        let error = read_record(&torn).unwrap_err();
        assert!(
            format!("{error:#}").contains("is not a mount's record"),
            "{error:#}"
        );
        read_record(&scratch.join(".")).unwrap_err();
    }
}
