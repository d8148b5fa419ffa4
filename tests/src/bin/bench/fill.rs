//! What the measured disks hold.

use anyhow::{Context, Result};
use smc_tests::Disk;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use testkit::device::Zram;
use testkit::noise;

const MIB: u64 = 1 << 20;
const MIB_LEN: usize = 1 << 20;
/// MiB of data or holes in a row.
const STRETCH_MIB: u64 = 16;

/// Where a disk holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Everywhere.
    Full,
    /// In two thirds of it: after 32 MiB of data, 16 MiB were never written.
    WithHoles,
}

impl Layout {
    fn has_data_at(self, mib: u64) -> bool {
        self == Self::Full || mib / STRETCH_MIB % 3 != 2
    }
}

/// Fills the disk with pseudo-random bytes, which no compression makes smaller.
pub fn with_noise(disk: &Disk, layout: Layout) -> Result<()> {
    fill(disk, layout, |mib| Ok(noise(MIB_LEN, mib + 1)))
}

/// Fills the disk with what servers hold: programs, libraries, documents and sources, as one tar stream.
pub fn with_files(disk: &Disk, layout: Layout) -> Result<()> {
    let mut tar = Command::new("tar")
        .args(["-C", "/", "-cf", "-", "--sort=name", "usr"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("run tar")?;
    let mut stream = tar.stdout.take().context("tar has no output")?;
    let filled = fill(disk, layout, |_| {
        let mut block = Vec::with_capacity(MIB_LEN);
        stream.by_ref().take(MIB).read_to_end(&mut block)?;
        Ok(block)
    });
    tar.kill().ok();
    tar.wait()?;
    filled
}

/// Writes what `next` gives for each MiB that shall hold data, and waits until it is there.
fn fill(disk: &Disk, layout: Layout, mut next: impl FnMut(u64) -> Result<Vec<u8>>) -> Result<()> {
    let device = File::options().write(true).open(disk.path())?;
    for mib in (0..disk.size_bytes / MIB).filter(|&mib| layout.has_data_at(mib)) {
        device.write_all_at(&next(mib)?, mib * MIB)?;
    }
    Ok(device.sync_all()?)
}

/// A zram device full of text: what compresses takes little memory.
pub fn zram_with_text(size_bytes: u64) -> Result<Zram> {
    let zram = Zram::new(size_bytes)?;
    fill_with_text(zram.path(), size_bytes)?;
    Ok(zram)
}

fn fill_with_text(path: &Path, size_bytes: u64) -> Result<()> {
    let mut device = File::options().write(true).open(path)?;
    let mut piece = vec![0; 1 << 20];
    for number in 0..size_bytes >> 20 {
        for (line, chunk) in piece.chunks_mut(64).enumerate() {
            let text = format!("line {line} of piece {number} ");
            chunk
                .iter_mut()
                .zip(text.bytes().cycle())
                .for_each(|(byte, text)| *byte = text);
        }
        device.write_all(&piece)?;
    }
    device.sync_all().context("fill the zram device")
}
