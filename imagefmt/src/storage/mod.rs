//! The seam between the store and what holds it. Everything a store does to a disk goes through this
//! trait: production is [`DirStorage`](crate::storage::dir::DirStorage), tests put a simulated one in its place.
//!
//! Paths are relative to the store, with `/` between parts. Nothing reached through them lies outside
//! of it: no `..`, no symlink.

pub(crate) mod dir;
pub(crate) mod holders;
pub(crate) mod lasting;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "only tests and fuzzers have it")]
pub(crate) mod memory;
pub(crate) mod paths;

use crate::error::Result;
use blockio::AlignedBuf;
use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;

/// The blocks that layers are written in: a flush ends on one, and no block is written twice.
pub const BLOCK_LEN: u64 = 4096;

/// Operations of a store on what holds it.
pub trait Storage: Send + Sync + Debug {
    /// The whole of a regular file of at most `max_len` bytes.
    fn read(&self, path: &str, max_len: u64) -> Result<Vec<u8>>;

    /// As [`read`](Self::read), with the file's stamp, where the storage has stamps.
    fn read_with_stamp(&self, path: &str, max_len: u64) -> Result<(Vec<u8>, Option<Stamp>)> {
        Ok((self.read(path, max_len)?, None))
    }

    /// The stamp that a file has now; `None` where the storage has no stamps or the file cannot be opened.
    fn stamp(&self, _path: &str) -> Option<Stamp> {
        None
    }

    /// Names in a directory, `.` and `..` left out, in no order.
    fn list(&self, dir: &str) -> Result<Vec<String>>;

    /// Creates a directory; an error if it exists.
    fn create_dir(&self, dir: &str) -> Result<()>;

    /// Writes a file under a new name, or over an old one, and makes its content durable
    /// (its name is durable only after [`sync_dir`](Self::sync_dir)).
    fn write(&self, path: &str, bytes: &[u8]) -> Result<()>;

    /// Gives a file its final name, replacing what had it.
    fn rename(&self, from: &str, to: &str) -> Result<()>;

    /// Removes a file.
    fn remove(&self, path: &str) -> Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &str) -> Result<()>;

    /// Opens a layer for reading.
    fn open_layer(&self, path: &str) -> Result<Box<dyn LayerRead>>;

    /// Creates a layer for appending; an error if the name exists.
    fn create_layer(&self, path: &str) -> Result<Box<dyn LayerAppend>>;

    /// Gives back the space of byte ranges of a layer, which read as zeros from then on, and makes that
    /// durable. The ranges are whole blocks, ascending; what lies beyond the end of the file is left out.
    fn reclaim(&self, path: &str, dead: &[Range<u64>]) -> Result<()>;

    /// Whether the space of a write is freed only when all of it is freed, as on btrfs: then every
    /// piece of a layer is to be a write of its own.
    fn frees_only_whole_writes(&self) -> bool {
        false
    }

    /// Bytes that a file takes on what holds the store; holes take none.
    fn allocated(&self, path: &str) -> Result<u64>;

    /// Locks a file without waiting; an error of kind `Busy` if somebody else holds it.
    /// The lock goes with the process.
    fn lock(&self, path: &str, mode: LockMode) -> Result<Lock>;

    /// Who holds a lock on a file, as far as that can be known, each in words for people.
    fn holders(&self, path: &str) -> Vec<String>;
}

/// Tells a file from every other one, and from itself before it was changed. Opaque to its users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Which file: for a directory's, device and inode.
    pub file: (u64, u64),
    /// When it was changed last, in nanoseconds.
    pub changed: i128,
    /// Its length in bytes.
    pub len: u64,
}

/// How a lock is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// With other shared holders; the file must exist.
    Shared,
    /// With nobody; the file must exist.
    Exclusive,
    /// With nobody; the file is created where it does not exist.
    ExclusiveCreate,
}

/// A held lock; dropping it gives it up.
#[derive(Debug)]
pub struct Lock {
    _holder: Box<dyn DebugAny>,
}

impl Lock {
    /// Wraps whatever holds the lock for as long as it lives.
    pub fn new(holder: impl Any + Send + Sync + Debug) -> Self {
        Self {
            _holder: Box::new(holder),
        }
    }
}

trait DebugAny: Any + Send + Sync + Debug {}
impl<T: Any + Send + Sync + Debug> DebugAny for T {}

/// An open layer.
pub trait LayerRead: Send + Sync + Debug {
    /// Fills `target` from `offset`; fewer bytes than that is an error.
    fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<()>;

    /// The same for what is read once: where a cache would be filled, it is not. `offset` and the length are whole
    /// blocks of [`BLOCK_LEN`].
    fn read_once(&self, offset: u64, target: &mut AlignedBuf) -> Result<()> {
        self.read_at(offset, target)
    }

    /// Fills `target` from `offset` only if that needs no waiting for a disk, and says whether it did.
    /// Where it did not, `target` may hold anything.
    fn read_now(&self, _offset: u64, _target: &mut [u8]) -> bool {
        false
    }

    /// Says that `length` bytes from `offset` will be read soon. Does not wait for them.
    fn will_read(&self, _offset: u64, _length: u64) {}
}

/// A layer being written, front to back.
pub trait LayerAppend: Debug {
    /// Appends bytes behind all earlier ones.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;

    /// Ends a write here, on a block boundary, so that what follows can be freed separately.
    fn cut(&mut self) -> Result<()> {
        Ok(())
    }

    /// Pads with zeros to the end of the block and makes everything appended so far durable.
    /// The next append starts on a new block.
    fn sync(&mut self) -> Result<()>;
}
