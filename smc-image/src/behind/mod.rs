//! What a target still has behind the end of the image that was restored to it: signatures that make others take the
//! disk for something that it no longer is.
//!
//! Members of md arrays, ZFS pools and firmware RAIDs are recognized by what stands at the end of a disk, where a
//! smaller image does not reach.

pub mod gpt;

use crate::mount::partition::{Source, u64_at};
use anyhow::{Context, bail};
use restore::target::Target;
use restore::zero::Zeroer;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes looked at from the end of the image on, and before the end of the disk: further from its end than this
/// nobody keeps a signature.
const LOOK_BYTES: u64 = 2 << 20;
/// Signatures begin at multiples of this.
const SECTOR_BYTES: u64 = 512;
/// Where btrfs keeps copies of its superblock.
const BTRFS_COPIES: [u64; 2] = [64 << 20, 256 << 30];
const BTRFS_COPY_BYTES: u64 = 4096;

/// For small reads, after [`Target::set_buffered`].
impl Source for Target {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    fn read_at(&self, offset: u64, target: &mut [u8]) -> anyhow::Result<()> {
        let read = self.file.read_exact_at(target, offset);
        read.with_context(|| format!("read {} at byte {offset}", self.device.path().display()))
    }
}

/// What stands at `offset` from the beginning of a sector, and what it belongs to.
struct Signature {
    offset: usize,
    bytes: &'static [u8],
    kind: &'static str,
    /// Whether the sector is what it looks like; of a signature that is too short to say so alone.
    holds: fn(&Sector<'_>) -> bool,
}

/// A sector of a disk.
struct Sector<'a> {
    bytes: &'a [u8],
    offset: u64,
    disk_bytes: u64,
}

impl Sector<'_> {
    /// Its number, counted from the end of the disk: the last whole one is 1.
    fn sectors_to_end(&self) -> u64 {
        self.disk_bytes / SECTOR_BYTES - self.offset / SECTOR_BYTES
    }
}

const fn signature(offset: usize, bytes: &'static [u8], kind: &'static str) -> Signature {
    checked(offset, bytes, kind, |_| true)
}

const fn checked(
    offset: usize,
    bytes: &'static [u8],
    kind: &'static str,
    holds: fn(&Sector<'_>) -> bool,
) -> Signature {
    Signature {
        offset,
        bytes,
        kind,
        holds,
    }
}

const MD: &str = "member of an md RAID";
const LVM: &str = "LVM physical volume";
const ZFS: &str = "member of a ZFS pool";
const DDF: &str = "member of a firmware RAID (DDF)";
const HIGHPOINT: &str = "member of a firmware RAID (HighPoint)";
const DRBD: &str = "DRBD metadata";

/// Everything that libblkid takes a disk for because of what is at its end, and some that others do. Those that say nothing
/// but two bytes count in their sector only, and with their checksum if they have one.
const SIGNATURES: [Signature; 27] = [
    // md(4): the magic number, then version 1 with its feature map, or version 0.90 in either order of bytes.
    signature(0, b"\xfc\x4e\x2b\xa9\x01\0\0\0", MD),
    signature(0, b"\xfc\x4e\x2b\xa9\0\0\0\0\x5a\0\0\0", MD),
    signature(0, b"\xa9\x2b\x4e\xfc\0\0\0\0\0\0\0\x5a", MD),
    // The label, and the text area for metadata that may be at the end.
    signature(0, b"LABELONE", LVM),
    signature(4, b" LVM2 x[5A%r0N*>", LVM),
    // An uberblock, in either order of bytes.
    signature(0, b"\x0c\xb1\xba\0\0\0\0\0", ZFS),
    signature(0, b"\0\0\0\0\0\xba\xb1\x0c", ZFS),
    signature(
        0,
        b"Intel Raid ISM Cfg Sig. ",
        "member of a firmware RAID (Intel)",
    ),
    signature(0, b"\xde\x11\xde\x11", DDF),
    signature(0, b"\x11\xde\x11\xde", DDF),
    signature(0, b"$XIDE$", "member of a firmware RAID (LSI)"),
    signature(0, b"NVIDIA", "member of a firmware RAID (NVIDIA)"),
    signature(
        0,
        b"Promise Technology, Inc.",
        "member of a firmware RAID (Promise)",
    ),
    signature(0, b"\x37\xfc\x4d\x1e", "member of a firmware RAID (Adaptec)"),
    checked(0, b"\xf3\x16\x78\x5a", HIGHPOINT, |sector| {
        sector.sectors_to_end() == 11
    }),
    checked(0, b"\xfd\x16\x78\x5a", HIGHPOINT, |sector| {
        sector.sectors_to_end() == 11
    }),
    checked(
        96,
        b"\0\0\0\x2f",
        "member of a firmware RAID (Silicon Image)",
        |sector| sector.sectors_to_end() == 1 && silicon_sums_up(sector.bytes),
    ),
    checked(0, b"\x55\xaa", "member of a firmware RAID (VIA)", |sector| {
        sector.sectors_to_end() == 1 && via_sums_up(sector.bytes)
    }),
    checked(0, b"JM", "member of a firmware RAID (JMicron)", |sector| {
        sector.sectors_to_end() == 1
    }),
    signature(60, b"\x83\x74\x02\x6b", DRBD),
    signature(60, b"\x83\x74\x02\x6d", DRBD),
    signature(
        24,
        b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
        "copy of a bcachefs superblock",
    ),
    checked(6, b"\x34\x34", "copy of a nilfs2 superblock", |sector| {
        sector.sectors_to_end() == 8 && u64_at(sector.bytes, 32) == sector.disk_bytes
    }),
    signature(3, b"NTFS    ", "copy of an NTFS boot sector"),
    signature(0, b"PRIVHEAD", "member of a group of Windows' dynamic disks"),
    checked(64, b"_BHRfS_M", "copy of a btrfs superblock", |sector| {
        BTRFS_COPIES.contains(&sector.offset)
    }),
    signature(0, b"EFI PART", "backup of another partition table (GPT)"),
];

/// The words before the checksum, with it, add up to nothing.
fn silicon_sums_up(sector: &[u8]) -> bool {
    const WORDS_AND_CHECKSUM: usize = 0x140;
    let words = sector[..WORDS_AND_CHECKSUM].chunks_exact(2);
    let sum = words.fold(0u16, |sum, word| {
        sum.wrapping_add(u16::from_le_bytes([word[0], word[1]]))
    });
    sum == 0
}

/// Behind a version, which is at most 2, and all else comes the sum of the bytes.
fn via_sums_up(sector: &[u8]) -> bool {
    const SUMMED: usize = 50;
    let sum = sector[..SUMMED]
        .iter()
        .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    sector[2] <= 2 && sum == sector[SUMMED]
}

/// A signature that was found; of each kind, the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// What it makes of the disk.
    pub kind: &'static str,
    /// Where it stands, in bytes from the beginning of the disk.
    pub offset: u64,
}

/// Looks for signatures behind the first `image_bytes` of a disk.
///
/// # Errors
/// A disk that cannot be read.
pub fn look(disk: &dyn Source, image_bytes: u64) -> anyhow::Result<Vec<Found>> {
    let mut found = BTreeMap::new();
    for range in places(disk.size_bytes(), image_bytes) {
        look_in(disk, range, &mut found)?;
    }
    let mut found: Vec<Found> = found
        .into_iter()
        .map(|(kind, offset)| Found { kind, offset })
        .collect();
    found.sort_by_key(|found| found.offset);
    Ok(found)
}

/// Zeroes all places where signatures may be, and looks whether none is left; gives the number of bytes.
///
/// # Errors
/// A disk that cannot be written or read; a signature that is still there.
pub fn wipe(disk: &dyn Source, image_bytes: u64, zeroer: &Zeroer<'_>) -> anyhow::Result<u64> {
    let mut wiped = 0;
    for range in places(disk.size_bytes(), image_bytes) {
        let length = range.end - range.start;
        zeroer.zero(range.start, length)?;
        wiped += length;
    }
    if let Some(Found { kind, offset }) = look(disk, image_bytes)?.first() {
        bail!("the signature at byte {offset} ({kind}) is still there after it was overwritten");
    }
    Ok(wiped)
}

/// Where signatures may be behind the image: whole sectors, ascending, none twice.
fn places(disk_bytes: u64, image_bytes: u64) -> Vec<Range<u64>> {
    let begin = image_bytes.next_multiple_of(SECTOR_BYTES);
    let end = disk_bytes - disk_bytes % SECTOR_BYTES;
    let head = begin..begin.saturating_add(LOOK_BYTES).min(end);
    let tail = end.saturating_sub(LOOK_BYTES).max(head.end)..end;
    let copies = BTRFS_COPIES.map(|copy| copy.max(head.end)..(copy + BTRFS_COPY_BYTES).min(tail.start));
    let all = [head].into_iter().chain(copies).chain([tail]);
    all.filter(|range| range.start < range.end).collect()
}

fn look_in(disk: &dyn Source, range: Range<u64>, found: &mut BTreeMap<&str, u64>) -> anyhow::Result<()> {
    let mut bytes = vec![0; usize::try_from(range.end - range.start)?];
    disk.read_at(range.start, &mut bytes)
        .context("look at what is behind the image")?;
    let sectors = bytes.chunks_exact(512);
    for (offset, bytes) in (range.start..).step_by(512).zip(sectors) {
        let sector = Sector {
            bytes,
            offset,
            disk_bytes: disk.size_bytes(),
        };
        for signature in &SIGNATURES {
            if bytes[signature.offset..].starts_with(signature.bytes) && (signature.holds)(&sector) {
                found.entry(signature.kind).or_insert(offset);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::partition::tests::Memory;

    #[test]
    fn places_are_behind_the_image_and_apart() {
        const MIB: u64 = 1 << 20;
        assert_eq!(
            places(100 * MIB, 10 * MIB + 1),
            [
                10 * MIB + 512..12 * MIB + 512,
                64 * MIB..64 * MIB + 4096,
                98 * MIB..100 * MIB
            ]
        );
        assert_eq!(places(12 * MIB, 9 * MIB), [9 * MIB..11 * MIB, 11 * MIB..12 * MIB]);
        let last = places(10 * MIB + 100, 10 * MIB - 1024);
        assert_eq!((last.len(), last[0].clone()), (1, 10 * MIB - 1024..10 * MIB));
        assert!(places(10 * MIB, 10 * MIB).is_empty() && places(511, 1).is_empty());
        let huge = places(1 << 60, 65 * MIB);
        assert_eq!(huge.len(), 3);
        assert_eq!(huge[1].start, 256 << 30);
    }

    #[test]
    fn each_signature_is_found_where_it_stands() {
        let always = |signature: &&Signature| {
            let anywhere = Sector {
                bytes: &[0xff; 512],
                offset: 0,
                disk_bytes: 1 << 40,
            };
            (signature.holds)(&anywhere)
        };
        assert_eq!(SIGNATURES.iter().filter(always).count(), 20);
        for signature in SIGNATURES.iter().filter(always) {
            let mut disk = Memory(vec![0xff; 8 << 20]);
            let at = (7 << 20) + 1024;
            disk.0[at + signature.offset..][..signature.bytes.len()].copy_from_slice(signature.bytes);
            let found = look(&disk, 1 << 20).unwrap();
            assert_eq!(
                found,
                [Found {
                    kind: signature.kind,
                    offset: at as u64
                }]
            );
            assert_eq!(look(&disk, (7 << 20) + 1025).unwrap(), []);
        }
    }
}
