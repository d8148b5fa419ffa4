//! A target on this machine, sources that are enrolled there, and a line between them that is cut on demand.

use crate::{Disk, program, started_by};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use testkit::Random;
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
    /// The words that start the service by another program.
    by: Vec<String>,
    server: Option<Server>,
}

impl Target {
    /// A target that runs, with more lines in its configuration.
    ///
    /// # Errors
    /// What keeps it from running.
    pub fn new(name: &str, settings: &str) -> Result<Target> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Target::started_by(name, settings, any, Vec::new())
    }

    /// The same at this address, with a service that another program starts: its words come first.
    ///
    /// # Errors
    /// What keeps it from running.
    pub fn started_by(name: &str, settings: &str, address: SocketAddr, by: Vec<String>) -> Result<Target> {
        let dir = ScratchDir::new(name)?;
        fs::create_dir(dir.join("state"))?;
        let mut target = Target {
            dir,
            address,
            settings: settings.to_owned(),
            by,
            server: None,
        };
        target.start()?;
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
        let log = self.dir.join("serve.log");
        let mut serve = started_by(&self.by, self.command(&["serve"]));
        self.server = Some(Server::start(&mut serve, &log)?);
        let mut found = None;
        wait_for("the target listens", || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let address = said.lines().find_map(|line| line.split("listening at ").nth(1));
            found = address.and_then(|address| address.trim().parse().ok());
            found.is_some()
        });
        self.address = found.context("it does not say where it listens")?;
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
        self.enrol_by(source, address, Vec::new())
    }

    /// The same of a source whose programs another program starts: its words come first.
    ///
    /// # Errors
    /// A program that fails.
    pub fn enrol_by(&self, source: &str, address: SocketAddr, by: Vec<String>) -> Result<Source> {
        let directory = self.dir.join(format!("source-{source}"));
        let source = self.enrol_in(source, address, &directory, &by)?;
        Ok(Source { by, ..source })
    }

    /// The same, with another directory for what the source keeps of it: that of a service, for one.
    ///
    /// # Errors
    /// A program that fails.
    pub fn enrol_in(
        &self,
        source: &str,
        address: SocketAddr,
        directory: &Path,
        by: &[String],
    ) -> Result<Source> {
        let address = address.to_string();
        self.add(&["enrol", source, "--address", &address], directory, by)?;
        Ok(Source {
            name: source.to_owned(),
            directory: directory.to_owned(),
            by: Vec::new(),
            store: self.store(source),
        })
    }

    /// Enrols a machine that may read the images of a source. Returns what it knows of the target, which it calls `backup`.
    ///
    /// # Errors
    /// A program that fails.
    pub fn enrol_reader(&self, name: &str, source: &str) -> Result<PathBuf> {
        let address = self.address.to_string();
        let directory = self.dir.join(format!("source-{name}"));
        self.add(
            &[
                "enrol",
                name,
                "--role",
                "pull",
                "--of",
                source,
                "--address",
                &address,
            ],
            &directory,
            &[],
        )?;
        Ok(directory)
    }

    fn add(&self, enrol: &[&str], directory: &Path, by: &[String]) -> Result<()> {
        let line = run(&mut self.command(enrol))?;
        let mut add = Command::new(program("smcd"));
        add.args(["target", "add", "backup", line.trim(), "--targets-directory"])
            .arg(directory);
        run(&mut started_by(by, add))?;
        Ok(())
    }
}

/// A source that is enrolled at a target, which it calls `backup`.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name at the target.
    pub name: String,
    /// Where it keeps what it knows of targets.
    pub directory: PathBuf,
    by: Vec<String>,
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
        started_by(&self.by, command)
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
    plan: Mutex<Plan>,
    cuts: AtomicU64,
    is_down: AtomicBool,
    /// Connections that it carries at the same time.
    most: AtomicU64,
    carried: AtomicU64,
    /// Between two blocks from the source.
    pause_us: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

/// When the line is cut.
#[derive(Debug)]
struct Plan {
    /// Bytes that have come from the source.
    passed: u64,
    /// After how many of them it is cut next.
    next: u64,
    again: Again,
}

#[derive(Debug)]
enum Again {
    Never,
    Every(u64),
    /// So often yet, and at most so many bytes after the cut before.
    AtRandom(Random, u64, u64),
}

impl Plan {
    fn new(next: u64, again: Again) -> Plan {
        Plan {
            passed: 0,
            next,
            again,
        }
    }

    /// So many bytes have come. Returns how many of them are passed on if the line is cut now.
    fn come(&mut self, count: u64) -> Option<u64> {
        let before = self.passed;
        self.passed += count;
        if self.next > self.passed {
            return None;
        }
        let passes = self.next.saturating_sub(before);
        self.next = match &mut self.again {
            Again::Never | Again::AtRandom(_, 0, _) => u64::MAX,
            Again::Every(bytes) => (self.passed / *bytes + 1).saturating_mul(*bytes),
            Again::AtRandom(random, left, most) => {
                *left -= 1;
                self.passed + 1 + random.below(*most)
            }
        };
        Some(passes)
    }
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
            plan: Mutex::new(Plan::new(u64::MAX, Again::Never)),
            cuts: AtomicU64::new(0),
            is_down: AtomicBool::new(false),
            most: AtomicU64::new(u64::MAX),
            carried: AtomicU64::new(0),
            pause_us: AtomicU64::new(0),
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

    /// Never cuts the line, and begins to count here.
    pub fn count(&self) {
        *self.shared.plan() = Plan::new(u64::MAX, Again::Never);
    }

    /// Cuts the line each time that so many bytes have come from the source.
    pub fn cut_every(&self, bytes: u64) {
        *self.shared.plan() = Plan::new(bytes, Again::Every(bytes));
    }

    /// Cuts the line once, when so many bytes have come from the source from now on.
    pub fn cut_once_after(&self, bytes: u64) {
        *self.shared.plan() = Plan::new(bytes, Again::Never);
    }

    /// Cuts the line so often, each time after at most so many bytes from the source.
    pub fn cut_at_random(&self, mut random: Random, times: u64, most_bytes: u64) {
        let first = match times {
            0 => u64::MAX,
            _ => 1 + random.below(most_bytes),
        };
        let again = Again::AtRandom(random, times.saturating_sub(1), most_bytes);
        *self.shared.plan() = Plan::new(first, again);
    }

    /// Makes the line slow: it rests after each block of 16 KiB of each connection. What the source sends then waits in many buffers.
    pub fn set_pause(&self, pause: Duration) {
        let micros = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        self.shared.pause_us.store(micros, Ordering::Relaxed);
    }

    /// Takes the line down, or up again.
    pub fn set_down(&self, is_down: bool) {
        self.shared.is_down.store(is_down, Ordering::Relaxed);
        if is_down {
            self.shared.cut();
        }
    }

    /// Carries at most so many connections at the same time: it closes others at once.
    pub fn set_most(&self, connections: u64) {
        self.shared.most.store(connections, Ordering::Relaxed);
    }

    /// How often it was cut.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::Relaxed)
    }

    /// Bytes that have come from the source since it was last said when to cut.
    pub fn passed(&self) -> u64 {
        self.shared.plan().passed
    }
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::Relaxed);
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn carry(self: &Arc<Self>, source: TcpStream) {
        let is_full = self.carried.load(Ordering::Relaxed) >= self.most.load(Ordering::Relaxed);
        if self.is_down.load(Ordering::Relaxed) || is_full {
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
        self.carried.fetch_add(1, Ordering::Relaxed);
        thread::spawn(move || {
            own.carry_from_source(source, target);
            own.carried.fetch_sub(1, Ordering::Relaxed);
        });
        thread::spawn(move || copy(target_too, source_too, |_| None::<(u64, fn())>));
    }

    fn carry_from_source(&self, source: TcpStream, target: TcpStream) {
        copy(source, target, |count| {
            let pause = self.pause_us.load(Ordering::Relaxed);
            if pause > 0 {
                thread::sleep(Duration::from_micros(pause));
            }
            self.plan().come(count).map(|passes| (passes, || self.cut()))
        });
    }
}

/// Copies until one side has ended. `come` hears of each block, and may say how many bytes of it pass before the connection is cut.
fn copy<C: FnOnce()>(mut from: TcpStream, mut to: TcpStream, mut come: impl FnMut(u64) -> Option<(u64, C)>) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let cut = come(count as u64);
        let passes = cut.as_ref().map_or(count, |(passes, _)| {
            usize::try_from(*passes).unwrap_or(count).min(count)
        });
        if to.write_all(&buffer[..passes]).is_err() {
            break;
        }
        // To the byte: what came behind it is lost.
        if let Some((_, cut)) = cut {
            cut();
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
