//! Whether the machine is ready to be migrated and to boot elsewhere.
//!
//! Each module looks at one matter and adds lines. They read files through [`Root`] and ask the kernel nothing
//! themselves: what only it can tell is in [`KernelFacts`].

mod answers;
mod boot;
mod clock;
mod drivers;
mod efi;
mod findings;
mod fstab;
mod guest;
mod initramfs;
mod kernel;
mod kernel_file;
mod layout;
mod loader;
mod lvm;
mod names;
mod network;
mod root;
mod store;

use std::collections::BTreeSet;
use std::path::PathBuf;

use api::Precheck;
use hostdev::Root;

use crate::files::Files;
use crate::inventory::Inventory;
use crate::text::{cause, shown, shown_path};
pub(crate) use answers::KernelFacts;
#[cfg(test)]
pub(crate) use answers::Space;
use findings::Findings;
#[cfg(test)]
pub(crate) use initramfs::scan;

/// What is to be migrated, and where to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrecheckInput {
    /// Directory of the store, which need not exist yet; absent, and nothing is told about it.
    pub store: Option<PathBuf>,
    /// The kernel's names of the devices that the store is on, as [`disk_names`](crate::disk_names) gives them.
    pub store_disks: BTreeSet<String>,
    /// The target that the images go to in place of a store; absent, and its room is not checked.
    pub target: Option<TargetRoom>,
    /// The kernel's names of the chosen disks; none for all that [`disks`](crate::disks) does not leave out.
    pub disks: Vec<String>,
}

/// A target, and the room that it has for this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetRoom {
    /// Its name on this machine.
    pub name: String,
    /// Bytes that are free for this machine.
    pub free_bytes: u64,
}

/// Looks at everything that decides whether a copy of the chosen disks will start elsewhere, in a few seconds.
///
/// What cannot be read or found out is a line too, so there is always an answer. The ids are stable:
///
/// - smcd itself: `privileges`, `container`, `architecture`, `kernel`, `io_uring`, `bpf`
/// - disks: `disk`, `disk_left_out`, `volumes`, `mounts_outside`, `zfs`, `network_mounts`, `freeze`
/// - store, if one is given: `store_disk`, `store_space`; target, if one is given: `target_space`
/// - firmware: `boot_mode`, `boot_sector`, `efi_partition`, `efi_fallback`, `secure_boot`
/// - boot loader and kernels: `boot_loader`, `boot_root`, `grub_default`, `grub_device_map`, `kernel_image`,
///   `boot_space`, `initramfs_virtio`, `virtio_net`
/// - root filesystem: `init`, `root_space`, `filesystem_errors`
/// - names of disks: `fstab`, `crypttab`, `mount_units`, `lvm_devices`, `lvm_filter`
/// - the rest: `network_config`, `clock`, `hardware_clock`, `security_module`
/// - files of any of these that exist and could not be read: `unreadable`
///
/// There may be several lines with one id, and none where there is nothing to tell.
pub fn precheck(root: &Root, input: &PrecheckInput) -> Precheck {
    examine(root, input, &KernelFacts::ask(root))
}

/// Looks at a machine that does not run, such as an image of one: whether a copy of all its disks will start elsewhere.
/// `root` is its tree of files, with `/sys/block`, `/run/udev/data`, `/proc/1/mountinfo` and the first sectors in `/dev` made to
/// describe its disks. The rules and ids are those of [`precheck`], where they do not depend on a running kernel; in addition:
///
/// - `operating_system`, `cloud_init`, `guest_agent`
pub fn inspect(root: &Root) -> Precheck {
    run(
        root,
        &PrecheckInput::default(),
        &KernelFacts::ask(root),
        &[&[guest::check], CHECKS_OF_FILES, &[clock::hardware_clock]],
    )
}

/// The same as [`precheck`], with the kernel's answers given.
pub(crate) fn examine(root: &Root, input: &PrecheckInput, answers: &KernelFacts) -> Precheck {
    let of_machine: [&[Rule]; 3] = [
        &[kernel::check, layout::check, store::check],
        CHECKS_OF_FILES,
        &[clock::check, kernel::check_security_module],
    ];
    run(root, input, answers, &of_machine)
}

fn run(root: &Root, input: &PrecheckInput, answers: &KernelFacts, checks: &[&[Rule]]) -> Precheck {
    let mut out = Findings::default();
    let files = Files::new(root);
    let inventory = Inventory::read(&files).unwrap_or_else(|error| {
        let found = format!("cannot list the block devices: {}", cause(&error));
        out.critical("disk", found, "mount sysfs at /sys");
        Inventory::default()
    });
    let case = Context::new(files, input, answers, inventory);
    for check in checks.iter().copied().flatten() {
        check(&case, &mut out);
    }
    unread(&case, &mut out);
    out.finish()
}

/// What exists and could not be read: the other findings do not include it.
fn unread(case: &Context<'_>, out: &mut Findings) {
    for (path, cause) in case.files.unread() {
        let found = format!("cannot read {}: {}", shown_path(&path), shown(&cause));
        out.warning(
            "unreadable",
            found,
            "make it readable, then check again: the other findings do not include it",
        );
    }
}

/// What looks at one matter.
type Rule = fn(&Context<'_>, &mut Findings);

/// What depends on files and disks alone, in the order in which people read the lines.
const CHECKS_OF_FILES: &[Rule] = &[
    efi::check,
    loader::check,
    boot::check,
    root::check,
    drivers::check,
    fstab::check,
    lvm::check,
    network::check,
];

/// What all checks look at.
struct Context<'a> {
    files: Files<'a>,
    input: &'a PrecheckInput,
    answers: &'a KernelFacts,
    inventory: Inventory,
    /// Names of the disks to migrate.
    chosen: BTreeSet<String>,
    /// Release of the running kernel: `6.1.0-18-amd64`. Empty where unknown.
    release: String,
    /// What boot loaders were told to start.
    entries: Vec<loader::Entry>,
}

impl<'a> Context<'a> {
    fn new(
        files: Files<'a>,
        input: &'a PrecheckInput,
        answers: &'a KernelFacts,
        inventory: Inventory,
    ) -> Self {
        let chosen = chosen(input, &inventory);
        let mut case = Context {
            release: files.attribute("/proc/sys/kernel/osrelease").unwrap_or_default(),
            files,
            input,
            answers,
            inventory,
            chosen,
            entries: Vec::new(),
        };
        case.entries = loader::entries(&case);
        case
    }

    /// Whether looking there would mount something: nothing is to be changed, so nobody looks.
    fn is_behind_automount(&self, path: &str) -> bool {
        let mount = self.inventory.mount_above(path.as_ref());
        mount.is_some_and(|mount| mount.fs_type == "autofs")
    }

    /// Words for a disk: `vda, 40 GiB`.
    fn disk_words(&self, name: &str) -> String {
        let bytes = self.inventory.device(name).map_or(0, |device| device.size_bytes);
        format!("{}, {}", shown(name), crate::text::size(bytes))
    }
}

fn chosen(input: &PrecheckInput, inventory: &Inventory) -> BTreeSet<String> {
    if input.disks.is_empty() {
        let taken = inventory
            .whole()
            .filter(|disk| inventory.left_out(disk, &input.store_disks).is_none());
        return taken.map(|disk| disk.name.clone()).collect();
    }
    let named = input
        .disks
        .iter()
        .map(|name| name.strip_prefix("/dev/").unwrap_or(name));
    named.map(|name| name.replace('/', "!")).collect()
}
