//! Freezing and thawing one filesystem (ioctl_fsfreeze(2)), without an allocation.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

mod raw {
    nix::ioctl_readwrite!(fifreeze, b'X', 119, i32);
    nix::ioctl_readwrite!(fithaw, b'X', 120, i32);
}

/// Freezes the filesystem of a file: returns when all writes that had begun are on its disk. Nothing interrupts it.
///
/// # Errors
/// `EBUSY` if it is frozen already, `EOPNOTSUPP` if its kind cannot be frozen, `EPERM`, and what its disk answers.
pub fn freeze(file: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut unused = 0;
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel does not look at the argument.
    unsafe { raw::fifreeze(file.as_raw_fd(), &raw mut unused) }.map(drop)
}

/// Thaws the filesystem of a file.
///
/// # Errors
/// `EINVAL` if it is not frozen, `EPERM`, and what its disk answers.
pub fn thaw(file: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut unused = 0;
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel does not look at the argument.
    unsafe { raw::fithaw(file.as_raw_fd(), &raw mut unused) }.map(drop)
}
