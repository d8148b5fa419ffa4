//! Deleting an image: no data is copied, it costs what differs, and no crash can hurt a survivor.
//!
//! ```text
//! rename N.json to N.deleting; fsync images/      now it is gone, for good
//! punch dead clusters; fdatasync                  each layer
//! punch dead nodes; fdatasync                     each layer
//! unlink layers that nothing lists                as the chain's writer
//! unlink N.deleting
//! ```
//!
//! Whoever writes next repeats what a crash cut short.

use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::Manifest;
use crate::format::name::ImageId;
use crate::format::sealed;
use crate::read::image::Image;
use crate::reclaim::roots::Roots;
use crate::reclaim::walk;
use crate::storage::Lock;
use crate::storage::paths::{
    DROPPED_CHECKPOINT, deleting_of, deleting_path, dropped_checkpoint_path, image_file, images_dir,
    layer_path, layers_dir, manifest_path,
};
use crate::store::{Chain, Store};

/// The result of reclaiming space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Bytes that the chain's layers take less than before.
    pub freed_bytes: u64,
    /// Layers that are gone.
    pub removed_layers: usize,
    /// What was kept although it may be free, and why.
    pub kept: Vec<String>,
    /// Why not everything is freed yet. The next sync or `gc` continues.
    pub unfinished: Option<String>,
}

/// Whether the caller is the chain's writer: only that one removes layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// It holds the writer lock.
    Us,
    /// It may be another process, or none.
    Unknown,
}

impl Store {
    /// Deletes an image and frees the space that only it used. Once it is durably gone, this succeeds.
    ///
    /// # Errors
    /// Of kind `InUse`, naming who holds it, when the image is being read or is pinned; nothing has changed
    /// then. `NotFound` when there is no such image, `Unsupported` where a newer smc is needed to change the chain.
    pub fn delete(&self, image: &ImageId) -> Result<Reclaimed> {
        let (chain, sequence) = (image.chain(), image.sequence());
        if !self.sequences(chain)?.contains(&sequence) {
            return Err(Error::refused(ErrorKind::NotFound, image, "does not exist"));
        }
        let storage = self.storage();
        let _reclaim = self.lock_reclaim(chain)?;
        self.check_writable(chain)?;
        self.check_unpinned(image)?;
        let lock = self.lock_for_deletion(image)?;
        let mut reclaimed = Reclaimed::default();
        // With the image would go the knowledge that a checkpoint led to it; a damaged one leads nowhere, and
        // would keep everything from being freed.
        if !self.checkpoint_is_of_use(chain)? {
            self.drop_unused_checkpoint(image, &mut reclaimed)?;
        }
        storage
            .rename(&manifest_path(chain, sequence), &deleting_path(chain, sequence))
            .and_then(|()| storage.sync_dir(&images_dir(chain)))
            .map_err(|error| error.of_image("delete image", image))?;
        drop(lock);
        if let Err(error) = self.finish(chain, Dead::Image(sequence), Writer::Unknown, &mut reclaimed) {
            reclaimed.unfinished = Some(error.full_message());
        }
        Ok(reclaimed)
    }

    /// A sync that runs replaces or drops its checkpoint itself.
    fn drop_unused_checkpoint(&self, image: &ImageId, reclaimed: &mut Reclaimed) -> Result<()> {
        let chain = image.chain();
        let _writer = match self.lock_writer(chain, image.job()) {
            Err(error) if error.kind() == ErrorKind::Busy => return Ok(()),
            locked => locked?,
        };
        if self.drop_checkpoint(chain)? {
            self.finish(chain, Dead::Checkpoint, Writer::Us, reclaimed)?;
        }
        Ok(())
    }

    /// The images and the unfinished sync that a crash left half deleted.
    pub(crate) fn dead(&self, chain: &str) -> Result<Vec<Dead>> {
        let names = self.storage().list(&images_dir(chain))?;
        let mut dead: Vec<Dead> = names
            .iter()
            .filter_map(|name| deleting_of(name))
            .map(Dead::Image)
            .collect();
        dead.sort_unstable();
        if self
            .storage()
            .list(chain)?
            .iter()
            .any(|name| name == DROPPED_CHECKPOINT)
        {
            dead.push(Dead::Checkpoint);
        }
        Ok(dead)
    }

    /// Frees what a deleted image or dropped checkpoint held, and lets go of its name.
    ///
    /// The caller holds the reclaim lock.
    pub(crate) fn finish(
        &self,
        chain: &str,
        dead: Dead,
        writer: Writer,
        reclaimed: &mut Reclaimed,
    ) -> Result<()> {
        let path = dead.path(chain);
        let readers = self.chain(chain)?;
        // A sync of these that failed before may have left names that are seen but not durable.
        self.storage().sync_dir(&images_dir(chain))?;
        self.storage().sync_dir(chain)?;
        let roots = Roots::collect(self, &readers)?;
        match self.open_dead(&readers, &path) {
            Ok(_) if !roots.unread.is_empty() => {
                // What they point to is unknown. The name stays, so that a later writer tries again.
                reclaimed.kept.extend(roots.unread_reasons());
                return Ok(());
            }
            Ok(image) => self.free(&image, &roots, writer, reclaimed)?,
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            Err(error) => {
                let error = error.full_message();
                reclaimed.kept.push(format!(
                    "{path} cannot be read, so what only it held is left to `gc`: {error}"
                ));
            }
        }
        self.remove_beside(chain, dead)?;
        self.storage().remove(&path)
    }

    fn open_dead(&self, readers: &Chain, path: &str) -> Result<Image> {
        let manifest: Manifest = sealed::read(&**self.storage(), path)?;
        let checked = manifest.check(manifest.sequence);
        checked.map_err(|error| error.in_file(path))?;
        readers.open(manifest.into(), Lock::new(()))
    }

    /// Gives back what only `dead` held: pieces of layers that others list, and whole layers.
    pub(crate) fn free(
        &self,
        dead: &Image,
        roots: &Roots,
        writer: Writer,
        reclaimed: &mut Reclaimed,
    ) -> Result<()> {
        let chain = dead.id().chain();
        let freed = walk::free_shared(&**self.storage(), dead, roots)?;
        reclaimed.freed_bytes += freed.bytes;
        reclaimed.kept.extend(freed.kept);
        let listed = roots.layers();
        let alone: Vec<u32> = dead
            .manifest()
            .layers
            .iter()
            .map(|layer| layer.id)
            .filter(|layer| !listed.contains_key(layer))
            .collect();
        // While another process writes, layers are emptied; the next writer removes them.
        let ours = match writer {
            Writer::Us => Some(None),
            Writer::Unknown => match self.lock_writer(chain, dead.id().job()) {
                Err(error) if error.kind() == ErrorKind::Busy => None,
                lock => Some(Some(lock?)),
            },
        };
        match ours {
            Some(_lock) => self.remove_layers(chain, &alone, reclaimed),
            None => self.empty_layers(chain, &alone, reclaimed),
        }
    }

    /// Removes layers that nothing lists, as the chain's writer.
    pub(crate) fn remove_layers(&self, chain: &str, layers: &[u32], reclaimed: &mut Reclaimed) -> Result<()> {
        let storage = self.storage();
        for &layer in layers {
            let path = layer_path(chain, layer);
            match storage
                .allocated(&path)
                .and_then(|bytes| storage.remove(&path).map(|()| bytes))
            {
                Ok(bytes) => {
                    reclaimed.freed_bytes += bytes;
                    reclaimed.removed_layers += 1;
                }
                // A crash came after it was removed.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if layers.is_empty() {
            return Ok(());
        }
        storage.sync_dir(&layers_dir(chain))
    }

    fn empty_layers(&self, chain: &str, layers: &[u32], reclaimed: &mut Reclaimed) -> Result<()> {
        for &layer in layers {
            let path = layer_path(chain, layer);
            match walk::free_from(&**self.storage(), &path, 0) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                freed => reclaimed.freed_bytes += freed?,
            }
        }
        Ok(())
    }

    /// Removes what was said about an image that is gone.
    fn remove_beside(&self, chain: &str, dead: Dead) -> Result<()> {
        let Dead::Image(gone) = dead else { return Ok(()) };
        let dir = images_dir(chain);
        for name in self.storage().list(&dir)? {
            if image_file(&name).is_some_and(|(sequence, _)| sequence == gone) && deleting_of(&name).is_none()
            {
                self.storage().remove(&format!("{dir}/{name}"))?;
            }
        }
        Ok(())
    }
}

/// What is being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dead {
    Image(u64),
    Checkpoint,
}

impl Dead {
    fn path(self, chain: &str) -> String {
        match self {
            Self::Image(sequence) => deleting_path(chain, sequence),
            Self::Checkpoint => dropped_checkpoint_path(chain),
        }
    }
}
