//! Reading ranges of a device from a thread of its own, many reads in flight.
//!
//! Buffers go round: the thread takes a free one, the kernel fills it, a consumer holds it as a [`Chunk`], and
//! dropping the chunk frees it. Their number bounds memory, and a slow consumer stops the reading.

use std::fmt;
use std::io;
use std::ops::{Deref, Range};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::device::{Progress, Step};
use crate::pool::{BUFFERS_MAX, Buffers, CHUNK_BYTES_MAX, Held, Share};
use crate::queue::{Direction, Issuer, Queue, Transfer, is_retryable};
use crate::ranges::Ranges;
use crate::{BLOCK, Device, Error, ErrorKind, IoPriority, Pace, Result, to_u64, to_usize};

const DEPTH_MAX: usize = 4096;

/// How often a read is repeated that was interrupted without an error of the device.
const RETRIES_MAX: u32 = 100;

/// How often a reader that is held back looks up whether it is to stop, or may read faster now.
const PACE_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What a [`Reader`] does where the device cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnReadError {
    /// It reads the failed chunk block by block, and ends with an error that names the first unreadable block.
    #[default]
    Fail,
    /// It delivers the chunk as [unreadable](Chunk::unreadable) as a whole, and continues behind it: a device that fails may
    /// take a minute for each bad place, and what can be read comes first.
    Defer,
    /// It reads the failed chunk block by block, and delivers it with what is unreadable of it.
    Salvage,
}

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
    /// What to read; all of the device when absent. Each range starts at a multiple of the device's alignment; its
    /// end need not be aligned.
    pub ranges: Option<Ranges>,
    /// How fast to read, and with which priority; as fast as the device can when absent.
    pub pace: Option<Arc<Pace>>,
}

impl Default for ReadOptions {
    fn default() -> ReadOptions {
        ReadOptions {
            chunk_bytes: 1 << 20,
            depth: 8,
            buffers: 32,
            ranges: None,
            pace: None,
        }
    }
}

/// Reads ranges of a device and hands out their chunks in the order in which the reads complete.
///
/// The channel closes after the last chunk. After an error, what was in flight is still delivered, then the
/// error (that of the lowest offset) as the last item; one of several consumers gets it. A channel that closes
/// without an error has delivered all ranges, unless the reader was dropped before.
///
/// Dropping the reader stops it and waits for the reads in flight. Chunks may outlive it.
pub struct SequentialReader {
    chunks: Receiver<Result<Chunk>>,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl SequentialReader {
    /// Starts reading.
    ///
    /// # Errors
    /// `Invalid` for options that the device does not fit; `Io` or `Unsupported` when the kernel gives no
    /// memory or thread. Errors of the device come with the chunks.
    pub fn new(device: &Device, options: &ReadOptions) -> Result<SequentialReader> {
        let ReadOptions { depth, buffers, .. } = *options;
        check_sizes(device, options.chunk_bytes, depth, buffers)?;
        let ranges = options
            .ranges
            .clone()
            .unwrap_or_else(|| Ranges::from(0..device.size_bytes()));
        check_ranges(device, &ranges)?;
        let pieces = to_usize(ranges.pieces(to_u64(options.chunk_bytes)));
        let buffers = buffers.min(pieces.max(1));
        let fail = |source: io::Error| Error::os("set up reading of", source).at_path(device.path());
        let pool = Buffers::map(buffers, options.chunk_bytes).map_err(fail)?;
        let stop = Stop::new(&pool);
        let job = Job {
            device: device.clone(),
            ranges,
            pace: options.pace.clone(),
            on_error: OnReadError::Fail,
            stop: stop.clone(),
        };
        // A place for every buffer and for the error: the thread never waits for consumers to receive.
        let (sender, chunks) = bounded(buffers + 1);
        let thread = spawn(&pool, depth.min(buffers), move |mut engine| {
            let read = engine.read(&job, &mut |chunk| drop(sender.send(Ok(chunk))));
            if let Err(error) = read {
                let _ = sender.send(Err(error));
            }
            // Before the device whose descriptor it uses.
            drop(engine);
            drop(job);
        });
        Ok(SequentialReader {
            chunks,
            stop,
            thread: Some(thread.map_err(fail)?),
        })
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
        self.stop.signal();
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

/// How a [`Reader`] reads.
#[derive(Debug, Clone, Default)]
pub struct ReadManner {
    /// How fast; as fast as the device can when absent.
    pub pace: Option<Arc<Pace>>,
    /// What it does where the device cannot be read.
    pub on_error: OnReadError,
}

/// What a [`Reader`] hands out.
#[derive(Debug)]
pub enum Delivery {
    /// One chunk; they come in the order in which the reads complete.
    Chunk(Chunk),
    /// The last of a job: it has read all of its ranges, was stopped, or failed at the lowest offset that is given.
    End(Result<()>),
}

/// A thread that reads one device after another, made once for any number of jobs.
///
/// Several readers share one set of [`Buffers`]. Each job says with a tag whose chunks they are; all go to the channel
/// that the job names.
///
/// Dropping the reader stops it and waits for the reads in flight. Chunks may outlive it.
pub struct Reader<T> {
    jobs: Option<Sender<Tagged<T>>>,
    buffers: Buffers,
    depth: usize,
    thread: Option<JoinHandle<()>>,
    stop: Option<Stop>,
}

/// A job of a [`Reader`], and where its chunks go.
struct Tagged<T> {
    job: Job,
    tag: T,
    deliveries: Sender<(T, Delivery)>,
}

impl<T: Clone + Send + 'static> Reader<T> {
    /// Starts the thread. At most `depth` reads will be in flight.
    ///
    /// # Errors
    /// `Invalid` for a depth of 0 or above 4096; `Io` or `Unsupported` when the kernel gives no thread.
    pub fn new(buffers: &Buffers, depth: usize) -> Result<Reader<T>> {
        if !(1..=DEPTH_MAX).contains(&depth) {
            return Err(Error::new(ErrorKind::Invalid, "read")
                .detail(format!("depth {depth}: from 1 to {DEPTH_MAX}")));
        }
        let (sender, jobs) = unbounded::<Tagged<T>>();
        let thread = spawn(buffers, depth.min(buffers.count()), move |engine| {
            work(engine, &jobs);
        });
        Ok(Reader {
            jobs: Some(sender),
            buffers: buffers.clone(),
            depth,
            thread: Some(thread.map_err(|source| Error::os("start a reader", source))?),
            stop: None,
        })
    }

    /// Begins to read `ranges` of `device`. The job ends with a [`Delivery::End`]; one that is given before it comes
    /// waits its turn.
    ///
    /// # Errors
    /// `Invalid` for ranges or buffers that the device does not fit; `Io` when the reader's thread has ended.
    pub fn read(
        &mut self,
        device: &Device,
        ranges: &Ranges,
        ReadManner { pace, on_error }: ReadManner,
        tag: T,
        deliveries: &Sender<(T, Delivery)>,
    ) -> Result<()> {
        check_sizes(
            device,
            self.buffers.chunk_bytes(),
            self.depth,
            self.buffers.count(),
        )?;
        check_ranges(device, ranges)?;
        let stop = Stop::new(&self.buffers);
        let job = Job {
            device: device.clone(),
            ranges: ranges.clone(),
            pace,
            on_error,
            stop: stop.clone(),
        };
        let deliveries = deliveries.clone();
        let job = Tagged { job, tag, deliveries };
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job).is_ok());
        if sent != Some(true) {
            return Err(panicked(device));
        }
        self.stop = Some(stop);
        Ok(())
    }

    /// Asks the current job to end. What is in flight is still delivered.
    pub fn stop(&self) {
        if let Some(stop) = &self.stop {
            stop.signal();
        }
    }

    /// Stops without waiting: for a device that no longer answers.
    ///
    /// The thread and the buffers of its reads stay until the kernel has completed them.
    pub fn abandon(mut self) {
        drop(self.thread.take());
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(stop) = &self.stop {
            stop.signal();
        }
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook, and to the consumers as an error.
            let _ = thread.join();
        }
    }
}

impl<T> fmt::Debug for Reader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("depth", &self.depth)
            .field("buffers", &self.buffers)
            .finish_non_exhaustive()
    }
}

/// The thread of a [`Reader`].
fn work<T: Clone>(mut engine: Engine, jobs: &Receiver<Tagged<T>>) {
    for Tagged { job, tag, deliveries } in jobs {
        let read = engine.read(&job, &mut |chunk| {
            drop(deliveries.send((tag.clone(), Delivery::Chunk(chunk))));
        });
        // Whatever is in flight after an error cannot be waited for: no other job may begin.
        if engine.queue.in_flight() > 0 {
            let _ = deliveries.send((tag, Delivery::End(read)));
            return drop(engine);
        }
        engine.queue.leave_file();
        drop(job);
        let _ = deliveries.send((tag, Delivery::End(read)));
    }
}

/// One piece of a range. It dereferences to its bytes; dropping it frees its buffer.
pub struct Chunk {
    buffer: Held,
    index: u64,
    offset: u64,
    len: usize,
    unreadable: Vec<Range<u64>>,
}

impl Chunk {
    /// How many chunks lie before it in the ranges that are read.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Byte offset on the device.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The byte ranges of the device that could not be read, ascending; the chunk holds zeros there. Always empty where
    /// the reader was to fail.
    pub fn unreadable(&self) -> &[Range<u64>] {
        &self.unreadable
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[..self.len]
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

fn check_sizes(device: &Device, chunk_bytes: usize, depth: usize, buffers: usize) -> Result<()> {
    let granule = device.alignment().max(BLOCK);
    if chunk_bytes == 0 || chunk_bytes > CHUNK_BYTES_MAX || !to_u64(chunk_bytes).is_multiple_of(granule) {
        let rule = format!("{chunk_bytes}-byte chunks: they must be multiples of {granule}, at most 1 GiB");
        return Err(device.invalid(0, rule));
    }
    if !(1..=DEPTH_MAX).contains(&depth) || !(1..=BUFFERS_MAX).contains(&buffers) {
        let rule = format!("depth {depth}, {buffers} buffers: from 1 to {DEPTH_MAX} and {BUFFERS_MAX}");
        return Err(device.invalid(0, rule));
    }
    Ok(())
}

fn check_ranges(device: &Device, ranges: &Ranges) -> Result<()> {
    let (align, size) = (device.alignment(), device.size_bytes());
    if ranges.end() > size {
        let end = ranges.end();
        return Err(device.invalid(end, format!("a range ends at {end}, behind its {size} bytes")));
    }
    match ranges.iter().find(|range| !range.start.is_multiple_of(align)) {
        None => Ok(()),
        Some(range) => Err(device.invalid(range.start, format!("a range starts at a multiple of {align}"))),
    }
}

/// Asks a job to end.
#[derive(Clone)]
struct Stop {
    flag: Arc<AtomicBool>,
    buffers: Buffers,
}

impl Stop {
    fn new(buffers: &Buffers) -> Stop {
        Stop {
            flag: Arc::default(),
            buffers: buffers.clone(),
        }
    }

    fn signal(&self) {
        self.flag.store(true, Ordering::Release);
        self.buffers.wake();
    }

    fn is_set(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }
}

/// What a reading thread has to do.
struct Job {
    device: Device,
    ranges: Ranges,
    pace: Option<Arc<Pace>>,
    on_error: OnReadError,
    stop: Stop,
}

/// Where a job is in its ranges.
#[derive(Default)]
struct Cursor {
    range: usize,
    /// Bytes of the range that lie behind.
    done: u64,
    /// Chunks that lie behind.
    index: u64,
}

impl Cursor {
    /// The next chunk: where it begins, and its length.
    fn peek(&self, job: &Job, chunk_bytes: usize) -> Option<(u64, usize)> {
        let range = job.ranges.get(self.range)?;
        let offset = range.start + self.done;
        Some((offset, to_usize(range.end - offset).min(chunk_bytes)))
    }

    fn advance(&mut self, job: &Job, len: usize) {
        self.index += 1;
        self.done += to_u64(len);
        if job
            .ranges
            .get(self.range)
            .is_some_and(|range| range.start + self.done >= range.end)
        {
            self.range += 1;
            self.done = 0;
        }
    }
}

/// A read in flight; it owns the buffer that the kernel writes to.
struct Piece {
    buffer: Held,
    progress: Progress,
    index: u64,
    retries: u32,
}

/// Starts a reading thread. It builds the queue itself, as the only one that may start operations, and says how that went.
fn spawn(
    buffers: &Buffers,
    depth: usize,
    body: impl FnOnce(Engine) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (ready_sender, ready) = bounded(1);
    let buffers = buffers.clone();
    let thread = thread::Builder::new().name("blockio-read".to_owned());
    let thread = thread.spawn(
        move || match Queue::new(Issuer::ThisThread, depth, &buffers.iovecs()) {
            Err(error) => drop(ready_sender.send(Err(error))),
            Ok(queue) => {
                let _ = ready_sender.send(Ok(()));
                body(Engine { queue, buffers });
            }
        },
    )?;
    let gone = io::Error::from(io::ErrorKind::BrokenPipe);
    ready.recv().unwrap_or(Err(gone))?;
    Ok(thread)
}

/// A reading thread's queue. It comes first: it is dropped before the buffers that are registered with it.
struct Engine {
    queue: Queue<Piece>,
    buffers: Buffers,
}

impl Engine {
    /// Does one job. Unless something is in flight after it, another one may follow.
    fn read(&mut self, job: &Job, deliver: &mut dyn FnMut(Chunk)) -> Result<()> {
        self.queue.use_file(job.device.as_fd());
        let share = self.buffers.share();
        let chunk_bytes = self.buffers.chunk_bytes();
        let mut run = Run {
            queue: &mut self.queue,
            job,
            chunk_bytes,
            share: &share,
            next: Cursor::default(),
            deliver,
        };
        let read = catch_unwind(AssertUnwindSafe(|| run.run()));
        read.unwrap_or_else(|_| Err(panicked(&job.device)))
    }
}

fn panicked(device: &Device) -> Error {
    Error::new(ErrorKind::Io, "read")
        .at_path(device.path())
        .detail("the reader panicked")
}

/// One job at work.
struct Run<'a> {
    queue: &'a mut Queue<Piece>,
    job: &'a Job,
    chunk_bytes: usize,
    share: &'a Arc<Share>,
    next: Cursor,
    deliver: &'a mut dyn FnMut(Chunk),
}

impl Run<'_> {
    fn run(&mut self) -> Result<()> {
        if !self.job.device.is_direct() {
            for range in self.job.ranges.iter() {
                self.advise(PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL, range.start, range.end);
            }
        }
        self.read_ranges()
    }

    /// Reads until the end, a stop or an error, and takes all that is in flight.
    fn read_ranges(&mut self) -> Result<()> {
        let mut failure: Option<Error> = None;
        loop {
            if failure.is_none() {
                self.start_reads();
            }
            match self.queue.wait() {
                Ok(Some((piece, result))) => {
                    if let Err(error) = self.complete(piece, result) {
                        failure = Some(lower(failure, error));
                    }
                }
                Ok(None) => return failure.map_or(Ok(()), Err),
                Err(source) => {
                    let next = self.next.peek(self.job, self.chunk_bytes);
                    let offset = next.map_or_else(|| self.job.ranges.end(), |(offset, _)| offset);
                    return Err(self.job.device.read_error(offset, source));
                }
            }
        }
    }

    /// Starts reads while there is something left, a place in the queue and a free buffer.
    ///
    /// It waits for a buffer only when nothing is in flight. So, after it, nothing in flight means the end.
    fn start_reads(&mut self) {
        while let Some((offset, wanted)) = self.next.peek(self.job, self.chunk_bytes) {
            if self.queue.is_full() || self.job.stop.is_set() {
                return;
            }
            let pace = self.job.pace.as_ref();
            if let Some(delay) = pace.and_then(|pace| pace.delay(Instant::now())) {
                if self.queue.in_flight() > 0 {
                    return;
                }
                thread::sleep(delay.min(PACE_POLL_INTERVAL));
                continue;
            }
            let free = match self.queue.in_flight() {
                0 => self.share.take(&self.job.stop.flag),
                _ => self.share.try_take(),
            };
            let Some(buffer) = free else { return };
            if let Some(pace) = pace {
                pace.charge(u32::try_from(wanted).unwrap_or(u32::MAX));
            }
            let progress = Progress::new(offset, wanted, self.job.device.alignment());
            self.start(Piece {
                buffer,
                progress,
                index: self.next.index,
                retries: 0,
            });
            self.next.advance(self.job, wanted);
        }
    }

    fn start(&mut self, mut piece: Piece) {
        let (begin, len) = (piece.progress.begin(), piece.progress.request_len());
        let offset = piece.progress.offset() + to_u64(begin);
        let transfer =
            Transfer::new(&mut piece.buffer, begin..begin + len, offset).with_priority(self.priority());
        // SAFETY: `piece` owns the buffer.
        unsafe { self.queue.start(piece, &transfer, Direction::Read) };
    }

    fn priority(&self) -> IoPriority {
        let pace = self.job.pace.as_ref();
        pace.map(|pace| pace.priority()).unwrap_or_default()
    }

    fn complete(&mut self, mut piece: Piece, result: i32) -> Result<()> {
        if let Ok(count) = usize::try_from(result) {
            match piece.progress.advance(count) {
                Step::Done => self.deliver(piece, Vec::new()),
                Step::Again => self.start(piece),
                Step::Ended => return Err(self.job.device.short_read(piece.progress.reached())),
            }
        } else if is_retryable(result) && piece.retries < RETRIES_MAX {
            piece.retries += 1;
            self.start(piece);
        } else {
            let priority = self.priority();
            let unreadable = priority.within(|| self.read_failed(&mut piece, result))?;
            self.deliver(piece, unreadable);
        }
        Ok(())
    }

    /// Does with a piece that could not be read what is to be done then; returns what is unreadable of it.
    fn read_failed(&self, piece: &mut Piece, result: i32) -> Result<Vec<Range<u64>>> {
        let (offset, len) = (piece.progress.offset(), piece.progress.wanted());
        match self.job.on_error {
            OnReadError::Fail => self.read_blockwise(piece, result).map(|()| Vec::new()),
            OnReadError::Defer => {
                piece.buffer[..len].fill(0);
                Ok(std::iter::once(offset..offset + to_u64(len)).collect())
            }
            OnReadError::Salvage => self.job.device.read_salvaging(offset, &mut piece.buffer[..len]),
        }
    }

    /// A large read failed: reads it block by block, so that the error names the first unreadable one.
    fn read_blockwise(&self, piece: &mut Piece, result: i32) -> Result<()> {
        let (begin, wanted) = (piece.progress.begin(), piece.progress.wanted());
        let end = begin + piece.progress.request_len();
        let offset = piece.progress.offset() + to_u64(begin);
        let source = io::Error::from_raw_os_error(-result);
        tracing::debug!(device = %self.job.device.path().display(), offset, error = %source, "reading block by block");
        if self.job.stop.is_set() {
            return Err(self.job.device.read_error(offset, source));
        }
        let buffer = &mut piece.buffer[begin..end];
        self.job.device.read_blockwise(offset, buffer, wanted - begin)
    }

    fn deliver(&mut self, piece: Piece, unreadable: Vec<Range<u64>>) {
        let (offset, len) = (piece.progress.offset(), piece.progress.wanted());
        if !self.job.device.is_direct() {
            self.advise(
                PosixFadviseAdvice::POSIX_FADV_DONTNEED,
                offset,
                offset + to_u64(len),
            );
        }
        (self.deliver)(Chunk {
            buffer: piece.buffer,
            index: piece.index,
            offset,
            len,
            unreadable,
        });
    }

    /// Advice only: a filesystem that ignores it costs page cache, nothing else.
    fn advise(&self, advice: PosixFadviseAdvice, start: u64, end: u64) {
        if let (Ok(start), Ok(len)) = (i64::try_from(start), i64::try_from(end - start)) {
            let _ = posix_fadvise(&self.job.device, start, len, advice);
        }
    }
}

fn lower(first: Option<Error>, second: Error) -> Error {
    match first {
        Some(first) if first.offset() <= second.offset() => first,
        _ => second,
    }
}
