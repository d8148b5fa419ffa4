//! Disks that nothing tells apart but what is on them, and that change places when the machine restarts.

use super::{MIB, PROGRAMS};
use anyhow::{Context, Result, ensure};
use smc_tests::guest_payload;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testkit::guard::ScratchDir;
use testkit::process::run;
use vm_tests::guest::BootOptions;
use vm_tests::system::{Release, Said, System, Until};

const SCRIPT: &str = include_str!("swapped.sh");

fn filesystem(scratch: &ScratchDir, name: &str, mib: u64) -> Result<PathBuf> {
    let file = scratch.sparse_file(name, mib * MIB)?;
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-L", name])
        .arg(&file))?;
    Ok(file)
}

/// Boots with the disks in this order.
fn boot(payload: &Path, store: &Path, disks: [&Path; 2], phase: &str) -> Result<Said> {
    let mut system = System::of(Release::Own, Release::Own, payload)?;
    system.without_systemd();
    system.attach(store, "store");
    disks.iter().for_each(|disk| system.attach_without_serial(disk));
    let options = BootOptions {
        timeout: Duration::from_secs(1800),
        ..BootOptions::default()
    };
    let said = system.boot(phase, Until::PowerOff, &options)?;
    ensure!(said.has("SMC-DONE"), "{}", said.describe());
    Ok(said)
}

#[test]
fn virtio_disks_without_serials_that_changed_places_are_refused_and_named() -> Result<()> {
    let scratch = ScratchDir::new("storage-swapped")?;
    let payload = scratch.join("payload");
    guest_payload(&payload, &PROGRAMS, SCRIPT)?;
    let store = filesystem(&scratch, "store", 256)?;
    let one = filesystem(&scratch, "one", 32)?;
    let two = filesystem(&scratch, "two", 32)?;
    let said = boot(&payload, &store, [&one, &two], "first")?;
    let devices = said.value("SMC-DISKS").context("SMC-DISKS")?.to_owned();
    let (first, second) = devices.split_once(' ').context("two disks")?;

    let said = boot(&payload, &store, [&two, &one], "swapped")?;
    assert_eq!(said.value("SMC-DISKS"), Some(devices.as_str()));
    let refused = said.value("SMC-REFUSED").context("it was not refused")?;
    let is_told = refused.starts_with("1 ")
        && refused.contains("disks have changed places")
        && refused.contains(&format!("--disk vdb={first} --disk vda={second}"));
    ensure!(is_told, "{refused}");
    assert_eq!(said.value("SMC-IMAGES"), Some("2"), "{}", said.describe());
    Ok(())
}
