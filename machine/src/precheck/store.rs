//! The store: where it lies, and whether the images fit.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Context;
use super::findings::Findings;
use crate::inventory::Cover;
use crate::text::{list, shown, size};

/// How long all mounted filesystems together may be asked for their space.
const SPACES_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) fn check(case: &Context<'_>, out: &mut Findings) {
    if let Some(target) = &case.input.target {
        let whose = format!("the target {}", shown(&target.name));
        room(case, &whose, target.free_bytes, &OF_TARGET, out);
    }
    let Some(store) = &case.input.store else {
        return;
    };
    place(case, store, out);
    space(case, store, out);
}

fn place(case: &Context<'_>, store: &Path, out: &mut Findings) {
    let below = case.input.store_disks.iter();
    let chosen = below.filter(|name| case.inventory.cover(name, &case.chosen) == Cover::All);
    let chosen: Vec<String> = chosen.map(|name| shown(name)).collect();
    let store = shown(&store.to_string_lossy());
    if chosen.is_empty() {
        out.ok(
            "store_disk",
            format!("the store {store} is on none of the chosen disks"),
        );
        return;
    }
    let found = format!(
        "the store {store} is on {}, which is one of the chosen disks: it would image itself",
        list(chosen, 4)
    );
    out.critical(
        "store_disk",
        found,
        "put the store on another disk, or do not choose this one",
    );
}

fn space(case: &Context<'_>, store: &Path, out: &mut Findings) {
    let shown_store = shown(&store.to_string_lossy());
    let Some(space) = (case.answers.space)(store) else {
        let found = format!("how much space the store {shown_store} has could not be determined");
        out.warning(
            "store_space",
            found,
            "check that its filesystem is mounted and answers: df",
        );
        return;
    };
    if space.read_only {
        let found = format!("the store {shown_store} is on a filesystem that is mounted read-only");
        out.critical("store_space", found, "mount it writable");
        return;
    }
    room(
        case,
        &format!("the store {shown_store}"),
        space.available_bytes,
        &OF_STORE,
        out,
    );
}

/// What is said about the room of a store, or of a target.
struct Words {
    id: &'static str,
    watch: &'static str,
    enlarge: &'static str,
}

const OF_STORE: Words = Words {
    id: "store_space",
    watch: "watch it, or put the store on a larger filesystem: changes come on top",
    enlarge: "put the store on a larger filesystem",
};

const OF_TARGET: Words = Words {
    id: "target_space",
    watch: "watch it, or give this machine more room there (its disk, or quota in smc-store.toml): changes come on top",
    enlarge: "give this machine more room there: a larger disk, or a larger quota in smc-store.toml",
};

/// Whether the images fit.
fn room(case: &Context<'_>, whose: &str, available: u64, words: &Words, out: &mut Findings) {
    let (used, total) = need(case);
    let found = format!(
        "{whose} has {} free; the chosen disks have {} in files and {} in all",
        size(available),
        size(used),
        size(total)
    );
    // Blocks of deleted files are stored too, and later images; compression mostly halves it all.
    let enough = if used == 0 {
        total
    } else {
        total.min(used.saturating_mul(2))
    };
    if available >= enough {
        out.ok(words.id, found);
    } else if available >= used / 2 {
        out.warning(words.id, found, words.watch);
    } else {
        out.critical(words.id, found, words.enlarge);
    }
}

/// Bytes in files of mounted filesystems on the chosen disks, and bytes of these disks.
fn need(case: &Context<'_>) -> (u64, u64) {
    let mut seen = BTreeSet::new();
    let mounts = case.inventory.mounts().iter().filter(|mount| {
        let devices = &mount.devices;
        !devices.is_empty()
            && mount.fs_type != "squashfs"
            && case.inventory.cover_all(devices, &case.chosen) == Cover::All
            && seen.insert(devices)
    });
    // Each one that does not answer takes its time.
    let deadline = Instant::now() + SPACES_TIMEOUT;
    let used = mounts.take_while(|_| Instant::now() < deadline);
    let used = used.filter_map(|mount| (case.answers.space)(&mount.point));
    let used = used.fold(0u64, |sum, space| sum.saturating_add(space.used_bytes));
    let disks = case.chosen.iter().filter_map(|name| case.inventory.device(name));
    let total = disks.fold(0u64, |sum, disk| sum.saturating_add(disk.size_bytes));
    (used.min(total), total)
}
