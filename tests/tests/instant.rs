//! Images of class `filesystem`, made while two disks are written to: each shows one instant, and whatever happens to the sync, the
//! filesystems are thawed and the next image is right. `make test-instant` does the same for long.
//!
//! The test's own process never writes to a filesystem that may be frozen.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use anyhow::Result;
use serde_json::Value;
use smc_tests::instant::{self, Scene};
use smc_tests::{Bench, Disk, code, stderr};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Command, Stdio};
use testkit::guard::Mount;
use testkit::process::spawn;
use testkit::program::Running;

fn show_instants(fs_type: &'static str) -> Result<()> {
    println!("{fs_type}: {:#?}", instant::images(fs_type, 2)?);
    Ok(())
}

#[test]
fn images_of_ext4_show_one_instant_of_both_disks() -> Result<()> {
    show_instants("ext4")
}

#[test]
fn images_of_xfs_show_one_instant_of_both_disks() -> Result<()> {
    show_instants("xfs")
}

#[test]
fn images_of_btrfs_show_one_instant_of_both_disks() -> Result<()> {
    show_instants("btrfs")
}

#[test]
fn a_sync_that_is_killed_while_it_freezes_leaves_everything_thawed_and_the_next_image_right() -> Result<()> {
    let counts = instant::kills("ext4", 3, 14)?;
    println!("{counts:#?}");
    assert!(counts.killed.1 > 0, "none was killed in the freeze: {counts:?}");
    Ok(())
}

#[test]
fn a_freeze_that_lasts_too_long_is_ended_and_the_image_says_so() -> Result<()> {
    let mut scene = Scene::without_database("xfs")?;
    let report = scene.stop_in_freeze()?;
    let reason = report["consistency_reason"].as_str().unwrap();
    // Whether it was stopped before it had read all, or behind that.
    let expected = [
        "the filesystems were thawed before all was read: ",
        "the watchdog thawed",
    ];
    assert!(
        expected.iter().any(|expected| reason.starts_with(expected)),
        "{reason}"
    );
    scene.quiet()?;
    // What had been taken and was not read is in the next image.
    scene.check_last()
}

/// One disk with an xfs.
struct Single {
    mount: Option<Mount>,
    disk: Disk,
    _bpf: Mount,
    bench: Bench,
}

impl Single {
    fn new() -> Single {
        let bench = Bench::new("instant-single").unwrap();
        let bpf = Mount::bpf(&bench.dir.join("bpf")).unwrap();
        let disk = bench.disk("disk", 320 << 20).unwrap();
        let mount = Mount::format("xfs", disk.path(), &bench.dir.join("mnt")).unwrap();
        Single {
            mount: Some(mount),
            disk,
            _bpf: bpf,
            bench,
        }
    }

    fn sync(&self, more: &[&str]) -> Value {
        let pins = format!("--tracker-directory={}", self.bench.dir.join("bpf/smc").display());
        let disk = [("vda", self.disk.path())];
        let output = self
            .bench
            .sync_with(&disk, &[&[pins.as_str()], more].concat())
            .unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A sync that freezes and compares: its exit code, its report, and what it said.
    fn compared(&self) -> (i32, Value, String) {
        let pins = format!("--tracker-directory={}", self.bench.dir.join("bpf/smc").display());
        let options = [pins.as_str(), "--track", "--freeze=10s", "--verify"];
        let output = self
            .bench
            .sync_with(&[("vda", self.disk.path())], &options)
            .unwrap();
        let report = serde_json::from_slice(&output.stdout).unwrap();
        (code(&output), report, stderr(&output))
    }

    /// A sync that freezes nothing, for a reason, and gives the image this class.
    #[track_caller]
    fn assert_missed(&self, more: &[&str], class: &str, why: &str) -> Value {
        let report = self.sync(more);
        let reason = report["consistency_reason"].as_str().unwrap();
        let expected = format!("nothing was frozen: {why}");
        assert!(reason.starts_with(&expected), "{reason}");
        assert_eq!(report["consistency"], class, "{report}");
        assert_eq!(report["instant"]["held_us"], 0, "{report}");
        report
    }
}

/// Rewrites a file of 64 MiB without a pause.
fn busy(single: &Single) -> Running {
    let file = single.mount.as_ref().unwrap().path().join("file");
    let script =
        "while dd if=/dev/urandom of=\"$0\" bs=1M count=64 conv=notrunc oflag=direct status=none; do :; done";
    let mut command = Command::new("sh");
    let writer = spawn(command.args(["-c", script]).arg(&file).stderr(Stdio::null())).unwrap();
    let writer = Running(writer);
    testkit::process::wait_for("the file to be there", || {
        file.metadata().is_ok_and(|found| found.len() == 64 << 20)
    });
    writer
}

#[test]
fn passes_that_do_not_become_shorter_are_given_up() {
    let single = Single::new();
    single.sync(&["--track"]);
    let _writer = busy(&single);
    // It copies more slowly than is written.
    let slow = ["--freeze=10ms", "--bandwidth-limit=20MiB"];
    let report = single.assert_missed(&slow, "fuzzy", "after ");
    assert!(
        report["instant"]["passes"].as_array().unwrap().len() >= 3,
        "{report}"
    );
}

/// Behind all files, and where the first audit does not look.
const BEHIND: u64 = 301 << 20;

#[test]
fn a_comparison_of_a_disk_in_use_excuses_what_is_written_meanwhile_and_nothing_else() {
    let single = Single::new();
    single.sync(&["--track"]);
    let _writer = busy(&single);
    let behind = File::options().write(true).open(&single.disk.backing).unwrap();
    behind.write_all_at(&[0x5a; 512], BEHIND).unwrap();
    behind.sync_all().unwrap();
    let (code, report, said) = single.compared();
    assert_eq!((code, &report["method"]), (1, &"tracked".into()), "{said}");
    assert_eq!(report["verified"], false, "{report}");
    let first = format!("vda differs from the image: 1 cluster, the first at byte {BEHIND}");
    assert!(said.contains(&first), "{said}");
    assert!(said.contains(WRITTEN_SINCE), "{said}");
    let (code, report, said) = single.compared();
    assert_eq!((code, &report["method"]), (0, &"scan".into()), "{said}");
    assert_eq!(report["verified"], true, "{said}");
    assert!(said.contains(WRITTEN_SINCE), "{said}");
}

const WRITTEN_SINCE: &str = "of vda were written to since the image's moment and not compared";

/// The most memory that a process has had by now, in bytes; `None` when it has ended.
fn peak_bytes(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

#[test]
fn a_sync_that_freezes_stays_within_its_memory() {
    let single = Single::new();
    single.sync(&["--track"]);
    let _writer = busy(&single);
    let pins = format!(
        "--tracker-directory={}",
        single.bench.dir.join("bpf/smc").display()
    );
    let mut command = single.bench.sync_command(&[("vda", single.disk.path())]);
    let mut sync = command
        .args([&pins, "--freeze=10s"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut peak = 0;
    while sync.try_wait().unwrap().is_none() {
        peak = peak.max(peak_bytes(sync.id()).unwrap_or_default());
    }
    assert!(sync.wait().unwrap().success());
    println!("at most {} MiB", peak >> 20);
    assert!(peak > 0 && peak < 256 << 20, "{} MiB", peak >> 20);
}

#[test]
fn what_cannot_earn_the_class_is_not_frozen() {
    let mut single = Single::new();
    let held = File::options()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(single.disk.path());
    assert!(held.is_err(), "a mounted disk is held by its filesystem");
    single.mount.take().unwrap().unmount().unwrap();
    let nothing = "no filesystem that can be frozen is mounted on the disks";
    single.assert_missed(&["--freeze"], "crash", nothing);
    let held = File::options()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(single.disk.path())
        .unwrap();
    let device = single.disk.path().display().to_string();
    single.assert_missed(&["--freeze"], "crash", &format!("{device} is held by something"));
    drop(held);
}

#[test]
fn a_file_is_not_tracked_and_so_nothing_is_frozen() {
    let single = Single::new();
    let backing = single.disk.backing.clone();
    let pins = format!(
        "--tracker-directory={}",
        single.bench.dir.join("bpf/smc").display()
    );
    let output = single
        .bench
        .sync_with(&[("vda", &backing)], &[&pins, "--freeze"])
        .unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let reason = report["consistency_reason"].as_str().unwrap();
    assert!(
        reason.starts_with("nothing was frozen: vda: it is a file, and only block devices can be tracked"),
        "{reason}"
    );
}
