//! Tracked syncs on real loop devices, with a BPF filesystem of their own: they equal the device, and whatever speaks
//! against the tracker leads to a scan, never to a wrong image and never to a full copy.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use smc_tests::truth::tamper;
use smc_tests::{Bench, Disk, code, program, stderr};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use testkit::guard::Mount;
use testkit::process::wait_for;

const MIB: u64 = 1 << 20;
const CLUSTER: u64 = 65536;

/// A disk, a store, and a BPF filesystem in which the tracker is pinned. All of it is gone with it.
struct Ground {
    _bpf: Mount,
    disk: Disk,
    bench: Bench,
}

impl Ground {
    /// A disk of noise.
    fn new(name: &str, size_bytes: u64) -> Self {
        let bench = Bench::new(name).unwrap();
        let bpf = Mount::bpf(&bench.dir.join("bpf")).unwrap();
        let disk = bench.disk("disk.img", size_bytes).unwrap();
        disk.write_noise(0, usize::try_from(size_bytes).unwrap(), 1)
            .unwrap();
        Self {
            _bpf: bpf,
            disk,
            bench,
        }
    }

    fn pins(&self) -> PathBuf {
        self.bench.dir.join("bpf/smc")
    }

    fn arguments(&self) -> Vec<String> {
        vec![
            "--track".to_owned(),
            format!("--tracker-directory={}", self.pins().display()),
        ]
    }

    /// A sync; what it reported, and what it warned of.
    fn sync_saying(&self, more: &[&str]) -> (Value, String) {
        self.sync_by(&[], more)
    }

    fn sync_by(&self, by: &[String], more: &[&str]) -> (Value, String) {
        let arguments = self.arguments();
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        arguments.extend(more);
        let output = self
            .bench
            .sync_by(by, &[("vda", self.disk.path())], &arguments)
            .unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        (serde_json::from_slice(&output.stdout).unwrap(), stderr(&output))
    }

    fn sync(&self) -> Value {
        self.sync_saying(&[]).0
    }

    /// A sync that has to be tracked and to equal the device.
    fn tracked(&self) -> Value {
        let report = self.sync();
        assert_eq!(method(&report), "tracked", "{report}");
        self.check(&report);
        report
    }

    /// A sync that has to be a scan for this reason, and to equal the device.
    fn scanned(&self, reason: &str) -> Value {
        self.scanned_by(&[], reason)
    }

    /// The same, run by another program.
    fn scanned_by(&self, by: &[String], reason: &str) -> Value {
        let report = self.sync_by(by, &[]).0;
        assert_eq!(method(&report), "scan", "{report}");
        let told = report["disks"][0]["method_reason"].as_str().unwrap();
        assert!(told.contains(reason), "{told}");
        assert_eq!(report["kind"], "incremental");
        assert!(
            number(&report, "dirty_bytes") < self.disk.size_bytes / 2,
            "it is no full copy: {report}"
        );
        self.check(&report);
        report
    }

    /// The image of a report equals the device.
    fn check(&self, report: &Value) {
        let image = report["image"].as_str().unwrap();
        let device = self.disk.path().to_str().unwrap();
        let verified = self.bench.image(&["verify", image, "--against", device]).unwrap();
        let said = String::from_utf8_lossy(&verified.stdout);
        assert_eq!(code(&verified), 0, "{said} {}", stderr(&verified));
    }

    /// Writes to a few places, each round to others.
    fn change(&self, round: u64) {
        let clusters = self.disk.size_bytes / CLUSTER;
        for i in 0..7 {
            let cluster = (i * 131 + round * 17) % clusters;
            self.disk
                .write_noise(cluster * CLUSTER + 4096 * i, 4096, round * 100 + i)
                .unwrap();
        }
    }

    /// A sync that was begun so slowly that it can be ended in the middle; it has stored something.
    fn begun(&self) -> Child {
        let layers = self.bench.store().join("web01/layers");
        let count = || fs::read_dir(&layers).unwrap().count();
        let before = count();
        let child = Command::new(program("smcd"))
            .args(["sync", "--job", "web01", "--store"])
            .arg(self.bench.store())
            .arg("--disk")
            .arg(format!("vda={}", self.disk.path().display()))
            .args(self.arguments())
            // After the first MiB, the next one comes in a day.
            .args(["--bandwidth-limit=10", "--checkpoint-every=0"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the sync to store something", || count() > before);
        child
    }
}

fn method(report: &Value) -> &str {
    report["method"].as_str().unwrap()
}

fn number(report: &Value, key: &str) -> u64 {
    report["disks"][0][key].as_u64().unwrap()
}

#[test]
fn a_tracked_sync_reads_what_changed_and_equals_the_device() {
    let ground = Ground::new("tracked", 96 * MIB);
    let first = ground.sync();
    assert_eq!((method(&first), &first["kind"]), ("full", &Value::from("full")));
    for round in 1..4 {
        ground.change(round);
        let report = ground.tracked();
        let (compared, audited) = (
            number(&report, "compared_bytes"),
            number(&report, "audited_bytes"),
        );
        assert!(compared < 48 * MIB, "{report}");
        assert!(0 < audited && audited < compared, "{report}");
        assert!(number(&report, "dirty_bytes") <= 7 * CLUSTER, "{report}");
        assert!(
            report["disks"][0]["method_reason"]
                .as_str()
                .unwrap()
                .contains(&format!("since web01/{round}"))
        );
    }
    let idle = ground.tracked();
    assert_eq!(number(&idle, "dirty_bytes"), 0);
    assert_eq!(number(&idle, "compared_bytes"), number(&idle, "audited_bytes"));
    assert_eq!(idle["consistency"], "crash", "nothing was written: {idle}");
}

#[test]
fn a_sync_without_track_uses_a_tracker_that_is_there_and_starts_none() {
    let ground = Ground::new("trackedif", 24 * MIB);
    let directory = format!("--tracker-directory={}", ground.pins().display());
    let sync = |job: &str| {
        let output = Command::new(program("smcd"))
            .args(["sync", "--json", "--job", job, "--store"])
            .arg(ground.bench.store())
            .arg("--disk")
            .arg(format!("vda={}", ground.disk.path().display()))
            .arg(&directory)
            .output()
            .unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    sync("web01");
    let second = sync("web01");
    assert_eq!(second["disks"][0]["method_reason"], "no tracker watched the disk");
    assert!(!ground.pins().exists(), "nothing was pinned");
    ground.scanned("only since the last sync began");
    ground.change(1);
    assert_eq!(method(&sync("web01")), "tracked");
    // Another job's sync leaves the tracker to the first one.
    sync("other");
    let other = sync("other");
    assert_eq!(method(&other), "scan");
    assert_eq!(
        other["disks"][0]["method_reason"],
        "the tracker watches the disk for other images"
    );
    ground.change(2);
    assert_eq!(method(&sync("web01")), "tracked");
}

/// Those who use no service see it and get rid of it all the same.
#[test]
fn the_tracker_is_shown_and_removed_without_the_service() {
    let ground = Ground::new("tracked-shown", 8 * MIB);
    let pins = ground.pins();
    let tracker = |more: &[&str]| {
        let mut command = Command::new(program("smcd"));
        command
            .arg("tracker")
            .args(more)
            .arg("--tracker-directory")
            .arg(&pins);
        testkit::program::run(&mut command)
    };
    assert_eq!(tracker(&[]).ok(), "no disk is tracked\n");
    ground.sync();
    ground.change(1);
    let shown = tracker(&[]).ok();
    assert!(shown.contains("the next sync reads what was written"), "{shown}");
    let shown: Value = serde_json::from_str(&tracker(&["--json"]).ok()).unwrap();
    assert!(shown["disks"][0]["dirty_bytes"].as_u64() > Some(0), "{shown}");
    assert_eq!(tracker(&["remove"]).ok(), "no disk is tracked\n");
    assert!(!pins.join("control").exists());
    ground.scanned("the disk is tracked only since the last sync began");
}

#[test]
fn whatever_cannot_be_tracked_is_scanned_with_a_reason() {
    let ground = Ground::new("trackednot", 8 * MIB);
    // A directory that is not on a BPF filesystem.
    let elsewhere = format!("--tracker-directory={}", ground.bench.dir.join("pins").display());
    for round in 0..2 {
        let arguments = ["--track", &elsewhere];
        let output = ground.bench.sync_with(&[("vda", ground.disk.path())], &arguments);
        let output = output.unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        if round == 1 {
            assert_eq!(method(&report), "scan");
            let reason = report["disks"][0]["method_reason"].as_str().unwrap();
            assert!(reason.contains("BPF filesystem"), "{reason}");
        }
    }
    let file = ground.bench.dir.file("file.img", &[7; 65536]).unwrap();
    let sync = || {
        let output = Command::new(program("smcd"))
            .args(["sync", "--json", "--job", "file", "--store"])
            .arg(ground.bench.store())
            .arg("--disk")
            .arg(format!("vda={}", file.display()))
            .args(ground.arguments())
            .output()
            .unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    sync();
    let reason = sync()["disks"][0]["method_reason"].clone();
    assert_eq!(reason, "it is a file, and only block devices can be tracked");
}

#[test]
fn a_tracker_that_was_tampered_with_is_not_believed() {
    let ground = Ground::new("trackedpins", 24 * MIB);
    ground.sync();
    ground.change(1);
    ground.tracked();
    for (round, pin) in ["link-request_1", "live", "program-bio_0"]
        .into_iter()
        .enumerate()
    {
        fs::remove_file(ground.pins().join(pin)).unwrap();
        ground.change(10 + round as u64);
        // What is incomplete is replaced.
        ground.scanned("only since the last sync began");
        ground.change(20 + round as u64);
        ground.tracked();
    }
}

#[test]
fn bits_of_another_image_are_not_believed() {
    let ground = Ground::new("trackedrm", 24 * MIB);
    ground.sync();
    ground.change(1);
    ground.tracked();
    ground.change(2);
    ground.tracked();
    // An image that is not the parent may go.
    assert_eq!(code(&ground.bench.image(&["rm", "web01/1"]).unwrap()), 0);
    ground.change(3);
    ground.tracked();
    assert_eq!(code(&ground.bench.image(&["rm", "web01/4"]).unwrap()), 0);
    ground.scanned("another image");
    ground.change(4);
    ground.tracked();
}

#[test]
fn a_disk_that_grew_is_scanned() {
    let ground = Ground::new("trackedgrow", 24 * MIB);
    ground.sync();
    ground.tracked();
    let file = File::options().write(true).open(&ground.disk.backing).unwrap();
    file.set_len(40 * MIB).unwrap();
    ground.disk.device.update_size().unwrap();
    ground.change(1);
    ground.scanned("another size");
    ground.change(2);
    ground.tracked();
}

#[test]
fn a_suspend_and_another_boot_lead_to_a_scan() {
    let ground = Ground::new("trackedboot", 24 * MIB);
    ground.sync();
    ground.change(1);
    ground.tracked();
    let other_boot = tamper::in_another_boot(ground.bench.dir.path()).unwrap();
    let asleep = tamper::after_a_suspend(5);
    for (by, reason) in [(&asleep, "was suspended"), (&other_boot, "was restarted")] {
        ground.change(2);
        ground.scanned_by(by, reason);
        ground.change(3);
        let (report, _) = ground.sync_by(by, &[]);
        assert_eq!(method(&report), "tracked", "the next one is tracked: {report}");
        ground.check(&report);
        ground.change(4);
        // And back again.
        ground.scanned(reason);
    }
}

#[test]
fn another_disk_in_the_same_place_is_scanned() {
    for _ in 0..20 {
        let mut ground = Ground::new("trackedother", 24 * MIB);
        ground.sync();
        ground.change(1);
        ground.tracked();
        // A copy under the same name: nothing but the kernel's number of the disk tells that it was away.
        let (backing, copy) = (&ground.disk.backing, ground.bench.dir.join("copy"));
        fs::copy(backing, &copy).unwrap();
        fs::rename(&copy, backing).unwrap();
        let copied = File::options().write(true).open(backing).unwrap();
        copied.write_all_at(&[0x5a; 512], 9 * MIB).unwrap();
        copied.sync_all().unwrap();
        let backing = ground.disk.backing.clone();
        if !ground.disk.device.replace(&backing).unwrap() {
            continue;
        }
        ground.scanned("was replaced");
        ground.change(2);
        ground.tracked();
        return;
    }
    panic!("other tests took every loop device that was free for a moment");
}

#[test]
fn a_map_that_was_deleted_and_a_tracker_of_another_version_are_replaced() {
    let ground = Ground::new("trackedmaps", 24 * MIB);
    ground.sync();
    ground.change(1);
    ground.tracked();
    let maps = ["live", "pending", "header"];
    for (round, map) in (1..).zip(maps) {
        fs::remove_file(tamper::watch_of(&ground.pins()).unwrap().join(map)).unwrap();
        ground.change(round * 10);
        ground.scanned("only since the last sync began");
        ground.change(round * 10 + 1);
        ground.tracked();
    }
    tamper::change_version(&ground.pins()).unwrap();
    ground.change(50);
    ground.scanned("only since the last sync began");
    ground.change(51);
    ground.tracked();
}

/// The bit of a cluster is cleared behind the tracker's back: as if its programs had not seen the write.
#[test]
fn a_write_whose_bit_is_gone_is_found_by_the_audit() {
    let ground = Ground::new("trackedbit", 24 * MIB);
    ground.sync();
    ground.change(1);
    ground.tracked();
    ground.disk.write_noise(200 * CLUSTER, 4096, 9).unwrap();
    tamper::forget_write(&ground.pins(), 200).unwrap();
    // The slowest audit reads 4 MiB: its turn comes within a few syncs.
    let scan = (0..8)
        .map(|_| ground.sync())
        .find(|report| method(report) == "scan");
    let report = scan.unwrap();
    let reason = report["disks"][0]["method_reason"].as_str().unwrap();
    assert!(
        reason.contains("1 of the audited clusters differ, the first at byte 13107200"),
        "{reason}"
    );
    ground.check(&report);
    ground.change(2);
    ground.tracked();
}

#[test]
fn a_sync_that_was_killed_is_followed_by_a_scan() {
    let ground = Ground::new("trackedkill", 24 * MIB);
    ground.sync();
    ground.change(1);
    let mut child = ground.begun();
    child.kill().unwrap();
    child.wait().unwrap();
    ground.change(2);
    ground.scanned("was interrupted");
    ground.change(3);
    ground.tracked();
}

#[test]
fn a_sync_that_was_stopped_is_resumed_tracked() {
    let ground = Ground::new("trackedstop", 24 * MIB);
    ground.sync();
    for i in 0..4 {
        ground.disk.write_noise(i * 5 * MIB, 1 << 20, 10 + i).unwrap();
    }
    let mut child = ground.begun();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    // What was stored has changed again, and something that was not.
    ground.disk.write_noise(0, 4096, 77).unwrap();
    ground.disk.write_noise(3 * MIB, 4096, 78).unwrap();
    let report = ground.tracked();
    assert_eq!(report["resumed"], true);
    assert!(
        number(&report, "compared_bytes") - number(&report, "audited_bytes") < 8 * MIB,
        "{report}"
    );
}

/// No tracker sees what is written to the file behind a loop device.
#[test]
fn a_missed_write_is_found_by_the_audit_and_the_same_sync_is_a_scan() {
    let ground = Ground::new("trackedmiss", 24 * MIB);
    ground.sync();
    ground.change(1);
    ground.tracked();
    let behind = File::options().write(true).open(&ground.disk.backing).unwrap();
    behind.write_all_at(&[0x5a; 512], 9 * MIB).unwrap();
    behind.sync_all().unwrap();
    ground.change(2);
    // On a busy machine an audit may read no more than 4 MiB.
    let (report, warned) = (0..16)
        .map(|_| ground.sync_saying(&[]))
        .find(|(report, _)| method(report) == "scan")
        .expect("the audit comes to every cluster");
    ground.check(&report);
    let reason = report["disks"][0]["method_reason"].as_str().unwrap();
    let missed = "the tracker had missed writes: 1 of the audited clusters differ, the first at byte 9437184";
    assert_eq!(reason, missed);
    assert!(warned.contains(missed), "{warned}");
    assert!(number(&report, "audited_bytes") > 0);
    ground.change(3);
    ground.tracked();
}

/// The turns of an audit come to every cluster.
#[test]
fn a_missed_write_is_found_wherever_it_is() {
    let ground = Ground::new("trackedturns", 128 * MIB);
    ground.sync();
    let behind = File::options().write(true).open(&ground.disk.backing).unwrap();
    behind.write_all_at(&[0x5a; 512], 77 * MIB).unwrap();
    behind.sync_all().unwrap();
    // The slowest audit reads 4 MiB.
    let found = (0..32).any(|_| method(&ground.sync()) == "scan");
    assert!(found);
    ground.tracked();
}

#[test]
fn damage_of_the_parent_is_repaired_by_a_tracked_sync() {
    let ground = Ground::new("trackeddamage", 64 * MIB);
    ground.sync();
    let layer = ground.bench.store().join("web01/layers/00000001.layer");
    let file = File::options().write(true).open(layer).unwrap();
    // Behind its 256 clusters stands the first leaf: the sync finds it.
    file.write_all_at(&[0xff; 8], 4096 + 256 * CLUSTER + 100).unwrap();
    let report = ground.tracked();
    assert_eq!(number(&report, "repaired_clusters"), 256, "{report}");
    // A cluster behind that leaf is found by a verification.
    file.write_all_at(&[0xff; 8], 4096 + 300 * CLUSTER + CLUSTER / 2)
        .unwrap();
    let image = report["image"].as_str().unwrap();
    assert_eq!(code(&ground.bench.image(&["verify", image]).unwrap()), 3);
    let report = ground.tracked();
    assert_eq!(number(&report, "repaired_clusters"), 1, "{report}");
    let image = report["image"].as_str().unwrap();
    assert_eq!(code(&ground.bench.image(&["verify", image]).unwrap()), 0);
}
