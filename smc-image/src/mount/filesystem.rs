//! What a disk or a partition holds, by its magic numbers, and how each filesystem is mounted.

use super::journal::Journal;
use super::partition::{Source, u64_at};
use super::xfs::Superblock;
use anyhow::Context;
use cli::output;
use std::fmt;

/// How a filesystem is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filesystem {
    /// The kernel's name.
    pub fstype: &'static str,
    /// Options that keep it from replaying its journal; without them the device has to be writable.
    no_replay: &'static str,
}

impl Filesystem {
    /// The options of mount(8) that it needs, `replay` of its journal included or not.
    pub fn options(&self, replay: bool) -> Vec<String> {
        // The original may be mounted on this machine.
        let beside_original = (self.fstype == "xfs").then_some("nouuid");
        let no_replay = Some(self.no_replay).filter(|options| !replay && !options.is_empty());
        let options = beside_original.into_iter().chain(no_replay);
        options.map(str::to_owned).collect()
    }
}

/// One device of a filesystem that lies on several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The filesystem.
    pub filesystem: Filesystem,
    /// Its id, which all of its devices have.
    pub id: [u8; 16],
    /// The device's number in it.
    pub device: u64,
    /// How many devices it has.
    pub devices: u64,
}

/// What is put together from one device or several, and holds others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stacked {
    /// A physical volume of LVM.
    Lvm,
    /// A member of an array of md.
    Raid,
    /// A container of LUKS.
    Luks,
}

impl fmt::Display for Stacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lvm => "an LVM physical volume",
            Self::Raid => "a member of a RAID array",
            Self::Luks => "LUKS encryption",
        })
    }
}

/// What is in a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A filesystem.
    Filesystem(Filesystem),
    /// Something that a helper guest puts together.
    Stacked(Stacked),
    /// Something that holds a filesystem only together with other things.
    Part(&'static str),
    /// One of several devices of a filesystem.
    OneOfSeveral(Member),
    /// Nothing that we know.
    Unknown,
}

/// Where a magic number stands and what it means.
struct Magic {
    offset: usize,
    bytes: &'static [u8],
    content: Content,
}

const fn filesystem(
    offset: usize,
    bytes: &'static [u8],
    fstype: &'static str,
    no_replay: &'static str,
) -> Magic {
    Magic {
        offset,
        bytes,
        content: Content::Filesystem(Filesystem { fstype, no_replay }),
    }
}

const fn part(offset: usize, bytes: &'static [u8], name: &'static str) -> Magic {
    Magic {
        offset,
        bytes,
        content: Content::Part(name),
    }
}

const fn stacked(offset: usize, bytes: &'static [u8], kind: Stacked) -> Magic {
    Magic {
        offset,
        bytes,
        content: Content::Stacked(kind),
    }
}

/// Parts first: what once was a filesystem may still look like one underneath.
const MAGICS: [Magic; 21] = [
    stacked(0, b"LUKS\xba\xbe", Stacked::Luks),
    stacked(0, b"LABELONE", Stacked::Lvm),
    stacked(512, b"LABELONE", Stacked::Lvm),
    stacked(1024, b"LABELONE", Stacked::Lvm),
    stacked(1536, b"LABELONE", Stacked::Lvm),
    stacked(0, b"\xfc\x4e\x2b\xa9", Stacked::Raid),
    stacked(4096, b"\xfc\x4e\x2b\xa9", Stacked::Raid),
    part(4086, b"SWAPSPACE2", "swap space"),
    part(4086, b"SWAP-SPACE", "swap space"),
    filesystem(0, b"XFSB", "xfs", "norecovery"),
    filesystem(0, b"hsqs", "squashfs", ""),
    filesystem(1080, b"\x53\xef", "ext4", "noload"),
    filesystem(1024, b"\x10\x20\xf5\xf2", "f2fs", "norecovery"),
    filesystem(1024, b"\xe2\xe1\xf5\xe0", "erofs", ""),
    filesystem(65_600, b"_BHRfS_M", "btrfs", "rescue=nologreplay"),
    filesystem(3, b"NTFS    ", "ntfs3", ""),
    filesystem(3, b"EXFAT   ", "exfat", ""),
    filesystem(54, b"FAT12   ", "vfat", ""),
    filesystem(54, b"FAT16   ", "vfat", ""),
    filesystem(82, b"FAT32   ", "vfat", ""),
    filesystem(32_769, b"CD001", "iso9660", ""),
];

/// All magic numbers, and what else is looked at in superblocks, lie in the first bytes, so many.
const PROBED_BYTES: u64 = 65_536 + 0xd1;

/// Of the ext4 superblock, which starts at byte 1024: `s_feature_incompat`, and in it the journal's flag.
const EXT4_INCOMPAT: usize = 1024 + 0x60;
const EXT4_NEEDS_RECOVERY: u8 = 0x4;

/// Of the btrfs superblock, which starts at byte 65536: `fsid`, `log_root`, `num_devices` and `dev_item.devid`.
const BTRFS_ID: usize = 65_536 + 0x20;
const BTRFS_LOG_ROOT: usize = 65_536 + 0x60;
const BTRFS_NUM_DEVICES: usize = 65_536 + 0x88;
const BTRFS_DEVICE: usize = 65_536 + 0xc9;

/// Looks at what begins at byte `offset` and is `length` bytes long.
///
/// # Errors
/// What cannot be read.
pub fn probe(source: &dyn Source, offset: u64, length: u64) -> anyhow::Result<Content> {
    let start = read_start(source, offset, length)?;
    let matches = |magic: &&Magic| {
        start
            .get(magic.offset..)
            .is_some_and(|rest| rest.starts_with(magic.bytes))
    };
    let found = MAGICS.iter().find(matches);
    match found.map_or(Content::Unknown, |magic| magic.content) {
        Content::Filesystem(filesystem) => examine(&start, filesystem),
        other => Ok(other),
    }
}

fn read_start(source: &dyn Source, offset: u64, length: u64) -> anyhow::Result<Vec<u8>> {
    let mut start = vec![0; usize::try_from(length.min(PROBED_BYTES))?];
    source.read_at(offset, &mut start)?;
    Ok(start)
}

/// What a filesystem needs beside what is in its place.
fn examine(start: &[u8], filesystem: Filesystem) -> anyhow::Result<Content> {
    Ok(match filesystem.fstype {
        "btrfs" if u64_at(start, BTRFS_NUM_DEVICES) > 1 => Content::OneOfSeveral(member(start, filesystem)),
        "xfs" if superblock_of_xfs(start)?.has_external_log() => {
            Content::Part("an xfs whose journal is on another device")
        }
        _ => Content::Filesystem(filesystem),
    })
}

fn member(start: &[u8], filesystem: Filesystem) -> Member {
    let id = start.get(BTRFS_ID..).and_then(<[u8]>::first_chunk);
    Member {
        filesystem,
        id: id.copied().unwrap_or_default(),
        device: u64_at(start, BTRFS_DEVICE),
        devices: u64_at(start, BTRFS_NUM_DEVICES),
    }
}

fn superblock_of_xfs(start: &[u8]) -> anyhow::Result<Superblock> {
    Superblock::parse(start).context("read the superblock of xfs")
}

/// Looks at the journal of the filesystem that begins at byte `offset` and is `length` bytes long. The whole journal of an
/// xfs is read for this.
///
/// # Errors
/// A superblock that cannot be read.
pub fn journal(
    source: &dyn Source,
    offset: u64,
    length: u64,
    filesystem: Filesystem,
) -> anyhow::Result<Journal> {
    let start = read_start(source, offset, length)?;
    let dirty_if = |dirty| if dirty { Journal::Dirty } else { Journal::Clean };
    Ok(match filesystem.fstype {
        "ext4" => dirty_if(start.get(EXT4_INCOMPAT).copied().unwrap_or(0) & EXT4_NEEDS_RECOVERY != 0),
        "btrfs" => dirty_if(u64_at(&start, BTRFS_LOG_ROOT) != 0),
        "xfs" => {
            let found = superblock_of_xfs(&start)?.journal(source, offset, length);
            // Whether it can be replayed is for the kernel to find out.
            found.unwrap_or_else(|error| {
                output::complain(format_args!(
                    "smc-image: the log of an xfs cannot be read: {error:#}"
                ));
                Journal::Dirty
            })
        }
        "f2fs" | "ntfs3" => Journal::Unknown,
        _ => Journal::Clean,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_magic_number_lies_within_what_is_read() {
        for magic in &MAGICS {
            assert!((magic.offset + magic.bytes.len()) as u64 <= PROBED_BYTES);
        }
    }
}
