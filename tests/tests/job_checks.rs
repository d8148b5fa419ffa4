//! Checks of a job's images beside its syncs: they boot, or the reason is reported, and what is damaged in the store is found; no
//! check is in the way of a sync.

use anyhow::{Context, Result};
use serde_json::Value;
use smc_tests::service::Service;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use testkit::process::wait_for;
use vm_tests::disk::BootDisk;
use vm_tests::payload::Payload;

const MIB: u64 = 1 << 20;
/// The kernel's first lines are shown, and a login prompt at the end.
const PARAMETERS: &str = "smc.root=LABEL=smc-root console=ttyS0 panic=-1 smc.login";

/// What the last check of a kind found.
fn last<'a>(job: &'a Value, kind: &str) -> &'a Value {
    &job["checks"][kind]
}

fn found(service: &Service, kind: &str, image: &str) -> Result<Value> {
    let job = service.wait_for("web01", "its check", |job| last(job, kind)["image"] == image)?;
    Ok(last(&job, kind).clone())
}

fn text(check: &Value) -> &str {
    check["text"].as_str().unwrap_or_default()
}

#[test]
fn new_images_are_booted_and_what_does_not_boot_is_a_warning_of_its_job() -> Result<()> {
    let service = Service::new("jobboot")?;
    let disk = service.disk("source", 160 * MIB)?;
    let payload = Payload::collect(&[Path::new("/etc/apt")], MIB)?;
    let mount = service.dir.join("mnt");
    let boot_disk = BootDisk::create(disk.path(), &mount, "monday", &payload)?;
    let root = boot_disk.mount(&mount)?;
    root.set_kernel_parameters(PARAMETERS)?;
    root.unmount()?;
    service.create(&disk, &["--interval", "6h", "--boot-every-images", "1"])?;
    service.ask(&["job", "start", "web01", "--wait"])?;
    let booted = found(&service, "booted", "web01/1")?;
    assert_eq!(booted["good"], true, "{booted:#}");
    assert!(
        text(&booted).starts_with("web01/1 booted: kernel after"),
        "{booted:#}"
    );
    assert!(service.store().join("web01/images/000001.boot").exists());
    assert_eq!(service.job("web01")?["warnings"], Value::Array(Vec::new()));

    // Every second one from now on: the second image, which does not boot, is not looked at, and the third is.
    service.ask(&["job", "modify", "web01", "--boot-every-images", "2"])?;
    disk.write_at(0, &[0; 512])?;
    for _ in 0..2 {
        service.ask(&["job", "sync", "web01", "--wait"])?;
    }
    let booted = found(&service, "booted", "web01/3")?;
    assert_eq!(booted["good"], false, "{booted:#}");
    assert!(text(&booted).contains("the console ended with"), "{booted:#}");
    assert!(!service.store().join("web01/images/000002.boot").exists());
    let job = service.job("web01")?;
    let warning = job["warnings"][0].as_str().unwrap_or_default().to_owned();
    assert!(warning.starts_with("web01/3 did not boot"), "{job:#}");
    let shown = service.ask(&["job", "show", "web01"])?;
    assert!(
        shown.contains("boots one of 2 new images") && shown.contains(&warning),
        "{shown}"
    );
    assert!(
        service.log().contains("web01/3 did not boot"),
        "{}",
        service.log()
    );
    Ok(())
}

/// The processes of smc-image that the daemon has started.
fn checks_running(service: &Service) -> Vec<u32> {
    let Ok(pid) = service.pid() else { return Vec::new() };
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<u32> = children
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect();
    let is_check = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "smc-image")
    };
    children.into_iter().filter(is_check).collect()
}

#[test]
fn a_verification_gives_way_to_syncs_continues_and_finds_damage() -> Result<()> {
    let mut service = Service::with_config("jobverify", "verify_rate = \"4MiB\"")?;
    let disk = service.disk("source", 40 * MIB)?;
    disk.write_noise(0, 40 << 20, 1)?;
    service.create(&disk, &["--interval", "6h", "--verify-every", "7d"])?;
    service.ask(&["job", "start", "web01", "--wait"])?;
    wait_for("the verification", || !checks_running(&service).is_empty());
    // It waits for no check, and no check runs beside it.
    service.ask(&["job", "modify", "web01", "--bandwidth-limit", "16MiB"])?;
    service.ask(&["job", "sync", "web01"])?;
    wait_for("the end of the verification", || {
        checks_running(&service).is_empty()
    });
    wait_for("the end of the sync", || {
        assert!(
            checks_running(&service).is_empty()
                || service.job("web01").is_ok_and(|job| job["status"] != "Running")
        );
        service.job("web01").is_ok_and(|job| job["status"] == "Waiting")
    });
    // One that is killed with the daemon is resumed too.
    wait_for("the verification again", || !checks_running(&service).is_empty());
    let process = checks_running(&service)[0];
    service.kill()?;
    wait_for("the check to be gone", || {
        !Path::new(&format!("/proc/{process}")).exists()
    });
    service.start()?;
    let verified = found(&service, "verified", "web01/2")?;
    assert_eq!(verified["good"], true, "{verified:#}");
    assert!(text(&verified).contains("no damage"), "{verified:#}");

    let layers = service.store().join("web01/layers");
    let layer = fs::read_dir(&layers)?.next().context("a layer")??.path();
    let file = fs::File::options().write(true).open(layer)?;
    file.write_all_at(&[0xa5; 512], 9 * MIB)?;
    service.pass(7 * 86_400 + 1)?;
    let job = service.wait_for("web01", "the damage to be found", |job| {
        last(job, "verified")["good"] == false
    })?;
    assert!(text(last(&job, "verified")).contains("web01/1"), "{job:#}");
    assert!(
        job["warnings"][0].as_str().is_some_and(|text| !text.is_empty()),
        "{job:#}"
    );
    Ok(())
}
