//! The store of a source at a target as a filesystem: what the target lists, read as it is asked for.
//!
//! A lock on a file of an image is one at the target: there the image is not deleted for as long as it is held here.

use crate::exit::full_message;
use cli::output;
use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyXattr, Request,
};
use remote::ErrorKind;
use remote::pull::{PulledHold, PulledStore, StoredFile};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How old the list of files may be.
const LIST_AGE_MAX: Duration = Duration::from_secs(5);
/// How long the kernel believes what it has heard of a file.
const ENTRY_AGE_MAX: Duration = Duration::from_secs(1);
/// Requests that the kernel may have under way in the background (readahead).
const BACKGROUND_MAX: u16 = 64;

/// The filesystem.
pub struct PulledFiles {
    store: PulledStore,
    known: Mutex<Known>,
    /// Images that are held, by the handle of the file that is locked.
    holds: Mutex<HashMap<u64, PulledHold>>,
    next_handle: AtomicU64,
    /// The target could not be reached: that was said.
    is_lost: AtomicBool,
}

/// What the target has listed.
#[derive(Default)]
struct Known {
    listed: Option<Instant>,
    /// Files and directories by path.
    entries: BTreeMap<String, Entry>,
    /// Inodes that were given to paths, for good.
    inodes: HashMap<String, u64>,
    paths: HashMap<u64, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    is_directory: bool,
    bytes: u64,
    changed_ms: i64,
}

impl Known {
    fn take(&mut self, files: Vec<StoredFile>) {
        self.entries.clear();
        let directory = Entry {
            is_directory: true,
            bytes: 0,
            changed_ms: 0,
        };
        self.entries.insert(String::new(), directory);
        for file in files {
            // A target that lies leads nowhere else: paths are only compared here.
            let parts: Vec<&str> = file.path.split('/').collect();
            if parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
                continue;
            }
            for count in 1..parts.len() {
                self.entries.insert(parts[..count].join("/"), directory);
            }
            let entry = Entry {
                is_directory: false,
                bytes: file.bytes,
                changed_ms: file.changed_ms,
            };
            self.entries.entry(file.path).or_insert(entry);
        }
        self.listed = Some(Instant::now());
    }

    fn inode(&mut self, path: &str) -> u64 {
        if path.is_empty() {
            return INodeNo::ROOT.0;
        }
        if let Some(inode) = self.inodes.get(path) {
            return *inode;
        }
        let inode = INodeNo::ROOT.0 + 1 + self.inodes.len() as u64;
        self.inodes.insert(path.to_owned(), inode);
        self.paths.insert(inode, path.to_owned());
        inode
    }

    fn path(&self, inode: u64) -> Option<String> {
        match inode {
            root if root == INodeNo::ROOT.0 => Some(String::new()),
            inode => self.paths.get(&inode).cloned(),
        }
    }

    /// Names and entries in a directory.
    fn within(&self, directory: &str) -> Vec<(String, Entry)> {
        let prefix = if directory.is_empty() {
            String::new()
        } else {
            format!("{directory}/")
        };
        let below = self.entries.range(prefix.clone()..);
        let below = below.take_while(|(path, _)| path.starts_with(&prefix));
        let names = below.filter_map(|(path, entry)| Some((path.strip_prefix(&prefix)?, entry)));
        names
            .filter(|(name, _)| !name.is_empty() && !name.contains('/'))
            .map(|(name, entry)| (name.to_owned(), *entry))
            .collect()
    }
}

impl PulledFiles {
    /// What a target has of a source.
    pub fn new(store: PulledStore) -> Self {
        Self {
            store,
            known: Mutex::default(),
            holds: Mutex::default(),
            next_handle: AtomicU64::new(1),
            is_lost: AtomicBool::new(false),
        }
    }

    /// Lists anew what was listed too long ago.
    fn known(&self) -> Result<MutexGuard<'_, Known>, Errno> {
        let mut known = locked(&self.known);
        if known.listed.is_none_or(|listed| listed.elapsed() > LIST_AGE_MAX) {
            let listing = self.heard(self.store.list())?;
            known.take(listing.files);
        }
        Ok(known)
    }

    /// What the target answers; why it does not is said once.
    fn heard<T>(&self, answer: remote::Result<T>) -> Result<T, Errno> {
        let error = match answer {
            Ok(answer) => {
                if self.is_lost.swap(false, Ordering::Relaxed) {
                    output::complain("smc-image: the target answers again");
                }
                return Ok(answer);
            }
            Err(error) => error,
        };
        if error.kind() == ErrorKind::Invalid {
            return Err(Errno::ENOENT);
        }
        if !self.is_lost.swap(true, Ordering::Relaxed) {
            output::complain(format_args!("smc-image: {}", full_message(&error.into())));
        }
        Err(Errno::EIO)
    }

    fn entry(&self, inode: INodeNo) -> Result<(String, Entry), Errno> {
        let known = self.known()?;
        let path = known.path(inode.0).ok_or(Errno::ENOENT)?;
        let entry = known.entries.get(&path).copied().ok_or(Errno::ENOENT)?;
        Ok((path, entry))
    }

    fn found(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let name = name.to_str().ok_or(Errno::ENOENT)?;
        let mut known = self.known()?;
        let parent = known.path(parent.0).ok_or(Errno::ENOENT)?;
        let path = match parent.as_str() {
            "" => name.to_owned(),
            parent => format!("{parent}/{name}"),
        };
        let entry = known.entries.get(&path).copied().ok_or(Errno::ENOENT)?;
        Ok(attributes(INodeNo(known.inode(&path)), entry))
    }

    fn bytes(&self, inode: INodeNo, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let path = locked(&self.known).path(inode.0).ok_or(Errno::ENOENT)?;
        self.heard(self.store.read(&path, offset, size))
    }

    /// Locks the image that a file is the manifest of.
    fn lock(&self, inode: INodeNo, handle: FileHandle, kind: i32) -> Result<(), Errno> {
        if kind == libc::F_UNLCK {
            locked(&self.holds).remove(&handle.0);
            return Ok(());
        }
        // Somebody who wants to delete images, or to write.
        if kind != libc::F_RDLCK {
            return Err(Errno::EROFS);
        }
        let path = locked(&self.known).path(inode.0).ok_or(Errno::ENOENT)?;
        let Some((chain, sequence)) = image_of(&path) else {
            return Ok(());
        };
        let hold = self.heard(self.store.hold(chain, sequence))?;
        locked(&self.holds).insert(handle.0, hold);
        Ok(())
    }
}

/// Chain and number of the image that a file is the manifest of.
fn image_of(path: &str) -> Option<(&str, u64)> {
    let (chain, file) = path.split_once("/images/")?;
    let sequence = file.strip_suffix(".json")?.parse().ok()?;
    Some((chain, sequence))
}

fn attributes(inode: INodeNo, entry: Entry) -> FileAttr {
    let changed =
        SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(entry.changed_ms).unwrap_or(0));
    let (kind, perm, nlink) = match entry.is_directory {
        true => (FileType::Directory, 0o500, 2),
        false => (FileType::RegularFile, 0o400, 1),
    };
    FileAttr {
        ino: inode,
        size: entry.bytes,
        blocks: entry.bytes.div_ceil(512),
        atime: changed,
        mtime: changed,
        ctime: changed,
        crtime: changed,
        kind,
        perm,
        nlink,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// What these mutexes guard is whole at every moment.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Filesystem for PulledFiles {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without it, locks would be this machine's alone.
        let missing = config.add_capabilities(InitFlags::FUSE_FLOCK_LOCKS);
        missing.map_err(|_| io::Error::other("this kernel keeps locks of FUSE filesystems to itself"))?;
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.found(parent, name) {
            Ok(attributes) => reply.entry(&ENTRY_AGE_MAX, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.entry(ino) {
            Ok((_, entry)) => reply.attr(&ENTRY_AGE_MAX, &attributes(ino, entry)),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        // What was read of a layer stays as it was; small files may be replaced.
        let is_layer = locked(&self.known)
            .path(ino.0)
            .is_some_and(|path| path.ends_with(".layer"));
        let flags = match is_layer {
            true => FopenFlags::FOPEN_KEEP_CACHE,
            false => FopenFlags::empty(),
        };
        reply.opened(
            FileHandle(self.next_handle.fetch_add(1, Ordering::Relaxed)),
            flags,
        );
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.bytes(ino, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn setlk(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        typ: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        match self.lock(ino, fh, typ) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        locked(&self.holds).remove(&fh.0);
        reply.ok();
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.known().and_then(|mut known| {
            let path = known.path(ino.0).ok_or(Errno::ENOENT)?;
            let within = known.within(&path);
            let entries = within.into_iter().map(|(name, entry)| {
                let whole = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}/{name}")
                };
                (known.inode(&whole), entry.is_directory, name)
            });
            Ok(entries.collect::<Vec<_>>())
        });
        let listed = match listed {
            Ok(listed) => listed,
            Err(error) => return reply.error(error),
        };
        let own = [".", ".."].map(|name| (ino.0, true, name.to_owned()));
        let unseen = (1..)
            .zip(own.into_iter().chain(listed))
            .skip(usize::try_from(offset).unwrap_or(usize::MAX));
        for (next, (inode, is_directory, name)) in unseen {
            let kind = if is_directory {
                FileType::Directory
            } else {
                FileType::RegularFile
            };
            if reply.add(INodeNo(inode), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> StoredFile {
        StoredFile {
            path: path.to_owned(),
            bytes: 7,
            changed_ms: 1,
        }
    }

    #[test]
    fn directories_follow_from_the_paths_of_files() {
        let mut known = Known::default();
        let listed = [
            "store.json",
            "web/images/000001.json",
            "web/layers/00000001.layer",
            "web2/chain.json",
        ];
        known.take(listed.map(file).to_vec());
        let names = |directory: &str| -> Vec<(String, bool)> {
            let within = known.within(directory).into_iter();
            within.map(|(name, entry)| (name, entry.is_directory)).collect()
        };
        let expected = [("store.json", false), ("web", true), ("web2", true)];
        assert_eq!(names(""), expected.map(|(name, is)| (name.to_owned(), is)));
        assert_eq!(names("web").len(), 2);
        assert_eq!(names("web/images"), [("000001.json".to_owned(), false)]);
        assert!(names("we").is_empty());
    }

    #[test]
    fn a_target_that_lies_makes_no_strange_paths() {
        let mut known = Known::default();
        known.take(
            ["../etc/shadow", "/etc/shadow", "web//x", "web/./y", ""]
                .map(file)
                .to_vec(),
        );
        assert!(known.within("").is_empty(), "{:?}", known.entries);
        // A file that is a directory too is a directory.
        known.take(["web", "web/chain.json"].map(file).to_vec());
        assert_eq!(known.within("").len(), 1);
        assert_eq!(image_of("web/images/000012.json"), Some(("web", 12)));
        assert_eq!(image_of("web/images/000012.pins"), None);
    }
}
