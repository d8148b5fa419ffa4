//! A disk opened for reading.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hostdev::{BlockDevice, DeviceNumber, Identity, Node, Root};

use crate::open;
use crate::{
    AlignedBuf, BLOCK, BLOCK_BYTES, Error, ErrorKind, Result, align_down, align_up, to_u64, to_usize,
};

/// What a [`Device`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// A block device: a whole disk, a partition, a mapped device.
    Block,
    /// A regular file.
    File,
}

/// A block device or regular file, open for reading, with O_DIRECT where the filesystem allows it.
///
/// Clones share the descriptor.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

struct Inner {
    file: File,
    path: PathBuf,
    name: String,
    /// The block device or file itself, by whatever path it was opened.
    node: Node,
    size_bytes: u64,
    logical_block_size: u32,
    alignment: u64,
    direct: bool,
    identity: Identity,
}

impl Device {
    /// Opens a block device or a regular file, following symbolic links.
    ///
    /// # Errors
    /// `NotFound`; `WrongType` for anything else, without opening it, so that a FIFO cannot hang the caller;
    /// `Empty` when it holds no bytes; `PermissionDenied`; `Io`.
    pub fn open(path: &Path) -> Result<Device> {
        let resolved = open::resolve(path)?;
        let (file, direct) = resolved.open_for_reading(path)?;
        let inner = match DeviceNumber::of_block_device(&resolved.metadata) {
            Some(number) => Inner::of_block_device(file, path, number, direct)?,
            None => Inner::of_file(file, path, direct)?,
        };
        if inner.size_bytes == 0 {
            return Err(Error::new(ErrorKind::Empty, "open")
                .at_path(path)
                .detail("it holds no bytes"));
        }
        Ok(Device {
            inner: Arc::new(inner),
        })
    }

    /// Opens it once more, exclusively: nobody can mount it or one of its partitions, or hold it otherwise, while the file is open.
    /// Of a regular file, that keeps nobody from anything.
    ///
    /// # Errors
    /// `Busy` when it is in use; `PermissionDenied`; `Io`.
    pub fn hold(&self) -> Result<File> {
        open::again(&self.inner.file, libc::O_EXCL)
            .map_err(|source| Error::os("open exclusively", source).at_path(&self.inner.path))
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The kernel's name for a block device (`vda`, `loop3`), the stem of a file's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Size in bytes at the time of opening.
    pub fn size_bytes(&self) -> u64 {
        self.inner.size_bytes
    }

    /// The smallest unit the device reads and writes, in bytes; 512 for a regular file.
    pub fn logical_block_size(&self) -> u32 {
        self.inner.logical_block_size
    }

    /// What offsets and lengths of direct reads are multiples of, in bytes.
    ///
    /// The logical block size of a block device; at least 4096 for a regular file.
    pub fn alignment(&self) -> u64 {
        self.inner.alignment
    }

    /// Whether it is a block device or a file.
    pub fn kind(&self) -> DeviceKind {
        match self.inner.node {
            Node::Device(_) => DeviceKind::Block,
            Node::File(..) => DeviceKind::File,
        }
    }

    /// The block device or file itself, for questions about what lies on it and below it ([`hostdev::lies_on`]).
    pub fn node(&self) -> &Node {
        &self.inner.node
    }

    /// Major and minor number of a block device.
    pub fn device_number(&self) -> Option<DeviceNumber> {
        match self.inner.node {
            Node::Device(number) => Some(number),
            Node::File(..) => None,
        }
    }

    /// Whether reads bypass the page cache.
    pub fn is_direct(&self) -> bool {
        self.inner.direct
    }

    /// What tells this disk from others.
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// Asks the kernel again for the size and, of a block device, the disk sequence number.
    ///
    /// # Errors
    /// `Changed` when one differs from what it was at opening; `Io` when the kernel does not answer.
    pub fn check_unchanged(&self) -> Result<()> {
        let inner = &*self.inner;
        let size_bytes = match self.kind() {
            DeviceKind::Block => block_size_bytes(inner.file.as_fd()),
            DeviceKind::File => inner.file.metadata().map(|metadata| metadata.len()),
        };
        let size_bytes = size_bytes.map_err(|e| Error::os("read the size of", e).at_path(&inner.path))?;
        if size_bytes != inner.size_bytes {
            return Err(self.changed(format!(
                "its size went from {} to {size_bytes} bytes",
                inner.size_bytes
            )));
        }
        match (inner.identity.diskseq, diskseq(inner.file.as_fd())) {
            (Some(old), Some(new)) if old != new => Err(self.changed(format!(
                "another disk took its place: the disk sequence number went from {old} to {new}"
            ))),
            _ => Ok(()),
        }
    }

    fn changed(&self, detail: String) -> Error {
        Error::new(ErrorKind::Changed, "use")
            .at_path(self.path())
            .detail(detail)
    }

    /// Reads exactly `buf.len()` bytes at `offset`, synchronously. Any offset and length will do; aligned ones
    /// are not copied.
    ///
    /// # Errors
    /// `Invalid` for a range past the end; `ShortRead` when the device ends before its size; `Io` at the first
    /// unreadable sector's offset. The content of `buf` is then undefined.
    pub fn read_at(&self, offset: u64, buf: &mut AlignedBuf) -> Result<()> {
        let (align, len) = (self.alignment(), to_u64(buf.len()));
        self.check_range(offset, len)?;
        let padded = align_up(len, align);
        if offset.is_multiple_of(align) && padded <= to_u64(buf.capacity()) {
            let wanted = buf.len();
            return self.read_aligned(offset, &mut buf.whole_mut()[..to_usize(padded)], wanted);
        }
        let start = align_down(offset, align);
        let mut bounce = AlignedBuf::new(to_usize(align_up(offset + len, align) - start));
        let (skip, wanted) = (to_usize(offset - start), to_usize(offset + len - start));
        self.read_aligned(start, &mut bounce, wanted)?;
        buf.copy_from_slice(&bounce[skip..wanted]);
        Ok(())
    }

    /// Reads exactly `buf.len()` bytes at `offset`, and allocates nothing: for the time in which filesystems are frozen. Offset, length
    /// and the memory's address are multiples of [`alignment`](Device::alignment).
    ///
    /// # Errors
    /// What the kernel says; `UnexpectedEof` where the device ends before.
    pub fn read_aligned_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.file.read_exact_at(buf, offset)
    }

    /// Reads `buf.len()` bytes at `offset` block by block, and continues behind whatever cannot be read: first blocks of
    /// 4 KiB, and of those that fail each logical block, as most disks are slow to give up.
    ///
    /// Returns the unreadable byte ranges of the device, ascending, joined where they touch; `buf` holds zeros
    /// there. Each is a multiple of [`alignment`](Device::alignment) long, save at the end of the device.
    ///
    /// # Errors
    /// `Invalid` for an unaligned offset or a range past the end; `ShortRead` when the device ends before its
    /// size. An unreadable block is not an error.
    pub fn read_salvaging(&self, offset: u64, buf: &mut [u8]) -> Result<Vec<Range<u64>>> {
        let align = self.alignment();
        self.check_range(offset, to_u64(buf.len()))?;
        if !offset.is_multiple_of(align) {
            return Err(self.invalid(offset, format!("offsets must be multiples of {align}")));
        }
        let (large, small) = (to_usize(align.max(BLOCK)), to_usize(align));
        let mut block = AlignedBuf::new(large);
        let mut bad: Vec<Range<u64>> = Vec::new();
        for (piece, at) in in_blocks(offset, buf, large) {
            if self.read_block(at, piece, &mut block)? {
                continue;
            }
            for (piece, at) in in_blocks(at, piece, small) {
                if !self.read_block(at, piece, &mut block)? {
                    piece.fill(0);
                    join_range(&mut bad, at..at + to_u64(piece.len()));
                }
            }
        }
        Ok(bad)
    }

    /// Reads a piece of a device by way of `block`, which is at least as large. False: it cannot be read.
    fn read_block(&self, at: u64, piece: &mut [u8], block: &mut AlignedBuf) -> Result<bool> {
        let len = to_usize(align_up(to_u64(piece.len()), self.alignment()));
        match self.pread_full(at, &mut block[..len], piece.len()) {
            Ok(()) => piece.copy_from_slice(&block[..piece.len()]),
            Err(error) if error.kind() == ErrorKind::Io => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Checks that `[offset, offset + len)` lies within the size.
    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size_bytes() => Ok(()),
            _ => Err(self.invalid(
                offset,
                format!("{len} bytes reach past its {} bytes", self.size_bytes()),
            )),
        }
    }

    pub(crate) fn invalid(&self, offset: u64, detail: impl Into<String>) -> Error {
        Error::new(ErrorKind::Invalid, "read")
            .at_path(self.path())
            .at_offset(offset)
            .detail(detail)
    }

    /// Reads the first `wanted` bytes of an aligned range in one go, and block by block should that fail.
    fn read_aligned(&self, offset: u64, buf: &mut [u8], wanted: usize) -> Result<()> {
        match self.pread_full(offset, buf, wanted) {
            Err(error) if error.kind() == ErrorKind::Io => self.read_blockwise(offset, buf, wanted),
            result => result,
        }
    }

    /// Reads the first `wanted` bytes of `buf` block by block, to find the first one that cannot be read.
    ///
    /// `offset` is aligned, and `buf` reaches to the end of the last block.
    ///
    /// # Errors
    /// `Io` at the offset of that block. When every block can be read now, there is no error.
    pub(crate) fn read_blockwise(&self, offset: u64, buf: &mut [u8], wanted: usize) -> Result<()> {
        let align = to_usize(self.alignment());
        for begin in (0..wanted).step_by(align) {
            let end = buf.len().min(begin + align);
            self.pread_full(
                offset + to_u64(begin),
                &mut buf[begin..end],
                (wanted - begin).min(align),
            )?;
        }
        Ok(())
    }

    /// Reads at least the first `wanted` bytes of `buf`, again from the last aligned position after each short
    /// read.
    fn pread_full(&self, offset: u64, buf: &mut [u8], wanted: usize) -> Result<()> {
        let mut progress = Progress::new(offset, wanted, self.alignment());
        loop {
            let begin = progress.begin();
            let read = self.inner.file.read_at(&mut buf[begin..], offset + to_u64(begin));
            match read {
                Ok(count) => match progress.advance(count) {
                    Step::Done => return Ok(()),
                    Step::Again => {}
                    Step::Ended => return Err(self.short_read(progress.reached())),
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.read_error(offset + to_u64(begin), error)),
            }
        }
    }

    /// The device ended at `offset`, before its size.
    pub(crate) fn short_read(&self, offset: u64) -> Error {
        let size = self.size_bytes();
        Error::new(ErrorKind::ShortRead, "read")
            .at_path(self.path())
            .at_offset(offset)
            .detail(format!(
                "it ends there, yet its size was {size} bytes when it was opened; it shrank or was exchanged"
            ))
    }

    pub(crate) fn read_error(&self, offset: u64, source: io::Error) -> Error {
        // Whatever the number, the kind of a failed read of an open disk is Io: salvaging depends on it.
        let error = Error::os("read", source)
            .with_kind(ErrorKind::Io)
            .at_path(self.path())
            .at_offset(offset);
        let odd_bytes = self.size_bytes() % u64::from(self.logical_block_size());
        if self.kind() == DeviceKind::Block && odd_bytes > 0 && offset >= self.size_bytes() - odd_bytes {
            let block = self.logical_block_size();
            return error.detail(format!(
                "these last {odd_bytes} bytes are no whole {block}-byte logical block"
            ));
        }
        error
    }
}

impl Inner {
    fn of_block_device(file: File, path: &Path, number: DeviceNumber, direct: bool) -> Result<Inner> {
        let fail = |source| Error::os("read the geometry of", source).at_path(path);
        let size_bytes = block_size_bytes(file.as_fd()).map_err(fail)?;
        let logical_block_size = logical_block_size(file.as_fd()).map_err(fail)?;
        // Without sysfs the device has no identity that is known, and is read all the same.
        let known = BlockDevice::find(&Root::system(), number).map_err(|e| Error::host("identify", e))?;
        let name = match &known {
            Some(device) => device.name(),
            None => path.file_name().map(lossy).unwrap_or_default(),
        };
        let identity = known.map(|device| device.identity()).unwrap_or_default();
        for unread in &identity.unread {
            tracing::warn!(device = %path.display(), file = %unread.display(), "cannot read what identifies the disk");
        }
        Ok(Inner {
            identity: Identity {
                // Of the very device that is open.
                diskseq: diskseq(file.as_fd()),
                ..identity
            },
            file,
            path: path.to_owned(),
            name,
            node: Node::Device(number),
            size_bytes,
            logical_block_size,
            alignment: u64::from(logical_block_size),
            direct,
        })
    }

    fn of_file(file: File, path: &Path, direct: bool) -> Result<Inner> {
        let metadata = file
            .metadata()
            .map_err(|e| Error::os("examine", e).at_path(path))?;
        let direct = direct && metadata.len() > 0 && probe_direct(&file);
        Ok(Inner {
            alignment: open::file_alignment(file.as_fd()),
            name: path.file_stem().map(lossy).unwrap_or_default(),
            file,
            path: path.to_owned(),
            node: Node::of(path, &metadata),
            size_bytes: metadata.len(),
            logical_block_size: 512,
            direct,
            identity: Identity::default(),
        })
    }
}

/// Some filesystems take the flag and refuse the reads: then the flag goes again.
fn probe_direct(file: &File) -> bool {
    let mut block = AlignedBuf::new(BLOCK_BYTES);
    let refused = matches!(file.read_at(&mut block, 0), Err(e) if e.raw_os_error() == Some(libc::EINVAL));
    !(refused && open::set_direct(file.as_fd(), false))
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.file.as_fd()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("path", &self.inner.path)
            .field("kind", &self.kind())
            .field("size_bytes", &self.inner.size_bytes)
            .field("direct", &self.inner.direct)
            .finish_non_exhaustive()
    }
}

/// How far a read into one buffer has come, short reads included.
#[derive(Debug)]
pub(crate) struct Progress {
    offset: u64,
    wanted: usize,
    align: usize,
    /// Bytes of the buffer that are filled.
    filled: usize,
    /// First byte of the buffer that the current request fills; aligned.
    begin: usize,
}

/// What follows a completed request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// All that was wanted is there.
    Done,
    /// Read again, from [`Progress::begin`].
    Again,
    /// The request brought nothing new: the device ends here.
    Ended,
}

impl Progress {
    pub(crate) fn new(offset: u64, wanted: usize, align: u64) -> Progress {
        Progress {
            offset,
            wanted,
            align: to_usize(align),
            filled: 0,
            begin: 0,
        }
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn wanted(&self) -> usize {
        self.wanted
    }

    /// Where in the buffer the next request begins.
    pub(crate) fn begin(&self) -> usize {
        self.begin
    }

    /// Bytes to request: up to the end of the last block.
    pub(crate) fn request_len(&self) -> usize {
        self.wanted.next_multiple_of(self.align) - self.begin
    }

    /// Byte offset on the device up to which data has arrived.
    pub(crate) fn reached(&self) -> u64 {
        self.offset + to_u64(self.filled)
    }

    /// Notes that the current request brought `count` bytes.
    ///
    /// A short count is no end of file: signals and requeued requests make it too. Only a request that adds
    /// nothing to what is there tells that the device ends. It is repeated from an aligned position, because a
    /// direct read from an odd one fails with EINVAL.
    pub(crate) fn advance(&mut self, count: usize) -> Step {
        let reached = self.begin + count;
        if reached >= self.wanted {
            self.filled = self.wanted;
            return Step::Done;
        }
        if reached <= self.filled {
            return Step::Ended;
        }
        self.filled = reached;
        self.begin = reached - reached % self.align;
        Step::Again
    }
}

/// The blocks of a buffer, and where each lies on the device.
fn in_blocks(offset: u64, buf: &mut [u8], len: usize) -> impl Iterator<Item = (&mut [u8], u64)> {
    buf.chunks_mut(len).zip((offset..).step_by(len))
}

fn join_range(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

fn lossy(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

/// The block device ioctls of `linux/fs.h`.
mod ioctl {
    nix::ioctl_read!(get_size64, 0x12, 114, usize);
    nix::ioctl_read_bad!(get_sector_size, libc::BLKSSZGET, libc::c_int);
    nix::ioctl_read!(get_diskseq, 0x12, 128, u64);
}

pub(crate) fn block_size_bytes(file: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: BLKGETSIZE64 stores one u64; the size_t in its definition only makes its number.
    unsafe { ioctl::get_size64(file.as_raw_fd(), (&raw mut bytes).cast()) }?;
    Ok(bytes)
}

pub(crate) fn logical_block_size(file: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: BLKSSZGET stores one int.
    unsafe { ioctl::get_sector_size(file.as_raw_fd(), &raw mut bytes) }?;
    match u32::try_from(bytes) {
        Ok(bytes) if bytes.is_power_of_two() => Ok(bytes),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// `None` on kernels before 5.15.
fn diskseq(file: BorrowedFd<'_>) -> Option<u64> {
    let mut number = 0u64;
    // SAFETY: BLKGETDISKSEQ stores one u64.
    unsafe { ioctl::get_diskseq(file.as_raw_fd(), &raw mut number) }.ok()?;
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::{Progress, Step};

    #[test]
    fn a_short_read_is_repeated_from_the_last_aligned_position() {
        let mut progress = Progress::new(8192, 4096, 512);
        assert_eq!(progress.advance(1000), Step::Again);
        assert_eq!(
            (progress.begin(), progress.request_len(), progress.reached()),
            (512, 3584, 9192)
        );
        assert_eq!(progress.advance(3584), Step::Done);
    }

    #[test]
    fn a_repeated_read_that_adds_nothing_is_the_end() {
        let mut progress = Progress::new(0, 4096, 512);
        assert_eq!(progress.advance(1000), Step::Again);
        assert_eq!(progress.advance(488), Step::Ended);
        assert_eq!(progress.reached(), 1000);
    }

    #[test]
    fn an_empty_read_is_the_end_and_a_tail_is_requested_whole() {
        let mut progress = Progress::new(0, 513, 512);
        assert_eq!(progress.request_len(), 1024);
        assert_eq!(progress.advance(513), Step::Done);
        assert_eq!(Progress::new(0, 1, 4096).advance(0), Step::Ended);
    }
}
