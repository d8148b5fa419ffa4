//! Sets of files that belong together, each in a directory of its own that is there as a whole or not at all.

use anyhow::Context;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Makes a directory that is its owner's alone, and those above it that are missing. One that is there stays as it is.
pub(super) fn make_private(dir: &Path) -> anyhow::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let make = || {
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        fs::create_dir_all(parent)?;
        fs::DirBuilder::new().mode(0o700).create(dir)?;
        sync(parent)
    };
    make().with_context(|| format!("make directory {}", dir.display()))
}

/// Writes files, each a name and its content, into a directory `name` of `parent` that must not be there yet.
pub(super) fn install(parent: &Path, name: &str, files: &[(&str, &str)]) -> anyhow::Result<()> {
    let target = parent.join(name);
    let write = || {
        let made = tempfile::Builder::new()
            .prefix(".new-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent)?;
        for (file, content) in files {
            write_private(&made.path().join(file), content)?;
        }
        sync(made.path())?;
        // Fails where another set is there already: a directory replaces none but an empty one.
        fs::rename(made.path(), &target)?;
        // It has gone from where it was made: there is nothing left to clean up.
        let _ = made.keep();
        sync(parent)
    };
    write().with_context(|| format!("write {}", target.display()))
}

/// A name beside `name` that is free: `server.1`, or with the next number.
pub(super) fn free_name(parent: &Path, name: &str) -> anyhow::Result<String> {
    let mut names = (1..u32::MAX).map(|number| format!("{name}.{number}"));
    let free = names.find(|free| !exists(&parent.join(free)));
    free.with_context(|| format!("find a free name for {name} in {}", parent.display()))
}

/// Exchanges the names of two sets, so that at no time one of the names is missing.
pub(super) fn exchange(parent: &Path, name: &str, other: &str) -> anyhow::Result<()> {
    let swap = || -> io::Result<()> {
        let (first, second) = (parent.join(name), parent.join(other));
        renameat2(AT_FDCWD, &first, AT_FDCWD, &second, RenameFlags::RENAME_EXCHANGE)?;
        sync(parent)
    };
    swap().with_context(|| format!("exchange {name} and {other} in {}", parent.display()))
}

/// Whether anything has this name.
pub(super) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn write_private(path: &Path, content: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
