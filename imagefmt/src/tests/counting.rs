//! A store in a directory that counts what is asked of it, and how many operations of a long chain cost.

use super::model::Model;
use super::support::*;
use crate::format::manifest::LayerRecord;
use crate::format::sealed;
use crate::storage::dir::DirStorage;
use crate::storage::{LayerAppend, LayerRead, Lock, LockMode, Stamp, Storage};
use crate::{ClusterSize, Consistency, Manifest, Result, Store};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A directory, and how many files were read and how many layers opened.
#[derive(Debug, Clone)]
pub(crate) struct CountingStorage {
    dir: Arc<DirStorage>,
    reads: Arc<AtomicUsize>,
    layers: Arc<AtomicUsize>,
}

impl CountingStorage {
    /// A store with job `job`, each of whose images differs from the one before in one cluster.
    pub fn store_with_images(dir: &Path, images: u64) -> (Self, Store) {
        let storage = Self {
            dir: Arc::new(DirStorage::open(dir).unwrap()),
            reads: Arc::default(),
            layers: Arc::default(),
        };
        let store = Store::create(Arc::new(storage.clone()), "counting").unwrap();
        let mut model = Model::new(64 * 16384, ClusterSize::K16);
        for image in 0..images {
            model.set(image % 64, random_bytes(image, 16384));
            let mut writer = store
                .begin("job", Some(ClusterSize::K16), &["vda".to_owned()])
                .unwrap();
            write_disk(&mut writer, "vda", &model, [image % 64]).unwrap();
            writer.commit(Consistency::Crash, "test").unwrap();
        }
        (storage, store)
    }

    /// Files that were read whole.
    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    fn layers(&self) -> usize {
        self.layers.load(Ordering::Relaxed)
    }
}

impl Storage for CountingStorage {
    fn read(&self, path: &str, max_len: u64) -> Result<Vec<u8>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.dir.read(path, max_len)
    }
    fn read_with_stamp(&self, path: &str, max_len: u64) -> Result<(Vec<u8>, Option<Stamp>)> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.dir.read_with_stamp(path, max_len)
    }
    fn stamp(&self, path: &str) -> Option<Stamp> {
        self.dir.stamp(path)
    }
    fn list(&self, dir: &str) -> Result<Vec<String>> {
        self.dir.list(dir)
    }
    fn create_dir(&self, dir: &str) -> Result<()> {
        self.dir.create_dir(dir)
    }
    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.dir.write(path, bytes)
    }
    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.dir.rename(from, to)
    }
    fn remove(&self, path: &str) -> Result<()> {
        self.dir.remove(path)
    }
    fn sync_dir(&self, dir: &str) -> Result<()> {
        self.dir.sync_dir(dir)
    }
    fn open_layer(&self, path: &str) -> Result<Box<dyn LayerRead>> {
        self.layers.fetch_add(1, Ordering::Relaxed);
        self.dir.open_layer(path)
    }
    fn create_layer(&self, path: &str) -> Result<Box<dyn LayerAppend>> {
        self.dir.create_layer(path)
    }
    fn reclaim(&self, path: &str, dead: &[Range<u64>]) -> Result<()> {
        self.dir.reclaim(path, dead)
    }
    fn allocated(&self, path: &str) -> Result<u64> {
        self.dir.allocated(path)
    }
    fn lock(&self, path: &str, mode: LockMode) -> Result<Lock> {
        self.dir.lock(path, mode)
    }
    fn holders(&self, path: &str) -> Vec<String> {
        self.dir.holders(path)
    }
}

/// What operations read of a chain of this many images, each in a process of its own that knows nothing yet.
fn reads_of(images: u64) -> [(&'static str, usize, usize); 4] {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (storage, _) = CountingStorage::store_with_images(dir.path(), images);
    let count = |what, work: &dyn Fn(&Store)| {
        let store = Store::open_on(Arc::new(storage.clone()), "counting").unwrap();
        let before = (storage.reads(), storage.layers());
        work(&store);
        (what, storage.reads() - before.0, storage.layers() - before.1)
    };
    let resolve = |store: &Store, image: &str| store.resolve(&image.parse().unwrap()).unwrap();
    [
        count("resolve", &|store| drop(resolve(store, "job/latest"))),
        count("ls and serve", &|store| {
            for images in store.jobs().unwrap().values() {
                images.ids().for_each(|id| drop(store.manifest(&id).unwrap()));
            }
        }),
        count("delete", &|store| {
            let reclaimed = store.delete(&resolve(store, "job/1")).unwrap();
            assert!(
                reclaimed.kept.is_empty() && reclaimed.unfinished.is_none(),
                "{reclaimed:?}"
            );
        }),
        count("sync", &|store| {
            let mut writer = store.begin("job", None, &["vda".to_owned()]).unwrap();
            let model = Model::new(64 * 16384, ClusterSize::K16);
            write_disk(&mut writer, "vda", &model, []).unwrap();
            writer.commit(Consistency::Crash, "test").unwrap();
        }),
    ]
}

/// Every manifest and every layer at most once, and a few files besides.
#[test]
fn operations_read_each_manifest_and_layer_at_most_once() {
    const BESIDES: usize = 12;
    for images in [4, 40] {
        let [resolve, list, delete, sync] = reads_of(images);
        let images = images as usize;
        assert!(resolve.1 <= BESIDES, "{images} images: {resolve:?}");
        for (what, reads, layers) in [list, delete, sync] {
            assert!(
                reads <= images + BESIDES,
                "{what} among {images} images: {reads} files read"
            );
            assert!(
                layers <= images + BESIDES,
                "{what} among {images} images: {layers} layers opened"
            );
        }
    }
}

/// A manifest that lists very many layers is read once like any other, and none of the layers is opened for being listed.
#[test]
fn a_manifest_of_many_layers_opens_as_one_of_a_single_layer() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (storage, store) = CountingStorage::store_with_images(dir.path(), 1);
    let id = store.image_id("job", 1);
    let mut manifest = Manifest::clone(&store.manifest(&id).unwrap());
    let opening = || {
        let store = Store::open_on(Arc::new(storage.clone()), "counting").unwrap();
        let before = (storage.reads(), storage.layers());
        let image = store.open_image(&id).unwrap();
        let counted = (storage.reads() - before.0, storage.layers() - before.1);
        (image.manifest().layers.len(), counted)
    };
    let (layers, counted) = opening();
    assert_eq!(layers, 1);
    let layer = manifest.layers[0].clone();
    let layer = |id| LayerRecord { id, ..layer.clone() };
    manifest.layers = (1..=100_000).map(layer).collect();
    let text = sealed::seal(&manifest).unwrap();
    std::fs::write(dir.path().join("job/images/000001.json"), text).unwrap();
    assert_eq!(opening(), (100_000, counted));
}
