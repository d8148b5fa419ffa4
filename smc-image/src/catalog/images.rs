//! Finding and opening the images of a store: what the catalog and the disks it serves share.

use super::locked;
use imagefmt::{Chain, Disk, ImageRef, Lock, Store};
use std::collections::HashMap;
use std::sync::Mutex;

/// A store whose chains, once opened, stay so: connections to images of one chain share its caches.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) store: Store,
    chains: Mutex<HashMap<String, Chain>>,
}

impl Images {
    pub(super) fn new(store: Store) -> Self {
        let chains = Mutex::default();
        Self { store, chains }
    }

    /// Locks an image against deletion.
    pub(super) fn hold(&self, image: &ImageRef) -> imagefmt::Result<Lock> {
        let (chain, sequence) = self.store.resolve(image)?;
        self.store.hold(&chain, sequence)
    }

    /// Opens one disk of an image.
    pub(super) fn disk(&self, image: &ImageRef, name: &str) -> imagefmt::Result<Disk> {
        let (chain, sequence) = self.store.resolve(image)?;
        Ok(self.chain(&chain)?.image(sequence)?.disk(Some(name))?.clone())
    }

    fn chain(&self, name: &str) -> imagefmt::Result<Chain> {
        let mut chains = locked(&self.chains);
        if let Some(chain) = chains.get(name) {
            return Ok(chain.clone());
        }
        let chain = self.store.chain(name)?;
        chains.insert(name.to_owned(), chain.clone());
        Ok(chain)
    }
}
