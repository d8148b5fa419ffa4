//! The watchdog: a process of its own that thaws when the time is up, and when the process that froze dies.

mod cgroup;
mod message;
mod process;
mod workers;

pub use cgroup::is_systemd_running;
pub use process::{WatchdogArgs, watch};

use crate::list::List;
use crate::{Error, ErrorKind, OnDisks, Result};
use message::{Answer, Channel, FILESYSTEMS_MAX, Order, Thaws};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a watchdog may take until it says that it is ready, or answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a watchdog is started: a program that calls [`watch`] when it gets these arguments, with more behind them.
#[derive(Debug, Clone)]
pub struct WatchdogProgram {
    /// The program.
    pub program: PathBuf,
    /// Its first arguments.
    pub arguments: Vec<OsString>,
    /// Where the list of what may be frozen is kept.
    pub list_directory: PathBuf,
}

/// A watchdog that runs. It ends when this is dropped.
#[derive(Debug)]
pub struct Watchdog {
    channel: Channel,
    child: Child,
    has_own_cgroup: bool,
    is_locked: bool,
    /// Whether it has not answered once.
    is_lost: bool,
    // Last, so that it stays until the process has ended.
    _list: List,
}

impl Watchdog {
    /// Starts a watchdog for the filesystems that can be frozen. Under systemd it runs in a scope of its own, elsewhere it moves into
    /// a cgroup of its own if it can: so that it goes on when all processes of the service are killed.
    ///
    /// # Errors
    /// `NoWatchdog` when it cannot be started or is not ready in time; `Io` when the list cannot be written.
    pub fn start(program: &WatchdogProgram, found: &OnDisks) -> Result<Watchdog> {
        let to_freeze = || found.filesystems.iter().filter(|one| one.to_freeze().is_some());
        let list = List::write(
            &program.list_directory,
            to_freeze().map(|one| one.mount_point.as_path()),
        )?;
        let mut inherited = vec![own_pidfd().map_err(|error| no_watchdog("start", error))?];
        if to_freeze().count() > FILESYSTEMS_MAX {
            let error = io::ErrorKind::InvalidInput.into();
            return Err(no_watchdog("hand more than 255 filesystems to", error));
        }
        for file in to_freeze().filter_map(|one| one.to_freeze()) {
            let copy = file.try_clone().map_err(|error| no_watchdog("start", error))?;
            inherited.push(copy.into());
        }
        if is_systemd_running() {
            // It fails where systemd cannot be asked, as in a container that has its directory: then as elsewhere.
            if let Ok((child, channel, ready)) = start_process(program, &list, &inherited, true) {
                return Ok(Watchdog::ready(child, channel, ready, list));
            }
        }
        let (child, channel, ready) = start_process(program, &list, &inherited, false)?;
        Ok(Watchdog::ready(child, channel, ready, list))
    }

    fn ready(child: Child, channel: Channel, ready: Ready, list: List) -> Watchdog {
        Watchdog {
            channel,
            child,
            has_own_cgroup: ready.has_own_cgroup,
            is_locked: ready.is_locked,
            is_lost: false,
            _list: list,
        }
    }

    /// Whether it goes on when all processes of the calling process's cgroup are killed.
    pub fn has_own_cgroup(&self) -> bool {
        self.has_own_cgroup
    }

    /// Whether its memory is locked, so that it needs nothing from a disk.
    pub fn is_locked(&self) -> bool {
        self.is_locked
    }

    /// From now on it thaws after `budget`, and when this process dies.
    pub(crate) fn arm(&mut self, budget: Duration) -> Result<()> {
        match self.ask(Order::Arm(budget)) {
            Ok(Answer::Armed) => Ok(()),
            Ok(_) => Err(no_watchdog("understand", io::ErrorKind::InvalidData.into())),
            Err(error) => Err(no_watchdog("reach", error)),
        }
    }

    /// Thaws the first `count` filesystems now; then the watchdog rests.
    ///
    /// The watchdog does it, and not the process that froze: when that is killed in FITHAW, btrfs takes the interrupted read of its
    /// super block for a foreign change, and becomes read-only (seen on 6.18).
    pub(crate) fn thaw(&mut self, count: u8) -> io::Result<Thaws> {
        match self.ask(Order::Thaw(count))? {
            Answer::Thawed(thaws) => Ok(thaws),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn ask(&mut self, order: Order) -> io::Result<Answer> {
        if self.is_lost {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let answer = self
            .channel
            .send(order)
            .and_then(|()| self.channel.answer(PATIENCE));
        // An answer that comes too late would be taken for the next one.
        self.is_lost = answer.is_err();
        answer
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.channel.close();
        let _ = self.child.wait();
        if self.has_own_cgroup {
            cgroup::remove_if_empty();
        }
    }
}

fn no_watchdog(doing: &str, error: io::Error) -> Error {
    let message = format!("cannot {doing} the watchdog that would thaw, so nothing is frozen");
    Error::caused(ErrorKind::NoWatchdog, message, error)
}

/// What a watchdog says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ready {
    has_own_cgroup: bool,
    is_locked: bool,
}

fn start_process(
    program: &WatchdogProgram,
    list: &List,
    inherited: &[OwnedFd],
    is_scope: bool,
) -> Result<(Child, Channel, Ready)> {
    let (channel, theirs) = Channel::pair().map_err(|error| no_watchdog("reach", error))?;
    let descriptors = std::iter::once(theirs.as_fd()).chain(inherited.iter().map(AsFd::as_fd));
    let mut command = command(program, list, descriptors.clone(), is_scope);
    hand_over(
        &mut command,
        descriptors.map(|descriptor| descriptor.as_raw_fd()).collect(),
    );
    let spawned = command.spawn();
    let mut child = spawned.map_err(|error| no_watchdog("start", error))?;
    drop(theirs);
    match channel.answer(PATIENCE) {
        Ok(Answer::Ready {
            has_own_cgroup,
            is_locked,
        }) => {
            let ready = Ready {
                has_own_cgroup: has_own_cgroup || is_scope,
                is_locked,
            };
            Ok((child, channel, ready))
        }
        other => {
            let _ = child.kill();
            let _ = child.wait();
            let error = other.err().unwrap_or_else(|| io::ErrorKind::InvalidData.into());
            Err(no_watchdog("start", error))
        }
    }
}

fn command<'a>(
    program: &WatchdogProgram,
    list: &List,
    descriptors: impl Iterator<Item = BorrowedFd<'a>>,
    is_scope: bool,
) -> Command {
    let mut command = if is_scope {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut command = Command::new("systemd-run");
        command.args(["--scope", "--quiet", "--collect", "--slice=system.slice"]);
        command.arg(format!("--unit=smc-thaw-{}-{number}", std::process::id()));
        command.arg("--").arg(&program.program);
        command
    } else {
        Command::new(&program.program)
    };
    command.args(&program.arguments).arg("--list").arg(list.path());
    if !is_scope {
        command.arg("--own-cgroup");
    }
    for descriptor in descriptors {
        command.arg(descriptor.as_raw_fd().to_string());
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Lets the child have these descriptors, under the same numbers, in a session of its own, which a terminal's Ctrl-C does not reach.
fn hand_over(command: &mut Command, descriptors: Vec<RawFd>) {
    let prepare = move || {
        nix::unistd::setsid()?;
        for &descriptor in &descriptors {
            // SAFETY: the descriptor is open in the parent until the child has been started, and the child is a copy of it.
            let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
            fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only, with memory that was allocated before.
    unsafe { command.pre_exec(prepare) };
}

/// This process, for another one that wants to see it end.
fn own_pidfd() -> io::Result<OwnedFd> {
    let process = nix::unistd::getpid().as_raw();
    // SAFETY: it takes two integers, and returns a new descriptor or a negative number.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
    let descriptor = RawFd::try_from(descriptor)
        .ok()
        .filter(|descriptor| *descriptor >= 0);
    let descriptor = descriptor.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just opened it for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

impl WatchdogProgram {
    /// The running program itself, with these arguments. It is started by its link in `/proc`: an upgrade may have replaced the file
    /// meanwhile.
    pub fn this(arguments: &[&str], list_directory: &Path) -> WatchdogProgram {
        WatchdogProgram {
            program: format!("/proc/{}/exe", std::process::id()).into(),
            arguments: arguments.iter().map(OsString::from).collect(),
            list_directory: list_directory.to_owned(),
        }
    }
}
