//! Where the bytes of a file lie on the device of its filesystem (fiemap, the kernel's Documentation/filesystems/fiemap.rst).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::{DeviceNumber, Error, Result};

/// Extents that are asked for at a time.
const AT_ONCE: usize = 64;

/// A file with more extents is not taken for one whose places are known.
const EXTENTS_MAX: usize = 1 << 20;

const LAST: u32 = 0x1;

/// What the kernel says of an extent whose bytes may lie elsewhere, or in another form: unknown, not allocated yet, encoded, encrypted, not
/// aligned, inline, in a tail.
const NOT_PLAIN: u32 = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400;

/// The file lies on an xfs's realtime device, which is another one.
const REALTIME: u32 = 0x1;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` with room for extents.
#[repr(C)]
#[derive(Debug)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; AT_ONCE],
}

/// `struct fsxattr`.
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    flags: u32,
    others: [u32; 4],
    padding: [u8; 8],
}

const _: () = assert!(size_of::<Extent>() == 56 && size_of::<Map>() == 32 + 56 * AT_ONCE);
const _: () = assert!(size_of::<Attributes>() == 28);

mod ioctl {
    // The size in the number is that of the header alone.
    nix::ioctl_readwrite_bad!(map, nix::request_code_readwrite!(b'f', 11, 32), super::Map);
    nix::ioctl_read!(attributes, b'X', 31, super::Attributes);
}

/// Where a file lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePlaces {
    /// The device number of its filesystem: that of a block device, if the filesystem lies on one.
    pub device: DeviceNumber,
    /// Bytes of that device, in the order of the file; holes have none.
    pub bytes: Vec<Range<u64>>,
}

/// Where a regular file lies on the device of its filesystem. `None` where the filesystem does not tell: of btrfs, for example, because
/// its addresses are not those of a device, and of a filesystem that has several devices.
///
/// # Errors
/// When the file cannot be opened or looked at.
pub fn file_places(path: &Path) -> Result<Option<FilePlaces>> {
    let context = |error: io::Error| Error::os("find the places of", path, error);
    // Should it be no regular file, opening it must not wait for anybody.
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = opened.map_err(context)?;
    let metadata = file.metadata().map_err(context)?;
    if !metadata.is_file() || !is_on_one_device(&file).map_err(context)? {
        return Ok(None);
    }
    let bytes = extents(&file, metadata.len()).map_err(context)?;
    Ok(bytes.map(|bytes| FilePlaces {
        device: DeviceNumber::of_dev(metadata.dev()),
        bytes,
    }))
}

/// Whether a filesystem's addresses are those of its one device: ext2, ext3, ext4, and xfs for what is not on its realtime device.
fn is_on_one_device(file: &File) -> io::Result<bool> {
    let kind = nix::sys::statfs::fstatfs(file)?.filesystem_type();
    if kind == nix::sys::statfs::EXT4_SUPER_MAGIC {
        return Ok(true);
    }
    if kind != nix::sys::statfs::XFS_SUPER_MAGIC {
        return Ok(false);
    }
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes a `struct fsxattr` into this one.
    unsafe { ioctl::attributes(file.as_raw_fd(), &raw mut attributes) }?;
    Ok(attributes.flags & REALTIME == 0)
}

/// The places of the first `len` bytes: xfs has room behind the end of a file that it may take back.
fn extents(file: &File, len: u64) -> io::Result<Option<Vec<Range<u64>>>> {
    let mut found = Vec::new();
    let mut start = 0;
    loop {
        let mut map = Map {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped_extents: 0,
            extent_count: u32::try_from(AT_ONCE).unwrap_or(0),
            reserved: 0,
            extents: [Extent::default(); AT_ONCE],
        };
        // SAFETY: the kernel writes at most as many extents as it was told, behind the header.
        unsafe { ioctl::map(file.as_raw_fd(), &raw mut map) }?;
        let count = usize::try_from(map.mapped_extents).unwrap_or(usize::MAX);
        for extent in map.extents.iter().take(count) {
            let used = extent.length.min(len.saturating_sub(extent.logical));
            let end = extent.physical.checked_add(used);
            let next = extent.logical.checked_add(extent.length);
            let (Some(end), Some(next), 0) = (end, next, extent.flags & NOT_PLAIN) else {
                return Ok(None);
            };
            if used > 0 {
                found.push(extent.physical..end);
            }
            if extent.flags & LAST != 0 {
                return Ok(Some(found));
            }
            if next <= start {
                return Ok(None);
            }
            start = next;
        }
        if count == 0 {
            return Ok(Some(found));
        }
        if found.len() > EXTENTS_MAX {
            return Ok(None);
        }
    }
}
