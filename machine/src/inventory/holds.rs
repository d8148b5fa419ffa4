//! What a disk holds, in words.

use hostdev::Block;

use super::content::Content;
use super::{DEPTH_MAX, Inventory};
use crate::text::{count, list, shown, shown_path};

const PARTITIONS_MAX: usize = 16;
const ABOVE_MAX: usize = 8;
const MOUNTS_MAX: usize = 3;

/// What blkid calls members of something larger, and partitions without a filesystem.
const FORMATS: [(&str, &str); 10] = [
    ("LVM2_member", "LVM PV"),
    ("LVM1_member", "LVM PV"),
    ("linux_raid_member", "md member"),
    ("crypto_LUKS", "LUKS"),
    ("zfs_member", "ZFS pool member"),
    ("bcache", "bcache"),
    ("mpath_member", "multipath path"),
    ("drbd", "DRBD"),
    ("VMFS_volume_member", "VMFS"),
    ("BitLocker", "BitLocker"),
];
const ENTRIES: [(&str, &str); 8] = [
    ("21686148-6449-6e6f-744e-656564454649", "BIOS boot"),
    ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "EFI system partition"),
    ("9e1a2d38-c612-4316-aa26-8b49521e5a8b", "PReP boot"),
    ("e3c9e316-0b5c-4db8-817d-f92df00215ae", "Microsoft reserved"),
    ("0x5", "extended"),
    ("0xf", "extended"),
    ("0x85", "extended"),
    ("0xee", "GPT protective"),
];

impl Inventory {
    /// What a device holds, in words: `gpt, 3 partitions: vfat /boot/efi, ext4 /, swap`.
    pub(crate) fn holds(&self, name: &str) -> String {
        self.describe(name, DEPTH_MAX)
    }

    fn describe(&self, name: &str, depth: usize) -> String {
        let Some(device) = self.device(name).filter(|_| depth > 0) else {
            return "unknown".to_owned();
        };
        if device.size_bytes == 0 {
            return "nothing".to_owned();
        }
        let partitions: Vec<String> = self
            .partitions(name)
            .map(|partition| self.describe(&partition.name, depth - 1))
            .collect();
        let table = self.content(&device.name).table.as_deref().map(shown);
        if partitions.is_empty() {
            let words = self.words(device, depth);
            return match table.filter(|_| device.disk.is_none()) {
                Some(table) if words == NOTHING => format!("{table}, no partitions"),
                _ => words,
            };
        }
        let table = table.map_or_else(String::new, |table| format!("{table}, "));
        let number = count(partitions.len(), "partition");
        format!("{table}{number}: {}", list(partitions, PARTITIONS_MAX))
    }

    /// What lies directly on a device, where it is mounted, and what is on that.
    fn words(&self, device: &Block, depth: usize) -> String {
        let mounts = self.mounts_of(&device.name);
        let mut words = match self.format_of(device) {
            Some(format) => format,
            None => mounts.first().map_or_else(
                || unnamed(device, self.content(&device.name)),
                |mount| shown(&mount.fs_type),
            ),
        };
        let mut points: Vec<String> = mounts.iter().map(|mount| shown_path(&mount.point)).collect();
        points.dedup();
        if !points.is_empty() {
            words = format!("{words} {}", list(points, MOUNTS_MAX));
        }
        let above: Vec<String> = device
            .above
            .iter()
            .filter_map(|name| self.above(name, depth - 1))
            .collect();
        if above.is_empty() {
            return words;
        }
        format!("{words} ({})", list(above, ABOVE_MAX))
    }

    fn above(&self, name: &str, depth: usize) -> Option<String> {
        let device = self.device(name)?;
        let name = device.mapped.as_ref().map_or(&device.name, |mapped| &mapped.name);
        Some(format!("{} {}", shown(name), self.describe(&device.name, depth)))
    }

    /// The format of what is on a device: as recognized, else as its use shows.
    fn format_of(&self, device: &Block) -> Option<String> {
        let recognized = self.content(&device.name).fs_type.as_deref();
        if let Some(found) = recognized {
            let known = FORMATS.iter().find(|(format, _)| *format == found);
            return Some(known.map_or_else(|| shown(found), |(_, words)| (*words).to_owned()));
        }
        let above = || device.above.iter().filter_map(|name| self.device(name));
        let format = if self.host.is_swap(&device.name) {
            "swap"
        } else if above().any(|above| above.is_mapped_by("LVM-")) {
            "LVM PV"
        } else if above().any(|above| above.is_mapped_by("CRYPT-LUKS")) {
            "LUKS"
        } else if above().any(Block::is_multipath) {
            "multipath path"
        } else if above().any(|above| above.name.starts_with("md")) {
            "md member"
        } else {
            return None;
        };
        Some(format.to_owned())
    }
}

const NOTHING: &str = "nothing recognized";

/// Words for a device on which no filesystem was recognized.
fn unnamed(device: &Block, content: &Content) -> String {
    let entry = content.entry_type.as_deref();
    let known = ENTRIES.iter().find(|(entry_type, _)| Some(*entry_type) == entry);
    match known {
        Some((_, words)) => (*words).to_owned(),
        None if content.looked || !device.above.is_empty() => NOTHING.to_owned(),
        None => "unknown".to_owned(),
    }
}
