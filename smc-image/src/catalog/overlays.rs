//! Writable views of disks: one for each export while anybody is connected to it, and named ones that stay.

use super::{chain_text, locked};
use nbd::{Export, Overlay, ServeError, Space};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

/// Named overlays at a time: each keeps its image from being deleted.
const NAMED_MAX: usize = 256;

/// Which overlay: a disk by number, and the overlay's own name if it has one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) disk: String,
    pub(super) name: Option<String>,
}

/// The overlays of a server, which share a bounded space.
#[derive(Debug)]
pub(super) struct Overlays {
    space: Arc<Space>,
    /// Gone when the last client of the export leaves.
    passing: Mutex<BTreeMap<String, Weak<Overlay>>>,
    /// Kept until the server ends.
    named: Mutex<BTreeMap<Key, Arc<Overlay>>>,
}

impl Overlays {
    pub(super) fn new(directory: &Path, memory_bytes: u64, limit_bytes: u64) -> Result<Self, ServeError> {
        Ok(Self {
            space: Space::new(directory, memory_bytes, limit_bytes)?,
            passing: Mutex::default(),
            named: Mutex::default(),
        })
    }

    /// The overlay of this key, over what `open` gives if it is new.
    pub(super) fn open(
        &self,
        key: &Key,
        open: impl FnOnce() -> imagefmt::Result<Arc<dyn Export>>,
    ) -> Result<Arc<dyn Export>, ServeError> {
        let make = || {
            let base = open().map_err(|error| {
                tracing::error!("cannot serve {}: {}", key.disk, chain_text(&error));
                super::refusal(&error)
            })?;
            Ok(Arc::new(Overlay::new(base, &self.space)))
        };
        // The lock is held while an image is opened: two clients that come at once get the same overlay.
        if key.name.is_none() {
            let mut passing = locked(&self.passing);
            passing.retain(|_, overlay| overlay.strong_count() > 0);
            if let Some(overlay) = passing.get(&key.disk).and_then(Weak::upgrade) {
                return Ok(overlay);
            }
            let overlay = make()?;
            passing.insert(key.disk.clone(), Arc::downgrade(&overlay));
            return Ok(overlay);
        }
        let mut named = locked(&self.named);
        if let Some(overlay) = named.get(key) {
            return Ok(Arc::clone(overlay) as Arc<dyn Export>);
        }
        if named.len() >= NAMED_MAX {
            let text =
                format!("there are {NAMED_MAX} named overlays already; restart the server to drop them");
            return Err(ServeError::new(nbd::ErrorKind::Refused, text));
        }
        let overlay = make()?;
        named.insert(key.clone(), Arc::clone(&overlay));
        Ok(overlay)
    }

    /// The named overlays that there are.
    pub(super) fn names(&self) -> Vec<Key> {
        locked(&self.named).keys().cloned().collect()
    }
}
