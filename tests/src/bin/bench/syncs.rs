//! Scans and full syncs beside the tools that do the same work.

use crate::fill::{self, Layout};
use crate::measure::{Comparison, Goal, Pair, dd, fio_read_seconds, run, settle, timed};
use anyhow::{Context, Result};
use smc_tests::{Bench, Disk, program};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::sandbox::without_io_uring;

/// The scan of an unchanged disk beside fio's best sequential read of it.
pub fn scan(bench: &Bench, size_bytes: u64, pairs: usize) -> Result<Vec<Comparison>> {
    eprintln!("scan: filling {} MiB", size_bytes >> 20);
    let disk = bench.disk("disk.img", size_bytes)?;
    fill::with_noise(&disk, Layout::Full)?;
    bench.sync(&[("vda", disk.path())])?;
    let depth = best_depth(&disk)?;
    let mut measured = Vec::new();
    for i in 0..pairs {
        settle()?;
        let theirs = fio_seconds(&disk, depth)?;
        let ours = timed(|| bench.sync(&[("vda", disk.path())]).map(drop))?;
        eprintln!(
            "scan: pair {} of {pairs}: ours {ours:.2} s, fio {theirs:.2} s",
            i + 1
        );
        measured.push(Pair { ours, theirs });
    }
    Ok(vec![Comparison {
        what: "scan of an unchanged disk",
        against: format!("fio, sequential 1 MiB reads, depth {depth}"),
        goal: Goal::RateAtLeast(0.95),
        pairs: measured,
        stored: None,
    }])
}

/// The scan of an unchanged disk by threads beside that through io_uring.
pub fn threads(bench: &Bench, size_bytes: u64, pairs: usize) -> Result<Vec<Comparison>> {
    eprintln!("threads: filling {} MiB", size_bytes >> 20);
    let disk = bench.disk("disk.img", size_bytes)?;
    fill::with_noise(&disk, Layout::Full)?;
    bench.sync(&[("vda", disk.path())])?;
    let scan = |with_ring: bool| {
        let mut command = bench.sync_command(&[("vda", disk.path())]);
        if !with_ring {
            without_io_uring(&mut command)?;
        }
        timed(|| run(&mut command).map(drop))
    };
    let mut measured = Vec::new();
    for i in 0..pairs {
        let theirs = scan(true)?;
        let ours = scan(false)?;
        eprintln!(
            "threads: pair {} of {pairs}: threads {ours:.2} s, io_uring {theirs:.2} s",
            i + 1
        );
        measured.push(Pair { ours, theirs });
    }
    Ok(vec![Comparison {
        what: "scan of an unchanged disk by threads, without io_uring",
        against: "the same through io_uring".to_owned(),
        goal: Goal::RateAtLeast(0.85),
        pairs: measured,
        stored: None,
    }])
}

/// The sync of two unchanged disks on separate devices, beside that of the slower one alone.
///
/// One is a loop device on a file, the other a zram device, which needs no disk.
pub fn two_disks(bench: &Bench, size_bytes: u64, pairs: usize) -> Result<Vec<Comparison>> {
    eprintln!("two disks: filling {} MiB each", size_bytes >> 20);
    let disk = bench.disk("disk.img", size_bytes)?;
    fill::with_noise(&disk, Layout::Full)?;
    let zram = fill::zram_with_text(size_bytes)?;
    let both = [("vda", disk.path()), ("vdb", zram.path())];
    let alone = |job: &str, disk: &[(&str, &Path)]| -> Result<f64> {
        settle()?;
        let mut command = Command::new(program("smcd"));
        command
            .args(["sync", "--json", "--job", job, "--store"])
            .arg(bench.store());
        for (name, path) in disk {
            command.arg("--disk").arg(format!("{name}={}", path.display()));
        }
        timed(|| run(&mut command).map(drop))
    };
    for (job, disks) in [("both", &both[..]), ("a", &both[..1]), ("b", &both[1..])] {
        alone(job, disks)?;
    }
    let mut measured = Vec::new();
    for i in 0..pairs {
        let (a, b) = (alone("a", &both[..1])?, alone("b", &both[1..])?);
        let ours = alone("both", &both)?;
        eprintln!(
            "two disks: round {} of {pairs}: {ours:.2} s, alone {a:.2} s and {b:.2} s",
            i + 1
        );
        measured.push(Pair {
            ours,
            theirs: a.max(b),
        });
    }
    Ok(vec![Comparison {
        what: "scan of two disks, a loop device and a zram device",
        against: "the scan of the slower one alone".to_owned(),
        goal: Goal::TimeAtMost(1.1),
        pairs: measured,
        stored: None,
    }])
}

/// fio's best depth: the median of three runs each.
fn best_depth(disk: &Disk) -> Result<u32> {
    let mut best = (f64::INFINITY, 8);
    for depth in [1, 8, 16, 32] {
        let mut seconds = Vec::new();
        for _ in 0..3 {
            settle()?;
            seconds.push(fio_seconds(disk, depth)?);
        }
        seconds.sort_by(f64::total_cmp);
        eprintln!("scan: fio at depth {depth}: {:.2} s", seconds[1]);
        if seconds[1] < best.0 {
            best = (seconds[1], depth);
        }
    }
    Ok(best.1)
}

/// The time that fio itself took for the reading, its start-up left out.
fn fio_seconds(disk: &Disk, depth: u32) -> Result<f64> {
    let mut command = Command::new("fio");
    command
        .args([
            "--name=scan",
            "--rw=read",
            "--bs=1M",
            "--ioengine=io_uring",
            "--direct=1",
        ])
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--size={}", disk.size_bytes))
        .arg(format!("--filename={}", disk.path().display()));
    fio_read_seconds(&mut command)
}

/// A tool that does the work of a full sync.
struct Rival {
    name: &'static str,
    goal: Goal,
    /// Source, target and how many bytes.
    command: fn(&Path, &Path, u64) -> Command,
}

const QEMU_IMG: Rival = Rival {
    name: "qemu-img convert -t none -T none -W -m 16 -O qcow2, fsync included",
    goal: Goal::TimeAtMost(0.6),
    command: |device, target, _| {
        let mut command = Command::new("qemu-img");
        command.args([
            "convert", "-t", "none", "-T", "none", "-W", "-m", "16", "-f", "raw", "-O", "qcow2",
        ]);
        command.arg(device).arg(target);
        command
    },
};

const QEMU_IMG_ZSTD: Rival = Rival {
    name: "qemu-img convert -c -o compression_type=zstd, fsync included",
    goal: Goal::TimeAtMost(0.5),
    command: |device, target, _| {
        let mut command = Command::new("qemu-img");
        command.args([
            "convert",
            "-T",
            "none",
            "-c",
            "-o",
            "compression_type=zstd",
            "-f",
            "raw",
            "-O",
            "qcow2",
        ]);
        command.arg(device).arg(target);
        command
    },
};

const DD: Rival = Rival {
    name: "dd bs=1M iflag=direct oflag=direct conv=fsync",
    goal: Goal::Beside,
    command: |device, target, _| dd(device, target),
};

const NBDCOPY: Rival = Rival {
    name: "nbdcopy from nbdkit's file plugin, flushed",
    goal: Goal::Beside,
    command: |device, target, _| {
        let mut command = Command::new("nbdcopy");
        command.args(["--flush", "--", "[", "nbdkit", "--exit-with-parent", "file"]);
        command.arg(device).arg("]").arg(target);
        command
    },
};

/// What the device gives when it is read and written at once: the ceiling of every full copy on it.
const FIO_BOTH: Rival = Rival {
    name: "fio reading and writing as much at once, depth 8 each (the device's ceiling)",
    goal: Goal::Beside,
    command: |device, target, size_bytes| {
        let mut command = Command::new("fio");
        command
            .args(["--bs=1M", "--ioengine=io_uring", "--iodepth=8", "--direct=1"])
            .arg(format!("--size={size_bytes}"));
        command
            .args(["--name=read", "--rw=read"])
            .arg(format!("--filename={}", device.display()));
        command.args([
            "--name=write",
            "--rw=write",
            "--fallocate=truncate",
            "--end_fsync=1",
        ]);
        command.arg(format!("--filename={}", target.display()));
        command
    },
};

/// A full sync of incompressible data beside its rivals.
pub fn incompressible(bench: &Bench, size_bytes: u64, rounds: usize) -> Result<Vec<Comparison>> {
    eprintln!("incompressible: filling {} MiB", size_bytes >> 20);
    let disk = bench.disk("disk.img", size_bytes)?;
    fill::with_noise(&disk, Layout::Full)?;
    full_syncs(
        bench,
        &disk,
        "full sync, incompressible",
        &[QEMU_IMG, FIO_BOTH, DD, NBDCOPY],
        rounds,
    )
}

/// A full sync of compressible data beside its rival.
pub fn compressible(bench: &Bench, size_bytes: u64, rounds: usize) -> Result<Vec<Comparison>> {
    eprintln!("compressible: filling {} MiB", size_bytes >> 20);
    let disk = bench.disk("disk.img", size_bytes)?;
    fill::with_files(&disk, Layout::Full)?;
    full_syncs(bench, &disk, "full sync, compressible", &[QEMU_IMG_ZSTD], rounds)
}

/// Ours and each rival in turn, round after round.
fn full_syncs(
    bench: &Bench,
    disk: &Disk,
    what: &'static str,
    rivals: &[Rival],
    rounds: usize,
) -> Result<Vec<Comparison>> {
    let mut comparisons: Vec<Comparison> = rivals
        .iter()
        .map(|rival| Comparison {
            what,
            against: rival.name.to_owned(),
            goal: rival.goal,
            pairs: Vec::new(),
            stored: None,
        })
        .collect();
    for round in 0..rounds {
        for (rival, comparison) in rivals.iter().zip(&mut comparisons) {
            let (ours, ours_stored) = our_sync(bench, disk)?;
            let (theirs, theirs_stored) = rival_copy(bench, disk, rival)?;
            eprintln!(
                "{what}: round {} of {rounds}: ours {ours:.2} s, {} {theirs:.2} s",
                round + 1,
                rival.name
            );
            comparison.pairs.push(Pair { ours, theirs });
            comparison.stored = Some((ours_stored, theirs_stored));
        }
    }
    Ok(comparisons)
}

fn our_sync(bench: &Bench, disk: &Disk) -> Result<(f64, u64)> {
    let mut stored = 0;
    let seconds = timed(|| {
        let report = bench.sync(&[("vda", disk.path())])?;
        stored = report["disks"][0]["stored_bytes"]
            .as_u64()
            .context("no stored_bytes")?;
        Ok(())
    })?;
    fs::remove_dir_all(bench.store())?;
    Ok((seconds, stored))
}

/// The rival's copy, made durable as ours is, and what it takes on the disk.
fn rival_copy(bench: &Bench, disk: &Disk, rival: &Rival) -> Result<(f64, u64)> {
    let target: PathBuf = bench.dir.join("rival.out");
    let mut command = (rival.command)(disk.path(), &target, disk.size_bytes);
    let seconds = timed(|| {
        run(&mut command)?;
        Ok(File::open(&target)?.sync_all()?)
    })?;
    let stored = fs::metadata(&target)?.blocks() * 512;
    fs::remove_file(&target)?;
    Ok((seconds, stored))
}
