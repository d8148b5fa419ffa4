//! Block devices that a test makes and writes to, past the page cache.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::process::{PATIENCE, wait_until};

/// How long a guard that is dropped waits for others to let go.
const DROP_TIMEOUT: Duration = Duration::from_secs(10);

/// What direct I/O is aligned to, in bytes: enough for every disk.
const ALIGNMENT: usize = 4096;

/// Memory for direct I/O.
#[derive(Debug)]
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// `length` zero bytes.
    pub fn new(length: usize) -> Self {
        let memory = vec![0; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self {
            memory,
            start,
            length,
        }
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// How a range of a disk becomes zeros without data being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blank {
    /// BLKDISCARD: the disk may forget the range. Loop and zram devices then read as zeros.
    Discard,
    /// BLKZEROOUT.
    Zeroes,
}

impl Blank {
    fn request(self) -> libc::Ioctl {
        match self {
            Self::Discard => 0x1277,
            Self::Zeroes => 0x127f,
        }
    }

    /// Blanks a range of an open device, in bytes.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn range(self, device: &File, offset: u64, length: u64) -> std::io::Result<()> {
        let range = [offset, length];
        // SAFETY: both requests read two numbers, which outlive the call; the descriptor is open.
        Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), self.request(), range.as_ptr()) })
            .map(drop)
            .map_err(Into::into)
    }
}

/// Opens a device for direct reads and writes.
///
/// # Errors
/// [`ErrorKind::Io`].
pub fn open_direct(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    options.open(path).context(|| format!("open {}", path.display()))
}

/// Writes past the page cache; offset and length are multiples of the disk's blocks.
///
/// # Errors
/// What the kernel says.
pub fn write_direct(device: &File, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    let mut buffer = Aligned::new(bytes.len());
    buffer.bytes().copy_from_slice(bytes);
    device.write_all_at(buffer.bytes(), offset)
}

/// A zram device of its own; gone with the guard.
#[derive(Debug)]
pub struct Zram {
    id: String,
    path: PathBuf,
}

impl Zram {
    /// One of so many bytes, all zeros.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the kernel has none, [`ErrorKind::Timeout`] when its node does not appear.
    pub fn new(size_bytes: u64) -> Result<Self> {
        let control = "/sys/class/zram-control/hot_add";
        let id = fs::read_to_string(control).context(|| format!("read {control}"))?;
        let id = id.trim().to_owned();
        let path = PathBuf::from(format!("/dev/zram{id}"));
        let zram = Self { id, path };
        zram.set("disksize", &size_bytes.to_string())?;
        wait_until(PATIENCE, || zram.path.exists()).map_err(|_| {
            let path = zram.path.display();
            Error::new(ErrorKind::Timeout, format!("{path} does not appear"))
        })?;
        Ok(zram)
    }

    /// Resets it, and sets it up again as a device of so many bytes, all zeros, with the same number.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] while it is open, [`ErrorKind::Io`].
    pub fn set_up_again(&self, size_bytes: u64) -> Result<()> {
        wait_until(DROP_TIMEOUT, || self.set("reset", "1").is_ok())?;
        self.set("disksize", &size_bytes.to_string())
    }

    /// The device node, `/dev/zramN`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn set(&self, attribute: &str, value: &str) -> Result<()> {
        let path = format!("/sys/block/zram{}/{attribute}", self.id);
        fs::write(&path, value).context(|| format!("write {value} to {path}"))
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        // Whoever has it open is a moment from closing it.
        let _ = wait_until(DROP_TIMEOUT, || self.set("reset", "1").is_ok());
        let _ = fs::write("/sys/class/zram-control/hot_remove", &self.id);
    }
}
