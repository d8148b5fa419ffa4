//! What is mounted at boot, by names that stay true elsewhere: fstab, crypttab, and systemd's units.

use std::path::Path;

use api::Level;
use hostdev::{ErrorKind, FstabLine};

use super::Context;
use super::findings::Findings;
use super::names::Stability;
use crate::text::{cause, shown};

pub(super) fn check(case: &Context<'_>, out: &mut Findings) {
    table(case, out);
    encrypted(case, out);
    units(case, out);
}

fn lines(case: &Context<'_>) -> Vec<FstabLine> {
    // That it cannot be read is a line of its own.
    let text = case.files.root().text("/etc/fstab").unwrap_or_default();
    FstabLine::all(&text)
}

/// Whether fstab requires something to be mounted there at boot.
pub(super) fn requires(case: &Context<'_>, point: &str) -> bool {
    lines(case)
        .iter()
        .any(|line| line.point == point && line.is_required())
}

fn table(case: &Context<'_>, out: &mut Findings) {
    if let Err(error) = case.files.root().text("/etc/fstab") {
        match error.kind() {
            ErrorKind::NotFound => out.ok("fstab", "there is no /etc/fstab"),
            _ => out.warning(
                "fstab",
                format!("/etc/fstab could not be read: {}", cause(&error)),
                "check the file",
            ),
        }
        return;
    }
    for line in lines(case) {
        let what = if line.is_swap() {
            "swap".to_owned()
        } else {
            shown(&line.point)
        };
        let named = format!("/etc/fstab names {} for {what}", shown(&line.device));
        judge(case, out, "fstab", &line.device, &named, line.is_required());
    }
    if !out.has("fstab") {
        out.ok(
            "fstab",
            "/etc/fstab names devices by identifiers that are stored on them (UUID=, LABEL=, /dev/mapper)",
        );
    }
}

/// Adds a line if a device's name will be another one elsewhere.
fn judge(
    case: &Context<'_>,
    out: &mut Findings,
    id: &'static str,
    device: &str,
    named: &str,
    is_required: bool,
) {
    let (level, found) = match Stability::of(device) {
        Stability::Stable if is_absent(case, device) => {
            let level = if is_required {
                Level::Critical
            } else {
                Level::Warning
            };
            let found = format!("{named}, and no device here has this UUID");
            let advice = "correct it: lsblk -f, or blkid, shows the UUIDs that there are";
            return out.bad(id, level, found, advice);
        }
        Stability::Stable => return,
        Stability::Changes if is_required => (
            Level::Critical,
            format!("{named}, which will have another name: the copy would not start"),
        ),
        Stability::Changes => (Level::Warning, format!("{named}, which will have another name")),
        Stability::MayChange => (
            Level::Warning,
            format!("{named}, which may be another disk elsewhere"),
        ),
    };
    out.bad(id, level, found, by_uuid(case, device));
}

/// Formats whose content is seen only when they are opened.
const CLOSED: [&str; 5] = [
    "LVM2_member",
    "crypto_LUKS",
    "linux_raid_member",
    "zfs_member",
    "bcache",
];

/// Whether a device is named by a UUID that nothing here has, as far as all was looked at.
pub(super) fn is_absent(case: &Context<'_>, device: &str) -> bool {
    let link = device.strip_prefix("/dev/disk/by-uuid/");
    let Some(uuid) = device.strip_prefix("UUID=").or(link) else {
        return false;
    };
    let mut all_seen = true;
    for device in case.inventory.devices().filter(|device| device.size_bytes > 0) {
        let content = case.inventory.content(&device.name);
        if content
            .fs_uuid
            .as_deref()
            .is_some_and(|own| own.eq_ignore_ascii_case(uuid))
        {
            return false;
        }
        let is_closed = content
            .fs_type
            .as_deref()
            .is_some_and(|kind| CLOSED.contains(&kind));
        all_seen &= content.looked && !(is_closed && device.above.is_empty());
    }
    all_seen
}

/// What to write in place of a device's name.
pub(super) fn by_uuid(case: &Context<'_>, device: &str) -> String {
    let name = case.inventory.resolved_name(&case.files, Path::new(device));
    let known = name.and_then(|name| case.inventory.content(&name).fs_uuid.clone());
    match known {
        Some(uuid) => format!("write UUID={} instead", shown(&uuid)),
        None => format!(
            "write UUID= and what this prints instead: blkid -s UUID -o value {}",
            shown(device)
        ),
    }
}

/// crypttab(5): the second field is the encrypted device.
fn encrypted(case: &Context<'_>, out: &mut Findings) {
    if !case.files.exists("/etc/crypttab") {
        return;
    }
    let text = case.files.text("/etc/crypttab");
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let mut fields = line.split_ascii_whitespace();
        let (Some(volume), Some(device)) = (fields.next(), fields.next()) else {
            continue;
        };
        let is_required = !fields
            .nth(1)
            .unwrap_or("")
            .split(',')
            .any(|option| option == "nofail" || option == "noauto");
        let named = format!("/etc/crypttab names {} for {}", shown(device), shown(volume));
        judge(
            case,
            out,
            "crypttab",
            &device.replace('"', ""),
            &named,
            is_required,
        );
    }
    if !out.has("crypttab") {
        out.ok(
            "crypttab",
            "/etc/crypttab names devices by identifiers that are stored on them",
        );
    }
}

/// Units of the administrator that mount by a name: `What=/dev/sdb1`.
fn units(case: &Context<'_>, out: &mut Findings) {
    let directory = "/etc/systemd/system";
    let files = [".mount", ".swap"].map(|suffix| case.files.files(directory, suffix));
    for file in files.iter().flatten() {
        let text = case.files.text(file);
        let what = text.lines().find_map(|line| line.trim().strip_prefix("What="));
        if let Some(device) = what {
            let named = format!("{} names {}", shown(file), shown(device));
            judge(case, out, "mount_units", device.trim(), &named, false);
        }
    }
}
