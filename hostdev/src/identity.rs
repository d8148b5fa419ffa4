//! What tells one disk from another, as far as sysfs and udev know.

use std::path::{Path, PathBuf};

use crate::{BlockDevice, DeviceNumber, Result};

const BY_ID: &str = "/dev/disk/by-id";

/// The names a disk goes by. A field is absent where the kernel or udev says nothing.
///
/// A partition has the serial number, WWN and model of its disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Serial number.
    pub serial: Option<String>,
    /// World-wide name, NVMe EUI or NGUID, as the kernel's `wwid` shows it.
    pub wwn: Option<String>,
    /// Names in `/dev/disk/by-id` that lead to this very device, sorted.
    pub by_id: Vec<String>,
    /// UUID of a device-mapper or md device.
    pub uuid: Option<String>,
    /// Disk sequence number: never used twice between two boots (from Linux 5.15).
    pub diskseq: Option<u64>,
    /// The file or device behind a loop device.
    pub backing_file: Option<String>,
    /// Model name.
    pub model: Option<String>,
    /// Number of a partition; absent for a whole disk.
    pub partition: Option<u32>,
    /// What exists and could not be read: the fields that it would have filled are not known to be absent.
    pub unread: Vec<PathBuf>,
}

impl BlockDevice {
    /// What it goes by. What cannot be read is listed in [`Identity::unread`].
    pub fn identity(&self) -> Identity {
        let mut unread = Vec::new();
        Identity {
            serial: known(self.serial(), &mut unread),
            wwn: known(self.wwn(), &mut unread),
            by_id: known(self.names_by_id().map(Some), &mut unread).unwrap_or_default(),
            uuid: known(self.uuid(), &mut unread),
            diskseq: known(self.diskseq(), &mut unread),
            backing_file: known(self.backing_path(), &mut unread)
                .map(|path| path.to_string_lossy().into_owned()),
            model: known(self.model(), &mut unread),
            partition: known(self.partition_number(), &mut unread),
            unread,
        }
    }

    /// Serial number of its disk.
    ///
    /// # Errors
    /// As for [`Root::attribute`](crate::Root::attribute).
    pub fn serial(&self) -> Result<Option<String>> {
        match self.first_of(&["serial", "device/serial"])? {
            Some(serial) => Ok(Some(serial)),
            None => self.vpd_serial(),
        }
    }

    /// World-wide name, NVMe EUI or NGUID of its disk.
    ///
    /// # Errors
    /// As for [`Root::attribute`](crate::Root::attribute).
    pub fn wwn(&self) -> Result<Option<String>> {
        self.first_of(&["wwid", "device/wwid"])
    }

    /// UUID of a device-mapper or md device.
    ///
    /// # Errors
    /// As for [`Root::attribute`](crate::Root::attribute).
    pub fn uuid(&self) -> Result<Option<String>> {
        self.first_of(&["dm/uuid", "md/uuid"])
    }

    /// Model name of its disk.
    ///
    /// # Errors
    /// As for [`Root::attribute`](crate::Root::attribute).
    pub fn model(&self) -> Result<Option<String>> {
        self.first_of(&["device/model"])
    }

    /// The first of its disk's attributes that has a value.
    fn first_of(&self, names: &[&str]) -> Result<Option<String>> {
        let disk = self.whole_disk()?;
        for name in names {
            let value = self.root().attribute(disk.path(name))?;
            if value.is_some() {
                return Ok(value);
            }
        }
        Ok(None)
    }

    /// The unit serial number page of a SCSI disk: four bytes of header, then text (SPC-4, 7.8.16).
    fn vpd_serial(&self) -> Result<Option<String>> {
        let path = self.whole_disk()?.path("device/vpd_pg80");
        let page = self.root().attribute_bytes(path)?.unwrap_or_default();
        let text = String::from_utf8_lossy(page.get(4..).unwrap_or_default());
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    fn names_by_id(&self) -> Result<Vec<String>> {
        let root = self.root();
        let mut names = Vec::new();
        for name in root.names(BY_ID)? {
            let metadata = root.metadata(Path::new(BY_ID).join(&name))?;
            if metadata.as_ref().and_then(DeviceNumber::of_block_device) == Some(self.number()) {
                names.push(name);
            }
        }
        Ok(names)
    }
}

fn known<T>(result: Result<Option<T>>, unread: &mut Vec<PathBuf>) -> Option<T> {
    result.unwrap_or_else(|error| {
        unread.push(error.path().to_owned());
        None
    })
}
