//! A cgroup of its own for the watchdog, where systemd does not give it one.

use hostdev::{MountTable, Root};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// All watchdogs are in it.
const NAME: &str = "smc-thaw";

/// Whether systemd manages this machine (sd_booted(3)).
pub fn is_systemd_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Moves this process into a cgroup of its own, below the topmost.
///
/// # Errors
/// Without cgroups of version 2, and where they cannot be changed.
pub fn move_into_own() -> io::Result<()> {
    let own = own_directory().ok_or(io::ErrorKind::NotFound)?;
    match fs::create_dir(&own) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(own.join("cgroup.procs"), "0")
}

/// Removes the cgroup after the last watchdog; the kernel refuses to remove one with processes.
pub fn remove_if_empty() {
    if let Some(own) = own_directory() {
        let _ = fs::remove_dir(own);
    }
}

fn own_directory() -> Option<PathBuf> {
    let table = MountTable::own(&Root::system()).ok()?;
    let mount = table
        .mounts
        .into_iter()
        .find(|mount| mount.fs_type == "cgroup2")?;
    Some(mount.point.join(NAME))
}
