//! `smc-image export`: a disk of an image as a file that needs no store.

use crate::catalog::SingleDisk;
use crate::commands::serve::default_uri;
use crate::context::Context;
use crate::copy::write::{Target, write_disk};
use crate::exit::Advise;
use anyhow::{Context as _, bail};
use blockio::{Device, LockedFile};
use clap::ValueEnum;
use cli::interrupt::{Interrupt, Interrupted};
use cli::output;
use cli::progress::Progress;
use cli::units;
use imagefmt::{Disk, ImageRef};
use nbd::{Limits, Server, ShutdownHandle};
use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat2};
use serde::Serialize;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long a look at the converter and at signals may be apart.
const NAP: Duration = Duration::from_millis(20);

/// Write a disk of an image to a file
///
/// The file appears under its name when it is complete and durable; until then it is FILE.part.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, with :DISK where it has several disks
    #[arg(value_name = "IMAGE")]
    image: ImageRef,
    /// The file to write
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Format of the file [default: by its extension, else raw]
    #[arg(long)]
    format: Option<Format>,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

/// A disk image format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// The disk's bytes as they are, in a sparse file
    Raw,
    /// QEMU
    Qcow2,
    /// Virtual PC, Azure
    Vhd,
    /// Hyper-V
    Vhdx,
    /// VMware
    Vmdk,
}

impl Format {
    /// The format that a file's extension stands for.
    fn of(file: &Path) -> Self {
        let extension = file
            .extension()
            .and_then(OsStr::to_str)
            .map(str::to_ascii_lowercase);
        let named = |format: &Self| {
            format
                .to_possible_value()
                .is_some_and(|value| Some(value.get_name()) == extension.as_deref())
        };
        Self::value_variants()
            .iter()
            .copied()
            .find(named)
            .unwrap_or(Self::Raw)
    }

    /// What `qemu-img convert` is told.
    fn converter_options(self) -> &'static [&'static str] {
        match self {
            Self::Raw => &["-O", "raw"],
            Self::Qcow2 => &["-O", "qcow2"],
            // Without force_size a disk's size is rounded up to what cylinders, heads and sectors can express.
            Self::Vhd => &["-O", "vpc", "-o", "subformat=dynamic,force_size=on"],
            Self::Vhdx => &["-O", "vhdx", "-o", "subformat=dynamic"],
            Self::Vmdk => &["-O", "vmdk"],
        }
    }
}

/// What `--json` shows at the end.
#[derive(Debug, Serialize)]
struct Done<'a> {
    image: &'a str,
    file: &'a Path,
    format: Format,
    size_bytes: u64,
    digest: String,
}

/// Writes the file.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let disk = context.open_disk(&args.image)?;
    let format = args.format.unwrap_or_else(|| Format::of(&args.file));
    refuse_occupied(&args.file, args.force)?;
    let interrupt = Interrupt::install()?;
    let part = PartFile::create(&args.file)?;
    let progress = Progress::bytes(disk.size_bytes(), format!("export {}", disk.label()));
    match format {
        Format::Raw => write_raw(&disk, &part, &progress, &interrupt)?,
        _ => convert(&disk, format, &part.path, &progress, &interrupt)?,
    }
    part.finish(args.force)?;
    progress.clear();
    // Everything that was written was read through this disk's tree and verified against its root.
    let digest = disk.digest().to_string();
    if context.json {
        let done = Done {
            image: disk.label(),
            file: &args.file,
            format,
            size_bytes: disk.size_bytes(),
            digest,
        };
        output::json(&done)?;
    } else {
        let size = units::size(disk.size_bytes());
        output::line(format!(
            "exported {} ({size}, {digest}) to {}",
            disk.label(),
            args.file.display()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn refuse_occupied(file: &Path, force: bool) -> anyhow::Result<()> {
    match fs::metadata(file) {
        Ok(found) if !found.is_file() => Err(anyhow::anyhow!("{} is not a regular file", file.display()))
            .advise("to write to a device, use restore"),
        Ok(_) if !force => Err(occupied(file)),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("look at {}", file.display())),
    }
}

fn occupied(file: &Path) -> anyhow::Error {
    let exists = Err::<(), _>(anyhow::anyhow!("{} exists", file.display()));
    exists
        .advise("choose another name, or replace it with --force")
        .expect_err("it was made an error")
}

/// The file while it is being written; removed when dropped unfinished.
#[derive(Debug)]
struct PartFile {
    target: PathBuf,
    path: PathBuf,
    file: LockedFile,
    finished: bool,
}

impl PartFile {
    /// Makes an empty `target.part`, and holds it against another export.
    fn create(target: &Path) -> anyhow::Result<Self> {
        let mut name = target.file_name().context("FILE has no name")?.to_owned();
        name.push(".part");
        let path = target.with_file_name(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let file = file.with_context(|| format!("create {}", path.display()))?;
        let file = match LockedFile::try_lock(file) {
            Ok(file) => file,
            Err((_, error)) if error.kind() == io::ErrorKind::WouldBlock => {
                bail!("another export is writing {}", path.display())
            }
            Err((_, error)) => return Err(error).with_context(|| format!("lock {}", path.display())),
        };
        let part = Self {
            target: target.to_owned(),
            path,
            file,
            finished: false,
        };
        part.file
            .set_len(0)
            .with_context(|| format!("truncate {}", part.path.display()))?;
        Ok(part)
    }

    /// Makes the file durable and gives it its name.
    fn finish(mut self, force: bool) -> anyhow::Result<()> {
        self.file
            .sync_all()
            .with_context(|| format!("sync {}", self.path.display()))?;
        self.rename(force)?;
        self.finished = true;
        let parent = match self.target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let synced = File::open(parent).and_then(|parent| parent.sync_all());
        synced.with_context(|| format!("sync {}", parent.display()))
    }

    fn rename(&self, force: bool) -> anyhow::Result<()> {
        let flags = if force {
            RenameFlags::empty()
        } else {
            RenameFlags::RENAME_NOREPLACE
        };
        let here = nix::fcntl::AT_FDCWD;
        let renamed = match renameat2(here, &self.path, here, &self.target, flags) {
            // Not every filesystem knows the flag; then the look before has to do.
            Err(Errno::EINVAL) if !force => {
                refuse_occupied(&self.target, force)?;
                renameat2(here, &self.path, here, &self.target, RenameFlags::empty())
            }
            Err(Errno::EEXIST) => return Err(occupied(&self.target)),
            renamed => renamed,
        };
        renamed.with_context(|| format!("rename {} to {}", self.path.display(), self.target.display()))
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Writes what the disk holds at its place; the rest is a hole.
fn write_raw(disk: &Disk, part: &PartFile, progress: &Progress, interrupt: &Interrupt) -> anyhow::Result<()> {
    let size = disk.size_bytes();
    part.file.set_len(size).context("set the file's size")?;
    let file = blockio::open_exclusive(&part.path)?;
    let target = Target {
        file: &file,
        alignment: Device::open(&part.path)?.alignment(),
        is_zero: true,
    };
    write_disk(disk, target, interrupt, progress)?;
    Ok(())
}

/// Has `qemu-img` read the disk from an NBD server of ours and write it in `format`.
fn convert(
    disk: &Disk,
    format: Format,
    part: &Path,
    progress: &Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let catalog = Arc::new(SingleDisk::new(disk.clone()));
    let failures = catalog.failures().clone();
    let server = PrivateServer::start(catalog)?;
    let mut command = Command::new("qemu-img");
    command
        .args(["convert", "-p", "-W", "-f", "raw"])
        .args(format.converter_options());
    command.arg(default_uri(&server.socket)).arg(part);
    let converted = run_converter(command, disk.size_bytes(), progress, interrupt);
    server.stop()?;
    converted.map_err(|error| match failures.take_first() {
        Some(cause) => anyhow::Error::new(cause).context("export stopped at what cannot be read"),
        None => error,
    })
}

/// An NBD server on a socket that only we can reach.
#[derive(Debug)]
struct PrivateServer {
    socket: PathBuf,
    handle: ShutdownHandle,
    thread: JoinHandle<Result<(), nbd::ServeError>>,
    _dir: tempfile::TempDir,
}

impl PrivateServer {
    fn start(catalog: Arc<SingleDisk>) -> anyhow::Result<Self> {
        // Made with mode 0700.
        let dir = tempfile::Builder::new()
            .prefix("smc-export-")
            .tempdir()
            .context("make a temporary directory")?;
        let socket = dir.path().join("nbd.sock");
        let mut server = Server::new(catalog, Limits::default())?;
        server.listen_unix(&socket)?;
        let handle = server.shutdown_handle();
        let thread = thread::Builder::new()
            .name("nbd".to_owned())
            .spawn(|| server.run());
        Ok(Self {
            socket,
            handle,
            thread: thread.context("start a thread")?,
            _dir: dir,
        })
    }

    fn stop(self) -> anyhow::Result<()> {
        self.handle.shutdown();
        self.thread.join().unwrap_or_else(|_| Ok(()))?;
        Ok(())
    }
}

/// Runs the converter to its end, or ends it when somebody asks to stop.
fn run_converter(
    mut command: Command,
    size_bytes: u64,
    progress: &Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(anyhow::anyhow!(
                "qemu-img is not installed, and only it writes this format"
            ))
            .advise("install qemu-utils, or export with --format raw");
        }
        child => child.context("start qemu-img")?,
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(move || stdout.map(|pipe| follow(pipe, size_bytes, progress)));
        let complaint = scope.spawn(move || stderr.map(io::read_to_string));
        let status = wait(&mut child, interrupt)?;
        let complaint = complaint
            .join()
            .ok()
            .flatten()
            .and_then(Result::ok)
            .unwrap_or_default();
        if !status.success() {
            bail!("qemu-img failed ({status}): {}", complaint.trim());
        }
        Ok(())
    })
}

fn wait(child: &mut Child, interrupt: &Interrupt) -> anyhow::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context("wait for qemu-img")? {
            // Ctrl-C reaches qemu-img too, and it may be the first to go.
            interrupt.check()?;
            return Ok(status);
        }
        if interrupt.is_set() {
            child.kill().context("end qemu-img")?;
            child.wait().context("wait for qemu-img")?;
            return Err(Interrupted.into());
        }
        thread::sleep(NAP);
    }
}

/// Turns the converter's progress, `    (12.34/100%)` and a carriage return each time, into ours.
fn follow(mut pipe: impl Read, size_bytes: u64, progress: &Progress) {
    let mut text = String::new();
    let mut buffer = [0; 256];
    while let Ok(len @ 1..) = pipe.read(&mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..len]));
        while let Some((line, rest)) = text.split_once('\r') {
            if let Some(hundredths) = hundredths(line) {
                progress.set(
                    (u128::from(size_bytes) * u128::from(hundredths) / 10_000)
                        .try_into()
                        .unwrap_or(size_bytes),
                );
            }
            text = rest.to_owned();
        }
    }
}

/// `(12.34/100%)` as 1234.
fn hundredths(line: &str) -> Option<u64> {
    let (whole, rest) = line
        .trim()
        .strip_prefix('(')?
        .strip_suffix("/100%)")?
        .split_once('.')?;
    Some(whole.parse::<u64>().ok()?.checked_mul(100)? + rest.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_follows_the_extension() {
        assert_eq!(Format::of(Path::new("a/b.QCOW2")), Format::Qcow2);
        assert_eq!(Format::of(Path::new("b.vhd")), Format::Vhd);
        assert_eq!(Format::of(Path::new("b.img")), Format::Raw);
        assert_eq!(Format::of(Path::new("vmdk")), Format::Raw);
    }

    #[test]
    fn converter_progress_is_understood() {
        assert_eq!(hundredths("    (12.34/100%)"), Some(1234));
        assert_eq!(hundredths("(100.00/100%)"), Some(10_000));
        assert_eq!(hundredths("qemu-img: nonsense"), None);
    }
}
