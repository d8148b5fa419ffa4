//! Unmounting: whatever is still there of a mount goes, in the order in which one part holds the next.

use super::state::{self, Record};
use super::{END_TIMEOUT, wait_until};
use crate::exit::Advise;
use anyhow::{Context, anyhow, bail};
use hostdev::{MountTable, Root};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};

/// What was unmounted.
#[derive(Debug)]
pub struct Unmounted {
    /// The mount.
    pub record: Record,
    /// What its server complained about: clusters that could not be read.
    pub complaints: String,
}

/// Unmounts what `smc-image mount` mounted on `dir`, and waits until nothing of it is left.
///
/// # Errors
/// Where nothing was mounted there, or it is in use; what cannot be unmounted.
pub fn unmount(dir: &Path) -> anyhow::Result<Unmounted> {
    let _lock = state::lock(None)?;
    let (private, record) = find(dir)?;
    let complaints = fs::read_to_string(state::log_path(&private)).unwrap_or_default();
    if record.is_mounted(&private)? {
        release(dir)?;
    }
    detach(&private, &record)?;
    end_server(&record)?;
    state::remove(&private)?;
    Ok(Unmounted { record, complaints })
}

/// The mount to unmount: what is on top at `dir`, else what is left of one whose filesystem is unmounted already.
fn find(dir: &Path) -> anyhow::Result<(PathBuf, Record)> {
    let mut ours: Vec<(PathBuf, Record)> = Vec::new();
    for (private, record) in state::all()? {
        ours.extend(
            record
                .filter(|record| record.dir == dir)
                .map(|record| (private, record)),
        );
    }
    let table = MountTable::own(&Root::system())?;
    let top = table.on(dir).map(|mount| Path::new(&mount.source));
    for (private, record) in &ours {
        let devices = record.attached_loops(private)?;
        if top.is_some_and(|top| devices.contains(&top)) {
            return Ok((private.clone(), record.clone()));
        }
    }
    let covered = !ours.is_empty();
    for (private, record) in ours {
        if !record.is_mounted(&private)? {
            return Ok((private, record));
        }
    }
    if covered {
        bail!(
            "something else is mounted on {} above the image: unmount that first",
            dir.display()
        );
    }
    Err(anyhow!(
        "{} is not where smc-image mounted an image",
        dir.display()
    ))
    .advise("findmnt shows what is mounted; umount(8) unmounts the rest")
}

fn release(dir: &Path) -> anyhow::Result<()> {
    match umount2(dir, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => Err(anyhow!("{} is in use", dir.display()))
            .advise(format!("'fuser -vm {}' shows by whom", dir.display())),
        Err(error) => Err(error).with_context(|| format!("unmount {}", dir.display())),
    }
}

/// Devices go by themselves when their filesystem is unmounted; those that have never been mounted are detached here.
fn detach(private: &Path, record: &Record) -> anyhow::Result<()> {
    let are_gone = || matches!(record.attached_loops(private), Ok(devices) if devices.is_empty());
    if wait_until(END_TIMEOUT / 5, are_gone) {
        return Ok(());
    }
    let attached = record.attached_loops(private)?;
    for device in &attached {
        hostdev::detach_loop(device)?;
    }
    if let Some(device) = attached.first().filter(|_| !wait_until(END_TIMEOUT, are_gone)) {
        return Err(anyhow!(
            "{} is still in use, although {} is unmounted",
            device.display(),
            record.dir.display()
        ))
        .advise("it goes by itself with its last user, which may be in another mount namespace");
    }
    Ok(())
}

/// The server ends by itself when its file is closed; one that does not is made to.
fn end_server(record: &Record) -> anyhow::Result<()> {
    let pid = Pid::from_raw(record.server.pid);
    if wait_until(END_TIMEOUT, || !record.server.is_alive()) {
        return Ok(());
    }
    match kill(pid, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => return Err(error).with_context(|| format!("end process {pid}")),
    }
    if wait_until(END_TIMEOUT, || !record.server.is_alive()) {
        return Ok(());
    }
    bail!("process {pid}, which served the disks, does not end")
}
