//! Mounting a filesystem of an image: image → overlay → FUSE file → loop device → filesystem. It needs no kernel module
//! beyond those two, and every part goes when the one above it goes. What the kernel writes, to replay a journal
//! or because somebody changes files, ends in the overlay; the image stays as it is.

pub mod filesystem;
pub mod fuse;
pub mod journal;
pub mod partition;
pub mod select;
pub mod state;
pub mod teardown;
mod xfs;

use crate::exit::Advise;
use anyhow::{Context, anyhow, bail, ensure};
use cli::interrupt::Interrupt;
use hostdev::{LoopDevice, LoopOptions};
use imagefmt::{Disk, ImageRef};
use journal::Journal;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use select::{Place, Selection};
use state::{Process, Record};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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
    /// The store.
    pub store: &'a Path,
    /// The image, by number.
    pub image: &'a ImageRef,
    /// The image's random id: the server serves no other one.
    pub image_id: &'a str,
    /// Which filesystem of it.
    pub selection: &'a Selection,
    /// What may be written to the overlay.
    pub access: Access,
    /// Where the overlay keeps what does not fit into memory.
    pub overlay_dir: &'a Path,
    /// How much may be written to it.
    pub overlay_limit_bytes: u64,
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

impl Plan<'_> {
    /// The image, with the disk if the filesystem lies on one.
    fn label(&self) -> String {
        let disk = match self.selection.places.as_slice() {
            [only] => Some(only.disk.as_str()),
            _ => None,
        };
        self.image.with_disk(disk).to_string()
    }
}

/// Mounts it, or leaves everything as it was.
///
/// # Errors
/// What cannot be served, attached or mounted, and an interrupt: nothing is left of the mount then.
pub fn mount(plan: &Plan<'_>, interrupt: &Interrupt) -> anyhow::Result<Record> {
    let _lock = state::lock(Some(interrupt))?;
    state::sweep()?;
    check_not_mounted(plan)?;
    let mut setup = Setup::new(plan)?;
    let mut record = setup.start_server(plan)?;
    interrupt.check()?;
    for place in &plan.selection.places {
        record.loop_devices.push(setup.attach(plan, place)?);
        // Before it is mounted, so that what is mounted can always be found.
        record.save(&setup.dir)?;
        interrupt.check()?;
    }
    setup.mount(plan)?;
    interrupt.check()?;
    setup.finished = true;
    Ok(record)
}

/// The kernel would take the devices of a filesystem on several for those of another one with the same id.
fn check_not_mounted(plan: &Plan<'_>) -> anyhow::Result<()> {
    let Some(id) = &plan.selection.id else {
        return Ok(());
    };
    let known = Path::new("/sys/fs/btrfs").join(hostdev::uuid_text(id));
    if known.exists() {
        let what = format!(
            "the {} filesystem of {}, or one with the same id, is mounted already",
            plan.selection.filesystem.fstype,
            plan.label()
        );
        return Err(anyhow!(what)).advise("unmount it first, or mount the image on another machine");
    }
    Ok(())
}

/// A mount being made; undone when dropped unfinished.
struct Setup {
    /// The private directory.
    dir: PathBuf,
    server: Option<Child>,
    devices: Vec<LoopDevice>,
    mounted_on: Option<PathBuf>,
    finished: bool,
}

impl Setup {
    fn new(plan: &Plan<'_>) -> anyhow::Result<Self> {
        let name = plan.label().replace(['/', ':'], "-") + "-";
        let dir = state::create(&name)?;
        Ok(Self {
            dir,
            server: None,
            devices: Vec::new(),
            mounted_on: None,
            finished: false,
        })
    }

    /// Starts the process that serves the disks and waits until they are there.
    fn start_server(&mut self, plan: &Plan<'_>) -> anyhow::Result<Record> {
        let child = self.server.insert(spawn_server(plan, &self.dir)?);
        let pid = i32::try_from(child.id()).context("read a process id")?;
        let server = Process::running(pid);
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut said)
                .context("wait for the server of the disks")?;
        }
        let Some(server) = server.filter(|_| said == fuse::READY) else {
            let log = fs::read_to_string(state::log_path(&self.dir)).unwrap_or_default();
            let why = log.trim().trim_start_matches("smc-image: ").replace('\n', "; ");
            return Err(anyhow!("the server of the disks did not start: {why}")).advise(fuse_advice());
        };
        let partition = match plan.selection.places.as_slice() {
            [only] => only.partition,
            _ => None,
        };
        let record = Record {
            dir: plan.dir.to_owned(),
            image: plan.label(),
            partition,
            server,
            loop_devices: Vec::new(),
        };
        record.save(&self.dir)?;
        Ok(record)
    }

    fn attach(&mut self, plan: &Plan<'_>, place: &Place) -> anyhow::Result<PathBuf> {
        let path = state::disk_path(&self.dir, &place.disk);
        let read_only = plan.access == Access::NoReplay;
        let disk = File::options().read(true).write(!read_only).open(&path);
        let disk = disk.with_context(|| format!("open {}", path.display()))?;
        let options = LoopOptions {
            offset_bytes: place.offset,
            length_bytes: place.length,
            block_bytes: place.block_bytes,
            read_only,
            ..LoopOptions::default()
        };
        let device = LoopDevice::attach(disk.as_fd(), &options)?;
        let path = device.path().to_owned();
        self.devices.push(device);
        Ok(path)
    }

    fn mount(&mut self, plan: &Plan<'_>) -> anyhow::Result<()> {
        let devices: Vec<&Path> = self.devices.iter().map(LoopDevice::path).collect();
        let device = *devices.first().context("no loop device is attached")?;
        let filesystem = plan.selection.filesystem;
        let mut flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME;
        flags.set(MsFlags::MS_RDONLY, plan.access != Access::Writable);
        let options = mount_options(plan, &devices);
        let opened = open_place(plan.dir)?;
        let place = format!("/proc/self/fd/{}", opened.as_raw_fd());
        match nix::mount::mount(
            Some(device),
            &*place,
            Some(filesystem.fstype),
            flags,
            Some(&*options),
        ) {
            Ok(()) => {
                self.mounted_on = Some(plan.dir.to_owned());
                Ok(())
            }
            Err(error) => {
                let what = format!(
                    "mount the {} filesystem of {} on {}",
                    filesystem.fstype,
                    plan.label(),
                    plan.dir.display()
                );
                Err(error).context(what).advise(mount_advice(error, plan))
            }
        }
    }

    /// Takes back what was done, the last first.
    fn undo(&mut self) -> anyhow::Result<()> {
        if let Some(dir) = self.mounted_on.take() {
            umount2(&dir, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", dir.display()))?;
        }
        self.devices.clear();
        if let Some(mut server) = self.server.take() {
            end_server(&mut server).context("end the server of the disks")?;
        }
        state::remove(&self.dir)
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if let Err(error) = self.undo() {
            tracing::error!("cannot undo all of the mount: {error:#}");
        }
    }
}

/// This program again, in a session of its own, with nothing of ours but a pipe in each direction.
fn spawn_server(plan: &Plan<'_>, dir: &Path) -> anyhow::Result<Child> {
    let log = File::create(state::log_path(dir)).context("create the log")?;
    let store = std::path::absolute(plan.store).context("find the store's path")?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("smc-image")
        .arg("--store")
        .arg(store)
        .args(["mount", "--fuse-server", plan.image_id]);
    command.arg("--overlay-dir").arg(plan.overlay_dir);
    command.args(["--overlay-limit", &plan.overlay_limit_bytes.to_string()]);
    command.arg(plan.image.to_string()).arg(dir);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .current_dir("/");
    // SAFETY: between fork and exec the closure makes two system calls and touches no memory but its own.
    unsafe { command.pre_exec(leave_everything) };
    command.spawn().context("start the server of the disks")
}

/// Leaves the terminal's session and lets go of descriptors that our caller left open, locks among them.
fn leave_everything() -> io::Result<()> {
    nix::unistd::setsid()?;
    // SAFETY: takes three numbers; descriptors are closed at exec, not here, so none is pulled from under anybody.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })?;
    Ok(())
}

/// Closes our end of the server's stdin, which tells it to go, and sees that it does.
fn end_server(server: &mut Child) -> anyhow::Result<()> {
    drop(server.stdin.take());
    let mut ended = false;
    wait_until(END_TIMEOUT, || {
        ended = !matches!(server.try_wait(), Ok(None));
        ended
    });
    if !ended {
        server.kill()?;
        server.wait()?;
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

fn fuse_advice() -> &'static str {
    if Path::new("/dev/fuse").exists() {
        "see above; 'smc-image export' and 'smc-image serve' need no FUSE"
    } else {
        "this kernel has no /dev/fuse: run 'modprobe fuse', or use 'smc-image export' or 'serve' instead"
    }
}

/// The options of mount(8): those of the filesystem, and its further devices.
fn mount_options(plan: &Plan<'_>, devices: &[&Path]) -> String {
    let replay = plan.access != Access::NoReplay;
    let mut options = plan.selection.filesystem.options(replay);
    let further = devices.iter().skip(1);
    options.extend(further.map(|device| format!("device={}", device.display())));
    options.join(",")
}

fn mount_advice(error: Errno, plan: &Plan<'_>) -> &'static str {
    match error {
        Errno::ENODEV => {
            "this kernel does not know the filesystem: load its module, or serve the image elsewhere"
        }
        Errno::EEXIST => {
            "a filesystem with the same id is mounted already, and this kernel cannot mount two: unmount it first"
        }
        _ if plan.access == Access::ReadOnly && plan.selection.journal != Journal::Clean => {
            "the kernel's log says more (dmesg); --no-replay mounts it without its journal"
        }
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
