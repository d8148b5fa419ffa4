//! A long life of one store under damage, by the real programs: the source is written to and synced, bits of the store's files
//! flip and files are lost, everything is verified, images are deleted by `rm` and by retention, `gc` runs, and whatever runs
//! is killed now and then (`kill -9`).
//!
//! What must hold: whatever was read of an image, its bytes are those of the source when it was made. An image that `ls` calls
//! good restores, as long as nothing was damaged since it was verified. While there is such an image, retention and `rm` leave
//! one. And once everything was verified, the next sync makes a good image, since the source has the bytes.

use crate::crash::{tell, wait_for};
use crate::program;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use testkit::guard::ScratchDir;
use testkit::{Random, noise};

const CLUSTER: u64 = 16 << 10;
const JOB: &str = "web01";
const UNFINISHED: &str = "web01/unfinished";
/// How many images retention leaves.
const IMAGES_MAX: &str = "4";

/// What was tried, and what came of it.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// Rounds.
    pub rounds: u64,
    /// Syncs that ended, and those of them that had to make a good image.
    pub syncs: u64,
    /// Those of them that had to make a good image, and did.
    pub proven: u64,
    /// Clusters that syncs stored anew.
    pub repaired: u64,
    /// Files that were damaged or lost.
    pub damages: u64,
    /// Programs that were killed while they ran, by name.
    pub killed: BTreeMap<&'static str, u64>,
    /// Restores of images that had to succeed, and did.
    pub restored: u64,
    /// Restores of other images, which gave the right bytes too.
    pub lucky: u64,
    /// Restores that were refused because of damage.
    pub refused: u64,
    /// Images that were deleted.
    pub deleted: u64,
    /// Times that chain.json was damaged and had to be removed by hand.
    pub chain_records: u64,
    /// Times that nothing of the chain could be read any more, and the images were deleted.
    pub given_up: u64,
}

/// A source, a store that is damaged, and what each image held.
#[derive(Debug)]
pub struct Damaged {
    /// Counts so far.
    pub counts: Counts,
    dir: ScratchDir,
    source: File,
    source_bytes: u64,
    random: Random,
    /// What the source held when each image was made, if it is there.
    images: BTreeMap<u64, blake3::Hash>,
    /// Whether everything was verified since something was damaged last.
    is_known: bool,
    took: BTreeMap<&'static str, Duration>,
}

/// What `ls` says of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    Damaged,
    Other,
}

impl State {
    fn of(object: &Value) -> Self {
        let verdict = &object["verified"];
        if object["damaged"] == true || !verdict["damage"].is_null() {
            return Self::Damaged;
        }
        let is_good = !verdict["complete"].is_null() && verdict["stopped"].is_null();
        if is_good { Self::Good } else { Self::Other }
    }
}

impl Damaged {
    /// An empty store, and a source of so many bytes, half of which are noise.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(seed: u64, source_bytes: u64) -> Result<Self> {
        let dir = ScratchDir::new("damaged")?;
        let path = dir.sparse_file("source.raw", source_bytes)?;
        let source = File::options().read(true).write(true).open(path)?;
        source.write_all_at(&noise(usize::try_from(source_bytes / 2)?, seed), 0)?;
        Ok(Self {
            counts: Counts::default(),
            dir,
            source,
            source_bytes,
            random: Random::new(seed),
            images: BTreeMap::new(),
            is_known: true,
            took: BTreeMap::new(),
        })
    }

    fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    fn chain(&self) -> PathBuf {
        self.store().join(JOB)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.random.below(count) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let at = usize::try_from(self.random.below(from.len() as u64)).ok()?;
        from.get(at).cloned()
    }

    fn image_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("smc-image"));
        command.args(["--json", "--store"]).arg(self.store()).args(args);
        command.env("SMC_RESTORED", self.dir.join("restored.d"));
        command
    }

    fn sync_command(&self, with_retention: bool) -> Command {
        let mut command = Command::new(program("smcd"));
        command.args([
            "sync",
            "--json",
            "--checkpoint-every=0",
            "--cluster-size=16KiB",
            "--job",
            JOB,
        ]);
        command.arg("--store").arg(self.store());
        let source = self.dir.join("source.raw");
        command.arg("--disk").arg(format!("vda={}", source.display()));
        if with_retention {
            command.args(["--max-images", IMAGES_MAX]);
        }
        command
    }

    /// Runs a program to its end, or kills it at a random moment of what it usually takes: then there is no output.
    fn run(&mut self, name: &'static str, mut command: Command, may_kill: bool) -> Result<Option<Output>> {
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let begun = Instant::now();
        if may_kill && self.one_in(3) {
            let longest = self.took.get(name).copied().unwrap_or(Duration::from_millis(100));
            let micros = self.random.below(u64::try_from(longest.as_micros())?);
            let mut child = command.spawn()?;
            wait_for(&mut child, begun + Duration::from_micros(micros))?;
            if child.try_wait()?.is_none() {
                child.kill()?;
                child.wait()?;
                *self.counts.killed.entry(name).or_default() += 1;
                return Ok(None);
            }
            return Ok(Some(child.wait_with_output()?));
        }
        let output = command.output()?;
        self.took.insert(name, begun.elapsed());
        Ok(Some(output))
    }

    /// The beginning: an image, damage in the middle of what it stored, and the sync that repairs it.
    ///
    /// # Errors
    /// When that does not hold; what the system says.
    pub fn begin(&mut self) -> Result<()> {
        self.sync(false)?;
        let mut files = Vec::new();
        files_below(&self.chain().join("layers"), &mut files)?;
        let layer = File::options()
            .read(true)
            .write(true)
            .open(files.first().context("no layer")?)?;
        let middle = layer.metadata()?.len() / 2;
        let mut byte = [0];
        layer.read_exact_at(&mut byte, middle)?;
        layer.write_all_at(&[byte[0] ^ 1], middle)?;
        self.is_known = false;
        self.verify(false)?;
        self.sync(false)?;
        ensure!(self.counts.repaired > 0, "nothing is repaired: {:?}", self.counts);
        Ok(())
    }

    /// One step of that life, and a look at what is there.
    ///
    /// # Errors
    /// When something does not hold; what the system says.
    pub fn round(&mut self) -> Result<()> {
        self.counts.rounds += 1;
        let step = self.random.below(16);
        let stepped = match step {
            0..=1 => self.write(),
            2..=6 => self.write().and_then(|()| self.sync(true)),
            7..=10 => self.damage(),
            11..=13 => self.verify(true),
            14 => self.remove(),
            _ => self.collect(),
        };
        let checked = stepped.and_then(|()| self.check());
        checked.with_context(|| format!("round {} (step {step}): {:?}", self.counts.rounds, self.counts))
    }

    /// Changes some clusters of the source.
    fn write(&mut self) -> Result<()> {
        let clusters = self.source_bytes / CLUSTER;
        for _ in 0..=self.random.below(24) {
            let cluster = self.random.below(clusters);
            let seed = self.random.below(1 << 40);
            let bytes = match seed % 4 {
                0 => vec![0; usize::try_from(CLUSTER)?],
                1 => seed.to_le_bytes().repeat(usize::try_from(CLUSTER / 8)?),
                _ => noise(usize::try_from(CLUSTER)?, seed),
            };
            self.source.write_all_at(&bytes, cluster * CLUSTER)?;
        }
        Ok(())
    }

    fn source_hash(&self) -> Result<blake3::Hash> {
        Ok(blake3::hash(&fs::read(self.dir.join("source.raw"))?))
    }

    fn sync(&mut self, may_kill: bool) -> Result<()> {
        let must_be_good = self.is_known && !self.has_checkpoint();
        let (hash, before) = (self.source_hash()?, self.states()?);
        let with_retention = self.one_in(2);
        let command = self.sync_command(with_retention);
        let Some(output) = self.run("sync", command, may_kill)? else {
            return self.look_for_images(hash, &before, with_retention);
        };
        if !output.status.success() {
            self.put_right(&output)?;
            return self.sync(false);
        }
        self.counts.syncs += 1;
        let report: Value =
            serde_json::from_slice(&output.stdout).context("what smcd sync --json printed")?;
        self.counts.repaired += repaired_clusters(&report);
        self.look_for_images(hash, &before, with_retention)?;
        let newest = *self.images.last_key_value().context("a sync made no image")?.0;
        if !must_be_good {
            self.is_known = false;
            return Ok(());
        }
        self.prove(newest)
            .with_context(|| format!("a sync after everything was verified: {}", tell(&output)))
    }

    fn has_checkpoint(&self) -> bool {
        self.chain().join("checkpoint.json").exists()
    }

    /// Does what the error says that a sync ended with: a damaged chain.json is removed; and where it is gone, and every
    /// manifest is damaged, so are the images. Nothing else ends a sync for good.
    fn put_right(&mut self, output: &Output) -> Result<()> {
        let said = tell(output);
        if said.contains("chain.json") && said.contains("remove the file") {
            fs::remove_file(self.chain().join("chain.json")).with_context(|| said.clone())?;
            self.counts.chain_records += 1;
            return Ok(());
        }
        ensure!(said.contains("delete the images"), "a sync fails: {said}");
        for sequence in self.states()?.into_keys() {
            self.remove_by_force(sequence)?;
            self.forget(&[sequence]);
        }
        self.counts.given_up += 1;
        Ok(())
    }

    /// Verifies one image, which must be good, and restores it.
    fn prove(&mut self, sequence: u64) -> Result<()> {
        let image = format!("{JOB}/{sequence}");
        let verified = self.image_command(&["verify", &image]).output()?;
        ensure!(
            verified.status.success(),
            "{image} is not good: {}",
            tell(&verified)
        );
        self.counts.proven += 1;
        Ok(())
    }

    /// Notes which images have come and gone.
    fn look_for_images(
        &mut self,
        source: blake3::Hash,
        before: &BTreeMap<u64, State>,
        with_retention: bool,
    ) -> Result<()> {
        let now = self.states()?;
        for sequence in now.keys().filter(|sequence| !before.contains_key(sequence)) {
            self.images.insert(*sequence, source);
            // A sync that was killed behind its commit: nobody has verified what it took over.
            self.is_known &= before.is_empty();
        }
        let gone: Vec<u64> = before
            .keys()
            .filter(|sequence| !now.contains_key(sequence))
            .copied()
            .collect();
        ensure!(
            gone.is_empty() || with_retention,
            "images {gone:?} are gone without retention"
        );
        self.forget(&gone);
        keeps_a_good_one(before, &now)
    }

    fn forget(&mut self, gone: &[u64]) {
        self.images.retain(|sequence, _| !gone.contains(sequence));
        self.counts.deleted += gone.len() as u64;
    }

    /// What `ls --json` shows; a damaged store has exit code 3.
    fn list(&self) -> Result<Vec<Value>> {
        let output = self.image_command(&["ls"]).output()?;
        if !self.store().join("store.json").exists() {
            return Ok(Vec::new());
        }
        ensure!(
            matches!(output.status.code(), Some(0 | 3)),
            "ls: {}",
            tell(&output)
        );
        let text = String::from_utf8(output.stdout)?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// All images, by number.
    fn states(&self) -> Result<BTreeMap<u64, State>> {
        let listed = self.list()?;
        Ok(listed
            .iter()
            .filter_map(|object| Some((number_of(object)?, State::of(object))))
            .collect())
    }

    /// Flips a bit of a file of the chain, cuts one off, or removes one; several times.
    fn damage(&mut self) -> Result<()> {
        let mut files = Vec::new();
        files_below(&self.chain(), &mut files)?;
        // Locks are empty, and manifests that are gone are images that are gone.
        files.retain(|path| path.extension().is_none_or(|ending| ending != "lock"));
        for _ in 0..=self.random.below(3) {
            let Some(path) = self.pick(&files) else {
                return Ok(());
            };
            self.damage_file(&path)?;
        }
        Ok(())
    }

    fn damage_file(&mut self, path: &Path) -> Result<()> {
        let Ok(metadata) = fs::metadata(path) else {
            // Removed a moment ago.
            return Ok(());
        };
        let is_manifest = path.parent().is_some_and(|dir| dir.ends_with("images"))
            && path.extension().is_some_and(|ending| ending == "json");
        match self.random.below(10) {
            0 if !is_manifest => fs::remove_file(path)?,
            1 => File::options()
                .write(true)
                .open(path)?
                .set_len(self.random.below(metadata.len()))?,
            _ => {
                let at = self.random.below(metadata.len());
                let file = File::options().read(true).write(true).open(path)?;
                let mut byte = [0];
                if file.read_at(&mut byte, at)? == 1 {
                    byte[0] ^= 1 << self.random.below(8);
                    file.write_all_at(&byte, at)?;
                }
            }
        }
        self.counts.damages += 1;
        self.is_known = false;
        Ok(())
    }

    fn verify(&mut self, may_kill: bool) -> Result<()> {
        if !self.store().join("store.json").exists() {
            return Ok(());
        }
        let command = self.image_command(&["verify"]);
        let Some(output) = self.run("verify", command, may_kill)? else {
            return Ok(());
        };
        ensure!(
            matches!(output.status.code(), Some(0 | 3)),
            "verify: {}",
            tell(&output)
        );
        self.is_known = true;
        Ok(())
    }

    /// Deletes an image, or what an unfinished sync has stored.
    fn remove(&mut self) -> Result<()> {
        let before = self.states()?;
        let known: Vec<u64> = before.keys().copied().collect();
        let Some(doomed) = self.pick(&known) else {
            return Ok(());
        };
        let what = if self.one_in(4) {
            UNFINISHED.to_owned()
        } else {
            format!("{JOB}/{doomed}")
        };
        let command = self.image_command(&["rm", &what]);
        if let Some(output) = self.run("rm", command, true)? {
            ensure!(
                matches!(output.status.code(), Some(0 | 1 | 3)),
                "rm {what}: {}",
                tell(&output)
            );
        }
        let now = self.states()?;
        let gone: Vec<u64> = before
            .keys()
            .filter(|sequence| !now.contains_key(sequence))
            .copied()
            .collect();
        ensure!(
            gone.is_empty() || (gone == [doomed] && what != UNFINISHED),
            "rm {what} deletes {gone:?}"
        );
        self.forget(&gone);
        keeps_a_good_one(&before, &now)
    }

    fn collect(&mut self) -> Result<()> {
        if self.images.is_empty() {
            return Ok(());
        }
        let command = self.image_command(&["gc", JOB]);
        if let Some(output) = self.run("gc", command, true)? {
            ensure!(
                matches!(output.status.code(), Some(0 | 3)),
                "gc: {}",
                tell(&output)
            );
        }
        Ok(())
    }

    /// Every image that there was is there, and gives the source's bytes or an error; a good one gives them.
    fn check(&mut self) -> Result<()> {
        let states = self.states()?;
        ensure!(
            states.keys().eq(self.images.keys()),
            "there are images {:?}, and should be {:?}",
            states.keys(),
            self.images.keys()
        );
        // All of them every time would be most of the work.
        let all: Vec<u64> = self.images.keys().copied().collect();
        for sequence in self.pick(&all).into_iter().chain(all.last().copied()) {
            let must = self.is_known && states.get(&sequence) == Some(&State::Good);
            self.restore(sequence, must)?;
        }
        Ok(())
    }

    fn restore(&mut self, sequence: u64, must: bool) -> Result<()> {
        let image = format!("{JOB}/{sequence}");
        let target = self.dir.join("target.raw");
        File::create(&target)?.set_len(self.source_bytes)?;
        let mut command = self.image_command(&["restore", "--yes", &image]);
        let output = command.arg(&target).output()?;
        if !output.status.success() {
            ensure!(!must, "{image} is good and cannot be restored: {}", tell(&output));
            ensure!(
                output.status.code() == Some(3),
                "restore {image}: {}",
                tell(&output)
            );
            self.counts.refused += 1;
            return Ok(());
        }
        let restored = blake3::hash(&fs::read(&target)?);
        ensure!(
            self.images.get(&sequence) == Some(&restored),
            "{image} is restored with other bytes"
        );
        *(if must {
            &mut self.counts.restored
        } else {
            &mut self.counts.lucky
        }) += 1;
        Ok(())
    }

    /// Deletes an image, whatever speaks for it.
    fn remove_by_force(&self, sequence: u64) -> Result<()> {
        let image = format!("{JOB}/{sequence}");
        let output = self.image_command(&["rm", "--force", &image]).output()?;
        ensure!(
            matches!(output.status.code(), Some(0 | 3)),
            "rm {image}: {}",
            tell(&output)
        );
        Ok(())
    }

    /// The end: everything is verified, and one more sync makes a good image, which stays when all others go.
    ///
    /// # Errors
    /// When something does not hold; what the system says.
    pub fn finish(&mut self) -> Result<()> {
        self.verify(false)?;
        // What an unfinished sync stored is known to be damaged only while it is read.
        let _ = self.image_command(&["rm", UNFINISHED]).output()?;
        self.sync(false)?;
        self.verify(false)?;
        let newest = *self.images.last_key_value().context("there is no image")?.0;
        self.restore(newest, true)?;
        for other in self.images.keys().copied().filter(|other| *other != newest) {
            self.remove_by_force(other)?;
        }
        self.images.retain(|sequence, _| *sequence == newest);
        let output = self.image_command(&["gc", JOB]).output()?;
        ensure!(output.status.success(), "gc at the end: {}", tell(&output));
        self.prove(newest)?;
        self.restore(newest, true)
    }
}

/// While a newer image than the newest good one is known to be damaged, the good one stays.
fn keeps_a_good_one(before: &BTreeMap<u64, State>, now: &BTreeMap<u64, State>) -> Result<()> {
    let newest = |wanted: State| {
        before
            .iter()
            .rev()
            .find(|(_, state)| **state == wanted)
            .map(|(number, _)| *number)
    };
    if let (Some(good), Some(damaged)) = (newest(State::Good), newest(State::Damaged)) {
        ensure!(
            damaged < good || now.contains_key(&good),
            "image {good} was good, and it is gone: {before:?}, then {now:?}"
        );
    }
    Ok(())
}

/// The number of the image that an object of `ls --json` is about.
fn number_of(object: &Value) -> Option<u64> {
    object["image"].as_str()?.rsplit_once('/')?.1.parse().ok()
}

fn repaired_clusters(report: &Value) -> u64 {
    let disks = report["disks"].as_array().map_or(&[][..], Vec::as_slice);
    disks
        .iter()
        .filter_map(|disk| disk["repaired_clusters"].as_u64())
        .sum()
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files_below(&entry.path(), found)?;
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(())
}

/// Lives through so many rounds.
///
/// # Errors
/// With the seed, when something does not hold.
pub fn live(seed: u64, source_bytes: u64, rounds: u64) -> Result<Counts> {
    let mut world = Damaged::new(seed, source_bytes)?;
    let lived = world
        .begin()
        .and_then(|()| (0..rounds).try_for_each(|_| world.round()))
        .and_then(|()| world.finish());
    lived.with_context(|| format!("a life under damage, seed {seed}"))?;
    Ok(world.counts)
}
