//! The one error of this crate: what kind, where, and what caused it.

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// Result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, for callers that branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The storage below failed (a disk error, no space, no permission).
    Io,
    /// The store, chain, image or disk that was named does not exist.
    NotFound,
    /// What is to be created is there already.
    Exists,
    /// The directory is not a store.
    NotAStore,
    /// Written by a newer version, or with a feature this version does not know.
    Unsupported,
    /// Bytes in the store are not what was written there.
    Damaged,
    /// These sectors could not be read at the source when the image was made.
    Unreadable,
    /// Somebody else holds the lock.
    Busy,
    /// An image that is to be deleted is being read or pinned.
    InUse,
    /// The caller's input does not fit (name, geometry, order, disk).
    Invalid,
}

/// An error with its context. `Display` gives kind and context; the cause is in `source()`.
pub struct Error {
    kind: ErrorKind,
    /// Innermost first; displayed outermost first.
    context: Vec<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` that says `what` happened.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            context: vec![what.into()],
            source: None,
        }
    }

    /// Damage found in the store.
    pub fn damaged(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Damaged, what)
    }

    /// Input that does not fit.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, what)
    }

    /// An I/O error while doing `what`; the kind follows from the cause.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::Exists,
            io::ErrorKind::WouldBlock => ErrorKind::Busy,
            io::ErrorKind::UnexpectedEof => ErrorKind::Damaged,
            _ => ErrorKind::Io,
        };
        Self::new(kind, what).caused_by(source)
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Adds an outer context: what was being done, or to what.
    #[must_use]
    pub fn within(mut self, what: impl Into<String>) -> Self {
        self.context.push(what.into());
        self
    }

    /// What would be bad input from a caller is damage where the store says it.
    #[must_use]
    pub(crate) fn into_damage(mut self) -> Self {
        if self.kind == ErrorKind::Invalid {
            self.kind = ErrorKind::Damaged;
        }
        self
    }

    /// What happened, without where.
    pub(crate) fn cause(&self) -> &str {
        self.context.first().map_or("", String::as_str)
    }

    /// The error with all its causes, on one line.
    pub fn full_message(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }

    /// The kind, to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.context.iter().rev().enumerate() {
            let separator = if i == 0 { "" } else { ": " };
            write!(f, "{separator}{part}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Adds context to a failed result.
pub trait Within<T> {
    /// Wraps the error, if there is one, in `what()`.
    fn within(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Within<T> for Result<T> {
    fn within(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| error.within(what()))
    }
}

impl<T> Within<T> for io::Result<T> {
    fn within(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::io(what(), error))
    }
}
