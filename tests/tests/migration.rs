//! One disk, and two, carried all the way: sync, change, sync, export over NBD, compare with the truth.

use anyhow::Result;
use boot::nbd_uri;
use serde_json::Value;
use smc_tests::{Bench, Disk, assert_same_bytes, code, stderr};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use testkit::noise;
use testkit::process::run;

const MIB: u64 = 1 << 20;
const CLUSTER: u64 = 65536;

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} is missing in {value}"))
}

fn number(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} is missing in {value}"))
}

/// Real content: a filesystem with files, noise, text, zeros, and a range of near-zero clusters.
fn fill(disk: &Disk) -> Result<()> {
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.path()))?;
    disk.write_noise(200 * MIB, 96 << 20, 1)?;
    disk.write_at(400 * MIB, "all work and no play\n".repeat(2 << 20).as_bytes())?;
    for i in 0..64 {
        disk.write_at(600 * MIB + i * CLUSTER + i, &[1])?;
    }
    Ok(())
}

/// Writes to scattered places and returns the clusters whose content is new.
fn change(disk: &Disk, round: u64) -> Result<BTreeSet<u64>> {
    let clusters = disk.size_bytes / CLUSTER;
    let mut changed = BTreeSet::new();
    for i in 0..40 {
        let cluster = (i * 7919 + round * 104_729) % clusters;
        disk.write_noise(
            cluster * CLUSTER + (i * 4096) % CLUSTER,
            512,
            round * 1000 + i + 2,
        )?;
        changed.insert(cluster);
    }
    // What is written but stays the same is no change.
    let same = noise(96 << 20, 1)[..65536].to_vec();
    let untouched = 200 * MIB / CLUSTER;
    if !changed.contains(&untouched) && round == 1 {
        disk.write_at(200 * MIB, &same)?;
    }
    // A cluster that becomes all zero.
    let zeroed = 200 * MIB / CLUSTER + 100 + round;
    disk.write_at(zeroed * CLUSTER, &vec![0; 65536])?;
    changed.insert(zeroed);
    Ok(changed)
}

#[test]
fn every_image_equals_the_device_at_its_moment() -> Result<()> {
    let bench = Bench::new("migration")?;
    let disk = bench.disk("disk.img", 1024 * MIB)?;
    fill(&disk)?;
    let mut copies: Vec<PathBuf> = Vec::new();
    let mut changes = Vec::new();
    for round in 1..=3u64 {
        if round > 1 {
            changes.push(change(&disk, round)?);
        }
        let report = bench.sync(&[("vda", disk.path())])?;
        assert_eq!(text(&report, "image"), format!("web01/{round}"));
        assert_eq!(
            text(&report, "kind"),
            if round == 1 { "full" } else { "incremental" }
        );
        let record = &report["disks"][0];
        assert_eq!(number(record, "compared_bytes"), 1024 * MIB);
        if let (Some(changed), true) = (changes.last(), round > 1) {
            assert_eq!(number(record, "dirty_bytes"), changed.len() as u64 * CLUSTER);
        }
        let copy = bench.dir.join(format!("copy{round}.img"));
        disk.copy_to(&copy)?;
        assert_eq!(
            digest_of(&bench, disk.path().to_str().unwrap())?,
            text(record, "digest"),
            "digest of the device"
        );
        copies.push(copy);
    }
    let socket = bench.dir.join("nbd.sock");
    let _server = bench.serve(&socket)?;
    for (i, copy) in copies.iter().enumerate() {
        let image = format!("web01/{}:vda", i + 1);
        let uri = nbd_uri(&socket, &image);
        let exported = bench.dir.join("exported.img");
        run(Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "raw", &uri])
            .arg(&exported))?;
        assert_same_bytes(&exported, copy)?;
        let expected = digest_of(&bench, copy.to_str().unwrap())?;
        assert_eq!(digest_of(&bench, &image)?, expected, "digest of the image");
        assert_eq!(digest_of(&bench, &uri)?, expected, "digest over NBD");
    }
    for (i, changed) in changes.iter().enumerate() {
        let (a, b) = (format!("web01/{}", i + 1), format!("web01/{}", i + 2));
        assert_eq!(diff(&bench, &a, &b)?, *changed, "diff {a} {b}");
    }
    let verified = bench.image(&["verify"])?;
    assert_eq!(code(&verified), 0, "{}", stderr(&verified));
    Ok(())
}

fn digest_of(bench: &Bench, what: &str) -> Result<String> {
    let objects = bench.image_json(&["digest", what])?;
    Ok(text(&objects[0], "digest").to_owned())
}

/// Clusters that `smc-image diff` lists.
fn diff(bench: &Bench, a: &str, b: &str) -> Result<BTreeSet<u64>> {
    let objects = bench.image_json(&["diff", a, b])?;
    let mut clusters = BTreeSet::new();
    for range in objects.iter().filter(|object| object["type"] == "range") {
        let (offset, length) = (number(range, "start"), number(range, "length"));
        clusters.extend(offset / CLUSTER..(offset + length).div_ceil(CLUSTER));
    }
    Ok(clusters)
}

#[test]
fn the_second_disk_changes_while_the_first_does_not() -> Result<()> {
    let bench = Bench::new("twodisks")?;
    let (first, second) = (
        bench.disk("a.img", 64 * MIB)?,
        bench.disk("b.img", 96 * MIB + 512)?,
    );
    first.write_noise(0, 8 << 20, 1)?;
    second.write_noise(MIB, 8 << 20, 2)?;
    let disks = [("vda", first.path()), ("vdb", second.path())];
    bench.sync(&disks)?;
    let before = bench.dir.join("before.img");
    second.copy_to(&before)?;
    second.write_noise(32 * MIB, 100, 3)?;
    let report = bench.sync(&disks)?;
    assert_eq!(number(&report["disks"][0], "dirty_bytes"), 0);
    assert_eq!(number(&report["disks"][0], "stored_bytes"), 0);
    assert_eq!(number(&report["disks"][1], "dirty_bytes"), CLUSTER);
    for (image, expected) in [
        ("web01/1:vda", first.backing.as_path()),
        ("web01/2:vda", &first.backing),
        ("web01/1:vdb", &before),
        ("web01/2:vdb", &second.backing),
    ] {
        let exported = bench.dir.join("exported.img");
        let output = bench.image(&["export", "--force", image, exported.to_str().unwrap()])?;
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert_same_bytes(&exported, expected)?;
    }
    Ok(())
}

#[test]
fn an_unchanged_disk_costs_a_manifest_and_nothing_else() -> Result<()> {
    let bench = Bench::new("unchanged")?;
    let disk = bench.disk("disk.img", 40 * MIB + 4096)?;
    disk.write_noise(0, 1 << 20, 1)?;
    bench.sync(&[("vda", disk.path())])?;
    let layers = || std::fs::read_dir(bench.store().join("web01/layers")).map(Iterator::count);
    let before = layers()?;
    let report = bench.sync(&[("vda", disk.path())])?;
    assert_eq!(number(&report["disks"][0], "stored_bytes"), 0);
    assert_eq!(layers()?, before);
    Ok(())
}

#[test]
fn a_disk_that_grew_continues_its_chain() -> Result<()> {
    let bench = Bench::new("grown")?;
    let disk = bench.disk("disk.img", 15 * MIB + 512)?;
    disk.write_noise(0, 15 << 20, 1)?;
    bench.sync(&[("vda", disk.path())])?;
    std::fs::File::options()
        .write(true)
        .open(&disk.backing)?
        .set_len(40 * MIB)?;
    run(Command::new("losetup").arg("-c").arg(disk.path()))?;
    disk.write_noise(39 * MIB, 4096, 2)?;
    let report = bench.sync(&[("vda", disk.path())])?;
    assert_eq!(number(&report["disks"][0], "size_bytes"), 40 * MIB);
    let exported = bench.dir.join("exported.img");
    assert_eq!(
        code(&bench.image(&["export", "web01/2", exported.to_str().unwrap()])?),
        0
    );
    assert_same_bytes(&exported, &disk.backing)?;
    assert_eq!(code(&bench.image(&["verify"])?), 0);
    Ok(())
}

#[test]
fn regular_files_of_any_size_are_disks_too() -> Result<()> {
    for size in [1usize, 511, 65535, 65537, (16 << 20) + 1] {
        let bench = Bench::new("file")?;
        let file = bench.dir.join("disk.raw");
        std::fs::write(&file, noise(size, size as u64))?;
        bench.sync(&[("root", Path::new(&file))])?;
        let exported = bench.dir.join("exported.img");
        let output = bench.image(&["export", "web01/latest", exported.to_str().unwrap()])?;
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert_same_bytes(&exported, &file)?;
    }
    Ok(())
}

#[test]
fn an_image_says_whether_its_disk_was_written_to() -> Result<()> {
    let bench = Bench::new("class")?;
    let disk = bench.disk("disk.img", 256 * MIB)?;
    disk.write_noise(0, 32 << 20, 1)?;
    let quiet = bench.sync(&[("vda", disk.path())])?;
    assert_eq!(text(&quiet, "consistency"), "crash");
    let stop = AtomicBool::new(false);
    let busy = std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<()> {
            for seed in 0.. {
                disk.write_noise(64 * MIB, 4096, seed)?;
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            Ok(())
        });
        let report = bench.sync(&[("vda", disk.path())]);
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer does not panic")?;
        report
    })?;
    assert_eq!(text(&busy, "consistency"), "fuzzy");
    assert!(text(&busy, "consistency_reason").contains("vda"), "{busy}");
    Ok(())
}
