//! A disk in memory, beside which the cost of software shows.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A zram device of its own; it goes when this is dropped.
#[derive(Debug)]
pub struct Zram {
    number: u32,
    path: PathBuf,
}

impl Zram {
    /// Zeros.
    pub fn new(size_bytes: u64) -> Result<Self> {
        let number = fs::read_to_string("/sys/class/zram-control/hot_add").context("add a zram device")?;
        let number = number.trim().parse().context("the number of a zram device")?;
        let zram = Self {
            number,
            path: format!("/dev/zram{number}").into(),
        };
        fs::write(
            format!("/sys/block/zram{number}/disksize"),
            size_bytes.to_string(),
        )
        .context("size the zram device")?;
        Ok(zram)
    }

    /// Text: what compresses takes little memory.
    pub fn with_text(size_bytes: u64) -> Result<Self> {
        let zram = Self::new(size_bytes)?;
        fill_with_text(&zram.path, size_bytes)?;
        Ok(zram)
    }

    /// The device node.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let number = self.number;
        let removed = fs::write(format!("/sys/block/zram{number}/reset"), "1")
            .and_then(|()| fs::write("/sys/class/zram-control/hot_remove", number.to_string()));
        if let Err(error) = removed {
            eprintln!("zram{number} is left behind: {error}");
        }
    }
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
