//! What is pinned where, in a directory of bpffs.

use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blockio::LockedFile;
use hostdev::Root;

use crate::layout::{PROGRAMS, SHARED_MAPS};
use crate::{Error, ErrorKind, Result, sys};

/// The maps that all disks share, as the programs name them.
pub(crate) const MAPS: [&str; SHARED_MAPS] = [
    "control",
    "devices",
    "disks",
    "stats",
    "processors",
    "bios",
    "live",
];

/// The programs, and the tracepoints that they are attached to.
pub(crate) const TRACEPOINTS: [(&str, &str); PROGRAMS] = [
    ("request_0", "block_rq_complete"),
    ("request_1", "block_rq_complete"),
    ("request_2", "block_rq_complete"),
    ("bio_0", "block_bio_complete"),
    ("bio_1", "block_bio_complete"),
    ("bio_2", "block_bio_complete"),
    ("queue", "block_bio_queue"),
];

/// What is remembered of programs that the kernel refused; no part of a tracker.
pub(crate) const REFUSAL: &str = "refusal";

/// How long others are waited for: to load and attach all programs takes a second.
const PATIENCE: Duration = Duration::from_secs(60);

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// A directory in bpffs with everything that is pinned for smc.
#[derive(Debug, Clone)]
pub(crate) struct Pins {
    directory: PathBuf,
}

impl Pins {
    pub(crate) fn new(directory: &Path) -> Pins {
        Pins {
            directory: directory.to_owned(),
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(format!("program-{name}"))
    }

    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.directory.join(format!("link-{name}"))
    }

    /// The directory of a watch.
    pub(crate) fn watch(&self, slot: u32) -> PathBuf {
        self.directory.join(format!("disk-{slot}"))
    }

    /// The slots that have a directory.
    pub(crate) fn slots(&self) -> Result<Vec<u32>> {
        let mut slots: Vec<u32> = self
            .names()?
            .iter()
            .filter_map(|name| name.strip_prefix("disk-")?.parse().ok())
            .collect();
        slots.sort_unstable();
        Ok(slots)
    }

    /// Whether anything of a tracker is there.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        Ok(self.names()?.iter().all(|name| name == REFUSAL))
    }

    /// Everything in the directory; nothing if there is none.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let fail = |error| Error::os(format_args!("list {}", self.directory.display()), error);
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(fail)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry.map_err(fail)?.file_name().into_string().ok());
        }
        Ok(names)
    }

    /// Whether the directory is, or can be made, on a bpffs that can be written to.
    ///
    /// # Errors
    /// `Unsupported`: it is not, and what to do; `Io`.
    pub(crate) fn check(&self) -> Result<()> {
        let directory = self.directory.display();
        let existing = Root::system()
            .existing_ancestor(&self.directory)
            .map_err(|error| {
                Error::with_source(ErrorKind::Io, format!("cannot examine {directory}"), error)
            })?;
        let fail = |error| Error::os(format_args!("examine {}", existing.display()), error);
        if !is_bpffs(&existing).map_err(fail)? {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{directory} is not on a BPF filesystem: mount one with 'mount -t bpf bpf /sys/fs/bpf'"
                ),
            ));
        }
        sys::check_writable(&existing)
            .map_err(|error| Error::os(format_args!("write to {}", existing.display()), error))
    }

    /// Makes the directory, on a bpffs.
    pub(crate) fn create(&self) -> Result<()> {
        self.check()?;
        fs::create_dir_all(&self.directory)
            .map_err(|error| Error::os(format_args!("create {}", self.directory.display()), error))
    }

    /// Waits until nobody else begins, ends or looks for watches.
    pub(crate) fn lock(&self) -> Result<LockedFile> {
        let fail = |error| Error::os(format_args!("lock {}", self.directory.display()), error);
        let file = File::open(&self.directory).map_err(fail)?;
        let end = Instant::now() + PATIENCE;
        LockedFile::lock_while(file, || Instant::now() < end).map_err(|(_, error)| fail(error))
    }
}

fn is_bpffs(directory: &Path) -> io::Result<bool> {
    let file = File::open(directory)?;
    let mut status = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open, and the kernel fills the structure.
    if unsafe { libc::fstatfs(file.as_raw_fd(), status.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstatfs has filled it.
    let status = unsafe { status.assume_init() };
    Ok(status.f_type == BPF_FS_MAGIC)
}

/// Opens a pin. What is missing is `Incomplete`.
pub(crate) fn open(path: &Path) -> Result<OwnedFd> {
    sys::open_pin(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::new(
            ErrorKind::Incomplete,
            format!("{} is missing: somebody removed it", path.display()),
        ),
        _ => Error::os(format_args!("open {}", path.display()), error),
    })
}

/// Removes a directory of pins with what is in it.
pub(crate) fn remove_all(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|error| Error::os(format_args!("remove {}", directory.display()), error)),
    }
}
