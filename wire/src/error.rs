//! The crate's error.

use std::fmt;

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The other side sent bytes that the protocol does not allow.
    Malformed,
    /// It sent more than was agreed on.
    TooMuch,
}

/// What the other side did against the protocol. The connection, or the session, ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    text: String,
}

/// What the crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, text: impl Into<String>) -> Error {
        Error {
            kind,
            text: text.into(),
        }
    }

    pub(crate) fn malformed(text: impl Into<String>) -> Error {
        Error::new(ErrorKind::Malformed, text)
    }

    pub(crate) fn too_much(text: impl Into<String>) -> Error {
        Error::new(ErrorKind::TooMuch, text)
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}
