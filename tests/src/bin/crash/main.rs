//! `make crash`: the real programs, interrupted hundreds of times on real filesystems.

use anyhow::{Context, Result};
use clap::Parser;
use smc_tests::crash::{Crash, Kind, World, rounds};
use smc_tests::cuts;
use smc_tests::damage;
use smc_tests::instant;
use smc_tests::lifecycle::Lifecycle;
use smc_tests::truth::known::Driver;
use smc_tests::truth::{fire, jobs, life};

/// Cut the power and kill smcd and smc-image at random moments, and check everything after each.
#[derive(Debug, Parser)]
struct Options {
    /// Power cuts on ext4 and on xfs each (btrfs knows no FS_IOC_SHUTDOWN).
    #[arg(long, default_value_t = 200)]
    cuts: u64,
    /// `kill -9` on ext4, xfs and btrfs each.
    #[arg(long, default_value_t = 170)]
    kills: u64,
    /// Whole lifecycles of a job of the service, with about thirteen `kill -9` of smcd in each.
    #[arg(long, default_value_t = 8)]
    lifecycles: u64,
    /// Rounds of a life of a store under damage and `kill -9`.
    #[arg(long, default_value_t = 400)]
    damaged: u64,
    /// Only what tracks disks: `--tracked`, `--tracked-kills` and `--salvos`.
    #[arg(long)]
    only_tracked: bool,
    /// Rounds of changes, tracked syncs, `kill -9`, SIGTERM and deletions, after each of which an image equals its disks.
    #[arg(long, default_value_t = 400)]
    tracked: u64,
    /// `kill -9` of the service while it syncs a job that is tracked, on a loop and on a zram device each.
    #[arg(long, default_value_t = 50)]
    tracked_kills: u64,
    /// Times that fio writes for eight seconds while tracked syncs run.
    #[arg(long, default_value_t = 10)]
    salvos: usize,
    /// Only what freezes: `--instants` and `--frozen-kills`.
    #[arg(long)]
    only_instants: bool,
    /// Images of class `filesystem` on ext4, xfs and btrfs each, made under a workload, each of which shows one instant.
    #[arg(long, default_value_t = 50)]
    instants: u64,
    /// `kill -9` of syncs that freeze, on ext4, xfs and btrfs each.
    #[arg(long, default_value_t = 30)]
    frozen_kills: u64,
    /// Only syncs to a target: `--target-cuts`, `--target-kills` and `--every-byte`.
    #[arg(long)]
    only_target: bool,
    /// Syncs to a target over a line that is cut at random.
    #[arg(long, default_value_t = 100)]
    target_cuts: u64,
    /// `kill -9` of the source, and as many of the target, while a sync goes from one to the other.
    #[arg(long, default_value_t = 20)]
    target_kills: u64,
    /// Cut the line of a small sync to a target after every byte, or, with N, after every Nth; 0 for never.
    #[arg(long, value_name = "N", default_value_t = 97)]
    every_byte: usize,
    /// Seed of the first run; each run adds one.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds on one filesystem before a fresh one is made.
    #[arg(long, default_value_t = 50)]
    rounds: u64,
    /// Only this one: ext4, xfs or btrfs.
    #[arg(long)]
    only: Option<String>,
}

/// Lives of disks that are tracked.
fn track(options: &Options) -> Result<()> {
    let mut all = life::Counts::default();
    let mut left = options.tracked;
    for seed in options.seed.. {
        let now = left.min(options.rounds);
        if now == 0 {
            break;
        }
        all.add(&life::live(seed, now)?);
        left -= now;
        println!(
            "tracked disks, seed {seed}: {}% tracked so far, {all:?}",
            all.methods.share()
        );
    }
    for (driver, seed) in [(Driver::Loop, options.seed), (Driver::Zram, options.seed + 1)] {
        let counts = jobs::live(driver, seed, options.tracked_kills)?;
        println!("kills of the service, {driver:?}, seed {seed}: {counts:?}");
    }
    let counts = fire::fire(options.salvos)?;
    println!(
        "tracked syncs under fio: {}% tracked, {counts:?}",
        counts.methods.share()
    );
    Ok(())
}

/// Images that show one instant.
fn freeze(options: &Options) -> Result<()> {
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| only == name);
    for fs_type in ["ext4", "xfs", "btrfs"].into_iter().filter(|name| wanted(name)) {
        let counts = instant::images(fs_type, options.instants)?;
        println!("instants on {fs_type}: {}", counts.in_short());
        let counts = instant::kills(fs_type, options.frozen_kills, options.seed)?;
        println!(
            "kills of syncs that freeze {fs_type}, seed {}: {}",
            options.seed,
            counts.in_short()
        );
    }
    Ok(())
}

/// Syncs to a target.
fn send(options: &Options) -> Result<()> {
    let seed = options.seed;
    println!("syncs to a target, seed {seed}");
    let counts = cuts::cut(seed, options.target_cuts)?;
    println!("lines that were cut, seed {seed}: {}", counts.in_short());
    let counts = cuts::kill_sources(seed, options.target_kills)?;
    println!("sources that were killed, seed {seed}: {}", counts.in_short());
    let counts = cuts::kill_targets(seed, options.target_kills)?;
    println!("targets that were killed, seed {seed}: {}", counts.in_short());
    if options.every_byte > 0 {
        let counts = cuts::cut_after_each_byte(seed, options.every_byte)?;
        println!(
            "lines that were cut after each {}. byte: {}",
            options.every_byte,
            counts.in_short()
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    let options = Options::parse();
    // Devices and mounts go with their guards, after Ctrl-C too.
    testkit::process::catch_interrupts()?;
    if options.only_target {
        return send(&options);
    }
    if !options.only_instants {
        track(&options)?;
    }
    if options.only_tracked {
        return Ok(());
    }
    freeze(&options)?;
    if options.only_instants {
        return Ok(());
    }
    for seed in 0..options.lifecycles {
        let seed = options.seed + seed;
        let mut cycle = Lifecycle::new("crash-lifecycle", seed)?;
        cycle
            .run(13)
            .with_context(|| format!("lifecycle of seed {seed}"))?;
        println!(
            "lifecycle of seed {seed}: {} kills, {} of them in a sync, {} between an image's commit and its record",
            cycle.kills,
            cycle.in_sync,
            cycle.concluded()
        );
    }
    send(&options)?;
    let mut left = options.damaged;
    for seed in options.seed.. {
        let now = left.min(100);
        if now == 0 {
            break;
        }
        let counts = damage::live(seed, 8 << 20, now)?;
        println!("life under damage of seed {seed}, {now} rounds: {counts:?}");
        left -= now;
    }
    let runs = [
        (Kind::Ext4, Crash::PowerCut, options.cuts),
        (Kind::Xfs, Crash::PowerCut, options.cuts),
        (Kind::Ext4, Crash::Kill, options.kills),
        (Kind::Xfs, Crash::Kill, options.kills),
        (Kind::Btrfs, Crash::Kill, options.kills),
    ];
    let wanted = |kind: Kind| options.only.as_deref().is_none_or(|only| only == kind.name());
    let mut seed = options.seed;
    for (kind, crash, count) in runs.into_iter().filter(|(kind, ..)| wanted(*kind)) {
        let mut left = count;
        while left > 0 {
            let now = left.min(options.rounds);
            let mut world = World::new(kind, seed, 512 << 20, 32 << 20)?;
            rounds(&mut world, crash, now)
                .with_context(|| format!("{}, {crash:?}, seed {seed}: {:?}", kind.name(), world.counts))?;
            println!(
                "{} {crash:?}, seed {seed}, {now} rounds, no image lost: {:?}",
                kind.name(),
                world.counts
            );
            left -= now;
            seed += 1;
        }
    }
    Ok(())
}
