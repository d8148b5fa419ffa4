//! Read-only loop devices that go away with their last user.

use anyhow::{Context, bail};
use nix::errno::Errno;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

// Of the kernel's include/uapi/linux/loop.h.
const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_NAME_SIZE: usize = 64;

/// How often a free device may be taken by somebody else before we give up.
const TRIES: usize = 64;

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
    file_name: [u8; LO_NAME_SIZE],
    crypt_name: [u8; LO_NAME_SIZE],
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

/// A loop device that we hold open; the kernel detaches it when its last user is gone.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _handle: File,
}

impl LoopDevice {
    /// Attaches `length` bytes of `backing` from `offset` on, with blocks of `block_bytes`.
    pub fn attach(backing: &File, offset: u64, length: u64, block_bytes: u32) -> anyhow::Result<Self> {
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control");
        let control = control.context("open /dev/loop-control")?;
        let config = config(backing.as_raw_fd(), offset, length, block_bytes)?;
        for _ in 0..TRIES {
            // SAFETY: LOOP_CTL_GET_FREE takes no argument and touches no memory of ours.
            let number = Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) });
            let path = PathBuf::from(format!("/dev/loop{}", number.context("find a free loop device")?));
            let handle = File::open(&path).with_context(|| format!("open {}", path.display()))?;
            // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, which `config` has the layout of, and keeps no
            // pointer to it; both descriptors are open.
            match Errno::result(unsafe { libc::ioctl(handle.as_raw_fd(), LOOP_CONFIGURE, &raw const config) })
            {
                Ok(_) => {
                    return Ok(Self {
                        path,
                        _handle: handle,
                    });
                }
                // Somebody else was faster.
                Err(Errno::EBUSY) => {}
                Err(error) => return Err(error).with_context(|| format!("configure {}", path.display())),
            }
        }
        bail!("no loop device stays free for long enough")
    }

    /// The device node, `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn config(fd: RawFd, offset: u64, length: u64, block_bytes: u32) -> anyhow::Result<LoopConfig> {
    let info = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset,
        size_limit: length,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
        file_name: [0; LO_NAME_SIZE],
        crypt_name: [0; LO_NAME_SIZE],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    Ok(LoopConfig {
        fd: fd.try_into()?,
        block_size: block_bytes,
        info,
        reserved: [0; 8],
    })
}

/// Whether a loop device is attached to this file.
pub fn is_attached(device: &Path, backing: &Path) -> bool {
    let Some(name) = device.file_name() else {
        return false;
    };
    let found = fs::read_to_string(Path::new("/sys/block").join(name).join("loop/backing_file"));
    found.is_ok_and(|found| Path::new(found.trim_end_matches('\n')) == backing)
}

/// Detaches a device, at once or, if it has other users, when they are gone.
pub fn detach(device: &Path) -> anyhow::Result<()> {
    let handle = File::open(device).with_context(|| format!("open {}", device.display()))?;
    // SAFETY: LOOP_CLR_FD takes no argument and touches no memory of ours; the descriptor is open.
    match Errno::result(unsafe { libc::ioctl(handle.as_raw_fd(), LOOP_CLR_FD) }) {
        Ok(_) | Err(Errno::ENXIO) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("detach {}", device.display())),
    }
}
