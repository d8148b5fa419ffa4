//! The chosen disks, and what is on them only in part or not at all.

use std::collections::BTreeSet;
use std::path::Path;

use api::limits::DISKS_MAX;
use hostdev::PlacedMount;

use super::Context;
use super::findings::Findings;
use super::fstab;
use crate::inventory::{Cover, is_network};
use crate::text::{list, shown, shown_path};

/// Names in a list of what is there instead.
const NAMES_MAX: usize = 16;

/// Filesystem types of block devices that are written to and that FIFREEZE cannot stop.
const CANNOT_FREEZE: [&str; 8] = [
    "vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "udf", "minix",
];

/// Without these a system does not start.
const SYSTEM: [&str; 7] = ["/", "/usr", "/var", "/etc", "/boot", "/boot/efi", "/efi"];

pub(super) fn check(case: &Context<'_>, out: &mut Findings) {
    disks(case, out);
    others(case, out);
    volumes(case, out);
    outside(case, out);
    swaps_outside(case, out);
    zfs(case, out);
    network_mounts(case, out);
    freeze(case, out);
}

fn disks(case: &Context<'_>, out: &mut Findings) {
    for name in &case.chosen {
        disk(case, name, out);
    }
    if case.chosen.is_empty() {
        let found = "there is no disk to migrate: every block device is left out";
        out.critical("disk", found, "name disks, or move the store off the only disk");
    }
    if case.chosen.len() > DISKS_MAX {
        let found = format!(
            "{} disks are chosen; a job has at most {DISKS_MAX}",
            case.chosen.len()
        );
        out.critical("disk", found, "name the disks that are needed");
    }
}

fn disk(case: &Context<'_>, name: &str, out: &mut Findings) {
    let Some(device) = case.inventory.device(name) else {
        let there = case.inventory.whole().filter(|disk| disk.size_bytes > 0);
        let there = list(there.map(|disk| shown(&disk.name)), NAMES_MAX);
        out.critical(
            "disk",
            format!("there is no disk {}", shown(name)),
            format!("name one of {there}"),
        );
        return;
    };
    let found = format!("{}: {}", case.disk_words(name), case.inventory.holds(name));
    let left_out = case.inventory.left_out(device, &BTreeSet::new());
    if device.size_bytes == 0 {
        out.critical("disk", found, "leave it out");
    } else if let Some(reason) = left_out {
        let advice = "leave it out, unless only what it shows is to be migrated";
        out.warning("disk", format!("{found}; it is {reason}"), advice);
    } else {
        out.ok("disk", found);
    }
}

/// Disks with content that are not migrated.
fn others(case: &Context<'_>, out: &mut Findings) {
    let stores = &case.input.store_disks;
    let is_disk = |name: &str| !case.chosen.contains(name);
    for device in case
        .inventory
        .whole()
        .filter(|device| device.size_bytes > 0 && is_disk(&device.name))
    {
        if case.inventory.cover(&device.name, &case.chosen) == Cover::All {
            continue;
        }
        let words = format!(
            "{}: {}",
            case.disk_words(&device.name),
            case.inventory.holds(&device.name)
        );
        match case.inventory.left_out(device, &BTreeSet::new()) {
            None if stores.contains(&device.name) => {
                out.ok(
                    "disk_left_out",
                    format!("{words}; left out, since the store is on it"),
                );
            }
            None => out.ok("disk_left_out", format!("{words}; not chosen")),
            Some(_) => {}
        }
    }
}

/// What needs several disks of which not all are chosen.
fn volumes(case: &Context<'_>, out: &mut Findings) {
    for volume in case.inventory.volumes() {
        if case.inventory.cover_all(&volume.members, &case.chosen) != Cover::Part {
            continue;
        }
        let on = |chosen: bool| {
            let covered = |name: &&String| (case.inventory.cover(name, &case.chosen) == Cover::All) == chosen;
            list(
                volume.members.iter().filter(covered).map(|name| shown(name)),
                NAMES_MAX,
            )
        };
        let found = format!(
            "{} is on {}, which are migrated, and on {}, which are not",
            volume.name,
            on(true),
            on(false)
        );
        out.critical("volumes", found, "choose the disks of all its members");
    }
    if !out.has("volumes") {
        out.ok(
            "volumes",
            "no volume group, array or filesystem is on both migrated and other disks",
        );
    }
}

/// Mounted filesystems on disks that are not migrated.
fn outside(case: &Context<'_>, out: &mut Findings) {
    let mut seen = BTreeSet::new();
    for mount in case.inventory.mounts() {
        let devices = &mount.devices;
        let cover = case.inventory.cover_all(devices, &case.chosen);
        if devices.is_empty() || cover != Cover::None || !seen.insert(devices) {
            continue;
        }
        outside_line(case, mount, out);
    }
    if !out.has("mounts_outside") {
        out.ok(
            "mounts_outside",
            "every mounted filesystem of a disk is on the chosen disks",
        );
    }
}

fn outside_line(case: &Context<'_>, mount: &PlacedMount, out: &mut Findings) {
    let point = shown_path(&mount.point);
    let devices = list(mount.devices.iter().map(|name| shown(name)), 4);
    let found = format!(
        "{} {point} is on {devices}, which is not migrated",
        shown(&mount.fs_type)
    );
    if SYSTEM.iter().any(|point| mount.point == Path::new(point)) {
        out.critical(
            "mounts_outside",
            format!("{found}: the copy cannot start without it"),
            "choose its disk too",
        );
    } else if fstab::requires(case, &mount.point.to_string_lossy()) {
        let found = format!(
            "{found}, and /etc/fstab requires it at boot: the copy would stop in the emergency shell"
        );
        out.critical(
            "mounts_outside",
            found,
            format!("choose its disk too, or give {point} the option nofail in /etc/fstab"),
        );
    } else {
        out.warning(
            "mounts_outside",
            found,
            "choose its disk too if its files are needed",
        );
    }
}

fn swaps_outside(case: &Context<'_>, out: &mut Findings) {
    for swap in case.inventory.swaps().iter().filter(|swap| !swap.is_file) {
        let Some(device) = case.inventory.name_at(&swap.path) else {
            continue;
        };
        // Compressed memory is made anew at each boot.
        if device.starts_with("zram") || case.inventory.cover(device, &case.chosen) != Cover::None {
            continue;
        }
        let found = format!(
            "the swap space {} is on a disk that is not migrated",
            shown_path(&swap.path)
        );
        let advice = "choose its disk too, or give it the option nofail in /etc/fstab: the copy would wait for it when it starts";
        out.warning("mounts_outside", found, advice);
    }
}

/// The kernel does not tell which disks a ZFS pool is on.
fn zfs(case: &Context<'_>, out: &mut Findings) {
    let Some(mount) = case
        .inventory
        .mounts()
        .iter()
        .find(|mount| mount.fs_type == "zfs")
    else {
        return;
    };
    let members = case
        .inventory
        .devices()
        .filter(|d| case.inventory.content(&d.name).fs_type.as_deref() == Some("zfs_member"));
    let members: Vec<&String> = members.map(|device| &device.name).collect();
    let found = format!("ZFS is mounted at {}", shown_path(&mount.point));
    if !members.is_empty() && case.inventory.cover_all(members.iter().copied(), &case.chosen) == Cover::All {
        out.ok(
            "zfs",
            format!("{found}: every ZFS member that was found is on the chosen disks"),
        );
    } else {
        let found = format!("{found}: whether all disks of its pool are chosen could not be determined");
        out.warning(
            "zfs",
            found,
            "compare the chosen disks with what zpool status -P lists",
        );
    }
}

fn network_mounts(case: &Context<'_>, out: &mut Findings) {
    let mut seen = BTreeSet::new();
    for mount in case.inventory.mounts().iter().filter(|mount| is_network(mount)) {
        if !seen.insert(&mount.point) {
            continue;
        }
        let (fs_type, point, source) = (
            shown(&mount.fs_type),
            shown_path(&mount.point),
            shown_path(&mount.source),
        );
        let found = format!("{fs_type} {point} is on another machine ({source}) and is not migrated");
        out.warning(
            "network_mounts",
            found,
            "make sure that it can be reached from where the machine will run",
        );
    }
    if !out.has("network_mounts") {
        out.ok("network_mounts", "no files of other machines are mounted");
    }
}

/// What cannot be stopped for a moment is synced, and its state is right if nothing writes to it during the sync.
fn freeze(case: &Context<'_>, out: &mut Findings) {
    let on_chosen =
        |mount: &&PlacedMount| case.inventory.cover_all(&mount.devices, &case.chosen) != Cover::None;
    let (cannot, can): (Vec<&PlacedMount>, Vec<&PlacedMount>) = case
        .inventory
        .mounts()
        .iter()
        .filter(on_chosen)
        .partition(|mount| CANNOT_FREEZE.contains(&mount.fs_type.as_str()));
    if cannot.is_empty() {
        let found = if can.is_empty() {
            "nothing is mounted from the chosen disks"
        } else {
            "every mounted filesystem can be frozen"
        };
        out.ok("freeze", found);
        return;
    }
    let names: BTreeSet<String> = cannot
        .iter()
        .map(|mount| format!("{} {}", shown(&mount.fs_type), shown_path(&mount.point)))
        .collect();
    let names = list(names, NAMES_MAX);
    out.ok(
        "freeze",
        format!(
            "{names} cannot be frozen; synced instead, and consistent if nothing writes to it during the sync"
        ),
    );
}
