//! Devices and a BPF filesystem of its own for a test.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use hostdev::{DeviceNumber, Root};
use testkit::Random;
use testkit::device::{Aligned, open_direct, write_direct};
#[allow(unused_imports, reason = "each test program uses a part")]
pub use testkit::device::{Blank, Zram};
use testkit::guard::{LoopDevice, Mount, ScratchDir};
use tracker::{ImageMark, Target, Tracker};

pub const CLUSTER: u32 = 64 << 10;

/// A bpffs, and a scratch directory. Everything that is pinned is gone with it, after a kill too: the filesystem is
/// mounted nowhere, and only this process has it open.
pub struct Ground {
    filesystem: File,
    pub scratch: ScratchDir,
}

impl Ground {
    pub fn new(name: &str) -> Ground {
        let scratch = ScratchDir::new(name).unwrap();
        let at = scratch.join("bpf");
        let mount = Mount::bpf(&at).unwrap();
        let filesystem = File::open(&at).unwrap();
        nix::mount::umount2(&at, nix::mount::MntFlags::MNT_DETACH).unwrap();
        drop(mount);
        Ground { filesystem, scratch }
    }

    /// Where pins go; other processes see it too.
    pub fn pins(&self) -> PathBuf {
        let descriptor = self.filesystem.as_raw_fd();
        PathBuf::from(format!("/proc/{}/fd/{descriptor}/smc", std::process::id()))
    }

    pub fn start(&self) -> Tracker {
        Tracker::start(&self.pins()).unwrap()
    }

    pub fn disk(&self, name: &str, size_bytes: u64) -> Disk {
        let file = self.scratch.sparse_file(name, size_bytes).unwrap();
        let device = LoopDevice::attach(&file).unwrap();
        Disk::new(device.path().to_owned(), Some(device))
    }
}

/// A device that a test may write to.
pub struct Disk {
    pub path: PathBuf,
    pub file: File,
    pub device: Option<LoopDevice>,
}

impl Disk {
    pub fn new(path: PathBuf, device: Option<LoopDevice>) -> Disk {
        let file = open_direct(&path).unwrap();
        Disk { path, file, device }
    }

    pub fn number(&self) -> DeviceNumber {
        DeviceNumber::of_block_device(&fs::metadata(&self.path).unwrap()).unwrap()
    }

    pub fn target(&self) -> Target {
        Target::of(&Root::system(), self.number(), CLUSTER).unwrap()
    }

    pub fn write(&self, offset: u64, length: usize, seed: u64) {
        write_direct(&self.file, offset, &testkit::noise(length, seed)).unwrap();
    }

    pub fn blank(&self, how: Blank, offset: u64, length: u64) -> std::io::Result<()> {
        how.range(&self.file, offset, length)
    }

    /// A digest of every cluster, read from the device itself.
    pub fn content(&self) -> Vec<u64> {
        let size = self.target().size_bytes;
        let mut buffer = Aligned::new(1 << 20);
        let mut digests = Vec::new();
        let mut offset = 0;
        while offset < size {
            let length = usize::try_from((size - offset).min(1 << 20)).unwrap();
            let piece = &mut buffer.bytes()[..length];
            self.file.read_exact_at(piece, offset).unwrap();
            digests.extend(piece.chunks(CLUSTER as usize).map(digest));
            offset += length as u64;
        }
        digests
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let words = bytes
        .chunks(8)
        .map(|word| word.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)));
    words.fold(0xcbf2_9ce4_8422_2325, |hash, word| {
        (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
    })
}

/// A mark that is different for every number.
pub fn mark(number: u8) -> ImageMark {
    ImageMark([number; 32])
}

/// Writes at random places of a disk: data mostly, some discards and zeros.
pub fn scribble(disk: &Disk, seed: u64, operations: usize) {
    let mut random = Random::new(seed);
    let sectors = disk.target().size_bytes / 4096;
    for _ in 0..operations {
        let start = random.below(sectors);
        let length = (random.below(32) + 1).min(sectors - start);
        match random.below(10) {
            0 => {
                let _ = disk.blank(Blank::Discard, start * 4096, length * 4096);
            }
            1 => disk.blank(Blank::Zeroes, start * 4096, length * 4096).unwrap(),
            _ => disk.write(
                start * 4096,
                usize::try_from(length).unwrap() * 4096,
                random.next_u64(),
            ),
        }
    }
}
