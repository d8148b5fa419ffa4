//! Rounds of one store and two disks: changes, also while a sync runs; tracked syncs; `kill -9` and `SIGTERM` in the middle
//! of them; deletions; and after each round an image that must equal the disks byte for byte.

use super::Methods;
use super::known::{Driver, KnownDisk, same};
use crate::crash::{tell, wait_for};
use crate::{Bench, program};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use testkit::Random;
use testkit::guard::Mount;
use testkit::process::check_interrupt;

const JOB: &str = "web01";
const DISKS: [(&str, Driver, u64); 2] = [("vda", Driver::Loop, 24 << 20), ("vdb", Driver::Zram, 12 << 20)];
/// Images that are kept.
const IMAGES_MAX: usize = 5;
/// Changes that each of the two writers of a disk makes while a sync runs, at most.
const CHANGES_MEANWHILE: usize = 150;
/// What a sync after a kill, and one whose image before was deleted, may give as the reason of a scan.
const EXPECTED: [&str; 2] = ["was interrupted", "another image"];
/// What any sync may give as the reason after one that began while the disk was written to on a busy machine: a writer
/// that is stopped between two counts looks like a lost write.
const UNCERTAIN: &str = "count of written sectors is wrong";

/// What was done, and what came of it.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// Rounds.
    pub rounds: u64,
    /// Syncs that made an image.
    pub syncs: u64,
    /// How they found what had changed.
    pub methods: Methods,
    /// Syncs that were killed while they ran, and that had made their image all the same.
    pub killed: (u64, u64),
    /// Syncs that were asked to end while they ran, and ended without an image.
    pub stopped: u64,
    /// Syncs that ended before a signal reached them.
    pub missed: u64,
    /// Syncs that resumed an unfinished one.
    pub resumed: u64,
    /// Syncs during which the disks were written to, and the changes made then.
    pub written_to: (u64, u64),
    /// Images that were deleted.
    pub deleted: u64,
    /// Images of disks that were compared byte for byte, with the bytes of the moment when they were made.
    pub compared: u64,
    /// Clusters of 16 KiB compared so.
    pub clusters: u64,
    /// Runs of `verify --against`.
    pub verified: u64,
}

impl Counts {
    /// Adds those of another life.
    pub fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.syncs += other.syncs;
        self.methods.add(&other.methods);
        self.killed.0 += other.killed.0;
        self.killed.1 += other.killed.1;
        self.stopped += other.stopped;
        self.missed += other.missed;
        self.resumed += other.resumed;
        self.written_to.0 += other.written_to.0;
        self.written_to.1 += other.written_to.1;
        self.deleted += other.deleted;
        self.compared += other.compared;
        self.clusters += other.clusters;
        self.verified += other.verified;
    }
}

/// What each disk of an image must hold; absent for one that was made while the disks were written to.
type Content = Option<Vec<blake3::Hash>>;

/// A store, a tracker of its own, and two disks.
#[derive(Debug)]
pub struct Life {
    /// Counts so far.
    pub counts: Counts,
    disks: Vec<KnownDisk>,
    images: BTreeMap<u64, Content>,
    random: Random,
    /// Whether the next sync may scan: the one before was killed, or its image deleted.
    may_scan: bool,
    took: Duration,
    _bpf: Mount,
    bench: Bench,
}

impl Life {
    /// A loop device and a zram device, and a first image of them.
    ///
    /// # Errors
    /// What the system says, and whatever is not true.
    pub fn new(seed: u64) -> Result<Self> {
        let bench = Bench::new("truth")?;
        let bpf = Mount::bpf(&bench.dir.join("bpf"))?;
        let disk = |(_, driver, size)| KnownDisk::new(&bench.dir, driver, size, seed);
        let mut life = Self {
            counts: Counts::default(),
            disks: DISKS.into_iter().map(disk).collect::<Result<_>>()?,
            images: BTreeMap::new(),
            random: Random::new(seed),
            may_scan: false,
            took: Duration::from_millis(200),
            _bpf: bpf,
            bench,
        };
        life.quiet_sync()?;
        Ok(life)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(program("smcd"));
        command
            .args(["sync", "--json", "--checkpoint-every=0", "--cluster-size=16KiB"])
            .args(["--job", JOB, "--track", "--store"])
            .arg(self.bench.store())
            .arg("--tracker-directory")
            .arg(self.bench.dir.join("bpf/smc"));
        for ((name, ..), disk) in DISKS.iter().zip(&self.disks) {
            command
                .arg("--disk")
                .arg(format!("{name}={}", disk.path().display()));
        }
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// One round.
    ///
    /// # Errors
    /// Whatever is not true.
    pub fn round(&mut self) -> Result<()> {
        check_interrupt()?;
        self.counts.rounds += 1;
        self.change()?;
        match self.random.below(12) {
            0 | 1 => self.end_a_sync(Signal::SIGKILL)?,
            2 => self.end_a_sync(Signal::SIGTERM)?,
            3..6 => self.sync_while_written_to()?,
            6 => self.remove()?,
            7 => self.compare_an_older_image()?,
            _ => {}
        }
        if self.random.below(3) == 0 {
            self.change()?;
        }
        self.quiet_sync()?;
        if self.images.len() > IMAGES_MAX {
            self.remove()?;
        }
        Ok(())
    }

    /// Changes a few places of each disk, or none, or many.
    fn change(&mut self) -> Result<()> {
        for disk in &mut self.disks {
            let most = [0, 4, 30, 150][usize::try_from(self.random.below(4))?];
            let count = self.random.below(most + 1);
            disk.change(&mut self.random, count)?;
        }
        Ok(())
    }

    /// A sync while nobody writes: its image equals the disks, and unless something spoke against it, it was tracked.
    fn quiet_sync(&mut self) -> Result<()> {
        let begun = Instant::now();
        let output = self.command().output()?;
        self.took = begun.elapsed().min(Duration::from_secs(5));
        let sequence = self.made(&output, true)?;
        self.compare(sequence)?;
        if self.random.below(10) == 0 {
            self.verify_against(sequence)?;
            self.disks.iter().try_for_each(KnownDisk::check)?;
        }
        Ok(())
    }

    /// Notes the image of a sync that succeeded, and returns its number.
    fn made(&mut self, output: &Output, is_quiet: bool) -> Result<u64> {
        ensure!(output.status.success(), "sync: {}", tell(output));
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let label = report["image"].as_str().context("no image in the report")?;
        let sequence = label.rsplit('/').next().unwrap_or_default().parse()?;
        self.counts.syncs += 1;
        self.counts.resumed += u64::from(report["resumed"] == true);
        self.counts.methods.count(&report)?;
        self.check_methods(&report)?;
        self.may_scan = false;
        self.images.insert(sequence, is_quiet.then(|| self.hashes()));
        Ok(sequence)
    }

    /// No audit finds anything, and nothing that was not expected leads to a scan.
    fn check_methods(&self, report: &Value) -> Result<()> {
        for disk in report["disks"].as_array().into_iter().flatten() {
            let reason = disk["method_reason"].as_str().unwrap_or_default();
            ensure!(!reason.contains("missed writes"), "an audit found: {reason}");
            let is_expected = self.may_scan && EXPECTED.iter().any(|expected| reason.contains(expected));
            ensure!(
                disk["method"] != "scan" || is_expected || reason.contains(UNCERTAIN),
                "a scan of {}: {reason}",
                disk["name"]
            );
        }
        Ok(())
    }

    fn hashes(&self) -> Vec<blake3::Hash> {
        self.disks.iter().map(|disk| blake3::hash(&disk.bytes)).collect()
    }

    /// Starts a sync, has the disks written to meanwhile or not, and ends it at a random moment.
    fn end_a_sync(&mut self, signal: Signal) -> Result<()> {
        let is_quiet = self.random.below(2) == 0;
        let moment = self.random.below(u64::try_from(self.took.as_micros())? * 11 / 10);
        let until = Instant::now() + Duration::from_micros(moment);
        let mut child = self.command().spawn()?;
        let end = |child: &mut Child| -> Result<bool> {
            wait_for(child, until)?;
            let runs = child.try_wait()?.is_none();
            // Not yet waited for: the number is still its own.
            kill(Pid::from_raw(i32::try_from(child.id())?), signal).ok();
            Ok(runs)
        };
        let runs = match is_quiet {
            true => end(&mut child)?,
            false => self.meanwhile(|| end(&mut child))?,
        };
        let output = child.wait_with_output()?;
        if output.status.success() {
            self.counts.missed += u64::from(!runs);
            return self.made(&output, is_quiet).map(drop);
        }
        match signal {
            Signal::SIGKILL => {
                self.counts.killed.0 += 1;
                self.may_scan = true;
                self.note_images_of_the_dead(is_quiet)
            }
            // Before it can catch the signal, it has begun nothing: the next sync may not scan.
            _ if output.status.signal() == Some(libc::SIGTERM) => Ok(()),
            _ => {
                ensure!(output.status.code() == Some(1), "SIGTERM: {}", tell(&output));
                self.counts.stopped += 1;
                Ok(())
            }
        }
    }

    /// A sync that was killed may have made its image.
    fn note_images_of_the_dead(&mut self, is_quiet: bool) -> Result<()> {
        for object in self.bench.image_json(&["ls"])? {
            let Some(sequence) = object["sequence"].as_u64() else {
                continue;
            };
            if !self.images.contains_key(&sequence) {
                self.counts.killed.1 += 1;
                self.images.insert(sequence, is_quiet.then(|| self.hashes()));
                if is_quiet {
                    self.compare(sequence)?;
                }
            }
        }
        Ok(())
    }

    fn sync_while_written_to(&mut self) -> Result<()> {
        let mut command = self.command();
        let output = self.meanwhile(|| Ok(command.output()?))?;
        self.made(&output, false).map(drop)
    }

    /// Writes to all disks by two writers each, while `work` is done.
    fn meanwhile<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let stop = AtomicBool::new(false);
        let seeds: Vec<u64> = (0..4).map(|_| self.random.next_u64()).collect();
        let (done, changes) = thread::scope(|scope| -> Result<_> {
            let mut writers = Vec::new();
            for (writer, &seed) in (0..).zip(&seeds) {
                let (disk, stop) = (&self.disks[usize::from(writer >= 2)], &stop);
                let until = || stop.load(Ordering::Relaxed);
                writers
                    .push(scope.spawn(move || disk.change_stripes(writer, seed, CHANGES_MEANWHILE, until)));
            }
            let done = work();
            stop.store(true, Ordering::Relaxed);
            let ended = writers.into_iter().map(|writer| match writer.join() {
                Ok(changes) => changes,
                Err(_) => bail!("a writer panicked"),
            });
            Ok((done?, ended.collect::<Result<Vec<_>>>()?))
        })?;
        self.counts.written_to.0 += 1;
        for (writer, changes) in changes.iter().enumerate() {
            self.counts.written_to.1 += changes.len() as u64;
            let disk = &mut self.disks[usize::from(writer >= 2)];
            changes.iter().for_each(|change| disk.note(change));
        }
        Ok(done)
    }

    /// Deletes an image: now and then the newest, so that the tracker's bits are relative to none that is there.
    fn remove(&mut self) -> Result<()> {
        let count = self.images.len();
        if count < 2 {
            return Ok(());
        }
        let which = match self.random.below(10) {
            0 => count - 1,
            _ => usize::try_from(self.random.below(count as u64 - 1))?,
        };
        let (&sequence, _) = self.images.iter().nth(which).context("an image")?;
        self.bench.image_json(&["rm", &format!("{JOB}/{sequence}")])?;
        self.images.remove(&sequence);
        self.may_scan |= which == count - 1;
        self.counts.deleted += 1;
        Ok(())
    }

    fn compare_an_older_image(&mut self) -> Result<()> {
        let known = self.images.iter().filter(|(_, content)| content.is_some());
        let known: Vec<u64> = known.map(|(&sequence, _)| sequence).collect();
        let which = usize::try_from(self.random.below(known.len() as u64))?;
        known
            .get(which)
            .map_or(Ok(()), |&sequence| self.compare(sequence))
    }

    /// Exports all disks of an image and compares their bytes.
    fn compare(&mut self, sequence: u64) -> Result<()> {
        let Some(Some(hashes)) = self.images.get(&sequence) else {
            bail!("image {sequence} was made while the disks were written to");
        };
        let target = self.bench.dir.join("exported.raw");
        for (place, (name, ..)) in DISKS.iter().enumerate() {
            let label = format!("{JOB}/{sequence}:{name}");
            self.bench
                .image_json(&["export", "--force", &label, &target.display().to_string()])?;
            let bytes = fs::read(&target)?;
            if blake3::hash(&bytes) != hashes[place] {
                same(&bytes, &self.disks[place].bytes).with_context(|| {
                    format!("image {label} is not what the disk was; compared with the disk now")
                })?;
                bail!("image {label} is what the disk is now, and not what it was");
            }
            self.counts.compared += 1;
            self.counts.clusters += bytes.len() as u64 >> 14;
        }
        Ok(())
    }

    /// The programs' own comparison says the same.
    fn verify_against(&mut self, sequence: u64) -> Result<()> {
        for ((name, ..), disk) in DISKS.iter().zip(&self.disks) {
            self.bench
                .same_as_device(&format!("{JOB}/{sequence}"), name, disk.path())?;
            self.counts.verified += 1;
        }
        Ok(())
    }

    /// What must be true at the end.
    fn finish(&mut self) -> Result<()> {
        for sequence in self.images.keys().copied().collect::<Vec<_>>() {
            if self.images[&sequence].is_some() {
                self.compare(sequence)?;
            }
        }
        self.bench.image_json(&["verify"])?;
        self.disks.iter().try_for_each(KnownDisk::check)?;
        ensure!(
            self.counts.methods.tracked > 0,
            "nothing was tracked: {:?}",
            self.counts
        );
        Ok(())
    }
}

/// Lives so many rounds.
///
/// # Errors
/// Whatever is not true, with the counts so far.
pub fn live(seed: u64, rounds: u64) -> Result<Counts> {
    let mut life = Life::new(seed)?;
    let done = (0..rounds).try_for_each(|_| life.round());
    done.and_then(|()| life.finish())
        .with_context(|| format!("seed {seed}: {:#?}", life.counts))?;
    Ok(life.counts)
}
