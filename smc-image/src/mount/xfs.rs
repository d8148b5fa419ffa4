//! Whether the log of an xfs is clean.
//!
//! The superblock does not say it: the log has to be looked at. It is clean if the newest record in it is the one that an
//! unmount writes. (XFS Algorithms & Data Structures, chapter "Journaling Log"; `xfs_log_format.h` of the kernel.)

use super::journal::Journal;
use super::partition::Source;
use anyhow::{Context, ensure};

/// Logs count in blocks of this size.
const BASIC_BLOCK: usize = 512;
/// Read at a time.
const STEP_BYTES: usize = 1 << 20;
/// The longest log that xfs makes.
const LOG_BYTES_MAX: u64 = 2 << 30;

/// The first bytes of a record.
const RECORD_MAGIC: [u8; 4] = [0xfe, 0xed, 0xba, 0xbe];
/// Bytes of a record that one header block describes.
const HEADER_COVERS: u32 = 32 << 10;
/// In the flags of an operation: it is an unmount.
const UNMOUNT: u8 = 0x20;

/// What is needed of a superblock to find the log. Numbers in it are big-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    block_bytes: u64,
    group_blocks: u64,
    group_log: u32,
    log_start: u64,
    log_blocks: u64,
    uuid: [u8; 16],
}

impl Superblock {
    /// Reads it from the first bytes of the filesystem.
    ///
    /// # Errors
    /// Values that no filesystem has.
    pub fn parse(start: &[u8]) -> anyhow::Result<Self> {
        let group_log = *start.get(124).context("it is too short")?;
        let superblock = Self {
            block_bytes: u32_at(start, 4).into(),
            group_blocks: u32_at(start, 84).into(),
            group_log: group_log.into(),
            log_start: u64_at(start, 48),
            log_blocks: u32_at(start, 96).into(),
            uuid: start
                .get(32..48)
                .and_then(<[u8]>::first_chunk)
                .copied()
                .unwrap_or_default(),
        };
        ensure!(
            (512..=65536).contains(&superblock.block_bytes) && superblock.group_log < 64,
            "blocks of {} bytes, groups of 2^{group_log} blocks",
            superblock.block_bytes
        );
        Ok(superblock)
    }

    /// Whether the log is on a device of its own.
    pub fn has_external_log(&self) -> bool {
        self.log_start == 0
    }

    /// Looks at the log of the filesystem that begins at byte `offset` of the disk and is `length` bytes long.
    ///
    /// # Errors
    /// What cannot be read; a log that lies elsewhere.
    pub fn journal(&self, disk: &dyn Source, offset: u64, length: u64) -> anyhow::Result<Journal> {
        let log = self
            .log_range(length)
            .context("the log lies beyond the filesystem")?;
        let newest = Newest::find(disk, offset + log.0, log.1, self.uuid)?;
        let Some(newest) = newest else {
            // A log without a record has never been written to.
            return Ok(Journal::Clean);
        };
        let at = newest.first_operation_offset(log.1);
        let mut block = [0; BASIC_BLOCK];
        disk.read_at(offset + log.0 + at, &mut block)
            .context("read the log of xfs")?;
        // Byte 9 of an operation has its flags; the first four bytes of each block are the number of its cycle.
        let is_unmount = newest.operations == 1 && block[9] & UNMOUNT != 0;
        Ok(if is_unmount {
            Journal::Clean
        } else {
            Journal::Dirty
        })
    }

    /// Where the log is in the filesystem: its first byte and its length.
    fn log_range(&self, length: u64) -> Option<(u64, u64)> {
        let group = self.log_start >> self.group_log;
        let block = self.log_start & ((1 << self.group_log) - 1);
        let first = group.checked_mul(self.group_blocks)?.checked_add(block)?;
        let start = first.checked_mul(self.block_bytes)?;
        let bytes = self.log_blocks.checked_mul(self.block_bytes)?;
        let fits = bytes <= LOG_BYTES_MAX && start.checked_add(bytes)? <= length;
        fits.then_some((start, bytes))
    }
}

/// The newest record of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Newest {
    /// Cycle and block, which together grow with each record.
    number: u64,
    /// Where its header is, in bytes from the beginning of the log.
    offset: u64,
    header_blocks: u32,
    operations: u32,
}

impl Newest {
    /// Looks through a whole log. No other block looks like a header: in place of its first bytes each has its cycle.
    fn find(disk: &dyn Source, start: u64, length: u64, uuid: [u8; 16]) -> anyhow::Result<Option<Self>> {
        let mut newest: Option<Self> = None;
        let mut buffer = vec![0; STEP_BYTES];
        let mut done = 0;
        while done < length {
            let len = usize::try_from((length - done).min(STEP_BYTES as u64))?;
            let bytes = &mut buffer[..len];
            disk.read_at(start + done, bytes).context("read the log of xfs")?;
            for (block, offset) in bytes.chunks_exact(BASIC_BLOCK).zip((done..).step_by(BASIC_BLOCK)) {
                let found = Self::parse(block, offset, uuid);
                newest = newest.into_iter().chain(found).max_by_key(|record| record.number);
            }
            done += len as u64;
        }
        Ok(newest)
    }

    fn parse(block: &[u8], offset: u64, uuid: [u8; 16]) -> Option<Self> {
        let is_header = block.starts_with(&RECORD_MAGIC) && block.get(304..320) == Some(&uuid);
        // A version 2 header says how long records may be, and a longer one has more headers.
        let size = u32_at(block, 320);
        let header_blocks = match u32_at(block, 8) & 2 {
            0 => 1,
            _ => size.div_ceil(HEADER_COVERS).max(1),
        };
        is_header.then(|| Self {
            number: u64_at(block, 16),
            offset,
            header_blocks,
            operations: u32_at(block, 40),
        })
    }

    /// Where the first operation is; behind the end of the log it goes on at its beginning.
    fn first_operation_offset(&self, log_bytes: u64) -> u64 {
        (self.offset + u64::from(self.header_blocks) * BASIC_BLOCK as u64) % log_bytes
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.copied().map_or(0, u32::from_be_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.copied().map_or(0, u64::from_be_bytes)
}
