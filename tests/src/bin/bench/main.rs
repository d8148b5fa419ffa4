//! `make bench`: smc beside the field's tools, on the same device, in one run.
//!
//! Timings on shared machines spread by tens of percent, so nothing here is absolute: each pair is measured
//! in turn, several times, and what counts is the median of the ratios. Sources are read with O_DIRECT by
//! everybody, and caches are dropped before every run; only the NBD servers read through the page cache, and say
//! whether it was warm or cold. No figure is asserted.

mod aging;
mod chains;
mod copies;
mod deletes;
mod fill;
mod measure;
mod servers;
mod serving;
mod syncs;

use anyhow::{Context, Result};
use clap::Parser;
use comfy_table::{Cell, Table, presets::ASCII_MARKDOWN};
use copies::Content;
use measure::Comparison;
use smc_tests::Bench;
use smc_tests::crash::Kind;
use testkit::process::catch_interrupts;

/// Measure smc beside fio, qemu-img, dd and nbdcopy.
#[derive(Debug, Parser)]
struct Options {
    /// Size of the device that is scanned, in MiB.
    #[arg(long, default_value_t = 4096)]
    scan_mib: u64,
    /// Size of the device that is synced in full, in MiB.
    #[arg(long, default_value_t = 2048)]
    full_mib: u64,
    /// Pairs of scan and fio.
    #[arg(long, default_value_t = 10)]
    pairs: usize,
    /// Rounds of each full sync and its rivals.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Syncs of the job that lives long, on ext4, xfs and btrfs each.
    #[arg(long, default_value_t = 1000)]
    syncs: u64,
    /// Size of its source, in MiB.
    #[arg(long, default_value_t = 256)]
    aging_mib: u64,
    /// Size of the job whose oldest image is deleted, in MiB.
    #[arg(long, default_value_t = 8192)]
    delete_mib: u64,
    /// Size of the disk that is served over NBD, in MiB.
    #[arg(long, default_value_t = 1024)]
    nbd_mib: u64,
    /// Runs of each client with each NBD server.
    #[arg(long, default_value_t = 3)]
    nbd_rounds: usize,
    /// Seconds of each run of fio with an NBD server.
    #[arg(long, default_value_t = 3)]
    nbd_seconds: u32,
    /// Images of the long chain.
    #[arg(long, default_value_t = 1000)]
    chain_images: u64,
    /// Size of the image that is exported, restored and verified, in MiB.
    #[arg(long, default_value_t = 1024)]
    copy_mib: u64,
    /// Measure only these: scan, two-disks, incompressible, compressible, copies, nbd, delete,
    /// long-chain, aging-ext4, aging-xfs, aging-btrfs.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    catch_interrupts()?;
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let mut comparisons = Vec::new();
    if wanted("scan") {
        comparisons.extend(syncs::scan(
            &Bench::new("bench-scan")?,
            options.scan_mib << 20,
            options.pairs,
        )?);
    }
    if wanted("two-disks") {
        comparisons.extend(syncs::two_disks(
            &Bench::new("bench-two")?,
            options.full_mib << 20,
            options.rounds,
        )?);
    }
    if wanted("incompressible") {
        comparisons.extend(syncs::incompressible(
            &Bench::new("bench-full")?,
            options.full_mib << 20,
            options.rounds,
        )?);
    }
    if wanted("compressible") {
        comparisons.extend(syncs::compressible(
            &Bench::new("bench-zstd")?,
            options.full_mib << 20,
            options.rounds,
        )?);
    }
    if wanted("copies") {
        for content in [Content::Noise, Content::Files] {
            comparisons.extend(copies::copies(
                Bench::new("bench-copies")?,
                content,
                options.copy_mib << 20,
                options.rounds,
            )?);
        }
    }
    if !comparisons.is_empty() {
        print(&comparisons).context("print the table")?;
    }
    if wanted("nbd") {
        serving::print(serving::Plan {
            size_bytes: options.nbd_mib << 20,
            seconds: options.nbd_seconds,
            rounds: options.nbd_rounds,
        })?;
    }
    if wanted("delete") {
        deletes::print(options.delete_mib << 20, 64 << 20, options.rounds)?;
    }
    if wanted("long-chain") {
        chains::print(options.chain_images, options.rounds)?;
    }
    for kind in [Kind::Ext4, Kind::Xfs, Kind::Btrfs] {
        if wanted(&format!("aging-{}", kind.name())) {
            aging::print(kind, options.aging_mib << 20, options.syncs)?;
        }
    }
    Ok(())
}

fn print(comparisons: &[Comparison]) -> Result<()> {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header([
        "what",
        "against",
        "ours",
        "theirs",
        "ratio (median)",
        "spread",
        "goal",
        "met",
        "stored: ours / theirs",
    ]);
    for comparison in comparisons {
        table.add_row(comparison.row().into_iter().map(Cell::new));
    }
    println!("\n{table}");
    Ok(())
}
