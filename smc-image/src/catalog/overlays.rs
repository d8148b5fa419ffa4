//! Writable views of disks: one for each export while anybody needs it, and named ones that stay.

use super::kept::{Kept, Use};
use super::{Asked, Offer, locked};
use imagefmt::{ImageId, ImageRef};
use nbd::{Export, Overlay, ServeError, Space};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Named overlays at a time: each keeps its image from being deleted.
const NAMED_MAX: usize = 256;

/// The overlays of a server, which share a bounded space.
#[derive(Debug)]
pub(super) struct Overlays {
    space: Arc<Space>,
    /// By disk. Gone when the last client has left.
    passing: Kept<String, Overlay>,
    named: Mutex<Named>,
}

/// Kept until the server ends.
#[derive(Debug, Default)]
struct Named {
    /// By disk and name, each with what it is offered as.
    overlays: BTreeMap<(String, String), (Offer, Arc<Overlay>)>,
    /// On which image a name of a job's latest image began. It stays on that image, whichever is the latest later.
    begun: BTreeMap<(String, String), ImageId>,
}

impl Overlays {
    pub(super) fn new(
        directory: &Path,
        memory_bytes: u64,
        limit_bytes: u64,
        grace: Duration,
    ) -> Result<Self, ServeError> {
        Ok(Self {
            space: Space::new(directory, memory_bytes, limit_bytes)?,
            passing: Kept::new(grace),
            named: Mutex::default(),
        })
    }

    /// The overlay without a name of a disk, over what `open` gives if there is none.
    pub(super) fn attach(
        &self,
        disk: &Offer,
        open: impl FnOnce() -> Result<Arc<dyn Export>, ServeError>,
    ) -> Result<Use<String, Overlay>, ServeError> {
        self.passing
            .attach(&disk.label(), || Ok(Overlay::new(open()?, &self.space)))
    }

    /// The image on which the overlay `name` of a job's latest image began, if it has.
    pub(super) fn begun(&self, job: &str, name: &str) -> Option<ImageId> {
        let key = (job.to_owned(), name.to_owned());
        locked(&self.named).begun.get(&key).cloned()
    }

    /// The overlay `name` of what was asked for. `find` says which disk that is, given the image on which the overlay
    /// has begun, and `open` opens it.
    pub(super) fn open_named(
        &self,
        asked: &Asked,
        name: &str,
        find: impl FnOnce(Option<ImageId>) -> Result<Offer, ServeError>,
        open: impl FnOnce(&Offer) -> Result<Arc<dyn Export>, ServeError>,
    ) -> Result<Arc<dyn Export>, ServeError> {
        // The lock is held while an image is opened: two clients that come at once get the same overlay.
        let mut named = locked(&self.named);
        let of_latest = (asked.image.job.clone(), name.to_owned());
        let follows = asked.follows_latest();
        let begun = follows.then(|| named.begun.get(&of_latest).cloned()).flatten();
        let disk = find(begun)?;
        let key = (disk.label(), name.to_owned());
        let overlay = match named.overlays.get(&key) {
            Some((_, overlay)) => overlay.clone(),
            None if named.overlays.len() >= NAMED_MAX => return Err(too_many()),
            None => {
                let overlay = Arc::new(Overlay::new(open(&disk)?, &self.space));
                let offer = listed(&asked.image, name, &disk);
                named.overlays.insert(key, (offer, overlay.clone()));
                overlay
            }
        };
        if follows {
            named.begun.entry(of_latest).or_insert(disk.image);
        }
        Ok(overlay)
    }

    /// The named overlays that there are.
    pub(super) fn named(&self) -> Vec<Offer> {
        let named = locked(&self.named);
        named.overlays.values().map(|(offer, _)| offer.clone()).collect()
    }
}

/// An overlay as it is listed: by the full name of what was asked for first.
fn listed(image: &ImageRef, name: &str, disk: &Offer) -> Offer {
    let image = image.with_disk(Some(&disk.disk));
    Offer {
        name: format!("{image}@{name}"),
        ..disk.clone()
    }
}

fn too_many() -> ServeError {
    let text = format!("there are {NAMED_MAX} named overlays already; restart the server to drop them");
    ServeError::new(nbd::ErrorKind::Refused, text)
}
