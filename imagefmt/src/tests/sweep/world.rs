//! What a store must hold: what was acknowledged, and what may or may not have happened.

use crate::tests::model::Model;
use crate::{Manifest, Uuid};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The disks of one image, byte for byte.
#[derive(Debug)]
pub struct ImageModel {
    pub disks: Vec<DiskModel>,
}

#[derive(Debug)]
pub struct DiskModel {
    pub name: String,
    pub model: Model,
    pub bytes: Vec<u8>,
    pub digest: String,
}

impl ImageModel {
    pub fn new(disks: &[(String, Model)]) -> Arc<Self> {
        let disk = |(name, model): &(String, Model)| DiskModel {
            name: name.clone(),
            bytes: model.read(0, model.size as usize),
            digest: model.digest(),
            model: model.clone(),
        };
        Arc::new(Self {
            disks: disks.iter().map(disk).collect(),
        })
    }
}

/// The states that an unfinished sync may be found in; `None` is that there is none.
pub type Unfinished = Vec<Option<Arc<ImageModel>>>;

/// One job's images, as somebody who was panic_message about them knows them.
#[derive(Debug, Clone)]
pub struct Job {
    /// Acknowledged: there, whatever happens.
    pub images: BTreeMap<u64, Arc<ImageModel>>,
    /// There and whole, or gone: their deletion was begun and nothing was said of how it ended.
    pub unsure: BTreeMap<u64, Arc<ImageModel>>,
    /// Deleted and acknowledged: gone, whatever happens.
    pub gone: BTreeSet<u64>,
    /// Images whose sync was begun and not acknowledged: one may be there, whole.
    pub begun: Vec<Arc<ImageModel>>,
    pub unfinished: Unfinished,
    /// The disks that the job images, as they are now.
    pub source: Arc<Vec<(String, Model)>>,
    /// The id of every image that was ever seen under a number.
    pub ids: BTreeMap<u64, Uuid>,
    /// The random id of every layer that was ever seen under an id.
    pub layers: BTreeMap<u32, Uuid>,
}

impl Default for Job {
    fn default() -> Self {
        Self {
            images: BTreeMap::new(),
            unsure: BTreeMap::new(),
            gone: BTreeSet::new(),
            begun: Vec::new(),
            unfinished: vec![None],
            source: Arc::default(),
            ids: BTreeMap::new(),
            layers: BTreeMap::new(),
        }
    }
}

impl Job {
    /// Notes the numbers that a manifest uses; an error if one of them meant something else before.
    pub fn see(&mut self, manifest: &Manifest) -> Result<(), String> {
        let sequence = manifest.sequence;
        if *self.ids.entry(sequence).or_insert(manifest.id) != manifest.id {
            return Err(format!("the number {sequence} was used for two images"));
        }
        self.see_layers(manifest)
    }

    pub fn see_layers(&mut self, manifest: &Manifest) -> Result<(), String> {
        for layer in &manifest.layers {
            if *self.layers.entry(layer.id).or_insert(layer.uuid) != layer.uuid {
                return Err(format!("the layer id {:08x} was used twice", layer.id));
            }
        }
        Ok(())
    }

    /// No number up to this one may be given to another image.
    pub fn highest(&self) -> u64 {
        self.ids.last_key_value().map_or(0, |(&sequence, _)| sequence)
    }
}

/// All jobs of a store.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Whether the store's creation was acknowledged.
    pub created: bool,
    pub jobs: BTreeMap<&'static str, Job>,
}

impl World {
    pub fn job(&mut self, job: &'static str) -> &mut Job {
        self.jobs.entry(job).or_default()
    }
}
