//! What a kernel needs of the root filesystem: an init, some room, and no errors.

use std::path::Path;

use super::Context;
use super::findings::Findings;
use crate::text::{shown, shown_path, size};

/// What kernel and initramfs try, in this order, before a mere shell.
const INITS: [&str; 3] = ["/sbin/init", "/etc/init", "/bin/init"];

/// What services write when they start is less than this.
const ROOM_MIN_BYTES: u64 = 32 << 20;

/// Filesystem types whose driver counts the errors that it has met.
const COUNTING: [&str; 3] = ["ext4", "ext3", "ext2"];

pub(super) fn check(case: &Context<'_>, out: &mut Findings) {
    init(case, out);
    room(case, out);
    errors(case, out);
}

fn init(case: &Context<'_>, out: &mut Findings) {
    let named: Vec<&str> = case
        .entries
        .iter()
        .flat_map(|entry| entry.parameters("init="))
        .collect();
    for path in &named {
        if !case.files.exists(path) {
            let found = format!("the kernel is to start {}, which does not exist", shown(path));
            out.critical(
                "init",
                found,
                "correct init= in the boot loader's configuration, or install that program",
            );
        }
    }
    if !named.is_empty() || INITS.iter().any(|path| case.files.exists(path)) {
        return;
    }
    out.critical(
        "init",
        "there is no /sbin/init: the kernel would find nothing to start",
        "install the package that has it: systemd-sysv, sysvinit-core, or the distribution's own",
    );
}

fn room(case: &Context<'_>, out: &mut Findings) {
    let Some(space) = (case.answers.space)("/".as_ref()) else {
        out.warning(
            "root_space",
            "the free space of / could not be determined",
            "check what df / prints",
        );
        return;
    };
    let advice = "remove what is not needed: logs in /var/log, packages in /var/cache";
    if space.free_inodes == Some(0) {
        let found =
            "the root filesystem has no inodes left: services that make files when they start would fail";
        out.critical("root_space", found, advice);
    } else if space.available_bytes == 0 && !space.read_only {
        let found = "the root filesystem is full: services that write when they start would fail";
        out.critical("root_space", found, advice);
    } else if space.available_bytes < ROOM_MIN_BYTES && !space.read_only {
        let found = format!(
            "the root filesystem has only {} free: services that write when they start may fail",
            size(space.available_bytes)
        );
        out.warning("root_space", found, advice);
    }
}

/// A filesystem with errors is checked when it is mounted the next time, and the start ends where that is not repaired by itself.
fn errors(case: &Context<'_>, out: &mut Findings) {
    let mounts = case.inventory.mounts().iter();
    for mount in mounts.filter(|mount| COUNTING.contains(&mount.fs_type.as_str())) {
        for device in &mount.devices {
            let count = case
                .files
                .number(Path::new("/sys/fs/ext4").join(device).join("errors_count"));
            let Some(count) = count.filter(|count| *count > 0) else {
                continue;
            };
            let found = format!(
                "the {} filesystem of {} ({}) has errors, {count} of which its kernel has met: it is checked at the next start, \
                 which ends if that needs a person",
                shown(&mount.fs_type),
                shown_path(&mount.point),
                shown(device),
            );
            out.warning(
                "filesystem_errors",
                found,
                "repair it from a rescue system: fsck.ext4 -f",
            );
        }
    }
}
