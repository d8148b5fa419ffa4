//! How wide a gap between two changed clusters may be so that reading it is cheaper than a second read.

use crate::fill::{self, Layout};
use crate::measure::{median, settle, sorted, table};
use anyhow::Result;
use blockio::Device;
use changetrack::{Pass, Pipeline, PipelineOptions, Plan, Progress, Sink};
use imagefmt::{ClusterSize, ClusterUpdate, Geometry, Method};
use smc_tests::Bench;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use testkit::Random;

/// Gaps in clusters of 64 KiB.
const GAPS: [u64; 6] = [1, 2, 4, 8, 16, 32];
/// Pairs of clusters that are read for one measurement.
const PAIRS: usize = 1000;

/// Prints what pairs of clusters cost, on a loop and on a zram device: read separately, and together with the gap.
pub fn print(size_bytes: u64, rounds: usize) -> Result<()> {
    let bench = Bench::new("bench-gaps")?;
    let disk = bench.disk("disk.img", size_bytes)?;
    fill::with_noise(&disk, Layout::Full)?;
    let zram = fill::zram_with_text(size_bytes)?;
    let mut table = table(&["device", "gap", "two reads", "one read", "two / one"]);
    for (name, path) in [("loop", disk.path()), ("zram", zram.path())] {
        for gap in GAPS {
            let (apart, together) = measure(path, gap, rounds)?;
            table.add_row([
                name.to_owned(),
                format!("{} KiB", gap * 64),
                format!("{apart:.1} us"),
                format!("{together:.1} us"),
                format!("{:.2}", apart / together),
            ]);
        }
    }
    println!("\nTwo clusters of 64 KiB with a gap, read and hashed; the time of each pair:\n\n{table}");
    Ok(())
}

/// Microseconds of a pair: of two reads, and of one over the gap.
fn measure(path: &Path, gap: u64, rounds: usize) -> Result<(f64, f64)> {
    let device = Device::open(path)?;
    let geometry = Geometry::new(device.size_bytes(), ClusterSize::K64)?;
    let mut pipeline = Pipeline::new(&PipelineOptions {
        compress_level: 0,
        ..PipelineOptions::for_disks(1)
    })?;
    let (mut apart, mut together) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let starts = starts(geometry.cluster_count(), gap, round as u64 + 1);
        let pair = |start: u64| [start..start + 1, start + gap + 1..start + gap + 2];
        let two = starts.iter().flat_map(|&start| pair(start));
        apart.push(seconds(&mut pipeline, &device, geometry, two)? / starts.len() as f64);
        let one = starts.iter().map(|&start| start..start + gap + 2);
        together.push(seconds(&mut pipeline, &device, geometry, one)? / starts.len() as f64);
    }
    let micros = |values: Vec<f64>| median(&sorted(values.into_iter())) * 1e6;
    Ok((micros(apart), micros(together)))
}

/// Where the pairs begin: at random, none over another one.
fn starts(clusters: u64, gap: u64, seed: u64) -> BTreeSet<u64> {
    let mut random = Random::new(seed);
    let span = gap + 3;
    let mut starts = BTreeSet::new();
    while starts.len() < PAIRS.min(usize::try_from(clusters / span / 2).unwrap_or(PAIRS)) {
        starts.insert(random.below(clusters / span) * span);
    }
    starts
}

fn seconds(
    pipeline: &mut Pipeline,
    device: &Device,
    geometry: Geometry,
    clusters: impl Iterator<Item = Range<u64>>,
) -> Result<f64> {
    let plan = Plan::new(geometry, clusters, Method::Tracked, "a measurement");
    let pass = Pass {
        device,
        geometry,
        plan: &plan,
        base: None,
        pace: None,
        on_read_error: blockio::OnReadError::Fail,
        progress: Arc::new(Progress::default()),
    };
    settle()?;
    let begun = Instant::now();
    pipeline.run(&[pass], &AtomicBool::new(false), &mut Nothing)?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Stores nothing.
struct Nothing;

impl Sink for Nothing {
    fn push(&mut self, _pass: usize, _update: &ClusterUpdate<'_>) -> imagefmt::Result<()> {
        Ok(())
    }
}
