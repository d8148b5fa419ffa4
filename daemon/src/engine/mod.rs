//! One sync, from opening the disks to deleting what there is too much of. It knows no schedule and no state of
//! jobs: `smcd sync` runs it once, the service whenever a job is due.

mod activity;
mod audit;
mod compare;
mod control;
mod converge;
mod destination;
mod disks;
mod error;
mod exclusive;
mod flush;
mod held;
mod identity;
mod instant;
mod passes;
mod request;
mod retention;
mod salvage;
mod seen;
mod sync;
mod tracked;
mod unfrozen;

pub use compare::Compared;
pub use control::Control;
pub use destination::{Destination, Place, Target, WaitForTarget};
pub use disks::{Given, SourceDisk, open_all};
pub use error::{Error, ErrorKind, Result};
pub use identity::{Known, KnownFrom, check_known, known_disks, named_by, newest};
pub use request::{ImageBegun, Observer, Request, TrackMode, UseTracker};
pub use retention::{DeletedImage, Retained, apply as retain};
pub use sync::{Synced, run};

use std::path::PathBuf;
use std::str::FromStr;

/// A disk as people give it: `[NAME=]DEV`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskArg {
    /// Its name in the job; the device's if absent.
    pub name: Option<String>,
    /// The device or file.
    pub path: PathBuf,
}

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (name, path) = cli::disk::name_and_device(text);
        if path.is_empty() {
            return Err("no device given".to_owned());
        }
        if let Some(name) = name {
            imagefmt::check_name("disk", name).map_err(|error| error.to_string())?;
        }
        Ok(Self {
            name: name.map(str::to_owned),
            path: path.into(),
        })
    }
}

#[cfg(test)]
mod tests;
