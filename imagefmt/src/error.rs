//! The one error of this crate: what kind, where, and what caused it.

use crate::format::name::ImageId;
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
    /// The machine that has the store cannot be reached, or the connection to it was lost. Later it may work.
    Unreachable,
}

/// What a bad sector ends as: from the block layer EIO, ENODATA (medium error), EILSEQ (a wrong check) or EREMOTEIO (the
/// target's fault), from filesystems EUCLEAN or EBADMSG where they find that their own structures or checks are wrong.
const MEDIUM_ERRORS: [i32; 6] = [
    libc::EIO,
    libc::ENODATA,
    libc::EILSEQ,
    libc::EREMOTEIO,
    libc::EUCLEAN,
    libc::EBADMSG,
];

/// What an error is about, as far as it is known.
#[derive(Default)]
struct Subject {
    image: Option<ImageId>,
    disk: Option<String>,
    cluster: Option<u64>,
    file: Option<String>,
}

/// An error with its context and what it is about. `Display` gives the context; the cause is in `source()`.
pub struct Error {
    kind: ErrorKind,
    /// Innermost first; displayed outermost first.
    context: Vec<String>,
    /// Boxed, as every result of this crate has room for it.
    subject: Box<Subject>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` that says `what` happened.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            context: vec![what.into()],
            subject: Box::default(),
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

    /// Adds the image that it is about; `what` says what is done to it or which part of it is meant.
    #[must_use]
    pub(crate) fn of_image(mut self, what: &str, image: &ImageId) -> Self {
        self.subject.image.get_or_insert_with(|| image.clone());
        self.within(format!("{what} {image}"))
    }

    /// Something that cannot be done with an image, in a sentence of which it is the subject.
    pub(crate) fn refused(kind: ErrorKind, image: &ImageId, what: &str) -> Self {
        let mut error = Self::new(kind, format!("image {image} {what}"));
        error.subject.image = Some(image.clone());
        error
    }

    /// Adds the disk that it is about, which is an image's.
    #[must_use]
    pub(crate) fn of_disk(mut self, image: &ImageId, disk: &str) -> Self {
        self.subject.image.get_or_insert_with(|| image.clone());
        self.subject.disk.get_or_insert_with(|| disk.to_owned());
        self.within(format!("{image}:{disk}"))
    }

    /// Adds the cluster that it is about; `name` is how messages call it.
    #[must_use]
    pub(crate) fn of_cluster(mut self, index: u64, name: String) -> Self {
        self.subject.cluster.get_or_insert(index);
        self.within(name)
    }

    /// Adds the file that it is about.
    #[must_use]
    pub(crate) fn in_file(self, path: &str) -> Self {
        self.about_file(path).within(path)
    }

    /// Keeps the file that it is about, which its text names already.
    #[must_use]
    pub(crate) fn about_file(mut self, path: &str) -> Self {
        self.subject.file.get_or_insert_with(|| path.to_owned());
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

    /// What the operating system said, if that is the cause.
    fn os_error(&self) -> Option<&io::Error> {
        self.source.as_deref()?.downcast_ref::<io::Error>()
    }

    /// Whether something on the way that a path names is a file and no directory.
    pub(crate) fn is_not_a_directory(&self) -> bool {
        self.os_error()
            .is_some_and(|error| error.kind() == io::ErrorKind::NotADirectory)
    }

    /// Whether the medium, or the filesystem on it, says that it cannot read what is stored in a place. It says the same
    /// while all of it is out of reach.
    pub(crate) fn is_of_medium(&self) -> bool {
        let errno = self.os_error().and_then(io::Error::raw_os_error);
        errno.is_some_and(|errno| MEDIUM_ERRORS.contains(&errno))
    }

    /// Whether bytes of the store are not what was written there. What cannot be read for another reason (no permission,
    /// too many open files, a disk or network that fails) may be there again in a moment, and is not lost.
    pub fn is_lost(&self) -> bool {
        self.kind == ErrorKind::Damaged
    }

    /// What happened, without where.
    pub fn cause(&self) -> &str {
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

    /// The image that it is about, where it is about one.
    pub fn image(&self) -> Option<&ImageId> {
        self.subject.image.as_ref()
    }

    /// Name of the disk that it is about, within [`image`](Self::image).
    pub fn disk(&self) -> Option<&str> {
        self.subject.disk.as_deref()
    }

    /// Index of the cluster that it is about, on [`disk`](Self::disk).
    pub fn cluster(&self) -> Option<u64> {
        self.subject.cluster
    }

    /// The file of the store that it is about, relative to the store.
    pub fn file(&self) -> Option<&str> {
        self.subject.file.as_deref()
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
