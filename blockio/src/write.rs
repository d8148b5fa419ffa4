//! Appending to a file or a block device, many writes in flight, in the caller's thread.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::PathBuf;

use crate::buffer::{Arena, Slot, iovecs};
use crate::device::logical_block_size;
use crate::open::{file_alignment, is_direct, set_direct};
use crate::queue::{Direction, Issuer, Queue, Transfer, is_retryable};
use crate::{BLOCK, Error, ErrorKind, Result, align_down, align_up, to_u64, to_usize};

const BUFFER_BYTES_MAX: usize = 1 << 30;
const DEPTH_MAX: usize = 4096;

/// How often a write is repeated that makes no progress and reports no error of the device.
const RETRIES_MAX: u32 = 100;

/// How to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteOptions {
    /// Bytes per write: a multiple of 4096 and of the file's alignment, at most 1 GiB.
    pub buffer_bytes: usize,
    /// Writes in flight, at most 4096.
    pub depth: usize,
    /// Byte offset of the first write; a multiple of the file's alignment.
    pub start_offset: u64,
    /// Whether [`finish`](SequentialWriter::finish) fills the last block with zeros (4096 bytes in a file, the
    /// logical block of a device). If not, the odd bytes at the end are written through the page cache.
    pub pad_tail: bool,
    /// How far the end of a regular file is moved ahead of the writes; 0 leaves it to them.
    ///
    /// ext4 waits for each O_DIRECT write that extends a file (`ext4_dio_write_iter`) before it takes the
    /// next: with the end moved ahead, as a hole, they run in parallel. [`trim`](SequentialWriter::trim) and
    /// [`finish`](SequentialWriter::finish) move it back.
    pub extend_bytes: u64,
}

impl Default for WriteOptions {
    fn default() -> WriteOptions {
        WriteOptions {
            buffer_bytes: 1 << 20,
            depth: 8,
            start_offset: 0,
            pad_tail: false,
            extend_bytes: 0,
        }
    }
}

/// Writes a file or a block device front to back, with holes where asked.
///
/// No byte is written twice and nothing is synced: after [`flush`](SequentialWriter::flush) or
/// [`finish`](SequentialWriter::finish) the kernel has taken the data, and the caller calls fdatasync.
///
/// A write error surfaces at one of the next calls, and from then on at every call. Dropping the writer waits
/// for the writes in flight and loses what was not submitted yet.
pub struct SequentialWriter {
    /// The first field: dropped before the file whose descriptor it uses.
    queue: Queue<Pending>,
    file: File,
    path: Option<PathBuf>,
    /// What offsets and lengths must be multiples of; 1 without O_DIRECT.
    alignment: u64,
    tail_alignment: u64,
    buffer_bytes: usize,
    pad_tail: bool,
    extend_bytes: u64,
    /// Up to where the file was extended ahead; 0 if it was not.
    extended_to: u64,
    free: Vec<Slot>,
    /// The buffer being filled.
    current: Option<Slot>,
    filled: usize,
    /// Where in the file the current buffer begins.
    current_offset: u64,
    failure: Option<Error>,
}

/// A write in flight; it owns the buffer that the kernel reads from.
struct Pending {
    slot: Slot,
    offset: u64,
    len: usize,
    done: usize,
    retries: u32,
}

impl SequentialWriter {
    /// Takes a file or block device opened for writing, with O_DIRECT or without.
    ///
    /// # Errors
    /// `Invalid` for options that the file does not fit; `Io` when the kernel gives no memory or no thread.
    pub fn new(file: File, options: &WriteOptions) -> Result<SequentialWriter> {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
        let (alignment, tail_alignment) =
            alignments(&file).map_err(|e| locate(Error::os("examine", e), path.as_ref()))?;
        check(options, alignment).map_err(|error| locate(error, path.as_ref()))?;
        let fail = |source: io::Error| locate(Error::os("set up writing of", source), path.as_ref());
        // One more than can be in flight: it is being filled.
        let free = Arena::slots(options.depth + 1, options.buffer_bytes).map_err(fail)?;
        let mut queue = Queue::new(Issuer::AnyThread, options.depth, &iovecs(&free)).map_err(fail)?;
        queue.use_file(file.as_fd());
        Ok(SequentialWriter {
            queue,
            file,
            path,
            alignment,
            tail_alignment,
            buffer_bytes: options.buffer_bytes,
            pad_tail: options.pad_tail,
            extend_bytes: options.extend_bytes,
            extended_to: 0,
            free,
            current: None,
            filled: 0,
            current_offset: options.start_offset,
            failure: None,
        })
    }

    /// Byte offset in the file of the next byte to be appended.
    pub fn position(&self) -> u64 {
        self.current_offset + to_u64(self.filled)
    }

    /// What positions for [`submit`](Self::submit) and [`skip_to`](Self::skip_to) must be multiples of.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The file being written, for example to sync it after a flush.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Copies `bytes` to the end, and starts writes as buffers fill. Waits only when `depth` are in flight.
    ///
    /// # Errors
    /// `NoSpace` or `Io` with the offset of a write that failed, this call's or an earlier one's.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.check_failure()?;
        while !bytes.is_empty() {
            let taken = bytes.len().min(self.buffer_bytes - self.filled);
            let (head, rest) = bytes.split_at(taken);
            let begin = self.filled;
            self.current_slot()?[begin..begin + taken].copy_from_slice(head);
            self.filled += taken;
            bytes = rest;
            if self.filled == self.buffer_bytes {
                self.submit_first(self.filled)?;
            }
        }
        Ok(())
    }

    /// Appends zeros up to the next multiple of `align`.
    ///
    /// # Errors
    /// `Invalid` for an alignment of 0; otherwise as for [`append`](Self::append).
    pub fn pad_to(&mut self, align: u64) -> Result<()> {
        self.check_failure()?;
        if align == 0 {
            return Err(self.invalid("no position is a multiple of 0"));
        }
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut missing = align_up(self.position(), align) - self.position();
        while missing > 0 {
            let count = missing.min(to_u64(ZEROS.len()));
            self.append(&ZEROS[..to_usize(count)])?;
            missing -= count;
        }
        Ok(())
    }

    /// Starts writing what is buffered, without waiting, so that the next byte begins a write of its own.
    ///
    /// # Errors
    /// `Invalid` when the position is not aligned; otherwise as for [`append`](Self::append).
    pub fn submit(&mut self) -> Result<()> {
        self.check_failure()?;
        if !self.position().is_multiple_of(self.alignment) {
            return Err(self.invalid(format!(
                "a write ends at a multiple of {}; pad first",
                self.alignment
            )));
        }
        self.submit_first(self.filled)
    }

    /// Goes on at `offset` and leaves what lies between untouched: a hole in a new file.
    ///
    /// # Errors
    /// `Invalid` when `offset` lies behind the position, or when one of both is not aligned; otherwise as for
    /// [`append`](Self::append).
    pub fn skip_to(&mut self, offset: u64) -> Result<()> {
        self.check_failure()?;
        if offset < self.position() {
            return Err(self.invalid(format!(
                "byte {offset} lies before it; this writer only goes forward"
            )));
        }
        if offset == self.position() {
            return Ok(());
        }
        if !offset.is_multiple_of(self.alignment) {
            return Err(self.invalid(format!("byte {offset} is not a multiple of {}", self.alignment)));
        }
        self.submit()?;
        self.current_offset = offset;
        Ok(())
    }

    /// Writes all whole blocks and waits until the kernel has taken everything written so far.
    ///
    /// Bytes after the last whole block stay in memory, since no block is written twice: pad first if they
    /// must reach the file. No sync: call fdatasync on [`file`](Self::file).
    ///
    /// # Errors
    /// As for [`append`](Self::append).
    pub fn flush(&mut self) -> Result<()> {
        self.check_failure()?;
        let whole =
            align_down(self.position(), self.alignment).max(self.current_offset) - self.current_offset;
        self.submit_first(to_usize(whole))?;
        self.wait_all()
    }

    /// Ends a file that was extended ahead at the position: after a [`flush`](Self::flush), before a sync.
    ///
    /// # Errors
    /// `Invalid` while bytes wait in memory for the rest of their block; `Io` when the file cannot be truncated.
    pub fn trim(&mut self) -> Result<()> {
        self.check_failure()?;
        if self.current.is_some() && self.filled > 0 {
            return Err(self.invalid(format!(
                "its last {} bytes are not written: pad to a multiple of {} and flush first",
                self.filled, self.alignment
            )));
        }
        if std::mem::take(&mut self.extended_to) == 0 {
            return Ok(());
        }
        let end = self.position();
        self.file
            .set_len(end)
            .map_err(|source| self.latch(self.write_error(end, source)))
    }

    /// Moves the end of a regular file ahead of a write up to `end`.
    fn extend_ahead(&mut self, end: u64) -> Result<()> {
        if self.extend_bytes == 0 || end <= self.extended_to {
            return Ok(());
        }
        let target = end.saturating_add(self.extend_bytes);
        let shorter = |len: u64| len < target;
        // A device, or a file that is overwritten, has its length already.
        if self
            .file
            .metadata()
            .is_ok_and(|found| found.is_file() && shorter(found.len()))
        {
            self.file
                .set_len(target)
                .map_err(|source| self.latch(self.write_error(end, source)))?;
            self.extended_to = target;
        }
        Ok(())
    }

    /// Writes the tail, waits for every write and returns the file, not synced.
    ///
    /// With `pad_tail` the file ends on a block boundary (see [`WriteOptions`]); without, at exactly the
    /// position.
    ///
    /// # Errors
    /// As for [`append`](Self::append).
    pub fn finish(mut self) -> Result<File> {
        self.check_failure()?;
        if self.pad_tail {
            self.pad_to(self.tail_alignment)?;
        }
        self.flush()?;
        self.write_odd_tail()?;
        self.trim()?;
        let SequentialWriter { queue, file, .. } = self;
        drop(queue);
        Ok(file)
    }

    /// Writes what is shorter than a block, for which O_DIRECT has to be off.
    fn write_odd_tail(&mut self) -> Result<()> {
        let Some(slot) = self.current.take().filter(|_| self.filled > 0) else {
            return Ok(());
        };
        set_direct(self.file.as_fd(), false);
        let written = self.file.write_all_at(&slot[..self.filled], self.current_offset);
        set_direct(self.file.as_fd(), true);
        written.map_err(|source| self.latch(self.write_error(self.current_offset, source)))
    }

    /// The buffer being filled, taken from the free ones if there is none.
    fn current_slot(&mut self) -> Result<&mut Slot> {
        let slot = match self.current.take() {
            Some(slot) => slot,
            None => self.take_free()?,
        };
        Ok(self.current.insert(slot))
    }

    fn take_free(&mut self) -> Result<Slot> {
        loop {
            if let Some(slot) = self.free.pop() {
                return Ok(slot);
            }
            self.wait_one()?;
        }
    }

    /// Starts writing the first `len` bytes of the current buffer, and moves the rest to a new one.
    fn submit_first(&mut self, len: usize) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        while self.queue.is_full() {
            self.wait_one()?;
        }
        self.extend_ahead(self.current_offset + to_u64(len))?;
        let Some(slot) = self.current.take() else {
            return Ok(());
        };
        if len < self.filled {
            let mut next = self.take_free()?;
            next[..self.filled - len].copy_from_slice(&slot[len..self.filled]);
            self.current = Some(next);
        }
        self.start(Pending {
            slot,
            offset: self.current_offset,
            len,
            done: 0,
            retries: 0,
        });
        self.current_offset += to_u64(len);
        self.filled -= len;
        self.queue
            .submit()
            .map_err(|source| self.latch(self.write_error(self.current_offset, source)))?;
        while let Some((pending, result)) = self.queue.take_completed() {
            self.complete(pending, result)?;
        }
        Ok(())
    }

    fn start(&mut self, mut pending: Pending) {
        let (bytes, offset) = (pending.done..pending.len, pending.offset + to_u64(pending.done));
        let transfer = Transfer::new(&mut pending.slot, bytes, offset);
        // SAFETY: `pending` owns the slot.
        unsafe { self.queue.start(pending, &transfer, Direction::Write) };
    }

    fn wait_all(&mut self) -> Result<()> {
        while self.queue.in_flight() > 0 {
            self.wait_one()?;
        }
        Ok(())
    }

    fn wait_one(&mut self) -> Result<()> {
        match self.queue.wait() {
            Ok(Some((pending, result))) => self.complete(pending, result),
            Ok(None) => Ok(()),
            Err(source) => Err(self.latch(self.write_error(self.current_offset, source))),
        }
    }

    fn complete(&mut self, mut pending: Pending, result: i32) -> Result<()> {
        let before = pending.done;
        match usize::try_from(result) {
            Ok(count) => pending.advance(count, self.alignment),
            Err(_) if is_retryable(result) => {}
            Err(_) => return Err(self.fail_write(&pending, io::Error::from_raw_os_error(-result))),
        }
        if pending.done == pending.len {
            self.free.push(pending.slot);
            return Ok(());
        }
        pending.retries = if pending.done > before {
            0
        } else {
            pending.retries + 1
        };
        if pending.retries > RETRIES_MAX {
            let source = if result < 0 {
                io::Error::from_raw_os_error(-result)
            } else {
                io::ErrorKind::WriteZero.into()
            };
            return Err(self.fail_write(&pending, source));
        }
        self.start(pending);
        Ok(())
    }

    fn fail_write(&mut self, pending: &Pending, source: io::Error) -> Error {
        let error = self.write_error(pending.offset + to_u64(pending.done), source);
        self.latch(error)
    }

    fn write_error(&self, offset: u64, source: io::Error) -> Error {
        locate(Error::os("write", source), self.path.as_ref()).at_offset(offset)
    }

    fn invalid(&self, detail: impl Into<String>) -> Error {
        let error = Error::new(ErrorKind::Invalid, "write")
            .at_offset(self.position())
            .detail(detail);
        locate(error, self.path.as_ref())
    }

    /// Remembers the first error, for every later call.
    fn latch(&mut self, error: Error) -> Error {
        self.failure.get_or_insert(error).again()
    }

    fn check_failure(&self) -> Result<()> {
        self.failure
            .as_ref()
            .map_or(Ok(()), |failure| Err(failure.again()))
    }
}

impl Pending {
    /// Notes that `count` more bytes are written. A direct write continues at an aligned position.
    fn advance(&mut self, count: usize, alignment: u64) {
        let reached = (self.done + count).min(self.len);
        self.done = if reached == self.len {
            reached
        } else {
            to_usize(align_down(to_u64(reached), alignment))
        };
    }
}

impl fmt::Debug for SequentialWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SequentialWriter")
            .field(
                "path",
                &self
                    .path
                    .as_deref()
                    .map_or(OsStr::new("?"), |path| path.as_os_str()),
            )
            .field("position", &self.position())
            .field("in_flight", &self.queue.in_flight())
            .finish_non_exhaustive()
    }
}

fn locate(error: Error, path: Option<&PathBuf>) -> Error {
    match path {
        Some(path) => error.at_path(path),
        None => error,
    }
}

/// What writes must be aligned to, and what the tail is padded to.
fn alignments(file: &File) -> io::Result<(u64, u64)> {
    let direct = is_direct(file.as_fd());
    if file.metadata()?.file_type().is_block_device() {
        let block = u64::from(logical_block_size(file.as_fd())?);
        return Ok((if direct { block } else { 1 }, block));
    }
    let block = file_alignment(file.as_fd());
    Ok(if direct { (block, block) } else { (1, BLOCK) })
}

fn check(options: &WriteOptions, alignment: u64) -> Result<()> {
    let invalid = |detail: String| Err(Error::new(ErrorKind::Invalid, "write").detail(detail));
    let WriteOptions {
        buffer_bytes,
        depth,
        start_offset,
        ..
    } = *options;
    let granule = alignment.max(BLOCK);
    if buffer_bytes == 0 || buffer_bytes > BUFFER_BYTES_MAX || !to_u64(buffer_bytes).is_multiple_of(granule) {
        return invalid(format!(
            "{buffer_bytes}-byte buffers: they must be multiples of {granule}, at most 1 GiB"
        ));
    }
    if !(1..=DEPTH_MAX).contains(&depth) {
        return invalid(format!("depth {depth}: from 1 to {DEPTH_MAX}"));
    }
    if !start_offset.is_multiple_of(alignment) {
        return invalid(format!(
            "start offset {start_offset} is not a multiple of {alignment}"
        ));
    }
    Ok(())
}
