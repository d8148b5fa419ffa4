//! Whether a disk was written to while it was read: the kernel's own counters say so.

use blockio::{Device, DeviceKind};
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
    size_bytes: u64,
    /// The disk itself first, then what lies below it.
    places: Vec<Place>,
}

/// Something that shows when it is written to.
#[derive(Debug)]
enum Place {
    /// A directory of a block device in sysfs.
    Device(PathBuf, Option<Counters>),
    /// The file behind a loop device: it can be written to without the device.
    File(PathBuf, Option<FileState>),
}

/// Counters of a disk (Documentation/block/stat.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counters {
    read_sectors: u64,
    write_sectors: u64,
    discard_sectors: u64,
    /// Requests that change something, completed: writes and discards.
    change_requests: u64,
    /// Writes in flight.
    writes_in_flight: u64,
}

/// What a write to a file changes: inode, length, and the times of modification and change.
type FileState = (u64, u64, (i64, i64), (i64, i64));

impl Watch {
    /// Notes the counters of all disks.
    pub fn start<'a>(disks: impl Iterator<Item = (&'a str, &'a Device)>) -> Self {
        let watched = |(name, device): (&str, &Device)| Watched {
            name: name.to_owned(),
            size_bytes: device.size_bytes(),
            places: places(device),
        };
        Self {
            disks: disks.map(watched).collect(),
        }
    }

    /// The class that an image earns without a freeze, and why it is no better.
    pub fn finish(&self) -> (Consistency, String) {
        match self.disks.iter().find_map(Watched::doubt) {
            Some(doubt) => (Consistency::Fuzzy, doubt),
            None => {
                let reason = "no disk was written to during the sync, but nothing was flushed or frozen";
                (Consistency::Crash, reason.to_owned())
            }
        }
    }
}

impl Watched {
    /// What speaks against the disk having been quiet from the first read to after the last.
    fn doubt(&self) -> Option<String> {
        let name = &self.name;
        if self.places.is_empty() {
            return Some(format!(
                "there is no way to tell whether {name} was written to during the sync"
            ));
        }
        self.places.iter().enumerate().find_map(|(i, place)| {
            // Counters that did not count our own reads would not have counted writes either.
            let own_reads = if i == 0 { self.size_bytes } else { 0 };
            place.doubt(own_reads).map(|doubt| format!("{name} {doubt}"))
        })
    }
}

impl Place {
    fn doubt(&self, own_reads_bytes: u64) -> Option<String> {
        match self {
            Self::Device(dir, before) => match (before, counters(dir)) {
                (Some(before), Some(now)) => before.doubt(&now, own_reads_bytes),
                _ => Some("has no I/O counters, so writes during the sync cannot be ruled out".to_owned()),
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
        }
    }
}

impl Counters {
    fn doubt(&self, now: &Self, own_reads_bytes: u64) -> Option<String> {
        let grown = |pick: fn(&Self) -> u64| pick(now).wrapping_sub(pick(self));
        if self.writes_in_flight + now.writes_in_flight > 0 {
            Some("had writes in flight".to_owned())
        } else if grown(|counters| counters.write_sectors) > 0 {
            let sectors = grown(|counters| counters.write_sectors);
            Some(format!("was written to during the sync: {sectors} sectors"))
        } else if grown(|counters| counters.change_requests) > 0
            || grown(|counters| counters.discard_sectors) > 0
        {
            Some("was written to during the sync: sectors were discarded".to_owned())
        } else if grown(|counters| counters.read_sectors) < own_reads_bytes / 512 {
            Some("has I/O counters that do not count its reads, so writes cannot be ruled out".to_owned())
        } else {
            None
        }
    }
}

/// Where writes to a device show: the whole disk that it is a part of, and all that lies below that.
fn places(device: &Device) -> Vec<Place> {
    let (DeviceKind::Block, Some((major, minor))) = (device.kind(), device.device_number()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    collect(Path::new(&format!("/sys/dev/block/{major}:{minor}")), &mut found);
    found
}

fn collect(dir: &Path, found: &mut Vec<Place>) {
    let Ok(dir) = dir.canonicalize() else {
        found.push(Place::Device(dir.to_owned(), None));
        return;
    };
    let whole = match dir.parent() {
        Some(disk) if dir.join("partition").exists() => disk.to_owned(),
        _ => dir,
    };
    let known = |place: &Place| matches!(place, Place::Device(dir, _) if *dir == whole);
    if found.iter().any(known) {
        return;
    }
    found.push(Place::Device(whole.clone(), counters(&whole)));
    if let Ok(backing) = fs::read_to_string(whole.join("loop/backing_file")) {
        let path = PathBuf::from(backing.trim_end_matches('\n'));
        let state = state(&path);
        found.push(Place::File(path, state));
    }
    for below in fs::read_dir(whole.join("slaves")).into_iter().flatten().flatten() {
        collect(&below.path(), found);
    }
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

fn counters(dir: &Path) -> Option<Counters> {
    // With iostats off the counters stand still, whatever is written.
    if fs::read_to_string(dir.join("queue/iostats")).ok()?.trim() != "1" {
        return None;
    }
    let stat = numbers(&dir.join("stat"))?;
    let field = |number: usize| stat.get(number - 1).copied();
    Some(Counters {
        read_sectors: field(3)?,
        write_sectors: field(7)?,
        discard_sectors: field(14)?,
        change_requests: field(5)?.wrapping_add(field(12)?),
        writes_in_flight: *numbers(&dir.join("inflight"))?.get(1)?,
    })
}

fn numbers(path: &Path) -> Option<Vec<u64>> {
    let text = fs::read_to_string(path).ok()?;
    text.split_whitespace().map(|field| field.parse().ok()).collect()
}
