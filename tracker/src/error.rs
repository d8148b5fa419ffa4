//! The error of this crate: a kind to act on, a message, and the cause.

use std::fmt;
use std::io;

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, to be matched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// This machine cannot track: the message says what is missing.
    Unsupported,
    /// Another version of smc pinned what is there.
    OtherVersion,
    /// Part of what belongs together is missing or was changed.
    Incomplete,
    /// No such device, or it is not watched.
    NotFound,
    /// Another process uses it.
    Busy,
    /// There is no room for another disk.
    Full,
    /// The request makes no sense: a cluster size that is no power of two, an empty disk.
    Invalid,
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

    pub(crate) fn with_source(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error {
            source: Some(source.into()),
            ..Error::new(kind, message)
        }
    }

    /// An error of the kernel while doing something: "open the map X".
    pub(crate) fn os(doing: impl fmt::Display, source: io::Error) -> Error {
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::WouldBlock => ErrorKind::Busy,
            _ => ErrorKind::Io,
        };
        Error::with_source(kind, format!("cannot {doing}"), source)
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The error with all its causes, on one line.
    pub fn full_message(&self) -> String {
        chain(self)
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

impl From<hostdev::Error> for Error {
    fn from(error: hostdev::Error) -> Error {
        let kind = match error.kind() {
            hostdev::ErrorKind::NotFound => ErrorKind::NotFound,
            hostdev::ErrorKind::Busy => ErrorKind::Busy,
            _ => ErrorKind::Io,
        };
        Error::with_source(kind, "cannot find out about a device", error)
    }
}

/// An error with all its causes on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
