//! With which I/O priority a disk is read: whether reads wait for those of others.

use std::io;
use std::sync::Once;

/// An I/O priority, as ionice(1) sets it for a process.
///
/// Only some I/O schedulers look at it: bfq, and mq-deadline at its class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IoPriority {
    /// That of the thread which reads.
    #[default]
    Inherited,
    /// Class `best-effort`, with a level from 0 (served first) to 7.
    BestEffort(u8),
    /// Class `idle`: served when nobody else wants to read or write.
    Idle,
}

/// `IOPRIO_CLASS_SHIFT` and the classes of `linux/ioprio.h`.
const CLASS_SHIFT: u16 = 13;
const CLASS_BEST_EFFORT: u16 = 2;
const CLASS_IDLE: u16 = 3;
const LEVEL_LAST: u8 = 7;

/// `IOPRIO_WHO_PROCESS`: one thread.
const WHO_THREAD: libc::c_int = 1;
/// The thread that calls.
const THIS_THREAD: libc::c_int = 0;

impl IoPriority {
    /// The kernel's number; 0 is that of the thread.
    pub(crate) fn to_kernel(self) -> u16 {
        match self {
            IoPriority::Inherited => 0,
            IoPriority::BestEffort(level) => {
                CLASS_BEST_EFFORT << CLASS_SHIFT | u16::from(level.min(LEVEL_LAST))
            }
            IoPriority::Idle => CLASS_IDLE << CLASS_SHIFT,
        }
    }

    /// The inverse of [`to_kernel`](Self::to_kernel).
    pub(crate) fn from_kernel(number: u16) -> IoPriority {
        match number >> CLASS_SHIFT {
            CLASS_BEST_EFFORT => {
                IoPriority::BestEffort(u8::try_from(number & u16::from(LEVEL_LAST)).unwrap_or(LEVEL_LAST))
            }
            CLASS_IDLE => IoPriority::Idle,
            _ => IoPriority::Inherited,
        }
    }

    /// What the calling thread reads or writes in `work` has this priority.
    pub fn within<R>(self, work: impl FnOnce() -> R) -> R {
        let mut thread = ThreadPriority::default();
        thread.set(self);
        work()
    }
}

/// Changes the I/O priority of one thread when it has to. Dropping it gives the thread back the one it had.
#[derive(Debug, Default)]
pub(crate) struct ThreadPriority {
    /// What the thread had before, from the first change on.
    own: Option<libc::c_int>,
    current: IoPriority,
}

impl ThreadPriority {
    /// Sets the priority of what the calling thread does from now on. Where the kernel refuses, it keeps its own.
    pub(crate) fn set(&mut self, wanted: IoPriority) {
        if wanted == self.current {
            return;
        }
        // Also where the kernel refuses: it need not be asked for each read.
        self.current = wanted;
        let changed = self.own().and_then(|own| match wanted {
            IoPriority::Inherited => set_number(own),
            _ => set_number(wanted.to_kernel().into()),
        });
        if let Err(error) = changed {
            static ONCE: Once = Once::new();
            ONCE.call_once(
                || tracing::warn!(%error, "the kernel sets no I/O priority; disks are read without it"),
            );
        }
    }

    fn own(&mut self) -> io::Result<libc::c_int> {
        if let Some(own) = self.own {
            return Ok(own);
        }
        let own = number()?;
        Ok(*self.own.insert(own))
    }
}

impl Drop for ThreadPriority {
    fn drop(&mut self) {
        self.set(IoPriority::Inherited);
    }
}

/// The kernel's number for the priority of the calling thread.
pub(crate) fn number() -> io::Result<libc::c_int> {
    // SAFETY: it takes numbers only.
    let number = unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_THREAD, THIS_THREAD) };
    libc::c_int::try_from(number)
        .ok()
        .filter(|&number| number >= 0)
        .ok_or_else(io::Error::last_os_error)
}

fn set_number(number: libc::c_int) -> io::Result<()> {
    // SAFETY: it takes numbers only, and changes nothing but the priority of the calling thread.
    match unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_THREAD, THIS_THREAD, number) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::{IoPriority, ThreadPriority, number};

    const ALL: [IoPriority; 4] = [
        IoPriority::Inherited,
        IoPriority::BestEffort(0),
        IoPriority::BestEffort(7),
        IoPriority::Idle,
    ];

    #[test]
    fn numbers_are_those_of_the_kernel() {
        assert_eq!(ALL.map(IoPriority::to_kernel), [0, 0x4000, 0x4007, 0x6000]);
        assert_eq!(ALL.map(|one| IoPriority::from_kernel(one.to_kernel())), ALL);
    }

    #[test]
    fn a_thread_has_the_priority_that_was_set_and_its_own_again_afterwards() {
        let own = number().unwrap();
        let mut thread = ThreadPriority::default();
        for priority in ALL.into_iter().rev() {
            thread.set(priority);
            let expected = match priority {
                IoPriority::Inherited => own,
                _ => priority.to_kernel().into(),
            };
            assert_eq!(number().unwrap(), expected, "{priority:?}");
        }
        thread.set(IoPriority::Idle);
        drop(thread);
        assert_eq!(number().unwrap(), own);
        let inside = IoPriority::Idle.within(|| number().unwrap());
        assert_eq!((inside, number().unwrap()), (0x6000, own));
    }
}
