//! Which part of a disk is to be mounted.

use super::filesystem::{Content, Filesystem, Journal, Probe, probe};
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
pub fn select(source: &dyn Source, block_bytes: u64, wanted: Option<u32>) -> anyhow::Result<Selection> {
    match (partitions(source, block_bytes)?, wanted) {
        (None, None) => whole_disk(source),
        (None, Some(_)) => Err(anyhow!("the disk has no partition table"))
            .advise("leave --partition out to mount the disk itself"),
        (Some(partitions), wanted) => one_of(source, &partitions, wanted),
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

fn whole_disk(source: &dyn Source) -> anyhow::Result<Selection> {
    let length = source.size_bytes();
    let probe = probe(source, 0, length).context("look for a filesystem")?;
    match usable(None, 0, length, &probe) {
        Some(selection) => Ok(selection),
        None => Err(unusable("the disk", &probe)),
    }
}

fn one_of(source: &dyn Source, partitions: &[Partition], wanted: Option<u32>) -> anyhow::Result<Selection> {
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
            Ok(probe) => describe(probe.content),
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
            (_, Ok(probe)) => match usable(Some(*number), *offset, *length, &probe) {
                Some(selection) => fitting.push(selection),
                None if wanted.is_some() => return Err(unusable(&name, &probe)),
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

fn usable(partition: Option<u32>, offset: u64, length: u64, probe: &Probe) -> Option<Selection> {
    let Content::Filesystem(filesystem) = probe.content else {
        return None;
    };
    Some(Selection {
        partition,
        offset,
        length,
        filesystem,
        journal: probe.journal,
    })
}

fn unusable(place: &str, probe: &Probe) -> anyhow::Error {
    let (what, advice) = match probe.content {
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
