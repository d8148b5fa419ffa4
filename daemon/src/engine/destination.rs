//! Where the images of a sync go: into a store of this machine, or to a target.

use super::control::Control;
use super::disks::SourceDisk;
use super::error::{Error, Result};
use super::identity;
use super::request::Request;
use imagefmt::{ErrorKind as StoreErrorKind, Image, ImageRef, Manifest, Store, WriteImage};
use remote::{LinkOptions, LinkWait, PushRequest, TargetFiles};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the images of a job go, as people name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The store in this directory.
    Store(PathBuf),
    /// The target that this machine knows by this name.
    Target(String),
}

impl Place {
    /// The directory of the store, if it is one.
    pub fn store(&self) -> Option<&Path> {
        match self {
            Place::Store(path) => Some(path),
            Place::Target(_) => None,
        }
    }

    /// The name of the target, if it is one.
    pub fn target(&self) -> Option<&str> {
        match self {
            Place::Store(_) => None,
            Place::Target(name) => Some(name),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Store(path) => write!(f, "store {}", path.display()),
            Place::Target(name) => write!(f, "target {name}"),
        }
    }
}

/// Where the images of a sync go: a [`Place`] that was opened.
#[derive(Clone, Copy)]
pub enum Destination<'a> {
    /// Into this store.
    Store(&'a Store),
    /// To this target.
    Target(&'a Target),
}

/// A target, and how it is talked to.
#[derive(Clone)]
pub struct Target {
    /// What is known of it.
    pub files: TargetFiles,
    /// How a session with it is kept.
    pub options: LinkOptions,
    /// Whether somebody wants to wait for it, and who hears why that takes so long.
    pub wait: Arc<dyn LinkWait>,
}

impl Destination<'_> {
    /// Record of the newest image of the first of these jobs that is there, or of its unfinished sync.
    pub(super) fn newest(&self, jobs: &[&str]) -> Result<Option<Arc<Manifest>>> {
        match self {
            Destination::Store(store) => Ok(identity::newest(store, jobs)?),
            Destination::Target(target) => {
                for job in jobs {
                    if let Some(newest) = remote::newest(&target.files, job).map_err(from_target)? {
                        return Ok(Some(Arc::new(newest)));
                    }
                }
                Ok(None)
            }
        }
    }

    /// Becomes the job's writer.
    pub(super) fn begin(&self, request: &Request, disks: &[SourceDisk]) -> Result<Box<dyn WriteImage>> {
        match self {
            Destination::Store(store) => {
                let names = disks.iter().map(|disk| disk.meta.name.clone()).collect();
                Ok(Box::new(store.begin_write(&request.to_write(names))?))
            }
            Destination::Target(target) => {
                let metas: Vec<_> = disks.iter().map(|disk| disk.meta.clone()).collect();
                let asked = PushRequest {
                    job: request.job.clone(),
                    take_up: request.take_up.clone(),
                    cluster_bytes: request.cluster_size.map(|size| size.bytes().into()),
                    owner: request.owner.clone(),
                    may_shrink: request.accept_changed_disk,
                };
                let begun = remote::begin(
                    &target.files,
                    target.options.clone(),
                    &target.wait,
                    &asked,
                    &metas,
                );
                Ok(Box::new(begun.map_err(from_target)?))
            }
        }
    }

    /// Opens an image that was committed, to compare it with the disks.
    pub(super) fn image(&self, image: &ImageRef) -> imagefmt::Result<Image> {
        match self {
            Destination::Store(store) => store.image(image),
            Destination::Target(_) => Err(imagefmt::Error::new(
                StoreErrorKind::Invalid,
                "an image on a target is compared there: smc-image verify",
            )),
        }
    }
}

fn from_target(error: remote::Error) -> Error {
    imagefmt::Error::from(error).into()
}

/// Waits for a target as long as the sync is not to stop.
pub struct WaitForTarget<F> {
    /// Of the sync.
    pub control: Arc<Control>,
    /// Hears why it takes so long.
    pub say: F,
}

impl<F: Fn(Option<&str>) + Send + Sync> LinkWait for WaitForTarget<F> {
    fn is_wanted(&self) -> bool {
        self.control.may_wait()
    }

    fn held_up(&self, why: Option<&str>) {
        (self.say)(why);
    }
}
