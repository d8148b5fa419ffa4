//! Why a job of all disks does not take a device.

use std::collections::BTreeSet;

use hostdev::Block;

use super::Inventory;
use crate::text::{list, shown, shown_path};

/// Kinds of devices that are no disks, by how the kernel names them.
const NO_DISKS: [(&str, &str); 13] = [
    ("loop", "a loop device: its content is in a file"),
    ("zram", "memory, not a disk"),
    ("ram", "memory, not a disk"),
    ("fd", "a floppy drive"),
    ("sr", "a CD or DVD drive"),
    ("nbd", "a network block device: its content is on another machine"),
    ("ublkb", "a block device in user space: its content is elsewhere"),
    ("zd", "a ZFS volume: its content is on the disks of its pool"),
    ("drbd", "a DRBD device: its content is on the disk below"),
    ("mtdblock", "flash memory of the board"),
    ("nullb", "a test device of the kernel"),
    ("dm-", "a device-mapper device"),
    ("md", "a RAID array"),
];

impl Inventory {
    /// Why a job of all disks does not have this one; none if it does.
    pub(crate) fn left_out(&self, device: &Block, store_disks: &BTreeSet<String>) -> Option<String> {
        if store_disks.contains(&device.name) {
            return Some("a store is on it: it would be imaged into itself".to_owned());
        }
        let path_of = self.multipath_above(device);
        let reason = if let Some(path) = device.unread.first() {
            format!(
                "not everything about it is known: {} cannot be read",
                shown_path(path)
            )
        } else if device.hidden {
            "one path of an NVMe multipath disk, which is listed by itself".to_owned()
        } else if let Some(bundle) = path_of {
            format!(
                "one path of the multipath disk {}, which is listed by itself",
                shown(&bundle.name)
            )
        } else if device.is_multipath() && device.size_bytes > 0 {
            return None;
        } else if !device.below.is_empty() {
            self.lies_on_others(device)
        } else if let Some(reason) = no_disk(&device.name) {
            reason.to_owned()
        } else if device.size_bytes == 0 {
            let reason = if device.removable {
                "it contains no medium"
            } else {
                "it has no bytes"
            };
            reason.to_owned()
        } else {
            return None;
        };
        Some(reason)
    }

    /// The multipath disk that this is a path of.
    pub(crate) fn multipath_above(&self, device: &Block) -> Option<&Block> {
        let above = device.above.iter().filter_map(|name| self.device(name));
        above.into_iter().find(|above| above.is_multipath())
    }

    fn lies_on_others(&self, device: &Block) -> String {
        let kind = match &device.mapped {
            Some(mapped) => format!("the device-mapper device {}", shown(&mapped.name)),
            None if device.name.starts_with("md") => "a RAID array".to_owned(),
            None => "a device on others".to_owned(),
        };
        let below = device.below.iter().map(|name| shown(name));
        format!("{kind}: its content is on {}", list(below, 4))
    }
}

fn no_disk(name: &str) -> Option<&'static str> {
    // The boot and RPMB areas of an eMMC, which only its board's firmware reads.
    if name.starts_with("mmcblk") && (name.contains("boot") || name.contains("rpmb")) {
        return Some("an area of an eMMC for the board's firmware");
    }
    let is_kind = |prefix: &str| {
        let number = name.strip_prefix(prefix);
        number.is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
    };
    let kind = NO_DISKS.iter().find(|(prefix, _)| is_kind(prefix));
    // Named arrays are called md_NAME.
    let reason = kind.map(|(_, reason)| *reason);
    reason.or_else(|| name.starts_with("md_").then_some("a RAID array"))
}
