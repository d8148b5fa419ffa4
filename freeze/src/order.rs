//! In which order filesystems are frozen.

use hostdev::DeviceNumber;
use std::collections::BTreeSet;

/// Where a filesystem lies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The block devices that it lies on directly.
    pub devices: BTreeSet<DeviceNumber>,
    /// These, and everything below them, down to the whole disks.
    pub below: BTreeSet<DeviceNumber>,
}

impl Place {
    /// Whether it is stored in a file of the other one.
    fn is_above(&self, other: &Place) -> bool {
        !self.below.is_disjoint(&other.devices) && self.devices.is_disjoint(&other.devices)
    }
}

/// The order in which filesystems are frozen, as places in `places`, which are in the order in which they were mounted: the newest
/// first, but none before one that is stored in its files. That one could not write any more what freezing it writes.
pub fn freeze_order(places: &[&Place]) -> Vec<usize> {
    let mut left: Vec<usize> = (0..places.len()).collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        let is_top = |&&one: &&usize| !left.iter().any(|&other| places[other].is_above(places[one]));
        // In a circle, which the kernel does not make, nobody is at the top.
        let newest = left.iter().rfind(is_top).or(left.last()).copied();
        order.extend(newest);
        left.retain(|one| Some(*one) != newest);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(devices: &[u32], below: &[u32]) -> Place {
        let numbers = |minors: &[u32]| -> BTreeSet<DeviceNumber> {
            minors.iter().map(|&minor| DeviceNumber::new(8, minor)).collect()
        };
        let devices = numbers(devices);
        Place {
            below: &devices | &numbers(below),
            devices,
        }
    }

    fn order(places: &[Place]) -> Vec<usize> {
        freeze_order(&places.iter().collect::<Vec<_>>())
    }

    #[test]
    fn the_newest_comes_first() {
        let places = [place(&[1], &[0]), place(&[2], &[0]), place(&[17], &[16])];
        assert_eq!(order(&places), [2, 1, 0]);
        assert!(order(&[]).is_empty());
    }

    #[test]
    fn a_filesystem_in_a_file_comes_before_the_one_that_has_the_file() {
        // The outer one was mounted again later, so it is newer than the inner ones; the last lies in the middle one.
        let inner = place(&[70], &[1, 0]);
        let outer = place(&[1], &[0]);
        let innermost = place(&[71], &[70, 1, 0]);
        assert_eq!(order(&[inner.clone(), outer.clone()]), [0, 1]);
        assert_eq!(order(&[innermost, inner, outer]), [0, 1, 2]);
    }

    #[test]
    fn partitions_of_one_disk_do_not_lie_on_each_other_and_a_circle_ends() {
        let (a, b) = (place(&[1], &[0]), place(&[2], &[0]));
        assert!(!a.is_above(&b) && !b.is_above(&a));
        let circle = [place(&[1], &[2]), place(&[2], &[1])];
        assert_eq!(order(&circle).len(), 2);
    }
}
