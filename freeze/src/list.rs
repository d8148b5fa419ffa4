//! Which filesystems a process may have frozen: a file below `/run`, for the case that neither it nor its watchdog thaws them.

use crate::{Error, ErrorKind, Result, ioctl};
use hostdev::{ProcessStat, Root};
use nix::errno::Errno;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where the lists of the service are.
pub const LIST_DIRECTORY: &str = "/run/smc/freeze";

/// How often a filesystem is thawed before it counts as one that somebody freezes again and again.
const THAWS_MAX: u32 = 100;

/// A list on the disk; removed when dropped.
///
/// The fields end with a NUL byte each: the process, when it started (proc_pid_stat(5), `starttime`), and the paths.
#[derive(Debug)]
pub struct List {
    path: PathBuf,
}

impl List {
    /// Writes the list of the calling process.
    pub fn write<'a>(directory: &Path, paths: impl Iterator<Item = &'a Path>) -> Result<List> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory);
        made.map_err(|error| Error::os(format_args!("create {}", directory.display()), error))?;
        let process = std::process::id();
        let name = format!("{process}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let list = List {
            path: directory.join(name),
        };
        let started = start_of(process)?.unwrap_or_default();
        let mut content = format!("{process}\0{started}\0").into_bytes();
        for path in paths {
            content.extend_from_slice(path.as_os_str().as_bytes());
            content.push(0);
        }
        let written = fs::write(&list.path, content);
        written.map_err(|error| Error::os(format_args!("write {}", list.path.display()), error))?;
        Ok(list)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // One that stays names a process that has ended, and filesystems that are not frozen.
        let _ = fs::remove_file(&self.path);
    }
}

/// Thaws what processes left frozen that have ended: of all lists in a directory whose processes are gone. Returns the mount points
/// of what was frozen.
///
/// # Errors
/// `Io` when a list cannot be read, or a filesystem cannot be thawed; the others have been thawed all the same.
pub fn thaw_listed(directory: &Path) -> Result<Vec<PathBuf>> {
    let cannot = |error| Error::os(format_args!("list {}", directory.display()), error);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(cannot)?,
    };
    let (mut thawed, mut failed) = (Vec::new(), Ok(()));
    for entry in entries {
        let path = entry.map_err(cannot)?.path();
        match thaw_list(&path, &mut thawed) {
            Ok(()) => {}
            Err(error) => failed = Err(error),
        }
    }
    failed.map(|()| thawed)
}

fn thaw_list(path: &Path, thawed: &mut Vec<PathBuf>) -> Result<()> {
    let content = match fs::read(path) {
        // Its process has ended meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        content => content.map_err(|error| Error::os(format_args!("read {}", path.display()), error))?,
    };
    let mut fields = content.split(|byte| *byte == 0).filter(|field| !field.is_empty());
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse::<u64>().ok();
    let (Some(process), Some(started)) = (number(), number()) else {
        return Err(Error::os(
            format_args!("understand {}", path.display()),
            io::Error::from(io::ErrorKind::InvalidData),
        ));
    };
    if let Ok(process) = u32::try_from(process)
        && start_of(process)? == Some(started)
    {
        return Ok(());
    }
    for field in fields {
        let mount_point = Path::new(OsStr::from_bytes(field));
        if thaw(mount_point)? {
            thawed.push(mount_point.to_owned());
        }
    }
    fs::remove_file(path).map_err(|error| Error::os(format_args!("remove {}", path.display()), error))
}

/// Thaws a filesystem until it is not frozen; says whether it was.
fn thaw(mount_point: &Path) -> Result<bool> {
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(mount_point);
    let file = match opened {
        // A filesystem that is frozen cannot be unmounted.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file.map_err(|error| Error::os(format_args!("open {}", mount_point.display()), error))?,
    };
    for tries in 0..THAWS_MAX {
        match ioctl::thaw(file.as_fd()) {
            Ok(()) => {}
            Err(Errno::EINVAL) => return Ok(tries > 0),
            Err(errno) => return Err(Error::os(format_args!("thaw {}", mount_point.display()), errno)),
        }
    }
    Ok(true)
}

/// When a process started, in clock ticks since the boot; `None` if there is none.
fn start_of(process: u32) -> Result<Option<u64>> {
    let stat = ProcessStat::read(&Root::system(), process);
    let stat = stat.map_err(|error| {
        let message = format!("cannot find out whether process {process} runs");
        Error::caused(ErrorKind::Io, message, error)
    })?;
    Ok(stat.map(|stat| stat.started))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use testkit::guard::ScratchDir;

    #[test]
    fn a_list_of_a_living_process_is_left_alone_and_goes_with_it() {
        let scratch = ScratchDir::new("freeze-list").unwrap();
        let directory = scratch.join("lists");
        assert_eq!(thaw_listed(&directory).unwrap(), [""; 0].map(PathBuf::from));
        let list = List::write(&directory, std::iter::once(Path::new("/proc"))).unwrap();
        assert!(thaw_listed(&directory).unwrap().is_empty());
        assert!(list.path().exists());
        let path = list.path().to_owned();
        drop(list);
        assert!(!path.exists());
    }

    #[test]
    fn a_list_of_a_dead_process_is_worked_off_and_nonsense_is_an_error() {
        let scratch = ScratchDir::new("freeze-list").unwrap();
        // A process of this number that started at another time is another process.
        let stale = format!("{}\x001\x00/no/such/directory\x00", std::process::id());
        let stale = scratch.file("1-0", stale.as_bytes()).unwrap();
        assert!(thaw_listed(scratch.path()).unwrap().is_empty());
        assert!(!stale.exists());
        scratch.file("2-0", b"what").unwrap();
        assert!(thaw_listed(scratch.path()).is_err());
    }
}
