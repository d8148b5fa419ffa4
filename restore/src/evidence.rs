//! What the kernel shows of writes to a device or file: whether there was one, and whether there was another one than our own.

use crate::target::Target;
use anyhow::Context;
use hostdev::{BlockDevice, Counters, Node, Root};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::Duration;

/// A file's times are counted in steps that are no longer than this; so long is also waited for a device's last write to be counted.
const STEP: Duration = Duration::from_millis(20);
/// How many of them are waited for.
const STEPS: usize = 10;
/// The kernel counts what is written in these.
const SECTOR_BYTES: u64 = 512;

/// By what is seen that nothing was written since. Two that are equal show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The counters of the whole disk, since the machine was started and the device appeared.
    Device {
        /// The id of the boot.
        boot: String,
        /// Number of the disk among all that have appeared.
        diskseq: u64,
        /// Size of the device.
        size_bytes: u64,
        /// Completed write requests.
        writes: u64,
        /// What they wrote, zeros too, in sectors of 512 bytes.
        written_sectors: u64,
        /// Requests that discarded, and the sectors that they discarded.
        discards: Option<(u64, u64)>,
    },
    /// Times in seconds since 1970, and nanoseconds.
    File {
        /// The id of the boot: what a file held before a crash need not be what it holds after it.
        boot: String,
        /// Filesystem and inode.
        file: (u64, u64),
        /// Its size.
        size_bytes: u64,
        /// When its content was changed last.
        modified: (i64, i64),
        /// When its content or its inode was changed last.
        changed: (i64, i64),
    },
}

impl Evidence {
    /// What can be seen now; `None` where it would say nothing.
    ///
    /// # Errors
    /// What cannot be read of the target.
    pub fn of(target: &Target) -> anyhow::Result<Option<Self>> {
        match target.device.node() {
            Node::Device(number) => {
                let device = BlockDevice::find(&Root::system(), *number)?.context("the device is gone")?;
                Self::of_device(&device, target.device.size_bytes())
            }
            Node::File(..) => Self::of_file(&target.file),
        }
    }

    /// Waits until every write that has ended is counted.
    fn of_device(device: &BlockDevice, size_bytes: u64) -> anyhow::Result<Option<Self>> {
        let whole = device.whole_disk()?;
        let (Some(true), Some(diskseq)) = (whole.is_counting()?, whole.diskseq()?) else {
            return Ok(None);
        };
        for _ in 0..STEPS {
            let Counters {
                writes,
                written_sectors,
                discards,
                writes_in_flight,
                ..
            } = whole.counters()?;
            if writes_in_flight == 0 {
                return Ok(Some(Self::Device {
                    boot: boot()?,
                    diskseq,
                    size_bytes,
                    writes,
                    written_sectors,
                    discards: discards.map(|discards| (discards.count, discards.sectors)),
                }));
            }
            sleep(STEP);
        }
        Ok(None)
    }

    /// Waits until the file's time is in the past: then every later change gives it another one.
    fn of_file(file: &File) -> anyhow::Result<Option<Self>> {
        for _ in 0..STEPS {
            let found = file.metadata().context("examine the file")?;
            let changed = i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec());
            let step = i128::try_from(STEP.as_nanos()).unwrap_or(i128::MAX);
            if Timestamp::now().as_nanosecond() > changed + step {
                return Ok(Some(Self::File {
                    boot: boot()?,
                    file: (found.dev(), found.ino()),
                    size_bytes: found.size(),
                    modified: (found.mtime(), found.mtime_nsec()),
                    changed: (found.ctime(), found.ctime_nsec()),
                }));
            }
            sleep(STEP);
        }
        Ok(None)
    }

    /// Whether what we wrote since `before` is all that was written.
    fn judge(&self, before: &Self, written: Wrote) -> Seen {
        let bytes = match written {
            Wrote::Exactly(0) if self == before => return Seen::OnlyOurs,
            Wrote::Exactly(0) => return Seen::Others,
            Wrote::Exactly(bytes) => bytes,
            Wrote::Something => return Seen::Unknown,
        };
        let (
            Self::Device {
                written_sectors: old, ..
            },
            Self::Device {
                writes,
                written_sectors: new,
                ..
            },
        ) = (before, self)
        else {
            // The times of a file do not say who wrote.
            return Seen::Unknown;
        };
        // How many requests our own writes became is not known: how much they wrote is.
        let but_for_writes = before.with_writes(*writes, *new);
        let expected = old + bytes / SECTOR_BYTES;
        match new.cmp(&expected) {
            Ordering::Greater => Seen::Others,
            Ordering::Equal if but_for_writes == *self => Seen::OnlyOurs,
            // Zeros by a request that the device counts otherwise, or not at all.
            _ => Seen::Unknown,
        }
    }

    fn with_writes(&self, count: u64, sectors: u64) -> Self {
        let mut changed = self.clone();
        if let Self::Device {
            writes,
            written_sectors,
            ..
        } = &mut changed
        {
            (*writes, *written_sectors) = (count, sectors);
        }
        changed
    }
}

/// What we wrote ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrote {
    /// So many bytes, in whole sectors.
    Exactly(u64),
    /// Something through the page cache, of which the kernel may have made more.
    Something,
}

/// What the kernel has counted besides our own writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    OnlyOurs,
    Others,
    Unknown,
}

/// Why it is known what a target holds: all of it was read, and from then on no write was seen but our own.
#[derive(Debug)]
pub struct Proof {
    /// When all of it was read last, and had the digests of an image.
    pub compared: Timestamp,
    /// What was seen then, or when that was believed last.
    pub(crate) evidence: Option<Evidence>,
    /// What we wrote since.
    pub(crate) wrote: Wrote,
}

impl Proof {
    /// Of a target of which all is read from now on, and nothing is written.
    ///
    /// # Errors
    /// What cannot be read of the target.
    pub fn begin(target: &Target) -> anyhow::Result<Self> {
        Ok(Self {
            compared: Timestamp::now(),
            evidence: Evidence::of(target)?,
            wrote: Wrote::Exactly(0),
        })
    }

    /// Whether no other write was seen until `now`.
    pub(crate) fn judge(&self, now: Option<&Evidence>) -> Seen {
        match (now, &self.evidence) {
            (Some(now), Some(before)) => now.judge(before, self.wrote),
            _ => Seen::Unknown,
        }
    }
}

fn boot() -> anyhow::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the id of this boot")?;
    Ok(boot.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use testkit::guard::{LoopDevice, ScratchDir};

    /// Whether a write of one block is noticed, and a read is not; and whether it is known for our own.
    fn notices_writes(path: &Path, directory: &Path, knows_own: bool) {
        let target = Target::open(path, 1 << 20, directory).unwrap();
        let before = Evidence::of(&target).unwrap().unwrap();
        target.set_buffered();
        let mut block = [0; 4096];
        target.file.read_exact_at(&mut block, 4096).unwrap();
        assert_eq!(Evidence::of(&target).unwrap().unwrap(), before);
        target.file.write_all_at(&block, 4096).unwrap();
        target.file.sync_all().unwrap();
        let after = Evidence::of(&target).unwrap().unwrap();
        assert_ne!(after, before);
        let seen = |bytes| after.judge(&before, Wrote::Exactly(bytes));
        let ours = if knows_own { Seen::OnlyOurs } else { Seen::Unknown };
        assert_eq!(
            (seen(4096), seen(0), seen(8192)),
            (ours, Seen::Others, Seen::Unknown)
        );
        if knows_own {
            assert_eq!(seen(2048), Seen::Others, "another program wrote as much again");
        }
    }

    #[test]
    fn a_write_to_a_file_or_a_device_is_noticed() {
        let scratch = ScratchDir::new("smc-held").unwrap();
        let store = scratch.join("store");
        fs::create_dir(&store).unwrap();
        let file = scratch.sparse_file("disk", 1 << 20).unwrap();
        notices_writes(&file, &store, false);
        let device = LoopDevice::attach(&file).unwrap();
        notices_writes(device.path(), &store, true);
        device.detach().unwrap();
    }
}
