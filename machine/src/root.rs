//! Where the machine's files are seen, and bounded reading of them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// Largest configuration file, and largest file of the kernel or udev, that is read.
const TEXT_MAX_BYTES: u64 = 4 << 20;

/// Entries of a directory that are looked at.
const ENTRIES_MAX: usize = 16_384;

/// Where the machine's files are seen: `/`, or a tree that looks like it.
///
/// Programs are run, and the kernel is asked about devices, only for the real one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    path: PathBuf,
}

impl Root {
    /// The machine that this process runs on.
    pub fn system() -> Root {
        Root::at("/")
    }

    /// The tree at `path`. Absolute symbolic links in it lead out of it.
    pub fn at(path: impl Into<PathBuf>) -> Root {
        Root { path: path.into() }
    }

    pub(crate) fn is_system(&self) -> bool {
        self.path == Path::new("/")
    }

    /// Where the machine's `path` is.
    pub(crate) fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(crate) fn exists(&self, path: impl AsRef<Path>) -> bool {
        fs::metadata(self.join(path)).is_ok()
    }

    pub(crate) fn is_dir(&self, path: impl AsRef<Path>) -> bool {
        fs::metadata(self.join(path)).is_ok_and(|metadata| metadata.is_dir())
    }

    /// Size of a regular file; absent when it is none.
    pub(crate) fn file_bytes(&self, path: impl AsRef<Path>) -> Option<u64> {
        let metadata = fs::metadata(self.join(path)).ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// Opens a regular file or a block device for reading. A FIFO in its place does not block.
    pub(crate) fn open(&self, path: impl AsRef<Path>) -> Result<File> {
        let path = self.join(path);
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&path);
        let file = opened.map_err(|source| Error::io(&path, source))?;
        let kind = file.metadata().map_err(|source| Error::io(&path, source))?;
        if !kind.is_file() && !kind.file_type().is_block_device() {
            return Err(Error::new(ErrorKind::WrongType, &path));
        }
        Ok(file)
    }

    /// A text file of at most 4 MiB; what is no UTF-8 in it is replaced.
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> Result<String> {
        self.text_up_to(path, TEXT_MAX_BYTES)
    }

    /// A text file of at most `max_bytes`: a larger one is [`ErrorKind::TooLarge`], never cut.
    pub(crate) fn text_up_to(&self, path: impl AsRef<Path>, max_bytes: u64) -> Result<String> {
        let bytes = self.bytes_up_to(path, max_bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The same for what is no text.
    pub(crate) fn bytes_up_to(&self, path: impl AsRef<Path>, max_bytes: u64) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let mut bytes = Vec::new();
        let read = self.open(path)?.take(max_bytes + 1).read_to_end(&mut bytes);
        let read = read.map_err(|source| Error::io(&self.join(path), source))?;
        if u64::try_from(read).is_ok_and(|read| read > max_bytes) {
            return Err(Error::new(ErrorKind::TooLarge, &self.join(path)));
        }
        Ok(bytes)
    }

    /// An attribute in sysfs or procfs without surrounding white space; absent when missing or blank.
    pub(crate) fn attribute(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = self.text(path).ok()?;
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// An attribute that is a number.
    pub(crate) fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.attribute(path)?.parse().ok()
    }

    /// Names in a directory, sorted; none if there is no such directory.
    pub(crate) fn names(&self, directory: impl AsRef<Path>) -> Vec<String> {
        self.read_dir(directory).unwrap_or_default()
    }

    /// Names in a directory, sorted. What is no UTF-8 is left out: nothing that is looked for is called so.
    pub(crate) fn read_dir(&self, directory: impl AsRef<Path>) -> Result<Vec<String>> {
        let path = self.join(directory);
        let entries = fs::read_dir(&path).map_err(|source| Error::io(&path, source))?;
        let mut names: Vec<String> = entries
            .take(ENTRIES_MAX)
            .flatten()
            .map(|entry| entry.file_name())
            .map(OsString::into_string)
            .filter_map(std::result::Result::ok)
            .collect();
        names.sort();
        Ok(names)
    }

    /// Paths of the files in a directory whose names end with `suffix`, sorted.
    pub(crate) fn files(&self, directory: &str, suffix: &str) -> Vec<String> {
        let names = self.names(directory);
        let names = names.iter().filter(|name| name.ends_with(suffix));
        names.map(|name| format!("{directory}/{name}")).collect()
    }

    /// What a path leads to, symbolic links followed, as the machine sees it.
    pub(crate) fn resolved(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        let found = fs::canonicalize(self.join(path)).ok()?;
        let root = fs::canonicalize(&self.path).ok()?;
        Some(Path::new("/").join(found.strip_prefix(&root).ok()?))
    }
}
