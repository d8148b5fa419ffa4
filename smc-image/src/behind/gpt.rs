//! The backup of a GPT on a disk that is larger than the one it was made for.
//!
//! The UEFI specification (2.10, chapter 5.3) has the backup in the last block. On a larger disk it is elsewhere, and the
//! space behind it cannot be used. Moving it is what `sgdisk --move-second-header` does.

use crate::mount::partition::{
    Source, TYPE_PROTECTIVE, read_gpt_header, read_gpt_table, read_range, u32_at, u64_at,
};
use anyhow::{Context, ensure};

// Fields of the header, in bytes from its beginning.
const CHECKSUM: usize = 16;
const MY_BLOCK: usize = 24;
const OTHER_BLOCK: usize = 32;
const LAST_USABLE: usize = 48;
const FIRST_ENTRY_BLOCK: usize = 72;
// Of an entry.
const FIRST_BLOCK: usize = 32;
const LAST_BLOCK: usize = 40;

// The protective MBR: four entries of 16 bytes, each with its type, first block and number of blocks.
const MBR_ENTRIES: usize = 446;
const MBR_TYPE: usize = 4;
const MBR_LAST: usize = 5;
const MBR_FIRST: usize = 8;
const MBR_COUNT: usize = 12;

/// A table whose backup is not at the end of its disk.
#[derive(Debug)]
pub struct Misplaced {
    block_bytes: u64,
    /// The primary header, its checksum zero.
    header: Vec<u8>,
    entries: Vec<u8>,
    mbr: Vec<u8>,
    last_block: u64,
}

/// Bytes to be written, and where.
pub type Write = (u64, Vec<u8>);

/// Looks at the table of a disk with blocks of this length; `None` where it has none that is whole, or one whose backup
/// is at its end.
///
/// # Errors
/// A disk that cannot be read.
pub fn look(disk: &dyn Source, block_bytes: u64) -> anyhow::Result<Option<Misplaced>> {
    let blocks = disk.size_bytes() / block_bytes;
    if blocks < 3 {
        return Ok(None);
    }
    // What cannot be read is an error; what is not a table is none.
    let mbr = read_range(disk, Some(0), block_bytes)?;
    read_range(disk, Some(block_bytes), block_bytes)?;
    let Ok(header) = read_gpt_header(disk, block_bytes, 1) else {
        return Ok(None);
    };
    let Ok((entries, _)) = read_gpt_table(disk, block_bytes, &header) else {
        return Ok(None);
    };
    let last_block = blocks - 1;
    Ok((u64_at(&header, OTHER_BLOCK) < last_block).then_some(Misplaced {
        block_bytes,
        header,
        entries,
        mbr,
        last_block,
    }))
}

impl Misplaced {
    /// Where the backup is now, in bytes.
    pub fn offset(&self) -> u64 {
        u64_at(&self.header, OTHER_BLOCK).saturating_mul(self.block_bytes)
    }

    /// What moves it to the end of the disk: first the new backup, then what points to it. Each is to be durable before
    /// the next is written.
    ///
    /// # Errors
    /// A table that has no room there, since a partition is in the way.
    pub fn moved(&self) -> anyhow::Result<[Vec<Write>; 2]> {
        let entry_blocks = (self.entries.len() as u64).div_ceil(self.block_bytes);
        // Behind the boot record, the primary header and at least a block of its entries.
        let first_entry = self
            .last_block
            .checked_sub(entry_blocks)
            .filter(|&first| first > 2);
        let first_entry = first_entry.context("the disk has no room for the entries")?;
        let last_usable = first_entry - 1;
        ensure!(
            self.used().all(|last| last <= last_usable),
            "a partition reaches into the last {} blocks of the disk",
            entry_blocks + 1
        );
        let mut backup = self.header.clone();
        put(&mut backup, MY_BLOCK, self.last_block);
        put(&mut backup, OTHER_BLOCK, 1);
        put(&mut backup, LAST_USABLE, last_usable);
        put(&mut backup, FIRST_ENTRY_BLOCK, first_entry);
        let mut primary = self.header.clone();
        put(&mut primary, OTHER_BLOCK, self.last_block);
        put(&mut primary, LAST_USABLE, last_usable);
        let at = |block: u64, bytes: &[u8]| (block * self.block_bytes, self.whole_blocks(bytes));
        Ok([
            vec![
                at(first_entry, &self.entries),
                at(self.last_block, &with_checksum(backup)),
            ],
            vec![at(1, &with_checksum(primary)), (0, self.protective_mbr())],
        ])
    }

    /// The last block of each partition.
    fn used(&self) -> impl Iterator<Item = u64> {
        let entry = usize::try_from(u32_at(&self.header, 84))
            .unwrap_or(usize::MAX)
            .max(1);
        let entries = self.entries.chunks_exact(entry);
        let used = entries.filter(|entry| entry[..16] != [0; 16] && u64_at(entry, FIRST_BLOCK) > 0);
        used.map(|entry| u64_at(entry, LAST_BLOCK))
    }

    /// The protective MBR with an entry that covers the disk, if it covered the smaller one; as it is otherwise.
    fn protective_mbr(&self) -> Vec<u8> {
        let mut mbr = self.mbr.clone();
        let small = u64_at(&self.header, OTHER_BLOCK);
        let large = u32::try_from(self.last_block).unwrap_or(u32::MAX);
        for number in 0..4 {
            let at = MBR_ENTRIES + 16 * number;
            let is_protective = mbr.get(at + MBR_TYPE) == Some(&TYPE_PROTECTIVE);
            let covers =
                u32_at(&mbr, at + MBR_FIRST) == 1 && u64::from(u32_at(&mbr, at + MBR_COUNT)) == small;
            if is_protective
                && covers
                && let Some(entry) = mbr.get_mut(at..at + 16)
            {
                entry[MBR_LAST..MBR_LAST + 3].copy_from_slice(&cylinder_head_sector(self.last_block));
                entry[MBR_COUNT..].copy_from_slice(&large.to_le_bytes());
            }
        }
        mbr
    }

    /// Bytes, with zeros behind them as far as a block goes.
    fn whole_blocks(&self, bytes: &[u8]) -> Vec<u8> {
        let block = usize::try_from(self.block_bytes).unwrap_or(usize::MAX);
        let mut whole = bytes.to_vec();
        whole.resize(bytes.len().next_multiple_of(block), 0);
        whole
    }
}

/// A block as the old BIOS counts, with 255 heads and 63 sectors; all ones where that is not possible.
fn cylinder_head_sector(block: u64) -> [u8; 3] {
    let (track, sector) = (block / 63, block % 63 + 1);
    let (cylinder, head) = (track / 255, track % 255);
    let [low, high] = match u16::try_from(cylinder) {
        Ok(cylinder @ ..1024) => cylinder.to_le_bytes(),
        _ => return [0xff; 3],
    };
    let byte = |number: u64| u8::try_from(number).unwrap_or(u8::MAX);
    [byte(head), byte(sector) | high << 6, low]
}

fn put(header: &mut [u8], at: usize, number: u64) {
    if let Some(field) = header.get_mut(at..at + 8) {
        field.copy_from_slice(&number.to_le_bytes());
    }
}

fn with_checksum(mut header: Vec<u8>) -> Vec<u8> {
    let checksum = crc32fast::hash(&header);
    if let Some(field) = header.get_mut(CHECKSUM..CHECKSUM + 4) {
        field.copy_from_slice(&checksum.to_le_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bios_counts_from_one_and_not_far() {
        assert_eq!(cylinder_head_sector(0), [0, 1, 0]);
        assert_eq!(
            cylinder_head_sector(63 * 255 * 300 + 63 * 2 + 4),
            [2, 5 | 0x40, 44]
        );
        assert_eq!(cylinder_head_sector(63 * 255 * 1024), [0xff; 3]);
    }
}
