//! The disks of a sync: opened, named, and described by what tells them from others.

use super::DiskArg;
use super::error::{Error, ErrorKind, Result, Within, refused};
use blockio::{AlignedBuf, Device, DeviceKind};
use hostdev::{BlockDevice, HEAD_BYTES, Root};
use imagefmt::{DiskIdentity, DiskMeta};
use std::path::Path;

/// A disk as it is.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    pub name: &'a str,
    pub path: &'a Path,
    pub size_bytes: u64,
    pub identity: &'a DiskIdentity,
}

/// An opened disk and its name in the job.
#[derive(Debug, Clone)]
pub struct SourceDisk {
    pub device: Device,
    pub meta: DiskMeta,
    /// Whether the user gave it its name: otherwise it has the kernel's for now.
    pub is_named: bool,
}

impl SourceDisk {
    /// What it is compared by.
    pub fn given(&self) -> Given<'_> {
        Given {
            name: &self.meta.name,
            path: self.device.path(),
            size_bytes: self.meta.size_bytes,
            identity: &self.meta.identity,
        }
    }
}

/// Opens all disks; a wrong one is found before the store is touched.
///
/// # Errors
/// `Device` for what cannot be opened as a disk; `Refused` when one is given twice, needs a name, or holds the store that the images go to.
pub fn open_all(args: &[DiskArg], store: Option<&Path>) -> Result<Vec<SourceDisk>> {
    let mut disks: Vec<SourceDisk> = Vec::new();
    for arg in args {
        let disk = open(arg)?;
        let path = arg.path.display();
        refuse_same_name(&disks, &disk)?;
        if let Some(other) = disks
            .iter()
            .find(|other| other.device.node().is_same(disk.device.node()))
        {
            return Err(refused(format!(
                "{path} and {} are the same disk: give each disk only once",
                other.device.path().display()
            )));
        }
        store.map_or(Ok(()), |store| refuse_own_store(store, &disk))?;
        disks.push(disk);
    }
    Ok(disks)
}

/// Refuses a disk whose name one of the others has.
///
/// # Errors
/// `Refused`, with what to do.
pub(super) fn refuse_same_name(others: &[SourceDisk], disk: &SourceDisk) -> Result<()> {
    let (name, path) = (&disk.meta.name, disk.device.path().display());
    match others.iter().find(|other| other.meta.name == *name) {
        None => Ok(()),
        Some(other) => Err(refused(format!(
            "{path} and {} would both have the disk name {name}: choose another name for one of them with --disk NAME=DEV",
            other.device.path().display()
        ))),
    }
}

fn open(arg: &DiskArg) -> Result<SourceDisk> {
    let device = Device::open(&arg.path).map_err(|error| Error::caused(ErrorKind::Device, error))?;
    let name = arg.name.clone().unwrap_or_else(|| device.name().to_owned());
    let path = arg.path.display();
    imagefmt::check_name("disk", &name).within(|| format!("{path} needs a name: --disk NAME={path}"))?;
    let meta = DiskMeta {
        name,
        size_bytes: device.size_bytes(),
        logical_block_size: device.logical_block_size(),
        identity: identity(&device),
    };
    Ok(SourceDisk {
        device,
        meta,
        is_named: arg.name.is_some(),
    })
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
    let (table, filesystems) = content(device).unwrap_or_else(|error| {
        let error = anyhow::Error::from(error);
        tracing::warn!(disk = %device.path().display(), "what lies on it cannot be read: {error:#}");
        Default::default()
    });
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
        table,
        filesystems,
    }
}

/// Most partitions that are looked into.
const PARTITIONS_MAX: usize = 64;

/// The ids of the partition table and of the filesystems on a disk.
fn content(device: &Device) -> blockio::Result<(Option<String>, Vec<String>)> {
    let head = head(device, 0, device.size_bytes())?;
    let block_bytes = usize::try_from(device.logical_block_size()).unwrap_or(usize::MAX);
    let table = hostdev::table_id(&head, block_bytes);
    let mut filesystems: Vec<String> = hostdev::filesystem_id(&head)
        .filter(|_| table.is_none())
        .into_iter()
        .collect();
    for (number, start, size_bytes) in partitions(device) {
        let id = hostdev::filesystem_id(&self::head(device, start, size_bytes)?);
        filesystems.extend(id.map(|id| format!("{number}/{id}")));
    }
    Ok((table, filesystems))
}

/// The first bytes of a part of a disk.
fn head(device: &Device, start: u64, size_bytes: u64) -> blockio::Result<AlignedBuf> {
    let whole = device.size_bytes().saturating_sub(start).min(size_bytes);
    let mut bytes = AlignedBuf::new(usize::try_from(whole).unwrap_or(HEAD_BYTES).min(HEAD_BYTES));
    device.read_at(start, &mut bytes)?;
    Ok(bytes)
}

/// Numbers, first bytes and sizes of the partitions of a disk, as far as the kernel knows them.
fn partitions(device: &Device) -> Vec<(u32, u64, u64)> {
    let root = Root::system();
    let known = || -> hostdev::Result<Vec<(u32, u64, u64)>> {
        let Some(number) = device.device_number() else {
            return Ok(Vec::new());
        };
        let Some(disk) = BlockDevice::find(&root, number)? else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for partition in disk.partitions()?.iter().take(PARTITIONS_MAX) {
            if let Some(number) = partition.partition_number()? {
                found.push((number, partition.start_bytes()?, partition.size_bytes()?));
            }
        }
        found.sort_unstable();
        Ok(found)
    };
    known().unwrap_or_else(|error| {
        let error = anyhow::Error::from(error);
        tracing::warn!(disk = %device.path().display(), "its partitions are not known: {error:#}");
        Vec::new()
    })
}

/// A store on a disk that is being imaged would image itself, growing for ever.
fn refuse_own_store(store: &Path, disk: &SourceDisk) -> Result<()> {
    let inside = hostdev::lies_on(&Root::system(), store, disk.device.node());
    let inside = inside
        .map_err(|error| Error::caused(ErrorKind::Refused, error))
        .within(|| format!("find out which disks hold {}", store.display()))?;
    if !inside {
        return Ok(());
    }
    Err(refused(format!(
        "the store {} is on {}, which is one of the disks to image, or on the same physical disk: the store would image \
         itself. Put it on another disk",
        store.display(),
        disk.device.path().display()
    )))
}
