//! The one error of this crate.

use std::error::Error as StdError;
use std::fmt;

/// Result of a scan.
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
    source: Option<Source>,
}

#[derive(Debug)]
enum Source {
    Device(blockio::Error),
    Store(imagefmt::Error),
    Thread(std::io::Error),
}

impl Error {
    pub(crate) fn canceled() -> Self {
        Self {
            kind: ErrorKind::Canceled,
            what: "the scan was stopped".to_owned(),
            source: None,
        }
    }

    pub(crate) fn no_thread(error: std::io::Error) -> Self {
        let what = "a thread of the scan cannot be started".to_owned();
        Self {
            kind: ErrorKind::Device,
            what,
            source: Some(Source::Thread(error)),
        }
    }

    pub(crate) fn panicked() -> Self {
        let what = "a thread of the scan panicked: this is a bug in smc".to_owned();
        Self {
            kind: ErrorKind::Device,
            what,
            source: None,
        }
    }

    pub(crate) fn incomplete(compared_bytes: u64, size_bytes: u64) -> Self {
        let what = format!("only {compared_bytes} of the disk's {size_bytes} bytes were compared");
        Self {
            kind: ErrorKind::Device,
            what,
            source: None,
        }
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
        Self {
            kind: ErrorKind::Device,
            what: "the disk cannot be imaged".to_owned(),
            source: Some(Source::Device(error)),
        }
    }
}

impl From<imagefmt::Error> for Error {
    fn from(error: imagefmt::Error) -> Self {
        Self {
            kind: ErrorKind::Store,
            what: "the image cannot be written".to_owned(),
            source: Some(Source::Store(error)),
        }
    }
}
