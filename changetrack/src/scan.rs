//! The scan: read, hash on all cores, compare, compress, write, every stage bounded.
//!
//! ```text
//! blockio's reader thread -> workers (hash, compare, compress) -> this thread (order, store)
//!          ^-------------------- buffers go back when stored -------------------'
//! ```
//!
//! Reading is the only stage that may be slow. It keeps its reads in flight as long as a buffer is free,
//! and a buffer is free again once its chunk has been stored.

use crate::error::{Error, Result};
use crate::examine::{Examined, Examiner};
use blockio::{Chunk, Device, Pace, ReadOptions, Receiver, SequentialReader};
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use imagefmt::{ClusterUpdate, Disk, Geometry};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// How to scan.
#[derive(Debug, Clone)]
pub struct ScanOptions {
    /// zstd level 1 to 19; 0 stores everything raw.
    pub compress_level: i32,
    /// Threads that hash and compress; all cores by default.
    pub workers: usize,
    /// Reads in flight.
    pub depth: usize,
    /// Chunks of 1 MiB in memory, those being hashed and stored included.
    pub buffers: usize,
    /// How fast to read; as fast as the disk can when absent.
    pub pace: Option<Arc<Pace>>,
}

/// The level that stores no more than `qemu-img convert -c` does with zstd, and takes a third of its time.
pub const COMPRESS_LEVEL: i32 = 4;

/// Length of a chunk: a multiple of every cluster size, and no longer than any leaf covers.
const CHUNK_BYTES: usize = 1 << 20;

/// How often a stage that waits looks up whether it is to stop.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

impl Default for ScanOptions {
    fn default() -> Self {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        Self {
            compress_level: COMPRESS_LEVEL,
            workers,
            // Measured on a loop device: 4, 8, 32 and 64 reads in flight were slower by 4 to 10 %.
            depth: 16,
            buffers: 48,
            pace: None,
        }
    }
}

/// How far a scan is; other threads may look at it and stop it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of the disk read, compared and, where they differ, stored.
    pub compared_bytes: AtomicU64,
    /// Bytes among them that differ.
    pub dirty_bytes: AtomicU64,
    /// Bytes stored for them, compressed; what the nodes above them take is not counted.
    pub stored_bytes: AtomicU64,
    /// Set to stop.
    pub cancel: AtomicBool,
}

/// A finished scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// Bytes read and compared: the whole disk.
    pub compared_bytes: u64,
}

/// Takes what a scan finds, on the thread that called it.
pub trait Sink {
    /// Takes a changed cluster; they come in ascending order.
    fn push(&mut self, update: &ClusterUpdate<'_>) -> imagefmt::Result<()>;

    /// Called behind every chunk of the disk, changed or not: a checkpoint must not wait for the next change.
    fn chunk_done(&mut self) -> imagefmt::Result<()> {
        Ok(())
    }
}

impl<F: FnMut(&ClusterUpdate<'_>) -> imagefmt::Result<()>> Sink for F {
    fn push(&mut self, update: &ClusterUpdate<'_>) -> imagefmt::Result<()> {
        self(update)
    }
}

/// Reads all of `device` and pushes every cluster that differs from `parent` (or from zeros).
///
/// # Errors
/// Of kind `Device` when a part of the disk cannot be read, or the disk's size or identity changed
/// meanwhile; `Store` when the parent cannot be read or `sink` fails; `Canceled` when asked to stop.
pub fn scan(
    device: &Device,
    geometry: Geometry,
    parent: Option<&Disk>,
    options: &ScanOptions,
    progress: &Progress,
    sink: &mut dyn Sink,
) -> Result<Scanned> {
    let read = ReadOptions {
        chunk_bytes: CHUNK_BYTES,
        depth: options.depth,
        buffers: options.buffers,
        start: 0,
        end: Some(geometry.size_bytes()),
        pace: options.pace.clone(),
    };
    let reader = SequentialReader::new(device, &read)?;
    let (sender, examined) = bounded(options.buffers);
    let stop = AtomicBool::new(false);
    let compared_bytes = thread::scope(|scope| {
        let mut workers = Vec::new();
        let mut spawned = Ok(());
        for _ in 0..options.workers.max(1) {
            let (chunks, sender, stop) = (reader.receiver().clone(), sender.clone(), &stop);
            let examiner = Examiner::new(geometry, parent, options.compress_level);
            let work = move || work(examiner, &chunks, &sender, stop);
            match thread::Builder::new()
                .name("scan".to_owned())
                .spawn_scoped(scope, work)
            {
                Ok(worker) => workers.push(worker),
                Err(error) => spawned = Err(Error::no_thread(error)),
            }
        }
        drop(sender);
        let stored = spawned.and_then(|()| store(&examined, geometry, progress, sink));
        stop.store(true, Ordering::Relaxed);
        drop(examined);
        // A disk that no longer answers must not keep us: the reader's thread ends when its reads do.
        if progress.cancel.load(Ordering::Relaxed) {
            reader.abandon()
        } else {
            drop(reader)
        }
        for worker in workers {
            // One that panicked has said so through the channel.
            let _ = worker.join();
        }
        stored
    })?;
    device.check_unchanged()?;
    if compared_bytes != geometry.size_bytes() {
        return Err(Error::incomplete(compared_bytes, geometry.size_bytes()));
    }
    Ok(Scanned { compared_bytes })
}

/// Examines chunks until there are none, or nobody wants the results.
fn work(
    mut examiner: Examiner<'_>,
    chunks: &Receiver<blockio::Result<Chunk>>,
    sender: &Sender<Result<Examined>>,
    stop: &AtomicBool,
) {
    let _guard = PanicGuard(sender);
    lower_priority();
    while let Some(chunk) = next(chunks, stop) {
        let examined = match chunk {
            Ok(chunk) => examiner.examine(chunk).map_err(Error::from),
            Err(error) => Err(error.into()),
        };
        if sender.send(examined).is_err() {
            return;
        }
    }
}

/// Lets everything else go first: the thread that keeps the reads in flight, the kernel's own, and whatever
/// the server is there for. With as many workers as cores, a scan is a tenth faster for it.
fn lower_priority() {
    const NICE: libc::c_int = 10;
    // SAFETY: takes no pointers; 0 is the calling thread (setpriority(2), "C library/kernel differences").
    // Being nicer is never refused, and if it were, the scan would only be slower.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

/// The next item of a channel, or `None` when it has closed or `stop` is set.
fn next<T>(channel: &Receiver<T>, stop: &AtomicBool) -> Option<T> {
    loop {
        match channel.recv_timeout(POLL_INTERVAL) {
            Ok(item) => return Some(item),
            Err(RecvTimeoutError::Timeout) if !stop.load(Ordering::Relaxed) => {}
            Err(_) => return None,
        }
    }
}

/// A worker that panics takes its chunk along; without a word of it the others would wait for ever.
struct PanicGuard<'a>(&'a Sender<Result<Examined>>);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.0.send(Err(Error::panicked()));
        }
    }
}

/// Brings the chunks back into order and pushes what changed; returns the bytes that were compared.
fn store(
    examined: &Receiver<Result<Examined>>,
    geometry: Geometry,
    progress: &Progress,
    sink: &mut dyn Sink,
) -> Result<u64> {
    let mut waiting = BTreeMap::new();
    let mut due = 0;
    let mut compared_bytes = 0;
    while let Some(chunk) = next(examined, &progress.cancel) {
        let chunk = chunk?;
        waiting.insert(chunk.chunk_index(), chunk);
        while let Some(chunk) = waiting.remove(&due) {
            if progress.cancel.load(Ordering::Relaxed) {
                return Err(Error::canceled());
            }
            let (mut dirty_bytes, mut stored_bytes) = (0, 0);
            for update in chunk.updates() {
                sink.push(&update)?;
                stored_bytes += update.stored.len() as u64;
                dirty_bytes += geometry.cluster_len(update.index) as u64;
            }
            sink.chunk_done()?;
            due += 1;
            compared_bytes += chunk.len() as u64;
            progress
                .compared_bytes
                .fetch_add(chunk.len() as u64, Ordering::Relaxed);
            progress.dirty_bytes.fetch_add(dirty_bytes, Ordering::Relaxed);
            progress.stored_bytes.fetch_add(stored_bytes, Ordering::Relaxed);
        }
    }
    if progress.cancel.load(Ordering::Relaxed) {
        return Err(Error::canceled());
    }
    Ok(compared_bytes)
}
