//! Maps of the kernel as memory that it and we share.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::layout::Plain;
use crate::sys;

/// An array map of values of type `T`, mapped to memory.
///
/// The kernel and other processes change it at any time, so values are copied in and out and never borrowed.
#[derive(Debug)]
pub(crate) struct Mapping<T: Plain> {
    start: NonNull<T>,
    entries: usize,
    id: u32,
    values: PhantomData<T>,
}

// SAFETY: the memory belongs to this value alone, and is only accessed by volatile copies and atomics.
unsafe impl<T: Plain> Send for Mapping<T> {}
// SAFETY: as above: shared access copies, or is atomic.
unsafe impl<T: Plain> Sync for Mapping<T> {}

impl<T: Plain> Mapping<T> {
    /// Maps an array map. The mapping keeps it alive.
    ///
    /// # Errors
    /// `InvalidData` when its values do not have the size of `T`; what the kernel says.
    pub(crate) fn new(map: &OwnedFd) -> io::Result<Mapping<T>> {
        // The kernel places the values of an array at multiples of eight bytes.
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8) };
        let info = sys::info(map.as_fd())?;
        let entries = usize::try_from(info.max_entries).map_err(io::Error::other)?;
        if usize::try_from(info.value_size).ok() != Some(size_of::<T>()) || entries == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the map has values of another size",
            ));
        }
        // SAFETY: a new mapping at a place that the kernel chooses; it refuses a length beyond the map's pages.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                entries * size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(start.cast::<T>()) {
            Some(start) if start.as_ptr().cast::<libc::c_void>() != libc::MAP_FAILED => Ok(Mapping {
                start,
                entries,
                id: info.id,
                values: PhantomData,
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The kernel's number of the map.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// A copy of a value; `None` behind the end.
    pub(crate) fn load(&self, entry: usize) -> Option<T> {
        let place = self.place(entry)?;
        // SAFETY: the place is in the mapping and aligned; `Plain` types have no invalid values.
        Some(unsafe { place.as_ptr().read_volatile() })
    }

    /// Stores a value; nothing behind the end.
    pub(crate) fn store(&self, entry: usize, value: T) {
        if let Some(place) = self.place(entry) {
            // SAFETY: the place is in the mapping and aligned.
            unsafe { place.as_ptr().write_volatile(value) };
        }
    }

    /// A number of eight bytes in a value, to be used with atomic operations.
    ///
    /// # Panics
    /// If it does not lie in the value, or is not aligned: a fault of the caller, who names a constant.
    pub(crate) fn number(&self, entry: usize, offset: usize) -> Option<&AtomicU64> {
        assert!(offset.is_multiple_of(8) && offset + 8 <= size_of::<T>());
        let place = self.place(entry)?.as_ptr().wrapping_byte_add(offset);
        // SAFETY: eight aligned bytes within the mapping, which lives as long as `self`.
        Some(unsafe { AtomicU64::from_ptr(place.cast()) })
    }

    /// As [`number`](Mapping::number), of four bytes; `None` if it does not lie in the value.
    pub(crate) fn number32(&self, entry: usize, offset: usize) -> Option<&AtomicU32> {
        if !offset.is_multiple_of(4) || offset > size_of::<T>() - 4 {
            return None;
        }
        let place = self.place(entry)?.as_ptr().wrapping_byte_add(offset);
        // SAFETY: four aligned bytes within the mapping, which lives as long as `self`.
        Some(unsafe { AtomicU32::from_ptr(place.cast()) })
    }

    fn place(&self, entry: usize) -> Option<NonNull<T>> {
        // SAFETY: the entry is within the mapping.
        (entry < self.entries).then(|| unsafe { self.start.add(entry) })
    }
}

impl Mapping<u64> {
    /// All words.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has that many aligned words and lives as long as `self`; the kernel changes them
        // atomically too.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.entries) }
    }
}

impl<T: Plain> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.entries * size_of::<T>()) };
    }
}
