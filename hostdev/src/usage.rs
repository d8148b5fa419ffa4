//! Who uses a block device or file.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::topology::devices_of;
use crate::{BlockDevice, DeviceNumber, FileId, MountTable, Node, Result, Root, swaps};

/// A use of a device, of one of its partitions, or of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// Its filesystem is mounted there.
    Mount(PathBuf),
    /// It is in use as swap, by this path.
    Swap(PathBuf),
    /// It is part of the device with this name of the kernel's: device-mapper, md, bcache.
    Holder(String),
    /// It lies behind the loop device with this node.
    Loop(PathBuf),
}

impl fmt::Display for User {
    /// As a clause: `it is mounted on /srv`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Mount(point) => write!(f, "it is mounted on {}", point.display()),
            User::Swap(path) => write!(f, "it is in use as swap ({})", path.display()),
            User::Holder(name) => write!(f, "it is part of {name}"),
            User::Loop(path) => write!(f, "it is behind {}", path.display()),
        }
    }
}

/// The first user found of a device, of one of its partitions, or of a file; `None` where nobody uses it.
///
/// Looked at are the mounts of this process's namespace, swap areas, holders and loop devices. A process that has it merely
/// open is not found, nor what is mounted in another namespace: an exclusive open (O_EXCL) finds both.
///
/// # Errors
/// `PermissionDenied`, `Malformed`, `Io` when one of these cannot be read: who uses it is not known then.
pub fn first_user(root: &Root, node: &Node) -> Result<Option<User>> {
    let target = Target::of(root, node)?;
    for mount in MountTable::own(root)?.mounts {
        if !target.devices.is_disjoint(&devices_of(root, &mount)?) {
            return Ok(Some(User::Mount(mount.point)));
        }
    }
    for swap in swaps(root)? {
        if target.is_at(root, &swap.path)? {
            return Ok(Some(User::Swap(swap.path)));
        }
    }
    for number in &target.devices {
        let device = BlockDevice::find(root, *number)?;
        let holders = device.map_or(Ok(Vec::new()), |device| device.holders())?;
        if let Some(holder) = holders.first() {
            return Ok(Some(User::Holder(holder.name())));
        }
    }
    target.loop_device(root)
}

struct Target {
    /// The device and its partitions.
    devices: BTreeSet<DeviceNumber>,
    file: Option<FileId>,
}

impl Target {
    fn of(root: &Root, node: &Node) -> Result<Target> {
        let (number, file) = match node {
            Node::Device(number) => (*number, None),
            Node::File(_, id) => {
                return Ok(Target {
                    devices: BTreeSet::new(),
                    file: Some(*id),
                });
            }
        };
        let mut devices = BTreeSet::from([number]);
        if let Some(device) = BlockDevice::find(root, number)? {
            devices.extend(device.partitions()?.iter().map(BlockDevice::number));
        }
        Ok(Target { devices, file })
    }

    fn has(&self, node: &Node) -> bool {
        match node {
            Node::Device(number) => self.devices.contains(number),
            Node::File(_, id) => self.file == Some(*id),
        }
    }

    /// Whether a path leads to one of the devices, or to the very file.
    fn is_at(&self, root: &Root, path: &Path) -> Result<bool> {
        let metadata = root.metadata(path)?;
        Ok(metadata.is_some_and(|metadata| self.has(&Node::of(path, &metadata))))
    }

    fn loop_device(&self, root: &Root) -> Result<Option<User>> {
        for name in root.names("/sys/block")? {
            if !name.starts_with("loop") {
                continue;
            }
            let directory = Path::new("/sys/block").join(name);
            let Some(device) = BlockDevice::in_directory(root, &directory)? else {
                continue;
            };
            let backing = device.backing()?.and_then(|backing| backing.node);
            if backing.is_some_and(|node| self.has(&node)) {
                return Ok(Some(User::Loop(device.node())));
            }
        }
        Ok(None)
    }
}
