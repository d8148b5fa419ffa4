//! On real loop devices, filesystems and partitions.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use hostdev::{
    BlockDevice, DeviceNumber, ErrorKind, FileId, Inventory, LoopDevice, LoopOptions, Namespaces, Node, Root,
    User, below, detach_loop, disks_below, file_places, first_user, lies_on, loop_status,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use testkit::guard::{Mount, ScratchDir, SilentMount};
use testkit::noise;
use testkit::process::run;

/// xfs and btrfs need some room.
const DISK_BYTES: u64 = 320 << 20;

fn scratch() -> ScratchDir {
    ScratchDir::new("hostdev").unwrap()
}

fn attach_with(backing: &Path, options: &LoopOptions) -> LoopDevice {
    let file = OpenOptions::new().read(true).write(true).open(backing).unwrap();
    LoopDevice::attach(file.as_fd(), options).unwrap()
}

fn attach(backing: &Path) -> LoopDevice {
    attach_with(backing, &LoopOptions::default())
}

/// A filesystem on a device, mounted on a new directory.
fn format(kind: &str, device: &Path, point: &Path) -> Mount {
    let force = if kind == "ext4" { "-F" } else { "-f" };
    run(Command::new(format!("mkfs.{kind}"))
        .args(["-q", force])
        .arg(device))
    .unwrap();
    Mount::new(device, point, kind, MsFlags::empty()).unwrap()
}

fn node(path: &Path) -> Node {
    Node::at(&Root::system(), path).unwrap()
}

fn number(path: &Path) -> DeviceNumber {
    match node(path) {
        Node::Device(number) => number,
        Node::File(..) => panic!("{} is a file", path.display()),
    }
}

fn device(path: &Path) -> BlockDevice {
    BlockDevice::at(&Root::system(), path).unwrap().unwrap()
}

fn on(store: &Path, disk: &Path) -> bool {
    lies_on(&Root::system(), store, &node(disk)).unwrap()
}

fn number_of_filesystem(path: &Path) -> DeviceNumber {
    DeviceNumber::of_dev(fs::metadata(path).unwrap().dev())
}

fn below_disks(path: &Path) -> Vec<DeviceNumber> {
    disks_below(&Root::system(), path).unwrap()
}

#[test]
fn a_store_lies_on_its_device_and_on_the_file_behind_it_only() {
    let scratch = scratch();
    let image = scratch.sparse_file("image", DISK_BYTES).unwrap();
    let other = scratch.sparse_file("other", DISK_BYTES).unwrap();
    let (disk, sibling) = (attach(&image), attach(&other));
    let mount = format("ext4", disk.path(), &scratch.join("mnt"));
    assert!(on(mount.path(), disk.path()));
    assert!(on(&mount.path().join("not/made/yet"), disk.path()));
    assert!(on(mount.path(), &image));
    assert!(
        !on(mount.path(), sibling.path()),
        "another disk on the same filesystem"
    );
    assert!(!on(mount.path(), &other));
    assert!(
        !on(scratch.path(), disk.path()),
        "the store holds the disk, not the other way round"
    );
    let mut expected = vec![number(disk.path()), number_of_filesystem(scratch.path())];
    expected.sort_unstable();
    assert_eq!(below_disks(mount.path()), expected);
}

#[test]
fn nested_loop_devices_are_followed_down() {
    let scratch = scratch();
    let outer_image = scratch.sparse_file("outer", DISK_BYTES).unwrap();
    let outer = attach(&outer_image);
    let outer_mount = format("ext4", outer.path(), &scratch.join("outer-mnt"));
    let inner_image = outer_mount.path().join("inner");
    File::create(&inner_image)
        .unwrap()
        .set_len(DISK_BYTES / 4)
        .unwrap();
    let inner = attach(&inner_image);
    let inner_mount = format("ext4", inner.path(), &scratch.join("inner-mnt"));
    for disk in [inner.path(), outer.path(), &inner_image, &outer_image] {
        assert!(on(inner_mount.path(), disk), "{}", disk.display());
    }
    assert!(!on(outer_mount.path(), inner.path()));
    let found = below(&Root::system(), &node(inner.path())).unwrap();
    let devices = [
        number(inner.path()),
        number(outer.path()),
        number_of_filesystem(scratch.path()),
    ];
    assert_eq!(found.devices, devices.into_iter().collect());
    assert_eq!(found.files, [inner_image, outer_image].into_iter().collect());
    assert!(found.unplaced.is_empty());

    let inventory = Inventory::read(&Root::system(), Namespaces::Machine).unwrap();
    let name = |device: &LoopDevice| device.path().file_name().unwrap().to_str().unwrap().to_owned();
    let below = inventory.on_disk(&device(&outer_device_below(&scratch)).whole_disk().unwrap().name());
    let points: Vec<&Path> = below
        .filesystems
        .iter()
        .flat_map(|filesystem| filesystem.mounts.iter().map(|mount| mount.point.as_path()))
        .filter(|point| point.starts_with(scratch.path()))
        .collect();
    assert_eq!(
        points.len(),
        2,
        "both filesystems lie on the disk at the bottom: {points:?}"
    );
    let holders: Vec<&str> = below.holders.iter().map(|block| block.name.as_str()).collect();
    assert!(
        holders.contains(&name(&inner).as_str()) && holders.contains(&name(&outer).as_str()),
        "{holders:?}"
    );
}

/// The node of the device that the scratch directory's filesystem lies on.
fn outer_device_below(scratch: &ScratchDir) -> PathBuf {
    let number = number_of_filesystem(scratch.path());
    BlockDevice::find(&Root::system(), number)
        .unwrap()
        .unwrap()
        .node()
}

#[test]
fn another_loop_device_on_the_same_content_is_the_same_disk() {
    let scratch = scratch();
    let image = scratch.sparse_file("image", DISK_BYTES).unwrap();
    let (disk, twin) = (attach(&image), attach(&image));
    let upper = attach(disk.path());
    let mount = format("ext4", disk.path(), &scratch.join("mnt"));
    assert!(on(mount.path(), twin.path()), "a second device on the same file");
    assert!(on(mount.path(), upper.path()), "a device on the device");
    mount.unmount().unwrap();
    let mount = Mount::new(upper.path(), &scratch.join("mnt"), "ext4", MsFlags::empty()).unwrap();
    assert!(on(mount.path(), disk.path()));
    assert!(on(mount.path(), &image));
}

#[test]
fn a_backing_file_without_a_name_is_still_known() {
    let scratch = scratch();
    let image = scratch.sparse_file("image", DISK_BYTES).unwrap();
    let disk = attach(&image);
    let before = node(&image);
    // Keeps the inode, so that the new file gets another one.
    let _held = File::open(&image).unwrap();
    let mount = format("ext4", disk.path(), &scratch.join("mnt"));
    fs::remove_file(&image).unwrap();
    scratch.sparse_file("image", DISK_BYTES).unwrap();
    assert!(lies_on(&Root::system(), mount.path(), &before).unwrap());
    assert!(!on(mount.path(), &image), "a new file under the old name");
    assert!(below_disks(mount.path()).contains(&number_of_filesystem(scratch.path())));
}

/// Unmounts an overlay that the test mounted.
struct Overlay(PathBuf);

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn filesystems_with_anonymous_device_numbers_are_seen_through() {
    let scratch = scratch();
    let image = scratch.sparse_file("image", DISK_BYTES).unwrap();
    let other = scratch.sparse_file("other", DISK_BYTES).unwrap();
    let (disk, sibling) = (attach(&image), attach(&other));
    let btrfs = format("btrfs", disk.path(), &scratch.join("mnt"));
    assert!(on(btrfs.path(), disk.path()));
    assert!(on(btrfs.path(), &image));
    assert!(!on(btrfs.path(), sibling.path()));
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
    let point = scratch.join("overlay");
    fs::create_dir(&point).unwrap();
    mount(
        Some("overlay"),
        &point,
        Some("overlay"),
        MsFlags::empty(),
        Some(layers.as_str()),
    )
    .unwrap();
    let overlay = Overlay(point);
    assert!(on(&overlay.0, disk.path()));
    assert!(!on(&overlay.0, sibling.path()));
}

#[test]
fn memory_lies_on_no_disk() {
    let scratch = scratch();
    let disk = attach(&scratch.sparse_file("image", 1 << 20).unwrap());
    let mount = Mount::new(Path::new("none"), &scratch.join("mnt"), "tmpfs", MsFlags::empty()).unwrap();
    assert_eq!(below_disks(mount.path()), []);
    assert!(!on(mount.path(), disk.path()));
}

/// A partition from 1 MiB on, as `addpart` adds it whether or not the kernel reads partition tables.
fn with_partition(scratch: &ScratchDir) -> (LoopDevice, PathBuf) {
    let image = scratch.sparse_file("disk", DISK_BYTES).unwrap();
    let options = LoopOptions {
        partitions: true,
        ..LoopOptions::default()
    };
    let disk = attach_with(&image, &options);
    let sectors = (DISK_BYTES / 512 - 2048).to_string();
    run(Command::new("addpart")
        .arg(disk.path())
        .args(["1", "2048", &sectors]))
    .unwrap();
    let partition = PathBuf::from(format!("{}p1", disk.path().display()));
    (disk, partition)
}

#[test]
fn a_partition_lies_on_its_disk_and_has_its_number_and_size() {
    let scratch = scratch();
    let (disk, partition) = with_partition(&scratch);
    let found = device(&partition);
    assert!(found.is_partition());
    assert_eq!(found.partition_number().unwrap(), Some(1));
    assert_eq!(found.size_bytes().unwrap(), DISK_BYTES - (1 << 20));
    assert_eq!(found.whole_disk().unwrap(), device(disk.path()));
    assert_eq!(
        device(disk.path()).partitions().unwrap(),
        std::slice::from_ref(&found)
    );
    assert_eq!(device(disk.path()).partition_number().unwrap(), None);
    let identity = found.identity();
    assert_eq!(identity.partition, Some(1));
    assert_eq!(identity.backing_file.as_deref(), scratch.join("disk").to_str());
    assert_eq!(identity.diskseq, device(disk.path()).identity().diskseq);
    assert!(
        identity.diskseq.is_some() && identity.unread.is_empty(),
        "{identity:?}"
    );

    let mount = format("ext4", &partition, &scratch.join("mnt"));
    assert!(on(mount.path(), &partition) && on(mount.path(), disk.path()));
    assert_eq!(
        node(&partition).whole(&Root::system()).unwrap(),
        Node::Device(number(disk.path()))
    );
    let user = first_user(&Root::system(), &node(disk.path())).unwrap();
    assert_eq!(
        user,
        Some(User::Mount(mount.path().to_owned())),
        "of its partition"
    );
}

#[test]
fn who_uses_a_device_or_file_is_found() {
    let scratch = scratch();
    let image = scratch.sparse_file("image", DISK_BYTES).unwrap();
    let user = |path: &Path| first_user(&Root::system(), &node(path)).unwrap();
    assert_eq!(user(&image), None);
    let disk = attach(&image);
    assert_eq!(user(&image), Some(User::Loop(disk.path().to_owned())));
    assert_eq!(user(disk.path()), None);
    let upper = attach(disk.path());
    assert_eq!(user(disk.path()), Some(User::Loop(upper.path().to_owned())));
    drop(upper);
    let mount = format("btrfs", disk.path(), &scratch.join("mnt"));
    assert_eq!(user(disk.path()), Some(User::Mount(mount.path().to_owned())));
}

#[test]
fn a_loop_device_is_attached_as_asked_and_detached_with_its_last_user() {
    let scratch = scratch();
    let image = scratch.sparse_file("image", 1 << 20).unwrap();
    fs::write(&image, [7u8; 8192]).unwrap();
    let options = LoopOptions {
        offset_bytes: 4096,
        length_bytes: 2048,
        block_bytes: 512,
        read_only: true,
        ..LoopOptions::default()
    };
    let disk = attach_with(&image, &options);
    let status = disk.status().unwrap();
    assert_eq!(
        (status.offset_bytes, status.length_bytes, status.read_only),
        (4096, 2048, true)
    );
    assert_eq!(status.file, FileId::of(&fs::metadata(&image).unwrap()));
    assert_eq!(status.device, None);
    let path = disk.path().to_owned();
    assert_eq!(device(&path).size_bytes().unwrap(), 2048);
    assert_eq!(device(&path).backing_path().unwrap(), Some(image.clone()));
    let refused = OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write(&[0; 512]));
    refused.unwrap_err();

    // A second user keeps it; the last one takes it along.
    let mut second = File::open(&path).unwrap();
    drop(disk);
    let mut byte = [0];
    second.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [7]);
    assert!(
        loop_status(&path)
            .unwrap()
            .is_some_and(|now| now.file == status.file)
    );
    detach_loop(&path).unwrap();
    drop(second);
    let is_ours = || {
        loop_status(&path)
            .unwrap()
            .is_some_and(|now| now.file == status.file)
    };
    testkit::process::wait_for("the device to be free", || !is_ours());
}

#[test]
fn a_writable_loop_device_writes_to_its_file() {
    let scratch = scratch();
    let image = scratch.sparse_file("image", 1 << 20).unwrap();
    let disk = attach(&image);
    assert!(!disk.status().unwrap().read_only);
    let mut device = OpenOptions::new().write(true).open(disk.path()).unwrap();
    device.write_all(&[9; 512]).unwrap();
    device.sync_all().unwrap();
    assert_eq!(fs::read(&image).unwrap()[..512], [9; 512]);
}

#[test]
fn a_loop_device_that_cannot_be_made_is_an_error() {
    let scratch = scratch();
    let image = File::open(scratch.sparse_file("image", 1 << 20).unwrap()).unwrap();
    let options = LoopOptions {
        block_bytes: 100,
        ..LoopOptions::default()
    };
    let error = LoopDevice::attach(image.as_fd(), &options).unwrap_err();
    assert_eq!(
        (error.kind(), error.raw_os_error()),
        (ErrorKind::Io, Some(libc::EINVAL))
    );
    assert_eq!(
        loop_status(Path::new("/dev/null")).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    assert_eq!(
        detach_loop(Path::new("/no/such/loop")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn counters_grow_with_what_is_written_and_read() {
    let scratch = scratch();
    let disk = attach(&scratch.sparse_file("image", 8 << 20).unwrap());
    let found = device(disk.path());
    assert_eq!(found.is_counting().unwrap(), Some(true));
    let before = found.counters().unwrap();
    let mut file = OpenOptions::new().write(true).open(disk.path()).unwrap();
    file.write_all(&vec![1; 1 << 20]).unwrap();
    file.sync_all().unwrap();
    let after = found.counters().unwrap();
    assert_eq!(after.written_sectors - before.written_sectors, (1 << 20) / 512);
    assert!(after.writes > before.writes && after.discards.is_some());
    assert_eq!(after.writes_in_flight, 0);
}

/// What mkfs writes is recognized by the id that it was given.
#[test]
fn filesystems_are_recognized_by_their_ids() {
    const ID: &str = "6f1bcd6e-1f0c-4b26-9d1c-5c2b7a0f9e11";
    let dir = ScratchDir::new("hostdev-content").unwrap();
    let made = |program: &str, args: &[&str]| {
        let path = dir.sparse_file(program, 512 << 20).unwrap();
        let output = Command::new(program).args(args).arg(&path).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
        let mut head = vec![0; hostdev::HEAD_BYTES];
        File::open(&path).unwrap().read_exact(&mut head).unwrap();
        assert_eq!(hostdev::table_id(&head, 512), None, "{program}");
        hostdev::filesystem_id(&head)
    };
    let xfs = format!("uuid={ID}");
    for (program, args, kind) in [
        ("mkfs.ext4", &["-q", "-U", ID][..], "ext"),
        ("mkfs.xfs", &["-q", "-m", &xfs][..], "xfs"),
        ("mkswap", &["-U", ID][..], "swap"),
    ] {
        assert_eq!(made(program, args), Some(format!("{kind}:{ID}")));
    }
    // The device's own id, which it makes up.
    let btrfs = made("mkfs.btrfs", &["-q", "-U", ID]).unwrap();
    assert!(btrfs.starts_with("btrfs:") && !btrfs.contains(ID), "{btrfs}");
}

#[test]
fn a_file_of_ext4_or_xfs_lies_where_it_is_said_to_lie_and_of_btrfs_nobody_says() {
    let scratch = scratch();
    for kind in ["ext4", "xfs", "btrfs"] {
        let backing = scratch.sparse_file(kind, DISK_BYTES).unwrap();
        let disk = attach(&backing);
        let mount = format(kind, disk.path(), &scratch.join(format!("on-{kind}")));
        let (path, content) = (mount.path().join("file"), noise(3 << 20, 1));
        // Written in pieces with another file between them, so that it lies in several places.
        let pieces = content.chunks(1 << 20);
        for (number, piece) in pieces.enumerate() {
            let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
            file.write_all(piece).unwrap();
            file.sync_all().unwrap();
            let between = File::create(mount.path().join(number.to_string())).unwrap();
            (&between).write_all(piece).unwrap();
            between.sync_all().unwrap();
        }
        let found = file_places(&path).unwrap();
        let Some(places) = found else {
            assert_eq!(kind, "btrfs");
            continue;
        };
        assert_ne!(kind, "btrfs", "{places:?}");
        assert_eq!(places.device, number(disk.path()));
        let device = File::open(disk.path()).unwrap();
        let mut there = Vec::new();
        for bytes in places.bytes {
            let mut piece = vec![0; usize::try_from(bytes.end - bytes.start).unwrap()];
            device.read_exact_at(&mut piece, bytes.start).unwrap();
            there.extend(piece);
        }
        assert_eq!(there, content, "{kind}");
    }
    assert_eq!(
        file_places(Path::new("/dev/null")).unwrap(),
        None,
        "no regular file"
    );
    assert_eq!(
        file_places(Path::new("/nonexistent")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn what_lies_below_a_loop_device_is_found_without_its_path() {
    let scratch = scratch();
    fs::create_dir(scratch.join("dir")).unwrap();
    let image = scratch.sparse_file("dir/image", 8 << 20).unwrap();
    let disk = attach(&image);
    let expected = below_disks(scratch.path());
    // From here on, whoever looks at the path waits for ever.
    let silent = SilentMount::over(&scratch.join("dir")).unwrap();
    let found = below(&Root::system(), &node(disk.path())).unwrap();
    for number in expected {
        assert!(found.devices.contains(&number), "{number}: {found:?}");
    }
    assert!(found.unplaced.is_empty(), "{found:?}");
    drop(silent);
}
