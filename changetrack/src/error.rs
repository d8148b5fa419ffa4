//! The one error of this crate.

use std::error::Error as StdError;
use std::fmt;

/// Result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What failed, for callers that branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The disk could not be read, or is not the one that it was.
    Device,
    /// The store could not be read or written.
    Store,
    /// The caller asked to stop.
    Canceled,
}

/// What was being done, and why it failed.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    /// The pass that failed.
    pass: Option<usize>,
    source: Option<Source>,
}

#[derive(Debug)]
enum Source {
    Device(blockio::Error),
    Store(imagefmt::Error),
    Thread(std::io::Error),
}

impl Error {
    fn new(kind: ErrorKind, what: &str, source: Option<Source>) -> Self {
        Self {
            kind,
            what: what.to_owned(),
            pass: None,
            source,
        }
    }

    pub(crate) fn canceled() -> Self {
        Self::new(ErrorKind::Canceled, "the scan was stopped", None)
    }

    pub(crate) fn no_thread(error: std::io::Error) -> Self {
        let what = "a thread of the scan cannot be started";
        Self::new(ErrorKind::Device, what, Some(Source::Thread(error)))
    }

    pub(crate) fn panicked() -> Self {
        let what = "a thread of the scan panicked: this is a bug in smc";
        Self::new(ErrorKind::Device, what, None)
    }

    pub(crate) fn of_pass(mut self, pass: usize) -> Self {
        self.pass = Some(pass);
        self
    }

    /// The pass that failed: its place in the run. Absent where no single one did.
    pub fn pass(&self) -> Option<usize> {
        self.pass
    }

    /// The kind, to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The error of the store, where the kind is `Store`.
    pub fn store_error(&self) -> Option<&imagefmt::Error> {
        match &self.source {
            Some(Source::Store(error)) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(match self.source.as_ref()? {
            Source::Device(error) => error,
            Source::Store(error) => error,
            Source::Thread(error) => error,
        })
    }
}

impl From<blockio::Error> for Error {
    fn from(error: blockio::Error) -> Self {
        let what = "the disk cannot be imaged";
        Self::new(ErrorKind::Device, what, Some(Source::Device(error)))
    }
}

impl From<imagefmt::Error> for Error {
    fn from(error: imagefmt::Error) -> Self {
        let what = "the image cannot be written";
        Self::new(ErrorKind::Store, what, Some(Source::Store(error)))
    }
}
