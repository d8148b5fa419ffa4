//! Where the bytes lie that were written to overlays.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::cluster::CLUSTER_LEN;
use super::zeros::Budget;
use super::{read, write};
use crate::{ErrorKind, ExportError, FailureKind, ServeError};

/// The fewest ranges of zeros that a space allows for.
const MIN_RANGES: u64 = 4096;

/// Where the bytes lie that are written to [`Overlay`](super::Overlay)s: a bounded number of
/// 64 KiB clusters, the first of them in memory, further ones in an unlinked temporary file.
/// Overlays that share a space share its bounds.
///
/// What overlays no longer need is freed at once, the file's space too if its file system
/// can punch holes. The index of what lies where takes up to about 90 bytes of memory for each
/// cluster in use, 22 MiB for 16 GiB, and a tenth of that for ranges of zeros.
#[derive(Debug)]
pub struct Space {
    /// Slots below `memory.len()`; empty while they are free. An overlay's own locks decide who
    /// may use a slot: these are never waited for.
    memory: Box<[RwLock<Vec<u8>>]>,
    /// Further slots, one behind the other.
    file: File,
    directory: PathBuf,
    slots: u32,
    free: Mutex<Free>,
    pub(super) ranges: Budget,
    can_allocate: bool,
}

#[derive(Debug)]
struct Free {
    memory: FreeList,
    file: FreeList,
}

impl Space {
    /// A space of at most `limit_bytes`, of which the first `memory_bytes` are kept in memory;
    /// both are rounded down to clusters of 64 KiB. The file for the rest is made in `directory`
    /// now, so that a process can confine itself afterwards, and needs no space there while it is
    /// not used. The directory should be on a local file system, which refuses what it has no
    /// space for at once: over a network that may come out only after a write was replied to.
    ///
    /// # Errors
    /// When the file cannot be made in `directory`.
    pub fn new(directory: &Path, memory_bytes: u64, limit_bytes: u64) -> Result<Arc<Self>, ServeError> {
        let place = || {
            format!(
                "cannot make a temporary file for overlays in {}",
                directory.display()
            )
        };
        let file = tempfile::tempfile_in(directory).map_err(|error| ServeError::io(place(), error))?;
        let can_allocate = can_allocate(&file).map_err(|error| ServeError::io(place(), error))?;
        let space = Self::over(file, directory, memory_bytes, limit_bytes)?;
        Ok(Arc::new(Self {
            can_allocate,
            ..space
        }))
    }

    /// A space that spills to `file`, which is taken to be unable to allocate ahead.
    pub(super) fn over(file: File, directory: &Path, memory: u64, limit: u64) -> Result<Self, ServeError> {
        let slots = u32::try_from(limit / CLUSTER_LEN as u64).map_err(|_| {
            let context = "overlays cannot have more than 256 TiB of space: give a lower limit";
            ServeError::new(ErrorKind::InvalidInput, context)
        })?;
        let in_memory = u32::try_from(memory / CLUSTER_LEN as u64).map_or(slots, |count| count.min(slots));
        Ok(Self {
            memory: (0..in_memory).map(|_| RwLock::default()).collect(),
            file,
            directory: directory.to_owned(),
            slots,
            free: Mutex::new(Free {
                memory: FreeList::new(0..in_memory),
                file: FreeList::new(in_memory..slots),
            }),
            ranges: Budget::new(MIN_RANGES.max(u64::from(slots) / 4)),
            can_allocate: false,
        })
    }

    /// Bytes in use, in memory and in the file.
    pub fn used_bytes(&self) -> u64 {
        let free = self.free();
        bytes(free.memory.used() + free.file.used())
    }

    /// Bytes that can be in use at most.
    pub fn limit_bytes(&self) -> u64 {
        bytes(self.slots)
    }

    /// Bytes that are not in use.
    pub(super) fn free_bytes(&self) -> u64 {
        self.limit_bytes() - self.used_bytes()
    }

    /// Whether [`allocate`](Self::allocate) is faster than writing zeros.
    pub(super) fn can_allocate(&self) -> bool {
        self.can_allocate || self.memory.len() == self.slots as usize
    }

    /// A slot for a cluster, for a write at `offset` of an export. Its bytes are anything.
    pub(super) fn take(&self, offset: u64) -> Result<u32, ExportError> {
        let slot = {
            let mut free = self.free();
            free.memory.take().or_else(|| free.file.take())
        };
        let slot = slot.ok_or_else(|| self.exhausted(offset))?;
        if let Some(memory) = self.memory.get(slot as usize) {
            *write(memory) = vec![0; CLUSTER_LEN];
        }
        Ok(slot)
    }

    /// Fills `buf` from byte `at` of a slot.
    pub(super) fn read(&self, slot: u32, at: usize, buf: &mut [u8]) -> io::Result<()> {
        match self.memory.get(slot as usize) {
            Some(memory) => buf.copy_from_slice(&read(memory)[at..at + buf.len()]),
            None => self.file.read_exact_at(buf, self.position(slot, at))?,
        }
        Ok(())
    }

    /// As [`read`](Self::read), if the slot is in memory.
    pub(super) fn try_read(&self, slot: u32, at: usize, buf: &mut [u8]) -> bool {
        let memory = self.memory.get(slot as usize);
        let Some(memory) = memory.and_then(|memory| memory.try_read().ok()) else {
            return false;
        };
        buf.copy_from_slice(&memory[at..at + buf.len()]);
        true
    }

    /// Writes `data` at byte `at` of a slot. After an error, some of it may have been written.
    pub(super) fn write(&self, slot: u32, at: usize, data: &[u8]) -> io::Result<()> {
        match self.memory.get(slot as usize) {
            Some(memory) => write(memory)[at..at + data.len()].copy_from_slice(data),
            None => self.file.write_all_at(data, self.position(slot, at))?,
        }
        Ok(())
    }

    /// Makes sure that writes to these bytes of a slot will find space. What they hold is kept or
    /// becomes zeros.
    pub(super) fn allocate(&self, slot: u32, range: &Range<usize>) -> io::Result<()> {
        if self.memory.get(slot as usize).is_some() {
            return Ok(());
        }
        if !self.can_allocate {
            return self.write(slot, range.start, &vec![0; range.len()]);
        }
        let start = signed(self.position(slot, range.start))?;
        let length = signed(range.len() as u64)?;
        Ok(fallocate(&self.file, FallocateFlags::empty(), start, length)?)
    }

    /// Takes slots back.
    pub(super) fn release(&self, mut slots: Vec<u32>) {
        slots.sort_unstable();
        let in_memory = slots.partition_point(|&slot| (slot as usize) < self.memory.len());
        let (memory, file) = slots.split_at(in_memory);
        for &slot in memory {
            *write(&self.memory[slot as usize]) = Vec::new();
        }
        for run in file.chunk_by(|&a, &b| a + 1 == b) {
            self.punch(run);
        }
        let mut free = self.free();
        free.memory.release(memory);
        free.file.release(file);
        if !file.is_empty() && free.file.used() == 0 {
            // Gives back what could not be punched out. If this fails too, the slots are still
            // good for reuse, and the space comes back with the end of the process.
            let _ = self.file.set_len(0);
        }
    }

    /// Gives the space of adjoining slots back to the file system. A file system that cannot do
    /// that keeps it for the slots' next use.
    fn punch(&self, run: &[u32]) {
        let Some(&first) = run.first() else { return };
        let length = run.len() as u64 * CLUSTER_LEN as u64;
        if let (Ok(start), Ok(length)) = (signed(self.position(first, 0)), signed(length)) {
            let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = fallocate(&self.file, how, start, length);
        }
    }

    /// The place in the file of a slot's byte `at`.
    fn position(&self, slot: u32, at: usize) -> u64 {
        (u64::from(slot) - self.memory.len() as u64) * CLUSTER_LEN as u64 + at as u64
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error for what needs more than the limit.
    pub(super) fn exhausted(&self, offset: u64) -> ExportError {
        let message = format!(
            "the {} bytes for what is written to exports are used up: close other connections that write, or \
             serve with a higher limit",
            self.limit_bytes()
        );
        ExportError::new(FailureKind::NoSpace, offset, message)
    }

    /// What an error of the file means for a request.
    pub(super) fn failure(&self, offset: u64, error: &io::Error) -> ExportError {
        let full = [Errno::ENOSPC, Errno::EDQUOT, Errno::EFBIG].map(|errno| Some(errno as i32));
        let directory = self.directory.display();
        if full.contains(&error.raw_os_error()) {
            let message =
                format!("no space for the temporary file in {directory}: free some there ({error})");
            ExportError::new(FailureKind::NoSpace, offset, message)
        } else {
            ExportError::io(
                offset,
                format!("the temporary file in {directory} failed: {error}"),
            )
        }
    }

    #[cfg(test)]
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

fn bytes(slots: u32) -> u64 {
    u64::from(slots) * CLUSTER_LEN as u64
}

fn signed(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(io::Error::other)
}

/// Finds out, and leaves the file empty. A file system that is full can do it all the same.
fn can_allocate(file: &File) -> io::Result<bool> {
    let length = signed(CLUSTER_LEN as u64)?;
    let answer = fallocate(file, FallocateFlags::empty(), 0, length);
    file.set_len(0)?;
    Ok(!matches!(
        answer,
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV | Errno::ESPIPE)
    ))
}

/// The free ones of a range of slots, of which the tail was never used.
#[derive(Debug)]
struct FreeList {
    all: Range<u32>,
    /// The first that was never used.
    next: u32,
    returned: Vec<u32>,
}

impl FreeList {
    fn new(all: Range<u32>) -> Self {
        Self {
            next: all.start,
            all,
            returned: Vec::new(),
        }
    }

    fn take(&mut self) -> Option<u32> {
        self.returned.pop().or_else(|| {
            let slot = self.next;
            self.next += u32::from(slot < self.all.end);
            (slot < self.all.end).then_some(slot)
        })
    }

    fn release(&mut self, slots: &[u32]) {
        // The lowest is taken first.
        self.returned.extend(slots.iter().rev());
        if self.used() == 0 {
            *self = Self::new(self.all.clone());
        }
    }

    fn used(&self) -> u32 {
        let returned = u32::try_from(self.returned.len()).unwrap_or(u32::MAX);
        (self.next - self.all.start).saturating_sub(returned)
    }
}
