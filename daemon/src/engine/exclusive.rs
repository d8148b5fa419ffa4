//! Holds the disks of a sync, so that nobody can mount them, swap to them or make other devices of them meanwhile.

use super::disks::SourceDisk;
use super::error::{Error, ErrorKind, Result, refused};
use blockio::DeviceKind;
use hostdev::Root;
use std::fs::File;

/// The disks of a sync, each open exclusively.
#[derive(Debug)]
pub(super) struct Exclusive {
    _files: Vec<File>,
}

impl Exclusive {
    /// Takes hold of all disks, their partitions included.
    ///
    /// # Errors
    /// `Refused` if one is in use, with who uses it as far as that is known, or cannot be held.
    pub fn take(disks: &[SourceDisk]) -> Result<Self> {
        let files = disks.iter().map(hold).collect::<Result<_>>()?;
        Ok(Self { _files: files })
    }
}

fn hold(disk: &SourceDisk) -> Result<File> {
    let (name, path) = (&disk.meta.name, disk.device.path().display());
    if disk.device.kind() == DeviceKind::File {
        return Err(refused(format!(
            "{name} ({path}) is a file, and nobody can keep others from writing to it: attach it with `losetup --find --show \
             {path}` and sync the loop device, or sync without --offline"
        )));
    }
    disk.device.hold().map_err(|error| match error.kind() {
        blockio::ErrorKind::Busy => refused(format!(
            "{name} ({path}) is in use: {}. Free it, or sync without --offline",
            user(disk)
        )),
        _ => Error::caused(ErrorKind::Device, error),
    })
}

/// Who uses a disk that is in use, as a clause.
fn user(disk: &SourceDisk) -> String {
    match hostdev::first_user(&Root::system(), disk.device.node()) {
        Ok(Some(user)) => user.to_string(),
        Ok(None) => {
            "a program holds it, or it is mounted in another mount namespace (a container, a service)"
                .to_owned()
        }
        Err(error) => format!("who uses it is not known: {:#}", anyhow::Error::from(error)),
    }
}
