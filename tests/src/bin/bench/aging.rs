//! A job that lives long: many syncs of which ten are kept, on real filesystems.

use crate::measure::run;
use anyhow::{Context, Result};
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use nix::sys::statvfs::statvfs;
use smc_tests::crash::{Kind, StoreFs};
use smc_tests::program;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use testkit::guard::ScratchDir;
use testkit::noise;

const CLUSTER: u64 = 64 << 10;
const KEPT: &str = "10";

/// Prints what the job takes after 10, 100 and so many syncs.
///
/// Live are the blocks that the layers still have: dead ones are holes, exact to a block. Used is what the whole
/// filesystem takes more than when it was empty; what it cannot free is the difference.
pub fn print(kind: Kind, source_bytes: u64, syncs: u64) -> Result<()> {
    let dir = ScratchDir::new("bench-aging")?;
    let fs = StoreFs::new(&dir, kind, (source_bytes * 5).max(512 << 20))?;
    let empty = used(fs.path())?;
    let path = dir.sparse_file("source.raw", source_bytes)?;
    let source = File::options().write(true).open(&path)?;
    for cluster in 0..source_bytes / CLUSTER {
        source.write_all_at(&content(cluster), cluster * CLUSTER)?;
    }
    let store = fs.path().join("store");
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header([
        "filesystem",
        "syncs",
        "used",
        "live",
        "used / live",
        "sync",
        "open and map",
        "layer files",
    ]);
    for number in 1..=syncs {
        change(&source, source_bytes, number)?;
        let begun = Instant::now();
        run(Command::new(program("smcd"))
            .args([
                "sync",
                "--json",
                "--job",
                "web01",
                "--max-images",
                KEPT,
                "--store",
            ])
            .arg(&store)
            .arg("--disk")
            .arg(format!("vda={}", path.display())))?;
        let synced = begun.elapsed().as_secs_f64();
        if ![10, 100, 1000, syncs].contains(&number) {
            continue;
        }
        let opened = map_seconds(&store)?;
        let (live, files) = layers(&store.join("web01/layers"))?;
        let used = used(fs.path())?.saturating_sub(empty);
        table.add_row([
            kind.name().to_owned(),
            number.to_string(),
            format!("{} MiB", used >> 20),
            format!("{} MiB", live >> 20),
            format!("{:.3}", ratio(used, live)),
            format!("{synced:.3} s"),
            format!("{opened:.3} s"),
            files.to_string(),
        ]);
    }
    run(Command::new(program("smc-image"))
        .arg("--store")
        .arg(&store)
        .arg("verify"))?;
    println!("\n{table}");
    Ok(())
}

/// Half the clusters are noise, half are noise in their first quarter only.
fn content(seed: u64) -> Vec<u8> {
    let len = 64 << 10;
    if seed.is_multiple_of(2) {
        return noise(len, seed + 1);
    }
    let mut bytes = noise(len / 4, seed + 1);
    bytes.resize(len, b'a');
    bytes
}

/// Changes 1.5 % of the clusters.
fn change(source: &File, source_bytes: u64, round: u64) -> Result<()> {
    let clusters = source_bytes / CLUSTER;
    let count = (clusters * 15 / 1000).max(1);
    let places = noise(usize::try_from(count * 8)?, round);
    for (i, place) in places.chunks_exact(8).enumerate() {
        let cluster = u64::from_le_bytes(place.try_into()?) % clusters;
        let seed = (round << 32) + i as u64;
        source.write_all_at(&content(seed), cluster * CLUSTER)?;
    }
    Ok(source.sync_all()?)
}

/// Seconds that it takes to open the newest image and walk its tree.
fn map_seconds(store: &Path) -> Result<f64> {
    let begun = Instant::now();
    run(Command::new(program("smc-image"))
        .arg("--store")
        .arg(store)
        .args(["--json", "map", "web01/latest"]))?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Bytes and number of the layers.
fn layers(dir: &Path) -> Result<(u64, usize)> {
    let (mut bytes, mut files) = (0, 0);
    for entry in fs::read_dir(dir)? {
        bytes += entry?.metadata()?.blocks() * 512;
        files += 1;
    }
    Ok((bytes, files))
}

fn used(path: &Path) -> Result<u64> {
    nix::unistd::syncfs(File::open(path)?).context("syncfs")?;
    let stat = statvfs(path)?;
    Ok((stat.blocks() - stat.blocks_free()) * stat.fragment_size())
}

fn ratio(a: u64, b: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let ratio = a as f64 / b as f64;
    ratio
}
