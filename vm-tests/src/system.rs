//! A freshly installed Debian or Ubuntu with systemd, which runs a script of ours, boot after boot.
//!
//! Its root is an overlay over the disk that `scripts/setup.sh` made with debootstrap, its kernel the cached one. What
//! the guest writes stays for the next boot and goes with the [`System`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guest::{self, BootOptions};
use crate::initramfs;
use crate::kernel::{self, Kernel};
use boot::{Machine, Next};
use testkit::error::IoContext;
use testkit::guard::ScratchDir;
use testkit::process;
use testkit::{Error, ErrorKind, Result};

const INIT: &str = include_str!("../guest/system-init.sh");
const DRIVERS: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
/// Room beside the payload's files for the filesystem's own.
const PAYLOAD_SPARE_BYTES: u64 = 8 << 20;
const LOG_TAIL_LINES: usize = 40;

/// A system that can be booted again and again.
#[derive(Debug)]
pub struct System {
    scratch: ScratchDir,
    kernel: Kernel,
    disks: Vec<Disk>,
}

#[derive(Debug)]
struct Disk {
    file: PathBuf,
    format: &'static str,
    serial: String,
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
    /// A system as it is right after its installation. The guest sees the directory `payload` read-only as `/mnt`, and
    /// runs `/mnt/run PHASE` with `sh` at the end of each boot, with its output going to the host.
    ///
    /// # Errors
    /// [`ErrorKind::Setup`] where `scripts/setup.sh` has not been run.
    pub fn new(payload: &Path) -> Result<Self> {
        let scratch = ScratchDir::new("smc-system")?;
        let root = scratch.join("root.qcow2");
        make_overlay(&root)?;
        let payload_disk = scratch.join("payload.img");
        make_payload_disk(payload, &payload_disk)?;
        let mut system = Self {
            kernel: Kernel::cached()?,
            scratch,
            disks: Vec::new(),
        };
        system.add(&root, "qcow2", "root");
        system.add(&payload_disk, "raw", "payload");
        Ok(system)
    }

    /// Gives it one more disk, which the guest finds as `/dev/disk/by-id/virtio-SERIAL`.
    pub fn attach(&mut self, file: &Path, serial: &str) {
        self.add(file, "raw", serial);
    }

    fn add(&mut self, file: &Path, format: &'static str, serial: &str) {
        self.disks.push(Disk {
            file: file.to_path_buf(),
            format,
            serial: serial.to_owned(),
        });
    }

    /// Boots once and follows the script's output.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] if the boot does not end in time, [`ErrorKind::Guest`] if it ends before the line was
    /// written at which the power was to be cut. Both carry the ends of the output and of the console.
    pub fn boot(&self, phase: &str, until: Until<'_>, options: &BootOptions) -> Result<Said> {
        let console = self.scratch.join("console.log");
        let archive = initramfs::build_with(&self.kernel.modules(&DRIVERS)?, INIT, &[])?;
        let initramfs = guest::write_initramfs(&self.scratch, &archive)?;
        let mut machine = Machine::new(options.accelerator()?, options.memory_mib);
        // The second serial line, a file: the kernel's and systemd's messages, apart from the script's.
        machine.serial_file(&console);
        for disk in &self.disks {
            machine.disk(&boot::Disk {
                source: &disk.file.display().to_string(),
                format: disk.format,
                snapshot: false,
                serial: Some(&disk.serial),
            });
        }
        let parameters = format!("smc.phase={phase}");
        machine.kernel(&self.kernel.image(), &initramfs, "ttyS1", &parameters);
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

/// An empty overlay over the cached root, which is never written to.
fn make_overlay(file: &Path) -> Result<()> {
    let root = kernel::cache_dir().join("debian/root.img");
    if !root.is_file() {
        let said = format!("no {}: run 'make setup'", root.display());
        return Err(Error::new(ErrorKind::Setup, said));
    }
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
