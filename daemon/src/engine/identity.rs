//! Whether the disks of a sync are those that the job knows, and under the right names.
//!
//! What the hardware says (WWN, serial number, the UUID of device-mapper or md) counts before what lies on a disk
//! (the ids of its partition table and filesystems). Of a disk that has neither, its content is compared with the
//! newest image: two such disks may have changed places at a reboot.

use super::destination::Destination;
use super::disks::{Given, SourceDisk, refuse_same_name};
use super::error::{Result, refused};
use super::request::Request;
use blockio::{AlignedBuf, Device};
use imagefmt::{Base, ClusterSize, Digest, DiskIdentity, ErrorKind, Geometry, Manifest, Store};
use std::fmt;
use std::sync::Arc;

/// A disk as it was.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub name: &'a str,
    pub size_bytes: u64,
    pub identity: &'a DiskIdentity,
}

/// Where the disks are known from.
#[derive(Debug, Clone)]
pub enum KnownFrom {
    /// An image: `web01/7`.
    Image(String),
    /// A job, when it was created.
    Job(String),
}

impl fmt::Display for KnownFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(label) => write!(f, "{label} has"),
            Self::Job(job) => write!(f, "job {job} was created for"),
        }
    }
}

/// The disks of an image.
pub fn known_disks(manifest: &Manifest) -> Vec<Known<'_>> {
    let disks = manifest.disks.iter();
    disks
        .map(|disk| Known {
            name: &disk.name,
            size_bytes: disk.size_bytes,
            identity: &disk.identity,
        })
        .collect()
}

/// What two identities say of two disks.
#[derive(Debug, PartialEq, Eq)]
enum Likeness {
    /// They are one and the same.
    Same,
    /// They are two, and this is the difference.
    Different(String),
    /// Both have nothing that could be compared.
    Unknown,
}

fn compare(known: &DiskIdentity, now: &DiskIdentity) -> Likeness {
    if known.partition != now.partition {
        let part =
            |number: Option<u32>| number.map_or("the whole disk".to_owned(), |n| format!("partition {n}"));
        return Likeness::Different(format!(
            "it was {} and is now {}",
            part(known.partition),
            part(now.partition)
        ));
    }
    // A path may lead to another file than before, so that it tells only that a disk is another one.
    let paths = [("backing file", &known.backing_file, &now.backing_file)];
    match (compare_hardware(known, now), compare_all(&paths)) {
        (Likeness::Unknown, Likeness::Different(difference)) => Likeness::Different(difference),
        (Likeness::Unknown, _) => compare_content(known, now),
        (likeness, _) => likeness,
    }
}

/// Whether both are one disk, wherever it is found now.
fn is_same_disk(known: &DiskIdentity, now: &DiskIdentity) -> bool {
    let likeness = match compare_hardware(known, now) {
        Likeness::Unknown => compare_content(known, now),
        likeness => likeness,
    };
    likeness == Likeness::Same && known.partition == now.partition
}

fn compare_hardware(known: &DiskIdentity, now: &DiskIdentity) -> Likeness {
    compare_all(&[
        ("WWN", &known.wwn, &now.wwn),
        ("serial number", &known.serial, &now.serial),
        ("UUID", &known.uuid, &now.uuid),
    ])
}

fn compare_content(known: &DiskIdentity, now: &DiskIdentity) -> Likeness {
    match compare_all(&[("partition table's id", &known.table, &now.table)]) {
        Likeness::Unknown => compare_filesystems(&known.filesystems, &now.filesystems),
        likeness => likeness,
    }
}

/// Compares what both have; one that differs counts more than any that does not.
fn compare_all(pairs: &[(&str, &Option<String>, &Option<String>)]) -> Likeness {
    let mut likeness = Likeness::Unknown;
    for (what, known, now) in pairs {
        let (Some(known), Some(now)) = (known, now) else {
            continue;
        };
        if known != now {
            return Likeness::Different(format!("its {what} was {known} and is now {now}"));
        }
        likeness = Likeness::Same;
    }
    likeness
}

fn compare_filesystems(known: &[String], now: &[String]) -> Likeness {
    match (known, now) {
        ([], _) | (_, []) => Likeness::Unknown,
        (known, now) if known.iter().any(|id| now.contains(id)) => Likeness::Same,
        (known, now) => Likeness::Different(format!(
            "it held {} and now holds {}",
            known.join(", "),
            now.join(", ")
        )),
    }
}

/// Refuses disks that are not the known ones, that have changed places, or that are smaller than they were; with
/// `accept_changed`, only those that have changed places. Returns what the user should know.
///
/// # Errors
/// `Refused`, with what to do.
pub fn check_known(
    from: &KnownFrom,
    known: &[Known<'_>],
    given: &[Given<'_>],
    accept_changed: bool,
) -> Result<Vec<String>> {
    refuse_moved(from, &moved(known, given))?;
    let mut warnings = Vec::new();
    for disk in given {
        let Some(known) = known.iter().find(|known| known.name == disk.name) else {
            continue;
        };
        let (name, path) = (disk.name, disk.path.display());
        let advice = "Check that it is the right device; if it is, allow it with --accept-changed-disk (of a job: \
                      `smcctl job modify NAME --accept-changed-disk`, or accept_changed_disk)";
        let likeness = compare(known.identity, disk.identity);
        match &likeness {
            Likeness::Different(difference) if !accept_changed => {
                return Err(refused(format!(
                    "{path} is not the disk that {from} as {name}: {difference}. {advice}"
                )));
            }
            _ => {}
        }
        if disk.size_bytes < known.size_bytes && !accept_changed {
            return Err(refused(format!(
                "disk {name} ({path}) shrank: it had {} bytes and now has {}. {advice}: it is then stored anew. Or sync \
                 it to a new job",
                known.size_bytes, disk.size_bytes
            )));
        }
        if likeness == Likeness::Unknown && disk.size_bytes > known.size_bytes {
            warnings.push(format!(
                "disk {name} ({path}) grew from {} to {}, and nothing on it tells it from other disks: check that it is \
                 the right device",
                cli::units::size(known.size_bytes),
                cli::units::size(disk.size_bytes)
            ));
        }
    }
    Ok(warnings)
}

/// The disks that are known by other names than they were given, with those names.
fn moved<'a>(known: &[Known<'a>], given: &[Given<'a>]) -> Vec<(Given<'a>, &'a str)> {
    let is = |known: &Known<'_>, disk: &Given<'_>| is_same_disk(known.identity, disk.identity);
    let is_in_place = |known: &Known<'_>| {
        let of_name = given.iter().find(|disk| disk.name == known.name);
        of_name.is_some_and(|disk| is(known, disk))
    };
    let missing: Vec<&Known<'_>> = known.iter().filter(|known| !is_in_place(known)).collect();
    let elsewhere = |disk: &Given<'a>| {
        let own = known.iter().find(|known| known.name == disk.name);
        if own.is_none_or(|own| is(own, disk)) {
            return None;
        }
        let other = missing
            .iter()
            .find(|known| known.name != disk.name && is(known, disk))?;
        Some((*disk, other.name))
    };
    given.iter().filter_map(elsewhere).collect()
}

fn refuse_moved(from: &KnownFrom, moved: &[(Given<'_>, &str)]) -> Result<()> {
    if moved.is_empty() {
        return Ok(());
    }
    let found = moved.iter().map(|(disk, name)| {
        format!(
            "{}, given as {}, is the disk that {from} as {name}",
            disk.path.display(),
            disk.name
        )
    });
    let right = moved
        .iter()
        .map(|(disk, name)| format!("--disk {name}={}", disk.path.display()));
    Err(refused(format!(
        "disks have changed places: {}. Give each its own name ({}); the disks of a job are given to a new job that \
         continues it (--take-up)",
        found.collect::<Vec<_>>().join("; "),
        right.collect::<Vec<_>>().join(" ")
    )))
}

/// Places that are looked at on a disk, evenly apart, until so many of them held something.
const PLACES: u64 = 512;
const SAMPLES: u32 = 48;
/// So few tell nothing.
const SAMPLES_MIN: u32 = 4;

/// How people write an image: `web01/7`.
pub(super) fn label(image: &Manifest) -> String {
    format!("{}/{}", image.job, image.sequence)
}

/// Looks at the content of disks that nothing else tells from others; `base` has those of the image. Returns warnings of those that hold nearly nothing of
/// what the image has of them.
///
/// # Errors
/// `Refused`, with what to do, if such disks have changed places: their content is that of each other in the image.
pub(super) fn check_content(
    image: &Manifest,
    base: &dyn Fn(&str) -> Option<Base>,
    disks: &[SourceDisk],
) -> Result<Vec<String>> {
    let from = KnownFrom::Image(label(image));
    let known = known_disks(image);
    let unknown: Vec<&SourceDisk> = disks
        .iter()
        .filter(|disk| {
            let own = known.iter().find(|known| known.name == disk.meta.name);
            own.is_some_and(|own| compare(own.identity, &disk.meta.identity) == Likeness::Unknown)
        })
        .collect();
    let size = |name: &str| image.disk(name).map(|disk| disk.size_bytes);
    let holds = |disk: &SourceDisk, name: &str| {
        let cluster_size = ClusterSize::from_bytes(image.cluster_size.into()).ok()?;
        let geometry = Geometry::new(size(name)?, cluster_size).ok()?;
        same_share(&base(name)?, geometry, &disk.device)
    };
    let (mut exchanged, mut warnings) = (Vec::new(), Vec::new());
    for disk in &unknown {
        if holds(disk, &disk.meta.name).is_none_or(|own| own > 0.1) {
            continue;
        }
        let mut others = unknown.iter().map(|other| other.meta.name.as_str());
        let other = others.find(|name| *name != disk.meta.name && holds(disk, name) > Some(0.5));
        exchanged.extend(other.map(|name| (disk.given(), name)));
        warnings.push(format!(
            "nearly nothing on disk {} ({}) is as in {}, and nothing else tells it from other disks: check that it is the \
             right device, and stop the sync if it is not",
            disk.meta.name,
            disk.device.path().display(),
            label(image)
        ));
    }
    refuse_moved(&from, &exchanged)?;
    Ok(warnings)
}

/// The share of sampled clusters of an image's disk that a device has in the same place, 0 to 1; `None` if there are too
/// few, or what would be compared cannot be read: the sync itself then says so.
fn same_share(base: &Base, geometry: Geometry, device: &Device) -> Option<f64> {
    let step = geometry.cluster_count().div_ceil(PLACES).max(1);
    let (mut same, mut of) = (0, 0);
    let mut index = step / 2;
    while index < geometry.cluster_count() && of < SAMPLES {
        let digest = (*base.digests(index..index + 1).ok()?.first()?)?;
        let (offset, len) = (geometry.cluster_offset(index), geometry.cluster_len(index));
        if !digest.is_null() && offset + len as u64 <= device.size_bytes() {
            let mut bytes = AlignedBuf::new(len);
            device.read_at(offset, &mut bytes).ok()?;
            same += u32::from(Digest::of_cluster(&bytes) == digest);
            of += 1;
        }
        index += step;
    }
    (of >= SAMPLES_MIN).then(|| f64::from(same) / f64::from(of))
}

/// Gives the disks that nobody named their names in the job: those that the newest image has them by. What it does not
/// know, and every disk of a first image, keeps the kernel's name.
///
/// # Errors
/// `Refused` when two would have the same name; otherwise when the store cannot be read.
pub(super) fn name_disks(
    destination: Destination<'_>,
    request: &Request,
    disks: &[SourceDisk],
) -> Result<Vec<SourceDisk>> {
    if disks.iter().all(|disk| disk.is_named) {
        return Ok(disks.to_vec());
    }
    match destination.newest(&request.chain_jobs())? {
        Some(newest) => named_by(&newest, disks),
        None => Ok(disks.to_vec()),
    }
}

/// Gives the disks that nobody named the names that an image has them by.
///
/// # Errors
/// `Refused` when two would have the same name.
pub fn named_by(newest: &Manifest, disks: &[SourceDisk]) -> Result<Vec<SourceDisk>> {
    let taken = |name: &str| disks.iter().any(|disk| disk.is_named && disk.meta.name == name);
    let mut named: Vec<SourceDisk> = Vec::new();
    for disk in disks {
        let mut disk = disk.clone();
        if !disk.is_named {
            let mut fits = newest
                .disks
                .iter()
                .filter(|known| !taken(&known.name) && is_same_disk(&known.identity, &disk.meta.identity))
                .map(|known| &known.name);
            if let (Some(name), None) = (fits.next(), fits.next()) {
                disk.meta.name.clone_from(name);
            }
        }
        refuse_same_name(&named, &disk)?;
        named.push(disk);
    }
    Ok(named)
}

/// The manifest of the newest image, or of the unfinished sync, in the chain of the first of `jobs` that the store has.
/// One that is damaged tells nothing.
///
/// # Errors
/// When the store cannot be read.
pub fn newest(store: &Store, jobs: &[&str]) -> imagefmt::Result<Option<Arc<Manifest>>> {
    for job in jobs {
        let Some(images) = store.images_of(job)? else {
            continue;
        };
        let found = match images.latest() {
            Some(latest) => store.manifest(&latest).map(Some),
            None => store.unfinished(job).map(|unfinished| unfinished.map(Arc::new)),
        };
        return match found {
            Err(error) if error.kind() == ErrorKind::Damaged => Ok(None),
            found => found,
        };
    }
    Ok(None)
}

/// The share of what an image stores that must have stayed in the next one.
const STAYS_AT_LEAST: u64 = 10;
/// What stores less tells nothing, in bytes.
const TELLING_BYTES: u64 = 4 << 20;

/// Warns of disks on which nearly everything differs from the image before: they may be others, whatever their identity
/// says.
pub(super) fn changed_nearly_all(before: &Manifest, now: &Manifest) -> Vec<String> {
    let referenced = |manifest: &Manifest, disk: &str, counts: &dyn Fn(u32) -> bool| -> u64 {
        let layers = manifest.layers.iter();
        let of_disk = layers.filter(|layer| layer.disk == disk && counts(layer.id));
        of_disk.map(|layer| layer.referenced).sum()
    };
    let warning = |disk: &imagefmt::DiskRecord| {
        let was_there = |id: u32| before.layers.iter().any(|layer| layer.id == id);
        let stored = referenced(before, &disk.name, &|_| true);
        let stays = referenced(now, &disk.name, &was_there);
        (stored >= TELLING_BYTES && stays < stored / STAYS_AT_LEAST).then(|| {
            format!(
                "nearly everything on disk {} differs from {}/{}: if that is not what you expect, check that it is the \
                 right device, and delete {}/{} if it is not",
                disk.name, before.job, before.sequence, now.job, now.sequence
            )
        })
    };
    now.disks.iter().filter_map(warning).collect()
}

#[cfg(test)]
mod tests;
