//! What the server serves: the two traits that a user of this crate implements.

use std::fmt;
use std::sync::Arc;

use crate::ServeError;

/// What a server offers. All methods may block: they are called on a pool of threads made for
/// that, never on a thread that drives connections.
///
/// An export's name is at most 4096 bytes of UTF-8 without NUL; a name from the wire has been
/// checked for that before it gets here, and a listed one that breaks it is left out.
pub trait Catalog: Send + Sync + 'static {
    /// Every export that clients may see. Cheap: opens nothing.
    fn list(&self) -> Result<Vec<ExportInfo>, ServeError>;

    /// Describes one export without opening it: for INFO and before GO. `""` is the default
    /// export. An unknown name is an error of kind [`NotFound`](crate::ErrorKind::NotFound).
    fn info(&self, name: &str) -> Result<ExportInfo, ServeError>;

    /// Opens one export. Called only at GO and EXPORT_NAME, once for each connection; the export
    /// is dropped when the connection ends.
    fn open(&self, name: &str) -> Result<Arc<dyn Export>, ServeError>;
}

/// What clients are told about an export before they open it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// The canonical name, which may differ from the one asked for (the default export's does).
    pub name: String,
    /// A text for people.
    pub description: Option<String>,
    /// Size in bytes, at most 2^63 - 1.
    pub size_bytes: u64,
    /// The block size at which reads are cheapest; rounded to a power of two of at least 512.
    pub preferred_block_bytes: u32,
}

/// Something that can be read at an offset. Methods may block, and run in parallel.
pub trait Export: Send + Sync + 'static {
    /// Size in bytes, at most 2^63 - 1; does not change while the export is open.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` from `offset`: all of it, or an error. The range lies within the export.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError>;

    /// Allocation of `[offset, offset + length)`: consecutive extents from `offset` on, at least
    /// one, none empty. They may stop early or run past the end of the request. The range lies
    /// within the export and is not empty.
    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, ReadError>;
}

/// A run of bytes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, not zero.
    pub length: u64,
    /// What is there.
    pub kind: ExtentKind,
}

/// What an extent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Stored bytes, or bytes that cannot be read.
    Data,
    /// Nothing stored; reads as zeros.
    Zero,
}

/// A range that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadError {
    /// The first byte of the export that could not be read.
    pub offset: u64,
    /// What happened, to what: clients that negotiated structured replies show it to their user.
    pub message: String,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot read at byte {}: {}", self.offset, self.message)
    }
}

impl std::error::Error for ReadError {}
