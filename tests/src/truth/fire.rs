//! fio writes to a loop and a zram device without a pause while tracked syncs run; when it has ended, one last tracked
//! sync equals the devices.

use super::Methods;
use super::known::{read_device, same};
use crate::{Bench, Disk};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use testkit::Random;
use testkit::device::{Blank, Zram, open_direct};
use testkit::guard::Mount;
use testkit::process::{check_interrupt, spawn};

const DISK_BYTES: u64 = 64 << 20;
/// How long fio writes before the devices are compared.
const SALVO_SECONDS: u64 = 8;
/// Between two syncs.
const PAUSE: Duration = Duration::from_millis(700);
/// Between two discards or zeroed ranges of our own.
const BETWEEN_BLANKS: Duration = Duration::from_millis(5);

/// How fio writes, each in its turn. The last is for drivers that get requests: others have no tags to wait for.
const JOBS: [&[&str]; 5] = [
    &[
        "--rw=randwrite",
        "--ioengine=io_uring",
        "--direct=1",
        "--iodepth=16",
    ],
    &[
        "--rw=randwrite",
        "--ioengine=libaio",
        "--direct=1",
        "--iodepth=16",
    ],
    &["--rw=randwrite", "--ioengine=psync", "--direct=0"],
    &["--rw=randtrim", "--ioengine=libaio", "--direct=1", "--iodepth=4"],
    &[
        "--rw=randwrite",
        "--ioengine=io_uring",
        "--direct=1",
        "--iodepth=64",
        "--nowait=1",
        "--ignore_error=,EAGAIN",
    ],
];

/// What was done, and what came of it.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// Times that fio was ended and everything compared.
    pub salvos: u64,
    /// Syncs while it wrote.
    pub syncs_meanwhile: u64,
    /// How all syncs found what had changed.
    pub methods: Methods,
    /// How the last sync of each salvo did.
    pub last_methods: Methods,
}

/// A running fio, ended with the guard.
#[derive(Debug)]
struct Fio(Child);

impl Fio {
    fn start(path: &Path, job: &[&str], seed: u64) -> Result<Self> {
        let mut command = Command::new("fio");
        command
            .arg(format!("--filename={}", path.display()))
            .arg(format!("--randseed={seed}"))
            .arg(format!("--runtime={SALVO_SECONDS}"))
            .args([
                "--name=fire",
                "--time_based",
                "--thread",
                "--bsrange=4k-64k",
                "--rate_iops=1500",
            ])
            .args(["--randrepeat=0", "--minimal", "--continue_on_error=write"])
            .args(job)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(spawn(&mut command)?))
    }

    fn has_ended(&mut self) -> Result<bool> {
        let status = self.0.try_wait()?;
        ensure!(status.is_none_or(|status| status.success()), "fio: {status:?}");
        Ok(status.is_some())
    }
}

impl Drop for Fio {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A store, a tracker of its own, and two disks.
struct Ground {
    disk: Disk,
    zram: Zram,
    _bpf: Mount,
    bench: Bench,
}

impl Ground {
    fn new() -> Result<Self> {
        let bench = Bench::new("fire")?;
        let bpf = Mount::bpf(&bench.dir.join("bpf"))?;
        Ok(Self {
            disk: bench.disk("disk.img", DISK_BYTES)?,
            zram: Zram::new(DISK_BYTES)?,
            _bpf: bpf,
            bench,
        })
    }

    fn disks(&self) -> [(&str, &Path); 2] {
        [("vda", self.disk.path()), ("vdb", self.zram.path())]
    }

    fn sync(&self) -> Result<Value> {
        let pins = format!("--tracker-directory={}", self.bench.dir.join("bpf/smc").display());
        let output = self
            .bench
            .sync_with(&self.disks(), &["--track", "--max-images=2", &pins])?;
        ensure!(output.status.success(), "sync: {}", crate::stderr(&output));
        serde_json::from_slice(&output.stdout).context("parse the report")
    }

    /// fio and discards of our own on both disks, and syncs meanwhile.
    fn salvo(&self, number: usize, counts: &mut Counts) -> Result<()> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for (place, (_, path)) in self.disks().into_iter().enumerate() {
                let (stop, seed) = (&stop, (number * 2 + place) as u64);
                scope.spawn(move || blank_parts(path, seed, stop));
            }
            let done = self.sync_under_fio(number, counts);
            stop.store(true, Ordering::Relaxed);
            done
        })
    }

    fn sync_under_fio(&self, number: usize, counts: &mut Counts) -> Result<()> {
        let start = |(place, (_, path)): (usize, (&str, &Path))| {
            let jobs = &JOBS[..JOBS.len() - place];
            Fio::start(path, jobs[(number + place * 2) % jobs.len()], number as u64)
        };
        let mut writers = self
            .disks()
            .into_iter()
            .enumerate()
            .map(start)
            .collect::<Result<Vec<_>>>()?;
        while !writers
            .iter_mut()
            .map(Fio::has_ended)
            .collect::<Result<Vec<_>>>()?
            .iter()
            .all(|&ended| ended)
        {
            counts.methods.count(&self.sync()?)?;
            counts.syncs_meanwhile += 1;
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// The last sync: its image equals the devices, says the program and say their bytes.
    fn compare(&self, counts: &mut Counts) -> Result<()> {
        let report = self.sync()?;
        counts.methods.count(&report)?;
        counts.last_methods.count(&report)?;
        let image = report["image"].as_str().context("no image")?;
        let target = self.bench.dir.join("exported.raw");
        for (name, path) in self.disks() {
            let label = format!("{image}:{name}");
            self.bench.same_as_device(image, name, path)?;
            self.bench
                .image_json(&["export", "--force", &label, &target.display().to_string()])?;
            same(&fs::read(&target)?, &read_device(path, DISK_BYTES)?)
                .with_context(|| format!("{label}: {report:#}"))?;
        }
        Ok(())
    }
}

/// Discards and zeroes parts of a disk until it is time to stop.
fn blank_parts(path: &Path, seed: u64, stop: &AtomicBool) {
    let mut random = Random::new(seed);
    let Ok(device) = open_direct(path) else { return };
    while !stop.load(Ordering::Relaxed) {
        let how = if random.below(2) == 0 {
            Blank::Discard
        } else {
            Blank::Zeroes
        };
        let start = random.below(DISK_BYTES / 4096 - 64);
        // What fails is not written, and shows in no comparison.
        let _ = how.range(&device, start * 4096, (random.below(64) + 1) * 4096);
        thread::sleep(BETWEEN_BLANKS);
    }
}

/// Holds so many salvos.
///
/// # Errors
/// Whatever is not true, with the counts so far.
pub fn fire(salvos: usize) -> Result<Counts> {
    let ground = Ground::new()?;
    let mut counts = Counts::default();
    let first = ground.sync()?;
    counts.methods.count(&first)?;
    let all = |counts: &mut Counts| -> Result<()> {
        for number in 0..salvos {
            check_interrupt()?;
            ground.salvo(number, counts)?;
            ground.compare(counts)?;
            counts.salvos += 1;
        }
        Ok(())
    };
    let done = all(&mut counts);
    done.with_context(|| format!("{counts:#?}"))?;
    ensure!(
        counts.methods.misses == 0,
        "an audit found missed writes: {counts:#?}"
    );
    ensure!(counts.methods.tracked > 0, "nothing was tracked: {counts:#?}");
    Ok(counts)
}
