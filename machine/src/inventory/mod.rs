//! The machine's block devices, what is on what, and what is mounted, in words.

pub(crate) mod content;
mod cover;
mod holds;
mod left_out;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use api::{DiskList, ListedDisk};
use hostdev::{Block, BlockDevice, DeviceNumber, Mount, Namespaces, PlacedMount, Result, Root, Swap};

use crate::files::Files;
use crate::text::{natural_key, shown, shown_path};
use content::Content;
pub(crate) use cover::Cover;

/// How deep devices are stacked at most: a partition, RAID, encryption, LVM, and a file on that, twice over.
pub(crate) const DEPTH_MAX: usize = 12;

/// Every block device that is no partition, by name: what it holds, and why a job of all disks leaves it out.
///
/// `store_disks` are the kernel's names of the devices that a store is on (see [`disk_names`]): imaging one of
/// them would image the images.
///
/// # Errors
/// When the kernel's list of block devices, its mounts or its swap areas cannot be read.
pub fn disks(root: &Root, store_disks: &BTreeSet<String>) -> Result<DiskList> {
    let files = Files::new(root);
    let mut host = hostdev::Inventory::read(root, Namespaces::Machine)?;
    if let Some(error) = host.take_unread().into_iter().next() {
        return Err(error);
    }
    let inventory = Inventory::of(host, &files);
    // A loop device without a file is no disk yet, and there are many of them.
    let there = |device: &&Block| device.size_bytes > 0 || !device.name.starts_with("loop");
    let listed = inventory.whole().filter(there).map(|device| {
        let content = inventory.content(&device.name);
        ListedDisk {
            name: shown(&device.name),
            path: shown_path(device.node()),
            size_bytes: device.size_bytes,
            model: device
                .model
                .as_ref()
                .or(content.model.as_ref())
                .map(|text| shown(text)),
            serial: device
                .serial
                .as_ref()
                .or(content.serial.as_ref())
                .map(|text| shown(text)),
            holds: inventory.holds(&device.name),
            left_out: inventory.left_out(device, store_disks),
        }
    });
    Ok(DiskList {
        disks: listed.collect(),
    })
}

/// The kernel's names of the disks with these device numbers; of a partition, its disk's. A number that the kernel
/// has no device for has no name.
///
/// # Errors
/// When sysfs cannot be read.
pub fn disk_names(root: &Root, numbers: &[DeviceNumber]) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for number in numbers {
        if let Some(device) = BlockDevice::find(root, *number)? {
            names.insert(device.whole_disk()?.name());
        }
    }
    Ok(names)
}

/// Everything that is known of block devices and mounts, read once.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    host: hostdev::Inventory,
    /// What was recognized on each device, by the kernel's name.
    contents: BTreeMap<String, Content>,
    /// Names of those that are no partition, as people sort them.
    whole: Vec<String>,
    /// PVs that LVM saw coming, by VG.
    pvs_online: BTreeMap<String, BTreeSet<String>>,
}

impl Inventory {
    /// Reads all; what could not be read is noted in `files`.
    ///
    /// # Errors
    /// When the kernel's list of block devices cannot be read.
    pub(crate) fn read(files: &Files<'_>) -> Result<Inventory> {
        let mut host = hostdev::Inventory::read(files.root(), Namespaces::Machine)?;
        for error in host.take_unread() {
            files.note(&error);
        }
        Ok(Inventory::of(host, files))
    }

    fn of(host: hostdev::Inventory, files: &Files<'_>) -> Inventory {
        let mut whole: Vec<String> = host
            .devices()
            .filter(|device| device.disk.is_none())
            .map(|device| device.name.clone())
            .collect();
        whole.sort_by_cached_key(|name| natural_key(name));
        Inventory {
            contents: content::of_all(files, host.devices()),
            pvs_online: pvs_online(files, &host),
            whole,
            host,
        }
    }

    /// Devices that are no partition.
    pub(crate) fn whole(&self) -> impl Iterator<Item = &Block> {
        self.whole.iter().filter_map(|name| self.device(name))
    }

    pub(crate) fn device(&self, name: &str) -> Option<&Block> {
        self.host.device(name)
    }

    /// All devices, partitions too.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Block> {
        self.host.devices()
    }

    /// What was recognized on a device.
    pub(crate) fn content(&self, name: &str) -> &Content {
        self.contents.get(name).unwrap_or(&content::UNKNOWN)
    }

    pub(crate) fn partitions<'a>(&'a self, disk: &'a str) -> impl Iterator<Item = &'a Block> {
        let mut partitions: Vec<&Block> = self.host.partitions(disk).collect();
        partitions.sort_by_cached_key(|device| natural_key(&device.name));
        partitions.into_iter()
    }

    pub(crate) fn mounts(&self) -> &[PlacedMount] {
        self.host.mounts()
    }

    pub(crate) fn swaps(&self) -> &[Swap] {
        self.host.swaps()
    }

    /// The kernel's name of the device at a path below `/dev`.
    pub(crate) fn name_at(&self, path: &Path) -> Option<&str> {
        self.host.name_at(path)
    }

    /// The kernel's name of what a path below `/dev` leads to, symbolic links followed.
    pub(crate) fn resolved_name(&self, files: &Files<'_>, path: &Path) -> Option<String> {
        if let Some(name) = self.name_at(path) {
            return Some(name.to_owned());
        }
        let target: PathBuf = files.resolved(path)?;
        self.name_at(&target).map(str::to_owned)
    }

    pub(crate) fn mounts_of(&self, name: &str) -> Vec<&Mount> {
        self.host.mounts_of(name)
    }

    /// The mount that a path is on.
    pub(crate) fn mount_above(&self, path: &Path) -> Option<&PlacedMount> {
        self.host.mount_above(path)
    }
}

/// What LVM's event handling noted: `/run/lvm/pvs_online/PVID` has a line `MAJOR:MINOR` and one `vg:NAME`.
fn pvs_online(files: &Files<'_>, host: &hostdev::Inventory) -> BTreeMap<String, BTreeSet<String>> {
    let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files.files("/run/lvm/pvs_online", "") {
        let text = files.text(&file);
        let number = text
            .lines()
            .find_map(|line| line.trim().parse::<DeviceNumber>().ok());
        let group = text.lines().find_map(|line| line.strip_prefix("vg:"));
        let device = host.devices().find(|device| Some(device.number) == number);
        if let (Some(group), Some(device)) = (group, device) {
            groups
                .entry(group.to_owned())
                .or_default()
                .insert(device.name.clone());
        }
    }
    groups
}

/// Filesystem types whose files are on other machines.
const NETWORK: [&str; 17] = [
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "pvfs2",
    "smb3",
    "smbfs",
    "virtiofs",
    "vboxsf",
];
const NETWORK_FUSE: [&str; 7] = [
    "ceph-fuse",
    "glusterfs",
    "juicefs",
    "mfs",
    "rclone",
    "s3fs",
    "sshfs",
];

/// Whether the files of a mount are on other machines.
pub(crate) fn is_network(mount: &Mount) -> bool {
    let fuse = mount.fs_type.strip_prefix("fuse.");
    NETWORK.contains(&mount.fs_type.as_str()) || fuse.is_some_and(|fuse| NETWORK_FUSE.contains(&fuse))
}
