//! Whether what is on the chosen disks is on them as a whole.

use std::collections::{BTreeMap, BTreeSet};

use super::{DEPTH_MAX, Inventory};
use crate::text::{shown, shown_path};

/// How much of something is on the chosen disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cover {
    All,
    Part,
    None,
}

impl Cover {
    /// Of something that needs all of these.
    fn of_all(parts: impl IntoIterator<Item = Cover>) -> Cover {
        let mut parts = parts.into_iter();
        let first = parts.next().unwrap_or(Cover::None);
        parts.fold(first, |sum, part| if sum == part { sum } else { Cover::Part })
    }
}

/// Something that is on several devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    /// `the RAID array md0`, safe to show.
    pub name: String,
    pub members: BTreeSet<String>,
}

impl Inventory {
    /// How much of a device is on the chosen disks. Any path of a multipath disk shows all of it.
    pub(crate) fn cover(&self, name: &str, chosen: &BTreeSet<String>) -> Cover {
        self.cover_at(name, chosen, DEPTH_MAX)
    }

    /// How much of what is on all these devices is on the chosen disks.
    pub(crate) fn cover_all<'a>(
        &self,
        names: impl IntoIterator<Item = &'a String>,
        chosen: &BTreeSet<String>,
    ) -> Cover {
        Cover::of_all(names.into_iter().map(|name| self.cover(name, chosen)))
    }

    fn cover_at(&self, name: &str, chosen: &BTreeSet<String>, depth: usize) -> Cover {
        let Some(device) = self.device(name).filter(|_| depth > 0) else {
            return Cover::None;
        };
        let disk = self.device(device.whole_name()).unwrap_or(device);
        let bundle = self.multipath_above(disk);
        if chosen.contains(name)
            || chosen.contains(&disk.name)
            || bundle.is_some_and(|b| chosen.contains(&b.name))
        {
            return Cover::All;
        }
        if let Some(file) = &disk.backing_path {
            let mount = self.mount_above(file);
            let below = mount.iter().flat_map(|mount| &mount.devices);
            return Cover::of_all(below.map(|name| self.cover_at(name, chosen, depth - 1)));
        }
        let mut below = disk
            .below
            .iter()
            .map(|name| self.cover_at(name, chosen, depth - 1));
        if disk.is_multipath() {
            return if below.any(|path| path == Cover::All) {
                Cover::All
            } else {
                Cover::None
            };
        }
        Cover::of_all(below)
    }

    /// Everything that needs several devices: volume groups, RAID arrays and other devices on others, filesystems.
    pub(crate) fn volumes(&self) -> Vec<Volume> {
        let groups = self.volume_groups().into_iter().map(|(name, members)| Volume {
            name: format!("the volume group {}", shown(&name)),
            members,
        });
        let stacked = self
            .whole()
            .filter(|d| !d.is_mapped_by("LVM-") && !d.is_multipath());
        let stacked = stacked.map(|device| Volume {
            name: match &device.mapped {
                Some(mapped) => format!("the device {}", shown(&mapped.name)),
                None if device.name.starts_with("md") => format!("the RAID array {}", shown(&device.name)),
                None => format!("the device {}", shown(&device.name)),
            },
            members: device.below.iter().cloned().collect(),
        });
        let pools = self.host.pools().iter().map(|members| Volume {
            name: self.pool_name(members),
            members: members.clone(),
        });
        let volumes = groups.chain(stacked).chain(pools);
        volumes.filter(|volume| volume.members.len() > 1).collect()
    }

    fn pool_name(&self, members: &BTreeSet<String>) -> String {
        let mount = self
            .mounts()
            .iter()
            .find(|mount| !mount.devices.is_disjoint(members));
        let point = mount.map_or_else(|| "unknown".to_owned(), |mount| shown_path(&mount.point));
        format!("the btrfs filesystem {point}")
    }

    /// PVs in use by each active volume group, with those that LVM saw coming.
    pub(crate) fn volume_groups(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut groups = self.pvs_online.clone();
        for volume in self.whole().filter(|device| device.is_mapped_by("LVM-")) {
            let Some(group) = volume.mapped.as_ref().and_then(|mapped| group_name(&mapped.name)) else {
                continue;
            };
            let members = groups.entry(group).or_default();
            // A thin volume is on its pool, which is on the PVs.
            let is_pv = |name: &&String| self.device(name).is_none_or(|below| !below.is_mapped_by("LVM-"));
            members.extend(volume.below.iter().filter(is_pv).cloned());
        }
        groups
    }
}

/// The volume group in the device-mapper name of a logical volume: hyphens in names are doubled.
fn group_name(mapped: &str) -> Option<String> {
    let marked = mapped.replace("--", "\0");
    let (group, _) = marked.split_once('-')?;
    Some(group.replace('\0', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_before_the_single_hyphen() {
        let cases = [
            ("vg0-root", Some("vg0")),
            ("my--vg-my--lv", Some("my-vg")),
            ("vg0", None),
            ("a-----b", Some("a--")),
        ];
        for (mapped, group) in cases {
            assert_eq!(group_name(mapped).as_deref(), group, "{mapped}");
        }
    }
}
