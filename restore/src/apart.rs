//! Keeps what is written out of stores: an image that overwrites images is the end of both.

use anyhow::{Context, bail};
use hostdev::FileId;
use imagefmt::ErrorKind;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens a directory to make files in it; refuses one that lies in a store.
///
/// # Errors
/// A directory that cannot be opened, that is a store or that lies in one, whatever path leads there.
pub fn open_directory(path: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_DIRECTORY);
    let directory = options
        .open(path)
        .with_context(|| format!("open directory {}", path.display()))?;
    refuse_in_a_store(&directory).with_context(|| format!("use directory {}", path.display()))?;
    Ok(directory)
}

/// Refuses a directory that is a store or lies in one: it and all those above it are looked at, by descriptors.
fn refuse_in_a_store(directory: &File) -> anyhow::Result<()> {
    let mut directory = directory.try_clone().context("copy a descriptor")?;
    loop {
        let place = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let place = Path::new(&place);
        let found = imagefmt::Store::open(place).map_err(|error| error.kind());
        if !matches!(found, Err(ErrorKind::NotAStore | ErrorKind::NotFound)) {
            let shown = fs::read_link(place).unwrap_or_default();
            bail!("it lies in the store {}, where only smc writes", shown.display());
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let above = openat(&directory, "..", flags, Mode::empty()).context("look at the directory above")?;
        let above = File::from(above);
        if id(&above)? == id(&directory)? {
            return Ok(());
        }
        directory = above;
    }
}

fn id(file: &File) -> anyhow::Result<FileId> {
    Ok(FileId::of(&file.metadata().context("examine a directory")?))
}

/// Whether the file is one of those below `directory`, whatever path led to it: a hard link, or a mount of the file.
///
/// # Errors
/// What cannot be looked at.
pub fn is_below(directory: &Path, file: FileId) -> anyhow::Result<bool> {
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("read {}", directory.display()))?
            .path();
        let metadata = match fs::symlink_metadata(&path) {
            // Removed meanwhile by another process that uses the store.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            found => found.with_context(|| format!("examine {}", path.display()))?,
        };
        if FileId::of(&metadata) == file || (metadata.is_dir() && is_below(&path, file)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The directory that a file of this path is in.
pub fn parent_of(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use testkit::guard::ScratchDir;

    #[test]
    fn a_store_is_found_above_and_through_links() {
        let scratch = ScratchDir::new("smc-apart").unwrap();
        let store = scratch.join("store");
        imagefmt::Store::open_or_create(&store, false).unwrap();
        let inside = store.join("web01/layers");
        fs::create_dir_all(&inside).unwrap();
        symlink(&inside, scratch.join("link")).unwrap();
        for refused in [store.clone(), inside.clone(), scratch.join("link")] {
            let error = format!("{:#}", open_directory(&refused).unwrap_err());
            assert!(
                error.contains("lies in the store") && error.contains("/store"),
                "{error}"
            );
        }
        // A directory with a file of this name is no store by that.
        let other = scratch.join("other");
        fs::create_dir(&other).unwrap();
        open_directory(&other).unwrap();
        open_directory(scratch.path()).unwrap();
        assert!(open_directory(&scratch.join("missing")).is_err());
    }

    #[test]
    fn a_file_is_found_under_another_name() {
        let scratch = ScratchDir::new("smc-apart").unwrap();
        let inside = scratch.join("store/web01/layers");
        fs::create_dir_all(&inside).unwrap();
        fs::write(inside.join("1"), "layer").unwrap();
        fs::hard_link(inside.join("1"), scratch.join("planted")).unwrap();
        fs::write(scratch.join("own"), "mine").unwrap();
        let id = |name: &str| FileId::of(&fs::metadata(scratch.join(name)).unwrap());
        assert!(is_below(&scratch.join("store"), id("planted")).unwrap());
        assert!(!is_below(&scratch.join("store"), id("own")).unwrap());
    }
}
