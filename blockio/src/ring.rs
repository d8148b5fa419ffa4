//! An io_uring whose operations own their memory.
//!
//! The ownership contract is that of the [`queue`](crate::queue) module. `user_data` is the operation's slab index. No
//! other key is ever submitted, and no entry is used that completes more than once (no multishot, no zero-copy send),
//! so each completion (CQE) is a terminal one.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::{IoUring, opcode, squeue, types};

use crate::queue::{Direction, Issuer, NO_FILE, Slab, Transfer};

/// A ring of up to `depth` operations in flight on one file at a time.
pub(crate) struct Ring<T> {
    uring: IoUring,
    slab: Slab<T>,
    file: FileRef,
    /// Whether the kernel has a table of one file.
    has_file_table: bool,
    buffers_registered: bool,
}

#[derive(Clone, Copy)]
enum FileRef {
    None,
    Registered,
    Plain(RawFd),
}

impl<T> Ring<T> {
    /// Builds a ring and registers `buffers`, which are those of live slots; [`use_file`](Self::use_file) comes next.
    ///
    /// What the kernel refuses to register is used unregistered.
    ///
    /// # Errors
    /// When the kernel gives no ring.
    pub(crate) fn new(issuer: Issuer, depth: usize, buffers: &[libc::iovec]) -> io::Result<Ring<T>> {
        let uring = build(issuer, u32::try_from(depth).unwrap_or(u32::MAX))?;
        let buffers_registered = register_buffers(&uring, buffers);
        let table = uring.submitter().register_files(&[NO_FILE]);
        if let Err(error) = &table {
            tracing::debug!(%error, "io_uring has no table of files; using descriptors");
        }
        Ok(Ring {
            uring,
            slab: Slab::new(depth),
            file: FileRef::None,
            has_file_table: table.is_ok(),
            buffers_registered,
        })
    }

    /// Operations from here on are on `file`, which must stay open until [`leave_file`](Self::leave_file), or while
    /// the ring lives. Nothing is in flight.
    pub(crate) fn use_file(&mut self, file: BorrowedFd<'_>) {
        debug_assert_eq!(self.slab.in_flight(), 0);
        let fd = file.as_raw_fd();
        let is_registered = self.has_file_table && self.set_file(fd);
        self.file = if is_registered {
            FileRef::Registered
        } else {
            FileRef::Plain(fd)
        };
    }

    /// Lets go of the file: else its device would stay busy. Nothing is in flight.
    pub(crate) fn leave_file(&mut self) {
        debug_assert_eq!(self.slab.in_flight(), 0);
        if matches!(self.file, FileRef::Registered) {
            self.set_file(NO_FILE);
        }
        self.file = FileRef::None;
    }

    fn set_file(&self, fd: RawFd) -> bool {
        match self.uring.submitter().register_files_update(0, &[fd]) {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, "io_uring does not register the file; using its descriptor");
                false
            }
        }
    }

    /// The operations in flight.
    pub(crate) fn slab(&self) -> &Slab<T> {
        &self.slab
    }

    #[cfg(test)]
    pub(crate) fn has_registered_buffers(&self) -> bool {
        self.buffers_registered
    }

    /// Queues a read or write; the kernel sees it at the next `submit` or `wait`.
    ///
    /// # Safety
    /// `operation` must own the slot that `transfer` was made from.
    pub(crate) unsafe fn start(&mut self, operation: T, transfer: &Transfer, direction: Direction) {
        let flags = match self.file {
            FileRef::Registered => squeue::Flags::FIXED_FILE,
            FileRef::Plain(_) | FileRef::None => squeue::Flags::empty(),
        };
        let index = self.slab.put(operation);
        let entry = self
            .entry(transfer, direction)
            .flags(flags)
            .user_data(crate::to_u64(index));
        // SAFETY: what the entry points to is owned by the operation, which the slab keeps until its CQE.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        // At most `depth` entries are unsubmitted, and the queue has at least `depth` places.
        pushed.expect("the submission queue has a place for each slab index");
    }

    fn entry(&self, transfer: &Transfer, direction: Direction) -> squeue::Entry {
        let Transfer {
            memory,
            buffer_index,
            len,
            offset,
            priority,
        } = *transfer;
        let (fd, priority) = (self.fd(), priority.to_kernel());
        match (direction, self.buffers_registered) {
            (Direction::Read, true) => opcode::ReadFixed::new(fd, memory, len, buffer_index)
                .offset(offset)
                .ioprio(priority)
                .build(),
            (Direction::Read, false) => opcode::Read::new(fd, memory, len)
                .offset(offset)
                .ioprio(priority)
                .build(),
            (Direction::Write, true) => opcode::WriteFixed::new(fd, memory, len, buffer_index)
                .offset(offset)
                .ioprio(priority)
                .build(),
            (Direction::Write, false) => opcode::Write::new(fd, memory, len)
                .offset(offset)
                .ioprio(priority)
                .build(),
        }
    }

    /// The file as an entry names it: its index among the registered ones, or its descriptor.
    fn fd(&self) -> types::Fd {
        match self.file {
            FileRef::Registered => types::Fd(0),
            FileRef::Plain(fd) => types::Fd(fd),
            // The kernel then answers EBADF.
            FileRef::None => types::Fd(NO_FILE),
        }
    }

    /// Hands queued entries to the kernel without waiting.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        self.enter(0)
    }

    /// Submits what is queued, waits for a completion and returns the operation with its result: the byte
    /// count, or a negative error number. `None` when nothing is in flight.
    ///
    /// An error leaves all operations in the slab.
    pub(crate) fn wait(&mut self) -> io::Result<Option<(T, i32)>> {
        loop {
            if let Some(completed) = self.take_completed() {
                return Ok(Some(completed));
            }
            if self.slab.in_flight() == 0 {
                return Ok(None);
            }
            self.enter(1)?;
        }
    }

    /// Takes a completion that has already arrived.
    pub(crate) fn take_completed(&mut self) -> Option<(T, i32)> {
        let cqe = self.uring.completion().next()?;
        let index = usize::try_from(cqe.user_data()).unwrap_or(usize::MAX);
        Some((self.slab.take(index), cqe.result()))
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        match self.uring.submitter().submit_and_wait(want) {
            Ok(_) => Ok(()),
            // A signal, or a kernel short of memory or of completion places: the caller's loop comes back.
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        while let Ok(Some(_)) = self.wait() {}
        if self.slab.in_flight() > 0 {
            return self.slab.leak();
        }
        // The kernel takes a closed ring apart later, in a worker. What is registered is released now: else the
        // device would stay busy for a while after its last user.
        let submitter = self.uring.submitter();
        if self.has_file_table {
            let _ = submitter.unregister_files();
        }
        if self.buffers_registered {
            let _ = submitter.unregister_buffers();
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

/// The best set of flags that this kernel knows: all from 6.1, cooperative task running from 5.19.
fn build(issuer: Issuer, depth: u32) -> io::Result<IoUring> {
    if issuer == Issuer::ThisThread {
        let deferred = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(depth);
        if let Ok(uring) = deferred {
            return Ok(uring);
        }
    }
    IoUring::builder()
        .setup_coop_taskrun()
        .build(depth)
        .or_else(|_| IoUring::new(depth))
}

fn register_buffers(uring: &IoUring, buffers: &[libc::iovec]) -> bool {
    // SAFETY: the vectors describe live mappings. The kernel pins the pages, so that it would write to them,
    // not to somebody else's memory, even after an unmapping.
    let registered = unsafe { uring.submitter().register_buffers(buffers) };
    if let Err(error) = &registered {
        tracing::debug!(%error, "io_uring does not register the buffers; using plain reads and writes");
    }
    registered.is_ok()
}
