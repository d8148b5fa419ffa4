//! The Debian package on a freshly installed Debian under systemd: installed, rebooted and powered off in the middle of a
//! sync, upgraded, and purged.

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use smc_tests::{assert_same_bytes, program};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testkit::guard::ScratchDir;
use testkit::noise;
use testkit::process::run;
use vm_tests::guest::BootOptions;
use vm_tests::system::{Said, System, Until};

const SCRIPT: &str = include_str!("guest.sh");
const MIB: u64 = 1 << 20;

/// Runs `scripts/deb.sh` on the programs of this profile.
fn build_package(out: &Path, package: &str, version: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/deb.sh");
    let programs = program("smcd").with_file_name("");
    for name in ["smcctl", "smc-image", "smc-store"] {
        program(name);
    }
    let mut command = Command::new("bash");
    command
        .arg(script)
        .arg("--bin-dir")
        .arg(programs)
        .arg("--out")
        .arg(out);
    let said = run(command.args(["--package", package, "--version", version, "--fast"]))?;
    Ok(PathBuf::from(said.trim()))
}

/// A disk with `filled_bytes` of noise and text here and there.
fn source_disk(scratch: &ScratchDir, name: &str, size_bytes: u64, filled_bytes: u64) -> Result<PathBuf> {
    let path = scratch.sparse_file(name, size_bytes)?;
    let file = File::options().write(true).open(&path)?;
    let pieces = filled_bytes / MIB;
    for piece in 0..pieces {
        let offset = piece * (size_bytes / pieces) / 512 * 512;
        if piece % 2 == 0 {
            file.write_all_at(&noise(1 << 20, piece + size_bytes), offset)?;
        } else {
            file.write_all_at("all work and no play\n".repeat(49_932).as_bytes(), offset)?;
        }
    }
    Ok(path)
}

fn digest_of(path: &Path) -> Result<String> {
    let said = run(Command::new(program("smc-image"))
        .args(["--json", "digest"])
        .arg(path))?;
    let object: Value = serde_json::from_str(said.trim())?;
    Ok(object["digest"]
        .as_str()
        .context("a digest is printed")?
        .to_owned())
}

/// What follows `word` in the script's output.
fn field<'a>(said: &'a Said, word: &str) -> Result<&'a str> {
    said.value(word)
        .with_context(|| format!("{word} is missing in\n{}", said.describe()))
}

fn field_json(said: &Said, word: &str) -> Result<Value> {
    let text = field(said, word)?;
    serde_json::from_str(text).with_context(|| format!("parse {text}"))
}

fn options() -> BootOptions {
    BootOptions {
        memory_mib: 512,
        timeout: Duration::from_secs(600),
        ..BootOptions::default()
    }
}

/// The guest, and what its disks hold.
struct Lab {
    system: System,
    source_digest: String,
    big_digest: String,
    _scratch: ScratchDir,
}

impl Lab {
    fn new() -> Result<Self> {
        let scratch = ScratchDir::new("package")?;
        let payload = scratch.join("payload");
        fs::create_dir(&payload)?;
        build_package(&payload, "smc", "1.0")?;
        build_package(&payload, "smc", "1.1")?;
        build_package(&payload, "smc-store", "1.0")?;
        fs::write(payload.join("run"), SCRIPT)?;
        let source = source_disk(&scratch, "source", 96 * MIB + 512, 24 * MIB)?;
        let big = source_disk(&scratch, "big", 256 * MIB, 160 * MIB)?;
        let store = scratch.sparse_file("store", 512 * MIB)?;
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-L", "store"])
            .arg(&store))?;
        let mut system = System::new(&payload)?;
        system.attach(&source, "source");
        system.attach(&big, "big");
        system.attach(&store, "store");
        Ok(Self {
            system,
            source_digest: digest_of(&source)?,
            big_digest: digest_of(&big)?,
            _scratch: scratch,
        })
    }

    /// One boot, in which nothing may go wrong.
    fn boot(&self, phase: &str, until: Until<'_>) -> Result<Said> {
        let said = self.system.boot(phase, until, &options())?;
        println!("---- {phase}:\n{}", said.text());
        ensure!(said.value("SMC-FAILED").is_none(), "{}", said.describe());
        assert_eq!(field(&said, "SMC-SYSTEM")?, "running", "{}", said.describe());
        assert_eq!(said.value("SMC-UNITS-FAILED"), Some(""), "{}", said.describe());
        Ok(said)
    }
}

fn assert_serving(said: &Said) -> Result<()> {
    assert_eq!(field(said, "SMC-ACTIVE")?, "active active");
    assert_eq!(field(said, "SMC-SOCKET")?, "600 root:root socket");
    assert_eq!(field(said, "SMC-DIRECTORIES")?, "700 700 755");
    Ok(())
}

/// The findings are those of an smcd without a sandbox, and what smcd needs is there.
fn assert_prechecked(said: &Said) -> Result<()> {
    let levels = |word: &str| -> Result<Vec<(String, String)>> {
        let found = field_json(said, word)?;
        let checks = found["checks"].as_array().context("a list of checks")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(checks
            .iter()
            .map(|check| (text(&check["id"]), text(&check["level"])))
            .collect())
    };
    let found = levels("SMC-PRECHECK")?;
    assert_eq!(found, levels("SMC-PRECHECK-FREE")?);
    for id in ["privileges", "kernel", "io_uring", "bpf", "freeze", "store_disk"] {
        let wanted = (id.to_owned(), "ok".to_owned());
        assert!(found.contains(&wanted), "{id}: {}", field(said, "SMC-PRECHECK")?);
    }
    Ok(())
}

/// What systemd says of the units.
fn assert_units(said: &Said) -> Result<()> {
    assert_eq!(field(said, "SMC-ENABLED")?, "enabled enabled");
    assert_eq!(field(said, "SMC-SHOW-LimitNOFILE")?, "65536");
    assert_eq!(field(said, "SMC-SHOW-LimitMEMLOCK")?, "infinity");
    assert_eq!(field(said, "SMC-SHOW-WatchdogUSec")?, "1min");
    assert_eq!(field(said, "SMC-SHOW-NRestarts")?, "0");
    assert_eq!(field(said, "SMC-VERIFY")?, "", "systemd-analyze verify complains");
    let security = field(said, "SMC-SECURITY")?;
    let level = security
        .split_once("smcd.service: ")
        .and_then(|(_, rest)| rest.split(' ').next());
    let level: f64 = level.context("an exposure level is printed")?.parse()?;
    assert!(level <= 5.0, "{security}");
    Ok(())
}

/// What a hook could do in the sandbox, line by line; what is not listed it could not.
fn assert_sandbox(said: &Said) {
    let lines = said
        .text()
        .lines()
        .filter_map(|line| line.trim_end().strip_prefix("SMC-HOOK-"));
    let expected = [
        "stage pre web01",
        "user nobody nobody",
        "device read",
        "srv written",
        "outside 7",
        "frozen and thawed",
    ];
    assert_eq!(lines.collect::<Vec<_>>(), expected, "{}", said.describe());
}

fn assert_waiting(job: &Value, images: &[&str]) {
    assert_eq!(job["status"], "Waiting", "{job:#}");
    assert_eq!(job["images"], serde_json::json!(images), "{job:#}");
    assert_eq!(job["warnings"], serde_json::json!([]), "{job:#}");
}

/// A sync that resumes what an earlier one stored.
fn assert_resumed(job: &Value) {
    assert_eq!(job["status"], "Running", "{job:#}");
    assert_eq!(job["progress"]["resumed"], true, "{job:#}");
}

/// When a job's next sync starts.
fn next_sync(job: &Value) -> Result<Timestamp> {
    let at = job["next"]["at"]
        .as_str()
        .with_context(|| format!("no next sync in {job:#}"))?;
    Ok(at.parse()?)
}

/// The new version runs; the job that waited waits for the same moment, the sync that ran goes on.
fn assert_upgraded(said: &Said, before: &Value) -> Result<()> {
    assert_eq!(field(said, "SMC-VERSION")?, "1.1");
    assert_ne!(field(said, "SMC-PID-BEFORE")?, field(said, "SMC-PID-AFTER")?);
    let after = field_json(said, "SMC-WEB01-UPGRADED")?;
    assert_waiting(&after, &["web01/1"]);
    assert_eq!(after["last_run"]["number"], 1, "{after:#}");
    // Had its interval begun again, with a reboot or with the upgrade, there would be a boot between.
    let moved = next_sync(&after)?.duration_since(next_sync(before)?);
    assert!(
        moved.abs() < SignedDuration::from_secs(10),
        "{before:#}\n{after:#}"
    );
    assert_resumed(&field_json(said, "SMC-DB01-UPGRADED")?);
    Ok(())
}

/// A target under its own user has the image, and a purge leaves only that.
fn assert_target(lab: &Lab, said: &Said) -> Result<()> {
    let list = field_json(said, "SMC-TARGET")?;
    assert_eq!(list["sources"][0]["jobs"][0]["newest"], 1, "{list:#}");
    assert_eq!(
        field_json(said, "SMC-TARGET-DIGEST")?["digest"],
        *lab.source_digest
    );
    assert_eq!(
        field(said, "SMC-TARGET-STATE")?,
        "active 700 smc-store 750 smc-store"
    );
    assert_eq!(field(said, "SMC-TARGET-VERIFY")?, "");
    assert!(
        field(said, "SMC-TARGET-SECURITY")?.contains("OK"),
        "{}",
        said.describe()
    );
    assert_eq!(field(said, "SMC-TARGET-LEFT")?, "/srv/smc");
    Ok(())
}

/// Every image is what the disk was.
fn assert_complete(lab: &Lab, said: &Said) -> Result<()> {
    let done = field_json(said, "SMC-DB01-DONE")?;
    assert_eq!(done["status"], "Waiting", "{done:#}");
    assert_eq!(done["images"].as_array().map(Vec::len), Some(1), "{done:#}");
    assert_eq!(done["last_run"]["resumed"], true, "{done:#}");
    assert_waiting(&field_json(said, "SMC-WEB01-DONE")?, &["web01/1", "web01/2"]);
    assert_checked(said)?;
    for (word, digest) in [
        ("SMC-WEB01-1", &lab.source_digest),
        ("SMC-WEB01-2", &lab.source_digest),
        ("SMC-DB01-LATEST", &lab.big_digest),
    ] {
        assert_eq!(field_json(said, word)?["digest"], **digest, "{word}");
    }
    field(said, "SMC-VERIFIED")?;
    assert_eq!(field(said, "SMC-WARNINGS")?, "");
    assert_eq!(field(said, "SMC-UNITS-FAILED-LATER")?, "");
    Ok(())
}

/// The images were read by a unit of systemd that smcd had started.
fn assert_checked(said: &Said) -> Result<()> {
    let checked = field_json(said, "SMC-CHECKED")?;
    assert_waiting(&checked, &["web01/1", "web01/2"]);
    let verified = &checked["checks"]["verified"];
    assert_eq!(verified["good"], true, "{verified:#}");
    let text = verified["text"].as_str().unwrap_or_default();
    assert!(text.contains("2 images verified"), "{verified:#}");
    let units = field(said, "SMC-CHECK-UNITS")?;
    assert!(units.starts_with("smc-check-"), "{units}");
    Ok(())
}

/// Nothing is left but images, which is said; and they count again after another installation.
fn assert_purged(said: &Said) -> Result<()> {
    assert!(field(said, "SMC-PURGE")?.contains("the images in /var/lib/smc/store are kept"));
    assert_eq!(field(said, "SMC-LEFT")?, "/var/lib/smc/store");
    assert_eq!(field(said, "SMC-UNIT-FILES")?, "");
    field(said, "SMC-VERIFIED-PURGED")?;
    let found = field_json(said, "SMC-WEB01-REINSTALLED")?;
    assert_eq!(
        found["images"],
        serde_json::json!(["web01/1", "web01/2"]),
        "{found:#}"
    );
    Ok(())
}

#[test]
fn a_fresh_debian_installs_reboots_loses_power_upgrades_and_purges() -> Result<()> {
    let lab = Lab::new()?;
    let installed = lab.boot("install", Until::PowerOff)?;
    assert_serving(&installed)?;
    assert_units(&installed)?;
    assert_eq!(field(&installed, "SMC-CHECK")?, "/etc/smc/smcd.toml is valid");
    assert_sandbox(&installed);
    let waiting = field_json(&installed, "SMC-WEB01")?;
    assert_waiting(&waiting, &["web01/1"]);
    assert_prechecked(&installed)?;
    assert_eq!(field(&installed, "SMC-STOPPED")?, "inactive active");
    assert_eq!(field(&installed, "SMC-STARTED")?, "active");
    assert_eq!(field(&installed, "SMC-WATCHDOG")?, "fed");
    assert_eq!(field_json(&installed, "SMC-DB01")?["status"], "Running");
    assert_target(&lab, &installed)?;

    let rebooted = lab.boot("cut", Until::Line("SMC-CUT"))?;
    assert_serving(&rebooted)?;
    assert_resumed(&field_json(&rebooted, "SMC-DB01")?);
    assert_waiting(&field_json(&rebooted, "SMC-WEB01")?, &["web01/1"]);

    let finished = lab.boot("finish", Until::PowerOff)?;
    assert_serving(&finished)?;
    assert_resumed(&field_json(&finished, "SMC-DB01")?);
    assert_waiting(&field_json(&finished, "SMC-WEB01")?, &["web01/1"]);
    assert_upgraded(&finished, &waiting)?;
    assert_complete(&lab, &finished)?;
    assert_purged(&finished)?;
    field(&finished, "SMC-DONE")?;
    Ok(())
}

#[test]
fn the_same_programs_give_the_same_package() -> Result<()> {
    let scratch = ScratchDir::new("package-twice")?;
    let first = build_package(&scratch.join("first"), "smc", "1.0")?;
    let second = build_package(&scratch.join("second"), "smc", "1.0")?;
    assert_same_bytes(&first, &second)?;
    let field = |name: &str| run(Command::new("dpkg-deb").arg("--field").arg(&first).arg(name));
    assert_eq!(field("Package")?.trim(), "smc");
    assert!(field("Depends")?.contains("libc6 (>= "), "{}", field("Depends")?);
    let listed = run(Command::new("dpkg-deb").arg("--contents").arg(&first))?;
    for path in [
        "./usr/sbin/smcd",
        "./usr/bin/smcctl",
        "./usr/bin/smc-image",
        "./usr/lib/systemd/system/smcd.service",
        "./usr/lib/systemd/system/smcd.socket",
        "./etc/smc/smcd.toml",
        "./etc/smc/hooks.d/README",
        "./usr/share/man/man1/smcctl-job-create.1.gz",
        "./usr/share/man/man1/smc-image-serve.1.gz",
        "./usr/share/bash-completion/completions/smcctl",
        "./usr/share/zsh/vendor-completions/_smc-image",
        "./usr/share/fish/vendor_completions.d/smcd.fish",
        "./usr/share/doc/smc/copyright",
        "./usr/share/doc/smc/changelog.gz",
        "./usr/share/doc/smc/operations-hardening.md",
        "./usr/share/doc/smc/examples/hooks.d/postgresql",
    ] {
        let found = listed.lines().find(|line| line.ends_with(&format!(" {path}")));
        let found = found.with_context(|| format!("no {path} in\n{listed}"))?;
        assert!(found.contains(" root/root "), "{found}");
    }
    Ok(())
}
