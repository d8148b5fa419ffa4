//! The crate's error.

use crate::checked;
use imagefmt::ErrorKind as StoreErrorKind;
use std::error::Error as StdError;
use std::fmt;
use wire::message::{Refusal, Refuse};

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The target cannot be reached, or the connection to it was lost for too long. Later it may work.
    Unreachable,
    /// The target does not do what it was asked for.
    Refused(Refusal),
    /// The target is not the one that it was, or says what cannot be true.
    Untrue,
    /// What the user gave, or a file of this machine, cannot be used.
    Invalid,
    /// A file of this machine cannot be read or written.
    Io,
}

/// An error of a target, or on the way to it. `Display` says what happened; the cause is in `source()`.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    text: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    /// The target could be connected to, and ended that before it answered.
    has_hung_up: bool,
}

/// What the crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of this kind; `text` is for people.
    pub fn new(kind: ErrorKind, text: impl Into<String>) -> Error {
        Error {
            kind,
            text: text.into(),
            source: None,
            has_hung_up: false,
        }
    }

    /// The target could be connected to, and ended that before it answered.
    pub(crate) fn hung_up(self) -> Error {
        Error {
            has_hung_up: true,
            ..self
        }
    }

    /// Whether the target could be connected to, and ended that before it answered: as one does that does not take a certificate.
    pub fn has_hung_up(&self) -> bool {
        self.has_hung_up
    }

    /// Whether the target does not know this machine, or not this key of it.
    pub(crate) fn is_about_rights(&self) -> bool {
        self.kind == ErrorKind::Refused(Refusal::Rights)
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.source = Some(source.into());
        self
    }

    pub(crate) fn unreachable(text: impl Into<String>) -> Error {
        Error::new(ErrorKind::Unreachable, text)
    }

    pub(crate) fn untrue(text: impl Into<String>) -> Error {
        Error::new(ErrorKind::Untrue, text)
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Error {
        Error::new(ErrorKind::Invalid, text)
    }

    pub(crate) fn io(text: impl Into<String>, source: std::io::Error) -> Error {
        Error::new(ErrorKind::Io, text).caused_by(source)
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The error with all its causes, on one line.
    pub fn full_message(&self) -> String {
        let mut text = self.text.clone();
        let mut source = self.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }
}

impl From<&Refuse> for Error {
    fn from(refuse: &Refuse) -> Error {
        Error::new(
            ErrorKind::Refused(refuse.code),
            format!("the target refuses: {}", checked::text(&refuse.text)),
        )
    }
}

impl From<wire::Error> for Error {
    fn from(error: wire::Error) -> Error {
        Error::untrue(format!("the target does not keep to the protocol: {error}"))
    }
}

impl From<Error> for imagefmt::Error {
    fn from(error: Error) -> imagefmt::Error {
        let kind = match error.kind {
            ErrorKind::Unreachable => StoreErrorKind::Unreachable,
            ErrorKind::Refused(Refusal::NoSession | Refusal::Closing) => StoreErrorKind::Unreachable,
            ErrorKind::Refused(Refusal::Busy) => StoreErrorKind::Busy,
            ErrorKind::Refused(Refusal::Damaged | Refusal::Mismatch) | ErrorKind::Untrue => {
                StoreErrorKind::Damaged
            }
            ErrorKind::Refused(Refusal::Full | Refusal::Failed) | ErrorKind::Io => StoreErrorKind::Io,
            ErrorKind::Refused(_) | ErrorKind::Invalid => StoreErrorKind::Invalid,
        };
        imagefmt::Error::new(kind, error.full_message())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
