//! Writing all of a disk, data and zeros, from several threads.

use crate::commands::map::each_extent;
use anyhow::{Context, ensure};
use blockio::AlignedBuf;
use cli::interrupt::Interrupt;
use cli::progress::Progress;
use crossbeam_channel::{Receiver, Sender, bounded};
use imagefmt::{Disk, Extent};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// Bytes written at a time.
const DATA_BYTES_MAX: u64 = 1 << 20;
/// Bytes zeroed at a time: a request that nobody can interrupt, should the device be slow at it.
const ZERO_BYTES_MAX: u64 = 64 << 20;
/// Threads that write: enough for a device to have something queued while clusters are decompressed.
const WRITERS: usize = 8;

mod ioctl {
    // BLKZEROOUT of the kernel's include/uapi/linux/fs.h; the range is [start, length] in bytes.
    nix::ioctl_write_ptr_bad!(zero_out, nix::request_code_none!(0x12, 127), [u64; 2]);
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes of data.
    pub data_bytes: u64,
    /// Bytes of zeros.
    pub zero_bytes: u64,
}

/// A piece of the disk to write.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    range: Range<u64>,
    data: bool,
}

/// Writes all of `disk` to `target`, which may be open with O_DIRECT, and makes it durable.
///
/// `alignment` is what O_DIRECT asks of offsets and lengths. A cluster of the image that is damaged, a failed
/// write or an interrupt ends it; the target is then incomplete.
pub fn write_disk(
    disk: &Disk,
    target: &File,
    alignment: u64,
    interrupt: &Interrupt,
    progress: &Progress,
) -> anyhow::Result<Written> {
    let size = disk.size_bytes();
    let aligned_end = size - size % alignment;
    let writer = Writer::new(disk, target, progress)?;
    thread::scope(|scope| {
        let (pieces, queue) = bounded::<Piece>(2 * WRITERS);
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                let (writer, queue) = (&writer, queue.clone());
                scope.spawn(move || writer.work(&queue))
            })
            .collect();
        drop(queue);
        let planned = writer.plan(aligned_end, interrupt, &pieces);
        drop(pieces);
        let written = writers.into_iter().map(|writer| match writer.join() {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        // A writer's failure comes first: it is why planning ended, if it did.
        written
            .collect::<Vec<_>>()
            .into_iter()
            .collect::<anyhow::Result<()>>()?;
        planned
    })?;
    writer.tail(aligned_end..size)?;
    target.sync_all().context("flush the target")?;
    Ok(writer.written())
}

/// Cuts an extent into pieces that end at multiples of their greatest length.
fn cut(extent: &Extent, end: u64) -> impl Iterator<Item = Piece> {
    let data = extent.data;
    let step = if data { DATA_BYTES_MAX } else { ZERO_BYTES_MAX };
    let end = end.min(extent.offset + extent.length);
    let mut start = extent.offset;
    std::iter::from_fn(move || {
        let stop = ((start / step + 1) * step).min(end);
        let range = std::mem::replace(&mut start, stop)..stop;
        (range.start < range.end).then_some(Piece { range, data })
    })
}

struct Writer<'a> {
    disk: &'a Disk,
    target: &'a File,
    is_device: bool,
    progress: &'a Progress,
    data_bytes: AtomicU64,
    zero_bytes: AtomicU64,
    /// A writer failed: nobody needs to go on.
    failed: AtomicBool,
}

impl<'a> Writer<'a> {
    fn new(disk: &'a Disk, target: &'a File, progress: &'a Progress) -> anyhow::Result<Self> {
        let is_device = target
            .metadata()
            .context("examine the target")?
            .file_type()
            .is_block_device();
        let (data_bytes, zero_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let failed = AtomicBool::new(false);
        Ok(Self {
            disk,
            target,
            is_device,
            progress,
            data_bytes,
            zero_bytes,
            failed,
        })
    }

    fn written(&self) -> Written {
        let data_bytes = self.data_bytes.load(Ordering::Relaxed);
        Written {
            data_bytes,
            zero_bytes: self.zero_bytes.load(Ordering::Relaxed),
        }
    }

    /// Sends all of the disk up to `end` in pieces, until a writer fails.
    fn plan(&self, end: u64, interrupt: &Interrupt, pieces: &Sender<Piece>) -> anyhow::Result<()> {
        each_extent(self.disk, |extent| {
            for piece in cut(extent, end) {
                interrupt.check()?;
                ensure!(!self.failed.load(Ordering::Relaxed), "a write failed");
                pieces.send(piece).context("every writer has ended")?;
            }
            Ok(())
        })
    }

    /// Writes pieces until there are none, or another writer fails.
    fn work(&self, queue: &Receiver<Piece>) -> anyhow::Result<()> {
        let len = usize::try_from(DATA_BYTES_MAX).unwrap_or(usize::MAX);
        let mut buffer = AlignedBuf::new(len);
        for piece in queue {
            if self.failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let written = self.piece(&piece, &mut buffer);
            written.inspect_err(|_| self.failed.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    }

    fn piece(&self, piece: &Piece, buffer: &mut AlignedBuf) -> anyhow::Result<()> {
        let Range { start, end } = piece.range;
        if piece.data {
            buffer.set_len(usize::try_from(end - start).unwrap_or(usize::MAX));
            self.disk.read_at(start, buffer)?;
            self.write(buffer, start)?;
        } else {
            self.zero(start, end - start)?;
        }
        self.count(piece.data, end - start);
        Ok(())
    }

    fn count(&self, data: bool, bytes: u64) {
        let counter = if data { &self.data_bytes } else { &self.zero_bytes };
        counter.fetch_add(bytes, Ordering::Relaxed);
        self.progress.advance(bytes);
    }

    fn write(&self, bytes: &[u8], offset: u64) -> anyhow::Result<()> {
        let written = self.target.write_all_at(bytes, offset);
        written.with_context(|| format!("write to the target at byte {offset}"))
    }

    fn zero(&self, offset: u64, length: u64) -> anyhow::Result<()> {
        let zeroed = if self.is_device {
            zero_out(self.target, offset, length)
        } else {
            punch(self.target, offset, length)
        };
        match zeroed {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL | Errno::ENOSYS) => {
                self.write_zeros(offset, length)
            }
            Err(error) => {
                let what = format!("zero {length} bytes of the target at byte {offset}");
                Err(io::Error::from(error)).context(what)
            }
        }
    }

    fn write_zeros(&self, offset: u64, length: u64) -> anyhow::Result<()> {
        let len = usize::try_from(length.min(DATA_BYTES_MAX)).unwrap_or(usize::MAX);
        let zeros = AlignedBuf::new(len);
        let mut done = 0;
        while done < length {
            let len = usize::try_from(length - done).map_or(zeros.len(), |left| left.min(zeros.len()));
            self.write(&zeros[..len], offset + done)?;
            done += len as u64;
        }
        Ok(())
    }

    /// Writes what lies behind the last whole block, through the page cache: O_DIRECT cannot.
    fn tail(&self, range: Range<u64>) -> anyhow::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut bytes = vec![0; usize::try_from(range.end - range.start)?];
        self.disk.read_at(range.start, &mut bytes)?;
        let flags = fcntl(self.target, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        let flags = flags
            .context("read the target's flags")?
            .difference(OFlag::O_DIRECT);
        fcntl(self.target, FcntlArg::F_SETFL(flags)).context("turn O_DIRECT off")?;
        self.write(&bytes, range.start)?;
        self.count(true, range.end - range.start);
        Ok(())
    }
}

/// Zeros a range of a block device; the kernel writes zeros where the device knows nothing better.
fn zero_out(device: &File, offset: u64, length: u64) -> nix::Result<()> {
    let range = [offset, length];
    // SAFETY: the ioctl reads two u64 from the pointer, which outlives the call; the descriptor is open.
    unsafe { ioctl::zero_out(device.as_raw_fd(), &raw const range) }.map(drop)
}

/// Makes a range of a file a hole, which reads as zeros.
fn punch(file: &File, offset: u64, length: u64) -> nix::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
        return Err(Errno::EINVAL);
    };
    fallocate(file, flags, offset, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_an_extent_up_to_the_end() {
        let extent = Extent {
            offset: 65536,
            length: 5 << 20,
            data: true,
        };
        let end = (4 << 20) + 512;
        let pieces: Vec<Piece> = cut(&extent, end).collect();
        assert_eq!(pieces.first().unwrap().range, 65536..1 << 20);
        assert_eq!(pieces.last().unwrap().range, 4 << 20..end);
        assert!(
            pieces
                .windows(2)
                .all(|pair| pair[0].range.end == pair[1].range.start)
        );
        let behind = Extent {
            offset: 8 << 20,
            length: 1 << 20,
            data: false,
        };
        assert_eq!(cut(&behind, end).count(), 0);
    }
}
