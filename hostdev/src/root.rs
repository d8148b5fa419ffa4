//! Where the machine's files are seen, and bounded reading of them.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use crate::error::if_present;
use crate::{Error, ErrorKind, Result};

/// Largest configuration file, and largest file of the kernel or udev, that is read.
const TEXT_MAX_BYTES: u64 = 4 << 20;

/// Most entries of a directory that are read.
const ENTRIES_MAX: usize = 16_384;

/// Most symbolic links that are followed to a path that does not exist: the kernel's own limit (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// Where the machine's files are seen: `/`, or a tree that looks like it. All paths given are the machine's.
///
/// Tests build machines out of directories. The kernel itself (ioctls, device numbers of opened files) is asked only
/// about the real one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    path: PathBuf,
}

impl Root {
    /// The machine that this process runs on.
    pub fn system() -> Root {
        Root::at("/")
    }

    /// The tree at `path`. Symbolic links in it lead to places in it, as they would if it were the machine's root.
    pub fn at(path: impl Into<PathBuf>) -> Root {
        Root { path: path.into() }
    }

    /// Whether this is the machine that the process runs on.
    pub fn is_system(&self) -> bool {
        self.path == Path::new("/")
    }

    /// Where the machine's `path` is.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Where what the machine's `path` leads to is, symbolic links followed as that machine follows them. Whatever does not
    /// exist is where it would be. Of this machine the path itself, which the kernel follows.
    ///
    /// # Errors
    /// `Io` for more links than the kernel follows.
    pub fn located(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = path.as_ref();
        if self.is_system() {
            return Ok(self.join(path));
        }
        let mut pending = names_reversed(path);
        let mut found = PathBuf::new();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                found.pop();
                continue;
            }
            let next = found.join(&name);
            // What is no link, or not there, shows when it is opened.
            let Ok(target) = fs::read_link(self.path.join(&next)) else {
                found = next;
                continue;
            };
            links += 1;
            if links > LINKS_MAX {
                return Err(self.too_many_links(path));
            }
            if target.is_absolute() {
                found.clear();
            }
            pending.extend(names_reversed(&target));
        }
        Ok(self.path.join(found))
    }

    /// Metadata of what a path leads to, symbolic links followed; `None` if there is nothing.
    ///
    /// # Errors
    /// `PermissionDenied` or `Io` when that cannot be found out.
    pub fn metadata(&self, path: impl AsRef<Path>) -> Result<Option<Metadata>> {
        let path = self.located(path)?;
        if_present(fs::metadata(&path).map_err(|source| Error::os("examine", path, source)))
    }

    /// Whether a path leads to something.
    ///
    /// # Errors
    /// As for [`metadata`](Root::metadata).
    pub fn try_exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        Ok(self.metadata(path)?.is_some())
    }

    /// Opens a regular file or a block device for reading. A FIFO in its place does not block.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `Io`; `WrongType` for anything else.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<File> {
        let path = self.located(path)?;
        let fail = |source| Error::os("open", &path, source);
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&path);
        let file = opened.map_err(fail)?;
        let kind = file.metadata().map_err(fail)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::new(ErrorKind::WrongType, "open", &path));
        }
        Ok(file)
    }

    /// The content of a file of at most `max_bytes`.
    ///
    /// # Errors
    /// As for [`open`](Root::open); `TooLarge` for a larger one, which is never cut.
    pub fn bytes_up_to(&self, path: impl AsRef<Path>, max_bytes: u64) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let mut bytes = Vec::new();
        let read = self
            .open(path)?
            .take(max_bytes.saturating_add(1))
            .read_to_end(&mut bytes);
        let read = read.map_err(|source| Error::os("read", self.join(path), source))?;
        if u64::try_from(read).is_ok_and(|read| read > max_bytes) {
            return Err(Error::new(ErrorKind::TooLarge, "read", self.join(path)));
        }
        Ok(bytes)
    }

    /// A text file of at most `max_bytes`; what is not UTF-8 in it is replaced.
    ///
    /// # Errors
    /// As for [`bytes_up_to`](Root::bytes_up_to).
    pub fn text_up_to(&self, path: impl AsRef<Path>, max_bytes: u64) -> Result<String> {
        let bytes = self.bytes_up_to(path, max_bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A text file of at most 4 MiB; what is not UTF-8 in it is replaced.
    ///
    /// # Errors
    /// As for [`bytes_up_to`](Root::bytes_up_to).
    pub fn text(&self, path: impl AsRef<Path>) -> Result<String> {
        self.text_up_to(path, TEXT_MAX_BYTES)
    }

    /// An attribute in sysfs or procfs without surrounding white space and NUL bytes; `None` when it is missing or
    /// blank, and when the driver has no value for it (it then answers ENXIO, ENODEV, EINVAL, ENODATA or EOPNOTSUPP:
    /// so does `wwid` of a SCSI disk without page 0x83).
    ///
    /// # Errors
    /// `PermissionDenied`, `TooLarge`, `WrongType`, `Io`: there is an attribute, and what it says is not known.
    pub fn attribute(&self, path: impl AsRef<Path>) -> Result<Option<String>> {
        let bytes = self.attribute_bytes(path)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    /// All bytes of an attribute; `None` when it is missing, empty or without a value.
    ///
    /// # Errors
    /// As for [`attribute`](Root::attribute).
    pub(crate) fn attribute_bytes(&self, path: impl AsRef<Path>) -> Result<Option<Vec<u8>>> {
        match self.bytes_up_to(path, TEXT_MAX_BYTES) {
            Ok(bytes) => Ok(Some(bytes).filter(|bytes| !bytes.is_empty())),
            Err(error) if has_no_value(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// An attribute that is a number.
    ///
    /// # Errors
    /// As for [`attribute`](Root::attribute); `Malformed` when it is there and not a number.
    pub fn number(&self, path: impl AsRef<Path>) -> Result<Option<u64>> {
        let path = path.as_ref();
        let number = |text: String| {
            text.parse()
                .map_err(|_| Error::new(ErrorKind::Malformed, "read", self.join(path)))
        };
        self.attribute(path)?.map(number).transpose()
    }

    /// Names in a directory, sorted. Names that are not UTF-8 are left out: nothing that is looked for has one.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `Io`; `TooLarge` for more than 16,384 entries.
    pub fn read_dir(&self, directory: impl AsRef<Path>) -> Result<Vec<String>> {
        let path = self.located(directory)?;
        let fail = |source| Error::os("list", &path, source);
        let mut names = Vec::new();
        for (index, entry) in fs::read_dir(&path).map_err(fail)?.enumerate() {
            if index == ENTRIES_MAX {
                return Err(Error::new(ErrorKind::TooLarge, "list", &path));
            }
            names.extend(entry.map_err(fail)?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    /// The same; nothing if there is no such directory.
    ///
    /// # Errors
    /// As for [`read_dir`](Root::read_dir), without `NotFound`.
    pub fn names(&self, directory: impl AsRef<Path>) -> Result<Vec<String>> {
        Ok(if_present(self.read_dir(directory))?.unwrap_or_default())
    }

    /// What a path leads to, symbolic links followed, as the machine sees it; `None` if there is nothing.
    ///
    /// # Errors
    /// `PermissionDenied`, `Io`; `WrongType` if it leads out of the tree.
    pub fn resolve(&self, path: impl AsRef<Path>) -> Result<Option<PathBuf>> {
        let path = self.located(path)?;
        let resolved = |path: &Path| {
            if_present(fs::canonicalize(path).map_err(|source| Error::os("resolve", path, source)))
        };
        let (Some(found), Some(root)) = (resolved(&path)?, resolved(&self.path)?) else {
            return Ok(None);
        };
        match found.strip_prefix(&root) {
            Ok(below) => Ok(Some(Path::new("/").join(below))),
            Err(_) => Err(Error::new(ErrorKind::WrongType, "resolve", path)),
        }
    }

    /// The path itself if it exists, else its nearest ancestor that does: where it would be made. A relative path
    /// is taken from the current directory. A symbolic link to what does not exist counts as what it leads to.
    ///
    /// # Errors
    /// `PermissionDenied` or `Io` when the kernel does not say whether something exists.
    pub fn existing_ancestor(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = path.as_ref();
        let mut wanted =
            std::path::absolute(path).map_err(|source| Error::os("find the directory of", path, source))?;
        let mut links = 0;
        while self.metadata(&wanted)?.is_none() {
            let followed = match fs::read_link(self.join(&wanted)) {
                Ok(target) => Some(target),
                // It is not there at all.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
                    ) =>
                {
                    None
                }
                Err(error) => return Err(Error::os("read the link", self.join(&wanted), error)),
            };
            wanted = match (followed, wanted.parent()) {
                (Some(target), Some(parent)) if links < LINKS_MAX => {
                    links += 1;
                    parent.join(target)
                }
                (None, Some(parent)) => parent.to_owned(),
                (Some(_), _) => return Err(self.too_many_links(path)),
                (None, None) => return Err(Error::new(ErrorKind::NotFound, "find", self.join(path))),
            };
        }
        Ok(wanted)
    }

    fn too_many_links(&self, path: &Path) -> Error {
        Error::os(
            "resolve",
            self.join(path),
            io::Error::from_raw_os_error(libc::ELOOP),
        )
    }
}

/// The names in a path, the last one first.
fn names_reversed(path: &Path) -> Vec<OsString> {
    let names = path.components().rev();
    names
        .filter(|name| matches!(name, Component::Normal(_) | Component::ParentDir))
        .map(|name| name.as_os_str().to_owned())
        .collect()
}

fn has_no_value(error: &Error) -> bool {
    let refused = matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENODATA | libc::EOPNOTSUPP)
    );
    error.kind() == ErrorKind::NotFound || refused
}

/// Bytes of the kernel's as a path.
pub(crate) fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, Root) {
        let tree = tempfile::tempdir().expect("a directory");
        let root = Root::at(tree.path());
        (tree, root)
    }

    #[test]
    fn a_missing_attribute_is_none_and_an_unreadable_one_an_error() {
        let (_tree, root) = tree();
        fs::write(root.join("/a"), " S-1 \0\n").expect("written");
        fs::write(root.join("/blank"), "\n\0 ").expect("written");
        fs::write(root.join("/n"), "17x\n").expect("written");
        fs::create_dir(root.join("/d")).expect("made");
        assert_eq!(root.attribute("/a").expect("read").as_deref(), Some("S-1"));
        for path in ["/blank", "/missing", "/missing/a", "/a/b"] {
            assert_eq!(root.attribute(path).expect("nothing there"), None, "{path}");
        }
        let kind = |error: Error| error.kind();
        assert_eq!(root.attribute("/d").map_err(kind), Err(ErrorKind::WrongType));
        assert_eq!(root.number("/n").map_err(kind), Err(ErrorKind::Malformed));
        let large = File::create(root.join("/large")).expect("made");
        large.set_len(TEXT_MAX_BYTES + 1).expect("sized");
        assert_eq!(root.attribute("/large").map_err(kind), Err(ErrorKind::TooLarge));
    }

    #[test]
    fn directories_are_read_whole_or_not_at_all() {
        let (_tree, root) = tree();
        assert_eq!(root.names("/d").expect("none there"), [""; 0]);
        fs::create_dir(root.join("/d")).expect("made");
        for name in ["b", "a"] {
            fs::write(root.join("/d").join(name), "").expect("written");
        }
        assert_eq!(root.names("/d").expect("listed"), ["a", "b"]);
        for index in 0..=ENTRIES_MAX {
            fs::write(root.join(format!("/d/{index}")), "").expect("written");
        }
        let error = root.names("/d").expect_err("too many");
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn the_nearest_existing_ancestor_is_where_a_path_would_be_made() {
        let (_tree, root) = tree();
        fs::create_dir_all(root.join("/srv/there")).expect("made");
        symlink("there/not/yet", root.join("/srv/dangling")).expect("linked");
        symlink("circle", root.join("/srv/circle")).expect("linked");
        let found = |path: &str| root.existing_ancestor(path).map_err(|error| error.raw_os_error());
        assert_eq!(found("/srv/there"), Ok("/srv/there".into()));
        assert_eq!(found("/srv/there/a/b"), Ok("/srv/there".into()));
        assert_eq!(found("/no/such/path"), Ok("/".into()));
        assert_eq!(found("/srv/dangling/x"), Ok("/srv/there".into()));
        assert_eq!(found("/srv/circle/x"), Err(Some(libc::ELOOP)));
    }

    #[test]
    fn paths_are_resolved_as_the_machine_sees_them() {
        let (_tree, root) = tree();
        fs::create_dir_all(root.join("/sys/block/sda")).expect("made");
        symlink("block/sda", root.join("/sys/link")).expect("linked");
        fs::create_dir_all(root.join("/etc")).expect("made");
        fs::write(root.join("/etc/name"), "own").expect("written");
        symlink("/etc", root.join("/config")).expect("linked");
        symlink("../../../../etc/name", root.join("/sys/up")).expect("linked");
        assert_eq!(
            root.resolve("/sys/link").expect("resolved"),
            Some("/sys/block/sda".into())
        );
        assert_eq!(root.resolve("/missing").expect("nothing there"), None);
        // Links never lead out of the tree, where other files have the same names.
        for path in ["/config/name", "/sys/up", "/../../config/../etc/name"] {
            assert_eq!(
                root.resolve(path).expect("resolved"),
                Some("/etc/name".into()),
                "{path}"
            );
            assert_eq!(root.text(path).expect("read"), "own", "{path}");
        }
    }
}
