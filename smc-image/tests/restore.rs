//! restore, on files and on loop devices of this test's own.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod common;

use common::{Fixture, MIB, disk_content, noise};
use hostdev::LoopOptions;
use nix::mount::MsFlags;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::path::Path;
use std::process::Command;
use testkit::guard::{LoopDevice, Mount};
use testkit::process::wait_for;
use testkit::program::{Running, run, tool};

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A fixture with `web01/1:vda` of this content.
fn image_of(content: &[u8]) -> Fixture {
    let fixture = Fixture::new();
    fixture.sync("web01", &[("vda", content)]);
    fixture
}

#[test]
fn device_holds_the_image_and_keeps_what_lies_behind_it() {
    let content = disk_content(9 * MIB + 512, 1);
    let fixture = image_of(&content);
    let file = fixture.file("target.raw", &vec![0xaa; 12 * MIB]);
    let device = LoopDevice::attach(&file).unwrap();
    let said = fixture
        .run(&["restore", "--yes", "web01/1", path(device.path())])
        .ok();
    assert!(
        said.contains("verified") && said.contains("left as they were"),
        "{said}"
    );
    device.detach().unwrap();
    let found = std::fs::read(&file).unwrap();
    assert!(
        found[..content.len()] == content,
        "the device does not hold the image"
    );
    assert!(
        found[content.len()..].iter().all(|&byte| byte == 0xaa),
        "what lies behind the image was touched"
    );
}

#[test]
fn file_of_any_size_can_be_a_target() {
    for size in [1, 511, 4096, 65536 + 1, 3 * MIB + 4097] {
        let content = disk_content(size.max(6), 2);
        let fixture = image_of(&content);
        let file = fixture.file("target.raw", &vec![0xaa; content.len()]);
        let objects = fixture
            .run(&["restore", "--json", "-y", "web01/latest:vda", path(&file)])
            .objects();
        assert_eq!(
            (&objects[0]["verified"], &objects[0]["left_alone_bytes"]),
            (&true.into(), &0.into())
        );
        assert!(std::fs::read(&file).unwrap() == content, "{size}");
    }
}

#[test]
fn zeros_are_written_over_what_was_there() {
    let content = vec![0; 70 * MIB];
    let fixture = image_of(&content);
    let file = fixture.join("target.raw");
    std::fs::write(&file, vec![0x55; 70 * MIB]).unwrap();
    let device = LoopDevice::attach(&file).unwrap();
    let objects = fixture
        .run(&["restore", "--json", "-y", "web01/1", path(device.path())])
        .objects();
    assert_eq!(
        (&objects[0]["zero_bytes"], &objects[0]["data_bytes"]),
        (&(70 * MIB).into(), &0.into())
    );
    device.detach().unwrap();
    assert!(std::fs::read(&file).unwrap().iter().all(|&byte| byte == 0));
}

#[test]
fn device_in_use_is_refused() {
    let content = noise(MIB, 1);
    let fixture = image_of(&content);
    let file = fixture.sparse_file("target.raw", 64 * MIB);
    run(Command::new("mkfs.ext4").arg("-q").arg(&file)).ok();
    let device = LoopDevice::attach(&file).unwrap();
    let said = fixture
        .run(&["restore", "--yes", "web01/1", path(&file)])
        .fails(1);
    assert!(
        said.contains("in use") && said.contains(path(device.path())),
        "{said}"
    );

    let mount = Mount::new(device.path(), &fixture.join("mnt"), "ext4", MsFlags::MS_RDONLY).unwrap();
    let said = fixture
        .run(&["restore", "--yes", "web01/1", path(device.path())])
        .fails(1);
    assert!(
        said.contains("mounted on") && said.contains(path(mount.path())),
        "{said}"
    );
    mount.unmount().unwrap();

    let second = LoopDevice::attach(device.path()).unwrap();
    let said = fixture
        .run(&["restore", "--yes", "web01/1", path(device.path())])
        .fails(1);
    assert!(
        said.contains("in use") && said.contains(path(second.path())),
        "{said}"
    );
    second.detach().unwrap();

    let _held = blockio::open_exclusive(device.path()).unwrap();
    let said = fixture
        .run(&["restore", "--yes", "web01/1", path(device.path())])
        .fails(1);
    assert!(said.contains("in use"), "{said}");
}

#[test]
fn target_that_is_too_small_or_nothing_to_write_to_is_refused() {
    let fixture = image_of(&noise(MIB, 1));
    let small = fixture.file("small", &vec![7; MIB - 1]);
    let said = fixture
        .run(&["restore", "--yes", "web01/1", path(&small)])
        .fails(1);
    assert!(said.contains("too small") && said.contains("1048575"), "{said}");
    assert!(std::fs::read(&small).unwrap().iter().all(|&byte| byte == 7));
    let empty = fixture.file("empty", &[]);
    assert!(
        fixture
            .run(&["restore", "--yes", "web01/1", path(&empty)])
            .fails(1)
            .contains("too small")
    );
    fixture
        .run(&["restore", "--yes", "web01/1", path(&fixture.join("missing"))])
        .fails(1);
    fixture
        .run(&["restore", "--yes", "web01/1", "/dev/null"])
        .fails(1);
    assert!(!fixture.join("missing").exists());
}

#[test]
fn store_is_never_the_target() {
    let fixture = image_of(&noise(MIB, 1));
    let layer = fixture.layer("web01", 1);
    let said = fixture
        .run(&["restore", "--yes", "web01/1", path(&layer)])
        .fails(1);
    assert!(said.contains("lies in the store"), "{said}");
    fixture.run(&["verify"]).ok();

    // A store on the target's own filesystem.
    let file = fixture.sparse_file("disk.raw", 64 * MIB);
    run(Command::new("mkfs.ext4").arg("-q").arg(&file)).ok();
    let device = LoopDevice::attach(&file).unwrap();
    let mount = Mount::new(device.path(), &fixture.join("mnt"), "ext4", MsFlags::empty()).unwrap();
    run(Command::new("cp")
        .arg("-a")
        .arg(fixture.store())
        .arg(mount.path()))
    .ok();
    let store = mount.path().join("store");
    let mut command = Command::new(common::SMC_IMAGE);
    command
        .arg("--store")
        .arg(&store)
        .args(["restore", "--yes", "web01/1"])
        .arg(device.path());
    let said = run(&mut command).fails(1);
    assert!(said.contains("holds the store"), "{said}");
    mount.unmount().unwrap();
}

#[test]
fn nothing_is_overwritten_without_a_yes() {
    let fixture = image_of(&noise(MIB, 1));
    let file = fixture.file("target", &vec![7; MIB]);
    let said = fixture.run(&["restore", "web01/1", path(&file)]).fails(1);
    assert!(said.contains("--yes"), "{said}");
    assert!(std::fs::read(&file).unwrap().iter().all(|&byte| byte == 7));
}

#[test]
fn damaged_cluster_is_named_and_the_target_called_incomplete() {
    let content = noise(4 * MIB, 1);
    let fixture = image_of(&content);
    fixture.damage(&fixture.layer("web01", 1), &content[40 * 65536..][..64]);
    let file = fixture.file("target", &vec![7; 4 * MIB]);
    let said = fixture
        .run(&["restore", "--yes", "web01/1", path(&file)])
        .fails(3);
    assert!(
        said.contains("cluster 40") && said.contains("incomplete"),
        "{said}"
    );
}

#[test]
fn damaged_map_is_found_before_anything_is_written() {
    let content = noise(4 * MIB, 1);
    let fixture = image_of(&content);
    let manifest = fixture.sync("web01", &[("vda", &content)]);
    // The only node is the last thing that the full sync wrote.
    let layer = fixture.layer("web01", 1);
    let mut bytes = std::fs::read(&layer).unwrap();
    let at = usize::try_from(manifest.layers[0].length).unwrap() - 4096;
    let at = at + bytes[at..].iter().position(|&byte| byte != 0).unwrap();
    bytes[at + 100] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    let file = fixture.file("target", &vec![7; 4 * MIB]);
    let said = fixture
        .run(&["restore", "--yes", "web01/1", path(&file)])
        .fails(3);
    assert!(said.contains("nothing was written"), "{said}");
    assert!(std::fs::read(&file).unwrap().iter().all(|&byte| byte == 7));
}

#[test]
fn interrupt_ends_it_and_says_so() {
    for signal in ["INT", "TERM", "HUP"] {
        interrupt_by(signal);
    }
}

fn has_ended(running: &mut Running) -> bool {
    running.0.try_wait().unwrap().is_some()
}

/// Whether the restore has written where a disk of noise begins. Its blocks are allocated long before.
fn has_bytes(file: &Path) -> bool {
    let mut first = [0; 4096];
    File::open(file).unwrap().read_exact(&mut first).unwrap();
    first != [0; 4096]
}

/// How often a restore may be faster than the signal.
const ATTEMPTS: usize = 20;

fn interrupt_by(signal: &str) {
    let fixture = image_of(&noise(96 * MIB, 5));
    for attempt in 0..ATTEMPTS {
        let file = fixture.sparse_file(&format!("target{attempt}.raw"), 96 * MIB);
        let mut command = fixture.command();
        let mut running = Running::start(command.args(["restore", "--yes", "web01/1"]).arg(&file));
        wait_for("the first bytes", || has_bytes(&file) || has_ended(&mut running));
        assert!(has_bytes(&file), "it ended before it wrote anything");
        let (code, said) = running.signal(signal);
        if code == Some(0) {
            continue;
        }
        assert_eq!(code, Some(130), "{said}");
        assert!(said.contains("interrupted"), "{said}");
        assert!(said.contains("do not use it"), "{said}");
        return;
    }
    panic!("it did not end at a signal {signal}, {ATTEMPTS} times");
}

/// nohup(1) has SIGHUP ignored, and whoever uses it wants the restore to go on when the connection is lost.
#[test]
fn a_lost_connection_is_ignored_under_nohup() {
    let content = noise(96 * MIB, 5);
    let fixture = image_of(&content);
    let file = fixture.sparse_file("target.raw", 96 * MIB);
    let tool = fixture.command();
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh"])
        .arg(tool.get_program());
    let mut running = Running::start(
        command
            .args(tool.get_args())
            .args(["restore", "--yes", "web01/1"])
            .arg(&file),
    );
    wait_for("the first bytes", || has_bytes(&file) || has_ended(&mut running));
    assert!(has_bytes(&file), "it ended before it wrote anything");
    let (code, said) = running.signal("HUP");
    assert_eq!(code, Some(0), "{said}");
    assert!(std::fs::read(&file).unwrap() == content);
}

/// What blkid takes a device for.
fn type_of(device: &Path) -> String {
    let found = run(Command::new("blkid")
        .args(["-p", "-o", "value", "-s", "TYPE"])
        .arg(device));
    found.stdout.trim().to_owned()
}

/// The superblock of an md array, version 1.0, at its place at the end of a disk.
fn plant_md(disk: &mut [u8]) -> usize {
    let sector = (disk.len() / 512 - 16) & !7;
    let at = sector * 512;
    let superblock = &mut disk[at..at + 256];
    superblock[..4].copy_from_slice(&0xa92b_4efcu32.to_le_bytes());
    superblock[4..8].copy_from_slice(&1u32.to_le_bytes());
    superblock[16..32].fill(7);
    superblock[144..152].copy_from_slice(&(sector as u64).to_le_bytes());
    at
}

#[test]
fn what_an_array_left_at_the_end_is_named_and_wiped() {
    let fixture = Fixture::new();
    let image = fixture.sparse_file("fs", 16 * MIB);
    tool("mkfs.ext4", &["-q", path(&image)]);
    let content = std::fs::read(&image).unwrap();
    fixture.sync("web01", &[("vda", &content)]);
    let mut old = vec![0xaa; 40 * MIB];
    let at = plant_md(&mut old);
    let file = fixture.file("target.raw", &old);
    let device = LoopDevice::attach(&file).unwrap();
    assert_eq!(type_of(device.path()), "linux_raid_member");
    let restore = |more: &[&str]| {
        let mut args = vec!["restore", "--yes", "--json", "web01/1", path(device.path())];
        args.extend(more);
        fixture.run(&args)
    };
    let ended = restore(&[]);
    assert_eq!(ended.json()["left_over"][0]["offset"], at, "{ended:?}");
    assert!(
        ended.stderr.contains("md RAID")
            && ended.stderr.contains(&at.to_string())
            && ended.stderr.contains("--wipe"),
        "{ended:?}"
    );
    // This is why it is named: the disk is not what it was restored to be.
    assert_ne!(type_of(device.path()), "ext4");
    let ended = restore(&["--wipe"]);
    assert_eq!(ended.stderr, "");
    assert_eq!(ended.json()["left_over"], serde_json::json!([]));
    assert_eq!(type_of(device.path()), "ext4");
    device.detach().unwrap();
    let found = std::fs::read(&file).unwrap();
    assert!(found[..content.len()] == content);
    // What cannot hold a signature is left alone.
    assert!(found[20 * MIB..30 * MIB].iter().all(|&byte| byte == 0xaa));
}

/// What each RAID puts into the last sectors of a disk: the sector, counted from the end, and what libblkid calls it.
fn at_the_end(size: usize) -> Vec<(usize, Vec<u8>, &'static str)> {
    let mut adaptec = vec![0; 260];
    adaptec[..4].copy_from_slice(&[0x37, 0xfc, 0x4d, 0x1e]);
    adaptec[256..].copy_from_slice(b"DPTM");
    let mut via = vec![0; 51];
    via[..6].copy_from_slice(&[0x55, 0xaa, 1, 0, 0, 9]);
    via[50] = via[..50].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    let mut silicon = vec![0u8; 512];
    silicon[0x63] = 0x2f;
    silicon[0x10c] = 1;
    let words = silicon
        .chunks(2)
        .map(|word| u16::from_le_bytes([word[0], word[1]]));
    let checksum = words.fold(0u16, u16::wrapping_add).wrapping_neg();
    silicon[0x13e..0x140].copy_from_slice(&checksum.to_le_bytes());
    let md090 = [0xa92b_4efcu32, 0, 90, 0, 0, 1, 2, 3]
        .map(u32::to_le_bytes)
        .concat();
    let of_md090 = (size - (size / 0x1_0000 * 0x1_0000 - 0x1_0000)) / 512;
    let ddf = b"\xde\x11\xde\x11\0\0\0\0GUIDGUIDGUIDGUIDGUIDGUID01.02.00";
    let nvidia = b"NVIDIA  \x1e\0\0\0\0\0\0\0\x64\0";
    vec![
        (of_md090, md090, "linux_raid_member"),
        (1, ddf.to_vec(), "ddf_raid_member"),
        (2, b"Intel Raid ISM Cfg Sig. 1.0.00".to_vec(), "isw_raid_member"),
        (1, b"$XIDE$".to_vec(), "lsi_mega_raid_member"),
        (2, nvidia.to_vec(), "nvidia_raid_member"),
        (
            63,
            b"Promise Technology, Inc.".to_vec(),
            "promise_fasttrack_raid_member",
        ),
        (
            3087,
            b"Promise Technology, Inc.".to_vec(),
            "promise_fasttrack_raid_member",
        ),
        (11, b"\xf3\x16\x78\x5a".to_vec(), "hpt45x_raid_member"),
        (1, adaptec, "adaptec_raid_member"),
        (1, b"JM\x01\x02".to_vec(), "jmicron_raid_member"),
        (1, via, "via_raid_member"),
        (1, silicon, "silicon_medley_raid_member"),
    ]
}

#[test]
fn all_that_libblkid_finds_at_the_end_of_a_disk_is_named_and_wiped() {
    const SIZE: usize = 6 * MIB;
    let fixture = Fixture::new();
    let image = fixture.sparse_file("fs", 2 * MIB);
    tool("mkfs.ext4", &["-q", path(&image)]);
    fixture.sync("web01", &[("vda", &std::fs::read(&image).unwrap())]);
    for (from_end, signature, kind) in at_the_end(SIZE) {
        let mut old = vec![0; SIZE];
        let at = SIZE - 512 * from_end;
        old[at..at + signature.len()].copy_from_slice(&signature);
        let target = fixture.file("target.raw", &old);
        assert_eq!(type_of(&target), kind);
        let restore = |more: &[&str]| {
            let mut args = vec!["restore", "--yes", "--json", "web01/1", path(&target)];
            args.extend(more);
            fixture.run(&args)
        };
        let left = restore(&[]).json()["left_over"].clone();
        assert_eq!(left[0]["offset"], at, "{kind}: {left}");
        assert_eq!(left.as_array().unwrap().len(), 1, "{kind}: {left}");
        assert_eq!(restore(&["--wipe"]).json()["left_over"], serde_json::json!([]));
        assert_eq!(type_of(&target), "ext4", "{kind}");
    }
}

/// A device with sectors of this size, on a new file.
fn device_of(fixture: &Fixture, name: &str, content: &[u8], sector: u32) -> LoopDevice {
    LoopDevice::attach_with_blocks(&fixture.file(name, content), sector).unwrap()
}

#[test]
fn the_backup_of_a_partition_table_is_moved_to_the_end_as_sgdisk_does() {
    for sector in [512, 4096] {
        let fixture = Fixture::new();
        let source = device_of(&fixture, "source.raw", &vec![0; 24 * MIB], sector);
        tool(
            "sgdisk",
            &["-n", "1:2048:+4M", "-n", "3:0:+2M", path(source.path())],
        );
        source.detach().unwrap();
        let content = std::fs::read(fixture.join("source.raw")).unwrap();
        fixture.sync_sectors("web01", imagefmt::ClusterSize::K64, sector, &[("vda", &content)]);
        let restore = |name: &str, more: &[&str]| {
            let device = device_of(&fixture, name, &vec![0; 40 * MIB], sector);
            let mut args = vec!["restore", "--yes", "--json", "web01/1", path(device.path())];
            args.extend(more);
            (fixture.run(&args), device)
        };
        let (ended, theirs) = restore("theirs.raw", &[]);
        assert!(ended.stderr.contains("--fix-gpt"), "{ended:?}");
        let said = ended.json();
        assert_eq!(said["gpt_backup_offset"], 24 * MIB - sector as usize);
        assert_eq!(said["gpt_backup_moved"], false);
        tool("sgdisk", &["--move-second-header", path(theirs.path())]);
        let (ended, ours) = restore("ours.raw", &["--fix-gpt"]);
        assert_eq!(ended.stderr, "");
        assert_eq!(ended.json()["gpt_backup_moved"], true);
        let checked = tool("sgdisk", &["--verify", path(ours.path())]);
        let checked = String::from_utf8(checked).unwrap();
        assert!(checked.contains("No problems found"), "{checked}");
        ours.detach().unwrap();
        theirs.detach().unwrap();
        let read = |name: &str| std::fs::read(fixture.join(name)).unwrap();
        let (ours, theirs) = (read("ours.raw"), read("theirs.raw"));
        let differing: Vec<usize> = (0..ours.len()).filter(|&at| ours[at] != theirs[at]).collect();
        assert_eq!(differing, [0; 0], "sectors of {sector} bytes");
    }
}

#[test]
fn a_table_that_fits_is_left_alone() {
    let fixture = Fixture::new();
    let file = fixture.sparse_file("source.raw", 24 * MIB);
    tool("sgdisk", &["-n", "1:2048:+4M", path(&file)]);
    let content = std::fs::read(&file).unwrap();
    fixture.sync("web01", &[("vda", &content)]);
    let target = fixture.file("target.raw", &vec![0xaa; 24 * MIB]);
    let ended = fixture.run(&[
        "restore",
        "--yes",
        "--json",
        "--fix-gpt",
        "--wipe",
        "web01/1",
        path(&target),
    ]);
    assert_eq!(ended.stderr, "");
    assert_eq!(ended.json()["gpt_backup_moved"], false);
    assert!(std::fs::read(&target).unwrap() == content);
}

#[test]
fn a_thin_target_stays_thin() {
    let mut content = vec![0; 200 * MIB];
    content[70 * MIB..74 * MIB].copy_from_slice(&noise(4 * MIB, 3));
    let fixture = image_of(&content);
    // All of it is in use before.
    let file = fixture.file("target.raw", &vec![0xaa; 200 * MIB]);
    let device = LoopDevice::attach(&file).unwrap();
    fixture
        .run(&["restore", "--yes", "web01/1", path(device.path())])
        .ok();
    device.detach().unwrap();
    let allocated = std::fs::metadata(&file).unwrap().blocks() * 512;
    assert!(allocated <= 5 * MIB as u64, "{allocated} bytes are allocated");
    assert!(std::fs::read(&file).unwrap() == content);
}

#[test]
fn a_read_only_device_is_refused_before_anything_is_written() {
    let fixture = image_of(&noise(MIB, 1));
    let file = fixture.file("target.raw", &vec![7; MIB]);
    let options = LoopOptions {
        read_only: true,
        ..LoopOptions::default()
    };
    let backing = std::fs::File::open(&file).unwrap();
    let device = hostdev::LoopDevice::attach(backing.as_fd(), &options).unwrap();
    let said = fixture
        .run(&["restore", "--yes", "web01/1", path(device.path())])
        .fails(1);
    assert!(
        said.contains("read-only")
            && said.contains("nothing was written")
            && !said.contains("part of the image"),
        "{said}"
    );
}

#[test]
fn files_of_the_store_and_links_of_others_are_no_targets() {
    let fixture = image_of(&noise(MIB, 1));
    let planted = fixture.join("planted");
    std::fs::hard_link(fixture.layer("web01", 1), &planted).unwrap();
    let said = fixture
        .run(&["restore", "--yes", "web01/1", path(&planted)])
        .fails(1);
    assert!(said.contains("is a file of the store"), "{said}");
    fixture.run(&["verify"]).ok();
    let precious = fixture.file("precious", &vec![7; 2 * MIB]);
    let link = fixture.join("link");
    symlink(&precious, &link).unwrap();
    lchown(&link, Some(65534), Some(65534)).unwrap();
    let said = fixture
        .run(&["restore", "--yes", "web01/1", path(&link)])
        .fails(1);
    assert!(said.contains("belongs to user 65534"), "{said}");
    assert!(std::fs::read(&precious).unwrap().iter().all(|&byte| byte == 7));
    // Root's own are as good as names.
    lchown(&link, Some(0), Some(0)).unwrap();
    fixture.run(&["restore", "--yes", "web01/1", path(&link)]).ok();
}

/// The same of an export, of which only root can make the test.
#[test]
fn a_directory_of_somebody_else_is_not_exported_into() {
    let fixture = image_of(&noise(MIB, 1));
    let precious = fixture.file("precious", b"precious");
    let part = fixture.join("out.raw.part");
    std::fs::create_dir(&part).unwrap();
    symlink(&precious, part.join("out.raw")).unwrap();
    lchown(&part, Some(65534), Some(65534)).unwrap();
    let target = fixture.join("out.raw");
    let said = fixture.run(&["export", "web01/1", path(&target)]).fails(1);
    assert!(said.contains("can be changed by others"), "{said}");
    assert!(part.join("out.raw").is_symlink() && !target.exists());
    assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
}
