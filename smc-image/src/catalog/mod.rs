//! Images of a store as NBD exports.

mod changes;
mod images;
mod overlays;
mod reporting;
mod served;
mod single;

pub use reporting::{ReadFailures, ReportingDisk};
pub use single::SingleDisk;

use imagefmt::{DiskRecord, ErrorKind, ImageId, ImageRef, Lock, Manifest, Store, Which};
use images::Images;
use nbd::{Access, Catalog, Export, ExportInfo, ServeError};
use overlays::{Key, Overlays};
use served::ServedDisk;
use std::collections::HashSet;
use std::error::Error as StdError;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The images of a store, or some of them, as exports.
///
/// An export's name is an image reference: `web01/7:vda`, `web01/latest:vda`, and without the disk where the image
/// has one. What `latest` means is looked up anew whenever a client asks. The default export, `""`, exists where
/// exactly one disk is offered. With overlays every export can be written to, and `@NAME` behind its name asks for an
/// overlay that stays.
#[derive(Debug)]
pub struct StoreCatalog {
    images: Arc<Images>,
    /// What is offered; `None`: everything.
    chosen: Option<Vec<ImageRef>>,
    /// Named images stay while they are offered, whether or not a client has opened one.
    _held: Vec<Lock>,
    failures: Arc<ReadFailures>,
    overlays: Option<Overlays>,
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

impl StoreCatalog {
    /// Offers `images`, or every image of the store where none is named, read-only.
    pub fn new(store: Store, images: &[ImageRef]) -> Self {
        let chosen = (!images.is_empty()).then(|| images.to_vec());
        let store = Images::new(store);
        let held = images.iter().filter_map(|image| held(&store, image)).collect();
        Self {
            images: Arc::new(store),
            chosen,
            _held: held,
            failures: Arc::default(),
            overlays: None,
        }
    }

    /// Lets clients write to what they see, in overlays that have `limit_bytes` of space together: `memory_bytes` in
    /// memory and the rest in a temporary file in `directory`. The images do not change.
    pub fn with_overlays(
        self,
        directory: &Path,
        memory_bytes: u64,
        limit_bytes: u64,
    ) -> Result<Self, ServeError> {
        let overlays = Some(Overlays::new(directory, memory_bytes, limit_bytes)?);
        Ok(Self { overlays, ..self })
    }

    /// Every name that is offered now. An image that was named and cannot be used is an error; where everything is
    /// offered, a damaged one is only told.
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
        offers.extend(the_default(&offers));
        Ok(offers)
    }

    fn offer_everything(&self) -> imagefmt::Result<Vec<Offer>> {
        let mut offers = Vec::new();
        let (jobs, unread) = self.images.store.readable_jobs()?;
        for error in &unread {
            tracing::warn!("not served: {}", chain_text(error));
        }
        for (job, images) in jobs {
            let numbers = images.ids().map(|id| (Which::Sequence(id.sequence()), id));
            let latest = images.latest().map(|id| (Which::Latest, id));
            for (which, id) in numbers.chain(latest) {
                let image = ImageRef {
                    job: job.clone(),
                    which,
                    disk: None,
                };
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
            let full = ImageRef {
                disk: Some(disk.name.clone()),
                ..image.clone()
            };
            offers.push(offer(full.to_string(), id, &manifest, disk));
            if manifest.disks.len() == 1 {
                let short = ImageRef {
                    disk: None,
                    ..image.clone()
                };
                offers.push(offer(short.to_string(), id, &manifest, disk));
            }
        }
        Ok(offers)
    }

    fn is_chosen(&self, image: &ImageRef) -> bool {
        let covers = |chosen: &ImageRef| {
            let same_disk = chosen.disk.is_none() || image.disk.is_none() || chosen.disk == image.disk;
            chosen.job == image.job && chosen.which == image.which && same_disk
        };
        self.chosen
            .as_ref()
            .is_none_or(|chosen| chosen.iter().any(covers))
    }

    /// What a name from the wire stands for.
    fn find(&self, name: &str) -> Result<Offer, ServeError> {
        let unknown = || ServeError::not_found(name);
        if name.is_empty() {
            let offers = self.offers().map_err(|error| refusal(&error))?;
            let first = offers
                .into_iter()
                .find(|offer| offer.name.is_empty())
                .ok_or_else(unknown)?;
            return Ok(Offer {
                name: format!("{}:{}", first.image, first.disk),
                ..first
            });
        }
        let image: ImageRef = name.parse().map_err(|_| unknown())?;
        if !self.is_chosen(&image) {
            return Err(unknown());
        }
        let offers = self.offer(&image).map_err(|error| refusal(&error))?;
        offers
            .into_iter()
            .find(|offer| offer.name == name)
            .ok_or_else(unknown)
    }

    /// What an export's name stands for: a disk, and the name of an overlay.
    fn find_view(&self, name: &str) -> Result<(Offer, Option<String>), ServeError> {
        let Some((disk, overlay)) = name.split_once('@').filter(|_| self.overlays.is_some()) else {
            return Ok((self.find(name)?, None));
        };
        imagefmt::check_name("overlay", overlay).map_err(|_| ServeError::not_found(name))?;
        let found = self.find(disk)?;
        let name = format!("{}@{overlay}", found.name);
        Ok((Offer { name, ..found }, Some(overlay.to_owned())))
    }

    fn open_disk(&self, offer: &Offer) -> imagefmt::Result<Arc<dyn Export>> {
        let disk = self.images.disk(&offer.image, &offer.disk)?;
        Ok(Arc::new(ServedDisk::among(
            disk,
            offer.image.clone(),
            &self.images,
            &self.failures,
        )))
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

/// The default export, where there is one disk that it can mean.
fn the_default(offers: &[Offer]) -> Option<Offer> {
    let first = offers.first()?;
    let same = |offer: &Offer| offer.image == first.image && offer.disk == first.disk;
    offers.iter().all(same).then(|| Offer {
        name: String::new(),
        ..first.clone()
    })
}

fn no_disk(image: &ImageRef, name: &str, manifest: &Manifest) -> imagefmt::Error {
    let known: Vec<&str> = manifest.disks.iter().map(|disk| disk.name.as_str()).collect();
    let image = ImageRef {
        disk: None,
        ..image.clone()
    };
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
        let named = self.overlays.iter().flat_map(Overlays::names);
        let named = named.filter_map(|key| {
            let name = format!("{}@{}", key.disk, key.name?);
            self.find_view(&name).ok()
        });
        let views = offers.into_iter().chain(named.map(|(offer, _)| offer));
        Ok(views.map(|offer| self.describe(offer)).collect())
    }

    fn info(&self, name: &str) -> Result<ExportInfo, ServeError> {
        Ok(self.describe(self.find_view(name)?.0))
    }

    /// What differs from other images; nothing of a disk that can be written to, where it would not stay true.
    fn contexts(&self, name: &str) -> Result<Vec<String>, ServeError> {
        if self.overlays.is_some() {
            return Ok(Vec::new());
        }
        let image = self.find(name)?.image;
        changes::offered(&self.images.store, &image).map_err(|error| refusal(&error))
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Export>, ServeError> {
        let (offer, overlay) = self.find_view(name)?;
        let Some(overlays) = &self.overlays else {
            return self.open_disk(&offer).map_err(|error| {
                tracing::error!("cannot serve {}: {}", name.escape_debug(), chain_text(&error));
                refusal(&error)
            });
        };
        let key = Key {
            disk: format!("{}:{}", offer.image, offer.disk),
            name: overlay,
        };
        overlays.open(&key, || self.open_disk(&offer))
    }
}

/// Keeps an image that was named from being deleted.
fn held(store: &Images, image: &ImageRef) -> Option<Lock> {
    match store.hold(image) {
        Ok(lock) => Some(lock),
        // These are told of when the image is offered.
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
