//! One headless QEMU run from an NBD export, on an overlay that is thrown away.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::initramfs;
use crate::kernel::{self, Kernel};
use testkit::error::IoContext;
use testkit::guard::ScratchDir;
use testkit::process;
use testkit::{Error, ErrorKind, Result};

const QEMU: &str = "qemu-system-x86_64";
const POLL: Duration = Duration::from_millis(50);
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
const CONSOLE_TAIL_LINES: usize = 25;

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor, through `/dev/kvm`.
    Kvm,
    /// QEMU's translator: works everywhere, ten times slower.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

impl Accelerator {
    /// KVM where a small guest has been seen to run on it, otherwise TCG.
    ///
    /// A `/dev/kvm` that opens is no proof: in a nested machine guests may hang or crash on it. So one is
    /// started, and the verdict kept in the cache directory for this boot of the host and this QEMU.
    pub fn best() -> Result<Self> {
        static BEST: OnceLock<Accelerator> = OnceLock::new();
        if let Some(best) = BEST.get() {
            return Ok(*best);
        }
        let best = Self::find()?;
        Ok(*BEST.get_or_init(|| best))
    }

    fn find() -> Result<Self> {
        if fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
        {
            return Ok(Self::Tcg);
        }
        let file = kernel::cache_dir().join("kvm-verdict");
        let key = verdict_key()?;
        let known = fs::read_to_string(&file).unwrap_or_default();
        if let Some(verdict) = known.strip_prefix(&key) {
            return Ok(if verdict.trim() == "kvm" {
                Self::Kvm
            } else {
                Self::Tcg
            });
        }
        let verdict = if kvm_runs_a_guest()? { Self::Kvm } else { Self::Tcg };
        // Only a shortcut: where it cannot be kept, the next process probes again.
        let _ = fs::write(&file, format!("{key}{verdict}\n"));
        Ok(verdict)
    }

    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg", "-cpu", "qemu64"],
        }
    }
}

fn verdict_key() -> Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context(|| "read this boot's id")?;
    let version = process::run(Command::new(QEMU).arg("--version"))?;
    Ok(format!(
        "{} {}: ",
        boot.trim(),
        version.lines().next().unwrap_or_default()
    ))
}

fn kvm_runs_a_guest() -> Result<bool> {
    let kernel = Kernel::cached()?;
    let scratch = ScratchDir::new("smc-kvm-probe")?;
    let archive = initramfs::build(&kernel)?;
    let mut command = machine(Accelerator::Kvm, 128);
    KernelStart {
        kernel: &kernel,
        archive: &archive,
        console: "ttyS0",
        parameters: "smc.probe",
    }
    .add_to(&mut command, &scratch)?;
    match Guest::start(&mut command)?.watch(PROBE_TIMEOUT) {
        Ok(run) => Ok(run.console.contains("SMC-PROBE-OK")),
        Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
        Err(_) => Ok(false),
    }
}

/// How a machine starts without a boot loader.
pub(crate) struct KernelStart<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) archive: &'a [u8],
    /// The serial line that is the guest's console.
    pub(crate) console: &'a str,
    /// What else is on the kernel's command line.
    pub(crate) parameters: &'a str,
}

impl KernelStart<'_> {
    /// Makes `command` start like this; the archive is written to `scratch`.
    pub(crate) fn add_to(&self, command: &mut Command, scratch: &ScratchDir) -> Result<()> {
        let initrd = scratch.join("initramfs");
        fs::write(&initrd, self.archive).context(|| format!("write {}", initrd.display()))?;
        command.arg("-kernel").arg(self.kernel.image());
        command.arg("-initrd").arg(&initrd);
        let line = format!("console={} panic=-1 {}", self.console, self.parameters);
        command.arg("-append").arg(line);
        Ok(())
    }
}

/// Runs a guest of `kernel` and the initramfs `archive` alone until it powers off, and returns its console.
///
/// `parameters` join the kernel's command line. Through a virtio network card the guest reaches this machine's
/// 127.0.0.1 at 10.0.2.2, and nothing reaches the guest. Fails with
/// [`ErrorKind::Timeout`] if it does not end, and with [`ErrorKind::Guest`] if its console stays empty.
pub fn run_initramfs(
    kernel: &Kernel,
    archive: &[u8],
    parameters: &str,
    options: &BootOptions,
) -> Result<String> {
    let accelerator = options.accelerator.map_or_else(Accelerator::best, Ok)?;
    let scratch = ScratchDir::new("smc-initramfs")?;
    let mut command = machine(accelerator, options.memory_mib);
    // Without a ROM: nothing boots from this card.
    command.args(["-netdev", "user,id=net0"]);
    command.args(["-device", "virtio-net-pci,netdev=net0,romfile="]);
    KernelStart {
        kernel,
        archive,
        console: "ttyS0",
        parameters,
    }
    .add_to(&mut command, &scratch)?;
    let run = Guest::start(&mut command)?.watch(options.timeout)?;
    if run.console.is_empty() {
        let said = format!("the guest did not start ({})", run.end);
        return Err(Error::new(ErrorKind::Guest, said));
    }
    Ok(run.console)
}

pub(crate) fn machine(accelerator: Accelerator, memory_mib: u32) -> Command {
    let mut command = Command::new(QEMU);
    command.args([
        "-no-user-config",
        "-nodefaults",
        "-display",
        "none",
        "-monitor",
        "none",
    ]);
    command.args([
        "-serial",
        "stdio",
        "-no-reboot",
        "-smp",
        "1",
        "-m",
        &memory_mib.to_string(),
    ]);
    command.args(accelerator.arguments());
    command
}

/// The address of an export on a Unix socket, as QEMU and libnbd read it.
pub fn nbd_uri(socket: &Path, export: &str) -> String {
    format!(
        "nbd+unix:///{}?socket={}",
        percent(export),
        percent(&socket.to_string_lossy())
    )
}

/// Percent-encodes all but what a URI's path and query may hold as it is (RFC 3986, section 3.3), without `&` and `+`.
fn percent(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b'@' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// How to run a guest.
#[derive(Debug, Clone)]
pub struct BootOptions {
    /// The guest's memory in MiB.
    pub memory_mib: u32,
    /// From start to power-off; the guest is killed then.
    pub timeout: Duration,
    /// `None`: [`Accelerator::best`].
    pub accelerator: Option<Accelerator>,
}

impl Default for BootOptions {
    fn default() -> Self {
        Self {
            memory_mib: 192,
            timeout: Duration::from_secs(180),
            accelerator: None,
        }
    }
}

/// What a guest that booted has said.
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

/// The command that [`boot`] runs for `uri`.
pub fn boot_command(uri: &str, accelerator: Accelerator, options: &BootOptions) -> Command {
    let mut command = machine(accelerator, options.memory_mib);
    // A comma would end the option's value; doubled it stands for itself.
    let file = uri.replace(',', ",,");
    command
        .arg("-drive")
        .arg(format!("file={file},format=raw,if=virtio,snapshot=on"));
    command
}

/// Boots a [`crate::disk::BootDisk`] from the NBD export at `uri` and waits until the guest has powered off.
///
/// The guest writes to an overlay that QEMU throws away; the export is only read. Fails with
/// [`ErrorKind::Guest`] if the guest ends without having booted and with [`ErrorKind::Timeout`] if it does not end;
/// both carry the end of its console. Files that do not match are not an error: see [`BootReport::files_ok`].
pub fn boot(uri: &str, options: &BootOptions) -> Result<BootReport> {
    let accelerator = options.accelerator.map_or_else(Accelerator::best, Ok)?;
    let run = Guest::start(&mut boot_command(uri, accelerator, options))?.watch(options.timeout)?;
    run.report(accelerator).ok_or_else(|| {
        let said = format!(
            "the guest on {uri} did not boot ({}); {}",
            run.end,
            console_tail(&run.console)
        );
        Error::new(ErrorKind::Guest, said)
    })
}

fn console_tail(console: &str) -> String {
    match process::tail(console, CONSOLE_TAIL_LINES) {
        tail if tail.is_empty() => "it wrote nothing to its console".to_owned(),
        tail => format!("its console ended with:\n{tail}"),
    }
}

/// A running QEMU; killed when dropped.
pub(crate) struct Guest {
    child: Child,
    started: Instant,
    lines: Receiver<String>,
    stderr: Option<thread::JoinHandle<String>>,
}

/// A finished run.
pub(crate) struct Run {
    /// What was written to the first serial line.
    pub(crate) console: String,
    /// Whether we ended it, at the line that was waited for.
    pub(crate) was_cut: bool,
    booted: Option<Duration>,
    total: Duration,
    end: String,
}

impl Guest {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let started = Instant::now();
        let mut child = process::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let (sender, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(stdout).split(b'\n') {
                    let Ok(line) = line else { break };
                    if sender.send(clean(&line)).is_err() {
                        break;
                    }
                }
            });
        }
        let stderr = child.stderr.take().map(|mut pipe| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = pipe.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        Ok(Self {
            child,
            started,
            lines,
            stderr,
        })
    }

    /// Follows the console until QEMU closes it.
    fn watch(self, timeout: Duration) -> Result<Run> {
        self.watch_until(timeout, |_| false)
    }

    /// Follows the console until QEMU closes it, and kills QEMU at once at a line that `is_last`.
    pub(crate) fn watch_until(mut self, timeout: Duration, is_last: impl Fn(&str) -> bool) -> Result<Run> {
        let mut console = String::new();
        let mut booted = None;
        let mut was_cut = false;
        loop {
            match self.lines.recv_timeout(POLL) {
                Ok(line) => {
                    if line.contains("SMC-BOOT-OK") {
                        booted = Some(self.started.elapsed());
                    }
                    console += &line;
                    console.push('\n');
                    if !was_cut && is_last(&line) {
                        was_cut = true;
                        self.child.kill().context(|| format!("kill {QEMU}"))?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            process::check_interrupt()?;
            if self.started.elapsed() > timeout {
                let said = format!(
                    "the guest has not powered off after {timeout:?}; {}",
                    console_tail(&console)
                );
                return Err(Error::new(ErrorKind::Timeout, said));
            }
        }
        process::check_interrupt()?;
        let status = self.child.wait().context(|| format!("wait for {QEMU}"))?;
        let stderr = self
            .stderr
            .take()
            .and_then(|reader| reader.join().ok())
            .unwrap_or_default();
        let end = match (status.signal(), stderr.trim()) {
            (Some(signal), said) => format!("{QEMU} ended by signal {signal}: {said}"),
            (None, "") => format!("{QEMU}: {status}"),
            (None, said) => format!("{QEMU}: {status}: {said}"),
        };
        Ok(Run {
            console,
            was_cut,
            booted,
            total: self.started.elapsed(),
            end,
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Nothing in the guest is worth a clean shutdown: its overlay goes with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A console line as text, without carriage returns, escape sequences and other control characters.
fn clean(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut clean = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // A control sequence ends with its first letter.
            chars.by_ref().find(char::is_ascii_alphabetic);
        } else if c == '\t' || !c.is_control() {
            clean.push(c);
        }
    }
    clean
}

impl Run {
    /// `None` unless the guest has booted and then checked its files to the end.
    fn report(&self, accelerator: Accelerator) -> Option<BootReport> {
        let booted = after(&self.console, "SMC-BOOT-OK point=")?;
        let (point, kernel) = booted.rsplit_once(" kernel=")?;
        let good = after(&self.console, "SMC-FILES-OK n=");
        let count = good.or_else(|| after(&self.console, "SMC-FILES-BAD n="))?;
        Some(BootReport {
            console: self.console.clone(),
            seconds: self.booted?.as_secs_f64(),
            total_seconds: self.total.as_secs_f64(),
            point_in_time: point.to_owned(),
            kernel: kernel.trim().to_owned(),
            files_ok: good.is_some(),
            files: count.trim().parse().ok()?,
            accelerator,
        })
    }
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

    fn run(console: &str) -> Run {
        let booted = Some(Duration::from_secs(2));
        Run {
            console: console.to_owned(),
            was_cut: false,
            booted,
            total: Duration::from_secs(3),
            end: String::new(),
        }
    }

    #[test]
    fn export_names_survive_the_uri() {
        let uri = nbd_uri(Path::new("/run/a b.sock"), "web01/1:vda");
        assert_eq!(uri, "nbd+unix:///web01/1:vda?socket=/run/a%20b.sock");
    }

    #[test]
    fn reads_what_the_guest_said() {
        let console = "[ 1.0] x\nSMC-BOOT-OK point=before lunch kernel=6.1.0\nSMC-FILES-OK n=12\n";
        let report = run(console).report(Accelerator::Tcg).unwrap();
        assert_eq!(
            (report.point_in_time.as_str(), report.kernel.as_str()),
            ("before lunch", "6.1.0")
        );
        assert_eq!((report.files_ok, report.files), (true, 12));
    }

    #[test]
    fn a_guest_that_stops_before_checking_its_files_has_not_booted() {
        assert!(
            run("SMC-BOOT-OK point=a kernel=6.1.0\n")
                .report(Accelerator::Tcg)
                .is_none()
        );
        assert!(run("SMC-FILES-OK n=12\n").report(Accelerator::Tcg).is_none());
        let bad = run("SMC-BOOT-OK point=a kernel=6.1.0\nSMC-FILES-BAD n=12\n")
            .report(Accelerator::Tcg)
            .unwrap();
        assert!(!bad.files_ok);
    }

    #[test]
    fn console_text_loses_its_control_characters() {
        assert_eq!(clean(b"\x1b[2J\x1b[01;01Hboot:\r"), "boot:");
    }
}
