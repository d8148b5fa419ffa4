//! Threads that thaw, one for each filesystem: thawing one may wait, and the others must not.

use super::message::{FILESYSTEMS_MAX, Thaws};
use crate::ioctl;
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Between two tries to thaw what is not frozen: something may still freeze it.
const AGAIN: Duration = Duration::from_millis(2);

/// Between two tries after an error.
const AFTER_ERROR: Duration = Duration::from_millis(10);

/// How often thawing may fail before a worker gives up: half a minute.
const FAILURES_MAX: u32 = 3000;

/// A worker makes one system call at a time; its stack is locked in memory.
const STACK_BYTES: usize = 64 << 10;

/// What the workers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Nothing.
    Rest,
    /// Thaw again and again: something may still freeze.
    Repeat,
    /// Thaw until nothing is frozen, and end.
    Finish,
    /// End.
    End,
}

#[derive(Debug)]
struct State {
    task: Task,
    /// How many are just thawing.
    busy: usize,
    has_thawed: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The workers.
#[derive(Debug)]
pub struct Workers {
    shared: Arc<Shared>,
    filesystems: Arc<[OwnedFd]>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts a worker for each filesystem.
    pub fn start(filesystems: Vec<OwnedFd>) -> io::Result<Workers> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                task: Task::Rest,
                busy: 0,
                has_thawed: false,
            }),
            changed: Condvar::new(),
        });
        let filesystems: Arc<[OwnedFd]> = filesystems.into();
        let start = |place: usize| {
            let (shared, filesystems) = (Arc::clone(&shared), Arc::clone(&filesystems));
            Builder::new()
                .name("thaw".to_owned())
                .stack_size(STACK_BYTES)
                .spawn(move || work(&filesystems[place], &shared))
        };
        let threads = (0..filesystems.len()).map(start).collect::<io::Result<_>>()?;
        Ok(Workers {
            shared,
            filesystems,
            threads,
        })
    }

    /// Thaws the first `count` filesystems in the calling thread, those last that were frozen first, after the workers have come to
    /// rest.
    pub fn thaw(&self, count: u8) -> Thaws {
        let mut thaws = Thaws {
            has_timed_out: self.rest(),
            errors: [0; FILESYSTEMS_MAX],
        };
        let frozen = self.filesystems.iter().zip(&mut thaws.errors).take(count.into());
        for (file, error) in frozen.rev() {
            let thawed = ioctl::thaw(file.as_fd());
            *error = thawed.map_or_else(|errno| u8::try_from(errno as i32).unwrap_or(u8::MAX), |()| 0);
        }
        thaws
    }

    /// Gives them all a task.
    pub fn set(&self, task: Task) {
        self.shared.lock().task = task;
        self.shared.changed.notify_all();
    }

    /// Lets them rest, and waits until none is thawing any more. Returns whether one has thawed something since the last time.
    pub fn rest(&self) -> bool {
        self.set(Task::Rest);
        let mut state = self.shared.lock();
        while state.busy > 0 {
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::take(&mut state.has_thawed)
    }

    /// Gives them their last task, and waits until it is done.
    pub fn end(self, task: Task) {
        self.set(task);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

fn work(file: &OwnedFd, shared: &Shared) {
    let mut failures = 0;
    let mut state = shared.lock();
    loop {
        let task = state.task;
        match task {
            Task::End => return,
            Task::Rest => {
                state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            Task::Repeat | Task::Finish => {}
        }
        state.busy += 1;
        drop(state);
        let thawed = ioctl::thaw(file.as_fd());
        state = shared.lock();
        state.busy -= 1;
        shared.changed.notify_all();
        let pause = match thawed {
            Ok(()) => {
                state.has_thawed = true;
                continue;
            }
            Err(Errno::EINVAL) if task == Task::Finish => return,
            Err(Errno::EINVAL) => AGAIN,
            Err(_) if failures == FAILURES_MAX => return,
            Err(_) => {
                failures += 1;
                AFTER_ERROR
            }
        };
        let waited = shared.changed.wait_timeout(state, pause);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}
