//! restore --onto: only what differs is written, whatever the target held.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod common;

use common::{CLUSTER, Fixture, MIB, disk_content, noise};
use nix::mount::MsFlags;
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::iter;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use testkit::Random;
use testkit::guard::{LoopDevice, Mount};
use testkit::process::wait_for;
use testkit::program::{Running, run};

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `web01/1` and `web01/2` of these contents.
fn two_images(first: &[u8], second: &[u8]) -> Fixture {
    let fixture = Fixture::new();
    fixture.sync("web01", &[("vda", first)]);
    fixture.sync("web01", &[("vda", second)]);
    fixture
}

/// Content of which three clusters were changed, one of them to zeros.
fn changed(content: &[u8]) -> Vec<u8> {
    let mut changed = content.to_vec();
    changed[CLUSTER..2 * CLUSTER].copy_from_slice(&noise(CLUSTER, 77));
    changed[2 * CLUSTER..3 * CLUSTER].fill(0);
    let last = changed.len() - 100;
    changed[last..].fill(0x5a);
    changed
}

fn onto(fixture: &Fixture, image: &str, target: &Path) -> Value {
    let args = ["restore", "--json", "--yes", "--onto", image, path(target)];
    fixture.run(&args).objects().remove(0)
}

fn written(report: &Value) -> u64 {
    report["data_bytes"].as_u64().unwrap() + report["zero_bytes"].as_u64().unwrap()
}

#[test]
fn only_what_differs_is_written() {
    for size in [9 * MIB, 9 * MIB + 512, 3 * MIB + 4097] {
        let first = disk_content(size, 1);
        let second = changed(&first);
        let fixture = two_images(&first, &second);
        let file = fixture.file("target.raw", &vec![0xaa; 12 * MIB]);
        let device = LoopDevice::attach(&file).unwrap();
        let all = onto(&fixture, "web01/1", device.path());
        assert_eq!((&all["held"], &all["was_cut_off"]), (&Value::Null, &false.into()));
        assert_eq!(written(&all), size as u64, "it held something else everywhere");
        let next = onto(&fixture, "web01/2", device.path());
        assert_eq!(next["held"], "web01/1:vda");
        assert_eq!(next["compared_bytes"], size as u64);
        let last = (size - 100) / CLUSTER * CLUSTER;
        assert_eq!(written(&next), (2 * CLUSTER + size - last) as u64);
        let again = onto(&fixture, "web01/2", device.path());
        assert_eq!((written(&again), &again["held"]), (0, &"web01/2:vda".into()));
        device.detach().unwrap();
        let found = fs::read(&file).unwrap();
        assert!(found[..size] == second, "{size}");
        assert!(found[size..].iter().all(|&byte| byte == 0xaa), "{size}");
    }
}

#[test]
fn it_says_what_it_did() {
    let content = disk_content(3 * MIB, 1);
    let fixture = two_images(&content, &changed(&content));
    let file = fixture.file("target.raw", &content);
    let run = |image: &str| {
        fixture
            .run(&["restore", "--yes", "--onto", image, path(&file)])
            .ok()
    };
    assert!(run("web01/1").contains("holds web01/1:vda already"));
    let said = run("web01/2");
    assert!(
        said.contains("restored onto") && said.contains("3 MiB compared"),
        "{said}"
    );
    let refused = fixture
        .run(&["restore", "--onto", "web01/1", path(&file)])
        .fails(1);
    assert!(refused.contains("--yes"), "{refused}");
    assert!(fs::read(&file).unwrap() == changed(&content));
}

/// What is written down is never believed here: the disk is.
#[test]
fn a_target_that_was_changed_behind_us_is_put_right() {
    let first = noise(6 * MIB, 1);
    let second = changed(&first);
    let fixture = two_images(&first, &second);
    let file = fixture.file("target.raw", &vec![0; 6 * MIB]);
    onto(&fixture, "web01/1", &file);
    let disk = OpenOptions::new().write(true).open(&file).unwrap();
    disk.write_all_at(&[1, 2, 3], 4 * MIB as u64 + 5).unwrap();
    drop(disk);
    let next = onto(&fixture, "web01/2", &file);
    let last = 6 * MIB - CLUSTER;
    assert_eq!(written(&next), (3 * CLUSTER + 6 * MIB - last) as u64);
    assert!(fs::read(&file).unwrap() == second);
    // A record that lies changes nothing.
    let records = fixture.join("restored");
    for entry in fs::read_dir(&records).unwrap() {
        let record = entry.unwrap().path();
        if record.extension().is_some_and(|extension| extension == "json") {
            let text = fs::read_to_string(&record).unwrap();
            fs::write(&record, text.replace("web01/2", "web01/1")).unwrap();
        }
    }
    fs::write(&file, noise(6 * MIB, 9)).unwrap();
    assert_eq!(written(&onto(&fixture, "web01/2", &file)), 6 * MIB as u64);
    assert!(fs::read(&file).unwrap() == second);
}

/// Killed after so many bytes have changed: the target is between two images, and the next restore knows and completes it.
#[test]
fn a_restore_that_was_killed_is_completed() {
    let mut random = Random::new(5);
    let first = noise(48 * MIB, 1);
    let second = noise(48 * MIB, 2);
    let fixture = two_images(&first, &second);
    for attempt in 0..4 {
        let file = fixture.file(&format!("target{attempt}.raw"), &first);
        onto(&fixture, "web01/1", &file);
        let at = random.below(40 * MIB as u64);
        let mut command = fixture.command();
        command.args(["restore", "--yes", "--onto", "web01/2", path(&file)]);
        let mut running = Running::start(&mut command);
        let disk = fs::File::open(&file).unwrap();
        let wanted = usize::try_from(at).unwrap();
        let mut byte = [0; 64];
        wait_for("it has written so far", || {
            disk.read_exact_at(&mut byte, at).unwrap();
            byte == second[wanted..wanted + 64] || running.0.try_wait().unwrap().is_some()
        });
        running.signal("KILL");
        let before = fs::read(&file).unwrap();
        let differing = before.chunks(CLUSTER).zip(second.chunks(CLUSTER));
        let differing = differing.filter(|(found, wanted)| found != wanted).count() * CLUSTER;
        let done = onto(&fixture, "web01/2", &file);
        assert_eq!(written(&done), differing as u64);
        // It may have ended before the signal.
        assert!(differing == 0 || done["was_cut_off"] == true, "{done}");
        assert!(fs::read(&file).unwrap() == second);
        assert_eq!(onto(&fixture, "web01/2", &file)["held"], "web01/2:vda");
    }
}

#[test]
fn a_mounted_target_is_refused() {
    let fixture = Fixture::new();
    let file = fixture.sparse_file("target.raw", 32 * MIB);
    run(Command::new("mkfs.ext4").arg("-q").arg(&file)).ok();
    let content = fs::read(&file).unwrap();
    fixture.sync("web01", &[("vda", &content)]);
    let device = LoopDevice::attach(&file).unwrap();
    let mount = Mount::new(device.path(), &fixture.join("mnt"), "ext4", MsFlags::MS_RDONLY).unwrap();
    let args = ["restore", "--yes", "--onto", "web01/1", path(device.path())];
    let said = fixture.run(&args).fails(1);
    assert!(said.contains("mounted on"), "{said}");
    mount.unmount().unwrap();
    fixture.run(&args).ok();
}

#[test]
fn nothing_is_written_where_the_image_or_the_target_cannot_be_read() {
    let first = noise(4 * MIB, 1);
    let second = noise(4 * MIB, 2);
    let fixture = two_images(&first, &second);
    // A cluster that the target has already needs not be read.
    fixture.damage_cluster("web01", &second[40 * CLUSTER..41 * CLUSTER]);
    let file = fixture.file("target", &second);
    assert_eq!(written(&onto(&fixture, "web01/2", &file)), 0);
    let file = fixture.file("other", &first);
    let said = fixture
        .run(&["restore", "--yes", "--onto", "web01/2", path(&file)])
        .fails(3);
    assert!(
        said.contains("cluster 40") && said.contains("nothing was written"),
        "{said}"
    );
    assert!(fs::read(&file).unwrap() == first);
    let said = fixture
        .run(&["restore", "--yes", "--onto", "web01/1", path(&file)])
        .ok();
    assert!(said.contains("holds web01/1:vda already"), "{said}");
}

/// While somebody is asked, another program writes to the target: what it wrote is put right, and is not taken for the image later.
#[test]
fn what_is_written_while_somebody_is_asked_is_found() {
    let first = noise(4 * MIB, 1);
    let second = changed(&first);
    let fixture = two_images(&first, &second);
    let file = fixture.file("target.raw", &first);
    let mut restore = fixture.command();
    restore.args(["restore", "--onto", "web01/2", path(&file)]);
    let words = iter::once(restore.get_program()).chain(restore.get_args());
    let words: Vec<String> = words
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    // Questions are asked on a terminal alone.
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]);
    terminal.env("SMC_RESTORED", fixture.join("restored"));
    terminal.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = Running(terminal.spawn().unwrap());
    let mut said = Vec::new();
    let mut byte = [0];
    let output = running.0.stdout.as_mut().unwrap();
    while !String::from_utf8_lossy(&said).contains("to it?") {
        assert_eq!(
            output.read(&mut byte).unwrap(),
            1,
            "{}",
            String::from_utf8_lossy(&said)
        );
        said.push(byte[0]);
    }
    let disk = OpenOptions::new().write(true).open(&file).unwrap();
    disk.write_all_at(&[1, 2, 3], 3 * MIB as u64).unwrap();
    drop(disk);
    running.0.stdin.as_mut().unwrap().write_all(b"yes\n").unwrap();
    output.read_to_end(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said);
    assert_eq!(running.0.wait().unwrap().code(), Some(0), "{said}");
    assert!(said.contains("it was compared again"), "{said}");
    assert!(fs::read(&file).unwrap() == second);
}
