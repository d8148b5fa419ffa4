//! Whether a disk is booted by a BIOS or by UEFI, as far as the disk tells.

use crate::mount::partition::{self, Source};
use imagefmt::Image;

/// Where a boot sector has code; the id of the disk and the partition table are behind it.
const BOOT_CODE_BYTES: usize = 440;
const SECTOR_BYTES: usize = 512;

/// What the disks of an image have to boot from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signs {
    /// A boot sector with code.
    pub boot_sector: bool,
    /// An EFI system partition.
    pub esp: bool,
}

impl Signs {
    /// Looks at all disks of an image.
    ///
    /// # Errors
    /// Where a disk cannot be read.
    pub fn of(image: &Image) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for disk in image.disks() {
            let record = image.manifest().disk(disk.name());
            let block_bytes = record.map_or(512, |record| record.logical_block_size.max(512));
            let found = look(disk, block_bytes.into())?;
            all.boot_sector |= found.boot_sector;
            all.esp |= found.esp;
        }
        Ok(all)
    }

    /// Whether UEFI is to start it. A disk for both is started by UEFI, if there is one here.
    pub fn wants_uefi(self, is_there: bool) -> bool {
        self.esp && (is_there || !self.boot_sector)
    }

    /// What was found, in words.
    pub fn in_words(self) -> &'static str {
        match (self.boot_sector, self.esp) {
            (true, true) => "the disks have a boot sector and an EFI system partition",
            (true, false) => "the disks have a boot sector and no EFI system partition",
            (false, true) => "the disks have an EFI system partition",
            (false, false) => "no disk has a boot sector or an EFI system partition",
        }
    }
}

fn look(disk: &dyn Source, block_bytes: u64) -> anyhow::Result<Signs> {
    if disk.size_bytes() < SECTOR_BYTES as u64 {
        return Ok(Signs::default());
    }
    let mut sector = [0; SECTOR_BYTES];
    disk.read_at(0, &mut sector)?;
    let has_code = sector[..BOOT_CODE_BYTES].iter().any(|&byte| byte != 0);
    // A table that is damaged keeps no firmware from starting what is in front of it.
    let partitions = partition::read_table(disk, block_bytes).unwrap_or_else(|error| {
        tracing::warn!("the partition table cannot be read: {error:#}");
        None
    });
    let is_esp = |partition: &partition::Partition| partition.kind == partition::EFI_SYSTEM;
    Ok(Signs {
        boot_sector: has_code && sector[510..] == [0x55, 0xaa],
        esp: partitions.is_some_and(|partitions| partitions.iter().any(is_esp)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::partition::Bytes;

    /// A disk with a DOS table of one partition of this type.
    fn disk(code: u8, kind: u8) -> Bytes {
        let mut bytes = vec![0; 1 << 20];
        bytes[0] = code;
        bytes[446 + 4] = kind;
        bytes[446 + 8..446 + 12].copy_from_slice(&64_u32.to_le_bytes());
        bytes[446 + 12..446 + 16].copy_from_slice(&64_u32.to_le_bytes());
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        Bytes(bytes)
    }

    fn signs(boot_sector: bool, esp: bool) -> Signs {
        Signs { boot_sector, esp }
    }

    #[test]
    fn a_disk_tells_what_starts_it() {
        assert_eq!(look(&disk(0xfa, 0x83), 512).unwrap(), signs(true, false));
        assert_eq!(look(&disk(0, 0xef), 512).unwrap(), signs(false, true));
        assert_eq!(look(&disk(0xfa, 0xef), 512).unwrap(), signs(true, true));
        assert_eq!(look(&Bytes(vec![0; 4096]), 512).unwrap(), signs(false, false));
        assert_eq!(look(&Bytes(vec![0; 100]), 512).unwrap(), signs(false, false));
    }

    #[test]
    fn a_disk_for_both_needs_no_firmware_that_is_not_there() {
        assert!(signs(true, true).wants_uefi(true) && !signs(true, true).wants_uefi(false));
        assert!(signs(false, true).wants_uefi(false));
        assert!(!signs(true, false).wants_uefi(true) && !signs(false, false).wants_uefi(true));
    }
}
