//! The error of this crate: a kind to act on, where it happened, and the cause.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, to be matched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nothing exists at the path.
    NotFound,
    /// The path is neither a block device nor a regular file.
    WrongType,
    /// The device or file holds no bytes.
    Empty,
    /// The kernel reported an I/O error; for a read, the offset is that of the first unreadable byte.
    Io,
    /// The device ended before the size that it had reported.
    ShortRead,
    /// The size or the disk sequence number is not what it was at opening.
    Changed,
    /// The kernel or the filesystem cannot do this.
    Unsupported,
    /// Something else holds the device exclusively, for example a mounted filesystem.
    Busy,
    /// The caller may not do this.
    PermissionDenied,
    /// The file to be created exists already.
    Exists,
    /// No space is left on the filesystem or the device.
    NoSpace,
    /// The caller asked for something meaningless: an unaligned offset, a range past the end, an empty buffer.
    Invalid,
}

impl ErrorKind {
    fn of(source: &io::Error) -> ErrorKind {
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENXIO | libc::ENODEV) => ErrorKind::NotFound,
            Some(libc::EACCES | libc::EPERM) => ErrorKind::PermissionDenied,
            Some(libc::EBUSY) => ErrorKind::Busy,
            Some(libc::EEXIST) => ErrorKind::Exists,
            Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
            Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOTTY) => ErrorKind::Unsupported,
            Some(libc::ENOMEDIUM) => ErrorKind::Empty,
            _ => ErrorKind::Io,
        }
    }
}

/// An error with its kind, the path and byte offset it happened at, and its cause as `source()`.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    path: Option<PathBuf>,
    offset: Option<u64>,
    detail: Option<String>,
    source: Option<io::Error>,
}

impl Error {
    /// `operation` is a present-tense verb with its object where the path is not the object: "read".
    pub(crate) fn new(kind: ErrorKind, operation: &'static str) -> Error {
        let inner = Inner {
            kind,
            operation,
            path: None,
            offset: None,
            detail: None,
            source: None,
        };
        Error {
            inner: Box::new(inner),
        }
    }

    /// An error of the kernel; the kind follows from the error number.
    pub(crate) fn os(operation: &'static str, source: impl Into<io::Error>) -> Error {
        let source = source.into();
        let mut error = Error::new(ErrorKind::of(&source), operation);
        error.inner.source = Some(source);
        error
    }

    /// An error of what the kernel says of devices.
    pub(crate) fn host(operation: &'static str, source: hostdev::Error) -> Error {
        let kind = match source.kind() {
            hostdev::ErrorKind::NotFound => ErrorKind::NotFound,
            hostdev::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
            _ => ErrorKind::Io,
        };
        let path = source.path().to_owned();
        Error::os(operation, io::Error::other(source))
            .with_kind(kind)
            .at_path(&path)
    }

    pub(crate) fn with_kind(mut self, kind: ErrorKind) -> Error {
        self.inner.kind = kind;
        self
    }

    pub(crate) fn at_path(mut self, path: &Path) -> Error {
        self.inner.path = Some(path.to_owned());
        self
    }

    pub(crate) fn at_offset(mut self, offset: u64) -> Error {
        self.inner.offset = Some(offset);
        self
    }

    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Error {
        self.inner.detail = Some(detail.into());
        self
    }

    /// The same error once more, for an object that stays failed.
    pub(crate) fn again(&self) -> Error {
        let inner = &*self.inner;
        let source = inner
            .source
            .as_ref()
            .and_then(io::Error::raw_os_error)
            .map(io::Error::from_raw_os_error);
        Error {
            inner: Box::new(Inner {
                kind: inner.kind,
                operation: inner.operation,
                path: inner.path.clone(),
                offset: inner.offset,
                detail: inner.detail.clone(),
                source,
            }),
        }
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The device or file, where known.
    pub fn path(&self) -> Option<&Path> {
        self.inner.path.as_deref()
    }

    /// The byte offset in the device or file, where the error has one.
    pub fn offset(&self) -> Option<u64> {
        self.inner.offset
    }

    /// What was being done: a verb in the present tense.
    pub fn operation(&self) -> &str {
        self.inner.operation
    }

    /// The kernel's error number, where there is one.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.inner.source.as_ref().and_then(io::Error::raw_os_error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.inner;
        write!(f, "cannot {}", inner.operation)?;
        if let Some(path) = &inner.path {
            write!(f, " {}", path.display())?;
        }
        if let Some(offset) = inner.offset {
            write!(f, " at byte {offset}")?;
        }
        if let Some(detail) = &inner.detail {
            write!(f, ": {detail}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.inner.kind)
            .field("message", &format_args!("{self}"))
            .field("source", &self.inner.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_ref().map(|source| source as _)
    }
}
