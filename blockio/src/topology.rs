//! Which disks hold a path: what a store must not lie on.
//!
//! The walk goes down from a filesystem: to its block device, from a partition to its disk, from a mapped
//! device (device-mapper, md, bcache) to its slaves, from a loop device to the file behind it and on to the
//! filesystem of that file. Devices that were seen are not walked again, so that cycles end.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::backing::Backing;
use crate::identity::{attribute, sysfs_directory, whole_disk_directory};
use crate::open::{device_number, mount_id, split_device};
use crate::{Device, Error, Result};

/// What some content depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dependencies {
    /// Block devices by major and minor number: partitions and mapped devices, and the whole disks below them.
    pub devices: BTreeSet<(u32, u32)>,
    /// Regular files behind loop devices, as the kernel names them.
    pub files: BTreeSet<PathBuf>,
    /// The same files by filesystem and inode number.
    inodes: BTreeSet<(u64, u64)>,
    /// Ids of the mounts walked: an overlay's directories may, seen from another namespace, lead back into it.
    mounts: BTreeSet<u64>,
}

/// The block devices (major, minor; ascending) that hold the filesystem of `path`: each one down to the whole
/// disks. Empty for a filesystem without a block device. A path that does not exist yet counts as its nearest
/// existing ancestor.
///
/// # Errors
/// `Io` or `PermissionDenied` when the path or something below it cannot be examined.
pub fn disks_below(path: &Path) -> Result<Vec<(u32, u32)>> {
    Ok(below_path(path)?.devices.into_iter().collect())
}

/// Whether the store at `store` lies on `disk`, so that imaging the disk would image its own store for ever.
///
/// That is so when the disk, the whole disk it is a partition of, or the device or file that it is merely
/// another name of (a loop device on it) is among what holds the store. Another file on the same filesystem
/// as the store, and a loop device on such a file, is a different disk.
///
/// # Errors
/// As for [`disks_below`].
pub fn lies_on(store: &Path, disk: &Device) -> Result<bool> {
    let below = below_path(store)?;
    let same = same_content(disk);
    Ok(!below.devices.is_disjoint(&same.devices) || !below.inodes.is_disjoint(&same.inodes))
}

/// Everything below the filesystem of `path`.
fn below_path(path: &Path) -> Result<Dependencies> {
    let mut found = Dependencies::default();
    let path = nearest_existing(path);
    add_filesystem(&mut found, &path).map_err(|e| Error::os("find the disks below", e).at_path(&path))?;
    Ok(found)
}

/// The device itself, and everything below it.
pub(crate) fn below_device(device: &Device) -> Result<Dependencies> {
    let mut found = Dependencies::default();
    let added = match device.device_number() {
        Some(number) => add_device(&mut found, number),
        None => add_file(&mut found, device.path(), device.inode()),
    };
    added.map_err(|e| Error::os("find the disks below", e).at_path(device.path()))?;
    Ok(found)
}

/// The names under which the bytes of `disk` are reached: not what merely holds them among other things.
fn same_content(disk: &Device) -> Dependencies {
    let mut same = Dependencies::default();
    match disk.device_number() {
        Some(number) => add_aliases(&mut same, number),
        None => {
            same.inodes.insert(disk.inode());
        }
    }
    same
}

fn add_aliases(same: &mut Dependencies, number: (u32, u32)) {
    if !same.devices.insert(number) {
        return;
    }
    let Some(directory) = sysfs_directory(number) else {
        return;
    };
    if let Some(disk) = number_of(&whole_disk_directory(&directory)) {
        add_aliases(same, disk);
    }
    if let Some(backing) = Backing::of(&directory) {
        match backing.device {
            Some(device) => add_aliases(same, device),
            None => drop(same.inodes.insert(backing.inode)),
        }
    }
}

fn add_device(found: &mut Dependencies, number: (u32, u32)) -> io::Result<()> {
    if !found.devices.insert(number) {
        return Ok(());
    }
    let Some(directory) = sysfs_directory(number) else {
        return Ok(());
    };
    if let Some(disk) = number_of(&whole_disk_directory(&directory)) {
        add_device(found, disk)?;
    }
    for slave in numbers_in(&directory.join("slaves")) {
        add_device(found, slave)?;
    }
    Backing::of(&directory).map_or(Ok(()), |backing| add_backing(found, &backing))
}

fn add_backing(found: &mut Dependencies, backing: &Backing) -> io::Result<()> {
    if let Some(device) = backing.device {
        return add_device(found, device);
    }
    if backing.path_is_current() {
        return add_file(found, &backing.path, backing.inode);
    }
    found.files.insert(backing.path.clone());
    found.inodes.insert(backing.inode);
    let filesystem = split_device(backing.inode.0);
    if filesystem.0 != 0 {
        return add_device(found, filesystem);
    }
    tracing::warn!(file = %backing.path.display(), "no path leads to this backing file; its disks are unknown");
    Ok(())
}

fn add_file(found: &mut Dependencies, path: &Path, inode: (u64, u64)) -> io::Result<()> {
    found.files.insert(path.to_owned());
    if !found.inodes.insert(inode) {
        return Ok(());
    }
    add_filesystem(found, path)
}

/// Adds what holds the filesystem that `path` lies on.
fn add_filesystem(found: &mut Dependencies, path: &Path) -> io::Result<()> {
    let handle = File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
    let number = split_device(handle.metadata()?.dev());
    if number.0 != 0 {
        return add_device(found, number);
    }
    // btrfs, overlayfs and network filesystems show an anonymous device number: ask the mount table.
    let Some(mount) = mount_of(&handle, path)? else {
        return Ok(());
    };
    if !found.mounts.insert(mount.id) {
        return Ok(());
    }
    for directory in mount.stacked_on() {
        add_filesystem(found, &directory)?;
    }
    for number in mount.devices() {
        add_device(found, number)?;
    }
    Ok(())
}

/// The number in a sysfs directory's `dev` attribute.
fn number_of(directory: &Path) -> Option<(u32, u32)> {
    let text = attribute(&directory.join("dev"))?;
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The numbers of all devices that a sysfs directory links to.
fn numbers_in(directory: &Path) -> Vec<(u32, u32)> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| number_of(&entry.path()))
        .collect()
}

fn nearest_existing(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = absolute
        .ancestors()
        .find(|ancestor| fs::symlink_metadata(ancestor).is_ok());
    existing.unwrap_or(Path::new("/")).to_owned()
}

/// One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    point: PathBuf,
    filesystem: String,
    source: String,
    options: String,
}

/// The mount that `handle`, opened from `path`, belongs to.
fn mount_of(handle: &File, path: &Path) -> io::Result<Option<Mount>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mounts = table.lines().filter_map(Mount::parse);
    if let Some(id) = mount_id(handle.as_fd()) {
        return Ok(mounts.into_iter().find(|mount| mount.id == id));
    }
    // Before Linux 5.8: the last mount at the longest mount point above the path.
    let path = fs::canonicalize(path)?;
    Ok(mounts
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|m| m.point.as_os_str().len()))
}

impl Mount {
    fn parse(line: &str) -> Option<Mount> {
        let (head, tail) = line.split_once(" - ")?;
        let mut head = head.split(' ');
        let id = head.next()?.parse().ok()?;
        let point = PathBuf::from(unescape(head.nth(3)?));
        let mut tail = tail.split(' ');
        let (filesystem, source) = (tail.next()?.to_owned(), unescape(tail.next()?));
        Some(Mount {
            id,
            point,
            filesystem,
            source,
            options: unescape(tail.next().unwrap_or("")),
        })
    }

    /// Directories of other filesystems that this one stores its files in.
    fn stacked_on(&self) -> Vec<PathBuf> {
        if self.filesystem != "overlay" {
            return Vec::new();
        }
        // What is written goes to the upper directory; a read-only overlay has lower ones alone.
        let upper = self.option("upperdir=").map(PathBuf::from);
        let lower = self
            .option("lowerdir=")
            .map(|list| list.split(':').map(PathBuf::from).collect());
        let directories = upper.map(|path| vec![path]).or(lower).unwrap_or_default();
        directories
            .into_iter()
            .filter(|path| path.is_absolute() && path.exists())
            .collect()
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options
            .split(',')
            .find_map(|option| option.strip_prefix(name))
    }

    /// Block devices that the source names, joined by colons (bcachefs), and their siblings in a btrfs.
    fn devices(&self) -> Vec<(u32, u32)> {
        let named = self.source.split(':').filter_map(|name| fs::metadata(name).ok());
        let named: Vec<_> = named
            .filter(|m| m.file_type().is_block_device())
            .map(|m| device_number(&m))
            .collect();
        if self.filesystem != "btrfs" {
            return named;
        }
        let pools = fs::read_dir("/sys/fs/btrfs").into_iter().flatten().flatten();
        let pools = pools.map(|entry| numbers_in(&entry.path().join("devices")));
        pools
            .into_iter()
            .find(|pool| named.iter().any(|number| pool.contains(number)))
            .unwrap_or(named)
    }
}

/// Undoes the octal escapes of white space and backslashes in mountinfo.
fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
            .filter(|_| byte == b'\\')
        {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::{Mount, unescape};
    use std::path::PathBuf;

    #[test]
    fn a_mountinfo_line_is_read_with_its_escapes_and_optional_fields() {
        let line = r"36 35 0:41 /sub /mnt/with\040space rw,noatime master:1 shared:2 - btrfs /dev/loop3 rw,subvol=/a\134b";
        let mount = Mount::parse(line).expect("a well-formed line");
        assert_eq!((mount.id, mount.point), (36, PathBuf::from("/mnt/with space")));
        assert_eq!(
            (mount.filesystem.as_str(), mount.source.as_str()),
            ("btrfs", "/dev/loop3")
        );
        assert_eq!(mount.options, r"rw,subvol=/a\b");
    }

    #[test]
    fn an_overlay_lies_on_its_upper_directory() {
        let line = "1 1 0:9 / /merged rw - overlay overlay rw,lowerdir=/usr:/etc,upperdir=/tmp,workdir=/var";
        assert_eq!(
            Mount::parse(line).expect("a well-formed line").stacked_on(),
            [PathBuf::from("/tmp")]
        );
        let line = "1 1 0:9 / /merged ro - overlay overlay ro,lowerdir=/usr:/etc";
        let lower = Mount::parse(line).expect("a well-formed line").stacked_on();
        assert_eq!(lower, [PathBuf::from("/usr"), PathBuf::from("/etc")]);
    }

    #[test]
    fn broken_lines_and_escapes_are_survived() {
        assert_eq!(Mount::parse("36 35 0:41 / /mnt rw"), None);
        assert_eq!(Mount::parse(""), None);
        assert_eq!(unescape(r"a\04"), r"a\04");
        assert_eq!(unescape(r"\999"), r"\999");
    }
}
