//! Which filesystem of an image is to be mounted, and on which parts of its disks it lies.

use super::filesystem::{Content, Filesystem, Member, Stacked, journal, probe};
use super::journal::Journal;
use super::partition::{Partition, SECTOR_BYTES, Source, read_table};
use crate::exit::Advise;
use crate::helper::Volume;
use anyhow::{Context, anyhow, bail, ensure};
use cli::units;
use imagefmt::Image;
use std::fmt::{self, Debug, Formatter};

/// Block sizes that disks have.
const BLOCK_BYTES: [u64; 2] = [SECTOR_BYTES, 4096];

/// A disk of an image, or a volume that a helper guest has put together from disks.
#[derive(Clone, Copy)]
pub struct NamedDisk<'a> {
    /// Its name in the image.
    pub name: &'a str,
    /// Its logical block size in bytes.
    pub block_bytes: u32,
    /// What is on it.
    pub source: &'a dyn Source,
    /// What is known of a volume; `None` for a disk.
    pub volume: Option<&'a Volume>,
}

impl Debug for NamedDisk<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedDisk")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// All disks of an image.
pub fn disks_of(image: &Image) -> Vec<NamedDisk<'_>> {
    let named = |disk| named_disk(image, disk);
    image.disks().iter().map(named).collect()
}

fn named_disk<'a>(image: &'a Image, disk: &'a imagefmt::Disk) -> NamedDisk<'a> {
    let recorded = image.manifest().disk(disk.name());
    // One that a loop device can have.
    let block_bytes = recorded
        .map(|record| record.logical_block_size)
        .filter(|bytes| matches!(bytes, 512 | 1024 | 2048 | 4096));
    NamedDisk {
        name: disk.name(),
        block_bytes: block_bytes.unwrap_or(512),
        source: disk,
        volume: None,
    }
}

/// A range of a disk: a partition, or all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of the disk.
    pub disk: String,
    /// The disk's logical block size in bytes.
    pub block_bytes: u32,
    /// Number of the partition; `None` for the whole disk.
    pub partition: Option<u32>,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// The id of the partition; empty if it has none.
    pub partition_id: String,
    /// The label of the partition; empty if it has none.
    pub partition_name: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.partition {
            Some(number) => write!(f, "partition {number} of {}", self.disk),
            None => f.write_str(&self.disk),
        }
    }
}

/// What was found in a place.
#[derive(Debug)]
pub struct Found {
    /// Where.
    pub place: Place,
    /// What the partition table says that it is for; empty for a whole disk.
    pub kind: String,
    /// What is there, or why it cannot be read.
    pub content: anyhow::Result<Content>,
}

/// A filesystem and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// Its devices; most filesystems have one.
    pub places: Vec<Place>,
    /// What it is.
    pub filesystem: Filesystem,
    /// Its id, where it has several devices.
    pub id: Option<[u8; 16]>,
    /// What is known of its journal.
    pub journal: Journal,
}

/// What somebody asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// Name of the disk; `None` for any.
    pub disk: Option<&'a str>,
    /// Number of the partition; `None` for the only one that has a filesystem.
    pub partition: Option<u32>,
}

/// Finds the filesystem that is wanted. A disk that was copied from one with other logical blocks still has its partitions
/// found.
///
/// # Errors
/// Where there is no such partition, nothing or more than one filesystem that can be mounted; a table that is damaged, and
/// a disk that cannot be read.
pub fn select(disks: &[NamedDisk<'_>], wanted: Wanted<'_>) -> anyhow::Result<Selection> {
    // Only of what was selected: a journal may have gigabytes.
    select_unexamined(disks, wanted)?.examined(disks)
}

/// The same, without a look at the journal.
///
/// # Errors
/// As [`select`].
pub fn select_unexamined(disks: &[NamedDisk<'_>], wanted: Wanted<'_>) -> anyhow::Result<Candidate> {
    let mut found = Vec::new();
    for disk in disks.iter().filter(|disk| wanted.is_on(disk)) {
        found.extend(survey(disk)?);
    }
    choose(disks, found, wanted)
}

/// Where what is wanted may lie that only a helper guest can put together.
///
/// # Errors
/// As [`survey`].
pub fn stacked(disks: &[NamedDisk<'_>], wanted: Wanted<'_>) -> anyhow::Result<Vec<Stacked>> {
    let is_disk = |name| disks.iter().any(|disk| disk.name == name);
    // Otherwise it is the name of a volume.
    let name = wanted.disk.filter(|name| is_disk(*name));
    let mut stacked = Vec::new();
    for disk in disks
        .iter()
        .filter(|disk| name.is_none_or(|name| name == disk.name))
    {
        for found in survey(disk)? {
            let is_wanted = wanted.partition.is_none() || wanted.partition == found.place.partition;
            if let (true, Ok(Content::Stacked(kind))) = (is_wanted, found.content) {
                stacked.push(kind);
            }
        }
    }
    Ok(stacked)
}

impl Wanted<'_> {
    /// Whether it may be on this disk, or in this volume.
    fn is_on(&self, disk: &NamedDisk<'_>) -> bool {
        let is_named = self.disk.is_none_or(|name| name == disk.name);
        is_named
            || disk
                .volume
                .is_some_and(|volume| volume.lies_on(self.disk, self.partition))
    }

    /// Whether it may be in this place.
    fn is_in(&self, disks: &[NamedDisk<'_>], place: &Place) -> bool {
        let volume = disks
            .iter()
            .find(|disk| disk.name == place.disk)
            .and_then(|disk| disk.volume);
        self.partition.is_none()
            || self.partition == place.partition
            || volume.is_some_and(|volume| volume.lies_on(self.disk, self.partition))
    }
}

/// A filesystem whose journal was not looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its devices.
    pub places: Vec<Place>,
    /// What it is.
    pub filesystem: Filesystem,
    /// Its id, where it has several devices.
    pub id: Option<[u8; 16]>,
}

impl Candidate {
    /// Looks at the journal.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn examined(self, disks: &[NamedDisk<'_>]) -> anyhow::Result<Selection> {
        let Self {
            places,
            filesystem,
            id,
        } = self;
        let first = places.first().context("a filesystem lies nowhere")?;
        let source = disks.iter().find(|disk| disk.name == first.disk);
        let source = source.context("a filesystem lies on no disk")?.source;
        let journal =
            journal(source, first.offset, first.length, filesystem).context("look at the journal")?;
        Ok(Selection {
            places,
            filesystem,
            id,
            journal,
        })
    }
}

/// What is in each partition of a disk; what is on the disk itself if it has none.
///
/// # Errors
/// A partition table that is damaged or cannot be read.
pub fn survey(disk: &NamedDisk<'_>) -> anyhow::Result<Vec<Found>> {
    let table = partitions(disk.source, disk.block_bytes.into());
    let table = table.with_context(|| format!("read the partition table of {}", disk.name))?;
    let whole = Partition {
        number: 0,
        offset: 0,
        length: disk.source.size_bytes(),
        kind: String::new(),
        id: String::new(),
        name: String::new(),
    };
    let found = |partition: Partition| {
        let Partition {
            number,
            offset,
            length,
            kind,
            id,
            name,
        } = partition;
        let place = Place {
            disk: disk.name.to_owned(),
            block_bytes: disk.block_bytes,
            partition: (number > 0).then_some(number),
            offset,
            length,
            partition_id: id,
            partition_name: name,
        };
        let content = probe(disk.source, offset, length);
        Found { place, kind, content }
    };
    Ok(table
        .unwrap_or_else(|| vec![whole])
        .into_iter()
        .map(found)
        .collect())
}

fn partitions(source: &dyn Source, block_bytes: u64) -> anyhow::Result<Option<Vec<Partition>>> {
    let own = BLOCK_BYTES
        .into_iter()
        .find(|&size| size == block_bytes)
        .unwrap_or(SECTOR_BYTES);
    let other = BLOCK_BYTES.into_iter().find(|&size| size != own).unwrap_or(own);
    match read_table(source, own) {
        Err(error) => read_table(source, other).map_err(|_| error),
        found => found,
    }
}

fn choose(disks: &[NamedDisk<'_>], found: Vec<Found>, wanted: Wanted<'_>) -> anyhow::Result<Candidate> {
    let listing = listing(&found);
    let has_table = found.iter().any(|found| found.place.partition.is_some());
    let mut matching: Vec<Found> = found
        .into_iter()
        .filter(|found| wanted.is_in(disks, &found.place))
        .collect();
    if matching.len() <= 1 {
        return match (matching.pop(), wanted.partition) {
            (Some(only), _) => candidate(disks, only),
            (None, Some(_)) if !has_table => Err(anyhow!("the disk has no partition table"))
                .advise("leave --partition out to mount the disk itself"),
            (None, Some(number)) => Err(anyhow!("there is no partition {number}")).advise(listing),
            (None, None) => bail!("the partition table is empty"),
        };
    }
    let mut fitting = fitting(disks, matching)?;
    match (fitting.pop(), fitting.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(anyhow!("there are several filesystems"))
            .advise(format!("choose one with IMAGE:DISK and --partition; {listing}")),
        (None, _) => Err(anyhow!("there is no filesystem that can be mounted")).advise(listing),
    }
}

/// The filesystems among what was found, each once. What cannot be read, or is incomplete, is reported and left out.
///
/// # Errors
/// A disk whose partition table cannot be read, where one has to be looked at again.
pub fn fitting(disks: &[NamedDisk<'_>], found: Vec<Found>) -> anyhow::Result<Vec<Candidate>> {
    let mut fitting = Vec::new();
    for found in found {
        match found.content {
            Ok(Content::Filesystem(_) | Content::OneOfSeveral(_)) => {}
            Ok(_) => continue,
            Err(error) => {
                tracing::warn!("{} cannot be read: {error:#}", found.place);
                continue;
            }
        }
        match candidate(disks, found) {
            Ok(candidate) if fitting.contains(&candidate) => {}
            Ok(candidate) => fitting.push(candidate),
            Err(error) => tracing::warn!("{error:#}"),
        }
    }
    Ok(fitting)
}

/// What was found, a line for each place.
pub fn listing(found: &[Found]) -> String {
    let line = |found: &Found| {
        let Found { place, kind, content } = found;
        let shown = match content {
            Ok(content) => describe(*content),
            Err(_) => "cannot be read".to_owned(),
        };
        let (disk, size) = (&place.disk, units::size(place.length));
        match place.partition {
            Some(number) => format!("\n    {disk}, partition {number}  {size}, {kind}: {shown}"),
            None => format!("\n    {disk}  {size}: {shown}"),
        }
    };
    format!("these are there:{}", found.iter().map(line).collect::<String>())
}

/// The filesystem in a place, with all its devices.
fn candidate(disks: &[NamedDisk<'_>], found: Found) -> anyhow::Result<Candidate> {
    let Found { place, content, .. } = found;
    let content = content.with_context(|| format!("look for a filesystem in {place}"))?;
    match content {
        Content::Filesystem(filesystem) => Ok(Candidate {
            places: vec![place],
            filesystem,
            id: None,
        }),
        Content::OneOfSeveral(member) => {
            let places = members(disks, &member);
            Ok(Candidate {
                places: places.with_context(|| format!("look at {place}"))?,
                filesystem: member.filesystem,
                id: Some(member.id),
            })
        }
        Content::Stacked(name) => Err(anyhow!(
            "{place} holds {name}, and what is in it could not be opened"
        ))
        .advise("serve the image over NBD, and put it together from there"),
        Content::Part(name) => Err(anyhow!("{place} holds {name}, which cannot be mounted as it is"))
            .advise("serve the image over NBD, and put it together from there"),
        Content::Unknown => Err(anyhow!("{place} holds no filesystem that is known"))
            .advise("export the image, or serve it, to look at it"),
    }
}

/// All devices of a filesystem, by their numbers in it.
fn members(disks: &[NamedDisk<'_>], member: &Member) -> anyhow::Result<Vec<Place>> {
    let mut found = Vec::new();
    for disk in disks {
        for other in survey(disk)? {
            if let Ok(Content::OneOfSeveral(other_member)) = other.content {
                let is_ours = other_member.id == member.id;
                found.extend(is_ours.then_some((other_member.device, other.place)));
            }
        }
    }
    found.sort_by_key(|(device, _)| *device);
    let places: Vec<Place> = found.iter().map(|(_, place)| place.clone()).collect();
    let name = member.filesystem.fstype;
    if let Some(pair) = found.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let (first, second) = (&pair[0].1, &pair[1].1);
        bail!("{first} and {second} are the same device of a {name} filesystem: one of them is a copy");
    }
    let missing = member.devices.saturating_sub(places.len() as u64);
    ensure!(
        missing == 0,
        "a {name} filesystem has {} devices, and {missing} of them are not in the image",
        member.devices
    );
    Ok(places)
}

fn describe(content: Content) -> String {
    match content {
        Content::Filesystem(filesystem) => filesystem.fstype.to_owned(),
        Content::Stacked(name) => name.to_string(),
        Content::Part(name) => name.to_owned(),
        Content::OneOfSeveral(member) => format!(
            "one of {} devices of a {} filesystem",
            member.devices, member.filesystem.fstype
        ),
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

    /// A disk with a boot record and an xfs in each of three partitions.
    fn three_partitions() -> Sparse {
        let offsets = [MIB, 1025 * MIB, 2049 * MIB];
        let mut mbr = vec![0; 512];
        mbr[510..].copy_from_slice(&[0x55, 0xaa]);
        for (slot, offset) in offsets.iter().enumerate() {
            let entry = &mut mbr[446 + 16 * slot..][..16];
            let sectors = |bytes: u64| u32::try_from(bytes / 512).unwrap().to_le_bytes();
            entry[4] = 0x83;
            entry[8..12].copy_from_slice(&sectors(*offset));
            entry[12..].copy_from_slice(&sectors(1024 * MIB));
        }
        let filesystems = offsets.iter().map(|offset| (*offset, xfs()));
        Sparse {
            bytes: filesystems.chain([(0, mbr)]).collect(),
            read: Cell::default(),
        }
    }

    #[test]
    fn only_the_journal_of_what_is_mounted_is_read() {
        let disk = three_partitions();
        let disks = [NamedDisk {
            name: "vda",
            block_bytes: 512,
            source: &disk,
            volume: None,
        }];
        let partition = |partition| Wanted {
            disk: None,
            partition,
        };
        select(&disks, partition(None)).unwrap_err();
        assert!(disk.read.get() < MIB, "{} bytes were read", disk.read.get());
        let selected = select(&disks, partition(Some(2))).unwrap();
        let offsets: Vec<u64> = selected.places.iter().map(|place| place.offset).collect();
        assert_eq!((offsets, selected.journal), (vec![1025 * MIB], Journal::Clean));
        assert!((512 * MIB..514 * MIB).contains(&disk.read.get()));
    }
}
