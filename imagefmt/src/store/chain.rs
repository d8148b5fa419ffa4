//! What a chain remembers for its next writer: which numbers were never used.

use crate::error::{Error, ErrorKind, Result, Within};
use crate::format::geometry::ClusterSize;
use crate::format::id::Uuid;
use crate::format::manifest::Manifest;
use crate::format::name::check_name;
use crate::format::sealed;
use crate::storage::Storage;
use crate::storage::paths::{chain_path, image_file, images_dir, layer_of, layers_dir};
use crate::store::Store;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// chain.json. Readers do not need it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ChainRecord {
    format: u32,
    #[serde(default, deserialize_with = "sealed::words")]
    incompatible: Vec<String>,
    #[serde(default, deserialize_with = "sealed::words")]
    compatible: Vec<String>,
    pub id: Uuid,
    cluster_size: u32,
    pub disks: Vec<String>,
    pub next_sequence: u64,
    pub next_layer: u32,
}

impl ChainRecord {
    /// The record of a chain; a new one where there is none; made anew from the images where it was lost.
    ///
    /// The caller holds the chain's writer lock.
    pub fn load(
        store: &Store,
        chain: &str,
        cluster_size: Option<ClusterSize>,
        disks: &[String],
    ) -> Result<Self> {
        let fresh = || Self::new(cluster_size.unwrap_or(ClusterSize::K64), disks);
        let mut record = match sealed::read::<Self>(&**store.storage(), &chain_path(chain)) {
            // Without an image, only the numbers count: what a first sync that failed was given binds nobody.
            Ok(record) if store.sequences(chain)?.is_empty() => Self {
                next_sequence: record.next_sequence,
                next_layer: record.next_layer,
                id: record.id,
                ..fresh()?
            },
            Ok(record) => record,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Whoever created the directories may not have lived to make their names durable.
                store.storage().sync_dir(chain)?;
                store.storage().sync_dir("")?;
                newest_manifest(store, chain)?.map_or_else(fresh, |manifest| Self::from_image(&manifest))?
            }
            Err(error) if error.kind() == ErrorKind::Damaged => {
                return Err(error.within("remove the file, and the next sync makes it anew from the images"));
            }
            Err(error) => return Err(error),
        };
        for name in &record.disks {
            check_name("disk", name)
                .map_err(Error::into_damage)
                .within(|| format!("{}: field disks", chain_path(chain)))?;
        }
        record.skip_used(store, chain)?;
        Ok(record)
    }

    fn new(cluster_size: ClusterSize, disks: &[String]) -> Result<Self> {
        Ok(Self {
            format: 1,
            incompatible: Vec::new(),
            compatible: Vec::new(),
            id: Uuid::random()?,
            cluster_size: cluster_size.bytes(),
            disks: disks.to_vec(),
            next_sequence: 1,
            next_layer: 1,
        })
    }

    fn from_image(manifest: &Manifest) -> Result<Self> {
        let disks: Vec<String> = manifest.disks.iter().map(|disk| disk.name.clone()).collect();
        let mut record = Self::new(manifest.cluster_size()?, &disks)?;
        record.id = manifest.chain;
        let listed = manifest.layers.iter().map(|layer| layer.id);
        record.next_layer = listed.max().unwrap_or(0).saturating_add(1);
        Ok(record)
    }

    /// A record that was lost, or put back from an old copy, must not make numbers come twice.
    fn skip_used(&mut self, store: &Store, chain: &str) -> Result<()> {
        let names = store.storage().list(&images_dir(chain))?;
        let numbers = names
            .iter()
            .filter_map(|name| image_file(name))
            .map(|(sequence, _)| sequence);
        let unfinished = store.read_checkpoint(chain).ok().flatten();
        let unfinished = unfinished.map(|manifest| manifest.sequence);
        if let Some(newest) = numbers.chain(unfinished).max() {
            self.next_sequence = self.next_sequence.max(newest.saturating_add(1));
        }
        let names = store.storage().list(&layers_dir(chain))?;
        let listed = newest_manifest(store, chain).ok().flatten();
        let listed = listed
            .iter()
            .flat_map(|manifest| &manifest.layers)
            .map(|layer| layer.id);
        let found = names.iter().filter_map(|name| layer_of(name));
        if let Some(newest) = found.chain(listed).max() {
            self.next_layer = self.next_layer.max(newest.saturating_add(1));
        }
        Ok(())
    }

    pub fn cluster_size(&self) -> Result<ClusterSize> {
        ClusterSize::from_bytes(self.cluster_size.into()).map_err(Error::into_damage)
    }

    /// Makes the record durable: before a number in it is used.
    pub fn save(&self, storage: &dyn Storage, chain: &str) -> Result<()> {
        sealed::replace(storage, chain, &chain_path(chain), self).within(|| format!("update chain {chain}"))
    }
}

/// The newest manifest that can be read; an error if there are some but none can be.
fn newest_manifest(store: &Store, chain: &str) -> Result<Option<Arc<Manifest>>> {
    let mut unread = None;
    for sequence in store.sequences(chain)?.into_iter().rev() {
        match store.read_manifest(chain, sequence) {
            Ok(manifest) => return Ok(Some(manifest)),
            Err(error) => unread = Some(error),
        }
    }
    unread.map_or(Ok(None), Err)
}

/// Makes the directories of a chain, those that are missing.
pub(crate) fn create_dirs(storage: &dyn Storage, chain: &str) -> Result<()> {
    for dir in [chain.to_owned(), layers_dir(chain), images_dir(chain)] {
        match storage.create_dir(&dir) {
            Err(error) if error.kind() != ErrorKind::Exists => return Err(error),
            _ => {}
        }
    }
    storage.sync_dir(chain)?;
    storage.sync_dir("")
}
