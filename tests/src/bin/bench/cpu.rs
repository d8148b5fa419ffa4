//! How much CPU time a scan takes, beside reading alone and hashing alone; and how fast all cores hash.

use crate::fill::{self, Layout};
use crate::measure::{Comparison, Goal, Pair, run, settle};
use anyhow::{Context, Result};
use imagefmt::Digest;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use smc_tests::Bench;
use std::hint::black_box;
use std::process::Command;
use std::thread;
use std::time::Instant;
use testkit::noise;

const CLUSTER_LEN: usize = 64 << 10;
/// More than any cache holds.
const HASHED_LEN: usize = 128 << 20;

/// CPU time of a scan of `size_bytes`, in seconds a GiB.
pub fn scan(bench: &Bench, size_bytes: u64, rounds: usize) -> Result<Vec<Comparison>> {
    eprintln!("cpu: filling {} MiB", size_bytes >> 20);
    let disk = bench.disk("disk.img", size_bytes)?;
    fill::with_noise(&disk, Layout::Full)?;
    bench.sync(&[("vda", disk.path())])?;
    let gib = size_bytes as f64 / f64::from(1 << 30);
    let (mut beside_fio, mut beside_hashing) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let ours = cpu_of_child(&mut bench.sync_command(&[("vda", disk.path())]))? / gib;
        let mut fio = Command::new("fio");
        fio.args([
            "--name=read",
            "--rw=read",
            "--bs=1M",
            "--ioengine=io_uring",
            "--iodepth=16",
        ])
        .args(["--direct=1", "--thread"])
        .arg(format!("--size={size_bytes}"))
        .arg(format!("--filename={}", disk.path().display()));
        let reading = cpu_of_child(&mut fio)? / gib;
        let hashing = hashing_of_one_gib()?;
        eprintln!(
            "cpu: round {round} of {rounds}: scan {ours:.2} s/GiB, fio {reading:.2}, hashing {hashing:.2}"
        );
        beside_fio.push(Pair {
            ours,
            theirs: reading,
        });
        beside_hashing.push(Pair {
            ours,
            theirs: hashing,
        });
    }
    let row = |against: &str, pairs| Comparison {
        what: "CPU time of a scan, each GiB",
        against: against.to_owned(),
        goal: Goal::Beside,
        pairs,
        stored: None,
    };
    Ok(vec![
        row("fio reading as much, its start-up included", beside_fio),
        row("hashing as much in memory, clusters of 64 KiB", beside_hashing),
    ])
}

/// User and system time of a program, and of what it starts.
fn cpu_of_child(command: &mut Command) -> Result<f64> {
    settle()?;
    let before = used(UsageWho::RUSAGE_CHILDREN)?;
    run(command)?;
    Ok(used(UsageWho::RUSAGE_CHILDREN)? - before)
}

/// User and system time, in seconds.
pub fn used(who: UsageWho) -> Result<f64> {
    let usage = getrusage(who).context("ask for the CPU time")?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn hashing_of_one_gib() -> Result<f64> {
    let bytes = noise(HASHED_LEN, 1);
    let before = used(UsageWho::RUSAGE_THREAD)?;
    for _ in 0..(1 << 30) / HASHED_LEN {
        hash(&bytes);
    }
    Ok(used(UsageWho::RUSAGE_THREAD)? - before)
}

fn hash(bytes: &[u8]) {
    for cluster in bytes.chunks(CLUSTER_LEN) {
        black_box(Digest::of_cluster(cluster));
    }
}

/// Seconds in which all cores hash so many bytes, which lie in memory.
pub fn hashing_seconds(size_bytes: u64) -> f64 {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let bytes = noise(HASHED_LEN, 1);
    let rounds = size_bytes as f64 / HASHED_LEN as f64;
    let begun = Instant::now();
    thread::scope(|scope| {
        for part in bytes.chunks(HASHED_LEN.div_ceil(cores)) {
            scope.spawn(move || hash(part));
        }
    });
    begun.elapsed().as_secs_f64() * rounds
}
