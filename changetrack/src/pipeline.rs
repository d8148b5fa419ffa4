//! Reads, compares and stores passes over disks, several at the same time, every stage bounded.
//!
//! ```text
//! a reader for each disk -> workers (digest, compare, encode) -> the caller's thread (order, store)
//!          ^--------------------- buffers are freed when stored ------------------------'
//! ```
//!
//! Reading is the only stage that may be slow. A reader keeps its reads in flight as long as its disk's share of the
//! buffers is not used up, and a buffer is free again once its chunk has been stored. So a disk that is slow holds up
//! no other one.

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::worker::{Examined, Outcome, Stream, work};
use blockio::{Buffers, Delivery, Device, OnReadError, Pace, ReadManner, Reader};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use imagefmt::{Base, ClusterEncoder, ClusterUpdate, Geometry};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What a pipeline is made of.
#[derive(Debug, Clone)]
pub struct PipelineOptions {
    /// zstd level 1 to 19; 0 stores everything raw.
    pub compress_level: i32,
    /// Threads that digest and compress; all cores by default.
    pub workers: usize,
    /// Disks that are read at the same time.
    pub readers: usize,
    /// Reads in flight at each disk.
    pub depth: usize,
    /// Chunks of 1 MiB in memory for all disks together, those being digested and stored included.
    pub buffers: usize,
}

/// The level that stores no more than `qemu-img convert -c` does with zstd, and takes a third of its time.
pub const COMPRESS_LEVEL: i32 = 4;

/// Length of a chunk: a multiple of every cluster size.
const CHUNK_BYTES: usize = 1 << 20;

/// Disks that are read at the same time. Each takes the buffers of a layer being written too.
const READERS_MAX: usize = 4;

/// How often the storing thread looks up whether it is to stop while nothing comes.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long readers that were stopped may take to come to their end. One whose disk does not answer is abandoned.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

impl PipelineOptions {
    /// For a sync of so many disks.
    pub fn for_disks(disks: usize) -> Self {
        let readers = disks.clamp(1, READERS_MAX);
        Self {
            compress_level: COMPRESS_LEVEL,
            workers: thread::available_parallelism().map_or(1, usize::from),
            readers,
            // Measured on a loop device: 4, 8, 32 and 64 reads in flight were slower by 4 to 10 %.
            depth: 16,
            // Beside as many encoded clusters and four layers being written, within 256 MiB.
            buffers: 48 + 8 * (readers - 1).min(2),
        }
    }
}

/// How far a pass is; other threads may look at it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of the disk read, compared and, where they differ, stored.
    pub compared_bytes: AtomicU64,
    /// Bytes among them that differ.
    pub dirty_bytes: AtomicU64,
    /// Bytes stored for them, compressed; what the nodes above them take is not counted.
    pub stored_bytes: AtomicU64,
}

/// One pass over one disk.
#[derive(Debug, Clone)]
pub struct Pass<'a> {
    /// The disk.
    pub device: &'a Device,
    /// Size and cluster size, as in the image.
    pub geometry: Geometry,
    /// What to read.
    pub plan: &'a Plan,
    /// What to compare with; zeros where absent.
    pub base: Option<Base>,
    /// How fast to read, and with which priority; as fast as the disk can when absent. Several passes may share one.
    pub pace: Option<Arc<Pace>>,
    /// What to do where the disk cannot be read. Deferred, nothing is compared there; salvaged, the clusters are stored with what
    /// could be read of them. The sink gets what could not be read.
    pub on_read_error: OnReadError,
    /// Counts what the pass does.
    pub progress: Arc<Progress>,
}

/// Takes what a run finds, on the thread that called it. Passes are named by their place in the run.
pub trait Sink {
    /// A pass begins to read.
    fn begin(&mut self, _pass: usize) {}

    /// Takes a changed cluster; those of a pass come in ascending order.
    ///
    /// # Errors
    /// End the run.
    fn push(&mut self, pass: usize, update: &ClusterUpdate<'_>) -> imagefmt::Result<()>;

    /// Bytes of the disk that could not be read, in a pass that does not fail there.
    fn unread(&mut self, _pass: usize, _bytes: Range<u64>) {}

    /// Called behind every chunk, changed or not: a checkpoint must not wait for the next change.
    ///
    /// # Errors
    /// End the run.
    fn chunk_done(&mut self) -> imagefmt::Result<()> {
        Ok(())
    }

    /// Every byte of a pass's plan was compared but those that were deferred, and what differs was taken.
    ///
    /// # Errors
    /// End the run.
    fn end(&mut self, _pass: usize, _compared_bytes: u64) -> imagefmt::Result<()> {
        Ok(())
    }
}

/// Threads, rings and buffers, made once for any number of passes over any disks.
#[derive(Debug)]
pub struct Pipeline {
    options: PipelineOptions,
    buffers: Buffers,
    /// Those that do nothing.
    idle: Vec<Reader<Arc<Stream>>>,
    deliveries: Sender<(Arc<Stream>, Delivery)>,
    /// The workers end when it is dropped.
    quit: Option<Sender<()>>,
    workers: Vec<JoinHandle<()>>,
}

impl Pipeline {
    /// Makes buffers, readers and workers.
    ///
    /// # Errors
    /// Of kind `Device` when an option makes no sense, or the kernel gives no memory, thread or ring.
    pub fn new(options: &PipelineOptions) -> Result<Self> {
        let buffers = Buffers::new(options.buffers, CHUNK_BYTES)?;
        // No more deliveries than buffers and ends exist: nobody waits to send one.
        let (deliveries, delivered) = unbounded();
        let (quit, quitting) = bounded(0);
        let mut pipeline = Self {
            options: options.clone(),
            buffers,
            idle: Vec::new(),
            deliveries,
            quit: Some(quit),
            workers: Vec::new(),
        };
        pipeline.make_readers(options.readers.max(1))?;
        for _ in 0..options.workers.max(1) {
            let (delivered, quitting) = (delivered.clone(), quitting.clone());
            let encoder = ClusterEncoder::new(options.compress_level);
            let worker = thread::Builder::new()
                .name("scan".to_owned())
                .spawn(move || work(encoder, &delivered, &quitting))
                .map_err(Error::no_thread)?;
            pipeline.workers.push(worker);
        }
        Ok(pipeline)
    }

    /// Makes readers until `count` are idle: those of disks that did not answer are not used again.
    fn make_readers(&mut self, count: usize) -> Result<()> {
        while self.idle.len() < count {
            self.idle.push(Reader::new(&self.buffers, self.options.depth)?);
        }
        Ok(())
    }

    /// Does all passes, several at the same time and else in their order, and gives `sink` what differs.
    ///
    /// # Errors
    /// Of kind `Device` when a part of a disk cannot be read, or the disk's size or identity changed meanwhile;
    /// `Store` when a base cannot be read or `sink` fails; `Canceled` when `stop` is set. The first error ends all
    /// passes; [`Error::pass`] tells whose it is. The pipeline can be used again.
    pub fn run(&mut self, passes: &[Pass<'_>], stop: &AtomicBool, sink: &mut dyn Sink) -> Result<()> {
        self.make_readers(self.options.readers.max(1))?;
        let (sender, results) = unbounded();
        let mut run = Run {
            pipeline: self,
            passes,
            states: passes.iter().map(|_| State::default()).collect(),
            next: 0,
            ended: 0,
            busy: Vec::new(),
            sender,
            results,
            is_over: Arc::default(),
            stop,
        };
        let done = run.all(sink);
        run.end();
        done
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        drop(self.quit.take());
        for worker in self.workers.drain(..) {
            // It has no panic that was not caught.
            let _ = worker.join();
        }
    }
}

/// How far a pass of a run is.
#[derive(Debug, Default)]
struct State {
    /// Chunks that came before their turn, by index.
    waiting: BTreeMap<u64, Examined>,
    /// Index of the chunk to be stored next.
    due: u64,
    /// Bytes of the plan that were dealt with.
    done_bytes: u64,
    /// Bytes among them that were compared.
    compared_bytes: u64,
    /// The reader has delivered everything.
    is_read: bool,
}

/// One run of a pipeline.
struct Run<'a> {
    pipeline: &'a mut Pipeline,
    passes: &'a [Pass<'a>],
    states: Vec<State>,
    /// The pass to begin next.
    next: usize,
    /// Passes that have ended.
    ended: usize,
    /// Readers at work, and for which pass.
    busy: Vec<(usize, Reader<Arc<Stream>>)>,
    sender: Sender<(usize, Outcome)>,
    results: Receiver<(usize, Outcome)>,
    is_over: Arc<AtomicBool>,
    stop: &'a AtomicBool,
}

impl Run<'_> {
    fn all(&mut self, sink: &mut dyn Sink) -> Result<()> {
        self.share_buffers(self.pipeline.idle.len().min(self.passes.len()));
        while self.ended < self.passes.len() {
            self.begin_passes(sink)?;
            let Some((pass, outcome)) = self.next_outcome()? else {
                continue;
            };
            self.take(pass, outcome, sink)
                .map_err(|error| error.of_pass(pass))?;
        }
        Ok(())
    }

    fn share_buffers(&self, readers: usize) {
        self.pipeline.buffers.divide(readers);
    }

    /// Gives idle readers the passes that follow.
    fn begin_passes(&mut self, sink: &mut dyn Sink) -> Result<()> {
        while let Some(pass) = self.passes.get(self.next) {
            let Some(reader) = self.pipeline.idle.pop() else {
                return Ok(());
            };
            if self.stop.load(Ordering::Relaxed) {
                self.pipeline.idle.push(reader);
                return Err(Error::canceled());
            }
            let number = self.next;
            self.next += 1;
            sink.begin(number);
            self.begin(number, pass, reader)
                .map_err(|error| error.of_pass(number))?;
        }
        Ok(())
    }

    fn begin(&mut self, number: usize, pass: &Pass<'_>, mut reader: Reader<Arc<Stream>>) -> Result<()> {
        let stream = Arc::new(Stream {
            pass: number,
            geometry: pass.geometry,
            base: pass.base.clone(),
            defers: pass.on_read_error == OnReadError::Defer,
            results: self.sender.clone(),
            is_over: self.is_over.clone(),
        });
        let manner = ReadManner {
            pace: pass.pace.clone(),
            on_error: pass.on_read_error,
        };
        let deliveries = &self.pipeline.deliveries;
        reader.read(pass.device, pass.plan.ranges(), manner, stream, deliveries)?;
        self.busy.push((number, reader));
        Ok(())
    }

    /// What a worker has answered, if one has by now.
    fn next_outcome(&self) -> Result<Option<(usize, Outcome)>> {
        // Before it receives: an end of a reader must not be lost.
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::canceled());
        }
        match self.results.recv_timeout(POLL_INTERVAL) {
            Ok(outcome) => Ok(Some(outcome)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            // The run itself holds a sender.
            Err(RecvTimeoutError::Disconnected) => Err(Error::panicked()),
        }
    }

    fn take(&mut self, pass: usize, outcome: Outcome, sink: &mut dyn Sink) -> Result<()> {
        match outcome {
            Outcome::Examined(chunk) => {
                self.states[pass].waiting.insert(chunk.index(), chunk);
                self.store_due(pass, sink)?;
            }
            Outcome::End => {
                self.states[pass].is_read = true;
                self.free_reader(pass);
            }
            Outcome::Failed(error) => return Err(error),
            Outcome::EndFailed(error) => {
                self.drop_reader(pass);
                return Err(error);
            }
        }
        self.conclude(pass, sink)
    }

    /// Stores the chunks of a pass whose turn has come.
    fn store_due(&mut self, number: usize, sink: &mut dyn Sink) -> Result<()> {
        let (pass, state) = (&self.passes[number], &mut self.states[number]);
        while let Some(chunk) = state.waiting.remove(&state.due) {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::canceled());
            }
            let (mut dirty_bytes, mut stored_bytes) = (0, 0);
            for update in chunk.updates() {
                sink.push(number, &update)?;
                stored_bytes += update.stored.len() as u64;
                dirty_bytes += pass.geometry.cluster_len(update.index) as u64;
            }
            chunk
                .unread()
                .iter()
                .for_each(|bytes| sink.unread(number, bytes.clone()));
            sink.chunk_done()?;
            state.due += 1;
            state.done_bytes += chunk.len();
            state.compared_bytes += chunk.compared();
            let progress = &pass.progress;
            progress.compared_bytes.fetch_add(chunk.len(), Ordering::Relaxed);
            progress.dirty_bytes.fetch_add(dirty_bytes, Ordering::Relaxed);
            progress.stored_bytes.fetch_add(stored_bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ends a pass of which everything was stored.
    fn conclude(&mut self, number: usize, sink: &mut dyn Sink) -> Result<()> {
        let (pass, state) = (&self.passes[number], &self.states[number]);
        if !state.is_read || state.done_bytes < pass.plan.bytes() {
            return Ok(());
        }
        pass.device.check_unchanged()?;
        sink.end(number, state.compared_bytes)?;
        self.ended += 1;
        Ok(())
    }

    /// The reader of a pass has nothing left to do.
    fn free_reader(&mut self, pass: usize) {
        self.pipeline.idle.extend(take_reader(&mut self.busy, pass));
        let left = self.passes.len() - self.next + self.busy.len();
        self.share_buffers(left.min(self.pipeline.options.readers));
    }

    /// The reader of a pass failed: it is not used again.
    fn drop_reader(&mut self, pass: usize) {
        drop(take_reader(&mut self.busy, pass));
    }

    /// Stops the readers that are still at work, and keeps those that come to their end soon.
    fn end(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Their buffers are free again.
        self.states.clear();
        self.busy.iter().for_each(|(_, reader)| reader.stop());
        let deadline = Instant::now() + STOP_PATIENCE;
        while !self.busy.is_empty() {
            match self.results.recv_deadline(deadline) {
                Ok((pass, Outcome::End)) => self.free_reader(pass),
                Ok((pass, Outcome::EndFailed(_))) => self.drop_reader(pass),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        for (_, reader) in self.busy.drain(..) {
            reader.abandon();
        }
    }
}

fn take_reader(busy: &mut Vec<(usize, Reader<Arc<Stream>>)>, pass: usize) -> Option<Reader<Arc<Stream>>> {
    let at = busy.iter().position(|(number, _)| *number == pass)?;
    Some(busy.swap_remove(at).1)
}
