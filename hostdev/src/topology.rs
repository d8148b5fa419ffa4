//! What lies on what.
//!
//! The walk goes down from a filesystem: to its block device, from a partition to its disk, from a mapped device
//! (device-mapper, md, bcache) to its slaves, from a loop device to the file behind it and on to the filesystem of
//! that file. Devices that were seen are not walked again, so that circles end.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::{BlockDevice, DeviceNumber, Error, ErrorKind, FileId, Mount, MountTable, Node, Result, Root};
use crate::{LoopStatus, loop_status};

/// What lies behind a loop device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// As the kernel names it; see [`BlockDevice::backing_path`].
    pub path: PathBuf,
    /// The device or file itself; `None` where neither the driver nor the path tells.
    pub node: Option<Node>,
}

/// What some content depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dependencies {
    /// Block devices: partitions and mapped devices, and the whole disks below them.
    pub devices: BTreeSet<DeviceNumber>,
    /// Files behind loop devices, as the kernel names them.
    pub files: BTreeSet<PathBuf>,
    /// The same files by filesystem and inode number, as far as known.
    pub file_ids: BTreeSet<FileId>,
    /// Those of the files whose disks are not known, because no path leads to them and their filesystem has no
    /// device of its own.
    pub unplaced: BTreeSet<PathBuf>,
}

impl Dependencies {
    /// Whether both have a device or a file in common.
    fn overlaps(&self, other: &Dependencies) -> bool {
        !self.devices.is_disjoint(&other.devices) || !self.file_ids.is_disjoint(&other.file_ids)
    }
}

/// The block devices that hold the filesystem of `path`, ascending: each one down to the whole disks. Empty for a
/// filesystem without a block device. A path that does not exist yet counts as its nearest existing ancestor.
///
/// # Errors
/// `Io` or `PermissionDenied` when the path or something below it cannot be examined.
pub fn disks_below(root: &Root, path: &Path) -> Result<Vec<DeviceNumber>> {
    Ok(below_path(root, path)?.devices.into_iter().collect())
}

/// Everything below the filesystem of `path`; see [`disks_below`].
///
/// # Errors
/// As for [`disks_below`].
pub fn below_path(root: &Root, path: &Path) -> Result<Dependencies> {
    let mut walk = Walk::new(root);
    walk.add_filesystem(&root.existing_ancestor(path)?)?;
    Ok(walk.found)
}

/// A device or file itself, and everything below it.
///
/// # Errors
/// As for [`disks_below`].
pub fn below(root: &Root, node: &Node) -> Result<Dependencies> {
    let mut walk = Walk::new(root);
    walk.add(node)?;
    Ok(walk.found)
}

/// The I/O schedulers that a read of `node` passes: its own, and those of everything below it. Each is named once.
///
/// # Errors
/// As for [`disks_below`].
pub fn schedulers(root: &Root, node: &Node) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for number in below(root, node)?.devices {
        if let Some(device) = BlockDevice::find(root, number)? {
            found.extend(device.scheduler()?);
        }
    }
    Ok(found)
}

/// Whether `path`, of a store, lies on `disk`, so that imaging the disk would image its own store for ever.
///
/// That is so when the disk, the whole disk it is a partition of, or the device or file that it is merely another
/// name of (a loop device on it) is among what holds the path. Another file on the same filesystem as the store, and
/// a loop device on such a file, is a different disk.
///
/// # Errors
/// As for [`disks_below`].
pub fn lies_on(root: &Root, path: &Path, disk: &Node) -> Result<bool> {
    let below = below_path(root, path)?;
    Ok(below.overlaps(&same_content(root, disk)?))
}

/// The names under which the bytes of `disk` are reached: not what merely holds them among other things.
fn same_content(root: &Root, disk: &Node) -> Result<Dependencies> {
    let mut same = Dependencies::default();
    let mut next = vec![disk.clone()];
    while let Some(node) = next.pop() {
        let number = match node {
            Node::Device(number) => number,
            Node::File(_, id) => {
                same.file_ids.insert(id);
                continue;
            }
        };
        if !same.devices.insert(number) {
            continue;
        }
        if let Some(device) = BlockDevice::find(root, number)? {
            next.push(Node::Device(device.whole_disk()?.number()));
            next.extend(device.backing()?.and_then(|backing| backing.node));
        }
    }
    Ok(same)
}

struct Walk<'a> {
    root: &'a Root,
    found: Dependencies,
    /// Ids of the mounts walked: an overlay's directories may, seen from another namespace, lead back into it.
    mounts: BTreeSet<u64>,
}

impl<'a> Walk<'a> {
    fn new(root: &'a Root) -> Walk<'a> {
        Walk {
            root,
            found: Dependencies::default(),
            mounts: BTreeSet::new(),
        }
    }

    fn add(&mut self, node: &Node) -> Result<()> {
        match node {
            Node::Device(number) => self.add_device(*number),
            Node::File(path, id) => self.add_file(path, *id),
        }
    }

    fn add_device(&mut self, number: DeviceNumber) -> Result<()> {
        if !self.found.devices.insert(number) {
            return Ok(());
        }
        let Some(device) = BlockDevice::find(self.root, number)? else {
            return Ok(());
        };
        self.add_device(device.whole_disk()?.number())?;
        for slave in device.slaves()? {
            self.add_device(slave.number())?;
        }
        match device.backing()? {
            Some(backing) => self.add_backing(&backing),
            None => Ok(()),
        }
    }

    fn add_backing(&mut self, backing: &Backing) -> Result<()> {
        let id = match &backing.node {
            Some(Node::Device(number)) => return self.add_device(*number),
            Some(Node::File(_, id)) => *id,
            None => {
                self.no_place(&backing.path);
                return Ok(());
            }
        };
        let filesystem = DeviceNumber::of_dev(id.filesystem);
        // The path may lead to a server that does not answer: it is looked at only where nothing else leads to the disks.
        if self.root.is_system() && (!filesystem.is_anonymous() || self.has_no_disk(filesystem)?) {
            self.found.files.insert(backing.path.clone());
            self.found.file_ids.insert(id);
            return match filesystem.is_anonymous() {
                true => Ok(()),
                false => self.add_device(filesystem),
            };
        }
        let at_path = self.root.metadata(&backing.path)?.as_ref().map(FileId::of);
        if at_path == Some(id) {
            return self.add_file(&backing.path, id);
        }
        self.found.files.insert(backing.path.clone());
        self.found.file_ids.insert(id);
        if filesystem.is_anonymous() {
            self.no_place(&backing.path);
            return Ok(());
        }
        self.add_device(filesystem)
    }

    /// Whether a filesystem is one of a server or of a program: such a one lies on no disk of this machine that is known.
    fn has_no_disk(&self, filesystem: DeviceNumber) -> Result<bool> {
        let elsewhere = [
            "9p", "afs", "ceph", "cifs", "fuse", "nfs", "nfs4", "smb3", "virtiofs",
        ];
        let mounts = MountTable::own(self.root)?.mounts;
        let mount = mounts.iter().find(|mount| mount.number == filesystem);
        // A subtype follows a dot: fuse.sshfs.
        let kind = mount.and_then(|mount| mount.fs_type.split('.').next());
        Ok(kind.is_some_and(|kind| elsewhere.contains(&kind)))
    }

    fn no_place(&mut self, file: &Path) {
        tracing::warn!(file = %file.display(), "no path leads to this backing file; its disks are unknown");
        self.found.files.insert(file.to_owned());
        self.found.unplaced.insert(file.to_owned());
    }

    fn add_file(&mut self, path: &Path, id: FileId) -> Result<()> {
        self.found.files.insert(path.to_owned());
        if !self.found.file_ids.insert(id) {
            return Ok(());
        }
        self.add_filesystem(path)
    }

    /// Adds what holds the filesystem that `path` lies on.
    fn add_filesystem(&mut self, path: &Path) -> Result<()> {
        let Some(mount) = self.mount_of(path)? else {
            return Ok(());
        };
        let mount = match mount {
            Place::Device(number) => return self.add_device(number),
            Place::Mount(mount) => mount,
        };
        if !self.mounts.insert(mount.id) {
            return Ok(());
        }
        for directory in stacked_on(&mount) {
            if self.root.try_exists(&directory)? {
                self.add_filesystem(&directory)?;
            }
        }
        for number in devices_of(self.root, &mount)? {
            self.add_device(number)?;
        }
        Ok(())
    }

    /// The device of the filesystem of `path`, or its mount if it has no device number of its own, as btrfs,
    /// overlayfs and network filesystems have none.
    fn mount_of(&self, path: &Path) -> Result<Option<Place>> {
        if !self.root.is_system() {
            return Ok(place(MountTable::own(self.root)?.above(path).cloned()));
        }
        let fail = |source| Error::os("find the filesystem of", path, source);
        let handle = File::options().read(true).custom_flags(libc::O_PATH).open(path);
        let handle = handle.map_err(fail)?;
        let number = DeviceNumber::of_dev(handle.metadata().map_err(fail)?.dev());
        if !number.is_anonymous() {
            return Ok(Some(Place::Device(number)));
        }
        let id = mount_id(self.root, &handle)?;
        let mounts = MountTable::own(self.root)?.mounts;
        Ok(mounts.into_iter().find(|mount| mount.id == id).map(Place::Mount))
    }
}

enum Place {
    Device(DeviceNumber),
    Mount(Mount),
}

fn place(mount: Option<Mount>) -> Option<Place> {
    mount.map(|mount| match mount.number.is_anonymous() {
        false => Place::Device(mount.number),
        true => Place::Mount(mount),
    })
}

/// Directories of other filesystems that this one stores its files in. What is written goes to the upper directory
/// of an overlay; one that is read-only has lower ones alone.
fn stacked_on(mount: &Mount) -> Vec<PathBuf> {
    if mount.fs_type != "overlay" {
        return Vec::new();
    }
    let one = |name| mount.super_option(name).map(PathBuf::from).collect::<Vec<_>>();
    let mut directories = one("upperdir");
    if directories.is_empty() {
        let lists = mount.super_option("lowerdir").flat_map(std::env::split_paths);
        directories = lists.chain(one("lowerdir+")).collect();
    }
    directories.retain(|path| path.is_absolute());
    directories
}

/// The block devices that the filesystem of a mount lies on directly: that of its number, else those that its source
/// names, and all members of a btrfs. None for a filesystem without a block device.
///
/// # Errors
/// `PermissionDenied`, `Malformed`, `Io` when the source or sysfs cannot be examined.
pub fn devices_of(root: &Root, mount: &Mount) -> Result<BTreeSet<DeviceNumber>> {
    if !mount.number.is_anonymous() {
        return Ok(BTreeSet::from([mount.number]));
    }
    let mut named = BTreeSet::new();
    let is_on_devices = matches!(mount.fs_type.as_str(), "btrfs" | "bcachefs");
    // Elsewhere a source may be anything, such as a file on a server that does not answer.
    let paths = mount.source_paths();
    for path in paths.filter(|path| is_on_devices || path.starts_with("/dev")) {
        let metadata = root.metadata(path)?;
        named.extend(metadata.as_ref().and_then(DeviceNumber::of_block_device));
    }
    if mount.fs_type != "btrfs" {
        return Ok(named);
    }
    for pool in root.names("/sys/fs/btrfs")? {
        let directory = Path::new("/sys/fs/btrfs").join(pool).join("devices");
        let members = BlockDevice::all_in(root, &directory)?;
        let members: BTreeSet<DeviceNumber> = members.iter().map(BlockDevice::number).collect();
        if !members.is_disjoint(&named) {
            return Ok(members);
        }
    }
    Ok(named)
}

/// The id of the mount that a file of this process was opened through (proc_pid_fdinfo(5), `mnt_id`), as [`Mount::id`].
///
/// # Errors
/// `NotFound` without procfs; `Malformed`, `PermissionDenied`, `Io`.
pub fn mount_id(root: &Root, file: &File) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
    let text = root.text(&path)?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    id.and_then(|id| id.trim().parse().ok())
        .ok_or_else(|| Error::new(ErrorKind::Malformed, "read", root.join(path)))
}

impl BlockDevice {
    /// What lies behind a loop device, or behind that which it is a partition of; `None` for any other device, and
    /// when nothing is attached.
    ///
    /// # Errors
    /// `PermissionDenied`, `Io` when neither the driver nor the path can be asked.
    pub fn backing(&self) -> Result<Option<Backing>> {
        let Some(path) = self.backing_path()? else {
            return Ok(None);
        };
        let node = match self.loop_status()? {
            Some(LoopStatus {
                device: Some(number), ..
            }) => Some(Node::Device(number)),
            Some(status) => Some(Node::File(path.clone(), status.file)),
            None => {
                let metadata = self.root().metadata(&path)?;
                metadata.map(|metadata| Node::of(&path, &metadata))
            }
        };
        Ok(Some(Backing { path, node }))
    }

    /// The driver knows the file that it holds; a path may be stale. `None` where the driver cannot be asked: without
    /// a node in `/dev`, or without the right to open it.
    fn loop_status(&self) -> Result<Option<LoopStatus>> {
        if !self.root().is_system() {
            return Ok(None);
        }
        match loop_status(&self.whole_disk()?.node()) {
            Ok(status) => Ok(status),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(fs_type: &str, options: &str) -> Mount {
        let line = format!("1 0 0:9 / /merged rw - {fs_type} x {options}");
        MountTable::parse(line.as_bytes()).mounts.remove(0)
    }

    #[test]
    fn an_overlay_lies_on_its_upper_directory() {
        let found = stacked_on(&mount(
            "overlay",
            "rw,lowerdir=/usr:/etc,upperdir=/tmp,workdir=/var",
        ));
        assert_eq!(found, [PathBuf::from("/tmp")]);
        let found = stacked_on(&mount("overlay", "ro,lowerdir=/usr:relative:/etc"));
        assert_eq!(found, [PathBuf::from("/usr"), PathBuf::from("/etc")]);
        let found = stacked_on(&mount("overlay", "ro,lowerdir+=/a,lowerdir+=/b:c"));
        assert_eq!(found, [PathBuf::from("/a"), PathBuf::from("/b:c")]);
        assert!(stacked_on(&mount("ext4", "rw,upperdir=/tmp")).is_empty());
    }
}
