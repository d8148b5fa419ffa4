//! For how long a freeze holds writers: windows of many syncs beside a writer of 1 GiB a minute, and what the writer sees of them.

use crate::measure::{end, fio, median, met, settle, sorted, table};
use anyhow::{Context, Result, ensure};
use nix::mount::MsFlags;
use nix::sys::signal::Signal;
use serde_json::Value;
use smc_tests::{Bench, program};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use testkit::device::Zram;
use testkit::guard::Mount;
use testkit::process;

const DISK_BYTES: u64 = 1 << 30;
/// The goals, in milliseconds.
const MEDIAN_GOAL: f64 = 60.0;
const WORST_GOAL: f64 = 200.0;
/// Longer than any window: what is measured is not what is allowed.
const BUDGET: &str = "--freeze=2s";
const FILESYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];
/// Seconds of the writer alone.
const ALONE_SECONDS: u32 = 30;

/// Prints windows of so many syncs for each filesystem, on a loop device and on zram.
pub fn print(windows: usize) -> Result<()> {
    let mut rows = table(&[
        "device",
        "filesystem",
        "windows",
        "median",
        "worst",
        "met",
        "no instant",
        "p99 alone",
        "p99 beside",
        "worst write",
    ]);
    for fs_type in FILESYSTEMS {
        let bench = Bench::new("bench-freeze")?;
        let disk = bench.disk("disk.img", DISK_BYTES)?;
        rows.add_row(
            Subject {
                device: "loop",
                fs_type,
                bench: &bench,
            }
            .measure(disk.path(), windows)?,
        );
        let bench = Bench::new("bench-freeze")?;
        let zram = Zram::new(DISK_BYTES)?;
        rows.add_row(
            Subject {
                device: "zram",
                fs_type,
                bench: &bench,
            }
            .measure(zram.path(), windows)?,
        );
    }
    println!(
        "\nwriters held by a freeze, beside one that writes 1 GiB a minute (16 KiB at random, buffered, synced every 64); goal: median at \
         most {MEDIAN_GOAL} ms, worst at most {WORST_GOAL} ms:\n\n{rows}"
    );
    Ok(())
}

/// A filesystem on a device.
struct Subject<'a> {
    device: &'static str,
    fs_type: &'static str,
    bench: &'a Bench,
}

impl Subject<'_> {
    fn measure(&self, device: &Path, windows: usize) -> Result<Vec<String>> {
        let mut mkfs = Command::new(format!("mkfs.{}", self.fs_type));
        process::run(
            mkfs.arg(if self.fs_type == "ext4" { "-F" } else { "-f" })
                .arg("-q")
                .arg(device),
        )?;
        let point = self.bench.dir.join("mnt");
        let mount = Mount::new(device, &point, self.fs_type, MsFlags::empty())?;
        let bpf = Mount::bpf(&self.bench.dir.join("bpf"))?;
        let alone = write_p99(&fio(&mut writer(&point, ALONE_SECONDS))?)?;
        settle()?;
        self.sync(device)?;
        // It is ended when enough windows have been seen.
        let mut writing = writer(&point, 24 * 3600);
        writing.arg("--output-format=json");
        let writing = Writing(writing.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?);
        let (mut held, mut missed) = (Vec::new(), 0);
        while held.len() < windows {
            match self.sync(device)? {
                Some(milliseconds) => held.push(milliseconds),
                None => missed += 1,
            }
            ensure!(missed <= windows, "no sync comes to an instant");
        }
        let beside = writing.end()?;
        drop(bpf);
        mount.unmount()?;
        let held = sorted(held.into_iter());
        let (middle, worst) = (median(&held), held.last().copied().unwrap_or_default());
        eprintln!(
            "freeze: {}, {}: median {middle:.0} ms, worst {worst:.0} ms",
            self.device, self.fs_type
        );
        let millis = |value: f64| format!("{value:.1} ms");
        let longest = number(&beside["jobs"][0]["write"]["clat_ns"]["max"])? / 1e6;
        Ok(vec![
            self.device.to_owned(),
            self.fs_type.to_owned(),
            held.len().to_string(),
            millis(middle),
            millis(worst),
            met(middle <= MEDIAN_GOAL && worst <= WORST_GOAL),
            missed.to_string(),
            millis(alone / 1e6),
            millis(write_p99(&beside)? / 1e6),
            millis(longest),
        ])
    }

    /// For how many milliseconds a sync held the writer; `None` if it came to no instant.
    fn sync(&self, device: &Path) -> Result<Option<f64>> {
        let mut command = Command::new(program("smcd"));
        command.args([
            "sync",
            "--json",
            "--max-images=2",
            "--job=web01",
            "--track",
            BUDGET,
            "--store",
        ]);
        command.arg(self.bench.store()).arg("--tracker-directory");
        command.arg(self.bench.dir.join("bpf/smc"));
        command.arg("--disk").arg(format!("vda={}", device.display()));
        let printed = crate::measure::run(&mut command)?;
        let report: Value =
            serde_json::from_slice(&printed).context("parse what smcd sync --json printed")?;
        if report["consistency"] != "filesystem" {
            eprintln!("freeze: {}", report["consistency_reason"]);
            return Ok(None);
        }
        Ok(Some(number(&report["instant"]["held_us"])? / 1e3))
    }
}

fn number(value: &Value) -> Result<f64> {
    value
        .as_f64()
        .with_context(|| format!("a number is missing: {value}"))
}

fn write_p99(report: &Value) -> Result<f64> {
    number(&report["jobs"][0]["write"]["clat_ns"]["percentile"]["99.000000"])
}

/// A GiB a minute.
fn writer(point: &Path, seconds: u32) -> Command {
    let mut command = Command::new("fio");
    command
        .args([
            "--name=writer",
            "--rw=randwrite",
            "--bs=16k",
            "--ioengine=psync",
            "--size=384m",
        ])
        .args(["--rate=17476k", "--fsync=64", "--time_based"])
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--directory={}", point.display()));
    command
}

/// fio, which writes until it is stopped.
struct Writing(Child);

impl Writing {
    /// Ends it; what it reports.
    fn end(mut self) -> Result<Value> {
        end(&mut self.0, Signal::SIGINT)?;
        let printed = self.0.stdout.take().context("fio's output")?;
        let printed = std::io::read_to_string(printed)?;
        let begins = printed.find('{').context("fio reports nothing")?;
        serde_json::from_str(&printed[begins..]).context("parse what fio reports")
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
