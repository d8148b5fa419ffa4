//! What the tracker costs those who write: 4 KiB random writes with and without it, in turn, on a loop and on a zram device.

use crate::measure::{fio, median, met, sorted, spread, table};
use anyhow::{Context, Result};
use aya::programs::BtfTracePoint;
use aya::sys::{Stats, enable_stats};
use comfy_table::Table;
use hostdev::{DeviceNumber, Root};
use smc_tests::Bench;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::device::Zram;
use testkit::guard::Mount;
use tracker::{Target, Tracker};

const CLUSTER_BYTES: u32 = 64 << 10;

/// Of one run with the tracker, as a share of one without.
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

/// What is compared of two runs.
struct Figure {
    name: &'static str,
    unit: f64,
    pick: fn(&Speed) -> f64,
    goal: Goal,
}

const IOPS: Figure = Figure {
    name: "IOPS",
    unit: 1.0,
    pick: |speed| speed.iops,
    goal: Goal::AtLeast(0.97),
};

const P99: Figure = Figure {
    name: "p99, in us",
    unit: 1e-3,
    pick: |speed| speed.p99_ns,
    goal: Goal::AtMost(1.03),
};

/// Of one run of fio.
struct Speed {
    iops: f64,
    p99_ns: f64,
}

/// A device, and where the tracker that watches it is pinned.
struct Subject<'a> {
    name: &'static str,
    device: &'a Path,
    pins: &'a Path,
    seconds: u32,
}

/// Prints ratios of `pairs` runs of fio with the tracker to runs without it, each of so many seconds.
pub fn print(size_bytes: u64, pairs: usize, seconds: u32) -> Result<()> {
    let bench = Bench::new("bench-cost")?;
    let _bpf = Mount::bpf(&bench.dir.join("bpf"))?;
    let pins = bench.dir.join("bpf/smc");
    let disk = bench.disk("disk.img", size_bytes)?;
    let zram = Zram::new(size_bytes)?;
    let mut costs = table(&[
        "device",
        "what",
        "with",
        "without",
        "ratio (median)",
        "spread",
        "goal",
        "met",
    ]);
    let mut programs = table(&["device", "program", "each run"]);
    for (name, device) in [("loop", disk.path()), ("zram", zram.path())] {
        let subject = Subject {
            name,
            device,
            pins: &pins,
            seconds,
        };
        subject.measure(&mut costs, pairs)?;
        subject.measure_programs(&mut programs)?;
    }
    println!("\n4 KiB random writes, depth 16, with the tracker and without:\n\n{costs}\n\n{programs}");
    Ok(())
}

impl Subject<'_> {
    fn watch(&self) -> Result<()> {
        let metadata = fs::metadata(self.device)?;
        let number = DeviceNumber::of_block_device(&metadata).context("it is no block device")?;
        let target = Target::of(&Root::system(), number, CLUSTER_BYTES)?;
        Tracker::start(self.pins)?.watch(&target)?;
        Ok(())
    }

    fn run(&self, tracked: bool) -> Result<Speed> {
        if tracked {
            self.watch()?;
        }
        let speed = self.write();
        Tracker::remove(self.pins)?;
        speed
    }

    fn write(&self) -> Result<Speed> {
        let mut command = Command::new("fio");
        command
            .args([
                "--name=cost",
                "--rw=randwrite",
                "--bs=4k",
                "--iodepth=16",
                "--ioengine=libaio",
            ])
            .args(["--direct=1", "--time_based", "--randrepeat=1"])
            .arg(format!("--runtime={}", self.seconds))
            .arg(format!("--filename={}", self.device.display()));
        let report = fio(&mut command)?;
        let write = &report["jobs"][0]["write"];
        let p99_ns = &write["clat_ns"]["percentile"]["99.000000"];
        Ok(Speed {
            iops: write["iops"].as_f64().context("fio reports no IOPS")?,
            p99_ns: p99_ns.as_f64().context("fio reports no latency")?,
        })
    }

    fn measure(&self, table: &mut Table, pairs: usize) -> Result<()> {
        // What was never written is allocated by the first run.
        self.run(false)?;
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            // Which comes first changes, so that what drifts does not count for one of them.
            for tracked in [pair % 2 == 0, pair % 2 == 1] {
                let into = if tracked { &mut with } else { &mut without };
                into.push(self.run(tracked)?);
            }
            eprintln!("tracker-cost: {}: pair {} of {pairs}", self.name, pair + 1);
        }
        table.add_row(self.row(&IOPS, &with, &without));
        table.add_row(self.row(&P99, &with, &without));
        Ok(())
    }

    fn row(&self, figure: &Figure, with: &[Speed], without: &[Speed]) -> [String; 8] {
        let pick = figure.pick;
        let ratios = sorted(
            with.iter()
                .zip(without)
                .map(|(with, without)| pick(with) / pick(without)),
        );
        let ratio = median(&ratios);
        let middle =
            |speeds: &[Speed]| format!("{:.0}", figure.unit * median(&sorted(speeds.iter().map(pick))));
        let (sign, is_met) = match figure.goal {
            Goal::AtLeast(goal) => (format!(">= {goal}"), ratio >= goal),
            Goal::AtMost(goal) => (format!("<= {goal}"), ratio <= goal),
        };
        [
            self.name.to_owned(),
            figure.name.to_owned(),
            middle(with),
            middle(without),
            format!("{ratio:.3}"),
            spread(&ratios),
            sign,
            met(is_met),
        ]
    }

    /// How long a run of each program takes, by the kernel's own count.
    fn measure_programs(&self, table: &mut Table) -> Result<()> {
        let _stats = enable_stats(Stats::RunTime)?;
        self.watch()?;
        self.write()?;
        for program in pinned_programs(self.pins)? {
            let nanos = run_time_ns(&program)?;
            let name = program.file_name().unwrap_or_default().to_string_lossy();
            table.add_row([self.name.to_owned(), name.into_owned(), format!("{nanos:.0} ns")]);
        }
        Ok(Tracker::remove(self.pins)?)
    }
}

fn pinned_programs(pins: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(pins)?.map(|entry| Ok(entry?.path()));
    let mut paths = entries.collect::<Result<Vec<PathBuf>>>()?;
    paths.retain(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("program-"))
    });
    paths.sort();
    Ok(paths)
}

fn run_time_ns(pin: &Path) -> Result<f64> {
    let program = BtfTracePoint::from_pin(pin)?;
    let descriptor = program.fd()?.as_fd().as_raw_fd();
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}"))?;
    let field = |name: &str| -> Result<f64> {
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(value
            .context("the kernel does not count the runs of programs")?
            .trim()
            .parse()?)
    };
    Ok(field("run_time_ns:")? / field("run_cnt:")?.max(1.0))
}
