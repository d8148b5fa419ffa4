//! Whether a disk was written to while it was read: the kernel's own counters say so.

use blockio::Device;
use hostdev::{BlockDevice, Counters, Node, Root};
use imagefmt::Consistency;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Watches the disks of a sync from before its first read.
#[derive(Debug)]
pub struct Watch {
    disks: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    name: String,
    /// The disk itself first, then what lies below it.
    places: Vec<Place>,
}

/// Something that shows when it is written to.
#[derive(Debug)]
enum Place {
    /// A block device, and its counters where they count.
    Device(BlockDevice, Option<Counters>),
    /// The file behind a loop device: it can be written to without the device.
    File(PathBuf, Option<FileState>),
    /// Something below the disk that the kernel does not tell about.
    Unknown,
}

/// What a write to a file changes: inode, length, and the times of modification and change.
type FileState = (u64, u64, (i64, i64), (i64, i64));

impl Watch {
    /// Notes the counters of all disks.
    pub fn start<'a>(disks: impl Iterator<Item = (&'a str, &'a Device)>) -> Self {
        let watched = |(name, device): (&str, &Device)| Watched {
            name: name.to_owned(),
            places: places(device),
        };
        Self {
            disks: disks.map(watched).collect(),
        }
    }

    /// The class that an image earns without a freeze, and why it is no better. `read_bytes` is what the sync has read
    /// of each disk, `held_back` what could not be flushed before.
    pub fn finish(&self, read_bytes: &[u64], held_back: Option<&str>) -> (Consistency, String) {
        let mut disks = self.disks.iter().zip(read_bytes);
        match disks.find_map(|(disk, &read_bytes)| disk.doubt(read_bytes)) {
            Some(doubt) => (Consistency::Fuzzy, doubt),
            None => {
                let reason = match held_back {
                    None => "all was flushed, and no disk was written to during the sync".to_owned(),
                    Some(held_back) => format!(
                        "no disk was written to during the sync, and not all was flushed: {held_back}"
                    ),
                };
                (Consistency::Crash, reason)
            }
        }
    }

    /// Whether anything has reached a disk, as a clause. A flush that had nothing to write is nothing.
    pub fn written(&self) -> Option<String> {
        let written = |disk: &Watched| {
            let is_written = disk.places.iter().any(Place::is_written);
            is_written.then(|| format!("{} was written to", disk.name))
        };
        self.disks.iter().find_map(written)
    }
}

impl Watched {
    /// What speaks against the disk having been quiet from the first read to after the last.
    fn doubt(&self, read_bytes: u64) -> Option<String> {
        let name = &self.name;
        if self.places.is_empty() {
            return Some(format!(
                "there is no way to tell whether {name} was written to during the sync"
            ));
        }
        self.places.iter().enumerate().find_map(|(i, place)| {
            // Counters that did not count our own reads would not have counted writes either.
            let own_reads = if i == 0 { read_bytes } else { 0 };
            place.doubt(own_reads).map(|doubt| format!("{name} {doubt}"))
        })
    }
}

impl Place {
    /// Whether bytes have reached it, or may have.
    fn is_written(&self) -> bool {
        match self {
            Self::Device(device, before) => match (before, counters(device)) {
                (Some(before), Some(now)) => {
                    before.written_sectors != now.written_sectors || now.writes_in_flight > 0
                }
                _ => true,
            },
            Self::File(path, before) => *before != state(path),
            Self::Unknown => true,
        }
    }

    fn doubt(&self, own_reads_bytes: u64) -> Option<String> {
        match self {
            Self::Device(device, before) => match (before, counters(device)) {
                (Some(before), Some(now)) => doubt(before, &now, own_reads_bytes),
                _ => Some(NO_COUNTERS.to_owned()),
            },
            Self::File(path, before) => {
                let same = before.is_some() && *before == state(path);
                (!same).then(|| {
                    format!(
                        "is stored in {}, which was written to during the sync",
                        path.display()
                    )
                })
            }
            Self::Unknown => Some(NO_COUNTERS.to_owned()),
        }
    }
}

const NO_COUNTERS: &str = "has no I/O counters, so writes during the sync cannot be ruled out";

/// A write of no sectors is a flush that had nothing to write.
fn doubt(before: &Counters, now: &Counters, own_reads_bytes: u64) -> Option<String> {
    let grown = |pick: fn(&Counters) -> u64| pick(now).wrapping_sub(pick(before));
    let (Some(discards_before), Some(discards_now)) = (before.discards, now.discards) else {
        return Some(NO_COUNTERS.to_owned());
    };
    if before.writes_in_flight > 0 || now.writes_in_flight > 0 {
        Some("had writes in flight".to_owned())
    } else if grown(|counters| counters.written_sectors) > 0 {
        let sectors = grown(|counters| counters.written_sectors);
        Some(format!("was written to during the sync: {sectors} sectors"))
    } else if discards_before != discards_now {
        Some("was written to during the sync: sectors were discarded".to_owned())
    } else if grown(|counters| counters.read_sectors) < own_reads_bytes / 512 {
        Some("has I/O counters that do not count its reads, so writes cannot be ruled out".to_owned())
    } else {
        None
    }
}

/// Where writes to a device show: the whole disk that it is a part of, and all that lies below that.
fn places(device: &Device) -> Vec<Place> {
    let mut found = Vec::new();
    if let Node::Device(_) = device.node() {
        let root = Root::system();
        if collect(&root, device.node(), &mut found).is_err() {
            found.push(Place::Unknown);
        }
    }
    found
}

fn collect(root: &Root, node: &Node, found: &mut Vec<Place>) -> hostdev::Result<()> {
    let number = match node {
        Node::Device(number) => *number,
        Node::File(path, _) => {
            found.push(Place::File(path.clone(), state(path)));
            return Ok(());
        }
    };
    let Some(device) = BlockDevice::find(root, number)? else {
        found.push(Place::Unknown);
        return Ok(());
    };
    let whole = device.whole_disk()?;
    let known = |place: &Place| matches!(place, Place::Device(device, _) if *device == whole);
    if found.iter().any(known) {
        return Ok(());
    }
    found.push(Place::Device(whole.clone(), counters(&whole)));
    if let Some(backing) = whole.backing()? {
        match backing.node {
            Some(node) => collect(root, &node, found)?,
            None => found.push(Place::Unknown),
        }
    }
    for below in whole.slaves()? {
        collect(root, &Node::Device(below.number()), found)?;
    }
    Ok(())
}

fn state(path: &Path) -> Option<FileState> {
    let found = fs::metadata(path).ok()?;
    Some((
        found.ino(),
        found.len(),
        (found.mtime(), found.mtime_nsec()),
        (found.ctime(), found.ctime_nsec()),
    ))
}

/// The counters of a device; none where the kernel does not count, or does not say.
fn counters(device: &BlockDevice) -> Option<Counters> {
    // With iostats off the counters stand still, whatever is written.
    let counting = device.is_counting().ok().flatten()?;
    counting.then(|| device.counters().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hostdev::Discards;

    #[test]
    fn a_flush_with_nothing_to_write_is_no_write() {
        let before = Counters {
            reads: 7,
            read_sectors: 64,
            writes: 5,
            written_sectors: 40,
            discards: Some(Discards { count: 1, sectors: 8 }),
            writes_in_flight: 0,
        };
        let changed = |change: fn(&mut Counters)| {
            let mut now = before;
            change(&mut now);
            doubt(&before, &now, 0)
        };
        assert_eq!(changed(|now| now.writes += 2), None);
        let is_doubted = |change: fn(&mut Counters)| changed(change).is_some();
        assert!(is_doubted(|now| (now.writes, now.written_sectors) = (6, 48)));
        assert!(is_doubted(|now| now.discards = Some(Discards {
            count: 2,
            sectors: 16
        })));
        assert!(is_doubted(|now| now.writes_in_flight = 1));
        assert!(is_doubted(|now| now.discards = None));
        assert!(
            doubt(&before, &before, 4096).is_some(),
            "own reads were not counted"
        );
    }
}
