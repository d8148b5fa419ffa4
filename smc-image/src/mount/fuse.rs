//! The disks of an image as files, served to the kernel through FUSE by a process of its own. What the kernel writes to
//! them goes to an overlay that ends with the process.
//!
//! The process that mounts holds a pipe to this one. While that pipe is open, or somebody has a file open (a loop
//! device does for as long as it is attached), the files are served. When neither is, everything that this
//! process and its mounter made is removed, and it ends: so nothing stays behind, whoever unmounts, and however the
//! mounter died.

use super::setup::Service;
use super::state;
use crate::catalog::GuestDisks;
use crate::context::Context;
use crate::exit::{advice, full_message};
use crate::helper::{Helper, Opened};
use crate::overlay;
use anyhow::{Context as _, ensure};
use fuser::{
    AccessFlags, BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request, Session, WriteFlags,
};
use nbd::{Export, ExportError, ExportInfo, FailureKind, Overlay, Zeroing};
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

/// What the server says on its stdout when the files are there; what a helper guest has opened follows, in JSON.
pub const READY: &str = "ready ";

/// Nothing here ever changes but what is in the files.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// The inode of the first disk; the next ones follow.
const FIRST_DISK: u64 = 2;

/// Requests that the kernel may have under way in the background (readahead).
const BACKGROUND_MAX: u16 = 64;

/// Of the kernel's include/uapi/linux/prctl.h.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Serves the disks of an image until nobody needs them, in the mount with the private directory `dir`.
///
/// # Errors
/// An image that cannot be opened or is another one by now, and a FUSE session that cannot begin.
pub fn serve(context: &Context, service: &Service<'_>, dir: &Path) -> anyhow::Result<ExitCode> {
    let Service { image, image_id, .. } = service;
    let opened = context.open_image(image)?;
    let found = opened.manifest().id.to_string();
    ensure!(
        found == *image_id,
        "{image} is another image now: its id is {found}, not {image_id}"
    );
    let limit = service.overlay_limit_bytes;
    let memory = overlay::memory_bytes(limit);
    let disks = Arc::new(GuestDisks::new(&opened, service.overlay_dir, memory, limit)?);
    become_io_flusher();
    let users = Arc::new(Users::default());
    let mut files: Vec<DiskFile> = disks.disks().iter().map(DiskFile::of_disk).collect();
    let key = service.helper.map(|_| read_key()).transpose()?.flatten();
    watch_mounter(users.clone())?;
    let mut found = Opened::default();
    // It ends with this function, after everybody who reads its volumes.
    let mut _helper = None;
    if let Some(means) = &service.helper {
        let is_canceled = || users.now().mounter_gone;
        match Helper::start(&opened, &disks, means, key, &is_canceled) {
            Ok((helper, of_helper)) => {
                files.extend(volume_files(&helper, &of_helper));
                found = of_helper;
                _helper = Some(helper);
            }
            // The disks are served all the same.
            Err(error) => found.problems.push(why_not(&error)),
        }
    }
    let _session = start(files, users.clone(), &state::fuse_dir(dir))?;
    let ready = format!("{READY}{}\n", serde_json::to_string(&found)?);
    let told = io::stdout()
        .write_all(ready.as_bytes())
        .and_then(|()| io::stdout().flush());
    told.context("tell that the disks are there")?;
    users.wait_until_gone();
    state::remove(dir)?;
    Ok(ExitCode::SUCCESS)
}

/// The key of encrypted disks, which is the first line of what the mounter says. A byte at a time: what follows is for others.
fn read_key() -> anyhow::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while io::stdin().read(&mut byte).context("wait for the key")? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    serde_json::from_slice(&line).context("read the key")
}

fn volume_files(helper: &Helper, opened: &Opened) -> Vec<DiskFile> {
    let files = opened.volumes.iter().enumerate().map(|(index, volume)| DiskFile {
        name: volume.name.clone(),
        size_bytes: volume.size_bytes,
        block_bytes: volume.block_bytes,
        disk: Arc::new(helper.export(index, volume)),
    });
    // One without a name is not shown.
    files.filter(|file| !file.name.is_empty()).collect()
}

/// Why there is no helper guest, with what to do about it.
fn why_not(error: &anyhow::Error) -> String {
    let why = format!("no helper guest: {}", full_message(error));
    match advice(error) {
        Some(advice) => format!("{why}; {advice}"),
        None => why,
    }
}

/// Asks the kernel never to make this thread, or one that it starts, wait for the filesystem whose writes it serves: under
/// memory pressure both would wait for ever. Kernels before 5.6 do not know this.
fn become_io_flusher() {
    // SAFETY: PR_SET_IO_FLUSHER takes numbers only and touches no memory of ours; a refusal changes nothing.
    let set = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if set != 0 {
        tracing::debug!("PR_SET_IO_FLUSHER is refused: {}", io::Error::last_os_error());
    }
}

fn start(files: Vec<DiskFile>, users: Arc<Users>, mount_point: &Path) -> anyhow::Result<BackgroundSession> {
    let mut config = Config::default();
    config.mount_options = vec![
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
    let filesystem = DiskFiles {
        files,
        users,
        made: SystemTime::now(),
        is_full: AtomicBool::new(false),
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

/// Who needs the files.
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

/// A file: a disk of the image, or a volume in the helper guest.
struct DiskFile {
    name: String,
    size_bytes: u64,
    /// The size of reads that suits it.
    block_bytes: u32,
    disk: Arc<dyn Export>,
}

impl DiskFile {
    fn of_disk((info, disk): &(ExportInfo, Arc<Overlay>)) -> Self {
        Self {
            name: info.name.clone(),
            size_bytes: info.size_bytes,
            block_bytes: info.preferred_block_bytes,
            disk: disk.clone(),
        }
    }
}

/// The filesystem: a directory with a file for each disk, which has the disk's name.
struct DiskFiles {
    files: Vec<DiskFile>,
    users: Arc<Users>,
    made: SystemTime,
    /// Whether a write has found no space.
    is_full: AtomicBool,
}

impl DiskFiles {
    fn disk(&self, inode: INodeNo) -> Option<&DiskFile> {
        let index = usize::try_from(inode.0.checked_sub(FIRST_DISK)?).ok()?;
        self.files.get(index)
    }

    /// The disks with their inodes.
    fn files(&self) -> impl Iterator<Item = (INodeNo, &str)> {
        let names = self.files.iter().map(|file| file.name.as_str());
        (FIRST_DISK..).map(INodeNo).zip(names)
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, nlink, size, blksize) = match self.disk(inode) {
            Some(file) => (FileType::RegularFile, 0o600, 1, file.size_bytes, file.block_bytes),
            None if inode == INodeNo::ROOT => (FileType::Directory, 0o500, 2, 0, 4096),
            None => return None,
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
            blksize,
            flags: 0,
        })
    }

    /// Bytes of a disk; fewer where it ends.
    fn bytes(&self, inode: INodeNo, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let DiskFile { size_bytes, disk, .. } = self.disk(inode).ok_or(Errno::ENOENT)?;
        let left = size_bytes.saturating_sub(offset);
        let mut bytes = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(size as usize)];
        if !bytes.is_empty() {
            // Told in the log already.
            disk.read_at(offset, &mut bytes).map_err(|_| Errno::EIO)?;
        }
        Ok(bytes)
    }

    /// The disk, where a range that is to be changed lies within it and is not empty.
    fn writable(&self, inode: INodeNo, offset: u64, length: u64) -> Result<&dyn Export, Errno> {
        let DiskFile { size_bytes, disk, .. } = self.disk(inode).ok_or(Errno::ENOENT)?;
        let fits = offset
            .checked_add(length)
            .is_some_and(|end| length > 0 && end <= *size_bytes);
        fits.then_some(&**disk).ok_or(Errno::EINVAL)
    }

    /// What a write that failed answers; why goes to the log, once for an overlay that is full.
    fn failed(&self, error: &ExportError) -> Errno {
        if error.kind != FailureKind::NoSpace {
            tracing::error!("cannot write {error}");
            return Errno::EIO;
        }
        if !self.is_full.swap(true, Ordering::Relaxed) {
            tracing::error!("no space was left for changes: mount it with a larger --overlay-limit");
        }
        Errno::ENOSPC
    }
}

impl Filesystem for DiskFiles {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Where the kernel wants less it says so by the error, and keeps its own.
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let inode = self
            .files()
            .find(|(_, disk)| parent == INodeNo::ROOT && name == *disk);
        match inode.and_then(|(inode, _)| self.attributes(inode)) {
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

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let disk = self.writable(ino, offset, data.len() as u64);
        let written = disk.and_then(|disk| disk.write_at(offset, data).map_err(|error| self.failed(&error)));
        match written {
            // The kernel sends no more than a u32 can count.
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(error) => reply.error(error),
        }
    }

    /// What the loop driver makes of a discard, and of writing zeros.
    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) == 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let disk = self.writable(ino, offset, length);
        let zeroed = disk.and_then(|disk| {
            disk.write_zeroes(offset, length, Zeroing::default())
                .map_err(|error| self.failed(&error))
        });
        match zeroed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
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
        let own = [".", ".."].map(|name| (INodeNo::ROOT, FileType::Directory, name));
        let files = self
            .files()
            .map(|(inode, name)| (inode, FileType::RegularFile, name));
        let unseen = (1..)
            .zip(own.into_iter().chain(files))
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

    /// What is written lives as long as this process, whose memory needs no sync.
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
