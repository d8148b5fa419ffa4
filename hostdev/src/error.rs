//! The error of this crate: a kind to act on, what was being done to which path, and the cause.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, to be matched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nothing exists at the path, or the device is gone.
    NotFound,
    /// The caller may not do this.
    PermissionDenied,
    /// It is larger than anything of its kind has reason to be, and was not read.
    TooLarge,
    /// It is not the regular file or device that it should be.
    WrongType,
    /// It was read, and does not say what it should.
    Malformed,
    /// Another process uses it, or takes it each time before we do.
    Busy,
    /// The kernel cannot do this.
    Unsupported,
    /// The kernel reported another error.
    Io,
}

impl ErrorKind {
    fn of(source: &io::Error) -> ErrorKind {
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENXIO | libc::ENODEV | libc::ESRCH) => {
                ErrorKind::NotFound
            }
            Some(libc::EACCES | libc::EPERM) => ErrorKind::PermissionDenied,
            Some(libc::EBUSY) => ErrorKind::Busy,
            Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOTTY) => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        }
    }
}

/// An error with its kind, the path it happened at, and its cause as `source()`.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    operation: &'static str,
    path: PathBuf,
    source: Option<io::Error>,
}

impl Error {
    /// `operation` is a verb in the present tense whose object is the path: "read".
    pub(crate) fn new(kind: ErrorKind, operation: &'static str, path: impl Into<PathBuf>) -> Error {
        Error {
            kind,
            operation,
            path: path.into(),
            source: None,
        }
    }

    /// An error of the kernel; the kind follows from the error number.
    pub(crate) fn os(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Error {
        let source = source.into();
        let kind = ErrorKind::of(&source);
        Error {
            source: Some(source),
            ..Error::new(kind, operation, path)
        }
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The file, directory or device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel's error number, where there is one.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.as_ref().and_then(io::Error::raw_os_error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (operation, path) = (self.operation, self.path.display());
        match self.kind {
            ErrorKind::TooLarge => write!(f, "{path} is too large to be read"),
            ErrorKind::WrongType => write!(f, "{path} is not a regular file or block device"),
            ErrorKind::Malformed => write!(f, "cannot understand the content of {path}"),
            _ => write!(f, "cannot {operation} {path}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

/// `None` for what does not exist.
///
/// # Errors
/// Every other error stays one.
pub(crate) fn if_present<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
