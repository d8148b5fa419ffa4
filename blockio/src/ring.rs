//! An io_uring whose operations own their memory.
//!
//! # Ownership contract
//!
//! - An operation is a value `T` that owns everything its submission entry points to. [`Ring::start`] moves it
//!   into the slab; [`Ring::wait`] moves it out together with the result of its terminal completion (CQE).
//!   In between the ring alone holds it, so nothing can free, read or reuse the memory.
//! - `user_data` is the operation's slab index. No other key is ever submitted, and no entry is used that
//!   completes more than once (no multishot, no zero-copy send), so each CQE is a terminal one.
//! - An operation is never abandoned. Dropping the ring waits for every completion first, and only then frees
//!   the operations and unmaps the queues. Should waiting itself fail, the operations are leaked: memory is
//!   lost rather than handed to somebody while the kernel may still write to it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::{IoUring, opcode, squeue, types};

use crate::buffer::Slot;

/// Which threads will submit to the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Issuer {
    /// Only the thread that builds it: the kernel then defers completion work to that thread's waits.
    ThisThread,
    /// Any thread, one after the other.
    AnyThread,
}

/// A ring of up to `depth` operations in flight on one file at a time.
pub(crate) struct Ring<T> {
    uring: IoUring,
    slab: Vec<Option<T>>,
    vacant: Vec<usize>,
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

/// A place in a table of files that holds none.
const NO_FILE: RawFd = -1;

/// One read or write: which bytes of which slot, and where in the file.
pub(crate) struct Transfer {
    memory: *mut u8,
    buffer_index: u16,
    len: u32,
    offset: u64,
}

impl Transfer {
    /// `bytes` of `slot` from or to byte `offset` of the file.
    pub(crate) fn new(slot: &mut Slot, bytes: Range<usize>, offset: u64) -> Transfer {
        let buffer_index = slot.index();
        let bytes = &mut slot[bytes];
        let len = u32::try_from(bytes.len()).expect("slots are limited to 1 GiB when they are mapped");
        Transfer {
            memory: bytes.as_mut_ptr(),
            buffer_index,
            len,
            offset,
        }
    }
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
        let slab = std::iter::repeat_with(|| None).take(depth).collect();
        Ok(Ring {
            uring,
            slab,
            vacant: (0..depth).rev().collect(),
            file: FileRef::None,
            has_file_table: table.is_ok(),
            buffers_registered,
        })
    }

    /// Operations from here on are on `file`, which must stay open until [`leave_file`](Self::leave_file), or while
    /// the ring lives. Nothing is in flight.
    pub(crate) fn use_file(&mut self, file: BorrowedFd<'_>) {
        debug_assert_eq!(self.in_flight(), 0);
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
        debug_assert_eq!(self.in_flight(), 0);
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

    /// Operations whose completion has not been taken yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.slab.len() - self.vacant.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.vacant.is_empty()
    }

    /// Queues a read into `transfer`'s bytes; the kernel sees it at the next `submit` or `wait`.
    ///
    /// # Safety
    /// `operation` must own the slot that `transfer` was made from.
    pub(crate) unsafe fn read(&mut self, operation: T, transfer: &Transfer) {
        let Transfer {
            memory,
            buffer_index,
            len,
            offset,
        } = *transfer;
        let fd = self.fd();
        let entry = if self.buffers_registered {
            opcode::ReadFixed::new(fd, memory, len, buffer_index)
                .offset(offset)
                .build()
        } else {
            opcode::Read::new(fd, memory, len).offset(offset).build()
        };
        self.start(operation, entry);
    }

    /// Queues a write of `transfer`'s bytes; the kernel sees it at the next `submit` or `wait`.
    ///
    /// # Safety
    /// As for [`Ring::read`].
    pub(crate) unsafe fn write(&mut self, operation: T, transfer: &Transfer) {
        let Transfer {
            memory,
            buffer_index,
            len,
            offset,
        } = *transfer;
        let fd = self.fd();
        let entry = if self.buffers_registered {
            opcode::WriteFixed::new(fd, memory, len, buffer_index)
                .offset(offset)
                .build()
        } else {
            opcode::Write::new(fd, memory, len).offset(offset).build()
        };
        self.start(operation, entry);
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

    /// Puts the operation into the slab and its entry into the submission queue.
    fn start(&mut self, operation: T, entry: squeue::Entry) {
        let index = self
            .vacant
            .pop()
            .expect("the caller asks is_full() before it starts an operation");
        let flags = match self.file {
            FileRef::Registered => squeue::Flags::FIXED_FILE,
            FileRef::Plain(_) | FileRef::None => squeue::Flags::empty(),
        };
        let entry = entry.flags(flags).user_data(crate::to_u64(index));
        self.slab[index] = Some(operation);
        // SAFETY: what the entry points to is owned by the operation, which the slab keeps until its CQE.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        // At most `depth` entries are unsubmitted, and the queue has at least `depth` places.
        pushed.expect("the submission queue has a place for each slab index");
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
            if self.in_flight() == 0 {
                return Ok(None);
            }
            self.enter(1)?;
        }
    }

    /// Takes a completion that has already arrived.
    pub(crate) fn take_completed(&mut self) -> Option<(T, i32)> {
        let cqe = self.uring.completion().next()?;
        let index = usize::try_from(cqe.user_data()).unwrap_or(usize::MAX);
        let operation = self.slab.get_mut(index).and_then(Option::take);
        let operation = operation.expect("the kernel completes each operation once, under its own index");
        self.vacant.push(index);
        Some((operation, cqe.result()))
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
        if self.in_flight() > 0 {
            tracing::error!(
                operations = self.in_flight(),
                "io_uring cannot be waited for; leaking its buffers"
            );
            Box::leak(std::mem::take(&mut self.slab).into_boxed_slice());
            return;
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

impl<T> fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("depth", &self.slab.len())
            .field("in_flight", &self.in_flight())
            .finish()
    }
}

/// True for results of an operation, as negative error numbers, that say nothing about the disk.
pub(crate) fn is_retryable(result: i32) -> bool {
    // ECANCELED: the thread that submitted it has exited before a kernel worker took it up.
    matches!(-result, libc::EINTR | libc::EAGAIN | libc::ECANCELED)
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

/// An error of setting up a ring; one that comes from the system's configuration says so.
pub(crate) fn setup_error(operation: &'static str, source: io::Error) -> crate::Error {
    let denied = matches!(source.raw_os_error(), Some(libc::EPERM | libc::ENOSYS));
    let error = crate::Error::os(operation, source);
    if denied {
        error.detail("io_uring is not allowed here: look at sysctl kernel.io_uring_disabled, and at seccomp in a container")
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::{Issuer, Ring, Transfer};
    use crate::buffer::{Arena, Slot, iovecs};
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

    fn file_of_two_blocks() -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 4096]).unwrap();
        file.write_all(&[2; 4096]).unwrap();
        file
    }

    fn start(ring: &mut Ring<Slot>, mut slot: Slot, offset: u64) {
        let transfer = Transfer::new(&mut slot, 0..4096, offset);
        // SAFETY: the operation is the slot.
        unsafe { ring.read(slot, &transfer) };
    }

    #[test]
    fn operations_come_back_with_their_data_registered_or_not() {
        let file = file_of_two_blocks();
        for registered in [true, false] {
            let slots = Arena::slots(2, 4096).unwrap();
            // The kernel refuses to register no buffers at all, as it does too many: plain reads follow.
            let buffers = if registered { iovecs(&slots) } else { Vec::new() };
            let mut ring = Ring::new(Issuer::ThisThread, 2, &buffers).unwrap();
            ring.use_file(file.as_fd());
            assert_eq!(ring.buffers_registered, registered);
            for slot in slots {
                let offset = 4096 * u64::from(slot.index());
                start(&mut ring, slot, offset);
            }
            assert!(ring.is_full());
            while let Some((slot, result)) = ring.wait().unwrap() {
                assert_eq!(result, 4096);
                let value = u8::try_from(slot.index()).unwrap() + 1;
                assert!(slot.iter().all(|&byte| byte == value));
            }
            assert_eq!(ring.in_flight(), 0);
        }
    }

    #[test]
    fn a_ring_goes_from_one_file_to_another() {
        let (first, second) = (file_of_two_blocks(), file_of_two_blocks());
        let mut slots = Arena::slots(1, 4096).unwrap();
        let mut ring = Ring::new(Issuer::ThisThread, 1, &iovecs(&slots)).unwrap();
        for (file, offset, value) in [(&first, 0, 1), (&second, 4096, 2), (&first, 4096, 2)] {
            ring.use_file(file.as_fd());
            start(&mut ring, slots.pop().unwrap(), offset);
            let (slot, result) = ring.wait().unwrap().unwrap();
            assert_eq!((result, slot[0]), (4096, value));
            slots.push(slot);
            ring.leave_file();
        }
        start(&mut ring, slots.pop().unwrap(), 0);
        let (_, result) = ring.wait().unwrap().unwrap();
        assert_eq!(result, -libc::EBADF, "there is no file");
    }

    #[test]
    fn dropping_a_ring_completes_its_operations_first() {
        let file = file_of_two_blocks();
        let mut slots = Arena::slots(1, 4096).unwrap();
        let mut ring = Ring::new(Issuer::AnyThread, 1, &iovecs(&slots)).unwrap();
        ring.use_file(file.as_fd());
        let slot = slots.pop().unwrap();
        let bytes = slot.as_ptr();
        start(&mut ring, slot, 4096);
        assert_eq!(ring.in_flight(), 1);
        // A second handle to the memory, which shows what the drop did.
        let keep = ring.slab[0].as_ref().map(Slot::arena).unwrap();
        drop(ring);
        // SAFETY: `keep` holds the mapping, and nothing is in flight any more.
        assert_eq!(unsafe { *bytes }, 2);
        drop(keep);
    }
}
