//! Images of a store as NBD exports, and reading their disks so that a failure names what is damaged.

use imagefmt::{Chain, Disk, DiskRecord, ErrorKind, ImageRef, Lock, Manifest, SECTOR_LEN, Store, Which};
use nbd::{Catalog, Export, ExportInfo, ExtentKind, ReadError, ServeError};
use std::collections::{HashMap, HashSet};
use std::error::Error as StdError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Extents of one answer; a client asks again for what lies behind them.
const EXTENTS_MAX: usize = 4096;

/// Failures that are told apart; further ones are counted as known.
const FAILURES_MAX: usize = 1024;

/// The images of a store, or some of them, as exports.
///
/// An export's name is an image reference: `web01/7:vda`, `web01/latest:vda`, and without the disk where the image
/// has one. What `latest` means is looked up anew whenever a client asks. The default export, `""`, exists where
/// exactly one disk is offered.
#[derive(Debug)]
pub struct StoreCatalog {
    store: Store,
    /// What is offered; `None`: everything.
    chosen: Option<Vec<ImageRef>>,
    /// Named images stay while they are offered, whether or not a client has opened one.
    _held: Vec<Lock>,
    /// Opened chains: connections to images of one chain share its caches.
    chains: Mutex<HashMap<String, Chain>>,
    failures: Arc<ReadFailures>,
}

/// One name under which a disk is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Name of the export; empty for the default export.
    pub name: String,
    /// The image, by number: `web01/7`.
    pub image: String,
    /// The disk's name.
    pub disk: String,
    /// The disk's size in bytes.
    pub size_bytes: u64,
    cluster_bytes: u32,
    description: String,
}

impl StoreCatalog {
    /// Offers `images`, or every image of the store where none is named.
    pub fn new(store: Store, images: &[ImageRef]) -> Self {
        let chosen = (!images.is_empty()).then(|| images.to_vec());
        let hold = |image: &ImageRef| {
            let (chain, sequence) = store.resolve(image).ok()?;
            store.hold(&chain, sequence).ok()
        };
        // One that cannot be held is told of when it is offered.
        let held = images.iter().filter_map(hold).collect();
        Self {
            store,
            chosen,
            _held: held,
            chains: Mutex::default(),
            failures: Arc::default(),
        }
    }

    /// What could not be read since the catalog was made.
    pub fn failures(&self) -> &Arc<ReadFailures> {
        &self.failures
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
        for (job, images) in self.store.jobs()? {
            let numbers = images.sequences.into_iter().map(Which::Sequence);
            for which in numbers.chain([Which::Latest]) {
                let image = ImageRef {
                    job: job.clone(),
                    which,
                    disk: None,
                };
                match self.offer(&image) {
                    Ok(of_image) => offers.extend(of_image),
                    Err(error) => tracing::warn!("not served: {}", chain_text(&error)),
                }
            }
        }
        Ok(offers)
    }

    /// The names of one image, or of one disk of it.
    fn offer(&self, image: &ImageRef) -> imagefmt::Result<Vec<Offer>> {
        let (chain, sequence) = self.store.resolve(image)?;
        let manifest = self.store.manifest(&chain, sequence)?;
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
            let number = format!("{}/{sequence}", manifest.job);
            offers.push(offer(full.to_string(), number.clone(), &manifest, disk));
            if manifest.disks.len() == 1 {
                let short = ImageRef {
                    disk: None,
                    ..image.clone()
                };
                offers.push(offer(short.to_string(), number, &manifest, disk));
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

    fn open_disk(&self, offer: &Offer) -> imagefmt::Result<Disk> {
        let image: ImageRef = offer.image.parse()?;
        let (chain, sequence) = self.store.resolve(&image)?;
        let chain = self.chain(&chain)?;
        Ok(chain.image(sequence)?.disk(Some(&offer.disk))?.clone())
    }

    fn chain(&self, name: &str) -> imagefmt::Result<Chain> {
        let mut chains = locked(&self.chains);
        if let Some(chain) = chains.get(name) {
            return Ok(chain.clone());
        }
        let chain = self.store.chain(name)?;
        chains.insert(name.to_owned(), chain.clone());
        Ok(chain)
    }
}

fn offer(name: String, image: String, manifest: &Manifest, disk: &DiskRecord) -> Offer {
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
        image,
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

impl From<Offer> for ExportInfo {
    fn from(offer: Offer) -> Self {
        Self {
            name: offer.name,
            description: Some(offer.description),
            size_bytes: offer.size_bytes,
            preferred_block_bytes: offer.cluster_bytes,
        }
    }
}

impl Catalog for StoreCatalog {
    fn list(&self) -> Result<Vec<ExportInfo>, ServeError> {
        let offers = self.offers().map_err(|error| refusal(&error))?;
        Ok(offers.into_iter().map(ExportInfo::from).collect())
    }

    fn info(&self, name: &str) -> Result<ExportInfo, ServeError> {
        Ok(self.find(name)?.into())
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Export>, ServeError> {
        let opened = self.open_disk(&self.find(name)?).map_err(|error| {
            tracing::error!("cannot serve {}: {}", name.escape_debug(), chain_text(&error));
            refusal(&error)
        })?;
        Ok(Arc::new(ReportingDisk::new(opened, self.failures.clone())))
    }
}

/// A disk whose failed reads are told once each, on stderr, and remembered.
#[derive(Debug)]
pub struct ReportingDisk {
    disk: Disk,
    failures: Arc<ReadFailures>,
}

impl ReportingDisk {
    /// Reports what cannot be read of `disk` to `failures`.
    pub fn new(disk: Disk, failures: Arc<ReadFailures>) -> Self {
        Self { disk, failures }
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Fills `target` from byte `offset`; a failure names the first byte that cannot be read.
    pub fn read(&self, offset: u64, target: &mut [u8]) -> Result<(), ReadError> {
        if self.disk.read_at(offset, target).is_ok() {
            return Ok(());
        }
        read_in_steps(&self.disk, offset, target).map_err(|(at, error)| self.failures.report(at, error))
    }
}

impl Export for ReportingDisk {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.read(offset, buf)
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<nbd::Extent>, ReadError> {
        let found = self.disk.extents(offset, length, EXTENTS_MAX);
        let found = found.map_err(|error| self.failures.report(offset, error))?;
        let kind = |data| if data { ExtentKind::Data } else { ExtentKind::Zero };
        Ok(found
            .iter()
            .map(|extent| nbd::Extent {
                length: extent.length,
                kind: kind(extent.data),
            })
            .collect())
    }
}

/// Reads cluster by cluster, and sector by sector where the source could not be read, to find the first bad byte.
fn read_in_steps(disk: &Disk, offset: u64, target: &mut [u8]) -> Result<(), (u64, imagefmt::Error)> {
    let cluster_bytes = u64::from(disk.geometry().cluster_size().bytes());
    let mut done = 0;
    while done < target.len() {
        let at = offset + done as u64;
        let part = step(at, cluster_bytes, &mut target[done..]);
        done += part.len();
        match disk.read_at(at, part) {
            Err(error) if error.kind() == ErrorKind::Unreadable => read_sectors(disk, at, part)?,
            read => read.map_err(|error| (at, error))?,
        }
    }
    Ok(())
}

fn read_sectors(disk: &Disk, offset: u64, target: &mut [u8]) -> Result<(), (u64, imagefmt::Error)> {
    let mut done = 0;
    while done < target.len() {
        let at = offset + done as u64;
        let part = step(at, SECTOR_LEN as u64, &mut target[done..]);
        done += part.len();
        disk.read_at(at, part).map_err(|error| (at, error))?;
    }
    Ok(())
}

/// What of `target`, which begins at byte `at`, lies before the next multiple of `unit`.
fn step(at: u64, unit: u64, target: &mut [u8]) -> &mut [u8] {
    let len = usize::try_from(unit - at % unit)
        .unwrap_or(usize::MAX)
        .min(target.len());
    &mut target[..len]
}

/// What could not be read so far.
#[derive(Debug, Default)]
pub struct ReadFailures {
    told: Mutex<HashSet<(String, u64)>>,
    first: Mutex<Option<imagefmt::Error>>,
}

impl ReadFailures {
    /// Tells a failure, if it is new.
    fn report(&self, offset: u64, error: imagefmt::Error) -> ReadError {
        let message = chain_text(&error);
        let mut told = locked(&self.told);
        if told.len() < FAILURES_MAX && told.insert((message.clone(), offset)) {
            tracing::error!("cannot read at byte {offset}: {message}");
            if told.len() == FAILURES_MAX {
                tracing::error!("further ranges that cannot be read are not shown");
            }
        }
        locked(&self.first).get_or_insert(error);
        ReadError { offset, message }
    }

    /// The first failure, once.
    pub fn take_first(&self) -> Option<imagefmt::Error> {
        locked(&self.first).take()
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
