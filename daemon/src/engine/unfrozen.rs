//! What on the disks is written to although filesystems are frozen: swap, which may be, and filesystems that cannot be frozen, which
//! may not.

use super::disks::SourceDisk;
use super::held::HeldDisk;
use cli::text::count;
use freeze::{Kind, OnDisks};
use hostdev::{BlockDevice, DeviceNumber, Root};
use imagefmt::{DiskId, Geometry};
use std::ops::Range;
use std::path::Path;
use tracker::Bitmap;

/// Places on each disk of the job.
#[derive(Debug)]
pub(super) struct Unfrozen {
    disks: Vec<Places>,
    /// Swap of which nobody says where on the disks it lies.
    unplaced: Vec<String>,
}

#[derive(Debug)]
struct Places {
    /// Clusters that are nothing but swap: what is in them does not matter after a boot.
    swap: Bitmap,
    /// Clusters of filesystems that cannot be frozen.
    not_freezable: Bitmap,
}

impl Unfrozen {
    /// Where they are, as far as partitions and filesystems tell. A place that they do not tell is not taken for swap, and is taken for
    /// a filesystem that cannot be frozen if there is one.
    pub fn of(found: &OnDisks, disks: &[SourceDisk], ids: &[DiskId]) -> Self {
        let root = Root::system();
        let swaps: Vec<Swap> = found.swaps.iter().map(|path| Swap::at(&root, path)).collect();
        let not_freezable = found
            .filesystems
            .iter()
            .filter(|one| one.kind == Kind::NotFreezable)
            .map(freeze::Filesystem::number);
        let not_freezable: Vec<DeviceNumber> = not_freezable.collect();
        let all: Vec<Vec<(DeviceNumber, Range<u64>)>> = disks.iter().map(|disk| parts(&root, disk)).collect();
        let is_placed = |number: &DeviceNumber| all.iter().flatten().any(|(part, _)| part == number);
        let somewhere = not_freezable.iter().any(|number| !is_placed(number));
        let places = |(parts, id): (&Vec<(DeviceNumber, Range<u64>)>, &DiskId)| {
            let geometry = id.geometry();
            let touched = parts.iter().filter(|(number, _)| not_freezable.contains(number));
            let touched: Vec<Range<u64>> = match somewhere {
                true => std::iter::once(0..geometry.size_bytes()).collect(),
                false => touched.map(|(_, bytes)| bytes.clone()).collect(),
            };
            let swap = parts
                .iter()
                .flat_map(|part| swaps.iter().flat_map(|swap| swap.within(part)));
            Places {
                swap: set(geometry, &joined(swap.collect()), within),
                not_freezable: set(geometry, &touched, touching),
            }
        };
        let unplaced = swaps
            .iter()
            .zip(&found.swaps)
            .filter(|(swap, _)| !swap.number.is_some_and(|number| is_placed(&number)));
        Self {
            disks: all.iter().zip(ids).map(places).collect(),
            unplaced: unplaced.map(|(_, path)| path.display().to_string()).collect(),
        }
    }

    /// What speaks against a disk having stood still from the freeze to the thaw, as a clause.
    pub fn doubt(&self, place: usize, held: &HeldDisk) -> Option<String> {
        let places = &self.disks[place];
        let mut after = held.after.clone();
        after.remove(&places.swap);
        let of_unfrozen = |written: &Bitmap| {
            let mut clusters = written.ranges(0).flatten();
            clusters.any(|cluster| places.not_freezable.contains(cluster))
        };
        if of_unfrozen(&held.in_window) || of_unfrozen(&after) {
            return Some("a filesystem that cannot be frozen was written to".to_owned());
        }
        (!after.is_empty()).then(|| {
            let clusters = count(usize::try_from(after.count()).unwrap_or(usize::MAX), "cluster");
            let hint = self.hint();
            format!("it was written to while all its filesystems were frozen: {clusters}{hint}")
        })
    }

    /// What may have written to a disk all the same.
    fn hint(&self) -> String {
        match &self.unplaced[..] {
            [] => String::new(),
            all => format!(
                " (perhaps by the kernel to {}: where this swap lies on the disk is not known)",
                all.join(", ")
            ),
        }
    }
}

/// An area of swap.
#[derive(Debug)]
struct Swap {
    /// The device on which it lies; absent if nobody says where on a device.
    number: Option<DeviceNumber>,
    /// Where on that; everywhere if absent.
    bytes: Option<Vec<Range<u64>>>,
}

impl Swap {
    /// A device, or a file: the kernel writes to the places of that on its device, past its filesystem. They do not change while it is
    /// swapped to.
    fn at(root: &Root, path: &Path) -> Self {
        if let Ok(Some(device)) = BlockDevice::at(root, path) {
            return Self {
                number: Some(device.number()),
                bytes: None,
            };
        }
        let places = hostdev::file_places(path).ok().flatten();
        let (number, bytes) = places.map(|places| (places.device, places.bytes)).unzip();
        Self { number, bytes }
    }

    /// Its bytes in a part of a disk.
    fn within(&self, (number, part): &(DeviceNumber, Range<u64>)) -> Vec<Range<u64>> {
        if self.number != Some(*number) {
            return Vec::new();
        }
        let Some(bytes) = &self.bytes else {
            return vec![part.clone()];
        };
        let on_disk = |at: u64| part.start.saturating_add(at).min(part.end);
        bytes
            .iter()
            .map(|bytes| on_disk(bytes.start)..on_disk(bytes.end))
            .collect()
    }
}

/// The same bytes in ascending order, where those that touch are one.
fn joined(mut all: Vec<Range<u64>>) -> Vec<Range<u64>> {
    all.sort_unstable_by_key(|bytes| bytes.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for bytes in all {
        match joined.last_mut().filter(|last| bytes.start <= last.end) {
            Some(last) => last.end = last.end.max(bytes.end),
            None => joined.push(bytes),
        }
    }
    joined
}

/// The disk itself and its partitions: the bytes of each on the disk.
fn parts(root: &Root, disk: &SourceDisk) -> Vec<(DeviceNumber, Range<u64>)> {
    let Some(number) = disk.device.device_number() else {
        return Vec::new();
    };
    let whole = (number, 0..disk.device.size_bytes());
    let known = || -> hostdev::Result<Vec<(DeviceNumber, Range<u64>)>> {
        let Some(device) = BlockDevice::find(root, number)?.filter(|device| !device.is_partition()) else {
            return Ok(Vec::new());
        };
        let part = |part: BlockDevice| {
            let start = part.start_bytes()?;
            Ok((part.number(), start..start + part.size_bytes()?))
        };
        device.partitions()?.into_iter().map(part).collect()
    };
    // What is not known is neither swap nor has a place.
    std::iter::once(whole)
        .chain(known().unwrap_or_default())
        .collect()
}

/// The clusters that lie within some bytes.
fn within(geometry: Geometry, bytes: &Range<u64>) -> Range<u64> {
    let size = u64::from(geometry.cluster_size().bytes());
    let end = match bytes.end >= geometry.size_bytes() {
        true => geometry.cluster_count(),
        false => bytes.end / size,
    };
    bytes.start.div_ceil(size)..end
}

/// The clusters that have some of the bytes.
fn touching(geometry: Geometry, bytes: &Range<u64>) -> Range<u64> {
    let size = u64::from(geometry.cluster_size().bytes());
    bytes.start / size..bytes.end.div_ceil(size).min(geometry.cluster_count())
}

fn set(
    geometry: Geometry,
    all: &[Range<u64>],
    clusters: impl Fn(Geometry, &Range<u64>) -> Range<u64>,
) -> Bitmap {
    let mut set = Bitmap::empty(geometry.cluster_count());
    let all = all.iter().flat_map(|bytes| clusters(geometry, bytes));
    all.for_each(|cluster| set.insert(cluster));
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use imagefmt::ClusterSize;

    #[test]
    fn swap_is_what_lies_within_it_and_a_filesystem_what_it_touches() {
        let geometry = Geometry::new(10 * 65536 + 512, ClusterSize::K64).unwrap();
        let bytes = 2 * 65536 + 512..5 * 65536 + 512;
        assert_eq!(within(geometry, &bytes), 3..5);
        assert_eq!(touching(geometry, &bytes), 2..6);
        let to_the_end = 9 * 65536..10 * 65536 + 512;
        assert_eq!(within(geometry, &to_the_end), 9..11);
        assert_eq!(touching(geometry, &to_the_end), 9..11);
        assert!(within(geometry, &(10..20)).is_empty());
    }

    #[test]
    fn the_extents_of_a_swap_file_lie_behind_the_start_of_its_partition_and_end_with_it() {
        let number = DeviceNumber::new(8, 1);
        let swap = Swap {
            number: Some(number),
            bytes: Some(vec![100..200, 300..u64::MAX, 200..300]),
        };
        let part = (number, 1000..2000);
        let found = swap.within(&part);
        assert_eq!(found, [1100..1200, 1300..2000, 1200..1300]);
        assert_eq!(joined(found), std::slice::from_ref(&(1100..2000)));
        assert!(swap.within(&(DeviceNumber::new(8, 2), 1000..2000)).is_empty());
        assert_eq!(joined(vec![5..6, 0..3, 1..2, 7..7]), [0..3, 5..6, 7..7]);
    }
}
