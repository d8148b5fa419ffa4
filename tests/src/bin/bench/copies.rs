//! What reads an image whole (export, restore, verify), beside the tools that do the same work.

use crate::cpu::hashing_seconds;
use crate::fill::{self, Layout};
use crate::measure::{Comparison, Goal, Pair, dd, fio_read_seconds, run, settle, timed};
use anyhow::{Context, Result};
use serde_json::Value;
use smc_tests::{Bench, Disk, program};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the measured disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Pseudo-random bytes.
    Noise,
    /// What servers hold.
    Files,
}

/// One image of a disk, the disk, and a device of the same size to restore to.
struct Subject {
    bench: Bench,
    disk: Disk,
    target: Disk,
}

/// Export to a raw file, restore and verification of an image of `size_bytes`.
pub fn copies(bench: Bench, content: Content, size_bytes: u64, rounds: usize) -> Result<Vec<Comparison>> {
    eprintln!("copies: filling {} MiB ({content:?})", size_bytes >> 20);
    let disk = bench.disk("disk.img", size_bytes)?;
    let target = bench.disk("target.img", size_bytes)?;
    match content {
        Content::Noise => fill::with_noise(&disk, Layout::Full)?,
        Content::Files => fill::with_files(&disk, Layout::Full)?,
    }
    bench.sync(&[("vda", disk.path())])?;
    let subject = Subject { bench, disk, target };
    let is_noise = content == Content::Noise;
    let titles = |noise, files| if is_noise { noise } else { files };
    let export = titles("export to raw, incompressible", "export to raw, compressible");
    let restore = titles(
        "restore to a device, not verified, incompressible",
        "restore to a device, not verified, compressible",
    );
    let verify = titles("verify, incompressible", "verify, compressible");
    // All cores decompress what is compressed: a device may be faster than that.
    let verify_goal = if is_noise {
        Goal::RateAtLeast(0.7)
    } else {
        Goal::Beside
    };
    let rows: [(&'static str, &str, Goal, Work, Work); 5] = [
        (
            export,
            "restore to a file, without its verification",
            Goal::TimeAtMost(1.0),
            Subject::export,
            Subject::restore_to_file,
        ),
        (
            export,
            "`qemu-img convert -t none -T none -W -m 16 -O raw` of the disk, fsync included",
            Goal::Beside,
            Subject::export,
            Subject::convert_to_file,
        ),
        (
            export,
            "`dd bs=1M iflag=direct oflag=direct conv=fsync` of the disk",
            Goal::Beside,
            Subject::export,
            Subject::dd,
        ),
        (
            restore,
            "`qemu-img convert -n -t none -T none -W -m 16 -O raw` to the same device",
            Goal::Beside,
            Subject::restore_to_device,
            Subject::convert_to_device,
        ),
        (
            verify,
            "fio reading the stored bytes, depth 16, or all cores hashing them, whichever is slower",
            verify_goal,
            Subject::verify,
            Subject::read_or_hash,
        ),
    ];
    let measured = rows.map(|(what, against, goal, ours, theirs)| -> Result<Comparison> {
        let mut pairs = Vec::new();
        for round in 1..=rounds {
            let pair = Pair {
                ours: ours(&subject)?,
                theirs: theirs(&subject)?,
            };
            eprintln!(
                "{what}: round {round} of {rounds}: ours {:.2} s, {against} {:.2} s",
                pair.ours, pair.theirs
            );
            pairs.push(pair);
        }
        Ok(Comparison {
            what,
            against: against.to_owned(),
            goal,
            pairs,
            stored: None,
        })
    });
    measured.into_iter().collect()
}

/// Does the work once, and says how many seconds it took.
type Work = fn(&Subject) -> Result<f64>;

impl Subject {
    fn image(&self) -> Command {
        let mut command = Command::new(program("smc-image"));
        command.arg("--store").arg(self.bench.store()).arg("--json");
        command.env("SMC_RESTORED", self.bench.dir.join("restored.d"));
        command
    }

    /// A file that is written anew each time.
    fn file(&self) -> Result<PathBuf> {
        let path = self.bench.dir.join("copy.raw");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(path),
        }
    }

    fn export(&self) -> Result<f64> {
        let file = self.file()?;
        timed(|| run(self.image().args(["export", "web01/1"]).arg(file)).map(drop))
    }

    fn restore_to_file(&self) -> Result<f64> {
        let file = self.file()?;
        File::create_new(&file)?.set_len(self.disk.size_bytes)?;
        self.restore(&file)
    }

    fn restore_to_device(&self) -> Result<f64> {
        self.restore(self.target.path())
    }

    /// The time until everything was written durably, which restore reports.
    fn restore(&self, target: &Path) -> Result<f64> {
        settle()?;
        let output = run(self.image().args(["restore", "web01/1"]).arg(target).arg("--yes"))?;
        let report: Value = serde_json::from_slice(&output).context("parse what restore --json printed")?;
        report["write_seconds"]
            .as_f64()
            .context("restore reports no write_seconds")
    }

    fn convert_to_file(&self) -> Result<f64> {
        self.convert(&[], &self.file()?)
    }

    fn convert_to_device(&self) -> Result<f64> {
        self.convert(&["-n"], self.target.path())
    }

    fn convert(&self, more: &[&str], target: &Path) -> Result<f64> {
        let mut command = Command::new("qemu-img");
        command.args([
            "convert", "-t", "none", "-T", "none", "-W", "-m", "16", "-f", "raw", "-O", "raw",
        ]);
        command.args(more).arg(self.disk.path()).arg(target);
        timed(|| {
            run(&mut command)?;
            Ok(File::open(target)?.sync_all()?)
        })
    }

    fn dd(&self) -> Result<f64> {
        let mut command = dd(self.disk.path(), &self.file()?);
        timed(|| run(&mut command).map(drop))
    }

    fn verify(&self) -> Result<f64> {
        timed(|| run(self.image().arg("verify")).map(drop))
    }

    /// What no verification can be faster than.
    fn read_or_hash(&self) -> Result<f64> {
        let reading = self.read_stored()?;
        let hashing = hashing_seconds(self.disk.size_bytes);
        eprintln!("verify: fio reads in {reading:.2} s, all cores hash in {hashing:.2} s");
        Ok(reading.max(hashing))
    }

    /// The time that fio itself took for the reading, its start-up left out.
    fn read_stored(&self) -> Result<f64> {
        settle()?;
        let layer = largest_file(&self.bench.store())?;
        let mut command = Command::new("fio");
        command.args([
            "--name=read",
            "--rw=read",
            "--bs=1M",
            "--ioengine=io_uring",
            "--iodepth=16",
        ]);
        command
            .arg("--direct=1")
            .arg(format!("--filename={}", layer.display()));
        fio_read_seconds(&mut command)
    }
}

/// The layer that holds the disk's content.
fn largest_file(store: &Path) -> Result<PathBuf> {
    let mut waiting = vec![store.to_owned()];
    let mut largest = (0, None);
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                waiting.push(entry.path());
            } else if metadata.len() > largest.0 {
                largest = (metadata.len(), Some(entry.path()));
            }
        }
    }
    largest.1.context("the store has no files")
}
