//! What can end a boot: its name in records, in words, and what a person can do about it.

/// What ended a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The firmware found nothing to start.
    NoBootableDevice,
    /// UEFI found no loader under the name that it looks for by itself.
    NoUefiLoader,
    /// The code in the boot sector found no boot loader.
    NoBootLoader,
    /// GRUB cannot find its own files.
    GrubRescue,
    /// GRUB has no configuration.
    GrubPrompt,
    /// The boot loader cannot load the kernel or the initramfs.
    KernelNotLoaded,
    /// The kernel's file is damaged.
    KernelDamaged,
    /// The boot loader has started the kernel, which has written nothing.
    KernelSilent,
    /// The kernel has no root filesystem.
    NoRoot,
    /// The kernel has a root, and no init on it that runs.
    NoInit,
    /// The kernel stopped for another reason.
    KernelPanic,
    /// The initramfs waited for the root filesystem, and gave up.
    InitramfsShell,
    /// The root filesystem needs to be repaired.
    RootDamaged,
    /// Nothing more can be written to a filesystem.
    FilesystemFull,
    /// systemd ended in its emergency or rescue mode.
    EmergencyMode,
    /// The programs were built for newer processors.
    OldProcessor,
    /// It waits for the passphrase of an encrypted disk.
    Passphrase,
    /// The guest restarted or powered off by itself.
    PoweredOff,
    /// Nothing was written to the serial console.
    Silent,
    /// It wrote, and did not come to what was waited for.
    NotReached,
}

impl Problem {
    /// Its name in records, which does not change.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoBootableDevice => "no-bootable-device",
            Self::NoUefiLoader => "no-uefi-loader",
            Self::NoBootLoader => "no-boot-loader",
            Self::GrubRescue => "grub-rescue",
            Self::GrubPrompt => "grub-prompt",
            Self::KernelNotLoaded => "kernel-not-loaded",
            Self::KernelDamaged => "kernel-damaged",
            Self::KernelSilent => "kernel-silent",
            Self::NoRoot => "no-root",
            Self::NoInit => "no-init",
            Self::KernelPanic => "kernel-panic",
            Self::InitramfsShell => "initramfs-shell",
            Self::RootDamaged => "root-damaged",
            Self::FilesystemFull => "filesystem-full",
            Self::EmergencyMode => "emergency-mode",
            Self::OldProcessor => "old-processor",
            Self::Passphrase => "passphrase",
            Self::PoweredOff => "powered-off",
            Self::Silent => "silent",
            Self::NotReached => "not-reached",
        }
    }

    /// What happened, without a full stop.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::NoBootableDevice => "the firmware found no disk to boot from",
            Self::NoUefiLoader => "UEFI found no boot loader on the disks",
            Self::NoBootLoader => "the boot sector found no boot loader",
            Self::GrubRescue => "GRUB does not find its own files (grub rescue)",
            Self::GrubPrompt => "GRUB found no configuration, and shows its prompt",
            Self::KernelNotLoaded => "the boot loader cannot load the kernel or its initramfs",
            Self::KernelDamaged => "the kernel's file is damaged",
            Self::KernelSilent => {
                "the boot loader has started the kernel, and the kernel has written nothing"
            }
            Self::NoRoot => "kernel panic: the kernel has no root filesystem",
            Self::NoInit => "kernel panic: no init on the root filesystem can be run",
            Self::KernelPanic => "kernel panic",
            Self::InitramfsShell => "the initramfs did not find the root filesystem, and shows a shell",
            Self::RootDamaged => "the root filesystem must be repaired by hand",
            Self::FilesystemFull => "a filesystem is full",
            Self::EmergencyMode => "systemd ended in emergency mode",
            Self::OldProcessor => "the system needs a newer processor than the guest has",
            Self::Passphrase => "it waits for the passphrase of an encrypted disk",
            Self::PoweredOff => "the guest restarted or powered off by itself",
            Self::Silent => "nothing was written to the serial console",
            Self::NotReached => "the time was over before what was waited for came",
        }
    }

    /// What a person can do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::NoBootableDevice => {
                "check that the image has the disk that the server boots from; try the other --firmware; install the boot loader on the source again"
            }
            Self::NoUefiLoader => {
                "the boot entry is perhaps only in the source's firmware, which no disk holds: on the source, install the loader as EFI/BOOT/BOOTX64.EFI too (grub-install --removable); a new machine needs that as well"
            }
            Self::NoBootLoader => {
                "install the boot loader on the source again (grub-install), and sync; try the other --firmware"
            }
            Self::GrubRescue => {
                "see that the disk with /boot is in the image; on the source, run grub-install and update-grub, and sync"
            }
            Self::GrubPrompt => {
                "see that /boot is in the image; on the source, run update-grub (grub2-mkconfig), and sync"
            }
            Self::KernelNotLoaded => {
                "see that /boot is in the image and not full; on the source, install the kernel's package again and run update-grub, and sync"
            }
            Self::KernelDamaged => "on the source, install the kernel's package again, and sync",
            Self::KernelSilent => {
                "the kernel's file is damaged, or console=ttyS0,115200 is missing on its command line; the screenshot shows which: where it does not go on, install the kernel's package again on the source, and sync"
            }
            Self::NoRoot => {
                "give the initramfs the driver of the disks (virtio_blk, virtio_scsi), name the root by UUID and not as /dev/sda, and see that the kernel has its initramfs; --disk-bus shows from which disks it can start"
            }
            Self::NoInit => {
                "see that the whole root filesystem is in the image; compare init= on the kernel's command line"
            }
            Self::KernelPanic => {
                "see the last lines of the console; try more --memory, or another --disk-bus"
            }
            Self::InitramfsShell => {
                "give the initramfs the driver of the disks (virtio_blk, virtio_scsi), and name the root by UUID and not as /dev/sda; --disk-bus shows from which disks it can start"
            }
            Self::RootDamaged => {
                "take another image, best one whose consistency is filesystem or offline, and check the source's filesystem"
            }
            Self::FilesystemFull => "make room on the source, above all on its root filesystem, and sync",
            Self::EmergencyMode => {
                "name filesystems in /etc/fstab by UUID, and give those that are not needed for starting the option nofail"
            }
            Self::OldProcessor => "start it where the processor's virtualization can be used (KVM)",
            Self::Passphrase => {
                "up to here it boots: type the passphrase without --check, or let --check-console wait for this line"
            }
            Self::PoweredOff => "see the last lines of the console",
            Self::Silent => {
                "see the screenshot; a server writes to its serial console with console=ttyS0,115200 on its kernel's command line, which --check needs"
            }
            Self::NotReached => "see the last lines of the console; give it more time with --timeout",
        }
    }
}
