//! One block device as sysfs shows it (Documentation/ABI/stable/sysfs-block in the kernel's source).

use std::path::{Path, PathBuf};

use crate::{DeviceNumber, Error, ErrorKind, Result, Root};

/// Bytes of the sectors that sysfs counts in, whatever the device's own are.
pub(crate) const SECTOR_BYTES: u64 = 512;

/// A disk, a partition or a mapped device that the kernel has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    root: Root,
    number: DeviceNumber,
    /// `/sys/devices/…/block/NAME`, links resolved.
    directory: PathBuf,
    is_partition: bool,
}

/// What device-mapper calls a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// Its name, of the node in `/dev/mapper`.
    pub name: String,
    /// Starts with what made it: `LVM-`, `CRYPT-`, `mpath-`. May be empty.
    pub uuid: String,
}

impl BlockDevice {
    /// The device with this number; `None` if the kernel has none.
    ///
    /// # Errors
    /// `PermissionDenied`, `WrongType` or `Io` when sysfs cannot be read.
    pub fn find(root: &Root, number: DeviceNumber) -> Result<Option<BlockDevice>> {
        let link = format!("/sys/dev/block/{number}");
        let Some(directory) = root.resolve(link)? else {
            return Ok(None);
        };
        BlockDevice::new(root, number, directory).map(Some)
    }

    fn new(root: &Root, number: DeviceNumber, directory: PathBuf) -> Result<BlockDevice> {
        let is_partition = root.try_exists(directory.join("partition"))?;
        Ok(BlockDevice {
            root: root.clone(),
            number,
            directory,
            is_partition,
        })
    }

    /// The device whose node a path leads to; `None` if the path leads to no block device, or nowhere.
    ///
    /// # Errors
    /// `PermissionDenied` or `Io` when the path cannot be examined; as for [`find`](BlockDevice::find).
    pub fn at(root: &Root, path: &Path) -> Result<Option<BlockDevice>> {
        let metadata = root.metadata(path)?;
        match metadata.as_ref().and_then(DeviceNumber::of_block_device) {
            Some(number) => BlockDevice::find(root, number),
            None => Ok(None),
        }
    }

    /// The device with a directory in sysfs; `None` if it is gone.
    ///
    /// # Errors
    /// As for [`find`](BlockDevice::find); `Malformed` when its number is none.
    pub(crate) fn in_directory(root: &Root, directory: &Path) -> Result<Option<BlockDevice>> {
        let Some(directory) = root.resolve(directory)? else {
            return Ok(None);
        };
        let dev = directory.join("dev");
        let Some(text) = root.attribute(&dev)? else {
            return Ok(None);
        };
        let number = text
            .parse()
            .map_err(|_| Error::new(ErrorKind::Malformed, "read", root.join(dev)))?;
        BlockDevice::new(root, number, directory).map(Some)
    }

    /// Its number.
    pub fn number(&self) -> DeviceNumber {
        self.number
    }

    /// The kernel's name: `vda`, `nvme0n1p2`, `cciss!c0d0`. A slash in a name is shown as `!`.
    pub fn name(&self) -> String {
        let name = self.directory.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The node in `/dev`.
    pub fn node(&self) -> PathBuf {
        node(&self.name())
    }

    /// Whether it is a partition of a disk.
    pub fn is_partition(&self) -> bool {
        self.is_partition
    }

    /// Number of a partition; `None` for a whole disk.
    ///
    /// # Errors
    /// As for [`Root::number`].
    pub fn partition_number(&self) -> Result<Option<u32>> {
        let path = self.path("partition");
        let number = self.root.number(&path)?.map(u32::try_from).transpose();
        number.map_err(|_| Error::new(ErrorKind::Malformed, "read", self.root.join(path)))
    }

    /// Disk sequence number of its disk: never used twice between two boots; `None` before Linux 5.15.
    ///
    /// # Errors
    /// As for [`Root::number`].
    pub fn diskseq(&self) -> Result<Option<u64>> {
        self.root.number(self.whole_disk()?.path("diskseq"))
    }

    /// The disk that it is a partition of; the device itself if it is no partition.
    ///
    /// # Errors
    /// `NotFound` when the disk is gone; `PermissionDenied`, `Malformed`, `Io`.
    pub fn whole_disk(&self) -> Result<BlockDevice> {
        let Some(parent) = self.directory.parent().filter(|_| self.is_partition) else {
            return Ok(self.clone());
        };
        let disk = BlockDevice::in_directory(&self.root, parent)?;
        disk.ok_or_else(|| Error::new(ErrorKind::NotFound, "examine", self.root.join(parent)))
    }

    /// The partitions of a whole disk, by name.
    ///
    /// # Errors
    /// `PermissionDenied`, `TooLarge`, `Malformed`, `Io`.
    pub fn partitions(&self) -> Result<Vec<BlockDevice>> {
        // A partition's directory starts with the name of its disk.
        let disk = self.name();
        let mut devices = devices_in(&self.root, &self.directory, |name| name.starts_with(&disk))?;
        devices.retain(|device| device.is_partition);
        Ok(devices)
    }

    /// The devices that it lies on directly: those of a device-mapper, md or bcache device.
    ///
    /// # Errors
    /// `PermissionDenied`, `TooLarge`, `Malformed`, `Io`.
    pub fn slaves(&self) -> Result<Vec<BlockDevice>> {
        BlockDevice::all_in(&self.root, &self.path("slaves"))
    }

    /// The devices that lie on it directly.
    ///
    /// # Errors
    /// As for [`slaves`](BlockDevice::slaves).
    pub fn holders(&self) -> Result<Vec<BlockDevice>> {
        BlockDevice::all_in(&self.root, &self.path("holders"))
    }

    /// The devices that a directory of sysfs links to.
    ///
    /// # Errors
    /// As for [`slaves`](BlockDevice::slaves).
    pub(crate) fn all_in(root: &Root, directory: &Path) -> Result<Vec<BlockDevice>> {
        devices_in(root, directory, |_| true)
    }

    /// Size in bytes.
    ///
    /// # Errors
    /// As for [`Root::number`]; `NotFound` when the device is gone.
    pub fn size_bytes(&self) -> Result<u64> {
        let path = self.path("size");
        let sectors = self.root.number(&path)?;
        sectors
            .and_then(|sectors| sectors.checked_mul(SECTOR_BYTES))
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "read", self.root.join(path)))
    }

    /// First byte of a partition on its disk; 0 for a whole disk.
    ///
    /// # Errors
    /// As for [`Root::number`].
    pub fn start_bytes(&self) -> Result<u64> {
        let path = self.path("start");
        let sectors = self.root.number(&path)?.unwrap_or(0);
        let start = sectors.checked_mul(SECTOR_BYTES);
        start.ok_or_else(|| Error::new(ErrorKind::Malformed, "read", self.root.join(path)))
    }

    /// The smallest unit that its disk reads and writes, in bytes; `None` where sysfs does not say.
    ///
    /// # Errors
    /// As for [`Root::number`].
    pub fn logical_block_bytes(&self) -> Result<Option<u64>> {
        self.root
            .number(self.whole_disk()?.path("queue/logical_block_size"))
    }

    /// The I/O scheduler of its disk, for example `bfq` or `none`; `None` where sysfs has none, as for most bio-based devices.
    ///
    /// # Errors
    /// As for [`Root::attribute`].
    pub fn scheduler(&self) -> Result<Option<String>> {
        let all = self.root.attribute(self.whole_disk()?.path("queue/scheduler"))?;
        Ok(all.map(|all| chosen(&all).to_owned()))
    }

    /// What device-mapper calls it; `None` if it is none of its devices.
    ///
    /// # Errors
    /// As for [`Root::attribute`].
    pub fn mapped(&self) -> Result<Option<Mapped>> {
        let Some(name) = self.root.attribute(self.path("dm/name"))? else {
            return Ok(None);
        };
        let uuid = self.root.attribute(self.path("dm/uuid"))?.unwrap_or_default();
        Ok(Some(Mapped { name, uuid }))
    }

    /// The machine it is on.
    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// The path of one of its attributes.
    pub(crate) fn path(&self, attribute: impl AsRef<Path>) -> PathBuf {
        self.directory.join(attribute)
    }
}

/// The one in brackets of `[none] mq-deadline`; the only one has none.
fn chosen(all: &str) -> &str {
    let mut words = all.split_whitespace();
    let chosen = words.find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    chosen.unwrap_or(all.trim())
}

/// A device that goes while the directory is read is not in it.
fn devices_in(root: &Root, directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<BlockDevice>> {
    let mut devices = Vec::new();
    for name in root.names(directory)?.into_iter().filter(|name| wanted(name)) {
        devices.extend(BlockDevice::in_directory(root, &directory.join(name))?);
    }
    Ok(devices)
}

/// The node in `/dev` of the device with the kernel's name `name`.
pub(crate) fn node(name: &str) -> PathBuf {
    Path::new("/dev").join(name.replace('!', "/"))
}
