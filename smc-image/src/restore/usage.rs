//! Who uses a block device or file: everything that a restore would pull the ground from under.

use anyhow::Context;
use blockio::Device;
use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Major and minor number of a block device.
type Number = (u32, u32);

/// The first user found of a device, of one of its partitions, or of a file; `None` where nobody uses it.
///
/// Looked at are mounts, swap areas, holders in sysfs (device-mapper, md, bcache) and loop devices.
pub fn user_of(device: &Device) -> anyhow::Result<Option<String>> {
    let metadata =
        fs::metadata(device.path()).with_context(|| format!("examine {}", device.path().display()))?;
    let parts = device.device_number().map(with_partitions).unwrap_or_default();
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    if let Some(user) = parts.iter().find_map(|number| mount_of(&mountinfo, *number)) {
        return Ok(Some(user));
    }
    // Without swap in the kernel there is no such file, and no swap area.
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let used = swap_on(&swaps, &parts, &metadata)
        .or_else(|| parts.iter().find_map(|number| holder_of(*number)))
        .or_else(|| loop_device_on(&parts, &metadata));
    Ok(used)
}

/// A device and, if it is a whole disk, its partitions.
fn with_partitions(number: Number) -> BTreeSet<Number> {
    let mut numbers = BTreeSet::from([number]);
    let Ok(entries) = fs::read_dir(sysfs(number)) else {
        return numbers;
    };
    let partitions = entries
        .flatten()
        .filter(|entry| entry.path().join("partition").exists());
    numbers.extend(
        partitions.filter_map(|entry| parse_number(&fs::read_to_string(entry.path().join("dev")).ok()?)),
    );
    numbers
}

fn sysfs((major, minor): Number) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

fn parse_number(text: &str) -> Option<Number> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A mount of the device, by number (field 3 of proc_pid_mountinfo(5)) or, for filesystems that show numbers
/// of their own, by the name of their source.
fn mount_of(mountinfo: &str, number: Number) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let fields: Vec<&str> = head.split(' ').collect();
        let is_mounted = parse_number(fields.get(2)?) == Some(number)
            || tail
                .split(' ')
                .nth(1)
                .is_some_and(|source| names_device(source, number));
        is_mounted.then(|| format!("it is mounted on {}", fields.get(4).unwrap_or(&"?")))
    })
}

/// Whether a path leads to the block device of this number.
fn names_device(path: &str, number: Number) -> bool {
    path.starts_with('/') && fs::metadata(path).is_ok_and(|metadata| is_device(&metadata, number))
}

fn is_device(metadata: &Metadata, number: Number) -> bool {
    metadata.file_type().is_block_device() && number_of(metadata) == number
}

fn number_of(metadata: &Metadata) -> Number {
    (libc::major(metadata.rdev()), libc::minor(metadata.rdev()))
}

/// Whether a path leads to one of the devices, or to the very file.
fn is_target(path: &Path, parts: &BTreeSet<Number>, target: &Metadata) -> bool {
    let Ok(metadata) = fs::metadata(path) else {
        return false;
    };
    if metadata.file_type().is_block_device() {
        return parts.contains(&number_of(&metadata));
    }
    (metadata.dev(), metadata.ino()) == (target.dev(), target.ino())
}

fn swap_on(swaps: &str, parts: &BTreeSet<Number>, target: &Metadata) -> Option<String> {
    let mut areas = swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    let area = areas.find(|area| is_target(Path::new(area), parts, target))?;
    Some(format!("it is in use as swap ({area})"))
}

/// The first device that is built on this one.
fn holder_of(number: Number) -> Option<String> {
    let holder = fs::read_dir(sysfs(number).join("holders"))
        .ok()?
        .flatten()
        .next()?;
    Some(format!("it is part of {}", holder.file_name().to_string_lossy()))
}

fn loop_device_on(parts: &BTreeSet<Number>, target: &Metadata) -> Option<String> {
    let devices = fs::read_dir("/sys/block").ok()?.flatten();
    devices
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("loop"))
        .find_map(|entry| {
            let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            let used = is_target(Path::new(backing.trim_end_matches('\n')), parts, target);
            used.then(|| format!("it is behind /dev/{}", entry.file_name().to_string_lossy()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/root rw
31 22 7:3 / /mnt/a\\040b rw,relatime shared:5 - xfs /dev/loop3 rw
32 22 0:44 / /proc rw - proc proc rw
";

    #[test]
    fn mounts_are_found_by_number() {
        assert_eq!(mount_of(MOUNTS, (7, 3)).unwrap(), "it is mounted on /mnt/a\\040b");
        assert_eq!(mount_of(MOUNTS, (7, 4)), None);
        assert_eq!(mount_of("broken line\n", (7, 3)), None);
    }

    #[test]
    fn swap_files_are_found_by_inode() {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        let swaps = format!(
            "Filename Type Size Used Priority\n{} file 1 0 -2\n",
            file.path().display()
        );
        let other = fs::metadata("/proc/self/exe").unwrap();
        let metadata = fs::metadata(file.path()).unwrap();
        assert!(
            swap_on(&swaps, &BTreeSet::new(), &metadata)
                .unwrap()
                .contains("swap")
        );
        assert_eq!(swap_on(&swaps, &BTreeSet::new(), &other), None);
    }
}
