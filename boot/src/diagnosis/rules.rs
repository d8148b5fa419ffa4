//! The table: what a line of a console says.

use super::problem::Problem::{self, *};

/// What a line that matches says.
#[derive(Debug, Clone, Copy)]
pub(super) enum Says {
    /// The boot has ended with this problem.
    Ends(Problem),
    /// The boot has ended, and with this problem unless another line says more.
    EndsUnlessKnown(Problem),
    /// If it does not go on, this is why.
    Hints(Problem),
    /// The first group is the device that is waited for.
    Device,
    /// The first group is a unit that failed.
    Unit,
    /// A boot loader starts the kernel.
    StartsKernel,
    /// The firmware writes this, whatever is on the disks.
    Firmware,
}

/// A line, as a regular expression, and what it says.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) line: &'static str,
    pub(super) says: Says,
}

const fn rule(line: &'static str, says: Says) -> Rule {
    Rule { line, says }
}

/// Of lines that end a boot the last one counts.
pub(super) const RULES: [Rule; 66] = [
    // SeaBIOS, and iPXE where there is a network card.
    rule(r"^SeaBIOS \(version", Says::Firmware),
    rule(r"^Booting from ", Says::Firmware),
    rule(r"^Boot failed: ", Says::Firmware),
    rule(
        r"^No bootable device\.",
        // What a boot sector said before says more.
        Says::EndsUnlessKnown(NoBootableDevice),
    ),
    // OVMF.
    rule(r"^BdsDxe: (loading|starting) ", Says::Firmware),
    rule(r"^BdsDxe: failed to (load|start) ", Says::Firmware),
    rule(
        r"^BdsDxe: No bootable option or device was found",
        Says::Ends(NoUefiLoader),
    ),
    rule(r"^>>Start PXE over IP", Says::Firmware),
    rule(r"^UEFI Interactive Shell v", Says::Hints(NoUefiLoader)),
    rule(r"^Shell> ?$", Says::Ends(NoUefiLoader)),
    // Boot sectors: of a DOS table, of a FAT filesystem, of syslinux and extlinux.
    rule(r"^Missing operating system", Says::Ends(NoBootLoader)),
    rule(r"^Error loading operating system", Says::Ends(NoBootLoader)),
    rule(r"^Operating system load error", Says::Ends(NoBootLoader)),
    rule(r"^Invalid partition table", Says::Ends(NoBootLoader)),
    rule(r"^This is not a bootable disk", Says::Ends(NoBootLoader)),
    rule(r"^Boot error$", Says::Ends(NoBootLoader)),
    rule(r"^Failed to load ldlinux\.c32", Says::Ends(NoBootLoader)),
    rule(
        r"^No DEFAULT or UI configuration directive found",
        Says::Ends(GrubPrompt),
    ),
    rule(r"^Could not find kernel image: ", Says::Ends(KernelNotLoaded)),
    // Where it writes to the serial line and to the screen, both are mixed.
    rule(r"ading [^ ]+\.\.\..*failed:", Says::Ends(KernelNotLoaded)),
    rule(r"^Could not find ramdisk image: ", Says::Ends(KernelNotLoaded)),
    // GRUB.
    rule(r"^GRUB (Hard Disk|Geom|Read) Error", Says::Ends(NoBootLoader)),
    rule(r"^error: no such device: ([^ ]+)", Says::Device),
    rule(r"^Entering rescue mode\.\.\.", Says::Ends(GrubRescue)),
    rule(r"^grub rescue> ?", Says::Ends(GrubRescue)),
    rule(r"^grub> ?$", Says::Ends(GrubPrompt)),
    rule(
        r"^error: file `?[^ ]*(vmlinuz|initrd|initramfs|linux)[^ ]*' not found",
        Says::Hints(KernelNotLoaded),
    ),
    rule(
        r"^error: you need to load the kernel first",
        Says::Ends(KernelNotLoaded),
    ),
    rule(
        r"^error: (invalid magic number|premature end of file)",
        Says::Hints(KernelDamaged),
    ),
    rule(r"^Loading (Linux |initial ramdisk)", Says::StartsKernel),
    // The kernel.
    rule(r"-- System halted", Says::Ends(KernelDamaged)),
    rule(r#"VFS: Cannot open root device "([^"]+)""#, Says::Device),
    rule(
        r"Kernel panic - not syncing: VFS: Unable to mount root fs",
        Says::Ends(NoRoot),
    ),
    rule(
        r"Kernel panic - not syncing: No (working )?init found",
        Says::Ends(NoInit),
    ),
    rule(r"Kernel panic - not syncing: Requested init ", Says::Ends(NoInit)),
    rule(
        r"Kernel panic - not syncing: ",
        Says::EndsUnlessKnown(KernelPanic),
    ),
    rule(r"CPU does not support x86-64-v[234]", Says::Ends(OldProcessor)),
    rule(r"requires an? .*CPU, but only detected", Says::Ends(OldProcessor)),
    // initramfs-tools.
    rule(r"^ALERT! +([^ ]+) does not exist", Says::Device),
    rule(
        r"^Gave up waiting for root (file system )?device",
        Says::Ends(InitramfsShell),
    ),
    rule(r"^\(initramfs\) ?$", Says::EndsUnlessKnown(InitramfsShell)),
    rule(
        r"^The root filesystem on ([^ ]+) requires a manual fsck",
        Says::Device,
    ),
    rule(r"requires a manual fsck", Says::Ends(RootDamaged)),
    rule(
        r"UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY",
        Says::Hints(RootDamaged),
    ),
    rule(r"^Target filesystem doesn't have requested ", Says::Hints(NoInit)),
    rule(r"^No init found\. Try passing init=", Says::Ends(NoInit)),
    // It starts a shell where nothing else is there: of a whole system, and not of the initramfs.
    rule(r"^/bin/sh: 0: can't access tty", Says::Ends(NoInit)),
    // dracut.
    rule(r"Warning: (/dev/[^ ]+) does not exist", Says::Device),
    rule(
        r"^Entering emergency mode\. Exit the shell to continue",
        Says::Ends(InitramfsShell),
    ),
    rule(
        r"^Generating .*/run/initramfs/rdsosreport\.txt",
        Says::Ends(InitramfsShell),
    ),
    rule(r"^dracut:/#", Says::EndsUnlessKnown(InitramfsShell)),
    // mkinitcpio, and Alpine's.
    rule(r"ERROR: device '([^']+)' not found", Says::Device),
    rule(
        r"You are now being dropped into an emergency shell",
        Says::Ends(InitramfsShell),
    ),
    rule(
        r"initramfs emergency recovery shell launched",
        Says::Ends(InitramfsShell),
    ),
    // systemd.
    rule(r"Timed out waiting for device (?:[^ ]+ - )?([^ ]+)", Says::Device),
    rule(r"^\[FAILED\] Failed to (?:mount|start) (.+)$", Says::Unit),
    rule(r"^\[DEPEND\] Dependency failed for (.+)$", Says::Unit),
    rule(r"^You are in (emergency|rescue) mode", Says::Ends(EmergencyMode)),
    rule(
        r"Give root password for maintenance",
        Says::EndsUnlessKnown(EmergencyMode),
    ),
    rule(
        r"Cannot open access to console, the root account is locked",
        Says::EndsUnlessKnown(EmergencyMode),
    ),
    rule(
        r"systemd\[1\]: Freezing execution",
        Says::EndsUnlessKnown(EmergencyMode),
    ),
    rule(r"No space left on device", Says::Hints(FilesystemFull)),
    // Encrypted disks.
    rule(r"^Please unlock disk ([^:]+):", Says::Device),
    rule(r"^(?:. )?Please enter passphrase for disk ([^:!]+)", Says::Device),
    rule(r"^Please unlock disk ", Says::Ends(Passphrase)),
    rule(
        r"^(. )?(Please enter|Enter) passphrase for ",
        Says::Ends(Passphrase),
    ),
];
