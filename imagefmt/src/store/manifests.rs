//! Manifests that were read lately. A manifest never changes, so it is read once, as long as its file is the same.

use crate::error::Result;
use crate::format::manifest::Manifest;
use crate::format::sealed;
use crate::storage::paths::manifest_path;
use crate::storage::{Stamp, Storage};
use lru::LruCache;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Layers that all kept manifests list together: each takes some 100 bytes. Room for a chain of 1,000 images of which
/// each has a layer of its own and lists those of all earlier ones.
const LAYERS_MAX: usize = 1 << 19;

/// The manifests of all chains of a store, shared by the handles of the store that were cloned from one another.
#[derive(Debug)]
pub(crate) struct Manifests {
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    by_path: LruCache<String, (Stamp, Arc<Manifest>)>,
    layers: usize,
    layers_max: usize,
}

impl Default for Manifests {
    fn default() -> Self {
        Self::new(LAYERS_MAX)
    }
}

impl Manifests {
    fn new(layers_max: usize) -> Self {
        let kept = Kept {
            by_path: LruCache::unbounded(),
            layers: 0,
            layers_max,
        };
        Self { kept: kept.into() }
    }

    /// The checked manifest of an image.
    ///
    /// # Errors
    /// `NotFound` where there is none, `Damaged` and `Unsupported` where it cannot be used, `Io` from the storage.
    pub fn read(&self, storage: &dyn Storage, chain: &str, sequence: u64) -> Result<Arc<Manifest>> {
        let path = manifest_path(chain, sequence);
        if let Some(known) = self.known(storage, &path) {
            return Ok(known);
        }
        let (manifest, stamp): (Manifest, _) = sealed::read_with_stamp(storage, &path)?;
        let checked = manifest.check(sequence);
        checked.map_err(|error| error.in_file(&path))?;
        let manifest = Arc::new(manifest);
        if let Some(stamp) = stamp {
            self.kept().put(path, stamp, manifest.clone());
        }
        Ok(manifest)
    }

    /// One that was read before, if its file is still the same.
    fn known(&self, storage: &dyn Storage, path: &str) -> Option<Arc<Manifest>> {
        let (stamp, manifest) = self.kept().by_path.get(path).cloned()?;
        // Asked without the lock: a slow disk must not hold up readers of other manifests.
        if storage.stamp(path) == Some(stamp) {
            return Some(manifest);
        }
        self.kept().forget(path);
        None
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn put(&mut self, path: String, stamp: Stamp, manifest: Arc<Manifest>) {
        self.forget(&path);
        self.layers += weight(&manifest);
        self.by_path.put(path, (stamp, manifest));
        while self.layers > self.layers_max {
            let Some((_, (_, gone))) = self.by_path.pop_lru() else {
                break;
            };
            self.layers -= weight(&gone);
        }
    }

    fn forget(&mut self, path: &str) {
        if let Some((_, gone)) = self.by_path.pop(path) {
            self.layers -= weight(&gone);
        }
    }
}

/// What a manifest counts for, in layers: what it has beside them takes about as much as sixteen.
fn weight(manifest: &Manifest) -> usize {
    manifest.layers.len() + manifest.disks.len() + 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::counting::CountingStorage;
    use std::fs;

    #[test]
    fn manifests_are_read_once_and_again_when_their_file_is_another_one() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (storage, store) = CountingStorage::store_with_images(dir.path(), 3);
        let manifests = Manifests::default();
        let reads = || {
            let before = storage.reads();
            let read = |sequence| manifests.read(&storage, "job", sequence).unwrap().sequence;
            assert_eq!([1, 2, 3].map(read), [1, 2, 3]);
            storage.reads() - before
        };
        assert_eq!(reads(), 3);
        assert_eq!(reads(), 0);
        let path = dir.path().join("job/images/000002.json");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[1..]).unwrap();
        assert!(manifests.read(&storage, "job", 2).is_err());
        fs::remove_file(&path).unwrap();
        assert!(manifests.read(&storage, "job", 2).is_err());
        fs::write(&path, &whole).unwrap();
        assert_eq!(reads(), 1);
        drop(store);
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (storage, _store) = CountingStorage::store_with_images(dir.path(), 3);
        let one = Manifests::default().read(&storage, "job", 1).unwrap();
        let manifests = Manifests::new(weight(&one) * 2 + 3);
        for sequence in [1, 2, 3, 1, 2, 3] {
            manifests.read(&storage, "job", sequence).unwrap();
            let kept = manifests.kept();
            let weights: usize = kept.by_path.iter().map(|(_, (_, kept))| weight(kept)).sum();
            assert_eq!(kept.layers, weights);
            assert!(kept.layers <= kept.layers_max, "{} layers", kept.layers);
            assert!(kept.by_path.len() <= 2);
        }
    }
}
