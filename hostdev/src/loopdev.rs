//! Loop devices: attaching, detaching, and what lies behind one (loop(4), the kernel's include/uapi/linux/loop.h).

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::block::BlockDevice;
use crate::root::path_of;
use crate::{DeviceNumber, Error, ErrorKind, FileId, Result};

const CONTROL: &str = "/dev/loop-control";

/// How often a free device may be taken by another process before it is an error.
const TRIES_MAX: usize = 64;

const FLAG_READ_ONLY: u32 = 1;
const FLAG_AUTOCLEAR: u32 = 4;
const FLAG_PARTITIONS: u32 = 8;
const FLAG_DIRECT_IO: u32 = 16;

const NAME_SIZE: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; NAME_SIZE],
    crypt_name: [u8; NAME_SIZE],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

mod ioctl {
    nix::ioctl_none_bad!(clear_fd, 0x4C01);
    nix::ioctl_read_bad!(get_status64, 0x4C05, super::LoopInfo);
    nix::ioctl_write_ptr_bad!(configure, 0x4C0A, super::LoopConfig);
    nix::ioctl_none_bad!(get_free, 0x4C82);
}

/// How a file is attached to a loop device. The default is all of the file, writable, through the page cache, in
/// blocks of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoopOptions {
    /// Where in the file the device begins, in bytes.
    pub offset_bytes: u64,
    /// Length of the device in bytes; 0 for all up to the end of the file.
    pub length_bytes: u64,
    /// Logical block size of the device; 0 for 512.
    pub block_bytes: u32,
    /// Whether nothing can be written to the device.
    pub read_only: bool,
    /// Whether the device has partitions: the kernel then looks for them.
    pub partitions: bool,
    /// Whether the driver reads and writes the file with O_DIRECT. Where the filesystem cannot, it does without.
    pub direct_io: bool,
}

/// An attached loop device. The kernel detaches it when its last user is gone: this value, or the process that mounted or
/// opened the device meanwhile. So it also goes when the process is killed.
///
/// It is the guard of tests too: open the file for reading and writing, attach it with
/// `LoopOptions { direct_io: true, ..LoopOptions::default() }`, and keep the value. Whether the device is free again is
/// what [`loop_status`] tells.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    /// Kept open: it is a user of the device.
    handle: File,
}

impl LoopDevice {
    /// Attaches `backing`, a file or block device, to a free loop device. It must be open for writing unless
    /// `read_only` is set.
    ///
    /// # Errors
    /// `NotFound` without the driver; `PermissionDenied`; `Busy` when every free device is taken by another process;
    /// `Io` when the driver refuses (EINVAL), as it does an odd block size, and anything before Linux 5.8.
    pub fn attach(backing: BorrowedFd<'_>, options: &LoopOptions) -> Result<LoopDevice> {
        let control = OpenOptions::new().read(true).write(true).open(CONTROL);
        let control = control.map_err(|source| Error::os("open", CONTROL, source))?;
        let config = options.config(backing);
        for _ in 0..TRIES_MAX {
            // SAFETY: LOOP_CTL_GET_FREE takes no argument and touches no memory of ours; the descriptor is open.
            let number = unsafe { ioctl::get_free(control.as_raw_fd()) };
            let number = number.map_err(|error| Error::os("find a free loop device with", CONTROL, error))?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            // The driver makes a device read-only whose node is not open for writing.
            let opened = OpenOptions::new()
                .read(true)
                .write(!options.read_only)
                .open(&path);
            let node = opened.map_err(|source| Error::os("open", &path, source))?;
            // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, which `config` has the layout of, and keeps no
            // pointer to it; both descriptors are open.
            match unsafe { ioctl::configure(node.as_raw_fd(), &raw const config) } {
                Ok(_) => return LoopDevice::hold(path, node),
                // Another process was faster.
                Err(Errno::EBUSY) => {}
                Err(error) => return Err(Error::os("configure", path, error)),
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            "get a free loop device from",
            CONTROL,
        ))
    }

    /// Keeps the device attached with a handle that cannot write, so that closing it says nothing to udev.
    fn hold(path: PathBuf, node: File) -> Result<LoopDevice> {
        let handle = File::open(&path).map_err(|source| Error::os("open", &path, source))?;
        drop(node);
        Ok(LoopDevice { path, handle })
    }

    /// The device node, `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the driver says of the device.
    ///
    /// # Errors
    /// As for [`loop_status`], and `NotFound` when another process detached it.
    pub fn status(&self) -> Result<LoopStatus> {
        let status = status_of(&self.handle).map_err(|error| Error::os("examine", &self.path, error))?;
        status.ok_or_else(|| Error::new(ErrorKind::NotFound, "examine", &self.path))
    }
}

impl LoopOptions {
    fn config(&self, backing: BorrowedFd<'_>) -> LoopConfig {
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        // SAFETY: `LoopInfo` consists of integers only, for which all zeros is a value.
        let mut info: LoopInfo = unsafe { std::mem::zeroed() };
        info.offset = self.offset_bytes;
        info.size_limit = self.length_bytes;
        info.flags = FLAG_AUTOCLEAR
            | flag(self.read_only, FLAG_READ_ONLY)
            | flag(self.partitions, FLAG_PARTITIONS)
            | flag(self.direct_io, FLAG_DIRECT_IO);
        LoopConfig {
            // Descriptors are not negative.
            fd: backing.as_raw_fd().unsigned_abs(),
            block_size: self.block_bytes,
            info,
            reserved: [0; 8],
        }
    }
}

/// What the driver says of a loop device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopStatus {
    /// The file behind it, or the node of the block device behind it.
    pub file: FileId,
    /// The block device behind it; `None` if it is a file.
    pub device: Option<DeviceNumber>,
    /// Where in the file the device begins, in bytes.
    pub offset_bytes: u64,
    /// Longest length of the device in bytes; 0 for no limit.
    pub length_bytes: u64,
    /// Whether nothing can be written to it.
    pub read_only: bool,
}

/// What lies behind the loop device at `path`; `None` if nothing is attached to it.
///
/// # Errors
/// `NotFound`, `PermissionDenied`; `Unsupported` for a device that is no loop device; `Io`.
pub fn loop_status(path: &Path) -> Result<Option<LoopStatus>> {
    let node = File::open(path).map_err(|source| Error::os("open", path, source))?;
    status_of(&node).map_err(|error| Error::os("examine", path, error))
}

fn status_of(node: &File) -> std::result::Result<Option<LoopStatus>, Errno> {
    // SAFETY: `LoopInfo` consists of integers only, for which all zeros is a value.
    let mut info: LoopInfo = unsafe { std::mem::zeroed() };
    // SAFETY: LOOP_GET_STATUS64 stores one `loop_info64`, which has this layout; the descriptor is open.
    match unsafe { ioctl::get_status64(node.as_raw_fd(), &raw mut info) } {
        Ok(_) => {}
        Err(Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(error),
    }
    // The kernel's encoding of these numbers (`huge_encode_dev`) is that of a `dev_t` in user space.
    Ok(Some(LoopStatus {
        file: FileId {
            filesystem: info.device,
            inode: info.inode,
        },
        device: Some(info.rdevice)
            .filter(|number| *number != 0)
            .map(DeviceNumber::of_dev),
        offset_bytes: info.offset,
        length_bytes: info.size_limit,
        read_only: info.flags & FLAG_READ_ONLY != 0,
    }))
}

/// Detaches the loop device at `path`, at once or, if it has other users, when they are gone. One that nothing is
/// attached to stays so.
///
/// # Errors
/// `NotFound`, `PermissionDenied`; `Unsupported` for a device that is no loop device; `Io`.
pub fn detach_loop(path: &Path) -> Result<()> {
    let node = File::open(path).map_err(|source| Error::os("open", path, source))?;
    // SAFETY: LOOP_CLR_FD takes no argument and touches no memory of ours; the descriptor is open.
    match unsafe { ioctl::clear_fd(node.as_raw_fd()) } {
        Ok(_) | Err(Errno::ENXIO) => Ok(()),
        Err(error) => Err(Error::os("detach", path, error)),
    }
}

impl BlockDevice {
    /// The path of what is attached to a loop device, as the kernel names it; `None` for any other device, and when
    /// nothing is attached. It may lead nowhere or elsewhere: after an unlink (it then ends with ` (deleted)`), and
    /// in another mount namespace. The driver knows the file itself ([`loop_status`]).
    ///
    /// # Errors
    /// As for [`Root::attribute`](crate::Root::attribute).
    pub fn backing_path(&self) -> Result<Option<PathBuf>> {
        // Of a partition on a loop device, the disk's.
        let disk = self.whole_disk()?;
        let line = self.root().attribute_bytes(disk.path("loop/backing_file"))?;
        Ok(line.map(|line| path_of(line.strip_suffix(b"\n").unwrap_or(&line).to_vec())))
    }
}
