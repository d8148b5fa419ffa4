//! A disk of a job, as the tracker sees it.

use hostdev::{BlockDevice, DeviceNumber, Root};

use crate::{Error, ErrorKind, Result};

/// Bytes of the kernel's sectors.
pub(crate) const SECTOR_BYTES: u64 = 512;

/// A job's disk: a whole disk, a partition (its range of the whole disk), or a mapped device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As it was given.
    pub device: DeviceNumber,
    /// Its whole disk: the device itself if it is no partition.
    pub disk: DeviceNumber,
    /// The kernel's name: `vda`, `vda2`, `dm-0`.
    pub name: String,
    /// Where it starts on the whole disk.
    pub start_bytes: u64,
    /// Its size.
    pub size_bytes: u64,
    /// The size of the whole disk.
    pub disk_bytes: u64,
    /// Bytes that have one bit. Clusters are counted from the start of the target.
    pub cluster_bytes: u32,
    /// The whole disk's sequence number; absent before Linux 5.15.
    pub diskseq: Option<u64>,
    /// Whether the whole disk's driver gets bios and not requests: device-mapper, md, zram.
    pub is_bio_based: bool,
}

impl Target {
    /// Looks at a device.
    ///
    /// # Errors
    /// `NotFound` when there is none; `Invalid` for an empty device, or clusters that are not a power of two of at
    /// least 512 bytes; `Io`.
    pub fn of(root: &Root, device: DeviceNumber, cluster_bytes: u32) -> Result<Target> {
        let found = BlockDevice::find(root, device)?;
        let found =
            found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no device {device}")))?;
        let disk = found.whole_disk()?;
        let target = Target {
            device,
            disk: disk.number(),
            name: found.name(),
            start_bytes: found.start_bytes()?,
            size_bytes: found.size_bytes()?,
            disk_bytes: disk.size_bytes()?,
            cluster_bytes,
            diskseq: found.diskseq()?,
            // Only what gets requests has hardware queues.
            is_bio_based: !root.try_exists(format!("/sys/dev/block/{}/mq", disk.number()))?,
        };
        target.check()?;
        Ok(target)
    }

    fn check(&self) -> Result<()> {
        let invalid = |what: &str| Err(Error::new(ErrorKind::Invalid, format!("{}: {what}", self.name)));
        if !self.cluster_bytes.is_power_of_two() || u64::from(self.cluster_bytes) < SECTOR_BYTES {
            return invalid("clusters must have a power of two of at least 512 bytes");
        }
        if self.size_bytes == 0 {
            return invalid("the device is empty");
        }
        Ok(())
    }

    /// How many clusters it has; the last may be short.
    pub fn clusters(&self) -> u64 {
        self.size_bytes.div_ceil(u64::from(self.cluster_bytes))
    }

    /// The same device as it is now.
    ///
    /// # Errors
    /// As for [`of`](Target::of).
    pub(crate) fn again(&self, root: &Root) -> Result<Target> {
        Target::of(root, self.device, self.cluster_bytes)
    }
}
