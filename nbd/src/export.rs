//! One export: what a user of this crate implements to be served.

use std::fmt;

/// The flag of an extent in `base:allocation` whose bytes are not allocated: to write there may
/// need space that is not to be had. Without [`ZERO`] some clients take it for zeros all the same.
pub const HOLE: u32 = 1 << 0;
/// The flag of an extent in `base:allocation` that reads as zeros.
pub const ZERO: u32 = 1 << 1;

/// Something that can be read, and perhaps written, at an offset.
///
/// Methods may block, but for [`try_read_at`](Export::try_read_at), and run in parallel; where
/// ranges of requests overlap, the client has to live with either order. Ranges lie within the
/// export and are not empty.
pub trait Export: Send + Sync + 'static {
    /// Size in bytes, at most 2^63 - 1; does not change while the export is open.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` from `offset`: all of it, or an error. What it holds after an error is not
    /// looked at.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ExportError>;

    /// As [`read_at`](Export::read_at) if that needs no waiting: called on the threads that drive
    /// connections, for short reads. Whatever is slow, or fails, answers [`Ready::No`] and is read
    /// again by `read_at`.
    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Ready {
        let _ = (offset, buf);
        Ready::No
    }

    /// Allocation of `[offset, offset + length)`: consecutive extents from `offset` on, at least
    /// one, none empty, with [`HOLE`] and [`ZERO`] as flags. They may stop early or run past the
    /// end of the request.
    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError>;

    /// The same for a meta context that [`Catalog::contexts`](crate::Catalog::contexts) named;
    /// the flags are the context's own.
    fn status(&self, context: &str, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        let _ = length;
        let text = format!("this export does not know the meta context {context}");
        Err(ExportError::new(FailureKind::Invalid, offset, text))
    }

    /// Makes ready for a read of this range: the client announced it (CACHE), or seems to read in
    /// sequence. A hint, which may do part of it or nothing.
    fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        let _ = (offset, length);
        Ok(())
    }

    /// Writes all of `data` at `offset`, or fails.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), ExportError> {
        let _ = data;
        Err(ExportError::read_only(offset))
    }

    /// Makes a range read as zeros. With [`Zeroing::fast`] it either is faster than writing them
    /// would be, or fails with [`FailureKind::NotFast`] and has changed nothing.
    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroing) -> Result<(), ExportError> {
        if how.fast {
            return Err(ExportError::new(
                FailureKind::NotFast,
                offset,
                "zeroing is not fast here",
            ));
        }
        write_zeros(self, offset, length)
    }

    /// The client does not need a range any more; what is read there from now on is anything.
    /// A hint, which may do nothing.
    fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        let _ = (offset, length);
        Ok(())
    }

    /// Makes every write that was replied to durable, on whatever connection it came, to the
    /// extent that the export promises any durability.
    fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }

    /// The client says that it leaves, and needs nothing any more of what was kept for it. It is not
    /// called where a connection merely ends: such a client may come back. Must not block.
    fn leave(&self) {}
}

/// Zeros in writes of bounded size.
fn write_zeros(export: &(impl Export + ?Sized), offset: u64, length: u64) -> Result<(), ExportError> {
    const STEP: usize = 256 << 10;
    let zeros = vec![0; usize::try_from(length).unwrap_or(STEP).min(STEP)];
    let mut done = 0;
    while done < length {
        let step = usize::try_from(length - done).unwrap_or(STEP).min(STEP);
        export.write_at(offset + done, zeros.get(..step).unwrap_or_default())?;
        done += step as u64;
    }
    Ok(())
}

/// What came of a read that must not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// Nothing: the buffer holds anything.
    No,
    /// The buffer is filled.
    Data,
    /// All of it is zeros; the buffer holds anything.
    Zeros,
}

/// How a range is to be made zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Zeroing {
    /// Keep or make it allocated, so that later writes there find space.
    pub no_hole: bool,
    /// Only if it is faster than writing zeros.
    pub fast: bool,
}

/// A run of bytes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, not zero.
    pub length: u64,
    /// What is there: [`HOLE`] and [`ZERO`] for allocation, else the context's own flags.
    pub flags: u32,
}

impl Extent {
    /// Stored bytes, or bytes that cannot be read.
    pub fn data(length: u64) -> Self {
        Self { length, flags: 0 }
    }

    /// Nothing stored; reads as zeros.
    pub fn hole(length: u64) -> Self {
        Self {
            length,
            flags: HOLE | ZERO,
        }
    }
}

/// A request that an export could not fulfil.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportError {
    /// Decides the error number that the client gets.
    pub kind: FailureKind,
    /// The first byte of the export that is concerned.
    pub offset: u64,
    /// What happened, to what: clients that negotiated structured replies show it to their user.
    pub message: String,
}

/// What kind of thing went wrong in an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// The bytes cannot be read or written (EIO).
    Io,
    /// There is no space left for what was written (ENOSPC).
    NoSpace,
    /// Zeroing would not be fast, and nothing else was asked for (ENOTSUP).
    NotFast,
    /// The export may not be written to (EPERM).
    ReadOnly,
    /// The export does not do this (EINVAL).
    Invalid,
}

impl ExportError {
    /// An error at `offset`; `message` is for people.
    pub fn new(kind: FailureKind, offset: u64, message: impl Into<String>) -> Self {
        Self {
            kind,
            offset,
            message: message.into(),
        }
    }

    /// Bytes that cannot be read or written.
    pub fn io(offset: u64, message: impl Into<String>) -> Self {
        Self::new(FailureKind::Io, offset, message)
    }

    fn read_only(offset: u64) -> Self {
        Self::new(FailureKind::ReadOnly, offset, "the export is read-only")
    }
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.offset, self.message)
    }
}

impl std::error::Error for ExportError {}
