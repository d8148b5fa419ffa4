//! The few calls of bpf(2) beside those of aya: opening what is pinned, ids, maps of a watch.
//!
//! aya opens pins as typed objects that know how to attach and detach; here they are only looked at.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

// Commands of bpf(2): enum bpf_cmd in the kernel's include/uapi/linux/bpf.h.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
pub(crate) const BPF_F_MMAPABLE: u32 = 1 << 10;
pub(crate) const BPF_F_INNER_MAP: u32 = 1 << 12;

#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of what the kernel says about a map, a program or a link.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Info {
    pub kind: u32,
    pub id: u32,
    /// Of a link: the program. Of a map: bytes of a key.
    pub third: u32,
    /// Of a map: bytes of a value.
    pub value_size: u32,
    /// Of a map.
    pub max_entries: u32,
    pub rest: [u32; 3],
}

/// # Safety
/// `attr` is what the command expects, and the memory that it points to may be read and written as the command does.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<RawFd> {
    let attr: *mut T = attr;
    // SAFETY: the caller argues for the content; the size is that of the structure.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T>(of: &T) -> u64 {
    let pointer: *const T = of;
    pointer as u64
}

fn object(path: &Path, fd: u32) -> io::Result<(CString, ObjectAttr)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjectAttr {
        pathname: path.as_ptr() as u64,
        bpf_fd: fd,
        file_flags: 0,
    };
    Ok((path, attr))
}

/// Opens a map, program or link that is pinned.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let (_path, mut attr) = object(path, 0)?;
    // SAFETY: BPF_OBJ_GET reads the path, which `_path` keeps.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a map, program or link.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let (_path, mut attr) = object(path, number(fd))?;
    // SAFETY: BPF_OBJ_PIN reads the path, which `_path` keeps.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// What the kernel says about a map, program or link.
pub(crate) fn info(fd: BorrowedFd<'_>) -> io::Result<Info> {
    let mut info = Info::default();
    let pointer: *mut Info = &raw mut info;
    let mut attr = InfoAttr {
        bpf_fd: number(fd),
        info_len: u32::try_from(size_of::<Info>()).map_err(io::Error::other)?,
        info: pointer as u64,
    };
    // SAFETY: BPF_OBJ_GET_INFO_BY_FD writes at most `info_len` bytes to `info`, which is that large and lives.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Makes an array that can be mapped to memory.
pub(crate) fn create_array(name: &str, value_size: u32, entries: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size,
        max_entries: entries,
        map_flags: BPF_F_MMAPABLE | flags,
        ..CreateAttr::default()
    };
    for (place, byte) in attr.map_name.iter_mut().zip(name.bytes().take(15)) {
        *place = byte;
    }
    // SAFETY: BPF_MAP_CREATE reads the structure only.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attr) }?;
    // SAFETY: the kernel just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a map into a slot of an array of maps.
pub(crate) fn set_inner(outer: BorrowedFd<'_>, slot: u32, inner: BorrowedFd<'_>) -> io::Result<()> {
    let value = number(inner);
    let mut attr = ElementAttr {
        map_fd: number(outer),
        reserved: 0,
        key: address(&slot),
        value: address(&value),
        flags: 0,
    };
    // SAFETY: BPF_MAP_UPDATE_ELEM reads a key and a value of four bytes each, which live.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Empties a slot of an array of maps. Returns after every program that may use the map has ended.
pub(crate) fn clear_inner(outer: BorrowedFd<'_>, slot: u32) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: number(outer),
        reserved: 0,
        key: address(&slot),
        value: 0,
        flags: 0,
    };
    // SAFETY: BPF_MAP_DELETE_ELEM reads a key of four bytes, which lives.
    match unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attr) } {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map(drop),
    }
}

/// The id of the map in a slot of an array of maps; `None` if it is empty.
pub(crate) fn inner_id(outer: BorrowedFd<'_>, slot: u32) -> io::Result<Option<u32>> {
    let mut id = 0_u32;
    let place: *mut u32 = &raw mut id;
    // SAFETY: the value of an array of maps has four bytes, as `id` has.
    match unsafe { lookup(outer, slot, place as u64) } {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(|()| Some(id)),
    }
}

/// The values of all processors of one entry of a per-processor array, summed by the caller.
pub(crate) fn per_processor<T: crate::layout::Plain + Default>(
    map: BorrowedFd<'_>,
    entry: u32,
    processors: usize,
) -> io::Result<Vec<T>> {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    let mut values = vec![T::default(); processors];
    // SAFETY: the kernel writes a value, whose size is a multiple of eight, for each possible processor.
    unsafe { lookup(map, entry, values.as_mut_ptr() as u64) }?;
    Ok(values)
}

/// # Safety
/// `value` is the address of as many bytes as a value of this map has.
unsafe fn lookup(map: BorrowedFd<'_>, key: u32, value: u64) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: number(map),
        reserved: 0,
        key: address(&key),
        value,
        flags: 0,
    };
    // SAFETY: the key has four bytes and lives; the caller argues for the value.
    unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) }.map(drop)
}

/// How many processors the kernel may ever have: it keeps a value for each.
pub(crate) fn possible_processors() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text
        .trim()
        .rsplit([',', '-'])
        .next()
        .and_then(|last| last.parse::<usize>().ok());
    last.and_then(|last| last.checked_add(1))
        .ok_or_else(|| io::Error::other(format!("/sys/devices/system/cpu/possible says {text:?}")))
}

/// Whether this process may write to a directory: its filesystem may be mounted read-only.
pub(crate) fn check_writable(directory: &Path) -> io::Result<()> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: access reads the path, which lives.
    match unsafe { libc::access(path.as_ptr(), libc::W_OK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs of a program that the kernel skipped because it was running on the same processor.
pub(crate) fn recursion_misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(&path)?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("recursion_misses:"));
    value
        .and_then(|value| value.trim().parse().ok())
        .ok_or_else(|| io::Error::other(format!("{path} does not say how often the program was skipped")))
}
