//! The crate's error.

use std::error::Error;
use std::fmt;
use std::io;

/// What kind of thing went wrong; decides which error a client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no export of this name.
    NotFound,
    /// The export exists and may not be served to this client or in this way.
    Refused,
    /// The server is going down.
    ShuttingDown,
    /// A limit or an address that cannot be used as given.
    InvalidInput,
    /// Something else already listens at this address or lies at this path.
    AddressInUse,
    /// The operating system, or what lies under an export, reported an error.
    Io,
}

/// An error of the server or of a [`Catalog`](crate::Catalog).
///
/// `Display` says what happened, to what, and what to do; the cause is in
/// [`source`](Error::source) and not repeated. A client that asked for an export sees the
/// `Display` text, shortened to what a reply can hold.
#[derive(Debug)]
pub struct ServeError {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ServeError {
    /// An error of the given kind; `context` is a sentence for people.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// No export has this name.
    pub fn not_found(name: &str) -> Self {
        Self::new(
            ErrorKind::NotFound,
            format!("no export is named \"{}\"", escaped(name)),
        )
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(crate) fn io(context: impl Into<String>, source: io::Error) -> Self {
        Self::new(ErrorKind::Io, context).with_source(source)
    }

    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl Error for ServeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// A name that came from the wire, made safe for logs and messages: control characters and
/// quotes escaped, at most 256 characters of it.
pub(crate) fn escaped(name: &str) -> String {
    let mut shown: String = name.chars().take(256).flat_map(char::escape_debug).collect();
    if name.chars().nth(256).is_some() {
        shown.push('…');
    }
    shown
}
