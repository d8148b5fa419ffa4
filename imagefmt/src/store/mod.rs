//! The store: a directory that holds the images of many jobs, each in its chain.

pub(crate) mod chain;
pub(crate) mod copies;
pub(crate) mod fallback;
pub(crate) mod jobs;
pub(crate) mod locks;
pub(crate) mod manifests;
pub(crate) mod notes;
pub(crate) mod pins;
pub(crate) mod proven;
pub(crate) mod request;

use crate::error::{Error, ErrorKind, Result, Within};
use crate::format::id::Uuid;
use crate::format::layer::LayerFiles;
use crate::format::manifest::Manifest;
use crate::format::name::{ImageId, ImageRef, check_name};
use crate::format::sealed;
use crate::read::cache::{CACHE_BYTES, Caches, ChainFiles, Opening};
use crate::read::image::Image;
use crate::storage::dir::DirStorage;
use crate::storage::dir::PROBE_FILES;
use crate::storage::lasting::LastingErrors;
use crate::storage::paths::{checkpoint_path, images_dir, sequence_of};
use crate::storage::{Lock, Storage};
use crate::store::copies::Chains;
use crate::store::locks::{LockWait, WaitAndLog};
use crate::store::manifests::Manifests;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

pub(crate) const STORE_FILE: &str = "store.json";
/// Left by a creation that was killed.
const STORE_TEMPORARY: &str = "store.json.tmp";

/// A store. Opening one never writes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    storage: Arc<dyn Storage>,
    label: Arc<str>,
    cache_bytes: usize,
    manifests: Arc<Manifests>,
    /// Features that store.json needs of writers.
    of_writers: Arc<[String]>,
    /// Copies of chains that were warned of.
    warned: Arc<Mutex<HashSet<String>>>,
    lock_wait: Arc<dyn LockWait>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoreRecord {
    format: u32,
    #[serde(default, deserialize_with = "sealed::words")]
    incompatible: Vec<String>,
    #[serde(default, deserialize_with = "sealed::words")]
    compatible: Vec<String>,
    #[serde(
        default,
        deserialize_with = "sealed::words",
        skip_serializing_if = "Vec::is_empty"
    )]
    read_only_compatible: Vec<String>,
    id: Uuid,
}
sealed::sealed_record!(StoreRecord);

/// How long another process that makes a store in the same directory is waited for.
const CREATION_PATIENCE: Duration = Duration::from_secs(10);

impl Store {
    /// Makes an empty directory a store. `label` is how messages name it.
    ///
    /// # Errors
    /// `NotAStore` for a directory that holds something else.
    pub(crate) fn create(storage: Arc<dyn Storage>, label: &str) -> Result<Self> {
        Self::check_empty(&*storage, label)?;
        let record = StoreRecord {
            format: 1,
            incompatible: Vec::new(),
            compatible: Vec::new(),
            read_only_compatible: Vec::new(),
            id: Uuid::random()?,
        };
        sealed::replace(&*storage, "", STORE_FILE, &record).within(|| format!("create store {label}"))?;
        Ok(Self::new(storage, label, record))
    }

    fn new(storage: Arc<dyn Storage>, label: &str, record: StoreRecord) -> Self {
        Self {
            of_writers: record.read_only_compatible.into(),
            storage,
            label: label.into(),
            cache_bytes: CACHE_BYTES,
            manifests: Arc::default(),
            warned: Arc::default(),
            lock_wait: Arc::new(WaitAndLog),
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

    /// Opens the store in a directory. Never writes.
    ///
    /// # Errors
    /// `NotAStore` where there is none, `Unsupported` for one of a newer version.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_on(Arc::new(DirStorage::open(path)?), &path.display().to_string())
    }

    /// Opens the store in a directory, or makes an empty or missing directory one.
    ///
    /// On NFS, CIFS, FUSE and their like a new store is made only with `allow_network_fs`.
    ///
    /// # Errors
    /// `NotAStore` for a directory that holds something else; `Busy`, with who it is, while another process makes a store
    /// there; `Unsupported` on a filesystem that cannot hold a store; otherwise when it cannot be read or written.
    pub fn open_or_create(path: &Path, allow_network_fs: bool) -> Result<Self> {
        match Self::open(path) {
            Err(error) if error.kind() == ErrorKind::NotAStore => {
                let label = path.display().to_string();
                let storage = DirStorage::open_for_store(path, allow_network_fs)?;
                // Two that create it at once take turns, and the second finds it there.
                let _turn = storage
                    .lock_whole(CREATION_PATIENCE)
                    .map_err(|error| error.within(label.clone()))?;
                match Self::open(path) {
                    Err(error) if error.kind() == ErrorKind::NotAStore => {}
                    opened => return opened,
                }
                Self::check_empty(&storage, &label)?;
                storage.probe().map_err(|error| error.within(label.clone()))?;
                Self::create(Arc::new(storage), &label)
            }
            opened => opened,
        }
    }

    /// Opens the store that a storage holds. `label` is how messages name it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_on(storage: Arc<dyn Storage>, label: &str) -> Result<Self> {
        let record = match sealed::read::<StoreRecord>(&*storage, STORE_FILE) {
            Ok(record) => record,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let what = format!("{label} is not a store: it has no {STORE_FILE}");
                return Err(Error::new(ErrorKind::NotAStore, what));
            }
            Err(error) => return Err(error.within(format!("store {label}"))),
        };
        Ok(Self::new(storage, label, record))
    }

    /// How much of what is read is kept in memory, by each [`Readers`] and each image that is opened by itself, from
    /// now on: `bytes` at most, a third of it tree nodes and the rest decoded clusters. 64 MiB if nothing is said, and
    /// never less than 64 nodes and a cluster. Memory is taken as it is needed; clusters that are stored uncompressed
    /// need none, they are read through the page cache.
    #[must_use]
    pub fn with_cache_bytes(self, bytes: usize) -> Self {
        Self {
            cache_bytes: bytes,
            ..self
        }
    }

    /// The same store for one operation, which decides how long it waits for another process that frees space, and shows
    /// what it waits for.
    #[must_use]
    pub fn with_lock_wait(self, lock_wait: Arc<dyn LockWait>) -> Self {
        Self { lock_wait, ..self }
    }

    pub(crate) fn lock_wait(&self) -> &dyn LockWait {
        &*self.lock_wait
    }

    /// The same store for the writer of a chain: what the medium cannot read, in a store that answers, is damaged.
    pub(crate) fn for_writer_of(&self, chain: &str) -> Self {
        Self {
            storage: Arc::new(LastingErrors::new(self.storage.clone(), chain)),
            ..self.clone()
        }
    }

    /// Refuses to change a store that needs features of writers which this smc does not know.
    pub(crate) fn check_store_writable(&self) -> Result<()> {
        sealed::check_writable(&self.of_writers).within(|| format!("store {}", self.label))
    }

    /// How messages name the store.
    pub fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// All chains. Copies of chains are left out of the names, with a warning.
    pub(crate) fn chains(&self) -> Result<Chains> {
        let chains = self.chains_and_copies()?;
        for copy in &chains.copies {
            if locked(&self.warned).insert(copy.name.clone()) {
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

    /// Whether a directory is there. One that cannot be opened is an error, not one that is missing.
    pub(crate) fn has_dir(&self, dir: &str) -> Result<bool> {
        match self.storage.list(dir) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn no_chain(&self, chain: &str) -> Error {
        let what = format!("store {} has no chain {chain}", self.label);
        Error::new(ErrorKind::NotFound, what)
    }

    /// The image of this number in a chain, named by the job that made it, or by the chain where that cannot be found
    /// out: the name is for people, chain and number say which image it is.
    pub(crate) fn image_id(&self, chain: &str, sequence: u64) -> ImageId {
        let job = self.job_of(chain, sequence);
        ImageId::new(chain, sequence, job.as_deref().unwrap_or(chain))
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
        let read = self.manifests.read(&*self.storage, chain, sequence);
        read.map_err(|error| match error.is_of_medium() {
            true => error.within(format!(
                "{}; put a copy of the file back or, if there is none, remove it: then there is no image {sequence} any more",
                chain::CHECK_DISK
            )),
            false => error,
        })
    }

    /// The manifest of a chain's unfinished sync, where there is one.
    pub(crate) fn read_checkpoint(&self, chain: &str) -> Result<Option<Manifest>> {
        let path = checkpoint_path(chain);
        let Some(manifest) = sealed::read_if_there::<Manifest>(&*self.storage, &path)? else {
            return Ok(None);
        };
        let checked = manifest.check(manifest.sequence);
        checked.map_err(|error| error.in_file(&path))?;
        Ok(Some(manifest))
    }

    /// As [`read_checkpoint`](Self::read_checkpoint), but a damaged one counts as none: it is of no job and leads to no
    /// image, and the next sync discards it.
    pub(crate) fn readable_checkpoint(&self, chain: &str) -> Result<Option<Manifest>> {
        chain::unless_damaged(self.read_checkpoint(chain))
            .within(|| format!("unfinished sync in chain {chain}"))
    }

    /// What the readers of one chain share. Images opened with the same one share its files and caches.
    pub(crate) fn chain(&self, chain: &str) -> Result<Chain> {
        self.chain_with(chain, &self.new_caches())
    }

    fn new_caches(&self) -> Arc<Caches> {
        Arc::new(Caches::new(self.cache_bytes))
    }

    fn chain_with(&self, chain: &str, caches: &Arc<Caches>) -> Result<Chain> {
        check_name("chain", chain)?;
        Ok(Chain {
            store: self.clone(),
            name: chain.to_owned(),
            caches: caches.clone(),
            files: Arc::default(),
            open: Arc::default(),
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

    /// Opens images so that all of them share their caches.
    pub fn readers(&self) -> Readers {
        Readers {
            store: self.clone(),
            caches: self.new_caches(),
            chains: Mutex::default(),
        }
    }
}

/// Opens images of a store. All of them share their caches, whose bound is one for all; what was read of an image is
/// there for those that open it later. Layers stay open as long as an image of their chain is.
#[derive(Debug)]
pub struct Readers {
    store: Store,
    caches: Arc<Caches>,
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
        let mut chains = locked(&self.chains);
        if let Some(chain) = chains.get(name) {
            return Ok(chain.clone());
        }
        let chain = self.store.chain_with(name, &self.caches)?;
        chains.insert(name.to_owned(), chain.clone());
        Ok(chain)
    }
}

/// One chain, as its readers see it.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    store: Store,
    name: String,
    caches: Arc<Caches>,
    /// There while an image is open: the space of a deleted layer is free only when nobody has its file open.
    files: Arc<Mutex<Weak<ChainFiles>>>,
    /// By its number, what keeps each image from being deleted that somebody has open.
    open: Arc<Mutex<HashMap<u64, Held>>>,
}

#[derive(Debug)]
struct Held {
    lock: Weak<Lock>,
    opening: Opening,
}

impl Held {
    fn get(&self) -> Option<(Arc<Lock>, Opening)> {
        Some((self.lock.upgrade()?, self.opening))
    }
}

impl Chain {
    /// The chain's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens an image and locks it against deletion.
    ///
    /// # Errors
    /// As [`Store::open_image`].
    pub fn image(&self, image: &ImageId) -> Result<Image> {
        let (lock, opening) = self.hold(image)?;
        let manifest = self.store.manifest(image)?;
        let opened = self.open_for(manifest, &lock, opening);
        opened.map_err(|error| error.of_image("image", image))
    }

    /// An image's lock: that of the readers that have it open, or a new one.
    fn hold(&self, image: &ImageId) -> Result<(Arc<Lock>, Opening)> {
        let sequence = image.sequence();
        if let Some(held) = locked(&self.open).get(&sequence).and_then(Held::get) {
            return Ok(held);
        }
        // Without the mutex: this may wait for a deletion to end.
        let lock = Arc::new(self.store.hold(image)?);
        let mut open = locked(&self.open);
        open.retain(|_, held| held.lock.strong_count() > 0);
        if let Some(held) = open.get(&sequence).and_then(Held::get) {
            return Ok(held);
        }
        let opening = self.caches.new_opening(sequence);
        let held = Held {
            lock: Arc::downgrade(&lock),
            opening,
        };
        open.insert(sequence, held);
        Ok((lock, opening))
    }

    /// Opens what a checked manifest describes; `lock` is what keeps it from being deleted.
    ///
    /// # Errors
    /// `Damaged` for a root or a table of layers that cannot be right.
    pub fn open(&self, manifest: Arc<Manifest>, lock: Lock) -> Result<Image> {
        let opening = self.caches.new_opening(manifest.sequence);
        self.open_for(manifest, &Arc::new(lock), opening)
    }

    fn open_for(&self, manifest: Arc<Manifest>, lock: &Arc<Lock>, opening: Opening) -> Result<Image> {
        Image::new(&self.name, manifest, &self.files(), lock, opening)
    }

    /// Layers, nodes and clusters of the chain.
    pub fn files(&self) -> Arc<ChainFiles> {
        let mut files = locked(&self.files);
        files.upgrade().unwrap_or_else(|| {
            let layers = LayerFiles::new(self.store.storage.clone(), &self.name);
            let new = Arc::new(ChainFiles::new(layers, self.caches.clone()));
            *files = Arc::downgrade(&new);
            new
        })
    }
}

/// What these mutexes guard is whole at every moment, also where a holder panicked.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
