//! The disks of a sync: opened, named, and checked against the job before anything is written.

use crate::engine::DiskArg;
use anyhow::{Context, Result, bail, ensure};
use blockio::{Device, DeviceKind};
use hostdev::Root;
use imagefmt::{DiskIdentity, DiskMeta, Image};
use indicatif::HumanBytes;
use std::path::Path;

/// An opened disk and its name in the job.
#[derive(Debug)]
pub struct SourceDisk {
    pub device: Device,
    pub meta: DiskMeta,
}

/// Opens all disks; a wrong one is found before the store is touched.
pub fn open_all(args: &[DiskArg], store: &Path) -> Result<Vec<SourceDisk>> {
    let mut disks: Vec<SourceDisk> = Vec::new();
    for arg in args {
        let disk = open(arg)?;
        let (name, path) = (&disk.meta.name, arg.path.display());
        if let Some(other) = disks.iter().find(|other| other.meta.name == *name) {
            bail!(
                "{path} and {} would both have the disk name {name}: choose another name for one of them with --disk NAME=DEV",
                other.device.path().display()
            );
        }
        if let Some(other) = disks.iter().find(|other| is_same(&other.device, &disk.device)) {
            bail!(
                "{path} and {} are the same disk: give each disk only once",
                other.device.path().display()
            );
        }
        refuse_own_store(store, &disk)?;
        disks.push(disk);
    }
    Ok(disks)
}

fn open(arg: &DiskArg) -> Result<SourceDisk> {
    let device = Device::open(&arg.path)?;
    let name = arg.name.clone().unwrap_or_else(|| device.name().to_owned());
    imagefmt::check_name("disk", &name).with_context(|| {
        format!(
            "{} needs a name: --disk NAME={}",
            arg.path.display(),
            arg.path.display()
        )
    })?;
    let meta = DiskMeta {
        name,
        size_bytes: device.size_bytes(),
        logical_block_size: device.logical_block_size(),
        identity: identity(&device),
    };
    Ok(SourceDisk { device, meta })
}

fn identity(device: &Device) -> DiskIdentity {
    let known = device.identity();
    let own_path = || {
        device
            .path()
            .canonicalize()
            .ok()
            .map(|path| path.display().to_string())
    };
    DiskIdentity {
        serial: known.serial.clone(),
        wwn: known.wwn.clone(),
        uuid: known.uuid.clone(),
        backing_file: if device.kind() == DeviceKind::File {
            own_path()
        } else {
            known.backing_file.clone()
        },
        model: known.model.clone(),
        diskseq: known.diskseq,
        partition: known.partition,
        table: None,
        filesystems: Vec::new(),
    }
}

fn is_same(a: &Device, b: &Device) -> bool {
    a.node().is_same(b.node())
}

/// A store on a disk that is being imaged would image itself, growing for ever.
fn refuse_own_store(store: &Path, disk: &SourceDisk) -> Result<()> {
    let inside = hostdev::lies_on(&Root::system(), store, disk.device.node())
        .with_context(|| format!("find out which disks hold {}", store.display()))?;
    ensure!(
        !inside,
        "the store {} is on {}, which is one of the disks to image, or on the same physical disk: the store would image \
         itself. Put it on another disk",
        store.display(),
        disk.device.path().display()
    );
    Ok(())
}

/// Refuses disks that are not the job's: smaller than they were, or known by another identity.
pub fn check_against(parent: &Image, disks: &[SourceDisk], accept_changed_disk: bool) -> Result<()> {
    for disk in disks {
        let Some(known) = parent.manifest().disk(&disk.meta.name) else {
            continue;
        };
        let (name, path, label) = (&disk.meta.name, disk.device.path().display(), parent.id());
        ensure!(
            disk.meta.size_bytes >= known.size_bytes,
            "disk {name} ({path}) shrank from {} ({} bytes) in {label} to {} ({} bytes). \
             Check that it is the right device; if it is, sync it to a new job",
            HumanBytes(known.size_bytes),
            known.size_bytes,
            HumanBytes(disk.meta.size_bytes),
            disk.meta.size_bytes
        );
        if let Some(difference) = difference(&known.identity, &disk.meta.identity) {
            ensure!(
                accept_changed_disk,
                "{path} is not the disk that job {} recorded as {name}: {difference}. Check that it is the right device; \
                 if it is, allow it with --accept-changed-disk",
                parent.manifest().job
            );
        }
    }
    Ok(())
}

/// Refuses a disk that is another one than the job was created for: before there is an image, that is all there is to
/// compare it with.
pub fn check_known(disk: &SourceDisk, known: &DiskIdentity, size_bytes: u64, job: &str) -> Result<()> {
    let (name, path) = (&disk.meta.name, disk.device.path().display());
    let difference = difference(known, &disk.meta.identity).or_else(|| {
        let now = disk.meta.size_bytes;
        (now < size_bytes).then(|| format!("it had {size_bytes} bytes and now has {now}"))
    });
    match difference {
        None => Ok(()),
        Some(difference) => bail!(
            "{path} is not the disk that job {job} was created for as {name}: {difference}. Check that it is the right \
             device; if it is, set accept_changed_disk (`smcctl job modify NAME --accept-changed-disk`) or create a new job"
        ),
    }
}

/// What both are known by and differ in. What only one of them has says nothing.
fn difference(known: &DiskIdentity, now: &DiskIdentity) -> Option<String> {
    let pairs = [
        ("WWN", &known.wwn, &now.wwn),
        ("serial number", &known.serial, &now.serial),
        ("UUID", &known.uuid, &now.uuid),
        ("backing file", &known.backing_file, &now.backing_file),
    ];
    let differs = pairs.into_iter().find_map(|(what, known, now)| {
        let (known, now) = (known.as_ref()?, now.as_ref()?);
        (known != now).then(|| format!("its {what} was {known} and is now {now}"))
    });
    differs.or_else(|| {
        let part =
            |number: Option<u32>| number.map_or("the whole disk".to_owned(), |n| format!("partition {n}"));
        let (known, now) = (part(known.partition), part(now.partition));
        (known != now).then(|| format!("it was {known} and is now {now}"))
    })
}
