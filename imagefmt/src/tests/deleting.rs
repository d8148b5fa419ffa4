//! Deleting, collecting garbage and resuming unfinished syncs, against models, without crashes: those are
//! the sweep's.

use super::model::Model;
use super::support::*;
use crate::format::pointer::Place;
use crate::storage::memory::MemoryStorage;
use crate::storage::paths::layer_of;
use crate::storage::{BLOCK_LEN, Storage};
use crate::{
    ClusterSize, Consistency, Disk, Error, ErrorKind, Image, ImageId, Manifest, Reclaimed, Result, Store,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const JOB: &str = "job";

/// A chain, and what each of its images must be.
struct Chain {
    storage: MemoryStorage,
    store: Store,
    disk: Model,
    images: BTreeMap<u64, Model>,
    seed: u64,
}

impl Chain {
    fn new(size: u64) -> Self {
        Self::on(MemoryStorage::default(), size)
    }

    fn on(storage: MemoryStorage, size: u64) -> Self {
        let store = Store::create(Arc::new(storage.clone()), "memory").unwrap();
        Self {
            storage,
            store,
            disk: Model::new(size, ClusterSize::K16),
            images: BTreeMap::new(),
            seed: 0,
        }
    }

    fn next(&mut self, below: u64) -> u64 {
        self.seed += 1;
        u64::from_le_bytes(random_bytes(self.seed, 8).try_into().unwrap()) % below
    }

    /// Changes some clusters: to noise, to text, to zeros.
    fn change(&mut self, count: u64) {
        for _ in 0..count {
            let index = self.next(self.disk.cluster_count());
            self.change_cluster(index);
        }
    }

    fn change_cluster(&mut self, index: u64) {
        let len = self.disk.cluster_len(index);
        let bytes = match self.next(5) {
            0 => vec![0; len],
            1 => random_bytes(self.seed, len),
            // Pieces of all lengths share blocks in all ways.
            _ => {
                let noise = self.next(len as u64) as usize;
                let mut bytes = text_bytes(self.seed, len);
                bytes[..noise].copy_from_slice(&random_bytes(self.seed, noise));
                bytes
            }
        };
        self.disk.set(index, bytes);
    }

    fn sync(&mut self) -> u64 {
        self.sync_with_checkpoints(u64::MAX).unwrap().sequence
    }

    /// A sync that makes a checkpoint behind every `every` clusters that hold something.
    fn sync_with_checkpoints(&mut self, every: u64) -> Result<Manifest> {
        let manifest = sync_until(&self.store, &self.disk, every, None)?.unwrap();
        self.images.insert(manifest.sequence, self.disk.clone());
        Ok(manifest)
    }

    fn delete(&mut self, sequence: u64) -> Reclaimed {
        let reclaimed = self.store.delete(&self.store.image_id(JOB, sequence)).unwrap();
        assert_eq!(
            (&reclaimed.unfinished, reclaimed.kept.as_slice()),
            (&None, &[][..])
        );
        self.images.remove(&sequence);
        reclaimed
    }

    /// Every image is what it was, is whole, and nothing takes space but what they point to.
    fn check(&self) {
        let found = self.store.sequences(JOB).unwrap();
        assert_eq!(found, self.images.keys().copied().collect::<Vec<_>>());
        for (&sequence, model) in &self.images {
            let image = open_image(&self.store, JOB, sequence).unwrap();
            let disk = &image.disks()[0];
            assert_eq!(disk.digest().to_string(), model.digest(), "image {sequence}");
            for index in model.data() {
                let mut bytes = vec![0; model.cluster_len(index)];
                disk.read_at(index * 16384, &mut bytes).unwrap();
                assert!(bytes == model.get(index), "image {sequence}, cluster {index}");
            }
            assert_eq!(findings(&self.store, JOB, sequence), NOTHING);
        }
        assert_eq!(self.leaked(), BTreeSet::new());
    }

    /// Blocks that are stored although no image and no checkpoint has a byte in them.
    fn leaked(&self) -> BTreeSet<(u32, u64)> {
        let mut taken = BTreeSet::new();
        let layers = self.layers();
        let files = self.storage.files.lock().unwrap().clone();
        for (path, bytes) in &files {
            let Some(layer) = path.rsplit('/').next().and_then(layer_of) else {
                continue;
            };
            let blocks = bytes.chunks(BLOCK_LEN as usize).enumerate().skip(1);
            let stored = blocks.filter(|(_, block)| block.iter().any(|&byte| byte != 0));
            taken.extend(stored.map(|(block, _)| (layer, block as u64)));
            assert!(layers.contains(&layer), "layer {layer} is listed by nothing");
        }
        let live: BTreeSet<(u32, u64)> = self
            .trees()
            .iter()
            .flat_map(places)
            .flat_map(|place| blocks(&place))
            .collect();
        taken.difference(&live).copied().collect()
    }

    fn roots(&self) -> Vec<Image> {
        let images = self.store.sequences(JOB).unwrap();
        let mut roots: Vec<Image> = images
            .iter()
            .map(|&sequence| open_image(&self.store, JOB, sequence).unwrap())
            .collect();
        let unfinished = self.store.unfinished_in(JOB).unwrap();
        roots.extend(unfinished.map(|manifest| {
            let chain = self.store.chain(JOB).unwrap();
            chain.open(manifest.into(), crate::Lock::new(())).unwrap()
        }));
        roots
    }

    fn trees(&self) -> Vec<Disk> {
        self.roots()
            .iter()
            .flat_map(|image| image.disks().to_vec())
            .collect()
    }

    fn layers(&self) -> BTreeSet<u32> {
        self.roots()
            .iter()
            .flat_map(|image| image.manifest().layers.clone())
            .map(|layer| layer.id)
            .collect()
    }

    fn allocated(&self) -> u64 {
        let paths: Vec<String> = self.storage.files.lock().unwrap().keys().cloned().collect();
        let layers = paths.iter().filter(|path| path.ends_with(".layer"));
        layers.map(|path| self.storage.allocated(path).unwrap()).sum()
    }
}

fn blocks(place: &Place) -> impl Iterator<Item = (u32, u64)> + use<> {
    let layer = place.layer;
    crate::reclaim::walk::blocks(place).map(move |block| (layer, block))
}

/// Pushes all of the disk, with checkpoints; ends behind `stop` clusters, if that is given, without an image.
fn sync_until(store: &Store, disk: &Model, every: u64, stop: Option<u64>) -> Result<Option<Manifest>> {
    let mut writer = store.begin(JOB, Some(ClusterSize::K16), &["vda".to_owned()])?;
    let written = pass_over::<Error>(&mut writer, meta("vda", disk.size), |pass| {
        for index in 0..disk.cluster_count() {
            if stop == Some(index) {
                return Err(Error::new(ErrorKind::Busy, "stopped"));
            }
            pass.push_plain(index, &disk.get(index))?;
            if index % every == every - 1 {
                pass.checkpoint()?;
            }
        }
        Ok(())
    });
    match written {
        Err(error) if error.kind() == ErrorKind::Busy => Ok(None),
        written => {
            written?;
            writer.commit(Consistency::Crash, "test").map(Some)
        }
    }
}

/// Two leaves, so that there is a level above them.
const TWO_LEVELS: u64 = 300 * 16384;

#[test]
fn any_image_can_go_and_takes_only_its_own_along() {
    for seed in 0..12 {
        let storage = MemoryStorage {
            whole_writes: seed % 2 == 0,
            ..MemoryStorage::default()
        };
        let mut chain = Chain::on(storage, if seed % 3 == 0 { 40_000 } else { TWO_LEVELS });
        chain.seed = seed << 32;
        chain.change(200);
        chain.sync();
        for round in 0..12 {
            let count = 1 + chain.next(20);
            chain.change(count);
            if chain.next(4) == 0 {
                let size = chain.disk.size + chain.next(40_000);
                chain.disk.grow(size);
            }
            let every = 1 + chain.next(200);
            chain.sync_with_checkpoints(every).unwrap();
            chain.check();
            while chain.images.len() > 3 || (chain.images.len() > 1 && chain.next(3) == 0) {
                let which = chain.next(chain.images.len() as u64) as usize;
                let sequence = *chain.images.keys().nth(which).unwrap();
                chain.delete(sequence);
                chain.check();
            }
            assert!(!chain.images.is_empty(), "seed {seed}, round {round}");
        }
        let before = chain.allocated();
        let collected = chain.store.gc(JOB).unwrap();
        assert_eq!(
            collected,
            Reclaimed::default(),
            "nothing is left for gc, seed {seed}"
        );
        assert_eq!(chain.allocated(), before);
    }
}

#[test]
fn a_tree_that_grew_higher_is_deleted_beside_lower_ones() {
    let mut chain = Chain::new(3 * 16384);
    chain.change(5);
    chain.sync();
    chain.disk.grow(TWO_LEVELS);
    chain.change(50);
    chain.sync();
    chain.disk.grow(70_000 * 16384);
    for index in [0, 69_999, 40_000] {
        chain.change_cluster(index);
    }
    write_image(&chain.store, JOB, &[("vda", &chain.disk)]).unwrap();
    chain.images.insert(3, chain.disk.clone());
    chain.check();
    for sequence in [2, 1] {
        chain.delete(sequence);
        chain.check();
    }
}

#[test]
fn the_last_image_leaves_nothing_but_the_numbers() {
    let mut chain = Chain::new(40_000);
    chain.change(5);
    let first = chain.sync();
    let reclaimed = chain.delete(first);
    assert_eq!(reclaimed.removed_layers, 1);
    chain.check();
    assert_eq!(chain.allocated(), 0);
    chain.change(3);
    assert_eq!(chain.sync(), first + 1, "numbers do not come twice");
    chain.check();
}

#[test]
fn a_sync_that_was_stopped_is_gone_on_with() {
    let mut chain = Chain::new(TWO_LEVELS);
    for index in 0..chain.disk.cluster_count() {
        chain
            .disk
            .set(index, random_bytes(index, chain.disk.cluster_len(index)));
    }
    assert!(
        sync_until(&chain.store, &chain.disk, 50, Some(217))
            .unwrap()
            .is_none()
    );
    let unfinished = chain.store.unfinished(JOB).unwrap().unwrap();
    assert_eq!(unfinished.disks[0].dirty_bytes, 200 * 16384);
    assert_eq!(chain.store.sequences(JOB).unwrap(), Vec::<u64>::new());
    assert_eq!(
        chain.leaked(),
        BTreeSet::new(),
        "what came after the checkpoint is gone"
    );

    // What it holds may change before the next one.
    chain.change_cluster(3);
    chain.change_cluster(290);
    let manifest = chain.sync_with_checkpoints(u64::MAX).unwrap();
    assert_eq!(
        manifest.disks[0].dirty_bytes,
        301 * 16384,
        "200 before, and 101 now"
    );
    assert_eq!(manifest.kind, crate::Kind::Full);
    assert_eq!(chain.store.unfinished(JOB).unwrap(), None);
    chain.check();
    chain.change(10);
    chain.sync();
    chain.check();
}

#[test]
fn stopping_again_and_again_ends_in_a_right_image() {
    for seed in 0..20 {
        let mut chain = Chain::new(TWO_LEVELS);
        chain.seed = seed << 32;
        chain.change(250);
        if seed % 2 == 0 {
            chain.sync();
        }
        for _ in 0..6 {
            chain.change(20);
            let (every, stop) = (1 + chain.next(60), chain.next(300));
            assert!(
                sync_until(&chain.store, &chain.disk, every, Some(stop))
                    .unwrap()
                    .is_none()
            );
            assert_eq!(chain.leaked(), BTreeSet::new());
            if seed % 2 == 0 && chain.images.len() > 1 {
                let oldest = *chain.images.keys().next().unwrap();
                chain.delete(oldest);
            }
            if chain.next(3) == 0 {
                let every = 1 + chain.next(100);
                chain.sync_with_checkpoints(every).unwrap();
                chain.check();
            }
        }
        chain.sync();
        chain.check();
    }
}

#[test]
fn an_unfinished_sync_can_be_dropped() {
    let mut chain = Chain::new(TWO_LEVELS);
    chain.change(50);
    chain.sync();
    chain.change(100);
    sync_until(&chain.store, &chain.disk, 10, Some(250)).unwrap();
    assert!(chain.store.unfinished(JOB).unwrap().is_some());
    let dropped = chain.store.discard_unfinished(JOB).unwrap();
    assert!(
        dropped.freed_bytes > 0 && dropped.removed_layers == 1,
        "{dropped:?}"
    );
    assert_eq!(chain.store.unfinished(JOB).unwrap(), None);
    assert_eq!(
        chain.store.discard_unfinished(JOB).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    chain.check();
}

#[test]
fn the_image_that_a_sync_was_stopped_on_can_go() {
    let mut chain = Chain::new(TWO_LEVELS);
    chain.change(300);
    let parent = chain.sync();
    chain.change(100);
    sync_until(&chain.store, &chain.disk, 10, Some(250)).unwrap();
    chain.delete(parent);
    assert_eq!(chain.leaked(), BTreeSet::new());
    let manifest = chain.sync_with_checkpoints(u64::MAX).unwrap();
    assert_eq!(manifest.parent.unwrap().sequence, parent);
    chain.check();
}

#[test]
fn garbage_is_found_in_windows_of_any_size() {
    for window in [1, 40, 1 << 28] {
        let mut chain = Chain::new(TWO_LEVELS);
        chain.change(200);
        for _ in 0..5 {
            chain.change(20);
            chain.sync();
        }
        // As a crash leaves it: the manifest is gone, and nothing was freed.
        chain.storage.remove("job/images/000003.json").unwrap();
        chain.storage.remove("job/images/000001.json").unwrap();
        chain.storage.write("job/images/000001.pins", b"left").unwrap();
        chain
            .storage
            .write("job/images/000009.json.tmp", b"left")
            .unwrap();
        chain
            .storage
            .write("job/layers/000000ff.layer", &[1; 9000])
            .unwrap();
        chain.images.retain(|&sequence, _| sequence != 1 && sequence != 3);
        let before = chain.allocated();
        let collected = chain.store.gc_in_windows(JOB, JOB, window).unwrap();
        assert_eq!(collected.freed_bytes, before - chain.allocated());
        assert_eq!(
            (collected.kept.as_slice(), &collected.unfinished),
            (&[][..], &None)
        );
        chain.check();
        let mut left = chain.storage.list("job/images").unwrap();
        left.sort();
        assert_eq!(left, ["000002.json", "000004.json", "000005.json"]);
    }
}

#[test]
fn nothing_is_freed_while_a_manifest_cannot_be_read() {
    let mut chain = Chain::new(TWO_LEVELS);
    chain.change(200);
    for _ in 0..3 {
        chain.change(20);
        chain.sync();
    }
    let path = "job/images/000002.json";
    let whole = chain.storage.read(path, u64::MAX).unwrap();
    chain.storage.write(path, &whole[..whole.len() - 1]).unwrap();
    let before = chain.allocated();
    let reclaimed = chain.store.delete(&chain.store.image_id(JOB, 1)).unwrap();
    assert!(reclaimed.kept[0].contains("job/2"), "{:?}", reclaimed.kept);
    let collected = chain.store.gc(JOB).unwrap();
    assert!(
        collected.kept.iter().any(|kept| kept.contains("job/2")),
        "{:?}",
        collected.kept
    );
    assert_eq!(chain.allocated(), before);

    // It can be read again: the next sync continues the deletion.
    chain.storage.write(path, &whole).unwrap();
    chain.images.remove(&1);
    chain.change(5);
    chain.sync();
    chain.check();
}

#[test]
fn what_a_damaged_image_points_to_is_kept() {
    let mut chain = Chain::new(TWO_LEVELS);
    chain.change(300);
    chain.sync();
    chain.change(100);
    chain.sync();
    chain.change(30);
    chain.sync();
    let root = open_image(&chain.store, JOB, 2).unwrap().disks()[0]
        .tree()
        .root()
        .place;
    let path = format!("job/layers/{:08x}.layer", root.layer);
    chain.storage.files.lock().unwrap().get_mut(&path).unwrap()[root.offset as usize] ^= 1;
    let reclaimed = chain.store.delete(&chain.store.image_id(JOB, 1)).unwrap();
    assert!(
        reclaimed.kept[0].contains("cannot be read"),
        "{:?}",
        reclaimed.kept
    );
    chain.storage.files.lock().unwrap().get_mut(&path).unwrap()[root.offset as usize] ^= 1;
    chain.images.remove(&1);
    assert!(!chain.leaked().is_empty());
    chain.store.gc(JOB).unwrap();
    chain.check();
}

#[test]
fn a_deleted_image_that_cannot_be_read_is_left_to_gc() {
    let mut chain = Chain::new(TWO_LEVELS);
    chain.change(300);
    chain.sync();
    chain.change(100);
    chain.sync();
    chain.storage.write("job/images/000001.json", b"damaged").unwrap();
    let reclaimed = chain.store.delete(&chain.store.image_id(JOB, 1)).unwrap();
    assert!(reclaimed.kept[0].contains("gc"), "{:?}", reclaimed.kept);
    chain.images.remove(&1);
    assert!(chain.store.gc(JOB).unwrap().freed_bytes > 0);
    chain.check();
}

#[test]
fn a_pinned_image_stays() {
    let mut chain = Chain::new(40_000);
    chain.change(5);
    chain.sync();
    chain.store.pin(&chain.store.image_id(JOB, 1), "audit").unwrap();
    chain.store.pin(&chain.store.image_id(JOB, 1), "audit").unwrap();
    chain.store.pin(&chain.store.image_id(JOB, 1), "legal").unwrap();
    let refused = chain.store.delete(&chain.store.image_id(JOB, 1)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InUse);
    assert!(refused.to_string().contains("audit, legal"), "{refused}");
    chain.check();
    assert_eq!(
        chain
            .store
            .unpin(&chain.store.image_id(JOB, 1), Some("other"))
            .unwrap_err()
            .kind(),
        ErrorKind::NotFound
    );
    assert_eq!(
        chain
            .store
            .unpin(&chain.store.image_id(JOB, 1), Some("audit"))
            .unwrap(),
        1
    );
    assert_eq!(
        chain
            .store
            .delete(&chain.store.image_id(JOB, 1))
            .unwrap_err()
            .kind(),
        ErrorKind::InUse
    );
    chain.storage.write("job/images/000001.pins", b"damaged").unwrap();
    assert_eq!(
        chain
            .store
            .delete(&chain.store.image_id(JOB, 1))
            .unwrap_err()
            .kind(),
        ErrorKind::Damaged,
        "in doubt it stays"
    );
    assert_eq!(chain.store.unpin(&chain.store.image_id(JOB, 1), None).unwrap(), 1);
    chain.delete(1);
    chain.check();
    assert_eq!(
        chain
            .store
            .pin(&chain.store.image_id(JOB, 1), "late")
            .unwrap_err()
            .kind(),
        ErrorKind::NotFound
    );
    assert_eq!(chain.storage.list("job/images").unwrap(), NOTHING);
}

#[test]
fn a_job_taken_up_continues_the_chain_and_neither_harms_the_other() {
    let mut chain = Chain::new(TWO_LEVELS);
    chain.change(200);
    chain.sync();
    chain.change(20);
    chain.sync();
    let disks = ["vda".to_owned()];
    let sync_second = |chain: &mut Chain| {
        let mut writer = chain.store.take_up("second", JOB, &disks).unwrap();
        write_disk(&mut writer, "vda", &chain.disk, 0..chain.disk.cluster_count()).unwrap();
        let manifest = writer.commit(Consistency::Crash, "test").unwrap();
        assert_eq!(
            (manifest.job.as_str(), manifest.kind),
            ("second", crate::Kind::Incremental)
        );
        chain.images.insert(manifest.sequence, chain.disk.clone());
        manifest.sequence
    };
    chain.change(20);
    assert_eq!(sync_second(&mut chain), 3);
    chain.change(20);
    assert_eq!(sync_second(&mut chain), 4, "the same command resumes it");
    chain.check();
    assert_eq!(chain.store.job(JOB).unwrap().sequences(), [1, 2]);
    let second = chain.store.job("second").unwrap();
    assert_eq!((second.chain(), second.sequences()), (JOB, &[3, 4][..]));
    assert_eq!(
        chain.store.resolve(&"second/latest".parse().unwrap()).unwrap(),
        ImageId::new(JOB, 4, "second")
    );
    assert!(chain.store.resolve(&"job/3".parse().unwrap()).is_err());

    let refused = chain.store.begin(JOB, None, &disks).unwrap_err();
    assert!(refused.to_string().contains("second"), "{refused}");
    let refused = chain.store.take_up("third", JOB, &disks).unwrap_err();
    assert!(refused.to_string().contains("second"), "{refused}");
    // Whatever is said of an image names the job that made it, never the chain under the name of a job.
    let fourth = chain.store.resolve(&"second/4".parse().unwrap()).unwrap();
    chain.store.pin(&fourth, "audit").unwrap();
    let refused = chain.store.delete(&fourth).unwrap_err();
    assert!(
        refused.to_string().contains("image second/4 is pinned (audit)"),
        "{refused}"
    );
    assert_eq!(refused.image(), Some(&fourth));
    chain.store.unpin(&fourth, None).unwrap();
    let reader = chain.store.open_image(&fourth).unwrap();
    assert_eq!(reader.id().to_string(), "second/4");
    assert_eq!(reader.id().reference(Some("vda")).to_string(), "second/4:vda");
    drop(reader);
    for sequence in [2, 3, 1] {
        chain.delete(sequence);
        chain.check();
    }
    chain.change(5);
    assert_eq!(sync_second(&mut chain), 5);
    chain.check();
}
