//! Checkpoints: what an unfinished sync has stored, as an image without a name.
//!
//! A chain has at most one. It holds all disks of the sync in the state that they have reached. It is replaced
//! while the sync runs, and removed when the image exists. The next sync compares the disks with it, so that
//! what is stored already is not stored again.

use crate::error::{ErrorKind, Result, Within};
use crate::format::manifest::{Consistency, DiskRecord, LayerRecord, Manifest};
use crate::format::sealed;
use crate::read::image::Image;
use crate::reclaim::delete::{Dead, Reclaimed, Writer};
use crate::reclaim::roots::Roots;
use crate::reclaim::walk::free_from;
use crate::storage::Lock;
use crate::storage::paths::{checkpoint_path, dropped_checkpoint_path, layer_path, layers_dir};
use crate::store::{Chain, Store};
use crate::write::disk::DraftDisk;
use crate::write::draft::Draft;

impl Store {
    /// The unfinished sync of a chain, where there is one.
    pub(crate) fn unfinished_in(&self, chain: &str) -> Result<Option<Manifest>> {
        let found = self.read_checkpoint(chain)?;
        let newest = self.sequences(chain)?.last().copied();
        // Once there is an image of this number or a later one, the sync was finished.
        Ok(found.filter(|manifest| newest.is_none_or(|newest| newest < manifest.sequence)))
    }

    /// Discards what the unfinished sync of a chain has stored, for `job`, and frees its space; nothing where there is
    /// no such sync.
    ///
    /// # Errors
    /// `Busy` while a sync runs.
    pub(crate) fn discard_checkpoint(&self, chain: &str, job: &str) -> Result<Option<Reclaimed>> {
        let _writer = self.lock_writer(chain, job)?;
        // Another job of the chain may have begun one before the lock was taken.
        match self.readable_checkpoint(chain)? {
            Some(other) if other.job != job => Ok(None),
            _ => self.discard_checkpoint_of(chain),
        }
    }

    /// The same for the chain's writer.
    pub(crate) fn discard_checkpoint_of(&self, chain: &str) -> Result<Option<Reclaimed>> {
        let _reclaim = self.lock_reclaim(chain)?;
        self.check_writable(chain)?;
        let mut reclaimed = Reclaimed::default();
        if !self.drop_checkpoint(chain)? {
            return Ok(None);
        }
        if let Err(error) = self.finish(chain, Dead::Checkpoint, Writer::Us, &mut reclaimed) {
            reclaimed.unfinished = Some(error.full_message());
        }
        Ok(Some(reclaimed))
    }

    /// Takes the unfinished sync's name away, durably; says whether there was one.
    pub(crate) fn drop_checkpoint(&self, chain: &str) -> Result<bool> {
        match self
            .storage()
            .rename(&checkpoint_path(chain), &dropped_checkpoint_path(chain))
        {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            renamed => renamed?,
        }
        self.storage().sync_dir(chain)?;
        Ok(true)
    }

    /// The unfinished sync to resume; none if its file is damaged, as then nothing says what it stored. Damage of the
    /// layers that it lists, its own or its parent's, is no reason: the sync repairs it.
    pub(crate) fn resumable(&self, readers: &Chain, warnings: &mut Vec<String>) -> Result<Option<Image>> {
        let opened = self.unfinished_in(readers.name()).and_then(|found| {
            found
                .map(|manifest| readers.open(manifest.into(), Lock::new(())))
                .transpose()
        });
        match opened {
            Err(error) if error.kind() == ErrorKind::Damaged => {
                warnings.push(format!(
                    "what an unfinished sync stored cannot be used and is stored again: {}",
                    error.full_message()
                ));
                Ok(None)
            }
            opened => opened,
        }
    }
}

impl Draft {
    /// Makes what came so far of all disks durable, so that a later sync resumes from here should this one not end.
    /// Returns whether there is a checkpoint of this sync: not while nothing has come.
    pub(crate) fn checkpoint(&mut self) -> Result<bool> {
        if !self.disks.iter().any(DraftDisk::is_fresh) {
            return Ok(self.saved.is_some());
        }
        self.checkpoint_under(None)?;
        Ok(true)
    }

    /// Makes what came so far durable and describes it. The chain's reclaim lock is waited for unless it is given.
    fn checkpoint_under(&mut self, reclaim: Option<Lock>) -> Result<()> {
        let (mut disks, mut layers) = (Vec::new(), Vec::new());
        for disk in &mut self.disks {
            let (record, of_disk) = disk.checkpoint()?;
            disks.push(record);
            layers.extend(of_disk);
        }
        self.keep_resumed(&mut disks, &mut layers);
        self.save_checkpoint(disks, layers, reclaim)?;
        self.disks.iter_mut().for_each(DraftDisk::saved);
        Ok(())
    }

    /// The same without waiting for a process that frees space in the chain. Where there is one, the last checkpoint
    /// stays, and the answer is its name.
    pub(crate) fn try_checkpoint(&mut self) -> Result<Option<String>> {
        if !self.disks.iter().any(DraftDisk::is_fresh) {
            return Ok(None);
        }
        let chain = self.new_layers.chain();
        match self.store.try_lock_reclaim(chain)? {
            Some(reclaim) => self.checkpoint_under(Some(reclaim)).map(|()| None),
            None => Ok(Some(self.store.who_reclaims(chain))),
        }
    }

    /// Adds what the resumed sync has stored of disks that were not added yet.
    fn keep_resumed(&self, disks: &mut Vec<DiskRecord>, layers: &mut Vec<LayerRecord>) {
        let Some(resumed) = &self.resumed else { return };
        for disk in &resumed.manifest().disks {
            if disks.iter().all(|begun| begun.name != disk.name) {
                disks.push(disk.clone());
                let of_disk = resumed
                    .manifest()
                    .layers
                    .iter()
                    .filter(|layer| layer.disk == disk.name);
                layers.extend(of_disk.cloned());
            }
        }
    }

    /// Replaces the chain's checkpoint, and frees what only the one before held.
    fn save_checkpoint(
        &mut self,
        disks: Vec<DiskRecord>,
        layers: Vec<LayerRecord>,
        reclaim: Option<Lock>,
    ) -> Result<()> {
        let manifest = self.describe(disks, layers, Consistency::Fuzzy, "unfinished")?;
        let (chain, storage) = (self.new_layers.chain(), self.new_layers.storage());
        storage.sync_dir(&layers_dir(chain))?;
        let _reclaim = match reclaim {
            Some(held) => held,
            None => self.store.lock_reclaim(chain)?,
        };
        let path = checkpoint_path(chain);
        let temporary = sealed::write_temporary(storage, &path, &manifest)?;
        // If this fails, either checkpoint may be found: giving up must then take nothing from either.
        self.named = true;
        sealed::put_in_place(storage, chain, &temporary, &path)
            .within(|| format!("checkpoint of {}", self.id()))?;
        self.named = false;
        // The one that was resumed stays as it is until the end: it is what the disks are compared with.
        if let Some(before) = self.saved.replace(manifest) {
            self.free_checkpoint(before);
        }
        Ok(())
    }

    /// Frees what only a checkpoint of this sync held. The caller holds the reclaim lock.
    fn free_checkpoint(&self, before: Manifest) {
        let freed = self
            .readers
            .open(before.into(), Lock::new(()))
            .and_then(|image| self.free(&image));
        if let Err(error) = freed {
            tracing::warn!(error = %error.full_message(), "what an earlier checkpoint held is left to gc");
        }
    }

    fn free(&self, image: &Image) -> Result<()> {
        let roots = Roots::collect(&self.store, &self.readers)?;
        if !roots.unread.is_empty() {
            return Ok(());
        }
        self.store
            .free(image, &roots, Writer::Us, &mut Reclaimed::default())
    }

    /// Drops the checkpoints that led to an image that exists now. The caller holds the reclaim lock.
    ///
    /// Should this fail, the next writer finds that they led to it.
    pub(crate) fn forget_checkpoints(&self) {
        let chain = self.new_layers.chain();
        let forgotten = self.store.drop_checkpoint(chain).and_then(|dropped| {
            if dropped {
                let mut reclaimed = Reclaimed::default();
                self.store
                    .finish(chain, Dead::Checkpoint, Writer::Us, &mut reclaimed)?;
            }
            self.free_resumed()
        });
        if let Err(error) = forgotten {
            tracing::warn!(error = %error.full_message(), "the checkpoint of a finished sync is left to the next one");
        }
    }

    /// Frees what only the checkpoint held that this sync began from and has replaced.
    fn free_resumed(&self) -> Result<()> {
        match &self.resumed {
            Some(resumed) if self.saved.is_some() => self.free(resumed),
            _ => Ok(()),
        }
    }

    /// Leaves the chain as the last checkpoint describes it: what was stored since is of no use.
    pub(crate) fn give_up(&mut self) {
        // Their writers wait for what is in flight: it must not arrive after what follows.
        self.disks.clear();
        let (chain, storage) = (self.new_layers.chain(), self.new_layers.storage());
        for layer in self.new_layers.created() {
            let path = layer_path(chain, layer);
            let listed = self
                .saved
                .iter()
                .flat_map(|saved| &saved.layers)
                .find(|listed| listed.id == layer);
            let left = match listed {
                Some(listed) => free_from(storage, &path, listed.length).map(drop),
                None => storage.remove(&path),
            };
            if let Err(error) = left {
                tracing::debug!(%path, %error, "leave a layer of the sync that failed");
            }
        }
        let freed = self
            .store
            .lock_reclaim(chain)
            .and_then(|_reclaim| self.free_resumed());
        if let Err(error) = freed {
            tracing::debug!(%error, "leave what an earlier checkpoint held");
        }
    }
}
