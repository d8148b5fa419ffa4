//! What udev or blkid recognize on a device: filesystem, partition table, the type of a partition.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use hostdev::{Block, Root};

use crate::command::{output_of, within};
use crate::files::Files;

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
    /// The filesystem's label.
    pub fs_label: Option<String>,
    /// The id of the partition that it is, as `PARTUUID=` names it.
    pub partition_id: Option<String>,
    /// The name of the partition that it is, as `PARTLABEL=` names it.
    pub partition_name: Option<String>,
    /// Partition table: `gpt`, `dos`.
    pub table: Option<String>,
    /// Type of the partition that it is: a GUID, or a number such as `0xef`.
    pub entry_type: Option<String>,
    /// Model name, as udev knows it.
    pub model: Option<String>,
    /// Serial number, as udev knows it.
    pub serial: Option<String>,
    /// Whether anything looked: what is absent then is not there.
    pub looked: bool,
}

/// Of a device that nothing looked at.
pub(super) const UNKNOWN: Content = Content {
    fs_type: None,
    fs_uuid: None,
    fs_label: None,
    partition_id: None,
    partition_name: None,
    table: None,
    entry_type: None,
    model: None,
    serial: None,
    looked: false,
};

impl Content {
    /// Takes one `NAME=VALUE`, as udev and blkid call them.
    fn take(&mut self, line: &str) {
        let Some((name, value)) = line.split_once('=').filter(|(_, value)| !value.is_empty()) else {
            return;
        };
        let field = match name {
            "ID_FS_TYPE" | "TYPE" => &mut self.fs_type,
            "ID_FS_UUID" | "UUID" => &mut self.fs_uuid,
            "ID_FS_LABEL_ENC" | "LABEL" => &mut self.fs_label,
            "ID_PART_ENTRY_UUID" | "PART_ENTRY_UUID" => &mut self.partition_id,
            "ID_PART_ENTRY_NAME" | "PART_ENTRY_NAME" => &mut self.partition_name,
            "ID_PART_TABLE_TYPE" | "PTTYPE" => &mut self.table,
            "ID_PART_ENTRY_TYPE" | "PART_ENTRY_TYPE" => &mut self.entry_type,
            "ID_MODEL" => &mut self.model,
            "ID_SERIAL_SHORT" => &mut self.serial,
            _ => return,
        };
        *field = Some(plain(value));
    }
}

/// A value without its escapes: udev writes `\x20` for a blank, and blkid a backslash before it.
pub(crate) fn plain(value: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = value;
    while let Some((before, behind)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        let code = behind.strip_prefix('x').and_then(|code| code.get(..2));
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => rest = behind,
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Asks udev's database about every device, and blkid about those that udev knows nothing of.
pub(super) fn of_all<'a>(
    files: &Files<'_>,
    devices: impl Iterator<Item = &'a Block>,
) -> BTreeMap<String, Content> {
    let deadline = Instant::now() + PROBES_TIMEOUT;
    let mut contents = BTreeMap::new();
    for device in devices.filter(|device| device.size_bytes > 0 && !device.hidden) {
        let left = deadline.saturating_duration_since(Instant::now());
        let content = match from_udev(files, device) {
            Some(content) => Some(content),
            None if files.root().is_system() && !left.is_zero() => {
                from_blkid(device, left.min(PROBE_TIMEOUT))
            }
            None => None,
        };
        contents.extend(content.map(|content| (device.name.clone(), content)));
    }
    contents
}

/// Reads `/run/udev/data/bMAJOR:MINOR`, with lines `E:NAME=VALUE`. None if udev does not know the device.
fn from_udev(files: &Files<'_>, device: &Block) -> Option<Content> {
    let path = format!("/run/udev/data/b{}", device.number);
    if !files.exists(&path) {
        return None;
    }
    // Under a device without a medium, or one that udev was told to skip, there may be no type.
    let mut content = Content {
        looked: true,
        ..UNKNOWN
    };
    let text = files.text(&path);
    let values = text.lines().filter_map(|line| line.strip_prefix("E:"));
    values.for_each(|line| content.take(line));
    Some(content)
}

/// Lets blkid look at the device itself (`-p`), which neither reads nor writes its cache.
fn from_blkid(device: &Block, timeout: Duration) -> Option<Content> {
    let path = device.node();
    // A device that cannot be read looks to blkid like one without content.
    first_sector(&Root::system(), &path, timeout)?;
    let args = ["-p", "-o", "export", path.to_str()?];
    let text = output_of("blkid", &args, timeout, PROBE_MAX_BYTES).ok()?;
    let mut content = Content {
        looked: true,
        ..UNKNOWN
    };
    text.lines().for_each(|line| content.take(line));
    Some(content)
}

/// The first sector of a device; none if it cannot be read, or not within `timeout`.
pub(crate) fn first_sector(root: &Root, path: &Path, timeout: Duration) -> Option<[u8; 512]> {
    let (root, path) = (root.clone(), path.to_owned());
    within(timeout, move || {
        let mut sector = [0; 512];
        root.open(path).ok()?.read_exact(&mut sector).ok()?;
        Some(sector)
    })?
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn values_are_read_without_their_escapes() {
        for (value, wanted) in [
            ("root", "root"),
            (r"EFI\x20System\x20Partition", "EFI System Partition"),
            (r"my\ data", "my data"),
            (r"a\x5cb", r"a\b"),
            (r"a\xzz\", "axzz"),
        ] {
            assert_eq!(plain(value), wanted, "{value}");
        }
    }
}
