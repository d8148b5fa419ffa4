//! `flock` on files, which cannot panic when it is released.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::thread;
use std::time::Duration;

/// Between two tries of a lock that another process holds.
const PAUSE: Duration = Duration::from_millis(20);

/// A file with a `flock`(2) on it, released when this is dropped.
///
/// Releasing may fail, on NFS and FUSE: then the lock goes when the descriptor is closed, which follows at once. The
/// type of the same purpose in nix panics there.
#[derive(Debug)]
pub struct LockedFile(File);

/// A lock, or the file and why it was not locked; of kind `WouldBlock` where another process holds it.
pub type LockResult = Result<LockedFile, (File, io::Error)>;

impl LockedFile {
    /// Tries many times a second to take an exclusive lock, for as long as `is_wanted` says. The process that holds it may
    /// be suspended, so nobody waits in the kernel, where nothing else could be done.
    ///
    /// # Errors
    /// `WouldBlock` where another process still holds it when it is no longer wanted; what the kernel says.
    pub fn lock_while(mut file: File, mut is_wanted: impl FnMut() -> bool) -> LockResult {
        loop {
            match Self::try_lock(file) {
                Err((same, error)) if error.kind() == io::ErrorKind::WouldBlock && is_wanted() => file = same,
                locked => return locked,
            }
            thread::sleep(PAUSE);
        }
    }

    /// Takes an exclusive lock if nobody holds one.
    ///
    /// # Errors
    /// `WouldBlock` where another process holds a lock; what the kernel says.
    pub fn try_lock(file: File) -> LockResult {
        Self::locked(file, |file| Ok(file.try_lock()?))
    }

    /// Takes a shared lock if nobody holds an exclusive one.
    ///
    /// # Errors
    /// `WouldBlock` where another process holds an exclusive lock; what the kernel says.
    pub fn try_lock_shared(file: File) -> LockResult {
        Self::locked(file, |file| Ok(file.try_lock_shared()?))
    }

    fn locked(file: File, lock: impl FnOnce(&File) -> io::Result<()>) -> LockResult {
        match lock(&file) {
            Ok(()) => Ok(Self(file)),
            Err(error) => Err((file, error)),
        }
    }
}

impl Deref for LockedFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        // Said explicitly: a child that was forked and has not yet become another program would keep it for a moment.
        if let Err(error) = self.0.unlock() {
            tracing::debug!(%error, "a lock could not be released; closing the file releases it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::os::fd::AsRawFd;

    fn open(path: &std::path::Path) -> File {
        File::open(path).unwrap()
    }

    #[test]
    fn locks_exclude_and_go_with_their_holder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let shared = LockedFile::try_lock_shared(open(file.path())).unwrap();
        let second = LockedFile::try_lock_shared(open(file.path())).unwrap();
        let (_, error) = LockedFile::try_lock(open(file.path())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        // A copy of the descriptor, as a forked child has it, does not keep the lock.
        let copy = shared.try_clone().unwrap();
        drop((shared, second));
        let exclusive = LockedFile::lock_while(open(file.path()), || true).unwrap();
        let (_, error) = LockedFile::try_lock_shared(open(file.path())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        // A wait ends when nobody wants the lock any more, and when it is there.
        let mut tries = 0;
        let wanted = || {
            tries += 1;
            tries < 3
        };
        let (_, error) = LockedFile::lock_while(open(file.path()), wanted).unwrap_err();
        assert_eq!((error.kind(), tries), (ErrorKind::WouldBlock, 3));
        let mut held = Some(exclusive);
        LockedFile::lock_while(open(file.path()), || held.take().is_some()).unwrap();
        drop(copy);
    }

    #[test]
    fn a_lock_that_cannot_be_released_is_no_panic() {
        let file = tempfile::tempfile().unwrap();
        let held = LockedFile::try_lock(file).unwrap();
        // The kernel cannot unlock a descriptor that was opened with O_PATH: put one in the place of the locked file.
        let path =
            nix::fcntl::open("/tmp", nix::fcntl::OFlag::O_PATH, nix::sys::stat::Mode::empty()).unwrap();
        // SAFETY: dup2 takes two numbers; the descriptor that it replaces stays open and owned by `held`.
        let replaced = unsafe { libc::dup2(path.as_raw_fd(), held.as_raw_fd()) };
        assert_eq!(replaced, held.as_raw_fd());
        assert!(held.unlock().is_err());
        drop(held);
    }
}
