//! What lies on disks: filesystems in all mount namespaces, swap, and what nobody accounts for.

use crate::order::{Place, freeze_order};
use crate::{Error, ErrorKind, Result};
use hostdev::{Block, BlockDevice, DeviceNumber, Inventory, Namespaces, Node, PlacedMount, Root};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Kinds of filesystems that the kernel freezes for us: they lie on disks of this machine alone.
const FREEZABLE: [&str; 10] = [
    "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "nilfs2", "reiserfs", "xfs",
];

/// What lies on some disks.
#[derive(Debug)]
pub struct OnDisks {
    /// Filesystems in the order in which they are frozen: the newest first, but none before one that is stored in its files.
    pub filesystems: Vec<Filesystem>,
    /// Devices and files in use as swap: they are written to whatever is frozen.
    pub swaps: Vec<PathBuf>,
    /// What may write to the disks and is none of these, or may be: an instant without it is none.
    pub unaccounted: Vec<Unaccounted>,
    /// The block devices that are the disks, their partitions, and what is made of them: those at the top first.
    pub(crate) devices: Vec<PathBuf>,
}

/// A mounted filesystem.
#[derive(Debug)]
pub struct Filesystem {
    /// Where it is mounted: in a directory of `/proc` if that is seen by other processes only.
    pub mount_point: PathBuf,
    /// Its type, as mountinfo(5) has it.
    pub fs_type: String,
    /// What can be done with it.
    pub kind: Kind,
    number: DeviceNumber,
    /// Open on it, unless it is unreachable.
    pub(crate) file: Option<File>,
}

/// What can be done with a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It can be flushed and frozen.
    Freezable,
    /// It can be flushed but not frozen, as vfat.
    NotFreezable,
    /// Nothing can be written to it.
    ReadOnly,
    /// None of the directories where it is mounted can be opened.
    Unreachable,
}

/// Something on a disk that nobody accounts for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unaccounted {
    /// A program, a virtual machine or the kernel holds this device for itself.
    Held(PathBuf),
    /// This exists and cannot be read: what it would have said is not known.
    Unread(PathBuf),
    /// A loop device lies on this file, and nobody knows on which disks the file lies.
    Unplaced(PathBuf),
}

impl fmt::Display for Unaccounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unaccounted::Held(device) => write!(
                f,
                "{} is held by something that is neither a mounted filesystem nor swap",
                device.display()
            ),
            Unaccounted::Unread(path) => write!(f, "{} cannot be read", path.display()),
            Unaccounted::Unplaced(file) => write!(f, "the disks of {} are not known", file.display()),
        }
    }
}

impl OnDisks {
    /// Whether the same filesystems lie on the disks as in `other`, and the same is unaccounted for.
    pub fn is_same(&self, other: &OnDisks) -> bool {
        let numbers = |found: &OnDisks| -> BTreeSet<(DeviceNumber, bool)> {
            let filesystems = found.filesystems.iter();
            filesystems
                .map(|one| (one.number, one.kind == Kind::ReadOnly))
                .collect()
        };
        numbers(self) == numbers(other) && self.unaccounted == other.unaccounted
    }
}

/// Whether it is found out which devices somebody holds who is neither a mounted filesystem nor swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holders {
    /// It is: each device that nothing seems to use is opened exclusively for a moment. Mounting it at that moment fails, because it
    /// is busy.
    Find,
    /// Nothing is opened exclusively.
    Ignore,
}

/// Finds what lies on disks: devices, or files that are imaged as disks. It opens a directory of each filesystem, so that none of
/// them can be unmounted until the value is dropped.
///
/// # Errors
/// `Unknown` when the kernel does not say what lies on what. A part that is not known is [`Unaccounted`].
pub fn on_disks(disks: &[Node], holders: Holders) -> Result<OnDisks> {
    let root = Root::system();
    let inventory = Inventory::read(&root, Namespaces::All).map_err(unknown)?;
    let mut finder = Finder {
        root,
        disks: disks.iter().cloned().collect(),
        inventory,
        below: BTreeMap::new(),
        unaccounted: BTreeSet::new(),
        holders,
    };
    finder.add_same_content()?;
    finder.note_unread();
    let filesystems = finder.filesystems();
    let swaps = finder.swaps()?;
    let devices = finder.devices()?;
    Ok(OnDisks {
        filesystems,
        swaps,
        unaccounted: finder.unaccounted.into_iter().collect(),
        devices,
    })
}

fn unknown(error: hostdev::Error) -> Error {
    Error::caused(
        ErrorKind::Unknown,
        "cannot find out what lies on the disks",
        error,
    )
}

/// What lies below a device.
#[derive(Debug, Clone, Default)]
struct Below {
    devices: BTreeSet<DeviceNumber>,
    is_on_disks: bool,
}

struct Finder {
    root: Root,
    /// The disks, and what else holds their bytes.
    disks: BTreeSet<Node>,
    inventory: Inventory,
    below: BTreeMap<DeviceNumber, Below>,
    unaccounted: BTreeSet<Unaccounted>,
    holders: Holders,
}

impl Finder {
    /// A loop device on a disk or file is another name for it.
    fn add_same_content(&mut self) -> Result<()> {
        let mut next: Vec<Node> = self.disks.iter().cloned().collect();
        while let Some(Node::Device(number)) = next.pop() {
            let device = BlockDevice::find(&self.root, number).map_err(unknown)?;
            let backing = device
                .map_or(Ok(None), |device| device.backing())
                .map_err(unknown)?;
            if let Some(node) = backing.and_then(|backing| backing.node)
                && self.disks.insert(node.clone())
            {
                next.push(node);
            }
        }
        Ok(())
    }

    /// Tables and attributes that exist and could not be read.
    fn note_unread(&mut self) {
        for error in self.inventory.take_unread() {
            self.unread(&error);
        }
        let attributes = self.inventory.devices().flat_map(|block| &block.unread);
        self.unaccounted
            .extend(attributes.cloned().map(Unaccounted::Unread));
    }

    /// What went away meanwhile has nothing on it any more.
    fn unread(&mut self, error: &hostdev::Error) {
        if error.kind() != hostdev::ErrorKind::NotFound {
            self.unaccounted
                .insert(Unaccounted::Unread(error.path().to_owned()));
        }
    }

    /// Everything below a device, and whether the disks are in it.
    fn below(&mut self, number: DeviceNumber) -> Below {
        if let Some(known) = self.below.get(&number) {
            return known.clone();
        }
        let found = match hostdev::below(&self.root, &Node::Device(number)) {
            Ok(found) => found,
            Err(error) => {
                self.unread(&error);
                hostdev::Dependencies::default()
            }
        };
        let is_disk = |node: &Node| match node {
            Node::Device(number) => found.devices.contains(number),
            Node::File(_, id) => found.file_ids.contains(id),
        };
        let below = Below {
            is_on_disks: self.disks.iter().any(is_disk),
            devices: found.devices,
        };
        if !below.is_on_disks {
            self.unaccounted
                .extend(found.unplaced.into_iter().map(Unaccounted::Unplaced));
        }
        self.below.insert(number, below.clone());
        below
    }

    fn place(&mut self, names: &BTreeSet<String>) -> (Place, bool) {
        let (mut place, mut is_on_disks) = (Place::default(), false);
        for name in names {
            let Some(number) = self.inventory.device(name).map(|device| device.number) else {
                continue;
            };
            let below = self.below(number);
            is_on_disks |= below.is_on_disks;
            place.devices.insert(number);
            place.below.extend(below.devices);
        }
        (place, is_on_disks)
    }

    /// The filesystems on the disks, in the order in which they are frozen.
    fn filesystems(&mut self) -> Vec<Filesystem> {
        let mut mounts: Vec<Vec<PlacedMount>> = Vec::new();
        for placed in self.inventory.mounts() {
            match mounts.iter_mut().find(|same| same[0].number == placed.number) {
                Some(same) => same.push(placed.clone()),
                None => mounts.push(vec![placed.clone()]),
            }
        }
        let mut found = Vec::new();
        for mounts in mounts {
            let (place, is_on_disks) = self.place(&mounts[0].devices);
            if is_on_disks {
                found.push((place, Some(Filesystem::open(&self.root, &mounts))));
            }
        }
        let order = freeze_order(&found.iter().map(|(place, _)| place).collect::<Vec<_>>());
        order
            .into_iter()
            .filter_map(|place| found[place].1.take())
            .collect()
    }

    fn swaps(&mut self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for swap in self.inventory.swaps().to_vec() {
            let number = self
                .inventory
                .name_at(&swap.path)
                .and_then(|name| self.inventory.device(name));
            let is_on_disks = match number.map(|device| device.number) {
                Some(number) => self.below(number).is_on_disks,
                None => {
                    let devices = hostdev::disks_below(&self.root, &swap.path).map_err(unknown)?;
                    devices
                        .iter()
                        .any(|&number| self.disks.contains(&Node::Device(number)))
                }
            };
            if is_on_disks {
                found.push(swap.path);
            }
        }
        Ok(found)
    }

    /// The devices that lie on the disks. Notes those that somebody holds for something unknown.
    fn devices(&mut self) -> Result<Vec<PathBuf>> {
        let blocks: Vec<Block> = self.inventory.devices().cloned().collect();
        let explained = self.explained(&blocks)?;
        let mut found = Vec::new();
        for block in blocks
            .iter()
            .filter(|block| block.size_bytes > 0 && !block.hidden)
        {
            let below = self.below(block.number);
            if !below.is_on_disks {
                continue;
            }
            let is_in_question = self.holders == Holders::Find && !explained.contains(&block.number);
            if is_in_question && is_held(&block.node()) {
                self.unaccounted.insert(Unaccounted::Held(block.node()));
            }
            found.push((below.devices.len(), block.node()));
        }
        found.sort_by(|a, b| b.cmp(a));
        Ok(found.into_iter().map(|(_, node)| node).collect())
    }

    /// Devices of which is known why somebody holds them.
    fn explained(&self, blocks: &[Block]) -> Result<BTreeSet<DeviceNumber>> {
        let number = |name: &str| self.inventory.device(name).map(|device| device.number);
        let mut explained = BTreeSet::new();
        for placed in self.inventory.mounts() {
            explained.extend(placed.devices.iter().filter_map(|name| number(name)));
        }
        for swap in self.inventory.swaps() {
            explained.extend(self.inventory.name_at(&swap.path).and_then(number));
        }
        for block in blocks {
            // The kernel holds a disk whose partition is held.
            explained.extend(block.disk.as_deref().and_then(number));
            explained.extend(block.below.iter().filter_map(|name| number(name)));
            if block.backing_path.is_some() {
                let device = BlockDevice::find(&self.root, block.number).map_err(unknown)?;
                let backing = device
                    .map_or(Ok(None), |device| device.backing())
                    .map_err(unknown)?;
                if let Some(Node::Device(number)) = backing.and_then(|backing| backing.node) {
                    explained.insert(number);
                }
            }
        }
        Ok(explained)
    }
}

/// Whether somebody has a device open exclusively.
fn is_held(node: &Path) -> bool {
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_EXCL | libc::O_NONBLOCK)
        .open(node);
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

impl Filesystem {
    /// Opens one of the mounts of a filesystem: of the whole filesystem rather than of a part.
    fn open(root: &Root, mounts: &[PlacedMount]) -> Filesystem {
        let first = &mounts[0].mount;
        let mut by_size: Vec<&PlacedMount> = mounts.iter().collect();
        by_size.sort_by_key(|placed| placed.root != Path::new("/"));
        let mut opened = by_size
            .iter()
            .find_map(|placed| open(root, placed, &placed.point));
        if opened.is_none() {
            let seen_elsewhere = |placed: &&PlacedMount| open(root, placed, &path_elsewhere(placed)?);
            opened = by_size.iter().find_map(seen_elsewhere);
        }
        let kind = match opened {
            _ if first.is_filesystem_read_only() => Kind::ReadOnly,
            None => Kind::Unreachable,
            Some(_) if FREEZABLE.contains(&first.fs_type.as_str()) => Kind::Freezable,
            Some(_) => Kind::NotFreezable,
        };
        let (mount_point, file) = opened.unzip();
        Filesystem {
            mount_point: mount_point.unwrap_or_else(|| first.point.clone()),
            fs_type: first.fs_type.clone(),
            kind,
            number: first.number,
            file,
        }
    }

    /// The device number of its files: of a filesystem on one device, the number of that.
    pub fn number(&self) -> DeviceNumber {
        self.number
    }

    /// Whether it takes part in a freeze.
    pub(crate) fn to_freeze(&self) -> Option<&File> {
        self.file.as_ref().filter(|_| self.kind == Kind::Freezable)
    }
}

/// The path of a mount that another process sees.
fn path_elsewhere(placed: &PlacedMount) -> Option<PathBuf> {
    let its_root = PathBuf::from(format!("/proc/{}/root", placed.process?));
    Some(its_root.join(placed.point.strip_prefix("/").unwrap_or(&placed.point)))
}

/// Opens a mount by a path; `None` if that is not where the path leads, or it cannot be opened.
fn open(root: &Root, placed: &PlacedMount, path: &Path) -> Option<(PathBuf, File)> {
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_DIRECTORY)
        .open(path);
    let file = match opened {
        // A file can be mounted too, in a container.
        Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => root.open(path).ok()?,
        opened => opened.ok()?,
    };
    let is_it = hostdev::mount_id(root, &file).is_ok_and(|id| id == placed.id);
    is_it.then(|| (path.to_owned(), file))
}
