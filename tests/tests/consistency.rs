//! What is wanted of an image: a consistency class, disks that nobody uses, a comparison afterwards. What is not reached is a warning, or
//! a sync that fails, but always an image.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use nix::mount::MsFlags;
use serde_json::Value;
use smc_tests::service::Service;
use smc_tests::{Bench, Disk, busy_writer, code, program, stderr};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use testkit::guard::{LoopDevice, Mount};
use testkit::process::{Server, wait_for};

const MIB: u64 = 1 << 20;

/// A disk of noise, and a store.
fn ground(name: &str) -> (Bench, Disk) {
    let bench = Bench::new(name).unwrap();
    let disk = bench.disk("source", 32 * MIB).unwrap();
    disk.write_noise(0, 8 << 20, 1).unwrap();
    (bench, disk)
}

/// A sync: its exit code, its report, and what it said.
fn sync(bench: &Bench, disk: &Disk, more: &[&str]) -> (i32, Value, String) {
    let output = bench.sync_with(&[("vda", disk.path())], more).unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (code(&output), report, stderr(&output))
}

fn busy(bench: &Bench, disk: &Disk) -> Server {
    busy_writer(disk.path(), &bench.dir.join("fio.log")).unwrap()
}

#[test]
fn a_class_that_is_not_reached_is_told_and_fails_only_where_it_is_required() {
    let (bench, disk) = ground("consistency");
    let (code, report, said) = sync(&bench, &disk, &["--consistency=crash", "--require-consistency"]);
    assert_eq!((code, &*said), (0, ""), "a quiet disk earns it");
    assert_eq!(report["consistency"], "crash");

    let (code, report, said) = sync(&bench, &disk, &["--consistency=filesystem"]);
    assert_eq!(
        (code, &report["consistency"]),
        (0, &Value::from("crash")),
        "{said}"
    );
    assert!(
        said.contains("its consistency class is crash, and at least filesystem is wanted"),
        "{said}"
    );

    let writer = busy(&bench, &disk);
    let (code, report, said) = sync(&bench, &disk, &[]);
    assert_eq!((code, &*said), (0, ""), "nothing is wanted");
    assert_eq!(report["consistency"], "fuzzy");
    let (code, _, said) = sync(&bench, &disk, &["--consistency=crash"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("at least crash is wanted: vda "), "{said}");
    let (code, report, said) = sync(&bench, &disk, &["--consistency=crash", "--require-consistency"]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("image web01/5 is complete, but its consistency class is fuzzy"),
        "{said}"
    );
    assert_eq!(report["image"], "web01/5", "it is reported, and kept");
    drop(writer);
    let (code, _, said) = sync(&bench, &disk, &["--consistency=crash", "--require-consistency"]);
    assert_eq!(code, 0, "{said}");
    bench.same_as_device("web01/6", "vda", disk.path()).unwrap();
}

const OFFLINE: [&str; 1] = ["--offline"];

#[test]
fn disks_that_nobody_uses_earn_the_class_offline_and_others_are_refused() {
    let (bench, disk) = ground("offline");
    let mount = Mount::format("ext4", disk.path(), &bench.dir.join("mnt")).unwrap();
    let (code, _, said) = sync(&bench, &disk, &OFFLINE);
    assert_eq!(code, 1, "{said}");
    let user = format!("is in use: it is mounted on {}", mount.path().display());
    assert!(
        said.contains(&user) && said.contains("without --offline"),
        "{said}"
    );
    fs::write(mount.path().join("file"), "a").unwrap();
    mount.unmount().unwrap();

    let wanted = ["--offline", "--consistency=filesystem", "--require-consistency"];
    let (code, report, said) = sync(&bench, &disk, &wanted);
    assert_eq!((code, &*said), (0, ""));
    assert_eq!(
        (&report["image"], &report["consistency"]),
        (&"web01/1".into(), &"offline".into())
    );
    bench.same_as_device("web01/1", "vda", disk.path()).unwrap();

    // Somebody who does not ask whether it is held writes to it all the same.
    let writer = busy(&bench, &disk);
    let (code, report, said) = sync(&bench, &disk, &OFFLINE);
    assert_eq!((code, &report["consistency"]), (0, &"fuzzy".into()), "{said}");
    drop(writer);

    // Another holder, of which no mount tells.
    let held = File::options()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(disk.path())
        .unwrap();
    let (code, _, said) = sync(&bench, &disk, &OFFLINE);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("a program holds it"), "{said}");
    drop(held);

    let file = bench.sync_with(&[("vda", &disk.backing)], &OFFLINE).unwrap();
    assert!(stderr(&file).contains("is a file"), "{}", stderr(&file));
}

/// The largest layer of a store.
fn largest_layer(bench: &Bench) -> PathBuf {
    let layers = fs::read_dir(bench.store().join("web01/layers")).unwrap();
    let layers = layers.map(|layer| layer.unwrap().path());
    layers
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap()
}

#[test]
fn a_comparison_reads_what_is_stored_too() {
    let (bench, disk) = ground("compared");
    let (code, report, said) = sync(&bench, &disk, &["--verify"]);
    assert_eq!((code, &report["verified"]), (0, &true.into()), "{said}");
    let (_, report, _) = sync(&bench, &disk, &[]);
    assert!(report.get("verified").is_none(), "nothing was compared: {report}");

    let layer = File::options()
        .read(true)
        .write(true)
        .open(largest_layer(&bench))
        .unwrap();
    let (middle, mut byte) = (layer.metadata().unwrap().len() / 2, [0]);
    layer.read_exact_at(&mut byte, middle).unwrap();
    layer.write_all_at(&[!byte[0]], middle).unwrap();
    let (code, report, said) = sync(&bench, &disk, &["--verify"]);
    assert_eq!((code, &report["verified"]), (1, &false.into()), "{said}");
    assert!(
        said.contains("image web01/3 is complete, but the comparison after the sync failed"),
        "{said}"
    );
    // The comparison has left word for the next sync.
    let (code, report, said) = sync(&bench, &disk, &["--verify"]);
    assert_eq!((code, &report["verified"]), (0, &true.into()), "{said}");
    assert!(
        report["disks"][0]["repaired_clusters"].as_u64() > Some(0),
        "{report}"
    );
}

/// A write that no tracker sees, where the next audit does not look, is found by the comparison.
#[test]
fn a_job_is_finished_only_if_all_of_its_disks_are_in_the_image() {
    let (service, _bpf) = Service::tracking("verified").unwrap();
    let disk = service.disk("source", 512 * MIB).unwrap();
    disk.write_noise(0, 4 << 20, 1).unwrap();
    service.create(&disk, &["--interval", "6h"]).unwrap();
    service.ask(&["job", "start", "web01", "--wait"]).unwrap();
    let said = service
        .refused(2, &["job", "complete", "web01", "--verify"])
        .unwrap();
    assert!(said.contains("--last-sync"), "{said}");
    let behind = File::options().write(true).open(&disk.backing).unwrap();
    behind.write_all_at(&[0x5a; 512], 380 * MIB).unwrap();
    behind.sync_all().unwrap();

    let last = ["job", "complete", "web01", "--last-sync", "--verify", "--wait"];
    let said = service.refused(1, &last).unwrap();
    let differs = "vda differs from the image: 1 cluster, the first at byte 398458880";
    assert!(said.contains(differs), "{said}");
    let job = service.job("web01").unwrap();
    let run = &job["last_run"];
    assert_eq!(
        (&job["status"], &job["completing"]),
        (&"InError".into(), &true.into()),
        "{job:#}"
    );
    assert_eq!(
        (&run["method"], &run["verified"]),
        (&"tracked".into(), &false.into()),
        "{job:#}"
    );
    let history = service.ask(&["job", "history", "web01"]).unwrap();
    assert!(history.contains(differs), "{history}");

    service.ask(&["job", "start", "web01", "--wait"]).unwrap();
    let job = service.job("web01").unwrap();
    let run = &job["last_run"];
    assert_eq!(
        (&job["status"], &run["verified"]),
        (&"Finished".into(), &true.into()),
        "{job:#}"
    );
    assert_eq!(
        run["method"], "scan",
        "a tracker that has missed something is not believed"
    );
    service.same_content("web01/latest", disk.path()).unwrap();
}

/// A job whose disk has a mounted filesystem, on a machine that can track; each of its hooks writes down its stage when it has done
/// `work`. What is last is to be dropped first.
fn frozen_job(name: &str, work: &str) -> (Service, Disk, Mount, Mount) {
    let (service, bpf) = Service::tracking(name).unwrap();
    let disk = service.disk("source", 64 * MIB).unwrap();
    let mount = Mount::format("ext4", disk.path(), &service.dir.join("mnt")).unwrap();
    let hook = service.dir.join("hooks.d/note");
    let home = service.dir.path().display();
    let text = format!("#!/bin/sh\ncd {home}\n{work}\necho $1 >> stages\n");
    fs::write(&hook, text).unwrap();
    fs::set_permissions(&hook, Permissions::from_mode(0o755)).unwrap();
    let wanted = [
        "--interval",
        "6h",
        "--consistency",
        "filesystem",
        "--freeze=5s",
        "--freeze-hook-timeout",
        "1s",
    ];
    service.create(&disk, &wanted).unwrap();
    (service, disk, bpf, mount)
}

fn stages(service: &Service) -> Vec<String> {
    let noted = fs::read_to_string(service.dir.join("stages")).unwrap_or_default();
    noted.lines().map(str::to_owned).collect()
}

#[test]
fn a_database_takes_part_in_the_freeze() {
    let (service, _disk, _bpf, mount) =
        frozen_job("freezehooks", "[ $1 != freeze ] || echo paused > mnt/state");
    service.ask(&["job", "start", "web01", "--wait"]).unwrap();
    let run = service.job("web01").unwrap()["last_run"].clone();
    assert_eq!(run["consistency"], "filesystem", "{run:#}");
    assert_eq!(stages(&service), ["pre", "freeze", "thaw", "post"]);
    let held = &service.job("web01").unwrap()["forecast"]["writers_held_ms"];
    let measured = run["instant"]["held_us"].as_u64().unwrap().div_ceil(1000);
    assert_eq!(held.as_u64(), Some(measured), "it was measured, not computed");
    // What the freeze hook has written is in the image.
    let device = LoopDevice::attach(&service.dir.sparse_file("restored", 64 * MIB).unwrap()).unwrap();
    let mut restore = Command::new(program("smc-image"));
    restore.arg("--store").arg(service.store());
    restore.args(["restore", "--yes", "web01/1"]).arg(device.path());
    restore.env("SMC_RESTORED", service.dir.join("restored-by"));
    testkit::process::run(&mut restore).unwrap();
    let copy = Mount::new(device.path(), &service.dir.join("copy"), "ext4", MsFlags::empty()).unwrap();
    assert_eq!(fs::read_to_string(copy.path().join("state")).unwrap(), "paused\n");
    fs::write(mount.path().join("after"), "thawed").unwrap();
}

#[test]
fn what_is_written_after_the_thaw_is_told_and_does_not_keep_a_job_from_being_finished() {
    let late = "[ $1 != thaw ] || { date +%N > mnt/late; sync mnt/late; }";
    let (service, _disk, _bpf, _mount) = frozen_job("afterthaw", late);
    service.ask(&["job", "start", "web01", "--wait"]).unwrap();
    let last = ["job", "complete", "web01", "--last-sync", "--verify", "--wait"];
    service.ask(&last).unwrap();
    let job = service.job("web01").unwrap();
    let run = &job["last_run"];
    assert_eq!(
        (&job["status"], &run["verified"], &run["consistency"]),
        (&"Finished".into(), &true.into(), &"filesystem".into()),
        "{job:#}"
    );
    let told = "of vda were written to since the image's moment and not compared";
    assert!(run["warnings"].to_string().contains(told), "{job:#}");
}

#[test]
fn a_freeze_hook_that_hangs_is_killed_and_nothing_is_frozen() {
    let (service, _disk, _bpf, mount) = frozen_job("freezehang", "[ $1 != freeze ] || exec sleep 1000");
    service.ask(&["job", "start", "web01", "--wait"]).unwrap();
    let job = service.job("web01").unwrap();
    let reason = job["last_run"]["consistency_reason"].as_str().unwrap().to_owned();
    assert!(
        reason.contains("nothing was frozen: freeze hook") && reason.contains("killed after 1 s"),
        "{reason}"
    );
    assert_ne!(job["last_run"]["consistency"], "filesystem");
    assert!(
        job["warnings"]
            .to_string()
            .contains("at least filesystem is wanted"),
        "{job:#}"
    );
    assert_eq!(
        stages(&service),
        ["pre", "thaw", "post"],
        "what it has paused is released"
    );
    fs::write(mount.path().join("after"), "not frozen").unwrap();
}

#[test]
fn after_a_kill_in_a_freeze_hook_the_thaw_hook_runs_at_the_next_start() {
    let work = "[ $1 != freeze ] || { echo begun >> stages; until [ -e go ]; do sleep 0.01; done; }";
    let (mut service, _disk, _bpf, _mount) = frozen_job("freezekill", work);
    service
        .ask(&["job", "modify", "web01", "--freeze-hook-timeout", "1min"])
        .unwrap();
    service.ask(&["job", "start", "web01"]).unwrap();
    wait_for("its freeze hook has begun", || {
        stages(&service).contains(&"begun".to_owned())
    });
    service.kill().unwrap();
    service.dir.file("go", b"").unwrap();
    wait_for("it has ended", || stages(&service).contains(&"freeze".to_owned()));
    service.start().unwrap();
    service.wait_status("web01", "Waiting").unwrap();
    let released = stages(&service)[3..5].to_vec();
    assert_eq!(released, ["thaw", "post"], "{:?}", stages(&service));
    assert_eq!(stages(&service)[5..], ["pre", "begun", "freeze", "thaw", "post"]);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let (bench, disk) = ground("consistency-refused");
    for (options, reason) in [
        (["--require-consistency", "--json"], "--consistency"),
        (
            ["--consistency=offline", "--json"],
            "it must be any, crash or filesystem",
        ),
        (["--freeze=1ms", "--json"], "it must be between 10ms and 10s"),
    ] {
        let (code, _, said) = sync(&bench, &disk, &options[..1]);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(reason), "{said}");
    }
    assert!(!bench.store().exists());
}

#[test]
fn a_job_says_what_it_wants_and_what_it_has() {
    let service = Service::new("consistency-job").unwrap();
    let disk = service.disk("source", 32 * MIB).unwrap();
    disk.write_noise(0, 8 << 20, 1).unwrap();
    service
        .create(&disk, &["--interval", "6h", "--consistency", "filesystem"])
        .unwrap();
    let job = service.job("web01").unwrap();
    assert_eq!(
        (&job["consistency"], &job["freeze_budget_ms"]),
        (&"filesystem".into(), &200.into())
    );
    let said = service
        .refused(2, &["job", "modify", "web01", "--freeze=off"])
        .unwrap();
    assert!(said.contains("consistency filesystem needs a freeze"), "{said}");
    let untracked = ["job", "modify", "web01", "--tracking", "off"];
    let said = service.refused(2, &untracked).unwrap();
    assert!(said.contains("can never be reached with tracking off"), "{said}");
    let change = ["job", "modify", "web01", "--freeze=off", "--consistency", "crash"];
    service
        .ask(&[&change[..], &["--require-consistency"]].concat())
        .unwrap();

    // Its image is below what it requires: InError, with an image that the next sync builds on.
    let writer = busy_writer(disk.path(), &service.dir.join("fio.log")).unwrap();
    let said = service.refused(1, &["job", "start", "web01", "--wait"]).unwrap();
    assert!(said.contains("at least crash is wanted: vda "), "{said}");
    let job = service.job("web01").unwrap();
    assert_eq!(
        (&job["status"], &job["images"][0]),
        (&"InError".into(), &"web01/1".into()),
        "{job:#}"
    );
    assert_eq!(
        (&job["last_run"]["outcome"], &job["last_run"]["image"]),
        (&"failed".into(), &"web01/1".into())
    );
    drop(writer);
    service.ask(&["job", "start", "web01", "--wait"]).unwrap();
    let runs = service.runs("web01").unwrap();
    assert_eq!(
        (&runs[0]["kind"], &runs[0]["consistency"]),
        (&"incremental".into(), &"crash".into())
    );
    let shown = service.ask(&["job", "show", "web01"]).unwrap();
    assert!(
        shown.contains("at least crash, or the sync fails; the last image is crash"),
        "{shown}"
    );
    service.same_content("web01/2", disk.path()).unwrap();
}
