//! The roots of a chain: everything that still needs what it points to.

use crate::error::{Error, Result};
use crate::format::id::Uuid;
use crate::format::manifest::Manifest;
use crate::format::name::ImageId;
use crate::read::image::Image;
use crate::storage::Lock;
use crate::store::{Chain, Store};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The images of a chain and its unfinished sync, as the holder of the reclaim lock finds them.
#[derive(Debug)]
pub(crate) struct Roots {
    /// Those that can be opened. No lock is held on them: the reclaim lock keeps them where they are.
    pub images: Vec<Image>,
    /// Those that cannot, by name, and why. What they point to is unknown, so nothing may be freed.
    pub unread: Vec<(String, Error)>,
    layers: OnceCell<BTreeMap<u32, ListedLayer>>,
}

impl Roots {
    /// Collects the roots of `chain`, whose reclaim lock the caller holds.
    ///
    /// The checkpoint comes first: should it become an image meanwhile, that one is found as well.
    pub fn collect(store: &Store, chain: &Chain) -> Result<Self> {
        let mut roots = Self {
            images: Vec::new(),
            unread: Vec::new(),
            layers: OnceCell::new(),
        };
        let name = chain.name();
        if let Some(found) = store.read_checkpoint(name).transpose() {
            roots.add(chain, "the unfinished sync".to_owned(), found.map(Arc::new));
        }
        for sequence in store.sequences(name)? {
            let found = store.read_manifest(name, sequence);
            // As others name it: by the chain where its own manifest does not say the job.
            let job = found.as_ref().map_or(name, |manifest| manifest.job.as_str());
            let label = format!("image {}", ImageId::new(name, sequence, job));
            roots.add(chain, label, found);
        }
        Ok(roots)
    }

    fn add(&mut self, chain: &Chain, label: String, manifest: Result<Arc<Manifest>>) {
        match manifest.and_then(|manifest| chain.open(manifest, Lock::new(()))) {
            Ok(image) => self.images.push(image),
            Err(error) => self.unread.push((label, error)),
        }
    }

    /// Why nothing may be freed, where a root cannot be opened.
    pub fn unread_reasons(&self) -> impl Iterator<Item = String> {
        let reason = |(label, error): &(String, Error)| {
            let told = error.full_message();
            format!("all that {label} may still need: it cannot be read ({told})")
        };
        self.unread.iter().map(reason)
    }

    /// Every layer that a root lists, with the id of it that each means.
    pub fn layers(&self) -> &BTreeMap<u32, ListedLayer> {
        self.layers.get_or_init(|| self.listed_layers())
    }

    fn listed_layers(&self) -> BTreeMap<u32, ListedLayer> {
        let mut layers: BTreeMap<u32, ListedLayer> = BTreeMap::new();
        for record in self.images.iter().flat_map(|image| &image.manifest().layers) {
            let listed = layers.entry(record.id).or_insert(ListedLayer {
                uuid: record.uuid,
                len: record.length,
                agreed: true,
            });
            listed.len = listed.len.max(record.length);
            listed.agreed &= listed.uuid == record.uuid;
        }
        layers
    }
}

/// What the roots say of one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ListedLayer {
    /// Its random id.
    pub uuid: Uuid,
    /// Committed length in bytes.
    pub len: u64,
    /// Whether all roots mean the same layer; if not, the store is damaged and nothing in it is freed.
    pub agreed: bool,
}
