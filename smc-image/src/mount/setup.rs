//! What lies below a mounted filesystem: the process that serves the disks, and the loop devices on its files. All of it is
//! undone when it is dropped, unless it was finished.

use super::select::Place;
use super::state::{self, Process, Record};
use super::volumes::VolumeFile;
use super::{END_TIMEOUT, fuse, wait_until};
use crate::exit::Advise;
use crate::helper::{Means, Opened};
use anyhow::{Context, anyhow, bail};
use blockio::LockedFile;
use cli::interrupt::Interrupt;
use hostdev::{LoopDevice, LoopOptions};
use imagefmt::ImageRef;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The volumes of an image in JSON take less.
const SAID_LEN_MAX: usize = 4 << 20;

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
    /// The guest that opens LVM, RAID and LUKS in the image, if one is needed.
    pub helper: Option<Means<'a>>,
}

/// A mount being made; undone when dropped unfinished.
#[derive(Debug)]
pub struct Setup {
    /// The private directory.
    pub dir: PathBuf,
    server: Option<Child>,
    devices: Vec<LoopDevice>,
    /// What the helper guest has put together.
    pub volumes: Vec<VolumeFile>,
    /// What it could not open, and why.
    pub problems: Vec<String>,
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
            volumes: Vec::new(),
            problems: Vec::new(),
            mounted_on: None,
            finished: false,
        })
    }

    /// Starts the process that serves the disks. `key` opens encrypted disks in the helper guest, if one is wanted.
    ///
    /// # Errors
    /// A process that cannot be started, or ends at once.
    pub fn start_server(&mut self, service: &Service<'_>, key: Option<&[u8]>) -> anyhow::Result<Process> {
        let child = self.server.insert(spawn_server(service, &self.dir)?);
        let pid = i32::try_from(child.id()).context("read a process id")?;
        let server = Process::running(pid);
        if service.helper.is_some() {
            hand_over(child, key).context("hand over the key")?;
        }
        server.map_or_else(|| self.not_started(), Ok)
    }

    fn not_started<T>(&self) -> anyhow::Result<T> {
        let log = fs::read_to_string(state::log_path(&self.dir)).unwrap_or_default();
        let why = log.trim().trim_start_matches("smc-image: ").replace('\n', "; ");
        Err(anyhow!("the server of the disks did not start: {why}")).advise(fuse_advice())
    }

    /// Waits until the disks are there. Others may mount meanwhile where that takes its time, which is why the mount's
    /// record has been saved: `lock` is let go of, and taken again.
    ///
    /// # Errors
    /// What the process says, if it does not serve, and an interrupt.
    pub fn wait_for_disks(
        &mut self,
        service: &Service<'_>,
        lock: LockedFile,
        interrupt: &Interrupt,
    ) -> anyhow::Result<LockedFile> {
        if service.helper.is_none() {
            self.wait_for_server(interrupt)?;
            return Ok(lock);
        }
        drop(lock);
        self.wait_for_server(interrupt)?;
        state::lock(Some(interrupt))
    }

    fn wait_for_server(&mut self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let child = self.server.as_mut().context("no server was started")?;
        let said = first_line(child, interrupt)?;
        let opened = said
            .strip_prefix(fuse::READY)
            .and_then(|json| serde_json::from_str::<Opened>(json).ok());
        let Some(opened) = opened else {
            return self.not_started();
        };
        let volumes = opened
            .volumes
            .into_iter()
            .filter(|volume| !volume.name.is_empty());
        self.volumes = volumes.map(|volume| VolumeFile::new(&self.dir, volume)).collect();
        self.problems = opened.problems;
        Ok(())
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
    if let Some(means) = &service.helper {
        command.arg("--helper").arg("--helper-root").arg(means.root);
        command.args(
            means
                .kernel
                .map(|kernel| [Path::new("--kernel"), kernel])
                .into_iter()
                .flatten(),
        );
    }
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

/// Gives the server the key of encrypted disks, by the pipe that it keeps: no other process sees it.
fn hand_over(server: &mut Child, key: Option<&[u8]>) -> anyhow::Result<()> {
    let stdin = server
        .stdin
        .as_mut()
        .context("the server has no standard input")?;
    let key = key.map(<[u8]>::to_vec);
    let line = format!("{}\n", serde_json::to_string(&key)?);
    Ok(stdin.write_all(line.as_bytes())?)
}

/// The first line of what the server says; without its end if the server has ended before.
fn first_line(server: &mut Child, interrupt: &Interrupt) -> anyhow::Result<String> {
    let stdout = server
        .stdout
        .as_mut()
        .context("the server has no standard output")?;
    let mut said = Vec::new();
    while said.last() != Some(&b'\n') {
        interrupt.check()?;
        let mut asked = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        match poll(&mut asked, PollTimeout::from(100u8)) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error).context("wait for the server of the disks"),
        }
        let mut buffer = [0; 4096];
        match stdout
            .read(&mut buffer)
            .context("wait for the server of the disks")?
        {
            0 => break,
            length => said.extend_from_slice(&buffer[..length]),
        }
        if said.len() > SAID_LEN_MAX {
            bail!("the server of the disks says too much");
        }
    }
    Ok(String::from_utf8(said)?)
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
