//! Mounting a filesystem of an image: image → overlay → FUSE file → loop device → filesystem. It needs no kernel module
//! beyond those two, and every part goes when the one above it goes. What the kernel writes, to replay a journal
//! or because somebody changes files, ends in the overlay; the image stays as it is.

pub mod fat;
pub mod filesystem;
pub mod fuse;
pub mod journal;
pub mod partition;
pub mod select;
mod setup;
pub mod state;
pub mod teardown;
pub mod tree;
mod volumes;
mod xfs;

pub use setup::Service;

use crate::exit::Advise;
use anyhow::{Context, anyhow, bail, ensure};
use cli::interrupt::Interrupt;
use filesystem::Filesystem;
use imagefmt::Disk;
use journal::Journal;
use nix::errno::Errno;
use nix::mount::MsFlags;
use select::{NamedDisk, Selection, Wanted};
use setup::Setup;
use state::Record;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take to end when nobody needs it any more.
const END_TIMEOUT: Duration = Duration::from_secs(5);

impl partition::Source for Disk {
    fn size_bytes(&self) -> u64 {
        Self::size_bytes(self)
    }

    fn read_at(&self, offset: u64, target: &mut [u8]) -> anyhow::Result<()> {
        Ok(Self::read_at(self, offset, target)?)
    }
}

/// What to mount where.
#[derive(Debug)]
pub struct Plan<'a> {
    /// What serves the disks.
    pub service: Service<'a>,
    /// The disks of the image.
    pub disks: &'a [NamedDisk<'a>],
    /// Which filesystem of it.
    pub wanted: Wanted<'a>,
    /// What opens encrypted disks.
    pub key: Option<&'a [u8]>,
    /// What may be written to the overlay.
    pub access: Access,
    /// Where.
    pub dir: &'a Path,
}

/// Who may write to the overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody: the filesystem is shown without what is in its journal only.
    NoReplay,
    /// The kernel, to replay the journal.
    ReadOnly,
    /// Everybody whom the filesystem lets.
    Writable,
}

/// What was mounted.
#[derive(Debug)]
pub struct Mounted {
    /// What undoing it needs to know.
    pub record: Record,
    /// The filesystem.
    pub selection: Selection,
    /// What the helper guest could not open, and why.
    pub problems: Vec<String>,
}

impl Plan<'_> {
    /// The image, with the disk if the filesystem lies on one.
    fn label(&self, selection: &Selection) -> String {
        let disk = match selection.places.as_slice() {
            [only] => Some(only.disk.as_str()),
            _ => None,
        };
        self.service.image.with_disk(disk).to_string()
    }

    /// Finds the filesystem, once the server has said what a helper guest has put together.
    fn select(&self, setup: &Setup) -> anyhow::Result<Selection> {
        let disks = volumes::beside(self.disks, &setup.volumes);
        let found = select::select(&disks, self.wanted);
        with_problems(found, &setup.problems)
    }
}

/// Adds what a helper guest could not open to an error.
fn with_problems<T>(done: anyhow::Result<T>, problems: &[String]) -> anyhow::Result<T> {
    if problems.is_empty() {
        return done;
    }
    done.with_context(|| format!("not everything could be opened ({})", problems.join("; ")))
}

/// Mounts it, or leaves everything as it was.
///
/// # Errors
/// What cannot be served, attached or mounted, and an interrupt: nothing is left of the mount then.
pub fn mount(plan: &Plan<'_>, interrupt: &Interrupt) -> anyhow::Result<Mounted> {
    let early = match plan.service.helper {
        None => Some(select::select(plan.disks, plan.wanted)?),
        Some(_) => None,
    };
    let lock = state::lock(Some(interrupt))?;
    state::sweep()?;
    let mut setup = Setup::new(&plan.service.image.to_string())?;
    let mut record = Record {
        dir: plan.dir.to_owned(),
        image: plan.service.image.to_string(),
        partition: None,
        server: setup.start_server(&plan.service, plan.key)?,
        loop_devices: Vec::new(),
    };
    record.save(&setup.dir)?;
    let _lock = setup.wait_for_disks(&plan.service, lock, interrupt)?;
    let selection = early.map_or_else(|| plan.select(&setup), Ok)?;
    check_not_mounted(selection.id.as_ref(), selection.filesystem)?;
    let places = &selection.places;
    record.image = plan.label(&selection);
    record.partition = match places.as_slice() {
        [only] => only.partition,
        _ => None,
    };
    record.save(&setup.dir)?;
    interrupt.check()?;
    let devices = setup.attach_all(places, plan.access == Access::NoReplay, &mut record)?;
    interrupt.check()?;
    mount_selection(plan, &selection, &devices)?;
    setup.mounted_on = Some(plan.dir.to_owned());
    interrupt.check()?;
    setup.finished = true;
    let problems = std::mem::take(&mut setup.problems);
    Ok(Mounted {
        record,
        selection,
        problems,
    })
}

fn mount_selection(plan: &Plan<'_>, selection: &Selection, devices: &[PathBuf]) -> anyhow::Result<()> {
    let filesystem = selection.filesystem;
    let mounted = mount_devices(filesystem, devices, plan.access, &[], plan.dir);
    let what = || {
        format!(
            "mount the {} filesystem of {} on {}",
            filesystem.fstype,
            plan.label(selection),
            plan.dir.display()
        )
    };
    let Err(error) = mounted else { return Ok(()) };
    let errno = error.downcast_ref::<Errno>().copied();
    let is_dirty = selection.journal != Journal::Clean;
    Err(error)
        .with_context(what)
        .advise(mount_advice(errno, plan.access == Access::ReadOnly && is_dirty))
}

/// Mounts a filesystem on `dir`, which is no symbolic link, with `further` options.
fn mount_devices(
    filesystem: Filesystem,
    devices: &[PathBuf],
    access: Access,
    further: &[String],
    dir: &Path,
) -> anyhow::Result<()> {
    let device = devices.first().context("no loop device is attached")?;
    let mut flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME;
    flags.set(MsFlags::MS_RDONLY, access != Access::Writable);
    let mut options = filesystem.options(access != Access::NoReplay);
    options.extend(
        devices
            .iter()
            .skip(1)
            .map(|device| format!("device={}", device.display())),
    );
    options.extend_from_slice(further);
    let opened = open_place(dir)?;
    let place = format!("/proc/self/fd/{}", opened.as_raw_fd());
    let (fstype, options) = (Some(filesystem.fstype), options.join(","));
    Ok(nix::mount::mount(
        Some(device),
        &*place,
        fstype,
        flags,
        Some(&*options),
    )?)
}

/// The kernel would take the devices of a filesystem on several for those of another one with the same id.
fn check_not_mounted(id: Option<&[u8; 16]>, filesystem: Filesystem) -> anyhow::Result<()> {
    let known = id.map(|id| Path::new("/sys/fs/btrfs").join(hostdev::uuid_text(id)));
    if known.is_some_and(|known| known.exists()) {
        let what = format!(
            "the {} filesystem, or one with the same id, is mounted already",
            filesystem.fstype
        );
        return Err(anyhow!(what)).advise("unmount it first, or mount the image on another machine");
    }
    Ok(())
}

/// The directory to mount on. Whoever may write above it could have put a link in its place since its path was resolved,
/// and the kernel would follow that.
fn open_place(dir: &Path) -> anyhow::Result<File> {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW);
    let place = options
        .open(dir)
        .with_context(|| format!("open {}", dir.display()))?;
    let found = fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd()));
    let found = found.with_context(|| format!("resolve {}", dir.display()))?;
    ensure!(
        found == dir,
        "{} was replaced while it was looked at: it is {} now",
        dir.display(),
        found.display()
    );
    Ok(place)
}

fn mount_advice(error: Option<Errno>, replays: bool) -> &'static str {
    match error {
        Some(Errno::ENODEV) => {
            "this kernel does not know the filesystem: load its module, or serve the image elsewhere"
        }
        Some(Errno::EEXIST) => {
            "a filesystem with the same id is mounted already, and this kernel cannot mount two: unmount it first"
        }
        _ if replays => "the kernel's log says more (dmesg); --no-replay mounts it without its journal",
        _ => "the kernel's log says more (dmesg); 'smc-image verify' tells whether the image is intact",
    }
}

/// Asks again and again until `done` or the time is up; whether it was done.
fn wait_until(timeout: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    let mut nap = Duration::from_micros(500);
    while !done() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(nap);
        nap = (nap * 2).min(Duration::from_millis(20));
    }
    true
}

/// Mounting needs root; says so before anything is begun.
///
/// # Errors
/// Where the process does not run as root.
pub fn require_root() -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!("only root can mount and unmount images")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use testkit::guard::ScratchDir;

    #[test]
    fn a_link_in_the_place_of_the_directory_is_not_followed() {
        let scratch = ScratchDir::new("smc-mount").unwrap();
        let (place, victim) = (scratch.join("above/place"), scratch.join("victim"));
        fs::create_dir_all(&place).unwrap();
        fs::create_dir_all(victim.join("place")).unwrap();
        let place = place.canonicalize().unwrap();
        open_place(&place).unwrap();
        fs::remove_dir(&place).unwrap();
        symlink(&victim, &place).unwrap();
        assert!(open_place(&place).is_err());
        // The same further up.
        fs::remove_dir_all(scratch.join("above")).unwrap();
        symlink(&victim, scratch.join("above")).unwrap();
        let error = open_place(&place).unwrap_err().to_string();
        assert!(error.contains("was replaced"), "{error}");
    }
}
