//! A disk all of whose bytes are known: only the test writes to it.

use crate::Disk;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use testkit::device::{Aligned, Blank, Zram, open_direct, write_direct};
use testkit::guard::ScratchDir;
use testkit::{Random, noise};

/// What writes are aligned to, in bytes: what the page cache and all disks agree on.
const BLOCK: u64 = 4096;
/// The longest change, in blocks.
const LONGEST: u64 = 24;
/// Two writers at the same time have every other stripe of so many bytes.
const STRIPE: u64 = 1 << 20;

/// What drives a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Whose driver gets requests.
    Loop,
    /// Whose driver gets bios.
    Zram,
}

#[derive(Debug)]
enum Device {
    Loop(Disk),
    Zram(Zram),
}

/// A disk, and what it holds.
#[derive(Debug)]
pub struct KnownDisk {
    direct: File,
    /// Through the page cache.
    buffered: File,
    /// After the files: it goes when nobody has it open.
    device: Device,
    /// What it holds while nobody writes.
    pub bytes: Vec<u8>,
}

/// One change of a disk.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    how: How,
    offset: u64,
    length: u64,
    seed: u64,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Direct,
    /// Through the page cache, from where it is written some time later.
    Buffered,
    Blank(Blank),
}

impl Change {
    /// Any change of a part of the disk: of all of it, or of every other stripe.
    fn random(random: &mut Random, size_bytes: u64, stripe: Option<u64>) -> Self {
        let stripes = size_bytes / STRIPE / 2;
        let (first, blocks) = match stripe {
            None => (0, size_bytes / BLOCK),
            Some(which) => ((random.below(stripes) * 2 + which) * STRIPE, STRIPE / BLOCK),
        };
        let start = random.below(blocks);
        let length = (random.below(LONGEST) + 1).min(blocks - start);
        Self {
            how: match random.below(10) {
                0 => How::Blank(Blank::Discard),
                1 => How::Blank(Blank::Zeroes),
                2..5 => How::Buffered,
                _ => How::Direct,
            },
            offset: first + start * BLOCK,
            length: length * BLOCK,
            seed: random.next_u64(),
        }
    }

    /// What is there afterwards.
    fn content(&self) -> Vec<u8> {
        let length = usize::try_from(self.length).unwrap_or(0);
        match self.how {
            How::Blank(_) => vec![0; length],
            How::Direct | How::Buffered => noise(length, self.seed),
        }
    }

    fn make(&self, direct: &File, buffered: &File) -> std::io::Result<()> {
        match self.how {
            How::Blank(how) => how.range(direct, self.offset, self.length),
            How::Direct => write_direct(direct, self.offset, &self.content()),
            How::Buffered => buffered.write_all_at(&self.content(), self.offset),
        }
    }
}

impl KnownDisk {
    /// A device of `size_bytes`, half of which is noise.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(dir: &ScratchDir, driver: Driver, size_bytes: u64, seed: u64) -> Result<Self> {
        let device = match driver {
            Driver::Loop => Device::Loop(Disk::new(dir, "disk.img", size_bytes)?),
            Driver::Zram => Device::Zram(Zram::new(size_bytes)?),
        };
        let path = path_of(&device);
        let direct = open_direct(path)?;
        let buffered = File::options().write(true).open(path)?;
        let mut bytes = noise(usize::try_from(size_bytes / 2)?, seed);
        write_direct(&direct, 0, &bytes)?;
        bytes.resize(usize::try_from(size_bytes)?, 0);
        Ok(Self {
            direct,
            buffered,
            device,
            bytes,
        })
    }

    /// Path of the device.
    pub fn path(&self) -> &Path {
        path_of(&self.device)
    }

    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Makes so many changes, one after the other.
    ///
    /// # Errors
    /// What the device says.
    pub fn change(&mut self, random: &mut Random, count: u64) -> Result<()> {
        for _ in 0..count {
            let change = Change::random(random, self.size_bytes(), None);
            change.make(&self.direct, &self.buffered)?;
            self.note(&change);
        }
        Ok(())
    }

    /// Makes changes of every other stripe of the disk until it is time to `stop`, at most so many. They are to be
    /// noted then.
    ///
    /// # Errors
    /// What the device says.
    pub fn change_stripes(
        &self,
        which: u64,
        seed: u64,
        most: usize,
        stop: impl Fn() -> bool,
    ) -> Result<Vec<Change>> {
        let mut random = Random::new(seed);
        let mut made = Vec::new();
        while made.len() < most && !stop() {
            let change = Change::random(&mut random, self.size_bytes(), Some(which % 2));
            change.make(&self.direct, &self.buffered)?;
            made.push(change);
        }
        Ok(made)
    }

    /// Writes down what was changed.
    pub fn note(&mut self, change: &Change) {
        let start = usize::try_from(change.offset).unwrap_or(usize::MAX);
        let content = change.content();
        self.bytes[start..start + content.len()].copy_from_slice(&content);
    }

    /// That the device holds what it should: a proof of the oracle, not of the programs.
    ///
    /// # Errors
    /// The first byte that differs.
    pub fn check(&self) -> Result<()> {
        let found = read_device(self.path(), self.size_bytes())?;
        same(&found, &self.bytes).with_context(|| format!("the device {}", self.path().display()))
    }
}

fn path_of(device: &Device) -> &Path {
    match device {
        Device::Loop(disk) => disk.path(),
        Device::Zram(zram) => zram.path(),
    }
}

/// The bytes of a device, read past the page cache once what is in there has been written.
///
/// # Errors
/// What the device says.
pub fn read_device(path: &Path, size_bytes: u64) -> Result<Vec<u8>> {
    let device = open_direct(path)?;
    device.sync_all()?;
    let mut buffer = Aligned::new(usize::try_from(size_bytes)?);
    device.read_exact_at(buffer.bytes(), 0)?;
    Ok(buffer.bytes().to_vec())
}

/// Compares bytes with those that should be there.
///
/// # Errors
/// The first byte that differs.
pub fn same(found: &[u8], expected: &[u8]) -> Result<()> {
    ensure!(
        found.len() == expected.len(),
        "{} bytes, not {}",
        found.len(),
        expected.len()
    );
    let at = found.iter().zip(expected).position(|(a, b)| a != b);
    let differing = found
        .chunks(4096)
        .zip(expected.chunks(4096))
        .filter(|(a, b)| a != b);
    ensure!(
        at.is_none(),
        "byte {} differs, the first of {} blocks of 4 KiB",
        at.unwrap_or_default(),
        differing.count()
    );
    Ok(())
}
