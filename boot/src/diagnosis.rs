//! Why a server did not boot, read from its console: a table of lines that say so, and what to do about each.
//!
//! Each rule is about one line, as boot loaders, kernels, initramfs and systemd write it. What several of them say
//! together is put together here: which problem ended the boot, which device was waited for, which unit failed.

mod rules;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use regex::{Regex, RegexSet};

use rules::{RULES, Says};

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

/// Why a server did not boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// What ended it.
    pub problem: Problem,
    /// The device that it waited for, as the console names it.
    pub device: Option<String>,
    /// The first unit that failed.
    pub unit: Option<String>,
    /// The line of the console that says it.
    pub line: Option<String>,
}

/// What was found on a console while it grew.
#[derive(Debug, Default)]
pub struct Findings {
    strong: Option<(Problem, String)>,
    weak: Option<(Problem, String)>,
    device: Option<String>,
    unit: Option<String>,
    any_text: bool,
}

impl Findings {
    /// Looks at a line; whether the boot has ended with it.
    pub fn look_at(&mut self, line: &str) -> bool {
        let line = line.trim();
        let mut ended = false;
        for index in patterns().matches(line) {
            let rule = &RULES[index];
            match rule.says {
                Says::Ends(problem) => {
                    self.strong = Some((problem, line.to_owned()));
                    ended = true;
                }
                Says::EndsUnlessKnown(problem) => {
                    self.weak.get_or_insert((problem, line.to_owned()));
                    ended = true;
                }
                Says::Hints(problem) => {
                    self.weak.get_or_insert((problem, line.to_owned()));
                }
                Says::Device => self.device = captured(index, line).or(self.device.take()),
                Says::Unit => self.unit = self.unit.take().or_else(|| captured(index, line)),
                Says::Firmware => return false,
            }
        }
        self.any_text |= !line.is_empty();
        ended
    }

    /// Whether anything was written beside what the firmware writes.
    pub fn any_text(&self) -> bool {
        self.any_text
    }

    /// Why it did not boot. `powered_off` says that the guest ended by itself.
    pub fn diagnosis(self, powered_off: bool) -> Diagnosis {
        let found = self.strong.or(self.weak);
        let (problem, line) = match found {
            Some((problem, line)) => (problem, Some(line)),
            None if powered_off => (Problem::PoweredOff, None),
            None if !self.any_text => (Problem::Silent, None),
            None => (Problem::NotReached, None),
        };
        let waits = matches!(
            problem,
            Problem::NoRoot
                | Problem::InitramfsShell
                | Problem::EmergencyMode
                | Problem::GrubRescue
                | Problem::RootDamaged
                | Problem::Passphrase
                | Problem::NotReached
        );
        Diagnosis {
            problem,
            device: self.device.filter(|_| waits),
            unit: self.unit.filter(|_| problem == Problem::EmergencyMode),
            line,
        }
    }
}

/// Whether a line is the prompt of a login, as getty writes it.
pub fn is_login_prompt(line: &str) -> bool {
    static PROMPT: OnceLock<Option<Regex>> = OnceLock::new();
    let prompt = PROMPT.get_or_init(|| Regex::new(r"^[[:alnum:]][[:alnum:]._-]* login:(\s|$)").ok());
    let line = line.trim_start();
    !line.starts_with("Last ") && prompt.as_ref().is_some_and(|prompt| prompt.is_match(line))
}

/// Whether a line is one that a kernel writes.
pub fn is_kernel_line(line: &str) -> bool {
    static KERNEL: OnceLock<Option<Regex>> = OnceLock::new();
    let kernel =
        KERNEL.get_or_init(|| Regex::new(r"^(\[ *[0-9]+\.[0-9]{6}\]|Linux version [0-9]|EFI stub: )").ok());
    kernel.as_ref().is_some_and(|kernel| kernel.is_match(line))
}

fn patterns() -> &'static RegexSet {
    static PATTERNS: OnceLock<RegexSet> = OnceLock::new();
    PATTERNS.get_or_init(|| {
        // A test says that every pattern of the table is one.
        RegexSet::new(RULES.iter().map(|rule| rule.line)).unwrap_or_else(|_| RegexSet::empty())
    })
}

/// The first group of the rule's pattern in a line.
fn captured(index: usize, line: &str) -> Option<String> {
    static COMPILED: OnceLock<Vec<Option<Regex>>> = OnceLock::new();
    let compiled = COMPILED.get_or_init(|| RULES.iter().map(|rule| Regex::new(rule.line).ok()).collect());
    let found = compiled.get(index)?.as_ref()?.captures(line)?.get(1)?;
    Some(found.as_str().trim_end_matches(['.', '"', '\'']).to_owned())
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
            Self::NoRoot => "no-root",
            Self::NoInit => "no-init",
            Self::KernelPanic => "kernel-panic",
            Self::InitramfsShell => "initramfs-shell",
            Self::RootDamaged => "root-damaged",
            Self::EmergencyMode => "emergency-mode",
            Self::OldProcessor => "old-processor",
            Self::Passphrase => "passphrase",
            Self::PoweredOff => "powered-off",
            Self::Silent => "silent",
            Self::NotReached => "not-reached",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::NoBootableDevice => "the firmware found no disk to boot from",
            Self::NoUefiLoader => "UEFI found no boot loader on the disks",
            Self::NoBootLoader => "the boot sector found no boot loader",
            Self::GrubRescue => "GRUB does not find its own files (grub rescue)",
            Self::GrubPrompt => "GRUB found no configuration, and shows its prompt",
            Self::KernelNotLoaded => "the boot loader cannot load the kernel or its initramfs",
            Self::KernelDamaged => "the kernel's file is damaged",
            Self::NoRoot => "kernel panic: the kernel has no root filesystem",
            Self::NoInit => "kernel panic: no init on the root filesystem can be run",
            Self::KernelPanic => "kernel panic",
            Self::InitramfsShell => "the initramfs did not find the root filesystem, and shows a shell",
            Self::RootDamaged => "the root filesystem must be repaired by hand",
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

impl Diagnosis {
    /// What happened, in one sentence without a full stop.
    pub fn what(&self) -> String {
        let mut what = self.problem.what().to_owned();
        if let Some(device) = &self.device {
            what += match self.problem {
                Problem::Passphrase => ": ",
                _ => "; it waited for ",
            };
            what += device;
        }
        if let Some(unit) = &self.unit {
            what += &format!("; the first unit that failed: {unit}");
        }
        what
    }
}
