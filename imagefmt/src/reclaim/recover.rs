//! What the next writer does first: it finishes what a crash cut short.

use crate::error::{ErrorKind, Result};
use crate::reclaim::delete::{Reclaimed, Writer};
use crate::reclaim::roots::Roots;
use crate::reclaim::walk::free_from;
use crate::storage::paths::{TEMPORARY, images_dir, layer_of, layer_path, layers_dir};
use crate::store::Store;
use std::collections::BTreeSet;

impl Store {
    /// Finishes deletions, drops a checkpoint that led to an image or cannot be read, and removes what
    /// nothing lists: layers of syncs that were killed, and unfinished files.
    ///
    /// The caller holds the writer lock. If space cannot be freed, that is noted and is not an error.
    pub(crate) fn recover(&self, chain: &str) -> Result<Reclaimed> {
        let _reclaim = self.lock_reclaim(chain)?;
        let mut reclaimed = Reclaimed::default();
        if let Err(error) = self.repair(chain, &mut reclaimed) {
            reclaimed.unfinished = Some(error.full_message());
            tracing::warn!(chain, error = %error.full_message(), "what a crash left could not be cleared away");
        }
        Ok(reclaimed)
    }

    /// As [`recover`](Self::recover), for a caller that also holds the reclaim lock.
    pub(crate) fn repair(&self, chain: &str, reclaimed: &mut Reclaimed) -> Result<()> {
        // Whoever gave these names may have failed to make them durable: nothing is freed before they are.
        self.storage().sync_dir(&images_dir(chain))?;
        self.storage().sync_dir(chain)?;
        if !self.checkpoint_is_of_use(chain)? {
            self.drop_checkpoint(chain)?;
        }
        for dead in self.dead(chain)? {
            self.finish(chain, dead, Writer::Us, reclaimed)?;
        }
        self.remove_temporary(chain)?;
        let roots = Roots::collect(self, &self.chain(chain)?)?;
        if !roots.unread.is_empty() {
            reclaimed.kept.extend(roots.unread_reasons());
            return Ok(());
        }
        self.remove_unlisted(chain, &roots, reclaimed)?;
        self.truncate_uncommitted(chain, &roots, reclaimed)
    }

    /// Whether there is no checkpoint, or one of an unfinished sync that can be resumed.
    pub(crate) fn checkpoint_is_of_use(&self, chain: &str) -> Result<bool> {
        match self.read_checkpoint(chain) {
            Ok(None) => Ok(true),
            Ok(Some(_)) => Ok(self.unfinished_in(chain)?.is_some()),
            Err(error) if error.kind() == ErrorKind::Damaged => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes files that were never given their final name.
    fn remove_temporary(&self, chain: &str) -> Result<()> {
        for dir in [chain.to_owned(), images_dir(chain)] {
            for name in self.storage().list(&dir)? {
                if name.ends_with(TEMPORARY) {
                    self.storage().remove(&format!("{dir}/{name}"))?;
                }
            }
        }
        Ok(())
    }

    /// Removes layers that no root lists.
    fn remove_unlisted(&self, chain: &str, roots: &Roots, reclaimed: &mut Reclaimed) -> Result<()> {
        let listed = roots.layers();
        let names = self.storage().list(&layers_dir(chain))?;
        let unlisted: Vec<u32> = names
            .iter()
            .filter_map(|name| layer_of(name))
            .filter(|layer| !listed.contains_key(layer))
            .collect();
        self.remove_layers(chain, &unlisted, reclaimed)
    }

    /// Gives back what a killed sync stored behind its last checkpoint.
    fn truncate_uncommitted(&self, chain: &str, roots: &Roots, reclaimed: &mut Reclaimed) -> Result<()> {
        let Some(unfinished) = self.unfinished_in(chain)? else {
            return Ok(());
        };
        let images = roots
            .images
            .iter()
            .filter(|image| image.manifest().id != unfinished.id);
        let of_images: BTreeSet<u32> = images
            .flat_map(|image| &image.manifest().layers)
            .map(|layer| layer.id)
            .collect();
        for layer in unfinished
            .layers
            .iter()
            .filter(|layer| !of_images.contains(&layer.id))
        {
            let path = layer_path(chain, layer.id);
            reclaimed.freed_bytes += free_from(&**self.storage(), &path, layer.length)?;
        }
        Ok(())
    }
}
