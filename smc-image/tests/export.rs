//! `smc-image export`: what it writes is the disk, bit for bit, in every format, or nothing.

#![allow(
    clippy::unwrap_used,
    reason = "this is test code, outside of test functions too"
)]

mod common;

use common::{CLUSTER, Fixture, disk};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use testkit::program::{Running, run, tool, wait_for};

#[test]
fn raw_is_the_disk_with_its_holes() {
    let fixture = Fixture::new();
    let bytes = disk(1);
    fixture.sync("web", &[("vda", &bytes)]);
    let file = fixture.join("out.img");
    let said = fixture
        .run(&["export", "web/latest", file.to_str().unwrap(), "--json"])
        .ok();
    assert_eq!(fs::read(&file).unwrap(), bytes);
    let stored = fs::metadata(&file).unwrap().blocks() * 512;
    assert!(stored <= 8 * CLUSTER as u64, "{stored} bytes are stored");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["size_bytes"], bytes.len());
    assert_eq!(said["format"], "raw");
    assert!(!fixture.join("out.img.part").exists());
}

#[test]
fn one_of_several_disks_is_exported() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1)), ("vdb", &disk(5))]);
    let file = fixture.join("b.raw");
    let complaint = fixture.run(&["export", "web/1", file.to_str().unwrap()]).fails(1);
    assert!(complaint.contains("vdb"), "{complaint}");
    fixture.run(&["export", "web/1:vdb", file.to_str().unwrap()]).ok();
    assert_eq!(fs::read(&file).unwrap(), disk(5));
}

#[test]
fn an_existing_file_is_kept_unless_forced() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let file = fixture.join("out.raw");
    fs::write(&file, "precious").unwrap();
    let complaint = fixture.run(&["export", "web/1", file.to_str().unwrap()]).fails(1);
    assert!(complaint.contains("--force"), "{complaint}");
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    fixture
        .run(&["export", "web/1", file.to_str().unwrap(), "--force"])
        .ok();
    assert_eq!(fs::read(&file).unwrap(), disk(1));
}

#[test]
fn other_formats_hold_the_same_disk() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let raw = fixture.join("disk.raw");
    fixture.run(&["export", "web/1", raw.to_str().unwrap()]).ok();
    for (extension, format) in [
        ("qcow2", "qcow2"),
        ("vhd", "vpc"),
        ("vhdx", "vhdx"),
        ("vmdk", "vmdk"),
    ] {
        let file = fixture.join(&format!("disk.{extension}"));
        fixture.run(&["export", "web/1", file.to_str().unwrap()]).ok();
        tool(
            "qemu-img",
            &[
                "compare",
                "-f",
                "raw",
                "-F",
                format,
                raw.to_str().unwrap(),
                file.to_str().unwrap(),
            ],
        );
        let info = tool(
            "qemu-img",
            &["info", "-f", format, "--output=json", file.to_str().unwrap()],
        );
        let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
        assert_eq!(info["virtual-size"], disk(1).len(), "{extension}");
        assert!(!fixture.join(&format!("disk.{extension}.part")).exists());
    }
}

#[test]
fn damage_is_named_and_leaves_no_file() {
    for name in ["out.raw", "out.qcow2"] {
        let fixture = Fixture::new();
        let bytes = disk(1);
        fixture.sync("web", &[("vda", &bytes)]);
        fixture.damage_cluster("web", &bytes[21 * CLUSTER..22 * CLUSTER]);
        let complaint = fixture
            .run(&["export", "web/1", fixture.join(name).to_str().unwrap()])
            .fails(3);
        assert!(
            complaint.contains("web/1:vda") && complaint.contains("cluster 21"),
            "{name}: {complaint}"
        );
        assert!(!fixture.has_entry("out."), "{name} is left");
    }
}

#[test]
fn missing_converter_is_said() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let file = fixture.join("out.qcow2");
    let mut command = fixture.command();
    command
        .env("PATH", "/nonexistent")
        .args(["export", "web/1"])
        .arg(&file);
    assert!(run(&mut command).fails(1).contains("qemu-utils"));
    assert!(!fixture.has_entry("out."));
}

/// A converter that never ends stands for one that is busy.
#[test]
fn interrupt_leaves_nothing() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let tools = fixture.join("tools");
    let temporary = fixture.join("tmp");
    fs::create_dir(&tools).unwrap();
    fs::create_dir(&temporary).unwrap();
    let started = fixture.join("started");
    let script = format!("#!/bin/sh\necho $$ > {}\nexec sleep 1000\n", started.display());
    fs::write(tools.join("qemu-img"), script).unwrap();
    fs::set_permissions(tools.join("qemu-img"), fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = fixture.command();
    command
        .env("PATH", format!("{}:/usr/bin:/bin", tools.display()))
        .env("TMPDIR", &temporary);
    let running = Running::start(command.args(["export", "web/1"]).arg(fixture.join("out.qcow2")));
    wait_for("the converter", || {
        fs::read_to_string(&started).is_ok_and(|pid| pid.ends_with('\n'))
    });
    assert!(fixture.join("out.qcow2.part").exists());
    let (code, complaint) = running.signal("INT");
    assert_eq!(code, Some(130), "{complaint}");
    assert!(complaint.contains("interrupted"), "{complaint}");
    assert!(!fixture.has_entry("out."));
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
    let pid = fs::read_to_string(&started).unwrap();
    assert!(
        !Path::new("/proc").join(pid.trim()).exists(),
        "the converter still runs"
    );
}
