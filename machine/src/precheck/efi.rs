//! How firmware finds the boot loader: UEFI from its system partition, BIOS from a disk's first sector.

use std::path::Path;
use std::time::{Duration, Instant};

use hostdev::Block;

use super::Context;
use super::findings::Findings;
use crate::inventory::{Cover, content};
use crate::text::{list, shown};

/// Type of an EFI system partition in a GPT and in an MBR.
const SYSTEM_PARTITION: [&str; 2] = ["c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0xef"];

/// Where the system partition is mounted.
const MOUNT_POINTS: [&str; 4] = ["/boot/efi", "/efi", "/boot", "/boot/EFI"];

/// Code in a boot sector ends where the disk's signature and the partitions begin.
const BOOT_CODE_LEN: usize = 440;

/// How long one disk's first sector may take, and those of all that do not answer.
const SECTOR_TIMEOUT: Duration = Duration::from_millis(1000);
const SECTORS_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn check(case: &Context<'_>, out: &mut Findings) {
    // Without a disk that is there, that has been told.
    if !case
        .chosen
        .iter()
        .any(|name| case.inventory.device(name).is_some())
    {
        return;
    }
    if !case.files.is_dir("/sys/firmware/efi") {
        out.ok(
            "boot_mode",
            "started by a BIOS: the target machine must start by BIOS too",
        );
        boot_code(case, out);
        return;
    }
    out.ok(
        "boot_mode",
        "started by UEFI: the target machine must start by UEFI too",
    );
    system_partition(case, out);
    secure_boot(case, out);
}

/// A BIOS runs what is in the first sector.
fn boot_code(case: &Context<'_>, out: &mut Findings) {
    let mut unread = Vec::new();
    let deadline = Instant::now() + SECTORS_TIMEOUT;
    for device in case.chosen.iter().filter_map(|name| case.inventory.device(name)) {
        let name = &device.name;
        if Instant::now() >= deadline {
            unread.push(shown(name));
            continue;
        }
        match content::first_sector(case.files.root(), &device.node(), SECTOR_TIMEOUT) {
            Some(sector) if has_boot_code(&sector) => {
                out.ok(
                    "boot_sector",
                    format!("{} has boot code in its first sector", shown(name)),
                );
                grub_alone(case, name, &sector, out);
                return;
            }
            Some(_) => {}
            None => unread.push(shown(name)),
        }
    }
    if unread.is_empty() {
        let found = "none of the chosen disks has boot code in its first sector: no BIOS can start the copy";
        let advice =
            "choose the disk that this machine starts from, or install a boot loader: grub-install DISK";
        out.critical("boot_sector", found, advice);
    } else {
        let found = format!(
            "whether a chosen disk has boot code could not be determined: {} could not be read",
            list(unread, 4)
        );
        out.warning(
            "boot_sector",
            found,
            "run it as root, and make sure that the disk answers",
        );
    }
}

/// GRUB says its name in its boot sector. Without its files it shows a prompt, or does not even come to that.
fn grub_alone(case: &Context<'_>, disk: &str, sector: &[u8; 512], out: &mut Findings) {
    let is_grub = sector.windows(4).any(|word| word == b"GRUB");
    if !is_grub || !case.entries.is_empty() || case.is_behind_automount("/boot/grub") {
        return;
    }
    let found = format!(
        "the boot sector of {} starts GRUB, and there is no configuration of GRUB that starts a kernel",
        shown(disk)
    );
    let advice =
        "install it again: grub-install DISK, then update-grub (or grub2-mkconfig -o /boot/grub2/grub.cfg)";
    out.critical("boot_loader", found, advice);
}

fn has_boot_code(sector: &[u8; 512]) -> bool {
    sector.ends_with(&[0x55, 0xaa]) && sector[..BOOT_CODE_LEN].iter().any(|byte| *byte != 0)
}

fn system_partition(case: &Context<'_>, out: &mut Findings) {
    let is_chosen = |device: &&Block| case.inventory.cover(&device.name, &case.chosen) == Cover::All;
    let typed = case.inventory.devices().filter(is_chosen).find(|device| {
        let entry = case.inventory.content(&device.name).entry_type.as_deref();
        entry.is_some_and(|entry| SYSTEM_PARTITION.contains(&entry.to_ascii_lowercase().as_str()))
    });
    match (mounted(case), typed) {
        (Some((point, name)), _) => {
            out.ok("efi_partition", format!("the EFI system partition {} is mounted at {point}", shown(&name)));
            fallback(case, point, out);
        }
        (None, Some(device)) => {
            let found = format!("the EFI system partition {} is not mounted: its loader could not be checked", shown(&device.name));
            out.warning("efi_partition", found, "mount it at /boot/efi, and check again");
        }
        (None, None) => out.critical(
            "efi_partition",
            "started by UEFI, but there is no EFI system partition on the chosen disks: the copy cannot start",
            "choose the disk that it is on",
        ),
    }
}

/// Where a system partition of the chosen disks is mounted, and its name.
fn mounted<'a>(case: &Context<'a>) -> Option<(&'static str, String)> {
    MOUNT_POINTS.iter().find_map(|point| {
        let mut mounts = case.inventory.mounts().iter().rev();
        let mount = mounts.find(|mount| mount.point == Path::new(point) && mount.fs_type == "vfat")?;
        let name = mount.devices.first()?;
        let is_chosen = case.inventory.cover(name, &case.chosen) == Cover::All;
        (is_chosen && case.files.is_dir(format!("{point}/EFI"))).then(|| (*point, name.clone()))
    })
}

/// Firmware that does not know the machine yet starts what lies at the path for removable media.
fn fallback(case: &Context<'_>, point: &str, out: &mut Findings) {
    let is_32_bit = case
        .files
        .attribute("/sys/firmware/efi/fw_platform_size")
        .as_deref()
        == Some("32");
    let file = match case.answers.architecture.as_str() {
        "x86_64" if is_32_bit => "BOOTIA32.EFI",
        "x86_64" => "BOOTX64.EFI",
        "aarch64" => "BOOTAA64.EFI",
        "riscv64" => "BOOTRISCV64.EFI",
        "loongarch64" => "BOOTLOONGARCH64.EFI",
        _ => "BOOTIA32.EFI",
    };
    let found = find_ignoring_case(case, point, &["EFI", "BOOT", file]);
    match found {
        Some(path) => out.ok(
            "efi_fallback",
            format!("{} starts where the firmware has no entry", shown(&path)),
        ),
        None => no_fallback(case, point, file, out),
    }
}

/// Whether another loader is there, which only a firmware that knows the machine starts.
fn no_fallback(case: &Context<'_>, point: &str, file: &str, out: &mut Findings) {
    let advice = format!("install one: grub-install --removable --efi-directory={point}, or bootctl install");
    let loaders = loaders(case, &format!("{point}/EFI"));
    if loaders.is_empty() {
        let found = format!(
            "there is no boot loader on the EFI system partition at {point}: UEFI would find nothing to start"
        );
        return out.critical("efi_fallback", found, advice);
    }
    let found = format!(
        "{point}/EFI/BOOT/{file} is missing, and the firmware's own entries are not migrated: nothing would start {}",
        list(loaders.iter().map(|path| shown(path)), 2)
    );
    out.warning("efi_fallback", found, advice);
}

/// Programs for UEFI in the directories of vendors.
fn loaders(case: &Context<'_>, directory: &str) -> Vec<String> {
    let vendors = case.files.names(directory).into_iter();
    let vendors = vendors.map(|vendor| format!("{directory}/{vendor}"));
    let programs = vendors
        .filter(|vendor| case.files.is_dir(vendor))
        .flat_map(|vendor| {
            let names = case.files.names(&vendor).into_iter();
            let programs = names.filter(|name| name.to_ascii_lowercase().ends_with(".efi"));
            programs
                .map(|name| format!("{vendor}/{name}"))
                .collect::<Vec<_>>()
        });
    programs.collect()
}

/// A path on a filesystem that knows no case, wherever that is mounted.
fn find_ignoring_case(case: &Context<'_>, directory: &str, names: &[&str]) -> Option<String> {
    names.iter().try_fold(directory.to_owned(), |path, name| {
        let entries = case.files.names(&path);
        let entry = entries.iter().find(|entry| entry.eq_ignore_ascii_case(name))?;
        Some(format!("{path}/{entry}"))
    })
}

/// The variable has four bytes of attributes, then 1 for on.
fn secure_boot(case: &Context<'_>, out: &mut Findings) {
    let variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    let value = case.files.bytes_up_to(variable, 64);
    let found = match value.as_deref().and_then(|bytes| bytes.get(4)) {
        Some(1) => "Secure Boot is on: keys that were enrolled on this machine (MOK) are not migrated",
        Some(_) => "Secure Boot is off: the target machine must not insist on it",
        None => "Secure Boot is not supported: the target machine must not insist on it",
    };
    out.ok("secure_boot", found);
}
