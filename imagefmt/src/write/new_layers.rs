//! New layers for the builders of an image: with ids that were never used, durable before they are used.

use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::ClusterSize;
use crate::format::id::Uuid;
use crate::format::layer::{LayerIdentity, LayerWriter};
use crate::format::owner::Owner;
use crate::storage::Storage;
use crate::store::chain::ChainRecord;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Gives a builder its layers, with ids that were never used before.
pub(crate) trait LayerSource: fmt::Debug + Send {
    /// Creates an empty layer.
    ///
    /// # Errors
    /// When the id cannot be made durable or the file cannot be created.
    fn create(&mut self) -> Result<LayerWriter>;
}

/// The numbers of one chain and the layers made with them. Clones share both, so that several builders can
/// use it at the same time.
#[derive(Debug, Clone)]
pub(crate) struct NewLayers {
    storage: Arc<dyn Storage>,
    chain: Arc<str>,
    cluster_size: ClusterSize,
    numbers: Arc<Mutex<Numbers>>,
}

#[derive(Debug)]
struct Numbers {
    record: ChainRecord,
    /// Layers that were created.
    created: Vec<u32>,
}

impl NewLayers {
    /// For a chain whose writer lock the caller holds.
    pub fn new(
        storage: Arc<dyn Storage>,
        chain: &str,
        cluster_size: ClusterSize,
        record: ChainRecord,
    ) -> Self {
        let created = Vec::new();
        Self {
            storage,
            chain: chain.into(),
            cluster_size,
            numbers: Arc::new(Mutex::new(Numbers { record, created })),
        }
    }

    pub fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// The chain's name.
    pub fn chain(&self) -> &str {
        &self.chain
    }

    pub fn cluster_size(&self) -> ClusterSize {
        self.cluster_size
    }

    /// The chain's id.
    pub fn chain_id(&self) -> Uuid {
        self.numbers().record.id
    }

    /// Who the chain belongs to.
    pub fn owner(&self) -> Option<Owner> {
        self.numbers().record.owner.clone()
    }

    /// Layers that were created so far.
    pub fn created(&self) -> Vec<u32> {
        self.numbers().created.clone()
    }

    /// Takes image number `sequence`: when this returns, no later sync gets it.
    ///
    /// # Errors
    /// `Damaged` when the chain is out of numbers; otherwise when its record cannot be written.
    pub fn take_sequence(&self, sequence: u64) -> Result<()> {
        let mut numbers = self.numbers();
        numbers.record.next_sequence = sequence
            .checked_add(1)
            .ok_or_else(|| Error::damaged("the chain is out of image numbers"))?;
        numbers.record.save(&*self.storage, &self.chain)
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LayerSource for NewLayers {
    fn create(&mut self) -> Result<LayerWriter> {
        let mut numbers = self.numbers();
        let layer = numbers.record.next_layer;
        numbers.record.next_layer = layer
            .checked_add(1)
            .ok_or_else(|| Error::invalid("the chain is out of layer ids"))?;
        numbers.record.save(&*self.storage, &self.chain)?;
        let identity = LayerIdentity {
            chain: numbers.record.id,
            uuid: Uuid::random()?,
            layer,
            cluster_size: self.cluster_size,
        };
        let writer = LayerWriter::create(&*self.storage, &self.chain, identity);
        // A file that was there before is not ours: giving up must not remove it.
        if !writer
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::Exists)
        {
            numbers.created.push(layer);
        }
        writer
    }
}
