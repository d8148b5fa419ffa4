//! `kill -9` of the service at random moments of the life of a job whose disk is tracked: the next image equals the disk.

use super::Methods;
use super::known::{Driver, KnownDisk, same};
use crate::program;
use crate::service::Service;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use testkit::Random;
use testkit::guard::Mount;
use testkit::process::{check_interrupt, run};

const DISK_BYTES: u64 = 24 << 20;
/// A little more than the job's interval.
const INTERVAL_SECONDS: u64 = 301;

/// What was done, and what came of it.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// Times that the service was killed.
    pub kills: u64,
    /// Times among them that a sync was running.
    pub in_sync: u64,
    /// Syncs that were resumed or begun by the service itself and made an image before the next one was asked for.
    pub by_itself: u64,
    /// How syncs found what had changed.
    pub methods: Methods,
    /// Images that were compared byte for byte.
    pub compared: u64,
}

/// A job with a disk that is tracked.
#[derive(Debug)]
pub struct TrackedJob {
    /// Counts so far.
    pub counts: Counts,
    disk: KnownDisk,
    random: Random,
    took: Duration,
    /// The newest run that was looked at.
    seen: u64,
    /// What the disk held when the service was killed, and the newest image that was there then.
    before: (Vec<u8>, u64),
    _bpf: Mount,
    service: Service,
}

impl TrackedJob {
    /// A job that waits for its second sync.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(driver: Driver, seed: u64) -> Result<Self> {
        let (service, bpf) = Service::tracking("truthjob")?;
        let disk = KnownDisk::new(&service.dir, driver, DISK_BYTES, seed)?;
        let device = format!("vda={}", disk.path().display());
        let mut create = vec!["job", "create", "web01", "--disk", &device];
        create.extend(["--interval", "5m", "--max-images", "3", "--cluster-size", "16KiB"]);
        service.ask(&create)?;
        service.ask(&["job", "start", "web01", "--wait"])?;
        let mut job = Self {
            counts: Counts::default(),
            disk,
            random: Random::new(seed),
            took: Duration::from_millis(200),
            seen: 0,
            before: (Vec::new(), 0),
            _bpf: bpf,
            service,
        };
        job.look()?;
        Ok(job)
    }

    /// Changes, a sync by hand or by the schedule, a kill at a random moment, and what the next images are.
    ///
    /// # Errors
    /// Whatever is not true.
    pub fn round(&mut self) -> Result<()> {
        check_interrupt()?;
        self.change()?;
        match self.random.below(3) {
            0 => self.service.pass(INTERVAL_SECONDS)?,
            _ => self.service.ask(&["job", "sync", "web01"]).map(drop)?,
        }
        let micros = self.random.below(u64::try_from(self.took.as_micros())? * 12 / 10);
        thread::sleep(Duration::from_micros(micros));
        let runs = self.service.job("web01")?["status"] == "Running";
        self.service.kill()?;
        self.counts.kills += 1;
        self.counts.in_sync += u64::from(runs);
        self.before = (self.disk.bytes.clone(), self.newest()?);
        if self.random.below(2) == 0 {
            self.change()?;
        }
        self.service.start()?;
        self.service.wait_status("web01", "Waiting")?;
        self.counts.by_itself += u64::from(self.look()?);
        // One that is tracked, unless the last one could not be resumed so soon.
        let begun = Instant::now();
        self.service.ask(&["job", "sync", "web01", "--wait"])?;
        self.took = begun.elapsed().min(Duration::from_secs(5));
        ensure!(self.look()?, "no image: {:#}", self.service.job("web01")?);
        Ok(())
    }

    fn change(&mut self) -> Result<()> {
        let count = self.random.below(60);
        self.disk.change(&mut self.random, count)
    }

    /// Whether there is a new image; it equals the disk.
    fn look(&mut self) -> Result<bool> {
        let last = self.service.job("web01")?["last_run"].clone();
        let number = last["number"].as_u64().context("a run")?;
        if number == self.seen || last["outcome"] != "succeeded" {
            return Ok(false);
        }
        self.seen = number;
        self.counts.methods.count(&last)?;
        ensure!(self.counts.methods.misses == 0, "an audit found: {last:#}");
        self.compare(&last)?;
        Ok(true)
    }

    fn on_store(&self) -> Command {
        let mut command = Command::new(program("smc-image"));
        command.arg("--store").arg(self.service.store());
        command
    }

    /// The number of the newest image, as the store has it.
    fn newest(&self) -> Result<u64> {
        let listed = run(self.on_store().args(["--json", "ls"]))?;
        let sequence = |line| -> Result<u64> {
            let object: Value = serde_json::from_str(line)?;
            Ok(object["sequence"].as_u64().unwrap_or_default())
        };
        let sequences = listed.lines().map(sequence).collect::<Result<Vec<_>>>()?;
        sequences.into_iter().max().context("no image is left")
    }

    fn compare(&mut self, run_of_job: &Value) -> Result<()> {
        let image = run_of_job["image"].as_str().context("an image")?;
        let target = self.service.dir.join("exported.raw");
        run(self.on_store().args(["export", "--force", image]).arg(&target))?;
        let expected = match number_of(image)? <= self.before.1 {
            true => &self.before.0,
            false => &self.disk.bytes,
        };
        same(&fs::read(&target)?, expected)
            .with_context(|| format!("{image} is not what the disk is: {run_of_job:#}"))?;
        self.counts.compared += 1;
        Ok(())
    }
}

fn number_of(image: &str) -> Result<u64> {
    let number = image.rsplit('/').next().unwrap_or_default();
    number.parse().with_context(|| format!("the number of {image}"))
}

/// So many kills of one service.
///
/// # Errors
/// Whatever is not true, with the counts so far.
pub fn live(driver: Driver, seed: u64, kills: u64) -> Result<Counts> {
    let mut job = TrackedJob::new(driver, seed)?;
    let done = (0..kills).try_for_each(|_| job.round());
    done.and_then(|()| job.disk.check())
        .with_context(|| format!("seed {seed}: {:#?}", job.counts))?;
    ensure!(
        job.counts.methods.tracked > 0,
        "nothing was tracked: {:#?}",
        job.counts
    );
    Ok(job.counts)
}
