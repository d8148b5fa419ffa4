//! The machine's block devices, what lies on what, and what is mounted.

mod block;
pub(crate) mod content;
mod cover;
mod holds;
mod left_out;
mod mounts;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use api::{DiskList, ListedDisk};

use crate::error::Result;
use crate::root::Root;
use crate::text::{natural_key, shown};
pub(crate) use block::Device;
pub(crate) use cover::Cover;
pub(crate) use mounts::{Mount, Swap};

/// How deep devices are stacked at most: a partition, RAID, encryption, LVM, and a file on that, twice over.
pub(crate) const DEPTH_MAX: usize = 12;

/// Every block device that is no partition, by name: what it holds, and why a job of all disks leaves it out.
///
/// `store_disks` are the kernel's names of the devices that a store lies on (see [`disk_names`]): imaging one of
/// them would image the images.
///
/// # Errors
/// When the kernel's list of block devices cannot be read.
pub fn disks(root: &Root, store_disks: &BTreeSet<String>) -> Result<DiskList> {
    let inventory = Inventory::read(root)?;
    // A loop device without a file is no disk yet, and there are many of them.
    let there = |device: &&Device| device.size_bytes > 0 || !device.name.starts_with("loop");
    let listed = inventory.whole().filter(there).map(|device| ListedDisk {
        name: shown(&device.name),
        path: shown(&device.path()),
        size_bytes: device.size_bytes,
        model: device.model.as_deref().map(shown),
        serial: device.serial.as_deref().map(shown),
        holds: inventory.holds(&device.name),
        left_out: inventory.left_out(device, store_disks),
    });
    Ok(DiskList {
        disks: listed.collect(),
    })
}

/// The kernel's names of the disks with these device numbers (major, minor); of a partition, its disk's.
pub fn disk_names(root: &Root, numbers: &[(u32, u32)]) -> BTreeSet<String> {
    numbers
        .iter()
        .filter_map(|number| block::disk_of_number(root, *number))
        .collect()
}

/// Everything that is known of block devices and mounts, read once.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    /// Disks and partitions, by the kernel's name.
    devices: BTreeMap<String, Device>,
    /// Names of those that are no partition, as people sort them.
    whole: Vec<String>,
    pub mounts: Vec<Mount>,
    pub swaps: Vec<Swap>,
    /// Names of the devices of each btrfs.
    btrfs: Vec<BTreeSet<String>>,
    /// Device-mapper names and where symbolic links in `/dev` lead, by path.
    links: BTreeMap<String, String>,
    /// PVs that LVM saw coming, by VG.
    pvs_online: BTreeMap<String, BTreeSet<String>>,
}

impl Inventory {
    pub(crate) fn read(root: &Root) -> Result<Inventory> {
        let mut devices = block::read(root)?;
        content::add(root, &mut devices);
        let mut whole: Vec<String> = devices
            .values()
            .filter(|d| d.disk.is_none())
            .map(|d| d.name.clone())
            .collect();
        whole.sort_by_cached_key(|name| natural_key(name));
        let mut inventory = Inventory {
            btrfs: btrfs(root),
            mounts: mounts::mounts(root),
            swaps: mounts::swaps(root),
            pvs_online: pvs_online(root, &devices),
            devices,
            whole,
            links: BTreeMap::new(),
        };
        inventory.find_links(root);
        inventory.place_mounts();
        Ok(inventory)
    }

    /// Devices that are no partition.
    pub(crate) fn whole(&self) -> impl Iterator<Item = &Device> {
        self.whole.iter().filter_map(|name| self.devices.get(name))
    }

    pub(crate) fn device(&self, name: &str) -> Option<&Device> {
        self.devices.get(name)
    }

    /// All devices, partitions too.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    pub(crate) fn partitions<'a>(&'a self, disk: &'a str) -> impl Iterator<Item = &'a Device> {
        let mut partitions: Vec<&Device> = self.all().filter(|d| d.disk.as_deref() == Some(disk)).collect();
        partitions.sort_by_cached_key(|device| natural_key(&device.name));
        partitions.into_iter()
    }

    /// The kernel's name of the device at a path below `/dev`.
    pub(crate) fn name_at(&self, path: &str) -> Option<&str> {
        let below_dev = path.strip_prefix("/dev/")?.replace('/', "!");
        let direct = self
            .devices
            .get_key_value(&below_dev)
            .map(|(name, _)| name.as_str());
        direct.or_else(|| self.links.get(path).map(String::as_str))
    }

    /// Where the sources of mounts and swaps lead that are no names of the kernel's.
    fn find_links(&mut self, root: &Root) {
        let mapped = self.devices.values().filter_map(|device| {
            let mapped = device.mapped.as_ref()?;
            Some((format!("/dev/mapper/{}", mapped.name), device.name.clone()))
        });
        self.links = mapped.collect();
        let sources = self.mounts.iter().flat_map(Mount::source_paths);
        let sources = sources.chain(self.swaps.iter().map(|swap| swap.path.as_str()));
        let unknown: BTreeSet<String> = sources
            .filter(|path| path.starts_with("/dev/") && self.name_at(path).is_none())
            .map(str::to_owned)
            .collect();
        for path in unknown {
            if let Some(name) = self.resolved_name(root, &path) {
                self.links.insert(path, name);
            }
        }
    }

    /// The kernel's name of what a path below `/dev` leads to, symbolic links followed.
    pub(crate) fn resolved_name(&self, root: &Root, path: &str) -> Option<String> {
        if let Some(name) = self.name_at(path) {
            return Some(name.to_owned());
        }
        let target = root.resolved(path)?;
        self.name_at(target.to_str()?).map(str::to_owned)
    }

    /// Notes with each mount on which block devices its filesystem lies.
    fn place_mounts(&mut self) {
        let by_number: BTreeMap<(u32, u32), &String> = self
            .devices
            .values()
            .filter_map(|device| Some((device.number?, &device.name)))
            .collect();
        let place = |mount: &Mount| {
            let named: BTreeSet<String> = match by_number.get(&mount.number) {
                Some(name) => BTreeSet::from([(*name).clone()]),
                None => mount
                    .source_paths()
                    .filter_map(|path| self.name_at(path).map(str::to_owned))
                    .collect(),
            };
            let pool = self.btrfs.iter().find(|pool| !pool.is_disjoint(&named));
            pool.filter(|_| mount.fs_type == "btrfs")
                .cloned()
                .unwrap_or(named)
        };
        let placed: Vec<BTreeSet<String>> = self.mounts.iter().map(place).collect();
        for (mount, devices) in self.mounts.iter_mut().zip(placed) {
            mount.devices = devices;
        }
    }

    /// Mounts of the filesystem on a device; those of the whole filesystem before binds of parts of it.
    pub(crate) fn mounts_of(&self, name: &str) -> Vec<&Mount> {
        let mut mounts: Vec<&Mount> = self.mounts.iter().filter(|m| m.devices.contains(name)).collect();
        mounts.sort_by_key(|mount| (mount.root != "/", mount.point.len()));
        mounts
    }

    /// Whether a device is in use as swap.
    pub(crate) fn is_swap(&self, name: &str) -> bool {
        self.swaps
            .iter()
            .any(|swap| self.name_at(&swap.path) == Some(name))
    }

    /// The mount that a path lies on.
    pub(crate) fn mount_above(&self, path: &Path) -> Option<&Mount> {
        // The last of equals hides the others.
        let above = self.mounts.iter().filter(|mount| path.starts_with(&mount.point));
        above.max_by_key(|mount| mount.point.len())
    }
}

/// Members of each mounted btrfs: `/sys/fs/btrfs/UUID/devices/NAME`.
fn btrfs(root: &Root) -> Vec<BTreeSet<String>> {
    let pools = root.names("/sys/fs/btrfs").into_iter();
    let members = pools.map(|pool| root.names(format!("/sys/fs/btrfs/{pool}/devices")));
    members
        .filter(|members| !members.is_empty())
        .map(|members| members.into_iter().collect())
        .collect()
}

/// What LVM's event handling noted: `/run/lvm/pvs_online/PVID` has a line `MAJOR:MINOR` and one `vg:NAME`.
fn pvs_online(root: &Root, devices: &BTreeMap<String, Device>) -> BTreeMap<String, BTreeSet<String>> {
    let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in root.files("/run/lvm/pvs_online", "") {
        let Ok(text) = root.text(&file) else { continue };
        let number = text.lines().find_map(block::parse_number);
        let group = text.lines().find_map(|line| line.strip_prefix("vg:"));
        let device = devices
            .values()
            .find(|device| number.is_some() && device.number == number);
        if let (Some(group), Some(device)) = (group, device) {
            groups
                .entry(group.to_owned())
                .or_default()
                .insert(device.name.clone());
        }
    }
    groups
}
