//! What a process that serves an image gives up once everything it needs is open.
//!
//! Three fences, each of which holds where another has a gap:
//!
//! - *Privileges*: no capability but to read every file, no other user's identity to go back to, nothing gained by exec.
//! - *Landlock*: files are read below the store and nowhere else; nothing is written, created or executed; no TCP
//!   connection is made. It sees what io_uring does on the process's behalf, and holds for any way to open a file.
//! - *seccomp*: system calls that serving does not need fail. It does not see operations inside an io_uring, nor what
//!   `openat2` is asked for, which lies in memory: there, Landlock is the fence. On a kernel without Landlock, a
//!   process that was taken over could so still write files that its user may write.
//!
//! Descriptors that are open already stay as they are: listening sockets, the file of an overlay, stdio.

mod files;
mod privileges;
mod syscalls;
#[cfg(test)]
mod tests;

use anyhow::{Context, bail};
use nix::unistd::User;
use restore::apart::parent_of;
use std::fs;
use std::path::{Path, PathBuf};

/// What is left to a process.
#[derive(Debug)]
pub struct Confinement<'a> {
    /// The store: everything below it can be read.
    pub store: &'a Path,
    /// Files of Unix sockets, which can be removed; so can other files beside them.
    pub sockets: &'a [PathBuf],
    /// Whom to become; `None`: stay who we are.
    pub user: Option<&'a User>,
}

impl Confinement<'_> {
    /// Confines the process, for good. What the kernel cannot do is told as a warning.
    ///
    /// Fails where this is not the process's only thread: threads that run already would stay as they are.
    ///
    /// # Errors
    /// Where this is not the process's only thread, and where the kernel refuses what it can do.
    pub fn apply(&self) -> anyhow::Result<()> {
        only_thread()?;
        self.fence_in()
    }

    /// Confines this thread and those that it starts.
    fn fence_in(&self) -> anyhow::Result<()> {
        let dirs: Vec<&Path> = self.sockets.iter().map(|socket| parent_of(socket)).collect();
        privileges::reduce(self.user, &dirs)?;
        files::restrict(self.store, &dirs)?;
        syscalls::restrict(!dirs.is_empty())
    }
}

/// Looks up a user by name.
///
/// # Errors
/// Where there is none, or the system's list of users cannot be read.
pub fn user(name: &str) -> anyhow::Result<User> {
    let found = User::from_name(name).with_context(|| format!("look up user {name}"))?;
    found.with_context(|| format!("there is no user {name}"))
}

fn only_thread() -> anyhow::Result<()> {
    // Without /proc there is nothing to count.
    match fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(threads) if threads > 1 => bail!("{threads} threads run already, which could not be confined"),
        _ => Ok(()),
    }
}
