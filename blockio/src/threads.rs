//! Reads and writes by threads, for kernels and sandboxes without io_uring.
//!
//! Each thread takes one operation at a time and waits for it with `pread` or `pwrite`, so that as many operations are in
//! flight at the device as there are threads.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::priority::ThreadPriority;
use crate::queue::{Direction, NO_FILE, Slab, Transfer};

/// Disks gain nothing from more requests of a chunk each in flight.
const THREADS_MAX: usize = 16;

/// Threads that execute up to `depth` operations on one file at a time.
pub(crate) struct Threads<T> {
    slab: Slab<T>,
    file: RawFd,
    work: Option<Sender<Work>>,
    done: Receiver<(usize, i32)>,
    threads: Vec<JoinHandle<()>>,
}

/// What a thread has to do for the operation under `index`.
struct Work {
    index: usize,
    file: RawFd,
    transfer: Transfer,
    direction: Direction,
}

// SAFETY: the memory belongs to an operation that lies in the slab until the thread has reported its completion.
unsafe impl Send for Work {}

impl<T> Threads<T> {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the kernel gives not even one thread.
    pub(crate) fn new(depth: usize) -> io::Result<Threads<T>> {
        let (work, queue) = unbounded::<Work>();
        let (report, done) = unbounded();
        let mut threads = Vec::new();
        for _ in 0..depth.min(THREADS_MAX) {
            let (queue, report) = (queue.clone(), report.clone());
            let thread = thread::Builder::new().name("blockio-work".to_owned());
            match thread.spawn(move || run(&queue, &report)) {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, threads = threads.len(), "the kernel gives no more threads");
                    break;
                }
            }
        }
        Ok(Threads {
            slab: Slab::new(depth),
            file: NO_FILE,
            work: Some(work),
            done,
            threads,
        })
    }

    pub(crate) fn use_file(&mut self, file: BorrowedFd<'_>) {
        debug_assert_eq!(self.slab.in_flight(), 0);
        self.file = file.as_raw_fd();
    }

    pub(crate) fn leave_file(&mut self) {
        debug_assert_eq!(self.slab.in_flight(), 0);
        self.file = NO_FILE;
    }

    /// The operations in flight.
    pub(crate) fn slab(&self) -> &Slab<T> {
        &self.slab
    }

    /// Starts a read or write.
    ///
    /// # Safety
    /// `operation` must own the slot that `transfer` was made from.
    pub(crate) unsafe fn start(&mut self, operation: T, transfer: &Transfer, direction: Direction) {
        let work = Work {
            index: self.slab.put(operation),
            file: self.file,
            transfer: *transfer,
            direction,
        };
        // Threads end only after the sender is gone. Were there none, `wait` would report it.
        if let Some(queue) = &self.work {
            let _ = queue.send(work);
        }
    }

    /// Waits for a completion; `None` when nothing is in flight.
    ///
    /// # Errors
    /// When all threads are gone.
    pub(crate) fn wait(&mut self) -> io::Result<Option<(T, i32)>> {
        if self.slab.in_flight() == 0 {
            return Ok(None);
        }
        let (index, result) = self
            .done
            .recv()
            .map_err(|_| io::Error::other("the threads that read and write have ended"))?;
        Ok(Some((self.slab.take(index), result)))
    }

    /// Takes a completion that has already arrived.
    pub(crate) fn take_completed(&mut self) -> Option<(T, i32)> {
        let (index, result) = self.done.try_recv().ok()?;
        Some((self.slab.take(index), result))
    }
}

impl<T> Drop for Threads<T> {
    fn drop(&mut self) {
        while let Ok(Some(_)) = self.wait() {}
        if self.slab.in_flight() > 0 {
            self.slab.leak();
        }
        drop(self.work.take());
        for thread in self.threads.drain(..) {
            // A panic there has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// A thread's life.
fn run(queue: &Receiver<Work>, report: &Sender<(usize, i32)>) {
    let mut priority = ThreadPriority::default();
    for work in queue {
        priority.set(work.transfer.priority);
        let result = execute(&work);
        if report.send((work.index, result)).is_err() {
            return;
        }
    }
}

/// Reads or writes once; returns the byte count, or a negative error number as an io_uring does.
fn execute(work: &Work) -> i32 {
    let Transfer {
        memory, len, offset, ..
    } = work.transfer;
    let Ok(offset) = libc::off64_t::try_from(offset) else {
        return -libc::EINVAL;
    };
    let (memory, len) = (memory.cast::<libc::c_void>(), len as usize);
    let count = match work.direction {
        // SAFETY: the memory is `len` bytes of a slot that the operation in the slab owns until this one is reported.
        Direction::Read => unsafe { libc::pread64(work.file, memory, len, offset) },
        // SAFETY: as for the read.
        Direction::Write => unsafe { libc::pwrite64(work.file, memory, len, offset) },
    };
    if count < 0 {
        let error = io::Error::last_os_error();
        return -error.raw_os_error().unwrap_or(libc::EIO);
    }
    // A slot has at most 1 GiB.
    i32::try_from(count).unwrap_or(i32::MAX)
}
