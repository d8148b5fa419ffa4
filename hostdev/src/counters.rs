//! How much was read from and written to a device: the kernel's own count.

use crate::{BlockDevice, Error, ErrorKind, Result};

/// I/O counters since the device appeared (Documentation/block/stat.rst, Documentation/ABI/stable/sysfs-block).
/// Sectors have 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Reads completed.
    pub reads: u64,
    /// Sectors read.
    pub read_sectors: u64,
    /// Writes completed.
    pub writes: u64,
    /// Sectors written.
    pub written_sectors: u64,
    /// Discards; `None` before Linux 4.18.
    pub discards: Option<Discards>,
    /// Writes that were issued and have not completed.
    pub writes_in_flight: u64,
}

/// Discards (TRIM) that completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discards {
    /// How many.
    pub count: u64,
    /// Sectors discarded.
    pub sectors: u64,
}

impl BlockDevice {
    /// Its I/O counters. With [`is_counting`](BlockDevice::is_counting) off they stand still.
    ///
    /// # Errors
    /// `NotFound` when the device is gone; `Malformed`; `PermissionDenied`, `Io`.
    pub fn counters(&self) -> Result<Counters> {
        let stat = self.numbers("stat")?;
        let in_flight = self.numbers("inflight")?;
        let malformed =
            |file: &str| Error::new(ErrorKind::Malformed, "read", self.root().join(self.path(file)));
        // Fields are counted from 1 in the documentation.
        let field = |number: usize| stat.get(number - 1).copied();
        let needed = |number| field(number).ok_or_else(|| malformed("stat"));
        Ok(Counters {
            reads: needed(1)?,
            read_sectors: needed(3)?,
            writes: needed(5)?,
            written_sectors: needed(7)?,
            discards: field(12)
                .zip(field(14))
                .map(|(count, sectors)| Discards { count, sectors }),
            writes_in_flight: *in_flight.get(1).ok_or_else(|| malformed("inflight"))?,
        })
    }

    /// Whether the kernel counts the I/O of its disk; `None` where it does not say.
    ///
    /// # Errors
    /// As for [`Root::number`](crate::Root::number).
    pub fn is_counting(&self) -> Result<Option<bool>> {
        let iostats = self.root().number(self.whole_disk()?.path("queue/iostats"))?;
        Ok(iostats.map(|value| value != 0))
    }

    fn numbers(&self, file: &str) -> Result<Vec<u64>> {
        let path = self.path(file);
        let text = self.root().text(&path)?;
        let numbers = text.split_whitespace().map(|field| field.parse().ok());
        let numbers: Option<Vec<u64>> = numbers.collect();
        numbers.ok_or_else(|| Error::new(ErrorKind::Malformed, "read", self.root().join(path)))
    }
}
