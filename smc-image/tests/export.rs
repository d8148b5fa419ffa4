//! `smc-image export`: what it writes is the disk, bit for bit, in every format, or nothing.

#![allow(
    clippy::unwrap_used,
    reason = "this is test code, outside of test functions too"
)]

mod common;

use common::{CLUSTER, Fixture, MIB, disk, find};
use imagefmt::ClusterSize;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
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
        // A colon does not make what is before it a protocol.
        let name = format!("web_22:50.{extension}");
        let file = fixture.join(&name);
        export_by_name(&fixture, &["web/1", &name]).ok();
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
        assert!(!fixture.join(&format!("web_22:50.{extension}.part")).exists());
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

#[test]
fn interrupt_leaves_nothing() {
    for signal in ["INT", "TERM", "HUP"] {
        interrupt_by(signal);
    }
}

/// A converter that never ends stands for one that is busy.
fn interrupt_by(signal: &str) {
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
    let (code, complaint) = running.signal(signal);
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

/// Runs an export, in the file's directory, as it is given there: by its name.
fn export_by_name(fixture: &Fixture, args: &[&str]) -> testkit::program::Run {
    let mut command = fixture.command();
    run(command.current_dir(fixture.join("")).arg("export").args(args))
}

#[test]
fn only_the_owner_can_read_it_whatever_the_umask() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    for name in ["out.raw", "out.qcow2", "out.vhd", "azure.vhd-fixed"] {
        let mut command = run_in_shell(&fixture, "umask 0; exec \"$@\"", &["export", "web/1", name]);
        run(&mut command).ok();
        let mode = fs::metadata(fixture.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

/// The tool below a shell that runs `script` first, in the fixture's directory.
fn run_in_shell(fixture: &Fixture, script: &str, args: &[&str]) -> std::process::Command {
    let tool = fixture.command();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script, "sh"]).arg(tool.get_program());
    command
        .args(tool.get_args())
        .args(args)
        .current_dir(fixture.join(""));
    command
}

/// What somebody who may write to the directory puts in the way of root's export.
#[test]
fn nothing_that_others_planted_is_overwritten() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let victim = fixture.file("victim", b"precious");
    let shared = fixture.join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
    type Plant = fn(&Path, &Path);
    let plant: [(&str, Plant); 4] = [
        ("a symlink", |victim, part| symlink(victim, part).unwrap()),
        ("a hard link", |victim, part| fs::hard_link(victim, part).unwrap()),
        ("a fifo", |_, part| {
            drop(tool("mkfifo", &[part.to_str().unwrap()]))
        }),
        ("a directory that they can write to", |victim, part| {
            fs::create_dir(part).unwrap();
            fs::set_permissions(part, fs::Permissions::from_mode(0o777)).unwrap();
            fs::hard_link(victim, part.join("out.raw")).unwrap();
        }),
    ];
    for (what, plant) in plant {
        for name in ["out.raw", "out.qcow2"] {
            let part = shared.join(format!("{name}.part"));
            plant(&victim, &part);
            let target = shared.join(name);
            let said = fixture
                .run(&["export", "web/1", target.to_str().unwrap()])
                .fails(1);
            assert!(said.contains(&format!("{name}.part")), "{what}: {said}");
            assert_eq!(fs::read(&victim).unwrap(), b"precious", "{what}");
            assert!(fs::symlink_metadata(&part).is_ok(), "{what} is gone");
            tool("rm", &["-rf", part.to_str().unwrap()]);
        }
    }
    // The name itself is a link: it is replaced, and not followed.
    let target = shared.join("out.raw");
    symlink(&victim, &target).unwrap();
    fixture
        .run(&["export", "web/1", target.to_str().unwrap()])
        .fails(1);
    fixture
        .run(&["export", "web/1", target.to_str().unwrap(), "--force"])
        .ok();
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert!(fs::symlink_metadata(&target).unwrap().is_file());
    assert_eq!(fs::read(&target).unwrap(), disk(1));
}

#[test]
fn what_a_killed_export_left_is_replaced() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let part = fixture.join("out.raw.part");
    fs::create_dir(&part).unwrap();
    fs::set_permissions(&part, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(part.join("out.raw"), "half of it").unwrap();
    export_by_name(&fixture, &["web/1", "out.raw"]).ok();
    assert_eq!(fs::read(fixture.join("out.raw")).unwrap(), disk(1));
    assert!(!part.exists());
    // One that still runs holds its file.
    fs::create_dir(&part).unwrap();
    fs::set_permissions(&part, fs::Permissions::from_mode(0o700)).unwrap();
    let held = fs::File::create(part.join("out.raw")).unwrap();
    held.lock().unwrap();
    let said = export_by_name(&fixture, &["web/1", "out.raw", "--force"]).fails(1);
    assert!(said.contains("another export"), "{said}");
    assert!(part.join("out.raw").exists());
}

#[test]
fn a_store_is_never_written_to() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let layer = fixture.layer("web", 1);
    let before = fs::read(&layer).unwrap();
    let other = fixture.join("other/store");
    fs::create_dir_all(&other).unwrap();
    imagefmt::Store::open_or_create(&other, false).unwrap();
    symlink(fixture.store().join("web"), fixture.join("link")).unwrap();
    let places: [PathBuf; 5] = [
        layer.clone(),
        fixture.store().join("new.raw"),
        fixture.store().join("web/new.qcow2"),
        fixture.join("link/new.raw"),
        other.join("new.raw"),
    ];
    for place in places {
        let said = fixture
            .run(&["export", "web/1", place.to_str().unwrap(), "--force"])
            .fails(1);
        assert!(said.contains("lies in the store"), "{}: {said}", place.display());
    }
    assert_eq!(fs::read(&layer).unwrap(), before);
    assert!(!other.join("new.raw").exists() && !fixture.store().join("new.raw").exists());
}

#[test]
fn a_fixed_vhd_has_whole_mib_and_the_disk() {
    let fixture = Fixture::new();
    let bytes = disk(1);
    fixture.sync("web", &[("vda", &bytes)]);
    let file = fixture.join("azure.vhd");
    let path = file.to_str().unwrap();
    let said = fixture
        .run(&["export", "web/1", path, "--format", "vhd-fixed", "--json"])
        .json();
    assert_eq!(said["format"], "vhd-fixed");
    let size = bytes.len().next_multiple_of(MIB);
    assert_eq!(fs::metadata(&file).unwrap().len(), size as u64 + 512);
    let info = tool("qemu-img", &["info", "-f", "vpc", "--output=json", path]);
    let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
    assert_eq!(info["virtual-size"], size);
    let back = fixture.join("back.raw");
    tool(
        "qemu-img",
        &["convert", "-f", "vpc", "-O", "raw", path, back.to_str().unwrap()],
    );
    let back = fs::read(back).unwrap();
    assert!(back[..bytes.len()] == bytes && back[bytes.len()..].iter().all(|&byte| byte == 0));
}

#[test]
fn large_sectors_are_told_of() {
    let fixture = Fixture::new();
    let bytes = disk(1);
    let bytes = &bytes[..40 * CLUSTER];
    fixture.sync_sectors("new", ClusterSize::K64, 4096, &[("vda", bytes)]);
    fixture.sync("old", &[("vda", bytes)]);
    for (name, warning) in [
        ("out.raw", "attach it as a disk with such sectors"),
        ("out.qcow2", "attach it as a disk with such sectors"),
        ("out.vhd", "has 512"),
        ("out.vhd-fixed", "has 512"),
        ("out.vhdx", "has 512"),
        ("out.vmdk", "has 512"),
    ] {
        let ended = export_by_name(&fixture, &["new/1", name]);
        assert!(
            ended.stderr.contains(warning) && ended.stderr.contains("4096"),
            "{name}: {ended:?}"
        );
        ended.ok();
        let ended = export_by_name(&fixture, &["old/1", name, "--force"]);
        assert_eq!(ended.stderr, "", "{name}");
        ended.ok();
    }
}

#[test]
fn a_vmdk_calls_itself_by_its_name() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    export_by_name(&fixture, &["web/1", "server.vmdk"]).ok();
    let bytes = fs::read(fixture.join("server.vmdk")).unwrap();
    let descriptor = &bytes[..MIB.min(bytes.len())];
    assert!(find(descriptor, b"\"server.vmdk\"").is_some());
    assert!(find(descriptor, b".part").is_none() && find(descriptor, b"/proc").is_none());
}
