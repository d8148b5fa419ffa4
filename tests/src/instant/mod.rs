//! That an image of class `filesystem` shows one instant: two disks under a workload that has an order, which every image must keep.

mod check;
pub mod postgres;

use crate::{Bench, Disk, code, stderr};
use anyhow::{Context, Result, bail, ensure};
use hostdev::{ProcessStat, Root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::Database;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use testkit::Random;
use testkit::guard::{Mount, wait_until_free};
use testkit::process::{spawn, wait_for};

/// xfs wants 300 MiB; the rest is for PostgreSQL.
const DISK_BYTES: u64 = 400 << 20;

/// Images of one pair of disks: after that, they are checked, and fresh disks are made.
const IMAGES_AT_ONCE: u64 = 25;

/// The longest that is allowed: on a busy machine a flush may take seconds, and nothing is frozen then with a shorter one.
const BUDGET: &str = "--freeze=10s";

const WORKLOAD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/instant/workload.py");

/// What came of syncs.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// Images of class `filesystem`, all of which were checked.
    pub instants: u64,
    /// Why others were not, and how often.
    pub missed: BTreeMap<String, u64>,
    /// Milliseconds for which writers were held.
    pub held_ms: Vec<u64>,
    /// Syncs that were killed, and those among them that had begun to freeze just before.
    pub killed: (u64, u64),
}

impl Counts {
    /// Adds what others counted.
    pub fn add(&mut self, other: Self) {
        self.instants += other.instants;
        self.held_ms.extend(other.held_ms);
        self.killed.0 += other.killed.0;
        self.killed.1 += other.killed.1;
        for (why, times) in other.missed {
            *self.missed.entry(why).or_default() += times;
        }
    }

    /// A line for people.
    pub fn in_short(&self) -> String {
        let mut held = self.held_ms.clone();
        held.sort_unstable();
        let median = held.get(held.len() / 2).copied().unwrap_or_default();
        let worst = held.last().copied().unwrap_or_default();
        format!(
            "{} images of one instant, all right; writers held for {median} ms (median), {worst} ms (worst); {} syncs killed, {} of \
             them freezing; no instant: {:?}",
            self.instants, self.killed.0, self.killed.1, self.missed
        )
    }

    fn note(&mut self, report: &Value) -> bool {
        let is_instant = report["consistency"] == "filesystem";
        if is_instant {
            self.instants += 1;
            let held = report["instant"]["held_us"].as_u64().unwrap_or_default();
            self.held_ms.push(held / 1000);
        } else {
            let why = report["consistency_reason"].as_str().unwrap_or_default();
            *self.missed.entry(why.to_owned()).or_default() += 1;
        }
        is_instant
    }
}

/// Two disks with a filesystem each, and a workload on them.
#[derive(Debug)]
pub struct Scene {
    writer: Option<Child>,
    database: Option<Database>,
    mounts: Option<[Mount; 2]>,
    /// The disks, `vda` and `vdb`.
    pub disks: [Disk; 2],
    _bpf: Mount,
    /// Where the store is.
    pub bench: Bench,
    fs_type: &'static str,
}

impl Scene {
    /// Filesystems of a type, which are being written to: by a PostgreSQL too.
    ///
    /// # Errors
    /// What cannot be made.
    pub fn new(fs_type: &'static str) -> Result<Self> {
        let mut scene = Self::without_database(fs_type)?;
        let points = scene.mount_points();
        scene.database = Some(Database::start([&points[0], &points[1]], scene.bench.dir.path())?);
        Ok(scene)
    }

    /// As [`new`](Self::new), without PostgreSQL: its images cannot be checked.
    ///
    /// # Errors
    /// What cannot be made.
    pub fn without_database(fs_type: &'static str) -> Result<Self> {
        let bench = Bench::new("instant")?;
        let bpf = Mount::bpf(&bench.dir.join("bpf"))?;
        let disks = [bench.disk("a", DISK_BYTES)?, bench.disk("b", DISK_BYTES)?];
        let mounts = [
            Mount::format(fs_type, disks[0].path(), &bench.dir.join("on-a"))?,
            Mount::format(fs_type, disks[1].path(), &bench.dir.join("on-b"))?,
        ];
        let mut scene = Self {
            writer: None,
            database: None,
            mounts: Some(mounts),
            disks,
            _bpf: bpf,
            bench,
            fs_type,
        };
        scene.write()?;
        Ok(scene)
    }

    fn write(&mut self) -> Result<()> {
        let mut command = Command::new("/usr/bin/python3");
        command.args([WORKLOAD, "write"]).args(self.mount_points());
        let mut writer = spawn(command.stdout(Stdio::piped()))?;
        let output = writer.stdout.take().context("no output")?;
        self.writer = Some(writer);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line == "ready\n", "the workload has ended");
        Ok(())
    }

    /// Where the filesystems are mounted, as long as they are.
    pub fn mount_points(&self) -> Vec<PathBuf> {
        let mounts = self.mounts.iter().flatten();
        mounts.map(|mount| mount.path().to_owned()).collect()
    }

    /// `smcd sync` of both disks, with the tracker of this scene.
    pub fn command(&self, more: &[&str]) -> Command {
        let [a, b] = &self.disks;
        let mut command = self.bench.sync_command(&[("vda", a.path()), ("vdb", b.path())]);
        let pins = self.bench.dir.join("bpf/smc");
        command.arg(format!("--tracker-directory={}", pins.display()));
        command.args(more);
        command
    }

    /// A sync that succeeds; what it reported.
    ///
    /// # Errors
    /// It failed.
    pub fn sync(&self, more: &[&str]) -> Result<Value> {
        let output = self.command(more).output()?;
        ensure!(code(&output) == 0, "smcd sync: {}", stderr(&output));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Waits until somebody can write to both filesystems.
    pub fn assert_thawed(&self) {
        for point in self.mount_points() {
            let mut touch = Command::new("touch");
            // A process of its own: while it is frozen, it waits where no signal reaches it.
            let mut touch = touch.arg(point.join("thawed")).spawn().expect("run touch");
            wait_for("a frozen filesystem to be thawed", || {
                touch.try_wait().is_ok_and(|ended| ended.is_some())
            });
        }
    }

    /// Ends the workload, so that the disks stand still.
    ///
    /// # Errors
    /// The filesystems stay busy.
    pub fn quiet(&mut self) -> Result<()> {
        self.end_writer();
        for mount in self.mounts.take().into_iter().flatten() {
            mount.unmount()?;
        }
        for disk in &self.disks {
            wait_until_free(disk.path())?;
        }
        Ok(())
    }

    fn end_writer(&mut self) {
        let (mut writer, mut database) = (self.writer.take(), self.database.take());
        let _ = writer.as_mut().map(Child::kill);
        let _ = database.as_mut().map(Database::interrupt);
        for point in self.mount_points() {
            // Should it be frozen for ever, the workload would wait for ever, and this process for it.
            let mut thaw = Command::new("fsfreeze");
            let _ = thaw.arg("-u").arg(point).stderr(Stdio::null()).status();
        }
        let _ = writer.as_mut().map(Child::wait);
        let _ = database.map(Database::wait);
    }

    /// The last image of disks that stand still equals them.
    ///
    /// # Errors
    /// It does not.
    pub fn check_last(&self) -> Result<()> {
        let report = self.sync(&[])?;
        let image = report["image"].as_str().context("no image")?;
        let [a, b] = &self.disks;
        self.bench.same_as_device(image, "vda", a.path())?;
        self.bench.same_as_device(image, "vdb", b.path())
    }

    /// Begins a sync and waits until it is in FIFREEZE; `None` if it was over before that was seen.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn freezing(&self, budget: &str) -> Result<Option<Child>> {
        let mut child = self.command(&[budget]).stdout(Stdio::piped()).spawn()?;
        let path = format!("/proc/{}/syscall", child.id());
        // The number of ioctl, a descriptor, and FIFREEZE.
        let is_freezing = |text: &str| text.split(' ').nth(2) == Some("0xc0045877");
        while child.try_wait()?.is_none() {
            if fs::read_to_string(&path).is_ok_and(|text| is_freezing(&text)) {
                return Ok(Some(child));
            }
        }
        Ok(None)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.end_writer();
    }
}

/// Makes so many images of class `filesystem`, and checks each.
///
/// # Errors
/// An image that does not show one instant, or too few of the class.
pub fn images(fs_type: &'static str, count: u64) -> Result<Counts> {
    let mut all = Counts::default();
    while all.instants < count {
        let mut scene = Scene::new(fs_type)?;
        let (mut counts, mut made) = (Counts::default(), Vec::new());
        let wanted = (count - all.instants).min(IMAGES_AT_ONCE);
        for _ in 0..wanted * 3 {
            let report = scene.sync(&[BUDGET])?;
            if counts.note(&report) {
                made.push(report["image"].as_str().context("no image")?.to_owned());
            }
            if counts.instants == wanted {
                break;
            }
        }
        ensure!(
            counts.instants == wanted,
            "{fs_type}: too few instants: {counts:?}"
        );
        scene.quiet()?;
        for image in &made {
            scene
                .check(image)
                .with_context(|| format!("{fs_type}: {image}"))?;
        }
        if let [first, .., last] = &made[..] {
            scene.check_mixture(first, last)?;
        }
        scene.check_last()?;
        all.add(counts);
    }
    Ok(all)
}

/// Kills so many syncs, most of them when they freeze. After each, everything is thawed and the next image is right.
///
/// # Errors
/// An image that is not right.
pub fn kills(fs_type: &'static str, count: u64, seed: u64) -> Result<Counts> {
    let mut random = Random::new(seed);
    let mut all = Counts::default();
    while all.killed.0 < count {
        let mut scene = Scene::new(fs_type)?;
        let (mut counts, mut made) = (Counts::default(), Vec::new());
        for _ in 0..(count - all.killed.0).min(IMAGES_AT_ONCE) {
            scene.kill_one(&mut random, &mut counts)?;
            scene.assert_thawed();
            let report = scene.sync(&[BUDGET])?;
            if counts.note(&report) {
                made.push(report["image"].as_str().context("no image")?.to_owned());
            }
        }
        scene.quiet()?;
        for image in made {
            scene
                .check(&image)
                .with_context(|| format!("{fs_type}, seed {seed}: {image}"))?;
        }
        scene.check_last()?;
        all.add(counts);
    }
    Ok(all)
}

impl Scene {
    fn kill_one(&self, random: &mut Random, counts: &mut Counts) -> Result<()> {
        let pause = Duration::from_micros(random.below(80_000));
        let anywhere = random.below(4) == 0;
        let (mut child, pause) = if anywhere {
            (self.command(&[BUDGET]).stdout(Stdio::null()).spawn()?, pause * 25)
        } else {
            match self.freezing(BUDGET)? {
                Some(child) => (child, pause),
                None => return Ok(()),
            }
        };
        std::thread::sleep(pause);
        child.kill()?;
        child.wait()?;
        counts.killed.0 += 1;
        counts.killed.1 += u64::from(!anywhere);
        Ok(())
    }

    /// Stops a sync that is freezing, until the watchdog has thawed, and lets it go on. It does not call its image an instant.
    ///
    /// # Errors
    /// It does, or no sync is met at the right moment.
    pub fn stop_in_freeze(&self) -> Result<Value> {
        for _ in 0..20 {
            let Some(child) = self.freezing("--freeze=5s")? else {
                continue;
            };
            let process = Pid::from_raw(i32::try_from(child.id())?);
            kill(process, Signal::SIGSTOP)?;
            // FIFREEZE is not interrupted: the sync stops behind it, with the filesystem frozen. A SIGCONT before that would undo the stop.
            wait_for("the sync to stop or to end", || {
                ProcessStat::read(&Root::system(), child.id())
                    .is_ok_and(|found| found.is_none_or(|found| matches!(found.state, 'T' | 'Z')))
            });
            self.assert_thawed();
            kill(process, Signal::SIGCONT)?;
            let output = child.wait_with_output()?;
            ensure!(code(&output) == 0, "the sync fails: {}", stderr(&output));
            let report: Value = serde_json::from_slice(&output.stdout)?;
            let held = report["instant"]["held_us"].as_u64().unwrap_or_default();
            // Otherwise it was stopped after it had thawed.
            if held >= 5_000_000 {
                ensure!(report["consistency"] == "fuzzy", "{report}");
                return Ok(report);
            }
        }
        bail!("no sync was met in FIFREEZE")
    }
}

/// The program that checks a filesystem without changing it, and its arguments.
pub fn checker(fs_type: &str) -> (&'static str, &'static [&'static str]) {
    match fs_type {
        "ext4" => ("e2fsck", &["-fn"]),
        "xfs" => ("xfs_repair", &["-n"]),
        _ => ("btrfs", &["check"]),
    }
}
