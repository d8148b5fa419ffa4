//! Formats that `qemu-img` writes.

use crate::catalog::{SingleDisk, limits};
use crate::commands::serve::default_uri;
use crate::exit::Advise;
use anyhow::{Context as _, bail};
use cli::interrupt::{Interrupt, Interrupted};
use cli::progress::Progress;
use imagefmt::Disk;
use nbd::{Server, ShutdownHandle};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long a look at the converter and at signals may be apart.
const NAP: Duration = Duration::from_millis(20);

/// Has `qemu-img` read the disk from an NBD server of ours and write it as `options` say to the existing `file`, whose
/// path is absolute: others could be taken for a protocol's.
///
/// # Errors
/// A `qemu-img` that is missing or fails, what cannot be read of the image, an interrupt.
pub fn convert(
    disk: &Disk,
    options: &[&str],
    file: &Path,
    progress: &Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let catalog = Arc::new(SingleDisk::new(disk.clone()));
    let failures = catalog.failures().clone();
    let server = PrivateServer::start(catalog)?;
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-p", "-W", "-f", "raw"]).args(options);
    command.arg(default_uri(&server.socket)).arg(file);
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
        let mut server = Server::new(catalog, limits())?;
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
    fn converter_progress_is_understood() {
        assert_eq!(hundredths("    (12.34/100%)"), Some(1234));
        assert_eq!(hundredths("(100.00/100%)"), Some(10_000));
        assert_eq!(hundredths("qemu-img: nonsense"), None);
    }
}
