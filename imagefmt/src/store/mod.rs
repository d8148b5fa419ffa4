//! The store: a directory that holds the images of many jobs, each in its chain.

pub(crate) mod chain;
pub(crate) mod jobs;
pub(crate) mod notes;
pub(crate) mod pins;

use crate::error::{Error, ErrorKind, Result, Within};
use crate::format::geometry::ClusterSize;
use crate::format::id::Uuid;
use crate::format::layer::LayerFiles;
use crate::format::manifest::Manifest;
use crate::format::name::{ImageRef, check_name};
use crate::format::sealed;
use crate::read::cache::{CACHE_BYTES, ChainFiles};
use crate::read::image::Image;
use crate::storage::dir::PROBE_FILES;
use crate::storage::paths::{images_dir, manifest_path, sequence_of};
use crate::storage::{Lock, LockMode, Storage};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

const STORE_FILE: &str = "store.json";
/// Left by a creation that was killed.
const STORE_TEMPORARY: &str = "store.json.tmp";

/// How often an image that somebody is deleting is tried to be locked, and how long is waited in between.
const HOLD_TRIES: u32 = 20;
const HOLD_PAUSE: Duration = Duration::from_millis(25);

/// A store. Opening one never writes.
#[derive(Debug, Clone)]
pub struct Store {
    storage: Arc<dyn Storage>,
    label: String,
    cache_bytes: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoreRecord {
    format: u32,
    #[serde(default, deserialize_with = "sealed::words")]
    incompatible: Vec<String>,
    #[serde(default, deserialize_with = "sealed::words")]
    compatible: Vec<String>,
    id: Uuid,
}

impl Store {
    /// Makes an empty directory a store. `label` is how messages name it.
    pub fn create(storage: Arc<dyn Storage>, label: &str) -> Result<Self> {
        Self::check_empty(&*storage, label)?;
        let record = StoreRecord {
            format: 1,
            incompatible: Vec::new(),
            compatible: Vec::new(),
            id: Uuid::random()?,
        };
        sealed::replace(&*storage, "", STORE_FILE, &record).within(|| format!("create store {label}"))?;
        Ok(Self {
            storage,
            label: label.to_owned(),
            cache_bytes: CACHE_BYTES,
        })
    }

    /// Refuses a directory that holds something else.
    pub(crate) fn check_empty(storage: &dyn Storage, label: &str) -> Result<()> {
        let found = storage.list("").within(|| label.to_owned())?;
        let harmless = ["lost+found", STORE_TEMPORARY, PROBE_FILES[0], PROBE_FILES[1]];
        match found.iter().find(|name| !harmless.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => {
                let name = name.escape_debug();
                let what = format!(
                    "{label} is not a store and not empty (it holds {name}): give an empty directory"
                );
                Err(Error::new(ErrorKind::NotAStore, what))
            }
        }
    }

    /// Opens a store.
    pub fn open(storage: Arc<dyn Storage>, label: &str) -> Result<Self> {
        match sealed::read::<StoreRecord>(&*storage, STORE_FILE) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let what = format!("{label} is not a store: it has no {STORE_FILE}");
                return Err(Error::new(ErrorKind::NotAStore, what));
            }
            Err(error) => return Err(error.within(format!("store {label}"))),
        }
        Ok(Self {
            storage,
            label: label.to_owned(),
            cache_bytes: CACHE_BYTES,
        })
    }

    /// How much of each chain's decoded clusters is kept in memory, for chains asked for from now on:
    /// `bytes` at most, and tree nodes of half of that. 64 MiB if nothing is said. Memory is taken as it is
    /// needed; clusters that are stored uncompressed need none, they are read through the page cache.
    #[must_use]
    pub fn with_cache_bytes(self, bytes: usize) -> Self {
        Self {
            cache_bytes: bytes,
            ..self
        }
    }

    /// How messages name the store.
    pub fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Names of all chains, ascending.
    pub fn chains(&self) -> Result<Vec<String>> {
        let mut names = self.storage.list("").within(|| self.label.clone())?;
        names.retain(|name| check_name("chain", name).is_ok());
        names.retain(|name| self.storage.list(&images_dir(name)).is_ok());
        names.sort();
        Ok(names)
    }

    /// Numbers of a chain's images, ascending.
    pub fn sequences(&self, chain: &str) -> Result<Vec<u64>> {
        check_name("chain", chain)?;
        let names = match self.storage.list(&images_dir(chain)) {
            Ok(names) => names,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(self.no_chain(chain)),
            Err(error) => return Err(error.within(format!("list images of {chain}"))),
        };
        let mut sequences: Vec<u64> = names.iter().filter_map(|name| sequence_of(name)).collect();
        sequences.sort_unstable();
        Ok(sequences)
    }

    fn no_chain(&self, chain: &str) -> Error {
        let what = format!("store {} has no chain {chain}", self.label);
        Error::new(ErrorKind::NotFound, what)
    }

    /// The checked manifest of an image.
    pub fn manifest(&self, chain: &str, sequence: u64) -> Result<Manifest> {
        let path = manifest_path(chain, sequence);
        let manifest: Manifest =
            sealed::read(&*self.storage, &path).within(|| format!("image {chain}/{sequence}"))?;
        manifest
            .check(sequence)
            .within(|| path)
            .within(|| format!("image {chain}/{sequence}"))?;
        Ok(manifest)
    }

    /// What the readers of one chain share. Images opened with the same one share their caches.
    pub fn chain(&self, chain: &str) -> Result<Chain> {
        check_name("chain", chain)?;
        Ok(Chain {
            store: self.clone(),
            name: chain.to_owned(),
            files: std::sync::OnceLock::new().into(),
        })
    }

    /// Locks an image against deletion without opening it.
    ///
    /// Whoever deletes it locks it for moments: then it is gone, or it was refused and can be locked.
    pub fn hold(&self, chain: &str, sequence: u64) -> Result<Lock> {
        let path = manifest_path(chain, sequence);
        let mut tries = 0;
        loop {
            match self.storage.lock(&path, LockMode::Shared) {
                Err(error) if error.kind() == ErrorKind::Busy && tries < HOLD_TRIES => {
                    tries += 1;
                    std::thread::sleep(HOLD_PAUSE);
                }
                lock => return lock.within(|| format!("lock image {chain}/{sequence}")),
            }
        }
    }

    /// Who has an image open, each in words for people, as far as /proc tells.
    pub fn held_by(&self, chain: &str, sequence: u64) -> Result<Vec<String>> {
        check_name("chain", chain)?;
        Ok(self.storage.holders(&manifest_path(chain, sequence)))
    }

    /// Opens the image that a reference names, and locks it against deletion.
    pub fn image(&self, image: &ImageRef) -> Result<Image> {
        let (chain, sequence) = self.resolve(image)?;
        self.chain(&chain)?.image(sequence)
    }
}

/// One chain, as its readers see it.
#[derive(Debug, Clone)]
pub struct Chain {
    store: Store,
    name: String,
    files: Arc<std::sync::OnceLock<Arc<ChainFiles>>>,
}

impl Chain {
    /// The chain's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens an image and locks it against deletion.
    pub fn image(&self, sequence: u64) -> Result<Image> {
        let lock = self.store.hold(&self.name, sequence)?;
        let manifest = self.store.manifest(&self.name, sequence)?;
        self.open(manifest, lock)
            .within(|| format!("image {}/{sequence}", self.name))
    }

    /// Opens what a checked manifest describes; `lock` is what keeps it from being deleted.
    pub(crate) fn open(&self, manifest: Manifest, lock: Lock) -> Result<Image> {
        let files = self.files(manifest.cluster_size()?);
        Image::new(&self.name, manifest, &files, &Arc::new(lock))
    }

    /// Layers, nodes and clusters of the chain.
    pub(crate) fn files(&self, cluster_size: ClusterSize) -> Arc<ChainFiles> {
        let new = || {
            let layers = LayerFiles::new(self.store.storage.clone(), &self.name);
            Arc::new(ChainFiles::new(layers, cluster_size, self.store.cache_bytes))
        };
        self.files.get_or_init(new).clone()
    }
}
