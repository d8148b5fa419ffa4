//! Tracked syncs beside a scan of the same disk, and of a large disk on which nothing changes.

use crate::measure::{median, met, settle, sorted, spread, table};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smc_tests::{Bench, Disk, program};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Instant;
use testkit::guard::Mount;
use testkit::{Random, noise};

const MIB: u64 = 1 << 20;
const CLUSTER_LEN: usize = 64 << 10;
const CLUSTER_BYTES: u64 = CLUSTER_LEN as u64;
/// Of each cluster, so much is noise and the rest zeros: the disk is full, and its image is small.
const NOISE_BYTES: usize = 4096;

/// Clusters of 10,000 that are written to before a sync.
const DIRTY: [u64; 4] = [0, 10, 100, 1000];
/// The share for which there is a goal, and the goal: so much of a scan's time, without the audit.
const GOAL: (u64, f64) = (10, 0.02);

const IDLE_BYTES: u64 = 100 << 30;
const IDLE_SECONDS_GOAL: f64 = 0.2;
const IDLE_READ_GOAL: u64 = 64 * MIB;

/// A disk that a tracker watches, pinned in a BPF filesystem of its own.
struct Tracked {
    _bpf: Mount,
    disk: Disk,
    bench: Bench,
}

/// One sync.
struct Measured {
    seconds: f64,
    report: Value,
}

impl Measured {
    fn audit_seconds(&self) -> f64 {
        self.report["audit_seconds"].as_f64().unwrap_or(0.0)
    }

    fn bytes(&self, field: &str) -> u64 {
        self.report["disks"][0][field].as_u64().unwrap_or(0)
    }
}

impl Tracked {
    fn new(size_bytes: u64) -> Result<Self> {
        let bench = Bench::new("bench-tracked")?;
        let bpf = Mount::bpf(&bench.dir.join("bpf"))?;
        let disk = bench.disk("disk.img", size_bytes)?;
        Ok(Self {
            _bpf: bpf,
            disk,
            bench,
        })
    }

    /// Writes something to every cluster.
    fn fill(&self) -> Result<()> {
        let device = File::options().write(true).open(self.disk.path())?;
        let mut piece = vec![0; 16 * CLUSTER_LEN];
        for (number, offset) in (0..self.disk.size_bytes).step_by(piece.len()).enumerate() {
            for (i, cluster) in piece.chunks_mut(CLUSTER_LEN).enumerate() {
                let seed = number as u64 * 16 + i as u64;
                cluster[..NOISE_BYTES].copy_from_slice(&noise(NOISE_BYTES, seed + 1));
            }
            device.write_all_at(&piece, offset)?;
        }
        device.sync_all().context("fill the disk")
    }

    /// Writes to so many of 10,000 clusters, at random.
    fn change(&self, of_10000: u64, seed: u64) -> Result<()> {
        let clusters = self.disk.size_bytes / CLUSTER_BYTES;
        let mut random = Random::new(seed);
        let mut chosen = BTreeSet::new();
        while (chosen.len() as u64) < clusters * of_10000 / 10_000 {
            chosen.insert(random.below(clusters));
        }
        let device = File::options().write(true).open(self.disk.path())?;
        for cluster in chosen {
            device.write_all_at(&noise(NOISE_BYTES, seed + cluster), cluster * CLUSTER_BYTES)?;
        }
        device.sync_all().context("write to clusters")
    }

    /// A sync for `job`, which has to be by this method.
    fn sync(&self, job: &str, method: &str, more: &[&str]) -> Result<Measured> {
        let mut command = Command::new(program("smcd"));
        command.args(["sync", "--json", "--max-images=2", "--job", job, "--store"]);
        command.arg(self.bench.store()).args(more);
        command.arg("--tracker-directory");
        // A job that is not tracked finds no tracker.
        command.arg(self.bench.dir.join("bpf").join(job));
        command
            .arg("--disk")
            .arg(format!("vda={}", self.disk.path().display()));
        settle()?;
        // The program itself is not to be read from the disk while time is taken: that takes as long as a small sync.
        crate::measure::run(Command::new(program("smcd")).arg("--version"))?;
        let begun = Instant::now();
        let printed = crate::measure::run(&mut command)?;
        let seconds = begun.elapsed().as_secs_f64();
        let report: Value =
            serde_json::from_slice(&printed).context("parse what smcd sync --json printed")?;
        ensure!(report["method"] == method, "it is no {method}: {report}");
        Ok(Measured { seconds, report })
    }

    fn tracked(&self) -> Result<Measured> {
        self.sync("tracked", "tracked", &["--track"])
    }
}

/// Prints what syncs of a disk of `size_bytes` take with different shares of its clusters written to.
pub fn print(size_bytes: u64, rounds: usize) -> Result<()> {
    let subject = Tracked::new(size_bytes)?;
    eprintln!("tracked: filling {} MiB, and two full syncs", size_bytes >> 20);
    subject.fill()?;
    subject.sync("tracked", "full", &["--track"])?;
    subject.sync("scanned", "full", &[])?;
    let mut scans = Vec::new();
    let mut syncs = DIRTY.map(|_| Vec::new());
    for round in 0..rounds {
        scans.push(subject.sync("scanned", "scan", &[])?.seconds);
        for (&dirty, measured) in DIRTY.iter().zip(&mut syncs) {
            subject.change(dirty, 1 + round as u64 * 100_000_000)?;
            measured.push(subject.tracked()?);
        }
        eprintln!("tracked: round {} of {rounds}", round + 1);
    }
    let mut table = table(&[
        "clusters written to",
        "sync",
        "its audit",
        "scan",
        "without audit / scan (median)",
        "spread",
        "goal",
        "met",
        "read",
        "audited",
    ]);
    for (dirty, measured) in DIRTY.iter().zip(&syncs) {
        table.add_row(row(*dirty, measured, &scans));
    }
    println!(
        "\nTracked syncs of a disk of {} MiB:\n\n{table}",
        size_bytes >> 20
    );
    Ok(())
}

fn row(dirty: u64, measured: &[Measured], scans: &[f64]) -> Vec<String> {
    let middle = |pick: &dyn Fn(&Measured) -> f64| median(&sorted(measured.iter().map(pick)));
    let mib = |field: &str| {
        format!(
            "{} MiB",
            measured.last().map_or(0, |last| last.bytes(field)) / MIB
        )
    };
    let without = |one: &Measured| one.seconds - one.audit_seconds();
    let ratios = sorted(measured.iter().zip(scans).map(|(one, scan)| without(one) / scan));
    let ratio = median(&ratios);
    let (goal, is_met) = match GOAL {
        (share, goal) if share == dirty => (format!("<= {goal}"), met(ratio <= goal)),
        _ => ("-".to_owned(), "-".to_owned()),
    };
    vec![
        format!("{}.{:02} %", dirty / 100, dirty % 100),
        format!("{:.3} s", middle(&|one| one.seconds)),
        format!("{:.3} s", middle(&Measured::audit_seconds)),
        format!("{:.3} s", median(&sorted(scans.iter().copied()))),
        format!("{ratio:.4}"),
        spread(&ratios),
        goal,
        is_met,
        mib("compared_bytes"),
        mib("audited_bytes"),
    ]
}

/// Prints what a sync of 100 GiB takes of which nothing was written to.
pub fn print_idle(rounds: usize) -> Result<()> {
    let subject = Tracked::new(IDLE_BYTES)?;
    eprintln!("idle: a full sync of {} GiB of zeros", IDLE_BYTES >> 30);
    subject.sync("tracked", "full", &["--track"])?;
    let syncs = (0..rounds)
        .map(|_| subject.tracked())
        .collect::<Result<Vec<_>>>()?;
    let seconds = sorted(syncs.iter().map(|sync| sync.seconds));
    let read = syncs
        .iter()
        .map(|sync| sync.bytes("compared_bytes"))
        .max()
        .unwrap_or(0);
    let middle = median(&seconds);
    let mut table = table(&[
        "idle disk of 100 GiB, audit included",
        "median",
        "spread",
        "goal",
        "met",
    ]);
    table.add_row([
        "time".to_owned(),
        format!("{middle:.3} s"),
        spread(&seconds),
        format!("<= {IDLE_SECONDS_GOAL} s"),
        met(middle <= IDLE_SECONDS_GOAL),
    ]);
    table.add_row([
        "read, at most".to_owned(),
        format!("{} MiB", read / MIB),
        "-".to_owned(),
        format!("<= {} MiB", IDLE_READ_GOAL / MIB),
        met(read <= IDLE_READ_GOAL),
    ]);
    println!("\n{table}");
    Ok(())
}
