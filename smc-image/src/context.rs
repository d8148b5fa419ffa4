//! What every command is given: the store and how to answer.

use crate::exit::Advise;
use crate::waiting::Waiting;
use imagefmt::{Disk, ErrorKind, Image, ImageRef, Store};
use std::path::PathBuf;
use std::sync::Arc;

/// What was said before the command.
#[derive(Debug)]
pub struct Context {
    /// Directory of the store.
    pub store: PathBuf,
    /// Whether to print JSON instead of text for people.
    pub json: bool,
}

impl Context {
    /// Opens the store, which must exist.
    ///
    /// # Errors
    /// Where there is no store, or it cannot be opened, with advice.
    pub fn open_store(&self) -> anyhow::Result<Store> {
        let opened = imagefmt::Store::open(&self.store);
        let missing = matches!(&opened, Err(error) if is_missing(error.kind()));
        let opened = opened.map_err(anyhow::Error::from);
        if missing {
            return opened.advise("name the directory that smcd writes to, with --store DIR or SMC_STORE");
        }
        Ok(opened?.with_lock_wait(Arc::new(Waiting)))
    }

    /// Opens an image and locks it against deletion while it is open.
    ///
    /// # Errors
    /// As [`open_store`](Self::open_store); an image that does not exist or cannot be read.
    pub fn open_image(&self, image: &ImageRef) -> anyhow::Result<Image> {
        Ok(self.open_store()?.image(image)?)
    }

    /// Opens one disk of an image: the one that is named, or the only one.
    ///
    /// # Errors
    /// As [`open_image`](Self::open_image); a disk that the image does not have, or none named where it has several.
    pub fn open_disk(&self, image: &ImageRef) -> anyhow::Result<Disk> {
        Ok(self.open_image(image)?.disk(image.disk.as_deref())?.clone())
    }
}

fn is_missing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::NotAStore)
}
