//! What a sync costs others that use the disk: the latency of random reads and writes while it is scanned.

use crate::fill::{self, Layout};
use crate::measure::{end, fio, settle, table};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use smc_tests::{Bench, Disk};
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// What syncs meanwhile, and how.
const CASES: [(&str, Option<&[&str]>); 4] = [
    ("no sync", None),
    ("scans, without limit", Some(&[])),
    ("scans, --io-priority idle", Some(&["--io-priority=idle"])),
    (
        "scans, --bandwidth-limit 200MiB",
        Some(&["--bandwidth-limit=200MiB"]),
    ),
];

/// The I/O schedulers of the loop device.
const SCHEDULERS: [&str; 3] = ["none", "mq-deadline", "bfq"];

/// What the foreground uses of the disk: enough to have no use of caches, little enough that syncs store little.
const FOREGROUND_BYTES: u64 = 256 << 20;

/// Prints the latencies of a foreground that reads and writes 400 times a second, for so many seconds in each case.
pub fn print(size_bytes: u64, seconds: u32) -> Result<()> {
    let bench = Bench::new("bench-kind")?;
    eprintln!("kind-reads: filling {} MiB", size_bytes >> 20);
    let disk = bench.disk("disk.img", size_bytes)?;
    fill::with_noise(&disk, Layout::Full)?;
    bench.sync(&[("vda", disk.path())])?;
    let mut table = table(&[
        "scheduler",
        "meanwhile",
        "reads, p99",
        "writes, p99",
        "reads, p50",
        "scanned at",
    ]);
    for scheduler in SCHEDULERS {
        fs::write(queue(&disk, "scheduler"), scheduler).with_context(|| format!("choose {scheduler}"))?;
        for (what, options) in CASES {
            let measured = measure(&bench, &disk, options, seconds)?;
            eprintln!("kind-reads: {scheduler}, {what}: {measured:?}");
            let millis = |value: f64| format!("{:.2} ms", value / 1e6);
            table.add_row([
                scheduler.to_owned(),
                what.to_owned(),
                millis(measured.read_p99),
                millis(measured.write_p99),
                millis(measured.read_p50),
                format!("{:.0} MiB/s", measured.scanned),
            ]);
        }
    }
    println!("\n4 KiB reads and writes at random, 200 of each a second, on a loop device:\n\n{table}");
    Ok(())
}

/// Latencies in nanoseconds, and MiB that were scanned each second.
#[derive(Debug)]
struct Measured {
    read_p50: f64,
    read_p99: f64,
    write_p99: f64,
    scanned: f64,
}

fn measure(bench: &Bench, disk: &Disk, options: Option<&[&str]>, seconds: u32) -> Result<Measured> {
    settle()?;
    let is_over = AtomicBool::new(false);
    let before = read_bytes(disk)?;
    let report = thread::scope(|scope| {
        let syncs =
            scope.spawn(|| options.map_or(Ok(()), |options| sync_until(&is_over, bench, disk, options)));
        let report = fio(&mut foreground(disk, seconds));
        is_over.store(true, Ordering::Release);
        let synced = syncs
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the syncing thread panicked")));
        report.and_then(|report| synced.map(|()| report))
    })?;
    let job = &report["jobs"][0];
    let own = number(&job["read"]["io_bytes"])?;
    let read = (read_bytes(disk)? - before) as f64 - own;
    let latency = |direction: &str, part: &str| number(&job[direction]["clat_ns"]["percentile"][part]);
    Ok(Measured {
        read_p50: latency("read", "50.000000")?,
        read_p99: latency("read", "99.000000")?,
        write_p99: latency("write", "99.000000")?,
        scanned: read.max(0.0) / f64::from(1 << 20) / f64::from(seconds),
    })
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().context("fio reports something else")
}

fn foreground(disk: &Disk, seconds: u32) -> Command {
    let mut command = Command::new("fio");
    command
        .args([
            "--name=foreground",
            "--rw=randrw",
            "--rwmixread=50",
            "--bs=4k",
            "--iodepth=4",
        ])
        .args([
            "--ioengine=libaio",
            "--direct=1",
            "--rate_iops=200,200",
            "--time_based",
        ])
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--size={FOREGROUND_BYTES}"))
        .arg(format!("--filename={}", disk.path().display()));
    command
}

/// One sync after the other; the last one is stopped.
fn sync_until(is_over: &AtomicBool, bench: &Bench, disk: &Disk, options: &[&str]) -> Result<()> {
    while !is_over.load(Ordering::Acquire) {
        let mut command = bench.sync_command(&[("vda", disk.path())]);
        command.arg("--max-images=2").args(options);
        let mut sync = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        while sync.try_wait()?.is_none() {
            if is_over.load(Ordering::Acquire) {
                // It keeps what it has stored.
                end(&mut sync, Signal::SIGTERM)?;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

/// Bytes that were read from the device since it was attached.
fn read_bytes(disk: &Disk) -> Result<u64> {
    let path = queue(disk, "../stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let sectors = text
        .split_whitespace()
        .nth(2)
        .and_then(|field| field.parse::<u64>().ok());
    Ok(sectors.context("the device has no counters")? * 512)
}

fn queue(disk: &Disk, attribute: &str) -> String {
    let name = disk.path().file_name().unwrap_or_default().to_string_lossy();
    format!("/sys/block/{name}/queue/{attribute}")
}
