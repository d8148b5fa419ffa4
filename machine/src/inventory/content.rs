//! What udev or blkid recognize on a device: filesystem, partition table, the type of a partition.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::{Duration, Instant};

use super::Device;
use crate::command::{output_of, within};
use crate::root::Root;

/// How long blkid may look at one device, and at all of them together.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);
const PROBES_TIMEOUT: Duration = Duration::from_secs(3);

/// What blkid prints of one device is a few lines.
const PROBE_MAX_BYTES: u64 = 64 << 10;

/// What was recognized on a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    /// Filesystem, or the format of a member: `ext4`, `swap`, `LVM2_member`.
    pub fs_type: Option<String>,
    /// The filesystem's UUID.
    pub fs_uuid: Option<String>,
    /// Partition table: `gpt`, `dos`.
    pub table: Option<String>,
    /// Type of the partition that it is: a GUID, or a number such as `0xef`.
    pub entry_type: Option<String>,
    /// Whether anything looked: what is absent then is not there.
    pub looked: bool,
}

impl Content {
    /// Takes one `NAME=VALUE`, as udev and blkid call them.
    fn take(&mut self, line: &str) {
        let Some((name, value)) = line.split_once('=').filter(|(_, value)| !value.is_empty()) else {
            return;
        };
        let field = match name {
            "ID_FS_TYPE" | "TYPE" => &mut self.fs_type,
            "ID_FS_UUID" | "UUID" => &mut self.fs_uuid,
            "ID_PART_TABLE_TYPE" | "PTTYPE" => &mut self.table,
            "ID_PART_ENTRY_TYPE" | "PART_ENTRY_TYPE" => &mut self.entry_type,
            _ => return,
        };
        *field = Some(value.to_owned());
    }
}

/// Asks udev's database about every device, and blkid about those that udev knows nothing of.
pub(super) fn add(root: &Root, devices: &mut BTreeMap<String, Device>) {
    let deadline = Instant::now() + PROBES_TIMEOUT;
    for device in devices
        .values_mut()
        .filter(|device| device.size_bytes > 0 && !device.hidden)
    {
        if from_udev(root, device) || !root.is_system() {
            continue;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            from_blkid(device, left.min(PROBE_TIMEOUT));
        }
    }
}

/// Reads `/run/udev/data/bMAJOR:MINOR`, with lines `E:NAME=VALUE`. False if udev does not know the device.
fn from_udev(root: &Root, device: &mut Device) -> bool {
    let Some((major, minor)) = device.number else {
        return false;
    };
    let Ok(text) = root.text(format!("/run/udev/data/b{major}:{minor}")) else {
        return false;
    };
    let values = || text.lines().filter_map(|line| line.strip_prefix("E:"));
    values().for_each(|line| device.content.take(line));
    let value = |name: &str| {
        let found = values().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.map(str::to_owned)
    };
    device.model = device.model.take().or_else(|| value("ID_MODEL"));
    device.serial = device.serial.take().or_else(|| value("ID_SERIAL_SHORT"));
    // Under a device without a medium, or one that udev was told to pass over, there may be no type.
    device.content.looked = true;
    true
}

/// Lets blkid look at the device itself (`-p`), which neither reads nor writes its cache.
fn from_blkid(device: &mut Device, timeout: Duration) {
    let path = device.path();
    // A device that cannot be read looks to blkid like one without content.
    if first_sector(&Root::system(), &path, timeout).is_none() {
        return;
    }
    let args = ["-p", "-o", "export", path.as_str()];
    if let Ok(text) = output_of("blkid", &args, timeout, PROBE_MAX_BYTES) {
        text.lines().for_each(|line| device.content.take(line));
        device.content.looked = true;
    }
}

/// The first sector of a device; none if it cannot be read, or not within `timeout`.
pub(crate) fn first_sector(root: &Root, path: &str, timeout: Duration) -> Option<[u8; 512]> {
    let (root, path) = (root.clone(), path.to_owned());
    within(timeout, move || {
        let mut sector = [0; 512];
        root.open(path).ok()?.read_exact(&mut sector).ok()?;
        Some(sector)
    })?
}
