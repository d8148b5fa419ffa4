//! Deleting the oldest image beside `qemu-img` merging the oldest file of an equivalent chain.

use crate::measure::{median, run, settle, sorted};
use anyhow::{Context, Result};
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use smc_tests::crash::{Kind, StoreFs};
use smc_tests::program;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use testkit::guard::ScratchDir;
use testkit::noise;

const MIB: u64 = 1 << 20;
/// Images of the job, and files of qemu's chain.
const IMAGES: u64 = 10;

/// One deletion.
#[derive(Debug, Clone, Copy)]
struct Cost {
    seconds: f64,
    written: f64,
    freed: f64,
}

/// Prints the medians of some rounds. Each image differs from the one before in `change_bytes`, and each change
/// overwrites the one before: that much only the oldest image holds.
pub fn print(size_bytes: u64, change_bytes: u64, rounds: usize) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let dir = ScratchDir::new("bench-delete")?;
        let store_bytes = change_bytes * IMAGES * 4 + (1 << 30);
        let fs = StoreFs::new(&dir, Kind::Ext4, store_bytes)?;
        let source = dir.sparse_file("source.raw", size_bytes)?;
        build(&fs, &source, change_bytes)?;
        let cost = measured(&fs, |place| {
            run(Command::new(program("smc-image"))
                .arg("--store")
                .arg(place.join("store"))
                .args(["rm", "web01/1"]))
            .map(drop)
        })?;
        ours.push(cost);
        let merged = measured(&fs, merge)?;
        theirs.push(merged);
        eprintln!(
            "delete: round {} of {rounds}: {cost:?}, qemu-img {merged:?}",
            round + 1
        );
    }
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(["what", "smc-image rm", "qemu-img", "ratio (of the medians)"]);
    let row = |what: &str, unit: &str, pick: fn(&Cost) -> f64| {
        let middle = |costs: &[Cost]| median(&sorted(costs.iter().map(pick)));
        let (a, b) = (middle(&ours), middle(&theirs));
        [
            what.to_owned(),
            format!("{a:.2} {unit}"),
            format!("{b:.2} {unit}"),
            format!("{:.4}", a / b),
        ]
    };
    table.add_row(row("time, sync included", "s", |cost| cost.seconds));
    table.add_row(row("written to the device", "MiB", |cost| cost.written));
    table.add_row(row("free space grew by", "MiB", |cost| cost.freed));
    println!("\n{table}");
    Ok(())
}

/// Ten images, and ten qcow2 files, each over the one before, with the same differences.
fn build(fs: &StoreFs, source: &Path, change_bytes: u64) -> Result<()> {
    let file = File::options().write(true).open(source)?;
    for number in 1..=IMAGES {
        let bytes = noise(usize::try_from(change_bytes)?, number);
        file.write_all_at(&bytes, MIB)?;
        file.sync_all()?;
        run(Command::new(program("smcd"))
            .args(["sync", "--json", "--job", "web01", "--store"])
            .arg(fs.path().join("store"))
            .arg("--disk")
            .arg(format!("vda={}", source.display())))?;
        let overlay = qcow2(fs.path(), number);
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]);
        if number > 1 {
            create
                .args(["-F", "qcow2", "-b"])
                .arg(qcow2(fs.path(), number - 1));
        }
        run(create.arg(&overlay).arg(file.metadata()?.len().to_string()))?;
        let change = source.with_extension("change");
        fs::write(&change, &bytes)?;
        run(Command::new("qemu-io")
            .args(["-f", "qcow2", "-c"])
            .arg(format!("write -q -s {} {MIB} {change_bytes}", change.display()))
            .arg(&overlay))?;
    }
    Ok(())
}

fn qcow2(dir: &Path, number: u64) -> std::path::PathBuf {
    dir.join(format!("{number}.qcow2"))
}

/// The oldest file goes: the second one is merged into it and takes its place, as in live block commit.
fn merge(place: &Path) -> Result<()> {
    run(Command::new("qemu-img")
        .args(["commit", "-q", "-t", "none", "-d"])
        .arg(qcow2(place, 2)))?;
    run(Command::new("qemu-img")
        .args(["rebase", "-u", "-F", "qcow2", "-b"])
        .arg(qcow2(place, 1))
        .arg(qcow2(place, 3)))?;
    Ok(fs::remove_file(qcow2(place, 2))?)
}

/// What `work` costs on the store's device, made durable.
fn measured(fs: &StoreFs, work: impl FnOnce(&Path) -> Result<()>) -> Result<Cost> {
    settle()?;
    let (free, sectors) = (fs.free_bytes()?, sectors_written(fs.device())?);
    let begun = Instant::now();
    work(fs.path())?;
    nix::unistd::syncfs(File::open(fs.path())?).context("syncfs")?;
    let seconds = begun.elapsed().as_secs_f64();
    let written = (sectors_written(fs.device())? - sectors) * 512;
    let freed = fs.free_bytes()?.saturating_sub(free);
    Ok(Cost {
        seconds,
        written: mib(written),
        freed: mib(freed),
    })
}

fn mib(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
    let mib = bytes as f64 / MIB as f64;
    mib
}

/// The seventh field of a disk's stat: sectors of 512 bytes.
fn sectors_written(device: &Path) -> Result<u64> {
    let name = device.file_name().context("a device has a name")?;
    let stat = fs::read_to_string(Path::new("/sys/block").join(name).join("stat"))?;
    let field = stat
        .split_ascii_whitespace()
        .nth(6)
        .context("stat has too few fields")?;
    Ok(field.parse()?)
}
