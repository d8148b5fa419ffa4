//! What on the disks is written to although filesystems are frozen: swap, which may be, and filesystems that cannot be frozen, which
//! may not.

use super::disks::SourceDisk;
use super::held::HeldDisk;
use freeze::{Kind, OnDisks};
use hostdev::{BlockDevice, DeviceNumber, Root};
use imagefmt::{DiskId, Geometry};
use std::ops::Range;
use tracker::Bitmap;

/// Places on each disk of the job.
#[derive(Debug)]
pub(super) struct Unfrozen {
    disks: Vec<Places>,
}

#[derive(Debug)]
struct Places {
    /// Clusters that are nothing but swap: what is in them does not matter after a boot.
    swap: Bitmap,
    /// Clusters of filesystems that cannot be frozen.
    not_freezable: Bitmap,
}

impl Unfrozen {
    /// Where they are, as far as partitions tell. A place that they do not tell is not taken for swap, and is taken for a filesystem
    /// that cannot be frozen if there is one.
    pub fn of(found: &OnDisks, disks: &[SourceDisk], ids: &[DiskId]) -> Self {
        let root = Root::system();
        let swaps: Vec<DeviceNumber> = found
            .swaps
            .iter()
            .filter_map(|path| BlockDevice::at(&root, path).ok().flatten())
            .map(|device| device.number())
            .collect();
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
            let of = |numbers: &[DeviceNumber]| -> Vec<Range<u64>> {
                let parts = parts.iter().filter(|(number, _)| numbers.contains(number));
                parts.map(|(_, bytes)| bytes.clone()).collect()
            };
            let touched = match somewhere {
                true => std::iter::once(0..geometry.size_bytes()).collect(),
                false => of(&not_freezable),
            };
            Places {
                swap: set(geometry, &of(&swaps), within),
                not_freezable: set(geometry, &touched, touching),
            }
        };
        Self {
            disks: all.iter().zip(ids).map(places).collect(),
        }
    }

    /// What speaks against a disk having stood still from the freeze to the thaw, as a clause.
    pub fn doubt(&self, place: usize, held: &HeldDisk) -> Option<String> {
        let places = &self.disks[place];
        let mut after = held.after.clone();
        after.remove(&places.swap);
        if !after.is_empty() {
            let count = after.count();
            return Some(format!(
                "it was written to while all its filesystems were frozen: {count} clusters"
            ));
        }
        let is_written = held
            .in_window
            .ranges(0)
            .flatten()
            .any(|cluster| places.not_freezable.contains(cluster));
        is_written.then(|| "a filesystem that cannot be frozen was written to".to_owned())
    }
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
}
