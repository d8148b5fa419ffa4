//! The store: a directory that holds the images of many jobs, each in its chain.

pub(crate) mod chain;
pub(crate) mod copies;
pub(crate) mod jobs;
pub(crate) mod locks;
pub(crate) mod manifests;
pub(crate) mod notes;
pub(crate) mod pins;

use crate::error::{Error, ErrorKind, Result, Within};
use crate::format::geometry::ClusterSize;
use crate::format::id::Uuid;
use crate::format::layer::LayerFiles;
use crate::format::manifest::Manifest;
use crate::format::name::{ImageId, ImageRef, check_name};
use crate::format::sealed;
use crate::read::cache::{CACHE_BYTES, ChainFiles};
use crate::read::image::Image;
use crate::storage::dir::PROBE_FILES;
use crate::storage::paths::{checkpoint_path, images_dir, sequence_of};
use crate::storage::{Lock, Storage};
use crate::store::manifests::Manifests;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

const STORE_FILE: &str = "store.json";
/// Left by a creation that was killed.
const STORE_TEMPORARY: &str = "store.json.tmp";

/// A store. Opening one never writes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    storage: Arc<dyn Storage>,
    label: Arc<str>,
    cache_bytes: usize,
    manifests: Arc<Manifests>,
    /// Copies of chains that were warned of.
    warned: Arc<Mutex<HashSet<String>>>,
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
    ///
    /// # Errors
    /// `NotAStore` for a directory that holds something else.
    pub fn create(storage: Arc<dyn Storage>, label: &str) -> Result<Self> {
        Self::check_empty(&*storage, label)?;
        let record = StoreRecord {
            format: 1,
            incompatible: Vec::new(),
            compatible: Vec::new(),
            id: Uuid::random()?,
        };
        sealed::replace(&*storage, "", STORE_FILE, &record).within(|| format!("create store {label}"))?;
        Ok(Self::new(storage, label))
    }

    fn new(storage: Arc<dyn Storage>, label: &str) -> Self {
        Self {
            storage,
            label: label.into(),
            cache_bytes: CACHE_BYTES,
            manifests: Arc::default(),
            warned: Arc::default(),
        }
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
    ///
    /// # Errors
    /// `NotAStore` where there is none, `Unsupported` for one of a newer version.
    pub fn open(storage: Arc<dyn Storage>, label: &str) -> Result<Self> {
        match sealed::read::<StoreRecord>(&*storage, STORE_FILE) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let what = format!("{label} is not a store: it has no {STORE_FILE}");
                return Err(Error::new(ErrorKind::NotAStore, what));
            }
            Err(error) => return Err(error.within(format!("store {label}"))),
        }
        Ok(Self::new(storage, label))
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

    /// Names of all chains, ascending. Copies of chains are left out, with a warning.
    pub(crate) fn chains(&self) -> Result<Vec<String>> {
        let (chains, copies) = self.chains_and_copies()?;
        for copy in copies {
            let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
            if warned.insert(copy.name.clone()) {
                tracing::warn!("store {}: {copy}", self.label);
            }
        }
        Ok(chains)
    }

    /// Numbers of a chain's images, ascending.
    pub(crate) fn sequences(&self, chain: &str) -> Result<Vec<u64>> {
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

    /// The image of this number in a chain, named by the job that made it.
    pub(crate) fn image_id(&self, chain: &str, sequence: u64) -> ImageId {
        ImageId::new(chain, sequence, &self.job_of(chain, sequence))
    }

    /// The checked manifest of an image.
    ///
    /// # Errors
    /// `NotFound` where there is no such image, `Damaged` where its manifest is not what was written there.
    pub fn manifest(&self, image: &ImageId) -> Result<Arc<Manifest>> {
        let read = self.read_manifest(image.chain(), image.sequence());
        read.map_err(|error| error.of_image("image", image))
    }

    pub(crate) fn read_manifest(&self, chain: &str, sequence: u64) -> Result<Arc<Manifest>> {
        self.manifests.read(&*self.storage, chain, sequence)
    }

    /// The manifest of a chain's unfinished sync, where there is one.
    pub(crate) fn read_checkpoint(&self, chain: &str) -> Result<Option<Manifest>> {
        let path = checkpoint_path(chain);
        match sealed::read::<Manifest>(&*self.storage, &path) {
            Ok(manifest) => {
                let checked = manifest.check(manifest.sequence);
                checked.map_err(|error| error.in_file(&path))?;
                Ok(Some(manifest))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the readers of one chain share. Images opened with the same one share their caches.
    pub(crate) fn chain(&self, chain: &str) -> Result<Chain> {
        check_name("chain", chain)?;
        Ok(Chain {
            store: self.clone(),
            name: chain.to_owned(),
            files: std::sync::OnceLock::new().into(),
        })
    }

    /// Opens an image and locks it against deletion.
    ///
    /// # Errors
    /// `NotFound` where there is no such image, `Busy` while it is being deleted, `Damaged` where its manifest is
    /// not what was written there.
    pub fn open_image(&self, image: &ImageId) -> Result<Image> {
        self.chain(image.chain())?.image(image)
    }

    /// Opens the image that a reference names, and locks it against deletion.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve) and [`open_image`](Self::open_image).
    pub fn image(&self, image: &ImageRef) -> Result<Image> {
        self.open_image(&self.resolve(image)?)
    }

    /// Opens images so that those of one chain share their caches.
    pub fn readers(&self) -> Readers {
        Readers {
            store: self.clone(),
            chains: Mutex::default(),
        }
    }
}

/// Opens images of a store: those of one chain share open layers and caches for as long as this lives.
#[derive(Debug)]
pub struct Readers {
    store: Store,
    chains: Mutex<HashMap<String, Chain>>,
}

impl Readers {
    /// Opens an image and locks it against deletion.
    ///
    /// # Errors
    /// As [`Store::open_image`].
    pub fn open(&self, image: &ImageId) -> Result<Image> {
        self.chain(image.chain())?.image(image)
    }

    fn chain(&self, name: &str) -> Result<Chain> {
        let mut chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chain) = chains.get(name) {
            return Ok(chain.clone());
        }
        let chain = self.store.chain(name)?;
        chains.insert(name.to_owned(), chain.clone());
        Ok(chain)
    }
}

/// One chain, as its readers see it.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
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
    pub fn image(&self, image: &ImageId) -> Result<Image> {
        let lock = self.store.hold(image)?;
        let manifest = self.store.manifest(image)?;
        let opened = self.open(manifest, lock);
        opened.map_err(|error| error.of_image("image", image))
    }

    /// Opens what a checked manifest describes; `lock` is what keeps it from being deleted.
    pub fn open(&self, manifest: Arc<Manifest>, lock: Lock) -> Result<Image> {
        let files = self.files(manifest.cluster_size()?);
        Image::new(&self.name, manifest, &files, &Arc::new(lock))
    }

    /// Layers, nodes and clusters of the chain.
    pub fn files(&self, cluster_size: ClusterSize) -> Arc<ChainFiles> {
        let new = || {
            let layers = LayerFiles::new(self.store.storage.clone(), &self.name);
            Arc::new(ChainFiles::new(layers, cluster_size, self.store.cache_bytes))
        };
        self.files.get_or_init(new).clone()
    }
}
