//! Syncs of disks that are made of disks, on real drivers: virtio, SCSI, NVMe, LVM, RAID, dm-crypt. In a guest, writes of
//! all kinds go to each of them while syncs run; the image after the last write must be what every device is.

mod swapped;

use anyhow::{Context, Result, ensure};
use boot::Bus;
use serde_json::Value;
use smc_tests::guest_payload;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::Duration;
use testkit::guard::ScratchDir;
use testkit::noise;
use testkit::process::run;
use vm_tests::guest::BootOptions;
use vm_tests::system::{Release, Said, System, Until};

const PROGRAMS: [&str; 2] = ["smcd", "smc-image"];
const SCRIPT: &str = include_str!("guest.sh");
const MIB: u64 = 1 << 20;
/// How many rounds each layout gets in the long run.
const ROUNDS_VARIABLE: &str = "SMC_ROUNDS";
/// Only these, separated by spaces.
const LAYOUTS_VARIABLE: &str = "SMC_LAYOUTS";
const DISKS: [(&str, Bus); 5] = [
    ("blk", Bus::Virtio),
    ("scsia", Bus::Scsi),
    ("scsib", Bus::Scsi),
    ("nvme", Bus::Nvme),
    ("multipath", Bus::NvmeMultipath),
];
/// LVM with a stripe, a thin pool and a snapshot; the long test has the rest.
const SHORT: &str = "nvme_multipath lvm_stripe lvm_thin xfs_discard passthrough";

fn add_disks(system: &mut System, scratch: &ScratchDir) -> Result<()> {
    let store = scratch.sparse_file("store", 2048 * MIB)?;
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-L", "store"])
        .arg(&store))?;
    system.attach(&store, "store");
    for (seed, (serial, bus)) in (1..).zip(DISKS) {
        let file = scratch.sparse_file(serial, 64 * MIB)?;
        fs::write(&file, noise(8 << 20, seed))?;
        fs::File::options().write(true).open(&file)?.set_len(64 * MIB)?;
        system.attach_to(bus, &file, serial);
    }
    Ok(())
}

/// Boots once; every layout gets so many rounds.
fn boot(kernel: Release, rounds: u32, layouts: Option<&str>) -> Result<Said> {
    let scratch = ScratchDir::new("storage")?;
    let payload = scratch.join("payload");
    let chosen = layouts.map_or_else(String::new, |layouts| format!("LAYOUTS='{layouts}'\n"));
    guest_payload(&payload, &PROGRAMS, &(chosen + SCRIPT))?;
    let mut system = System::of(Release::Newer, kernel, &payload)?;
    system.without_systemd();
    add_disks(&mut system, &scratch)?;
    let options = BootOptions {
        memory_mib: 768,
        // Programs that write and programs that are traced run at the same time.
        processors: 2,
        timeout: Duration::from_secs(1800 + 1800 * u64::from(rounds)),
        ..BootOptions::default()
    };
    let said = system.boot(&rounds.to_string(), Until::PowerOff, &options)?;
    println!("---- {}:\n{}", system.kernel(), said.text());
    ensure!(said.value("SMC-FAILED").is_none(), "{}", said.describe());
    ensure!(
        said.value("SMC-DONE").is_some(),
        "the guest ended early:\n{}",
        said.describe()
    );
    Ok(said)
}

/// What was seen of one layout.
#[derive(Debug, Default)]
struct Found {
    /// How often which method was used.
    methods: BTreeMap<String, u32>,
    /// Devices that were compared with an image, and those that differed.
    compared: u32,
    wrong: Vec<String>,
}

fn findings(said: &Said) -> Result<BTreeMap<String, Found>> {
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    for line in said.text().lines() {
        if let Some(rest) = line.strip_prefix("SMC-SYNC ") {
            let (layout, rest) = rest.split_once(' ').context("a layout")?;
            let (_, report) = rest.split_once(' ').context("a round")?;
            let report: Value = serde_json::from_str(report)?;
            let method = report["method"].as_str().context("a method")?;
            let layout = found.entry(layout.to_owned()).or_default();
            *layout.methods.entry(method.to_owned()).or_default() += 1;
        } else if let Some(rest) = line.strip_prefix("SMC-RIGHT ") {
            let layout = rest.split(' ').next().context("a layout")?;
            let layout = found.entry(layout.to_owned()).or_default();
            layout.compared += 1;
            if !rest.trim_end().ends_with(" yes") {
                layout.wrong.push(rest.trim_end().to_owned());
            }
        }
    }
    Ok(found)
}

/// As a table for people, with the kernel in each line.
fn markdown(kernel: &str, found: &BTreeMap<String, Found>) -> String {
    let mut table =
        String::from("| kernel | layout | syncs | devices compared | wrong |\n|---|---|---|---|---|\n");
    for (layout, found) in found {
        let methods = found
            .methods
            .iter()
            .map(|(method, count)| format!("{count} {method}"));
        let methods = methods.collect::<Vec<_>>().join(", ");
        let (compared, wrong) = (found.compared, found.wrong.len());
        let _ = writeln!(
            table,
            "| {kernel} | {layout} | {methods} | {compared} | {wrong} |"
        );
    }
    table
}

fn assert_true(said: &Said) -> Result<()> {
    let found = findings(said)?;
    println!(
        "{}",
        markdown(said.value("SMC-KERNEL").context("a kernel")?, &found)
    );
    let wrong: Vec<_> = found.values().flat_map(|found| &found.wrong).collect();
    ensure!(wrong.is_empty(), "images differ from their devices: {wrong:#?}");
    for (layout, found) in &found {
        ensure!(found.compared > 0, "nothing of {layout} was compared");
    }
    assert_tracked(said, &found)
}

/// Where a sync can use a tracker, it did so; and after commands whose effect the tracker cannot know it did not.
fn assert_tracked(said: &Said, found: &BTreeMap<String, Found>) -> Result<()> {
    if said.value("SMC-TRACK") != Some("--track") {
        return Ok(());
    }
    for (layout, found) in found {
        ensure!(found.methods.contains_key("tracked"), "{layout}: {found:?}");
        ensure!(
            layout != "passthrough" || found.methods.contains_key("scan"),
            "{found:?}"
        );
    }
    Ok(())
}

#[test]
fn images_of_layered_disks_are_what_the_devices_are() -> Result<()> {
    assert_true(&boot(Release::Newer, 1, Some(SHORT))?)
}

#[test]
#[ignore = "minutes a round: make test-storage"]
fn images_of_all_layouts_on_both_kernels_are_what_the_devices_are() -> Result<()> {
    let rounds = std::env::var(ROUNDS_VARIABLE).ok();
    let rounds = rounds.map_or(Ok(3), |text| text.parse())?;
    let layouts = std::env::var(LAYOUTS_VARIABLE).ok();
    for kernel in [Release::Own, Release::Newer] {
        assert_true(&boot(kernel, rounds, layouts.as_deref())?)?;
    }
    Ok(())
}
