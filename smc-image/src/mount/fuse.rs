//! One disk of an image as a file, served to the kernel through FUSE by a process of its own.
//!
//! The process that mounts holds a pipe to this one. While that pipe is open, or somebody has the file open (the
//! loop device does for as long as it is attached), the file is served. When neither is, everything that this
//! process and its mounter made is removed, and it ends: so nothing stays behind, whoever unmounts, and however the
//! mounter died.

use super::{DISK_FILE, state};
use crate::catalog::{ReadFailures, ReportingDisk};
use crate::context::Context;
use anyhow::{Context as _, ensure};
use fuser::{
    AccessFlags, BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyXattr, Request, Session,
};
use imagefmt::ImageRef;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

/// What the server says on its stdout when the file is there.
pub const READY: &str = "ready\n";

/// Nothing here ever changes.
const FOREVER: Duration = Duration::from_secs(1 << 30);

const DISK: INodeNo = INodeNo(2);

/// Requests that the kernel may have under way in the background (readahead).
const BACKGROUND_MAX: u16 = 64;

/// Serves `image` (one disk, by number), which has the random id `id`, in the private directory `dir` of a mount,
/// until nobody needs it.
///
/// # Errors
/// An image that cannot be opened or is another one by now, and a FUSE session that cannot begin.
pub fn serve(context: &Context, image: &ImageRef, id: &str, dir: &Path) -> anyhow::Result<ExitCode> {
    let opened = context.open_image(image)?;
    let found = opened.manifest().id.to_string();
    ensure!(
        found == id,
        "{image} is another image now: its id is {found}, not {id}"
    );
    let disk = opened.disk(image.disk.as_deref())?.clone();
    let disk = ReportingDisk::new(disk, Arc::new(ReadFailures::default()));
    let users = Arc::new(Users::default());
    let _session = start(disk, users.clone(), &state::fuse_dir(dir))?;
    let ready = io::stdout()
        .write_all(READY.as_bytes())
        .and_then(|()| io::stdout().flush());
    ready.context("tell that the disk is there")?;
    watch_mounter(users.clone())?;
    users.wait_until_gone();
    state::remove(dir)?;
    Ok(ExitCode::SUCCESS)
}

fn start(disk: ReportingDisk, users: Arc<Users>, mount_point: &Path) -> anyhow::Result<BackgroundSession> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoExec,
        MountOption::DefaultPermissions,
        MountOption::FSName("smc-image".to_owned()),
        MountOption::Subtype("smc".to_owned()),
    ];
    config.n_threads = Some(
        thread::available_parallelism()
            .map_or(2, usize::from)
            .clamp(2, 16),
    );
    config.clone_fd = true;
    let filesystem = DiskFile {
        size_bytes: disk.disk().size_bytes(),
        disk,
        users,
        made: SystemTime::now(),
    };
    let session = Session::new(filesystem, mount_point, &config);
    let session = session.with_context(|| format!("mount {} through FUSE", mount_point.display()))?;
    session.spawn().context("start a thread")
}

/// Notices when the mounter closes its end of our stdin, if only by dying.
fn watch_mounter(users: Arc<Users>) -> anyhow::Result<()> {
    let watch = move || {
        while let Ok(1..) = io::stdin().read(&mut [0]) {}
        users.mounter_is_gone();
    };
    thread::Builder::new()
        .name("mounter".to_owned())
        .spawn(watch)
        .context("start a thread")?;
    Ok(())
}

/// Who needs the file.
#[derive(Debug, Default)]
struct Users {
    now: Mutex<Using>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Using {
    open_count: u64,
    mounter_gone: bool,
}

impl Users {
    fn now(&self) -> MutexGuard<'_, Using> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self) {
        self.now().open_count += 1;
    }

    fn released(&self) {
        let mut now = self.now();
        now.open_count = now.open_count.saturating_sub(1);
        self.changed.notify_all();
    }

    fn mounter_is_gone(&self) {
        self.now().mounter_gone = true;
        self.changed.notify_all();
    }

    fn wait_until_gone(&self) {
        let needed = |now: &mut Using| now.open_count > 0 || !now.mounter_gone;
        let _now = self
            .changed
            .wait_while(self.now(), needed)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

/// The filesystem: a directory with one file.
#[derive(Debug)]
struct DiskFile {
    disk: ReportingDisk,
    size_bytes: u64,
    users: Arc<Users>,
    made: SystemTime,
}

impl DiskFile {
    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, nlink, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o500, 2, 0),
            DISK => (FileType::RegularFile, 0o400, 1, self.size_bytes),
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(512),
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
            crtime: self.made,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: self.disk.disk().geometry().cluster_size().bytes(),
            flags: 0,
        })
    }
}

impl Filesystem for DiskFile {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Where the kernel wants less it says so by the error, and keeps its own.
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self
            .attributes(DISK)
            .filter(|_| parent == INodeNo::ROOT && name == DISK_FILE)
        {
            Some(attributes) => reply.entry(&FOREVER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino) {
            Some(attributes) => reply.attr(&FOREVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Counted first: when the opener hears of it, it must count already.
        self.users.opened();
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let left = self.size_bytes.saturating_sub(offset);
        let mut bytes = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(size as usize)];
        match self.disk.read(offset, &mut bytes) {
            Ok(()) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
        self.users.released();
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (DISK, FileType::RegularFile, DISK_FILE),
        ];
        let unseen = (1..)
            .zip(entries)
            .skip(usize::try_from(offset).unwrap_or(usize::MAX));
        for (next, (inode, kind, name)) in unseen {
            if reply.add(inode, next, kind, name) {
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

    /// A read-only file has nothing to sync; the loop driver asks all the same when its device is closed.
    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
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
