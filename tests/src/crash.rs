//! Crashes of the real programs on real filesystems, and the oracle of what must be there afterwards.
//!
//! A [`World`] is a source, a store on a filesystem of its own, and a journal of what was acknowledged. The
//! journal knows the bytes of each image from the source itself, so no digest of ours is checked against itself.

use crate::program;
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::statvfs::statvfs;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use testkit::guard::{LoopDevice, Mount, ScratchDir};
use testkit::process::run;
use testkit::{Random, noise};

/// Bytes of a cluster of the images made here.
pub const CLUSTER: u64 = 16 << 10;
/// `_IOR('X', 125, u32)`: cuts a filesystem off from its device (ext4, xfs).
const FS_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587d;
const JOB: &str = "web01";

/// A filesystem that stores lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// With its default, ordered journal.
    Ext4,
    /// Which orders no data before metadata.
    Xfs,
    /// Which never overwrites; it has no shutdown.
    Btrfs,
}

impl Kind {
    /// As mount(8) knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

/// A small filesystem on a loop device.
#[derive(Debug)]
pub struct StoreFs {
    /// Before the device: it goes first.
    mount: Option<Mount>,
    device: LoopDevice,
    target: PathBuf,
    kind: Kind,
}

impl StoreFs {
    /// Makes and mounts one of `size_bytes` in `dir`.
    pub fn new(dir: &ScratchDir, kind: Kind, size_bytes: u64) -> Result<Self> {
        let device = LoopDevice::attach(&dir.sparse_file("store.fs", size_bytes)?)?;
        let force = if kind == Kind::Ext4 { "-F" } else { "-f" };
        run(Command::new(format!("mkfs.{}", kind.name()))
            .args(["-q", force])
            .arg(device.path()))?;
        let mut fs = Self {
            mount: None,
            device,
            target: dir.join("mnt"),
            kind,
        };
        fs.mount()?;
        Ok(fs)
    }

    fn mount(&mut self) -> Result<()> {
        let mount = Mount::new(
            self.device.path(),
            &self.target,
            self.kind.name(),
            MsFlags::empty(),
        )?;
        self.mount = Some(mount);
        Ok(())
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Its loop device.
    pub fn device(&self) -> &Path {
        self.device.path()
    }

    /// Cuts it off at once. `flags`: 0 writes everything first, 1 the journal only, 2 nothing.
    pub fn shut_down(&self, flags: u32) -> Result<()> {
        let dir = File::open(&self.target)?;
        // SAFETY: FS_IOC_SHUTDOWN reads one u32, which outlives the call; the descriptor is open.
        Errno::result(unsafe { libc::ioctl(dir.as_raw_fd(), FS_IOC_SHUTDOWN, &raw const flags) })
            .map(drop)
            .context("FS_IOC_SHUTDOWN")
    }

    /// As after the next boot.
    pub fn remount(&mut self) -> Result<()> {
        if let Some(mount) = self.mount.take() {
            mount.unmount()?;
        }
        self.mount()
    }

    /// Bytes that root may still write.
    pub fn free_bytes(&self) -> Result<u64> {
        let stat = statvfs(&self.target)?;
        let blocks = match self.kind {
            // It counts as free what only its metadata may use.
            Kind::Btrfs => stat.blocks_available(),
            Kind::Ext4 | Kind::Xfs => stat.blocks_free(),
        };
        Ok(blocks * stat.fragment_size())
    }

    /// Fills it until at most about `leave` bytes are free; 0: until no write succeeds.
    pub fn fill(&self, leave: u64) -> Result<PathBuf> {
        let path = self.target.join("filler");
        // xfs takes room ahead of a file's end and gives it back when the file is closed: hence several times.
        while self.append(&path, leave)? > 0 {}
        Ok(path)
    }

    /// Appends until there is no more room, and says how many bytes that were.
    fn append(&self, path: &Path, leave: u64) -> Result<u64> {
        let mut file = File::options().create(true).append(true).open(path)?;
        let mut written = 0;
        for step in [1 << 20, 64 << 10, 4 << 10] {
            let block = noise(step, 99);
            while leave == 0 || self.free_bytes()? > leave {
                // btrfs tells of no room when it is synced.
                match file.write_all(&block).and_then(|()| file.sync_all()) {
                    Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => break,
                    done => done?,
                }
                written += block.len() as u64;
            }
        }
        Ok(written)
    }
}

/// How the programs are interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The filesystem goes first, then the program.
    PowerCut,
    /// `kill -9`.
    Kill,
}

/// What was interrupted, and what came of it.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// Interrupted while they ran, by operation.
    pub interrupted: BTreeMap<&'static str, u64>,
    /// Ended before the crash reached them, by operation.
    pub ended: BTreeMap<&'static str, u64>,
    /// Syncs that went on with an unfinished one.
    pub resumed: u64,
    /// Syncs that were acknowledged.
    pub synced: u64,
    /// Images whose deletion was acknowledged.
    pub deleted: u64,
    /// Images compared with their bytes.
    pub compared: u64,
    /// Runs of `verify` on everything.
    pub verified: u64,
}

/// What the journal holds of an image.
#[derive(Debug, Clone)]
struct Known {
    bytes: blake3::Hash,
    digest: String,
}

/// A source, a store that crashes, and what must be in it.
#[derive(Debug)]
pub struct World {
    /// Counts so far.
    pub counts: Counts,
    /// The store's filesystem.
    pub fs: StoreFs,
    dir: ScratchDir,
    source: File,
    source_bytes: u64,
    random: Random,
    /// Acknowledged: must be there.
    images: BTreeMap<u64, Known>,
    /// Syncs and deletions that were interrupted: there or not, but whole if there.
    maybe: BTreeMap<u64, Known>,
    /// The highest number that any image had.
    highest: u64,
    rounds: u64,
    took: BTreeMap<&'static str, Duration>,
}

/// One of a user's commands.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Sync,
    Remove(u64),
    Collect,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Remove(_) => "rm",
            Self::Collect => "gc",
        }
    }
}

impl World {
    /// An empty store of `store_bytes`, and a source that is half noise.
    pub fn new(kind: Kind, seed: u64, store_bytes: u64, source_bytes: u64) -> Result<Self> {
        let dir = ScratchDir::new(&format!("crash-{}", kind.name()))?;
        let fs = StoreFs::new(&dir, kind, store_bytes)?;
        let path = dir.sparse_file("source.raw", source_bytes)?;
        let source = File::options().read(true).write(true).open(path)?;
        let half = usize::try_from(source_bytes / 2)?;
        source.write_all_at(&noise(half, seed), 0)?;
        Ok(Self {
            counts: Counts::default(),
            fs,
            dir,
            source,
            source_bytes,
            random: Random::new(seed),
            images: BTreeMap::new(),
            maybe: BTreeMap::new(),
            highest: 0,
            rounds: 0,
            took: BTreeMap::new(),
        })
    }

    fn store(&self) -> PathBuf {
        self.fs.path().join("store")
    }

    fn layers(&self) -> PathBuf {
        self.store().join(JOB).join("layers")
    }

    fn command(&self, operation: Operation) -> Command {
        let mut command = Command::new(program(match operation {
            Operation::Sync => "smcd",
            Operation::Remove(_) | Operation::Collect => "smc-image",
        }));
        match operation {
            Operation::Sync => {
                command.args(["sync", "--json", "--checkpoint-every=0", "--cluster-size=16KiB"]);
                command.args(["--job", JOB, "--store"]).arg(self.store());
                let source = self.dir.join("source.raw");
                command.arg("--disk").arg(format!("vda={}", source.display()));
            }
            Operation::Remove(sequence) => {
                command.args(["--json", "--store"]).arg(self.store());
                command.args(["rm", &format!("{JOB}/{sequence}")]);
            }
            Operation::Collect => {
                command.args(["--json", "--store"]).arg(self.store());
                command.args(["gc", JOB]);
            }
        }
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `smc-image --json`, which must succeed, and returns its objects.
    pub fn image(&self, args: &[&str]) -> Result<Vec<Value>> {
        let output = Command::new(program("smc-image"))
            .args(["--json", "--store"])
            .arg(self.store())
            .args(args)
            .output()?;
        ensure!(
            output.status.success(),
            "smc-image {args:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout)?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// Changes a few clusters of the source, or now and then a fifth of it.
    pub fn change_source(&mut self) -> Result<()> {
        let clusters = self.source_bytes / CLUSTER;
        let count = match self.random.below(6) {
            0 => clusters / 5,
            _ => 1 + self.random.below(60),
        };
        for _ in 0..count {
            let cluster = self.random.below(clusters);
            let seed = self.random.below(u64::MAX >> 16);
            let bytes = match seed % 4 {
                0 => vec![0; usize::try_from(CLUSTER)?],
                _ => noise(usize::try_from(CLUSTER)?, seed),
            };
            self.source.write_all_at(&bytes, cluster * CLUSTER)?;
        }
        Ok(())
    }

    /// Writes noise over half of the source.
    pub fn overwrite_source(&mut self, seed: u64) -> Result<()> {
        let half = usize::try_from(self.source_bytes / 2)?;
        Ok(self.source.write_all_at(&noise(half, seed), 0)?)
    }

    fn known_source(&self) -> Result<Known> {
        let path = self.dir.join("source.raw");
        let reported = self.digest(&["digest", "--cluster-size=16K", &path.display().to_string()])?;
        Ok(Known {
            bytes: blake3::hash(&fs::read(&path)?),
            digest: reported,
        })
    }

    /// The digest that `smc-image digest` prints.
    fn digest(&self, args: &[&str]) -> Result<String> {
        let objects = self.image(args)?;
        let digest = objects.first().and_then(|object| object["digest"].as_str());
        Ok(digest.context("no digest is printed")?.to_owned())
    }

    /// One operation of a random kind, interrupted at a random moment, and a look at what is left.
    pub fn round(&mut self, crash: Crash) -> Result<()> {
        self.rounds += 1;
        let operation = self.choose();
        if matches!(operation, Operation::Sync) && self.random.below(3) > 0 {
            self.change_source()?;
        }
        let source = self.known_source()?;
        let before = self.took.get(operation.name()).copied();
        let longest = before.unwrap_or(Duration::from_millis(200)) * 11 / 10;
        let micros = self.random.below(u64::try_from(longest.as_micros())?);
        let begun = Instant::now();
        let mut child = self.command(operation).spawn()?;
        wait_for(&mut child, begun + Duration::from_micros(micros))?;
        let ended = child.try_wait()?.is_some();
        let took = begun.elapsed();
        if crash == Crash::PowerCut {
            let flags = [2, 2, 2, 2, 1, 0][usize::try_from(self.random.below(6))?];
            self.fs.shut_down(flags)?;
            thread::sleep(Duration::from_millis(self.random.below(20)));
        }
        // Fails only where it has ended.
        let _ = child.kill();
        let output = child.wait_with_output()?;
        let counted = if ended {
            &mut self.counts.ended
        } else {
            &mut self.counts.interrupted
        };
        *counted.entry(operation.name()).or_default() += 1;
        // The crash's moment is spread over what an undisturbed run takes.
        let known = self.took.entry(operation.name()).or_insert(longest);
        *known = if ended { took } else { *known * 21 / 20 }
            .clamp(Duration::from_millis(5), Duration::from_secs(5));
        self.note(operation, &output, source)?;
        if crash == Crash::PowerCut {
            self.fs.remount()?;
        }
        self.check(crash)
            .with_context(|| format!("after {operation:?} ({}), round {}", tell(&output), self.rounds))?;
        if self.random.below(2) == 0 {
            self.undisturbed(Operation::Sync)?;
            self.check(Crash::Kill)?;
        }
        if self.random.below(12) == 0 {
            self.undisturbed(Operation::Collect)?;
            self.check(Crash::Kill)?;
        }
        Ok(())
    }

    fn choose(&mut self) -> Operation {
        let count = self.images.len() as u64;
        let remove = match count {
            0..2 => false,
            2..8 => self.random.below(4) == 0,
            _ => self.random.below(8) != 0,
        };
        if remove {
            let which = match self.random.below(3) {
                0 => 0,
                1 => count - 1,
                _ => self.random.below(count),
            };
            let which = usize::try_from(which).unwrap_or_default();
            if let Some((&sequence, _)) = self.images.iter().nth(which) {
                return Operation::Remove(sequence);
            }
        }
        if self.random.below(7) == 0 && count > 0 {
            return Operation::Collect;
        }
        Operation::Sync
    }

    /// Runs an operation to its end; it must succeed.
    fn undisturbed(&mut self, operation: Operation) -> Result<()> {
        let source = self.known_source()?;
        let begun = Instant::now();
        let output = self.command(operation).output()?;
        ensure!(
            output.status.success(),
            "{operation:?} after crashes, round {}: {}",
            self.rounds,
            tell(&output)
        );
        self.took.insert(operation.name(), begun.elapsed());
        self.note(operation, &output, source)
    }

    /// An undisturbed sync.
    pub fn sync(&mut self) -> Result<()> {
        self.undisturbed(Operation::Sync)
    }

    /// An undisturbed `gc`.
    pub fn collect(&mut self) -> Result<()> {
        self.undisturbed(Operation::Collect)
    }

    /// Runs a sync whatever comes of it, and notes what was acknowledged.
    pub fn try_sync(&mut self) -> Result<Output> {
        let source = self.known_source()?;
        let output = self.command(Operation::Sync).output()?;
        self.note(Operation::Sync, &output, source)?;
        Ok(output)
    }

    /// Runs an `rm` whatever comes of it, and notes what was acknowledged.
    pub fn try_remove(&mut self, sequence: u64) -> Result<Output> {
        let source = self.known_source()?;
        let output = self.command(Operation::Remove(sequence)).output()?;
        self.note(Operation::Remove(sequence), &output, source)?;
        Ok(output)
    }

    /// Numbers of the acknowledged images.
    pub fn sequences(&self) -> Vec<u64> {
        self.images.keys().copied().collect()
    }

    /// Writes what was acknowledged into the journal, and what may have happened.
    fn note(&mut self, operation: Operation, output: &Output, source: Known) -> Result<()> {
        let report: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        match operation {
            Operation::Collect => {}
            Operation::Sync if output.status.success() => {
                let report = report.context("a sync that succeeded reported nothing")?;
                self.counts.synced += 1;
                self.counts.resumed += u64::from(report["resumed"] == true);
                let label = report["image"].as_str().context("no image in the report")?;
                let sequence = label.rsplit('/').next().unwrap_or_default().parse()?;
                self.maybe.remove(&sequence);
                self.images.insert(sequence, source);
                self.highest = self.highest.max(sequence);
            }
            Operation::Sync => {
                // Its number is not known: one that nobody saw. Those that are not listed fall away at the check.
                for sequence in self.highest + 1..self.highest + 1000 {
                    self.maybe.insert(sequence, source.clone());
                }
            }
            Operation::Remove(sequence) => {
                let known = self
                    .images
                    .remove(&sequence)
                    .or_else(|| self.maybe.remove(&sequence));
                let is_gone =
                    output.status.success() || report.is_some_and(|report| report["deleted"].is_string());
                self.counts.deleted += u64::from(is_gone);
                if let (false, Some(known)) = (is_gone, known) {
                    self.maybe.insert(sequence, known);
                }
            }
        }
        Ok(())
    }

    /// The oracle.
    fn check(&mut self, after: Crash) -> Result<()> {
        if !self.store().join("store.json").exists() {
            ensure!(
                self.images.is_empty(),
                "the store is gone, with {} images",
                self.images.len()
            );
            self.maybe.clear();
            return Ok(());
        }
        let listed = self.listed()?;
        for sequence in self.images.keys() {
            ensure!(
                listed.contains(sequence),
                "image {sequence} is lost; listed: {listed:?}"
            );
        }
        for &sequence in &listed {
            let known = self.images.get(&sequence).or_else(|| self.maybe.get(&sequence));
            let known = known.with_context(|| format!("image {sequence} came back; it was deleted"))?;
            let reported = self.digest(&["digest", &format!("{JOB}/{sequence}:vda")])?;
            ensure!(
                reported == known.digest,
                "image {sequence} is {reported}, not {}",
                known.digest
            );
        }
        self.settle(after, &listed);
        match self.rounds % 10 {
            0 => self.verify(),
            5 => {
                let which = self.random.below(listed.len() as u64);
                self.compare(usize::try_from(which)?)
            }
            _ => Ok(()),
        }
    }

    /// What is seen after a power cut is on the media. After a kill, a name may still be in memory only.
    fn settle(&mut self, after: Crash, listed: &[u64]) {
        let newest = listed.last().copied().unwrap_or_default();
        self.highest = self.highest.max(newest);
        let maybe = std::mem::take(&mut self.maybe);
        for (sequence, known) in maybe {
            let is_listed = listed.contains(&sequence);
            if is_listed && after == Crash::PowerCut {
                self.images.insert(sequence, known);
            } else if after == Crash::Kill && (is_listed || sequence <= newest) {
                self.maybe.insert(sequence, known);
            }
        }
    }

    fn listed(&self) -> Result<Vec<u64>> {
        if !self.store().join(JOB).join("images").exists() {
            return Ok(Vec::new());
        }
        let mut listed: Vec<u64> = self
            .image(&["ls"])?
            .iter()
            .filter_map(|object| object["sequence"].as_u64())
            .collect();
        listed.sort_unstable();
        Ok(listed)
    }

    /// Everything in the store, read and checked.
    pub fn verify(&mut self) -> Result<()> {
        self.counts.verified += 1;
        self.image(&["verify"]).map(drop)
    }

    /// Exports one of the images and compares its bytes.
    fn compare(&mut self, which: usize) -> Result<()> {
        let Some((&sequence, known)) = self.images.iter().nth(which) else {
            return Ok(());
        };
        let target = self.dir.join("exported.raw");
        let label = format!("{JOB}/{sequence}:vda");
        self.image(&["export", "--force", &label, &target.display().to_string()])?;
        let bytes = blake3::hash(&fs::read(&target)?);
        ensure!(
            bytes == known.bytes,
            "image {sequence} has other bytes than its source had"
        );
        self.counts.compared += 1;
        Ok(())
    }

    /// Bytes allocated to all layers.
    pub fn layer_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(self.layers())? {
            bytes += entry?.metadata()?.blocks() * 512;
        }
        Ok(bytes)
    }

    /// The end: every image byte for byte, and no space lost once only the newest is left.
    pub fn finish(&mut self) -> Result<()> {
        self.sync()?;
        self.verify()?;
        for which in 0..self.images.len() {
            self.compare(which)?;
        }
        let listed = self.listed()?;
        let (&newest, older) = listed.split_last().context("no image is left")?;
        for &sequence in older {
            self.undisturbed(Operation::Remove(sequence))?;
        }
        self.collect()?;
        self.check(Crash::Kill)?;
        self.verify()?;
        let (took, referenced) = (self.layer_bytes()?, self.referenced(newest)?);
        // Partly filled blocks, headers, and a filesystem's own blocks for the layers' maps.
        let bound = referenced + referenced / 10 + (1 << 20);
        ensure!(
            took <= bound,
            "layers take {took} bytes for {referenced} that are referenced"
        );
        Ok(())
    }

    /// Bytes that an image points to, from its manifest.
    fn referenced(&self, sequence: u64) -> Result<u64> {
        let path = self.store().join(JOB).join(format!("images/{sequence:06}.json"));
        let text = fs::read_to_string(path)?;
        let (json, _seal) = text
            .rsplit_once("blake3:")
            .context("a manifest without its seal")?;
        let manifest: Value = serde_json::from_str(json)?;
        let layers = manifest["layers"]
            .as_array()
            .context("a manifest without layers")?;
        Ok(layers
            .iter()
            .filter_map(|layer| layer["referenced"].as_u64())
            .sum())
    }
}

/// Waits until then, or until the child has ended.
pub(crate) fn wait_for(child: &mut Child, until: Instant) -> Result<()> {
    while Instant::now() < until && child.try_wait()?.is_none() {
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

pub(crate) fn tell(output: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    format!("{}: {out}{err}", output.status)
}

/// Runs `count` rounds and checks the end.
pub fn rounds(world: &mut World, crash: Crash, count: u64) -> Result<()> {
    for _ in 0..count {
        world.round(crash)?;
    }
    if world.counts.interrupted.is_empty() {
        bail!("no crash met a running program: {:?}", world.counts);
    }
    world.finish()
}
