//! The file that an export writes, until it has its name.
//!
//! Other users may be allowed to write where it goes, as in a shared export area. So it is written in a directory of its
//! own, which nobody else can enter, and reached by descriptors: whatever others put in the way of a name, nothing of it
//! is opened, followed or overwritten.

use crate::exit::advised;
use anyhow::{Context, anyhow, bail};
use blockio::LockedFile;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use restore::apart::parent_of;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;

/// The rights of others, all of them.
const OTHERS: u32 = 0o077;
/// The rights of others to change something.
const OTHERS_WRITE: u32 = 0o022;

/// A file being written, in the directory `TARGET.part`; both are removed when it is dropped unfinished.
#[derive(Debug)]
pub struct PartFile {
    target: PathBuf,
    name: OsString,
    parent: Directory,
    private: Directory,
    private_name: OsString,
    file: LockedFile,
    finished: bool,
}

/// An open directory, and what it is called.
#[derive(Debug)]
struct Directory {
    fd: File,
    path: PathBuf,
}

impl PartFile {
    /// Makes an empty file for `target`, mode 0600, and holds it against another export.
    ///
    /// # Errors
    /// Where the directory cannot be written to, or is one that others can change; where another export of this name
    /// runs, or something else is in the way.
    pub fn create(target: &Path, parent: File) -> anyhow::Result<Self> {
        let name = target.file_name().context("FILE has no name")?.to_owned();
        let mut private_name = name.clone();
        private_name.push(".part");
        let parent = Directory {
            fd: parent,
            path: parent_of(target).to_owned(),
        };
        let private = parent.private(&private_name)?;
        let file = private.begin(&name).inspect_err(|_| {
            // It is not empty where another export is at work.
            let _ = parent.remove_directory(&private_name);
        })?;
        let part = Self {
            target: target.to_owned(),
            name,
            parent,
            private,
            private_name,
            file,
            finished: false,
        };
        part.warn_of_rights()?;
        Ok(part)
    }

    /// The file, open for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A path for another program, valid while this process runs. It has the final name at its end, which some formats
    /// keep, and leads through our descriptor of the directory.
    pub fn path(&self) -> PathBuf {
        let directory = format!("/proc/{}/fd/{}", process::id(), self.private.fd.as_raw_fd());
        Path::new(&directory).join(&self.name)
    }

    /// Makes the file durable and gives it its name; `force` replaces what has that name.
    ///
    /// # Errors
    /// What cannot be made durable; a file of that name, without `force`.
    pub fn finish(mut self, force: bool) -> anyhow::Result<()> {
        let shown = self.target.display().to_string();
        self.file.sync_all().with_context(|| format!("sync {shown}"))?;
        self.rename(force)?;
        self.finished = true;
        if let Err(error) = self.parent.remove_directory(&self.private_name) {
            tracing::warn!("cannot remove {}: {error}", self.private.path.display());
        }
        let synced = self.parent.fd.sync_all();
        synced.with_context(|| format!("sync {}", self.parent.path.display()))
    }

    fn rename(&self, force: bool) -> anyhow::Result<()> {
        let flags = if force {
            RenameFlags::empty()
        } else {
            RenameFlags::RENAME_NOREPLACE
        };
        let rename = |flags| {
            renameat2(
                &self.private.fd,
                self.name.as_os_str(),
                &self.parent.fd,
                self.name.as_os_str(),
                flags,
            )
        };
        let renamed = match rename(flags) {
            // Not every filesystem knows the flag; then a look before has to do.
            Err(Errno::EINVAL) if !force => match self.parent.has(&self.name) {
                true => Err(Errno::EEXIST),
                false => rename(RenameFlags::empty()),
            },
            renamed => renamed,
        };
        if renamed == Err(Errno::EEXIST) {
            return Err(occupied(&self.target));
        }
        renamed.with_context(|| format!("give the file its name {}", self.target.display()))
    }

    fn warn_of_rights(&self) -> anyhow::Result<()> {
        let metadata = self.file.metadata().context("examine the new file")?;
        if metadata.permissions().mode() & OTHERS != 0 {
            let shown = self.target.display();
            tracing::warn!("{shown} can be read by others: its filesystem keeps no permissions");
        }
        Ok(())
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let removed = self.private.remove_file(&self.name);
        let removed = removed.and_then(|()| self.parent.remove_directory(&self.private_name));
        if let Err(error) = removed {
            tracing::warn!("cannot remove {}: {error}", self.private.path.display());
        }
    }
}

impl Directory {
    /// The directory `name` in this one, which nobody else can change; made where it is missing.
    fn private(&self, name: &OsString) -> anyhow::Result<Self> {
        let path = self.path.join(name);
        match mkdirat(&self.fd, name.as_os_str(), Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("create {}", path.display())),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = match openat(&self.fd, name.as_os_str(), flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOTDIR | Errno::ELOOP) => return Err(in_the_way(&path)),
            Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
        };
        let metadata = fd
            .metadata()
            .with_context(|| format!("examine {}", path.display()))?;
        if metadata.uid() != geteuid().as_raw() || metadata.permissions().mode() & OTHERS_WRITE != 0 {
            let error = anyhow!("{} can be changed by others", path.display());
            return Err(advised(
                error,
                "remove it if it was there before; otherwise its filesystem keeps no owners: export to another one",
            ));
        }
        Ok(Self { fd, path })
    }

    /// A new file, which nobody else writes.
    fn begin(&self, name: &OsString) -> anyhow::Result<LockedFile> {
        match self.new_file(name) {
            Err(Errno::EEXIST) => self.replace_left_over(name),
            made => locked(made.with_context(|| format!("create a file in {}", self.path.display()))?),
        }
    }

    fn new_file(&self, name: &OsString) -> nix::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        openat(&self.fd, name.as_os_str(), flags, mode).map(File::from)
    }

    /// A new file in the place of what an export left that was killed.
    fn replace_left_over(&self, name: &OsString) -> anyhow::Result<LockedFile> {
        let context = || format!("replace what an earlier export left in {}", self.path.display());
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let old: OwnedFd = openat(&self.fd, name.as_os_str(), flags, Mode::empty()).with_context(context)?;
        let _held = locked(File::from(old))?;
        self.remove_file(name).with_context(context)?;
        locked(self.new_file(name).with_context(context)?)
    }

    fn remove_file(&self, name: &OsString) -> nix::Result<()> {
        unlinkat(&self.fd, name.as_os_str(), UnlinkatFlags::NoRemoveDir)
    }

    fn remove_directory(&self, name: &OsString) -> nix::Result<()> {
        unlinkat(&self.fd, name.as_os_str(), UnlinkatFlags::RemoveDir)
    }

    fn has(&self, name: &OsString) -> bool {
        fstatat(&self.fd, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) != Err(Errno::ENOENT)
    }
}

fn locked(file: File) -> anyhow::Result<LockedFile> {
    match LockedFile::try_lock(file) {
        Ok(file) => Ok(file),
        Err((_, error)) if error.kind() == io::ErrorKind::WouldBlock => {
            bail!("another export is writing this file")
        }
        Err((_, error)) => Err(error).context("lock the new file"),
    }
}

fn in_the_way(path: &Path) -> anyhow::Error {
    let error = anyhow!("{} exists, and is not a directory", path.display());
    advised(
        error,
        "the file is written in a directory of this name: move what is there, or choose another FILE",
    )
}

/// FILE is there already.
pub fn occupied(file: &Path) -> anyhow::Error {
    let error = anyhow!("{} exists", file.display());
    advised(error, "choose another name, or replace it with --force")
}
