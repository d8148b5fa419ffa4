//! The stores of this daemon. Each is opened once and kept while it is used, and one that does not answer holds up only
//! those who asked it.
//!
//! Threads that exist for a store's sake (a sync, the writer of its notes, a purge) use [`Stores::get`] and wait for as
//! long as the store takes. Everybody else asks by [`Stores::begin`]: the question runs on a thread of its own, of which a
//! store has a few, and is waited for no longer than the asker has patience.

use imagefmt::Store;
use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long an action waits for its job's store.
pub const ACTION_PATIENCE: Duration = Duration::from_secs(10);

/// How long the store of a new job is waited for: making one tries what it can do.
pub const CREATE_PATIENCE: Duration = Duration::from_secs(60);

/// How long a view waits for a store.
pub const VIEW_PATIENCE: Duration = Duration::from_secs(1);

/// How long a store may take to answer before users are told that it does not.
const SILENT_AFTER: Duration = Duration::from_secs(5);

/// Questions that a store is asked at the same time; more are refused until one is answered.
const QUESTIONS_MAX: usize = 8;

/// How long a store that nobody asks stays open: its filesystem cannot be unmounted meanwhile.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// How stores are reached; tests have one that hangs.
pub trait Reach: Send + Sync + Debug {
    /// What tells a store from another one at the same path; nothing where there is none.
    fn identity(&self, path: &Path) -> Option<Identity>;

    /// Opens a store.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    fn open(&self, path: &Path) -> imagefmt::Result<Store>;
}

/// Device, inode and time of the file that makes a directory a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    modified: (i64, i64),
}

/// Stores in directories of this machine.
#[derive(Debug)]
pub struct Directories;

impl Reach for Directories {
    fn identity(&self, path: &Path) -> Option<Identity> {
        let found = fs::metadata(path.join("store.json")).ok()?;
        Some(Identity {
            device: found.dev(),
            inode: found.ino(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }

    fn open(&self, path: &Path) -> imagefmt::Result<Store> {
        imagefmt::Store::open(path)
    }
}

/// All stores that were asked for.
#[derive(Debug)]
pub struct Stores {
    reach: Box<dyn Reach>,
    entries: Mutex<BTreeMap<PathBuf, Arc<Entry>>>,
}

/// What is known of one store.
#[derive(Debug, Default)]
struct Entry {
    kept: Mutex<Option<Kept>>,
    questions: AtomicUsize,
    /// When each access began that the store has not answered yet.
    unanswered: Mutex<Vec<Instant>>,
}

#[derive(Debug)]
struct Kept {
    store: Arc<Store>,
    identity: Identity,
    used: Instant,
}

impl Stores {
    /// None is open yet.
    pub fn new(reach: Box<dyn Reach>) -> Arc<Self> {
        Arc::new(Self {
            reach,
            entries: Mutex::default(),
        })
    }

    /// The store in a directory. Waits for as long as its disk takes: for threads that exist for this store.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn get(&self, path: &Path) -> imagefmt::Result<Arc<Store>> {
        let entry = self.entry(path);
        let _access = Access::begin(&entry);
        let mut kept = entry.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Another filesystem may have been mounted there, or the store have been made anew.
        let identity = self.reach.identity(path);
        if let Some(kept) = kept.as_mut().filter(|kept| Some(kept.identity) == identity) {
            kept.used = Instant::now();
            return Ok(kept.store.clone());
        }
        *kept = None;
        let store = Arc::new(self.reach.open(path)?);
        *kept = identity.map(|identity| Kept {
            store: store.clone(),
            identity,
            used: Instant::now(),
        });
        Ok(store)
    }

    /// Asks a store, on a thread of its own.
    pub fn begin<T: Send + 'static>(
        self: &Arc<Self>,
        path: &Path,
        question: impl FnOnce(&Store) -> imagefmt::Result<T> + Send + 'static,
    ) -> Question<T> {
        let (stores, at) = (self.clone(), path.to_owned());
        self.run(path, move || question(&*stores.get(&at)?))
    }

    /// Runs what waits for a store, which need not be one yet, on a thread of its own.
    pub fn run<T: Send + 'static>(
        self: &Arc<Self>,
        path: &Path,
        work: impl FnOnce() -> imagefmt::Result<T> + Send + 'static,
    ) -> Question<T> {
        let entry = self.entry(path);
        let (answer, answers) = sync_channel(1);
        let path = path.to_owned();
        if entry.questions.fetch_add(1, Ordering::Relaxed) >= QUESTIONS_MAX {
            entry.questions.fetch_sub(1, Ordering::Relaxed);
            return Question { path, answers: None };
        }
        let asked = Asked(entry);
        let spawned = thread::Builder::new().name("store".to_owned()).spawn(move || {
            let asked = asked;
            let done = work();
            drop(asked);
            // The caller may have stopped waiting.
            let _ = answer.send(done);
        });
        if let Err(error) = spawned {
            tracing::error!("no thread to ask store {}: {error}", path.display());
        }
        Question {
            path,
            answers: Some(answers),
        }
    }

    /// The stores that somebody has been waiting for, longer than a store that works takes. None of them is asked.
    pub fn silent(&self) -> Vec<Silence> {
        let silence = |(path, entry): (&PathBuf, &Arc<Entry>)| entry.silence(path);
        self.entries().iter().filter_map(silence).collect()
    }

    /// Whether one store is among those.
    pub fn silence_of(&self, path: &Path) -> Option<Silence> {
        self.entries().get(path)?.silence(path)
    }

    /// Closes stores that nobody has asked for some time, so that their filesystems can be unmounted.
    pub fn close_idle(&self) {
        let mut closed = Vec::new();
        self.entries().retain(|_, entry| {
            // One that is being asked is not idle.
            let Ok(mut kept) = entry.kept.try_lock() else {
                return true;
            };
            if kept.as_ref().is_some_and(|kept| kept.used.elapsed() >= IDLE_MAX) {
                closed.extend(kept.take());
            }
            // Nobody can begin to use it while the list is held.
            kept.is_some() || Arc::strong_count(entry) > 1
        });
        // Closing a file may wait for its disk: nobody else may wait for that.
        if !closed.is_empty()
            && let Err(error) = thread::Builder::new()
                .name("close stores".to_owned())
                .spawn(move || drop(closed))
        {
            tracing::warn!("no thread to close stores that are not used: {error}");
        }
    }

    fn entry(&self, path: &Path) -> Arc<Entry> {
        self.entries().entry(path.to_owned()).or_default().clone()
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn silence(&self, path: &Path) -> Option<Silence> {
        let since = self.unanswered().iter().min().copied()?;
        let lasts = since.elapsed();
        (lasts >= SILENT_AFTER).then(|| Silence {
            path: path.to_owned(),
            lasts,
        })
    }

    fn unanswered(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An access that a store has not answered yet.
struct Access<'a> {
    entry: &'a Entry,
    since: Instant,
}

impl<'a> Access<'a> {
    fn begin(entry: &'a Entry) -> Self {
        let since = Instant::now();
        entry.unanswered().push(since);
        Self { entry, since }
    }
}

impl Drop for Access<'_> {
    fn drop(&mut self) {
        let mut unanswered = self.entry.unanswered();
        if let Some(at) = unanswered.iter().position(|since| *since == self.since) {
            unanswered.swap_remove(at);
        }
    }
}

/// A store that does not answer, and for how long it has not.
#[derive(Debug, Clone)]
pub struct Silence {
    pub path: PathBuf,
    lasts: Duration,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "store {} has not answered for {} s: check its disk, or the server that it is on",
            self.path.display(),
            self.lasts.as_secs()
        )
    }
}

/// A thread that asks a store; it is counted until it is done, or dies.
struct Asked(Arc<Entry>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.questions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A question that a store was asked.
#[derive(Debug)]
pub struct Question<T> {
    path: PathBuf,
    answers: Option<Receiver<imagefmt::Result<T>>>,
}

impl<T> Question<T> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// The store's own, or that it does not answer in time: the question goes on then, and its answer is lost.
    pub fn wait(self, patience: Duration) -> Result<T, Unanswered> {
        let Some(answers) = &self.answers else {
            return Err(Unanswered::Late(self.path));
        };
        match answers.recv_timeout(patience) {
            Ok(answer) => answer.map_err(Unanswered::Store),
            Err(RecvTimeoutError::Timeout) => Err(Unanswered::Late(self.path)),
            Err(RecvTimeoutError::Disconnected) => Err(Unanswered::Lost(self.path)),
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// The store's own error.
    Store(imagefmt::Error),
    /// The store does not answer.
    Late(PathBuf),
    /// The thread that asked could not be started, or died.
    Lost(PathBuf),
}

impl Unanswered {
    /// Everything that is known of it, in one line.
    pub fn full_message(&self) -> String {
        match self {
            Self::Store(error) => error.full_message(),
            Self::Late(_) | Self::Lost(_) => self.to_string(),
        }
    }
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => fmt::Display::fmt(error, f),
            Self::Late(path) => write!(
                f,
                "store {} does not answer: check its disk, or the server that it is on",
                path.display()
            ),
            Self::Lost(path) => write!(
                f,
                "store {} could not be asked: this is a bug in smcd, or it has no thread left; its log shows it",
                path.display()
            ),
        }
    }
}

impl std::error::Error for Unanswered {}

#[cfg(test)]
pub mod tests;
