//! Servers as people install them, on real disks: Debian with its own kernel, GRUB and systemd, on LVM over two disks, xfs, btrfs, an
//! encrypted root and UEFI. Every image of each boots into its point in time. What keeps such a server from booting is named, by the
//! check and without it.
//!
//! All of it takes minutes: `make vm-test`.

mod broken;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smc_tests::{Bench, code, helper_root, program, stderr};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::Duration;
use testkit::guard::{LoopDevice, MountedFile};
use testkit::process::wait_until;
use testkit::program::with_default_signals;
use vm_tests::kernel::cache_dir;
use vm_tests::server::{COUNTED, Layout, PASSPHRASE, Server, is_passphrase_prompt};
use vm_tests::system::Release;

/// A whole system, translated, beside other work.
const TIMEOUT: &str = "20min";
const PATIENCE: Duration = Duration::from_secs(1200);
const DISKS: [&str; 2] = ["vda", "vdb"];

/// A server, and a store with its images.
struct Source {
    server: Server,
    /// What looks into LVM and encrypted disks: it is mounted in the bench's directory and goes before it.
    helper: MountedFile,
    bench: Bench,
}

impl Source {
    fn new(name: &str, release: Release, layout: Layout) -> Result<Self> {
        let bench = Bench::new(name)?;
        let server = Server::new(release, layout, bench.dir.path())?;
        let helper = helper_root(&bench)?;
        Ok(Self {
            server,
            helper,
            bench,
        })
    }

    /// Starts the server where it was installed, which counts that, and images its disks after their power was cut.
    fn start_and_sync(&self) -> Result<()> {
        self.server.start()?;
        self.sync()
    }

    fn sync(&self) -> Result<()> {
        let devices = self.server.disks().iter().map(|file| LoopDevice::attach(file));
        let devices = devices.collect::<testkit::Result<Vec<_>>>()?;
        let disks: Vec<(&str, &Path)> = DISKS
            .into_iter()
            .zip(devices.iter().map(LoopDevice::path))
            .collect();
        self.bench.sync(&disks).map(drop)
    }

    fn check(&self, image: &str, what: &str) -> Result<Value> {
        self.check_within(image, what, TIMEOUT)
    }

    fn check_within(&self, image: &str, what: &str, timeout: &str) -> Result<Value> {
        let verdict = self
            .bench
            .boot_check(image, &[what, "--memory", "768MiB", "--timeout", timeout])?;
        println!("{image} {what}: {}", summary(&verdict));
        Ok(verdict)
    }

    /// It boots, and was at its point in time before.
    fn boots(&self, image: &str, what: &str, before: u32) -> Result<()> {
        let verdict = self.check(image, what)?;
        ensure!(verdict["booted"] == true, "{image}: {verdict:#}");
        ensure!(
            has_counted(&console(&verdict), before),
            "{image}: not at {before}: {verdict:#}"
        );
        Ok(())
    }

    fn inspect(&self, image: &str) -> Result<Output> {
        let mut command = Command::new(program("smc-image"));
        command
            .arg("--store")
            .arg(self.bench.store())
            .args(["--json", "inspect", image]);
        command.arg("--helper-root").arg(self.helper.path());
        command.arg("--kernel").arg(cache_dir().join("kernel/vmlinuz"));
        Ok(command.output()?)
    }

    /// What `inspect` finds wrong, as `LEVEL id: found`; its exit code says whether that keeps the server from booting.
    fn findings(&self, image: &str) -> Result<Vec<String>> {
        let output = self.inspect(image)?;
        let found: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("inspect {image}: {}", stderr(&output)))?;
        let checks = found["checks"].as_array().context("no checks")?;
        let wrong = checks.iter().filter(|check| check["level"] != "ok");
        let word = |check: &Value, name: &str| check[name].as_str().unwrap_or_default().to_owned();
        let lines = wrong.map(|check| {
            let (level, id, found) = (word(check, "level"), word(check, "id"), word(check, "found"));
            format!("{level} {id}: {found}")
        });
        let lines: Vec<String> = lines.collect();
        let is_critical = lines.iter().any(|line| line.starts_with("critical"));
        ensure!(
            code(&output) == i32::from(is_critical),
            "exit code {}: {lines:#?}",
            code(&output)
        );
        Ok(lines)
    }

    /// Nothing speaks against its booting, and that is right.
    fn is_ready(&self, image: &str) -> Result<()> {
        let found = self.findings(image)?;
        println!("{image} inspect: {found:#?}");
        let is_critical = found.iter().any(|line| line.starts_with("critical"));
        ensure!(!is_critical, "{found:#?}");
        Ok(())
    }
}

/// What a person wants to know of a verdict, in one line.
fn summary(verdict: &Value) -> String {
    match &verdict["problem"] {
        Value::Null => format!(
            "booted, kernel after {} ms, reached after {} ms",
            verdict["kernel_ms"], verdict["reached_ms"]
        ),
        problem => format!("{}: {}", problem["name"], problem["what"]),
    }
}

fn console(verdict: &Value) -> String {
    let lines = verdict["console"].as_array().into_iter().flatten();
    let lines = lines.map(|line| line.as_str().unwrap_or_default().to_owned() + "\n");
    lines.collect()
}

/// Whether the server has said that it was booted so often before.
fn has_counted(console: &str, before: u32) -> bool {
    let wanted = format!("{COUNTED}{before}");
    console.lines().any(|line| line.trim_end().ends_with(&wanted))
}

/// A full image and an incremental one, each after a boot that wrote to the disks: each boots into its own point in time.
fn images_boot(layout: Layout) -> Result<()> {
    let source = Source::new("real-server", Release::Own, layout)?;
    source.start_and_sync()?;
    source.start_and_sync()?;
    source.is_ready("web01/2")?;
    source.boots("web01/1", "--check", 1)?;
    source.boots("web01/2", "--check-systemd", 2)
}

#[test]
#[ignore = "takes minutes: make vm-test"]
fn images_of_lvm_over_two_disks_boot() -> Result<()> {
    images_boot(Layout::Lvm)
}

#[test]
#[ignore = "takes minutes: make vm-test"]
fn images_of_an_xfs_root_boot() -> Result<()> {
    images_boot(Layout::Xfs)
}

#[test]
#[ignore = "takes minutes: make vm-test"]
fn images_of_a_btrfs_root_boot() -> Result<()> {
    images_boot(Layout::Btrfs)
}

#[test]
#[ignore = "takes minutes: make vm-test"]
fn images_of_a_server_without_a_uefi_boot_entry_boot() -> Result<()> {
    images_boot(Layout::Uefi)
}

#[test]
#[ignore = "takes minutes: make vm-test"]
fn images_of_an_encrypted_root_wait_for_the_passphrase_and_boot_with_it() -> Result<()> {
    let source = Source::new("real-server", Release::Own, Layout::Luks)?;
    source.start_and_sync()?;
    source.start_and_sync()?;
    for (image, before) in [("web01/1", 1), ("web01/2", 2)] {
        let verdict = source.check(image, "--check")?;
        ensure!(verdict["problem"]["name"] == "passphrase", "{verdict:#}");
        ensure!(verdict["problem"]["device"] == "crypt", "{verdict:#}");
        ensure!(
            source.boots_with_passphrase(image, before)?,
            "{image} is not at {before}"
        );
    }
    Ok(())
}

/// `smc-image boot` with somebody at its terminal.
struct Shown(Child);

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Source {
    /// Types the passphrase when the guest asks for it, and reads on until it has said how often it was booted.
    fn boots_with_passphrase(&self, image: &str, before: u32) -> Result<bool> {
        let log = self.bench.dir.join("console.log");
        let mut command = Command::new(program("smc-image"));
        command.arg("--store").arg(self.bench.store());
        command
            .args(["boot", image, "--memory", "768MiB"])
            .stdin(Stdio::piped());
        let child = with_default_signals(&mut command)
            .stdout(File::create(&log)?)
            .spawn()?;
        let mut shown = Shown(child);
        let mut keyboard: ChildStdin = shown.0.stdin.take().context("no keyboard")?;
        let said = || String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        wait_until(PATIENCE, || is_passphrase_prompt(&said()))?;
        keyboard.write_all(format!("{PASSPHRASE}\n").as_bytes())?;
        wait_until(PATIENCE, || {
            has_counted(&said(), before) || said().contains("login:")
        })?;
        Ok(has_counted(&said(), before))
    }
}

/// Three releases: their kernels, initramfs, boot loaders and systemd.
fn release_boots(release: Release) -> Result<()> {
    let source = Source::new("real-release", release, Layout::Ext4)?;
    source.start_and_sync()?;
    source.is_ready("web01/1")?;
    source.boots("web01/1", "--check-systemd", 1)
}

#[test]
#[ignore = "takes minutes: make vm-test"]
fn a_server_of_this_release_boots() -> Result<()> {
    release_boots(Release::Own)
}

#[test]
#[ignore = "takes minutes: make vm-test"]
fn a_server_of_the_next_release_boots() -> Result<()> {
    release_boots(Release::Newer)
}

#[test]
#[ignore = "takes minutes: make vm-test"]
fn a_server_of_the_release_before_boots() -> Result<()> {
    release_boots(Release::Older)
}
