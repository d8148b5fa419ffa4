//! Memory for O_DIRECT: single aligned buffers, and an arena of equal slots for a ring to register.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use crate::BLOCK_BYTES;

/// Zeroed heap memory, aligned to [`BLOCK_BYTES`], of a fixed capacity that is a multiple of it.
///
/// It dereferences to its first `len` bytes.
pub struct AlignedBuf {
    memory: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: it owns its memory alone, like a `Vec<u8>`; access follows the usual borrow rules.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A zeroed buffer of `len` bytes; the capacity is rounded up to at least one block.
    ///
    /// # Panics
    /// When `len` is within one block of the address space's size.
    pub fn new(len: usize) -> AlignedBuf {
        let capacity = len.max(1).next_multiple_of(BLOCK_BYTES);
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is at least one block, not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let memory = NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout));
        AlignedBuf {
            memory,
            len,
            capacity,
        }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BLOCK_BYTES).expect("a buffer is smaller than the address space")
    }

    /// How many bytes it can hold; a multiple of [`BLOCK_BYTES`].
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes it `len` bytes long. Bytes that come into view keep what they last held (zeros at first).
    ///
    /// # Panics
    /// When `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity,
            "an aligned buffer does not grow: {len} > {}",
            self.capacity
        );
        self.len = len;
    }

    /// All of its memory, whatever its length: O_DIRECT needs whole blocks behind an odd length.
    pub(crate) fn whole_mut(&mut self) -> &mut [u8] {
        // SAFETY: `capacity` bytes were allocated and zeroed, and are borrowed from `self` alone.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.capacity) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout, and freed only here.
        unsafe { dealloc(self.memory.as_ptr(), Self::layout(self.capacity)) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity` initialised bytes that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.whole_mut()[..len]
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("len", &self.len)
            .field("capacity", &self.capacity)
            .finish()
    }
}

/// An [`AlignedBuf`] whose pages stay in memory: using it needs nothing from a disk.
#[derive(Debug)]
pub struct LockedBuf(AlignedBuf);

impl LockedBuf {
    /// A zeroed buffer of `len` bytes, with all its pages in memory.
    ///
    /// # Errors
    /// When the kernel does not lock so much memory (mlock(2)).
    pub fn new(len: usize) -> io::Result<LockedBuf> {
        let buffer = AlignedBuf::new(len);
        // SAFETY: the whole of a live allocation; locking changes nothing about it.
        match unsafe { libc::mlock(buffer.memory.as_ptr().cast(), buffer.capacity) } {
            0 => Ok(LockedBuf(buffer)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for LockedBuf {
    fn drop(&mut self) {
        // SAFETY: the memory that was locked, which is freed only behind this.
        unsafe { libc::munlock(self.0.memory.as_ptr().cast(), self.0.capacity) };
    }
}

impl Deref for LockedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for LockedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// One anonymous mapping, cut into slots of equal size.
///
/// A mapping rather than heap memory, so that huge pages can back it and so that the pages that a ring has
/// pinned are nobody else's.
pub(crate) struct Arena {
    memory: NonNull<u8>,
    bytes: usize,
    slot_bytes: usize,
}

// SAFETY: the arena only owns the mapping; bytes are reached through `Slot`s, which do not overlap.
unsafe impl Send for Arena {}
// SAFETY: as above: `&Arena` gives no access to the bytes.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps `count` slots of `slot_bytes` each, a multiple of [`BLOCK_BYTES`], and returns every slot once.
    pub(crate) fn slots(count: usize, slot_bytes: usize) -> io::Result<Vec<Slot>> {
        Arena::with_slots(count, slot_bytes).map(|(_, slots)| slots)
    }

    /// As [`slots`](Self::slots), with the arena.
    pub(crate) fn with_slots(count: usize, slot_bytes: usize) -> io::Result<(Arc<Arena>, Vec<Slot>)> {
        let arena = Arc::new(Arena::map(count, slot_bytes)?);
        let index_end = u16::try_from(count).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let slot = |index| Slot {
            arena: Arc::clone(&arena),
            index,
        };
        let slots = (0..index_end).map(slot).collect();
        Ok((arena, slots))
    }

    /// The first `count` slots, for registering with a ring.
    pub(crate) fn iovecs(&self, count: usize) -> Vec<libc::iovec> {
        let iovec = |index: usize| libc::iovec {
            iov_base: self.memory.as_ptr().wrapping_add(index * self.slot_bytes).cast(),
            iov_len: self.slot_bytes,
        };
        (0..count.min(self.bytes / self.slot_bytes)).map(iovec).collect()
    }

    fn map(count: usize, slot_bytes: usize) -> io::Result<Arena> {
        let bytes = count
            .checked_mul(slot_bytes)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let address = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory =
            NonNull::new(address.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let arena = Arena {
            memory,
            bytes,
            slot_bytes,
        };
        // Huge pages first, then the faults: the other way round the small pages would already be there.
        arena.advise(libc::MADV_HUGEPAGE);
        arena.advise(libc::MADV_POPULATE_WRITE);
        Ok(arena)
    }

    /// Advice that a kernel may lack; without it the arena is slower, not wrong.
    fn advise(&self, advice: libc::c_int) {
        // SAFETY: the range is this arena's own mapping, and both pieces of advice keep its contents.
        let result = unsafe { libc::madvise(self.memory.as_ptr().cast(), self.bytes, advice) };
        if result != 0 {
            tracing::debug!(advice, error = %io::Error::last_os_error(), "madvise on I/O buffers was refused");
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: this is the mapping of `map`; no slot is left, since each holds the arena alive.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}

/// The sole handle to one slot of an arena; it dereferences to the slot's bytes.
///
/// Moving a `Slot` does not move the bytes.
pub(crate) struct Slot {
    arena: Arc<Arena>,
    index: u16,
}

impl Slot {
    /// The index among the arena's slots, which is also that of the registered buffer.
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// Where its bytes lie, for the kernel. Valid while the slot lives.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        let offset = usize::from(self.index) * self.arena.slot_bytes;
        // SAFETY: `index` is below the slot count, so the offset lies inside the mapping.
        unsafe { self.arena.memory.add(offset) }.as_ptr()
    }

    /// Keeps the memory mapped beyond the slot's life.
    #[cfg(test)]
    pub(crate) fn arena(&self) -> Arc<Arena> {
        Arc::clone(&self.arena)
    }

    /// For registering with a ring.
    fn as_iovec(&self) -> libc::iovec {
        libc::iovec {
            iov_base: self.as_ptr().cast(),
            iov_len: self.arena.slot_bytes,
        }
    }
}

/// For registering slots with a ring.
pub(crate) fn iovecs(slots: &[Slot]) -> Vec<libc::iovec> {
    slots.iter().map(Slot::as_iovec).collect()
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: slots do not overlap, each has one handle, and the mapping outlives it through the `Arc`.
        // The kernel writes to the bytes only while the slot lies in a ring's slab, where nobody derefs it.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.arena.slot_bytes) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only handle.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.arena.slot_bytes) }
    }
}

/// Whether every byte is zero. Data shows within the first bytes, so this costs nothing there.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut blocks = bytes.chunks_exact(128);
    // An OR over a fixed block becomes a few vector instructions.
    let zero_blocks = blocks
        .by_ref()
        .all(|block| block.iter().fold(0, |all, byte| all | byte) == 0);
    zero_blocks && blocks.remainder().iter().all(|&byte| byte == 0)
}
