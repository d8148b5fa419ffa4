//! What the tracker costs: 4 KiB random writes with and without it, in pairs, on a loop and on a zram device. Asserts
//! nothing. `cargo run --release -p tracker --example cost [PAIRS] [SECONDS]`, as root; needs fio.

#![allow(clippy::unwrap_used, reason = "a measurement fails by panicking")]
#![allow(missing_docs, reason = "a program")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use aya::programs::BtfTracePoint;
use common::{Disk, Ground, Zram};
use tracker::Tracker;

const BYTES: u64 = 512 << 20;

/// Of one run of fio.
struct Speed {
    iops: f64,
    p99_ns: f64,
}

fn fio(path: &Path, seconds: u64) -> Speed {
    let mut command = Command::new("fio");
    command
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--runtime={seconds}"))
        .args([
            "--name=cost",
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=16",
            "--ioengine=libaio",
            "--direct=1",
        ])
        .args(["--time_based", "--randrepeat=1", "--output-format=json"]);
    let report = testkit::program::run(&mut command).json();
    let write = &report["jobs"][0]["write"];
    Speed {
        iops: write["iops"].as_f64().unwrap(),
        p99_ns: write["clat_ns"]["percentile"]["99.000000"].as_f64().unwrap(),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Nanoseconds that a run of each program took, by the kernel's own count.
fn program_costs(pins: &Path) -> Vec<(String, f64)> {
    let mut costs = Vec::new();
    for entry in fs::read_dir(pins).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some(name) = name.strip_prefix("program-") else {
            continue;
        };
        let program = BtfTracePoint::from_pin(&path).unwrap();
        let descriptor = std::os::fd::AsFd::as_fd(program.fd().unwrap()).as_raw_fd();
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).unwrap();
        let field = |name: &str| -> f64 {
            let value = text.lines().find_map(|line| line.strip_prefix(name));
            value.unwrap().trim().parse().unwrap()
        };
        costs.push((
            name.to_owned(),
            field("run_time_ns:") / field("run_cnt:").max(1.0),
        ));
    }
    costs.sort_by(|left, right| left.0.cmp(&right.0));
    costs
}

fn measure(what: &str, disk: &Disk, ground: &Ground, pairs: usize, seconds: u64) {
    let (mut iops, mut p99) = (Vec::new(), Vec::new());
    fio(&disk.path, seconds);
    for pair in 0..pairs {
        let run = |tracked: bool| {
            if tracked {
                ground.start().watch(&disk.target()).unwrap();
            }
            let speed = fio(&disk.path, seconds);
            Tracker::remove(&ground.pins()).unwrap();
            speed
        };
        // Which comes first changes, so that what drifts does not count for one of them.
        let first = run(pair % 2 == 0);
        let second = run(pair % 2 == 1);
        let (with, without) = if pair % 2 == 0 {
            (first, second)
        } else {
            (second, first)
        };
        println!(
            "{what} pair {pair}: {:.0} and {:.0} IOPS, p99 {:.0} and {:.0} us",
            with.iops,
            without.iops,
            with.p99_ns / 1000.0,
            without.p99_ns / 1000.0
        );
        iops.push(with.iops / without.iops);
        p99.push(with.p99_ns / without.p99_ns);
    }
    println!(
        "{what}: IOPS {:.3} (goal 0.97 or more), p99 {:.3} (goal 1.03 or less)",
        median(iops),
        median(p99)
    );
    let _stats = aya::sys::enable_stats(aya::sys::Stats::RunTime).unwrap();
    ground.start().watch(&disk.target()).unwrap();
    fio(&disk.path, seconds);
    for (name, ns) in program_costs(&ground.pins()) {
        println!("{what}: {name} {ns:.0} ns");
    }
    Tracker::remove(&ground.pins()).unwrap();
}

fn main() {
    let number = |index: usize, otherwise: u64| {
        std::env::args()
            .nth(index)
            .and_then(|text| text.parse().ok())
            .unwrap_or(otherwise)
    };
    let (pairs, seconds) = (number(1, 10), number(2, 3));
    let pairs = usize::try_from(pairs).unwrap();
    let ground = Ground::new("tracker-cost");
    let disk = ground.disk("disk", BYTES);
    measure("loop", &disk, &ground, pairs, seconds);
    let zram = Zram::new(BYTES).unwrap();
    measure(
        "zram",
        &Disk::new(zram.path().to_owned(), None),
        &ground,
        pairs,
        seconds,
    );
}
