//! Images of a store as NBD exports.

mod attached;
mod changes;
mod guest;
mod images;
mod kept;
mod overlays;
mod reporting;
mod served;
mod single;

pub use guest::GuestDisks;
pub use reporting::ReadFailures;
pub use single::SingleDisk;

use attached::{Attached, Bound, Follower};
use blockio::IoMethod;
use imagefmt::{DiskRecord, ErrorKind, ImageId, ImageRef, Lock, Manifest, Store};
use images::Images;
use kept::{Kept, Use};
use nbd::{Access, Catalog, Client, Export, ExportInfo, Limits, ServeError};
use overlays::Overlays;
use served::ServedDisk;
use std::collections::HashSet;
use std::error::Error as StdError;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// The limits of a server of images; it drives its connections as this process reads disks.
pub fn limits() -> Limits {
    Limits {
        io_uring: *blockio::io_method() == IoMethod::Uring,
        ..Limits::default()
    }
}

/// The images of a store, or some of them, as exports.
///
/// An export's name is an image reference: `web01/7:vda`, `web01/latest:vda`, and without the disk where the image
/// has one. With overlays every export can be written to, and `@NAME` behind its name asks for an overlay that stays.
///
/// What `latest` means to a client is looked up when its first connection opens it. For its other connections, and for
/// one that comes back within the grace time, it means the same image: they would see different disks otherwise. An
/// overlay with a name stays on the image on which it began.
///
/// The default export, `""`, is the one disk that was named, or the latest image of the only job where it has one disk.
/// Once it means something, it means that until the server ends.
#[derive(Debug)]
pub struct StoreCatalog {
    images: Arc<Images>,
    /// What is offered; `None`: everything.
    chosen: Option<Vec<ImageRef>>,
    /// What the default export means, once that is known.
    default: OnceLock<ImageRef>,
    /// Named images stay while they are offered, whether or not a client has opened one.
    _held: Vec<Lock>,
    grace: Duration,
    latest: Kept<Follower, Bound>,
    failures: Arc<ReadFailures>,
    overlays: Option<Overlays>,
}

/// What the name of an export asks for.
#[derive(Debug)]
struct Asked {
    image: ImageRef,
    /// The overlay's name.
    overlay: Option<String>,
}

impl Asked {
    fn follows_latest(&self) -> bool {
        self.image.is_latest()
    }
}

/// One name under which a disk is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Name of the export; empty for the default export.
    pub name: String,
    /// The image.
    pub image: ImageId,
    /// The disk's name.
    pub disk: String,
    /// The disk's size in bytes.
    pub size_bytes: u64,
    cluster_bytes: u32,
    description: String,
}

impl Offer {
    /// The disk, by the number of its image.
    fn label(&self) -> String {
        format!("{}:{}", self.image, self.disk)
    }
}

impl StoreCatalog {
    /// Offers `images`, or every image of the store where none is named, read-only. A client whose connection broke
    /// finds what it had for `grace`.
    pub fn new(store: Store, images: &[ImageRef], grace: Duration) -> Self {
        let chosen = (!images.is_empty()).then(|| images.to_vec());
        let store = Images::new(store);
        let held = images.iter().filter_map(|image| held(&store, image)).collect();
        Self {
            images: Arc::new(store),
            chosen,
            default: OnceLock::new(),
            _held: held,
            grace,
            latest: Kept::new(grace),
            failures: Arc::default(),
            overlays: None,
        }
    }

    /// Lets clients write to what they see, in overlays that have `limit_bytes` of space together: `memory_bytes` in
    /// memory and the rest in a temporary file in `directory`. The images do not change.
    ///
    /// # Errors
    /// A temporary file that cannot be made in `directory`.
    pub fn with_overlays(
        self,
        directory: &Path,
        memory_bytes: u64,
        limit_bytes: u64,
    ) -> Result<Self, ServeError> {
        let overlays = Some(Overlays::new(directory, memory_bytes, limit_bytes, self.grace)?);
        Ok(Self { overlays, ..self })
    }

    /// Every name that is offered now. An image that was named and cannot be used is an error; where everything is
    /// offered, a damaged one is only told.
    ///
    /// # Errors
    /// An image that was named and cannot be used; a store that cannot be read.
    pub fn offers(&self) -> imagefmt::Result<Vec<Offer>> {
        let mut offers = match &self.chosen {
            None => self.offer_everything()?,
            Some(images) => {
                let named = images
                    .iter()
                    .map(|image| self.offer(image))
                    .collect::<imagefmt::Result<Vec<_>>>()?;
                named.concat()
            }
        };
        let mut names = HashSet::new();
        offers.retain(|offer| names.insert(offer.name.clone()));
        offers.extend(self.the_default(&offers)?);
        Ok(offers)
    }

    /// The default export, where there is one.
    fn the_default(&self, offers: &[Offer]) -> imagefmt::Result<Option<Offer>> {
        if self.default.get().is_none() {
            let found = match &self.chosen {
                Some(_) => only_disk(offers),
                None => self.only_job(offers)?,
            };
            // Where two look at once, the first one decides.
            if let Some(found) = found {
                self.default.set(found).unwrap_or_default();
            }
        }
        let Some(image) = self.default.get() else {
            return Ok(None);
        };
        let name = image.to_string();
        let found = offers.iter().find(|offer| offer.name == name);
        Ok(found.map(|offer| Offer {
            name: String::new(),
            ..offer.clone()
        }))
    }

    /// The disk of the latest image of the only job, if that image has one disk. Where a chain cannot be read, its job
    /// may be another one.
    fn only_job(&self, offers: &[Offer]) -> imagefmt::Result<Option<ImageRef>> {
        let (jobs, unread) = self.images.store.readable_jobs()?;
        if !unread.is_empty() {
            return Ok(None);
        }
        let with_images = jobs.values().filter(|images| images.latest().is_some());
        let names = offers.iter().filter_map(|offer| offer.name.parse().ok());
        let mut latest = names.filter(|name: &ImageRef| name.is_latest() && name.disk.is_some());
        // One whose image cannot be read now is not offered; it is a job all the same.
        Ok(match (with_images.count(), latest.next(), latest.next()) {
            (1, only, None) => only,
            _ => None,
        })
    }

    fn offer_everything(&self) -> imagefmt::Result<Vec<Offer>> {
        let mut offers = Vec::new();
        let (jobs, unread) = self.images.store.readable_jobs()?;
        for error in &unread {
            tracing::warn!("not served: {}", chain_text(error));
        }
        for (job, images) in jobs {
            let numbers = images.ids().map(|id| (id.reference(None), id));
            let latest = images.latest().map(|id| (ImageRef::latest(&job), id));
            for (image, id) in numbers.chain(latest) {
                match self.offer_of(&image, &id) {
                    Ok(of_image) => offers.extend(of_image),
                    Err(error) => tracing::warn!("not served: {}", chain_text(&error)),
                }
            }
        }
        Ok(offers)
    }

    /// The names of one image, or of one disk of it.
    fn offer(&self, image: &ImageRef) -> imagefmt::Result<Vec<Offer>> {
        self.offer_of(image, &self.images.store.resolve(image)?)
    }

    /// The same, of the image that a reference has been found to name.
    fn offer_of(&self, image: &ImageRef, id: &ImageId) -> imagefmt::Result<Vec<Offer>> {
        let manifest = self.images.store.manifest(id)?;
        if let Some(name) = image.disk.as_deref().filter(|name| manifest.disk(name).is_none()) {
            return Err(no_disk(image, name, &manifest));
        }
        let mut offers = Vec::new();
        let wanted = |name: &str| image.disk.as_deref().is_none_or(|only| only == name);
        for disk in manifest.disks.iter().filter(|disk| wanted(&disk.name)) {
            let full = image.with_disk(Some(&disk.name));
            offers.push(offer(full.to_string(), id, &manifest, disk));
            if manifest.disks.len() == 1 {
                let short = image.with_disk(None);
                offers.push(offer(short.to_string(), id, &manifest, disk));
            }
        }
        Ok(offers)
    }

    fn is_chosen(&self, image: &ImageRef) -> bool {
        let covers = |chosen: &ImageRef| {
            let same_disk = chosen.disk.is_none() || image.disk.is_none() || chosen.disk == image.disk;
            chosen.is_same_image(image) && same_disk
        };
        self.chosen
            .as_ref()
            .is_none_or(|chosen| chosen.iter().any(covers))
    }

    /// What a name from the wire asks for.
    fn asked(&self, name: &str) -> Result<Asked, ServeError> {
        let unknown = || ServeError::not_found(name);
        let (disk, overlay) = match name.split_once('@').filter(|_| self.overlays.is_some()) {
            Some((disk, overlay)) => (disk, Some(overlay)),
            None => (name, None),
        };
        if let Some(overlay) = overlay {
            imagefmt::check_name("overlay", overlay).map_err(|_| unknown())?;
        }
        let image = if disk.is_empty() {
            if self.default.get().is_none() {
                self.offers().map_err(|error| refusal(&error))?;
            }
            self.default.get().cloned().ok_or_else(unknown)?
        } else {
            let image = disk.parse().map_err(|_| unknown())?;
            if !self.is_chosen(&image) {
                return Err(unknown());
            }
            image
        };
        Ok(Asked {
            image,
            overlay: overlay.map(str::to_owned),
        })
    }

    /// The image that a client means, whether or not it has opened it.
    fn meant(&self, asked: &Asked, client: &Client) -> Result<ImageId, ServeError> {
        let Asked { image, overlay } = asked;
        let begun = || self.overlays.as_ref()?.begun(&image.job, overlay.as_deref()?);
        match asked.follows_latest().then(begun).flatten() {
            Some(id) => Ok(id),
            None => self.meant_now(asked, client),
        }
    }

    /// The same, where no overlay has begun.
    fn meant_now(&self, asked: &Asked, client: &Client) -> Result<ImageId, ServeError> {
        let opened = || Some(self.latest.get(&follower(&asked.image, client))?.image.clone());
        match asked.follows_latest().then(opened).flatten() {
            Some(id) => Ok(id),
            None => self
                .images
                .store
                .resolve(&asked.image)
                .map_err(|error| refusal(&error)),
        }
    }

    /// What is offered by a name, of the image that it means.
    fn offered(&self, asked: &Asked, id: &ImageId) -> Result<Offer, ServeError> {
        let offers = self.offer_of(&asked.image, id).map_err(|error| refusal(&error))?;
        let name = asked.image.to_string();
        let mut offer = offers
            .into_iter()
            .find(|offer| offer.name == name)
            .ok_or_else(|| ServeError::not_found(&name))?;
        if let Some(overlay) = &asked.overlay {
            offer.name = format!("{name}@{overlay}");
        }
        Ok(offer)
    }

    fn find(&self, name: &str, client: &Client) -> Result<Offer, ServeError> {
        let asked = self.asked(name)?;
        self.offered(&asked, &self.meant(&asked, client)?)
    }

    /// Makes `latest` mean the same image to all connections of a client.
    fn bind(&self, asked: &Asked, client: &Client) -> Result<Option<Use<Follower, Bound>>, ServeError> {
        if !asked.follows_latest() {
            return Ok(None);
        }
        let hold = || {
            let image = self.images.store.resolve(&asked.image)?;
            let held = self.images.store.hold(&image)?;
            Ok(Bound { image, _held: held })
        };
        let bound = self.latest.attach(&follower(&asked.image, client), hold);
        bound.map(Some).map_err(|error: imagefmt::Error| refusal(&error))
    }

    fn open_disk(&self, offer: &Offer) -> Result<Arc<dyn Export>, ServeError> {
        let disk = self.images.disk(&offer.image, &offer.disk).map_err(|error| {
            tracing::error!("cannot serve {}: {}", offer.label(), chain_text(&error));
            refusal(&error)
        })?;
        Ok(Arc::new(ServedDisk::among(
            disk,
            offer.image.clone(),
            &self.images,
            &self.failures,
        )))
    }

    /// Opens what has no overlay, or one without a name.
    fn open_unnamed(&self, asked: &Asked, client: &Client) -> Result<Arc<dyn Export>, ServeError> {
        let latest = self.bind(asked, client)?;
        let id = match &latest {
            Some(bound) => bound.value().image.clone(),
            None => self.meant(asked, client)?,
        };
        let offer = self.offered(asked, &id)?;
        let open = || self.open_disk(&offer);
        let overlay = match &self.overlays {
            Some(overlays) => Some(overlays.attach(&offer, open)?),
            None => None,
        };
        let export: Arc<dyn Export> = match &overlay {
            Some(overlay) => overlay.value().clone(),
            None => open()?,
        };
        if latest.is_none() && overlay.is_none() {
            return Ok(export);
        }
        Ok(Arc::new(Attached {
            export,
            latest,
            overlay,
        }))
    }

    fn describe(&self, offer: Offer) -> ExportInfo {
        let mut description = offer.description;
        let access = if self.overlays.is_some() {
            description.push_str("; what is written goes to an overlay, never to the image");
            Access::Writable { shared: true }
        } else {
            Access::ReadOnly
        };
        ExportInfo {
            name: offer.name,
            description: Some(description),
            size_bytes: offer.size_bytes,
            preferred_block_bytes: offer.cluster_bytes,
            access,
        }
    }
}

fn offer(name: String, image: &ImageId, manifest: &Manifest, disk: &DiskRecord) -> Offer {
    let Manifest {
        finished,
        consistency,
        ..
    } = manifest;
    Offer {
        name,
        description: format!(
            "disk {} of image {image}, taken {finished}, {consistency}",
            disk.name
        ),
        image: image.clone(),
        disk: disk.name.clone(),
        size_bytes: disk.size_bytes,
        cluster_bytes: manifest.cluster_size,
    }
}

/// The disk that all of `offers` are, by the first of its full names.
fn only_disk(offers: &[Offer]) -> Option<ImageRef> {
    let first = offers.first()?;
    let same = |offer: &Offer| offer.image == first.image && offer.disk == first.disk;
    if !offers.iter().all(same) {
        return None;
    }
    let mut names = offers.iter().filter_map(|offer| offer.name.parse().ok());
    names.find(|image: &ImageRef| image.disk.is_some())
}

fn follower(image: &ImageRef, client: &Client) -> Follower {
    (client.clone(), image.job.clone())
}

fn no_disk(image: &ImageRef, name: &str, manifest: &Manifest) -> imagefmt::Error {
    let known: Vec<&str> = manifest.disks.iter().map(|disk| disk.name.as_str()).collect();
    let image = image.with_disk(None);
    let what = format!("image {image} has no disk {name}; it has {}", known.join(", "));
    imagefmt::Error::new(ErrorKind::NotFound, what)
}

/// What a client is told when an image cannot be offered.
fn refusal(error: &imagefmt::Error) -> ServeError {
    let kind = match error.kind() {
        ErrorKind::NotFound => nbd::ErrorKind::NotFound,
        ErrorKind::Io => nbd::ErrorKind::Io,
        _ => nbd::ErrorKind::Refused,
    };
    ServeError::new(kind, chain_text(error))
}

impl Catalog for StoreCatalog {
    fn list(&self) -> Result<Vec<ExportInfo>, ServeError> {
        let offers = self.offers().map_err(|error| refusal(&error))?;
        let named = self.overlays.iter().flat_map(Overlays::named);
        let views = offers.into_iter().chain(named);
        Ok(views.map(|offer| self.describe(offer)).collect())
    }

    fn info(&self, name: &str, client: &Client) -> Result<ExportInfo, ServeError> {
        Ok(self.describe(self.find(name, client)?))
    }

    /// What differs from other images; nothing of a disk that can be written to, where it would not stay true.
    fn contexts(&self, name: &str, client: &Client) -> Result<Vec<String>, ServeError> {
        if self.overlays.is_some() {
            return Ok(Vec::new());
        }
        let image = self.find(name, client)?.image;
        changes::offered(&self.images.store, &image).map_err(|error| refusal(&error))
    }

    fn open(&self, name: &str, client: &Client) -> Result<Arc<dyn Export>, ServeError> {
        let asked = self.asked(name)?;
        match (&self.overlays, &asked.overlay) {
            (Some(overlays), Some(overlay)) => {
                let find = |begun: Option<ImageId>| {
                    let id = begun.map_or_else(|| self.meant_now(&asked, client), Ok)?;
                    self.offered(&asked, &id)
                };
                overlays.open_named(&asked, overlay, find, |disk| self.open_disk(disk))
            }
            _ => self.open_unnamed(&asked, client),
        }
    }
}

/// Keeps an image that was named from being deleted.
fn held(store: &Images, image: &ImageRef) -> Option<Lock> {
    match store.hold(image) {
        Ok(lock) => Some(lock),
        // A warning names these when the image is offered.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Damaged) => None,
        Err(error) => {
            tracing::warn!(
                "{image} may be deleted while it is offered: {}",
                chain_text(&error)
            );
            None
        }
    }
}

/// A lock whose holder panicked still guards whole values here.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error with its causes, on one line.
fn chain_text(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
