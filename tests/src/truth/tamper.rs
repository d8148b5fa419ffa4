//! What may happen to a tracker between two syncs: the machine is started anew or suspended, and pinned maps are changed.

use anyhow::{Context, Result};
use nix::errno::Errno;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// BPF_OBJ_GET: opens what is pinned.
const OBJ_GET: libc::c_long = 7;
/// Memory of a map that is looked at: its first page.
const PAGE: usize = 4096;

/// The first numbers of a pinned map that can be mapped.
#[derive(Debug)]
pub struct PinnedMap {
    memory: NonNull<AtomicU64>,
    _map: OwnedFd,
}

/// What BPF_OBJ_GET reads (`union bpf_attr`).
#[repr(C)]
struct ObjGet {
    path: u64,
    fd: u32,
    flags: u32,
}

impl PinnedMap {
    /// Opens it.
    ///
    /// # Errors
    /// When it is not there, or cannot be mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let mut name = path.as_os_str().as_bytes().to_vec();
        name.push(0);
        let asked = ObjGet {
            path: name.as_ptr() as u64,
            fd: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads the structure, whose size is given, and the path behind it, which ends in a zero.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, &raw const asked, size_of::<ObjGet>()) };
        let fd = Errno::result(fd).with_context(|| format!("open {}", path.display()))?;
        // SAFETY: the kernel has just returned this descriptor; nobody else has it.
        let map = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                access,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        let memory = if memory == libc::MAP_FAILED {
            std::ptr::null_mut()
        } else {
            memory
        };
        let memory = NonNull::new(memory.cast()).with_context(|| format!("map {}", path.display()))?;
        Ok(Self { memory, _map: map })
    }

    /// One of its numbers.
    ///
    /// # Panics
    /// Behind the first page.
    pub fn number(&self, place: usize) -> &AtomicU64 {
        assert!(place < PAGE / 8, "only the first page is mapped");
        let number = self.memory.as_ptr().wrapping_add(place);
        // SAFETY: it lies in the page, which stays mapped as long as self; the kernel and others change it atomically.
        unsafe { &*number }
    }
}

impl Drop for PinnedMap {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `open`, and no reference to it outlives self.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), PAGE) };
    }
}

/// The directory of the only disk that is watched.
///
/// # Errors
/// When there is none.
pub fn watch_of(pins: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(pins)? {
        let path = entry?.path();
        if path.is_dir() {
            return Ok(path);
        }
    }
    anyhow::bail!("no disk is watched in {}", pins.display())
}

/// Makes the tracker forget that a cluster was written to since the last sync.
///
/// # Errors
/// When no disk is watched.
pub fn forget_write(pins: &Path, cluster: u64) -> Result<()> {
    let live = PinnedMap::open(&watch_of(pins)?.join("live"))?;
    let word = live.number(usize::try_from(cluster / 64)?);
    let bit = 1 << (cluster % 64);
    let before = word.fetch_and(!bit, Ordering::SeqCst);
    anyhow::ensure!(before & bit != 0, "cluster {cluster} was not marked");
    Ok(())
}

/// Makes the tracker look like one of another version: the second number of the map `control` is the version of its
/// structures.
///
/// # Errors
/// When there is no tracker.
pub fn change_version(pins: &Path) -> Result<()> {
    let control = PinnedMap::open(&pins.join("control"))?;
    control.number(1).fetch_add(1, Ordering::SeqCst);
    Ok(())
}

/// Runs a program as after a suspend of so many seconds: its clock that goes on while the machine sleeps is ahead.
pub fn after_a_suspend(seconds: u64) -> Vec<String> {
    let words = ["unshare", "--time", "--boottime"];
    let words = words.map(str::to_owned).into_iter();
    words.chain([seconds.to_string()]).collect()
}

/// Runs a program as after a restart of the machine: the kernel tells it another boot's id.
///
/// # Errors
/// When the id cannot be written into `dir`.
pub fn in_another_boot(dir: &Path) -> Result<Vec<String>> {
    let id = dir.join("boot_id");
    fs::write(&id, "01234567-89ab-cdef-0123-456789abcdef\n")?;
    let script = format!(
        "mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"",
        id.display()
    );
    let words = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    Ok(words.map(str::to_owned).to_vec())
}
