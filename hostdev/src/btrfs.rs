//! What the kernel remembers of btrfs (the kernel's include/uapi/linux/btrfs.h).

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use crate::{Error, Result};

const CONTROL: &str = "/dev/btrfs-control";

const NAME_SIZE: usize = 4088;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolumeArguments {
    fd: i64,
    name: [u8; NAME_SIZE],
}

const _: () = assert!(size_of::<VolumeArguments>() == 4096);

mod ioctl {
    nix::ioctl_write_ptr!(forget_dev, 0x94, 5, super::VolumeArguments);
}

/// Makes the kernel forget that `device` is one of several devices of a btrfs. It otherwise remembers that after the
/// filesystem is unmounted, and would take the device for a part of another one with the same id. A device that it
/// does not know, or that is mounted, stays as it is.
///
/// # Errors
/// `NotFound` without btrfs; `PermissionDenied`; `Io` when the kernel refuses, as it does before Linux 5.4.
pub fn forget_btrfs(device: &Path) -> Result<()> {
    let control = OpenOptions::new().read(true).write(true).open(CONTROL);
    let control = control.map_err(|source| Error::os("open", CONTROL, source))?;
    let mut arguments = VolumeArguments {
        fd: 0,
        name: [0; NAME_SIZE],
    };
    let path = device.as_os_str().as_bytes();
    // One byte stays zero: the end of the name.
    let place = arguments.name[..NAME_SIZE - 1].get_mut(..path.len());
    place
        .ok_or_else(|| Error::os("forget", device, Errno::ENAMETOOLONG))?
        .copy_from_slice(path);
    // SAFETY: BTRFS_IOC_FORGET_DEV reads a `struct btrfs_ioctl_vol_args`, which `arguments` has the layout of, and keeps
    // no pointer to it; the descriptor is open.
    match unsafe { ioctl::forget_dev(control.as_raw_fd(), &raw const arguments) } {
        Ok(_) | Err(Errno::ENOENT | Errno::EBUSY) => Ok(()),
        Err(error) => Err(Error::os("forget", device, error)),
    }
}
