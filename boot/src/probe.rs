//! Finds out what runs guests: the processor, where a small guest has been seen to run on it.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::accelerator::Accelerator;
use crate::archive::Archive;
use crate::error::{Error, ErrorKind, Result};
use crate::firmware::filled_memory_file;
use crate::guest::{Follow, Guest, Next};
use crate::machine::{Machine, QEMU};

/// Where it is kept, for this boot of this machine, whether KVM runs guests.
pub const KVM_VERDICT: &str = "/run/smc/kvm-verdict";

const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
const PROBE_MEMORY_MIB: u32 = 128;

/// A small guest that proves that guests run: a Linux kernel whose init writes a line and powers off.
///
/// It has to be a whole kernel. In some virtual machines `/dev/kvm` runs a boot sector, and Linux hangs as soon as it
/// leaves real mode.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    /// The kernel's image.
    pub kernel: &'a Path,
    /// Its initramfs.
    pub initramfs: &'a Path,
    /// What else is on the kernel's command line.
    pub parameters: &'a str,
    /// Part of the line that init writes to the console.
    pub proof: &'a str,
}

impl Accelerator {
    /// KVM where `probe` has run on it, otherwise TCG.
    ///
    /// The result is kept in the file `verdict` and found there again, for this boot of the host and this version of
    /// QEMU. `is_canceled` is asked while the probe runs.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] without QEMU, [`ErrorKind::Canceled`], and [`ErrorKind::Io`] when this boot's id cannot be
    /// read. A probe that fails is no error: it is TCG then.
    pub fn find(probe: &Probe<'_>, verdict: &Path, is_canceled: &dyn Fn() -> bool) -> Result<Self> {
        if !opens_kvm() {
            return Ok(Self::Tcg);
        }
        let key = verdict_key()?;
        if let Some(known) = fs::read_to_string(verdict)
            .ok()
            .and_then(|text| Self::known(&text, &key))
        {
            return Ok(known);
        }
        let found = if kvm_runs(probe, is_canceled)? {
            Self::Kvm
        } else {
            Self::Tcg
        };
        // Only a shortcut: where it cannot be kept, the next process probes again.
        if let Some(directory) = verdict.parent() {
            let _ = fs::DirBuilder::new().mode(0o700).create(directory);
        }
        let _ = fs::write(verdict, format!("{key}{found}\n"));
        Ok(found)
    }

    /// KVM where this kernel has begun to start on it, otherwise TCG; kept in `verdict`, as by [`find`](Self::find).
    ///
    /// # Errors
    /// As for [`find`](Self::find).
    pub fn found_by_kernel(kernel: &Path, verdict: &Path, is_canceled: &dyn Fn() -> bool) -> Result<Self> {
        // It gets as far as a line on its console, and panics: there is nothing in this one.
        let initramfs = filled_memory_file("smc-probe", &Archive::default().finish())?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), initramfs.as_raw_fd());
        let probe = Probe {
            kernel,
            initramfs: Path::new(&path),
            parameters: "",
            proof: "Linux version ",
        };
        Self::find(&probe, verdict, is_canceled)
    }

    /// KVM where guests run on it, as far as can be found out: what is known in `verdict` already; otherwise by a kernel of this machine,
    /// if there is one; otherwise by a boot sector, which proves less, and whose result is not kept.
    ///
    /// # Errors
    /// As for [`find`](Self::find).
    pub fn found(kernel: Option<&Path>, verdict: &Path, is_canceled: &dyn Fn() -> bool) -> Result<Self> {
        if !opens_kvm() {
            return Ok(Self::Tcg);
        }
        let key = verdict_key()?;
        let known = fs::read_to_string(verdict).ok();
        if let Some(known) = known.and_then(|text| Self::known(&text, &key)) {
            return Ok(known);
        }
        match kernel {
            Some(kernel) => Self::found_by_kernel(kernel, verdict, is_canceled),
            None => Self::found_by_sector(is_canceled),
        }
    }

    fn known(text: &str, key: &str) -> Option<Self> {
        match text.strip_prefix(key)?.trim() {
            "kvm" => Some(Self::Kvm),
            "tcg" => Some(Self::Tcg),
            _ => None,
        }
    }
}

pub(crate) fn opens_kvm() -> bool {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).open("/dev/kvm").is_ok()
}

/// What a verdict is valid for.
fn verdict_key() -> Result<String> {
    let file = "/proc/sys/kernel/random/boot_id";
    let boot = fs::read_to_string(file).map_err(|source| Error::io(format!("read {file}"), source))?;
    let output = Command::new(QEMU)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::start(QEMU, source))?;
    let version = String::from_utf8_lossy(&output.stdout);
    let version = version.lines().next().unwrap_or_default();
    Ok(format!("{} {version}: ", boot.trim()))
}

fn kvm_runs(probe: &Probe<'_>, is_canceled: &dyn Fn() -> bool) -> Result<bool> {
    let mut machine = Machine::new(Accelerator::Kvm, PROBE_MEMORY_MIB);
    machine.kernel(probe.kernel, probe.initramfs, "ttyS0", probe.parameters);
    let mut has_run = false;
    let mut on_line = |line: &str, _| {
        has_run |= line.contains(probe.proof);
        if has_run { Next::Kill } else { Next::Continue }
    };
    let run = Guest::start(machine)?.follow(&mut Follow {
        timeout: PROBE_TIMEOUT,
        is_canceled,
        on_line: &mut on_line,
    });
    match run {
        Err(error) if error.kind() == ErrorKind::Canceled => Err(error),
        _ => Ok(has_run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_known_for_this_boot_and_this_qemu_only() {
        let key = "boot-1 QEMU 10: ";
        assert_eq!(
            Accelerator::known("boot-1 QEMU 10: kvm\n", key),
            Some(Accelerator::Kvm)
        );
        assert_eq!(
            Accelerator::known("boot-1 QEMU 10: tcg\n", key),
            Some(Accelerator::Tcg)
        );
        assert_eq!(Accelerator::known("boot-2 QEMU 10: kvm\n", key), None);
        assert_eq!(Accelerator::known("boot-1 QEMU 10: ", key), None);
        assert_eq!(Accelerator::known("", key), None);
    }
}
