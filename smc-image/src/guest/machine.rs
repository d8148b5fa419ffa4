//! The machine that an image is booted on, and the server of its disks: both in this process or its child, connected by
//! sockets without a name.

use super::firmware::Signs;
use crate::catalog::{GuestDisks, limits};
use crate::exit::Advise;
use crate::overlay;
use anyhow::{Context as _, ensure};
use boot::{Accelerator, Bus, Firmware, KVM_VERDICT, Network, Ovmf, Pc, PcDisk, Running, Source};
use cli::interrupt::Interrupt;
use imagefmt::Image;
use nbd::Server;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

/// Where QEMU is not installed.
pub const INSTALL_QEMU: &str = "install the package qemu-system-x86 (Debian, Ubuntu), qemu-kvm (RHEL, Fedora) or \
    qemu-x86 (openSUSE)";
const INSTALL_OVMF: &str = "install the package ovmf (Debian, Ubuntu), edk2-ovmf (RHEL, Fedora) or qemu-ovmf-x86_64 \
    (openSUSE); --firmware bios starts a disk that has a boot sector too";

/// What was asked for.
#[derive(Debug)]
pub struct Wanted {
    /// `None`: as the disks tell.
    pub uefi: Option<bool>,
    /// `None`: KVM where it runs guests.
    pub accelerator: Option<Accelerator>,
    /// How the disks are attached.
    pub bus: Bus,
    /// The guest's memory.
    pub memory_mib: u32,
    /// How many processors it has.
    pub cpus: u32,
    /// What it reaches, and by which ports it is reached.
    pub network: Network,
    /// A socket for a VNC viewer.
    pub vnc: Option<PathBuf>,
    /// Where what the guest writes is kept.
    pub overlay_dir: PathBuf,
    /// How much it may write.
    pub overlay_limit_bytes: u64,
}

/// What it was started on.
#[derive(Debug, Clone)]
pub struct Described {
    /// `bios` or `uefi`.
    pub firmware: String,
    /// Why this firmware.
    pub firmware_reason: &'static str,
    /// What runs the guest.
    pub accelerator: Accelerator,
    /// Whether the disks have nothing that this firmware could start, as far as that was looked at.
    pub has_nothing_to_start: bool,
}

/// A guest that runs, and what it reads from.
#[derive(Debug)]
pub struct Started {
    /// It.
    pub running: Running,
    /// Its disks.
    pub disks: Arc<GuestDisks>,
    /// What it runs on.
    pub described: Described,
    /// For a VNC viewer.
    pub socket: Option<SocketFile>,
}

/// Starts the image's server. The caller keeps the image open while it runs.
///
/// # Errors
/// Where QEMU or the firmware is missing, where the disks do not fit to the bus, and what QEMU says.
pub fn start(image: &Image, wanted: &Wanted, interrupt: &Interrupt) -> anyhow::Result<Started> {
    check_disks(image, wanted.bus)?;
    let socket = wanted.vnc.as_deref().map(SocketFile::at).transpose()?;
    let (firmware, firmware_reason, has_nothing_to_start) = firmware(image, wanted.uefi)?;
    let accelerator = match wanted.accelerator {
        Some(accelerator) => accelerator,
        None => found(interrupt)?,
    };
    let disks = Arc::new(GuestDisks::new(
        image,
        &wanted.overlay_dir,
        overlay::memory_bytes(wanted.overlay_limit_bytes),
        wanted.overlay_limit_bytes,
    )?);
    let described = Described {
        firmware: firmware.to_string(),
        firmware_reason,
        accelerator,
        has_nothing_to_start,
    };
    let pc = Pc {
        accelerator,
        memory_mib: wanted.memory_mib,
        cpus: wanted.cpus,
        firmware,
        bus: wanted.bus,
        disks: serve(image, &disks)?,
        network: wanted.network.clone(),
        vnc: wanted.vnc.clone(),
    };
    let running = advised(Running::start(pc), INSTALL_QEMU)?;
    Ok(Started {
        running,
        disks,
        described,
        socket,
    })
}

fn check_disks(image: &Image, bus: Bus) -> anyhow::Result<()> {
    let count = image.disks().len();
    if count > bus.disks_max() {
        let what = format!(
            "{count} disks are more than the bus {bus} takes ({})",
            bus.disks_max()
        );
        return Err(anyhow::Error::msg(what)).advise("attach them with --disk-bus scsi");
    }
    let large = image
        .manifest()
        .disks
        .iter()
        .find(|disk| disk.logical_block_size > 512);
    match large {
        Some(disk) if !bus.has_large_blocks() => {
            let (name, bytes) = (&disk.name, disk.logical_block_size);
            let what = format!("disk {name} has blocks of {bytes} bytes, which the bus {bus} does not have");
            Err(anyhow::Error::msg(what)).advise("attach it with --disk-bus virtio, scsi or nvme")
        }
        _ => Ok(()),
    }
}

/// The file of a socket that QEMU makes and leaves; removed when dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl SocketFile {
    /// The socket that is to be made there. One on which nobody listens is of a boot that was killed, and goes; QEMU would
    /// replace whatever else is there.
    fn at(path: &Path) -> anyhow::Result<Self> {
        let is_stale = || {
            let refused =
                UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
            refused && is_socket(path)
        };
        if path.symlink_metadata().is_ok() {
            ensure!(
                is_stale(),
                "{} exists: name a socket that is not there yet",
                path.display()
            );
            fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(Self(path.to_owned()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if is_socket(&self.0)
            && let Err(error) = fs::remove_file(&self.0)
        {
            tracing::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

fn is_socket(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|found| found.file_type().is_socket())
}

/// The firmware, why this one, and whether the disks have nothing for it.
fn firmware(image: &Image, uefi: Option<bool>) -> anyhow::Result<(Firmware, &'static str, bool)> {
    let ovmf = Ovmf::find();
    let signs = Signs::of(image).context("look at the disks");
    let (uefi, reason, signs) = match uefi {
        // Where it is not asked, a disk that cannot be read shows in the guest.
        Some(uefi) => (uefi, "as --firmware says", signs.ok()),
        None => {
            let signs = signs?;
            (signs.wants_uefi(ovmf.is_ok()), signs.in_words(), Some(signs))
        }
    };
    if !uefi {
        let has_nothing = signs.is_some_and(|signs| !signs.boot_sector);
        return Ok((Firmware::Bios, reason, has_nothing));
    }
    let has_nothing = signs.is_some_and(|signs| !signs.esp);
    Ok((Firmware::Uefi(advised(ovmf, INSTALL_OVMF)?), reason, has_nothing))
}

/// The kernel that this machine runs, if it can be read.
fn own_kernel() -> Option<PathBuf> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let path = Path::new("/boot").join(format!("vmlinuz-{}", release.trim()));
    File::open(&path).is_ok().then_some(path)
}

fn found(interrupt: &Interrupt) -> anyhow::Result<Accelerator> {
    let kernel = own_kernel();
    let found = Accelerator::found(kernel.as_deref(), Path::new(KVM_VERDICT), &|| interrupt.is_set());
    interrupt.check()?;
    advised(found, INSTALL_QEMU)
}

/// Adds what to install where something is missing.
///
/// # Errors
/// The error that there was.
pub fn advised<T>(done: boot::Result<T>, install: &str) -> anyhow::Result<T> {
    let missing = matches!(&done, Err(error) if error.kind() == boot::ErrorKind::Missing);
    let done = done.map_err(anyhow::Error::from);
    if missing { done.advise(install) } else { done }
}

/// Serves the disks from a thread, and gives the guest's ends of their connections.
///
/// # Errors
/// Where sockets or the thread cannot be made.
pub fn serve(image: &Image, disks: &Arc<GuestDisks>) -> anyhow::Result<Vec<PcDisk>> {
    let mut server = Server::new(Arc::clone(disks) as Arc<dyn nbd::Catalog>, limits())?;
    let mut of_guest = Vec::new();
    for disk in &image.manifest().disks {
        let (ours, theirs) = UnixStream::pair().context("make a pair of sockets")?;
        server.connect(ours);
        of_guest.push(PcDisk {
            source: Source::Nbd {
                connection: theirs,
                export: disk.name.clone(),
            },
            serial: disk.name.clone(),
            block_bytes: disk.logical_block_size.max(512),
        });
    }
    let serve = move || {
        if let Err(error) = server.run() {
            tracing::error!("the guest's disks are not served: {error}");
        }
    };
    thread::Builder::new()
        .name("disks".to_owned())
        .spawn(serve)
        .context("start a thread")?;
    Ok(of_guest)
}
