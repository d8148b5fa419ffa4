//! The kernels that are installed, and room for a new initramfs.

use std::collections::BTreeSet;
use std::path::Path;

use super::Context;
use super::findings::Findings;
use super::fstab;
use super::kernel_file;
use crate::text::{list, natural_key, shown, size};

const BOOT: &str = "/boot";

/// How the files of kernels start in `/boot`.
const IMAGES: [&str; 6] = [
    "vmlinuz-",
    "vmlinux-",
    "kernel-",
    "Image-",
    "bzImage-",
    "vmlinuz.efi-",
];

/// An initramfs is written beside the old one before that is replaced.
const ROOM_MIN_BYTES: u64 = 64 << 20;
const INODES_MIN: u64 = 16;

/// A kernel that may be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kernel {
    /// What stands in the names of its files: its release, or a name such as `linux`.
    pub label: String,
    /// The name of the directory of its modules; the label where that is not known.
    pub release: String,
    pub is_running: bool,
}

/// Kernels in `/boot` and in boot loaders' entries, the newest first.
fn installed(case: &Context<'_>) -> Vec<Kernel> {
    let files = if case.is_behind_automount(BOOT) {
        Vec::new()
    } else {
        case.files.names(BOOT)
    };
    let files = files.into_iter();
    let mut labels: BTreeSet<String> = files.filter_map(|file| label(&file)).collect();
    labels.extend(case.entries.iter().filter_map(|entry| {
        let file = entry.kernel.rsplit('/').next().unwrap_or_default();
        entry.version.clone().or_else(|| label(file))
    }));
    labels.retain(|label| !label.is_empty() && !label.contains("rescue") && !label.ends_with(".old"));
    let mut kernels: Vec<Kernel> = labels.iter().map(|label| kernel(case, label)).collect();
    kernels.sort_by_cached_key(|kernel| std::cmp::Reverse(natural_key(&kernel.release)));
    kernels.dedup_by(|a, b| a.release == b.release);
    kernels
}

fn label(file: &str) -> Option<String> {
    IMAGES
        .iter()
        .find_map(|prefix| file.strip_prefix(prefix))
        .map(str::to_owned)
}

/// A kernel by its label. Arch and Alpine name files by the package, which the modules' directory knows or ends with.
fn kernel(case: &Context<'_>, label: &str) -> Kernel {
    let has_modules = case.files.is_dir(format!("/lib/modules/{label}"));
    let release = if has_modules {
        None
    } else {
        let of_package = |release: &&String| {
            let package = case.files.attribute(format!("/lib/modules/{release}/pkgbase"));
            package.as_deref() == Some(label) || release.ends_with(&format!("-{label}"))
        };
        case.files.names("/lib/modules").iter().find(of_package).cloned()
    };
    let release = release.unwrap_or_else(|| label.to_owned());
    Kernel {
        label: label.to_owned(),
        is_running: release == case.release,
        release,
    }
}

/// The kernels whose start matters: the one that runs, and the newest, which most boot loaders start.
pub(super) fn kernels(case: &Context<'_>) -> Vec<Kernel> {
    let installed = installed(case);
    let running = installed.iter().find(|kernel| kernel.is_running).cloned();
    let newest = installed.first().cloned();
    match (running, newest) {
        (Some(running), Some(newest)) if running != newest => vec![running, newest],
        (Some(running), _) => vec![running],
        (None, Some(newest)) => vec![newest],
        // Of an image nothing runs.
        (None, None) if case.release.is_empty() => Vec::new(),
        (None, None) => vec![Kernel {
            label: case.release.clone(),
            release: case.release.clone(),
            is_running: true,
        }],
    }
}

pub(super) fn check(case: &Context<'_>, out: &mut Findings) {
    if case.is_behind_automount(BOOT) {
        let found = "the kernels in /boot could not be checked: it is mounted only on access";
        out.warning("kernel_image", found, "ls /boot, and check again");
        return;
    }
    kernel_image(case, out);
    kernel_file::check(case, &kernels(case), out);
    room(case, out);
}

fn kernel_image(case: &Context<'_>, out: &mut Findings) {
    let installed = installed(case);
    let release = shown(&case.release);
    let names = list(installed.iter().map(|kernel| shown(&kernel.label)), 4);
    if case.release.is_empty() && !installed.is_empty() {
        out.ok("kernel_image", format!("these kernels are installed: {names}"));
    } else if installed.iter().any(|kernel| kernel.is_running) {
        out.ok(
            "kernel_image",
            format!("the running kernel {release} is installed; there are: {names}"),
        );
    } else if !installed.is_empty() {
        let found = format!(
            "the running kernel {release} is no longer installed: the copy will start another one ({names})"
        );
        out.warning(
            "kernel_image",
            found,
            "restart this machine first, so that you know that it works with that one",
        );
    } else if fstab::requires(case, "/boot") && !is_mounted(case, "/boot") {
        out.critical(
            "kernel_image",
            "there is no kernel in /boot, which is not mounted",
            "mount /boot, and check again",
        );
    } else {
        let found = "there is no kernel in /boot, and none that a boot loader starts";
        out.critical(
            "kernel_image",
            found,
            "install a kernel package of the distribution and a boot loader",
        );
    }
}

fn is_mounted(case: &Context<'_>, point: &str) -> bool {
    case.inventory
        .mounts()
        .iter()
        .any(|mount| mount.point == Path::new(point))
}

/// Room in `/boot` for one more initramfs of the size of the largest.
fn room(case: &Context<'_>, out: &mut Findings) {
    let files = case
        .files
        .names("/boot")
        .into_iter()
        .filter(|name| name.starts_with("initr"));
    let largest = files
        .filter_map(|name| case.files.file_bytes(format!("/boot/{name}")))
        .max();
    let needed = largest.unwrap_or(0).max(ROOM_MIN_BYTES);
    let Some(space) = (case.answers.space)("/boot".as_ref()) else {
        out.warning(
            "boot_space",
            "the free space of /boot could not be determined",
            "check what df /boot prints",
        );
        return;
    };
    let found = format!("/boot has {} free", size(space.available_bytes));
    let advice = "remove old kernels: apt-get autoremove --purge, or dnf remove --oldinstallonly";
    if space.free_inodes.is_some_and(|free| free < INODES_MIN) {
        out.warning(
            "boot_space",
            "/boot has no inodes left for a new initramfs",
            advice,
        );
    } else if space.available_bytes < needed {
        out.warning(
            "boot_space",
            format!("{found}; a new initramfs needs {}", size(needed)),
            advice,
        );
    } else {
        out.ok("boot_space", found);
    }
}
