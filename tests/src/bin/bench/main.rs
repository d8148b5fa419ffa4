//! `make bench`: smc beside the field's tools, on the same device, in one run.
//!
//! Timings on shared machines spread by tens of percent, so nothing here is absolute: each pair is measured
//! in turn, several times, and what counts is the median of the ratios. Sources are read with O_DIRECT by
//! everybody, and caches are dropped before every run; only the NBD servers read through the page cache, and say
//! whether it was warm or cold. No figure is asserted.

mod aging;
mod boots;
mod chains;
mod copies;
mod cpu;
mod deletes;
mod fill;
mod freezes;
mod gaps;
mod kind_reads;
mod measure;
mod servers;
mod serving;
mod syncs;
mod target;
mod target_rivals;
mod tracked;
mod tracker_cost;

use anyhow::{Context, Result, bail};
use clap::Parser;
use comfy_table::Cell;
use copies::Content;
use measure::{Comparison, comparison_table};
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
    /// Size of the disk that is tracked, in MiB.
    #[arg(long, default_value_t = 16384)]
    tracked_mib: u64,
    /// Rounds of its syncs and scans.
    #[arg(long, default_value_t = 3)]
    tracked_rounds: usize,
    /// Freezes of each filesystem on each device.
    #[arg(long, default_value_t = 100)]
    windows: usize,
    /// Pairs of writing with the tracker and without.
    #[arg(long, default_value_t = 10)]
    cost_pairs: usize,
    /// Seconds of each of these runs of fio.
    #[arg(long, default_value_t = 3)]
    cost_seconds: u32,
    /// Size of the disk whose image is booted, in MiB.
    #[arg(long, default_value_t = 4096)]
    boot_mib: u64,
    /// Seconds of each run of fio beside a scan.
    #[arg(long, default_value_t = 8)]
    kind_seconds: u32,
    /// Size of the disk of which one cluster of a hundred changes before each sync to a target, in MiB.
    #[arg(long, default_value_t = 8192)]
    incremental_mib: u64,
    /// Size of the disk that is sent over a long line, in MiB.
    #[arg(long, default_value_t = 1024)]
    long_line_mib: u64,
    /// Rounds of each sync to a target and its rivals.
    #[arg(long, default_value_t = 3)]
    target_rounds: usize,
    /// Measure only these: scan, threads, cpu, two-disks, incompressible, compressible, copies, tracked, idle,
    /// freeze, tracker-cost, kind-reads, merge-gap, nbd, boot, target, delete, long-chain, aging-ext4, aging-xfs,
    /// aging-btrfs.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// What is compared with one other thing: the rows of one table.
type Compared = fn(&Options) -> Result<Vec<Comparison>>;

const COMPARED: [(&str, Compared); 7] = [
    ("scan", |options| {
        let bench = Bench::new("bench-scan")?;
        syncs::scan(&bench, options.scan_mib << 20, options.pairs)
    }),
    ("threads", |options| {
        let bench = Bench::new("bench-threads")?;
        syncs::threads(&bench, options.scan_mib << 20, options.pairs)
    }),
    ("cpu", |options| {
        let bench = Bench::new("bench-cpu")?;
        cpu::scan(&bench, options.scan_mib << 20, options.rounds)
    }),
    ("two-disks", |options| {
        let bench = Bench::new("bench-two")?;
        syncs::two_disks(&bench, options.full_mib << 20, options.rounds)
    }),
    ("incompressible", |options| {
        let bench = Bench::new("bench-full")?;
        syncs::incompressible(&bench, options.full_mib << 20, options.rounds)
    }),
    ("compressible", |options| {
        let bench = Bench::new("bench-zstd")?;
        syncs::compressible(&bench, options.full_mib << 20, options.rounds)
    }),
    ("copies", |options| {
        let mut comparisons = Vec::new();
        for content in [Content::Noise, Content::Files] {
            let bench = Bench::new("bench-copies")?;
            comparisons.extend(copies::copies(
                bench,
                content,
                options.copy_mib << 20,
                options.rounds,
            )?);
        }
        Ok(comparisons)
    }),
];

/// What has a table of its own.
type Printed = fn(&Options) -> Result<()>;

const PRINTED: [(&str, Printed); 14] = [
    ("tracked", |options| {
        tracked::print(options.tracked_mib << 20, options.tracked_rounds)
    }),
    ("idle", |options| tracked::print_idle(options.rounds)),
    ("freeze", |options| freezes::print(options.windows)),
    ("tracker-cost", |options| {
        tracker_cost::print(COST_BYTES, options.cost_pairs, options.cost_seconds)
    }),
    ("kind-reads", |options| {
        kind_reads::print(options.scan_mib << 20, options.kind_seconds)
    }),
    ("merge-gap", |options| {
        gaps::print(options.full_mib << 20, options.rounds)
    }),
    ("nbd", |options| {
        serving::print(serving::Plan {
            size_bytes: options.nbd_mib << 20,
            seconds: options.nbd_seconds,
            rounds: options.nbd_rounds,
        })
    }),
    ("boot", |options| {
        boots::print(options.boot_mib << 20, options.rounds)
    }),
    ("target", |options| {
        target::print(&target::Plan {
            full_bytes: options.full_mib << 20,
            incremental_bytes: options.incremental_mib << 20,
            tunnel_bytes: options.long_line_mib << 20,
            rounds: options.target_rounds,
        })
    }),
    ("delete", |options| {
        deletes::print(options.delete_mib << 20, 64 << 20, options.rounds)
    }),
    ("long-chain", |options| {
        chains::print(options.chain_images, options.rounds)
    }),
    ("aging-ext4", |options| age(Kind::Ext4, options)),
    ("aging-xfs", |options| age(Kind::Xfs, options)),
    ("aging-btrfs", |options| age(Kind::Btrfs, options)),
];

/// Size of the devices that are written to with the tracker and without.
const COST_BYTES: u64 = 512 << 20;

fn age(kind: Kind, options: &Options) -> Result<()> {
    aging::print(kind, options.aging_mib << 20, options.syncs)
}

fn main() -> Result<()> {
    let options = Options::parse();
    catch_interrupts()?;
    let names = COMPARED.map(|(name, _)| name).into_iter();
    let names: Vec<&str> = names.chain(PRINTED.map(|(name, _)| name)).collect();
    if let Some(unknown) = options.only.iter().find(|only| !names.contains(&only.as_str())) {
        bail!(
            "there is nothing called {unknown} to measure; there is {}",
            names.join(", ")
        );
    }
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let mut comparisons = Vec::new();
    for (_, compare) in COMPARED.iter().filter(|(name, _)| wanted(name)) {
        comparisons.extend(compare(&options)?);
    }
    if !comparisons.is_empty() {
        print(&comparisons).context("print the table")?;
    }
    for (_, print) in PRINTED.iter().filter(|(name, _)| wanted(name)) {
        print(&options)?;
    }
    Ok(())
}

fn print(comparisons: &[Comparison]) -> Result<()> {
    let mut table = comparison_table("stored: ours / theirs");
    for comparison in comparisons {
        table.add_row(comparison.row().into_iter().map(Cell::new));
    }
    println!("\n{table}");
    Ok(())
}
