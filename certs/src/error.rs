//! The crate's error.

use std::error::Error as StdError;
use std::fmt;

/// Why there is no certificate. The cause is in `source()`.
#[derive(Debug)]
pub struct Error {
    text: String,
    is_expired: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What the crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(text: impl Into<String>) -> Error {
        Error {
            text: text.into(),
            is_expired: false,
            source: None,
        }
    }

    pub(crate) fn expired(text: String) -> Error {
        Error {
            is_expired: true,
            ..Error::new(text)
        }
    }

    /// Whether it is a certificate that was right once.
    pub fn is_expired(&self) -> bool {
        self.is_expired
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

/// Says what was being done.
pub(crate) trait Context<T> {
    fn context(self, what: &str) -> Result<T>;
}

impl<T, E: StdError + Send + Sync + 'static> Context<T> for std::result::Result<T, E> {
    fn context(self, what: &str) -> Result<T> {
        self.map_err(|error| Error {
            source: Some(Box::new(error)),
            ..Error::new(what)
        })
    }
}
