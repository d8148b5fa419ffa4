//! Freezing on real kernels and in whole machines: what a container cannot show. Each image of class `filesystem` that a guest has
//! made is looked at here afterwards.

mod database;

use anyhow::{Context, Result, ensure};
use nix::mount::MsFlags;
use serde_json::Value;
use smc_tests::instant::checker;
use smc_tests::{guest_payload, has_image, program};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testkit::guard::{LoopDevice, Mount, ScratchDir, wait_until_free};
use testkit::process::run;
use vm_tests::guest::BootOptions;
use vm_tests::system::{Release, Said, System, Until};

const SCRIPT: &str = include_str!("freezing.sh");
const MIB: u64 = 1 << 20;

/// Where the partitions of the disk `main` begin and how long they are, in MiB: an ESP, an ext4 and an xfs.
const PARTITIONS: [(u64, u64); 3] = [(1, 34), (40, 200), (240, 320)];
const MAIN_MIB: u64 = 570;

/// All of them, in the order in which they are played.
const SCENES: &str = "esp,namespace,loop,swap,cgroup,longwrite,lvmroot";
/// Only these, separated by commas.
const SCENES_VARIABLE: &str = "SMC_SCENES";

/// The guest has no program that makes an ext4.
fn make_ext4(file: &Path, options: &[&str], mib: u64) -> Result<()> {
    let mut make = Command::new("mkfs.ext4");
    run(make
        .args(["-q", "-F"])
        .args(options)
        .arg(file)
        .arg(format!("{mib}M")))?;
    Ok(())
}

fn make_main(scratch: &ScratchDir) -> Result<PathBuf> {
    let file = scratch.sparse_file("main", MAIN_MIB * MIB)?;
    let mut partition = Command::new("sgdisk");
    for (number, (start, length)) in (1..).zip(PARTITIONS) {
        let end = start + length;
        partition.arg(format!("--new={number}:{start}MiB:{}", end * 2048 - 1));
    }
    run(partition.args(["--typecode=1:ef00"]).arg(&file))?;
    let esp = format!("{}@@{}M", file.display(), PARTITIONS[0].0);
    run(Command::new("mformat").args(["-F", "-i", &esp, "::"]))?;
    let (start, length) = PARTITIONS[1];
    make_ext4(&file, &["-E", &format!("offset={}", start * MIB)], length)?;
    Ok(file)
}

/// Boots once, and all these scenes are played. Returns what was said, and the store.
fn boot(kernel: Release, scenes: &str, scratch: &ScratchDir) -> Result<(Said, PathBuf)> {
    let payload = scratch.join("payload");
    guest_payload(&payload, &["smcd", "freezer"], SCRIPT)?;
    make_ext4(&payload.join("inner.img"), &[], 16)?;
    let mut system = System::of(Release::Newer, kernel, &payload)?;
    system.without_systemd();
    for (name, mib) in [("store", 2048), ("second", 64), ("big", 3072)] {
        let file = scratch.sparse_file(name, mib * MIB)?;
        make_ext4(&file, &["-L", name], mib)?;
        system.attach(&file, name);
    }
    system.attach(&make_main(scratch)?, "main");
    system.attach(&scratch.sparse_file("lvm", 2048 * MIB)?, "lvm");
    let options = BootOptions {
        // Of which one write and what the kernel holds back of it are 4 GiB.
        memory_mib: 5120,
        processors: 2,
        timeout: Duration::from_secs(1800),
        ..BootOptions::default()
    };
    let said = system.boot(scenes, Until::PowerOff, &options)?;
    println!("---- {}:\n{}", system.kernel(), said.text());
    ensure!(
        said.has("SMC-DONE") && said.value("SMC-FAILED").is_none(),
        "{}",
        said.describe()
    );
    Ok((said, scratch.join("store")))
}

/// The reports of all syncs of each scene.
fn reports(said: &Said) -> Result<BTreeMap<String, Vec<Value>>> {
    let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let lines = said.text().lines();
    for line in lines.filter_map(|line| line.strip_prefix("SMC-SYNC ")) {
        let (scene, report) = line.split_once(' ').context("a scene")?;
        found
            .entry(scene.to_owned())
            .or_default()
            .push(serde_json::from_str(report)?);
    }
    Ok(found)
}

/// The last sync of each scene shows one instant: the first one begins to track, and a machine may be busy once.
fn assert_frozen(scene: &str, reports: &[Value]) -> Result<()> {
    let last = reports.last().context("no sync")?;
    ensure!(last["consistency"] == "filesystem", "{scene}: {last:#}");
    let points = last["instant"]["filesystems"].as_array().context("filesystems")?;
    let points: Vec<&str> = points
        .iter()
        .filter_map(|one| one["mount_point"].as_str())
        .collect();
    let left_out = last["instant"]["left_out"].to_string();
    let is_right = match scene {
        "esp" => left_out.contains("(vfat) cannot be frozen"),
        "namespace" => points.len() == 1 && points[0].starts_with("/proc/") && points[0].ends_with("/hidden"),
        "loop" => points.first() == Some(&"/tmp/inner") && points.contains(&"/tmp/a"),
        "swap" => left_out.contains("/swap is swap"),
        "lvmroot" => points == ["/"],
        _ => true,
    };
    ensure!(is_right, "{scene}: {last:#}");
    Ok(())
}

/// What each scene has to show.
fn assert_said(said: &Said) -> Result<()> {
    for (scene, reports) in reports(said)? {
        if scene == "espwritten" {
            let reason = reports[0]["consistency_reason"].to_string();
            let expected = "a filesystem that cannot be frozen was written to";
            ensure!(reason.contains(expected), "{reason}");
        } else {
            assert_frozen(&scene, &reports)?;
        }
    }
    let behind = said.value("SMC-BEHIND");
    ensure!(
        behind != Some("no"),
        "FIFREEZE was never killed behind a long write"
    );
    for line in said.text().lines() {
        if let Some(pages) = line.strip_prefix("SMC-SWAPPED ") {
            ensure!(
                pages.trim().parse::<u64>()? > 0,
                "nothing was swapped during the syncs"
            );
        }
        if let Some(killed) = line.strip_prefix("SMC-KILLED ") {
            ensure!(
                !killed.trim_end().ends_with(" 0"),
                "none was killed in FIFREEZE: {killed}"
            );
        }
    }
    Ok(())
}

/// Where an image's filesystems are: in a disk of the job, from a byte on, so many bytes.
fn filesystems(job: &str, said: &Said) -> Result<Vec<(&'static str, u64, u64)>> {
    let of = |(start, length): (u64, u64)| (start * MIB, length * MIB);
    let ((a, a_len), (b, b_len)) = (of(PARTITIONS[1]), of(PARTITIONS[2]));
    Ok(match job {
        "main" => vec![("ext4", a, a_len), ("xfs", b, b_len)],
        "lvm" => {
            let start: u64 = said.value("SMC-START").context("no START")?.parse()?;
            // LVM gives whole extents of 4 MiB.
            vec![("xfs", start, 2044 * MIB)]
        }
        "second" => vec![("ext4", 0, 64 * MIB)],
        _ => vec![("ext4", 0, 3072 * MIB)],
    })
}

/// Looks at all images of class `filesystem` that are still there: journals are replayed on a copy, filesystems are clean, and numbers were
/// written on one filesystem before the other. Returns how many there were.
fn check_images(said: &Said, store: &Path, scratch: &ScratchDir) -> Result<u64> {
    let device = LoopDevice::attach(store)?;
    let mount = Mount::new(device.path(), &scratch.join("images"), "ext4", MsFlags::empty())?;
    let mut checked = 0;
    for report in reports(said)?.into_values().flatten() {
        let image = report["image"].as_str().context("an image")?;
        let (job, _) = image.split_once('/').context("a number")?;
        if report["consistency"] != "filesystem" || !has_image(mount.path(), image) {
            continue;
        }
        let copy = scratch.join("copy");
        let mut export = Command::new(program("smc-image"));
        export.arg("--store").arg(mount.path()).arg("export");
        run(export.arg(image).arg(&copy))?;
        check_copy(&filesystems(job, said)?, &copy, scratch).with_context(|| image.to_owned())?;
        fs::remove_file(&copy)?;
        checked += 1;
    }
    mount.unmount()?;
    Ok(checked)
}

fn check_copy(filesystems: &[(&'static str, u64, u64)], copy: &Path, scratch: &ScratchDir) -> Result<()> {
    let mut numbers = Vec::new();
    for (fs_type, start, length) in filesystems {
        let device = LoopDevice::attach_range(copy, *start, *length)?;
        let mount = Mount::new(
            device.path(),
            &scratch.join("looked-at"),
            fs_type,
            MsFlags::empty(),
        )?;
        if let Ok(number) = fs::read_to_string(mount.path().join("n")) {
            numbers.push(number.trim().parse::<u64>()?);
        }
        mount.unmount()?;
        wait_until_free(device.path())?;
        let (program, arguments) = checker(fs_type);
        run(Command::new(program).args(arguments).arg(device.path()))?;
    }
    if let [first, second] = numbers[..] {
        ensure!(
            first == second || first == second + 1,
            "of different moments: {numbers:?}"
        );
    }
    Ok(())
}

#[test]
#[ignore = "minutes: make test-guests-freeze"]
fn all_that_a_guest_can_freeze_on_both_kernels() -> Result<()> {
    let scenes = std::env::var(SCENES_VARIABLE);
    let scenes = scenes.as_deref().unwrap_or(SCENES);
    for kernel in [Release::Own, Release::Newer] {
        let scratch = ScratchDir::new("frozen-guest")?;
        let (said, store) = boot(kernel, scenes, &scratch)?;
        assert_said(&said)?;
        let checked = check_images(&said, &store, &scratch)?;
        println!("{checked} images of class filesystem, all right");
        ensure!(checked > 0, "no image was checked");
    }
    Ok(())
}
