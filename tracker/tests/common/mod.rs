//! Devices and a BPF filesystem of its own for a test.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hostdev::{DeviceNumber, Root};
use nix::mount::MsFlags;
use testkit::Random;
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
        let mount = Mount::new(Path::new("bpf"), &at, "bpf", MsFlags::empty()).unwrap();
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
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path)
            .unwrap();
        Disk { path, file, device }
    }

    pub fn number(&self) -> DeviceNumber {
        DeviceNumber::of_block_device(&fs::metadata(&self.path).unwrap()).unwrap()
    }

    pub fn target(&self) -> Target {
        Target::of(&Root::system(), self.number(), CLUSTER).unwrap()
    }

    pub fn write(&self, offset: u64, length: usize, seed: u64) {
        let mut buffer = Aligned::new(length);
        buffer.bytes().copy_from_slice(&testkit::noise(length, seed));
        self.file.write_all_at(buffer.bytes(), offset).unwrap();
    }

    /// BLKDISCARD or BLKZEROOUT.
    pub fn blank(&self, request: libc::Ioctl, offset: u64, length: u64) -> std::io::Result<()> {
        let range = [offset, length];
        // SAFETY: both requests read two numbers, which live.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), request, range.as_ptr()) };
        if result < 0 {
            Err(std::io::Error::last_os_error())
        } else {
            Ok(())
        }
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

pub const BLKDISCARD: libc::Ioctl = 0x1277;
pub const BLKZEROOUT: libc::Ioctl = 0x127f;

fn digest(bytes: &[u8]) -> u64 {
    let words = bytes
        .chunks(8)
        .map(|word| word.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)));
    words.fold(0xcbf2_9ce4_8422_2325, |hash, word| {
        (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
    })
}

/// Memory for O_DIRECT.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    pub fn new(length: usize) -> Aligned {
        let memory = vec![0; length + 4096];
        let start = memory.as_ptr().align_offset(4096);
        Aligned {
            memory,
            start,
            length,
        }
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
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
                let _ = disk.blank(BLKDISCARD, start * 4096, length * 4096);
            }
            1 => disk.blank(BLKZEROOUT, start * 4096, length * 4096).unwrap(),
            _ => disk.write(
                start * 4096,
                usize::try_from(length).unwrap() * 4096,
                random.next_u64(),
            ),
        }
    }
}

/// A zram device of its own; gone with the guard.
pub struct Zram {
    id: String,
}

impl Zram {
    pub fn new(size_bytes: u64) -> Zram {
        let id = fs::read_to_string("/sys/class/zram-control/hot_add").unwrap();
        let zram = Zram {
            id: id.trim().to_owned(),
        };
        fs::write(zram.attribute("disksize"), size_bytes.to_string()).unwrap();
        testkit::process::wait_for("the node of the zram device", || zram.path().exists());
        zram
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/zram{}", self.id))
    }

    fn attribute(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/sys/block/zram{}/{name}", self.id))
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        // Whoever has it open is a moment from closing it.
        let _ = testkit::process::wait_until(std::time::Duration::from_secs(10), || {
            fs::write(self.attribute("reset"), "1").is_ok()
        });
        let _ = fs::write("/sys/class/zram-control/hot_remove", &self.id);
    }
}
