//! The one error type of this crate.

use std::fmt;
use std::io;

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// QEMU is not installed.
    Missing,
    /// QEMU could not be started, or ended where it should not.
    Qemu,
    /// The guest, or a program in it, refused.
    Guest,
    /// A system call failed; `source()` says how.
    Io,
    /// The guest did not power off in time.
    Timeout,
    /// The caller no longer wants it.
    Canceled,
}

/// An error of this crate: its kind, what was being done, and the cause where there is one.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<io::Error>,
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    pub(crate) fn io(context: impl Into<String>, source: io::Error) -> Self {
        Self {
            kind: ErrorKind::Io,
            context: context.into(),
            source: Some(source),
        }
    }

    /// `program` could not be started.
    pub(crate) fn start(program: &str, source: io::Error) -> Self {
        let (kind, context) = match source.kind() {
            io::ErrorKind::NotFound => (ErrorKind::Missing, format!("{program} is not installed")),
            _ => (ErrorKind::Qemu, format!("start {program}")),
        };
        Self {
            kind,
            context,
            source: Some(source),
        }
    }

    /// The kind of error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
