//! Block devices and regular files, read and written with O_DIRECT through io_uring, or by threads where there is none.
//!
//! This is the only crate of the workspace that submits to an io_uring for disk I/O. It uses plain threads
//! and no async runtime.
//!
//! - [`Device`] is a disk opened for reading: what it is, how large, and whether it is still the same one.
//! - [`SequentialReader`] reads [`Ranges`] of a device from a thread of its own and hands out [`Chunk`]s, in the
//!   order in which reads complete, to any number of consumers.
//! - [`Reader`] is such a thread made once for one device after another; several share their [`Buffers`].
//! - [`Pace`] bounds how fast readers read, and says with which [`IoPriority`]; both can be changed meanwhile.
//! - [`io_method`] tells whether this process has an io_uring.
//! - [`SequentialWriter`] appends to a file or a block device in the caller's thread.
//! - [`LockedFile`] is a file with a `flock` on it.
//!
//! **Invariants.** Memory that the kernel may write to or read from is freed only after the operation's
//! completion. What could not be read is an error that names the first unreadable byte, or is listed beside the bytes
//! that could ([`Chunk::unreadable`]); it is never passed off as zeros. A
//! device that ends before the size it reported is an error, never padding.

mod buffer;
mod device;
mod error;
mod lock;
mod method;
mod open;
mod pace;
mod pool;
mod priority;
mod queue;
mod ranges;
mod read;
mod ring;
mod threads;
mod write;

pub use buffer::{AlignedBuf, LockedBuf, is_zero};
pub use crossbeam_channel::Receiver;
pub use device::{Device, DeviceKind};
pub use error::{Error, ErrorKind, Result};
pub use lock::{LockResult, LockedFile};
pub use method::{IoMethod, io_method};
pub use open::{create_direct, open_exclusive, set_buffered};
pub use pace::Pace;
pub use pool::Buffers;
pub use priority::IoPriority;
pub use ranges::Ranges;
pub use read::{Chunk, Delivery, OnReadError, ReadManner, ReadOptions, Reader, SequentialReader};
pub use write::{SequentialWriter, WriteOptions};

/// Alignment in bytes of every buffer, and of file offsets where nothing stricter is known.
///
/// It is a multiple of the logical block size of nearly every disk (512 or 4096).
pub const BLOCK_BYTES: usize = 4096;

/// [`BLOCK_BYTES`] as a file offset.
pub(crate) const BLOCK: u64 = BLOCK_BYTES as u64;

/// A count of bytes in memory as a file offset. Lossless: Linux has no platform with a wider `usize`.
pub(crate) const fn to_u64(bytes: usize) -> u64 {
    bytes as u64
}

/// A count of bytes known to be at most that of some buffer in memory.
pub(crate) fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

pub(crate) const fn align_down(offset: u64, align: u64) -> u64 {
    offset - offset % align
}

pub(crate) const fn align_up(offset: u64, align: u64) -> u64 {
    offset.next_multiple_of(align)
}
