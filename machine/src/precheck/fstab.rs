//! What is mounted at boot, by names that stay true elsewhere: fstab, crypttab, and systemd's units.

use std::path::Path;

use api::Level;
use hostdev::{ErrorKind, FstabLine};

use super::Context;
use super::findings::Findings;
use super::names::Stability;
use crate::inventory::content::{Content, plain};
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
        Stability::Stable => {
            let Some(kind) = absent(case, device) else { return };
            let level = if is_required {
                Level::Critical
            } else {
                Level::Warning
            };
            let found = format!("{named}, and no device here has this {kind}");
            let advice = "correct it: blkid shows the UUIDs and labels that there are";
            return out.bad(id, level, found, advice);
        }
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

/// What is written on a disk and names it.
struct Identifier {
    /// What it is called.
    kind: &'static str,
    /// How fstab and the kernel's command line name it, and the links that udev makes.
    prefixes: [&'static str; 2],
    /// That of a device.
    of: fn(&Content) -> Option<&str>,
    /// Whether what is inside of a closed format may have it too.
    may_be_inside: bool,
}

const IDENTIFIERS: [Identifier; 4] = [
    Identifier {
        kind: "UUID",
        prefixes: ["UUID=", "/dev/disk/by-uuid/"],
        of: |content| content.fs_uuid.as_deref(),
        may_be_inside: true,
    },
    Identifier {
        kind: "label",
        prefixes: ["LABEL=", "/dev/disk/by-label/"],
        of: |content| content.fs_label.as_deref(),
        may_be_inside: true,
    },
    Identifier {
        kind: "partition UUID",
        prefixes: ["PARTUUID=", "/dev/disk/by-partuuid/"],
        of: |content| content.partition_id.as_deref(),
        may_be_inside: false,
    },
    Identifier {
        kind: "partition label",
        prefixes: ["PARTLABEL=", "/dev/disk/by-partlabel/"],
        of: |content| content.partition_name.as_deref(),
        may_be_inside: false,
    },
];

/// The kind of identifier by which a device is named, if nothing here has this one, as far as all was looked at.
pub(super) fn absent(case: &Context<'_>, device: &str) -> Option<&'static str> {
    let named = |identifier: &Identifier| {
        let mut prefixes = identifier.prefixes.iter();
        prefixes.find_map(|prefix| device.strip_prefix(prefix).map(str::to_owned))
    };
    let (identifier, wanted) = IDENTIFIERS
        .iter()
        .find_map(|identifier| Some((identifier, named(identifier)?)))?;
    let wanted = plain(wanted.trim_matches('"'));
    // The kernel takes PARTUUID=X/PARTNROFF=1 for the partition behind that one.
    let wanted = wanted.split("/PARTNROFF").next().unwrap_or_default();
    let mut all_seen = true;
    for device in case.inventory.devices().filter(|device| device.size_bytes > 0) {
        let content = case.inventory.content(&device.name);
        if (identifier.of)(content).is_some_and(|own| own.eq_ignore_ascii_case(wanted)) {
            return None;
        }
        let kind = content.fs_type.as_deref();
        let is_closed = kind.is_some_and(|kind| CLOSED.contains(&kind)) && device.above.is_empty();
        all_seen &= content.looked && !(is_closed && identifier.may_be_inside);
    }
    all_seen.then_some(identifier.kind)
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
