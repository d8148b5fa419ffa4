//! Which devices a job's disks are: chosen, opened, and told apart from those of other jobs.

use super::manager::Manager;
use crate::engine::{self, DiskArg, SourceDisk};
use crate::job::{DiskRecord, Refusal, Refused};
use api::{DiskList, DiskRequest, limits};
use hostdev::{ErrorKind, Node, Root};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

impl Manager {
    /// The machine's disks, and why a job of all of them leaves some out.
    pub fn disks(&self, store: Option<&Path>) -> Refused<DiskList> {
        let store = store.unwrap_or(&self.config.store);
        let below = store_disks(store)?;
        machine::disks(&Root::system(), &below).map_err(|error| Refusal::failed(&error.into()))
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
    let root = Root::system();
    let names = hostdev::disks_below(&root, store).and_then(|numbers| machine::disk_names(&root, &numbers));
    names.map_err(|error| Refusal::failed(&error.into()))
}

/// Whether two paths lead to the same disk, or to a disk and a part of it. What is gone is known by its name.
///
/// # Errors
/// When the kernel does not say what a path leads to.
pub fn overlap(a: &Path, b: &Path) -> hostdev::Result<bool> {
    let root = Root::system();
    let disk = |path: &Path| match Node::at(&root, path) {
        Ok(node) => node.whole(&root).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    match (disk(a)?, disk(b)?) {
        (Some(a), Some(b)) => Ok(a.is_same(&b)),
        _ => Ok(a == b),
    }
}
