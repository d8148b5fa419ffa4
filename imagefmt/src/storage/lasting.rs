//! The storage as a sync sees it: a place in a layer that the medium below cannot read, again and again, is damaged.
//!
//! A bad sector below the parent image would otherwise end every sync, although the source has what was stored there. But
//! a cable, a network or a server that fails gives the same errors for everything and for a while only, and then nothing
//! is damaged. So one place counts as damaged only if the store answers otherwise: it takes a new file, durably, and reads
//! it back. Then the place is tried once more.
//!
//! Records (manifests, chain.json) stay as they are: what they say is nowhere else, and decides what is built on.

use crate::error::{Error, Result};
use crate::format::id::Uuid;
use crate::format::int::to_usize;
use crate::storage::paths::TEMPORARY;
use crate::storage::{BLOCK_LEN, LayerAppend, LayerRead, Lock, LockMode, Stamp, Storage};
use blockio::AlignedBuf;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A storage whose lasting errors are damage. For the writer of a chain only: to find out, it writes into the chain.
#[derive(Debug, Clone)]
pub(crate) struct LastingErrors(Arc<State>);

#[derive(Debug)]
struct State {
    storage: Arc<dyn Storage>,
    chain: String,
    /// Places that are known to be damaged, so that nobody waits for the medium to fail again.
    damaged: Mutex<HashSet<Place>>,
}

/// A layer that cannot be opened, or what one has from an offset on.
type Place = (String, Option<u64>);

impl LastingErrors {
    /// What the writer of `chain` sees of a storage.
    pub fn new(storage: Arc<dyn Storage>, chain: &str) -> Self {
        Self(Arc::new(State {
            storage,
            chain: chain.to_owned(),
            damaged: Mutex::default(),
        }))
    }
}

impl State {
    /// What `read` gives. What the medium fails to read again while the store answers is damaged.
    fn settle<T>(&self, path: &str, offset: Option<u64>, read: &mut dyn FnMut() -> Result<T>) -> Result<T> {
        let place = (path.to_owned(), offset);
        if self.damaged().contains(&place) {
            return Err(Error::damaged("the medium cannot read it"));
        }
        match read() {
            Err(error) if error.is_of_medium() => {
                if let Err(dead) = self.check_answers() {
                    tracing::debug!(%dead, "the store does not answer");
                    return Err(error);
                }
            }
            settled => return settled,
        }
        match read() {
            Err(error) if error.is_of_medium() => {
                // The sync says how many clusters it stored anew; a verification says where the places are.
                tracing::debug!(path, error = %error.full_message(), "the medium cannot read it again");
                self.damaged().insert(place);
                Err(Error::damaged("the medium cannot read it").caused_by(error))
            }
            settled => settled,
        }
    }

    fn damaged(&self) -> MutexGuard<'_, HashSet<Place>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a file and reads it back. A reader ignores it, and should this process be killed, the next writer removes it.
    fn check_answers(&self) -> Result<()> {
        let path = format!("{}/probe-{}{TEMPORARY}", self.chain, Uuid::random()?);
        let tried = self.write_and_read(&path);
        let removed = self.storage.remove(&path);
        tried.and(removed)
    }

    fn write_and_read(&self, path: &str) -> Result<()> {
        let mut block = AlignedBuf::new(to_usize(BLOCK_LEN));
        block.fill(0x5a);
        self.storage.write(path, &block)?;
        block.fill(0);
        self.storage.open_layer(path)?.read_once(0, &mut block)?;
        if block.iter().any(|&byte| byte != 0x5a) {
            return Err(Error::damaged(format!("{path} does not hold what was written")));
        }
        Ok(())
    }
}

impl Storage for LastingErrors {
    fn read(&self, path: &str, max_len: u64) -> Result<Vec<u8>> {
        self.0.storage.read(path, max_len)
    }

    fn read_with_stamp(&self, path: &str, max_len: u64) -> Result<(Vec<u8>, Option<Stamp>)> {
        self.0.storage.read_with_stamp(path, max_len)
    }

    fn stamp(&self, path: &str) -> Option<Stamp> {
        self.0.storage.stamp(path)
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        self.0.storage.list(dir)
    }

    fn create_dir(&self, dir: &str) -> Result<()> {
        self.0.storage.create_dir(dir)
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.0.storage.write(path, bytes)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.0.storage.rename(from, to)
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.0.storage.remove(path)
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        self.0.storage.sync_dir(dir)
    }

    fn open_layer(&self, path: &str) -> Result<Box<dyn LayerRead>> {
        let storage = &self.0.storage;
        let layer = self.0.settle(path, None, &mut || storage.open_layer(path))?;
        Ok(Box::new(Layer {
            layer,
            path: path.to_owned(),
            state: self.0.clone(),
        }))
    }

    fn create_layer(&self, path: &str) -> Result<Box<dyn LayerAppend>> {
        self.0.storage.create_layer(path)
    }

    fn reclaim(&self, path: &str, dead: &[Range<u64>]) -> Result<()> {
        self.0.storage.reclaim(path, dead)
    }

    fn frees_only_whole_writes(&self) -> bool {
        self.0.storage.frees_only_whole_writes()
    }

    fn allocated(&self, path: &str) -> Result<u64> {
        self.0.storage.allocated(path)
    }

    fn lock(&self, path: &str, mode: LockMode) -> Result<Lock> {
        self.0.storage.lock(path, mode)
    }

    fn holders(&self, path: &str) -> Vec<String> {
        self.0.storage.holders(path)
    }
}

#[derive(Debug)]
struct Layer {
    layer: Box<dyn LayerRead>,
    path: String,
    state: Arc<State>,
}

impl LayerRead for Layer {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<()> {
        let mut read = || self.layer.read_at(offset, target);
        self.state.settle(&self.path, Some(offset), &mut read)
    }

    fn read_once(&self, offset: u64, target: &mut AlignedBuf) -> Result<()> {
        let mut read = || self.layer.read_once(offset, target);
        self.state.settle(&self.path, Some(offset), &mut read)
    }

    fn read_now(&self, offset: u64, target: &mut [u8]) -> bool {
        self.layer.read_now(offset, target)
    }

    fn will_read(&self, offset: u64, length: u64) {
        self.layer.will_read(offset, length);
    }
}
