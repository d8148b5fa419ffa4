//! The store on a real filesystem: layers are written by io_uring with O_DIRECT, all else is small.

use crate::error::{Error, ErrorKind, Result, Within};
use crate::storage::holders;
use crate::storage::{BLOCK_LEN, LayerAppend, LayerRead, Lock, LockMode, Stamp, Storage};
use blockio::{AlignedBuf, LockResult, LockedFile, SequentialWriter, WriteOptions};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{
    FallocateFlags, OFlag, OpenHow, PosixFadviseAdvice, ResolveFlag, fallocate, openat2, posix_fadvise,
    renameat,
};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, FsType, fstatfs};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, geteuid, unlinkat};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A directory that holds a store.
#[derive(Debug)]
pub struct DirStorage {
    root: OwnedFd,
    is_btrfs: bool,
    /// Whose the files are to be that root makes: those of the user and group that the directory belongs to. A service that runs as
    /// another user could not read root's.
    owner: Option<(Uid, Gid)>,
}

/// Filesystems on which locks or durability are another machine's promise.
const NETWORK_FILESYSTEMS: [(i64, &str); 7] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x517b, "SMB"),
    (0x6573_5546, "FUSE"),
    (0x00c3_6400, "Ceph"),
    (0x0102_1997, "9p"),
];

/// Files of a probe: those of one that was killed are in nobody's way.
pub(crate) const PROBE_FILES: [&str; 2] = ["probe.tmp", "probe2.tmp"];

const FILE_MODE: Mode = Mode::from_bits_truncate(0o600);
const DIR_MODE: Mode = Mode::from_bits_truncate(0o700);

impl DirStorage {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// `NotAStore` where there is no directory of this name; `Io` from the kernel.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::ENOTDIR => Error::new(
                ErrorKind::NotAStore,
                format!("{} is not a directory", path.display()),
            ),
            Errno::ENOENT => Error::new(ErrorKind::NotAStore, format!("{} does not exist", path.display())),
            errno => io(errno, || format!("open {}", path.display())),
        })?;
        let found = fstatfs(&root).map_err(|e| io(e, || format!("statfs {}", path.display())))?;
        let is_btrfs = found.filesystem_type() == BTRFS_SUPER_MAGIC;
        let stat = fstat(&root).map_err(|e| io(e, || format!("stat {}", path.display())))?;
        let owner = (geteuid().is_root() && stat.st_uid != 0)
            .then(|| (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid)));
        Ok(Self {
            root,
            is_btrfs,
            owner,
        })
    }

    /// Opens a directory for a new store, creating it where only the last part of its path is missing, and
    /// tries what a store needs of its filesystem: locks, punching holes, renaming.
    ///
    /// # Errors
    /// `Unsupported` on a filesystem that cannot hold a store, or that is not local where that is not allowed; `Io`
    /// where the directory cannot be created.
    pub fn open_for_store(path: &Path, allow_network_fs: bool) -> Result<Self> {
        match std::fs::create_dir(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).within(|| format!("create directory {}", path.display()));
            }
            _ => {}
        }
        // Whoever created it: its name must be durable before anything in it is relied upon.
        let whole = path
            .canonicalize()
            .within(|| format!("find directory {}", path.display()))?;
        if let Some(parent) = whole.parent() {
            let synced = File::open(parent).and_then(|dir| dir.sync_all());
            synced.within(|| format!("sync directory {}", parent.display()))?;
        }
        let storage = Self::open(path)?;
        if !allow_network_fs {
            storage.check_local().within(|| path.display().to_string())?;
        }
        Ok(storage)
    }

    fn check_local(&self) -> Result<()> {
        let FsType(magic) = fstatfs(&self.root)
            .map_err(|e| io(e, || "statfs".to_owned()))?
            .filesystem_type();
        match NETWORK_FILESYSTEMS.iter().find(|(known, _)| *known == magic) {
            None => Ok(()),
            Some((_, name)) => Err(Error::invalid(format!(
                "this directory is on {name}, where locks and durability depend on another machine: \
                 use a local disk, or --allow-network-fs if you know that it keeps both"
            ))),
        }
    }

    /// Locks the directory itself. Another process that holds it is waited for so long: that is making a store here, which
    /// takes a moment, or is suspended.
    ///
    /// # Errors
    /// `Busy`, naming the process, when it still holds the directory then.
    pub(crate) fn lock_whole(&self, patience: Duration) -> Result<Lock> {
        let begun = Instant::now();
        let held = LockedFile::lock_while(File::from(self.open_dir("")?), || begun.elapsed() < patience);
        held.map(Lock::new).map_err(|(directory, error)| {
            let error = Error::io("lock directory", error);
            if error.kind() != ErrorKind::Busy {
                return error;
            }
            let by = holders::of(&directory).join(", ");
            let by = if by.is_empty() { "another process" } else { &by };
            error.within(format!(
                "a store is being made here by {by}: try again when that is done, or end that process"
            ))
        })
    }

    /// Tries locking, punching and renaming, on a file that is gone afterwards.
    ///
    /// # Errors
    /// `Unsupported` for what the filesystem cannot do; `Io` and `NoSpace` from the kernel.
    pub fn probe(&self) -> Result<()> {
        let [name, renamed] = PROBE_FILES;
        self.write(name, &[1; 8192])?;
        let tried = self.probe_file(name).and_then(|()| self.rename(name, renamed));
        let removed = self.remove(if tried.is_ok() { renamed } else { name });
        tried.and(removed)
    }

    fn probe_file(&self, name: &str) -> Result<()> {
        drop(
            self.lock(name, LockMode::Exclusive)
                .within(|| "this filesystem cannot lock files".to_owned())?,
        );
        punch(&self.open_file(name, OFlag::O_RDWR)?, 0, BLOCK_LEN).within(|| {
            "this filesystem cannot punch holes, so deleting images would free nothing: \
             use ext4, xfs or btrfs"
                .to_owned()
        })
    }

    fn flock(&self, path: &str, flags: OFlag, lock: fn(File) -> LockResult) -> Result<Lock> {
        // A file that was replaced between opening and locking is not the one that others lock.
        loop {
            let held = lock(self.open_file(path, flags)?)
                .map_err(|(_, error)| Error::io(format!("lock {path}"), error))?;
            let now = self.open_file(path, OFlag::O_RDONLY)?;
            let id = |file: &File| {
                let stat = fstat(file).map_err(|e| io(e, || format!("stat {path}")))?;
                Ok::<_, Error>((stat.st_dev, stat.st_ino))
            };
            if id(&held)? == id(&now)? {
                return Ok(Lock::new(held));
            }
        }
    }

    fn open_at(&self, path: &str, flags: OFlag, mode: Mode) -> std::result::Result<OwnedFd, Errno> {
        // openat2 refuses a mode where nothing can be created.
        let mode = if flags.contains(OFlag::O_CREAT) {
            mode
        } else {
            Mode::empty()
        };
        let path = if path.is_empty() { "." } else { path };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
            .mode(mode)
            .resolve(
                ResolveFlag::RESOLVE_BENEATH
                    | ResolveFlag::RESOLVE_NO_SYMLINKS
                    | ResolveFlag::RESOLVE_NO_MAGICLINKS
                    | ResolveFlag::RESOLVE_NO_XDEV,
            );
        openat2(&self.root, path, how)
    }

    /// Opens a regular file; anything else that lies there is refused before it is touched.
    fn open_file(&self, path: &str, flags: OFlag) -> Result<File> {
        if let Ok(found) = self.open_at(path, OFlag::O_PATH, FILE_MODE)
            && fstat(&found).is_ok_and(|stat| stat.st_mode & libc::S_IFMT != libc::S_IFREG)
        {
            return Err(Error::damaged(format!(
                "{path} is not a regular file, as every file of a store is"
            )));
        }
        let file = self.open_or_create(path, flags)?;
        let metadata = file.metadata().within(|| format!("stat {path}"))?;
        if metadata.is_file() {
            Ok(file)
        } else {
            Err(Error::damaged(format!("{path} is not a regular file")))
        }
    }

    fn open_or_create(&self, path: &str, flags: OFlag) -> Result<File> {
        // Should it be exchanged meanwhile, O_NONBLOCK keeps a FIFO from hanging us.
        let open = |flags| self.open_at(path, flags | OFlag::O_NONBLOCK, FILE_MODE);
        if self.owner.is_some() && flags.contains(OFlag::O_CREAT) {
            // Only a file that this call makes is given away: one that lies there may be a link to root's.
            match open(flags | OFlag::O_EXCL) {
                Err(Errno::EEXIST) => {}
                created => {
                    let file = File::from(created.map_err(|errno| open_error(errno, path))?);
                    self.give_to_owner(&file, path)?;
                    return Ok(file);
                }
            }
        }
        open(flags)
            .map(File::from)
            .map_err(|errno| open_error(errno, path))
    }

    /// Makes what root has just made the property of the store's owner.
    fn give_to_owner(&self, made: &impl AsFd, path: &str) -> Result<()> {
        let Some((user, group)) = self.owner else {
            return Ok(());
        };
        match fchown(made, Some(user), Some(group)) {
            // A root that may not do this, or a filesystem that has no owners.
            Err(errno @ (Errno::EPERM | Errno::EINVAL | Errno::EOPNOTSUPP)) => {
                tracing::warn!("{path} belongs to root, not to the owner of the store: {errno}");
                Ok(())
            }
            given => given.map_err(|e| io(e, || format!("change the owner of {path}"))),
        }
    }

    fn open_dir(&self, path: &str) -> Result<OwnedFd> {
        self.open_at(path, OFlag::O_DIRECTORY | OFlag::O_RDONLY, Mode::empty())
            .map_err(|errno| open_error(errno, path))
    }

    /// The directory that holds `path`, and the name in it.
    fn parent<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.open_dir(dir)?, name))
    }
}

fn open_error(errno: Errno, path: &str) -> Error {
    match errno {
        Errno::ELOOP => Error::damaged(format!("{path} is a symlink, which no file of a store is")),
        Errno::EXDEV => {
            let what = format!("{path} lies on another filesystem than the store: a store lies on one");
            Error::new(ErrorKind::NotAStore, what)
        }
        errno => io(errno, || format!("open {path}")),
    }
}

fn io(errno: Errno, what: impl FnOnce() -> String) -> Error {
    Error::io(what(), errno.into())
}

fn read_all(file: File, path: &str, max_len: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max_len + 1)
        .read_to_end(&mut bytes)
        .within(|| format!("read {path}"))?;
    if bytes.len() as u64 > max_len {
        return Err(Error::damaged(format!("{path} is longer than {max_len} bytes")));
    }
    Ok(bytes)
}

fn stamp_of(file: &impl AsFd) -> Option<Stamp> {
    let stat = fstat(file).ok()?;
    Some(Stamp {
        file: (stat.st_dev, stat.st_ino),
        changed: i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec),
        len: u64::try_from(stat.st_size).ok()?,
    })
}

impl Storage for DirStorage {
    fn read(&self, path: &str, max_len: u64) -> Result<Vec<u8>> {
        read_all(self.open_file(path, OFlag::O_RDONLY)?, path, max_len)
    }

    fn read_with_stamp(&self, path: &str, max_len: u64) -> Result<(Vec<u8>, Option<Stamp>)> {
        let file = self.open_file(path, OFlag::O_RDONLY)?;
        // Before the content: one that is changed while it is read has another stamp afterwards.
        let stamp = stamp_of(&file);
        Ok((read_all(file, path, max_len)?, stamp))
    }

    fn stamp(&self, path: &str) -> Option<Stamp> {
        stamp_of(&self.open_at(path, OFlag::O_PATH, FILE_MODE).ok()?)
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut stream = Dir::from_fd(self.open_dir(dir)?).map_err(|e| io(e, || format!("list {dir}")))?;
        for entry in stream.iter() {
            let entry = entry.map_err(|e| io(e, || format!("list {dir}")))?;
            let name = entry.file_name().to_string_lossy();
            if name != "." && name != ".." {
                names.push(name.into_owned());
            }
        }
        Ok(names)
    }

    fn create_dir(&self, dir: &str) -> Result<()> {
        let (parent, name) = self.parent(dir)?;
        mkdirat(&parent, name, DIR_MODE).map_err(|e| io(e, || format!("create directory {dir}")))?;
        match self.owner {
            Some(_) => self.give_to_owner(&self.open_dir(dir)?, dir),
            None => Ok(()),
        }
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.open_file(path, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC)?;
        file.write_all(bytes).within(|| format!("write {path}"))?;
        file.sync_all().within(|| format!("sync {path}"))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        renameat(&from_dir, from_name, &to_dir, to_name)
            .map_err(|e| io(e, || format!("rename {from} to {to}")))
    }

    fn remove(&self, path: &str) -> Result<()> {
        let (dir, name) = self.parent(path)?;
        unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir).map_err(|e| io(e, || format!("remove {path}")))
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        File::from(self.open_dir(dir)?)
            .sync_all()
            .within(|| format!("sync directory {dir}"))?;
        // An xfs that has shut down after an error syncs directories "successfully", but opens nothing any more.
        self.open_dir(dir)
            .map(drop)
            .within(|| format!("sync directory {dir}"))
    }

    fn open_layer(&self, path: &str) -> Result<Box<dyn LayerRead>> {
        Ok(Box::new(LayerFile {
            file: self.open_file(path, OFlag::O_RDONLY)?,
            direct: OnceLock::new(),
            always_waits: AtomicBool::new(false),
        }))
    }

    fn create_layer(&self, path: &str) -> Result<Box<dyn LayerAppend>> {
        let (dir, name) = self.parent(path)?;
        let file = blockio::create_direct(dir.as_fd(), name).map_err(|e| layer_error(e, path))?;
        self.give_to_owner(&file, path)?;
        let options = WriteOptions {
            buffer_bytes: 1 << 20,
            depth: 16,
            start_offset: 0,
            pad_tail: false,
            extend_bytes: 256 << 20,
        };
        let writer = new_writer(file, &options).map_err(|e| layer_error(e, path))?;
        Ok(Box::new(NewLayer {
            writer,
            path: path.to_owned(),
        }))
    }

    fn reclaim(&self, path: &str, dead: &[Range<u64>]) -> Result<()> {
        let file = self.open_file(path, OFlag::O_RDWR)?;
        let len = file.metadata().within(|| format!("stat {path}"))?.len();
        for range in dead.iter().filter(|range| range.start < len) {
            punch(&file, range.start, range.end.min(len) - range.start)
                .within(|| format!("free space of {path}"))?;
        }
        file.sync_data().within(|| format!("sync {path}"))
    }

    fn frees_only_whole_writes(&self) -> bool {
        self.is_btrfs
    }

    fn allocated(&self, path: &str) -> Result<u64> {
        let metadata = self.open_file(path, OFlag::O_RDONLY)?.metadata();
        // stat(2) counts in units of 512 bytes, whatever the filesystem's blocks are.
        Ok(metadata.within(|| format!("stat {path}"))?.blocks() * 512)
    }

    fn lock(&self, path: &str, mode: LockMode) -> Result<Lock> {
        match mode {
            LockMode::Shared => self.flock(path, OFlag::O_RDONLY, LockedFile::try_lock_shared),
            LockMode::Exclusive => self.flock(path, OFlag::O_RDONLY, LockedFile::try_lock),
            LockMode::ExclusiveCreate => {
                self.flock(path, OFlag::O_RDWR | OFlag::O_CREAT, LockedFile::try_lock)
            }
        }
    }

    fn holders(&self, path: &str) -> Vec<String> {
        let file = self.open_file(path, OFlag::O_RDONLY);
        file.map(|file| holders::of(&file)).unwrap_or_default()
    }
}

/// Gives back the space of a range, which then reads as zeros.
fn punch(file: &File, offset: u64, len: u64) -> Result<()> {
    let signed =
        |value: u64| i64::try_from(value).map_err(|_| Error::invalid(format!("{value} is beyond any file")));
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, mode, signed(offset)?, signed(len)?)
        .map_err(|errno| io(errno, || format!("punch {len} bytes at {offset}")))
}

#[derive(Debug)]
struct LayerFile {
    file: File,
    /// The same file with O_DIRECT, from the first read on that wants it; none where the filesystem has no O_DIRECT.
    direct: OnceLock<Option<File>>,
    /// Set once the kernel has said that it cannot read this file without waiting (tmpfs, many network
    /// filesystems, filters of system calls).
    always_waits: AtomicBool,
}

impl LayerRead for LayerFile {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(target, offset)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => Error::damaged(format!(
                    "ends before byte {}",
                    offset.saturating_add(target.len() as u64)
                )),
                _ => Error::io(format!("read {} bytes at {offset}", target.len()), error),
            })
    }

    fn read_once(&self, offset: u64, target: &mut AlignedBuf) -> Result<()> {
        let direct = self.direct.get_or_init(|| reopened_direct(&self.file));
        match direct.as_ref().map(|file| file.read_exact_at(target, offset)) {
            Some(Ok(())) => Ok(()),
            // Whatever is wrong, the usual way says it; and blocks of the device may be larger than ours.
            Some(Err(_)) | None => self.read_at(offset, target),
        }
    }

    fn read_now(&self, offset: u64, target: &mut [u8]) -> bool {
        if self.always_waits.load(Ordering::Relaxed) {
            return false;
        }
        match read_without_waiting(&self.file, offset, target) {
            // A page is missing in the middle, or the file ends: whoever waits for it learns which.
            Ok(len) => len == target.len(),
            Err(Errno::EAGAIN | Errno::EINTR) => false,
            Err(_) => {
                self.always_waits.store(true, Ordering::Relaxed);
                false
            }
        }
    }

    fn will_read(&self, offset: u64, length: u64) {
        if let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) {
            // Advice: a filesystem that takes none reads later.
            let _ = posix_fadvise(
                &self.file,
                offset,
                length,
                PosixFadviseAdvice::POSIX_FADV_WILLNEED,
            );
        }
    }
}

/// The same file, open once more with O_DIRECT, which a duplicate of the descriptor would share.
fn reopened_direct(file: &File) -> Option<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path);
    opened.ok()
}

/// Reads what the page cache holds from `offset` on, up to the first page that it does not.
fn read_without_waiting(file: &File, offset: u64, target: &mut [u8]) -> nix::Result<usize> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EAGAIN)?;
    let part = libc::iovec {
        iov_base: target.as_mut_ptr().cast(),
        iov_len: target.len(),
    };
    // SAFETY: the one part that is described is `target`, borrowed for writing until the call has returned.
    let done = unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, offset, libc::RWF_NOWAIT) };
    usize::try_from(done).map_err(|_| Errno::last())
}

#[derive(Debug)]
struct NewLayer {
    writer: SequentialWriter,
    path: String,
}

/// A writer whose positions are what the format says: multiples of a block. Where the filesystem's O_DIRECT
/// wants larger ones, the page cache takes the writes instead.
fn new_writer(file: File, options: &WriteOptions) -> blockio::Result<SequentialWriter> {
    let writer = SequentialWriter::new(file, options)?;
    if writer.alignment() <= BLOCK_LEN {
        return Ok(writer);
    }
    let file = writer.finish()?;
    blockio::set_buffered(&file);
    SequentialWriter::new(file, options)
}

fn layer_error(error: blockio::Error, path: &str) -> Error {
    let kind = if error.kind() == blockio::ErrorKind::Exists {
        ErrorKind::Exists
    } else {
        ErrorKind::Io
    };
    Error::new(kind, format!("write {path}")).caused_by(error)
}

impl LayerAppend for NewLayer {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.append(bytes).map_err(|e| layer_error(e, &self.path))
    }

    fn cut(&mut self) -> Result<()> {
        self.writer.submit().map_err(|e| layer_error(e, &self.path))
    }

    fn sync(&mut self) -> Result<()> {
        let padded = self
            .writer
            .pad_to(BLOCK_LEN)
            .and_then(|()| self.writer.flush())
            .and_then(|()| self.writer.trim());
        padded.map_err(|e| layer_error(e, &self.path))?;
        self.writer
            .file()
            .sync_data()
            .within(|| format!("sync {}", self.path))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "this is test code")]
mod tests {
    use super::*;

    /// Root works on the store of a service that runs as another user.
    #[test]
    fn what_root_makes_belongs_to_the_owner_of_the_store() {
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let owner = |name: &str| {
            let found = std::fs::symlink_metadata(dir.path().join(name)).unwrap();
            (found.uid(), found.gid())
        };
        std::fs::write(dir.path().join("mine"), "").unwrap();
        std::os::unix::fs::chown(dir.path(), Some(65534), Some(65533)).unwrap();
        let storage = DirStorage::open(dir.path()).unwrap();
        storage.create_dir("chain").unwrap();
        storage.write("chain/chain.json", b"{}").unwrap();
        storage.create_layer("chain/layer").unwrap();
        storage.lock("chain/lock", LockMode::ExclusiveCreate).unwrap();
        storage.write("mine", b"as it was").unwrap();
        for made in ["chain", "chain/chain.json", "chain/layer", "chain/lock"] {
            assert_eq!(owner(made), (65534, 65533), "{made}");
        }
        assert_eq!(owner("mine"), (0, 0), "it was not made by the store");
    }

    #[test]
    fn what_is_read_once_is_what_the_file_holds() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let bytes: Vec<u8> = (0..=250).cycle().take(5 * 4096).collect();
        std::fs::write(dir.path().join("layer"), &bytes).unwrap();
        let storage = DirStorage::open(dir.path()).unwrap();
        let layer = storage.open_layer("layer").unwrap();
        let mut target = AlignedBuf::new(2 * 4096);
        for start in [0, 4096, 3 * 4096] {
            layer.read_once(start as u64, &mut target).unwrap();
            assert!(target[..] == bytes[start..start + target.len()], "at {start}");
        }
        let behind = layer.read_once(4 * 4096, &mut target).unwrap_err();
        assert_eq!(behind.kind(), ErrorKind::Damaged);
        assert!(behind.to_string().contains("ends before byte 24576"), "{behind}");
    }
}
