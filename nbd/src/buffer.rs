//! Memory for replies, used again and again: fresh memory of this size costs the kernel as much
//! time as filling it.

use std::sync::{Mutex, PoisonError};

/// Buffers that are larger are not worth keeping.
const KEPT_BYTES: usize = 2 << 20;

/// Bytes of replies on their way to a client.
#[derive(Debug, Default)]
pub(crate) struct ReplyBuffer {
    /// Initialized beyond `used`, with whatever was there before.
    bytes: Vec<u8>,
    used: usize,
}

impl ReplyBuffer {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.grow(bytes.len()).copy_from_slice(bytes);
    }

    /// Appends `count` bytes, which hold anything until the caller fills them.
    pub(crate) fn grow(&mut self, count: usize) -> &mut [u8] {
        let start = self.used;
        self.used += count;
        if self.bytes.len() < self.used {
            // Doubling spares growing step by step.
            let len = self.used.max(2 * self.bytes.len());
            self.bytes.resize(len, 0);
        }
        self.bytes.get_mut(start..self.used).unwrap_or_default()
    }

    /// Takes back what was appended after the buffer was `used` bytes long.
    pub(crate) fn cut(&mut self, used: usize) {
        self.used = self.used.min(used);
    }

    pub(crate) fn len(&self) -> usize {
        self.used
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// `used` bytes from the start of `bytes`.
    pub(crate) fn of_parts(bytes: Vec<u8>, used: usize) -> Self {
        Self { bytes, used }
    }

    /// The memory, and how much of it from the start is in use.
    pub(crate) fn into_parts(self) -> (Vec<u8>, usize) {
        (self.bytes, self.used)
    }

    /// What it holds.
    pub(crate) fn filled(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }
}

impl From<Vec<u8>> for ReplyBuffer {
    fn from(bytes: Vec<u8>) -> Self {
        let used = bytes.len();
        Self { bytes, used }
    }
}

/// Memory that waits to be used again; at most so many buffers.
#[derive(Debug)]
pub(crate) struct Spares {
    free: Mutex<Vec<Vec<u8>>>,
    most: usize,
}

impl Spares {
    pub(crate) fn new(most: usize) -> Self {
        let free = Mutex::default();
        Self { free, most }
    }

    pub(crate) fn take(&self) -> ReplyBuffer {
        let bytes = self.lock().pop().unwrap_or_default();
        ReplyBuffer { bytes, used: 0 }
    }

    pub(crate) fn give(&self, bytes: Vec<u8>) {
        let mut free = self.lock();
        if free.len() < self.most && bytes.len() <= KEPT_BYTES {
            free.push(bytes);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
