//! restore, on files and on loop devices of this test's own.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod common;

use common::{Fixture, MIB, disk_content, noise};
use nix::mount::MsFlags;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;
use testkit::guard::{LoopDevice, Mount};
use testkit::program::{Running, run};

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
    let fixture = image_of(&noise(96 * MIB, 5));
    let file = fixture.sparse_file("target.raw", 96 * MIB);
    let mut command = fixture.command();
    let mut running = Running::start(command.args(["restore", "--yes", "web01/1"]).arg(&file));
    let begun = || std::fs::metadata(&file).unwrap().blocks() > 0;
    while !begun() {
        assert!(
            running.0.try_wait().unwrap().is_none(),
            "it ended before it wrote anything"
        );
        thread::sleep(Duration::from_millis(1));
    }
    let (code, said) = running.signal("INT");
    assert_eq!(code, Some(130), "{said}");
    assert!(
        said.contains("interrupted") && said.contains("do not use it"),
        "{said}"
    );
}
