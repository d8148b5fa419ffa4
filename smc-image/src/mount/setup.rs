//! What lies below a mounted filesystem: the process that serves the disks, and the loop devices on its files. All of it is
//! undone when it is dropped, unless it was finished.

use super::select::Place;
use super::state::{self, Process, Record};
use super::{END_TIMEOUT, fuse, wait_until};
use crate::exit::Advise;
use anyhow::{Context, anyhow};
use hostdev::{LoopDevice, LoopOptions};
use imagefmt::ImageRef;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What the process that serves the disks is started with.
#[derive(Debug, Clone, Copy)]
pub struct Service<'a> {
    /// The store.
    pub store: &'a Path,
    /// The image, by number.
    pub image: &'a ImageRef,
    /// The image's random id: the server serves no other one.
    pub image_id: &'a str,
    /// Where the overlay keeps what does not fit into memory.
    pub overlay_dir: &'a Path,
    /// How much may be written to it.
    pub overlay_limit_bytes: u64,
}

/// A mount being made; undone when dropped unfinished.
#[derive(Debug)]
pub struct Setup {
    /// The private directory.
    pub dir: PathBuf,
    server: Option<Child>,
    devices: Vec<LoopDevice>,
    /// Where the filesystem is mounted, with others below it or none.
    pub mounted_on: Option<PathBuf>,
    /// Whether it stays when this is dropped.
    pub finished: bool,
}

impl Setup {
    /// Makes the private directory of a mount of `label`, an image or a disk of one.
    ///
    /// # Errors
    /// A directory that cannot be made.
    pub fn new(label: &str) -> anyhow::Result<Self> {
        let name = label.replace(['/', ':'], "-") + "-";
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
    ///
    /// # Errors
    /// What the process says, if it does not serve.
    pub fn start_server(&mut self, service: &Service<'_>) -> anyhow::Result<Process> {
        let child = self.server.insert(spawn_server(service, &self.dir)?);
        let pid = i32::try_from(child.id()).context("read a process id")?;
        let server = Process::running(pid);
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut said)
                .context("wait for the server of the disks")?;
        }
        server.filter(|_| said == fuse::READY).map_or_else(
            || {
                let log = fs::read_to_string(state::log_path(&self.dir)).unwrap_or_default();
                let why = log.trim().trim_start_matches("smc-image: ").replace('\n', "; ");
                Err(anyhow!("the server of the disks did not start: {why}")).advise(fuse_advice())
            },
            Ok,
        )
    }

    /// Attaches a loop device to each place and notes it in `record`, which is saved before anything is mounted: what is
    /// mounted can always be found.
    ///
    /// # Errors
    /// A device that cannot be attached, and a record that cannot be written.
    pub fn attach_all(
        &mut self,
        places: &[Place],
        read_only: bool,
        record: &mut Record,
    ) -> anyhow::Result<Vec<PathBuf>> {
        let mut devices = Vec::new();
        for place in places {
            let device = self.attach(place, read_only)?;
            record.loop_devices.push(device.clone());
            record.save(&self.dir)?;
            devices.push(device);
        }
        Ok(devices)
    }

    fn attach(&mut self, place: &Place, read_only: bool) -> anyhow::Result<PathBuf> {
        let path = state::disk_path(&self.dir, &place.disk);
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
fn spawn_server(service: &Service<'_>, dir: &Path) -> anyhow::Result<Child> {
    let log = File::create(state::log_path(dir)).context("create the log")?;
    let store = std::path::absolute(service.store).context("find the store's path")?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("smc-image")
        .arg("--store")
        .arg(store)
        .args(["mount", "--fuse-server", service.image_id]);
    command.arg("--overlay-dir").arg(service.overlay_dir);
    command.args(["--overlay-limit", &service.overlay_limit_bytes.to_string()]);
    command.arg(service.image.to_string()).arg(dir);
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

fn fuse_advice() -> &'static str {
    if Path::new("/dev/fuse").exists() {
        "see above; 'smc-image export' and 'smc-image serve' need no FUSE"
    } else {
        "this kernel has no /dev/fuse: run 'modprobe fuse', or use 'smc-image export' or 'serve' instead"
    }
}
