//! Whether a store lies on the disk to be imaged.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blockio::{Device, disks_below, lies_on};
use common::{LoopDevice, Mount, scratch, sparse_file};

/// xfs and btrfs need some room.
const DISK_BYTES: u64 = 320 << 20;

fn on(store: &Path, disk: &Path) -> bool {
    lies_on(store, &Device::open(disk).unwrap()).unwrap()
}

fn number_of_filesystem(path: &Path) -> (u32, u32) {
    let dev = fs::metadata(path).unwrap().dev();
    (libc::major(dev), libc::minor(dev))
}

#[test]
fn a_store_lies_on_its_device_and_on_the_file_behind_it_only() {
    let scratch = scratch();
    let (image, other) = (scratch.path().join("image"), scratch.path().join("other"));
    let disk = LoopDevice::attach(&sparse_file(&image, DISK_BYTES), 512);
    let sibling = LoopDevice::attach(&sparse_file(&other, DISK_BYTES), 512);
    let mount = Mount::format("ext4", &disk.path);
    assert!(on(mount.path(), &disk.path));
    assert!(on(&mount.path().join("not/made/yet"), &disk.path));
    assert!(on(mount.path(), &image));
    assert!(
        !on(mount.path(), &sibling.path),
        "another disk on the same filesystem"
    );
    assert!(!on(mount.path(), &other));
    assert!(
        !on(scratch.path(), &disk.path),
        "the store holds the disk, not the other way round"
    );
    let mut expected = vec![disk.number(), number_of_filesystem(scratch.path())];
    expected.sort_unstable();
    assert_eq!(disks_below(mount.path()).unwrap(), expected);
}

#[test]
fn nested_loop_devices_are_followed_down() {
    let scratch = scratch();
    let outer = LoopDevice::attach(&sparse_file(&scratch.path().join("outer"), DISK_BYTES), 512);
    let outer_mount = Mount::format("ext4", &outer.path);
    let inner_image = sparse_file(&outer_mount.path().join("inner"), DISK_BYTES / 4);
    let inner = LoopDevice::attach(&inner_image, 512);
    let mount = Mount::format("ext4", &inner.path);
    for disk in [
        &inner.path,
        &outer.path,
        &inner_image,
        &scratch.path().join("outer"),
    ] {
        assert!(on(mount.path(), disk), "{}", disk.display());
    }
    assert!(!on(outer_mount.path(), &inner.path));
    let depends = Device::open(&inner.path).unwrap().depends().unwrap();
    let devices = [
        inner.number(),
        outer.number(),
        number_of_filesystem(scratch.path()),
    ];
    assert_eq!(depends.devices, devices.into_iter().collect());
    assert_eq!(
        depends.files,
        [inner_image, scratch.path().join("outer")].into_iter().collect()
    );
}

#[test]
fn another_loop_device_on_the_same_content_is_the_same_disk() {
    let scratch = scratch();
    let image = sparse_file(&scratch.path().join("image"), DISK_BYTES);
    let (disk, twin) = (LoopDevice::attach(&image, 512), LoopDevice::attach(&image, 512));
    let upper = LoopDevice::attach(&disk.path, 512);
    let mount = Mount::format("ext4", &disk.path);
    assert!(on(mount.path(), &twin.path), "a second device on the same file");
    assert!(on(mount.path(), &upper.path), "a device on the device");
    drop(mount);
    let mount = Mount::new(&["-t", "ext4", upper.path.to_str().unwrap()]);
    assert!(on(mount.path(), &disk.path));
    assert!(on(mount.path(), &image));
}

#[test]
fn a_backing_file_without_a_name_is_still_known() {
    let scratch = scratch();
    let image = sparse_file(&scratch.path().join("image"), DISK_BYTES);
    let disk = LoopDevice::attach(&image, 512);
    let open_image = Device::open(&image).unwrap();
    let mount = Mount::format("ext4", &disk.path);
    fs::remove_file(&image).unwrap();
    sparse_file(&image, DISK_BYTES);
    assert!(lies_on(mount.path(), &open_image).unwrap());
    assert!(!on(mount.path(), &image), "a new file under the old name");
    assert!(
        disks_below(mount.path())
            .unwrap()
            .contains(&number_of_filesystem(scratch.path()))
    );
}

#[test]
fn filesystems_with_anonymous_device_numbers_are_seen_through() {
    let scratch = scratch();
    let image = sparse_file(&scratch.path().join("image"), DISK_BYTES);
    let other = sparse_file(&scratch.path().join("other"), DISK_BYTES);
    let (disk, sibling) = (LoopDevice::attach(&image, 512), LoopDevice::attach(&other, 512));
    let btrfs = Mount::format("btrfs", &disk.path);
    assert!(on(btrfs.path(), &disk.path));
    assert!(on(btrfs.path(), &image));
    assert!(!on(btrfs.path(), &sibling.path));
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| btrfs.path().join(name));
    for directory in [&lower, &upper, &work] {
        fs::create_dir(directory).unwrap();
    }
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let overlay = Mount::new(&["-t", "overlay", "-o", &layers, "overlay"]);
    assert!(on(overlay.path(), &disk.path));
    assert!(!on(overlay.path(), &sibling.path));
}

#[test]
fn memory_lies_on_no_disk() {
    let scratch = scratch();
    let disk = LoopDevice::attach(&sparse_file(&scratch.path().join("image"), 1 << 20), 512);
    let mount = Mount::new(&["-t", "tmpfs", "none"]);
    assert_eq!(disks_below(mount.path()).unwrap(), []);
    assert!(!on(mount.path(), &disk.path));
}
