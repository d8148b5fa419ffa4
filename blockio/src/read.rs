//! Reading a range of a device from a thread of its own, many reads in flight.
//!
//! Buffers go round: the thread takes a free one, the kernel fills it, a consumer holds it as a [`Chunk`], and
//! dropping the chunk frees it. Their number bounds memory, and a slow consumer stops the reading.

use std::fmt;
use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::buffer::{Arena, Slot};
use crate::device::{Progress, Step};
use crate::ring::{Issuer, Ring, Transfer, is_retryable, setup_error};
use crate::{BLOCK, Device, Error, ErrorKind, Pace, Result, to_u64, to_usize};

/// The kernel registers at most 1 GiB a buffer and 16384 buffers (`io_uring/rsrc.c`).
const CHUNK_BYTES_MAX: usize = 1 << 30;
const BUFFERS_MAX: usize = 1 << 14;
const DEPTH_MAX: usize = 4096;

/// How often a read is repeated that was interrupted without an error of the device.
const RETRIES_MAX: u32 = 100;

/// How often a reader that is held back looks up whether it is to stop, or may read faster now.
const PACE_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What to read and in which portions.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Bytes per chunk: a multiple of 4096 and of the device's alignment, at most 1 GiB.
    pub chunk_bytes: usize,
    /// Reads in flight at the device, at most 4096.
    pub depth: usize,
    /// Chunks that exist at a time, those that consumers hold included; at most 16384.
    ///
    /// With fewer than `depth`, that many reads are in flight.
    pub buffers: usize,
    /// First byte to read; a multiple of the device's alignment.
    pub start: u64,
    /// End of the range, exclusive; the device's size when absent. It need not be aligned.
    pub end: Option<u64>,
    /// How fast to read; as fast as the device can when absent.
    pub pace: Option<Arc<Pace>>,
}

impl Default for ReadOptions {
    fn default() -> ReadOptions {
        ReadOptions {
            chunk_bytes: 1 << 20,
            depth: 8,
            buffers: 32,
            start: 0,
            end: None,
            pace: None,
        }
    }
}

/// Reads a range of a device and hands out its chunks in the order in which the reads complete.
///
/// The channel closes after the last chunk. After an error, what was in flight is still delivered, then the
/// error (that of the lowest offset) as the last item; one of several consumers gets it. A channel that closes
/// without an error has delivered all of the range, unless the reader was dropped before.
///
/// Dropping the reader stops it and waits for the reads in flight. Chunks may outlive it.
pub struct SequentialReader {
    chunks: Receiver<Result<Chunk>>,
    free: Sender<Option<Slot>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SequentialReader {
    /// Starts reading.
    ///
    /// # Errors
    /// `Invalid` for options that the device does not fit; `Io` or `Unsupported` when the kernel gives no
    /// memory, thread or ring. Errors of the device come with the chunks.
    pub fn new(device: &Device, options: &ReadOptions) -> Result<SequentialReader> {
        let plan = Plan::new(device, options)?;
        let fail = |source: io::Error| setup_error("set up reading of", source).at_path(device.path());
        let slots = Arena::slots(plan.buffers, plan.chunk_bytes).map_err(fail)?;
        let (free_sender, free) = unbounded();
        // A place for every buffer and for the error: the thread never waits for consumers to receive.
        let (chunk_sender, chunks) = bounded(plan.buffers + 1);
        let (ready_sender, ready) = bounded(1);
        let stop = Arc::new(AtomicBool::new(false));
        let setup = Setup {
            device: device.clone(),
            plan,
            free,
            free_sender: free_sender.clone(),
            chunks: chunk_sender,
            stop: Arc::clone(&stop),
            pace: options.pace.clone(),
        };
        let thread = thread::Builder::new().name("blockio-read".to_owned());
        let thread = thread
            .spawn(move || setup.run(slots, &ready_sender))
            .map_err(fail)?;
        let reader = SequentialReader {
            chunks,
            free: free_sender,
            stop,
            thread: Some(thread),
        };
        let gone = io::Error::from(io::ErrorKind::BrokenPipe);
        ready.recv().unwrap_or(Err(gone)).map_err(fail)?;
        Ok(reader)
    }

    /// The channel of chunks; clone it for each consuming thread.
    pub fn receiver(&self) -> &Receiver<Result<Chunk>> {
        &self.chunks
    }

    /// Stops without waiting: for a device that no longer answers.
    ///
    /// The thread and the buffers stay until the kernel has completed the reads in flight.
    pub fn abandon(mut self) {
        drop(self.thread.take());
    }

    fn signal_stop(&self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread should it wait for a free buffer.
        let _ = self.free.send(None);
    }
}

/// Each item is the next chunk, as for [`SequentialReader::receiver`]; it waits for one.
impl Iterator for SequentialReader {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Result<Chunk>> {
        self.chunks.recv().ok()
    }
}

impl Drop for SequentialReader {
    fn drop(&mut self) {
        self.signal_stop();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook, and to the consumers as an error.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for SequentialReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SequentialReader")
            .field("waiting_chunks", &self.chunks.len())
            .finish_non_exhaustive()
    }
}

/// One piece of the range. It dereferences to its bytes, and gives its buffer back when dropped.
pub struct Chunk {
    slot: Option<Slot>,
    free: Sender<Option<Slot>>,
    index: u64,
    offset: u64,
    len: usize,
}

impl Chunk {
    /// Position in the range: `(offset - start) / chunk_bytes`.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Byte offset on the device.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.slot.as_ref().map_or(&[], |slot| &slot[..self.len])
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // Fails when the reader's thread has ended: the buffer is then freed with its arena.
        let _ = self.free.send(self.slot.take());
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk")
            .field("index", &self.index)
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish()
    }
}

/// Checked options.
struct Plan {
    start: u64,
    end: u64,
    chunk_bytes: usize,
    depth: usize,
    buffers: usize,
}

impl Plan {
    fn new(device: &Device, options: &ReadOptions) -> Result<Plan> {
        let ReadOptions {
            chunk_bytes,
            depth,
            buffers,
            start,
            end,
            pace: _,
        } = *options;
        let (align, size) = (device.alignment(), device.size_bytes());
        let end = end.unwrap_or(size);
        let granule = align.max(BLOCK);
        if start > end || end > size {
            return Err(device.invalid(start, format!("[{start}, {end}) is no range of its {size} bytes")));
        }
        if !start.is_multiple_of(align) {
            return Err(device.invalid(start, format!("a range starts at a multiple of {align}")));
        }
        if chunk_bytes == 0 || chunk_bytes > CHUNK_BYTES_MAX || !to_u64(chunk_bytes).is_multiple_of(granule) {
            let rule =
                format!("{chunk_bytes}-byte chunks: they must be multiples of {granule}, at most 1 GiB");
            return Err(device.invalid(start, rule));
        }
        if !(1..=DEPTH_MAX).contains(&depth) || !(1..=BUFFERS_MAX).contains(&buffers) {
            let rule = format!("depth {depth}, {buffers} buffers: from 1 to {DEPTH_MAX} and {BUFFERS_MAX}");
            return Err(device.invalid(start, rule));
        }
        let chunks = to_usize((end - start).div_ceil(to_u64(chunk_bytes))).max(1);
        let buffers = buffers.min(chunks);
        Ok(Plan {
            start,
            end,
            chunk_bytes,
            depth: depth.min(buffers),
            buffers,
        })
    }

    fn chunk_len(&self, offset: u64) -> usize {
        to_usize(self.end - offset).min(self.chunk_bytes)
    }

    fn chunk_index(&self, offset: u64) -> u64 {
        (offset - self.start) / to_u64(self.chunk_bytes)
    }
}

/// A read in flight; it owns the buffer that the kernel writes to.
struct Piece {
    slot: Slot,
    progress: Progress,
    retries: u32,
}

/// What the thread shares with the reader and its chunks.
struct Setup {
    device: Device,
    plan: Plan,
    free: Receiver<Option<Slot>>,
    free_sender: Sender<Option<Slot>>,
    chunks: Sender<Result<Chunk>>,
    stop: Arc<AtomicBool>,
    pace: Option<Arc<Pace>>,
}

impl Setup {
    /// The thread. It builds the ring itself, as the only one that may submit to it, and says how that went.
    fn run(self, slots: Vec<Slot>, ready: &Sender<io::Result<()>>) {
        let (depth, file) = (self.plan.depth, self.device.as_fd());
        let ring = match Ring::new(Issuer::ThisThread, depth, file, &slots) {
            Ok(ring) => ring,
            Err(error) => return drop(ready.send(Err(error))),
        };
        for slot in slots {
            let _ = self.free_sender.send(Some(slot));
        }
        let _ = ready.send(Ok(()));
        Engine { ring, setup: self }.run();
    }
}

/// The reading thread's state. The ring comes first: it is dropped before the device whose descriptor it uses.
struct Engine {
    ring: Ring<Piece>,
    setup: Setup,
}

impl Deref for Engine {
    type Target = Setup;

    fn deref(&self) -> &Setup {
        &self.setup
    }
}

impl Engine {
    fn run(mut self) {
        if !self.device.is_direct() {
            self.advise(
                PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL,
                self.plan.start,
                self.plan.end,
            );
        }
        if let Some(error) = self.read_range() {
            let _ = self.chunks.send(Err(error));
        }
    }

    /// Reads until the end, a stop or an error, and takes all that is in flight.
    fn read_range(&mut self) -> Option<Error> {
        let mut next = self.plan.start;
        let mut failure: Option<Error> = None;
        loop {
            if failure.is_none() {
                self.start_reads(&mut next);
            }
            match self.ring.wait() {
                Ok(Some((piece, result))) => {
                    if let Err(error) = self.complete(piece, result) {
                        failure = Some(lower(failure, error));
                    }
                }
                Ok(None) => return failure,
                Err(source) => return Some(self.device.read_error(next, source)),
            }
        }
    }

    /// Starts reads while there is a range left, a place in the ring and a free buffer.
    ///
    /// It waits for a buffer only when nothing is in flight. So, after it, nothing in flight means the end.
    fn start_reads(&mut self, next: &mut u64) {
        while *next < self.plan.end && !self.ring.is_full() && !self.stop.load(Ordering::Acquire) {
            if let Some(delay) = self.pace.as_ref().and_then(|pace| pace.delay(Instant::now())) {
                if self.ring.in_flight() > 0 {
                    return;
                }
                thread::sleep(delay.min(PACE_POLL_INTERVAL));
                continue;
            }
            let free = match self.ring.in_flight() {
                0 => self.free.recv().ok(),
                _ => self.free.try_recv().ok(),
            };
            let Some(Some(slot)) = free else { return };
            let wanted = self.plan.chunk_len(*next);
            if let Some(pace) = &self.pace {
                pace.charge(u32::try_from(wanted).unwrap_or(u32::MAX));
            }
            let progress = Progress::new(*next, wanted, self.device.alignment());
            self.start(Piece {
                slot,
                progress,
                retries: 0,
            });
            *next += to_u64(wanted);
        }
    }

    fn start(&mut self, mut piece: Piece) {
        let (begin, len) = (piece.progress.begin(), piece.progress.request_len());
        let offset = piece.progress.offset() + to_u64(begin);
        let transfer = Transfer::new(&mut piece.slot, begin..begin + len, offset);
        // SAFETY: `piece` owns the slot.
        unsafe { self.ring.read(piece, &transfer) };
    }

    fn complete(&mut self, mut piece: Piece, result: i32) -> Result<()> {
        if let Ok(count) = usize::try_from(result) {
            match piece.progress.advance(count) {
                Step::Done => self.deliver(piece),
                Step::Again => self.start(piece),
                Step::Ended => return Err(self.device.short_read(piece.progress.reached())),
            }
        } else if is_retryable(result) && piece.retries < RETRIES_MAX {
            piece.retries += 1;
            self.start(piece);
        } else {
            self.read_blockwise(&mut piece, result)?;
            self.deliver(piece);
        }
        Ok(())
    }

    /// A large read failed: reads it block by block, so that the error names the first unreadable one.
    fn read_blockwise(&self, piece: &mut Piece, result: i32) -> Result<()> {
        let (begin, wanted) = (piece.progress.begin(), piece.progress.wanted());
        let end = begin + piece.progress.request_len();
        let offset = piece.progress.offset() + to_u64(begin);
        let source = io::Error::from_raw_os_error(-result);
        tracing::debug!(device = %self.device.path().display(), offset, error = %source, "reading block by block");
        if self.stop.load(Ordering::Acquire) {
            return Err(self.device.read_error(offset, source));
        }
        self.device
            .read_blockwise(offset, &mut piece.slot[begin..end], wanted - begin)
    }

    fn deliver(&self, piece: Piece) {
        let (offset, len) = (piece.progress.offset(), piece.progress.wanted());
        if !self.device.is_direct() {
            self.advise(
                PosixFadviseAdvice::POSIX_FADV_DONTNEED,
                offset,
                offset + to_u64(len),
            );
        }
        let index = self.plan.chunk_index(offset);
        let chunk = Chunk {
            slot: Some(piece.slot),
            free: self.free_sender.clone(),
            index,
            offset,
            len,
        };
        let _ = self.chunks.send(Ok(chunk));
    }

    /// Advice only: a filesystem that ignores it costs page cache, nothing else.
    fn advise(&self, advice: PosixFadviseAdvice, start: u64, end: u64) {
        if let (Ok(start), Ok(len)) = (i64::try_from(start), i64::try_from(end - start)) {
            let _ = posix_fadvise(&self.device, start, len, advice);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if thread::panicking() {
            // A channel that just closes would look like the end of the range.
            let error = Error::new(ErrorKind::Io, "read")
                .at_path(self.device.path())
                .detail("the reader panicked");
            let _ = self.chunks.send(Err(error));
        }
    }
}

fn lower(first: Option<Error>, second: Error) -> Error {
    match first {
        Some(first) if first.offset() <= second.offset() => first,
        _ => second,
    }
}
