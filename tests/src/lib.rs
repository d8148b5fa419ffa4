//! Helpers of the cross-crate tests: real loop devices, the programs as users run them, real NBD clients.
//!
//! Tests touch only devices that they made, each in a scratch directory of its own.

pub mod crash;
pub mod cuts;
pub mod damage;
pub mod instant;
pub mod lifecycle;
pub mod network;
pub mod service;
pub mod target;
pub mod truth;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use testkit::guard::{LoopDevice, MountedFile, ScratchDir};
use testkit::process::{PATIENCE, Server, run, wait_until};
use vm_tests::system::Release;

/// A program of this workspace, built in the same profile as the running one.
///
/// # Panics
/// When it has not been built: `make test` does that first.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the running program has a path");
    // Tests run in deps/, programs beside it.
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not built: run `cargo build --workspace` first"))
}

/// What a guest gets to see: programs without their debug information, and the script that it runs, behind the functions that scripts
/// have in common.
///
/// # Errors
/// What cannot be made.
pub fn guest_payload(directory: &Path, programs: &[&str], script: &str) -> Result<()> {
    fs::create_dir(directory)?;
    for name in programs {
        let mut strip = Command::new("strip");
        strip.arg("--strip-debug").arg("-o").arg(directory.join(name));
        run(strip.arg(program(name)))?;
    }
    Ok(fs::write(
        directory.join("run"),
        vm_tests::system::script(&[script]),
    )?)
}

/// The root of a system that has what a helper guest of `smc-image` needs, mounted read-only in the bench's directory.
///
/// # Errors
/// Where `scripts/setup.sh` has not been run.
pub fn helper_root(bench: &Bench) -> Result<MountedFile> {
    let root = LoopDevice::attach(&Release::Newer.disk()?)?;
    let place = bench.dir.join("helper-root");
    let flags = nix::mount::MsFlags::MS_RDONLY;
    Ok(MountedFile::new(root, &place, "ext4", flags)?)
}

/// Whether a store has an image: `web01/7`.
pub fn has_image(store: &Path, image: &str) -> bool {
    let found = image
        .split_once('/')
        .map(|(job, number)| format!("{job}/images/{number:0>6}.json"));
    found.is_some_and(|manifest| store.join(manifest).exists())
}

/// A command that is run by another program, whose words come first; as it is if there are no words.
pub fn started_by(by: &[String], command: Command) -> Command {
    let Some((first, rest)) = by.split_first() else {
        return command;
    };
    let mut outer = Command::new(first);
    outer
        .args(rest)
        .arg(command.get_program())
        .args(command.get_args());
    outer
}

/// A store, and the disks that are synced into it.
#[derive(Debug)]
pub struct Bench {
    /// Everything lies in here.
    pub dir: ScratchDir,
}

/// A loop device over a file of its own.
#[derive(Debug)]
pub struct Disk {
    /// The device.
    pub device: LoopDevice,
    /// The file behind it.
    pub backing: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
}

impl Bench {
    /// An empty scratch directory.
    pub fn new(name: &str) -> Result<Self> {
        Ok(Self {
            dir: ScratchDir::new(name)?,
        })
    }

    /// The store's directory.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// A loop device of `size_bytes` zeros.
    pub fn disk(&self, name: &str, size_bytes: u64) -> Result<Disk> {
        Disk::new(&self.dir, name, size_bytes)
    }

    /// Runs `smcd sync` for `web01` with these disks and returns what `--json` printed.
    pub fn sync(&self, disks: &[(&str, &Path)]) -> Result<Value> {
        let output = self.sync_with(disks, &[])?;
        ensure!(
            output.status.success(),
            "smcd sync: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).context("parse what smcd sync --json printed")
    }

    /// As [`sync`](Self::sync), with more arguments and whatever it ends with.
    pub fn sync_with(&self, disks: &[(&str, &Path)], more: &[&str]) -> Result<Output> {
        self.sync_command(disks).args(more).output().context("run smcd")
    }

    /// As [`sync_with`](Self::sync_with), run by another program: its words come first.
    pub fn sync_by(&self, by: &[String], disks: &[(&str, &Path)], more: &[&str]) -> Result<Output> {
        let mut command = started_by(by, self.sync_command(disks));
        command.args(more).output().context("run smcd")
    }

    /// `smcd sync` for `web01` with these disks.
    pub fn sync_command(&self, disks: &[(&str, &Path)]) -> Command {
        let mut command = Command::new(program("smcd"));
        command
            .args(["sync", "--job", "web01", "--json", "--store"])
            .arg(self.store());
        for (name, path) in disks {
            command.arg("--disk").arg(format!("{name}={}", path.display()));
        }
        command
    }

    /// Runs `smc-image` on the store.
    pub fn image(&self, args: &[&str]) -> Result<Output> {
        Command::new(program("smc-image"))
            .arg("--store")
            .arg(self.store())
            .args(args)
            .env("SMC_RESTORED", self.dir.join("restored.d"))
            .output()
            .context("run smc-image")
    }

    /// Runs `smc-image --json` on the store and returns the objects that it printed, one a line.
    pub fn image_json(&self, args: &[&str]) -> Result<Vec<Value>> {
        let output = self.image(&[&["--json"], args].concat())?;
        ensure!(
            output.status.success(),
            "smc-image {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout)?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("parse {line}")))
            .collect()
    }

    /// The verdict of `smc-image boot` on an image, with which its exit code agrees. `arguments` say what is waited for.
    pub fn boot_check(&self, image: &str, arguments: &[&str]) -> Result<Value> {
        let overlays = self.dir.join("overlays");
        fs::create_dir_all(&overlays)?;
        let overlays = overlays.display().to_string();
        let boot = ["--json", "boot", image, "--overlay-dir", &overlays];
        let output = self.image(&[&boot, arguments].concat())?;
        let verdict: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("smc-image boot: {}", stderr(&output)))?;
        let wanted = if verdict["booted"] == true { 0 } else { 1 };
        ensure!(
            code(&output) == wanted,
            "exit code {} with {verdict}",
            code(&output)
        );
        Ok(verdict)
    }

    /// `smc-image verify --against` finds that a disk of an image equals a device.
    pub fn same_as_device(&self, image: &str, disk: &str, device: &Path) -> Result<()> {
        let device = device.display().to_string();
        let verify = ["verify", image, "--disk", disk, "--against", &device];
        self.image_json(&verify).map(drop)
    }

    /// Serves all images on a Unix socket until the server is dropped.
    pub fn serve(&self, socket: &Path) -> Result<Server> {
        let mut command = Command::new(program("smc-image"));
        command
            .arg("--store")
            .arg(self.store())
            .arg("serve")
            .arg("--socket")
            .arg(socket);
        let log = socket.with_extension("log");
        Server::start_on_socket(&mut command, socket, &log).map_err(Into::into)
    }
}

impl Disk {
    /// A loop device of `size_bytes` zeros, over a file of this name in `dir`.
    pub fn new(dir: &ScratchDir, name: &str, size_bytes: u64) -> Result<Self> {
        let backing = dir.sparse_file(name, size_bytes)?;
        let device = LoopDevice::attach(&backing)?;
        Ok(Self {
            device,
            backing,
            size_bytes,
        })
    }

    /// Path of the device.
    pub fn path(&self) -> &Path {
        self.device.path()
    }

    /// Writes through the device, past the page cache of its readers, and waits until it is there.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = File::options().write(true).open(self.path())?;
        file.write_all_at(bytes, offset)?;
        file.sync_all()?;
        Ok(())
    }

    /// Fills a range with pseudo-random bytes that depend on `seed`.
    pub fn write_noise(&self, offset: u64, len: usize, seed: u64) -> Result<()> {
        self.write_at(offset, &testkit::noise(len, seed))
    }

    /// Copies the device as it is now.
    pub fn copy_to(&self, target: &Path) -> Result<()> {
        let mut source = File::open(self.path())?;
        let mut copy = File::create(target)?;
        std::io::copy(&mut source, &mut copy)?;
        Ok(())
    }
}

/// A program that writes all over a device until it is dropped; it has begun.
///
/// # Errors
/// When fio cannot be run.
pub fn busy_writer(device: &Path, log: &Path) -> Result<Server> {
    let mut fio = Command::new("fio");
    fio.args([
        "--name=busy",
        "--rw=randwrite",
        "--bs=4k",
        "--direct=1",
        "--ioengine=psync",
        "--size=16m",
        "--time_based",
        "--runtime=600",
        "--rate_iops=500",
    ])
    .arg(format!("--filename={}", device.display()));
    let writes = || {
        let name = device.file_name().unwrap_or_default().to_string_lossy();
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap_or_default();
        stat.split_whitespace().nth(4).map(str::to_owned)
    };
    let before = writes();
    let server = Server::start(&mut fio, log)?;
    wait_until(PATIENCE, || writes() != before)?;
    Ok(server)
}

/// Compares two files byte for byte.
pub fn assert_same_bytes(a: &Path, b: &Path) -> Result<()> {
    let (mut file_a, mut file_b) = (File::open(a)?, File::open(b)?);
    ensure!(
        file_a.metadata()?.len() == file_b.metadata()?.len(),
        "{} and {} differ in size",
        a.display(),
        b.display()
    );
    let (mut part_a, mut part_b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0u64;
    loop {
        let len = file_a.read(&mut part_a)?;
        if len == 0 {
            return Ok(());
        }
        file_b.read_exact(&mut part_b[..len])?;
        if let Some(at) = part_a[..len].iter().zip(&part_b).position(|(a, b)| a != b) {
            bail!(
                "{} and {} differ at byte {}",
                a.display(),
                b.display(),
                offset + at as u64
            );
        }
        offset += len as u64;
    }
}

/// Exit code of a finished program; -1 when a signal ended it.
pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

/// What a program wrote to stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
