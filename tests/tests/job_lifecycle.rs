//! The lifecycle of a job through `smcctl` alone: with a test clock, real syncs of a loop device, and kills.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smc_tests::crash::{Kind, StoreFs};
use smc_tests::lifecycle::Lifecycle;
use smc_tests::service::Service;
use smc_tests::{busy_writer, code, program, stderr};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use testkit::guard::{ScratchDir, SilentMount};
use testkit::process::{PATIENCE, Server, wait_for, wait_until};
use testkit::requests::Requests;

const MIB: u64 = 1 << 20;
const HOUR: u64 = 3600;

fn images(job: &Value) -> Vec<&str> {
    let images = job["images"].as_array().map(Vec::as_slice).unwrap_or_default();
    images.iter().filter_map(Value::as_str).collect()
}

/// Lets one interval pass and waits for the sync that it leads to.
fn next_sync(service: &mut Service, seconds: u64, runs: usize) -> Result<Value> {
    service.pass(seconds)?;
    service.wait_for("web01", "its next sync", |job| {
        job["status"] == "Waiting" && job["last_run"]["number"] == runs
    })
}

#[test]
fn a_whole_lifecycle_through_smcctl() -> Result<()> {
    let mut service = Service::new("lifecycle")?;
    let disk = service.disk("source", 64 * MIB)?;
    disk.write_noise(0, 40 << 20, 1)?;
    service.create(&disk, &["--interval", "6h", "--description", "the web server"])?;
    // The full sync, while fio writes.
    let busy = busy_writer(disk.path(), &service.dir.join("fio.log"))?;
    service.ask(&["job", "start", "web01", "--wait"])?;
    let job = service.wait_status("web01", "Waiting")?;
    assert_eq!(job["last_run"]["consistency"], "fuzzy", "{job:#}");
    drop(busy);
    // Nothing happens before the interval has passed, and one sync when it has.
    service.pass_and_look(6 * HOUR - 60)?;
    assert_eq!(service.runs("web01")?.len(), 1);
    disk.write_noise(3 * MIB, 1 << 20, 2)?;
    let job = next_sync(&mut service, 61, 2)?;
    assert_eq!(job["last_run"]["run_type"], "schedule");
    assert_eq!(images(&job), ["web01/1", "web01/2"]);
    service.same_content("web01/2", disk.path())?;

    // A changed interval counts one sync later; both are shown until then.
    service.ask(&["job", "modify", "web01", "--interval", "1h"])?;
    let job = service.job("web01")?;
    assert_eq!(job["interval_seconds"], 6 * HOUR);
    assert_eq!(job["pending"]["interval_seconds"], HOUR);
    service.pass_and_look(HOUR + 1)?;
    assert_eq!(service.runs("web01")?.len(), 2, "the old interval still counts");
    let job = next_sync(&mut service, 5 * HOUR, 3)?;
    assert_eq!(job["interval_seconds"], HOUR);
    assert_eq!(job["pending"]["interval_seconds"], Value::Null);

    // The earliest image is being served: the next one goes in its place.
    let socket = service.dir.join("nbd.sock");
    let mut serve = Command::new(program("smc-image"));
    serve
        .arg("--store")
        .arg(service.store())
        .args(["serve", "web01/1", "--socket"])
        .arg(&socket);
    let server = Server::start_on_socket(&mut serve, &socket, &service.dir.join("nbd.log"))?;
    disk.write_noise(9 * MIB, 1 << 20, 3)?;
    let job = next_sync(&mut service, HOUR + 1, 4)?;
    assert_eq!(images(&job), ["web01/1", "web01/3", "web01/4"], "{job:#}");
    let warnings = job["warnings"].to_string();
    ensure!(warnings.contains("in use by smc-image"), "{warnings}");
    let exports = service.ask(&["exports"])?;
    ensure!(exports.contains("web01/1"), "{exports}");
    drop(server);
    disk.write_noise(11 * MIB, 1 << 20, 4)?;
    let job = next_sync(&mut service, HOUR + 1, 5)?;
    assert_eq!(images(&job), ["web01/3", "web01/4", "web01/5"]);

    stop_and_start(&service, &disk)?;

    // The last sync, and what comes after it.
    disk.write_noise(20 * MIB, 1 << 20, 5)?;
    service.ask(&["job", "complete", "web01", "--last-sync", "--wait"])?;
    let job = service.wait_status("web01", "Finished")?;
    service.same_content("web01/latest", disk.path())?;
    assert_eq!(images(&job).len(), 3);
    let refusal = service.refused(1, &["job", "sync", "web01"])?;
    ensure!(refusal.contains("job web01 is Finished"), "{refusal}");
    service.pass_and_look(48 * HOUR)?;
    assert_eq!(service.job("web01")?["status"], "Finished");

    // A new job continues with its newest image.
    let device = format!("vda={}", disk.path().display());
    service.ask(&[
        "job",
        "create",
        "web02",
        "--disk",
        &device,
        "--interval",
        "1h",
        "--max-images",
        "2",
        "--take-up",
        "web01",
    ])?;
    disk.write_noise(30 * MIB, 1 << 20, 6)?;
    service.ask(&["job", "start", "web02", "--wait"])?;
    let job = service.wait_status("web02", "Waiting")?;
    assert_eq!(job["last_run"]["kind"], "incremental", "{job:#}");
    ensure!(job["last_run"]["dirty_bytes"].as_u64() < Some(4 * MIB), "{job:#}");
    service.same_content("web02/latest", disk.path())?;
    service.verify()
}

/// A sync is stopped in the middle, and resumed.
fn stop_and_start(service: &Service, disk: &smc_tests::Disk) -> Result<()> {
    disk.write_noise(0, 32 << 20, 7)?;
    service.ask(&["job", "modify", "web01", "--bandwidth-limit", "2MiB"])?;
    service.ask(&["job", "sync", "web01"])?;
    service.wait_for("web01", "the middle of a sync", |job| {
        job["progress"]["stored_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 2 * MIB)
    })?;
    service.ask(&["job", "stop", "web01", "--wait"])?;
    let job = service.wait_status("web01", "Stopped")?;
    assert_eq!(job["last_run"]["outcome"], "stopped");
    service.ask(&["job", "modify", "web01", "--bandwidth-limit", "0"])?;
    service.ask(&["job", "start", "web01", "--wait"])?;
    let job = service.wait_status("web01", "Waiting")?;
    assert_eq!(job["last_run"]["resumed"], true, "{job:#}");
    service.same_content("web01/latest", disk.path())
}

#[test]
fn kills_at_random_moments_change_nothing() -> Result<()> {
    for seed in [1, 2] {
        let mut cycle = Lifecycle::new("lifecycle-kills", seed)?;
        cycle.run(12).with_context(|| format!("seed {seed}"))?;
        println!(
            "seed {seed}: {} kills, {} of them in a sync",
            cycle.kills, cycle.in_sync
        );
    }
    Ok(())
}

/// A job whose full sync takes a minute, once it has begun to read.
fn slow_sync(service: &Service) -> Result<smc_tests::Disk> {
    let disk = service.disk("source", 64 * MIB)?;
    disk.write_noise(0, 64 << 20, 1)?;
    service.create(
        &disk,
        &["--interval", "6h", "--bandwidth-limit", "1MiB", "--start"],
    )?;
    service.wait_for("web01", "the middle of a sync", |job| {
        job["progress"]["stored_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > MIB)
    })?;
    Ok(disk)
}

#[test]
fn sigterm_keeps_what_was_stored_and_a_restart_goes_on() -> Result<()> {
    let mut service = Service::new("lifecycle-term")?;
    let disk = slow_sync(&service)?;
    service.terminate()?;
    ensure!(
        service.store().join("web01/checkpoint.json").exists(),
        "{}",
        service.log()
    );
    service.start()?;
    let job = service.job("web01")?;
    assert_eq!(job["status"], "Running");
    service.ask(&["job", "modify", "web01", "--bandwidth-limit", "0"])?;
    let job = service.wait_status("web01", "Waiting")?;
    assert_eq!(job["last_run"]["resumed"], true);
    let outcomes: Vec<Value> = service
        .runs("web01")?
        .iter()
        .map(|run| run["outcome"].clone())
        .collect();
    assert_eq!(outcomes, ["succeeded", "interrupted"]);
    service.same_content("web01/latest", disk.path())
}

#[test]
fn a_limit_or_priority_that_is_changed_reaches_the_sync_that_runs() -> Result<()> {
    let service = Service::new("lifecycle-pace")?;
    let disk = slow_sync(&service)?;
    let requests = Requests::record(&disk.device)?;
    for (priority, shown) in [("idle", "idle,0,0"), ("best-effort:7", "be,0,7")] {
        let job = service.ask(&["job", "modify", "web01", "--io-priority", priority])?;
        ensure!(job.contains(&format!("with I/O priority {priority}")), "{job}");
        if let Some(requests) = &requests {
            wait_for(&format!("a read with {shown}"), || {
                requests.read_bytes().is_ok_and(|read| read.contains_key(shown))
            });
        }
    }
    // The rest would take longer than anybody waits here.
    service.ask(&["job", "modify", "web01", "--bandwidth-limit", "64KiB"])?;
    service.ask(&["job", "modify", "web01", "--bandwidth-limit", "0"])?;
    service.wait_status("web01", "Waiting")?;
    service.same_content("web01/latest", disk.path())
}

#[test]
fn a_cancel_in_the_middle_leaves_nothing_but_images() -> Result<()> {
    let service = Service::new("lifecycle-cancel")?;
    let _disk = slow_sync(&service)?;
    let refusal = service.refused(1, &["job", "delete", "web01"])?;
    ensure!(refusal.contains("job web01 is Running"), "{refusal}");
    service.ask(&["job", "cancel", "web01", "--wait"])?;
    let job = service.wait_status("web01", "Canceled")?;
    assert_eq!(images(&job), [""; 0]);
    let checkpoint = service.store().join("web01/checkpoint.json");
    wait_until(PATIENCE, || !checkpoint.exists())?;
    service.ask(&["job", "delete", "web01"])?;
    let refusal = service.refused(1, &["job", "show", "web01"])?;
    ensure!(refusal.contains("there is no job web01"), "{refusal}");
    Ok(())
}

#[test]
fn a_full_store_is_in_error_until_there_is_room() -> Result<()> {
    // The daemon goes first, then the filesystem that its store lies on.
    let dir = ScratchDir::new("lifecycle-full-store")?;
    let filesystem = StoreFs::new(&dir, Kind::Ext4, 96 * MIB)?;
    let service = Service::new("lifecycle-full")?;
    let disk = service.disk("source", 48 * MIB)?;
    disk.write_noise(0, 48 << 20, 1)?;
    let filler = filesystem.fill(24 * MIB)?;
    let store = filesystem.path().join("store").display().to_string();
    service.create(&disk, &["--store", &store, "--interval", "6h"])?;
    let output = service.ctl(&["job", "start", "web01", "--wait"])?;
    assert_eq!(code(&output), 1);
    ensure!(stderr(&output).contains("No space left"), "{}", stderr(&output));
    let job = service.wait_status("web01", "InError")?;
    ensure!(
        job["error"]
            .as_str()
            .is_some_and(|error| error.contains("No space left")),
        "{job:#}"
    );
    fs::remove_file(filler)?;
    service.ask(&["job", "start", "web01", "--wait"])?;
    let job = service.wait_status("web01", "Waiting")?;
    assert_eq!(
        job["last_run"]["resumed"], true,
        "what was stored is not stored again: {job:#}"
    );
    drop(service);
    Ok(())
}

/// A daemon whose state lies on a small filesystem of its own.
fn with_small_state(name: &str, filesystem: &StoreFs) -> Result<Service> {
    let mut service = Service::new(name)?;
    service.terminate()?;
    let state = service.dir.join("state");
    fs::remove_dir_all(&state)?;
    let small = filesystem.path().join("state");
    fs::create_dir(&small)?;
    std::os::unix::fs::symlink(small, state)?;
    service.start()?;
    Ok(service)
}

/// From now on a post hook waits for a file: the sync is then between its image and the record of it. Returns the file.
fn hold_in_post_hook(service: &Service) -> Result<PathBuf> {
    let (hook, file) = (service.dir.join("hooks.d/wait"), service.dir.join("go"));
    let script = format!(
        "#!/bin/sh\n[ $1 = pre ] || while [ ! -e {} ]; do sleep 0.02; done\n",
        file.display()
    );
    fs::write(&hook, script)?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    Ok(file)
}

#[test]
fn a_full_state_directory_ends_no_running_sync_and_loses_nothing() -> Result<()> {
    // The daemon goes first, then the filesystem that its state lies on.
    let dir = ScratchDir::new("lifecycle-full-state-fs")?;
    let filesystem = StoreFs::new(&dir, Kind::Ext4, 16 * MIB)?;
    let mut service = with_small_state("lifecycle-full-state", &filesystem)?;
    let file = hold_in_post_hook(&service)?;
    let disk = service.disk("source", 4 * MIB)?;
    service.create(&disk, &["--interval", "6h", "--start"])?;
    service.wait_for("web01", "its post hook", |job| {
        job["progress"]["phase"] == "Cleaning"
    })?;

    let filler = filesystem.fill(0)?;
    let refusal = service.refused(1, &["job", "modify", "web01", "--bandwidth-limit", "1MiB"])?;
    let state = service.dir.join("state").display().to_string();
    ensure!(
        refusal.contains(&format!(
            "there is no space left for the state in {state}: free space"
        )),
        "{refusal}"
    );
    fs::write(&file, "")?;
    let job = service.wait_status("web01", "Waiting")?;
    assert_eq!(images(&job), ["web01/1"]);
    ensure!(
        job["warnings"]
            .to_string()
            .contains("no space left for the state"),
        "{job:#}"
    );
    ensure!(
        service.ask(&["status"])?.contains("no space left for the state"),
        "status says nothing"
    );
    let refusal = service.refused(1, &["job", "sync", "web01"])?;
    ensure!(refusal.contains("no space left for the state"), "{refusal}");

    fs::remove_file(filler)?;
    // The scheduler tries again a minute later.
    service.pass(60)?;
    service.wait_for("web01", "no warning", |job| {
        job["warnings"].as_array().is_some_and(Vec::is_empty)
    })?;
    service.kill()?;
    service.start()?;
    let runs = service.runs("web01")?;
    assert_eq!(runs.len(), 1, "{runs:?}");
    assert_eq!(runs[0]["outcome"], "succeeded");
    service.ask(&["job", "sync", "web01", "--wait"])?;
    assert_eq!(
        images(&service.wait_status("web01", "Waiting")?),
        ["web01/1", "web01/2"]
    );
    drop(service);
    Ok(())
}

/// `web01` in a store of its own, which goes silent, and `db` in the usual one.
fn two_stores(service: &Service, own_store: &Path) -> Result<[smc_tests::Disk; 2]> {
    let disks = [
        service.disk("silent-source", 4 * MIB)?,
        service.disk("source", 4 * MIB)?,
    ];
    let own_store = own_store.display().to_string();
    for (name, disk, more) in [
        ("web01", &disks[0], &["--store", &own_store][..]),
        ("db", &disks[1], &[]),
    ] {
        let device = format!("vda={}", disk.path().display());
        let create = [
            "job",
            "create",
            name,
            "--disk",
            &device,
            "--interval",
            "6h",
            "--max-images",
            "3",
        ];
        service.ask(&[&create, more].concat())?;
        service.ask(&["job", "start", name, "--wait"])?;
    }
    Ok(disks)
}

/// Lists show both jobs, and the job whose store answers syncs.
fn others_go_on(service: &Service, run: u64) -> Result<()> {
    let listed = service.ask(&["job", "ls"])?;
    ensure!(listed.contains("web01") && listed.contains("db"), "{listed}");
    service.ask(&["status"])?;
    service.ask(&["exports"])?;
    assert_eq!(images(&service.job("web01")?), ["web01/1"]);
    service.ask(&["job", "sync", "db", "--wait"])?;
    let db = service.wait_status("db", "Waiting")?;
    assert_eq!(db["last_run"]["number"], run);
    assert_eq!(service.job("web01")?["status"], "Running");
    Ok(())
}

#[test]
fn a_store_that_never_answers_holds_up_neither_the_start_nor_other_jobs() -> Result<()> {
    let dir = ScratchDir::new("lifecycle-silent-store")?;
    let store = dir.join("store");
    // The syncs of a store that does not answer are waited for at the end.
    let mut service = Service::with_config("lifecycle-silent", "stop_timeout = \"1s\"")?;
    let disks = two_stores(&service, &store)?;
    let silent = SilentMount::over(&store)?;
    service.ask(&["job", "sync", "web01"])?;
    others_go_on(&service, 2)?;
    let silence = format!("store {} has not answered for ", store.display());
    wait_until(PATIENCE, || {
        service
            .ask(&["job", "show", "web01"])
            .is_ok_and(|shown| shown.contains(&silence))
    })?;
    assert_eq!(service.job("web01")?["progress"]["phase"], "Preparing");
    ensure!(
        service.ask(&["status"])?.contains(&silence),
        "status does not name the store"
    );
    let disk = disks[0].path().display().to_string();
    let refusal = service.refused(
        1,
        &[
            "estimate",
            "--disk",
            &disk,
            "--store",
            &store.display().to_string(),
        ],
    )?;
    ensure!(refusal.contains("did not answer"), "{refusal}");
    service.terminate()?;

    service.start()?;
    others_go_on(&service, 3)?;
    service.kill()?;
    service.start()?;
    others_go_on(&service, 4)?;
    service.ask(&["job", "stop", "web01"])?;
    service.terminate()?;
    service.start()?;
    service.wait_status("web01", "Stopped")?;
    drop(silent);
    service.ask(&["job", "start", "web01", "--wait"])?;
    service.wait_status("web01", "Waiting")?;
    service.terminate()
}

#[test]
fn two_daemons_do_not_share_a_state_and_a_stale_socket_is_replaced() -> Result<()> {
    let mut service = Service::new("lifecycle-two")?;
    let second = |config: &Path| {
        Command::new(program("smcd"))
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .output()
    };
    let output = second(&service.dir.join("smcd.toml"))?;
    assert_eq!(code(&output), 1);
    ensure!(stderr(&output).contains("another smcd"), "{}", stderr(&output));
    service.ask(&["status"])?;
    service.kill()?;
    ensure!(
        service.dir.join("smcd.sock").exists(),
        "it was killed and could not remove it"
    );
    service.start()?;
    service.ask(&["status"])?;
    let mode = fs::metadata(service.dir.join("smcd.sock"))?;
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
        0o600
    );
    Ok(())
}

#[test]
fn a_wrong_configuration_starts_nothing() -> Result<()> {
    let service = Service::new("lifecycle-config")?;
    let wrong = service.dir.join("wrong.toml");
    fs::write(&wrong, "store = '/srv'\nstop_timeout = 'soon'\n")?;
    for more in [&["--check-config"][..], &[]] {
        let output = Command::new(program("smcd"))
            .arg("--config")
            .arg(&wrong)
            .args(more)
            .stdin(Stdio::null())
            .output()?;
        assert_eq!(code(&output), 2, "{output:?}");
        ensure!(
            stderr(&output).contains("wrong.toml:2: stop_timeout"),
            "{}",
            stderr(&output)
        );
    }
    let output = Command::new(program("smcd"))
        .arg("--config")
        .arg(service.dir.join("smcd.toml"))
        .arg("--check-config")
        .output()?;
    assert_eq!(code(&output), 0, "{output:?}");
    Ok(())
}
