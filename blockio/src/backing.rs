//! What lies behind a loop device.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::identity::attribute;
use crate::open::split_device;

/// The file or block device behind a loop device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backing {
    /// As the kernel names it; it may lead nowhere or elsewhere, after an unlink or in another mount namespace.
    pub path: PathBuf,
    /// Filesystem and inode number.
    pub inode: (u64, u64),
    /// Major and minor number when it is a block device.
    pub device: Option<(u32, u32)>,
}

impl Backing {
    /// Of the block device with this sysfs directory; `None` when that is no loop device, or a detached one.
    pub(crate) fn of(directory: &Path) -> Option<Backing> {
        let path = PathBuf::from(attribute(&directory.join("loop/backing_file"))?);
        let numbers = ask_loop_driver(directory).or_else(|| stat(&path))?;
        let device = Some(split_device(numbers.rdev)).filter(|_| numbers.rdev != 0);
        Some(Backing {
            path,
            inode: (numbers.dev, numbers.ino),
            device,
        })
    }

    /// Whether the path still leads to it.
    pub(crate) fn path_is_current(&self) -> bool {
        stat(&self.path).is_some_and(|numbers| (numbers.dev, numbers.ino) == self.inode)
    }
}

struct Numbers {
    dev: u64,
    ino: u64,
    rdev: u64,
}

fn stat(path: &Path) -> Option<Numbers> {
    let metadata = fs::metadata(path).ok()?;
    Some(Numbers {
        dev: metadata.dev(),
        ino: metadata.ino(),
        rdev: metadata.rdev(),
    })
}

/// `struct loop_info64` of `linux/loop.h`.
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
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

const _: () = assert!(size_of::<LoopInfo>() == 232);

mod ioctl {
    nix::ioctl_read_bad!(get_status64, 0x4C05, super::LoopInfo);
}

/// The driver knows the inode it holds; a path may be stale.
fn ask_loop_driver(directory: &Path) -> Option<Numbers> {
    let node = File::open(Path::new("/dev").join(directory.file_name()?)).ok()?;
    // SAFETY: `LoopInfo` consists of integers only, for which all zeros is a value.
    let mut info: LoopInfo = unsafe { std::mem::zeroed() };
    // SAFETY: LOOP_GET_STATUS64 stores one `loop_info64`, which has this layout.
    unsafe { ioctl::get_status64(node.as_raw_fd(), &raw mut info) }.ok()?;
    // The kernel's encoding of these numbers (`huge_encode_dev`) is that of a `dev_t` in user space.
    Some(Numbers {
        dev: info.device,
        ino: info.inode,
        rdev: info.rdevice,
    })
}
