//! What only the kernel can tell: asked once, changed by nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use nix::sys::utsname::uname;

use hostdev::Root;

use crate::command::within;

/// A dead server behind a mount never answers.
const SPACE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Space of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    pub used_bytes: u64,
    /// Free for everyone: some filesystems keep a part for root, which had better stay free.
    pub available_bytes: u64,
    /// Files that can still be made; absent where the filesystem makes inodes as it needs them.
    pub free_inodes: Option<u64>,
    pub read_only: bool,
}

/// Tells the space of a path's filesystem.
pub(crate) type SpaceOf = Box<dyn Fn(&Path) -> Option<Space>>;

/// What the kernel answered.
pub(crate) struct KernelFacts {
    pub effective_uid: u32,
    /// The machine's hardware name: `x86_64`.
    pub architecture: String,
    /// Whether an io_uring could be set up.
    pub io_uring: Result<(), Errno>,
    /// Whether the bpf system call is there and allowed.
    pub bpf: Result<(), Errno>,
    /// Whether the clock follows a reference; absent where the kernel did not say.
    pub clock_synchronized: Option<bool>,
    /// Space of the filesystem of a path of the machine; none if it does not answer in time.
    pub space: SpaceOf,
}

impl KernelFacts {
    /// Asks the running kernel.
    pub fn ask(root: &Root) -> KernelFacts {
        let root = root.clone();
        let name = uname().ok();
        let machine = name.as_ref().and_then(|name| name.machine().to_str());
        KernelFacts {
            effective_uid: nix::unistd::geteuid().as_raw(),
            architecture: machine.unwrap_or(std::env::consts::ARCH).to_owned(),
            io_uring: io_uring(),
            bpf: bpf(),
            clock_synchronized: clock_synchronized(),
            space: Box::new(move |path| space(root.clone(), path.to_owned())),
        }
    }
}

fn io_uring() -> Result<(), Errno> {
    let errno = |error: std::io::Error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    let ring = io_uring::IoUring::new(2).map_err(errno)?;
    // Kernels before 5.6 have rings that blockio does not use, and cannot be asked what they can do.
    let probed = ring.submitter().register_probe(&mut io_uring::Probe::new());
    probed.map_err(|_| Errno::ENOSYS)
}

/// `BPF_PROG_GET_NEXT_ID` of linux/bpf.h: a question that loads and changes nothing.
const PROG_GET_NEXT_ID: libc::c_int = 11;

fn bpf() -> Result<(), Errno> {
    // start_id, next_id, open_flags
    let mut attributes = [0u32; 3];
    // SAFETY: bpf(2) reads and writes at most the 12 bytes whose length it is told, which live in `attributes`.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_GET_NEXT_ID,
            attributes.as_mut_ptr(),
            size_of_val(&attributes),
        )
    };
    match Errno::result(answer) {
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn clock_synchronized() -> Option<bool> {
    // SAFETY: `timex` consists of integers only, for which all zeros is a value.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: with no mode set adjtimex(2) changes nothing and only fills in the structure, which lives here.
    let clock = unsafe { libc::adjtimex(&raw mut state) };
    (clock >= 0).then_some(clock != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0)
}

/// Space of the filesystem of a path, or of its nearest ancestor that exists.
fn space(root: Root, path: PathBuf) -> Option<Space> {
    within(SPACE_TIMEOUT, move || {
        let place = root.existing_ancestor(path).ok()?;
        let found = statvfs(&root.join(place)).ok()?;
        let fragment = found.fragment_size();
        Some(Space {
            used_bytes: found
                .blocks()
                .saturating_sub(found.blocks_free())
                .saturating_mul(fragment),
            available_bytes: found.blocks_available().saturating_mul(fragment),
            free_inodes: (found.files() > 0).then(|| found.files_free()),
            read_only: found.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY),
        })
    })?
}
