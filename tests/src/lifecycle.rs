//! The whole lifecycle of a job, with kills of the daemon on the way.

use crate::Disk;
use crate::service::Service;
use anyhow::{Result, bail, ensure};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use testkit::Random;

/// One job, whose daemon is killed again and again: what must be true is known at every step.
#[derive(Debug)]
pub struct Lifecycle {
    /// The daemon.
    pub service: Service,
    disk: Disk,
    random: Random,
    /// Bytes of the log that daemons wrote which were killed since.
    logged: usize,
    /// How often the daemon was killed.
    pub kills: u32,
    /// Kills during a sync.
    pub in_sync: u32,
}

const DISK_BYTES: u64 = 24 << 20;
const HOURS: u64 = 3600;

impl Lifecycle {
    /// A job that is created and not started.
    pub fn new(name: &str, seed: u64) -> Result<Self> {
        let service = Service::new(name)?;
        let disk = service.disk("source", DISK_BYTES)?;
        disk.write_noise(0, 12 << 20, seed)?;
        // Without this, no kill would hit the moment between an image's commit and the record of it.
        let hook = service.dir.join("hooks.d/linger");
        fs::write(&hook, "#!/bin/sh\n[ $1 = pre ] || sleep 0.03\n")?;
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
        let cycle = Self {
            service,
            disk,
            random: Random::new(seed),
            logged: 0,
            kills: 0,
            in_sync: 0,
        };
        cycle.service.create(&cycle.disk, &["--interval", "6h"])?;
        Ok(cycle)
    }

    /// Kills the daemon at a random moment of the next `within` milliseconds, and starts it again.
    fn kill_within(&mut self, within: u64) -> Result<()> {
        let wait = self.random.below(within * 1000);
        std::thread::sleep(Duration::from_micros(wait));
        self.service.kill()?;
        self.kills += 1;
        let log = self.service.log();
        let of_this_run = &log[self.logged.min(log.len())..];
        let count = |what: &str| of_this_run.matches(what).count();
        if count("sync begins") > count("sync succeeded") {
            self.in_sync += 1;
        }
        self.logged = log.len();
        self.service.start()
    }

    /// The whole lifecycle: a full sync, four by the clock, and the last one; with about `kills` kills on the way. It
    /// always ends the same.
    pub fn run(&mut self, kills: u32) -> Result<()> {
        let per_step = kills.div_ceil(6).max(1);
        self.step(per_step, &["job", "start", "web01"], "Waiting", 1)?;
        for round in 2..=5u64 {
            let offset = self.random.below(DISK_BYTES / (1 << 20) - 4) << 20;
            self.disk.write_noise(offset, 2 << 20, self.random.next_u64())?;
            self.service.pass(6 * HOURS + 1)?;
            self.step(per_step, &[], "Waiting", round)?;
        }
        self.step(
            per_step,
            &["job", "complete", "web01", "--last-sync"],
            "Finished",
            6,
        )?;
        self.check()
    }

    /// Asks for something, kills the daemon meanwhile, and waits until the job has this status and this many syncs have
    /// succeeded.
    fn step(&mut self, kills: u32, ask: &[&str], status: &str, successes: u64) -> Result<()> {
        if !ask.is_empty() {
            self.service.ask(ask)?;
        }
        for _ in 0..kills {
            let within = [8, 20, 60][usize::try_from(self.random.below(3))?];
            self.kill_within(within)?;
        }
        let done = |job: &Value| job["status"] == status && job["last_run"]["outcome"] == "succeeded";
        let runs = |service: &Service| -> Result<u64> {
            let made = service.runs("web01")?;
            let made = made.iter().filter(|run| run["outcome"] == "succeeded").count();
            Ok(u64::try_from(made)?)
        };
        self.service.wait_for("web01", status, |job| {
            done(job) && runs(&self.service).is_ok_and(|made| made >= successes)
        })?;
        let made = runs(&self.service)?;
        ensure!(
            made == successes,
            "{made} syncs made an image where {successes} were asked for"
        );
        // A complete image that a restart did not count would be made twice.
        let job = self.service.job("web01")?;
        let kept = job["images"].as_array().map_or(0, Vec::len);
        let expected = usize::try_from(successes.min(3))?;
        ensure!(kept == expected, "{kept} images after {successes} syncs: {job:#}");
        Ok(())
    }

    /// Kills between an image's commit and the record of it.
    pub fn concluded(&self) -> usize {
        self.service.log().matches("its image is complete").count()
    }

    /// What is true at the end of every lifecycle.
    fn check(&self) -> Result<()> {
        let job = self.service.job("web01")?;
        ensure!(job["status"] == "Finished", "{job:#}");
        ensure!(
            job["images"].as_array().is_some_and(|images| images.len() == 3),
            "{job:#}"
        );
        self.service.same_content("web01/latest", self.disk.path())?;
        self.service.verify()?;
        let refusal = self.service.refused(1, &["job", "sync", "web01"])?;
        ensure!(refusal.contains("Finished"), "{refusal}");
        if self.service.store().join("web01/checkpoint.json").exists() {
            bail!("an unfinished sync is left");
        }
        Ok(())
    }
}
