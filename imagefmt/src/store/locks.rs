//! The locks of a store: a reader of an image, the writer of a chain and a process that frees its space each hold one.

use crate::error::{Error, ErrorKind, Result};
use crate::format::name::ImageId;
use crate::storage::paths::{manifest_path, reclaim_lock_path, writer_lock_path};
use crate::storage::{Lock, LockMode};
use crate::store::Store;
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How often an image that somebody is deleting is tried to be locked, and how long is waited in between.
const HOLD_TRIES: u32 = 20;
const HOLD_PAUSE: Duration = Duration::from_millis(25);

/// How often a chain's reclaim lock is tried while another process holds it: it holds it for moments, or for long.
const RECLAIM_PAUSE_MIN: Duration = Duration::from_millis(1);
const RECLAIM_PAUSE_MAX: Duration = Duration::from_millis(50);

/// How long a process waits for that lock before it says so.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// What happens while the lock is waited for under which a chain's space is freed: the process that holds it may be suspended.
pub trait LockWait: Send + Sync + Debug {
    /// Whether the lock is still wanted. Asked many times a second.
    fn is_wanted(&self) -> bool;

    /// Says what is waited for once that takes longer than a second, and again if another process holds the lock
    /// meanwhile; `None` when the wait is over.
    fn held_up(&self, by: Option<&str>);
}

/// Waits for as long as it takes, and says so in the log.
#[derive(Debug)]
pub(crate) struct WaitAndLog;

impl LockWait for WaitAndLog {
    fn is_wanted(&self) -> bool {
        true
    }

    fn held_up(&self, by: Option<&str>) {
        if let Some(by) = by {
            tracing::warn!("{by}");
        }
    }
}

impl Store {
    /// Locks an image against deletion without opening it.
    ///
    /// A deletion locks it for moments: then it is gone, or it was refused and can be locked.
    ///
    /// # Errors
    /// `NotFound` when there is no such image, `Busy` when it is being deleted for long.
    pub fn hold(&self, image: &ImageId) -> Result<Lock> {
        let path = manifest_path(image.chain(), image.sequence());
        let mut tries = 0;
        loop {
            match self.storage().lock(&path, LockMode::Shared) {
                Err(error) if error.kind() == ErrorKind::Busy && tries < HOLD_TRIES => {
                    tries += 1;
                    std::thread::sleep(HOLD_PAUSE);
                }
                lock => return lock.map_err(|error| error.of_image("lock image", image)),
            }
        }
    }

    /// Who has an image open, each in words for people, as far as /proc tells.
    pub fn held_by(&self, image: &ImageId) -> Vec<String> {
        self.storage()
            .holders(&manifest_path(image.chain(), image.sequence()))
    }

    /// Tries to become the writer of a chain, for `job`.
    ///
    /// # Errors
    /// `Busy`, naming who holds it, while a sync or a collection of garbage runs.
    pub(crate) fn lock_writer(&self, chain: &str, job: &str) -> Result<Lock> {
        let path = writer_lock_path(chain);
        let locked = self.storage().lock(&path, LockMode::ExclusiveCreate);
        locked.map_err(|error| {
            if error.kind() != ErrorKind::Busy {
                return error.within(format!("lock job {job}"));
            }
            error.within(self.who_writes(chain, job))
        })
    }

    /// Why `job` cannot write now: the chain may be written to for another job that it shares it with.
    fn who_writes(&self, chain: &str, job: &str) -> String {
        let by = self.holders_of(&writer_lock_path(chain));
        let by = by.unwrap_or_else(|| "another process".to_owned());
        match self.owner(chain) {
            Ok(owner) if owner != job => format!(
                "job {job} has a chain in common with job {owner}, and that is being synced or cleaned up by {by}: \
                 wait until it is done"
            ),
            _ => format!("job {job} is being synced or cleaned up by {by}: wait until it is done"),
        }
    }

    /// Waits for the lock under which roots are changed and space is freed, as long as [`LockWait`] says.
    ///
    /// # Errors
    /// `Busy`, naming who holds it, when it is no longer wanted.
    pub(crate) fn lock_reclaim(&self, chain: &str) -> Result<Lock> {
        let begun = Instant::now();
        let mut reported: Option<String> = None;
        let mut next_look = TELL_AFTER;
        let locked = loop {
            match self.reclaim_lock(chain) {
                Err(error) if error.kind() == ErrorKind::Busy && self.lock_wait().is_wanted() => {}
                locked => break locked,
            }
            // To find out who holds the lock takes a look at all of /proc.
            if begun.elapsed() >= next_look {
                next_look = begun.elapsed() + TELL_AFTER;
                let now = format!("waiting until {} has finished", self.who_reclaims(chain));
                if reported.as_ref() != Some(&now) {
                    self.lock_wait().held_up(Some(&now));
                    reported = Some(now);
                }
            }
            // A lock that is held for a moment only is waited for in small steps.
            std::thread::sleep((begun.elapsed() / 4).clamp(RECLAIM_PAUSE_MIN, RECLAIM_PAUSE_MAX));
        };
        if reported.is_some() {
            self.lock_wait().held_up(None);
        }
        locked.map_err(|error| {
            if error.kind() != ErrorKind::Busy {
                return error;
            }
            error.within(format!(
                "chain {chain} is locked by {}: wait until it is done",
                self.who_reclaims(chain)
            ))
        })
    }

    /// The same without waiting; nothing while another process holds it, which [`who_reclaims`](Self::who_reclaims)
    /// names.
    ///
    /// # Errors
    /// When the chain cannot be locked for another reason.
    pub(crate) fn try_lock_reclaim(&self, chain: &str) -> Result<Option<Lock>> {
        match self.reclaim_lock(chain) {
            Err(error) if error.kind() == ErrorKind::Busy => Ok(None),
            locked => locked.map(Some),
        }
    }

    fn reclaim_lock(&self, chain: &str) -> Result<Lock> {
        let locked = self
            .storage()
            .lock(&reclaim_lock_path(chain), LockMode::ExclusiveCreate);
        locked.map_err(|error| match error.kind() {
            ErrorKind::Busy => error,
            _ => error.within(format!("lock chain {chain}")),
        })
    }

    /// The process that frees space in a chain, in words.
    pub(crate) fn who_reclaims(&self, chain: &str) -> String {
        let by = self.holders_of(&reclaim_lock_path(chain));
        by.unwrap_or_else(|| "another process".to_owned())
    }

    /// Locks an image that is to be deleted.
    pub(crate) fn lock_for_deletion(&self, image: &ImageId) -> Result<Lock> {
        let path = manifest_path(image.chain(), image.sequence());
        let locked = self.storage().lock(&path, LockMode::Exclusive);
        locked.map_err(|error| {
            if error.kind() != ErrorKind::Busy {
                return error.of_image("delete image", image);
            }
            let by = self.holders_of(&path);
            let by = by.map_or_else(String::new, |by| format!(" by {by}"));
            let what = format!("is in use{by}: it can be deleted when nobody reads it");
            Error::refused(ErrorKind::InUse, image, &what)
        })
    }

    fn holders_of(&self, path: &str) -> Option<String> {
        let holders = self.storage().holders(path);
        (!holders.is_empty()).then(|| holders.join(", "))
    }
}
