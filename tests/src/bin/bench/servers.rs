//! One disk in the forms in which smc and its rivals keep it, and the servers of these.

use crate::fill::{self, Layout};
use crate::measure::run;
use anyhow::{Context, Result, ensure};
use boot::nbd_uri;
use smc_tests::{Bench, program};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::process::Server;

/// Seconds after which a client is killed: a server that hangs must not hang the bench.
const CLIENT_SECONDS: &str = "600";

/// What the disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Noise,
    Files,
}

/// Who serves it, from what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    Ours,
    Qcow2,
    Qcow2Zstd,
    Nbdkit,
    /// Zeros from one thread, whatever the disk holds: the ceiling of what a client can take.
    Null,
}

/// The same disk in every form: a sparse raw file, qcow2, compressed qcow2, and a store of ours.
#[derive(Debug)]
pub struct Forms {
    bench: Bench,
    pub content: Content,
    size_bytes: u64,
}

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Serving {
    pub contender: Contender,
    pub uri: String,
    _server: Server,
}

impl Content {
    pub fn name(self) -> &'static str {
        match self {
            Self::Noise => "incompressible",
            Self::Files => "compressible",
        }
    }

    /// Everybody, ours first. qemu-img stores noise as it is, compressed or not, and the ceiling does not depend on
    /// the data: each is measured once.
    pub fn contenders(self) -> &'static [Contender] {
        match self {
            Self::Noise => &[
                Contender::Ours,
                Contender::Qcow2,
                Contender::Nbdkit,
                Contender::Null,
            ],
            Self::Files => &[
                Contender::Ours,
                Contender::Qcow2,
                Contender::Qcow2Zstd,
                Contender::Nbdkit,
            ],
        }
    }
}

impl Contender {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "smc-image serve",
            Self::Qcow2 => "qemu-nbd, qcow2",
            Self::Qcow2Zstd => "qemu-nbd, qcow2 with zstd",
            Self::Nbdkit => "nbdkit file, raw",
            Self::Null => "nbdkit null, 1 thread (the client's ceiling)",
        }
    }

    fn file_name(self) -> &'static str {
        match self {
            Self::Ours => "store",
            Self::Qcow2 => "plain.qcow2",
            Self::Qcow2Zstd => "zstd.qcow2",
            Self::Nbdkit => "disk.raw",
            Self::Null => "null",
        }
    }
}

impl Forms {
    /// Makes the disk, two thirds of it data, and stores it in every form that is served.
    pub fn new(content: Content, size_bytes: u64) -> Result<Self> {
        let bench = Bench::new("bench-nbd")?;
        let disk = bench.disk(Contender::Nbdkit.file_name(), size_bytes)?;
        match content {
            Content::Noise => fill::with_noise(&disk, Layout::WithHoles)?,
            Content::Files => fill::with_files(&disk, Layout::WithHoles)?,
        }
        bench.sync(&[("vda", disk.path())])?;
        disk.device.detach()?;
        let forms = Self {
            bench,
            content,
            size_bytes,
        };
        for &contender in content.contenders() {
            forms.convert(contender)?;
        }
        Ok(forms)
    }

    fn convert(&self, contender: Contender) -> Result<()> {
        let options: &[&str] = match contender {
            Contender::Ours | Contender::Nbdkit | Contender::Null => return Ok(()),
            Contender::Qcow2 => &[],
            Contender::Qcow2Zstd => &["-c", "-o", "compression_type=zstd"],
        };
        run(Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args(options)
            .arg(self.file(Contender::Nbdkit))
            .arg(self.file(contender)))
        .map(drop)
    }

    /// What the contender serves.
    fn file(&self, contender: Contender) -> PathBuf {
        self.bench.dir.join(contender.file_name())
    }

    /// Starts one server.
    pub fn serve(&self, contender: Contender) -> Result<Serving> {
        let socket = self.file(contender).with_extension("sock");
        remove_stale(&socket)?;
        let log = socket.with_extension("log");
        let mut command = self.command(contender, &socket);
        let server = Server::start_on_socket(&mut command, &socket, &log)?;
        Ok(Serving {
            contender,
            uri: nbd_uri(&socket, ""),
            _server: server,
        })
    }

    fn command(&self, contender: Contender, socket: &Path) -> Command {
        let file = self.file(contender);
        let mut command;
        match contender {
            Contender::Ours => {
                command = Command::new(program("smc-image"));
                command.arg("--store").arg(file);
                command.args(["serve", "web01/1:vda", "--socket"]).arg(socket);
            }
            Contender::Qcow2 | Contender::Qcow2Zstd => {
                command = Command::new("qemu-nbd");
                command.args(["-r", "-t", "-e", "8", "-f", "qcow2", "-k"]);
                command.arg(socket).arg(file);
            }
            Contender::Nbdkit => {
                command = Command::new("nbdkit");
                command.args(["-f", "-r", "-U"]).arg(socket);
                command.arg("file").arg(file);
            }
            Contender::Null => {
                command = Command::new("nbdkit");
                command.args(["-f", "-r", "-t", "1", "-U"]).arg(socket);
                command.arg("null").arg(self.size_bytes.to_string());
            }
        }
        command
    }

    /// Reads the whole disk once from a server and compares it: from here on its caches are warm, and it is known
    /// to serve what the others serve.
    pub fn check(&self, serving: &Serving) -> Result<()> {
        if serving.contender == Contender::Null {
            return Ok(());
        }
        run(client("qemu-img")
            .args(["compare", "-f", "raw", "-F", "raw"])
            .arg(self.file(Contender::Nbdkit))
            .arg(&serving.uri))
        .with_context(|| format!("{} serves something else", serving.contender.name()))
        .map(drop)
    }
}

fn remove_stale(socket: &Path) -> Result<()> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", socket.display()))
        }
        _ => Ok(()),
    }
}

/// A client that is killed when it takes far too long.
pub fn client(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args([CLIENT_SECONDS, program]);
    command
}

/// The first line of what a program says about its version.
pub fn version(program: &str) -> Result<String> {
    let output = run(Command::new(program).arg("--version"))?;
    let text = String::from_utf8(output)?;
    let line = text.lines().next().unwrap_or_default().trim();
    ensure!(!line.is_empty(), "{program} --version says nothing");
    Ok(line.to_owned())
}
