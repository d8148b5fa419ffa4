//! A long life of one job under damage: writes to its disks, syncs that are stopped and killed, flipped bits and lost
//! layers, verifications, deletions and `gc`, in random order.
//!
//! Three things hold after every round. A reader gets the right bytes or an error. An image that was verified as good
//! stays good for as long as nothing new is damaged, whatever else is done to the store. And once everything was
//! verified, the next sync makes a good image, however damaged the others are, because the source has the bytes.

use super::{number, on_all_cores};
use crate::format::pointer::Place;
use crate::storage::memory::MemoryStorage;
use crate::tests::model::Model;
use crate::tests::sim::Random;
use crate::tests::support::*;
use crate::{
    ClusterSize, Consistency, Disk, Error, ErrorKind, Image, ImageWriter, Lock, Method, Store, VerdictState,
};
use std::collections::BTreeMap;

const JOB: &str = "job";
const CLUSTER: u64 = 16384;
/// More images than this are deleted, the oldest first.
const IMAGES_MAX: usize = 5;

/// What the disks held when an image of them was made.
type Disks = [Model; 2];

const NAMES: [&str; 2] = ["vda", "vdb"];

#[derive(Debug)]
struct History {
    random: Random,
    storage: MemoryStorage,
    source: Disks,
    /// Every image there is.
    images: BTreeMap<u64, Disks>,
    /// Those that were verified as good since something was damaged last.
    good: Vec<u64>,
    /// Whether everything was verified since something was damaged last.
    is_known: bool,
    tally: Tally,
}

/// How often what was tried.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    damages: u64,
    syncs: u64,
    resumed: u64,
    repaired_clusters: u64,
    /// Syncs whose image had to be good.
    proven: u64,
    /// Comparisons of an image that had to be good.
    compared: u64,
    /// Times that chain.json was damaged, and removed by hand.
    records_removed: u64,
    /// Times that nothing of the chain could be read any more.
    images_given_up: u64,
}

impl History {
    fn new(seed: u64) -> Self {
        let (storage, _) = memory_store();
        Self {
            random: Random::new(seed),
            storage,
            // Two leaves and a short last cluster; one leaf.
            source: [270 * CLUSTER + 700, 6 * CLUSTER].map(|size| Model::new(size, ClusterSize::K16)),
            images: BTreeMap::new(),
            good: Vec::new(),
            is_known: true,
            tally: Tally::default(),
        }
    }

    /// The store as a program that begins now sees it.
    fn store(&self) -> Store {
        Store::open_on(std::sync::Arc::new(self.storage.clone()), "memory").unwrap()
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.random.below(count) == 0
    }

    fn round(&mut self) -> Result<(), String> {
        match self.random.below(16) {
            0..=3 => self.write(),
            4..=7 => {
                self.write();
                self.sync()?;
            }
            8 => self.cut_short(),
            9..=11 => self.damage(),
            12 | 13 => self.verify_all(),
            14 => self.verify_one(),
            _ => self.clear_up()?,
        }
        self.check()
    }

    /// Writes to the disks; seldom, one grows.
    fn write(&mut self) {
        for _ in 0..=self.random.below(6) {
            let disk = usize::from(self.one_in(4));
            let (index, seed) = (self.place_on(disk), self.random.next());
            let kind = self.random.below(5);
            let model = &mut self.source[disk];
            let len = model.cluster_len(index);
            let bytes = match kind {
                0 => vec![0; len],
                1 | 2 => text_bytes(seed, len),
                _ => random_bytes(seed, len),
            };
            model.set(index, bytes);
        }
        if self.one_in(20) && self.source[0].cluster_count() < 520 {
            let more = 1 + self.random.below(100 * CLUSTER);
            let size = self.source[0].size;
            self.source[0].grow(size + more);
        }
    }

    /// A cluster that is often the same, and sometimes in a place that was never written.
    fn place_on(&mut self, disk: usize) -> u64 {
        let count = self.source[disk].cluster_count();
        match self.random.below(3) {
            0 => self.random.below(count),
            1 => self.random.below(count.min(12)),
            _ => count - 1 - self.random.below(count.min(12)),
        }
    }

    /// Does a part of a sync, or all but the commit.
    fn begin(&mut self, stop_after: Option<u64>) -> (ImageWriter, bool) {
        let store = self.store();
        let mut tries = 0;
        let mut writer = loop {
            match store.begin(JOB, Some(ClusterSize::K16), &NAMES.map(str::to_owned)) {
                Ok(writer) => break writer,
                Err(error) => self.put_right(&error),
            }
            tries += 1;
            assert!(tries < 3, "nothing helps");
        };
        self.tally.resumed += u64::from(writer.resumed().is_some());
        let mut pushed = 0;
        let mut has_checkpoint = false;
        for (name, model) in NAMES.iter().zip(&self.source) {
            let disk = writer.disk(meta(name, model.size)).unwrap();
            writer.begin_pass(disk, Method::Scan, "test").unwrap();
            for index in differing(&writer, disk, model) {
                if stop_after.is_some_and(|stop| pushed >= stop) {
                    return (writer, has_checkpoint);
                }
                push_plain(&mut writer, disk, model, index);
                pushed += 1;
                if self.random.below(9) == 0 {
                    has_checkpoint |= writer.checkpoint().unwrap();
                }
            }
            writer.end_pass(disk, model.size).unwrap();
        }
        (writer, has_checkpoint)
    }

    fn sync(&mut self) -> Result<(), String> {
        // What only an unfinished sync points to was seen by no verification.
        let must_be_good = self.is_known && self.unfinished_is_good();
        let (writer, _) = self.begin(None);
        let manifest = writer
            .commit(Consistency::Crash, "test")
            .map_err(|error| format!("the sync fails: {error:?}"))?;
        self.images.insert(manifest.sequence, self.source.clone());
        self.tally.syncs += 1;
        self.tally.repaired_clusters += manifest.repaired_clusters();
        if !must_be_good {
            self.is_known = false;
            return Ok(());
        }
        self.tally.proven += 1;
        let found = findings(&self.store(), JOB, manifest.sequence);
        if !found.is_empty() {
            return Err(format!("image {} is made damaged: {found:#?}", manifest.sequence));
        }
        self.good.push(manifest.sequence);
        Ok(())
    }

    fn unfinished_is_good(&self) -> bool {
        let store = self.store();
        let Ok(Some(found)) = store.unfinished_in(JOB) else {
            return true;
        };
        let image = store.chain(JOB).unwrap().open(found.into(), Lock::new(()));
        // Counts and padding of one are not as in an image.
        let content = |image: &Image| image.disks().iter().all(|disk| read_all(disk).is_ok());
        image.is_ok_and(|image| content(&image))
    }

    /// A sync that is stopped, that fails, or that is killed.
    fn cut_short(&mut self) {
        self.write();
        let stop_after = self.random.below(8);
        let (mut writer, _) = self.begin(Some(stop_after));
        match self.random.below(3) {
            0 => drop(writer),
            1 => {
                writer.checkpoint().unwrap();
            }
            _ => {
                let _killed = std::mem::ManuallyDrop::new(writer);
            }
        }
    }

    fn damage(&mut self) {
        for _ in 0..=self.random.below(3) {
            match self.random.below(12) {
                0..=6 => self.damage_piece(),
                7 => self.damage_file(".layer"),
                8 => self.damage_file(".json"),
                9 => self.damage_file(".verified"),
                10 => self.cut_layer(),
                _ => drop(
                    self.pick_file(".layer")
                        .map(|path| self.files(|files| files.remove(&path))),
                ),
            }
        }
        self.tally.damages += 1;
        self.good.clear();
        self.is_known = false;
    }

    fn files<T>(&self, work: impl FnOnce(&mut BTreeMap<String, Vec<u8>>) -> T) -> T {
        work(&mut self.storage.files.lock().unwrap())
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let count = from.len() as u64;
        (count > 0).then(|| from[self.random.below(count) as usize].clone())
    }

    /// A file of the chain.
    fn pick_file(&mut self, ending: &str) -> Option<String> {
        let found: Vec<String> = self.files(|files| {
            let all = files
                .keys()
                .filter(|path| path.starts_with(JOB) && path.ends_with(ending));
            all.cloned().collect()
        });
        self.pick(&found)
    }

    /// Does what the error says that a sync ends with: a damaged chain.json is removed; and where it is gone, and every
    /// manifest is damaged, so are the images.
    fn put_right(&mut self, error: &Error) {
        let said = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
        if said.contains("remove the file") {
            self.files(|files| files.remove(&format!("{JOB}/chain.json")))
                .unwrap();
            self.tally.records_removed += 1;
            return;
        }
        assert!(said.contains("delete the images"), "{error:?}");
        for sequence in self.images.keys().copied().collect::<Vec<_>>() {
            self.delete(sequence).unwrap();
        }
        self.tally.images_given_up += 1;
    }

    fn flip(&mut self, path: &str, at: u64) {
        let bit = self.random.below(8);
        self.files(|files| {
            if let Some(byte) = files.get_mut(path).and_then(|file| file.get_mut(at as usize)) {
                *byte ^= 1 << bit;
            }
        });
    }

    fn damage_file(&mut self, ending: &str) {
        let Some(path) = self.pick_file(ending) else {
            return;
        };
        let len = self.files(|files| files[&path].len() as u64);
        let at = self.random.below(len.max(1));
        self.flip(&path, at);
    }

    fn cut_layer(&mut self) {
        let Some(path) = self.pick_file(".layer") else {
            return;
        };
        let len = self.files(|files| files[&path].len() as u64);
        let left = self.random.below(len.max(1));
        self.files(|files| files.get_mut(&path).map(|file| file.truncate(left as usize)));
    }

    /// Flips a bit of a node or cluster that an image points to.
    fn damage_piece(&mut self) {
        let store = self.store();
        let sequences: Vec<u64> = self.images.keys().copied().collect();
        let Some(sequence) = self.pick(&sequences) else {
            return;
        };
        let Ok(image) = open_image(&store, JOB, sequence) else {
            return;
        };
        let mut places: Vec<Place> = Vec::new();
        for disk in image.disks() {
            // As far as the tree can be read.
            let _ = disk.tree().each_place(&mut |place| places.push(*place));
        }
        let Some(place) = self.pick(&places) else { return };
        let at = place.offset + self.random.below(place.len.into());
        self.flip(&format!("{JOB}/layers/{:08x}.layer", place.layer), at);
    }

    fn verify_all(&mut self) {
        for sequence in self.images.keys().copied().collect::<Vec<_>>() {
            self.verify(sequence);
        }
        self.is_known = true;
    }

    fn verify_one(&mut self) {
        let sequences: Vec<u64> = self.images.keys().copied().collect();
        if let Some(sequence) = self.pick(&sequences) {
            self.verify(sequence);
        }
    }

    fn verify(&mut self, sequence: u64) {
        let store = self.store();
        if open_image(&store, JOB, sequence).is_err() {
            return;
        }
        self.good.retain(|&good| good != sequence);
        if matches!(verify(&store, sequence), VerdictState::Good(_)) {
            self.good.push(sequence);
        }
    }

    /// Retention, `rm` of any image, `gc`, or discarding the unfinished sync.
    fn clear_up(&mut self) -> Result<(), String> {
        let store = self.store();
        let sequences: Vec<u64> = self.images.keys().copied().collect();
        match self.random.below(4) {
            0 => {
                let excess = sequences.len().saturating_sub(IMAGES_MAX);
                sequences[..excess]
                    .iter()
                    .try_for_each(|&oldest| self.delete(oldest))
            }
            1 => self.pick(&sequences).map_or(Ok(()), |any| self.delete(any)),
            2 if !sequences.is_empty() => {
                let done = store.gc(JOB);
                done.map(drop).map_err(|error| format!("gc fails: {error:?}"))
            }
            _ => {
                // There may be none.
                let _ = store.discard_unfinished(JOB);
                Ok(())
            }
        }
    }

    fn delete(&mut self, sequence: u64) -> Result<(), String> {
        let store = self.store();
        let done = store.delete(&store.image_id(JOB, sequence));
        done.map_err(|error| format!("image {sequence} cannot be deleted: {error:?}"))?;
        self.images.remove(&sequence);
        self.good.retain(|&good| good != sequence);
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        let store = self.store();
        let listed = store.sequences(JOB).unwrap_or_default();
        if !listed.iter().eq(self.images.keys()) {
            return Err(format!("there are images {listed:?}"));
        }
        for (&sequence, disks) in &self.images {
            let is_good = self.good.contains(&sequence);
            self.tally.compared += u64::from(is_good);
            let image = match open_image(&store, JOB, sequence) {
                Ok(image) => image,
                Err(error) if is_good => return Err(format!("image {sequence} was good: {error:?}")),
                Err(_) => continue,
            };
            for (disk, model) in image.disks().iter().zip(disks) {
                compare(disk, model, is_good).map_err(|what| format!("{}: {what}", disk.label()))?;
            }
        }
        Ok(())
    }

    /// What the history comes to: everything is verified, and one more sync is all that is needed.
    fn end(&mut self) -> Result<(), String> {
        self.verify_all();
        let _ = self.store().discard_unfinished(JOB);
        self.sync()?;
        let (&newest, _) = self.images.last_key_value().ok_or("there is no image")?;
        if !self.good.contains(&newest) {
            return Err(format!("image {newest} need not be good"));
        }
        for other in self.images.keys().copied().collect::<Vec<_>>() {
            if other != newest {
                self.delete(other)?;
            }
        }
        let store = self.store();
        store.gc(JOB).map_err(|error| format!("gc fails: {error:?}"))?;
        self.check()?;
        match (
            findings(&store, JOB, newest),
            store.gc(JOB).map(|again| again.freed_bytes),
        ) {
            (found, Ok(0)) if found.is_empty() => Ok(()),
            (found, again) => Err(format!("after all, {found:#?}; gc again: {again:?}")),
        }
    }
}

/// The disk gives the model's bytes; where it is not good, an error is as good.
fn compare(disk: &Disk, model: &Model, is_good: bool) -> Result<(), String> {
    let len = model.cluster_size.byte_len();
    match read_all(disk) {
        Ok(bytes) if bytes == model.read(0, model.size as usize) => return Ok(()),
        Ok(_) => return Err("other bytes".to_owned()),
        Err(error) if is_good => return Err(format!("it was good: {error:?}")),
        Err(_) => {}
    }
    for index in model.data() {
        let mut bytes = vec![0xaa; model.cluster_len(index)];
        if disk.read_at(index * len as u64, &mut bytes).is_ok() && bytes != model.get(index) {
            return Err(format!("other bytes in cluster {index}"));
        }
    }
    Ok(())
}

/// Lives through `rounds` for each seed; prints what was tried.
fn live(seeds: &[u64], rounds: u64) {
    on_all_cores(seeds, |&seed| {
        let mut history = History::new(seed);
        for round in 0..rounds {
            if let Err(what) = history.round() {
                panic!("SMC_HISTORY_SEED={seed}, round {round}: {what}");
            }
        }
        if let Err(what) = history.end() {
            panic!("SMC_HISTORY_SEED={seed}, after {rounds} rounds: {what}");
        }
        let tally = history.tally;
        println!("history {seed}: {rounds} rounds, {tally:?}");
        assert!(
            tally.proven * 40 > rounds && tally.repaired_clusters * 20 > rounds,
            "{tally:?}"
        );
    });
}

#[test]
fn a_life_under_damage() {
    live(&[1, 2], 100);
}

#[test]
#[ignore = "takes long; make sweep runs it"]
fn a_long_life_under_damage() {
    let first = number("SMC_HISTORY_SEED", 100);
    let seeds: Vec<u64> = (first..first + number("SMC_HISTORIES", 4)).collect();
    live(&seeds, number("SMC_HISTORY_ROUNDS", 1000));
}
