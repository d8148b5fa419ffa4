//! How much a source's images may take.

use imagefmt::{Error, ErrorKind};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes that stay free on the filesystem of the stores, for records of images and for others.
pub const RESERVE_BYTES: u64 = 64 << 20;

/// Bytes after which is looked anew.
const LOOK_BYTES: u64 = 256 << 20;

/// What a source takes, and may take.
#[derive(Debug)]
pub struct Space {
    directory: PathBuf,
    quota: Option<u64>,
    used_bytes: u64,
    free_bytes: u64,
    since_look_bytes: u64,
}

impl Space {
    /// Looks at the store of a source, which may not exist yet.
    ///
    /// # Errors
    /// `Io` where it cannot be read.
    pub fn of(directory: &Path, quota: Option<u64>) -> Result<Space, Error> {
        let mut space = Space {
            directory: directory.to_owned(),
            quota,
            used_bytes: 0,
            free_bytes: 0,
            since_look_bytes: 0,
        };
        space.look()?;
        Ok(space)
    }

    fn look(&mut self) -> Result<(), Error> {
        let failed = |error: io::Error| {
            Error::new(
                ErrorKind::Io,
                format!("look how much {} takes", self.directory.display()),
            )
            .caused_by(error)
        };
        // Without a quota nobody needs to know.
        self.used_bytes = match self.quota {
            Some(_) => used_below(&self.directory).map_err(failed)?,
            None => 0,
        };
        self.free_bytes = free_at(&self.directory).map_err(failed)?;
        self.since_look_bytes = 0;
        Ok(())
    }

    /// So many bytes more were stored.
    pub fn used(&mut self, bytes: u64) {
        self.since_look_bytes += bytes;
    }

    /// Bytes that the source may still store.
    pub fn left_bytes(&self) -> u64 {
        let free = self.free_bytes.saturating_sub(RESERVE_BYTES);
        let quota = self.quota.map(|quota| quota.saturating_sub(self.used_bytes));
        quota
            .map_or(free, |quota| quota.min(free))
            .saturating_sub(self.since_look_bytes)
    }

    /// Looks anew now and then.
    ///
    /// # Errors
    /// `Io` when there is no space left, with who has to do what.
    pub fn check(&mut self) -> Result<(), Error> {
        if self.since_look_bytes >= LOOK_BYTES || self.left_bytes() == 0 {
            self.look()?;
        }
        if self.left_bytes() > 0 {
            return Ok(());
        }
        let what = match self.quota {
            Some(quota) if self.used_bytes >= quota => {
                format!(
                    "the quota of this source, {}, is used up",
                    cli::units::size(quota)
                )
            }
            _ => "the disk of the target is full".to_owned(),
        };
        Err(Error::new(
            ErrorKind::Io,
            format!("{what}: what came is kept, and the next sync continues when there is space again"),
        ))
    }
}

/// Bytes on disk of all files below a directory; none where there is no such directory.
///
/// # Errors
/// What cannot be looked at.
pub fn used_below(directory: &Path) -> io::Result<u64> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        let found = match entry.metadata() {
            // It was deleted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            found => found?,
        };
        bytes += found.blocks() * 512;
        if found.is_dir() {
            bytes += used_below(&entry.path())?;
        }
    }
    Ok(bytes)
}

/// Bytes that are free on the filesystem of a directory, or of the nearest one above it that exists.
///
/// # Errors
/// What the kernel says.
pub fn free_at(directory: &Path) -> io::Result<u64> {
    let mut at = directory;
    loop {
        match nix::sys::statvfs::statvfs(at) {
            Ok(stat) => return Ok(stat.blocks_available() * stat.fragment_size()),
            Err(nix::errno::Errno::ENOENT) => match at.parent() {
                Some(parent) => at = parent,
                None => return Err(nix::errno::Errno::ENOENT.into()),
            },
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_quota_ends_what_a_source_may_store() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("web01");
        let mut space = Space::of(&store, Some(1 << 20)).unwrap();
        assert_eq!(space.left_bytes(), 1 << 20);
        space.used(100);
        assert_eq!(space.left_bytes(), (1 << 20) - 100);
        space.check().unwrap();
        fs::create_dir(&store).unwrap();
        fs::write(store.join("layer"), vec![1; 2 << 20]).unwrap();
        space.used(2 << 20);
        let error = space.check().unwrap_err();
        assert!(error.to_string().contains("quota"), "{error}");
        fs::remove_file(store.join("layer")).unwrap();
        space.check().unwrap();
    }
}
