//! Writing all of a disk, data and zeros, from several threads.

use crate::copy::Pipeline;
use crate::copy::pieces::{cut, extents};
use anyhow::Context;
use blockio::AlignedBuf;
use cli::interrupt::Interrupt;
use cli::progress::Progress;
use imagefmt::{Disk, Extent};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt};

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes of data.
    pub data_bytes: u64,
    /// Bytes of zeros.
    pub zero_bytes: u64,
}

/// A file or device that a disk is written to.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Open for writing, which may be with O_DIRECT.
    pub file: &'a File,
    /// What O_DIRECT asks of offsets and lengths.
    pub alignment: u64,
    /// Whether all of it reads as zeros already, as a new file does: then zeros are not written.
    pub is_zero: bool,
}

/// A piece of the disk to write.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    range: Range<u64>,
    data: bool,
}

/// Writes all of `disk` to `target`, and makes it durable.
///
/// # Errors
/// A cluster of the image that is damaged, a failed write, or an interrupt. The target is then incomplete.
pub fn write_disk(
    disk: &Disk,
    target: Target<'_>,
    interrupt: &Interrupt,
    progress: &Progress,
) -> anyhow::Result<Written> {
    let size = disk.size_bytes();
    let aligned_end = size - size % target.alignment;
    let writer = Writer::new(disk, target)?;
    let pieces = extents(disk).flat_map(|extent| pieces_of(extent, aligned_end));
    let worker = || {
        let mut buffer = AlignedBuf::new(usize::try_from(DATA_BYTES_MAX).unwrap_or(usize::MAX));
        let writer = &writer;
        move |piece: Piece| writer.piece(&piece, &mut buffer).map(|()| piece)
    };
    let mut written = Written::default();
    Pipeline::on_threads(WRITERS, interrupt).run(pieces, worker, |piece| {
        let bytes = piece.range.end - piece.range.start;
        *(if piece.data {
            &mut written.data_bytes
        } else {
            &mut written.zero_bytes
        }) += bytes;
        progress.advance(bytes);
        Ok(())
    })?;
    writer.tail(aligned_end..size)?;
    written.data_bytes += size - aligned_end;
    target.file.sync_all().context("flush the target")?;
    Ok(written)
}

/// An extent in pieces that end at multiples of their greatest length, as far as `end`; an error as it is.
fn pieces_of(extent: anyhow::Result<Extent>, end: u64) -> impl Iterator<Item = anyhow::Result<Piece>> {
    let (extent, error) = match extent {
        Ok(extent) => (Some(extent), None),
        Err(error) => (None, Some(Err(error))),
    };
    let pieces = extent.into_iter().flat_map(move |extent| {
        let data = extent.data;
        let step = if data { DATA_BYTES_MAX } else { ZERO_BYTES_MAX };
        let end = end.min(extent.offset + extent.length);
        cut(extent.offset..end, step).map(move |range| Ok(Piece { range, data }))
    });
    pieces.chain(error)
}

struct Writer<'a> {
    disk: &'a Disk,
    target: Target<'a>,
    is_device: bool,
}

impl<'a> Writer<'a> {
    fn new(disk: &'a Disk, target: Target<'a>) -> anyhow::Result<Self> {
        let metadata = target.file.metadata().context("examine the target")?;
        let is_device = metadata.file_type().is_block_device();
        Ok(Self {
            disk,
            target,
            is_device,
        })
    }

    fn piece(&self, piece: &Piece, buffer: &mut AlignedBuf) -> anyhow::Result<()> {
        let Range { start, end } = piece.range;
        if piece.data {
            buffer.set_len(usize::try_from(end - start).unwrap_or(usize::MAX));
            self.disk.read_at(start, buffer)?;
            return self.write(buffer, start);
        }
        if self.target.is_zero {
            return Ok(());
        }
        self.zero(start, end - start)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> anyhow::Result<()> {
        let written = self.target.file.write_all_at(bytes, offset);
        written.with_context(|| format!("write to the target at byte {offset}"))
    }

    fn zero(&self, offset: u64, length: u64) -> anyhow::Result<()> {
        let zeroed = if self.is_device {
            zero_out(self.target.file, offset, length)
        } else {
            punch(self.target.file, offset, length)
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
        blockio::set_buffered(self.target.file);
        self.write(&bytes, range.start)
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
        let pieces: Vec<Piece> = pieces_of(Ok(extent), end).map(Result::unwrap).collect();
        assert_eq!(pieces.first().unwrap().range, 65536..1 << 20);
        assert_eq!(pieces.last().unwrap().range, 4 << 20..end);
        let behind = Extent {
            offset: 8 << 20,
            length: 1 << 20,
            data: false,
        };
        assert_eq!(pieces_of(Ok(behind), end).count(), 0);
        let failed = pieces_of(Err(anyhow::anyhow!("no map")), end).next().unwrap();
        assert_eq!(failed.unwrap_err().to_string(), "no map");
    }
}
