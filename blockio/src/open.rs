//! Opening files without surprises: no device is touched before its type is known, and O_DIRECT falls back.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl, openat};
use nix::sys::stat::Mode;

use crate::{Error, ErrorKind, Result};

/// A path resolved to one inode, which is a block device or a regular file, but not opened for I/O yet.
pub(crate) struct Resolved {
    /// Opened with O_PATH: opening a FIFO would hang, and opening some character devices does things.
    handle: File,
    pub metadata: Metadata,
}

pub(crate) fn resolve(path: &Path) -> Result<Resolved> {
    let fail = |source| Error::os("open", source).at_path(path);
    let handle = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
        .map_err(fail)?;
    let metadata = handle.metadata().map_err(fail)?;
    let file_type = metadata.file_type();
    if !file_type.is_block_device() && !file_type.is_file() {
        return Err(Error::new(ErrorKind::WrongType, "open")
            .at_path(path)
            .detail(format!(
                "it is {}; give a block device or a regular file",
                type_name(&metadata)
            )));
    }
    Ok(Resolved { handle, metadata })
}

impl Resolved {
    /// Opens the inode itself, so that a path exchanged meanwhile changes nothing.
    fn open(&self, options: &OpenOptions) -> io::Result<File> {
        options.open(proc_path(self.handle.as_fd()))
    }

    /// Opens for reading; with O_DIRECT when the filesystem allows it. Tells which.
    pub(crate) fn open_for_reading(&self, path: &Path) -> Result<(File, bool)> {
        let file = self
            .open(OpenOptions::new().read(true))
            .map_err(|e| Error::os("open", e).at_path(path))?;
        let direct = set_direct(file.as_fd(), true);
        if !direct {
            tracing::debug!(path = %path.display(), "O_DIRECT is refused; reading through the page cache");
        }
        Ok((file, direct))
    }
}

/// Opens for reading what is open already, with more flags.
pub(crate) fn again(file: &File, flags: i32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .custom_flags(flags)
        .open(proc_path(file.as_fd()))
}

fn proc_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn type_name(metadata: &Metadata) -> &'static str {
    let file_type = metadata.file_type();
    if file_type.is_dir() {
        "a directory"
    } else if file_type.is_fifo() {
        "a FIFO"
    } else if file_type.is_char_device() {
        "a character device"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "neither a block device nor a regular file"
    }
}

/// Turns O_DIRECT on or off; false when the filesystem refuses (EINVAL from the kernel's `setfl`).
///
/// Setting the flag afterwards leaves nothing behind when it is refused, where an `open` that creates the
/// file leaves the file.
pub(crate) fn set_direct(file: BorrowedFd<'_>, direct: bool) -> bool {
    let Ok(bits) = fcntl(file, FcntlArg::F_GETFL) else {
        return false;
    };
    let mut flags = OFlag::from_bits_retain(bits);
    flags.set(OFlag::O_DIRECT, direct);
    fcntl(file, FcntlArg::F_SETFL(flags)).is_ok()
}

/// Lets the page cache take a file's reads and writes: where the alignment of O_DIRECT does not suit the caller.
pub fn set_buffered(file: &File) {
    set_direct(file.as_fd(), false);
}

/// Whether the file is open with O_DIRECT.
pub(crate) fn is_direct(file: BorrowedFd<'_>) -> bool {
    fcntl(file, FcntlArg::F_GETFL).is_ok_and(|bits| OFlag::from_bits_retain(bits).contains(OFlag::O_DIRECT))
}

/// Creates the file `name` in the directory `dir`, mode 0600, for reading and writing with O_DIRECT.
///
/// On a filesystem without O_DIRECT the file is opened without; a [`SequentialWriter`](crate::SequentialWriter)
/// takes either.
///
/// # Errors
/// `Exists` when the name is taken, be it by a dangling link; `NoSpace`, `PermissionDenied`, `Io` from the
/// kernel.
pub fn create_direct(dir: BorrowedFd<'_>, name: impl AsRef<Path>) -> Result<File> {
    let name = name.as_ref();
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let file = openat(dir, name, flags, mode).map_err(|e| Error::os("create", e).at_path(name))?;
    if !set_direct(file.as_fd(), true) {
        tracing::debug!(name = %name.display(), "O_DIRECT is refused; writing through the page cache");
    }
    Ok(File::from(file))
}

/// Opens an existing block device or regular file for writing, with O_DIRECT where possible.
///
/// A block device is opened with O_EXCL: nobody else may hold it, and no filesystem may be mounted from it
/// while the file is open.
///
/// # Errors
/// `Busy` when the device is in use; `NotFound`, `WrongType`, `PermissionDenied`, `Io`.
pub fn open_exclusive(path: &Path) -> Result<File> {
    let resolved = resolve(path)?;
    let flags = if resolved.metadata.file_type().is_block_device() {
        libc::O_EXCL
    } else {
        0
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    let file = resolved.open(&options).map_err(|source| {
        let error = Error::os("open for writing", source).at_path(path);
        match error.kind() {
            ErrorKind::Busy => error.detail("it is in use; unmount it or stop what holds it"),
            _ => error,
        }
    })?;
    set_direct(file.as_fd(), true);
    Ok(file)
}

/// The alignment that O_DIRECT on a regular file needs of offsets and lengths (statx `STATX_DIOALIGN`, from
/// Linux 6.1), and at least one block.
pub(crate) fn file_alignment(file: BorrowedFd<'_>) -> u64 {
    let asked = statx(file, libc::STATX_DIOALIGN).map_or(0, |answer| answer.stx_dio_offset_align);
    u64::from(asked).max(crate::BLOCK)
}

fn statx(file: BorrowedFd<'_>, mask: libc::c_uint) -> Option<libc::statx> {
    // SAFETY: `statx` consists of integers only, for which all zeros is a value.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty C string, so that the descriptor itself is meant; `answer` outlives the call.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            mask,
            &raw mut answer,
        )
    };
    (result == 0 && answer.stx_mask & mask == mask).then_some(answer)
}
