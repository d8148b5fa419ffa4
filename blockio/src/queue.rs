//! Reads and writes in flight on one file: through an io_uring, or by threads where there is none.
//!
//! # Ownership contract
//!
//! - An operation is a value `T` that owns the memory which it reads or writes. Starting it moves it into the queue;
//!   [`Queue::wait`] moves it out together with its result. In between the queue alone holds it, so nothing can free,
//!   read or reuse the memory.
//! - An operation is never abandoned. Dropping the queue waits for every completion first, and only then frees the
//!   operations. Should waiting itself fail, the operations are leaked: memory is lost rather than handed on while
//!   something may still write to it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, RawFd};

use crate::IoPriority;
use crate::buffer::Slot;
use crate::method::{self, IoMethod};
use crate::ring::Ring;
use crate::threads::Threads;

/// Which threads will start operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Issuer {
    /// Only the thread that builds the queue: a ring then defers completion work to that thread's waits.
    ThisThread,
    /// Any thread, one after the other.
    AnyThread,
}

/// No file.
pub(crate) const NO_FILE: RawFd = -1;

/// What an operation does with the memory that it owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// One read or write: which bytes of which slot, where in the file, and how urgent it is.
#[derive(Clone, Copy)]
pub(crate) struct Transfer {
    pub memory: *mut u8,
    pub buffer_index: u16,
    pub len: u32,
    pub offset: u64,
    pub priority: IoPriority,
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
            priority: IoPriority::default(),
        }
    }

    pub(crate) fn with_priority(self, priority: IoPriority) -> Transfer {
        Transfer { priority, ..self }
    }
}

/// The operations in flight, each under its index.
pub(crate) struct Slab<T> {
    operations: Vec<Option<T>>,
    vacant: Vec<usize>,
}

impl<T> Slab<T> {
    pub(crate) fn new(depth: usize) -> Slab<T> {
        Slab {
            operations: std::iter::repeat_with(|| None).take(depth).collect(),
            vacant: (0..depth).rev().collect(),
        }
    }

    pub(crate) fn depth(&self) -> usize {
        self.operations.len()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.operations.len() - self.vacant.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.vacant.is_empty()
    }

    /// Takes an operation and returns its index.
    pub(crate) fn put(&mut self, operation: T) -> usize {
        let index = self
            .vacant
            .pop()
            .expect("the caller asks is_full() before it starts an operation");
        self.operations[index] = Some(operation);
        index
    }

    /// Gives up the operation that has completed.
    pub(crate) fn take(&mut self, index: usize) -> T {
        let operation = self.operations.get_mut(index).and_then(Option::take);
        let operation = operation.expect("each operation completes once, under its own index");
        self.vacant.push(index);
        operation
    }

    /// Gives up the memory of operations that cannot be waited for.
    pub(crate) fn leak(&mut self) {
        tracing::error!(
            operations = self.in_flight(),
            "reads or writes cannot be waited for; leaking their buffers"
        );
        Box::leak(std::mem::take(&mut self.operations).into_boxed_slice());
        self.vacant = Vec::new();
    }

    #[cfg(test)]
    pub(crate) fn first(&self) -> Option<&T> {
        self.operations[0].as_ref()
    }
}

/// Up to `depth` operations in flight on one file at a time.
pub(crate) enum Queue<T> {
    Ring(Box<Ring<T>>),
    Threads(Threads<T>),
}

impl<T> Queue<T> {
    /// Builds a queue; `buffers` are those of live slots. [`use_file`](Self::use_file) comes next.
    ///
    /// Where the kernel refuses a ring, threads do the work.
    ///
    /// # Errors
    /// When the kernel gives neither a ring nor a thread.
    pub(crate) fn new(issuer: Issuer, depth: usize, buffers: &[libc::iovec]) -> io::Result<Queue<T>> {
        if let IoMethod::Uring = method::io_method() {
            match Ring::new(issuer, depth, buffers) {
                Ok(ring) => return Ok(Queue::Ring(Box::new(ring))),
                Err(error) => {
                    tracing::warn!(%error, "the kernel refuses an io_uring; threads read and write instead")
                }
            }
        }
        Threads::new(depth).map(Queue::Threads)
    }

    /// Operations from here on are on `file`, which must stay open until [`leave_file`](Self::leave_file), or while
    /// the queue lives. Nothing is in flight.
    pub(crate) fn use_file(&mut self, file: BorrowedFd<'_>) {
        match self {
            Queue::Ring(ring) => ring.use_file(file),
            Queue::Threads(threads) => threads.use_file(file),
        }
    }

    /// Lets go of the file: else its device would stay busy. Nothing is in flight.
    pub(crate) fn leave_file(&mut self) {
        match self {
            Queue::Ring(ring) => ring.leave_file(),
            Queue::Threads(threads) => threads.leave_file(),
        }
    }

    fn slab(&self) -> &Slab<T> {
        match self {
            Queue::Ring(ring) => ring.slab(),
            Queue::Threads(threads) => threads.slab(),
        }
    }

    /// Operations whose completion has not been taken yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.slab().in_flight()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.slab().is_full()
    }

    /// Starts a read into, or a write of, `transfer`'s bytes, at the latest with the next `submit` or `wait`.
    ///
    /// # Safety
    /// `operation` must own the slot that `transfer` was made from.
    pub(crate) unsafe fn start(&mut self, operation: T, transfer: &Transfer, direction: Direction) {
        match self {
            // SAFETY: as the caller promises.
            Queue::Ring(ring) => unsafe { ring.start(operation, transfer, direction) },
            // SAFETY: as the caller promises.
            Queue::Threads(threads) => unsafe { threads.start(operation, transfer, direction) },
        }
    }

    /// Makes sure that what was started is under way, without waiting.
    ///
    /// # Errors
    /// When the kernel refuses; all operations stay in the queue.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        match self {
            Queue::Ring(ring) => ring.submit(),
            Queue::Threads(_) => Ok(()),
        }
    }

    /// Waits for a completion and returns the operation with its result: the byte count, or a negative error number.
    /// `None` when nothing is in flight.
    ///
    /// # Errors
    /// When there is no way to wait; all operations stay in the queue.
    pub(crate) fn wait(&mut self) -> io::Result<Option<(T, i32)>> {
        match self {
            Queue::Ring(ring) => ring.wait(),
            Queue::Threads(threads) => threads.wait(),
        }
    }

    /// Takes a completion that has already arrived.
    pub(crate) fn take_completed(&mut self) -> Option<(T, i32)> {
        match self {
            Queue::Ring(ring) => ring.take_completed(),
            Queue::Threads(threads) => threads.take_completed(),
        }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Queue::Ring(_) => "Ring",
            Queue::Threads(_) => "Threads",
        };
        f.debug_struct(name)
            .field("depth", &self.slab().depth())
            .field("in_flight", &self.in_flight())
            .finish()
    }
}

/// True for results of an operation, as negative error numbers, that say nothing about the disk.
pub(crate) fn is_retryable(result: i32) -> bool {
    // ECANCELED: the thread that submitted it to a ring has exited before a kernel worker took it up.
    matches!(-result, libc::EINTR | libc::EAGAIN | libc::ECANCELED)
}

#[cfg(test)]
mod tests {
    use super::{Direction, Issuer, Queue, Transfer};
    use crate::buffer::{Arena, Slot, iovecs};
    use crate::ring::Ring;
    use crate::threads::Threads;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    fn file_of_two_blocks() -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 4096]).unwrap();
        file.write_all(&[2; 4096]).unwrap();
        file
    }

    fn start(queue: &mut Queue<Slot>, mut slot: Slot, offset: u64, direction: Direction) {
        let transfer = Transfer::new(&mut slot, 0..4096, offset);
        // SAFETY: the operation is the slot.
        unsafe { queue.start(slot, &transfer, direction) };
    }

    /// A ring with registered buffers, one without, and threads, each with slots.
    fn queues(depth: usize) -> Vec<(Queue<Slot>, Vec<Slot>)> {
        let ring = |registered: bool| {
            let slots = Arena::slots(depth, 4096).unwrap();
            // The kernel refuses to register no buffers at all, as it does too many: plain reads follow.
            let buffers = if registered { iovecs(&slots) } else { Vec::new() };
            let ring = Ring::new(Issuer::ThisThread, depth, &buffers).unwrap();
            assert_eq!(ring.has_registered_buffers(), registered);
            (Queue::Ring(Box::new(ring)), slots)
        };
        let threads = Queue::Threads(Threads::new(depth).unwrap());
        let slots = Arena::slots(depth, 4096).unwrap();
        vec![ring(true), ring(false), (threads, slots)]
    }

    #[test]
    fn operations_come_back_with_their_data() {
        let file = file_of_two_blocks();
        for (mut queue, slots) in queues(2) {
            queue.use_file(file.as_fd());
            for slot in slots {
                let offset = 4096 * u64::from(slot.index());
                start(&mut queue, slot, offset, Direction::Read);
            }
            assert!(queue.is_full());
            while let Some((slot, result)) = queue.wait().unwrap() {
                assert_eq!(result, 4096);
                let value = u8::try_from(slot.index()).unwrap() + 1;
                assert!(slot.iter().all(|&byte| byte == value));
            }
            assert_eq!(queue.in_flight(), 0);
        }
    }

    #[test]
    fn writes_reach_the_file() {
        for (mut queue, mut slots) in queues(1) {
            let file = file_of_two_blocks();
            queue.use_file(file.as_fd());
            let mut slot = slots.pop().unwrap();
            slot.fill(7);
            start(&mut queue, slot, 4096, Direction::Write);
            queue.submit().unwrap();
            let (_, result) = queue.wait().unwrap().unwrap();
            assert_eq!(result, 4096);
            let mut found = [0; 8192];
            file.read_exact_at(&mut found, 0).unwrap();
            assert_eq!((found[4095], found[4096], found[8191]), (1, 7, 7));
        }
    }

    #[test]
    fn a_queue_goes_from_one_file_to_another() {
        let (first, second) = (file_of_two_blocks(), file_of_two_blocks());
        for (mut queue, mut slots) in queues(1) {
            for (file, offset, value) in [(&first, 0, 1), (&second, 4096, 2), (&first, 4096, 2)] {
                queue.use_file(file.as_fd());
                start(&mut queue, slots.pop().unwrap(), offset, Direction::Read);
                let (slot, result) = queue.wait().unwrap().unwrap();
                assert_eq!((result, slot[0]), (4096, value));
                slots.push(slot);
                queue.leave_file();
            }
            start(&mut queue, slots.pop().unwrap(), 0, Direction::Read);
            let (_, result) = queue.wait().unwrap().unwrap();
            assert_eq!(result, -libc::EBADF, "there is no file");
        }
    }

    #[test]
    fn dropping_a_queue_completes_its_operations_first() {
        let file = file_of_two_blocks();
        for (mut queue, mut slots) in queues(1) {
            queue.use_file(file.as_fd());
            let slot = slots.pop().unwrap();
            let bytes = slot.as_ptr();
            start(&mut queue, slot, 4096, Direction::Read);
            assert_eq!(queue.in_flight(), 1);
            // A second handle to the memory, which shows what the drop did.
            let keep = queue.slab().first().map(Slot::arena).unwrap();
            drop(queue);
            // SAFETY: `keep` holds the mapping, and nothing is in flight any more.
            assert_eq!(unsafe { *bytes }, 2);
            drop(keep);
        }
    }
}
