//! Which devices a job's disks are: chosen, opened, and told apart from those of other jobs.

use super::manager::Manager;
use crate::engine::{self, DiskArg, SourceDisk};
use crate::job::{DiskRecord, Refusal, Refused};
use api::{DiskList, DiskRequest, limits};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

impl Manager {
    /// The machine's disks, and why a job of all of them leaves some out.
    pub fn disks(&self, store: Option<&Path>) -> Refused<DiskList> {
        let store = store.unwrap_or(&self.config.store);
        let below = store_disks(store)?;
        machine::disks(&machine::Root::system(), &below).map_err(|error| Refusal::failed(&error.into()))
    }

    /// The disks that a request names, or all that can be migrated.
    pub(super) fn chosen(&self, named: &[DiskRequest], all: bool, store: &Path) -> Refused<Vec<DiskArg>> {
        let disks: Vec<DiskArg> = match (named, all) {
            ([], false) => {
                return Err(Refusal::invalid(
                    "no disk given: name the disks with --disk [NAME=]DEV, or include every one with --all",
                ));
            }
            ([_, ..], true) => {
                return Err(Refusal::invalid("give either disks or all_disks, not both"));
            }
            ([], true) => self.all_disks(store)?,
            (named, false) => named.iter().map(disk_arg).collect::<Refused<_>>()?,
        };
        if disks.len() > limits::DISKS_MAX {
            return Err(Refusal::invalid(format!(
                "{} disks are too many: a job can have at most {}",
                disks.len(),
                limits::DISKS_MAX
            )));
        }
        Ok(disks)
    }

    fn all_disks(&self, store: &Path) -> Refused<Vec<DiskArg>> {
        let list = self.disks(Some(store))?;
        let taken = |disk: &api::ListedDisk| DiskArg {
            name: Some(disk.name.clone()),
            path: disk.path.clone().into(),
        };
        let disks: Vec<DiskArg> = list
            .disks
            .iter()
            .filter(|disk| disk.left_out.is_none())
            .map(taken)
            .collect();
        if disks.is_empty() {
            return Err(Refusal::conflict(
                "no disk of this machine can be migrated: `smcctl disks` lists the reasons",
            ));
        }
        Ok(disks)
    }
}

fn disk_arg(disk: &DiskRequest) -> Refused<DiskArg> {
    if !Path::new(&disk.path).is_absolute() {
        return Err(Refusal::invalid(format!(
            "the path of a disk must be absolute, but it is \"{}\"",
            disk.path.escape_debug()
        )));
    }
    if let Some(name) = &disk.name {
        imagefmt::check_name("disk", name).map_err(|error| Refusal::invalid(error.to_string()))?;
    }
    Ok(DiskArg {
        name: disk.name.clone(),
        path: disk.path.clone().into(),
    })
}

/// Opens the disks as a sync would, and describes them for the job.
pub fn describe(disks: &[DiskArg], store: &Path) -> Refused<Vec<DiskRecord>> {
    let opened = engine::open_all(disks, store).map_err(|error| Refusal::invalid(format!("{error:#}")))?;
    Ok(opened.iter().map(record).collect())
}

fn record(disk: &SourceDisk) -> DiskRecord {
    DiskRecord {
        name: disk.meta.name.clone(),
        path: lasting_path(disk),
        size_bytes: disk.meta.size_bytes,
        identity: disk.meta.identity.clone(),
    }
}

/// A name of the device that means the same one after a reboot, where udev gives it one.
fn lasting_path(disk: &SourceDisk) -> PathBuf {
    let given = disk.device.path();
    let by_id = disk.device.identity().by_id.first();
    match by_id {
        Some(name) if given.starts_with("/dev") && !given.starts_with("/dev/disk") => {
            Path::new("/dev/disk/by-id").join(name)
        }
        _ => given.to_owned(),
    }
}

/// The kernel's names of the whole disks that hold a directory.
pub fn store_disks(store: &Path) -> Refused<BTreeSet<String>> {
    let below = blockio::disks_below(store).map_err(|error| Refusal::failed(&error.into()))?;
    Ok(below.into_iter().filter_map(kernel_name).collect())
}

fn kernel_name((major, minor): (u32, u32)) -> Option<String> {
    let directory = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    Some(directory.file_name()?.to_string_lossy().into_owned())
}

/// Whether two paths lead to the same disk, or to a disk and a part of it.
pub fn overlap(a: &Path, b: &Path) -> bool {
    match (place(a), place(b)) {
        (Some(a), Some(b)) => a == b,
        // What is gone is known by its name.
        _ => a == b,
    }
}

/// The whole disk of a device, or the file.
fn place(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.file_type().is_block_device() {
        return Some((metadata.dev(), metadata.ino()));
    }
    let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    let own = Some((u64::MAX, metadata.rdev()));
    let directory = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    if !directory.join("partition").exists() {
        return own;
    }
    let text = fs::read_to_string(directory.parent()?.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    let whole = libc::makedev(major.parse().ok()?, minor.parse().ok()?);
    Some((u64::MAX, whole))
}
