//! The machine's files as the checks read them: what is not there is nothing, and what could not be read is noted.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::path::{Path, PathBuf};

use hostdev::{Error, ErrorKind, Result, Root};

use crate::text::cause;

/// Reads files, and notes what exists and could not be read: a check that goes by such a file has not seen all.
#[derive(Debug)]
pub(crate) struct Files<'a> {
    root: &'a Root,
    unread: RefCell<BTreeMap<PathBuf, String>>,
}

impl<'a> Files<'a> {
    pub(crate) fn new(root: &'a Root) -> Files<'a> {
        Files {
            root,
            unread: RefCell::default(),
        }
    }

    /// Where they are seen.
    pub(crate) fn root(&self) -> &'a Root {
        self.root
    }

    /// Each file or directory that could not be read, and why.
    pub(crate) fn unread(&self) -> BTreeMap<PathBuf, String> {
        self.unread.borrow().clone()
    }

    /// Notes an error of something that is there.
    pub(crate) fn note(&self, error: &Error) {
        if error.kind() != ErrorKind::NotFound {
            let path = error.path().to_owned();
            self.unread.borrow_mut().insert(path, cause(error));
        }
    }

    fn noted<T>(&self, result: Result<T>) -> Option<T> {
        result.inspect_err(|error| self.note(error)).ok()
    }

    /// A text file; empty if there is none.
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> String {
        self.noted(self.root.text(path)).unwrap_or_default()
    }

    /// A text file of at most `max_bytes`; empty if there is none.
    pub(crate) fn text_up_to(&self, path: impl AsRef<Path>, max_bytes: u64) -> String {
        self.noted(self.root.text_up_to(path, max_bytes))
            .unwrap_or_default()
    }

    /// A file of at most `max_bytes`; none if there is none.
    pub(crate) fn bytes_up_to(&self, path: impl AsRef<Path>, max_bytes: u64) -> Option<Vec<u8>> {
        self.noted(self.root.bytes_up_to(path, max_bytes))
    }

    /// An attribute of the kernel's, or a file of one word; none if it is missing or blank.
    pub(crate) fn attribute(&self, path: impl AsRef<Path>) -> Option<String> {
        self.noted(self.root.attribute(path)).flatten()
    }

    /// An attribute that is a number.
    pub(crate) fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.noted(self.root.number(path)).flatten()
    }

    /// Names in a directory, sorted; none if there is no such directory.
    pub(crate) fn names(&self, directory: impl AsRef<Path>) -> Vec<String> {
        self.noted(self.root.names(directory)).unwrap_or_default()
    }

    /// Paths of the files in a directory whose names end with `suffix`, sorted; directories are left out.
    pub(crate) fn files(&self, directory: &str, suffix: &str) -> Vec<String> {
        let names = self.names(directory).into_iter();
        names
            .filter(|name| name.ends_with(suffix))
            .map(|name| format!("{directory}/{name}"))
            .filter(|path| !self.is_dir(path))
            .collect()
    }

    /// What a path leads to, symbolic links followed.
    pub(crate) fn resolved(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        self.noted(self.root.resolve(path)).flatten()
    }

    fn metadata(&self, path: impl AsRef<Path>) -> Option<Metadata> {
        self.noted(self.root.metadata(path)).flatten()
    }

    /// Whether a path leads to something.
    pub(crate) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.metadata(path).is_some()
    }

    /// Whether a path leads to a directory.
    pub(crate) fn is_dir(&self, path: impl AsRef<Path>) -> bool {
        self.metadata(path).is_some_and(|metadata| metadata.is_dir())
    }

    /// Size of a regular file; none if it is not one.
    pub(crate) fn file_bytes(&self, path: impl AsRef<Path>) -> Option<u64> {
        let metadata = self.metadata(path)?;
        metadata.is_file().then_some(metadata.len())
    }
}
