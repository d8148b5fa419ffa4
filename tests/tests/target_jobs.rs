//! Jobs of the service whose images go to a target: their whole life through `smcctl` alone, and what happens while the target is away.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smc_tests::Disk;
use smc_tests::service::Service;
use smc_tests::target::{Source, Target};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use testkit::guard::Mount;

const MIB: u64 = 1 << 20;
const HOUR: u64 = 3600;

/// A service whose machine is enrolled at a target, with a disk.
struct Scene {
    target: Target,
    source: Source,
    disk: Disk,
    service: Service,
    _bpf: Mount,
}

impl Scene {
    fn new(name: &str) -> Result<Scene> {
        let target = Target::new(&format!("{name}-target"), "")?;
        let (service, bpf) = Service::tracking(name)?;
        let source = target.enrol_in("web01", target.address, &service.dir.join("state/targets"), &[])?;
        let disk = service.disk("source", 64 * MIB)?;
        disk.write_noise(3 * MIB, 16 << 20, 1)?;
        Ok(Scene {
            target,
            source,
            disk,
            service,
            _bpf: bpf,
        })
    }

    fn create(&self, more: &[&str]) -> Result<()> {
        let device = format!("vda={}", self.disk.path().display());
        let create = ["job", "create", "web01", "--disk", &device, "--target", "backup"];
        self.service.ask(&[&create, more].concat()).map(drop)
    }

    /// Hooks that write down when they run, and where the images go.
    fn hooks(&self) -> Result<[String; 2]> {
        let hook = |stage: &str| -> Result<String> {
            let (path, log) = (self.service.dir.join(stage), self.service.dir.join("hooks.log"));
            let text = format!(
                "#!/bin/sh\necho {stage} $SMC_TARGET$SMC_STORE $SMC_OUTCOME >> '{}'\n",
                log.display()
            );
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            Ok(path.display().to_string())
        };
        Ok([hook("pre")?, hook("post")?])
    }

    fn hooked(&self) -> Vec<String> {
        let log = fs::read_to_string(self.service.dir.join("hooks.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// A slow sync, once the target has made something of it durable.
    fn slow_sync(&self, seed: u64) -> Result<()> {
        self.disk.write_noise(20 * MIB, 24 << 20, seed)?;
        self.service
            .ask(&["job", "modify", "web01", "--send-limit", "6MiB"])?;
        self.service.ask(&["job", "sync", "web01"])?;
        self.service.wait_for("web01", "something durable", |job| {
            job["progress"]["transfer"]["durable_bytes"].as_u64() > Some(MIB)
        })?;
        Ok(())
    }

    fn wait_until_it_waits(&self) -> Result<Value> {
        self.service.wait_for("web01", "waiting for its target", |job| {
            job["status"] == "Running" && job["progress"]["waiting_for_target"].is_object()
        })
    }
}

fn images(job: &Value) -> Vec<&str> {
    let images = job["images"].as_array().map(Vec::as_slice).unwrap_or_default();
    images.iter().filter_map(Value::as_str).collect()
}

#[test]
fn a_job_with_a_target_lives_as_any_other_and_waits_for_its_target() -> Result<()> {
    let mut scene = Scene::new("target-jobs")?;
    let [pre, post] = scene.hooks()?;
    scene.create(&["--interval", "6h", "--pre-hook", &pre, "--post-hook", &post])?;
    scene.service.ask(&["job", "start", "web01", "--wait"])?;
    let job = scene.service.wait_status("web01", "Waiting")?;
    assert_eq!(images(&job), ["web01/1"], "{job:#}");
    assert_eq!(
        (&job["target"], &job["store"]),
        (&Value::from("backup"), &Value::Null)
    );
    let run = &job["last_run"];
    ensure!(run["transfer"]["sent_bytes"].as_u64() > Some(15 * MIB), "{run:#}");
    scene.source.check("web01/1", scene.disk.path())?;

    // By the schedule, and by the tracker.
    scene.disk.write_noise(50 * MIB, 1 << 20, 2)?;
    scene.service.pass(6 * HOUR + 1)?;
    let second = |job: &Value| job["status"] == "Waiting" && job["last_run"]["number"] == 2;
    let job = scene.service.wait_for("web01", "its next sync", second)?;
    assert_eq!(job["last_run"]["method"], "tracked", "{job:#}");
    ensure!(
        job["last_run"]["transfer"]["sent_bytes"].as_u64() < Some(4 * MIB),
        "{job:#}"
    );
    scene.source.check("web01/2", scene.disk.path())?;

    // The target is killed in the middle of the third sync, which waits and goes on.
    scene.slow_sync(3)?;
    scene.target.kill();
    let job = scene.wait_until_it_waits()?;
    let reason = job["progress"]["waiting_for_target"]["reason"].to_string();
    ensure!(reason.contains("cannot be reached"), "{reason}");
    let list = scene.service.ask(&["job", "ls"])?;
    ensure!(list.contains("waits for its target since"), "{list}");
    scene.target.start()?;
    scene
        .service
        .ask(&["job", "modify", "web01", "--send-limit", "unlimited"])?;
    let third = |job: &Value| job["status"] == "Waiting" && images(job).len() == 3;
    let job = scene.service.wait_for("web01", "the third image", third)?;
    let run = &job["last_run"];
    assert_eq!(
        (&run["number"], &run["resumed"]),
        (&Value::from(3), &Value::from(true)),
        "{run:#}"
    );
    ensure!(run["transfer"]["waited_seconds"].as_f64() > Some(0.0), "{run:#}");
    scene.source.check("web01/latest", scene.disk.path())?;

    // Whatever the pre hook has stopped went on meanwhile.
    let hooked = scene.hooked();
    assert_eq!(
        hooked,
        [
            "pre backup",
            "post backup succeeded",
            "pre backup",
            "post backup succeeded",
            "pre backup",
            "post backup interrupted",
            "pre backup",
            "post backup succeeded"
        ]
    );

    scene.disk.write_noise(10 * MIB, 1 << 20, 4)?;
    scene
        .service
        .ask(&["job", "complete", "web01", "--last-sync", "--wait"])?;
    let job = scene.service.wait_status("web01", "Finished")?;
    assert_eq!(images(&job).len(), 4);
    scene.source.check("web01/latest", scene.disk.path())?;
    assert_eq!(scene.service.runs("web01")?.len(), 4);
    let refusal = scene
        .service
        .refused(2, &["job", "delete", "web01", "--purge", "--yes"])?;
    ensure!(refusal.contains("where no source can delete them"), "{refusal}");
    scene.service.ask(&["job", "delete", "web01"])?;
    scene.source.check("web01/latest", scene.disk.path())
}

#[test]
fn a_wait_survives_smcd_and_ends_at_once_when_the_job_is_stopped() -> Result<()> {
    let mut scene = Scene::new("target-wait")?;
    scene.create(&["--interval", "6h"])?;
    scene.service.ask(&["job", "start", "web01", "--wait"])?;
    scene.target.kill();
    scene.service.ask(&["job", "sync", "web01"])?;
    scene.wait_until_it_waits()?;
    scene.service.kill()?;
    scene.service.start()?;
    scene.wait_until_it_waits()?;
    // It does not wait for the next try.
    scene.service.ask(&["job", "stop", "web01", "--wait"])?;
    let job = scene.service.wait_status("web01", "Stopped")?;
    assert_eq!(job["last_run"]["outcome"], "stopped", "{job:#}");
    scene.service.ask(&["job", "start", "web01"])?;
    scene.wait_until_it_waits()?;
    scene.service.terminate()?;
    scene.target.start()?;
    scene.service.start()?;
    let job = scene.service.wait_status("web01", "Waiting")?;
    assert_eq!(images(&job), ["web01/1", "web01/2"], "{job:#}");
    scene.source.check("web01/2", scene.disk.path())?;

    // What is canceled leaves nothing on the target that nobody needs.
    scene.slow_sync(5)?;
    let checkpoint = scene.target.store("web01").join("web01/checkpoint.json");
    ensure!(checkpoint.exists(), "nothing is unfinished");
    scene.service.ask(&["job", "cancel", "web01", "--wait"])?;
    testkit::process::wait_for("the unfinished sync is dropped", || !checkpoint.exists());
    Ok(())
}

#[test]
fn a_target_that_is_busy_is_waited_for_before_anything_is_stopped() -> Result<()> {
    let mut scene = Scene::new("target-busy")?;
    scene.target.configure("max_syncs = 1\nsession_timeout = '6s'")?;
    scene.target.kill();
    scene.target.start()?;
    let other = scene.target.enrol("web02", scene.target.address)?;
    let mut command = other.sync_command(
        scene.disk.path(),
        &["--send-limit", "1MiB", "--checkpoint-every", "0"],
    );
    let mut running = testkit::process::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
    let checkpoint = scene.target.store("web02").join("web/checkpoint.json");
    testkit::process::wait_for("another source syncs", || checkpoint.exists());
    let [pre, post] = scene.hooks()?;
    scene.create(&["--interval", "6h", "--pre-hook", &pre, "--post-hook", &post])?;
    scene.service.ask(&["job", "start", "web01"])?;
    let job = scene.wait_until_it_waits()?;
    let reason = job["progress"]["waiting_for_target"]["reason"].to_string();
    ensure!(reason.contains("the target is busy"), "{reason}");
    ensure!(scene.hooked().is_empty(), "{:?}", scene.hooked());
    running.kill()?;
    running.wait()?;
    let job = scene.service.wait_status("web01", "Waiting")?;
    assert_eq!(images(&job), ["web01/1"], "{job:#}");
    assert_eq!(scene.hooked(), ["pre backup", "post backup succeeded"]);
    Ok(())
}

#[test]
fn two_servers_with_a_job_of_one_name_have_a_chain_each() -> Result<()> {
    let scene = Scene::new("target-names")?;
    scene.create(&["--once"])?;
    let other = Service::new("target-names-2")?;
    let source = scene.target.enrol_in(
        "web02",
        scene.target.address,
        &other.dir.join("state/targets"),
        &[],
    )?;
    let disk = other.disk("source", 8 * MIB)?;
    disk.write_noise(MIB, 2 << 20, 9)?;
    let device = format!("vda={}", disk.path().display());
    other.ask(&[
        "job", "create", "web01", "--disk", &device, "--target", "backup", "--once",
    ])?;
    for service in [&scene.service, &other] {
        service.ask(&["job", "start", "web01", "--wait"])?;
        service.wait_status("web01", "Finished")?;
    }
    scene.source.check("web01/1", scene.disk.path())?;
    source.check("web01/1", disk.path())
}

#[test]
fn what_does_not_go_with_a_target_is_refused_with_the_way_to_go_on() -> Result<()> {
    let mut scene = Scene::new("target-refusals")?;
    let device = format!("vda={}", scene.disk.path().display());
    let create = ["job", "create", "web01", "--disk", &device];
    let refused = |code: i32, more: &[&str], what: &str| -> Result<()> {
        let said = scene.service.refused(code, &[&create, more].concat())?;
        ensure!(said.contains(what), "{more:?}: {said}");
        Ok(())
    };
    refused(
        2,
        &["--target", "nowhere", "--once"],
        "there is no target \"nowhere\"",
    )?;
    refused(2, &["--target", "../x", "--once"], "target")?;
    refused(
        2,
        &["--target", "backup", "--interval", "1h", "--max-images", "3"],
        "decides itself how many images it keeps",
    )?;
    refused(
        2,
        &["--target", "backup", "--once", "--take-over"],
        "take_over is about a store",
    )?;
    refused(
        2,
        &["--target", "backup", "--once", "--verify-every", "7d"],
        "check them there",
    )?;
    refused(
        1,
        &["--target", "backup", "--once", "--take-up", "web01"],
        "has no images to continue",
    )?;

    refused(
        2,
        &[
            "--target",
            "backup",
            "--once",
            "--send-limit",
            "20MiB, 25:00-6:00 1MiB",
        ],
        "25:00-6:00",
    )?;

    scene.create(&[
        "--interval",
        "1h",
        "--send-limit",
        "200MiB, 22:00-06:00 unlimited",
    ])?;
    assert_eq!(
        scene.service.job("web01")?["send_limit"],
        "200MiB, 22:00-06:00 unlimited"
    );
    scene.service.ask(&["job", "start", "web01", "--wait"])?;
    let said = scene
        .service
        .refused(2, &["job", "modify", "web01", "--max-images", "3"])?;
    ensure!(said.contains("decides itself"), "{said}");
    let said = scene
        .service
        .refused(2, &["job", "complete", "web01", "--last-sync", "--verify"])?;
    ensure!(said.contains("run `smc-image verify` there"), "{said}");

    // Another job does not continue these images by chance, and one that is to does.
    scene.service.ask(&["job", "complete", "web01"])?;
    scene.service.ask(&["job", "delete", "web01"])?;
    let said = scene
        .service
        .refused(1, &[&create[..], &["--target", "backup", "--once"]].concat())?;
    ensure!(said.contains("target backup has images of a job web01"), "{said}");
    scene.create(&["--once", "--take-up", "web01"])?;
    scene.service.ask(&["job", "start", "web01", "--wait"])?;
    let job = scene.service.wait_status("web01", "Finished")?;
    assert_eq!(job["last_run"]["kind"], "incremental", "{job:#}");

    // A machine that has lost its rights does not wait for them.
    testkit::process::run(&mut scene.target.command(&["revoke", "web01"]))?;
    scene.service.ask(&["job", "delete", "web01"])?;
    let said = scene
        .service
        .refused(1, &[&create[..], &["--target", "backup", "--once"]].concat())?;
    ensure!(said.contains("not enrolled here (any more)"), "{said}");
    scene.target.kill();
    let said = scene
        .service
        .refused(1, &[&create[..], &["--target", "backup", "--once"]].concat())?;
    ensure!(said.contains("cannot be reached"), "{said}");
    Ok(())
}

#[test]
fn a_target_is_made_known_looked_at_and_forgotten_through_smcctl() -> Result<()> {
    let mut target = Target::new("target-known", "")?;
    let service = Service::new("target-known-1")?;
    let disk = service.disk("source", 16 * MIB)?;
    let address = target.address.to_string();
    let line = testkit::process::run(&mut target.command(&["enrol", "web01", "--address", &address]))?;
    let said = service.ask(&["target", "add", "backup", line.trim()])?;
    ensure!(said.contains("source web01 of target backup"), "{said}");
    let said = service.refused(2, &["target", "add", "backup", line.trim()])?;
    ensure!(said.contains("already"), "{said}");
    service.refused(2, &["target", "add", "../x", line.trim()])?;
    service.refused(2, &["target", "add", "other", "smc-store:x"])?;
    let device = format!("vda={}", disk.path().display());
    service.ask(&[
        "job",
        "create",
        "web01",
        "--disk",
        &device,
        "--target",
        "backup",
        "--interval",
        "6h",
    ])?;
    let list: Value = serde_json::from_str(&service.ask(&["--json", "target", "ls"])?)?;
    let known = &list["targets"][0];
    assert_eq!(known["used_by"], serde_json::json!(["web01"]), "{list}");
    ensure!(known["status"]["free_bytes"].as_u64() > Some(0), "{list}");
    let said = service.refused(1, &["target", "rm", "backup"])?;
    ensure!(
        said.contains("job web01 sends its images to target backup"),
        "{said}"
    );
    let until = known["valid_until"].clone();
    let renewed: Value = serde_json::from_str(&service.ask(&["--json", "target", "renew", "backup"])?)?;
    ensure!(renewed["valid_until"].as_str() >= until.as_str(), "{renewed}");

    // Enrolled again, although a job uses it.
    let enrol = ["enrol", "web01", "--address", &address, "--again"];
    let line = testkit::process::run(&mut target.command(&enrol))?;
    let said = service.ask(&["target", "add", "backup", line.trim(), "--again"])?;
    ensure!(said.contains("source web01 of target backup"), "{said}");

    // What is known before the first sync.
    let check = |level: &str, ids: &[&str]| -> Result<()> {
        let output = service.ctl(&["--json", "precheck", "--target", "backup"])?;
        let found: Value = serde_json::from_slice(&output.stdout)?;
        for id in ids {
            let found = found["checks"]
                .as_array()
                .context("no checks")?
                .iter()
                .find(|check| check["id"] == *id);
            assert_eq!(
                found.map(|check| &check["level"]),
                Some(&Value::from(level)),
                "{id}"
            );
        }
        Ok(())
    };
    check("ok", &["target", "target_certificate", "target_clock"])?;
    let estimate = [
        "--json",
        "estimate",
        "--disk",
        &device,
        "--target",
        "backup",
        "--seconds",
        "1",
    ];
    let estimate: Value = serde_json::from_str(&service.ask(&estimate)?)?;
    let measured = &estimate["target"];
    ensure!(measured["send_rate_bytes"].as_u64() > Some(MIB), "{estimate}");
    assert_eq!(estimate["store"], Value::Null);
    let stored = target.list()?["sources"][0]["jobs"]
        .as_array()
        .map_or(0, Vec::len);
    assert_eq!(stored, 0, "nothing of a test is kept");

    target.kill();
    check("critical", &["target"])?;
    let list: Value = serde_json::from_str(&service.ask(&["--json", "target", "ls"])?)?;
    ensure!(
        list["targets"][0]["problem"]
            .to_string()
            .contains("cannot be reached"),
        "{list}"
    );
    let said = service.refused(1, &["estimate", "--disk", &device, "--target", "backup"])?;
    ensure!(said.contains("cannot be reached"), "{said}");
    service.ask(&["job", "delete", "web01"])?;
    service.ask(&["target", "rm", "backup"])?;
    service.refused(1, &["target", "rm", "backup"])?;
    Ok(())
}

#[test]
fn a_target_without_room_is_an_error_that_says_so_and_what_came_is_kept() -> Result<()> {
    let mut scene = Scene::new("target-room")?;
    scene.target.configure("quota = '8MiB'")?;
    scene.target.kill();
    scene.target.start()?;
    scene.create(&["--interval", "6h"])?;
    let said = scene.service.refused(1, &["job", "start", "web01", "--wait"])?;
    ensure!(
        said.contains("the quota of this source, 8 MiB, is used up"),
        "{said}"
    );
    assert_eq!(scene.service.job("web01")?["status"], "InError");
    scene.target.configure("")?;
    scene.target.kill();
    scene.target.start()?;
    scene.service.ask(&["job", "start", "web01", "--wait"])?;
    let job = scene.service.wait_status("web01", "Waiting")?;
    assert_eq!(job["last_run"]["resumed"], true, "{job:#}");
    scene.source.check("web01/latest", scene.disk.path())
}
