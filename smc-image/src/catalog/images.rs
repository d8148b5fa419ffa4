//! Opening the images of a store: what the catalog and the disks it serves share.

use imagefmt::{Disk, ImageId, ImageRef, Lock, Readers, Store};

/// A store whose chains, once opened, stay so: connections to images of one chain share its caches.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) store: Store,
    readers: Readers,
}

impl Images {
    pub(super) fn new(store: Store) -> Self {
        let readers = store.readers();
        Self { store, readers }
    }

    /// Locks the image that a reference names against deletion.
    pub(super) fn hold(&self, image: &ImageRef) -> imagefmt::Result<Lock> {
        self.store.hold(&self.store.resolve(image)?)
    }

    /// Opens one disk of an image.
    pub(super) fn disk(&self, image: &ImageId, name: &str) -> imagefmt::Result<Disk> {
        Ok(self.readers.open(image)?.disk(Some(name))?.clone())
    }
}
