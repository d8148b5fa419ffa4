//! Which devices a job's disks are: chosen, opened, and told apart from those of other jobs.

use super::parts::Parts;
use crate::engine::{self, DiskArg, Place, SourceDisk};
use crate::job::{DiskRecord, Refusal, Refused};
use crate::stores::Stores;
use crate::stores::{ACTION_PATIENCE, Unanswered};
use api::{DiskList, DiskRequest, limits};
use hostdev::{ErrorKind, Node, Root};
use imagefmt::Manifest;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// The machine's disks, and why a job of all of them whose images go there leaves some out.
///
/// # Errors
/// When the machine's disks cannot be listed, or the store does not answer.
pub fn list(parts: &Arc<Parts>, place: &Place) -> Refused<DiskList> {
    let what = format!("the {place} or this machine's disks");
    let at = place.clone();
    parts.within(place, ACTION_PATIENCE, &what, move |_| all_disks(&at))
}

/// The whole disks at these paths. A path that is gone, or is on a filesystem that does not answer, is known by its name:
/// the paths of devices are in /dev, which always answers, and a file on a server that is down must not keep other disks
/// from being given to jobs.
///
/// # Errors
/// When the kernel does not say what a path leads to.
pub fn locate(stores: &Arc<Stores>, paths: BTreeSet<PathBuf>) -> Refused<Located> {
    let asked: Vec<_> = paths
        .into_iter()
        .map(|path| {
            let at = path.clone();
            let question = stores.run(&path, move || Ok(whole_disk(&at)));
            (path, question)
        })
        .collect();
    let begun = Instant::now();
    let mut located = Located::default();
    for (path, question) in asked {
        let found = match question.wait(ACTION_PATIENCE.saturating_sub(begun.elapsed())) {
            Ok(found) => found.map_err(|error| Refusal::failed(&error.into()))?,
            Err(Unanswered::Late(_)) => None,
            Err(error) => return Err(Refusal::conflict(error.full_message())),
        };
        located.0.insert(path, found);
    }
    Ok(located)
}

/// Paths of disks, and what they lead to.
#[derive(Debug, Default)]
pub struct Located(BTreeMap<PathBuf, Option<Node>>);

impl Located {
    /// Whether a path was looked up.
    pub fn knows(&self, path: &Path) -> bool {
        self.0.contains_key(path)
    }

    /// Whether two paths lead to the same disk, or to a disk and a part of it.
    pub fn overlap(&self, a: &Path, b: &Path) -> bool {
        match (self.0.get(a), self.0.get(b)) {
            (Some(Some(a)), Some(Some(b))) => a.is_same(b),
            _ => a == b,
        }
    }
}

/// The whole disk that a path leads to; nothing if it is gone.
fn whole_disk(path: &Path) -> hostdev::Result<Option<Node>> {
    let root = Root::system();
    match Node::at(&root, path) {
        Ok(node) => node.whole(&root).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The disks that a request names, or all that can be migrated. Waits for the store and for all disks.
///
/// # Errors
/// When the request names none, or too many, or the machine's disks cannot be listed.
pub fn chosen(named: &[DiskRequest], all: bool, place: &Place) -> Refused<Vec<DiskArg>> {
    let disks: Vec<DiskArg> = match (named, all) {
        ([], false) => {
            return Err(Refusal::invalid(
                "no disk given: name the disks with --disk [NAME=]DEV, or include every one with --all",
            ));
        }
        ([_, ..], true) => {
            return Err(Refusal::invalid("give either disks or all_disks, not both"));
        }
        ([], true) => migratable(place)?,
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

fn all_disks(place: &Place) -> Refused<DiskList> {
    let below = disks_below(place)?;
    machine::disks(&Root::system(), &below).map_err(|error| Refusal::failed(&error.into()))
}

fn migratable(place: &Place) -> Refused<Vec<DiskArg>> {
    let taken = |disk: &api::ListedDisk| DiskArg {
        name: None,
        path: disk.path.clone().into(),
    };
    let disks: Vec<DiskArg> = all_disks(place)?
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

/// Opens the disks as a sync would, and describes them for the job. Those that nobody named get the names that the image
/// has which the job continues, if it does. Waits for the store and for all disks.
///
/// # Errors
/// When one cannot be opened, or cannot be a disk of a job whose images go there.
pub fn describe(disks: &[DiskArg], place: &Place, continued: Option<&Manifest>) -> Refused<Vec<DiskRecord>> {
    let opened = engine::open_all(disks, place.store()).and_then(|opened| match continued {
        Some(newest) => engine::named_by(newest, &opened),
        None => Ok(opened),
    });
    let opened = opened.map_err(|error| Refusal::invalid(error.full_message()))?;
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

/// The kernel's names of the whole disks that hold a store: none with a target. Waits for the store's directory.
///
/// # Errors
/// When the kernel does not say.
pub fn disks_below(place: &Place) -> Refused<BTreeSet<String>> {
    let Some(store) = place.store() else {
        return Ok(BTreeSet::new());
    };
    let root = Root::system();
    let names = hostdev::disks_below(&root, store).and_then(|numbers| machine::disk_names(&root, &numbers));
    names.map_err(|error| Refusal::failed(&error.into()))
}
