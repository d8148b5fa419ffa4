//! The guests of the tests, over the crate [`boot`](::boot): a disk that is booted from an NBD export, and an initramfs
//! alone. What they write goes to an overlay that is thrown away.

use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use ::boot::{Accelerator, Disk, Follow, Guest, KVM_VERDICT, Machine, Next, Probe, Run};
use testkit::error::IoContext;
use testkit::guard::ScratchDir;
use testkit::{Error, ErrorKind, Result, process};

use crate::initramfs;
use crate::kernel::Kernel;

/// What the init of the initramfs writes when it is started for a probe.
const PROBE_OK: &str = "SMC-PROBE-OK";

/// What runs guests on this machine: KVM where a small guest has been seen to run on it, otherwise TCG.
///
/// # Errors
/// [`ErrorKind::Setup`] where `scripts/setup.sh` has not been run.
pub fn accelerator() -> Result<Accelerator> {
    static FOUND: OnceLock<Accelerator> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(*found);
    }
    let kernel = Kernel::cached()?;
    let scratch = ScratchDir::new("smc-kvm-probe")?;
    let probe = Probe {
        kernel: &kernel.image(),
        initramfs: &write_initramfs(&scratch, &initramfs::build(&kernel)?)?,
        parameters: "smc.probe",
        proof: PROBE_OK,
    };
    // The programs find it there too: they may have no kernel to find it out with.
    let found = Accelerator::find(&probe, Path::new(KVM_VERDICT), &is_interrupted)
        .map_err(|error| converted(&error))?;
    Ok(*FOUND.get_or_init(|| found))
}

/// How to run a guest.
#[derive(Debug, Clone)]
pub struct BootOptions {
    /// The guest's memory in MiB.
    pub memory_mib: u32,
    /// Its processors, where it is a whole [system](crate::system).
    pub processors: u32,
    /// From start to power-off; the guest is killed then.
    pub timeout: Duration,
    /// `None`: [`accelerator`].
    pub accelerator: Option<Accelerator>,
}

impl Default for BootOptions {
    fn default() -> Self {
        Self {
            memory_mib: 192,
            processors: 1,
            // Translated, beside other work.
            timeout: Duration::from_secs(600),
            accelerator: None,
        }
    }
}

impl BootOptions {
    pub(crate) fn accelerator(&self) -> Result<Accelerator> {
        self.accelerator.map_or_else(accelerator, Ok)
    }
}

fn is_interrupted() -> bool {
    process::check_interrupt().is_err()
}

pub(crate) fn converted(error: &::boot::Error) -> Error {
    let kind = match error.kind() {
        ::boot::ErrorKind::Missing => ErrorKind::Setup,
        ::boot::ErrorKind::Qemu => ErrorKind::Command,
        ::boot::ErrorKind::Timeout => ErrorKind::Timeout,
        ::boot::ErrorKind::Canceled => ErrorKind::Interrupted,
        _ => ErrorKind::Io,
    };
    let cause = error.source().map(|source| format!(": {source}"));
    Error::new(kind, format!("{error}{}", cause.unwrap_or_default()))
}

/// Starts a machine and follows its console. Interrupts end it.
pub(crate) fn follow(
    machine: Machine,
    timeout: Duration,
    on_line: &mut dyn FnMut(&str, Duration) -> Next,
) -> Result<Run> {
    process::announce(machine.command());
    let guest = Guest::start(machine).map_err(|error| converted(&error))?;
    let run = guest.follow(&mut Follow {
        timeout,
        is_canceled: &is_interrupted,
        on_line,
    });
    run.map_err(|error| converted(&error))
}

/// Writes an initramfs into `scratch`.
pub(crate) fn write_initramfs(scratch: &ScratchDir, archive: &[u8]) -> Result<PathBuf> {
    let file = scratch.join("initramfs");
    fs::write(&file, archive).context(|| format!("write {}", file.display()))?;
    Ok(file)
}

/// Runs a guest of `kernel` and the initramfs `archive` alone until it powers off, and returns its console.
///
/// `parameters` join the kernel's command line. The guest has a [network](Machine::network).
///
/// # Errors
/// [`ErrorKind::Timeout`] if it does not end, [`ErrorKind::Guest`] if its console stays empty.
pub fn run_initramfs(
    kernel: &Kernel,
    archive: &[u8],
    parameters: &str,
    options: &BootOptions,
) -> Result<String> {
    let scratch = ScratchDir::new("smc-initramfs")?;
    let initramfs = write_initramfs(&scratch, archive)?;
    let mut machine = Machine::new(options.accelerator()?, options.memory_mib);
    machine
        .network()
        .kernel(&kernel.image(), &initramfs, "ttyS0", parameters);
    let run = follow(machine, options.timeout, &mut |_, _| Next::Continue)?;
    if run.console.is_empty() {
        let message = format!("the guest did not start {}", run.describe());
        return Err(Error::new(ErrorKind::Guest, message));
    }
    Ok(run.console)
}

/// What a guest that booted has reported.
#[derive(Debug, Clone)]
pub struct BootReport {
    /// Everything on its serial console.
    pub console: String,
    /// From starting QEMU until the disk's own init ran.
    pub seconds: f64,
    /// From starting QEMU until it had powered off, checksums included.
    pub total_seconds: f64,
    /// The name in the disk's `/etc/point-in-time`.
    pub point_in_time: String,
    /// The guest's kernel release.
    pub kernel: String,
    /// Whether every file matches its checksum in the disk's manifest.
    pub files_ok: bool,
    /// How many files the manifest lists.
    pub files: u64,
    /// What ran it.
    pub accelerator: Accelerator,
}

/// Boots a [`crate::disk::BootDisk`] from the NBD export at `uri` and waits until the guest has powered off.
///
/// The guest writes to an overlay that QEMU throws away; the export is only read. Files that do not match are not an
/// error: see [`BootReport::files_ok`].
///
/// # Errors
/// [`ErrorKind::Guest`] if the guest ends without having booted and [`ErrorKind::Timeout`] if it does not end;
/// both carry the end of its console.
pub fn boot(uri: &str, options: &BootOptions) -> Result<BootReport> {
    let accelerator = options.accelerator()?;
    let mut machine = Machine::new(accelerator, options.memory_mib);
    machine.disk(&Disk {
        source: uri,
        format: "raw",
        snapshot: true,
        serial: None,
    });
    let mut booted = None;
    let run = follow(machine, options.timeout, &mut |line, after| {
        if line.contains("SMC-BOOT-OK") {
            booted = booted.or(Some(after));
        }
        Next::Continue
    })?;
    let described = run.describe();
    report(run.console, booted, run.total, accelerator).ok_or_else(|| {
        let message = format!("the guest on {uri} did not boot {described}");
        Error::new(ErrorKind::Guest, message)
    })
}

/// `None` unless the guest has booted and then checked its files to the end.
fn report(
    console: String,
    booted: Option<Duration>,
    total: Duration,
    accelerator: Accelerator,
) -> Option<BootReport> {
    let (point, kernel) = after(&console, "SMC-BOOT-OK point=")?.rsplit_once(" kernel=")?;
    let good = after(&console, "SMC-FILES-OK n=");
    let count = good.or_else(|| after(&console, "SMC-FILES-BAD n="))?;
    Some(BootReport {
        seconds: booted?.as_secs_f64(),
        total_seconds: total.as_secs_f64(),
        point_in_time: point.to_owned(),
        kernel: kernel.trim().to_owned(),
        files_ok: good.is_some(),
        files: count.trim().parse().ok()?,
        accelerator,
        console,
    })
}

/// The rest of the first line that contains `marker`.
fn after<'a>(console: &'a str, marker: &str) -> Option<&'a str> {
    console
        .lines()
        .find_map(|line| line.split_once(marker))
        .map(|(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(console: &str) -> Option<BootReport> {
        let second = Duration::from_secs(1);
        report(console.to_owned(), Some(second), 2 * second, Accelerator::Tcg)
    }

    #[test]
    fn reads_what_the_guest_reported() {
        let console = "[ 1.0] x\nSMC-BOOT-OK point=before lunch kernel=6.1.0\nSMC-FILES-OK n=12\n";
        let report = reported(console).unwrap();
        assert_eq!(
            (report.point_in_time.as_str(), report.kernel.as_str()),
            ("before lunch", "6.1.0")
        );
        assert_eq!((report.files_ok, report.files), (true, 12));
    }

    #[test]
    fn a_guest_that_stops_before_checking_its_files_has_not_booted() {
        assert!(reported("SMC-BOOT-OK point=a kernel=6.1.0\n").is_none());
        assert!(reported("SMC-FILES-OK n=12\n").is_none());
        let bad = reported("SMC-BOOT-OK point=a kernel=6.1.0\nSMC-FILES-BAD n=12\n").unwrap();
        assert!(!bad.files_ok);
    }
}
