//! The one error of the engine.

use imagefmt::ErrorKind as StoreErrorKind;
use std::error::Error as StdError;
use std::fmt;

/// Result of everything in the engine that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a sync made no image, for callers that branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// It was asked to stop. What it had stored is kept.
    Stopped,
    /// Another process holds the chain. Nothing was written.
    Busy,
    /// Bytes in the store are not what was written there.
    Damaged,
    /// A disk could not be read, or is no longer the one that it was.
    Device,
    /// The store could not be read or written.
    Store,
    /// The target of the images cannot be reached. What it has made durable is kept, and the next sync resumes.
    Unreachable,
    /// The request does not fit the job: a wrong disk, or a hook that refused. Nothing was written.
    Refused,
    /// A disk would have to be read completely, and that was not wanted. Nothing was read.
    Untracked,
    /// The image is complete, but not what was wanted: its class is too low, or its content is not the disk's.
    Shortfall,
    /// Anything else: output that could not be written, or a bug.
    Other,
}

/// What was being done, and why it failed. `Display` gives the outermost context; the causes are in `source()`.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A text, and what caused it.
    Text(String, Option<Box<dyn StdError + Send + Sync>>),
    /// The error of a library, which says itself what happened.
    Cause(Box<dyn StdError + Send + Sync>),
}

impl Error {
    /// An error of `kind` that says `what` happened.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: What::Text(what.into(), None),
        }
    }

    /// The request does not fit the job; `cause` says why.
    pub fn refused(cause: anyhow::Error) -> Self {
        Self::caused(ErrorKind::Refused, cause)
    }

    /// A disk would have to be read completely, and that is not wanted now.
    pub fn untracked(what: String) -> Self {
        Self::new(ErrorKind::Untracked, what)
    }

    /// Anything that has no kind of its own.
    pub fn other(cause: anyhow::Error) -> Self {
        Self::caused(ErrorKind::Other, cause)
    }

    pub(super) fn stopped() -> Self {
        Self::new(ErrorKind::Stopped, "the sync was stopped")
    }

    pub(super) fn caused(kind: ErrorKind, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            kind,
            what: What::Cause(cause.into()),
        }
    }

    /// Adds an outer context: what was being done, or to what. The kind stays.
    #[must_use]
    pub fn within(self, what: impl Into<String>) -> Self {
        Self {
            kind: self.kind,
            what: What::Text(what.into(), Some(Box::new(self))),
        }
    }

    /// The kind, to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
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
}

/// The request does not fit the job.
pub(super) fn refused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Refused, what)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Text(text, _) => f.write_str(text),
            What::Cause(cause) => cause.fmt(f),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.what {
            What::Text(_, source) => source.as_deref().map(|source| source as _),
            What::Cause(cause) => cause.source(),
        }
    }
}

/// Adds a context to the error of a result.
pub(super) trait Within<T> {
    fn within(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Error>> Within<T> for std::result::Result<T, E> {
    fn within(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| error.into().within(what()))
    }
}

impl From<imagefmt::Error> for Error {
    fn from(error: imagefmt::Error) -> Self {
        Self::caused(kind_of(error.kind()), error)
    }
}

impl From<changetrack::Error> for Error {
    fn from(error: changetrack::Error) -> Self {
        let kind = match (error.kind(), error.store_error()) {
            (changetrack::ErrorKind::Canceled, _) => return Self::stopped(),
            (_, Some(store)) => kind_of(store.kind()),
            _ => ErrorKind::Device,
        };
        Self::caused(kind, error)
    }
}

fn kind_of(kind: StoreErrorKind) -> ErrorKind {
    match kind {
        StoreErrorKind::Busy => ErrorKind::Busy,
        StoreErrorKind::Damaged => ErrorKind::Damaged,
        StoreErrorKind::Invalid => ErrorKind::Refused,
        StoreErrorKind::Unreachable => ErrorKind::Unreachable,
        _ => ErrorKind::Store,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_kind_survives_every_context_and_the_message_names_all_causes() {
        let damaged = Error::from(imagefmt::Error::damaged("cluster 7"));
        let error = damaged.within("sync vda").within("image web01/2 is not finished");
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert_eq!(
            error.full_message(),
            "image web01/2 is not finished: sync vda: cluster 7"
        );
        assert_eq!(
            format!("{:#}", anyhow::Error::from(error)),
            "image web01/2 is not finished: sync vda: cluster 7"
        );
    }

    #[test]
    fn errors_of_the_store_keep_what_a_caller_branches_on() {
        let kinds = [
            (StoreErrorKind::Busy, ErrorKind::Busy),
            (StoreErrorKind::Damaged, ErrorKind::Damaged),
            (StoreErrorKind::Invalid, ErrorKind::Refused),
            (StoreErrorKind::Io, ErrorKind::Store),
        ];
        for (store, expected) in kinds {
            assert_eq!(Error::from(imagefmt::Error::new(store, "x")).kind(), expected);
        }
    }

    #[test]
    fn a_refusal_keeps_its_causes() {
        let cause = anyhow::anyhow!("no such device").context("open /dev/x");
        assert_eq!(
            Error::refused(cause).full_message(),
            "open /dev/x: no such device"
        );
        let one: anyhow::Result<()> = Err(anyhow::anyhow!("no"));
        let one = one.context("hook").unwrap_err();
        assert_eq!(Error::other(one).full_message(), "hook: no");
    }
}
