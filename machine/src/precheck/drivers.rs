//! Drivers of the devices that virtual machines have: there before the root is mounted?

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Context;
use super::boot::{Kernel, kernels};
use super::findings::Findings;
use super::initramfs::{self, Listing};
use crate::text::{list, shown};

/// A driver, with the option of the kernel's configuration that builds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Driver {
    pub name: &'static str,
    option: &'static str,
}

const VIRTIO_PCI: Driver = driver("virtio_pci", "CONFIG_VIRTIO_PCI");
const VIRTIO_BLK: Driver = driver("virtio_blk", "CONFIG_VIRTIO_BLK");
const VIRTIO_SCSI: Driver = driver("virtio_scsi", "CONFIG_SCSI_VIRTIO");
const VIRTIO_NET: Driver = driver("virtio_net", "CONFIG_VIRTIO_NET");
const NVME: Driver = driver("nvme", "CONFIG_BLK_DEV_NVME");

const fn driver(name: &'static str, option: &'static str) -> Driver {
    Driver { name, option }
}

/// Without these no virtio disk is found, or only some kinds are.
const NEEDED: [Driver; 2] = [VIRTIO_PCI, VIRTIO_BLK];
const OPTIONAL: [Driver; 2] = [VIRTIO_SCSI, NVME];
const ALL: [Driver; 5] = [VIRTIO_PCI, VIRTIO_BLK, VIRTIO_SCSI, NVME, VIRTIO_NET];

/// A kernel's list of its modules has a line of some 100 bytes for each of some 6,000.
const LIST_MAX_BYTES: u64 = 16 << 20;

/// How long all initramfs together may be looked at.
const TIMEOUT: Duration = Duration::from_secs(8);

pub(super) fn check(case: &Context<'_>, out: &mut Findings) {
    let deadline = Instant::now() + TIMEOUT;
    for kernel in kernels(case) {
        let built_in = built_in(case, &kernel);
        disk_drivers(case, &kernel, &built_in, deadline, out);
        network_driver(case, &kernel, &built_in, out);
    }
}

/// Drivers that are part of the kernel: by its list, its configuration, or, if it runs, by what runs.
fn built_in(case: &Context<'_>, kernel: &Kernel) -> BTreeSet<Driver> {
    let release = &kernel.release;
    let listed = case
        .files
        .text_up_to(format!("/lib/modules/{release}/modules.builtin"), LIST_MAX_BYTES);
    let listed: BTreeSet<String> = listed.lines().filter_map(initramfs::module_name).collect();
    let configs = [
        format!("/boot/config-{}", kernel.label),
        format!("/lib/modules/{release}/config"),
    ];
    let config = configs
        .iter()
        .filter(|file| !case.is_behind_automount(file))
        .map(|file| case.files.text(file))
        .find(|text| !text.is_empty())
        .unwrap_or_default();
    let configured = |driver: &Driver| {
        let mut values = config.lines().filter_map(|line| line.strip_prefix(driver.option));
        values.any(|value| value.trim() == "=y")
    };
    // What was loaded has a state there.
    let runs = |driver: &Driver| {
        let directory = format!("/sys/module/{}", driver.name);
        kernel.is_running
            && case.files.exists(&directory)
            && !case.files.exists(format!("{directory}/initstate"))
    };
    let is_built_in = |driver: &Driver| listed.contains(driver.name) || configured(driver) || runs(driver);
    ALL.into_iter().filter(is_built_in).collect()
}

/// Drivers whose files are among the kernel's modules. None where the list cannot be read.
fn modules(case: &Context<'_>, kernel: &Kernel) -> Option<BTreeSet<Driver>> {
    let path = format!("/lib/modules/{}/modules.dep", kernel.release);
    let text = case.files.root().text_up_to(path, LIST_MAX_BYTES).ok()?;
    let files = text
        .lines()
        .filter_map(|line| initramfs::module_name(line.split(':').next()?));
    let names: BTreeSet<String> = files.collect();
    Some(
        ALL.into_iter()
            .filter(|driver| names.contains(driver.name))
            .collect(),
    )
}

fn disk_drivers(
    case: &Context<'_>,
    kernel: &Kernel,
    built_in: &BTreeSet<Driver>,
    deadline: Instant,
    out: &mut Findings,
) {
    let wanted: Vec<Driver> = NEEDED
        .into_iter()
        .chain(OPTIONAL)
        .filter(|driver| !built_in.contains(driver))
        .collect();
    let linux = format!("Linux {}", shown(&kernel.label));
    if wanted.is_empty() {
        out.ok(
            "initramfs_virtio",
            format!("{linux} has the virtio and NVMe drivers built in"),
        );
        return;
    }
    let files = initramfs::files(case, kernel);
    let names: Vec<&str> = wanted.iter().map(|driver| driver.name).collect();
    let listing = initramfs::scan(case.files.root(), &files, &kernel.release, &names, deadline);
    let missing = |driver: &Driver| !built_in.contains(driver) && !listing.found.contains(driver.name);
    let needed: Vec<Driver> = NEEDED.into_iter().filter(missing).collect();
    let optional: Vec<Driver> = OPTIONAL.into_iter().filter(missing).collect();
    let place = place(&linux, &files);
    if needed.is_empty() && optional.is_empty() {
        out.ok(
            "initramfs_virtio",
            format!("{place} has the drivers {}", words(&wanted)),
        );
    } else if let Some(problem) = &listing.problem {
        unknown(case, kernel, &place, problem, &wanted, out);
    } else if files.is_empty() {
        without_initramfs(case, kernel, &linux, &needed, out);
    } else {
        lacking(case, kernel, &place, &listing, &needed, &optional, out);
    }
}

fn place(linux: &str, files: &[String]) -> String {
    let files = files.iter().map(|file| shown(file));
    format!("the initramfs of {linux} ({})", list(files, 3))
}

fn words(drivers: &[Driver]) -> String {
    list(drivers.iter().map(|driver| driver.name), drivers.len())
}

fn unknown(
    case: &Context<'_>,
    kernel: &Kernel,
    place: &str,
    problem: &str,
    wanted: &[Driver],
    out: &mut Findings,
) {
    let found = format!(
        "whether {place} has {} could not be determined: {problem}",
        words(wanted)
    );
    let advice = format!(
        "test it by booting an image; if it does not start: {}",
        initramfs::advice(case, kernel, &names(wanted))
    );
    out.warning("initramfs_virtio", found, advice);
}

fn without_initramfs(
    case: &Context<'_>,
    kernel: &Kernel,
    linux: &str,
    needed: &[Driver],
    out: &mut Findings,
) {
    if needed.is_empty() {
        out.ok(
            "initramfs_virtio",
            format!("{linux} has the virtio drivers built in, and no initramfs"),
        );
        return;
    }
    let found = format!(
        "{linux} does not have {} built in, and no initramfs was found: its copy would find no disk",
        words(needed)
    );
    // One file for kernel and initramfs, or a place unknown here.
    let unified = ["/boot/efi/EFI/Linux", "/efi/EFI/Linux", "/boot/EFI/Linux"].iter();
    let mut unified = unified.filter(|path| !case.is_behind_automount(path) && case.files.is_dir(path));
    if case.is_behind_automount("/boot") {
        let found = format!(
            "whether {linux} has {} in its initramfs could not be determined",
            words(needed)
        );
        out.warning("initramfs_virtio", found, "ls /boot, and check again");
        return;
    }
    match unified.next() {
        Some(directory) => out.warning(
            "initramfs_virtio",
            format!(
                "whether the unified kernel images in {directory} have {} could not be determined",
                words(needed)
            ),
            "test it by booting an image",
        ),
        None => out.critical(
            "initramfs_virtio",
            found,
            initramfs::advice(case, kernel, &names(needed)),
        ),
    }
}

fn lacking(
    case: &Context<'_>,
    kernel: &Kernel,
    place: &str,
    listing: &Listing,
    needed: &[Driver],
    optional: &[Driver],
    out: &mut Findings,
) {
    if needed.is_empty() {
        let found = format!(
            "{place} has the virtio drivers, but not {}: it starts from no such disk",
            words(optional)
        );
        out.warning(
            "initramfs_virtio",
            found,
            initramfs::advice(case, kernel, &names(optional)),
        );
        return;
    }
    let found = format!(
        "{place} lacks {}: the copy would find no virtio disk",
        words(needed)
    );
    let all: Vec<Driver> = needed.iter().chain(optional).copied().collect();
    let available = modules(case, kernel);
    let absent: Vec<Driver> = match &available {
        Some(available) => needed
            .iter()
            .filter(|driver| !available.contains(driver))
            .copied()
            .collect(),
        None => Vec::new(),
    };
    if !absent.is_empty() {
        let advice = format!(
            "install a kernel that has {}: the distribution's generic or cloud kernel",
            words(&absent)
        );
        out.critical("initramfs_virtio", found, advice);
    } else if listing.is_packed_twice {
        let found = format!(
            "{place} contains a packed root that was not checked; outside of it there is no {}",
            words(needed)
        );
        out.warning("initramfs_virtio", found, "test it by booting an image");
    } else {
        out.critical(
            "initramfs_virtio",
            found,
            initramfs::advice(case, kernel, &names(&all)),
        );
    }
}

fn names(drivers: &[Driver]) -> Vec<&'static str> {
    drivers.iter().map(|driver| driver.name).collect()
}

/// The network comes up after the root is mounted, so the driver need not be in the initramfs.
fn network_driver(case: &Context<'_>, kernel: &Kernel, built_in: &BTreeSet<Driver>, out: &mut Findings) {
    let linux = format!("Linux {}", shown(&kernel.label));
    if built_in.contains(&VIRTIO_NET) {
        out.ok("virtio_net", format!("{linux} has virtio_net built in"));
        return;
    }
    match modules(case, kernel) {
        Some(modules) if modules.contains(&VIRTIO_NET) => {
            out.ok("virtio_net", format!("{linux} has the module virtio_net"));
        }
        Some(_) => out.critical(
            "virtio_net",
            format!("{linux} has no driver virtio_net: the copy would have no network"),
            "install a kernel that has it: the distribution's generic or cloud kernel",
        ),
        None => out.warning(
            "virtio_net",
            format!(
                "whether {linux} has virtio_net could not be determined: its modules.dep could not be read"
            ),
            "run depmod, or install the kernel's modules",
        ),
    }
}
