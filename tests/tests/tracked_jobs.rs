//! Jobs whose disks are tracked, through `smcctl` alone: what a tracker changes for schedules, and that nothing of it stays.

use anyhow::{Context, Result};
use nix::mount::MsFlags;
use serde_json::Value;
use smc_tests::service::Service;
use smc_tests::{Disk, code};
use std::fs;
use std::path::Path;
use testkit::guard::Mount;
use testkit::process::wait_for;

const MIB: u64 = 1 << 20;

/// A daemon on a machine that can track.
fn tracking_service(name: &str) -> Result<(Service, Mount)> {
    let service = Service::new(name)?;
    let bpf = Mount::new(
        Path::new("bpf"),
        &service.dir.join("bpf"),
        "bpf",
        MsFlags::empty(),
    )?;
    Ok((service, bpf))
}

fn create(service: &Service, disk: &Disk, more: &[&str]) -> Result<()> {
    let device = format!("vda={}", disk.path().display());
    let create = ["job", "create", "web01", "--disk", &device, "--max-images", "3"];
    service.ask(&[&create, more].concat()).map(drop)
}

fn tracker(service: &Service) -> Result<Value> {
    let text = service.ask(&["--json", "tracker"])?;
    serde_json::from_str(&text).with_context(|| format!("parse {text}"))
}

fn sync(service: &Service) -> Result<Value> {
    service.ask(&["job", "sync", "web01", "--wait"])?;
    Ok(service.job("web01")?["last_run"].clone())
}

#[test]
fn a_job_tracks_its_disks_until_it_is_over() -> Result<()> {
    let (mut service, _bpf) = tracking_service("trackedlife")?;
    let disk = service.disk("source", 24 * MIB)?;
    disk.write_noise(0, 24 << 20, 1)?;
    create(&service, &disk, &["--interval", "5m"])?;
    service.ask(&["job", "start", "web01", "--wait"])?;
    disk.write_noise(5 * MIB, 4096, 2)?;
    let job = service.job("web01")?;
    let tracking = &job["disks"][0]["tracking"];
    assert_eq!(
        (&tracking["trusted"], &tracking["dirty_bytes"]),
        (&true.into(), &65536.into()),
        "{job:#}"
    );

    let run = sync(&service)?;
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
    let (service, _bpf) = tracking_service("trackedgone")?;
    let disk = service.disk("source", 4 * MIB)?;
    let pins = service.dir.join("bpf/smc");
    for end in [
        &["cancel", "web01"][..],
        &["delete", "web01"],
        &["delete", "web01", "--purge", "--yes"],
        &["modify", "web01", "--tracking", "off"],
    ] {
        create(&service, &disk, &["--interval", "6h"])?;
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
    create(&service, &disk, &["--interval", "1h"])
}

#[test]
fn a_tracker_that_is_not_trusted_does_not_have_the_disk_read_every_few_minutes() -> Result<()> {
    let (mut service, _bpf) = tracking_service("trackedrare")?;
    let disk = service.disk("source", 4 * MIB)?;
    create(&service, &disk, &["--interval", "5m"])?;
    service.ask(&["job", "start", "web01", "--wait"])?;
    fs::remove_file(service.dir.join("bpf/smc/link-request_0"))?;
    service.pass(301)?;
    let job = service.wait_for("web01", "a later sync", |job| {
        job["status"] == "Waiting" && job["last_run"]["number"] == 2
    })?;
    let error = job["last_run"]["error"].as_str().unwrap_or_default();
    assert!(error.contains("vda would have to be read completely"), "{job:#}");
    let left = job["next"]["in_seconds"].as_u64().unwrap_or_default();
    assert!((2000..=3600).contains(&left), "{job:#}");
    // The user may.
    assert_eq!(sync(&service)?["method"], "scan");
    disk.write_noise(0, 4096, 9)?;
    assert_eq!(sync(&service)?["method"], "tracked");
    Ok(())
}
