//! Jobs whose disks are tracked, through `smcctl` alone: what a tracker changes for schedules, and that nothing of it stays.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use smc_tests::service::Service;
use smc_tests::truth::tamper;
use smc_tests::{Disk, code, program};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use testkit::process::{run, wait_for};

const MIB: u64 = 1 << 20;

fn tracker(service: &Service) -> Result<Value> {
    let text = service.ask(&["--json", "tracker"])?;
    serde_json::from_str(&text).with_context(|| format!("parse {text}"))
}

fn metrics(service: &Service) -> Result<String> {
    let mut stream = UnixStream::connect(service.dir.join("smcd.sock"))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: smcd\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn sync(service: &Service) -> Result<Value> {
    service.ask(&["job", "sync", "web01", "--wait"])?;
    Ok(service.job("web01")?["last_run"].clone())
}

#[test]
fn a_job_tracks_its_disks_until_it_is_over() -> Result<()> {
    let (mut service, _bpf) = Service::tracking("trackedlife")?;
    let disk = service.disk("source", 24 * MIB)?;
    disk.write_noise(0, 24 << 20, 1)?;
    service.create(&disk, &["--interval", "5m"])?;
    service.ask(&["job", "start", "web01", "--wait"])?;
    disk.write_noise(5 * MIB, 4096, 2)?;
    let job = service.job("web01")?;
    let tracking = &job["disks"][0]["tracking"];
    assert_eq!(
        (&tracking["trusted"], &tracking["dirty_bytes"]),
        (&true.into(), &65536.into()),
        "{job:#}"
    );
    // What the tracker has seen, at the only speed that was measured.
    let forecast = &job["forecast"];
    assert_eq!(
        (&forecast["dirty_bytes"], &forecast["compare_bytes"]),
        (&65536.into(), &65536.into()),
        "{job:#}"
    );
    let first = &job["last_run"]["compare_rate_bytes"];
    assert_eq!(&forecast["compare_rate_bytes"], first, "{job:#}");

    let run = sync(&service)?;
    let forecast = service.job("web01")?["forecast"].clone();
    assert_eq!(
        (&forecast["compare_rate_bytes"], &forecast["dirty_bytes"]),
        (&run["compare_rate_bytes"], &0.into()),
        "{forecast:#}"
    );
    assert_eq!(
        (&run["method"], &run["disks"][0]["method"]),
        (&"tracked".into(), &"tracked".into())
    );
    service.same_content("web01/2", disk.path())?;

    // The tracker outlives smcd; a sync by the schedule, five minutes later.
    service.kill()?;
    disk.write_noise(7 * MIB, 4096, 3)?;
    service.start()?;
    service.pass(301)?;
    let job = service.wait_for("web01", "its next sync", |job| {
        job["status"] == "Waiting" && job["last_run"]["number"] == 3
    })?;
    assert_eq!(job["last_run"]["method"], "tracked", "{job:#}");
    service.same_content("web01/3", disk.path())?;
    let seen = tracker(&service)?;
    assert_eq!(seen["disks"][0]["jobs"][0], "web01", "{seen:#}");
    assert_eq!(code(&service.ctl(&["tracker", "remove"])?), 1, "the job needs it");

    service.ask(&["job", "complete", "web01"])?;
    wait_for("the tracker to be removed", || {
        tracker(&service).is_ok_and(|tracker| tracker["attached"] == false)
    });
    assert!(!service.dir.join("bpf/smc/control").exists());
    Ok(())
}

#[test]
fn canceled_deleted_and_modified_jobs_leave_nothing_in_the_kernel() -> Result<()> {
    let (service, _bpf) = Service::tracking("trackedgone")?;
    let disk = service.disk("source", 4 * MIB)?;
    let pins = service.dir.join("bpf/smc");
    for end in [
        &["cancel", "web01"][..],
        &["delete", "web01"],
        &["delete", "web01", "--purge", "--yes"],
        &["modify", "web01", "--tracking", "off"],
    ] {
        service.create(&disk, &["--interval", "6h"])?;
        service.ask(&["job", "start", "web01", "--wait"])?;
        assert!(pins.join("control").exists(), "{end:?}");
        service.ask(&[&["job"], end].concat())?;
        wait_for("the tracker to be removed", || !pins.join("control").exists());
        // The next one has the name again, and images of its own.
        let _ = service.ctl(&["job", "delete", "web01"])?;
        wait_for("the job to be gone", || service.job("web01").is_err());
        fs::remove_dir_all(service.store().join("web01")).ok();
    }
    Ok(())
}

#[test]
fn short_intervals_need_a_machine_that_can_track() -> Result<()> {
    let service = Service::new("trackedinterval")?;
    let disk = service.disk("source", 4 * MIB)?;
    let device = format!("vda={}", disk.path().display());
    let refused = |more: &[&str]| {
        let create = ["job", "create", "web01", "--disk", &device, "--max-images", "3"];
        service.refused(2, &[&create, more].concat())
    };
    let message = refused(&["--interval", "5m"])?;
    assert!(
        message.contains("only possible where the disks are tracked"),
        "{message}"
    );
    assert!(message.contains("BPF filesystem"), "{message}");
    let message = refused(&["--interval", "5m", "--tracking", "off"])?;
    assert!(
        message.contains("interval 5m is out of range: 1h to 7d"),
        "{message}"
    );
    let message = refused(&["--interval", "59s"])?;
    assert!(message.contains("1m to 7d"), "{message}");
    service.create(&disk, &["--interval", "1h"])
}

/// What happens to a tracker between two syncs of a job.
type Happening = fn(&mut Service, &Disk) -> Result<()>;

fn restart_by(service: &mut Service, by: Vec<String>) -> Result<()> {
    service.terminate()?;
    service.by = by;
    service.start()
}

fn pins(service: &Service) -> PathBuf {
    service.dir.join("bpf/smc")
}

/// Each with the reason that the job tells.
const HAPPENINGS: [(Happening, &str); 8] = [
    (
        |service, _| {
            let by = tamper::in_another_boot(service.dir.path())?;
            restart_by(service, by)
        },
        "the machine was restarted",
    ),
    (
        |service, _| restart_by(service, Vec::new()),
        "the machine was restarted",
    ),
    (
        |service, _| restart_by(service, tamper::after_a_suspend(5)),
        "the machine was suspended",
    ),
    (
        |_, disk| {
            File::options()
                .write(true)
                .open(&disk.backing)?
                .set_len(40 * MIB)?;
            Ok(disk.device.update_size()?)
        },
        "another size than in the image before",
    ),
    (
        |service, _| Ok(fs::remove_file(pins(service).join("link-request_1"))?),
        "only since the last sync began",
    ),
    (
        |service, _| Ok(fs::remove_file(tamper::watch_of(&pins(service))?.join("live"))?),
        "only since the last sync began",
    ),
    (
        |service, _| tamper::change_version(&pins(service)),
        "only since the last sync began",
    ),
    (
        |service, disk| {
            disk.write_noise(200 * 65536, 4096, 77)?;
            tamper::forget_write(&pins(service), 200)
        },
        "had missed writes: 1 of the audited clusters differ",
    ),
];

/// The next sync; where only an audit can find anything, the one in which the turn comes to what there is to find.
fn sync_until_scan(service: &Service, by_audit: bool) -> Result<Value> {
    // The slowest audit reads 4 MiB of 40.
    for _ in 0..if by_audit { 11 } else { 0 } {
        let run = sync(service)?;
        if run["method"] == "scan" {
            return Ok(run);
        }
    }
    sync(service)
}

#[test]
fn whatever_speaks_against_the_tracker_is_told_and_the_sync_after_is_tracked_again() -> Result<()> {
    let (mut service, _bpf) = Service::tracking("trackedtrust")?;
    let disk = service.disk("source", 24 * MIB)?;
    disk.write_noise(0, 24 << 20, 1)?;
    service.create(&disk, &["--interval", "6h"])?;
    service.ask(&["job", "start", "web01", "--wait"])?;
    for (round, (happening, reason)) in (1..).zip(HAPPENINGS) {
        disk.write_noise(round * MIB, 4096, round)?;
        happening(&mut service, &disk)?;
        disk.write_noise(round * MIB + 512 * 1024, 4096, round)?;
        let run = sync_until_scan(&service, reason.contains("audited"))?;
        let told = run["disks"][0]["method_reason"].as_str().unwrap_or_default();
        assert!(
            run["method"] == "scan" && told.contains(reason),
            "{reason}: {run:#}"
        );
        assert!(
            run["dirty_bytes"].as_u64() < Some(18 * MIB),
            "no full copy: {run:#}"
        );
        service.same_content("web01/latest", disk.path())?;
        assert_eq!(
            service.runs("web01")?[0]["disks"],
            run["disks"],
            "the history has it too"
        );
        let shown = service.ask(&["job", "show", "web01"])?;
        assert!(shown.contains(&format!("scanned: {told}")), "{shown}");
        disk.write_noise(round * MIB, 4096, round + 100)?;
        assert_eq!(sync(&service)?["method"], "tracked", "after: {reason}");
        service.same_content("web01/latest", disk.path())?;
    }
    // The last of them was one; images that came later, and another smcd, still tell it.
    let counted = "smc_job_tracker_misses_total{job=\"web01\"} 1\n";
    assert!(metrics(&service)?.contains(counted), "{}", metrics(&service)?);
    service.kill()?;
    service.start()?;
    assert!(metrics(&service)?.contains(counted), "{}", metrics(&service)?);
    Ok(())
}

#[test]
fn a_sync_that_would_read_the_whole_disk_too_soon_is_deferred_and_no_run_at_all() -> Result<()> {
    let (mut service, _bpf) = Service::tracking("trackedrare")?;
    let disk = service.disk("source", 4 * MIB)?;
    service.create(&disk, &["--interval", "5m"])?;
    service.ask(&["job", "start", "web01", "--wait"])?;
    fs::remove_file(pins(&service).join("link-request_0"))?;
    service.pass(301)?;
    let job = service.wait_for("web01", "a deferred sync", |job| {
        job["next"]["deferred"].is_string()
    })?;
    let reason = job["next"]["deferred"].as_str().unwrap_or_default();
    assert!(reason.contains("vda would have to be read completely"), "{job:#}");
    assert_eq!(
        (&job["status"], &job["warnings"]),
        (&"Waiting".into(), &json!([]))
    );
    let left = job["next"]["in_seconds"].as_u64().unwrap_or_default();
    assert!((2000..=3600).contains(&left), "{job:#}");
    assert_eq!(service.runs("web01")?.len(), 1, "what did not run is no run");
    let shown = service.ask(&["job", "show", "web01"])?;
    assert!(shown.contains("deferred") && shown.contains(reason), "{shown}");
    // It outlives smcd, and ends with the sync.
    service.kill()?;
    service.start()?;
    assert_eq!(service.job("web01")?["next"]["deferred"], reason);
    service.pass(left + 1)?;
    let job = service.wait_for("web01", "the deferred sync", |job| {
        job["status"] == "Waiting" && job["last_run"]["number"] == 2
    })?;
    assert_eq!(job["last_run"]["method"], "scan", "{job:#}");
    assert!(job["next"]["deferred"].is_null(), "{job:#}");
    // The user may scan at any time.
    fs::remove_file(pins(&service).join("link-request_0"))?;
    assert_eq!(sync(&service)?["method"], "scan");
    disk.write_noise(0, 4096, 9)?;
    assert_eq!(sync(&service)?["method"], "tracked");
    Ok(())
}

/// Only the store tells that the bits are relative to an image that is gone: by then a run has begun.
#[test]
fn a_run_that_turns_out_to_be_too_soon_is_deferred_and_not_failed() -> Result<()> {
    let (mut service, _bpf) = Service::tracking("trackedlate")?;
    let disk = service.disk("source", 4 * MIB)?;
    service.create(&disk, &["--interval", "5m"])?;
    service.ask(&["job", "start", "web01", "--wait"])?;
    sync(&service)?;
    run(Command::new(program("smc-image"))
        .arg("--store")
        .arg(service.store())
        .args(["rm", "web01/2"]))?;
    service.pass(301)?;
    let job = service.wait_for("web01", "a later sync", |job| {
        job["status"] == "Waiting" && job["last_run"]["number"] == 3
    })?;
    assert_eq!(job["last_run"]["outcome"], "deferred", "{job:#}");
    let reason = job["next"]["deferred"].as_str().unwrap_or_default();
    assert!(reason.contains("another image"), "{job:#}");
    assert_eq!(job["last_run"]["error"], reason);
    assert_eq!(sync(&service)?["method"], "scan");
    Ok(())
}
