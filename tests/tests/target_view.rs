//! What a target shows: `smc-store ls`, health, metrics.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use anyhow::Result;
use smc_tests::target::Target;
use smc_tests::{Bench, code, stderr};
use std::fs;
use std::path::Path;
use std::process::Command;
use testkit::process::{run, wait_for};

const MIB: u64 = 1 << 20;

/// Asks for something at the socket; the status and the body.
fn ask(socket: &Path, what: &str) -> (String, String) {
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--max-time",
        "60",
        "--write-out",
        "\n%{http_code}",
        "--unix-socket",
    ]);
    let said = run(curl.arg(socket).arg(format!("http://target{what}"))).unwrap();
    let (body, status) = said.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

/// The value of a metric.
fn metric(text: &str, name: &str) -> i64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let line = line.unwrap_or_else(|| panic!("{name} is not in {text}"));
    line.trim().parse().unwrap()
}

#[test]
fn sources_are_shown_with_what_is_due_and_what_is_wrong() -> Result<()> {
    let place = Bench::new("target-view-socket")?;
    let socket = place.dir.join("metrics.sock");
    let settings = format!("quota = '1GiB'\nmetrics = '{}'\n", socket.display());
    let target = Target::new("target-view", &settings)?;
    let source = target.enrol("web01", target.address)?;
    target.enrol("web02", target.address)?;
    let disk = place.disk("disk.img", 16 * MIB)?;
    for seed in 0..4 {
        disk.write_noise(seed * MIB, 1 << 20, seed)?;
        source.sync(&disk, &[])?;
    }
    let list = target.list()?;
    let web = &list["sources"][0];
    let job = &web["jobs"][0];
    assert_eq!((&job["newest"], &job["good"]), (&4.into(), &4.into()), "{list}");
    assert_eq!(web["quota_bytes"], 1 << 30);
    assert!(web["used_bytes"].as_u64().unwrap() > 4 * MIB, "{web}");
    assert!(
        job["interval_seconds"].is_i64() && job["next_due"].is_string(),
        "{job}"
    );
    let shown = run(&mut target.command(&["ls"]))?;
    assert!(
        shown.contains("NEXT DUE") && shown.contains("quota of 1 GiB"),
        "{shown}"
    );

    let (status, text) = ask(&socket, "/metrics");
    assert_eq!(status, "200");
    let of_job = "{source=\"web01\",job=\"web\"}";
    assert_eq!(metric(&text, &format!("smc_store_job_images{of_job}")), 4);
    assert!(metric(&text, &format!("smc_store_job_since_good_image_seconds{of_job}")) >= 0);
    assert_eq!(
        metric(&text, "smc_store_source_quota_bytes{source=\"web02\"}"),
        1 << 30
    );
    assert_eq!(metric(&text, "smc_store_source_frozen{source=\"web01\"}"), 0);
    assert!(metric(&text, "smc_store_free_bytes") > 0);
    assert_eq!(ask(&socket, "/healthz"), ("200".to_owned(), "ok\n".to_owned()));
    assert_eq!(ask(&socket, "/v1/status").0, "404");

    // A client without a certificate learns whether the target works, and nothing else.
    let at = format!("https://{}", target.address);
    let curl = |path: &str| {
        let args = [
            "--silent",
            "--insecure",
            "--max-time",
            "60",
            "--write-out",
            "%{http_code}",
        ];
        run(Command::new("curl").args(args).arg(format!("{at}{path}"))).unwrap()
    };
    assert_eq!(curl("/healthz"), "{\"healthy\":true}200");
    assert!(curl("/metrics").ends_with("404"));
    assert!(curl("/v1/status").ends_with("401"));
    let (_, text) = ask(&socket, "/metrics");
    assert_eq!(metric(&text, "smc_store_refused_total{reason=\"Unknown\"}"), 1);

    // The newest image's manifest is damaged: the job is still there, and what is known of it.
    let manifest = target.store("web01").join("web/images/000004.json");
    let kept = fs::read(&manifest)?;
    fs::write(&manifest, "{")?;
    let list = target.list()?;
    let job = &list["sources"][0]["jobs"][0];
    assert_eq!((&job["newest"], &job["good"]), (&4.into(), &3.into()), "{list}");
    assert!(job["problem"].as_str().unwrap().contains("web/4"), "{list}");
    assert!(run(&mut target.command(&["ls"]))?.contains("cannot be read"));
    let (_, text) = ask(&socket, "/metrics");
    let unreadable = "smc_store_source_unreadable{source=\"web01\"}";
    assert_eq!(metric(&text, unreadable), 1);
    assert_eq!(metric(&text, &format!("smc_store_job_has_good_image{of_job}")), 1);
    fs::write(&manifest, kept)?;
    assert_eq!(metric(&ask(&socket, "/metrics").1, unreadable), 0);

    // The store of a source that has had images is gone; one that never had any needs none.
    let away = target.dir.join("away");
    fs::rename(target.store("web01"), &away)?;
    let (status, why) = ask(&socket, "/healthz");
    assert!(
        status == "503" && why.contains("store of web01 is gone"),
        "{status} {why}"
    );
    assert_eq!(metric(&ask(&socket, "/metrics").1, unreadable), 1);
    fs::rename(&away, target.store("web01"))?;
    assert_eq!(ask(&socket, "/healthz").0, "200");

    // A list of sources that is damaged: nobody gets in.
    let sources = target.dir.join("state/sources.json");
    let kept = fs::read(&sources)?;
    fs::write(&sources, "{")?;
    let (status, why) = ask(&socket, "/healthz");
    assert!(status == "503" && why.contains("sources.json"), "{status} {why}");
    assert_eq!(curl("/healthz"), "{\"healthy\":false}503");
    assert_eq!(ask(&socket, "/metrics").0, "500");
    fs::write(&sources, kept)?;
    wait_for("it is healthy again", || ask(&socket, "/healthz").0 == "200");
    Ok(())
}

#[test]
fn metrics_are_for_this_machine_alone() -> Result<()> {
    let mut target = Target::new("target-metrics", "")?;
    target.stop()?;
    for refused in ["0.0.0.0:7311", "192.0.2.1:80", "metrics"] {
        target.configure(&format!("metrics = '{refused}'\n"))?;
        let output = target.command(&["serve"]).output()?;
        assert_eq!(code(&output), 2);
        assert!(stderr(&output).contains("loopback"), "{}", stderr(&output));
    }
    Ok(())
}

#[test]
fn a_damaged_newest_image_is_not_the_last_good_one() -> Result<()> {
    let bench = Bench::new("target-good")?;
    let socket = bench.dir.join("metrics.sock");
    let target = Target::new(
        "target-good-target",
        &format!("metrics = '{}'\n", socket.display()),
    )?;
    let source = target.enrol("web01", target.address)?;
    let disk = bench.disk("disk.img", 16 * MIB)?;
    for seed in 1..3 {
        disk.write_noise(seed * MIB, 1 << 20, seed)?;
        source.sync(&disk, &[])?;
    }
    let layers = target.store("web01").join("web/layers");
    let mut newest: Vec<_> = fs::read_dir(&layers)?
        .map(|entry| entry.unwrap().path())
        .collect();
    newest.sort();
    let layer = newest.last().unwrap();
    let mut bytes = fs::read(layer)?;
    let content = testkit::noise(1 << 20, 2);
    let at = bytes
        .windows(64)
        .position(|window| window == &content[..64])
        .unwrap();
    bytes[at] ^= 1;
    fs::write(layer, bytes)?;
    assert_eq!(code(&source.image(&["verify", "web/2"])?), 3);
    let list = target.list()?;
    let job = &list["sources"][0]["jobs"][0];
    assert_eq!((&job["newest"], &job["good"]), (&2.into(), &1.into()), "{list}");
    let shown = run(&mut target.command(&["ls"]))?;
    assert!(shown.contains("image web/2 of web01 is damaged"), "{shown}");
    assert_eq!(job["newest_state"], "damaged");
    // The only other one cannot be read either: there is no good one, and alarms go off.
    fs::write(target.store("web01").join("web/images/000001.json"), "{")?;
    let job = &target.list()?["sources"][0]["jobs"][0];
    assert!(job["good"].is_null(), "{job}");
    let (_, text) = ask(&socket, "/metrics");
    let of_job = "{source=\"web01\",job=\"web\"}";
    assert_eq!(metric(&text, &format!("smc_store_job_has_good_image{of_job}")), 0);
    let since = metric(&text, &format!("smc_store_job_since_good_image_seconds{of_job}"));
    assert!(since > 50 * 365 * 86400, "since 1970");
    Ok(())
}
