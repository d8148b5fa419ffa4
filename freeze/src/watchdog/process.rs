//! The watchdog's side: what runs in its process.

use super::cgroup;
use super::message::{Answer, Channel, Order};
use super::workers::{Task, Workers};
use crate::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::signal::{SigHandler, Signal, signal};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What a watchdog gets from the process that starts it.
#[derive(Debug, Clone)]
pub struct WatchdogArgs {
    /// The list of what may be frozen, which it removes if that process does not.
    pub list: PathBuf,
    /// Whether it is to move into a cgroup of its own.
    pub own_cgroup: bool,
    /// Numbers of inherited descriptors: the connection, the process (pidfd), and one on each filesystem.
    pub descriptors: Vec<RawFd>,
}

/// Watches the process that started this one, until it has ended or wants no watchdog any more.
///
/// # Errors
/// `Io` when it cannot begin. The process then gets no answer, and freezes nothing.
pub fn watch(args: &WatchdogArgs) -> Result<()> {
    let mut inherited = args.descriptors.iter().map(|&descriptor| take(descriptor));
    let mut next = || inherited.next().unwrap_or_else(|| Err(Errno::EBADF.into()));
    let (channel, process) = (next(), next());
    let channel = Channel::of(channel.map_err(cannot_begin)?);
    let process = process.map_err(cannot_begin)?;
    let filesystems = inherited.collect::<io::Result<Vec<_>>>().map_err(cannot_begin)?;
    let workers = Workers::start(filesystems).map_err(cannot_begin)?;
    let ready = prepare(args.own_cgroup);
    channel.say(ready).map_err(cannot_begin)?;
    let mut watch = Watch {
        channel: Some(channel),
        process,
        workers,
        deadline: None,
        is_armed: false,
    };
    while watch.step() {}
    let task = if watch.is_armed { Task::Finish } else { Task::End };
    watch.workers.end(task);
    let _ = fs::remove_file(&args.list);
    Ok(())
}

fn cannot_begin(error: io::Error) -> Error {
    Error::os("begin to watch", error)
}

/// Takes over a descriptor that was inherited.
fn take(descriptor: RawFd) -> io::Result<OwnedFd> {
    if descriptor <= libc::STDERR_FILENO {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: the borrow ends with the call, which fails if there is no such descriptor.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open, as the call has shown, and was handed over to us alone: this process has just begun, and opened nothing
    // by this number.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Makes this process as hard to stop as it can be. Each of it is worth having without the others.
fn prepare(own_cgroup: bool) -> Answer {
    for ignored in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: ignoring a signal runs no code of ours.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    // It is the last that may be killed when memory is short.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    // SAFETY: it takes plain integers.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    Answer::Ready {
        has_own_cgroup: own_cgroup && cgroup::move_into_own().is_ok(),
        is_locked: mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE).is_ok(),
    }
}

struct Watch {
    /// `None` when the other end is closed.
    channel: Option<Channel>,
    process: OwnedFd,
    workers: Workers,
    /// When the workers begin to thaw.
    deadline: Option<Instant>,
    /// Whether the process may have frozen something.
    is_armed: bool,
}

impl Watch {
    /// Waits for the next thing to happen, and does what is to be done. Returns whether there is more to watch.
    fn step(&mut self) -> bool {
        let (has_order, has_ended) = self.wait();
        // The last order may have come just before the end.
        if has_order {
            return self.obey();
        }
        if has_ended {
            return false;
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.deadline = None;
            self.workers.set(Task::Repeat);
        }
        true
    }

    /// Waits for an order, the end of the process, or the deadline.
    fn wait(&self) -> (bool, bool) {
        let process = self.process.as_fd();
        let channel = self.channel.as_ref().map(Channel::as_fd);
        // Without a channel, the process is looked at twice.
        let mut descriptors = [process, channel.unwrap_or(process)]
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
        let _ = poll(&mut descriptors, self.timeout());
        let [has_ended, has_order] = descriptors.map(|ready| ready.any().unwrap_or(false));
        (has_order && channel.is_some(), has_ended)
    }

    fn timeout(&self) -> PollTimeout {
        let Some(deadline) = self.deadline else {
            return PollTimeout::NONE;
        };
        // In whole milliseconds, up: a wait that ends before the deadline would be repeated at once.
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    fn obey(&mut self) -> bool {
        let Some(channel) = &self.channel else { return true };
        match channel.order() {
            Ok(Some(Order::Arm(budget))) => {
                self.workers.rest();
                self.deadline = Some(Instant::now() + budget);
                self.is_armed = true;
                // A process that does not hear it freezes nothing.
                let _ = channel.say(Answer::Armed);
            }
            Ok(Some(Order::Thaw(count))) => {
                self.deadline = None;
                let thaws = self.workers.thaw(count);
                let is_thawed = |error: &u8| matches!(i32::from(*error), 0 | libc::EINVAL);
                self.is_armed = !thaws.errors.iter().all(is_thawed);
                if self.is_armed {
                    self.workers.set(Task::Repeat);
                }
                let _ = channel.say(Answer::Thawed(thaws));
            }
            Ok(None) | Err(_) => {
                // It is about to end, or wants nothing more. What it has frozen has no owner any more.
                self.channel = None;
                if !self.is_armed {
                    return false;
                }
                self.workers.set(Task::Repeat);
            }
        }
        true
    }
}
