//! How long it takes until a kernel starts from an image: `smc-image boot`, beside an export to qcow2 from which QEMU boots then.

use crate::measure::{Goal, median, met, run, settle, sorted, table};
use anyhow::{Context, Result, bail};
use boot::diagnosis::is_kernel_line;
use boot::{Follow, Guest, Machine, Next};
use smc_tests::{Bench, program};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use testkit::noise;
use testkit::process::check_interrupt;
use vm_tests::disk::BootDisk;
use vm_tests::payload::Payload;

const IMAGES: u64 = 10;
/// The kernel's first lines are shown, and it runs until it is ended.
const PARAMETERS: &str = "smc.root=LABEL=smc-root console=ttyS0 panic=-1 smc.login";
const MEMORY_MIB: u32 = 512;
const GOAL_SECONDS: f64 = 2.0;
const GOAL_RATIO: f64 = 0.1;
const TIMEOUT: Duration = Duration::from_secs(300);
/// Written to the disk in pieces of this size.
const PIECE_BYTES: usize = 16 << 20;

/// Prints the medians of some rounds, each with cold caches, for the newest of ten images of a disk that is half full.
pub fn print(size_bytes: u64, rounds: usize) -> Result<()> {
    let bench = Bench::new("bench-boot")?;
    let source = Source::new(&bench, size_bytes)?;
    let (mut ours, mut theirs, mut exports) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(source.boot_image()?);
        let (export, total) = source.export_and_boot()?;
        exports.push(export);
        theirs.push(total);
    }
    let ratios = sorted(ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs));
    let middle = |times: Vec<f64>| median(&sorted(times.into_iter()));
    let (ours, theirs, export) = (middle(ours), middle(theirs), middle(exports));
    let ratio = median(&ratios);
    let (goal, _) = Goal::TimeAtMost(GOAL_RATIO).judge(ratio);
    let mut rows = table(&[
        "smc-image boot",
        "export to qcow2 and boot",
        "of it the export",
        "ratio",
        "goal",
        "met",
    ]);
    rows.add_row([
        format!("{ours:.2} s"),
        format!("{theirs:.2} s"),
        format!("{export:.2} s"),
        format!("{ratio:.3}"),
        format!("<= {GOAL_SECONDS} s, {goal}"),
        met(ours <= GOAL_SECONDS && ratio <= GOAL_RATIO),
    ]);
    println!(
        "\nuntil the kernel's first line, by {}:\n{rows}",
        vm_tests::guest::accelerator()?
    );
    Ok(())
}

/// The images of a disk that boots.
struct Source<'a> {
    bench: &'a Bench,
    image: String,
}

impl<'a> Source<'a> {
    fn new(bench: &'a Bench, size_bytes: u64) -> Result<Self> {
        let disk = bench.disk("disk.img", size_bytes)?;
        let place = bench.dir.join("mnt");
        let payload = Payload::collect(&[Path::new("/etc/apt")], 1 << 20)?;
        let boot_disk = BootDisk::create(disk.path(), &place, "newest", &payload)?;
        fill(&boot_disk, &place, size_bytes / 2)?;
        for seed in 0..IMAGES {
            change(&boot_disk, &place, seed)?;
            bench.sync(&[("vda", disk.path())])?;
        }
        let image = format!("web01/{IMAGES}");
        Ok(Self { bench, image })
    }

    fn boot_image(&self) -> Result<f64> {
        settle()?;
        let begun = Instant::now();
        let mut command = Command::new(program("smc-image"));
        command.arg("--store").arg(self.bench.store());
        command.args([
            "boot",
            &self.image,
            "--memory",
            &format!("{MEMORY_MIB}MiB"),
            "--cpus",
            "1",
        ]);
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = Ended(child.context("start smc-image boot")?);
        let console = child.0.stdout.take().context("no console")?;
        for line in BufReader::new(console).split(b'\n') {
            check_interrupt()?;
            let line = String::from_utf8_lossy(&line?).into_owned();
            if is_kernel_line(line.trim()) {
                return Ok(begun.elapsed().as_secs_f64());
            }
        }
        bail!("the guest has ended before its kernel wrote anything")
    }

    /// The time of the export, and of both.
    fn export_and_boot(&self) -> Result<(f64, f64)> {
        settle()?;
        let file = self.bench.dir.join("exported.qcow2");
        let begun = Instant::now();
        let mut export = Command::new(program("smc-image"));
        export.arg("--store").arg(self.bench.store());
        export
            .args(["export", "--format", "qcow2", &self.image])
            .arg(&file);
        run(&mut export)?;
        let exported = begun.elapsed().as_secs_f64();
        let mut machine = Machine::new(vm_tests::guest::accelerator()?, MEMORY_MIB);
        machine.disk(&boot::Disk {
            source: &file.display().to_string(),
            format: "qcow2",
            snapshot: true,
            serial: None,
        });
        let mut kernel = None;
        let ended = Guest::start(machine)?.follow(&mut Follow {
            timeout: TIMEOUT,
            is_canceled: &|| check_interrupt().is_err(),
            on_line: &mut |line, _| {
                if kernel.is_none() && is_kernel_line(line.trim()) {
                    kernel = Some(begun.elapsed().as_secs_f64());
                }
                if kernel.is_some() {
                    Next::Kill
                } else {
                    Next::Continue
                }
            },
        });
        let ended = ended?;
        fs::remove_file(&file)?;
        let kernel = kernel.with_context(|| format!("no kernel {}", ended.describe()))?;
        Ok((exported, kernel))
    }
}

/// A process that ends with this.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file that fills so much of the disk.
fn fill(disk: &BootDisk, place: &Path, bytes: u64) -> Result<()> {
    let root = disk.mount(place)?;
    root.set_kernel_parameters(PARAMETERS)?;
    let mut file = fs::File::create(root.path().join("srv/filling"))?;
    for seed in 0..bytes / PIECE_BYTES as u64 {
        check_interrupt()?;
        std::io::Write::write_all(&mut file, &noise(PIECE_BYTES, seed + 1))?;
    }
    drop(file);
    Ok(root.unmount()?)
}

/// What changes from one image to the next.
fn change(boot_disk: &BootDisk, place: &Path, seed: u64) -> Result<()> {
    let root = boot_disk.mount(place)?;
    fs::write(root.path().join("srv/changing"), noise(PIECE_BYTES, 1000 + seed))?;
    Ok(root.unmount()?)
}
