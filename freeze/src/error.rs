//! The error of this crate: a kind to act on, a message, and the cause.

use std::fmt;
use std::io;

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, to be matched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// What lies on the disks cannot be found out.
    Unknown,
    /// There is no watchdog, or it does not answer: nothing is frozen.
    NoWatchdog,
    /// The kernel reported an error.
    Io,
}

/// An error with its kind; the cause is its `source()`.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error {
            kind,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn caused(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error {
            source: Some(source.into()),
            ..Error::new(kind, message)
        }
    }

    /// The kernel does not do something: "list DIRECTORY".
    pub(crate) fn os(doing: impl fmt::Display, source: impl Into<io::Error>) -> Error {
        Error::caused(ErrorKind::Io, format!("cannot {doing}"), source.into())
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
