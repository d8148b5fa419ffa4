//! Which part of a disk is to be mounted.

use super::filesystem::{Content, Filesystem, journal, probe};
use super::journal::Journal;
use super::partition::{Partition, SECTOR_BYTES, Source, read_table};
use crate::exit::Advise;
use anyhow::{Context, anyhow};
use cli::units;

/// Block sizes that disks have.
const BLOCK_BYTES: [u64; 2] = [SECTOR_BYTES, 4096];

/// The range of a disk that holds a filesystem, and which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// Number of the partition; `None` where the filesystem fills the disk.
    pub partition: Option<u32>,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// The filesystem.
    pub filesystem: Filesystem,
    /// Its journal, which is not replayed.
    pub journal: Journal,
}

/// Finds partition `wanted`, or the one filesystem of the disk. `block_bytes` is the disk's logical block size as the
/// image recorded it; a disk that was copied from one with another still has its partitions found.
///
/// # Errors
/// Where there is no such partition, nothing or more than one thing that can be mounted; a table that is damaged, and
/// a disk that cannot be read.
pub fn select(source: &dyn Source, block_bytes: u64, wanted: Option<u32>) -> anyhow::Result<Selection> {
    let selected = match (partitions(source, block_bytes)?, wanted) {
        (None, None) => whole_disk(source),
        (None, Some(_)) => Err(anyhow!("the disk has no partition table"))
            .advise("leave --partition out to mount the disk itself"),
        (Some(partitions), wanted) => one_of(source, &partitions, wanted),
    };
    // Only of what was selected: a journal may have gigabytes.
    selected?.examined(source)
}

/// A part of a disk whose journal was not looked at.
#[derive(Debug)]
struct Candidate {
    partition: Option<u32>,
    offset: u64,
    length: u64,
    filesystem: Filesystem,
}

impl Candidate {
    fn examined(self, source: &dyn Source) -> anyhow::Result<Selection> {
        let Self {
            partition,
            offset,
            length,
            filesystem,
        } = self;
        let journal = journal(source, offset, length, filesystem).context("look at the journal")?;
        Ok(Selection {
            partition,
            offset,
            length,
            filesystem,
            journal,
        })
    }
}

fn partitions(source: &dyn Source, block_bytes: u64) -> anyhow::Result<Option<Vec<Partition>>> {
    let own = BLOCK_BYTES
        .into_iter()
        .find(|&size| size == block_bytes)
        .unwrap_or(SECTOR_BYTES);
    let other = BLOCK_BYTES.into_iter().find(|&size| size != own).unwrap_or(own);
    let found = read_table(source, own).context("read the partition table");
    match found {
        Err(error) => read_table(source, other).map_err(|_| error),
        found => found,
    }
}

fn whole_disk(source: &dyn Source) -> anyhow::Result<Candidate> {
    let length = source.size_bytes();
    let content = probe(source, 0, length).context("look for a filesystem")?;
    match usable(None, 0, length, content) {
        Some(candidate) => Ok(candidate),
        None => Err(unusable("the disk", content)),
    }
}

fn one_of(source: &dyn Source, partitions: &[Partition], wanted: Option<u32>) -> anyhow::Result<Candidate> {
    let mut listing = String::from("the disk's partitions:");
    let mut fitting = Vec::new();
    for partition in partitions {
        let Partition {
            number,
            offset,
            length,
            kind,
        } = partition;
        let probed = probe(source, *offset, *length);
        let shown = match &probed {
            Ok(content) => describe(*content),
            Err(_) => "cannot be read".to_owned(),
        };
        listing.push_str(&format!(
            "\n    {number}  {}, {kind}: {shown}",
            units::size(*length)
        ));
        if wanted.is_some_and(|wanted| wanted != *number) {
            continue;
        }
        let name = format!("partition {number}");
        match (wanted, probed) {
            (_, Ok(content)) => match usable(Some(*number), *offset, *length, content) {
                Some(candidate) => fitting.push(candidate),
                None if wanted.is_some() => return Err(unusable(&name, content)),
                None => {}
            },
            (Some(_), Err(error)) => return Err(error.context(format!("look for a filesystem in {name}"))),
            (None, Err(error)) => tracing::warn!("{name} cannot be read: {error:#}"),
        }
    }
    match (fitting.pop(), wanted) {
        (Some(only), _) if fitting.is_empty() => Ok(only),
        (Some(_), _) => Err(anyhow!("several partitions have a filesystem"))
            .advise(format!("choose one with --partition; {listing}")),
        (None, Some(number)) => Err(anyhow!("there is no partition {number}")).advise(listing),
        (None, None) => Err(anyhow!("no partition has a filesystem that can be mounted")).advise(listing),
    }
}

fn usable(partition: Option<u32>, offset: u64, length: u64, content: Content) -> Option<Candidate> {
    let Content::Filesystem(filesystem) = content else {
        return None;
    };
    Some(Candidate {
        partition,
        offset,
        length,
        filesystem,
    })
}

fn unusable(place: &str, content: Content) -> anyhow::Error {
    let (what, advice) = match content {
        Content::Part(name) => (
            format!("{place} holds {name}, which cannot be mounted as it is"),
            "serve the image over NBD, and put it together from there",
        ),
        Content::OneOfSeveral(name, devices) => (
            format!("{place} is one of {devices} devices of a {name} filesystem, which needs all of them"),
            "serve the image with all its disks over NBD, connect these, and mount it from there",
        ),
        _ => (
            format!("{place} holds no filesystem that is known"),
            "export the image, or serve it, to look at it",
        ),
    };
    Err::<(), _>(anyhow!(what))
        .advise(advice)
        .expect_err("it was made an error")
}

fn describe(content: Content) -> String {
    match content {
        Content::Filesystem(filesystem) => filesystem.fstype.to_owned(),
        Content::Part(name) => name.to_owned(),
        Content::OneOfSeveral(name, devices) => format!("one of {devices} devices of a {name} filesystem"),
        Content::Unknown => "no known filesystem".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const MIB: u64 = 1 << 20;

    /// A disk of zeros but for some bytes, which counts what is read of it.
    struct Sparse {
        bytes: Vec<(u64, Vec<u8>)>,
        read: Cell<u64>,
    }

    impl Source for Sparse {
        fn size_bytes(&self) -> u64 {
            4096 * MIB
        }

        fn read_at(&self, offset: u64, target: &mut [u8]) -> anyhow::Result<()> {
            target.fill(0);
            self.read.set(self.read.get() + target.len() as u64);
            for (at, bytes) in &self.bytes {
                for (at, byte) in (*at..).zip(bytes) {
                    let inside = at.checked_sub(offset).map(usize::try_from);
                    if let Some(target) = inside.and_then(|at| target.get_mut(at.ok()?)) {
                        *target = *byte;
                    }
                }
            }
            Ok(())
        }
    }

    /// The superblock of an xfs with a journal of 512 MiB.
    fn xfs() -> Vec<u8> {
        let mut start = vec![0; 128];
        start[..4].copy_from_slice(b"XFSB");
        start[4..8].copy_from_slice(&4096u32.to_be_bytes());
        start[48..56].copy_from_slice(&16u64.to_be_bytes());
        start[84..88].copy_from_slice(&(1u32 << 18).to_be_bytes());
        start[96..100].copy_from_slice(&(1u32 << 17).to_be_bytes());
        start[124] = 18;
        start
    }

    #[test]
    fn only_the_journal_of_what_is_mounted_is_read() {
        let partition = |number: u32, offset: u64| Partition {
            number,
            offset,
            length: 1024 * MIB,
            kind: String::new(),
        };
        let partitions = [
            partition(1, MIB),
            partition(2, 1025 * MIB),
            partition(3, 2049 * MIB),
        ];
        let disk = Sparse {
            bytes: partitions.iter().map(|found| (found.offset, xfs())).collect(),
            read: Cell::default(),
        };
        one_of(&disk, &partitions, None).unwrap_err();
        assert!(disk.read.get() < MIB, "{} bytes were read", disk.read.get());
        let selected = one_of(&disk, &partitions, Some(2))
            .unwrap()
            .examined(&disk)
            .unwrap();
        assert_eq!((selected.offset, selected.journal), (1025 * MIB, Journal::Clean));
        assert!((512 * MIB..514 * MIB).contains(&disk.read.get()));
    }
}
