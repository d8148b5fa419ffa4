//! Partition tables, read from an image: GPT (UEFI specification 2.10, chapter 5) and MBR with logical partitions.
//!
//! Nothing here trusts the disk: offsets are checked, tables are bounded, chains that loop end.

use anyhow::{Context, bail, ensure};

/// The first bytes that decide are in this much.
const MBR_BYTES: usize = 512;

/// MBR and its logical partitions count in sectors of this size on every disk that we know how to boot from,
/// except where the disk's logical blocks are larger.
pub const SECTOR_BYTES: u64 = 512;

/// The specification reserves 16 KiB for entries; this is room for far stranger disks.
const GPT_TABLE_BYTES_MAX: u64 = 1 << 20;
const GPT_ENTRY_BYTES_MIN: u64 = 128;
const LOGICAL_MAX: u32 = 128;

/// The kind of a partition from which UEFI starts.
pub const EFI_SYSTEM: &str = "EFI system";

pub const TYPE_PROTECTIVE: u8 = 0xee;
const TYPES_EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// Something that has bytes: a disk of an image, or a test's.
pub trait Source {
    /// Size in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `target` from byte `offset`.
    fn read_at(&self, offset: u64, target: &mut [u8]) -> anyhow::Result<()>;
}

/// A disk of a test.
#[cfg(test)]
pub struct Bytes(pub Vec<u8>);

#[cfg(test)]
impl Source for Bytes {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, target: &mut [u8]) -> anyhow::Result<()> {
        let start = usize::try_from(offset)?;
        target.copy_from_slice(&self.0[start..start + target.len()]);
        Ok(())
    }
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, as the kernel counts: `vda1` is 1, logical ones begin at 5.
    pub number: u32,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// What the table says that it is for.
    pub kind: String,
    /// The id by which fstab names it (`PARTUUID=`); empty where the table gives it none.
    pub id: String,
    /// Its label (`PARTLABEL=`); empty where the table gives it none.
    pub name: String,
}

/// The partitions of a disk, in ascending order of number; `None` where it has no partition table.
///
/// `block_bytes` is the disk's logical block size. Fails where a table is there and damaged.
///
/// # Errors
/// A table that is damaged, and a disk that cannot be read.
pub fn read_table(source: &dyn Source, block_bytes: u64) -> anyhow::Result<Option<Vec<Partition>>> {
    let Some(mbr) = Mbr::read(source, 0)? else {
        return Ok(None);
    };
    if mbr.entries.iter().any(|entry| entry.kind == TYPE_PROTECTIVE) {
        return read_gpt(source, block_bytes).map(Some).context("the GPT");
    }
    if mbr.is_boot_sector_of_a_filesystem || !mbr.is_plausible() {
        return Ok(None);
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(&mbr.entries).filter(|(_, entry)| !entry.is_empty()) {
        let shown = entry.partition(number, 0, block_bytes, source.size_bytes());
        if entry.is_extended() {
            read_logical(source, block_bytes, entry, &mut partitions)?;
        } else {
            partitions.extend(shown);
        }
    }
    partitions.sort_by_key(|partition| partition.number);
    for partition in partitions.iter_mut().filter(|_| mbr.disk_id != 0) {
        partition.id = format!("{:08x}-{:02x}", mbr.disk_id, partition.number);
    }
    Ok(Some(partitions).filter(|partitions| !partitions.is_empty()))
}

/// The four entries of a master or extended boot record.
struct Mbr {
    entries: [MbrEntry; 4],
    /// The disk's id; 0 where it has none.
    disk_id: u32,
    is_boot_sector_of_a_filesystem: bool,
}

#[derive(Clone, Copy)]
struct MbrEntry {
    status: u8,
    kind: u8,
    first: u32,
    count: u32,
}

impl Mbr {
    /// `None` where there is no boot record.
    fn read(source: &dyn Source, offset: u64) -> anyhow::Result<Option<Self>> {
        let mut sector = [0; MBR_BYTES];
        if offset
            .checked_add(MBR_BYTES as u64)
            .is_none_or(|end| end > source.size_bytes())
        {
            return Ok(None);
        }
        source.read_at(offset, &mut sector)?;
        if sector[510..] != [0x55, 0xaa] {
            return Ok(None);
        }
        let entry = |slot: usize| {
            let at = 446 + 16 * slot;
            MbrEntry {
                status: sector[at],
                kind: sector[at + 4],
                first: u32_at(&sector, at + 8),
                count: u32_at(&sector, at + 12),
            }
        };
        let fat = sector[54..].starts_with(b"FAT") || sector[82..].starts_with(b"FAT32");
        let other = sector[3..].starts_with(b"NTFS") || sector[3..].starts_with(b"EXFAT");
        let entries = [entry(0), entry(1), entry(2), entry(3)];
        Ok(Some(Self {
            entries,
            disk_id: u32_at(&sector, 440),
            is_boot_sector_of_a_filesystem: fat || other,
        }))
    }

    /// Boot code that happens to lie where a table would is not one.
    fn is_plausible(&self) -> bool {
        self.entries.iter().all(|entry| matches!(entry.status, 0 | 0x80))
    }
}

impl MbrEntry {
    fn is_empty(&self) -> bool {
        self.kind == 0 || self.count == 0
    }

    fn is_extended(&self) -> bool {
        TYPES_EXTENDED.contains(&self.kind)
    }

    /// The partition, counted from sector `base`; `None` where it lies beyond the disk.
    fn partition(&self, number: u32, base: u64, block_bytes: u64, size_bytes: u64) -> Option<Partition> {
        let first = base.checked_add(self.first.into())?;
        let offset = first
            .checked_mul(block_bytes)
            .filter(|&offset| offset < size_bytes && offset > 0)?;
        let length = u64::from(self.count)
            .checked_mul(block_bytes)?
            .min(size_bytes - offset);
        Some(Partition {
            number,
            offset,
            length,
            kind: mbr_type(self.kind),
            id: String::new(),
            name: String::new(),
        })
    }
}

/// Follows the chain of extended boot records: each holds one logical partition and where the next record is.
fn read_logical(
    source: &dyn Source,
    block_bytes: u64,
    extended: &MbrEntry,
    partitions: &mut Vec<Partition>,
) -> anyhow::Result<()> {
    let start = u64::from(extended.first);
    let mut record = start;
    for number in 5..5 + LOGICAL_MAX {
        let Some(offset) = record.checked_mul(block_bytes) else {
            break;
        };
        let Some(ebr) = Mbr::read(source, offset)? else {
            break;
        };
        let [data, next, ..] = ebr.entries;
        if !data.is_empty() && !data.is_extended() {
            partitions.extend(data.partition(number, record, block_bytes, source.size_bytes()));
        }
        // Records lie behind one another on every sane disk, and a chain that only goes forward ends.
        let following = start + u64::from(next.first);
        if next.is_empty() || !next.is_extended() || following <= record {
            break;
        }
        record = following;
    }
    Ok(())
}

/// Reads the primary GPT or, where that is damaged, its backup in the last block.
fn read_gpt(source: &dyn Source, block_bytes: u64) -> anyhow::Result<Vec<Partition>> {
    let blocks = source.size_bytes() / block_bytes;
    ensure!(blocks >= 3, "the disk is too small for one");
    match read_gpt_at(source, block_bytes, 1) {
        Ok(partitions) => Ok(partitions),
        Err(primary) => read_gpt_at(source, block_bytes, blocks - 1)
            .map_err(|backup| anyhow::anyhow!("primary: {primary:#}; backup: {backup:#}")),
    }
}

fn read_gpt_at(source: &dyn Source, block_bytes: u64, block: u64) -> anyhow::Result<Vec<Partition>> {
    let header = read_gpt_header(source, block_bytes, block)?;
    let (table, entry_len) = read_gpt_table(source, block_bytes, &header)?;
    let parsed = (1..).zip(table.chunks_exact(entry_len));
    Ok(parsed
        .filter_map(|(number, entry)| gpt_partition(number, entry, block_bytes, source.size_bytes()))
        .collect())
}

/// The checked entries that a header points to, and the length of one.
///
/// # Errors
/// A table that is too large, lies beyond the disk, or does not match its checksum; a disk that cannot be read.
pub fn read_gpt_table(
    source: &dyn Source,
    block_bytes: u64,
    header: &[u8],
) -> anyhow::Result<(Vec<u8>, usize)> {
    let (first, count, entry_bytes, checksum) = (
        u64_at(header, 72),
        u32_at(header, 80),
        u64::from(u32_at(header, 84)),
        u32_at(header, 88),
    );
    ensure!(
        entry_bytes >= GPT_ENTRY_BYTES_MIN && entry_bytes.is_power_of_two(),
        "entries of {entry_bytes} bytes"
    );
    let table_bytes = u64::from(count)
        .checked_mul(entry_bytes)
        .filter(|&bytes| bytes <= GPT_TABLE_BYTES_MAX);
    let table_bytes = table_bytes.with_context(|| format!("a table of {count} entries"))?;
    let table = read_range(source, first.checked_mul(block_bytes), table_bytes).context("the entries")?;
    ensure!(
        crc32fast::hash(&table) == checksum,
        "the entries do not match their checksum"
    );
    Ok((table, usize::try_from(entry_bytes)?))
}

/// The checked header in `block`, without what follows it in the block, and with zeros for its checksum.
///
/// # Errors
/// A block without a valid header, and a disk that cannot be read.
pub fn read_gpt_header(source: &dyn Source, block_bytes: u64, block: u64) -> anyhow::Result<Vec<u8>> {
    let bytes = read_range(source, block.checked_mul(block_bytes), block_bytes)?;
    let header = hostdev::gpt_header(&bytes).with_context(|| format!("the header in block {block}"))?;
    ensure!(
        u64_at(&header, 24) == block,
        "the header in block {block} belongs to another block"
    );
    Ok(header)
}

/// A range of the disk; an error where it lies beyond.
///
/// # Errors
/// A range that lies beyond the disk, or cannot be read.
pub fn read_range(source: &dyn Source, offset: Option<u64>, length: u64) -> anyhow::Result<Vec<u8>> {
    let inside = |offset: &u64| {
        offset
            .checked_add(length)
            .is_some_and(|end| end <= source.size_bytes())
    };
    let Some(offset) = offset.filter(inside) else {
        bail!("it lies beyond the disk")
    };
    let mut bytes = vec![0; usize::try_from(length)?];
    source.read_at(offset, &mut bytes)?;
    Ok(bytes)
}

/// The partition of an entry; `None` for an unused one, and for one that lies beyond the disk.
fn gpt_partition(number: u32, entry: &[u8], block_bytes: u64, size_bytes: u64) -> Option<Partition> {
    let kind: [u8; 16] = entry.first_chunk().copied().filter(|kind| *kind != [0; 16])?;
    let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
    let offset = first.checked_mul(block_bytes).filter(|&offset| offset > 0)?;
    let end = last.checked_add(1)?.checked_mul(block_bytes)?.min(size_bytes);
    let length = end.checked_sub(offset).filter(|&length| length > 0)?;
    Some(Partition {
        number,
        offset,
        length,
        kind: gpt_type(&kind),
        id: hostdev::guid_text(entry[16..].first_chunk()?),
        name: gpt_name(entry.get(56..128)?),
    })
}

/// The label of an entry: UTF-16 up to the first zero.
fn gpt_name(bytes: &[u8]) -> String {
    let units = bytes
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

/// What a partition is for, by its type.
fn gpt_type(kind: &[u8; 16]) -> String {
    let text = hostdev::guid_text(kind);
    let known = GPT_TYPES.iter().find(|(guid, _)| *guid == text);
    known.map_or(text.clone(), |(_, name)| (*name).to_owned())
}

const GPT_TYPES: [(&str, &str); 9] = [
    ("0fc63daf-8483-4772-8e79-3d69d8477de4", "Linux filesystem"),
    ("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "Linux root (x86-64)"),
    ("933ac7e1-2eb4-4f13-b844-0e14e2aef915", "Linux home"),
    ("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "Linux swap"),
    ("e6d6d379-f507-44c2-a23c-238f2a3df928", "Linux LVM"),
    ("a19d880f-05fc-4d3b-a006-743f0f84911e", "Linux RAID"),
    ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", EFI_SYSTEM),
    ("21686148-6449-6e6f-744e-656564454649", "BIOS boot"),
    ("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", "Microsoft basic data"),
];

fn mbr_type(kind: u8) -> String {
    let name = match kind {
        0x83 => "Linux filesystem",
        0x82 => "Linux swap",
        0x8e => "Linux LVM",
        0xfd => "Linux RAID",
        0xef => EFI_SYSTEM,
        0x07 => "NTFS or exFAT",
        0x01 | 0x04 | 0x06 | 0x0b | 0x0c | 0x0e => "FAT",
        _ => return format!("type 0x{kind:02x}"),
    };
    name.to_owned()
}

/// The little-endian number at `at`; callers have checked that it lies within.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .copied()
        .map_or(0, u32::from_le_bytes)
}

/// The same of 64 bits.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .copied()
        .map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
pub mod tests;
