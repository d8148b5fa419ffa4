//! Mounting a filesystem of an image: image → FUSE file → loop device → filesystem. It needs no kernel module beyond
//! those two, and every part goes when the one above it goes.

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
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use select::Selection;
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

/// Name of the file that holds the disk.
const DISK_FILE: &str = "disk";

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
    /// The disk, with the image's number.
    pub image: &'a ImageRef,
    /// The image's random id: the server serves no other one.
    pub image_id: &'a str,
    /// Which part of it.
    pub selection: &'a Selection,
    /// Its logical block size in bytes.
    pub block_bytes: u32,
    /// Where.
    pub dir: &'a Path,
}

/// Mounts it, or leaves everything as it was.
///
/// # Errors
/// What cannot be served, attached or mounted, and an interrupt: nothing is left of the mount then.
pub fn mount(plan: &Plan<'_>, interrupt: &Interrupt) -> anyhow::Result<Record> {
    let _lock = state::lock(Some(interrupt))?;
    state::sweep()?;
    let mut setup = Setup::new(plan)?;
    let mut record = setup.start_server(plan)?;
    interrupt.check()?;
    record.loop_device = Some(setup.attach(plan)?.to_owned());
    // Before it is mounted, so that what is mounted can always be found.
    record.save(&setup.dir)?;
    interrupt.check()?;
    setup.mount(plan)?;
    interrupt.check()?;
    setup.finished = true;
    Ok(record)
}

/// A mount being made; undone when dropped unfinished.
struct Setup {
    /// The private directory.
    dir: PathBuf,
    server: Option<Child>,
    device: Option<LoopDevice>,
    mounted_on: Option<PathBuf>,
    finished: bool,
}

impl Setup {
    fn new(plan: &Plan<'_>) -> anyhow::Result<Self> {
        let name = plan.image.to_string().replace(['/', ':'], "-") + "-";
        let dir = state::create(&name)?;
        Ok(Self {
            dir,
            server: None,
            device: None,
            mounted_on: None,
            finished: false,
        })
    }

    /// Starts the process that serves the disk and waits until the disk is there.
    fn start_server(&mut self, plan: &Plan<'_>) -> anyhow::Result<Record> {
        let child = self.server.insert(spawn_server(plan, &self.dir)?);
        let pid = i32::try_from(child.id()).context("read a process id")?;
        let server = Process::running(pid);
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut said)
                .context("wait for the server of the disk")?;
        }
        let Some(server) = server.filter(|_| said == fuse::READY) else {
            let log = fs::read_to_string(state::log_path(&self.dir)).unwrap_or_default();
            let why = log.trim().trim_start_matches("smc-image: ").replace('\n', "; ");
            return Err(anyhow!("the server of the disk did not start: {why}")).advise(fuse_advice());
        };
        let Plan {
            dir,
            image,
            selection,
            ..
        } = plan;
        let (dir, image, partition) = (dir.to_path_buf(), image.to_string(), selection.partition);
        let record = Record {
            dir,
            image,
            partition,
            server,
            loop_device: None,
        };
        record.save(&self.dir)?;
        Ok(record)
    }

    fn attach(&mut self, plan: &Plan<'_>) -> anyhow::Result<&Path> {
        let path = state::disk_path(&self.dir);
        let disk = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let Selection { offset, length, .. } = *plan.selection;
        let options = LoopOptions {
            offset_bytes: offset,
            length_bytes: length,
            block_bytes: plan.block_bytes,
            read_only: true,
            ..LoopOptions::default()
        };
        let device = LoopDevice::attach(disk.as_fd(), &options)?;
        Ok(self.device.insert(device).path())
    }

    fn mount(&mut self, plan: &Plan<'_>) -> anyhow::Result<()> {
        let device = self.device.as_ref().context("no loop device is attached")?.path();
        let filesystem = plan.selection.filesystem;
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME;
        let options = Some(filesystem.options).filter(|options| !options.is_empty());
        let opened = open_place(plan.dir)?;
        let place = format!("/proc/self/fd/{}", opened.as_raw_fd());
        match nix::mount::mount(Some(device), &*place, Some(filesystem.fstype), flags, options) {
            Ok(()) => {
                self.mounted_on = Some(plan.dir.to_owned());
                Ok(())
            }
            Err(error) => {
                let what = format!(
                    "mount the {} filesystem of {} on {}",
                    filesystem.fstype,
                    plan.image,
                    plan.dir.display()
                );
                Err(error).context(what).advise(mount_advice(error))
            }
        }
    }

    /// Takes back what was done, the last first.
    fn undo(&mut self) -> anyhow::Result<()> {
        if let Some(dir) = self.mounted_on.take() {
            umount2(&dir, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", dir.display()))?;
        }
        drop(self.device.take());
        if let Some(mut server) = self.server.take() {
            end_server(&mut server).context("end the server of the disk")?;
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
    command.arg(plan.image.to_string()).arg(dir);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .current_dir("/");
    // SAFETY: between fork and exec the closure makes two system calls and touches no memory but its own.
    unsafe { command.pre_exec(leave_everything) };
    command.spawn().context("start the server of the disk")
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

fn mount_advice(error: Errno) -> &'static str {
    match error {
        Errno::ENODEV => {
            "this kernel does not know the filesystem: load its module, or serve the image elsewhere"
        }
        Errno::EEXIST => {
            "a filesystem with the same id is mounted already, and this kernel cannot mount two: unmount it first"
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
