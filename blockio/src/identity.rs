//! What tells one disk from another, as far as sysfs and udev know.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The names a disk goes by. Every field is best effort: absent where the kernel or udev says nothing.
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
    /// Disk sequence number: never used twice between two boots (`BLKGETDISKSEQ`, from Linux 5.15).
    pub diskseq: Option<u64>,
    /// The file or device behind a loop device.
    pub backing_file: Option<String>,
    /// Model name.
    pub model: Option<String>,
    /// Number of a partition; absent for a whole disk.
    pub partition: Option<u32>,
}

impl Identity {
    /// Reads the identity of the block device with this number.
    pub(crate) fn of_block_device(number: (u32, u32), diskseq: Option<u64>) -> Identity {
        let Some(directory) = sysfs_directory(number) else {
            return Identity {
                diskseq,
                ..Identity::default()
            };
        };
        let disk = whole_disk_directory(&directory);
        let first = |names: &[&str]| names.iter().find_map(|name| attribute(&disk.join(name)));
        Identity {
            serial: first(&["serial", "device/serial"]).or_else(|| vpd_serial(&disk)),
            wwn: first(&["wwid", "device/wwid"]),
            by_id: names_by_id(number),
            uuid: first(&["dm/uuid", "md/uuid"]),
            diskseq,
            backing_file: first(&["loop/backing_file"]),
            model: first(&["device/model"]),
            partition: attribute(&directory.join("partition")).and_then(|number| number.parse().ok()),
        }
    }
}

/// `/sys/devices/…/block/NAME` of a block device or partition.
pub(crate) fn sysfs_directory((major, minor): (u32, u32)) -> Option<PathBuf> {
    fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()
}

/// The directory of the disk that a partition's directory lies in; a disk's own directory as it is.
pub(crate) fn whole_disk_directory(directory: &Path) -> PathBuf {
    let parent = directory
        .parent()
        .filter(|_| directory.join("partition").exists());
    parent.unwrap_or(directory).to_owned()
}

/// A sysfs attribute without surrounding white space; `None` when missing or blank.
pub(crate) fn attribute(path: &Path) -> Option<String> {
    let text = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&text)
        .trim_matches(|c: char| c.is_whitespace() || c == '\0')
        .to_owned();
    (!text.is_empty()).then_some(text)
}

/// The unit serial number page of a SCSI disk: four bytes of header, then text (SPC-4, 7.8.16).
fn vpd_serial(disk: &Path) -> Option<String> {
    let page = fs::read(disk.join("device/vpd_pg80")).ok()?;
    let text = String::from_utf8_lossy(page.get(4..)?)
        .trim_matches(|c: char| c.is_whitespace() || c == '\0')
        .to_owned();
    (!text.is_empty()).then_some(text)
}

fn names_by_id(number: (u32, u32)) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/dev/disk/by-id") else {
        return Vec::new();
    };
    let leads_here = |entry: &fs::DirEntry| {
        fs::metadata(entry.path())
            .is_ok_and(|m| m.file_type().is_block_device() && crate::open::split_device(m.rdev()) == number)
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(leads_here)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
