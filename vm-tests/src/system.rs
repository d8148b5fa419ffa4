//! A freshly installed Debian or Ubuntu, which runs a script of ours, boot after boot.
//!
//! Its root is an overlay over a disk that `scripts/setup.sh` made with debootstrap, its kernel one of those that it
//! unpacked. What the guest writes stays for the next boot and goes with the [`System`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guest::{self, BootOptions};
use crate::initramfs;
use crate::kernel::{self, Kernel};
use boot::{Bus, Machine, Next};
use testkit::error::IoContext;
use testkit::guard::ScratchDir;
use testkit::process;
use testkit::{Error, ErrorKind, Result};

const INIT: &str = include_str!("../guest/system-init.sh");
const FUNCTIONS: &str = include_str!("../guest/functions.sh");
const DRIVERS: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
/// Room beside the payload's files for the filesystem's own.
const PAYLOAD_SPARE_BYTES: u64 = 8 << 20;
const LOG_TAIL_LINES: usize = 40;

/// A script for [`System`]: these parts, behind functions that scripts have in common.
pub fn script(parts: &[&str]) -> String {
    FUNCTIONS.to_owned() + &parts.concat()
}

/// A system that can be booted again and again.
#[derive(Debug)]
pub struct System {
    scratch: ScratchDir,
    kernel: Kernel,
    parameters: String,
    disks: Vec<Disk>,
}

#[derive(Debug)]
struct Disk {
    file: PathBuf,
    format: &'static str,
    bus: Bus,
    serial: Option<String>,
}

/// A release of the distribution, as a system that is installed and as a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// That of this machine.
    Own,
    /// A newer one, where there is one: Debian 13 on Debian 12. Its system has programs that make disks out of disks (LVM,
    /// mdadm and so on), and boots with the kernel of this machine's release too.
    Newer,
    /// An older one that servers still run: Debian 11 on Debian 12. Only `scripts/setup.sh older` makes it.
    Older,
}

/// When a boot ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until<'a> {
    /// The guest has powered off or asked for a reboot.
    PowerOff,
    /// The power is cut as soon as the script has written a line that starts with this.
    Line(&'a str),
}

/// What the script has written in one boot.
#[derive(Debug)]
pub struct Said {
    text: String,
    log: String,
}

impl System {
    /// A system of this machine's release with its kernel, as it is right after its installation. The guest sees the
    /// directory `payload` read-only as `/mnt`, and runs `/mnt/run PHASE` with `sh` at the end of each boot, with its
    /// output going to the host.
    ///
    /// # Errors
    /// [`ErrorKind::Setup`] where `scripts/setup.sh` has not been run.
    pub fn new(payload: &Path) -> Result<Self> {
        Self::of(Release::Own, Release::Own, payload)
    }

    /// As [`new`](Self::new), of this release with the kernel of that one.
    ///
    /// # Errors
    /// [`ErrorKind::Setup`] where `scripts/setup.sh` has not been run, or without the argument that this release needs.
    pub fn of(release: Release, kernel: Release, payload: &Path) -> Result<Self> {
        Self::with_root(&release.disk()?, kernel, payload)
    }

    /// As [`of`](Self::of), with a copy of such a system's root: a raw file, which is not written to and stays until the end.
    ///
    /// # Errors
    /// As there.
    pub fn with_root(disk: &Path, kernel: Release, payload: &Path) -> Result<Self> {
        let scratch = ScratchDir::new("smc-system")?;
        let root = scratch.join("root.qcow2");
        make_overlay(disk, &root)?;
        let payload_disk = scratch.join("payload.img");
        make_payload_disk(payload, &payload_disk)?;
        let mut system = Self {
            kernel: Kernel::unpacked(kernel.kernel())?,
            scratch,
            parameters: String::new(),
            disks: Vec::new(),
        };
        system.add(&root, "qcow2", Bus::Virtio, Some("root"));
        system.add(&payload_disk, "raw", Bus::Virtio, Some("payload"));
        Ok(system)
    }

    /// The release that `uname -r` shows in it.
    pub fn kernel(&self) -> &str {
        self.kernel.version()
    }

    /// Runs the script instead of systemd: boots in seconds, and nothing else runs. When the script ends, so does the boot.
    pub fn without_systemd(&mut self) {
        self.parameters += " smc.init=script";
    }

    /// Gives it one more disk, which the guest finds as `/dev/disk/by-id/virtio-SERIAL`.
    pub fn attach(&mut self, file: &Path, serial: &str) {
        self.attach_to(Bus::Virtio, file, serial);
    }

    /// Gives it one more disk on this bus, which the guest finds by its serial number.
    pub fn attach_to(&mut self, bus: Bus, file: &Path, serial: &str) {
        self.add(file, "raw", bus, Some(serial));
    }

    /// Gives it one more virtio disk that has no serial number. The guest finds it by its place behind the others.
    pub fn attach_without_serial(&mut self, file: &Path) {
        self.add(file, "raw", Bus::Virtio, None);
    }

    fn add(&mut self, file: &Path, format: &'static str, bus: Bus, serial: Option<&str>) {
        self.disks.push(Disk {
            file: file.to_path_buf(),
            format,
            bus,
            serial: serial.map(str::to_owned),
        });
    }

    fn machine(&self, phase: &str, console: &Path, options: &BootOptions) -> Result<Machine> {
        let archive = initramfs::build_with(&self.kernel.modules(&DRIVERS)?, INIT, &[])?;
        let initramfs = guest::write_initramfs(&self.scratch, &archive)?;
        let mut machine = Machine::new(options.accelerator()?, options.memory_mib);
        machine.processors(options.processors);
        // The second serial line, a file: the kernel's and systemd's messages, apart from the script's.
        machine.serial_file(console);
        for disk in &self.disks {
            let described = boot::Disk {
                source: &disk.file.display().to_string(),
                format: disk.format,
                snapshot: false,
                serial: disk.serial.as_deref(),
            };
            match &disk.serial {
                Some(serial) => machine.disk_on(disk.bus, &described, serial),
                None => machine.disk(&described),
            };
        }
        let parameters = format!("smc.phase={phase}{}", self.parameters);
        machine.kernel(&self.kernel.image(), &initramfs, "ttyS1", &parameters);
        Ok(machine)
    }

    /// Boots once and follows the script's output.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] if the boot does not end in time, [`ErrorKind::Guest`] if it ends before the line was
    /// written at which the power was to be cut. Both carry the ends of the output and of the console.
    pub fn boot(&self, phase: &str, until: Until<'_>, options: &BootOptions) -> Result<Said> {
        let console = self.scratch.join("console.log");
        let machine = self.machine(phase, &console, options)?;
        let run = guest::follow(machine, options.timeout, &mut |line, _| until.next(line));
        let log = fs::read(&console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let log = log.unwrap_or_default();
        let run = run.map_err(|error| {
            let log = process::tail(&log, LOG_TAIL_LINES);
            Error::new(
                error.kind(),
                format!("phase {phase}: {error}\nand its console with:\n{log}"),
            )
        })?;
        let said = Said {
            text: run.console,
            log,
        };
        if let (Until::Line(line), false) = (until, run.was_killed) {
            let found = said.describe();
            return Err(Error::new(
                ErrorKind::Guest,
                format!("phase {phase} ended before {line}:\n{found}"),
            ));
        }
        Ok(said)
    }
}

impl Until<'_> {
    fn next(self, line: &str) -> Next {
        match self {
            Self::Line(start) if line.starts_with(start) => Next::Kill,
            _ => Next::Continue,
        }
    }
}

impl Said {
    /// The rest of the first line that starts with `word` and a space, if there is one.
    pub fn value(&self, word: &str) -> Option<&str> {
        self.text
            .lines()
            .find_map(|line| line.strip_prefix(word)?.strip_prefix(' '))
            .map(str::trim)
    }

    /// Whether there is such a line of nothing but `word`.
    pub fn has(&self, word: &str) -> bool {
        self.text.lines().any(|line| line.trim_end() == word)
    }

    /// All that the script wrote.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it wrote, and the end of the console, for people.
    pub fn describe(&self) -> String {
        let log = process::tail(&self.log, LOG_TAIL_LINES);
        format!("{}\nthe console ended with:\n{log}", self.text)
    }
}

impl Release {
    /// A name for files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Newer => "newer",
            Self::Older => "older",
        }
    }

    /// The disk with the files of a server, with a kernel and a boot loader of its own, which is never to be written to.
    ///
    /// # Errors
    /// [`ErrorKind::Setup`] where `scripts/setup.sh servers` has not been run.
    pub(crate) fn server(self) -> Result<PathBuf> {
        let disk = kernel::cache_dir()
            .join("server-files")
            .join(self.name())
            .join("root.img");
        there(disk, "scripts/setup.sh servers")
    }

    fn kernel(self) -> PathBuf {
        let cache = kernel::cache_dir();
        match self {
            Self::Own => cache.join("kernel"),
            Self::Newer => cache.join("newer-system/kernel"),
            Self::Older => cache.join("older-system/kernel"),
        }
    }

    /// The disk with its root filesystem, which is never to be written to.
    ///
    /// # Errors
    /// [`ErrorKind::Setup`] where `scripts/setup.sh` has not been run.
    pub fn disk(self) -> Result<PathBuf> {
        let (directory, setup) = match self {
            Self::Own => ("debian", "make setup"),
            Self::Newer => ("newer-system/disk", "make setup"),
            Self::Older => ("older-system/disk", "scripts/setup.sh older"),
        };
        there(kernel::cache_dir().join(directory).join("root.img"), setup)
    }
}

/// A file that this part of the set-up makes.
fn there(file: PathBuf, setup: &str) -> Result<PathBuf> {
    if file.is_file() {
        return Ok(file);
    }
    let said = format!("no {}: run '{setup}'", file.display());
    Err(Error::new(ErrorKind::Setup, said))
}

/// An empty overlay over the cached root, which is never written to.
fn make_overlay(root: &Path, file: &Path) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
    process::run(command.arg(root).arg(file)).map(drop)
}

fn make_payload_disk(directory: &Path, file: &Path) -> Result<()> {
    let mut size_bytes = PAYLOAD_SPARE_BYTES;
    let context = || format!("list {}", directory.display());
    for entry in fs::read_dir(directory).context(context)? {
        size_bytes += entry.and_then(|entry| entry.metadata()).context(context)?.len();
    }
    let kib = (size_bytes + size_bytes / 16).div_ceil(1024);
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args([
        "-q",
        "-F",
        "-L",
        "smc-payload",
        "-O",
        "^has_journal",
        "-m",
        "0",
        "-d",
    ]);
    process::run(mkfs.arg(directory).arg(file).arg(format!("{kib}k"))).map(drop)
}
