//! What is known to be damaged in what a sync builds on, before it reads any of it: by verifications, and by layers
//! that are missing.

use crate::error::{ErrorKind, Result};
use crate::format::clusters::ClusterSet;
use crate::format::geometry::{FANOUT, parent_index};
use crate::format::name::ImageId;
use crate::format::node::Node;
use crate::parallel;
use crate::read::image::{Disk, Image};
use crate::read::tree::Tree;
use crate::storage::Lock;
use crate::storage::paths::{images_dir, layer_of, layers_dir, verified_of};
use crate::store::{Chain, Store};
use crate::verify::verdict::Damage;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// What verifications found damaged in the images of a chain, and which of its layers are there.
#[derive(Debug)]
pub(crate) struct KnownDamage {
    images: Vec<(Image, Damage)>,
    layers: BTreeSet<u32>,
}

/// What is known to be damaged in one disk.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    /// Clusters that cannot be read.
    pub clusters: ClusterSet,
    /// Whether the counts of what is pointed to in each layer may be wrong.
    pub counts: bool,
}

impl KnownDamage {
    /// Looks at everything that was stored about verifications. What of it cannot be read is left out, and said in
    /// `warnings`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn of_chain(store: &Store, chain: &Chain, warnings: &mut Vec<String>) -> Result<Self> {
        let names = store.storage().list(&images_dir(chain.name()))?;
        let verified: Vec<u64> = names.iter().filter_map(|name| verified_of(name)).collect();
        let found = parallel::map(&verified, |&sequence| {
            let id = store.image_id(chain.name(), sequence);
            (damage_of(store, chain, &id), id)
        });
        let mut images = Vec::new();
        for (found, id) in found {
            match found {
                Ok(found) => images.extend(found),
                Err(error) if error.is_lost() || error.kind() == ErrorKind::Unsupported => {
                    warnings.push(format!(
                        "what verifications found in image {id} cannot be read, so it is not repaired: {}",
                        error.full_message()
                    ))
                }
                Err(error) => return Err(error),
            }
        }
        let names = store.storage().list(&layers_dir(chain.name()))?;
        let layers = names.iter().filter_map(|name| layer_of(name)).collect();
        Ok(Self { images, layers })
    }

    /// What of this is in a disk: what it shares with a disk that was verified, and what lies in layers that are gone.
    ///
    /// # Errors
    /// When the store cannot be read. Nodes that are damaged are left out: reading the disk finds them.
    pub fn in_disk(&self, disk: &Disk) -> Result<Suspects> {
        let mut suspects = Suspects::default();
        for (image, damage) in &self.images {
            let Ok(verified) = image.disk(Some(disk.name())) else {
                continue;
            };
            // What concerns no cluster is padding, which is never inherited, or counts, which are.
            suspects.counts |= damage.is_beside_clusters(verified);
            for range in damage.clusters_of(verified) {
                shared(verified.tree(), disk.tree(), &range, &mut suspects.clusters)?;
            }
        }
        let layers = disk.tree().layers();
        if layers.iter().any(|(id, _)| !self.layers.contains(&id)) {
            self.in_missing_layers(disk.tree(), &mut suspects.clusters)?;
        }
        Ok(suspects)
    }

    fn in_missing_layers(&self, tree: &Tree, clusters: &mut ClusterSet) -> Result<()> {
        for leaf in 0..tree.geometry().leaf_count() {
            let Some(node) = readable_leaf(tree, leaf)? else {
                continue;
            };
            for (index, child) in (leaf * FANOUT as u64..).zip(node.children()) {
                if !child.is_null() && !self.layers.contains(&child.place.layer) {
                    clusters.insert(index..index + 1);
                }
            }
        }
        Ok(())
    }
}

/// What verifications found damaged in an image; nothing for one that is gone or cannot be opened itself.
fn damage_of(store: &Store, chain: &Chain, id: &ImageId) -> Result<Option<(Image, Damage)>> {
    let manifest = match store.manifest(id) {
        Ok(manifest) => manifest,
        Err(error) if error.kind() == ErrorKind::NotFound || error.is_lost() => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(damage) = store.verdict(id, &manifest)?.and_then(|verdict| verdict.damage) else {
        return Ok(None);
    };
    // Not locked: should it be deleted meanwhile, its nodes cannot be read any more, and it has nothing to say.
    let image = chain.open(manifest, Lock::new(()))?;
    Ok(Some((image, damage)))
}

/// Adds the clusters of `range` that both trees have at the same place.
fn shared(verified: &Tree, tree: &Tree, range: &Range<u64>, clusters: &mut ClusterSet) -> Result<()> {
    let count = verified
        .geometry()
        .cluster_count()
        .min(tree.geometry().cluster_count());
    let range = range.start..range.end.min(count);
    if range.is_empty() {
        return Ok(());
    }
    for leaf in parent_index(range.start)..=parent_index(range.end - 1) {
        let (Some(theirs), Some(ours)) = (readable_leaf(verified, leaf)?, readable_leaf(tree, leaf)?) else {
            continue;
        };
        let first = leaf * FANOUT as u64;
        for index in range.start.max(first)..range.end.min(first + FANOUT as u64) {
            let (theirs, ours) = (theirs.child(index), ours.child(index));
            if !ours.is_null() && ours.place == theirs.place {
                clusters.insert(index..index + 1);
            }
        }
    }
    Ok(())
}

/// A leaf; none where it is damaged.
fn readable_leaf(tree: &Tree, index: u64) -> Result<Option<Arc<Node>>> {
    match tree.leaf(index) {
        Ok(leaf) => Ok(Some(leaf)),
        Err(error) if error.is_lost() => Ok(None),
        Err(error) => Err(error),
    }
}
