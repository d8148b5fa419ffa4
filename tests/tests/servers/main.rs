//! The archive that `make dist` builds, on servers as they are: another release, another kernel, and kernels that lack
//! what smc would like to have. Every sync must be right everywhere; only the way differs, and smc says which.

mod table;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smc_tests::program;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use table::Row;
use testkit::guard::ScratchDir;
use testkit::noise;
use testkit::process::run;
use vm_tests::guest::BootOptions;
use vm_tests::system::{self, Release, Said, System, Until};

const SCRIPT: &str = include_str!("guest.sh");
const MIB: u64 = 1 << 20;
/// Names the archive of `make dist`, which only the tests of `make test-dist` need.
const ARCHIVE_VARIABLE: &str = "SMC_ARCHIVE";

/// An archive of this profile's programs, which systems with this machine's glibc or a newer one run.
fn archive_of_this_profile(out: &Path) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/dist.sh");
    let programs = program("smcd").with_file_name("");
    let mut command = Command::new("bash");
    command.arg(script).arg("--bin-dir").arg(programs);
    let said = run(command.args(["--fast", "--any-glibc", "--out"]).arg(out))?;
    Ok(PathBuf::from(said.trim()))
}

/// The archive that `make dist` built.
fn built_archive() -> Result<PathBuf> {
    let path = std::env::var_os(ARCHIVE_VARIABLE);
    path.map(PathBuf::from)
        .with_context(|| format!("{ARCHIVE_VARIABLE} names no archive: run 'make test-dist'"))
}

/// Boots once, in which nothing may go wrong.
fn boot(release: Release, kernel: Release, archive: &Path, phase: &str) -> Result<Said> {
    let scratch = ScratchDir::new("servers")?;
    let payload = scratch.join("payload");
    fs::create_dir(&payload)?;
    fs::copy(archive, payload.join("smc.tar.gz"))?;
    fs::write(payload.join("run"), system::script(&[SCRIPT]))?;
    let source = scratch.join("source");
    fs::write(&source, noise(48 << 20, 1))?;
    let target = scratch.sparse_file("target", 50 * MIB)?;
    let store = scratch.sparse_file("store", 600 * MIB)?;
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-L", "store"])
        .arg(&store))?;
    let mut system = System::of(release, kernel, &payload)?;
    system.attach(&source, "source");
    system.attach(&target, "target");
    system.attach(&store, "store");
    let options = BootOptions {
        memory_mib: 640,
        timeout: Duration::from_secs(3600),
        ..BootOptions::default()
    };
    let said = system.boot(phase, Until::PowerOff, &options)?;
    println!("---- {release:?} on {}:\n{}", system.kernel(), said.text());
    ensure!(said.value("SMC-FAILED").is_none(), "{}", said.describe());
    field(&said, "SMC-DONE")?;
    Ok(said)
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

/// Installed, used as a service, and removed.
fn assert_used(said: &Said) -> Result<()> {
    assert_eq!(field(said, "SMC-SYSTEM")?, "running", "{}", said.describe());
    assert_eq!(field(said, "SMC-ACTIVE")?, "active active");
    assert_eq!(field(said, "SMC-KEPT")?, "# mine");
    let pages: u64 = field(said, "SMC-PAGES")?.parse()?;
    assert!(pages > 20, "{pages} man pages");
    let job = field_json(said, "SMC-WEB01")?;
    assert_eq!(job["status"], "Waiting", "{job:#}");
    assert_eq!(
        job["images"],
        serde_json::json!(["web01/1", "web01/2"]),
        "{job:#}"
    );
    assert_eq!(field(said, "SMC-SERVICE-WARNINGS")?, "");
    assert!(field(said, "SMC-SERVICE-LOG")?.contains("io_uring"));
    field(said, "SMC-RESTORED")?;
    assert_eq!(field(said, "SMC-LEFT")?, "");
    assert_eq!(field(said, "SMC-GONE")?, "inactive inactive");
    Ok(())
}

#[test]
fn a_newer_release_runs_the_archive_with_io_uring_and_without() -> Result<()> {
    let scratch = ScratchDir::new("servers-archive")?;
    let archive = archive_of_this_profile(&scratch.join("out"))?;
    let said = boot(Release::Newer, Release::Newer, &archive, "short")?;
    assert_used(&said)?;
    // In its sandbox too.
    let job = field_json(&said, "SMC-WEB01")?;
    assert_eq!(job["last_run"]["method"], "tracked", "{job:#}");
    let plain = Row::of(&said, "plain")?;
    assert!(plain.has_io_uring(), "{plain:?}");
    // Kernels before 6.6 have no such switch.
    if said.value("SMC-SYNC-sysctl").is_some() {
        let forbidden = Row::of(&said, "sysctl")?;
        assert!(!forbidden.has_io_uring(), "{forbidden:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs the archive of make dist and the older system: make test-dist"]
fn old_and_new_servers_run_the_archive_whatever_their_kernels_lack() -> Result<()> {
    let archive = built_archive()?;
    let mut rows = Vec::new();
    for (release, kernel) in [
        (Release::Older, Release::Older),
        (Release::Newer, Release::Own),
        (Release::Newer, Release::Newer),
    ] {
        let said = boot(release, kernel, &archive, "table")?;
        assert_used(&said)?;
        rows.extend(Row::all(&said)?);
    }
    table::assert_rows(&rows)?;
    println!("{}", table::markdown(&rows));
    table::assert_documented(&rows)
}

#[test]
fn programs_that_need_a_newer_glibc_are_refused_by_name() -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/dist.sh");
    let mut command = Command::new("bash");
    let refused = run(command.arg(script).arg("--check").arg(program("smc-image")));
    let message = refused
        .err()
        .context("this machine's glibc is newer")?
        .to_string();
    assert!(message.contains("smc-image needs glibc 2."), "{message}");
    assert!(message.contains("servers may have 2.28"), "{message}");
    Ok(())
}
