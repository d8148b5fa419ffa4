//! The simulated disk as a store sees it: every operation is counted, can fail, and is remembered until a
//! sync makes it durable.

use super::fs::{Change, Content, Fs, Ino, Node};
use super::media::{FsModel, Media};
use crate::error::{Error, Result};
use crate::storage::{BLOCK_LEN, LayerAppend, LayerRead, Lock, LockMode, Storage};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    List,
    OpenLayer,
    ReadAt,
    Stat,
    Lock,
    CreateDir,
    Create,
    Write,
    SyncFile,
    Rename,
    Remove,
    SyncDir,
    Punch,
}

impl Kind {
    /// Whether it can change what is on the disk: only there a power cut makes a difference.
    pub fn changes(self) -> bool {
        !matches!(
            self,
            Self::Read | Self::List | Self::OpenLayer | Self::ReadAt | Self::Stat | Self::Lock
        )
    }

    pub fn takes_space(self) -> bool {
        matches!(
            self,
            Self::CreateDir | Self::Create | Self::Write | Self::SyncFile
        )
    }
}

/// One operation that was asked for.
#[derive(Debug, Clone)]
pub struct Op {
    pub kind: Kind,
    pub path: String,
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// EIO, and nothing was done.
    Eio,
    /// ENOSPC, and nothing was done.
    Enospc,
    /// EINTR, and nothing was done.
    Eintr,
    /// EACCES: it cannot be read.
    Eacces,
    /// ESTALE: a server does not know the file any more.
    Estale,
    /// EMFILE: too many files are open.
    Emfile,
    /// A write takes some of the bytes, and then the disk is full.
    Short,
    /// EIO, but it was done all the same.
    Late,
    /// A sync fails and what it was to write is lost, though it still reads as written (fsyncgate).
    SyncLost,
    /// The same, and the page cache has dropped it as well.
    SyncEvicted,
    /// The power is off from here on.
    PowerOff,
}

impl Failure {
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::Eio, "eio"),
        (Self::Enospc, "enospc"),
        (Self::Eintr, "eintr"),
        (Self::Eacces, "eacces"),
        (Self::Estale, "estale"),
        (Self::Emfile, "emfile"),
        (Self::Short, "short"),
        (Self::Late, "late"),
        (Self::SyncLost, "sync-lost"),
        (Self::SyncEvicted, "sync-evicted"),
        (Self::PowerOff, "power-off"),
    ];

    pub fn name(self) -> &'static str {
        let mut all = Self::ALL.into_iter();
        all.find(|(failure, _)| *failure == self)
            .map_or("", |(_, name)| name)
    }

    pub fn from_name(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|(_, known)| *known == name).map(|(failure, _)| failure)
    }

    /// Whether an operation can fail like this, and whether the failure can be one that stays.
    pub fn fits(self, kind: Kind, sticky: bool) -> bool {
        match self {
            Self::Eio => true,
            Self::Enospc => kind.takes_space(),
            Self::Eacces | Self::Estale | Self::Emfile => !kind.changes(),
            Self::Short => kind == Kind::Write,
            Self::Eintr | Self::Late => kind.changes() && !sticky,
            Self::SyncLost | Self::SyncEvicted => kind == Kind::SyncFile && !sticky,
            Self::PowerOff => kind.changes() && sticky,
        }
    }

    fn errno(self) -> i32 {
        match self {
            Self::Enospc | Self::Short => libc::ENOSPC,
            Self::Eintr => libc::EINTR,
            Self::Eacces => libc::EACCES,
            Self::Estale => libc::ESTALE,
            Self::Emfile => libc::EMFILE,
            Self::PowerOff => libc::ENODEV,
            _ => libc::EIO,
        }
    }
}

/// The operation that fails, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Its number.
    pub at: usize,
    pub failure: Failure,
    /// Whether all later ones of its sort fail too.
    pub sticky: bool,
}

/// The disk before one operation: what a power cut there would find.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Number of the operation.
    pub op: usize,
    /// What the workload said last of where it is.
    pub mark: usize,
    media: Arc<[Media; 3]>,
}

impl Snapshot {
    pub fn media(&self, model: FsModel) -> &Media {
        &self.media[model as usize]
    }
}

/// Whether a sync, the last of these operations, says that it is done and does nothing.
pub type Lies = fn(&[Op]) -> bool;

#[derive(Debug, Default)]
struct Held {
    shared: usize,
    exclusive: bool,
}

#[derive(Debug)]
struct State {
    live: Fs,
    media: [Media; 3],
    next: Ino,
    ops: Vec<Op>,
    fault: Option<Fault>,
    lies: Option<Lies>,
    locks: BTreeMap<Ino, Held>,
    recording: bool,
    mark: usize,
    snapshots: Vec<Snapshot>,
}

/// A simulated disk; clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDisk at operation {}", self.state().ops.len())
    }
}

fn failed(kind: Kind, path: &str, errno: i32) -> Error {
    Error::io(
        format!("{kind:?} {path}"),
        std::io::Error::from_raw_os_error(errno),
    )
}

impl State {
    fn find(&self, kind: Kind, path: &str) -> Result<Ino> {
        self.live
            .find(path)
            .ok_or_else(|| failed(kind, path, libc::ENOENT))
    }

    fn file(&self, kind: Kind, path: &str) -> Result<Ino> {
        let ino = self.find(kind, path)?;
        let found = self.live.content(ino).map(|_| ino);
        found.ok_or_else(|| failed(kind, path, libc::EISDIR))
    }

    /// The directory that holds `path`, and the name in it.
    fn parent<'a>(&self, kind: Kind, path: &'a str) -> Result<(Ino, &'a str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.find(kind, dir)?, name))
    }

    fn change(&mut self, change: Change) {
        self.live.apply(&change);
        let change = Arc::new(change);
        for media in &mut self.media {
            media.pending.push(change.clone());
        }
    }

    /// Makes an inode and gives it a name.
    fn make(&mut self, dir: Ino, name: &str, node: Node) -> Ino {
        let ino = self.next;
        self.next += 1;
        for media in &mut self.media {
            media.add(ino, node.clone());
        }
        self.live.add(ino, node);
        let name = name.to_owned();
        self.change(Change::Link { dir, name, ino });
        ino
    }

    fn make_file(&mut self, dir: Ino, name: &str) -> Ino {
        self.make(dir, name, Node::File(Arc::default()))
    }

    fn len(&self, ino: Ino) -> usize {
        self.live.content(ino).map_or(0, |content| content.bytes().len())
    }

    fn append(&mut self, ino: Ino, bytes: &[u8]) {
        let offset = self.len(ino);
        let bytes = bytes.into();
        self.change(Change::Write { ino, offset, bytes });
    }

    /// Counts an operation and says whether it is to fail.
    fn begin(&mut self, kind: Kind, path: &str) -> Option<Failure> {
        let number = self.ops.len();
        if self.recording && kind.changes() {
            self.record();
        }
        let path = path.to_owned();
        self.ops.push(Op { kind, path });
        let fault = self.fault?;
        let hit = number == fault.at || (number > fault.at && fault.sticky && self.fails_too(fault));
        hit.then_some(fault.failure)
    }

    /// Whether the operation that was counted last is of the sort of the one that failed for good.
    fn fails_too(&self, fault: Fault) -> bool {
        let (Some(first), Some(now)) = (self.ops.get(fault.at), self.ops.last()) else {
            return false;
        };
        match fault.failure {
            Failure::PowerOff => true,
            Failure::Enospc | Failure::Short => now.kind.takes_space(),
            _ if first.kind.changes() => now.kind.changes(),
            _ => now.kind == first.kind && now.path == first.path,
        }
    }

    fn record(&mut self) {
        let (op, mark) = (self.ops.len(), self.mark);
        let media = Arc::new(self.media.clone());
        self.snapshots.push(Snapshot { op, mark, media });
    }

    /// An operation whose failure, if it is to fail, leaves nothing behind or all of it.
    fn step<T>(&mut self, kind: Kind, path: &str, act: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        match self.begin(kind, path) {
            None => act(self),
            Some(Failure::Late) => {
                act(self)?;
                Err(failed(kind, path, libc::EIO))
            }
            Some(failure) => Err(failed(kind, path, failure.errno())),
        }
    }

    fn write(&mut self, ino: Ino, path: &str, bytes: &[u8]) -> Result<()> {
        match self.begin(Kind::Write, path) {
            None => {
                self.append(ino, bytes);
                Ok(())
            }
            Some(failure) => {
                match failure {
                    Failure::Late => self.append(ino, bytes),
                    Failure::Short => self.append(ino, &bytes[..bytes.len() / 2]),
                    _ => {}
                }
                Err(failed(Kind::Write, path, failure.errno()))
            }
        }
    }

    /// Whether the operation that was counted last is a sync that only pretends.
    fn lies(&self) -> bool {
        self.lies.is_some_and(|lies| lies(&self.ops))
    }

    fn sync_file(&mut self, ino: Ino, path: &str) -> Result<()> {
        let failure = self.begin(Kind::SyncFile, path);
        if failure.is_none() && self.lies() {
            return Ok(());
        }
        match failure {
            None | Some(Failure::Late) => self.media.iter_mut().for_each(|media| media.sync_file(ino)),
            Some(Failure::SyncLost) => self.lose_file(ino),
            Some(Failure::SyncEvicted) => {
                self.lose_file(ino);
                self.evict(ino);
            }
            Some(_) => {}
        }
        failure.map_or(Ok(()), |failure| {
            Err(failed(Kind::SyncFile, path, failure.errno()))
        })
    }

    fn lose_file(&mut self, ino: Ino) {
        self.media.iter_mut().for_each(|media| media.lose_file(ino));
    }

    /// The page cache drops a file's pages: it reads as it is on the media.
    fn evict(&mut self, ino: Ino) {
        let len = self.len(ino);
        let durable = &self.media[FsModel::Posix as usize].durable;
        let mut content = durable.content(ino).cloned().unwrap_or_else(Content::default);
        content.extend(len);
        self.live.set_content(ino, content);
    }

    fn sync_dir(&mut self, dir: Ino, path: &str) -> Result<()> {
        let failure = self.begin(Kind::SyncDir, path);
        if failure.is_none() && self.lies() {
            return Ok(());
        }
        match failure {
            None | Some(Failure::Late) => self.media.iter_mut().for_each(|media| media.sync_dir(dir)),
            // Unlike data, names are not forgotten: a journal that cannot be written is the end of all changes.
            Some(_) => {}
        }
        failure.map_or(Ok(()), |failure| {
            Err(failed(Kind::SyncDir, path, failure.errno()))
        })
    }

    fn try_lock(&mut self, ino: Ino, mode: LockMode) -> bool {
        let held = self.locks.entry(ino).or_default();
        if held.exclusive || (mode != LockMode::Shared && held.shared > 0) {
            return false;
        }
        match mode {
            LockMode::Shared => held.shared += 1,
            LockMode::Exclusive | LockMode::ExclusiveCreate => held.exclusive = true,
        }
        true
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::holding(Fs::new())
    }

    /// A disk that was just switched on and holds this.
    pub fn holding(fs: Fs) -> Self {
        let media = FsModel::ALL.map(|model| Media::new(model, fs.clone()));
        Self(Arc::new(Mutex::new(State {
            next: fs.inodes_end(),
            live: fs,
            media,
            ops: Vec::new(),
            fault: None,
            lies: None,
            locks: BTreeMap::new(),
            recording: false,
            mark: 0,
            snapshots: Vec::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on, every operation that changes something is a place for a power cut.
    pub fn record(&self) {
        self.state().recording = true;
    }

    /// Says where the workload is, for the snapshots that follow.
    pub fn mark(&self, mark: usize) {
        self.state().mark = mark;
    }

    /// The snapshots so far, and one of now.
    pub fn take_snapshots(&self) -> Vec<Snapshot> {
        let mut state = self.state();
        state.record();
        std::mem::take(&mut state.snapshots)
    }

    /// The disk as of now: what a power cut would find.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        Snapshot {
            op: state.ops.len(),
            mark: state.mark,
            media: Arc::new(state.media.clone()),
        }
    }

    /// What was done so far.
    pub fn ops(&self) -> Vec<Op> {
        self.state().ops.clone()
    }

    /// How many operations could have changed something.
    pub fn changes(&self) -> usize {
        self.state().ops.iter().filter(|op| op.kind.changes()).count()
    }

    /// Makes an operation fail; `None` heals the disk.
    pub fn fail(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// Everything fails from here on, as for a process that is killed, until the disk is healed.
    pub fn kill(&self) {
        let mut state = self.state();
        state.fault = Some(Fault {
            at: state.ops.len(),
            failure: Failure::PowerOff,
            sticky: true,
        });
    }

    /// Makes some syncs do nothing: what a program would do that forgot them.
    pub fn skip_syncs(&self, lies: Option<Lies>) {
        self.state().lies = lies;
    }

    /// Another disk that is as this one is now, with what is on its way; no lock is held there.
    pub fn fork(&self) -> Self {
        let state = self.state();
        Self(Arc::new(Mutex::new(State {
            live: state.live.clone(),
            media: state.media.clone(),
            next: state.next,
            ops: state.ops.clone(),
            fault: state.fault,
            lies: state.lies,
            locks: BTreeMap::new(),
            recording: false,
            mark: 0,
            snapshots: Vec::new(),
        })))
    }

    /// The files of a directory and the blocks that each takes; nothing of a directory that is not there.
    pub fn blocks_in(&self, dir: &str) -> BTreeMap<String, Vec<u64>> {
        let state = self.state();
        let names = state.live.find(dir).and_then(|ino| state.live.names(ino));
        let files = names
            .into_iter()
            .flatten()
            .filter_map(|(name, &ino)| Some((name.clone(), state.live.content(ino)?.blocks().collect())));
        files.collect()
    }

    fn locked(&self, path: &str, mode: LockMode) -> Result<Option<Lock>> {
        let mut state = self.state();
        let create = mode == LockMode::ExclusiveCreate && state.live.find(path).is_none();
        let kind = if create { Kind::Create } else { Kind::Lock };
        let ino = state.step(kind, path, |state| {
            if !create {
                return state.file(kind, path);
            }
            let (dir, name) = state.parent(kind, path)?;
            Ok(state.make_file(dir, name))
        })?;
        let disk = self.clone();
        Ok(state
            .try_lock(ino, mode)
            .then(|| Lock::new(HeldLock { disk, ino, mode })))
    }
}

/// Gives the lock up when dropped.
struct HeldLock {
    disk: SimDisk,
    ino: Ino,
    mode: LockMode,
}

impl fmt::Debug for HeldLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} lock of inode {}", self.mode, self.ino)
    }
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        if let Some(held) = self.disk.state().locks.get_mut(&self.ino) {
            match self.mode {
                LockMode::Shared => held.shared -= 1,
                LockMode::Exclusive | LockMode::ExclusiveCreate => held.exclusive = false,
            }
        }
    }
}

impl Storage for SimDisk {
    fn read(&self, path: &str, max_len: u64) -> Result<Vec<u8>> {
        let bytes = self.state().step(Kind::Read, path, |state| {
            let ino = state.file(Kind::Read, path)?;
            Ok(state
                .live
                .content(ino)
                .map(|content| content.bytes().to_vec())
                .unwrap_or_default())
        })?;
        if bytes.len() as u64 > max_len {
            return Err(Error::damaged(format!("{path} is longer than {max_len} bytes")));
        }
        Ok(bytes)
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        self.state().step(Kind::List, dir, |state| {
            let ino = state.find(Kind::List, dir)?;
            let names = state.live.names(ino);
            let names = names.ok_or_else(|| failed(Kind::List, dir, libc::ENOTDIR))?;
            Ok(names.keys().cloned().collect())
        })
    }

    fn create_dir(&self, dir: &str) -> Result<()> {
        self.state().step(Kind::CreateDir, dir, |state| {
            let (parent, name) = state.parent(Kind::CreateDir, dir)?;
            if state.live.find(dir).is_some() {
                return Err(failed(Kind::CreateDir, dir, libc::EEXIST));
            }
            state.make(parent, name, Node::Dir(Arc::default()));
            Ok(())
        })
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let mut state = self.state();
        let ino = state.step(Kind::Create, path, |state| match state.live.find(path) {
            Some(ino) => {
                state.change(Change::Truncate { ino });
                Ok(ino)
            }
            None => {
                let (dir, name) = state.parent(Kind::Create, path)?;
                Ok(state.make_file(dir, name))
            }
        })?;
        state.write(ino, path, bytes)?;
        state.sync_file(ino, path)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.state().step(Kind::Rename, from, |state| {
            let ino = state.file(Kind::Rename, from)?;
            let (dir, from) = state.parent(Kind::Rename, from)?;
            let (to_dir, to) = state.parent(Kind::Rename, to)?;
            assert_eq!(
                dir, to_dir,
                "the disk does not simulate renames between directories"
            );
            let (from, to) = (from.to_owned(), to.to_owned());
            state.change(Change::Rename { dir, from, to, ino });
            Ok(())
        })
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.state().step(Kind::Remove, path, |state| {
            let ino = state.file(Kind::Remove, path)?;
            let (dir, name) = state.parent(Kind::Remove, path)?;
            let name = name.to_owned();
            state.change(Change::Unlink { dir, name, ino });
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        let mut state = self.state();
        let ino = state.find(Kind::SyncDir, dir)?;
        state.sync_dir(ino, dir)
    }

    fn open_layer(&self, path: &str) -> Result<Box<dyn LayerRead>> {
        let ino = self
            .state()
            .step(Kind::OpenLayer, path, |state| state.file(Kind::OpenLayer, path))?;
        Ok(Box::new(self.layer(ino, path)))
    }

    fn create_layer(&self, path: &str) -> Result<Box<dyn LayerAppend>> {
        let ino = self.state().step(Kind::Create, path, |state| {
            let (dir, name) = state.parent(Kind::Create, path)?;
            if state.live.find(path).is_some() {
                return Err(failed(Kind::Create, path, libc::EEXIST));
            }
            Ok(state.make_file(dir, name))
        })?;
        Ok(Box::new(self.layer(ino, path)))
    }

    fn reclaim(&self, path: &str, dead: &[Range<u64>]) -> Result<()> {
        let mut state = self.state();
        let ino = state.file(Kind::Punch, path)?;
        let len = state.len(ino) as u64;
        let mut next = 0;
        for range in dead {
            let whole = range.start % BLOCK_LEN == 0 && (range.end % BLOCK_LEN == 0 || range.end == u64::MAX);
            assert!(
                whole && next <= range.start && range.start < range.end,
                "{dead:?}"
            );
            next = range.end;
            if range.start < len {
                let range = range.start..range.end.min(len);
                state.step(Kind::Punch, path, |state| {
                    state.change(Change::Punch { ino, range });
                    Ok(())
                })?;
            }
        }
        state.sync_file(ino, path)
    }

    fn allocated(&self, path: &str) -> Result<u64> {
        self.state().step(Kind::Stat, path, |state| {
            let ino = state.file(Kind::Stat, path)?;
            let blocks = state
                .live
                .content(ino)
                .map_or(0, |content| content.blocks().count());
            Ok(blocks as u64 * BLOCK_LEN)
        })
    }

    fn lock(&self, path: &str, mode: LockMode) -> Result<Lock> {
        self.locked(path, mode)?
            .ok_or_else(|| failed(Kind::Lock, path, libc::EWOULDBLOCK))
    }

    fn holders(&self, _path: &str) -> Vec<String> {
        vec!["the simulation".to_owned()]
    }
}

impl SimDisk {
    fn layer(&self, ino: Ino, path: &str) -> SimLayer {
        SimLayer {
            disk: self.clone(),
            ino,
            path: path.to_owned(),
        }
    }
}

/// An open layer: leads to its inode, whatever becomes of the name.
#[derive(Debug)]
struct SimLayer {
    disk: SimDisk,
    ino: Ino,
    path: String,
}

impl LayerRead for SimLayer {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<()> {
        let path = &self.path;
        self.disk.state().step(Kind::ReadAt, path, |state| {
            let start = offset as usize;
            let content = state.live.content(self.ino);
            let bytes = content.and_then(|content| content.bytes().get(start..start + target.len()));
            let bytes = bytes.ok_or_else(|| Error::damaged(format!("{path} ends early")))?;
            target.copy_from_slice(bytes);
            Ok(())
        })
    }
}

impl LayerAppend for SimLayer {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.disk.state().write(self.ino, &self.path, bytes)
    }

    fn sync(&mut self) -> Result<()> {
        let mut state = self.disk.state();
        let len = state.len(self.ino);
        let padding = vec![0; len.next_multiple_of(BLOCK_LEN as usize) - len];
        if !padding.is_empty() {
            state.write(self.ino, &self.path, &padding)?;
        }
        state.sync_file(self.ino, &self.path)
    }
}
