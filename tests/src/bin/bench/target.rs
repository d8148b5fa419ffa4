//! Syncs to a target, in a network of its own, beside the same sync into a local store and beside tools that copy a disk over a network.

use crate::cpu::used;
use crate::fill::{self, Layout};
use crate::measure::{Comparison, Goal, Pair, comparison_table, median, run, settle, sorted, spread, table};
use crate::target_rivals::{NBDCOPY, RSYNC, Rival, Ssh, ZSTD};
use anyhow::{Context, Result, ensure};
use nix::sys::resource::UsageWho;
use smc_tests::network::{self, Quality};
use smc_tests::target::{Source, Target};
use smc_tests::{Bench, Disk};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use testkit::{Random, noise};

/// What is measured.
pub struct Plan {
    /// Size of the disk that is synced in full.
    pub full_bytes: u64,
    /// Size of the disk of which one cluster of a hundred changes.
    pub incremental_bytes: u64,
    /// What is sent through the tunnel.
    pub tunnel_bytes: u64,
    pub rounds: usize,
}

const MIB: u64 = 1 << 20;
const CLUSTER_LEN: usize = 64 << 10;
const CLUSTER: u64 = CLUSTER_LEN as u64;

/// A long line: from one continent to another, say.
const LONG: Quality = Quality {
    bits_per_second: 300_000_000,
    round_trip: Duration::from_millis(100),
    loss_per_million: 500,
    seed: 1,
};

/// A source and a target that are joined, and what the rivals need there.
pub struct Stage {
    pub bench: Bench,
    pub ssh: Ssh,
    target: Target,
    source: Source,
    /// Behind all that runs in it.
    pub pair: network::Pair,
}

/// What some work took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    seconds: f64,
    /// CPU time of the source's programs, in seconds.
    cpu: f64,
}

impl Stage {
    fn new(pair: network::Pair) -> Result<Stage> {
        let bench = Bench::new("bench-target")?;
        let address = pair.target_at(7310);
        let target = Target::started_by("bench-target-store", "", address, pair.target.words())?;
        Ok(Stage {
            ssh: Ssh::start(bench.dir.path(), &pair)?,
            source: target.enrol_by("web01", address, pair.source.words())?,
            target,
            bench,
            pair,
        })
    }

    /// A file at the target that a rival writes to.
    pub fn copy(&self) -> PathBuf {
        self.bench.dir.join("rival.out")
    }

    /// Our sync; the target then forgets what it has if it was a full one.
    fn ours(&self, disk: &Disk, more: &[&str]) -> Result<Cost> {
        cost(&mut self.source.sync_command(disk.path(), more))
    }

    fn forget(&self) -> Result<()> {
        Ok(fs::remove_dir_all(self.target.store("web01"))?)
    }

    fn local(&self, disk: &Disk) -> Result<Cost> {
        cost(&mut self.bench.sync_command(&[("vda", disk.path())]))
    }

    fn rival(&self, rival: &Rival, disk: &Disk) -> Result<Cost> {
        let server = (rival.prepare)(self, disk)?;
        let cost = cost(&mut (rival.command)(self, disk))?;
        drop(server);
        Ok(cost)
    }
}

/// Runs a program with cold caches.
fn cost(command: &mut Command) -> Result<Cost> {
    settle()?;
    let before = used(UsageWho::RUSAGE_CHILDREN)?;
    let begun = Instant::now();
    run(command)?;
    Ok(Cost {
        seconds: begun.elapsed().as_secs_f64(),
        cpu: used(UsageWho::RUSAGE_CHILDREN)? - before,
    })
}

/// Measures and prints all of it.
pub fn print(plan: &Plan) -> Result<()> {
    let mut rows = Rows::default();
    for (what, fill) in [
        (
            "full sync, incompressible",
            fill::with_noise as fn(&Disk, Layout) -> Result<()>,
        ),
        ("full sync, compressible", fill::with_files),
    ] {
        full(&mut rows, what, fill, plan)?;
    }
    incremental(&mut rows, plan)?;
    rows.print();
    through_a_tunnel(plan)
}

/// The rows of the table: what each took.
#[derive(Default)]
struct Rows(Vec<(Comparison, Vec<f64>, Vec<f64>)>);

impl Rows {
    /// Adds what a round took to the row of `what` and `against`; `gib` is the size of the disk.
    fn add(
        &mut self,
        what: &'static str,
        against: &'static str,
        goal: Goal,
        gib: f64,
        ours: Cost,
        theirs: Cost,
    ) {
        eprintln!(
            "{what}: ours {:.2} s, {against} {:.2} s",
            ours.seconds, theirs.seconds
        );
        let found = self
            .0
            .iter_mut()
            .find(|(row, ..)| row.what == what && row.against == against);
        let pair = Pair {
            ours: ours.seconds,
            theirs: theirs.seconds,
        };
        if let Some((row, our_cpu, their_cpu)) = found {
            row.pairs.push(pair);
            our_cpu.push(ours.cpu / gib);
            their_cpu.push(theirs.cpu / gib);
            return;
        }
        let row = Comparison {
            what,
            against: against.to_owned(),
            goal,
            pairs: vec![pair],
            stored: None,
        };
        self.0.push((row, vec![ours.cpu / gib], vec![theirs.cpu / gib]));
    }

    fn print(&self) {
        let mut table = comparison_table("CPU of the source, each GiB: ours / theirs");
        for (row, ours, theirs) in &self.0 {
            let mut cells = row.row();
            cells.pop();
            let middle = |values: &[f64]| median(&sorted(values.iter().copied()));
            cells.push(format!("{:.2} s / {:.2} s", middle(ours), middle(theirs)));
            table.add_row(cells);
        }
        println!("\n{table}");
    }
}

/// What our sync to a target may not be slower than, and how it is called in the table.
const LOCAL: &str = "the same sync into a local store";

fn full(
    rows: &mut Rows,
    what: &'static str,
    fill: fn(&Disk, Layout) -> Result<()>,
    plan: &Plan,
) -> Result<()> {
    eprintln!("{what}: filling {} MiB", plan.full_bytes / MIB);
    let stage = Stage::new(network::Pair::by_cable()?)?;
    let disk = stage.bench.disk("disk.img", plan.full_bytes)?;
    fill(&disk, Layout::Full)?;
    let gib = plan.full_bytes as f64 / f64::from(1 << 30);
    for round in 0..plan.rounds {
        let ours = stage.ours(&disk, &[])?;
        if round == 0 {
            stage.source.check("web/latest", disk.path())?;
        }
        stage.forget()?;
        let local = stage.local(&disk)?;
        fs::remove_dir_all(stage.bench.store())?;
        rows.add(what, LOCAL, Goal::RateAtLeast(0.9), gib, ours, local);
        for rival in [NBDCOPY, RSYNC, ZSTD] {
            let theirs = stage.rival(&rival, &disk)?;
            fs::remove_file(stage.copy())?;
            rows.add(what, rival.name, Goal::RateAtLeast(1.0), gib, ours, theirs);
        }
    }
    Ok(())
}

fn incremental(rows: &mut Rows, plan: &Plan) -> Result<()> {
    let what = "incremental sync, 1 % changed";
    eprintln!("{what}: filling {} MiB", plan.incremental_bytes / MIB);
    let stage = Stage::new(network::Pair::by_cable()?)?;
    let disk = stage.bench.disk("disk.img", plan.incremental_bytes)?;
    fill::with_noise(&disk, Layout::Full)?;
    stage.ours(&disk, &[])?;
    stage.local(&disk)?;
    stage.rival(&RSYNC, &disk)?;
    let gib = plan.incremental_bytes as f64 / f64::from(1 << 30);
    let clusters = plan.incremental_bytes / CLUSTER;
    let mut random = Random::new(1);
    for _ in 0..plan.rounds {
        for _ in 0..clusters / 100 {
            let at = random.below(clusters) * CLUSTER;
            disk.write_at(at, &noise(CLUSTER_LEN, random.next_u64()))?;
        }
        let ours = stage.ours(&disk, &[])?;
        let local = stage.local(&disk)?;
        rows.add(what, LOCAL, Goal::RateAtLeast(0.9), gib, ours, local);
        let theirs = stage.rival(&RSYNC, &disk)?;
        rows.add(what, RSYNC.name, Goal::RateAtLeast(1.0), gib, ours, theirs);
    }
    stage.source.check("web/latest", disk.path())
}

/// How much of a long line a sync fills: what was stored of incompressible data, beside what the line carries in that time.
fn through_a_tunnel(plan: &Plan) -> Result<()> {
    eprintln!("long line: filling {} MiB", plan.tunnel_bytes / MIB);
    let stage = Stage::new(network::Pair::by_tunnel(LONG)?)?;
    let disk = stage.bench.disk("disk.img", plan.tunnel_bytes)?;
    fill::with_noise(&disk, Layout::Full)?;
    let mut table = table(&[
        "over the long line",
        "time",
        "share of the line (median)",
        "spread",
        "goal",
        "met",
    ]);
    let mut row = |what: &str, goal: Goal, seconds: &[f64]| {
        let least = plan.tunnel_bytes as f64 * 8.0 / LONG.bits_per_second as f64;
        let shares = sorted(seconds.iter().map(|seconds| least / seconds));
        let (goal, met) = goal.judge(median(&shares));
        let time = format!("{:.1} s", median(&sorted(seconds.iter().copied())));
        let share = format!("{:.3}", median(&shares));
        table.add_row([
            what.to_owned(),
            time,
            share,
            spread(&shares),
            goal,
            met.to_owned(),
        ]);
    };
    for (connections, goal) in [
        ("1", Goal::Beside),
        ("4", Goal::RateAtLeast(0.9)),
        ("8", Goal::RateAtLeast(0.9)),
    ] {
        let what = format!("smcd sync --connections {connections}");
        row(
            &what,
            goal,
            &tunnelled(plan, &what, || {
                let cost = stage.ours(&disk, &["--connections", connections])?;
                stage.source.check("web/latest", disk.path())?;
                stage.forget()?;
                Ok(cost)
            })?,
        );
    }
    row(
        RSYNC.name,
        Goal::Beside,
        &tunnelled(plan, RSYNC.name, || {
            let cost = stage.rival(&RSYNC, &disk)?;
            fs::remove_file(stage.copy())?;
            Ok(cost)
        })?,
    );
    println!(
        "\nThe long line: {} Mbit/s, {:?} for a round trip, {} % of the packets are lost; {} MiB.\n\n{table}",
        LONG.bits_per_second / 1_000_000,
        LONG.round_trip,
        LONG.loss_per_million as f64 / 10_000.0,
        plan.tunnel_bytes / MIB
    );
    Ok(())
}

/// The seconds of each round.
fn tunnelled(plan: &Plan, what: &str, mut once: impl FnMut() -> Result<Cost>) -> Result<Vec<f64>> {
    let mut seconds = Vec::new();
    for _ in 0..plan.rounds {
        let cost = once().with_context(|| what.to_owned())?;
        ensure!(cost.seconds > 0.0, "a clock stands still");
        eprintln!("long line: {what}: {:.1} s", cost.seconds);
        seconds.push(cost.seconds);
    }
    Ok(seconds)
}
