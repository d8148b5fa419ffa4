//! The one error type of this crate.

use std::fmt;

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A system call on a file, device or mount failed; `source()` says how.
    Io,
    /// A program could not be started or ended with an error.
    Command,
    /// Something did not happen before its deadline.
    Timeout,
    /// SIGINT, SIGTERM or SIGHUP arrived.
    Interrupted,
    /// What `scripts/setup.sh` provides (a guest kernel, a boot loader) is missing or incomplete.
    Setup,
    /// The guest ended without having booted.
    Guest,
    /// The request cannot be met: a disk that is too small, a name that cannot be used.
    Invalid,
}

/// An error of this crate: its kind, what was being done to what, and the cause where there is one.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<std::io::Error>,
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error without a deeper cause.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// An [`ErrorKind::Io`] error caused by `source`.
    pub fn io(context: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self {
            kind: ErrorKind::Io,
            context: context.into(),
            source: Some(source.into()),
        }
    }

    /// Gives the error another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
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

/// Adds what was being done to a failed system call.
pub trait IoContext<T> {
    /// Names what failed, as `open /dev/loop0`.
    fn context<C: Into<String>>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn context<C: Into<String>>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|source| Error::io(context(), source))
    }
}
