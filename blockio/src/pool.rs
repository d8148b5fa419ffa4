//! The buffers of several readers: one piece of memory, shared fairly.

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::buffer::{Arena, Slot};
use crate::{BLOCK_BYTES, Error, ErrorKind, Result};

/// The kernel registers at most 1 GiB a buffer and 16384 buffers (`io_uring/rsrc.c`).
pub(crate) const CHUNK_BYTES_MAX: usize = 1 << 30;
pub(crate) const BUFFERS_MAX: usize = 1 << 14;

/// Memory for chunks, for any number of readers. Cheap to clone.
///
/// A reader takes no more than its share, the number of buffers divided by that of the readers (see
/// [`divide`](Buffers::divide)); so one whose device or consumer is slow leaves the others theirs.
#[derive(Clone)]
pub struct Buffers {
    inner: Arc<Inner>,
}

struct Inner {
    arena: Arc<Arena>,
    chunk_bytes: usize,
    count: usize,
    state: Mutex<State>,
    /// A buffer was freed, a share grew, or a reader is to stop.
    changed: Condvar,
}

struct State {
    free: Vec<Slot>,
    /// Readers that share the buffers.
    readers: usize,
}

impl Buffers {
    /// `count` buffers of `chunk_bytes` each.
    ///
    /// # Errors
    /// `Invalid` when a number is 0 or too large, or `chunk_bytes` no multiple of 4096; `Io` when the kernel gives no
    /// memory.
    pub fn new(count: usize, chunk_bytes: usize) -> Result<Buffers> {
        let is_whole = chunk_bytes > 0 && chunk_bytes.is_multiple_of(BLOCK_BYTES);
        if !is_whole || chunk_bytes > CHUNK_BYTES_MAX || !(1..=BUFFERS_MAX).contains(&count) {
            return Err(Error::new(ErrorKind::Invalid, "make buffers").detail(format!(
                "{count} buffers of {chunk_bytes} bytes: 1 to {BUFFERS_MAX} of a multiple of {BLOCK_BYTES}, at most 1 GiB"
            )));
        }
        Buffers::map(count, chunk_bytes).map_err(|source| Error::os("make buffers", source))
    }

    pub(crate) fn map(count: usize, chunk_bytes: usize) -> io::Result<Buffers> {
        let (arena, free) = Arena::with_slots(count, chunk_bytes)?;
        Ok(Buffers {
            inner: Arc::new(Inner {
                arena,
                chunk_bytes,
                count,
                state: Mutex::new(State { free, readers: 1 }),
                changed: Condvar::new(),
            }),
        })
    }

    /// Bytes of a buffer.
    pub fn chunk_bytes(&self) -> usize {
        self.inner.chunk_bytes
    }

    /// How many buffers there are.
    pub fn count(&self) -> usize {
        self.inner.count
    }

    /// Shares the buffers among so many readers from now on; at first there is one. Each keeps one at least.
    pub fn divide(&self, readers: usize) {
        self.inner.lock().readers = readers.max(1);
        self.inner.changed.notify_all();
    }

    /// For registering all of them with a ring.
    pub(crate) fn iovecs(&self) -> Vec<libc::iovec> {
        self.inner.arena.iovecs(self.inner.count)
    }

    /// The share of a reader that begins to work.
    pub(crate) fn share(&self) -> Arc<Share> {
        Arc::new(Share {
            pool: Arc::clone(&self.inner),
            held: AtomicUsize::new(0),
        })
    }

    /// Wakes readers that wait for a buffer, so that they look whether they are to stop.
    pub(crate) fn wake(&self) {
        // Under the lock: a reader that has looked and not begun to wait would miss it.
        let _state = self.inner.lock();
        self.inner.changed.notify_all();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers")
            .field("count", &self.inner.count)
            .field("chunk_bytes", &self.inner.chunk_bytes)
            .finish_non_exhaustive()
    }
}

/// One reader's part of the buffers, and what it and its chunks hold of them.
pub(crate) struct Share {
    pool: Arc<Inner>,
    /// Changed under the pool's lock only.
    held: AtomicUsize,
}

impl Share {
    /// A free buffer, if there is one and the share is not used up.
    pub(crate) fn try_take(self: &Arc<Share>) -> Option<Held> {
        self.take_from(&mut self.pool.lock())
    }

    /// As [`try_take`](Self::try_take), but waits for one; `None` when `stop` is set.
    pub(crate) fn take(self: &Arc<Share>, stop: &AtomicBool) -> Option<Held> {
        let mut state = self.pool.lock();
        loop {
            if stop.load(Ordering::Acquire) {
                return None;
            }
            if let Some(buffer) = self.take_from(&mut state) {
                return Some(buffer);
            }
            state = self
                .pool
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take_from(self: &Arc<Share>, state: &mut State) -> Option<Held> {
        let share = (self.pool.count / state.readers).max(1);
        let held = self.held.load(Ordering::Relaxed);
        if held >= share {
            return None;
        }
        let slot = state.free.pop()?;
        self.held.store(held + 1, Ordering::Relaxed);
        Some(Held {
            slot: ManuallyDrop::new(slot),
            share: Arc::clone(self),
        })
    }

    fn put_back(&self, slot: Slot) {
        let mut state = self.pool.lock();
        state.free.push(slot);
        self.held.fetch_sub(1, Ordering::Relaxed);
        self.pool.changed.notify_all();
    }
}

/// A buffer that a reader or a chunk of its holds. Dropping it frees the buffer.
pub(crate) struct Held {
    slot: ManuallyDrop<Slot>,
    share: Arc<Share>,
}

impl Deref for Held {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        &self.slot
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Slot {
        &mut self.slot
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: the slot is taken here only, and not touched after that.
        let slot = unsafe { ManuallyDrop::take(&mut self.slot) };
        self.share.put_back(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::Buffers;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    #[test]
    fn a_reader_takes_no_more_than_its_share_and_the_rest_when_it_is_alone() {
        let buffers = Buffers::new(6, 4096).unwrap();
        buffers.divide(2);
        let (a, b) = (buffers.share(), buffers.share());
        let taken: Vec<_> = (0..3).map(|_| a.try_take().unwrap()).collect();
        assert!(a.try_take().is_none(), "three are the share of the other one");
        let others: Vec<_> = (0..3).map(|_| b.try_take().unwrap()).collect();
        drop(others);
        buffers.divide(1);
        let rest: Vec<_> = (0..3).map(|_| a.try_take().unwrap()).collect();
        assert!(a.try_take().is_none(), "there are no more");
        drop((taken, rest));
        assert!(a.try_take().is_some(), "what was dropped is free");
    }

    #[test]
    fn more_readers_than_buffers_have_one_each_in_turn() {
        let buffers = Buffers::new(1, 4096).unwrap();
        buffers.divide(2);
        let (a, b) = (buffers.share(), buffers.share());
        let slot = a.try_take().unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| b.take(&stop).is_some());
            drop(slot);
            assert!(waiting.join().unwrap());
        });
    }

    #[test]
    fn a_reader_that_waits_for_a_buffer_can_be_stopped() {
        let buffers = Buffers::new(1, 4096).unwrap();
        buffers.divide(2);
        let (a, b) = (buffers.share(), buffers.share());
        let slot = a.try_take().unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| b.take(&stop).is_none());
            stop.store(true, std::sync::atomic::Ordering::Release);
            buffers.wake();
            assert!(waiting.join().unwrap());
        });
        drop(slot);
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        for (count, bytes) in [(0, 4096), (1, 0), (1, 4097), (1 << 15, 4096), (1, 2 << 30)] {
            assert!(Buffers::new(count, bytes).is_err(), "{count} of {bytes}");
        }
    }
}
