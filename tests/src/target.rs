//! A target on this machine, sources that are enrolled there, and a line between them that is cut on demand.

use crate::{Disk, program};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use testkit::guard::ScratchDir;
use testkit::process::{Server, run, wait_for};

/// A target, whose service may be running.
#[derive(Debug)]
pub struct Target {
    /// Everything lies in here.
    pub dir: ScratchDir,
    /// Where it listens.
    pub address: SocketAddr,
    settings: String,
    server: Option<Server>,
}

impl Target {
    /// A target that runs, with more lines in its configuration.
    ///
    /// # Errors
    /// What keeps it from running.
    pub fn new(name: &str, settings: &str) -> Result<Target> {
        let dir = ScratchDir::new(name)?;
        fs::create_dir(dir.join("state"))?;
        let mut target = Target {
            dir,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            settings: settings.to_owned(),
            server: None,
        };
        target.start()?;
        let log = target.dir.join("serve.log");
        let mut found = None;
        wait_for("the target listens", || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let address = said.lines().find_map(|line| line.split("listening at ").nth(1));
            found = address.and_then(|address| address.trim().parse().ok());
            found.is_some()
        });
        target.address = found.context("it does not say where it listens")?;
        target.write_config()?;
        Ok(target)
    }

    fn config(&self) -> PathBuf {
        self.dir.join("smc-store.toml")
    }

    fn write_config(&self) -> Result<()> {
        let (stores, state) = (self.dir.join("stores"), self.dir.join("state"));
        let text = format!(
            "stores = '{}'\nstate_dir = '{}'\nlisten = '{}'\n{}\n",
            stores.display(),
            state.display(),
            self.address,
            self.settings
        );
        Ok(fs::write(self.config(), text)?)
    }

    /// Changes the configuration; it counts from the next start on.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn configure(&mut self, settings: &str) -> Result<()> {
        self.settings = settings.to_owned();
        self.write_config()
    }

    /// Starts the service.
    ///
    /// # Errors
    /// A program that cannot be started.
    pub fn start(&mut self) -> Result<()> {
        self.write_config()?;
        self.server = Some(Server::start(
            &mut self.command(&["serve"]),
            &self.dir.join("serve.log"),
        )?);
        if self.address.port() != 0 {
            wait_for("the target listens", || TcpStream::connect(self.address).is_ok());
        }
        Ok(())
    }

    /// Kills the service, by SIGKILL.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Asks the service to end; its exit code.
    ///
    /// # Errors
    /// One that does not end.
    pub fn stop(&mut self) -> Result<Option<i32>> {
        let server = self.server.take().context("it does not run")?;
        Ok(server.stop()?)
    }

    /// A command of smc-store.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("smc-store"));
        command.arg("--config").arg(self.config()).args(args);
        command
    }

    /// `smc-store ls --json`.
    ///
    /// # Errors
    /// A program that fails.
    pub fn list(&self) -> Result<Value> {
        Ok(serde_json::from_str(&run(&mut self.command(&["ls", "--json"]))?)?)
    }

    /// The store of a source.
    pub fn store(&self, source: &str) -> PathBuf {
        self.dir.join("stores").join(source)
    }

    /// What the service has written.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("serve.log")).unwrap_or_default()
    }

    /// Enrols a source, which reaches the target at an address.
    ///
    /// # Errors
    /// A program that fails.
    pub fn enrol(&self, source: &str, address: SocketAddr) -> Result<Source> {
        let line = run(&mut self.command(&["enrol", source, "--address", &address.to_string()]))?;
        let directory = self.dir.join(format!("source-{source}"));
        let mut add = Command::new(program("smcd"));
        add.args(["target", "add", "backup", line.trim(), "--targets-directory"])
            .arg(&directory);
        run(&mut add)?;
        Ok(Source {
            name: source.to_owned(),
            directory,
            store: self.store(source),
        })
    }
}

/// A source that is enrolled at a target, which it calls `backup`.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name at the target.
    pub name: String,
    /// Where it keeps what it knows of targets.
    pub directory: PathBuf,
    store: PathBuf,
}

impl Source {
    /// `smcd sync` of a disk, as `vda` of job `web`, to the target.
    pub fn sync_command(&self, disk: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(program("smcd"));
        command.args([
            "sync",
            "--target",
            "backup",
            "--job",
            "web",
            "--json",
            "--targets-directory",
        ]);
        command
            .arg(&self.directory)
            .arg("--disk")
            .arg(format!("vda={}", disk.display()))
            .args(more);
        command
    }

    /// A sync that has to succeed; what it reports.
    ///
    /// # Errors
    /// A sync that fails.
    pub fn sync(&self, disk: &Disk, more: &[&str]) -> Result<Value> {
        let output = self.sync_command(disk.path(), more).output()?;
        ensure!(
            output.status.success(),
            "smcd sync: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Runs `smc-image` on the source's store at the target.
    ///
    /// # Errors
    /// A program that cannot be started.
    pub fn image(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(program("smc-image"));
        Ok(command.arg("--store").arg(&self.store).args(args).output()?)
    }

    /// Compares an image at the target with a disk, byte for byte by digest, and with itself.
    ///
    /// # Errors
    /// An image that is not what the disk holds.
    pub fn check(&self, image: &str, disk: &Path) -> Result<()> {
        let against = disk.display().to_string();
        let output = self.image(&["verify", image, "--against", &against])?;
        ensure!(output.status.success(), "smc-image verify {image}: {output:?}");
        Ok(())
    }
}

/// A line to a target that can be cut: every connection at once, after so many bytes, again and again.
#[derive(Debug)]
pub struct Line {
    /// Where sources connect to.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    /// Bytes from the source after which the line is cut; 0 for never.
    cut_after: AtomicU64,
    passed: AtomicU64,
    cuts: AtomicU64,
    is_once: AtomicBool,
    is_down: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Line {
    /// A line to an address.
    ///
    /// # Errors
    /// An address that cannot be listened at.
    pub fn to(target: SocketAddr) -> Result<Line> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target,
            cut_after: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            is_once: AtomicBool::new(false),
            is_down: AtomicBool::new(false),
            open: Mutex::new(Vec::new()),
        });
        let own = shared.clone();
        thread::spawn(move || {
            for accepted in listener.incoming().flatten() {
                own.carry(accepted);
            }
        });
        Ok(Line { address, shared })
    }

    /// Cuts the line each time that so many bytes have come from the source.
    pub fn cut_every(&self, bytes: u64) {
        self.shared.passed.store(0, Ordering::Relaxed);
        self.shared.cut_after.store(bytes, Ordering::Relaxed);
    }

    /// Cuts the line once, when so many bytes have come from the source from now on.
    pub fn cut_once_after(&self, bytes: u64) {
        self.cut_every(bytes);
        self.shared.is_once.store(true, Ordering::Relaxed);
    }

    /// Takes the line down, or up again.
    pub fn set_down(&self, is_down: bool) {
        self.shared.is_down.store(is_down, Ordering::Relaxed);
        if is_down {
            self.shared.cut();
        }
    }

    /// How often it was cut.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::Relaxed)
    }

    /// Bytes that have come from the source since [`cut_every`](Self::cut_every).
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::Relaxed);
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn carry(self: &Arc<Self>, source: TcpStream) {
        if self.is_down.load(Ordering::Relaxed) {
            return;
        }
        let Ok(target) = TcpStream::connect(self.target) else {
            return;
        };
        let (Ok(source_too), Ok(target_too)) = (source.try_clone(), target.try_clone()) else {
            return;
        };
        let both = [source.try_clone(), target.try_clone()];
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(both.into_iter().flatten());
        let own = self.clone();
        thread::spawn(move || own.copy(source, target, true));
        let own = self.clone();
        thread::spawn(move || own.copy(target_too, source_too, false));
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream, counts: bool) {
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let before = if counts {
                self.passed.fetch_add(count as u64, Ordering::Relaxed)
            } else {
                0
            };
            let every = self.cut_after.load(Ordering::Relaxed);
            let left = if counts && every > 0 {
                every - before % every
            } else {
                u64::MAX
            };
            let passes = usize::try_from(left).map_or(count, |left| left.min(count));
            if to.write_all(&buffer[..passes]).is_err() {
                break;
            }
            // To the byte: what came behind it is lost.
            if left <= count as u64 {
                if self.is_once.swap(false, Ordering::Relaxed) {
                    self.cut_after.store(0, Ordering::Relaxed);
                }
                self.cut();
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
