//! The roots of a chain: everything that still needs what it points to.

use crate::error::{Error, Result};
use crate::format::id::Uuid;
use crate::format::manifest::Manifest;
use crate::parallel;
use crate::read::image::Image;
use crate::storage::Lock;
use crate::store::{Chain, Store};
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
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
    ///
    /// # Errors
    /// `Io` where the chain cannot be listed. Roots that cannot be read are kept beside the others.
    pub fn collect(store: &Store, chain: &Chain) -> Result<Self> {
        let mut roots = Self {
            images: Vec::new(),
            unread: Vec::new(),
            layers: OnceCell::new(),
        };
        let name = chain.name();
        if let Some(found) = store.read_checkpoint(name).transpose() {
            match open(chain, found.map(Arc::new)) {
                Ok(image) => roots.images.push(image),
                Err(error) => roots.unread.push(("the unfinished sync".to_owned(), error)),
            }
        }
        let sequences = store.sequences(name)?;
        let opened = parallel::map(&sequences, |&sequence| {
            open(chain, store.read_manifest(name, sequence))
        });
        for (opened, sequence) in opened.into_iter().zip(sequences) {
            match opened {
                Ok(image) => roots.images.push(image),
                Err(error) => roots
                    .unread
                    .push((format!("image {}", store.image_id(name, sequence)), error)),
            }
        }
        Ok(roots)
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
        // Each image lists those of all before it that it still needs: very many, of which most are the same.
        let mut layers: HashMap<u32, ListedLayer> = HashMap::new();
        for record in self.images.iter().flat_map(|image| &image.manifest().layers) {
            let listed = layers.entry(record.id).or_insert(ListedLayer {
                uuid: record.uuid,
                len: record.length,
                agreed: true,
            });
            listed.len = listed.len.max(record.length);
            listed.agreed &= listed.uuid == record.uuid;
        }
        layers.into_iter().collect()
    }
}

/// No lock is needed on a root: the reclaim lock keeps it.
fn open(chain: &Chain, manifest: Result<Arc<Manifest>>) -> Result<Image> {
    chain.open(manifest?, Lock::new(()))
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
